"""The report: one HTML page that needs nothing else, its figures as files, the README's table."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from distill.report import comparison, figures, plots, trials
from distill.report.contents import (
    NOT,
    REPRODUCED,
    UNDECIDED,
    Compared,
    Estimate,
    Finding,
    Study,
    Sweep,
)
from distill.report.numbers import Plot, amount, errors, span, table, text, unit, words
from distill.report.statistics import Interval
from distill.report.style import COLOURS
from distill.system.store import write_text

PAGE, FIGURES = "report.html", "figures"
MARKS = {"reproduced": "✓", "not reproduced": "✕", "not decided": "?"}


@dataclass(frozen=True)
class _Cell:
    """A cell as it is shown, and as it is sorted: by its number, or else by its words."""

    shown: str
    value: str


@dataclass(frozen=True)
class _Drawn:
    """A figure in the page, and where its files lie."""

    svg: Markup
    caption: str
    file: str


@dataclass(frozen=True)
class _Searched:
    """A study as the page shows it, and the candidates of a comparison that it was for."""

    study: Study
    anchor: str
    figures: tuple[_Drawn, ...]
    about: str
    header: tuple[str, ...]
    rows: tuple[tuple[_Cell, ...], ...]
    candidate: str


@dataclass(frozen=True)
class _Compared:
    """A comparison as the page shows it."""

    anchor: str
    about: tuple[str, ...]
    commands: tuple[tuple[str, str], ...]
    figures: tuple[_Drawn, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[_Cell, ...], ...]


@dataclass(frozen=True)
class _Part:
    """A sweep as the page shows it."""

    sweep: Sweep
    anchor: str
    about: str
    figures: tuple[_Drawn, ...]
    counted: str
    header: tuple[str, ...]
    rows: tuple[tuple[_Cell, ...], ...]
    studies: tuple[_Searched, ...]
    comparisons: tuple[_Compared, ...]


def _slug(words: str) -> str:
    """A name for files and anchors."""
    return re.sub(r"[^\w.]+", "-", words, flags=re.ASCII).strip("-.")[:100] or "sweep"


def _apart(names: Iterable[str]) -> list[str]:
    """Slugs of ``names``, with a number where one would come twice."""
    used, found = Counter[str](), []
    for base in map(_slug, names):
        used[base] += 1
        found.append(f"{base}-{used[base]}" if used[base] > 1 else base)
    return found


def _figures(drawn: Sequence[Plot], slug: str, folder: Path) -> Iterator[_Drawn]:
    """The figures, named by their kind, and by their setting where a kind has several."""
    kinds = Counter(plot.kind for plot in drawn)
    plain = [f"{slug}-{plot.kind}" for plot in drawn]
    whole = [f"{name}-{plot.setting}" for name, plot in zip(plain, drawn, strict=True)]
    names = [whole[n] if kinds[p.kind] > 1 else plain[n] for n, p in enumerate(drawn)]
    for plot, name in zip(drawn, _apart(names), strict=True):
        # Escaped where it was made: an XML library wrote it.
        svg = Markup(figures.save(plot, folder / FIGURES, name))
        yield _Drawn(svg, plot.caption, f"{FIGURES}/{name}.svg")


def _cell(value: object) -> _Cell:
    shown = text(value)
    return _Cell(shown, shown if isinstance(value, str) else str(value) if shown else "")


def _measured(value: float) -> _Cell:
    return _Cell(amount(value), "" if math.isnan(value) else str(value))


def _row(values: Sequence[object], found: Interval) -> tuple[_Cell, ...]:
    measured = map(_measured, (found.mean, found.low, found.high))
    return (*map(_cell, values), *measured, _cell(found.n))


def _part(sweep: Sweep, slug: str, folder: Path) -> _Part:
    keys, found = table(sweep.runs)
    column = errors(sweep.runs)
    counted = unit(column) if column else "errors"
    header = (*map(words, keys), "mean", "low", "high", "seeds")
    about = f"{len(sweep.runs)} complete run{'' if len(sweep.runs) == 1 else 's'}"
    if "data" in sweep.runs and sweep.runs["data"].nunique() == 1:
        about += f" on {sweep.runs['data'].iloc[0]}"
    rows = tuple(_row(values, interval) for values, interval in found)
    drawn = tuple(_figures(list(plots.every(sweep)), slug, folder))
    slugs = _apart(f"{slug}-{study.name}" for study in sweep.studies)
    candidates = _candidates(sweep)
    searched = tuple(
        _searched(study, name, folder, ", ".join(candidates.get(study.name, ())))
        for study, name in zip(sweep.studies, slugs, strict=True)
    )
    slugs = _apart(f"{slug}-comparison" for _ in sweep.comparisons)
    pairs = zip(sweep.comparisons, slugs, strict=True)
    compared = tuple(_compared(found, name, folder) for found, name in pairs)
    return _Part(sweep, f"sweep-{slug}", about, drawn, counted, header, rows, searched, compared)


def _compared(found: Compared, slug: str, folder: Path) -> _Compared:
    drawn = tuple(_figures(list(comparison.differences(found)), slug, folder))
    header, rows = comparison.table(found)
    cells = tuple(tuple(map(_figure, row)) for row in rows)
    commands = tuple((c.name, c.command) for c in found.candidates if c.command)
    return _Compared(slug, tuple(comparison.led(found)), commands, drawn, tuple(header), cells)


def _figure(value: object) -> _Cell:
    """A cell that may hold a measured number, or a mean and its interval."""
    if isinstance(value, Interval):
        return _Cell(span(value), str(value.mean))
    return _measured(value) if isinstance(value, float) else _cell(value)


def _candidates(sweep: Sweep) -> dict[str, list[str]]:
    """The candidates of each study's name, in the comparisons of a sweep."""
    names: dict[str, list[str]] = {}
    for candidate in (c for found in sweep.comparisons for c in found.candidates):
        own = names.setdefault(candidate.study, [])
        own += [candidate.name] * (candidate.name not in own)
    return names


def _searched(study: Study, slug: str, folder: Path, candidate: str) -> _Searched:
    if candidate:
        study = replace(study, compared=True, gain=None)
    drawn = tuple(_figures(list(trials.every(study)), slug, folder))
    about, header, found = trials.table(study)
    rows = tuple(tuple(map(_tried, row)) for row in found)
    return _Searched(study, f"study-{slug}", drawn, about, tuple(header), rows, candidate)


def _tried(value: object) -> _Cell:
    """A cell of a trial: sorted by its exact value, which its files have."""
    return _Cell(trials.short(value), _cell(value).value)


def _strips(finding: Finding) -> list[tuple[Estimate, list[float]]]:
    """Where mean and interval of each estimate lie, in percent of what all of one unit span."""
    known = [e for e in finding.estimates if not math.isnan(e.low)]
    if len(known) < 2 or len({e.unit for e in known}) > 1:
        return []
    least, most = min(e.low for e in known), max(e.high for e in known)
    width = (most - least) or 1.0
    return [(e, [100 * (v - least) / width for v in (e.low, e.mean, e.high)]) for e in known]


def write(folder: Path, findings: Sequence[Finding], sweeps: Sequence[Sweep]) -> Path:
    """Write the page and its figures into ``folder``; returns the path of the page.

    The page comes last and whole: whoever opens it finds the figures that it speaks of.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slugs = _apart(sweep.name for sweep in sweeps)
    parts = [_part(s, slug, folder) for s, slug in zip(sweeps, slugs, strict=True)]
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    html = environment.get_template("report.html.j2").render(
        findings=findings, short=_in_short(findings), parts=parts,
        anchors={p.sweep.folder: p.anchor for p in parts},
        colours=COLOURS, marks=MARKS, span=span, strips=_strips, trials=trials,
        counts=Counter(f.verdict for f in findings),
        versions=sorted({str(v) for s in sweeps for v in s.runs["version"].dropna()}),
    )  # fmt: skip
    write_text(folder / PAGE, html)
    return folder / PAGE


def _in_short(findings: Sequence[Finding]) -> list[tuple[str, list[tuple[int, Finding]]]]:
    """What holds, what does not, and what is new: the findings with their numbers on the page."""
    numbered = [*enumerate(findings, 1)]
    new = [(n, f) for n, f in numbered if f.id.startswith("S")]  # the project's own claims
    known = [pair for pair in numbered if pair not in new]
    parts = {
        heading: [(n, f) for n, f in known if f.verdict == verdict]
        for heading, verdict in (
            ("What holds", REPRODUCED),
            ("What does not", NOT),
            ("Not decided", UNDECIDED),
        )
    }
    return [*parts.items(), ("New here", new)]


def _inline(words: str) -> str:
    """Words in a cell of a Markdown table."""
    return escape(" ".join(words.split()), quote=False).replace("|", r"\|")


def markdown(findings: Sequence[Finding]) -> str:
    """The findings as a Markdown table, a line each, of whose estimates the first is shown."""
    lines = ["| | claim | source | ours: mean, 95 % interval | verdict |", "|---|---|---|---|---|"]
    for finding in findings:
        ours = [
            f"{e.label}: {f'{span(e)} {e.unit}'.strip()}, n = {e.n}" for e in finding.estimates[:1]
        ]
        cells = (finding.id, finding.claim, finding.source, *(ours or [""]), finding.verdict)
        lines.append(f"| {' | '.join(map(_inline, cells))} |")
    return "\n".join(lines) + "\n"
