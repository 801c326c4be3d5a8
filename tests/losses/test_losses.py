"""Losses: against NumPy in float64, against torch, and by the paper's identities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import MAX_EMAX, MIN_EMIN, Decimal, localcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import composed, logits_of, options
from hydra.utils import get_method
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from distill import losses
from distill.config import parse
from distill.system.conf import CONF
from distill.training.objective import Objective

B, C = 7, 10
LABELS = torch.arange(B) % C
temperatures = st.floats(0.3, 100)
alphas = st.floats(0, 1)
seeds = st.integers(0, 10**6)


def kd(z: Tensor, v: Tensor, labels: Tensor = LABELS, **options: Any) -> Tensor:
    """The total of kd."""
    return losses.kd(z, v, labels, **options)[0]


def matching(z: Tensor, v: Tensor, alpha: float) -> Tensor:
    return losses.logits(z, v, LABELS, alpha=alpha)[0]


def softmax(z: np.ndarray, temperature: float) -> np.ndarray:
    e = np.exp((z - z.max(1, keepdims=True)) / temperature)
    return np.asarray(e / e.sum(1, keepdims=True))


@given(temperatures, alphas, seeds)
def test_kd_is_the_formula_of_the_post(temperature: float, alpha: float, seed: int) -> None:
    z, v = logits_of(seed, B, C), logits_of(seed + 1, B, C)
    p, q = softmax(v.numpy(), temperature), softmax(z.numpy(), temperature)
    kl = (p * (np.log(p) - np.log(q))).sum(1)
    ce = -np.log(softmax(z.numpy(), 1)[np.arange(B), LABELS.numpy()])
    value = kd(z, v, temperature=temperature, alpha=alpha)
    expected = alpha * temperature**2 * kl + (1 - alpha) * ce
    np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-8)


def test_kd_and_hard_agree_with_torch() -> None:
    z, v = logits_of(0, B, C), logits_of(1, B, C)
    soft = kd(z, v, temperature=3.0, alpha=1.0).mean()
    log_q, p = F.log_softmax(z / 3, -1), F.softmax(v / 3, -1)
    torch.testing.assert_close(soft, 9 * F.kl_div(log_q, p, reduction="batchmean"))
    torch.testing.assert_close(losses.hard(z, LABELS).mean(), F.cross_entropy(z, LABELS))


WEIGHTS = [1.0, 2.0, 0.5, 4.0, 1.0, 3.0, 1.0, 0.1, 1.0, 1.0]


@pytest.mark.parametrize("smoothing", [None, 0.1, 0.9])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("term", ["hard", "kd", "logits"])
def test_smoothing_and_class_weights_are_those_of_torch(
    term: str, weights: list[float] | None, smoothing: float | None
) -> None:
    z, v = logits_of(0, B, C).requires_grad_(), logits_of(1, B, C)
    same: dict[str, Any] = {"smoothing": smoothing, "class_weights": weights}
    call: dict[str, Callable[[], Tensor]] = {
        "hard": lambda: losses.hard(z, LABELS, **same),
        "kd": lambda: kd(z, v, temperature=2.0, alpha=0.0, **same),
        "logits": lambda: losses.logits(z, v, LABELS, alpha=0.0, **same)[0],
    }
    value = call[term]()
    assert value.shape == (B,)
    own = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(z, LABELS, own, label_smoothing=smoothing or 0.0)
    torch.testing.assert_close(value.mean(), expected)
    pairs = [torch.autograd.grad(loss, z)[0] for loss in (value.mean(), expected)]
    torch.testing.assert_close(*pairs)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    seen = torch.tensor([0] * 7 + [2] * 2 + [3])  # and nothing of class 1
    z, labels = logits_of(0, 3, 4), torch.tensor([2, 0, 3])
    counts = seen.bincount(minlength=4)
    weights = torch.zeros(4, dtype=torch.float64)
    present = np.array([0, 2, 3])
    balanced = compute_class_weight("balanced", classes=present, y=seen.numpy())
    weights[present] = torch.from_numpy(balanced)
    for smoothing in (None, 0.2):
        value = losses.hard(z, labels, counts, smoothing=smoothing, class_weights="balanced")
        expected = F.cross_entropy(z, labels, weights, label_smoothing=smoothing or 0.0)
        torch.testing.assert_close(value.mean(), expected)
    with pytest.raises(ValueError, match="class_weights=balanced: it needs class_counts"):
        losses.hard(z, labels, class_weights="balanced")
    with pytest.raises(ValueError, match="these are 2 numbers, and there are 4 classes"):
        losses.hard(z, labels, class_weights=[1.0, 2.0])


def gradient(z: Tensor, v: Tensor, temperature: float) -> Tensor:
    z = z.clone().requires_grad_()
    kd(z, v, temperature=temperature, alpha=1.0).sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    return z.grad


@given(temperatures, seeds)
def test_soft_gradient_before_t_squared_is_q_minus_p_over_t(temperature: float, seed: int) -> None:
    """C12: dC/dz = (q - p) / T, so that T^2 of the loss leaves T (q - p)."""
    z, v = logits_of(seed, B, C), logits_of(seed + 1, B, C)
    q, p = F.softmax(z / temperature, -1), F.softmax(v / temperature, -1)
    torch.testing.assert_close(gradient(z, v, temperature), temperature * (q - p))


def test_gradients_reach_logit_matching_as_t_grows() -> None:
    """C11: T^2 dC/dz -> (z - v) / N for zero-meaned logits; the gap shrinks as 1 / T."""
    z, v = logits_of(0, B, C), logits_of(1, B, C)
    z, v = z - z.mean(-1, keepdim=True), v - v.mean(-1, keepdim=True)
    limit = (z - v) / C
    gaps = [(gradient(z, v, t) - limit).abs().max().item() for t in (1e2, 1e3, 1e4)]
    assert gaps[1] < gaps[0] / 8
    assert gaps[2] < gaps[1] / 8
    torch.testing.assert_close(gradient(z, v, 1e7), limit, atol=1e-6, rtol=1e-5)


def test_logits_is_the_limit_of_kd_and_ignores_shifts() -> None:
    z, v = logits_of(0, B, C), logits_of(1, B, C)
    matched = matching(z, v, 0.6)
    torch.testing.assert_close(kd(z, v, temperature=1e5, alpha=0.6), matched, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(matching(z, v + 5, 1.0), matching(z, v, 1.0))
    shifted = z.clone().requires_grad_()
    matching(shifted + 3, v, 1.0).sum().backward()  # type: ignore[no-untyped-call]
    zero = z - z.mean(-1, keepdim=True) - v + v.mean(-1, keepdim=True)
    torch.testing.assert_close(shifted.grad, zero / C)


def exactly(z: list[float], v: list[float], t: float) -> tuple[float, list[float]]:
    """T^2 KL and its gradient by the formula, to 110 digits."""
    with localcontext(prec=110, Emax=MAX_EMAX, Emin=MIN_EMIN):
        scale = Decimal(t)
        terms = [[(Decimal(x) / scale).exp() for x in row] for row in (v, z)]
        p, q = ([e / sum(row) for e in row] for row in terms)
        kl = sum(a * (a.ln() - b.ln()) for a, b in zip(p, q, strict=True))
        return float(kl * scale**2), [float((b - a) * scale) for a, b in zip(p, q, strict=True)]


@pytest.mark.parametrize("t", [1e-6, 0.01, 1.0, 20.0, 1e3, 1e5, 1e7, 1e20, 1e30])
@pytest.mark.parametrize("classes", [2, 10])
def test_kd_in_float32_is_right_at_every_temperature(t: float, classes: int) -> None:
    far, teacher = (logits_of(n, 3, classes, dtype=torch.float32) for n in (2, 3))
    certain = torch.zeros(1, classes)
    certain[:, 0] = 300
    z = torch.cat([far, 100 * far, teacher + far / 100, teacher, far[:1]])
    v = torch.cat([teacher, 100 * teacher, teacher, teacher, certain])
    values, gradients = soft_term(z, v, t)
    for value, found, student, own in zip(
        values.tolist(), gradients.tolist(), z.tolist(), v.tolist(), strict=True
    ):
        expected, gradient = exactly(student, own, t)
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-9)
        scale = max(abs(x) for x in gradient)
        assert found == pytest.approx(gradient, rel=1e-3, abs=max(1e-4 * scale, 1e-6))
    assert not values[9:12].any() and not gradients[9:12].any()  # the student is the teacher


def soft_term(z: Tensor, v: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """The values and gradients of kd's soft term, mapped over two members of one temperature."""
    own = z.expand(2, *z.shape).clone().requires_grad_()

    def member(z: Tensor, t: Tensor) -> Tensor:
        return kd(z, v, torch.zeros(len(v)).long(), temperature=t, alpha=1.0)

    values = torch.vmap(member)(own, torch.tensor([t, t]))
    [gradients] = torch.autograd.grad(values.sum(), own)
    assert torch.equal(*values) and torch.equal(*gradients)
    return values.detach()[0], gradients[0]


def test_kd_with_many_classes() -> None:
    z, v = (logits_of(n, 4, 1000, dtype=torch.float32) for n in (0, 1))
    for t in (1.0, 1e4):  # where float64 has digits to spare
        values, gradients = soft_term(z, v, t)
        p, q = ((x.double() / t).softmax(-1) for x in (v, z))
        torch.testing.assert_close(
            values.double(), t**2 * (p * (p / q).log()).sum(-1), rtol=1e-4, atol=0
        )
        torch.testing.assert_close(gradients.double(), t * (q - p), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", [partial(kd, temperature=1e30), matching])
def test_a_term_of_weight_0_spoils_nothing(loss: Callable[..., Tensor]) -> None:
    """The soft term of the first example is beyond float32."""
    z, v = logits_of(0, B, C, dtype=torch.float32), logits_of(1, B, C, dtype=torch.float32)
    z[0] *= 1e30
    z, alpha = z.requires_grad_(), torch.zeros((), requires_grad=True)
    value = loss(z, v, alpha=alpha)
    expected = losses.hard(z, LABELS)
    assert torch.equal(value, expected)
    found, slope = torch.autograd.grad(value.sum(), (z, alpha))
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), z)[0])
    assert slope > 1e38  # and no small number that hides how far the soft term is


def test_kd_says_what_it_has_no_gradient_by() -> None:
    z, v = logits_of(0, B, C), logits_of(1, B, C).requires_grad_()
    value = kd(z.requires_grad_(), v, temperature=2.0, alpha=0.5).sum()
    with pytest.raises(NotImplementedError, match="by student_logits and its weights alone"):
        torch.autograd.backward(value)


def _target(name: str) -> str:
    return str(OmegaConf.load(CONF / "loss" / f"{name}.yaml")._target_)


# Those of features have their own tests, and train in tests/training/test_features.py.
OF_LOGITS = [
    name
    for name in sorted({*options("loss")} - {"sum"})  # see test_sum
    if "student_features" not in get_method(_target(name)).__annotations__
]


# What each term of a loss is weighed by: a key, or a number.
WEIGHED: dict[str, dict[str, str | float]] = {
    **{name: {"soft": "alpha", "hard": "hard"} for name in ("standardised_kd", "wsld")},
    **{name: {"soft": "beta", "hard": "hard"} for name in ("ttm", "wttm")},
    "dkd": {"tckd": "alpha", "nckd": "beta", "hard": "hard"},
    "nkd": {"target": 1.0, "others": "gamma", "hard": "hard"},
    "dist": {"classes": "beta", "batch": "gamma", "hard": "hard"},
}


@pytest.mark.parametrize("name", OF_LOGITS)
class TestEveryYaml:
    """What each loss of logits that a yaml names must do."""

    def objective(self, name: str, changes: Sequence[Mapping[str, float]]) -> Objective:
        section = parse(composed("data=synthetic", f"loss={name}")).loss
        known = [{k: v for k, v in own.items() if k in section.options} for own in changes]
        return Objective.of([section.model_copy(update=own) for own in known], C)

    def value(self, name: str, z: Tensor, v: Tensor, **changes: float) -> Tensor:
        given = {"teacher_logits": v, "labels": LABELS, "progress": 1.0}
        return self.objective(name, [changes])(z.unsqueeze(0), given)[0][0]

    def test_one_finite_value_an_example(self, name: str) -> None:
        value = self.value(name, logits_of(0, B, C), logits_of(1, B, C))
        assert value.shape == (() if name == "dist" else (B,))
        assert value.isfinite().all()

    def test_is_linear_in_alpha_ends_included(self, name: str) -> None:
        section = parse(composed("data=synthetic", f"loss={name}")).loss
        if "alpha" not in section.options or name in WEIGHED:
            return
        z, v = logits_of(0, B, C), logits_of(1, B, C)
        soft, hard = (self.value(name, z, v, alpha=a) for a in (1.0, 0.0))
        torch.testing.assert_close(hard, losses.hard(z, LABELS))
        for alpha in (1e-9, 0.3, 1 - 1e-9):
            torch.testing.assert_close(
                self.value(name, z, v, alpha=alpha), alpha * soft + (1 - alpha) * hard
            )
        # The soft term is zero where the student agrees with the teacher, and positive elsewhere.
        assert self.value(name, v, v, alpha=1.0).abs().max() < 1e-12
        assert (soft > 0).all()

    def test_maps_over_members(self, name: str) -> None:
        """Each with numbers of its own, and alone."""
        z, v = logits_of(0, 3, B, C, dtype=torch.float32), logits_of(1, B, C, dtype=torch.float32)
        given = {"teacher_logits": v, "labels": LABELS, "progress": 0.05}
        section = parse(composed("data=synthetic", f"loss={name}")).loss
        own = [
            {n: share * section.options[n] for n in section.numbers} | {"smoothing": s}
            for share, s in ((0.25, 0.1), (0.5, 0.5), (1.0, 0.2))
        ]
        objective = self.objective(name, own)
        assert objective.mapped
        mapped, terms = objective(z, given)
        one_by_one, same = replace(objective, mapped=False)(z, given)
        torch.testing.assert_close(one_by_one, mapped)
        torch.testing.assert_close(same, terms)
        for k in range(3):
            alone, _ = objective.keep(torch.tensor([k]))(z[k : k + 1], given)
            torch.testing.assert_close(mapped[k], alone[0])

    def test_each_member_may_have_a_teacher_of_its_own(self, name: str) -> None:
        z, v = (logits_of(n, 3, B, C, dtype=torch.float32) for n in (0, 1))
        given = {"teacher_logits": v, "labels": LABELS, "progress": 1.0}
        objective = self.objective(name, [{}] * 3)
        mapped, _ = objective(z, given)
        for k in range(3):
            torch.testing.assert_close(mapped[k], self.value(name, z[k], v[k]))

    def test_the_terms_make_the_total(self, name: str) -> None:
        z, v = logits_of(0, 1, B, C), logits_of(1, B, C)
        given = {"teacher_logits": v, "labels": LABELS, "progress": 1.0}
        total, terms = self.objective(name, [{"alpha": 0.25}])(z, given)
        if name in WEIGHED:
            own = parse(composed("data=synthetic", f"loss={name}")).loss.options | {"alpha": 0.25}
            weights = {n: own[w] if isinstance(w, str) else w for n, w in WEIGHED[name].items()}
            assert weights.keys() == terms.keys()
            whole = sum((weights[n] * term for n, term in terms.items()), torch.zeros(()))
            torch.testing.assert_close(total, whole.to(total.dtype))
        elif terms:
            torch.testing.assert_close(total, 0.25 * terms["soft"] + 0.75 * terms["hard"])
