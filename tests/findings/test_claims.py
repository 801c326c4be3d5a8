"""Claims decided, one way and the other, on runs made up like those of their experiments."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from designs import (
    EXPERIMENTS,
    Rows,
    choices,
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

pytestmark = pytest.mark.usefixtures("ruled")
THREE: dict[str, Any] = {"transfer_classes": "3"}
TWO: dict[str, Any] = {"transfer_classes": "7 8"}
TOP = RATES[-1]  # the longest step of the grid
LABELS: dict[str, Any] = {"alpha": 0.6667}
CASES: list[tuple[str, str, Rows]] = [
    ("C1", REPRODUCED, networks(140, 75, 60)),
    ("C1", REPRODUCED, networks(140, 75, 71)),  # at most a tenth above 67
    ("C1", NOT, networks(140, 75, 77)),
    ("C1", UNDECIDED, networks(140, 75, 73.7)),
    ("C1", UNDECIDED, networks(140, 75, 60, n=19)),
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
    # What is beside it, with labels, decides nothing.
    ("C4", REPRODUCED, [*wide(lambda _: 110), *temperatures(lambda t: 9 + t, 300, **LABELS)]),
    ("C4", UNDECIDED, wide(lambda _: 110, n=23)),
    ("C4", UNDECIDED, wide(lambda _: 110, wider=11)),
    ("C4", UNDECIDED, wide(lambda t: 110 + 40 * (t == 40), wider=11)),
    ("C5", REPRODUCED, temperatures(valley, 30)),
    ("C5", UNDECIDED, temperatures(valley, 30, n=19)),
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
    ("C10", UNDECIDED, ensembles(110, 110, 110)),  # nothing gained
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
    assert found.verdict == UNDECIDED or not claim.named


def test_a_rate_without_a_run_is_not_taken_for_one_that_is_not_borne() -> None:
    made = rates(1 / 4, 1 / 4, 1)
    left = [r for r in made if (r["seed"], r["lr"], r["alpha"]) != (12, 2.0, 0.0)]
    assert len(left) == len(made) - 1
    found = find("C9", left)
    assert found.verdict == UNDECIDED
    assert found.outcome == "the sweep lacks runs (not one run of each learning rate of seed 12)"


def test_a_rate_whose_run_diverged_is_not_borne() -> None:
    [c9] = [claim for claim in CLAIMS if claim.id == "C9"]
    whole = made_sweep("C9", rates(1 / 4, 1 / 4, 1))
    known = c9.judge(whole).finding
    broken = whole.runs["lr"].gt(1)
    lost = whole.runs[broken].assign(test_errors=9020)
    sweep = replace(whole, runs=whole.runs[~broken], diverged=lost)
    found = c9.judge(sweep).finding
    assert (found.verdict, found.outcome) == (REPRODUCED, known.outcome)
    assert "lacks runs (lr=2)" in c9.judge(replace(sweep, diverged=None)).finding.outcome
    rest = whole.runs[whole.runs["seed"].ne(14)]
    every = whole.runs[whole.runs["seed"].eq(14)].assign(test_errors=9020)
    one = c9.judge(replace(whole, runs=rest, diverged=every)).finding
    assert one.outcome == "the sweep lacks runs (all of seed 14 diverged)"
    # What stands beside it may lack some.
    gone = whole.runs[(whole.runs["temperature"] != 2) | (whole.runs["lr"] != 2)]
    part = c9.judge(replace(whole, runs=gone)).finding
    assert (part.verdict, part.estimates[0]) == (REPRODUCED, known.estimates[0])
    assert part.outcome.endswith("; T = 2: not one run of each learning rate of seed 10")


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
    named = {seed for seeds in claim.named for seed in seeds}
    assert named <= {*runs["seed"]} and claim.fewest > 2


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


LEFT = {  # what changes no figure of these claims, and why
    **dict.fromkeys(("precision", "device"), "any, but one for all runs"),
    **dict.fromkeys(("optim.milestones", "optim.gamma"), "of multistep alone"),
    **dict.fromkeys(("teacher.optim.milestones", "teacher.optim.gamma"), "of multistep alone"),
    **dict.fromkeys(("model.features", "teacher.model.features"), "of losses of features alone"),
    **{"teacher.targets": "where the same logits come from"},
    **{"train.ema": "of columns of its own", "seed": "a test of its own"},
}
WHERE_ALL = ("transfer_classes", "transfer_fraction")  # say nothing of a whole transfer set


def other(value: Any) -> Any:
    """A value of a setting that no experiment of these claims has."""
    if isinstance(value, bool | np.bool_):
        return not value
    return value + 0.37 if isinstance(value, int | float) and value == value else "x"


def matters(claim: Claim, key: str) -> bool:
    """Whether a figure of the claim hangs on a setting."""
    if claim.id == "C1":  # of teachers
        return key.startswith(("teacher", "data")) and key != "data.jitter"
    if claim.id == "C2":  # of labels alone
        return key != "temperature" and not key.startswith("teacher")
    return True


@pytest.mark.slow
@pytest.mark.parametrize("claim", DESIGNED, ids=lambda claim: claim.id)
def test_every_setting_that_matters_is_a_precondition(claim: Claim) -> None:
    names = [name.split()[0] for name in SWEEPS[claim.sweep]]
    parts = [designed(name, ITS_WIDTH.get(claim.id)) for name in names]
    runs = pd.concat(parts, ignore_index=True)[parts[0].columns]  # others have losses of their own
    runs = check(runs, claim.parts, claim.compared).counted
    assert not lacking(runs, claim.covers)
    whole = {*runs["transfer"]} == {"all"}
    follows = WHERE_ALL if whole else ("transfer_examples",)  # from the others
    keys = [key for key in map(str, runs.columns) if key not in (*LEFT, *follows)]
    assert len(keys) > 50
    for key in filter(lambda key: matters(claim, key), keys):
        changed = runs.assign(**{key: [*map(other, runs[key])]})
        for left in (changed, runs.drop(columns=key)):
            checked = check(left, claim.parts, claim.compared)
            assert checked.counted.empty or lacking(checked.counted, claim.covers), key
            assert f"{key}=" in checked.missed or f"no column {key}" in checked.missed, key
    made = made_sweep(claim.id, WHOLE[claim.id])
    bad = claim.judge(replace(made, runs=made.runs.assign(data="synthetic"))).finding
    assert (bad.verdict, bad.estimates) == (UNDECIDED, ())
    assert bad.outcome.endswith(" has data=synthetic, wanted is mnist")


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
        cool.outcome == "the sweep lacks runs (alpha=0.6667); run20 has temperature=4, wanted is 20"
    )


@pytest.mark.parametrize(
    ("key", "values"), [("optim.gamma", (0.1, 0.2)), ("precision", ("bf16", "fp32")),
                        ("device", ("cpu", "cuda")), ("teacher.targets", ("auto", "cached"))]
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


def test_a_claim_that_names_its_seeds_wants_all_of_them_and_counts_no_more() -> None:
    [c3] = [claim for claim in CLAIMS if claim.id == "C3"]
    assert c3.fewest == 20 and {*c3.named} == {tuple(range(10, 30))}
    for n, verdict in ((10, UNDECIDED), (19, UNDECIDED), (20, REPRODUCED), (30, REPRODUCED)):
        made = made_sweep("C3", networks(150, 70, 60, n))
        found = c3.judge(made).finding
        assert found.verdict == verdict
        if verdict == UNDECIDED:
            assert found.outcome == f"the sweep lacks runs (seed={10 + n})"
        else:
            assert {e.n for e in found.estimates} == {20}
    worse = made.runs["seed"].gt(29) * 300 + made.runs["test_errors"]
    more = replace(made, runs=made.runs.assign(test_errors=worse))
    assert c3.judge(more).finding.estimates == found.estimates
    # One that lacks a run of its two is missed where it counts.
    gone = made.runs[(made.runs["seed"] != 17) | (made.runs["alpha"] == 0)]
    left = c3.judge(replace(made, runs=gone)).finding
    assert left.verdict == UNDECIDED
    assert left.outcome.endswith("; n = 19, at least 20 are wanted")


def test_without_a_commit_that_wrote_its_test_down_no_sweep_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [c2, c11] = [claim for claim in CLAIMS if claim.id in ("C2", "C11")]
    made = made_sweep("C2", networks(152, 75, 60))
    identity = made_sweep("C11", identities("C11", 1e-7))
    known = c2.judge(made).finding
    assert (known.verdict, known.rule) == (REPRODUCED, "abc1234")
    monkeypatch.setattr("distill.findings.claim.RULES", "")
    found = c2.judge(made).finding
    assert (found.verdict, found.estimates, found.rule) == (UNDECIDED, known.estimates, "")
    assert found.outcome == f"{known.outcome}; no commit is named yet that wrote the test down"
    assert c11.judge(identity).finding.verdict == REPRODUCED  # it has no seeds to draw again
    own = replace(c2, rule="def5678").judge(made).finding
    assert (own.verdict, own.rule) == (REPRODUCED, "def5678")


def test_an_ensemble_is_of_each_seeds_own() -> None:
    shared = [r | {"teacher_digest": "one"} for r in ensembles(140, 110, 115)]
    assert "share a teacher" in find("C10", shared, "ensemble").outcome


def test_an_ensembles_student_counts_at_what_was_chosen_alone() -> None:
    whole = ensembles(140, 110, 115)
    tested = [r for r in whole if r.get("test", True)]
    assert find("C10", whole).outcome.startswith("T = 2, alpha 2/3 have the fewest validation err")
    for best in ((4.0, 0.6667), (2.0, 1.0)):
        found = find("C10", [*tested, *choices(best)])
        assert (found.verdict, found.estimates) == (UNDECIDED, ())
        assert "single and distilled models of the same seeds, at what was chosen" in found.outcome
    # Of several that were tried the chosen one counts.
    both = [*tested, *(r | {"alpha": 1.0, "test_errors": 90} for r in tested if r["alpha"])]
    assert find("C10", [*both, *choices()]).estimates == find("C10", whole).estimates
    for rows in (tested, [*tested, *choices()[:-1]], [*tested, *choices()[3:]]):
        assert find("C10", rows).verdict == UNDECIDED
        assert "lacks runs" in find("C10", rows).outcome
    sweep = made_sweep("C10", whole)
    lost = sweep.runs["test"].eq(False) & sweep.runs["seed"].eq(1) & sweep.runs["alpha"].lt(1)
    lost &= sweep.runs["temperature"].eq(2)
    [c10] = [claim for claim in CLAIMS if claim.id == "C10"]
    other = c10.judge(
        replace(sweep, runs=sweep.runs[~lost], diverged=sweep.runs[lost].assign(val_errors=1))
    ).finding
    assert "at what was chosen, T = 2, alpha 1" in other.outcome


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
    assert hard.n == 20
    assert hard.mean == np.mean(
        [r["test_errors"] for r in networks(140, 75, 60) if r["alpha"] == 0]
    )
    ours = {e.label: e for e in find("C6", shifted(206, 100, 101, **THREE)).estimates}
    assert ours["threes of them"].mean == 1  # the last of that name, after the shift of no label
    assert ours["after a shift chosen on training images"].mean == pytest.approx(105, abs=0.5)
