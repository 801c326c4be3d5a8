"""Locks of files and folders, where the file system has any."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

LOCK = ".lock"
# What the kernel says of a lock on a file system that has none.
NONE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def lock(folder: Path) -> FileLock:
    """Take the lock of ``folder``, which may be held already by whoever asks.

    Whoever else wants it waits, and says so.
    """
    taken = FileLock(folder.absolute() / LOCK, is_singleton=True, fallback_to_soft=False)
    _take(taken, folder)
    return taken


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``."""
    taken = lock(folder)
    try:
        yield
    finally:
        taken.release()


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
