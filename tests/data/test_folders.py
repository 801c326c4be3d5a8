"""Folders of pictures."""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import PIXELS, SMALL, Case, change, one_line, picture, text
from conftest import Cli
from PIL import Image
from torchvision import datasets

import distill
from distill.cli import using
from distill.data import (
    folders,
    image_folder,
)
from distill.data.dataset import load
from distill.system import machine
from distill.system.pictures import pixels, several


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


def test_the_order_is_that_of_torchvision() -> None:
    for n, name in enumerate(("b", "a/z", "a/y/x", "a-b/x", "c", "a/c")):
        for label in "01":
            picture(f"d/train/{label}/{name}.png", 2 * n + int(label))
    picture("d/test/0/x.png")
    samples = datasets.ImageFolder("d/train").samples
    data = load(image_folder, root="d")
    assert data.train_labels.tolist() == [label for _, label in samples]
    wanted = np.stack([pixels(Path(path)) for path, _ in samples]).transpose(0, 3, 1, 2)
    assert np.array_equal(data.train_inputs.numpy(), wanted)


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

    monkeypatch.setattr("distill.system.pictures.pixels", counted)
    first = load(image_folder, root="d")
    assert len(decoded) == 8
    assert load(image_folder, root="d").digest == first.digest and len(decoded) == 8
    picture("d/train/a/1.png", 33)
    changed = load(image_folder, root="d")
    assert np.array_equal(changed.train_inputs[1].numpy(), PIXELS[33].transpose(2, 0, 1))
    [kept] = home.glob("d-*")
    content = bytearray(kept.read_bytes())
    named = content.replace(changed.digest.encode(), b"0" * 64)  # by which runs are named
    assert named != content
    for damage in (bytes(content[:-1] + b"?"), named, bytes(content[:-9]), b"", b"noise" * 99):
        kept.write_bytes(damage)
        assert load(image_folder, root="d").digest == changed.digest
        assert "made anew" in caplog.records[-1].message
        count = len(decoded)
        assert load(image_folder, root="d").digest == changed.digest and len(decoded) == count


def test_what_is_kept_has_the_digest_of_what_was_decoded(home: Path) -> None:
    pictures()
    picture("d/val/a/v.png", 9)
    first = load(image_folder, root="d")
    [kept] = home.glob("d-*")
    again = load(image_folder, root="d")
    assert "digest" in vars(again)  # it was read, not computed
    assert again.digest == replace(again).digest == first.digest
    before = kept.read_bytes()
    Path("d/val/a/v.png").rename("d/val/b.png")
    Path("d/val/b").mkdir()
    Path("d/val/b.png").rename("d/val/b/v.png")  # the same picture, but of another class
    other = load(image_folder, root="d")
    assert other.digest == replace(other).digest != first.digest
    assert kept.read_bytes() != before


def loud(folder: Path, names: Sequence[str], *_: Any, **keys: Any) -> Any:
    """What decodes where the tests are run, and elsewhere is killed."""
    if os.getpid() != int(os.environ["HERE"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return several(folder, names, **keys)


@pytest.mark.slow
def test_many_are_decoded_in_processes_to_the_same(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures()
    first = load(image_folder, root="d")
    monkeypatch.setattr(machine, "cores", lambda: 2)
    for name, value in {"MANY": 1, "CHUNK": 2}.items():
        monkeypatch.setattr(folders, name, value)
    [kept] = home.glob("d-*")
    kept.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("distill.system.pictures.pixels", None)  # here nothing is decoded
        patch.setattr(folders, "pixels", lambda *_: PIXELS[0])  # of the first, the shape
        assert load(image_folder, root="d").digest == first.digest
    change("d/test/b/x.png", 90)
    with pytest.raises(ValueError, match=r"d/test/b/x.png: it is damaged \("):
        load(image_folder, root="d")
    picture("d/test/b/x.png", 7, size=(7, 6))
    with pytest.raises(ValueError, match=r"d/test/b/x.png: it is 7 x 6 pixels, and train/a/0.png"):
        load(image_folder, root="d")
    picture("d/test/b/x.png", 7)
    monkeypatch.setenv("HERE", str(os.getpid()))
    monkeypatch.setattr(folders, "several", loud)
    assert load(image_folder, root="d").digest == first.digest  # by threads


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


def folder_with(make: Callable[[], object]) -> Callable[[], object]:
    def both() -> None:
        pictures()
        make()

    return both


ROOT = "data=image_folder data.root=d"
BAD: dict[str, Case] = {
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


@pytest.mark.table
@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_one_line(case: str, cli: Cli, home: Path) -> None:
    one_line(BAD[case], cli, home)
