"""The README's sections on one's own data, teachers and code, followed word for word."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import shell
from PIL import Image

import distill
from distill.data import synthetic
from distill.data.dataset import load
from distill.models import ResNet
from distill.runs.summaries import read_summary
from distill.system.conf import CONF

README = CONF.parent / "README.md"


def blocks(section: str, language: str) -> list[str]:
    """The code blocks of a section in a language."""
    text = README.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def write_files(section: str, place: Path) -> None:
    """Write each block that begins with the name of a file."""
    for block in [*blocks(section, "python"), *blocks(section, "yaml")]:
        first, _, rest = block.partition("\n")
        path = place / first.removeprefix("# ").partition(":")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rest)


def draw_pictures(place: Path, size: int = 12) -> None:
    data = load(synthetic, examples=240, classes=3, size=size)
    parts = {
        "train": (data.train_inputs, data.train_labels),
        "test": (data.test_inputs, data.test_labels),
    }
    for part, (images, labels) in parts.items():
        for n, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            folder = place / part / "abc"[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(folder / f"{n}.png")


def follow(section: str, smaller: str) -> None:
    """Run the commands of a section, those of distill ``smaller``."""
    [commands] = blocks(section, "bash")
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command in commands.splitlines():
        own = f"{command} {smaller}" if command.startswith("distill ") else command
        done = shell("bash", "-c", own, PATH=places)
        assert (done.code, done.err) == (0, ""), command


@pytest.mark.slow
def test_data_and_teachers_of_ones_own_as_the_readme_has_them(home: Path) -> None:
    section = "Your own model, data and teacher"
    write_files(section, home)
    draw_pictures(home / "photos", 32)
    torch.manual_seed(0)
    torch.save(ResNet((1, 32, 32), 3, depth=20).state_dict(), home / "resnet.pth")
    follow(section, "train.epochs=2 data.jitter=0")
    [photos, digits] = sorted(
        Path("multirun").glob("*/summary.csv"), key=lambda p: p.stat().st_mtime
    )
    assert read_summary(photos)["status"].tolist() == ["complete"] * 4
    found = read_summary(digits)
    assert found["status"].tolist() == ["complete"] * 18
    assert set(found[found["alpha"] > 0]["soft_targets"]) == {"file"}
    assert found["teacher_test_errors"].max() < 30  # of 450


@pytest.mark.slow
def test_code_of_ones_own_as_the_readme_has_it(home: Path) -> None:
    write_files("Code of your own", home)
    draw_pictures(home / "pictures")
    follow("Code of your own", "train.epochs=2 teacher.model.width=16 teacher.train.epochs=2")
    swept, tuned = read_summary("multirun/mine"), read_summary("multirun/tuned")
    assert swept["status"].tolist() == ["complete"] * 8
    assert swept["train_tv"].notna().all()
    assert (tuned["status"] == "complete").sum() == 9  # eight trials, and the best on all data
    assert Path("multirun/mine/report.html").is_file()
    lines = [(Path("multirun/mine") / place / "lines.txt") for place in swept["directory"]]
    assert [len(path.read_text().splitlines()) for path in lines] == [2] * 8
    images = torch.from_numpy(
        np.stack(
            [np.array(Image.open(f)) for f in sorted((home / "pictures" / "test").glob("*/*.png"))]
        )
    )
    session = onnxruntime.InferenceSession("best.onnx")
    [given] = session.get_inputs()
    [logits] = session.run(None, {given.name: images.unsqueeze(1).numpy()})
    student = distill.load("multirun/mine", modules=["mine"])
    torch.testing.assert_close(torch.from_numpy(logits), student(images), rtol=1e-4, atol=1e-4)
