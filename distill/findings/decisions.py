"""How claims are decided: from the runs of a sweep to estimates, a verdict and why.

Each is given runs that meet the claim's preconditions, and raises KeyError or ValueError where some
are lacking. `distill.findings.claims` has the preconditions, and each test in words.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from distill.report.contents import NOT, REPRODUCED, UNDECIDED, Estimate
from distill.report.numbers import counted, text
from distill.report.statistics import (
    SIGNIFICANT,
    equivalent,
    greater,
    holm,
    interval,
    of_both,
    one_more,
)
from distill.system.bits import unpacked

STATED = 0.6667  # alpha: the one weight that the paper states, 0.5 of labels beside T^2 (section 4)
MARGIN = 0.10  # of a source's figure, which is of a single run: no more than it is not inferior


@dataclass(frozen=True)
class Decision:
    """What a test gave: the estimates that it decides by, and others ``beside`` them."""

    estimates: tuple[Estimate, ...]
    verdict: str
    outcome: str
    beside: tuple[Estimate, ...] = ()


@dataclass(frozen=True)
class Part:
    """What a test gave of one figure: the p values that it is as claimed, and the opposite.

    That of an opposite that is not tested is not a number.
    """

    estimate: Estimate
    p: float
    opposite: float
    outcome: str


def together(parts: Sequence[Part], beside: Iterable[Estimate] = ()) -> Decision:
    """A claim of several parts; the estimates ``beside`` them decide nothing."""
    estimates = tuple(part.estimate for part in parts)
    outcome = "; ".join(part.outcome for part in parts)
    return Decision(estimates, of_parts(parts), outcome, tuple(beside))


def of_parts(parts: Sequence[Part]) -> str:
    """The verdict of several parts, as `decide` has it."""
    return decide([part.p for part in parts], [part.opposite for part in parts])


def decide(each: Sequence[float], opposite: Sequence[float]) -> str:
    """The verdict by the p values that each part is as claimed, and that each is the opposite.

    Reproduced if all parts are as claimed, for which no p value has to be adjusted (it is an
    intersection-union test); not reproduced if the opposite of one is significant by Holm's method.

    Example:
        >>> decide([0.01, 0.04], [0.9, 0.8]), decide([0.01, 0.9], [0.9, 0.03])
        ('reproduced', 'not decided')
        >>> decide([0.01, 0.9], [0.9, 0.02])
        'not reproduced'
    """
    if min(holm([p for p in opposite if not math.isnan(p)]), default=1.0) < SIGNIFICANT:
        return NOT
    return REPRODUCED if all(p < SIGNIFICANT for p in each) else UNDECIDED


def by_seed(runs: pd.DataFrame, column: str = "test_errors") -> "pd.Series[float]":
    """Values of ``column``, one a seed.

    Raises:
        ValueError: there are none, or several of a seed.
    """
    values = runs.set_index("seed")[column].dropna().astype(float).sort_index()
    if values.empty or values.index.has_duplicates:
        raise ValueError(f"{'no' if values.empty else 'more than one'} {column} of a seed")
    return values


def estimate(
    label: str, values: Iterable[float], unit: str = "test errors", least: float = 0.0
) -> Estimate:
    """The mean of ``values`` and its interval; their deviation counts as ``least`` at least."""
    found = interval([*values], least)
    return Estimate(label, found.n, found.mean, found.low, found.high, unit)


def at_most(
    label: str,
    values: Sequence[float],
    figure: float,
    unit: str = "test errors",
    images: str = "",
) -> Part:
    """Whether a mean is not inferior to the source's ``figure``: at most `MARGIN` above it.

    ``images`` says what `over_images` found.
    """
    found, limit = estimate(label, values, unit), figure * (1 + MARGIN)
    inside, outside = greater([limit - v for v in values]), greater([v - limit for v in values])
    p = f"p = {outside:.2g} that it is more" if outside < SIGNIFICANT else f"p = {inside:.2g}"
    said = f"{_said(found, values)}{images}; at most {limit:.4g}: {p}"
    return Part(found, inside, outside, said)


def like(label: str, values: Sequence[float], figure: float, images: str = "") -> Part:
    """Whether a mean is equivalent to the source's ``figure``, within `MARGIN` of it."""
    found, margin = estimate(label, values), figure * MARGIN
    differences = [v - figure for v in values]
    p, outside = equivalent(differences, margin), beyond(differences, margin)
    told = f"p = {outside:.2g} that it is not" if outside < SIGNIFICANT else f"p = {p:.2g}"
    said = f"{_said(found, values)}{images}; within {margin:.4g} of {figure:g}: {told}"
    return Part(found, p, outside, said)


def over_images(runs: pd.DataFrame, column: str = "test_wrong") -> str:
    """The interval over seeds and test images, in words, where it is known which are wrong."""
    texts = [*runs[column].dropna()] if column in runs else []
    if len(texts) < max(2, len(runs)):
        return ""
    low, high = of_both(np.stack([unpacked(text) for text in texts]))
    return f", over seeds and test images [{low:.4g}, {high:.4g}]"


def _said(found: Estimate, values: Sequence[float]) -> str:
    """A mean, and where one more run is expected, which a source's single run compares with."""
    words = f"{found.label}: {counted(found)}"
    if len(values) < 2:
        return words
    low, high = one_more(values)
    return f"{words}, one run within [{low:.4g}, {high:.4g}]"


def beyond(differences: Sequence[float], margin: float) -> float:
    """The p value that a mean lies outside of -``margin`` to ``margin``."""
    opposite = [-d for d in differences]
    return min(1.0, 2 * min(greater(differences, margin), greater(opposite, margin)))


def both(differences: Iterable[float]) -> tuple[float, float]:
    """The p values that a mean is above 0, and that it is below."""
    values = [*differences]
    return greater(values), greater([-value for value in values])


def better(worse: "pd.Series[float]", better: "pd.Series[float]") -> float:
    """The p value of a paired one-sided test that ``better`` has fewer errors than ``worse``."""
    return greater([*(worse - better).dropna()])


def of_each(
    runs: pd.DataFrame, setting: str, column: str = "test_errors"
) -> "dict[float, pd.Series[float]]":
    """Values of ``column`` by seed for each value of ``setting``, the least first."""
    return {float(str(value)): by_seed(group, column) for value, group in runs.groupby(setting)}


def mean_of(parts: "Iterable[pd.Series[float]]") -> "pd.Series[float]":
    """The mean of several settings, one value for each seed that all of them have."""
    return pd.concat([*parts], axis=1, join="inner").mean(axis=1)


def of_teachers(runs: pd.DataFrame, column: str = "teacher_test_errors") -> list[float]:
    """The errors of the teachers of the runs, each of which counts once.

    Raises:
        ValueError: one has several figures.
    """
    taught = runs.dropna(subset=[column]).drop_duplicates(["teacher_digest", column])
    if taught["teacher_digest"].duplicated().any():
        raise ValueError(f"more than one {column} of a teacher_digest")
    return [*taught[column].astype(float)]


def by_alpha(runs: pd.DataFrame) -> "dict[str, pd.DataFrame]":
    """The runs with soft targets by what their label says of alpha, that of the paper first."""
    alphas = sorted({*runs["alpha"]} - {0}, key=lambda alpha: (alpha != STATED, alpha))
    return {f"alpha {weight(alpha)}": runs[runs["alpha"] == alpha] for alpha in alphas}


def weight(alpha: float) -> str:
    """How an alpha is written."""
    return "2/3" if alpha == STATED else text(alpha)
