"""The columns of the summary: the one table of their types and meanings, which reading follows.

Columns are only ever added to. Each term that a loss names has one, before its weight:
`train_soft`, `train_hard`, or `train_NAME` for others. Accuracies are shares of 1, losses are means
over examples in nats, seconds are wall time. Beside those below, each key of the config that they
do not show has a column of its own name (`model.depth`, `teacher.model.width`, ...); where files
lie is left out.
"""

import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


class Status(StrEnum):
    """How a run stands: what its result says, or what is found instead of one."""

    COMPLETE = "complete"
    STOPPED = "stopped"  # by halving
    DIVERGED = "diverged"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    RUNNING = "running"
    UNREADABLE = "unreadable"  # its result cannot be read now, and may be whole


class Column(NamedTuple):
    """A column of the summary: how its values are read, and what they mean.

    One that is not there ``always`` is where a run has it.
    """

    type: str
    meaning: str
    always: bool = True


# Text, whole numbers, numbers, and truths; each may be missing. Sizes are whole numbers where all
# of them are, else numbers.
TEXT, WHOLE, NUMBER, TRUTH, SIZE = "string", "Int64", "float64", "boolean", "size"


def _figures(part: str, where: str) -> dict[str, Column]:
    """The columns of what is measured on a ``part`` of the data once a student is trained."""
    return {
        f"{part}_top5_errors": Column(
            WHOLE, f"examples {where} whose label is none of the five likeliest classes", False
        ),
        f"{part}_balanced_accuracy": Column(
            NUMBER, f"mean of the accuracies in each class {where}", False
        ),
        f"{part}_counts_by_class": Column(
            TEXT, f"examples of each class {where}, separated by spaces", False
        ),
        f"{part}_ece": Column(
            NUMBER, f"expected calibration error {where}, in 15 bins of equal width", False
        ),
    }


COLUMNS = {
    "run": Column(
        TEXT, "name of the run: what stands out in its config, and a digest of all of it"
    ),
    "status": Column(
        TEXT,
        "complete, failed, diverged, stopped, interrupted or unreadable; running while it trains",
    ),
    "reason": Column(TEXT, "why a run is not complete; the epoch in which it is"),
    "data": Column(TEXT, "data set"),
    "model": Column(TEXT, "the student's model"),
    "width": Column(SIZE, "its width, or what multiplies all of its widths"),
    "parameters": Column(WHOLE, "its number of parameters"),
    "multiply_adds": Column(
        WHOLE, "multiply-adds of its linear and convolutional layers, for one image"
    ),
    "teacher": Column(TEXT, "teacher; none for losses that do not use one"),
    "teacher_digest": Column(TEXT, "SHA-256 of everything that decides the teacher"),
    "teacher_test_errors": Column(WHOLE, "its errors on the test set"),
    "soft_targets": Column(
        TEXT, "how the teacher's logits came: cached in fp32 or fp16, online, or from a file"
    ),
    "loss": Column(TEXT, "loss"),
    "temperature": Column(NUMBER, "its temperature, if it has one"),
    "alpha": Column(NUMBER, "its alpha, if it has one: of kd the weight of its soft term"),
    "transfer": Column(TEXT, "transfer set: all, omit, only, fraction or one of your own"),
    "transfer_classes": Column(TEXT, "the classes omitted or kept, separated by spaces"),
    "transfer_fraction": Column(NUMBER, "the share of each class that is kept"),
    "transfer_examples": Column(WHOLE, "number of examples in the transfer set"),
    "seed": Column(WHOLE, "seed of the student"),
    "epochs": Column(WHOLE, "epochs it was trained for, or is to be"),
    "batch_size": Column(WHOLE, "examples in a batch"),
    "optimizer": Column(TEXT, "optimizer"),
    "lr": Column(NUMBER, "its highest learning rate"),
    "weight_decay": Column(NUMBER, "its weight decay"),
    "precision": Column(TEXT, "fp32 or bf16, as used"),
    "device": Column(TEXT, "cpu or cuda, as used"),
    "code": Column(TEXT, "SHA-256 of the code of one's own that decides the run; none for ours"),
    "train_loss": Column(NUMBER, "training loss in the last epoch, mean over its steps"),
    "train_soft": Column(NUMBER, "the soft term of it, before its weight"),
    "train_hard": Column(NUMBER, "the hard term of it, before its weight"),
    "val_errors": Column(WHOLE, "errors on the validation split, if there is one"),
    "val_accuracy": Column(NUMBER, "accuracy there"),
    "val_loss": Column(NUMBER, "cross-entropy there, at temperature 1"),
    "pareto": Column(
        TRUTH, "whether no run has fewer validation errors or parameters, and no more of both"
    ),
    "test_errors": Column(WHOLE, "errors on the test set"),
    "test_accuracy": Column(NUMBER, "accuracy there"),
    "test_loss": Column(NUMBER, "cross-entropy there, at temperature 1"),
    "val_errors_by_class": Column(
        TEXT, "errors on the validation split among each class, separated by spaces"
    ),
    "test_errors_by_class": Column(
        TEXT, "errors on the test set among each class, separated by spaces"
    ),
    "bias_shift": Column(
        NUMBER,
        "for omit and only: the shift of these classes' biases with the fewest errors on the "
        "validation split, or on all training images where there is none",
    ),
    "bias_shift_val_errors": Column(WHOLE, "errors on the validation split after that shift"),
    "bias_shift_test_errors": Column(WHOLE, "errors on the test set after that shift"),
    "bias_shift_test_errors_by_class": Column(TEXT, "the same among each class"),
    "mass_shift": Column(
        NUMBER,
        "that by which these classes have their share of the softmax there, for which it takes no "
        "label",
    ),
    "mass_shift_val_errors": Column(WHOLE, "errors on the validation split after that shift"),
    "mass_shift_test_errors": Column(WHOLE, "errors on the test set after that shift"),
    "mass_shift_test_errors_by_class": Column(TEXT, "the same among each class"),
    "oracle_shift": Column(
        NUMBER, "that with the fewest errors on the test set, chosen there, as in the paper"
    ),
    "oracle_shift_test_errors": Column(WHOLE, "errors on the test set after that shift"),
    "oracle_shift_test_errors_by_class": Column(TEXT, "the same among each class"),
    **_figures("val", "on the validation split"),
    **_figures("test", "on the test set"),
    "test_agreement": Column(NUMBER, "share of the test set that gets the teacher's class", False),
    "test_teacher_kl": Column(
        NUMBER, "KL(teacher || student) there, at temperature 1, mean in nats", False
    ),
    "test_shifted_errors": Column(
        NUMBER,
        "errors expected on the test set when it is shifted by up to data.test_jitter pixels along "
        "each axis, evenly, and rounded",
        False,
    ),
    "teacher_test_shifted_errors": Column(NUMBER, "the teacher's there", False),
    "teacher_val_errors": Column(WHOLE, "the teacher's errors on the validation split", False),
    "teacher_test_top5_errors": Column(WHOLE, "the teacher's top-5 errors on the test set", False),
    "teacher_test_balanced_accuracy": Column(NUMBER, "its balanced accuracy there", False),
    "teacher_test_ece": Column(NUMBER, "its calibration error there", False),
    "ema_val_errors": Column(
        WHOLE, "errors of the moving average of the weights on the validation split", False
    ),
    "ema_val_accuracy": Column(NUMBER, "its accuracy there", False),
    "ema_val_loss": Column(NUMBER, "its cross-entropy there", False),
    "ema_test_errors": Column(WHOLE, "its errors on the test set", False),
    "ema_test_accuracy": Column(NUMBER, "its accuracy there", False),
    "ema_test_loss": Column(NUMBER, "its cross-entropy there", False),
    "best_epoch_test_errors": Column(
        WHOLE,
        "the fewest errors on the test set after any epoch: chosen on the test set, as some "
        "publish, and so no estimate of anything",
        False,
    ),
    "best_epoch": Column(
        WHOLE, "with train.keep_best: the epoch with the fewest validation errors", False
    ),
    "best_val_errors": Column(WHOLE, "errors on the validation split after it", False),
    "best_test_errors": Column(WHOLE, "errors on the test set after it", False),
    "seconds": Column(
        NUMBER, "wall time of the student, its share of the stack's; the teacher's not included"
    ),
    "version": Column(TEXT, "version of distill"),
    "directory": Column(TEXT, "the run's directory, from that of the summary"),
}

TERM = "train_"  # and the name of a term of the loss: what a column of its own name holds


def measured(name: str) -> bool:
    """Whether a column is of the table above, or a term of the loss, and so no key of a config."""
    return name in COLUMNS or name.startswith(TERM)


# Keys of the config that the columns above show, or that name places on one machine. In the columns
# of others, those in a result's "places", stand digests of the files.
SHOWN = {
    *("model.width", "loss.temperature", "loss.alpha", "optim.lr", "optim.weight_decay", "seed"),
    *("train.epochs", "train.batch_size", "transfer.classes", "transfer.fraction"),
    *("device", "precision", "data.root", "teacher.cache", "teacher.path", "teacher.test_path"),
    "teacher.name",
}


def _fits(values: Sequence[Any], kind: str) -> bool:
    """Whether a column of these values can be of this type, each of them exactly."""
    if kind == WHOLE:
        return all(type(v) is int and abs(v) < 2**63 for v in values)
    if kind == NUMBER:
        return all(type(v) is float or (type(v) is int and abs(v) <= 2**53) for v in values)
    return all(type(v) is (bool if kind == TRUTH else str) for v in values)


def typed(name: str, values: Sequence[Any]) -> "pd.Series[Any]":
    """A column of the summary, in the type that it has, or that its values have."""
    import pandas as pd

    known = [value for value in values if value is not None]
    own = [COLUMNS[name].type.replace(SIZE, WHOLE)] if name in COLUMNS else []
    kinds = [*own, TRUTH, WHOLE, NUMBER, TEXT] if known else [*own, NUMBER]
    kind = next((k for k in kinds if _fits(known, k)), "object")
    return pd.Series(values, dtype=kind)


def parsed(name: str, cells: Sequence[str | None]) -> Sequence[Any]:
    """The values that the ``cells`` of a column in summary.csv stand for."""
    known = [cell for cell in cells if cell is not None]
    if name in COLUMNS:
        kind = COLUMNS[name].type
    else:
        forms = _FORMS.items()
        kind = next((k for k, form in forms if all(map(form.fullmatch, known))), TEXT)
    try:
        return [None if cell is None else _READ[kind](cell) for cell in cells]
    except (ValueError, KeyError):
        return cells


def _size(text: str) -> int | float:
    """A whole number if it is one."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _whole(text: str) -> int:
    """A whole number, which earlier versions wrote as 16.0 beside blanks."""
    return int(text.removesuffix(".0"))


# How text reads as each type, and how that of a key of the config looks.
_READ: dict[str, Callable[[str], Any]] = {
    TEXT: str,
    WHOLE: _whole,
    NUMBER: float,
    SIZE: _size,
    TRUTH: {"True": True, "False": False}.__getitem__,
}
_FORMS = {
    TRUTH: re.compile("True|False"),
    WHOLE: re.compile("-?(0|[1-9][0-9]*)"),
    NUMBER: re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-]?[0-9]+)?"),
}
