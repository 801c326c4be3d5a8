"""Stacks that train in a `Place` elsewhere, from this command's point of view.

It submits, waits, and reads what elements leave in files. It may die at any time: the same command
takes over the elements that are still there, and submits the rest.
"""

import json
import logging
import signal
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from distill.runs.columns import Status
from distill.runs.job import Job
from distill.runs.results import DAMAGED, RESULT, read
from distill.sweeps.cluster import FOLDER, MACHINE, Place
from distill.sweeps.elements import Element, Lesson
from distill.sweeps.plan import Stack
from distill.sweeps.submitted import ASK
from distill.sweeps.tasks import Task
from distill.sweeps.workers import Outcome, WorkerDiedError, smaller
from distill.system import interrupt, store
from distill.system.interrupt import Interrupt
from distill.teachers.find import made
from distill.training import checkpoint
from distill.training.fit import RunError
from distill.training.inputs import Machine

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds after which the command looks again which elements have ended
SHORT = "OUT_OF_MEMORY"  # the state of an element that memory was too short for
AGAIN = 3  # times that an element which died is submitted again, without getting further
NOTICE = "elements stop after their epoch, with a checkpoint; once more to leave at once"


@dataclass
class _Sent:
    """An element that was submitted, and what there was of its stack before."""

    stack: Stack
    before: Mapping[int, object]  # by jobs: the stamp of a result
    mark: object = None  # what changes when it gets further; None: of an earlier command


class Dispatch:
    """Stacks of one sweep that train in a ``place``.

    Args:
        place: where they go.
        folder: of the sweep.
        directories: of its jobs.
        runs: the names of its jobs.
        max_members: students in a stack, at most.
        machine: what "auto" means for all of them.
    """

    def __init__(
        self,
        place: Place,
        folder: Path,
        directories: Sequence[Path],
        runs: Sequence[str],
        max_members: int,
        machine: Machine | None,
    ) -> None:
        self.machine = machine
        self.place, self.folder = place, folder / FOLDER
        self.directories, self.runs, self.max_members = directories, runs, max_members
        self.tokens: set[str] = set()
        self.deaths: dict[int, int] = {}  # by a stack's first job, since that got further
        self.sent: dict[str, _Sent] = {}
        self.withdrawn = 0.0  # when those that wait were last taken back

    def taken(self) -> list[Stack]:
        """The stacks, as far as they are of this sweep, that elements of an earlier command train.

        Those that were told to stop are waited for.
        """
        numbers = {run: n for n, run in enumerate(self.runs)}
        for path in sorted(self.folder.glob("*.json")):
            if path.name == MACHINE:
                continue
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                alive = self._alive(path.stem, record["names"])
                for number, name in alive.items():
                    own = [numbers.pop(run) for run in record["runs"][number] if run in numbers]
                    was = {n: record["before"].get(self.runs[n]) for n in own}
                    before = {n: self._stamp(n)[:1] + tuple(was[n] or (0, 0, 0)) for n in own}
                    if own:
                        self.sent[name] = _Sent(Stack(tuple(own)), before)
            except DAMAGED:
                log.warning("%s is damaged, and says of no element where it is", path)
                continue
            self.tokens.add(path.stem)
        if self.sent:
            log.info("elements of an earlier command that are taken over: %d", len(self.sent))
        return [sent.stack for sent in self.sent.values()]

    def _alive(self, token: str, names: Sequence[str]) -> dict[int, str]:
        alive = self.place.find(token, names)
        if alive and self._stop(token).exists():
            log.warning("waiting for elements that are stopping: %d", len(alive))
            self.place.withdraw([*alive.values()])
            while alive:
                time.sleep(LOOK)
                alive = self.place.find(token, names)
        return alive

    def _stop(self, token: str) -> Path:
        return self.folder / f"{token}.stop"

    def train(
        self,
        stacks: Sequence[Stack],
        lessons: Sequence[tuple[Stack, Task]],
        start: Callable[[Stack], Task],
    ) -> Iterator[Outcome]:
        """The results of each stack, of those taken over too, or the error that ended it.

        Args:
            stacks: in the order in which they are to start.
            lessons: the teachers that come first: a stack of one job, and the task that says it.
            start: what makes a stack a task.

        Raises:
            Interrupt: a signal came, of which `stopped` is to be told.
        """
        self.folder.mkdir(exist_ok=True)
        if self.machine is not None:
            store.write_text(self.folder / MACHINE, json.dumps(self.machine._asdict()) + "\n")
        self._teach(lessons)
        yield from self._all(list(stacks), start)
        for token in self.tokens:
            for path in self.folder.glob(f"{token}.*"):
                path.unlink(missing_ok=True)
        self.place.tidy()

    def stopped(self, stop: Interrupt) -> None:
        """End all elements by SIGINT; by another signal, say that they go on."""
        if stop.number == signal.SIGINT:
            self._withdraw()
        elif self.sent:
            text = "elements that go on without this command, which takes them over again: %d"
            log.warning(text, len(self.sent))

    def _teach(self, lessons: Sequence[tuple[Stack, Task]]) -> None:
        """Let the teachers of several stacks be made, which would wait for each other."""
        if not lessons:
            return
        log.info("first the teachers that several stacks learn from: %d", len(lessons))
        before = self.sent
        self.sent = {}
        waiting = list(lessons)
        try:
            while waiting or self.sent:
                some = [waiting.pop(0) for _ in range(self._room(len(waiting)))]
                self._submit([stack for stack, _ in some], [task for _, task in some], Lesson)
                # One that cannot be had is said by its students, who look for it again.
                for name, ended in self._looked().items():
                    del self.sent[name]
                    if ended == (None, None):
                        self.place.forget(name)
        finally:
            self.sent |= before

    def _all(self, waiting: list[Stack], start: Callable[[Stack], Task]) -> Iterator[Outcome]:
        stop: Interrupt | None = None
        while self.sent or waiting:
            try:
                some = [waiting.pop(0) for _ in range(self._room(len(waiting)))]
                yield from self._started(some, start)
                ended = self._looked()
                if stop is not None and time.monotonic() - self.withdrawn > ASK:
                    self._withdraw()  # what was requeued since
            except Interrupt as signalled:
                if stop is not None or signalled.number != signal.SIGINT:
                    raise
                stop = signalled
                waiting.clear()
                log.warning(NOTICE)
                self._withdraw()
                continue
            for name, (state, reason) in ended.items():
                own = self.sent.pop(name)
                yield from self._outcome(
                    name, own, state, reason, waiting, stopping=stop is not None
                )
        if stop is not None:
            raise stop

    def _room(self, count: int) -> int:
        room = self.place.room
        return count if room is None else max(0, min(count, room - len(self.sent)))

    def _started(
        self, stacks: Sequence[Stack], start: Callable[[Stack], Task]
    ) -> Iterator[Outcome]:
        """Submit stacks; what comes back are those that could not be started."""
        tasks: dict[Stack, Task] = {}
        for stack in stacks:
            try:
                tasks[stack] = start(stack)
            except Exception as error:
                yield stack, error
        try:
            self._submit([*tasks], [*tasks.values()], Element)
        except Exception as error:
            if not self.sent:
                raise
            yield from ((stack, error) for stack in tasks)  # the others go on

    def _submit(self, stacks: Sequence[Stack], tasks: Sequence[Task], kind: type[Element]) -> None:
        if not stacks:
            return
        token, place = uuid4().hex[:12], self.place
        runs = [[self.runs[n] for n in stack.jobs] if kind is Element else [] for stack in stacks]
        own = [
            kind(task, self._stop(token), self.max_members, place.threads, place.kills)
            for task in tasks
        ]
        before = [{n: self._stamp(n) for n in stack.jobs} for stack in stacks]
        there = {self.runs[n]: stamp[1:] for own in before for n, stamp in own.items() if stamp[1]}
        record = {"runs": runs, "names": [], "before": there}
        marks = [self._mark(stack) for stack in stacks]
        path = self.folder / f"{token}.json"
        with interrupt.deferred():
            self.tokens.add(token)
            # Before they are submitted, too: this command may be killed between the two.
            store.write_text(path, json.dumps(record))
            try:
                names = place.submit(own, token)
            except Exception:  # of several arrays, some may be there
                self._stop(token).touch()
                place.withdraw([*place.find(token, []).values()])
                if not place.find(token, []):
                    path.unlink()
                    self._stop(token).unlink()
                raise
            store.write_text(path, json.dumps({**record, "names": names}))
            sent = map(_Sent, stacks, before, marks)
            self.sent.update(zip(names, sent, strict=True))

    def _stamp(self, n: int) -> tuple[str, int, int, int]:
        """What changes when a job's result is written."""
        return store.stamp(self.directories[n] / RESULT)

    def _mark(self, stack: Stack) -> object:
        """What changes when a stack gets further."""
        return store.stamp(self.directories[stack.jobs[0]] / checkpoint.FILE)

    def _looked(self) -> dict[str, tuple[str | None, str | None]]:
        """The elements that have ended: a state if it was not by themselves, and a reason."""
        if not self.sent:
            return {}
        time.sleep(LOOK)
        ended = self.place.ended([*self.sent])
        lost = self.place.lost([name for name in self.sent if name not in ended])
        return {n: (None, reason) for n, reason in ended.items()} | {
            n: (state, None) for n, state in lost.items()
        }

    def _withdraw(self) -> None:
        """Let those that train stop, and those that wait never start."""
        self.withdrawn = time.monotonic()
        for token in self.tokens:
            self._stop(token).touch()
        self.place.withdraw([*self.sent])

    def _outcome(
        self,
        name: str,
        own: _Sent,
        state: str | None,
        reason: str | None,
        waiting: list[Stack],
        *,
        stopping: bool,
    ) -> Iterator[Outcome]:
        """What became of an element's stack; what is to be tried again is then ``waiting``."""
        found = {n: result for n in own.stack.jobs if (result := self._result(own, n))}
        if state is not None:  # what it wrote when it was told to end is not its last word
            found = {n: r for n, r in found.items() if r["status"] != Status.INTERRUPTED}
        if found and not stopping:
            yield Stack(tuple(found)), [*found.values()]
        left = Stack(tuple(n for n in own.stack.jobs if n not in found))
        if state is None and reason is None:
            self.place.forget(name)
        if stopping or not left.jobs:
            return
        if reason is not None or (state or "").startswith("CANCELLED"):
            cancelled = f"its element {name} was cancelled; the same command goes on"
            yield left, RunError(reason or cancelled)
            return
        first = left.jobs[0]
        further = own.mark is None or self._mark(own.stack) != own.mark
        self.deaths[first] = 1 if further else self.deaths.get(first, 0) + 1
        count = self.deaths[first]
        often = f", {count} times without getting further" if count > 1 else ""
        told = self.place.told(name)
        error = WorkerDiedError(f"its element {name} died ({state}{often}); see {told}")
        # Where nobody says whether it was memory, the second death is taken for that.
        short = state == SHORT or (not self.place.tells and count > 1)
        if short and (halves := smaller(left, error)):
            waiting[:0] = halves
        elif not short and count <= AGAIN:
            log.warning("element %s died (%s) and is submitted again", name, state)
            waiting.insert(0, left)
        else:
            yield left, error

    def _result(self, own: _Sent, n: int) -> dict[str, Any] | None:
        """The result of a job that its element wrote."""
        if self._stamp(n) == own.before[n]:
            return None
        try:
            return read(self.directories[n] / RESULT)
        except (OSError, *DAMAGED):
            return None


def lessons(stacks: Sequence[Stack], jobs: Sequence[Job]) -> list[Stack]:
    """The teachers that are to be made first, each as a stack of one of its students.

    They are those of several stacks: one of a single stack is made where that trains.
    """
    users: dict[Hashable, dict[Stack, int]] = {}
    for stack in stacks:
        for n in stack.jobs:
            if jobs[n].way is not None:
                teacher = jobs[n].setting, jobs[n].run.teacher, jobs[n].way
                users.setdefault(teacher, {}).setdefault(stack, n)
    first = [next(iter(own.values())) for own in users.values() if len(own) > 1]
    return [
        Stack((n,))
        for n in first
        if (way := jobs[n].way) and not made(jobs[n].setting, jobs[n].run.teacher, way)
    ]
