"""What `distill-evaluate RUN [RUN ...]` does: evaluate the weights of runs again."""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from torch import Tensor

from distill.cli import modules
from distill.cli.explain import explain
from distill.config import ConfigError, Data, Model, check_section, plain
from distill.deploy import student
from distill.runs import results
from distill.system.conf import CONF
from distill.teachers.weights import finite_weights, take
from distill.training.build import fresh
from distill.training.evaluate import evaluate
from distill.training.inputs import normalisation, normalised, read

log = logging.getLogger(__name__)

# Keys of data by which test images are not changed, or not as they are to be.
ASIDE = ("mean", "std", "jitter", "flip", "test_jitter", "validation")
FITTED = ("size", "channels")  # keys by which pictures are made what a model reads


def _data(given: Sequence[str], own: Sequence[Path] = ()) -> dict[str, Any]:
    """The composed section of a data set: the first of ``given`` is its name, then come its keys.

    It may have a yaml in folders of one's ``own``.

    Raises:
        ConfigError: what follows the name are not keys of data, or such as change nothing here.
    """
    from hydra import compose, initialize_config_dir

    name, *keys = given
    for key in keys:
        what = key.lstrip("+").partition("=")[0]
        if not what.startswith("data."):
            form = "after its name come its keys, data.KEY=VALUE, and RUN comes before --data"
            raise ConfigError(f"--data {name}: {key}: {form}")
        if what.removeprefix("data.") in ASIDE:
            why = "test images stay as they are, normalised as those of the run were; leave it out"
            raise ConfigError(f"{key}: {why}")
    modules.tell_unread(own)
    with initialize_config_dir(str(CONF)):
        return plain(compose("config", [modules.searched(own), f"data={name}", *keys]).data)


def _of(directory: Path, error: ConfigError, hint: str = "") -> ConfigError:
    """An error of the run in ``directory``, which each of its lines then begins with."""
    own = (line.removeprefix(f"{directory}: ") for line in str(error).splitlines())
    return ConfigError("\n".join(f"RUN={directory}: {line}{hint}" for line in own))


def _trained(directory: Path) -> tuple[dict[str, Any], Model]:
    """The result of a run, and its model.

    Raises:
        ConfigError: as `student.trained`, or ``directory`` is that of a sweep.
    """
    try:
        return student.trained(directory)
    except ConfigError as error:
        sweep = any(directory.glob(f"*/{results.RESULT}"))
        hint = f"; of a sweep, give its runs: {directory}/*/" if sweep else ""
        raise _of(directory, error, hint) from error


def _tested(directory: Path, result: dict[str, Any], data: Mapping[str, Any] | None) -> Data:
    """The section of what a run is tested on: its own data, or ``data``, made what it reads.

    Raises:
        ConfigError: its own data cannot be read, or inputs have another shape.
    """
    own = result["config"]["data"]
    if data is None:
        try:
            found: Data = check_section("data", own)
            read(found)
        except ConfigError as error:
            raise _of(directory, error, "; other data are given by --data") from error
    else:
        mean, std = result.get("normalisation") or normalisation(check_section("data", own))
        alike = own["_target_"] == data["_target_"]
        fitted = {k: own[k] for k in FITTED if alike and k in own and data.get(k) is None}
        found = check_section("data", {**data, **fitted, "mean": mean, "std": std})
    shape = read(found).shape
    wanted = tuple(result.get("shape", shape))
    if shape != wanted:
        theirs, ours = (" x ".join(map(str, sides)) for sides in (shape, wanted))
        reads = f"it reads inputs of {ours}, data={found.name} has {theirs}"
        raise ConfigError(f"RUN={directory}: {reads}{_fitting(found, shape, wanted)}")
    return found


def _fitting(data: Data, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """The keys that make inputs what a model reads, where data have such."""
    channels, *sides = wanted
    size = sides[0] if len({*sides}) == 1 else f"[{','.join(map(str, sides))}]"
    values = {"size": (size, [*shape[1:]] != sides), "channels": (channels, shape[0] != channels)}
    keys = [f"data.{k}={v}" for k, (v, differs) in values.items() if differs and k in data.options]
    return f"; set {' '.join(keys)}" if sides and keys else ""


def rescore(
    directory: Path, data: Mapping[str, Any] | None = None, kind: str = "last"
) -> tuple[Tensor, int, int | None]:
    """Errors of the student in ``directory`` on each class (C,), and the number of images.

    Then come the errors that its result has; None if it was not tested. Its weights are of a
    ``kind`` of `results.KEPT`. With ``data``, a section, errors are those on the test set of that,
    and there are none to compare with; its images are normalised as the run's own.

    Raises:
        ConfigError: the directory does not hold a complete run, or its files do not fit.
    """
    result, model = _trained(directory)
    file = directory / results.KEPT[kind]
    if kind != "last" and file.name not in result["files"]:
        key = results.ASKED[kind]
        raise ConfigError(f"RUN={directory}: --weights {kind}: it kept none; one with {key} does")
    try:
        weights = finite_weights(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"RUN={directory}: {file.name}: {error}") from error
    section = _tested(directory, result, data)
    dataset = read(section)
    cuda = result.get("device") == "cuda" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    stack = fresh(model.bare, dataset, "model", 1, 0, device)
    try:
        take(stack, weights, section, f" on data={section.name}")
    except ValueError as error:
        raise ConfigError(f"RUN={directory}: {error}") from error
    names = [", ".join(own) for own in (result.get("class_names") or (), dataset.names)]
    if all(names) and names[0] != names[1]:
        text = "%s: its classes are %s; those of data=%s, taken in this order, are %s"
        log.warning(text, directory, names[0], section.name, names[1])
    images, labels = dataset.test_inputs.to(device), dataset.test_labels.to(device)
    column = "test_errors" if kind == "last" else f"{kind}_test_errors"
    recorded: int | None = result.get(column) if data is None else None
    return evaluate(stack, normalised(section, images), labels)[0][0], len(images), recorded


def show(
    runs: Sequence[Path], data: Sequence[str], kind: str = "last", own: Sequence[Path] = ()
) -> None:
    """Print errors, accuracy and errors per class of each run.

    They are on its own data, or on those of a name and keys, which may have a yaml in folders of
    one's ``own``.

    Raises:
        SystemExit: runs cannot be evaluated, which does not keep others from it; or the errors of
            some differ from those recorded.
    """
    table, differ = Table(), []
    lines: dict[str, None] = {}
    for column in ("run", "errors", "accuracy", "errors per class"):
        table.add_column(column, overflow="fold")
    try:
        section = _data(data, own) if data else None
    except Exception as error:
        sys.exit(explain(error))
    for run in runs:
        try:
            errors, count, recorded = rescore(run, section, kind)
        except Exception as error:
            lines |= dict.fromkeys(explain(error).splitlines())  # a line of all is told once
            continue
        total = int(errors.sum())
        by_class = " ".join(map(str, errors.tolist()))
        table.add_row(run.resolve().name, str(total), f"{1 - total / count:.2%}", by_class)
        if recorded not in (None, total):
            differ.append(str(run))
    if table.rows:
        (Console() if sys.stdout.isatty() else Console(width=200)).print(table)
    if differ:
        line = f"errors differ from {results.RESULT} in {', '.join(differ)}"
        lines[f"{line}: the code, the data or the weights are others by now"] = None
    if lines:
        sys.exit("\n".join(lines))
