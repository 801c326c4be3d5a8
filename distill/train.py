"""The only training loop: a stack of K students, or a teacher, which is a stack of one.

Letters: K members, B examples in a batch, N examples in the data set, M of them in the transfer
set, V views of each, C classes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill.data.views import Images
from distill.optim import Optimizer, Schedule, factor
from distill.seeds import generator
from distill.stack import Stack

Loss = Callable[..., Tensor]
Values = dict[str, Tensor]


@dataclass(frozen=True)
class TransferSet:
    """What a student learns from: images, labels (N,), and the indices (M,) of those it sees.

    ``soft`` holds the teacher's logits (N, V, C) for each view, or is None for hard labels alone.
    """

    images: Images
    labels: Tensor
    index: Tensor
    soft: Tensor | None = None

    def batches(self, seed: int, epoch: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices and views (B,) of each batch: every example once, in a new order and view."""
        order = torch.randperm(len(self.index), generator=generator(seed, "order", epoch))
        jitter = generator(seed, "jitter", epoch)
        views = torch.randint(self.images.views, order.shape, generator=jitter)
        device = self.index.device
        index = torch.split(self.index[order.to(device)], size)
        return zip(index, torch.split(views.to(device), size), strict=True)


@dataclass(frozen=True)
class Plan:
    """How long and in what steps a stack is trained, and in which type its products are made."""

    epochs: int
    batch_size: int
    schedule: Schedule
    warmup: float
    dtype: torch.dtype


@dataclass
class History:
    """What happened: a row an epoch for each member, and why a member left, if it did.

    ``members`` are the numbers of those still in the stack, in its order.
    """

    rows: list[list[dict[str, float]]]
    members: list[int]
    diverged: dict[int, str] = field(default_factory=dict)


def _terms(
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    hyperparameters: Mapping[str, Tensor],
    total: Tensor,
) -> Tensor:
    """The soft and the hard term (2, K) of the loss, summed over the batch; ``total`` is (K, B).

    A loss is ``alpha * soft + (1 - alpha) * hard`` (see `distill.losses`), so its value at the end
    of alpha's range which is farther from a member's own gives that member one term, and what is
    left of the total the other.
    """
    alpha = hyperparameters["alpha"]
    end = (alpha < 0.5).to(alpha.dtype)
    one = loss({**hyperparameters, "alpha": end}).sum(-1)
    own = torch.where(end == 1, alpha, 1 - alpha)  # the weight of the term that is now known
    other = (total.sum(-1) - own * one) / (1 - own)
    return torch.where(end == 1, torch.stack([one, other]), torch.stack([other, one]))


def train(
    stack: Stack,
    optimizer: Optimizer,
    transfer: TransferSet,
    loss: Loss,
    hyperparameters: Mapping[str, Tensor],
    plan: Plan,
    seed: int,
    evaluate: Callable[[Stack], Values],
    on_epoch: Callable[[int, Values], None],
) -> History:
    """Train ``stack`` in place; returns the history of each member.

    ``loss`` is that of one member (see `distill.losses`); ``hyperparameters`` holds its values
    (K,). What ``evaluate`` returns, values (K,), becomes part of each epoch's row. A member whose
    loss is not finite leaves the stack at the end of the epoch, and its neighbours go on: they
    share the batches and the dropout masks, which follow from ``seed`` and the step alone.
    """
    history = History([[] for _ in range(stack.members)], list(range(stack.members)))
    terms = ["train_loss", *["train_soft", "train_hard"] * ("alpha" in hyperparameters)]
    steps = plan.epochs * -(-len(transfer.index) // plan.batch_size)
    step = 0
    for epoch in range(1, plan.epochs + 1):
        stack.train(generator(seed, "dropout", epoch, on=transfer.index.device))
        sums = torch.zeros(len(terms), stack.members, device=transfer.index.device)
        for index, view in transfer.batches(seed, epoch, plan.batch_size):
            scale = factor(step, steps, plan.schedule, plan.warmup)
            sums += _step(
                stack, optimizer, transfer, loss, hyperparameters, plan.dtype, index, view, scale
            )
            step += 1
        stack.eval()
        values = dict(zip(terms, sums / len(transfer.index), strict=True))
        values |= evaluate(stack)
        for k, member in enumerate(history.members):
            row = {name: value[k].item() for name, value in values.items()}
            history.rows[member].append({"epoch": epoch, **row, "lr": optimizer.lr[k] * scale})
        on_epoch(epoch, values)
        finite = values["train_loss"].isfinite()
        if not finite.all():
            reason = f"the training loss is not finite in epoch {epoch}"
            gone = [m for m, good in zip(history.members, finite.tolist(), strict=True) if not good]
            history.diverged |= dict.fromkeys(gone, reason)
            history.members = [m for m in history.members if m not in gone]
            stay = finite.nonzero().flatten()
            stack.keep(stay)
            optimizer.keep(list(stack.parameters.values()), list(stack.leaves.values()), stay)
            hyperparameters = {name: value[stay] for name, value in hyperparameters.items()}
        if not history.members:
            break
    return history


def _step(
    stack: Stack,
    optimizer: Optimizer,
    transfer: TransferSet,
    loss: Loss,
    hyperparameters: Mapping[str, Tensor],
    dtype: torch.dtype,
    index: Tensor,
    view: Tensor,
    scale: float,
) -> Tensor:
    """One step; returns each term of the loss, summed over the batch: (terms, K)."""
    x = transfer.images.batch(index, view, dtype)
    labels = transfer.labels[index]
    soft = None if transfer.soft is None else transfer.soft[index, view]

    logits = stack(x).float()

    def values(at: Mapping[str, Tensor]) -> Tensor:
        def member(z: Tensor, h: Mapping[str, Tensor]) -> Tensor:
            return loss(z, soft, labels, **h)

        return torch.vmap(member)(logits, dict(at))

    losses = values(hyperparameters)
    # The members' gradients do not mix, so the sum of their means gives each its own.
    torch.autograd.backward(losses.mean(1).sum())
    optimizer.step(scale)
    stack.constrain_()
    with torch.no_grad():
        total = losses.sum(-1, keepdim=True).mT
        return (
            torch.cat([total, _terms(values, hyperparameters, losses)])
            if "alpha" in hyperparameters
            else total
        )
