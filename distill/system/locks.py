"""Locks of files and folders, where the file system has any."""

import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from distill.system.pulse import alive, mine, pulse

log = logging.getLogger(__name__)

LOCK, MARK = ".lock", ".lock.pulse"
POLL = 0.5  # seconds between two looks at who holds a folder
# What the kernel says of a lock on a file system that has none.
NONE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class Held:
    """The lock of ``folder``, and beside it a sign of life for machines where it does not hold.

    Raises:
        OSError: it cannot be made there.
    """

    def __init__(self, folder: Path) -> None:
        with ExitStack() as stack:
            own = FileLock(folder.absolute() / LOCK, is_singleton=True, fallback_to_soft=False)
            _take(own, folder)
            stack.callback(own.release)
            mark = folder.absolute() / MARK
            if not mine(mark):  # else this process holds it already
                _wait(mark, folder)
                stack.enter_context(pulse(mark))
            self._held = stack.pop_all()

    def release(self) -> None:
        """Let others have it."""
        self._held.close()


def lock(folder: Path) -> Held:
    """Take the lock of ``folder``, which may be held already by whoever asks.

    Whoever else wants it waits, and says so; on another machine, too, where the locks of the file
    system are local to each or there are none, unless both begin in the same moment after a kill.
    """
    return Held(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``."""
    taken = lock(folder)
    try:
        yield
    finally:
        taken.release()


def _wait(mark: Path, folder: Path) -> None:
    """Make the file ``mark``, which is there as long as another process holds ``folder``."""
    told = False
    while True:
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            if not alive(mark):
                mark.unlink(missing_ok=True)
                continue
        else:
            return
        if not told:
            text = "another process is at work in %s, or was killed just now: waiting for it"
            log.warning(text, folder)
        told = True
        time.sleep(POLL)


@contextmanager
def alone(path: Path, *, quiet: bool = False) -> Iterator[None]:
    """Hold the lock file ``path``, on which one process at a time makes what others wait for.

    They say that they wait, if they are not ``quiet``.

    Raises:
        OSError: it cannot be made there.
    """
    taken = FileLock(path, fallback_to_soft=False)
    _take(taken, None if quiet else path.with_suffix(""))
    try:
        yield
    except BaseException:  # nothing is left of what failed; who waits takes a lock of its own
        path.unlink(missing_ok=True)
        raise
    finally:
        taken.release()


def _take(taken: FileLock, what: Path | None) -> None:
    """Take a lock, telling ``what`` is waited for; where the file system has none, go on without.

    Locks save work, and keep commands apart. What is written is whole without them, too, as where
    those of a file system that machines share are local to each.
    """
    try:
        try:
            taken.acquire(timeout=-1 if what is None else 0)
        except Timeout:
            log.warning("another process is at work in %s: waiting for it", what)
            taken.acquire()
    except OSError as error:
        if error.errno not in NONE:
            raise
        _warn(Path(taken.lock_file).parent, str(error.strerror))


@cache
def _warn(folder: Path, reason: str) -> None:
    """Say once of a folder that there are no locks."""
    log.warning(
        "%s: its file system has no locks (%s): let no other command write there while this one "
        "runs, or have it mounted with locks (Lustre: flock; NFS: lock)",
        *(folder, reason),
    )
