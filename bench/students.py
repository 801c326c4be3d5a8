"""What `bench.functions` and `bench.gradients` share: students of a sweep in, a summary out."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from bench.identities import record
from distill import ConfigError, Student, __version__, load
from distill.findings.preconditions import apart
from distill.report.contents import Sweep
from distill.report.numbers import settings
from distill.report.reading import ReportError, sweep
from distill.runs.results import SUMMARY, SWEEP
from distill.system.store import home, told, write_text

Rows = Iterator[dict[str, Any]]
FOLDER = Path(__file__).parents[1] / "multirun"


def write(name: str, about: str, measure: Callable[[Sweep], Rows]) -> None:
    """The command `python -m bench.NAME DIR`: write what ``measure`` finds of the sweep in DIR.

    Raises:
        SystemExit: it cannot be measured or written.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=about)
    parser.add_argument("directory", metavar="DIR", type=home, help="a finished sweep")
    parser.add_argument("--out", metavar="DIR", type=home, default=str(FOLDER / name))
    arguments = parser.parse_args()
    folder, out = Path(arguments.directory), Path(arguments.out)
    try:
        found = sweep(folder)
        if found.unfinished is not None:
            sys.exit(f"DIR={folder}: it is not finished: {found.unfinished}")
        rows = [{"status": "complete", "version": __version__, **row} for row in measure(found)]
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / SUMMARY, pd.DataFrame(rows).to_csv(index=False))
        commands = [*found.commands, f"python -m bench.{name} multirun/{found.name}"]
        write_text(out / SWEEP, yaml.safe_dump(record(commands)))
    except (ReportError, ConfigError) as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(told(error) or str(error))
    print(out / SUMMARY)


def by_seed(found: Sweep, runs: pd.DataFrame, what: str) -> dict[int, "pd.Series[Any]"]:
    """The runs of ``found`` that are ``what``, one a seed, in their order.

    Raises:
        ReportError: there are none, or several of a seed.
    """
    if runs.empty:
        raise ReportError(f"DIR={found.folder}: it has no {what}")
    twice = runs["seed"][runs["seed"].duplicated()]
    if len(twice):
        raise ReportError(f"DIR={found.folder}: it has several {what} of seed {twice.iloc[0]}")
    return {int(row["seed"]): row for _, row in runs.sort_values("seed").iterrows()}


def alike(found: Sweep, runs: pd.DataFrame, compared: Sequence[str] = ()) -> None:
    """See that ``runs`` differ in nothing but their seeds, and what is ``compared``.

    Raises:
        ReportError: they do.
    """
    if setting := apart(runs, compared, ()):
        raise ReportError(f"DIR={found.folder}: its students are not of one setting: {setting}")


def student(found: Sweep, run: "pd.Series[Any]") -> Student:
    """The trained student of a run.

    Raises:
        ConfigError: it kept no weights, or they are damaged.
    """
    return load(found.folder / str(run["directory"]))


def said(found: Sweep, run: "pd.Series[Any]") -> dict[str, Any]:
    """The seed, teacher and settings of a run, as columns; the latter by ``student.KEY``."""
    keys = [*settings(found.runs), "transfer_examples"]
    own = {key: run[key] for key in ("seed", "teacher_digest")}
    return {**own, **{f"student.{key}": run[key] for key in keys}}
