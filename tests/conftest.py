"""What the tests share: a home of their own, the command line in this process, small configs."""

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, cast
from zlib import crc32

if "PYTEST_XDIST_WORKER" in os.environ:  # of which there is one a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from distill.cli.main import main
from distill.cli.report import REFERENCE
from distill.config import GROUPS, parse, targets
from distill.config.components import schema
from distill.findings import claim
from distill.report import reading
from distill.report.contents import Sweep
from distill.runs import execute as run
from distill.runs.job import Job
from distill.runs.students import students
from distill.sweeps import plan
from distill.system import machine
from distill.system.conf import CONF
from distill.teachers import find
from distill.training import build, inputs
from distill.training.evaluator import evaluator
from distill.training.loop import Training

Plugins.instance()  # before the first test whose end restores what Hydra knew at its start

# A run of a moment: a synthetic data set, a small teacher, one or two epochs.
SMALL = (
    "data=synthetic",
    "model.width=8",
    "teacher.model.width=16",
    "teacher.train.epochs=2",
    "teacher.train.batch_size=64",
    "train.epochs=2",
    "train.batch_size=64",
)
# A small study.
TUNE = (
    *("experiment=tune", *SMALL, "precision=fp32", "train.epochs=9", "data.examples=64"),
    *("hydra.sweep.dir=tune", "hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=4"),
)


THIRD = 3  # of the cases of a table, or of brothers, each of these is tried at first

# Folders that may hold the full data sets: the user's, and one beside the checkout.
PLACES = [
    Path(os.environ.get("DISTILL_DATA", ".")),
    Path(__file__).parents[2] / "shared" / "datasets",
]
FULL = next((place for place in PLACES if (place / "MNIST" / "raw").is_dir()), None)
needs_mnist = pytest.mark.skipif(
    FULL is None, reason="full MNIST is not at hand: set DISTILL_DATA to a folder that holds it"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full`: slow tests too; `--endurance`: those of endurance in the sizes they speak for.

    With `--share=K/N`, of the slow ones only a share, the same for all whose names are the same.
    """
    parser.addoption("--full", action="store_true", help="slow tests, too")
    parser.addoption("--share", default="", metavar="K/N", help="of slow tests the Kth of N shares")
    parser.addoption("--endurance", action="store_true", help="endurance in full size: --full, too")


def pytest_xdist_auto_num_workers() -> int:
    """As many processes as cores, but no more than a few, since each loads torch."""
    return min(4, machine.cores())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out, which pytest then tells of, unless they are asked for."""
    endurance = config.getoption("--endurance")
    out = _left_out(items, full=config.getoption("--full") or endurance, endurance=endurance)
    if share := config.getoption("--share"):
        part, parts = map(int, share.split("/"))
        slow = _left_out(items, full=False, endurance=False)
        out |= {item for item in slow if crc32(item.nodeid.encode()) % parts != part}
    config.hook.pytest_deselected(items=[item for item in items if item in out])
    items[:] = [item for item in items if item not in out]


def _left_out(items: Sequence[pytest.Item], *, full: bool, endurance: bool) -> set[pytest.Item]:
    """The tests that are not asked for."""
    left = {name for name, asked in {"slow": full, "endurance": endurance}.items() if not asked}
    out = {item for item in items if left & {mark.name for mark in item.iter_markers()}}
    for mark, tier in (("table", "slow"), ("brothers", "endurance")):
        cases: dict[str, list[pytest.Item]] = {}
        for item in items if tier in left else ():
            if item.get_closest_marker(mark):
                cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
        out |= {item for own in cases.values() for n, item in enumerate(own) if n % THIRD}
    return out


def forget() -> None:
    """Forget the data and teachers that this process holds, as a new process would."""
    for cached in (inputs.held_out, inputs.training_inputs, evaluator):
        cached.cache_clear()
    for made in (find.find_teacher, find.soft_targets, find.logits_on_test):
        made.cache_clear()
    find.shifted_errors_on_test.cache_clear()


def _settle(patch: pytest.MonkeyPatch, home: Path) -> None:
    """Work in ``home``, with a data root in it."""
    patch.chdir(home)
    patch.setattr(sys, "path", [*sys.path])
    patch.setenv("DISTILL_DATA", str(home / "data"))
    patch.setenv("HYDRA_FULL_ERROR", "0")
    # Stacks train in this process, unless a test asks for workers, however busy the machine is.
    patch.setattr(plan, "START", 1e6)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory and a data root of the test's own, and no trace left in the process."""
    _settle(monkeypatch, tmp_path)
    before = set(sys.modules)
    yield tmp_path
    GlobalHydra.instance().clear()
    forget()
    for name in sys.modules.keys() - before:  # code of the test's own
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


Tensors = Mapping[str, Mapping[str, Tensor]]  # of each run, by its name


def same(one: Tensors, other: Tensors, *, rounded: bool = False) -> bool:
    """Whether runs have the same names and values, bit by bit, or ``rounded``.

    A run that is trained with fewer others than before is a product of other shapes, for which
    the libraries below add in another order.
    """
    rtol, atol = (1e-4, 1e-6) if rounded else (0.0, 0.0)
    return one.keys() == other.keys() and all(
        state.keys() == other[run].keys()
        and all(torch.allclose(state[k], other[run][k], rtol=rtol, atol=atol) for k in state)
        for run, state in one.items()
    )


@dataclass(frozen=True)
class Finished:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Cli = Callable[..., Finished]


def _code(patch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `distill` with some arguments, in this process."""
    patch.setattr(sys, "argv", ["distill", *arguments])
    patch.setenv("HYDRA_FULL_ERROR", "0")
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """`distill` with some arguments, in this process."""

    def call(*arguments: str) -> Finished:
        capfd.readouterr()
        code = _code(monkeypatch, *arguments)
        captured = capfd.readouterr()
        return Finished(code, captured.out, captured.err)

    return call


def ran(home: Path, *arguments: str) -> None:
    """Run `distill` at work in ``home``, in this process, for tests that share what it leaves."""
    with pytest.MonkeyPatch.context() as patch:
        _settle(patch, home)
        assert _code(patch, *arguments) == 0
    GlobalHydra.instance().clear()
    forget()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that are trained, as they are."""
    names: list[str] = []
    fit = run._fit

    def counted(jobs: Any, *rest: Any) -> Any:
        names.extend(job.name for job in jobs)
        return fit(jobs, *rest)

    monkeypatch.setattr(run, "_fit", counted)
    return names


@cache
def reference() -> Mapping[str, Sweep]:
    """The reference sweeps by their names, read when a test first needs them."""
    return {
        path.parent.name: reading.sweep(path.parent) for path in REFERENCE.glob("*/summary.csv")
    }


@pytest.fixture
def ruled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit is named that wrote the tests of claims down, without which no sweep decides."""
    monkeypatch.setattr(claim, "RULES", "abc1234")


def shell(*command: str, **environment: str) -> Finished:
    """A command in a process of its own."""
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def composed(*overrides: str) -> DictConfig:
    """The config of a run, without Hydra's part.

    Composing takes Hydra a fifth of a second, so what chooses the same options is composed once,
    and values are set in copies of it.
    """
    parsed = OverridesParser.create().parse_overrides([*overrides])
    plain = [
        override
        for override in parsed
        if override.type is OverrideType.CHANGE and override.package is None
        if not (CONF / override.key_or_group).is_dir()  # that chooses an option of a group
    ]
    chosen = tuple(text for o, text in zip(parsed, overrides, strict=True) if o not in plain)
    config = cast(DictConfig, pickle.loads(_chosen(chosen)))
    for override in plain:
        OmegaConf.update(config, override.key_or_group, override.value())
    return config


@cache
def _chosen(options: tuple[str, ...]) -> bytes:
    with initialize_config_dir(str(CONF)):
        return pickle.dumps(compose("config", [*options]))


def make_job(*overrides: str) -> Job:
    """The checked job of a small run."""
    return Job(parse(composed(*SMALL, *overrides)))


def make_training(jobs: Sequence[Job]) -> Training:
    """The training of a stack of jobs, with random numbers for soft targets."""
    first = jobs[0]
    views = (2 * first.run.data.jitter + 1) ** 2
    shape = (len(first.data.train_labels), views, first.data.classes)
    soft = [logits_of(0, *shape, dtype=torch.float32)] if first.run.distils else []
    return students(jobs, soft)


Offer = Callable[..., Job]


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Offer]:
    """The checked job of a small run whose ``key`` is a loss or model of the test's own."""

    def offer(key: str, target: Callable[..., Any], *overrides: str) -> Job:
        group = key.rpartition(".")[2]
        module = importlib.import_module(GROUPS[group].module)
        name = target.__name__
        monkeypatch.setattr(module, name, target, raising=False)
        monkeypatch.setattr(module, "__all__", [*module.__all__, name])
        targets.cache_clear()
        config = composed(*SMALL, *overrides)
        section = {"_target_": f"{module.__name__}.{name}"}
        if group == "loss":
            section |= {n: v for n, v in config.loss.items() if n in signature(target).parameters}
        OmegaConf.update(config, key, section, merge=False)
        return Job(parse(config))

    yield offer
    monkeypatch.undo()
    built = (build.parameters, build.multiply_adds, build._fault_of_loss, build.feature_shapes)
    for cached in (targets, schema, *built):
        cached.cache_clear()


def options(group: str) -> list[str]:
    """The options of a config group: the yamls on disk."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def logits_of(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Normal numbers, times 3."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=dtype)
