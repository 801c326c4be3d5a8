"""Losses of one student: functions that name what they need.

A loss has parameters of these names as it needs them, for a batch of B examples and C classes:

- ``student_logits`` (B, C), by which it is differentiated;
- ``teacher_logits`` (B, C) of the student's teacher, for the same images in the same views; without
  it no teacher is needed;
- ``labels`` (B,), whole numbers from 0 to C - 1, or where an augmentation mixes examples, shares of
  the classes (B, C);
- ``class_counts`` (C,), how many examples of each class the transfer set has;
- ``progress``, the share of the training that is done, from 0 to 1.

All its other parameters are its hyperparameters and the keys of its yaml. One that is a number is
given as a tensor without axes, since a stack of K students maps the function over K values of it
(or as a plain number, where torch cannot map the function, which is then called K times). Students
whose other hyperparameters differ are not trained together.

It returns a value an example, (B,); or one for the batch, (), where it couples the examples; or one
of both and a dictionary of named terms of that shape, which are recorded as ``train_NAME``. The
values are averaged over the batch, and the gradient is that of the average.

Published weights need not have the sum 1: a loss has those of its paper, and says so.

"The paper" is Hinton, Vinyals and Dean (2015), "Distilling the Knowledge in a Neural Network",
arXiv 1503.02531.
"""

from distill.losses.combined import sum  # noqa: A004 (as a config says it)
from distill.losses.decoupled import dkd, nkd
from distill.losses.distillation import kd, standardised_kd
from distill.losses.divergences import jsd, reverse_kl
from distill.losses.labels import hard
from distill.losses.matching import logits, mse
from distill.losses.relations import dist
from distill.losses.transformed import ttm, wttm
from distill.losses.weighted import wsld

__all__ = [
    "dist",
    "dkd",
    "hard",
    "jsd",
    "kd",
    "logits",
    "mse",
    "nkd",
    "reverse_kl",
    "standardised_kd",
    "sum",
    "ttm",
    "wsld",
    "wttm",
]
