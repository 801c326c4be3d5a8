"""Sums of losses: written by a config group or a yaml, checked, in stacks, recorded."""

from pathlib import Path
from textwrap import dedent

import pytest
import torch
from conftest import Cli, composed, logits_of, make_job, make_training
from torch import Tensor

from distill import losses
from distill.config import ConfigError, parse
from distill.runs.summaries import read_summary
from distill.training.fit import out_of_memory
from distill.training.objective import Objective

B, C = 6, 4
LABELS = torch.arange(B) % C
BOTH = ("loss=sum", "+loss@loss.terms.soft=kd", "+loss@loss.terms.relations=dist")
WEIGHTS = ("+loss.terms.soft.weight=0.5", "+loss.terms.relations.weight=2")
GIVEN = {"teacher_logits": logits_of(1, B, C), "labels": LABELS, "progress": 1.0}


def summed(*overrides: str) -> Objective:
    return Objective.of([parse(composed("data=synthetic", *overrides)).loss], C)


def test_it_is_the_sum_of_its_losses_times_their_weights() -> None:
    z = logits_of(0, 1, B, C)
    total, terms = summed(*BOTH, *WEIGHTS)(z, GIVEN)
    v = GIVEN["teacher_logits"]
    assert isinstance(v, Tensor)
    soft, of_soft = losses.kd(z[0], v, LABELS, temperature=4.0, alpha=0.7)
    relations, of_relations = losses.dist(
        z[0], v, LABELS, temperature=4.0, beta=2.0, gamma=2.0, hard=1.0
    )
    torch.testing.assert_close(total[0], 0.5 * soft.mean() + 2 * relations)
    expected = {
        **{"soft": soft, "relations": relations},
        **{f"soft_{name}": value for name, value in of_soft.items()},
        **{f"relations_{name}": value for name, value in of_relations.items()},
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name][0], value)


def test_without_a_coupled_loss_it_has_a_value_an_example() -> None:
    loss = ("loss=sum", "+loss@loss.terms.soft=kd", "+loss@loss.terms.more=dkd")
    assert summed(*loss)(logits_of(0, 1, B, C), GIVEN)[0].shape == (1, B)


def test_it_needs_what_its_losses_need() -> None:
    hard = ("loss=sum", "+loss@loss.terms.labels=hard", "+loss@loss.terms.smoothed=label_smoothing")
    run = parse(composed("data=synthetic", *hard))
    assert not run.distils
    assert parse(composed("data=synthetic", *hard, "+loss@loss.terms.d=dkd")).loss.takes == {
        *("student_logits", "teacher_logits", "labels", "progress", "class_counts")
    }


def test_a_loss_of_weight_0_spoils_nothing() -> None:
    z = logits_of(0, 1, B, C)
    z[0, 0] = torch.tensor([1e200, 0, 0, -1e200], dtype=torch.float64)
    z.requires_grad_()
    loss = ("loss=sum", "+loss@loss.terms.labels=hard", "+loss@loss.terms.near=mse")
    total, _ = summed(*loss, "+loss.terms.near.weight=0")(z, GIVEN)
    expected = losses.hard(z[0], LABELS)
    torch.testing.assert_close(total[0], expected)
    found, plain = (torch.autograd.grad(x.sum(), z)[0] for x in (total, expected))
    torch.testing.assert_close(found, plain)


@pytest.mark.table
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_a_stack_it_is_that_alone(precision: str) -> None:
    """Weights and the numbers of its losses vary within a stack; other losses split it."""
    own = [
        ("loss.terms.soft.temperature=2", "+loss.terms.soft.weight=0.1"),
        ("loss.terms.soft.temperature=9", "+loss.terms.relations.weight=3"),
        ("loss.terms.relations.gamma=0.5",),
    ]
    jobs = [make_job(*BOTH, *changes, f"precision={precision}") for changes in own]
    assert len({job.run.shared for job in jobs}) == 1
    assert len({job.name for job in jobs}) == 3
    assert make_job("loss=sum", BOTH[1]).run.shared != jobs[0].run.shared
    together = make_training(jobs)
    assert together.objective.mapped
    assert not together.run().diverged
    for k, job in enumerate(jobs):
        alone = make_training([job])
        alone.run()
        tolerance = 1e-5 if precision == "fp32" else 0.02
        for key, value in alone.stack.state(0).items():
            torch.testing.assert_close(
                together.stack.state(k)[key], value, rtol=tolerance, atol=tolerance
            )


def test_a_weight_of_1_is_no_other_run_and_a_name_has_an_end() -> None:
    assert make_job(*BOTH).digest == make_job(*BOTH, "+loss.terms.soft.weight=1.0").digest
    assert (
        "-sum-soft.alpha0.7-soft.temperature4-soft.weight1-relations.beta2-" in make_job(*BOTH).name
    )
    many = [f"+loss@loss.terms.number_{n}=dkd" for n in range(9)]
    assert len(make_job("loss=sum", *many).name) < 255


LINES = {
    (): "loss.terms={}: name at least one loss, as by +loss@loss.terms.soft=kd",
    ("+loss@loss.terms.soft=kd", "loss.terms.soft.temperature=-1"): (
        "loss.terms.soft.temperature=-1: Input should be greater than 0"
    ),
    ("+loss@loss.terms.soft=kd", "+loss.terms.soft.weight=-1"): (
        "loss.terms.soft.weight=-1: Input should be greater than or equal to 0"
    ),
    ("+loss@loss.terms.soft=kd", "+loss.terms.soft.beta=1"): "loss.terms.soft.beta=1: ",
    ("+loss@loss.terms.copy=kd",): "loss.terms.copy: no loss can have this name; choose another",
    ("+loss@loss.terms.more=sum",): (
        "loss.terms.more: a sum within a sum; write its terms beside this one"
    ),
    ("+loss.terms.a._target_=mine.own",): "loss.terms.a._target_=mine.own: allowed are ",
    ("+loss.terms.a=3",): "loss.terms.a._target_=None: allowed are ",
    ("+loss@loss.terms.soft=kd", "+loss@loss.terms.soft_hard=hard"): (
        "loss=sum: it fails on random logits: ValueError: terms.soft_hard: soft_hard names two "
        "terms; rename one of the losses"
    ),
    ("+loss@loss.terms.a=kd", "loss.terms.a.class_weights=[1,2]"): (
        "loss.terms.a.class_weights=[1.0, 2.0]: these are 2 numbers, and the data have 4 classes"
    ),
}


@pytest.mark.parametrize("overrides", LINES)
def test_what_cannot_be_summed_is_one_line_that_names_its_key(overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        make_job("loss=sum", *overrides)
    assert str(error.value).startswith(LINES[overrides])
    assert "\n" not in str(error.value)


MINE = """
    from torch import Tensor


    def own(student_logits: Tensor, labels: Tensor, power: float = 2.0) -> Tensor:
        own = student_logits.softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return (1 - own) ** power
"""
YAML = """
    defaults:
      - kd@terms.soft
    _target_: distill.losses.sum
    terms:
      soft: {weight: 0.9, alpha: 1.0}
      mine: {_target_: mine.own, weight: 0.1, power: 3.0}
"""


def test_a_yaml_of_ones_own_with_a_loss_of_ones_own(cli: Cli, home: Path) -> None:
    (home / "mine.py").write_text(dedent(MINE))
    (home / "conf" / "loss").mkdir(parents=True)
    (home / "conf" / "loss" / "both.yaml").write_text(dedent(YAML))
    small = ("data=synthetic", "model.width=8", "teacher.model.width=8", "teacher.train.epochs=1")
    command = (*small, "train.epochs=1", "loss=both", "loss.terms.mine.power=1,2")
    assert "loss.terms.mine._target_=mine.own: allowed are" in cli("-m", *command).err
    done = cli("--module", "mine", "-m", *command, "hydra.sweep.dir=sums")
    assert done.code == 0, done.err
    frame = read_summary("sums/summary.csv")
    assert frame["loss"].tolist() == ["sum"] * 2
    assert sorted(frame["loss.terms.mine.power"]) == [1, 2]
    assert frame["code"].notna().all()
    total = 0.9 * frame["train_soft"] + 0.1 * frame["train_mine"]
    assert frame["train_loss"].tolist() == pytest.approx(total.tolist(), rel=1e-5)
    assert frame["train_soft_soft"].tolist() == pytest.approx(frame["train_soft"].tolist())


def test_a_term_that_is_short_of_memory_is_told_as_such() -> None:
    def greedy(student_logits: Tensor) -> Tensor:
        return student_logits.new_empty(2**60).sum()

    with pytest.raises(ValueError, match=r"^terms\.a") as caught:
        losses.sum({"a": (greedy, frozenset())}, torch.zeros(1, 2), **{"terms.a.weight": 1.0})
    assert out_of_memory(caught.value)
