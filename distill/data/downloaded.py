"""MNIST and Fashion-MNIST: the files of their authors, which torchvision downloads if need be."""

import hashlib
import logging
import shutil
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from filelock import FileLock, Timeout
from torch import Tensor

log = logging.getLogger(__name__)

# The SHA-256 of the four raw files, one after another, as the data sets' authors published them.
CONTENT = {
    "MNIST": "b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a",
    "FashionMNIST": "14410854cf7a289477dcfc7df3f8ec24741e281cdcc425ede0d9a748ca630214",
}
FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
SCRATCH = ".download-"
PAUSE = 1.0  # seconds after which a file that somebody writes has changed


def _contents(name: str, raw: Path) -> list[bytes] | None:
    """The bytes of the four files; None if some are missing.

    Raises:
        OSError: one cannot be read.
        ValueError: they are not those of the authors.
    """
    paths = [raw / f"{stem}-ubyte" for stem in FILES]
    if not all(path.is_file() for path in paths):
        return None
    contents = [path.read_bytes() for path in paths]
    sha = hashlib.sha256()
    for content in contents:
        sha.update(content)
    if sha.hexdigest() != CONTENT[name]:
        raise ValueError(f"{raw} is damaged: its content is not that of {name}; delete the folder")
    return contents


def _state(raw: Path) -> list[tuple[str, int, int]]:
    """What changes while somebody writes files there."""
    found = [(path.name, path.stat()) for path in sorted(raw.glob("*-ubyte*"))]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def _settled(name: str, raw: Path) -> list[bytes] | None:
    """The contents once nobody, who may know nothing of the lock, writes them any more."""
    while True:
        before = _state(raw)
        try:
            return _contents(name, raw)
        except ValueError:
            time.sleep(PAUSE)
            if _state(raw) == before:
                raise


def _download(name: str, raw: Path) -> list[bytes]:
    """Download the files beside ``raw``, then put them there, each whole; returns their bytes.

    Archives that lie there already are unpacked instead, if they are whole.
    """
    from torchvision import datasets

    raw.mkdir(parents=True, exist_ok=True)
    for left in raw.parent.glob(f"{SCRATCH}*"):  # by one that was killed: no other is at work
        shutil.rmtree(left)
    with TemporaryDirectory(prefix=SCRATCH, dir=raw.parent) as scratch:
        new = Path(scratch) / name / "raw"
        new.mkdir(parents=True)
        for archive in raw.glob("*-ubyte.gz"):
            shutil.copyfile(archive, new / archive.name)
        with redirect_stdout(StringIO()):  # it tells of each mirror that it tries
            getattr(datasets, name)(scratch, download=True)
        try:
            contents = _contents(name, new)
        except ValueError as error:
            raise OSError(f"what came is not {name}") from error
        assert contents is not None  # or torchvision would have said so
        for stem in FILES:
            (new / f"{stem}-ubyte").replace(raw / f"{stem}-ubyte")
    return contents


def _locked(name: str, raw: Path) -> list[bytes]:
    """The files' bytes, which one process at a time downloads while the others wait."""
    raw.parent.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(raw.parent.with_name(f"{name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("another process is at work in %s: waiting for it", raw.parent)
        lock.acquire()
    try:
        return _settled(name, raw) or _download(name, raw)
    except BaseException:  # nothing is left of what failed; who waits takes a lock of its own
        Path(lock.lock_file).unlink(missing_ok=True)
        raise
    finally:
        lock.release()


def _load(name: str, root: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Raises OSError: a file is missing and cannot be downloaded; ValueError: one is damaged."""
    raw = Path(root) / name / "raw"
    try:
        contents = _contents(name, raw)
    except ValueError:
        contents = None  # or being written
    if contents is None:
        try:
            contents = _locked(name, raw)
        except (RuntimeError, OSError, EOFError) as error:
            if all((raw / f"{stem}-ubyte").is_file() for stem in FILES):
                _contents(name, raw)  # the folder is read-only: they are damaged
            reason = " ".join(str(error).split())
            message = f"{raw} lacks files of {name}, and they could not be downloaded ({reason})"
            raise OSError(message) from error
    images, labels, test_images, test_labels = map(_parsed, contents)
    return images, labels.long(), test_images, test_labels.long()


def _parsed(content: bytes) -> Tensor:
    """The numbers of an idx file of bytes: three sizes and images, or one size and labels."""
    sizes = [int.from_bytes(content[4 * n : 4 * n + 4], "big") for n in range(1, 1 + content[3])]
    return torch.frombuffer(bytearray(content[4 + 4 * len(sizes) :]), dtype=torch.uint8).view(sizes)


def mnist(*, root: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """60,000 training and 10,000 test digits, 28 x 28 (LeCun, Cortes and Burges)."""
    return _load("MNIST", root)


def fashion_mnist(*, root: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """60,000 training and 10,000 test pictures of clothes, 28 x 28 (Xiao et al. 2017)."""
    return _load("FashionMNIST", root)
