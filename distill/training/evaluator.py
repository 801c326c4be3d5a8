"""The evaluation of stacks on the validation split and the test set of a setting.

Letters: K members, C classes.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from distill.data.views import Inputs, shares
from distill.training.evaluate import (
    EXAMPLES,
    batches,
    chosen,
    errors_by_class,
    evaluate,
    logits,
    shifted,
    shifts_of,
)
from distill.training.figures import figures
from distill.training.inputs import Setting, held_out, normalised, read, training_inputs
from distill.training.loop import Values
from distill.training.stack import Stack


class Evaluator:
    """Evaluates stacks on the validation split, if there is one, and with ``test`` on that set."""

    def __init__(self, setting: Setting, test: bool) -> None:
        data, held = read(setting.data), held_out(setting.data)
        self.setting = setting
        parts = {
            "val": (data.train_inputs[held], data.train_labels[held]),
            "test": (data.test_inputs, data.test_labels),
        }
        self.parts = {
            name: (
                normalised(setting.data, images.to(setting.device)),
                labels.to(setting.device),
            )
            for name, (images, labels) in parts.items()
            if len(labels) and (test or name != "test")
        }

    def figures(self, stack: Stack, teacher: Tensor | None) -> Values:
        """The `figures` of each member (K, ...) on each part, and some of the teacher's own.

        Args:
            stack: K members.
            teacher: logits (N, C) of the test images, if a teacher has any.
        """
        values: Values = {}
        for part, (images, labels) in self.parts.items():
            z = batches(stack, images, images.centre, torch.float32)
            found = figures(z, labels, teacher if part == "test" else None)
            values |= {f"{part}_{name}": value for name, value in found.items()}
        if teacher is not None:
            labels = self.parts["test"][1]
            parts = torch.split(torch.arange(len(labels), device=labels.device), EXAMPLES)
            own = figures(((i, teacher[i].unsqueeze(0)) for i in parts), labels)
            for name in own.keys() & {"top5_errors", "balanced_accuracy", "ece"}:
                values[f"teacher_test_{name}"] = own[name].expand(stack.members)
        return values

    def wrong(self, stack: Stack) -> Tensor:
        """Which test images (K, N) each member gets wrong."""
        images, labels = self.parts["test"]
        return chosen(stack, images, images.centre) != labels

    def shifted_errors(self, choose: Callable[[Inputs, int], Tensor]) -> Tensor:
        """Errors (...) expected on the test set when it is shifted by up to ``data.test_jitter``.

        They are the sum over all shifts of the errors in each, times how often it comes (`shares`).

        Args:
            choose: the classes (..., N) that are chosen in one view of images.
        """
        (images, labels), jitter = self.parts["test"], self.setting.data.test_jitter
        views = normalised(self.setting.data, images.raw, jitter)
        parts = [
            share * (choose(views, view) != labels).sum(-1).double()
            for view, share in enumerate(shares(jitter))
        ]
        return torch.stack(parts).sum(0)

    def bias_shifts(self, stack: Stack, classes: Sequence[int]) -> Values:
        """Shifts (K,) of the biases of ``classes``, and the errors after them.

        ``bias_shift`` is that with the fewest errors on the validation split, or, where there is
        none, on all training images, those that the student never saw among them. ``mass_shift``
        gives ``classes`` their share of the softmax there, which takes no label but how many there
        are. ``oracle_shift`` has the fewest errors on the test set itself, as in the paper
        (section 3).
        """
        found = shifts_of(stack, *(self.parts.get("val") or self._training()), classes)
        shifts = dict(zip(("bias", "mass"), found, strict=True))
        if "test" in self.parts:
            shifts["oracle"], _ = shifts_of(stack, *self.parts["test"], classes)
        values: Values = {}
        for part, (images, labels) in self.parts.items():
            z = logits(stack, images, images.centre, torch.float32)
            for name, shift in shifts.items():
                values[f"{name}_shift"] = shift
                errors = errors_by_class(shifted(z, shift, classes), labels)
                values[f"{name}_shift_{part}_errors"] = errors.sum(1)
                values[f"{name}_shift_{part}_errors_by_class"] = errors
        return values

    def _training(self) -> tuple[Inputs, Tensor]:
        """All training images, whether in the transfer set or not."""
        labels = read(self.setting.data).train_labels.to(self.setting.device)
        return training_inputs(self.setting, 0, False), labels

    def __call__(self, stack: Stack) -> Values:
        """Errors, accuracy and loss (K,) of each member on each part."""
        values: Values = {}
        for name, (images, labels) in self.parts.items():
            errors, loss = evaluate(stack, images, labels)
            total = errors.sum(1)
            accuracy = 1 - total.double() / len(labels)
            values |= {f"{name}_errors": total, f"{name}_accuracy": accuracy, f"{name}_loss": loss}
        return values


evaluator = lru_cache(maxsize=2)(Evaluator)
