"""Loggers: those of trackers, with the real packages, and one's own; histories that grow."""

import importlib
import importlib.util
import json
import shutil
import signal
import struct
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, Cli, composed, forget, make_job, options, shell
from omegaconf import OmegaConf

from distill.config import ConfigError, parse, targets
from distill.runs import results, summaries, watch
from distill.runs.loggers import check_logger
from distill.runs.watch import Watch
from distill.system.pulse import PULSE, pulse
from distill.training.checkpoint import FILE

SWEEP = ("-m", *SMALL, "precision=fp32", "hydra.sweep.dir=sweep")
TRACKERS = [name for name in options("logger") if name != "none"]

OWN = '''
import json
from pathlib import Path


class Lines:
    """Appends what it is told to a file a run, and fails where it is told to."""

    def __init__(self, *, folder: str, fails: int) -> None:
        self.folder, self.fails = Path(folder), fails

    def tell(self, what: str, body: object) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([what, body]) + "\\n")

    def start(self, run) -> None:
        self.folder.mkdir(exist_ok=True)
        self.path = self.folder / f"{run.name}.jsonl"
        about = [str(run.directory), run.seed, run.config["loss"], [r["epoch"] for r in run.rows]]
        self.tell("start", about)

    def epoch(self, row) -> None:
        if row["epoch"] == self.fails:
            raise OSError("the tracker\\nis gone")
        self.tell("epoch", row)
        row.clear()  # which is nobody else's

    def end(self, result) -> None:
        self.tell("end", result["status"])


class Half:
    def start(self, run) -> None: ...
'''
OWN_YAML = "# My own.\nlines:\n  _target_: own_lines.Lines\n  folder: told\n  fails: 0\n"


@pytest.fixture
def own(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A logger of the user's own in the working folder; yields where it writes."""
    (home / "own_lines.py").write_text(OWN)
    (home / "conf" / "logger").mkdir(parents=True)
    (home / "conf" / "logger" / "lines.yaml").write_text(OWN_YAML)
    monkeypatch.setenv("DISTILL_MODULES", "own_lines")
    yield home / "told"
    sys.modules.pop("own_lines", None)
    sys.path[:] = [place for place in sys.path if place != str(home)]
    check_logger.cache_clear()


def told(folder: Path) -> dict[str, list[list[Any]]]:
    """What `Lines` was told of each run."""
    return {p.stem: [*map(json.loads, p.read_text().splitlines())] for p in folder.iterdir()}


def histories(folder: Path) -> dict[str, list[dict[str, float]]]:
    """The rows of the history of each run below ``folder``, by its name."""
    found = {}
    for path in folder.rglob(results.HISTORY):
        names, *rows = (line.split(",") for line in path.read_text().splitlines())
        cells = [
            dict(zip(names, (float(cell or "nan") for cell in row), strict=True)) for row in rows
        ]
        found[results.read(path.with_name(results.RESULT))["run"]] = cells
    return found


def epochs(lines: list[list[Any]]) -> list[dict[str, float]]:
    return [body for what, body in lines if what == "epoch"]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_logger_of_ones_own_gets_every_epoch_of_a_sweep_once(
    workers: int, own: Path, cli: Cli
) -> None:
    values = ("loss.temperature=1,2", "model.width=4,8")
    done = cli(*SWEEP, *values, "logger=lines", f"hydra.launcher.workers={workers}")
    assert done.code == 0, done.err
    lines = told(own)
    assert {run: epochs(of) for run, of in lines.items()} == histories(Path("sweep"))
    assert len(lines) == 4
    for run, of in lines.items():
        assert [what for what, _ in of] == ["start", "epoch", "epoch", "end"]
        directory, seed, loss, before = of[0][1]
        assert (Path(directory), seed, before) == (Path("sweep", run).absolute(), 0, [])
        assert f"temperature{loss['temperature']:g}" in run
        assert of[-1][1] == "complete"


def test_a_logger_of_ones_own_gets_every_epoch_of_a_single_run_once(own: Path, cli: Cli) -> None:
    done = cli(*SMALL, "logger=[none,lines]", "logger.lines.folder=elsewhere")
    assert done.code == 0, done.err
    [(run, lines)] = told(own.with_name("elsewhere")).items()
    assert {run: epochs(lines)} == histories(Path("multirun"))
    assert [what for what, _ in lines] == ["start", "epoch", "epoch", "end"]


@pytest.mark.slow
def test_a_logger_decides_nothing(own: Path, cli: Cli) -> None:
    plain, logged = make_job(), make_job("logger=tensorboard")
    assert (logged.name, logged.run.shared) == (plain.name, plain.run.shared)
    assert cli("-m", *SMALL, "loss.temperature=1,2").code == 0
    [before] = Path("multirun").glob("*")
    kept = {p: p.read_bytes() for p in before.rglob(results.HISTORY)}
    again = cli("-m", *SMALL, "loss.temperature=1,2", "logger=lines", "resume=false")
    assert again.code == 0, again.err
    assert [*Path("multirun").glob("*")] == [before]
    assert {p: p.read_bytes() for p in kept} == kept
    assert len(told(own)) == 2
    assert "logger" not in (before / results.SUMMARY).read_text().partition("\n")[0]


@pytest.mark.slow
def test_a_logger_that_fails_is_one_warning_and_ends_no_run(own: Path, cli: Cli) -> None:
    done = cli(*SWEEP, "loss.temperature=1,2", "logger=lines", "logger.lines.fails=2")
    assert done.code == 0
    [warning] = done.err.splitlines()
    assert warning.startswith("WARNING: logger.lines is not told any more of synthetic-mlp8")
    assert warning.endswith("since its epoch failed (OSError: the tracker is gone)")
    assert [[what for what, _ in of] for of in told(own).values()] == [["start", "epoch"]] * 2
    assert [len(rows) for rows in histories(Path("sweep")).values()] == [2, 2]


@pytest.mark.slow
def test_members_that_leave_a_stack_end_with_their_status(own: Path, cli: Cli) -> None:
    rates = "optim.lr=1e-3,1e-2,1e30"
    halving = ("data.validation=0.2", "halving.rungs=1", "halving.factor=3", "train.epochs=3")
    done = cli(*SWEEP, rates, *halving, "optim.warmup=0", "logger=lines")
    assert done.code == 1, done.err
    found = {p.parent.name: results.read(p)["status"] for p in results.paths(Path("sweep"))}
    assert Counter(found.values()) == {"complete": 1, "stopped": 1, "diverged": 1}
    assert {run: of[-1] for run, of in told(own).items()} == {
        run: ["end", status] for run, status in found.items()
    }
    rows = {run: len(epochs(of)) for run, of in told(own).items()}
    assert rows == {run: len(of) for run, of in histories(Path("sweep")).items()}


@pytest.mark.slow
def test_the_trials_of_a_study_are_logged_too(own: Path, cli: Cli) -> None:
    study = ("hydra/sweeper=tune", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2")
    space = ("data.validation=0.2", "loss.alpha=interval(0.0,1.0)", "train.epochs=2")
    done = cli(*SWEEP, *study, *space, "logger=[none,lines]")
    assert done.code == 0, done.err
    assert len(told(own)) == 5  # and the best, on all data
    assert {run: epochs(of) for run, of in told(own).items()} == histories(Path("sweep"))


BAD = {
    "logger.tensorboard.flush=0": "logger.tensorboard.flush=0: Input should be greater than 0",
    "+logger.tensorboard.flsh=1": "logger.tensorboard.flsh=1: there is no such key; did you mean "
    "logger.tensorboard.flush? allowed are logger.tensorboard.flush",
    "logger.tensorboard._target_=os.system": "logger.tensorboard._target_=os.system: allowed are "
    "distill.loggers.MLflow, distill.loggers.TensorBoard, distill.loggers.WandB",
    "+logger._target_=a.B": "logger._target_=a.B: a logger's keys stand below its name; write "
    "logger.NAME._target_ and, in a yaml, NAME: in a line above them",
    "+logger.mine.key=1": "logger.mine._target_=None: allowed are distill.loggers.MLflow",
    "+logger.copy._target_=distill.loggers.WandB": "logger.copy: no logger can have this name",
}


@pytest.mark.parametrize("given", BAD)
def test_a_wrong_logger_is_refused_in_one_line(given: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(composed("logger=tensorboard", given))
    assert str(error.value).startswith(BAD[given])
    assert len(str(error.value).splitlines()) == 1


def test_a_logger_without_a_method_is_refused(own: Path, cli: Cli) -> None:
    done = cli(*SMALL, "+logger.half._target_=own_lines.Half")
    assert (done.code, own.exists()) == (1, False)
    assert done.err == (
        "logger.half._target_=own_lines.Half: it has no method epoch, end; "
        "derive it from distill.loggers.Logger\n"
    )


def test_loggers_are_not_swept(cli: Cli) -> None:
    done = cli(*SWEEP, "seed=0,1", "logger=none,tensorboard")
    assert (done.code, Path("sweep").exists()) == (1, False)
    assert done.err.startswith("logger=tensorboard: synthetic-mlp8-")
    assert done.err.endswith("several at once are a list, 'logger=[tensorboard,mlflow]'\n")


def test_every_logger_has_a_yaml_that_says_all_of_its_keys() -> None:
    named = set()
    for name in TRACKERS:
        run = parse(composed(f"logger={name}"))
        [(key, logger)] = run.logger.each.items()
        section = OmegaConf.to_container(composed(f"logger={name}").logger[name])
        assert isinstance(section, dict)
        assert (key, set(section)) == (name, {"_target_", *logger.options})
        named.add(logger.target)
    assert named == set(targets("logger"))
    assert parse(composed("logger=none")).logger.each == {}


@pytest.mark.table
@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("several", [False, True])
def test_a_missing_package_is_refused_before_anything_trains(
    several: bool, name: str, cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *rest: None if n == name else find(n, *rest)
    )
    check_logger.cache_clear()
    sweep = ("-m", "seed=0,1") if several else ()
    done = cli(*sweep, *SMALL, f"logger=[none,{name}]")
    assert done.code == 1
    text = f"the package {name} is not installed; pip install 'distill-sweep[{name}]'"
    assert done.err == f"logger.{name}: {text}\n"
    assert not (home / "multirun").exists() and not [*home.rglob("*.safetensors")]
    check_logger.cache_clear()


# The epochs that a tracker holds of each run below a folder, its status and its alpha.
Held = Callable[[Path], Mapping[str, tuple[tuple[int, ...], str, str]]]


def in_tensorboard(folder: Path) -> dict[str, tuple[tuple[int, ...], str, str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    found = {}
    for directory in {path.parent for path in folder.rglob("events.out.tfevents.*")}:
        held = EventAccumulator(str(directory))
        held.Reload()
        steps = tuple(event.step for event in held.Scalars("train_loss"))
        status = held.Tensors("status/text_summary")[-1].tensor_proto.string_val[0]
        content = held.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
        alpha = start.hparams["loss.alpha"].number_value
        found[directory.name] = (steps, status.decode().strip(), str(alpha))
    return found


def in_mlflow(folder: Path) -> dict[str, tuple[tuple[int, ...], str, str]]:
    from mlflow import MlflowClient

    warnings.simplefilter("ignore")  # MLflow's own, of what it uses; pytest restores the filters
    client = MlflowClient(f"sqlite:///{folder.absolute() / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(folder.name)
    assert experiment is not None
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        assert run.info.run_name not in found
        held = client.get_metric_history(run.info.run_id, "train_loss")
        assert run.info.status == "FINISHED"
        alpha = run.data.params["loss.alpha"]
        found[run.info.run_name] = (
            tuple(m.step for m in held),
            run.data.tags["distill.status"],
            alpha,
        )
    return found


def records(path: Path) -> Iterator[bytes]:
    """The records of a W&B file, which is a log as LevelDB has it: blocks, and records in parts."""
    content, place, whole, block = path.read_bytes(), 7, b"", 2**15
    assert content.startswith(b":W&B")
    while place + 7 <= len(content):
        if block - place % block < 7:  # the rest of a block is too short for a part
            place += block - place % block
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # all of one, or its last part
            yield whole
            whole = b""


def in_wandb(folder: Path) -> dict[str, tuple[tuple[int, ...], str, str]]:
    read: Any = importlib.import_module("wandb.proto.wandb_internal_pb2").Record.FromString

    def of(items: Any, *names: str) -> list[Any]:
        own = [item for item in items if (item.key or item.nested_key[0]) in names]
        return [json.loads(item.value_json) for item in own]

    found: dict[str, tuple[tuple[int, ...], str, str]] = {}
    ids: dict[str, set[str]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        steps, status, name, alpha = [], "", "", ""
        for record in map(read, records(path)):
            name = record.run.display_name or name
            for loss in of(record.run.config.update, "loss"):
                alpha = str(loss["alpha"])
            steps += [int(epoch) for epoch in of(record.history.item, "epoch")]
            status = [status, *of(record.summary.update, "status")][-1]
        before = found.get(name, ((), "", ""))[0]  # of an earlier try
        found[name] = ((*before, *steps), status, alpha)
        ids.setdefault(name, set()).add(path.stem)
    assert all(len(own) == 1 for own in ids.values())
    return found


HELD: dict[str, Held] = {"tensorboard": in_tensorboard, "mlflow": in_mlflow, "wandb": in_wandb}


def needs(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install 'distill-sweep[{name}]'")


@pytest.mark.slow
def test_tensorboard_holds_each_member_of_a_stack(cli: Cli) -> None:
    needs("tensorboard")
    done = cli(*SWEEP, "loss.alpha=0.25,0.5", "logger=tensorboard")
    assert (done.code, done.err) == (0, "")
    held = in_tensorboard(Path("sweep"))
    assert {*held.values()} == {((1, 2), "complete", "0.25"), ((1, 2), "complete", "0.5")}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_holds_every_epoch_of_every_run_once(name: str, home: Path) -> None:
    needs(name)
    values = ("loss.alpha=0.25,0.5", "model.width=4,8", "hydra.launcher.workers=2")
    done = shell(sys.executable, "-m", "distill", *SWEEP, *values, f"logger={name}")
    assert (done.code, done.err) == (0, "")
    held = HELD[name](home / "sweep")
    assert len(held) == 4
    for run, (steps, status, alpha) in held.items():
        assert (steps, status) == ((1, 2), "complete")
        assert f"alpha{alpha}-" in run


def interrupted(after: int) -> str:
    """Code of a command that a signal ends after so many epochs of its students."""
    return f"""
import os, signal, sys
from distill.cli.main import main
from distill.runs.watch import Watch
epoch = Watch.epoch
def signalled(self, history):
    epoch(self, history)
    if history.epoch == {after}:
        os.kill(os.getpid(), signal.SIGTERM)
Watch.epoch = signalled
sys.argv[0] = "distill"
main()
"""


@pytest.mark.endurance
@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_goes_on_without_epochs_that_stand_twice(name: str, home: Path) -> None:
    needs(name)
    command = (*SWEEP, "train.epochs=6", "loss.alpha=0.25,0.5", f"logger={name}")
    first = shell(sys.executable, "-c", interrupted(3), *command)
    assert first.code == 128 + signal.SIGTERM, first.err
    [saved] = (home / "sweep").rglob(FILE)
    shutil.copy(saved, home / "saved")
    second = shell(sys.executable, "-c", interrupted(5), *command)
    assert second.code == 128 + signal.SIGTERM, second.err
    # As if a kill had come long after the last checkpoint.
    shutil.copy(home / "saved", saved)
    third = shell(sys.executable, "-m", "distill", *command)
    assert third.code == 0, third.err
    held = HELD[name](home / "sweep")
    assert len(held) == 2
    for steps, status, _ in held.values():
        # W&B's files of each try hold all that it was told.
        once = steps if name != "wandb" else sorted({*steps})
        assert [*once] == [1, 2, 3, 4, 5, 6]
        assert status == "complete"


def test_histories_grow_and_the_summary_shows_what_runs(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[dict[Path, bytes], Any]] = []
    epoch = Watch.epoch

    def look(self: Watch, history: Any) -> None:
        epoch(self, history)
        paths = Path("sweep").rglob(results.HISTORY)
        seen.append(({p: p.read_bytes() for p in paths}, summaries.summary(Path("sweep"))))
        assert not results.paths(Path("sweep"))

    monkeypatch.setattr(watch, "FIRST", 0.0)
    monkeypatch.setattr(watch, "EVERY", 0.0)
    monkeypatch.setattr(watch, "SHARE", 1e6)
    monkeypatch.setattr(Watch, "epoch", look)
    values = ("loss.temperature=1,2,4", "train.epochs=3")
    assert cli(*SWEEP, *values).code == 0
    done = summaries.summary(Path("sweep"))
    assert done["status"].tolist() == ["complete"] * 3
    whole = {p: p.read_bytes() for p in Path("sweep").rglob(results.HISTORY)}
    assert not [*Path("sweep").rglob(results.RUNNING)]
    assert len(seen) == 3
    for number, (files, frame) in enumerate(seen, 1):
        lines = {path: text.splitlines(keepends=True) for path, text in whole.items()}
        assert files == {path: b"".join(of[: number + 1]) for path, of in lines.items()}
        assert frame["status"].tolist() == ["running"] * 3
        assert frame["reason"].tolist() == [f"epoch {number} of 3"] * 3
        for name in ("run", "temperature", "lr", "parameters", "teacher_test_errors"):
            assert frame[name].tolist() == done[name].tolist()
    last = seen[-1][1]
    assert last["test_errors"].tolist() == done["test_errors"].tolist()
    assert last["train_loss"].tolist() == pytest.approx(done["train_loss"].tolist())


KILLED = f"""
from distill.runs import watch
watch.FIRST, watch.EVERY, watch.SHARE = 0.0, 0.0, 1e6
{interrupted(2).replace("SIGTERM", "SIGKILL")}
"""


@pytest.mark.brothers
@pytest.mark.slow
@pytest.mark.parametrize("every", ["1e-9", "5"])
def test_a_run_that_was_killed_is_not_taken_for_one_that_runs_or_ended(
    every: str, cli: Cli, trained: list[str]
) -> None:
    command = (*SWEEP, "loss.temperature=1,2", "train.epochs=3", f"checkpoint.every={every}")
    assert shell(sys.executable, "-c", KILLED, *command).code == -signal.SIGKILL
    frame = summaries.summary(Path("sweep"))
    assert frame["status"].tolist() == ["interrupted"] * 2
    reason = "it was killed after epoch 2 of 3; the same command goes on"
    assert frame["reason"].tolist() == [reason] * 2
    assert bool([*Path("sweep").rglob(FILE)]) == (every == "1e-9")
    assert cli(*command).code == 0
    assert sorted(trained) == sorted(frame["run"])
    assert summaries.summary(Path("sweep"))["status"].tolist() == ["complete"] * 2
    assert not [*Path("sweep").rglob(results.EARLIER)]
    once = {p.name: (p / results.HISTORY).read_bytes() for p in Path("sweep").glob("synth*")}
    forget()
    shutil.rmtree("sweep")
    assert cli(*command).code == 0
    assert {
        p.name: (p / results.HISTORY).read_bytes() for p in Path("sweep").glob("synth*")
    } == once


def test_a_summary_of_what_runs_alone_is_shown(home: Path) -> None:
    for n, errors in enumerate((7, 12)):
        folder = home / "sweep" / f"run{n}"
        folder.mkdir(parents=True)
        (folder / results.HISTORY).write_text(f"epoch,train_loss,test_errors\n4,0.5,{errors}\n")
        head = {"run": f"r{n}", "epochs": 9, "config": {"loss": {"b": 2}}}
        results.write_running(folder, head, home / "sweep" / "run0")
    code = "from distill.cli.commands import summary; summary()"
    with pulse(home / "sweep" / "run0" / PULSE):
        done = shell(sys.executable, "-c", code, "sweep")
    assert done.out.splitlines()[0] == "2 runs running: epoch 4 of 9, 7 to 12 test errors"
    assert "2 runs (2 running)" in done.out
    frame = summaries.read_summary("sweep")
    assert frame["loss.b"].tolist() == [2, 2]
