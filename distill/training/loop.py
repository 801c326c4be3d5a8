"""The only training loop: a stack of K students, or a teacher, which is a stack of one.

Letters: K members, B examples in a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from torch import Tensor

from distill.optim import Optimizer, Schedule, factor
from distill.seeds import derive, generator, seeded
from distill.system.memory import kept
from distill.training.objective import Objective
from distill.training.stack import Stack
from distill.training.transfer_set import TransferSet

Values = dict[str, Tensor]

STEPS = "optimizer.steps"  # in a state: of each tensor of parameters (K, tensors)


@dataclass(frozen=True)
class Plan:
    """How long and in what steps a stack is trained, and in which type its products are made.

    After each epoch of ``rungs``, the best 1/``factor`` of the members go on, and the others stop.
    The rest is as in the sections `distill.config.Optim` and `distill.config.Train`.
    """

    epochs: int
    batch_size: int
    schedule: Schedule
    warmup: float
    dtype: torch.dtype
    rungs: tuple[int, ...] = ()
    factor: int = 2
    milestones: Sequence[float] = ()
    gamma: float = 1.0
    clip_norm: float | None = None
    ema: float | None = None
    keep_best: bool = False
    normalise: bool = False


@dataclass
class History:
    """What happened: one row for each epoch, for each member, and why a member left, if it did.

    ``members`` are the numbers of those still in the stack, in its order; ``epoch`` is the last
    that was trained; ``seconds`` is how long it took, by whoever measures.
    """

    rows: list[list[dict[str, float]]]
    members: list[int]
    diverged: dict[int, str] = field(default_factory=dict)
    stopped: dict[int, str] = field(default_factory=dict)
    epoch: int = 0
    seconds: float = 0.0


@dataclass
class Training:
    """A stack with all that it is trained with; the seed and the step decide what is random.

    The members share the batches and all that is random in a step. ``average`` is the moving
    average of the parameters, ``best`` the parameters and buffers of each member's best epoch,
    where the plan asks for them.

    Parameters of the loss (`Objective.learned`) are trained and kept as those of the students are,
    by the same optimizer, schedule and clipping, but are no part of those, nor of what is saved.
    """

    stack: Stack
    optimizer: Optimizer
    transfer: TransferSet
    objective: Objective
    plan: Plan
    seed: int
    average: Values = field(default_factory=dict)
    best: Values = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.plan.ema is not None:
            values = self.stack.tensors.items()
            self.average = {n: v.detach().clone() for n, v in values if n in self.stack.bounded}
        if self.plan.keep_best:
            self.best = {n: value.detach().clone() for n, value in self.stack.tensors.items()}

    @property
    def trained(self) -> dict[str, Stack]:
        """The students, and the parameters of the loss, by what stands before their names."""
        learned = self.objective.learned
        return {"": self.stack} | ({} if learned is None else {"loss.": learned})

    @property
    def _steps(self) -> int:
        """How many steps an epoch has."""
        return ceil(len(self.transfer.index) / self.plan.batch_size)

    @property
    def _leaves(self) -> list[Tensor]:
        return [leaf for stack in self.trained.values() for leaf in stack.leaves.values()]

    @property
    def stacks(self) -> dict[str, Stack]:
        """The members with their ``last`` weights; with their average, ``ema``; with the ``best``.

        Statistics of layers (BatchNorm's) are averaged, too; with the average go the last counts.
        """
        others = {"ema": self.average, "best": self.best}
        held = {name: self.stack.holding(own) for name, own in others.items() if own}
        return {"last": self.stack, **held}

    @kept()
    def run(
        self,
        evaluate: Callable[[Stack], Values] = lambda _: {},
        on_epoch: Callable[[History, Values], None] = lambda *_: None,
        history: History | None = None,
    ) -> History:
        """Train the stack in place; returns the history of each member.

        What ``evaluate`` returns, values (K,), becomes part of each epoch's row, and with ema_
        before its name what it returns of the average. A member whose
        losses or parameters are not finite leaves the stack at the end of the epoch, as does one
        that is not among the best at a rung of the plan, and its neighbours go on. With a
        ``history``, that of a `restore`, training goes on after its last epoch.
        """
        plan, stack = self.plan, self.stack
        if history is None:
            history = History([[] for _ in range(stack.members)], list(range(stack.members)))
        while history.members and history.epoch < plan.epochs:
            epoch = history.epoch + 1
            values, scale = self._epoch(epoch)
            values |= evaluate(stack)
            if self.average:
                found = evaluate(self.stacks["ema"])
                values |= {f"ema_{name}": value for name, value in found.items()}
            self._record(history, epoch, values, scale)
            if self.best:
                self._choose(history)
            finite = torch.ones_like(values["train_loss"], dtype=torch.bool)
            for what, whole in self._finite(values).items():
                reason = f"{what} not finite in epoch {epoch}"
                self._part(history.members, whole[finite], history.diverged, reason)
                finite &= whole
            if epoch in plan.rungs:
                most = ceil(len(history.rows) / plan.factor ** (plan.rungs.index(epoch) + 1))
                reason = f"after epoch {epoch}, the best {most} of {len(history.rows)} went on"
                chosen = best({name: value[finite] for name, value in values.items()}, most)
                self._part(history.members, chosen, history.stopped, reason)
            history.epoch = epoch
            on_epoch(history, values)
        return history

    def _epoch(self, epoch: int) -> tuple[Values, float]:
        """Train for one epoch.

        Returns:
            The means (K,) of the loss and its terms, and the last factor of the learning rates.
        """
        plan, device = self.plan, self.transfer.index.device
        noise = generator(self.seed, "dropout", epoch, on=device)
        for trained in self.trained.values():
            trained.train(noise)
        if self.transfer.augmentation is not None:
            self.transfer.augmentation.begin(self.seed, epoch, device)
        batches = self.transfer.batches(self.seed, epoch, plan.batch_size)
        first, steps = (epoch - 1) * self._steps, plan.epochs * self._steps
        sums: Values = {}
        # What a model draws from torch's global generators follows from the seed, too.
        with seeded(derive(self.seed, "torch", epoch), device):
            for step, (index, view) in enumerate(batches, first):
                scale = factor(step, steps, plan.schedule, plan.warmup, plan.milestones, plan.gamma)
                for name, value in self.step(index, view, scale, step / steps).items():
                    sums[name] = sums.get(name, 0) + value
        self.stack.eval()
        return {name: value / len(self.transfer.index) for name, value in sums.items()}, scale

    def _finite(self, values: Values) -> Values:
        """Masks (K,) of the members with finite losses, and parameters after the last step.

        The training loss says nothing of what that step did. A term of the loss that has weight 0
        may be what it likes.
        """
        losses = {"the training loss is": "train_loss"}
        losses |= {f"{name} is": name for name in ("val_loss", "test_loss") if name in values}
        masks = {what: values[name].isfinite() for what, name in losses.items()}
        masks["the parameters are"] = self.stack.finite()
        if self.objective.learned is not None:
            masks["the parameters of the loss are"] = self.objective.learned.finite()
        return masks

    def state(self) -> dict[str, Tensor]:
        """Parameters, buffers, their copies and the optimizer's state, of the members left."""
        held: Values = {}
        for whose, stack in self.trained.items():
            held |= {f"{whose}parameters.{n}": p.detach() for n, p in stack.parameters.items()}
            held |= {f"{whose}buffers.{n}": b for n, b in stack.buffers.items()}
        return {
            **held,
            **{f"average.{n}": value for n, value in self.average.items()},
            **{f"best.{n}": value for n, value in self.best.items()},
            STEPS: torch.tensor(self.optimizer.steps).expand(self.stack.members, -1),
            **{
                f"optimizer.{slot}.{i}": value
                for slot, values in enumerate(self.optimizer.state)
                for i, value in enumerate(values)
            },
        }

    @torch.no_grad()
    def restore(self, history: History, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state` gave after the last epoch of ``history``.

        All else follows from the seed and the epoch: the order, the views, the dropout masks and
        the learning rate.
        """
        device = self.transfer.index.device
        self._keep(torch.tensor(history.members, dtype=torch.long, device=device))
        for name, value in self.state().items():
            if name != STEPS:
                value.copy_(state[name])
        for stack in self.trained.values():
            stack.refresh()
        steps = history.epoch * self._steps
        # One of an earlier version does not hold them, nor one of no member that goes on.
        known = state[STEPS][:1].flatten().tolist() if STEPS in state else []
        self.optimizer.at(known or [float(steps)] * len(self.optimizer.steps))

    def step(self, index: Tensor, view: Tensor, scale: float, progress: float) -> Values:
        """One step, the learning rates times ``scale``, when ``progress`` of 1 is done.

        Returns the loss and its terms, summed over the batch: (K,) each.
        """
        transfer = self.transfer
        inputs, labels = transfer.images.pick(index, view), transfer.labels[index]
        if transfer.augmentation is not None:
            inputs, labels = transfer.augmentation(inputs, labels)
        x = transfer.images.normalised(inputs, self.plan.dtype)
        given: dict[str, Any] = {"labels": labels, "progress": progress}
        takes = self.objective.takes
        if transfer.teachers:
            given |= transfer.taught(self.objective.teachers, index, view, x)
        if "class_counts" in takes:
            given["class_counts"] = transfer.class_counts
        if "index" in takes:
            given["index"] = torch.searchsorted(transfer.index, index)
        if "student_features" in takes:
            logits, features = self.stack.observed(x, self.objective.features)
            given["student_features"] = [feature.float() for feature in features]
        else:
            logits = self.stack(x)
        losses, terms = self.objective(logits.float(), given)
        # The members' gradients do not mix, so the sum of their means gives each its own.
        torch.autograd.backward((losses.mean(1) if losses.ndim > 1 else losses).sum())
        if self.plan.normalise:
            # Labels' gradients get as small as 1e-11. One whose squares are 0 in float32 (1e-23)
            # has no direction that is known, and makes no step.
            self._scale(lambda norms: torch.where(norms > 0, 1 / norms, 0))
        if self.plan.clip_norm is not None:
            self._clip(self.plan.clip_norm)
        self.optimizer.step(scale)
        self.stack.constrain_()
        if self.plan.ema is not None:
            self._average(1 - self.plan.ema if progress > 0 else 1.0)
        named = {"train_loss": losses} | {f"train_{name}": term for name, term in terms.items()}
        return {
            name: value.detach().sum(1) if value.ndim > 1 else value.detach() * len(index)
            for name, value in named.items()
        }

    def _clip(self, most: float) -> None:
        """Scale each member's gradient whose global norm is larger, as torch's clip_grad_norm_."""
        self._scale(lambda norms: (most / (norms + 1e-6)).clamp(max=1))

    def _scale(self, by: Callable[[Tensor], Tensor]) -> None:
        """Multiply each member's gradient ``by`` what its global norm (K,) gives.

        It is that of the student's and the loss's parameters together, as where one optimizer has
        both.
        """
        found = [leaf.grad for leaf in self._leaves if leaf.grad is not None]
        norms = torch.stack(
            [
                torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1, dtype=torch.float32)
                for g in found
            ]
        )
        scale = by(torch.linalg.vector_norm(norms, dim=0))
        for gradient in found:
            gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))

    @torch.no_grad()
    def _average(self, weight: float) -> None:
        """Let parameters and buffers enter their average with a ``weight``, 1 in the first step."""
        now = self.stack.tensors
        for name, value in self.average.items():
            value.lerp_(now[name], weight)

    @torch.no_grad()
    def _choose(self, history: History) -> None:
        """Keep the weights of the members whose last epoch is the best, and note that in its row.

        It has the fewest validation errors, or of equal ones the least loss.
        """
        stay = []
        for member in history.members:
            *before, last = history.rows[member]
            best = before[int(before[-1]["best_epoch"]) - 1] if before else last
            ranks = [(row["val_errors"], row["val_loss"]) for row in (last, best)]
            stay.append(bool(before) and not ranks[0] < ranks[1])
            chosen = best if stay[-1] else last
            names = [name for name in ("val_errors", "test_errors") if name in chosen]
            last["best_epoch"] = chosen["epoch"]
            last |= {f"best_{name}": chosen[name] for name in names}
        gone = torch.tensor(stay, device=self.transfer.index.device)
        for name, value in self.stack.tensors.items():
            value = torch.where(gone.view(-1, *[1] * (value.ndim - 1)), self.best[name], value)
            self.best[name] = value.detach()

    def _record(self, history: History, epoch: int, values: Values, scale: float) -> None:
        columns = {name: value.tolist() for name, value in values.items()}
        for k, member in enumerate(history.members):
            row = {name: column[k] for name, column in columns.items()}
            history.rows[member].append({"epoch": epoch, **row, "lr": self.optimizer.lr[k] * scale})

    def _part(self, members: list[int], stay: Tensor, left: dict[int, str], reason: str) -> None:
        """Let the ``members`` leave that do not ``stay`` (K,), for a ``reason``."""
        if stay.all():
            return
        gone = [m for m, stays in zip(members, stay.tolist(), strict=True) if not stays]
        left |= dict.fromkeys(gone, reason)
        members[:] = [m for m in members if m not in gone]
        self._keep(stay.nonzero().flatten())

    def _keep(self, stay: Tensor) -> None:
        """Let all members leave but those at ``stay`` (indices)."""
        self.stack.keep(stay)
        for copies in (self.average, self.best):
            copies |= {name: value[stay] for name, value in copies.items()}
        self.objective = self.objective.keep(stay)
        parameters = [p for stack in self.trained.values() for p in stack.parameters.values()]
        self.optimizer.keep(parameters, self._leaves, stay)


def best(values: Values, most: int) -> Tensor:
    """A mask (K,) of the ``most`` members with the fewest validation errors, or the least loss."""
    errors, loss = values["val_errors"].tolist(), values["val_loss"].nan_to_num(torch.inf).tolist()
    order = sorted(range(len(errors)), key=lambda k: (errors[k], loss[k]))
    mask = torch.zeros_like(values["val_errors"], dtype=torch.bool)
    mask[order[:most]] = True
    return mask
