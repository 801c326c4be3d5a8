"""The Python face: what the command line does, as functions that leave the process as it was."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import SMALL, Cli
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import VersionBase

import distill
from distill.runs import results
from distill.system import interrupt
from distill.system.conf import CONF

HARD = ("data=synthetic", "model.width=8", "loss=hard", "train.epochs=2", "train.batch_size=64")
DIVERGES = ("optim=sgd", "optim.lr=0.01,1e30")


def test_a_run_is_that_of_the_command(cli: Cli) -> None:
    ours = distill.run(*SMALL, "loss.temperature=3", "data.validation=0.25")
    assert ours["status"] == "complete" and ours["temperature"] == 3
    assert ours.test_errors == results.read(ours.directory / "result.json")["test_errors"]
    assert ours.val_errors == ours["val_errors"]
    assert ours.history.index.tolist() == [1, 2]
    assert ours.config["loss"]["temperature"] == 3
    done = cli(*SMALL, "loss.temperature=3", "data.validation=0.25")
    assert done.code == 0, done.err
    assert "finished before" in done.out and str(ours.directory) in done.out
    again = distill.run(*SMALL, "loss.temperature=3", "data.validation=0.25")
    assert dict(again) == dict(ours) and again.directory == ours.directory


def test_a_sweep_is_the_summary_of_that_of_the_command(cli: Cli, home: Path) -> None:
    frame = distill.sweep(*HARD, "seed=0,1")
    folder = Path(frame.attrs["directory"])
    pd.testing.assert_frame_equal(frame, distill.summary(folder))
    assert frame.dtypes.astype(str)[["seed", "test_errors", "status"]].tolist() == [
        *("Int64", "Int64", "string"),
    ]
    done = cli("-m", *HARD, "seed=0,1")
    assert done.code == 0, done.err
    assert "2 of 2 jobs were finished before" in done.out
    assert str(folder.relative_to(home) / "summary.csv") in done.out


@pytest.mark.slow
def test_an_experiment_sweeps(home: Path) -> None:
    less = ("hydra.sweeper.params.seed='0'", "hydra.sweeper.params.model\\.width='8'")
    frame = distill.sweep("experiment=quickstart", *SMALL, "train.epochs=1", *less)
    assert len(frame) == 12 and set(frame["status"]) == {"complete"}
    assert Path(frame.attrs["directory"]) == home / "multirun" / "quickstart"


def test_a_failed_member_is_a_row_and_a_warning() -> None:
    with pytest.warns(UserWarning, match="of 2 runs, 1 diverged: see the columns status"):
        frame = distill.sweep(*HARD, *DIVERGES)
    assert sorted(frame["status"]) == ["complete", "diverged"]
    assert "not finite" in str(frame.reason[frame.status == "diverged"].iloc[0])


def test_a_run_that_diverges_is_an_error() -> None:
    with pytest.raises(distill.RunError, match=r"diverged: .* is not finite"):
        distill.run(*HARD, "optim=sgd", "optim.lr=1e30")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("loss.temperature=0", "loss.temperature=0: Input should be greater than 0"),
        ("loss=nope", "loss=nope: there is no such option; allowed are at, crd, "),
        ("lodd=3", "lodd=3: there is no such key; allowed are checkpoint, data"),
        ("seed=0,1", "seed=0,1: several values are a sweep, which distill.sweep runs"),
        ("experiment=quickstart", "experiment=quickstart: it is a sweep, which distill.sweep runs"),
        ("hydra.mode=MULTIRUN", "hydra.mode=MULTIRUN: distill.run does one run"),
        ("--cfg=job", "--cfg=job: it is a flag of the command"),
        ("halving.rungs=1", "halving.rungs=1: "),
        ("data.root=", None),
    ],
)
def test_what_is_wrong_is_an_exception_of_one_line(
    override: str, line: str | None, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if line is None:
        (home / "file").touch()
        override, line = "hydra.run.dir=file/below", "file/below"
    given = ("data=synthetic", "data.validation=0.2", override)
    with pytest.raises((distill.ConfigError, OSError)) as error:
        distill.run(*given)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    assert not (home / "multirun").exists()


def test_what_a_callback_of_a_sweep_refuses_is_an_exception() -> None:
    rungs = ("data.validation=0.2", "halving.rungs=1", "hydra/launcher=basic")
    with pytest.raises(distill.ConfigError, match=r"halving.rungs=1: only a sweep's jobs"):
        distill.sweep(*HARD, *rungs, "seed=0,1")
    with pytest.raises(distill.ConfigError, match=r"seed=-1: Input should be greater"):
        distill.sweep(*HARD, "seed=0,-1")
    with pytest.raises(distill.ConfigError, match=r"7: an override is a text"):
        distill.sweep(7)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", [False, True])
def test_nothing_is_printed_unless_asked(
    notebook: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: notebook)
    distill.sweep(*HARD, "seed=0")
    distill.run(*HARD)
    assert capfd.readouterr() == ("", "")
    distill.sweep(*HARD, "seed=0", show=True)
    assert "1 run (1 complete)" in capfd.readouterr().out
    result = distill.run(*HARD, show=True)
    assert str(result.directory) in capfd.readouterr().out


@pytest.mark.slow
def test_the_process_is_left_as_it_was(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    root, named = logging.getLogger(), logging.getLogger("distill.runs.execute")
    file = logging.FileHandler(home / "mine.log", mode="w")
    monkeypatch.setattr(root, "handlers", [file])
    root.setLevel(logging.ERROR)
    named.setLevel(logging.CRITICAL)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    with initialize_config_dir(str(CONF)):
        VersionBase.instance().setbase("1.3")

        def state() -> list[Any]:
            return [
                *(sys.argv, [*sys.argv], dict(os.environ), Path.cwd(), sys.stdout, sys.stderr),
                *(root.handlers, root.level, named.level, [*logging._handlerList]),  # type: ignore[attr-defined]
                *(GlobalHydra.instance().hydra, HydraConfig.instance().cfg),
                *(VersionBase.instance().getbase(), interrupt._meaning),
                [signal.getsignal(number) for number in interrupt.STOPS],
                torch.random.get_rng_state().tolist(),
                torch.get_num_threads(),
            ]

        before = state()
        for _ in range(2):
            distill.run(*HARD, "resume=false")
            assert state() == before
        distill.sweep(*HARD, "seed=0,1")
        assert state() == before
        with pytest.raises(distill.ConfigError):
            distill.run("seed=-1")
        assert state() == before
        with pytest.warns(UserWarning, match="1 diverged"):
            distill.sweep(*HARD, *DIVERGES, "hydra.verbose=true")
        assert state() == before
    root.error("still here")
    assert (home / "mine.log").read_text() == "still here\n"
    file.close()
    root.setLevel(logging.WARNING)
    named.setLevel(logging.NOTSET)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_a_thread_may_call_it() -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(distill.run(*HARD)["status"]))
    thread.start()
    thread.join()
    assert found == ["complete"]


def test_a_signal_within_is_one_to_stop(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.training import loop

    step: Callable[..., Any] = loop.Training.step

    def signalled(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(loop.Training, "step", signalled)
    with pytest.raises(KeyboardInterrupt):
        distill.run(*HARD, "train.epochs=50")
    monkeypatch.undo()
    [path] = (home / "multirun").rglob("result.json")
    assert results.read(path)["status"] == "interrupted"


def test_main_twice_is_alike(cli: Cli, home: Path) -> None:
    root, stop = logging.getLogger(), signal.getsignal(signal.SIGTERM)
    before = [*root.handlers], root.level
    first, second = (cli(*HARD, "resume=false") for _ in range(2))
    assert first.code == second.code == 0
    assert first.err == second.err == ""
    assert first.out.split(";")[0] == second.out.split(";")[0]
    # Else what the second call says before it configures logging went into the first one's log.
    assert ([*root.handlers], root.level) == before
    assert signal.getsignal(signal.SIGTERM) is stop
    assert [path.parent.parent.name for path in home.rglob("distill.log")] == ["single"]


def test_warnings_are_on_stderr_each_time(capfd: pytest.CaptureFixture[str], home: Path) -> None:
    handlers = [*logging.getLogger("distill").handlers]
    for _ in range(2):
        distill.run(*HARD, f"hydra.sweep.dir={home / 'x'}")
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.endswith("is for sweeps (-m); this is one run, which lands in hydra.run.dir\n")
    assert logging.getLogger("distill").handlers == handlers


def test_own_modules_and_configs_are_arguments(home: Path) -> None:
    (home / "brier_of_mine.py").write_text(
        "from pydantic import PositiveFloat\n"
        "def brier(student_logits, labels, *, weight: PositiveFloat):\n"
        "    p = student_logits.softmax(-1)\n"
        "    p = p - p.new_zeros(p.shape).scatter(-1, labels.unsqueeze(-1), 1.0)\n"
        "    return weight * p.square().sum(-1)\n"
    )
    (home / "mine" / "loss").mkdir(parents=True)
    (home / "mine" / "loss" / "brier.yaml").write_text(
        "_target_: brier_of_mine.brier\nweight: 2.0\n"
    )
    given = [part for part in HARD if part != "loss=hard"]
    with pytest.raises(distill.ConfigError, match="--module brier_of_mine"):
        distill.run(*given, "loss=brier", config_dir=home / "mine")
    result = distill.run(*given, "loss=brier", config_dir=home / "mine", modules=["brier_of_mine"])
    assert result["loss"] == "brier"
    assert "DISTILL_MODULES" not in os.environ
    assert distill.load(result.directory).classes == 4  # of a student, its model alone matters
    with pytest.raises(distill.ConfigError, match=r"^--module brier_of_nobody: there is no such"):
        result.load(modules=["brier_of_nobody"])


def test_the_face_is_light_and_complete() -> None:
    code = (
        "import sys, distill; print([m for m in ('torch', 'hydra', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert all(getattr(distill, name) is not None for name in distill.__all__)
    assert set(distill.__all__) <= set(dir(distill))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = distill.nothing
    assert (Path(distill.__file__).parent / "py.typed").is_file()


@pytest.mark.endurance
def test_it_is_typed_from_outside(home: Path) -> None:
    (home / "user.py").write_text(
        "import distill\n"
        "reveal_type(distill.run())\n"
        "reveal_type(distill.sweep('seed=0'))\n"
        "reveal_type(distill.load('run').predict([[0]]))\n"
    )
    given = [sys.executable, "-m", "mypy", "--no-incremental", "user.py"]
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    assert [line.rpartition("type is ")[2] for line in done.stdout.splitlines()[:3]] == [
        '"distill.cli.python.Result"',
        '"pandas.core.frame.DataFrame"',
        '"torch._tensor.Tensor"',
    ], done.stdout
