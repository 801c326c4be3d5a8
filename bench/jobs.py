"""What a job of a sweep costs before it trains, against Hydra's own composition of each."""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.ours import _resident, spread

SMALL = ("data=synthetic", "model.width=1", "train.epochs=1")
JOBS, THEIRS = 10_000, 50
SWEEPS = {
    "10,000 seeds": (f"seed=range({JOBS})",),
    "100 temperatures x 100 seeds": ("loss.temperature=range(1,101)", "seed=range(100)"),
}


def planned(overrides: Sequence[str]) -> tuple[float, float]:
    """Milliseconds and kilobytes that a job of a sweep takes until the first could train."""
    from distill.cli.main import perform
    from distill.cli.untouched import untouched
    from distill.sweeps.launcher import StackLauncher

    with tempfile.TemporaryDirectory() as name, untouched():
        sweep = ("-m", *SMALL, f"hydra.sweep.dir={Path(name) / 'sweep'}")
        found: list[tuple[float, int, int]] = []

        def reached(_: object, members: Sequence[object]) -> list[object]:
            found.append((time.process_time(), _resident("VmRSS"), len(members)))
            return []

        StackLauncher._train = reached  # type: ignore[method-assign, assignment]
        perform([*sweep, "seed=0,1"])  # which imports all there is to import
        start = time.process_time()
        perform([*sweep, *overrides])
    (_, before, _), (end, after, count) = found
    return 1e3 * (end - start) / count, (after - before) / count / 1e3


def composed(count: int) -> tuple[float, float]:
    """The same of Hydra's composition alone, of so many jobs whose configs are kept."""
    from hydra import compose, initialize_config_dir

    from distill.system.conf import CONF

    with initialize_config_dir(str(CONF)):
        kept = [compose("config", list(SMALL))]
        start, before = time.process_time(), _resident("VmRSS")
        kept += [compose("config", [*SMALL, f"seed={n}"]) for n in range(count)]
        end, after = time.process_time(), _resident("VmRSS")
    return 1e3 * (end - start) / count, (after - before) / count / 1e3


def jobs(repeats: int) -> Iterator[tuple[str, ...]]:
    """Processor time and memory a job, each in a process of its own, one after the other."""
    context = multiprocessing.get_context("spawn")
    for what, overrides in SWEEPS.items():
        ours, theirs = [], []
        for _ in range(repeats):
            with context.Pool(1) as pool:
                theirs.append(pool.apply(composed, (THEIRS,)))
            with context.Pool(1) as pool:
                ours.append(pool.apply(planned, (overrides,)))
        for n, (unit, wanted) in enumerate((("ms", "at most 1 ms"), ("kB", "at most 20 kB"))):
            a, b = [pair[n] for pair in ours], [pair[n] for pair in theirs]
            yield (
                f"{what}: a job until it could train, {unit}",
                spread(a),
                f"composing it: {spread(b)}",
                f"1/{statistics.median(b) / statistics.median(a):.0f}",
                wanted,
            )
