"""Models and losses of a config: built, and seen to be what the training loop can use."""

from collections.abc import Sequence
from functools import lru_cache, partial

import torch
from rich.filesize import decimal
from torch import Tensor, nn

from distill.config import Component, ConfigError, Data, Model, Views
from distill.data.dataset import Dataset
from distill.seeds import seeded
from distill.system import machine
from distill.training.contracts import (
    FAILS,
    fault_of_forward,
    fault_of_loss,
    fault_of_one_image,
    fault_of_parts,
    fault_of_views,
    maps,
)
from distill.training.features import Shape, shapes
from distill.training.inputs import listed, normalised, read
from distill.training.objective import EXAMPLES, UNSEEN, Objective, Seen, few
from distill.training.stack import Stack


def build(model: Component, data: Dataset, key: str) -> nn.Module:
    """One member of ``model`` for the images of ``data``, initialised by the global generator.

    Raises:
        ConfigError: the model cannot be made for these images; ``key`` is what to name.
    """
    try:
        module: nn.Module = model(inputs=data.shape, classes=data.classes)
    except (ValueError, RuntimeError) as error:
        kind = "features" if data.features else "images"
        raise ConfigError(f"{key}={model.name}: {error} ({kind} are {data.shape})") from error
    return module


def check_views(views: Views, data: Data, key: str) -> None:
    """See that soft targets can be exact for each of a list of views.

    Raises:
        ConfigError: they cannot; ``key`` is what to name.
    """
    if (fault := _fault_of_views(views, data)) is not None:
        raise ConfigError(f"{key}={views.name}: {fault}")


@lru_cache(maxsize=64)
def _fault_of_views(views: Views, data: Data) -> str | None:
    some = normalised(data, read(data).train_inputs[:4])
    return fault_of_views(listed(views), some.pick(torch.arange(len(some)), 0))


def check_loss(
    loss: Component,
    classes: int,
    *,
    mixed: bool = False,
    seen: Seen = UNSEEN,
    counts: tuple[int, ...] = (),
) -> None:
    """See that the training loop can use a loss, with ``mixed`` labels if they are (B, C).

    It is tried on features that were ``seen``, and its own parameters are made for a transfer set
    of so many examples of each class (``counts``).

    Raises:
        ConfigError: it cannot.
    """
    check_class_weights(loss, classes)
    if (fault := _fault_of_loss(loss, classes, mixed, seen, counts)) is not None:
        labels = "with the mixed labels (B, C) of the augmentation " if mixed else ""
        raise ConfigError(f"loss={loss.name}: {labels}{fault}")


def check_class_weights(loss: Component, classes: int) -> None:
    """See that a loss has a weight for each of C ``classes``, if it has some.

    Raises:
        ConfigError: it has not.
    """
    for key, weights in loss.options.items():
        own = key.rpartition(".")[2] == "class_weights"
        if own and isinstance(weights, list) and len(weights) != classes:
            raise ConfigError(
                f"loss.{key}={weights}: these are {len(weights)} numbers, and the data have "
                f"{classes} classes; give one a class, or balanced"
            )


def check_losses(
    losses: Sequence[Component], classes: int, *, mixed: bool = False, seen: Seen = UNSEEN
) -> None:
    """`check_loss` of losses without parameters of their own that differ in numbers alone.

    They are tried together, and one by one only if there is a fault among them.

    Raises:
        ConfigError: as `check_loss`.
    """
    together = Objective.of(losses, classes, seen=seen)
    if fault_of_loss(together, classes, mixed=mixed, seen=seen) is not None:
        for loss in losses:
            check_loss(loss, classes, mixed=mixed, seen=seen)


@lru_cache(maxsize=1024)
def _fault_of_loss(
    loss: Component, classes: int, mixed: bool, seen: Seen, counts: tuple[int, ...]
) -> str | None:
    labels = None
    if counts:
        labels = few(torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))
    try:
        objective = Objective.of([loss], classes, seen=seen, labels=labels)
    except Exception as error:  # of a constructor, which the user may have written
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return f"its own parameters cannot be made ({reason})"
    examples = EXAMPLES if labels is None else len(labels)
    return fault_of_loss(objective, classes, mixed=mixed, seen=seen, examples=examples)


@lru_cache(maxsize=64)
def feature_shapes(model: Model, data: Data, key: str) -> tuple[Shape, ...]:
    """The shapes of the features of a ``model``, without the axis of examples.

    Raises:
        ConfigError: as `build` does, or a name is of no module that makes features.
    """
    dataset = read(data)
    with seeded(0, torch.device("cpu")), torch.no_grad():
        module, x = build(model, dataset, key), torch.rand(2, *dataset.shape)
        try:
            shapes(module.train(), model.features, x)
            return shapes(module.eval(), model.features, x)
        except ValueError as error:
            named = "null" if model.features is None else f"[{','.join(model.features)}]"
            raise ConfigError(f"{key}.features={named}: of {model.name}, {error}") from error


@lru_cache(maxsize=64)
def parameters(model: Component, data: Data, key: str) -> int:
    """The number of parameters of one member of ``model``, once it was seen that it can be trained.

    Raises:
        ConfigError: as `build` does, they do not fit into this machine's memory, or the training
            loop cannot use the model.
    """
    try:
        with torch.device("meta"):
            module = build(model, read(data), key)
    except (ConfigError, NotImplementedError):  # one that reads what it makes, or fails anyway
        with seeded(0, torch.device("cpu")):
            module = build(model, read(data), key)
    if (fault := fault_of_parts(module)) is not None:
        raise ConfigError(f"{key}={model.name}: {fault}")
    count = sum(p.numel() for p in module.parameters())
    if 4 * count > (memory := machine.memory()):
        sized = [n for n, v in model.options.items() if n == "width" or isinstance(v, int)]
        sizes = ", ".join(f"{key}.{n}={model.options[n]}" for n in sized)
        raise ConfigError(
            f"{sizes or f'{key}={model.name}'}: the parameters take {decimal(4 * count)}; "
            f"this process may have {decimal(memory)} of memory"
        )
    dataset = read(data)
    fault = fault_of_forward(partial(build, model, dataset, key), dataset.shape, dataset.classes)
    if fault is not None:
        resizes = fault.startswith(FAILS) and "size" in model.options
        remedy = f"; {key}.size=SIDE resizes them to what it takes" if resizes else ""
        raise ConfigError(f"{key}={model.name}: {fault}{remedy}")
    return count


@lru_cache(maxsize=64)
def multiply_adds(model: Component, data: Data) -> int:
    """The multiply-adds of the linear and convolutional layers of ``model``, for one image.

    Weights that no layer applies are not counted: those within attention, and its products.
    """
    counts: list[int] = []

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        weight = layer.weight  # which a parametrization may make, so it is no parameter
        assert isinstance(weight, Tensor)
        counts.append(weight.numel() * (out.numel() // len(weight)))  # each is used at each place

    with seeded(0, torch.device("cpu")):
        module = build(model, read(data), "model").eval()
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module(torch.zeros(1, *read(data).shape))
    return sum(counts)


def fresh(
    model: Component, data: Dataset, key: str, members: int, seed: int, device: torch.device
) -> Stack:
    """A stack of ``members`` new members of ``model``."""
    make = partial(build, model, data, key)
    kind = (model, data.shape, data.classes)
    if kind not in _mapped:
        _mapped[kind] = maps(make, data.shape)
    return Stack(make, members, seed, device, mapped=_mapped[kind])


_mapped: dict[tuple[Component, tuple[int, ...], int], bool] = {}


def check_batches(model: Component, data: Data, key: str, examples: int, size: int) -> None:
    """See that a model can be trained on the last batch, if that is of one example.

    Args:
        model: the section at ``key``.
        data: what it is trained on.
        key: "model" or "teacher.model".
        examples: how many there are in an epoch.
        size: of a batch.

    Raises:
        ConfigError: it cannot, as those that normalise by a batch's statistics.
    """
    if examples % size == 1 and (fault := _fault_of_one(model, data, key)) is not None:
        batches = f"{key.removesuffix('model')}train.batch_size={size}"
        raise ConfigError(
            f"{batches}: of {examples} examples the last batch has one, on which {model.name} "
            f"cannot be trained ({fault}); choose another size"
        )


@lru_cache(maxsize=64)
def _fault_of_one(model: Component, data: Data, key: str) -> str | None:
    dataset = read(data)
    return fault_of_one_image(partial(build, model, dataset, key), dataset.shape)
