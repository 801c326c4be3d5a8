"""The commands: arguments first, since `--help` needs nothing else."""

import errno
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from distill.cli import modules
from distill.system import machine
from distill.system.store import home, told
from distill.system.terminal import command

if TYPE_CHECKING:
    import pandas as pd


def distill() -> None:
    """One run, or a sweep: the command `distill`."""
    machine.hurry()
    from distill.cli.main import main

    try:
        main()
    finally:
        machine.settle()


@command
def evaluate() -> None:
    """Print errors, accuracy and errors per class of each run; exit code 1 if one differs."""
    parser = modules.Parser(
        prog="distill-evaluate", description="Evaluate the students of runs again on the test set."
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=home, help="a run's directory")
    other = "another data set, as in data=NAME, and its keys: data.KEY=VALUE"
    parser.add_argument(
        "--data", metavar=("NAME", "data.KEY=VALUE"), nargs="+", action="append", help=other
    )
    yamls = "a folder of yamls of your own, as distill takes it"
    parser.add_argument("--config-dir", metavar="DIR", type=home, help=yamls)
    _weights(parser)
    modules.add_flag(parser)
    arguments = parser.parse_args()
    data, *more = arguments.data or [()]
    if more:
        parser.error("--data is given more than once")
    if arguments.config_dir is not None and not Path(arguments.config_dir).is_dir():
        parser.error(f"--config-dir {arguments.config_dir}: there is no such folder")

    from distill.cli import rescore

    with _trusting(arguments.module):
        runs, own = [*map(Path, arguments.runs)], modules.folders(arguments.config_dir)
        rescore.show(runs, data, arguments.weights, own)


@contextmanager
def _trusting(names: Sequence[str]) -> Iterator[None]:
    """`modules.trusting`, of which an error is a line."""
    from distill.config import ConfigError

    try:
        with modules.trusting(names):
            yield
    except ConfigError as error:
        sys.exit(str(error))


def _weights(parser: modules.Parser) -> None:
    """The argument that says which weights of a run are meant."""
    which = "of the last epoch, of the best (train.keep_best), or their average (train.ema)"
    parser.add_argument("--weights", choices=("last", "best", "ema"), default="last", help=which)


def _student(parser: modules.Parser) -> None:
    """The arguments by which a command finds one trained student."""
    run = "a run's directory, or a sweep's, of which the best run is taken"
    best = "of a sweep, the run with the least in this column (val_errors)"
    parser.add_argument("run", metavar="RUN", type=home, help=run)
    parser.add_argument("--best", metavar="COLUMN", help=best)
    _weights(parser)
    modules.add_flag(parser)


@command
def predict() -> None:
    """Print the class of each image in some files, and how probable it is."""
    parser = modules.Parser(
        prog="distill-predict",
        description="What the student of a run takes images for: file, class and probability.",
    )
    _student(parser)
    of = "a picture, or an array of images or of rows of features (.npy, .npz)"
    parser.add_argument("files", metavar="FILE", nargs="+", type=home, help=of)
    parser.add_argument("--csv", metavar="OUT", type=home, help="write the lines to this CSV, too")
    arguments = parser.parse_args()

    from distill.cli import using

    out = None if arguments.csv is None else Path(arguments.csv)
    with _trusting(arguments.module):
        files = [*map(Path, arguments.files)]
        using.predict(Path(arguments.run), arguments.best, files, out, arguments.weights)


@command
def export() -> None:
    """Write the student of a run in a format that runs without this package."""
    parser = modules.Parser(
        prog="distill-export",
        description="Write the student of a run as ONNX, or for torch.export.load.",
    )
    _student(parser)
    parser.add_argument("--format", choices=("onnx", "torch"), required=True)
    out = "the file (the run's name in this folder, with .onnx or .pt2)"
    parser.add_argument("--out", metavar="FILE", type=home, help=out)
    arguments = parser.parse_args()

    from distill.cli import using

    path = None if arguments.out is None else Path(arguments.out)
    with _trusting(arguments.module):
        run, weights = Path(arguments.run), arguments.weights
        using.export(run, arguments.best, arguments.format, path, weights)


def _seconds(text: str) -> float:
    """How long to wait, in seconds.

    Raises:
        ValueError: it is no number above 0, of which argparse makes a line.
    """
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


@command
def summary() -> None:
    """Rebuild summary.csv from the files below DIR, and print it; or watch how the sweep goes."""
    parser = modules.Parser(
        prog="distill-summary",
        description="Rebuild summary.csv from the results below DIR, and print it.",
    )
    parser.add_argument("directory", metavar="DIR", type=home, help="a sweep's directory")
    watch = "show how the sweep stands, again and again until it ends; nothing is written"
    parser.add_argument("--watch", action="store_true", help=watch)
    every = "with --watch: seconds from one look to the next (5; without a terminal 60)"
    parser.add_argument("--every", metavar="SECONDS", type=_seconds, help=every)
    wrong = "write wrong.csv, too: which test images each run and its teacher get wrong"
    parser.add_argument("--wrong", action="store_true", help=wrong)
    arguments = parser.parse_args()
    if arguments.every is not None and not arguments.watch:
        parser.error("--every is for --watch")
    if arguments.wrong and arguments.watch:
        parser.error("--watch writes nothing; leave --wrong out")
    folder = Path(arguments.directory)
    if arguments.watch:
        _watch(folder, arguments.every)
    else:
        _summarise(folder, arguments.wrong)


def _nothing(folder: Path) -> NoReturn:
    from distill.runs.planned import planned
    from distill.runs.results import RESULT

    if jobs := planned(folder):
        sys.exit(f"DIR={folder}: {len(jobs)} runs were planned, and none has a {RESULT} yet")
    sys.exit(f"DIR={folder}: no {RESULT} lies below it; give the directory of a sweep or a run")


def _watch(folder: Path, every: float | None) -> None:
    from rich.console import Console

    from distill.sweeps.following import watch

    console = Console() if sys.stdout.isatty() else Console(width=160)
    try:
        if not watch(folder, every, console):
            _nothing(folder)
    except OSError as error:
        sys.exit(told(error) or str(error))


def _wrong(folder: Path) -> None:
    from distill.runs.wrong import write_wrong

    try:
        lines = write_wrong(folder)
    except (OSError, ValueError) as error:
        sys.exit(told(error) or str(error))
    print(*lines, sep="\n")


def _compared(frame: "pd.DataFrame", folder: Path) -> str:
    """Print what losses that were compared came to; returns why it cannot be read, if so."""
    if not any(folder.glob("comparison*.json")):
        return ""
    from rich.console import Console

    from distill.report import comparison

    try:
        for compared in comparison.read(folder, frame):
            Console().print(comparison.shown(compared))
            for line in comparison.remarks(compared):
                print(line)
    except ValueError as error:
        return str(error)
    return ""


def _summarise(folder: Path, wrong: bool) -> None:
    from rich.console import Console

    from distill.runs import results, summaries
    from distill.runs.columns import Status
    from distill.sweeps import tables

    try:
        there = results.found(folder)
    except OSError as error:
        sys.exit(f"DIR={folder}: it cannot be read ({told(error)})")
    if not there:
        _nothing(folder)
    unwritten = ""
    try:
        frame = summaries.write_summary(folder)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            sys.exit(told(error) or str(error))
        # What one may only read is summarised all the same.
        frame = summaries.summary(folder)
        unwritten = f"{results.SUMMARY} could not be written ({told(error)})"
    damaged = _compared(frame, folder)
    tables.show(frame, folder, Console(), unwritten)
    if wrong:
        _wrong(folder)
    if damaged:
        sys.exit(f"DIR={folder}: {damaged}")
    if unread := int(frame["status"].eq(Status.UNREADABLE).sum()):
        sys.exit(f"DIR={folder}: files of {unread} of its runs cannot be read, and may be whole")
