"""The sections of a run's config: their keys, and what values those may have."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    model_validator,
)

from distill.config.strict import (
    Component,
    Inner,
    Jitter,
    Place,
    Places,
    Seed,
    Share,
    Strict,
    in_float32,
    said,
    sources,
)
from distill.system import store

GIVEN = "given"  # the validation split that a data set itself gives


class Data(Component):
    """A data set and how its inputs are read.

    A share, ``validation``, of each class is held out, or the data set's own split if it is
    "given". ``mean`` and ``std`` are of pixels from 0 to 1, or of features: one number, or one for
    each channel or feature; those that are not given are those of the training inputs. In training,
    images are translated by up to ``jitter`` pixels, and mirrored or not if ``flip``. Students and
    teachers are tested on all shifts of the test images by up to ``test_jitter`` pixels, too.
    """

    root: Place | None = None
    jitter: Jitter = 0
    flip: bool = False
    test_jitter: Jitter = 0
    validation: Share | Literal["given"] = 0.0
    mean: float | list[float] | None = None
    std: PositiveFloat | list[PositiveFloat] | None = None

    @property
    def files(self) -> list[str]:
        """The files and folders that it may read."""
        return [value for value in self.options.values() if isinstance(value, str)]

    @model_validator(mode="after")
    def _scaled(self) -> Self:
        for mean, std in self._pairs():
            alone = in_float32(mean) and in_float32(std)  # or `parse` names them
            if alone and not (in_float32(1 / (255 * std)) and in_float32(mean / std)):
                raise ValueError(
                    f"mean={mean:g} and std={std:g}: 1 / (255 std) and mean / std must be "
                    "numbers that float32 holds"
                )
        return self

    def _pairs(self) -> Iterator[tuple[float, float]]:
        """Each mean that is given with its deviation."""
        means = self.mean if isinstance(self.mean, list) else [self.mean]
        stds = self.std if isinstance(self.std, list) else [self.std]
        if len(means) > 1 and len(stds) > 1 and len(means) != len(stds):
            raise ValueError(f"mean has {len(means)} numbers and std {len(stds)}; give as many")
        if not means or not stds:
            raise ValueError("mean and std: an empty list; give a number, or one for each channel")
        for n in range(max(len(means), len(stds))):
            mean, std = means[n % len(means)], stds[n % len(stds)]
            if mean is not None and std is not None:
                yield mean, std


class Model(Component):
    """A model, and what a loss that asks for features sees of it.

    ``features`` are names of its modules, whose outputs these are; null: what enters its last
    linear layer.
    """

    features: Annotated[list[str], Field(min_length=1)] | None = None


class Views(Component):
    """A finite list of ``count`` views, each of which is made of each that jitter and flip make."""

    count: Annotated[int, Field(gt=0, le=10**4)]

    @property
    def digest(self) -> str:
        """The SHA-256 of all that decides the list, its code among that."""
        return store.digest({"views": said(self), "sources": sources([self])})


class Optim(Component):
    """An optimizer and the schedule of its learning rate.

    ``warmup`` is a share of the steps, as the ``milestones`` are, at each of which the multistep
    schedule multiplies the rate by ``gamma``.
    """

    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    schedule: Literal["constant", "linear", "cosine", "multistep"]
    warmup: Share
    milestones: list[Inner] = Field([0.625, 0.75, 0.875], min_length=1)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1

    @model_validator(mode="after")
    def _stepped(self) -> Self:
        rising = [self.warmup, *self.milestones]
        if self.schedule != "multistep":
            for name in ("milestones", "gamma"):
                if (value := getattr(self, name)) != Optim.model_fields[name].get_default():
                    raise ValueError(
                        f"{name}={value}: schedule={self.schedule} has none; set schedule=multistep"
                    )
        elif any(a >= b for a, b in pairwise(rising)):
            raise ValueError(
                f"milestones={self.milestones}: they must rise, from above warmup={self.warmup:g}"
            )
        return self


class Train(Strict):
    """How long, in what batches, and which weights are kept.

    A member's gradient is scaled to have the global norm 1, with ``normalise``, so that a learning
    rate of plain SGD is the length of a step, and at most ``clip_norm``. ``ema`` is the
    decay of a moving average of its weights. With ``keep_best`` the weights of the epoch with the
    fewest validation errors are kept, too.
    """

    epochs: Annotated[int, Field(gt=0, le=10**6)]
    batch_size: Annotated[int, Field(gt=0, lt=2**31)]
    normalise: bool = False
    clip_norm: PositiveFloat | None = None
    ema: Inner | None = None
    keep_best: bool = False


class Teacher(Strict):
    """A teacher that is trained, or read from ``path``; without a ``model`` there is none.

    Of several ``members`` each is a teacher of its own seed, and of several paths each is one; all
    together are an ensemble, which takes the ``average`` of logits, or of probabilities, with
    ``weights`` of which only the ratios count (null: all alike). What ``path`` holds is of a
    ``kind``: weights of the model; or, instead of one, what somebody else's teacher said of the
    training examples, and in ``test_path`` of the test set.
    """

    name: str
    path: Places | None
    cache: Place | None
    kind: Literal["weights", "logits", "probabilities"] = "weights"
    test_path: Place | None = None
    members: Annotated[int, Field(gt=0, le=1000)] = 1
    weights: list[PositiveFloat] | None = None
    average: Literal["logits", "probabilities"] = "logits"
    jitter: Jitter | None = None
    flip: bool = False
    targets: Literal["auto", "cached", "online"] = "auto"
    seed: Seed | None = None
    model: Model | None = None
    optim: Optim | None = None
    train: Train | None = None
    views: Views | None = None
    augment: Component | None = None

    @model_validator(mode="before")
    @classmethod
    def _trained(cls, values: Any) -> Any:
        """What an experiment says of the training of one that is not trained falls away."""
        if isinstance(values, dict) and "optim" not in values:
            away = ("train", "views", "augment")
            return {key: v for key, v in values.items() if key not in away}
        return values

    @model_validator(mode="after")
    def _whole(self) -> Self:
        recipe = (self.jitter, self.seed, self.optim, self.train)
        if self.model is not None and self.path is None and None in recipe:
            raise ValueError("without a path, model needs jitter, seed, optim and train")
        if self.train is not None and (self.train.ema is not None or self.train.keep_best):
            key = "keep_best=true" if self.train.keep_best else f"ema={self.train.ema:g}"
            raise ValueError(f"train.{key}: a teacher is its last weights; leave this key out")
        if self.members > 1 and (self.model is None or self.path is not None):
            raise ValueError(f"members={self.members}: an ensemble needs a model and no path")
        if self.members * ((self.seed or 0) + 1) > 2**63:
            raise ValueError(f"seed={self.seed}: too large for {self.members} members")
        if self.weights is not None and len(self.weights) != (count := self.count):
            raise ValueError(
                f"weights={self.weights}: these are {len(self.weights)} numbers for {count} "
                f"teacher{'s' if count > 1 else ''}; give one for each, or null"
            )
        return self

    @model_validator(mode="after")
    def _told(self) -> Self:
        """Soft targets in a file stand in the place of a model."""
        if self.kind == "weights":
            if self.test_path is not None:
                raise ValueError(
                    f"test_path={self.test_path}: only soft targets are read from there; choose "
                    "teacher=targets, or test_path=null"
                )
        elif self.model is not None:
            raise ValueError(f"kind={self.kind}: these have no model; choose teacher=targets")
        elif self.targets == "online":
            raise ValueError(f"targets=online: kind={self.kind} is read from a file; leave it out")
        elif not isinstance(self.path, str):
            what = "null" if self.path is None else self.path
            raise ValueError(f"path={what}: kind={self.kind} is read from one file; name it")
        return self

    @property
    def files(self) -> list[str]:
        """The files that it is read from."""
        paths = self.path if isinstance(self.path, list) else [self.path]
        return [place for place in (*paths, self.test_path) if place is not None]

    @property
    def count(self) -> int:
        """How many teachers it is made of."""
        return len(self.path) if isinstance(self.path, list) else self.members

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the teacher: how it is trained, or the model whose weights are read."""
        places = {"name", "cache", "path", "test_path", "targets"}
        trained = {"jitter", "flip", "seed", "optim", "train", "views", "augment"}
        read = trained if self.path is not None else set()
        alone = {"members", "weights", "average"} if self.count == 1 else set()
        unsaid: dict[str, Any] = dict.fromkeys(places | read | alone, True)
        return said(self, unsaid | {"model": {"features"}})

    @property
    def components(self) -> list[Component]:
        """Those that decide the teacher."""
        parts = (self.model, self.optim, self.views, self.augment)
        return [part for part in parts if part is not None]

    def apart(self) -> "list[Teacher]":
        """Each member as a teacher of its own; ensembles of other seeds have none of them."""
        if isinstance(self.path, list):
            own: list[dict[str, Any]] = [{"path": path} for path in self.path]
        else:
            first = self.members * (self.seed or 0)
            own = [{"seed": seed} for seed in range(first, first + self.members)]
        alone = {"members": 1, "weights": None, "average": "logits"}
        return [self.model_copy(update=alone | one) for one in own]


class Checkpoint(Strict):
    """How often a stack that trains is written to disk, in minutes."""

    every: PositiveFloat = 5.0


class Halving(Strict):
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) in a stack.

    At each of ``rungs`` epochs only the best 1/``factor`` on the validation split go on.
    """

    rungs: NonNegativeInt = 0
    factor: Annotated[int, Field(ge=2)] = 3

    def at(self, epochs: int) -> tuple[int, ...]:
        """The epochs after which members stop, each ``factor`` times the one before."""
        return tuple(epochs // self.factor**n for n in range(self.rungs, 0, -1))


class Loggers(Strict):
    """Loggers by their names, of which none decides anything; each is a key of a subclass."""

    @property
    def each(self) -> dict[str, Component]:
        """The loggers, by their names."""
        return {name: getattr(self, name) for name in type(self).model_fields}
