"""The whole config of a run: what its sections must agree on, and the run's digest."""

from collections.abc import Hashable, Mapping
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
from distill.config.strict import Component, Seed, Strict, deciding, said, sources
from distill.system import store
from distill.system.memo import Memo


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
    def unsaid(self) -> Any:
        """The keys that its result leaves out, as pydantic excludes them."""
        return self.aside | ({} if self.distils else {"teacher": True})

    @property
    def distils(self) -> bool:
        """Whether the loss learns from a teacher."""
        return not self.loss.takes.isdisjoint({"teacher_logits", "teacher_features"})

    @property
    def unheard(self) -> list[str]:
        """The keys of sections whose features its loss does not ask for, which decide nothing."""
        asked, own = self.loss.takes, self.teacher.model
        found = []
        if "student_features" not in asked and self.model.features is not None:
            found.append("model")
        if "teacher_features" not in asked and own is not None and own.features is not None:
            found.append("teacher")
        return found

    @property
    def effective(self) -> Self:
        """The same without the features that its loss does not ask for."""
        changes = {key: without_features(getattr(self, key)) for key in self.unheard}
        return self.model_copy(update=changes) if changes else self

    def digest(self, content: Mapping[str, str], memo: Memo | None = None) -> str:
        """The SHA-256 of all that decides the student, given the digests of the data and files.

        Where things lie (data.root, teacher.cache, teacher.path, ...), the device, halving, resume,
        checkpoint and loggers do not count, nor does the teacher of a loss that does not use one.
        """
        known = memo or Memo()
        elsewhere = {*self.aside, "device", "teacher"}
        config = {
            key: known(_said, value) if isinstance(value, Strict) else store.text(value)
            for key, value in deciding(self).items()
            if key not in elsewhere
        }
        return store.text_digest(
            store.joined(
                {
                    "config": store.joined(config),
                    "teacher": known(_taught, self.teacher) if self.distils else "null",
                    "content": store.text(dict(content)),
                }
            )
        )

    @property
    def sources(self) -> dict[str, str]:
        """The digests of the code of the user's own that decides the student."""
        own = [self.model, self.loss, self.optim, self.transfer]
        own += [part for part in (self.views, self.augment) if part is not None]
        return sources(own + self.teacher.components * self.distils)

    @property
    def code(self) -> str | None:
        """The digest of all `sources`; None where there are none."""
        return store.digest(found) if (found := self.sources) else None

    @property
    def shared(self) -> Hashable:
        """All that runs must have in common to be trained as one stack.

        They may differ in the numbers of the loss, the learning rate, the weight decay, and in
        their teachers, if their soft targets come in the same way (see `distill.sweeps.plan`).
        """
        return self.common(Memo())

    @property
    def loss_kind(self) -> str:
        """What losses have in common that are called together."""
        return _in_common("loss", self.loss)

    def common(self, memo: Memo) -> Hashable:
        """The same, found once for sections that many runs share."""
        aside = {*self.aside, "teacher"} - {"halving"}
        values = {n: getattr(self, n) for n in type(self).model_fields if n not in aside}
        return tuple(
            memo(_in_common, name, value) if isinstance(value, Strict) else value
            for name, value in values.items()
        )


def without_features(section: Model | Teacher) -> Model | Teacher:
    """A section whose model names no features."""
    if isinstance(section, Model):
        return section.model_copy(update={"features": None})
    assert section.model is not None
    return section.model_copy(update={"model": without_features(section.model)})


def _said(section: Strict) -> str:
    """What a section says of the student, as the text of a digest."""
    return store.text(said(section, {"root"} if isinstance(section, Data) else None))


def _taught(teacher: Teacher) -> str:
    """The same of what decides a teacher, and of the features of it that decide the student."""
    recipe = teacher.recipe
    if teacher.model is not None and teacher.model.features is not None:
        recipe |= {"features": teacher.model.features}
    return store.text(recipe)


def _in_common(name: str, section: Strict) -> str:
    """What the runs of a stack must have in common of a section."""
    varies = {"lr", "weight_decay"} if name == "optim" else None
    if isinstance(section, Component) and name == "loss":
        varies = section.varying
    return store.text(section.model_dump(by_alias=True, exclude=varies))
