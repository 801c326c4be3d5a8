"""Real sweeps that are made to be as they were before their end."""

import csv
import shlex
from pathlib import Path
from typing import Any

import yaml

from distill.runs import results
from distill.runs.planned import PLANNED, Planned


def write_plan(folder: Path) -> list[str]:
    """The plan of a finished sweep, by what its runs recorded; returns their directories."""
    found = [path.parent for path in sorted(folder.rglob(results.RESULT))]
    rows = []
    for run in found:
        overrides = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text())
        rows.append((run.relative_to(folder).as_posix(), shlex.join(overrides)))
    with (folder / PLANNED).open("w", newline="") as file:
        csv.writer(file).writerows([Planned._fields, *rows])
    return [directory for directory, _ in rows]


def unfinish(run: Path, stack: Path, **more: Any) -> None:
    """Let a run be as it was while it trained in a stack whose first directory is ``stack``."""
    head = results.read(run / results.RESULT)
    results.write_running(run, {**head, "epochs": 5, **more}, stack)
    for name in (results.RESULT, *results.KEPT.values()):
        (run / name).unlink(missing_ok=True)
