"""What the tests of data of one's own share: pictures, damage, and how a bad input is told."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from conftest import Cli
from PIL import Image

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


# What makes files, the command that reads them, and what its one line says.
Case = tuple[Callable[[], object], str, str]


class Payload:
    """What touches the file HARM when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch HARM",)


def change(path: str, cut: int) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:cut])


def text(name: str, content: str | bytes) -> Callable[[], object]:
    return lambda: Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


def tree(folder: Path) -> dict[Path, bytes | None]:
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def one_line(case: Case, cli: Cli, home: Path) -> None:
    """See that a bad input is one line of the message, and that nothing is left behind."""
    make, overrides, message = case
    make()
    before = tree(home)
    done = cli(*overrides.split(), *(() if "cnn" in overrides else SMALL))
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done.err
    assert message in done.err and done.err.startswith(("data.", "model")), done.err
    kept = {*home.glob("d-*.safetensors"), *home.glob(".d-*")}  # of pictures that are whole
    after = {p: content for p, content in tree(home).items() if p not in {home / "data", *kept}}
    assert after == before  # nothing is left behind, nor did anything run
