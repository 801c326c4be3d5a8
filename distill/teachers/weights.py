"""Weights in files: read, checked, and taken by a stack of one."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from distill.config import Component, ConfigError, Data, Teacher
from distill.config.errors import shown
from distill.config.strict import changed_code
from distill.system import store, tensors
from distill.system.conf import CONF
from distill.teachers import misfits
from distill.training.build import fresh
from distill.training.inputs import normalisation, read
from distill.training.stack import Stack

log = logging.getLogger(__name__)

CHANNELS = 4  # whose numbers a line can show


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Raises ValueError: tensors hold numbers that are not finite in float32, or are no arrays."""
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise ValueError(f"parameter {name} is not a dense tensor; save its plain values")
        if value.is_floating_point() and not value.float().isfinite().all():
            raise ValueError(f"parameter {name} has values that are not finite in float32")


def finite_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        OSError, SafetensorError: it cannot be read.
        ValueError: they hold numbers that are not finite.
    """
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"there is no file {path}")
    state: dict[str, Tensor] = load_file(path)
    check_finite(state)
    return state


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
    key = f"teacher.path={teacher.path}"
    assert teacher.model is not None
    given = Path(str(teacher.path))
    try:
        if given.is_dir():
            _check_run(given, teacher.model, data)
        stack = fresh(teacher.model, read(data), "teacher.model", 1, 0, torch.device("cpu"))
        return _fitting(tensors.load(file(given)), stack, data)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {store.told(error) or error}") from error


def check_weights(data: Data, teacher: Teacher) -> None:
    """Raises ConfigError as `teacher_weights` does, which need not be read for each of many."""
    path = Path(str(teacher.path))
    result = store.stamp(path / store.RESULT)
    _checked(data, teacher, (store.stamp(file(path)), result))


@lru_cache(maxsize=64)
def _checked(data: Data, teacher: Teacher, stamps: object) -> None:  # noqa: ARG001
    teacher_weights(data, teacher)


def file(path: Path) -> Path:
    """The file of weights that a ``path`` names: that of a run, if it is a directory."""
    return path / store.WEIGHTS if path.is_dir() else path


def content(teacher: Teacher) -> str:
    """The digest of the content of all files that a teacher is read from.

    Raises:
        OSError: one cannot be read.
    """
    given = teacher.path if isinstance(teacher.path, list) else [str(teacher.path)]
    paths = [*given, *([teacher.test_path] if teacher.test_path is not None else [])]
    digests = [store.known_digest(file(Path(path))) for path in paths]
    return digests[0] if len(digests) == 1 else store.digest(digests)


def _check_run(directory: Path, model: Component, data: Data) -> None:
    """See that a run's weights are whole, and those of a ``model`` that reads ``data``.

    As far as its result tells: the model, the numbers by which inputs are normalised, the classes.

    Raises:
        OSError: it has none, or its result cannot be read.
        ValueError: they are damaged, or its model was another one.
    """
    weights = directory / store.WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(f"there is no file {weights}; give the directory of a complete run")
    try:
        with store.naming(directory / store.RESULT):
            result = json.loads((directory / store.RESULT).read_text(encoding="utf-8"))
        theirs, digest = dict(result["config"]["model"]), str(result["files"][store.WEIGHTS])
        name, reading = str(result["model"]), result.get("normalisation")
        classes, sources = result.get("class_names"), {**(result.get("sources") or {})}
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return  # the weights speak for themselves
    if digest != store.file_digest(weights):
        raise ValueError(f"{weights} is damaged, or not what the run wrote; run it again")
    ours = model.model_dump(by_alias=True)
    files = {key.removeprefix("model.") for key in result.get("places") or ()}
    # What it began from decides nothing any more, nor what a loss saw of it.
    for key in model.begun_from | files | {"features"}:
        theirs.pop(key, None)
        ours.pop(key, None)
    if "_target_" in theirs and (others := _other(name, theirs, ours)):
        raise ValueError(f"its run had another model; set {' '.join(others)}")
    if changed := changed_code(model, sources):
        _tell_changed(directory, ", ".join(changed))
    if reading is not None and (keys := _reading(reading, normalisation(data))):
        raise ValueError(f"its run read inputs by other numbers; set {' '.join(keys)}")
    both = zip_longest(classes or (), read(data).names, fillvalue="none")
    differ = [(k, pair) for k, pair in enumerate(both) if pair[0] != pair[1]]
    if classes and read(data).names and differ:
        k, (before, now) = differ[0]
        raise ValueError(
            f"its run had other classes: number {k} was {before}, in data={data.name} it is {now}; "
            f"if they mean the same, give its weights alone, {directory / store.WEIGHTS}"
        )


@cache
def _tell_changed(directory: Path, names: str) -> None:
    """Say, once, that a teacher's code is another than that which was trained."""
    log.warning(
        "teacher.path=%s: code of your own (%s) is not that which its run was trained with, so it "
        "may say other things",
        directory,
        names,
    )


def _pasted(key: str, value: Any) -> str:
    """An override, as a shell takes it; of many numbers, where they stand."""
    if not isinstance(value, list):
        return f"{key}={shown(value)}"
    if len(value) > CHANNELS:
        return f"{key} to its normalisation in {store.RESULT}"
    return f"'{key}=[{','.join(map(str, value))}]'"


def _reading(theirs: Sequence[Any], ours: Sequence[Any]) -> list[str]:
    """The overrides by which a mean and a deviation are a run's, where they are not yet."""
    pairs = zip(("mean", "std"), theirs, ours, strict=True)
    return [_pasted(f"data.{name}", value) for name, value, now in pairs if not _alike(value, now)]


def _alike(theirs: Any, ours: Any) -> bool:
    """Whether numbers, or one for all of them, are equal but for the last digits of statistics."""
    try:
        return bool(np.allclose(theirs, ours, rtol=1e-6, atol=0))
    except ValueError:  # of another number of channels
        return False


def _other(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """The overrides by which the teacher's model is the one of a ``name``, if it is not yet."""
    if (target := theirs["_target_"]) != ours["_target_"]:
        yamls = {path.stem: path.read_text() for path in sorted((CONF / "model").glob("*.yaml"))}
        of_it = [stem for stem, text in yamls.items() if f"_target_: {target}\n" in text]
        own = name if name in yamls else [*of_it, target.rpartition(".")[2].lower()][0]
        said = yaml.safe_load(yamls.get(own, "{}"))
        keys = [k for k, v in theirs.items() if k != "_target_" and (k not in said or said[k] != v)]
        group = f"model@teacher.model={own}"
        return [group, *(f"teacher.model.{key}={shown(theirs[key])}" for key in keys)]
    differ = [key for key in theirs if key in ours and theirs[key] != ours[key]]
    return [f"teacher.model.{key}={shown(theirs[key])}" for key in differ]


def _fitting(content: object, stack: Stack, data: Data) -> dict[str, Tensor]:
    """The state dict in what a file holds that a stack of one for ``data`` can take.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = {where: _adapted(state, stack) for where, state in tensors.states(content)}
    if not found:
        raise ValueError("it holds no state dict; save one: torch.save(model.state_dict(), FILE)")
    wanted = {name: value.shape[1:] for name, value in stack.tensors.items()}
    fit = [
        w for w, s in found.items() if {name: value.shape for name, value in s.items()} == wanted
    ]
    if len(fit) > 1:
        raise ValueError(
            f"several state dicts in it fit, {', '.join(fit)}; save alone the one that is meant"
        )
    state = found[fit[0] if fit else max(found, key=lambda where: len(found[where]))]
    check_finite(state)
    take(stack, state, data, "; set teacher.model to its architecture")
    return state


def _adapted(state: dict[str, Tensor], stack: Stack) -> dict[str, Tensor]:
    """A state dict under a stack's names; BatchNorm's count, which decides nothing, may lack."""
    own = tensors.plain(state, stack.tensors)
    if own.keys().isdisjoint(stack.tensors):
        return own
    counts = {n: b[0] for n, b in stack.buffers.items() if n.endswith("num_batches_tracked")}
    return counts | own
