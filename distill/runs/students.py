"""The students of jobs that train as one stack, ready to be trained.

Letters: N examples, V views of each, C classes, K members.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from distill.runs.job import Job
from distill.seeds import derive
from distill.training.augmentation import augmentation
from distill.training.build import fresh
from distill.training.fit import assemble
from distill.training.inputs import training_inputs
from distill.training.loop import Training, TransferSet
from distill.training.objective import Objective


def students(
    jobs: Sequence[Job],
    soft: Tensor | None,
    teacher: Callable[[Tensor], Tensor] | None = None,
) -> Training:
    """The students of K jobs, ready to be trained.

    They learn from ``soft`` targets (N, V, C), from those that a ``teacher`` makes (B, C) for each
    batch, or from labels alone.
    """
    first = jobs[0]
    run, setting = first.run, first.setting
    transfer = TransferSet(
        training_inputs(setting, run.data.jitter, run.data.flip),
        first.data.train_labels.to(setting.device),
        first.index.to(setting.device),
        soft,
        teacher,
        augmentation(run.augment, first.data.classes),
    )
    stack = fresh(
        run.model, first.data, "model", len(jobs), derive(run.seed, "student"), setting.device
    )
    return assemble(
        stack,
        transfer,
        Objective.of([job.run.loss for job in jobs], first.data.classes, setting.device),
        [job.run.optim for job in jobs],
        run.train,
        run.seed,
        setting,
        run.halving,
    )
