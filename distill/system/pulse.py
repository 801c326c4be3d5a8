"""Signs of life: a file that whoever is at work rewrites, by which others know that it lives.

No lock tells that on all machines: on many file systems that machines share, a lock holds on one
of them alone, or cannot be had at all.
"""

import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distill.system.disk import clock, patient

log = logging.getLogger(__name__)

PULSE = ".pulse"
EVERY = 20.0  # seconds between two signs
PATIENCE = 120.0  # seconds without one, after which a process of another machine is taken for dead
SKEW = 60.0  # seconds by which the clock of this machine may differ, where there is no other


@contextmanager
def pulse(path: Path) -> Iterator[None]:
    """Keep ``path`` a sign of this process's life, rewritten by a thread, and removed at the end.

    A process that was forked from this one gives none, and removes none. Where it cannot be
    written, the work goes on with a warning.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with pulse(Path(folder) / PULSE):
        ...         print(alive(Path(folder) / PULSE))
        ...     print(alive(Path(folder) / PULSE))
        True
        False
    """
    own, ended = json.dumps(_identity(os.getpid())), threading.Event()

    def beat() -> None:
        while not ended.wait(EVERY):
            with suppress(OSError):  # the next may be given
                _give(path, own)

    try:
        _give(path, own)
    except OSError as error:
        text = "%s: no sign of life can be written (%s), so this is taken for what was killed"
        log.warning(text, path, error.strerror)
    thread = threading.Thread(target=beat, daemon=True, name="pulse")
    thread.start()
    try:
        yield
    finally:
        if json.dumps(_identity(os.getpid())) == own:
            ended.set()
            thread.join()
            with suppress(OSError):
                # Not that of who took over; on a full disk it is empty, or a part of its own.
                if own.startswith(path.read_text(encoding="utf-8")):
                    path.unlink()


@patient
def alive(path: Path) -> bool:
    """Whether the process whose sign of life is ``path`` lives.

    On the machine where it runs this is known exactly: it is there, by its number and the time of
    its start, and no zombie. Elsewhere, and in a container with process numbers of its own (even if
    it has the same host name), it lives if it gave a sign within the last two minutes, by the clock
    of the file system. There, one that is stopped or swapped out for longer seems dead, and one
    that was killed seems to live for so long.

    Raises:
        OSError: it cannot be read.
    """
    try:
        said, changed = _said(path), path.stat().st_mtime
    except FileNotFoundError:
        return False
    if said is not None and _near(said) and not _hidden(said["pid"]):
        return _identity(said["pid"]) == said
    here = clock(path.parent)
    if here is not None:
        return here - changed < PATIENCE
    return abs(time.time() - changed) < PATIENCE + SKEW


def mine(path: Path) -> bool:
    """Whether the sign of life is of this process itself."""
    try:
        return _said(path) == _identity(os.getpid())
    except OSError:
        return False


def dead(path: Path) -> bool:
    """Whether it is known exactly, and not by its silence, that the process of ``path`` ended.

    Raises:
        OSError: it cannot be read.
    """
    try:
        said = _said(path)
    except FileNotFoundError:
        return False
    return said is not None and _near(said) and not _hidden(said["pid"]) and not alive(path)


def _give(path: Path, text: str) -> None:
    """Write the same text anew, in place: no reader finds less than that of the first time."""
    number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(number, "r+", encoding="utf-8") as file:
        file.write(text)
        file.truncate()


def _said(path: Path) -> dict[str, Any] | None:
    """Who gave a sign; None if that cannot be known, as before the first is whole."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return said if {*said} == {*_identity(os.getpid())} else None
    except (ValueError, TypeError):
        return None


def _near(said: dict[str, Any]) -> bool:
    """Whether this process can see the one that gave a sign, if that lives."""
    own = _identity(os.getpid())
    return all(said[key] == own[key] for key in ("host", "kernel"))


def _hidden(pid: int) -> bool:
    """Whether a process is there, and this one is not shown when it started."""
    if os.name != "posix" or _start(pid) is not None:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:  # of another user, on a machine that shows each only the own ones
        return True
    except OSError:
        return False
    return False


def _identity(pid: int) -> dict[str, Any]:
    """What tells a process from all others: where it runs, its number, and when it started."""
    return {"host": platform.node(), "kernel": _kernel(), "pid": pid, "start": _start(pid)}


def _kernel() -> str:
    """Which processes can be seen here: since when the machine is up, and in which container.

    Of two machines, or two containers, with the same host name this differs. Elsewhere than on
    Linux it is empty: there, the host's name decides alone.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 (it is no path)
    except OSError:
        return ""


def _start(pid: int) -> float | None:
    """When a process started; None if it ended, or waits only for its parent to hear of it.

    On Linux in ticks since the machine is up, which a clock that is set does not change.
    """
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return None
        state, *numbers = stat.rpartition(b")")[2].split()
        return None if state in (b"Z", b"X") else float(numbers[18])
    import psutil  # late: no light command needs it on Linux

    try:
        process = psutil.Process(pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return None if ended else process.create_time()
    except psutil.Error:
        return None
