"""A data set in memory: its content, its checks, its validation split.

Letters: N examples, C classes, H and W an image's size, D features.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from distill import transfer

PARTS = ("training inputs", "training labels", "test inputs", "test labels")
WANTED = "wanted is uint8 (N, H, W) or (N, channels, H, W), or floats (N, features)"


@dataclass(frozen=True)
class Dataset:
    """Inputs to train and to test on, and their labels.

    Args:
        train_inputs: images, uint8 (N, channels, H, W), or features, floats (N, D).
        train_labels: int64 (N,), from 0 to C - 1.
        test_inputs: of the same kind and size.
        test_labels: likewise.
        held: a mask (N,) of the training examples that the data set itself gives as a validation
            split, if it does.
        names: of the C classes, if they have any.
    """

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    held: Tensor | None = None
    names: tuple[str, ...] = field(default=())

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, H, W) of an image, or (D,) of features."""
        return tuple(self.train_inputs.shape[1:])

    @property
    def features(self) -> bool:
        """Whether the inputs are rows of numbers, and no images."""
        return self.train_inputs.is_floating_point()

    @cached_property
    def classes(self) -> int:
        """C, the number of classes."""
        return int(self.train_labels.max()) + 1

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the content."""
        sha = hashlib.sha256()
        for part in fields(self):
            if isinstance(tensor := getattr(self, part.name), Tensor):
                sha.update(repr((tensor.dtype, tensor.shape)).encode())
                sha.update(tensor.contiguous().numpy().data)
        return sha.hexdigest()

    def known(self, digest: str) -> "Dataset":
        """The same, whose ``digest`` was computed when it was written where it was read."""
        vars(self)["digest"] = digest  # where cached_property looks
        return self

    @cached_property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel (of pixels from 0 to 1), or feature.

        They are those of the training inputs; a deviation of 0, by which nothing can be divided,
        is given as 1.
        """
        inputs = self.train_inputs
        if self.features:
            mean, std = inputs.double().mean(0), inputs.double().std(0, correction=0)
        else:  # by counting, so that no sum is rounded, nor a copy made of all pixels
            level = torch.arange(256, dtype=torch.float64) / 255
            counts = torch.stack(
                [inputs[:, c].flatten().bincount(minlength=256) for c in range(inputs.shape[1])]
            ).double()
            share = counts / counts.sum(1, keepdim=True)
            mean = share @ level
            std = (share @ level.square() - mean.square()).clamp(min=0).sqrt()
        return mean.tolist(), std.masked_fill(std == 0, 1).tolist()

    def validation(self, share: float | str, generator: Generator) -> Tensor:
        """A mask (N,) of ``share`` of each training class, or of its own split if that is "given".

        Raises:
            ValueError: it gives no split of its own.
        """
        if isinstance(share, str):
            if self.held is None:
                raise ValueError("it has no validation split of its own; give a share, such as 0.1")
            return self.held
        if share == 0:
            return torch.zeros_like(self.train_labels, dtype=torch.bool)
        return transfer.fraction(self.train_labels, generator, fraction=share)

    def without_held(self) -> "Dataset":
        """The same without the examples of its own validation split."""
        if self.held is None:
            return self
        kept = ~self.held
        inputs, labels = self.train_inputs[kept], self.train_labels[kept]
        return replace(self, train_inputs=inputs, train_labels=labels, held=None)


def joined(
    inputs: Mapping[str, Tensor], labels: Mapping[str, Tensor], names: tuple[str, ...] = ()
) -> Dataset:
    """The data set of the parts "training", "test" and, if there is one, "validation".

    The last is its own validation split, at the end of its training examples.

    Raises:
        ValueError: the inputs to validate on have another size than those to train on.

    Example:
        >>> rows, label = torch.zeros(2, 3), torch.tensor([0, 1])
        >>> parts = ("training", "validation", "test")
        >>> joined(dict.fromkeys(parts, rows), dict.fromkeys(parts, label)).held
        tensor([False, False,  True,  True])
    """
    ends = inputs["test"], labels["test"]
    if "validation" not in inputs:
        return Dataset(inputs["training"], labels["training"], *ends, names=names)
    own, more = inputs["training"], inputs["validation"]
    if own.shape[1:] != more.shape[1:]:
        sizes = f"{tuple(own.shape[1:])} and {tuple(more.shape[1:])}"
        raise ValueError(f"its training and validation inputs have different sizes, {sizes}")
    held = torch.arange(len(own) + len(more)) >= len(own)
    both = torch.cat([labels["training"], labels["validation"]])
    return Dataset(torch.cat([own, more]), both, *ends, held=held, names=names)


Source = Callable[..., Any]


def load(source: Source, **options: object) -> Dataset:
    """The data set of ``source``.

    Args:
        source: returns a `Dataset`, or its first four fields as a tuple.
        options: what it is called with.

    Raises:
        OSError: a file is missing or cannot be read or downloaded.
        ValueError: a file's content, or what the source returns, is not what it should be.
    """
    found = source(**options)
    if isinstance(found, tuple):
        if len(found) != len(PARTS):
            raise ValueError(f"it must return {len(PARTS)} tensors: {', '.join(PARTS)}")
        found = Dataset(*found)
    if not isinstance(found, Dataset):
        raise ValueError(f"it must return {len(PARTS)} tensors: {', '.join(PARTS)}")
    _check_tensors(found)
    _check_labels(found)
    if found.train_inputs.ndim != 3:
        return found
    # Images have an axis of channels.
    train, test = (inputs.unsqueeze(1) for inputs in (found.train_inputs, found.test_inputs))
    return replace(found, train_inputs=train, test_inputs=test)


def _is(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _check_tensors(data: Dataset) -> None:
    """Raises ValueError: these are no inputs and labels that a student could be trained on."""
    values = (data.train_inputs, data.train_labels, data.test_inputs, data.test_labels)
    for name, tensor in zip(PARTS, values, strict=True):
        if not isinstance(tensor, Tensor) or tensor.device.type != "cpu":
            kind = f"on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"its {name} are {kind}; a tensor on the CPU is wanted")
    for name, inputs in zip(PARTS[::2], values[::2], strict=True):
        floats = inputs.is_floating_point() and inputs.ndim == 2
        images = inputs.dtype == torch.uint8 and inputs.ndim in (3, 4)
        if not (floats or images) or not inputs.numel():
            raise ValueError(f"its {name} are {_is(inputs)}; {WANTED}")
        if floats and not (finite := inputs.float().isfinite()).all():
            row, column = (~finite).nonzero()[0].tolist()
            raise ValueError(
                f"its {name} hold {inputs[row, column].item():g} in row {row}, column {column}, "
                "counted from 0; wanted are numbers that float32 holds"
            )
    train, test = data.train_inputs, data.test_inputs
    if train.shape[1:] != test.shape[1:] or train.is_floating_point() != test.is_floating_point():
        raise ValueError(
            "its training and test inputs have different sizes, "
            f"{tuple(train.shape[1:])} and {tuple(test.shape[1:])}"
            if train.shape[1:] != test.shape[1:]
            else "its training and test inputs are of different kinds: "
            f"{_is(train)} and {_is(test)}"
        )
    held = data.held
    if held is not None and (held.dtype != torch.bool or held.shape != train.shape[:1]):
        raise ValueError(f"its held is {_is(held)}; wanted is bool ({len(train)},), a mask")


def _check_labels(data: Dataset) -> None:
    """Raises ValueError: labels are not classes from 0, each with a training example."""
    pairs = (
        ("training", data.train_inputs, data.train_labels),
        ("test", data.test_inputs, data.test_labels),
    )
    for part, inputs, labels in pairs:
        if labels.dtype != torch.int64 or labels.shape != inputs.shape[:1]:
            raise ValueError(
                f"its {part} labels are {_is(labels)}; "
                f"wanted is int64 ({len(inputs)},), one an example"
            )
        if labels.min() < 0:
            raise ValueError(f"its {part} labels hold {int(labels.min())}; classes count from 0")
    labels = data.train_labels if data.held is None else data.train_labels[~data.held]
    last = max(int(data.train_labels.max()), int(data.test_labels.max()))
    named = [f"{n} ({name})" for n, name in enumerate(data.names)]
    if data.names and len(data.names) <= last:
        raise ValueError(f"its labels hold {last}, but it names {len(data.names)} classes")
    if last >= len(labels):  # some class has no example; to count them could take any memory
        raise ValueError(f"its labels hold {last}, but there are {len(labels)} training examples")
    missing = (labels.bincount(minlength=last + 1) == 0).nonzero().flatten().tolist()
    if missing:
        what = named[missing[0]] if named else missing[0]
        raise ValueError(f"no training example is of class {what} of the classes 0 to {last}")
    if last == 0:
        what = data.names[0] if data.names else 0
        raise ValueError(f"all its labels are {what}: of one class there is nothing to learn")
