"""Data of one's own: folders of pictures, arrays, tables; and the data sets of torchvision."""

import gzip
import hashlib
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Cli
from PIL import Image
from safetensors.torch import save_file
from torchvision import datasets

import distill
from distill.cli import commands, using
from distill.data import (
    arrays,
    cifar100,
    downloaded,
    emnist,
    folders,
    image_folder,
    kmnist,
    svhn,
    table,
)
from distill.data.dataset import Dataset, load
from distill.data.labels import encoded
from distill.data.pictures import pixels
from distill.deploy.export import facts

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
SMALL = (
    *("model.width=4", "train.epochs=1", "teacher.model.width=4", "teacher.train.epochs=1"),
    *("teacher.jitter=0", "train.batch_size=16", "teacher.train.batch_size=16"),
)


def picture(
    path: str | Path, n: int = 0, mode: str = "RGB", size: tuple[int, int] = (5, 6)
) -> None:
    """A picture of random pixels at a path, whose end says of which format."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS[n]).convert(mode).resize(size).save(path)


def pictures(root: str = "d", classes: str = "ab", **keys: Any) -> None:
    """Three pictures of each class to train and one to test, as a folder has them."""
    for place, name in enumerate(classes):
        for n in range(3):
            picture(f"{root}/train/{name}/{n}.png", 4 * place + n, **keys)
        picture(f"{root}/test/{name}/x.png", 4 * place + 3, **keys)


# Folders of pictures


def test_a_folder_is_read_as_its_pictures_are(home: Path) -> None:
    pictures(classes="cab")
    picture("d/val/b/deep/y.bmp", 30)
    picture("d/train/a/.hidden.png", 31)
    data = load(image_folder, root="d")
    assert data.names == ("a", "b", "c") and data.classes == 3
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 1]
    assert data.test_labels.tolist() == [0, 1, 2]
    assert data.held is not None and data.held.tolist() == [False] * 9 + [True]
    # Class c was written first: its pictures are the first of all pixels.
    order = [4, 5, 6, 8, 9, 10, 0, 1, 2, 30]
    assert np.array_equal(data.train_inputs.numpy(), PIXELS[order].transpose(0, 3, 1, 2))
    assert load(image_folder, root="d", test="val").test_labels.tolist() == [1]
    assert load(image_folder, root="d", test="val").held is None
    kept = [path.name for path in home.glob("[!.]*") if path.is_file()]
    assert len(kept) == 2 and all(name.startswith("d-") for name in kept)


def test_grey_pictures_have_one_channel_unless_one_is_coloured() -> None:
    pictures(mode="L")
    grey = np.asarray(Image.fromarray(PIXELS[0]).convert("L"))
    data = load(image_folder, root="d")
    assert data.shape == (1, 6, 5) and np.array_equal(data.train_inputs[0, 0].numpy(), grey)
    assert load(image_folder, root="d", channels=3).shape == (3, 6, 5)
    picture("d/test/a/z.png", 20)
    mixed = load(image_folder, root="d")
    assert mixed.shape == (3, 6, 5)
    assert all(np.array_equal(mixed.train_inputs[0, c].numpy(), grey) for c in range(3))
    assert np.array_equal(mixed.test_inputs[1].numpy(), PIXELS[20].transpose(2, 0, 1))
    assert load(image_folder, root="d", channels=1).shape == (1, 6, 5)


def test_pictures_of_other_sizes_are_brought_to_one() -> None:
    pictures()
    whole = np.zeros((20, 30, 3), np.uint8)
    whole[:, 5:25] = 200  # the square in the middle
    Image.fromarray(whole).save("d/test/b/wide.jpg", quality=100)
    data = load(image_folder, root="d", size=10)
    assert data.shape == (3, 10, 10)
    assert data.test_inputs[1][:, :, 1:-1].float().sub(200).abs().max() <= 6
    assert load(image_folder, root="d", size=[8, 4]).shape == (3, 8, 4)


def test_a_student_of_resized_pictures_takes_pictures_of_any_size(cli: Cli, home: Path) -> None:
    pictures()
    keys = ("data.size=4", "loss=hard", "data.validation=given")
    picture("d/val/a/v.png", 9)
    done = cli("data=image_folder", "data.root=d", *keys, *SMALL)
    assert done.code == 0, done.err
    student = distill.load(done.out.splitlines()[-1])
    assert student.shape == (3, 4, 4) and student.names == ("a", "b")
    picture("p.png", 12, size=(9, 11))
    using.predict(Path(done.out.splitlines()[-1]), None, [Path("p.png")], home / "o.csv")
    [image] = (torch.from_numpy(pixels(Path("p.png"), 3, (4, 4)).copy()).permute(2, 0, 1),)
    share = student.probabilities(image[None])[0]
    said = f"p.png,{student.names[int(share.argmax())]},{float(share.max()):.4f}"
    assert Path("o.csv").read_text().splitlines()[1] == said


def test_pictures_are_decoded_again_only_when_they_changed(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pictures()
    decoded: list[Path] = []

    def counted(path: Path, *rest: Any) -> Any:
        decoded.append(path)
        return pixels(path, *rest)

    monkeypatch.setattr(folders, "pixels", counted)
    first = load(image_folder, root="d")
    assert len(decoded) == 8 + 1  # of the first, the shape
    assert load(image_folder, root="d").digest == first.digest and len(decoded) == 9
    picture("d/train/a/1.png", 33)
    changed = load(image_folder, root="d")
    assert np.array_equal(changed.train_inputs[1].numpy(), PIXELS[33].transpose(2, 0, 1))
    [kept] = home.glob("d-*")
    content = bytearray(kept.read_bytes())
    for damage in (bytes(content[:-1] + b"?"), bytes(content[:-9]), b"", b"noise" * 99):
        kept.write_bytes(damage)
        assert load(image_folder, root="d").digest == changed.digest
        assert "made anew" in caplog.records[-1].message
        count = len(decoded)
        assert load(image_folder, root="d").digest == changed.digest and len(decoded) == count


def test_where_no_file_can_be_written_the_images_are_kept_elsewhere(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    pictures()
    first = load(image_folder, root="d")
    [kept] = home.glob("d-*")
    kept.unlink()
    lock = home / f".{kept.name}.lock"
    lock.unlink()
    lock.mkdir()  # as if the folder were one that may only be read
    assert load(image_folder, root="d").digest == first.digest
    [other] = (home / "cache").rglob("*.safetensors")
    assert other.name.endswith(kept.name) and not kept.exists()
    monkeypatch.setattr(folders, "_decoded", None)
    assert load(image_folder, root="d").digest == first.digest


def test_a_thousand_classes() -> None:
    labels = np.array([f"{n:04}" for n in range(1000)])
    np.savez("a.npz", train_x=np.eye(1000), train_y=labels, test_x=np.eye(1000), test_y=labels)
    data = load(arrays, root="a.npz")
    assert data.classes == 1000 and data.names[999] == "0999"


# Arrays


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


# Tables


ROWS = {
    "id": range(20),
    "size": [n / 3 for n in range(20)],
    "job": [f"j{n % 3}" for n in range(20)],
    "on": [n % 4 == 0 for n in range(20)],
    "kind": [("dog", "cat")[n % 10 == 0] for n in range(20)],
}


def csv(name: str, **columns: Any) -> None:
    frame = pd.DataFrame({**ROWS, **columns})
    frame.to_csv(name, index=False)


def test_a_table_is_numbers_and_a_feature_for_each_category(
    caplog: pytest.LogCaptureFixture,
) -> None:
    csv("train.csv")
    csv("test.csv", job=["j0", "new"] * 10)
    data = load(table, root="train.csv", label="kind", drop=["id"], test="test.csv")
    assert data.names == ("cat", "dog") and data.test_labels.bincount().tolist() == [2, 18]
    first = [[0, 1, 0, 0, 0, 1], [1 / 3, 0, 1, 0, 1, 0], [2 / 3, 0, 0, 1, 1, 0]]
    assert data.train_inputs[:3].tolist() == first
    assert data.test_inputs[1].tolist() == [1 / 3, 0, 0, 0, 1, 0]
    [said] = [record.message for record in caplog.records]
    assert said.startswith("column job: 10 of the 20 test rows have categories that no training")


def test_a_share_of_each_class_is_to_test_and_always_the_same_rows() -> None:
    csv("t.csv", kind=["a"] * 10 + ["b"] * 9 + ["one"])
    data = load(table, root="t.csv", label="kind")
    assert data.train_labels.bincount().tolist() == [8, 7, 1]
    assert data.test_labels.bincount().tolist() == [2, 2]
    ids = sorted([*data.train_inputs[:, 0].tolist(), *data.test_inputs[:, 0].tolist()])
    assert ids == list(range(20))
    assert load(table, root="t.csv", label="kind").digest == data.digest
    half = load(table, root="t.csv", label="kind", test=0.5)
    assert half.test_labels.bincount().tolist() == [5, 4]


def test_a_folder_of_tables() -> None:
    for part in ("train", "test", "val"):
        csv(f"{part}.tsv")
        Path(f"{part}.tsv").write_text(Path(f"{part}.tsv").read_text().replace(",", "\t"))
    data = load(table, root=".", label="kind")
    assert len(data.test_labels) == 20 and data.held is not None and data.held.sum() == 20


def test_a_parquet_table_is_that_of_the_csv() -> None:
    pytest.importorskip("pyarrow")
    csv("t.csv")
    pd.DataFrame(ROWS).to_parquet("t.parquet")
    one, other = (load(table, root=f"t.{kind}", label="kind") for kind in ("csv", "parquet"))
    assert one.digest == other.digest


@pytest.mark.slow
@pytest.mark.parametrize(("name", "classes", "most"), [("breast_cancer", 2, 9), ("digits", 10, 27)])
def test_a_table_is_learned(name: str, classes: int, most: int, cli: Cli, home: Path) -> None:
    bunch = pytest.importorskip("sklearn.datasets").__dict__[f"load_{name}"](as_frame=True)
    names = [f"is {label}" for label in bunch.target_names]
    frame = bunch.data.assign(label=[names[n] for n in bunch.target])
    frame.to_csv("t.csv", index=False)
    keys = ("model.width=64", "train.epochs=20", "train.batch_size=32", "precision=fp32")
    teacher = ("teacher.model.width=128", "teacher.train.epochs=20", "teacher.train.batch_size=32")
    done = cli("data=table", "data.root=t.csv", "data.label=label", *keys, *teacher)
    assert done.code == 0, done.err
    assert int(done.out.split(": ")[1].split()[0]) <= most, done.out  # of 114, and of 360
    assert (home / "teachers").is_dir()
    student = distill.load(done.out.splitlines()[-1])
    assert student.names == tuple(sorted(names)) and student.classes == classes


def test_a_process_reads_a_changed_table_again(cli: Cli) -> None:
    found = []
    for job in ("j0", "k0"):
        csv("t.csv", job=[f"{job}{n % 2}{n}" for n in range(20)] if job == "k0" else ROWS["job"])
        done = cli("data=table", "data.root=t.csv", "data.label=kind", "loss=hard", *SMALL)
        assert done.code == 0, done.err
        found.append(distill.load(done.out.splitlines()[-1]).shape)
    assert found[0] == (1 + 1 + 3 + 2,) and found[1] > found[0]


def test_a_student_of_features_is_asked_by_name(
    cli: Cli, home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    csv("t.csv", job=[1] * 20, on=[2] * 20)
    done = cli("data=table", "data.root=t.csv", "data.label=kind", *SMALL)
    assert done.code == 0, done.err
    assert "WARNING" not in done.err and (home / "teachers").is_dir()
    directory = done.out.splitlines()[-1]
    student = distill.load(directory)
    assert student.names == ("cat", "dog") and student.shape == (4,)
    assert facts(student)["names"] == '["cat", "dog"]'
    rows = np.array([[0, 1, 1, 2], [3, 9, 1, 2]])
    np.save("rows.npy", rows)
    monkeypatch.setattr("sys.argv", ["distill-predict", directory, "rows.npy"])
    capfd.readouterr()
    commands.predict()
    said = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    likely = student.probabilities(rows.astype(float)).max(-1)
    names = [student.names[n] for n in likely.indices.tolist()]
    assert [line[:2] for line in said] == [[f"rows.npy[{n}]", names[n]] for n in range(2)]
    picture("p.png")
    np.save("wide.npy", np.zeros((2, 5)))
    for name, message in (
        ("p.png", "p.png: the student takes rows of 4 features; give .npy, (N, 4)"),
        ("wide.npy", "wide.npy: it is (2, 5); wanted is (N, 4)"),
    ):
        monkeypatch.setattr("sys.argv", ["distill-predict", directory, name])
        with pytest.raises(SystemExit) as end:
            commands.predict()
        assert end.value.code == message


# What cannot be read


class Payload:
    """What touches the file HARM when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch HARM",)


def change(path: str, cut: int) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:cut])


def folder_with(make: Callable[[], object]) -> Callable[[], object]:
    def both() -> None:
        pictures()
        make()

    return both


def npz(**parts: Any) -> Callable[[], object]:
    whole = {"train_x": IMAGES, "train_y": LABELS, "test_x": IMAGES, "test_y": LABELS, **parts}
    return lambda: saved("d.npz", **{n: part for n, part in whole.items() if part is not None})


def csv_with(**columns: Any) -> Callable[[], object]:
    return lambda: csv("t.csv", **columns)


def two(columns: dict[str, Any], make: Callable[[], object]) -> Callable[[], object]:
    def both() -> None:
        csv("t.csv", **columns)
        make()

    return both


def text(name: str, content: str | bytes) -> Callable[[], object]:
    return lambda: Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


ROOT, ARRAYS = "data=image_folder data.root=d", "data=arrays data.root=d.npz"
TABLE = "data=table data.root=t.csv data.label=kind"
NAN = [float("nan"), *[1.0] * 19]
FOLDERS: dict[str, tuple[Callable[[], object], str, str]] = {
    "no root": (lambda: None, "data=image_folder", "data.root: it needs a value"),
    "nowhere": (lambda: None, ROOT, "data.root=d: there is no such folder"),
    "a file": (text("d", "x"), ROOT, "data.root=d: [Errno 20] Not a directory"),
    "empty": (lambda: Path("d").mkdir(), ROOT, "its folder train/CLASS is missing (it has no"),
    "no test": (
        folder_with(lambda: Path("d/test").rename("d/eval")),
        ROOT,
        "its folder test/CLASS is missing (it has eval, train); data.test=NAME takes another",
    ),
    "no pictures": (lambda: Path("d/train/a").mkdir(parents=True), ROOT, "train/CLASS holds no"),
    "an empty class": (folder_with(lambda: Path("d/train/c").mkdir()), ROOT, "train/c holds no"),
    "only to test": (
        folder_with(lambda: picture("d/test/c/x.png")),
        ROOT,
        "no file in train is of class c, which test holds",
    ),
    "only to validate": (
        folder_with(lambda: picture("d/val/c/x.png")),
        ROOT,
        "no file in train is of class c, which val holds",
    ),
    "one class": (lambda: pictures(classes="a"), ROOT, "all its labels are a: of one class"),
    "no class": (
        folder_with(lambda: picture("d/train/x.png")),
        ROOT,
        "d/train/x.png: it lies in no folder of a class; wanted is train/CLASS/FILE",
    ),
    "text": (
        folder_with(text("d/train/b/2.png", "no picture")),
        ROOT,
        "d/train/b/2.png: it is no picture that Pillow reads",
    ),
    "nothing": (folder_with(text("d/train/b/2.png", "")), ROOT, "it is no picture that Pillow"),
    "cut": (folder_with(lambda: change("d/test/b/x.png", 90)), ROOT, "x.png: it is damaged ("),
    "a loop": (
        folder_with(lambda: Path("d/train/a/l.png").symlink_to("l.png")),
        ROOT,
        "Too many levels of symbolic links",
    ),
    "a broken link": (
        folder_with(lambda: Path("d/train/a/l.png").symlink_to("gone")),
        ROOT,
        "No such file or directory: ",
    ),
    "deep": (
        folder_with(lambda: Image.fromarray(np.zeros((6, 5), np.uint16)).save("d/train/a/0.png")),
        ROOT,
        "d/train/a/0.png: its pixels have more than 8 bits",
    ),
    "pages": (
        folder_with(
            lambda: Image.new("L", (5, 6)).save(
                "d/train/a/p.gif", save_all=True, append_images=[Image.new("L", (5, 6), 9)]
            )
        ),
        ROOT,
        "p.gif: it holds 2 pictures; wanted is one a file",
    ),
    "sizes": (
        folder_with(lambda: picture("d/test/b/x.png", size=(7, 6))),
        ROOT,
        "x.png: it is 7 x 6 pixels, and train/a/0.png is 5 x 6; set data.size",
    ),
    "size 0": (pictures, f"{ROOT} data.size=0", "data.size: it is 0; allowed are a side"),
    "three": (pictures, f"{ROOT} data.size=[8,8,8]", "data.size: it is [8, 8, 8]; allowed are"),
    "channels": (pictures, f"{ROOT} data.channels=2", "data.channels=2: Input should be 1 or 3"),
    "means": (pictures, f"{ROOT} data.mean=[0.5,0.5]", "data.mean=[0.5, 0.5]: these are 2 numbers"),
    "split": (pictures, f"{ROOT} data.validation=given", "it has no validation split of its own"),
}
FILES: dict[str, tuple[Callable[[], object], str, str]] = {
    "a kind": (text("d.mat", "x"), "data=arrays data.root=d.mat", "it is no file of .npz, .safet"),
    "no file": (lambda: None, ARRAYS, "data.root=d.npz: d.npz: No such file or directory"),
    "no arrays": (lambda: Path("d").mkdir(), "data=arrays data.root=d", "its arrays are none; "),
    "names": (lambda: saved("d.npz", a=LABELS), ARRAYS, "its arrays are a; wanted are train_x, "),
    "no labels": (npz(test_y=None), ARRAYS, "it lacks the test inputs or labels; wanted are"),
    "half": (npz(val_x=IMAGES), ARRAYS, "it has validation inputs or labels, but not both"),
    "twice": (npz(x_train=IMAGES), ARRAYS, "it has both train_x and x_train; one of them"),
    "noise": (text("d.npz", b"PK\x03\x04 and no more"), ARRAYS, "d.npz: it holds no plain arrays"),
    "objects": (
        npz(train_y=np.array([Payload()] * 8, object)),
        ARRAYS,
        "d.npz: it holds no plain arrays, or is damaged",
    ),
    "a pickle": (
        lambda: torch.save({"train_x": Payload()}, "d.pt"),
        "data=arrays data.root=d.pt",
        "d.pt: it holds more than tensors",
    ),
    "a list": (
        lambda: torch.save([torch.zeros(3)], "d.pt"),
        "data=arrays data.root=d.pt",
        "it holds list, no arrays by their names",
    ),
    "cut tensors": (
        lambda: text("d.safetensors", b"\x09")(),
        "data=arrays data.root=d.safetensors",
        "d.safetensors: it holds no plain arrays, or is damaged (",
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
TABLES: dict[str, tuple[Callable[[], object], str, str]] = {
    "no label": (csv_with(), "data=table data.root=t.csv", "data.label: it needs a value"),
    "no table": (lambda: None, TABLE, "data.root=t.csv: "),
    "empty": (text("t.csv", ""), TABLE, "t.csv: it is no table that can be read (No columns"),
    "no rows": (text("t.csv", "a,kind\n"), TABLE, "t.csv: it has no rows"),
    "noise": (text("t.csv", bytes(range(128, 256))), TABLE, "t.csv: it is no table that can be"),
    "no folder": (
        lambda: Path("t.csv").mkdir(),
        TABLE,
        "it is a folder without train.csv (or .tsv, .parquet); give a table",
    ),
    "a column": (
        csv_with(),
        f"{TABLE}s",
        "t.csv: it has no column kinds; it has id, size, job, on",
    ),
    "to drop": (csv_with(), f"{TABLE} data.drop=[x]", "t.csv: it has no column x; it has id"),
    "separator": (text("t.csv", "a;kind\n1;2\n"), TABLE, "it has a;kind; set data.separator"),
    "index": (
        lambda: pd.DataFrame(ROWS).to_csv("t.csv"),
        TABLE,
        "t.csv: a column has no name, as that of row numbers in many files; leave it out by",
    ),
    "a gap": (csv_with(size=NAN), TABLE, "t.csv: column size has no value in row 0, counted from"),
    "no class": (csv_with(kind=["a", None] * 10), TABLE, "column kind has no value in row 1"),
    "infinite": (csv_with(size=[float("inf")] * 20), TABLE, "column size holds inf in a training"),
    "no features": (csv_with(), f"{TABLE} data.drop=[id,size,job,on]", "no column of features"),
    "of each its own": (csv_with(kind=range(20)), TABLE, "each of its 20 rows has a label of its"),
    "fractions": (csv_with(kind=[0.5] * 20), TABLE, "its training labels hold 0.5; a label is"),
    "one class": (csv_with(kind=["a"] * 20), TABLE, "all its labels are a: of one class there"),
    "share": (csv_with(), f"{TABLE} data.test=1.5", "data.test: it is 1.5; allowed are a share"),
    "nowhere": (csv_with(), f"{TABLE} data.test=gone.csv", "data.root=t.csv: "),
    "other columns": (
        two({}, text("u.csv", "id,kind\n1,cat\n")),
        f"{TABLE} data.test=u.csv",
        "the test table has no column size, which the other has",
    ),
    "text for numbers": (
        two({}, lambda: csv("u.csv", size=["x"] * 20)),
        f"{TABLE} data.test=u.csv",
        "column size holds numbers in the training table and others in the test table",
    ),
    "shifted": (csv_with(), f"{TABLE} data.jitter=1", "data.jitter=1: table has rows of features"),
    "a convolution": (csv_with(), f"{TABLE} model=cnn", "model=cnn: "),
}
BAD = {
    f"{kind}: {name}": case
    for kind, cases in (("folder", FOLDERS), ("arrays", FILES), ("table", TABLES))
    for name, case in cases.items()
}


def tree(folder: Path) -> dict[Path, bytes | None]:
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_line(case: str, cli: Cli, home: Path) -> None:
    make, overrides, message = BAD[case]
    make()
    before = tree(home)
    done = cli(*overrides.split(), *(() if "cnn" in overrides else SMALL))
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done.err
    assert message in done.err and done.err.startswith(("data.", "model")), done.err
    kept = {*home.glob("d-*.safetensors"), *home.glob(".d-*")}  # of pictures that are whole
    after = {p: content for p, content in tree(home).items() if p not in {home / "data", *kept}}
    assert after == before  # nothing is left behind, nor did anything run


def test_a_table_of_too_many_categories_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.data.tables.CATEGORIES", 2)
    csv("t.csv")
    with pytest.raises(ValueError, match=r"column job has 3 categories; .* data.drop=\[job\]"):
        table(root="t.csv", label="kind")


def test_parquet_without_its_package_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"needs pyarrow, .* pip install 'distill-sweep\[parquet"):
        table(root="t.parquet", label="kind")


# torchvision's


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
    change(str(raw / "train-images-idx3-ubyte"), 99)
    with pytest.raises(ValueError, match="KMNIST/raw is damaged: its content is not that of"):
        load(kmnist, root="data")
    shutil.rmtree(raw)
    monkeypatch.setattr(datasets.KMNIST, "mirrors", ["file:///nowhere/"])
    with pytest.raises(OSError, match="lacks files of KMNIST, and they could not be downloaded"):
        load(kmnist, root="data")
    assert not list((home / "data").rglob("*.lock"))
