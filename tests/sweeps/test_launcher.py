"""The launcher: Hydra's own conformance suite, and what stacks add to it."""

import os
import pickle
import re
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from conftest import SMALL, Cli
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from omegaconf import OmegaConf

from distill.runs import results
from distill.runs.job import Job
from distill.runs.students import students
from distill.sweeps import costs
from distill.sweeps.tasks import Task


@pytest.mark.parametrize(("launcher_name", "overrides"), [("stack", [])])
class TestAsHydraWantsIt(LauncherTestSuite):
    """Hydra's suite for launchers."""


@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("stack", ["hydra.sweeper.max_batch_size=2"])]
)
class TestInBatches(BatchedSweeperTestSuite):
    """Hydra's suite for launchers below a sweeper that works in batches."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=stack"])]
)
class TestIntegration(IntegrationTestSuite):
    """Hydra's suite of applications in processes of their own."""


# Two widths, two epochs, and hyperparameters that vary within a stack: 2 x 2 x 2 x 2 jobs.
MIXED = (
    "model.width=4,8",
    "loss.temperature=1,4",
    "optim.lr=0.001,0.003",
    "train.epochs=2,3",
)
TIMES = {"seconds"}


def sweep(cli: Cli, *arguments: str, code: int = 0) -> tuple[pd.DataFrame, str]:
    """The summary of a sweep of small runs, and what it printed."""
    done = cli("-m", *SMALL, "precision=fp32", *arguments)
    assert done.code == code, done.err
    [folder] = [path.parent for path in Path("multirun").glob(f"*/{results.SUMMARY}")]
    frame = pd.read_csv(folder / results.SUMMARY)
    folder.rename(f"sweep{len(list(Path().glob('sweep*')))}")
    return frame, done.out


@pytest.mark.slow
def test_stacks_and_single_runs_give_the_same_results(cli: Cli) -> None:
    stacked, out = sweep(cli, *MIXED)
    alone, _ = sweep(cli, *MIXED, "hydra/launcher=basic")
    assert "16 jobs in 4 stacks of 4" in out
    assert list(stacked.columns) == list(alone.columns)
    assert len(stacked) == 16
    for column in stacked.columns.difference(list(TIMES)):
        if column.endswith("_loss") or column in ("train_soft", "train_hard"):
            assert stacked[column].to_numpy() == pytest.approx(
                alone[column].to_numpy(), rel=1e-4, nan_ok=True
            )
        else:
            pd.testing.assert_series_equal(stacked[column], alone[column])
    for folder in sorted(Path("sweep0").glob("*seed*")):
        ours, theirs = (
            # What the teacher says lies with the first run of a stack, and so with each alone.
            {p.relative_to(f) for p in f.rglob("*") if not p.name.startswith((".lock", "digits"))}
            for f in (folder, Path("sweep1") / folder.name)
        )
        first = results.read(folder / results.RESULT).get("stack")
        once = {Path("distill.log"), Path(".hydra/hydra.yaml")}
        assert ours == (theirs if first is None else theirs - once)
        for name in ("config", "overrides"):
            path = Path(".hydra") / f"{name}.yaml"
            assert (folder / path).read_text() == (Path("sweep1") / folder.name / path).read_text()
        log = folder / (first or ".") / "distill.log"
        assert "epoch 1 of" in log.read_text()
    assert len([*Path("sweep0").glob("*seed*/.hydra/hydra.yaml")]) == 4  # stacks


def test_a_failing_member_in_the_middle_is_a_row_and_its_neighbours_go_on(cli: Cli) -> None:
    frame, _ = sweep(cli, "optim.lr=0.001,1e30,0.003", "train.epochs=4", code=1)
    assert dict(zip(frame["lr"], frame["status"], strict=True)) == {
        0.001: "complete",
        1e30: "diverged",
        0.003: "complete",
    }


def test_a_sweep_of_one_job(cli: Cli) -> None:
    frame, out = sweep(cli, "seed=3")
    assert "1 job in 1 stack of 1" in out
    assert frame["seed"].tolist() == [3]


@pytest.mark.slow
def test_optuna_trains_a_batch_of_trials_as_a_stack(cli: Cli) -> None:
    frame, out = sweep(
        cli,
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=6",
        "hydra.sweeper.n_jobs=3",
        "hydra.sweeper.sampler.seed=1",
        "data.validation=0.25",
        "loss.temperature=interval(1,20)",
    )
    assert out.count("3 jobs in 1 stack of 3") == 2
    assert len(frame) == 6
    assert frame["temperature"].between(1, 20).all()


@pytest.mark.slow
def test_workers_give_the_same_results(cli: Cli) -> None:
    one, _ = sweep(cli, "model.width=4,8", "loss.temperature=1,4")
    two, _ = sweep(cli, "model.width=4,8", "loss.temperature=1,4", "hydra.launcher.workers=2")
    assert (two["status"] == "complete").all()
    pd.testing.assert_frame_equal(one.drop(columns=TIMES), two.drop(columns=TIMES), rtol=1e-4)


@pytest.mark.endurance
@pytest.mark.slow
def test_another_packages_launcher_gives_the_same_results(cli: Cli) -> None:
    ours, _ = sweep(cli, "loss.temperature=1,4", "model.width=4,8")
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    theirs, _ = sweep(cli, "loss.temperature=1,4", "model.width=4,8", *joblib)
    assert (theirs["status"] == "complete").all()
    pd.testing.assert_frame_equal(ours.drop(columns=TIMES), theirs.drop(columns=TIMES), rtol=1e-4)


@pytest.mark.slow
def test_a_worker_that_is_killed_fails_its_own_stack_alone(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that is given width 9 is killed."""
    from loky import ProcessPoolExecutor

    class Deadly(ProcessPoolExecutor):  # type: ignore[misc]
        def submit(self, run: Any, *args: Any, **kwargs: Any) -> Any:
            if run is not os.getpid and run.__self__.members[0].config["model"]["width"] == 9:
                return super().submit(os.kill, self.submit_pid(), signal.SIGKILL)
            return super().submit(run, *args, **kwargs)

        def submit_pid(self) -> int:
            pid: int = super().submit(os.getpid).result()
            assert psutil.pid_exists(pid)
            return pid

    monkeypatch.setattr("distill.sweeps.workers.ProcessPoolExecutor", Deadly)
    frame, out = sweep(
        cli,
        "model.width=4,9,6,7",
        "loss.temperature=1,4",
        "hydra.launcher.workers=2",
        code=1,
    )
    # It may be memory that was short.
    assert out.count("a stack of 2 is tried in halves, since it ended: its worker process") == 1
    assert (frame.loc[frame["width"] != 9, "status"] == "complete").all()
    dead = frame[frame["width"] == 9]
    assert dead["status"].tolist() == ["failed", "failed"]
    assert dead["reason"].tolist() == ["its worker process died"] * 2


@pytest.mark.slow
def test_each_job_resolves_its_own_config(cli: Cli) -> None:
    frame, _ = sweep(
        cli,
        "optim=adamw,sgd",
        "optim.lr=0.001,0.002",
        "seed=${hydra:job.num}",
        "hydra.sweep.subdir=${hydra:runtime.choices.optim}_${hydra:job.num}",
    )
    assert frame["directory"].tolist() == ["adamw_0", "adamw_1", "sgd_2", "sgd_3"]
    assert frame["seed"].tolist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_jobs_that_are_equal_are_trained_once(cli: Cli) -> None:
    frame, out = sweep(cli, "seed=0,1,0", "loss.temperature=1,2")
    assert "4 jobs in 2 stacks of 2" in out
    assert len(frame) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "hydra.sweep.subdir=here",
            "hydra.sweep.subdir=here: .* and .* would both be written there",
        ),
        ("hydra.job.chdir=true", "hydra.job.chdir=true: jobs that train together have one working"),
        ("hydra.launcher.workers=0", "hydra.launcher.workers=0: it must be at least 1"),
        ("+model/sub=1,2", "model/sub=1: there is no such key; did you mean model"),
    ],
)
def test_what_jobs_that_train_together_cannot_have(cli: Cli, override: str, message: str) -> None:
    done = cli("-m", *SMALL, "seed=0,1", override)
    assert done.code == 1
    assert re.match(message, done.err)
    assert done.err.count("\n") == 1
    assert not Path("multirun").exists() or not any(Path("multirun").iterdir())


@pytest.mark.slow
def test_files_are_those_of_the_basic_launcher(cli: Cli) -> None:
    Path("elsewhere").mkdir()
    Path("multirun").symlink_to("elsewhere")
    sweep(cli, "loss.temperature=1,2", "+hydra.job.env_set.MODE=a")
    sweep(cli, "loss.temperature=1,2", "+hydra.job.env_set.MODE=a", "hydra/launcher=basic")
    [folder] = [path.parents[1] for path in Path("sweep0").glob("*seed*/.hydra/hydra.yaml")]
    files = (Path(sweep) / folder.name / ".hydra" / "hydra.yaml" for sweep in ("sweep0", "sweep1"))
    ours, theirs = map(OmegaConf.load, files)
    assert ours.hydra.sweep.subdir == folder.name
    for config in (ours.hydra, theirs.hydra):
        # The last is empty once it was asked, which a stack has no need to.
        for path in ("launcher", "overrides.hydra", "sweep.subdir", "job.env_set.DISTILL_FREE"):
            OmegaConf.update(config, path, None, merge=False, force_add=True)
        config.runtime.choices["hydra/launcher"] = None
    assert ours == theirs
    assert "epoch 1 of" in (folder / "distill.log").read_text()


@pytest.mark.slow
def test_a_stack_has_one_record_and_each_member_few_files(cli: Cli) -> None:
    """The plan is written before; a member is run again from the stack's record and its own."""
    sweep(cli, "loss.temperature=1,2,3", "seed=0,0")
    folders = sorted(Path("sweep0").glob("*seed*"))
    firsts = [f for f in folders if (f / ".hydra" / "hydra.yaml").exists()]
    assert len(folders) == 3 and len(firsts) == 1
    plan = pd.read_csv(Path("sweep0") / "planned.csv")
    assert sorted(plan["directory"]) == [folder.name for folder in folders]
    assert plan["overrides"].str.contains("loss.temperature=2 seed=0").sum() == 1
    [other, _] = [folder for folder in folders if folder not in firsts]
    assert sum(path.is_file() for path in other.rglob("*")) == 5
    before = results.read(other / results.RESULT)
    assert (other / before["stack"]).resolve() == firsts[0].resolve()
    done = cli("--experimental-rerun", str(other), "resume=false")
    assert done.code == 0, done.err
    after = results.read(other / results.RESULT)
    assert after["run"] == before["run"] and "stack" not in after
    assert after["test_errors"] == before["test_errors"]


@pytest.mark.slow
def test_a_part_of_a_task_is_a_stack_of_its_own(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickled and in two parts, as another machine would train it."""

    run = Task.run

    def train(self: Task, _: Any = None) -> Any:
        task = pickle.loads(pickle.dumps(self))
        return [*run(task.part([0])), *run(task.part([1, 2]))]

    monkeypatch.setattr(Task, "run", train)
    frame, _ = sweep(cli, "loss.temperature=1,2,3")
    assert (frame["status"] == "complete").all()
    stacks = [results.read(p).get("stack") for p in sorted(Path("sweep0").glob("*/result.json"))]
    assert stacks.count(None) == 2
    assert len([*Path("sweep0").glob("*seed*/distill.log")]) == 2


@pytest.mark.slow
def test_a_sweep_in_which_all_diverge(cli: Cli) -> None:
    frame, out = sweep(cli, "optim.lr=1e30", "seed=0,1", code=1)
    assert frame["status"].tolist() == ["diverged"] * 2
    assert "2 jobs in 2 stacks of 1: " in out


@pytest.mark.slow
def test_an_error_fails_its_stack_alone_and_its_log_tells_where(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_width_9(monkeypatch, KeyError("deep"))
    frame, _ = sweep(cli, "model.width=8,9,10", "loss.temperature=1,2", code=1)
    assert (frame.loc[frame["width"] != 9, "status"] == "complete").all()
    broken = frame[frame["width"] == 9]
    assert broken["status"].tolist() == ["failed"] * 2
    assert broken["reason"].tolist() == ["KeyError: 'deep'"] * 2
    for directory in broken["directory"]:
        place = Path("sweep0") / directory
        first = results.read(place / results.RESULT).get("stack", ".")
        assert "Traceback" in (place / first / "distill.log").read_text()


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_finished(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    break_width_9(monkeypatch, KeyboardInterrupt())
    frame, _ = sweep(cli, "model.width=8,9,10", "loss.temperature=1,2", code=130)
    assert frame["width"].tolist() == [8, 8, 9, 9]
    assert frame["status"].tolist() == ["complete"] * 2 + ["interrupted"] * 2


def test_an_interrupt_ends_workers_and_leaves_rows(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distill.sweeps.workers.wait", interrupted)
    frame, _ = sweep(cli, "model.width=8,9,10,11", "hydra.launcher.workers=2", code=130)
    # Two were started, and the first job's, whose log tells of the teacher, if it is a third.
    assert frame["width"].nunique() in (2, 3)
    assert set(frame["status"]) == {"interrupted"}


def break_width_9(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let stacks of width 9 end in ``error``."""
    from distill.runs import execute as run

    made = students

    def broken(jobs: list[Job], *args: Any) -> Any:
        if jobs[0].run.model.options["width"] == 9:
            raise error
        return made(jobs, *args)

    monkeypatch.setattr(run, "students", broken)
    if isinstance(error, Exception):
        monkeypatch.setattr(costs, "students", broken)


@pytest.mark.slow
def test_jobs_with_other_environments_train_apart_each_in_its_own(cli: Cli) -> None:
    _, out = sweep(
        cli, "seed=0", "loss.temperature=1,2", "+hydra.job.env_set.T=${loss.temperature}"
    )
    assert "2 jobs in 2 stacks of 1" in out
