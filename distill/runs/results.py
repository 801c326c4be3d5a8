"""What a run leaves behind, and the summary of many: files only, always rebuilt from them."""

import itertools
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from distill.runs.columns import COLUMNS, SHOWN, TERM, Status, measured, parsed, typed
from distill.system import store
from distill.system.store import digest, file_digest, held, naming, tidy, told, write_text

if TYPE_CHECKING:
    import pandas as pd  # late elsewhere: a single run does without it

log = logging.getLogger(__name__)

RESULT, SUMMARY, HISTORY = store.RESULT, "summary.csv", "history.csv"
WEIGHTS = store.WEIGHTS
# The weights of the last epoch, their moving average, and those of the best epoch.
KEPT = {"last": WEIGHTS, "ema": "student-ema.safetensors", "best": "student-best.safetensors"}
ASKED = {"ema": "train.ema=DECAY", "best": "train.keep_best=true"}  # what keeps the others
SWEEP = "sweep.yaml"  # the commands of a sweep, and what they composed
RUNNING = "running.json"  # what is known of a run that trains, until its result is there
DIGITS = "digits"  # with the digest of a teacher and .json: what it says of some examples
SUMMARY_LOCK = ".summary.lock"
# What a history has under the names of the summary; its learning rate is that of an epoch.
PARTS = ("train_", "val_", "test_", "ema_", "best_")
FIGURES = [name for name in COLUMNS if name.startswith(PARTS)]
EARLIER = ".earlier"  # holds what was put aside
OWN = (HISTORY, *KEPT.values(), RESULT)  # the files of a run that a result speaks of
ENDED = (Status.COMPLETE, Status.STOPPED, Status.DIVERGED)
# What reading a damaged result raises.
DAMAGED = (ValueError, AttributeError, KeyError, TypeError, RecursionError)


def write(directory: Path, result: Mapping[str, Any], rows: list[dict[str, float]]) -> None:
    """Write the history of a run (a row an epoch), then its result, which makes it count.

    The result holds the digests of the history and the weights beside it, and its own.
    """
    write_text(directory / HISTORY, history(rows))
    paths = [directory / name for name in (HISTORY, *KEPT.values())]
    files = {path.name: file_digest(path) for path in paths if path.exists()}
    body = {**_finite(result), "files": files}
    text = json.dumps({**body, "digest": digest(body)}, indent=1, allow_nan=False)
    (directory / RUNNING).unlink(missing_ok=True)
    write_text(directory / RESULT, text + "\n")


def history(rows: Sequence[Mapping[str, float]], *, header: bool = True) -> str:
    """The ``rows`` of epochs as CSV, with a ``header`` or to be added to those before them."""
    names = list(rows[0]) if rows else ["epoch"]
    cells = [[_cell(row[name]) for name in names] for row in rows]
    return "".join(",".join(line) + "\n" for line in [*[names] * header, *cells])


def write_running(directory: Path, head: Mapping[str, Any]) -> None:
    """Write what is known of a run that begins to train, for the summary."""
    text = json.dumps(_finite({**head, "status": Status.RUNNING}), allow_nan=False)
    write_text(directory / RUNNING, text + "\n", sync=False)


def read(path: Path) -> dict[str, Any]:
    """The content of a result file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    with naming(path):
        text = path.read_text(encoding="utf-8")
    result = json.loads(text)
    if not isinstance(result, dict) or result.pop("digest", None) != digest(result):
        raise ValueError(f"{path} is damaged")
    return result


def ended(directory: Path) -> dict[str, Any] | None:
    """The result in ``directory`` if it is of a run that ended for good; None if there is none.

    It did if it is complete, was stopped, or diverged, which it would again. A damaged one is named
    in a warning.

    Raises:
        OSError: a file cannot be read, which says nothing of what it holds.
    """
    try:
        result = read(directory / RESULT)
        if result["status"] not in ENDED:
            return None
        whole = [WEIGHTS] if result["status"] == Status.COMPLETE else []
        files = {HISTORY, *whole, *result["files"]}
        damaged = [n for n in files if file_digest(directory / n) != result["files"].get(n)]
    except FileNotFoundError as error:
        if error.filename == str(directory / RESULT):
            return None
        damaged = [Path(error.filename).name]
    except DAMAGED:
        damaged = [RESULT]
    if damaged:
        names = ", ".join(sorted(damaged))
        log.warning("%s has damaged files (%s) and is trained again", directory, names)
        return None
    return result


def finished(directory: Path, run: str) -> dict[str, Any] | None:
    """The result of ``run`` in ``directory`` if it ended for good; None if it is to be trained.

    Raises:
        OSError: as `ended`.
    """
    result = ended(directory)
    return result if result is not None and result["run"] == run else None


def rungs(directory: Path, column: str, result: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
    """The epochs after which others of its stack were stopped, and the run's ``column`` then."""
    import pandas as pd

    rows = pd.read_csv(directory / HISTORY, index_col="epoch")
    for epoch in result.get("rungs", []):
        if epoch in rows.index and column in rows.columns:
            yield epoch, float(rows[column][epoch])


def clear(directory: Path, *, keep: bool, config: str | None = None) -> None:
    """Make room for a run: remove the failed result of an earlier try, and put aside all others.

    With ``keep`` the failed one goes aside too. ``config`` names a folder that goes with a result.

    Raises:
        OSError: what is there cannot be read or moved.
    """
    tidy(directory)
    try:
        failed = read(directory / RESULT)["status"] not in ENDED
    except (FileNotFoundError, *DAMAGED):
        failed = False
    if keep or not failed:
        put_aside(directory, config)
    for name in (*OWN, RUNNING):
        (directory / name).unlink(missing_ok=True)


def put_aside(directory: Path, config: str | None = None) -> None:
    """Move what an earlier run left, and the folder ``config`` with its own, into a folder below.

    The result goes last: until then, what is there is not taken for a new run's.
    """
    left = [name for name in OWN if (directory / name).exists()]
    if left in ([], [HISTORY]):
        return
    number = next(n for n in itertools.count(1) if not (directory / EARLIER / str(n)).exists())
    folder = directory / EARLIER / str(number)
    folder.mkdir(parents=True)
    if config is not None and (directory / config).exists():
        left.insert(0, config)
    for name in left:
        (directory / name).rename(folder / name)


def paths(folder: Path) -> list[Path]:
    """The results below ``folder``, in the order of their names, but for those put aside.

    Of a folder that cannot be read, it is taken to hold one.
    """
    return [path for path in _found(folder) if path.name == RESULT]


def running(folder: Path) -> list[Path]:
    """The histories below ``folder`` of runs without a result, in the order of their names."""
    return [path for path in _found(folder) if path.name == HISTORY]


def _found(folder: Path) -> list[Path]:
    """The results below ``folder``; and, where there is none yet, the histories."""
    closed: list[Path] = []

    def on_error(error: OSError) -> None:
        if Path(error.filename) != folder:
            closed.append(Path(error.filename) / RESULT)

    found = []
    for place, folders, files in os.walk(folder, onerror=on_error):
        folders[:] = [name for name in folders if name != EARLIER]
        if RESULT in files or RESULT in folders:
            found.append(Path(place) / RESULT)
        elif HISTORY in files:
            found.append(Path(place) / HISTORY)
    return sorted([*found, *closed])


def line(result: Mapping[str, Any]) -> str:
    """What people want to know of a run that completed or was stopped."""
    if result["status"] != "complete":
        return f"{result['run']} {result['status']}: {result['reason']}"
    part = "test" if "test_errors" in result else "val"
    taught = result.get("teacher_test_errors")
    against = f", teacher {taught}" if taught is not None else ""
    return (
        f"{result['run']}: {result[f'{part}_errors']} {part} errors, accuracy "
        f"{result[f'{part}_accuracy']:.2%}{against}; {result['seconds']:.1f} s"
    )


def counted(finished: Sequence[Mapping[str, Any]]) -> str:
    """How runs ended, and the fewest errors among them: on the validation split if there is one."""
    counts = Counter(result["status"] for result in finished)
    text = ", ".join(f"{n} {status}" for status, n in counts.items())
    for part in ("val", "test"):
        complete = [r for r in finished if r["status"] == Status.COMPLETE]
        if errors := [r[f"{part}_errors"] for r in complete if f"{part}_errors" in r]:
            return f"{text}, the best with {min(errors)} {part} errors"
    return text


def _cell(value: float) -> str:
    """A number in a CSV; nothing for one that is none."""
    return "" if math.isnan(value) else repr(value)


def _finite(value: Any) -> Any:
    """``value`` with None, which JSON has, for the numbers that it has not."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys and values of a nested config; lists become text."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            text = " ".join(map(str, value)) if isinstance(value, list) else value
            yield prefix + key, text


def _pareto(frame: "pd.DataFrame") -> "pd.Series[Any]":
    """Whether each complete run is on the front of validation errors and parameters."""
    done = frame[frame["status"].eq(Status.COMPLETE) & frame["val_errors"].notna()]
    figures = done[["parameters", "val_errors"]].astype(float)
    least = figures.groupby("parameters")["val_errors"].min()
    front = least[least < least.cummin().shift(fill_value=math.inf)]
    return (figures["val_errors"] == figures["parameters"].map(front)).astype("boolean")


def _row(path: Path, folder: Path) -> dict[str, Any]:
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


def summary(folder: Path) -> "pd.DataFrame":
    """A row for each run below ``folder`` that has a result or a history, in order of their names.

    One that still trains has the status running, and the figures of the last epoch written.
    """
    import pandas as pd

    rows = [_row(path, folder) for path in _found(folder)]
    others = sorted({key for row in rows for key in row} - set(COLUMNS))
    known = [n for n in COLUMNS if COLUMNS[n].always or any(row.get(n) is not None for row in rows)]
    columns = {n: typed(n, [row.get(n) for row in rows]) for n in [*known, *others]}
    frame = pd.DataFrame(columns)
    frame["pareto"] = _pareto(frame)
    return frame


def read_summary(path: str | Path) -> "pd.DataFrame":
    """The summary of a sweep: a row a run, in the types of `distill.runs.columns`.

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
        if _found(path):
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
