"""Inputs of any kind: features, channels, mirrored views, statistics, splits of their own."""

from typing import Any

import pytest
import torch
from conftest import make_job, make_training

from distill.config import ConfigError
from distill.data.dataset import Dataset, load
from distill.data.views import Inputs

RED, BLUE = 100, 200
COLOURS = torch.tensor([[[[RED]], [[BLUE]]], [[[0]], [[BLUE]]]], dtype=torch.uint8)  # (2, 2, 1, 1)
ROWS = torch.tensor([[1e6, 3.0], [1e6 + 1, 3.0], [1e6, 3.0], [1e6 + 1, 3.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 0, 1])


def test_statistics_are_those_of_each_channel_and_feature() -> None:
    data = Dataset(COLOURS, torch.tensor([0, 1]), COLOURS, torch.tensor([0, 1]))
    mean, std = data.statistics
    assert mean == pytest.approx([50 / 255, 200 / 255])
    assert std == pytest.approx([50 / 255, 1])  # the second is constant: nothing is divided by 0
    mean, std = Dataset(ROWS, LABELS, ROWS, LABELS).statistics
    assert (mean, std) == ([1e6 + 0.5, 3.0], [0.5, 1.0])


def test_each_channel_and_feature_is_normalised_by_its_own() -> None:
    batch = Inputs(COLOURS, mean=[0.0, 200 / 255], std=[1.0, 0.5])
    first, second = batch.batch(torch.arange(2), 0, torch.float32).flatten(1).unbind(1)
    assert first.tolist() == pytest.approx([100 / 255, 0])
    assert second.tolist() == pytest.approx([0, 0], abs=1e-6)
    rows = Inputs(ROWS, mean=[1e6 + 0.5, 3.0], std=[0.5, 1.0])  # which float32 could not tell apart
    assert rows.batch(torch.arange(2), 0, torch.float32).tolist() == [[-1, 0], [1, 0]]


def test_views_are_shifts_and_then_their_mirror_images() -> None:
    raw = torch.arange(2 * 9, dtype=torch.uint8).view(2, 1, 3, 3)
    plain = Inputs(raw, jitter=1, mean=0.0, std=1 / 255)
    both = Inputs(raw, jitter=1, flip=True, mean=0.0, std=1 / 255)
    assert (plain.views, both.views, both.centre) == (9, 18, 4)
    index = torch.arange(2)
    for view in range(9):
        shifted = plain.batch(index, view, torch.float32)
        assert torch.equal(both.batch(index, view, torch.float32), shifted)
        assert torch.equal(both.batch(index, view + 9, torch.float32), shifted.flip(-1))
    mixed = both.batch(index, torch.tensor([4, 13]), torch.float32)
    assert torch.equal(mixed[0], raw[0].float()) and torch.equal(mixed[1], raw[1].flip(-1).float())


def test_its_own_validation_split_is_held_out_if_it_is_asked_for() -> None:
    held = torch.tensor([False, False, True, True])
    data = load(lambda: Dataset(ROWS, LABELS, ROWS, LABELS, held=held, names=("no", "yes")))
    assert torch.equal(data.validation("given", torch.Generator()), held)
    assert torch.equal(data.without_held().train_inputs, ROWS[:2])
    with pytest.raises(ValueError, match="no validation split of its own; give a share"):
        data.without_held().validation("given", torch.Generator())


NAN = torch.tensor([[0.0, 1.0], [2.0, torch.nan]])
TWO = torch.tensor([0, 1])
BAD: dict[str, tuple[Any, str]] = {
    "nan": ((NAN, TWO, NAN, TWO), "hold nan in row 1, column 1"),
    "too large": ((NAN.nan_to_num(1e300).double(), TWO, ROWS, LABELS), "numbers that float32"),
    "one class": ((ROWS, LABELS * 0, ROWS, LABELS * 0), "of one class there is nothing"),
    "two kinds": ((ROWS, LABELS, COLOURS[:, 0, 0, :].repeat(1, 2), TWO), "its test inputs are"),
    "whole numbers": ((ROWS.long(), LABELS, ROWS, LABELS), "its training inputs are int64"),
    "names": (Dataset(ROWS, LABELS, ROWS, LABELS, names=("a",)), "it names 1 classes"),
    "no such class": (
        Dataset(ROWS, LABELS * 2, ROWS, LABELS * 2, names=("a", "b", "c")),
        r"of class 1 \(b\) of the classes",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_data_set_is_refused(case: str) -> None:
    found, reason = BAD[case]
    with pytest.raises(ValueError, match=reason):
        load(lambda: found)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("data.mean=[0.1,0.2]", r"data.mean=\[0.1, 0.2\]: these are 2 numbers; synthetic has 1 ch"),
        ("data.std=[1,-1]", "data.std.1=-1: Input should be greater than 0$"),
        ("data.mean=[]", "mean and std: an empty list"),
        ("data.validation=given", "it has no validation split of its own; give a share"),
        ("data.validation=2", "data.validation=2: Input should be less than 1 or 'given'$"),
    ],
)
def test_what_a_section_of_data_cannot_say(given: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        make_job(given)


def test_statistics_that_are_not_given_are_those_of_the_training_set() -> None:
    job = make_job("data.mean=null", "data.std=null")
    x = make_training([job]).transfer.images.batch(torch.arange(256), 0, torch.float32)
    assert x.mean().abs() < 1e-5 and abs(x.std() - 1) < 1e-3
