"""Errors and losses of each member of a stack, in float32, at temperature 1.

Letters: K members, N examples, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data.views import Images
from distill.stack import Stack

BATCH = 2000


@torch.no_grad()
def logits(stack: Stack, images: Images, view: int, dtype: torch.dtype) -> Tensor:
    """Logits (K, N, C), float32, of one view of every image; products are made in ``dtype``."""
    stack.eval()
    index = torch.arange(len(images), device=images.raw.device)
    batches = (images.batch(i, view, dtype) for i in torch.split(index, BATCH))
    return torch.cat([stack(x).float() for x in batches], 1)


def evaluate(stack: Stack, images: Images, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of each class (K, C) and the mean cross-entropy (K,) with ``labels`` (N,)."""
    z = logits(stack, images, images.centre, torch.float32)
    wrong = (z.argmax(-1) != labels).double()  # (K, N)
    classes = F.one_hot(labels, z.shape[-1]).double()
    loss = F.cross_entropy(z.transpose(1, 2), labels.expand(z.shape[:2]), reduction="none").mean(1)
    return (wrong @ classes).long(), loss
