"""The law of the best temperature: claims of this project, beyond the paper, and their decisions.

The tests were written down before any of the runs that they decide on. What suggested them, the
pilot, is the reference sweep temperature_vs_size, whose seeds, 0 to 4, therefore do not count.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from distill.findings.claim import Claim
from distill.findings.decisions import Decision, estimate
from distill.findings.preconditions import TAUGHT, WHOLE, Conditions, lacking
from distill.report.best import PLATEAU, Optima, measured, optima
from distill.report.contents import NOT, REPRODUCED, UNDECIDED, Estimate
from distill.report.numbers import counted, span, text
from distill.report.statistics import SIGNIFICANT, Interval, greater

WIDTHS = (6, 10, 16, 24, 30, 48, 64, 100, 160, 300)
TEMPERATURES = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 20, 40)
EPOCHS, PATIENT = (15, 30, 60, 120, 240, 480), (1, 2, 3, 4, 8, 20)
PLAIN = (1, 1.5, 2, 3, 4, 6, 12, 20)
STANDARDISED = (0.08, 0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 1, 1.5, 3, 6)
FOUR = (10, 30, 100, 300)
MARGIN, EQUIVALENT = 0.15, 0.90  # within which a slope is 0; the level of the interval that says so


def _optima(
    parts: Sequence[pd.DataFrame], size: str, *covers: Mapping[str, tuple[object, ...]]
) -> tuple[list[Optima], str]:
    """The best temperatures of each part, of the seeds that have all runs of all; which have not.

    Each part has runs of all values that its own of ``covers`` names.

    Raises:
        ValueError: runs are lacking.
    """
    for part, wanted in zip(parts, covers, strict=True):
        if value := lacking(part, wanted):
            raise ValueError(value)
    tables = [measured(part, size) for part in parts]
    whole = sorted(set.intersection(*({*table.index} for table in tables)))
    runs = pd.concat([*parts])
    if not whole:
        raise ValueError("no seed has all of them")
    left = ", ".join(text(seed) for seed in sorted({*runs["seed"]} - {*whole}))
    told = f"; seeds that lack runs do not count: {left}" if left else ""
    return [optima(table.loc[whole]) for table in tables], told


def _estimate(label: str, found: Interval) -> Estimate:
    return Estimate(label, found.n, found.mean, found.low, found.high, "")


def _above(found: Estimate) -> str:
    """The verdict whether what was estimated is above 0, or below."""
    return REPRODUCED if found.low > 0 else NOT if found.high < 0 else UNDECIDED


def width_law(runs: pd.DataFrame) -> Decision:
    [of], left = _optima([runs], "width", {"width": WIDTHS, "temperature": TEMPERATURES})
    small, large = of.slope(of.sizes <= PLATEAU), of.slope(of.sizes >= PLATEAU)
    less = small[0] - large[0], small[1] - large[1]
    rising = _estimate(f"slope up to {PLATEAU:g} units", of.interval(*small))
    flat = _estimate("slope from there on", of.interval(*large))
    bend = _estimate("the first less the second", of.interval(*less))
    verdict = min(_above(rising), _above(bend), key=(NOT, UNDECIDED, REPRODUCED).index)
    if of.found[of.sizes >= PLATEAU].max() == of.temperatures[-1]:
        verdict = UNDECIDED
    return Decision((rising, flat, bend), verdict, f"best temperatures by width: {of}{left}")


def patience(runs: pd.DataFrame) -> Decision:
    cells = {cell: part for cell, part in runs.groupby(["width", "data.jitter"]) if len(part)}
    covers = {"epochs": EPOCHS, "temperature": PATIENT}
    [of], left = _optima([cells.pop((30, 0), runs.iloc[:0])], "epochs", covers)
    steep = _estimate("slope, 30 units", of.interval(*of.slope()))
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
            [side], _ = _optima([part], "epochs", covers)
            outcome += counted(_estimate("", side.interval(*side.slope())))
        except ValueError as error:
            outcome += f"runs are lacking ({error})"
    return Decision((steep, *estimates), verdict, outcome + left)


def standardised(runs: pd.DataFrame) -> Decision:
    parts = [runs[runs["loss"] == loss] for loss in ("kd", "standardised_kd")]
    covers = ({"width": FOUR, "temperature": grid} for grid in (PLAIN, STANDARDISED))
    (plain, own), left = _optima(parts, "width", *covers)
    slopes = plain.slope(), own.slope()
    less = slopes[0][0] - slopes[1][0], slopes[0][1] - slopes[1][1]
    estimates = (
        _estimate("slope, kd", plain.interval(*slopes[0])),
        _estimate("slope, standardised kd", own.interval(*slopes[1])),
        _estimate("the first less the second", own.interval(*less)),
    )
    within = own.interval(*slopes[1], EQUIVALENT)
    verdict = UNDECIDED
    if estimates[1].low > MARGIN or estimates[1].high < -MARGIN:
        verdict = NOT
    elif max(-within.low, within.high) < MARGIN and not any(own.bounds):
        verdict = REPRODUCED if estimates[2].low > 0 else UNDECIDED
    outcome = (
        f"90 % interval of standardised kd's slope: {span(within)}, margin {MARGIN:g}; best "
        f"temperatures by width: kd {plain}; standardised kd {own}"
    )
    return Decision(estimates, verdict, outcome + left)


LAW: Conditions = {**TAUGHT, **WHOLE, "alpha": (1,), "epochs": (60,)}
NARROW: Conditions = {**LAW, "width": FOUR}
_ALPHA = {key: condition for key, condition in NARROW.items() if key != "alpha"}

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
        "and less, or no more, from there on",
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
            {**NARROW, "temperature": PLAIN},
            {
                **{**_ALPHA, "loss": ("standardised_kd",), "loss.alpha": (1,), "loss.hard": (0,)},
                "temperature": STANDARDISED,
            },
        ),
        ("loss", "width", "temperature", "alpha", "loss.alpha", "loss.hard"),
        {
            **{"loss": ("kd", "standardised_kd"), "width": FOUR},
            "temperature": tuple(sorted({*PLAIN, *STANDARDISED})),
        },
        seeds=10,
    ),
)
