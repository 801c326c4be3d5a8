"""Models and dropout: shapes, statistics, the max-norm constraint."""

import random
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Offer, make_job, make_training
from torch import Tensor, nn

from distill.config import ConfigError
from distill.models import MLP
from distill.models.dropout import Dropout
from distill.runs.students import students
from distill.teachers import targets
from distill.teachers.cache import Teacher
from distill.teachers.find import find_teacher, soft_targets
from distill.training.build import build, multiply_adds
from distill.training.inputs import training_inputs
from distill.training.loop import History


@pytest.mark.parametrize("name", ["cnn", "mlp"])
@pytest.mark.parametrize("overrides", [(), ("model.dropout=0.3",)])
def test_with_and_without_dropout_images_become_logits(
    name: str, overrides: tuple[str, ...]
) -> None:
    job = make_job(f"model={name}", "model.width=4", *overrides)
    module = build(job.run.model, job.data, "model")
    assert module(torch.rand(5, *job.data.shape)).shape == (5, job.data.classes)


def test_parameters_of_the_papers_networks() -> None:
    for width, count in ((1200, 2_395_210), (800, 1_276_810), (30, 24_790)):
        module = MLP((1, 28, 28), 10, width=width)
        assert sum(p.numel() for p in module.parameters()) == count


@pytest.mark.parametrize("p", [0.2, 0.5, 0.001])
def test_dropout_drops_the_share_in_every_lane_and_keeps_the_mean(p: float) -> None:
    dropout = Dropout(p)
    dropout.generator = torch.Generator().manual_seed(0)
    kept = dropout(torch.ones(400_000))
    share = (kept == 0).double().view(-1, 4).mean(0)
    error = 5 * (p * (1 - p) / 100_000) ** 0.5
    assert ((share - p).abs() < error).all(), share
    assert abs(kept.double().mean().item() - 1) < 5 * (p / (1 - p) / 400_000) ** 0.5
    assert dropout.eval()(kept) is kept


def test_dropout_follows_from_its_generator() -> None:
    masks = []
    for seed in (1, 1, 2):
        dropout = Dropout(0.5)
        dropout.generator = torch.Generator().manual_seed(seed)
        masks.append(dropout(torch.ones(5, 7)))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_max_norm_scales_hidden_units_back_and_leaves_the_others() -> None:
    module = MLP((1, 4, 4), 3, width=5, max_norm=2.0)
    state = {name: value.detach().clone() for name, value in module.named_parameters()}
    state["layers.0.weight"][0] *= 100
    state["layers.2.weight"] *= 100
    before = {name: value.clone() for name, value in state.items()}
    module.constrain_(state)
    norms = state["layers.0.weight"].norm(dim=1)
    assert norms[0].item() == pytest.approx(2)
    torch.testing.assert_close(state["layers.0.weight"][1:], before["layers.0.weight"][1:])
    torch.testing.assert_close(state["layers.2.weight"], before["layers.2.weight"])


def test_multiply_adds_are_those_of_the_products() -> None:
    def count(*overrides: str) -> int:
        job = make_job(*overrides)
        return multiply_adds(job.run.model, job.run.data)

    assert count("model.width=8") == 144 * 8 + 8 * 8 + 8 * 4
    sides = 144 * 9 * 1 * 3 + 36 * 9 * 3 * 6  # two convolutions, at 12 x 12 and 6 x 6 pixels
    assert count("model=cnn", "model.width=3") == sides + 6 * 3 * 3 * 4


def test_multiply_adds_of_a_weight_that_is_computed(offered: Offer) -> None:
    class Normed(MLP):
        def __init__(self, inputs: Any, classes: int, *, width: int = 8) -> None:
            super().__init__(inputs, classes, width=width)
            for layer in self.layers:
                torch.nn.utils.parametrizations.weight_norm(layer)

    job = offered("model", Normed)
    assert multiply_adds(job.run.model, job.run.data) == 144 * 8 + 8 * 8 + 8 * 4


class Small(nn.Module):
    """One linear layer."""

    def __init__(self, inputs: Any, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(prod(inputs), classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits


class Counting(Small):
    count: Tensor

    def __init__(self, inputs: Any, classes: int) -> None:
        super().__init__(inputs, classes)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count = self.count + 1
        return super().forward(x)


class Frozen(Small):
    def __init__(self, inputs: Any, classes: int) -> None:
        super().__init__(inputs, classes)
        self.requires_grad_(False)


class Double(Small):
    def __init__(self, inputs: Any, classes: int) -> None:
        super().__init__(inputs, classes)
        self.double()


class Lazy(Small):
    def __init__(self, inputs: Any, classes: int) -> None:
        super().__init__(inputs, classes)
        self.layer = nn.LazyLinear(classes)


class Empty(Small):
    def __init__(self, inputs: Any, classes: int) -> None:
        super().__init__(inputs, classes)
        del self.layer


class Restless(Small):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x))


class Unseeded(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (random.random() if self.training else 1)


class Wide(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).repeat(1, 2)


class Failing(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :, 1:])


REFUSED = {
    Frozen: "it has no parameters that are trained$",
    Double: "it has parameters that are not float32: layer.weight, layer.bias$",
    Lazy: "it has parameters of unknown shape: layer.weight, layer.bias$",
    Empty: "it has no parameters that are trained$",
    Restless: "it is random in evaluation, too",
    Unseeded: "its randomness does not come from torch's generators",
    Wide: r"it returns \(2, 8\) for 2 images; needed is \(2, 4\)$",
    Failing: r"it fails on images \(1, 12, 12\): RuntimeError",
}


@pytest.mark.parametrize("model", REFUSED)
@pytest.mark.parametrize("key", ["model", "teacher.model"])
def test_a_model_that_cannot_be_trained_is_refused(
    model: type[Small], key: str, offered: Offer
) -> None:
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=f"^{key}={model.__name__.lower()}: {REFUSED[model]}"):
        offered(key, model)
    assert torch.equal(torch.get_rng_state(), before)


class Normed(Small):
    """Statistics over the batch, a parameter that is frozen, one without a gradient, dropout."""

    def __init__(self, inputs: Any, classes: int) -> None:
        super().__init__(inputs, classes)
        # A bias would have no gradient but rounding errors, which Adam makes steps of.
        self.layer = nn.Linear(prod(inputs), classes, bias=False)
        self.normal = nn.BatchNorm1d(classes)
        self.scale = nn.Parameter(torch.full((classes,), 2.0), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.normal(super().forward(F.dropout(x, 0.1, self.training)))
        return logits * self.scale


class Convolved(Normed):
    """The same after a convolution, whose members are called one after another."""

    def __init__(self, inputs: Any, classes: int) -> None:
        super().__init__(inputs, classes)
        self.first = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.first(x))


class Unmapped(Counting):
    """What it does hangs on values, which torch cannot map."""

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z if float(z.detach().abs().max()) > 100 else 2 * z


class Positioned(Small):
    """A parameter and buffers at the root, one of them infinite, and a tuple of outputs."""

    place: Tensor
    mask: Tensor

    def __init__(self, inputs: Any, classes: int) -> None:
        super().__init__(inputs, classes)
        self.layer = nn.Linear(prod(inputs), classes, bias=False)
        self.shift = nn.Parameter(torch.zeros(classes))
        self.register_buffer("place", torch.linspace(0, 1, prod(inputs)))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.plain = nn.BatchNorm1d(classes, affine=False)
        self.fixed = nn.Linear(classes, classes).requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        z = self.layer(x.flatten(1) + self.place)
        return self.fixed(self.plain(input=z) + self.shift) + self.mask[0], z


def frozen_mlp(inputs: Any, classes: int, *, width: int = 8) -> nn.Module:
    """The MLP, its first layer frozen: a plain function, as a component may be."""
    module = MLP(inputs, classes, width=width)
    module.layers[0].requires_grad_(False)
    return module


STATEFUL: dict[Any, bool] = {
    Counting: True,
    Normed: True,
    Convolved: False,
    Unmapped: False,
    Positioned: True,
    frozen_mlp: True,
}
# Of float32 figures, members mapped against alone; called one after another they are the same bits.
TOLERANCE = 1e-5


@pytest.mark.table
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", STATEFUL)
def test_members_with_buffers_are_those_alone(model: Any, precision: str, offered: Offer) -> None:
    own = [("optim.lr=0.01",), ("optim.lr=0.003", "loss.temperature=9"), ("loss.alpha=0.2",)]
    jobs = [offered("model", model, f"precision={precision}", *more) for more in own]
    together = make_training(jobs)
    assert together.stack.mapped == STATEFUL[model]
    assert not together.run().diverged
    for k, job in enumerate(jobs):
        alone = make_training([job])
        alone.run()
        expected, found = alone.stack.state(0), together.stack.state(k)
        assert expected.keys() == found.keys() == dict(model((1, 12, 12), 4).state_dict()).keys()
        for name, value in expected.items():
            if not STATEFUL[model]:
                assert torch.equal(value, found[name]), name
            tolerance = TOLERANCE if precision == "fp32" else 0.02
            torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)
    first = together.stack.state(0)
    if "count" in first:
        assert first["count"] == 2 * 4  # epochs and batches
    if "unused" in first:
        assert first["normal.num_batches_tracked"] == 2 * 4
        assert first["normal.running_mean"].dtype == torch.float32
        assert first["scale"].tolist() == [2.0] * 4
        assert first["unused"].tolist() == [1.0] * 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_ensemble_of_models_with_statistics(precision: str, offered: Offer) -> None:
    job = offered("teacher.model", Normed, "teacher.members=2", f"precision={precision}")
    found = find_teacher(job.setting, job.run.teacher, 5.0)
    way = targets.way(job.setting, job.run.teacher, 9)
    soft = soft_targets(job.setting, job.run.teacher, 5.0, way)
    assert isinstance(found, Teacher) and found.stack.members == 2
    images = training_inputs(job.setting, 0, False)
    z = found.stack(images.batch(torch.arange(8), 0, job.setting.dtype)).float().mean(0)
    torch.testing.assert_close(soft[:8, 0], z, atol=0.02, rtol=0.02)


def test_steps_that_a_parameter_skipped_are_kept(offered: Offer) -> None:
    """A layer that has a gradient in every other epoch alone, when a member leaves, and later."""

    class Skipping(Small):
        passes = 0

        def __init__(self, inputs: Any, classes: int) -> None:
            super().__init__(inputs, classes)
            self.other = nn.Parameter(torch.zeros(classes))

        def forward(self, x: Tensor) -> Tensor:
            Skipping.passes += 1
            return super().forward(x) + (self.other if Skipping.passes % 2 else 0)

    Skipping.passes = 0
    training = make_training([offered("model", Skipping), offered("model", Skipping, "seed=0")])
    training.run()
    steps = training.optimizer.steps
    assert steps[-1] == 8 and 0 < steps[0] < 8
    training._keep(torch.tensor([1]))
    assert training.optimizer.steps == steps
    assert [c.item() for c in training.optimizer.chunks[0].counts] == steps
    again = make_training([offered("model", Skipping)])
    state = {name: value.clone() for name, value in training.state().items()}
    again.restore(History([[]], [0], epoch=2), state)
    assert again.optimizer.steps == steps


@pytest.mark.parametrize("key", ["model", "teacher.model"])
def test_a_last_batch_of_one_that_a_model_cannot_take_is_refused(key: str, offered: Offer) -> None:
    """Of 256 examples, 51 batches of 5 leave one."""
    part = key.removesuffix("model")
    size = f"{part}train.batch_size=5"
    with pytest.raises(ConfigError) as error:
        offered(key, Normed, size)
    assert str(error.value) == (
        f"{size}: of 256 examples the last batch has one, on which normed cannot be trained "
        "(ValueError: Expected more than 1 value per channel when training, got input size "
        "torch.Size([1, 4])); choose another size"
    )
    offered(key, Normed, f"{part}train.batch_size=6")
    offered(key, Counting, size)


def test_a_model_with_normalised_groups_is_trained(offered: Offer) -> None:
    class Grouped(Small):
        def __init__(self, inputs: Any, classes: int) -> None:
            super().__init__(inputs, classes)
            self.normal = nn.GroupNorm(2, classes)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.normal(super().forward(x))
            return logits

    stack = students([offered("model", Grouped, "loss=hard")]).stack
    assert set(stack.parameters) == {"layer.weight", "layer.bias", "normal.weight", "normal.bias"}


@pytest.mark.parametrize(("width", "last"), [("1", True), ("0.25", False)])
def test_a_convolution_that_onednn_overruns_is_not_given_channels_last(
    width: str, last: bool
) -> None:
    # 4 channels, strided, 1 x 1: glibc ended the process ("double free or corruption").
    given = ("data=synthetic", "model=resnet8", f"model.width={width}", "train.batch_size=64")
    training = make_training([make_job(*given, "loss=hard", "train.epochs=1")])
    assert (training.stack.format == torch.channels_last) == last
    training.run()
