"""What a sweep becomes: which jobs train together, what memory and time they take."""

import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch
from conftest import make_job
from rich.filesize import decimal

from distill.runs.job import Job
from distill.sweeps import costs, plan
from distill.system import machine
from distill.training.loop import Training

APART = ["seed=1", "model.width=9", "train.epochs=3", "data.jitter=1", "optim=sgd"]


@pytest.mark.slow
@pytest.mark.parametrize("override", APART)
def test_what_must_be_equal(override: str) -> None:
    jobs = [make_job(), make_job(override)]
    assert [s.jobs for s in plan.stacks(jobs, 10, 1)] == [(0,), (1,)]


def test_what_may_vary_in_the_order_of_the_learning_rates() -> None:
    lr = (0.003, 0.001, 0.003, 0.002)
    jobs = [make_job(f"optim.lr={r}", f"loss.alpha={r}", f"loss.temperature={r}") for r in lr]
    assert [s.jobs for s in plan.stacks(jobs, 10, 1)] == [(1, 3, 0, 2)]
    assert [s.jobs for s in plan.stacks(jobs, 3, 1)] == [(1, 3), (0, 2)]
    assert [s.jobs for s in plan.stacks(jobs, 10, 3)] == [(1,), (3,), (0, 2)]


def test_the_order_of_a_sweep_does_not_decide_who_trains_together() -> None:
    jobs = [make_job(f"loss.temperature={t}", f"seed={s}") for s in (0, 1) for t in range(1, 5)]
    for most, workers in ((3, 1), (4, 3)):
        ways = [
            {frozenset(own[n].name for n in s.jobs) for s in plan.stacks(own, most, workers)}
            for own in (jobs, jobs[::-1])
        ]
        assert ways[0] == ways[1]


def test_memory_bounds_a_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [make_job(f"loss.temperature={t}") for t in range(1, 7)]
    room = 2 * 3 * costs.member_memory(jobs[0])
    monkeypatch.setattr(plan, "free_memory", lambda *_: room)
    assert [len(s.jobs) for s in plan.stacks(jobs, 10, 1)] == [3, 3]
    monkeypatch.setattr(plan, "free_memory", lambda *_: 1)
    assert [len(s.jobs) for s in plan.stacks(jobs, 10, 1)] == [1] * 6


def test_memory_counts_parameters_state_and_activations() -> None:
    def memory(*overrides: str) -> int:
        job = make_job("precision=fp32", "data.examples=1000", *overrides)
        return costs.member_memory(job)

    job: Job = make_job("precision=fp32")
    parameters = sum(
        p.numel()
        for p in job.run.model.function(
            job.data.shape, job.data.classes, **job.run.model.options
        ).parameters()
    )
    floor = parameters * 4 * (1 + 1 + 2)  # parameters, gradients, two moments
    small, large = memory("train.batch_size=320"), memory("train.batch_size=640")
    assert floor < small < large
    # What grows with the batch: two hidden layers and the logits, some of them twice.
    per_example = (large - small) / 320
    assert 4 * (8 + 8 + 4) <= per_example <= 4 * 3 * (8 + 8 + 4 + 1)
    # Evaluation, in batches of at least 250, takes more than training in tiny ones.
    assert memory("train.batch_size=2") == pytest.approx(memory("train.batch_size=250"), 0.05)


def four(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[list[Job]], float]) -> list[Job]:
    """Four jobs, none like another, whose stacks take so many seconds."""
    monkeypatch.setattr(costs, "seconds", seconds)
    return [
        make_job("transfer=fraction", f"transfer.fraction={share}", *more)
        for share, more in ((0.25, ()), (1, ()), (1, ("seed=1",)), (1, ("model.width=9",)))
    ]


def test_the_plan_says_what_is_trained_before_anything_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def timed(_: list[Job]) -> float:
        raise AssertionError("nothing is to be timed")

    jobs = four(monkeypatch, timed)
    stacks = plan.stacks(jobs, 10, 1)
    memory = max(costs.member_memory(job) for job in jobs)
    text = f"4 jobs in 4 stacks of 1: {decimal(memory)} of memory for the largest"
    text += "; soft targets cached, 1 view in fp32, 4.1 kB"
    assert plan.described(stacks, jobs) == text


def test_stacks_are_trained_in_turn_or_side_by_side_the_longest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = [64, 256, 256, 256]
    jobs = four(monkeypatch, lambda jobs: float(len(jobs[0].index)))  # whatever the threads
    stacks = plan.stacks(jobs, 10, 1)
    assert sorted(len(jobs[s.jobs[0]].index) for s in stacks) == shares
    stacks.sort(key=lambda stack: len(jobs[stack.jobs[0]].index))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(plan, "START", 5.0)
    monkeypatch.setattr(plan, "targets_seconds", lambda *_: 0.0)
    alone = plan.schedule(stacks, jobs, 1)
    assert alone == plan.Schedule(stacks, 1, sum(shares))
    assert str(alone) == "about 0:13:52, teachers not included"
    # One thread is as fast here as two, so two processes take 256 + 256, a start, and no more.
    for workers in (None, 2):
        beside = plan.schedule(stacks, jobs, workers)
        assert beside == plan.Schedule([*stacks[1:], stacks[0]], 2, 517.0)
    # Where a thread alone is much slower than two, one after another is chosen, unless told.
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(costs, "seconds", lambda _: 3.0 - threads[-1])
    assert plan.schedule(stacks, jobs, None).workers == 1
    assert plan.schedule(stacks, jobs, 4).workers == 4
    # Nor is there a process for which there is no memory.
    monkeypatch.setattr(costs, "seconds", lambda _: 100.0)
    assert plan.schedule(stacks, jobs, None).workers == 2
    monkeypatch.setattr(machine, "free_memory", lambda: 2**20)
    assert plan.schedule(stacks, jobs, None).workers == 1


def test_every_device_has_free_memory() -> None:
    cpu = torch.device("cpu")
    assert 0 < plan.free_memory(cpu, 1) <= psutil.virtual_memory().total
    assert plan.free_memory(cpu, 4) < plan.free_memory(cpu, 1) / 3


def test_stacks_that_have_begun_stay_as_they_are() -> None:
    jobs = [make_job(f"loss.temperature={t}") for t in range(1, 7)]
    begun = [plan.Stack((4, 1))]
    assert plan.stacks(jobs, 10, 1, begun=begun) == [*begun, plan.Stack((0, 2, 3, 5))]
    assert plan.stacks(jobs, 10, 3, begun=begun)[1:] == [plan.Stack((0, 2)), plan.Stack((3, 5))]
    assert plan.stacks(jobs[:2], 10, 4, begun=[plan.Stack((0, 1))]) == [plan.Stack((0, 1))]


@pytest.mark.slow
def test_the_planned_time_is_that_of_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    step = Training.step

    def counted(training: Training, *rest: Any) -> Any:
        clock[0] += training.stack.members  # seconds, for each step
        return step(training, *rest)

    monkeypatch.setattr(Training, "step", counted)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def planned(members: int, *overrides: str) -> float:
        jobs = [make_job(f"loss.temperature={n + 1}", *overrides) for n in range(members)]
        return costs.seconds(jobs)

    # 256 examples in batches of 64 are 4 steps an epoch, of which there are 2.
    assert planned(1) == pytest.approx(8)
    assert planned(3) == pytest.approx(24)
    assert planned(1, "train.epochs=50") == pytest.approx(200)
    assert planned(2, "train.batch_size=16", "train.epochs=3") == pytest.approx(96)
    jobs = [make_job(), make_job("train.epochs=3598")]
    assert str(plan.schedule(plan.stacks(jobs, 10, 1), jobs, 1)).startswith("about 4:00:00, ")
