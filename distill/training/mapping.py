"""A function of one member, called for all members of a stack.

Letters: K members.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

Tree = Tensor | Mapping[str, "Tree"] | Sequence["Tree"]


def each(
    function: Callable[..., Any],
    arguments: Sequence[Tree],
    members: int,
    *,
    mapped: bool,
    noise: Sequence[Generator] = (),
) -> Any:
    """What ``function`` returns for each of K members, along a leading axis.

    Random numbers are the same for all members: so a member's do not hang on its neighbours.

    Args:
        function: takes a member's part of each argument; returns a tensor, or a tuple of tensors,
            and of lists and dictionaries of tensors.
        arguments: tensors (K, ...), of which the first has one, and lists and dictionaries of such.
        members: K.
        mapped: all at once, by `torch.vmap`; else one after another.
        noise: the generators that the function draws from, beside torch's own.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> each(torch.sum, [x], 2, mapped=False)
        tensor([3., 7.])
    """
    if mapped:
        return torch.vmap(function, randomness="same")(*arguments)
    generators = [torch.default_generator, *noise]
    if (device := _device(arguments[0])).type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    states = [generator.get_state() for generator in generators]
    # Unbound once, since the gradient of a slice would be as large as the whole.
    parts = [_unbound(argument) for argument in arguments]
    found = []
    for k in range(members):
        if k > 0:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
        found.append(function(*(part(k) for part in parts)))
    return _stacked(found)


def mappable(trial: Callable[[], object]) -> bool:
    """Whether torch can map what a ``trial`` does, and has a rule for each of its operations.

    Where it has none, it calls the operation for one member after another, and warns once.
    """
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trial()
    except Exception:  # of what fails unmapped, too, its contract says so
        return False
    finally:
        torch.set_warn_always(before)
    return True


def _device(tree: Tree) -> torch.device:
    if isinstance(tree, Tensor):
        return tree.device
    return _device(next(iter(tree.values() if isinstance(tree, Mapping) else tree)))


def _unbound(tree: Tree) -> Callable[[int], Any]:
    if isinstance(tree, Tensor):
        return tree.unbind(0).__getitem__
    if isinstance(tree, Mapping):
        named = {name: _unbound(part) for name, part in tree.items()}
        return lambda k: {name: part(k) for name, part in named.items()}
    several = [_unbound(part) for part in tree]
    return lambda k: [part(k) for part in several]


def _stacked(found: Sequence[Any]) -> Any:
    first = found[0]
    if isinstance(first, Tensor):
        return torch.stack(list(found))
    if isinstance(first, Mapping):
        return {name: _stacked([one[name] for one in found]) for name in first}
    return tuple(_stacked([one[n] for one in found]) for n in range(len(first)))
