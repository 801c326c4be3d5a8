"""The law of the best temperature: claims of this project, beyond the paper, and their decisions.

The tests were written down before any of the runs that they decide on. What suggested them, the
pilot, is the reference sweep temperature_vs_size, whose seeds, 0 to 4, therefore do not count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from distill.findings.claim import Claim
from distill.findings.decisions import Decision, Part, both, decide, estimate, of_parts
from distill.findings.preconditions import TAUGHT, WHOLE, Conditions, lacking, seeds
from distill.report.best import NEAR, RISING, Array, halves, measured, optima, resampled
from distill.report.contents import NOT, REPRODUCED, UNDECIDED, Estimate
from distill.report.numbers import counted, share, text
from distill.report.statistics import SIGNIFICANT, greater, holm, percentiles

WIDTHS = (6, 10, 16, 24, 30, 48, 64, 100, 160, 300)
NARROW = tuple(width for width in WIDTHS if width <= RISING)
WIDE = WIDTHS[len(NARROW) :]
ENOUGH = {NARROW: 20, WIDE: 10}  # seeds: the wide students are less noisy, and cost 9 times as much
TEMPERATURES = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 20, 40)
LOW = 1.5  # the temperature that is the better one for narrow students
TURNS = ((4, 10, 30), (20, 30, 100))  # than which, up to which width, and from which it is worse
FLAT = 64.0  # units, from which the second slope is, which decides nothing
TOLERANCES = (0, 12, 30)  # more errors that are as good as the fewest; 0 is `NEAR` times these
EPOCHS, PATIENT = (15, 30, 60, 120, 240, 480), (1, 2, 3, 4, 8, 20)
BRIEF = (15, 60, 240, 480)  # epochs of the larger students, beside
PLAIN = (1, 1.5, 2, 3, 4, 6, 12, 20)
STANDARDISED = (0.08, 0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 1, 1.5, 3, 6)
FEW, MANY = (6, 10), (24, 30)  # units of students that are given each other's temperature
REMOVED = 0.5  # of what that costs with kd, to say that the need is removed


def _tables(
    parts: Sequence[pd.DataFrame], size: str, *covers: Mapping[str, tuple[object, ...]]
) -> tuple[list[pd.DataFrame], str]:
    """The errors of each part, of the seeds that have all runs of all; which have not, in words.

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
    return [table.loc[whole] for table in tables], told


def width_law(runs: pd.DataFrame) -> Decision:
    tables: dict[int, pd.DataFrame] = {}
    for widths, n in ENOUGH.items():
        part = runs[runs["width"].isin(widths)]
        [table], _ = _tables([part], "width", {"width": widths, "temperature": TEMPERATURES})
        if len(table) < n:
            units = f"{widths[0]} to {widths[-1]} units"
            raise ValueError(f"{units}: n = {len(table)}, at least {n} are wanted")
        tables |= dict.fromkeys(widths, table)
    turned: list[Part] = []
    beside = []
    for high, narrow, wide in TURNS:
        for width in WIDTHS:
            more = [*(tables[width][width, high] - tables[width][width, LOW])]
            found = estimate(f"T = {high:g} less T = {LOW:g} at {width} units", more)
            if narrow < width < wide:
                beside.append(found)
                continue
            signed = more if width <= narrow else [-value for value in more]
            turned.append(Part(found, *both(signed), ""))
    p, against = _extremes(turned)
    outcome = f"p = {p:.2g} that all are as claimed, p = {against:.2g} that one is the other way; "
    parts = [tables[widths[0]] for widths in ENOUGH]
    told = ", ".join(str(optima(table)) for table in parts)
    outcome += f"temperatures within {share(NEAR - 1)} of the fewest errors: {told}"
    estimates = tuple(part.estimate for part in turned)
    return Decision(estimates, of_parts(turned), outcome, (*beside, *_slopes(*parts)))


def _extremes(parts: Sequence[Part]) -> tuple[float, float]:
    """The p value that all parts are as claimed, and that one is the opposite (Holm)."""
    return max(part.p for part in parts), min(holm([part.opposite for part in parts]))


def _slopes(narrow: pd.DataFrame, wide: pd.DataFrame) -> list[Estimate]:
    """Slopes of the least temperature that is as good, of narrow and of wide students."""
    parts = {f"up to {RISING:g}": (narrow, 0), f"from {FLAT:g}": (wide, FLAT)}
    slopes = []
    for more, (words, (table, least)) in product(TOLERANCES, parts.items()):
        of, within = optima(table, more), f"{more:g} errors" if more else share(NEAR - 1)
        found = of.interval(*of.slope(of.sizes >= least))
        label = f"slope of the least T within {within}, {words} units"
        slopes.append(Estimate(label, found.n, found.mean, found.low, found.high, ""))
    return slopes


def _costs(table: pd.DataFrame) -> Array:
    """Errors at T = 1 less those of T = 2, 3, 4, in errors and in % (2, S, K)."""
    epochs = [*table.columns.unique(0)]
    low = np.stack([table[size, 1] for size in epochs], axis=1)
    band = np.stack([table[size][[2, 3, 4]].mean(axis=1) for size in epochs], axis=1)
    return np.stack([low - band, 100 * np.log(np.maximum(low, 1) / np.maximum(band, 1))])


def _steps(costs: Array, epochs: Sequence[float]) -> Array:
    """The slope (..., S) of what T = 1 costs (..., S, K) for each doubling of the epochs."""
    x = np.log2(np.asarray(epochs, float))
    x -= x.mean()
    return np.asarray(costs @ x / (x @ x))


def patience(runs: pd.DataFrame) -> Decision:
    cells = {cell: part for cell, part in runs.groupby(["width", "data.jitter"]) if len(part)}
    parts = [cells.get((30, jitter), runs.iloc[:0]) for jitter in (0, 2)]
    covers = {"epochs": EPOCHS, "temperature": PATIENT}
    tables, left = _tables(parts, "epochs", covers, covers)
    same, jittered = map(_costs, tables)
    rises = _steps(same, EPOCHS)
    more = rises - _steps(jittered, EPOCHS)
    each = [
        Part(estimate(f"{words} a doubling", values, unit), *both(values), "")
        for words, of in (("rise", rises), ("rise without jitter less that with jitter 2,", more))
        for values, unit in zip(of, ("test errors", "%"), strict=True)
    ]
    (above, below), p = _extremes(each), greater([*same[0, :, -1]])
    beside = tuple(
        estimate(f"T = 1 less T = 2, 3, 4 after {epochs} epochs{words}", cost)
        for words, of in (("", same[0]), (", jitter 2", jittered[0]))
        for epochs, cost in zip(EPOCHS, of.T, strict=True)
    )
    best, other = map(optima, tables)
    outcome = (
        f"p = {above:.2g} that all four are above 0, p = {below:.2g} that one is below; T = 1 has "
        f"more errors at the end: p = {p:.2g}; temperatures within {share(NEAR - 1)} of the fewest "
        f"errors by epochs: {best}; with jitter 2: {other}; at 100 units: "
    )
    outcome += _larger(cells.get((100, 0), runs.iloc[:0]))
    verdict = decide([*(part.p for part in each), p], [part.opposite for part in each])
    return Decision(tuple(part.estimate for part in each), verdict, outcome + left, beside)


def _larger(runs: pd.DataFrame) -> str:
    """The rise of the larger students, which have runs of fewer epochs and seeds."""
    kept = runs[runs["epochs"].isin(BRIEF)]
    try:
        [table], _ = _tables([kept], "epochs", {"epochs": BRIEF, "temperature": PATIENT})
    except ValueError as error:
        return f"runs are lacking ({error})"
    rise = estimate("", _steps(_costs(table)[0], BRIEF))
    return f"rise {counted(rise)}, temperatures {optima(table)}"


@dataclass(frozen=True)
class Exchanged:
    """What each other's temperature costs students of the widths `FEW` and `MANY`, in %.

    ``costs`` are of each seed (2, S) with the temperatures that are best for the other half of the
    seeds, two in each half (``chosen``): at a best that the same seeds choose, errors are few by
    chance, too. ``draws`` (R,) are means over both, with seeds resampled and best temperatures
    chosen anew in each half.
    """

    costs: Array
    chosen: tuple[tuple[float, float], ...]
    draws: Array

    @property
    def both(self) -> Array:
        """The mean cost of each seed (S,)."""
        return np.asarray(self.costs.mean(axis=0))

    def __str__(self) -> str:
        return " and ".join(f"{few:g} to {many:g}" for few, many in self.chosen)


def _costs_of(own: Array, other: Array) -> Array:
    """Errors (..., 2, T) at the best T of the other width, less those at the best of the own."""
    best = other.argmin(axis=-1)[..., None]  # (..., 2, 1)
    exchanged, kept = (np.take_along_axis(own, k, -1) for k in (best[..., ::-1, :], best))
    return np.asarray((exchanged - kept)[..., 0])


def _exchanged(table: pd.DataFrame) -> Exchanged:
    sizes, grid = (table.columns.unique(level).to_numpy(float) for level in (0, 1))
    logs = 100 * np.log(np.maximum(table.to_numpy(float), 1))  # none has a logarithm, too
    logs = logs.reshape(len(table), len(sizes), len(grid))
    of = [logs[:, np.isin(sizes, widths)].mean(axis=1) for widths in (FEW, MANY)]
    errors = np.stack(of, axis=1)  # (S, 2, T)
    places = [own for own, _ in halves(len(table))]
    drawn = [resampled(errors[own], half) for half, own in enumerate(places)]
    costs, chosen, draws = np.empty(errors.shape[:2]), [], []
    for half, own in enumerate(places):
        other = errors[places[1 - half]].mean(axis=0)
        costs[own] = _costs_of(errors[own], np.broadcast_to(other, errors[own].shape))
        few, many = grid[other.argmin(axis=-1)]
        chosen.append((float(few), float(many)))
        draws.append(_costs_of(drawn[half], drawn[1 - half]).mean(axis=-1))
    return Exchanged(costs.T, tuple(chosen), np.mean(draws, axis=0))


def standardised(runs: pd.DataFrame) -> Decision:
    parts = [runs[runs["loss"] == loss] for loss in ("kd", "standardised_kd")]
    covers = ({"width": NARROW, "temperature": grid} for grid in (PLAIN, STANDARDISED))
    tables, left = _tables(parts, "width", *covers)
    if len(tables[0]) < 2:
        raise ValueError("one seed alone has all of them")
    plain, own = map(_exchanged, tables)
    names = [f"{few} and {many} units" for few, many in (FEW, MANY)]
    less, draws = REMOVED * plain.both - own.both, REMOVED * plain.draws - own.draws
    label = f"{share(REMOVED)} of kd's, both, less that"
    estimates = (
        *(
            estimate(f"kd, {n} units", cost, "%")
            for n, cost in zip(names, plain.costs, strict=True)
        ),
        _drawn("standardised kd, both", own.both, own.draws),
        _drawn(label, less, draws),
    )
    needed = max(greater([*cost]) for cost in plain.costs)
    removed, kept, costs = (float(np.mean(d <= 0)) for d in (draws, -draws, own.draws))
    ends = {STANDARDISED[0], STANDARDISED[-1]} & {value for pair in own.chosen for value in pair}
    verdict = UNDECIDED
    if max(kept, costs) < SIGNIFICANT:
        verdict = NOT
    elif max(needed, removed) < SIGNIFICANT and not ends:  # the best of both may lie beyond one
        verdict = REPRODUCED
    outcome = (
        f"kd has a need: p = {needed:.2g}; at least half of it stays in {share(removed)} of the "
        f"resamples; temperatures that each half chose, for {names[0]} to {names[1]}: kd {plain}; "
        f"standardised kd {own}"
    )
    if ends:
        outcome += f"; {min(ends):g} is an end of those tried"
    return Decision(estimates, verdict, outcome + left)


def _drawn(label: str, values: Array, draws: Array) -> Estimate:
    """The mean of ``values`` (S,), in %, with percentiles of its resamples ``draws`` (R,)."""
    return Estimate(label, len(values), float(values.mean()), *percentiles(draws), "%")


LAW: Conditions = {**TAUGHT, **WHOLE, **seeds(20), "alpha": (1,), "epochs": (60,)}
_SMALL: Conditions = {**LAW, "width": NARROW}
_ALPHA = {key: condition for key, condition in _SMALL.items() if key != "alpha"}

CLAIMS = (
    Claim(
        "S1",
        "temperature_law",
        "Which of two temperatures is better turns with the width of the student: 1.5 has fewer "
        "errors than 4 up to 10 units and more from 30 on, and fewer than 20 up to 30 units and "
        "more from 100 on",
        "the pilot of this project (temperature_vs_size, 5 seeds, post hoc): T = 4 less T = 1.5 "
        "is 54.6 errors at 10 units and -33.6 at 30, T = 20 less T = 1.5 36.8 at 30 and -18.0 at "
        "100",
        "n = 20 seeds, 10 to 29, up to 30 units and 10, 10 to 19, above, none of the pilot's (0 "
        "to 4), each with a teacher of its own. At each of the widths 6 and 10, errors at T = 4 "
        "less those at 1.5 are above 0, at 30, 48, 64, 100, 160 and 300 below; with T = 20 "
        "instead above at 6, 10, 16, 24 and 30 and below at 100, 160 and 300 (16 paired "
        "one-sided t tests): reproduced if all have p < 0.05; not reproduced if the opposite of "
        "one has p < 0.05 (Holm over the 16); else not decided. An order that turns does so in "
        "errors, in their logarithms and by any scale that rises with them (Loftus 1978, doi "
        "10.3758/BF03197461), and no cost of a temperature that is the same at all widths, in "
        "errors or in % of them, turns it. Beside it, without a verdict: the differences at the "
        "widths between, and the slopes of the logarithm of the least temperature within "
        f"{share(NEAR - 1)} of the fewest errors, or within 12 or 30 errors of them, on that of "
        "the width (10,000 bootstrap resamples of the seeds). They depend on what is as good: "
        "where each temperature costs the same errors at all widths, 5 % of fewer errors is a "
        "narrower band, whose least temperature rises. So does the range of temperatures that "
        "the outcome has where the lowest and the highest T are worse than the three neighbours "
        "between them where the other half of the seeds has fewest errors (one-sided paired t "
        "tests, Holm over both ends of all sizes up to 30 units, and of all above, p < 0.05), or "
        "else a bound.",
        width_law,
        tuple(
            {**LAW, **seeds(n), "width": widths, "temperature": TEMPERATURES}
            for widths, n in ENOUGH.items()
        ),
        ("width", "temperature"),
        {"width": WIDTHS, "temperature": TEMPERATURES},
    ),
    Claim(
        "S2",
        "patience",
        "Training longer makes a low temperature, 1 against 2 to 4, cost a small student more, "
        "and more so where each epoch shows the same images",
        "the pilot of this project (5 seeds, post hoc): at 30 units low temperatures cost "
        "nothing after 30 epochs, but do after 60",
        "n = 10 seeds, 10 to 19, with a teacher each. At 30 units, the cost is the errors at T = "
        "1 less the mean of those at T = 2, 3, 4, and in % 100 times the logarithm of their "
        "ratio; its rise is the slope within a seed on the logarithm to base 2 of the epochs (15 "
        "to 480): reproduced if the rise without jitter, and that less the rise with jitter 2, "
        "are above 0, each in errors and in %, and after 480 epochs without jitter the cost is "
        "(paired one-sided t tests, each p < 0.05); not reproduced if one of the four is "
        "significantly below 0 (Holm); else not decided. Both scales, since a cost that is the "
        "same in errors rises in % where errors become fewer, and one that is the same in % "
        "falls in errors. Beside it, without a verdict: the cost after each number of epochs, "
        "the rise at 100 units without jitter (5 seeds), and the temperatures within "
        f"{share(NEAR - 1)} of the fewest errors, told as in S1.",
        patience,
        (
            {
                **{**LAW, **seeds(10), "width": (30, 100), "data.jitter": (0, 2)},
                **{"epochs": EPOCHS, "temperature": PATIENT},
            },
        ),
        ("width", "data.jitter", "epochs", "temperature", "soft_targets"),
        {"width": (30,), "data.jitter": (0, 2), "epochs": EPOCHS, "temperature": PATIENT},
    ),
    Claim(
        "S4",
        "standardised",
        "Standardising the logits removes at least half of the need for a temperature that fits "
        "the width",
        "Sun et al. (2024), arXiv 2403.01427, who give all students one temperature: a sentence",
        "n = 20 seeds, 10 to 29, with a teacher each; both losses without labels. The need is "
        "what it costs students of 6 and 10 units, and those of 24 and 30, to be given the "
        "temperature with the fewest errors of the others instead of their own (the mean over "
        "both widths of 100 times the logarithm of the errors), both temperatures chosen by the "
        "other half of the seeds: 0 on average where one temperature is best for all, however "
        "flat the curves are. Reproduced if with kd both pay (two paired one-sided t tests, p < "
        "0.05), and half of what they pay with kd, the mean of both, is more than with "
        "standardised kd in over 95 % of 10,000 bootstrap resamples (seeds are drawn within each "
        "half, with all their runs, and temperatures chosen anew); not reproduced if it is less "
        "in over 95 %, and what they pay with standardised kd above 0 in over 95 %; else not "
        "decided, nor reproduced where a temperature chosen of standardised kd is an end of "
        "those tried. Temperatures of kd are from 1 on, which makes its need no larger.",
        standardised,
        (
            {**_SMALL, "temperature": PLAIN},
            {
                **{**_ALPHA, "loss": ("standardised_kd",), "loss.alpha": (1,), "loss.hard": (0,)},
                "temperature": STANDARDISED,
            },
        ),
        ("loss", "width", "temperature", "alpha", "loss.alpha", "loss.hard"),
        {
            **{"loss": ("kd", "standardised_kd"), "width": NARROW},
            "temperature": tuple(sorted({*PLAIN, *STANDARDISED})),
        },
    ),
)
