"""The summary of a sweep: one row for each run, always rebuilt from the files of the runs."""

import errno
import json
import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.runs.columns import COLUMNS, SHOWN, TERM, Status, measured, parsed, typed
from distill.runs.results import DAMAGED, HISTORY, RESULT, RUNNING, SUMMARY, found, leaves, read
from distill.system.disk import patient
from distill.system.pulse import PULSE, alive
from distill.system.store import alone, naming, tidy, told, write_text

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

    lives = cache(alive)  # asked once of each stack
    known = [row_of(path, folder, lives) for path in found(folder)]
    rows = [row for row in known if row is not None]
    others = sorted({key for row in rows for key in row} - set(COLUMNS))
    own = [n for n in COLUMNS if COLUMNS[n].always or any(row.get(n) is not None for row in rows)]
    columns = {n: typed(n, [row.get(n) for row in rows]) for n in [*own, *others]}
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
    with alone(folder / SUMMARY_LOCK, quiet=True):
        tidy(folder, SUMMARY)
        frame = summary(folder)
        write_text(folder / SUMMARY, frame.to_csv(index=False))
    return frame


def row_of(path: Path, folder: Path, lives: Callable[[Path], bool]) -> dict[str, Any] | None:
    """The row of the run whose result, or whose history, is at ``path`` below ``folder``.

    None if both went since they were found, as when the run is begun anew.
    """
    directory = path.parent.relative_to(folder).as_posix()
    try:
        result = _result(path.parent, lives)
        if result is None and not os.path.lexists(path):
            return None
        if result is None:  # a link that leads nowhere
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
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


def _result(directory: Path, lives: Callable[[Path], bool]) -> dict[str, Any] | None:
    """The result of a run, or what its files tell of it until there is one; None without both.

    A run that ends while this looks has its result the next moment: one that is not there, or
    seems killed, is looked at again.

    Raises:
        OSError: they cannot be read.
        ValueError: they are damaged.
    """
    found: dict[str, Any] | None = None
    for _ in range(2):
        try:
            return read(directory / RESULT)
        except FileNotFoundError:
            pass
        try:
            found = _unfinished(directory, lives)
        except FileNotFoundError:
            continue
        if found["status"] == Status.RUNNING:
            break
    return found


@patient
def _unfinished(directory: Path, lives: Callable[[Path], bool]) -> dict[str, Any]:
    """What the files of a run without a result tell of it, as a result would.

    It runs while the process that trains its stack ``lives``. Else it was killed.

    Raises:
        OSError: they cannot be read.
        ValueError: they are damaged.
    """
    with naming(directory / HISTORY):
        names, *rows = (directory / HISTORY).read_text(encoding="utf-8").splitlines()
    cells = dict(zip(names.split(","), rows[-1].split(","), strict=True)) if rows else {}
    try:
        with naming(directory / RUNNING):
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
    if "stack" in head and lives(Path(os.path.normpath(directory / head["stack"] / PULSE))):
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
