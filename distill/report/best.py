"""The best temperature of students by their size: its statistics, and what its figure shows.

Letters: S seeds, K settings (sizes, say), T temperatures, R resamples of the seeds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.polynomial import polynomial

from distill.report.contents import Sweep
from distill.report.numbers import Plot, errors, groups, label, span, text, varying, words
from distill.report.statistics import LEVEL, Interval

Array = np.ndarray[Any, np.dtype[Any]]

RESAMPLES, SEED = 10_000, 0  # of the bootstrap, whose generator is the same in every report
NEAR = 1.03  # times the fewest errors is as good
PLATEAU = 100.0  # units, up to which the slope is fitted
SIZES = ("width", "epochs", "model.depth", "transfer_examples")
LEAST = 3, 5, 3  # sizes, temperatures and seeds of a figure


@dataclass(frozen=True)
class Measured:
    """Errors (S, K, T) of all ``seeds`` that have each of K ``settings`` at each temperature.

    Others have ``left`` some of these out, and do not count.
    """

    settings: tuple[tuple[Any, ...], ...]
    temperatures: Array
    errors: Array
    seeds: tuple[int, ...]
    left: tuple[int, ...]


def measured(runs: pd.DataFrame, *by: str, column: str = "test_errors") -> Measured:
    """The errors of ``runs``, whose settings are all combinations of the values of ``by``.

    Raises:
        ValueError: a setting has no run, a seed has several of one, or no seed has all.
    """
    keys = [*by, "temperature"]
    rows = runs.dropna(subset=[*keys, column]).astype({column: float})
    if rows.duplicated([*keys, "seed"]).any():
        raise ValueError(f"more than one {column} of a seed")
    levels = [sorted(rows[key].unique()) for key in keys]
    every = pd.MultiIndex.from_product(levels, names=keys)
    table = rows.pivot(index="seed", columns=keys, values=column).reindex(columns=every)
    for values in every[table.isna().all()]:
        raise ValueError(", ".join(f"{k}={text(v)}" for k, v in zip(keys, values, strict=True)))
    whole = table.dropna()
    if whole.empty:
        raise ValueError("no seed has all of them")
    settings = tuple(dict.fromkeys(values[:-1] for values in every))
    array = whole.to_numpy(float).reshape(len(whole), len(settings), len(levels[-1]))
    left = tuple(seed for seed in table.index if seed not in whole.index)
    return Measured(settings, np.array(levels[-1], float), array, tuple(whole.index), left)


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


def slope(sizes: Array, bests: Array) -> Array:
    """The slope of `line`."""
    return np.asarray(line(sizes, bests)[1])


def percentiles(n: int, found: Array, draws: Array, level: float = LEVEL) -> Interval:
    """What was ``found`` () of ``n`` seeds, with the percentiles of what resamples (R,) gave."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(n, float(found), float(low), float(high))


def bounds(bests: Array, temperatures: Array) -> list[str]:
    """For each of ``bests`` (K,), what to say of one at an end of the range: "at most " or not."""
    ends = {temperatures[0]: "at most ", temperatures[-1]: "at least "}
    return [ends.get(value, "") for value in bests]


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
            found = measured(panel, size, column=column)
        except ValueError:  # not all combinations, or several runs of a seed
            continue
        shape = len(found.settings), len(found.temperatures), len(found.seeds)
        if all(np.greater_equal(shape, LEAST)):
            yield _figure(found, size, label(others, values))


def _figure(found: Measured, size: str, held: str) -> Bests:
    means, n, x = found.errors.mean(axis=0), len(found.seeds), words(size)
    sizes = np.array([float(value) for (value,) in found.settings])
    bests = best(means, found.temperatures)
    draws = best(resampled(found.errors), found.temperatures)
    few = sizes <= PLATEAU
    few |= size != "width" or few.sum() < LEAST[0]
    steep = percentiles(n, slope(sizes[few], bests[few]), slope(sizes[few], draws[:, few]))
    bound = bounds(bests, found.temperatures)
    ends = sizes[few][[0, -1]]
    intercept, rise = line(sizes[few], bests[few])
    near = [found.temperatures[row <= NEAR * row.min()] for row in means]
    said = ", ".join(
        f"{b}{t:.1f} at {text(s)}" for b, t, s in zip(bound, bests, sizes.tolist(), strict=True)
    )
    caption = (
        f"Best temperature by {x}: {said}. The slope of its logarithm on that of {x}, from "
        f"{text(float(ends[0]))} to {text(float(ends[1]))}, is {span(steep)} (n = {n})."
    )
    return Bests(
        "best-temperature", f"best temperature by {x}", held, "best temperature", caption, x,
        tuple(sizes.tolist()),
        tuple(percentiles(n, b, d) for b, d in zip(bests, draws.T, strict=True)),
        tuple(bound), tuple(tuple(map(float, t)) for t in near),
        tuple((float(s), float(np.exp(intercept) * s**rise)) for s in ends),
    )  # fmt: skip
