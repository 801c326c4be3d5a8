"""The composition root: from checked jobs to a teacher, a trained stack, and results on disk.

Letters: K jobs, which differ in nothing but the numbers of loss and optimizer, train as one stack.
"""

import logging
import time
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from distill import __version__, checkpoint, interrupt, results, store, teacher
from distill.checkpoint import Checkpoint
from distill.config import ConfigError, Optim, Train
from distill.config import Teacher as TeacherConfig
from distill.data.views import Images
from distill.evaluate import evaluate
from distill.job import (
    Job,
    Setting,
    fresh,
    held_out,
    parameters,
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
    """Evaluates stacks on the validation split, if there is one, and on the test set."""

    def __init__(self, setting: Setting) -> None:
        data, held = read(setting.data), held_out(setting.data)
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
            if len(labels)
        }

    def by_class(self, stack: Stack) -> dict[str, Tensor]:
        """Errors of each member and class (K, C) on each part."""
        return {f"{n}_errors_by_class": evaluate(stack, *p)[0] for n, p in self.parts.items()}

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
) -> Training:
    """A stack whose members have each its own of ``optims``, ready to be trained."""
    first = optims[0]
    optimizer = first.function(
        list(stack.parameters.values()),
        list(stack.trainable(setting.dtype).values()),
        **first.options
        | {"lr": [o.lr for o in optims], "weight_decay": [o.weight_decay for o in optims]},
    )
    steps = Plan(plan.epochs, plan.batch_size, first.schedule, first.warmup, setting.dtype)
    return Training(stack, optimizer, transfer, loss, hyperparameters, steps, seed)


def _train(
    what: str, training: Training, setting: Setting, saved: Checkpoint | None = None
) -> History:
    """Train a stack; a log line and a tick of the progress an epoch.

    With ``saved``, a checkpoint, it goes on from there, and writes it when it is due, and when a
    signal came, by which it then ends.
    """
    epochs = training.plan.epochs
    with progress() as bars:
        task = bars.add_task(what, total=epochs)

        def on_epoch(history: History, values: Values) -> None:
            epoch = history.epoch
            means = {name: value.double().mean().item() for name, value in values.items()}
            text = ", ".join(f"{name} {mean:.5g}" for name, mean in means.items())
            log.info("%s: epoch %d of %d: %s", what, epoch, epochs, text)
            bars.update(
                task, completed=epoch, description=f"{what}: {means['test_errors']:.5g} errors"
            )
            if saved is not None and (saved.due or interrupt.asked()):
                saved.write(training, history)
                interrupt.check()

        try:
            if saved is None:
                return training.run(evaluator(setting), on_epoch)
            history = saved.restore(training)
            with interrupt.deferred():
                return training.run(evaluator(setting), on_epoch, history)
        finally:
            bars.remove_task(task)


@lru_cache(maxsize=2)
def find_teacher(setting: Setting, config: TeacherConfig) -> Teacher:
    """The teacher of a config, trained or read if the cache does not hold it.

    Raises:
        ConfigError: the cache cannot be written.
        RunError: the teacher diverged.
    """
    data = read(setting.data)
    assert config.model is not None
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

    def fit(stack: Stack) -> dict[str, Any]:
        start = time.perf_counter()
        if config.path is not None:
            stack.load([teacher_weights(setting.data, config)])
        else:
            _train_teacher(stack, config, seed, setting)
        values = {name: value[0].item() for name, value in evaluator(setting)(stack).items()}
        return {**values, "seconds": time.perf_counter() - start}

    cache = teacher_cache(setting.data, config)
    try:
        return teacher.get(cache, identity, stack, fit)
    except OSError as error:
        raise ConfigError(f"teacher.cache={cache}: cannot be written ({error})") from error


def _train_teacher(stack: Stack, config: TeacherConfig, seed: int, setting: Setting) -> None:
    assert config.jitter is not None and config.optim is not None and config.train is not None
    images = TransferSet(
        training_images(setting, config.jitter),
        read(setting.data).train_labels.to(setting.device),
        (~held_out(setting.data)).nonzero().flatten().to(setting.device),
    )
    training = _training(stack, images, hard, {}, [config.optim], config.train, seed, setting)
    history = _train(f"teacher {config.name}", training, setting)
    for reason in history.diverged.values():
        raise RunError(f"the teacher diverged: {reason}")


@lru_cache(maxsize=2)
def _soft_targets(setting: Setting, config: TeacherConfig) -> Tensor:
    images = training_images(setting, setting.data.jitter)
    return find_teacher(setting, config).soft_targets(images, setting.dtype)


def failure(result: dict[str, Any]) -> RunError | None:
    """The error that a result speaks of; None for a complete run."""
    if result["status"] == "complete":
        return None
    return RunError(f"{result['run']} {result['status']}: {result['reason']}")


def fail(
    jobs: Sequence[Job], directories: Sequence[Path], error: BaseException
) -> list[dict[str, Any]]:
    """Write the result of jobs that an error ended; returns it."""
    status = "failed" if isinstance(error, Exception) else "interrupted"
    name = "" if isinstance(error, RunError | interrupt.Interrupt) else f"{type(error).__name__}: "
    reason = " ".join(f"{name}{error}".split()).removesuffix(":")
    bodies = [{**_head(job), "status": status, "reason": reason} for job in jobs]
    for body, directory in zip(bodies, directories, strict=True):
        try:
            results.write(directory, body, [])
        except OSError as problem:
            log.warning("%s: its result could not be written: %s", body["run"], problem)
    return bodies


def kept(job: Job, directory: Path) -> dict[str, Any] | None:
    """The result of the job, if ``directory`` holds it and the job may resume."""
    return results.finished(directory, job.name) if job.run.resume else None


def execute(jobs: Sequence[Job], directories: Sequence[Path]) -> list[dict[str, Any]]:
    """Train K jobs as one stack, write each one's files into its directory, return its result.

    A member that diverges, or whose files cannot be written, has that status in its result. An
    error that stops all of them is written into each one's result, and raised again.
    """
    for job, directory in zip(jobs, directories, strict=True):
        results.clear(directory, keep=not job.run.resume)
    first = jobs[0].run
    runs = [job.name for job in jobs]
    saved = Checkpoint(directories[0] / checkpoint.FILE, runs, 60 * first.checkpoint.every)
    if not first.resume:
        saved.remove()
    try:
        stack, history, facts = _fit(jobs, saved)
        by_class = evaluator(jobs[0].setting).by_class(stack) if history.members else {}
    except BaseException as error:
        log.info("it ended here:", exc_info=error)
        fail(jobs, directories, error)
        raise
    bodies = []
    for k, (job, directory) in enumerate(zip(jobs, directories, strict=True)):
        last = {n: v for n, v in history.rows[k][-1].items() if n in results.COLUMNS and n != "lr"}
        body = _head(job) | facts | last
        try:
            if k in history.diverged:
                body |= {"status": "diverged", "reason": history.diverged[k]}
            else:
                place = history.members.index(k)
                body |= {name: value[place].tolist() for name, value in by_class.items()}
                state = stack.state(place)
                store.write(directory / results.WEIGHTS, partial(save_file, state))
            results.write(directory, body, history.rows[k])
        except (OSError, SafetensorError) as error:
            [body] = fail([job], [directory], error)
        bodies.append(body)
    saved.remove()
    return bodies


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
    )


def _fit(jobs: Sequence[Job], saved: Checkpoint) -> tuple[Stack, History, dict[str, Any]]:
    """The trained students of K jobs, and the facts of their teacher."""
    run, setting = jobs[0].run, jobs[0].setting
    facts: dict[str, Any] = {}
    soft = None
    if run.distils:
        found = find_teacher(setting, run.teacher)
        facts = {"teacher_digest": found.digest, "teacher_test_errors": found.test_errors}
        soft = _soft_targets(setting, run.teacher)
    start = time.perf_counter()
    training = prepare(jobs, soft)
    what = jobs[0].name if len(jobs) == 1 else f"stack of {len(jobs)}"
    history = _train(what, training, setting, saved)
    facts["seconds"] = round((time.perf_counter() - start) / len(jobs), 3)
    return training.stack, history, facts


def _head(job: Job) -> dict[str, Any]:
    """What was composed, under the summary's names."""
    run = job.run
    loss, subset = run.loss.options, run.transfer.options
    unsaid = run.aside | ({} if run.distils else {"teacher": True})
    return {
        "run": job.name,
        "status": "complete",
        "reason": None,
        "data": run.data.name,
        "model": run.model.name,
        "width": run.model.options.get("width"),
        "parameters": parameters(run.model, run.data, "model"),
        "teacher": run.teacher.name if run.distils else "none",
        "loss": run.loss.name,
        "temperature": loss.get("temperature"),
        "alpha": loss.get("alpha"),
        "transfer": run.transfer.name,
        "transfer_classes": " ".join(map(str, subset["classes"])) if "classes" in subset else None,
        "transfer_fraction": subset.get("fraction"),
        "transfer_examples": len(job.index),
        "seed": run.seed,
        "epochs": run.train.epochs,
        "batch_size": run.train.batch_size,
        "optimizer": run.optim.name,
        "lr": run.optim.lr,
        "weight_decay": run.optim.weight_decay,
        "precision": "bf16" if job.setting.dtype == torch.bfloat16 else "fp32",
        "device": job.setting.device.type,
        "version": __version__,
        "config": run.model_dump(by_alias=True, exclude=unsaid),
    }
