"""Errors and losses of each member of a stack, in float32, at temperature 1.

Letters: K members, N examples, C classes.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data.views import Images
from distill.stack import Stack

# In a batch; less for a stack of many members, but no fewer than the second.
EXAMPLES, FEWEST = 2000, 250


@torch.no_grad()
def _batches(
    stack: Stack, images: Images, view: int, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices (B,) and logits (K, B, C), float32, of one view of the images, in batches."""
    stack.eval()
    index = torch.arange(len(images), device=images.raw.device)
    for i in torch.split(index, max(FEWEST, EXAMPLES // stack.members)):
        yield i, stack(images.batch(i, view, dtype)).float()


def logits(stack: Stack, images: Images, view: int, dtype: torch.dtype) -> Tensor:
    """Logits (K, N, C), float32, of one view of every image; products are made in ``dtype``."""
    return torch.cat([z for _, z in _batches(stack, images, view, dtype)], 1)


@torch.no_grad()
def evaluate(stack: Stack, images: Images, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of each class (K, C) and the mean cross-entropy (K,) with ``labels`` (N,)."""
    errors, loss = [], []
    for index, z in _batches(stack, images, images.centre, torch.float32):
        own = labels[index]
        wrong = (z.argmax(-1) != own).double()  # (K, B)
        errors.append(wrong @ F.one_hot(own, z.shape[-1]).double())
        nll = F.log_softmax(z.mT, 1).gather(1, own.expand(len(z), 1, -1))
        loss.append(-nll.double().sum((1, 2)))
    total = torch.stack(loss).sum(0)
    return torch.stack(errors).sum(0).long(), (total / len(images)).float()
