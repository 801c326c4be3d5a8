"""The losses of the field: their values and gradients in float32 against 60 digits."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from conftest import composed, logits_of
from oracle import exactly
from torch import Tensor

from distill import losses
from distill.config import parse

TEMPERATURES = (0.05, 4.0, 1e3, 1e6)
POWERS = (0.0, 0.125, 0.5, 1.0)
CASES: list[tuple[str, dict[str, float]]] = [
    *((name, {"temperature": t}) for t in TEMPERATURES for name in ("kd", "reverse_kl", "wsld")),
    *((name, {"temperature": t}) for t in TEMPERATURES for name in ("dkd", "nkd", "dist")),
    *(("standardised_kd", {"temperature": t}) for t in TEMPERATURES),
    *(("jsd", {"temperature": t, "beta": b}) for t in TEMPERATURES for b in (0, 0.125, 0.5, 1)),
    *(("jsd", {"temperature": 1.0, "beta": b}) for b in (2.0**-20, 1 - 2.0**-20)),
    *((name, {"gamma": g}) for g in POWERS for name in ("ttm", "wttm")),
    ("mse", {}),
]
NOT_OF_TWO = ("dkd", "nkd", "standardised_kd")


def published(name: str) -> dict[str, Any]:
    """The hyperparameters of a loss's yaml, and the end of the training."""
    section = parse(composed("data=synthetic", f"loss={name}")).loss
    return section.options | ({"progress": 1.0} if "progress" in section.takes else {})


def extremes(classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and labels: usual, far apart, of a certain teacher, equal."""
    usual = logits_of(0, 6, classes, dtype=torch.float32)
    taught = logits_of(1, 6, classes, dtype=torch.float32)
    certain = torch.zeros(3, classes)
    certain[0, 0] = certain[1, 1] = certain[2, 0] = 1e4
    certain[2, 1] = 1e4 - 1
    constant = torch.full((1, classes), 0.1)
    z = torch.cat([usual[:2], 100 * usual[2:3], usual[3:], taught[3:4], constant, constant])
    v = torch.cat([taught[:2], 100 * taught[2:3], certain, taught[3:5], constant])
    return z, v, torch.arange(len(z)) % classes


def differentiated(
    name: str, z: Tensor, v: Tensor, labels: Tensor, own: Mapping[str, float]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Each term of a loss, and the gradient of its sum, called as a stack's member is."""
    z = z.clone().requires_grad_()
    options = {**published(name), **{key: torch.tensor(float(x)) for key, x in own.items()}}
    loss = getattr(losses, name)
    _, terms = loss(student_logits=z, teacher_logits=v, labels=labels, **options)
    return {
        term: (value.detach(), torch.autograd.grad(value.sum(), z, retain_graph=True)[0])
        for term, value in terms.items()
    }


def assert_close(found: tuple[Tensor, Tensor], expected: tuple[Any, Any], at: Any) -> None:
    values, slopes = (torch.tensor(x, dtype=torch.float64) for x in expected)
    torch.testing.assert_close(found[0].reshape(-1).double(), values, rtol=1e-3, atol=1e-8)
    gradient = found[1].double()
    assert gradient.isfinite().all()
    # Of a gradient's components those matter that are not far below the largest of the example.
    sizes = slopes.abs().amax(-1, keepdim=True) if len(values) > 1 else slopes.abs().max()
    assert ((gradient[:, at] - slopes).abs() <= 1e-3 * sizes + 1e-9).all()


@pytest.mark.table
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("name", "own"), CASES)
def test_values_and_gradients_are_those_of_the_paper(
    name: str, own: dict[str, float], classes: int
) -> None:
    if classes == 2 and name in NOT_OF_TWO:
        return
    z, v, labels = extremes(classes)
    if name == "dist":  # whose oracle is slow, since it couples the examples
        z, v, labels = (torch.cat([x[:4], x[7:]]) for x in (z, v, labels))
    at = list(range(classes))
    expected = exactly(name, z.tolist(), v.tolist(), labels.tolist(), own, at)
    found = differentiated(name, z, v, labels, own)
    assert found.keys() == expected.keys() | {"hard"}
    for term, exact in expected.items():
        assert_close(found[term], exact, at)


@pytest.mark.slow
@pytest.mark.brothers
@pytest.mark.parametrize(
    ("name", "own"),
    [case for case in CASES if case[1].get("temperature", 4.0) in (4.0, 1e6)],
)
def test_a_thousand_classes(name: str, own: dict[str, float]) -> None:
    z, v = (logits_of(n, 2, 1000, dtype=torch.float32) for n in (0, 1))
    labels, at = torch.tensor([0, 7]), [] if name == "dist" else [7]  # whose oracle is slow
    expected = exactly(name, z.tolist(), v.tolist(), labels.tolist(), own, at)
    found = differentiated(name, z, v, labels, own)
    for term, (values, slopes) in expected.items():
        torch.testing.assert_close(
            found[term][0].reshape(-1).tolist(), values, rtol=1e-3, atol=1e-8
        )
        scale = found[term][1].abs().max().item()
        torch.testing.assert_close(
            found[term][1][:, at].tolist(), slopes, rtol=1e-3, atol=1e-4 * scale
        )


HUGE = torch.tensor([[1e30, 0.0, -1e30], [1.0, 2.0, 0.5]])


@pytest.mark.parametrize(
    "name", ["kd", "reverse_kl", "jsd", "mse", "standardised_kd", "wsld", "ttm", "wttm", "logits"]
)
def test_a_soft_term_of_weight_0_spoils_nothing(name: str) -> None:
    z, v = HUGE.clone().requires_grad_(), -HUGE
    options = published(name)
    weight = "beta" if name in ("ttm", "wttm") else "alpha"
    options |= {weight: torch.tensor(0.0)}
    options |= {"temperature": 1e18} if "temperature" in options else {}
    labels = torch.tensor([0, 1])
    value, _ = getattr(losses, name)(student_logits=z, teacher_logits=v, labels=labels, **options)
    expected = options.get("hard", 1.0) * losses.hard(z, labels)
    torch.testing.assert_close(value, expected)
    found, plain = (
        torch.autograd.grad(x.sum(), z, retain_graph=True)[0] for x in (value, expected)
    )
    torch.testing.assert_close(found, plain)
