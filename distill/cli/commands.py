"""The commands: arguments first, since `--help` needs nothing else."""

import argparse
import errno
import sys
from pathlib import Path

from distill.cli import modules
from distill.system import machine
from distill.system.store import home, told
from distill.system.terminal import command


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
    parser = argparse.ArgumentParser(
        prog="distill-evaluate", description="Evaluate the students of runs again on the test set."
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=home, help="a run's directory")
    parser.add_argument("--data", metavar="NAME", help="another data set, as in data=NAME")
    modules.add_flag(parser)
    arguments = parser.parse_args()

    from distill.cli import rescore

    with modules.trusting(arguments.module):
        rescore.show([Path(run) for run in arguments.runs], arguments.data)


@command
def summary() -> None:
    """Rebuild summary.csv from the files below DIR, and print it."""
    parser = argparse.ArgumentParser(
        prog="distill-summary",
        description="Rebuild summary.csv from the results below DIR, and print it.",
    )
    parser.add_argument("directory", metavar="DIR", type=home, help="a sweep's directory")
    folder = Path(parser.parse_args().directory)

    from rich.console import Console

    from distill.runs import results
    from distill.sweeps import tables

    if not results.paths(folder) and not results.running(folder):
        sys.exit(
            f"DIR={folder}: no {results.RESULT} lies below it; "
            "give the directory of a sweep or a run"
        )
    unwritten = ""
    try:
        frame = results.write_summary(folder)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            sys.exit(told(error) or str(error))
        # What one may only read is summarised all the same.
        frame = results.summary(folder)
        unwritten = f"{results.SUMMARY} could not be written ({told(error)})"
    tables.show(frame, folder, Console(), unwritten)
