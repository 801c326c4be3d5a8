"""Features of students and teachers: what a loss is given of them, and that it is all they do."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, Cli, Offer, composed, forget, logits_of, make_job
from torch import Tensor, nn

from distill.config import ConfigError, parse
from distill.losses import hard
from distill.runs.execute import execute
from distill.runs.job import Job
from distill.runs.students import students
from distill.runs.summaries import read_summary
from distill.runs.teaching import taught_by
from distill.sweeps import plan
from distill.system import machine
from distill.teachers.find import find_teacher
from distill.teachers.targets import way
from distill.training.build import build
from distill.training.features import observed
from distill.training.transfer_set import Source

FP32 = ("precision=fp32", "train.epochs=3")
TRAINED = ("teacher=trained", "teacher.train.epochs=2", "data.jitter=0", "model@teacher.model=cnn")
CNNS = (
    *(*TRAINED, "teacher.model.width=6", "model=cnn", "model.width=4"),
    *("model.features=[convolutions.0,convolutions.1]", "model.dropout=0.3"),
    "teacher.model.features=[convolutions.0,convolutions.1]",
)
RESNETS = (
    *(*TRAINED, "teacher.model.width=6", "model=resnet8", "model.width=0.25", "optim=sgd"),
    *("model.features=[layer2]", "teacher.model.features=[convolutions.1]"),
)
# How each loss is trained: with features of vectors, of maps, and of maps of other sizes.
SETTINGS = {
    "fitnets": ("model.dropout=0.3",),
    "fitnets of maps": CNNS,
    "fitnets of a resnet": RESNETS,
    "at": CNNS,
    "sp": ("model.dropout=0.3",),
    "sp of maps": CNNS,
    "rkd": ("data.jitter=1",),
    "pkt": (),
    "crd": ("loss.negatives=9", "loss.size=4"),
    "crd of maps": (*CNNS[:6], "loss.negatives=9", "loss.size=4"),
}


def said(job: Job, seed: int = 0) -> Source:
    """Random numbers for what a teacher says, of all views alike."""
    shapes = [(job.data.classes,), *job.seen.teacher]
    assert job.way is not None
    parts = [
        logits_of(n + seed, len(job.data.train_labels), 1, *shape, dtype=torch.float32).abs()
        for n, shape in enumerate(shapes)
    ]
    return tuple(part.expand(-1, job.way.views, *part.shape[2:]) for part in parts)


def job_of(setting: str, *overrides: str) -> Job:
    return make_job(f"loss={setting.partition(' ')[0]}", *FP32, *SETTINGS[setting], *overrides)


@pytest.mark.table
@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(name, marks=pytest.mark.slow) if "resnet" in name or name == "rkd" else name
        for name in SETTINGS
    ],
)
def test_members_of_a_stack_are_those_that_train_alone(setting: str) -> None:
    key = "distance" if setting == "rkd" else "beta"
    jobs = [
        job_of(setting, f"loss.{key}={b}", f"optim.lr={lr}") for b, lr in ((1, 1e-3), (9, 3e-3))
    ]
    assert len({(job.run.shared, job.way) for job in jobs}) == 1
    together = students(jobs, [said(jobs[0])])
    assert together.objective.mapped
    rows = together.run().rows
    one_by_one = students(jobs, [said(jobs[0])])
    one_by_one.objective = replace(one_by_one.objective, mapped=False)
    one_by_one.run()
    for k, job in enumerate(jobs):
        alone = students([job], [said(job)])
        [own] = alone.run().rows
        terms = [name for name in own[-1] if name.startswith("train_")]
        assert len(terms) > 2 and own[0] != own[-1]
        for name in terms:
            assert rows[k][-1][name] == pytest.approx(own[-1][name], rel=1e-3, abs=1e-6)
        for training in (together, one_by_one):
            for name, value in alone.stack.state(0).items():
                torch.testing.assert_close(
                    training.stack.state(k)[name], value, atol=5e-5, rtol=5e-3
                )


@pytest.mark.table
@pytest.mark.parametrize("setting", ["pkt", "fitnets of maps"])
def test_a_loss_of_features_changes_them(setting: str) -> None:
    """What the loss pulls at falls, with nearly nothing of the labels."""
    job = job_of(setting, "train.epochs=30", "optim.lr=0.01", "loss.beta=1e6")
    [rows] = students([job], [said(job)]).run().rows
    assert rows[-1]["train_soft"] < 0.8 * rows[0]["train_soft"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet8"])
def test_features_are_what_the_modules_return(model: str, precision: str) -> None:
    """In a stack, of each member, whether it is mapped or called one by one; in training, too."""
    width = "model.width=0.25" if model == "resnet8" else "model.width=6"
    job = make_job("loss=hard", f"model={model}", width, f"precision={precision}")
    names = {"mlp": ["layers.0"], "cnn": ["convolutions.1"], "resnet8": ["layer2", "bn1"]}[model]
    last = {"mlp": "layers.2", "cnn": "layers.0", "resnet8": "fc"}[model]
    stack = students([job] * 3).stack
    with torch.no_grad():
        for n, p in enumerate(stack.parameters.values()):
            p.add_(logits_of(n, *p.shape, dtype=torch.float32) / 30)
    stack.refresh()
    stack.eval()
    x = torch.rand(5, *job.data.shape).to(job.setting.dtype)
    tolerance = 1e-5 if precision == "fp32" else 0.05
    for own in (None, names):
        logits, features = stack.observed(x, own)
        torch.testing.assert_close(logits, stack(x), atol=tolerance, rtol=tolerance)
        for k in range(3):
            module = build(job.run.model, job.data, "model").eval()
            module.load_state_dict(stack.state(k), strict=False)
            _, found = observed(module, own, lambda module=module: module(x.float()))  # type: ignore[misc]
            assert len(features) == len(found) == len(own or [0])
            for one, other in zip(features, found, strict=True):
                torch.testing.assert_close(
                    one[k].float(), other, atol=10 * tolerance, rtol=tolerance
                )
            if own is None:  # of which the last layer makes the logits
                torch.testing.assert_close(
                    module.get_submodule(last)(found[0]), module(x.float()), atol=1e-5, rtol=1e-5
                )
    assert not any(
        "_hooks" in n and v for part in stack.module.modules() for n, v in vars(part).items()
    )


def test_what_comes_next_does_not_change_a_feature() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    x = logits_of(0, 5, 4, dtype=torch.float32)
    _, [feature] = observed(model, ["1"], lambda: model(x))
    assert torch.equal(feature, model[1](x)) and (feature < 0).any()


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "student": (
        ("loss=rkd", "model.features=[layer2]"),
        r"model.features=\[layer2\]: of mlp, it has no module layer2; allowed are layers, ",
    ),
    "teacher": (
        ("loss=rkd", "teacher.model.features=[fc]"),
        r"teacher.model.features=\[fc\]: of mlp, it has no module fc; allowed are layers, ",
    ),
    "many": (
        ("loss=rkd", "model=resnet20", "model.features=[stage]"),
        r"model.features=\[stage\]: of resnet20, .* allowed are conv1, .*, fc, and modules within",
    ),
    "not called": (
        ("loss=rkd", "model.features=[layers]"),
        r"model.features=\[layers\]: of mlp, its module layers is called 0 times; wanted is once",
    ),
    "as many": (
        ("loss=fitnets", "model.features=[layers.0,layers.1]"),
        "model.features: these are of 2 modules, and teacher.model.features of 1; name as many",
    ),
    "none": (
        ("loss=rkd", "model.features=[]"),
        r"model.features=\[\]: List should have at least 1 item after validation, not 0",
    ),
    "vectors": (
        ("loss=at",),
        r"loss=at: it fails on random logits and features: .*wanted are maps",
    ),
    "shapes": (
        ("loss=fitnets", *CNNS[:7], "model.features=[convolutions.0]"),
        r"loss=fitnets: it fails on random logits and features: .*cannot be compared; name others",
    ),
    "crd": (
        (
            "loss=crd",
            "model.features=[layers.0,layers.1]",
            "teacher.model.features=[layers.0,layers.1]",
        ),
        r"loss=crd: its own parameters cannot be made \(ValueError: features are 2 of the student",
    ),
    "one class": (
        ("loss=crd", "transfer=only", "transfer.classes=[1]"),
        r"loss=crd: its own parameters cannot be made \(ValueError: the transfer set has but one",
    ),
}


@pytest.mark.table
@pytest.mark.parametrize("name", WRONG)
def test_what_no_loss_can_see_is_refused(name: str) -> None:
    overrides, text = WRONG[name]
    with pytest.raises(ConfigError, match=f"^{text}") as error:
        make_job(*overrides)
    assert "\n" not in str(error.value)


TEACHERLESS = {
    "teacher=none": "teacher=none: loss=rkd needs a teacher",
    "teacher=targets teacher.path=said.npy": "teacher=targets: loss=rkd needs the features of a",
    "teacher=ensemble": "teacher=ensemble: loss=rkd needs the features of a teacher, and an ense",
}


@pytest.mark.parametrize("overrides", TEACHERLESS)
def test_a_teacher_without_features_is_refused(overrides: str, home: Path) -> None:
    np.save(home / "said.npy", np.zeros((256, 4)))
    with pytest.raises(ConfigError, match=f"^{TEACHERLESS[overrides]}") as error:
        parse(composed("data=synthetic", *overrides.split(), "loss=rkd"))
    assert "\n" not in str(error.value)


def test_features_that_no_loss_sees_change_no_name() -> None:
    seen = ("model.features=[layers.0]", "teacher.model.features=[layers.1]")
    for loss in ("kd", "hard", "ctkd"):
        plain, other = make_job(f"loss={loss}"), make_job(f"loss={loss}", *seen)
        assert (plain.name, plain.run.shared) == (other.name, other.run.shared)
        assert (plain.run.teacher, plain.way) == (other.run.teacher, other.way)
    names = {make_job("loss=rkd", *own).name for own in ((), seen[:1], seen[1:], seen)}
    assert len(names) == 4
    # What a loss sees of it is no part of a teacher.
    assert make_job("loss=rkd", *seen).run.teacher.recipe == make_job().run.teacher.recipe


def test_one_trained_teacher_serves_every_loss(home: Path) -> None:
    del home
    own = [(), ("loss=rkd",), ("loss=rkd", "teacher.model.features=[layers.0]")]
    jobs = [make_job(*overrides) for overrides in own]
    found = [find_teacher(job.setting, job.run.teacher, 5.0) for job in jobs]
    assert len({teacher.digest for teacher in found}) == 1
    sources = []
    for job in jobs:
        [source], _, _ = taught_by([job], [Path()])
        sources.append(source)
    plain, vectors, wide = sources
    assert isinstance(plain, Tensor) and isinstance(vectors, tuple) and isinstance(wide, tuple)
    for kept in (vectors, wide):
        torch.testing.assert_close(kept[0], plain)
        assert kept[1].shape == (256, 1, 16)
    assert not torch.allclose(vectors[1], wide[1])


@pytest.mark.table
@pytest.mark.parametrize("setting", ["crd", "sp of maps"])
def test_online_and_cached_features_make_the_same_student(setting: str, home: Path) -> None:
    found = {}
    for kind in ("cached", "online"):
        (home / kind).mkdir()
        forget()
        job = job_of(setting, "data.jitter=1", "train.epochs=5", f"teacher.targets={kind}")
        assert job.name == job_of(setting, "data.jitter=1", "train.epochs=5").name
        [found[kind]] = execute([job], [home / kind])
    assert [r["soft_targets"] for r in found.values()] == ["cached fp32", "online"]
    for name in ("train_loss", "train_soft", "test_loss"):
        assert found["online"][name] == pytest.approx(found["cached"][name], rel=1e-4)


def test_features_are_kept_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job("loss=rkd", "data.jitter=1", "train.epochs=9", "teacher.model.width=60")
    numbers = 256 * 9 * (4 + 60)

    def chosen(memory: int, targets: str = "auto") -> Any:
        teacher = job.run.teacher.model_copy(update={"targets": targets})
        monkeypatch.setattr(machine, "memory", lambda: memory)
        return way(job.setting, teacher, 9, features=job.seen.teacher)

    text = "soft targets and features cached, 9 views in fp32, 589.8 kB"
    assert str(chosen(16 * numbers)) == text
    online = chosen(16 * numbers - 1)
    assert str(online) == "soft targets and features online, by the teacher in each batch"
    with pytest.raises(
        ConfigError, match=r"9 views of 256 examples take 589.8 kB in float32, more"
    ):
        chosen(16 * numbers - 1, "cached")


def test_students_of_several_teachers_see_each_ones_features() -> None:
    own = [
        ("teacher.seed=0", "loss.beta=9"),
        ("teacher.seed=1",),
        ("teacher.seed=0", "optim.lr=3e-3"),
    ]
    jobs = [job_of("fitnets", *overrides) for overrides in own]
    assert [len(stack.jobs) for stack in plan.stacks(jobs, 9, 1)] == [3]
    sources = [said(jobs[0]), said(jobs[1], 7)]
    together = students(jobs, sources, [0, 1, 0])
    together.run()
    for k, job in enumerate(jobs):
        alone = students([job], [sources[k % 2]])
        alone.run()
        for name, value in alone.stack.state(0).items():
            torch.testing.assert_close(together.stack.state(k)[name], value, atol=5e-5, rtol=5e-3)
    wider = job_of("fitnets", "teacher.model.width=20")
    assert [len(stack.jobs) for stack in plan.stacks([*jobs, wider], 9, 1)] == [3, 1]


@pytest.mark.table
@pytest.mark.parametrize("setting", ["fitnets", "fitnets of maps", "crd"])
def test_bf16_trains(setting: str) -> None:
    job = job_of(setting, "precision=bf16", "train.clip_norm=1", "train.epochs=8", "optim.lr=0.003")
    training = students([job] * 2, [said(job)])
    [rows, _] = training.run().rows
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_mixed_examples_are_seen_by_the_teacher_as_by_the_student(home: Path) -> None:
    job = job_of("crd", "augment=mixup")
    assert job.way is not None and job.way.online
    [result] = execute([job], [home])
    assert (result["status"], result["soft_targets"]) == ("complete", "online")


@pytest.mark.slow
def test_a_sweep_of_losses_of_features(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    small: Sequence[str] = (*SMALL, "precision=fp32", "hydra.sweep.dir=sweep")
    seen = "model.features=[layers.0]"
    done = cli("-m", *small, "loss=kd,rkd,ctkd", "optim.lr=0.001,0.01", seen)
    text = done.out + done.err
    assert "6 jobs in 3 stacks of 2" in text
    for what in (
        "soft targets cached, 1 view in fp32, 4.1 kB",
        "and features cached, 1 view in fp32",
    ):
        assert what in text
    runs = read_summary("sweep")
    assert (runs.status == "complete").all()
    columns = {"rkd": "train_distance", "kd": "train_soft", "ctkd": "train_temperature"}
    for loss, column in columns.items():
        assert runs[runs.loss == loss][column].notna().all()
    # A student of features is a teacher, of features, too.
    student = next(Path("sweep").glob("*rkd*"))
    path = ("teacher=checkpoint", f"teacher.path={student}", "model@teacher.model=mlp")
    given = ("model.features=[layers.0]", "teacher.model.features=[layers.1]", "loss=fitnets")
    done = cli(
        "data=synthetic", "model.width=8", "train.epochs=1", *path, "teacher.model.width=8", *given
    )
    assert (done.code, done.err) == (0, "")


def centring(
    student_logits: Tensor, labels: Tensor, student_features: Any, teacher_features: Any
) -> Any:
    teacher_features[0] -= teacher_features[0].mean()
    return hard(student_logits, labels) + student_features[0].sum(1)


def test_a_loss_that_changes_features_is_refused(offered: Offer) -> None:
    text = "^loss=centring: it changes its teacher_logits, features or labels in place"
    with pytest.raises(ConfigError, match=text):
        offered("loss", centring)
