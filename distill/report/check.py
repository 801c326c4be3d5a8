"""Comparing a fresh sweep with the reference of its name."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from distill.report.claims import findings
from distill.report.findings import Sweep
from distill.report.numbers import errors, label, text, varying
from distill.report.statistics import SIGNIFICANT, apart, holm, interval


@dataclass(frozen=True)
class Comparison:
    """How a fresh sweep stands against its reference.

    ``same`` of the ``runs`` that both hold have the same test errors; ``differ`` says of which of
    the ``settings`` that both hold the means differ; ``verdicts`` of which claims those do.
    """

    name: str
    runs: int
    same: int
    settings: int
    differ: tuple[str, ...]
    verdicts: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether anything was compared, and nothing differs."""
        return self.settings > 0 and not self.differ and not self.verdicts


def compare(fresh: Sweep, reference: Sweep) -> Comparison:
    """Means by Student's t test for each setting, Holm over the settings; verdicts as they are."""
    column = _measured(reference.runs)
    both = fresh.runs.merge(reference.runs, on="run", suffixes=("", "_reference"))
    same = (both[column] == both[f"{column}_reference"]).sum()
    settings, p_values, texts = [], [], []
    for what, ours, theirs in _settings(fresh.runs, reference.runs, column):
        settings.append(what)
        p_values.append(apart(ours, theirs))
        found = [interval(ours), interval(theirs)]
        texts.append(
            f"{what}: {found[0].mean:.1f} (n = {found[0].n}) against {found[1].mean:.1f} "
            f"(n = {found[1].n})"
        )
    known = [p if not math.isnan(p) else 1.0 for p in p_values]
    adjusted = holm(known) if known else []
    differ = tuple(
        f"{words}, p = {p:.2g}" for words, p in zip(texts, adjusted, strict=True) if p < SIGNIFICANT
    )
    return Comparison(
        reference.name,
        len(both),
        int(same),
        len(settings),
        differ,
        tuple(_verdicts(fresh, reference)),
    )


def _measured(runs: pd.DataFrame) -> str:
    """What is compared: errors, or how far identities are from holding."""
    return "deviation" if "deviation" in runs else errors(runs) or "test_errors"


def _settings(
    fresh: pd.DataFrame, reference: pd.DataFrame, column: str
) -> Iterator[tuple[str, list[float], list[float]]]:
    """What each setting is called, and its figures in both."""
    keys = [key for key in varying(reference) if key in fresh]
    sides = []
    for runs in (fresh, reference):
        done = runs.dropna(subset=[column])
        names = [tuple(map(text, row)) for row in done[keys].to_numpy(dtype=object)]
        sides.append({n: done[column][[m == n for m in names]] for n in dict.fromkeys(names)})
    for values, theirs in sides[1].items():
        if values in sides[0]:
            what = label(keys, values) or "all runs"
            yield what, [*map(float, sides[0][values])], [*map(float, theirs)]


def _verdicts(fresh: Sweep, reference: Sweep) -> Iterator[str]:
    """The claims whose verdicts differ."""
    pairs = zip(findings([fresh]), findings([reference]), strict=True)
    for ours, theirs in pairs:
        if ours.verdict != theirs.verdict:
            yield f"{ours.id}: {ours.verdict} against {theirs.verdict} ({ours.outcome})"
