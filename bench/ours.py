"""Epochs of this project's trainer, timed, and the work that they hold."""

import time
from dataclasses import replace

import torch
from hydra import compose, initialize_config_dir

from distill.config import parse
from distill.job import Job, training_images
from distill.launcher import CONF
from distill.run import prepare
from distill.stack import Stack


def job(*overrides: str) -> Job:
    """The job of a command line."""
    with initialize_config_dir(str(CONF)):
        return Job(parse(compose("config", list(overrides))))


def gemm(size: int = 4096, repeats: int = 5) -> float:
    """The machine's best rate of products in the type that training uses, in FLOP/s."""
    dtype = job("data=synthetic").setting.dtype
    rates = []
    for rows in (size // 4, size // 2, size):
        a, b = torch.randn(rows, size).to(dtype), torch.randn(size, size).to(dtype)
        torch.mm(a, b)
        for _ in range(repeats):
            start = time.perf_counter()
            torch.mm(a, b)
            rates.append(2 * rows * size * size / (time.perf_counter() - start))
    return max(rates)


def work(stack: Stack, examples: int) -> float:
    """Floating-point operations of the products of an epoch: forward, weights, inputs.

    The first layer's inputs need no gradient.
    """
    sizes = [p.shape[1:].numel() for p in stack.parameters.values() if p.ndim == 3]
    return stack.members * examples * 2.0 * (3 * sum(sizes) - sizes[0])


class Epochs:
    """Students of one job that differ in the loss's hyperparameters; soft targets are made up."""

    def __init__(self, job: Job, members: int) -> None:
        data, images = job.data, training_images(job.setting, job.run.data.jitter)
        soft = torch.randn(len(images), images.views, data.classes) if job.run.distils else None
        self.training = prepare([job] * members, soft)
        self.training.plan = replace(self.training.plan, epochs=1)
        for name, values in self.training.hyperparameters.items():
            top = values * torch.linspace(0.5, 1.0, members)
            self.training.hyperparameters[name] = top

    def epoch(self) -> float:
        """Seconds of one epoch, without evaluation."""
        start = time.perf_counter()
        self.training.run()
        return time.perf_counter() - start

    @property
    def work(self) -> float:
        """Floating-point operations of one epoch."""
        return work(self.training.stack, len(self.training.transfer.index))
