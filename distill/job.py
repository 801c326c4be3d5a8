"""Jobs: runs whose data and files were loaded and checked, with nothing written yet.

Letters: N training examples, M of them in the transfer set.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from rich.filesize import decimal
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from distill import machine, store, weights
from distill.config import Component, ConfigError, Data, Run, Teacher, targets
from distill.contracts import fault_of_forward, fault_of_loss, fault_of_parts
from distill.data import Dataset, load
from distill.data.views import Images
from distill.seeds import generator, seeded
from distill.stack import Stack

# Part of every run's digest: raise it when the same configuration would make another student.
SCHEMA = 2


@dataclass(frozen=True)
class Setting:
    """What teacher and students of a run share: the data, the device, the type of products."""

    data: Data
    device: torch.device
    dtype: torch.dtype


class Job:
    """A run that was checked: nothing but training is left to do.

    Raises:
        ConfigError: a file is missing or damaged, or a value does not fit the data or the machine.
    """

    def __init__(self, run: Run) -> None:
        device = device_of(run)
        self.run = run
        self.setting = Setting(run.data, device, _dtype(run, device))
        self.data = read(run.data)
        self._check()

    def _check(self) -> None:
        run, last = self.run, self.data.classes - 1
        if any(label > last for label in run.transfer.options.get("classes", [])):
            allowed = f"{run.data.name} has the classes 0 to {last}"
            raise ConfigError(f"transfer.classes={run.transfer.options['classes']}: {allowed}")
        self._check_jitter()
        left = self.data.train_labels[~held_out(run.data)].bincount(minlength=last + 1)
        if not left.all():
            raise ConfigError(
                f"data.validation={run.data.validation}: it leaves no training example of class "
                f"{int((left == 0).nonzero()[0])} of {run.data.name}"
            )
        if len(self.index) == 0:
            raise ConfigError(f"transfer={run.transfer.name}: it leaves no training example")
        check_loss(run.loss, self.data.classes)
        parameters(run.model, run.data, "model")
        if run.distils and run.teacher.model is not None:
            parameters(run.teacher.model, run.data, "teacher.model")
            if run.teacher.path is not None:
                teacher_weights(run.data, run.teacher)
            cache = teacher_cache(run.data, run.teacher)
            try:
                cache.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(
                    f"teacher.cache={cache}: no folder can be made ({error})"
                ) from error

    def _check_jitter(self) -> None:
        """A shift by all of an image leaves nothing of it; a row of numbers is no image."""
        trained = self.run.distils and self.run.teacher.model is not None
        jitters = {"data.jitter": self.run.data.jitter}
        if trained and self.run.teacher.path is None:
            jitters["teacher.jitter"] = self.run.teacher.jitter or 0
        height, width = self.data.shape[1:]
        for key, jitter in jitters.items():
            if jitter >= (side := min(height, width)):
                raise ConfigError(
                    f"{key}={jitter}: nothing is left of the {height} x {width} pixels of "
                    f"{self.run.data.name} when they are shifted so far; "
                    f"set {key}={'0' if side == 1 else f'{side - 1} or less'}"
                )

    @cached_property
    def index(self) -> Tensor:
        """Indices (M,) of the training examples in the transfer set, on the CPU."""
        subset = self.run.transfer
        source = generator(self.run.seed, "transfer")
        mask = subset.function(self.data.train_labels, source, **subset.options)
        indices: Tensor = (mask & ~held_out(self.run.data)).nonzero().flatten()
        return indices

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of all that decides the student."""
        content = {"data": self.data.digest, "schema": str(SCHEMA)}
        if self.run.distils and self.run.teacher.path is not None:
            content["teacher"] = store.file_digest(Path(self.run.teacher.path))
        return self.run.digest(content)

    @property
    def name(self) -> str:
        """A name that a person can read, the same for the same config, safe as a file's name."""
        run = self.run
        width = run.model.options.get("width", "")
        loss = "".join(f"-{key}{value:g}" for key, value in run.loss.options.items())
        student = f"{run.data.name}-{run.model.name}{width}-{run.loss.name}{loss}-seed{run.seed}"
        return f"{student}-{self.digest[:8]}"


def device_of(run: Run) -> torch.device:
    """The device that a run asks for.

    Raises:
        ConfigError: this machine does not have it.
    """
    if run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: this machine has no CUDA device; allowed are auto, cpu")
    return torch.device("cuda" if run.device != "cpu" and torch.cuda.is_available() else "cpu")


def _dtype(run: Run, device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        abilities = torch.cpu.get_capabilities()
        fast = bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
    bf16 = fast if run.precision == "auto" else run.precision == "bf16"
    return torch.bfloat16 if bf16 else torch.float32


def root(data: Data) -> Path:
    """The folder of a data set's files, and by default of the teachers trained on it."""
    return Path(data.root) if data.root else user_cache_path("distill")


# Keyed by the target, since the schema of a section is made anew for each config.
@lru_cache(maxsize=2)
def _load(target: str, options: tuple[tuple[str, Any], ...]) -> Dataset:
    return load(targets("data")[target], **dict(options))


def read(data: Data) -> Dataset:
    """The data set of a section, read once a process.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    options = data.options
    if "root" in options:
        options["root"] = str(root(data))
    try:
        return _load(data.target, tuple(options.items()))
    except (OSError, ValueError) as error:
        where = f"data.root={options['root']}" if "root" in options else f"data={data.name}"
        raise ConfigError(f"{where}: {error}") from error


@lru_cache(maxsize=4)
def held_out(data: Data) -> Tensor:
    """A mask (N,) of the training examples in the validation split, the same for every seed."""
    return read(data).validation(data.validation, generator(0, "validation"))


@lru_cache(maxsize=4)
def training_images(setting: Setting, jitter: int) -> Images:
    """All training images, on the device, with the views of ``jitter``."""
    data = setting.data
    images = read(data).train_images.to(setting.device)
    return Images(images, jitter=jitter, mean=data.mean, std=data.std)


def teacher_cache(data: Data, teacher: Teacher) -> Path:
    """The folder of teachers and soft targets: the teacher's own, or one beside the data."""
    return Path(teacher.cache) if teacher.cache else root(data) / "teachers"


def build(model: Component, data: Dataset, key: str) -> nn.Module:
    """One member of ``model`` for the images of ``data``, initialised by the global generator.

    Raises:
        ConfigError: the model cannot be made for these images; ``key`` is what to name.
    """
    try:
        module: nn.Module = model.function(data.shape, data.classes, **model.options)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{key}={model.name}: {error} (images are {data.shape})") from error
    return module


def check_loss(loss: Component, classes: int) -> None:
    """See that the training loop can use a loss, whatever its alpha.

    Raises:
        ConfigError: it cannot.
    """
    for name, value in loss.options.items():
        if not isinstance(value, int | float):
            raise ConfigError(f"loss.{name}={value}: what a loss takes must be numbers")
    options = loss.options | ({"alpha": 0.0} if "alpha" in loss.options else {})
    fault = _fault_of_loss(loss.target, tuple(options.items()), classes)
    if fault is not None:
        raise ConfigError(f"loss={loss.name}: {fault}")


@lru_cache(maxsize=1024)
def _fault_of_loss(target: str, options: tuple[tuple[str, Any], ...], classes: int) -> str | None:
    return fault_of_loss(targets("loss")[target], dict(options), classes)


@lru_cache(maxsize=64)
def parameters(model: Component, data: Data, key: str) -> int:
    """The number of parameters of one member of ``model``, once it was seen that it can be trained.

    Raises:
        ConfigError: as `build` does, they do not fit into this machine's memory, or the training
            loop cannot use the model.
    """
    with torch.device("meta"):
        module = build(model, read(data), key)
    if (fault := fault_of_parts(module)) is not None:
        raise ConfigError(f"{key}={model.name}: {fault}")
    count = sum(p.numel() for p in module.parameters())
    if 4 * count > (memory := machine.memory()):
        sizes = ", ".join(f"{key}.{n}={v}" for n, v in model.options.items() if isinstance(v, int))
        raise ConfigError(
            f"{sizes}: the parameters take {decimal(4 * count)}; "
            f"this process may have {decimal(memory)} of memory"
        )
    dataset = read(data)
    fault = fault_of_forward(partial(build, model, dataset, key), dataset.shape, dataset.classes)
    if fault is not None:
        raise ConfigError(f"{key}={model.name}: {fault}")
    return count


@lru_cache(maxsize=64)
def multiply_adds(model: Component, data: Data) -> int:
    """The multiply-adds of the linear and convolutional layers of ``model``, for one image."""
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
    return Stack(partial(build, model, data, key), members, seed, device)


def finite_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        OSError, SafetensorError: it cannot be read.
        ValueError: they hold something else than finite floating-point numbers.
    """
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"there is no file {path}")
    tensors: dict[str, Tensor] = load_file(path)
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise ValueError(f"parameter {name} has type {value.dtype}, not floating-point numbers")
        if not value.float().isfinite().all():
            raise ValueError(f"parameter {name} has values that are not finite in float32")
    return tensors


def take(stack: Stack, state: dict[str, Tensor], data: Data, remedy: str) -> None:
    """Let a stack of one for ``data`` take the weights of a ``state``.

    ``remedy`` ends the line about those of another architecture.

    Raises:
        ValueError: they are those of another architecture, or for other data.
    """
    try:
        stack.load([state])
    except ValueError as error:
        wanted = {name: list(value.shape[1:]) for name, value in stack.parameters.items()}
        found = {name: list(value.shape) for name, value in state.items()}
        dataset = read(data)
        why = weights.misfit(found, wanted, data.name, dataset.shape, dataset.classes)
        raise ValueError(why or f"{error}{remedy}") from error


def teacher_weights(data: Data, teacher: Teacher) -> dict[str, Tensor]:
    """The weights in ``teacher.path``, which fit ``teacher.model``.

    Raises:
        ConfigError: the file cannot be read, or holds the weights of another architecture.
    """
    path, key = Path(str(teacher.path)), f"teacher.path={teacher.path}"
    try:
        state = finite_weights(path)
    except (OSError, SafetensorError) as error:
        instead = f", {what}" if (what := weights.pickled(path)) else f" ({error})"
        raise ConfigError(f"{key}: not a readable safetensors file{instead}") from error
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error
    assert teacher.model is not None
    stack = fresh(teacher.model, read(data), "teacher.model", 1, 0, torch.device("cpu"))
    try:
        take(stack, state, data, "; set teacher.model to its architecture")
    except ValueError as error:
        why = weights.wrapped(path, [*state]) or str(error)
        raise ConfigError(f"{key}: {why}") from error
    return state
