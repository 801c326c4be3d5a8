"""What another machine is given of a sweep: a stack, which is planned anew there, or a teacher."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from distill.config import ConfigError
from distill.runs.execute import fail
from distill.runs.job import Job
from distill.runs.kept import kept
from distill.sweeps import plan
from distill.sweeps.tasks import Task
from distill.sweeps.workers import Outcome, in_turn, side_by_side
from distill.system import interrupt, machine, store
from distill.system.interrupt import Interrupt
from distill.system.progress import silence
from distill.system.pulse import PULSE, alive
from distill.training.fit import RunError

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds after which an element looks again whether it is to stop
WARNINGS = ("SIGUSR1", "SIGUSR2")  # what batch systems send before the time is up


@cache
def source() -> str:
    """The SHA-256 of this package's code, which is to be the same on each machine."""
    folder = Path(__file__).parents[1]
    own = sorted(folder.rglob("*.py"))
    return store.digest(
        {path.relative_to(folder).as_posix(): store.file_digest(path) for path in own}
    )


@dataclass
class Element:
    """A ``task`` for another machine; it is called there, and leaves all that it makes in files.

    ``threads`` are those of the process, or None for as many as it has cores there. While the file
    ``stop`` is not there it goes on. Where the batch system ``kills`` it when it is preempted, it
    waits for that: one that ended by itself would not come back.
    """

    task: Task
    stop: Path
    max_members: int
    threads: int | None = None
    kills: bool = False
    source: str = field(default_factory=lambda: source())

    def __call__(self) -> str | None:
        """Do the task; returns why it could not be begun, and None where results say the rest."""
        before = {name: _handler(name) for name in WARNINGS}
        try:
            with interrupt.installed(), self._stopping():
                self._prepare()
                self._do()
        except Interrupt as error:
            if self.kills and error.number == signal.SIGTERM:
                while True:  # the checkpoint is written
                    time.sleep(LOOK)
            requeue = before.get(signal.Signals(error.number).name)
            if callable(requeue):
                requeue(error.number, None)
        except Exception as error:
            log.exception("it ended here")
            name = "" if isinstance(error, RunError | ConfigError) else f"{type(error).__name__}: "
            return " ".join(f"{name}{store.told(error) or error}".split())
        return None

    def checkpoint(self, *_: Any) -> Any:
        """What submitit puts in place of this element when it is requeued: itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _prepare(self) -> None:
        silence()
        if threading.current_thread() is threading.main_thread():
            torch.set_num_threads(self.threads or machine.cores())
        if self.source != source():
            raise RunError("distill has changed since this was submitted; the same command goes on")

    def _jobs(self) -> list[Job]:
        """The jobs of the task, which this machine can train."""
        jobs = self.task.jobs()
        if jobs[0].setting.device.type == "cuda" and not torch.cuda.is_available():
            raise RunError(f"{socket.gethostname()} has no CUDA device, which the sweep asks for")
        return jobs

    def _do(self) -> None:
        """Train the stack as this machine can."""
        own = self.task
        jobs = self._jobs()
        self._wait()
        for stack, outcome in self._outcomes(own, jobs):
            if isinstance(outcome, Exception):
                places = [own.directories[n] for n in stack.jobs]
                fail([jobs[n] for n in stack.jobs], places, outcome)

    def _wait(self) -> None:
        """Let who still trains one of the jobs end: SLURM may have lost a machine that goes on."""
        told = False
        for mark in (directory / PULSE for directory in self.task.directories):
            while alive(mark):
                if self.stop.exists():
                    raise Interrupt(signal.SIGINT)
                if not told:
                    log.warning("another process trains in %s: waiting for it", mark.parent)
                told = True
                time.sleep(LOOK)

    def _outcomes(self, own: Task, jobs: list[Job]) -> Iterator[Outcome]:
        left = [n for n, job in enumerate(jobs) if kept(job, own.directories[n]) is None]
        if not left:
            return
        gpus = torch.cuda.device_count() if jobs[0].setting.device.type == "cuda" else 0
        some = [jobs[n] for n in left]
        begun = plan.begun(some, [own.directories[n] for n in left])
        made = plan.stacks(some, self.max_members, max(1, gpus), begun=begun)
        stacks = [plan.Stack(tuple(left[n] for n in stack.jobs)) for stack in made]
        if gpus > 1:
            yield from side_by_side(stacks, lambda stack: own.part(stack.jobs), gpus)
        else:
            yield from in_turn(
                stacks, lambda stack: own.part(stack.jobs).run([jobs[n] for n in stack.jobs])
            )

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Look for the file ``stop``, which asks for an end after this epoch."""
        done = threading.Event()
        signals = threading.current_thread() is threading.main_thread()

        def look() -> None:
            while not done.wait(LOOK):
                if self.stop.exists() and signals:
                    os.kill(os.getpid(), signal.SIGINT)
                    return  # a second one would not wait for checkpoints
                if self.stop.exists():
                    interrupt.ask()

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


class Lesson(Element):
    """The teacher of the first job of a ``task`` and its soft targets, for all who learn of it."""

    def _do(self) -> None:
        self.task.teach(self._jobs()[0])


def _handler(name: str) -> Any:
    number = getattr(signal, name, None)
    return None if number is None else signal.getsignal(number)
