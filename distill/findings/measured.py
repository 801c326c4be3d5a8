"""Claims on what `bench.functions` and `bench.gradients` measure of students.

Each row is of a seed; what is said of its student are the columns ``student.KEY``. The tests were
written down before anything was measured for them but single tries with other seeds, which is why
seeds count from 10 on. A test is of the logarithms of ratios, to base 2, over seeds.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from distill.findings.claim import Claim
from distill.findings.decisions import Decision, both, decide, estimate
from distill.findings.preconditions import LARGE, Conditions, seeds
from distill.report.numbers import counted

HALF, TWICE = 0.5, 2.0
LIMIT = (1, 100, 1000)  # temperatures of C11
LARGE_T = 100  # from which they count as large
TEMPERATURES = (1, 2, 4, 6, 10, 20)


def _student(n: int, conditions: Conditions) -> Conditions:
    """Conditions on the students of ``n`` seeds; what they say of the seed is the row's own."""
    own = {f"student.{key}": value for key, value in conditions.items() if key != "seed"}
    return {"seed": seeds(n)["seed"], **own}


def _table(rows: pd.DataFrame, column: str, wanted: Sequence[str]) -> pd.DataFrame:
    """A ``column`` of rows by seed, and by what they are ``of``: all, or what is ``wanted``.

    Raises:
        ValueError: a seed has none, or more than one.
    """
    if rows.duplicated(["seed", "of"]).any():
        raise ValueError(f"more than one {column} of a seed")
    table = rows.pivot(index="seed", columns="of", values=column).astype(float)
    table = table.reindex(columns=[*(wanted or rows["of"].unique())])
    for name, values in table.items():
        for seed in values.index[values.isna()]:
            raise ValueError(f"no {column} of seed {seed}, {name}")
    return table


def _below(ratios: pd.DataFrame, bound: float) -> tuple[list[float], list[float]]:
    """The p values that each of the ratios is below a bound, and that it is above."""
    pairs = [both(np.log2(bound / ratios[name])) for name in ratios]
    return [below for below, _ in pairs], [above for _, above in pairs]


def functions(rows: pd.DataFrame) -> Decision:
    """C11: distances of students at T from one that matches logits, over those of two such."""
    own = rows.sort_values("temperature").assign(of=rows["temperature"].map("T = {:g}".format))
    distances, two = (_table(own, column, []) for column in ("distance", "between"))
    ratios = distances / two
    high = [*own["of"][own["temperature"] >= LARGE_T].unique()]
    below, above = _below(ratios[high], HALF)
    farther, nearer = both(np.log2(ratios["T = 1"] / ratios["T = 1000"]))  # both share the start
    found = {
        t: estimate(f"over that of two that match logits, {t}", ratios[t], "times") for t in ratios
    }
    apart = estimate("rms distance of two that match logits", two[high[0]], "logits")
    outcome = "; ".join(
        f"{t}: {counted(found[t])}, p = {p:.2g} that it is below {HALF:g}"
        for t, p in zip(high, below, strict=True)
    )
    outcome += f"; T = 1 is farther than T = 1000: p = {farther:.2g}"
    verdict = decide([*below, farther], [*above, nearer])
    return Decision((apart, *found.values()), verdict, outcome)


def _named(temperatures: "pd.Series[float]") -> "pd.Series[str]":
    return temperatures.map("T = {:g}".format)


AT = [*map("T = {:g}".format, TEMPERATURES)]


def _initial(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column by seed: of "labels", and of soft targets by their temperature, as "T = 20"."""
    own = rows[rows["state"] == "initial"]
    of = _named(own["temperature"]).where(own["target"] == "soft", "labels")
    return _table(own.assign(of=of), column, ["labels", *AT])


def _ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Norms of soft over hard gradients by seed, of the students of each temperature, trained."""
    own = rows[rows["state"] == "trained"]
    own = own.assign(of=_named(own["student.temperature"]))
    itself = own["temperature"] == own["student.temperature"]
    soft = _table(own[(own["target"] == "soft") & itself], "norm", AT)
    return soft / _table(own[own["target"] == "labels"], "norm", AT)


def _change(ratios: pd.DataFrame) -> "pd.Series[float]":
    return ratios.max(axis=1) / ratios.min(axis=1)


def contributions(rows: pd.DataFrame) -> Decision:
    """C12: how far the ratio of the gradients' norms changes with T, each T's student trained."""
    ratios, first = _ratios(rows), _initial(rows, "norm")
    before = first.drop(columns="labels").div(first["labels"], axis=0)
    change = _change(ratios)
    [p], above = _below(change.to_frame(), TWICE)
    each = (estimate(f"soft over hard gradient, {t}", ratios[t], "times") for t in ratios)
    found = estimate("largest over smallest", change, "times")
    beside = (
        *(estimate(f"as initialised, {t}", before[t], "times") for t in before),
        estimate("as initialised, largest over smallest", _change(before), "times"),
    )
    outcome = (
        f"of trained students it changes {counted(found)} times from T = 1 to 20, p = {p:.2g} "
        f"that by less than {TWICE:g}"
    )
    return Decision((*each, found), decide([p], above), outcome, beside)


def mechanism(rows: pd.DataFrame) -> Decision:
    """C9: the gradient noise scale of soft targets at T = 20 over that of labels."""
    scales = _initial(rows, "noise_scale")
    ratio = scales["T = 20"] / scales["labels"]
    [p], above = _below(ratio.to_frame(), HALF)
    shown = ("labels", "T = 1", "T = 2", "T = 4", "T = 20")
    estimates = tuple(estimate(f"noise scale, {of}", scales[of], "images") for of in shown)
    times = counted(estimate("", ratio))
    outcome = f"at T = 20 {times} times that of labels, p = {p:.2g} that it is below {HALF:g}"
    return Decision(estimates, decide([p], above), outcome)


LIMITS = _student(10, {**LARGE, "epochs": (40,)})
# With the labels that C12 weighs soft targets against, by the weight that the paper states.
STUDENTS = _student(5, {**LARGE, "alpha": (0.6667,), "temperature": TEMPERATURES, "epochs": (60,)})
COMPARED = ("state", "target", "temperature", "student.temperature")

CLAIMS = (
    Claim(
        "C9 (mechanism)",
        "gradients",
        "Soft targets of high entropy have much less variance in the gradient between training "
        "cases than labels",
        "a sentence",
        "n = 5 (seeds 10 to 14), students of 300 units as they are initialised, whatever they "
        "are then trained at: the gradient noise scale tr(Sigma) / |G|^2 of soft targets at T = "
        "20 over that of labels is below 1/2 (one-sided t test of its log2 + 1 below 0, p < "
        "0.05); not reproduced if significantly above 1/2.",
        mechanism,
        (STUDENTS,),
        COMPARED,
        {"state": ("initial",), "target": ("labels", "soft"), "temperature": TEMPERATURES},
    ),
    Claim(
        "C11 (students)",
        "functions",
        "So a student that matches logits is the function that one at a large temperature is, "
        "given the same start",
        "an identity",
        "n = 10 (seeds 10 to 19). For each T of 100 or more (100 and 1,000, beside 1) the rms "
        "distance, over test images and classes, of the zero-meaned logits of the student at T "
        "from those of the student of its seed and teacher that matches logits is at most half "
        "of the distance of that student from another of the same teacher that matches logits, "
        "of another seed (one-sided t test of log2 of the ratio + 1 below 0, each p < 0.05). The "
        "first two share initialisation and order, the other two neither, so it is also wanted "
        "that the student at T = 1, which shares them, is farther than that at T = 1,000 "
        "(one-sided t test of log2 of the ratio, p < 0.05). Not reproduced if significantly "
        "above half at one of the large ones, or if T = 1 is significantly nearer (Holm).",
        functions,
        (LIMITS,),
        ("temperature", "student.temperature"),
        {"temperature": LIMIT},
    ),
    Claim(
        "C12 (contributions)",
        "gradients",
        "With the factor T^2 the relative contributions of hard and soft targets remain roughly "
        "unchanged if the temperature is changed",
        "a sentence",
        "n = 5 (seeds 10 to 14), students of 300 units, each temperature with its own, trained "
        "with labels in the loss (alpha = 2/3). The root mean square norm of the gradient of a "
        "batch of the training's size, drawn from the training images, of T^2 KL over that of "
        "cross-entropy with labels, on the trained student at its own T = 1, 2, 4, 6, 10, 20: "
        "for each seed the largest over the smallest is at most 2 (one-sided t test of its log2 "
        "below 1, p < 0.05); not reproduced if significantly above 2. Of a batch, since the mean "
        "gradients of both targets cancel where training ends, in the ratio of their weights. "
        "Beside it the same of students as they are initialised, which decides nothing.",
        contributions,
        (STUDENTS,),
        COMPARED,
        {
            **{"state": ("initial", "trained"), "target": ("labels", "soft")},
            **{"temperature": TEMPERATURES, "student.temperature": TEMPERATURES},
        },
    ),
)
