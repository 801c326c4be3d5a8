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
from scipy.integrate import quad

from distill.findings import law
from distill.findings.claim import Claim
from distill.findings.claims import CLAIMS, findings
from distill.report import plots
from distill.report.best import best
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
    return 0.5 * np.minimum(runs["width"], 100) ** 0.55


def widths(target: Target, noise: float = 4, seeds: Any = SEEDS) -> pd.DataFrame:
    axes = {"width": law.WIDTHS, "temperature": law.TEMPERATURES}
    return made(target, axes, noise, seeds)


def epochs(target: Target, noise: float = 4, seeds: Any = SEEDS) -> pd.DataFrame:
    axes = {"width": (30, 100), "data.jitter": (0, 2), "epochs": law.EPOCHS}
    return made(target, {**axes, "temperature": law.PATIENT}, noise, seeds)


def losses(plain: Target, own: Target, noise: float = 4, seeds: Any = SEEDS) -> pd.DataFrame:
    four = {"width": (10, 30, 100, 300)}
    kd = made(plain, {**four, "temperature": law.PLAIN}, noise, seeds)
    axes = {**STANDARDISED, **four, "temperature": law.STANDARDISED}
    standardised = made(own, axes, noise, seeds)
    return pd.concat([kd, standardised], ignore_index=True)


def at(value: float) -> Target:
    return lambda runs: np.full(len(runs), value)


def longer(least: float, rise: float) -> Target:
    return lambda runs: least * (runs["epochs"] / 15) ** rise


GOOD = {"S1": widths(power), "S2": epochs(longer(1.5, 0.25)), "S4": losses(power, at(1.2))}
CASES: list[tuple[str, str, pd.DataFrame]] = [
    *((claim, REPRODUCED, runs) for claim, runs in GOOD.items()),
    ("S1", NOT, widths(lambda runs: 12 * runs["width"] ** -0.3)),
    ("S1", NOT, widths(lambda runs: 0.04 * np.maximum(runs["width"], 100) ** 1)),  # bends up
    ("S1", UNDECIDED, widths(lambda runs: 0.6 * runs["width"] ** 0.4)),  # no bend
    ("S1", UNDECIDED, widths(at(4))),
    ("S1", UNDECIDED, widths(lambda runs: runs["width"] ** 0.9)),  # a bend by the end of the range
    ("S1", UNDECIDED, widths(power, noise=150)),
    ("S1", UNDECIDED, widths(power, seeds=range(10, 19))),
    ("S2", NOT, epochs(longer(4, -0.2))),
    ("S2", UNDECIDED, epochs(at(2.5))),
    ("S2", UNDECIDED, epochs(longer(0.8, 0.12))),  # it rises, but T = 1 is as good
    ("S2", UNDECIDED, epochs(longer(1.5, 0.25), seeds=range(10, 19))),
    ("S4", NOT, losses(power, lambda runs: 0.6 * runs["width"] ** 0.35)),
    ("S4", UNDECIDED, losses(at(3), at(1.2))),  # kd has no need for one either
    ("S4", UNDECIDED, losses(power, at(0.03))),  # alike only at the end of the range
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


def plain_slope(sizes: Any, temperatures: Any, means: Any, steps: int) -> float:
    """The slope of mean errors, size by temperature, each cubic's least value found on a grid."""
    grid = np.linspace(math.log(temperatures[0]), math.log(temperatures[-1]), steps)
    fits = np.polyfit(np.log(temperatures), means.T, 3).T
    bests = [grid[np.polyval(fit, grid).argmin()] for fit in fits]  # their minima lie inside
    return float(stats.linregress(np.log(sizes), bests).slope)


def bootstrapped(runs: pd.DataFrame, x: str) -> tuple[float, float, float]:
    """The slope, and its 95 % interval by scipy, of the tables of errors of each seed."""
    tables = runs.pivot_table("test_errors", index="seed", columns=[x, "temperature"])
    sizes, temperatures = (level.to_numpy(float) for level in tables.columns.levels)  # type: ignore[attr-defined]
    array = tables.to_numpy().reshape(len(tables), len(sizes), -1)

    def slope(drawn: Any, steps: int = 1001) -> float:
        return plain_slope(sizes, temperatures, array[drawn].mean(axis=0), steps)

    found = stats.bootstrap(
        (range(len(array)),), slope, n_resamples=600, vectorized=False, method="percentile",
        random_state=1,
    )  # fmt: skip
    return (slope(range(len(array)), 40_001), *found.confidence_interval)


@pytest.mark.parametrize(
    ("name", "which", "x", "kept"),
    [
        ("S1", 0, "width", "width <= 100"),
        ("S1", 1, "width", "width >= 100"),
        ("S2", 0, "epochs", "width == 30 and `data.jitter` == 0"),
        ("S4", 1, "width", "loss == 'standardised_kd'"),
    ],
)
def test_slopes_and_intervals_are_those_of_a_plain_bootstrap(
    name: str, which: int, x: str, kept: str
) -> None:
    found = find(name, GOOD[name]).estimates[which]
    point, low, high = bootstrapped(GOOD[name].query(kept), x)
    assert found.n == 10
    assert found.mean == pytest.approx(point, abs=1e-4)
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.15 * (high - low))


def test_a_known_law_is_recovered() -> None:
    up, on, bend = find("S1", GOOD["S1"]).estimates
    assert up.low < 0.55 < up.high and up.high - up.low < 0.1
    assert on.low < 0 < on.high
    assert bend.mean == pytest.approx(up.mean - on.mean)
    plain, own, difference = find("S4", GOOD["S4"]).estimates
    assert own.low < 0 < own.high
    assert difference.mean == pytest.approx(plain.mean - own.mean)


def test_equivalence_is_judged_by_the_90_percent_interval() -> None:
    found = find("S4", GOOD["S4"])
    told = re.search(r"90 % interval of .* \[(.+), (.+)\], margin 0.15", found.outcome)
    assert told is not None
    low, high = map(float, told.groups())
    own = found.estimates[1]
    normal = stats.norm.ppf(0.95) / stats.norm.ppf(0.975)
    assert (high - low) / (own.high - own.low) == pytest.approx(normal, abs=0.05)


def test_seeds_that_one_loss_has_alone_do_not_count() -> None:
    more = made(power, {"width": (10, 30, 100, 300), "temperature": law.PLAIN}, 90, [20, 21])
    found, known = find("S4", pd.concat([GOOD["S4"], more])), find("S4", GOOD["S4"])
    assert (found.estimates, found.verdict) == (known.estimates, known.verdict)
    assert found.outcome == f"{known.outcome}; seeds that lack runs do not count: 20, 21"


def test_both_losses_of_a_seed_are_drawn_together() -> None:
    def own(runs: pd.DataFrame) -> Any:  # a slope of each seed's
        return 3 * (runs["width"] / 55) ** (0.05 * (runs["seed"] - 14.5))

    plain, _, difference = find("S4", losses(own, own, noise=0)).estimates
    assert difference.high - difference.low < (plain.high - plain.low) / 4


@pytest.mark.parametrize(
    ("slopes", "wanted"),
    [
        (lambda x: -(x - 1) * (x - 2.5), math.e),  # though the cubic is less at T = 40
        (lambda x: (x - 0.5) * (x - 2), math.e**2),
        (lambda x: x - 1, math.e),
        (lambda x: x + 1, 1),
        (lambda x: -(x + 1), 40),
        (lambda x: 1 + 0 * x, 1),
        (lambda x: (x - 1) * (x - 6), 40),  # falls to the end
        (lambda x: -(x + 1) * (x - 3), 1),  # rises first, and falls a little at the end
    ],
)
def test_the_best_temperature_is_the_minimum_of_the_cubic(
    slopes: Callable[[Any], Any], wanted: float
) -> None:
    grid = np.array(law.TEMPERATURES, float)
    means = [quad(slopes, 0, math.log(t))[0] for t in grid]  # a cubic of this derivative
    found = best(np.array([means, means]), grid)
    assert found == pytest.approx([wanted, wanted])


def test_what_has_no_verdict_is_told_beside_one() -> None:
    found = find("S2", GOOD["S2"])
    for beside in ("30 units with jitter 2", "100 units with jitter 0", "100 units with jitter 2"):
        assert f"slope at {beside}: 0.2" in found.outcome
    runs = GOOD["S2"].query("width == 30 and `data.jitter` == 0 and epochs == 120")
    errors = runs.pivot(index="seed", columns="temperature", values="test_errors")
    cost = (errors[1] - errors[[2, 3, 4]].mean(axis=1)).mean()
    [told] = [e for e in found.estimates if "after 120 epochs" in e.label]
    assert told.mean == pytest.approx(cost) and told.n == 10
    alone = find("S2", GOOD["S2"].query("width == 30 and (`data.jitter` == 0 or epochs < 400)"))
    assert alone.verdict == REPRODUCED and alone.estimates == found.estimates


def test_a_best_temperature_at_an_end_says_that_it_is_a_bound() -> None:
    assert "at most 1.0 at 6" in find("S1", widths(lambda runs: 0.03 * runs["width"])).outcome
    assert "at least 40.0 at 300" in find("S1", widths(lambda runs: runs["width"])).outcome


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
    bests = dict(zip(figure.sizes, (y.mean for y in figure.found), strict=True))
    assert bests == pytest.approx({10: 1.7, 30: 3.1, 100: 6.0, 300: 5.3, 800: 5.2}, abs=0.1)
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
        ("patience", 1440, {"train.epochs": law.EPOCHS, "loss.temperature": law.PATIENT}),
        ("standardised", 440, {"loss.temperature": law.STANDARDISED}),
        ("standardised_beside", 320, {"loss.temperature": law.PLAIN}),
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
