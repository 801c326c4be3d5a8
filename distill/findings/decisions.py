"""How claims are decided: from the runs of a sweep to estimates, a verdict and why.

Each is given runs that meet the claim's preconditions, and raises KeyError or ValueError where some
are lacking. `distill.findings.claims` has the preconditions, and each test in words.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from distill.report.contents import NOT, REPRODUCED, UNDECIDED, Estimate
from distill.report.numbers import counted, text
from distill.report.statistics import SIGNIFICANT, equivalent, greater, holm, interval

FAIRLY = 0.10  # "fairly similar": within a tenth of the width's mean errors
MUCH = 2.0  # "much higher": at least twice
TOLERATED = 1.1  # a learning rate is borne if it costs at most a tenth more errors than the best
THREES, TESTED = 1010, 10_000  # among the test images of MNIST, a precondition


@dataclass(frozen=True)
class Decision:
    """What a test gave."""

    estimates: tuple[Estimate, ...]
    verdict: str
    outcome: str


def by_seed(runs: pd.DataFrame, column: str = "test_errors") -> "pd.Series[float]":
    """Values of ``column``, one a seed.

    Raises:
        ValueError: there are none, or several of a seed.
    """
    values = runs.set_index("seed")[column].dropna().astype(float).sort_index()
    if values.empty or values.index.has_duplicates:
        raise ValueError(f"{'no' if values.empty else 'more than one'} {column} of a seed")
    return values


def estimate(label: str, values: Iterable[float], unit: str = "test errors") -> Estimate:
    """The mean of ``values`` and its interval."""
    found = interval([*values])
    return Estimate(label, found.n, found.mean, found.low, found.high, unit)


def at_most(found: Estimate, figure: float) -> tuple[str, str]:
    """The verdict whether a mean reaches the source's ``figure`` or less, and why."""
    where = "above" if found.low > figure else "below" if found.high < figure else "around"
    verdict = NOT if where == "above" else REPRODUCED
    return verdict, f"{found.label}: {counted(found)}; the interval lies {where} {figure:g}"


def _all(verdicts: Iterable[str]) -> str:
    """The verdict of a claim of several parts: the worst of theirs."""
    given = set(verdicts)
    return next(v for v in (NOT, UNDECIDED, REPRODUCED) if v in given)


def _significant(p: float) -> str:
    return UNDECIDED if math.isnan(p) or p >= SIGNIFICANT else REPRODUCED


def _above(differences: Iterable[float]) -> str:
    """The verdict whether a mean is above 0: reproduced, or not where it is significantly below."""
    values = [*differences]
    below = _significant(greater([-value for value in values]))
    return NOT if below == REPRODUCED else _significant(greater(values))


def _better(worse: "pd.Series[float]", better: "pd.Series[float]") -> float:
    """The p value of a paired one-sided test that ``better`` has fewer errors than ``worse``."""
    return greater([*(worse - better).dropna()])


def _of(runs: pd.DataFrame, setting: str) -> "dict[float, pd.Series[float]]":
    """Errors by seed for each value of ``setting``, the least first."""
    return {float(str(value)): by_seed(group) for value, group in runs.groupby(setting)}


def _mean(parts: "Iterable[pd.Series[float]]") -> "pd.Series[float]":
    """The mean of several settings, one value for each seed that all of them have."""
    return pd.concat([*parts], axis=1, join="inner").mean(axis=1)


# C1 to C3


def _teachers(runs: pd.DataFrame) -> Estimate:
    """The errors of the teachers of the runs, each of which counts once.

    Raises:
        ValueError: one has several figures.
    """
    taught = runs.dropna(subset=["teacher_test_errors"])
    taught = taught.drop_duplicates(["teacher_digest", "teacher_test_errors"])
    if taught["teacher_digest"].duplicated().any():
        raise ValueError("more than one teacher_test_errors of a teacher_digest")
    return estimate("teacher", taught["teacher_test_errors"])


def teachers(runs: pd.DataFrame) -> Decision:
    found = _teachers(runs)
    return Decision((found,), *at_most(found, 67))


def hard_student(runs: pd.DataFrame) -> Decision:
    found = estimate("hard student", by_seed(runs[runs["alpha"] == 0]))
    return Decision((found,), *at_most(found, 146))


def distilled_student(runs: pd.DataFrame) -> Decision:
    taught = runs[runs["alpha"] == 1]
    hard, soft = by_seed(runs[runs["alpha"] == 0]), by_seed(taught)
    found = estimate(f"distilled student, T = {text(taught['temperature'].iloc[0])}", soft)
    gain = estimate("errors fewer than the hard student", (hard - soft).dropna(), "errors")
    verdict, outcome = at_most(found, 74)
    p = _better(hard, soft)
    better = f"{counted(gain)} fewer than the hard student, p = {p:.2g}"
    return Decision((found, gain), _all([verdict, _significant(p)]), f"{outcome}; {better}")


# C4 and C5


def similar_temperatures(runs: pd.DataFrame) -> Decision:
    estimates, verdicts, outcomes = [], [], []
    grids = set()
    for width, group in runs.groupby("width"):
        errors = _of(group, "temperature")
        grids.add(tuple(errors))
        mean = _mean(errors.values())
        margin = FAIRLY * float(mean.mean())
        distances = {t: (e - mean).dropna() for t, e in errors.items()}
        p_values = {t: equivalent([*d], margin) for t, d in distances.items()}
        worst, p = max(p_values.items(), key=lambda item: item[1])
        estimates.append(estimate(f"{text(width)} units, T > 8", mean))
        verdicts.append(_significant(p))
        outcomes.append(
            f"{text(width)} units: all of T = {min(errors):g} to {max(errors):g} within "
            f"{max(abs(d.mean()) for d in distances.values()):.1f} errors of their mean, margin "
            f"{margin:.1f}, largest p = {p:.2g} (T = {worst:g})"
        )
    if len(grids) > 1:
        raise ValueError("the widths have not the same temperatures")
    return Decision(tuple(estimates), _all(verdicts), "; ".join(outcomes))


def best_temperatures(runs: pd.DataFrame) -> Decision:
    errors, width = _of(runs, "temperature"), text(runs["width"].iloc[0])
    parts = {
        "T below 2.5": [e for t, e in errors.items() if t < 2.5],
        "T from 2.5 to 4": [e for t, e in errors.items() if 2.5 <= t <= 4],
        "T above 4": [e for t, e in errors.items() if t > 4],
    }
    means = {label: _mean(part) for label, part in parts.items()}
    estimates = tuple(estimate(f"{width} units, {label}", mean) for label, mean in means.items())
    low, best, high = means.values()
    single = min(errors, key=lambda t: float(errors[t].mean()))
    p_values = holm([_better(low, best), _better(high, best)])
    worse = holm([_better(best, low), _better(best, high)])
    verdict = NOT if min(worse) < SIGNIFICANT else _significant(max(p_values))
    outcome = (
        f"fewer errors than at lower ones by {counted(estimate('', low - best))} "
        f"(p = {p_values[0]:.2g}), than at higher ones by {counted(estimate('', high - best))} "
        f"(p = {p_values[1]:.2g}; Holm); the best single temperature is T = {single:g}"
    )
    return Decision(estimates, verdict, outcome)


# C6 and C7


def _of_class(runs: pd.DataFrame, column: str, label: int) -> "pd.Series[float]":
    """Errors among the test images of one class, one value for each seed."""
    classes = runs.assign(one=[int(text.split()[label]) for text in runs[column]])
    return by_seed(classes, "one")


def omitted_three(runs: pd.DataFrame) -> Decision:
    after = estimate("after the shift", by_seed(runs, "oracle_shift_test_errors"))
    omitted = int(runs["transfer_classes"].iloc[0])
    threes = _of_class(runs, "oracle_shift_test_errors_by_class", omitted)
    right = estimate("threes right after it", 100 * (1 - threes / THREES), "%")
    unseen = _of_class(runs, "bias_shift_test_errors_by_class", omitted)
    estimates = (
        estimate(f"no {omitted} in the transfer set", by_seed(runs)),
        estimate("of them threes", _of_class(runs, "test_errors_by_class", omitted)),
        after,
        right,
        estimate("its shift", by_seed(runs, "oracle_shift"), "logits"),
        estimate(
            "after a shift chosen without test labels", by_seed(runs, "bias_shift_test_errors")
        ),
        estimate("threes right after that one", 100 * (1 - unseen / THREES), "%"),
    )
    verdict, outcome = at_most(after, 109)
    enough = REPRODUCED if right.high >= 98.6 else NOT
    return Decision(
        estimates, _all([verdict, enough]), f"{outcome}; {counted(right)} % of threes right"
    )


def two_digits(runs: pd.DataFrame) -> Decision:
    kept = " and ".join(str(runs["transfer_classes"].iloc[0]).split())
    columns = {
        f"only {kept} in the transfer set": "test_errors",
        "after the shift": "oracle_shift_test_errors",
        "after a shift chosen without test labels": "bias_shift_test_errors",
    }
    shares = [
        estimate(label, 100 * by_seed(runs, column) / TESTED, "% errors")
        for label, column in columns.items()
    ]
    shift = estimate("its shift", by_seed(runs, "oracle_shift"), "logits")
    return Decision((*shares, shift), *at_most(shares[1], 13.2))


# C8 to C10


def less_data(runs: pd.DataFrame) -> Decision:
    hard, soft = (_of(runs[runs["alpha"] == alpha], "transfer_fraction") for alpha in (0, 1))
    parts = [f for f in hard if f < 1]
    p_values = dict(zip(parts, holm([_better(hard[f], soft[f]) for f in parts]), strict=True))
    lost_hard, lost_soft = hard[0.03] - hard[1.0], soft[0.03] - hard[1.0]
    spared = 0.5 * lost_hard - lost_soft
    half = greater([*spared])
    estimates = tuple(
        estimate(f"{name}, {100 * fraction:.0f} % of the data", errors[fraction])
        for fraction in (0.03, 1.0)
        for name, errors in (("hard", hard), ("soft", soft))
    )
    outcome = (
        "hard minus soft: "
        + ", ".join(
            f"{(hard[f] - soft[f]).mean():.0f} errors at {f:.2g} (p = {p:.2g})"
            for f, p in p_values.items()
        )
        + f" (Holm); at 3 % soft targets lose {lost_soft.mean():.0f} errors against all data with "
        f"labels, labels {lost_hard.mean():.0f}; less than half of it: p = {half:.2g}"
    )
    verdict = _all([_significant(p_values[0.03]), _above(spared)])
    return Decision(estimates, verdict, outcome)


def borne(runs: pd.DataFrame) -> "pd.Series[float]":
    """The highest learning rate of each seed that costs little more than the best (TOLERATED)."""
    rates = {}
    for seed, group in runs.groupby("seed"):
        errors = group.set_index("lr")["test_errors"].astype(float)
        rates[seed] = max(errors.index[errors <= TOLERATED * errors.min()].astype(float))
    return pd.Series(rates, dtype=float)


def learning_rate(runs: pd.DataFrame) -> Decision:
    hard = borne(runs[runs["alpha"] == 0])
    groups = runs[runs["alpha"] == 1].groupby("temperature")
    soft = {float(str(t)): borne(group) for t, group in groups}
    ratios = {t: (rates / hard).dropna() for t, rates in soft.items()}
    octaves = {t: [math.log2(r) for r in ratio] for t, ratio in ratios.items()}
    above = {t: greater(values) for t, values in octaves.items()}
    short = {t: greater([math.log2(MUCH) - o for o in values]) for t, values in octaves.items()}
    times = {t: estimate(f"soft over hard, T = {t:g}", r, "times") for t, r in ratios.items()}
    estimates = (
        estimate("highest rate borne, hard", hard, "learning rate"),
        *(estimate(f"soft, T = {t:g}", rates, "learning rate") for t, rates in soft.items()),
        *times.values(),
    )
    lowest = min(ratios)
    verdict = UNDECIDED
    if short[lowest] < SIGNIFICANT:
        verdict = NOT
    elif ratios[lowest].mean() >= MUCH:
        verdict = _significant(above[lowest])
    outcome = "; ".join(
        f"at T = {t:g}: {counted(found)} times as high, p = {above[t]:.2g} that it is above 1, "
        f"{short[t]:.2g} below {MUCH:g}"
        for t, found in times.items()
    )
    return Decision(estimates, verdict, outcome)


def ensemble_gain(runs: pd.DataFrame) -> Decision:
    soft = runs[runs["alpha"] == 1]
    single, distilled = by_seed(runs[runs["alpha"] == 0]), by_seed(soft)
    ensemble = by_seed(soft, "teacher_test_errors")
    if soft["teacher_digest"].nunique() < len(ensemble):
        raise ValueError("an ensemble of its own for each seed")
    gained, kept = single - ensemble, single - distilled
    most = kept - 0.5 * gained
    p_gain, p_most = greater([*gained]), greater([*most])
    estimates = (
        estimate("single model", single),
        estimate("ensemble", ensemble),
        estimate("distilled single model", distilled),
    )
    share = kept.mean() / gained.mean()
    outcome = (
        f"the ensemble gains {gained.mean():.1f} errors (p = {p_gain:.2g}), of which the distilled "
        f"model keeps {100 * share:.0f} %; more than half: p = {p_most:.2g}"
    )
    return Decision(estimates, _all(map(_above, (gained, most))), outcome)


# C11 to C13


def identity(runs: pd.DataFrame) -> Decision:
    worst = runs["deviation"].max()
    label = "largest relative deviation, float64"
    found = Estimate(label, int(runs["examples"].sum()), worst, math.nan, math.nan, "")
    verdict = REPRODUCED if worst <= 1e-6 else NOT
    temperatures = ", ".join(f"{t:g}" for t in runs["temperature"])
    return Decision((found,), verdict, f"{worst:.1e} at T = {temperatures}; at most 1e-6 is wanted")


def post(runs: pd.DataFrame) -> Decision:
    parts = (
        (_teachers(runs), 99),
        (estimate("hard student", by_seed(runs[runs["alpha"] == 0])), 119),
        (estimate("distilled student", by_seed(runs[runs["alpha"] > 0])), 109),
    )
    verdicts, outcomes = zip(*(at_most(found, figure) for found, figure in parts), strict=True)
    return Decision(tuple(found for found, _ in parts), _all(verdicts), "; ".join(outcomes))
