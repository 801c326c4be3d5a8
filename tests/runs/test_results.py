"""Results and the summary: rebuilt from files, tidy, complete."""

import errno
import json
import os
import sys
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import distill
from distill.cli import commands
from distill.report import reading
from distill.runs import results, summaries
from distill.runs.columns import COLUMNS
from distill.runs.results import leaves, write
from distill.runs.summaries import summary, write_summary
from distill.sweeps import tables


def put(folder: Path, name: str, **facts: Any) -> None:
    (folder / name).mkdir(parents=True)
    head = {
        "run": name, "status": "complete", "reason": None, "data": "d", "model": "mlp", "width": 10,
        "loss": "kd", "temperature": 2.0, "alpha": 0.5, "seed": 0, "test_errors": 7,
        "config": {"model": {"_target_": "x", "width": 10, "depth": 2}, "data": {"root": "/r"}},
    }  # fmt: skip
    write(folder / name, {**head, **facts}, [{"epoch": 1, "train_loss": 0.5}])


def shown(folder: Path) -> str:
    console = Console(file=StringIO(), width=100)
    tables.show(write_summary(folder), folder, console)
    file = console.file
    assert isinstance(file, StringIO)
    return file.getvalue()


def test_the_summary_has_a_row_a_run_and_the_documented_columns(home: Path) -> None:
    put(home, "b", temperature=4.0, teacher="none", test_ece=0.25)
    put(home, "a", status="failed", reason='why, "so"\nand more', test_errors=None)
    write_summary(home)
    frame = pd.read_csv(home / "summary.csv")
    known = [name for name, column in COLUMNS.items() if column.always or name == "test_ece"]
    assert list(frame.columns) == [*known, "model.depth"]
    assert "best_epoch" not in known and frame["test_ece"][1] == 0.25
    assert frame["run"].tolist() == ["a", "b"]
    assert frame["status"].tolist() == ["failed", "complete"]
    assert frame["reason"][0] == 'why, "so"\nand more'
    assert frame["teacher"][1] == "none"
    assert frame["directory"].tolist() == ["a", "b"]
    assert pd.isna(frame["test_errors"][0])


def test_rebuilding_changes_nothing_and_sees_what_is_new(home: Path) -> None:
    put(home, "a")
    write_summary(home)
    first = (home / "summary.csv").read_bytes()
    write_summary(home)
    assert (home / "summary.csv").read_bytes() == first
    put(home, "b/c")
    assert write_summary(home)["directory"].tolist() == ["a", "b/c"]


DAMAGES = ["", "{", "[]", "3", '{"run": "a"}', "\x00\x01", "[" * 10**5]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda text: repr(text[:12]))
def test_a_damaged_result_is_a_failed_row(damage: str, home: Path) -> None:
    put(home, "a")
    put(home, "b")
    (home / "a" / "result.json").write_text(damage)
    assert results.finished(home / "a", "a") is None
    frame = summary(home)
    assert frame["status"].tolist() == ["failed", "complete"]
    assert frame["reason"][0] == "result.json is damaged"


def test_a_result_that_cannot_be_read_is_a_failed_row(home: Path) -> None:
    put(home, "a")
    (home / "b" / "result.json").mkdir(parents=True)
    assert summary(home)["status"].tolist() == ["complete", "failed"]


def test_seeds_are_exact_where_some_rows_lack_one(home: Path) -> None:
    put(home, "a", seed=2**60 + 1, config={"teacher": {"seed": 2**60 + 3}})
    put(home, "b")
    (home / "b" / "result.json").write_text("")
    write_summary(home)
    frame = pd.read_csv(home / "summary.csv", dtype=str)
    assert frame["seed"][0] == str(2**60 + 1)
    assert frame["teacher.seed"][0] == str(2**60 + 3)


def test_numbers_that_json_lacks_become_missing_ones(home: Path) -> None:
    put(home, "a", train_loss=float("nan"), test_loss=float("inf"))
    text = (home / "a" / "result.json").read_text()
    assert json.loads(text)["train_loss"] is None
    assert "NaN" not in text
    assert "Infinity" not in text


def test_the_table_shows_means_over_seeds_by_temperature_and_width(home: Path) -> None:
    for seed, errors in ((0, 10), (1, 13)):
        put(home, f"a{seed}", seed=seed, test_errors=errors)
        put(home, f"b{seed}", seed=seed, test_errors=errors + 20, width=30)
        put(home, f"c{seed}", seed=seed, test_errors=errors + 5, temperature=8.0)
    put(home, "bad", status="diverged", reason="not finite", test_errors=None)
    text = shown(home)
    assert "mean over 2 seeds" in text
    rows = [line.replace("│", " ").split() for line in text.splitlines() if line.startswith("│")]
    assert rows == [["2", "11.5", "31.5"], ["8", "16.5", "█"]]
    assert "bad diverged: not finite" in text
    assert "7 runs (6 complete, 1 diverged)" in text


@pytest.mark.parametrize("reason", ["[enforce fail at a.cpp:1] memory", "no [/x]", "is :x: it"])
def test_reasons_are_shown_as_they_are(reason: str, home: Path) -> None:
    put(home, "a", status="failed", reason=reason)
    assert f"a failed: {reason}\n" in shown(home)


def test_what_differs_beside_temperature_and_width_has_tables_of_its_own(home: Path) -> None:
    put(home, "a")
    put(home, "b", alpha=1.0)
    put(home, "c", loss="hard", alpha=None, temperature=None, test_errors=3)
    titles = [str(table.title) for table in tables.tables(summary(home))]
    assert [t.splitlines()[1] for t in titles] == [
        "loss=kd, alpha=0.5",
        "loss=kd, alpha=1",
        "loss=hard",
    ]


def test_of_many_tables_the_first_are_shown_and_the_others_counted(home: Path) -> None:
    for alpha, temperature in product(range(22), (1.0, 2.0, 4.0, 8.0)):
        put(home, f"{alpha}-{temperature:g}", alpha=float(alpha), temperature=temperature)
    *shown_, last = tables.tables(summary(home))
    assert len(shown_) == tables.TABLES == 20
    assert last == "and 2 more tables of other settings: see the rows of summary.csv"


def test_a_sweep_without_a_complete_run_has_no_table(home: Path) -> None:
    put(home, "a", status="failed", reason="r", test_errors=None)
    assert "1 run (1 failed)" in shown(home)


keys = st.text(st.characters(codec="utf-8", exclude_characters="."), min_size=1, max_size=5)
nested = st.recursive(
    st.dictionaries(keys, st.integers(), min_size=1, max_size=3),
    lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3),
)


@pytest.mark.slow
@given(nested)
def test_leaves_reach_each_value_once(config: dict[str, Any]) -> None:
    found = dict(leaves(config))
    for dotted, value in found.items():
        node: Any = config
        for key in dotted.split("."):
            node = node[key]
        assert node == value

    def count(node: Any) -> int:
        return sum(map(count, node.values())) if isinstance(node, dict) else 1

    assert len(found) == count(config)


def test_what_was_put_aside_is_not_summarised_unless_asked_for(home: Path) -> None:
    results.write(home, {"run": "a", "config": {}}, [])
    results.put_aside(home)
    assert results.paths(home) == []
    assert len(summaries.summary(home / results.EARLIER)) == 1


def test_only_a_run_of_that_name_that_ended_for_good_is_finished(home: Path) -> None:
    (home / results.WEIGHTS).write_bytes(b"weights")
    results.write(home, {"run": "a", "status": "complete"}, [])
    assert results.finished(home, "a") is not None
    assert results.finished(home, "b") is None
    for status in ("failed", "interrupted"):
        results.write(home, {"run": "a", "status": status}, [])
        assert results.finished(home, "a") is None
    (home / results.WEIGHTS).unlink()
    for status in ("diverged", "stopped"):
        results.write(home, {"run": "a", "status": status}, [])
        assert results.finished(home, "a") is not None
    results.write(home, {"run": "a", "status": "complete"}, [])
    assert results.finished(home, "a") is None  # it has no weights


def titles(folder: Path) -> list[str]:
    return [str(t.title).partition("\n")[2] for t in tables.tables(summary(folder))]


def taught(width: int, seed: int = 0, **facts: Any) -> dict[str, Any]:
    config = {"teacher": {"model": {"width": width}, "seed": seed}}
    digest = f"{width}-{seed}"
    return {
        "seed": seed, "teacher": "mlp_1200", "teacher_digest": digest, "teacher_test_errors": width,
        "config": config, **facts,
    }  # fmt: skip


def test_teachers_that_differ_have_tables_and_lines_of_their_own(home: Path) -> None:
    for width in (4, 16):
        for seed in (0, 1):  # teacher.seed=${seed}
            put(home, f"{width}-{seed}", **taught(width, seed, test_errors=width + 2 * seed))
    assert titles(home) == ["teacher.model.width=4", "teacher.model.width=16"]
    text = shown(home)
    assert "mean over 2 seeds" in text and "5.0" in text and "17.0" in text
    line = "teacher mlp_1200 (teacher.model.width=4, teacher.seed=1) on d: 4 test errors"
    assert line in text


def test_machines_and_unnamed_teachers_are_told_apart(home: Path) -> None:
    put(home, "a", precision="bf16", seed=0)
    put(home, "b", precision="fp32", seed=1)
    assert titles(home) == ["precision=bf16", "precision=fp32"]
    put(home, "c", precision="fp32", **taught(4, teacher_digest="x" * 64))
    put(home, "d", precision="fp32", **taught(4, teacher_digest="y" * 64))
    assert {"teacher_digest=xxxxxxxx", "teacher_digest=yyyyyyyy"} <= {
        part for title in titles(home) for part in title.split(", ")
    }


def test_n_is_that_of_the_cell(home: Path) -> None:
    for name, seed, temperature in (("a", 0, 1.0), ("b", 1, 1.0), ("c", 0, 2.0)):
        put(home, name, seed=seed, temperature=temperature, test_errors=seed + 4)
    text = shown(home)
    assert "mean over n seeds" in text
    assert "4.5 (n=2)" in text and "4.0 (n=1)" in text


def test_many_tables_of_few_cells_are_one_with_a_line_a_setting(home: Path) -> None:
    """Two data sets, models and teachers, with two temperatures and three seeds each."""
    for data, model, teacher in product("de", "mn", "tu"):
        for temperature, seed in product((1.0, 2.0), range(3)):
            facts = {"temperature": temperature, "seed": seed, "teacher": teacher}
            name = f"{data}{model}{teacher}{temperature}-{seed}"
            put(home, name, data=data, model=model, test_errors=seed + 4, **facts)
    text = shown(home)
    assert text.count("mean over 3 seeds") == 1 and text.count("5.0") == 16


def test_many_settings_are_listed(home: Path) -> None:
    for k in range(8):
        put(home, f"{k}", lr=0.001 * (k + 1), test_errors=k + 10)
    text = shown(home)
    assert "0.008" in text and "17" in text


BIG = 2**53 + 1


def test_the_summary_is_read_in_its_types_in_each_way(home: Path) -> None:
    config = {"teacher": {"seed": BIG, "jitter": None}, "test": True, "model": {"dropout": 1.0}}
    classes = {"transfer_classes": "3", "test_errors_by_class": "1 2 3"}
    put(home, "a", config=config, **classes, val_errors=4, parameters=5)
    put(home, "b", width=None, test_errors=None, status="failed", reason="NA", config={})
    assert "16.0" not in write_summary(home).to_csv()
    text = (home / "summary.csv").read_text()
    assert str(BIG) in text
    (home / "alone").mkdir()
    (home / "alone" / "summary.csv").write_text(text)
    for frame in (summary(home), distill.summary(home), distill.summary(home / "alone")):
        kinds = {name: str(frame[name].dtype) for name in frame}
        whole = ("width", "seed", "test_errors", "teacher.seed")
        assert {kinds[name] for name in whole} == {"Int64"}
        assert {kinds[n] for n in ("transfer_classes", "test_errors_by_class")} == {"string"}
        assert {kinds["pareto"], kinds["test"]} == {"boolean"}
        assert {kinds[name] for name in ("alpha", "model.dropout")} == {"float64"}
        assert frame["teacher.seed"][0] == BIG
        assert frame["transfer_classes"][0] == "3"
        assert frame["reason"][1] == "NA"
        assert frame["width"].isna().tolist() == [False, True]


def test_a_result_that_may_not_be_read_is_no_failed_one(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(home, "a")
    closed = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr(Path, "read_text", MagicMock(side_effect=closed))
    row = summary(home).iloc[0]
    assert row["status"] == "unreadable"
    assert row["reason"] == f"cannot be read ({home}/a/result.json: Permission denied)"


def test_a_folder_that_one_may_only_read_is_summarised(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(home, "a")
    closed = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(home / ".summary.lock"))
    monkeypatch.setattr(summaries, "write_summary", MagicMock(side_effect=closed))
    monkeypatch.setattr(sys, "argv", ["distill-summary", str(home)])
    commands.summary()
    out = capsys.readouterr().out
    assert "test errors, mean over 1 seed" in out
    assert f"summary.csv could not be written ({home}/.summary.lock: Permission denied)" in out
    assert len(reading.sweep(home).runs) == 1  # from the results themselves
