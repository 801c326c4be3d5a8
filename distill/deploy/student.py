"""Trained students, for images as they come: pixels from 0 to 255 in, logits out.

Letters: B images, C classes, H and W an image's size.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from torch import Tensor, nn

from distill.config import ConfigError, Model, check_section
from distill.config.strict import changed_code
from distill.data.views import Numbers, spread
from distill.runs import results, summaries
from distill.runs.columns import Status
from distill.seeds import seeded
from distill.system import store
from distill.system.store import file_digest
from distill.teachers.weights import finite_weights
from distill.training.evaluate import EXAMPLES
from distill.training.inputs import normalisation, read
from distill.training.stack import Stack

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

CHOOSES = "val_errors"  # of a sweep's runs, the one with the fewest is loaded
Shape = tuple[int, ...]


class Student(nn.Module):
    """A trained model that takes inputs as they come, and normalises them as its training did.

    Args:
        model: from normalised images (B, channels, H, W), or features (B, D), to logits (B, C).
        shape: (channels, H, W) of an image, whose pixels are from 0 to 255, or (D,) of features.
        classes: C.
        mean: of pixels scaled to [0, 1], or of features; one number, or one for each channel or
            feature.
        std: of the same.
        name: what it is called.
        names: of the classes, if they have any.
        config: of the run that trained it, in plain values.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> student = Student(model, shape=(1, 2, 2), classes=3, mean=0.5, std=0.5)
        >>> student.predict(torch.full((7, 2, 2), 255, dtype=torch.uint8)).shape
        torch.Size([7])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        shape: Shape,
        classes: int,
        mean: Numbers,
        std: Numbers,
        name: str = "student",
        names: Sequence[str] = (),
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.shape, self.classes, self.name = model, shape, classes, name
        self.names = tuple(names)
        self.config = config or {}
        self.features = len(shape) == 1
        # Rounded as in `distill.data.views.Inputs`, by which it was trained.
        like = torch.empty(0, *shape)
        self.mean, self.std = spread(mean, like), spread(std, like)
        self.scale, self.shift = (
            value.float() if isinstance(value, Tensor) else value
            for value in (1 / (255 * self.std), -self.mean / self.std)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C), float32.

        Args:
            images: (B, channels, H, W), or (B, H, W) of one channel: uint8, or floats from 0 to 255
                (not from 0 to 1); or features (B, D), floats.

        Raises:
            ValueError: they have another shape, or are of another type.
        """
        if images.dim() == 3 and self.shape[0] == 1:
            images = images.unsqueeze(1)
        what = "features" if self.features else "images"
        if images.dim() != 1 + len(self.shape) or tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"{what} are {tuple(images.shape)}; wanted is {self.wanted}")
        pixels = images.dtype == torch.uint8 and not self.features
        if not pixels and not images.is_floating_point():
            raise ValueError(f"{what} are {_kind(images)}; wanted is {self.wanted}")
        if self.features:
            x = ((images.double() - self.mean) / self.std).float()
        else:
            x = images.to(torch.float32) * self.scale + self.shift
        found = self.model(x)
        logits: Tensor = found[0] if isinstance(found, tuple) else found
        return logits

    @property
    def wanted(self) -> str:
        """What images must be, in words."""
        if self.features:
            return f"(B, {self.shape[0]}), floats"
        channels, height, width = self.shape
        flat = f" or (B, {height}, {width})" * (channels == 1)
        return f"(B, {channels}, {height}, {width}){flat}, uint8 or floats, from 0 to 255"

    def predict(self, images: Tensor | ArrayLike, batch_size: int = EXAMPLES) -> Tensor:
        """The class (B,) of each image, int64.

        Args:
            images: as `forward` takes them, in a tensor or in what NumPy makes an array of.
            batch_size: how many are looked at at once.

        Raises:
            ValueError: as `forward`.
        """
        return self.logits(images, batch_size).argmax(-1)

    def probabilities(self, images: Tensor | ArrayLike, batch_size: int = EXAMPLES) -> Tensor:
        """The probability (B, C) of each class, at temperature 1; else as `predict`."""
        return self.logits(images, batch_size).softmax(-1)

    @torch.no_grad()
    def logits(self, images: Tensor | ArrayLike, batch_size: int = EXAMPLES) -> Tensor:
        """Logits (B, C) in evaluation mode and in batches; else as `predict`."""
        if not isinstance(images, Tensor):
            images = torch.from_numpy(np.array(images))
        most = float(images.max()) if images.is_floating_point() and images.numel() else 255
        if not self.features and 0 < most <= 1:
            log.warning("pixels are at most %g, where 0 to 255 are wanted", most)
        device = next(self.parameters()).device
        training = self.training
        self.eval()
        try:
            return torch.cat([self(part.to(device)) for part in torch.split(images, batch_size)])
        finally:
            self.train(training)


def _kind(images: Tensor) -> str:
    return str(images.dtype).removeprefix("torch.")


def load(path: Path, best: str | None = None, kind: str = "last") -> Student:
    """The student of the run at ``path``; of several runs below it, the best by a column.

    ``kind`` is one of `distill.runs.results.KEPT`.

    Raises:
        ConfigError: as `distill.load`.
    """
    if kind not in results.KEPT:
        raise ConfigError(f"weights={kind}: allowed are {', '.join(results.KEPT)}")
    directory = path if (path / results.RESULT).exists() else _best(path, best)
    result, model = trained(directory)
    weights = _weights(directory, result["files"], kind)
    if not {"shape", "normalisation"} <= {*result}:  # earlier versions do not say it
        data = check_section("data", result["config"]["data"])
        found = {"shape": read(data).shape, "classes": read(data).classes}
        result = {**found, "normalisation": normalisation(data), **result}
    shape, classes = tuple(result["shape"]), result["classes"]
    mean, std = result["normalisation"]
    build, file = model.bare, directory / results.KEPT[kind]
    student = Student(
        _model(lambda: build(inputs=shape, classes=classes), weights, file),
        shape=shape,
        classes=classes,
        mean=mean,
        std=std,
        name=str(result["run"]),
        names=result.get("class_names") or (),
        config=result["config"],
    )
    return student.eval()


def trained(directory: Path) -> tuple[dict[str, Any], Model]:
    """The result of the complete run in ``directory``, and its model, as its config describes it.

    A warning says where the model's code is another than that which was trained.

    Raises:
        ConfigError: its result cannot be read, or is that of a run without a student.
    """
    try:
        result = results.read(directory / results.RESULT)
        status, reason, *_ = [result[key] for key in ("status", "reason", "run", "files")]
        told, sources = result["config"]["model"], {**(result.get("sources") or {})}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"{directory}: no complete run lies there") from error
    except OSError as error:
        raise ConfigError(f"{directory}: {store.told(error) or error}") from error
    except results.DAMAGED as error:
        raise ConfigError(f"{directory}: {results.RESULT} is damaged") from error
    if status != Status.COMPLETE:
        raise ConfigError(f"{directory}: it has no student, since it is {status}: {reason}")
    try:
        model: Model = check_section("model", told)
    except ConfigError as error:
        lines = [f"{directory}: {line}" for line in str(error).splitlines()]
        raise ConfigError("\n".join(lines)) from error
    if changed := changed_code(model, sources):
        text = (
            "%s: code of your own (%s) is not that which it was trained with; its errors may differ"
        )
        log.warning(text, directory, ", ".join(changed))
    return result, model


def _weights(directory: Path, files: dict[str, str], kind: str) -> dict[str, Tensor]:
    path = directory / results.KEPT[kind]
    if kind != "last" and path.name not in files:
        key = results.ASKED[kind]
        raise ConfigError(f"{directory}: weights={kind}: it kept none; a run with {key} does")
    try:
        if file_digest(path) != files.get(path.name):
            raise ConfigError(f"{path} is damaged, or not what the run wrote; run it again")
        return finite_weights(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(store.told(error) or f"{path}: {error}") from error


def _model(build: Callable[[], nn.Module], weights: dict[str, Tensor], file: Path) -> nn.Module:
    """One model with the ``weights``, which are all its parameters and buffers."""
    stack = Stack(build, 1, 0, torch.device("cpu"), mapped=False)
    try:
        stack.load([weights])
    except ValueError as error:
        raise ConfigError(f"{file.parent}: {file.name}: {error}") from error
    with seeded(0, torch.device("cpu")), torch.no_grad():
        model = build()  # another one than the stack's, which may have hooks
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, value in stack.tensors.items():
            own[name].copy_(value[0])
    return model


def _best(folder: Path, best: str | None) -> Path:
    """The directory of the best complete run below ``folder``.

    Raises:
        ConfigError: there is none, or nothing that chooses one.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; give that of a run or a sweep")
    frame = summaries.summary(folder)
    done = frame[frame["status"].eq(Status.COMPLETE)] if len(frame) else frame
    if done.empty:
        raise ConfigError(f"{folder}: no complete run lies there; give the folder of one, or more")
    if len(done) == 1 and best is None:
        return folder / str(done["directory"].iloc[0])
    column = best or CHOOSES
    figures = _figures(done)
    if column not in figures:
        allowed = ", ".join(figures)
        hint = "" if best else "; the test set should choose nothing: better, set data.validation"
        what = f"best={best}" if best else f"best: {len(done)} runs have no {CHOOSES} to choose by"
        raise ConfigError(f"{folder}: {what}; allowed are {allowed}{hint}")
    sign = -1 if column.endswith("accuracy") else 1
    ranks = [sign * done[column].astype(float)]
    if column == CHOOSES:  # of equal counts, the one that is surer
        ranks.append(done["val_loss"].astype(float))
    order = sorted(range(len(done)), key=lambda n: [_last(rank.iloc[n]) for rank in ranks])
    return folder / str(done["directory"].iloc[order[0]])


def _figures(done: "pd.DataFrame") -> list[str]:
    """The columns that may choose a run: what was measured of its student."""
    ends = ("_errors", "_accuracy", "_loss", "parameters", "multiply_adds", "seconds")
    every = [str(name) for name in done.columns]
    names = [name for name in every if name.endswith(ends) and not name.startswith("teacher_")]
    return [name for name in names if done[name].notna().any()]


def _last(value: float) -> float:
    """A number to sort by; what is missing comes last."""
    return value if value == value else float("inf")
