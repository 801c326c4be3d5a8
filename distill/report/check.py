"""Comparing a fresh sweep with the reference that has its settings."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from distill.report.contents import UNDECIDED, Finding, Sweep
from distill.report.numbers import OTHERS, errors, label, settings, text, varying
from distill.report.statistics import SIGNIFICANT, apart, holm, interval

Judge = Callable[[Sequence[Sweep]], Sequence[Finding]]  # what becomes of claims on sweeps
MACHINE = ("precision", "device")  # that of another is what a reference is compared with


@dataclass(frozen=True)
class Comparison:
    """How a fresh sweep stands against its reference.

    ``same`` of the ``runs`` that both hold, and that were measured, have the same test errors;
    ``differ`` says of which of the ``settings`` that both hold the means differ; ``verdicts`` of
    which claims those do; ``notes`` in what all runs of one are unlike all of the other.
    """

    name: str
    runs: int
    same: int
    settings: int
    differ: tuple[str, ...]
    verdicts: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether anything was compared, and nothing differs."""
        return self.settings > 0 and not self.differ and not self.verdicts


def compare(fresh: Sweep, reference: Sweep, judge: Judge) -> Comparison:
    """Means by Student's t test for each setting, Holm over the settings; verdicts as they are."""
    column = _measured(reference.runs)
    known = fresh.runs if column in fresh.runs else fresh.runs.assign(**{column: math.nan})
    both = known.merge(reference.runs, on="run", suffixes=("", "_reference"))
    both = both.dropna(subset=[column, f"{column}_reference"], how="all")  # trials are not tested
    same = (both[column] == both[f"{column}_reference"]).sum()
    compared, p_values, texts = [], [], []
    for what, ours, theirs in _settings(fresh.runs, reference.runs, column):
        compared.append(what)
        p_values.append(apart(ours, theirs))
        found = [interval(ours), interval(theirs)]
        texts.append(
            f"{what}: {found[0].mean:.1f} (n = {found[0].n}) against {found[1].mean:.1f} "
            f"(n = {found[1].n})"
        )
    certain = [p if not math.isnan(p) else 1.0 for p in p_values]
    adjusted = holm(certain) if certain else []
    differ = tuple(
        f"{words}, p = {p:.2g}" for words, p in zip(texts, adjusted, strict=True) if p < SIGNIFICANT
    )
    other = f" (with {reference.name})" if reference.name != fresh.name else ""
    return Comparison(
        f"{fresh.name}{other}",
        len(both),
        int(same),
        len(compared),
        differ,
        tuple(_verdicts(fresh, reference, judge)),
        tuple(_notes(fresh.runs, reference.runs)),
    )


def _measured(runs: pd.DataFrame) -> str:
    """What is compared: errors, or what the sweeps of `bench` measure."""
    other = next((column for column in OTHERS if column in runs), None)
    return other or errors(runs) or "test_errors"


def _keys(fresh: pd.DataFrame, reference: pd.DataFrame) -> list[str]:
    """The settings that both have; those of the machine only where one of them has several."""
    names = dict.fromkeys([*settings(reference), *settings(fresh)])
    both = [key for key in names if key in fresh and key in reference]
    several = {k for k in both if max(frame[k].nunique() for frame in (fresh, reference)) > 1}
    return [key for key in both if key not in MACHINE or key in several]


def _settings(
    fresh: pd.DataFrame, reference: pd.DataFrame, column: str
) -> Iterator[tuple[str, list[float], list[float]]]:
    """What each setting is called, and its figures in both: runs alike in all but their seeds."""
    keys = _keys(fresh, reference)
    shown = [keys.index(key) for key in varying(reference) if key in keys]
    sides = []
    for runs in (fresh, reference):
        done = runs.dropna(subset=[column]) if column in runs else runs.iloc[:0]
        rows: dict[tuple[str, ...], list[float]] = {}
        for row, value in zip(done[keys].to_numpy(dtype=object), done.get(column, ()), strict=True):
            rows.setdefault(tuple(map(text, row)), []).append(float(value))
        sides.append(rows)
    for values, theirs in sides[1].items():
        if values in sides[0]:
            named = label([keys[n] for n in shown], [values[n] for n in shown])
            yield named or "all runs", sides[0][values], theirs


def _notes(fresh: pd.DataFrame, reference: pd.DataFrame) -> Iterator[str]:
    """In what all runs of one differ from all of the other, which leaves nothing to compare."""
    names = {**dict.fromkeys(_keys(fresh, reference)), **dict.fromkeys(MACHINE)}
    for key in names:
        if key in fresh and key in reference:
            ours, theirs = ({*map(text, frame[key])} for frame in (fresh, reference))
            if not ours & theirs:
                given = ", ".join(sorted(theirs)[:4])
                yield f"{key} is {', '.join(sorted(ours)[:4])}, in the reference {given}"


def _verdicts(fresh: Sweep, reference: Sweep, judge: Judge) -> Iterator[str]:
    """The claims of the reference on which the verdicts differ."""
    ours = {finding.id: finding for finding in judge([fresh])}
    for theirs in judge([reference]):
        own = ours.get(theirs.id)
        verdict = own.verdict if own is not None else UNDECIDED
        if verdict != theirs.verdict:
            outcome = own.outcome if own is not None else "no run of it meets its preconditions"
            yield f"{theirs.id}: {verdict} against {theirs.verdict} ({outcome})"


def closest(fresh: Sweep, references: Sequence[Sweep]) -> Sweep | None:
    """The reference that shares the most settings with ``fresh``, of several that of its name.

    Without any it is that of its name, if there is one.
    """

    def shared(reference: Sweep) -> tuple[int, bool]:
        column = _measured(reference.runs)
        count = sum(1 for _ in _settings(fresh.runs, reference.runs, column))
        return count, reference.name == fresh.name

    best = max(references, key=shared, default=None)
    return best if best is not None and any(shared(best)) else None
