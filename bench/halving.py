"""A sweep that is halved against one that is not: what each finds, and how long it takes.

Both train the same configurations from the same seeds. What each would choose on the validation
split is then compared on the test set, which neither looked at to choose.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from scipy.stats import t as student_t

SWEEP = (
    *("data=mnist", "data.validation=0.16667", "model.width=30", "train.epochs=27"),
    *("loss.temperature=1,2,4,8,16,32", "loss.alpha=0.5,1", "optim.lr=0.0005,0.001,0.002,0.004"),
)


def chosen(folder: Path, sweep: tuple[str, ...], *options: str) -> tuple[float, pd.Series]:
    """Seconds of a sweep of 48 students, and the run that it would choose."""
    command = [sys.executable, "-m", "distill", "-m", *sweep, *options, f"hydra.sweep.dir={folder}"]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    runs = pd.read_csv(folder / "summary.csv")
    best = runs[runs["status"] == "complete"].sort_values(["val_errors", "val_loss"]).iloc[0]
    return seconds, best


def interval(values: list[float]) -> str:
    """The mean, and half of its 95 % interval by Student's t."""
    n = len(values)
    half = (
        student_t.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5 if n > 1 else float("nan")
    )
    return f"{statistics.mean(values):.1f} +- {half:.1f}"


def halving(repeats: int) -> Iterator[tuple[str, ...]]:
    """For each rungs and factor: the time and the choice of the halved sweep, over seeds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = f"teacher.cache={folder / 'teachers'}"
        chosen(folder / "first", (*SWEEP[:3], cache, "train.epochs=1"))  # trains the teacher
        sweep = (*SWEEP, cache)
        plain = [chosen(folder / f"plain{n}", sweep, f"seed={n}") for n in range(repeats)]
        for rungs, factor in ((2, 3), (3, 2)):
            options = (f"halving.rungs={rungs}", f"halving.factor={factor}")
            halved = [
                chosen(folder / f"{rungs}-{factor}-{seed}", sweep, f"seed={seed}", *options)
                for seed in range(repeats)
            ]
            pairs = list(zip(plain, halved, strict=True))
            same = sum(p["run"] == h["run"] for (_, p), (_, h) in pairs)
            differences = {
                part: [float(h[f"{part}_errors"] - p[f"{part}_errors"]) for (_, p), (_, h) in pairs]
                for part in ("val", "test")
            }
            yield (
                f"{rungs} rungs, factor {factor}",
                f"{statistics.median(h / p for (p, _), (h, _) in pairs):.2f}",
                f"{same} of {repeats}",
                interval(differences["val"]),
                interval(differences["test"]),
            )
