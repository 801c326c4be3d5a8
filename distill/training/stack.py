"""A stack: K members of one architecture, trained and evaluated at once.

Letters: K members, B examples in a batch, D inputs, W hidden units, C classes.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call

from distill.models.dropout import Dropout
from distill.models.mlp import MLP
from distill.seeds import seeded
from distill.training.features import observed
from distill.training.mapping import each

# Matrix units read rows in whole tiles, of at most 64 bytes, and multiply what lies beyond the
# end by 0. Where that is the next member's, which may not be finite, the product is not either.
TILE = 32


def _overruns(convolution: nn.Conv2d) -> bool:
    """Whether oneDNN, with channels last, writes past its buffer to find this one's gradient.

    It does so (3.12, AVX2) where a strided 1 x 1 convolution has fewer channels than a register has
    numbers, which are 16 at most.
    """
    strided = {*convolution.kernel_size} == {1} and {*convolution.stride} != {1}
    return strided and convolution.in_channels // convolution.groups < 16


def _is_plain_mlp(module: nn.Module) -> bool:
    """Whether a module is the MLP just as it was written, which `Stack` has a faster way for."""
    if type(module) is not MLP or "forward" in vars(module):
        return False
    kinds = {nn.ModuleList: 2, nn.Linear: len(module.dropouts), Dropout: len(module.dropouts)}
    parts = list(module.modules())[1:]
    layers = range(len(module.dropouts))
    names = [f"layers.{i}.{kind}" for i in layers for kind in ("weight", "bias")]
    return (
        Counter(type(part) for part in parts) == kinds
        and [name for name, p in module.named_parameters() if p.requires_grad] == names
        and not any(
            value for part in [module, *parts] for n, value in vars(part).items() if "_hooks" in n
        )
    )


def applied(
    module: nn.Module,
    parameters: dict[str, Tensor],
    buffers: dict[str, Tensor],
    *arguments: Any,
    **named: Any,
) -> Any:
    """What a module returns with these tensors in the place of its own.

    Its buffers are changed in place, also where it puts others in their place.
    """
    own = {**parameters, **buffers}
    found = functional_call(module, own, arguments, named)
    for name, buffer in buffers.items():
        if own[name] is not buffer:
            buffer.copy_(own[name])
    return found


def called(
    module: nn.Module, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor
) -> Any:
    """What a model returns with these tensors, the first of several things: its logits."""
    found = applied(module, parameters, buffers, x)
    return found[0] if isinstance(found, tuple) else found


class Stack:
    """K members with the same initialisation, their parameters stacked along a leading axis.

    ``build`` makes one member on the CPU, from torch's global generator, which is seeded with
    ``seed`` for the call and put back after it. ``parameters`` are float32 (K, ...); ``leaves``,
    while it is trained, are what gradients are taken of: the parameters themselves, or copies in
    another type. ``buffers`` (K, ...) are what else belongs to a member: the buffers of its module,
    and the parameters that need no gradient. Members that are not ``mapped`` are called one after
    another; a plain MLP has a way of its own, which is faster than both. Those with float buffers,
    which a narrow type would spoil, keep float32 leaves; one after another, torch's autocast casts
    their products; mapped, which it is not made for, they are float32 throughout.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        members: int,
        seed: int,
        device: torch.device,
        *,
        mapped: bool = True,
    ) -> None:
        with seeded(seed, torch.device("cpu")):
            self.module = build()
        self.module.to(device)
        own: dict[str, Tensor] = {}
        frozen = dict(self.module.named_buffers())
        for name, parameter in self.module.named_parameters():
            (own if parameter.requires_grad else frozen)[name] = parameter
        self.parameters = {n: torch.stack([v.detach()] * members) for n, v in own.items()}
        self.buffers = {n: torch.stack([v.detach()] * members) for n, v in frozen.items()}
        self.leaves: dict[str, Tensor] = {}
        self.noise: list[Generator] = []
        self.fast = _is_plain_mlp(self.module)
        self.mapped = mapped
        # In which a CPU's convolutions, one member after another, are faster (bench/LOG.md).
        convolutions = [part for part in self.module.modules() if isinstance(part, nn.Conv2d)]
        last = bool(convolutions) and not mapped and not any(map(_overruns, convolutions))
        self.format = torch.channels_last if last else torch.contiguous_format
        floats = {n: b for n, b in self.buffers.items() if b.is_floating_point()}
        self.mixed = bool(floats)
        self.bounded = {*own} | {n for n, b in floats.items() if b.isfinite().all()}

    @property
    def members(self) -> int:
        """K, the number of members."""
        return len(next(iter(self.parameters.values())))

    @property
    def size(self) -> int:
        """The number of parameters of one member."""
        names = {name for name, _ in self.module.named_parameters()}
        tensors = [*self.parameters.items(), *self.buffers.items()]
        return sum(value[0].numel() for name, value in tensors if name in names)

    def trainable(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Leaves in ``dtype``, which whoever changes the parameters keeps equal to them."""
        self.leaves = {n: p.requires_grad_() for n, p in self._copies(dtype).items()}
        return self.leaves

    def _copies(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The parameters in ``dtype``; the rows of an MLP's first weights are whole tiles apart."""
        kept = torch.float32 if self.mixed else dtype
        copies = {name: value.detach().to(kept) for name, value in self.parameters.items()}
        if self.fast and dtype.itemsize == 2:
            weight = copies["layers.0.weight"]
            inputs = weight.shape[-1]
            copies["layers.0.weight"] = F.pad(weight, (0, -inputs % TILE))[..., :inputs]
        return copies

    def train(self, noise: Generator) -> None:
        """Turn to training; dropout draws its masks, the same for all members, from ``noise``."""
        self.module.train()
        self.noise = [noise]
        for module in self.module.modules():
            if isinstance(module, Dropout):
                module.generator = noise

    def eval(self) -> None:
        """Turn to evaluation: no dropout."""
        self.module.eval()

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (K, B, C) of images (B, channels, H, W) which all members share.

        Products are made in the type of ``x``.
        """
        return self._mlp(x) if self.fast else self.generic(x)

    def _cast(self, dtype: torch.dtype) -> dict[str, Tensor]:
        if self.leaves and (self.mixed or next(iter(self.leaves.values())).dtype == dtype):
            return self.leaves
        return self._copies(dtype)

    def generic(self, x: Tensor) -> Tensor:
        """The same for any module, by mapping it over the members, or calling it for each."""
        logits: Tensor = self._each(x, lambda call: call())
        return logits

    def observed(self, x: Tensor, names: Sequence[str] | None) -> tuple[Tensor, list[Tensor]]:
        """Logits (K, B, C), and features (K, B, ...) of the modules of these names (`observed`).

        A plain MLP is called as any other module then, to the same logits.
        """
        logits, features = self._each(x, partial(observed, self.module, names))
        return logits, [*features]

    def _each(self, x: Tensor, run: Callable[[Callable[[], Any]], Any]) -> Any:
        """What ``run`` returns for each member, whose logits the call that it is given makes."""

        def member(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Any:
            return run(lambda: called(self.module, parameters, buffers, x))

        tensors = (self._cast(x.dtype), self.buffers)
        noise = self.noise if self.module.training else []
        narrow = x.dtype
        if self.mixed:
            x = x.float()
        if x.ndim == 4:
            x = x.contiguous(memory_format=self.format)
        with torch.autocast(
            x.device.type,
            dtype=narrow,
            enabled=self.mixed and not self.mapped and narrow != torch.float32,
            cache_enabled=False,
        ):
            return each(member, tensors, self.members, mapped=self.mapped, noise=noise)

    def _mlp(self, x: Tensor) -> Tensor:
        """The same for the MLP: one product for the first layer of all members, then batched.

        The examples are the last axis throughout: so no product needs a transposed copy, and the
        loss runs over the classes with all examples side by side.
        """
        module, parameters = self.module, self._cast(x.dtype)
        assert isinstance(module, MLP)
        weights, biases = (
            [parameters[f"layers.{i}.{kind}"] for i in range(len(module.layers))]
            for kind in ("weight", "bias")
        )
        first, *others = module.dropouts
        assert isinstance(first, Dropout)
        x = first(x.flatten(1))
        # The gradient of the first weights is a product over the examples, so they are padded, too.
        ragged = weights[0].requires_grad and x.element_size() == 2 and len(x) % TILE
        tiles = F.pad(x, (0, 0, 0, -len(x) % TILE)) if ragged else x
        h = torch.mm(weights[0].flatten(0, 1), tiles.T).view(*biases[0].shape, -1)  # (K, W, B)
        h = h[..., : len(x)] + biases[0].unsqueeze(2)
        for dropout, weight, bias in zip(others, weights[1:], biases[1:], strict=True):
            assert isinstance(dropout, Dropout)
            h = F.relu_(h)
            if dropout.active:
                h = h * dropout.mask(h.shape[1:], h)
            h = torch.baddbmm(bias.unsqueeze(2), weight, h)
        return h.mT

    @torch.no_grad()
    def constrain_(self) -> None:
        """Project the parameters as the module asks for, if it does."""
        constrain = getattr(self.module, "constrain_", None)
        if constrain is not None and constrain(self.parameters) is not False:
            self.refresh()

    @torch.no_grad()
    def finite(self) -> Tensor:
        """A mask (K,) of the members whose parameters, and buffers that once were, are finite."""
        largest = [
            torch.linalg.vector_norm(p.reshape(len(p), -1), torch.inf, dim=1)
            for name, p in self.tensors.items()
            if name in self.bounded
        ]
        return torch.stack(largest).isfinite().all(0)

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the leaves equal to the parameters again."""
        for name, leaf in self.leaves.items():
            leaf.copy_(self.parameters[name])

    def keep(self, members: Tensor) -> None:
        """Let all members leave but those at ``members`` (indices)."""
        self.parameters = {n: p.detach()[members] for n, p in self.parameters.items()}
        self.buffers = {n: b[members] for n, b in self.buffers.items()}
        if self.leaves:
            self.trainable(next(iter(self.leaves.values())).dtype)

    def only(self, members: Tensor) -> "Stack":
        """A stack of those at ``members`` (indices), with tensors of their own."""
        stack = copy.copy(self)
        stack.keep(members)
        return stack

    def joined(self, others: "Iterable[Stack]") -> "Stack":
        """A stack of the members of this one and of ``others`` of its architecture."""
        stacks = [self.tensors, *(other.tensors for other in others)]
        return self.holding({n: torch.cat([s[n].detach() for s in stacks]) for n in self.tensors})

    def holding(self, tensors: Mapping[str, Tensor]) -> "Stack":
        """A stack of this architecture with other ``tensors`` (K, ...), to be evaluated.

        Buffers that are not among them are those of this one.
        """
        stack = copy.copy(self)
        stack.parameters = {name: tensors[name] for name in self.parameters}
        stack.buffers = {n: tensors.get(n, buffer) for n, buffer in self.buffers.items()}
        stack.leaves = {}
        return stack

    def state(self, member: int) -> dict[str, Tensor]:
        """The parameters and buffers of one member, on the CPU, as its module names them."""
        return {n: v.detach()[member].cpu().contiguous() for n, v in self.tensors.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters and buffers (K, ...), in the order in which the module names them."""
        own = self.parameters | self.buffers
        names = [name for name, _ in self.module.named_parameters()]
        return {name: own[name] for name in dict.fromkeys([*names, *own])}

    @torch.no_grad()
    def load(self, states: Iterable[dict[str, Tensor]]) -> None:
        """Take the parameters and buffers of each member from ``states``.

        Raises:
            ValueError: a name or shape differs from the module's.
        """
        for member, state in enumerate(states):
            wanted = {name: list(value.shape[1:]) for name, value in self.tensors.items()}
            found = {name: list(value.shape) for name, value in state.items()}
            for name in [*wanted, *found]:
                if wanted.get(name) != found.get(name):
                    raise ValueError(
                        f"parameter {name} has shape {found.get(name, 'none')}, "
                        f"the model wants {wanted.get(name, 'none')}"
                    )
            for name, value in state.items():
                own = self.tensors[name]
                if own.is_floating_point() != value.is_floating_point():
                    raise ValueError(f"parameter {name} has type {value.dtype}, not {own.dtype}")
                own[member] = value.to(own)
        self.refresh()
