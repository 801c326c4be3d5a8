"""How a sweep stands, from its files alone, looked at again and again."""

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from distill.runs.columns import Status
from distill.runs.planned import PLANNED, Planned, planned, without
from distill.runs.results import DAMAGED, EARLIER, ENDED, HISTORY, PROGRESS, RESULT, RUNNING
from distill.runs.summaries import row_of
from distill.system import store
from distill.system.locks import MARK
from distill.system.pulse import PULSE, alive

OF_RUNS = {RESULT, HISTORY, RUNNING, PULSE}
# Seconds after its last change from which the time of a folder says whether it changed again: some
# file systems tell times to 2 seconds, and clocks of machines differ.
SURE = 60.0


class _Ended(NamedTuple):
    """What is kept of a run that trains no more, however many there are."""

    status: str
    reason: str
    seconds: float | None


class _Head(NamedTuple):
    """What is kept of what a run says of itself while it trains; ``stack`` is a directory."""

    run: str
    stack: str
    epochs: int | None
    progress: Mapping[str, Any]
    read: float


@dataclass(frozen=True)
class Training:
    """A stack that is at work, whose first run is ``run``.

    ``jobs`` of it have no result yet, and ``left`` of these are still in it. Its ``epoch`` is None
    before it trains, while its teacher and soft targets are made, and its jobs are not known;
    ``errors`` are the fewest and the most after it, on the ``part`` of the data that decides;
    ``spent`` and ``seconds`` are how long it took, and will take, or at most, if ``halvings`` are
    to come. What is not known is None.
    """

    run: str
    jobs: int = 0
    left: int = 0
    epoch: int | None = None
    epochs: int | None = None
    part: str | None = None
    errors: tuple[float, ...] = ()
    spent: float = 0.0
    seconds: float | None = None
    halvings: int = 0


@dataclass(frozen=True)
class Standing:
    """How a sweep stands.

    Of the ``jobs`` that it planned, or, where nobody wrote that down and they are 0, of all runs in
    its folder, ``ended`` counts those that ended by their status, and ``lost`` names the ones that
    are to be told of, by status and reason. ``waiting`` are the jobs of which there is nothing yet:
    they are queued while the sweep is ``active``, else missing; ``begun`` counts others that were
    killed in their first epoch. ``others`` are runs of earlier plans, and ``mean`` is the mean
    seconds of a run that ended.
    """

    stacks: tuple[Training, ...]
    ended: Mapping[str, int]
    lost: Mapping[tuple[str, str], list[str]]
    waiting: tuple[Planned, ...]
    begun: int
    jobs: int
    others: int
    active: bool
    mean: float | None

    @property
    def training(self) -> int:
        """How many runs train."""
        return sum(stack.jobs for stack in self.stacks)

    @property
    def done(self) -> int:
        """How many runs ended for good, well or not."""
        return sum(self.ended.get(status, 0) for status in ENDED)

    @property
    def lacking(self) -> int:
        """How many runs are to be trained and do not train."""
        return len(self.waiting) + self.begun

    @property
    def seconds(self) -> float | None:
        """About how long the whole takes yet; None where that cannot be told.

        Those that wait count as one that ended, or, before any did, as those that train; all go
        through as many places as stacks are at work.
        """
        ahead = [stack.seconds for stack in self.stacks if stack.seconds is not None]
        if not ahead or any(s.epoch is not None and s.seconds is None for s in self.stacks):
            return None
        known = [s for s in self.stacks if s.seconds is not None and s.epoch]
        mean = self.mean
        if mean is None:
            mean = sum(s.spent + (s.seconds or 0) for s in known) / sum(s.jobs for s in known)
        later = (self.lacking + self.ended.get(Status.INTERRUPTED, 0)) * mean
        return max(max(ahead), (sum(ahead) + later) / len(self.stacks))


def at_work(folder: Path) -> bool:
    """Whether a sweep's command is at work in ``folder``, whatever its stacks do."""
    return alive(folder / PULSE) or alive(folder / MARK)


class Sweep:
    """The sweep in ``folder``: what was read of it once is read again only where it changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100
        self._root = str(self.folder)
        self._known: dict[str, tuple[Path, tuple[str, int, int, int], Any]] = {}
        self._listed: dict[str, tuple[int, bool, set[str], list[str]]] = {}

    def look(self) -> Standing:
        """How it stands now.

        A run is ended where its result is there, and trains while whoever trains its stack gives
        signs of life. What left a history, and is neither, was killed.
        """
        places = {place: files for place, files in self._places() if files}
        ended = {p: self._ended(p, RESULT) for p, files in places.items() if RESULT in files}
        stacks, dead = self._stacks({p: f for p, f in places.items() if p not in ended})
        for place in dead:  # or has ended since it was found
            file = HISTORY if HISTORY in places[place] else RESULT
            if Path(place, file).exists():
                ended[place] = self._ended(place, file)
        runs = {place: run for place, run in ended.items() if run is not None}
        trains = [place for of_one in stacks.values() for place in of_one]
        jobs = self._read(f"{self._root}/{PLANNED}", lambda _: planned(self.folder))
        waiting = without(jobs, [*map(self._directory, [*runs, *trains])])
        spent = [run.seconds for run in runs.values() if run.seconds is not None]
        own = {job.directory for job in jobs}
        told = {p: run for p, run in runs.items() if not jobs or self._directory(p) in own}
        lost: dict[tuple[str, str], list[str]] = {}
        for place, run in told.items():
            if run.status not in (Status.COMPLETE, Status.STOPPED):
                lost.setdefault((run.status, run.reason), []).append(self._directory(place))
        nothing = {self._directory(place) for place in dead if place not in runs}
        return Standing(
            stacks=tuple(self._training(stack, own) for stack, own in sorted(stacks.items())),
            ended=Counter(run.status for run in told.values()),
            lost=lost,
            waiting=tuple(waiting),
            begun=len(nothing - own),
            jobs=len(jobs),
            others=len(runs) - len(told),
            active=bool(stacks) or at_work(self.folder),
            mean=statistics.fmean(spent) if spent else None,
        )

    def _directory(self, place: str) -> str:
        """The directory of a run, as the plan and the summary have it."""
        return place[len(self._root) + 1 :].replace(os.sep, "/") or "."

    def _places(self) -> Iterator[tuple[str, set[str]]]:
        """Each folder at and below the sweep's, and what of a run's files is in it.

        It finds what `results.found` finds, but for hidden folders in a run's.
        """
        ahead = [self._root]
        while ahead:
            place = ahead.pop()
            try:
                files, folders = self._list(place)
            except FileNotFoundError:
                continue
            except OSError:  # taken to hold a result, which then cannot be read
                files, folders = {RESULT} if place != self._root else set(), []
            yield place, files
            hidden = f"{place}{os.sep}." if files else None
            ahead += [f for f in folders if hidden is None or not f.startswith(hidden)]

    def _list(self, place: str) -> tuple[set[str], list[str]]:
        """What of a run's files is in a folder, and its folders; listed again once it changed."""
        changed = os.stat(place).st_mtime_ns  # noqa: PTH116
        known = self._listed.get(place)
        if known is not None and known[:2] == (changed, True):
            return known[2:]
        sure = time.time() - changed / 1e9 > SURE
        with os.scandir(place) as found:
            entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
        files = {name for name, _ in entries} & OF_RUNS
        folders = [os.path.join(place, n) for n, is_dir in entries if is_dir and n != EARLIER]  # noqa: PTH118
        self._listed[place] = changed, sure, files, folders
        return files, folders

    def _read(self, path: str, make: Callable[[str], Any]) -> Any:
        """What ``make`` makes of a file, made again once that changed."""
        # Paths are kept, too: to make one takes longer than to look.
        whole, before, known = self._known.get(path) or (Path(path), None, None)
        stamp = store.stamp(whole)
        if before == stamp:
            return known
        made = make(path)
        if not (isinstance(made, _Ended) and made.status == Status.UNREADABLE):
            self._known[path] = whole, stamp, made
        return made

    def _ended(self, place: str, file: str) -> _Ended | None:
        return self._read(f"{place}/{file}", self._end)  # type: ignore[no-any-return]

    def _end(self, path: str) -> _Ended | None:
        """How a run ended that has a result, or a history alone; None if it is gone."""
        row = row_of(Path(path), self.folder, lambda _: False)
        if row is None:
            return None
        return _Ended(str(row["status"]), str(row.get("reason")), row.get("seconds"))

    def _stacks(self, places: Mapping[str, set[str]]) -> tuple[dict[str, list[str]], list[str]]:
        """The runs without a result: of each stack that is at work, and all others.

        Of one that makes its teacher yet, no run is known.
        """
        stacks: dict[str, list[str]] = {}
        for place, files in places.items():
            if files & {RUNNING, HISTORY}:
                head = self._head(place) if RUNNING in files else None
                stacks.setdefault(place if head is None else head.stack, []).append(place)
            elif place != self._root:
                stacks.setdefault(place, [])
        found, dead = {}, []
        for stack, own in stacks.items():
            if _lives(stack):
                found[stack] = sorted(own)
            else:
                dead += own
        return found, dead

    def _head(self, place: str) -> _Head | None:
        """What a run that trains says; None where it just ended, or that is damaged."""
        try:
            return self._read(f"{place}/{RUNNING}", _head)  # type: ignore[no-any-return]
        except (OSError, *DAMAGED):
            return None

    def _training(self, stack: str, places: list[str]) -> Training:
        """How a stack stands, by what its first run says of it."""
        heads = [head for place in places if (head := self._head(place)) is not None]
        if not places:
            return Training(self._directory(stack))
        first = next((h for h in heads if h.progress), heads[0] if heads else None)
        run, epochs, said = self._directory(stack), None, cast(Mapping[str, Any], {})
        if first is not None:
            run, epochs, said = first.run, first.epochs, first.progress
        found = Training(run, len(places), len(places), 0, epochs)
        if first is None or epochs is None or not said:
            return self._by_history(found, places[0])
        seconds = None
        if said["an_epoch"] is not None:
            ahead = said["an_epoch"] * (epochs - said["epoch"]) if said["left"] else 0.0
            seconds = max(0.0, ahead - (time.monotonic() - first.read))
        return replace(
            found,
            left=min(said["left"], len(places)),
            epoch=said["epoch"],
            part=said["part"],
            errors=tuple(said["errors"]),
            spent=said["seconds"],
            seconds=seconds,
            halvings=said["halvings"],
        )

    def _by_history(self, found: Training, place: str) -> Training:
        """The same, where nobody said how far it is, as before its first epoch."""
        if not Path(place, HISTORY).exists():
            return found
        row = row_of(Path(place, HISTORY), self.folder, lambda _: True) or {}
        epoch = next((int(word) for word in str(row.get("reason")).split() if word.isdigit()), None)
        part = next((p for p in ("val", "test") if row.get(f"{p}_errors") is not None), None)
        errors = () if part is None else (row[f"{part}_errors"],)
        return replace(found, epoch=epoch, part=part, errors=errors)


def _head(path: str) -> _Head:
    said = json.loads(Path(path).read_text(encoding="utf-8"))
    place = os.path.dirname(path)  # noqa: PTH120
    return _Head(
        str(said["run"]),
        os.path.normpath(os.path.join(place, said.get("stack", "."))),  # noqa: PTH118
        said.get("epochs"),
        said.get(PROGRESS) or {},
        time.monotonic(),
    )


def _lives(stack: str) -> bool:
    try:
        return alive(Path(stack, PULSE))
    except OSError:  # whose sign of life cannot be read
        return False
