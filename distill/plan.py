"""What a sweep's jobs become: the stacks they are trained in, the memory and the time of each.

Letters: K members, B examples in a batch.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from math import ceil

import psutil
import torch
from rich.filesize import decimal
from torch import Tensor

from distill.job import Job
from distill.run import evaluator, prepare
from distill.train import Training

BATCHES = 3  # of them the first warms up, and the others are timed


@dataclass(frozen=True)
class Stack:
    """The numbers of the jobs that train together."""

    jobs: tuple[int, ...]

    def halves(self) -> "tuple[Stack, Stack]":
        """Two stacks of half the jobs each."""
        middle = len(self.jobs) // 2
        return Stack(self.jobs[:middle]), Stack(self.jobs[middle:])


def stacks(jobs: Sequence[Job], max_members: int, workers: int) -> list[Stack]:
    """The fewest stacks that the jobs allow, each of at most ``max_members`` that fit in memory.

    Within a stack, jobs stand in the order of their learning rates and weight decays, since
    neighbours who share them are updated together. Where there are fewer stacks than ``workers``,
    the largest are halved.
    """
    groups: dict[str, list[int]] = {}
    for number, job in enumerate(jobs):
        groups.setdefault(job.run.shared, []).append(number)
    made: list[Stack] = []
    for numbers in groups.values():
        numbers.sort(key=lambda n: (jobs[n].run.optim.lr, jobs[n].run.optim.weight_decay))
        fit = free_memory(jobs[numbers[0]].setting.device, workers) // 2
        most = max(1, min(max_members, fit // member_memory(jobs[numbers[0]])))
        size = ceil(len(numbers) / ceil(len(numbers) / most))
        made += [Stack(tuple(numbers[i : i + size])) for i in range(0, len(numbers), size)]
    while len(made) < workers and (largest := max(made, key=lambda s: len(s.jobs))).jobs[1:]:
        place = made.index(largest)
        made[place : place + 1] = largest.halves()
    return made


def free_memory(device: torch.device, workers: int) -> int:
    """Bytes of memory that each of the worker processes, spread over the GPUs, can still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0] // ceil(workers / torch.cuda.device_count())
    return int(psutil.virtual_memory().available) // workers


def _without_soft_targets(job: Job) -> Tensor | None:
    """A stand-in for soft targets (N, V, C) that takes no memory."""
    views = (2 * job.run.data.jitter + 1) ** 2
    zero = torch.zeros((), device=job.setting.device)
    return (
        zero.expand(len(job.data.train_labels), views, job.data.classes)
        if job.run.distils
        else None
    )


def _few(jobs: Sequence[Job], batches: int) -> Training:
    """The training of a stack of these jobs, cut to one epoch of few batches."""
    training = prepare(jobs, _without_soft_targets(jobs[0]))
    index = training.transfer.index[: batches * training.plan.batch_size]
    training.transfer = replace(training.transfer, index=index)
    training.plan = replace(training.plan, epochs=1)
    return training


def member_memory(job: Job) -> int:
    """Bytes that one member takes while it trains.

    Parameters, their leaves and gradients, the optimizer's state, and what the forward pass keeps
    for the backward pass, counted in a batch of the job.
    """
    training = _few([job], 1)
    own = {p.data_ptr() for p in training.stack.leaves.values()}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        if value.requires_grad and value.data_ptr() not in own:  # the rest is shared by members
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        training.run()
    item = training.plan.dtype.itemsize
    copies = item * (item < 4)
    parameter = 4 + copies + item + 4 * training.optimizer.slots
    return training.stack.size * parameter + sum(kept.values())


def described(stacks: Sequence[Stack], jobs: Sequence[Job]) -> str:
    """What is about to be trained, in a line; times are those of a few batches, multiplied."""
    shapes: dict[tuple[object, ...], float] = {}
    total = 0.0
    for stack in stacks:
        own = [jobs[n] for n in stack.jobs]
        run = own[0].run
        shape = (own[0].setting, run.model, run.train, run.optim.target, run.loss.target, len(own))
        if shape not in shapes:
            shapes[shape] = seconds(own)
        total += shapes[shape]
    memory = max(len(s.jobs) * member_memory(jobs[s.jobs[0]]) for s in stacks)
    sizes = sorted({len(stack.jobs) for stack in stacks})
    members = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    return (
        f"{len(jobs)} job{'s' * (len(jobs) > 1)} in {len(stacks)} stack{'s' * (len(stacks) > 1)} "
        f"of {members}: about {timedelta(seconds=ceil(total))} and {decimal(memory)} of memory, "
        "teachers not included"
    )


def seconds(jobs: Sequence[Job]) -> float:
    """How long a stack of these jobs will train, from the time of a few batches."""
    first = jobs[0]
    _few(jobs, 1).run()
    training = _few(jobs, BATCHES - 1)
    start = time.perf_counter()
    training.run()
    middle = time.perf_counter()
    evaluator(first.setting)(training.stack)
    evaluation = time.perf_counter() - middle
    step = (middle - start) / ceil(len(training.transfer.index) / training.plan.batch_size)
    steps = ceil(len(first.index) / first.run.train.batch_size)
    return first.run.train.epochs * (steps * step + evaluation)
