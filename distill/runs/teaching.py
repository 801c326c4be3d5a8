"""The teachers of jobs that train as one stack.

Letters: K jobs, N examples, V views of each, C classes.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.runs import results
from distill.runs.job import Job, by_teacher
from distill.system import store
from distill.teachers.cache import Teacher
from distill.teachers.find import centre_targets, taught
from distill.teachers.gallery import gallery
from distill.teachers.given import Targets
from distill.training.fit import RunError, out_of_memory
from distill.training.inputs import training_inputs
from distill.training.transfer_set import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taught:
    """The teacher of a job, if it has one, and its facts under the summary's names."""

    teacher: Teacher | Targets | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class TeacherError(RunError):
    """One of several teachers cannot be had, by its cause; its students are those ``members``."""

    def __init__(self, members: Sequence[int]) -> None:
        super().__init__("the teacher failed")
        self.members = frozenset(members)


def taught_by(
    jobs: Sequence[Job], directories: Sequence[Path]
) -> tuple[list[Source], list[int], list[Taught]]:
    """What the students of K jobs hear, of each teacher once; each one's number; and its teacher.

    Of one teacher there are no numbers.

    What a teacher says of examples is shown in the directory of its first job.

    Raises:
        TeacherError: one of several teachers fails.
        ConfigError, RunError: the only one does.
    """
    each = [Taught() for _ in jobs]
    teachers: list[Source] = []
    own = [0] * len(jobs)
    for config, members in by_teacher(jobs).items():
        first = members[0]
        if config is None or (way := jobs[first].way) is None:
            continue
        try:
            every = jobs[0].run.checkpoint.every
            found, source, way = taught(jobs[first].setting, config, every, way)
        except Exception as error:
            if len(members) == len(jobs) or out_of_memory(error):
                raise
            raise TeacherError(members) from error
        _show(jobs[first], found, source, directories[first])
        told = {"teacher_digest": found.digest, "teacher_test_errors": found.test_errors}
        if isinstance(found, Teacher) and found.val_errors is not None:
            told["teacher_val_errors"] = found.val_errors
        for k in members:
            each[k] = Taught(found, {**told, "soft_targets": way.name})
            own[k] = len(teachers)
        teachers.append(source)
    return teachers, own if len(teachers) > 1 else [], each


def _show(job: Job, found: Teacher | Targets, soft: Source, folder: Path) -> None:
    """Write what the teacher says of some training examples into ``folder``, if that can be."""
    path = folder / f"{results.DIGITS}-{found.digest[:8]}.json"
    images, labels = job.data.train_inputs, job.data.train_labels
    if job.data.features:
        return
    run = job.run
    kept = soft[0] if isinstance(soft, tuple) else soft
    if isinstance(kept, Tensor) and run.views is None:
        reading = training_inputs(job.setting, run.data.jitter, run.data.flip)
        centre = kept[:, reading.centre].float().cpu()
    elif isinstance(found, Teacher):  # a list of views may be without the images themselves
        centre = centre_targets(job.setting, run.teacher, run.checkpoint.every).cpu()
    elif found.logits.ndim == 2:
        centre = found.logits
    else:
        return
    try:
        store.write_text(path, json.dumps(gallery(images, labels, centre)) + "\n")
    except OSError as error:
        log.warning("no digits could be written: %s", store.told(error) or error)
