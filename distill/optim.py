"""Stacked optimizers and the schedules of the learning rate.

An optimizer takes stacked parameters, leaves of shape (K, ...), and a learning rate and a weight
decay for each of the K members; its keyword-only parameters are the keys of its yaml. It equals K
optimizers of `torch.optim`, whose functions it calls on each member's slices.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

__all__ = ["SGD", "AdamW"]

Decay = Annotated[float, Field(ge=0, lt=1)]
Schedule = Literal["constant", "linear", "cosine", "multistep"]

CHUNK = 2**20  # parameters that are updated together: their state and gradients fit in a cache


def factor(
    step: int,
    steps: int,
    schedule: Schedule,
    warmup: float,
    milestones: Sequence[float] = (),
    gamma: float = 1.0,
) -> float:
    """What the learning rate is multiplied by at ``step`` of ``steps``, from 0 to 1.

    It rises linearly over the first ``warmup`` (a share of the steps), then stays, or falls: to 0
    linearly or along half a cosine, or by ``gamma`` at each of the ``milestones``.

    Args:
        step: from 0.
        steps: how many there are.
        schedule: what it does after the warm-up.
        warmup: a share of the steps.
        milestones: of multistep, shares of all steps, each rounded to a whole step.
        gamma: of multistep.

    Example:
        >>> [factor(n, 8, "multistep", 0.0, [0.5, 0.75], 0.5) for n in (3, 4, 5, 6)]
        [1.0, 0.5, 0.5, 0.25]
    """
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "multistep":
        return float(gamma ** sum(step >= round(share * steps) for share in milestones))
    done = (step - rising) / max(1.0, steps - rising)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[
        schedule
    ]


@dataclass
class _Chunk:
    """Neighbouring members with the same learning rate and decay, few enough to stay in a cache."""

    members: slice
    lr: float
    weight_decay: float
    parameters: list[Tensor]
    leaves: list[Tensor]
    state: list[list[Tensor]]
    counts: list[Tensor]  # of steps: a counter a tensor, since the fused update raises each

    def of(self, numbers: list[int]) -> "_Chunk":
        """The same with the parameters of these ``numbers`` alone: the others have no gradient."""
        if len(numbers) == len(self.parameters):
            return self
        return replace(
            self,
            parameters=[self.parameters[n] for n in numbers],
            state=[[slot[n] for n in numbers] for slot in self.state],
            counts=[self.counts[n] for n in numbers],
        )


class Optimizer(ABC):
    """State for each stacked parameter: ``slots`` tensors of its shape, zero at the start.

    ``parameters`` (K, ...) are updated by the gradients of ``leaves``, which are the parameters
    themselves or copies in another type, kept equal to them.
    """

    slots = 1

    def __init__(
        self,
        parameters: Sequence[Tensor],
        leaves: Sequence[Tensor],
        *,
        lr: Sequence[float],
        weight_decay: Sequence[float],
    ) -> None:
        self.lr, self.weight_decay = list(lr), list(weight_decay)
        self.steps = [0.0] * len(parameters)  # of each tensor: those that it had a gradient for
        self._bind(
            parameters,
            leaves,
            [[torch.zeros_like(p) for p in parameters] for _ in range(self.slots)],
        )

    def _bind(
        self, parameters: Sequence[Tensor], leaves: Sequence[Tensor], state: list[list[Tensor]]
    ) -> None:
        self.leaves, self.state = leaves, state
        most = max(1, CHUNK // sum(p[0].numel() for p in parameters)) if self.lr else 1
        self.chunks = []
        start = 0
        for (lr, decay), run in groupby(zip(self.lr, self.weight_decay, strict=True)):
            end = start + len(list(run))
            for first in range(start, end, most):
                members = slice(first, min(first + most, end))
                self.chunks.append(
                    _Chunk(
                        members,
                        lr,
                        decay,
                        [p.detach()[members] for p in parameters],
                        [leaf.detach()[members] for leaf in leaves],
                        [[s[members] for s in slot] for slot in state],
                        [
                            torch.full((), n, device=p.device)
                            for n, p in zip(self.steps, parameters, strict=True)
                        ],
                    )
                )
            start = end

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update the parameters by their gradients, the learning rates times ``factor``."""
        gradients = {n: leaf.grad for n, leaf in enumerate(self.leaves) if leaf.grad is not None}
        for chunk in self.chunks:
            own = [g[chunk.members].to(chunk.parameters[n].dtype) for n, g in gradients.items()]
            self._update(chunk.of([*gradients]), own, chunk.lr * factor)
            for leaf, p in zip(chunk.leaves, chunk.parameters, strict=True):
                if leaf.dtype != p.dtype:
                    leaf.copy_(p)
        for leaf in self.leaves:
            leaf.grad = None
        for n in gradients:
            self.steps[n] += 1

    def at(self, steps: Sequence[float]) -> None:
        """Go on as after so many ``steps`` of each tensor."""
        self.steps = list(steps)
        for chunk in self.chunks:
            for count, number in zip(chunk.counts, steps, strict=True):
                count.fill_(number)

    @abstractmethod
    def _update(self, chunk: _Chunk, gradients: list[Tensor], lr: float) -> None:
        """Update the members of ``chunk`` in place."""

    def keep(self, parameters: Sequence[Tensor], leaves: Sequence[Tensor], members: Tensor) -> None:
        """Go on with ``parameters``, those of the members at ``members`` (indices) alone."""
        chosen = members.tolist()
        self.lr = [self.lr[k] for k in chosen]
        self.weight_decay = [self.weight_decay[k] for k in chosen]
        self._bind(parameters, leaves, [[s[members] for s in slot] for slot in self.state])


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    slots = 2

    def __init__(
        self,
        parameters: Sequence[Tensor],
        leaves: Sequence[Tensor],
        *,
        lr: Sequence[float],
        weight_decay: Sequence[float],
        beta1: Decay = 0.9,
        beta2: Decay = 0.999,
        eps: PositiveFloat = 1e-8,
    ) -> None:
        super().__init__(parameters, leaves, lr=lr, weight_decay=weight_decay)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def _update(self, chunk: _Chunk, gradients: list[Tensor], lr: float) -> None:
        adamw(
            chunk.parameters,
            gradients,
            chunk.state[0],
            chunk.state[1],
            [],
            chunk.counts,
            fused=True,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=lr,
            weight_decay=chunk.weight_decay,
            eps=self.eps,
            maximize=False,
        )


class SGD(Optimizer):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        leaves: Sequence[Tensor],
        *,
        lr: Sequence[float],
        weight_decay: Sequence[float],
        momentum: Decay = 0.9,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, leaves, lr=lr, weight_decay=weight_decay)
        self.momentum, self.nesterov = momentum, nesterov and momentum > 0

    def _update(self, chunk: _Chunk, gradients: list[Tensor], lr: float) -> None:
        sgd(
            chunk.parameters,
            gradients,
            list(chunk.state[0]),
            fused=True,
            weight_decay=chunk.weight_decay,
            momentum=self.momentum,
            lr=lr,
            dampening=0,
            nesterov=self.nesterov,
            maximize=False,
        )
