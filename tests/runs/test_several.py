"""Students of several teachers in one stack: each learns from its own, as it would alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL, Cli, Offer, composed, logits_of, make_job
from torch import Tensor

from distill.config import parse
from distill.losses import hard
from distill.runs import execute as run
from distill.runs import results
from distill.runs.execute import execute
from distill.runs.job import Job
from distill.runs.results import HISTORY, RESULT, read
from distill.runs.students import students
from distill.runs.summaries import read_summary
from distill.sweeps import costs, plan
from distill.sweeps.tasks import Planned
from distill.sweeps.workers import Task, teach
from distill.system import machine, pulse
from distill.training.objective import Objective

Results = list[dict[str, Any]]

TRAINED = ("teacher.model.width=16", "teacher.train.epochs=2", "teacher.train.batch_size=64")
TEACHERS = {
    "first": TRAINED,
    "second": (*TRAINED, "teacher.seed=1"),
    "small": (*TRAINED, "teacher.model.width=12"),
    "file": ("teacher=targets", "teacher.path=said.npy"),
}
# Mixed in all that members may differ in. One diverges, so that numbers of members change.
MIXED = [
    ("first", "loss.temperature=2", "loss.alpha=0.9"),
    ("second", "loss.temperature=8", "loss.alpha=0.5", "optim.lr=0.003"),
    ("first", "loss.temperature=1", "optim.lr=1e30"),
    ("small", "loss.temperature=4", "optim.weight_decay=0.5"),
    ("file", "loss.temperature=3"),
    ("second", "loss.temperature=2", "loss.alpha=0.9"),
]


def job(teacher: str, *overrides: str) -> Job:
    common = ("precision=fp32", "train.epochs=4", "train.batch_size=64")
    return Job(parse(composed(*SMALL[:2], *common, *TEACHERS[teacher], *overrides)))


@pytest.fixture(autouse=True)
def said(home: Path) -> None:
    """The file of a teacher that says nothing of the test set."""
    np.save(home / "said.npy", logits_of(5, 256, 4, dtype=torch.float32).numpy())


def train(jobs: list[Job], folder: Path) -> tuple[Results, list[pd.DataFrame]]:
    """Their results and histories."""
    directories = [folder / str(k) for k in range(len(jobs))]
    for directory in directories:
        directory.mkdir(parents=True)
    results = execute(jobs, directories)
    return results, [pd.read_csv(d / HISTORY) for d in directories if (d / HISTORY).exists()]


def alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """See that two results are equal to rounding, in what there is and what there is not."""
    assert one.keys() ^ other.keys() <= {"stack"}  # which a run alone has not
    for name in one.keys() - {"seconds", "stack"}:
        value = other[name]
        number = isinstance(value, float)
        assert one[name] == (
            pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True) if number else value
        ), name


@pytest.mark.table
@pytest.mark.parametrize(
    "way",
    [
        pytest.param((), id="cached"),
        pytest.param(("teacher.targets=online",), id="online", marks=pytest.mark.slow),
        pytest.param(
            ("data.validation=0.25", "halving.rungs=1", "train.epochs=5", "data.jitter=1"),
            id="halved",
        ),
    ],
)
def test_each_learns_from_its_own_teacher_as_it_would_alone(
    way: tuple[str, ...], home: Path
) -> None:
    specs = [spec for spec in MIXED if "file" not in spec or "teacher.targets=online" not in way]
    jobs = [job(*spec, *way) for spec in specs]
    [stack] = plan.stacks(jobs, 10, 1)
    assert len(stack.jobs) == len(jobs)
    results, histories = train(jobs, home / "together")
    for k, (result, rows) in enumerate(zip(results, histories, strict=True)):
        [alone], [own] = train([jobs[k]], home / f"alone{k}")
        pd.testing.assert_frame_equal(rows, own[: len(rows)], rtol=1e-4)
        if result["status"] != "stopped":
            alike(result, alone)
    statuses = [result["status"] for result in results]
    assert statuses[2] == "diverged" and statuses.count("complete") >= 2
    assert statuses.count("stopped") == 3 * ("halving.rungs=1" in way)
    # They did differ: the same student of two teachers is two.
    assert results[0]["temperature"] == results[-1]["temperature"]
    assert results[0]["train_soft"] != pytest.approx(results[-1]["train_soft"], rel=0.01)


def test_a_teacher_is_asked_once_a_batch_and_not_without_students(home: Path) -> None:  # noqa: ARG001
    jobs = [job("first", f"loss.temperature={t}") for t in range(1, 5)]
    asked: list[int] = []

    def teacher(number: int) -> Any:
        def answer(x: Tensor) -> Tensor:
            asked.append(number)
            return torch.full((len(x), 4), float(number))

        return answer

    training = students(jobs, [teacher(0), teacher(1), teacher(2)], [2, 0, 2, 1])
    batch = torch.arange(9), torch.zeros(9, dtype=torch.long)
    training.step(*batch, 1.0, 0.0)
    assert sorted(asked) == [0, 1, 2]
    asked.clear()
    training._keep(torch.tensor([0, 1, 2]))
    training.step(*batch, 1.0, 0.0)
    assert sorted(asked) == [0, 2]
    assert training.objective.teachers == [2, 0, 2]
    training._keep(torch.tensor([0, 2]))  # of one teacher, its logits are shared again
    x = torch.zeros(9, 1)
    said = training.transfer.taught(training.objective.teachers, *batch, x)
    assert said["teacher_logits"].shape == (9, 4)


def pulled(student_logits: Tensor, teacher_logits: Tensor, *, pull: float = 1.0) -> Tensor:
    return pull * (student_logits - teacher_logits).square().mean(-1)


def doubting(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, pull: float = 1.0
) -> Tensor:
    """What torch can map as long as all members share the teacher."""
    if teacher_logits.std() < 1e-3:
        return hard(student_logits, labels)
    return pulled(student_logits, teacher_logits, pull=pull)


@pytest.mark.parametrize("loss", [pulled, doubting])
def test_a_loss_of_ones_own_is_given_its_members_teacher(
    loss: Any, offered: Offer, home: Path
) -> None:
    common = ("precision=fp32", "optim.lr=0.01")
    jobs = [offered("loss", loss, *common, f"teacher.seed={s}") for s in (0, 1)]
    assert jobs[0].run.shared == jobs[1].run.shared
    losses = [one.run.loss for one in jobs]
    assert Objective.of(losses, 4).mapped
    assert Objective.of(losses, 4, teachers=[0, 1]).mapped == (loss is pulled)
    results, _ = train(jobs, home / "together")
    for k, result in enumerate(results):
        [alone], _ = train([jobs[k]], home / f"alone{k}")
        alike(result, alone)


def test_a_teacher_that_fails_takes_its_own_students_with_it(home: Path) -> None:
    bad = ("teacher.optim.lr=1e30", "teacher.train.epochs=4")
    jobs = [job("first", *bad), job("second"), job("first", *bad, "optim.lr=0.003"), job("small")]
    results, histories = train(jobs, home / "together")
    assert [result["status"] for result in results] == ["failed", "complete"] * 2
    assert results[0]["reason"].startswith("the teacher diverged: ")
    for k, rows in zip((1, 3), histories[1::2], strict=True):
        [alone], [own] = train([jobs[k]], home / f"alone{k}")
        pd.testing.assert_frame_equal(rows, own, rtol=1e-4)
        alike(results[k], alone)


def test_of_teachers_that_all_fail_each_says_why(home: Path) -> None:
    jobs = [job("first", "teacher.optim.lr=1e30", "teacher.train.epochs=4"), job("file")]
    assert all(one.digest for one in jobs)
    (home / "said.npy").unlink()
    found, _ = train(jobs, home / "together")
    written = [read(home / f"together/{k}" / RESULT) for k in range(2)]
    assert [body["status"] for body in found] == [body["status"] for body in written]
    for bodies in (found, written):
        first, file = (body["reason"] for body in bodies)
        assert first.startswith("the teacher diverged: ") and "said.npy" in file


def named(jobs: list[Job]) -> set[frozenset[str]]:
    return {frozenset(jobs[n].name for n in stack.jobs) for stack in plan.stacks(jobs, 10, 1)}


@pytest.mark.slow
def test_teachers_whose_soft_targets_do_not_fit_together_are_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 256 * 9 * 4 * 4  # of one teacher's, which may take a quarter
    for room, count in ((3, 1), (2, 2), (1, 3)):
        monkeypatch.setattr(machine, "memory", lambda room=room: 4 * size * room)
        specs = [("first", 1), ("second", 1), ("first", 2), ("small", 1)]
        views = ("data.jitter=1", "train.epochs=9")
        jobs = [job(name, *views, f"loss.temperature={t}") for name, t in specs]
        stacks = plan.stacks(jobs, 10, 1)
        assert len(stacks) == count
        assert {one.way.name for one in jobs if one.way} == {"cached fp32"}
        assert named(jobs) == named(jobs[::-1])
        taught = [{jobs[n].run.teacher for n in stack.jobs} for stack in stacks]
        assert sum(map(len, taught)) == 3  # each teacher is in one stack alone
        text = "; soft targets of 3 teachers cached, 9 views in fp32, 110.6 kB in all"
        assert plan.described(stacks, jobs).endswith(text)


def test_what_comes_in_another_way_is_another_stack() -> None:
    jobs = [job("first"), job("second", "teacher.targets=online"), job("file"), job("small")]
    stacks = plan.stacks(jobs, 10, 1)
    assert {frozenset(stack.jobs) for stack in stacks} == {frozenset({0, 2, 3}), frozenset({1})}
    assert plan.described(stacks, jobs).split("; ")[1:] == [
        "soft targets from a file",
        "soft targets of 2 teachers cached, 1 view in fp32, 8.2 kB in all",
        "soft targets online, by the teacher in each batch",
    ]
    assert all(costs.seconds([jobs[n] for n in stack.jobs]) > 0 for stack in stacks)


def test_teachers_that_stacks_share_are_made_before_they_start(home: Path) -> None:
    """The first and second are in two stacks each; the small one is in one alone."""
    teachers = ("first", "second", "first", "second", "small")
    jobs = [job(t, f"seed={n // 2}") for n, t in enumerate(teachers)]
    stacks = plan.stacks(jobs, 10, 1)
    assert len(stacks) == 3
    begun: list[plan.Stack] = []

    def start(stack: plan.Stack) -> Task:
        begun.append(stack)
        member = Planned("run", home / "run", {}, {}, [], {"output_subdir": None}, 0, "run")
        return Task([member], None, False, None, {})

    begin = teach(stacks, jobs, start)
    made = {p.parent.name[:8] for p in (home / "data" / "teachers").glob("*/teacher.safetensors")}
    assert len(made) == 2 and len(begun) == 1
    for stack in stacks:
        begin(stack)
    assert len(begun) == 3


def test_a_sweep_over_teachers_is_one_stack_with_each_ones_own_columns(cli: Cli) -> None:
    small = [part for part in SMALL if part != "teacher.model.width=16"]
    swept = ("teacher.model.width=12,16", "loss.temperature=1,2", "hydra.sweep.dir=sweep")
    done = cli("-m", *small, "precision=fp32", *swept)
    assert done.code == 0
    assert "4 jobs in 1 stack of 4" in done.out
    assert "soft targets of 2 teachers cached, 1 view in fp32, 8.2 kB in all" in done.out
    frame = read_summary("sweep")
    own = frame.drop_duplicates("teacher_digest").set_index("teacher.model.width")
    assert sorted(own.index) == [12, 16]
    assert own["teacher_test_ece"].nunique() == 2
    for _, row in frame.iterrows():
        mine = own.loc[row["teacher.model.width"]]
        for name in ("teacher_digest", "teacher_test_errors", "teacher_test_ece"):
            assert row[name] == mine[name]
    for width, row in own.iterrows():
        [shown] = Path("sweep").glob(f"*/digits-{row.teacher_digest[:8]}.json")
        names = frame.set_index("run")["teacher.model.width"]
        assert names[shown.parent.name] == width
        which = f"teacher mlp_1200 (teacher.model.width={width}) on synthetic"
        assert f"{which}: {row.teacher_test_errors} test errors" in done.out
        assert f"teacher.model.width={width}" in done.out.split("teacher mlp_1200")[0]


def test_a_stack_gives_signs_of_life_from_its_teacher_to_its_last_result(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = [home / "a", home / "b" / "c"]
    for directory in directories:
        directory.mkdir(parents=True)
    seen: list[tuple[str, bool]] = []
    places: list[str] = []

    def watched(name: str, real: Any) -> Any:
        def watching(*arguments: Any) -> Any:
            seen.append((name, pulse.mine(directories[0] / pulse.PULSE)))
            found = [directory / results.RUNNING for directory in directories]
            places.extend(json.loads(p.read_text())["stack"] for p in found if p.exists())
            return real(*arguments)

        return watching

    for name in ("taught_by", "_written"):
        monkeypatch.setattr(run, name, watched(name, getattr(run, name)))
    execute([make_job(f"seed={n}") for n in range(2)], directories)
    assert seen == [("taught_by", True), ("_written", True), ("_written", True)]
    assert places == [".", "../../a", "."]
    assert not [*home.rglob(pulse.PULSE)]
