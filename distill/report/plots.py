"""What the figures show, as plain values: from a sweep to points and cells.

Everything is chosen by which columns of the summary vary, so that it fits any sweep. A figure that
a sweep has no data for is an empty tuple; a setting that varies beside those that a figure shows
makes a figure for each of its values.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from distill.report import best
from distill.report.contents import Sweep
from distill.report.numbers import (
    Gallery,
    Grid,
    Line,
    Lines,
    Plot,
    amount,
    errors,
    groups,
    label,
    share,
    text,
    unit,
    varying,
    words,
)
from distill.report.statistics import interval

LINES = 8  # at most, in a figure
PANELS = 6  # figures of a kind, at most
POINTS = 60  # of a learning curve, at most
DIGITS = 20  # in the gallery, at most: two of each of ten classes
TEMPERATURES = (1.0, 4.0, 20.0)  # of the gallery
NEAR = 1.05  # times the fewest errors is near them


P = TypeVar("P", bound=Plot)


def _some(drawn: Iterable[P]) -> tuple[P, ...]:
    """The first figures of a kind, the last of which says how many more there would be."""
    plots = list(drawn)
    shown, more = plots[:PANELS], len(plots) - PANELS
    if more > 0:
        left = f"{more} more such figure{'s are' if more > 1 else ' is'} left out"
        shown[-1] = replace(shown[-1], caption=f"{shown[-1].caption} {left}.")
    return tuple(shown)


def _thin(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of the items, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _lines(rows: pd.DataFrame, x: str, by: Sequence[str], column: str) -> tuple[Line, ...]:
    found = []
    for values, group in groups(rows, by):
        points = [
            (value, interval(part[column]))
            for value in sorted(set(map(float, group[x])))
            if len(part := group[group[x] == value])
        ]
        if len(points) > 1:
            xs, ys = zip(*_thin(points, POINTS), strict=True)
            found.append(Line(label(by, values), xs, ys))
    return tuple(found)


def _readable(plot: Lines) -> Lines:
    """The figure with as many lines as can be told apart; its caption says how many it leaves."""
    more = len(plot.lines) - LINES
    if more <= 0:
        return plot
    left = f"{more} more line{'s are' if more > 1 else ' is'} left out"
    return replace(plot, lines=tuple(_thin(plot.lines, LINES)), caption=f"{plot.caption} {left}.")


def _teacher(runs: pd.DataFrame, column: str) -> float | None:
    if column != "test_errors" or "teacher_test_errors" not in runs:
        return None
    known = set(map(float, runs["teacher_test_errors"].dropna()))
    return known.pop() if len(known) == 1 else None


def _over(runs: pd.DataFrame, kind: str, x: str, by: Sequence[str]) -> tuple[Lines, ...]:
    """Errors over ``x``, a line for each of ``by``, a figure for each of all else that varies."""
    column = errors(runs)
    if column is None or x not in runs:
        return ()
    rows = runs[runs[x].notna() & runs[column].notna()]
    differ = varying(rows, x, *by)
    by = [k for k in by if k in differ]
    others = [k for k in differ if k not in (x, *by)]
    over, told = words(x), _ends if x == "transfer_examples" else _fewest
    drawn = (
        _readable(Lines(
            kind, f"{unit(column)} by {over}", label(others, values), unit(column),
            told(lines, over), over, lines, _teacher(panel, column),
        ))
        for values, panel in groups(rows, others)
        if (lines := _lines(panel, x, by, column))
    )  # fmt: skip
    return _some(drawn)


def _fewest(lines: Sequence[Line], x: str) -> str:
    """Where each line has its fewest errors, and where its most."""
    parts = []
    for line in _thin(lines, 4):
        means = [y.mean for y in line.y]
        best, worst = int(np.argmin(means)), int(np.argmax(means))
        more = f"against {amount(means[worst])} at {text(line.x[worst])}"
        if means[best] == means[worst]:
            more = "as at all others"
        here = f"{text(line.x[best])} ({amount(means[best])}, {more})"
        parts.append(f"{here} for {line.label}" if line.label else here)
    return _sentence(f"fewest errors at {x} {'; '.join(parts)}")


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _ends(lines: Sequence[Line], x: str) -> str:
    """What each line is at its least and at its most ``x``."""
    parts = [
        f"{amount(line.y[0].mean)} errors at {text(line.x[0])} {x} and "
        f"{amount(line.y[-1].mean)} at {text(line.x[-1])}"
        + f" with {line.label}"
        * bool(line.label)
        for line in _thin(lines, 4)
    ]
    return _sentence("; ".join(parts))


def temperature(sweep: Sweep) -> tuple[Lines, ...]:
    """Errors by temperature, one line for each width."""
    return _over(sweep.runs, "temperature", "temperature", ["width"])


def learning_rate(sweep: Sweep) -> tuple[Lines, ...]:
    """Errors by learning rate, one line for each loss."""
    return _over(sweep.runs, "learning-rate", "lr", ["loss", "temperature", "alpha"])


def data(sweep: Sweep) -> tuple[Lines, ...]:
    """Errors by the number of training examples in a share of the data, one line for each loss."""
    runs = sweep.runs
    if "transfer" not in runs or not runs["transfer"].eq("fraction").any():
        return ()
    runs = runs[runs["transfer"].isin(["all", "fraction"])].drop(columns="transfer_fraction")
    # All of the data and a share of 1 are the same examples, but not another seed of them.
    alike = runs.drop(columns="transfer")
    whole = alike["transfer_examples"] == alike["transfer_examples"].max()
    both = runs.loc[whole, "transfer"].nunique() > 1
    return _over(
        runs if both else alike, "data", "transfer_examples", ["loss", "temperature", "alpha"]
    )


def _holding(runs: pd.DataFrame, key: str, value: object) -> pd.DataFrame:
    return runs[runs[key].isna() if pd.isna(value) else runs[key] == value]  # type: ignore[call-overload]


def _few(runs: pd.DataFrame, column: str) -> tuple[list[str], str, pd.DataFrame]:
    """Settings for at most a few lines: all, or the one that matters most where others are best.

    Returns the settings, what holds for the others, and the runs.
    """
    keys = varying(runs)
    found = list(groups(runs, keys))
    if len(found) <= LINES:
        return keys, "", runs
    best = min(found, key=lambda pair: float(pair[1][column].mean()))[0]
    slices = []
    for key in keys:
        rows, others = runs, [(k, v) for k, v in zip(keys, best, strict=True) if k != key]
        for other, value in others:
            rows = _holding(rows, other, value)
        means = rows.groupby(key, dropna=False)[column].mean()
        held = label([k for k, _ in others], [v for _, v in others])
        slices.append((float(means.max() - means.min()), [key], held, rows))
    return max(slices, key=lambda s: s[0])[1:]


def curves(sweep: Sweep) -> tuple[Lines, ...]:
    """Errors by epoch, a line for each setting that differs."""
    column, history = errors(sweep.runs), sweep.curves
    if column is None or history is None or column not in history:
        return ()
    by, held, runs = _few(sweep.runs[sweep.runs[column].notna()], column)
    chosen = runs[["run", *by]].drop_duplicates("run")
    rows = history[["run", "epoch", column]].dropna().merge(chosen, on="run")
    lines = _lines(rows, "epoch", by, column)
    if not lines:
        return ()
    ends = [(line.y[-1].mean, line.label or "these students") for line in lines]
    (least, first), (most, last) = min(ends), max(ends)
    also = f", most {amount(most)} with {last}" if len(ends) > 1 else ""
    caption = f"After the last epoch, fewest errors are {amount(least)} with {first}{also}."
    name = unit(column)
    return (_readable(Lines("curves", f"{name} by epoch", held, name, caption, "epoch", lines)),)


def _grid(sweep: Sweep, kind: str, rows: str, columns: str, *, by_column: bool) -> tuple[Grid, ...]:
    runs, column = sweep.runs, errors(sweep.runs)
    if column is None or not {rows, columns} <= set(runs):
        return ()
    runs = runs[runs[[rows, columns, column]].notna().all(axis=1)]
    differ = varying(runs, rows, columns)
    others = [k for k in differ if k not in (rows, columns)]
    drawn = (
        _cells(panel, kind, rows, columns, column, label(others, values), by_column)
        for values, panel in groups(runs, others)
        if min(panel[rows].nunique(), panel[columns].nunique()) > 1
    )
    return _some(drawn)


def _cells(
    panel: pd.DataFrame, kind: str, rows: str, columns: str, column: str, held: str, each: bool
) -> Grid:
    values = [sorted(panel[k].unique()) for k in (rows, columns)]
    found = {pair: interval(part[column]) for pair, part in groups(panel, [rows, columns])}
    cells = [[found.get((r, c)) for c in values[1]] for r in values[0]]
    means = np.array([[cell.mean if cell else math.nan for cell in row] for row in cells])
    best = np.nanmin(means, axis=0 if each else None)
    excess = means / np.where(best > 0, best, math.nan) - 1
    where = means == best
    name, over = unit(column), f"the best {rows} of each {columns}" if each else "the best cell"
    if each:
        bests = [
            f"{text(float(values[0][int(where[:, j].argmax())]))} at {columns} {text(float(c))}"
            for j, c in enumerate(values[1])
        ]
        lead = f"The best {rows} is " + ", ".join(_thin(bests, 5))
    else:
        i, j = np.argwhere(where)[0]
        at = label([rows, columns], [float(values[0][i]), float(values[1][j])])
        lead = f"Fewest errors ({amount(float(best))}) at {at}"
    close = int((means <= best * NEAR).sum())
    total = int(np.isfinite(means).sum())
    caption = f"{lead}; {close} of {total} cells lie within {share(NEAR - 1)} of {over}."
    return Grid(
        kind, f"{name}, {rows} by {columns}", held, name, caption, rows, columns,
        tuple(map(float, values[0])), tuple(map(float, values[1])),
        tuple(map(tuple, cells)), tuple(tuple(map(float, row)) for row in excess),
    )  # fmt: skip


def sizes(sweep: Sweep) -> tuple[Grid, ...]:
    """Temperature by width, against the best temperature of each width."""
    return _grid(sweep, "temperature-width", "temperature", "width", by_column=True)


def weights(sweep: Sweep) -> tuple[Grid, ...]:
    """Alpha by temperature, against the best of all."""
    return _grid(sweep, "alpha-temperature", "temperature", "alpha", by_column=False)


def best_temperature(sweep: Sweep) -> tuple[best.Bests, ...]:
    """The best temperature of each width, and the slope of its logarithm on that of width."""
    return _some(best.temperatures(sweep))


SHIFTS = {
    "before": "test_errors_by_class",
    "after": "bias_shift_test_errors_by_class",
    "best for the test set": "oracle_shift_test_errors_by_class",
}


def shift(sweep: Sweep) -> tuple[Lines, ...]:
    """Errors of each class before and after the bias of what was omitted, or kept, is shifted."""
    runs, needed = sweep.runs, list(SHIFTS.values())[:2]
    if not {"transfer", *needed} <= set(runs):
        return ()
    runs = runs[runs["transfer"].isin(["omit", "only"]) & runs[needed].notna().all(axis=1)]
    sets = ["transfer", "transfer_classes"]
    keys = [*sets, *(k for k in varying(runs, *sets) if k not in sets)]
    shown = (_shifted(rows, label(keys, values)) for values, rows in groups(runs, keys))
    return _some(shown)


def _shifted(rows: pd.DataFrame, held: str) -> Lines:
    lines, totals = [], {}
    known = {k: c for k, c in SHIFTS.items() if c in rows and rows[c].notna().all()}
    for name, column in known.items():
        table = np.array([[float(v) for v in str(cell).split()] for cell in rows[column]])
        classes = tuple(map(float, range(table.shape[1])))
        lines.append(Line(name, classes, tuple(interval(c) for c in table.T)))
        totals[name] = float(table.sum(1).mean())
    change = [a.mean - b.mean for b, a in zip(lines[0].y, lines[1].y, strict=True)]
    most = int(np.argmax(np.abs(change)))
    was, now = (amount(line.y[most].mean) for line in lines[:2])
    caption = (
        f"The shift takes the errors of class {most} from {was} to {now}, "
        f"and those of all classes from {amount(totals['before'])} to {amount(totals['after'])}."
    )
    title = "test errors by class and bias shift"
    return Lines("bias-shift", title, held, "test errors", caption, "class", tuple(lines))


def gallery(sweep: Sweep) -> tuple[Gallery, ...]:
    """Digits, and what the teacher says of a digit of them at some temperatures."""
    if not sweep.digits:
        return ()
    drawn = tuple(_thin(sweep.digits, DIGITS))
    logits = np.stack([d.logits for d in drawn]).astype(float)[:, None]
    scaled = logits / np.array(TEMPERATURES)[:, None]
    raised = np.exp(scaled - scaled.max(-1, keepdims=True))
    soft = raised / raised.sum(-1, keepdims=True)  # (digits, temperatures, C)
    rest = 1 - soft.max(-1).mean(0)
    says = ", ".join(
        f"{100 * r:.1f} % at temperature {t:g}" for r, t in zip(rest, TEMPERATURES, strict=True)
    )
    caption = f"All classes but the likeliest get, on average, {says}; orange is the label."
    shown = tuple(tuple(tuple(map(float, row)) for row in digit) for digit in soft)
    title = "what the teacher says of a digit"
    name = "soft-targets"
    return (Gallery(name, title, "", "probability", caption, drawn, TEMPERATURES, shown),)


def every(sweep: Sweep) -> Iterator[Plot]:
    """All figures that the sweep has data for.

    Of a comparison the gallery alone: the settings of its runs were chosen together, so that over
    one of them nothing can be seen.
    """
    makers: tuple[Callable[[Sweep], Sequence[Plot]], ...] = (
        *(temperature, sizes, best_temperature, weights, curves, data, learning_rate, shift),
        gallery,
    )
    for make in makers if not sweep.comparisons else (gallery,):
        yield from make(sweep)
