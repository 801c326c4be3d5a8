"""The report: its figures as plain values and as files; its page in a browser."""

import html
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from distill.report import drawing, figures, page, plots, trials
from distill.report.contents import (
    Best,
    Digit,
    Estimate,
    Finding,
    Gain,
    Importance,
    Study,
    Sweep,
    Trial,
    Unfinished,
)
from distill.report.numbers import Plot, table, varying
from distill.report.style import COLOURS

EVIL = "</script><script>alert('me')</script>&\"|"
T2 = 4.302652729749462  # Student's t for 2 degrees of freedom, 97.5 %


def sweep(*rows: dict[str, Any], name: str = "sweep", **more: Any) -> Sweep:
    """A sweep of complete runs; what a row does not say is as below."""
    shared = {
        "status": "complete", "data": "mnist", "model": "mlp", "width": 30, "loss": "kd",
        "temperature": 4.0, "alpha": 1.0, "transfer": "all", "transfer_classes": None,
        "transfer_fraction": math.nan, "transfer_examples": 60000, "lr": 0.001, "seed": 0,
        "teacher_test_errors": 67, "test_errors": 10, "version": "0.1.0",
    }  # fmt: skip
    runs = pd.DataFrame([{"run": f"run{i}", **shared, **row} for i, row in enumerate(rows)])
    facts = {"commands": ("distill -m",), "curves": None, "digits": (), **more}
    return Sweep(name=name, folder=Path(name), runs=runs, **facts)


def grid(errors: Callable[[float, int, int], float], **more: Any) -> Sweep:
    """Three temperatures, two widths, three seeds."""
    return sweep(
        *(
            {"temperature": t, "width": w, "seed": s, "test_errors": errors(t, w, s)}
            for t in (1.0, 4.0, 20.0)
            for w in (30, 300)
            for s in (0, 1, 2)
        ),
        **more,
    )


SMALL = grid(lambda t, w, s: 100 + t + s - w / 10)
BY_LOSS = [("hard", math.nan, math.nan, 40), ("kd", 20.0, 1.0, 20)]


def shifted(**more: str) -> Sweep:
    rows = [
        {"transfer": "omit", "transfer_classes": "1", "seed": s, "test_errors": 94 + s,
         "test_errors_by_class": f"4 {90 + s}", "bias_shift_test_errors_by_class": f"6 {10 - s}",
         **more}
        for s in (0, 1, 2)
    ]  # fmt: skip
    return sweep(*rows)


def taught() -> Sweep:
    digit = Digit(1, np.zeros((4, 4), np.uint8), np.array([0.0, 4 * math.log(2), 0.0]))
    return sweep({}, digits=(digit,))


def test_settings_are_those_that_vary_and_follow_from_no_other() -> None:
    assert varying(SMALL.runs) == ["width", "temperature"]
    assert varying(SMALL.runs, "temperature") == ["temperature", "width"]
    hard = [{"loss": k, "temperature": t, "alpha": a, "seed": s}
            for k, t, a, _ in BY_LOSS for s in (0, 1)]  # fmt: skip
    assert varying(sweep(*hard).runs) == ["loss"]
    search = [{"temperature": 1.0 + i, "alpha": i / 9, "lr": i * 1e-3} for i in range(5)]
    assert varying(sweep(*search).runs) == ["temperature", "alpha", "lr"]
    paired = [{"temperature": t, "width": w, "epochs": e} for t in (1.0, 2.0)
              for w, e in ((30, 10), (300, 20))]  # fmt: skip
    assert varying(sweep(*paired).runs) == ["width", "temperature"]
    # A teacher of its own for each seed is no setting; several teachers of one seed are.
    own = [{"alpha": a, "seed": s, "teacher.seed": s} for a in (0.0, 1.0) for s in (0, 1, 2)]
    assert varying(sweep(*own).runs) == ["alpha"]
    crossed = [{"seed": s, "teacher.seed": t} for t in (0, 1) for s in (0, 1)]
    assert varying(sweep(*crossed).runs) == ["teacher.seed"]


@pytest.mark.parametrize("key", ["device", "precision", "teacher_digest", "version", "lr", "new"])
def test_a_mean_is_over_seeds_alone(key: str) -> None:
    rows = [{key: v, "seed": s, "temperature": t, "test_errors": 10 * v + s}
            for v in (1, 2) for s in (0, 1) for t in (1.0, 4.0)]  # fmt: skip
    both = sweep(*rows)
    keys, found = table(both.runs)
    assert set(keys) == {"temperature", key}
    assert {(mean.n, mean.mean) for _, mean in found} == {(2, 10.5), (2, 20.5)}
    figures = plots.temperature(both)
    assert {line.y[0].mean for figure in figures for line in figure.lines} == {10.5, 20.5}
    # What nothing in the summary tells apart is not pooled either.
    assert {
        mean.n for _, mean in table(pd.concat([SMALL.runs, SMALL.runs.assign(run="x")]))[1]
    } <= {
        1,
        3,
    }


def test_all_data_and_a_share_of_1_are_not_two_seeds() -> None:
    rows = [{"transfer": "fraction", "transfer_fraction": f, "transfer_examples": int(60000 * f),
             "seed": s, "test_errors": 50} for f in (0.1, 1.0) for s in (0, 1)]  # fmt: skip
    rows += [{"transfer": "all", "seed": s, "test_errors": 10} for s in (0, 1)]
    [found] = plots.data(sweep(*rows))
    assert [(y.n, y.mean) for y in found.lines[0].y] == [(2, 50), (2, 50)]


def test_the_table_has_a_row_a_setting() -> None:
    keys, rows = table(SMALL.runs)
    assert keys == ["width", "temperature"]
    assert len(rows) == 6
    values, found = rows[0]
    assert values == (30, 1.0)
    assert (found.n, found.mean) == (3, 99)
    assert (found.low, found.high) == pytest.approx((99 - T2 / 3**0.5, 99 + T2 / 3**0.5))
    assert table(SMALL.runs.assign(test_errors=math.nan)) == ([], [])


def test_errors_by_temperature_are_a_line_a_width() -> None:
    (found,) = plots.temperature(SMALL)
    assert (found.title, found.setting, found.teacher) == ("test errors by temperature", "", 67)
    assert [(line.label, line.x) for line in found.lines] == [
        ("width 30", (1, 4, 20)), ("width 300", (1, 4, 20)),
    ]  # fmt: skip
    assert [y.mean for y in found.lines[1].y] == [72, 75, 91]
    half = T2 / math.sqrt(3)
    assert found.lines[1].y[0].low == pytest.approx(72 - half)
    assert found.lines[1].y[0].high == pytest.approx(72 + half)
    assert found.caption == (
        "Fewest errors at temperature 1 (99.0, against 118.0 at 20) for width 30; "
        "1 (72.0, against 91.0 at 20) for width 300."
    )


def test_another_setting_makes_a_figure_for_each_of_its_values() -> None:
    rows = [{"temperature": t, "alpha": a, "seed": s, "test_errors": t + a}
            for t in (1.0, 4.0) for a in (0.5, 1.0) for s in (0, 1)]  # fmt: skip
    found = plots.temperature(sweep(*rows))
    assert [(f.setting, f.lines[0].y[0].mean) for f in found] == [
        ("alpha 0.5", 1.5),
        ("alpha 1", 2),
    ]
    (cells,) = plots.weights(sweep(*rows))
    assert (cells.row_values, cells.column_values) == ((1, 4), (0.5, 1))
    assert [[c.mean for c in row if c] for row in cells.cells] == [[1.5, 2], [4.5, 5]]
    assert cells.excess[1] == pytest.approx((2, 5 / 1.5 - 1))  # against the best of all
    assert cells.caption.startswith("Fewest errors (1.5) at temperature 1, alpha 0.5; 1 of 4 cells")


def test_of_many_figures_of_a_kind_the_last_says_what_is_left_out() -> None:
    rows = [{"temperature": t, "alpha": a, "test_errors": 5}
            for t in (1.0, 4.0) for a in range(plots.PANELS + 2)]  # fmt: skip
    found = plots.temperature(sweep(*rows))
    assert len(found) == plots.PANELS
    assert found[0].caption == "Fewest errors at temperature 1 (5, as at all others)."
    assert found[-1].caption.endswith("all others). 2 more such figures are left out.")


def test_of_many_lines_a_figure_shows_some_and_says_so() -> None:
    rows = [{"temperature": t, "width": w, "test_errors": 5}
            for t in (1.0, 4.0) for w in range(1, plots.LINES + 4)]  # fmt: skip
    (found,) = plots.temperature(sweep(*rows))
    assert len(found.lines) == plots.LINES
    assert (found.lines[0].label, found.lines[-1].label) == ("width 1", "width 11")
    assert found.caption.endswith(". 3 more lines are left out.")


def test_temperature_by_width_is_against_the_best_of_each_width() -> None:
    gone = SMALL.runs[~(SMALL.runs.width.eq(300) & SMALL.runs.temperature.eq(4))]
    (found,) = plots.sizes(Sweep("s", Path("s"), gone, (), None, ()))
    assert (found.rows, found.columns) == ("temperature", "width")
    assert found.cells[1][1] is None
    assert math.isnan(found.excess[1][1])
    assert found.excess[0] == (0, 0)
    assert found.excess[2] == pytest.approx((19 / 99, 19 / 72))
    assert found.caption == (
        "The best temperature is 1 at width 30, 1 at width 300; "
        "3 of 5 cells lie within 5 % of the best temperature of each width."
    )


def test_learning_curves_are_means_over_seeds() -> None:
    curves = pd.DataFrame(
        [(f"run{i}", e, 100.0 * i + 10 / e) for i in range(18) for e in (1, 2)],
        columns=["run", "epoch", "test_errors"],
    )
    (found,) = plots.curves(grid(lambda t, w, s: 100 + t + s - w / 10, curves=curves))
    assert [line.label for line in found.lines][:2] == [
        "width 30, temperature 1",
        "width 30, temperature 4",
    ]
    assert found.lines[0].x == (1, 2)
    assert [y.mean for y in found.lines[0].y] == [110, 105]  # runs 0 to 2
    assert found.caption == (
        "After the last epoch, fewest errors are 105.0 with width 30, temperature 1, "
        "most 1605.0 with width 300, temperature 20."
    )


def test_of_many_settings_curves_show_the_one_that_matters_most() -> None:
    rows = [{"temperature": t, "width": w, "test_errors": w + t}
            for t in (1.0, 2.0, 4.0) for w in (30, 100, 300, 800)]  # fmt: skip
    curves = pd.DataFrame([(f"run{i}", e, i + e) for i in range(12) for e in (1, 2)],
                          columns=["run", "epoch", "test_errors"])  # fmt: skip
    (found,) = plots.curves(sweep(*rows, curves=curves))
    assert found.setting == "temperature 1"
    assert [line.label for line in found.lines] == [f"width {w}" for w in (30, 100, 300, 800)]
    many = pd.DataFrame(
        [("run0", e, e) for e in range(1, 601)], columns=["run", "epoch", "test_errors"]
    )
    (long,) = plots.curves(sweep({}, curves=many))
    assert (len(long.lines[0].x), long.lines[0].x[-1]) == (plots.POINTS, 600)


def test_hard_and_soft_are_shown_over_the_examples_they_saw() -> None:
    rows = [
        {"loss": k, "temperature": t, "alpha": a, "seed": s, "test_errors": e * (2 - f) + s,
         "transfer": "all" if f == 1 else "fraction", "transfer_examples": int(60000 * f),
         "transfer_fraction": math.nan if f == 1 else f}
        for k, t, a, e in BY_LOSS for f in (0.03, 1) for s in (0, 1, 2)
    ]  # fmt: skip
    (found,) = plots.data(sweep(*rows))
    assert [(line.label, line.x) for line in found.lines] == [
        ("labels alone", (1800, 60000)), ("soft targets", (1800, 60000)),
    ]  # fmt: skip
    assert [y.mean for y in found.lines[0].y] == pytest.approx([79.8, 41])
    assert found.caption == (
        "79.8 errors at 1800 training examples and 41.0 at 60000 with labels alone; "
        "40.4 errors at 1800 training examples and 21.0 at 60000 with soft targets."
    )


def test_errors_by_learning_rate_are_a_line_a_loss() -> None:
    rows = [{"loss": k, "temperature": t, "alpha": a, "lr": r, "seed": s, "test_errors": e + r}
            for k, t, a, e in BY_LOSS for r in (1.0, 2.0) for s in (0, 1)]  # fmt: skip
    (found,) = plots.learning_rate(sweep(*rows))
    assert [line.label for line in found.lines] == ["labels alone", "soft targets"]
    assert [y.mean for y in found.lines[1].y] == [21, 22]


def test_a_bias_shift_shows_each_class_before_and_after() -> None:
    (found,) = plots.shift(shifted())
    assert found.setting == "transfer omit, transfer classes 1"
    assert [line.label for line in found.lines] == ["before", "after"]
    assert [y.mean for y in found.lines[0].y] == [4, 91]
    assert [y.mean for y in found.lines[1].y] == [6, 9]
    assert found.lines[1].y[1].low == pytest.approx(9 - T2 / math.sqrt(3))
    assert "class 1 from 91.0 to 9," in found.caption
    assert "all classes from 95.0 to 15.0." in found.caption
    (best,) = plots.shift(shifted(oracle_shift_test_errors_by_class="5 8"))
    assert [line.label for line in best.lines][2] == "best for the test set"


def test_the_best_temperature_is_shown_by_width() -> None:
    (found,) = plots.best_temperature(LAW)
    assert found.sizes == (1, 6, 20)
    means = LAW.runs.groupby(["width", "temperature"])["test_errors"].mean().unstack()
    x = np.log(means.columns.to_numpy(float))  # between two of them errors are a line
    crossed = [
        np.interp(-1.05 * row.min(), -row[[k - 1, k]], x[[k - 1, k]])
        for row, k in ((means.loc[6].to_numpy(), 1), (means.loc[20].to_numpy(), 3))
    ]
    assert [y.mean for y in found.least] == pytest.approx([1, *np.exp(crossed)])
    # At 6 the lowest is no worse than the three between the ends, which are all there are.
    assert found.told == ("at most 1.1", "at most 2.3", "6.2 to 8.5")
    assert found.located == (False, False, True)
    assert found.line[0][0] == 1 and found.line[1][0] == 20
    slope = np.polyfit(np.log([1, 6, 20]), [0, *crossed], 1)[0]
    assert found.caption.startswith(
        "Best temperature by width, within 5 % of the fewest errors: at most 1.1 at 1, at most "
        "2.3 at 6, 6.2 to 8.5 at 20. The slope of the logarithm of the least such temperature on "
        f"that of width, from 1 to 20, is {slope:.3f} ["
    )
    assert found.caption.endswith("Hollow: an end of the temperatures is not significantly worse.")


def test_a_slope_is_that_of_widths_up_to_30_or_of_another_size() -> None:
    rows = LAW.runs.assign(width=LAW.runs["width"].map({1: 10, 6: 20, 20: 30}))
    wide = rows[rows["width"] == 30].assign(width=300, test_errors=5)
    wide["test_errors"] = 99 + 60 * np.log(wide["temperature"] / 2) ** 2
    (found,) = plots.best_temperature(replace(LAW, runs=pd.concat([rows, wide])))
    assert [end for end, _ in found.line] == [10, 30]
    assert found.told[-1] == "at most 2.3"
    by_epochs = rows.rename(columns={"width": "epochs"}).assign(width=30)
    both = pd.concat([by_epochs, by_epochs.assign(width=60)])
    drawn = plots.best_temperature(replace(LAW, runs=both))
    assert [(f.x, f.setting) for f in drawn] == [("epochs", "width 30"), ("epochs", "width 60")]


@pytest.mark.parametrize("lacks", ["width", "temperature", "seed", "run"])
def test_too_few_runs_have_no_best_temperature(lacks: str) -> None:
    runs = LAW.runs.assign(run=LAW.runs.index)  # without a run its seed does not count
    assert plots.best_temperature(replace(LAW, runs=runs[runs[lacks] != runs[lacks].max()])) == ()


def test_the_gallery_has_softmax_of_logits_over_temperature() -> None:
    (found,) = plots.gallery(taught())
    assert found.temperatures == (1, 4, 20)
    assert found.probabilities[0][1] == pytest.approx((0.25, 0.5, 0.25))
    assert found.probabilities[0][0][1] == pytest.approx(16 / 18)
    assert "11.1 % at temperature 1, 50.0 % at temperature 4" in found.caption


@pytest.mark.slow
def test_the_gallery_of_many_classes_shows_some() -> None:
    digits = [Digit(n, np.zeros((4, 4), np.uint8), np.eye(100)[n]) for n in range(100)]
    (found,) = plots.gallery(sweep({}, digits=tuple(digits)))
    labels = [digit.label for digit in found.digits]
    assert len(labels) == len(found.probabilities) == 20
    assert labels[0] == 0 and labels[-1] == 99 and labels == sorted(labels)
    drawn = drawing.draw(found)
    assert len(drawn.figure.axes[-1].get_xticks()) == 10


def test_without_what_they_need_there_are_no_figures() -> None:
    assert list(plots.every(sweep({}))) == []
    assert list(plots.every(sweep({"test_errors": math.nan}, {"temperature": 1.0}))) == []
    bare = pd.DataFrame({"run": ["a", "b"], "test_errors": [1, 2]})
    assert list(plots.every(Sweep("s", Path("s"), bare, (), None, ()))) == []
    search = [{"temperature": 1.0 + i, "alpha": i / 40, "lr": i * 1e-3} for i in range(30)]
    assert list(plots.every(sweep(*search))) == []
    val = SMALL.runs.rename(columns={"test_errors": "val_errors"})
    (found,) = plots.temperature(Sweep("s", Path("s"), val, (), None, ()))
    assert (found.unit, found.teacher) == ("validation errors", None)


STUDY = Study(
    f"study {EVIL}", ("val_errors", "parameters"), {f"key {EVIL}": "log", "kind": "choices"},
    (
        Trial(0, "complete", {f"key {EVIL}": 1.0, "kind": EVIL}, (90.0, 50.0)),
        Trial(1, "complete", {f"key {EVIL}": 9.0, "kind": "z"}, (4.0, 5000.0)),
        Trial(2, "stopped", {f"key {EVIL}": 9.5, "kind": EVIL}, (99.0, 700.0), EVIL),
        Trial(3, "diverged", {f"key {EVIL}": 99.0, "kind": "z"}, (), f"the loss {EVIL}"),
        Trial(4, "failed", {f"key {EVIL}": 3.0, "kind": "z"}, (), EVIL),
        Trial(5, "complete", {f"key {EVIL}": 4.0, "kind": "z"}, (95.0, 600.0)),
    ),
    (Best(0, 100, f"distill {EVIL}"), Best(1, None, f"distill {EVIL}")),
    (Importance(f"errors {EVIL}", 12, {f"key {EVIL}": 0.75, "kind": 0.25}),
     Importance("errors", 3, {}, "too few to say.")),
    Gain({f"key {EVIL}": 2.0}, 1, ((100.0, 130.0),), (f"distill -m {EVIL}",)),
    (f"a storage {EVIL}",),
)  # fmt: skip

HISTORY = pd.DataFrame(
    [(f"run{i}", e, 10.0 * i + 20 / e) for i in range(18) for e in (1, 2, 3)],
    columns=["run", "epoch", "test_errors"],
)
FAR = grid(lambda t, w, s: (1000 if w == 30 else 100) * (1 + t / 40) + 40 * s, curves=HISTORY)
ALL = [*plots.every(FAR), *plots.every(shifted()), *plots.every(taught()), *plots.every(SMALL)]
ALL += trials.every(STUDY)
LAW = sweep(*(
    {"temperature": t, "width": w, "seed": s, "test_errors": 99 + 60 * math.log(3 * t / w) ** 2 + s}
    for t in (1.0, 2.0, 4.0, 8.0, 20.0) for w in (1, 6, 20) for s in (0, 1, 2)
))  # fmt: skip
ALL += plots.best_temperature(LAW)


@pytest.mark.slow
@pytest.mark.parametrize("plot", ALL, ids=lambda plot: plot.kind)
def test_figures_are_files_with_their_values(plot: Plot, tmp_path: Path) -> None:
    svg = figures.save(plot, tmp_path, "one")
    again = tmp_path / "again"
    assert figures.save(plot, again, "one") == svg
    for name in ("one.svg", "one.png"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG\r\n")
    root = ElementTree.parse(tmp_path / "one.svg").getroot()
    assert root.tag == f"{{{figures.SVG}}}svg"
    values = [e for e in root.iter() if e.get("class") == "value"]
    wide, high = map(float, str(root.get("viewBox")).split()[2:])
    assert values
    for value in values:
        assert value.get("data-tip") == value[0].text
        assert 0 < float(str(value.get("cx"))) < wide
        assert 0 < float(str(value.get("cy"))) < high
    ids = [str(e.get("id")) for e in root.iter() if e.get("id")]
    assert all(i.startswith("one-") for i in ids)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', ElementTree.tostring(root, "unicode")))
    assert used <= set(ids)
    left = set(re.findall(r"#[0-9a-f]{6}\b", svg))
    assert not left & {light for light, _ in COLOURS.values()}, "colours that follow no theme"


@pytest.mark.parametrize(
    "plot",
    [*plots.temperature(SMALL), *trials.every(STUDY), *plots.best_temperature(LAW)],
    ids=lambda plot: plot.kind,
)
def test_values_lie_where_they_are_drawn(plot: Plot, tmp_path: Path) -> None:
    root = ElementTree.fromstring(figures.save(plot, tmp_path, "one"))
    drawn = [
        (float(str(use.get("x"))), float(str(use.get("y"))))
        for use in root.iter(f"{{{figures.SVG}}}use")
    ]
    for value in (e for e in root.iter() if e.get("class") == "value"):
        place = (float(str(value.get("cx"))), float(str(value.get("cy"))))
        assert min(math.dist(place, other) for other in drawn) < 0.5


def test_trials_without_a_value_lie_above_all_that_have_one(tmp_path: Path) -> None:
    root = ElementTree.fromstring(figures.save(trials.history(STUDY), tmp_path, "one"))
    found = [(e[0].text or "", float(str(e.get("cy")))) for e in root.iter() if len(e) and
             e.get("class") == "value"]  # fmt: skip
    without = [y for words, y in found if ", diverged" in words or ", failed" in words]
    assert len(without) == 2
    assert max(without) < min(y for _, y in found if y not in without) - 5


def test_themes_are_legible() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for theme in (0, 1):
        grounds = {n: luminance(c[theme]) for n, c in COLOURS.items()}
        for name, value in grounds.items():
            on = "ink" if name.startswith("heat") else "card"
            low, high = sorted((value, grounds[on]))
            least = 1 if name in ("rule", "card") else 4.5
            assert (high + 0.05) / (low + 0.05) >= least, (name, theme)
    assert len(drawing.LINE) == len(drawing.MARKERS) == plots.LINES


FINDINGS = (
    Finding(
        "C3", f"Soft targets help {EVIL}", "74 | 146", (
            Estimate("T = 20", 10, 74.3, 70.1, 78.5), Estimate("alone", 1, 141, math.nan, math.nan),
        ), "reproduced", "a paired test", "p = 0.001", EVIL, f"distill -m {EVIL}", "0.1.0",
    ),
    Finding("C5", "Low is best", "a sentence", (), "not decided", "t", "o", "x", "distill", "0"),
)  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    evil = grid(
        lambda t, w, s: 200 + t + s - w / 2,
        name=EVIL,
        commands=(f"distill {EVIL}",),
        curves=HISTORY,
    )
    lacks = ("1 missing",), (f"model.kind={EVIL}: 1 run", f"data={'x' * 200}: 1 run")
    evil = replace(evil, unfinished=Unfinished(17, 18, *lacks, training=(EVIL,)))
    evil.runs["data"] = EVIL
    evil.runs["model.kind"] = np.where(evil.runs.index % 2, EVIL, "z")
    quick = grid(lambda t, w, s: 100 + t + s - w / 10, name="quick", studies=(STUDY,))
    sweeps = [evil, quick, shifted(), taught(), sweep({}, name="alone")]
    return page.write(tmp_path_factory.mktemp("report"), FINDINGS, sweeps)


@pytest.mark.slow
def test_sweeps_of_one_name_keep_their_own_figures(tmp_path: Path) -> None:
    text = page.write(tmp_path, [], [SMALL, FAR]).read_text()
    for name in ("sweep-temperature", "sweep-2-temperature"):
        assert (tmp_path / "figures" / f"{name}.svg").is_file()
    assert text.count('<h2 id="sweep-sweep">') == text.count('<h2 id="sweep-sweep-2">') == 1
    assert [p.name for p in tmp_path.rglob(".*")] == []  # nothing half-written stays


class Links(HTMLParser):
    """What a page names elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        names = {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}
        found = [value or "" for name, value in attrs if name in names]
        (self.linked if tag == "a" else self.loaded).extend(found)


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_escapes_everything(report: Path) -> None:
    text = report.read_text()
    links = Links()
    links.feed(text)
    assert links.scripts == 1
    assert "<script>alert" not in text
    assert text.count("&lt;/script&gt;&lt;script&gt;alert(") > 10
    assert all(url.startswith(("#", "data:image/png;base64,")) for url in links.loaded)
    for url in links.linked:
        assert f'id="{url[1:]}"' in text if url.startswith("#") else (report.parent / url).is_file()
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_the_page_says_what_was_found(report: Path) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", report.read_text()).split())
    for said in (
        "1 reproduced, 1 not decided. 5 sweeps, 41 runs.",
        "74.3 [70.1, 78.5] test errors, n&nbsp;=&nbsp;10",
        "141.0 test errors", "a paired test", "p = 0.001", "1 complete run on mnist",
        "Fewest errors at temperature 1 (99.0, against 118.0 at 20) for width 30;",
        "6 trials: 3 complete, 1 stopped, 1 diverged, 1 failed. Searched:",
        "2 of 3 complete trials are on the front, from 90 validation errors, 50 parameters to 4",
        "75 %", "errors, n = 3: too few to say.", "a gain of 30.0, n = 1 seed.",
    ):  # fmt: skip
        assert said in text
    assert len(list((report.parent / "figures").glob("quick-temperature.*"))) == 2


def test_the_page_opens_with_what_holds_what_does_not_and_what_is_new(tmp_path: Path) -> None:
    law = replace(FINDINGS[0], id="S1", verdict="not reproduced")
    text = page.write(tmp_path, [*FINDINGS, law], [SMALL]).read_text()
    start, end = text.index('<h2 id="short">'), text.index('<h2 id="verdicts">')
    parts = re.split("<h3>(.+?)</h3>", text[start:end])[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    found = {head: re.findall(r'href="(#finding-\d)">(\w+)', part) for head, part in pairs}
    assert found == {
        "What holds": [("#finding-1", "C3")],
        "Not decided": [("#finding-2", "C5")],
        "New here": [("#finding-3", "S1")],
    }
    assert "T = 20 <b>74.3 [70.1, 78.5]</b> test errors" in parts[1]
    assert "not reproduced" in parts[-1]


def test_the_markdown_table_is_one_line_a_finding() -> None:
    lines = page.markdown(FINDINGS).splitlines()
    assert lines[0] == "| | claim | source | ours: mean, 95 % interval | verdict |"
    assert lines[1] == "|---|---|---|---|---|"
    assert len(lines) == 4
    assert r"| 74 \| 146 | T = 20: 74.3 [70.1, 78.5] test errors, n = 10 | reproduced |" in lines[2]
    assert "&lt;script&gt;" in lines[2]
    assert lines[3] == "| C5 | Low is best | a sentence |  | not decided |"
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in lines)


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

# In a page around the report's: clicks, points and measures in it, and writes what it saw.
PROBE = """
const frame = document.getElementById("frame");
frame.addEventListener("load", () => {
  const w = frame.contentWindow, d = w.document, seen = {};
  const root = d.documentElement;
  seen.width = w.innerWidth;
  seen.wide = root.scrollWidth;
  const tables = [...d.querySelectorAll(".sortable")];
  const table = tables.find((t) => t.rows[0].cells[2].textContent === "mean");
  const column = (n) => [...table.tBodies[0].rows].map((r) => r.cells[n].textContent);
  const press = (n) => table.rows[0].cells[n].querySelector("button").click();
  press(2); seen.up = column(2); press(2); seen.down = column(2);
  seen.sorted = [...table.rows[0].cells].map((c) => c.getAttribute("aria-sort"));
  const svg = d.querySelector("figure svg"), mark = svg.querySelector(".value");
  const tip = d.getElementById("tip");
  seen.before = tip.hidden;
  svg.scrollIntoView();
  const box = mark.getBoundingClientRect();
  const at = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true };
  svg.dispatchEvent(new w.PointerEvent("pointerdown", at));
  seen.tip = tip.textContent; seen.asked = mark.dataset.tip; seen.shown = !tip.hidden;
  const there = tip.getBoundingClientRect();
  seen.inside = there.left >= 0 && there.right <= w.innerWidth && there.top >= 0;
  svg.dispatchEvent(new w.KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  seen.next = tip.textContent; seen.second = svg.querySelectorAll(".value")[1].dataset.tip;
  d.body.dispatchEvent(new w.PointerEvent("pointerdown", { bubbles: true }));
  seen.after = tip.hidden;
  const ground = () => w.getComputedStyle(root).backgroundColor, button = d.getElementById("theme");
  seen.themes = [];
  for (let i = 0; i < 2; i++) { button.click(); seen.themes.push([root.dataset.theme, ground()]); }
  const high = (text) => text.getBoundingClientRect().height;
  const words = [...d.querySelectorAll("figure svg text")].filter((t) => t.textContent.trim());
  seen.small = Math.min(...words.map(high));
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
"""


def browse(report: Path, folder: Path, width: int) -> dict[str, Any]:
    """What the probe saw in the report at ``width`` pixels, which a window may be too wide for."""
    frame = html.escape(report.read_text())
    (folder / "probe.html").write_text(
        f'<!doctype html><pre id="seen"></pre><iframe id="frame" srcdoc="{frame}" '
        f'style="width:{width}px;height:800px;border:0"></iframe><script>{PROBE}</script>'
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000"]
    profile = f"--user-data-dir={folder / 'profile'}"
    url = (folder / "probe.html").as_uri()
    command = [str(BROWSER), *options, profile, "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    said = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert said, done.stderr
    seen: dict[str, Any] = json.loads(html.unescape(said[1]))
    return seen


@pytest.mark.skipif(BROWSER is None, reason="no browser: install chromium to test the page in it")
@pytest.mark.parametrize("width", [360, pytest.param(1600, marks=pytest.mark.slow)])
def test_the_page_works_in_a_browser(report: Path, tmp_path: Path, width: int) -> None:
    seen = browse(report, tmp_path, width)
    assert seen["width"] == width
    assert seen["wide"] <= width, "the page is wider than the screen"
    assert len(seen["up"]) == 6
    assert seen["up"] == sorted(seen["up"], key=float) != seen["down"]
    assert seen["down"] == sorted(seen["down"], key=float, reverse=True)
    assert seen["sorted"][:3] == ["none", "none", "descending"]
    assert seen["before"]
    assert seen["shown"]
    assert seen["inside"]
    assert seen["tip"] == seen["asked"]
    assert "test errors" in seen["tip"]
    assert seen["next"] == seen["second"] != seen["tip"]
    assert seen["after"]
    (first, one), (second, other) = seen["themes"]
    assert {first, second} == {"dark", "light"}
    assert one != other
    assert seen["small"] >= 9, "text too small to read"
