"""What the losses of the field have in common, where they are undefined, and their authors' values.

The last are figures of the authors' code, at a commit, for one small input; none of it is here.
"""

from typing import Any

import pytest
import torch
from conftest import composed, logits_of, make_job
from test_field import published
from torch import Tensor

from distill import losses
from distill.config import ConfigError, parse
from distill.losses.softened import decoupled, jensen_shannon, kl, reverse, softened
from distill.training.build import check_loss

B, C = 6, 5
LABELS = torch.arange(B) % C
Z, V = logits_of(0, B, C), logits_of(1, B, C)
T = 3.0


def terms(name: str, z: Tensor = Z, v: Tensor = V, **own: Any) -> dict[str, Tensor]:
    """The terms of a loss at the hyperparameters of its yaml, but for its ``own``."""
    options = published(name) | own
    found: dict[str, Tensor] = getattr(losses, name)(
        student_logits=z, teacher_logits=v, labels=LABELS, **options
    )[1]
    return found


def slope(name: str, **own: Any) -> Tensor:
    """The gradient of the mean of a loss."""
    z = Z.clone().requires_grad_()
    options = published(name) | own
    total = getattr(losses, name)(student_logits=z, teacher_logits=V, labels=LABELS, **options)[0]
    found: Tensor = torch.autograd.grad(total.mean(), z)[0]
    return found


@pytest.mark.parametrize("t", [0.05, 3.0, 1e6])
@pytest.mark.parametrize(
    ("name", "soft"),
    [
        *((n, "soft") for n in ("kd", "reverse_kl", "jsd", "standardised_kd")),
        *(("dkd", n) for n in ("tckd", "nckd")),
    ],
)
def test_a_divergence_is_zero_at_the_teacher_and_has_no_gradient_there(
    name: str, soft: str, t: float
) -> None:
    z = V.clone().requires_grad_()
    value = terms(name, z, V, temperature=t)[soft]
    assert not value.any()
    assert not torch.autograd.grad(value.sum(), z)[0].any()


def test_others_are_zero_where_they_should_be() -> None:
    assert not terms("mse", V)["soft"].any()
    assert terms("ttm", 0.1 * V, gamma=0.1)["soft"].abs().max() < 1e-12
    assert terms("wttm", 0.2 * V + 3, gamma=0.2)["soft"].abs().max() < 1e-12
    found = terms("dist", V)
    assert all(abs(found[name]) < 1e-4 for name in ("classes", "batch"))


def test_jsd_goes_from_kd_to_reverse_kl() -> None:
    def at(beta: float, z: Tensor = Z, v: Tensor = V) -> Tensor:
        return terms("jsd", z, v, temperature=T, beta=beta)["soft"]

    forward, backward = (terms(n, temperature=T)["soft"] for n in ("kd", "reverse_kl"))
    assert torch.equal(at(0.0), forward) and torch.equal(at(1.0), backward)
    torch.testing.assert_close(at(1e-7), forward, rtol=1e-4, atol=0)
    torch.testing.assert_close(at(1 - 1e-7), backward, rtol=1e-4, atol=0)
    torch.testing.assert_close(at(0.5), at(0.5, V, Z))  # symmetric
    torch.testing.assert_close(at(0.2), at(0.8, V, Z))
    torch.testing.assert_close(backward, terms("kd", V, Z, temperature=T)["soft"])


def test_gradients_at_the_ends_of_beta_are_limits() -> None:
    near = slope("jsd", beta=1e-7, temperature=T), slope("jsd", beta=1 - 1e-7, temperature=T)
    ends = slope("jsd", beta=0.0, temperature=T), slope("jsd", beta=1.0, temperature=T)
    assert torch.equal(ends[0], slope("kd", alpha=1.0, temperature=T))
    assert torch.equal(ends[1], slope("reverse_kl", temperature=T))
    torch.testing.assert_close(near, ends, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_logits_is_the_limit_of_every_divergence(beta: float) -> None:
    limit = losses.logits(Z, V, LABELS, alpha=1.0)[0]
    found = terms("jsd", temperature=1e7, beta=beta)["soft"]
    torch.testing.assert_close(found, limit, rtol=1e-5, atol=0)


@pytest.mark.parametrize("t", [0.5, 3.0, 1e3])
def test_kd_is_what_dkd_decouples(t: float) -> None:
    """KL = TCKD + (1 - p_t) NCKD, and so are the gradients."""
    p_t = (V / t).softmax(-1)[range(B), LABELS]
    z = Z.clone().requires_grad_()
    tckd, nckd = softened(decoupled, z, V, LABELS, t)
    whole = softened(kl, z, V, t)
    parts = tckd + (1 - p_t) * nckd
    torch.testing.assert_close(parts, whole)
    slopes = [torch.autograd.grad(x.sum(), z, retain_graph=True)[0] for x in (parts, whole)]
    torch.testing.assert_close(*slopes)


def test_dkd_rises_in_its_warm_up() -> None:
    plain = losses.hard(Z, LABELS)
    full = terms("dkd")
    soft = full["tckd"] + 8 * full["nckd"]
    for progress, warmup, share in (
        *((0.0, 0.5, 0.0), (0.1, 0.5, 0.2), (0.25, 0.5, 0.5), (0.5, 0.5, 1.0)),
        *((0.9, 0.5, 1.0), (0.0, 0.0, 1.0), (0.5, 0.0, 1.0), (0.5, 1.0, 0.5)),
    ):
        options = published("dkd") | {"progress": progress, "warmup": warmup}
        total, _ = losses.dkd(Z, V, LABELS, **options)
        torch.testing.assert_close(total, plain + share * soft)


def test_nkd_differs_from_dkd_by_what_has_no_gradient() -> None:
    z = Z.clone().requires_grad_()
    rest, same = terms("nkd", z, temperature=T)["others"], terms("dkd", z, temperature=T)["nckd"]
    slopes = [torch.autograd.grad(x.sum(), z)[0] for x in (rest, same)]
    torch.testing.assert_close(*slopes)
    entropies = rest - same
    assert (entropies > 0).all() and (entropies < T**2 * torch.tensor(C - 1.0).log()).all()


def test_wsld_weighs_by_what_the_student_knows_of_the_label() -> None:
    z = V.clone()
    z[range(B), LABELS] += 2  # better than its teacher
    worse = V.clone()
    worse[range(B), LABELS] -= 2
    p = (V / 2).softmax(-1)
    for student in (z, worse):
        whole = -4 * (p * (student / 2).log_softmax(-1)).sum(-1)
        ratio = losses.hard(student, LABELS) / losses.hard(V, LABELS)
        share = terms("wsld", student)["soft"] / whole
        torch.testing.assert_close(share, 1 - (-ratio).exp(), rtol=1e-5, atol=0)
    known = terms("wsld", z)["soft"], terms("wsld", worse)["soft"]
    assert (known[0] < known[1]).all()


def test_wsld_takes_shares_of_classes() -> None:
    z = Z.clone().requires_grad_()
    options = published("wsld")
    shares = torch.nn.functional.one_hot(LABELS, C).double()
    found = losses.wsld(z, V, shares, **options)[0]
    expected = losses.wsld(z, V, LABELS, **options)[0]
    torch.testing.assert_close(found, expected)


def test_standardised_logits_have_no_scale_and_no_mean() -> None:
    one = terms("standardised_kd")["soft"]
    torch.testing.assert_close(terms("standardised_kd", 7 * Z + 3, 0.5 * V - 1)["soft"], one)


def test_powers_are_temperatures() -> None:
    """The teacher's at 1 / gamma; at gamma 1 ttm and wttm are kd at T = 1; at 0 Z is C."""
    plain = terms("kd", temperature=1.0)["soft"]
    for name in ("ttm", "wttm"):
        torch.testing.assert_close(terms(name, gamma=1.0)["soft"], plain)
    uniform = terms("ttm", gamma=0.0)["soft"]
    torch.testing.assert_close(terms("wttm", gamma=0.0)["soft"], C * uniform)
    torch.testing.assert_close(uniform, -Z.log_softmax(-1).mean(-1) - torch.tensor(C).log())


def test_dist_ignores_the_scale_of_deviations_over_classes() -> None:
    """Of three classes, whose probabilities it compares by correlation alone."""
    p = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], dtype=torch.float64)
    q = 1 / 3 + 0.5 * (p - 1 / 3)
    options = published("dist") | {"temperature": 1.0}
    _, found = losses.dist(q.log(), p.log(), torch.tensor([0, 1]), **options)
    assert found["classes"].abs() < 1e-5 and found["batch"].abs() < 1e-5
    one = losses.dist(q[:1].log(), p[:1].log(), torch.tensor([0]), **options)[1]
    assert one["batch"] == 1  # of a batch of one there are no correlations


@pytest.mark.parametrize("formula", [kl, reverse, jensen_shannon])
def test_gradients_are_those_of_the_values(formula: Any) -> None:
    numbers = (torch.tensor(2.0), torch.tensor(0.3)) if formula is jensen_shannon else (2.0,)
    z = Z.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: softened(formula, x, V, *numbers), z)


@pytest.mark.parametrize("name", ["dkd", "nkd", "standardised_kd"])
def test_two_classes_are_refused_where_a_loss_is_undefined(name: str) -> None:
    loss = parse(composed("data=synthetic", f"loss={name}")).loss
    check_loss(loss, 3)
    with pytest.raises(ConfigError, match=f"loss={name}: .* two") as error:
        check_loss(loss, 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["reverse_kl", "jsd", "mse", "wsld", "ttm", "wttm", "dist"])
def test_all_others_take_two_classes_and_shares_of_classes(name: str) -> None:
    loss = parse(composed("data=synthetic", f"loss={name}")).loss
    for classes in (2, 10):
        check_loss(loss, classes, mixed=True)


@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_labels_of_several_classes_are_refused_where_one_is_needed(name: str) -> None:
    with pytest.raises(ConfigError, match="it needs one class for each example") as error:
        make_job(f"loss={name}", "augment=mixup")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"loss={name}: with the mixed labels")
    make_job("loss=standardised_kd", "augment=mixup")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("dkd loss.beta", "-1", "greater than or equal to 0"),
        ("dkd loss.warmup", "1.5", "less than or equal to 1"),
        ("jsd loss.beta", "2", "less than or equal to 1"),
        ("ttm loss.gamma", "-0.1", "greater than or equal to 0"),
        ("dist loss.temperature", "0", "greater than 0"),
    ],
)
def test_values_are_checked_by_their_annotations(key: str, value: str, allowed: str) -> None:
    name, own = key.split()
    with pytest.raises(ConfigError, match=f"{own}=.*{allowed}"):
        parse(composed("data=synthetic", f"loss={name}", f"{own}={value}"))


# The mean over this batch, and its gradient by the first example's logits.
STUDENT = [[1.0, 2.0, 0.5, -1.0], [0.0, 3.0, 1.0, 0.25], [2.0, -0.5, 1.5, 0.0]]
TEACHER = [[3.0, 0.5, 1.0, -2.0], [1.0, 4.0, -1.0, 0.5], [0.5, -1.0, 2.5, 1.0]]
AUTHORS = {  # at the hyperparameters of our yamls, CE included
    # megvii-research/mdistiller at a08d46f1
    "dkd": (6.0339842128, [-0.4542959276, 1.2354406524, -1.0274619791, 0.2463172543]),
    # sunshangquan/logit-standardization-KD at f6e5aa51
    "standardised_kd": (2.4581518477, [-0.7780778451, 0.5876864304, -0.1272517038, 0.3176431186]),
    # zkxufo/TTM at fe457b33
    "ttm": (21.9576822447, [-1.5770371852, 5.6990536040, -1.7477713634, -2.3742450554]),
    "wttm": (4.8465040922, [-0.7797903349, 1.4904493807, -0.3524705970, -0.3581884488]),
    # hunto/image_classification_sota at 6f7a70a1
    "dist": (24.0577066762, [-6.6890004338, 7.3407919173, -2.3579627789, 1.7061712955]),
    # yzd-v/cls_KD at 1e5d48f3
    "nkd": (3.7898669941, [-0.4698424666, 0.5788092577, -0.1318703818, 0.0229035908]),
    # bellymonster/Weighted-Soft-Label-Distillation at 67820dd7
    "wsld": (13.0776337591, [-0.7789508877, 0.6518884705, 0.0342381930, 0.0928242242]),
}


@pytest.mark.parametrize("name", AUTHORS)
def test_values_are_those_of_the_authors_code(name: str) -> None:
    z, v = (torch.tensor(x, dtype=torch.float64) for x in (STUDENT, TEACHER))
    z.requires_grad_()
    total = getattr(losses, name)(
        student_logits=z, teacher_logits=v, labels=torch.arange(3), **published(name)
    )[0].mean()
    value, first = AUTHORS[name]
    assert total.item() == pytest.approx(value, rel=1e-9)
    assert torch.autograd.grad(total, z)[0][0].tolist() == pytest.approx(first, abs=1e-9)
