"""Features: what modules within a model return, taken while the model is called.

A module is named as `torch.nn.Module.named_modules` names it. Letters: B examples in a batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

Shape = tuple[int, ...]
Found = TypeVar("Found")

MANY = 40  # names of modules that a line can show


def observed(
    module: nn.Module, names: Sequence[str] | None, call: Callable[[], Found]
) -> tuple[Found, list[Tensor]]:
    """What ``call`` returns, and what the modules of these ``names`` returned within it, (B, ...).

    Without names, it is the input of the last linear layer: the penultimate features.

    Args:
        module: of which these are parts; it is not changed.
        names: of modules.
        call: calls the module once.

    Raises:
        ValueError: there is no such module, or it is not called once, or returns no tensor.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))
        >>> logits, features = observed(model, ["1"], lambda: model(torch.zeros(5, 1, 2, 2)))
        >>> logits.shape, [feature.shape for feature in features]
        (torch.Size([5, 3]), [torch.Size([5, 2])])
    """
    parts = {n: part for n, part in module.named_modules() if n}
    places = [_last_linear(parts)] if names is None else list(names)
    if unknown := [name for name in places if name not in parts]:
        raise ValueError(f"it has no module {unknown[0]}; allowed are {_listed(list(parts))}")
    seen: list[list[Any]] = [[] for _ in places]

    def enters(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen[0].append(_kept(given[0] if given else named.get("input")))

    hooks = []
    for place, calls in zip(places, seen, strict=True):
        if names is None:
            hooks.append(parts[place].register_forward_pre_hook(enters, with_kwargs=True))
        else:
            hooks.append(parts[place].register_forward_hook(_leaves(calls)))
    try:
        found = call()
    finally:
        for hook in hooks:
            hook.remove()
    for place, calls in zip(places, seen, strict=True):
        if len(calls) != 1:
            raise ValueError(f"its module {place} is called {len(calls)} times; wanted is once")
        if not isinstance(calls[0], Tensor) or not calls[0].is_floating_point():
            raise ValueError(f"its module {place} makes {type(calls[0]).__name__}, no floats (B,)")
    return found, [calls[0] for calls in seen]


def shapes(module: nn.Module, names: Sequence[str] | None, x: Tensor) -> tuple[Shape, ...]:
    """The shapes of the features for inputs ``x`` (B, ...), without their axis of B.

    Raises:
        ValueError: as `observed`, or they have no such axis.
    """
    _, found = observed(module, names, lambda: module(x))
    for feature in found:
        if feature.ndim < 2 or len(feature) != len(x):
            what = tuple(feature.shape)
            raise ValueError(f"features are {what} of {len(x)} inputs; wanted is ({len(x)}, ...)")
    return tuple(tuple(feature.shape[1:]) for feature in found)


def _leaves(calls: list[Any]) -> Callable[..., None]:
    def hook(_: nn.Module, __: object, out: Any) -> None:
        calls.append(_kept(out))

    return hook


def _kept(value: Any) -> Any:
    """The value, the first of several, as it is now: what comes next may change it in place."""
    first = value[0] if isinstance(value, tuple) and value else value
    return first.clone() if isinstance(first, Tensor) else first


def _last_linear(parts: dict[str, nn.Module]) -> str:
    linear = [name for name, part in parts.items() if isinstance(part, nn.Linear)]
    if not linear:
        raise ValueError(f"it has no linear layer; name modules among {_listed(list(parts))}")
    return linear[-1]


def _listed(names: list[str]) -> str:
    """The names, in a line; of many, those that stand in no other."""
    if len(names) <= MANY:
        return ", ".join(names)
    return f"{', '.join(name for name in names if '.' not in name)}, and modules within them"
