"""Bad input ends in a line that names it and exit code 1; nothing is run, left behind or lost."""

import gzip
import json
import os
import pickle
import shlex
import shutil
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, Cli, composed, make_job
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console
from safetensors.torch import load_file, save_file
from torchvision import datasets

from distill.cli import commands
from distill.config import ConfigError, parse
from distill.data import downloaded
from distill.data.downloaded import FILES
from distill.runs import results, summaries
from distill.runs.execute import execute
from distill.sweeps import tables
from distill.training.inputs import root

LEAST = ("data=synthetic", "loss=hard", "model.width=8", "train.epochs=1")


class Payload:
    """What touches the file HARM when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch HARM",)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    folder.mkdir()
    execute([make_job("loss=hard")], [folder])
    return folder


@pytest.fixture
def kept(run: Path, home: Path) -> Path:
    """A finished run in the working directory, which no bad input may change."""
    return Path(shutil.copytree(run, home / "kept"))


def tree(folder: Path) -> dict[Path, bytes | None]:
    """All that lies below a folder, but for empty folders at the place of the data."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.is_file() or not path.is_relative_to(folder / "data")
    }


Refused = Callable[..., str]


@pytest.fixture
def refused(cli: Cli, home: Path, kept: Path) -> Refused:  # noqa: ARG001
    """The line with which `distill` refuses some arguments, and leaves all as it was."""

    def call(*arguments: str) -> str:
        before = tree(home)
        done = cli(*arguments)
        assert done.code == 1, done.out
        assert done.err.count("\n") == 1, done.err
        assert done.out == ""
        assert tree(home) == before
        return done.err

    return call


OVERRIDES = {
    # keys
    "loss.tempratur=4": "loss.tempratur=4: there is no such key; did you mean loss.temperature?",
    "tranfer.fraction=1": "tranfer.fraction=1: there is no such key; did you mean transfer",
    "+loss.tempratur=4": "loss.tempratur=4: there is no such key; did you mean loss.temperature?",
    "LOSS.temperature=4": "LOSS.temperature=4: there is no such key; allowed are checkpoint, data",
    "loss.temperature.x=4": "loss.temperature.x=4: there is no such key; loss.temperature has none",
    "hydra.sweep.dri=x": "hydra.sweep.dri=x: there is no such key; did you mean hydra.sweep.dir?",
    "+loss.temperature=4": "Could not append to config. An item is already at 'loss.temperature'",
    "~nope": "Could not delete from config. 'nope' does not exist",
    # options of groups
    "model=mpl": "model=mpl: there is no such option; allowed are cnn, mlp, mlp_1200, mlp_30",
    "model=": "model=: there is no such option; allowed are cnn, mlp, mlp_1200, mlp_30",
    "model=null": "model=null: a config group needs one of its options",
    "teacher=4": "teacher=4: a config group needs one of its options",
    "teacher=[1]": "teacher=[1]: a config group needs one of its options",
    "teacher=[paper,b]": "teacher=b: there is no such option; allowed are checkpoint, ensemble",
    "logger=[wandb,a]": "logger=a: there is no such option; allowed are ",
    "=4": "=4: a config group needs one of its options",
    "train=4": "train=4: Input should be a valid dictionary",
    "+model=cnn": "Multiple values for model. To override a value use 'override model: cnn'",
    # types
    "train=[1]": "train=[1]: it has keys of its own; train.KEY=VALUE sets one of them",
    "+train=[1]": "+train=[1]: it has keys of its own; train.KEY=VALUE sets one of them",
    "hydra.sweeper.params=[1]": "hydra.sweeper.params=[1]: it has keys of its own",
    "optim.milestones={a:1}": "optim.milestones={a:1}: it is a list, written optim.mi",
    "loss.temperature=4s": "loss.temperature=4s: Input should be a valid number",
    "loss.alpha=50%": "loss.alpha=50%: Input should be a valid number",
    "loss.alpha=0x1": "loss.alpha=0x1: Input should be a valid number",
    "loss.alpha=": "loss.alpha=: Input should be a valid number",
    "loss.alpha=[0.5]": "loss.alpha=[0.5]: Input should be a valid number",
    "loss.alpha={a:1}": "loss.alpha={'a': 1}: Input should be a valid number",
    "seed=true": "seed=true: Input should be a valid integer",
    "seed=1e3": "seed=1000.0: Input should be a valid integer",
    "resume=1": "resume=1: Input should be a valid boolean",
    "data.root=3": "data.root=3: Input should be a valid string; in quotes of its own it is one",
    # ranges
    "loss.temperature=-1": "loss.temperature=-1: Input should be greater than 0",
    "loss.temperature=NaN": "loss.temperature=nan: Input should be a finite number",
    "loss.temperature=-inf": "loss.temperature=-inf: Input should be a finite number",
    "loss.temperature=1e400": "loss.temperature=inf: Input should be a finite number",
    "optim.lr=1e-400": "optim.lr=0.0: Input should be greater than 0",
    f"seed={10**30}": f"seed={10**30}: Input should be less than {2**63}",
    "model.width=1048576": "model.depth=2, model.width=1048576: the parameters take 4.4 TB; this",
    # signs that the grammar of overrides does not have
    "seed=\uff14": "seed=\uff14: not of the form key=value (not understood from '\uff14' on)",
    "seed=\u0664": "seed=\u0664: not of the form key=value (not understood from '\u0664' on)",
    "loss.temperature": "loss.temperature: not of the form key=value (missing EQUAL",
    "": ": not of the form key=value (mismatched input '<EOF>'",
    "seed=[4": "seed=[4: not of the form key=value (no viable alternative at input '[4')",
    "seed={4": "seed={4: not of the form key=value (no viable alternative at input '{4')",
    "seed='4": "seed='4: not of the form key=value (not understood from \"'4\" on)",
    "seed==4": "seed==4: not of the form key=value (extraneous input '='",
    "seed=${oc.env:NOPE}": "seed: KeyError raised while resolving interpolation",
    "seed=${seed}": "seed: Recursive interpolation detected",
    # sweeps without -m
    "seed=1,4": "seed=1,4: several values are a sweep, which needs -m; a list is written [a,b]",
    "seed=range(1,4)": "seed=range(1,4): several values are a sweep, which needs -m",
    "model=mlp,cnn": "model=mlp,cnn: several values are a sweep, which needs -m",
    # Hydra's own
    "hydra.mode=nope": "Invalid hydra.mode 'nope'; expected RUN or MULTIRUN",
    "hydra/launcher=nope": "hydra/launcher=nope: there is no such option; allowed are basic",
    "hydra.launcher.workers=x": "hydra.launcher.workers: Value 'x' of type 'str' could not be",
    "--config-dir=nowhere": "Additional config directory",
    "--config-name=nowhere": "Cannot find primary config 'nowhere'",
}


# What Hydra cannot read bare, and how the line says that it is quoted.
PASTED = {
    "data.root=~/data": """'data.root="~/data"'""",
    "teacher.path=ckpt/epoch=9.safetensors": """'teacher.path="ckpt/epoch=9.safetensors"'""",
    "data.root=/mnt/my data (1)": """'data.root="/mnt/my data (1)"'""",
    "data.root=/home/jürgen": """'data.root="/home/jürgen"'""",
    "data.root=a/b,c": """'data.root="a/b,c"'""",
    "data.root=it's/a\"b": """'data.root="it'"'"'s/a\\"b"'""",
}


@pytest.mark.table
@pytest.mark.parametrize("override", PASTED)
def test_how_to_quote_is_said_with_ones_own_value(override: str, refused: Refused) -> None:
    line = refused("data=synthetic", override)
    assert line.endswith(f"; a text with such signs is quoted: {PASTED[override]}\n")
    [pasted] = shlex.split(PASTED[override])
    read = OverridesParser.create().parse_override(pasted)
    assert f"{read.key_or_group}={read.value()}" == override


@pytest.mark.parametrize("flags", ["--cfg job", "--info config", "--help"])
def test_several_values_are_not_looked_at(flags: str, cli: Cli) -> None:
    done = cli(*flags.split(), "experiment=quickstart", "seed=3,4")
    line = f"seed=3,4: several values are a sweep, and {flags.split()[0]} shows one run; a list is"
    assert (done.code, done.err) == (1, f"{line} written [a,b]\n")


FLAGS = {
    "--nope": (2, "unrecognized arguments: --nope; distill --help shows what can be given"),
    "--cfg job -m": (1, "Only one of --run, --multirun, --cfg, --info and --shell_completion can"),
    "--resolve": (1, "The --resolve flag can only be used in conjunction with --cfg or --help"),
    "--config-dir kept/.hydra": (
        1,
        "--config-dir=kept/.hydra: it is the record of a run, which is",
    ),
    "--config-path kept/.hydra": (1, "--config-path=kept/.hydra: it is the record of a run, which"),
}


@pytest.mark.parametrize("flags", FLAGS)
def test_wrong_flags_are_a_line(flags: str, cli: Cli, kept: Path) -> None:
    (kept / ".hydra").mkdir()
    for name in ("config", "hydra", "overrides"):
        (kept / ".hydra" / f"{name}.yaml").touch()
    done = cli(*flags.split())
    assert (done.code, done.out, done.err.count("\n")) == (FLAGS[flags][0], "", 1)
    assert done.err.startswith(FLAGS[flags][1])


# Without a bound these would run without end, and not fail, so they are only checked.
HUGE = {
    "train.epochs": 10**6,
    "train.batch_size": 2**31,
    "model.width": 2**20,
    "model.depth": 1000,
    "data.examples": 100_000,
}


@pytest.mark.parametrize("key", HUGE)
def test_a_size_that_no_machine_can_train_is_refused(key: str) -> None:
    allowed = rf"{key}={10**30}: Input should be less than (or equal to )?{HUGE[key]}$"
    with pytest.raises(ConfigError, match=allowed):
        parse(composed("data=synthetic", f"{key}={10**30}"))


@pytest.mark.table
@pytest.mark.parametrize("override", OVERRIDES)
def test_a_bad_override_is_refused(override: str, refused: Refused) -> None:
    assert refused("data=synthetic", override).startswith(OVERRIDES[override])


SWEEPS = {
    "seed=0,x": "seed=x: Input should be a valid integer",
    "seed=0,,1": "seed=0,,1: not of the form key=value (extraneous input ','",
    "seed=": "seed=: Input should be a valid integer",
    "seed=range(0)": "seed=range(0): there is no value, so there is no job to run",
    "seed=range(1,2,0)": "seed=range(1,2,0): range() arg 3 must not be zero",
    "seed=choice()": "seed=choice(): not of the form key=value (ValueError while evaluating",
    "model=glob(x*)": "model=glob(x*): there is no value, so there is no job to run",
    "model=cnn,mpl": "model=mpl: there is no such option; allowed are cnn, mlp, mlp_1200, mlp_30",
    "train.epochs=1,0": "train.epochs=0: Input should be greater than 0",
    "hydra.launcher.workers=0": "hydra.launcher.workers=0: it must be at least 1",
    "hydra.job.chdir=true": "hydra.job.chdir=true: jobs that train together have one working",
    "hydra.sweep.dir=kept/result.json": "hydra.sweep.dir=kept/result.json: File exists",
}


@pytest.mark.table
@pytest.mark.slow
@pytest.mark.parametrize("override", SWEEPS)
def test_a_bad_sweep_is_refused_as_a_whole(override: str, refused: Refused) -> None:
    assert refused("-m", *LEAST, override).startswith(SWEEPS[override])


@pytest.mark.slow
def test_a_bad_sweep_leaves_a_finished_one_as_it_was(cli: Cli, home: Path) -> None:
    command = ("-m", *LEAST, "hydra.sweep.dir=sweep")
    assert cli(*command, "seed=0,1").code == 0
    before = tree(home)
    assert cli(*command, "seed=0,1,x").err == "seed=x: Input should be a valid integer\n"
    after = tree(home)
    # What the sweeper was asked to do last is Hydra's to write.
    assert before.pop(home / "sweep" / "multirun.yaml")
    assert after.pop(home / "sweep" / "multirun.yaml")
    assert after == before


def test_each_bad_value_has_a_line(cli: Cli, home: Path) -> None:
    done = cli("data=synthetic", "seed=-1", "model.width=x", "optim.lr=0")
    assert done.code == 1
    keys = [line.split("=")[0] for line in done.err.splitlines()]
    assert sorted(keys) == ["model.width", "optim.lr", "seed"]
    assert not (home / "multirun").exists()


KD = "_target_: distill.losses.kd\ntemperature: 4.0\nalpha: 0.7\n"
# Ten levels of nine aliases each: 9^10 nodes.
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
YAMLS = {
    "_target_: [\n": "loss/own: ParserError: while parsing a flow node",
    "": "loss._target_=None: allowed are distill.losses.",
    "- 1\n- 2\n": "loss._target_=None: allowed are distill.losses.",
    "4\n": "loss/own: OSError: Invalid loaded object type: int",
    KD + "\tx: 4\n": "loss/own: ScannerError: while scanning",
    KD + "alpha: 0.5\n": "loss/own: ConstructorError: while constructing a mapping",
    KD + "x: \x00\n": "loss/own: ReaderError: unacceptable character #x0000",
    "\udcff": "loss/own: UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff",
    "a: &a\n  b: *a\n": "loss/own: ConstructorError: YAML recursive aliases are not supported",
    "!!python/object/apply:os.system ['touch HARM']\n": "loss/own: ConstructorError: could not",
    "[" * 3000: "loss/own: ScannerError: while increasing flow level exceeded maximum nesting",
    KD + "3: 4\n": "loss.3=3: Keys should be strings",
    KD + "_partial_: true\n": "loss._partial_=true: there is no such key; did you mean",
    "_target_: [a]\n": "loss._target_=['a']: allowed are distill.losses.",
    "_target_: {a: b}\n": "loss._target_={'a': 'b'}: allowed are distill.losses.",
    "_target_: os.system\ncommand: touch HARM\n": "loss._target_=os.system: allowed are distill",
    "_target_: builtins.eval\n": "loss._target_=builtins.eval: allowed are distill.losses.",
    "_target_: distill.system.store.get\n": "loss._target_=distill.system.store.get: allowed are",
    "_target_: distill.losses.F\n": "loss._target_=distill.losses.F: allowed are distill",
    "defaults: 3\n": "loss/own: Invalid defaults list in 'loss/own', defaults must be a list",
    "defaults: [own]\n": "the config is nested too deeply, or its defaults lead back to themselves",
    "defaults: [nope]\n": "In 'loss/own': Could not load 'loss/nope'.",
    "defaults: [sum]\nterms: [kd]\n": "loss/own: a key has a list where others have keys",
    "defaults: [../../x]\n": "../../x: the name of a config cannot contain ..",
}


@pytest.mark.table
@pytest.mark.parametrize("text", YAMLS, ids=lambda text: repr(text[:30]))
def test_a_bad_yaml_is_refused(text: str, refused: Refused, home: Path) -> None:
    (home / "own" / "loss").mkdir(parents=True)
    (home / "own" / "loss" / "own.yaml").write_bytes(text.encode(errors="surrogateescape"))
    assert refused("data=synthetic", "--config-dir=own", "loss=own").startswith(YAMLS[text])


def test_a_yaml_that_unfolds_without_end_takes_no_memory(refused: Refused, home: Path) -> None:
    (home / "own" / "loss").mkdir(parents=True)
    (home / "own" / "loss" / "own.yaml").write_text(BOMB + KD)
    tracemalloc.start()
    try:
        error = refused("data=synthetic", "--config-dir=own", "loss=own")
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert error.startswith("loss/own: ConstructorError: YAML node expansion exceeds")


TARGETS = (
    "os.system",
    "builtins.eval",
    "subprocess.Popen",
    "distill.system.store.get",
    "distill.sweeps.names.store.write_text",
    "distill.sweeps.names.Path",
    "distill.sweeps.names.sweep_name",
    "distill.sweeps.members.os.system",
    "distill.sweeps.launcher.stackable",
)


@pytest.mark.table
@pytest.mark.parametrize("mode", [[], ["-m"]], ids=["run", "sweep"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_callback_is_one_of_this_package(target: str, mode: list[str], refused: Refused) -> None:
    callback = f"+hydra.callbacks.x={{_target_:{target},command:touch HARM}}"
    error = refused(*mode, *LEAST, callback)
    assert error.startswith("hydra.callbacks.x: ")
    assert target.rpartition(".")[2] in error
    assert error.endswith("is not among what a config may call\n")


@pytest.mark.table
@pytest.mark.parametrize("part", ["launcher", "sweeper"])
@pytest.mark.parametrize("target", TARGETS)
def test_launcher_and_sweeper_are_plugins(target: str, part: str, refused: Refused) -> None:
    error = refused("-m", *LEAST, f"hydra.{part}._target_={target}")
    assert error == f"hydra.{part}._target_={target}: there is no such launcher or sweeper\n"


@pytest.mark.table
@pytest.mark.parametrize("mode", [[], ["-m"]], ids=["run", "sweep"])
@pytest.mark.parametrize("group", ["job_logging", "hydra_logging"])
def test_logging_calls_nothing_else(group: str, mode: list[str], cli: Cli, home: Path) -> None:
    folder = home / "own" / "hydra" / group
    folder.mkdir(parents=True)
    handler = "{(): os.system, command: touch HARM}"
    (folder / "own.yaml").write_text(
        f"version: 1\nhandlers:\n  x: {handler}\nroot:\n  handlers: [x]\n"
    )
    done = cli(*mode, *LEAST, "--config-dir=own", f"hydra/{group}=own")
    assert done.code == 1
    assert "os.system" in done.err
    assert "Traceback" not in done.err
    assert not list(home.rglob("HARM"))
    assert not list(home.rglob("student.safetensors"))


NAMES = {
    "experiment=../../x": "experiment=../../x: the name of a config cannot contain ..",
    "experiment=/etc/passwd": "experiment=/etc/passwd: there is no such option; allowed are",
    "experiment=.": "experiment=.: there is no such option; allowed are",
    "model=../loss/kd": "model=../loss/kd: the name of a config cannot contain ..",
    "model=/loss/kd": "model=/loss/kd: there is no such option; allowed are cnn, mlp, mlp_1200",
    "hydra.job.name=../../x": "hydra.job.name=../../x: it must be a name, not a path",
    "hydra.job.name=x/y": "hydra.job.name=x/y: it must be a name, not a path",
    "hydra.output_subdir=../x": "hydra.output_subdir=../x: it must be a name, not a path",
    "hydra.output_subdir=..": "hydra.output_subdir=..: it must be a name, not a path",
    "--config-name=../x": "Cannot find primary config '../x'",
}
SUBDIRS = ("../x", "../../x", "{home}/x", "x/../..")


@pytest.mark.table
@pytest.mark.slow
@pytest.mark.parametrize("mode", [[], ["-m"]], ids=["run", "sweep"])
@pytest.mark.parametrize("override", NAMES)
def test_a_name_is_no_path(override: str, mode: list[str], refused: Refused, home: Path) -> None:
    (home / "x.yaml").write_text("seed: 5\n")
    assert refused(*mode, *LEAST, override).startswith(NAMES[override])


@pytest.mark.slow
@pytest.mark.parametrize("subdir", SUBDIRS)
def test_a_job_stays_in_its_sweep(subdir: str, refused: Refused, home: Path) -> None:
    given = subdir.format(home=home)
    error = refused("-m", *LEAST, "hydra.sweep.dir=a/b", f"hydra.sweep.subdir={given}")
    allowed = f"it must be a folder within {home / 'a' / 'b'}"
    assert error == f"hydra.sweep.subdir={given}: {allowed}\n"


def test_the_name_of_a_teacher_names_no_file(cli: Cli, home: Path) -> None:
    assert cli(*SMALL, "teacher.name=../../x").code == 0
    assert {path.name for path in home.iterdir()} == {"data", "multirun"}
    assert not list(home.parent.glob("x*"))


def test_an_empty_root_is_none() -> None:
    given, none = (parse(composed(f"data.root={r}", "loss=hard")).data for r in ("''", "null"))
    assert root(given) == root(none)


def raw(header: bytes, size: int | None = None) -> bytes:
    """A safetensors file of a header that claims to have ``size`` bytes."""
    return struct.pack("<Q", len(header) if size is None else size) + header


def entry(shape: list[int], end: int, dtype: str = "F32") -> bytes:
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}
    return json.dumps({"layers.0.weight": tensor}).encode()


Weights = dict[str, torch.Tensor]
FILE_CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "header too small"),
    "noise": (bytes(range(256)) * 9, "header too large"),
    "pickle": (pickle.dumps(Payload()), "not a readable file of torch.save"),
    "size": (raw(b"{}", 2**60), "header too large"),
    "no-end": (raw(b"{}", 90_000_000), "invalid header length"),
    "overflow": (raw(entry([10**9, 10**9], 4 * 10**18)), "overflow computing buffer size"),
    "no-data": (raw(entry([16, 144], 9216)), "incomplete metadata"),
    "dtype": (raw(entry([0], 0, "NOPE")), "unknown variant `NOPE`"),
    "shape": (raw(entry([0], 0)), "has shape [0], the model wants [16, 144]; set teacher.model"),
}
WEIGHT_CASES: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "none": (lambda _: {}, "has shape none, the model wants"),
    "more": (lambda w: w | {"more": torch.zeros(3)}, "more has shape [3], the model wants none"),
    "nan": (lambda w: {n: v * torch.nan for n, v in w.items()}, "not finite in float32"),
    "inf": (lambda w: {n: v + torch.inf for n, v in w.items()}, "not finite in float32"),
    "double": (lambda w: {n: v.double() + 1e300 for n, v in w.items()}, "not finite in float32"),
    "integer": (
        lambda w: {n: v.int() for n, v in w.items()},
        "has type torch.int32, not torch.float32",
    ),
    "complex": (
        lambda w: {n: v.to(torch.complex64) for n, v in w.items()},
        "has type torch.complex64, not",
    ),
}
PATH_CASES = {
    "nowhere": "there is no file",
    "kept": "its run had another model; set teacher.model.width=8",
    "/dev/null": "there is no file",
    "pipe": "there is no file",
    "loop": "there is no file",
    "''": "there is no file",
    "[]": "Input should be a valid string",
}
TAUGHT = ("data=synthetic", "model.width=8", "teacher=checkpoint", "teacher.model.width=16")


def sixteen() -> Weights:
    return built(144, 4)


@pytest.mark.table
@pytest.mark.parametrize("case", FILE_CASES)
def test_a_file_that_is_no_checkpoint_is_refused(case: str, refused: Refused, home: Path) -> None:
    content, message = FILE_CASES[case]
    (home / "teacher").write_bytes(content)
    error = refused(*TAUGHT, "teacher.path=teacher")
    assert error.startswith("teacher.path=teacher: ")
    assert message in error


@pytest.mark.table
@pytest.mark.parametrize("case", WEIGHT_CASES)
def test_weights_that_are_no_teacher_are_refused(case: str, refused: Refused, home: Path) -> None:
    change, message = WEIGHT_CASES[case]
    save_file(change(sixteen()), home / "teacher")
    error = refused(*TAUGHT, "teacher.path=teacher")
    assert error.startswith("teacher.path=teacher: parameter ")
    assert message in error


@pytest.mark.table
@pytest.mark.parametrize("path", PATH_CASES)
def test_a_path_to_no_file_is_refused(path: str, refused: Refused, home: Path) -> None:
    os.mkfifo(home / "pipe")
    writer = os.open(home / "pipe", os.O_RDWR)  # so that opening it to read does not wait
    (home / "loop").symlink_to("loop")
    given = path.strip("'")
    error = refused(*TAUGHT, f"teacher.path={path}")
    os.close(writer)
    assert error.startswith(f"teacher.path={given}: ")
    assert PATH_CASES[path] in error


def test_a_file_of_torch_runs_no_code(refused: Refused, home: Path) -> None:
    torch.save(Payload(), home / "teacher.pt")
    save_file(sixteen(), home / "cut")
    (home / "cut").write_bytes((home / "cut").read_bytes()[:-9])
    for path, said in (("teacher.pt", "its pickle calls "), ("cut", "not a readable safetensors")):
        error = refused(*TAUGHT, f"teacher.path={path}")
        assert error.startswith(f"teacher.path={path}: {said}")
    assert not (home / "HARM").exists()
    pickle.loads(pickle.dumps(Payload()))  # so that the file above would have made it
    assert (home / "HARM").exists()


def built(pixels: int, classes: int) -> Weights:
    sizes = [(pixels, 16), (16, 16), (16, classes)]
    return {
        f"layers.{n}.{kind}": torch.zeros(*shape)
        for n, (a, b) in enumerate(sizes)
        for kind, shape in (("weight", (b, a)), ("bias", (b,)))
    }


def test_weights_for_other_data_are_told_by_classes_and_images(
    refused: Refused, home: Path
) -> None:
    images = "reads images of 784 values, data=synthetic has images of 1 x 12 x 12"
    for pixels, classes, said in (
        (144, 10, "has 10 classes, data=synthetic has 4 classes"),
        (784, 4, images),
    ):
        save_file(built(pixels, classes), home / "teacher")
        error = refused(*TAUGHT, "teacher.path=teacher")
        wanted = f"its model {said}; choose the data that it was trained on\n"
        assert error == f"teacher.path=teacher: {wanted}"


LACKS = "lacks files of MNIST, and they could not be downloaded"
DAMAGED = "is damaged: its content is not that of MNIST; delete the folder"
MNIST: dict[str, tuple[str, bytes | None, str]] = {
    "missing": ("", None, LACKS),
    "empty": ("", b"", DAMAGED),
    "noise": ("", bytes(range(256)), DAMAGED),
    "truncated": ("", struct.pack(">IIII", 0x803, 60_000, 28, 28) + bytes(99), DAMAGED),
    "packed": ("", gzip.compress(b"wrong"), DAMAGED),
    "wrong-archive": (".gz", gzip.compress(b"wrong"), LACKS),
    "cut-archive": (".gz", gzip.compress(bytes(range(256)))[:99], LACKS),
}


@pytest.mark.table
@pytest.mark.parametrize("case", MNIST)
def test_bad_files_of_a_data_set_are_named(
    case: str, refused: Refused, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["file:///nowhere/"])
    monkeypatch.setattr(downloaded, "PAUSE", 0.01)
    suffix, content, message = MNIST[case]
    folder = home / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for stem in FILES if content is not None else ():
        (folder / f"{stem}-ubyte{suffix}").write_bytes(content or b"")
    error = refused("data=mnist", "loss=hard", "data.root=data")
    assert error.startswith(f"data.root=data: data/MNIST/raw {message}")


PLACES = {
    "data.root=kept/result.json": "data.root=kept/result.json: kept/result.json/MNIST/raw lacks",
    "teacher.cache=kept/result.json/x": "teacher.cache=kept/result.json/x: no folder can be made",
    "hydra.run.dir=kept/result.json": "hydra.run.dir=kept/result.json: File exists",
    "hydra.run.dir=kept/result.json/x": "hydra.run.dir=kept/result.json/x: Not a directory",
}


@pytest.mark.parametrize("override", PLACES)
def test_a_file_where_a_folder_should_be(
    override: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["file:///nowhere/"])
    data = "mnist" if override.startswith("data.root") else "synthetic"
    assert refused(f"data={data}", override).startswith(PLACES[override])


def command(main: Callable[[], None], *arguments: str) -> str:
    """What a command that fails prints as it ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    assert isinstance(end.value.code, str), end.value.code  # printed, with exit code 1
    return end.value.code


def summarise(folder: str) -> None:
    """`distill-summary` of a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["distill-summary", folder])
        commands.summary()


RESULTS: dict[str, bytes | dict[str, Any]] = {
    "empty": b"",
    "list": b"[]",
    "number": b"3",
    "null": b"null",
    "nan": b"NaN",
    "cut": b'{"run": "a", "status": "comp',
    "noise": b"\xff\xfe\x00",
    "nested": b"[" * 100_000,
    "bare": b'{"run": "a", "status": "complete"}',
    "errors-text": {"test_errors": "many"},
    "errors-list": {"test_errors": [1]},
    "errors-bool": {"test_errors": True},
    "errors-nan": {"test_errors": float("nan")},
    "errors-huge": {"test_errors": 10**400},
    "seed-list": {"seed": [1]},
    "width-object": {"width": {"a": 1}},
    "status-number": {"status": 3},
    "run-null": {"run": None},
    "config-list": {"config": [1]},
}


def damage(run: Path, content: bytes | dict[str, Any]) -> None:
    """Write a result, or change the values of keys in it."""
    path = run / "result.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content).encode()
    path.write_bytes(content)


def rewrite(run: Path, **values: Any) -> None:
    """Write a whole result with other values."""
    results.write(run, results.read(run / "result.json") | values, [])


@pytest.mark.table
@pytest.mark.parametrize("case", RESULTS)
def test_a_bad_result_is_a_row_and_the_others_are_shown(
    case: str, kept: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Path(shutil.copytree(kept, home / "sweep" / "bad"))
    shutil.copytree(kept, home / "sweep" / "good")
    damage(bad, RESULTS[case])
    before = tree(home)
    summarise("sweep")
    shown = capsys.readouterr().out
    assert "bad failed: result.json is damaged\n" in shown
    assert "2 runs (1 failed, 1 complete): sweep/summary.csv" in shown
    after = tree(home)
    assert after.pop(home / "sweep" / "summary.csv")
    after.pop(home / "sweep" / summaries.SUMMARY_LOCK)
    assert after == before


def test_a_result_that_is_a_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "sweep" / "bad" / "result.json").mkdir(parents=True)
    summarise("sweep")
    assert "bad failed: sweep/bad/result.json: Is a directory\n" in capsys.readouterr().out


def test_text_of_a_result_is_shown_as_it_is(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(kept, status="failed", reason="[/x] [red]why[/red]")
    summarise("kept")
    assert "failed: [/x] [red]why[/red]\n" in capsys.readouterr().out


def test_the_table_of_one_run_has_no_other_title(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.show(summaries.summary(kept), kept, Console())
    assert "('',)" not in capsys.readouterr().out


DIRS = {
    "nowhere": "no result.json lies below it; give the directory of a sweep or a run",
    "kept/result.json": "no result.json lies below it",
    "kept/.hydra": "no result.json lies below it",
    "blocked": "Is a directory",
}


@pytest.mark.parametrize("folder", DIRS)
def test_a_dir_without_results_is_refused(folder: str, kept: Path, home: Path) -> None:
    blocked = Path(shutil.copytree(kept, home / "blocked"))
    (blocked / "summary.csv").mkdir()
    before = tree(home)
    name = "blocked/summary.csv" if folder == "blocked" else f"DIR={folder}"
    assert command(commands.summary, folder).startswith(f"{name}: {DIRS[folder]}")
    after = tree(home)
    after.pop(home / folder / summaries.SUMMARY_LOCK, None)
    assert after == before


WEIGHTS = "student.safetensors"
RUNS: dict[str, tuple[str, bytes | None, str]] = {
    "no-weights": (WEIGHTS, None, WEIGHTS + ": there is no file"),
    "empty-weights": (WEIGHTS, b"", WEIGHTS + ": Error while deserializing header"),
    "noise-weights": (WEIGHTS, bytes(range(256)), WEIGHTS + ": Error while deserializing header"),
    "other-weights": (WEIGHTS, raw(b"{}"), "parameter layers.0.weight has shape none, the model"),
    "no-result": ("result.json", None, "no complete run lies there"),
    "empty-result": ("result.json", b"", "result.json is damaged"),
    "list-result": ("result.json", b"[]", "result.json is damaged"),
    "bare-result": ("result.json", b"{}", "result.json is damaged"),
    "text-result": ("result.json", b'{"test_errors": "x"}', "result.json is damaged"),
}


@pytest.mark.table
@pytest.mark.parametrize("case", RUNS)
def test_a_damaged_run_is_not_evaluated(case: str, kept: Path, home: Path) -> None:
    name, content, message = RUNS[case]
    if content is None:
        (kept / name).unlink()
    else:
        (kept / name).write_bytes(content)
    before = tree(home)
    error = command(commands.evaluate, "kept")
    assert error.startswith(f"RUN=kept: {message}")
    assert "\n" not in error
    assert tree(home) == before


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("model", {"_target_": "os.system"}, "model._target_=os.system: allowed are distill.mod"),
        ("data", {"_target_": "builtins.eval"}, "data._target_=builtins.eval: allowed are"),
        ("model", {"width": 9}, "parameter layers.0.weight has shape [8, 144], the model wants"),
        ("model", {"width": "x"}, "model.width=x: Input should be a valid integer"),
    ],
)
def test_a_run_of_another_config_is_not_evaluated(
    section: str, changes: dict[str, Any], message: str, kept: Path
) -> None:
    result = results.read(kept / results.RESULT)
    result["config"][section] |= changes
    results.write(kept, result, [])
    assert command(commands.evaluate, "kept").startswith(f"RUN=kept: {message}")


def test_what_a_result_lacks_or_of_which_there_is_no_student_is_not_evaluated(kept: Path) -> None:
    result = results.read(kept / results.RESULT)
    for key in ("config", "status"):
        results.write(kept, {**result, key: None}, [])
        error = command(commands.evaluate, "kept")
        assert error.startswith("RUN=kept: ") and "\n" not in error
    results.write(kept, {**result, "status": "diverged", "reason": "it grew"}, [])
    error = command(commands.evaluate, "kept")
    assert error == "RUN=kept: it has no student, since it is diverged: it grew"


def test_runs_that_cannot_be_evaluated_keep_no_others_from_it(
    kept: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(kept, home / "sweep" / "other")
    result = results.read(home / "sweep" / "other" / results.RESULT)
    results.write(home / "sweep" / "other", {**result, "status": "diverged", "reason": "x"}, [])
    line = "no complete run lies there; of a sweep, give its runs: sweep/*/"
    assert command(commands.evaluate, "sweep") == f"RUN=sweep: {line}"
    error = command(commands.evaluate, "kept", "sweep/other", "sweep")
    lines = ["RUN=sweep/other: it has no student, since it is diverged: x", f"RUN=sweep: {line}"]
    assert error.splitlines() == lines
    assert f" {result['test_errors']} " in capsys.readouterr().out


def test_weights_that_are_not_finite_are_not_evaluated(kept: Path) -> None:
    weights = {name: value * torch.nan for name, value in load_file(kept / WEIGHTS).items()}
    save_file(weights, kept / WEIGHTS)
    assert "not finite in float32" in command(commands.evaluate, "kept")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mnist", "kept"], "the following arguments are required: RUN"),
        (["kept", "--data=mnist", "--data=mnist"], "--data is given more than once"),
        (["kept", "--config-dir", "nosuch"], "--config-dir nosuch: there is no such folder"),
    ],
)
@pytest.mark.usefixtures("kept")
def test_wrong_arguments_of_evaluate_are_a_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["distill-evaluate", *arguments])
    with pytest.raises(SystemExit) as end:
        commands.evaluate()
    found = capfd.readouterr()
    line = f"{message}; distill-evaluate --help shows what can be given\n"
    assert (end.value.code, found.out, found.err) == (2, "", line)


@pytest.mark.table
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "RUN=nowhere: no complete run lies there"),
        (["kept/result.json"], "RUN=kept/result.json: no complete run lies there"),
        (
            ["kept", "--data=nope"],
            "data=nope: there is no such option; allowed are arrays, cifar10",
        ),
        (["kept", "--data="], "data=: there is no such option; allowed are arrays, cifar10"),
        (["kept", "--data=null"], "data=null: a config group needs one of its options"),
        (["kept", "--data=../x"], "--data=../x: the name of a config cannot contain .."),
        (["kept", "--data=mnist,mnist_5k"], "data=mnist,mnist_5k: several values are a sweep"),
        (["kept", "--data", "mnist", "kept"], "--data mnist: kept: after its name come its keys"),
        (["kept", "--data", "synthetic", "data.mean=0.1"], "data.mean=0.1: test images stay as"),
        (["kept", "--data", "synthetic", "data.exampels=9"], "data.exampels=9: there is no such"),
        (["kept", "--data", "synthetic", "data.test_jitter=1"], "data.test_jitter=1: test images"),
        (["kept", "--module", ""], "--module : there is no such module, neither"),
        (["kept", "--module", "nosuch"], "--module nosuch: there is no such module, neither"),
    ],
)
@pytest.mark.usefixtures("kept")
def test_bad_arguments_of_evaluate(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(commands.evaluate, *arguments).startswith(message)
    assert capsys.readouterr().out == ""
