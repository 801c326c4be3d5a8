"""Errors and losses of each member of a stack, in float32, at temperature 1.

Letters: K members, N examples, C classes.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data.views import Inputs
from distill.training.stack import Stack

# In a batch; less for a stack of many members, but no fewer than the second.
EXAMPLES, FEWEST = 2000, 250


@torch.no_grad()
def batches(
    stack: Stack, images: Inputs, view: int, dtype: torch.dtype, most: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices (B,) and logits (K, B, C), float32, of one view of the images, in batches.

    With ``most``, of the first so many alone.
    """
    stack.eval()
    index = torch.arange(len(images), device=images.raw.device)[:most]
    for i in torch.split(index, max(FEWEST, EXAMPLES // stack.members)):
        yield i, stack(images.batch(i, view, dtype)).float()


def logits(stack: Stack, images: Inputs, view: int, dtype: torch.dtype) -> Tensor:
    """Logits (K, N, C), float32, of one view of every image; products are made in ``dtype``."""
    return torch.cat([z for _, z in batches(stack, images, view, dtype)], 1)


def chosen(stack: Stack, images: Inputs, view: int) -> Tensor:
    """The likeliest classes (K, N) of every image in one view."""
    found = [z.argmax(-1) for _, z in batches(stack, images, view, torch.float32)]
    return torch.cat(found, 1)


def errors_by_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Errors (K, C) of logits (K, N, C) among the examples of each class, by ``labels`` (N,)."""
    wrong = (logits.argmax(-1) != labels).double()  # (K, N)
    return (wrong @ F.one_hot(labels, logits.shape[-1]).double()).long()


def shifted(logits: Tensor, shift: Tensor, classes: Sequence[int]) -> Tensor:
    """Logits (K, N, C) of members whose biases of ``classes`` are raised by ``shift`` (K,)."""
    raised = torch.zeros(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    raised[list(classes)] = 1
    return logits + shift[:, None, None] * raised


def margins(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """How far the biases of ``classes`` must be raised to win each example, and what that changes.

    Of logits (K, B, C) and labels (B,): the margins (K, B), and the errors that each adds or mends.
    """
    own, others = (side.max(-1) for side in _sides(logits, classes))
    change = (own.indices != labels).char() - (others.indices != labels).char()
    return others.values - own.values, change


def best_shift(margin: Tensor, change: Tensor) -> Tensor:
    """The shift (K,) of some biases with the fewest errors, from `margins` (K, N).

    The errors are a step function of the shift, and the best step is found among all; of several
    the widest, and its middle.
    """
    margin, order = margin.double().sort(-1)
    errors = F.pad(change.gather(-1, order).long().cumsum(-1), (1, 0))  # less those of no win
    edges = torch.cat([margin[:, :1] - 2, margin, margin[:, -1:] + 2], -1)
    width = edges.diff().masked_fill(errors > errors.min(-1, keepdim=True).values, -1)
    place = width.argmax(-1, keepdim=True)
    return ((edges.gather(-1, place) + edges.gather(-1, place + 1)) / 2).squeeze(-1)


def log_odds(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """Log odds (K, B) of some ``classes``, by the softmax of logits (K, B, C)."""
    own, others = (side.logsumexp(-1) for side in _sides(logits, classes))
    return own - others


def _sides(logits: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The logits (K, B, C) of some ``classes`` alone, and those of all others alone."""
    inside = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    inside[list(classes)] = True
    return logits.masked_fill(~inside, -torch.inf), logits.masked_fill(inside, -torch.inf)


def mass_shift(odds: Tensor, share: float) -> Tensor:
    """The shift (K,) of some biases by which their classes have a ``share`` of the softmax.

    That is, on average over the examples, of whose `log_odds` (K, N) it takes no label.
    """
    far = odds.abs().amax(-1) + 40  # where the softmax leaves one of the two sides nothing
    low, high = -far.double(), far.double()
    for _ in range(60):
        middle = (low + high) / 2
        mass = (odds + middle[:, None].to(odds.dtype)).sigmoid().mean(-1, dtype=torch.float64)
        less = mass < share
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    return (low + high) / 2


def shifts_of(
    stack: Stack, images: Inputs, labels: Tensor, classes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The `best_shift` (K,) of a stack, and its `mass_shift` to the share of the classes.

    Only a number an image is kept of each, since training images are many.
    """
    found = [
        (*margins(z, labels[i], classes), log_odds(z, classes))
        for i, z in batches(stack, images, images.centre, torch.float32)
    ]
    margin, change, odds = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    share = torch.isin(labels, labels.new_tensor(classes)).double().mean().item()
    return best_shift(margin, change), mass_shift(odds, share)


@torch.no_grad()
def evaluate(
    stack: Stack, images: Inputs, labels: Tensor, most: int | None = None
) -> tuple[Tensor, Tensor]:
    """Errors of each class (K, C) and the mean cross-entropy (K,) with ``labels`` (N,).

    With ``most``, on the first so many images alone.
    """
    errors, loss, count = [], [], len(labels[:most])
    for index, z in batches(stack, images, images.centre, torch.float32, most):
        own = labels[index]
        errors.append(errors_by_class(z, own))
        nll = F.log_softmax(z.mT, 1).gather(1, own.expand(len(z), 1, -1))
        loss.append(-nll.double().sum((1, 2)))
    total = torch.stack(loss).sum(0)
    return torch.stack(errors).sum(0), (total / count).float()
