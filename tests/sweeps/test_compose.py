"""Composed configs: a copy equals what Hydra composes; texts are quoted so that they come back."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

ODD = st.text(st.sampled_from("ab~/ =,'\"\\$\u007b}[]()#:%@üη数🎉!*?&|;<>`"), max_size=12)


@given(ODD)
def test_a_quoted_text_comes_back_from_a_shell_and_hydra(value: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from distill.sweeps.compose import command, override

    program, line = shlex.split(command(override("data.root", value)))
    parsed = OverridesParser.create().parse_override(line)
    config = OmegaConf.create({"data": {"root": parsed.value()}})
    assert (program, parsed.key_or_group, config.data.root) == ("distill", "data.root", value)


@pytest.mark.slow
def test_composing_a_copy_equals_composing_anew() -> None:
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from distill.sweeps.compose import Composer
    from distill.system.conf import CONF

    loader = Hydra.create_main_hydra2("distill", create_config_search_path(str(CONF))).config_loader
    master = loader.load_configuration("config", ["seed=1,2"], run_mode=RunMode.MULTIRUN)
    composer = Composer(loader)
    jobs = [
        ["seed=1", "loss=kd", "loss.temperature=2"],
        ["seed=2", "loss=kd", "loss.temperature=0.5"],
        ["seed=2", "loss=logits", "+loss.extra=5"],
        ["seed=3", "loss=logits", "+loss.extra=6"],
        ["seed=4", "data.root='a b'", "transfer=omit", "transfer.classes=[1,2]"],
        ["seed=5", "data.root=null", "transfer=omit", "transfer.classes=[3]"],
        ["seed=6", "~loss.alpha", "hydra.verbose=true"],
        ["seed=7", "~loss.alpha", "hydra.verbose=true"],
    ]
    for overrides in jobs:
        theirs = loader.load_sweep_config(master, overrides)
        assert theirs.seed == int(overrides[0][-1])
        expected = OmegaConf.to_container(theirs)
        assert OmegaConf.to_container(composer.load_sweep_config(master, overrides)) == expected
        whole, task = map(OmegaConf.to_container, composer.compose(master, overrides))
        assert whole == expected
        assert isinstance(expected, dict) and expected.pop("hydra")
        assert task == expected
