"""Composed configs: a copy equals what Hydra composes; texts are quoted so that they come back."""

import shlex
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

ODD = st.text(st.sampled_from("ab~/ =,'\"\\$\u007b}[]()#:%@üη数🎉!*?&|;<>`"), max_size=12)
ODD = ODD.filter(lambda text: text != "???")  # which says that a value is missing


@given(ODD)
def test_a_quoted_text_comes_back_from_a_shell_and_hydra(value: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from distill.sweeps.compose import command, override

    program, line = shlex.split(command(override("data.root", value)))
    parsed = OverridesParser.create().parse_override(line)
    config = OmegaConf.create({"data": {"root": parsed.value()}})
    assert (program, parsed.key_or_group, config.data.root) == ("distill", "data.root", value)


# Jobs of a sweep, of which each is composed after those before it.
JOBS = [
    ["seed=1", "loss=kd", "loss.temperature=2"],
    ["seed=2", "loss=kd", "loss.temperature=0.5"],
    ["seed=2", "loss=kd", "loss.temperature=1e-3"],
    ["seed=+2", "loss=kd", "loss.temperature=1.5E2"],
    ["seed=007", "loss=kd", "loss.temperature=1_000"],
    ["seed=-0", "loss=kd", "loss.temperature=.5"],
    ["seed=2", "loss=kd", "loss.temperature=nan"],
    ["seed=2", "loss=logits", "+loss.extra=5"],
    ["seed=3", "loss=logits", "+loss.extra=6"],
    ["seed=4", "data.root='a b'", "transfer=omit", "transfer.classes=[1,2]"],
    ["seed=5", "data.root=null", "transfer=omit", "transfer.classes=[3]"],
    ["seed=5", "data.root=null", "transfer=omit", "transfer.classes=[]"],
    ["seed=6", "~loss.alpha", "hydra.verbose=true"],
    ["seed=7", "~loss.alpha", "hydra.verbose=true"],
    ["experiment=ensemble", "seed=1", "model.width=20"],
    ["experiment=ensemble", "seed=2", "model.width=30"],
    ["experiment=less_data", "seed=1", "train.epochs=3"],
    ["experiment=less_data", "seed=2", "train.epochs=4"],
    ["teacher.seed=${seed}", "seed=1"],
    ["teacher.seed=${seed}", "seed=2"],
    ["data.root='${oc.env:HOME}'", "model.width='${distill.times:${seed},3}'", "seed=2"],
    ["data.root='${oc.env:HOME}'", "model.width='${distill.times:${seed},3}'", "seed=3"],
    ["data.root='\\${seed}'", "seed=3"],
    ["data.root='a=b,[c]: \"d\" # e'", "seed=3"],
    ["data.root=true", "seed=3"],
    ["data.root='true'", "seed=4"],
    ["data.root='7'", "seed=4"],
    ["data.root=x${seed}", "seed=4"],
    ["views=turns", "views.count=2"],
    ["views=turns", "views.count=3"],
    ["teacher.train={epochs:3}", "teacher.train.batch_size=8"],
    ["teacher.train={epochs:4}", "teacher.train.batch_size=9"],
    ["teacher.train.epochs=5", "teacher.train.epochs=6"],
    ["train.epochs=3", "train={batch_size:7}"],
    ["train.epochs=4", "train={batch_size:8}"],
    ["hydra.sweep.subdir=${hydra:job.num}", "seed=${hydra:job.num}"],
    ["hydra.sweep.subdir=${hydra:job.num}", "seed=${hydra:job.num}"],
]


def test_composing_a_copy_equals_composing_anew() -> None:
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from distill.config import plain
    from distill.sweeps.compose import Composer, task_config
    from distill.sweeps.members import current, numbered
    from distill.system.conf import CONF

    loader = Hydra.create_main_hydra2("distill", create_config_search_path(str(CONF))).config_loader
    masters = {
        own: loader.load_configuration("config", [*own, "seed=1,2"], run_mode=RunMode.MULTIRUN)
        for own in {experiment(job) for job in JOBS}
    }
    composer = Composer(loader)
    found = [composer.compose(masters[experiment(job)], job) for job in JOBS]
    assert len({composed.kind for composed in found}) < len(JOBS)
    for number, (overrides, composed) in enumerate(zip(JOBS, found, strict=True)):
        master = masters[experiment(overrides)]
        theirs = numbered(loader.load_sweep_config(master, overrides), number)
        for ours in (composed.config(), composer.load_sweep_config(master, overrides)):
            assert exact(OmegaConf.to_container(numbered(ours, number))) == exact(
                OmegaConf.to_container(theirs)
            )
        task = task_config(theirs)
        unresolved = composed.kind.unresolved(composed.values)
        assert exact(unresolved) == exact(OmegaConf.to_container(task))
        with current(theirs):
            assert exact(composed.kind.task(composed.values)) == exact(plain(task))
    first = plain(task_config(loader.load_sweep_config(masters[()], JOBS[0])))
    assert exact(found[0].kind.task(found[0].values)) == exact(first)  # though others share it


def experiment(overrides: list[str]) -> tuple[str, ...]:
    """The experiment of a job, which the sweep's config was composed with, too."""
    return tuple(text for text in overrides if text.startswith("experiment="))


def exact(value: Any) -> str:
    """A value as text that tells 1 from 1.0, and the order of keys."""
    return repr(value)
