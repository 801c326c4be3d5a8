"""Errors of each class, and the shift of biases that mends a transfer set without some classes."""

import math
from pathlib import Path

import pytest
import torch
from conftest import logits_of, make_job

from distill.runs.execute import execute
from distill.training.evaluate import (
    best_shift,
    errors_by_class,
    log_odds,
    margins,
    mass_shift,
    shifted,
)

LABELS = torch.arange(300) % 5


def test_errors_are_counted_by_class() -> None:
    z = torch.eye(3)[torch.tensor([[0, 1, 2, 2], [1, 1, 0, 2]])]  # (2 members, 4, 3)
    counted = errors_by_class(z, torch.tensor([0, 1, 1, 2]))
    assert counted.tolist() == [[0, 1, 0], [1, 1, 0]]


@pytest.mark.table
@pytest.mark.parametrize("classes", [[3], [1, 4]])
def test_no_shift_of_a_fine_grid_is_better_than_the_best(classes: list[int]) -> None:
    z = logits_of(0, 3, 300, 5) + 4 * torch.eye(5)[LABELS]
    z[..., classes] -= 5
    best = best_shift(*margins(z, LABELS, classes))
    fewest = errors_by_class(shifted(z, best, classes), LABELS).sum(1)
    grid = torch.arange(-20, 20, 0.01, dtype=z.dtype)
    tried = torch.stack(
        [errors_by_class(shifted(z, s.expand(3), classes), LABELS).sum(1) for s in grid]
    )
    assert (fewest <= tried.min(0).values).all()
    assert (fewest >= tried.min(0).values - 2).all()
    assert (fewest < errors_by_class(z, LABELS).sum(1)).all()
    assert best.mean() == pytest.approx(5, abs=2)


def test_a_shift_moves_the_biases_of_its_classes_alone() -> None:
    z = logits_of(1, 2, 7, 4)
    moved = shifted(z, torch.tensor([1.0, -2.0]), [0, 2]) - z
    assert moved[0, 0].tolist() == pytest.approx([1, 0, 1, 0])
    assert moved[1, 6].tolist() == pytest.approx([-2, 0, -2, 0])


@pytest.mark.parametrize("classes", [[3], [1, 4]])
def test_after_the_shift_of_their_mass_classes_have_their_share_of_the_softmax(
    classes: list[int],
) -> None:
    z = 3 * logits_of(2, 3, 300, 5)
    shift = mass_shift(log_odds(z, classes), 0.37)
    mass = shifted(z, shift, classes).softmax(-1)[..., classes].sum(-1).mean(-1)
    assert mass.tolist() == pytest.approx([0.37] * 3, abs=1e-5)


def test_the_shift_of_a_mass_that_is_known() -> None:
    odds = torch.tensor([[2.0, 2.0], [-200.0, -200.0]])  # that of odds of 1 to 9 is -log 9
    wanted = [-math.log(9) - 2, -math.log(9) + 200]
    assert mass_shift(odds, 0.1).tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("split", ["data.validation=0.25", "data.validation=0"])
def test_a_student_without_a_class_is_mended_by_its_bias(split: str, home: Path) -> None:
    [result] = execute([make_job("transfer=omit", "train.epochs=8", "loss=hard", split)], [home])
    before, oracle = result["test_errors"], result["oracle_shift_test_errors"]
    assert result["test_errors_by_class"][3] > 5
    assert oracle <= result["bias_shift_test_errors"] < before
    assert sum(result["oracle_shift_test_errors_by_class"]) == oracle
    assert result["oracle_shift"] > 0
    assert result["mass_shift"] > 0
    assert sum(result["mass_shift_test_errors_by_class"]) == result["mass_shift_test_errors"]


def test_only_students_of_some_classes_are_shifted(home: Path) -> None:
    for change in ("transfer=all", "transfer.classes=[0,1,2,3]"):
        overrides = [change] if change.endswith("all") else ["transfer=only", change]
        [result] = execute([make_job("loss=hard", *overrides)], [home])
        assert "oracle_shift" not in result
    held = ("transfer=omit", "test=false", "data.validation=0.25")
    [result] = execute([make_job("loss=hard", *held)], [home])
    assert result["bias_shift_val_errors"] <= result["val_errors"]
    assert not [name for name in result if "oracle" in name or "test" in name]
