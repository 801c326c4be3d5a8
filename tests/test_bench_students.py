"""What `bench.functions` and `bench.gradients` say of real students, against plain loops."""

import math
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import combinations
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
from distill.findings.claims import CLAIMS, findings
from distill.models import MLP
from distill.report import reading
from distill.report.check import compare
from distill.report.contents import Sweep
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
    """Students of 300 units at some temperatures, and two of each teacher that match its logits."""
    home = tmp_path_factory.mktemp("students")
    ran(home, "-m", *STUDENTS, "seed=3,1,2", f"loss.temperature={','.join(map(str, GRID))},100")
    ran(home, "-m", *STUDENTS, "seed=3,1,2", "loss=logits")
    for k in (1, 2, 3):
        ran(home, "-m", *STUDENTS, f"teacher.seed={k}", f"seed={10 * k}", "loss=logits")
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


def of_claims(found: Sweep, name: str) -> None:
    """What is measured has all columns of the conditions of its claims."""
    parts = [part for claim in CLAIMS if claim.sweep == name for part in claim.parts]
    assert parts and all({*part} <= {*found.runs} for part in parts)


def losses(z: Tensor, v: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Losses of a batch, by torch's formulas."""
    yield "labels", F.cross_entropy(z, labels)
    for t in GRID:
        p, q = (v / t).softmax(-1), (z / t).log_softmax(-1)
        yield f"soft-T{t}", t**2 * F.kl_div(q, p, reduction="batchmean")


def per_example(
    model: nn.Module, x: Tensor, v: Tensor, y: Tensor, only: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The gradient of each example (N, parameters) for each target, or ``only`` some."""
    found: dict[str, list[Any]] = {}
    for n in range(len(x)):
        for name, loss in losses(model(x[n : n + 1]), v[n : n + 1], y[n : n + 1]):
            if only and name not in only:
                continue
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


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_norm_of_a_batch_is_that_of_all_that_can_be_drawn(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import gradients

    numbers = torch.Generator().manual_seed(1)
    model = MLP(inputs=(3, 4), classes=5, width=7, depth=2).double()
    x = torch.randn(8, 3, 4, generator=numbers, dtype=torch.float64)
    v = 6 * torch.randn(8, 5, generator=numbers, dtype=torch.float64)
    y = torch.randint(5, (8,), generator=numbers)
    squares: dict[str, list[float]] = {}
    for batch in map(list, combinations(range(8), size)):
        for name, loss in losses(model(x[batch]), v[batch], y[batch]):
            grads = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
            square = sum(float(g.square().sum()) for g in grads)
            squares.setdefault(name, []).append(square)
    found = gradients.norms(model, x, v, y)
    assert len(found) == len(squares) == 7
    for norms, drawn in zip(found.values(), squares.values(), strict=True):
        norm = gradients.of_a_batch(norms, 8, size)
        assert norm == pytest.approx(math.sqrt(np.mean(drawn)), rel=1e-9)
    assert gradients.of_a_batch(norms, 8, 9) == gradients.of_a_batch(norms, 8, 8)


@pytest.mark.slow
def test_gradients_are_those_of_the_sweeps_students(real: Path, bench: Any) -> None:
    found = bench("gradients")
    of_claims(found, "gradients")
    rows = found.runs
    assert found.commands[-1] == "python -m bench.gradients multirun/sweep"
    same = compare(found, found, findings)
    each = 7 + 2 * len(GRID)  # of a seed: one as it was initialised, and trained ones
    assert (same.settings, same.same, same.agrees) == (each, len(rows), True)
    assert len(rows) == 3 * each and rows["seed"].value_counts().tolist() == [each] * 3
    assert set(rows["student.temperature"]) == set(GRID) and set(rows["student.loss"]) == {"kd"}
    assert (rows["temperature"].isna() == (rows["target"] == "labels")).all()
    own = rows[(rows["state"] == "trained") & (rows["target"] == "soft")]
    assert (own["temperature"] == own["student.temperature"]).all()
    runs = distill.summary(real)
    own = rows.set_index("run")
    for t in (2, 20):
        run = runs[(runs["seed"] == 2) & (runs["temperature"] == t)].iloc[0]
        model, x, v, y = parts(real, run)
        for name, single in per_example(model, x, v, y, ("labels", f"soft-T{t}")).items():
            row = own.loc[f"trained-T{t}-{name.replace('-T', '-')}-seed2"]
            assert row["teacher_digest"] == run["teacher_digest"]
            assert row["norm"] == pytest.approx(of_batches(single, 64), rel=1e-4)
            assert row["noise_scale"] == pytest.approx(naive(single)[1], rel=1e-3)


def parts(folder: Path, run: "pd.Series[Any]") -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A run's student, its training images, its teacher's logits and the labels, in float64."""
    student = distill.load(folder / str(run["directory"]))
    data = read(check(student.config).data)
    inputs = training_inputs(Job(check(student.config)).setting, 0, False)
    x = inputs.batch(torch.arange(len(inputs)), 0, torch.float64)
    teacher = MLP(inputs=data.shape, classes=data.classes, width=16, depth=2)
    cache = folder.parent / "data" / "teachers" / str(run["teacher_digest"])[:16]
    teacher.load_state_dict(load_file(cache / "teacher.safetensors"))
    v = teacher.double().eval()(x).detach()
    return student.model.double(), x, v, data.train_labels


def of_batches(grads: Any, size: int) -> float:
    """The root mean square norm of the mean of ``size`` of all gradients, none of them twice."""
    mean, n = grads.mean(0), len(grads)
    return math.sqrt(mean @ mean + grads.var(0, ddof=1).sum() * (1 / size - 1 / n))


@pytest.mark.slow
def test_a_student_that_learned_nothing_is_as_it_was_initialised(bench: Any, home: Path) -> None:
    """At whatever temperature it is trained: one of each seed will do for all."""
    grid = ",".join(map(str, GRID))
    ran(home, "-m", *STUDENTS, "seed=5", "optim.lr=1e-9", f"loss.temperature={grid}")
    rows = bench("gradients", home / "sweep").runs.set_index("state")
    first = rows.loc[["initial"]].set_index(["target", "temperature"])
    assert len(first) == 7
    for row in rows.loc[["trained"]].itertuples():
        initial = first.loc[[(row.target, row.temperature)]].iloc[0]
        for column in ("norm", "noise_scale"):
            assert getattr(row, column) == pytest.approx(initial[column], rel=1e-5)
    assert first["norm"].nunique() == first["noise_scale"].nunique() == 7


@pytest.mark.slow
def test_functions_are_compared_on_the_test_images(real: Path, bench: Any) -> None:
    found = bench("functions")
    of_claims(found, "functions")
    assert found.commands[-1] == "python -m bench.functions multirun/sweep"
    same = compare(found, found, findings)
    assert (same.settings, same.same, same.agrees) == (7, 21, True)
    logits: dict[Any, Any] = {}
    digests: dict[Any, set[Any]] = {}
    for run in distill.summary(real).itertuples():
        student = distill.load(real / str(run.directory))
        z = student.logits(read(check(student.config).data).test_inputs).numpy().astype(float)
        key = run.seed, "logits" if run.loss == "logits" else run.temperature
        logits[key] = z - z.mean(1, keepdims=True)
        digests.setdefault(run.teacher_digest, set()).add(run.seed)
    assert [*map(sorted, digests.values())] == [[1, 10], [2, 20], [3, 30]]
    rows = found.runs.set_index(["seed", "temperature"])
    assert {*rows.index} == {(s, t) for s in (1, 2, 3) for t in (*GRID, 100)}
    for seed in (1, 2, 3):
        matching = logits[seed, "logits"]
        between = np.sqrt(np.mean((matching - logits[10 * seed, "logits"]) ** 2))
        for t in (4, 100):
            row = rows.loc[(seed, t)]
            assert row["distance"] == pytest.approx(
                np.sqrt(np.mean((logits[seed, t] - matching) ** 2))
            )
            assert row["between"] == pytest.approx(between)
            assert (row["student.temperature"], row["student.width"]) == (t, 300)
            assert seed in digests[row["teacher_digest"]]


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
    one = left("one", kd | (runs["seed"] != 10))
    said = "the teacher of seed 1 has 1 of the students that match logits; two are wanted"
    assert bench("functions", one) == f"DIR={one}: {said}, as of experiment=logit_matching_again"
    few = left("few", kd | ~runs["seed"].isin((1, 10)))
    lacks = "it has no student of seed 1 that matches its teacher's logits"
    assert bench("functions", few) == f"DIR={few}: {lacks}"
    none = left("none", kd)
    assert bench("functions", none) == f"DIR={none}: it has no students that match logits"
    hot = left("hot", matching | (runs["temperature"] != 4))
    students = "students (kd, mlp, 300 units), T=4"
    assert bench("gradients", hot) == f"DIR={hot}: it has no {students}"
    more = ("seed=1", "loss.temperature=4", "optim.lr=0.1", f"hydra.sweep.dir={none}")
    ran(real.parent, "-m", *STUDENTS, *more)
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
