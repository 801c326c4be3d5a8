"""Losses of features, and ctkd: against NumPy in float64, by the papers' equations."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from conftest import logits_of
from torch import Tensor

from distill import losses
from distill.losses.contrast import Memory
from distill.losses.curriculum import LearnedTemperature
from distill.losses.maps import Projections

B, C = 7, 5
LABELS = torch.arange(B) % C
Z, V = logits_of(0, B, C), logits_of(1, B, C)
HARD = losses.hard(Z, LABELS)
Pair = tuple[Tensor, dict[str, Tensor]]


def features(seed: int, *shape: int) -> Tensor:
    return logits_of(seed, B, *shape)


def vectors(f: Tensor) -> np.ndarray:
    return f.flatten(1).numpy()


def test_fitnets_is_the_error_of_a_projection_of_each_pixel() -> None:
    shapes: Any = [(3, 4, 4), (6,)], [(5, 4, 4), (2,)]
    own, theirs = ([features(n, *shape) for n, shape in enumerate(part)] for part in shapes)
    learned = Projections(*shapes).double()
    total, terms = losses.fitnets(Z, LABELS, own, theirs, learned, beta=7.0)
    expected = np.zeros(B)
    for layer, s, t in zip(learned.layers, own, theirs, strict=True):
        w, c = (p.detach().numpy() for p in layer.parameters())
        for b in range(B):
            rows = s[b].reshape(s.shape[1], -1).numpy().T  # (pixels, channels)
            wanted = t[b].reshape(t.shape[1], -1).numpy().T
            expected[b] += np.mean((rows @ w.T + c - wanted) ** 2)
    np.testing.assert_allclose(terms["soft"].detach(), expected, rtol=1e-10)
    torch.testing.assert_close(total, HARD + 7 * terms["soft"])
    weight, bias = learned.layers[0].parameters()
    convolution = torch.nn.functional.conv2d(own[0], weight[:, :, None, None], bias)
    torch.testing.assert_close(learned(own)[0], convolution)


def test_fitnets_is_zero_where_the_projection_is_right_and_averages_the_larger_map() -> None:
    learned = Projections([(3, 4, 4)], [(3, 2, 2)]).double()
    with torch.no_grad():
        weight, bias = learned.layers[0].parameters()
        weight.copy_(torch.eye(3))
        bias.zero_()
    large = features(0, 3, 4, 4)
    small = large.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    for own, theirs in ((large, small), (small, large)):
        _, terms = losses.fitnets(Z, LABELS, [own], [theirs], learned)
        assert terms["soft"].max() < 1e-25
    with pytest.raises(ValueError, match=r"features of \(3,\) and \(4,\) cannot be compared"):
        losses.fitnets(
            Z, LABELS, [features(0, 2)], [features(1, 4)], Projections([(2,)], [(3,)]).double()
        )


def test_at_is_the_distance_of_normalised_maps() -> None:
    own = [features(0, 3, 4, 4), features(1, 2, 2, 2)]
    theirs = [features(2, 5, 4, 4), features(3, 4, 2, 2)]
    total, terms = losses.at(Z, LABELS, own, theirs, beta=3.0)
    expected = np.zeros(B)
    for s, t in zip(own, theirs, strict=True):
        for b in range(B):
            maps = [(f[b].numpy() ** 2).sum(0).ravel() for f in (s, t)]
            q, p = (m / np.linalg.norm(m) for m in maps)
            expected[b] += np.mean((q - p) ** 2)
    np.testing.assert_allclose(terms["soft"], expected, rtol=1e-10)
    torch.testing.assert_close(total, HARD + 3 * terms["soft"])
    zero = losses.at(Z, LABELS, own, [3 * f for f in own])[1]["soft"]
    assert zero.max() < 1e-25
    larger = own[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert losses.at(Z, LABELS, [own[0]], [larger])[1]["soft"].max() < 1e-25
    with pytest.raises(ValueError, match="wanted are maps"):
        losses.at(Z, LABELS, [features(0, 3)], [features(1, 3)])


def test_sp_is_the_distance_of_gram_matrices() -> None:
    own, theirs = [features(0, 3, 2, 2), features(1, 6)], [features(2, 8), features(3, 4)]
    total, terms = losses.sp(Z, LABELS, own, theirs, beta=3.0)
    expected = 0.0
    for pair in zip(own, theirs, strict=True):
        grams = [vectors(f) @ vectors(f).T for f in pair]
        g, h = (gram / np.linalg.norm(gram, axis=1, keepdims=True) for gram in grams)
        expected += float(((g - h) ** 2).sum() / B**2)
    assert terms["soft"].item() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(total, HARD.mean() + 3 * terms["soft"])


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def test_rkd_is_the_huber_loss_of_distances_and_angles() -> None:
    own, theirs = features(0, 3, 2), features(1, 8)
    total, terms = losses.rkd(Z, LABELS, [own], [theirs], distance=2.0, angle=3.0)
    distances, cosines = [], []
    for f in map(vectors, (own, theirs)):
        d = np.array([[np.linalg.norm(a - b) for a in f] for b in f])
        distances.append(d / d[d > 0].mean())
        cosine = np.zeros((B, B, B))
        for i, j, k in product(range(B), repeat=3):
            if i not in (j, k):
                e, g = f[j] - f[i], f[k] - f[i]
                cosine[i, j, k] = e @ g / np.linalg.norm(e) / np.linalg.norm(g)
        cosines.append(cosine)
    for name, (s, t) in {"distance": distances, "angle": cosines}.items():
        expected = np.mean([huber(x) for x in (s - t).ravel()])
        assert terms[name].item() == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(total, HARD.mean() + 2 * terms["distance"] + 3 * terms["angle"])


def test_pkt_is_the_divergence_of_similarities() -> None:
    own, theirs = features(0, 3, 2), features(1, 8)
    total, terms = losses.pkt(Z, LABELS, [own], [theirs], beta=3.0)
    shares = []
    for f in map(vectors, (own, theirs)):
        unit = f / np.linalg.norm(f, axis=1, keepdims=True)
        near = (unit @ unit.T + 1) / 2
        shares.append(near / near.sum(1, keepdims=True))
    q, p = shares
    expected = np.mean(p * np.log((p + 1e-7) / (q + 1e-7)))
    assert terms["soft"].item() == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(total, HARD.mean() + 3 * terms["soft"])


def turned(f: Tensor) -> Tensor:
    """Vectors that were rotated, and made three times as long."""
    rotation, _ = torch.linalg.qr(logits_of(9, f.shape[1], f.shape[1]))
    return torch.matmul(3 * f, rotation)


@pytest.mark.parametrize("loss", [losses.sp, losses.rkd, losses.pkt])
def test_relations_ignore_a_rotation_and_a_scale(loss: Callable[..., Pair]) -> None:
    f = features(0, 6)
    same, (other, terms) = loss(Z, LABELS, [f], [turned(f)]), loss(Z, LABELS, [f], [features(1, 6)])
    torch.testing.assert_close(same[0], HARD.mean())
    assert other > HARD.mean() + 0.01 and all(value >= 0 for value in terms.values())
    collapsed = torch.ones(B, 6, dtype=torch.float64, requires_grad=True)
    value, _ = loss(Z, LABELS, [collapsed], [f])
    [gradient] = torch.autograd.grad(value, collapsed)
    assert value.isfinite() and gradient.isfinite().all()


def memory(labels: Tensor, negatives: int = 6) -> Memory:
    torch.manual_seed(0)
    return Memory([(6,)], [(3, 2, 2)], labels, 4, negatives).double()


def test_crd_tells_an_example_from_those_of_other_classes() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 3])
    learned = memory(labels)
    index = torch.tensor([1, 9, 0, 4, 6, 2, 7])
    own, theirs = features(0, 6), features(1, 3, 2, 2)
    held = {name: b.clone() for name, b in learned.named_buffers()}
    torch.manual_seed(5)
    chosen = learned.negatives(index)
    torch.manual_seed(5)
    total, terms = losses.crd(
        Z, LABELS, [own], [theirs], index, learned, beta=0.5, temperature=0.2, momentum=0.25
    )
    assert chosen.shape == (B, 6)
    assert (labels[chosen] != labels[index].unsqueeze(1)).all()
    expected = np.zeros(B)
    sides = ((learned.student, own, "of_teacher"), (learned.teacher, theirs, "of_student"))
    embedded = {}
    for layer, f, other in sides:
        weight, bias = (p.detach().numpy() for p in layer.parameters())
        e = vectors(f) @ weight.T + bias
        e /= np.linalg.norm(e, axis=1, keepdims=True)
        embedded[other] = e
        rows = torch.cat([index.unsqueeze(1), chosen], 1).numpy()
        found = np.exp(np.einsum("be,bme->bm", e, held[other].numpy()[rows]) / 0.2)
        z = found.mean() * len(labels)
        p, noise = found / z, 6 / len(labels)
        h = p / (p + noise)
        expected -= np.log(h[:, 0]) + np.log(1 - h[:, 1:]).sum(1)
    np.testing.assert_allclose(terms["soft"].detach(), expected, rtol=1e-8)
    torch.testing.assert_close(total, HARD + 0.5 * terms["soft"])
    # What was is averaged with what is, for these examples alone; the constant stays.
    for name, e in (("of_student", embedded["of_teacher"]), ("of_teacher", embedded["of_student"])):
        mixed = 0.25 * held[name][index].numpy() + 0.75 * e
        wanted = held[name].clone()
        wanted[index] = torch.from_numpy(mixed / np.linalg.norm(mixed, axis=1, keepdims=True))
        torch.testing.assert_close(dict(learned.named_buffers())[name], wanted)
    scale = learned.scale.clone()
    losses.crd(Z, LABELS, [3 * own], [theirs], index, learned)
    assert torch.equal(learned.scale, scale) and scale.all()


def test_negatives_are_uniform_over_the_other_classes() -> None:
    labels = torch.tensor([3, 1, 3, 0, 1, 3, 0, 5])
    drawn = memory(labels, 20000).negatives(torch.tensor([1, 7]))
    for row, own in zip(drawn, (1, 5), strict=True):
        share = row.bincount(minlength=8) / 20000
        others = (labels != own).float()
        torch.testing.assert_close(share, others / others.sum(), atol=0.015, rtol=0)
    with pytest.raises(ValueError, match="but one class, and so no negatives"):
        memory(torch.tensor([2, 2, 2]))
    with pytest.raises(ValueError, match="features are 2 of the student and 1 of the teacher"):
        Memory([(6,), (6,)], [(3,)], labels, 4, 6)


@pytest.mark.parametrize("progress", [0.0, 0.02, 0.1, 1.0])
def test_ctkd_is_kd_whose_temperature_climbs_the_loss(progress: float) -> None:
    learned = LearnedTemperature().double()
    student = Z.clone().requires_grad_()
    given: dict[str, Any] = {"start": 0.5, "span": 6.0, "alpha": 0.7}
    total, terms = losses.ctkd(
        student, V, LABELS, learned, progress, reversal=0.8, warmup=0.04, **given
    )
    t = 0.5 + 6 / (1 + math.exp(-1))
    plain, parts = losses.kd(student, V, LABELS, temperature=t, alpha=0.7)
    torch.testing.assert_close(total, plain)
    assert terms["temperature"].item() == pytest.approx(t)
    torch.testing.assert_close(terms["soft"], parts["soft"])
    slope, by_student = torch.autograd.grad(total.mean(), (learned.value, student))
    torch.testing.assert_close(by_student, torch.autograd.grad(plain.mean(), student)[0])

    def soft(w: float) -> float:
        own = 0.5 + 6 / (1 + math.exp(-w))
        q, p = ((x.numpy() / own) for x in (Z, V))
        q, p = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (q, p))
        return float(own**2 * (np.exp(p) * (p - q)).sum(1).mean())

    rising = (soft(1 + 1e-5) - soft(1 - 1e-5)) / 2e-5
    strength = 0.8 * (1 - math.cos(math.pi * min(1, progress / 0.04))) / 2
    assert slope.item() == pytest.approx(-strength * 0.7 * rising, rel=1e-6, abs=1e-12)
    assert (slope != 0) == (progress > 0)
