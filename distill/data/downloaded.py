"""MNIST and Fashion-MNIST through torchvision, which downloads what is missing."""

import hashlib
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from torch import Tensor

# The SHA-256 of the four raw files, one after another, as the data sets' authors published them.
CONTENT = {
    "MNIST": "b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a",
    "FashionMNIST": "14410854cf7a289477dcfc7df3f8ec24741e281cdcc425ede0d9a748ca630214",
}
FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def _load(name: str, root: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Raises OSError: a file is missing and cannot be downloaded; ValueError: one is damaged."""
    from torchvision import datasets

    source = getattr(datasets, name)
    raw = Path(root) / name / "raw"
    paths = [raw / f"{stem}-ubyte" for stem in FILES]
    if not all(path.is_file() for path in paths):
        try:
            with redirect_stdout(StringIO()):  # it tells of each mirror that it tries
                source(root, download=True)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            message = f"{raw} lacks files of {name}, and they could not be downloaded ({reason})"
            raise OSError(message) from error
    sha = hashlib.sha256()
    for path in paths:
        sha.update(path.read_bytes())
    if sha.hexdigest() != CONTENT[name]:
        raise ValueError(f"{raw} is damaged: its content is not that of {name}; delete the folder")
    train, test = source(root, train=True), source(root, train=False)
    return train.data, train.targets, test.data, test.targets


def mnist(*, root: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """60,000 training and 10,000 test digits, 28 x 28 (LeCun, Cortes and Burges)."""
    return _load("MNIST", root)


def fashion_mnist(*, root: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """60,000 training and 10,000 test pictures of clothes, 28 x 28 (Xiao et al. 2017)."""
    return _load("FashionMNIST", root)
