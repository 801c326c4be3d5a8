"""What a sweep's jobs become: the stacks they are trained in, the memory and the time of each.

Letters: K members, B examples in a batch, N training examples, V views of each, C classes.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from math import ceil
from pathlib import Path

import psutil
import torch
from rich.filesize import decimal
from torch import Tensor

from distill.config import Run, Teacher
from distill.runs.job import Job, by_teacher
from distill.runs.students import students
from distill.seeds import generator, seeded
from distill.system import machine
from distill.teachers import targets
from distill.teachers.find import stand_in, targets_seconds
from distill.training import checkpoint
from distill.training.evaluate import FEWEST
from distill.training.evaluator import evaluator
from distill.training.inputs import Setting
from distill.training.loop import Training
from distill.training.transfer_set import Source

log = logging.getLogger(__name__)

BATCHES = 2  # that are timed, after one that warms up
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
) -> list[Stack]:
    """The fewest stacks that the jobs allow, each of at most ``max_members`` that fit in memory.

    Jobs of different teachers train together, as long as the memory has room for the soft targets
    of all of them (see `_together`). Jobs whose numbers ``apart`` maps to different values do not.
    Within a stack, jobs stand teacher by teacher, so that parts of it have fewer of those; of one
    teacher in the order of their learning rates and weight decays, since
    neighbours who share them are updated together, then of their names, so that the same jobs make
    the same stacks however a sweep orders them. Where there are fewer stacks than ``workers``, the
    largest are halved. Those that have ``begun`` stay as they are.
    """
    groups: dict[Hashable, list[int]] = {}
    taken = {number for stack in begun for number in stack.jobs}
    for number, job in enumerate(jobs):
        if number in taken:
            continue
        come = None if job.way is None else (job.way.online, job.way.dtype, job.way.features)
        groups.setdefault((job.run.shared, come, apart(number)), []).append(number)
    made: list[Stack] = []
    for numbers in (part for group in groups.values() for part in _together(group, jobs)):
        first = jobs[numbers[0]]
        room = free_memory(first.setting.device, workers) // 2
        most = max(1, min(max_members, room // max(1, _member_memory(first))))
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


def _ready(jobs: Sequence[Job]) -> Training:
    """The training of a stack of these jobs, with soft targets that stand in for the teacher's."""
    first, own = jobs[0], [0] * len(jobs)
    one = torch.linspace(-1, 1, first.data.classes, device=first.setting.device)
    teachers: list[Source] = []
    for teacher, members in by_teacher(jobs).items():
        if teacher is None or (way := jobs[members[0]].way) is None:
            continue
        for k in members:
            own[k] = len(teachers)
        if way.online:
            teachers.append(stand_in(first.setting, teacher, way))
        else:  # (N, V, ...), but takes no memory
            shape = (len(first.data.train_labels), way.views)
            parts = [one, *(torch.ones(own, device=one.device) for own in way.features)]
            kept = tuple(part.expand(*shape, *part.shape) for part in parts)
            teachers.append(kept if way.features else kept[0])
    return students(jobs, teachers, own if len(teachers) > 1 else ())


def _steps(training: Training, count: int) -> int:
    """Make ``count`` steps, or as many as an epoch has, at learning rate 0; returns how many."""
    device = training.transfer.index.device
    training.stack.train(generator(0, "plan", on=device))
    if training.transfer.augmentation is not None:
        training.transfer.augmentation.begin(0, 0, device)
    batches = training.transfer.batches(0, 0, training.plan.batch_size)
    done = 0
    with seeded(0, device):
        for index, view in islice(batches, count):
            training.step(index, view, 0.0, 0.0)
            done += 1
    return done


def member_memory(job: Job) -> int:
    """Bytes that one member takes while it trains.

    Parameters, their leaves, gradients and copies, the optimizer's state, and what the forward pass
    keeps for the backward pass, counted in a batch of the job; or, where that is more, what
    evaluation takes in its smallest batches.
    """
    training = _ready([job])
    own = {p.data_ptr() for stack in training.trained.values() for p in stack.leaves.values()}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        if value.requires_grad and value.data_ptr() not in own:  # the rest is shared by members
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        _steps(training, 1)
    item = training.plan.dtype.itemsize
    leaves = item * (item < 4)
    parameter = 4 + leaves + item + 4 * training.optimizer.slots
    examples = min(job.run.train.batch_size, len(job.index))
    evaluation = FEWEST / examples * 4 / item
    copies = sum(v[0].nbytes for own in (training.average, training.best) for v in own.values())
    if (learned := training.objective.learned) is not None:
        # In float32, with gradients and the optimizer's state; a step may copy the buffers.
        copies += learned.size * (8 + 4 * training.optimizer.slots)
        copies += 2 * sum(buffer[0].nbytes for buffer in learned.buffers.values())
    return copies + training.stack.size * parameter + int(sum(kept.values()) * max(1.0, evaluation))


def _shape(job: Job) -> Hashable:
    """What time and memory of a member depend on."""
    run = job.run
    loss = run.loss.model_dump_json(exclude=run.loss.varying)
    return job.setting, run.model, run.train, run.optim.target, loss, job.seen, len(job.index)


_memories: dict[Hashable, int] = {}


def _member_memory(job: Job) -> int:
    """The same, counted once a shape; 0 for a job that fails, which shows when it is trained."""
    shape = _shape(job)
    if shape not in _memories:
        try:
            _memories[shape] = member_memory(job)
        except Exception:
            log.debug("%s cannot be planned", job.name, exc_info=True)
            return 0
    return _memories[shape]


def described(stacks: Sequence[Stack], jobs: Sequence[Job]) -> str:
    """What is about to be trained, in a line that nothing had to be timed for."""
    sizes = sorted({len(stack.jobs) for stack in stacks})
    members = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    return (
        f"{len(jobs)} job{'s' if len(jobs) > 1 else ''} in "
        f"{len(stacks)} stack{'s' if len(stacks) > 1 else ''} "
        f"of {members}: {decimal(max(_memory(s, jobs) for s in stacks))} of memory for the largest"
        + "".join(f"; {line}" for line in sorted(_told(stacks, jobs)))
    )


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
    own = [jobs[n] for stack in stacks for n in stack.jobs]
    return {(job.setting, job.run.teacher, job.way) for job in own if job.way is not None}


def _memory(stack: Stack, jobs: Sequence[Job]) -> int:
    return len(stack.jobs) * _member_memory(jobs[stack.jobs[0]])


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
    in_turn = Schedule(list(stacks), 1, sum(_seconds(stacks, jobs, threads)))
    return beside if count > 1 and beside.seconds <= in_turn.seconds else in_turn


def _side_by_side(
    stacks: Sequence[Stack], jobs: Sequence[Job], count: int, threads: int
) -> Schedule:
    """The longest stacks first, in ``count`` processes that share the threads, or the GPUs."""
    times = _seconds(stacks, jobs, max(1, threads // count))
    longest = sorted(zip(times, stacks, strict=True), key=lambda pair: -pair[0])
    cuda = jobs[0].setting.device.type == "cuda"
    ends = [START] * (min(count, torch.cuda.device_count()) if cuda else count)
    for seconds, _ in longest:
        ends[ends.index(min(ends))] += seconds
    return Schedule([stack for _, stack in longest], count, max(ends))


def _room(stacks: Sequence[Stack], jobs: Sequence[Job]) -> int:
    """How many processes of one thread have room on this machine; 1 where a GPU trains."""
    if jobs[0].setting.device.type == "cuda":
        return 1
    each = psutil.Process().memory_info().rss + 2 * max(_memory(s, jobs) for s in stacks)
    return max(1, min(torch.get_num_threads(), machine.free_memory() // each))


def _seconds(stacks: Sequence[Stack], jobs: Sequence[Job], threads: int) -> list[float]:
    """How long each stack will train with so many threads; 0 for one that cannot be timed."""
    times: dict[Hashable, float] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for stack in stacks:
            own = [jobs[n] for n in stack.jobs]
            if (shape := _timed(own)) not in times:
                try:
                    times[shape] = seconds(own)
                except Exception:
                    log.debug("a stack of %s cannot be timed", own[0].name, exc_info=True)
                    times[shape] = 0.0
    finally:
        torch.set_num_threads(before)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the workers
    return [times[_timed([jobs[n] for n in stack.jobs])] for stack in stacks]


def _timed(jobs: Sequence[Job]) -> Hashable:
    """What the time of a stack depends on; teachers that answer in each batch take their own."""
    teachers, way = by_teacher(jobs), jobs[0].way
    online = way is not None and way.online
    return _shape(jobs[0]), len(jobs), frozenset(teachers) if online else len(teachers)


def seconds(jobs: Sequence[Job]) -> float:
    """How long a stack of these jobs will train, from the time of a few batches."""
    first = jobs[0]
    training, evaluate = _ready(jobs), evaluator(first.setting, first.run.test)
    cuda = first.setting.device.type == "cuda"

    def now() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    _steps(training, 1)
    if cuda:  # where a kernel's first call is slow
        evaluate(training.stack)
    start = now()
    timed = _steps(training, BATCHES)
    middle = now()
    evaluate(training.stack)
    evaluation = now() - middle
    steps = ceil(len(first.index) / first.run.train.batch_size)
    times = 1 if first.run.train.ema is None else 2
    return _epochs(first.run) * (steps * (middle - start) / timed + times * evaluation)


def _epochs(run: Run) -> float:
    """The epochs that the members of a stack are trained for, on average."""
    ends = [*run.halving.at(run.train.epochs), run.train.epochs]
    starts = [0, *ends[:-1]]
    pairs = enumerate(zip(starts, ends, strict=True))
    return sum((end - start) / float(run.halving.factor**n) for n, (start, end) in pairs)
