"""How C1 to C7, of the paper's section 3, are decided, each as its test in `claims` says."""

import math
from dataclasses import replace
from itertools import combinations

import pandas as pd

from distill.findings.decisions import (
    STATED,
    Decision,
    Part,
    at_most,
    better,
    beyond,
    both,
    by_alpha,
    by_seed,
    decide,
    estimate,
    like,
    mean_of,
    of_each,
    of_parts,
    of_teachers,
    over_images,
    together,
    weight,
)
from distill.findings.preconditions import lacking
from distill.report.numbers import counted, text
from distill.report.statistics import equivalent, greater

APART = {300: 8.0, 800: 11.0}  # errors, by width: a quarter of what T = 1 cost in earlier sweeps
ENOUGH = {300: 24, 800: 12}  # seeds, by width: a power of 80 % (bench/LOG.md)
SENSITIVE = 0.05  # the margin beside it, as a share of the errors
HIGH = (10.0, 15.0, 20.0, 40.0, 100.0)  # temperatures
LABELLED = (10.0, 20.0, 100.0)  # those of C4 with labels in the loss
BAND = (2.5, 4.0)  # temperatures
TRIED = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 20, 40)  # of 30 units
THREES, TESTED = 1010, 10_000  # among the test images of MNIST, a precondition


# C1 to C3


def teachers(runs: pd.DataFrame) -> Decision:
    column = "teacher_test_wrong"
    own = runs.drop_duplicates("teacher_digest")
    return together([at_most("teacher", of_teachers(runs), 67, images=over_images(own, column))])


def hard_student(runs: pd.DataFrame) -> Decision:
    hard = runs[runs["alpha"] == 0]
    return together([like("hard student", [*by_seed(hard)], 146, over_images(hard))])


def distilled_student(runs: pd.DataFrame) -> Decision:
    hard = by_seed(runs[runs["alpha"] == 0])
    (label, paper), *others = by_alpha(runs).items()
    soft = by_seed(paper)
    gain = estimate("errors fewer than the hard student", (hard - soft).dropna(), "errors")
    p = better(hard, soft)
    said = f"{counted(gain)} fewer than the hard student, p = {p:.2g}"
    fewer = Part(gain, p, math.nan, said)
    beside = (estimate(f"distilled student, {label}", by_seed(own)) for label, own in others)
    part = at_most(f"distilled student, {label}", [*soft], 74, images=over_images(paper))
    return together([part, fewer], beside)


# C4 and C5


def similar_temperatures(runs: pd.DataFrame) -> Decision:
    estimates, alike, outside, outcomes = [], [], [], []
    pure, labelled = (runs[runs["alpha"] == alpha] for alpha in (1, STATED))
    for width, group in pure.groupby("width"):
        high, units = of_each(group, "temperature"), int(str(width))
        margin = APART[units]
        if {*high} != {*HIGH}:
            raise ValueError(f"all of T = {', '.join(map(text, HIGH))} at {text(width)} units")
        pairs = _pairs(high)
        if (n := min(map(len, pairs.values()))) < ENOUGH[units]:
            raise ValueError(f"{units} units: n = {n}, at least {ENOUGH[units]} are wanted")
        (a, b), p = _least_alike(pairs, margin)
        narrow = SENSITIVE * float(mean_of(high.values()).mean())
        _, also = _least_alike(pairs, narrow)
        estimates += [estimate(f"{text(width)} units, T = {t:g}", e) for t, e in high.items()]
        alike.append(p)
        outside += [beyond(d, margin) for d in pairs.values()]
        outcomes.append(
            f"{text(width)} units: means of T = {min(high):g} to {max(high):g} at most "
            f"{_range(high):.1f} errors apart; each pair within {margin:g}: largest "
            f"p = {p:.2g} (T = {a:g}, {b:g}); within {100 * SENSITIVE:.0f} % ({narrow:.1f}): "
            f"largest p = {also:.2g}"
        )
    beside = of_each(labelled, "temperature") if len(labelled) else {}
    label = f"alpha {weight(STATED)}"
    if len(beside) > 1:
        (a, b), p = _least_alike(_pairs(beside), APART[300])
        outcomes.append(
            f"with labels in the loss ({label}) means at most {_range(beside):.1f} errors apart; "
            f"each pair within {APART[300]:g}: largest p = {p:.2g} (T = {a:g}, {b:g})"
        )
    return Decision(
        tuple(estimates),
        decide(alike, outside),
        "; ".join(outcomes),
        tuple(estimate(f"300 units, {label}, T = {t:g}", e) for t, e in beside.items()),
    )


Pairs = dict[tuple[float, float], list[float]]


def _pairs(errors: "dict[float, pd.Series[float]]") -> Pairs:
    """The differences within seeds of each two temperatures."""
    each = combinations(sorted(errors), 2)
    return {(a, b): [*(errors[b] - errors[a]).dropna()] for a, b in each}


def _least_alike(pairs: Pairs, margin: float) -> tuple[tuple[float, float], float]:
    """The two temperatures that are least surely equivalent, and the p value that they are."""
    p_values = {pair: equivalent(d, margin) for pair, d in pairs.items()}
    return max(p_values.items(), key=lambda item: item[1])


def _range(errors: "dict[float, pd.Series[float]]") -> float:
    means = [float(e.mean()) for e in errors.values()]
    return max(means) - min(means)


def best_temperatures(runs: pd.DataFrame) -> Decision:
    wanted = {"temperature": TRIED}
    pure, labelled = (runs[runs["alpha"] == alpha] for alpha in (1, STATED))
    if value := lacking(pure, wanted):
        raise ValueError(f"alpha=1 {value}")
    decided = _against_band(pure, f"{text(pure['width'].iloc[0])} units")
    if labelled.empty:
        return decided
    label = f"alpha {weight(STATED)}"
    if value := lacking(labelled, wanted):
        return replace(decided, outcome=f"{decided.outcome}; {label} lacks runs ({value})")
    also = _against_band(labelled, label)
    outcome = f"{decided.outcome}; with labels in the loss ({label}) {also.outcome}"
    return replace(decided, outcome=outcome, beside=also.estimates)


def _against_band(runs: pd.DataFrame, of: str) -> Decision:
    """Each temperature against the mean of those in the band; ``of`` names the students."""
    errors = of_each(runs, "temperature")
    low, high = BAND
    band = mean_of(e for t, e in errors.items() if low <= t <= high)
    more = {t: e - band for t, e in errors.items() if not low <= t <= high}
    worse = {t: greater([*d.dropna()]) for t, d in more.items()}  # all of them at once
    fewer = [greater([*(-d).dropna()]) for d in more.values()]
    best = min(errors, key=lambda t: float(errors[t].mean()))
    outcome = (
        f"more errors than from T = {low:g} to {high:g}: "
        + ", ".join(
            f"{counted(estimate('', more[t].dropna()))} at T = {t:g} (p = {p:.2g})"
            for t, p in worse.items()
        )
        + f"; the fewest are at T = {best:g}"
    )
    return Decision(
        (
            estimate(f"{of}, T from {low:g} to {high:g}", band),
            *(estimate(f"{of}, T = {t:g}", errors[t]) for t in more),
        ),
        decide([*worse.values()], fewer),
        outcome,
    )


# C6 and C7

SHIFTS = {  # by how they are chosen, that of the paper first
    "oracle": "chosen on the test set",
    "bias": "chosen on training images",
    "mass": "chosen without any label of the omitted",
}


def _of_class(runs: pd.DataFrame, column: str, label: int) -> "pd.Series[float]":
    """Errors among the test images of one class, one value for each seed."""
    classes = runs.assign(one=[int(text.split()[label]) for text in runs[column]])
    return by_seed(classes, "one")


def _mended(
    what: str, before: "pd.Series[float]", after: "pd.Series[float]", unit: str = "errors"
) -> Part:
    """Whether a shift takes away more than half of the errors ``before`` it, within seeds."""
    mended, rest = (before - after).dropna(), (0.5 * before - after).dropna()
    found = estimate(what, mended, unit)
    said = f"{what}: {counted(found)}, of {before.mean():.4g} before it"
    p, opposite = both(rest)
    return Part(found, p, opposite, f"{said}, more than half: p = {p:.2g}")


def omitted_three(runs: pd.DataFrame) -> Decision:
    (label, paper), *others = by_alpha(runs).items()
    omitted = int(paper["transfer_classes"].iloc[0])
    parts: dict[str, list[Part]] = {}
    unshifted = _of_class(paper, "test_errors_by_class", omitted)
    for name, how in SHIFTS.items():
        column = f"{name}_shift_test_errors"
        threes = _of_class(paper, f"{column}_by_class", omitted)
        parts[name] = [
            at_most(f"after a shift {how}", [*by_seed(paper, column)], 109),
            at_most("threes of them", [*threes], 0.014 * THREES),  # 98.6 % are right
            _mended(f"threes mended by a shift {how}", unshifted, threes),
        ]
    first = parts.pop("oracle")
    beside = [
        estimate(f"no {omitted} seen, {label}", by_seed(paper)),
        estimate("of them threes", unshifted),
        *(estimate(f"its shift, {how}", by_seed(paper, f"{name}_shift"), "logits")
          for name, how in SHIFTS.items()),
        *(part.estimate for own in parts.values() for part in own),
        *(estimate(f"{label}, after the shift", by_seed(own, "oracle_shift_test_errors"))
          for label, own in others),
    ]  # fmt: skip
    also = "; ".join(
        f"by a shift {SHIFTS[name]} it would be {of_parts(own)} "
        f"({', '.join(counted(part.estimate) for part in own)})"
        for name, own in parts.items()
    )
    decided = together(first, beside)
    return replace(decided, outcome=f"{decided.outcome}; {also}")


def two_digits(runs: pd.DataFrame) -> Decision:
    (label, paper), *others = by_alpha(runs).items()
    kept = " and ".join(str(paper["transfer_classes"].iloc[0]).split())

    def share(own: pd.DataFrame, column: str) -> "pd.Series[float]":
        return 100 * by_seed(own, column) / TESTED

    parts: dict[str, list[Part]] = {}
    before, unit = share(paper, "test_errors"), "% errors"
    for name, how in SHIFTS.items():
        after = share(paper, f"{name}_shift_test_errors")
        parts[name] = [
            at_most(f"after a shift {how}", [*after], 13.2, unit),
            _mended(f"mended by a shift {how}", before, after, unit),
        ]
    first = parts.pop("oracle")
    beside = [
        estimate(f"only {kept} seen, {label}", before, unit),
        estimate("its shift", by_seed(paper, "oracle_shift"), "logits"),
        *(part.estimate for own in parts.values() for part in own),
        *(estimate(f"{label}, after the shift", share(own, "oracle_shift_test_errors"), unit)
          for label, own in others),
    ]  # fmt: skip
    return together(first, beside)
