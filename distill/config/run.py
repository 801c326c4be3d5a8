"""The whole config of a run: what its sections must agree on, and the run's digest."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from distill.config.sections import (
    Checkpoint,
    Data,
    Halving,
    Loggers,
    Model,
    Optim,
    Teacher,
    Train,
    Views,
)
from distill.config.strict import Component, Seed, Strict, said, sources
from distill.system import store


class Run(Strict):
    """All of one run, and the digests by which runs are told apart."""

    data: Data
    model: Model
    teacher: Teacher
    loss: Component
    optim: Optim
    transfer: Component
    views: Views | None = None
    augment: Component | None = None
    train: Train
    seed: Seed
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "fp32", "bf16"]
    test: bool = True
    halving: Halving = Halving()
    resume: bool = True
    checkpoint: Checkpoint = Checkpoint()
    logger: Loggers = Loggers()

    @model_validator(mode="after")
    def _validated(self) -> Self:
        held_out = self.data.validation != 0
        rungs, epochs = self.halving.at(self.train.epochs), self.train.epochs
        if not self.test and not held_out:
            raise ValueError("test=false: it needs a validation split, data.validation above 0")
        if self.train.keep_best and not held_out:
            raise ValueError(
                "train.keep_best=true: it chooses on a validation split; "
                "set data.validation above 0"
            )
        if rungs and not held_out:
            raise ValueError(
                f"halving.rungs={len(rungs)}: it chooses on a validation split; "
                "set data.validation above 0"
            )
        if 0 in rungs:
            raise ValueError(
                f"halving.rungs={len(rungs)}: at most {len(rungs) - rungs.count(0)} are possible "
                f"with train.epochs={epochs} and halving.factor={self.halving.factor}"
            )
        return self

    @property
    def aside(self) -> Any:
        """The keys that say nothing of the student, as pydantic excludes them."""
        return {"resume": True, "checkpoint": True, "halving": True, "logger": True}

    @property
    def distils(self) -> bool:
        """Whether the loss learns from a teacher."""
        return not self.loss.takes.isdisjoint({"teacher_logits", "teacher_features"})

    @property
    def effective(self) -> Self:
        """The same without the features that its loss does not ask for, which decide nothing."""
        changes: dict[str, Any] = {}
        if "student_features" not in self.loss.takes and self.model.features is not None:
            changes["model"] = self.model.model_copy(update={"features": None})
        own = self.teacher.model
        unheard = "teacher_features" not in self.loss.takes
        if unheard and own is not None and own.features is not None:
            plain = own.model_copy(update={"features": None})
            changes["teacher"] = self.teacher.model_copy(update={"model": plain})
        return self.model_copy(update=changes) if changes else self

    def digest(self, content: Mapping[str, str]) -> str:
        """The SHA-256 of all that decides the student, given the digests of the data and files.

        Where things lie (data.root, teacher.cache, teacher.path, ...), the device, halving, resume,
        checkpoint and loggers do not count, nor does the teacher of a loss that does not use one.
        """
        elsewhere = self.aside | {"device": True, "teacher": True, "data": {"root"}}
        config = said(self, elsewhere)
        teacher = self.teacher.recipe if self.distils else None
        heard = None if self.teacher.model is None else self.teacher.model.features
        if teacher is not None and heard is not None:  # which decides the student, not the teacher
            teacher |= {"features": heard}
        return store.digest({"config": config, "teacher": teacher, "content": dict(content)})

    @property
    def sources(self) -> dict[str, str]:
        """The digests of the code of the user's own that decides the student."""
        own = [self.model, self.loss, self.optim, self.transfer]
        own += [part for part in (self.views, self.augment) if part is not None]
        return sources(own + self.teacher.components * self.distils)

    @property
    def shared(self) -> str:
        """A digest of all that runs must have in common to be trained as one stack.

        They may differ in the numbers of the loss, the learning rate, the weight decay, and in
        their teachers, if their soft targets come in the same way (see `distill.sweeps.plan`).
        """
        varies: Any = {
            **{key: True for key in self.aside if key != "halving"},
            "teacher": True,
            "loss": self.loss.varying,
            "optim": {"lr", "weight_decay"},
        }
        return store.digest(self.model_dump(by_alias=True, exclude=varies))
