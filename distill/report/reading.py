"""Reading what sweeps left: their summary, their commands, histories, and some digits."""

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from distill.report import comparison
from distill.report.contents import Digit, Sweep, Unfinished
from distill.runs.columns import Status
from distill.runs.planned import Block, commands, commits, planned, settings, without
from distill.runs.results import DIGITS, ENDED, HISTORY, RESULT, SUMMARY, found
from distill.runs.standing import at_work
from distill.runs.summaries import read_summary
from distill.runs.wrong import TRUTHS, WRONG, read_wrong

SETTINGS = 12  # of those that a sweep lacks, the largest, which are named
# The losses that weigh the labels by 1 - alpha, so that an alpha of 0 is labels alone.
MIXED = ("kd", "logits", "mse", "reverse_kl", "jsd", "ctkd")


class ReportError(Exception):
    """A report that cannot be made; its text is one line that says why."""


def sweep(folder: Path) -> Sweep:
    """The sweep in ``folder``, which holds a summary.

    Raises:
        ReportError: there is none, or it is damaged.
    """
    path = folder / SUMMARY
    try:
        listed = found(folder)
        frame = read_summary(path if _current(path, listed) else folder)
        runs, diverged = (
            _once(frame[frame["status"].eq(status).fillna(value=False)])
            for status in (Status.COMPLETE, Status.DIVERGED)
        )
    except FileNotFoundError as error:
        hint = "give the directory of a sweep, or rebuild it with distill-summary"
        raise ReportError(f"DIR={folder}: there is no {SUMMARY} in it; {hint}") from error
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ReportError(f"DIR={folder}: {SUMMARY} cannot be read ({reason})") from error
    if runs.empty:
        raise ReportError(f"DIR={folder}: none of the {len(frame)} runs in {SUMMARY} is complete")
    runs = _with_images(folder, _weighed(runs))
    try:
        compared = tuple(comparison.read(folder, runs))
    except ValueError as error:
        raise ReportError(f"DIR={folder}: {error}") from error
    return Sweep(
        folder.resolve().name,
        folder,
        runs,
        commands(folder),
        _curves(folder, runs),
        _digits([folder, *(folder / str(name) for name in runs.get("directory", ()))]),
        comparisons=compared,
        unfinished=_unfinished(folder, frame, now=bool(listed)),
        commits=commits(folder),
        diverged=_weighed(diverged),
    )


def _current(path: Path, listed: Sequence[Path]) -> bool:
    """Whether the summary at ``path`` is newer than all runs that lie there, or none do.

    Where none could be written, or runs were added, as those of a sweep that was killed, or one
    has no result, the results speak for themselves.
    """
    try:
        written = path.stat().st_mtime_ns
        return all(r.name == RESULT and r.stat().st_mtime_ns <= written for r in listed)
    except OSError:  # there is none; or a run cannot be read, which its row then says
        return False


def _unfinished(folder: Path, frame: pd.DataFrame, *, now: bool) -> Unfinished | None:
    """What the sweep lacks yet; None if it is finished. ``now``: its runs were looked at."""
    jobs = planned(folder)
    status = frame["status"].fillna("")
    directories = frame["directory"] if "directory" in frame else frame["run"]
    waiting = without(jobs, directories.dropna().tolist())
    trains = frame[status.eq(Status.RUNNING)] if now else frame.iloc[:0]
    left = frame[status.isin([Status.RUNNING, Status.INTERRUPTED])]
    if not waiting and left.empty:
        return None
    own = without(jobs, directories[status.isin(ENDED)].tolist())
    named = settings(own, jobs) if jobs else [Block(str(run), 1) for run in left["run"]]
    active = not trains.empty or at_work(folder)
    failed = directories[~status.isin([*ENDED, Status.RUNNING, Status.INTERRUPTED])]
    lost = len(own) - len(without(own, failed.tolist()))
    counts = {
        "training": len(trains),
        "interrupted": len(left) - len(trains),
        "failed": lost,
        "queued" if active else "missing": len(waiting),
    }
    texts = [f"{text or 'all settings'}: {_runs(n)}" for text, n in named]
    return Unfinished(
        len(jobs) - len(own),
        len(jobs),
        tuple(f"{n} {how}" for how, n in counts.items() if n),
        tuple(texts[:SETTINGS]),
        sum(n for _, n in named[SETTINGS:]),
        tuple(_progress(trains)),
        active,
    )


def _runs(number: int) -> str:
    return f"{number} run{'' if number == 1 else 's'}"


def _progress(trains: pd.DataFrame) -> Iterator[str]:
    """How far runs are that train, and the fewest and the most errors of those equally far."""
    part = "val_errors" if trains["val_errors"].notna().any() else "test_errors"
    for reason, rows in trains.groupby("reason", sort=False):
        errors = rows[part].dropna()
        span = " to ".join(map(str, dict.fromkeys((errors.min(), errors.max()))))
        at = f", {span} {part.replace('_', ' ')}" if len(errors) else ""
        yield f"{_runs(len(rows))}: {reason}{at}"


def _with_images(folder: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with which test images they get wrong, where that is kept beside the summary.

    Raises:
        ReportError: what is kept is damaged.
    """
    if not (folder / WRONG).is_file():
        return runs
    try:
        kept = {row.run: row for row in read_wrong(folder / WRONG)}
    except (OSError, ValueError) as error:
        raise ReportError(f"DIR={folder}: {error}") from error
    for name in TRUTHS:
        known = {run: text for run, row in kept.items() if (text := getattr(row, name))}
        runs = runs.assign(**{name: runs["run"].map(known)})
    return runs


def _weighed(runs: pd.DataFrame) -> pd.DataFrame:
    """An alpha that does not weigh the labels by 1 - alpha is a setting of another name."""
    if not {"loss", "alpha"} <= {*runs}:
        return runs
    other = ~runs["loss"].isin(MIXED) & runs["alpha"].notna()
    if not other.any():
        return runs
    own = runs["alpha"].where(other)
    return runs.assign(**{"alpha": runs["alpha"].mask(other), "loss.alpha": own})


def _once(runs: pd.DataFrame) -> pd.DataFrame:
    """Each run once: a copy of its directory is no other seed.

    Raises:
        ValueError: copies have not the same figures.
    """
    how = [c for c in ("run", "precision", "device") if c in runs]
    apart = runs.drop_duplicates([*how, *(c for c in ("test_errors", "val_errors") if c in runs)])
    again = apart["run"][apart.duplicated(how)]
    if not again.empty:
        raise ValueError(f"{again.iloc[0]} stands in it twice, with other figures")
    return apart.reset_index(drop=True)


def _curves(folder: Path, runs: pd.DataFrame) -> pd.DataFrame | None:
    """The histories of the runs, where they are there and whole."""
    if "directory" not in runs:
        return None
    found = []
    for run, directory in zip(runs["run"], runs["directory"], strict=True):
        try:
            found.append(pd.read_csv(folder / str(directory) / HISTORY).assign(run=run))
        except (OSError, ValueError):
            continue
    return pd.concat(found, ignore_index=True) if found else None


def _digits(folders: Iterable[Path]) -> tuple[Digit, ...]:
    """What one teacher of the sweep says of some digits, which lies in the first of these folders.

    It lies in those of runs; earlier versions wrote it into the sweep's.
    """
    for path in (path for folder in folders for path in sorted(folder.glob(f"{DIGITS}-*.json"))):
        try:
            return tuple(map(_digit, json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return ()


def _digit(content: dict[str, Any]) -> Digit:
    pixels = np.frombuffer(base64.b64decode(content["pixels"]), np.uint8)
    shape = content["height"], content["width"]
    return Digit(content["label"], pixels.reshape(shape), np.array(content["logits"], float))
