"""Transfer sets."""

import pytest
import torch
from conftest import make_job, options
from hypothesis import given
from hypothesis import strategies as st

from distill import transfer
from distill.config import ConfigError
from distill.seeds import generator

LABELS = torch.arange(200) % 10


def test_only_and_omit_split_the_classes() -> None:
    only = transfer.only(LABELS, classes=[7, 8])
    assert set(LABELS[only].tolist()) == {7, 8}
    assert int(only.sum()) == 40
    assert torch.equal(transfer.omit(LABELS, classes=[7, 8]), ~only)
    assert transfer.all(LABELS).all()


@given(st.floats(0.001, 1), st.integers(0, 1000))
def test_fraction_takes_the_same_share_of_each_class(share: float, seed: int) -> None:
    kept = transfer.fraction(LABELS, generator(seed), fraction=share)
    assert set(LABELS[kept].bincount().tolist()) == {max(1, round(20 * share))}
    assert torch.equal(kept, transfer.fraction(LABELS, generator(seed), fraction=share))


def test_fraction_follows_the_runs_seed() -> None:
    first, second = (make_job("transfer=fraction", f"seed={seed}").index for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", options("transfer"))
def test_every_yaml_leaves_examples(name: str) -> None:
    job = make_job("data=mnist_5k", f"transfer={name}")
    assert 0 < len(job.index) <= 4000


def test_a_transfer_set_without_examples_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"transfer=omit: it leaves no training example"):
        make_job("transfer=omit", "transfer.classes=[0,1,2,3]")
