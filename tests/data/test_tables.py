"""Tables: numbers, categories, labels, and what is held out."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cases import SMALL, Case, one_line, picture, text
from conftest import Cli, composed

import distill
from distill.cli import commands
from distill.config import parse
from distill.data import (
    table,
)
from distill.data.dataset import load
from distill.deploy.export import facts
from distill.runs.execute import execute
from distill.runs.job import Job
from distill.runs.summaries import read_summary
from distill.system.store import file_digest

ROWS = {
    "id": range(20),
    "size": [n / 3 for n in range(20)],
    "job": [f"j{n % 3}" for n in range(20)],
    "on": [n % 4 == 0 for n in range(20)],
    "kind": [("dog", "cat")[n % 10 == 0] for n in range(20)],
}


def csv(name: str, **columns: Any) -> None:
    frame = pd.DataFrame({**ROWS, **columns})
    frame.to_csv(name, index=False)


def test_a_table_is_numbers_and_a_feature_for_each_category(
    caplog: pytest.LogCaptureFixture,
) -> None:
    csv("train.csv")
    csv("test.csv", job=["j0", "new"] * 10)
    data = load(table, root="train.csv", label="kind", drop=["id"], test="test.csv")
    assert data.names == ("cat", "dog") and data.test_labels.bincount().tolist() == [2, 18]
    first = [[0, 1, 0, 0, 0, 1], [1 / 3, 0, 1, 0, 1, 0], [2 / 3, 0, 0, 1, 1, 0]]
    assert data.train_inputs[:3].tolist() == first
    assert data.test_inputs[1].tolist() == [1 / 3, 0, 0, 0, 1, 0]
    [said] = [record.message for record in caplog.records]
    assert said.startswith("column job: 10 of the 20 test rows have categories that no training")


TRUTHS = [n % 3 == 0 for n in range(20)]


@pytest.mark.parametrize("words", [("false", "true"), ("FALSE", "TRUE"), ("False", "True")])
def test_truths_are_read_alike_in_both_tables(words: tuple[str, str]) -> None:
    csv("train.csv", on=[words[truth] for truth in TRUTHS], kind=[words[n % 2] for n in range(20)])
    mixed = [("false", "TRUE")[truth] for truth in TRUTHS]
    csv("test.csv", on=mixed, kind=[("False", "true")[n % 2] for n in range(20)])
    data = load(table, root=".", label="kind", drop=["id", "size", "job"])
    wanted = [[float(not truth), float(truth)] for truth in TRUTHS]
    assert data.test_inputs.tolist() == data.train_inputs.tolist() == wanted
    assert data.names == ("False", "True") and data.test_labels.tolist() == [0, 1] * 10


def test_labels_are_read_as_those_to_train_on() -> None:
    csv("train.csv", kind=["true", "01", "x", "x"] * 5)
    csv("test.csv", kind=["01", "true"] * 10)  # alone: truths, or numbers
    data = load(table, root=".", label="kind")
    assert data.names == ("01", "true", "x") and data.test_labels.tolist() == [0, 1] * 10
    csv("test.csv", kind=["01"] * 20)
    assert load(table, root=".", label="kind").test_labels.tolist() == [0] * 20


@pytest.mark.parametrize("odd", ["?", "1,234", "0,5"])
def test_text_among_numbers_is_told(odd: str, caplog: pytest.LogCaptureFixture) -> None:
    csv("t.csv", size=[odd, *range(19)])
    load(table, root="t.csv", label="kind", drop=["id"])
    said = caplog.records[0].message
    assert said.startswith("column size: most of its cells are numbers, but some are text, such as")
    assert f"such as {odd}, so that each" in said


@pytest.mark.parametrize(
    ("key", "some"),
    [
        ("transfer.classes=[3]", "class 3 of table is named 4; "),
        ("transfer.classes=[10]", "class 0 of table is named 1, class 1 "),
    ],
)
def test_classes_with_numbers_for_names_are_not_counted(key: str, some: str, cli: Cli) -> None:
    csv("t.csv", kind=[1 + n % 10 for n in range(20)])
    command = ("data=table", "data.root=t.csv", "data.label=kind", "loss=hard", *SMALL)
    done = cli(*command, "transfer=omit", key)
    said = "classes count from 0 in the order of their names, and so "
    assert (done.code, done.err.count("\n")) == (1, 1) and done.err.startswith(
        f"{key}: {said}{some}"
    )
    assert "name them from 0 to 9" in done.err


def test_the_weights_of_named_classes_are_told(cli: Cli, caplog: pytest.LogCaptureFixture) -> None:
    command = ("data=table", "data.root=t.csv", "data.label=kind", "loss=hard", *SMALL)
    csv("t.csv")
    done = cli(*command, "loss.class_weights=[1,5]")
    told = "loss.class_weights, in the order of the classes: cat 1, dog 5\n"
    assert done.code == 0 and told in done.out + done.err
    csv("t.csv", kind=[("1", "2", "10", "x")[n % 4] for n in range(20)])  # text: 1, 10, 2, x
    done = cli(*command, "loss.class_weights=[1,2,3,4]")
    assert (
        done.code == 1 and "class 0 of table is named 1, class 1 of table is named 10" in done.err
    )
    csv("t.csv", kind=[1 + n % 4 for n in range(20)])
    caplog.clear()
    assert cli(*command, "loss.class_weights=[1,2,3,4]").code == 0 and not caplog.records


def test_where_another_table_lies_decides_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home / "own"))
    csv("t.csv")
    jobs = []
    for n, test in enumerate(("'~/u.csv'", home / "u.csv", 0.5)):
        (home / "own").mkdir(exist_ok=True)
        csv("u.csv")
        csv("own/u.csv")
        keys = ("data=table", "data.root=t.csv", "data.label=kind", f"data.test={test}")
        jobs.append(Job(parse(composed(*keys, "loss=hard", "precision=fp32", *SMALL))))
        (home / f"sweep/{n}").mkdir(parents=True)
        execute(jobs[-1:], [home / f"sweep/{n}"])
    assert jobs[0].digest == jobs[1].digest != jobs[2].digest
    frame = read_summary("sweep")
    digest = file_digest(home / "u.csv")[:8]
    assert frame["data.test"].tolist() == [digest, digest, 0.5] and "data.label" in frame


def test_a_share_of_each_class_is_to_test_and_always_the_same_rows() -> None:
    csv("t.csv", kind=["a"] * 10 + ["b"] * 9 + ["one"])
    data = load(table, root="t.csv", label="kind")
    assert data.train_labels.bincount().tolist() == [8, 7, 1]
    assert data.test_labels.bincount().tolist() == [2, 2]
    ids = sorted([*data.train_inputs[:, 0].tolist(), *data.test_inputs[:, 0].tolist()])
    assert ids == list(range(20))
    assert load(table, root="t.csv", label="kind").digest == data.digest
    half = load(table, root="t.csv", label="kind", test=0.5)
    assert half.test_labels.bincount().tolist() == [5, 4]


def test_a_folder_of_tables() -> None:
    for part in ("train", "test", "val"):
        csv(f"{part}.tsv")
        Path(f"{part}.tsv").write_text(Path(f"{part}.tsv").read_text().replace(",", "\t"))
    data = load(table, root=".", label="kind")
    assert len(data.test_labels) == 20 and data.held is not None and data.held.sum() == 20


def test_a_parquet_table_is_that_of_the_csv() -> None:
    csv("t.csv")
    pd.DataFrame(ROWS).to_parquet("t.parquet")
    one, other = (load(table, root=f"t.{kind}", label="kind") for kind in ("csv", "parquet"))
    assert one.digest == other.digest


@pytest.mark.slow
@pytest.mark.parametrize(("name", "classes", "most"), [("breast_cancer", 2, 9), ("digits", 10, 27)])
def test_a_table_is_learned(name: str, classes: int, most: int, cli: Cli, home: Path) -> None:
    bunch = pytest.importorskip("sklearn.datasets").__dict__[f"load_{name}"](as_frame=True)
    names = [f"is {label}" for label in bunch.target_names]
    frame = bunch.data.assign(label=[names[n] for n in bunch.target])
    frame.to_csv("t.csv", index=False)
    keys = ("model.width=64", "train.epochs=20", "train.batch_size=32", "precision=fp32")
    teacher = ("teacher.model.width=128", "teacher.train.epochs=20", "teacher.train.batch_size=32")
    done = cli("data=table", "data.root=t.csv", "data.label=label", *keys, *teacher)
    assert done.code == 0, done.err
    assert int(done.out.split(": ")[1].split()[0]) <= most, done.out  # of 114, and of 360
    assert (home / "teachers").is_dir()
    student = distill.load(done.out.splitlines()[-1])
    assert student.names == tuple(sorted(names)) and student.classes == classes


def test_a_process_reads_a_changed_table_again(cli: Cli) -> None:
    found = []
    for job in ("j0", "k0"):
        csv("t.csv", job=[f"{job}{n % 2}{n}" for n in range(20)] if job == "k0" else ROWS["job"])
        done = cli("data=table", "data.root=t.csv", "data.label=kind", "loss=hard", *SMALL)
        assert done.code == 0, done.err
        found.append(distill.load(done.out.splitlines()[-1]).shape)
    assert found[0] == (1 + 1 + 3 + 2,) and found[1] > found[0]


def test_a_student_of_features_is_asked_by_name(
    cli: Cli, home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    csv("t.csv", job=[1] * 20, on=[2] * 20)
    done = cli("data=table", "data.root=t.csv", "data.label=kind", *SMALL)
    assert done.code == 0, done.err
    assert "WARNING" not in done.err and (home / "teachers").is_dir()
    directory = done.out.splitlines()[-1]
    student = distill.load(directory)
    assert student.names == ("cat", "dog") and student.shape == (4,)
    assert facts(student)["names"] == '["cat", "dog"]'
    rows = np.array([[0, 1, 1, 2], [3, 9, 1, 2]])
    np.save("rows.npy", rows)
    monkeypatch.setattr("sys.argv", ["distill-predict", directory, "rows.npy"])
    capfd.readouterr()
    commands.predict()
    said = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    likely = student.probabilities(rows.astype(float)).max(-1)
    names = [student.names[n] for n in likely.indices.tolist()]
    assert [line[:2] for line in said] == [[f"rows.npy[{n}]", names[n]] for n in range(2)]
    picture("p.png")
    np.save("wide.npy", np.zeros((2, 5)))
    for name, message in (
        ("p.png", "p.png: the student takes rows of 4 features; give .npy, (N, 4)"),
        ("wide.npy", "wide.npy: it is (2, 5); wanted is (N, 4)"),
    ):
        monkeypatch.setattr("sys.argv", ["distill-predict", directory, name])
        with pytest.raises(SystemExit) as end:
            commands.predict()
        assert end.value.code == message


def csv_with(**columns: Any) -> Callable[[], object]:
    return lambda: csv("t.csv", **columns)


def two(columns: dict[str, Any], make: Callable[[], object]) -> Callable[[], object]:
    def both() -> None:
        csv("t.csv", **columns)
        make()

    return both


TABLE = "data=table data.root=t.csv data.label=kind"
NAN = [float("nan"), *[1.0] * 19]
BAD: dict[str, Case] = {
    "no label": (csv_with(), "data=table data.root=t.csv", "data.label: it needs a value"),
    "no table": (lambda: None, TABLE, "data.root=t.csv: "),
    "empty": (text("t.csv", ""), TABLE, "t.csv: it is no table that can be read (No columns"),
    "no rows": (text("t.csv", "a,kind\n"), TABLE, "t.csv: it has no rows"),
    "noise": (text("t.csv", bytes(range(128, 256))), TABLE, "t.csv: it is no table that can be"),
    "no folder": (
        lambda: Path("t.csv").mkdir(),
        TABLE,
        "it is a folder without train.csv (or .tsv, .parquet); give a table",
    ),
    "a column": (
        csv_with(),
        f"{TABLE}s",
        "t.csv: it has no column kinds; it has id, size, job, on",
    ),
    "to drop": (csv_with(), f"{TABLE} data.drop=[x]", "t.csv: it has no column x; it has id"),
    "separator": (text("t.csv", "a;kind\n1;2\n"), TABLE, "it has a;kind; set data.separator"),
    "index": (
        lambda: pd.DataFrame(ROWS).to_csv("t.csv"),
        TABLE,
        "t.csv: a column has no name, as that of row numbers in many files; leave it out by",
    ),
    "a gap": (csv_with(size=NAN), TABLE, "t.csv: column size has no value in row 0, counted from"),
    "no class": (csv_with(kind=["a", None] * 10), TABLE, "column kind has no value in row 1"),
    "infinite": (csv_with(size=[float("inf")] * 20), TABLE, "column size holds inf in a training"),
    "no features": (csv_with(), f"{TABLE} data.drop=[id,size,job,on]", "no column of features"),
    "of each its own": (csv_with(kind=range(20)), TABLE, "each of its 20 rows has a label of its"),
    "fractions": (csv_with(kind=[0.5] * 20), TABLE, "its training labels hold 0.5; a label is"),
    "one class": (csv_with(kind=["a"] * 20), TABLE, "all its labels are a: of one class there"),
    "share": (csv_with(), f"{TABLE} data.test=1.5", "data.test: it is 1.5; allowed are a share"),
    "nowhere": (csv_with(), f"{TABLE} data.test=gone.csv", "data.root=t.csv: "),
    "no user": (csv_with(), f"{TABLE} data.test='~no-one/t'", "data.test: ~no-one/t: there is no"),
    "other columns": (
        two({}, text("u.csv", "id,kind\n1,cat\n")),
        f"{TABLE} data.test=u.csv",
        "the test table has no column size, which the other has",
    ),
    "text for numbers": (
        two({}, lambda: csv("u.csv", size=["x"] * 20)),
        f"{TABLE} data.test=u.csv",
        "column size holds numbers in the training table and others in the test table",
    ),
    "shifted": (csv_with(), f"{TABLE} data.jitter=1", "data.jitter=1: table has rows of features"),
    "a convolution": (csv_with(), f"{TABLE} model=cnn", "model=cnn: "),
}


@pytest.mark.table
@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_one_line(case: str, cli: Cli, home: Path) -> None:
    one_line(BAD[case], cli, home)


def test_a_table_of_too_many_categories_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.data.tables.CATEGORIES", 2)
    csv("t.csv")
    with pytest.raises(ValueError, match=r"column job has 3 categories; .* data.drop=\[job\]"):
        table(root="t.csv", label="kind")


def test_parquet_without_its_package_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, name, None)
    Path("t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"needs pyarrow: pip install 'distill-sweep\[parquet\]'"):
        table(root="t.parquet", label="kind")
