"""Claims decided, one way and the other, on runs made up like those of their experiments."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from designs import (
    EXPERIMENTS,
    Rows,
    designed,
    ensembles,
    find,
    fractions,
    identities,
    made_sweep,
    mixed,
    networks,
    posts,
    rates,
    shifted,
    temperatures,
    valley,
    wide,
)

from bench.evidence import SWEEPS
from distill.findings.claim import Claim
from distill.findings.claims import CLAIMS, RATES, findings
from distill.findings.preconditions import check, lacking
from distill.report.contents import NOT, REPRODUCED, UNDECIDED, Unfinished
from distill.report.numbers import text

THREE: dict[str, Any] = {"transfer_classes": "3"}
TWO: dict[str, Any] = {"transfer_classes": "7 8"}
TOP = RATES[-1]  # the longest step of the grid
LABELS: dict[str, Any] = {"alpha": 0.6667}
CASES: list[tuple[str, str, Rows]] = [
    ("C1", REPRODUCED, networks(140, 75, 60)),
    ("C1", REPRODUCED, networks(140, 75, 71)),  # at most a tenth above 67
    ("C1", NOT, networks(140, 75, 77)),
    ("C1", UNDECIDED, networks(140, 75, 73.7)),
    ("C1", UNDECIDED, networks(140, 75, 60, n=9)),
    ("C2", REPRODUCED, networks(152, 75, 60)),
    ("C2", NOT, networks(170, 75, 60)),
    ("C2", NOT, networks(120, 75, 60)),  # a baseline that is better is another one
    ("C2", UNDECIDED, networks(160.6, 75, 60)),
    ("C3", REPRODUCED, networks(140, 79, 60)),
    ("C3", NOT, networks(140, 85, 60)),
    ("C3", UNDECIDED, networks(140, 81.4, 60)),
    ("C3", UNDECIDED, networks(70, 70, 60)),  # no better than the hard student
    ("C4", REPRODUCED, wide(lambda _: 110)),
    ("C4", NOT, wide(lambda t: 110 + 40 * (t == 40))),
    ("C4", UNDECIDED, wide(lambda t: 110 + 8 * (t == 40))),
    ("C4", UNDECIDED, wide(lambda _: 110, noise=60)),
    ("C4", UNDECIDED, wide(lambda _: 110, n=23)),
    ("C4", UNDECIDED, wide(lambda _: 110, wider=11)),
    ("C4", UNDECIDED, wide(lambda t: 110 + 40 * (t == 40), wider=11)),
    ("C5", REPRODUCED, temperatures(valley, 30)),
    ("C5", UNDECIDED, temperatures(lambda _: 250, 30, noise=40)),
    ("C5", NOT, temperatures(lambda t: 200 + 3 * t, 30)),  # the lower, the better
    # What is beside it, with labels, decides nothing.
    ("C5", REPRODUCED, [*temperatures(valley, 30), *temperatures(lambda t: 9 + t, 30, **LABELS)]),
    ("C5", NOT, [*temperatures(lambda t: 200 + 3 * t, 30), *temperatures(valley, 30, **LABELS)]),
    ("C6", REPRODUCED, shifted(206, 115, 12, **THREE)),
    ("C6", NOT, shifted(206, 125, 12, **THREE)),
    ("C6", NOT, shifted(206, 100, 30, **THREE)),  # too many threes are wrong
    ("C6", NOT, shifted(206, 100, 12, of=20, **THREE)),  # fewer than half are mended
    ("C6", UNDECIDED, shifted(206, 100, 12, of=25, **THREE)),
    ("C6", UNDECIDED, shifted(206, 119.9, 12, **THREE)),
    ("C6", UNDECIDED, shifted(206, 100, 12, n=9, **THREE)),
    ("C7", REPRODUCED, shifted(4730, 1400, 12, **TWO)),
    ("C7", NOT, shifted(4730, 1500, 12, **TWO)),
    ("C7", NOT, shifted(2600, 1400, 12, **TWO)),  # few errors before, too
    ("C7", UNDECIDED, shifted(2800, 1400, 12, **TWO)),
    ("C8", REPRODUCED, fractions(100)),
    ("C8", NOT, fractions(400)),  # better than hard, but not by half
    ("C8", NOT, fractions(600)),
    ("C8", UNDECIDED, fractions(250)),
    ("C9", REPRODUCED, rates(1 / 4, 1 / 4, 1)),
    ("C9", REPRODUCED, rates(1 / 8, 1 / 8, 1 / 4)),
    ("C9", NOT, rates(1, 4, 1)),  # as long where targets have most entropy
    ("C9", NOT, rates(1, 1, 1 / 4)),
    ("C9", UNDECIDED, mixed(rates(1 / 4, 1 / 4, 1), rates(1 / 4, 1 / 4, 1 / 4), 2)),
    # longer, but how much?
    ("C9", UNDECIDED, mixed(rates(1 / 4, 1 / 4, 1 / 2), rates(1 / 4, 1 / 4, 1 / 4), 4)),
    # The ends of the grid are bounds: soft may be longer, labels shorter; and the other way.
    ("C9", REPRODUCED, rates(1 / 16, 1 / 4, TOP)),
    ("C9", UNDECIDED, rates(TOP, TOP, TOP)),
    ("C9", NOT, rates(TOP, 1 / 4, 2)),
    ("C9", UNDECIDED, rates(1 / 16, 1 / 4, 1 / 16)),
    ("C9", UNDECIDED, rates(1 / 32, 1 / 4, 1 / 16)),
    ("C10", REPRODUCED, ensembles(140, 110, 115)),
    ("C10", NOT, ensembles(140, 110, 135)),
    ("C10", UNDECIDED, ensembles(140, 110, 126)),
    ("C10", NOT, ensembles(110, 110, 110)),  # nothing gained
    ("C10", NOT, ensembles(110, 120, 110)),  # the ensemble is worse
    ("C11", REPRODUCED, identities("C11", 1e-7)),
    ("C11", NOT, identities("C11", 1e-5)),
    ("C12", REPRODUCED, identities("C12", 1e-9)),
    ("C12", NOT, identities("C12", 1e-3)),
    ("C13", REPRODUCED, posts(100, 125, 110)),
    ("C13", NOT, posts(100, 140, 110)),
    ("C13", UNDECIDED, posts(100, 125, 110, n=4)),
]
PAPER = [claim for claim in CLAIMS if claim.id in {of for of, _, _ in CASES}]  # and the post
WHOLE = {claim: made for claim, verdict, made in reversed(CASES) if verdict == REPRODUCED}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("claim", "verdict", "made"), CASES, ids=lambda v: v if type(v) is str else ""
)
def test_a_claim_is_decided_by_its_test(claim: str, verdict: str, made: Rows) -> None:
    found = find(claim, made)
    assert found.verdict == verdict, found.outcome
    assert found.outcome
    assert (found.sweep, found.command, found.version) == ("mine", "distill experiment=x", "1.2")


def test_every_claim_is_tried_both_ways() -> None:
    tried = {(claim, verdict == REPRODUCED) for claim, verdict, _ in CASES}
    assert tried == {(claim.id, way) for claim in PAPER for way in (True, False)}


@pytest.mark.table
@pytest.mark.parametrize("claim", PAPER, ids=lambda claim: claim.id)
def test_a_sweep_without_its_runs_leaves_its_claim_undecided(claim: Claim) -> None:
    whole = made_sweep(claim.id, WHOLE[claim.id])
    for key, values in claim.covers.items():
        left = whole.runs[whole.runs[key] != values[0]]
        found = claim.judge(replace(whole, runs=left)).finding
        assert found.verdict == UNDECIDED
        assert "lacks runs" in found.outcome
    found = claim.judge(replace(whole, runs=whole.runs.iloc[:1])).finding
    assert found.verdict == UNDECIDED or claim.seeds == 1


def test_a_rate_without_a_run_is_not_taken_for_one_that_is_not_borne() -> None:
    made = rates(1 / 4, 1 / 4, 1)
    left = [r for r in made if (r["seed"], r["lr"], r["alpha"]) != (12, 2.0, 0.0)]
    assert len(left) == len(made) - 1
    found = find("C9", left)
    assert found.verdict == UNDECIDED
    assert found.outcome == "the sweep lacks runs (not one run of each learning rate of seed 12)"


DESIGNED = [claim for claim in PAPER if (EXPERIMENTS / f"{claim.sweep}.yaml").is_file()]
ITS_WIDTH = {"C5": 30}  # of several


@pytest.mark.slow
@pytest.mark.parametrize("claim", DESIGNED, ids=lambda claim: claim.id)
def test_the_runs_of_its_experiment_will_meet_its_preconditions(claim: Claim) -> None:
    near = ITS_WIDTH.get(claim.id)
    parts = [designed(name.split()[0], near) for name in SWEEPS[claim.sweep]]
    runs = pd.concat(parts, ignore_index=True)
    checked = check(runs, claim.parts, claim.compared)
    assert not checked.counted.empty, checked.missed
    assert not lacking(checked.counted, claim.covers)
    seeds = runs["seed"].nunique()
    assert seeds >= claim.seeds


def test_students_with_labels_in_their_loss_are_of_no_law() -> None:
    beside = designed("temperature_law_labels")
    counted = {c.id for c in CLAIMS if not check(beside, c.parts, c.compared).counted.empty}
    assert counted == {"C1", "C5"}  # C1 is of their teachers
    known = made_sweep("C5", temperatures(valley, 30))
    [c5] = [claim for claim in CLAIMS if claim.id == "C5"]
    alone = c5.judge(replace(known, runs=known.runs.assign(alpha=0.6667))).finding
    assert (alone.verdict, alone.outcome) == (UNDECIDED, "the sweep lacks runs (alpha=1)")
    left = [r for r in temperatures(valley, 30) if r["temperature"] < 40]
    labelled = temperatures(valley, 30, **LABELS)
    assert "lacks runs (alpha=1 temperature=40)" in find("C5", [*left, *labelled]).outcome
    part = find("C5", [*temperatures(valley, 30), *(r | LABELS for r in left)])
    assert part.verdict == REPRODUCED
    assert part.outcome.endswith("; alpha 2/3 lacks runs (temperature=40)")


def test_a_width_with_too_few_pairs_decides_nothing() -> None:
    whole = wide(lambda _: 110)
    found = find("C4", [r for r in whole if (r["seed"], r["temperature"]) != (12, 40)])
    assert found.verdict == UNDECIDED
    assert "300 units: n = 23, at least 24 are wanted" in found.outcome


OTHER: dict[str, Any] = {  # what no run of these claims has
    "data": "synthetic", "data.validation": 0.1, "model": "cnn", "model.depth": 3, "width": 799,
    "temperature": 3.5, "alpha": 0.4, "transfer": "x", "transfer_classes": "1 2", "data.jitter": 1,
    "transfer_examples": 59_999, "epochs": 1, "test": False, "model.dropout": 0.1, "loss": "hard",
    "weight_decay": 0.1, "teacher.model.width": 800, "teacher.model.depth": 3, "teacher.jitter": 0,
    "teacher.train.epochs": 1, "teacher.members": 3, "teacher.model.dropout": 0.05,
    "optimizer": "x", "model.input_dropout": 0.2, "model.max_norm": 1.5, "data.mean": 0.2,
    "data.std": 0.2, "lr": 0.7, "batch_size": 9, "optim.schedule": "x", "claim": "x", "seed": 3,
    "data.test_jitter": 1, "train.clip_norm": 1.5, "train.keep_best": False, "augment": "x",
    "train.normalise": "x", "optim.momentum": 0.5,
    "data.flip": True, "loss.smoothing": 0.1, "loss.class_weights": "x", "views": "x",
    "teacher.model.max_norm": -1,
}  # fmt: skip
ITS: dict[tuple[str, str], Any] = {("C4", "width"): 100}
CONDITIONS = sorted({(c.id, key) for c in PAPER for part in c.parts for key in part})


@pytest.mark.slow
@pytest.mark.parametrize(("claim", "key"), CONDITIONS)
def test_runs_that_miss_a_precondition_do_not_count(claim: str, key: str) -> None:
    one = next(c for c in CLAIMS if c.id == claim)
    whole = made_sweep(claim, WHOLE[claim])
    known = one.judge(whole)
    runs = whole.runs[whole.runs[one.evidence].isin(known.evidence)]
    value = ITS.get((claim, key), OTHER[key])
    judged = one.judge(replace(whole, runs=runs.assign(**{key: value})))
    assert known.suffices and not judged.suffices
    assert judged.finding.verdict == UNDECIDED
    assert f" has {key}={text(value)}, wanted is " in judged.finding.outcome
    gone = one.judge(replace(whole, runs=runs.drop(columns=key)))
    assert gone.finding.verdict == UNDECIDED
    assert f" has no column {key}, wanted is " in gone.finding.outcome


def test_a_folders_name_decides_nothing() -> None:
    bars = find("C2", networks(140, 75, 60), "paper_networks", data="synthetic", temperature=4.0)
    assert (bars.verdict, bars.estimates) == (UNDECIDED, ())
    assert bars.outcome == "run0 has data=synthetic, wanted is mnist"
    assert not findings([made_sweep("C2", networks(140, 75, 60), data="synthetic")])
    # In a folder of any name runs count that meet the preconditions, whatever lies beside them.
    both = networks(150, 70, 60)
    both += [r | {"temperature": 4.0, "test_errors": 9, "data": "synthetic"} for r in both]
    found = {f.id: f.verdict for f in findings([made_sweep("C3", both)])}
    assert found == {"C1": REPRODUCED, "C2": REPRODUCED, "C3": REPRODUCED}


def test_a_sweep_that_looks_like_a_claims_says_what_it_misses() -> None:
    cool = find("C3", networks(150, 70, 60), temperature=4.0)
    assert cool.verdict == UNDECIDED
    assert (
        cool.outcome == "the sweep lacks runs (alpha=0.6667); run10 has temperature=4, wanted is 20"
    )


@pytest.mark.parametrize(
    ("key", "values"), [("lr", (0.003, 0.001)), ("precision", ("bf16", "fp32")),
                        ("device", ("cpu", "cuda")), ("batch_size", (256, 64))]
)  # fmt: skip
@pytest.mark.parametrize("apart", ["seeds", "arms", "twice"])
def test_runs_of_several_settings_are_not_pooled(
    key: str, values: tuple[Any, Any], apart: str
) -> None:
    made = networks(150, 70, 60)
    sides = {"seeds": lambda r: r["seed"] > 14, "arms": lambda r: r["alpha"] > 0}
    if apart == "twice":
        made = [r | {key: value} for value in values for r in made]
    else:
        made = [r | {key: values[sides[apart](r)]} for r in made]
    found = find("C3", made)
    assert (found.verdict, found.estimates) == (UNDECIDED, ())
    assert f"not of one setting: {key}={', '.join(map(text, values))}" in found.outcome


def test_a_sweep_that_is_not_finished_or_shares_a_teacher_decides_nothing() -> None:
    [c3] = [claim for claim in CLAIMS if claim.id == "C3"]
    whole = made_sweep("C3", networks(150, 70, 60))
    left = Unfinished(20, 21, ("1 missing",), ())
    assert c3.judge(whole).finding.verdict == REPRODUCED
    for sweep, reason in (
        (replace(whole, unfinished=left), "the sweep is not finished: 20 of 21 planned runs ended"),
        (replace(whole, runs=whole.runs.assign(teacher_digest="one")), "its seeds share a teacher"),
    ):
        found = c3.judge(sweep).finding
        assert (found.verdict, found.estimates) == (UNDECIDED, ())
        assert found.outcome.startswith(reason)


def test_an_ensemble_is_of_each_seeds_own() -> None:
    shared = [r | {"teacher_digest": "one"} for r in ensembles(140, 110, 115)]
    assert "share a teacher" in find("C10", shared, "ensemble").outcome


def test_of_several_sweeps_none_is_chosen_in_silence() -> None:
    one = made_sweep("C2", networks(150, 70, 60), "one")
    other = made_sweep(
        "C2",
        [
            r | {"run": f"x{r['seed']}{r['alpha']}", "teacher_digest": f"x{r['seed']}"}
            for r in networks(180, 70, 60)
        ],
        "other",
    )
    found = [(f.id, f.sweep, f.verdict) for f in findings([one, other]) if f.id == "C2"]
    assert found == [("C2", "one", REPRODUCED), ("C2", "other", NOT)]
    copy, more = replace(one, name="copy"), replace(one, name="more")
    more = replace(more, runs=pd.concat([more.runs, other.runs.assign(width=30)]))
    assert [f.sweep for f in findings([more, copy]) if f.id == "C2"] == ["copy"]


def test_estimates_are_means_of_the_runs_that_a_claim_speaks_of() -> None:
    found = find("C2", networks(140, 75, 60))
    [hard] = found.estimates
    assert hard.n == 10
    assert hard.mean == np.mean(
        [r["test_errors"] for r in networks(140, 75, 60) if r["alpha"] == 0]
    )
    ours = {e.label: e for e in find("C6", shifted(206, 100, 101, **THREE)).estimates}
    assert ours["threes of them"].mean == 1  # the last of that name, after the shift of no label
    assert ours["after a shift chosen on training images"].mean == pytest.approx(105, abs=0.5)
