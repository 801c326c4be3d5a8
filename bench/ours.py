"""Epochs of this project's trainer, timed, and the work that they hold."""

import time
from dataclasses import dataclass

import torch
from hydra import compose, initialize_config_dir

from distill.config import parse
from distill.data.views import Images
from distill.job import Job, fresh, training_images
from distill.launcher import CONF
from distill.stack import Stack
from distill.train import Plan, TransferSet, train


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


@dataclass
class Epochs:
    """A stack of ``members`` students of a job that trains with made-up soft targets."""

    job: Job
    members: int

    def __post_init__(self) -> None:
        job, members = self.job, self.members
        run, data = job.run, job.data
        self.stack = fresh(run.model, data, "model", members, 0, job.setting.device)
        images: Images = training_images(job.setting, run.data.jitter)
        soft = torch.randn(len(images), images.views, data.classes) if run.distils else None
        self.transfer = TransferSet(images, data.train_labels, job.index, soft)
        self.optimizer = run.optim.function(
            list(self.stack.parameters.values()),
            list(self.stack.trainable(job.setting.dtype).values()),
            **run.optim.options
            | {"lr": [run.optim.lr] * members, "weight_decay": [run.optim.weight_decay] * members},
        )
        spread = torch.linspace(0.5, 1.5, members)  # as in a sweep: no two are the same
        self.hyperparameters = {
            name: (spread * value).clamp(max=1.0 if name == "alpha" else 1e9)
            for name, value in run.loss.options.items()
        }

    def epoch(self) -> float:
        """Seconds of one epoch, without evaluation."""
        run = self.job.run
        start = time.perf_counter()
        train(
            self.stack,
            self.optimizer,
            self.transfer,
            run.loss.function,
            self.hyperparameters,
            Plan(1, run.train.batch_size, "constant", 0.0, self.job.setting.dtype),
            0,
            lambda _: {},
            lambda *_: None,
        )
        return time.perf_counter() - start

    @property
    def work(self) -> float:
        """Floating-point operations of one epoch."""
        return work(self.stack, len(self.transfer.index))
