"""Models of torchvision and timm by their names, for any channels and classes."""

import difflib
import warnings
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from distill.models.parts import Shape, image, known_as
from distill.system import store, tensors

HUB = "hub"  # instead of a file: the weights that the library would download


def _place(value: str | None) -> str | None:
    return value if value is None or value == HUB else store.home(value)


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=100)]
Side = Annotated[int, Field(gt=0, le=4096)]
Pretrained = Annotated[str | None, AfterValidator(_place), store.Content((HUB,))]


@known_as(lambda name, **_: f"torchvision-{name}")
def torchvision(
    inputs: Shape,
    classes: int,
    *,
    name: Name,
    pretrained: Pretrained = None,
    size: Side | None = None,
) -> nn.Module:
    """A classification model of torchvision, made for these channels and classes.

    Its last layer is made for the classes by torchvision itself. Where images have not three
    channels, its first convolution is a new one that differs in its channels alone, and is
    initialised as torch does that. Some models take images of one size only: see ``size``.

    Args:
        inputs: (channels, height, width) of an image.
        classes: how many.
        name: one of ``torchvision.models.list_models(module=torchvision.models)``.
        pretrained: a file of weights (safetensors, or of torch.save); "hub" for those that this
            version of torchvision downloads; None for random ones. Of another number of classes,
            the last layer is fresh; all else has to fit. One channel is read as if it were three
            equal ones.
        size: images are made so many pixels high and wide before the model sees them (bilinear);
            None: they stay as they are.

    Raises:
        ValueError: there is no such model, or the weights cannot be had or do not fit.
    """
    from torchvision import models

    channels, _, _ = image(inputs, 1)
    _check(name, models.list_models(module=models), "torchvision")

    def make(count: int) -> nn.Module:
        with warnings.catch_warnings():  # that a later version may initialise some differently
            warnings.simplefilter("ignore", FutureWarning)
            model: nn.Module = models.get_model(name, weights=None, num_classes=count)
        if channels != 3:
            _reread(model, channels)
        return model

    def downloaded() -> dict[str, Tensor]:
        state: dict[str, Tensor] = models.get_model(name, weights="DEFAULT").state_dict()
        return state

    return _resized(_pretrained(make, classes, pretrained, downloaded), size)


@known_as(lambda name, **_: f"timm-{name}")
def timm(
    inputs: Shape,
    classes: int,
    *,
    name: Name,
    pretrained: Pretrained = None,
    size: Side | None = None,
) -> nn.Module:
    """A model of timm, which makes it for these channels and classes itself.

    Args:
        inputs: (channels, height, width) of an image.
        classes: how many.
        name: one of ``timm.list_models()``, with or without a tag, as in resnet18.a1_in1k.
        pretrained: as `torchvision` takes it; "hub" for those of the tag.
        size: as `torchvision` takes it.

    Raises:
        ValueError: timm is not installed, or as `torchvision`.
    """
    try:
        import timm as library
    except ImportError as error:
        raise ValueError("timm is not installed: pip install 'distill-sweep[timm]'") from error

    channels, _, _ = image(inputs, 1)
    _check(name.partition(".")[0], library.list_models(), "timm")

    def make(count: int, hub: bool = False) -> nn.Module:
        model: nn.Module = library.create_model(
            name, pretrained=hub, num_classes=count, in_chans=channels
        )
        return model

    def downloaded() -> dict[str, Tensor]:
        return make(classes, hub=True).state_dict()

    return _resized(_pretrained(make, classes, pretrained, downloaded), size)


def _resized(model: nn.Module, side: int | None) -> nn.Module:
    """A model that first resizes its images; its parameters keep their names."""
    if side is not None:
        model.register_forward_pre_hook(partial(_resize, side=side))
    return model


def _resize(_: nn.Module, given: tuple[Tensor], side: int) -> Tensor:
    """Images (B, channels, side, side) of a module's argument."""
    [images] = given
    smaller = max(images.shape[-2:]) > side  # or nothing is lost without a filter
    return F.interpolate(images, (side, side), mode="bilinear", antialias=smaller)


def _check(name: str, known: Collection[str], library: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"{library} has no classification model of this name{hint}")


def _first(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """The first convolution of a model, and its name; None if there is none."""
    found = ((name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d))
    return next(found, None)


def _reread(model: nn.Module, channels: int) -> None:
    """Replace the first convolution by one of so many ``channels``."""
    found = _first(model)
    if found is None or found[1].in_channels != 3:
        raise ValueError("it has no convolution to adapt: wanted are images of three channels")
    name, old = found
    parent, _, own = name.rpartition(".")
    new = nn.Conv2d(
        channels,
        old.out_channels,
        kernel_size=(old.kernel_size[0], old.kernel_size[1]),
        stride=(old.stride[0], old.stride[1]),
        padding=old.padding if isinstance(old.padding, str) else (old.padding[0], old.padding[1]),
        bias=old.bias is not None,
    )
    setattr(model.get_submodule(parent), own, new)


def _pretrained(
    make: Callable[[int], nn.Module],
    classes: int,
    pretrained: str | None,
    downloaded: Callable[[], dict[str, Tensor]],
) -> nn.Module:
    """The model of so many ``classes``, with the weights of a file or of the hub, if it has any."""
    model = make(classes)
    if pretrained is None or torch.empty(0).is_meta:  # where shapes alone matter
        return model
    state = _downloaded(downloaded) if pretrained == HUB else _read(Path(pretrained), model)
    with torch.device("meta"):
        ours, others = (make(n).state_dict() for n in (classes, classes + 1))
    heads = {name for name in ours if ours[name].shape != others[name].shape}
    try:
        _take(model, state, heads)
    except ValueError as error:
        raise ValueError(f"pretrained={pretrained}: {error}; it fits another model.name") from error
    return model


def _take(model: nn.Module, state: dict[str, Tensor], heads: Collection[str]) -> None:
    """Let a model take a ``state``, but for ``heads`` of other shapes.

    Raises:
        ValueError: something else does not fit.
    """
    own, first = model.state_dict(), _first(model)
    kept = {n: v for n, v in state.items() if n not in heads or v.shape == own[n].shape}
    weight = f"{first[0]}.weight" if first is not None else None
    if weight in kept and own[weight].shape[1] == 1 and kept[weight].shape[1] == 3:
        kept[weight] = kept[weight].sum(1, keepdim=True)
    for name, value in kept.items():
        if name not in own:
            raise ValueError(f"it has a parameter {name}, which the model lacks")
        if value.shape != own[name].shape:
            shapes = f"{tuple(value.shape)}, the model wants {tuple(own[name].shape)}"
            raise ValueError(f"its parameter {name} has the shape {shapes}")
    lacking = [n for n in model.load_state_dict(kept, strict=False).missing_keys if n not in heads]
    if lacking:
        raise ValueError(f"it lacks the parameter {lacking[0]}")


def _downloaded(load: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    try:
        return load()
    except Exception as error:  # of the library's own ways through the network, which are many
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"pretrained={HUB}: no weights can be downloaded ({reason}); "
            "give those that were elsewhere as pretrained=FILE"
        ) from error


def _read(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """The largest state dict in a file, under the names of a ``model``.

    Raises:
        ValueError: it cannot be read, or holds none.
    """
    try:
        found = [*tensors.states(tensors.load(path))]
    except (OSError, ValueError) as error:
        raise ValueError(f"pretrained={path}: {store.told(error) or error}") from error
    if not found:
        raise ValueError(f"pretrained={path}: it holds no state dict; save model.state_dict()")
    most = max(len(state) for _, state in found)
    where, state = zip(*((w, s) for w, s in found if len(s) == most), strict=True)
    if len(where) > 1:
        raise ValueError(
            f"pretrained={path}: several state dicts in it are as large, {', '.join(where)}; save "
            "alone the one that is meant"
        )
    return tensors.plain(state[0], model.state_dict())
