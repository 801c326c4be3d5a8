"""How the claims of the paper and the post are decided, each as its test in `claims` says."""

import math
from collections.abc import Collection
from dataclasses import replace
from itertools import combinations

import pandas as pd

from distill.findings.decisions import (
    Decision,
    Part,
    above,
    at_most,
    better,
    beyond,
    by_seed,
    estimate,
    like,
    mean_of,
    of_each,
    over_images,
    significant,
    together,
    worst,
)
from distill.findings.preconditions import CHOICES, CHOOSING, lacking
from distill.report.contents import NOT, REPRODUCED, UNDECIDED, Estimate
from distill.report.numbers import counted, text
from distill.report.statistics import SIGNIFICANT, equivalent, greater, holm

STATED = 0.6667  # alpha: the one weight that the paper states, 0.5 of labels beside T^2 (section 4)
APART = {300: 8.0, 800: 11.0}  # errors, by width: a quarter of what T = 1 cost in earlier sweeps
ENOUGH = {300: 24, 800: 12}  # seeds, by width: a power of 80 % (bench/LOG.md)
SENSITIVE = 0.05  # the margin beside it, as a share of the errors
HIGH = (10.0, 15.0, 20.0, 40.0, 100.0)  # temperatures
LABELLED = (10.0, 20.0, 100.0)  # those of C4 with labels in the loss
BAND = (2.5, 4.0)  # temperatures
TRIED = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 20, 40)  # of 30 units
MUCH = 2.0  # "much higher": at least twice
# A longest step is known to an octave, the grid's. The rounding of its logarithm to base 2, being
# uniform, has this standard deviation, that of a difference of two sqrt(2) times it.
ROUNDED = math.sqrt(1 / 12)
TOLERATED = 1.1  # a learning rate is borne if it costs at most a tenth more errors than the best
STEPS = 0.05  # by at most this share, equal numbers of steps differ
THREES, TESTED = 1010, 10_000  # among the test images of MNIST, a precondition


# C1 to C3


def _teachers(runs: pd.DataFrame, column: str = "teacher_test_errors") -> list[float]:
    """The errors of the teachers of the runs, each of which counts once.

    Raises:
        ValueError: one has several figures.
    """
    taught = runs.dropna(subset=[column]).drop_duplicates(["teacher_digest", column])
    if taught["teacher_digest"].duplicated().any():
        raise ValueError(f"more than one {column} of a teacher_digest")
    return [*taught[column].astype(float)]


def teachers(runs: pd.DataFrame) -> Decision:
    column = "teacher_test_wrong"
    own = runs.drop_duplicates("teacher_digest")
    return together([at_most("teacher", _teachers(runs), 67, images=over_images(own, column))])


def hard_student(runs: pd.DataFrame) -> Decision:
    hard = runs[runs["alpha"] == 0]
    return together([like("hard student", [*by_seed(hard)], 146, over_images(hard))])


def _by_alpha(runs: pd.DataFrame) -> "dict[str, pd.DataFrame]":
    """The runs with soft targets by what their label says of alpha, that of the paper first."""
    alphas = sorted({*runs["alpha"]} - {0}, key=lambda alpha: (alpha != STATED, alpha))
    return {f"alpha {_weight(alpha)}": runs[runs["alpha"] == alpha] for alpha in alphas}


def _weight(alpha: float) -> str:
    return "2/3" if alpha == STATED else text(alpha)


def distilled_student(runs: pd.DataFrame) -> Decision:
    hard = by_seed(runs[runs["alpha"] == 0])
    (label, paper), *others = _by_alpha(runs).items()
    soft = by_seed(paper)
    gain = estimate("errors fewer than the hard student", (hard - soft).dropna(), "errors")
    p = better(hard, soft)
    fewer = Part(gain, significant(p), f"{counted(gain)} fewer than the hard student, p = {p:.2g}")
    beside = (estimate(f"distilled student, {label}", by_seed(own)) for label, own in others)
    part = at_most(f"distilled student, {label}", [*soft], 74, images=over_images(paper))
    return together([part, fewer], beside)


# C4 and C5


def similar_temperatures(runs: pd.DataFrame) -> Decision:
    estimates, verdicts, outcomes = [], [], []
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
        apart = min(holm([beyond(d, margin) for d in pairs.values()]))
        narrow = SENSITIVE * float(mean_of(high.values()).mean())
        _, also = _least_alike(pairs, narrow)
        estimates += [estimate(f"{text(width)} units, T = {t:g}", e) for t, e in high.items()]
        verdicts.append(NOT if apart < SIGNIFICANT else significant(p))
        outcomes.append(
            f"{text(width)} units: means of T = {min(high):g} to {max(high):g} at most "
            f"{_range(high):.1f} errors apart; each pair within {margin:g}: largest "
            f"p = {p:.2g} (T = {a:g}, {b:g}); within {100 * SENSITIVE:.0f} % ({narrow:.1f}): "
            f"largest p = {also:.2g}"
        )
    beside = of_each(labelled, "temperature") if len(labelled) else {}
    label = f"alpha {_weight(STATED)}"
    if len(beside) > 1:
        (a, b), p = _least_alike(_pairs(beside), APART[300])
        outcomes.append(
            f"with labels in the loss ({label}) means at most {_range(beside):.1f} errors apart; "
            f"each pair within {APART[300]:g}: largest p = {p:.2g} (T = {a:g}, {b:g})"
        )
    return Decision(
        tuple(estimates),
        worst(verdicts),
        "; ".join(outcomes),
        tuple(estimate(f"300 units, {label}, T = {t:g}", e) for t, e in beside.items()),
    )


Pairs = dict[tuple[float, float], list[float]]


def _pairs(errors: "dict[float, pd.Series[float]]") -> Pairs:
    """The differences within seeds of each two temperatures."""
    both = combinations(sorted(errors), 2)
    return {(a, b): [*(errors[b] - errors[a]).dropna()] for a, b in both}


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
    label = f"alpha {_weight(STATED)}"
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
    fewer = holm([greater([*(-d).dropna()]) for d in more.values()])
    verdict = NOT if min(fewer) < SIGNIFICANT else significant(max(worse.values()))
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
        verdict,
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
    return Part(found, above(rest), f"{said}, more than half: p = {greater([*rest]):.2g}")


def omitted_three(runs: pd.DataFrame) -> Decision:
    (label, paper), *others = _by_alpha(runs).items()
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
        f"by a shift {SHIFTS[name]} it would be {worst(part.verdict for part in own)} "
        f"({', '.join(counted(part.estimate) for part in own)})"
        for name, own in parts.items()
    )
    decided = together(first, beside)
    return replace(decided, outcome=f"{decided.outcome}; {also}")


def two_digits(runs: pd.DataFrame) -> Decision:
    (label, paper), *others = _by_alpha(runs).items()
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


# C8 to C10


def less_data(runs: pd.DataFrame) -> Decision:
    steps = runs["epochs"] * runs["transfer_examples"]
    if steps.max() > (1 + STEPS) * steps.min():
        raise ValueError("equal numbers of steps: train.epochs times transfer_examples")
    share = "transfer_fraction"
    hard = of_each(runs[runs["alpha"] == 0], share, "best_test_errors")
    soft = of_each(runs[runs["alpha"] == 1], share)
    lost_hard, lost_soft = hard[0.03] - hard[1.0], soft[0.03] - hard[1.0]
    p, spared = better(hard[0.03], soft[0.03]), 0.5 * lost_hard - lost_soft
    half = greater([*spared])
    estimates = tuple(
        estimate(f"{name}, {100 * fraction:.0f} % of the data", errors[fraction])
        for fraction in (0.03, 1.0)
        for name, errors in (("hard, stopped early", hard), ("soft", soft))
    )
    outcome = (
        f"at 3 % soft targets have {-(soft[0.03] - hard[0.03]).mean():.0f} errors fewer than "
        f"labels (p = {p:.2g}), and lose {lost_soft.mean():.0f} against all data with labels, "
        f"labels {lost_hard.mean():.0f}; less than half of it: p = {half:.2g}"
    )
    return Decision(estimates, worst([significant(p), above(spared)]), outcome)


def borne(runs: pd.DataFrame, grid: Collection[float]) -> pd.DataFrame:
    """The longest step of each seed that costs little more than the best (TOLERATED), in octaves.

    ``more`` says that it may be longer: it is the longest of the ``grid``; ``less`` that it may be
    shorter: the shortest one has the fewest errors, so that the best may lie below. One whose run
    diverged has infinitely many.

    Raises:
        ValueError: a seed has not just one run of each of the grid, or all diverged.
    """
    found = {}
    for seed, group in runs.groupby("seed"):
        errors = group.set_index("lr")["test_errors"].astype(float).fillna(math.inf)
        if sorted(errors.index) != sorted(grid):
            raise ValueError(f"not one run of each learning rate of seed {seed}")
        if math.isinf(errors.min()):
            raise ValueError(f"all of seed {seed} diverged")
        longest = max(errors.index[errors <= TOLERATED * errors.min()])
        ends = longest == max(grid), errors[min(grid)] == errors.min()
        found[seed] = (math.log2(longest), *ends)
    return pd.DataFrame.from_dict(found, orient="index", columns=["octave", "more", "less"])


def learning_rate(runs: pd.DataFrame) -> Decision:
    grid = {*runs["lr"]}
    hard = borne(runs[runs["alpha"] == 0], grid)
    taught = runs[runs["alpha"] == 1]
    softest = float(taught["temperature"].max())
    soft, left = {}, ""
    for t, group in taught.groupby("temperature"):
        try:
            soft[float(str(t))] = borne(group, grid)
        except ValueError as error:
            if t == softest:
                raise
            left += f"; T = {t:g}: {error}"
    octaves = {t: (own["octave"] - hard["octave"]).dropna() for t, own in soft.items()}
    least, much = math.sqrt(2) * ROUNDED, math.log2(MUCH)
    longer = {t: greater([*values], 0, least) for t, values in octaves.items()}
    short = {t: greater([*-values], -much, least) for t, values in octaves.items()}
    found = {
        t: estimate(f"soft over hard, T = {t:g}", values, "octaves", least)
        for t, values in octaves.items()
    }
    less, more = soft[softest]["less"] | hard["more"], soft[softest]["more"] | hard["less"]
    verdict = UNDECIDED
    if short[softest] < SIGNIFICANT:
        verdict = UNDECIDED if more.any() else NOT
    elif octaves[softest].mean() >= much and not less.any():
        verdict = significant(longer[softest])
    outcome = "; ".join(
        f"octaves longer at T = {t:g}: {counted(found[t])}, p = {longer[t]:.2g} that above 0, "
        f"{short[t]:.2g} below {much:g}"
        for t in sorted(found, reverse=True)
    )
    for bound, seeds in (("less", less.sum()), ("more", more.sum())):
        if seeds:
            outcome += f"; at T = {softest:g} of {seeds} seeds it may be {bound}, at the grid's end"
    outcome += left
    beside = (
        *(found[t] for t in sorted(found, reverse=True) if t != softest),
        *(
            estimate(f"log2 of the longest step borne, {of}", own["octave"], "octaves", ROUNDED)
            for of, own in (("hard", hard), *((f"soft, T = {t:g}", own) for t, own in soft.items()))
        ),
    )
    return Decision((found[softest],), verdict, outcome, beside)


def choice(runs: pd.DataFrame) -> list[tuple[float, float, float]]:
    """Temperatures, alphas, and mean validation errors, the fewest first, of equal ones the lower.

    Only pairs count that did not diverge with any seed.

    Raises:
        ValueError: not all pairs have a run of each seed, or all diverged.
    """
    by = ["temperature", "alpha"]
    errors = runs.assign(**{key: runs[key].astype(float) for key in (*by, "val_errors")})
    table = errors.pivot(index=by, columns="seed", values="val_errors")
    wanted = math.prod(map(len, CHOICES.values()))
    if len(runs) != wanted * len(CHOOSING) or table.shape != (wanted, len(CHOOSING)):
        raise ValueError(
            f"one of each temperature, alpha and seed that choose; {len(runs)} of them"
        )
    rows = table.dropna().mean(axis=1).reset_index().to_numpy(dtype=float).tolist()
    if not rows:
        raise ValueError("no setting is complete with all seeds")
    return sorted(((t, alpha, mean) for t, alpha, mean in rows), key=lambda row: (row[2], *row))


def ensemble_gain(runs: pd.DataFrame) -> Decision:
    tested = runs["test"].astype(bool)
    (temperature, alpha, least), *_ = choice(runs[~tested])
    runs = runs[tested]
    soft = runs[(runs["alpha"] == alpha) & (runs["temperature"] == temperature)]
    single = by_seed(runs[(runs["alpha"] == 0)])
    distilled = by_seed(soft) if len(soft) else single[:0]
    if {*single.index} != {*distilled.index}:
        pair = f"T = {temperature:g}, alpha {_weight(alpha)}"
        raise ValueError(
            f"single and distilled models of the same seeds, at what was chosen, {pair}"
        )
    ensemble = by_seed(soft, "teacher_test_errors")
    gained, kept = single - ensemble, single - distilled
    most = kept - 0.5 * gained
    p_gain, p_most = greater([*gained]), greater([*most])
    estimates = (
        estimate("single model", single),
        estimate("ensemble", ensemble),
        estimate("distilled single model", distilled),
        *(estimate(f"{name}, test loss", by_seed(own, column), "nats")
          for name, own, column in (("single model", runs[runs["alpha"] == 0], "test_loss"),
                                    ("distilled", soft, "test_loss"))),
    )  # fmt: skip
    share = kept.mean() / gained.mean()
    outcome = (
        f"T = {temperature:g}, alpha {_weight(alpha)} have the fewest validation errors "
        f"({least:.1f}); the ensemble gains {gained.mean():.1f} errors (p = {p_gain:.2g}), of "
        "which the distilled "
        f"model keeps {100 * share:.0f} %; more than half: p = {p_most:.2g}"
    )
    return Decision(estimates, worst(map(above, (gained, most))), outcome)


# C11 to C13


def identity(runs: pd.DataFrame) -> Decision:
    most = runs["deviation"].max()
    label = "largest relative deviation, float64"
    found = Estimate(label, int(runs["examples"].sum()), most, math.nan, math.nan, "")
    verdict = REPRODUCED if most <= 1e-6 else NOT
    temperatures = ", ".join(f"{t:g}" for t in runs["temperature"])
    return Decision((found,), verdict, f"{most:.1e} at T = {temperatures}; at most 1e-6 is wanted")


def post(runs: pd.DataFrame) -> Decision:
    column = "test_shifted_errors"
    hard, soft = runs[runs["alpha"] == 0], runs[runs["alpha"] > 0]
    parts = [
        at_most("teacher, shifted images", _teachers(runs, f"teacher_{column}"), 99),
        at_most("hard student, shifted images", [*by_seed(hard, column)], 119),
        at_most("distilled student, shifted images", [*by_seed(soft, column)], 109),
    ]
    beside = (
        estimate("teacher, centred images", _teachers(runs)),
        estimate("hard student, centred images", by_seed(hard)),
        estimate("distilled student, centred images", by_seed(soft)),
    )
    return together(parts, beside)
