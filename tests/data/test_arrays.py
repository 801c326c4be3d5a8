"""Arrays in files, and labels of any kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import PIXELS, Case, Payload, change, one_line, text
from conftest import Cli
from safetensors.torch import save_file

from distill.data import (
    arrays,
)
from distill.data.dataset import load
from distill.data.labels import encoded


def test_a_thousand_classes() -> None:
    labels = np.array([f"{n:04}" for n in range(1000)])
    np.savez("a.npz", train_x=np.eye(1000), train_y=labels, test_x=np.eye(1000), test_y=labels)
    data = load(arrays, root="a.npz")
    assert data.classes == 1000 and data.names[999] == "0999"


LABELS = np.arange(8) % 2
IMAGES = PIXELS[:8]


def saved(name: str, **parts: Any) -> None:
    """Arrays in a file or folder whose name says of which kind."""
    if name.endswith(".npz"):
        np.savez(name, **parts)
    elif name.endswith(".safetensors"):
        save_file({n: torch.tensor(part) for n, part in parts.items()}, name)
    elif name.endswith(".pt"):
        torch.save({n: torch.tensor(part) for n, part in parts.items()}, name)
    else:
        Path(name).mkdir()
        for n, part in parts.items():
            np.save(Path(name, f"{n}.npy"), part)


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.pt", "a"])
def test_each_kind_of_file_holds_the_same_arrays(name: str) -> None:
    saved(name, train_x=IMAGES, train_y=LABELS, test_x=IMAGES[:4], test_y=LABELS[:4, None])
    data = load(arrays, root=name)
    assert np.array_equal(data.train_inputs.numpy(), IMAGES.transpose(0, 3, 1, 2))
    assert data.test_labels.tolist() == [0, 1, 0, 1] and data.names == ()


def test_arrays_have_the_names_of_others_and_a_split_of_their_own() -> None:
    whole = {"x_train": IMAGES, "Y_train": LABELS, "test_images": IMAGES, "test_labels": LABELS}
    saved("a.npz", **whole, val_images=IMAGES[:2], val_labels=LABELS[:2], note=np.zeros(3))
    data = load(arrays, root="a.npz")
    assert data.held is not None and data.held.tolist() == [False] * 8 + [True] * 2
    assert data.train_labels.tolist() == [*LABELS.tolist(), 0, 1]


def test_features_are_floats_and_channels_are_where_it_is_said() -> None:
    rows, wide = np.arange(16).reshape(8, 2), IMAGES.transpose(0, 3, 1, 2)[..., :3]
    for x, kind in ((rows, torch.float64), (rows.astype(np.uint8), torch.float32)):
        saved("a.npz", train_x=x, train_y=LABELS, test_x=x, test_y=LABELS)
        data = load(arrays, root="a.npz")
        assert data.features and data.train_inputs.dtype == kind
        assert data.train_inputs.tolist() == rows.tolist()
    saved("a.npz", train_x=wide, train_y=LABELS, test_x=wide, test_y=LABELS)
    assert load(arrays, root="a.npz", layout="channels_first").shape == (3, 6, 3)
    assert load(arrays, root="a.npz", layout="channels_last").shape == (3, 3, 6)
    big = np.arange(16, dtype=">f4").reshape(8, 2)
    saved("a.npz", train_x=big, train_y=LABELS, test_x=big, test_y=LABELS)
    assert load(arrays, root="a.npz").train_inputs.tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("labels", "classes", "names"),
    [
        ([0, 1, 1], [0, 1, 1], ()),
        ([3, -7, 9], [1, 0, 2], ("-7", "3", "9")),
        ([1.0, 2.0, 2.0], [0, 1, 1], ("1", "2")),
        (["b", "a", "b"], [1, 0, 1], ("a", "b")),
        ([b"b", b"a", b"b"], [1, 0, 1], ("a", "b")),
        ([True, False, True], [1, 0, 1], ("False", "True")),
    ],
)
def test_labels_of_any_kind_are_classes(labels: Any, classes: Any, names: Any) -> None:
    found, called = encoded({"training": np.array(labels), "test": np.array(labels[:1])})
    assert found["training"].tolist() == classes and called == names
    assert found["test"].tolist() == classes[:1]


WHOLE: Any = {"train_x": IMAGES, "train_y": LABELS, "test_x": IMAGES, "test_y": LABELS}


def npz(**parts: Any) -> Callable[[], object]:
    whole = {**WHOLE, **parts}
    return lambda: saved("d.npz", **{n: part for n, part in whole.items() if part is not None})


def damaged_npz() -> None:
    """A compressed one, in whose first array bits were turned."""
    np.savez_compressed("d.npz", **WHOLE)
    content = bytearray(Path("d.npz").read_bytes())
    content[30 + content[26] + content[28]] = 0xFF  # after the header, its name and what else
    Path("d.npz").write_bytes(content)


def two(*makes: Callable[[], object]) -> Callable[[], object]:
    return lambda: [make() for make in makes]


ARRAYS = "data=arrays data.root=d.npz"
BAD: dict[str, Case] = {
    "a kind": (text("d.mat", "x"), "data=arrays data.root=d.mat", "it is no file of .npz, .safet"),
    "no file": (lambda: None, ARRAYS, "data.root=d.npz: there is no file d.npz"),
    "no arrays": (lambda: Path("d").mkdir(), "data=arrays data.root=d", "its arrays are none; "),
    "names": (lambda: saved("d.npz", a=LABELS), ARRAYS, "its arrays are a; wanted are train_x, "),
    "no labels": (npz(test_y=None), ARRAYS, "it lacks the test inputs or labels; wanted are"),
    "half": (npz(val_x=IMAGES), ARRAYS, "it has validation inputs or labels, but not both"),
    "twice": (npz(x_train=IMAGES), ARRAYS, "it has both train_x and x_train; one of them"),
    "noise": (
        text("d.npz", b"PK\x03\x04 and no more"),
        ARRAYS,
        "d.npz: not a readable .npz file (",
    ),
    "objects": (
        npz(train_y=np.array([Payload()] * 8, object)),
        ARRAYS,
        "d.npz: not a readable .npz file (Object arrays cannot be loaded",
    ),
    "a pickle": (
        lambda: torch.save({"train_x": Payload()}, "d.pt"),
        "data=arrays data.root=d.pt",
        "reading it would run code, so it is not read",
    ),
    "a list": (
        lambda: torch.save([torch.zeros(3)], "d.pt"),
        "data=arrays data.root=d.pt",
        "it holds list, no arrays by their names",
    ),
    "cut tensors": (
        lambda: text("d.safetensors", b"\x09")(),
        "data=arrays data.root=d.safetensors",
        "data.root=d.safetensors: not a readable .safetensors file (",
    ),
    "bits": (damaged_npz, ARRAYS, "data.root=d.npz: not a readable .npz file ("),
    "a cut array": (
        two(lambda: saved("d", **WHOLE), lambda: change("d/test_y.npy", 99)),
        "data=arrays data.root=d",
        "data.root=d: d/test_y.npy: not a readable .npy file (",
    ),
    "sparse": (
        lambda: torch.save({"train_x": torch.eye(3).to_sparse()}, "d.pt"),
        "data=arrays data.root=d.pt",
        "its array train_x is not a dense tensor",
    ),
    "other sizes": (
        npz(val_x=IMAGES[:, :5], val_y=LABELS),
        ARRAYS,
        "its training and validation inputs have different sizes, (3, 6, 5) and (3, 5, 5)",
    ),
    "layout": (npz(train_x=IMAGES[:, :, :3]), ARRAYS, "training and test inputs have"),
    "either": (
        npz(train_x=IMAGES[:, :3], test_x=IMAGES[:, :3]),
        ARRAYS,
        "its training inputs are uint8 (8, 3, 5, 3), whose channels may be the second axis or",
    ),
    "neither": (npz(train_x=IMAGES[..., :2]), ARRAYS, "(8, 6, 5, 2), whose channels may be"),
    "floats": (npz(train_x=IMAGES / 255), ARRAYS, "are float64 (8, 6, 5, 3); images are uint8"),
    "too bright": (npz(train_x=IMAGES.astype(int) + 9), ARRAYS, "images are uint8, from 0 to 255"),
    "text inputs": (npz(train_x=np.array([["a"]] * 8)), ARRAYS, "are <U1 (8, 1); wanted are num"),
    "axes": (npz(train_x=LABELS), ARRAYS, "are int64 (8,); wanted are images (N, H, W) and more"),
    "nan": (npz(train_x=np.full((8, 2), np.nan)), ARRAYS, "hold nan in row 0, column 0"),
    "one-hot": (npz(train_y=np.eye(8)), ARRAYS, "its training labels are (8, 8); wanted is (N,)"),
    "fractions": (npz(train_y=LABELS / 2), ARRAYS, "labels hold 0.5; a label is a class"),
    "a new class": (npz(test_y=LABELS + 1), ARRAYS, "test labels hold 2, of which there is no"),
    "two kinds": (npz(test_y=LABELS.astype(str)), ARRAYS, "some of its labels are numbers, and"),
    "more labels": (npz(train_y=LABELS[:7]), ARRAYS, "labels are int64 (7,); wanted is int64 (8,)"),
    "one label": (npz(train_y=LABELS * 0, test_y=LABELS * 0), ARRAYS, "all its labels are 0: of"),
}


@pytest.mark.table
@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_of_arrays_is_one_line(case: str, cli: Cli, home: Path) -> None:
    one_line(BAD[case], cli, home)
