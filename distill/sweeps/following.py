"""A sweep that is watched: a live table on a terminal, elsewhere a block each time it changed."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import takewhile
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from distill.runs.columns import Status
from distill.runs.planned import remedy
from distill.runs.standing import Standing, Sweep, Training

EVERY, SELDOM = 5.0, 60.0  # seconds from one look to the next; where the output is no terminal
QUIET, PAUSE = 2, 2.0  # looks that find nothing at work before the end, and seconds between them
LONG, SHARE = 1.0, 0.2  # seconds that a look may take unsaid, and the share of the time at most
REASONS, STACKS = 8, 50  # of more, how many are left out is said
LINES = 9  # of a screen, beside the stacks and the reasons


def watch(folder: Path, every: float | None, console: Console) -> bool:
    """Show how the sweep in ``folder`` stands until nothing is at work in it any more.

    It writes nothing there.

    Args:
        folder: the sweep's.
        every: seconds from one look to the next; None: `EVERY`, or `SELDOM` without a terminal.
        console: where it is shown.

    Returns:
        Whether there is a sweep.
    """
    every = (EVERY if console.is_terminal else SELDOM) if every is None else every
    sweep, quiet, took, before = Sweep(folder), 0, 0.0, None
    out = sys.stdout
    with console.status(f"reading {folder}") if console.is_terminal else nullcontext():
        standing = sweep.look()
    if not (standing.jobs or standing.ended or standing.begun or standing.active):
        return False
    # Lines are to be pasted and searched for, so that none is broken.
    say = partial(console.print, markup=False, emoji=False, highlight=False, soft_wrap=True)
    with _display(console) as live:
        while True:
            quiet = 0 if standing.active else quiet + 1
            ended = quiet == QUIET
            if live is not None:
                live.update(Group(*_block(standing, folder, console, took)), refresh=True)
            elif ended or (key := _key(standing)) != before:
                for part in _block(standing, folder, console, took):
                    (say if isinstance(part, Text) else console.print)(part)
                before = None if ended else key
            if ended or getattr(out, "error", None) is not None:  # or nobody reads it
                break
            time.sleep(max(PAUSE if quiet else every, took / SHARE))
            start = time.monotonic()
            standing = sweep.look()
            took = time.monotonic() - start
    if ended:
        say(_last(standing, folder))
    return True


def _display(console: Console) -> "Live | nullcontext[None]":
    return Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext()


def _key(standing: Standing) -> Standing:
    """What is shown, but for the time left."""
    return replace(standing, stacks=tuple(replace(s, seconds=None) for s in standing.stacks))


def _block(
    standing: Standing, folder: Path, console: Console, took: float
) -> Iterator[RenderableType]:
    """How the sweep stands, as it is shown at once."""
    reasons = [*_reasons(standing)]
    room = STACKS
    if console.is_terminal:
        room = max(1, console.height - LINES - min(len(reasons), REASONS + 1))
    yield Text(f"{folder}, {time.strftime('%H:%M:%S')}", style="bold")
    if standing.stacks:
        yield _table(standing.stacks[:room])
    if (more := len(standing.stacks) - room) > 0:
        yield Text(f"and {more} more stack{'s' * (more > 1)}")
    for line in reasons[:REASONS]:
        yield Text(line, style="red", overflow="fold")
    if (others := len(reasons) - REASONS) > 0:
        yield Text(f"and {others} more that did not complete", style="red")
    yield Text(_counts(standing))
    if took > LONG:
        yield Text(f"a look at all files takes {took:.1f} s")
    if standing.active:
        yield Text(_left(standing))


def _table(stacks: tuple[Training, ...]) -> Table:
    """A row for each stack that is at work."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("stack", overflow="ellipsis")  # what gives way where there is no room
    parts = {stack.part for stack in stacks if stack.part is not None}
    errors = f"{next(iter(parts))} errors" if len(parts) == 1 else "errors"
    for name in ("epoch", "students", errors, "time left"):
        table.add_column(name, justify="right", no_wrap=True)
    for stack, run in zip(stacks, _short([stack.run for stack in stacks]), strict=True):
        if stack.epoch is None:
            table.add_row(run, "teacher first")
            continue
        of = "" if stack.epochs is None else f" of {stack.epochs}"
        told = _span(stack) if len(parts) == 1 else f"{_span(stack)} {stack.part or ''}"
        students = f"{stack.left} of {stack.jobs}"
        table.add_row(run, f"{stack.epoch}{of}", students, told, _ahead(stack))
    return table


def _short(runs: Sequence[str]) -> list[str]:
    """Names without what all begin with, which tells nothing where there is little room."""
    if len(runs) == 1:
        return [*runs]
    columns = zip(*(run.split("-") for run in runs), strict=False)
    shared = sum(1 for _ in takewhile(lambda parts: len({*parts}) == 1, columns))
    return ["-".join(["…" * bool(shared), *run.split("-")[shared:]]).lstrip("-") for run in runs]


def _span(stack: Training) -> str:
    return " to ".join(f"{n:g}" for n in dict.fromkeys(stack.errors))


def _ahead(stack: Training) -> str:
    if stack.seconds is None:
        return ""
    return f"{'at most ' if stack.halvings else ''}{_time(stack.seconds)}"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _reasons(standing: Standing) -> Iterator[str]:
    """A line for each way in which runs did not complete."""
    for (status, reason), directories in standing.lost.items():
        who = directories[0] if len(directories) == 1 else f"{len(directories)} runs"
        yield f"{who} {status}: {reason}"


def _counts(standing: Standing) -> str:
    """How many runs ended, and how; how many train, and wait."""
    told = [f"{standing.ended[s]} {s}" for s in Status if standing.ended.get(s)]
    how = f" ({', '.join(told)})" if told else ""
    of = f" of {standing.jobs}" if standing.jobs else ""  # else nobody wrote down how many
    parts = [f"{standing.done}{of} ended{how}"]
    if standing.training:
        parts.append(f"{standing.training} training")
    if standing.lacking:
        parts.append(f"{standing.lacking} {'queued' if standing.active else 'missing'}")
    if standing.others:
        parts.append(f"and {standing.others} of earlier commands")
    return f"runs: {', '.join(parts)}"


def _left(standing: Standing) -> str:
    """How long the whole takes yet, as far as that can be told."""
    if (seconds := standing.seconds) is None:
        return "time left for all: not known yet"
    what = "all" if standing.jobs else "those at work"
    most = "at most " if any(stack.halvings for stack in standing.stacks) else ""
    text = f"{most}about {_time(seconds)} left for {what}, teachers not included"
    if not standing.lacking:
        return text
    like = "those that ended" if standing.mean is not None else "those that train"
    return f"{text}, if those queued take as long as {like}"


def _last(standing: Standing, folder: Path) -> str:
    """What the end is."""
    lost = standing.ended.get(Status.INTERRUPTED, 0)
    if standing.lacking or lost:
        return f"nothing is at work any more, and the sweep is not finished; {remedy(folder)}"
    return "the sweep has ended"
