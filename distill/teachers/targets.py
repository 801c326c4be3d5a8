"""Soft targets: made once for every view of every example and kept, or in each batch anew.

Letters: N examples, V views of each, C classes.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.filesize import decimal
from safetensors import safe_open
from torch import Tensor

from distill.config import ConfigError
from distill.config import Teacher as TeacherConfig
from distill.data.views import count
from distill.system import interrupt, machine, store
from distill.system.disk import patient, settled
from distill.system.progress import progress
from distill.training.build import parameters
from distill.training.features import Shape
from distill.training.inputs import Setting, read

FILE = "logits.safetensors"
SHARE = 4  # the part of the memory, one in so many, that soft targets may take
LARGEST = 64.0  # of the logits that float16 holds to 1 / 64


class TooLargeError(ValueError):
    """Logits that are to be kept in float16, which does not hold the ``largest``."""

    def __init__(self, largest: float) -> None:
        super().__init__(
            f"the teacher's logits reach {largest:.3g}, which float16 does not hold to "
            f"1 / {LARGEST:g}"
        )
        self.largest = largest


@dataclass(frozen=True)
class Way:
    """How the soft targets of a run come: ``online``, or kept in ``dtype`` for V ``views``.

    The ``bytes`` are theirs, or online the teacher's.
    Those of a ``file`` are all that is known of their teacher.
    With them come the teacher's ``features`` of these shapes, of modules of these ``names``, if a
    loss asks for any.
    Of views that a list makes, ``listed`` is the digest of all that decides it.
    """

    online: bool
    views: int
    bytes: int
    dtype: torch.dtype = torch.float32
    file: bool = False
    features: tuple[Shape, ...] = ()
    names: tuple[str, ...] | None = None
    listed: str = ""

    @property
    def name(self) -> str:
        """As the summary has it."""
        if self.file:
            return "file"
        return "online" if self.online else f"cached {_short(self.dtype)}"

    def __str__(self) -> str:
        return told([self])


def told(ways: Sequence[Way]) -> str:
    """How the soft targets of one teacher come, or those of several that come in the same way."""
    way, several = ways[0], len(ways) > 1
    kinds = "soft targets and features" if way.features else "soft targets"
    what = f"{kinds} of {len(ways)} teachers" if several else kinds
    if way.file:
        return f"{what} from {'files' if several else 'a file'}"
    if way.online:
        return f"{what} online, by {'each' if several else 'the teacher'} in each batch"
    views = "1 view" if way.views == 1 else f"{way.views} views"
    size = f"{decimal(sum(way.bytes for way in ways))}{' in all' if several else ''}"
    return f"{what} cached, {views} in {_short(way.dtype)}, {size}"


def _long(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.float16: "fp16"}[dtype]


def way(
    setting: Setting,
    teacher: TeacherConfig,
    epochs: int,
    *,
    augmented: bool = False,
    features: tuple[Shape, ...] = (),
) -> Way:
    """How the soft targets of a student that is trained for so many ``epochs`` come.

    Where an augmentation changes each batch (``augmented``), they cannot be kept. Else, if
    ``teacher.targets`` is "auto", they are kept where they take at most a quarter of the memory,
    in float16 where float32 would take more, and no more passes of the teacher over the data than
    two trainings with the teacher in each batch. The same is true of them together with
    ``features`` of these shapes, which are kept in float32 alone.

    Raises:
        ConfigError: they are to be cached, or from a file, and an augmentation changes each batch;
            or they are to be cached, and the memory is too small.
    """
    if augmented:
        _refuse_kept(teacher)
    data, views = read(setting.data), _views(setting)
    if teacher.kind != "weights":
        return Way(False, views, 0, file=True)
    numbers = len(data.train_labels) * views * (data.classes + sum(map(math.prod, features)))
    memory = _memory(setting.device)
    kinds = [torch.float32] if features else [torch.float32, torch.float16]
    fits = next((kind for kind in kinds if _size(numbers, kind) <= memory), None)
    if teacher.targets == "cached" and fits is None:
        raise ConfigError(
            f"teacher.targets=cached: {views} views of {len(data.train_labels)} examples take "
            f"{decimal(kinds[-1].itemsize * numbers)} in {_long(kinds[-1])}, more than a quarter "
            f"of the {decimal(memory)} that this process may have; set teacher.targets=online"
        )
    many = views > max(1, 2 * epochs)
    if (
        augmented
        or fits is None
        or teacher.targets == "online"
        or (teacher.targets == "auto" and many)
    ):
        assert teacher.model is not None
        one = parameters(teacher.model, setting.data, "teacher.model")
        found = Way(True, views, teacher.count * one * torch.float32.itemsize)
    else:
        listed = setting.views.digest if setting.views is not None else ""
        found = Way(False, views, numbers * fits.itemsize, fits, listed=listed)
    if not features:
        return found
    assert teacher.model is not None
    named = teacher.model.features
    return replace(found, features=features, names=None if named is None else tuple(named))


def _refuse_kept(teacher: TeacherConfig) -> None:
    """Refuse soft targets that are kept, where an augmentation changes each batch.

    Raises:
        ConfigError: they are to be cached, or from a file.
    """
    why = "augment changes each batch, whose soft targets are made with it"
    if teacher.kind != "weights":
        raise ConfigError(f"teacher.kind={teacher.kind}: {why}; leave it out")
    if teacher.targets == "cached":
        remedy = "set teacher.targets=online, or leave augment out"
        raise ConfigError(f"teacher.targets=cached: {why}; {remedy}")


def _views(setting: Setting) -> int:
    """How many views there are of each example."""
    plain = read(setting.data).features  # which are neither translated nor mirrored
    views = 1 if plain else count(setting.data.jitter, setting.data.flip)
    return views if setting.views is None else views * setting.views.count


def room_for(device: torch.device, ways: Sequence[Way]) -> bool:
    """Whether the memory has room for several teachers' soft targets, or them, at once."""
    return SHARE * sum(way.bytes for way in ways) <= _memory(device)


def _memory(device: torch.device) -> int:
    """The bytes that a process may have where it trains.

    Of a GPU of another machine nothing is known here, where only shapes and names are checked.
    """
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return sys.maxsize
        return torch.cuda.get_device_properties(device).total_memory
    return machine.memory()


def _size(numbers: int, dtype: torch.dtype) -> int:
    """The memory that a process should have to keep so many numbers."""
    return SHARE * numbers * dtype.itemsize


def made_once(
    folder: Path, shape: tuple[int, int, int], dtype: torch.dtype, make: Callable[[int], Tensor]
) -> Tensor:
    """The soft targets (N, V, C) in ``folder``, which are made first if they are not there.

    Views are written as they are made, so that what an interrupted process had made is kept, or
    one that was killed on this machine. That float16 does not hold them is kept, too, so that they
    are made once to find out.

    Args:
        folder: named by the digest of all that decides them.
        shape: (N, V, C).
        dtype: float32, or float16.
        make: the logits (N, C), float32, of the view of a number.

    Raises:
        TooLargeError: float16 does not hold the logits.
        OSError: the folder cannot be written.
    """
    examples, views, classes = shape
    header = _header((views, examples, classes), dtype)
    part = folder.with_name(f"{folder.name}.part")

    def build(scratch: Path) -> dict[str, Any]:
        own = scratch / FILE
        _take_up([part, *(path / FILE for path in store.abandoned(folder))], own)
        try:
            _fill(own, header, views, examples * classes * dtype.itemsize, dtype, make)
        except TooLargeError as error:
            own.unlink()
            return {"views": views, "too_large": error.largest}
        except BaseException:
            with suppress(OSError):
                own.replace(part)
            raise
        return {"views": views}

    facts = store.get(folder, build)
    if "too_large" in facts:
        raise TooLargeError(facts["too_large"])
    return _loaded(folder / FILE).transpose(0, 1)


@patient
@settled
def _loaded(path: Path) -> Tensor:
    """The soft targets in a file: a copy, so that nothing that befalls it later matters."""
    with store.naming(path), safe_open(path, "pt") as file:
        return cast(Tensor, file.get_tensor("logits")).clone()


def _take_up(left: Sequence[Path], own: Path) -> None:
    """Let the first of the files that others ``left`` be this process's ``own``.

    Nobody writes in them any more, and of several who want one, one gets it.
    """
    for path in left:
        with suppress(OSError):
            path.rename(own)
            return


def _fill(
    part: Path,
    header: bytes,
    views: int,
    size: int,
    dtype: torch.dtype,
    make: Callable[[int], Tensor],
) -> None:
    """Write the ``views``, each of ``size`` bytes, that the file ``part`` does not hold yet.

    It is this process's alone: two that wrote in one file would leave gaps in it.
    """
    part.touch()
    with part.open("r+b") as file, progress() as bars:
        known = file.read(len(header)) == header
        done = min(views, (part.stat().st_size - len(header)) // size) if known else 0
        file.seek(0)
        file.write(header)
        file.truncate(len(header) + done * size)
        file.seek(0, os.SEEK_END)
        task = bars.add_task("soft targets", total=views, completed=done)
        try:
            with interrupt.deferred():
                for view in range(done, views):
                    file.write(_bytes(make(view), dtype))
                    file.flush()
                    bars.update(task, completed=view + 1)
                    interrupt.check()
            os.fsync(file.fileno())
        finally:
            bars.remove_task(task)


def _bytes(logits: Tensor, dtype: torch.dtype) -> memoryview:
    """The bytes of logits in ``dtype``."""
    largest = float(logits.abs().max())
    if dtype == torch.float16 and not largest <= LARGEST:
        raise TooLargeError(largest)
    return logits.to("cpu", dtype).contiguous().numpy().data


def _header(shape: tuple[int, int, int], dtype: torch.dtype) -> bytes:
    """What a safetensors file of one tensor begins with."""
    size = math.prod(shape) * dtype.itemsize
    kind = "F32" if dtype == torch.float32 else "F16"
    facts = {"logits": {"dtype": kind, "shape": list(shape), "data_offsets": [0, size]}}
    text = json.dumps(facts).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text
