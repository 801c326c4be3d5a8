"""The user's own code: which modules and configs a command may use."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from distill.system.trust import FLAG, TRUSTED

HELP = "a module of your own whose functions and classes a config may name; may be given again"
FOLDER = "conf"  # beside one's work, its yamls are found as those of --config-dir


class Parser(argparse.ArgumentParser):
    """Argparse's, whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """End the command, with what is wrong and where the help is."""
        refuse(message, self.prog)


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Let a command take --module."""
    parser.add_argument(FLAG, metavar="NAME", action="append", default=[], help=HELP)


def refuse(reason: str, program: str = "distill") -> NoReturn:
    """End the command as argparse does, but for the usage."""
    print(f"{reason}; {program} --help shows what can be given", file=sys.stderr)
    sys.exit(2)


def taken(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The modules that ``arguments`` name, and the other arguments, which Hydra is to read."""
    parser = Parser(prog="distill", add_help=False, allow_abbrev=False)
    add_flag(parser)
    known, rest = parser.parse_known_args(list(arguments))
    return known.module, rest


@contextmanager
def trusting(modules: Sequence[str]) -> Iterator[None]:
    """Let the ``modules`` be named, by configs of this process and of those that it starts."""
    before = os.environ.get(TRUSTED)
    if modules:
        os.environ[TRUSTED] = ",".join([before, *modules] if before else modules)
    try:
        yield
    finally:
        if before is not None:
            os.environ[TRUSTED] = before
        else:
            os.environ.pop(TRUSTED, None)


def own_configs(conf: Path) -> Path | None:
    """The folder of yamls beside one's work, unless it is ``conf``, that of the package."""
    folder = Path(FOLDER)
    if not folder.is_dir() or folder.samefile(conf):
        return None
    groups = {path.name for path in conf.iterdir() if path.is_dir()}
    return folder if any(p.is_dir() and p.name in groups for p in folder.iterdir()) else None
