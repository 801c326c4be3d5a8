"""Comparisons of losses: as many trials each, then fresh seeds; what is written and said."""

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL, Cli, composed, options
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from omegaconf import OmegaConf
from scipy import stats

from distill.cli import commands
from distill.config import parse
from distill.report import page, reading
from distill.report.comparison import BETTER, FILE, UNDECIDED, WORSE, led, read
from distill.report.contents import Sweep
from distill.runs import results, summaries
from distill.system.conf import CONF
from distill.tuning.reading import studies

COMPARE = (
    *("experiment=compare_losses", *SMALL, "precision=fp32", "data.examples=128"),
    *("train.epochs=3", "train.batch_size=16", "halving.rungs=1", "hydra.sweep.dir=c"),
    *("hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=3", "hydra.sweeper.seeds=[1,2]"),
    "hydra.sweeper.only=[labels,labels_longer,kd]",
)


def summary() -> pd.DataFrame:
    return summaries.read_summary(Path("c")).set_index("run", drop=False)


@pytest.mark.slow
def test_candidates_are_tuned_alike_and_compared_with_fresh_seeds(
    cli: Cli, trained: list[str]
) -> None:
    done = cli(*COMPARE)
    assert done.code == 0, done.err
    frame = summary()
    written = json.loads((Path("c") / FILE).read_text())["candidates"]
    assert list(written) == ["labels", "labels_longer", "kd"]
    finals = [run for own in written.values() for run in own["runs"]]
    final, trials = frame.loc[finals], frame.drop(finals)
    # Trials are of one seed and choose on the validation split; the test set is for the rest.
    assert Counter(trials["loss"]) == {"hard": 6, "kd": 3}
    assert trials["seed"].eq(0).all()
    assert trials["data.validation"].eq(0.2).all()
    assert trials["test_errors"].isna().all()
    assert final["data.validation"].eq(0).all()
    assert final["seed"].tolist() == [1, 2] * 3
    taught = final[final["loss"] == "kd"]
    assert taught["teacher.seed"].tolist() == [1, 2]
    assert taught["teacher_digest"].nunique() == 2
    for name, own in written.items():
        assert own["trials"] == {"complete": 1, "stopped": 2}
        rows = final.loc[own["runs"]]
        assert rows["lr"].eq(own["chosen"]["optim.lr"]).all()
        assert rows["epochs"].eq(9 if name == "labels_longer" else 3).all()
        chosen = trials[(trials["lr"] == own["chosen"]["optim.lr"]) & trials["val_errors"].notna()]
        assert own["val_errors"] in chosen["val_errors"].tolist()
    [compared] = read(Path("c"), frame)
    errors = {name: final.loc[own["runs"], "test_errors"] for name, own in written.items()}
    by_name = {candidate.name: candidate for candidate in compared.candidates}
    assert by_name["kd"].errors.tolist() == errors["kd"].tolist()
    difference = by_name["labels"].differences["kd"].found
    assert difference.mean == np.mean(errors["labels"].to_numpy() - errors["kd"].to_numpy())
    assert [c.errors.mean() for c in compared.candidates] == sorted(
        own.mean() for own in errors.values()
    )
    for run, row in final.iterrows():  # chosen on the test set, and so no more than the last
        history = pd.read_csv(Path("c") / row["directory"] / results.HISTORY)
        assert row["best_epoch_test_errors"] == history["test_errors"].min(), run
    assert "labels_longer" in done.out
    # The same command again trains nothing; an experiment of a candidate is its first run.
    before = list(trained)
    assert cli(*COMPARE).code == 0
    assert trained == before
    assert cli("--config-dir", "c", "experiment=kd", "seed=2").code == 0
    assert trained[len(before) :] == [written["kd"]["runs"][1]]


@pytest.mark.slow
def test_bad_teachers_are_told_before_the_final_runs(cli: Cli) -> None:
    given = ("hydra.sweeper.only=[labels,kd]", "optim.lr=0.03", "train.epochs=9")
    done = cli(*COMPARE, *given, "teacher.optim.lr=1e-9")
    assert done.code == 0, done.err
    trials = summary()[lambda frame: frame["test_errors"].isna()]
    [errors] = trials["teacher_val_errors"].dropna().unique()
    alone = trials.loc[trials["loss"] == "hard", "val_errors"].iloc[0]
    assert alone < errors
    line = f"teachers make {errors} validation errors, more than students that have none "
    assert f"{line}(labels {alone}): losses" in done.out
    assert done.out.index(line) < done.out.index("what was chosen, now trained on all data")
    assert "make fewer errors than teachers do (labels" in done.out.partition("Teachers make")[2]
    good = ("teacher.train.epochs=60", "teacher.train.batch_size=16", "teacher.optim.lr=0.01")
    done = cli(*COMPARE, given[0], "optim.lr=0.0003", *good, "hydra.sweep.dir=d")
    assert "Teachers make" in done.out and "more than students" not in done.out
    assert "than teachers do" not in done.out


@pytest.mark.slow
def test_as_many_trials_count_as_there_are_to_be(cli: Cli) -> None:
    kd = ("hydra.sweeper.only=[kd]", "hydra.sweeper.references=[kd]", "halving.rungs=0")
    few = ("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2")
    assert cli(*COMPARE, *kd, *few).code == 0
    first = json.loads((Path("c") / FILE).read_text())
    assert cli(*COMPARE, *kd, "hydra.sweeper.n_trials=8").code == 0
    assert cli(*COMPARE, *kd, *few).code == 0
    again = json.loads((Path("c") / FILE).read_text())
    assert again == first
    assert again["candidates"]["kd"]["trials"] == {"complete": 2}


@pytest.mark.endurance
@pytest.mark.slow
def test_another_comparison_in_the_same_folder_leaves_the_first_alone(cli: Cli) -> None:
    assert cli(*COMPARE).code == 0
    first = (Path("c") / FILE).read_bytes()
    assert cli(*COMPARE, "hydra.sweeper.seeds=[3,4]").code == 0
    assert (Path("c") / FILE).read_bytes() == first
    found = read(Path("c"), summary())
    assert sorted(compared.seeds for compared in found) == [(1, 2), (3, 4)]
    assert len(list((Path("c") / "experiment").iterdir())) == 6


@pytest.mark.slow
def test_a_candidate_with_nothing_to_search_is_trained_as_it_is_given(
    cli: Cli, trained: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    given = (*COMPARE, "hydra.sweeper.only=[labels,kd]", "optim.lr=0.004")
    done = cli(*given)
    assert done.code == 0, done.err
    [compared] = read(Path("c"), summary())
    by_name = {candidate.name: candidate for candidate in compared.candidates}
    assert by_name["labels"].trials == {"complete": 1}
    assert by_name["kd"].trials == {"complete": 1, "stopped": 2}
    assert {*by_name["kd"].chosen} == {"loss.temperature", "loss.alpha"}
    assert not by_name["labels"].chosen
    assert by_name["labels"].errors.index.tolist() == [1, 2]
    assert summary()["lr"].eq(0.004).all()
    assert "hydra.sweeper.seeds: 2 are too few to decide anything, which takes 5" in done.out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["distill-summary", "c"])
        capfd.readouterr()
        commands.summary()
        assert "less those of kd" in capfd.readouterr().out
        whole = (Path("c") / FILE).read_text()
        (Path("c") / FILE).write_text("{")
        with pytest.raises(SystemExit, match=r"DIR=c: comparison.json cannot be read"):
            commands.summary()
        (Path("c") / FILE).write_text(whole)
    assert "With settings that are given, so that one trial is all: labels." in led(compared)
    sweep = replace(reading.sweep(Path("c")), studies=studies(Path("c")))
    html = page.write(Path("page"), [], [sweep]).read_text()
    assert "one trial is all: labels" in html
    before = list(trained)
    assert cli(*given).code == 0
    assert trained == before


@pytest.mark.endurance
@pytest.mark.slow
def test_a_candidate_that_always_diverges_is_told_and_the_others_compared(cli: Cli) -> None:
    options = "hydra.sweeper.candidates.labels.overrides={optim.lr: 1e30, optim.weight_decay: 0}"
    command = (*COMPARE, f"+{options.replace(': ', ':')}", "~hydra.sweeper.params.optim\\.lr")
    smoothing = "+hydra.sweeper.candidates.labels.smoothing='interval(0.1,0.2)'"
    longer = "+hydra.sweeper.candidates.labels_longer.smoothing='interval(0.1,0.2)'"
    done = cli(*command, smoothing, longer)
    assert done.code == 0, done.err
    [compared] = read(Path("c"), summary())
    by_name = {candidate.name: candidate for candidate in compared.candidates}
    assert "none of 3 trials completed" in by_name["labels"].reason
    assert by_name["labels"].errors.empty
    assert len(by_name["labels_longer"].errors) == 2
    assert by_name["labels_longer"].differences.keys() == {"kd"}
    assert compared.candidates[-1].name == "labels"
    assert compared.lacking == {"labels": 2}
    assert "none of 3 trials completed" in done.out


@pytest.mark.table
@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["loss=logits"], "loss=logits: each candidate has its own loss; name the candidates"),
        (["hydra.sweeper.only=[kd,x]"], "hydra.sweeper.only=[kd,x]: allowed are labels, "),
        (["hydra.sweeper.only=[]"], "hydra.sweeper.only=[]: allowed are labels, "),
        (["hydra.sweeper.references=[x]"], "hydra.sweeper.references=[x]: allowed are those"),
        (["hydra.sweeper.seeds=[1,1]"], "hydra.sweeper.seeds=[1,1]: give at least one, each once"),
        (["hydra.sweeper.seeds=[]"], "hydra.sweeper.seeds=[]: give at least one, each once"),
        (["seed=1"], "hydra.sweeper.seeds=[1,2]: seed=1 chooses, and is no fresh one; leave it"),
        (["hydra.sweeper.study_name=x"], "hydra.sweeper.study_name=x: each candidate has a study"),
        (["hydra.sweeper.objectives=[val_loss]"], "hydra.sweeper.objectives=[val_loss]: a compar"),
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: it must be at least 1"),
        (["+hydra.sweeper.candidates.kd.x=1"], "loss.x=1: there is no such key; did you"),
        (
            ["loss.alpha=0.5"],
            "loss.alpha=0.5: each candidate has its own loss; set it for one of them, as hydra.",
        ),
        (
            ["+hydra.sweeper.candidates.kd.overrides={seed:1}"],
            "hydra.sweeper.candidates.kd: its trials have several seeds, or one of their own; all",
        ),
        (["seed=3,4"], "hydra.sweeper.candidates.labels: its trials have several seeds, or one of"),
        (
            ["+hydra.sweeper.candidates={tune:{loss:kd}}", "hydra.sweeper.only=[tune,kd]"],
            "hydra.sweeper.candidates.tune: it names an experiment, too, and there is another of",
        ),
        (
            ["+hydra.sweeper.candidates={a/b:{loss:kd}}", "hydra.sweeper.only=[a/b,kd]"],
            "hydra.sweeper.candidates.a/b: it names an experiment, too; use letters, digits, _, -",
        ),
        (
            ["+hydra.sweeper.candidates.own.x=1", "hydra.sweeper.only=[own,kd]"],
            "hydra.sweeper.candidates.own: it names no loss; give it one, as in {loss: kd, tem",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    options: list[str], line: str, cli: Cli, trained: list[str]
) -> None:
    done = cli(*COMPARE, *options)
    assert done.code == 1
    assert done.err.startswith(line), done.err
    assert done.err.count("\n") == 1
    assert not trained
    assert not Path("c").exists()


def test_every_loss_of_logits_is_a_candidate_with_all_of_its_keys() -> None:
    with initialize_config_dir(str(CONF)):
        whole = compose("config", ["experiment=compare_losses"], return_hydra_config=True)
    candidates = OmegaConf.to_container(whole.hydra.sweeper.candidates, resolve=True)
    assert isinstance(candidates, dict)
    weights = {"smoothing", "class_weights", "hard", "start", "warmup"}  # of CE, and of schedules
    compared = set()
    for name, own in candidates.items():
        keys = {key: value for key, value in own.items() if key not in ("loss", "overrides")}
        space = [f"loss.{key}={value}" for key, value in keys.items()]
        parsed = OverridesParser.create().parse_overrides(space)
        ends = []
        for override in parsed:
            value = override.value()
            assert isinstance(value, IntervalSweep), name
            ends.append(f"{override.key_or_group}={value.start}")
        loss = parse(composed("data=synthetic", f"loss={own['loss']}", *ends)).loss
        compared.add(own["loss"])
        if own["loss"] not in ("hard", "label_smoothing"):
            assert {*loss.options} - weights == {*keys}, name
    losses = {
        name: parse(composed("data=synthetic", f"loss={name}")).loss
        for name in {*options("loss")} - {"sum"}
    }
    of_logits = {name for name, loss in losses.items() if "student_features" not in loss.takes}
    assert compared == of_logits
    assert candidates["labels_longer"]["overrides"]["train.epochs"] == 3 * whole.train.epochs


def runs(**errors: list[int]) -> pd.DataFrame:
    """The rows of final runs with these test errors, by candidate, of seeds 1, 2, ..."""
    rows = [
        {"run": f"{name}-{seed}", "seed": seed, "status": "complete", "test_errors": value}
        for name, own in errors.items()
        for seed, value in enumerate(own, 1)
    ]
    return pd.DataFrame(rows)


def test_verdicts_are_by_paired_tests_and_holm(tmp_path: Path) -> None:
    errors = {
        "kd": [100, 110, 90, 105, 95],
        "good": [90, 101, 80, 96, 84],  # always about ten fewer
        "bad": [120, 131, 111, 124, 115],
        "near": [101, 108, 92, 104, 96],
        "wide": [60, 190, 85, 160, 100],
    }
    body = {
        "trials": 3,
        "seed": 0,
        "seeds": [1, 2, 3, 4, 5],
        "references": ["kd"],
        "candidates": {
            name: {
                "study": name,
                "trials": {"complete": 3},
                "runs": [f"{name}-{n}" for n in range(1, 6)],
            }
            for name in errors
        },
    }
    (tmp_path / FILE).write_text(json.dumps(body))
    [compared] = read(tmp_path, runs(**errors))
    found = {c.name: c.differences.get("kd") for c in compared.candidates}
    assert found.pop("kd") is None
    known = {name: d for name, d in found.items() if d is not None}
    verdicts = {name: d.verdict for name, d in known.items()}
    assert verdicts == {"good": BETTER, "bad": WORSE, "near": UNDECIDED, "wide": UNDECIDED}
    raw = {name: stats.ttest_rel(errors[name], errors["kd"]).pvalue for name in known}
    order = sorted(raw, key=lambda name: raw[name])
    adjusted = np.maximum.accumulate([raw[n] * (4 - place) for place, n in enumerate(order)])
    for name, p in zip(order, adjusted, strict=True):
        assert known[name].p == pytest.approx(min(1, p))
    # The page has them in a table and a figure, the best first.
    frame = runs(**errors).assign(version="1")
    written = page.write(
        tmp_path / "page", [], [Sweep("c", tmp_path, frame, comparisons=(compared,))]
    )
    html = written.read_text()
    good = re.search(r"<td[^>]*>good</td>(.*?)</tr>", html, re.DOTALL)
    assert good is not None
    assert re.findall(r">([^<>]+)</td>", good[1])[:5] == [
        "90.2 [79.6, 100.8]", "5", "-9.8 [-10.8, -8.76]", "3.79e-05", "better",
    ]  # fmt: skip
    assert "Better: good; worse: bad; not decided: near, wide." in html
    assert html.index(">good</td>") < html.index(">kd</td>") < html.index(">bad</td>")
    # A run that is lacking leaves its seed out of the pairs, and is said to be lacking.
    [fewer] = read(tmp_path, runs(**errors).drop(index=0))
    assert fewer.lacking == {"kd": 1}
    by_name = {c.name: c for c in fewer.candidates}
    assert by_name["good"].differences["kd"].found.n == 4
    assert "kd lacks 1 of its 5 final runs" in "".join(led(fewer))
    assert {d.verdict for c in fewer.candidates for d in c.differences.values()} == {UNDECIDED}
    # A copy of a run counts once; runs of two kinds are said to be.
    copied = pd.concat([frame, frame.iloc[:1]]).assign(device="cpu")
    copied["precision"] = ["bf16" if n == 3 else "fp32" for n in range(len(copied))]
    [again] = read(tmp_path, copied)
    assert {c.name: c.differences for c in again.candidates} == {
        c.name: c.differences for c in compared.candidates
    }
    assert "Final runs are of several kinds: fp32 on cpu, bf16 on cpu." in led(again)
    # Fewer than five seeds decide nothing.
    body["seeds"] = [1, 2]
    (tmp_path / FILE).write_text(json.dumps(body))
    [two] = read(tmp_path, runs(**{name: own[:2] for name, own in errors.items()}))
    assert {d.verdict for c in two.candidates for d in c.differences.values()} == {UNDECIDED}
    for damage in ("{", "[]", '{"candidates": {"kd": 3}}'):
        (tmp_path / FILE).write_text(damage)
        with pytest.raises(ValueError, match=r"comparison.json cannot be read \(.*\); the command"):
            read(tmp_path, frame)
