"""Means and intervals of runs, by the settings in which they differ; what a figure is made of."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from distill.report.contents import Digit, Estimate
from distill.report.statistics import Interval, interval
from distill.runs.columns import COLUMNS, TERM

# What the sweeps of `bench` measure in the place of errors, and what stands beside it.
OTHERS = ("deviation", "distance", "noise_scale", "norm", "between")
_MEASURED = list(COLUMNS)[list(COLUMNS).index("train_loss") :]
_KNOWN = {
    *_MEASURED,
    *OTHERS,
    *("run", "status", "reason", "parameters", "multiply_adds", "seed"),
    *("teacher_digest", "teacher_test_errors", "transfer_examples"),
    *("test_wrong", "teacher_test_wrong"),  # which test images
}

WORDS = {
    "transfer_examples": "training examples",
    "lr": "learning rate",
    "transfer_fraction": "fraction of the data",
}
LOSSES = {"hard": "labels alone", "kd": "soft targets", "logits": "logit matching"}


@dataclass(frozen=True)
class Plot:
    """A figure: ``setting`` holds for the whole of it, ``caption`` says what to see."""

    kind: str
    title: str
    setting: str
    unit: str
    caption: str


@dataclass(frozen=True)
class Line:
    """Intervals ``y`` at ``x``, which rise."""

    label: str
    x: tuple[float, ...]
    y: tuple[Interval, ...]


@dataclass(frozen=True)
class Lines(Plot):
    """Lines over ``x``; ``teacher`` is where its errors lie, if they are known and one."""

    x: str
    lines: tuple[Line, ...]
    teacher: float | None = None


@dataclass(frozen=True)
class Grid(Plot):
    """Cells, rows by columns; ``excess`` is a mean over the best of its column, or of all, less 1.

    A cell without runs is None, and its excess nan.
    """

    rows: str
    columns: str
    row_values: tuple[float, ...]
    column_values: tuple[float, ...]
    cells: tuple[tuple[Interval | None, ...], ...]
    excess: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Gallery(Plot):
    """Digits, and the teacher's probabilities for each temperature (digits, temperatures, C)."""

    digits: tuple[Digit, ...]
    temperatures: tuple[float, ...]
    probabilities: tuple[tuple[tuple[float, ...], ...], ...]


def amount(value: float) -> str:
    """A measured figure as people read it."""
    if math.isnan(value):
        return "-"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def span(found: Interval | Estimate) -> str:
    """A mean and its interval, as far as it is known: 74.3 [70.1, 78.5]."""
    if math.isnan(found.low):
        return amount(found.mean)
    return f"{amount(found.mean)} [{amount(found.low)}, {amount(found.high)}]"


def counted(found: Estimate) -> str:
    """An estimate with its number of seeds: 74.2 [71.0, 77.4], n = 10."""
    return f"{span(found)}, n = {found.n}"


def share(value: float, sign: str = "") -> str:
    """A share of 1 in percent."""
    return f"{100 * value:{sign}.0f} %"


def text(value: object) -> str:
    """The value of a setting as people read it; nothing for a missing one."""
    if value is None or value is pd.NA:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def errors(runs: pd.DataFrame) -> str | None:
    """The column of errors of these runs: on the test set, or else on the validation split."""
    columns = ("test_errors", "val_errors")
    return next((c for c in columns if c in runs and runs[c].notna().any()), None)


def settings(runs: pd.DataFrame, *first: str) -> list[str]:
    """The columns that are settings, those of ``first`` ahead.

    A teacher of its own for each seed is none, as the order of the examples is none.
    """
    names = [c for c in map(str, runs.columns) if c not in _KNOWN and not c.startswith(TERM)]
    names = list(dict.fromkeys([*(c for c in first if c in runs), *names]))
    if "teacher.seed" in names and (runs.groupby("seed")["teacher.seed"].nunique() <= 1).all():
        names.remove("teacher.seed")
    return names


def varying(runs: pd.DataFrame, *first: str) -> list[str]:
    """The settings in which ``runs`` differ, those of ``first`` ahead.

    One that follows from those before it, as alpha may from the loss, is none of its own. Where
    runs of one seed differ in no setting, what else tells them apart is one: a mean is over seeds.
    """
    kept: list[str] = []
    for name in (n for n in settings(runs, *first) if runs[n].nunique(dropna=False) > 1):
        if not _follows(runs, name, kept):
            kept.append(name)
    for name in (n for n in ("teacher_digest", "version", "run") if n in runs):
        if "seed" in runs and runs.duplicated([*kept, "seed"]).any() and runs[name].nunique() > 1:
            kept.append(name)
    return kept


def _follows(runs: pd.DataFrame, name: str, kept: Sequence[str]) -> bool:
    """Whether all of ``kept``, or one of them, decide the setting ``name``.

    What tells each run apart, as all of a search's settings do, would decide everything.
    """

    def decide(keys: Sequence[str]) -> bool:
        count = runs.groupby(list(keys), dropna=False).ngroups
        both = runs.groupby([*keys, name], dropna=False).ngroups
        return bool(count == both < len(runs))

    return any(decide(keys) for keys in [kept, *([key] for key in kept)] if keys)


def groups(
    runs: pd.DataFrame, keys: Sequence[str]
) -> Iterator[tuple[tuple[object, ...], pd.DataFrame]]:
    """The rows of each combination of ``keys``, in their order."""
    if not keys:
        yield (), runs
        return
    for values, rows in runs.groupby(list(keys), dropna=False):
        yield tuple(values), rows


def words(setting: str) -> str:
    """A setting in words."""
    return WORDS.get(setting, setting).replace("_", " ")


def label(keys: Sequence[str], values: Sequence[object]) -> str:
    """Settings in words: "width 30, temperature 4"."""
    pairs = [(k, text(v)) for k, v in zip(keys, values, strict=True)]
    named = {"loss": LOSSES, "alpha": {"0": "labels alone"}}
    return ", ".join(named.get(k, {}).get(v, f"{words(k)} {v}") for k, v in pairs if v)


def unit(column: str) -> str:
    """The name of a column of errors: "test errors"."""
    return {"test_errors": "test errors", "val_errors": "validation errors"}[column]


def table(runs: pd.DataFrame) -> tuple[list[str], list[tuple[tuple[object, ...], Interval]]]:
    """The settings in which ``runs`` differ, and for each combination its errors."""
    if (column := errors(runs)) is None:
        return [], []
    rows = runs[runs[column].notna()]
    keys = varying(rows, "transfer_classes")  # which say more than the kind of set does
    return keys, [(values, interval(group[column])) for values, group in groups(rows, keys)]
