"""Tensors in files that anybody wrote: of safetensors, or of torch.save without its code."""

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

DEEPEST = 4  # keys that lead to a state dict


def load(path: Path) -> Any:
    """What a file holds: tensors by their names, or whatever torch.save was given.

    Its first bytes say which: an archive, or a pickle; a header of JSON makes it safetensors.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or reading it would run code.
    """
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"PK\x03\x04") or (head.startswith(b"\x80") and head[8:] != b"{"):
        return _saved(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"not a readable safetensors file, nor of torch.save ({error})") from error


def _saved(path: Path) -> Any:
    try:
        with warnings.catch_warnings():  # that it may be TorchScript's, which is an error, too
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # each kind of damage has its own
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"its pickle calls {code[1]}, and reading it would run code, so it is not read; if "
                "you trust it, load it where it was made and save its tensors alone, as "
                "torch.save(model.state_dict(), FILE) does"
            ) from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"not a readable file of torch.save ({reason})") from error


def states(content: object, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The state dicts in what a file holds, each with the keys that lead to it."""
    if not isinstance(content, Mapping) or len(keys) > DEEPEST:
        return
    if all(isinstance(name, str) and isinstance(v, Tensor) for name, v in content.items()):
        yield ".".join(keys), dict(content)
        return
    for name, value in content.items():
        if isinstance(name, str):
            yield from states(value, (*keys, name))


def plain(state: dict[str, Tensor], wanted: Mapping[str, object]) -> dict[str, Tensor]:
    """A state dict under the ``wanted`` names, without what wrappers put before all of them.

    As it is if that makes no name one that is wanted. What torch.compile puts anywhere, and the
    count of torch's AveragedModel, fall away, too.

    Example:
        >>> plain({"module.net.0.weight": torch.zeros(3)}, {"0.weight": torch.zeros(3)})
        {'0.weight': tensor([0., 0., 0.])}
    """
    found = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    if len(found) < len(state):
        return state
    if "n_averaged" not in wanted:
        found.pop("n_averaged", None)
    while found.keys().isdisjoint(wanted):
        first = {name.partition(".")[0] for name in found}
        if len(first) != 1 or not all("." in name for name in found):
            return state
        found = {name.partition(".")[2]: value for name, value in found.items()}
    return found
