"""The best temperatures of students by their size: their statistics, and what their figure shows.

As good as the best are temperatures within 5 % of the fewest errors. Slopes are of the least of
them, which is a figure of its own both where errors rise again above it and where they stay flat,
as those of large students do: there the fewest errors are where chance puts them.

Letters: S seeds, K sizes, T temperatures, R resamples of the seeds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.polynomial import polynomial
from scipy import stats

from distill.report.contents import Sweep
from distill.report.numbers import Plot, errors, groups, label, share, span, text, varying, words
from distill.report.statistics import (
    LEVEL,
    RESAMPLES,
    SIGNIFICANT,
    Interval,
    greater,
    holm,
    percentiles,
)

Array = np.ndarray[Any, np.dtype[Any]]

SEED = 0  # of the bootstrap, whose generator is the same in every report
NEAR = 1.05  # times the fewest errors is as good
RISING = 30.0  # units, up to which the slope is fitted
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


def resampled(values: Array, generated: int = SEED) -> Array:
    """Means (R, ...) of ``values`` (S, ...) over seeds drawn with replacement.

    A seed is drawn with all that it has. What has as many seeds is given the same draws, so that
    differences of what is resampled are paired; not so where another seed ``generated`` them.
    """
    seeds = len(values)
    generator = np.random.default_rng(generated)
    drawn = generator.multinomial(seeds, [1 / seeds] * seeds, RESAMPLES) / seeds
    return np.tensordot(drawn, values, 1)


def edge(means: Array, temperatures: Array, more: float = 0) -> Array:
    """The first of ``temperatures`` (T,) at which mean errors (..., T) are as good as the fewest.

    As good are `NEAR` times the fewest, or, if it is given, so many ``more`` errors than these.
    Between two temperatures the mean errors are a line in log T. The first temperature is the edge
    (...) where it is as good itself. Given both from behind, it is the last that is as good.

    Example:
        >>> round(float(edge(np.array([120, 110, 100, 130]), np.array([1, 2, 4, 8]))), 2)
        2.83
    """
    x, fewest = np.log(temperatures), means.min(axis=-1, keepdims=True)
    limit = fewest + more if more else NEAR * fewest
    first = (means <= limit).argmax(axis=-1, keepdims=True)
    before = np.maximum(first - 1, 0)
    high, low = (np.take_along_axis(means, place, -1) for place in (before, first))
    part = np.divide(high - limit, high - low, out=np.zeros_like(high, float), where=first > 0)
    return np.asarray(np.exp(x[before] + part * (x[first] - x[before]))[..., 0])


def halves(seeds: int) -> Iterator[tuple[Array, Array]]:
    """Each half of the places of so many seeds (each second one), and the other half."""
    places = np.arange(seeds)
    for half in (0, 1):
        yield places[half::2], places[1 - half :: 2]


def worse_ends(errors: Array) -> Array:
    """P values (2, K) that errors (S, K, T) are more at the lowest and the highest temperature.

    More than at the three neighbours, between these ends, that do best in the other half of the
    seeds (each second one): at a best that the same seeds choose, errors are few by chance, too.
    They are of one-sided t tests within seeds.
    """
    threes = sliding_window_view(errors[..., 1:-1], 3, axis=-1).sum(axis=-1)  # (S, K, T - 4)
    best = np.empty(errors.shape[:2])
    for own, other in halves(len(errors)):
        chosen = threes[other].sum(axis=0).argmin(axis=-1)  # (K,)
        best[own] = np.take_along_axis(threes[own], chosen[None, :, None], -1)[..., 0]
    p_values = [greater([*costs]) for end in (0, -1) for costs in (3 * errors[..., end] - best).T]
    return np.reshape(p_values, (2, -1))


def fit(sizes: Array, edges: Array) -> Array:
    """Intercept and slope (2, ...) of the logarithm of ``edges`` (..., K) on that of sizes."""
    return np.asarray(polynomial.polyfit(np.log(sizes), np.log(edges).T, 1))


@dataclass(frozen=True)
class Optima:
    """The best temperatures of sizes (K,), from ``errors`` (S, K, T) at ``temperatures`` (T,).

    As good as the best are those from ``least`` (K,) to ``most`` (K,); ``draws`` (R, K) are the
    least of resamples, and ``worse`` (2, K) says whether the lowest and the highest temperature
    are significantly worse, without which there is no best one between them.
    """

    sizes: Array
    temperatures: Array
    errors: Array
    least: Array
    most: Array
    draws: Array
    worse: Array

    def slope(self, of: Array) -> tuple[Array, Array]:
        """The slope of `fit`, as found () and resampled (R,), over ``of`` the sizes (K,)."""
        found, draws = (
            fit(self.sizes[of], edges[..., of])[1] for edges in (self.least, self.draws)
        )
        return found, draws

    def interval(self, found: Array, draws: Array) -> Interval:
        """What was ``found`` () with percentiles of its resamples (R,).

        They are those as far apart as Student's t is wider than the spread of resamples, since
        percentiles of few seeds lie too close (Hesterberg 2015, doi 10.1080/00031305.2015.1089789).
        """
        n = len(self.errors)
        if n < 2:
            return Interval(n, float(found), math.nan, math.nan)
        wide = stats.t.ppf((1 + LEVEL) / 2, n - 1) * math.sqrt(n / (n - 1))
        return Interval(n, float(found), *percentiles(draws, 2 * stats.norm.cdf(wide) - 1))

    @property
    def located(self) -> Array:
        """Whether both ends are worse than what lies between them (K,)."""
        return np.asarray(self.worse.all(axis=0))

    @property
    def told(self) -> list[str]:
        """For each size what may be said of its best: a range, a bound, or that it is nowhere."""
        words = {
            (True, True): "{:.1f} to {:.1f}",
            (True, False): "at least {:.1f}",
            (False, True): "at most {1:.1f}",
            (False, False): "not located",
        }
        each = zip(self.worse.T.tolist(), self.least, self.most, strict=True)
        return [words[tuple(worse)].format(low, high) for worse, low, high in each]

    def __str__(self) -> str:
        """What may be said of which size."""
        each = zip(self.told, self.sizes.tolist(), strict=True)
        return ", ".join(f"{told} at {text(size)}" for told, size in each)


def optima(table: pd.DataFrame, more: float = 0) -> Optima:
    """The best temperatures of what was `measured`; ``more`` errors are as good (see `edge`)."""
    sizes, grid = (table.columns.unique(level).to_numpy(float) for level in (0, 1))
    errors = table.to_numpy(float).reshape(len(table), len(sizes), len(grid))
    means = errors.mean(axis=0)
    least, most = edge(means, grid, more), edge(means[:, ::-1], grid[::-1], more)
    p_values = holm(worse_ends(errors).ravel().tolist())
    worse = np.reshape(p_values, (2, -1)) < SIGNIFICANT
    return Optima(sizes, grid, errors, least, most, edge(resampled(errors), grid, more), worse)


@dataclass(frozen=True)
class Bests(Plot):
    """Of sizes ``x``, the ``least`` temperature as good as the best, the ``most``, and a line.

    ``told`` is what may be said of the best; the ``line`` goes through two points.
    """

    x: str
    sizes: tuple[float, ...]
    least: tuple[Interval, ...]
    most: tuple[float, ...]
    told: tuple[str, ...]
    located: tuple[bool, ...]
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
            table = measured(panel, size, column)
        except ValueError:  # not all combinations, or several runs of a seed
            continue
        shape = [*table.columns.levshape, len(table)]  # type: ignore[attr-defined]
        if all(np.greater_equal(shape, LEAST)):
            yield _figure(optima(table), size, label(others, values))


def _figure(found: Optima, size: str, held: str) -> Bests:
    x, sizes = words(size), found.sizes
    few = sizes <= RISING
    few |= size != "width" or few.sum() < 2
    steep = found.interval(*found.slope(few))
    ends = sizes[few][[0, -1]].tolist()
    intercept, rise = fit(sizes[few], found.least[few])
    caption = (
        f"Best temperature by {x}, within {share(NEAR - 1)} of the fewest errors: {found}. The "
        f"slope of the logarithm of the least such temperature on that of {x}, from "
        f"{text(ends[0])} to {text(ends[1])}, is {span(steep)} (n = {steep.n})."
    )
    if not found.located.all():
        caption += " Hollow: an end of the temperatures is not significantly worse."
    return Bests(
        "best-temperature", f"best temperature by {x}", held, "best temperature", caption, x,
        tuple(sizes.tolist()),
        tuple(found.interval(*pair) for pair in zip(found.least, found.draws.T, strict=True)),
        tuple(found.most.tolist()), tuple(found.told), tuple(found.located.tolist()),
        tuple((s, float(np.exp(intercept) * s**rise)) for s in ends),
    )  # fmt: skip
