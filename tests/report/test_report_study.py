"""The report of a study: its numbers against its files and by hand, its page, and what may lack."""

import csv
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from conftest import ran, shell
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from distill.cli.report import main
from distill.report import page, reading, trials
from distill.report.contents import Best, Gain, Study, Trial
from distill.tuning import EXPERIMENT, STUDY, telling
from distill.tuning.reading import studies

SMALL = (
    *("experiment=tune", "data=synthetic", "data.examples=64", "model.width=8", "precision=fp32"),
    *("teacher.model.width=16", "teacher.train.epochs=1", "train.epochs=2"),
)
KEYS = {"loss.temperature": "temperature", "loss.alpha": "alpha", "optim.lr": "lr"}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of eight trials, half of which were stopped."""
    home = tmp_path_factory.mktemp("tuned")
    halved = ("train.batch_size=64", "halving.rungs=1", "halving.factor=2")
    size = ("hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=4", "hydra.sweep.dir=tune")
    ran(home, *SMALL, *halved, *size)
    return home / "tune"


@pytest.fixture(scope="module")
def pareto(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two objectives, where each trial of one learning rate diverges."""
    home = tmp_path_factory.mktemp("pareto")
    space = ("model.width=2,8", "optim.lr=0.01,1e30", "~hydra.sweeper.params.loss\\.alpha")
    size = ("hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=6", "hydra.sweep.dir=front")
    aims = ("hydra.sweeper.objectives=[val_errors,parameters]", "halving.rungs=0")
    ran(home, *SMALL, "train.batch_size=8", *space, *size, *aims)
    return home / "front"


@pytest.fixture
def copied(tuned: Path, home: Path) -> Path:
    """The study of `tuned`, to be changed."""
    return shutil.copytree(tuned, home / "copy")


def rows(folder: Path) -> list[dict[str, str]]:
    """The summary, by the standard library alone."""
    with (folder / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def page_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> str:
    monkeypatch.setattr(sys, "argv", ["distill-report", str(folder), *more])
    main()
    return (folder / "report.html").read_text()


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


# Numbers made up, and worked out by hand.


def made(*found: tuple[str, float | None], key: str = "k", best: int = 1) -> Study:
    """A study of trials of a state and a value, by the numbers 0, 1, ..., key and number alike."""
    held = tuple(
        Trial(n, state, {key: float(n + 1)}, () if v is None else (v,), f"{state} so")
        for n, (state, v) in enumerate(found)
    )
    return Study("s", ("val_errors",), {key: "log"}, held, (Best(best, 7, "distill"),))


HALF = made(
    *[("complete", 9.0), ("complete", 4.0), ("stopped", 8.0), ("diverged", None), ("failed", None)],
    *[("complete", 5.0), ("running", None), ("complete", 4.0)],
)


def test_the_history_is_the_best_so_far_and_each_trial_as_it_ended() -> None:
    assert trials.so_far(HALF) == [(0, 9.0), (1, 4.0)]
    found = trials.history(HALF)
    assert [(m.x, m.y, m.state) for m in found.marks] == [
        *[(0, 9.0, "complete"), (1, 4.0, "best"), (2, 8.0, "stopped"), (3, None, "diverged")],
        *[(4, None, "failed"), (5, 5.0, "complete"), (7, 4.0, "complete")],
    ]
    assert found.path == ((0, 9.0), (0, 9.0), (1, 9.0), (1, 4.0), (7, 4.0))
    assert found.caption.startswith(
        "Trial 1 was the first with 4 validation errors, the least of all; 2 of the 4 complete "
    )
    assert "fewer epochs. Those without a value lie above the line." in found.caption
    assert trials.counted(HALF) == (
        "8 trials: 4 complete, 1 stopped, 1 diverged, 1 failed, 1 running"
    )
    assert found.marks[3].words == "trial 3, diverged\ndiverged so\nk 4"


def test_each_key_has_its_values_and_the_scale_it_was_searched_on() -> None:
    found = trials.by_key(HALF, "k")
    assert (found.log, found.ticks) == ((True, False), ())
    assert [(m.x, m.y) for m in found.marks][:4] == [(1, 9.0), (2, 4.0), (3, 8.0), (4, None)]
    assert found.caption == "The best has k 2."
    named = [Trial(n, "complete", {"k": name}, (5.0 + n,)) for n, name in enumerate("bab")]
    choices = Study("s", ("val_errors",), {"k": "choices"}, tuple(named), (Best(0),))
    found = trials.by_key(choices, "k")
    assert (found.ticks, [m.x for m in found.marks]) == (("a", "b"), [1, 0, 1])
    assert found.log[0] is False
    wide = [Trial(n, "complete", {"k": k}, (5.0 + n,)) for n, k in enumerate((1e30, 9, 10))]
    found = trials.by_key(replace(choices, trials=tuple(wide)), "k")
    assert (found.ticks, [m.x for m in found.marks]) == (("9", "10", "1e+30"), [2, 0, 1])


def test_the_table_is_of_the_ten_best_and_the_best_comes_first() -> None:
    _, header, found = trials.table(HALF)
    assert header == ["trial", "validation errors", "test errors", "k"]
    # Of two that are as good, that which is among the best.
    assert found == [
        [1, 4.0, 7, 2.0],
        [7, 4.0, None, 8.0],
        [5, 5.0, None, 6.0],
        [0, 9.0, None, 1.0],
    ]
    many = made(*[("complete", float(n)) for n in range(12)], best=0)
    assert [row[0] for row in trials.table(many)[2]] == list(range(10))


def test_a_gain_has_an_interval_once_there_are_seeds() -> None:
    one = Gain({"k": 1.0}, 3, ((60.0, 96.0),))
    assert "a gain of 36.0, n\u00a0=\u00a01 seed. Of one seed there is no interval" in trials.won(
        one
    )
    three = Gain({"k": 1.0}, 3, ((60, 96), (62, 96), (61, 92)))
    assert trials.gained(one) is not None
    found = trials.gained(three)
    assert found is not None
    half = 4.302652729749462 * math.sqrt(((36 - 101 / 3) ** 2 + (34 - 101 / 3) ** 2
                                          + (31 - 101 / 3) ** 2) / 2 / 3)  # fmt: skip
    assert (found[2].mean, found[2].high - found[2].mean) == pytest.approx((101 / 3, half))
    assert trials.won(three).endswith("n\u00a0=\u00a03 seeds.")


def searched(n: int, errors: Any, *, log: bool = True) -> optuna.Study:
    """A study of ``n`` trials on a grid of a rate and a share, of ``errors`` (rate, share)."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space: dict[str, BaseDistribution] = {
        "rate": FloatDistribution(1e-4, 1.0, log=log),
        "share": FloatDistribution(0.0, 1.0),
    }
    study = optuna.create_study(study_name="s")
    side = round(math.sqrt(n))
    for i in range(side):
        for j in range(side):
            rate, share = 1e-4 ** (1 - i / (side - 1)), j / (side - 1)
            params = {"rate": rate, "share": share}
            value = errors(rate, share)
            study.add_trial(create_trial(params=params, distributions=space, value=value))
    return study


@pytest.mark.slow
def test_importances_are_shares_on_the_scale_of_the_search(home: Path) -> None:
    # Both keys do the same on their own scale: half of what varies is each one's.
    both = searched(144, lambda rate, share: 100 * (1 + math.log10(rate) / 4) + 100 * share)
    [found] = telling.told(home, both).importances
    assert (found.of, found.n) == ("objective 0 of complete trials", 144)
    assert found.shares == pytest.approx({"rate": 0.5, "share": 0.5}, abs=0.03)
    [again] = telling.told(home, both).importances
    assert again == found
    [alone] = telling.told(home, searched(36, lambda _, share: 50 * share)).importances
    assert alone.shares == pytest.approx({"share": 1.0, "rate": 0.0}, abs=0.01)


def test_importances_that_cannot_be_said_are_not(home: Path) -> None:
    [few] = telling.told(home, searched(9, lambda rate, _: rate)).importances
    assert (few.n, few.shares, few.note) == (9, {}, "too few to say; it takes 10.")
    [same] = telling.told(home, searched(16, lambda *_: 3.0)).importances
    assert (same.shares, same.note) == ({}, "all are the same, whatever the keys.")
    one = optuna.create_study()
    space: dict[str, BaseDistribution] = {"k": CategoricalDistribution([1, 2])}
    one.add_trials([create_trial(params={"k": 1 + n % 2}, distributions=space, value=n)
                    for n in range(12)])  # fmt: skip
    [only] = telling.told(home, one).importances
    assert (only.shares, only.note) == ({}, "there is one key, so that nothing is to be shared.")


def test_importances_of_stopped_trials_are_those_of_the_first_rung(home: Path) -> None:
    study = optuna.create_study()
    space = {k: FloatDistribution(0.0, 1.0) for k in ("a", "b")}
    for n in range(25):
        params = {"a": n % 5 / 4, "b": n // 5 / 4}
        kind: dict[str, Any] = {"params": params, "distributions": space}
        if n % 2:  # what they had after epoch 2 follows from a, and after epoch 1 from b
            kind |= {"state": TrialState.PRUNED}
        else:
            kind |= {"value": params["a"] + params["b"]}
        study.add_trial(create_trial(intermediate_values={1: params["b"], 2: params["a"]}, **kind))
    found = telling.told(home, study)
    # A stopped trial has what it had last.
    assert [t.values for t in found.trials][:3] == [(0.0,), (0.25,), (0.5,)]
    last, first = found.importances
    assert (last.n, first.n) == (13, 25)
    assert first.of.endswith("after epoch 1, before any trial was stopped")
    assert first.shares == pytest.approx({"b": 1.0, "a": 0.0}, abs=0.01)
    assert min(last.shares.values()) > 0.1


# Of real studies.


def test_a_study_says_what_its_files_say(tuned: Path) -> None:
    [study] = studies(tuned)
    frame = rows(tuned)
    tried = [row for row in frame if not row["test_errors"]]
    assert (study.objectives, study.missing) == (("val_errors",), ())
    assert study.keys == {"loss.temperature": "log", "loss.alpha": "linear", "optim.lr": "log"}
    assert [trial.number for trial in study.trials] == list(range(8))
    assert len(tried) == 8
    for trial in study.trials:
        [row] = [r for r in tried if float(r["lr"]) == trial.params["optim.lr"]]
        assert all(trial.params[key] == float(row[column]) for key, column in KEYS.items())
        assert (trial.state, trial.values) == (row["status"], (float(row["val_errors"]),))
        assert trial.reason == row["reason"]
    done = [t for t in study.trials if t.state == "complete"]
    assert 0 < len(done) < 8
    losses = {float(r["lr"]): float(r["val_loss"]) for r in tried}
    best = min(done, key=lambda t: (t.values, losses[t.params["optim.lr"]]))
    [final] = [row for row in frame if row["test_errors"]]
    line = f"distill --config-dir {tuned} experiment=best"
    assert study.best == (Best(best.number, int(final["test_errors"]), line),)
    assert float(final["lr"]) == best.params["optim.lr"]
    _, _, table = trials.table(study)
    assert table[0][:3] == [best.number, best.values[0], int(final["test_errors"])]
    assert [row[1] for row in table] == sorted(t.values[0] for t in done)
    said = " ".join(trials.led(study))
    assert f"8 trials: {len(done)} complete, {8 - len(done)} stopped. Searched:" in said
    assert f"Trained on all data it has {final['test_errors']} test errors." in said
    assert {i.note for i in study.importances} == {"too few to say; it takes 10."}
    assert [i.n for i in study.importances] == [len(done), 8]


@pytest.mark.slow
def test_a_front_is_that_of_the_files_and_diverged_trials_are_shown_as_such(pareto: Path) -> None:
    [study] = studies(pareto)
    whole = rows(pareto)
    frame = [r for r in whole if not r["test_errors"] and r["status"] == "complete"]
    states = {t.number: (t.state, t.params["optim.lr"]) for t in study.trials}
    assert {s for s, rate in states.values() if rate == 1e30} == {"diverged"}
    assert {s for s, rate in states.values() if rate == 0.01} == {"complete"}
    assert study.keys == {
        "loss.temperature": "log",
        "model.width": "choices",
        "optim.lr": "choices",
    }
    points = {(float(r["val_errors"]), float(r["parameters"])) for r in frame}
    front = {
        p for p in points
        if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)
    }  # fmt: skip
    chosen = trials.front(study)
    assert {t.values for t in chosen} == front
    assert [t.values[1] for t in chosen] == sorted(t.values[1] for t in chosen)
    found = trials.pareto(study)
    assert {(m.y, m.x) for m in found.marks} == points
    assert {(m.y, m.x) for m in found.marks if m.state == "best"} == front
    assert set(found.path) >= {(x, y) for y, x in front}
    assert all(m.state != "diverged" for m in found.marks)
    history = trials.history(study)
    fallen = [m for m in history.marks if m.state == "diverged"]
    assert fallen
    assert all(m.y is None and "the training loss is not finite" in m.words for m in fallen)
    tested = {float(r["temperature"]): int(r["test_errors"]) for r in whole if r["test_errors"]}
    rates = [t.params["loss.temperature"] for t in chosen]
    assert [best.test_errors for best in study.best] == [tested[rate] for rate in rates]
    assert len(trials.table(study)[2]) == len(front)
    assert f"{len(fallen)} trials diverged: the training loss is not finite" in " ".join(
        trials.led(study)
    )


@pytest.mark.parametrize("fault", ["deleted", "noise", "empty"])
def test_a_study_that_is_lost_is_told_from_the_files(fault: str, copied: Path) -> None:
    [whole] = studies(copied)
    if fault == "deleted":
        (copied / STUDY).unlink()
    else:
        (copied / STUDY).write_bytes(b"noise" * 999 * (fault == "noise"))
    if fault == "empty":
        for path in copied.rglob("history.csv"):
            path.unlink()
    before = sorted(path for path in copied.rglob("*"))
    [study] = studies(copied)
    assert sorted(path for path in copied.rglob("*")) == before
    assert study.trials == whole.trials
    assert (study.name, study.objectives, study.keys) == (whole.name, whole.objectives, whole.keys)
    assert study.best == whole.best
    assert f"{STUDY} cannot be read (" in study.missing[0]
    assert "from the files of the runs" in study.missing[1]
    assert study.gain is not None
    assert "is not known from here" in study.gain.note


def test_without_hydras_files_or_a_storage_the_report_names_what_it_lacks(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / STUDY).unlink()
    for path in copied.rglob("hydra.yaml"):
        path.unlink()
    text = words(page_of(copied, monkeypatch))
    assert "Missing:" in text
    assert f"{STUDY} cannot be read" in text
    assert "0 trials. Searched: nothing." in text


@pytest.mark.slow
def test_a_diverged_front_is_told_from_the_files_too(pareto: Path, home: Path) -> None:
    folder = shutil.copytree(pareto, home / "copy")
    [whole] = studies(folder)
    (folder / STUDY).unlink()
    (folder / "sweep.yaml").unlink()
    [study] = studies(folder)
    assert [(t.number, t.state, t.values, t.reason) for t in study.trials] == [
        (t.number, t.state, t.values, t.reason) for t in whole.trials
    ]
    assert [best.number for best in study.best] == [best.number for best in whole.best]


@contextmanager
def unchanged(*files: Path) -> Iterator[None]:
    """Files that are read and not written."""
    before = [path.read_bytes() for path in files]
    yield
    assert [path.read_bytes() for path in files] == before


def test_a_study_is_read_where_it_is_kept(copied: Path, home: Path) -> None:
    [whole] = studies(copied)
    url = f"sqlite:///{copied / STUDY}"
    journal = home / "elsewhere" / "study.log"
    journal.parent.mkdir()
    other = JournalStorage(JournalFileBackend(str(journal)))
    optuna.copy_study(from_study_name=whole.name, from_storage=url, to_storage=other)
    optuna.create_study(study_name="of others", storage=other)
    (copied / STUDY).rename(home / "kept.db")
    for given in (str(journal), f"sqlite:///{home / 'kept.db'}"):
        with unchanged(journal, home / "kept.db"):
            [study] = studies(copied, given)
        assert study == whole
    # Where the runs name it, relative to where they began.
    for path in copied.rglob("hydra.yaml"):
        said = yaml.safe_load(path.read_text())
        said["hydra"]["sweeper"]["storage"] = "elsewhere/study.log"
        said["hydra"]["runtime"]["cwd"] = str(home)
        path.write_text(yaml.safe_dump(said))
    assert studies(copied) == (whole,)
    # One of a server is not asked, and its password not shown.
    for path in copied.rglob("hydra.yaml"):
        text = path.read_text().replace("elsewhere/study.log", "mysql://me:secret@nowhere/x")
        path.write_text(text)
    [study] = studies(copied)
    assert study.missing[0].startswith("mysql://me:***@nowhere/x cannot be read (a server, which")
    assert study.trials == whole.trials
    # A journal that a kill cut is read as far as it is whole.
    with journal.open("ab") as file:
        file.write(b'{"op_code":6,"wor')
    with unchanged(journal):
        assert studies(copied, str(journal)) == (whole,)


@pytest.mark.endurance
@pytest.mark.slow
def test_a_gain_is_over_a_run_of_the_defaults_alone(copied: Path, home: Path) -> None:
    [study] = studies(copied)
    assert study.gain is not None
    assert study.gain.defaults == {"loss.temperature": 4.0, "loss.alpha": 0.7, "optim.lr": 0.001}
    assert study.gain.pairs == ()
    assert study.gain.note.startswith("No run of the defaults (loss.temperature=4.0, loss.alpha=")
    [line] = study.gain.commands
    [best] = study.best
    assert line == (
        f"{best.command} loss.temperature=4.0 loss.alpha=0.7 optim.lr=0.001 "
        f"hydra.run.dir={copied}/defaults"
    )
    ran(home, *line.split()[1:-1], f"hydra.run.dir={copied}/other", "train.epochs=1")
    assert studies(copied) == (study,)  # that is no run of the defaults
    ran(home, *line.split()[1:])
    result = json.loads((copied / "defaults" / "result.json").read_text())
    [study] = studies(copied)
    assert study.gain is not None
    assert study.gain.pairs == ((best.test_errors, result["test_errors"]),)
    two = [command.split()[1:] for command in study.gain.commands]
    for command in two:
        ran(home, *(word.replace("seed=0,1,2,3,4", "seed=0,1") for word in command))
    found = {
        (float(row["lr"]) == 0.001, row["seed"]): float(row["test_errors"])
        for row in rows(copied / "seeds")
    }
    [study] = studies(copied)
    assert study.gain is not None
    assert study.gain.pairs == tuple((found[False, s], found[True, s]) for s in ("0", "1"))
    assert study.gain.pairs[0] == (best.test_errors, result["test_errors"])
    assert study.gain.commands == ()


@pytest.mark.slow
def test_each_study_of_a_folder_has_its_part(
    copied: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = ("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", f"hydra.sweep.dir={copied}")
    ran(home, *SMALL, "train.batch_size=64", "model.width=4", "halving.rungs=0", *size)
    first, second = studies(copied)
    assert (len(first.trials), len(second.trials)) == (8, 2)
    [other] = (copied / EXPERIMENT).glob("best-*")
    assert second.best[0].command.endswith(f"experiment={other.stem}")
    html = page_of(copied, monkeypatch)
    assert html.count('<div class="study"') == 2
    for study in (first, second):
        assert f"Study {study.name}</h3>" in html
    (copied / STUDY).unlink()
    lost = {study.name: study.trials for study in studies(copied)}
    assert lost == {study.name: study.trials for study in (first, second)}


@pytest.mark.slow
def test_the_page_tells_of_a_study_and_loads_no_torch(tuned: Path, home: Path) -> None:
    code = (
        "import sys; from distill.cli.report import main\n"
        f"sys.argv = ['distill-report', {str(tuned)!r}, '--out', {str(home)!r}]\n"
        "main(); sys.exit('torch' in sys.modules)"
    )
    done = shell(sys.executable, "-c", code)
    assert (done.code, done.err) == (0, "")
    [study] = studies(tuned)
    html = (home / page.PAGE).read_text()
    text = words(html)
    for said in (
        *trials.led(study), study.best[0].command, trials.history(study).caption,
        "too few to say; it takes 10.", "What the best gained over the defaults",
        "No run of the defaults",
    ):  # fmt: skip
        assert " ".join(said.split()) in text.replace("&nbsp;", " ").replace("&#39;", "'"), said
    names = [f"tune-{study.name}-{kind}" for kind in ("history", *(f"by-{k}" for k in study.keys))]
    for name in names:
        assert (home / "figures" / f"{name}.svg").is_file()
        assert f"figures/{name}.svg" in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_a_sweep_that_is_no_study_has_none(tuned: Path, home: Path) -> None:
    shutil.copy(tuned / "summary.csv", home)
    assert studies(home) == ()
    assert studies(home, f"sqlite:///{tuned / STUDY}") == ()
    path = page.write(home / "out", [], [reading.sweep(home)])
    html = path.read_text()
    assert 'class="study"' not in html and ".study" not in html


def test_a_storage_that_is_asked_for_and_not_there_is_named(copied: Path, home: Path) -> None:
    [whole] = studies(copied)
    for url in ("redis://me:secret@nowhere", "nowhere://", "http://x/y", "~nobody/s.log", "no.log"):
        [study] = studies(copied, url)
        assert "cannot be read (" in study.missing[0]
        assert "secret" not in study.missing[0]
        assert study.trials == whole.trials
    shutil.copy(copied / "summary.csv", home)
    [study] = studies(home, "no.log")  # though it is of no study
    assert study.missing[0].startswith("no.log cannot be read (")


def test_of_a_front_that_is_compared_which_costs_no_more_than_the_defaults() -> None:
    values = [(9.0, 10.0), (5.0, 20.0), (3.0, 90.0)]
    found = [create_trial(values=pair) for pair in values]
    objectives = ("val_errors", "parameters")
    for cost, chosen in ((50, (5.0, 20.0)), (20, (5.0, 20.0)), (100, (3.0, 90.0))):
        without = {0: {"parameters": cost, "test_errors": 1}}
        assert telling._compared(found, objectives, without).values == list(chosen)
    # Where none is within, or the defaults were not trained yet, all are.
    assert telling._compared(found, objectives, {0: {"parameters": 5}}).values == [3.0, 90.0]
    assert telling._compared(found, objectives, {}).values == [3.0, 90.0]


def test_runs_are_apart_in_all_but_where_they_ran() -> None:
    one = {"config": {"seed": 0, "device": "cpu", "loss": {"alpha": 1.0}}}
    other = {"config": {"seed": 0, "device": "cuda", "loss": {"alpha": 0.5}, "new": 3}}
    assert telling._apart(one, other) == {"loss.alpha", "new"}
    assert telling._apart(one, {**one, "places": {"teacher.path": "abc"}}) == {
        "places.teacher.path"
    }
