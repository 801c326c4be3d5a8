"""The commands as users type them."""

import itertools
import json
import shlex
import shutil
import sys
import time
import venv
from pathlib import Path

import pandas as pd
import pytest
from conftest import FULL, SMALL, Cli, needs_mnist, options, shell
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

import distill
from bench.evidence import SWEEPS
from distill.cli import commands, rescore
from distill.cli.main import main
from distill.cli.report import main as report
from distill.findings.claims import CLAIMS
from distill.report import reading
from distill.runs import results, summaries
from distill.sweeps import tables
from distill.system.conf import CONF

BIN = Path(sys.executable).parent


def runs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("result.json"))


def test_a_run_leaves_its_config_result_history_and_weights(cli: Cli, home: Path) -> None:
    done = cli(*SMALL, "loss.temperature=3", "data.validation=0.25")
    assert done.code == 0, done.err
    [run] = runs(home / "multirun" / "single")
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "complete"
    assert result["temperature"] == 3
    assert f"{result['test_errors']} test errors" in done.out
    assert f"teacher {result['teacher_test_errors']}" in done.out
    assert str(run) in done.out
    history = pd.read_csv(run / "history.csv")
    assert history["epoch"].tolist() == [1, 2]
    assert {"train_loss", "train_soft", "train_hard", "lr"} <= set(history.columns)
    assert {"val_loss", "val_errors", "test_loss", "test_errors"} <= set(history.columns)
    assert history["test_errors"].iloc[-1] == result["test_errors"]
    whole = 0.7 * history["train_soft"] + 0.3 * history["train_hard"]
    pd.testing.assert_series_equal(whole, history["train_loss"], check_names=False, rtol=1e-4)
    assert (
        sum(w.numel() for w in load_file(run / "student.safetensors").values())
        == result["parameters"]
    )
    assert "temperature: 3" in (run / ".hydra" / "config.yaml").read_text()
    assert "epoch 2 of 2" in (run / "distill.log").read_text()
    assert sum(result["test_errors_by_class"]) == result["test_errors"]


@pytest.mark.slow
def test_a_sweep_is_a_tidy_csv_and_a_table(cli: Cli, home: Path) -> None:
    done = cli("-m", *SMALL, "loss.temperature=1,4", "model.width=8,10", "seed=0,1")
    assert done.code == 0, done.err
    [folder] = (home / "multirun").iterdir()
    frame = pd.read_csv(folder / "summary.csv")
    assert len(frame) == 8
    assert set(frame["status"]) == {"complete"}
    assert set(zip(frame["temperature"], frame["width"], frame["seed"], strict=True)) == {
        (t, w, s) for t in (1, 4) for w in (8, 10) for s in (0, 1)
    }
    assert frame["teacher_digest"].nunique() == 1
    accuracy = 1 - frame["test_errors"] / 128
    pd.testing.assert_series_equal(accuracy, frame["test_accuracy"], check_names=False)
    assert "mean over 2 seeds" in done.out
    assert "8 runs (8 complete)" in done.out
    assert all((folder / d / "student.safetensors").is_file() for d in frame["directory"])


@pytest.mark.slow
def test_the_same_command_has_the_same_directory_and_result(cli: Cli, home: Path) -> None:
    command = ("-m", *SMALL, "loss.temperature=1,4")
    first = cli(*command).out.splitlines()[-1]
    [folder] = (home / "multirun").iterdir()
    before = pd.read_csv(folder / "summary.csv").drop(columns="seconds")
    assert cli(*command).out.splitlines()[-1] == first
    after = pd.read_csv(folder / "summary.csv").drop(columns="seconds")
    pd.testing.assert_frame_equal(before, after)


def test_a_failing_member_is_a_row_and_the_exit_code_says_so(cli: Cli, home: Path) -> None:
    done = cli("-m", *SMALL, "train.epochs=5", "optim.lr=0.001,1e30,0.002")
    assert done.code == 1
    [folder] = (home / "multirun").iterdir()
    frame = pd.read_csv(folder / "summary.csv").set_index("lr")
    assert frame["status"].to_dict() == {0.001: "complete", 1e30: "diverged", 0.002: "complete"}
    assert "not finite in epoch" in frame["reason"][1e30]
    assert "3 runs (2 complete, 1 diverged)" in done.out
    assert "Traceback" not in done.err


def test_a_sweep_is_checked_before_its_first_job(cli: Cli, home: Path) -> None:
    done = cli("-m", *SMALL, "loss.temperature=1,2,0")
    assert done.code == 1
    assert done.err == "loss.temperature=0: Input should be greater than 0\n"
    assert not list(home.glob("multirun/*"))


@pytest.mark.slow
def test_hydra_full_error_shows_the_traceback() -> None:
    command = (sys.executable, "-m", "distill", *SMALL, "loss.temperature=0")
    assert "Traceback" not in shell(*command).err
    assert "Traceback" in shell(*command, HYDRA_FULL_ERROR="1").err


@pytest.mark.brothers
@pytest.mark.slow
@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_runs_in_a_reduced_form(name: str, cli: Cli, home: Path) -> None:
    """Its sweep, cut down to the first values, or its study, to two trials, on synthetic data."""
    with initialize_config_dir(str(CONF)):
        whole = compose("config", [f"experiment={name}"], return_hydra_config=True)
    params = OmegaConf.select(whole, "hydra.sweeper.params") or {}
    studies = "n_trials" in whole.hydra.sweeper
    first = [f"{key}={str(values).split(',')[0]}" for key, values in params.items()]
    if studies:
        first = ["hydra.sweeper.n_trials=2", "train.epochs=9"]
        if "candidates" in whole.hydra.sweeper:  # whose yaml tests/tuning/test_compare.py reads
            first += ["hydra.sweeper.only=[labels_longer,kd]", "hydra.sweeper.seeds=[1]"]
    command = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()[1]
    assert command == f"# distill experiment={name}"
    small = [o for o in SMALL if o.split("=")[0] not in params]
    small += ["data.classes=10"]  # as many as digits, since some are omitted by name
    small += ["teacher.members=2"] * name.startswith("ensemble")
    done = cli(f"experiment={name}", *small, *first)
    assert done.code == 0, done.err
    [summary] = (home / "multirun").glob("*/summary.csv")
    frame = pd.read_csv(summary)
    columns = {*reading.sweep(summary.parent).runs}
    for claim in CLAIMS:  # its runs have all columns of the conditions of a claim's part
        if name in {own.split()[0] for own in SWEEPS.get(claim.sweep, ())}:
            assert any({*part} <= columns for part in claim.parts), claim.id
    assert frame["test_errors"].notna().sum() == int(whole.test) or studies
    assert frame["val_errors"].notna().sum() == 1 or whole.test or studies
    assert set(frame["status"]) <= {"complete", "stopped"}


@pytest.mark.slow
def test_an_experiment_that_sweeps_takes_several_values(cli: Cli, home: Path) -> None:
    one = ("loss.temperature=1", "loss.alpha=1", "model.width=8")
    done = cli("experiment=quickstart", *SMALL, *one, "seed=3,4")
    assert done.code == 0, done.err
    frame = pd.read_csv(home / "multirun" / "quickstart" / "summary.csv")
    assert frame["seed"].tolist() == [3, 4]


@pytest.mark.slow
def test_evaluate_finds_the_figure_of_the_result(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cli("-m", *SMALL, "seed=0,1")
    folders = runs(home)
    monkeypatch.setattr(sys, "argv", ["distill-evaluate", *map(str, folders)])
    commands.evaluate()
    printed = capfd.readouterr().out
    for folder in folders:
        result = json.loads((folder / "result.json").read_text())
        errors, count, recorded = rescore.rescore(folder)
        assert errors.tolist() == result["test_errors_by_class"]
        assert (count, recorded) == (128, result["test_errors"])
        assert f"{result['test_accuracy']:.2%}" in printed
    # A figure that differs is noticed, and other weights have other errors.
    changed = results.read(folders[0] / "result.json")
    results.write(folders[0], changed | {"test_errors": changed["test_errors"] + 1}, [])
    with pytest.raises(SystemExit, match="errors differ"):
        commands.evaluate()
    shutil.copy(folders[1] / "student.safetensors", folders[0])
    assert (
        not (rescore.rescore(folders[0])[0] == rescore.rescore(folders[1])[0]).logical_not().any()
    )


def test_evaluate_on_data_of_ones_own(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # A run of which some keys want a validation split, which the other data need not have.
    keys = ("loss=hard", "data.validation=0.25", "test=false", "train.keep_best=true")
    result = distill.run(*SMALL, *keys, "seed=1")
    mine = home / "conf" / "data" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("_target_: distill.data.synthetic\nexamples: 100\nclasses: 4\nsize: 8\n")
    shutil.rmtree(result.directory / ".hydra")  # its result says it all
    arguments = [str(result.directory), "--data", "mine", "data.size=12", "data.examples=600"]
    monkeypatch.setattr(sys, "argv", ["distill-evaluate", *arguments])
    commands.evaluate()
    images, labels = distill.data.synthetic(examples=600, classes=4, size=12)[2:]
    errors = int((result.load().predict(images) != labels).sum())
    assert 0 < errors < 300
    assert f" {errors} " in capfd.readouterr().out


def test_evaluate_says_that_classes_have_other_names(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder, names in (("pets", ("cat", "dog")), ("wild", ("dog", "fox"))):
        for part, name in itertools.product(("train", "test"), names):
            place = home / folder / part / name
            place.mkdir(parents=True)
            Image.new("L", (4, 4), 200 * names.index(name)).save(place / "1.png")
    result = distill.run("data=image_folder", "data.root=pets", "loss=hard", "train.epochs=1")
    for folder in ("pets", "wild"):
        rescore.rescore(result.directory, rescore._data(["image_folder", f"data.root={folder}"]))
    [record] = caplog.records
    assert "its classes are cat, dog; those of data=image_folder" in record.getMessage()
    assert record.getMessage().endswith("are dog, fox")


@pytest.mark.slow
@needs_mnist
def test_evaluate_on_another_data_set(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_DATA", str(FULL))
    done = cli("data=mnist_5k", "loss=hard", "train.epochs=15", "model.width=20")
    assert done.code == 0, done.err
    [folder] = runs(home)
    errors, count, recorded = rescore.rescore(folder, rescore._data(["mnist"]))
    assert (count, recorded) == (10_000, None)
    assert 500 < int(errors.sum()) < 4000
    other = (str(BIN / "distill-evaluate"), str(folder), "--data", "synthetic", "data.classes=10")
    done = shell(*other)
    assert done.code == 1
    line = f"RUN={folder}: it reads inputs of 1 x 28 x 28, data=synthetic has 1 x 12 x 12"
    assert done.err == f"{line}; set data.size=28\n"
    assert shell(*other, "data.size=28").code == 0
    done = shell(*other, "data.size=28", "data.classes=5")
    assert "its model has 10 classes, data=synthetic has 5 classes" in done.err


@pytest.mark.slow
def test_summary_rebuilds_from_the_files(cli: Cli, home: Path) -> None:
    cli("-m", *SMALL, "seed=0,1")
    [folder] = (home / "multirun").iterdir()
    text = (folder / "summary.csv").read_bytes()
    (folder / "summary.csv").unlink()
    done = shell(str(BIN / "distill-summary"), str(folder))
    assert done.code == 0
    assert "2 runs (2 complete)" in done.out
    assert (folder / "summary.csv").read_bytes() == text
    assert shell(str(BIN / "distill-summary"), str(home / "nowhere")).code == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--cfg", "job"], ["-sc", "query=bash"]], ids=lambda a: a[0]
)
def test_what_only_looks_at_configs_is_quick_and_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys, atexit, distill.cli.main as m;"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr));"
        f"sys.argv = ['distill', *{arguments}]; m.main()"
    )
    start = time.perf_counter()
    done = shell(sys.executable, "-c", code, COMP_LINE="distill loss=", COMP_POINT="13")
    assert time.perf_counter() - start < 5  # about half a second; the bound only catches a blunder
    assert done.code == 0, done.err
    assert done.err.strip() == "False"
    assert "kd" in done.out


@pytest.mark.slow
def test_the_wheel_works_from_another_directory(home: Path) -> None:
    """Built, installed into a fresh environment, run with the dependencies of this one."""
    root = Path(__file__).parents[2]
    shutil.copytree(root, home / "source", ignore=shutil.ignore_patterns(".*", "multirun"))
    shutil.copytree(root / "multirun" / "reference", home / "source" / "multirun" / "reference")
    built = shell(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(home / "dist"),
        str(home / "source"),
    )  # fmt: skip
    assert built.code == 0, built.err
    [wheel] = (home / "dist").glob("*.whl")
    venv.create(home / "fresh", with_pip=True)
    python = home / "fresh" / "bin" / "python"
    installed = shell(str(python), "-m", "pip", "install", "--no-deps", "--no-index", str(wheel))
    assert installed.code == 0, installed.err
    [site] = (home / "fresh" / "lib").glob("python*/site-packages")
    dependencies = [p for p in sys.path if p.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    (home / "elsewhere").mkdir()
    where = shell(str(python), "-c", "import distill; print(distill.__file__)")
    assert str(site) in where.out
    command = [str(home / "fresh" / "bin" / "distill"), "-m", *SMALL, "seed=0,1"]
    done = shell("env", "-C", str(home / "elsewhere"), *command)
    assert done.code == 0, done.err
    [summary] = (home / "elsewhere").rglob(results.SUMMARY)
    assert len(pd.read_csv(summary)) == 2
    assert "commits" not in (summary.parent / results.SWEEP).read_text()  # which none knows here
    reference = site / "distill" / "findings" / "reference" / "identities"
    command = [str(home / "fresh" / "bin" / "distill-report"), str(reference), "--out", str(home)]
    checked = shell(*command, "--check")
    assert checked.code == 0 and "identities agrees with the reference" in checked.out


@pytest.mark.slow
def test_a_sweep_keeps_its_commands_and_what_they_composed(cli: Cli, home: Path) -> None:
    first = ("-m", *SMALL, "loss.temperature=1,2", "hydra.sweep.dir=sweep")
    second = ("-m", *SMALL, "seed=1 ", "hydra.sweep.dir=sweep")
    experiment = ("experiment=post", *SMALL, "train.batch_size=64", "hydra.sweep.dir=sweep")
    for arguments in (first, first, second, experiment):
        assert cli(*arguments).code == 0
    kept = OmegaConf.load(home / "sweep" / "sweep.yaml")
    commands = [shlex.split(command) for command in kept.commands]
    assert commands == [
        ["distill", *first],
        ["distill", *second],
        ["distill", *experiment],
    ]
    assert kept.version == distill.__version__
    head = shell("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD")
    if head.code == 0:
        [made] = kept.commits
        assert made.removesuffix("-dirty") == head.out.strip()
    else:
        assert "commits" not in kept
    assert kept.config.model.width == 8
    assert "hydra" not in kept.config
    # The data's place on this machine is not in it.
    assert "oc.env:DISTILL_DATA" in (home / "sweep" / "sweep.yaml").read_text()


@pytest.mark.slow
def test_a_refused_run_says_one_line_and_warns_of_nothing() -> None:
    for bad in ("loss.temperature=0", "teacher.members=0"):
        done = shell(sys.executable, "-m", "distill", *SMALL, bad)
        assert (done.code, done.out) == (1, "")
        assert len(done.err.splitlines()) == 1, done.err


def own(home: Path, name: str, text: str) -> tuple[str, str]:
    """Arguments that choose an experiment of one's own."""
    (home / "own" / "experiment").mkdir(parents=True, exist_ok=True)
    body = f"# @package _global_\n{text}hydra:\n  mode: MULTIRUN\n"
    (home / "own" / "experiment" / f"{name}.yaml").write_text(body)
    return "--config-dir=own", f"experiment={name}"


@pytest.mark.slow
def test_an_experiment_of_ones_own_chooses_its_launcher(cli: Cli, home: Path) -> None:
    line = "defaults:\n  - override /hydra/launcher: {}\n"
    done = cli(*own(home, "mine", line.format("basic")), *SMALL, "seed=2,3")
    assert done.code == 0, done.err
    assert "Launching 2 jobs locally" in done.out  # Hydra's basic launcher says that
    stacked = cli("--config-dir=own", "experiment=mine", *SMALL, "seed=2,3", "hydra/launcher=stack")
    assert "2 of 2 jobs were finished before" in stacked.out
    done = cli(*own(home, "mine", line.format("nope")), *SMALL, "seed=2,3")
    assert done.err.startswith("hydra/launcher=nope: there is no such option; allowed are basic")


def test_a_yaml_that_ours_hides_is_told_of(cli: Cli, home: Path) -> None:
    given = own(home, "quickstart", "")
    done = cli(*given, "--cfg", "job")
    path = Path("own", "experiment", "quickstart.yaml")
    told = f"{path} is not read: distill has one of that name; rename it\n"
    assert (done.code, done.err) == (0, told)


@pytest.mark.parametrize("how", ["-m hydra/launcher=basic", "-m hydra/launcher=joblib", ""])
def test_what_no_stack_would_halve_is_refused(how: str, cli: Cli, home: Path) -> None:
    rungs = ("train.epochs=9", "data.validation=0.25", "halving.rungs=1")
    done = cli(*how.split(), *SMALL, *rungs)
    assert done.code == 1 and done.out == ""
    assert done.err == (
        "halving.rungs=1: only a sweep's jobs that train as one stack are halved; "
        "choose -m and hydra/launcher=stack, or halving.rungs=0\n"
    )
    assert not (home / "multirun").exists()


def test_a_second_main_in_a_process_says_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["distill", "data=synthetic", "loss.temperature=0"])
    for _ in range(2):
        with pytest.raises(SystemExit, match="1"):
            main()
    assert capfd.readouterr().err == 2 * "loss.temperature=0: Input should be greater than 0\n"


def test_what_ends_many_runs_is_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(24):
        body = {"run": f"run{n}", "status": "interrupted", "reason": "by SIGINT", "config": {}}
        (home / "sweep" / f"{n}").mkdir(parents=True)
        results.write(home / "sweep" / f"{n}", body, [])
    tables.show(summaries.summary(home / "sweep"), home / "sweep", Console())
    assert capsys.readouterr().out == (
        f"24 runs interrupted: by SIGINT\n24 runs (24 interrupted): {home}/sweep/summary.csv\n"
    )


def test_an_error_of_a_job_has_no_line_before_it(cli: Cli) -> None:
    done = cli(*SMALL, "train.epochs=5", "optim.lr=1e30")
    assert done.code == 1
    assert done.err.count("\n") == 1 and " diverged: " in done.err


@pytest.mark.slow
def test_a_tilde_is_the_home_directory(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home / "me"))
    assert cli(*SMALL, 'hydra.run.dir="~/run"', 'teacher.cache="~/cache"').code == 0
    for launcher in ("stack", "basic"):
        where = f'hydra.sweep.dir="~/{launcher}"'
        assert cli("-m", *SMALL, "seed=0", where, f"hydra/launcher={launcher}").code == 0
        assert len(runs(home / "me" / launcher)) == 1
    assert runs(home / "me" / "run") and any((home / "me" / "cache").iterdir())
    subdir = cli("-m", *SMALL, "hydra.sweep.dir=s", 'hydra.sweep.subdir="~/x"')
    assert "hydra.sweep.subdir=~/x: it must be a folder within hydra.sweep.dir" in subdir.err
    for key in ("hydra.run.dir", "data.root"):
        refused = cli(*SMALL, f'{key}="~nobody9/x"').err
        assert "~nobody9/x: there is no such user; a folder of that name is ./~nobody9/x" in refused
    assert not list(home.rglob("~*"))


def test_a_recorded_command_is_the_one_that_was_typed(cli: Cli, home: Path) -> None:
    folder = "my tune (1)"
    given = ("--multirun", *SMALL, "seed=0", f'hydra.sweep.dir="{folder}"')
    assert cli(*given).code == 0
    [command] = OmegaConf.load(home / folder / "sweep.yaml").commands
    assert shlex.split(command) == ["distill", *given]


def test_a_sweep_that_is_refused_leaves_the_record_as_it_was(cli: Cli, home: Path) -> None:
    refused = ("-m", *SMALL, "loss.temperature=1,0")
    assert cli(*refused, "hydra.sweep.dir=new").code == 1
    assert not (home / "new").exists()
    (home / "old").mkdir()
    assert cli(*refused, "hydra.sweep.dir=old").code == 1
    assert not (home / "old" / "sweep.yaml").exists()
    for record in (b"commands: [distill -m seed=0,1]\n", b"\xff damaged"):
        (home / "old" / "sweep.yaml").write_bytes(record)
        for more in ((), ("hydra.sweep.subdir=~/x",)):
            assert cli(*refused, *more, "hydra.sweep.dir=old").code == 1
            assert (home / "old" / "sweep.yaml").read_bytes() == record
    assert {path.name for path in (home / "old").iterdir()} == {"sweep.yaml", "multirun.yaml"}


def test_a_folder_of_sweeps_is_not_that_of_one_run(cli: Cli) -> None:
    done = cli(*SMALL, "loss=hard", "hydra.sweep.dir=mine")
    assert done.code == 0
    assert "hydra.sweep.dir=mine is for sweeps (-m); this is one run, which lands" in done.err


@pytest.mark.parametrize("name", ["predict", "export", "summary", "evaluate", "report"])
def test_wrong_arguments_of_each_command_are_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"distill-{name}"])
    with pytest.raises(SystemExit) as end:
        (report if name == "report" else getattr(commands, name))()
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("the following arguments are required: ")
    assert lines[0].endswith(f"; distill-{name} --help shows what can be given")
