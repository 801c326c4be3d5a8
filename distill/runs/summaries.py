"""The summary of a sweep: one row for each run, always rebuilt from the files of the runs."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from distill.runs.columns import COLUMNS, SHOWN, TERM, Status, measured, parsed, typed
from distill.runs.results import DAMAGED, HISTORY, RESULT, RUNNING, SUMMARY, found, leaves, read
from distill.system.store import held, naming, tidy, told, write_text

if TYPE_CHECKING:
    import pandas as pd  # late elsewhere: a single run does without it

SUMMARY_LOCK = ".summary.lock"
# What a history has under the names of the summary; its learning rate is that of an epoch.
PARTS = ("train_", "val_", "test_", "ema_", "best_")
FIGURES = [name for name in COLUMNS if name.startswith(PARTS)]


def summary(folder: Path) -> "pd.DataFrame":
    """One row for each run below ``folder`` that has a result or a history.

    They are in the order of their names. One that still trains has the status running, and the
    figures of the last epoch written.
    """
    import pandas as pd

    rows = [_row(path, folder) for path in found(folder)]
    others = sorted({key for row in rows for key in row} - set(COLUMNS))
    known = [n for n in COLUMNS if COLUMNS[n].always or any(row.get(n) is not None for row in rows)]
    columns = {n: typed(n, [row.get(n) for row in rows]) for n in [*known, *others]}
    frame = pd.DataFrame(columns)
    frame["pareto"] = _pareto(frame)
    return frame


def read_summary(path: str | Path) -> "pd.DataFrame":
    """The summary of a sweep: one row for each run, in the types of `distill.runs.columns`.

    Args:
        path: a sweep's folder, whose results are read as they are now (or, where none lie there,
            its summary.csv); or a summary.csv.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is not a CSV.
    """
    import pandas as pd

    path = Path(path)
    if path.is_dir():
        if found(path):
            return summary(path)
        path /= SUMMARY
    cells = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    lists = {str(n): [None if pd.isna(c) else c for c in cells[n]] for n in cells}
    return pd.DataFrame({n: typed(n, parsed(n, column)) for n, column in lists.items()})


def write_summary(folder: Path) -> "pd.DataFrame":
    """Rebuild ``summary.csv`` in ``folder`` from the results below it; returns what it holds."""
    # Not the sweep's lock, which is held for as long as one trains. Those who write at once take
    # turns, each after it has read: the last summary is of all results.
    with FileLock(folder / SUMMARY_LOCK):
        tidy(folder, SUMMARY)
        frame = summary(folder)
        write_text(folder / SUMMARY, frame.to_csv(index=False))
    return frame


def _row(path: Path, folder: Path) -> dict[str, Any]:
    """The row of the run whose result, or whose history, is at ``path`` below ``folder``."""
    directory = path.parent.relative_to(folder).as_posix()
    try:
        result = read(path) if path.name == RESULT else _unfinished(path.parent)
        files = dict(result.pop("places", None) or {})  # a digest stands for each one's path
        config = {
            key: files.get(key, value)
            for key, value in leaves(result.pop("config", {}))
            if key not in SHOWN and not key.endswith("._target_")
        }
        row = dict(leaves({key: value for key, value in result.items() if measured(key)}))
    except (OSError, *DAMAGED) as error:
        status, reason = Status.FAILED, told(error) or f"{RESULT} is damaged"
        if isinstance(error, OSError) and not isinstance(error, IsADirectoryError):
            status, reason = Status.UNREADABLE, f"cannot be read ({reason})"  # and may be complete
        return {
            "run": path.parent.name,
            "status": str(status),
            "reason": reason,
            "directory": directory,
        }
    return {**config, **row, "directory": directory}


def _unfinished(directory: Path) -> dict[str, Any]:
    """What the files of a run without a result tell of it, as a result would.

    It runs while someone holds the lock of its folder, or of one above it. Else it was killed.

    Raises:
        OSError: they cannot be read.
        ValueError: they are damaged.
    """
    with naming(directory / HISTORY):
        names, *rows = (directory / HISTORY).read_text(encoding="utf-8").splitlines()
    cells = dict(zip(names.split(","), rows[-1].split(","), strict=True)) if rows else {}
    try:
        head = json.loads((directory / RUNNING).read_text(encoding="utf-8"))
    except FileNotFoundError:  # of a version that wrote none, which was killed before its result
        head = {"run": directory.name}
    last = {
        n: parsed(n, [cell or None])[0]
        for n, cell in cells.items()
        if n in FIGURES or n.startswith(TERM)
    }
    of = f" of {head['epochs']}" if "epochs" in head else ""
    reason = f"epoch {cells.get('epoch', 0)}{of}"
    if held(directory):
        return {**head, "status": str(Status.RUNNING), "reason": reason, **last}
    reason = f"it was killed after {reason}; the same command goes on"
    return {**head, "status": str(Status.INTERRUPTED), "reason": reason, **last}


def _pareto(frame: "pd.DataFrame") -> "pd.Series[Any]":
    """Whether each complete run is on the front of validation errors and parameters."""
    done = frame[frame["status"].eq(Status.COMPLETE) & frame["val_errors"].notna()]
    figures = done[["parameters", "val_errors"]].astype(float)
    least = figures.groupby("parameters")["val_errors"].min()
    front = least[least < least.cummin().shift(fill_value=math.inf)]
    return (figures["val_errors"] == figures["parameters"].map(front)).astype("boolean")
