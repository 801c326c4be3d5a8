"""Soft targets in files: what anything said of the training examples, and perhaps of the test set.

Letters: N training examples, V views of each, C classes, R rows of a file.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from distill.config import ConfigError, Data
from distill.config import Teacher as TeacherConfig
from distill.data.dataset import Dataset
from distill.data.views import Inputs
from distill.system import arrays, store
from distill.training.inputs import held_out, read

log = logging.getLogger(__name__)

FLOOR = 1e-12  # of probabilities, whose logarithms are taken; its own is -27.6
SUM = 1e-3  # how far from 1 the probabilities of an example may sum
SIGMAS = 3  # what is no more than so many deviations above chance may be chance


@dataclass(frozen=True, eq=False)
class Targets:
    """A teacher of whom only soft targets are known, (N, C) or (N, V, C) in ``logits``.

    Those of the test set are in ``test_logits``, if the file has them.
    """

    digest: str
    test_errors: int | None
    logits: Tensor
    test_logits: Tensor | None

    def soft_targets(self, inputs: Inputs) -> Tensor:
        """The logits (N, V, C) for each view of ``inputs``; where one serves all, in its memory."""
        logits = self.logits.to(inputs.raw.device)
        if logits.ndim == 3:
            return logits
        if inputs.views > 1:
            log.info("the same soft targets serve each of the %d views of an example", inputs.views)
        return logits.unsqueeze(1).expand(-1, inputs.views, -1)


def find_targets(data: Data, teacher: TeacherConfig, digest: str) -> Targets:
    """The soft targets of a config whose teacher has this ``digest``, with a look at their order.

    Raises:
        ConfigError: as `check_targets`.
    """
    train, test = _read(data, teacher)
    dataset = read(data)
    found = (train if train.ndim == 2 else train.mean(1)).argmax(-1)
    _look(found, dataset.train_labels, dataset.classes, str(teacher.path))
    errors = None if test is None else int((test.argmax(-1) != dataset.test_labels).sum())
    return Targets(digest, errors, train, test)


def check_targets(data: Data, teacher: TeacherConfig, views: int) -> int:
    """See that a file has soft targets of each training example, in the student's ``views``.

    Returns the bytes that they take.

    Raises:
        ConfigError: it cannot be read, or has others.
    """
    train, _ = _read(data, teacher)
    if train.ndim == 3 and train.shape[1] != views:
        key = "data.jitter, data.flip and views" if views > 1 else "this data"
        raise ConfigError(
            f"teacher.path={teacher.path}: it has soft targets of {train.shape[1]} views, and "
            f"{key} make{'s' * (views == 1)} {views}; give those, or (N, C) for all views alike"
        )
    return train.nbytes


def _read(data: Data, teacher: TeacherConfig) -> tuple[Tensor, Tensor | None]:
    """Checked logits of the training examples, (N, C) or (N, V, C), and of the test set, if any."""
    paths = [Path(str(teacher.path)), *([Path(teacher.test_path)] if teacher.test_path else [])]
    return _checked(data, teacher, tuple(map(store.stamp, paths)))


@lru_cache(maxsize=2)
def _checked(
    data: Data,
    teacher: TeacherConfig,
    stamps: object,  # noqa: ARG001  (of the files, which are read again once they changed)
) -> tuple[Tensor, Tensor | None]:
    dataset = read(data)
    held = int(held_out(data).sum())
    classes = [*(dataset.names or map(str, range(dataset.classes)))]
    parts: dict[str, Tensor] = {}
    for key, given in (("path", teacher.path), ("test_path", teacher.test_path)):
        if given is None:
            continue
        try:
            found = _named(arrays.read(Path(str(given)), classes), key == "test_path")
            if key == "test_path" and "test" in parts:
                raise ValueError("teacher.path holds an array test, too; leave one of them out")
            for part, value in found.items():
                _check_shape(value, part, dataset, data.name, held)
                parts[part] = _logits(value, teacher.kind)
        except (OSError, ValueError) as error:
            reason = store.told(error) or " ".join(str(error).split())
            raise ConfigError(f"teacher.{key}={given}: {reason}") from error
    return parts["train"], parts.get("test")


def _named(found: Mapping[str, Tensor], test: bool) -> dict[str, Tensor]:
    """The arrays train and, perhaps, test of a file, or of one of the ``test`` set that alone.

    An array that is alone is that.
    """
    if test:
        if len(found) > 1 and "test" not in found:
            raise ValueError(f"it has arrays of {', '.join(sorted(found))}; wanted is test")
        return {"test": found["test"] if len(found) > 1 else next(iter(found.values()))}
    if len(found) == 1:
        [(name, value)] = found.items()
        if name == "test":
            raise ValueError("it has an array test alone; wanted is train")
        return {"train": value}
    if {*found} != {"train", "test"}:
        names = ", ".join(sorted(found)) or "no name"
        raise ValueError(f"it has arrays of {names}; wanted are train and, if there is one, test")
    return dict(found)


def _check_shape(value: Tensor, part: str, dataset: Dataset, name: str, held: int) -> None:
    """Raises ValueError: there is not a row for each example, or a number for each class."""
    training = part == "train"
    wanted = len(dataset.train_labels if training else dataset.test_labels)
    rows, what = (value.shape[0] if value.ndim else 0), "training" if training else "test"
    both = f"({wanted}, {dataset.classes})" + training * f", or ({wanted}, V, {dataset.classes})"
    if value.ndim != 2 and not (training and value.ndim == 3):
        raise ValueError(f"its {part} is {tuple(value.shape)}; wanted is {both}")
    if rows != wanted:
        few = training and held and rows == wanted - held
        why = f": the {held} that data.validation holds out need theirs, too" if few else ""
        raise ValueError(
            f"its {part} has {rows} rows, data={name} has {wanted} {what} examples, in whose order "
            f"they must be{why}"
        )
    if value.shape[-1] != dataset.classes:
        raise ValueError(
            f"its {part} has {value.shape[-1]} columns, data={name} has {dataset.classes} classes"
        )
    if not (finite := value.isfinite()).all():
        place = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"its {part} holds {value[tuple(place)].item():g} in row {place[0]}, counted from 0; "
            "wanted are numbers that float32 holds"
        )


def _logits(value: Tensor, kind: str) -> Tensor:
    """Finite numbers of a ``kind`` as logits; probabilities below `FLOOR` as if they were that.

    Raises:
        ValueError: they are no probabilities, or are though they should be logits.
    """
    near = (value.sum(-1, dtype=torch.float64) - 1).abs() <= SUM
    if kind == "logits":
        if near.all() and (value >= 0).all():
            raise ValueError(
                "each row is positive and sums to 1, so it holds probabilities; set "
                "teacher.kind=probabilities"
            )
        return value
    if (low := (value < 0).flatten(1).any(1)).any():
        row = int(low.nonzero()[0])
        raise ValueError(
            f"its row {row}, counted from 0, holds {value[row].min().item():g}, which is no "
            "probability; for logits set teacher.kind=logits"
        )
    if not near.all():
        row = int((~near).nonzero()[0, 0])
        total = value[row].sum(-1).flatten()[0].item()
        raise ValueError(
            f"its row {row}, counted from 0, sums to {total:g}, not to 1; for logits set "
            "teacher.kind=logits"
        )
    return value.clamp(min=FLOOR).log_()


def _look(classes: Tensor, labels: Tensor, count: int, path: str) -> None:
    """Warn if what a file says is right no more often than if its rows were in another order."""
    shares = [part.bincount(minlength=count) / len(labels) for part in (classes, labels)]
    chance = float(shares[0] @ shares[1])
    right = int((classes == labels).sum()) / len(labels)
    if right <= chance + SIGMAS * math.sqrt(chance * (1 - chance) / len(labels)):
        log.warning(
            "teacher.path=%s: its largest values agree with %.1f %% of the training labels, as by "
            "chance (%.1f %%); its rows may be in another order than the training examples",
            path,
            100 * right,
            100 * chance,
        )
