"""Stacks trained one after another in this process, or side by side in several."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copyfile
from signal import Signals
from typing import Any

import torch
from hydra.core.utils import configure_log, env_override
from loky import ProcessPoolExecutor
from omegaconf import OmegaConf

from distill import interrupt, store
from distill.config import parse
from distill.fit import RunError
from distill.interrupt import Interrupt
from distill.job import Job
from distill.plan import Stack
from distill.progress import silence
from distill.run import execute

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

    def run(self, jobs: Sequence[Job] | None = None) -> Results:
        """Train the stack; returns the result of each job."""
        with env_override(dict(self.environment)), self._logged():
            own = jobs or [Job(parse(OmegaConf.create(config))) for config in self.configs]
            return execute(own, self.directories, self._share_log)

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


def _start(device: str | None, workers: int) -> None:
    """What a worker does first: its share of the cores, and of the GPUs the one named."""
    interrupt.obey()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    silence()


def _pass_on(number: int, process: "Future[int]") -> None:
    """Send a signal to a worker, unless it has died."""
    with suppress(Exception):
        os.kill(process.result(), number)


def side_by_side(
    starts: Mapping[Stack, Callable[[], Task]], workers: int
) -> Iterator[tuple[Stack, Results | Exception]]:
    """The results of each stack, or the error that ended it, as they come from worker processes.

    A worker that dies takes its own stack with it; another takes its place. A signal to stop is
    passed on to the workers, whose stacks write their checkpoints before it is raised.

    Raises:
        Interrupt: a signal came.
    """
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = (visible.split(",") if visible else [str(n) for n in range(count)])[:count]
    slots = range(min(workers, len(starts)))

    def worker(slot: int) -> ProcessPoolExecutor:
        device = devices[slot % count] if count else None
        pool = ProcessPoolExecutor(1, initializer=_start, initargs=(device, len(slots)))
        processes[slot] = pool.submit(os.getpid)
        return pool

    processes: dict[int, Future[int]] = {}
    pools = {slot: worker(slot) for slot in slots}
    stop: Interrupt | None = None
    waiting = list(starts)
    running: dict[Future[Results], tuple[int, Stack]] = {}

    def submit(slot: int) -> Iterator[tuple[Stack, Exception]]:
        """Start the next stack; what comes back are those that could not be started."""
        while waiting:
            stack = waiting.pop(0)
            try:
                running[pools[slot].submit(starts[stack]().run)] = (slot, stack)
            except Exception as error:
                yield stack, error
            else:
                return

    try:
        for slot in pools:
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
                passed = interrupt.PASSED[Signals(stop.number)]
                for process in processes.values():  # at once, or when it has started
                    process.add_done_callback(partial(_pass_on, passed))
                continue
            for future in done:
                slot, stack = running.pop(future)
                try:
                    yield stack, future.result()
                except BrokenProcessPool:
                    if stop is not None:
                        continue
                    pools[slot].shutdown(kill_workers=True)
                    pools[slot] = worker(slot)
                    yield stack, RunError("its worker process died")
                except Interrupt:
                    if stop is None:
                        raise
                except Exception as error:
                    yield stack, error
                yield from submit(slot)
        if stop is not None:
            raise stop
    finally:
        for pool in pools.values():
            pool.shutdown(kill_workers=True)
