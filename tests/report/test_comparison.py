"""The reference's comparisons of losses: each figure a second time, by pandas and scipy alone."""

import json
import re
from dataclasses import replace

import pandas as pd
import pytest
from conftest import reference
from scipy import stats

from distill.report.comparison import FILE, led, markdown, remarks
from distill.report.plots import every
from distill.runs.results import SUMMARY
from distill.system.conf import CONF

REFERENCE = CONF.parent / "multirun" / "reference"
SWEEPS = sorted(path.parent.name for path in REFERENCE.glob(f"*/{FILE}"))


def plainly(folder: str) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Test errors, seeds by candidates; and of each reference means, intervals and p values."""
    told = json.loads((REFERENCE / folder / FILE).read_text(encoding="utf-8"))
    runs = pd.read_csv(REFERENCE / folder / SUMMARY).set_index("run")
    errors = pd.DataFrame(
        {
            name: runs.loc[own["runs"]].set_index("seed")["test_errors"]
            for name, own in told["candidates"].items()
        }
    )
    tables = {}
    for name in told["references"]:
        less = errors.drop(columns=name).sub(errors[name], axis=0)
        found = stats.ttest_1samp(less, 0)
        table = pd.DataFrame({"mean": less.mean(), "p": found.pvalue})
        table["low"], table["high"] = found.confidence_interval()
        table = table.sort_values("p")
        factors = range(len(table), 0, -1)
        table["p"] = (table["p"] * [*factors]).cummax().clip(upper=1)
        tables[name] = table
    return errors, tables


def test_there_are_comparisons() -> None:
    assert {"compare_mnist_30", "compare_fashion_30"} <= {*SWEEPS}


@pytest.mark.parametrize("name", SWEEPS)
def test_each_difference_is_found_a_second_time(name: str) -> None:
    errors, tables = plainly(name)
    [compared] = reference()[name].comparisons
    assert {c.name for c in compared.candidates} == {*errors}
    assert len(errors) == len(errors.dropna()) == len(compared.seeds) == 10
    for candidate in compared.candidates:
        assert [*candidate.errors] == [*errors[candidate.name].sort_index()]
        assert {*candidate.differences} == {*tables} - {candidate.name}
        for of, difference in candidate.differences.items():
            row = tables[of].loc[candidate.name]
            found = difference.found
            assert (found.mean, found.low, found.high, difference.p) == pytest.approx(
                (row["mean"], row["low"], row["high"], row["p"])
            )
            verdict = "not decided"
            if row["p"] < 0.05:
                verdict = "better" if row["mean"] < 0 else "worse"
            assert difference.verdict == verdict


@pytest.mark.parametrize("name", SWEEPS)
def test_each_candidate_had_as_many_trials_on_validation_errors_alone(name: str) -> None:
    told = json.loads((REFERENCE / name / FILE).read_text(encoding="utf-8"))
    runs = pd.read_csv(REFERENCE / name / SUMMARY, low_memory=False)
    finals = {run for own in told["candidates"].values() for run in own["runs"]}
    tried = runs[~runs["run"].isin(finals)]
    assert tried["test_errors"].isna().all()
    assert {*tried["seed"]} == {told["seed"]}
    assert told["seed"] not in told["seeds"]
    for own in told["candidates"].values():
        assert sum(own["trials"].values()) == told["trials"] == 32


@pytest.mark.parametrize("name", SWEEPS)
def test_what_teachers_are_worth_is_told(name: str) -> None:
    told = json.loads((REFERENCE / name / FILE).read_text(encoding="utf-8"))
    runs = pd.read_csv(REFERENCE / name / SUMMARY, low_memory=False).set_index("run")
    taught = runs.loc[told["candidates"]["kd"]["runs"], "teacher_test_errors"]
    half = stats.t.ppf(0.975, len(taught) - 1) * stats.sem(taught)
    low, high = taught.mean() - half, taught.mean() + half
    errors, _ = plainly(name)
    alone = ["label_smoothing", "labels", "labels_longer"]
    better = [c for c in alone if errors[c].mean() < taught.mean()]
    assert bool(better) == ("fashion" in name and "cnn" not in name)
    [compared] = reference()[name].comparisons
    [line] = [x for x in led(compared) if x.startswith("Teachers make")]
    numbers = [float(x) for x in re.findall(r"[\d.]*\d", line)]
    assert numbers == [round(x, 1) for x in (taught.mean(), low, high)]
    assert bool(remarks(compared)) == bool(better)  # which are warnings: all runs are there
    told = " ".join(remarks(compared))
    assert all((f"{c} {errors[c].mean():.1f}" in told) == (c in better) for c in alone)
    assert {*remarks(compared)} <= {*led(compared)}


def test_settings_that_were_chosen_together_are_not_drawn_one_by_one() -> None:
    sweep = reference()[SWEEPS[0]]
    assert not [*every(sweep)]  # without the runs' folders there are no digits either
    assert [*every(replace(sweep, comparisons=()))]


def test_the_table_that_is_told_follows_from_them() -> None:
    said = (REFERENCE / "README.md").read_text(encoding="utf-8")
    assert markdown([reference()[name] for name in SWEEPS]) in said
    assert markdown([]) == ""
    cells = re.findall(r"\| ttm \| ([\d.]+) ", said)
    assert [float(cells[0])] == [round(plainly(SWEEPS[0])[0]["ttm"].mean(), 1)]
