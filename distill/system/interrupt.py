"""Signals to stop: the first lets a stack that trains finish its epoch, a second ends at once."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


class Interrupt(KeyboardInterrupt):
    """What a signal to stop raises; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(f"by {signal.Signals(number).name}")
        self.number = number

    def __reduce__(self) -> tuple[type["Interrupt"], tuple[int]]:
        return Interrupt, (self.number,)


NOTICE = "stopping after this epoch, with a checkpoint; once more to leave at once"
# A terminal that closes sends HUP; batch systems warn by USR1 or USR2 before they kill.
STOPS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
# What a process passes on to its workers, which the signals to all of a group do not reach.
_FIRST = getattr(signal, "SIGRTMIN", signal.SIGUSR1)
PASSED = {number: _FIRST + (number != signal.SIGINT) for number in STOPS}
ORPHANED = 128 + signal.SIGTERM  # the exit code of a worker whose parent died
LOOK = 0.5  # seconds after which a worker looks again whether its parent lives

_deferring = False
_asked: int | None = None
_orphan = False
_meaning: Mapping[int, int] = {}


def install() -> None:
    """Take the signals to stop; HUP unless it is ignored from the start, as nohup has it."""
    hangup = getattr(signal, "SIGHUP", None)
    ignored = {hangup} if hangup and signal.getsignal(hangup) is signal.SIG_IGN else set()
    _take({number: number for number in STOPS if number not in ignored})


@contextmanager
def installed() -> Iterator[None]:
    """Take the signals to stop as `install` does; at the end they mean what they did before.

    Only the main thread can take signals: in another one nothing changes.
    """
    global _meaning
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    meaning = _meaning
    handlers = {number: signal.getsignal(number) for number in STOPS}
    install()
    try:
        yield
    finally:
        _meaning = meaning
        for number, handler in handlers.items():
            if handler is not None:  # one that was not set from Python cannot be set again
                signal.signal(number, handler)


def obey() -> None:
    """In a worker, take what its parent passes on, and nothing else; and end when that dies."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    _take({PASSED[number]: number for number in (signal.SIGINT, signal.SIGTERM)})
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    """End this process when its parent has died; a stack that trains writes a checkpoint first.

    Nothing else may be written then: another process may have taken up the stack.
    """
    global _orphan
    while os.getppid() == parent:
        time.sleep(LOOK)
    _orphan = True
    if _deferring:
        os.kill(os.getpid(), PASSED[signal.SIGTERM])
    while _deferring:
        time.sleep(LOOK)
    os._exit(ORPHANED)


def _take(meaning: Mapping[int, int]) -> None:
    global _meaning
    _meaning = meaning
    for number in meaning:
        signal.signal(number, _handle)


def _handle(number: int, _: FrameType | None) -> None:
    global _asked
    if not _deferring or _asked is not None:
        raise Interrupt(_meaning[number])
    _asked = _meaning[number]
    log.warning(NOTICE)


@contextmanager
def deferred() -> Iterator[None]:
    """Within, the first signal waits for `check`, or for the end."""
    global _deferring, _asked
    _deferring, _asked = True, None
    try:
        yield
        check()
    finally:
        _deferring, _asked = False, None


def ask() -> None:
    """Let a stack that trains stop after its epoch, as SIGINT does, in whichever thread it is."""
    global _asked
    if _deferring and _asked is None:
        _asked = signal.SIGINT
        log.warning(NOTICE)


def asked() -> bool:
    """Whether a signal waits."""
    return _asked is not None


def check() -> None:
    """Raise what waits.

    Raises:
        Interrupt: a signal came.
    """
    if _asked is not None and _orphan:
        os._exit(ORPHANED)
    if _asked is not None:
        raise Interrupt(_asked)
