"""How C8 to C13, of the paper and of the post, are decided, each as its test in `claims` says."""

import math
from collections.abc import Collection

import pandas as pd

from distill.findings.decisions import (
    Decision,
    at_most,
    better,
    both,
    by_seed,
    decide,
    estimate,
    of_each,
    of_teachers,
    together,
    weight,
)
from distill.findings.preconditions import CHOICES, CHOOSING
from distill.report.contents import NOT, REPRODUCED, UNDECIDED, Estimate
from distill.report.numbers import counted
from distill.report.statistics import SIGNIFICANT, greater

MUCH = 2.0  # "much higher": at least twice
# A longest step is known to an octave, the grid's. The rounding of its logarithm to base 2, being
# uniform, has this standard deviation, that of a difference of two sqrt(2) times it.
ROUNDED = math.sqrt(1 / 12)
TOLERATED = 1.1  # a learning rate is borne if it costs at most a tenth more errors than the best
STEPS = 0.05  # by at most this share, equal numbers of steps differ


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
    half, more = both(spared)
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
    return Decision(estimates, decide([p, half], [more]), outcome)


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
        verdict = decide([longer[softest]], [])
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
        pair = f"T = {temperature:g}, alpha {weight(alpha)}"
        raise ValueError(
            f"single and distilled models of the same seeds, at what was chosen, {pair}"
        )
    ensemble = by_seed(soft, "teacher_test_errors")
    gained, kept = single - ensemble, single - distilled
    most = kept - 0.5 * gained
    (p_gain, lost), (p_most, least_kept) = both(gained), both(most)
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
        f"T = {temperature:g}, alpha {weight(alpha)} have the fewest validation errors "
        f"({least:.1f}); the ensemble gains {gained.mean():.1f} errors (p = {p_gain:.2g}), of "
        f"which the distilled model keeps {100 * share:.0f} %; more than half: p = {p_most:.2g}"
    )
    return Decision(estimates, decide([p_gain, p_most], [lost, least_kept]), outcome)


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
        at_most("teacher, shifted images", of_teachers(runs, f"teacher_{column}"), 99),
        at_most("hard student, shifted images", [*by_seed(hard, column)], 119),
        at_most("distilled student, shifted images", [*by_seed(soft, column)], 109),
    ]
    beside = (
        estimate("teacher, centred images", of_teachers(runs)),
        estimate("hard student, centred images", by_seed(hard)),
        estimate("distilled student, centred images", by_seed(soft)),
    )
    return together(parts, beside)
