"""What is trained on: data sets as a config asks for them, the device, the type of products.

Letters: N training examples.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import Tensor

from distill.config import ConfigError, Data, Run
from distill.data import Dataset, load
from distill.data.views import Images
from distill.seeds import generator
from distill.system import machine


@dataclass(frozen=True)
class Setting:
    """What teacher and students of a run share: the data, the device, the type of products."""

    data: Data
    device: torch.device
    dtype: torch.dtype


def device_of(run: Run) -> torch.device:
    """The device that a run asks for.

    Raises:
        ConfigError: this machine does not have it.
    """
    if run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: this machine has no CUDA device; allowed are auto, cpu")
    return torch.device("cuda" if run.device != "cpu" and torch.cuda.is_available() else "cpu")


def dtype_of(run: Run, device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool({"avx512_bf16", "amx_bf16"} & machine.abilities())
    bf16 = fast if run.precision == "auto" else run.precision == "bf16"
    return torch.bfloat16 if bf16 else torch.float32


def root(data: Data) -> Path:
    """The folder of a data set's files, and by default of the teachers trained on it."""
    return Path(data.root) if data.root else user_cache_path("distill")


@lru_cache(maxsize=2)
def _load(source: Data) -> Dataset:
    return load(source)


def read(data: Data) -> Dataset:
    """The data set of a section, read once a process.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    reading = {"jitter": 0, "validation": 0.0, "mean": 0.0, "std": 1.0}  # comes after this
    folder = str(root(data))
    try:
        return _load(data.model_copy(update={**reading, "root": folder}))
    except (OSError, ValueError) as error:
        where = f"data.root={folder}" if "root" in data.options else f"data={data.name}"
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
