"""Soft targets: cached in two types or online, to the same students; half-made ones go on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, Cli, composed, forget, make_job
from safetensors.torch import save_file
from torch import Tensor

from distill.config import ConfigError, parse
from distill.runs.execute import execute
from distill.runs.job import Job
from distill.runs.summaries import read_summary
from distill.system import interrupt, machine
from distill.teachers import find, targets
from distill.teachers.targets import TooLargeError, Way, made_once, way
from distill.training.fit import RunError

MIRRORED = ("data.jitter=1", "data.flip=true", "train.epochs=9", "precision=fp32")


def test_online_and_cached_targets_make_the_same_student(home: Path) -> None:
    found = {}
    for kind in ("cached", "online"):
        (home / kind).mkdir()
        job = make_job(*MIRRORED, f"teacher.targets={kind}")
        [found[kind]] = execute([job], [home / kind])
        assert job.name == make_job(*MIRRORED).name
    assert [r["soft_targets"] for r in found.values()] == ["cached fp32", "online"]
    for name in ("train_loss", "test_loss"):
        assert found["online"][name] == pytest.approx(found["cached"][name], rel=1e-4)
    shown = [next((home / kind).glob("digits-*.json")).read_text() for kind in found]
    assert shown[0][:300] == shown[1][:300]


def chosen(monkeypatch: pytest.MonkeyPatch, memory: int, *overrides: str) -> Way:
    job = make_job(*MIRRORED, *overrides)
    monkeypatch.setattr(machine, "memory", lambda: memory)
    return way(job.setting, job.run.teacher, job.run.train.epochs)


NUMBERS = 256 * 18 * 4  # examples, views, classes


def test_the_way_follows_from_memory_and_the_passes_of_the_teacher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full, half = 16 * NUMBERS, 8 * NUMBERS
    assert str(chosen(monkeypatch, full)) == "soft targets cached, 18 views in fp32, 73.7 kB"
    assert chosen(monkeypatch, full - 1).name == "cached fp16"
    assert chosen(monkeypatch, half - 1).name == "online"
    assert chosen(monkeypatch, full, "train.epochs=8").name == "online"  # 18 passes against 2 x 8
    assert (
        chosen(monkeypatch, full, "train.epochs=8", "teacher.targets=cached").name[:6] == "cached"
    )
    with pytest.raises(ConfigError, match=r"teacher.targets=cached: 18 views of 256 examples take"):
        chosen(monkeypatch, half - 1, "teacher.targets=cached")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_views_that_were_made_are_not_made_again(
    home: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    made: list[int] = []

    def make(view: int) -> Tensor:
        made.append(view)
        return torch.arange(10.0).view(5, 2) + view

    def stop() -> None:
        if len(made) == 3:
            raise interrupt.Interrupt(2)

    monkeypatch.setattr(interrupt, "check", stop)
    with pytest.raises(interrupt.Interrupt):
        made_once(home / "soft", (5, 4, 2), dtype, make)
    found = made_once(home / "soft", (5, 4, 2), dtype, make)
    assert made == [0, 1, 2, 3]
    assert found.dtype == dtype and found.shape == (5, 4, 2)
    assert torch.equal(found[:, 3].float(), make(3))
    assert [path.name for path in sorted(home.glob("soft*"))] == ["soft", "soft.lock"]
    # Of another teacher's beginning, or one that was cut, nothing is taken.
    (home / "soft" / targets.FILE).unlink()
    (home / "soft.part").write_bytes(b"x" * 999)
    assert torch.equal(made_once(home / "soft", (5, 4, 2), dtype, make), found)


def test_their_time_is_counted_until_they_are_made(home: Path) -> None:
    job = make_job(*MIRRORED)
    kept = way(job.setting, job.run.teacher, 9)
    before = find.targets_seconds(job.setting, job.run.teacher, kept)
    assert 0 < before < 60
    one = find.targets_seconds(job.setting, job.run.teacher, Way(False, 1, 0))
    assert one < before
    execute([job], [home])
    assert find.targets_seconds(job.setting, job.run.teacher, kept) == 0


def test_float16_that_would_lose_too_much_is_refused(home: Path) -> None:
    made: list[int] = []

    def make(view: int) -> Tensor:
        made.append(view)
        return torch.full((5, 2), 64.0 + view)

    for _ in range(2):  # the second time it is known
        with pytest.raises(TooLargeError, match="logits reach 65, which float16 does not hold"):
            made_once(home / "soft", (5, 3, 2), torch.float16, make)
    assert made == [0, 1]
    assert [path.name for path in sorted(home.glob("soft*"))] == ["soft", "soft.lock"]
    assert made_once(home / "whole", (5, 3, 2), torch.float32, make)[0, 2].tolist() == [66, 66]


LOUD = ("teacher=checkpoint", "teacher.path=loud.safetensors", "teacher.model.width=16")


def loud(*overrides: str) -> Job:
    """A job whose teacher's logits are a hundred times those of another, without dropout."""
    return Job(parse(composed(*SMALL[:2], *MIRRORED, *LOUD, "train.batch_size=64", *overrides)))


@pytest.fixture
def small_memory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory in which there is room for soft targets in float16 alone, and loud weights."""
    model = make_job("teacher.model.width=16").run.teacher.model
    assert model is not None
    torch.manual_seed(0)
    state = model(inputs=(1, 12, 12), classes=4).state_dict()
    last = [*state][-2:]
    save_file({n: 1e3 * v if n in last else v for n, v in state.items()}, home / LOUD[1][13:])
    monkeypatch.setattr(machine, "memory", lambda: 8 * NUMBERS)


@pytest.mark.usefixtures("small_memory")
def test_logits_too_large_for_float16_come_online_by_themselves(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = {}
    for kind in ("auto", "auto again", "online"):
        forget()
        (home / kind).mkdir()
        job = loud(f"teacher.targets={kind.split()[0]}")
        assert job.way is not None
        assert job.way.name == ("online" if kind == "online" else "cached fp16")
        caplog.clear()
        [found[kind]] = execute([job], [home / kind])
        told = [r.message for r in caplog.records if "answers online instead" in r.message]
        assert len(told) == (0 if kind == "online" else 1)
        assert found[kind]["soft_targets"] == "online"
        shown = next((home / kind).glob("digits-*.json")).read_text()
        assert shown == next((home / "auto").glob("digits-*.json")).read_text()
    for name in ("train_loss", "test_loss", "test_errors"):
        assert found["auto"][name] == found["online"][name] == found["auto again"][name]
    with pytest.raises(RunError, match=r"does not hold to 1 / 64; set teacher.targets=online"):
        execute([loud("teacher.targets=cached")], [home])


@pytest.mark.usefixtures("small_memory")
def test_of_two_teachers_of_a_stack_one_may_be_too_loud(home: Path) -> None:
    quiet = (*SMALL[:2], *MIRRORED, "train.batch_size=64", *SMALL[2:5])
    jobs = [loud(), Job(parse(composed(*quiet))), loud("loss.temperature=3")]
    for n in (0, 1, 2, "alone"):
        (home / str(n)).mkdir()
    results = execute(jobs, [home / str(n) for n in range(3)])
    assert [r["soft_targets"] for r in results] == ["online", "cached fp16", "online"]
    [alone] = execute(jobs[2:], [home / "alone"])
    assert results[2]["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)


@pytest.mark.slow
def test_the_plan_says_how_they_come(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    command: Any = ("-m", "data=synthetic", *MIRRORED, "model.width=8", "loss.temperature=1,2")
    small = ("teacher.model.width=16", "teacher.train.epochs=1", "hydra.sweep.dir=sweep")
    done = cli(*command, *small)
    assert "soft targets cached, 18 views in fp32, 73.7 kB" in done.out + done.err
    assert read_summary("sweep")["soft_targets"].tolist() == ["cached fp32"] * 2
    monkeypatch.setenv("COLUMNS", "200")
    done = cli(*command, *small, "seed=5", "teacher.targets=online")
    assert "soft targets online, by the teacher in each batch" in done.out + done.err
