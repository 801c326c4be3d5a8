"""The summary as people read it in a terminal."""

import itertools
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from distill.results import COLUMNS, SUMMARY

FEW = 5  # runs in a listing; tables that are always few enough
SHADES = " ░▒▓█"


def tables(frame: pd.DataFrame) -> Iterator[Table]:
    """Test errors, temperature by width, means over seeds; one table for all else that differs."""
    done = frame[(frame["status"] == "complete") & frame["test_errors"].notna()]
    keys = ["data", "model", "loss", "alpha", "transfer", "transfer_classes", "transfer_fraction"]
    differ = [k for k in (*keys, "epochs", "lr") if done[k].nunique(dropna=False) > 1]
    labels = done[differ].map(_text)
    titles = pd.Series(
        [
            ", ".join(f"{k}={v}" for k, v in zip(differ, row, strict=True) if v)
            for row in labels.to_numpy()
        ],
        done.index,
        dtype=str,
    )
    if titles.nunique() > max(FEW, len(done) // 2):  # of searched values, each is its own
        return
    for title, group in done.groupby(titles, sort=False):
        yield _table(group, str(title))


def listings(frame: pd.DataFrame) -> Iterator[Table]:
    """The runs with the fewest validation errors; and, if sizes differ, the Pareto front."""
    done = frame[(frame["status"] == "complete") & frame["val_errors"].notna()]
    if len(done) < 2:
        return
    ranked = done.sort_values(["val_errors", "val_loss"], kind="stable")
    figures = list(COLUMNS)[list(COLUMNS).index("train_loss") :]
    known = {*figures, "run", "status", "reason", "parameters", "multiply_adds", "teacher_digest"}
    keys = map(str, done.columns)
    differ = [k for k in keys if k not in known and done[k].nunique(dropna=False) > 1]
    yield _listing(ranked[:FEW], f"fewest validation errors of {len(done)} runs", differ)
    if done["parameters"].nunique() > 1:
        front = ranked[ranked["pareto"].eq(True)].sort_values("parameters", kind="stable")
        yield _listing(front, "Pareto front of validation errors and parameters", differ)


def _listing(rows: pd.DataFrame, title: str, settings: list[str]) -> Table:
    table = Table(title=title, min_width=len(title) + 2)
    columns = ["val_errors", *["parameters"] * (rows["parameters"].nunique() > 1), *settings]
    for column in columns:
        table.add_column(column, justify="right")
    for values in rows[columns].to_numpy(dtype=object):
        table.add_row(*map(_text, values))
    return table


def _text(value: object) -> str:
    """A cell as people read it: no trailing zeros, nothing for a missing value."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else str(value)


def _table(group: pd.DataFrame, title: str) -> Table:
    """Means with a shade beside each: blank for the best of its width, full for the worst."""
    means = group.groupby(["temperature", "width"], dropna=False)["test_errors"].mean().unstack()
    seeds = group["seed"].nunique()
    decimals = int(seeds > 1)
    titles = [f"test errors, mean over {seeds} seed{'s' * (seeds > 1)}", *[title] * bool(title)]
    table = Table(title="\n".join(titles), min_width=max(map(len, titles)) + 2)
    table.add_column("temperature \\ width", justify="right")
    for width in means.columns:
        table.add_column(f"{_text(width)}  ", justify="right")
    best, worst = means.min(), means.max()
    shades = ((means - best) / (worst - best) * (len(SHADES) - 1)).fillna(0).round().astype(int)
    for label, values, levels in zip(means.index, means.to_numpy(), shades.to_numpy(), strict=True):
        texts = ["" if math.isnan(v) else f"{v:.{decimals}f}" for v in values]
        cells = [f"{t} {SHADES[n]}" for t, n in zip(texts, levels, strict=True)]
        table.add_row(_text(label), *cells)
    return table


def show(frame: pd.DataFrame, folder: Path, console: Console) -> None:
    """Print the tables, the teachers, what did not complete, and where the summary lies."""
    # Reasons and paths hold brackets and colons that are no markup.
    say = partial(console.print, markup=False, emoji=False, soft_wrap=True)
    for table in itertools.chain(tables(frame), listings(frame)):
        console.print(table)
    taught = frame.dropna(subset=["teacher_test_errors"]).drop_duplicates("teacher_digest")
    for _, row in taught.iterrows():
        split = row.get("data.validation", 0.0)
        say(
            f"teacher {row.teacher} on {row.data}{f' without {split:.0%}' * (split > 0)}: "
            f"{row.teacher_test_errors:g} test errors"
        )
    lost = frame[~frame.status.isin(["complete", "stopped"])]
    for (status, reason), runs in lost.groupby(["status", "reason"], sort=False, dropna=False)[
        "run"
    ]:
        # What ended many at once, as a signal does, is one line.
        who = runs.iloc[0] if len(runs) == 1 else f"{len(runs)} runs"
        say(f"{who} {status}: {reason}", style="red")
    counts = ", ".join(f"{n} {status}" for status, n in frame.status.value_counts().items())
    say(f"{len(frame)} run{'s' * (len(frame) > 1)} ({counts}): {folder / SUMMARY}")
