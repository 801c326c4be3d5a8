"""Tuning with Optuna: studies that go on, stop, fail and end in an experiment."""

import json
import os
import pickle
import signal
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from conftest import SMALL, TUNE, Cli
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from distill.runs import execute as run
from distill.runs import results
from distill.training.loop import Training
from distill.tuning import REPORT, STUDY

OTHER_FAULTS = ("noise", "empty", "folder")
SQLITE = "sqlite:///tune/study.db"


def summary() -> pd.DataFrame:
    return pd.read_csv(Path("tune") / results.SUMMARY).set_index("run").drop(columns="seconds")


def study(storage: Any = SQLITE) -> optuna.Study:
    [found] = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=found.study_name, storage=storage)


def states(storage: Any = SQLITE) -> dict[str, int]:
    return dict(Counter(trial.state.name for trial in study(storage).trials))


def test_a_study_ends_in_an_experiment_trained_on_all_data(cli: Cli, home: Path) -> None:
    done = cli(*TUNE)
    assert done.code == 0, done.err
    frame = summary()
    trials = study().trials
    assert [trial.number for trial in trials] == list(range(8))
    assert Counter(frame["status"]) == {"stopped": 6, "complete": 3}
    assert states() == {"PRUNED": 6, "COMPLETE": 2}
    for trial in trials:  # what the study has is what the files have
        row = frame.loc[trial.user_attrs["run"]]
        assert trial.params["loss.temperature"] == row["temperature"]
        assert trial.params["loss.alpha"] == row["alpha"]
        assert trial.params["optim.lr"] == row["lr"]
        assert trial.values == [row["val_errors"]]
        history = pd.read_csv(Path("tune") / row["directory"] / results.HISTORY, index_col="epoch")
        seen = {epoch: history["val_errors"][epoch] for epoch in (1, 3) if epoch in history.index}
        assert trial.intermediate_values == seen
    # The test set was looked at for the best alone.
    [final] = frame.index[frame["test_errors"].notna()]
    best = min(
        (t for t in trials if t.state.name == "COMPLETE"),
        key=lambda t: (t.values, frame["val_loss"][t.user_attrs["run"]]),
    )
    assert frame["temperature"][final] == best.params["loss.temperature"]
    assert frame["data.validation"].drop(final).eq(0.2).all()
    assert frame["data.validation"][final] == 0
    # Its experiment is the same run, to the digest and the figures.
    again = cli("--config-dir", "tune", "experiment=best")
    assert again.code == 0, again.err
    [single] = (p for p in (home / "multirun" / "single").iterdir() if p.is_dir())
    assert single.name == final
    result = json.loads((single / results.RESULT).read_text())
    assert result["test_errors"] == frame["test_errors"][final]
    assert "experiment=best" in done.out


@pytest.mark.brothers
@pytest.mark.slow
@pytest.mark.parametrize("storage", [None, "tune/study.log"])
def test_the_same_command_goes_on_up_to_the_trials_in_total(
    storage: str | None, cli: Cli, trained: list[str]
) -> None:
    command = (*TUNE, *[f"hydra.sweeper.storage={storage}"] * (storage is not None))
    cli(*command)
    where = JournalStorage(JournalFileBackend(storage)) if storage else SQLITE
    whole, first = summary(), len(trained)
    assert sum(states(where).values()) == 8
    assert cli(*command).code == 0
    assert len(trained) == first == 9
    pd.testing.assert_frame_equal(summary(), whole)
    assert cli(*command, "hydra.sweeper.n_trials=10").code == 0
    assert sum(states(where).values()) == 10
    assert len(trained) - first in (2, 3)  # with a new best, which is trained on all data


@pytest.mark.slow
def test_a_study_that_is_lost_is_made_again_from_the_runs(cli: Cli, trained: list[str]) -> None:
    cli(*TUNE)
    whole, first = summary(), [t.params for t in study().trials]
    values = [t.values for t in study().trials]
    trained.clear()
    (Path("tune") / STUDY).unlink()
    assert cli(*TUNE).code == 0
    assert not trained
    assert [t.params for t in study().trials] == first
    assert [t.values for t in study().trials] == values
    pd.testing.assert_frame_equal(summary(), whole)


@pytest.mark.brothers
@pytest.mark.slow
@pytest.mark.parametrize("step", [1, pytest.param(5, marks=pytest.mark.endurance), 12])
def test_a_study_that_is_stopped_goes_on_as_if_it_had_not_been(
    step: int, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli(*TUNE)
    whole, trials = summary(), [(t.state, t.params, t.values) for t in study().trials]
    Path("tune").rename("undisturbed")
    real, count = Training.step, 0

    def counted(self: Training, *args: Any) -> Any:
        nonlocal count
        if args[-1] > 0 and self.transfer.teachers:
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", counted)
        assert cli(*TUNE).code == 128 + signal.SIGTERM
    assert states()["RUNNING"] == 4
    assert cli(*TUNE).code == 0
    assert [(t.state, t.params, t.values) for t in study().trials] == trials
    pd.testing.assert_frame_equal(summary(), whole)


@pytest.mark.slow
def test_a_diverged_trial_is_a_failed_trial_and_nothing_more(cli: Cli) -> None:
    done = cli(*TUNE, "optim.lr=0.001,1e30", "train.batch_size=8")
    assert done.code == 0, done.err
    for trial in study().trials:
        assert (trial.state.name == "FAIL") == (trial.params["optim.lr"] == 1e30)
        assert trial.user_attrs.get("reason", "diverged").startswith(("diverged", "stopped"))
    assert {"FAIL", "COMPLETE"} <= set(states())


@pytest.mark.slow
def test_trials_that_fail_are_told_and_the_exit_code_says_so(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = run._fit

    def broken(jobs: Any, *rest: Any) -> Any:
        if any(job.run.loss.options["alpha"] > 0.5 for job in jobs):
            raise OSError(28, "No space left on device", "there")
        return fit(jobs, *rest)

    monkeypatch.setattr(run, "_fit", broken)
    alone = ("hydra/launcher=basic", "halving.rungs=0")
    done = cli(*TUNE, "model.width=8,10", "loss.alpha=0.1,1", *alone)
    assert done.code == 1
    assert "No space left on device" in done.err
    assert all((t.state.name == "FAIL") == (t.params["loss.alpha"] == 1) for t in study().trials)


@pytest.mark.slow
def test_two_objectives_have_a_front_in_the_summary(cli: Cli) -> None:
    space = ("model.width=2,4,8,16", "hydra.sweeper.objectives=[val_errors,parameters]")
    done = cli(*TUNE, *space, "halving.rungs=0")
    assert done.code == 0, done.err
    frame = summary()
    tried = frame[frame["val_errors"].notna()]
    for _, row in tried.iterrows():
        below = tried[(tried["val_errors"] <= row["val_errors"])
                      & (tried["parameters"] <= row["parameters"])]  # fmt: skip
        better = below[(below["val_errors"] < row["val_errors"])
                       | (below["parameters"] < row["parameters"])]  # fmt: skip
        assert row["pareto"] == better.empty
    front = tried[tried["pareto"] == True]  # noqa: E712
    best = study().best_trials
    assert {tuple(t.values) for t in best} == set(
        zip(front["val_errors"], front["parameters"], strict=True)
    )
    assert "Pareto front" in done.out
    tested = frame[frame["test_errors"].notna()]
    assert set(tested["width"]) == set(front["width"])
    assert len(list((Path("tune") / "experiment").glob("best*.yaml"))) == len(best)


@pytest.mark.slow
def test_several_machines_join_one_study(cli: Cli) -> None:
    shared = f"hydra.sweeper.storage=sqlite:///{Path.cwd()}/shared.db"
    name = "hydra.sweeper.study_name=together"
    cli(*TUNE, shared, name, "hydra.sweeper.n_trials=4")
    own = optuna.load_study(study_name="together", storage=f"sqlite:///{Path.cwd()}/shared.db")
    there = own.ask()  # one that runs elsewhere
    there.set_user_attr("sweep", "another:/machine")
    done = cli(*TUNE, shared, name, "hydra.sweep.dir=other")
    assert done.code == 0, done.err
    assert len(own.trials) == 8
    assert own.trials[there.number].state.name == "RUNNING"
    assert {t.user_attrs["sweep"].rpartition("/")[2] for t in own.trials} == {
        "tune", "other", "machine",
    }  # fmt: skip
    assert json.loads(json.dumps(own.user_attrs))["identity"]


@pytest.mark.brothers
@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    ["truncated", "changed", *(pytest.param(f, marks=pytest.mark.endurance) for f in OTHER_FAULTS)],
)
def test_a_damaged_study_is_refused_or_made_again(fault: str, cli: Cli, trained: list[str]) -> None:
    cli(*TUNE)
    whole = summary()
    trained.clear()
    path = Path("tune") / STUDY
    content = path.read_bytes()
    if fault == "changed":
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE trial_values SET value = value - 1")
    elif fault == "folder":
        path.unlink()
        path.mkdir()
    else:
        damaged = {"truncated": content[: len(content) // 2], "empty": b""}
        path.write_bytes(damaged.get(fault, bytes(b ^ 0x55 for b in content)))
    done = cli(*TUNE)
    assert not trained
    if fault == "empty":  # as if there were none
        assert done.code == 0
    else:
        assert done.code == 1
        assert len(done.err.splitlines()) == 1
        assert done.err.startswith("hydra.sweeper.storage=sqlite:///tune/study.db: it cannot be")
        assert f"delete {path}, and the runs make it again" in done.err
    pd.testing.assert_frame_equal(summary(), whole)


@pytest.mark.slow
def test_another_sampler_and_the_report_of_hydras_own_sweeper(cli: Cli) -> None:
    assert cli(*TUNE, "halving.rungs=0", "hydra/sweeper/sampler=random").code == 0
    text = (Path("tune") / REPORT).read_text()
    assert "name: optuna" in text
    assert f"best_value: {study().best_value}" in text


REFUSED = {
    "hydra.sweeper.n_trials=0": "hydra.sweeper.n_trials=0: it must be at least 1",
    "hydra.sweeper.n_jobs=-2": "hydra.sweeper.n_jobs=-2: it must be at least 1",
    "hydra.sweeper.n_trials=many": "hydra.sweeper.n_trials: Value 'many'",
    "hydra.sweeper.n_trial=5": "hydra.sweeper.n_trial=5: there is no such key; did you mean",
    "hydra.sweeper.objectives=[]": "hydra.sweeper.objectives=[]: allowed are val_errors, ",
    "hydra.sweeper.objectives=[test_errors]": "hydra.sweeper.objectives=[test_errors]: allowed",
    "loss.alpha=interval(0.5,2)": "loss.alpha=2.0: Input should be less than or equal to 1",
    'hydra.sweeper.params={loss.gamma:"interval(0,5)"}': (
        'hydra.sweeper.params={loss.gamma:"interval(0,5)"}: there is no such key; did you mean '
        "hydra.sweeper.params.loss.alpha? allowed are hydra.sweeper.params.loss.alpha, "
    ),
    "loss.temperature=4 loss.alpha=1 optim.lr=0.01": "hydra.sweeper.params: there is nothing to",
    "loss.temperature=interval(0.0,4.0)": "loss.temperature=0.0: Input should be greater than 0",
    "loss.temperature=interval(-1e400,1.0)": "loss.temperature=-inf: Input should be a finite",
    "loss.temperature=tag(log,interval(0.0,4.0))": "loss.temperature=tag(log,interval(0.0,4.0)): ",
    "loss.temperature=interval(4.0,1.0)": "loss.temperature=interval(4.0,1.0): no search space",
    "loss.temperature=interval(a,b)": "loss.temperature=interval(a,b): ",
    "loss.temperature=range(1,2,0)": "loss.temperature=range(1,2,0): no search space",
    "loss.temperature=tag(logg,interval(1,4))": "loss.temperature=tag(logg,interval(1,4)): no sea",
    "loss.alpha=tag(log,range(1,3))": "loss.alpha=tag(log,range(1,3)): no search space (tag log)",
    "loss.alpha=range(0,0.9)": "loss.alpha=range(0,0.9): no search space (it holds the one value 0",
    "loss.alpha=interval(1,1)": "loss.alpha=interval(1,1): no search space (it holds the one value",
    "loss.alpha=0.5,0.5,1": "loss.alpha=0.5,0.5,1: no search space (0.5 stands there twice)",
    "model.width=interval(4.5,8)": "model.width=interval(4.5,8): it takes whole numbers; write",
    "hydra/sweeper/sampler=cmaes hydra.sweeper.objectives=[val_errors,parameters]": (
        "hydra/sweeper/sampler=cmaes: "
    ),
    "loss=logits": "loss.temperature=1.0: loss=logits has no such key; loss=crd,dist,",
    "loss=kd,logits": "loss.temperature=1.0: loss=logits has no such key; loss=crd,dist,",
    "model.width=8,ten": "model.width=ten: Input should be a valid integer",
    "model=mlp,mpl": "model=mpl: there is no such option; allowed are cnn, mlp, mlp_1200, ",
    "loss.tempratur=interval(1.0,2.0)": "loss.tempratur=1.0: there is no such key; did you mean",
    "transfer.classes=[1],[99] transfer=omit": "transfer.classes=",
    "hydra/sweeper/sampler=grid": "hydra/sweeper/sampler=grid: a grid is a plain sweep",
    "hydra/sweeper/sampler=tpee": "hydra/sweeper/sampler=tpee: there is no such option",
    "hydra.sweeper.sampler._target_=os.system": "hydra.sweeper.sampler",
    "hydra.sweeper.storage=mysql://nowhere/x": "hydra.sweeper.storage=mysql://nowhere/x: it",
    "hydra.sweeper.storage=redis://nowhere": "hydra.sweeper.storage=redis://nowhere: it cannot be",
    "hydra.sweeper.storage=http://x/y": "hydra.sweeper.storage=http://x/y: it cannot be used",
    "hydra.sweeper.storage=sqlite:////no/x.db": "hydra.sweeper.storage=sqlite:////no/x.db: it",
    "hydra.sweeper.storage=no/where.log": "hydra.sweeper.storage=no/where.log: it cannot be used",
    "hydra.sweeper.storage=noise.log": "hydra.sweeper.storage=noise.log: it cannot be used",
    "hydra.sweeper.storage=sqlite:///noise.log": "hydra.sweeper.storage=sqlite:///noise.log: it",
    "hydra.sweeper.storage=pickle.log": "hydra.sweeper.storage=pickle.log: it cannot be used",
    "data.validation=0 test=true halving.rungs=0": "data.validation=0.0: tuning chooses on a valid",
    "data.validation=1": "data.validation=1: Input should be less than 1",
    "train.epochs=2": "halving.rungs=2: at most 0 are possible with train.epochs=2",
}


class Harm:
    """What would make a file, were it unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("HARM"),)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", REFUSED)
def test_a_wrong_search_is_one_line_and_leaves_nothing(
    arguments: str, cli: Cli, home: Path
) -> None:
    Path("noise.log").write_bytes(bytes(range(256)) * 20)
    Path("pickle.log").write_bytes(pickle.dumps(Harm()))
    done = cli(*TUNE, *arguments.split())
    assert done.code == 1
    assert done.err.startswith(REFUSED[arguments]), done.err
    assert len(done.err.splitlines()) == 1
    assert not Path("tune").exists()
    assert not list(home.rglob("HARM"))
    assert not list(home.rglob(results.RESULT))


@pytest.mark.slow
def test_a_name_of_another_study_is_refused_and_nothing_is_lost(cli: Cli) -> None:
    named = (*TUNE, "hydra.sweeper.study_name=mine")
    cli(*named)
    whole = summary()
    for other in ("loss.alpha=0.5,1", "train.epochs=10", "halving.rungs=1"):
        done = cli(*named, other)
        assert done.code == 1
        assert done.err.startswith("hydra.sweeper.study_name=mine: that study searches something")
    pd.testing.assert_frame_equal(summary(), whole)


def test_hydras_own_sweeper_does_not_choose_on_the_test_set(cli: Cli, home: Path) -> None:
    done = cli("-m", *SMALL, "hydra/sweeper=optuna", "loss.alpha=interval(0.0,1.0)")
    assert done.code == 1
    assert done.err.startswith("data.validation=0.0: Optuna chooses on a validation split")
    assert not list(home.rglob(results.RESULT))


@pytest.mark.slow
def test_an_interval_of_a_whole_number_is_searched_in_whole_numbers(cli: Cli) -> None:
    small = ("hydra.sweeper.n_trials=3", "halving.rungs=0", "loss.alpha=interval(0,1)")
    done = cli(*TUNE, *small, "model.width=interval(4,8)")
    assert done.code == 0, done.err
    for trial in study().trials:
        assert isinstance(trial.params["model.width"], int)
        assert 0 < trial.params["loss.alpha"] < 1


@pytest.mark.slow
def test_another_loss_and_a_teacher_that_is_read_go_with_a_ready_made_experiment(cli: Cli) -> None:
    small = (*TUNE, "halving.rungs=0", "hydra.sweeper.n_trials=1")
    done = cli(*small, "loss=logits", r"~hydra.sweeper.params.loss\.temperature")
    assert done.code == 0, done.err
    weights = next(Path("tune").rglob(results.WEIGHTS)).absolute()
    rest = [a for a in small if not a.startswith(("teacher.train", "teacher.model"))]
    read = (f"teacher.path={weights}", "teacher.model.width=8")
    done = cli(*rest, "hydra.sweep.dir=read", "teacher=checkpoint", *read)
    assert done.code == 0, done.err
    assert len(list(Path("read").rglob(results.WEIGHTS))) == 2


@pytest.mark.slow
def test_a_missing_package_is_told_before_the_first_trial(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    done = cli(*TUNE, "hydra/sweeper/sampler=cmaes")
    assert done.code == 1
    assert "hydra/sweeper/sampler=cmaes: it needs the package cmaes; `pip install" in done.err
    assert not list(home.rglob(results.RESULT))
    done = cli(*TUNE, "hydra/sweeper/sampler=cmaes", *CHOICES)
    assert "hydra/sweeper/sampler=cmaes: it searches numbers, and loss.alpha, loss" in done.err


CHOICES = ("loss.alpha=0.5,1", "loss.temperature=1,2", "optim.lr=0.01,0.02")


@pytest.mark.slow
def test_a_validation_split_of_the_datas_own_is_never_trained_on(cli: Cli, home: Path) -> None:
    noise = np.random.default_rng(0)
    arrays = {f"{part}_x": noise.normal(size=(40, 3)) for part in ("train", "val", "test")}
    labels = {f"{part}_y": noise.integers(2, size=40) for part in ("train", "val", "test")}
    np.savez(home / "own.npz", allow_pickle=False, **arrays, **labels)
    own = ("data=arrays", "data.root=own.npz", "data.validation=given", "train.epochs=2")
    small = ("model.width=4", "teacher.model.width=8", "teacher.train.epochs=1", "halving.rungs=0")
    swept = cli("-m", *own, *small, "loss.temperature=1,2", "hydra.sweep.dir=swept")
    assert swept.code == 0, swept.err
    [teacher] = [line for line in swept.out.splitlines() if line.startswith("teacher ")]
    assert " on arrays without its own validation split: " in teacher
    tuned = cli(
        "hydra.sweep.dir=tune",
        "experiment=tune",
        *own,
        *small,
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.n_jobs=2",
    )
    assert tuned.code == 0, tuned.err
    assert "trained on all data but its own validation split" in tuned.out
    frame = summary()
    assert len(frame) == 3
    assert frame["data.validation"].eq("given").all() and frame["transfer_examples"].eq(40).all()
