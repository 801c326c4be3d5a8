"""A logger, and what it is given: a run, its epochs and how it ended."""

import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.system import store

Row = Mapping[str, float]


@dataclass(frozen=True)
class RunInfo:
    """A run, as it is told to a logger when its first epoch is about to be trained.

    Attributes:
        name: the run's name, the same for the same config.
        directory: the run's own folder, absolute; those of a sweep's runs lie side by side.
        config: the run's config as a nested dict of plain values.
        seed: the student's seed.
        resume: whether what an earlier try told the tracker is to be continued (``resume=true``).
        rows: the rows of the epochs that the checkpoint holds, which are not trained again.
    """

    name: str
    directory: Path
    config: Mapping[str, Any]
    seed: int
    resume: bool
    rows: tuple[Row, ...] = ()


class Logger:
    """A logger of one run; any class with these methods is one.

    A yaml in ``conf/logger`` names the class by its ``_target_``, below a name of its own; the
    parameters of ``__init__`` are its keys, and their annotations check the values. It is made
    several times, and started once for each run. What ``__init__`` raises is a refusal before
    anything trains; what the other methods raise is a warning, and ends this logger for this run.

    Example:
        >>> class Printer(Logger):
        ...     def __init__(self, key: str) -> None:
        ...         self.key = key
        ...
        ...     def epoch(self, row):
        ...         print(row["epoch"], row[self.key])
        >>> Printer("train_loss").epoch({"epoch": 1, "train_loss": 0.5})
        1 0.5
    """

    def start(self, run: RunInfo) -> None:
        """Begin, before the first epoch that is trained.

        Args:
            run: what is about to be trained.
        """

    def epoch(self, row: Row) -> None:
        """Take the figures of an epoch: each epoch once, unless a kill came after it.

        Epochs after the last checkpoint of a process that was killed are trained, and told, again.

        Args:
            row: ``epoch`` (from 1) and the other columns of ``history.csv``: losses in nats,
                accuracies as shares of 1, errors as counts, and the learning rate ``lr``.
        """

    def end(self, result: Mapping[str, Any]) -> None:
        """End the run, after its last epoch and its result.

        Args:
            result: the content of ``result.json``. Its ``status`` is complete, diverged, stopped
                (by halving), failed or interrupted; ``reason`` says why, or is None.
        """


def need(package: str, extra: str) -> None:
    """Refuse a logger whose ``package`` is not installed.

    Args:
        package: the name by which it is imported.
        extra: the extra of distill-sweep that installs it.

    Raises:
        ImportError: it is not there; the text says how to install it.
    """
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"the package {package} is not installed; pip install 'distill-sweep[{extra}]'"
        )


def recall(run: RunInfo, tracker: str) -> str | None:
    """The name that the ``tracker`` gave to an earlier try of ``run``, if that is to be continued.

    Args:
        run: the run that starts.
        tracker: which tracker, as in `remember`.

    Returns:
        The name; None where the run begins anew.
    """
    if not run.resume:
        return None
    try:
        told = json.loads(_memory(run, tracker).read_text(encoding="utf-8"))
        return str(told["id"]) if told["run"] == run.name else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def remember(run: RunInfo, tracker: str, name: str) -> None:
    """Keep in the run's directory the ``name`` that a ``tracker`` gave to ``run``.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps({"run": run.name, "id": name})
    store.write_text(_memory(run, tracker), text + "\n", sync=False)


def _memory(run: RunInfo, tracker: str) -> Path:
    return run.directory / f"{tracker}.json"


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys and values of a nested config.

    Example:
        >>> dict(flat({"loss": {"alpha": 0.5}, "seed": 1}))
        {'loss.alpha': 0.5, 'seed': 1}
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
