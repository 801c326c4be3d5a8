"""Augmentations that change each batch: what they make, and students that learn from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_job, options
from safetensors.torch import load_file
from torch import Generator, Tensor

from distill.augment import cutout, mixup, randaugment
from distill.config import ConfigError
from distill.runs.execute import execute
from distill.seeds import seeded
from distill.training.augmentation import mixes

WHITE = torch.full((64, 3, 9, 9), 255, dtype=torch.uint8)


def test_cutout_blackens_a_square_of_all_channels() -> None:
    found = cutout(WHITE, Generator().manual_seed(0), size=3)
    black = found == 0
    assert torch.equal(black.any(1), black.all(1))
    sizes = black[:, 0].sum((1, 2))
    assert sizes.max() == 9 and sizes.min() in (4, 6)  # cut at edges and corners
    for image in black[:, 0]:
        rows, columns = image.any(1), image.any(0)
        assert torch.equal(image, rows[:, None] & columns[None])  # a rectangle


def test_mixup_mixes_inputs_and_labels_by_the_same_share() -> None:
    x, labels = torch.eye(4), torch.arange(4)
    inputs, shares = mixup(x, labels, 4, Generator().manual_seed(3), concentration=1.0)
    assert torch.equal(inputs, shares)  # each input tells its label
    assert shares.sum(1).tolist() == pytest.approx([1] * 4)
    assert ((shares > 0).sum(1) <= 2).all() and (shares > 0).sum() > 4


def test_randaugment_follows_from_torchs_seed() -> None:
    found = []
    for seed in (0, 0, 1):
        with seeded(seed, torch.device("cpu")):
            found.append(randaugment(WHITE[:8] // torch.arange(1, 10).byte(), magnitude=15))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.table
@pytest.mark.parametrize("name", options("augment"))
def test_members_together_learn_from_every_augmentation_as_alone(name: str, home: Path) -> None:
    common = (f"augment={name}", "precision=fp32", "data.jitter=1")
    own = ["loss.temperature=2", "loss.alpha=0.3"]
    jobs = [make_job(*common, one) for one in own]
    plain = make_job(*common[1:], own[0])
    found = {}
    for what, of in {"both": jobs, "one": jobs[:1], "none": [plain]}.items():
        directories = [home / what / str(k) for k in range(len(of))]
        for directory in directories:
            directory.mkdir(parents=True)
        [result, *_] = execute(of, directories)
        found[what] = (result, load_file(directories[0] / "student.safetensors"))
    assert found["both"][0]["soft_targets"] == "online"
    assert found["both"][0]["test_loss"] == pytest.approx(found["one"][0]["test_loss"], rel=1e-4)
    for key, value in found["one"][1].items():
        torch.testing.assert_close(found["both"][1][key], value, atol=2e-5, rtol=1e-3)
        assert not torch.equal(found["none"][1][key], value)
    assert jobs[0].name != plain.name


def test_a_teacher_may_have_one_of_its_own() -> None:
    job = make_job("augment@teacher.augment=cutout", "teacher.augment.size=3")
    assert job.run.teacher.augment is not None and job.run.augment is None
    assert job.name != make_job().name
    unused = make_job("loss=hard", "augment@teacher.augment=cutout")
    assert unused.name == make_job("loss=hard").name


def larger(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, inputs])


def doubled(inputs: Tensor) -> Tensor:
    return inputs.double()


def named(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return inputs, labels.double()


def restless(inputs: Tensor) -> Tensor:
    return torch.randint(256, inputs.shape, generator=FREE, dtype=torch.uint8)


def broken(inputs: Tensor) -> Tensor:
    raise KeyError(inputs.shape)


FREE = Generator()
REFUSED: dict[Callable[..., Any], str] = {
    larger: r"it returns torch.uint8 \(8, 1, 12, 12\); wanted is uint8 or float32 \(4, 1, 12, 12\)",
    doubled: "it returns torch.float64",
    named: r"its labels are not int64 \(4,\), nor float32 \(4, 4\)",
    restless: "its randomness comes neither from its generator nor from torch's",
    broken: r"it fails on inputs \(4, 1, 12, 12\): KeyError",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_one_that_cannot_be_used_is_refused(function: Any) -> None:
    component: Any = type(
        "Own",
        (),
        {
            "__call__": lambda _, **given: function(
                **{n: given[n] for n in function.__annotations__ if n in given}
            )
        },
    )()
    with pytest.raises(ValueError, match=REFUSED[function]):
        mixes(component, make_job().data)


def test_what_does_not_go_with_it_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"teacher.targets=cached: augment changes each batch"):
        make_job("augment=cutout", "teacher.targets=cached")
