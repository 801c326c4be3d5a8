"""Teachers of a config, found or trained, and their soft targets.

Letters: N examples, V views of each, C classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.config import ConfigError, Data, Halving
from distill.config import Teacher as TeacherConfig
from distill.config.sections import sources
from distill.losses import hard
from distill.seeds import derive
from distill.system import store
from distill.teachers import cache as teachers
from distill.teachers.cache import Teacher
from distill.teachers.targets import Targets, find_targets
from distill.teachers.weights import content, teacher_weights
from distill.training import checkpoint
from distill.training.build import fresh
from distill.training.checkpoint import Checkpoint
from distill.training.evaluator import evaluator
from distill.training.fit import RunError, assemble, fit
from distill.training.inputs import Setting, held_out, read, root, training_inputs
from distill.training.loop import TransferSet
from distill.training.objective import Objective
from distill.training.stack import Stack


def teacher_cache(data: Data, teacher: TeacherConfig) -> Path:
    """The folder of teachers and soft targets: the teacher's own, or one beside the data."""
    return Path(teacher.cache) if teacher.cache else root(data) / "teachers"


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
    data = read(setting.data)
    if config.kind != "weights":
        own = {"data": data.digest, "teacher": config.recipe, "path": content(config)}
        return find_targets(setting.data, config, teachers.digest(own))
    if config.count > 1:
        members = [_found(setting, member, every) for member in config.apart()]
        test = evaluator(setting, True).parts["test"]
        with _writing(teacher_cache(setting.data, config)):
            return teachers.ensemble(members, *test, config.weights, config.average)
    return _found(setting, config, every)


def _found(setting: Setting, config: TeacherConfig, every: float) -> Teacher:
    """The same of a single teacher that is a model."""
    data = read(setting.data)
    assert config.model is not None
    identity = {
        "data": data.digest,
        "reading": setting.data.model_dump(include={"mean", "std", "validation"}),
        "teacher": config.recipe,
        "dtype": str(setting.dtype),
        "device": setting.device.type,
    }
    if own := sources(config.components):
        identity["sources"] = own
    if config.path is not None:
        identity["path"] = content(config)
    seed = derive(config.seed or 0, "teacher")
    stack = fresh(config.model, data, "teacher.model", 1, seed, setting.device)

    cache = teacher_cache(setting.data, config)
    digest = teachers.digest(identity)
    name = f"{digest[: teachers.SHORT]}-{checkpoint.FILE}"
    saved = Checkpoint(cache / name, [digest], 60 * every)

    def make(stack: Stack) -> dict[str, Any]:
        store.tidy(cache, name)  # no other process is here now
        seconds = 0.0
        if config.path is not None:
            stack.load([teacher_weights(setting.data, config)])
        else:
            seconds = _train_teacher(stack, config, seed, setting, saved)
        values = {name: value[0].item() for name, value in evaluator(setting, True)(stack).items()}
        return {**values, "seconds": round(seconds, 3)}

    with _writing(cache):
        found = teachers.get(cache, identity, stack, make)
        saved.remove()
    return found


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
        training_inputs(setting, config.jitter, config.flip),
        read(setting.data).train_labels.to(setting.device),
        (~held_out(setting.data)).nonzero().flatten().to(setting.device),
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
def soft_targets(setting: Setting, config: TeacherConfig, every: float) -> Tensor:
    """The logits (N, V, C) of the teacher that `find_teacher` finds, for all training images."""
    images = training_inputs(setting, setting.data.jitter, setting.data.flip)
    found = find_teacher(setting, config, every)
    with _writing(teacher_cache(setting.data, config)):
        return found.soft_targets(images, setting.dtype)
