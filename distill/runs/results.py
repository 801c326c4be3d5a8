"""What a run leaves behind: its files, how they are written, found, and put aside."""

import itertools
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.runs.columns import Status
from distill.system import store
from distill.system.disk import patient, settled
from distill.system.store import digest, file_digest, naming, tidy, write_text

log = logging.getLogger(__name__)

RESULT, SUMMARY, HISTORY = store.RESULT, "summary.csv", "history.csv"
WEIGHTS = store.WEIGHTS
# The weights of the last epoch, their moving average, and those of the best epoch.
KEPT = {"last": WEIGHTS, "ema": "student-ema.safetensors", "best": "student-best.safetensors"}
ASKED = {"ema": "train.ema=DECAY", "best": "train.keep_best=true"}  # what keeps the others
SWEEP = "sweep.yaml"  # the commands of a sweep, and what they composed
RUNNING = "running.json"  # what is known of a run that trains, until its result is there
PROGRESS = "progress"  # in that of a stack's first run: how far the stack is
DIGITS = "digits"  # with the digest of a teacher and .json: what it says of some examples
EARLIER = ".earlier"  # holds what was put aside
OWN = (HISTORY, *KEPT.values(), RESULT)  # the files of a run that a result speaks of
ENDED = (Status.COMPLETE, Status.STOPPED, Status.DIVERGED)
listed = settled(file_digest)  # of a file that a result speaks of, and which so was there
# What reading a damaged result raises.
DAMAGED = (ValueError, AttributeError, KeyError, TypeError, RecursionError)


def write(directory: Path, result: Mapping[str, Any], rows: list[dict[str, float]]) -> None:
    """Write the history of a run (one row for each epoch), then its result, which makes it count.

    The result holds the digests of the history and the weights beside it, and its own.
    """
    write_text(directory / HISTORY, history(rows))
    paths = [directory / name for name in (HISTORY, *KEPT.values())]
    files = {path.name: file_digest(path) for path in paths if path.exists()}
    body = {**_finite(result), "files": files}
    text = json.dumps({**body, "digest": digest(body)}, indent=1, allow_nan=False)
    write_text(directory / RESULT, text + "\n")
    (directory / RUNNING).unlink(missing_ok=True)  # last: one of both is there at each moment


def history(rows: Sequence[Mapping[str, float]], *, header: bool = True) -> str:
    """The ``rows`` of epochs as CSV, with a ``header`` or to be added to those before them."""
    names = list(rows[0]) if rows else ["epoch"]
    cells = [[_cell(row[name]) for name in names] for row in rows]
    return "".join(",".join(line) + "\n" for line in [*[names] * header, *cells])


def write_running(directory: Path, head: Mapping[str, Any], first: Path) -> None:
    """Write what is known of a run that begins to train, for the summary.

    In the directory of its stack's ``first`` run lies the sign of life of who trains it.
    """
    stack = Path(os.path.relpath(first, directory)).as_posix()
    body = _finite({**head, "status": Status.RUNNING, "stack": stack})
    text = json.dumps(body, allow_nan=False)
    write_text(directory / RUNNING, text + "\n", sync=False)


@patient
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
        damaged = [n for n in files if listed(directory / n) != result["files"].get(n)]
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
    return [path for path in found(folder) if path.name == RESULT]


def running(folder: Path) -> list[Path]:
    """The histories below ``folder`` of runs without a result, in the order of their names."""
    return [path for path in found(folder) if path.name == HISTORY]


def found(folder: Path) -> list[Path]:
    """The results below ``folder``; and, where there is none yet, the histories.

    Raises:
        OSError: the folder itself cannot be read.
    """
    closed: list[Path] = []

    def on_error(error: OSError) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return  # it went while this looked, if it ever was
        if Path(error.filename) == folder:
            raise error
        closed.append(Path(error.filename) / RESULT)

    listed = []
    for place, folders, files in os.walk(folder, onerror=on_error):
        folders[:] = [name for name in folders if name != EARLIER]
        if RESULT in files or RESULT in folders:
            listed.append(Path(place) / RESULT)
        elif HISTORY in files:
            listed.append(Path(place) / HISTORY)
    return sorted([*listed, *closed])


def line(result: Mapping[str, Any]) -> str:
    """What people want to know of a run that completed or was stopped."""
    if result["status"] != "complete":
        return f"{result['run']} {result['status']}: {result['reason']}"
    part = "test" if "test_errors" in result else "val"
    taught = result.get(f"teacher_{part}_errors")
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


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys and values of a nested config; lists become text."""
    for key, value in config.items():
        if isinstance(value, dict):  # as JSON and pydantic have it; of ABCs it takes longer to ask
            yield from leaves(value, f"{prefix}{key}.")
        else:
            text = " ".join(map(str, value)) if isinstance(value, list) else value
            yield prefix + key, text
