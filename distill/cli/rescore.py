"""What `distill-evaluate RUN [RUN ...]` does: evaluate the weights of runs again."""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from torch import Tensor

from distill.cli import modules
from distill.cli.explain import explain
from distill.config import ConfigError, Run, check, plain
from distill.deploy import student
from distill.runs import results
from distill.system.conf import CONF
from distill.teachers.weights import finite_weights, take
from distill.training.build import fresh
from distill.training.evaluate import evaluate
from distill.training.inputs import device_of, normalisation, normalised, read

log = logging.getLogger(__name__)


def _data(given: Sequence[str], own: Sequence[Path] = ()) -> dict[str, Any]:
    """The composed section of a data set: the first of ``given`` is its name, then come its keys.

    It may have a yaml in folders of one's ``own``.

    Raises:
        ConfigError: what follows the name are not keys of data, or says how pixels are normalised.
    """
    from hydra import compose, initialize_config_dir

    name, *keys = given
    for key in keys:
        if not key.lstrip("+").startswith("data."):
            form = "after its name come its keys, data.KEY=VALUE, and RUN comes before --data"
            raise ConfigError(f"--data {name}: {key}: {form}")
        if key.lstrip("+").startswith(("data.mean=", "data.std=")):
            raise ConfigError(f"{key}: it is that with which a student was trained; leave it out")
    modules.tell_unread(own)
    with initialize_config_dir(str(CONF)):
        return plain(compose("config", [modules.searched(own), f"data={name}", *keys]).data)


def _trained(directory: Path) -> tuple[dict[str, Any], Run]:
    """The result of a run, and the run.

    Raises:
        ConfigError: as `student.trained`, or ``directory`` is that of a sweep.
    """
    try:
        return student.trained(directory)
    except ConfigError as error:
        sweep = any(directory.glob(f"*/{results.RESULT}"))
        hint = f"; of a sweep, give its runs: {directory}/*" if sweep else ""
        lines = [f"RUN={line}{hint}" for line in str(error).splitlines()]
        raise ConfigError("\n".join(lines)) from error


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
    result, run = _trained(directory)
    file = directory / results.KEPT[kind]
    if kind != "last" and file.name not in result["files"]:
        key = results.ASKED[kind]
        raise ConfigError(f"RUN={directory}: --weights {kind}: it kept none; one with {key} does")
    try:
        weights = finite_weights(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"RUN={directory}: {file.name}: {error}") from error
    column = "test_errors" if kind == "last" else f"{kind}_test_errors"
    recorded: int | None = result.get(column) if data is None else None
    if data is not None:
        mean, std = result.get("normalisation") or normalisation(run.data)
        # Some keys of a run want the split that it was trained with, which the test set is not of.
        reading = {"mean": mean, "std": std, "validation": run.data.validation}
        config = {"teacher": student.NO_TEACHER, **result["config"], "data": {**data, **reading}}
        run = check(config)
    dataset, device = read(run.data), device_of(run)
    stack = fresh(run.model.bare, dataset, "model", 1, 0, device)
    try:
        take(stack, weights, run.data, f" on data={run.data.name}")
    except ValueError as error:
        raise ConfigError(f"RUN={directory}: {error}") from error
    names = [", ".join(own) for own in (result.get("class_names") or (), dataset.names)]
    if all(names) and names[0] != names[1]:
        text = "%s: its classes are %s; those of data=%s, taken in this order, are %s"
        log.warning(text, directory, names[0], run.data.name, names[1])
    images = dataset.test_inputs.to(device)
    labels = dataset.test_labels.to(device)
    return evaluate(stack, normalised(run.data, images), labels)[0][0], len(images), recorded


def show(
    runs: Sequence[Path], data: Sequence[str], kind: str = "last", own: Sequence[Path] = ()
) -> None:
    """Print errors, accuracy and errors per class of each run.

    They are on its own data, or on those of a name and keys, which may have a yaml in folders of
    one's ``own``.

    Raises:
        SystemExit: a run cannot be evaluated, or its errors differ from those recorded.
    """
    try:
        section = _data(data, own) if data else None
        scores = [(run, *rescore(run, section, kind)) for run in runs]
    except Exception as error:
        sys.exit(explain(error))
    table = Table()
    for column in ("run", "errors", "accuracy", "errors per class"):
        table.add_column(column, overflow="fold")
    differ = []
    for run, errors, count, recorded in scores:
        total = int(errors.sum())
        by_class = " ".join(map(str, errors.tolist()))
        table.add_row(run.resolve().name, str(total), f"{1 - total / count:.2%}", by_class)
        if recorded not in (None, total):
            differ.append(str(run))
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    if differ:
        sys.exit(
            f"errors differ from {results.RESULT} in {', '.join(differ)}: the code, the data or "
            "the weights are others by now"
        )
