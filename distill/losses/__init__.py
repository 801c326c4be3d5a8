"""Losses of one student: functions that name what they need.

A loss has parameters of these names as it needs them, for a batch of B examples and C classes:

- ``student_logits`` (B, C), by which it is differentiated;
- ``teacher_logits`` (B, C) of the student's teacher, for the same images in the same views; without
  it, and without the teacher's features, no teacher is needed;
- ``student_features`` and ``teacher_features``, lists of float32 tensors (B, ...): what the modules
  return that ``features`` of the model names, in that order; or what enters its last linear layer;
- ``labels`` (B,), whole numbers from 0 to C - 1, or where an augmentation mixes examples, shares of
  the classes (B, C);
- ``class_counts`` (C,), how many examples of each class the transfer set has;
- ``index`` (B,), the number of each example in the transfer set, from 0 to N - 1;
- ``progress``, the share of the training that is done, from 0 to 1;
- ``learned``, a module of the class by which it is annotated, to be called.

All its other parameters are its hyperparameters and the keys of its yaml. One that is a number is
given as a tensor without axes, since a stack of K students maps the function over K values of it
(or as a plain number, where torch cannot map the function, which is then called K times). Students
whose other hyperparameters differ are not trained together.

It returns one value for each example, (B,); or one for the batch, (), where it couples the
examples; or either of these and a dictionary of named terms of that shape, which are recorded as
``train_NAME``. The values are averaged over the batch, and the gradient is that of the average.

What is ``learned`` is a subclass of ``torch.nn.Module``. It is made once for each student, as the
seed decides, of what its constructor asks for by name: ``student_features`` and
``teacher_features``, lists of shapes without the axis of B; ``classes``; ``examples``, N; their
``labels`` (N,); and keys of the loss, in which students of one stack do not differ then. Its
parameters are float32 and are trained with the student's, by the same optimizer, schedule and
clipping; its buffers may be changed where no gradient is taken. Both are in checkpoints, but no
part of the student. Where torch's generators are drawn from, all students of a stack draw the same.

Published weights need not have the sum 1: a loss has those of its paper, and says so.

"The paper" is Hinton, Vinyals and Dean (2015), "Distilling the Knowledge in a Neural Network",
arXiv 1503.02531.
"""

from distill.losses.combined import sum  # noqa: A004 (as a config says it)
from distill.losses.contrast import crd
from distill.losses.correlation import dist
from distill.losses.curriculum import ctkd
from distill.losses.decoupled import dkd, nkd
from distill.losses.distillation import kd, standardised_kd
from distill.losses.divergences import jsd, reverse_kl
from distill.losses.labels import hard
from distill.losses.maps import at, fitnets
from distill.losses.matching import logits, mse
from distill.losses.relations import pkt, rkd, sp
from distill.losses.transformed import ttm, wttm
from distill.losses.weighted import wsld

__all__ = [
    "at",
    "crd",
    "ctkd",
    "dist",
    "dkd",
    "fitnets",
    "hard",
    "jsd",
    "kd",
    "logits",
    "mse",
    "nkd",
    "pkt",
    "reverse_kl",
    "rkd",
    "sp",
    "standardised_kd",
    "sum",
    "ttm",
    "wsld",
    "wttm",
]
