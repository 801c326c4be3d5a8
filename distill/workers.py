"""Stacks trained one after another in this process, or side by side in several."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from hydra.core.utils import configure_log, env_override
from loky import ProcessPoolExecutor
from omegaconf import OmegaConf

from distill.config import parse
from distill.job import Job
from distill.plan import Stack
from distill.run import RunError, execute

Results = list[dict[str, Any]]


@dataclass
class Task:
    """A stack to be trained, in this process or, by its plain ``configs``, in another."""

    directories: list[Path]
    log: dict[str, Any] | None  # how the first job logs; the others' logs are copies of its own
    environment: Mapping[str, str]
    configs: Sequence[dict[str, Any]] = ()

    def run(self, jobs: Sequence[Job] | None = None) -> Results:
        """Train the stack; returns the result of each job."""
        with env_override(dict(self.environment)), _logs(self.log, self.directories):
            own = jobs or [Job(parse(OmegaConf.create(config))) for config in self.configs]
            return execute(own, self.directories)


@contextmanager
def _logs(config: dict[str, Any] | None, directories: Sequence[Path]) -> Iterator[None]:
    """Log as the first job's config says, and give the others copies of what it wrote."""
    if config is None:
        yield
        return
    configure_log(OmegaConf.create(config), False, execution_whitelist=["logging.*"])
    try:
        yield
    finally:
        files = [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
        for handler in files:
            path = Path(handler.baseFilename)
            handler.close()
            if path.is_relative_to(directories[0].resolve()):
                name = path.relative_to(directories[0].resolve())
                for other in directories[1:]:
                    copyfile(path, other / name)


def _start(device: str | None, workers: int) -> None:
    """What a worker does first: its share of the cores, and of the GPUs the one named."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))


def side_by_side(
    tasks: Mapping[Stack, Task], workers: int
) -> Iterator[tuple[Stack, Results | Exception]]:
    """The results of each stack, or the error that ended it, as they come from worker processes.

    A worker that dies takes its own stack with it; another takes its place.
    """
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = (visible.split(",") if visible else [str(n) for n in range(count)])[:count]

    def worker(slot: int) -> ProcessPoolExecutor:
        device = devices[slot % count] if count else None
        return ProcessPoolExecutor(1, initializer=_start, initargs=(device, workers))

    pools = {slot: worker(slot) for slot in range(min(workers, len(tasks)))}
    waiting = list(tasks)
    running: dict[Future[Results], tuple[int, Stack]] = {}

    def submit(slot: int) -> None:
        if waiting:
            stack = waiting.pop(0)
            running[pools[slot].submit(tasks[stack].run)] = (slot, stack)

    try:
        for slot in pools:
            submit(slot)
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                slot, stack = running.pop(future)
                try:
                    yield stack, future.result()
                except BrokenProcessPool:
                    pools[slot].shutdown(kill_workers=True)
                    pools[slot] = worker(slot)
                    yield stack, RunError("its worker process died")
                except Exception as error:
                    yield stack, error
                submit(slot)
    finally:
        for pool in pools.values():
            pool.shutdown(kill_workers=True)
