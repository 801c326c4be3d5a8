"""The summary as people read it in a terminal."""

import itertools
import math
import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from distill.runs.columns import COLUMNS, TERM, Status
from distill.runs.planned import commands, planned, remedy, without
from distill.runs.results import SUMMARY
from distill.runs.standing import at_work

FEW = 5  # runs in a listing; tables that are always few enough
TABLES = 20  # that are shown; nobody reads more, and a hundred take seconds to draw
MOST = 8  # settings that a listing has room for; of more, the run's name says what stands out
CELLS = 3  # of more tables than that, so many on average are enough for each
SHADES = " ░▒▓█"
AXES = {"temperature": "loss", "width": "model"}
FIGURES = list(COLUMNS)[list(COLUMNS).index("train_loss") :]
# What says which run it is, or follows from its settings.
KNOWN = {*FIGURES, "run", "status", "reason", "seed", "parameters", "multiply_adds"}
KNOWN |= {"teacher_test_errors", "transfer_examples"}
# The settings that a title names first.
FIRST = ["data", "model", "loss", "alpha", "transfer", "transfer_classes", "transfer_fraction"]
FIRST += ["epochs", "lr", "batch_size", "optimizer", "weight_decay", "precision", "device"]
FIRST += ["teacher"]
LAST = {"teacher_digest", "version", "directory"}
DIGESTS = {"teacher_digest", "code"}  # told by their first digits


def tables(frame: pd.DataFrame) -> Iterator[Table | str]:
    """Test errors, temperature by width, means over seeds; one table for all else that differs.

    Where those would be too many, one listing of all settings.
    """
    done = frame[frame["status"].eq(Status.COMPLETE) & frame["test_errors"].notna()]
    done = done.drop_duplicates(["run", "precision", "device"])  # one that lies in two folders
    done = done.astype({"test_errors": float})
    if done.empty:
        return
    axes = _axes(done)
    keys = _settings(done, axes)
    done = _ordered(done, keys)
    groups = list(_groups(done, keys))
    cells = len(done[[*keys, *axes]].drop_duplicates())
    if len(groups) > max(FEW, cells // CELLS):  # of searched values, each is its own
        yield _all(done, [*keys, *(k for k in axes if done[k].nunique(dropna=False) > 1)])
        return
    for values, rows in groups[:TABLES]:
        yield _table(rows, _named(keys, values), axes)
    if (more := len(groups) - TABLES) > 0:
        yield f"and {more} more tables of other settings: see the rows of {SUMMARY}"


def _axes(done: pd.DataFrame) -> list[str]:
    """What the rows and the columns of a table are: of what no run has, what differs instead."""
    found = []
    for axis, group in AXES.items():
        others = (str(n) for n in done.columns if str(n).startswith(f"{group}."))
        swept = (name for name in others if done[name].nunique(dropna=False) > 1)
        found.append(axis if done[axis].notna().any() else next(swept, axis))
    return found


def _settings(done: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """The settings, beside the axes, in which runs differ; what is left are seeds alone."""
    names = [name for name in map(str, done.columns) if not name.startswith(TERM)]
    others = [k for k in names if k not in {*KNOWN, *LAST, *axes, *FIRST}]
    seeds = [k for k in others if _of_seed(done, k)]
    keys: list[str] = []
    for key in (k for k in [*FIRST, *others] if k not in seeds):
        if _splits(done, key, keys):
            keys.append(key)
    # What no column names, as where a teacher was read from: its digest tells, or the run's.
    if _splits(done, "teacher_digest", [*keys, *seeds]):
        keys.append("teacher_digest")
    if _splits(done, "run", [*keys, *axes, "seed"]):
        keys.append("run")
    return keys


def _ordered(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The rows, rising in those of ``keys`` that are numbers."""
    numbers = [k for k in keys if pd.api.types.is_numeric_dtype(rows[k])]
    return rows.sort_values(numbers, kind="stable") if numbers else rows


def _of_seed(done: pd.DataFrame, key: str) -> bool:
    """Whether a setting is a seed that follows the run's, as with teacher.seed=${seed}."""
    return key.endswith("seed") and bool((done.groupby("seed")[key].nunique() <= 1).all())


def _splits(done: pd.DataFrame, key: str, keys: Sequence[str]) -> bool:
    """Whether runs that are alike in ``keys`` differ in ``key``."""
    before = len(done[[*keys]].drop_duplicates()) if keys else 1
    return len(done[[*keys, key]].drop_duplicates()) > before


def _groups(
    done: pd.DataFrame, keys: Sequence[str]
) -> Iterator[tuple[tuple[object, ...], pd.DataFrame]]:
    """The rows of each combination of ``keys``, in the order in which they first come."""
    if not keys:
        yield (), done
    else:
        for values, rows in done.groupby(list(keys), dropna=False, sort=False):
            yield tuple(values), rows


def _named(keys: Sequence[str], values: Sequence[object]) -> str:
    pairs = ((key, _text(value)) for key, value in zip(keys, values, strict=True))
    short = ((k, v[:8] if k in DIGESTS else v) for k, v in pairs)
    return ", ".join(f"{key}={value}" for key, value in short if value)


def listings(frame: pd.DataFrame) -> Iterator[Table]:
    """The runs with the fewest validation errors; and, if sizes differ, the Pareto front."""
    done = frame[frame["status"].eq(Status.COMPLETE) & frame["val_errors"].notna()]
    if len(done) < 2:
        return
    ranked = done.sort_values(["val_errors", "val_loss"], kind="stable")
    known = {*FIGURES, "run", "status", "reason", "parameters", "multiply_adds", "teacher_digest"}
    keys = [name for name in map(str, done.columns) if not name.startswith(TERM)]
    differ = [k for k in keys if k not in known and done[k].nunique(dropna=False) > 1]
    yield _listing(ranked[:FEW], f"fewest validation errors of {len(done)} runs", differ)
    if done["parameters"].nunique() > 1:
        front = ranked[ranked["pareto"].eq(True)].sort_values("parameters", kind="stable")
        yield _listing(front, "Pareto front of validation errors and parameters", differ)


def _listing(rows: pd.DataFrame, title: str, settings: list[str]) -> Table:
    table = Table(title=title, min_width=len(title) + 2)
    sizes = ["parameters"] if rows["parameters"].nunique() > 1 else []
    columns = ["val_errors", *sizes, *(settings if len(settings) <= MOST else ["run"])]
    for column in columns:
        table.add_column(column, justify="right")
    for values in rows[columns].to_numpy(dtype=object):
        table.add_row(*map(_text, values))
    return table


def _text(value: object) -> str:
    """A cell as people read it: no trailing zeros, nothing for a missing value."""
    if value is None or value is pd.NA:
        return ""
    if isinstance(value, float):
        short = f"{value:.6g}"
        return "" if math.isnan(value) else short if float(short) == value else repr(float(value))
    return str(value)


def _title(counts: "pd.Series[int]") -> tuple[str, bool]:
    """What the figures are, and whether all are means over as many seeds."""
    first, same = int(counts.iloc[0]), counts.nunique() == 1
    seeds = f"{first} seed{'s' if first > 1 else ''}" if same else "n seeds"
    return f"test errors, mean over {seeds}", same


def _all(done: pd.DataFrame, keys: Sequence[str]) -> Table:
    """A row for each setting, with its mean."""
    found = [(values, rows["test_errors"]) for values, rows in _groups(done, keys)]
    title, same = _title(pd.Series([len(errors) for _, errors in found]))
    table = Table(title=title, min_width=len(title) + 2)
    counted = [] if same else ["n"]
    for column in (*keys, "test errors", *counted):
        table.add_column(column, justify="right")
    for values, errors in found:
        mean = f"{errors.mean():.{int(len(errors) > 1)}f}"
        number = [] if same else [str(len(errors))]
        table.add_row(*map(_text, values), mean, *number)
    return table


def _table(group: pd.DataFrame, title: str, axes: Sequence[str]) -> Table:
    """Means with a shade beside each: blank for the best of its width, full for the worst."""
    cells = group.groupby(list(axes), dropna=False)["test_errors"]
    means, counts = cells.mean().unstack(), cells.count()
    numbers = counts.unstack()
    decimals = int(counts.max() > 1)
    first, same = _title(counts)
    titles = [first, title] if title else [first]
    table = Table(title="\n".join(titles), min_width=max(map(len, titles)) + 2)
    table.add_column(" \\ ".join(axes), justify="right")
    for width in means.columns:
        table.add_column(f"{_text(width)}  ", justify="right")
    best, worst = means.min(), means.max()
    shades = ((means - best) / (worst - best) * (len(SHADES) - 1)).fillna(0).round().astype(int)
    rows = (part.to_numpy() for part in (means, numbers, shades))
    for label, values, seeds, levels in zip(means.index, *rows, strict=True):
        texts = [
            ""
            if math.isnan(v)
            else f"{v:.{decimals}f}"
            if same
            else f"{v:.{decimals}f} (n={n:.0f})"
            for v, n in zip(values, seeds, strict=True)
        ]
        table.add_row(
            _text(label), *(f"{t} {SHADES[n]}" for t, n in zip(texts, levels, strict=True))
        )
    return table


def _teachers(frame: pd.DataFrame) -> Iterator[str]:
    """One line for each teacher, with the settings in which it differs from others of its name."""
    taught = frame[frame["teacher_test_errors"].notna()].drop_duplicates("teacher_digest")
    taught = taught.reindex(columns=[*dict.fromkeys([*taught.columns, "data.validation"])])
    names = [*map(str, taught.columns)]
    own = [k for part in ("teacher.", "data.") for k in names if k.startswith(part)]
    keys = ["teacher", "data", "data.validation"]
    for key in (*own, "precision", "device", "teacher_digest"):
        if _splits(taught, key, keys):
            keys.append(key)
    for _, row in _ordered(taught, keys[3:]).iterrows():
        which = _named(keys[3:], [row[key] for key in keys[3:]])
        held = _held(row["data.validation"])
        name = f"teacher {row.teacher}{f' ({which})' if which else ''} on {row.data}{held}"
        yield f"{name}: {_text(row.teacher_test_errors)} test errors"


def _held(split: float | str) -> str:
    """What a teacher did not see; a column of shares and words is text."""
    try:
        if pd.isna(split):
            return ""
        return f" without {float(split):.0%}" if float(split) else ""
    except ValueError:
        return " without its own validation split"


def _so_far(rows: pd.DataFrame) -> str:
    """The errors of runs that train: on the validation split if there is one."""
    for part in ("val", "test"):
        errors = rows[f"{part}_errors"].dropna()
        if not errors.empty:
            span = dict.fromkeys((errors.min(), errors.max()))
            return f", {' to '.join(map(str, span))} {part} errors"
    return ""


def _lacking(frame: pd.DataFrame, folder: Path) -> str:
    """What of the sweep was planned and is not there yet, and what goes on with it."""
    jobs = planned(folder)
    waiting = len(without(jobs, frame["directory"].dropna().tolist()))
    of = f"{waiting} of {len(jobs)} planned runs {'is' if waiting == 1 else 'are'}"
    if at_work(folder) or frame.status.eq(Status.RUNNING).any():
        return (
            f"{of} queued; to watch them: distill-summary {shlex.quote(str(folder))} --watch"
            if waiting
            else ""
        )
    if waiting:
        return f"{of} missing; {remedy(folder)}"
    interrupted = frame.status.eq(Status.INTERRUPTED).any()
    return remedy(folder) if interrupted and commands(folder) else ""


def show(frame: pd.DataFrame, folder: Path, console: Console, unwritten: str = "") -> None:
    """Print the tables, the teachers, what did not complete, and where the summary lies.

    ``unwritten`` says instead why it does not.
    """
    # Reasons and paths hold brackets and colons that are no markup.
    say = partial(console.print, markup=False, emoji=False, soft_wrap=True)
    for table in itertools.chain(tables(frame), listings(frame)):
        console.print(table)
    for line in _teachers(frame):
        say(line)
    lost = frame[~frame.status.isin([Status.COMPLETE, Status.STOPPED])]
    for (status, reason), rows in lost.groupby(["status", "reason"], sort=False, dropna=False):
        # What ended many at once, as a signal does, is one line.
        who = rows["run"].iloc[0] if len(rows) == 1 else f"{len(rows)} runs"
        if status == "running":
            say(f"{who} {status}: {reason}{_so_far(rows)}")
        else:
            say(f"{who} {status}: {reason}", style="red")
    counts = ", ".join(f"{n} {status}" for status, n in frame.status.value_counts().items())
    if line := _lacking(frame, folder):
        say(line)
    how_many = "1 run" if len(frame) == 1 else f"{len(frame)} runs"
    say(f"{how_many} ({counts}): {unwritten or folder / SUMMARY}")
