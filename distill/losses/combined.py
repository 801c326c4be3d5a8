"""Several losses at once."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distill.losses.mixing import weighed

Part = tuple[Callable[..., Any], frozenset[str]]


class Learned(nn.Module):
    """What several losses learn, by their names.

    Args:
        parts: by its name the class of each one's parameters, and what its constructor asks for.
        given: that, for all of them, or as ``terms.NAME.KEY``.
    """

    def __init__(self, parts: Mapping[str, Part], **given: Any) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        for name, (make, asks) in parts.items():
            own = {key: f"terms.{name}.{key}" for key in asks}
            values = {key: given[place if place in given else key] for key, place in own.items()}
            try:
                self.parts[name] = make(**values)
            except Exception as error:
                raise ValueError(f"terms.{name}: {type(error).__name__}: {error}") from error

    def forward(self, name: str, *args: Any, **named: Any) -> Any:
        """What the parameters of the loss of that ``name`` make of what it gives them."""
        return self.parts[name](*args, **named)


def sum(  # noqa: A001 (as a config says it)
    parts: Mapping[str, Part], student_logits: Tensor, **given: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of losses times their weights, of which one of weight 0 counts as 0.

    Where a loss couples the examples of a batch, the others' values are averaged, and the sum has
    one value.

    Args:
        parts: by its name each loss, and what it takes of the ``given``.
        student_logits: (B, C).
        given: what losses can be given, and by ``terms.NAME.KEY`` their hyperparameters; of each
            one that is its ``weight``.

    Returns:
        (B,) or (), and its terms: NAME, the value of each loss, and NAME_TERM, those of its own.

    Raises:
        ValueError: a loss fails; or two terms have one name.

    Example:
        >>> from distill.losses import hard, mse, sum
        >>> z, v, labels = torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0])
        >>> parts = {"ce": (hard, frozenset({"labels"}))}
        >>> parts["near"] = (mse, frozenset({"teacher_logits", "labels"}))
        >>> weights = {"terms.ce.weight": 2.0, "terms.near.weight": 1.0, "terms.near.alpha": 1.0}
        >>> sum(parts, z, teacher_logits=v, labels=labels, **weights)[0]
        tensor([2.3863])
    """
    values: dict[str, Tensor] = {}
    terms: dict[str, Tensor] = {}
    weights: dict[str, Any] = {}
    for name, (loss, takes) in parts.items():
        start = f"terms.{name}."
        own = {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
        weights[name] = own.pop("weight")
        taken = {key: given[key] for key in takes if key in given}
        if "learned" in taken:
            taken["learned"] = partial(given["learned"], name)
        try:
            found = loss(student_logits=student_logits, **taken, **own)
        except Exception as error:
            raise ValueError(f"terms.{name}: {type(error).__name__}: {error}") from error
        value, parts_of_it = found if isinstance(found, tuple) else (found, {})
        values[name] = value
        named = {name: value} | {f"{name}_{key}": term for key, term in parts_of_it.items()}
        if twice := sorted(terms.keys() & named.keys()):
            raise ValueError(f"terms.{name}: {twice[0]} names two terms; rename one of the losses")
        terms |= named
    if any(value.ndim == 0 for value in values.values()):
        values = {name: value.mean() for name, value in values.items()}
    whole = [weighed(weights[name], value) for name, value in values.items()]
    return torch.stack(whole).sum(0), terms
