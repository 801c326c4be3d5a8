"""The progress display: one a process, for a sweep and the runs in it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_current: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def progress() -> Iterator[Progress]:
    """The display, which nested calls share; quiet where the output is no terminal."""
    if (running := _current.get()) is not None:
        yield running
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # else what is printed would land on stderr
        disable=not console.is_terminal,
    ) as bars:
        token = _current.set(bars)
        try:
            yield bars
        finally:
            _current.reset(token)


def silence() -> None:
    """Show no progress in this process."""
    _current.set(Progress(disable=True))
