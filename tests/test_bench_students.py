"""What `bench.functions` and `bench.gradients` say of real students, against plain loops."""

import math
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, ran
from safetensors.torch import load_file
from torch import Tensor, nn

import distill
from distill.config import check
from distill.findings.claims import findings
from distill.models import MLP
from distill.report import reading
from distill.report.check import compare
from distill.runs.job import Job
from distill.training.inputs import read, training_inputs

ROOT = Path(__file__).parents[1]
GRID = (1, 2, 4, 6, 10, 20)
STUDENTS = (
    *(*SMALL, "model.width=300", "precision=fp32", "device=cpu", "loss.alpha=1"),
    *("teacher.seed=${seed}", "hydra.sweep.dir=sweep"),
)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of students of 300 units at some temperatures, and of such that match logits."""
    home = tmp_path_factory.mktemp("students")
    ran(home, "-m", *STUDENTS, "seed=3,1,2", "loss.temperature=4,100")
    ran(home, "-m", *STUDENTS, "seed=3,1,2", "loss=logits")
    return home / "sweep"


@pytest.fixture
def bench(real: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command of the bench on a sweep: its rows, or the line that it ends with."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("DISTILL_DATA", str(real.parent / "data"))

    def call(name: str, folder: Path = real) -> Any:
        out = Path("out", name)
        monkeypatch.setattr(sys, "argv", ["bench", str(folder), "--out", str(out)])
        try:
            import_module(f"bench.{name}").main()
        except SystemExit as end:
            assert not out.exists()
            return end.code
        return reading.sweep(out)

    return call


def losses(z: Tensor, v: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Losses of a batch, by torch's formulas."""
    yield "labels", F.cross_entropy(z, labels)
    for t in GRID:
        p, q = (v / t).softmax(-1), (z / t).log_softmax(-1)
        yield f"soft-T{t}", t**2 * F.kl_div(q, p, reduction="batchmean")


def per_example(model: nn.Module, x: Tensor, v: Tensor, y: Tensor) -> dict[str, Any]:
    """The gradient of each example (N, parameters) for each target, one after the other."""
    found: dict[str, list[Any]] = {}
    for n in range(len(x)):
        for name, loss in losses(model(x[n : n + 1]), v[n : n + 1], y[n : n + 1]):
            grads = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
            found.setdefault(name, []).append(torch.cat([g.flatten() for g in grads]).numpy())
    return {name: np.stack(grads) for name, grads in found.items()}


def naive(grads: Any) -> tuple[float, float]:
    """The norm of the mean gradient, and the noise scale, by the trace of the covariance."""
    mean = grads.mean(0)
    trace = grads.var(0, ddof=1).sum()
    return math.sqrt(mean @ mean), trace / (mean @ mean - trace / len(grads))


def test_norms_and_noise_scales_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import gradients

    monkeypatch.setattr(gradients, "BATCH", 10)
    numbers = torch.Generator().manual_seed(0)
    model = MLP(inputs=(3, 4), classes=5, width=7, depth=2).double()
    x = torch.randn(23, 3, 4, generator=numbers, dtype=torch.float64)
    v = 6 * torch.randn(23, 5, generator=numbers, dtype=torch.float64)
    y = torch.randint(5, (23,), generator=numbers)
    found = gradients.norms(model, x, v, y)
    assert [target for target, _ in found] == ["labels", *["soft"] * len(GRID)]
    for ((_, t), norms), grads in zip(
        found.items(), per_example(model, x, v, y).values(), strict=True
    ):
        norm, scale = naive(grads)
        assert math.isnan(t) or t in GRID
        assert math.sqrt(norms.whole) == pytest.approx(norm, rel=1e-9)
        assert gradients.noise_scale(norms, 23) == pytest.approx(scale, rel=1e-9)
    assert math.isnan(gradients.noise_scale(gradients.Norms(1.0, 24.0), 23))  # no signal at all
    assert not any(layer._forward_hooks for layer in model.modules())


@pytest.mark.slow
def test_gradients_are_those_of_the_sweeps_students(real: Path, bench: Any) -> None:
    found = bench("gradients")
    rows = found.runs
    assert found.commands[-1] == "python -m bench.gradients multirun/sweep"
    same = compare(found, found, findings)
    assert (same.settings, same.same, same.agrees) == (2 * 7, len(rows), True)
    assert len(rows) == 3 * 2 * 7 and rows["seed"].tolist() == [1] * 14 + [2] * 14 + [3] * 14
    assert set(rows["student.temperature"]) == {4} and set(rows["student.loss"]) == {"kd"}
    assert (rows["temperature"].isna() == (rows["target"] == "labels")).all()
    runs = distill.summary(real)
    run = runs[(runs["seed"] == 2) & (runs["temperature"] == 4)].iloc[0]
    student = distill.load(real / run["directory"])
    data = read(check(student.config).data)
    inputs = training_inputs(Job(check(student.config)).setting, 0, False)
    x = inputs.batch(torch.arange(len(inputs)), 0, torch.float64)
    teacher = MLP(inputs=data.shape, classes=data.classes, width=16, depth=2)
    cache = real.parent / "data" / "teachers" / run["teacher_digest"][:16]
    teacher.load_state_dict(load_file(cache / "teacher.safetensors"))
    v = teacher.double().eval()(x).detach()
    model, y = student.model.double(), data.train_labels
    own = rows.set_index("run")
    for name, loss in losses(model(x), v, y):
        grads = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        row = own.loc[f"trained-{name}-seed2"]
        assert row["norm"] == pytest.approx(norm, rel=1e-4)
    single = {n: g for n, g in per_example(model, x, v, y).items() if n in ("labels", "soft-T20")}
    for name, grads in single.items():
        row = own.loc[f"trained-{name}-seed2"]
        assert row["noise_scale"] == pytest.approx(naive(grads)[1], rel=1e-3)


@pytest.mark.slow
def test_a_student_that_learned_nothing_is_as_it_was_initialised(bench: Any, home: Path) -> None:
    ran(home, "-m", *STUDENTS, "seed=5", "optim.lr=1e-9")
    rows = bench("gradients", home / "sweep").runs.set_index(["state", "target", "temperature"])
    for column in ("norm", "noise_scale"):
        initial, trained = (rows[column][state].to_numpy(float) for state in ("initial", "trained"))
        assert initial == pytest.approx(trained, rel=1e-5)
        assert len(set(initial)) == 7


@pytest.mark.slow
def test_functions_are_compared_on_the_test_images(real: Path, bench: Any) -> None:
    found = bench("functions")
    assert found.commands[-1] == "python -m bench.functions multirun/sweep"
    same = compare(found, found, findings)
    assert (same.settings, same.same, same.agrees) == (2, 6, True)
    logits = {}
    for run in distill.summary(real).itertuples():
        student = distill.load(real / str(run.directory))
        z = student.logits(read(check(student.config).data).test_inputs).numpy().astype(float)
        key = run.seed, "logits" if run.loss == "logits" else run.temperature
        logits[key] = z - z.mean(1, keepdims=True)
    rows = found.runs.set_index(["seed", "temperature"])
    assert {*rows.index} == {(s, t) for s in (1, 2, 3) for t in (4, 100)}
    for seed, after in ((1, 2), (2, 3), (3, 1)):
        matching = logits[seed, "logits"]
        between = np.sqrt(np.mean((matching - logits[after, "logits"]) ** 2))
        for t in (4, 100):
            row = rows.loc[(seed, t)]
            assert row["distance"] == pytest.approx(
                np.sqrt(np.mean((logits[seed, t] - matching) ** 2))
            )
            assert row["between"] == pytest.approx(between)
            assert (row["student.temperature"], row["student.width"]) == (t, 300)


@pytest.mark.slow
def test_what_cannot_be_measured_is_said_in_a_line(real: Path, bench: Any, home: Path) -> None:
    runs = distill.summary(real)

    def left(name: str, kept: "pd.Series[bool]") -> Path:
        copy = Path(shutil.copytree(real, home / name))
        for directory in runs["directory"][~kept]:
            shutil.rmtree(copy / str(directory))
        for file in ("planned.csv", "summary.csv"):
            (copy / file).unlink()
        return copy

    kd, matching = runs["loss"] == "kd", runs["loss"] == "logits"
    one = left("one", kd | (runs["seed"] == 1))
    assert bench("functions", one) == f"DIR={one}: it has one seed; the distance of two is wanted"
    few = left("few", kd | (runs["seed"] != 1))
    lacks = "it has no student of seed 1 that matches logits"
    assert bench("functions", few) == f"DIR={few}: {lacks}"
    none = left("none", kd)
    assert bench("functions", none) == f"DIR={none}: it has no students that match logits"
    hot = left("hot", matching | (runs["temperature"] == 100))
    students = "students (kd, mlp) of 300 units at T = 4"
    assert bench("gradients", hot) == f"DIR={hot}: it has no {students}"
    ran(real.parent, "-m", *STUDENTS, "seed=1", "optim.lr=0.1", f"hydra.sweep.dir={none}")
    assert bench("gradients", none) == f"DIR={none}: it has several {students} of seed 1"
    whole = left("whole", kd | matching)
    bare = whole / str(runs["directory"][kd].iloc[0])
    (bare / "student.safetensors").unlink()
    assert str(bare) in bench("functions", whole)
    teachers = real.parent / "data" / "teachers"
    teachers.rename(teachers.with_name("away"))
    try:
        said = bench("gradients")
    finally:
        shutil.rmtree(teachers, ignore_errors=True)
        teachers.with_name("away").rename(teachers)
    assert f"its teacher is not in {teachers}" in said and "\n" not in said
