"""The law of the best temperature: runs made from a known law, and from those that break it."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import reference
from designs import designed
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from scipy import stats

from distill.findings import law
from distill.findings.claim import Claim
from distill.findings.claims import CLAIMS, findings
from distill.report import plots
from distill.report.best import edge, worse_ends
from distill.report.contents import NOT, REPRODUCED, UNDECIDED, Estimate, Finding, Sweep
from distill.sweeps.compose import task_config
from distill.system.conf import CONF

pytestmark = pytest.mark.usefixtures("ruled")
Target = Callable[[pd.DataFrame], Any]  # the best temperature of each run
SEEDS, FEWER = range(10, 30), range(10, 20)
STANDARDISED: dict[str, Sequence[Any]] = {
    **{"loss": ["standardised_kd"], "alpha": [math.nan]},
    **{"loss.alpha": [1.0], "loss.hard": [0.0]},
}


def made(
    target: Target, axes: Mapping[str, Sequence[Any]], noise: float, seeds: Any
) -> pd.DataFrame:
    """Runs of all combinations, with fewest errors at ``target``, noisy by seeds and by runs."""
    whole = {"seed": [*seeds], **axes}
    table = pd.DataFrame(product(*whole.values()), columns=[*whole])
    first = designed("temperature_law").iloc[0].drop(list(whole)[:1])
    runs = table.assign(**{str(k): v for k, v in first.items() if k not in whole})
    draws = np.random.default_rng(5)
    errors = 100 + 60 * np.log(runs["temperature"] / target(runs)) ** 2
    errors += noise * (draws.normal(size=len(runs)) + runs["seed"] % 7)
    own = {"teacher.seed": runs["seed"], "teacher_digest": runs["seed"].astype(str)}
    return runs.assign(**own, test_errors=errors.round(), version="1.2")


def power(runs: pd.DataFrame) -> Any:
    return 0.7 * np.minimum(runs["width"], 40) ** 0.55


def widths(target: Target, noise: float = 4, seeds: Any = SEEDS) -> pd.DataFrame:
    axes = {"width": law.WIDTHS, "temperature": law.TEMPERATURES}
    return made(target, axes, noise, seeds)


def epochs(target: Target, noise: float = 4, seeds: Any = FEWER) -> pd.DataFrame:
    axes = {"width": (30,), "data.jitter": (0, 2), "epochs": law.EPOCHS}
    beside = {"width": (100,), "data.jitter": (0,), "epochs": law.BRIEF}
    parts = [made(target, {**a, "temperature": law.PATIENT}, noise, seeds) for a in (axes, beside)]
    return pd.concat(parts, ignore_index=True)


def losses(plain: Target, own: Target, noise: float = 4, seeds: Any = SEEDS) -> pd.DataFrame:
    narrow = {"width": law.NARROW}
    kd = made(plain, {**narrow, "temperature": law.PLAIN}, noise, seeds)
    axes = {**STANDARDISED, **narrow, "temperature": law.STANDARDISED}
    standardised = made(own, axes, noise, seeds)
    return pd.concat([kd, standardised], ignore_index=True)


def at(value: float) -> Target:
    return lambda runs: np.full(len(runs), value)


def flat(target: Target, seeds: Any = SEEDS) -> pd.DataFrame:
    """Runs whose errors fall up to a temperature of theirs, and are as few at all higher ones."""
    runs = widths(at(1), 0, seeds)
    draws = np.random.default_rng(6).normal(size=len(runs))
    errors = 80 + 45 / (runs["temperature"] / target(runs)) ** 2 + 2 * draws
    return runs.assign(test_errors=errors.round())


def turning(low: float = 10, high: float = 60) -> Target:
    """The best of T = 1.5 and 4 turns at ``low`` units, and of 1.5 and 20 at ``high``."""
    at = np.log([low, high])
    best = np.log([(1.5 * 4) ** 0.5, (1.5 * 20) ** 0.5])  # bowls have both as good half-way
    return lambda runs: np.exp(np.interp(np.log(runs["width"]), at, best, 0.5, 2))


def alike(cost: Callable[[Any], Any], relative: bool, noise: float = 0.06) -> pd.DataFrame:
    """Runs in which a temperature has the same cost at all widths, in errors or of the errors."""
    runs = widths(at(1), 0)
    base = 3600 / runs["width"] ** 0.65
    more = cost(runs["temperature"]) * (base if relative else 100)
    chance = np.random.default_rng(8).normal(size=len(runs))
    return runs.assign(test_errors=((base + more) * (1 + noise * chance)).round())


def bowl(temperature: Any) -> Any:
    return 0.15 * np.log(temperature / 3) ** 2


def costly(
    first: float, step: float, jittered: float = 0, share: bool = False, seeds: Any = FEWER
) -> pd.DataFrame:
    """Runs whose T = 1 costs ``first`` errors, and a ``step`` more (in %) a doubling of epochs."""
    runs = epochs(at(1), 0, seeds)
    doublings = np.log2(runs["epochs"] / 15)
    shaken = runs["data.jitter"] == 2
    base = 400 - 40 * doublings + 80 * shaken  # fewer errors after more epochs
    more = first + np.where(shaken, jittered, step) * doublings
    cost = np.where(runs["temperature"] == 1, more * (base / 100 if share else 1), 0)
    noise = 4 * np.random.default_rng(9).normal(size=len(runs)) + runs["seed"] % 7
    return runs.assign(test_errors=(base + cost + noise).round())


GOOD = {"S1": widths(turning(16)), "S2": costly(0, 10), "S4": losses(power, at(0.3))}
CASES: list[tuple[str, str, pd.DataFrame]] = [
    *((claim, REPRODUCED, runs) for claim, runs in GOOD.items()),
    ("S1", NOT, widths(turning(5))),  # at 10 units 4 is better
    ("S1", NOT, widths(turning(16, 20))),  # at 30 units 20 is
    ("S1", NOT, widths(turning(45, 60))),  # at 30 units 1.5 still is
    ("S1", NOT, widths(turning(16, 200))),  # at 100 units 1.5 is better than 20
    ("S1", NOT, widths(lambda runs: 12 * runs["width"] ** -0.3)),
    *(("S1", NOT, alike(cost, relative)) for cost in (bowl, lambda t: 0.9 / t**2)
      for relative in (False, True)),
    ("S1", UNDECIDED, widths(turning(10))),  # at 10 units both do as well
    ("S1", UNDECIDED, widths(turning(16, 30))),
    ("S1", UNDECIDED, widths(turning(16, 100))),
    ("S1", UNDECIDED, alike(lambda t: 0 * t, True)),
    ("S1", UNDECIDED, widths(turning(16), noise=300)),
    ("S1", UNDECIDED, widths(turning(16), seeds=range(10, 29))),
    ("S2", NOT, costly(60, -10, -10)),
    ("S2", NOT, costly(0, 10, 20)),  # it rises more with jitter
    ("S2", UNDECIDED, costly(0, 10, 10)),  # as much
    ("S2", UNDECIDED, costly(20, 0)),  # the same in errors, of which there are fewer
    ("S2", NOT, costly(20, 0, 5, share=True)),
    ("S2", NOT, costly(6, 0.3, 0, share=True)),  # in % it rises, in errors it falls
    ("S2", UNDECIDED, costly(-100, 10)),  # it rises, but T = 1 is better to the last
    ("S2", UNDECIDED, costly(0, 10, seeds=range(10, 19))),
    ("S4", NOT, losses(power, lambda runs: 0.05 * runs["width"] ** 0.55)),
    ("S4", NOT, losses(at(3), lambda runs: 0.05 * runs["width"] ** 0.55)),
    ("S4", UNDECIDED, losses(at(3), at(0.3))),  # kd has no need either
    ("S4", UNDECIDED, losses(power, at(0.03))),  # alike only at the end of the range
    ("S4", UNDECIDED, losses(power, at(40))),  # at the other
    ("S4", UNDECIDED, losses(power, lambda runs: 0.08 * runs["width"] ** 0.39)),  # half
    ("S4", UNDECIDED, losses(power, at(0.3), noise=300)),
    ("S4", UNDECIDED, losses(power, at(0.3), seeds=range(10, 29))),
]  # fmt: skip


def claim(name: str) -> Claim:
    return next(c for c in law.CLAIMS if c.id == name)


def swept(runs: pd.DataFrame, name: str = "mine") -> Sweep:
    named = runs.assign(run=[f"run{n}" for n in range(len(runs))])
    return Sweep(name, Path(name), named, ("distill experiment=x",))


def find(name: str, runs: pd.DataFrame) -> Finding:
    return claim(name).judge(swept(runs)).finding


@pytest.mark.parametrize(("name", "verdict", "runs"), CASES)
def test_a_law_is_decided_by_its_test(name: str, verdict: str, runs: pd.DataFrame) -> None:
    found = find(name, runs)
    assert found.verdict == verdict, (found.outcome, found.estimates)
    assert found.estimates or "lacks runs (seed=" in found.outcome


def test_the_claims_of_the_law_are_among_those_of_the_report() -> None:
    assert CLAIMS[-3:] == law.CLAIMS
    # A folder may hold the runs of all three, some of which are the same.
    keys = ["seed", "loss", "width", "temperature", "epochs", "data.jitter"]
    sweep = swept(pd.concat(GOOD.values()).drop_duplicates(keys))
    found = [f.id for f in findings([sweep]) if f.verdict == REPRODUCED]
    assert [name for name in found if name.startswith("S")] == ["S1", "S2", "S4"]


def by_seed(runs: pd.DataFrame, size: str = "width") -> pd.DataFrame:
    return runs.pivot(index="seed", columns=[size, "temperature"], values="test_errors")


def by_t(values: "pd.Series[float]") -> tuple[float, float, float]:
    """The mean of values and its 95 % interval, by scipy."""
    found = stats.ttest_1samp(values, 0)
    low, high = found.confidence_interval()
    return float(values.mean()), low, high


def numbers(found: Estimate) -> tuple[float, float, float]:
    return found.mean, found.low, found.high


def test_differences_of_temperatures_are_those_of_plain_t_tests() -> None:
    runs = GOOD["S1"].assign(test_errors=widths(turning(16), 40)["test_errors"])
    whole, found = by_seed(runs), find("S1", runs)
    p_values, opposite = [], []
    estimates = {e.label: e for e in found.estimates}
    for high, narrow, wide in ((4, 10, 30), (20, 30, 100)):
        for width in law.WIDTHS:
            table = whole if width <= 30 else whole.loc[10:19]
            more = table[width, high] - table[width, 1.5]
            own = estimates.pop(f"T = {high} less T = 1.5 at {width} units")
            assert numbers(own) == pytest.approx(by_t(more))
            assert own.n == (20 if width <= 30 else 10)
            if not narrow < width < wide:
                way = "greater" if width <= narrow else "less"
                p_values.append(stats.ttest_1samp(more, 0, alternative=way).pvalue)
                opposite.append(1 - p_values[-1])
    assert len(p_values) == 16
    told = re.match(r"p = (\S+) that all .* p = (\S+) that one is the other way; ", found.outcome)
    assert told is not None
    wanted = [max(p_values), min(1, 16 * min(opposite))]
    assert [*map(float, told.groups())] == pytest.approx(wanted, rel=0.05)
    assert all(label.startswith("slope of the least T") for label in estimates)


def plain_edge(temperatures: Sequence[float], means: Sequence[float], more: float = 0) -> float:
    """The first temperature within 5 % of the fewest errors, or ``more``, in its logarithm."""
    limit = min(means) + more if more else 1.05 * min(means)
    above = [mean - limit for mean in means]
    k = next(k for k, more in enumerate(above) if more <= 0)
    if k == 0:
        return math.log(temperatures[0])
    x = np.log([temperatures[k], temperatures[k - 1]])
    return float(np.interp(0, [above[k], above[k - 1]], x))


@pytest.mark.parametrize("kept", ["width <= 30", "width >= 64 and seed < 20"])
@pytest.mark.parametrize(("within", "more"), [("5 %", 0), ("12 errors", 12), ("30 errors", 30)])
def test_slopes_and_intervals_are_those_of_a_plain_bootstrap(
    within: str, more: float, kept: str
) -> None:
    words = "up to 30" if kept == "width <= 30" else "from 64"
    label = f"slope of the least T within {within}, {words} units"
    [found] = [e for e in find("S1", GOOD["S1"]).estimates if e.label == label]
    table = by_seed(GOOD["S1"].query(kept))
    sizes, grid = ([*map(float, sorted({*table.columns.get_level_values(k)}))] for k in (0, 1))

    def value(drawn: Any) -> float:
        rows = table.to_numpy()[drawn].mean(axis=0).reshape(len(sizes), -1).tolist()
        edges = [plain_edge(grid, row, more) for row in rows]
        return float(np.polyfit(np.log(sizes), edges, 1)[0])

    n = len(table)
    wide = stats.norm.cdf(stats.t.ppf(0.975, n - 1) * (n / (n - 1)) ** 0.5)
    plain = stats.bootstrap(
        (range(n),), value, n_resamples=600, vectorized=False, method="percentile",
        confidence_level=2 * wide - 1, random_state=1,
    )  # fmt: skip
    assert found.n == n == (20 if kept == "width <= 30" else 10)
    assert found.mean == pytest.approx(value(range(n)), abs=1e-9)
    interval = [*plain.confidence_interval]
    room = 0.2 * (interval[1] - interval[0])
    assert [found.low, found.high] == pytest.approx(interval, abs=room)


def costs(runs: pd.DataFrame, share: bool) -> pd.DataFrame:
    """What T = 1 costs each seed after each number of epochs."""
    table = by_seed(runs, "epochs")
    low, band = table.xs(1, axis=1, level=1), table.loc[:, (slice(None), [2, 3, 4])]
    mean = band.T.groupby(level=0).mean().T
    return 100 * np.log(low / mean) if share else low - mean  # type: ignore[return-value]


def rises(runs: pd.DataFrame, share: bool) -> "pd.Series[float]":
    found = costs(runs, share)
    x = np.log2(found.columns.to_numpy(float))
    return pd.Series({seed: np.polyfit(x, row, 1)[0] for seed, row in found.iterrows()})


@pytest.mark.parametrize("unit", ["test errors", "%"])
def test_what_a_low_temperature_costs_rises_by_plain_slopes(unit: str) -> None:
    runs, share = costly(0, 10, 4), unit == "%"
    still, shaken = (runs.query(f"width == 30 and `data.jitter` == {j}") for j in (0, 2))
    found = {(e.label, e.unit): e for e in find("S2", runs).estimates}
    rise = rises(still, share)
    wanted = {"rise a doubling": rise}
    wanted["rise without jitter less that with jitter 2, a doubling"] = rise - rises(shaken, share)
    if not share:
        for part, words in ((still, ""), (shaken, ", jitter 2")):
            for after, cost in costs(part, share).items():
                wanted[f"T = 1 less T = 2, 3, 4 after {after} epochs{words}"] = cost
    for label, values in wanted.items():
        own = found[label, unit]
        assert numbers(own) == pytest.approx(by_t(values)) and own.n == 10


def logs(runs: pd.DataFrame) -> pd.DataFrame:
    """100 times the logarithm of the errors of each seed at each temperature, over all widths."""
    return 100 * by_seed(runs).map(math.log).T.groupby(level="temperature").mean().T


def plainly_exchanged(runs: pd.DataFrame) -> tuple[dict[int, list[float]], list[list[float]]]:
    """What the other's temperature costs each seed of both groups, and which temperatures."""
    tables = [logs(runs[runs["width"].isin(group)]) for group in ((6, 10), (24, 30))]
    seeds = [*tables[0].index]
    paid: dict[int, list[float]] = {seed: [0, 0] for seed in seeds}
    chosen: list[list[float]] = []
    for own, others in ((seeds[::2], seeds[1::2]), (seeds[1::2], seeds[::2])):
        best: list[Any] = [table.loc[others].mean().idxmin() for table in tables]
        chosen.append(best)
        for seed in own:
            for k, table in enumerate(tables):
                paid[seed][k] = table.loc[seed, best[1 - k]] - table.loc[seed, best[k]]
    return paid, chosen


def test_temperatures_exchanged_cost_what_plain_tables_say() -> None:
    runs = losses(power, lambda runs: 0.15 * runs["width"] ** 0.25, 30)
    found = find("S4", runs)
    few, many, own, less = found.estimates
    (plain, low), (paid, high) = (
        plainly_exchanged(runs[runs["loss"] == loss]) for loss in ("kd", "standardised_kd")
    )
    kd, other = pd.DataFrame(plain).T, pd.DataFrame(paid).T.mean(axis=1)
    assert numbers(few) == pytest.approx(by_t(kd[0])) and few.n == 20
    assert numbers(many) == pytest.approx(by_t(kd[1]))
    assert own.mean == pytest.approx(other.mean())
    assert less.mean == pytest.approx(kd.mean(axis=1).mean() / 2 - other.mean())
    p = max(stats.ttest_1samp(kd[k], 0, alternative="greater").pvalue for k in (0, 1))
    assert f"kd has a need: p = {p:.2g};" in found.outcome
    for words, pairs in (("kd", low), ("standardised kd", high)):
        told = " and ".join(f"{a:g} to {b:g}" for a, b in pairs)
        assert f"{words} {told}" in found.outcome


def test_their_interval_is_of_seeds_drawn_and_temperatures_chosen_anew() -> None:
    runs = losses(power, lambda runs: 0.15 * runs["width"] ** 0.25, 30)
    *_, own, less = find("S4", runs).estimates
    chance, means, differences = np.random.default_rng(1), [], []
    places = [[*SEEDS][half::2] for half in (0, 1)]
    tables = {
        (loss, k): logs(part[part["width"].isin(g)])
        for loss, part in runs.groupby("loss") for k, g in enumerate(((6, 10), (24, 30)))
    }  # fmt: skip
    for _ in range(300):
        drawn = [chance.choice(half, len(half)) for half in places]
        cost = {}
        for loss in ("kd", "standardised_kd"):
            halves = [[tables[loss, k].loc[half].mean() for k in (0, 1)] for half in drawn]
            best: list[Any] = [[means.idxmin() for means in half] for half in halves]
            cost[loss] = np.mean([
                halves[h][k][best[1 - h][1 - k]] - halves[h][k][best[1 - h][k]]
                for h in (0, 1) for k in (0, 1)
            ])  # fmt: skip
        means.append(cost["standardised_kd"])
        differences.append(cost["kd"] / 2 - cost["standardised_kd"])
    for one, draws in ((own, means), (less, differences)):
        low, high = np.quantile(draws, [0.025, 0.975])
        assert [one.low, one.high] == pytest.approx([low, high], abs=0.2 * (high - low))


def test_a_common_best_temperature_costs_nothing_on_average() -> None:
    draws = np.random.default_rng(3)
    columns = pd.MultiIndex.from_product([law.NARROW, law.PLAIN], names=["width", "temperature"])
    base = np.array([900, 568, 380, 280, 239.0])[:, None]
    grid = np.array(law.PLAIN, float)
    needs = []
    for curve in (base * (1 + bowl(grid)), base + 240 * bowl(grid), base + 0 * grid):
        p_values = []
        for _ in range(100):
            errors = curve * (1 + 0.06 * draws.normal(size=(20, *curve.shape)))
            made = pd.DataFrame(errors.reshape(20, -1), columns=columns)
            found = law._exchanged(made).costs
            p_values.append(max(stats.ttest_1samp(found, 0, axis=1, alternative="greater").pvalue))
        needs.append((np.array(p_values) < 0.05).mean())
    assert max(needs) <= 0.05


def plainly_told(runs: pd.DataFrame) -> str:
    """What may be said of the best temperature of each width, by pandas and scipy alone."""
    p_values, ranges = {}, {}
    for width, part in runs.groupby("width"):
        table = part.pivot(index="seed", columns="temperature", values="test_errors")
        halves = [table.iloc[::2], table.iloc[1::2]]
        costs: dict[str, list[float]] = {"low": [], "high": []}
        for own, other in (halves, halves[::-1]):
            totals = [*other.sum()]
            _, k = min((sum(totals[k : k + 3]), k) for k in range(1, len(totals) - 3))
            best = own.iloc[:, k : k + 3].mean(axis=1)
            costs["low"] += [*(own.iloc[:, 0] - best)]
            costs["high"] += [*(own.iloc[:, -1] - best)]
        for end, values in costs.items():
            p_values[width, end] = stats.ttest_1samp(values, 0, alternative="greater").pvalue
        means = table.mean()
        edges = (
            plain_edge([*means.index], [*means]),
            plain_edge([*means.index[::-1]], [*means[::-1]]),
        )
        ranges[width] = [f"{math.exp(edge):.1f}" for edge in edges]
    worse = set()
    for k, pair in enumerate(sorted(p_values, key=lambda pair: p_values[pair])):
        if p_values[pair] * (len(p_values) - k) >= 0.05:
            break
        worse.add(pair)
    told = []
    for width, (low, high) in ranges.items():
        ends = [end for end in ("low", "high") if (width, end) in worse]
        words = {"low": f"at least {low}", "high": f"at most {high}", "": "not located"}
        said = f"{low} to {high}" if len(ends) == 2 else words["".join(ends)]
        told.append(f"{said} at {width}")
    return ", ".join(told)


@pytest.mark.parametrize(
    ("runs", "kinds"),
    [
        (widths(power), {" to "}),
        (flat(lambda runs: 0.3 * runs["width"] ** 0.55), {"at least"}),
        (flat(at(0.1)), {"not located", "at least"}),  # one of 20 by chance
        (widths(lambda runs: 0.03 * runs["width"]), {"at most", " to "}),
        (widths(power, 300), {"at least", "at most", "not located"}),
    ],
)
def test_a_best_temperature_is_told_where_both_ends_are_worse(
    runs: pd.DataFrame, kinds: set[str]
) -> None:
    told = find("S1", runs).outcome.partition("of the fewest errors: ")[2]
    parts = [runs.query(part) for part in ("width <= 30", "width > 30 and seed < 20")]
    assert told == ", ".join(map(plainly_told, parts))
    assert {
        kind for kind in (" to ", "at least", "at most", "not located") if kind in told
    } == kinds


def test_ends_of_curves_without_a_best_are_seldom_said_to_be_worse() -> None:
    draws = np.random.default_rng(7)
    p_values = worse_ends(draws.normal(100, 6, (20, 500, 12)))
    # It would be 0.12 where those that are tested choose.
    assert 0.03 < (p_values < 0.05).mean() < 0.08
    falls = 80 + 45 / np.array(law.TEMPERATURES) ** 2  # with the fewest errors at the end
    assert (worse_ends(falls + draws.normal(0, 4, (20, 500, 12)))[1] < 0.05).mean() < 0.05


def test_seeds_that_one_loss_has_alone_do_not_count() -> None:
    found = find("S4", GOOD["S4"].query("loss == 'kd' or seed < 28"))
    known = claim("S4").decide(GOOD["S4"].query("seed < 28"))
    assert (found.estimates, found.verdict) == (known.estimates, UNDECIDED)
    left = "seeds that lack runs do not count: 28, 29; n = 18, at least 20 are wanted"
    assert found.outcome == f"{known.outcome}; {left}"


@pytest.mark.parametrize(
    ("means", "least", "most"),
    [
        ([120, 110, 100, 110, 120], 2 * 2**0.5, 4 * 2**0.5),
        ([100, 110, 120, 130, 140], 1, 2**0.5),  # rises from the start
        ([140, 120, 110, 100, 100], 4 * 2**0.5, 16),  # falls, and stays
        ([140, 130, 120, 110, 100], 8 * 2**0.5, 16),  # falls to the end
        ([100, 100, 100, 100, 100], 1, 16),
        ([120, 104, 120, 100, 105], 2 ** (15 / 16), 16),  # as good twice
        ([1, 0, 0, 1, 2], 2, 4),
    ],
)
def test_as_good_are_temperatures_within_5_percent(
    means: Sequence[float], least: float, most: float
) -> None:
    grid = np.array([1, 2, 4, 8, 16], float)
    both = np.array([means, means], float)
    assert edge(both, grid) == pytest.approx([least, least])
    assert edge(both[:, ::-1], grid[::-1]) == pytest.approx([most, most])


def test_so_many_more_errors_are_as_good_if_they_are_given() -> None:
    grid, means = np.array([1, 2, 4, 8], float), np.array([[140.0, 120, 100, 100]])
    assert edge(means, grid, 10) == pytest.approx(2 * 2**0.5)
    assert edge(means, grid, 30) == pytest.approx(2**0.5)


def test_a_tolerance_in_percent_makes_a_rise_of_one_cost_and_a_fixed_one_does_not() -> None:
    found = find("S1", alike(lambda t: 4 * bowl(t), relative=False, noise=0.005))
    slopes = {e.label: e for e in found.estimates if e.label.startswith("slope")}
    rising = slopes["slope of the least T within 5 %, up to 30 units"]
    fixed = slopes["slope of the least T within 30 errors, up to 30 units"]
    assert rising.low > 0 and fixed.low < 0 < fixed.high
    assert found.verdict == NOT


def test_what_has_no_verdict_is_told_beside_one() -> None:
    rise = rises(GOOD["S2"].query("width == 100"), share=False)
    assert f"at 100 units: rise {rise.mean():.3g} [" in find("S2", GOOD["S2"]).outcome
    few = GOOD["S2"].query("width == 30 or seed < 13")  # fewer seeds beside decide as much
    assert (
        find("S2", few).verdict == REPRODUCED and "n = 3, temperatures" in find("S2", few).outcome
    )
    alone = find("S2", GOOD["S2"].query("width == 30"))
    assert alone.verdict == REPRODUCED and alone.estimates == find("S2", GOOD["S2"]).estimates
    assert alone.outcome.endswith("at 100 units: runs are lacking (epochs=15)")


def test_runs_that_are_lacking_are_told() -> None:
    good = GOOD["S1"]
    gone = find("S1", good.query("not (width == 6 and temperature == 40)"))
    assert gone.outcome == "the sweep lacks runs (width=6, temperature=40)"
    for key, values in claim("S1").covers.items():
        left = find("S1", good[good[key] != values[0]])
        assert left.outcome.startswith(f"the sweep lacks runs ({key}={values[0]})")
    short = good.query("not (width == 6 and temperature == 40 and seed == 12)")
    found = find("S1", short)
    few = "6 to 30 units: n = 19, at least 20 are wanted"
    assert (found.verdict, found.outcome) == (UNDECIDED, f"the sweep lacks runs ({few})")
    short = good.query("not (width == 300 and temperature == 40 and seed == 12)")
    few = "48 to 300 units: n = 9, at least 10 are wanted"
    assert find("S1", short).outcome == f"the sweep lacks runs ({few})"
    more = find("S1", pd.concat([good, widths(turning(16), seeds=[30])]))
    fewer = find("S1", good.query("width <= 30 or seed < 20"))
    for other in (more, fewer):  # no seed counts beyond the 20, and the 10 of wide students
        assert other == replace(find("S1", good), version=other.version)
    shared = find("S1", good.assign(teacher_digest="one"))
    assert shared.outcome == "its seeds share a teacher; let teacher.seed=${seed}"
    twice = find("S1", pd.concat([good, good[:1]]))
    assert twice.outcome == "the sweep lacks runs (more than one test_errors of a seed)"
    # What another part of the sweep has is no run of this one.
    brief = find("S2", GOOD["S2"].query("width == 100 or `data.jitter` == 2 or epochs < 400"))
    assert brief.outcome == "the sweep lacks runs (epochs=480)"
    still = find("S2", GOOD["S2"].query("(width == 100) == (`data.jitter` == 0)"))
    assert still.outcome == "the sweep lacks runs (epochs=15)"
    shaken = find("S2", GOOD["S2"].query("`data.jitter` == 0"))
    assert shaken.outcome == "the sweep lacks runs (data.jitter=2)"
    cool = find("S4", GOOD["S4"].query("loss == 'kd' or temperature < 6"))
    assert cool.outcome == "the sweep lacks runs (temperature=6)"
    half = find("S4", GOOD["S4"].query("loss == 'kd'"))
    assert half.outcome == "the sweep lacks runs (loss=standardised_kd)"


@pytest.mark.parametrize(
    ("name", "key"), sorted({(c.id, key) for c in law.CLAIMS for part in c.parts for key in part})
)
def test_runs_that_miss_a_condition_do_not_count(name: str, key: str) -> None:
    judged = claim(name).judge(swept(GOOD[name].assign(**{key: "x"})))
    assert not judged.suffices and judged.finding.verdict == UNDECIDED
    assert f" has {key}=x, wanted is " in judged.finding.outcome


def test_the_pilot_decides_nothing_and_its_figures_are_those_told() -> None:
    pilot = reference()["temperature_vs_size"]
    judged = [one.judge(sweep) for one in law.CLAIMS for sweep in reference().values()]
    assert not [j for j in judged if j.suffices or j.suggested]
    told = claim("S1").judge(replace(pilot, name="temperature_law"))
    assert told.suggested and (told.finding.verdict, told.finding.estimates) == (UNDECIDED, ())
    assert ", wanted is " in told.finding.outcome
    [figure] = plots.best_temperature(pilot)
    least = dict(zip(figure.sizes, (y.mean for y in figure.least), strict=True))
    assert least == pytest.approx({10: 1.1, 30: 2.5, 100: 2.5, 300: 2.1, 800: 2.6}, abs=0.05)
    assert figure.caption.startswith(
        f"Best temperature by width, within 5 % of the fewest errors: {plainly_told(pilot.runs)}. "
    )
    assert "not located at 100," in figure.caption
    table = by_seed(pilot.runs).mean()
    for high, widths_ in ((4, (10, 30)), (20, (30, 100))):
        for width in widths_:
            assert f"{table[width, high] - table[width, 1.5]:.1f} " in f"{claim('S1').source} "


def composed(experiment: str) -> tuple[DictConfig, dict[str, list[float]]]:
    """The config of an experiment's runs, and the values of what it sweeps over."""
    with initialize_config_dir(str(CONF)):
        whole = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
    swept = whole.hydra.sweeper.params.items()
    values = {str(key): [float(v) for v in str(given).split(",")] for key, given in swept}
    return task_config(whole.copy()), values


@pytest.mark.parametrize(
    ("experiment", "runs", "swept"),
    [
        (
            "temperature_law",
            1200,
            {"model.width": law.WIDTHS, "loss.temperature": law.TEMPERATURES},
        ),
        (
            "temperature_law_narrow",
            600,
            {"model.width": law.NARROW, "loss.temperature": law.TEMPERATURES},
        ),
        ("patience", 720, {"train.epochs": law.EPOCHS, "loss.temperature": law.PATIENT}),
        ("patience_beside", 120, {"train.epochs": law.BRIEF, "loss.temperature": law.PATIENT}),
        (
            "standardised",
            1100,
            {"model.width": law.NARROW, "loss.temperature": law.STANDARDISED},
        ),
        (
            "standardised_beside",
            800,
            {"model.width": law.NARROW, "loss.temperature": law.PLAIN},
        ),
    ],
)
def test_the_experiments_are_those_of_the_tests(
    experiment: str, runs: int, swept: dict[str, Sequence[float]]
) -> None:
    _, values = composed(experiment)
    assert math.prod(map(len, values.values())) == runs
    assert {key: tuple(values[key]) for key in swept} == swept
    assert min(values["seed"]) == (20 if experiment == "temperature_law_narrow" else 10)


def test_kd_beside_standardised_is_a_part_of_the_laws_runs() -> None:
    part, few = composed("standardised_beside")
    seeds = []
    for name in ("temperature_law", "temperature_law_narrow"):
        whole, many = composed(name)
        assert part == whole
        assert few.keys() == many.keys()
        assert all({*few[key]} <= {*many[key]} for key in few if key != "seed")
        seeds += many["seed"]
    assert few["seed"] == seeds
