"""What the bench measures can be measured; how long it takes is no matter here."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Cli, options

from distill.runs.planned import write_planned

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_every_loss_of_logits_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import losses

    monkeypatch.setattr(losses, "MEMBERS", 2)
    rows = list(losses.against_kd(1))
    named = {what.rpartition("loss=")[2] for what, *_ in rows}
    of_features = {"at", "crd", "fitnets", "pkt", "rkd", "sp"}
    assert named == {*options("loss")} - of_features - {"kd", "sum"}
    assert all(ratio.endswith("x") for *_, ratio, _ in rows)


SMALLEST = (
    *("data=synthetic", "train.epochs=2", "train.batch_size=64", "model.width=8"),
    *("teacher.members=2", "data.jitter=0", "teacher.jitter=0", "precision=fp32"),
)


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch, home: Path) -> Any:
    """bench.evidence, whose sweeps lie in the test's own folder."""
    monkeypatch.syspath_prepend(str(ROOT))
    module = import_module("bench.evidence")
    monkeypatch.setattr(module, "ROOT", home / "multirun")
    return module


@pytest.mark.slow
def test_the_ensembles_settings_are_those_with_the_fewest_validation_errors(
    evidence: Any, cli: Cli, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    [first, empty] = evidence.commands(["ensemble"], [])
    assert first[0] == "ensemble_choice" and empty == ("ensemble", [])  # nothing is chosen yet
    assert "ensemble waits for what chooses its settings: " in capfd.readouterr().out
    assert cli("experiment=ensemble_choice", *SMALLEST).code == 0
    folder = home / "multirun" / "ensemble"
    runs = pd.read_csv(folder / "summary.csv")
    assert len(runs) == 24 and runs["test_errors"].isna().all() and runs["seed"].max() < 10
    assert runs["teacher_digest"].nunique() == runs["seed"].nunique() == 3
    means: dict[Any, float] = runs.groupby(["temperature", "alpha"])["val_errors"].mean().to_dict()
    assert len({*means.values()}) > 1
    capfd.readouterr()
    [_, (what, command)] = evidence.commands(["ensemble"], ["seed=1"])
    temperature, alpha = min(means, key=lambda pair: (means[pair], *pair))
    ranked = sorted(means, key=lambda pair: (means[pair], *pair))
    settings = [f"loss.temperature={temperature:g}", f"loss.alpha=0,{alpha:g}"]
    assert (what, command[3]) == ("ensemble", "experiment=ensemble")
    assert command[4:6] == settings and command[-1] == "seed=1"
    printed = capfd.readouterr().out.splitlines()
    assert printed == [
        f"ensemble: T = {t:g}, alpha {a:g}: {means[t, a]:.1f} validation errors" for t, a in ranked
    ]
    assert cli(*command[3:6], *SMALLEST, "seed=11").code == 0  # which takes them
    taken = pd.read_csv(home / "multirun" / "ensemble" / "summary.csv")
    taken = taken[taken["test"]]
    assert {*taken["temperature"]} == {temperature} and {*taken["alpha"]} == {0, alpha}
    assert evidence.chosen(folder) == settings  # they choose nothing


def summary(folder: Path, errors: Callable[[float, float, int], int | None], **other: Any) -> Path:
    """A sweep like ensemble_choice, of made-up validation errors; None: it diverged."""
    rows = [
        {"run": f"{t}{a}{seed}", "directory": f"{t}{a}{seed}", "temperature": t, "alpha": a,
         "seed": seed, "val_errors": made, "test": False, "loss": "kd", "reason": "",
         "status": "diverged" if made is None else "complete", **other}
        for t in (2.0, 4.0, 8.0, 20.0) for a in (0.6667, 1.0) for seed in (0, 1, 2)
        for made in [errors(t, a, seed)]
    ]  # fmt: skip
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "summary.csv", index=False)
    write_planned(folder, {str(row["directory"]): "x=1" for row in rows})
    return folder


def test_of_equal_settings_the_lower_is_chosen_and_of_seeds_the_mean(
    evidence: Any, home: Path
) -> None:
    cases = {
        ("2", "0.6667"): lambda *_: 9,
        ("4", "0.6667"): lambda t, *_: 9 - (t > 2),
        ("4", "1"): lambda t, a, s: 90 - 5 * (t == 4 and a == 1) - 9 * (t == 2 and s == 1),
        ("8", "1"): lambda t, a, s: None if t == 4 and s else 90 - 9 * (t == 4) - (t + a == 9),
    }
    for n, ((temperature, alpha), errors) in enumerate(cases.items()):
        folder = summary(home / str(n), errors)
        wanted = [f"loss.temperature={temperature}", f"loss.alpha=0,{alpha}"]
        assert evidence.chosen(folder) == wanted


def test_nothing_is_chosen_where_runs_that_choose_are_lacking(evidence: Any, home: Path) -> None:
    folder = summary(home / "short", lambda *_: 9)
    runs = pd.read_csv(folder / "summary.csv")
    runs.iloc[1:].to_csv(folder / "summary.csv", index=False)
    with pytest.raises(ValueError, match="alpha and seed that choose; 23 of them"):
        evidence.chosen(folder)
    with pytest.raises(ValueError, match="0 of them"):
        evidence.chosen(summary(home / "tested", lambda *_: 9, test=True))
    with pytest.raises(ValueError, match="no setting is complete with all seeds"):
        evidence.chosen(summary(home / "lost", lambda *of: (9, None, 9)[of[2]]))
    with pytest.raises(ValueError, match="there is no "):
        evidence.chosen(home / "none")
