"""From yamls and overrides to checked objects; names and digests of runs."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, composed, make_job, options
from omegaconf import OmegaConf

from distill.config import GROUPS, ConfigError, parse, targets
from distill.config.strict import places
from distill.runs.results import leaves
from distill.system.conf import CONF

SINGLE = [group for group in GROUPS if group != "logger"]  # of which a run has one


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), [(g, n) for g in SINGLE for n in options(g)])
def test_every_yaml_says_all_that_its_target_takes(group: str, name: str) -> None:
    section = OmegaConf.to_container(composed(f"{group}={name}")[group])
    assert isinstance(section, dict)
    target = targets(group)[section["_target_"]]
    parameters = inspect.signature(target).parameters.values()
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert keywords <= set(section)
    assert target.__doc__
    needed = [f"{group}.{key!s}=x" for key, value in section.items() if value == "???"]
    hard = ["loss=hard"] if group != "loss" else []
    needed += ["+loss@loss.terms.one=kd"] if (group, name) == ("loss", "sum") else []
    parse(composed(f"{group}={name}", *needed, *hard))


@pytest.mark.slow
def test_every_target_has_a_yaml() -> None:
    for group in SINGLE:
        named = {composed(f"{group}={name}")[group]["_target_"] for name in options(group)}
        assert named == set(targets(group))


@pytest.mark.parametrize("name", options("teacher"))
def test_every_teacher_composes(name: str) -> None:
    path = ["teacher.path=weights.safetensors"] * (name in ("checkpoint", "targets"))
    model = ["model@teacher.model=cnn"] * (name == "trained")
    run = parse(composed(f"teacher={name}", "loss=hard", *path, *model))
    assert run.teacher.name == name


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_yaml_begins_by_saying_what_it_is(path: Path) -> None:
    first, second, *_ = path.read_text().splitlines()
    assert (second if first.startswith("# @package") else first).startswith("# ")


BAD = {
    "+loss.tempratur=4": "loss.tempratur=4: there is no such key; did you mean loss.temperature?",
    "+teacher.optim.beta=1": "teacher.optim.beta=1: there is no such key; did you mean",
    "+extra=1": "extra=1: there is no such key; ",
    "loss.temperature=abc": "loss.temperature=abc: Input should be a valid number",
    "loss.temperature='4'": "loss.temperature=4: Input should be a valid number",
    "loss.temperature=true": "loss.temperature=true: Input should be a valid number",
    "loss.temperature=0": "loss.temperature=0: Input should be greater than 0",
    "loss.temperature=nan": "loss.temperature=nan: Input should be",
    "loss.temperature=inf": "loss.temperature=inf: Input should be a finite number",
    "loss.temperature=null": "loss.temperature=null: Input should be a valid number",
    "loss.alpha=1.01": "loss.alpha=1.01: Input should be less than or equal to 1",
    "loss.alpha=-0.1": "loss.alpha=-0.1: Input should be greater than or equal to 0",
    "model.width=0": "model.width=0: Input should be greater than 0",
    "model.width=2.5": "model.width=2.5: Input should be a valid integer",
    "model.dropout=1": "model.dropout=1: Input should be less than 1",
    "model._target_=null": "model._target_=None: allowed are distill.models.CNN",
    "model._target_=os.system": "model._target_=os.system: allowed are distill.models.CNN",
    "loss._target_=distill.losses.F": "loss._target_=distill.losses.F: allowed are",
    "teacher.model._target_=subprocess.run": "teacher.model._target_=subprocess.run: allowed are",
    "teacher.model.width=-3": "teacher.model.width=-3: Input should be greater than 0",
    "teacher.seed=null": "teacher: without a path, model needs jitter, seed, optim and train",
    "train.epochs=-1": "train.epochs=-1: Input should be greater than 0",
    "train.batch_size=0": "train.batch_size=0: Input should be greater than 0",
    "optim.lr=0": "optim.lr=0: Input should be greater than 0",
    "optim.schedule=step": "optim.schedule=step: Input should be 'constant', 'linear', 'cosine' or",
    "optim.gamma=0.5": "optim: gamma=0.5: schedule=cosine has none; set schedule=multistep",
    "optim.milestones=[0.5]": "optim: milestones=[0.5]: schedule=cosine has none; set schedule=mul",
    "train.ema=1": "train.ema=1: Input should be less than 1",
    "train.clip_norm=0": "train.clip_norm=0: Input should be greater than 0",
    "train.keep_best=true": "train.keep_best=true: it chooses on a validation split; set data.val",
    "+teacher.train.ema=0.9": "teacher: train.ema=0.9: a teacher is its last weights; leave",
    "+teacher.train.keep_best=true": "teacher: train.keep_best=true: a teacher is its last weights",
    "loss.smoothing=1": "loss.smoothing=1: Input should be less than 1",
    "loss.class_weights=even": "loss.class_weights=even: Input should be balanced, null, or a list",
    "loss.class_weights=[1,0]": "loss.class_weights=[1, 0]: Input should be balanced, null, or a l",
    "data.jitter=5": "data.jitter=5: Input should be less than or equal to 4",
    "data.validation=1": "data.validation=1: Input should be less than 1",
    "loss.temperature=1e39": "loss.temperature=1e+39: Input should be from 1e-6 to 1e30",
    "loss.temperature=1e-7": "loss.temperature=1e-07: Input should be from 1e-6 to 1e30",
    "optim.lr=1e39": "optim.lr=1e+39: allowed are 0 and sizes from 1.18e-38 to 3.4e+38",
    "optim.lr=1" + 39 * "0": "optim.lr=1e+39: allowed are 0 and sizes from 1.18e-38 to 3.4e+38",
    "optim.eps=1e-45": "optim.eps=1e-45: allowed are 0 and sizes from 1.18e-38",
    "teacher.optim.lr=1e39": "teacher.optim.lr=1e+39: allowed are 0 and sizes from 1.18e-38",
    "model.max_norm=1e-46": "model.max_norm=1e-46: allowed are 0 and sizes from 1.18e-38",
    "data.mean=-1e39": "data.mean=-1e+39: allowed are 0 and sizes from 1.18e-38 to 3.4e+38",
    "data.std=1e-38": "data.std=1e-38: allowed are 0 and sizes from 1.18e-38 to 3.4e+38",
    "data.std=1e37": "data: mean=0.1307 and std=1e+37: 1 / (255 std) and mean / std must be",
    "data.std=0": "data.std=0: Input should be greater than 0",
    "seed=-1": "seed=-1: Input should be greater than or equal to 0",
    "device=tpu": "device=tpu: Input should be 'auto', 'cpu' or 'cuda'",
    "precision=fp8": "precision=fp8: Input should be 'auto', 'fp32' or 'bf16'",
    "teacher=none": "teacher=none: loss=kd needs a teacher; without one the loss must be one that",
    "teacher=checkpoint": "teacher.path: it needs a value",
    "~train": "train: this key is missing",
    "seed=${nowhere}": "seed: Interpolation key 'nowhere' not found",
}


@pytest.mark.table
@pytest.mark.parametrize("override", BAD)
def test_a_wrong_value_is_named_with_what_is_allowed(override: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(composed(override))
    assert str(error.value).startswith(BAD[override])
    assert "\n" not in str(error.value)


def test_each_wrong_value_has_a_line() -> None:
    with pytest.raises(ConfigError) as error:
        parse(composed("loss.temperature=0", "model.width=0", "+train.x=1"))
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("milestones", "warmup"), [("[0.5,0.25]", 0), ("[0.5,0.5]", 0), ("[0.2]", 0.2)]
)
def test_milestones_that_do_not_rise(milestones: str, warmup: float) -> None:
    steps = ("optim.schedule=multistep", f"optim.milestones={milestones}", f"optim.warmup={warmup}")
    with pytest.raises(ConfigError, match=r"^optim: milestones=\[.*\]: they must rise, from above"):
        parse(composed(*steps))


def test_class_weights_are_as_many_as_there_are_classes() -> None:
    with pytest.raises(ConfigError, match=r"^loss.class_weights=\[1.0, 2.0\]: these are 2 numbers"):
        make_job("loss.class_weights=[1,2]")


def test_a_key_that_is_off_changes_no_name() -> None:
    off = ("loss.smoothing=0", "train.clip_norm=null", "optim.gamma=0.1")
    assert make_job(*off).name == make_job().name
    stepped = "optim.schedule=multistep"
    others = (make_job(stepped, change) for change in ("optim.gamma=0.2", "optim.milestones=[0.5]"))
    assert len({job.digest for job in (make_job(stepped), make_job(), *others)}) == 4


@pytest.mark.parametrize("subset", ["omit", "only"])
def test_a_class_that_does_not_exist(subset: str) -> None:
    message = r"transfer.classes=\[1, 4\]: synthetic has the classes 0 to 3"
    with pytest.raises(ConfigError, match=message):
        make_job(f"transfer={subset}", "transfer.classes=[1,4]")


def changed(value: Any) -> Any:
    """Another value that the same key may have."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value * 0.7 + 0.11
        case None:
            return 3.0
    return {"cosine": "linear", "auto": "fp32"}.get(value)


@pytest.mark.slow
def test_all_that_decides_a_student_is_in_its_name_and_nothing_else() -> None:
    """Every key of the config, one after another, is changed."""
    split = "data.validation=0.25"  # without which test=false and halving are refused
    base = make_job(split)
    config = OmegaConf.to_container(composed(*SMALL, split), resolve=True)
    assert isinstance(config, dict)
    tried = []
    for key, value in leaves({str(k): v for k, v in config.items()}):
        other = {"ema": 0.9, "smoothing": 0.1, "class_weights": "balanced"}.get(
            key.rpartition(".")[2], changed(value)
        )
        if key in ("data.root", "device", "teacher.cache", "teacher.path", "teacher.name"):
            continue
        if key in ("teacher.targets", "teacher.weights"):  # values of their own; of an ensemble
            continue
        if key in ("resume", "checkpoint.every", "halving.rungs", "halving.factor"):
            continue
        if other is None or key == "data.classes" or key.endswith("gamma"):  # none, but in steps
            continue
        if key.endswith(".features"):  # which this loss does not ask for
            continue
        job = make_job(split, f"{key}={other}")
        assert job.digest != base.digest, key
        assert job.name != base.name, key
        tried.append(key)
    assert len(tried) > 35
    unsaid = ("data.root=elsewhere", "device=cpu", "teacher.cache=there", "teacher.name=x")
    aside = (
        "teacher.targets=online",
        "resume=false",
        "checkpoint.every=2",
        "halving.factor=2 halving.rungs=1",
    )
    for override in (*unsaid, *aside):
        assert make_job(split, *override.split()).digest == base.digest


def test_names_are_readable_and_safe() -> None:
    job = make_job("loss.temperature=2.50", "model.width=30", "seed=7")
    assert job.name.startswith("synthetic-mlp30-kd-alpha0.7-temperature2.5-seed7-")
    assert make_job("loss.temperature=2.5", "model.width=30", "seed=7").name == job.name
    assert set(job.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._")


@pytest.mark.parametrize(
    ("pretrained", "found"),
    [
        ("w.pth", {"model.pretrained": "2d711642"}),
        ("gone.pth", {"model.pretrained": None}),
        ("hub", {}),
    ],
)
def test_a_digest_stands_for_a_file_to_begin_from(
    pretrained: str, found: dict[str, str | None], home: Path
) -> None:
    (home / "w.pth").write_text("x")
    named = ("model=torchvision", "model.name=resnet18", f"model.pretrained={pretrained}")
    assert places(parse(composed("data=synthetic", *named))) == found


@pytest.mark.parametrize("experiment", ["tune", "compare_losses"])
def test_the_width_of_an_experiment_is_that_of_its_model_alone(experiment: str) -> None:
    given = f"experiment={experiment}"
    assert composed(given).model.width == 30
    assert composed(given, "model=resnet8").model.width == 1  # of which 30 would be 69 million
    assert "width" not in composed(given, "model=torchvision").model
