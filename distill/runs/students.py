"""The students of jobs that train as one stack, ready to be trained.

Letters: K members.
"""

from collections.abc import Sequence

from distill.runs.job import Job
from distill.seeds import derive
from distill.training.augmentation import augmentation
from distill.training.build import fresh
from distill.training.fit import assemble
from distill.training.inputs import training_inputs
from distill.training.loop import Training
from distill.training.objective import Objective
from distill.training.transfer_set import Source, TransferSet


def students(
    jobs: Sequence[Job], teachers: Sequence[Source] = (), own: Sequence[int] = ()
) -> Training:
    """The students of K jobs, ready to be trained.

    They learn from one of ``teachers``: of several, each from its ``own``, by K numbers. Without
    any they learn from labels alone.
    """
    first = jobs[0]
    run, setting = first.run, first.setting
    transfer = TransferSet(
        training_inputs(setting, run.data.jitter, run.data.flip, run.views),
        first.data.train_labels.to(setting.device),
        first.index.to(setting.device),
        teachers,
        augmentation(run.augment, first.data.classes),
    )
    stack = fresh(
        run.model, first.data, "model", len(jobs), derive(run.seed, "student"), setting.device
    )
    objective = Objective.of(
        [job.run.loss for job in jobs],
        first.data.classes,
        setting.device,
        own,
        seen=first.seen,
        features=run.model.features,
        labels=first.data.train_labels[first.index],
        seed=run.seed,
    )
    return assemble(
        stack,
        transfer,
        objective,
        [job.run.optim for job in jobs],
        run.train,
        run.seed,
        setting,
        run.halving,
    )
