"""Families of networks, and models of other libraries: sizes, names, widths; stacks as alone."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import SMALL, Cli, composed, make_training, options
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from distill.config import ConfigError, parse
from distill.models import CNN, MLP, VGG, WRN, MobileNetV2, ResNet, ShuffleNetV2, torchvision
from distill.runs import summaries
from distill.runs.columns import parsed, typed
from distill.runs.job import Job
from distill.training.build import build, multiply_adds

CIFAR = (3, 32, 32), 100
# Parameters with 100 classes, of Tian et al. 2020 (arXiv 1910.10699) and its published code.
SIZES = {
    **{"resnet8": 83_892, "resnet20": 278_324, "resnet56": 861_620, "resnet110": 1_736_564},
    **{"resnet8x4": 1_233_540, "resnet32x4": 7_433_860},
    **{"wrn_16_2": 703_284, "wrn_40_1": 569_780, "wrn_40_2": 2_255_156},
    **{"vgg8": 3_965_028, "vgg13": 9_462_180},
    **{"mobilenetv2": 812_836, "shufflenetv2": 1_355_528},
}
SMALLEST = {ResNet: 3, WRN: 3, VGG: 8, MobileNetV2: 9, ShuffleNetV2: 5, CNN: 4}
NEEDED: dict[Any, dict[str, Any]] = {ResNet: {"depth": 8}, WRN: {"depth": 10}, VGG: {"depth": 8}}
NEEDED[CNN] = {"width": 2}
TINY = "shufflenet_v2_x0_5"  # of torchvision
OVERRIDES = {
    "cnn": ("model.width=2",),
    "mlp": ("model.width=8",),
    "mlp_1200": ("model.width=9",),
    "mlp_30": ("model.width=9",),
    "torchvision": (f"model.name={TINY}", "model.size=16"),
    "timm": ("model.name=test_resnet",),
}
QUICK = {"cnn", "mlp", "resnet8"}
SHORT = ("train.epochs=1", "data.examples=128", "train.batch_size=64")


@pytest.mark.table
@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_names_are_those_of_the_literature(name: str) -> None:
    section = parse(composed(*SMALL[:1], f"model={name}")).model
    with torch.device("meta"):
        model = section(inputs=CIFAR[0], classes=CIFAR[1])
    assert sum(p.numel() for p in model.parameters()) == SIZES[name]
    assert section.name == name


def test_convolutions_are_drawn_as_he_et_al() -> None:
    model = ResNet(*CIFAR, depth=8)
    weight = model.get_parameter("layer3.0.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("family", SMALLEST)
def test_images_of_any_size_from_the_smallest_on(family: Any) -> None:
    least, options = SMALLEST[family], NEEDED.get(family, {})
    small = options if family is CNN else {**options, "width": 0.1}
    for shape in ((1, least, least), (3, 28, 31), (4, 64, 64)):
        assert family(shape, 7, **small)(torch.rand(2, *shape)).shape == (2, 7)
    with pytest.raises(ValueError, match=f"wanted are images of {least} x {least} pixels or more"):
        family((3, least, least - 1), 7, **small)
    with pytest.raises(ValueError, match=r"wanted are images \(channels, height, width\)"):
        family((30,), 7, **small)


def test_the_mlp_takes_features() -> None:
    assert MLP((30,), 2, width=4)(torch.rand(5, 30)).shape == (5, 2)


@pytest.mark.parametrize("family", [ResNet, WRN])
def test_depths_that_no_network_has_are_refused(family: Any) -> None:
    with pytest.raises(ValueError, match="depth=12: wanted is 6 n"):
        family(*CIFAR, depth=12)


@pytest.mark.slow
def test_width_multiplies_channels_and_is_told(cli: Cli) -> None:
    done = cli(
        *("-m", "data=synthetic", "loss=hard", "model=resnet8", "model.width=0.25,1", *SHORT),
        "hydra.sweep.dir=wide",
    )
    assert done.code == 0, done.err
    frame = summaries.read_summary("wide/summary.csv")
    assert set(frame["model"]) == {"resnet8"}
    assert sorted(frame["width"]) == [0.25, 1]
    assert sorted(str(run).split("-")[1] for run in frame["run"]) == ["resnet8", "resnet8w0.25"]
    small, large = frame.sort_values("width")["parameters"]
    assert (small, large) == (5_040, 77_364)


@pytest.mark.parametrize(
    ("cells", "values", "kind"),
    [
        (["300", None], [300, None], "Int64"),
        (["16.0"], [16], "Int64"),
        (["300.0", "0.5"], [300, 0.5], "float64"),
        ([None], [None], "Int64"),
    ],
)
def test_a_column_of_widths_is_whole_where_it_can_be(cells: Any, values: Any, kind: str) -> None:
    found = typed("width", parsed("width", cells))
    pd.testing.assert_series_equal(found, pd.Series(values, dtype=kind))


def _job(*overrides: str) -> Job:
    """The checked job of a small run of any model."""
    small = (given for given in SMALL if not given.startswith("model."))
    return Job(parse(composed(*small, *overrides)))


def _needs(name: str) -> None:
    if name == "timm":
        pytest.importorskip("timm")


# Members of one stack, by their loss; those of every other one learn with kd.
OWN = {
    "kd": [("optim.lr=0.01",), ("optim.lr=0.003", "loss.temperature=9"), ("loss.alpha=0.2",)],
    "logits": [("optim.lr=0.01",), ("optim.lr=0.003", "loss.alpha=0.5"), ("loss.alpha=0.2",)],
    **{
        loss: [
            *(("loss.smoothing=0.1",), ("loss.smoothing=0.1", "optim.lr=0.01")),
            ("loss.smoothing=0.3", "optim.lr=0.003"),
        ]
        for loss in ("hard", "label_smoothing")
    },
    **{
        loss: [("optim.lr=0.01",), ("optim.lr=0.003", f"loss.{one}"), (f"loss.{other}",)]
        for loss, one, other in (
            ("reverse_kl", "temperature=9", "alpha=0.2"),
            ("jsd", "temperature=9", "beta=0.1"),
            ("mse", "alpha=0.5", "alpha=0.2"),
            ("standardised_kd", "temperature=9", "hard=0.5"),
            ("dkd", "temperature=9", "beta=2"),
            ("nkd", "temperature=4", "gamma=0.5"),
            ("wsld", "temperature=9", "alpha=0.5"),
            ("ttm", "gamma=0.5", "beta=2"),
            ("wttm", "gamma=0.5", "beta=2"),
            ("dist", "temperature=1", "gamma=0.5"),
            ("ctkd", "span=9", "alpha=0.5"),
        )
    },
}
CASES = [
    *((n, "kd") for n in options("model")),
    # Those of features train in tests/training/test_features.py.
    *(("mlp", loss) for loss in OWN if loss != "kd"),
    *(("resnet8", loss) for loss in ("logits", "hard", "dist")),
]


@pytest.mark.parametrize(
    ("name", "loss"),
    [case if case[0] in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
@pytest.mark.table
@pytest.mark.parametrize(
    "precision", ["fp32", pytest.param("bf16", marks=[pytest.mark.slow, pytest.mark.brothers])]
)
def test_every_model_and_loss_in_a_stack_is_that_alone(
    name: str, loss: str, precision: str
) -> None:
    _needs(name)
    model = OVERRIDES.get(name, ("model.width=0.1",))
    short = SHORT if name in QUICK else (SHORT[0], "data.examples=64", "train.batch_size=32")
    common = (f"model={name}", f"loss={loss}", *model, f"precision={precision}", *short)
    jobs = [_job(*common, *own) for own in OWN[loss]]
    together = make_training(jobs)
    assert not together.run().diverged
    start = build(jobs[0].run.model, jobs[0].data, "model").state_dict()
    for k, job in enumerate(jobs):
        alone = make_training([job])
        alone.run()
        expected, found = alone.stack.state(0), together.stack.state(k)
        assert expected.keys() == found.keys() == start.keys()
        for key, value in expected.items():
            # Where members are multiplied at once, or dist's sums are, they are rounded otherwise.
            if not name.startswith("mlp") and loss != "dist":
                assert torch.equal(value, found[key]), key
            tolerance = 1e-5 if precision == "fp32" else 0.02
            torch.testing.assert_close(found[key], value, rtol=tolerance, atol=tolerance)
    first, second = together.stack.state(0), together.stack.state(1)
    assert any(not torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_models_of_libraries_are_adapted(name: str) -> None:
    _needs(name)
    job = _job(f"model={name}", *OVERRIDES[name], *SHORT)
    module = build(job.run.model, job.data, "model")
    convolution = next(part for part in module.modules() if isinstance(part, nn.Conv2d))
    assert convolution.in_channels == 1
    assert module.eval()(torch.rand(2, 1, 12, 12)).shape == (2, 4)
    assert job.name.startswith(f"synthetic-{name}-{OVERRIDES[name][0].partition('=')[2]}-")


def test_multiply_adds_of_grouped_convolutions() -> None:
    job = _job("model=shufflenetv2", "model.width=0.05", *SHORT)
    found: list[int] = []

    def count(layer: nn.Conv2d, _: object, out: torch.Tensor) -> None:
        each = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
        found.append(out.numel() * each)

    module = build(job.run.model, job.data, "model").eval()
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(count)
    module(torch.zeros(1, *job.data.shape))
    assert isinstance(module, ShuffleNetV2)
    assert multiply_adds(job.run.model, job.run.data) == sum(found) + module.linear.weight.numel()


def _weights(path: Path, classes: int) -> dict[str, torch.Tensor]:
    """A file of the weights of a model for colour images, and what is in it."""
    torch.manual_seed(7)
    state = {
        n: v.clone() for n, v in torchvision((3, 9, 9), classes, name=TINY).state_dict().items()
    }
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return state


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_weights_of_a_file_but_for_a_last_layer_of_other_classes(file: str, home: Path) -> None:
    state = _weights(home / file, 10)
    for classes in (10, 4):
        made = torchvision((3, 12, 12), classes, name=TINY, pretrained=str(home / file))
        for name, value in made.state_dict().items():
            if classes == 10 or not name.startswith("fc."):
                assert torch.equal(value, state[name]), name
        assert made.get_parameter("fc.bias").shape == (classes,)


def test_a_grey_image_is_read_as_three_equal_channels(home: Path) -> None:
    _weights(home / "weights.pth", 4)
    colour, grey = (
        torchvision((c, 12, 12), 4, name=TINY, pretrained="weights.pth").eval() for c in (3, 1)
    )
    x = torch.rand(2, 1, 12, 12)
    torch.testing.assert_close(grey(x), colour(x.expand(2, 3, 12, 12)))


@pytest.mark.parametrize(("size", "smaller"), [(20, False), (8, True)])
def test_images_are_resized_before_a_model_sees_them(size: int, smaller: bool) -> None:
    model = torchvision((3, 12, 12), 4, name=TINY, size=size)
    assert [*model.state_dict()] == [*torchvision((3, 12, 12), 4, name=TINY).state_dict()]
    seen: list[torch.Tensor] = []
    model.get_submodule("conv1").register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.rand(2, 3, 12, 12)
    assert model(x).shape == (2, 4)
    expected = F.interpolate(x, (size, size), mode="bilinear", antialias=smaller)
    torch.testing.assert_close(seen[0], expected)


def test_a_model_of_one_size_takes_images_of_another() -> None:
    pytest.importorskip("timm")
    line = r"timm-test_vit: it fails on images \(1, 12, 12\).*; model.size=SIDE resizes them"
    with pytest.raises(ConfigError, match=line):
        _job("model=timm", "model.name=test_vit", *SHORT)
    job = _job("model=timm", "model.name=test_vit", "model.size=160", *SHORT)
    assert build(job.run.model, job.data, "model")(torch.rand(2, 1, 12, 12)).shape == (2, 4)


@pytest.mark.slow
def test_the_content_of_a_file_and_not_its_place_is_of_the_digest(home: Path) -> None:
    _weights(home / "a.pth", 4)
    (home / "b.pth").write_bytes((home / "a.pth").read_bytes())
    _weights(home / "c.pth", 5)
    own = ("data=synthetic", "loss=hard", "model=torchvision", f"model.name={TINY}")
    files = [(), *((f"model.pretrained={n}.pth",) for n in "abc")]
    none, a, b, c = (parse(composed(*own, *file)).digest({}) for file in files)
    assert a == b
    assert len({none, a, c}) == 3
    key = "teacher.model"
    other = ("teacher=torchvision", f"{key}.name={TINY}")
    configs = [composed("data=synthetic", *other, f"{key}.pretrained={n}.pth") for n in "abc"]
    teachers = [parse(config).teacher.recipe for config in configs]
    assert teachers[0] == teachers[1] != teachers[2]


@pytest.mark.slow
def test_a_trained_student_needs_the_file_no_more(cli: Cli, home: Path) -> None:
    from distill import load

    _weights(home / "weights.pth", 4)
    done = cli(
        *("data=synthetic", "loss=hard", "model=torchvision", f"model.name={TINY}", *SHORT),
        *("model.pretrained=weights.pth", "hydra.run.dir=one"),
    )
    assert done.code == 0, done.err
    (home / "weights.pth").unlink()
    assert load("one").classes == 4


class Code:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit(7)",)


def _file(path: Path, kind: str) -> None:
    if kind == "code":
        torch.save({"a": Code()}, path)
    elif kind == "noise":
        path.write_bytes(b"noise")
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    elif kind == "other":
        torch.save({"layer.weight": torch.zeros(3)}, path)
    elif kind == "less":
        state = torchvision((3, 9, 9), 4, name=TINY).state_dict()
        del state["conv5.0.weight"]
        torch.save(dict(state), path)
    elif kind == "channels":
        torch.save(torchvision((2, 9, 9), 4, name=TINY).state_dict(), path)


FAULTS = {
    "missing": "there is no file w.pth",
    "code": "its pickle calls exec, and reading it would run code, so it is not read",
    "noise": "not a readable safetensors file, nor of torch.save",
    "list": r"it holds no state dict; save model.state_dict\(\)",
    "other": "it has a parameter layer.weight, which the model lacks; it fits another model.name",
    "less": "it lacks the parameter conv5.0.weight; it fits another model.name",
    "channels": r"its parameter conv1.0.weight has the shape \(24, 2, 3, 3\), the model wants",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_files_that_do_not_fit_are_one_line(kind: str, home: Path) -> None:
    _file(home / "w.pth", kind)
    with pytest.raises(ConfigError, match=f"pretrained=w.pth: {FAULTS[kind]}") as error:
        _job("model=torchvision", f"model.name={TINY}", "model.pretrained=w.pth", *SHORT)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"model=torchvision-{TINY}: ")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "model.name=resnet19",
            "model=torchvision-resnet19: torchvision has no classification model of this name; "
            "did you mean resnet18",
        ),
        ("model.name=fcn_resnet50", "torchvision has no classification model of this name"),
        ("model.name=../resnet18", "model.name=../resnet18: String should match pattern"),
        ("model.pretrained=true", "model.pretrained=true: Input should be a valid string"),
    ],
)
def test_names_that_no_model_has_are_one_line(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        _job("model=torchvision", override, *SHORT)
    assert line in str(error.value)


def test_without_timm_one_line_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm is not installed: pip install 'distill-sweep\["):
        _job("model=timm", *SHORT)


def test_the_hub_is_the_librarys_own_and_offline_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import get_model_weights

    monkeypatch.setenv("TORCH_HOME", str(home))
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(ValueError, match="pretrained=hub: no weights can be downloaded") as error:
        torchvision((3, 12, 12), 4, name=TINY, pretrained="hub")
    assert "\n" not in str(error.value)
    url = get_model_weights(TINY).DEFAULT.url
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    state = _weights(folder / str(url).rpartition("/")[2], 1000)
    made = torchvision((3, 12, 12), 4, name=TINY, pretrained="hub").state_dict()
    assert all(torch.equal(v, state[n]) for n, v in made.items() if not n.startswith("fc."))
