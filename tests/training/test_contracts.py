"""Losses of one's own: what the training loop cannot use is refused, in a line that says why."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Offer, make_training
from torch import Tensor

from distill.config import ConfigError
from distill.losses import hard, logits


def taught(student_logits: Tensor, labels: Tensor) -> Tensor:
    teacher_logits: Any = None
    return logits(student_logits, teacher_logits, labels, alpha=0.5)[0]


def short(student_logits: Tensor, labels: Tensor) -> Tensor:
    return hard(student_logits, labels)[:2]


def wrong(student_logits: Tensor, labels: Tensor) -> Tensor:
    return student_logits.argmax(-1) != labels


def constant(student_logits: Tensor, labels: Tensor) -> Tensor:
    return hard(student_logits.detach(), labels)


def centring(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    teacher_logits -= teacher_logits.mean(-1, keepdim=True)
    return logits(student_logits, teacher_logits, labels, alpha=1.0)[0]


def infinite(student_logits: Tensor, labels: Tensor) -> Tensor:
    return hard(student_logits / 0, labels)


def blind(labels: Tensor) -> Tensor:
    return labels.float()


def nameless(student_logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    value = hard(student_logits, labels)
    return value, {"a b": value}


def moody(student_logits: Tensor, labels: Tensor, progress: float) -> Any:
    value = hard(student_logits, labels)
    return value, {"late": value} if progress > 0.6 else {}


def listed(student_logits: Tensor, labels: Tensor) -> Any:
    return [hard(student_logits, labels)]


REFUSED: dict[Callable[..., Any], str] = {
    taught: r"it fails on random logits \(it asks for no teacher_logits\): Attr",
    short: r"it returns \(2,\) for 6 examples; needed is \(6,\), one an example, or \(\)$",
    wrong: "it returns torch.bool; needed are floats",
    constant: "it returns torch.float32 without a gradient by student_logits",
    centring: "it changes its teacher_logits, features or labels in place",
    infinite: "it is not finite on random logits",
    blind: "it has no parameter student_logits",
    nameless: "its term 'a b' makes no column train_NAME",
    moody: "its terms change with progress; it must return the same ones always",
    listed: "it (fails on random logits|returns list)",
}


@pytest.mark.parametrize("loss", REFUSED, ids=lambda loss: loss.__name__)
def test_a_loss_that_the_loop_cannot_use_is_refused(
    loss: Callable[..., Tensor], offered: Offer
) -> None:
    with pytest.raises(ConfigError, match=f"^loss={loss.__name__}: {REFUSED[loss]}") as error:
        offered("loss", loss)
    assert "\n" not in str(error.value)


def brier(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    alpha: float,
) -> Tensor:
    p, q = (torch.softmax(z / temperature, -1) for z in (teacher_logits, student_logits))
    soft = (p - q).square().sum(-1)
    return alpha * soft + (1 - alpha) * hard(student_logits, labels)


def squared(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, alpha: float
) -> Tensor:
    """Not linear in alpha, which is a name like any other."""
    return logits(student_logits, teacher_logits, labels, alpha=alpha**2)[0]


def coupled(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """One value for the batch, by a teacher, without any hyperparameter."""
    z, v = (x - x.mean(0) for x in (student_logits, teacher_logits))
    return 1 - torch.cosine_similarity(z.flatten(), v.flatten(), 0)


def growing(student_logits: Tensor, labels: Tensor, progress: float) -> Any:
    value = hard(student_logits, labels)
    return (1 + progress) * value, {"plain": value}


def chosen(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, kind: str, most: int
) -> Tensor:
    """Not to be mapped: it needs a plain number, and values decide what is done."""
    place = teacher_logits.topk(most).indices
    value = hard(student_logits, labels)
    if kind == "both" and value.max() > 0:
        value = value + student_logits.gather(-1, place).square().mean(-1)
    return value


TAKEN: dict[Callable[..., Any], tuple[str, ...]] = {
    brier: ("loss.alpha=0.3",),
    squared: ("loss.alpha=0.3",),
    coupled: (),
    growing: (),
    chosen: ("+loss.kind=both", "+loss.most=2"),
}


@pytest.mark.parametrize("loss", TAKEN, ids=lambda loss: loss.__name__)
def test_a_loss_names_what_it_needs(loss: Callable[..., Any], offered: Offer) -> None:
    job = offered("loss", loss, *TAKEN[loss])
    assert job.name.startswith(f"synthetic-mlp8-{loss.__name__}-")
    history = make_training([job]).run()
    assert not history.diverged
    rows = history.rows[0]
    assert rows[-1]["train_loss"] != rows[0]["train_loss"]
    assert {name for name in rows[0] if name.startswith("train_")} == {"train_loss"} | (
        {"train_plain"} if loss is growing else set()
    )
