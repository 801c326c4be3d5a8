"""Data sets of others: files of their authors, which torchvision downloads if need be.

Letters: N examples.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from distill.data.dataset import Dataset
from distill.system import store

# The SHA-256 of the four raw files, one after another, as the data sets' authors published them.
# Of others torchvision knows the archive's digest alone: once it was downloaded and verified, the
# raw files' own are written beside them, and verified at each reading. Files that came otherwise
# are seen to have the lengths that they say, and labels that there are.
CONTENT = {
    "MNIST": "b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a",
    "FashionMNIST": "14410854cf7a289477dcfc7df3f8ec24741e281cdcc425ede0d9a748ca630214",
}
FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
ARCHIVES = (".gz", ".zip")
SCRATCH = ".download-"
SUMS = "SHA256SUMS"  # lines of a digest and a file's name, as sha256sum writes and reads them
PAUSE = 1.0  # seconds after which a file that somebody writes has changed
Split = Literal["balanced", "byclass", "bymerge", "letters", "digits", "mnist"]
Content = TypeVar("Content")
Read = Callable[[Path], Content | None]


def _state(folder: Path, name: str) -> list[tuple[str, int, int]]:
    """What changes while somebody writes files of ``name`` there."""
    places = [folder / name, *folder.glob("cifar-*/"), *folder.glob("*_32x32.mat")]
    files = [path for place in places for path in (place, *place.rglob("*")) if path.is_file()]
    found = [(str(path), path.stat()) for path in sorted(files) if SCRATCH not in str(path)]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in found]


def _settled(name: str, root: Path, read: Read[Content]) -> Content | None:
    """The contents once nobody, who may know nothing of the lock, writes them any more."""
    while True:
        before = _state(root, name)
        try:
            return read(root)
        except ValueError:
            time.sleep(PAUSE)
            if _state(root, name) == before:
                raise


def _download(name: str, root: Path, read: Read[Content], parts: Sequence[Any]) -> Content:
    """Download the files beside their place, then put them there, each whole; returns the content.

    Archives that lie there already are unpacked instead, if they are whole.
    """
    from torchvision import datasets

    for left in root.glob(f"{SCRATCH}{name}-*"):  # by one that was killed: no other is at work
        shutil.rmtree(left)
    with TemporaryDirectory(prefix=f"{SCRATCH}{name}-", dir=root) as scratch:
        new = Path(scratch)
        kind = getattr(datasets, name)
        own = getattr(kind, "filename", None)  # of an archive beside the folder
        archives = (
            [root / own] if own else [p for k in ARCHIVES for p in root.glob(f"{name}/raw/*{k}")]
        )
        for archive in archives:
            if archive.is_file():
                (new / archive.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(archive, new / archive.relative_to(root))
        with redirect_stdout(StringIO()):  # it tells of each mirror that it tries
            for part in parts:
                kind(scratch, download=True, **part)
        try:
            contents = read(new)
        except ValueError as error:
            raise OSError(f"what came is not {name}") from error
        assert contents is not None  # or torchvision would have said so
        if name not in CONTENT and (raw := [*new.glob(f"{name}/raw/*-ubyte")]):
            lines = sorted(f"{store.file_digest(path)}  {path.name}\n" for path in raw)
            (raw[0].parent / SUMS).write_text("".join(lines), encoding="utf-8")
        for path in new.rglob("*"):
            if path.is_file() and path.suffix not in ARCHIVES:
                place = root / path.relative_to(new)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
    return contents


def _load(name: str, root: str, where: str, read: Read[Content], parts: Sequence[Any]) -> Content:
    """What ``read`` makes of the files in a folder, which one process at a time downloads.

    Args:
        name: of torchvision's class.
        root: the folder.
        where: the files are in it, for messages.
        read: from the folder to the content; None if files are missing. Raises ValueError: they are
            damaged.
        parts: the arguments with which torchvision's class downloads all of them.

    Raises:
        OSError: a file is missing and cannot be downloaded.
        ValueError: one is damaged.
    """
    folder = Path(root)
    try:
        contents = read(folder)
    except ValueError:
        contents = None  # or being written
    if contents is not None:
        return contents
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with store.alone(folder / f"{name}.lock"):
            contents = _settled(name, folder, read)
            return _download(name, folder, read, parts) if contents is None else contents
    except (RuntimeError, OSError, EOFError) as error:
        read(folder)  # the folder is read-only: they are damaged
        reason = " ".join(str(error).split())
        message = f"{folder / where} lacks files of {name}, and they could not be downloaded"
        raise OSError(f"{message} ({reason})") from error


def _idx(name: str, stems: Sequence[str], root: Path) -> list[Tensor] | None:
    """The arrays of files of the form of MNIST; None if some are missing.

    Raises:
        OSError: one cannot be read.
        ValueError: they are not those of the authors.
    """
    raw = root / name / "raw"
    paths = [raw / f"{stem}-ubyte" for stem in stems]
    if not all(path.is_file() for path in paths):
        return None
    contents = [path.read_bytes() for path in paths]
    damaged = ValueError(f"{raw} is damaged: its content is not that of {name}; delete the folder")
    if name in CONTENT:
        if hashlib.sha256(b"".join(contents)).hexdigest() != CONTENT[name]:
            raise damaged
    elif (raw / SUMS).is_file():
        text = (raw / SUMS).read_text(encoding="utf-8", errors="replace")
        own = [hashlib.sha256(content).hexdigest() for content in contents]
        pairs = zip(own, paths, strict=True)
        if not {f"{sha}  {path.name}" for sha, path in pairs} <= {*text.splitlines()}:
            raise damaged
    try:
        return [_parsed(content) for content in contents]
    except (IndexError, RuntimeError, ValueError) as error:  # cut, where no digest is known
        raise damaged from error


def _parsed(content: bytes) -> Tensor:
    """The numbers of an idx file of bytes: three sizes and images, or one size and labels."""
    if content[:3] != b"\0\0\x08":
        raise ValueError("it is no idx file of bytes")
    sizes = [int.from_bytes(content[4 * n : 4 * n + 4], "big") for n in range(1, 1 + content[3])]
    return torch.frombuffer(bytearray(content[4 + 4 * len(sizes) :]), dtype=torch.uint8).view(sizes)


def _digits(
    name: str, root: str, stems: Sequence[str] = FILES, **options: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Raises OSError: a file is missing and cannot be downloaded; ValueError: one is damaged."""
    read = partial(_idx, name, stems)
    parts = [{**options, "train": train} for train in (True, False)] if options else [{}]
    images, labels, test_inputs, test_labels = _load(name, root, f"{name}/raw", read, parts)
    return images, labels.long(), test_inputs, test_labels.long()


def _torchvision(name: str, parts: Sequence[dict[str, Any]], root: Path) -> list[Any] | None:
    """torchvision's data set of each part; None where one is missing or has not its digest."""
    from torchvision import datasets

    try:
        return [getattr(datasets, name)(root, **part) for part in parts]
    except RuntimeError:
        return None


def mnist(*, root: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """60,000 training and 10,000 test digits, 28 x 28 (LeCun, Cortes and Burges)."""
    return _digits("MNIST", root)


def fashion_mnist(*, root: str) -> Dataset:
    """60,000 training and 10,000 test pictures of clothes, 28 x 28 (Xiao et al. 2017)."""
    return Dataset(*_digits("FashionMNIST", root), names=CLOTHES)


def kmnist(*, root: str) -> Dataset:
    """60,000 training and 10,000 test characters of cursive Japanese (Clanuwat et al. 2018)."""
    return Dataset(*_digits("KMNIST", root), names=KANA)


def emnist(*, root: str, split: Split = "balanced") -> Dataset:
    """Handwritten digits and letters, 28 x 28, upright (Cohen et al. 2017, arXiv 1702.05373).

    The authors' files hold each image with its rows and columns exchanged, and torchvision gives
    them so; here they are exchanged back. Letters count from 1 in them, and here from 0.
    """
    from torchvision.datasets import EMNIST

    files = [f"emnist-{split}-{part}" for part in ("train", "test")]
    stems = [f"{file}-{kind}" for file in files for kind in ("images-idx3", "labels-idx1")]
    images, labels, test_inputs, test_labels = _digits("EMNIST", root, stems, split=split)
    first = int(split == "letters")
    return Dataset(
        images.transpose(1, 2).contiguous(),
        labels - first,
        test_inputs.transpose(1, 2).contiguous(),
        test_labels - first,
        names=tuple(EMNIST.classes_split_dict[split][first:]),
    )


def _colours(name: str, root: str, where: str, parts: Sequence[dict[str, Any]]) -> Dataset:
    train, test = _load(name, root, where, partial(_torchvision, name, parts), parts)
    inputs, labels = [], []
    for part in (train, test):
        last = part.data.shape[-1] == 3  # (N, H, W, channels)
        pixels = torch.from_numpy(part.data)
        inputs.append((pixels.permute(0, 3, 1, 2) if last else pixels).contiguous())
        labels.append(torch.as_tensor(part.labels if name == "SVHN" else part.targets).long())
    names = tuple(getattr(train, "classes", ()))
    return Dataset(inputs[0], labels[0], inputs[1], labels[1], names=names)


def cifar10(*, root: str) -> Dataset:
    """50,000 training and 10,000 test pictures of 10 kinds, 3 x 32 x 32 (Krizhevsky 2009)."""
    return _colours("CIFAR10", root, "cifar-10-batches-py", [{"train": True}, {"train": False}])


def cifar100(*, root: str) -> Dataset:
    """50,000 training and 10,000 test pictures of 100 kinds, 3 x 32 x 32 (Krizhevsky 2009)."""
    return _colours("CIFAR100", root, "cifar-100-python", [{"train": True}, {"train": False}])


def svhn(*, root: str) -> Dataset:
    """73,257 training and 26,032 test house numbers, 3 x 32 x 32 (Netzer et al. 2011)."""
    parts = [{"split": part} for part in ("train", "test")]
    return _colours("SVHN", root, "train_32x32.mat", parts)
