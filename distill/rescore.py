"""`distill-evaluate RUN [RUN ...]`: evaluate the weights of runs again."""

import argparse
import json
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distill.config import ConfigError, parse
from distill.data.views import Images
from distill.evaluate import evaluate
from distill.job import device_of, fresh, read
from distill.naming import CONF
from distill.results import RESULT, WEIGHTS


def _data(name: str) -> DictConfig:
    """The composed section of the data set ``name``."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF)):
        section: DictConfig = compose("config", [f"data={name}"]).data
    return section


def rescore(directory: Path, data: DictConfig | None = None) -> tuple[Tensor, int]:
    """Test errors of each class (C,) of the student in ``directory``, and the number of images.

    With ``data``, a section, on the test set of that; its images are read as the run read its own.

    Raises:
        ConfigError: the directory does not hold a complete run, or its files do not fit.
    """
    try:
        config = OmegaConf.load(directory / ".hydra" / "config.yaml")
        weights = load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"RUN={directory}: not the directory of a complete run ({error})"
        ) from error
    assert isinstance(config, DictConfig)
    trained = parse(config)
    if data is not None:
        config.data = OmegaConf.merge(data, {"mean": trained.data.mean, "std": trained.data.std})
    run = parse(config)
    dataset, device = read(run.data), device_of(run)
    stack = fresh(run.model, dataset, "model", 1, 0, device)
    try:
        stack.load([weights])
    except ValueError as error:
        raise ConfigError(f"RUN={directory}: {error} on data={run.data.name}") from error
    images = dataset.test_images.to(device)
    reading = Images(images, jitter=0, mean=run.data.mean, std=run.data.std)
    return evaluate(stack, reading, dataset.test_labels.to(device))[0][0], len(images)


def main() -> None:
    """Print errors, accuracy and errors per class of each run; exit code 1 if one differs."""
    parser = argparse.ArgumentParser(
        prog="distill-evaluate", description="Evaluate the students of runs again on the test set."
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run's directory")
    parser.add_argument("--data", metavar="NAME", help="another data set, as in data=NAME")
    arguments = parser.parse_args()
    from distill.explain import explain

    try:
        data = _data(arguments.data) if arguments.data else None
        scores = [(run, *rescore(run, data)) for run in arguments.runs]
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
        if data is None and total != json.loads((run / RESULT).read_text())["test_errors"]:
            differ.append(str(run))
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    if differ:
        sys.exit(f"errors differ from {RESULT} in {', '.join(differ)}")
