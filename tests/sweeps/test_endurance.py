"""Sweeps that are killed at any moment, started many times at once, or very long.

Small sizes by default; with ``--endurance`` those that a promise needs, and figures are printed.
"""

import json
import logging
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from conftest import SMALL, Cli
from omegaconf import OmegaConf
from safetensors.torch import load

from distill.cli.main import main
from distill.runs import results, summaries
from distill.runs.results import HISTORY, RESULT, SUMMARY, WEIGHTS, read
from distill.system.store import DAY, MANIFEST, tidy
from distill.training.checkpoint import FILE

FORKS = multiprocessing.get_context("forkserver")
SCRATCH = re.compile(r"\..+\.[0-9a-f]{8}")  # what `store` writes before it is whole


@pytest.fixture
def full(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("endurance"))


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Processes are forked from one that has imported all, and has run nothing: no second of
    imports for each, and no thread of torch's that a fork would lose."""
    with pytest.MonkeyPatch.context() as patch:
        here = Path(__file__).parent
        path = [str(here), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        FORKS.set_forkserver_preload(
            [
                "test_endurance",
                "distill.sweeps.launcher",
                "distill.sweeps.plan",
                "distill.runs.execute",
                "distill.sweeps.workers",
            ]
        )
        forkserver.ensure_running()


def command(home: Path, out: str, arguments: list[str], measures: str | None) -> None:
    """`distill` in a process of its own, at work in ``home`` with teachers below it."""
    os.chdir(home)
    os.environ["DISTILL_DATA"] = str(home / "data")
    with Path(out).open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    if measures is not None:
        logging.getLogger("distill.sweeps.launcher").addFilter(Meter(Path(measures)))
    sys.argv = ["distill", *arguments]
    main()


def start(
    home: Path, *arguments: str, out: str = "out", measures: str | None = None
) -> ForkServerProcess:
    home.mkdir(exist_ok=True)
    process = FORKS.Process(target=command, args=(home, out, [*arguments], measures))
    process.start()
    return process


def undisturbed(home: Path, *arguments: str) -> float:
    """Let the command run to its end; returns the seconds that it took."""
    began = time.monotonic()
    process = start(home, *arguments)
    process.join()
    assert process.exitcode == 0, (home / "out").read_text()
    return time.monotonic() - began


def runs(folder: Path) -> list[Path]:
    """The directories of the runs below a sweep's."""
    return sorted(path.parent for path in folder.rglob(RESULT))


def agree(one: Path, other: Path) -> None:
    """Summaries but for the times, students, histories and teachers are the same, bit by bit."""
    first, second = (
        pd.read_csv(home / "sweep" / SUMMARY).drop(columns="seconds") for home in (one, other)
    )
    pd.testing.assert_frame_equal(first, second)
    for name in (WEIGHTS, HISTORY, "*teachers/*/*.safetensors"):
        files = [{p.relative_to(h): p.read_bytes() for p in h.rglob(name)} for h in (one, other)]
        assert files[0]
        assert files[0] == files[1], name


READERS: dict[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_text()),
    ".csv": pd.read_csv,
    ".yaml": OmegaConf.load,
    ".safetensors": lambda path: load(path.read_bytes()),
}


def unreadable(home: Path, *suffixes: str) -> list[str]:
    """Files below ``home`` that do not parse; scratch is not meant to."""
    found = []
    for path in home.rglob("*"):
        if path.suffix in (suffixes or READERS) and not any(map(SCRATCH.fullmatch, path.parts)):
            try:
                READERS[path.suffix](path)
            except Exception as error:
                found.append(f"{path}: {error}")
    return found


def scratch(home: Path) -> list[Path]:
    return [path for path in home.rglob(".*") if SCRATCH.fullmatch(path.name)]


def logged(home: Path, what: str) -> list[str]:
    """The different lines below ``home`` that speak of something."""
    logs = [path.read_text() for path in home.rglob("distill.log")]
    return sorted({line for log in logs for line in log.splitlines() if what in line})


class Meter(logging.Filter):
    """Writes down memory and open files of this process as often as its launcher has trained."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.process = psutil.Process()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg.startswith("%d of %d jobs: "):
            with self.path.open("a") as file:
                print(self.process.memory_info().rss, self.process.num_fds(), file=file)
        return True


@dataclass
class Watch:
    """What can be seen of a sweep, from its files and its output, while it runs."""

    home: Path
    before: dict[Path, int] = field(default_factory=dict)
    heard: int = 0

    def begin(self) -> None:
        """All that is there is old."""
        self.before = {path: path.stat().st_mtime_ns for path in self.home.rglob("*")}
        self.heard = (self.home / "out").stat().st_size if (self.home / "out").exists() else 0

    def new(self, pattern: str) -> list[Path]:
        """Files of that name that are new, or were written again."""
        return [path for path in self.home.glob(pattern) if self._is_new(path)]

    def _is_new(self, path: Path) -> bool:
        try:
            return self.before.get(path) != path.stat().st_mtime_ns
        except FileNotFoundError:  # scratch of this moment
            return True

    def phase(self) -> str:
        """What the process was at when it was killed."""
        with (self.home / "out").open() as out:
            out.seek(self.heard)
            said = out.read()
        planned = re.search(r"(\d+) jobs? in \d+ stacks? of ", said)
        if planned is None:
            return "summary" if re.search(r"(\d+) of \1 jobs were fin", said) else "start-up"
        if f"\n{planned[1]} of {planned[1]} jobs: " in said:
            return "summary"
        cached = [p for p in (self.home / "data" / "teachers").glob("*/") if p.name[0] != "."]
        if len(cached) < 2:
            return "soft targets" if cached else "teacher"
        logs = self.new("sweep/*/distill.log")
        text = max(logs, key=_written).read_text() if logs else ""
        epoch = re.search(r"epoch (\d+) of (\d+)", text.rpartition("] stack")[2])
        return "results" if epoch and epoch[1] == epoch[2] else "students"


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns


# What appears when a phase begins, and how many seconds later a kill comes, at most.
SIGNS = {
    "start-up": ((), 0.5),
    "teacher": (("data/teachers/.????????????????.????????",), 0.1),
    "soft targets": (("data/teachers/" + 16 * "?", "data/teachers/.*-soft*"), 0.01),
    "students": ((f"sweep/*/{FILE}",), 0.05),
    "results": ((f"sweep/*/.{WEIGHTS}.*",), 0.02),
    "summary": ((f"sweep/.{SUMMARY}.*",), 0.002),
}


def kill(process: ForkServerProcess, watch: Watch, signs: tuple[str, ...], delay: float) -> bool:
    """Kill a process some time after one of the signs; False if it ends before."""
    while process.is_alive():
        if not signs or any(map(watch.new, signs)):
            process.join(delay)
            process.kill()
            break
    process.join()
    return process.exitcode == -signal.SIGKILL


def finished(home: Path) -> dict[Path, bytes]:
    """The files of the runs that have a result."""
    names = (RESULT, HISTORY, WEIGHTS, "distill.log")
    files = [run / name for run in runs(home / "sweep") for name in names]
    return {path: path.read_bytes() for path in files if path.exists()}


def ahead(home: Path, jobs: int) -> set[str]:
    """The phases that a sweep has still before it."""
    if not list(home.glob("data/teachers/[!.]*-soft*/")):
        return {"start-up", "teacher", "soft targets"}
    return {"start-up", "summary", *(["students", "results"] if len(runs(home)) < jobs else [])}


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(
    home: Path, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = (
        *("-m", *SMALL, "precision=fp32", "hydra.sweep.dir=sweep", "checkpoint.every=0.00001"),
        *("data.jitter=3", "loss.temperature=1,2,4", "optim.lr=0.001,0.003"),
        *(("model.width=range(3,13)", "train.epochs=100") if full else ("train.epochs=40",)),
        f"teacher.train.epochs={150 if full else 40}",
    )
    expected = undisturbed(home / "undisturbed", *sweep)
    jobs = len(runs(home / "undisturbed"))
    dice = random.Random(1)
    early = ["teacher"] * (8 if full else 1) + ["soft targets"] * (6 if full else 1)
    middle = ["students", "results"] * (8 if full else 1) + ["anywhere"] * (12 if full else 0)
    dice.shuffle(middle)
    phases = [*early, *middle, *["summary"] * (6 if full else 1)]
    for _ in range(2 if full else 1):
        phases.insert(dice.randrange(len(phases)), "start-up")
    total, hit, kept = len(phases), Counter[str](), dict[Path, bytes]()
    disturbed = home / "disturbed"
    disturbed.mkdir()
    began = time.monotonic()
    while hit.total() < total:
        phase = phases.pop(0) if phases else "start-up"
        signs, most = SIGNS[phase if phase in ahead(disturbed, jobs) else "start-up"]
        delay = dice.uniform(0, expected / 8 if phase == "anywhere" else most)
        watch = Watch(disturbed)
        watch.begin()
        process = start(disturbed, *sweep)
        if kill(process, watch, signs, delay):
            hit[watch.phase()] += 1
        else:
            assert process.exitcode == 0, (disturbed / "out").read_text()
        now = finished(disturbed)
        assert {path: now[path] for path in kept} == kept
        kept = now
        assert unreadable(disturbed, ".json", ".csv", ".safetensors") == []
    undisturbed(disturbed, *sweep)
    seconds = time.monotonic() - began
    now = finished(disturbed)
    assert {path: now[path] for path in kept} == kept
    agree(disturbed, home / "undisturbed")
    assert unreadable(disturbed) == []
    for path in (part for left in scratch(disturbed) for part in (*left.glob("*"), left)):
        os.utime(path, (time.time() - 2 * DAY, time.time() - 2 * DAY))
    undisturbed(disturbed, *sweep)
    tidy(disturbed / "data" / "teachers")  # as whoever makes the next one
    assert scratch(disturbed) == []
    if full:
        with capsys.disabled():
            print(f"\n{total} kills, {seconds:.0f} s; undisturbed {expected:.1f} s: {dict(hit)}")
        assert hit.keys() == SIGNS.keys()
    assert not list(disturbed.rglob(FILE))
    firsts = [run / read(run / RESULT).get("stack", ".") for run in runs(disturbed)]
    assert [first for first in firsts if not (first / "distill.log").exists()] == []


@pytest.mark.slow
def test_a_stack_stopped_between_its_results_goes_on(
    home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ("-m", *SMALL, "precision=fp32", "loss.temperature=1,2,4", "hydra.sweep.dir=sweep")
    cli(*sweep)
    Path("sweep").rename("undisturbed")
    real, count = results.write, 0

    def stopped(*args: Any) -> None:
        nonlocal count
        count += 1
        real(*args) if count == 1 else os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(results, "write", stopped)
        cli(*sweep)
    done = finished(home)
    assert len(done) == 3  # one run's, whose log lies with the first of its stack
    cli(*sweep)
    assert len(logged(home / "sweep", "going on from the checkpoint after epoch 2")) == 1
    assert {path: finished(home)[path] for path in done} == done
    for name in (WEIGHTS, HISTORY):
        one, other = (
            [p.read_bytes() for p in sorted(Path(f).glob(f"*/{name}"))]  # none put aside
            for f in ("sweep", "undisturbed")
        )
        assert one == other
    assert not list(home.rglob(FILE))


@pytest.mark.brothers
@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False])
def test_many_commands_at_once_share_the_work(same: bool, home: Path, full: bool) -> None:
    count = 8 if full else 3
    common = ["-m", *SMALL, "precision=fp32", "loss.temperature=1,2", "model.width=4,8"]
    common.append(f"teacher.train.epochs={150 if full else 40}")
    sweeps = [[*common, f"seed={n}", f"hydra.sweep.dir=sweep{n}"] for n in range(count)]
    if same:
        sweeps = [[*common, "hydra.sweep.dir=sweep"]] * count
        undisturbed(home / "undisturbed", *sweeps[0])
    together = home / "together"
    processes = [start(together, *sweep, out=f"out{n}") for n, sweep in enumerate(sweeps)]
    for process in processes:
        process.join()
    outs = "\n".join(path.read_text() for path in sorted(together.glob("out*")))
    assert [process.exitcode for process in processes] == [0] * count, outs
    folders = [path.parent.name for path in together.glob(f"data/teachers/*/{MANIFEST}")]
    assert len(folders) == 2  # of the teacher, and of its soft targets
    assert len(logged(together, "teacher mlp_1200: epoch 1 of")) == 1
    stacks = 2 if same else 2 * count
    assert len(logged(together, "stack of 2: epoch 2 of 2")) == stacks
    frames = [pd.read_csv(path) for path in together.rglob(SUMMARY)]
    assert [frame["status"].tolist() for frame in frames] == [["complete"] * 4] * len(frames)
    assert len(frames) == stacks // 2
    if same:
        agree(together, home / "undisturbed")
    assert unreadable(together) == []
    assert scratch(together) == []


@pytest.mark.endurance
def test_a_long_sweep_needs_no_more_and_more(
    home: Path, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 2000 if full else 150
    sweep = ("-m", *SMALL, "precision=fp32", f"seed=range({count})", "hydra.sweep.dir=sweep")
    process = start(home, *sweep, measures="measures")
    began = time.monotonic()
    process.join()
    trained = time.monotonic() - began
    assert process.exitcode == 0, (home / "out").read_text()
    memory, files = zip(
        *(map(int, m.split()) for m in (home / "measures").read_text().splitlines()), strict=True
    )
    assert len(memory) == count
    assert {*files} == {files[0]}
    began = time.monotonic()
    frame = summaries.write_summary(home / "sweep")
    rebuilt = time.monotonic() - began
    assert frame["status"].tolist() == ["complete"] * count
    grown = memory[-1] - memory[count // 4]
    if full:
        with capsys.disabled():
            print(
                f"\n{count} runs: {trained:.0f} s, memory {memory[0] / 2**20:.1f} MiB after the "
                f"first, {memory[count // 4] / 2**20:.1f} after a quarter, "
                f"{memory[-1] / 2**20:.1f} at the end; {files[-1]} open files; "
                f"summary in {rebuilt:.2f} s"
            )
    # What Hydra is told of a run, and its config, of which parts are made when first read, stay
    # until the sweep ends: some 10 KB a run. A stack's tensors, or its files, would be far more.
    assert grown < 4 * 2**20 + 12 * 2**10 * (count - count // 4), grown
    assert rebuilt < 60
