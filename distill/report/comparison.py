"""What a comparison of losses found: each candidate's errors, and its differences to references.

Candidates are compared within seeds, which share teacher, initialisation and order of the data.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from distill.report.numbers import Plot
from distill.report.statistics import SIGNIFICANT, Interval, differ, holm, interval
from distill.runs.columns import Status

STEM = "comparison"
FILE = f"{STEM}.json"
BETTER, WORSE, UNDECIDED = "better", "worse", "not decided"
RULE = (
    "A candidate is better or worse than a reference where the differences of their test errors, "
    "within seeds, have a mean that is not 0: by a two-sided paired t test, adjusted by Holm over "
    "all candidates that are compared with it, p < 0.05. Else it is not decided."
)


@dataclass(frozen=True)
class Difference:
    """Errors of a candidate less those of a reference, within seeds; ``p`` adjusted by Holm."""

    found: Interval
    p: float
    verdict: str


@dataclass(frozen=True)
class Candidate:
    """One that was tuned, and then trained with fresh seeds.

    ``errors`` are its test errors after the last epoch, by seed; ``best_epoch`` the mean of the
    fewest after any epoch, which are chosen on the test set. ``trials`` says how many ended how;
    ``chosen`` are the values of trial ``trial``, which had ``val_errors``. Where no trial
    completed, there is a ``reason`` instead.
    """

    name: str
    errors: "pd.Series[float]"
    best_epoch: float | None
    trials: Mapping[str, int]
    chosen: Mapping[str, Any] = field(default_factory=dict)
    trial: int | None = None
    val_errors: int | None = None
    command: str = ""
    reason: str = ""
    differences: Mapping[str, Difference] = field(default_factory=dict)


@dataclass(frozen=True)
class Compared:
    """A whole comparison; the best candidates come first.

    ``seeds`` are those of the final runs, ``seed`` that of the trials, of which each candidate had
    as many as ``trials`` says.
    """

    candidates: tuple[Candidate, ...]
    references: tuple[str, ...]
    trials: int
    seed: int
    seeds: tuple[int, ...]

    @property
    def lacking(self) -> dict[str, int]:
        """How many final runs each candidate lacks, which failed or diverged."""
        counts = {c.name: len(self.seeds) - len(c.errors) for c in self.candidates}
        return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True)
class Differences(Plot):
    """The candidates' differences to one reference, the best first."""

    rows: tuple[tuple[str, Difference], ...]


def differences(compared: Compared) -> Iterator[Differences]:
    """A figure for each reference that anything was compared with."""
    for reference in compared.references:
        known = [(c.name, d) for c in compared.candidates if (d := c.differences.get(reference))]
        rows = sorted(known, key=lambda row: row[1].found.mean)
        if not rows:
            continue
        parts = [
            f"{verdict}: {', '.join(names)}"
            for verdict in (BETTER, WORSE, UNDECIDED)
            if (names := [name for name, d in rows if d.verdict == verdict])
        ]
        caption = "; ".join(parts)
        yield Differences(
            f"less-{reference}",
            f"test errors less those of {reference}",
            "",
            f"errors more than {reference}",
            f"{caption[:1].upper()}{caption[1:]}.",
            tuple(rows),
        )


def table(compared: Compared) -> tuple[list[str], list[list[object]]]:
    """The header and the rows of the table: a candidate each, the best first."""
    header = ["candidate", "mean", "low", "high", "seeds"]
    for reference in compared.references:
        header += [f"less {reference}", "low", "high", "p", "verdict"]
    header += ["best epoch*", "validation errors", "trials", "chosen"]
    return header, [_row(compared, candidate) for candidate in compared.candidates]


def _row(compared: Compared, candidate: Candidate) -> list[object]:
    known = interval(candidate.errors) if len(candidate.errors) else None
    row: list[object] = [candidate.name]
    row += [known.mean, known.low, known.high, known.n] if known else [None, None, None, 0]
    for reference in compared.references:
        difference = candidate.differences.get(reference)
        if difference is None:
            row += [None] * 5
        else:
            found = difference.found
            row += [found.mean, found.low, found.high, difference.p, difference.verdict]
    chosen = ", ".join(f"{key} {short(value)}" for key, value in candidate.chosen.items())
    ended = ", ".join(f"{n} {state}" for state, n in candidate.trials.items())
    return [*row, candidate.best_epoch, candidate.val_errors, ended, chosen or candidate.reason]


def flattered(compared: Compared) -> float | None:
    """By how many errors the best epoch flatters, on average over the candidates."""
    gains = [
        float(c.errors.mean()) - c.best_epoch
        for c in compared.candidates
        if c.best_epoch is not None and len(c.errors)
    ]
    return sum(gains) / len(gains) if gains else None


def read(folder: Path, runs: pd.DataFrame, name: str = f"{STEM}*.json") -> list[Compared]:
    """The comparisons in the ``folder`` of a sweep, whose complete ``runs`` these are.

    Those that cannot be read are left out. ``name`` is that of one of their files, or a pattern.
    """
    found = []
    for path in sorted(folder.glob(name)):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found.append(_compared(json.loads(path.read_text(encoding="utf-8")), runs))
    return found


def _compared(content: Mapping[str, Any], runs: pd.DataFrame) -> Compared:
    found = [_candidate(name, own, runs) for name, own in content["candidates"].items()]
    compared = _differences(found, content["references"])
    compared.sort(key=lambda c: c.errors.mean() if len(c.errors) else math.inf)
    return Compared(
        tuple(compared),
        tuple(content["references"]),
        content["trials"],
        content["seed"],
        tuple(content["seeds"]),
    )


def _candidate(name: str, told: Mapping[str, Any], runs: pd.DataFrame) -> Candidate:
    complete = runs["status"].eq(Status.COMPLETE).fillna(value=False)
    own = runs[runs["run"].isin(told.get("runs", [])) & complete]
    errors = own.set_index("seed")["test_errors"].astype(float).sort_index()
    column = "best_epoch_test_errors"
    known = own[column].dropna() if column in own else own["test_errors"].iloc[:0]
    return Candidate(
        name,
        errors,
        float(known.mean()) if len(known) else None,
        told["trials"],
        told.get("chosen", {}),
        told.get("trial"),
        told.get("val_errors"),
        told.get("command", ""),
        told.get("reason", ""),
    )


def _differences(found: Sequence[Candidate], references: Sequence[str]) -> list[Candidate]:
    """The candidates with their differences to each of the references but themselves."""
    errors = {candidate.name: candidate.errors for candidate in found}
    differences: dict[str, dict[str, Difference]] = {name: {} for name in errors}
    for reference in references:
        pairs = {name: (own - errors[reference]).dropna() for name, own in errors.items()}
        pairs = {name: d for name, d in pairs.items() if name != reference and len(d) > 1}
        if not pairs:
            continue
        adjusted = holm([differ([*d]) for d in pairs.values()])
        for (name, values), p in zip(pairs.items(), adjusted, strict=True):
            mean = interval(values)
            verdict = UNDECIDED
            if p < SIGNIFICANT:
                verdict = BETTER if mean.mean < 0 else WORSE
            differences[name][reference] = Difference(mean, p, verdict)
    return [replace(candidate, differences=differences[candidate.name]) for candidate in found]
