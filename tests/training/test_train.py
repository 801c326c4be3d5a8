"""The training loop and the stack: K members together are the K members alone."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import Offer, make_job
from torch import nn

from distill.data.views import Inputs
from distill.models import MLP
from distill.runs.execute import execute
from distill.runs.job import Job
from distill.runs.students import students
from distill.training.build import build
from distill.training.fit import RunError
from distill.training.stack import Stack
from distill.training.transfer_set import TransferSet

# Eight members of mixed temperature, alpha, learning rate and weight decay.
MIXED = [
    ("loss.temperature=1", "loss.alpha=1", "optim.lr=0.001"),
    ("loss.temperature=2.5", "loss.alpha=0.7", "optim.lr=0.003"),
    ("loss.temperature=4", "loss.alpha=0", "optim.lr=0.0003"),
    ("loss.temperature=8", "loss.alpha=0.1", "optim.lr=0.002"),
    ("loss.temperature=20", "loss.alpha=1", "optim.lr=0.001", "optim.weight_decay=0.5"),
    ("loss.temperature=40", "loss.alpha=0.5", "optim.lr=0.005"),
    ("loss.temperature=0.5", "loss.alpha=0.9", "optim.lr=0.0001"),
    ("loss.temperature=3", "loss.alpha=0.3", "optim.lr=0.01", "optim.weight_decay=0"),
]
SETTINGS = {
    "mlp": ("data=mnist_5k", "transfer=fraction", "transfer.fraction=0.1", "model.width=20"),
    "mlp with dropout, jitter, max-norm": (
        "model.dropout=0.3",
        "model.input_dropout=0.1",
        "model.max_norm=0.8",
        "data.jitter=1",
        "teacher.jitter=1",
    ),
    "mlp by sgd": ("optim=sgd",),
    "cnn": ("model=cnn", "model.width=4", "model.dropout=0.2"),
}


def train(jobs: list[Job], folder: Any) -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    from safetensors.torch import load_file

    directories = [folder / str(i) for i in range(len(jobs))]
    for directory in directories:
        directory.mkdir(parents=True)
    results = execute(jobs, directories)
    weights = [
        load_file(d / "student.safetensors") if r["status"] == "complete" else {}
        for d, r in zip(directories, results, strict=True)
    ]
    return list(zip(results, weights, strict=True))


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ("cnn", "mlp by sgd") else name
        for name in SETTINGS
    ],
)
def test_members_trained_together_equal_those_trained_alone(setting: str, home: Any) -> None:
    common = ("precision=fp32", "train.epochs=4", *SETTINGS[setting])
    jobs = [make_job(*common, *member) for member in MIXED]
    together = train(jobs, home / "together")
    for k, (stacked, stacked_weights) in enumerate(together):
        [(alone, weights)] = train([jobs[k]], home / f"alone{k}")
        for key in ("train_loss", "train_soft", "train_hard", "test_loss"):
            assert stacked[key] == pytest.approx(alone[key], rel=1e-4, abs=1e-6)
        assert stacked["test_errors"] == alone["test_errors"]
        for name, value in weights.items():
            torch.testing.assert_close(stacked_weights[name], value, atol=2e-5, rtol=1e-3)
    # They did differ: the test would not notice hyperparameters that are not used.
    assert len({result["train_loss"] for result, _ in together}) == len(MIXED)


def test_the_terms_of_the_loss_are_those_of_its_ends(home: Any) -> None:
    still = ("loss.temperature=3", "optim.lr=1e-30", "precision=fp32")
    jobs = [make_job(f"loss.alpha={alpha}", *still) for alpha in (0, 0.3, 1)]
    hard, between, soft = (result for result, _ in train(jobs, home))
    for result in (hard, between, soft):
        assert result["train_hard"] == pytest.approx(hard["train_loss"], rel=1e-5)
        assert result["train_soft"] == pytest.approx(soft["train_loss"], rel=1e-5)
    assert hard["train_loss"] != pytest.approx(soft["train_loss"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("max_norm", ["null", "0.5"])
def test_leaves_in_bf16_stay_equal_to_the_parameters(max_norm: str, home: Any) -> None:  # noqa: ARG001
    common = ("precision=bf16", f"model.max_norm={max_norm}", "train.epochs=2")
    jobs = [make_job(*common, f"optim.lr={lr}") for lr in (1e-3, 1e30, 3e-3)]
    soft = torch.randn(len(jobs[0].data.train_labels), 1, jobs[0].data.classes)
    training = students(jobs, [soft])
    start = {name: value.clone() for name, value in training.stack.parameters.items()}
    history = training.run()
    assert history.members == [0, 2]  # the diverged one left, so new leaves were made
    for name, leaf in training.stack.leaves.items():
        assert leaf.dtype == torch.bfloat16
        assert torch.equal(leaf, training.stack.parameters[name].bfloat16())
        assert not torch.equal(leaf, start[name][:2].bfloat16())


@pytest.mark.brothers
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["cnn", "mlp", "resnet8"])
def test_every_model_learns_in_every_precision(model: str, precision: str, home: Any) -> None:
    width = f"model.width={0.5 if model == 'resnet8' else 16}"
    job = make_job(f"model={model}", width, f"precision={precision}", "train.epochs=30")
    [(result, _)] = train([job], home)
    assert result["precision"] == precision
    assert result["test_errors"] < 0.2 * len(job.data.test_labels)


def test_a_run_is_the_same_each_time_and_another_with_another_seed(home: Any) -> None:
    job, other = make_job("model.dropout=0.2"), make_job("model.dropout=0.2", "seed=1")
    (first, a), (second, b), (third, _) = (
        train([j], home / n)[0] for j, n in ((job, "a"), (job, "b"), (other, "c"))
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert first["train_loss"] == second["train_loss"] != third["train_loss"]


def test_a_member_that_diverges_leaves_its_neighbours_alone(home: Any) -> None:
    common = ("precision=fp32", "train.epochs=4")
    jobs = [make_job(*common, f"optim.lr={lr}") for lr in (0.001, 1e30, 0.003)]
    (a, x), (gone, nothing), (c, y) = train(jobs, home / "together")
    assert (gone["status"], nothing) == ("diverged", {})
    assert "not finite in epoch" in gone["reason"]
    assert (a["status"], c["status"]) == ("complete", "complete")
    for k, weights in ((0, x), (2, y)):
        [(_, alone)] = train([jobs[k]], home / f"alone{k}")
        for name, value in alone.items():
            torch.testing.assert_close(weights[name], value, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("model", ["cnn", "mlp", "mlp with features"])
@pytest.mark.parametrize("batch", [7, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_member_that_is_not_finite_is_no_part_of_the_others(
    model: str, batch: int, dtype: torch.dtype
) -> None:
    model, _, seen = model.partition(" with ")
    job = make_job(f"model={model}", "model.width=8")
    logits, gradients = [], []
    for value in (0.5, math.nan):
        stack = Stack(lambda: build(job.run.model, job.data, "model"), 3, 0, torch.device("cpu"))
        for p in stack.parameters.values():
            p[1] = value
        leaves = list(stack.trainable(dtype).values())
        stack.eval()
        x = torch.rand(batch, *job.data.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        out = torch.cat([*stack.observed(x, None)[1], stack(x)], 2) if seen else stack(x)
        grads = torch.autograd.grad(out.float().square().sum(), leaves)
        logits.append(out.detach()[::2])
        gradients.append([grad[::2] for grad in grads])
    assert logits[1].isfinite().all()
    torch.testing.assert_close(*logits)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_fast_path_of_the_mlp_equals_the_generic_one(mode: str) -> None:
    job = make_job("model.depth=3", "model.dropout=0.4", "model.input_dropout=0.2")
    stack = Stack(lambda: build(job.run.model, job.data, "model"), 3, 0, torch.device("cpu"))
    with torch.no_grad():
        for p in stack.parameters.values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) / 10)
    x = torch.rand(6, *job.data.shape)
    outputs = []
    for forward in (stack, stack.generic):
        stack.train(torch.Generator().manual_seed(5))
        if mode == "eval":
            stack.eval()
        outputs.append(forward(x))
    assert outputs[0].shape == (3, 6, job.data.classes)
    torch.testing.assert_close(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0][0], outputs[0][1])


def test_an_epoch_shows_each_example_once_in_views_of_its_own() -> None:
    images = Inputs(torch.zeros(500, 1, 8, 8, dtype=torch.uint8), jitter=1, mean=0.0, std=1.0)
    subset = torch.arange(0, 500, 2)
    transfer = TransferSet(images, torch.zeros(500), subset)
    epochs = []
    for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1)):
        batches = list(transfer.batches(seed, epoch, 100))
        assert [len(index) for index, _ in batches] == [100, 100, 50]
        index, view = (torch.cat(part) for part in zip(*batches, strict=True))
        assert torch.equal(index.sort().values, subset)
        assert set(view.tolist()) == set(range(9))
        epochs.append((index.tolist(), view.tolist()))
    assert epochs[0] == epochs[1]
    assert epochs[0] != epochs[2]
    assert epochs[0] != epochs[3]


def test_a_student_learns_the_teachers_logits_of_the_view_it_sees() -> None:
    """With soft targets that tell the view apart, only the right pairing can be learnt."""
    from distill.losses import logits
    from distill.optim import AdamW
    from distill.training.loop import Plan, Training
    from distill.training.objective import Objective

    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (8, 1, 8, 8), generator=generator, dtype=torch.uint8)
    images = Inputs(raw, jitter=1, mean=0.5, std=0.5)
    soft = torch.randn(8, 9, 3, generator=generator)
    job = make_job("model.width=64")
    stack = Stack(lambda: job.run.model.function((1, 8, 8), 3, width=64), 1, 0, torch.device("cpu"))
    leaves = list(stack.trainable(torch.float32).values())
    optimizer = AdamW(list(stack.parameters.values()), leaves, lr=[0.01], weight_decay=[0.0])
    transfer = TransferSet(images, torch.zeros(8, dtype=torch.int64), torch.arange(8), [soft])
    plan = Plan(300, 8, "cosine", 0.0, torch.float32)
    objective = Objective(logits, frozenset({"teacher_logits", "labels"}), {"alpha": [1.0]})
    history = Training(stack, optimizer, transfer, objective, plan, 0).run()
    assert history.rows[0][-1]["train_loss"] < 0.01 * history.rows[0][0]["train_loss"]


class Doubled(MLP):
    """The MLP with another forward."""

    def __init__(self, inputs: Any, classes: int, *, width: int = 8) -> None:
        super().__init__(inputs, classes, width=width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def hooked(inputs: Any, classes: int, *, width: int = 8) -> MLP:
    module = MLP(inputs, classes, width=width)
    module.layers[1].register_forward_hook(lambda _, __, out: 2 * out)
    return module


def smooth(inputs: Any, classes: int, *, width: int = 8) -> MLP:
    module = MLP(inputs, classes, width=width)
    module.dropouts[1] = nn.Softplus()
    return module


def tied(inputs: Any, classes: int, *, width: int = 8) -> MLP:
    module = MLP(inputs, classes, width=width, depth=3)
    module.layers[2] = module.layers[1]
    return module


@pytest.mark.parametrize("model", [Doubled, hooked, smooth, tied])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_that_was_named_is_the_one_that_is_trained(
    model: Any, dtype: torch.dtype, offered: Offer
) -> None:
    job = offered("model", model, "loss=hard")
    stack = students([job]).stack
    stack.eval()
    x = torch.rand(5, *job.data.shape)
    module = job.run.model.function(job.data.shape, job.data.classes, width=8)
    module.load_state_dict(stack.state(0), strict=False)
    rtol = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(stack(x.to(dtype))[0].float(), module(x), rtol=rtol, atol=rtol)


def test_a_projection_that_says_nothing_reaches_the_leaves(offered: Offer) -> None:
    class Halved(MLP):
        def __init__(self, inputs: Any, classes: int) -> None:
            super().__init__(inputs, classes, width=8)

        def constrain_(self, parameters: Any) -> None:  # type: ignore[override]
            for value in parameters.values():
                value.mul_(0.5)

    stack = students([offered("model", Halved, "loss=hard", "precision=bf16")]).stack
    stack.constrain_()
    for name, leaf in stack.leaves.items():
        assert torch.equal(leaf, stack.parameters[name].bfloat16())


class Noisy(nn.Module):
    """Dropout of torch, and noise, from its global generator."""

    def __init__(self, inputs: Any, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(inputs), 8), nn.Dropout(0.3), nn.Linear(8, classes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(x + 0.1 * torch.rand_like(x) * self.training)
        return logits


def test_what_a_model_draws_from_torch_follows_from_the_seed(offered: Offer) -> None:
    common = ("loss=hard", "precision=fp32", "optim.schedule=constant")
    one, other = (offered("model", Noisy, *common, f"optim.lr={lr}") for lr in (1e-3, 2e-3))

    def weights(*jobs: Job, resumed: bool = False) -> dict[str, torch.Tensor]:
        training, history = students(jobs), None
        if resumed:
            begun = students(jobs)
            begun.plan = replace(begun.plan, epochs=1)
            history = begun.run()
            training.restore(history, begun.state())
        torch.manual_seed(len(jobs))
        before = torch.get_rng_state()
        training.run(history=history)
        assert torch.equal(torch.get_rng_state(), before)  # the caller's
        return training.stack.state(0)

    alone = weights(one)
    assert all(torch.equal(x, alone[n]) for n, x in weights(one, resumed=True).items())
    for name, value in weights(one, other).items():
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-6)
    different = weights(offered("model", Noisy, *common, "seed=1"))
    assert not torch.allclose(different["layers.3.bias"], alone["layers.3.bias"], rtol=1e-3)


@pytest.mark.parametrize("loss", ["hard", "kd"])
def test_the_last_step_is_judged(loss: str, home: Any) -> None:
    """With one batch an epoch, the training loss is that of before the only step."""
    common = ("precision=fp32", "train.epochs=1", "train.batch_size=1000", f"loss={loss}")
    jobs = [make_job(*common, f"optim.lr={lr}") for lr in (1e-3, 1e38, 1e20)]
    [(fine, _), (beyond, none), (huge, nothing)] = train(jobs, home)
    assert fine["status"] == "complete"
    assert (beyond["status"], none) == (huge["status"], nothing) == ("diverged", {})
    assert math.isfinite(beyond["train_loss"]) and "not finite in epoch 1" in beyond["reason"]
    assert huge["reason"] == "test_loss is not finite in epoch 1"


def test_a_teacher_whose_last_step_diverged(home: Any) -> None:
    common = ("precision=fp32", "teacher.train.epochs=1", "teacher.train.batch_size=1000")
    with pytest.raises(RunError, match=r"the teacher diverged: .* not finite in epoch 1"):
        train([make_job(*common, "teacher.optim.lr=1e38")], home)


def test_a_temperature_without_weight_changes_no_figure(home: Any) -> None:
    jobs = [make_job("loss.alpha=0", f"loss.temperature={t}") for t in ("4", "1e20", "1e30")]
    results = [result for result, _ in train(jobs, home)]
    for key in ("status", "train_loss", "train_hard", "test_loss", "test_errors"):
        assert len({result[key] for result in results}) == 1
    assert results[0]["status"] == "complete"
    assert all(math.isfinite(result["train_soft"]) for result in results)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_parameter_that_is_not_finite_is_seen_without_any_loss(value: float) -> None:
    """A unit of bias -inf is silent, and no loss shows it."""
    training = students([make_job("loss=hard")] * 3)
    with torch.no_grad():
        training.stack.parameters["layers.0.bias"][1, 2] = value
        training.stack.parameters["layers.0.bias"][2] = -3e38
    assert training.stack.finite().tolist() == [True, False, True]
    masks = training._finite({"train_loss": torch.zeros(3)})
    assert masks["the parameters are"].tolist() == [True, False, True]
