"""Losses of one's own: what the training loop cannot use is refused, in a line that says why."""

from collections.abc import Callable

import pytest
import torch
from conftest import Offer
from torch import Tensor

from distill.config import ConfigError
from distill.losses import hard, logits


def squared(z: Tensor, v: Tensor, labels: Tensor, *, alpha: float) -> Tensor:
    return logits(z, v, labels, alpha=alpha**2)


def detached(z: Tensor, v: Tensor, labels: Tensor, *, alpha: float) -> Tensor:
    assert isinstance(alpha, Tensor)
    return logits(z, v, labels, alpha=alpha.detach())


def taught(z: Tensor, v: Tensor, labels: Tensor) -> Tensor:
    return logits(z, v, labels, alpha=0.5)


def mean(z: Tensor, v: Tensor, labels: Tensor, *, alpha: float) -> Tensor:
    return logits(z, v, labels, alpha=alpha).mean()


def wrong(z: Tensor, v: Tensor | None, labels: Tensor) -> Tensor:  # noqa: ARG001
    return z.argmax(-1) != labels


def centring(z: Tensor, v: Tensor, labels: Tensor, *, alpha: float) -> Tensor:
    v -= v.mean(-1, keepdim=True)
    return logits(z, v, labels, alpha=alpha)


def infinite(z: Tensor, v: Tensor, labels: Tensor, *, alpha: float) -> Tensor:
    return logits(z / 0, v, labels, alpha=alpha)


REFUSED: dict[Callable[..., Tensor], str] = {
    squared: "it is not linear in alpha: off by .*; needed is alpha .* soft",
    detached: "it is not linear in alpha: off by ",
    taught: r"it fails on random logits \(without an alpha it is given no teacher logits\): Attr",
    mean: r"it returns \(\) for 6 examples; needed is \(6,\), one value an example",
    wrong: "it returns torch.bool without a gradient by student_logits",
    centring: "it changes its teacher_logits or labels in place",
    infinite: "it is not finite on random logits",
}


@pytest.mark.parametrize("loss", REFUSED, ids=lambda loss: loss.__name__)
def test_a_loss_that_the_loop_cannot_use_is_refused(
    loss: Callable[..., Tensor], offered: Offer
) -> None:
    with pytest.raises(ConfigError, match=f"^loss={loss.__name__}: {REFUSED[loss]}") as error:
        offered("loss", loss)
    assert "\n" not in str(error.value)


def test_a_loss_of_the_readme_is_taken(offered: Offer) -> None:
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
        return alpha * soft + (1 - alpha) * hard(student_logits, None, labels)

    assert offered("loss", brier, "loss.alpha=0.3").name.startswith("synthetic-mlp8-brier-alpha0.3")
