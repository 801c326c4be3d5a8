"""Code of one's own: trusted, checked, part of a run's name, the same wherever it is run."""

import os
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from conftest import SMALL, Cli, Offer, composed, make_job, shell
from omegaconf import OmegaConf
from pydantic import create_model
from torch import Tensor, nn

import distill.models
from distill.config import ConfigError, Run, components, parse, targets
from distill.config.components import schema
from distill.config.strict import said
from distill.models import MLP
from distill.runs.job import Job
from distill.runs.summaries import read_summary
from distill.system.trust import TRUSTED
from distill.training import build

LOSS = '''
    """A loss of one's own."""

    import os
    from os import system

    import torch
    from helping import WEIGHT
    from torch import Tensor


    def brier(
        student_logits: Tensor, teacher_logits: Tensor, *, sharpness: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        p, q = (torch.softmax(z * sharpness, -1) for z in (teacher_logits, student_logits))
        value = (p - q).square().sum(-1)
        return WEIGHT * value, {"brier": value}


    def bare(student_logits, labels, weight):
        return student_logits.sum(-1)


    def open_ended(student_logits: Tensor, **more: float) -> Tensor:
        return student_logits.sum(-1)


    def _hidden(student_logits: Tensor) -> Tensor:
        return student_logits.sum(-1)
'''


@pytest.fixture(autouse=True)
def work(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module, what that imports, and a yaml; none of it is trusted yet."""
    monkeypatch.delenv(TRUSTED, raising=False)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(home))])
    for name in ("mine", "helping"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (home / "mine.py").write_text(dedent(LOSS))
    (home / "helping.py").write_text("WEIGHT = 2.0\n")
    (home / "conf" / "loss").mkdir(parents=True)
    (home / "conf" / "loss" / "brier.yaml").write_text("_target_: mine.brier\nsharpness: 1.0\n")
    return home


def test_a_module_is_trusted_by_a_flag_or_the_environment(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = cli(*SMALL, "loss=brier")
    assert refused.code == 1
    assert refused.err == (
        f"loss._target_=mine.brier: allowed are {LOSSES}; code of your own is trusted by "
        "--module mine, or DISTILL_MODULES=mine\n"
    )
    assert "mine" not in sys.modules and not Path("multirun").exists()
    done = cli("--module", "mine", *SMALL, "loss=brier")
    assert done.code == 0 and "synthetic-mlp8-brier-sharpness1-seed0-" in done.out
    assert cli(*SMALL, "loss=brier").code == 1  # it holds for its own command alone
    monkeypatch.setenv(TRUSTED, "other, mine")
    assert "finished before" in cli(*SMALL, "loss=brier").out


def test_a_flag_without_a_name_is_one_line(cli: Cli) -> None:
    done = cli(*SMALL, "--module")
    assert done.code == 2
    assert done.err == (
        "argument --module: expected one argument; distill --help shows what can be given\n"
    )


@pytest.mark.slow
def test_it_is_the_same_in_a_sweep_of_several_processes(cli: Cli) -> None:
    command = ("--module=mine", "-m", *SMALL, "loss=brier", "loss.sharpness=0.5,1", "seed=0,1")
    for workers in (1, 2):
        place = f"hydra.sweep.dir=sweep{workers}"
        assert cli(*command, place, f"hydra.launcher.workers={workers}").code == 0
    one, two = (read_summary(f"sweep{n}") for n in (1, 2))
    assert one["status"].tolist() == ["complete"] * 4
    figures = ["run", "train_loss", "train_brier", "test_errors", "code"]
    assert one[figures].to_numpy().tolist() == two[figures].to_numpy().tolist()
    assert one["train_loss"].tolist() == pytest.approx((2 * one["train_brier"]).tolist())
    assert one["loss.sharpness"].tolist() == [0.5, 0.5, 1, 1]
    assert one["code"].str.len().tolist() == [64] * 4
    folder = next(Path("sweep1").glob("synthetic*"))
    code = "from distill.cli.commands import evaluate; evaluate()"
    for flags in ((), ("--module", "mine")):  # of a student, its loss does not matter any more
        assert shell(sys.executable, "-c", code, *flags, str(folder)).code == 0
    typo = shell(sys.executable, "-c", code, "--module", "mien", str(folder))
    line = "--module mien: there is no such module, neither here nor installed\n"
    assert (typo.code, typo.out, typo.err) == (1, "", line)


def own(**options: object) -> Job:
    config = composed(*SMALL)
    section = {"_target_": "mine.brier", **options}
    OmegaConf.update(config, "loss", OmegaConf.create(section), merge=False)
    return Job(parse(config))


def forget() -> None:
    components.schema.cache_clear()
    build._fault_of_loss.cache_clear()
    for name in ("mine", "helping"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("file", ["mine.py", "helping.py"])
def test_its_source_is_part_of_a_runs_name(
    file: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED, "mine")
    before = own().name
    forget()
    assert own().name == before
    (work / "unrelated.py").write_text("x = 1\n")
    forget()
    assert own().name == before
    (work / file).write_text((work / file).read_text() + "# changed\n")
    forget()
    assert own().name.rpartition("-")[0] == before.rpartition("-")[0]
    assert own().name != before


LOSSES = ", ".join(targets("loss"))
REFUSED = {
    "mine.system": "mine defines no such function or class; it has mine.bare, mine.brier, mine.op",
    "mine.os.system": "its module cannot be imported (ModuleNotFoundError",
    "mine._hidden": "mine defines no such function or class",
    "mine.absent": "mine defines no such function or class",
    "other.brier": "allowed are .*; code of your own is trusted by --module other, or",
    "os.system": f"allowed are {LOSSES}$",
    "distill.losses.mixing.mixed": f"allowed are {LOSSES}$",
    "brier": f"allowed are {LOSSES}$",
}


@pytest.mark.parametrize("target", REFUSED)
def test_what_nobody_trusted_or_nobody_defines_is_refused(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED, "mine")
    pattern = REFUSED[target]
    pattern = pattern if "*" in pattern or "$" in pattern else pattern.replace("(", r"\(")
    with pytest.raises(ConfigError, match=f"^loss._target_={target}: {pattern}"):
        own(_target_=target)


SIGNATURES = {
    "bare": "mine.bare: its parameter weight has no annotation, by which values are checked",
    "open_ended": r"mine.open_ended: it takes \*\*more: float; each of its keys must be named",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_that_checks_nothing_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED, "mine")
    with pytest.raises(ConfigError, match=f"^{SIGNATURES[name]}"):
        own(_target_=f"mine.{name}")


NAMES = ("target", "options", "files", "source", "numbers", "takes")


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_whose_name_is_taken_is_refused(
    name: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED, "mine")
    code = (
        f"def own(student_logits, *, {name}: float):\n    return student_logits.sum(-1) * {name}\n"
    )
    (work / "mine.py").write_text(code)
    with pytest.raises(ConfigError, match=f"its parameter {name} has a name that is taken"):
        own(_target_="mine.own")


def test_the_code_of_a_decorated_component_counts(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED, "mine")
    code = "import torch\n\n@torch.no_grad()\ndef every(labels, step: int = 2):\n"
    names = []
    for start in (0, 1):
        forget()
        (work / "mine.py").write_text(
            f"{code}    return torch.arange(len(labels)) % step == {start}\n"
        )
        config = composed(*SMALL)
        section = OmegaConf.create({"_target_": "mine.every"})
        OmegaConf.update(config, "transfer", section, merge=False)
        names.append(Job(parse(config)).name)
    assert names[0] != names[1]


def test_code_that_changed_after_it_was_imported_is_refused(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED, "mine")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    own()
    components.schema.cache_clear()
    os.utime(work / "mine.py", (1, 1))
    with pytest.raises(ConfigError, match=r"^mine: .*mine\.py was changed after it was imported"):
        own()


def test_a_config_cannot_trust_modules(cli: Cli, work: Path) -> None:
    (work / "conf" / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /loss: brier\nhydra:\n"
    job = "  job:\n    env_set: {DISTILL_MODULES: mine, DISTILL_FREE: ''}\n  run: {dir: out}\n"
    (work / "conf" / "experiment" / "evil.yaml").write_text(text + job)
    for more in ((), ("-m", "hydra/launcher=basic"), ("-m",)):
        done = cli(*SMALL, *more, "experiment=evil")
        assert done.code == 1
        assert "DISTILL_MODULES=mine: no config can trust modules" in done.out + done.err
        assert "mine" not in sys.modules
    (work / "other.yaml").write_text(
        "defaults: [config, _self_]\nhydra:\n  searchpath: ['pkg://mine']\n"
    )
    done = cli("--config-dir", ".", "--config-name", "other", *SMALL)
    assert done.code == 1 and done.err.startswith("hydra.searchpath=pkg://mine: in other.yaml it")
    assert "mine" not in sys.modules


def test_a_transfer_set_that_is_no_mask_is_refused(offered: Offer) -> None:
    def indices(labels: Tensor) -> Tensor:
        return torch.arange(len(labels))

    with pytest.raises(ConfigError, match=r"returns torch\.int64 \(256,\); wanted is torch\.bool"):
        offered("transfer", indices)


def test_its_keys_and_values_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUSTED, "mine")
    with pytest.raises(ConfigError, match=r"^loss\.sharpness=high: Input should be a valid number"):
        own(sharpness="high")
    with pytest.raises(ConfigError, match=r"^loss\.sharp=1: there is no such key; did you mean"):
        own(sharp=1)
    assert own(sharpness=1.0).name == own().name  # a key at its default says nothing


def test_an_installed_package_offers_components(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = work / "site"
    (site / "offering").mkdir(parents=True)
    (site / "offering" / "__init__.py").write_text("")
    (work / "mine.py").rename(site / "offering" / "mine.py")
    (work / "helping.py").rename(site / "helping.py")
    facts = site / "offering-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Name: offering\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[distill.loss]\nbrier = offering.mine:brier\n")
    with pytest.raises(ConfigError, match=r"own is trusted by --module offering\.mine"):
        own(_target_="offering.mine.brier")
    monkeypatch.syspath_prepend(str(site))
    assert own(_target_="offering.mine.brier").run.loss.name == "brier"
    with pytest.raises(ConfigError, match=r"allowed are .*, offering\.mine\.brier; code"):
        own(_target_="offering.mine.bare")  # it is not offered


def test_a_yaml_that_ours_takes_the_place_of_is_told(cli: Cli, work: Path) -> None:
    (work / "conf" / "loss" / "kd.yaml").write_text("_target_: mine.brier\n")
    done = cli(*SMALL, "loss=kd")
    assert done.code == 0 and "synthetic-mlp8-kd-" in done.out
    assert done.err == "conf/loss/kd.yaml is not read: distill has one of that name; rename it\n"


def test_a_folder_conf_of_something_else_is_left_alone(cli: Cli, work: Path) -> None:
    (work / "conf" / "loss" / "brier.yaml").unlink()
    (work / "conf" / "loss").rename(work / "conf" / "pages")
    (work / "conf" / "config.yaml").write_text("theme: dark\n")
    assert cli(*SMALL).err == ""


class Grown(MLP):
    """The MLP of a later version, with a key more."""

    def __init__(
        self, inputs: tuple[int, int, int], classes: int, *, width: int, slope: float = 0.0
    ) -> None:
        super().__init__(inputs, classes, width=width)
        self.slope = slope


def test_a_new_key_with_a_default_changes_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job("loss=hard")

    later_run = create_model("Run", __base__=type(job.run), more=(int, 3))
    values = {name: getattr(job.run, name) for name in type(job.run).model_fields}
    later = later_run.model_construct(**values)
    assert isinstance(later, Run)
    assert later.digest({}) == job.run.digest({})
    assert later.model_copy(update={"more": 4}).digest({}) != job.run.digest({})
    assert "more" not in said(later)
    plain = {key: values["model"].options[key] for key in ("width",)}
    monkeypatch.setattr(distill.models, "MLP", Grown)
    targets.cache_clear()
    components.schema.cache_clear()
    try:
        section = components.schema("model", Grown, "distill.models.MLP")
        model = section.model_validate({"_target_": "distill.models.MLP", **plain})
        assert said(model) == {"_target_": "distill.models.MLP", **plain}
        assert said(model.model_copy(update={"slope": 0.1}))["slope"] == 0.1
    finally:
        monkeypatch.undo()
        targets.cache_clear()
        components.schema.cache_clear()


def test_a_key_with_the_name_of_what_a_loss_is_given_to_learn_by_is_refused() -> None:
    class Head(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.layer = nn.Linear(classes, classes)

    def mine(student_logits: Tensor, learned: Head, *, classes: int = 5) -> Tensor:
        made: Tensor = learned(student_logits)
        return made.sum(-1) * classes

    mine.__annotations__["learned"] = Head
    mine.__annotations__["student_logits"] = mine.__annotations__["return"] = Tensor
    mine.__annotations__["classes"] = int
    with pytest.raises(ConfigError, match="its key classes has the name of what its Head is given"):
        schema("loss", mine, "mine.mine")


def test_yamls_of_ones_own_are_found_beside_those_of_another_folder(cli: Cli, work: Path) -> None:
    (work / "kept" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /loss: brier\n"
    (work / "kept" / "experiment" / "best.yaml").write_text(text)
    more = text + "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      loss.sharpness: 1,2\n"
    (work / "kept" / "experiment" / "both.yaml").write_text(more)
    given = (*SMALL, "--module", "mine", "--config-dir", "kept")
    one = cli(*given, "experiment=best")
    assert one.code == 0 and "synthetic-mlp8-brier-sharpness1-" in one.out
    assert one.err == ""
    (work / "conf" / "loss" / "kd.yaml").write_text("_target_: mine.brier\n")
    said = "conf/loss/kd.yaml is not read: distill has one of that name; rename it\n"
    assert cli(*given, "experiment=best").err == said
    (work / "conf" / "loss" / "kd.yaml").unlink()
    (work / "kept" / "loss").mkdir()
    (work / "kept" / "loss" / "brier.yaml").write_text("_target_: mine.brier\nsharpness: 3.0\n")
    two = cli(*given, "experiment=best")
    assert "synthetic-mlp8-brier-sharpness3-" in two.out
    assert two.err == "conf/loss/brier.yaml is not read: kept has one of that name\n"
    both = cli(*given, "experiment=both", "hydra.sweep.dir=sweep")
    assert both.code == 0 and "2 runs (2 complete)" in both.out


def test_a_parameter_that_a_yaml_leaves_out_is_given_with_a_plus(cli: Cli, work: Path) -> None:
    (work / "conf" / "loss" / "brier.yaml").write_text("_target_: mine.brier\n")
    given = (*SMALL, "--module", "mine", "loss=brier")
    done = cli(*given, "loss.sharpness=2")
    assert done.err == (
        "loss.sharpness=2: there is no such key; loss has none; a parameter that its yaml leaves "
        "out is given by +loss.sharpness=2\n"
    )
    assert "synthetic-mlp8-brier-sharpness2-" in cli(*given, "+loss.sharpness=2").out
    assert "by +" not in cli(*SMALL, "loss.sharpness=2").err
