"""How a sweep stands and how it is watched: real sweeps, while they run, killed, and finished."""

import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import SMALL, Finished, ran, shell
from rich.console import Console
from unfinished import unfinish, write_plan

from distill.runs import results, standing, summaries
from distill.runs.planned import PLANNED, commands
from distill.runs.standing import Standing, Sweep
from distill.sweeps import following, tables
from distill.system.pulse import PULSE, pulse

SWEEP = (
    *("-m", *SMALL, "precision=fp32", "data.validation=0.2", "hydra.sweep.dir=sweep"),
    *("model.width=4,8", "loss.temperature=1,2,4"),  # two stacks of three
)
LONG = (*SWEEP, "train.epochs=9", "halving.rungs=1", "train.batch_size=4")
LAST = "nothing is at work any more, and the sweep is not finished; "
WATCH = "from distill.cli.commands import summary as m; m()"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep of six runs, with its plan."""
    home = tmp_path_factory.mktemp("finished")
    ran(home, *SWEEP)
    write_plan(home / "sweep")
    return home / "sweep"


@pytest.fixture
def sweep(finished: Path, home: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, home / "sweep"))


def progress(**more: Any) -> dict[str, Any]:
    said = {"epoch": 2, "of": 3, "left": 2, "errors": [7, 12], "part": "val", "seconds": 20.0}
    return {"progress": {**said, "an_epoch": 10.0, "halvings": 0, **more}}


def block(folder: Path, every: float = 0.01) -> str:
    """What is printed, where there is no terminal, until the watch ends."""
    console = Console(file=StringIO(), width=160)
    assert following.watch(folder, every, console)
    file = console.file
    assert isinstance(file, StringIO)
    return file.getvalue()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PAUSE", 0.01)


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """The files and folders below one, and when they were changed."""
    found = [folder, *folder.rglob("*")]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def test_a_finished_sweep_is_shown_once_and_nothing_is_written(sweep: Path) -> None:
    before = everything(sweep)
    text = block(sweep)
    assert everything(sweep) == before
    assert text.count("runs: 6 of 6 ended (6 complete)\n") == 2  # at first, and at the end
    assert text.endswith("the sweep has ended\n")
    assert "missing" not in text and "queued" not in text


def test_what_was_killed_is_told_with_the_command_that_goes_on(sweep: Path) -> None:
    first, second, third, *_ = [path.parent for path in sorted(sweep.rglob(results.RESULT))]
    for run in (first, second):
        unfinish(run, first, **progress())
    (second / results.HISTORY).unlink()  # killed in its first epoch
    shutil.rmtree(third)
    text = block(sweep)
    [line] = {line for line in text.splitlines() if line.startswith("runs:")}
    assert line == "runs: 3 of 6 ended (3 complete, 1 interrupted), 2 missing"
    killed = "it was killed after epoch 2 of 5; the same command goes on"
    assert f"{first.name} interrupted: {killed}\n" in text
    [command] = commands(sweep)
    assert text.splitlines()[-1] == f"{LAST}to go on: {command}"
    assert shlex.split(command) == ["distill", *SWEEP]


def test_stacks_that_train_are_told_apart(sweep: Path) -> None:
    runs = [path.parent for path in sorted(sweep.rglob(results.RESULT))]
    for run in runs[:3]:
        unfinish(run, runs[0], **(progress() if run == runs[0] else {}))
    unfinish(runs[3], runs[3], **progress(errors=[5, 5], halvings=1, left=1, epoch=4))
    shutil.rmtree(runs[4])
    with pulse(runs[0] / PULSE), pulse(runs[3] / PULSE):
        now = Sweep(sweep).look()
        shown = Console(file=StringIO(), width=160)
        shown.print(*following._block(now, sweep, shown, 0.0), sep="\n")
    one, other = now.stacks
    assert (one.run, one.jobs, one.left, one.epoch, one.errors) == (runs[0].name, 3, 2, 2, (7, 12))
    assert (other.run, other.jobs, other.left, other.errors) == (runs[3].name, 1, 1, (5, 5))
    assert one.seconds == pytest.approx(30, abs=5) and other.seconds == pytest.approx(10, abs=5)
    # The one that is queued takes as long as the one that ended, in one of two places.
    mean = results.read(runs[5] / results.RESULT)["seconds"]
    assert now.seconds == pytest.approx(max(one.seconds, (40 + mean) / 2), abs=5)
    assert isinstance(shown.file, StringIO)
    text = shown.file.getvalue()
    assert "val errors" in text

    def end(number: int) -> str:  # what tells the two apart
        return re.escape(runs[number].name[len("synthetic") :])

    assert re.search(rf"…{end(0)} +2 of 5 +2 of 3 +7 to 12 +0:00:(30|2\d) ", text)
    assert re.search(rf"…{end(3)} +4 of 5 +1 of 1 +5 +at most 0:00:(10|0\d) ", text)
    assert "runs: 1 of 6 ended (1 complete), 4 training, 1 queued\n" in text
    assert "left for all, teachers not included, if those queued take as long as those that" in text
    # Nobody gives signs of life any more.
    assert "2 missing" not in block(sweep)
    assert "(1 complete, 4 interrupted), 1 missing" in block(sweep)


def test_a_stack_that_makes_its_teacher_yet_is_shown(sweep: Path) -> None:
    run = sorted(sweep.rglob(results.RESULT))[0].parent
    shutil.rmtree(run)
    run.mkdir()
    with pulse(run / PULSE):
        now = Sweep(sweep).look()
    assert [(stack.run, stack.epoch, stack.jobs) for stack in now.stacks] == [(run.name, None, 0)]
    assert (now.active, now.seconds, len(now.waiting)) == (True, None, 1)
    shown = Console(file=StringIO(), width=80)
    shown.print(following._table(now.stacks))
    assert isinstance(shown.file, StringIO)
    assert "teacher first" in shown.file.getvalue()


def test_while_the_command_is_at_work_what_is_lacking_is_queued(sweep: Path) -> None:
    shutil.rmtree(sorted(sweep.rglob(results.RESULT))[0].parent)
    with pulse(sweep / PULSE):
        now = Sweep(sweep).look()
        assert (now.active, now.stacks, now.lacking) == (True, (), 1)
        assert "1 queued" in following._counts(now)
    assert "1 missing" in following._counts(Sweep(sweep).look())


def test_runs_of_earlier_commands_are_counted_apart(sweep: Path) -> None:
    rows = (sweep / PLANNED).read_text().splitlines()
    (sweep / PLANNED).write_text("\n".join(rows[:3]) + "\n")
    assert "runs: 2 of 2 ended (2 complete), and 4 of earlier commands\n" in block(sweep)
    (sweep / PLANNED).unlink()
    assert "runs: 6 ended (6 complete)\n" in block(sweep)


def test_only_what_changed_is_read_again(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    row_of = summaries.row_of

    def counted(path: Path, *rest: Any) -> Any:
        read.append(path.parent.name)
        return row_of(path, *rest)

    monkeypatch.setattr(standing, "row_of", counted)
    then = time.time() - 1000
    for path in [sweep, *sweep.rglob("*")]:
        os.utime(path, (then, then))  # so old that a listing counts
    watched, counts = Sweep(sweep), {"complete": 6}
    assert [watched.look().ended for _ in range(3)] == 3 * [counts]
    assert len(read) == 6
    [path, *_] = sorted(sweep.rglob(results.RESULT))
    result = results.read(path)
    files = result.pop("files")
    assert files
    results.write(path.parent, {**result, "status": "diverged", "reason": "so"}, [])
    now = watched.look()
    assert now.ended == {"complete": 5, "diverged": 1}
    assert now.lost == {("diverged", "so"): [path.parent.name]}
    assert read[6:] == [path.parent.name]
    # A run that is new, in a folder that was listed before, is found; one that went is gone.
    shutil.copytree(path.parent, sweep / "deeper" / "new")
    shutil.rmtree(path.parent)
    now = watched.look()
    assert (now.ended, now.others, len(now.waiting)) == ({"complete": 5}, 1, 1)


def test_a_look_at_what_did_not_change_lists_no_folder(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = time.time() - 1000
    for path in [sweep, *sweep.rglob("*")]:
        os.utime(path, (then, then))
    watched = Sweep(sweep)
    first = watched.look()

    def refuse(path: str) -> Iterator[Any]:
        raise AssertionError(f"{path} is listed again")

    monkeypatch.setattr(os, "scandir", refuse)
    assert watched.look() == first


def test_a_result_that_cannot_be_read_is_tried_again(sweep: Path) -> None:
    [path, *_] = sorted(sweep.rglob(results.RESULT))
    text = path.read_text()
    path.unlink()
    path.mkdir()
    watched = Sweep(sweep)
    assert watched.look().ended == {"complete": 5, "failed": 1}
    path.rmdir()
    path.write_text(text)
    assert watched.look().ended == {"complete": 6}


def test_the_summary_says_what_is_missing_in_one_line(sweep: Path) -> None:
    def said() -> str:
        console = Console(file=StringIO(), width=100)
        tables.show(summaries.summary(sweep), sweep, console)
        assert isinstance(console.file, StringIO)
        return console.file.getvalue()

    assert "planned" not in said() and "to go on" not in said()
    [one, other, *_] = [path.parent for path in sorted(sweep.rglob(results.RESULT))]
    unfinish(one, one)
    [command] = commands(sweep)
    assert f"\nto go on: {command}\n" in said()  # with what was killed
    shutil.rmtree(other)
    assert f"\n1 of 6 planned runs is missing; to go on: {command}\n" in said()
    with pulse(one / PULSE):
        assert "\n1 of 6 planned runs is queued; to watch them: distill-summary" in said()


def watch_command(*arguments: str, **environment: str) -> Finished:
    return shell(sys.executable, "-c", WATCH, *arguments, **environment)


@pytest.mark.slow
def test_a_folder_that_one_may_only_read_is_watched(sweep: Path) -> None:
    shutil.rmtree(sorted(sweep.rglob(results.RESULT))[0].parent)
    before = everything(sweep)
    bind = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && '
    bind += '! touch "$1/probe" && shift && exec "$@"'
    rights = "-m" if os.geteuid() == 0 else "-Urm"
    command = (sys.executable, "-c", WATCH, str(sweep), "--watch", "--every", "0.1")
    done = shell("unshare", rights, "sh", "-c", bind, "sh", str(sweep), *command)
    assert done.code == 0, done.err
    assert "runs: 5 of 6 ended (5 complete), 1 missing\n" in done.out
    assert everything(sweep) == before


def test_what_is_no_sweep_cannot_be_watched(home: Path) -> None:
    for wrong, line in (
        ((str(home), "--watch"), "no result.json lies below it"),
        ((str(home), "--every", "3"), "--every is for --watch"),
        ((str(home), "--watch", "--every", "0"), "argument --every: invalid"),
    ):
        done = watch_command(*wrong)
        assert done.code != 0 and done.out == ""
        assert line in done.err.splitlines()[-1]


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """`distill` at work in the background."""
    call = [sys.executable, "-m", "distill", *command]
    with Path("out").open("wb") as out, subprocess.Popen(call, stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            process.kill()


def until(folder: Path, true: Callable[[Standing], bool], process: subprocess.Popen[bytes]) -> None:
    watched = Sweep(folder)
    while not true(watched.look()):
        assert process.poll() is None, Path("out").read_text()
        time.sleep(0.05)


def trains(now: Standing) -> bool:
    return any(stack.epoch for stack in now.stacks)


@pytest.mark.slow
def test_a_sweep_is_watched_while_it_runs(home: Path) -> None:
    folder = home / "sweep"
    with started(*LONG, "train.epochs=90") as process:
        until(folder, lambda now: now.active, process)
        text = block(folder, every=0.1)
        assert process.wait() == 0, Path("out").read_text()
    epochs = [int(epoch) for epoch in re.findall(r"(\d+) of 90 +\d of 3 ", text)]
    assert len({*epochs}) > 1 and max(epochs) <= 90
    assert re.search(r"\d of 90 +1 of 3 +\d+ +0:\d\d:\d\d ", text), "none was halved"
    assert re.search(r"\d of 90 +3 of 3 +\d+( to \d+)? +at most 0:\d\d:\d\d ", text)
    assert "(2 complete, 4 stopped)" in text
    assert text.endswith("the sweep has ended\n")
    first = sorted(folder.rglob(results.RESULT))[0].parent
    frame = pd.read_csv(first / results.HISTORY)
    assert next(iter(frame)) == "epoch" and "progress" not in frame


@pytest.mark.slow
def test_a_killed_sweep_is_told_with_its_command_and_one_watch_ends(home: Path) -> None:
    folder = home / "sweep"
    with started(*LONG, "train.epochs=999") as process:
        until(folder, trains, process)
        assert Sweep(folder).look().active
        process.send_signal(signal.SIGKILL)
        process.wait()
    text = block(folder)
    assert "3 runs interrupted: it was killed after epoch" in text
    [command] = commands(folder)  # written at the start
    assert text.splitlines()[-1] == f"{LAST}to go on: {command}"
    assert shlex.split(command) == ["distill", *LONG, "train.epochs=999"]


@pytest.mark.slow
def test_a_terminal_shows_a_live_table_until_ctrl_c(home: Path) -> None:
    folder = home / "sweep"
    with started(*LONG, "train.epochs=999") as process:
        until(folder, trains, process)
        ours, theirs = pty.openpty()
        call = [sys.executable, "-c", WATCH, str(folder), "--watch", "--every", "0.2"]
        size = {"COLUMNS": "100", "LINES": "30", "TERM": "xterm"}
        with subprocess.Popen(
            call, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **size}
        ) as watch:
            os.close(theirs)
            text = b""
            while text.count(b" of 999") < 3:  # drawn again and again
                text += os.read(ours, 4096)
            assert b"\x1b[1A" in text or b"\x1b[2K" in text, "in its place"
            watch.send_signal(signal.SIGINT)
            while part := read(ours):
                text += part
        os.close(ours)
        assert watch.returncode == 130
        assert text.rstrip().endswith(b"\x1b[?25h"), "the cursor is there again"
        assert b"Traceback" not in text
        assert process.poll() is None


def read(terminal: int) -> bytes:
    """What comes from a terminal; nothing once it is closed."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""
