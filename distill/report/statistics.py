"""The statistics of the report: all of them, from scipy and statsmodels.

Values are of independent seeds (n,). Two settings are compared within seeds, which share their
teacher, initialisation and data order, so that tests are of the differences (n,).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

LEVEL = 0.95  # of every interval
RESAMPLES = 10_000  # of a bootstrap
SIGNIFICANT = 0.05  # below it, a p value speaks against its null hypothesis


@dataclass(frozen=True)
class Interval:
    """A mean of ``n`` values with its 95 % confidence interval by Student's t.

    Of one value there is a mean and no interval: ``low`` and ``high`` are not a number.
    """

    n: int
    mean: float
    low: float
    high: float


def interval(values: Iterable[float], least: float = 0.0) -> Interval:
    """The mean of ``values`` (n,) and its interval; their deviation counts as ``least`` at least.

    Values that were rounded to a grid may be equal by their rounding alone.

    Raises:
        ValueError: there are no values.
    """
    array = np.array([*values], dtype=float)
    n = len(array)
    if n == 0:
        raise ValueError("a mean needs at least one value")
    mean = float(array.mean())
    if n == 1:
        return Interval(1, mean, math.nan, math.nan)
    spread = max(float(array.std(ddof=1)), least)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * spread / math.sqrt(n)
    return Interval(n, mean, mean - half, mean + half)


def greater(differences: Sequence[float], than: float = 0.0, least: float = 0.0) -> float:
    """The p value of a one-sided t test that the mean of ``differences`` is above ``than``.

    Small where it is. Their standard deviation counts as at ``least`` that; without any spread
    but rounding's it is 0, 0.5 or 1 by the mean alone.

    Example:
        >>> greater([1.0, 1.0, 1.0]), round(greater([1.0, 1.0, 1.0], least=0.5), 3)
        (0.0, 0.037)
    """
    array = np.asarray(differences, dtype=float) - than
    if len(array) < 2:
        return math.nan
    if least > array.std(ddof=1):
        t = array.mean() * math.sqrt(len(array)) / least
        return float(stats.t.sf(t, len(array) - 1))
    if np.ptp(array) <= 1e-12 * np.abs(array).max():
        return float(0.5 - 0.5 * np.sign(array[0]))
    return float(stats.ttest_1samp(array, 0.0, alternative="greater").pvalue)


def differ(differences: Sequence[float]) -> float:
    """The p value of a two-sided t test that the mean of ``differences`` is not 0.

    Small where it is not. Without any spread it is 0 or 1 by the mean alone.
    """
    return min(1.0, 2 * min(greater(differences), greater([-d for d in differences])))


def equivalent(differences: Sequence[float], margin: float) -> float:
    """The p value of two one-sided t tests that the mean lies within -``margin`` and ``margin``.

    Small where it does (Schuirmann 1987, doi 10.1007/BF01068419).
    """
    opposite = [-d for d in differences]
    return max(greater(differences, -margin), greater(opposite, -margin))


def one_more(values: Iterable[float]) -> tuple[float, float]:
    """The 95 % prediction interval of one more value, by Student's t; of one value there is none.

    Example:
        >>> low, high = one_more([60, 64, 68])
        >>> round(low, 1), round(high, 1)
        (44.1, 83.9)
    """
    found = interval(values)
    half = (found.high - found.mean) * math.sqrt(found.n + 1)
    return found.mean - half, found.mean + half


def of_both(wrong: "np.ndarray[Any, Any]") -> tuple[float, float]:
    """The 95 % interval of mean errors over seeds and over test images, both of which are a sample.

    A percentile bootstrap that draws seeds and images anew, each with replacement (Owen 2007, The
    pigeonhole bootstrap, doi 10.1214/07-AOAS122); it errs on the wide side.

    Args:
        wrong: truths (n, N): whether seed n gets test image N wrong.

    Example:
        >>> low, high = of_both(np.eye(10, 1000, dtype=bool))  # an error a seed, of images apart
        >>> low < 1 < high
        True
    """
    n, images = wrong.shape
    chance = np.random.default_rng(0)
    seeds = chance.multinomial(n, [1 / n] * n, RESAMPLES) / n  # (R, n)
    hard = np.flatnonzero(wrong.any(0))  # images that none gets wrong add nothing
    rest = images - len(hard)
    drawn = chance.multinomial(images, [*[1 / images] * len(hard), rest / images], RESAMPLES)
    means = ((seeds @ wrong[:, hard]) * drawn[:, :-1]).sum(1)
    return percentiles(means)


def percentiles(draws: "np.ndarray[Any, Any]", level: float = LEVEL) -> tuple[float, float]:
    """The interval of a bootstrap that drew ``draws`` (R,)."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def apart(a: Sequence[float], b: Sequence[float]) -> float:
    """The p value of Student's two-sided t test that two samples have different means.

    Not a number where neither has a spread to judge by.
    """
    if len(a) + len(b) < 3:
        return math.nan
    if max(np.ptp(a), np.ptp(b)) == 0:
        return 1.0 if a[0] == b[0] else 0.0
    return float(stats.ttest_ind(a, b).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several tests, adjusted by Holm's (1979) step-down method."""
    adjusted: list[float] = multipletests(p_values, method="holm")[1].tolist()
    return adjusted
