"""Finite lists of views of one's own: exact soft targets for each, whatever way these come."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, Cli, composed, make_job
from omegaconf import OmegaConf
from torch import Tensor

from distill.config import ConfigError, parse
from distill.data.views import Inputs
from distill.runs.execute import execute
from distill.runs.job import Job
from distill.runs.summaries import read_summary
from distill.system.trust import TRUSTED
from distill.teachers import find
from distill.teachers.cache import Teacher
from distill.training.contracts import fault_of_views
from distill.training.inputs import listed, training_inputs

MINE = '''
    """Views of one's own."""

    from torch import Tensor


    def darker(inputs: Tensor, view: int, count: int, *, steps: int = 2) -> Tensor:
        return inputs // (2 + view * steps) if view < count else inputs[:0]


    def scaled(inputs: Tensor, view: int) -> Tensor:
        return inputs * (1.0 + view)
'''
TURNS = ("views=turns", "train.epochs=3", "precision=fp32")


@pytest.fixture(autouse=True)
def mine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUSTED, "mine")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (home / "mine.py").write_text(MINE.replace("\n    ", "\n"))


def own(name: str, *overrides: str, key: str = "views", **options: object) -> Job:
    """A job whose list of views is that of the module above."""
    config = composed(*SMALL, "precision=fp32", "train.epochs=3", *overrides)
    section = OmegaConf.create({"_target_": f"mine.{name}", **options})
    OmegaConf.update(config, key, section, merge=False, force_add=True)
    return Job(parse(config))


def darkened(*overrides: str, key: str = "views", **options: object) -> Job:
    return own("darker", *overrides, key=key, **{"count": 3, **options})


def test_each_of_a_list_is_made_of_each_view_that_jitter_and_flip_make() -> None:
    raw = torch.arange(2 * 9, dtype=torch.uint8).view(2, 1, 3, 3)
    plain = Inputs(raw, jitter=1, flip=True, mean=0.0, std=1 / 255)
    changes = [lambda inputs, n=n: inputs.rot90(n, (2, 3)) for n in range(4)]
    turned = Inputs(raw, jitter=1, flip=True, mean=0.0, std=1 / 255, changes=changes)
    assert turned.views == 72
    index = torch.arange(2)
    for view in range(18):
        before = plain.batch(index, view, torch.float32)
        for n in range(4):
            found = turned.batch(index, 18 * n + view, torch.float32)
            assert torch.equal(found, before.rot90(n, (2, 3)))
    mixed = turned.batch(index, torch.tensor([4, 18 * 2 + 13]), torch.float32)
    assert torch.equal(mixed[0], raw[0].float())
    assert torch.equal(mixed[1], raw[1].flip(-1).rot90(2, (1, 2)).float())


def test_features_are_changed_once_they_are_normalised() -> None:
    rows = torch.tensor([[1.0, 3.0], [3.0, 3.0]])
    changes = [lambda inputs: inputs, lambda inputs: inputs * 2]
    inputs = Inputs(rows, mean=[2.0, 3.0], std=[0.5, 1.0], changes=changes)
    assert inputs.views == 2
    found = inputs.batch(torch.arange(2), torch.tensor([0, 1]), torch.float32)
    assert found.tolist() == [[-2, 0], [4, 0]]


def test_soft_targets_are_exact_for_each_cached_or_online(home: Path) -> None:
    found = {}
    for kind in ("cached", "online"):
        (home / kind).mkdir()
        job = make_job(*TURNS, f"teacher.targets={kind}")
        [found[kind]] = execute([job], [home / kind])
        assert job.name == make_job(*TURNS).name != make_job(*TURNS[1:]).name
    assert [r["soft_targets"] for r in found.values()] == ["cached fp32", "online"]
    for name in ("train_loss", "test_loss"):
        assert found["online"][name] == pytest.approx(found["cached"][name], rel=1e-4)
    job = make_job(*TURNS)
    assert job.way is not None and job.way.views == 4
    teacher = find.find_teacher(job.setting, job.run.teacher, 5.0)
    assert isinstance(teacher, Teacher)
    soft = find.soft_targets(job.setting, job.run.teacher, 5.0, job.way)
    upright = training_inputs(job.setting, 0, False).batch(torch.arange(256), 0, torch.float32)
    for view in range(4):
        torch.testing.assert_close(soft[:, view], teacher.online(upright.rot90(view, (2, 3))))


def test_beside_pictures_stands_what_the_teacher_says_of_them_as_they_are(home: Path) -> None:
    plain = make_job("precision=fp32", "train.epochs=3")
    shown = []
    for n, job in enumerate((plain, darkened(), darkened("teacher.targets=online"))):
        (home / str(n)).mkdir()
        execute([job], [home / str(n)])
        shown.append(next((home / str(n)).glob("digits-*.json")).read_text())
    assert shown[0] == shown[1] == shown[2]


def test_members_together_learn_from_a_list_as_alone(home: Path) -> None:
    jobs = [make_job(*TURNS, "data.jitter=1", f"loss.alpha={a}") for a in (1, 0.3)]
    assert jobs[0].way is not None and jobs[0].way.views == 36
    found = {}
    for what, of in {"both": jobs, "one": jobs[:1]}.items():
        directories = [home / what / str(k) for k in range(len(of))]
        for directory in directories:
            directory.mkdir(parents=True)
        found[what], *_ = execute(of, directories)
    assert found["both"]["test_loss"] == pytest.approx(found["one"]["test_loss"], rel=1e-4)


def folders(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "data" / "teachers").glob("*-soft*[!k]"))


def test_lists_that_differ_in_keys_or_code_share_no_soft_targets(home: Path) -> None:
    jobs = [darkened(), darkened(steps=5), darkened(count=2), darkened("data.flip=true")]
    assert len({job.name for job in jobs}) == 4
    for n, job in enumerate(jobs):
        (home / str(n)).mkdir()
        [result] = execute([job], [home / str(n)])
        assert result["code"] is not None
    before = folders(home)
    assert len([name for name in before if "-soft1" not in name]) == 4
    text = (home / "mine.py").read_text()
    (home / "mine.py").write_text(text.replace("2 + view", "3 + view"))
    del sys.modules["mine"]
    changed = darkened()
    assert changed.name not in {job.name for job in jobs}
    execute([changed], [home])
    assert len(folders(home)) == len(before) + 1


def test_a_teacher_may_be_trained_on_a_list_of_its_own() -> None:
    plain, other = make_job("precision=fp32"), darkened(key="teacher.views")
    assert other.way is not None and other.way.views == 1
    teachers = [find.find_teacher(job.setting, job.run.teacher, 5.0) for job in (plain, other)]
    assert teachers[0].digest != teachers[1].digest and plain.name != other.name
    assert isinstance(teachers[0], Teacher) and isinstance(teachers[1], Teacher)
    one, two = (teacher.stack.state(0) for teacher in teachers if isinstance(teacher, Teacher))
    assert not all(torch.equal(one[name], two[name]) for name in one)
    unused = darkened("loss=hard", key="teacher.views").name
    assert unused == make_job("loss=hard", "precision=fp32", "train.epochs=3").name


def test_features_may_have_them(home: Path) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 3)).astype(np.float32), np.arange(60) % 2
    np.savez("rows.npz", train_x=x, train_y=y, test_x=x[:9], test_y=y[:9])
    config = composed(
        *("data=arrays", "data.root=rows.npz", "model.width=4", "train.epochs=2"),
        *("teacher.model.width=4", "teacher.train.epochs=1", f"teacher.cache={home / 't'}"),
    )
    scaled = {"_target_": "mine.scaled", "count": 3}
    OmegaConf.update(config, "views", scaled, merge=False, force_add=True)
    job = Job(parse(config))
    assert job.way is not None and job.way.views == 3
    [result] = execute([job], [home])
    assert result["status"] == "complete" and result["soft_targets"] == "cached fp32"


def test_a_file_has_soft_targets_for_each(home: Path) -> None:
    said = np.random.default_rng(0).normal(size=(256, 4, 4)).astype(np.float32)
    np.save("each.npy", said)
    file = ("teacher=targets", "teacher.path=each.npy")
    small = (*SMALL[:2], "train.epochs=1", *file)
    job = Job(parse(composed(*small, "views=turns")))
    [result] = execute([job], [home])
    assert result["soft_targets"] == "file"
    assert not list(home.glob("digits-*"))  # of the pictures themselves it says nothing
    with pytest.raises(ConfigError, match=r"4 views, and data.jitter, data.flip and views make 8"):
        Job(parse(composed(*small, "views=turns", "data.flip=true")))


@pytest.mark.slow
def test_the_plan_counts_them_and_a_command_names_them(cli: Cli) -> None:
    Path("conf/views").mkdir(parents=True)
    Path("conf/views/darker.yaml").write_text("_target_: mine.darker\ncount: 3\nsteps: 2\n")
    small = (*SMALL, "views=darker", "precision=fp32", "loss.temperature=1,2")
    done = cli("-m", *small, "views.steps=2,3", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    assert "4 jobs in 2 stacks of 2" in done.out + done.err
    assert "soft targets of 2 teachers cached" not in done.out + done.err
    found = read_summary("sweep")
    assert sorted(found["views.steps"]) == [2, 2, 3, 3] and set(found["views.count"]) == {3}


def darkest(inputs: Tensor, view: int) -> Tensor:
    return inputs - inputs.amin(0) if view else inputs


def doubled(inputs: Tensor, view: int) -> Tensor:
    return inputs.double() if view else inputs


def cut(inputs: Tensor, view: int) -> Tensor:
    return inputs[..., view:]


def noisy(inputs: Tensor, view: int) -> Tensor:
    return inputs + torch.randint(9, inputs.shape, dtype=torch.uint8) if view else inputs


def broken(inputs: Tensor, view: int) -> Tensor:
    return [inputs, inputs][view]


def nothing(inputs: Tensor, view: int) -> Any:
    return inputs if view else None


def infinite(inputs: Tensor, view: int) -> Tensor:
    return inputs / (1 - view)


IMAGES = torch.arange(4 * 9, dtype=torch.uint8).view(4, 1, 3, 3)
REFUSED: dict[Any, str] = {
    darkest: "its view 1 of an example depends on the other examples of its batch",
    doubled: r"its view 1 is torch.float64 \(4, 1, 3, 3\) for torch.uint8 \(4, 1, 3, 3\)",
    cut: r"its view 1 is torch.uint8 \(4, 1, 3, 2\)",
    noisy: "its view 1 is random",
    broken: r"its view 2 fails on inputs \(4, 1, 3, 3\): IndexError",
    nothing: "its view 0 is NoneType",
    infinite: "its view 1 is not finite",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_a_list_that_would_not_be_exact_is_refused(function: Any) -> None:
    inputs = IMAGES.float() if function is infinite else IMAGES
    changes = [lambda inputs, n=n: function(inputs, n) for n in range(3)]
    fault = fault_of_views(changes, inputs)
    assert fault is not None
    with pytest.raises(ValueError, match=REFUSED[function]):
        raise ValueError(fault)


def test_what_cannot_be_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"views.count: Input should be|views.count=0: Input"):
        make_job("views=turns", "views.count=0")
    Path("t.csv").write_text("a,y\n" + "1,0\n2,1\n" * 20)
    table = ("data=table", "data.root=t.csv", "data.label=y", "loss=hard", "views=turns")
    config = composed(*table)
    with pytest.raises(ConfigError, match=r"views=turns: its view 0 fails .*square images"):
        Job(parse(config))
    assert listed(None) == ()
