"""Claims on functions and gradients: rows made up so that each verdict comes out."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from designs import designed
from scipy import stats

from bench.students import said
from distill.findings import measured
from distill.findings.claim import Claim
from distill.findings.claims import CLAIMS, findings
from distill.findings.preconditions import From, check
from distill.report.contents import NOT, REPRODUCED, UNDECIDED, Finding, Sweep

pytestmark = pytest.mark.usefixtures("ruled")
Rows = list[dict[str, Any]]
C9, C11, C12 = measured.CLAIMS
GRID = (1, 2, 4, 6, 10, 20)


def settings(claim: Claim) -> dict[str, Any]:
    """What meets the preconditions of a claim."""
    [part] = claim.parts
    met = {k: v.least + (not v.itself) if isinstance(v, From) else v[0] for k, v in part.items()}
    return {**met, "version": "1.2", "status": "complete"}


def noisy(seed: int, noise: float, shift: float = 0) -> float:
    """A factor around 1 that differs from seed to seed."""
    return math.exp(noise * math.sin(7 * seed + shift))


def distances(at: Mapping[int, float], n: int = 10, noise: float = 0.1) -> Rows:
    """Of students at some temperatures, over that of two that match logits, about 0.8."""
    return [
        {
            "run": f"{t}-{seed}",
            "seed": seed,
            "temperature": float(t),
            "teacher_digest": str(seed),
            "student.temperature": t,
            "distance": 0.8 * ratio * noisy(seed, noise, t),
            "between": 0.8 * noisy(seed, 0.05),
        }
        for t, ratio in at.items()
        for seed in range(10, 10 + n)
    ]


def gradients(
    ratio: Mapping[int, float],
    scale: Mapping[int, float],
    n: int = 5,
    noise: float = 0.1,
    before: float = 1.5,
) -> Rows:
    """Norms of soft over hard gradients, and noise scales over that of labels, which is 900.

    Of trained students one a temperature, each with another norm of labels; as they are initialised
    the ratio is the temperature to a power.
    """
    return [
        row
        for seed in range(10, 10 + n)
        for row in (*first(seed, scale, noise, before), *trained(seed, ratio, noise))
    ]


def first(seed: int, scale: Mapping[int, float], noise: float, power: float) -> Rows:
    """Rows of a student as it is initialised, whose settings are those of the one at T = 1."""
    made: Rows = [{"target": "labels", "temperature": math.nan, "norm": 0.2, "noise_scale": 900.0}]
    for t in GRID:
        noise_scale = 900.0 * scale.get(t, 1) * noisy(seed, noise, t)
        own = {"target": "soft", "temperature": t, "noise_scale": noise_scale}
        made.append({**own, "norm": 0.2 * t**power})
    return [named(row, seed, "initial", 1) for row in made]


def trained(seed: int, ratio: Mapping[int, float], noise: float) -> Rows:
    """Rows of the students of each temperature; noise scales are of none to C9."""
    made: Rows = []
    for t in GRID:
        hard = {"target": "labels", "temperature": math.nan, "norm": 0.3 / t}
        norm = 0.3 / t * ratio.get(t, 1) * noisy(seed, noise, t)
        own = (hard, {"target": "soft", "temperature": t, "norm": norm})
        made += [named({**row, "noise_scale": math.nan}, seed, "trained", t) for row in own]
    return made


def named(row: dict[str, Any], seed: int, state: str, at: int) -> dict[str, Any]:
    name = f"{state}-T{at}-{row['target']}-{row['temperature']}-{seed}"
    return {**row, "run": name, "seed": seed, "state": state, "student.temperature": at}


def made(claim: Claim, rows: Rows, **other: Any) -> Sweep:
    frame = pd.DataFrame([{**settings(claim), **row, **other} for row in rows])
    return Sweep("mine", Path("mine"), frame, ("command",))


def find(claim: Claim, rows: Rows, **other: Any) -> Finding:
    return claim.judge(made(claim, rows, **other)).finding


NEAR: Mapping[int, float] = {1: 2.0, 4: 3.0, 100: 0.3, 1000: 0.2}
STEEP: Mapping[int, float] = {1: 0.6, 2: 1.0, 4: 2.0, 6: 4.0, 10: 6.0, 20: 9.0}
CASES: list[tuple[Claim, str, Rows]] = [
    (C11, REPRODUCED, distances(NEAR)),
    (C11, NOT, distances({1: 2.0, 100: 0.3, 1000: 0.7})),  # one is enough
    (C11, UNDECIDED, distances({1: 2.0, 100: 0.3, 1000: 0.5})),
    (C11, UNDECIDED, distances({1: 2.0, 100: 0.3, 1000: 0.4}, noise=1.0)),
    (C11, UNDECIDED, distances(NEAR, n=9)),
    (C11, UNDECIDED, distances({1: 0.2, 100: 0.3, 1000: 0.2})),  # the same start is all it takes
    (C11, NOT, distances({1: 0.1, 100: 0.3, 1000: 0.2})),
    (C12, NOT, gradients(STEEP, {})),
    (C12, REPRODUCED, gradients({1: 0.8, 20: 1.2}, {})),
    (C12, NOT, gradients({6: 4.0}, {})),  # nor does it matter at which temperatures
    (C12, UNDECIDED, gradients({1: 0.7, 20: 1.4}, {}, noise=0.2)),
    (C12, UNDECIDED, gradients(STEEP, {}, n=4)),
    (C9, REPRODUCED, gradients(STEEP, {2: 3.0, 20: 0.04})),
    (C9, NOT, gradients(STEEP, {1: 0.1, 20: 0.8})),
    (C9, UNDECIDED, gradients(STEEP, {20: 0.5})),
    (C9, UNDECIDED, gradients(STEEP, {20: 0.04}, n=4)),
]


@pytest.mark.parametrize(
    ("claim", "verdict", "rows"),
    CASES,
    ids=[f"{c.id}-{v}-{n}" for n, (c, v, _) in enumerate(CASES)],
)
def test_a_claim_is_decided_by_its_test(claim: Claim, verdict: str, rows: Rows) -> None:
    found = find(claim, rows)
    assert found.verdict == verdict, found.outcome
    assert found.outcome and (found.estimates or "lacks runs (seed=" in found.outcome)
    assert (found.sweep, found.command, found.version) == ("mine", "command", "1.2")


def test_the_opposite_of_several_parts_is_adjusted_and_they_are_not() -> None:
    """Of p values of some 0.03 each is small enough alone; of three, one is tripled."""
    rows = distances({1: 2.0, 100: 0.4, 1000: 0.385}, noise=0.45)
    assert find(C11, rows).verdict == REPRODUCED
    worse = distances({1: 2.0, 100: 0.61, 1000: 0.01}, noise=0.45)
    own = [2 * r["distance"] / r["between"] for r in worse if r["temperature"] == 100]
    p = stats.ttest_1samp(np.log2(own), 0, alternative="greater").pvalue
    assert 0.05 / 3 < p < 0.05 and find(C11, worse).verdict == UNDECIDED
    worse = distances({1: 2.0, 100: 0.8, 1000: 0.01}, noise=0.45)
    assert find(C11, worse).verdict == NOT


def test_estimates_are_the_ratios_and_the_noise_scales() -> None:
    rows = distances(NEAR, noise=0.0)
    two = [r["between"] for r in rows if r["temperature"] == 4]
    found = {e.label: e.mean for e in find(C11, rows).estimates}
    assert found["rms distance of two that match logits"] == pytest.approx(sum(two) / 10)
    for t, ratio in NEAR.items():
        own = sum(0.8 * ratio / b for b in two) / 10
        assert found[f"over that of two that match logits, T = {t}"] == pytest.approx(own)
    rows = gradients(STEEP, {20: 0.04}, noise=0.0)
    found = {e.label: e.mean for e in find(C12, rows).estimates}
    for t, ratio in STEEP.items():
        assert found.pop(f"soft over hard gradient, T = {t}") == pytest.approx(ratio)
    for t in GRID:
        assert found.pop(f"as initialised, T = {t}") == pytest.approx(t**1.5)
    assert found.pop("as initialised, largest over smallest") == pytest.approx(20**1.5)
    assert found == {"largest over smallest": pytest.approx(15)}
    assert len(C12.decide(made(C12, rows).runs).estimates) == 7  # the rest decides nothing
    found = {e.label: e.mean for e in find(C9, rows).estimates}
    scales = {"labels": 900, "T = 1": 900, "T = 2": 900, "T = 4": 900, "T = 20": 36}
    assert found == {f"noise scale, {of}": pytest.approx(scale) for of, scale in scales.items()}


@pytest.mark.parametrize(
    ("claim", "rows", "gone", "said"),
    [
        (C11, distances(NEAR), {"temperature": 1000.0}, "(temperature=1000)"),
        (C11, distances(NEAR), {"temperature": 1000.0, "seed": 13},
         "(no distance of seed 13, T = 1000)"),
        (C12, gradients({}, {}), {"temperature": 6.0}, "(temperature=6)"),
        (C12, gradients({}, {}), {"student.temperature": 6}, "(student.temperature=6)"),
        (C12, gradients({}, {}), {"temperature": 6.0, "state": "trained"},
         "(no norm of seed 10, T = 6)"),
        (C12, gradients({}, {}), {"target": "labels", "seed": 12, "student.temperature": 4},
         "(no norm of seed 12, T = 4)"),
        (C12, gradients({}, {}), {"state": "trained"}, "(state=trained)"),
        (C9, gradients({}, {}), {"temperature": 20.0, "state": "initial", "seed": 11},
         "(no noise_scale of seed 11, T = 20)"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_in_a_line(
    claim: Claim, rows: Rows, gone: dict[str, Any], said: str
) -> None:
    left = [row for row in rows if any(row[key] != value for key, value in gone.items())]
    assert len(left) < len(rows)
    found = find(claim, left)
    assert (found.verdict, found.outcome) == (UNDECIDED, f"the sweep lacks runs {said}")


def test_a_row_that_stands_twice_is_not_counted_twice() -> None:
    rows = gradients({}, {})
    found = find(C12, [*rows, {**rows[-1], "run": "again"}])
    assert found.outcome == "the sweep lacks runs (more than one norm of a seed)"


@pytest.mark.parametrize("claim", measured.CLAIMS, ids=lambda claim: claim.id)
def test_what_is_said_of_students_meets_the_preconditions(claim: Claim) -> None:
    name = "logit_limit" if claim is C11 else "contributions"
    runs = designed(name).assign(teacher_digest="a")
    found = Sweep(name, Path(name), runs)
    [part] = claim.parts
    keys = {key for key in part if key.startswith("student.")}
    assert keys and keys <= {*said(found, runs.iloc[0])}
    rows = pd.DataFrame([said(found, run) for _, run in runs.iterrows()])
    assert not check(rows, claim.parts, claim.compared).counted.empty


@pytest.mark.parametrize("claim", measured.CLAIMS, ids=lambda claim: claim.id)
def test_rows_that_miss_a_precondition_do_not_count(claim: Claim) -> None:
    rows = {C9.id: gradients({}, {20: 0.04}), C11.id: distances(NEAR), C12.id: gradients({}, {})}
    assert find(claim, rows[claim.id]).verdict == REPRODUCED
    [part] = claim.parts
    for key in part:
        other = -1 if isinstance(settings(claim)[key], int | float) else "x"
        found = find(claim, [{**row, key: other} for row in rows[claim.id]])
        assert found.verdict == UNDECIDED
        assert f" has {key}={other}, wanted is " in found.outcome
    apart = [
        {**row, "student.precision": ("fp32", "bf16")[row["seed"] > 11]} for row in rows[claim.id]
    ]
    assert "not of one setting: student.precision=fp32, bf16" in find(claim, apart).outcome


def test_the_rows_of_students_decide_no_claim_on_errors() -> None:
    known = {claim.id for claim in measured.CLAIMS}
    assert known <= {claim.id for claim in CLAIMS}
    for claim, rows in ((C11, distances(NEAR)), (C12, gradients({}, {}))):
        frame = pd.DataFrame([{**settings(claim), **row} for row in rows])
        assert {f.id for f in findings([Sweep("mine", Path("mine"), frame)])} <= known
