"""Which test images runs get wrong: kept in their results, read from these, or from one file."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL, Cli, composed, forget, make_job, ran
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import distill
from distill.cli import commands
from distill.config import parse
from distill.data.dataset import load
from distill.runs import results
from distill.runs.execute import execute
from distill.runs.job import Job
from distill.runs.wrong import WRONG, read_wrong
from distill.system.bits import packed, unpacked
from distill.system.store import digest
from distill.teachers import find
from distill.teachers.cache import Teacher
from distill.training.evaluator import Evaluator

TEST = load(distill.data.synthetic, examples=256, classes=4, size=12)
KEPT = {"test_wrong", "teacher_test_wrong"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack of four students of two teachers, and one of two of labels alone."""
    home = tmp_path_factory.mktemp("wrong")
    small = [part for part in SMALL if part != "teacher.model.width=16"]
    more = ("precision=fp32", "train.epochs=4", "model.width=16", "hydra.sweep.dir=sweep")
    common = (*small, *more)
    ran(home, "-m", *common, "optim.lr=0.003", "teacher.model.width=12,16", "loss.temperature=1,9")
    ran(home, "-m", *common, "loss=hard", "optim.lr=0.003,0.01")
    return home / "sweep"


@pytest.fixture
def sweep(swept: Path, home: Path) -> Path:
    """A copy of it, of the test's own."""
    return Path(shutil.copytree(swept, home / "sweep"))


def summarise(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["distill-summary", str(folder), "--wrong"])
    commands.summary()


def change(path: Path, **facts: Any) -> None:
    """Write a result again, with other ``facts``; less those that are None."""
    body = {**results.read(path), **facts}
    text = {k: v for k, v in body.items() if v is not None or k == "reason"}
    path.write_text(json.dumps({**text, "digest": digest(text)}))


def test_the_rows_are_the_errors_of_each_student_and_of_its_teacher(sweep: Path) -> None:
    runs = distill.summary(sweep).set_index("run")
    found = distill.wrong(sweep)
    assert found.shape == (6, 128) and {*found.dtypes} == {np.dtype(bool)}
    assert found.index.tolist() == runs.index.tolist()
    assert found.sum(axis=1).tolist() == runs["test_errors"].tolist()
    assert len(found.drop_duplicates()) == 6
    with pytest.warns(UserWarning, match=r"^left out: 2 without a teacher whose errors"):
        teachers = distill.wrong(sweep, teacher=True)
    taught = runs[runs["loss"] == "kd"]
    assert teachers.index.tolist() == taught.index.tolist()
    assert teachers.sum(axis=1).tolist() == taught["teacher_test_errors"].tolist()
    assert len(teachers.drop_duplicates()) == taught["teacher_digest"].nunique() == 2
    for run, row in found.iterrows():
        student = distill.load(sweep / str(run))
        chosen = student(TEST.test_inputs).argmax(-1)
        assert row.tolist() == (chosen != TEST.test_labels).tolist()
    assert not {*runs} & KEPT


def test_a_run_has_no_file_more(sweep: Path) -> None:
    five = {"distill.log", "history.csv", "result.json", "student.safetensors", ".hydra"}
    for path in results.paths(sweep):
        names = {p.name for p in path.parent.iterdir() if not p.name.startswith("digits-")}
        assert names <= five


def test_the_file_holds_them_without_the_runs(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = distill.wrong(sweep)
    summarise(monkeypatch, sweep)
    assert capsys.readouterr().out.endswith(f"{sweep / WRONG}: 6 runs\n")
    for path in results.paths(sweep):
        shutil.rmtree(path.parent)
    pd.testing.assert_frame_equal(distill.wrong(sweep), before)
    pd.testing.assert_frame_equal(distill.wrong(sweep / WRONG), before)
    with pytest.warns(UserWarning, match="left out: 2 without a teacher"):
        assert len(distill.wrong(sweep, teacher=True)) == 4
    assert {p.name for p in sweep.glob("*.csv")} == {WRONG, "summary.csv", "planned.csv"}


def test_the_file_has_the_text_of_a_teacher_once(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = [path for path in results.paths(sweep) if "kd" in path.parent.name]
    taught.sort(key=lambda path: str(results.read(path)["teacher_digest"]))
    # One says otherwise of the same teacher, as another machine may; of one it is not known.
    wrong = ~unpacked(results.read(taught[1])["teacher_test_wrong"])
    errors = int(wrong.sum())
    change(taught[1], teacher_test_wrong=packed(wrong), teacher_test_errors=errors)
    change(taught[2], teacher_test_wrong=None)
    with pytest.warns(UserWarning, match="left out: 3 without a teacher"):
        before = distill.wrong(sweep, teacher=True)
    summarise(monkeypatch, sweep)
    table = pd.read_csv(sweep / WRONG)
    assert table.columns.tolist() == ["run", "test_wrong", "teacher_digest", "teacher_test_wrong"]
    texts = table["teacher_test_wrong"]
    assert texts.dropna().is_unique and texts.count() == 3 and len(table) == 6
    assert table["teacher_digest"].count() == 3
    with pytest.warns(UserWarning, match="left out: 3 without a teacher"):
        pd.testing.assert_frame_equal(distill.wrong(sweep / WRONG, teacher=True), before)
    known = {results.read(taught[n])["run"]: results.read(taught[n]) for n in (0, 1, 3)}
    assert before.sum(axis=1).to_dict() == {
        run: result["teacher_test_errors"] for run, result in known.items()
    }
    # As the files had it that repeated it.
    whole = table.assign(teacher_test_wrong=[row.teacher_test_wrong for row in read_wrong(sweep)])
    whole.drop(columns="teacher_digest").to_csv("old.csv", index=False)
    with pytest.warns(UserWarning, match="left out: 3 without a teacher"):
        pd.testing.assert_frame_equal(distill.wrong("old.csv", teacher=True), before)
    table.assign(teacher_test_wrong="").to_csv("lost.csv", index=False)
    with pytest.raises(ValueError, match=r"lost.csv is damaged"):
        distill.wrong("lost.csv")


def test_a_file_that_is_damaged_or_none_is_refused(
    sweep: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summarise(monkeypatch, sweep)
    text = (sweep / WRONG).read_text()
    place = text.index(":") + 3
    other = "A" if text[place] != "A" else "B"
    damages = [text[:place] + other + text[place + 1 :], text[:-9], text.replace("run,", "r,"), ""]
    damages += ["run,test_wrong\na,1/8:AQ==\n", text.replace("/128:", "/64:"), "\x00\x01"]
    for damage in damages:
        (home / WRONG).write_text(damage)
        with pytest.raises(ValueError, match=rf"{WRONG} is damaged, or no .* writes it anew"):
            distill.wrong(home / WRONG)
    for nothing in ("none", "data"):
        with pytest.raises(FileNotFoundError, match=nothing):
            distill.wrong(home / nothing)


def test_results_of_before_are_told_of_with_what_makes_them_anew(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = results.paths(sweep)
    change(first, test_wrong=None, teacher_test_wrong=None)
    again = "left out: 1 that did not keep .* to train them anew: distill -m .* resume=false$"
    with pytest.warns(UserWarning, match=again):
        found = distill.wrong(sweep)
    assert len(found) == 5 and first.parent.name not in found.index
    for path in others:
        change(path, test_wrong=None)
    with pytest.raises(ValueError, match=r"no run says .* 6 that did not keep .* resume=false$"):
        distill.wrong(sweep)
    with pytest.raises(SystemExit, match=r"^wrong.csv was not written; left out: 6 that did not"):
        summarise(monkeypatch, sweep)
    assert not (sweep / WRONG).exists()


def test_what_is_damaged_or_not_complete_is_left_out_with_a_word(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = results.paths(sweep)
    paths[0].write_text(paths[0].read_text().replace('"test_wrong": "', '"test_wrong": "1'))
    change(paths[1], test_errors=results.read(paths[1])["test_errors"] + 1)
    change(paths[2], status="diverged", reason="so")
    change(paths[3], test_errors=None)
    paths[4].unlink()
    line = "left out: 2 damaged, 1 diverged, 1 not tested (test=false), 1 not ended"
    with pytest.warns(UserWarning, match="^left out: ") as told:
        assert distill.wrong(sweep).index.tolist() == [paths[5].parent.name]
    assert [str(one.message) for one in told] == [line]
    summarise(monkeypatch, sweep)
    assert f"{line}\n{sweep / WRONG}: 1 run\n" in capsys.readouterr().out


def test_test_sets_of_several_sizes_are_told_apart(sweep: Path, cli: Cli) -> None:
    assert cli(*SMALL, "data.examples=130", "hydra.run.dir=sweep/other").code == 0
    assert distill.wrong(sweep / "other").shape == (1, 65)
    with pytest.raises(ValueError, match="its runs have 65 and 128 test images"):
        distill.wrong(sweep)


TRAINED = ("teacher.model.width=16", "teacher.train.epochs=2", "teacher.train.batch_size=64")


@pytest.mark.parametrize(
    "teacher",
    [
        pytest.param(TRAINED, id="one"),
        pytest.param(("teacher=ensemble", *TRAINED, "teacher.members=2"), id="ensemble"),
        pytest.param(("teacher=targets", "teacher.path=said.npz"), id="file"),
    ],
)
def test_each_kind_of_teacher_has_its_own_from_an_older_cache_too(
    teacher: tuple[str, ...], home: Path
) -> None:
    train, test = (3 * np.eye(4)[own.numpy()] for own in (TEST.train_labels, TEST.test_labels))
    test[:9] = 0  # it says that all classes are alike
    np.savez("said.npz", train=train, test=test)
    job = Job(parse(composed(*SMALL[:2], "train.epochs=1", *teacher)))
    for name in "ab":
        (home / name).mkdir()
    [result] = execute([job], [home / "a"])
    wrong = unpacked(result["teacher_test_wrong"])
    found = find.find_teacher(job.setting, job.run.teacher, 5.0)
    logits = find.logits_on_test(job.setting, found)
    assert logits is not None
    assert wrong.tolist() == (logits.argmax(-1) != TEST.test_labels).tolist()
    assert wrong.sum() == result["teacher_test_errors"] > 0
    manifests = [*(home / "data" / "teachers").glob("*/manifest.json")]
    kept = []
    for path in manifests:
        manifest = json.loads(path.read_text())
        kept.append(manifest["facts"].pop("test_wrong", None))
        path.write_text(json.dumps(manifest))
    assert (result["teacher_test_wrong"] in kept) is isinstance(found, Teacher)
    forget()
    [again] = execute([job], [home / "b"])
    assert again["teacher_test_wrong"] == result["teacher_test_wrong"]
    assert not [path for path in manifests if "test_wrong" in path.read_text()]


def test_what_differs_from_the_errors_is_not_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = Evaluator.wrong

    def rounded(self: Evaluator, stack: Any) -> Tensor:
        """As if the logits of one image had been rounded otherwise."""
        found = wrong(self, stack)
        return torch.cat([~found[:, :1], found[:, 1:]], 1)

    monkeypatch.setattr(Evaluator, "wrong", rounded)
    [result] = execute([make_job("loss=hard")], [home])
    assert "test_errors" in result and "test_wrong" not in result
    assert "its result has no test_wrong (" in caplog.text
    with pytest.raises(ValueError, match=r"no run says .* 1 that did not keep"):
        distill.wrong(home)


def test_without_a_test_there_are_none(home: Path) -> None:
    [result] = execute([make_job("test=false", "data.validation=0.25")], [home])
    assert not result.keys() & KEPT


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_truths_are_packed_and_damage_is_seen(truths: list[bool]) -> None:
    text = packed(np.array(truths))
    assert unpacked(text).tolist() == truths
    head, _, code = text.partition(":")
    for damage in (code, f"{head}:", f"{head}:{code}AAAA", f"{head}x:{code}", f"9{text}"):
        with pytest.raises(ValueError, match=r"\w"):
            unpacked(damage)


def test_ten_thousand_images_take_a_kilobyte_or_two() -> None:
    assert len(packed(np.ones(10_000, dtype=bool))) == len("10000/10000:") + 1668
