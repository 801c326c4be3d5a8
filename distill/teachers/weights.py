"""Weights in files: read, checked, and taken by a stack of one."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distill.config import ConfigError, Data, Teacher
from distill.teachers import misfits
from distill.training.build import fresh
from distill.training.inputs import read
from distill.training.stack import Stack


def finite_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        OSError, SafetensorError: it cannot be read.
        ValueError: they hold numbers that are not finite.
    """
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"there is no file {path}")
    tensors: dict[str, Tensor] = load_file(path)
    for name, value in tensors.items():
        if value.is_floating_point() and not value.float().isfinite().all():
            raise ValueError(f"parameter {name} has values that are not finite in float32")
    return tensors


def take(stack: Stack, state: dict[str, Tensor], data: Data, remedy: str) -> None:
    """Let a stack of one for ``data`` take the weights of a ``state``.

    ``remedy`` ends the line about those of another architecture.

    Raises:
        ValueError: they are those of another architecture, or for other data.
    """
    try:
        stack.load([state])
    except ValueError as error:
        wanted = {name: list(value.shape[1:]) for name, value in stack.parameters.items()}
        names = stack.tensors if state.keys() == stack.tensors.keys() else state
        found = {n: list(v.shape) for n, v in state.items() if names is state or n in wanted}
        dataset = read(data)
        why = misfits.misfit(found, wanted, data.name, dataset.shape, dataset.classes)
        raise ValueError(why or f"{error}{remedy}") from error


def teacher_weights(data: Data, teacher: Teacher) -> dict[str, Tensor]:
    """The weights in ``teacher.path``, which fit ``teacher.model``.

    Raises:
        ConfigError: the file cannot be read, or holds the weights of another architecture.
    """
    path, key = Path(str(teacher.path)), f"teacher.path={teacher.path}"
    try:
        state = finite_weights(path)
    except (OSError, SafetensorError) as error:
        instead = f", {what}" if (what := misfits.pickled(path)) else f" ({error})"
        raise ConfigError(f"{key}: not a readable safetensors file{instead}") from error
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error
    assert teacher.model is not None
    stack = fresh(teacher.model, read(data), "teacher.model", 1, 0, torch.device("cpu"))
    try:
        take(stack, state, data, "; set teacher.model to its architecture")
    except ValueError as error:
        why = misfits.wrapped(path, [*state]) or str(error)
        raise ConfigError(f"{key}: {why}") from error
    return state
