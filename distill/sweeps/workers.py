"""Stacks trained one after another in this process, or side by side in several."""

import gc
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import copyfile
from signal import Signals
from typing import Any

import torch
from hydra.core.utils import configure_log, env_override
from loky import ProcessPoolExecutor
from omegaconf import OmegaConf

from distill.config import Teacher, parse
from distill.runs.execute import execute
from distill.runs.job import Job
from distill.sweeps.plan import Stack
from distill.system import interrupt, store
from distill.system.interrupt import Interrupt
from distill.system.progress import silence
from distill.teachers.find import taught
from distill.training.fit import RunError, out_of_memory
from distill.training.inputs import Machine, Setting, trained_on

log = logging.getLogger(__name__)

Results = list[dict[str, Any]]


@dataclass
class Task:
    """A stack to be trained, in this process or, by its plain ``configs``, in another.

    ``log`` is how its first job logs, which the logs of the others are copies of.
    """

    directories: list[Path]
    log: dict[str, Any] | None
    verbose: bool | str | Sequence[str]
    whitelist: Sequence[str] | None
    environment: Mapping[str, str]
    configs: Sequence[dict[str, Any]] = ()
    names: Sequence[str] = ()
    machine: Machine | None = None  # what "auto" means, where several machines train the sweep

    def jobs(self) -> list[Job]:
        """The jobs of the plain configs, checked on this machine.

        Raises:
            RunError: one of them is not the job that it was.
        """
        with trained_on(self.machine):
            own = [Job(parse(OmegaConf.create(config))) for config in self.configs]
        for job, name in zip(own, self.names, strict=True):
            if job.name != name:
                changed = "what decides it changed after the sweep began"
                raise RunError(f"{name} would be trained as {job.name}: {changed}")
        return own

    def part(self, numbers: Sequence[int]) -> "Task":
        """The task of some of its jobs."""
        return replace(
            self,
            directories=[self.directories[n] for n in numbers],
            configs=[self.configs[n] for n in numbers],
            names=[self.names[n] for n in numbers],
        )

    def run(self, jobs: Sequence[Job] | None = None) -> Results:
        """Train the stack; returns the result of each job."""
        with env_override(dict(self.environment)), self._logged():
            return execute(jobs or self.jobs(), self.directories, self._share_log)

    def teach(self, job: Job) -> None:
        """Let the teacher of ``job`` and its soft targets be in the cache, made if they are not."""
        with env_override(dict(self.environment)), self._logged():
            if job.way is not None:
                taught(job.setting, job.run.teacher, job.run.checkpoint.every, job.way)

    @contextmanager
    def _logged(self) -> Iterator[None]:
        if self.log is None:
            yield
            return
        whitelist = None if self.whitelist is None else list(self.whitelist)
        configure_log(OmegaConf.create(self.log), self.verbose, execution_whitelist=whitelist)
        try:
            yield
        finally:
            self._share_log()
            for handler in logging.getLogger().handlers:
                if isinstance(handler, logging.FileHandler):
                    handler.close()

    def _share_log(self) -> None:
        """Give each job the log so far."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                handler.flush()
                self._copy(Path(handler.baseFilename).resolve())

    def _copy(self, path: Path) -> None:
        """Copy the log of the first job to the others, if it lies in its directory."""
        first, *others = (directory.resolve() for directory in self.directories)
        if path.is_relative_to(first):
            for other in others:
                try:
                    store.write(
                        other / path.relative_to(first), partial(copyfile, path), sync=False
                    )
                except OSError as error:
                    log.warning("no log could be written: %s", store.told(error) or error)


class WorkerDiedError(RunError):
    """A worker was killed, as the kernel does where memory is short."""


def smaller(stack: Stack, error: BaseException) -> list[Stack]:
    """The halves of a stack that memory was too short for, to be tried instead; else none."""
    short = isinstance(error, WorkerDiedError) or out_of_memory(error)
    if len(stack.jobs) == 1 or not short:
        return []
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    log.warning("a stack of %d is tried in halves, since it ended: %s", len(stack.jobs), reason)
    return [*stack.halves()]


Outcome = tuple[Stack, Results | Exception]


def in_turn(stacks: Sequence[Stack], train: Callable[[Stack], Results]) -> Iterator[Outcome]:
    """The results of each stack, or the error that ended it, trained one after another here."""
    waiting = list(stacks)
    while waiting:
        stack = waiting.pop(0)
        try:
            results = train(stack)
        except Exception as error:
            if halves := smaller(stack, error):
                waiting[:0] = halves
            else:
                yield stack, error
        else:
            yield stack, results
        gc.collect()  # the frames of an error hold tensors


def _start(device: str | None, threads: int) -> None:
    """What a worker does first: its share of the cores, and of the GPUs the one named."""
    interrupt.obey()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    torch.set_num_threads(threads)
    silence()


def _pass_on(number: int, process: "Future[int]") -> None:
    """Send a signal to a worker, unless it has died."""
    with suppress(Exception):
        os.kill(process.result(), number)


def teach(
    stacks: Sequence[Stack], jobs: Sequence[Job], start: Callable[[Stack], Task]
) -> Callable[[Stack], Task]:
    """Make the teachers that stacks share with all threads, since side by side they would wait.

    Those of one stack alone are made where it trains, unless there is no other. Returns ``start``,
    but for the first stack of each teacher, which was started so that its log tells of it.
    """
    users: dict[tuple[Setting, Teacher], dict[Stack, Job]] = {}
    for stack in sorted(stacks, key=lambda stack: stack.jobs):
        for job in (jobs[n] for n in stack.jobs):
            if job.run.distils:
                users.setdefault((job.setting, job.run.teacher), {}).setdefault(stack, job)
    started: dict[Stack, Task] = {}
    for own in users.values():
        if len(own) == 1 < len(users):
            continue
        first, job = next(iter(own.items()))
        with suppress(Exception):  # the stacks will meet the same, and say it
            started[first] = started.get(first) or start(first)
            started[first].teach(job)
    return lambda stack: started.pop(stack, None) or start(stack)


class _Workers:
    """Processes of one stack at a time, each in its slot, with its share of cores and GPUs."""

    def __init__(self, count: int) -> None:
        gpus = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = (visible.split(",") if visible else [str(n) for n in range(gpus)])[:gpus]
        self.devices = [names[slot % gpus] if gpus else None for slot in range(count)]
        self.threads = max(1, torch.get_num_threads() // count)
        self.pools: list[ProcessPoolExecutor] = []
        self.processes: list[Future[int]] = []
        for device in self.devices:
            self.pools.append(self._pool(device))
            self.processes.append(self.pools[-1].submit(os.getpid))

    def _pool(self, device: str | None) -> ProcessPoolExecutor:
        # loky would replace a process whose memory grew by 300 MB, as if it leaked: that of a stack
        # does, and an interrupt would go to the process that was.
        env = {"LOKY_MAX_MEMORY_LEAK_SIZE": "1e18"}
        start = (device, self.threads)
        return ProcessPoolExecutor(1, env=env, initializer=_start, initargs=start)

    def submit(self, slot: int, task: Task) -> "Future[Results]":
        """Let the process of a slot train a stack."""
        future: Future[Results] = self.pools[slot].submit(task.run)
        return future

    def replace(self, slot: int) -> None:
        """Put another process in the place of one that died."""
        self.pools[slot].shutdown(kill_workers=True)
        self.pools[slot] = self._pool(self.devices[slot])
        self.processes[slot] = self.pools[slot].submit(os.getpid)

    def signal(self, number: int) -> None:
        """Pass a signal on to each process: at once, or when it has started."""
        for process in self.processes:
            process.add_done_callback(partial(_pass_on, number))

    def close(self) -> None:
        """End all of them."""
        for pool in self.pools:
            pool.shutdown(kill_workers=True)


def side_by_side(
    stacks: Sequence[Stack], start: Callable[[Stack], Task], workers: int
) -> Iterator[Outcome]:
    """The results of each stack, or the error that ended it, as they come from worker processes.

    A worker that dies takes its own stack with it; another takes its place. A signal to stop is
    passed on to the workers, whose stacks write their checkpoints before it is raised.

    Raises:
        Interrupt: a signal came.
    """
    slots = range(min(workers, len(stacks)))
    processes = _Workers(len(slots))
    stop: Interrupt | None = None
    waiting = list(stacks)
    running: dict[Future[Results], tuple[int, Stack]] = {}

    def submit(slot: int) -> Iterator[Outcome]:
        """Start the next stack; what comes back are those that could not be started."""
        while waiting:
            stack = waiting.pop(0)
            try:
                running[processes.submit(slot, start(stack))] = (slot, stack)
            except Exception as error:
                yield stack, error
            else:
                return

    try:
        for slot in slots:
            yield from submit(slot)
        while running:
            try:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
            except Interrupt as signal:
                if stop is not None:
                    raise
                stop = signal
                waiting.clear()
                log.warning(interrupt.NOTICE)
                processes.signal(interrupt.PASSED[Signals(stop.number)])
                continue
            for future in done:
                slot, stack = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool) and stop is None:
                    processes.replace(slot)
                yield from _outcome(stack, future, waiting, stopping=stop is not None)
                yield from submit(slot)
        if stop is not None:
            raise stop
    finally:
        processes.close()


def _outcome(
    stack: Stack, future: "Future[Results]", waiting: list[Stack], *, stopping: bool
) -> Iterator[Outcome]:
    """What became of a stack; of one that is tried in halves nothing yet, which are ``waiting``.

    While a signal is ``stopping`` the workers, a stack ends by it, and says nothing of its own.
    """
    error = future.exception()
    if error is None:
        yield stack, future.result()
        return
    if isinstance(error, BrokenProcessPool):
        if stopping:
            return
        error = WorkerDiedError("its worker process died")
    if not isinstance(error, Exception):
        if not stopping:
            raise error
        return
    halves = [] if stopping else smaller(stack, error)
    if halves:
        waiting[:0] = halves
    else:
        yield stack, error
