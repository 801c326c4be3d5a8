"""Results and the summary: rebuilt from files, tidy, complete."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from distill import results, tables
from distill.columns import COLUMNS
from distill.results import leaves, summary, write, write_summary


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
    put(home, "b", temperature=4.0, teacher="none")
    put(home, "a", status="failed", reason='why, "so"\nand more', test_errors=None)
    write_summary(home)
    frame = pd.read_csv(home / "summary.csv")
    assert list(frame.columns) == [*COLUMNS, "model.depth"]
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


def test_a_sweep_without_a_complete_run_has_no_table(home: Path) -> None:
    put(home, "a", status="failed", reason="r", test_errors=None)
    assert "1 run (1 failed)" in shown(home)


keys = st.text(st.characters(codec="utf-8", exclude_characters="."), min_size=1, max_size=5)
nested = st.recursive(
    st.dictionaries(keys, st.integers(), min_size=1, max_size=3),
    lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3),
)


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
    assert len(results.summary(home / results.EARLIER)) == 1


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
