"""Stacked optimizers equal those of torch.optim, member by member."""

from typing import Any

import pytest
import torch

from distill import optim
from distill.optim import SGD, AdamW, Optimizer, factor

LR, DECAY = [0.1, 0.01, 0.003], [0.0, 0.1, 0.5]
CASES: list[tuple[type[Optimizer], type[torch.optim.Optimizer], dict[str, Any], dict[str, Any]]] = [
    (
        AdamW,
        torch.optim.AdamW,
        {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6},
        {"betas": (0.8, 0.95), "eps": 1e-6},
    ),
    (SGD, torch.optim.SGD, {"momentum": 0.0}, {}),
    (SGD, torch.optim.SGD, {"momentum": 0.9}, {"momentum": 0.9}),
    (
        SGD,
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "nesterov": True},
    ),
]


def parameters() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *s, generator=generator).requires_grad_() for s in ((4, 5), (4,))]


def descend(values: list[torch.Tensor]) -> None:
    torch.autograd.backward(sum((v.sin() + v**2).sum() for v in values))  # type: ignore[arg-type]


@pytest.mark.parametrize(("ours", "theirs", "options", "same"), CASES)
def test_equals_torch_also_after_members_left(
    ours: type[Optimizer],
    theirs: type[torch.optim.Optimizer],
    options: dict[str, Any],
    same: dict[str, Any],
) -> None:
    stacked = parameters()
    alone = [[p.detach()[k].clone().requires_grad_() for p in stacked] for k in range(3)]
    optimizer = ours(stacked, stacked, lr=LR, weight_decay=DECAY, **options)
    references = [
        theirs(alone[k], lr=LR[k], weight_decay=DECAY[k], **same)  # type: ignore[call-arg]
        for k in range(3)
    ]
    members = [0, 1, 2]
    for step in range(8):
        if step == 4:
            members = [2, 0]
            stay = torch.tensor(members)
            stacked = [p.detach()[stay].requires_grad_() for p in stacked]
            optimizer.keep(stacked, stacked, stay)
        descend(stacked)
        optimizer.step(0.5)
        for k in members:
            for group in references[k].param_groups:
                group["lr"] = LR[k] * 0.5
            references[k].zero_grad()
            descend(alone[k])
            references[k].step()
    for place, k in enumerate(members):
        for p, q in zip(stacked, alone[k], strict=True):
            torch.testing.assert_close(p[place], q)


@pytest.mark.parametrize("chunk", [1, 50, 2**20])
def test_members_of_one_rate_are_all_updated(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beyond the first chunk, too."""
    monkeypatch.setattr(optim, "CHUNK", chunk)
    size = 2**19 if chunk == 2**20 else 20  # so that a chunk has one member or two
    stacked = [torch.zeros(5, size).requires_grad_()]
    optimizer = SGD(stacked, stacked, lr=[0.1] * 5, weight_decay=[0.0] * 5, momentum=0.0)
    assert len(optimizer.chunks) == (5 if chunk == 1 else 3)
    stacked[0].grad = torch.ones(5, size)
    optimizer.step(1.0)
    assert torch.equal(stacked[0].detach(), torch.full((5, size), -0.1))


def test_multistep_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    milestones = [7, 58, 75]  # of 100: the float nearest to 0.07, times 100, is above 7
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.3)
    for step in range(100):
        ours = factor(step, 100, "multistep", 0.0, [m / 100 for m in milestones], 0.3)
        assert ours == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert [factor(s, 8, "multistep", 0.25, [0.5], 0.5) for s in range(8)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 1, 0.5, 0.5, 0.5, 0.5]
    )


def test_schedules() -> None:
    assert [factor(s, 4, "constant", 0.0) for s in range(4)] == [1, 1, 1, 1]
    assert [factor(s, 4, "linear", 0.0) for s in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [factor(s, 4, "cosine", 0.0) for s in (0, 2)] == pytest.approx([1, 0.5])
    assert [factor(s, 8, "linear", 0.5) for s in range(8)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 0.75, 0.5, 0.25]
    )
