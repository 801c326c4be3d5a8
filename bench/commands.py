"""Whole commands: on a machine alone and beside a busy process, and until they have started."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

# What was the default once: threads that spin at each barrier, in one process.
BEFORE = {"GOMP_SPINCOUNT": "300000"}  # the default of GNU OpenMP
WAYS: dict[str, tuple[Mapping[str, str], tuple[str, ...]]] = {
    "before: one process, threads that spin": (BEFORE, ("hydra.launcher.workers=1",)),
    "the default": ({}, ()),
}
SPIN = "while True: pass"
SMALLEST = (
    *("data=synthetic", "model.width=8", "train.epochs=2"),
    *("teacher.model.width=16", "teacher.train.epochs=1"),
)


def seconds(
    command: list[str], folder: Path, environment: Mapping[str, str] | None = None
) -> float:
    """Wall time of a command that keeps its data and teachers in ``folder``."""
    own = {**os.environ, "DISTILL_DATA": str(folder), **(environment or {})}
    if environment is not None and "OMP_WAIT_POLICY" not in environment:
        own.pop("OMP_WAIT_POLICY", None)
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=folder, env=own)
    return time.perf_counter() - start


def _quickstart(environment: Mapping[str, str], options: tuple[str, ...]) -> float:
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "distill", "experiment=quickstart", *options]
        return seconds(command, Path(name), environment)


def busy(repeats: int) -> Iterator[tuple[str, ...]]:
    """The quickstart, its teacher included, alone and beside one process that is always busy."""
    times: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in WAYS}
    for _ in range(repeats):
        for beside in (False, True):
            for way, (environment, options) in WAYS.items():
                other = subprocess.Popen([sys.executable, "-c", SPIN]) if beside else None
                try:
                    times[way][beside].append(_quickstart(environment, options))
                finally:
                    if other is not None:
                        other.kill()
                        other.wait()
    first = statistics.median(times[next(iter(WAYS))][False])
    for way, (alone, beside_it) in times.items():
        a, b = statistics.median(alone), statistics.median(beside_it)
        yield (
            way,
            f"{a:.0f} s",
            f"{a / first:.2f}",
            f"{b:.0f} s",
            f"{b / a:.2f}",
            f"{b / first:.2f}",
        )


def start(repeats: int) -> Iterator[tuple[str, ...]]:
    """Commands that do little, against `import torch`, one after the other."""
    module, code = [sys.executable, "-m"], [sys.executable, "-c"]
    light = "from distill.cli import commands; commands"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = {
            "the smallest run": [*module, "distill", *SMALLEST, "resume=false"],
            "the same again, finished before": [*module, "distill", *SMALLEST],
            "distill --help": [*module, "distill", "--help"],
            "distill-evaluate --help": [*code, f"{light}.evaluate()", "--help"],
            "distill-summary --help": [*code, f"{light}.summary()", "--help"],
            "distill-report --help": [*module, "distill.cli.report", "--help"],
        }
        times: dict[str, list[float]] = {what: [] for what in commands}
        torch: list[float] = []
        seconds([*module, "distill", *SMALLEST], folder)  # which trains the teacher
        for _ in range(repeats):
            torch.append(seconds([sys.executable, "-c", "import torch"], folder))
            for what, command in commands.items():
                times[what].append(seconds(command, folder))
    base = statistics.median(torch)
    yield "import torch", f"{base:.2f} s", "1"
    for what, own in times.items():
        middle = statistics.median(own)
        yield what, f"{middle:.2f} s", f"{middle / base:.2f}"
