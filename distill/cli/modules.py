"""The user's own code: which modules and configs a command may use."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from distill.system.conf import CONF
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
    """Let the ``modules`` be named, by configs of this process and of those that it starts.

    Raises:
        ConfigError: there is no such module.
    """
    if modules:
        from distill.config.components import check_module

        for name in modules:
            check_module(name)
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


def folders(given: str | None, *, beside: bool = True) -> list[Path]:
    """The folders of the user's own yamls: the ``given`` one, then that ``beside`` one's work."""
    found = [Path(given)] if given else []
    own = _own_configs() if beside else None
    if own is not None and own.resolve() not in [folder.resolve() for folder in found]:
        found.append(own)
    return found


def _own_configs() -> Path | None:
    """The folder of yamls beside one's work, unless it is that of the package."""
    folder = Path(FOLDER)
    if not folder.is_dir() or folder.samefile(CONF):
        return None
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    return folder if any(p.is_dir() and p.name in groups for p in folder.iterdir()) else None


def searched(own: Sequence[Path]) -> str:
    """The override that lets Hydra find yamls in folders of one's ``own``, too."""
    from distill.sweeps.compose import override

    places = [override("", f"file://{os.path.abspath(d)}")[1:] for d in own]  # noqa: PTH100
    return f"hydra.searchpath=[{','.join(places)}]"


def tell_unread(own: Sequence[Path]) -> None:
    """Say which yamls in folders of one's ``own`` others of the same name take the place of."""
    for path in CONF.rglob("*.yaml") if own else ():
        for mine in (folder / path.relative_to(CONF) for folder in own):
            if mine.exists() and not mine.samefile(path):
                told = f"{mine} is not read: distill has one of that name; rename it"
                print(told, file=sys.stderr)
    for folder in own[1:]:
        for path in folder.rglob("*.yaml"):
            if (own[0] / path.relative_to(folder)).exists():
                print(f"{path} is not read: {own[0]} has one of that name", file=sys.stderr)
