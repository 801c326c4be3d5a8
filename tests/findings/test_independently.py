"""Each figure of a claim of the paper computed a second time, by plain pandas and scipy."""

import math
import re
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from conftest import reference
from designs import (
    Rows,
    ensembles,
    fractions,
    made_sweep,
    mixed,
    networks,
    posts,
    rates,
    rows,
    shifted,
    temperatures,
    valley,
)
from scipy import stats

from distill.findings.claims import CLAIMS
from distill.report.contents import Estimate, Sweep

pytestmark = pytest.mark.usefixtures("ruled")
Figures = Callable[["pd.DataFrame", "re.Match[str]"], "pd.Series[float]"]
ALPHA = {"2/3": 0.6667, "0.9": 0.9, "1": 1.0}
COLUMNS = {"test set": "oracle", "training images": "bias", "any label": "mass"}


def of(runs: pd.DataFrame, column: str = "test_errors") -> "pd.Series[float]":
    return runs.set_index("seed")[column].astype(float)


def weighed(runs: pd.DataFrame, alpha: str) -> pd.DataFrame:
    return runs[runs["alpha"] == ALPHA[alpha]]


def stated(runs: pd.DataFrame) -> pd.DataFrame:
    return weighed(runs, "2/3")


def at(runs: pd.DataFrame, temperature: str) -> pd.DataFrame:
    return runs[runs["temperature"] == float(temperature)]


def banded(runs: pd.DataFrame) -> "pd.Series[float]":
    return runs[runs["temperature"].between(2.5, 4)].groupby("seed")["test_errors"].mean()


def threes(texts: "pd.Series[str]") -> "pd.Series[float]":
    return texts.str.split().str[3].astype(float)


def shift_of(words: str) -> str:
    return next((name for how, name in COLUMNS.items() if how in words), "oracle")


def omitted(runs: pd.DataFrame, column: str) -> "pd.Series[float]":
    return threes(stated(runs).set_index("seed")[column])


def longest(runs: pd.DataFrame) -> "pd.Series[float]":
    best = runs["test_errors"] <= 1.1 * runs.groupby("seed")["test_errors"].transform("min")
    return runs[best].groupby("seed")["lr"].max().astype(float).map(np.log2)


def soft_steps(runs: pd.DataFrame, temperature: str) -> "pd.Series[float]":
    return longest(runs[(runs["alpha"] == 1) & (runs["temperature"] == float(temperature))])


def share(runs: pd.DataFrame, words: "re.Match[str]") -> "pd.Series[float]":
    hard = words[1].startswith("hard")
    own = runs[(runs["alpha"] == (0 if hard else 1))]
    own = own[own["transfer_fraction"] == float(words[2]) / 100]
    return of(own, "best_test_errors" if hard else "test_errors")


def posted(runs: pd.DataFrame, words: "re.Match[str]") -> "pd.Series[float]":
    column = "test_shifted_errors" if words[2] == "shifted" else "test_errors"
    if words[1] == "teacher":
        return runs.drop_duplicates("teacher_digest")[f"teacher_{column}"].astype(float)
    return of(runs[runs["alpha"].gt(0) == (words[1] == "distilled student")], column)


def best(runs: pd.DataFrame) -> pd.DataFrame:
    """The tested runs at the temperature and alpha with the fewest mean validation errors."""
    tested = runs["test"].astype(bool)
    pairs = runs["temperature"].astype(str) + " " + runs["alpha"].astype(str)
    chosen = runs[~tested].groupby(pairs)["val_errors"].mean().idxmin()
    return runs[tested & (pairs == chosen)]


def percent(errors: "pd.Series[float]") -> "pd.Series[float]":
    return errors / 100


FIGURES: dict[str, dict[str, Figures]] = {
    "C1": {"teacher": lambda r, _: r.drop_duplicates("teacher_digest")["teacher_test_errors"]},
    "C2": {"hard student": lambda r, _: of(r[r["alpha"] == 0])},
    "C3": {
        "distilled student, alpha (.+)": lambda r, w: of(weighed(r, w[1])),
        "errors fewer than .+": lambda r, _: of(r[r["alpha"] == 0]) - of(stated(r)),
    },
    "C4": {
        r"(\d+) units, T = (.+)": lambda r, w: of(
            at(weighed(r[r["width"] == int(w[1])], "1"), w[2])
        ),
        "300 units, alpha 2/3, T = (.+)": lambda r, w: of(at(stated(r), w[1])),
    },
    "C5": {
        "30 units, T = (.+)": lambda r, w: of(at(weighed(r, "1"), w[1])),
        "30 units, T from 2.5 to 4": lambda r, _: banded(weighed(r, "1")),
        "alpha 2/3, T = (.+)": lambda r, w: of(at(stated(r), w[1])),
        "alpha 2/3, T from 2.5 to 4": lambda r, _: banded(stated(r)),
    },
    "C6": {
        "no 3 seen, .+": lambda r, _: of(stated(r)),
        "of them threes": lambda r, _: omitted(r, "test_errors_by_class"),
        "threes mended by a shift (.+)": lambda r, w: (
            omitted(r, "test_errors_by_class")
            - omitted(r, f"{shift_of(w[1])}_shift_test_errors_by_class")
        ),
        "its shift, (.+)": lambda r, w: of(stated(r), f"{shift_of(w[1])}_shift"),
        "after a shift (.+)": lambda r, w: of(stated(r), f"{shift_of(w[1])}_shift_test_errors"),
        "alpha (.+), after the shift": lambda r, w: of(
            weighed(r, w[1]), "oracle_shift_test_errors"
        ),
    },
    "C7": {
        "only 7 and 8 seen, .+": lambda r, _: percent(of(stated(r))),
        "mended by a shift (.+)": lambda r, w: percent(
            of(stated(r)) - of(stated(r), f"{shift_of(w[1])}_shift_test_errors")
        ),
        "its shift": lambda r, _: of(stated(r), "oracle_shift"),
        "after a shift (.+)": lambda r, w: percent(
            of(stated(r), f"{shift_of(w[1])}_shift_test_errors")
        ),
        "alpha (.+), after the shift": lambda r, w: percent(
            of(weighed(r, w[1]), "oracle_shift_test_errors")
        ),
    },
    "C8": {r"(.+), (\d+) % of the data": share},
    "C9": {
        "log2 of the longest step borne, hard": lambda r, _: longest(r[r["alpha"] == 0]),
        "log2 of the longest step borne, soft, T = (.+)": lambda r, w: soft_steps(r, w[1]),
        "soft over hard, T = (.+)": lambda r, w: soft_steps(r, w[1]) - longest(r[r["alpha"] == 0]),
    },
    "C10": {
        "single model": lambda r, _: of(r[r["alpha"] == 0]),
        "distilled single model": lambda r, _: of(best(r)),
        "ensemble": lambda r, _: of(best(r), "teacher_test_errors"),
        "single model, test loss": lambda r, _: of(r[r["alpha"] == 0], "test_loss"),
        "distilled, test loss": lambda r, _: of(best(r), "test_loss"),
    },
    "C13": {"(.+), (shifted|centred) images": posted},
}
BESIDE = [r | {"alpha": a, "test_errors": 90 + r["seed"]} for a in (0.9, 1.0) for r in rows(10, 9)]
SHIFTED = [*shifted(206, 100, 12), *(r | {"alpha": 1.0} for r in shifted(210, 90, 12))]
LABELLED = [
    r | {"alpha": 0.6667}
    for r in temperatures(lambda t: 90 + t / 30, 300, 9, 12)
    if r["temperature"] in (10, 20, 100)
]
MADE: dict[str, Rows] = {
    "C1": networks(140, 75, 60),
    "C2": networks(140, 75, 60),
    "C3": [*networks(140, 75, 60), *BESIDE],
    "C4": [
        *LABELLED,
        *temperatures(lambda _: 110, 300, n=24),
        *temperatures(lambda t: 90 + t / 20, 800, n=12),
    ],
    "C5": [*temperatures(valley, 30), *temperatures(lambda t: 80 + t, 30, alpha=0.6667)],
    "C6": [r | {"transfer_classes": "3"} for r in SHIFTED],
    "C7": [r | {"transfer_classes": "7 8"} for r in SHIFTED],
    "C8": fractions(100),
    "C9": mixed(rates(1 / 4, 1 / 2, 1), rates(1 / 4, 1 / 2, 2), 3),
    "C10": ensembles(140, 110, 115),
    "C13": posts(100, 125, 110),
}


def sweeps(claim: str) -> list[Sweep]:
    """Runs made up, and those of the reference that its verdict is of."""
    one = next(c for c in CLAIMS if c.id == claim)
    known = [sweep for sweep in reference().values() if one.judge(sweep).suffices]
    return [made_sweep(claim, MADE[claim]), *known]


@pytest.mark.slow
@pytest.mark.parametrize("claim", FIGURES)
def test_each_figure_of_a_claim_is_that_of_plain_pandas_and_scipy(claim: str) -> None:
    one = next(c for c in CLAIMS if c.id == claim)
    for sweep in sweeps(claim):
        judged = one.judge(sweep)
        runs = sweep.runs[sweep.runs[one.evidence].astype(str).isin(judged.evidence)]
        runs = runs.assign(alpha=runs["alpha"].astype(float))
        assert judged.finding.estimates
        before = ""
        for found in judged.finding.estimates:
            if found.label == "threes of them":  # after the shift of the figure before it
                name = shift_of(before)
                values = omitted(runs, f"{name}_shift_test_errors_by_class")
            else:
                values = second(claim, found, runs)
            agree(found, values)
            before = found.label


def second(claim: str, found: Estimate, runs: pd.DataFrame) -> "pd.Series[float]":
    """The values of seeds that a figure is of, by its label."""
    for label, make in FIGURES[claim].items():
        if words := re.fullmatch(label, found.label):
            return make(runs, words).dropna()
    raise AssertionError(f"{found.label}: it is computed once")


def agree(found: Estimate, values: "pd.Series[float]") -> None:
    n, mean = len(values), values.mean()
    assert found.n == n, found.label
    assert found.mean == pytest.approx(mean), found.label
    spread = values.std()
    if found.unit == "octaves":  # uniform within one, and a difference of two such
        spread = max(spread, math.sqrt((2 if " over " in found.label else 1) / 12))
    if values.nunique() > 1 or found.unit == "octaves":
        low, high = stats.t.interval(0.95, n - 1, mean, spread / math.sqrt(n))
        assert (found.low, found.high) == pytest.approx((low, high)), found.label


@pytest.mark.parametrize(("taught", "figure"), [(60, 67), (73, 67), (74, 67), (80, 67)])
def test_non_inferiority_is_the_t_test_of_scipy(taught: float, figure: float) -> None:
    sweep = made_sweep("C1", networks(140, 75, taught))
    found = next(c for c in CLAIMS if c.id == "C1").judge(sweep).finding
    values = sweep.runs.drop_duplicates("teacher_digest")["teacher_test_errors"]
    less, more = (
        stats.ttest_1samp(values, 1.1 * figure, alternative=way).pvalue
        for way in ("less", "greater")
    )
    wanted = "reproduced" if less < 0.05 else "not reproduced" if more < 0.05 else "not decided"
    assert found.verdict == wanted
    n, mean, spread = len(values), values.mean(), values.std()
    half = stats.t.ppf(0.975, n - 1) * spread * math.sqrt(1 + 1 / n)
    assert f"one run within [{mean - half:.4g}, {mean + half:.4g}]" in found.outcome


def judged(claim: str, made: Rows) -> tuple[str, pd.DataFrame]:
    sweep = made_sweep(claim, made)
    return next(c for c in CLAIMS if c.id == claim).judge(sweep).finding.outcome, sweep.runs


def p_above(values: "pd.Series[float]", than: float = 0.0) -> float:
    return float(stats.ttest_1samp(values.dropna(), than, alternative="greater").pvalue)


def apart(one: "pd.Series[float]", other: "pd.Series[float]", margin: float) -> float:
    """Schuirmann's test of two that are alike within a margin."""
    return max(p_above(one - other, -margin), p_above(other - one, -margin))


def test_the_pairs_of_temperatures_are_those_of_scipy() -> None:
    noisy = temperatures(lambda t: 110 + t / 60, 300, 9, 24)
    outcome, runs = judged(
        "C4", [*LABELLED, *noisy, *temperatures(lambda t: 90 + t / 30, 800, 7, 12)]
    )
    for width, margin in ((300, 8), (800, 11)):
        table = runs[(runs["width"] == width) & (runs["alpha"] == 1)].pivot(
            index="seed", columns="temperature", values="test_errors"
        )
        high = table
        share = 0.05 * float(high.mean().mean())
        pairs = [*combinations(high, 2)]
        largest, narrow = (max(apart(high[a], high[b], m) for a, b in pairs)
                           for m in (margin, share))  # fmt: skip
        assert 1e-9 < largest < narrow
        said = f"{width} units: means of T = 10 to 100 at most {np.ptp(high.mean()):.1f} errors"
        assert said in outcome
        own = outcome[outcome.index(said) :].partition("; each pair within ")[2]
        assert own.startswith(f"{margin}: largest p = {largest:.2g} (T = ")
        assert f"; within 5 % ({share:.1f}): largest p = {narrow:.2g}" in own
    table = stated(runs).pivot(index="seed", columns="temperature", values="test_errors")
    largest = max(apart(table[a], table[b], 8) for a, b in combinations(table, 2))
    said = f"means at most {np.ptp(table.mean()):.1f} errors apart; each pair within 8: largest p"
    assert f"with labels in the loss (alpha 2/3) {said} = {largest:.2g} (T = " in outcome


@pytest.mark.parametrize("alpha", [1.0, 0.6667])
def test_each_temperature_against_the_band_is_that_of_scipy(alpha: float) -> None:
    pure = temperatures(valley, 30, 15)
    labelled = temperatures(lambda t: 240 + 20 * abs(math.log2(t / 3)), 30, 20, alpha=0.6667)
    outcome, runs = judged("C5", [*pure, *labelled])
    own = runs[runs["alpha"] == alpha]
    band = banded(own)
    others = [t for t in sorted({*own["temperature"]}) if not 2.5 <= t <= 4]
    more = {t: of(at(own, t)) - band for t in others}
    p_values = {t: p_above(values) for t, values in more.items()}
    said = outcome.split("; with labels in the loss (alpha 2/3) ")[alpha < 1]
    told = re.findall(r"([-\d.]+) \[\S+, \S+\], n = 20 at T = (\S+) \(p = (\S+)\)", said)
    assert [(float(t), p) for _, t, p in told] == [(t, f"{p:.2g}") for t, p in p_values.items()]
    assert [float(mean) for mean, *_ in told] == [
        pytest.approx(more[t].mean(), abs=0.06) for t in others
    ]
    best = own.groupby("temperature")["test_errors"].mean().idxmin()
    assert f"; the fewest are at T = {best:g}" in said


@pytest.mark.parametrize("claim", ["C6", "C7"])
@pytest.mark.parametrize("of_them", [22, 24, 25, 26, 40])
def test_that_more_than_half_is_mended_is_the_t_test_of_scipy(claim: str, of_them: int) -> None:
    classes = "3" if claim == "C6" else "7 8"
    made = shifted(206, 106 - of_them / 10, 12, of=of_them, transfer_classes=classes)
    outcome, runs = judged(claim, made)
    before, after = "test_errors", "oracle_shift_test_errors"
    if claim == "C6":
        first, second = (omitted(runs, f"{column}_by_class") for column in (before, after))
    else:
        first, second = (percent(of(stated(runs), column)) for column in (before, after))
    what = f"{'threes ' if claim == 'C6' else ''}mended by a shift chosen on the test set: "
    mean = (first - second).mean()
    told = re.search(
        rf"{what}(\S+) \[.+?\], n = 10, of (\S+) before it, more than half: p = ([^;]+)", outcome
    )
    assert told, outcome
    assert float(told[1]) == pytest.approx(mean, rel=0.01)
    assert told[2] == f"{first.mean():.4g}"
    assert told[3] == f"{p_above(first / 2 - second):.2g}"
