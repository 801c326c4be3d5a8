"""What a run leaves behind, and the summary of many: files only, always rebuilt from them.

Columns are only ever added to. Accuracies are shares of 1, losses are means over examples in nats,
seconds are wall time. Beside those below, each key of the config that they do not show has a column
of its own name (`model.depth`, `teacher.model.width`, ...); where files lie is left out.
"""

import argparse
import itertools
import json
import logging
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock
from rich.console import Console
from rich.table import Table

from distill.store import digest, file_digest, tidy, told, write_text

log = logging.getLogger(__name__)

RESULT, SUMMARY, HISTORY = "result.json", "summary.csv", "history.csv"
WEIGHTS = "student.safetensors"
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
        row = {key: value for key, value in result.items() if key in COLUMNS}
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


FEW = 5
SHADES = " ░▒▓█"


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
    for _, row in frame[~frame.status.isin(["complete", "stopped"])].iterrows():
        say(f"{row.run} {row.status}: {row.reason}", style="red")
    counts = ", ".join(f"{n} {status}" for status, n in frame.status.value_counts().items())
    say(f"{len(frame)} run{'s' * (len(frame) > 1)} ({counts}): {folder / SUMMARY}")


def main() -> None:
    """`distill-summary DIR`: rebuild summary.csv from the files, and print it."""
    parser = argparse.ArgumentParser(
        prog="distill-summary",
        description="Rebuild summary.csv from the results below DIR, and print it.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="a sweep's directory")
    folder: Path = parser.parse_args().directory
    if not paths(folder):
        sys.exit(f"DIR={folder}: no {RESULT} lies below it; give the directory of a sweep or a run")
    try:
        frame = write_summary(folder)
    except OSError as error:
        sys.exit(told(error) or str(error))
    show(frame, folder, Console())
