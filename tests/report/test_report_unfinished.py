"""The report of a sweep that is not finished says so, and what it lacks."""

import os
import re
import shlex
import shutil
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from conftest import SMALL, ran
from unfinished import unfinish, write_plan

from distill.report import page, reading
from distill.runs import results
from distill.runs.planned import PLANNED
from distill.runs.summaries import write_summary
from distill.system.pulse import PULSE, pulse

SWEEP = ("-m", *SMALL, "loss.temperature=1,4", "seed=0,1,2", "hydra.sweep.dir=sweep")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("finished")
    ran(home, *SWEEP)
    write_plan(home / "sweep")
    return home / "sweep"


@pytest.fixture
def sweep(finished: Path, home: Path) -> Path:
    """A copy of a finished sweep of two temperatures and three seeds."""
    return Path(shutil.copytree(finished, home / "sweep"))


def runs(sweep: Path) -> list[Path]:
    return [path.parent for path in sorted(sweep.rglob(results.RESULT))]


def box(sweep: Path) -> str:
    """The text of the box in its page; nothing if there is none."""
    text = page.write(sweep / "out", [], [reading.sweep(sweep)]).read_text()
    found = re.search(
        r'<main id="main">\s*<section class="unfinished".*?</section>', text, re.DOTALL
    )
    assert (found is not None) == ("unfinished" in text)
    return " ".join(unescape(re.sub("<[^>]*>", " ", found[0])).split()) if found else ""


def test_the_report_of_a_finished_sweep_is_as_without_a_plan(sweep: Path) -> None:
    with_plan = page.write(sweep / "out", [], [reading.sweep(sweep)]).read_bytes()
    (sweep / PLANNED).unlink()
    without = page.write(sweep / "out", [], [reading.sweep(sweep)]).read_bytes()
    assert with_plan == without and b"finished" not in without


def test_what_is_missing_is_said_with_the_command_that_goes_on(sweep: Path) -> None:
    first, *_, last = runs(sweep)
    shutil.rmtree(last)
    unfinish(first, first)
    text = box(sweep)
    assert text.startswith(
        "sweep is not finished 4 of 6 planned runs ended; 1 interrupted, 1 missing. "
        "All that follows is of the runs that are complete now, and may change. Not there yet "
    )
    assert "loss.temperature=1 seed=0: 1 run loss.temperature=4 seed=2: 1 run" in text
    command = text.partition("This goes on with it: ")[2]
    assert shlex.split(command) == ["distill", *SWEEP]
    assert len(reading.sweep(sweep).runs) == 4  # the summary, which is older, has six
    shutil.rmtree(runs(sweep)[-1])
    shutil.rmtree(runs(sweep)[-1])
    assert "loss.temperature=4: 3 runs loss.temperature=1 seed=0: 1 run" in box(sweep)


def test_what_trains_is_said(sweep: Path) -> None:
    first, second, *_, last = runs(sweep)
    for run in (first, second):
        unfinish(run, first)
    shutil.rmtree(last)
    with pulse(first / PULSE):
        text = box(sweep)
    assert "3 of 6 planned runs ended; 2 training, 1 queued." in text
    assert re.search(r"Training as this was written 2 runs: epoch 2 of 5, \d+( to \d+)? test", text)
    assert "goes on" not in text


def test_without_a_plan_what_was_killed_is_named(sweep: Path) -> None:
    (sweep / PLANNED).unlink()
    first, *_ = runs(sweep)
    unfinish(first, first)
    text = box(sweep)
    assert "not all runs ended; 1 interrupted. All that follows" in text
    assert f"Not there yet {first.name}: 1 run Nothing is at work" in text


def test_a_summary_that_is_older_than_a_run_is_not_used(sweep: Path) -> None:
    frame = pd.read_csv(sweep / "summary.csv", dtype=str)
    frame.iloc[:3].to_csv(sweep / "summary.csv", index=False)
    assert len(reading.sweep(sweep).runs) == 3  # it may be chosen from
    os.utime(sweep / "summary.csv", (1, 1))
    assert len(reading.sweep(sweep).runs) == 6


def test_a_summary_that_was_copied_alone_claims_that_nothing_trains(
    sweep: Path, home: Path
) -> None:
    (home / "copy").mkdir()
    for name in ("summary.csv", PLANNED):
        shutil.copy(sweep / name, home / "copy")
    assert box(home / "copy") == ""
    first, *_ = runs(sweep)
    unfinish(first, first)
    with pulse(first / PULSE):
        write_summary(sweep)
    shutil.copy(sweep / "summary.csv", home / "copy")
    text = box(home / "copy")
    assert "5 of 6 planned runs ended; 1 interrupted." in text
    assert "Training" not in text
