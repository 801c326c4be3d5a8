"""Signals to stop: the first lets a stack that trains finish its epoch, a second ends at once."""

import logging
import signal
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

_deferring = False
_asked: int | None = None
_meaning: Mapping[int, int] = {}


def install() -> None:
    """Take SIGINT and SIGTERM."""
    _take({number: number for number in (signal.SIGINT, signal.SIGTERM)})


# What a process passes on to its workers, which the signals to all of a group do not reach.
PASSED = {signal.SIGINT: signal.SIGUSR1, signal.SIGTERM: signal.SIGUSR2}


def obey() -> None:
    """In a worker, take what is passed on, and nothing else."""
    _take({passed: number for number, passed in PASSED.items()})
    for number in PASSED:
        signal.signal(number, signal.SIG_IGN)


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
