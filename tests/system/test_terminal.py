"""Commands end as they should wherever their output goes."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL, make_job

from distill.runs.execute import execute
from distill.system import terminal

SWEEP = "-m distill -m hydra.sweep.dir=sweep seed=0,1 " + " ".join((*SMALL, "train.epochs=1"))
COMMANDS = {
    "distill": SWEEP,
    "distill-summary": "-c 'from distill.cli.commands import summary as m; m()' run",
    "distill-evaluate": "-c 'from distill.cli.commands import evaluate as m; m()' run",
    "distill-report": "-m distill.cli.report run",
    "identities": "-m bench.identities run",
}
CHECKOUT = Path(terminal.__file__).parents[2]


def bash(command: str, redirect: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = f"set -o pipefail; {sys.executable} {command} {redirect}"
    own = {**os.environ, "PYTHONPATH": str(CHECKOUT), **environment}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, env=own, check=False, encoding="utf-8"
    )


@pytest.fixture
def run(home: Path) -> Path:
    """The directory of a finished run, with a summary."""
    folder = home / "run"
    folder.mkdir()
    execute([make_job("loss=hard")], [folder])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("distill", "distill-summary"),
        *(pytest.param(name, marks=pytest.mark.endurance) for name in [*COMMANDS][2:]),
    ],
)
def test_a_command_stands_what_becomes_of_its_output(name: str, run: Path, home: Path) -> None:
    assert run.is_dir()
    if name == "distill-report":
        assert bash(COMMANDS["distill-summary"], "").returncode == 0
    for redirect, code, told in (
        ("| true", 0, ""),
        (">&- 2>&-", 0, ""),
        ("> /dev/full", 1, "standard output: No space left on device\n"),
    ):
        done = bash(COMMANDS[name], redirect)
        assert (done.returncode, done.stderr) == (code, told), redirect
    poor = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C", "TERM": "dumb"}
    done = bash(COMMANDS[name], "< /dev/null", **poor)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii() and "\\u" not in done.stdout
    if name == "distill":
        assert len(list((home / "sweep").glob("*/student.safetensors"))) == 2
        assert (home / "sweep" / "summary.csv").is_file()


def test_signs_that_a_stream_lacks_are_replaced_in_their_width() -> None:
    buffer = io.BytesIO()
    outlet = terminal.Outlet(io.TextIOWrapper(buffer, "ascii"))
    outlet.write("1.0 ▒ 2.0 █ ü\udcff\n")
    outlet.flush()
    assert buffer.getvalue() == b"1.0 : 2.0 # \\xfc\\udcff\n"


def test_a_signal_is_an_exit_code_and_no_traceback() -> None:
    @terminal.command
    def interrupted() -> None:
        raise KeyboardInterrupt

    before = sys.stdout, sys.stderr
    with pytest.raises(SystemExit) as end:
        interrupted()
    assert end.value.code == 130
    assert (sys.stdout, sys.stderr) == before
