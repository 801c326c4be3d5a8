"""What a stack of jobs takes, memory and time, found by a few batches of it.

Letters: K members, B examples in a batch, N training examples, V views of each, C classes.
"""

import logging
import time
from collections.abc import Hashable, Iterable, Sequence
from itertools import islice
from math import ceil

import torch
from torch import Tensor

from distill.config import Run
from distill.data.views import Inputs
from distill.runs.job import Job, by_teacher
from distill.runs.students import students
from distill.seeds import generator, seeded
from distill.teachers.find import stand_in
from distill.training.evaluate import FEWEST, evaluate
from distill.training.evaluator import evaluator
from distill.training.loop import Training
from distill.training.transfer_set import Source

log = logging.getLogger(__name__)

BATCHES = 2  # that are timed, after one that warms up
EVALUATED = 2000  # examples of each part of the data on which a stack is evaluated meanwhile


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


def expected_memory(job: Job) -> int:
    """`member_memory`, counted once for jobs that are alike in it.

    It is 0 for a job that fails, which shows when it is trained.
    """
    shape = _shape(job)
    if shape not in _memories:
        try:
            _memories[shape] = member_memory(job)
        except Exception:
            log.debug("%s cannot be planned", job.name, exc_info=True)
            return 0
    return _memories[shape]


def expected_seconds(stacks: Sequence[Sequence[Job]], threads: int) -> list[float]:
    """How long each stack of jobs will train with so many threads; 0 for one that cannot be timed.

    Those that take as long as each other are timed once.
    """
    times: dict[Hashable, float] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for jobs in stacks:
            if (shape := _timed(jobs)) not in times:
                try:
                    times[shape] = seconds(jobs)
                except Exception:
                    log.debug("a stack of %s cannot be timed", jobs[0].name, exc_info=True)
                    times[shape] = 0.0
    finally:
        torch.set_num_threads(before)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the workers
    return [times[_timed(jobs)] for jobs in stacks]


def _timed(jobs: Sequence[Job]) -> Hashable:
    """What the time of a stack depends on; teachers that answer in each batch take their own."""
    teachers, way = by_teacher(jobs), jobs[0].way
    online = way is not None and way.online
    return _shape(jobs[0]), len(jobs), frozenset(teachers) if online else len(teachers)


def seconds(jobs: Sequence[Job]) -> float:
    """How long a stack of these jobs will train, from the time of a few batches."""
    first = jobs[0]
    training, parts = _ready(jobs), evaluator(first.setting, first.run.test).parts.values()
    cuda = first.setting.device.type == "cuda"

    def now() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    _steps(training, 1)
    if cuda:  # where a kernel's first call is slow
        _evaluate(training, parts)
    start = now()
    timed = _steps(training, BATCHES)
    middle = now()
    times_as_many = _evaluate(training, parts)
    evaluation = times_as_many * (now() - middle)
    steps = ceil(len(first.index) / first.run.train.batch_size)
    times = 1 if first.run.train.ema is None else 2
    return _epochs(first.run) * (steps * (middle - start) / timed + times * evaluation)


def _evaluate(training: Training, parts: Iterable[tuple[Inputs, Tensor]]) -> float:
    """Evaluate on the first few examples of each part; returns how many times as many there are."""
    sizes = []
    for images, labels in parts:
        evaluate(training.stack, images, labels, most=EVALUATED)
        sizes.append(len(labels))
    return sum(sizes) / sum(min(size, EVALUATED) for size in sizes)


def _epochs(run: Run) -> float:
    """The epochs that the members of a stack are trained for, on average."""
    ends = [*run.halving.at(run.train.epochs), run.train.epochs]
    starts = [0, *ends[:-1]]
    pairs = enumerate(zip(starts, ends, strict=True))
    return sum((end - start) / float(run.halving.factor**n) for n, (start, end) in pairs)
