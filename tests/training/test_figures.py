"""Figures besides errors, against scikit-learn, SciPy, and by hand."""

from pathlib import Path

import pytest
import torch
from conftest import logits_of, make_job
from scipy.stats import entropy
from sklearn.metrics import accuracy_score, recall_score, top_k_accuracy_score

from distill.runs.execute import execute
from distill.teachers.find import find_teacher, logits_on_test
from distill.training.figures import figures

K, N, C = 2, 60, 8


def test_figures_are_those_of_others_however_they_are_batched() -> None:
    z, v = logits_of(0, K, N, C, dtype=torch.float32), logits_of(1, N, C, dtype=torch.float32)
    labels = torch.randint(C - 1, (N,), generator=torch.Generator().manual_seed(2))
    labels[:9] = 3  # so that counts differ; of the last class there is none
    batches = [(i, z[:, i]) for i in torch.split(torch.randperm(N), 17)]
    found = figures(batches, labels, v)
    q, p = z.double().softmax(-1), v.double().softmax(-1)
    for k in range(K):
        chosen, y = z[k].argmax(-1), labels.numpy()
        recall = recall_score(y, chosen, labels=range(C - 1), average="macro")
        assert found["balanced_accuracy"][k].item() == pytest.approx(recall)
        right = top_k_accuracy_score(y, z[k].numpy(), k=5, labels=range(C), normalize=False)
        assert found["top5_errors"][k] == N - right
        assert found["agreement"][k].item() == accuracy_score(v.argmax(-1), chosen)
        kl = entropy(p.numpy(), q[k].numpy(), axis=1).mean()
        assert found["teacher_kl"][k].item() == pytest.approx(kl)
        assert found["counts_by_class"][k].tolist() == labels.bincount(minlength=C).tolist()
        assert found["errors_by_class"][k].sum() == (chosen != labels).sum()
    assert found["teacher_kl"][0] != found["teacher_kl"][1]


def test_the_calibration_error_by_hand() -> None:
    """Two in a bin, 0.61 right and 0.62 wrong; 0.9, wrong; and one that is sure, and right."""
    confidence = torch.tensor([0.61, 0.62, 0.9, 1 - 1e-9], dtype=torch.float64)
    z = torch.stack([confidence, 1 - confidence], -1).log().unsqueeze(0)
    labels = torch.tensor([0, 1, 1, 0])
    found = figures([(torch.arange(4), z)], labels)
    expected = (2 * abs(0.5 - 0.615) + abs(0 - 0.9) + 0) / 4
    assert found["ece"].item() == pytest.approx(expected, abs=1e-8)
    assert "top5_errors" not in found and "agreement" not in found


def test_a_bin_has_its_upper_end() -> None:
    """2/3 = 10/15 and a little less are of one bin, as (Guo et al. 2017) have it."""
    z = torch.tensor([[[2.0, 1.0], [1.999, 1.0]]], dtype=torch.float64).log()
    found = figures([(torch.arange(2), z)], torch.tensor([0, 1]))
    assert found["ece"].item() == pytest.approx((2 * 2 / 3 - 1) / 2, abs=1e-3)


def test_a_teacher_that_excludes_a_class() -> None:
    v = torch.tensor([[0.0, -torch.inf]])
    found = figures([(torch.arange(1), torch.zeros(1, 1, 2))], torch.tensor([0]), v)
    assert found["teacher_kl"].item() == pytest.approx(0.6931472)


def test_a_run_has_its_figures_and_the_teachers(home: Path) -> None:
    job = make_job("data.classes=7", "data.validation=0.25", "loss.alpha=1", "precision=fp32")
    [result] = execute([job], [home])
    for part, errors in (("val", result["val_errors"]), ("test", result["test_errors"])):
        counts = result[f"{part}_counts_by_class"]
        assert len(counts) == 7 and sum(result[f"{part}_errors_by_class"]) == errors
        assert result[f"{part}_accuracy"] == pytest.approx(1 - errors / sum(counts))
        wrong = zip(result[f"{part}_errors_by_class"], counts, strict=True)
        mean = 1 - sum(own / count for own, count in wrong) / 7
        assert result[f"{part}_balanced_accuracy"] == pytest.approx(mean)
        assert 0 < result[f"{part}_top5_errors"] < errors
        assert 0 < result[f"{part}_ece"] < 1
    run, labels = job.run, job.data.test_labels
    found = find_teacher(job.setting, run.teacher, run.checkpoint.every)
    teacher = logits_on_test(job.setting, found)
    assert teacher is logits_on_test(job.setting, found)
    assert teacher is not None
    assert result["teacher_test_errors"] == (teacher.argmax(-1) != labels).sum()
    own = figures([(torch.arange(len(labels)), teacher.unsqueeze(0))], labels, teacher)
    assert (own["agreement"].item(), own["teacher_kl"].item()) == (1, 0)
    for name in ("ece", "top5_errors", "balanced_accuracy"):
        assert result[f"teacher_test_{name}"] == pytest.approx(own[name].item())
    assert 0 < result["test_agreement"] < 1 and result["test_teacher_kl"] > 0
    assert "val_agreement" not in result


def test_without_a_teacher_or_a_test_set_nothing_is_said_of_them(home: Path) -> None:
    [result] = execute([make_job("loss=hard")], [home])
    assert "test_ece" in result and "test_top5_errors" not in result
    assert not [name for name in result if "teacher_" in name or "agreement" in name]
    [result] = execute([make_job("test=false", "data.validation=0.25")], [home])
    assert "val_ece" in result
    assert {n for n in result if "test_" in n} == {"teacher_test_errors"}
