"""What `distill-evaluate RUN [RUN ...]` does: evaluate the weights of runs again."""

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from torch import Tensor

from distill.cli.explain import explain
from distill.config import ConfigError, Run, parse
from distill.runs import results
from distill.system.conf import CONF
from distill.teachers.weights import finite_weights, take
from distill.training.build import fresh
from distill.training.evaluate import evaluate
from distill.training.inputs import device_of, normalisation, normalised, read


def _data(name: str) -> DictConfig:
    """The composed section of the data set ``name``."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF)):
        section: DictConfig = compose("config", [f"data={name}"]).data
    return section


def _config(directory: Path) -> tuple[DictConfig, Run]:
    """The config of the run in ``directory``, as composed and as checked.

    Raises:
        ConfigError: it cannot be read, or does not describe a run.
    """
    path = directory / ".hydra" / "config.yaml"
    try:
        config = OmegaConf.load(path)
    except Exception as error:  # each kind of damage has its own
        reason = " ".join(str(error).split())
        sweep = any(directory.glob(f"*/{results.RESULT}"))
        hint = f"; of a sweep, give its runs: {directory}/*" if sweep else ""
        raise ConfigError(
            f"RUN={directory}: not the directory of a complete run ({reason}){hint}"
        ) from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"RUN={directory}: {path} is not the config of a run")
    decides = [str(key) for key in config if key != "logger"]  # whose code need not be at hand
    try:
        return config, parse(OmegaConf.masked_copy(config, decides))
    except ConfigError as error:
        lines = [f"RUN={directory}: {line}" for line in str(error).splitlines()]
        raise ConfigError("\n".join(lines)) from error


def _recorded(directory: Path, kind: str) -> int | None:
    """The test errors in the result of a run; None if it was not tested (test=false).

    They are those of its weights of a ``kind``.

    Raises:
        ConfigError: there is no result, or it is damaged.
    """
    try:
        column = "test_errors" if kind == "last" else f"{kind}_test_errors"
        errors: int | None = results.read(directory / results.RESULT).get(column)
    except (OSError, ValueError, RecursionError) as error:
        reason = f"{results.RESULT} is missing or damaged"
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            reason = f"{results.RESULT} cannot be read ({error.strerror})"
        raise ConfigError(f"RUN={directory}: {reason}") from error
    return errors


def rescore(
    directory: Path, data: DictConfig | None = None, kind: str = "last"
) -> tuple[Tensor, int]:
    """Test errors of each class (C,) of the student in ``directory``, and the number of images.

    Its weights are of a ``kind`` of `results.KEPT`. With ``data``, a section, on the test set of
    that; its images are read as the run read its own.

    Raises:
        ConfigError: the directory does not hold a complete run, or its files do not fit.
    """
    config, trained = _config(directory)
    file = directory / results.KEPT[kind]
    if (directory / results.WEIGHTS).exists() and not file.exists():
        key = results.ASKED[kind]
        raise ConfigError(f"RUN={directory}: --weights {kind}: it kept none; one with {key} does")
    try:
        weights = finite_weights(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"RUN={directory}: not the directory of a complete run ({error})"
        ) from error
    except ValueError as error:
        raise ConfigError(f"RUN={directory}: {file.name}: {error}") from error
    if data is not None:
        recorded = results.read(directory / results.RESULT).get("normalisation")
        mean, std = recorded or normalisation(trained.data)
        config.data = OmegaConf.merge(data, {"mean": mean, "std": std})
    run = parse(config)
    dataset, device = read(run.data), device_of(run)
    stack = fresh(run.model.bare, dataset, "model", 1, 0, device)
    try:
        take(stack, weights, run.data, f" on data={run.data.name}")
    except ValueError as error:
        raise ConfigError(f"RUN={directory}: {error}") from error
    images = dataset.test_inputs.to(device)
    reading = normalised(run.data, images)
    return evaluate(stack, reading, dataset.test_labels.to(device))[0][0], len(images)


def show(runs: Sequence[Path], name: str | None, kind: str = "last") -> None:
    """Print errors, accuracy and errors per class of each run, on data ``name`` or the run's own.

    Raises:
        SystemExit: a run cannot be evaluated, or its errors differ from those recorded.
    """
    try:
        data = None if name is None else _data(name)
        scores = [(run, *rescore(run, data, kind)) for run in runs]
        recorded = {} if data is not None else {run: _recorded(run, kind) for run in runs}
    except Exception as error:
        sys.exit(explain(error))
    table = Table()
    for column in ("run", "errors", "accuracy", "errors per class"):
        table.add_column(column, overflow="fold")
    differ = []
    for run, errors, count in scores:
        total = int(errors.sum())
        by_class = " ".join(map(str, errors.tolist()))
        table.add_row(run.resolve().name, str(total), f"{1 - total / count:.2%}", by_class)
        if recorded.get(run) not in (None, total):
            differ.append(str(run))
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    if differ:
        sys.exit(
            f"errors differ from {results.RESULT} in {', '.join(differ)}: the code, the data or "
            "the weights are others by now"
        )
