"""The data sets that torchvision downloads, beside MNIST."""

import gzip
import hashlib
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import PIXELS, SMALL
from conftest import Cli
from torchvision import datasets

from distill.data import (
    cifar100,
    downloaded,
    emnist,
    kmnist,
    svhn,
)
from distill.data.dataset import Dataset, load


def test_cifar_is_read_with_its_names_and_damage_is_a_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    folder = home / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    images = np.random.default_rng(1).integers(0, 256, (4, 3072), dtype=np.uint8)
    body = {"data": images, "fine_labels": [0, 1, 1, 0]}
    lists = []
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps(body))
        lists.append([[name, hashlib.md5(pickle.dumps(body)).hexdigest()]])
    meta = pickle.dumps({"fine_label_names": ["apple", "fish"]})
    (folder / "meta").write_bytes(meta)
    own = {**datasets.CIFAR100.meta, "md5": hashlib.md5(meta).hexdigest()}
    for key, value in (("train_list", lists[0]), ("test_list", lists[1]), ("meta", own)):
        monkeypatch.setattr(datasets.CIFAR100, key, value)
    data = load(cifar100, root="data")
    assert np.array_equal(data.train_inputs.numpy(), images.reshape(4, 3, 32, 32))
    assert data.names == ("apple", "fish") and data.test_labels.tolist() == [0, 1, 1, 0]
    (folder / "test").write_bytes(b"noise")
    monkeypatch.setattr(datasets.CIFAR100, "url", "file:///nowhere/x.tar.gz")
    monkeypatch.setattr(downloaded, "PAUSE", 0.01)
    done = cli("data=cifar100", "data.root=data", *SMALL)
    said = "data.root=data: data/cifar-100-python lacks files of CIFAR100, and they could not be"
    assert (done.code, done.err.count("\n")) == (1, 1) and done.err.startswith(said)
    assert {path.name for path in (home / "data").iterdir()} == {"cifar-100-python"}


def test_house_numbers_are_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    (home / "data").mkdir()
    images = np.random.default_rng(1).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    files = {}
    for part in ("train", "test"):
        path = home / "data" / f"{part}_32x32.mat"
        savemat(path, {"X": images, "y": np.array([[1], [10], [1], [10]], np.uint8)})
        files[part] = ["file:///nowhere", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", files)
    data = load(svhn, root="data")
    assert np.array_equal(data.train_inputs.numpy(), images.transpose(3, 2, 0, 1))
    assert data.train_labels.tolist() == [1, 0, 1, 0]


def idx(numbers: np.ndarray[Any, Any]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in numbers.shape)
    content: bytes = numbers.astype(np.uint8).tobytes()
    return bytes([0, 0, 8, numbers.ndim]) + sizes + content


def test_letters_are_upright_and_count_from_0(home: Path) -> None:
    raw = home / "data" / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = PIXELS[:26, :5, :, 0], np.arange(1, 27)
    for part in ("train", "test"):
        (raw / f"emnist-letters-{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"emnist-letters-{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    data = load(emnist, root="data", split="letters")
    assert np.array_equal(data.train_inputs[:, 0].numpy(), images.transpose(0, 2, 1))
    assert data.train_labels.tolist() == list(range(26))
    assert data.names[:3] == ("a", "b", "c") and len(data.names) == 26


def test_kana_come_from_archives_and_damage_is_told(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = home / "data" / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    parts: list[np.ndarray[Any, Any]] = [PIXELS[:10, :5, :, 0], np.arange(10)] * 2
    names = []
    for stem, part in zip(downloaded.FILES, parts, strict=True):
        (raw / f"{stem}-ubyte.gz").write_bytes(gzip.compress(idx(part)))
        names.append((f"{stem}-ubyte.gz", None))
    monkeypatch.setattr(datasets.KMNIST, "resources", names)
    monkeypatch.setattr(downloaded, "PAUSE", 0.01)
    data: Dataset = load(kmnist, root="data")
    assert data.names[1] == "ki" and data.shape == (1, 5, 5)
    path = raw / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    turned = whole[:99] + bytes([whole[99] ^ 1]) + whole[100:]
    for damage in (turned, whole[:99], whole + b"x", b"\0\0\x09" + whole[3:]):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match="KMNIST/raw is damaged: its content is not that of"):
            load(kmnist, root="data")
    (raw / downloaded.SUMS).unlink()  # as others download it
    for damage in (whole[:99], whole + b"x", b"\0\0\x09" + whole[3:]):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match="KMNIST/raw is damaged: its content is not that of"):
            load(kmnist, root="data")
    shutil.rmtree(raw)
    monkeypatch.setattr(datasets.KMNIST, "mirrors", ["file:///nowhere/"])
    with pytest.raises(OSError, match="lacks files of KMNIST, and they could not be downloaded"):
        load(kmnist, root="data")
    assert not list((home / "data").rglob("*.lock"))
