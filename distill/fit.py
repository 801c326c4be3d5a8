"""Training for checked jobs: their teacher, its soft targets, and the students of a stack.

Letters: N examples, V views of each, C classes, K members.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill import checkpoint, interrupt, store, teacher
from distill.checkpoint import Checkpoint
from distill.config import ConfigError, Halving, Optim, Train
from distill.config import Teacher as TeacherConfig
from distill.data.views import Images
from distill.evaluate import errors_by_class, evaluate, logits, shift_of, shifted
from distill.job import (
    Job,
    Setting,
    fresh,
    held_out,
    read,
    teacher_cache,
    teacher_weights,
    training_images,
)
from distill.losses import hard
from distill.progress import progress
from distill.seeds import derive
from distill.stack import Stack
from distill.teacher import Teacher
from distill.train import History, Loss, Plan, Training, TransferSet, Values

log = logging.getLogger(__name__)


class RunError(Exception):
    """A run that did not complete; its text is the reason."""


class Evaluator:
    """Evaluates stacks on the validation split, if there is one, and with ``test`` on that set."""

    def __init__(self, setting: Setting, test: bool) -> None:
        data, held = read(setting.data), held_out(setting.data)
        self.setting = setting
        parts = {
            "val": (data.train_images[held], data.train_labels[held]),
            "test": (data.test_images, data.test_labels),
        }
        self.parts = {
            name: (
                Images(
                    images.to(setting.device),
                    jitter=0,
                    mean=setting.data.mean,
                    std=setting.data.std,
                ),
                labels.to(setting.device),
            )
            for name, (images, labels) in parts.items()
            if len(labels) and (test or name != "test")
        }

    def by_class(self, stack: Stack) -> Values:
        """Errors of each member and class (K, C) on each part."""
        return {f"{n}_errors_by_class": evaluate(stack, *p)[0] for n, p in self.parts.items()}

    def bias_shifts(self, stack: Stack, classes: Sequence[int]) -> Values:
        """The shifts (K,) of the biases of ``classes`` with the fewest errors, and what they give.

        ``bias_shift`` is chosen without the test set: on the validation split, or, where there is
        none, on all training images, those that the student never saw among them. ``oracle_shift``
        is chosen on the test set itself, as in the paper (section 3).
        """
        chosen = {"bias": self.parts.get("val") or self._training()}
        if "test" in self.parts:
            chosen["oracle"] = self.parts["test"]
        values: Values = {}
        for name, (images, labels) in chosen.items():
            values[f"{name}_shift"] = shift = shift_of(stack, images, labels, classes)
            for part, (own, truth) in self.parts.items():
                z = shifted(logits(stack, own, own.centre, torch.float32), shift, classes)
                errors = errors_by_class(z, truth)
                values[f"{name}_shift_{part}_errors"] = errors.sum(1)
                values[f"{name}_shift_{part}_errors_by_class"] = errors
        return values

    def _training(self) -> tuple[Images, Tensor]:
        """All training images, whether in the transfer set or not."""
        labels = read(self.setting.data).train_labels.to(self.setting.device)
        return training_images(self.setting, 0), labels

    def __call__(self, stack: Stack) -> Values:
        """Errors, accuracy and loss (K,) of each member on each part."""
        values: Values = {}
        for name, (images, labels) in self.parts.items():
            errors, loss = evaluate(stack, images, labels)
            total = errors.sum(1)
            accuracy = 1 - total.double() / len(labels)
            values |= {f"{name}_errors": total, f"{name}_accuracy": accuracy, f"{name}_loss": loss}
        return values


evaluator = lru_cache(maxsize=2)(Evaluator)


def _training(
    stack: Stack,
    transfer: TransferSet,
    loss: Loss,
    hyperparameters: dict[str, Tensor],
    optims: Sequence[Optim],
    plan: Train,
    seed: int,
    setting: Setting,
    halving: Halving,
) -> Training:
    """A stack whose members have each its own of ``optims``, ready to be trained."""
    first = optims[0]
    optimizer = first.function(
        list(stack.parameters.values()),
        list(stack.trainable(setting.dtype).values()),
        **first.options
        | {"lr": [o.lr for o in optims], "weight_decay": [o.weight_decay for o in optims]},
    )
    steps = Plan(
        plan.epochs,
        plan.batch_size,
        first.schedule,
        first.warmup,
        setting.dtype,
        halving.at(plan.epochs),
        halving.factor,
    )
    return Training(stack, optimizer, transfer, loss, hyperparameters, steps, seed)


def train(what: str, training: Training, evaluator: Evaluator, saved: Checkpoint) -> History:
    """Train a stack; a log line and a tick of the progress an epoch.

    It goes on from the checkpoint ``saved``, and writes it when it is due, and when a signal came,
    by which it then ends; for several members also at the end, since a process that is killed
    between their results leaves only some of them.
    """
    epochs = training.plan.epochs
    start = time.perf_counter()
    with progress() as bars:
        task = bars.add_task(what, total=epochs)

        def on_epoch(history: History, values: Values) -> None:
            epoch = history.epoch
            history.seconds = before + time.perf_counter() - start
            means = {name: value.double().mean().item() for name, value in values.items()}
            text = ", ".join(f"{name} {mean:.5g}" for name, mean in means.items())
            log.info("%s: epoch %d of %d: %s", what, epoch, epochs, text)
            errors = means.get("test_errors", means.get("val_errors", 0.0))
            bars.update(task, completed=epoch, description=f"{what}: {errors:.5g} errors")
            last = epoch == epochs and len(history.rows) > 1
            if saved.due or last or interrupt.asked():
                saved.write(training, history)
                interrupt.check()

        try:
            history = saved.restore(training)
            before = history.seconds if history is not None else 0.0
            with interrupt.deferred():
                return training.run(evaluator, on_epoch, history)
        finally:
            bars.remove_task(task)


@lru_cache(maxsize=2)
def find_teacher(setting: Setting, config: TeacherConfig, every: float) -> Teacher:
    """The teacher of a config, trained or read if the cache does not hold it.

    An ensemble is made of its members, each found in the same way. While a teacher is trained, a
    checkpoint is written into the cache ``every`` so many minutes.

    Raises:
        ConfigError: the cache cannot be written.
        RunError: the teacher diverged.
    """
    data = read(setting.data)
    assert config.model is not None
    if config.members > 1:
        members = [find_teacher(setting, member, every) for member in config.apart()]
        with _writing(teacher_cache(setting.data, config)):
            return teacher.ensemble(members, *evaluator(setting, True).parts["test"])
    identity = {
        "data": data.digest,
        "reading": setting.data.model_dump(include={"mean", "std", "validation"}),
        "teacher": config.recipe,
        "dtype": str(setting.dtype),
        "device": setting.device.type,
    }
    if config.path is not None:
        identity["path"] = store.file_digest(Path(config.path))
    seed = derive(config.seed or 0, "teacher")
    stack = fresh(config.model, data, "teacher.model", 1, seed, setting.device)

    cache = teacher_cache(setting.data, config)
    digest = teacher.digest(identity)
    name = f"{digest[: teacher.SHORT]}-{checkpoint.FILE}"
    saved = Checkpoint(cache / name, [digest], 60 * every)

    def fit(stack: Stack) -> dict[str, Any]:
        store.tidy(cache, name)  # no other process is here now
        seconds = 0.0
        if config.path is not None:
            stack.load([teacher_weights(setting.data, config)])
        else:
            seconds = _train_teacher(stack, config, seed, setting, saved)
        values = {name: value[0].item() for name, value in evaluator(setting, True)(stack).items()}
        return {**values, "seconds": round(seconds, 3)}

    with _writing(cache):
        found = teacher.get(cache, identity, stack, fit)
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
        training_images(setting, config.jitter),
        read(setting.data).train_labels.to(setting.device),
        (~held_out(setting.data)).nonzero().flatten().to(setting.device),
    )
    training = _training(
        stack, images, hard, {}, [config.optim], config.train, seed, setting, Halving()
    )
    history = train(f"teacher {config.name}", training, evaluator(setting, True), saved)
    for reason in history.diverged.values():
        saved.remove()
        raise RunError(f"the teacher diverged: {reason}")
    return history.seconds


@lru_cache(maxsize=2)
def soft_targets(setting: Setting, config: TeacherConfig, every: float) -> Tensor:
    """The logits (N, V, C) of the teacher that `find_teacher` finds, for all training images."""
    images = training_images(setting, setting.data.jitter)
    found = find_teacher(setting, config, every)
    with _writing(teacher_cache(setting.data, config)):
        return found.soft_targets(images, setting.dtype)


def prepare(jobs: Sequence[Job], soft: Tensor | None) -> Training:
    """The students of K jobs, ready to learn from soft targets (N, V, C) or from labels alone."""
    first = jobs[0]
    run, setting = first.run, first.setting
    transfer = TransferSet(
        training_images(setting, run.data.jitter),
        first.data.train_labels.to(setting.device),
        first.index.to(setting.device),
        soft,
    )
    stack = fresh(
        run.model, first.data, "model", len(jobs), derive(run.seed, "student"), setting.device
    )
    hyperparameters = {
        name: torch.tensor([job.run.loss.options[name] for job in jobs], device=setting.device)
        for name in run.loss.options
    }
    return _training(
        stack,
        transfer,
        run.loss.function,
        hyperparameters,
        [job.run.optim for job in jobs],
        run.train,
        run.seed,
        setting,
        run.halving,
    )
