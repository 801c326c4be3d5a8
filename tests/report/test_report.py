"""The report's statistics, and verdicts on sweeps made up to be decided one way or the other."""

import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL, ran, reference

from distill.cli.report import main
from distill.findings import law
from distill.findings.claim import Claim
from distill.findings.claims import CLAIMS, findings
from distill.report import reading
from distill.report.check import closest, compare
from distill.report.contents import NOT, REPRODUCED, UNDECIDED, Finding, Sweep
from distill.report.numbers import label, text
from distill.report.statistics import apart, equivalent, greater, holm, interval
from distill.runs.results import SWEEP

Rows = list[dict[str, Any]]
PAPER = [c for c in CLAIMS if c not in law.CLAIMS]  # of others tests/findings/test_law.py speaks


def test_an_interval_is_that_of_students_t() -> None:
    found = interval([1, 2, 3])
    assert (found.n, found.mean) == (3, 2)
    assert found.high - 2 == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)  # t of 2 degrees
    assert 2 - found.low == pytest.approx(found.high - 2)
    assert math.isnan(interval([5]).low)
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_a_one_sided_test_has_its_textbook_value() -> None:
    # t = 2 / (sqrt(2.5) / sqrt(5)) = 2.828 with 4 degrees of freedom
    assert greater([0, 1, 2, 3, 4]) == pytest.approx(0.02371, abs=1e-4)
    assert greater([0, -1, -2, -3, -4]) == pytest.approx(1 - 0.02371, abs=1e-4)
    assert [greater([v, v]) for v in (1, 0, -1)] == [0, 0.5, 1]
    assert math.isnan(greater([1]))


def test_equivalence_asks_for_small_differences_and_small_doubt() -> None:
    small = [0.5, -0.5, 0.2, -0.2, 0.0]
    assert equivalent(small, 2) < 0.01
    assert equivalent([d + 1.9 for d in small], 2) > 0.05
    assert equivalent([d - 1.9 for d in small], 2) > 0.05
    assert equivalent([10 * d for d in small], 2) > 0.05
    assert equivalent([-1, 1], 1e9) < 0.01


def test_holm_multiplies_the_smallest_by_their_number() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_means_are_apart_or_not() -> None:
    assert apart([1, 2, 3], [11, 12, 13]) < 0.001
    assert apart([1, 2, 3], [1.5, 2.5, 2]) > 0.5
    assert math.isnan(apart([1], [2]))
    assert (apart([1, 1], [1]), apart([1, 1], [2, 2])) == (1, 0)


def spread(mean: float, n: int, noise: float = 2.0, shift: int = 0) -> list[float]:
    """Whole errors around a mean, which differ from seed to seed."""
    return [round(mean + noise * math.sin(7 * k + shift)) for k in range(n)]


def rows(n: int, mean: float, noise: float = 2.0, **settings: Any) -> Rows:
    salt = sum(map(ord, repr(sorted(settings.items()))))
    return [
        {"seed": k, "test_errors": e, **settings}
        for k, e in enumerate(spread(mean, n, noise, salt))
    ]


def networks(hard: float, soft: float, taught: float, n: int = 10) -> Rows:
    made = rows(n, hard, alpha=0.0) + rows(n, soft, alpha=1.0)
    for row in made:
        row["teacher_digest"] = str(row["seed"])
        row["teacher_test_errors"] = spread(taught, n)[row["seed"]]
    return made


def temperatures(errors: Callable[[float], float], width: int, noise: float = 2.0) -> Rows:
    grid = (1, 1.5, 2, 2.5, 3, 4, 6, 10, 14, 20, 40)
    return [r for t in grid for r in rows(5, errors(t), noise, temperature=t, width=width)]


def valley(t: float) -> float:
    """Errors that are fewest at T = 3."""
    return 230 + 40 * abs(math.log2(t / 3))


def shifted(before: float, after: float, threes: float, n: int = 5) -> Rows:
    made = rows(n, before)
    for row, errors in zip(made, spread(after, n), strict=True):
        row |= {
            "oracle_shift": 3.5,
            "oracle_shift_test_errors": errors,
            "bias_shift_test_errors": errors + 5,
            "test_errors_by_class": f"1 2 3 {row['test_errors'] - 6} 0 0 0 0 0 0",
            "oracle_shift_test_errors_by_class": f"9 9 9 {threes} 9 9 9 9 9 9",
            "bias_shift_test_errors_by_class": "9 9 9 202 9 9 9 9 9 9",
        }
    return made


def fractions(soft: float) -> Rows:
    """Errors at shares of the data: hard ones lose 500 at 3 %, soft ones ``soft``."""
    hard = {0.01: 1000, 0.03: 600, 1.0: 100}
    return [
        *(r for f, e in hard.items() for r in rows(5, e, alpha=0.0, transfer_fraction=f)),
        *(
            r
            for f, e in {0.01: 100 + 2 * soft, 0.03: 100 + soft, 1.0: 90}.items()
            for r in rows(5, e, alpha=1.0, transfer_fraction=f)
        ),
    ]


def rates(hard: float, soft: float, hot: float = 0.01) -> Rows:
    """Errors that explode above the highest rate that each loss bears: ``hot`` soft at T = 20."""
    return [
        r
        for alpha, temperature, most in ((0.0, 20.0, hard), (1.0, 1.0, soft), (1.0, 20.0, hot))
        for lr in (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
        for r in rows(5, 100 if lr <= most else 300, alpha=alpha, temperature=temperature, lr=lr)
    ]


def mixed(one: Rows, other: Rows, seeds: int) -> Rows:
    """The first seeds of ``one`` and the rest of ``other``."""
    return [r for r in one if r["seed"] < seeds] + [r for r in other if r["seed"] >= seeds]


def ensembles(single: float, together: float, distilled: float) -> Rows:
    made = rows(5, single, alpha=0.0) + rows(5, distilled, alpha=1.0)
    for row in made:
        row["teacher_digest"] = str(row["seed"])
        row["teacher_test_errors"] = spread(together, 5)[row["seed"]]
    return made


def limits(kd: float, noise: float = 2.0) -> Rows:
    return [
        *rows(5, 110, noise, loss="logits"),
        *rows(5, 130, noise, loss="kd", temperature=4.0),
        *rows(5, kd, noise, loss="kd", temperature=100.0),
    ]


def identities(claim: str, deviation: float) -> Rows:
    grid = (1e8,) if claim == "C11" else (1.0, 4.0)
    return [{"claim": claim, "temperature": t, "examples": 9, "deviation": deviation} for t in grid]


def posts(teacher: float, hard: float, soft: float, n: int = 3) -> Rows:
    made = networks(hard, soft, teacher, n)
    return [r | ({"alpha": 0.7, "epochs": 600} if r["alpha"] else {"epochs": 200}) for r in made]


CASES: list[tuple[str, str, Rows]] = [
    ("C1", REPRODUCED, networks(140, 75, 60)),
    ("C1", REPRODUCED, networks(140, 75, 67.5)),  # the interval holds 67
    ("C1", NOT, networks(140, 75, 75)),
    ("C1", UNDECIDED, networks(140, 75, 60, n=4)),
    ("C2", REPRODUCED, networks(140, 75, 60)),
    ("C2", NOT, networks(155, 75, 60)),
    ("C2", UNDECIDED, networks(140, 75, 60, n=9)),
    ("C3", REPRODUCED, networks(140, 70, 60)),
    ("C3", NOT, networks(140, 80, 60)),
    ("C3", UNDECIDED, networks(70, 70, 60)),  # no better than the hard student
    ("C4", REPRODUCED, temperatures(lambda _: 110, 300)),
    ("C4", UNDECIDED, temperatures(lambda t: 110 + 40 * (t == 40), 300)),
    ("C4", UNDECIDED, temperatures(lambda _: 110, 300, noise=60)),
    ("C4", UNDECIDED, temperatures(lambda _: 110, 100)),  # no student that is large enough
    ("C5", REPRODUCED, temperatures(valley, 30)),
    ("C5", UNDECIDED, temperatures(lambda _: 250, 30)),
    ("C5", NOT, temperatures(lambda t: 200 + 3 * t, 30)),  # the lower, the better
    ("C6", REPRODUCED, shifted(206, 100, 12)),
    ("C6", NOT, shifted(206, 120, 12)),
    ("C6", NOT, shifted(206, 100, 30)),  # too many threes are wrong
    ("C6", UNDECIDED, shifted(206, 100, 12, n=4)),
    ("C7", REPRODUCED, shifted(4730, 1300, 12)),
    ("C7", NOT, shifted(4730, 1400, 12)),
    ("C8", REPRODUCED, fractions(100)),
    ("C8", NOT, fractions(400)),  # better than hard, but not by half
    ("C8", NOT, fractions(600)),
    ("C8", UNDECIDED, fractions(250)),
    ("C9", REPRODUCED, rates(0.02, 0.08)),
    ("C9", NOT, rates(0.08, 0.08)),  # as high, but not much higher
    ("C9", UNDECIDED, mixed(rates(0.02, 0.08), rates(0.02, 0.02), 2)),
    ("C9", UNDECIDED, mixed(rates(0.02, 0.04), rates(0.02, 0.02), 4)),  # higher, but how much?
    ("C9", NOT, rates(0.08, 0.02)),
    ("C9", NOT, rates(0.08, 0.02, hot=0.16)),
    ("C10", REPRODUCED, ensembles(140, 110, 115)),
    ("C10", NOT, ensembles(140, 110, 135)),
    ("C10", UNDECIDED, ensembles(140, 110, 124.5)),
    ("C10", NOT, ensembles(110, 110, 110)),  # nothing gained
    ("C10", NOT, ensembles(110, 120, 110)),  # the ensemble is worse
    ("C11", REPRODUCED, identities("C11", 1e-7)),
    ("C11", NOT, identities("C11", 1e-5)),
    ("C11 (students)", REPRODUCED, limits(110)),
    ("C11 (students)", UNDECIDED, limits(125)),
    ("C11 (students)", UNDECIDED, limits(110, noise=40)),
    ("C12", REPRODUCED, identities("C12", 1e-9)),
    ("C12", NOT, identities("C12", 1e-3)),
    ("C13", REPRODUCED, posts(90, 110, 100)),
    ("C13", NOT, posts(90, 140, 100)),
    ("C13", UNDECIDED, posts(90, 110, 100, n=2)),
]


def made_sweep(claim: str, made: Rows, name: str = "mine", **other: Any) -> Sweep:
    """A sweep of rows like those of the claim's reference in all that they and ``other`` leave."""
    whole = reference()[next(c.sweep for c in CLAIMS if c.id == claim)].runs
    base: dict[Any, Any] = whole.iloc[0].to_dict()
    base |= {"version": "1.2", **other}
    frame = pd.DataFrame(
        [
            {**base, "teacher.seed": r.get("seed", 0), "seed": 0, "run": f"run{n}", **r}
            for n, r in enumerate(made)
        ]
    )
    return Sweep(name, Path(name), frame, ("distill experiment=x",))


def find(claim: str, made: Rows, name: str = "mine", **other: Any) -> Finding:
    sweep = made_sweep(claim, made, name, **other)
    return next(c for c in CLAIMS if c.id == claim).judge(sweep).finding


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
    whole = reference()[claim.sweep]
    for key, values in claim.covers.items():
        left = whole.runs[whole.runs[key] != values[0]]
        [found] = [f for f in findings([replace(whole, runs=left)]) if f.id == claim.id]
        assert found.verdict == UNDECIDED
        assert "lacks runs" in found.outcome
    only = whole.runs.iloc[:1]
    found = next(f for f in findings([replace(whole, runs=only)]) if f.id == claim.id)
    assert found.verdict == UNDECIDED or claim.seeds == 1


OTHER: dict[str, Any] = {  # what no run of these claims has
    "data": "synthetic", "data.validation": 0.1, "model": "cnn", "model.depth": 3, "width": 799,
    "temperature": 3.5, "alpha": 0.4, "transfer": "x", "transfer_classes": "1 2", "data.jitter": 1,
    "transfer_examples": 59_999, "epochs": 1, "test": False, "model.dropout": 0.1, "loss": "hard",
    "weight_decay": 0.1, "teacher.model.width": 800, "teacher.model.depth": 3, "teacher.jitter": 0,
    "teacher.train.epochs": 1, "teacher.members": 3, "teacher.model.dropout": 0.05,
    "optimizer": "x", "model.input_dropout": 0.2, "model.max_norm": 1.5, "data.mean": 0.2,
    "data.std": 0.2, "lr": 0.7, "batch_size": 9, "optim.schedule": "x", "claim": "x",
}  # fmt: skip
ITS: dict[tuple[str, str], Any] = {("C9", "temperature"): 0.5, ("C4", "width"): 100}
CONDITIONS = sorted({(c.id, key) for c in PAPER for part in c.parts for key in part})


@pytest.mark.slow
@pytest.mark.parametrize(("claim", "key"), CONDITIONS)
def test_runs_that_miss_a_precondition_do_not_count(claim: str, key: str) -> None:
    one = next(c for c in CLAIMS if c.id == claim)
    whole = reference()[one.sweep]
    known = one.judge(whole)
    runs = whole.runs[whole.runs[one.evidence].isin(known.evidence)]
    value = ITS.get((claim, key), OTHER[key])
    judged = one.judge(replace(whole, runs=runs.assign(**{key: value})))
    assert known.suffices and not judged.suffices and judged.suggested
    assert judged.finding.verdict == UNDECIDED
    assert f" has {key}={value}, wanted is " in judged.finding.outcome
    gone = one.judge(replace(whole, runs=runs.drop(columns=key)))
    assert gone.finding.verdict == UNDECIDED
    assert f" has no column {key}, wanted is " in gone.finding.outcome


def test_a_folders_name_decides_nothing() -> None:
    bars = find("C2", networks(140, 75, 60), "paper_networks", data="synthetic", temperature=4.0)
    assert (bars.verdict, bars.estimates) == (UNDECIDED, ())
    assert bars.outcome == "run0 has data=synthetic, wanted is mnist"
    assert not findings([made_sweep("C2", networks(140, 75, 60), data="synthetic")])
    # In a folder of any name runs count that meet the preconditions, whatever lies beside them.
    both = networks(140, 70, 60)
    both += [r | {"temperature": 4.0, "test_errors": 9, "data": "synthetic"} for r in both]
    found = {f.id: f.verdict for f in findings([made_sweep("C3", both)])}
    assert found == {"C1": REPRODUCED, "C2": REPRODUCED, "C3": REPRODUCED}


def test_a_sweep_that_looks_like_a_claims_says_what_it_misses() -> None:
    cool = find("C3", networks(140, 70, 60), temperature=4.0)
    assert cool.verdict == UNDECIDED
    assert cool.outcome == "the sweep lacks runs (alpha=1); run10 has temperature=4, wanted is 20"


@pytest.mark.parametrize(
    ("key", "values"), [("lr", (0.003, 0.001)), ("precision", ("bf16", "fp32")),
                        ("device", ("cpu", "cuda")), ("batch_size", (256, 64))]
)  # fmt: skip
@pytest.mark.parametrize("apart", ["seeds", "arms", "twice"])
def test_runs_of_several_settings_are_not_pooled(
    key: str, values: tuple[Any, Any], apart: str
) -> None:
    made = networks(140, 70, 60)
    sides = {"seeds": lambda r: r["seed"] > 4, "arms": lambda r: r["alpha"] > 0}
    if apart == "twice":
        made = [r | {key: value} for value in values for r in made]
    else:
        made = [r | {key: values[sides[apart](r)]} for r in made]
    found = find("C3", made)
    assert (found.verdict, found.estimates) == (UNDECIDED, ())
    assert f"not of one setting: {key}={', '.join(map(text, values))}" in found.outcome


def test_an_ensemble_is_of_each_seeds_own() -> None:
    shared = [r | {"teacher_digest": "one"} for r in ensembles(140, 110, 115)]
    assert "an ensemble of its own" in find("C10", shared, "ensemble").outcome


def test_of_several_sweeps_none_is_chosen_in_silence() -> None:
    one = made_sweep("C2", networks(140, 70, 60), "one")
    other = made_sweep(
        "C2",
        [
            r | {"run": f"x{r['seed']}{r['alpha']}", "teacher_digest": f"x{r['seed']}"}
            for r in networks(160, 70, 60)
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
    estimates = find("C6", shifted(206, 100, 101)).estimates
    assert estimates[3].mean == pytest.approx(90)  # 101 of 1,010 threes are wrong
    assert estimates[6].mean == pytest.approx(80)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of a few real students, as the command leaves it."""
    home = tmp_path_factory.mktemp("real")
    ran(home, "-m", *SMALL, "loss.temperature=1,4", "seed=0,1", "hydra.sweep.dir=sweep")
    return home / "sweep"


def report(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["distill-report", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else 1
    return 0


@pytest.mark.slow
def test_a_sweep_is_read_with_its_commands_curves_and_digits(real: Path) -> None:
    said = (real / SWEEP).read_text()
    secret = said.replace("loss.temperature=1,4", "hydra.sweeper.storage=mysql://me:it@there/x")
    (real / SWEEP).write_text(secret)
    found = reading.sweep(real)
    (real / SWEEP).write_text(said)
    assert (found.name, len(found.runs)) == ("sweep", 4)
    [command] = found.commands
    assert command.startswith("distill -m data=synthetic")
    assert "hydra.sweeper.storage=mysql://me:***@there/x" in command
    assert found.curves is not None
    assert (found.curves.groupby("run")["epoch"].max() == 2).all()
    assert set(found.curves["run"]) == set(found.runs["run"])
    assert found.digits
    assert {digit.label for digit in found.digits} <= {0, 1, 2, 3}
    for digit in found.digits:
        assert digit.pixels.shape == (12, 12)
        assert digit.logits.argmax() == digit.label  # those that the teacher gets right are shown


def test_the_summary_alone_is_enough(real: Path, home: Path) -> None:
    shutil.copy(real / "summary.csv", home)
    found = reading.sweep(home)
    assert (found.commands, found.curves, found.digits) == ((), None, ())
    assert found.runs["test_errors"].tolist() == reading.sweep(real).runs["test_errors"].tolist()


def test_a_copy_of_a_run_is_no_other_seed(real: Path, home: Path) -> None:
    frame = pd.read_csv(real / "summary.csv")
    copy = frame.iloc[:1].assign(directory="copy", seconds=9.0)
    pd.concat([frame, copy]).to_csv(home / "summary.csv", index=False)
    assert len(reading.sweep(home).runs) == 4
    pd.concat([frame, copy.assign(test_errors=-1)]).to_csv(home / "summary.csv", index=False)
    with pytest.raises(reading.ReportError, match=r"stands in it twice, with other figures"):
        reading.sweep(home)


@pytest.mark.slow
def test_the_command_writes_a_page_beside_the_sweep(
    real: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(real, home / "copy")
    assert report(monkeypatch, copy) == 0
    shown = (copy / "report.html").read_text()
    assert "<h2" in shown
    assert "what the teacher says of a digit" in shown
    assert list((copy / "figures").glob("*soft-targets.svg"))
    assert not (copy / "report.md").exists()  # no claim is decided on such a sweep
    shutil.copytree(real, home / "post")
    assert report(monkeypatch, copy, home / "post", "--out", home / "both") == 0
    assert "C13" in (home / "both" / "report.md").read_text()
    for path in copy.rglob("digits*.json"):
        path.unlink()
    assert report(monkeypatch, copy) == 0
    assert "what the teacher says of a digit" not in (copy / "report.html").read_text()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no summary.csv in it; give the directory of a sweep"),
        ("", "summary.csv cannot be read"),
        ("a,b\n1,2\n", "summary.csv cannot be read ('status')"),
        ("run,status\na,failed\n", "none of the 1 runs in summary.csv is complete"),
    ],
)
def test_what_is_no_sweep_is_refused_in_a_line(
    content: str | None,
    reason: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (home / "sweep").mkdir()
    if content is not None:
        (home / "sweep" / "summary.csv").write_text(content)
    assert report(monkeypatch, home / "sweep") == 1
    assert f"DIR={home / 'sweep'}: {reason}" in capsys.readouterr().err
    assert not list(home.rglob("report.html"))


@pytest.mark.slow
def test_a_check_tells_a_fresh_sweep_from_its_reference(
    real: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = shutil.copytree(real, home / "sweep")
    assert report(monkeypatch, fresh, "--check", real.parent) == 0
    assert "2 settings compared, 0 differ; 4 of 4 runs" in capsys.readouterr().out
    frame = pd.read_csv(fresh / "summary.csv")
    frame.loc[frame.temperature == 4, "test_errors"] += [1000, 1001]
    frame.to_csv(fresh / "summary.csv", index=False)
    assert report(monkeypatch, fresh, "--check", real.parent) == 1
    out = capsys.readouterr().out
    assert "2 settings compared, 1 differ; 2 of 4 runs" in out
    assert "temperature 4: " in out
    assert report(monkeypatch, fresh, "--check", home / "none") == 1
    assert f"--check={home / 'none'}: it holds no sweep sweep" in capsys.readouterr().err


def test_a_check_compares_verdicts() -> None:
    made = [
        made_sweep("C7", [{"run": f"{errors}-{r['seed']}", **r} for r in shifted(4730, errors, 12)])
        for errors in (1300, 1310, 1400)
    ]
    assert compare(made[1], made[0], findings).verdicts == ()
    [differs] = compare(made[2], made[0], findings).verdicts
    assert differs.startswith("C7: not reproduced against reproduced")


@pytest.mark.slow
def test_a_check_compares_what_is_alike_in_all_settings() -> None:
    made = made_sweep("C2", networks(140, 70, 60))
    same = compare(made, replace(made, name="reference"), findings)
    assert (same.name, same.settings, same.agrees) == ("mine (with reference)", 2, True)
    longer = replace(made, runs=made.runs.assign(epochs=90))
    found = compare(longer, made, findings)
    assert (found.settings, found.agrees) == (0, False)
    assert found.notes == ("epochs is 90, in the reference 60",)
    other = replace(made, runs=made.runs.assign(precision="fp32"))  # of another machine
    assert compare(other, made, findings).agrees
    # Trials of a study are not tested, so they have no figures that could be the same.
    untested = made.runs.assign(run=made.runs["run"] + "-trial", test_errors=math.nan)
    study = replace(made, runs=pd.concat([made.runs, untested], ignore_index=True))
    found = compare(study, study, findings)
    assert found.same == found.runs == len(made.runs)
    assert compare(other, made, findings).notes == ("precision is fp32, in the reference bf16",)
    assert closest(longer, [made, replace(longer, name="mine too")]) == replace(
        longer, name="mine too"
    )
    assert closest(made, [made_sweep("C5", temperatures(valley, 30), "mine too")]) is None


def test_the_identities_are_reported_and_checked_like_a_sweep(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "identities").mkdir()
    made = [
        {"run": f"{claim}-{row['temperature']}", "status": "complete", "version": "1"} | row
        for claim, deviation in (("C11", 5e-8), ("C12", 2e-15))
        for row in identities(claim, deviation)
    ]
    pd.DataFrame(made).to_csv(home / "identities" / "summary.csv", index=False)
    assert report(monkeypatch, home / "identities", "--check", home) == 0
    out = capsys.readouterr().out
    assert "5e-08" in out and "2e-15" in out
    assert out.count("reproduced") == 2
    assert "3 settings compared, 0 differ; 3 of 3 runs" in out
    assert "C12" in (home / "identities" / "report.html").read_text()


def test_an_alpha_of_0_is_labels_alone_where_it_weighs_them_by_the_rest(tmp_path: Path) -> None:
    rows = [
        {"run": f"{loss}-{alpha}", "status": "complete", "loss": loss, "alpha": alpha,
         "seed": 0, "test_errors": 9, "version": "1"}
        for loss in ("kd", "dkd") for alpha in (0.0, 1.0)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "summary.csv", index=False)
    runs = reading.sweep(tmp_path).runs.set_index("run")
    assert runs["alpha"].dropna().to_dict() == {"kd-0.0": 0, "kd-1.0": 1}
    assert runs["loss.alpha"].dropna().to_dict() == {"dkd-0.0": 0, "dkd-1.0": 1}
    keys = ["loss", "alpha", "loss.alpha"]
    named = {run: label(keys, [row[key] for key in keys]) for run, row in runs.iterrows()}
    assert named["kd-0.0"] == "soft targets, labels alone"
    assert named["dkd-0.0"] == "loss dkd, loss.alpha 0"
