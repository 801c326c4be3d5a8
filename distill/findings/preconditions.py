"""What the runs of a claim must be: conditions on the columns of a summary, checked row by row."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from distill.report.numbers import settings, text


@dataclass(frozen=True)
class From:
    """Numbers from ``least`` on, or, without ``itself``, above it."""

    least: float
    itself: bool = True

    def __str__(self) -> str:
        return f"{'at least' if self.itself else 'above'} {self.least:g}"


Conditions = Mapping[
    str, From | tuple[object, ...]
]  # by column: a range, or the values it may have


def seeds(n: int) -> Conditions:
    """The first ``n`` seeds that took no part in writing down the tests, and a teacher of each.

    Example:
        >>> seeds(3)["seed"]
        (10, 11, 12)
    """
    return dict.fromkeys(("seed", "teacher.seed"), tuple(range(10, 10 + n)))


def adamw(lr: float, batch_size: int, schedule: str = "cosine") -> Conditions:
    """A student's training by AdamW without weight decay."""
    return {
        **{"optimizer": ("adamw",), "lr": (lr,), "batch_size": (batch_size,)},
        **{"optim.schedule": (schedule,), "optim.warmup": (0,), "weight_decay": (0,)},
        **{"optim.beta1": (0.9,), "optim.beta2": (0.999,), "optim.eps": (1e-8,)},
    }


def teacher(
    name: str,
    width: int,
    *,
    dropout: float = 0,
    max_norm: float | None = None,
    decay: float = 0,
    members: int = 1,
    **training: object,
) -> Conditions:
    """A teacher, or an ensemble, of two hidden layers, trained on jittered images by AdamW."""
    at = adamw(0, 0)
    own: Conditions = {
        **{key: at[key] for key in at if key.startswith("optim.")},
        **{"model.width": (width,), "model.depth": (2,), "model.dropout": (dropout,)},
        **{"model.input_dropout": (0,), "model.max_norm": (max_norm,), "members": (members,)},
        **{"kind": ("weights",), "weights": (None,), "average": ("logits",), "jitter": (2,)},
        **{"flip": (False,), "views": (None,), "augment": (None,), "train.ema": (None,)},
        **{"train.normalise": (False,), "train.clip_norm": (None,), "train.keep_best": (False,)},
        **{"optim.weight_decay": (decay,)},
        **{key.replace("_", ".", 1): (value,) for key, value in training.items()},
    }
    return {"teacher": (name,), **{f"teacher.{key}": value for key, value in own.items()}}


MNIST: Conditions = {
    **{"data": ("mnist",), "data.validation": (0,), "test": (True,)},
    **{"data.mean": (0.1307,), "data.std": (0.3081,), "data.flip": (False,)},
    "data.test_jitter": (0,),
}
WHOLE: Conditions = {"transfer": ("all",), "transfer_examples": (60_000,)}
ALIKE: Conditions = {  # a student without regularisation, whatever it is trained on
    **{"model": ("mlp",), "model.depth": (2,), "model.dropout": (0,)},
    **{"model.input_dropout": (0,), "model.max_norm": (None,), "weight_decay": (0,)},
    **dict.fromkeys(("augment", "views", "train.clip_norm"), (None,)),
    **dict.fromkeys(("loss.smoothing", "loss.class_weights"), (None,)),
    **{"train.normalise": (False,), "train.keep_best": (False,), "loss": ("kd",)},
}
TEACHER = teacher(  # strongly regularised, on jittered images
    "paper", 1200, dropout=0.4, max_norm=1.5, decay=0.1,
    optim_lr=0.001, optim_schedule="cosine", train_epochs=100, train_batch_size=256,
)  # fmt: skip
USUAL = adamw(0.003, 256)
PLAIN: Conditions = {**MNIST, **ALIKE, "data.jitter": (0,)}  # on images as they are
TAUGHT: Conditions = {**PLAIN, **USUAL, **TEACHER}
WIDE: Conditions = {"width": (800,), "epochs": (60,)}
HARD: Conditions = {**PLAIN, **USUAL, **WHOLE, **WIDE, "alpha": (0,)}
WEIGHED = (0.6667, 0.9, 1)  # alpha, with labels in the loss and without
SOFT: Conditions = {**TAUGHT, **WIDE, "temperature": (20,), "alpha": WEIGHED}
LARGE: Conditions = {**TAUGHT, **WHOLE, "width": (300,), "alpha": (1,)}
SHARES: Conditions = {  # of the training images
    **{**TAUGHT, **adamw(0.002, 64), "width": (300,), "transfer": ("fraction",)},
    "transfer_classes": (None,),
    **{"temperature": (20,), "data.validation": (0.04,), "train.keep_best": (True,)},
}
STEPS: Conditions = {  # of one length
    **{**PLAIN, **WHOLE, **TEACHER, "width": (300,), "epochs": (20,), "batch_size": (256,)},
    **{"optimizer": ("sgd",), "optim.momentum": (0,), "optim.nesterov": (False,)},
    **{"train.normalise": (True,), "optim.schedule": ("cosine",), "optim.warmup": (0,)},
}
POST: Conditions = {
    **{**MNIST, **ALIKE, **WHOLE, **adamw(0.001, 8192, "constant")},
    **{"width": (800,), "temperature": (20,), "data.mean": (0.5,), "data.std": (0.5,)},
    **{"data.jitter": (2,), "data.test_jitter": (2,)},  # one transform for both sets
    **teacher(
        "mlp_1200", 1200, dropout=0.5,
        optim_lr=0.001, optim_schedule="constant", train_epochs=300, train_batch_size=8192,
    ),
}  # fmt: skip
CHOICES: Mapping[str, tuple[float, ...]] = {"temperature": (2, 4, 8, 20), "alpha": (0.6667, 1)}
CHOOSING = (0, 1, 2)  # seeds
SINGLE: Conditions = {
    **{**MNIST, **ALIKE, **WHOLE, **USUAL, "width": (300,), "epochs": (200,)},
    **{"data.jitter": (2,), "temperature": CHOICES["temperature"]},
    **teacher(  # like the student
        "ensemble", 300, members=10,
        optim_lr=0.003, optim_schedule="cosine", train_epochs=200, train_batch_size=256,
    ),
}  # fmt: skip
HELD_OUT: Conditions = {  # those that choose among settings of SINGLE, which are not tested
    **{key: wanted for key, wanted in SINGLE.items() if key != "transfer_examples"},
    **{"data.validation": (0.1667,), "test": (False,)},
    **dict.fromkeys(("seed", "teacher.seed"), CHOOSING),
}


@dataclass(frozen=True)
class Checked:
    """The runs that meet the conditions, those that miss at most one, and what the first misses."""

    counted: pd.DataFrame
    near: pd.DataFrame
    missed: str


def _misses(runs: pd.DataFrame, key: str, wanted: From | tuple[object, ...]) -> Sequence[bool]:
    """Whether each run misses a condition; one on a column that is missing is missed."""
    if key not in runs:
        return [True] * len(runs)
    if isinstance(wanted, From):
        numbers = pd.to_numeric(runs[key], errors="coerce").to_numpy(dtype=float)
        held = numbers >= wanted.least if wanted.itself else numbers > wanted.least
        return [not holds for holds in held]
    allowed = {*map(text, wanted)}
    return [text(value) not in allowed for value in runs[key].tolist()]


def _words(wanted: From | tuple[object, ...]) -> str:
    return str(wanted) if isinstance(wanted, From) else " or ".join(text(v) or "-" for v in wanted)


def check(runs: pd.DataFrame, parts: Sequence[Conditions], compared: Collection[str]) -> Checked:
    """Which ``runs`` meet all conditions of one of the ``parts`` of a claim.

    A run is held against the part of which it misses the least, and least of what is ``compared``.
    """
    tables = [np.array([_misses(runs, k, w) for k, w in part.items()]) for part in parts]
    counts = np.stack([table.sum(axis=0) for table in tables])  # (parts, runs)
    own = [[key in compared for key in part] for part in parts]
    others = np.stack([table[rows].sum(axis=0) for table, rows in zip(tables, own, strict=True)])
    part = (counts + others / 100).argmin(axis=0)
    missed = np.take_along_axis(counts, part[None], axis=0)[0]
    keys = [[*parts[n]][int(tables[n][:, run].argmax())] for run, n in enumerate(part)]
    first = ""
    for place in np.flatnonzero(missed)[:1]:
        run, key = runs.iloc[place], keys[place]
        given = f"{key}={text(run[key]) or '-'}" if key in runs else f"no column {key}"
        wanted = _words(parts[part[place]][key])
        first = f"{run.get('run', 'the first run')} has {given}, wanted is {wanted}"
    # One that misses the data set, or the claim of an identity, is of something else.
    near = [
        n == 0 or (n == 1 and k not in ("data", "claim")) for n, k in zip(missed, keys, strict=True)
    ]
    return Checked(runs[missed == 0], runs[near], first)


def lacking(runs: pd.DataFrame, covers: Mapping[str, tuple[object, ...]]) -> str:
    """The first value of the design that no run has, as "temperature=40"; "" if all are there."""
    for key, values in covers.items():
        held = set(map(text, runs[key])) if key in runs else set()
        for value in values:
            if text(value) not in held:
                return f"{key}={text(value)}"
    return ""


def apart(runs: pd.DataFrame, compared: Collection[str], of: tuple[str, ...]) -> str:
    """The first setting, beside those ``compared``, in which ``runs`` differ, and its values.

    Only settings whose names begin with one ``of`` these count, if any are given.
    """
    for key in settings(runs):
        if key in compared or not key.startswith(of or ""):
            continue
        values = list(dict.fromkeys(text(value) or "-" for value in runs[key]))
        if len(values) > 1:
            return f"{key}={', '.join(values[:4])}"
    return ""
