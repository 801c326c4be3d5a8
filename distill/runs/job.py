"""Jobs: runs whose data and files were loaded and checked, with nothing written yet.

Letters: N training examples, M of them in the transfer set.
"""

import logging
import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from distill.config import Component, ConfigError, Data, Run, Teacher
from distill.data.dataset import Dataset
from distill.runs.loggers import check_logger
from distill.seeds import generator
from distill.system.memo import Memo
from distill.teachers.find import teacher_cache
from distill.teachers.given import check_targets
from distill.teachers.targets import Way, way
from distill.teachers.weights import check_weights
from distill.teachers.weights import content as teacher_content
from distill.training.augmentation import mixes
from distill.training.build import (
    check_batches,
    check_class_weights,
    check_loss,
    check_losses,
    check_views,
    feature_shapes,
    parameters,
)
from distill.training.inputs import Setting, device_of, dtype_of, held_out, read
from distill.training.objective import UNSEEN, Seen

log = logging.getLogger(__name__)

# Part of every run's digest: raise it when the same configuration would make another student.
SCHEMA = 2
LONGEST = 170  # characters of a loss's numbers in a run's name; file systems take 255 bytes
TOGETHER = 256  # losses that are tried at once
WHOLE = re.compile(r"-?[0-9]+")


@lru_cache(maxsize=8)  # once a process, whatever the number of jobs
def _tell(key: str, weights: tuple[float, ...], names: tuple[str, ...]) -> None:
    """Warn of whose each weight is."""
    pairs = ", ".join(f"{name} {weight:g}" for name, weight in zip(names, weights, strict=True))
    log.warning("%s, in the order of the classes: %s", key, pairs)


class Checked:
    """The jobs that were checked before, and what was found of them, which others share.

    Jobs of a sweep consist of the same sections, most of them. What does not depend on the numbers
    of a loss is checked once for each combination of the others, and a loss once for each of these.
    """

    def __init__(self) -> None:
        self.memo = Memo()
        self.alike: dict[Hashable, Job] = {}
        self.losses: dict[Hashable, Component] = {}
        self._untried: dict[Hashable, tuple[Job, list[Component]]] = {}

    def later(self, job: "Job") -> None:
        """Let the loss of a job be tried by `finish`, together with others of its kind."""
        loss = job.run.loss
        kind = (job.run.loss_kind, job.data.classes, job.mixed, job.seen)
        self._untried.setdefault(kind, (job, []))[1].append(loss)

    def finish(self) -> None:
        """Try the losses that are left.

        Raises:
            ConfigError: the training loop cannot use one of them.
        """
        for job, losses in self._untried.values():
            for n in range(0, len(losses), TOGETHER):
                some = losses[n : n + TOGETHER]
                check_losses(some, job.data.classes, mixed=job.mixed, seen=job.seen)
        self._untried.clear()


class Job:
    """A run that was checked: nothing but training is left to do.

    Args:
        run: what was composed.
        before: the jobs of the same sweep that were checked before; then nothing may be trained
            until its `finish` was called.

    Raises:
        ConfigError: a file is missing or damaged, or a value does not fit the data or the machine.
    """

    def __init__(self, run: Run, before: Checked | None = None) -> None:
        known = before or Checked()
        self.run, self._memo = run, known.memo
        self.setting: Setting
        self.data: Dataset
        self.mixed = False  # whether its augmentation mixes labels
        kind = self._kind()
        if (like := known.alike.get(kind)) is not None:
            self.setting, self.data, self.mixed = like.setting, like.data, like.mixed
            self.seen, self.way = like.seen, like.way
            if (kind, id(run.loss)) not in known.losses:
                self._check_names()
                check_class_weights(run.loss, self.data.classes)
                if before is None or run.loss.learned is not None:
                    self._try_loss()
                else:
                    before.later(self)
        else:
            device = device_of(run)
            self.setting = Setting(run.data, device, dtype_of(run, device), run.views)
            self.data = read(run.data)
            self._check()
            known.alike[kind] = self
        known.losses[kind, id(run.loss)] = run.loss

    def _kind(self) -> Hashable:
        """What the checks depend on, beside what the loss is given; sections by their identity."""
        run = self.run
        parts = (run.data, run.model, run.teacher, run.transfer, run.views, run.augment, run.train)
        own = (type(run.loss), run.device, run.precision, _drawn(run))
        return *map(id, (*parts, run.logger)), *own

    def _check(self) -> None:
        run, last = self.run, self.data.classes - 1
        for name, logger in run.logger.each.items():
            check_logger(name, logger)
        self._check_names()
        classes = run.transfer.options.get("classes")
        if isinstance(classes, list) and any(label > last for label in classes):
            allowed = f"{run.data.name} has the classes 0 to {last}"
            raise ConfigError(f"transfer.classes={run.transfer.options['classes']}: {allowed}")
        self._check_reading()
        self._check_views()
        left = self.data.train_labels[~held_out(run.data)].bincount(minlength=last + 1)
        if not left.all():
            raise ConfigError(
                f"data.validation={run.data.validation}: it leaves no training example of class "
                f"{int((left == 0).nonzero()[0])} of {run.data.name}"
            )
        if len(self.index) == 0:
            raise ConfigError(f"transfer={run.transfer.name}: it leaves no training example")
        self._check_augmentation()
        self._try_loss()
        parameters(run.model, run.data, "model")
        check_batches(run.model, run.data, "model", len(self.index), run.train.batch_size)
        if run.distils:
            self._check_teacher()

    def _check_names(self) -> None:
        """See that keys which count the classes mean what whoever wrote them means.

        Where labels are whole numbers, but not those from 0, each class has two numbers; where they
        are words, their order decides which weight is whose.
        """
        names, data = self.data.names, self.run.data.name
        numbers = [(n, int(name)) for n, name in enumerate(names) if WHOLE.fullmatch(name)]
        labels = [label for _, label in numbers]
        classes = self.run.transfer.options.get("classes")
        every = self.run.loss.options.items()
        given = {key: v for key, v in every if key.rpartition(".")[2] == "class_weights"}
        lists = {key: value for key, value in given.items() if isinstance(value, list)}
        if any(n != label for n, label in numbers):
            asked = classes if isinstance(classes, list) else []
            shown = [pair for pair in numbers if pair[0] in asked] or numbers
            some = ", ".join(f"class {n} of {data} is named {label}" for n, label in shown[:3])
            told = f"classes count from 0 in the order of their names, and so {some}"
            told += ", ..." if len(shown) > 3 else ""
            told += f"; name them from 0 to {len(names) - 1} with as many digits each, or by words"
            if isinstance(classes, list):
                raise ConfigError(f"transfer.classes={classes}: {told}")
            for key, weights in lists.items() if labels != sorted(labels) else ():
                raise ConfigError(f"loss.{key}={weights}: {told}")
        for key, weights in lists.items():
            if len(numbers) < len(names) == len(weights):
                _tell(f"loss.{key}", tuple(weights), names)

    def _check_teacher(self) -> None:
        run, teacher = self.run, self.run.teacher
        if teacher.model is not None:
            parameters(teacher.model, run.data, "teacher.model")
        if self.way is None or self.way.file:
            return
        assert teacher.model is not None
        if teacher.train is not None and teacher.path is None:
            check_batches(
                teacher.model,
                run.data,
                "teacher.model",
                int((~held_out(run.data)).sum()),
                teacher.train.batch_size,
            )
        if teacher.path is not None:
            for one in teacher.apart():
                check_weights(run.data, one)
        cache = teacher_cache(run.data, teacher)
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"teacher.cache={cache}: no folder can be made ({error})") from error

    def _check_augmentation(self) -> None:
        """The training loop can use the augmentations; see whether the students' mixes labels."""
        run = self.run
        for key, component in {
            "augment": run.augment,
            "teacher.augment": run.teacher.augment if run.distils else None,
        }.items():
            if component is None:
                continue
            try:
                mixing = mixes(component, self.data)
            except ValueError as error:
                raise ConfigError(f"{key}={component.name}: {error}") from error
            self.mixed |= mixing and key == "augment"

    def _try_loss(self) -> None:
        """The training loop can use the loss."""
        run = self.run
        counts: list[int] = []
        if run.loss.learned is not None:
            own = self.data.train_labels[self.index]
            counts = own.bincount(minlength=self.data.classes).tolist()
        seen = self.seen
        check_loss(run.loss, self.data.classes, mixed=self.mixed, seen=seen, counts=tuple(counts))

    def _check_reading(self) -> None:
        """As many means and deviations as there are channels or features."""
        what = "feature" if self.data.features else "channel"
        count = self.data.shape[0]
        for key in ("mean", "std"):
            given = getattr(self.run.data, key)
            if isinstance(given, list) and len(given) not in (1, count):
                raise ConfigError(
                    f"data.{key}={given}: these are {len(given)} numbers; {self.run.data.name} has "
                    f"{count} {what}s: give one number, one a {what}, or null for those of the "
                    "training set"
                )

    def _check_views(self) -> None:
        """A shift by all of an image leaves nothing of it; a row of numbers is no image."""
        data = self.run.data
        trained = self.run.distils and self.run.teacher.model is not None
        teachers = self.run.teacher.views if trained and self.run.teacher.path is None else None
        for where, views in {"views": self.run.views, "teacher.views": teachers}.items():
            if views is not None:
                check_views(views, data, where)
        if self.data.features:
            given = (key for key in ("jitter", "flip", "test_jitter") if getattr(data, key))
            if (key := next(given, None)) is not None:
                raise ConfigError(
                    f"data.{key}={getattr(data, key)}: {data.name} has rows of features, which "
                    f"are no images; set data.{key}={'false' if key == 'flip' else '0'}"
                )
            return  # nor is a teacher's jitter, which its yaml may say, used
        jitters = {"data.jitter": data.jitter, "data.test_jitter": data.test_jitter}
        if trained and self.run.teacher.path is None:
            jitters["teacher.jitter"] = self.run.teacher.jitter or 0
        height, width = self.data.shape[1:]
        for key, jitter in jitters.items():
            if jitter >= (side := min(height, width)):
                raise ConfigError(
                    f"{key}={jitter}: nothing is left of the {height} x {width} pixels of "
                    f"{self.run.data.name} when they are shifted so far; "
                    f"set {key}={'0' if side == 1 else f'{side - 1} or less'}"
                )

    @cached_property
    def way(self) -> Way | None:
        """How the soft targets of its teacher come; None where it learns from labels alone."""
        run, augmented = self.run, self.run.augment is not None
        if not run.distils:
            return None
        own = way(
            self.setting,
            run.teacher,
            run.train.epochs,
            augmented=augmented,
            features=self.seen.teacher,
        )
        if own.file:
            return replace(own, bytes=check_targets(run.data, run.teacher, own.views))
        return own

    @cached_property
    def seen(self) -> Seen:
        """The shapes of the features that its loss asks for.

        Raises:
            ConfigError: a model has none of these names, or other numbers of them.
        """
        run, found = self.run, UNSEEN
        if "student_features" in run.loss.takes:
            parameters(run.model, run.data, "model")
            found = found._replace(student=feature_shapes(run.model, run.data, "model"))
        if "teacher_features" in run.loss.takes:
            assert run.teacher.model is not None
            parameters(run.teacher.model, run.data, "teacher.model")
            own = feature_shapes(run.teacher.model, run.data, "teacher.model")
            found = found._replace(teacher=own)
        if all(found) and len(found.student) != len(found.teacher):
            raise ConfigError(
                f"model.features: these are of {len(found.student)} modules, and "
                f"teacher.model.features of {len(found.teacher)}; name as many of both"
            )
        return found

    @property
    def index(self) -> Tensor:
        """Indices (M,) of the training examples in the transfer set, on the CPU."""
        return _index(self.run.transfer, self.run.data, _drawn(self.run))

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of all that decides the student."""
        content = {"data": self.data.digest, "schema": str(SCHEMA), **self.run.sources}
        if self.run.distils and self.run.teacher.path is not None:
            content["teacher"] = self._memo(teacher_content, self.run.teacher)
        return self.run.digest(content, self._memo)

    @cached_property
    def name(self) -> str:
        """A name that a person can read, the same for the same config, safe as a file's name."""
        run = self.run
        width = run.model.options.get("width")
        if isinstance(width, float):  # what multiplies all widths
            width = "" if width == 1 else f"w{width:g}"
        width = width if isinstance(width, int | str) else ""
        numbers = {key: run.loss.options[key] for key in run.loss.numbers}
        loss = "".join(f"-{key.removeprefix('terms.')}{v:g}" for key, v in numbers.items())
        loss = loss if len(loss) <= LONGEST else ""  # the digest holds them all
        student = f"{run.data.name}-{run.model.name}{width}-{run.loss.name}{loss}-seed{run.seed}"
        return f"{student}-{self.digest[:8]}"


def _drawn(run: Run) -> int:
    """The seed of a run, if its transfer set is drawn by it; else 0."""
    return run.seed if "generator" in run.transfer.takes else 0


@lru_cache(maxsize=4)  # a job does not hold its own: 10,000 jobs would hold 400 MB
def _index(subset: Component, data: Data, seed: int) -> Tensor:
    labels = read(data).train_labels
    mask = subset(labels=labels.clone(), generator=generator(seed, "transfer"))
    if not isinstance(mask, Tensor) or (mask.dtype, mask.shape) != (torch.bool, labels.shape):
        kind = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask)
        wanted = f"wanted is torch.bool ({len(labels)},), whether each example is in it"
        raise ConfigError(f"transfer={subset.name}: it returns {kind}; {wanted}")
    return (mask & ~held_out(data)).nonzero().flatten()


def by_teacher(jobs: Sequence[Job]) -> dict[Teacher | None, list[int]]:
    """The numbers of the jobs that learn from each teacher; of those from labels alone, at None."""
    found: dict[Teacher | None, list[int]] = {}
    for number, job in enumerate(jobs):
        found.setdefault(job.run.teacher if job.run.distils else None, []).append(number)
    return found
