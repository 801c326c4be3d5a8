"""`python -m bench`: ratios measured side by side; `python -m bench curve`: cost as work grows;
`python -m bench halving`: what halving saves, and what it costs; `python -m bench busy`: the
quickstart beside a busy process; `python -m bench start`: how long commands take that do little;
`python -m bench images`: convolutional students on CIFAR-100, an image folder in DISTILL_DATA;
`python -m bench jobs`: what a job of a sweep costs before it trains;
`python -m bench losses`: steps with each loss against those with kd, a part of the first, too;
`python -m bench slurm`: on a SLURM, beside Hydra's launcher for it, and disturbed at random.

Run it in a checkout, on a machine that does nothing else. Full MNIST is read as `distill` reads it
(DISTILL_DATA). What is measured is printed, and appended to bench/LOG.md.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.commands import busy, start
from bench.field import images
from bench.halving import halving
from bench.jobs import jobs
from bench.losses import against_kd
from bench.ours import Epochs, clock, gemm, job, peak_memory, spread
from bench.post import Post
from bench.slurm import on_slurm
from distill.runs.job import Job
from distill.training.evaluate import logits
from distill.training.inputs import normalised, root

LOG = Path(__file__).with_name("LOG.md")
Rows = Iterator[tuple[str, ...]]
MNIST = ("data=mnist", "data.jitter=2", "loss.temperature=20", "loss.alpha=0.7", "train.epochs=1")


def pairs(
    repeats: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Measurements of both, one after the other."""
    ours()
    both = [(theirs(), ours()) for _ in range(repeats)]
    return [b for _, b in both], [a for a, _ in both]


def against_post(repeats: int) -> Rows:
    """Students against the post's loop, per student and epoch."""
    for what, width, members, batch, wanted in (
        ("one 800-unit student, batch 8192", 800, 1, 8192, 20),
        ("one 800-unit student, batch 512", 800, 1, 512, 15),
        ("64 students of 30 units, batch 512", 30, 64, 512, 450),
    ):
        student = job(*MNIST, f"model.width={width}", f"train.batch_size={batch}")
        ours, post = Epochs(student, members), Post(root(student.run.data), width)
        a, b = pairs(repeats, ours.epoch, post.epoch)
        a = [seconds / members for seconds in a]
        ratios = [y / x for x, y in zip(a, b, strict=True)]
        yield (
            f"{what}, jitter; per student and epoch",
            f"{spread(a)} s",
            f"the post's loop: {spread(b)} s",
            f"{spread(ratios)}x",
            f"at least {wanted}x",
        )


def against_gemm(repeats: int) -> Rows:
    """The rate of whole steps, and of soft targets, against that of the best product."""

    def row(what: str, of: Job, flop: float, seconds: Callable[[], float], wanted: int) -> Any:
        a, b = pairs(repeats, lambda: flop / seconds(), lambda: gemm(of))
        return (
            what,
            f"{spread([x / 1e9 for x in a])} GFLOP/s",
            f"the best GEMM: {spread([x / 1e9 for x in b])} GFLOP/s",
            spread([100 * x / y for x, y in zip(a, b, strict=True)], "{:.0f}") + " %",
            f"at least {wanted} %",
        )

    student = job(*MNIST, "model.width=800", "train.batch_size=512")
    stack = Epochs(student, 8)
    yield row("eight 800-unit students, one stack", student, stack.work, stack.epoch, 70)
    recipe = ("model.width=1200", "model.dropout=0.5", "model.input_dropout=0.2", "loss=hard")
    teacher = job(*MNIST[:2], *recipe, "train.epochs=1", "train.batch_size=512")
    alone = Epochs(teacher)
    yield row("the 1200-unit teacher, dropout, an epoch", teacher, alone.work, alone.epoch, 55)

    data = teacher.data
    few = normalised(teacher.run.data, data.train_inputs[:6000].to(alone.device), jitter=2)

    def soft_targets() -> float:
        start = clock(alone.device)
        for view in range(few.views):
            logits(alone.training.stack, few, view, teacher.setting.dtype)
        return clock(alone.device) - start

    forward = 2.0 * few.views * len(few) * alone.training.stack.size
    yield row("soft targets, 25 views of 6,000 images", teacher, forward, soft_targets, 60)


def per_job(launcher: str, jobs: int, folder: Path) -> float:
    """Seconds that a job of one step costs: those of a sweep less those of a sweep of one job."""

    def sweep(count: int) -> float:
        temperatures = ",".join(str(1 + n / 10) for n in range(count))
        command = [
            sys.executable, "-m", "distill", "-m", "data=synthetic", "model.width=4",
            "teacher.model.width=4", "teacher.train.epochs=1", "train.epochs=1",
            "train.batch_size=100000", f"loss.temperature={temperatures}",
            f"teacher.cache={folder / 'teachers'}", f"hydra/launcher={launcher}",
            f"hydra.sweep.dir={folder / launcher / str(count)}",
        ]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start

    return (sweep(jobs) - sweep(1)) / (jobs - 1)


def of_jobs(_: int) -> Rows:
    """What a job costs besides training."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        per_job("stack", 2, folder / "first")  # which also trains the teacher
        ours, basic = per_job("stack", 1000, folder), per_job("basic", 100, folder)
    yield (
        "a job besides its training, of 1,000 of one step",
        f"{1e3 * ours:.1f} ms",
        f"the basic launcher, 100 jobs: {1e3 * basic:.0f} ms",
        f"1/{basic / ours:.1f}",
        "at most 20 ms, 1/5",
    )


def of_memory(_: int) -> Rows:
    """Peak memory against what is counted, each in a process of its own."""
    for members, width in ((16, 800), (64, 300), (256, 30)):
        options = (*MNIST, f"model.width={width}", "train.batch_size=512")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak, counted = pool.apply(peak_memory, (members, *options))
        yield (
            f"peak memory of {members} students of {width} units",
            f"{peak / 1e6:.0f} MB",
            f"parameters, optimizer and activations: {counted / 1e6:.0f} MB",
            f"{peak / counted:.2f}x",
            "at most 1.5x",
        )


def table(repeats: int) -> Rows:
    """The rows of `python -m bench`."""
    for rows in (against_post, against_gemm, against_kd, of_jobs, of_memory):
        yield from rows(repeats)


def curve(repeats: int) -> Rows:
    """Seconds per student and epoch over K: the MLP's own path, and any module's (vmap)."""
    for width in (30, 100, 300, 800):
        for members in (1, 4, 16, 64, 256):
            student = job(*MNIST, f"model.width={width}", "train.batch_size=512")
            examples = max(4, 64 // max(1, members * width // 800)) * 512
            fast, generic = (
                Epochs(student, members, examples=examples, generic=g) for g in (False, True)
            )
            scale = 60_000 / fast.examples / members
            a, b = pairs(repeats, fast.epoch, generic.epoch)
            yield (
                f"{width}",
                f"{members}",
                spread([x * scale for x in a]),
                spread([x * scale for x in b]),
                spread([y / x for x, y in zip(a, b, strict=True)], "{:.1f}"),
                f"{100 * fast.work / min(a) / gemm(student, repeats=2):.0f} %",
            )


WHAT: dict[str, tuple[Callable[[int], Rows], tuple[str, ...]]] = {
    "table": (table, ("what", "measured", "against", "ratio", "wanted")),
    "losses": (against_kd, ("what", "measured", "against", "ratio", "wanted")),
    "images": (images, ("what", "ours", "the field's loop", "ratio", "wanted")),
    "jobs": (jobs, ("what", "ours", "Hydra's", "ratio", "wanted")),
    "halving": (halving, ("halving", "time / plain", "same choice", "val errors", "test errors")),
    "slurm": (on_slurm, ("what", "measured", "against", "ratio", "wanted")),
    "busy": (busy, ("quickstart", "alone", "/ first", "beside", "/ alone", "/ first alone")),
    "start": (start, ("command", "time", "/ import torch")),
    "curve": (curve, ("width", "K", "s, MLP path", "s, vmap", "vmap / MLP", "of the GEMM rate")),
}


def main() -> None:
    """Measure, print, and append to bench/LOG.md."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", nargs="?", choices=list(WHAT), default="table")
    parser.add_argument("--repeats", type=int, default=3, help="of each pair of measurements")
    options = parser.parse_args()
    measure, head = WHAT[options.what]
    console = Console(width=170)
    shown = Table(*head)
    rows = []
    for row in measure(options.repeats):
        console.print(" | ".join(row))
        shown.add_row(*row)
        rows.append(row)
    console.print(shown)
    cores = len(os.sched_getaffinity(0))
    best = gemm(job("data=synthetic")) / 1e9
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cores} CPU cores"
    lines = [
        f"\n### {date.today()}: python -m bench {options.what} --repeats {options.repeats}\n",
        f"{device}, best GEMM {best:.0f} GFLOP/s, torch {torch.__version__}; medians and ranges.\n",
        *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)),
    ]
    with LOG.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
