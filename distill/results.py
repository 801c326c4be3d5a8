"""What a run leaves behind, and the summary of many: files only, always rebuilt from them.

Columns are only ever added to. Accuracies are shares of 1, losses are means over examples in nats,
seconds are wall time. Beside those below, each key of the config that they do not show has a column
of its own name (`model.depth`, `teacher.model.width`, ...); where files lie is left out.
"""

import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from distill.store import digest, file_digest, tidy, told, write_text

log = logging.getLogger(__name__)

RESULT, SUMMARY, HISTORY = "result.json", "summary.csv", "history.csv"
WEIGHTS = "student.safetensors"
SWEEP = "sweep.yaml"  # the commands of a sweep, and what they composed
DIGITS = "digits"  # with the digest of a teacher and .json: what it says of some examples
SUMMARY_LOCK = ".summary.lock"
EARLIER = ".earlier"  # holds what was put aside
ENDED = ("complete", "stopped", "diverged")

COLUMNS = {
    "run": "name of the run: what stands out in its config, and a digest of all of it",
    "status": "complete, failed, diverged, stopped or interrupted",
    "reason": "why a run is not complete",
    "data": "data set",
    "model": "the student's model",
    "width": "its width",
    "parameters": "its number of parameters",
    "multiply_adds": "multiply-adds of its linear and convolutional layers, for one image",
    "teacher": "teacher; none for losses that do not use one",
    "teacher_digest": "SHA-256 of everything that decides the teacher",
    "teacher_test_errors": "its errors on the test set",
    "loss": "loss",
    "temperature": "its temperature, if it has one",
    "alpha": "weight of its soft term, if it has one",
    "transfer": "transfer set: all, omit, only or fraction",
    "transfer_classes": "the classes omitted or kept, separated by spaces",
    "transfer_fraction": "the share of each class that is kept",
    "transfer_examples": "number of examples in the transfer set",
    "seed": "seed of the student",
    "epochs": "epochs it was trained for, or is to be",
    "batch_size": "examples in a batch",
    "optimizer": "optimizer",
    "lr": "its highest learning rate",
    "weight_decay": "its weight decay",
    "precision": "fp32 or bf16, as used",
    "device": "cpu or cuda, as used",
    "train_loss": "training loss in the last epoch, mean over its steps",
    "train_soft": "the soft term of it, before its weight alpha",
    "train_hard": "the hard term of it, before its weight 1 - alpha",
    "val_errors": "errors on the validation split, if there is one",
    "val_accuracy": "accuracy there",
    "val_loss": "cross-entropy there, at temperature 1",
    "pareto": "whether no run has fewer validation errors or parameters, and no more of both",
    "test_errors": "errors on the test set",
    "test_accuracy": "accuracy there",
    "test_loss": "cross-entropy there, at temperature 1",
    "val_errors_by_class": "errors on the validation split among each class, separated by spaces",
    "test_errors_by_class": "errors on the test set among each class, separated by spaces",
    "bias_shift": "for omit and only: the shift of these classes' biases with the fewest errors on "
    "the validation split, or on all training images where there is none",
    "bias_shift_val_errors": "errors on the validation split after that shift",
    "bias_shift_test_errors": "errors on the test set after that shift",
    "bias_shift_test_errors_by_class": "the same among each class",
    "oracle_shift": "the same shift, chosen on the test set (as in the paper)",
    "oracle_shift_test_errors": "errors on the test set after that shift",
    "oracle_shift_test_errors_by_class": "the same among each class",
    "seconds": "wall time of the student, its share of the stack's; the teacher's not included",
    "version": "version of distill",
    "directory": "the run's directory, from that of the summary",
}

# Keys of the config that the columns above show, or that name places on one machine.
SHOWN = {
    *("model.width", "loss.temperature", "loss.alpha", "optim.lr", "optim.weight_decay", "seed"),
    *("train.epochs", "train.batch_size", "transfer.classes", "transfer.fraction"),
    *("device", "precision", "data.root", "teacher.cache", "teacher.path", "teacher.name"),
}


def write(directory: Path, result: Mapping[str, Any], rows: list[dict[str, float]]) -> None:
    """Write the history of a run (a row an epoch), then its result, which makes it count.

    The result holds the digests of the history and the weights beside it, and its own.
    """
    write_text(directory / HISTORY, pd.DataFrame(rows).to_csv(index=False) if rows else "epoch\n")
    paths = [directory / name for name in (HISTORY, WEIGHTS)]
    files = {path.name: file_digest(path) for path in paths if path.exists()}
    body = {**_finite(result), "files": files}
    text = json.dumps({**body, "digest": digest(body)}, indent=1, allow_nan=False)
    write_text(directory / RESULT, text + "\n")


def read(path: Path) -> dict[str, Any]:
    """The content of a result file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    result = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(result, dict) or result.pop("digest", None) != digest(result):
        raise ValueError(f"{path} is damaged")
    return result


def finished(directory: Path, run: str) -> dict[str, Any] | None:
    """The result of ``run`` in ``directory`` if it ended for good; None if it is to be trained.

    It did if it is complete, was stopped, or diverged, which it would again. A damaged one is named
    in a warning.
    """
    try:
        result = read(directory / RESULT)
        if result["status"] not in ENDED or result["run"] != run:
            return None
        whole = [WEIGHTS] if result["status"] == "complete" else []
        files = {HISTORY, *whole, *result["files"]}
        damaged = [n for n in files if file_digest(directory / n) != result["files"].get(n)]
    except FileNotFoundError as error:
        if error.filename == str(directory / RESULT):
            return None
        damaged = [Path(error.filename).name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        damaged = [RESULT]
    if damaged:
        names = ", ".join(sorted(damaged))
        log.warning("%s has damaged files (%s) and is trained again", directory, names)
        return None
    return result


def rungs(directory: Path, column: str, result: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
    """The epochs after which others of its stack were stopped, and the run's ``column`` then."""
    rows = pd.read_csv(directory / HISTORY, index_col="epoch")
    for epoch in result.get("rungs", []):
        if epoch in rows.index and column in rows.columns:
            yield epoch, float(rows[column][epoch])


def clear(directory: Path, *, keep: bool) -> None:
    """Remove what an earlier try left in ``directory``; with ``keep``, put it aside."""
    tidy(directory)
    if keep:
        put_aside(directory)
    for name in (RESULT, HISTORY, WEIGHTS):
        (directory / name).unlink(missing_ok=True)


def put_aside(directory: Path) -> None:
    """Move the result of an earlier run, and the files that belong to it, into a folder below."""
    if not (directory / RESULT).exists():
        return
    number = next(n for n in itertools.count(1) if not (directory / EARLIER / str(n)).exists())
    folder = directory / EARLIER / str(number)
    folder.mkdir(parents=True)
    for name in (RESULT, HISTORY, WEIGHTS):
        if (directory / name).exists():
            (directory / name).rename(folder / name)


def paths(folder: Path) -> list[Path]:
    """The results below ``folder``, in the order of their names, but for those put aside."""
    found = sorted(folder.rglob(RESULT))
    return [path for path in found if EARLIER not in path.relative_to(folder).parts]


def line(result: Mapping[str, Any]) -> str:
    """What people want to know of a run that completed or was stopped."""
    if result["status"] != "complete":
        return f"{result['run']} {result['status']}: {result['reason']}"
    part = "test" if "test_errors" in result else "val"
    against = f", teacher {result['teacher_test_errors']}" if "teacher_digest" in result else ""
    return (
        f"{result['run']}: {result[f'{part}_errors']} {part} errors, accuracy "
        f"{result[f'{part}_accuracy']:.2%}{against}; {result['seconds']:.1f} s"
    )


def counted(finished: Sequence[Mapping[str, Any]]) -> str:
    """How runs ended, and the fewest errors among them: on the validation split if there is one."""
    counts = Counter(result["status"] for result in finished)
    text = ", ".join(f"{n} {status}" for status, n in counts.items())
    for part in ("val", "test"):
        complete = [r for r in finished if r["status"] == "complete"]
        if errors := [r[f"{part}_errors"] for r in complete if f"{part}_errors" in r]:
            return f"{text}, the best with {min(errors)} {part} errors"
    return text


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


def _pareto(frame: pd.DataFrame) -> "pd.Series[Any]":
    """Whether each complete run is on the front of validation errors and parameters."""
    done = frame[(frame["status"] == "complete") & frame["val_errors"].notna()]
    least = done.groupby("parameters")["val_errors"].min()
    front = least[least < least.cummin().astype(float).shift(fill_value=math.inf)]
    return (done["val_errors"] == done["parameters"].map(front)).astype(object)


def _row(path: Path, folder: Path) -> dict[str, Any]:
    directory = path.parent.relative_to(folder).as_posix()
    try:
        result = read(path)
        config = {
            key: value
            for key, value in leaves(result.pop("config"))
            if key not in SHOWN and not key.endswith("._target_")
        }
        row = dict(leaves({key: value for key, value in result.items() if key in COLUMNS}))
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        reason = told(error) or f"{RESULT} is damaged"
        return {
            "run": path.parent.name,
            "status": "failed",
            "reason": reason,
            "directory": directory,
        }
    return {**config, **row, "directory": directory}


def summary(folder: Path) -> pd.DataFrame:
    """A row for each result below ``folder``, in the order of their names."""
    rows = [_row(path, folder) for path in paths(folder)]
    frame = pd.DataFrame(rows)
    for key in frame.columns.intersection(["seed", "teacher.seed"]):
        if frame[key].dtype.kind == "f":  # where some rows lack one, which would round the others
            frame[key] = pd.Series([row.get(key) for row in rows], dtype=object)
    others = sorted(set(frame.columns) - set(COLUMNS))
    frame = frame.reindex(columns=[*COLUMNS, *others])
    frame["pareto"] = _pareto(frame)
    return frame


def write_summary(folder: Path) -> pd.DataFrame:
    """Rebuild ``summary.csv`` in ``folder`` from the results below it; returns what it holds."""
    # Not the sweep's lock, which is held for as long as one trains. Those who write at once take
    # turns, each after it has read: the last summary is of all results.
    with FileLock(folder / SUMMARY_LOCK):
        tidy(folder, SUMMARY)
        frame = summary(folder)
        write_text(folder / SUMMARY, frame.to_csv(index=False))
    return frame
