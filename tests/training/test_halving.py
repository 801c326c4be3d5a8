"""Successive halving in a stack."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import SMALL, Cli, make_job

from distill.config import ConfigError, Halving
from distill.runs import results
from distill.training.checkpoint import Checkpoint
from distill.training.loop import best

SWEEP = (
    *("-m", *SMALL, "precision=fp32", "train.epochs=9", "data.validation=0.25"),
    *("data.examples=64", "optim.lr=0.0001,0.0003,0.001,0.003,0.01,0.03", "loss.alpha=0.3,1"),
)
HALVED = (*SWEEP, "halving.rungs=2", "halving.factor=3", "hydra.sweep.dir=halved")


def summary(folder: str) -> pd.DataFrame:
    return pd.read_csv(Path(folder) / results.SUMMARY).set_index("run")


def histories(folder: str) -> dict[str, pd.DataFrame]:
    return {
        path.parent.name: pd.read_csv(path) for path in sorted(Path(folder).rglob(results.HISTORY))
    }


@pytest.mark.slow
def test_the_best_on_the_validation_split_go_on_as_if_alone(cli: Cli) -> None:
    plain = cli(*SWEEP, "hydra.sweep.dir=plain")
    halved = cli(*HALVED)
    assert plain.code == halved.code == 0, halved.err
    whole, frame, own = histories("plain"), summary("halved"), histories("halved")
    left = sorted(whole)
    for epoch, count in ((1, 4), (3, 2)):
        at = {run: whole[run].set_index("epoch").loc[epoch] for run in left}
        ranked = sorted(left, key=lambda run: (at[run]["val_errors"], at[run]["val_loss"]))
        for name in ranked[count:]:
            assert frame["status"][name] == "stopped"
            assert frame["reason"][name] == f"after epoch {epoch}, the best {count} of 12 went on"
            assert frame["epochs"][name] == len(own[name]) == epoch
            assert not (Path("halved") / name / results.WEIGHTS).exists()
        left = ranked[:count]
    assert frame["status"][left].tolist() == ["complete"] * 2
    for name, history in own.items():
        pd.testing.assert_frame_equal(history, whole[name][: len(history)], rtol=1e-4)
    assert "10 stopped" in halved.out
    assert "after epoch" not in halved.out  # a stopped run is no failure to speak of


@pytest.mark.slow
def test_a_stopped_run_is_kept_by_the_same_halving_alone(cli: Cli, trained: list[str]) -> None:
    cli(*HALVED)
    before = summary("halved")
    trained.clear()
    assert "12 of 12 jobs were finished before" in cli(*HALVED).out
    assert not trained
    pd.testing.assert_frame_equal(summary("halved"), before)
    cli(*(part for part in HALVED if part != "halving.rungs=2"))
    assert sorted(trained) == sorted(before.index[before["status"] == "stopped"])
    assert set(summary("halved")["status"]) == {"complete"}


@pytest.mark.brothers
@pytest.mark.slow
@pytest.mark.parametrize("results_written", [0, 1, 7, 12])
def test_a_stack_killed_while_its_results_are_written_stops_the_same(
    results_written: int, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli(*HALVED)
    undisturbed, whole = summary("halved").drop(columns="seconds"), histories("halved")
    Path("halved").rename("undisturbed")
    write, written = results.write, 0

    def killed(directory: Path, body: Any, rows: Any) -> None:
        nonlocal written
        if written == results_written:
            raise SystemError("killed here")
        written += 1
        write(directory, body, rows)

    with monkeypatch.context() as patch:
        patch.setattr(results, "write", killed)
        patch.setattr(Checkpoint, "remove", lambda _: None)
        cli(*HALVED)
    assert len(histories("halved")) == results_written
    cli(*HALVED)
    pd.testing.assert_frame_equal(summary("halved").drop(columns="seconds"), undisturbed)
    for name, history in histories("halved").items():
        pd.testing.assert_frame_equal(history, whole[name])


@pytest.mark.slow
def test_members_that_diverge_count_among_the_losers(cli: Cli) -> None:
    diverging = [part.replace("0.0001,0.0003", "1e30,2e30") for part in HALVED]
    cli(*diverging, "train.batch_size=8")  # so that they diverge before the first rung
    assert summary("halved")["status"].value_counts().to_dict() == {
        "diverged": 4,
        "stopped": 6,
        "complete": 2,
    }


def test_the_best_have_the_fewest_errors_and_then_the_least_loss() -> None:
    values = {
        "val_errors": torch.tensor([3, 1, 2, 1, 2]),
        "val_loss": torch.tensor([0.1, 0.5, torch.nan, 0.4, 0.9]),
    }
    for most, chosen in enumerate([[3], [1, 3], [1, 3, 4], [1, 2, 3, 4]], 1):
        assert best(values, most).nonzero().flatten().tolist() == chosen


def test_rungs_are_shares_of_the_epochs() -> None:
    assert Halving(rungs=3, factor=2).at(40) == (5, 10, 20)
    assert Halving(rungs=2, factor=3).at(27) == (3, 9)
    assert Halving().at(27) == ()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["halving.rungs=1"], "halving.rungs=1: it chooses on a validation split"),
        (["data.validation=0.2", "halving.rungs=2", "train.epochs=8"],
         "halving.rungs=2: at most 1 are possible with train.epochs=8 and halving.factor=3"),
        (["halving.factor=1"], "halving.factor=1: Input should be greater than or equal to 2"),
        (["halving.rungs=-1"], "halving.rungs=-1: Input should be greater than or equal to 0"),
        (["test=false"], "test=false: it needs a validation split"),
    ],
)  # fmt: skip
def test_what_halving_needs(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_job(*overrides)
    assert str(error.value).startswith(message)
