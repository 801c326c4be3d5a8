"""Data sets and views: counts, digests, translations, the validation split."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import FULL, make_job, needs_mnist
from hypothesis import given
from hypothesis import strategies as st

from distill.config import ConfigError
from distill.data import Dataset, load, mnist, mnist_5k, synthetic
from distill.data.views import Images


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(mnist_5k)


def test_the_embedded_digits_are_real_and_balanced(digits: Dataset) -> None:
    assert digits.shape == (1, 28, 28)
    assert digits.classes == 10
    assert digits.train_labels.bincount().tolist() == [400] * 10
    assert digits.test_labels.bincount().tolist() == [100] * 10
    # No test image is also a training image.
    known = {image.numpy().tobytes() for image in digits.train_images}
    assert not any(image.numpy().tobytes() in known for image in digits.test_images)
    assert digits.digest == load(mnist_5k).digest


@needs_mnist
def test_full_mnist_loads_and_contains_the_embedded_digits(digits: Dataset) -> None:
    assert FULL is not None
    full = load(mnist, root=str(FULL))
    assert full.train_images.shape == (60_000, 1, 28, 28)
    assert full.test_labels.bincount()[3] == 1010
    known = {image.numpy().tobytes() for image in full.train_images}
    known |= {image.numpy().tobytes() for image in full.test_images}
    assert all(image.numpy().tobytes() in known for image in digits.train_images)


@needs_mnist
@pytest.mark.parametrize("fault", ["truncated", "empty", "noise"])
def test_a_damaged_file_is_refused(fault: str, home: Path) -> None:
    assert FULL is not None
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
    changed = data.train_images.clone()
    changed[0, 0, 0, 0] ^= 1
    other = Dataset(changed, data.train_labels, data.test_images, data.test_labels)
    assert other.digest != data.digest


@given(st.integers(0, 3), st.integers(0, 48), st.integers(0, 4))
def test_a_view_is_a_translation(jitter: int, view: int, index: int) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (5, 2, 6, 7), generator=generator, dtype=torch.uint8)
    images = Images(raw, jitter=jitter, mean=0.2, std=0.5)
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
    images = Images(raw, jitter=2, mean=0.0, std=1.0)
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
