"""Data sets and views: counts, digests, translations, the validation split."""

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from conftest import FULL, SMALL, Cli, make_job, needs_mnist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision import datasets

import distill.data
from distill import config
from distill.config import ConfigError, components
from distill.data import downloaded, mnist, mnist_5k, synthetic
from distill.data.dataset import Dataset, load
from distill.data.views import Inputs
from distill.training import build, inputs


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(mnist_5k)


def test_the_embedded_digits_are_real_and_balanced(digits: Dataset) -> None:
    assert digits.shape == (1, 28, 28)
    assert digits.classes == 10
    assert digits.train_labels.bincount().tolist() == [400] * 10
    assert digits.test_labels.bincount().tolist() == [100] * 10
    # No test image is also a training image.
    known = {image.numpy().tobytes() for image in digits.train_inputs}
    assert not any(image.numpy().tobytes() in known for image in digits.test_inputs)
    assert digits.digest == load(mnist_5k).digest


@needs_mnist
def test_full_mnist_loads_and_contains_the_embedded_digits(digits: Dataset) -> None:
    assert FULL is not None
    full = load(mnist, root=str(FULL))
    assert full.train_inputs.shape == (60_000, 1, 28, 28)
    assert full.test_labels.bincount()[3] == 1010
    known = {image.numpy().tobytes() for image in full.train_inputs}
    known |= {image.numpy().tobytes() for image in full.test_inputs}
    assert all(image.numpy().tobytes() in known for image in digits.train_inputs)


@needs_mnist
def test_what_was_verified_is_what_is_used(home: Path) -> None:
    assert FULL is not None
    shutil.copytree(FULL / "MNIST" / "raw", home / "data" / "MNIST" / "raw")
    old = home / "data" / "MNIST" / "processed"  # as an old torchvision left it
    old.mkdir()
    for name, count in (("training.pt", 60_000), ("test.pt", 10_000)):
        images = torch.zeros(count, 28, 28, dtype=torch.uint8)
        torch.save((images, torch.zeros(count, dtype=torch.int64)), old / name)
    data = load(mnist, root=str(home / "data"))
    assert data.digest == load(mnist, root=str(FULL)).digest
    assert data.digest.startswith("a0cbb2360a04a820")  # that of the reference sweeps
    assert data.test_labels.bincount()[3] == 1010


def idx(numbers: Tensor) -> bytes:
    """A file of the form in which MNIST comes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in numbers.shape)
    return bytes([0, 0, 8, numbers.ndim]) + sizes + numbers.to(torch.uint8).numpy().tobytes()


TINY = load(synthetic, examples=4000, classes=4, size=28)
CONTENTS = [
    idx(part)
    for part in (
        TINY.train_inputs[:, 0],
        TINY.train_labels,
        TINY.test_inputs[:, 0],
        TINY.test_labels,
    )
]
SHA = hashlib.sha256(b"".join(CONTENTS)).hexdigest()
# A process that loads a data set of the name and form of MNIST from the archives of a server.
READ = """
import sys
from torchvision import datasets
from distill.data import downloaded, mnist
from distill.data.dataset import load
mirror, downloaded.CONTENT["MNIST"], root = sys.argv[1:]
datasets.MNIST.mirrors = [mirror]
datasets.MNIST.resources = [(name, None) for name, _ in datasets.MNIST.resources]
print(load(mnist, root=root).digest)
"""


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of archives of a small MNIST, and a server of it that is asked for them."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for stem, content in zip(downloaded.FILES, CONTENTS, strict=True):
        (folder / f"{stem}-ubyte.gz").write_bytes(gzip.compress(content, 1))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        names = [(f"{stem}-ubyte.gz", None) for stem in downloaded.FILES]
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [url])
        monkeypatch.setattr(datasets.MNIST, "resources", names)
        monkeypatch.setitem(downloaded.CONTENT, "MNIST", SHA)
        monkeypatch.setattr(downloaded, "PAUSE", 0.2)
        yield folder
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_of_processes_that_download_at_once_one_does(home: Path, mirror: Path) -> None:  # noqa: ARG001
    command = [sys.executable, "-c", READ, datasets.MNIST.mirrors[0], SHA, str(home / "data")]
    env = {**os.environ, "PYTHONPATH": str(Path(distill.__file__).parents[1])}
    run = partial(subprocess.Popen, command, env=env, text=True)
    processes = [run(stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    ends = [process.communicate(timeout=300) for process in processes]
    assert [out.strip() for out, _ in ends] == [TINY.digest] * 3, ends


@pytest.mark.table
@pytest.mark.parametrize("there", ["nothing", "archives", "some", "leftovers"])
def test_a_download_lands_whole(there: str, home: Path, mirror: Path) -> None:
    raw = home / "data" / "MNIST" / "raw"
    if there != "nothing":
        raw.mkdir(parents=True)
    if there == "archives":
        shutil.copytree(mirror, raw, dirs_exist_ok=True)
        shutil.rmtree(mirror)  # nothing can be downloaded
    elif there == "some":
        (raw / f"{downloaded.FILES[0]}-ubyte").write_bytes(CONTENTS[0][:999])
    elif there == "leftovers":
        (home / "data" / f"{downloaded.SCRATCH}MNIST-x").mkdir()
    assert load(mnist, root=str(home / "data")).digest == TINY.digest
    assert [(raw / f"{stem}-ubyte").read_bytes() for stem in downloaded.FILES] == CONTENTS
    assert {path.name for path in raw.parents[1].iterdir()} <= {"MNIST", "MNIST.lock"}
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]


def test_a_file_that_is_being_written_is_waited_for(home: Path, mirror: Path) -> None:  # noqa: ARG001
    paths = [home / "data" / "MNIST" / "raw" / f"{stem}-ubyte" for stem in downloaded.FILES]
    paths[0].parent.mkdir(parents=True)
    for path in paths:
        path.touch()

    def write() -> None:  # by one who knows nothing of a lock
        for path, content in zip(paths, CONTENTS, strict=True):
            for start in range(0, len(content), len(content) // 4):
                time.sleep(0.03)
                with path.open("ab") as file:
                    file.write(content[start : start + len(content) // 4])

    writer = Thread(target=write)
    writer.start()
    assert load(mnist, root=str(home / "data")).digest == TINY.digest
    writer.join()


@pytest.mark.table
@pytest.mark.parametrize(
    "content",
    [b"", gzip.compress(CONTENTS[2])[:-99], gzip.compress(b"x")],
    ids=["empty", "cut", "other"],
)
def test_a_download_that_fails_leaves_nothing(content: bytes, home: Path, mirror: Path) -> None:
    (mirror / f"{downloaded.FILES[2]}-ubyte.gz").write_bytes(content)
    with pytest.raises(OSError, match="lacks files of MNIST, and they could not be downloaded"):
        load(mnist, root=str(home / "data"))
    assert not [*(home / "data").rglob("*")]


@needs_mnist
@pytest.mark.parametrize("fault", ["truncated", "empty", "noise"])
def test_a_damaged_file_is_refused(fault: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FULL is not None
    monkeypatch.setattr(downloaded, "PAUSE", 0.01)
    raw = home / "data" / "MNIST" / "raw"
    shutil.copytree(FULL / "MNIST" / "raw", raw)
    path = raw / "t10k-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    damaged = {"truncated": bytes(content[:-1]), "empty": b"", "noise": bytes(content)}
    path.write_bytes(damaged[fault])
    with pytest.raises(ConfigError, match=r"^data.root=.*MNIST/raw is damaged"):
        make_job("data=mnist", f"data.root={home / 'data'}")


def test_another_content_has_another_digest() -> None:
    data = load(synthetic, examples=32, classes=4, size=8)
    changed = data.train_inputs.clone()
    changed[0, 0, 0, 0] ^= 1
    other = Dataset(changed, data.train_labels, data.test_inputs, data.test_labels)
    assert other.digest != data.digest


@given(st.integers(0, 3), st.integers(0, 48), st.integers(0, 4))
def test_a_view_is_a_translation(jitter: int, view: int, index: int) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (5, 2, 6, 7), generator=generator, dtype=torch.uint8)
    images = Inputs(raw, jitter=jitter, mean=0.2, std=0.5)
    view %= images.views
    down, right = (c - jitter for c in divmod(view, 2 * jitter + 1))
    moved = torch.zeros(2, 6, 7)
    for y in range(6):
        for x in range(7):
            if 0 <= y + down < 6 and 0 <= x + right < 7:
                moved[:, y, x] = raw[index, :, y + down, x + right]
    [seen] = images.batch(torch.tensor([index]), view, torch.float32)
    torch.testing.assert_close(seen, (moved / 255 - 0.2) / 0.5, atol=1e-5, rtol=1e-5)


def test_the_centre_is_the_image_itself() -> None:
    raw = torch.randint(0, 256, (3, 1, 5, 5), dtype=torch.uint8)
    images = Inputs(raw, jitter=2, mean=0.0, std=1.0)
    assert images.views == 25
    seen = images.batch(torch.arange(3), images.centre, torch.float32)
    torch.testing.assert_close(seen, raw / 255)


def test_the_validation_split_is_stratified_and_never_trained_on(digits: Dataset) -> None:
    job = make_job("data=mnist_5k", "data.validation=0.1")
    held = torch.ones(4000, dtype=torch.bool)
    held[job.index] = False
    assert digits.train_labels[held].bincount().tolist() == [40] * 10
    # The same for every seed of the student, so that students of a sweep can be compared.
    assert torch.equal(make_job("data=mnist_5k", "data.validation=0.1", "seed=3").index, job.index)


IMAGES, LABELS = torch.zeros(8, 6, 6, dtype=torch.uint8), torch.arange(8) % 4
ROWS = torch.rand(8, 36)
UNLIKE: dict[str, tuple[Any, str]] = {
    "float images": ((ROWS.view(8, 6, 6), LABELS, IMAGES, LABELS), r"float32 \(8, 6, 6\); wanted"),
    "nan": ((ROWS / 0 * 0, LABELS, ROWS, LABELS), "float32"),
    "rows": ((IMAGES.view(8, 36), LABELS, IMAGES.view(8, 36), LABELS), r"uint8 \(8, 36\); wanted"),
    "numpy": ((IMAGES.numpy(), LABELS, IMAGES, LABELS), "training inputs are ndarray; a tensor"),
    "three": ((IMAGES, LABELS, IMAGES), "it must return 4 tensors: training inputs, training"),
    "none": ((IMAGES[:0], LABELS[:0], IMAGES, LABELS), r"uint8 \(0, 6, 6\); wanted"),
    "sizes": ((IMAGES, LABELS, IMAGES[:, :5], LABELS), r"sizes, \(6, 6\) and \(5, 6\)"),
    "int32": ((IMAGES, LABELS.int(), IMAGES, LABELS), r"training labels are int32 \(8,\); wanted"),
    "float labels": ((IMAGES, LABELS, IMAGES, LABELS.float()), "test labels are float32"),
    "one-hot": ((IMAGES, LABELS[:, None], IMAGES, LABELS), r"int64 \(8, 1\); wanted is int64"),
    "few labels": ((IMAGES, LABELS[:7], IMAGES, LABELS), r"\(7,\); wanted is int64 \(8,\)"),
    "negative": ((IMAGES, LABELS - 1, IMAGES, LABELS), "training labels hold -1; classes count"),
    "from 1": ((IMAGES, LABELS + 1, IMAGES, LABELS + 1), "no training example is of class 0"),
    "a gap": ((IMAGES, LABELS * 2, IMAGES, LABELS), "no training example is of class 1"),
    "only to test": ((IMAGES, LABELS, IMAGES, LABELS + 1), "no training example is of class 4"),
    "huge": ((IMAGES, LABELS * 10**15, IMAGES, LABELS), "but there are 8 training examples"),
}


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Lets `data=synthetic` return something else."""

    def become(parts: Any) -> None:
        def other(*, examples: int, classes: int, size: int) -> Any:  # noqa: ARG001
            return parts

        other.__name__, other.__module__ = "synthetic", "distill.data"
        monkeypatch.setattr(distill.data, "synthetic", other)
        inputs._load.cache_clear()

    config.targets.cache_clear()
    components.schema.cache_clear()
    yield become
    for cached in (
        config.targets,
        components.schema,
        inputs._load,
        build.parameters,
        build.multiply_adds,
    ):
        cached.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("case", UNLIKE)
def test_a_source_of_something_else_is_refused_in_a_line(
    case: str, source: Callable[[Any], None], cli: Cli
) -> None:
    parts, message = UNLIKE[case]
    source(parts)
    done = cli(*SMALL)
    assert done.code == 1
    [line] = done.err.strip().splitlines()
    assert re.match(rf"data=synthetic: .*{message}", line), line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "overrides", "message"),
    [
        ((1, 36), (), r"teacher.jitter=2: .* 1 x 36 pixels .*; set teacher.jitter=0$"),
        ((2, 18), (), r"teacher.jitter=2: .* set teacher.jitter=1 or less$"),
        ((1, 36), ("teacher.jitter=0", "data.jitter=1"), r"data.jitter=1: .*set data.jitter=0$"),
        ((1, 36), ("loss=hard", "data.jitter=1"), "data.jitter=1: nothing is left"),
    ],
)
def test_nothing_shifts_what_is_no_image(
    shape: tuple[int, int],
    overrides: tuple[str, ...],
    message: str,
    source: Callable[[Any], None],
) -> None:
    rows = IMAGES.view(8, *shape)
    source((rows, LABELS, rows, LABELS))
    with pytest.raises(ConfigError, match=message):
        make_job(*overrides)
    assert make_job("teacher.jitter=0").data.shape == (1, *shape)


def test_a_validation_split_leaves_examples_of_each_class() -> None:
    with pytest.raises(ConfigError, match=r"data.validation=0.9: it leaves no training example of"):
        make_job("data.examples=4", "data.validation=0.9")
