"""What a sweep planned, from what its command and launcher wrote, and what of it is lacking."""

import csv
import io
import logging
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import yaml

from distill.runs.results import SWEEP
from distill.system.store import naming, write_text
from distill.system.terminal import public

log = logging.getLogger(__name__)

PLANNED = "planned.csv"  # in a sweep's folder
MANY = 6  # values of a key, of which more are named by the first and the last


# Of each key that is swept, some of its values; and how many jobs have a combination of these.
_Cells = tuple[tuple[str | None, ...], ...]
_Counts = dict[_Cells, int]


class Planned(NamedTuple):
    """A job of a sweep: its directory, from the sweep's, and its overrides, as a shell takes them.

    Its fields are the columns of the file.
    """

    directory: str
    overrides: str


class Block(NamedTuple):
    """Jobs whose settings are all combinations of some values, which ``text`` names."""

    text: str
    jobs: int


def planned(folder: Path) -> tuple[Planned, ...]:
    """The jobs that the last command in ``folder`` planned; none where it wrote down none.

    Of a damaged file a warning says that nothing is known.
    """
    path = folder / PLANNED
    try:
        with naming(path), path.open(encoding="utf-8", newline="") as file:
            names, *rows = [*csv.reader(file, strict=True)] or [[]]
        at = [names.index(column) for column in Planned._fields]
        return tuple(Planned(*(row[n] for n in at)) for row in rows)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, IndexError, csv.Error) as error:
        log.warning("%s cannot be read (%s): what is queued or missing is not known", path, error)
        return ()


def write_planned(folder: Path, jobs: Mapping[str, str]) -> None:
    """Write the jobs that are planned, their overrides by directories, unless they are there.

    Raises:
        OSError: they cannot be written.
    """
    with io.StringIO(newline="") as text:
        rows = [Planned._fields, *jobs.items()]
        csv.writer(text, lineterminator="\n").writerows(rows)
        before, path = None, folder / PLANNED
        with suppress(OSError, ValueError):  # of what cannot be written, the next line tells
            before = path.read_text(encoding="utf-8")
        if before != text.getvalue():
            write_text(path, text.getvalue(), sync=False)


def commands(folder: Path) -> tuple[str, ...]:
    """The commands of the sweep in ``folder``, the last at the end; none where none is recorded."""
    return tuple(map(public, _recorded(folder, "commands")))


def commits(folder: Path) -> tuple[str, ...]:
    """The commits of the code that made the sweep in ``folder``, where they are known."""
    return _recorded(folder, "commits")


def _recorded(folder: Path, key: str) -> tuple[str, ...]:
    try:
        content = yaml.safe_load((folder / SWEEP).read_text(encoding="utf-8"))
        return tuple(map(str, content[key]))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return ()


def remedy(folder: Path) -> str:
    """How the sweep in ``folder``, which is not finished, goes on."""
    given = commands(folder)
    return f"to go on: {given[-1]}" if given else "the command that began it goes on"


def without(jobs: Sequence[Planned], directories: Collection[str]) -> list[Planned]:
    """The jobs that have none of the ``directories``."""
    known = {*directories}
    return [job for job in jobs if job.directory not in known]


def settings(some: Sequence[Planned], jobs: Sequence[Planned]) -> list[Block]:
    """The settings of ``some`` of the ``jobs`` of a sweep, by the keys in which those differ.

    What differs in one key alone is one block, then what differs in the next, so that the part of a
    grid that is lacking is named by its edges. The largest come first.

    Example:
        >>> jobs = [Planned(f"{a}{s}", f"alpha={a} seed={s}") for a in (0, 1) for s in (0, 1, 2)]
        >>> [block.text for block in settings(jobs[2:], jobs)]
        ['alpha=1', 'alpha=0 seed=2']
    """
    given = {job: _given(job) for job in jobs}
    keys = [*dict.fromkeys(key for own in given.values() for key in own)]
    values = {key: [*dict.fromkeys(own.get(key) for own in given.values())] for key in keys}
    swept = [key for key in keys if len(values[key]) > 1]
    counts: _Counts = {}
    for own in (given[job] for job in some):
        cell = tuple((own.get(key),) for key in swept)
        counts[cell] = counts.get(cell, 0) + 1
    for place in reversed(range(len(swept))):
        counts = _joined(counts, place)
    blocks = [Block(" ".join(_texts(swept, cells, values)), n) for cells, n in counts.items()]
    return sorted(blocks, key=lambda block: -block.jobs)


def _given(job: Planned) -> dict[str, str]:
    """The values that a job gives to keys."""
    try:
        quoted = {*"'\"\\"} & {*job.overrides}
        overrides = shlex.split(job.overrides) if quoted else job.overrides.split()  # is quicker
    except ValueError:  # not a shell's: one setting of its own
        overrides = [job.overrides]
    pairs = (override.partition("=") for override in overrides)
    return {key.lstrip("+"): value for key, _, value in pairs}


def _joined(counts: _Counts, place: int) -> _Counts:
    """Blocks that are alike in all keys but that at ``place``, as one."""
    values: dict[_Cells, list[str | None]] = {}
    jobs: dict[_Cells, int] = {}
    for cells, n in counts.items():
        rest = cells[:place] + cells[place + 1 :]
        values.setdefault(rest, []).extend(cells[place])
        jobs[rest] = jobs.get(rest, 0) + n
    return {(*r[:place], tuple(own), *r[place:]): jobs[r] for r, own in values.items()}


def _texts(
    keys: Sequence[str],
    cells: Sequence[Sequence[str | None]],
    values: dict[str, list[str | None]],
) -> Iterator[str]:
    """The values of each key, but of those of which a block has all."""
    for key, own in zip(keys, cells, strict=True):
        if len(own) == len(values[key]):
            continue
        told = ["(default)" if value is None else value for value in own]
        if len(told) > MANY:
            told = [*told[:2], f"... {len(told) - 3} more ...", told[-1]]
        yield f"{key}={','.join(told)}"
