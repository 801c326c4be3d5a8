"""Stacks trained one after another in this process, or side by side in several."""

import gc
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from signal import Signals

import torch
from loky import ProcessPoolExecutor

from distill.config import Teacher
from distill.runs.job import Job
from distill.sweeps.plan import Stack
from distill.sweeps.tasks import Results, Task
from distill.system import interrupt
from distill.system.interrupt import Interrupt
from distill.system.progress import silence
from distill.training.fit import RunError, out_of_memory
from distill.training.inputs import Setting

__all__ = ["Outcome", "Results", "Task", "in_turn", "side_by_side", "teach"]
log = logging.getLogger(__name__)


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
