"""The report's statistics, and verdicts on sweeps made up to be decided one way or the other."""

import inspect
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import SMALL, ran
from designs import identities, made_sweep, networks, shifted, temperatures, valley

from distill import losses
from distill.cli.report import main
from distill.findings.claims import findings
from distill.report import reading
from distill.report.check import closest, compare
from distill.report.numbers import label
from distill.report.statistics import apart, equivalent, greater, holm, interval
from distill.runs.results import SWEEP


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


@pytest.mark.usefixtures("ruled")
def test_a_check_compares_verdicts() -> None:
    made = [
        made_sweep("C7", [{"run": f"{errors}-{r['seed']}", **r} for r in shifted(4730, errors, 10)])
        for errors in (1300, 1310, 1500)
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
    other = replace(made, runs=made.runs.assign(precision="bf16"))  # of another machine
    assert compare(other, made, findings).agrees
    # Trials of a study are not tested, so they have no figures that could be the same.
    untested = made.runs.assign(run=made.runs["run"] + "-trial", test_errors=math.nan)
    study = replace(made, runs=pd.concat([made.runs, untested], ignore_index=True))
    found = compare(study, study, findings)
    assert found.same == found.runs == len(made.runs)
    assert compare(other, made, findings).notes == ("precision is bf16, in the reference fp32",)
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


def test_the_losses_whose_alpha_weighs_the_labels_by_the_rest_are_those_that_say_so() -> None:
    """The reader knows them by name, for it imports no losses: one that is new is found here."""
    keys = {name: inspect.signature(getattr(losses, name)).parameters for name in losses.__all__}
    assert {*reading.MIXED} == {
        n for n, own in keys.items() if "alpha" in own and "hard" not in own
    }


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
