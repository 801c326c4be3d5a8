"""The test on shifted images: each shift as often as torchvision's RandomAffine makes it."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, Cli, composed, make_job
from torch import Tensor
from torchvision.transforms import RandomAffine

import distill
from distill.config import ConfigError, parse
from distill.data.dataset import load
from distill.data.views import Inputs, shares
from distill.runs.execute import execute
from distill.runs.job import Job
from distill.runs.results import RESULT, read
from distill.teachers.cache import Teacher
from distill.teachers.find import find_teacher

DRAWS = 20_000
PER_RUN = {"run", "config", "seconds"}


@pytest.mark.parametrize("jitter", [1, 2, 3])
def test_shifts_come_as_often_as_torchvision_makes_them(jitter: int) -> None:
    torch.manual_seed(jitter)
    size, own = [28, 28], shares(jitter)
    counts = dict.fromkeys(product(range(-jitter, jitter + 1), repeat=2), 0)
    for _ in range(DRAWS):
        made = RandomAffine.get_params([0.0, 0.0], [jitter / 28, jitter / 28], None, None, size)
        x, y = made[1]
        counts[y, x] += 1
    assert len(counts) == len(own) and sum(own) == pytest.approx(1, abs=1e-15)
    for count, share in zip(counts.values(), own, strict=True):
        deviation = (DRAWS * share * (1 - share)) ** 0.5
        assert abs(count - DRAWS * share) < 4.5 * deviation
    ends = [sum(own[: 2 * jitter + 1]), own[0] * 4 * jitter]
    assert ends == pytest.approx([1 / (4 * jitter)] * 2)


def test_views_are_numbered_as_their_shares_are() -> None:
    """A bright pixel tells how far it went: each way to an end halves the share."""
    raw = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    raw[0, 0, 2, 2] = 1
    views = Inputs(raw, jitter=2, mean=0.0, std=1 / 255)
    for view, share in enumerate(shares(2)):
        place = int(views.batch(torch.tensor([0]), view, torch.float32).argmax())
        far = [abs(place // 5 - 2), abs(place % 5 - 2)]
        assert share == (1 / 4) ** 2 / 2 ** far.count(2)
    assert shares(0) == [1.0]


def expected(choose: Callable[[Tensor], Tensor], jitter: int) -> float:
    """Expected errors, by a plain loop over shifted arrays of what chooses classes of images."""
    data = load(distill.data.synthetic, examples=256, classes=4, size=12)
    images, total = F.pad(data.test_inputs, [jitter] * 4), 0.0
    for dy, dx in product(range(-jitter, jitter + 1), repeat=2):
        moved = images.roll((dy, dx), (2, 3))[:, :, jitter:-jitter, jitter:-jitter]
        odds = [1 / (2 * jitter) / (2 if abs(d) == jitter else 1) for d in (dy, dx)]
        total += odds[0] * odds[1] * int((choose(moved) != data.test_labels).sum())
    return total


def test_students_and_teachers_of_a_stack_equal_a_plain_loop(cli: Cli) -> None:
    small = [part for part in SMALL if not part.startswith(("model.width", "teacher.model.width"))]
    more = ("precision=fp32", "model.width=16", "train.epochs=4", "optim.lr=0.003")
    swept = ("teacher.model.width=12,16", "loss.temperature=1,9", "data.test_jitter=2")
    done = cli("-m", *small, *more, *swept, "hydra.sweep.dir=sweep")
    assert done.code == 0 and "4 jobs in 1 stack of 4" in done.out
    runs = distill.summary("sweep")
    for _, row in runs.iterrows():
        student = distill.load(Path("sweep") / row["directory"])
        own = expected(lambda images, s=student: s(images).argmax(-1), 2)  # type: ignore[misc]
        assert row["test_shifted_errors"] == own != row["test_errors"]
        width = row["teacher.model.width"]
        job = Job(parse(composed(*small, *more, f"teacher.model.width={width}")))
        teacher = find_teacher(job.setting, job.run.teacher, 5.0)
        assert isinstance(teacher, Teacher)
        assert row["teacher_test_shifted_errors"] == expected(taught(teacher), 2)
    assert runs["test_shifted_errors"].nunique() == 4
    assert runs["teacher_test_shifted_errors"].nunique() == 2


def taught(teacher: Teacher) -> Callable[[Tensor], Tensor]:
    """What chooses the classes that a teacher does."""
    return lambda images: teacher.online((images.float() / 255 - 0.3) / 0.2).argmax(-1)


def test_nothing_else_changes(home: Path) -> None:
    jobs = [make_job("precision=fp32", f"data.test_jitter={jitter}") for jitter in (0, 1)]
    found = []
    for job in jobs:
        execute([job], [home])
        found.append(read(home / RESULT))
    plain, shifted = ({k: v for k, v in own.items() if k not in PER_RUN} for own in found)
    assert shifted.pop("test_shifted_errors") > 0
    assert shifted.pop("teacher_test_shifted_errors") > 0
    assert plain == shifted
    config = composed(*SMALL, "precision=fp32")
    del config.data.test_jitter
    assert Job(parse(config)).name == jobs[0].name != jobs[1].name


def test_where_there_is_no_test_or_no_teacher_there_is_no_figure(home: Path) -> None:
    [result] = execute([make_job("loss=hard", "data.test_jitter=1")], [home])
    assert [name for name in result if "shifted" in name] == ["test_shifted_errors"]
    held = ("test=false", "data.validation=0.25", "data.test_jitter=1")
    [result] = execute([make_job(*held)], [home])
    assert not [name for name in result if "shifted" in name]


def test_what_is_no_image_or_too_small_is_refused(home: Path) -> None:
    (home / "rows.csv").write_text("a,b,label\n" + "1,2,x\n2,1,y\n" * 20)
    table = ("data=table", "data.root=rows.csv", "data.label=label", "loss=hard")
    with pytest.raises(ConfigError, match=r"^data.test_jitter=1: table has rows of .*_jitter=0$"):
        _ = Job(parse(composed(*table, "data.test_jitter=1"))).digest
    data = {"x": np.zeros((8, 3, 3), np.uint8), "y": np.arange(8) % 2}
    parts = {f"{part}_{name}": value for part in ("train", "test") for name, value in data.items()}
    np.savez(home / "tiny.npz", **parts)  # type: ignore[arg-type]
    tiny = ("data=arrays", "data.root=tiny.npz", "loss=hard", "data.mean=0", "data.std=1")
    with pytest.raises(ConfigError, match=r"^data.test_jitter=3: nothing is left of the 3 x 3"):
        _ = Job(parse(composed(*tiny, "data.test_jitter=3"))).digest
    with pytest.raises(ConfigError, match=r"^data.test_jitter=5: "):
        make_job("data.test_jitter=5")
