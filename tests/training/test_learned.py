"""Parameters of losses: trained as the students are, a member each, and no part of what is kept."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, Offer, logits_of, make_job
from safetensors.torch import load_file
from torch import Tensor, nn

import distill
from distill.config import ConfigError
from distill.losses import hard, logits
from distill.models import MLP
from distill.models.dropout import Dropout
from distill.runs.execute import execute
from distill.runs.job import Job
from distill.runs.results import KEPT
from distill.runs.students import students
from distill.training.evaluator import evaluator
from distill.training.loop import History, Training
from distill.training.stack import Stack

FP32 = ("precision=fp32", "train.epochs=3")
CRD = ("loss=crd", "loss.negatives=9", "loss.size=4", *FP32)
SUM = (
    *("loss=sum", "+loss@loss.terms.hint=fitnets", "+loss@loss.terms.soft=ctkd"),
    *("+loss@loss.terms.contrast=crd", "loss.terms.contrast.negatives=9"),
    *("loss.terms.contrast.size=4", *FP32),
)
LOSSES = {"ctkd": ("loss=ctkd", *FP32), "crd": CRD, "sum": SUM}


def taught(jobs: Sequence[Job]) -> Training:
    """The training of a stack of jobs, with random numbers for what their teacher says."""
    first = jobs[0]
    shapes = [(first.data.classes,), *first.seen.teacher]
    said = [
        logits_of(n, len(first.data.train_labels), 1, *shape, dtype=torch.float32)
        for n, shape in enumerate(shapes)
    ]
    teachers = [tuple(said) if first.seen.teacher else said[0]] if first.run.distils else []
    return students(jobs, teachers)


def learned(training: Training) -> Stack:
    assert training.objective.learned is not None
    return training.objective.learned


def tensors(training: Training, member: int = 0) -> dict[str, Tensor]:
    """What is learned of one member, of its student and its loss."""
    own = learned(training).state(member)
    return {**training.stack.state(member), **{f"loss.{name}": v for name, v in own.items()}}


class Hint(nn.Module):
    """A projection with statistics of its own, and a width that the config says."""

    def __init__(self, student_features: list[tuple[int, ...]], classes: int, hidden: int) -> None:
        super().__init__()
        [(width,)] = student_features
        self.layers = nn.Sequential(
            nn.Linear(
                width, hidden, bias=False
            ),  # a bias that BatchNorm takes out moves by rounding
            nn.BatchNorm1d(hidden),
            Dropout(0.2),
            nn.Linear(hidden, classes),
        )

    def forward(self, features: Tensor) -> Tensor:
        made: Tensor = self.layers(features)
        return made


def auxiliary(
    student_logits: Tensor,
    student_features: list[Tensor],
    labels: Tensor,
    learned: Hint,
    *,
    hidden: int = 6,  # noqa: ARG001  (of what it learns)
    beta: float = 0.5,
) -> Tensor:
    """A second classifier of the features."""
    return hard(student_logits, labels) + beta * hard(learned(student_features[0]), labels)


MEMBERS = {
    "ctkd": [
        ("loss.start=1", "optim.lr=0.001"),
        ("loss.span=9", "optim.lr=1e30"),
        ("loss.start=4",),
    ],
    "crd": [("loss.beta=0.8",), ("optim.lr=1e30",), ("loss.temperature=0.5", "loss.momentum=0.1")],
    "sum": [
        ("+loss.terms.hint.weight=2",),
        ("optim.lr=1e30",),
        ("loss.terms.soft.start=4", "loss.terms.contrast.temperature=0.5"),
    ],
    "auxiliary": [("+loss.beta=1",), ("optim.lr=1e30",), ("+loss.beta=3", "optim.lr=0.003")],
}


def test_a_sum_gives_each_loss_what_it_learns() -> None:
    both = make_job(
        "loss=sum", "+loss@loss.terms.hint=fitnets", "+loss@loss.terms.soft=ctkd", *FP32
    )
    training = taught([both])
    assert {*learned(training).parameters} == {
        *("parts.hint.layers.0.weight", "parts.hint.layers.0.bias", "parts.soft.value"),
    }
    index, view = next(iter(training.transfer.batches(0, 0, 16)))
    found = training.step(index, view, 0.0, 0.5)
    for name, loss in (("hint", "fitnets"), ("soft", "ctkd")):
        alone = taught([make_job(f"loss={loss}", *FP32)])
        own, prefix = learned(alone).parameters, f"parts.{name}."
        for key, value in own.items():
            value.copy_(learned(training).parameters[prefix + key])
        learned(alone).refresh()
        expected = alone.step(index, view, 0.0, 0.5)["train_loss"]
        torch.testing.assert_close(found[f"train_{name}"], expected)
    torch.testing.assert_close(found["train_loss"], found["train_hint"] + found["train_soft"])


@pytest.mark.table
@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("name", MEMBERS)
def test_what_a_loss_learns_in_a_stack_is_what_it_learns_alone(
    name: str, mapped: bool, offered: Offer
) -> None:
    """The second member diverges, and what its loss learned leaves with it."""

    def job(*overrides: str) -> Job:
        if name == "auxiliary":
            return offered("loss", auxiliary, *FP32, *overrides)
        return make_job(*LOSSES[name], *overrides)

    jobs = [job(*own) for own in MEMBERS[name]]
    assert len({job.run.shared for job in jobs}) == 1
    together = taught(jobs)
    assert together.objective.mapped
    together.objective = replace(together.objective, mapped=mapped)
    start = {n: v.clone() for n, v in learned(together).tensors.items()}
    history = together.run()
    assert history.members == [0, 2] and learned(together).members == 2
    for place, number in enumerate(history.members):
        alone = taught([jobs[number]])
        alone.run()
        own = tensors(together, place)
        assert own.keys() == tensors(alone).keys()
        for key, value in tensors(alone).items():
            torch.testing.assert_close(own[key], value, atol=2e-5, rtol=1e-3)
    changed = [
        n for n, v in learned(together).tensors.items() if not torch.equal(v[0], start[n][0])
    ]
    fixed = {n for n in start if n.rpartition(".")[2] in ("order", "label", "count", "first")}
    assert {*changed} == start.keys() - fixed
    assert any(not torch.equal(v[0], v[1]) for v in learned(together).parameters.values())


@pytest.mark.parametrize("common", [("loss=ctkd", *FP32), CRD], ids=["ctkd", "crd"])
def test_a_checkpoint_holds_what_a_loss_learned(common: tuple[str, ...]) -> None:
    jobs = [make_job(*common, f"optim.lr={lr}", "train.ema=0.9") for lr in (1e-3, 3e-3)]
    whole = taught(jobs)
    rows = whole.run().rows
    begun = taught(jobs)
    held: dict[str, Any] = {}

    def stop(history: History, _: object) -> None:
        if history.epoch == 1:
            held["history"] = copy.deepcopy(history)
            held["state"] = {name: value.clone() for name, value in begun.state().items()}

    begun.run(on_epoch=stop)
    history, state = held["history"], held["state"]
    assert all(len(value) == 2 for value in state.values())
    resumed = taught(jobs)
    resumed.restore(history, state)
    assert resumed.run(history=history).rows == rows
    for member in (0, 1):
        pairs = zip(tensors(whole, member).items(), tensors(resumed, member).items(), strict=True)
        assert all(one == other and torch.equal(a, b) for (one, a), (other, b) in pairs)


def test_what_a_loss_learned_is_in_nothing_that_is_kept(home: Path) -> None:
    split = ("data.validation=0.25", "train.ema=0.9", "train.keep_best=true")
    [result] = execute([make_job(*CRD, *split)], [home])
    assert (result["status"], result["soft_targets"]) == ("complete", "cached fp32")
    assert result["parameters"] == sum(p.numel() for p in MLP((1, 12, 12), 4, width=8).parameters())
    own = MLP((1, 12, 12), 4, width=8).state_dict().keys()
    for file in KEPT.values():
        assert load_file(home / file).keys() == own
    assert distill.load(home).predict(torch.zeros(2, 1, 12, 12, dtype=torch.uint8)).shape == (2,)


def test_a_run_that_was_stopped_goes_on(
    home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill.system import interrupt

    small = ("data=synthetic", "model.width=8", "teacher.model.width=16", "teacher.train.epochs=2")
    common = (*small, *CRD, "checkpoint.every=1e-9")
    assert cli(*common, "hydra.run.dir=whole").code == 0
    count = 0

    def stop() -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise interrupt.Interrupt(2)

    with monkeypatch.context() as patched:
        patched.setattr(interrupt, "check", stop)
        assert cli(*common, "hydra.run.dir=stopped").code != 0
    assert (home / "stopped" / "checkpoint.safetensors").exists()
    done = cli(*common, "hydra.run.dir=stopped")
    assert done.code == 0
    one, other = (load_file(home / name / "student.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_clipping_is_of_all_that_is_trained() -> None:
    plain = ("optim=sgd", "optim.lr=1", "optim.nesterov=false")
    training = taught([make_job(*CRD, "train.clip_norm=0.01", *plain)])
    before = {n: v.clone() for s in training.trained.values() for n, v in s.parameters.items()}
    index = torch.arange(64)
    training.step(index, torch.zeros_like(index), 1.0, 0.5)
    after = {n: v for s in training.trained.values() for n, v in s.parameters.items()}
    decay = training.optimizer.weight_decay[0]
    moved = [after[n] - before[n] + decay * before[n] for n in before]
    norm = torch.stack([m.square().sum() for m in moved]).sum().sqrt()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)
    assert "student.weight" in before and "layers.0.weight" in before


def test_what_a_stopped_student_learned_goes_with_it() -> None:
    common = ("loss=ctkd", *FP32, "data.validation=0.25", "halving.rungs=1", "halving.factor=2")
    jobs = [make_job(*common, f"loss.start={start}") for start in (1, 2, 4)]
    training = taught(jobs)
    history = training.run(evaluator(jobs[0].setting, True))
    assert len(history.stopped) == 1 and len(history.members) == 2
    assert [v.shape for v in learned(training).parameters.values()] == [(2,)]
    for place, number in enumerate(history.members):
        alone = taught([jobs[number]])
        alone.plan = replace(alone.plan, rungs=())
        alone.run(evaluator(jobs[0].setting, True))
        for key, value in tensors(alone).items():
            own = tensors(training, place)[key]
            torch.testing.assert_close(own, value, atol=2e-5, rtol=1e-3)


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        return self.value


def steep(student_logits: Tensor, labels: Tensor, learned: Slope, *, slope: float = 0.0) -> Any:
    """Its value hangs on nothing that it learns, but the gradient does."""
    own = learned()
    return hard(student_logits, labels) + slope * (own - own.detach())


def test_a_member_whose_loss_is_not_finite_any_more_has_diverged(offered: Offer) -> None:
    common = ("precision=fp32", "train.epochs=1", "optim=sgd", "train.batch_size=256")
    jobs = [offered("loss", steep, *common, f"+loss.slope={s}", "optim.lr=1e4") for s in (1, 3e38)]
    history = taught(jobs).run()
    assert history.members == [0]
    reason = "the parameters of the loss are not finite in epoch 1"
    assert history.diverged == {1: reason}


def test_numbers_that_its_module_is_made_of_keep_members_apart(offered: Offer) -> None:
    one, other = (offered("loss", auxiliary, f"+loss.hidden={n}") for n in (6, 7))
    assert one.run.loss.numbers == ["beta"]
    assert one.run.shared != other.run.shared
    assert one.name != other.name
    assert learned(taught([other])).parameters["layers.0.weight"].shape == (1, 7, 8)


class Register(nn.Module):
    """The labels of the transfer set, and something to be trained."""

    def __init__(self, labels: Tensor, examples: int) -> None:
        super().__init__()
        assert len(labels) == examples
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("labels", labels)

    labels: Tensor

    def forward(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight, self.labels[index]


def registered(student_logits: Tensor, labels: Tensor, index: Tensor, learned: Register) -> Any:
    weight, known = learned(index)
    return weight * hard(student_logits, labels), {"known": (known == labels).float()}


@pytest.mark.parametrize("transfer", ["omit", "fraction"])
def test_an_index_counts_the_examples_of_the_transfer_set(transfer: str, offered: Offer) -> None:
    some = {"omit": "transfer.classes=[1]", "fraction": "transfer.fraction=0.3"}[transfer]
    job = offered("loss", registered, f"transfer={transfer}", some, "data.validation=0.2")
    assert len(job.index) < 205
    [rows] = taught([job]).run().rows
    assert [row["train_known"] for row in rows] == [1.0, 1.0]


def test_the_seed_decides_how_it_begins() -> None:
    starts = [
        learned(taught([make_job(*CRD, f"seed={s}", *o)])).state(0)["student.weight"]
        for s, o in ((0, ()), (0, ("model.width=8", "loss.beta=9")), (1, ()))
    ]
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def unannotated(student_logits: Tensor, labels: Tensor, learned) -> Any:  # type: ignore[no-untyped-def]
    return hard(student_logits, labels) * learned()


def wrong(student_logits: Tensor, labels: Tensor, learned: Callable[[], Tensor]) -> Any:
    return hard(student_logits, labels) * learned()


class Wanting(Slope):
    def __init__(self, images: Tensor) -> None:  # noqa: ARG002
        super().__init__()


def wanting(student_logits: Tensor, labels: Tensor, learned: Wanting) -> Any:
    return hard(student_logits, labels) + learned()


class Broken(Slope):
    def __init__(self, classes: int) -> None:
        raise ValueError(f"no {classes} classes")


def broken(student_logits: Tensor, labels: Tensor, learned: Broken) -> Any:
    return hard(student_logits, labels) + learned()


class Empty(nn.Module):
    def forward(self) -> float:
        return 1.0


def empty(student_logits: Tensor, labels: Tensor, learned: Empty) -> Any:
    return hard(student_logits, labels) * learned()


class Keeping(Slope):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self) -> Tensor:
        self.mean = 0.5 * self.mean + self.value
        return self.value


def keeping(student_logits: Tensor, labels: Tensor, learned: Keeping) -> Any:
    return hard(student_logits, labels) + learned()


def mistaken(student_logits: Tensor, labels: Tensor, learned: Slope) -> Any:
    return hard(student_logits, labels) + learned(student_logits)


REFUSED: dict[Callable[..., Any], str] = {
    unannotated: "distill.losses.unannotated: its parameter learned needs an annotation that is",
    wrong: "distill.losses.wrong: its parameter learned needs an annotation that is a subclass of",
    wanting: "distill.losses.wanting: its Wanting asks for images; it can be given student_feat",
    broken: r"loss=broken: its own parameters cannot be made \(ValueError: no 4 classes\)",
    empty: "loss=empty: its Empty: it has no parameters that are trained",
    keeping: r"loss=keeping: its buffer mean keeps a gradient; change it in torch.no_grad\(\)",
    mistaken: r"loss=mistaken: it fails on random logits \(it asks for no teacher_logits\): TypeE",
}


@pytest.mark.parametrize("loss", REFUSED, ids=lambda loss: loss.__name__)
def test_what_cannot_be_learned_is_refused(loss: Callable[..., Tensor], offered: Offer) -> None:
    with pytest.raises(ConfigError, match=f"^{REFUSED[loss]}") as error:
        offered("loss", loss)
    assert "\n" not in str(error.value)


def test_a_loss_that_cannot_be_mapped_learns_one_member_after_another(offered: Offer) -> None:
    def chosen(
        student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, learned: Slope, *, most: int
    ) -> Any:
        place = teacher_logits.topk(most).indices
        matched = logits(student_logits, teacher_logits, labels, alpha=0.5)[0]
        return matched + learned() * student_logits.gather(-1, place).mean(-1)

    jobs = [offered("loss", chosen, "+loss.most=2", f"optim.lr={lr}") for lr in (1e-3, 3e-3)]
    training = taught(jobs)
    assert not training.objective.mapped
    training.run()
    values = learned(training).parameters["value"]
    assert values[0] != values[1] and values.all()
