"""Stacks in this process and in others: signals, parents that die, memory that is short."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from conftest import SMALL, Cli

from distill.runs import execute as run
from distill.runs import results
from distill.runs.job import Job
from distill.runs.students import students
from distill.sweeps import workers
from distill.training.checkpoint import FILE
from distill.training.loop import Training

SWEEP = ("-m", *SMALL, "precision=fp32", "hydra.sweep.dir=sweep")


def summary() -> pd.DataFrame:
    return pd.read_csv(Path("sweep") / results.SUMMARY)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_other_signals_that_announce_an_end_leave_a_checkpoint_too(
    number: int, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Training.step

    def signalled(self: Training, *args: Any) -> Any:
        if args[-1] > 0 and self.transfer.teachers and self.optimizer.steps[0] == 5:
            os.kill(os.getpid(), number)
        return step(self, *args)

    monkeypatch.setattr(Training, "step", signalled)
    assert cli(*SWEEP, "train.epochs=5", "seed=0").code == 128 + number
    assert summary()["reason"].tolist() == [f"by {signal.Signals(number).name}"]
    assert len([*Path("sweep").rglob(FILE)]) == 1


def test_a_hangup_that_is_ignored_from_the_start_stays_ignored(home: Path) -> None:
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        "from distill.system import interrupt; interrupt.install();"
        "print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n", home


class Grows:
    """A task after which the process holds 400 MB more."""

    held: bytes = b""

    def run(self) -> list[Any]:
        type(self).held = b"x" * 400_000_000
        time.sleep(1.2)  # loky looks once a second
        return []


@pytest.mark.slow
def test_a_worker_whose_memory_grew_stays_that_which_an_interrupt_goes_to() -> None:
    processes = workers._Workers(1)
    try:
        first = processes.processes[0].result()
        grows: Any = Grows()
        assert processes.submit(0, grows).result() == []
        time.sleep(1)
        assert processes.pools[0].submit(os.getpid).result() == first
    finally:
        processes.close()


@pytest.mark.slow
def test_workers_whose_parent_dies_write_checkpoints_and_end(cli: Cli) -> None:
    command = (*SWEEP, "train.epochs=400", "model.width=4,8", "loss.temperature=1,2")
    call = [sys.executable, "-m", "distill", *command, "hydra.launcher.workers=2"]
    parent = subprocess.Popen(call, stdout=subprocess.DEVNULL)
    logs = Path("sweep")
    while sum("epoch 20 of" in p.read_text() for p in logs.rglob("distill.log")) < 2:
        assert parent.poll() is None
        time.sleep(0.01)
    workers = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert workers
    assert all(worker.status() == psutil.STATUS_ZOMBIE for worker in alive)
    left = [path.parent for path in Path("sweep").rglob(FILE)]
    assert len(left) == 2
    # They wrote nothing but that, since others may have taken up their work.
    assert not results.paths(Path("sweep"))
    assert cli(*command).code == 0
    assert all("going on from" in (path / "distill.log").read_text() for path in left)
    assert summary()["status"].tolist() == ["complete"] * 4


@pytest.mark.slow
def test_a_stack_that_memory_is_short_for_is_tried_in_halves(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four members of width 9, three are too many for this machine; of width 10, one is."""
    made = students

    def short(jobs: list[Job], *rest: Any) -> Any:
        width = jobs[0].run.model.options["width"]
        if (width == 9 and len(jobs) > 2) or width == 10:
            torch.empty(2**60, dtype=torch.uint8)
        return made(jobs, *rest)

    monkeypatch.setattr(run, "students", short)
    done = cli(*SWEEP, "model.width=8,9,10", "loss.temperature=1,2,3,4")
    assert done.code == 1
    assert done.out.count("a stack of 4 is tried in halves") == 2
    assert done.out.count("a stack of 2 is tried in halves") == 2  # both of width 10
    frame = summary()
    assert len(frame) == 12
    assert (frame.loc[frame["width"] < 10, "status"] == "complete").all()
    assert frame.loc[frame["width"] == 10, "reason"].str.contains("can't allocate memory").all()
