"""The launcher: Hydra's own conformance suite, and what stacks add to it."""

import os
import signal
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import psutil
import pytest
import torch
from conftest import SMALL, Cli, make_job
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)

from distill import plan, results
from distill.job import Job


@pytest.mark.parametrize(("launcher_name", "overrides"), [("stack", [])])
class TestAsHydraWantsIt(LauncherTestSuite):
    """Hydra's suite for launchers."""


@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("stack", ["hydra.sweeper.max_batch_size=2"])]
)
class TestInBatches(BatchedSweeperTestSuite):
    """Hydra's suite for launchers below a sweeper that works in batches."""


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
            {path.relative_to(f) for path in f.rglob("*")}
            for f in (folder, Path("sweep1") / folder.name)
        )
        assert ours == theirs
        for name in ("config", "overrides"):
            path = Path(".hydra") / f"{name}.yaml"
            assert (folder / path).read_text() == (Path("sweep1") / folder.name / path).read_text()
        assert "epoch 1 of" in (folder / "distill.log").read_text()


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


def test_workers_give_the_same_results(cli: Cli) -> None:
    one, _ = sweep(cli, "model.width=4,8", "loss.temperature=1,4")
    two, _ = sweep(cli, "model.width=4,8", "loss.temperature=1,4", "hydra.launcher.workers=2")
    assert (two["status"] == "complete").all()
    pd.testing.assert_frame_equal(one.drop(columns=TIMES), two.drop(columns=TIMES), rtol=1e-4)


def test_another_packages_launcher_gives_the_same_results(cli: Cli) -> None:
    ours, _ = sweep(cli, "loss.temperature=1,4", "model.width=4,8")
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    theirs, _ = sweep(cli, "loss.temperature=1,4", "model.width=4,8", *joblib)
    assert (theirs["status"] == "complete").all()
    pd.testing.assert_frame_equal(ours.drop(columns=TIMES), theirs.drop(columns=TIMES), rtol=1e-4)


def test_a_worker_that_is_killed_fails_its_own_stack_alone(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that is given width 9 is killed."""
    from loky import ProcessPoolExecutor

    class Deadly(ProcessPoolExecutor):  # type: ignore[misc]
        def submit(self, run: Any, *args: Any, **kwargs: Any) -> Any:
            if run.__self__.configs[0]["model"]["width"] == 9:
                return super().submit(os.kill, self.submit_pid(), signal.SIGKILL)
            return super().submit(run, *args, **kwargs)

        def submit_pid(self) -> int:
            pid: int = super().submit(os.getpid).result()
            assert psutil.pid_exists(pid)
            return pid

    monkeypatch.setattr("distill.workers.ProcessPoolExecutor", Deadly)
    frame, _ = sweep(
        cli,
        "model.width=4,9,6,7",
        "loss.temperature=1,4",
        "hydra.launcher.workers=2",
        code=1,
    )
    assert (frame.loc[frame["width"] != 9, "status"] == "complete").all()
    dead = frame[frame["width"] == 9]
    assert dead["status"].tolist() == ["failed", "failed"]
    assert dead["reason"].tolist() == ["its worker process died"] * 2


class TestPlan:
    """Which jobs train together."""

    APART: ClassVar = ["seed=1", "model.width=9", "train.epochs=3", "data.jitter=1", "optim=sgd"]

    @pytest.mark.parametrize("override", APART)
    def test_what_must_be_equal(self, override: str) -> None:
        jobs = [make_job(), make_job(override)]
        assert [s.jobs for s in plan.stacks(jobs, 10, 1)] == [(0,), (1,)]

    def test_what_may_vary_in_the_order_of_the_learning_rates(self) -> None:
        lr = (0.003, 0.001, 0.003, 0.002)
        jobs = [make_job(f"optim.lr={r}", f"loss.alpha={r}", f"loss.temperature={r}") for r in lr]
        assert [s.jobs for s in plan.stacks(jobs, 10, 1)] == [(1, 3, 0, 2)]
        assert [s.jobs for s in plan.stacks(jobs, 3, 1)] == [(1, 3), (0, 2)]
        assert [s.jobs for s in plan.stacks(jobs, 10, 3)] == [(1,), (3,), (0, 2)]

    def test_memory_bounds_a_stack(self, monkeypatch: pytest.MonkeyPatch) -> None:
        jobs = [make_job(f"loss.temperature={t}") for t in range(1, 7)]
        room = 2 * 3 * plan.member_memory(jobs[0])
        monkeypatch.setattr(plan, "free_memory", lambda *_: room)
        assert [len(s.jobs) for s in plan.stacks(jobs, 10, 1)] == [3, 3]
        monkeypatch.setattr(plan, "free_memory", lambda *_: 1)
        assert [len(s.jobs) for s in plan.stacks(jobs, 10, 1)] == [1] * 6

    def test_memory_counts_parameters_state_and_activations(self) -> None:
        def memory(*overrides: str) -> int:
            return plan.member_memory(make_job("precision=fp32", *overrides))

        job: Job = make_job("precision=fp32")
        parameters = sum(
            p.numel()
            for p in job.run.model.function(
                job.data.shape, job.data.classes, **job.run.model.options
            ).parameters()
        )
        floor = parameters * 4 * (1 + 1 + 2)  # parameters, gradients, two moments
        small, large = memory("train.batch_size=32"), memory("train.batch_size=64")
        assert floor < small < large
        # What grows with the batch: two hidden layers and the logits, some of them twice.
        per_example = (large - small) / 32
        assert 4 * (8 + 8 + 4) <= per_example <= 4 * 3 * (8 + 8 + 4 + 1)


def test_composing_a_copy_equals_composing_anew() -> None:
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from distill.compose import Composer
    from distill.launcher import CONF

    loader = Hydra.create_main_hydra2("distill", create_config_search_path(str(CONF))).config_loader
    master = loader.load_configuration("config", ["seed=1,2"], run_mode=RunMode.MULTIRUN)
    composer = Composer(loader)
    jobs = [
        ["seed=1", "loss=kd", "loss.temperature=2"],
        ["seed=2", "loss=kd", "loss.temperature=0.5"],
        ["seed=2", "loss=logits", "+loss.extra=5"],
        ["seed=3", "loss=logits", "+loss.extra=6"],
        ["seed=4", "data.root='a b'", "transfer=omit", "transfer.classes=[1,2]"],
        ["seed=5", "data.root=null", "transfer=omit", "transfer.classes=[3]"],
        ["seed=6", "~loss.alpha", "hydra.verbose=true"],
        ["seed=7", "~loss.alpha", "hydra.verbose=true"],
    ]
    for overrides in jobs:
        theirs = loader.load_sweep_config(master, overrides)
        assert theirs.seed == int(overrides[0][-1])
        expected = OmegaConf.to_container(theirs)
        assert OmegaConf.to_container(composer.load_sweep_config(master, overrides)) == expected
        whole, task = map(OmegaConf.to_container, composer.compose(master, overrides))
        assert whole == expected
        assert isinstance(expected, dict) and expected.pop("hydra")
        assert task == expected


def test_every_device_has_free_memory() -> None:
    cpu = torch.device("cpu")
    assert 0 < plan.free_memory(cpu, 1) <= psutil.virtual_memory().total
    assert plan.free_memory(cpu, 4) < plan.free_memory(cpu, 1) / 3
