"""Signals to stop: the first lets a stack that trains finish its epoch, a second ends at once."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


class Interrupt(KeyboardInterrupt):
    """What a signal to stop raises; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(f"by {signal.Signals(number).name}")
        self.number = number


_deferring = False
_asked: int | None = None


def install() -> None:
    """Take SIGINT and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle)


def _handle(number: int, _: FrameType | None) -> None:
    global _asked
    if not _deferring or _asked is not None:
        raise Interrupt(number)
    _asked = number
    log.warning("stopping after this epoch, with a checkpoint; once more to leave at once")


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


def asked() -> bool:
    """Whether a signal waits."""
    return _asked is not None


def check() -> None:
    """Raise what waits.

    Raises:
        Interrupt: a signal came.
    """
    if _asked is not None:
        raise Interrupt(_asked)
