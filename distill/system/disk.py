"""What file systems that machines share do, and others do not: handles go stale, clocks differ."""

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import uuid4

P = ParamSpec("P")
T = TypeVar("T")

WAITS = (0.05, 0.2, 0.5)  # seconds before a file is tried again


def patient(act: Callable[P, T]) -> Callable[P, T]:
    """``act``, tried again a few times where it meets the stale handle of a file (ESTALE).

    So NFS says that a file was replaced on another machine while it was in use here; once it is
    opened again, all is well. ``act`` opens it.
    """

    @wraps(act)
    def tried(*args: P.args, **kwargs: P.kwargs) -> T:
        for wait in WAITS:
            try:
                return act(*args, **kwargs)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
            time.sleep(wait)
        return act(*args, **kwargs)

    return tried


def settled(act: Callable[P, T]) -> Callable[P, T]:
    """``act``, tried again in the same way where a file that should be there is missing.

    It may be missing only for a moment: another process exchanges its folder for another, or this
    machine still remembers that it was not there.
    """

    @wraps(act)
    def tried(*args: P.args, **kwargs: P.kwargs) -> T:
        for wait in WAITS:
            try:
                return act(*args, **kwargs)
            except FileNotFoundError as error:
                present(Path(error.filename or os.curdir))
            time.sleep(wait)
        return act(*args, **kwargs)

    return tried


def present(path: Path) -> bool:
    """Whether a file is there, or a folder; NFS, which may remember that it was not, looks anew.

    Raises:
        OSError: this cannot be known.
    """
    if path.exists():
        return True
    with suppress(FileNotFoundError, NotADirectoryError):
        return path.name in os.listdir(path.parent)  # noqa: PTH208 (as names)
    return False


def clock(folder: Path) -> float | None:
    """The time by the clock of the file system of ``folder``; None where nothing can be written.

    That of this machine may be another: what others have written is as old as the difference to
    what is written now.
    """
    probe = folder / f".clock.{uuid4().hex[:8]}"  # as scratch is named, and removed as that is
    try:
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
    except OSError:
        return None
