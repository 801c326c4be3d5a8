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
from distill.report.contents import NOT, REPRODUCED, UNDECIDED, Finding, Sweep
from distill.sweeps.compose import task_config
from distill.system.conf import CONF

Target = Callable[[pd.DataFrame], Any]  # the best temperature of each run
SEEDS = range(10, 20)
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


def epochs(target: Target, noise: float = 4, seeds: Any = SEEDS) -> pd.DataFrame:
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


def longer(least: float, rise: float, jittered: float = 0, less: float = 1) -> Target:
    """With jitter the best temperature rises otherwise, from ``less`` times what it is without."""

    def target(runs: pd.DataFrame) -> Any:
        shaken = runs["data.jitter"] == 2
        start = least * np.where(shaken, less, 1)
        return start * (runs["epochs"] / 15) ** np.where(shaken, jittered, rise)

    return target


def flat(target: Target, seeds: Any = SEEDS) -> pd.DataFrame:
    """Runs whose errors fall up to a temperature of theirs, and are as few at all higher ones."""
    runs = widths(at(1), 0, seeds)
    draws = np.random.default_rng(6).normal(size=len(runs))
    errors = 80 + 45 / (runs["temperature"] / target(runs)) ** 2 + 2 * draws
    return runs.assign(test_errors=errors.round())


GOOD = {"S1": widths(power), "S2": epochs(longer(1.5, 0.25)), "S4": losses(power, at(1.2))}
CASES: list[tuple[str, str, pd.DataFrame]] = [
    *((claim, REPRODUCED, runs) for claim, runs in GOOD.items()),
    ("S1", NOT, widths(lambda runs: 12 * runs["width"] ** -0.3)),
    ("S1", NOT, widths(lambda runs: 0.02 * np.maximum(runs["width"], 100))),  # bends up
    ("S1", UNDECIDED, widths(lambda runs: 0.8 * runs["width"] ** 0.45)),  # no bend
    ("S1", UNDECIDED, flat(at(1))),
    ("S1", UNDECIDED, flat(lambda runs: 0.3 * runs["width"] ** 0.55)),  # no bend
    ("S1", REPRODUCED, flat(lambda runs: 0.04 * np.minimum(runs["width"], 40))),
    ("S1", UNDECIDED, widths(at(4))),
    ("S1", UNDECIDED, widths(lambda runs: runs["width"] ** 0.9)),  # a bend by the end of the range
    ("S1", UNDECIDED, widths(power, noise=150)),
    ("S1", UNDECIDED, widths(power, seeds=range(10, 19))),
    ("S2", NOT, epochs(longer(4, -0.2, -0.2))),
    ("S2", NOT, epochs(longer(1.5, 0.2, 0.4))),  # it rises more with jitter
    ("S2", UNDECIDED, epochs(longer(1.5, 0.25, 0.25))),  # as much
    ("S2", UNDECIDED, epochs(longer(1.5, 0.25, 0.25, 0.5))),  # as much, but from below 1
    ("S2", REPRODUCED, epochs(longer(1.5, 0.25, 0, 0.5))),  # with jitter T = 1 is always as good
    ("S2", UNDECIDED, epochs(longer(1.5, 0.25, 0.25, 0.46))),  # after 480 epochs alone
    ("S2", UNDECIDED, epochs(at(2.5))),
    ("S2", UNDECIDED, epochs(longer(0.8, 0.16))),  # it rises, but T = 1 is as good
    ("S2", UNDECIDED, epochs(longer(1.5, 0.25), seeds=range(10, 19))),
    ("S4", NOT, losses(power, lambda runs: 0.2 * runs["width"] ** 0.35)),
    ("S4", UNDECIDED, losses(at(3), at(1.2))),  # kd has no need for one either
    ("S4", UNDECIDED, losses(power, at(0.03))),  # alike only at the end of the range
    ("S4", UNDECIDED, losses(power, at(40))),  # at the other
    ("S4", UNDECIDED, losses(power, lambda runs: 0.8 * runs["width"] ** 0.15)),
    ("S4", UNDECIDED, losses(power, at(1.2), noise=500)),
    ("S4", UNDECIDED, losses(power, at(1.2), seeds=range(10, 19))),
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
    assert found.estimates and found.outcome


def test_the_claims_of_the_law_are_among_those_of_the_report() -> None:
    assert CLAIMS[-3:] == law.CLAIMS
    # A folder may hold the runs of all three, some of which are the same.
    keys = ["seed", "loss", "width", "temperature", "epochs", "data.jitter"]
    sweep = swept(pd.concat(GOOD.values()).drop_duplicates(keys))
    found = [f.id for f in findings([sweep]) if f.verdict == REPRODUCED]
    assert [name for name in found if name.startswith("S")] == ["S1", "S2", "S4"]


def plain_edge(temperatures: Sequence[float], means: Sequence[float]) -> float:
    """The first temperature within 5 % of the fewest errors, in its logarithm."""
    above = [mean - 1.05 * min(means) for mean in means]
    k = next(k for k, more in enumerate(above) if more <= 0)
    if k == 0:
        return math.log(temperatures[0])
    x = np.log([temperatures[k], temperatures[k - 1]])
    return float(np.interp(0, [above[k], above[k - 1]], x))


def bootstrapped(
    kept: Sequence[pd.DataFrame], x: str, degree: int, level: float = 0.95
) -> tuple[float, float, float]:
    """A coefficient, or one less another, and its interval by scipy, of errors of each seed."""
    tables = [runs.pivot_table("test_errors", "seed", [x, "temperature"]) for runs in kept]
    levels = [[[*map(float, level)] for level in table.columns.levels] for table in tables]  # type: ignore[attr-defined]

    def value(drawn: Any) -> float:
        found = []
        for table, (sizes, temperatures) in zip(tables, levels, strict=True):
            rows = table.to_numpy()[drawn].mean(axis=0).reshape(len(sizes), -1).tolist()
            edges = [plain_edge(temperatures, row) for row in rows]
            found.append(float(np.polyfit(np.log(sizes), edges, degree)[0]))
        return found[0] - sum(found[1:])

    n = len(tables[0])
    wide = stats.norm.cdf(stats.t.ppf((1 + level) / 2, n - 1) * (n / (n - 1)) ** 0.5)
    found = stats.bootstrap(
        (range(n),), value, n_resamples=600, vectorized=False, method="percentile",
        confidence_level=2 * wide - 1, random_state=1,
    )  # fmt: skip
    return (value(range(n)), *found.confidence_interval)


COOL = " and temperature <= 12"
SHAKEN = "width == 30 and `data.jitter` == 2"
STILL = "width == 30 and `data.jitter` == 0"


@pytest.mark.parametrize(
    ("name", "which", "x", "kept", "degree"),
    [
        ("S1", 0, "width", ["width <= 30"], 1),
        ("S1", 1, "width", ["width >= 64"], 1),
        ("S1", 2, "width", ["width <= 30", "width >= 64"], 1),
        ("S1", 3, "width", ["width <= 30" + COOL], 1),
        ("S1", 4, "width", ["width >= 64" + COOL], 1),
        ("S1", 5, "width", ["width <= 30" + COOL, "width >= 64" + COOL], 1),
        ("S1", 6, "width", ["width <= 30"], 2),
        ("S2", 0, "epochs", [STILL], 1),
        ("S2", 1, "epochs", [SHAKEN], 1),
        ("S2", 2, "epochs", [STILL, SHAKEN], 1),
        ("S4", 0, "width", ["loss == 'kd'"], 1),
        ("S4", 1, "width", ["loss == 'standardised_kd'"], 1),
        ("S4", 2, "width", ["loss == 'kd'", "loss == 'standardised_kd'"], 1),
    ],
)
def test_slopes_and_intervals_are_those_of_a_plain_bootstrap(
    name: str, which: int, x: str, kept: Sequence[str], degree: int
) -> None:
    found = find(name, GOOD[name]).estimates[which]
    runs = [GOOD[name].query(part) for part in kept]
    point, low, high = bootstrapped(runs, x, degree)
    assert found.n == 10
    assert found.mean == pytest.approx(point, abs=1e-9)
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.2 * (high - low))


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
        (GOOD["S1"], {" to "}),
        (flat(lambda runs: 0.3 * runs["width"] ** 0.55), {"at least"}),
        (flat(at(0.1)), {"not located"}),
        (widths(lambda runs: 0.03 * runs["width"]), {"at most", " to "}),
        (widths(power, 150, range(10, 21)), {" to ", "at most", "not located"}),
    ],
)
def test_a_best_temperature_is_told_where_both_ends_are_worse(
    runs: pd.DataFrame, kinds: set[str]
) -> None:
    outcome = find("S1", runs).outcome
    told = outcome.removeprefix("best temperatures by width: ").partition(";")[0]
    assert told == plainly_told(runs)
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


def test_a_known_law_is_recovered() -> None:
    up, on, bend = find("S1", GOOD["S1"]).estimates[:3]
    assert up.low < 0.55 < up.high and up.high - up.low < 0.15
    assert on.low < 0 < on.high
    assert bend.mean == pytest.approx(up.mean - on.mean)


def test_grids_that_disagree_decide_nothing() -> None:
    found = find("S1", widths(lambda runs: 0.04 * np.maximum(runs["width"], 100)))
    assert found.verdict == UNDECIDED
    assert f"{NOT} by all temperatures, {UNDECIDED} by those up to 12" in found.outcome


def test_equivalence_is_judged_by_the_90_percent_interval() -> None:
    found = find("S4", GOOD["S4"])
    told = re.search(r"90 % interval of .* \[(.+), (.+)\], margin 0.15", found.outcome)
    assert told is not None
    low, high = map(float, told.groups())
    kept = [GOOD["S4"].query("loss == 'standardised_kd'")]
    _, *wanted = bootstrapped(kept, "width", 1, 0.9)
    assert [low, high] == pytest.approx(wanted, abs=0.15 * (high - low))
    own = found.estimates[1]
    assert own.low < low and high < own.high


def test_seeds_that_one_loss_has_alone_do_not_count() -> None:
    more = made(power, {"width": law.NARROW, "temperature": law.PLAIN}, 90, [20, 21])
    found, known = find("S4", pd.concat([GOOD["S4"], more])), find("S4", GOOD["S4"])
    assert (found.estimates, found.verdict) == (known.estimates, known.verdict)
    assert found.outcome == f"{known.outcome}; seeds that lack runs do not count: 20, 21"


def test_both_losses_of_a_seed_are_drawn_together() -> None:
    def own(runs: pd.DataFrame) -> Any:  # a slope of each seed's
        return 4 * (runs["width"] / 15) ** (0.1 * (runs["seed"] - 14.5))

    found = find("S4", losses(own, own, noise=0)).estimates
    *apart, both = (one.high - one.low for one in found)
    assert both < math.hypot(*apart) / 2


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


def test_what_has_no_verdict_is_told_beside_one() -> None:
    found = find("S2", GOOD["S2"])
    point, _, _ = bootstrapped([GOOD["S2"].query("width == 100")], "epochs", 1)
    assert f"slope at 100 units: {point:.3g} [" in found.outcome
    runs = GOOD["S2"].query("width == 30 and `data.jitter` == 0 and epochs == 120")
    errors = runs.pivot(index="seed", columns="temperature", values="test_errors")
    cost = (errors[1] - errors[[2, 3, 4]].mean(axis=1)).mean()
    [told] = [e for e in found.estimates if "after 120 epochs" in e.label]
    assert told.mean == pytest.approx(cost) and told.n == 10
    few = GOOD["S2"].query("width == 30 or seed < 13")  # fewer seeds beside decide as much
    assert find("S2", few).verdict == REPRODUCED and "n = 3, best" in find("S2", few).outcome
    alone = find("S2", GOOD["S2"].query("width == 30"))
    assert alone.verdict == REPRODUCED and alone.estimates == found.estimates
    assert alone.outcome.endswith("slope at 100 units: runs are lacking (epochs=15)")


def test_slopes_with_jitter_begin_where_it_is_more_than_a_bound() -> None:
    runs = epochs(longer(1.5, 0.25, 0.25, 0.75))
    found = find("S2", runs)
    assert "slopes compared from 60 epochs on" in found.outcome
    parts = [runs.query(f"{part} and epochs >= 60") for part in (STILL, SHAKEN)]
    for which, kept in ((1, parts[1:]), (2, parts)):
        point, low, high = bootstrapped(kept, "epochs", 1)
        assert found.estimates[which].mean == pytest.approx(point, abs=1e-9)
        assert found.estimates[which].low == pytest.approx(low, abs=0.2 * (high - low))


def test_runs_that_are_lacking_are_told() -> None:
    good = GOOD["S1"]
    gone = find("S1", good.query("not (width == 6 and temperature == 40)"))
    assert gone.outcome == "the sweep lacks runs (width=6, temperature=40)"
    for key, values in claim("S1").covers.items():
        left = find("S1", good[good[key] != values[0]])
        assert left.outcome == f"the sweep lacks runs ({key}={values[0]})"
    short = good.query("not (width == 6 and temperature == 40 and seed == 12)")
    found = find("S1", short)
    assert found.verdict == UNDECIDED
    assert found.outcome.endswith("do not count: 12; n = 9, at least 10 are wanted")
    more = find("S1", pd.concat([short, widths(power, seeds=[20])]))
    assert more.verdict == REPRODUCED and more.estimates[0].n == 10
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
    assert claim("S1").source.rpartition("slope ")[2] in figure.caption


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
            2400,
            {"model.width": law.WIDTHS, "loss.temperature": law.TEMPERATURES},
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
    assert min(values["seed"]) == 10


def test_kd_beside_standardised_is_a_part_of_the_laws_runs() -> None:
    (part, few), (whole, many) = composed("standardised_beside"), composed("temperature_law")
    assert part == whole
    assert few.keys() == many.keys()
    assert all({*few[key]} <= {*many[key]} for key in few)
