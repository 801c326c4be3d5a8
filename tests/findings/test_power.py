"""The numbers of seeds of C3 and C4: their power, by the pilot's spread."""

from itertools import combinations

import numpy as np
import pytest
from conftest import reference
from designs import designed
from scipy import stats

from distill.findings import mnist
from distill.findings.claims import CLAIMS

PILOT, REPEATS = (10, 20, 40), 10_000
EXPERIMENTS = {300: "high_temperatures", 800: "high_temperatures_wide"}
SAID = {300: ("5.9", "80 %", "97 %"), 800: ("5.4", "82 %", "98 %")}


def spread(width: int) -> tuple[float, int]:
    """The deviation of errors within seeds, temperatures apart, and its degrees of freedom."""
    runs = reference()["temperature_vs_size"].runs
    table = runs[(runs["width"] == width) & runs["temperature"].isin(PILOT)].pivot(
        index="seed", columns="temperature", values="test_errors"
    )
    errors = table.to_numpy(float)
    rest = errors - errors.mean(axis=1, keepdims=True) - errors.mean(axis=0) + errors.mean()
    freedom = (errors.shape[0] - 1) * (errors.shape[1] - 1)
    return float(np.sqrt((rest**2).sum() / freedom)), freedom


def power(deviation: float, freedom: int | None, margin: float, n: int) -> float:
    """How often temperatures that are all alike are found so; of a deviation that is uncertain."""
    draws = np.random.default_rng(0)
    scale = np.ones(REPEATS)
    if freedom:
        scale = np.sqrt(freedom / draws.chisquare(freedom, REPEATS))
    errors = deviation * scale[:, None, None] * draws.normal(size=(REPEATS, n, len(mnist.HIGH)))
    alike = np.ones(REPEATS, dtype=bool)
    for one, other in combinations(range(len(mnist.HIGH)), 2):
        apart = errors[..., other] - errors[..., one]
        half = stats.t.ppf(0.95, n - 1) * apart.std(axis=1, ddof=1) / np.sqrt(n)
        alike &= abs(apart.mean(axis=1)) + half < margin
    return float(alike.mean())


@pytest.mark.slow
@pytest.mark.parametrize("width", EXPERIMENTS)
def test_the_seeds_of_c4_have_the_power_that_it_says(width: int) -> None:
    test = next(c for c in CLAIMS if c.id == "C4").test
    runs, n, margin = designed(EXPERIMENTS[width]), mnist.ENOUGH[width], mnist.APART[width]
    assert {*runs["width"]} == {width} and runs["seed"].nunique() == n
    assert f"n = {n} (" in test and f"at {width}" in test
    deviation, freedom = spread(width)
    found = power(deviation, freedom, margin, n), power(deviation, None, margin, n)
    said, *percents = SAID[width]
    assert f"{deviation:.1f}" == said
    for own, text in zip(found, percents, strict=True):
        assert 100 * own == pytest.approx(float(text.split()[0]), abs=1.2)
        assert own > 0.795
    assert all(text in test for text in SAID[width])
    assert power(deviation, freedom, margin, n - 2) < 0.8  # no fewer would do


def test_c3_says_the_power_of_its_seeds() -> None:
    [c3] = [claim for claim in CLAIMS if claim.id == "C3"]
    runs = reference()["paper_networks"].runs
    deviation = runs[(runs["alpha"] == 1) & (runs["temperature"] == 20)]["test_errors"].std()
    found = []
    for n in (10, c3.fewest):
        limit = stats.t.ppf(0.95, n - 1)
        for mean in (76, 79):
            apart = (1.1 * 74 - mean) / (deviation / np.sqrt(n))
            found.append(100 * stats.nct.sf(limit, n - 1, apart))
    assert [f"{share:.0f}" for share in found] == ["76", "28", "97", "46"]
    assert "a mean of 76 with a power of 97 %, one of 79 with 46 %" in c3.test
