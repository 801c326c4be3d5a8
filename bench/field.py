"""Convolutional students on CIFAR-100 against the field's loop, written anew from its description.

That is a DataLoader with workers that decode each picture, pad, crop and mirror it by Pillow, a
resnet56 teacher evaluated within the loop, SGD with momentum, one student at a time.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from bench.ours import Epochs, clock, gemm, job, peak_memory, spread
from distill.data.dataset import load
from distill.runs.job import Job
from distill.teachers.find import stand_in
from distill.training.build import build, multiply_adds
from distill.training.inputs import read, root

FOLDER = "CIFAR100"  # in DISTILL_DATA: train/CLASS/*.png, test/CLASS/*.png
BATCH, TEMPERATURE, WARM, BATCHES = 128, 4.0, 3, 10


def options(model: str) -> tuple[str, ...]:
    """A run on CIFAR-100 as the field trains it, taught by a resnet56."""
    folder = root(job("data=synthetic").run.data) / FOLDER
    return (
        *("data=image_folder", f"data.root={folder}", "data.jitter=4", "data.flip=true"),
        *("teacher=trained", "model@teacher.model=resnet56", f"model={model}"),
        *("optim=sgd", "optim.lr=0.05"),
        *(f"train.batch_size={BATCH}", "train.epochs=240", f"loss.temperature={TEMPERATURE}"),
    )


class Field:
    """One student and its teacher, in the loop that most public distillation code has."""

    def __init__(self, of: Job) -> None:
        change = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
            ]
        )
        self.loader = DataLoader(
            datasets.ImageFolder(str(Path(str(of.run.data.root)) / "train"), change),
            batch_size=BATCH,
            shuffle=True,
            num_workers=len(os.sched_getaffinity(0)),
            pin_memory=torch.cuda.is_available(),
        )
        self.device = of.setting.device
        data = read(of.run.data)
        assert of.run.teacher.model is not None
        self.student: nn.Module = build(of.run.model, data, "model").to(self.device).train()
        self.teacher: nn.Module = build(of.run.teacher.model, data, "teacher.model")
        self.teacher.to(self.device).eval()
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4
        )

    def batch(self) -> float:
        """Seconds of a batch, the median of some."""
        times = []
        start = clock(self.device)
        for inputs, labels in islice(self.loader, WARM + BATCHES):
            x, y = inputs.to(self.device), labels.to(self.device)
            with torch.no_grad():
                soft = F.softmax(self.teacher(x) / TEMPERATURE, -1)
            logits = self.student(x)
            kl = F.kl_div(F.log_softmax(logits / TEMPERATURE, -1), soft, reduction="batchmean")
            loss = 0.9 * TEMPERATURE**2 * kl + 0.1 * F.cross_entropy(logits, y)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            loss.item()
            times.append(clock(self.device) - start)
            start = clock(self.device)
        return statistics.median(times[WARM:])


class Ours:
    """Students of a job in one stack, their soft targets cached or, if ``online``, made anew."""

    def __init__(self, of: Job, members: int, *, online: bool = False) -> None:
        way = of.way if online else None
        teacher = None if way is None else stand_in(of.setting, of.run.teacher, way)
        self.epochs = Epochs(of, members, examples=BATCHES * BATCH, teacher=teacher)
        self.members = members
        self.work = 6.0 * BATCH * members * multiply_adds(of.run.model, of.run.data)

    def step(self) -> float:
        """Seconds of a batch of the whole stack."""
        return self.epochs.epoch() / BATCHES

    def share(self) -> float:
        """Seconds of a batch of one student."""
        return self.step() / self.members


def _row(
    what: str,
    unit: str,
    both: tuple[Callable[[], float], Callable[[], float]],
    repeats: int,
    wanted: str,
) -> tuple[str, ...]:
    """Ours and theirs, one after the other, and by what theirs is slower."""
    ours, theirs = both
    pairs = [(theirs(), ours()) for _ in range(repeats)]
    a, b = [x for _, x in pairs], [y for y, _ in pairs]
    ratios = [y / x for y, x in pairs]
    return what, f"{spread(a)} {unit}", f"{spread(b)} {unit}", f"{spread(ratios)}x", wanted


def reading(folder: Path) -> Iterator[tuple[str, ...]]:
    """Reading the whole folder, the first time and the second, against torchvision's classes."""
    source = job(*options("resnet8")).run.data

    def torchvisions() -> float:
        plain = transforms.PILToTensor()
        start = time.perf_counter()
        for part in ("train", "test"):
            found = datasets.ImageFolder(str(folder / part), plain)
            for _ in DataLoader(found, batch_size=BATCH, num_workers=2):
                pass
        return time.perf_counter() - start

    def ours() -> float:
        start = time.perf_counter()
        load(source)
        return time.perf_counter() - start

    def anew() -> float:
        real = folder.resolve()  # beside which what was decoded is kept
        for kept in real.parent.glob(f"{real.name}-{'[0-9a-f]' * 8}.safetensors"):
            kept.unlink()
        return ours()

    torchvisions()  # so that neither reads from a cold disk
    yield _row("reading the folder, first", "s", (anew, torchvisions), 1, "at least 1x")
    yield _row("reading the folder, again", "s", (ours, torchvisions), 1, "at least 50x")


def images(repeats: int) -> Iterator[tuple[str, ...]]:
    """The rows of `python -m bench images`."""
    one, eight = job(*options("resnet20")), job(*options("resnet8"))
    yield from reading(Path(str(one.run.data.root)))
    loop = Field(one)
    yield _row(
        "a resnet20, cached soft targets, a batch",
        *("s", (Ours(one, 1).step, loop.batch), repeats, "at least 2x"),
    )
    loop = Field(eight)
    yield _row(
        "eight resnet8, cached soft targets, a batch and student",
        *("s", (Ours(eight, 8).share, loop.batch), repeats, "at least 5x"),
    )
    yield _row(
        "eight resnet8, the teacher online, a batch and student",
        *("s", (Ours(eight, 8, online=True).share, loop.batch), repeats, "at least 3x"),
    )
    for what, of in (("resnet20", one), ("resnet8", eight)):
        ours = Ours(of, 1)
        rates = [(ours.work / ours.step(), gemm(of)) for _ in range(repeats)]
        yield (
            f"a step of a {what}",
            f"{spread([a / 1e9 for a, _ in rates])} GFLOP/s",
            f"the best GEMM: {spread([b / 1e9 for _, b in rates])} GFLOP/s",
            f"{spread([100 * a / b for a, b in rates], '{:.0f}')} %",
            "at least 50 %",
        )
    for members, model in ((1, "resnet20"), (8, "resnet8")):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak, counted = pool.apply(peak_memory, (members, *options(model)))
        yield (
            f"peak memory of {members} {model}",
            f"{peak / 1e6:.0f} MB",
            f"counted: {counted / 1e6:.0f} MB",
            f"{peak / counted:.2f}x",
            "at most 1.5x",
        )
