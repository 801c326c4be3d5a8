"""Folders of pictures, one folder for each class, decoded once and kept as one file.

Letters: N images, H and W an image's size.
"""

import logging
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from platformdirs import user_cache_path
from pydantic import AfterValidator
from rich.filesize import decimal
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.data.dataset import Dataset
from distill.system import interrupt, machine, store
from distill.system.pictures import Pixels, pixels, several
from distill.system.progress import progress

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when the same files would be other pixels, or have another digest
LARGEST = 4096  # pixels, of a side
CHUNK, BYTES = 256, 2**22  # at most so many images, and bytes of them, are decoded at a time
MANY = 5_000  # images for which it pays to start processes, which takes half a second


def _sized(value: object) -> object:
    sides = value if isinstance(value, list) else [value]
    whole = all(type(side) is int and 0 < side <= LARGEST for side in sides)
    if value is None or (whole and len(sides) == (2 if isinstance(value, list) else 1)):
        return value
    raise ValueError(f"it is {value}; allowed are a side in pixels, up to {LARGEST}, or [H,W]")


Size = Annotated[Any, AfterValidator(_sized)]


File = tuple[str, int, int]  # its path below the root, and what changes with it: bytes and ns
# The files of each class, in the order of torchvision's ImageFolder, so that what was computed with
# it fits: by the name of a class, of the folder below it, of the file.
Classes = dict[str, list[File]]
Images = dict[str, Tensor]  # (N, channels, H, W), of "train" and "test"


def image_folder(
    *,
    root: str,
    test: str = "test",
    size: Size = None,
    channels: Literal[1, 3] | None = None,
) -> Dataset:
    """Pictures in ROOT/train/CLASS and ROOT/test/CLASS, and perhaps ROOT/val/CLASS.

    Their pixels are kept in a file beside ROOT, or in the user's cache where none can be written
    there, and are decoded again when a file has changed.

    Args:
        root: the folder.
        test: the folder below it that is the test set.
        size: a side in pixels, or [H, W]; a picture's middle part of that shape is made so large.
            None: their own, if all are equal.
        channels: 1 or 3. None: 1 if all are stored as grey, else 3.

    Returns:
        Images (N, channels, H, W) in the order of torchvision's ImageFolder, those of val, its
        validation split, after those of train; classes are named by their folders, in the order of
        the names.

    Raises:
        ValueError: folders are missing or empty, or a file in them is no picture that is wanted.
    """
    folder = Path(root).resolve()
    files = {part: _files(folder, part) for part in dict.fromkeys(("train", "val", test))}
    names = tuple(files["train"])
    _check(folder, files, test)
    own = {} if test == "val" else files["val"]
    both = (files["train"], own)
    groups = {"train": [f for part in both for c in part.values() for f in c]}
    groups["test"] = [file for c in files[test].values() for file in c]
    side = None if size is None else (size, size) if isinstance(size, int) else tuple(size)
    number = {name: n for n, name in enumerate(names)}

    def labels(*parts: Classes) -> Tensor:
        return torch.tensor([number[c] for part in parts for c, its in part.items() for _ in its])

    held = torch.arange(len(groups["train"])) >= len(labels(files["train"])) if own else None
    answers = labels(*both), labels(files[test])

    def made(images: Images) -> Dataset:
        train, test = (images["train"], answers[0]), (images["test"], answers[1])
        return Dataset(*train, *test, held=held, names=names)

    return _read(folder, test, groups, side, channels, made)


def _files(folder: Path, part: str) -> Classes:
    """The files of each class of a part; hidden ones are left out."""
    try:
        entries = sorted(os.scandir(folder / part), key=lambda entry: entry.name)
    except FileNotFoundError:
        return {}
    found = {}
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            raise ValueError(
                f"{entry.path}: it lies in no folder of a class; wanted is {part}/CLASS/FILE"
            )
        below = sorted(_below(entry.path, f"{part}/{entry.name}"))
        found[entry.name] = [file for _, files in below for file in sorted(files)]
    return found


def _below(folder: str, name: str) -> Iterator[tuple[str, list[File]]]:
    """A folder, which has this ``name`` below the root, and each below it, with its own files."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            own = entry.name
            if own[0] == ".":
                continue
            if entry.is_dir():
                yield from _below(entry.path, f"{name}/{own}")
            else:
                stat = entry.stat()
                found.append((f"{name}/{own}", stat.st_size, stat.st_mtime_ns))
    yield name, found


def _check(folder: Path, files: dict[str, Classes], test: str) -> None:
    """Raises ValueError: there is nothing to train or to test on, or a class only to test."""
    for part in ("train", test):
        if any(files[part].values()):
            continue
        if not folder.is_dir():
            raise ValueError(f"there is no such folder ({folder})")
        there = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
        held = f"it has {', '.join(there) or 'no folder'}"
        how = "" if part == "train" else "; data.test=NAME takes another folder as the test set"
        what = "holds no file" if (folder / part).is_dir() else "is missing"
        raise ValueError(f"its folder {part}/CLASS {what} ({held}){how}")
    for part, classes in files.items():
        for name, its in classes.items():
            if its and not files["train"].get(name):
                raise ValueError(f"no file in train is of class {name}, which {part} holds")
    if len(files["train"]) == 1:  # before all are decoded
        [name] = files["train"]
        raise ValueError(f"all its labels are {name}: of one class there is nothing to learn")
    if empty := [name for name, its in files["train"].items() if not its]:
        raise ValueError(f"train/{empty[0]} holds no file; remove it if there is no such class")


def _read(
    folder: Path,
    test: str,
    groups: dict[str, list[File]],
    size: tuple[int, int] | None,
    channels: int | None,
    made: Callable[[Images], Dataset],
) -> Dataset:
    """What is ``made`` of the images, decoded unless they are kept as they are."""
    keys = store.digest([FORMAT, test, size, channels])[:8]  # of one reading of the folder
    digest = store.digest([FORMAT, size, channels, groups])
    file = f"{folder.name}-{keys}.safetensors"
    home = user_cache_path("distill") / "images"
    places = [folder.with_name(file), home / f"{store.digest(str(folder))[:8]}-{file}"]
    for place in places:
        with suppress(OSError):
            if (kept := _kept(place, digest, made)) is not None:
                return kept
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with store.alone(place.with_name(f".{file}.lock")):
                if (kept := _kept(place, digest, made, warn=True)) is not None:
                    return kept
                images = _decoded(folder, groups, size, channels)
                return _keep(place, digest, images, made(images))
        except OSError as error:
            log.debug("%s cannot be used: %s", place, store.told(error) or error)
    log.warning("no images could be kept in %s, so they are decoded each time", home)
    return made(_decoded(folder, groups, size, channels))


def _sum(images: Images, *said: str) -> str:
    """A checksum of what is kept, by which damage is seen: CRC-32, as in each chunk of a PNG."""
    crc = zlib.crc32("".join(said).encode())
    for part in sorted(images):
        crc = zlib.crc32(images[part].numpy().data, crc)
    return f"{crc:08x}"


def _kept(
    place: Path, digest: str, made: Callable[[Images], Dataset], *, warn: bool = False
) -> Dataset | None:
    """What is in ``place``; None if it holds nothing, or that of other files, or is damaged.

    Raises:
        OSError: it cannot be read, and may be whole.
    """
    try:
        with store.naming(place), safe_open(place, "pt") as file:
            said = file.metadata() or {}
            if said.get("digest") != digest or {*said} != {"digest", "data", "sum"}:
                return None
            images = {part: file.get_tensor(part) for part in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        return None
    except SafetensorError as error:
        _tell(warn, "%s is damaged, and is made anew: %s", place, error)
        return None
    if said["sum"] != _sum(images, digest, said["data"]):
        _tell(warn, "%s is damaged, and is made anew", place)
        return None
    return made(images).known(said["data"])


def _tell(warn: bool, text: str, *parts: object) -> None:
    log.log(logging.WARNING if warn else logging.DEBUG, text, *parts)


def _keep(place: Path, digest: str, images: Images, data: Dataset) -> Dataset:
    """Write the images of the ``data`` to ``place``, if that can be; returns the data."""
    said = {"digest": digest, "data": data.digest}
    said["sum"] = _sum(images, digest, data.digest)
    try:
        store.tidy(place.parent, place.name)
        # Of a file that a loss of power damages, the sum tells.
        store.write(place, lambda scratch: save_file(images, scratch, said), sync=False)
        log.debug("the images are kept in %s", place)
    except (OSError, SafetensorError) as error:
        log.warning("the images could not be kept: %s", store.told(error) or error)
    return data


class _ColouredError(Exception):
    """A picture among grey ones is coloured."""


def _decoded(
    folder: Path,
    groups: dict[str, list[File]],
    size: tuple[int, int] | None,
    channels: int | None,
) -> Images:
    first = folder / groups["train"][0][0]
    height, width, found = pixels(first, channels, size).shape
    try:
        return _filled(folder, groups, size, channels, (found, height, width))
    except _ColouredError:
        return _filled(folder, groups, size, channels, (3, height, width))


def _filled(
    folder: Path,
    groups: dict[str, list[File]],
    size: tuple[int, int] | None,
    channels: int | None,
    shape: tuple[int, int, int],
) -> Images:
    """The images (N, channels, H, W) of each group, decoded on all cores.

    Raises:
        ValueError: an image has another size, or all are too large for the memory.
    """
    count = sum(map(len, groups.values()))
    if (needed := count * int(np.prod(shape))) > (memory := machine.memory()):
        raise ValueError(
            f"{count} images of {shape[1]} x {shape[2]} pixels take {decimal(needed)}; this "
            f"process may have {decimal(memory)} of memory: set a smaller data.size"
        )
    arrays = {p: np.empty((len(group), *shape), np.uint8) for p, group in groups.items()}
    first = groups["train"][0][0]
    decode = partial(several, folder, channels=channels, size=size)
    step = max(1, min(CHUNK, BYTES // int(np.prod(shape))))
    jobs = [(p, start) for p, group in groups.items() for start in range(0, len(group), step)]
    names = [[file[0] for file in groups[p][start : start + step]] for p, start in jobs]

    def fill(pool: Executor, advance: Callable[[int], None]) -> None:
        for (part, start), own, images in zip(jobs, names, pool.map(decode, names), strict=True):
            for n, (name, image) in enumerate(zip(own, images, strict=True), start):
                _fits(image, shape, folder, name, first)
                arrays[part][n] = image.transpose(2, 0, 1)  # a grey one into each of three channels
            advance(len(own))

    with progress() as bars:
        task = bars.add_task(f"images of {folder.name}", total=count)
        try:
            with _decoders(count) as pool:
                fill(pool, partial(bars.advance, task))
        except BrokenExecutor:  # a process was killed, perhaps since memory was short
            bars.reset(task)
            with _threads() as pool:
                fill(pool, partial(bars.advance, task))
        finally:
            bars.remove_task(task)
    return {part: torch.from_numpy(array) for part, array in arrays.items()}


@contextmanager
def _decoders(count: int) -> Iterator[Executor]:
    """What decodes so many images on all cores: threads, or processes where that pays.

    Pillow holds Python's lock for most of the time that a small picture takes, so that threads are
    no faster than one.
    """
    workers = machine.cores()
    if count < MANY or workers == 1:
        with _threads() as pool:
            yield pool
        return
    from loky import ProcessPoolExecutor  # late: few need it

    processes = ProcessPoolExecutor(workers, initializer=interrupt.obey)
    try:
        yield processes
    finally:
        processes.shutdown(kill_workers=True)


@contextmanager
def _threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(machine.cores()) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fits(image: Pixels, shape: tuple[int, int, int], folder: Path, name: str, first: str) -> None:
    """Raises ValueError: the image has another size; _ColouredError: it has colours."""
    height, width, channels = image.shape
    if (height, width) != shape[1:]:
        raise ValueError(
            f"{folder / name}: it is {width} x {height} pixels, and {first} is {shape[2]} x "
            f"{shape[1]}; set data.size, a side in pixels or [H,W], to which all are brought"
        )
    if channels > shape[0]:
        raise _ColouredError
