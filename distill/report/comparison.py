"""What a comparison of losses found: each candidate's errors, and its differences to references.

Candidates are compared within seeds, which share teacher, initialisation and order of the data.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from distill.report.contents import Candidate, Compared, Difference, Sweep
from distill.report.numbers import Plot, amount, span
from distill.report.statistics import SIGNIFICANT, Interval, differ, holm, interval
from distill.report.trials import chosen
from distill.runs.columns import Status

if TYPE_CHECKING:
    from rich.table import Table

STEM = "comparison"
FILE = f"{STEM}.json"
BETTER, WORSE, UNDECIDED = "better", "worse", "not decided"
FEWEST = 5  # seeds that decide anything
RULE = (
    "A candidate is better or worse than a reference where the differences of their test errors, "
    "within seeds, have a mean that is not 0: by a two-sided paired t test, adjusted by Holm over "
    "all candidates that are compared with it, p < 0.05. Else it is not decided, nor with fewer "
    "than 5 seeds, nor where a final run of either is lacking."
)


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
    header = ["candidate", "test errors", "seeds"]
    for reference in compared.references:
        header += [f"less {reference}", "p", "verdict"]
    header += ["best epoch*", "validation errors", "trials", "chosen"]
    return header, [_row(compared, candidate) for candidate in compared.candidates]


def _row(compared: Compared, candidate: Candidate) -> list[object]:
    known = interval(candidate.errors) if len(candidate.errors) else None
    row: list[object] = [candidate.name, known, len(candidate.errors)]
    for reference in compared.references:
        found = candidate.differences.get(reference)
        row += [None] * 3 if found is None else [found.found, found.p, found.verdict]
    ended = ", ".join(f"{n} {state}" for state, n in candidate.trials.items())
    return [
        *row,
        candidate.best_epoch,
        candidate.val_errors,
        ended,
        chosen(candidate.chosen) or candidate.reason,
    ]


def markdown(sweeps: Sequence[Sweep]) -> str:
    """Test errors of the candidates (rows) in sweeps that compare (columns), as Markdown.

    A cell says, too, which references the candidate is better or worse than. Of no sweep it is
    empty.
    """
    columns = {
        f"{sweep.name}{f' ({n})' if n > 1 else ''}": {c.name: c for c in compared.candidates}
        for sweep in sweeps
        for n, compared in enumerate(sweep.comparisons, 1)
    }
    names = dict.fromkeys(name for own in columns.values() for name in own)
    if not columns:
        return ""
    rows = [["candidate", *columns], ["---"] * (1 + len(columns))]
    rows += [[name, *(_cell(own.get(name)) for own in columns.values())] for name in names]
    taught = [_teachers(compared) for sweep in sweeps for compared in sweep.comparisons]
    rows += [["(teachers)", *("" if found is None else span(found) for found in taught)]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(candidate: Candidate | None) -> str:
    if candidate is None or not len(candidate.errors):
        return ""
    parts = [span(interval(candidate.errors))]
    for verdict in (BETTER, WORSE):
        known = candidate.differences.items()
        than = [name for name, difference in known if difference.verdict == verdict]
        parts += [f"{verdict} than {' and '.join(than)}"] * bool(than)
    return ", ".join(parts)


def shown(compared: Compared) -> "Table":
    """The candidates for a terminal, the best first, with their differences to each reference."""
    from rich.table import Table

    title = "test errors, means over seeds, and differences within seeds"
    table = Table(title=title, caption=_worth(compared) or None, min_width=len(title) + 2)
    table.add_column("candidate")
    table.add_column("n", justify="right")
    table.add_column("test errors", justify="right")
    for reference in compared.references:
        table.add_column(f"less those of {reference}", justify="right")
    for candidate in compared.candidates:
        errors = span(interval(candidate.errors)) if len(candidate.errors) else "none completed"
        differences = (candidate.differences.get(name) for name in compared.references)
        cells = ("" if d is None else f"{span(d.found)}, {d.verdict}" for d in differences)
        table.add_row(candidate.name, str(len(candidate.errors)), errors, *cells)
    return table


def flattered(compared: Compared) -> float | None:
    """By how many errors the best epoch flatters, on average over the candidates."""
    gains = [
        float(c.errors.mean()) - c.best_epoch
        for c in compared.candidates
        if c.best_epoch is not None and len(c.errors)
    ]
    return sum(gains) / len(gains) if gains else None


def led(compared: Compared) -> list[str]:
    """What there is to say first: how it was compared, and what is lacking."""
    seeds = ", ".join(map(str, compared.seeds))
    lines = [
        f"Each candidate had {compared.trials} trials with seed {compared.seed}, which chose on "
        f"the validation split. What they chose was trained on all data (but a validation split of "
        f"the data's own) with the seeds {seeds}, and tested after the last epoch.",
        RULE,
        "Settings were chosen once: what other trials would have chosen, and how far that moves a "
        "candidate, no interval and no p value holds.",
    ]
    given = [c.name for c in compared.candidates if not (c.chosen or c.reason)]
    if given:
        lines.append(f"With settings that are given, so that one trial is all: {', '.join(given)}.")
    lines += [f"{c.name}: {c.reason}." for c in compared.candidates if c.reason]
    lines += [line for line in (_worth(compared), *remarks(compared)) if line]
    if len(compared.kinds) > 1:
        lines.append(f"Final runs are of several kinds: {', '.join(compared.kinds)}.")
    gain = flattered(compared)
    if gain is not None:
        lines.append(
            f"* The best epoch is chosen on the test set, as some publish: it flatters, here by "
            f"{amount(gain)} errors on average, and decides nothing."
        )
    return lines


def remarks(compared: Compared) -> list[str]:
    """Lines on bad teachers, and on each candidate of which final runs are lacking."""
    return [*_bad(compared)] + [
        f"{name} lacks {count} of its {len(compared.seeds)} final runs: nothing is decided of it."
        for name, count in compared.lacking.items()
    ]


def _teachers(compared: Compared) -> Interval | None:
    """Their test errors; each seed's candidates share a teacher, unless they name others."""
    known = pd.concat([candidate.teachers for candidate in compared.candidates])
    return interval(known.groupby(level=0).mean()) if len(known) else None


def _worth(compared: Compared) -> str:
    """What the teachers are worth, in a sentence; of no teachers it is empty."""
    found = _teachers(compared)
    return "" if found is None else f"Teachers make {span(found)} test errors."


def _bad(compared: Compared) -> Iterator[str]:
    """A line where students without a teacher are better than the teachers."""
    if (found := _teachers(compared)) is None:
        return
    alone = [c for c in compared.candidates if len(c.errors) and c.teachers.empty]
    better = [c for c in alone if c.errors.mean() < found.mean]
    if better:
        names = ", ".join(f"{c.name} {amount(float(c.errors.mean()))}" for c in better)
        yield (
            f"Students that have no teacher make fewer errors than teachers do ({names}): this "
            "compares what losses make of teachers that are worse than their students would be "
            "alone."
        )


def read(folder: Path, runs: pd.DataFrame, name: str = f"{STEM}*.json") -> list[Compared]:
    """The comparisons in the ``folder`` of a sweep, whose complete ``runs`` these are.

    ``name`` is that of one of their files, or a pattern.

    Raises:
        ValueError: one cannot be read.
    """
    found = []
    for path in sorted(folder.glob(name)):
        try:
            found.append(_compared(json.loads(path.read_text(encoding="utf-8")), runs))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            again = "the command that made it makes it again"
            raise ValueError(f"{path.name} cannot be read ({reason}); {again}") from error
    return found


def _compared(content: Mapping[str, Any], runs: pd.DataFrame) -> Compared:
    found = [_candidate(name, own, runs) for name, own in content["candidates"].items()]
    compared = _differences(found, content["references"], len(content["seeds"]))
    compared.sort(key=lambda c: c.errors.mean() if len(c.errors) else math.inf)
    finals = [run for own in content["candidates"].values() for run in own.get("runs", ())]
    return Compared(
        tuple(compared),
        tuple(content["references"]),
        content["trials"],
        content["seed"],
        tuple(content["seeds"]),
        _kinds(runs[runs["run"].isin(finals)]),
    )


def _kinds(runs: pd.DataFrame) -> tuple[str, ...]:
    """In what precision and on what devices runs were trained."""
    if not {"precision", "device"} <= {*runs}:
        return ()
    pairs = runs[["precision", "device"]].dropna().drop_duplicates().to_numpy().tolist()
    return tuple(f"{precision} on {device}" for precision, device in pairs)


def _candidate(name: str, told: Mapping[str, Any], runs: pd.DataFrame) -> Candidate:
    complete = runs["status"].eq(Status.COMPLETE).fillna(value=False)
    own = runs[runs["run"].isin(told.get("runs", [])) & complete].drop_duplicates("run")
    errors = own.set_index("seed")["test_errors"].astype(float).sort_index()
    teachers = own.set_index("seed").get("teacher_test_errors", errors.iloc[:0])
    column = "best_epoch_test_errors"
    known = own[column].dropna() if column in own else own["test_errors"].iloc[:0]
    return Candidate(
        name,
        told["study"],
        errors,
        teachers.astype(float).dropna(),
        float(known.mean()) if len(known) else None,
        told["trials"],
        told.get("chosen", {}),
        told.get("trial"),
        told.get("val_errors"),
        told.get("command", ""),
        told.get("reason", ""),
    )


def _differences(
    found: Sequence[Candidate], references: Sequence[str], seeds: int
) -> list[Candidate]:
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
            if p < SIGNIFICANT and len(values) == seeds >= FEWEST:
                verdict = BETTER if mean.mean < 0 else WORSE
            differences[name][reference] = Difference(mean, p, verdict)
    return [replace(candidate, differences=differences[candidate.name]) for candidate in found]
