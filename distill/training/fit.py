"""Training with progress, a log and checkpoints."""

import errno
import logging
import time
from collections.abc import Sequence
from typing import Protocol

import torch

from distill.config import Halving, Optim, Train
from distill.system import interrupt
from distill.system.progress import progress
from distill.training.checkpoint import Checkpoint
from distill.training.evaluator import Evaluator
from distill.training.inputs import Setting
from distill.training.loop import History, Plan, Training, Values
from distill.training.objective import Objective
from distill.training.stack import Stack
from distill.training.transfer_set import TransferSet

log = logging.getLogger(__name__)


class Watcher(Protocol):
    """What follows the training of a stack: it is called when that begins, and after each epoch."""

    def begin(self, history: History | None) -> None:
        """Training begins, or goes on after the ``history`` of a checkpoint."""

    def epoch(self, history: History) -> None:
        """The last epoch of ``history`` was trained."""


class RunError(Exception):
    """A run that did not complete; its text is the reason."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it came from, says that memory was too short."""
    if error.__cause__ is not None and out_of_memory(error.__cause__):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # On the CPU torch has no class of its own for it.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def assemble(
    stack: Stack,
    transfer: TransferSet,
    objective: Objective,
    optims: Sequence[Optim],
    plan: Train,
    seed: int,
    setting: Setting,
    halving: Halving,
) -> Training:
    """A stack whose members have each its own of ``optims``, ready to be trained."""
    first = optims[0]
    stack.trainable(setting.dtype)
    trained = [stack] if objective.learned is None else [stack, objective.learned]
    optimizer = first(
        parameters=[p for own in trained for p in own.parameters.values()],
        leaves=[leaf for own in trained for leaf in own.leaves.values()],
        lr=[optim.lr for optim in optims],
        weight_decay=[optim.weight_decay for optim in optims],
    )
    steps = Plan(
        plan.epochs,
        plan.batch_size,
        first.schedule,
        first.warmup,
        setting.dtype,
        halving.at(plan.epochs),
        halving.factor,
        first.milestones,
        first.gamma,
        plan.clip_norm,
        plan.ema,
        plan.keep_best,
        plan.normalise,
    )
    return Training(stack, optimizer, transfer, objective, steps, seed)


def fit(
    what: str,
    training: Training,
    evaluator: Evaluator,
    saved: Checkpoint,
    watcher: Watcher | None = None,
) -> History:
    """Train a stack, with a line in the log and a tick of the progress bar for each epoch.

    It goes on from the checkpoint ``saved``, and writes it when it is due, and when a signal came,
    by which it then ends; for several members also at the end, since a process that is killed
    between their results leaves only some of them. The ``watcher`` is called for each epoch
    before the checkpoint holds it.
    """
    epochs = training.plan.epochs
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
            if watcher is not None:
                watcher.epoch(history)
            last = epoch == epochs and len(history.rows) > 1
            if saved.due or last or interrupt.asked():
                saved.write(training, history)
                interrupt.check()

        try:
            history = saved.restore(training)
            before = history.seconds if history is not None else 0.0
            if watcher is not None:
                watcher.begin(history)
            start = time.perf_counter()
            with interrupt.deferred():
                return training.run(evaluator, on_epoch, history)
        finally:
            bars.remove_task(task)
