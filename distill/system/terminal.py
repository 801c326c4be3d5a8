"""Where a command's output goes, and how the command ends, whatever becomes of who reads it."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, TextIO, cast

# What stands in a table beside ASCII, and its substitute where the terminal has nothing else.
PLAIN = str.maketrans("░▒▓█…", ".:*#~")
# Hydra's, before an error of a job that `explain` tells in one line.
UNSAID = "Error executing job with overrides: "


def public(text: str) -> str:
    """What ``text`` says to whoever may read it: without the passwords in its URLs.

    Example:
        >>> public("hydra.sweeper.storage=mysql://me:secret@host/studies")
        'hydra.sweeper.storage=mysql://me:***@host/studies'
    """
    return re.sub(r"(://[^\s:@/]*):\S*@", r"\1:***@", text)


class Outlet:
    """A stream that can always be written to: once it fails, what follows is left out.

    So a pipe that closes or a disk that is full ends no training. Signs that the stream's encoding
    lacks are replaced.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write ``text``, as far as that can be done."""
        if self.error is None and not text.startswith(UNSAID):
            self._try(self._write, text)
        return len(text)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            replaced = text.translate(PLAIN).encode(error.encoding, "backslashreplace")
            self._stream.write(replaced.decode(error.encoding))

    def flush(self) -> None:
        """Write what waits."""
        if self.error is None:
            self._try(self._stream.flush)

    def _try(self, act: Callable[..., object], *arguments: str) -> None:
        try:
            act(*arguments)
        except (OSError, ValueError) as error:
            # A closed stream, a ValueError, is one that nobody reads.
            self.error = error if isinstance(error, OSError) else BrokenPipeError()
            # What waits in the stream would fail again, at the latest as the process ends.
            with suppress(OSError, ValueError, AttributeError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


@contextmanager
def outlets() -> Iterator[Outlet]:
    """Let both streams be an `Outlet`; yields that of stdout. Within another call, do nothing."""
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, Outlet):
        yield sys.stdout
        return
    for number in range(3):  # else the next file would take the place of a closed stream
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    out, err = (Outlet(stream or _nowhere()) for stream in before)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _nowhere() -> TextIO:
    return open(os.devnull, "w")  # noqa: PTH123


def command(main: Callable[[], None]) -> Callable[[], None]:
    """A program that does ``main`` and ends in an exit code, and at most a line on stderr.

    A reader who left (``| head``) changes nothing; a line says what is lost to a full disk, with
    exit code 1 at the end. A signal to stop is 128 and its number.
    """

    @wraps(main)
    def program() -> None:
        ended: SystemExit | None = None
        with outlets() as out:
            try:
                main()
            except SystemExit as end:
                ended = end
            except KeyboardInterrupt as stop:
                ended = SystemExit(128 + getattr(stop, "number", signal.SIGINT))
        if out.error is not None and not isinstance(out.error, BrokenPipeError):
            line = f"standard output: {out.error.strerror}"
            ended = SystemExit(line) if ended is None or not ended.code else ended
        if ended is not None:
            raise ended

    return program
