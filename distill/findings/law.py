"""The law of the best temperature: claims of this project, beyond the paper, and their decisions.

The tests were written down before any of the runs that they decide on. What suggested them, the
pilot, is the reference sweep temperature_vs_size, whose seeds, 0 to 4, therefore do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from distill.findings.claim import Claim
from distill.findings.decisions import Decision, estimate
from distill.findings.preconditions import TAUGHT, WHOLE, Conditions
from distill.report.best import (
    PLATEAU,
    Array,
    best,
    bounds,
    measured,
    percentiles,
    resampled,
    slope,
)
from distill.report.contents import NOT, REPRODUCED, UNDECIDED, Estimate
from distill.report.numbers import counted, span, text
from distill.report.statistics import LEVEL, SIGNIFICANT, greater

MARGIN, EQUIVALENT = 0.15, 0.90  # within which a slope is 0; the level of the interval that says so


@dataclass(frozen=True)
class _Bests:
    """Best temperatures of sizes (K,): those ``found`` (K,), and those of resamples (R, K)."""

    sizes: Array
    temperatures: Array
    errors: Array
    found: Array
    draws: Array

    def slope(self, of: Array | None = None) -> tuple[Array, Array]:
        """The slope over all sizes, or ``of`` these (K,) alone: as found, and resampled (R,)."""
        kept = np.ones(len(self.sizes), bool) if of is None else of
        sizes = self.sizes[kept]
        return slope(sizes, self.found[kept]), slope(sizes, self.draws[:, kept])

    def estimate(self, label: str, slopes: tuple[Array, Array], level: float = LEVEL) -> Estimate:
        """A slope, or a difference of two, with the percentiles of its resamples."""
        found = percentiles(len(self.errors), *slopes, level)
        return Estimate(label, found.n, found.mean, found.low, found.high, "")

    def __str__(self) -> str:
        """Which temperature is best for which size."""
        bound = bounds(self.found, self.temperatures)
        each = zip(bound, self.found, self.sizes.tolist(), strict=True)
        return ", ".join(f"{b}{t:.1f} at {text(size)}" for b, t, size in each)


def _bests(parts: Sequence[pd.DataFrame], size: str) -> tuple[list[_Bests], str]:
    """The best temperatures of each part, of the seeds that have all runs of all; which have not.

    Raises:
        ValueError: runs are lacking, or seeds share a teacher.
    """
    whole = set.intersection(*({*measured(part, size).seeds} for part in parts))
    found = []
    for part in parts:
        runs = part[part["seed"].isin(whole)]
        if runs["teacher_digest"].nunique() < len(whole):
            raise ValueError("a teacher of its own for each seed")
        own = measured(runs, size)
        means, draws = own.errors.mean(axis=0), resampled(own.errors)
        sizes = np.array([value for (value,) in own.settings], float)
        bests = (best(values, own.temperatures) for values in (means, draws))
        found.append(_Bests(sizes, own.temperatures, own.errors, *bests))
    left = sorted({*map(int, pd.concat([*parts])["seed"])} - whole)
    more = "seeds that lack runs do not count: " + ", ".join(map(str, left))
    return found, f"; {more}" if left else ""


def _above(found: Estimate) -> str:
    """The verdict whether what was estimated is above 0, or below."""
    return REPRODUCED if found.low > 0 else NOT if found.high < 0 else UNDECIDED


def width_law(runs: pd.DataFrame) -> Decision:
    [of], left = _bests([runs], "width")
    small, large = of.slope(of.sizes <= PLATEAU), of.slope(of.sizes >= PLATEAU)
    rising = of.estimate(f"slope up to {PLATEAU:g} units", small)
    flat = of.estimate("slope from there on", large)
    bend = of.estimate("the first less the second", (small[0] - large[0], small[1] - large[1]))
    verdict = min(_above(rising), _above(bend), key=(NOT, UNDECIDED, REPRODUCED).index)
    if of.found[of.sizes >= PLATEAU].max() == of.temperatures[-1]:
        verdict = UNDECIDED
    return Decision((rising, flat, bend), verdict, f"best temperatures by width: {of}{left}")


def patience(runs: pd.DataFrame) -> Decision:
    cells = {cell: part for cell, part in runs.groupby(["width", "data.jitter"]) if len(part)}
    [of], left = _bests([cells.pop((30, 0))], "epochs")
    steep = of.estimate("slope, 30 units", of.slope())
    first, band = of.temperatures == 1, (of.temperatures > 1) & (of.temperatures <= 4)
    costs = of.errors[:, :, first].mean(axis=2) - of.errors[:, :, band].mean(axis=2)
    p = greater([*costs[:, -1]])
    estimates = tuple(
        estimate(f"T = 1 less T = 2, 3, 4 after {epochs:g} epochs", cost, "errors")
        for epochs, cost in zip(of.sizes, costs.T, strict=True)
    )
    verdict = NOT if steep.high < 0 else UNDECIDED
    if steep.low > 0 and p < SIGNIFICANT:
        verdict = REPRODUCED
    outcome = f"best temperatures by epochs: {of}; T = 1 has more errors at the end: p = {p:.2g}"
    for (width, jitter), part in cells.items():
        outcome += f"; slope at {text(width)} units with jitter {text(jitter)}: "
        try:
            [side], _ = _bests([part], "epochs")
            outcome += counted(side.estimate("", side.slope()))
        except ValueError as error:
            outcome += f"runs are lacking ({error})"
    return Decision((steep, *estimates), verdict, outcome + left)


def standardised(runs: pd.DataFrame) -> Decision:
    parts = [runs[runs["loss"] == loss] for loss in ("kd", "standardised_kd")]
    (plain, own), left = _bests(parts, "width")
    slopes = plain.slope(), own.slope()
    difference = slopes[0][0] - slopes[1][0], slopes[0][1] - slopes[1][1]
    estimates = (
        plain.estimate("slope, kd", slopes[0]),
        own.estimate("slope, standardised kd", slopes[1]),
        own.estimate("the first less the second", difference),
    )
    within = own.estimate("", slopes[1], EQUIVALENT)
    verdict = UNDECIDED
    if estimates[1].low > MARGIN or estimates[1].high < -MARGIN:
        verdict = NOT
    elif max(-within.low, within.high) < MARGIN and not any(bounds(own.found, own.temperatures)):
        verdict = REPRODUCED if estimates[2].low > 0 else UNDECIDED
    outcome = (
        f"90 % interval of standardised kd's slope: {span(within)}, margin {MARGIN:g}; best "
        f"temperatures by width: kd {plain}; standardised kd {own}"
    )
    return Decision(estimates, verdict, outcome + left)


WIDTHS = (6, 10, 16, 24, 30, 48, 64, 100, 160, 300)
TEMPERATURES = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 20, 40)
EPOCHS, PATIENT = (15, 30, 60, 120, 240, 480), (1, 2, 3, 4, 8, 20)
PLAIN, STANDARDISED = (1, 1.5, 2, 3, 4, 6, 12, 20), (0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 12, 20)

LAW: Conditions = {**TAUGHT, **WHOLE, "alpha": (1,), "epochs": (60,)}
FOUR: Conditions = {**LAW, "width": (10, 30, 100, 300)}
_ALPHA = {key: condition for key, condition in FOUR.items() if key != "alpha"}

HOW = (
    "The best T of a size is the minimum of a cubic in log T, fitted by least squares to the mean "
    "errors, or, where it has none within the temperatures tried, the one of their ends where it "
    "is less, which is only a bound; slopes are of log best T on the logarithm of the size; "
    "intervals are percentiles of 10,000 bootstrap resamples of the seeds, each with all its runs "
    "and a teacher of its own; n >= 10 seeds with all runs, none of the pilot's (0 to 4). "
)
CLAIMS = (
    Claim(
        "S1",
        "temperature_law",
        "The best temperature grows with the width of the student as a power law up to 100 units, "
        "and then no more",
        "the pilot of this project (temperature_vs_size, 5 seeds, post hoc): slope 0.539 "
        "[0.408, 0.72]",
        HOW + "The slope over the widths up to 100, and that slope less the one over the widths of "
        "100 and more: reproduced if the 95 % intervals of both lie above 0, not reproduced if "
        "either lies below 0 entirely, else not decided; nor where the best T of a width of 100 or "
        "more is the highest tried.",
        width_law,
        ({**LAW, "width": WIDTHS, "temperature": TEMPERATURES},),
        ("width", "temperature"),
        {"width": WIDTHS, "temperature": TEMPERATURES},
        seeds=10,
    ),
    Claim(
        "S2",
        "patience",
        "Training longer makes the best temperature of a small student rise, where each epoch "
        "shows the same images",
        "the pilot of this project (5 seeds, post hoc): at 30 units low temperatures cost nothing "
        "after 30 epochs, but do after 60",
        HOW + "At 30 units, without jitter, the size being the epochs: reproduced if the 95 % "
        "interval of the slope lies above 0, and after the most epochs T = 1 has more errors than "
        "the mean of T = 2, 3, 4 (paired one-sided t test, p < 0.05); not reproduced if the "
        "interval lies below 0 entirely; else not decided. Beside it, without a verdict: the slope "
        "with jitter and at 100 units, and what T = 1 costs after each number of epochs.",
        patience,
        (
            {
                **{**LAW, "width": (30, 100), "data.jitter": (0, 2)},
                **{"epochs": EPOCHS, "temperature": PATIENT},
            },
        ),
        ("width", "data.jitter", "epochs", "temperature", "soft_targets"),
        {"width": (30,), "data.jitter": (0,), "epochs": EPOCHS, "temperature": PATIENT},
        seeds=10,
    ),
    Claim(
        "S4",
        "standardised",
        "Standardising the logits removes the need for a temperature that fits the width",
        "Sun et al. (2024), arXiv 2403.01427, who give all students one temperature: a sentence",
        HOW + "Over widths 10 to 300, both losses without labels: reproduced if the 90 % interval "
        "of the slope of standardised kd lies within -0.15 and 0.15, and the 95 % interval of kd's "
        "slope less that one above 0; not reproduced if the 95 % interval of standardised kd's "
        "slope lies outside of these entirely; else not decided, nor where a best T of "
        "standardised kd is the lowest or the highest tried.",
        standardised,
        (
            {**FOUR, "temperature": PLAIN},
            {
                **{**_ALPHA, "loss": ("standardised_kd",), "loss.alpha": (1,), "loss.hard": (0,)},
                "temperature": STANDARDISED,
            },
        ),
        ("loss", "width", "temperature", "alpha", "loss.alpha", "loss.hard"),
        {
            **{"loss": ("kd", "standardised_kd"), "width": (10, 30, 100, 300)},
            "temperature": (*PLAIN, 0.3, 0.5, 0.7),
        },
        seeds=10,
    ),
)
