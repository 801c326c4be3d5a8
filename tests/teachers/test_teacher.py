"""Teachers: trained once, found by content; their soft targets for every view."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed, forget, make_job
from safetensors.torch import save_file

from distill.config import ConfigError, parse
from distill.runs import execute as run
from distill.runs import results
from distill.runs.execute import execute
from distill.runs.job import Job
from distill.teachers import find, targets
from distill.teachers.cache import Teacher
from distill.training import fit
from distill.training.evaluator import evaluator
from distill.training.inputs import training_inputs


def teacher_of(*overrides: str) -> Any:
    forget()
    job = make_job(*overrides)
    return find.find_teacher(job.setting, job.run.teacher, 5.0)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was trained, in order."""
    seen: list[str] = []
    train = fit.fit

    def count(what: str, *rest: Any) -> Any:
        seen.append(what)
        return train(what, *rest)

    for module in (find, run):
        monkeypatch.setattr(module, "fit", count)
    return seen


def test_is_trained_once_and_then_found(trainings: list[str]) -> None:
    first, again = teacher_of(), teacher_of()
    assert trainings == ["teacher mlp_1200"]
    assert first.digest == again.digest
    assert first.test_errors == again.test_errors
    for name, value in first.stack.state(0).items():
        assert torch.equal(value, again.stack.state(0)[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        "teacher.seed=1",
        "teacher.jitter=1",
        "teacher.model.width=17",
        "teacher.model.dropout=0.4",
        "teacher.optim.lr=0.002",
        "teacher.optim.schedule=constant",
        "teacher.train.epochs=1",
        "data.mean=0.31",
        "data.validation=0.25",
        "data.examples=255",
        "precision=fp32",
    ],
)
def test_what_decides_it_is_in_its_digest(change: str) -> None:
    base = ("precision=bf16", "teacher.train.epochs=2")
    assert teacher_of(*base, change).digest != teacher_of(*base).digest


def test_what_does_not_decide_it_is_not(trainings: list[str]) -> None:
    teacher_of()
    teacher_of("loss.temperature=9", "model.width=5", "seed=4", "data.jitter=1", "train.epochs=1")
    teacher_of("transfer=omit", "teacher.name=other")
    assert len(trainings) == 1


def test_soft_targets_are_its_logits_for_each_view(home: Path) -> None:
    job = make_job("data.jitter=1", "precision=fp32")
    teacher = find.find_teacher(job.setting, job.run.teacher, 5.0)
    images = training_inputs(job.setting, 1, False)
    assert isinstance(teacher, Teacher)
    way = targets.way(job.setting, job.run.teacher, 9)
    soft = teacher.soft_targets(images, 4, torch.float32, way)
    assert soft.shape == (256, 9, 4)
    teacher.stack.eval()
    for view in (0, 4, 8):
        x = images.batch(torch.arange(256), view, torch.float32)
        torch.testing.assert_close(soft[:, view], teacher.stack(x)[0].detach())
    # They lie beside the teacher, and the second time are read.
    [folder] = (home / "data" / "teachers").glob("*-soft9")
    before = (folder / "logits.safetensors").stat().st_mtime_ns
    assert torch.equal(teacher.soft_targets(images, 4, torch.float32, way), soft)
    assert (folder / "logits.safetensors").stat().st_mtime_ns == before


def test_a_hard_loss_needs_no_teacher(trainings: list[str], home: Path) -> None:
    [result] = execute([make_job("loss=hard")], [home])
    assert result["teacher"] == "none"
    assert all(not what.startswith("teacher") for what in trainings)
    unused = ("data=synthetic", "loss=hard", "teacher=none")
    assert Job(parse(composed(*unused))).digest == Job(parse(composed(*unused[:2]))).digest


def test_a_student_can_be_the_teacher_of_another(home: Path, trainings: list[str]) -> None:
    [student] = execute([make_job("model.width=6")], [home])
    path = home / "student.safetensors"
    changes = (f"teacher.path={path}", "teacher.model.width=6")
    taught = teacher_of(*changes)
    assert taught.test_errors == student["test_errors"]
    assert trainings[-1].startswith("synthetic-mlp6")
    # Another content of the file is another teacher, and another run.
    name = make_job(*changes).name
    save_file({n: v + 1 for n, v in taught.stack.state(0).items()}, path)
    assert teacher_of(*changes).digest != taught.digest
    assert make_job(*changes).name != name


def test_weights_of_another_shape_are_refused(home: Path) -> None:
    path = home / "w.safetensors"
    save_file({"layers.0.weight": torch.zeros(3, 4)}, path)
    with pytest.raises(ConfigError, match=r"teacher.path=.*has shape \[3, 4\], the model wants"):
        Job(parse(composed("data=synthetic", "teacher=checkpoint", f"teacher.path={path}")))


def test_a_diverging_teacher_fails_the_run_and_is_not_kept(home: Path) -> None:
    job: Job = make_job("teacher.optim.lr=1e30", "teacher.train.epochs=4")
    with pytest.raises(fit.RunError, match="the teacher diverged"):
        execute([job], [home])
    assert '"status": "failed"' in (home / "result.json").read_text()
    assert not list((home / "data" / "teachers").glob("*/manifest.json"))


def test_an_ensemble_averages_the_logits_of_teachers_of_their_own(trainings: list[str]) -> None:
    job = make_job("teacher=ensemble", "teacher.members=3", "teacher.seed=2", "precision=fp32")
    way = targets.way(job.setting, job.run.teacher, 9)
    soft = find.soft_targets(job.setting, job.run.teacher, 5.0, way)
    assert len(trainings) == 3
    alone = [
        find.soft_targets(
            job.setting, make_job("precision=fp32", f"teacher.seed={s}").run.teacher, 5, way
        )
        for s in (6, 7, 8)
    ]
    assert len(trainings) == 3  # they were in the cache
    assert not torch.equal(alone[0], alone[1])
    torch.testing.assert_close(soft, torch.stack(alone).mean(0))
    # Softened, that is the normalised geometric mean, at any temperature.
    geometric = torch.stack([(z / 5).softmax(-1).log() for z in alone]).mean(0).exp()
    torch.testing.assert_close((soft / 5).softmax(-1), geometric / geometric.sum(-1, keepdim=True))


@pytest.mark.parametrize("members", [1, 2])
def test_its_validation_errors_are_known_where_there_is_a_split(members: int, home: Path) -> None:
    given = ("teacher=ensemble", f"teacher.members={members}", "teacher.train.epochs=1")
    job = make_job(*given, "data.validation=0.25", "test=false")
    [result] = execute([job], [home])
    found = find.find_teacher(job.setting, job.run.teacher, 5.0)
    assert isinstance(found, Teacher) and found.val_errors is not None
    images, labels = evaluator(job.setting, True).parts["val"]
    wrong = found.logits(images, images.centre, torch.float32).argmax(-1) != labels
    assert found.val_errors == result["teacher_val_errors"] == int(wrong.sum())
    assert 0 < found.val_errors != found.test_errors
    # Errors are told beside those on the same images.
    assert f" val errors, accuracy {result['val_accuracy']:.2%}, teacher {found.val_errors};" in (
        results.line(result)
    )
    assert "teacher_val_errors" not in execute([make_job(*given, "resume=false")], [home])[0]


def test_an_ensemble_is_judged_by_its_averaged_logits(home: Path) -> None:
    job = make_job("teacher=ensemble", "teacher.members=2", "precision=fp32")
    found = find.find_teacher(job.setting, job.run.teacher, 5.0)
    assert isinstance(found, Teacher)
    images, labels = evaluator(job.setting, True).parts["test"]
    found.stack.eval()
    x = images.batch(torch.arange(len(labels)), 0, torch.float32)
    wrong = found.stack(x).mean(0).argmax(-1) != labels
    assert found.test_errors == wrong.sum()
    [result] = execute([job], [home])
    assert result["teacher_digest"] == found.digest
    assert result["config"]["teacher"]["members"] == 2
    # An ensemble of one is the teacher itself.
    single = ("teacher=ensemble", "teacher.members=1")
    assert teacher_of(*single).digest == teacher_of().digest


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("teacher.path=weights.safetensors", "members=3: an ensemble needs a model and no path"),
        ("teacher.seed=9223372036854775807", "seed=9223372036854775807: too large for 3 members"),
    ],
)
def test_ensembles_that_cannot_be_are_refused(change: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"teacher: {reason}"):
        parse(composed("teacher=ensemble", "teacher.members=3", change))


def test_a_sweep_shows_what_its_teacher_says_of_examples(home: Path) -> None:
    job = make_job("precision=fp32")
    (home / "sweep" / "run").mkdir(parents=True)
    [result] = execute([job], [home / "sweep" / "run"])
    shown = json.loads(
        (home / "sweep" / "run" / f"digits-{result['teacher_digest'][:8]}.json").read_text()
    )
    assert 4 < len(shown) <= 8
    soft = find.centre_targets(job.setting, job.run.teacher, 5.0)
    doubt = soft.softmax(-1).sort(-1).values[:, -2]
    for row in shown:
        label, index = row["label"], row["index"]
        assert label == job.data.train_labels[index] == soft[index].argmax()
        assert row["logits"] == pytest.approx(soft[index].tolist(), abs=1e-4)
        pixels = torch.frombuffer(bytearray(base64.b64decode(row["pixels"])), dtype=torch.uint8)
        assert torch.equal(pixels.view(12, 12), job.data.train_inputs[index, 0])
    last = shown[-1]  # of its class, the teacher is the least sure of it
    labels = job.data.train_labels
    assert last["label"] == shown[-2]["label"]
    right = (soft.argmax(-1) == labels) & (labels == last["label"])
    assert doubt[last["index"]] == doubt[right].max()
