"""What is trained on: data sets as a config asks for them, the device, the type of products.

Letters: N training examples.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from platformdirs import user_cache_path
from torch import Tensor

from distill.config import ConfigError, Data, Run, Views
from distill.config.sections import GIVEN
from distill.data.dataset import Dataset, load
from distill.data.views import Change, Inputs, Numbers
from distill.seeds import generator
from distill.system import machine


@dataclass(frozen=True)
class Setting:
    """What teacher and students of a run share: the data, the device, the type of products.

    The ``views`` are the students' list of them, if there is one.
    """

    data: Data
    device: torch.device
    dtype: torch.dtype
    views: Views | None = None

    @property
    def kind(self) -> dict[str, str]:
        """What the machine decides where precision and device are auto, as a result has it."""
        precision = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        return {"precision": precision, "device": self.device.type}


class Machine(NamedTuple):
    """What "auto" means for all runs of a sweep: ``cpu`` or ``cuda``, and ``fp32`` or ``bf16``."""

    device: str
    precision: str


_elsewhere: ContextVar[Machine | None] = ContextVar("elsewhere", default=None)


@contextmanager
def trained_on(machine: Machine | None) -> Iterator[None]:
    """Within, jobs are for a machine that is not asked; None, for this one."""
    token = _elsewhere.set(machine)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def device_of(run: Run) -> torch.device:
    """The device that a run asks for.

    Raises:
        ConfigError: this machine does not have it, on which it is to be trained.
    """
    if (there := _elsewhere.get()) is not None:
        return torch.device(there.device if run.device == "auto" else run.device)
    if run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: this machine has no CUDA device; allowed are auto, cpu")
    return torch.device("cuda" if run.device != "cpu" and torch.cuda.is_available() else "cpu")


def dtype_of(run: Run, device: torch.device) -> torch.dtype:
    """The type of products that a run asks for on a ``device``."""
    if (there := _elsewhere.get()) is not None:
        asked = there.precision if run.precision == "auto" else run.precision
        return torch.bfloat16 if asked == "bf16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool({"avx512_bf16", "amx_bf16"} & machine.abilities())
    bf16 = fast if run.precision == "auto" else run.precision == "bf16"
    return torch.bfloat16 if bf16 else torch.float32


def root(data: Data) -> Path:
    """The folder of a data set's files, and by default of the teachers trained on it."""
    return Path(data.root) if data.root else user_cache_path("distill")


# What comes after reading, and so makes no other data set: what else a section of data says.
AFTERWARDS = {
    **{"jitter": 0, "flip": False, "test_jitter": 0},
    **{"validation": 0.0, "mean": None, "std": None},
}


@lru_cache(maxsize=2)
def _load(source: Data, given: bool) -> Dataset:
    """With its own validation split among the training examples if it is the one that is asked."""
    if given:
        return load(source)
    return load(source).without_held()


def read(data: Data) -> Dataset:
    """The data set of a section, read once a process.

    Raises:
        ConfigError: a file is missing or damaged, or a function of one's own fails.
    """
    folder, given = str(root(data)), data.validation == GIVEN
    try:
        return _load(data.model_copy(update={**AFTERWARDS, "root": folder}), given)
    except Exception as error:
        expected = isinstance(error, OSError | ValueError)
        if not expected and (data.source is None or isinstance(error, MemoryError)):
            raise
        where = f"data.root={folder}" if "root" in data.options else f"data={data.name}"
        reason = error if expected else " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{where}: {reason}") from error


@lru_cache(maxsize=4)
def held_out(data: Data) -> Tensor:
    """A mask (N,) of the training examples in the validation split, the same for every seed.

    Raises:
        ConfigError: the data set has none of its own.
    """
    try:
        return read(data).validation(data.validation, generator(0, "validation"))
    except ValueError as error:
        raise ConfigError(f"data.validation={data.validation}: {error}") from error


def normalisation(data: Data) -> tuple[Numbers, Numbers]:
    """The mean and the standard deviation by which inputs are normalised.

    Where the section gives none, they are those of the training inputs.
    """
    mean, std = data.mean, data.std
    if mean is not None and std is not None:
        return mean, std
    own = read(data).statistics
    return (own[0] if mean is None else mean), (own[1] if std is None else std)


def listed(views: Views | None) -> tuple[Change, ...]:
    """What makes each view of a list of them, in their order."""
    if views is None:
        return ()
    return tuple(partial(views, view=n, count=views.count) for n in range(views.count))


def normalised(
    data: Data,
    inputs: Tensor,
    jitter: int = 0,
    flip: bool = False,
    changes: Sequence[Change] = (),
) -> Inputs:
    """The ``inputs`` of a data set, normalised as it says, with the views that these make."""
    mean, std = normalisation(data)
    if inputs.is_floating_point():  # which have but one view
        jitter, flip = 0, False
    return Inputs(inputs, jitter=jitter, flip=flip, mean=mean, std=std, changes=changes)


@lru_cache(maxsize=4)
def training_inputs(
    setting: Setting, jitter: int, flip: bool, views: Views | None = None
) -> Inputs:
    """All training inputs, on the device, with the views of ``jitter``, ``flip`` and a list."""
    inputs = read(setting.data).train_inputs.to(setting.device)
    return normalised(setting.data, inputs, jitter, flip, listed(views))
