"""Training as the field does it: clipped gradients, averaged weights, the best epoch's weights."""

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import SMALL, make_job, make_training, same
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import distill
from distill.cli import rescore
from distill.runs import results, summaries
from distill.runs.execute import execute
from distill.runs.job import Job
from distill.sweeps.costs import member_memory
from distill.training.loop import History

SPLIT = ("precision=fp32", "data.validation=0.25")
ALL = (
    *(*SPLIT, "optim.schedule=multistep", "optim.milestones=[0.5]", "train.epochs=4"),
    *("train.clip_norm=0.05", "train.ema=0.8", "train.keep_best=true", "loss.smoothing=0.1"),
    *("loss.class_weights=balanced", "optim=sgd", "optim.nesterov=false"),
)
# The second of them diverges.
MEMBERS = ("optim.lr=0.3", "optim.lr=1e30", "optim.lr=1 loss.smoothing=0.3", "optim.lr=3")


def files(directory: Path) -> dict[str, dict[str, torch.Tensor]]:
    found = {kind: directory / name for kind, name in results.KEPT.items()}
    return {kind: load_file(path) for kind, path in found.items() if path.exists()}


def trained(jobs: list[Job], folder: Path) -> list[dict[str, Any]]:
    for n in range(len(jobs)):
        (folder / str(n)).mkdir(parents=True)
    return execute(jobs, [folder / str(n) for n in range(len(jobs))])


def test_members_trained_together_equal_those_trained_alone(home: Path) -> None:
    jobs = [make_job(*ALL, *member.split()) for member in MEMBERS]
    together = trained(jobs, home / "together")
    assert [r["status"] for r in together] == ["complete", "diverged", "complete", "complete"]
    assert len({job.run.shared for job in jobs}) == 1
    for k in (0, 2, 3):
        [alone] = trained([jobs[k]], home / f"alone{k}")
        a, b = (files(home / p) for p in (f"together/{k}", f"alone{k}/0"))
        assert a.keys() == {"last", "ema", "best"} and same(a, b, rounded=True)
        one, other = (
            pd.read_csv(home / p / "history.csv") for p in (f"together/{k}", f"alone{k}/0")
        )
        pd.testing.assert_frame_equal(one, other, rtol=1e-4)
        assert together[k]["best_epoch"] == alone["best_epoch"]
    assert not files(home / "together/1")
    assert len({r["ema_test_loss"] for r in together}) == len(MEMBERS)


def test_a_gradient_is_clipped_as_torch_clips_that_of_one(home: Path) -> None:  # noqa: ARG001
    training = make_training([make_job(*SPLIT, f"optim.lr={lr}") for lr in (0.1, 0.2, 0.3)])
    leaves = [*training.stack.leaves.values()]
    for n, leaf in enumerate(leaves):
        noise = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(n))
        leaf.grad = noise * torch.tensor([1.0, 1e-3, 100.0]).view(-1, *[1] * (leaf.ndim - 1))
    before = [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]
    training._clip(2.0)
    for k in range(3):
        alone = [nn.Parameter(leaf.detach()[k].clone()) for leaf in leaves]
        for parameter, gradient in zip(alone, before, strict=True):
            parameter.grad = gradient[k].clone()
        norm = nn.utils.clip_grad_norm_(alone, 2.0)
        assert (norm > 2) == (k != 1)
        for parameter, leaf in zip(alone, leaves, strict=True):
            assert parameter.grad is not None and leaf.grad is not None
            torch.testing.assert_close(leaf.grad[k], parameter.grad)


def test_a_gradient_is_normalised_however_small_it_is(home: Path) -> None:  # noqa: ARG001
    """That of one member, not of all, and one that is 0 stays so; a step of SGD has that length."""
    sgd = ("optim=sgd", "optim.momentum=0", "optim.nesterov=false", "train.normalise=true")
    rates = (0.5, 0.25, 4.0)
    jobs = [make_job(*SPLIT, *sgd, f"optim.lr={lr}") for lr in rates]
    training = make_training(jobs)
    before = {n: p.detach().clone() for n, p in training.stack.parameters.items()}
    training.step(torch.arange(32), torch.zeros(32, dtype=torch.long), 1.0, 0.0)
    moved = [p.detach() - before[n] for n, p in training.stack.parameters.items()]
    for k, lr in enumerate(rates):
        length = sum(float(m[k].double().square().sum()) for m in moved) ** 0.5
        assert length == pytest.approx(lr, rel=1e-4)
    for leaf in training.stack.leaves.values():
        own = torch.tensor([1e-15, 0.0, 100.0]).view(-1, *[1] * (leaf.ndim - 1))
        leaf.grad = torch.ones_like(leaf) * own
    training._scale(lambda norms: torch.where(norms > 0, 1 / norms, 0))
    grads = [leaf.grad for leaf in training.stack.leaves.values() if leaf.grad is not None]
    lengths = sum(g.double().square().flatten(1).sum(1) for g in grads)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 0.0, 1.0]).double(), rtol=1e-4, atol=0)


NORMED = ("model=resnet8", "model.width=0.25", "data.examples=64", "data.size=16")


@pytest.mark.parametrize("model", [("model.max_norm=0.5",), NORMED], ids=["mlp", "resnet8"])
def test_the_average_is_that_of_torch(
    model: tuple[str, ...],
    home: Path,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = make_training([make_job("precision=fp32", "train.ema=0.7", *model)])
    module = copy.deepcopy(training.stack.module)
    average = get_ema_multi_avg_fn(0.7)  # type: ignore[no-untyped-call]
    theirs = AveragedModel(module, multi_avg_fn=average, use_buffers=True)
    step = training.step

    def watched(*given: Any) -> Any:
        values = step(*given)
        module.load_state_dict(training.stack.state(0))
        theirs.update_parameters(module)
        return values

    monkeypatch.setattr(training, "step", watched)
    training.run()
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():  # all but the number of batches, which is the last
            own = training.stacks["ema"].tensors[name]
            torch.testing.assert_close(own[0], value)
            assert not torch.equal(own, training.stack.tensors[name])


def test_the_best_epoch_is_that_of_a_training_that_ends_there(home: Path) -> None:
    common = (*SPLIT, "loss=hard", "optim.schedule=constant", "optim.lr=0.3", "data.examples=80")
    [result] = trained([make_job(*common, "train.epochs=9", "train.keep_best=true")], home / "a")
    rows = pd.read_csv(home / "a/0/history.csv")
    best = rows.sort_values(["val_errors", "val_loss"], kind="stable").iloc[0]
    assert 1 < result["best_epoch"] < 9
    assert result["best_epoch"] == best["epoch"]
    assert rows["val_errors"].cummin().tolist() == rows["best_val_errors"].tolist()
    [short] = trained([make_job(*common, f"train.epochs={result['best_epoch']}")], home / "b")
    for name in ("val_errors", "test_errors"):
        assert short[name] == result[f"best_{name}"] == best[name]
    assert same({"": files(home / "a/0")["best"]}, {"": files(home / "b/0")["last"]})
    student = distill.load(home / "a/0", weights="best")
    data = make_job(*common).data
    assert (student.predict(data.test_inputs) != data.test_labels).sum() == best["test_errors"]


def test_of_equal_errors_the_least_loss_is_best_and_then_the_first(home: Path) -> None:  # noqa: ARG001
    training = make_training([make_job(*SPLIT, "train.keep_best=true")])
    history = History([[]], [0])
    found, held = [], []
    figures = [(5, 0.5), (3, 0.4), (3, 0.5), (3, 0.3), (3, 0.3), (4, 0.1)]
    for epoch, (errors, loss) in enumerate(figures, 1):
        for value in training.stack.parameters.values():
            value.fill_(epoch)
        history.rows[0].append({"epoch": epoch, "val_errors": errors, "val_loss": loss})
        training._choose(history)
        found.append(history.rows[0][-1]["best_epoch"])
        held.append(int(training.best["layers.0.bias"][0, 0]))
    assert found == held == [1, 2, 2, 4, 4, 4]


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_what_goes_on_from_a_checkpoint_is_the_same_bit_by_bit(model: str, home: Path) -> None:  # noqa: ARG001
    common = (*ALL, f"model={model}", "model.width=4", "optim.schedule=constant")
    jobs = [
        make_job(*(c for c in common if "milestones" not in c), f"optim.lr={r}") for r in (1, 3)
    ]

    def evaluate(stack: Any) -> Any:
        """The first member is best in its first epoch, the second in its last."""
        moved = -sum((p - start[n]).square().flatten(1).sum(1) for n, p in stack.parameters.items())
        return {"val_errors": torch.zeros(2).long(), "val_loss": moved * torch.tensor([-1.0, 1.0])}

    whole, begun, other = (make_training(jobs) for _ in range(3))
    start = {name: value.clone() for name, value in whole.stack.parameters.items()}
    expected = whole.run(evaluate)
    assert [rows[-1]["best_epoch"] for rows in expected.rows] == [1, 4]
    begun.plan = replace(begun.plan, epochs=2)
    history = begun.run(evaluate)
    other.restore(history, {name: value.clone() for name, value in begun.state().items()})
    assert other.run(evaluate, history=history).rows == expected.rows
    states = [
        training.state()
        | {
            f"{kind} {n}": v
            for kind in ("best", "average")
            for n, v in getattr(training, kind).items()
        }
        for training in (whole, other)
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_classes_are_counted_in_the_transfer_set(home: Path) -> None:  # noqa: ARG001
    training = make_training([make_job("loss=hard", "loss.class_weights=balanced")])
    labels = training.transfer.labels
    index = torch.cat([(labels == c).nonzero().flatten()[: 5 * c + 1] for c in range(4)])
    training.transfer = replace(training.transfer, index=index)
    assert training.transfer.class_counts.tolist() == [1, 6, 11, 16]
    few = index[::3]
    stack = training.stack
    x = training.transfer.images.batch(few, torch.zeros_like(few), torch.float32)
    weights = 34 / (4 * torch.tensor([1.0, 6.0, 11.0, 16.0]))
    expected = F.cross_entropy(stack(x)[0].detach(), labels[few], weights)
    found = training.step(few, torch.zeros_like(few), 0.0, 0.0)
    assert found["train_loss"].item() / len(few) == pytest.approx(expected.item(), rel=1e-5)


def test_other_weights_are_evaluated_and_loaded_as_recorded(home: Path) -> None:  # noqa: ARG001
    result = distill.run(*SMALL, *SPLIT, "train.ema=0.9", "optim.lr=0.03")
    errors, count, recorded = rescore.rescore(result.directory, kind="ema")
    assert int(errors.sum()) == recorded == result["ema_test_errors"] != result["test_errors"]
    images, labels = distill.data.synthetic(examples=256, classes=4, size=12)[2:4]
    assert len(images) == count
    student = result.load(weights="ema")
    assert int((student.predict(images) != labels).sum()) == result["ema_test_errors"]
    with pytest.raises(distill.ConfigError, match=r"--weights best: it kept none; one with t"):
        rescore.rescore(result.directory, kind="best")


def test_weights_are_kept_checked_and_loaded(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = make_job(*SPLIT, "train.ema=0.5", "train.keep_best=true", "optim.lr=0.01")
    [result] = trained([job], home)
    directory = home / "0"
    assert {*results.KEPT.values()} < result_files(directory)
    data = job.data
    student = distill.load(directory, weights="ema")
    errors = int((student.predict(data.test_inputs) != data.test_labels).sum())
    assert errors == result["ema_test_errors"]
    frame = summaries.summary(home)
    assert frame["ema_test_errors"][0] == errors and frame["best_epoch"][0] == result["best_epoch"]
    with pytest.raises(distill.ConfigError, match=r"^weights=first: allowed are last, ema, best$"):
        distill.load(directory, weights="first")  # type: ignore[arg-type]
    (directory / results.KEPT["best"]).write_bytes(b"")
    with pytest.raises(distill.ConfigError, match=r"student-best.safetensors is damaged"):
        distill.load(directory, weights="best")
    with caplog.at_level(logging.WARNING):
        assert results.ended(directory) is None
    assert "damaged files (student-best.safetensors) and is trained again" in caplog.text
    results.clear(directory, keep=False)
    assert not files(directory)  # put aside
    trained([make_job(*SPLIT)], home / "plain")
    for kind, key in (("ema", "train.ema=DECAY"), ("best", "train.keep_best=true")):
        with pytest.raises(
            distill.ConfigError, match=f"weights={kind}: it kept none; a run with {key}"
        ):
            distill.load(home / "plain/0", weights=kind)  # type: ignore[arg-type]


def result_files(directory: Path) -> set[str]:
    return {*results.read(directory / results.RESULT)["files"]}


def test_memory_counts_the_copies() -> None:
    plain, ema, best = (
        member_memory(make_job(*SPLIT, "model.width=300", "train.batch_size=8", *more))
        for more in ((), ("train.ema=0.9",), ("train.keep_best=true",))
    )
    size = make_training([make_job(*SPLIT, "model.width=300")]).stack.size
    assert ema - plain == best - plain == 4 * size
