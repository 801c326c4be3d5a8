"""Epochs of this project's trainer, timed, and the work that they hold."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from distill.config import Run, parse
from distill.runs.job import Job
from distill.runs.students import students
from distill.sweeps.costs import member_memory
from distill.system.conf import CONF
from distill.training.inputs import training_inputs
from distill.training.transfer_set import Said, Source

EPOCHS = 3  # in a run that is timed: what it does once, students do once in many epochs


def config(*overrides: str) -> Run:
    """The config of a command line."""
    with initialize_config_dir(str(CONF)):
        return parse(compose("config", list(overrides)))


def job(*overrides: str) -> Job:
    """The job of a command line."""
    return Job(config(*overrides))


def clock(device: torch.device) -> float:
    """The time in seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def gemm(job: Job, size: int = 4096, repeats: int = 5) -> float:
    """The machine's best rate of products in the type that a job trains in, in FLOP/s."""
    device, dtype = job.setting.device, job.setting.dtype
    rates = []
    for rows in (size // 4, size // 2, size):
        a, b = (torch.randn(n, size, device=device).to(dtype) for n in (rows, size))
        torch.mm(a, b)
        for _ in range(repeats):
            start = clock(device)
            torch.mm(a, b)
            rates.append(2 * rows * size * size / (clock(device) - start))
    return max(rates)


def spread(values: list[float], form: str = "{:.3g}") -> str:
    """The median of some measurements, and their range."""
    low, high = (form.format(f(values)) for f in (min, max))
    return f"{form.format(statistics.median(values))} ({low} to {high})"


class Epochs:
    """Students of one job that differ in the loss's hyperparameters; soft targets are made up.

    With ``examples``, an epoch is cut to the first so many; a ``teacher`` makes soft targets anew.
    """

    def __init__(
        self,
        job: Job,
        members: int = 1,
        *,
        examples: int | None = None,
        generic: bool = False,
        teacher: Callable[[Tensor], Said] | None = None,
    ) -> None:
        data = job.run.data
        inputs = training_inputs(job.setting, data.jitter, data.flip)
        self.device = job.setting.device
        teachers: list[Source] = [] if teacher is None else [teacher]
        if job.run.distils and teacher is None:
            # Where they would take gigabytes, all examples share those of one.
            shape = (len(inputs), inputs.views, job.data.classes)
            own = shape if math.prod(shape) < 2**27 else (1, *shape[1:])
            teachers.append(torch.randn(own, device=self.device).expand(shape))
        self.training = students([job] * members, teachers)
        index = self.training.transfer.index[:examples]
        self.training.transfer = replace(self.training.transfer, index=index)
        self.training.plan = replace(self.training.plan, epochs=EPOCHS)
        shares = torch.linspace(0.5, 1.0, members).tolist()
        numbers = {
            name: [value * share for value, share in zip(values, shares, strict=True)]
            for name, values in self.training.objective.numbers.items()
        }
        self.training.objective = replace(self.training.objective, numbers=numbers)
        if generic:
            stack = self.training.stack
            stack._mlp = lambda *of: stack.generic(of[1])  # type: ignore[method-assign]

    @property
    def examples(self) -> int:
        """The number of examples in an epoch."""
        return len(self.training.transfer.index)

    @property
    def work(self) -> float:
        """Floating-point operations of the products of an epoch: forward, weights, inputs.

        The first layer's inputs need no gradient.
        """
        stack = self.training.stack
        sizes = [p.shape[1:].numel() for p in stack.parameters.values() if p.ndim == 3]
        return stack.members * self.examples * 2.0 * (3 * sum(sizes) - sizes[0])

    def epoch(self) -> float:
        """Seconds of one epoch of a few, without evaluation."""
        start = clock(self.device)
        self.training.run()
        return (clock(self.device) - start) / EPOCHS


def peak_memory(members: int, *overrides: str) -> tuple[float, float]:
    """Bytes that the training of a stack adds to a fresh process at most, and those counted.

    The soft targets, which the students of a sweep share, are no part of a stack.
    """
    one = job(*overrides)
    counted = members * member_memory(one)
    cuda = one.setting.device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else _resident("VmRSS")
    epochs = Epochs(one, members, examples=20 * one.run.train.batch_size)
    epochs.epoch()
    peak = torch.cuda.max_memory_allocated() if cuda else _resident("VmHWM")
    soft = [t for t in epochs.training.transfer.teachers if isinstance(t, torch.Tensor)]
    return peak - before - sum(s.untyped_storage().nbytes() for s in soft), counted


def _resident(field: str) -> int:
    """Bytes of this process's memory by a field of Linux's status file; VmHWM is the highest."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024
