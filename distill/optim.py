"""Stacked optimizers and the schedules of the learning rate.

An optimizer takes stacked parameters, leaves of shape (K, ...), and a learning rate and a weight
decay for each of the K members; its keyword-only parameters are the keys of its yaml. It equals K
optimizers of `torch.optim`, whose functions it calls on each member's slices.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

__all__ = ["SGD", "AdamW"]

Decay = Annotated[float, Field(ge=0, lt=1)]
Schedule = Literal["constant", "linear", "cosine"]


def factor(step: int, steps: int, schedule: Schedule, warmup: float) -> float:
    """What the learning rate is multiplied by at ``step`` of ``steps``, from 0 to 1.

    It rises linearly over the first ``warmup`` (a share of the steps), then stays, or falls to 0
    linearly or along half a cosine.
    """
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    done = (step - rising) / max(1.0, steps - rising)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[
        schedule
    ]


class Optimizer(ABC):
    """State for each stacked parameter: ``slots`` tensors of its shape, zero at the start."""

    slots = 1

    def __init__(
        self, parameters: Sequence[Tensor], *, lr: Sequence[float], weight_decay: Sequence[float]
    ) -> None:
        self.lr, self.weight_decay = list(lr), list(weight_decay)
        self._bind(
            parameters, [[torch.zeros_like(p) for p in parameters] for _ in range(self.slots)]
        )
        device = parameters[0].device
        # One counter a tensor, not one a member: the fused update increments each that it is given.
        self.counts = [[torch.zeros((), device=device) for _ in parameters] for _ in self.lr]

    def _bind(self, parameters: Sequence[Tensor], state: list[list[Tensor]]) -> None:
        self.parameters, self.state = parameters, state

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update the parameters by their gradients, the learning rates times ``factor``."""
        for k, (lr, decay) in enumerate(zip(self.lr, self.weight_decay, strict=True)):
            gradients = [p.grad[k] for p in self.parameters if p.grad is not None]
            state = [[s[k] for s in slot] for slot in self.state]
            parameters = [p[k] for p in self.parameters]
            self._update(parameters, gradients, state, self.counts[k], lr * factor, decay)
        for p in self.parameters:
            p.grad = None

    @abstractmethod
    def _update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        state: list[list[Tensor]],
        counts: list[Tensor],
        lr: float,
        weight_decay: float,
    ) -> None:
        """Update one member in place; ``counts`` holds the number of its steps so far."""

    def keep(self, parameters: Sequence[Tensor], members: Tensor) -> None:
        """Go on with ``parameters``, those of the members at ``members`` (indices) alone."""
        self._bind(parameters, [[s[members] for s in slot] for slot in self.state])
        chosen = members.tolist()
        self.lr = [self.lr[k] for k in chosen]
        self.weight_decay = [self.weight_decay[k] for k in chosen]
        self.counts = [self.counts[k] for k in chosen]


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    slots = 2

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        lr: Sequence[float],
        weight_decay: Sequence[float],
        beta1: Decay = 0.9,
        beta2: Decay = 0.999,
        eps: PositiveFloat = 1e-8,
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def _update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        state: list[list[Tensor]],
        counts: list[Tensor],
        lr: float,
        weight_decay: float,
    ) -> None:
        adamw(
            parameters,
            gradients,
            state[0],
            state[1],
            [],
            counts,
            fused=True,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=lr,
            weight_decay=weight_decay,
            eps=self.eps,
            maximize=False,
        )


class SGD(Optimizer):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        lr: Sequence[float],
        weight_decay: Sequence[float],
        momentum: Decay = 0.9,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self.momentum, self.nesterov = momentum, nesterov and momentum > 0

    def _update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        state: list[list[Tensor]],
        counts: list[Tensor],  # noqa: ARG002
        lr: float,
        weight_decay: float,
    ) -> None:
        sgd(
            parameters,
            gradients,
            list(state[0]),
            fused=True,
            weight_decay=weight_decay,
            momentum=self.momentum,
            lr=lr,
            dampening=0,
            nesterov=self.nesterov,
            maximize=False,
        )
