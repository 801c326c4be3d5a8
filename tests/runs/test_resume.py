"""Sweeps that are run again, stopped, killed, damaged, or started twice at once."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL, Cli, make_job, same
from safetensors.torch import load

from distill import __version__
from distill.runs import execute as run
from distill.runs import kept, results, summaries
from distill.runs.results import WEIGHTS
from distill.runs.students import students
from distill.system import interrupt, machine
from distill.system.store import locked
from distill.training.checkpoint import FILE, Checkpoint, members
from distill.training.loop import Training

SWEEP = ("-m", *SMALL, "precision=fp32", "train.epochs=6", "hydra.sweep.dir=sweep")
MIXED = ("optim.lr=0.001,1e30,0.003", "model.dropout=0.3")  # one of them diverges


def summary() -> pd.DataFrame:
    return pd.read_csv(Path("sweep") / results.SUMMARY)


def weights() -> dict[str, Any]:
    found = (path.with_name(WEIGHTS) for path in results.paths(Path("sweep")))
    return {path.parent.name: load(path.read_bytes()) for path in found if path.exists()}


@pytest.mark.brothers
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["stack", "basic"])
def test_the_same_command_again_keeps_what_is_finished(
    launcher: str, cli: Cli, trained: list[str]
) -> None:
    command = (*SWEEP, "loss.temperature=1,2", "model.width=4,8", f"hydra/launcher={launcher}")
    cli(*command)
    first = summary()
    assert len(trained) == len(set(trained)) == len(first) == 4
    again = cli(*command)
    assert again.code == 0
    assert "finished before" in again.out
    pd.testing.assert_frame_equal(summary(), first)
    # An extended sweep trains what is new, and what failed before or was lost.
    (Path("sweep") / first["directory"][0] / results.RESULT).unlink()
    cli(*(part.replace("=1,2", "=1,2,4") for part in command))
    assert sorted(trained[4:]) == sorted({*summary()["run"]} - {*first["run"][1:]})
    assert len(trained) == 7


@pytest.mark.slow
def test_a_failed_run_is_tried_again(
    cli: Cli, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Training, "run", lambda *_: 1 / 0)
        assert cli(*SWEEP, "seed=0,1").code == 1
    assert summary()["status"].tolist() == ["failed"] * 2
    assert cli(*SWEEP, "seed=0,1").code == 0
    assert summary()["status"].tolist() == ["complete"] * 2
    assert len(trained) == 4


@pytest.mark.brothers
@pytest.mark.slow
@pytest.mark.parametrize("single", [True, False])
def test_without_resume_all_is_trained_again_and_the_old_put_aside(
    single: bool, cli: Cli, trained: list[str]
) -> None:
    command = SMALL if single else (*SWEEP, "seed=0,1")
    count = 1 if single else 2
    for _ in range(3):
        assert cli(*command, "resume=false").code == 0
    assert len(trained) == 3 * count
    assert "finished before" in cli(*command).out
    folder = Path("multirun") if single else Path("sweep")
    assert len(results.paths(folder)) == count
    aside = [p for p in folder.rglob(WEIGHTS) if results.EARLIER in p.parts]
    assert len(aside) == 2 * count
    assert "resume" not in summaries.summary(folder).columns


@pytest.mark.brothers
@pytest.mark.slow
@pytest.mark.parametrize("file", [results.RESULT, results.HISTORY, WEIGHTS])
@pytest.mark.parametrize("fault", ["truncated", "empty", "noise", "gone"])
def test_a_damaged_run_is_named_and_trained_again(
    file: str, fault: str, cli: Cli, trained: list[str]
) -> None:
    cli(*SWEEP, "seed=0,1")
    before, students = summary(), weights()
    path = Path("sweep") / before["directory"][1] / file
    content = path.read_bytes()
    noise = bytes(b ^ 0x55 for b in content)
    damaged = {"truncated": content[: len(content) // 2], "empty": b"", "noise": noise}
    path.unlink() if fault == "gone" else path.write_bytes(damaged[fault])
    again = cli(*SWEEP, "seed=0,1")
    assert again.code == 0
    assert trained == [*before["run"], before["run"][1]]
    if (file, fault) != (results.RESULT, "gone"):
        message = rf"{before['run'][1]} has damaged files \({file}\) and is trained again"
        assert re.search(message, again.out + again.err)
    times = ["seconds"]
    pd.testing.assert_frame_equal(summary().drop(columns=times), before.drop(columns=times))
    assert same(weights(), students)


def signals(monkeypatch: pytest.MonkeyPatch, step: int, *numbers: int) -> None:
    """Send signals to this process in the given step of the next student's training."""
    real, count = Training.step, 0

    def counted(self: Training, *args: Any) -> Any:
        nonlocal count
        if args[-1] > 0 and self.transfer.teachers:  # neither a plan's nor a teacher's
            count += 1
            if count == step:
                for number in numbers:
                    os.kill(os.getpid(), number)
        return real(self, *args)

    monkeypatch.setattr(Training, "step", counted)


@pytest.mark.brothers
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_leaves_a_checkpoint_from_which_the_sweep_goes_on(
    number: int, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*SWEEP, *MIXED, "model.width=4,8")
    cli(*command)
    undisturbed, students = summary(), weights()
    histories = [p.read_text() for p in sorted(Path("sweep").rglob(results.HISTORY))]
    Path("sweep").rename("undisturbed")
    with monkeypatch.context() as patch:
        signals(patch, 6 * 4 + 10, number)  # four steps an epoch: the second stack's third epoch
        stopped = cli(*command)
    assert stopped.code == 128 + number
    assert "stopping after this epoch" in stopped.err
    assert summary()["status"].value_counts().to_dict() == {
        "complete": 2,
        "diverged": 1,
        "interrupted": 3,
    }
    assert set(summary()["reason"].dropna()) > {f"by {signal.Signals(number).name}"}
    [checkpoint] = Path("sweep").rglob(FILE)
    again = cli(*command)
    assert again.code == 1  # of the diverged
    assert "3 of 6 jobs were finished before" in again.out
    assert not checkpoint.exists()
    assert "after epoch 3" in (checkpoint.parent / "distill.log").read_text()
    times = ["seconds"]
    pd.testing.assert_frame_equal(summary().drop(columns=times), undisturbed.drop(columns=times))
    assert same(weights(), students)
    assert [p.read_text() for p in sorted(Path("sweep").rglob(results.HISTORY))] == histories


@pytest.mark.slow
def test_members_of_several_teachers_go_on_with_their_own(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*SWEEP, *MIXED, "teacher.seed=0,1")
    cli(*command)
    undisturbed, students = summary(), weights()
    Path("sweep").rename("undisturbed")
    with monkeypatch.context() as patch:
        signals(patch, 10, signal.SIGTERM)  # in the third epoch, after one of each had diverged
        cli(*command)
    [checkpoint] = Path("sweep").rglob(FILE)
    cli(*command)
    assert "after epoch 3" in (checkpoint.parent / "distill.log").read_text()
    times = ["seconds"]
    pd.testing.assert_frame_equal(summary().drop(columns=times), undisturbed.drop(columns=times))
    assert same(weights(), students)


def test_a_second_signal_leaves_at_once(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    signals(monkeypatch, 6, signal.SIGINT, signal.SIGINT)
    assert cli(*SWEEP, "seed=0,1").code == 130
    assert "interrupted" in set(summary()["status"])
    assert not list(Path("sweep").rglob(FILE))


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"noise" * 100])
def test_a_damaged_checkpoint_is_not_used(
    content: bytes, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signals(patch, 10, signal.SIGTERM)
        cli(*SWEEP, *MIXED)
    [checkpoint] = Path("sweep").rglob(FILE)
    checkpoint.write_bytes(content)
    again = cli(*SWEEP, *MIXED)
    assert f"{FILE} is damaged and not used" in again.out + again.err
    assert summary()["status"].value_counts().to_dict() == {"complete": 2, "diverged": 1}
    assert not checkpoint.exists()


LONG = (
    *("-m", *SMALL, "precision=fp32", "train.epochs=200", "hydra.sweep.dir=sweep"),
    *("loss.temperature=1,2", "model.width=4,8", "checkpoint.every=0.001"),
)
COMMAND = [sys.executable, "-m", "distill", *LONG]


@pytest.mark.endurance
@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(cli: Cli, home: Path) -> None:
    cli(*LONG)
    undisturbed, students = summary(), weights()
    Path("sweep").rename("undisturbed")
    kills = 0
    while True:
        process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        checkpoint = next(home.rglob(FILE), None)
        before = checkpoint and checkpoint.stat().st_mtime_ns
        while kills < 3 and process.poll() is None:
            time.sleep(0.005)
            found = next(home.rglob(FILE), None)
            if found is not None and (found != checkpoint or found.stat().st_mtime_ns != before):
                process.kill()
                kills += 1
                break
        _, err = process.communicate()
        if process.returncode != -signal.SIGKILL:
            break
    assert process.returncode == 0, err.decode()
    assert kills >= 1
    logs = [path.read_text() for path in Path("sweep").rglob("distill.log")]
    assert any("going on from the checkpoint" in log for log in logs)
    times = ["seconds"]
    pd.testing.assert_frame_equal(summary().drop(columns=times), undisturbed.drop(columns=times))
    assert same(weights(), students)


@pytest.mark.brothers
@pytest.mark.slow
@pytest.mark.parametrize("group", [pytest.param(True, marks=pytest.mark.endurance), False])
def test_workers_write_checkpoints_when_a_signal_comes(group: bool, cli: Cli) -> None:
    command = [part for part in LONG if "checkpoint" not in part]
    call = [*COMMAND[:3], *command, "hydra.launcher.workers=2"]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not any("epoch 20 of" in p.read_text() for p in Path("sweep").rglob("distill.log")):
        assert process.poll() is None
        time.sleep(0.01)
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    left = [path.parent for path in Path("sweep").rglob(FILE)]
    statuses = summary()["status"].value_counts().to_dict()
    assert statuses.get("interrupted", 0) + statuses.get("complete", 0) == len(summary())
    assert left
    cli(*command)
    assert all("going on from" in (path / "distill.log").read_text() for path in left)
    assert summary()["status"].tolist() == ["complete"] * 4


@pytest.mark.slow
def test_of_two_of_the_same_command_at_once_the_second_waits(home: Path) -> None:
    sweep = Path("sweep")
    sweep.mkdir()
    with locked(sweep):
        both = [
            subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for _ in range(2)
        ]
        for process in both:
            assert process.stdout is not None
            assert "another process is at work in sweep: waiting" in process.stdout.readline()
    outs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert sum("4 of 4 jobs were finished before" in out for out in outs) == 1
    assert summary()["status"].tolist() == ["complete"] * 4
    logs = [path.read_text() for path in home.rglob("distill.log")]
    assert all(log.count("epoch 200 of 200") == 1 for log in logs)


@pytest.mark.slow
def test_a_sweep_that_is_extended_goes_on_with_the_stack_that_had_begun(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signals(patch, 10, signal.SIGTERM)
        cli(*SWEEP, "loss.temperature=1,2")
    [checkpoint] = Path("sweep").rglob(FILE)
    again = cli(*SWEEP, "loss.temperature=4,1,2")
    assert "3 jobs in 2 stacks of 1 to 2" in again.out
    assert "after epoch 3" in (checkpoint.parent / "distill.log").read_text()
    assert summary()["status"].tolist() == ["complete"] * 3


def ready() -> Training:
    """A training in bf16, of three members."""
    jobs = [make_job("precision=bf16", f"optim.lr={lr}") for lr in (0.001, 0.002, 0.003)]
    soft = torch.zeros(len(jobs[0].data.train_labels), 1, jobs[0].data.classes)
    return students(jobs, [soft])


def test_a_checkpoint_restores_leaves_of_the_members_that_are_left(home: Path) -> None:
    training = ready()
    history = training.run()
    history.members, history.diverged, history.epoch = [0, 2], {1: "gone"}, 1
    training._keep(torch.tensor(history.members))
    Checkpoint(home / FILE, ["a", "b", "c"], 0.0).write(training, history)
    assert Checkpoint(home / FILE, ["a", "d"], 0.0).restore(ready()) is None
    other = ready()
    assert Checkpoint(home / FILE, ["a", "b", "c"], 0.0).restore(other) == history
    for name, value in training.state().items():
        assert torch.equal(other.state()[name], value)
    for name, leaf in other.stack.leaves.items():
        assert torch.equal(leaf, training.stack.parameters[name].bfloat16())
    assert other.optimizer.lr == [0.001, 0.003]
    assert members(home) == ["a", "b", "c"]
    assert members(home / "nowhere") == []


def test_a_signal_after_the_last_check_is_not_lost() -> None:
    interrupt.install()
    with pytest.raises(interrupt.Interrupt, match="by SIGTERM"), interrupt.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
    assert not interrupt.asked()


@pytest.mark.brothers
@pytest.mark.slow
@pytest.mark.parametrize("launcher", [None, "stack", "basic"])
def test_the_result_of_another_run_is_refused_or_put_aside(
    launcher: str | None, cli: Cli, home: Path, trained: list[str]
) -> None:
    sweep = ("-m", f"hydra/launcher={launcher}", "hydra.sweep.subdir=${hydra.job.num}")
    place = sweep if launcher else ("hydra.run.dir=sweep/0",)
    command = (*SMALL, "hydra.sweep.dir=sweep", *place)
    assert cli(*command).code == 0
    folder = home / "sweep" / "0"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refused = cli(*command, "seed=1")
    assert refused.code == 1
    assert f"{folder} holds the result of another run, {trained[0]}" in refused.err
    assert {path: path.read_bytes() for path in before} == before
    assert "finished before" in cli(*command).out
    assert len(trained) == 1
    assert cli(*command, "seed=1", "resume=false").code == 0
    aside = folder / results.EARLIER / "1"
    kept = (results.RESULT, WEIGHTS, ".hydra/config.yaml")
    assert [(aside / name).read_bytes() for name in kept] == [before[folder / n] for n in kept]
    assert results.read(folder / results.RESULT)["seed"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("file", [results.RESULT, results.HISTORY, WEIGHTS])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_what_cannot_be_read_is_not_damaged(
    file: str, number: int, cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli(*SMALL, "hydra.run.dir=run")
    (home / "run" / ".lock").touch()
    before = {p: p.read_bytes() for p in (home / "run").iterdir() if p.is_file()}

    def closing(real: Any) -> Any:
        def closed(self: Path, *rest: Any, **more: Any) -> Any:
            if self.name == file:
                raise OSError(number, os.strerror(number))
            return real(self, *rest, **more)

        return closed

    with monkeypatch.context() as patch:
        for name in ("open", "read_text"):
            patch.setattr(Path, name, closing(getattr(Path, name)))
        done = cli(*SMALL, "hydra.run.dir=run")
    assert done.code == 1
    [line] = done.err.splitlines()
    assert line.startswith(f"{home}/run/{file}: {os.strerror(number)}; it may be whole")
    assert {p: p.read_bytes() for p in before} == before
    assert not (home / "run" / results.EARLIER).exists()
    assert "finished before" in cli(*SMALL, "hydra.run.dir=run").out


def test_a_try_that_fails_leaves_the_damaged_one_before_it(home: Path) -> None:
    results.write(home, {"run": "a", "status": "complete"}, [])  # it has no weights
    assert results.finished(home, "a") is None
    results.clear(home, keep=False)
    assert results.read(home / results.EARLIER / "1" / results.RESULT)["run"] == "a"


def test_an_error_after_a_result_leaves_it(home: Path) -> None:
    job = make_job()
    results.write(home, {"run": job.name, "status": "stopped", "test_errors": 3}, [])
    [body] = run.fail([job], [home], RuntimeError("the worker died"))
    assert body["status"] == "stopped"
    assert results.read(home / results.RESULT)["test_errors"] == 3


@pytest.mark.slow
def test_kept_runs_of_another_kind_of_machine_are_told_of(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for fast, values in ((True, "0,1"), (False, "0,1,2")):
        monkeypatch.setattr(machine, "abilities", lambda own={"amx_bf16"} if fast else set(): own)
        done = cli("-m", *SMALL, "device=cpu", "hydra.sweep.dir=sweep", f"seed={values}")
        assert done.code == 0
    said = "2 of 2 in bf16 on cpu, not fp32 on cpu"
    assert said in done.out + done.err + caplog.text
    assert "precision=bf16" in done.out and "precision=fp32" in done.out
    assert "mean over 3 seeds" not in done.out


@pytest.mark.slow
def test_a_checkpoint_of_another_kind_is_not_used(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = ready()
    saved = Checkpoint(home / FILE, ["a", "b", "c"], 0.0)
    saved.write(training, training.run())
    jobs = [make_job("precision=fp32", f"optim.lr={lr}") for lr in (0.001, 0.002, 0.003)]
    soft = torch.zeros(len(jobs[0].data.train_labels), 1, jobs[0].data.classes)
    assert saved.restore(students(jobs, [soft])) is None
    assert "in torch.bfloat16 on cpu and not used" in caplog.text


@pytest.mark.parametrize("umask", [0o002, 0o027])
def test_files_have_the_modes_of_the_umask(umask: int, cli: Cli, home: Path) -> None:
    before = os.umask(umask)
    try:
        cli(*SMALL, "hydra.run.dir=a/run", "teacher.cache=cache")
    finally:
        os.umask(before)
    files = [p for part in ("a", "cache") for p in (home / part).rglob("*") if p.is_file()]
    assert {p.name: p.stat().st_mode & 0o777 for p in files} == {
        p.name: 0o666 & ~umask for p in files
    }
    assert {WEIGHTS, "teacher.safetensors", "logits.safetensors"} <= {p.name for p in files}
    assert [p.name for p in (home / "a").iterdir()] == ["run"]  # nothing beside the run


def test_what_is_kept_of_another_kind_or_version_is_told_of() -> None:
    job = make_job(*SMALL, "precision=fp32")
    own = {"precision": "fp32", "device": "cpu", "version": __version__}
    assert [*kept.unlike([])] == [*kept.unlike([(job, own)])] == []
    other = own | {"precision": "bf16", "device": "cuda"}
    [line] = kept.unlike([(job, own), (job, other)])
    assert line.startswith(
        "kept of another kind than this machine trains: 1 of 2 in bf16 on cuda, not fp32 on cpu; "
    )
    [line] = kept.unlike([(job, own), (job, own | {"version": "0.0.9"})])
    told = f"kept of another version than this one, {__version__}: 1 of {__version__}, 1 of 0.0.9"
    assert line.startswith(told)


def test_classes_of_other_names_are_not_those_of_before(home: Path, cli: Cli) -> None:
    x = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    for name, names in (("plain", [0, 1]), ("named", ["pear", "plum"])):
        y = np.array(names)[np.arange(40) % 2]
        np.savez(home / f"{name}.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    hard = ("data=arrays", "loss=hard", "train.epochs=1", "hydra.run.dir=run", "model.width=2")
    for name, said in (("plain", None), ("named", ["pear", "plum"])):
        assert cli(*hard, f"data.root={name}.npz").code == 0
        assert results.read(Path("run") / results.RESULT)["class_names"] == said
        assert "finished before" in cli(*hard, f"data.root={name}.npz").out
