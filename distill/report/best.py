"""The best temperature of students by their size: its statistics, and what its figure shows.

Letters: S seeds, K sizes, T temperatures, R resamples of the seeds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.polynomial import polynomial

from distill.report.contents import Sweep
from distill.report.numbers import Plot, errors, groups, label, span, text, varying, words
from distill.report.statistics import LEVEL, RESAMPLES, Interval, percentiles

Array = np.ndarray[Any, np.dtype[Any]]

SEED = 0  # of the bootstrap, whose generator is the same in every report
NEAR = 1.03  # times the fewest errors is as good
PLATEAU = 100.0  # units, up to which the slope is fitted
SIZES = ("width", "epochs", "model.depth", "transfer_examples")
LEAST = 3, 5, 3  # sizes, temperatures and seeds of a figure


def measured(runs: pd.DataFrame, size: str, column: str = "test_errors") -> pd.DataFrame:
    """Errors of each seed (S rows) that has a run of each size and temperature (K times T columns).

    Raises:
        ValueError: no seed has a run of a pair, or several of one, or none has all.
    """
    keys = [size, "temperature"]
    rows = runs.dropna(subset=[*keys, column]).astype({column: float})
    if rows.duplicated([*keys, "seed"]).any():
        raise ValueError(f"more than one {column} of a seed")
    every = pd.MultiIndex.from_product([sorted(rows[key].unique()) for key in keys], names=keys)
    table = rows.pivot(index="seed", columns=keys, values=column).reindex(columns=every)
    for values in every[table.isna().all()]:
        raise ValueError(", ".join(f"{k}={text(v)}" for k, v in zip(keys, values, strict=True)))
    if table.dropna().empty:
        raise ValueError("no seed has all of them")
    return table.dropna()


def resampled(values: Array) -> Array:
    """Means (R, ...) of ``values`` (S, ...) over seeds drawn with replacement.

    A seed is drawn with all that it has. What has as many seeds is given the same draws, so that
    differences of what is resampled are paired.
    """
    seeds = len(values)
    generator = np.random.default_rng(SEED)
    drawn = generator.multinomial(seeds, [1 / seeds] * seeds, RESAMPLES) / seeds
    return np.tensordot(drawn, values, 1)


def best(means: Array, temperatures: Array) -> Array:
    """The temperature (...) with the fewest of mean errors (..., T), which rise.

    It is where a cubic in the logarithm of T, fitted by least squares, has its minimum, if that
    lies within the temperatures given, or else the one of their ends where the cubic is less. An
    end is not taken before a minimum, since where students do as well at all high temperatures
    the end of the cubic says nothing: it may fall there by what a few errors decide.
    """
    x = np.log(temperatures)
    flat = means.reshape(-1, len(x)).T
    fit = polynomial.polyfit(x, flat, 3)  # (4, N)
    _, c1, c2, c3 = fit
    with np.errstate(divide="ignore", invalid="ignore"):  # without a minimum it is not a number
        root = np.sqrt(c2**2 - 3 * c1 * c3)
        where = np.where(c2 > 0, -c1 / (c2 + root), (root - c2) / (3 * c3))
    low, high = polynomial.polyval(x[[0, -1]], fit).T
    ends = np.where(low <= high, temperatures[0], temperatures[-1])
    inside = (where > x[0]) & (where < x[-1])
    return np.where(inside, np.exp(np.where(inside, where, 0)), ends).reshape(means.shape[:-1])


def line(sizes: Array, bests: Array) -> Array:
    """Intercept and slope (2, ...) of the logarithm of ``bests`` (..., K) on that of sizes (K,)."""
    return np.asarray(polynomial.polyfit(np.log(sizes), np.log(bests).T, 1))


@dataclass(frozen=True)
class Optima:
    """Best temperatures of sizes (K,): those ``found`` (K,), and ``draws`` (R, K) of resamples.

    They follow from ``errors`` (S, K, T) at ``temperatures`` (T,).
    """

    sizes: Array
    temperatures: Array
    errors: Array
    found: Array
    draws: Array

    def slope(self, of: Array | None = None) -> tuple[Array, Array]:
        """The slope of `line`, as found () and as resampled (R,); over ``of`` these sizes (K,)."""
        kept = self.sizes > 0 if of is None else of
        sizes = self.sizes[kept]
        return line(sizes, self.found[kept])[1], line(sizes, self.draws[:, kept])[1]

    def interval(self, found: Array, draws: Array, level: float = LEVEL) -> Interval:
        """What was ``found`` () with percentiles of its resamples (R,)."""
        return Interval(len(self.errors), float(found), *percentiles(draws, level))

    @property
    def bounds(self) -> list[str]:
        """For each size what to say of its best at an end of the temperatures: "at most " or so."""
        ends = {self.temperatures[0]: "at most ", self.temperatures[-1]: "at least "}
        return [ends.get(value, "") for value in self.found]

    def __str__(self) -> str:
        """Which temperature is best for which size."""
        each = zip(self.bounds, self.found, self.sizes.tolist(), strict=True)
        return ", ".join(f"{bound}{t:.1f} at {text(size)}" for bound, t, size in each)


def optima(table: pd.DataFrame) -> Optima:
    """The best temperatures of what was `measured`."""
    sizes, grid = (table.columns.unique(level).to_numpy(float) for level in (0, 1))
    errors = table.to_numpy(float).reshape(len(table), len(sizes), len(grid))
    found, draws = (best(means, grid) for means in (errors.mean(axis=0), resampled(errors)))
    return Optima(sizes, grid, errors, found, draws)


@dataclass(frozen=True)
class Bests(Plot):
    """Best temperatures of sizes ``x``, which of those tried are as ``near``, and a line.

    One at an end of the range has a ``bound``; the ``line`` goes through two points.
    """

    x: str
    sizes: tuple[float, ...]
    found: tuple[Interval, ...]
    bound: tuple[str, ...]
    near: tuple[tuple[float, ...], ...]
    line: tuple[tuple[float, float], ...]


def temperatures(sweep: Sweep) -> Iterator[Bests]:
    """The best temperature by width, or else by another size; a figure for each of all else."""
    runs, column = sweep.runs, errors(sweep.runs)
    if column is None or "temperature" not in runs:
        return
    rows = runs[(runs["temperature"] > 0) & runs[column].notna()]
    size = next((k for k in SIZES if k in rows and rows[k].nunique() >= LEAST[0]), None)
    if size is None or rows["temperature"].nunique() < LEAST[1]:
        return
    others = [k for k in varying(rows, size, "temperature") if k not in (size, "temperature")]
    for values, panel in groups(rows, others):
        try:
            found = optima(measured(panel, size, column))
        except ValueError:  # not all combinations, or several runs of a seed
            continue
        seeds, *shape = found.errors.shape
        if all(np.greater_equal([*shape, seeds], LEAST)):
            yield _figure(found, size, label(others, values))


def _figure(found: Optima, size: str, held: str) -> Bests:
    x, sizes, means = words(size), found.sizes, found.errors.mean(axis=0)
    few = sizes <= PLATEAU
    few |= size != "width" or few.sum() < LEAST[0]
    steep = found.interval(*found.slope(few))
    ends = sizes[few][[0, -1]].tolist()
    intercept, rise = line(sizes[few], found.found[few])
    near = [found.temperatures[row <= NEAR * row.min()] for row in means]
    caption = (
        f"Best temperature by {x}: {found}. The slope of its logarithm on that of {x}, from "
        f"{text(ends[0])} to {text(ends[1])}, is {span(steep)} (n = {steep.n})."
    )
    return Bests(
        "best-temperature", f"best temperature by {x}", held, "best temperature", caption, x,
        tuple(sizes.tolist()),
        tuple(found.interval(*pair) for pair in zip(found.found, found.draws.T, strict=True)),
        tuple(found.bounds), tuple(tuple(map(float, t)) for t in near),
        tuple((s, float(np.exp(intercept) * s**rise)) for s in ends),
    )  # fmt: skip
