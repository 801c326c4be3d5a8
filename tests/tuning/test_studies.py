"""Studies that are shared, locked, cut or moved: storages, holders, and whose the best is."""

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
import pytest
from conftest import SMALL, Cli
from optuna.trial import TrialState

from distill.config import ConfigError
from distill.tuning import REPORT, best, storage
from distill.tuning.holders import Holder

URL = "sqlite:///study.db"
TUNE = (
    *("experiment=tune", *SMALL, "precision=fp32", "data.examples=64", "halving.rungs=0"),
    *("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2"),
)


def study(url: str = URL, name: str = "s") -> optuna.Study:
    return optuna.create_study(study_name=name, storage=storage.opened(url), load_if_exists=True)


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Let another thread hold the file, as another process does, for some time."""
    begun = threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            begun.set()
            time.sleep(seconds)
            connection.rollback()

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    yield
    thread.join()


@pytest.mark.slow
def test_a_locked_file_is_waited_for_at_the_start_and_in_the_middle(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study()
    with locked(Path("study.db"), 1.5):
        found = study()
    with locked(Path("study.db"), 1.5):
        trial = found.ask()
        found.tell(trial, 1.0)
    assert [t.value for t in study().trials] == [1.0]
    assert "locked by another process: waiting for it" in caplog.text


@pytest.mark.slow
def test_a_file_that_stays_locked_is_not_to_be_deleted() -> None:
    study()
    url, began = f"{URL}?timeout=0.5", time.monotonic()
    with (
        locked(Path("study.db"), 2.5),
        pytest.raises(ConfigError, match="nothing is lost: once that has ended, the same") as told,
        storage.explained(url, f"hydra.sweeper.storage={url}", Path("study.db"), Path()),
    ):
        storage.opened(url)
    assert time.monotonic() - began > 0.5
    assert "delete" not in str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize("url", [URL, f"{URL}?timeout=60"])
def test_a_schema_of_another_version_is_upgraded_not_deleted(url: str) -> None:
    study()
    with closing(sqlite3.connect("study.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v3.0.0.a'")
    with (
        pytest.raises(ConfigError, match="`optuna storage upgrade --storage 'sqlite:///") as told,
        storage.explained(url, "key", Path("study.db"), Path()),
    ):
        storage.opened(url)
    assert "delete" not in str(told.value)


@pytest.mark.slow
def test_storages_that_are_made_at_once_are_one() -> None:
    code = "import sys; from distill.tuning import storage as s; sys.stdin.read(1); "
    code += "s.opened(sys.argv[1])"
    made = [
        subprocess.Popen(
            [sys.executable, "-c", code, URL],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in made:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    assert [(process.communicate()[1], process.returncode) for process in made] == [("", 0)] * 3


@pytest.mark.parametrize("end", [b'{"op_code":6,"wor', b"\0\0\0", b""])
def test_a_journal_whose_last_line_was_cut_goes_on(end: bytes) -> None:
    first = study("study.log")
    first.tell(first.ask(), 1.0)
    path = Path("study.log")
    whole = path.read_bytes()
    path.write_bytes(whole + end if end else whole[:-1])  # or the end of the line alone is missing
    again = study("study.log")
    assert [t.value for t in again.trials] == [1.0]
    again.tell(again.ask(), 2.0)
    assert [t.value for t in study("study.log").trials] == [1.0, 2.0]
    assert path.read_bytes().startswith(whole)
    assert Path("study.log.cut").exists() == bool(end)


def test_a_journal_that_is_damaged_within_is_refused_and_kept() -> None:
    study("study.log")
    path = Path("study.log")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{noise\n" + b"".join(lines[1:]))
    content = path.read_bytes()
    with (
        pytest.raises(ConfigError, match=r"line 2 of .* move it aside"),
        storage.explained("study.log", "key", None, Path()),
    ):
        storage.opened("study.log")
    assert path.read_bytes() == content


def holder(name: str, *, owner: bool = False, take: bool = False) -> Holder:
    Path(name).mkdir(exist_ok=True)
    return Holder(Path(name), owner=owner, take=take, grace=0.6)


def test_a_trial_is_its_folders_wherever_that_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = study()
    holder("one").hold(shared.ask())
    Path("one").rename("moved")
    monkeypatch.setattr("platform.node", lambda: "another")
    assert [t.number for t in holder("moved").left(shared, shared.trials)] == [0]
    assert not holder("two").left(shared, shared.trials)
    old = shared.ask()  # of a version that marked it by host and path
    old.set_user_attr("sweep", "host:/multirun/tune")
    assert [t.number for t in holder("own", owner=True).left(shared, shared.trials)] == [1]
    assert not holder("two").left(shared, shared.trials)
    assert len(holder("two", take=True).left(shared, shared.trials)) == 2


@pytest.mark.slow
def test_a_holder_is_waited_for_while_it_gives_signs_of_life(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared, one, two = study(), holder("one"), holder("two")
    with one.alive(shared):
        one.hold(shared.ask())
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            assert two.waits(shared, shared.trials)
            time.sleep(0.1)
    [said] = [text for text in caplog.messages if text.startswith("trial")]
    assert said.startswith(f"trial 0: held by {one.here}, which is at work; stop it there")
    assert "hydra.sweeper.take=true" in said
    assert len(two.left(shared, shared.trials)) == 1  # it ended, and said so
    killed = holder("three")
    shared.set_user_attr(f"alive {killed.mark}", [killed.here, time.time()])
    killed.hold(shared.ask())
    assert len(two.left(shared, shared.trials)) == 1
    time.sleep(0.7)
    assert len(two.left(shared, shared.trials)) == 2


def test_a_trial_without_a_sign_is_told_of_and_not_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared = study()
    shared.ask()
    assert not holder("one").waits(shared, shared.trials)
    assert "trial 0: held by another program, which gives no sign of life" in caplog.text


def test_a_best_without_a_loss_comes_last() -> None:
    shared = study()
    for loss in (None, 0.5):
        trial = shared.ask()
        trial.set_user_attr("val_loss", loss)
        shared.tell(trial, 3.0)
    shared.tell(shared.ask(), 3.0)  # by another program
    assert [t.number for t in best.of(shared)] == [1]


@pytest.mark.slow
def test_a_best_belongs_to_its_study(cli: Cli) -> None:
    assert cli(*TUNE, "hydra.sweep.dir='my tune (1)'").code == 0
    folder = Path("my tune (1)")
    first = {p: p.read_text() for p in [folder / REPORT, folder / "experiment" / "best.yaml"]}
    done = cli(*TUNE, "hydra.sweep.dir='my tune (1)'", "model.width=4", "optim.lr=1e-8")
    assert done.code == 0, done.err
    assert {p: p.read_text() for p in first} == first
    [other] = (folder / "experiment").glob("best-*.yaml")
    assert f"--config-dir 'my tune (1)' experiment={other.stem}" in done.out
    assert cli(*TUNE, "hydra.sweep.dir='my tune (1)'").code == 0  # each keeps its own
    assert len(list((folder / "experiment").iterdir())) == 2


@pytest.mark.endurance
@pytest.mark.slow
def test_folders_of_other_names_share_a_study_up_to_its_total(cli: Cli) -> None:
    shared = f"hydra.sweeper.storage=sqlite:///{Path.cwd()}/study.db"
    assert cli(*TUNE, shared, "hydra.sweep.dir=one").code == 0
    done = cli(*TUNE, shared, "hydra.sweep.dir=two", "hydra.sweeper.n_trials=3")
    assert done.code == 0, done.err
    [found] = optuna.get_all_study_summaries(URL)
    trials = optuna.load_study(study_name=found.study_name, storage=URL).trials
    assert [Path(t.user_attrs["sweep"]).name for t in trials] == ["one", "one", "two"]


@pytest.mark.slow
def test_one_too_many_is_not_run(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    real = optuna.Study.ask
    others: list[optuna.Trial] = []

    def ask(self: optuna.Study, *_: object) -> optuna.Trial:
        if self.study_name.startswith("distill") and not others:
            others.append(real(self))  # another program asks at the same moment
        return real(self)

    monkeypatch.setattr(optuna.Study, "ask", ask)
    shared = f"hydra.sweeper.storage=sqlite:///{Path.cwd()}/study.db"
    done = cli(*TUNE, shared, "hydra.sweep.dir=one", "hydra.sweeper.n_trials=1")
    assert done.code == 1
    assert done.err.strip().splitlines()[-1].startswith("none of ")
    [found] = optuna.get_all_study_summaries(URL)
    trials = optuna.load_study(study_name=found.study_name, storage=URL).trials
    assert [t.state for t in trials] == [TrialState.RUNNING, TrialState.FAIL]


@pytest.mark.endurance
@pytest.mark.slow
def test_a_moved_study_that_was_stopped_goes_on(cli: Cli, trained: list[str]) -> None:
    assert cli(*TUNE, "hydra.sweep.dir=one").code == 0
    with closing(sqlite3.connect("one/study.db")) as connection, connection:
        connection.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 1")
        connection.execute("DELETE FROM trial_values WHERE trial_id = 2")
    Path("one").rename("elsewhere")
    trained.clear()
    done = cli(*TUNE, "hydra.sweep.dir=elsewhere")
    assert done.code == 0, done.err
    assert not trained  # its result lay there
    [found] = optuna.get_all_study_summaries("sqlite:///elsewhere/study.db")
    assert found.n_trials == 2
    loaded = optuna.load_study(study_name=found.study_name, storage="sqlite:///elsewhere/study.db")
    assert [t.state for t in loaded.trials] == [TrialState.COMPLETE] * 2
