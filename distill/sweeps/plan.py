"""What a sweep's jobs become: the stacks they are trained in, where, and in which order."""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from math import ceil
from pathlib import Path

import psutil
import torch
from rich.filesize import decimal

from distill.config import Teacher
from distill.runs.job import Job, by_teacher
from distill.sweeps.costs import expected_memory, expected_seconds
from distill.system import machine
from distill.system.memo import Memo
from distill.teachers import targets
from distill.teachers.find import targets_seconds
from distill.training import checkpoint
from distill.training.build import multiply_adds, parameters
from distill.training.inputs import Setting

log = logging.getLogger(__name__)

START = 5.0  # seconds, about, until a worker process trains


@dataclass(frozen=True)
class Stack:
    """The numbers of the jobs that train together."""

    jobs: tuple[int, ...]

    def halves(self) -> "tuple[Stack, Stack]":
        """Two stacks of half the jobs each."""
        middle = len(self.jobs) // 2
        return Stack(self.jobs[:middle]), Stack(self.jobs[middle:])


def stacks(
    jobs: Sequence[Job],
    max_members: int,
    workers: int,
    apart: Callable[[int], Hashable] = lambda _: None,
    begun: Sequence[Stack] = (),
    *,
    here: bool = True,
) -> list[Stack]:
    """The fewest stacks that the jobs allow, each of at most ``max_members`` that fit in memory.

    Jobs of different teachers train together, as long as the memory has room for the soft targets
    of all of them (see `_together`). Jobs whose numbers ``apart`` maps to different values do not.
    Within a stack, jobs stand teacher by teacher, so that parts of it have fewer of those; of one
    teacher in the order of their learning rates and weight decays, since
    neighbours who share them are updated together, then of their names, so that the same jobs make
    the same stacks however a sweep orders them. Where there are fewer stacks than ``workers``, the
    largest are halved. Those that have ``begun`` stay as they are. Of stacks that do not train
    ``here``, nothing is known of the memory.
    """
    groups: dict[Hashable, list[int]] = {}
    taken = {number for stack in begun for number in stack.jobs}
    memo = Memo()
    for number, job in enumerate(jobs):
        if number in taken:
            continue
        come = None if job.way is None else (job.way.online, job.way.dtype, job.way.features)
        groups.setdefault((job.run.common(memo), come, apart(number)), []).append(number)
    made: list[Stack] = []
    for numbers in (part for group in groups.values() for part in _together(group, jobs)):
        first = jobs[numbers[0]]
        most = max_members
        if here:
            room = free_memory(first.setting.device, workers) // 2
            most = max(1, min(max_members, room // max(1, expected_memory(first))))
        size = ceil(len(numbers) / ceil(len(numbers) / most))
        made += [Stack(tuple(numbers[i : i + size])) for i in range(0, len(numbers), size)]
    while made and len(begun) + len(made) < workers:
        largest = min(made, key=lambda stack: (-len(stack.jobs), jobs[stack.jobs[0]].name))
        if len(largest.jobs) == 1:
            break
        place = made.index(largest)
        made[place : place + 1] = largest.halves()
    return [*begun, *made]


def _together(numbers: Sequence[int], jobs: Sequence[Job]) -> Iterator[list[int]]:
    """Parts of jobs that may train together, each of as few teachers as the memory asks for.

    The soft targets of all teachers of a stack are held at once. Where they would take more than
    the quarter of the memory that those of one may take, more stacks of fewer teachers are slower,
    but each job's way is that which it has alone: no run fails, or is another, for its neighbours.
    Teachers are taken in the order of their jobs' names, however a sweep orders them.
    """
    own = sorted(numbers, key=lambda n: jobs[n].name)
    part: list[int] = []
    ways: list[targets.Way] = []
    for members in by_teacher([jobs[n] for n in own]).values():
        way = jobs[own[members[0]]].way
        if way is not None:
            if part and not targets.room_for(jobs[own[0]].setting.device, [*ways, way]):
                yield part
                part, ways = [], []
            ways.append(way)
        part += sorted((own[k] for k in members), key=lambda n: _place(jobs[n]))
    yield part


def _place(job: Job) -> tuple[float, float, str]:
    return job.run.optim.lr, job.run.optim.weight_decay, job.name


def begun(jobs: Sequence[Job], directories: Sequence[Path]) -> list[Stack]:
    """The stacks of these jobs of which an earlier try left a checkpoint.

    A stack is what is left of the one that began: its other jobs have their results.
    """
    left = {job.name: n for n, job in enumerate(jobs)}
    found = []
    for job, directory in zip(jobs, directories, strict=True):
        runs = checkpoint.members(directory) if job.run.resume else []
        if job.name in runs and job.name in left:
            found.append(Stack(tuple(left.pop(run) for run in runs if run in left)))
    return found


def free_memory(device: torch.device, workers: int) -> int:
    """Bytes of memory that each of the worker processes, spread over the GPUs, can still take."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0] // ceil(workers / torch.cuda.device_count())
    return machine.free_memory() // workers


def work(jobs: Sequence[Job]) -> float:
    """What a stack of these jobs takes, in multiply-adds of its students: to compare stacks by."""
    run = jobs[0].run
    each = multiply_adds(run.model, run.data) or parameters(run.model, run.data, "model")
    return len(jobs) * float(each) * len(jobs[0].index) * run.train.epochs


def described(stacks: Sequence[Stack], jobs: Sequence[Job]) -> str:
    """What is about to be trained, in a line that nothing had to be timed for."""
    return (
        f"{len(jobs)} job{'s' if len(jobs) > 1 else ''} in {_counted(stacks)}: "
        f"{decimal(max(_memory(s, jobs) for s in stacks))} of memory for the largest"
        + "".join(f"; {line}" for line in sorted(_told(stacks, jobs)))
    )


def dispatched(stacks: Sequence[Stack], place: object) -> str:
    """What is about to be submitted, in a line; of memory and time the machines there know more."""
    count = sum(len(stack.jobs) for stack in stacks)
    return f"{count} jobs in {_counted(stacks)}, each planned again where it trains: {place}"


def _counted(stacks: Sequence[Stack]) -> str:
    sizes = sorted({len(stack.jobs) for stack in stacks}) or [0]
    members = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    return f"{len(stacks)} stack{'s' if len(stacks) != 1 else ''} of {members}"


def _told(stacks: Sequence[Stack], jobs: Sequence[Job]) -> Iterator[str]:
    """How soft targets come: a line for all teachers whose do in the same way."""
    kinds: dict[Hashable, dict[Hashable, targets.Way]] = {}
    for setting, teacher, way in _ways(stacks, jobs):
        views = 0 if way.online or way.file else way.views
        # One teacher answers for all views.
        data = setting.data.model_copy(update={"jitter": 0, "flip": False})
        plain = replace(setting, data=data, views=None)
        kind = (way.name, views, bool(way.features))
        kinds.setdefault(kind, {})[teacher, plain] = way
    return (targets.told([*own.values()]) for own in kinds.values())


def _ways(
    stacks: Sequence[Stack], jobs: Sequence[Job]
) -> set[tuple[Setting, Teacher, targets.Way]]:
    """How the soft targets of each teacher and its views come."""
    return {
        (job.setting, job.run.teacher, job.way)
        for own in _jobs(stacks, jobs)
        for job in own
        if job.way is not None
    }


def _jobs(stacks: Sequence[Stack], jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs of each stack."""
    return [[jobs[n] for n in stack.jobs] for stack in stacks]


def _memory(stack: Stack, jobs: Sequence[Job]) -> int:
    return len(stack.jobs) * expected_memory(jobs[stack.jobs[0]])


@dataclass(frozen=True)
class Schedule:
    """Stacks in the order in which they start, in how many processes, and the seconds of it all."""

    stacks: list[Stack]
    workers: int
    seconds: float
    targets: float = 0.0  # seconds, too, of soft targets that are not there yet

    def __str__(self) -> str:
        soft = f" and {timedelta(seconds=ceil(self.targets))} for soft targets"
        time = f"about {timedelta(seconds=ceil(self.seconds))}{soft if self.targets > 1 else ''}"
        time += ", teachers not included"
        return time if self.workers == 1 else f"{time}, in {self.workers} processes"


def schedule(stacks: Sequence[Stack], jobs: Sequence[Job], workers: int | None) -> Schedule:
    """In how many processes to train, and what starts first: the longest, where there are several.

    Without a number of ``workers``, in as many as there are cores, with a thread each, if a few
    batches of each stack say that this takes no longer than one after another with all threads.
    """
    chosen = _chosen(stacks, jobs, workers)
    try:
        soft = sum(
            targets_seconds(setting, teacher, way) for setting, teacher, way in _ways(stacks, jobs)
        )
    except Exception:  # which shows when it is trained
        log.debug("the soft targets cannot be timed", exc_info=True)
        soft = 0.0
    return replace(chosen, targets=soft)


def _chosen(stacks: Sequence[Stack], jobs: Sequence[Job], workers: int | None) -> Schedule:
    """The faster of one process and several."""
    threads = torch.get_num_threads()
    count = min(len(stacks), workers or _room(stacks, jobs))
    if count > 1:
        beside = _side_by_side(stacks, jobs, count, threads)
        if workers:
            return beside
    in_turn = Schedule(list(stacks), 1, sum(expected_seconds(_jobs(stacks, jobs), threads)))
    return beside if count > 1 and beside.seconds <= in_turn.seconds else in_turn


def _side_by_side(
    stacks: Sequence[Stack], jobs: Sequence[Job], count: int, threads: int
) -> Schedule:
    """The longest stacks first, in ``count`` processes that share the threads, or the GPUs."""
    times = expected_seconds(_jobs(stacks, jobs), max(1, threads // count))
    longest = sorted(zip(times, stacks, strict=True), key=lambda pair: -pair[0])
    cuda = jobs[0].setting.device.type == "cuda"
    ends = [START] * (min(count, torch.cuda.device_count()) if cuda else count)
    for seconds, _ in longest:
        ends[ends.index(min(ends))] += seconds
    return Schedule([stack for _, stack in longest], count, max(ends))


def _room(stacks: Sequence[Stack], jobs: Sequence[Job]) -> int:
    """How many processes of one thread have room on this machine; where GPUs train, one each."""
    if jobs[0].setting.device.type == "cuda":
        return torch.cuda.device_count()
    each = psutil.Process().memory_info().rss + 2 * max(_memory(s, jobs) for s in stacks)
    return max(1, min(torch.get_num_threads(), machine.free_memory() // each))
