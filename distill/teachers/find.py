"""Teachers of a config, found or trained, and their soft targets.

Letters: N examples, V views of each, C classes.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.config import ConfigError, Data, Halving
from distill.config import Teacher as TeacherConfig
from distill.config.strict import TEACHERS, sources
from distill.losses import hard
from distill.seeds import derive
from distill.system import store
from distill.system.bits import packed
from distill.teachers import cache as teachers
from distill.teachers.cache import Teacher
from distill.teachers.given import Targets, find_targets
from distill.teachers.targets import TooLargeError, Way, way
from distill.teachers.weights import content, teacher_weights
from distill.training import checkpoint
from distill.training.augmentation import augmentation
from distill.training.build import fresh
from distill.training.checkpoint import Checkpoint
from distill.training.evaluate import FEWEST
from distill.training.evaluator import evaluator
from distill.training.fit import RunError, assemble, fit
from distill.training.inputs import Setting, held_out, read, root, training_inputs
from distill.training.objective import Objective
from distill.training.stack import Stack
from distill.training.transfer_set import Said, Source, TransferSet

log = logging.getLogger(__name__)


def teacher_cache(data: Data, teacher: TeacherConfig) -> Path:
    """The folder of teachers and soft targets: the teacher's own, or one beside the data."""
    place = root(data)
    beside = place.parent if place.is_file() else place
    return Path(teacher.cache) if teacher.cache else beside / TEACHERS


@lru_cache(maxsize=2)
def find_teacher(setting: Setting, config: TeacherConfig, every: float) -> Teacher | Targets:
    """The teacher of a config, trained or read if the cache does not hold it.

    An ensemble is made of its members, each found in the same way. Of a teacher whose soft targets
    are in a file they are all there is, and the file is its cache. While a teacher is trained, a
    checkpoint is written into the cache ``every`` so many minutes.

    Raises:
        ConfigError: the cache cannot be written.
        RunError: the teacher diverged.
    """
    if config.kind != "weights":
        return find_targets(setting.data, config, teachers.digest(_identity(setting, config)))
    if config.count > 1:
        members = [_found(setting, member, every) for member in config.apart()]
        parts = evaluator(setting, True).parts
        with _writing(teacher_cache(setting.data, config)):
            return teachers.ensemble(members, parts, config.weights, config.average)
    return _found(setting, config, every)


def _found(setting: Setting, config: TeacherConfig, every: float) -> Teacher:
    """The same of a single teacher that is a model."""
    data = read(setting.data)
    assert config.model is not None
    identity = _identity(setting, config)
    seed = derive(config.seed or 0, "teacher")
    stack = fresh(config.model, data, "teacher.model", 1, seed, setting.device)

    cache = teacher_cache(setting.data, config)
    digest = teachers.digest(identity)
    name = f"{digest[: teachers.SHORT]}-{checkpoint.FILE}"
    saved = Checkpoint(cache / name, [digest], 60 * every)

    def make(stack: Stack) -> dict[str, Any]:
        store.tidy(cache, name)
        seconds = 0.0
        if config.path is not None:
            stack.load([teacher_weights(setting.data, config)])
        else:
            seconds = _train_teacher(stack, config, seed, setting, saved)
        measure = evaluator(setting, True)
        values = {name: value[0].item() for name, value in measure(stack).items()}
        wrong = packed(measure.wrong(stack)[0].cpu().numpy())
        return {**values, "test_wrong": wrong, "seconds": round(seconds, 3)}

    with _writing(cache):
        found = teachers.get(cache, identity, stack, make)
        saved.remove()
    return found


def _identity(setting: Setting, config: TeacherConfig) -> dict[str, Any]:
    """All that decides the teacher of a config."""
    data = read(setting.data).digest
    if config.kind != "weights":
        return {"data": data, "teacher": config.recipe, "path": content(config)}
    if config.count > 1:
        parts = [teachers.digest(_identity(setting, member)) for member in config.apart()]
        return teachers.joint(parts, config.weights, config.average)
    identity = {
        "data": data,
        "reading": setting.data.model_dump(include={"mean", "std", "validation"}),
        "teacher": config.recipe,
        "dtype": str(setting.dtype),
        "device": setting.device.type,
    }
    if own := sources(config.components):
        identity["sources"] = own
    if config.path is not None:
        identity["path"] = content(config)
    return identity


def made(setting: Setting, config: TeacherConfig, kept: Way) -> bool:
    """Whether a teacher, and the soft targets that are to be ``kept`` of it, are in the cache."""
    if kept.file:
        return True
    own, cache = teachers.digest(_identity(setting, config)), teacher_cache(setting.data, config)
    folders = [cache / own[: teachers.SHORT]]
    if not kept.online:
        folders.append(teachers.soft_folder(cache, own, kept))
    return all(folder.exists() for folder in folders)


def targets_seconds(setting: Setting, config: TeacherConfig, kept: Way) -> float:
    """How long it takes to make the soft targets to be ``kept``; 0 for those that are there.

    It is the time of a few examples, with an untrained teacher of the same architecture.
    """
    if kept.online or kept.file:
        return 0.0
    own = teachers.digest(_identity(setting, config))
    if teachers.soft_folder(teacher_cache(setting.data, config), own, kept).exists():
        return 0.0
    inputs = training_inputs(setting, 0, False)
    some = torch.arange(min(FEWEST, len(inputs)), device=setting.device)
    x = inputs.batch(some, 0, setting.dtype)
    teacher = stand_in(setting, config, kept)
    start = time.perf_counter()
    said = teacher(x)
    (said[0] if isinstance(said, tuple) else said).cpu()  # waits for it
    return (time.perf_counter() - start) / len(some) * len(inputs) * kept.views


def stand_in(setting: Setting, config: TeacherConfig, own: Way) -> Callable[[Tensor], Said]:
    """What makes the soft targets of a batch as fast as a teacher, before it is trained."""
    assert config.model is not None
    data, device = read(setting.data), setting.device
    stack = fresh(config.model, data, "teacher.model", config.count, 0, device)
    return _online(Teacher(stack, "", 0, Path(), config.weights, config.average), own)


def _online(teacher: Teacher, own: Way) -> Callable[[Tensor], Said]:
    """What a teacher says of a batch: its logits, and with them the features that are asked for."""
    return partial(teacher.observed, names=own.names) if own.features else teacher.online


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = store.told(error) or error
        raise ConfigError(f"teacher.cache={cache}: cannot be used ({reason})") from error


def _train_teacher(
    stack: Stack, config: TeacherConfig, seed: int, setting: Setting, saved: Checkpoint
) -> float:
    """Train the teacher in place; returns the seconds that it took."""
    assert config.jitter is not None and config.optim is not None and config.train is not None
    images = TransferSet(
        training_inputs(setting, config.jitter, config.flip, config.views),
        read(setting.data).train_labels.to(setting.device),
        (~held_out(setting.data)).nonzero().flatten().to(setting.device),
        augmentation=augmentation(config.augment, read(setting.data).classes),
    )
    training = assemble(
        stack,
        images,
        Objective(hard, frozenset({"labels"})),
        [config.optim],
        config.train,
        seed,
        setting,
        Halving(),
    )
    history = fit(f"teacher {config.name}", training, evaluator(setting, True), saved)
    for reason in history.diverged.values():
        saved.remove()
        raise RunError(f"the teacher diverged: {reason}")
    return history.seconds


@lru_cache(maxsize=2)
def logits_on_test(setting: Setting, found: Teacher | Targets) -> Tensor | None:
    """The logits (N, C) of a teacher for the test inputs, float32; None where it has none."""
    inputs, _ = evaluator(setting, True).parts["test"]
    if isinstance(found, Targets):
        own = found.test_logits
        return None if own is None else own.to(setting.device)
    return found.logits(inputs, inputs.centre, torch.float32)


def wrong_on_test(setting: Setting, found: Teacher | Targets) -> str | None:
    """Which test images a teacher gets wrong, as `bits.packed`; None where it says none of them."""
    if isinstance(found, Teacher) and found.test_wrong is not None:
        return found.test_wrong
    said = logits_on_test(setting, found)
    if said is None:
        return None
    return packed((said.cpu().argmax(-1) != read(setting.data).test_labels).numpy())


@lru_cache(maxsize=2)
def shifted_errors_on_test(setting: Setting, found: Teacher) -> Tensor:
    """The errors () that are expected of a teacher on the shifted test set."""
    return evaluator(setting, True).shifted_errors(
        lambda images, view: found.logits(images, view, torch.float32).argmax(-1)
    )


@lru_cache(maxsize=2)
def soft_targets(setting: Setting, config: TeacherConfig, every: float, kept: Way) -> Tensor:
    """The logits (N, V, C) of the teacher that `find_teacher` finds, for all training inputs.

    Raises:
        ConfigError: as `find_teacher`.
        RunError: as `find_teacher`.
        TooLargeError: float16 does not hold them.
    """
    data = setting.data
    inputs = training_inputs(setting, data.jitter, data.flip, setting.views)
    found = find_teacher(setting, config, every)
    if isinstance(found, Targets):
        return found.soft_targets(inputs)
    with _writing(teacher_cache(setting.data, config)):
        return found.soft_targets(inputs, read(data).classes, setting.dtype, kept)


def taught(
    setting: Setting, config: TeacherConfig, every: float, own: Way
) -> tuple[Teacher | Targets, Source, Way]:
    """A teacher, and what students learn of it: its soft targets (N, V, C), or itself.

    To these come its features, (N, V, ...), if the way says so.

    Soft targets that float16 does not hold come online instead, in float32, if ``teacher.targets``
    is "auto". That follows from the teacher, its views and the planned way, so it is the same each
    time, and for all students of the teacher in a stack.

    Args:
        setting: the data and the device.
        config: of the teacher.
        every: how many minutes are between checkpoints.
        own: the way its soft targets are planned to come.

    Returns:
        The teacher, what students learn of it, and the way that its soft targets come.

    Raises:
        ConfigError: as `soft_targets`.
        RunError: as `find_teacher`; or float16 does not hold what was to be cached.
    """
    teacher = find_teacher(setting, config, every)
    if isinstance(teacher, Teacher) and own.online:
        return teacher, _online(teacher, own), own
    try:
        soft = soft_targets(setting, config, every, own)
    except TooLargeError as error:
        assert isinstance(teacher, Teacher)
        if config.targets != "auto":
            raise RunError(f"{error}; set teacher.targets=online") from error
        log.warning("%s: it answers online instead, in each batch and in float32", error)
        return teacher, _online(teacher, own), replace(own, online=True)
    if not own.features:
        return teacher, soft, own
    parts = torch.split(soft, [read(setting.data).classes, *map(math.prod, own.features)], -1)
    features = zip(parts[1:], own.features, strict=True)
    shaped = (part.view(*part.shape[:2], *shape) for part, shape in features)
    return teacher, (parts[0], *shaped), own


def centre_targets(setting: Setting, config: TeacherConfig, every: float) -> Tensor:
    """The logits (N, C) of the same for the training inputs themselves, as they are."""
    data = setting.data.model_copy(update={"jitter": 0, "flip": False})
    plain = replace(setting, data=data, views=None)
    kept = way(plain, config, 1)
    try:
        return soft_targets(plain, config, every, kept)[:, 0]
    except TooLargeError:
        return soft_targets(plain, config, every, replace(kept, dtype=torch.float32))[:, 0]
