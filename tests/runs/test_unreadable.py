"""Files that cannot be read now, as networks and permissions have it, and may be whole."""

import errno
import fcntl
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pandas as pd
import pytest
from conftest import SMALL, Cli, Finished, composed, forget, make_job, shell

from distill.config import ConfigError, parse
from distill.runs import results, summaries
from distill.system import disk, store
from distill.teachers.weights import teacher_weights
from distill.training import checkpoint
from distill.tuning.outcomes import Outcomes

SWEEP = ("-m", *SMALL, "precision=fp32", "seed=0,1", "hydra.sweep.dir=sweep")
Fault = Callable[..., list[Path]]


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Fault:
    """Let a file fail to be opened, for some ``times``; returns what was tried."""
    real = io.open

    def let(path: Path, number: int, times: float = float("inf")) -> list[Path]:
        tried: list[Path] = []

        def opened(file: Any, *rest: Any, **options: Any) -> Any:
            if not isinstance(file, int) and Path(file).absolute() == path.absolute():
                tried.append(path)
                if len(tried) <= times:
                    raise OSError(number, os.strerror(number), str(file))
            return real(file, *rest, **options)

        monkeypatch.setattr(io, "open", opened)
        return tried

    return let


def state(folder: str) -> dict[Path, tuple[int, int]]:
    """The files below a folder but for the summary and what is logged: their inodes and times."""
    aside = (results.SUMMARY, "multirun.yaml", results.SWEEP, store.LOCK, ".summary.lock")
    files = [p for p in Path(folder).rglob("*") if p.is_file() and p.name not in aside]
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


def refused(done: Finished, path: Path, number: int) -> None:
    """The command failed, and its last line says of which file and why."""
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert str(path) in last and os.strerror(number) in last
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_a_result_that_cannot_be_read_is_neither_trained_again_nor_removed(
    cli: Cli, fault: Fault, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "WAITS", (0.0, 0.0, 0.0))
    assert cli(*SWEEP).code == 0
    assert len(trained) == 2
    whole, [first, _] = state("sweep"), results.paths(Path("sweep"))
    for name, number in (
        (results.RESULT, errno.EIO),
        (results.HISTORY, errno.ESTALE),
        (results.WEIGHTS, errno.EACCES),
    ):
        tried = fault(first.with_name(name), number)
        refused(cli(*SWEEP), first.with_name(name), number)
        assert len(tried) >= (4 if number == errno.ESTALE else 1)
        if name == results.RESULT:
            frame = pd.read_csv("sweep/summary.csv")
            assert frame["status"].tolist() == ["unreadable", "complete"]
        fault(Path("nothing"), 0)
        assert state("sweep") == whole
    # One that is stale for a moment is as good as any.
    tried = fault(first, errno.ESTALE, 2)
    assert cli(*SWEEP).code == 0
    assert len(tried) >= 3
    assert len(trained) == 2
    assert state("sweep") == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.json", "*.safetensors"])
def test_a_teacher_that_cannot_be_read_is_not_made_again(name: str, cli: Cli, fault: Fault) -> None:
    assert cli(*SMALL).code == 0
    [folder] = [p for p in Path("data/teachers").iterdir() if p.is_dir() and "soft" not in p.name]
    [path] = folder.glob(name)
    whole = state("data/teachers")
    forget()
    fault(path, errno.EIO)
    done = cli(*SMALL, "seed=1")
    refused(done, path.absolute(), errno.EIO)
    assert "teacher.cache=" in done.err
    assert state("data/teachers") == whole
    fault(path, errno.ENOENT, 2)  # as on NFS, where this machine remembers that it was not there
    forget()
    assert cli(*SMALL, "seed=1").code == 0
    assert state("data/teachers") == whole


def test_a_checkpoint_that_cannot_be_read_is_no_damaged_one(home: Path, fault: Fault) -> None:
    path = home / checkpoint.FILE
    path.write_bytes(b"cut")
    assert checkpoint.members(home) == []
    for number in (errno.EIO, errno.EACCES):
        fault(path, number)
        with pytest.raises(OSError, match=os.strerror(number)):
            checkpoint.members(home)


def test_a_run_whose_result_cannot_be_read_is_no_teacher(
    home: Path, cli: Cli, fault: Fault
) -> None:
    """Else its weights would speak for themselves, whatever inputs they were trained on."""
    assert cli(*SMALL, "loss=hard", "hydra.run.dir=run").code == 0
    job = make_job()
    chosen = ("teacher=checkpoint", "teacher.path=run", "teacher.model.width=8")
    given = parse(composed(*SMALL[:2], *chosen, "train.batch_size=64")).teacher
    assert teacher_weights(job.run.data, given)
    fault(home / "run" / results.RESULT, errno.EIO)
    with pytest.raises(ConfigError, match=r"teacher.path=run: run/result.json: Input/output error"):
        teacher_weights(job.run.data, given)


def test_a_study_is_not_told_that_such_a_trial_failed(home: Path, fault: Fault) -> None:
    study = optuna.create_study()
    trial = study.ask()
    output = SimpleNamespace(hydra=SimpleNamespace(runtime=SimpleNamespace(output_dir=str(home))))
    returned: Any = SimpleNamespace(hydra_cfg=output)
    outcomes = Outcomes(home, ["val_errors"])
    trial.set_user_attr("directory", ".")
    fault(home / results.RESULT, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        outcomes.tell(study, trial, returned)
    with pytest.raises(OSError, match="Input/output error"):
        outcomes.agrees(study.trials[0])
    assert study.trials[0].state == optuna.trial.TrialState.RUNNING


SUMMARY = "from distill.cli.commands import summary; summary()"


@pytest.mark.slow
def test_the_summary_tells_what_may_not_be_read_from_what_is_not_there(home: Path) -> None:
    """Without the right of root to read what is forbidden."""
    for name in ("a", "b"):
        (home / "sweep" / name).mkdir(parents=True)
        results.write(home / "sweep" / name, {"run": name, "status": "complete"}, [])
    rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    command = [*(rights if os.geteuid() == 0 else []), sys.executable, "-c", SUMMARY, "sweep"]
    (home / "sweep" / "a" / results.RESULT).chmod(0)
    done = shell(*command)
    assert done.code == 1
    assert "sweep/a/result.json: Permission denied" in done.out
    assert "2 runs (1 unreadable, 1 complete)" in done.out
    assert done.err.splitlines()[-1].startswith("DIR=sweep: files of 1 of its runs cannot be read")
    (home / "sweep").chmod(0)
    done = shell(*command)
    (home / "sweep").chmod(0o755)
    assert done.code == 1
    assert done.err.splitlines() == ["DIR=sweep: it cannot be read (sweep: Permission denied)"]


def test_a_run_that_ends_or_goes_while_the_summary_looks(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = home / "sweep" / "run"
    folder.mkdir(parents=True)
    (folder / results.HISTORY).write_text("epoch,test_errors\n3,7\n")
    results.write_running(folder, {"run": "r", "epochs": 9}, folder)
    assert summaries.summary(home / "sweep")["status"].tolist() == ["interrupted"]

    def ends(_: Path) -> bool:  # after the look at its files, before that at its sign of life
        results.write(folder, {"run": "r", "status": "complete"}, [])
        return False

    monkeypatch.setattr(summaries, "alive", ends)
    assert summaries.summary(home / "sweep")["status"].tolist() == ["complete"]
    gone = folder / results.RESULT
    found = [gone, home / "sweep" / "other" / results.HISTORY]
    monkeypatch.setattr(summaries, "found", lambda _: found)
    assert summaries.summary(home / "sweep")["run"].tolist() == ["r"]
    gone.unlink()
    gone.symlink_to("nowhere")
    (folder / results.HISTORY).unlink()
    assert summaries.summary(home / "sweep")["status"].tolist() == ["unreadable"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_without_locks_the_work_goes_on_with_one_warning(
    number: int, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    for n in range(2):
        with store.locked(home), store.locked(home):
            assert store.get(home / str(n), lambda _: {"n": 1}) == {"n": 1}
        summaries.write_summary(home)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{home}: its file system has no locks ({os.strerror(number)}): let no")


def test_a_lock_that_fails_otherwise_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error"), store.locked(home):
        pass


def test_what_is_missing_for_a_moment_is_looked_for_again(home: Path, fault: Fault) -> None:
    (home / "file").write_text("x")
    tried = fault(home / "file", errno.ENOENT, 2)
    assert results.listed(home / "file") == store.file_digest(home / "file")
    assert len(tried) == 4
    with pytest.raises(FileNotFoundError):
        results.listed(home / "gone")
    assert disk.present(home / "file") and not disk.present(home / "gone")
    assert not disk.present(home / "gone" / "file") and not disk.present(home / "file" / "x")
