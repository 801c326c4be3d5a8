"""Stacks that train elsewhere: in processes that outlive the command, on SLURM, in a pool."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import slurm_here
from conftest import SMALL, TUNE, Cli, shell
from filelock import FileLock

from distill.runs import results
from distill.runs.summaries import FIGURES, read_summary
from distill.sweeps import cluster, dispatch
from distill.sweeps.cluster import FOLDER
from distill.sweeps.elements import Element, Lesson
from distill.sweeps.plan import Stack
from distill.sweeps.submitted import asks

SWEEP = ("-m", *SMALL, "precision=fp32", "model.width=4,8", "loss.temperature=1,4")
LONG = (*SWEEP, "train.epochs=100000", "checkpoint.every=0.01")
LOCAL = ("hydra.launcher.cluster=local", "hydra.launcher.workers=2")
SLURM = ("hydra.launcher.cluster=slurm", "hydra.launcher.submit.cpus_per_task=1")
PATIENCE = 240  # seconds


def figures(folder: str) -> pd.DataFrame:
    """The figures of each run, which no machine and no way of training may change."""
    frame = read_summary(Path(folder)).set_index("run").sort_index()
    return frame[["status", *(name for name in FIGURES if name in frame.columns)]]


def start(*arguments: str) -> "subprocess.Popen[bytes]":
    """The command, in a process of its own."""
    with Path("log.txt").open("a", encoding="utf-8") as log:
        command = [sys.executable, "-m", "distill", *arguments]
        return subprocess.Popen(command, stdout=log, stderr=log)


def until(what: str, path: Path, pattern: str, count: int = 1) -> list[Path]:
    """The files of a pattern, once there are so many."""
    end = time.monotonic() + PATIENCE
    while len(found := [*path.glob(pattern)]) < count:
        if time.monotonic() > end:
            raise AssertionError(f"no {what}: {Path('log.txt').read_text()}")
        time.sleep(0.2)
    return found


def elements() -> list[psutil.Process]:
    """The processes in which elements of this test's folder train."""
    here = str(Path.cwd())
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        ours = "submitit.core._submit" in line and "python" in line[0]  # and not its srun
        if ours and any(part.startswith(here) for part in line):
            found.append(process)
    return found


@pytest.fixture
def ended() -> Iterator[None]:
    """No element outlives a test."""
    yield
    for process in elements():
        process.kill()


@pytest.mark.slow
@pytest.mark.usefixtures("ended")
def test_a_sweep_in_local_elements_has_the_figures_of_one_in_this_process(cli: Cli) -> None:
    assert cli(*SWEEP, "hydra.sweep.dir=here").code == 0
    done = cli(*SWEEP, "hydra.sweep.dir=there", *LOCAL)
    assert done.code == 0, done.err
    assert "4 jobs in 2 stacks of 2, each planned again where it trains: processes" in done.out
    pd.testing.assert_frame_equal(figures("here"), figures("there"))
    assert [path.name for path in (Path("there") / FOLDER).iterdir()] == ["machine.json"]


@pytest.mark.slow
@pytest.mark.usefixtures("ended")
def test_a_command_that_was_killed_takes_its_elements_over() -> None:
    command = start(*LONG, "hydra.sweep.dir=sweep", *LOCAL)
    until("history", Path("sweep"), f"*/{results.HISTORY}", 4)
    command.send_signal(signal.SIGKILL)
    command.wait()
    before = {process.pid for process in elements()}
    assert len(before) == 2
    command = start(*LONG, "hydra.sweep.dir=sweep", *LOCAL)
    end = time.monotonic() + PATIENCE
    while (
        "elements of an earlier command that are taken over: 2" not in Path("log.txt").read_text()
    ):
        assert time.monotonic() < end, Path("log.txt").read_text()
        time.sleep(0.2)
    assert {process.pid for process in elements()} == before
    # Ctrl-C ends the elements too, each with its checkpoint, and no process is left.
    command.send_signal(signal.SIGINT)
    assert command.wait(PATIENCE) == 130
    assert elements() == []
    frame = read_summary(Path("sweep"))
    assert frame["status"].tolist() == ["interrupted"] * 4
    assert len([*Path("sweep").glob("*/checkpoint.safetensors")]) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("ended")
def test_by_another_signal_the_command_ends_and_its_elements_go_on() -> None:
    command = start(*LONG, "hydra.sweep.dir=sweep", *LOCAL)
    until("history", Path("sweep"), f"*/{results.HISTORY}", 4)
    command.send_signal(signal.SIGTERM)
    assert command.wait(PATIENCE) == 128 + signal.SIGTERM
    assert (
        "elements that go on without this command, which takes them over again: 2"
        in Path("log.txt").read_text()
    )
    assert len(elements()) == 2
    assert not [*Path("sweep").glob(f"*/{results.RESULT}")]


@pytest.mark.slow
@pytest.mark.usefixtures("ended")
def test_an_element_that_died_is_submitted_again_and_goes_on_from_its_checkpoint(cli: Cli) -> None:
    long = (*SWEEP, "train.epochs=400", "checkpoint.every=0.002")
    assert cli(*long, "hydra.sweep.dir=here").code == 0
    command = start(*long, "hydra.sweep.dir=there", *LOCAL)
    until("checkpoint", Path("there"), "*/checkpoint.safetensors")
    elements()[0].kill()
    assert command.wait(PATIENCE) == 0, Path("log.txt").read_text()
    assert "died (gone) and is submitted again" in Path("log.txt").read_text()
    pd.testing.assert_frame_equal(figures("here"), figures("there"))


@pytest.mark.slow
@pytest.mark.usefixtures("ended")
def test_a_study_asks_its_elements_batch_by_batch(cli: Cli) -> None:
    assert cli(*TUNE).code == 0
    # In one stack a batch, as there, since those of a stack are halved among themselves.
    alone = (LOCAL[0], "hydra.launcher.workers=1")
    done = cli(*TUNE[:-3], "hydra.sweep.dir=there", *TUNE[-2:], *alone)
    assert done.code == 0, done.err
    pd.testing.assert_frame_equal(figures("tune"), figures("there"))


class Fails:
    """A place in this process where the first so many elements come to an end of one kind.

    It stands for a SLURM with control groups, which tests cannot have: what it says is what that
    says of an element. With ``whole``, elements of a single student do not fail.
    """

    room = None
    threads = 1
    kills = gpus = False
    tells = True

    def __init__(self, state: str, times: int, *, whole: bool) -> None:
        self.state, self.times, self.whole = state, times, whole
        self.sizes: list[int] = []
        self.states: dict[str, str | None] = {}

    def __str__(self) -> str:
        return "a place that fails"

    def submit(self, elements: Sequence[Element], token: str) -> list[str]:
        names = [f"{token}-{n}" for n in range(len(elements))]
        for name, element in zip(names, elements, strict=True):
            size = len(element.task.members)
            fails = self.times > 0 and not isinstance(element, Lesson)
            fails = fails and not (self.whole and size == 1)
            if not isinstance(element, Lesson):
                self.sizes.append(size)
            self.times -= fails
            self.states[name] = self.state if fails else element()
        return names

    def find(self, token: str, names: Sequence[str]) -> dict[int, str]:  # noqa: ARG002
        return {}

    def ended(self, names: Sequence[str]) -> dict[str, str | None]:
        return {name: None for name in names if self.states[name] is None}

    def lost(self, names: Sequence[str]) -> dict[str, str]:
        return {name: state for name in names if (state := self.states[name])}

    def withdraw(self, names: Sequence[str]) -> None:
        """Nothing waits."""

    def told(self, name: str) -> str:
        return f"{name}.log"

    def forget(self, name: str) -> None:
        """Nothing is left."""

    def tidy(self) -> None:
        """Nothing is left."""


@pytest.mark.parametrize(
    ("fails", "sizes", "code"),
    [
        # Memory that is too short halves a stack; each part of it is one that has room.
        (Fails("OUT_OF_MEMORY", 99, whole=True), [2, 2, 1, 1, 1, 1], 0),
        # Any other death does not, whose stack is given again.
        (Fails("NODE_FAIL", 1, whole=False), [2, 2, 2], 0),
        # But not for ever.
        (Fails("FAILED", 99, whole=False), [2] * 8, 1),
    ],
)
def test_what_becomes_of_elements_that_die(
    fails: Fails, sizes: list[int], code: int, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "place", lambda *_: fails)
    monkeypatch.setattr(dispatch, "LOOK", 0.0)
    done = cli(*SWEEP, "hydra.sweep.dir=sweep", "hydra.launcher.cluster=slurm")
    assert (done.code, sorted(fails.sizes)) == (code, sorted(sizes)), done.err
    frame = read_summary(Path("sweep"))
    assert frame["status"].tolist() == ["failed" if code else "complete"] * 4
    if code:
        often = r"its element \S+ died \(FAILED, 4 times without getting further\); see \S+\.log"
        assert frame["reason"].str.fullmatch(often).all(), frame["reason"].tolist()


class Waits(Fails):
    """One whose only element waits, and could not begin in the end."""

    def submit(self, elements: Sequence[Element], token: str) -> list[str]:  # noqa: ARG002
        return ["x"]

    def find(self, token: str, names: Sequence[str]) -> dict[int, str]:  # noqa: ARG002
        return {0: "x"}

    def ended(self, names: Sequence[str]) -> dict[str, str | None]:
        return dict.fromkeys(names, "why not")


def test_a_result_of_before_is_not_that_of_an_element_that_is_taken_over(home: Path) -> None:
    (home / "a").mkdir()
    results.write(home / "a", {"run": "a", "status": "failed", "reason": "of before"}, [])
    own: Any = (Waits("", 0, whole=False), home, [home / "a"], ["a"], 8, None)
    killed, again = dispatch.Dispatch(*own), dispatch.Dispatch(*own)
    killed.folder.mkdir()
    task: Any = None
    killed._submit([Stack((0,))], [task], Element)
    assert again.taken() == [Stack((0,))]
    [(stack, outcome)] = again.train([], [], lambda _: task)
    assert (stack.jobs, str(outcome)) == ((0,), "why not")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("cluster=pbs",), "hydra.launcher.cluster=pbs: allowed are slurm, local, null"),
        (("submit.mem_gb=1",), "hydra.launcher.submit (mem_gb): it says what an element of a "),
        (("cluster=local", "submit.nodes=2"), "hydra.launcher.submit.nodes=2: an element is one"),
        (
            ("cluster=local", "submit.memory=1"),
            "hydra.launcher.submit.memory=1: allowed are cpus_per_task,",
        ),
        (("cluster=local", "submit.mem_gb=a"), "hydra.launcher.submit mem_gb=a: Parameter"),
        (("cluster=local", "submit.gpus_per_node=1"), "hydra.launcher.submit: processes of this"),
        (("executor=os.system",), "hydra.launcher.executor=os.system: allowed is a function of a"),
        (("cluster=local", "executor=a.b"), "hydra.launcher.executor=a.b: hydra.launcher.cluster"),
    ],
)
def test_wrong_keys_are_refused_before_anything_is_written(
    arguments: tuple[str, ...], line: str, cli: Cli
) -> None:
    done = cli(*SWEEP, "hydra.sweep.dir=sweep", *(f"hydra.launcher.{a}" for a in arguments))
    assert done.code == 1
    assert done.err.startswith(line) and done.err.count("\n") == 1, done.err
    assert not Path("sweep").exists()


def test_nothing_begins_anew_where_it_would_each_time_that_it_comes_back(cli: Cli) -> None:
    done = cli(*SWEEP, "hydra.sweep.dir=sweep", "resume=false", "hydra.launcher.cluster=local")
    assert done.code == 1
    assert done.err.startswith("resume=false: what comes back after a time limit, or dies, would")


@pytest.mark.parametrize(
    ("parameters", "gpus"),
    [
        ({"gpus_per_node": 2}, True),
        ({"slurm_gpus_per_task": 1}, True),
        ({"slurm_gres": "gpu:a100:1"}, True),
        ({"slurm_additional_parameters": {"gpus": 1}}, True),
        ({"gpus_per_node": 0, "slurm_partition": "nogpu", "slurm_exclude": "gpu7"}, False),
    ],
)
def test_elements_get_gpus_where_they_ask_for_them(parameters: dict[str, Any], gpus: bool) -> None:
    assert asks(parameters) is gpus


POOL = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

def two():
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))

def none():
    return 3
"""


@pytest.mark.slow
def test_an_executor_of_ones_own(cli: Cli) -> None:
    Path("pool.py").write_text(POOL)
    assert cli(*SWEEP, "hydra.sweep.dir=here").code == 0
    pool = ("--module", "pool", "hydra.launcher.workers=2", "hydra.launcher.executor=pool.two")
    done = cli(*SWEEP, "hydra.sweep.dir=there", *pool)
    assert done.code == 0, done.err
    assert "tasks of ProcessPoolExecutor" in done.out
    pd.testing.assert_frame_equal(figures("here"), figures("there"))
    done = cli(*SWEEP, "--module", "pool", "hydra.launcher.executor=pool.none")
    assert "hydra.launcher.executor=pool.none: it returned a int; it must" in done.err


DASK = """
from dask.distributed import Client, LocalCluster

def dask():
    return Client(LocalCluster(n_workers=2, threads_per_worker=1)).get_executor()
"""


@pytest.mark.slow
def test_dasks_local_cluster_trains_a_sweep(cli: Cli) -> None:
    pytest.importorskip("distributed")
    assert cli(*SWEEP, "hydra.sweep.dir=here").code == 0
    Path("pool.py").write_text(DASK)
    pool = ("hydra.launcher.workers=2", "hydra.launcher.executor=pool.dask")
    line = (*SWEEP, "hydra.sweep.dir=there", "--module", "pool", *pool)
    assert start(*line).wait(PATIENCE) == 0, Path("log.txt").read_text()
    pd.testing.assert_frame_equal(figures("here"), figures("there"))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A SLURM: one that answers, or else one of this machine's own, which one process has."""
    root = tmp_path_factory.getbasetemp().parent
    with FileLock(root / "slurm.lock"):
        own = not slurm_here.answers()
        if own and (why := slurm_here.missing()):
            pytest.skip(f"no SLURM: {why}")
        if own:
            try:
                slurm_here.up()
            except (OSError, RuntimeError, LookupError) as error:
                slurm_here.down()
                pytest.skip(f"no SLURM: {error}")
        if not slurm_here.works():
            pytest.skip("no SLURM: one that answers runs nothing")
        yield
        if own:
            slurm_here.down()


@pytest.fixture
def cancelled(slurm: None) -> Iterator[None]:  # noqa: ARG001
    """No element of a test's own outlives it."""
    yield
    for path in Path.cwd().glob(f"*/{FOLDER}/*_submission.sh"):
        shell("scancel", path.name.partition("_")[0])


def queue(state: str) -> list[str]:
    ask = ["squeue", "-h", "-r", "--me", f"--states={state}", "--format=%i|%j"]
    rows = (line.split("|") for line in shell(*ask).out.splitlines())
    return [name for name, title in rows if title.startswith("distill-")]


def quiet() -> None:
    """Wait until no element is left: one that wrote its results may be on its way out."""
    end = time.monotonic() + PATIENCE
    while left := queue("PENDING,RUNNING,COMPLETING"):
        assert time.monotonic() < end, left
        time.sleep(0.5)


def running(count: int) -> list[str]:
    """The elements that run, once there are so many."""
    end = time.monotonic() + PATIENCE
    while len(found := queue("RUNNING")) < count:
        assert time.monotonic() < end, f"{Path('log.txt').read_text()}{shell('squeue').out}"
        time.sleep(0.5)
        for name in queue("PENDING"):  # which SLURM holds for two minutes once it was requeued
            shell("scontrol", "update", f"jobid={name}", "starttime=now")
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("cancelled")
def test_a_sweep_on_slurm_has_the_figures_of_one_in_this_process(cli: Cli) -> None:
    assert cli(*SWEEP, "hydra.sweep.dir=here").code == 0
    workers = ("hydra.launcher.workers=2", "hydra.launcher.submit.timeout_min=5")
    done = start(*SWEEP, "hydra.sweep.dir=there", *SLURM, *workers).wait(PATIENCE)
    text = Path("log.txt").read_text()
    assert done == 0, text
    asked = "cpus_per_task=1, timeout_min=5"
    assert f"where it trains: elements of SLURM, 2 at once ({asked})" in text
    pd.testing.assert_frame_equal(figures("here"), figures("there"))


@pytest.mark.slow
@pytest.mark.usefixtures("cancelled")
def test_nothing_is_lost_on_slurm_by_kills_time_limits_requeues_and_preemption(cli: Cli) -> None:
    long = (*SWEEP, "train.epochs=1200", "checkpoint.every=0.01", "hydra.launcher.max_members=2")
    assert cli(*long, "hydra.sweep.dir=here").code == 0
    command = start(*long, "hydra.sweep.dir=there", *SLURM)
    until("checkpoint", Path("there"), "*/checkpoint.safetensors", 2)
    one, other = running(2)
    [process] = [p for p in elements() if slurm_here.named(p) == one]
    process.kill()
    shell("scancel", "--signal=USR2", other)  # as before a time limit
    shell("scontrol", "requeue", running(1)[0])
    command.send_signal(signal.SIGKILL)
    command.wait()
    command = start(*long, "hydra.sweep.dir=there", *SLURM)
    running(1)
    shell("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    end = time.monotonic() + PATIENCE
    while command.poll() is None:
        assert time.monotonic() < end, Path("log.txt").read_text()
        if queue("PENDING"):
            running(1)
        time.sleep(0.5)
    assert command.returncode == 0, Path("log.txt").read_text()
    pd.testing.assert_frame_equal(figures("here"), figures("there"))
    quiet()


@pytest.mark.slow
@pytest.mark.usefixtures("cancelled")
def test_what_slurm_refuses_is_said_in_a_line(cli: Cli) -> None:
    wrong = "hydra.launcher.submit.slurm_partition=nowhere"
    done = cli("-m", *SMALL, "loss=hard", "hydra.sweep.dir=sweep", SLURM[0], wrong)
    assert done.code == 1
    line = done.err.splitlines()[-1]  # after what sbatch says
    assert line.startswith("hydra.launcher.submit slurm_partition=nowhere: sbatch: error: ")
    assert [path.name for path in (Path("sweep") / FOLDER).glob("[!.]*")] == ["machine.json"]


@pytest.mark.slow
@pytest.mark.usefixtures("cancelled")
def test_ctrl_c_ends_the_elements_of_slurm_with_their_checkpoints() -> None:
    command = start(*LONG, "hydra.sweep.dir=sweep", *SLURM, "hydra.launcher.max_members=1")
    until("checkpoint", Path("sweep"), "*/checkpoint.safetensors")
    command.send_signal(signal.SIGINT)
    assert command.wait(PATIENCE) == 130, Path("log.txt").read_text()
    quiet()
    assert "interrupted" in read_summary(Path("sweep"))["status"].tolist()


@pytest.mark.slow
@pytest.mark.usefixtures("cancelled")
def test_an_element_that_was_cancelled_is_said_and_the_same_command_goes_on() -> None:
    # From labels alone, so that no teacher is an element before them.
    plain = ("loss=hard", "optim.lr=0.001,0.002", "model.width=4,8", "train.epochs=600")
    long = ("-m", *SMALL, "precision=fp32", *plain, "hydra.launcher.max_members=2")
    command = start(*long, "hydra.sweep.dir=sweep", *SLURM)
    [one, *_] = running(2)
    shell("scancel", one)
    assert command.wait(PATIENCE) == 1
    frame = read_summary(Path("sweep"))
    assert sorted(frame["status"]) == ["complete"] * 2 + ["failed"] * 2
    assert frame["reason"].dropna().str.contains("was cancelled; the same command goes on").all()
    assert start(*long, "hydra.sweep.dir=sweep", *SLURM).wait(PATIENCE) == 0
    assert read_summary(Path("sweep"))["status"].tolist() == ["complete"] * 4
