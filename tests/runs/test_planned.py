"""What a sweep planned: its rows as they are read, and the settings of some of them."""

import csv
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.runs.planned import MANY, Planned, commands, planned, remedy, settings, without

GRID = [
    Planned(f"{w}-{t}-{s}", f"train.epochs=2 model.width={w} loss.temperature={t} seed={s}")
    for w, t, s in itertools.product((10, 30, 100), (1, 4), range(3))
]


def texts(some: list[Planned], jobs: list[Planned] = GRID) -> list[tuple[str, int]]:
    return [(block.text, block.jobs) for block in settings(some, jobs)]


def test_rows_are_read_by_the_names_of_their_columns(home: Path) -> None:
    rows = [("more", "overrides", "directory"), ("x", "a=1 'b=[1,2]'", "r/0"), ("y", "", "r/1")]
    with (home / "planned.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert planned(home) == (Planned("r/0", "a=1 'b=[1,2]'"), Planned("r/1", ""))
    assert planned(home / "nowhere") == ()


@pytest.mark.parametrize("damage", ["", "directory\n", "directory,overrides\na\n", '"', "\x00"])
def test_of_a_damaged_plan_a_warning_says_that_nothing_is_known(
    damage: str, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "planned.csv").write_text(damage)
    assert planned(home) == ()
    assert "what is queued or missing is not known" in caplog.text


def test_what_is_lacking_is_named_by_the_edges_of_the_grid() -> None:
    assert texts(GRID) == [("", 18)]
    assert texts(GRID[12:]) == [("model.width=100", 6)]
    assert texts(GRID[10:]) == [
        ("model.width=100", 6),
        ("model.width=30 loss.temperature=4 seed=1,2", 2),
    ]
    assert texts([row for row in GRID if row.directory.endswith("2")]) == [("seed=2", 6)]
    assert without(GRID, [row.directory for row in GRID[1:]]) == GRID[:1]


def test_many_values_of_a_key_are_named_by_the_first_and_the_last() -> None:
    jobs = [Planned(str(s), f"seed={s}") for s in range(100)]
    [(text, n)] = texts(jobs[1:], jobs)
    assert (text, n) == ("seed=1,2,... 96 more ...,99", 99)
    assert len(text.split(",")) < MANY


def test_a_key_that_some_jobs_leave_out_has_its_default_there() -> None:
    jobs = [Planned("a", "loss=hard"), Planned("b", "loss=kd loss.alpha=1"), Planned("c", "a 'b")]
    assert texts(jobs[:1], jobs) == [("loss=hard loss.alpha=(default) a 'b=(default)", 1)]
    assert texts(jobs, jobs)[0][1] == 1


@given(st.sets(st.integers(0, 17)))
def test_blocks_hold_each_job_once_and_no_other(numbers: set[int]) -> None:
    values = {"model.width": "10,30,100", "loss.temperature": "1,4", "seed": "0,1,2"}
    some, found = [GRID[n] for n in sorted(numbers)], []
    for text, n in texts(some):
        given = values | dict(pair.split("=") for pair in text.split())
        block = ["-".join(v) for v in itertools.product(*(v.split(",") for v in given.values()))]
        assert len(block) == n
        found += block
    assert sorted(found) == sorted(row.directory for row in some)


def test_what_goes_on_is_the_last_command(home: Path) -> None:
    assert (commands(home), remedy(home)) == ((), "the command that began it goes on")
    (home / "sweep.yaml").write_text("commands: [distill -m a=1, 'distill x=db://me:secret@h']")
    assert remedy(home) == "to go on: distill x=db://me:***@h"
    (home / "sweep.yaml").write_text("commands: 3")
    assert commands(home) == ()
