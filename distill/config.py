"""From a composed config to checked, typed objects: the only such path.

A section with a ``_target_`` names a public function or class of one module of this package, and
its other keys are that function's keyword-only parameters, checked against their annotations. So
what a yaml may say stands once, in a signature, and a config cannot reach any other code.
"""

import difflib
import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    create_model,
    model_validator,
)

from distill import store

Share = Annotated[float, Field(ge=0, lt=1)]
Jitter = Annotated[int, Field(ge=0, le=4)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Place = Annotated[str, AfterValidator(store.home)]


SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # of normal numbers in float32


def in_float32(value: float) -> bool:
    """Whether float32, in which all is trained, holds ``value`` to all its digits."""
    return value == 0 or SMALLEST <= abs(value) <= LARGEST


class ConfigError(Exception):
    """A config that cannot be run; a line for each key, with its value and what is allowed."""


class Strict(BaseModel):
    """A section: unknown keys and conversions (other than int to float) are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Component(Strict):
    """A section with a ``_target_``; subclasses made by `_schema` add its parameters."""

    target: str = Field(alias="_target_")
    function: ClassVar[Callable[..., Any]]
    parameters: ClassVar[frozenset[str]]

    @property
    def name(self) -> str:
        """The short name of the target, in lower case."""
        return self.target.rpartition(".")[2].lower()

    @property
    def options(self) -> dict[str, Any]:
        """The values of the target's keyword-only parameters."""
        return {name: getattr(self, name) for name in sorted(self.parameters)}


class Data(Component):
    """A data set and how its images are read; ``validation`` is held out of each class."""

    root: Place | None
    jitter: Jitter
    validation: Share
    mean: float
    std: PositiveFloat

    @model_validator(mode="after")
    def _scaled(self) -> Self:
        alone = in_float32(self.mean) and in_float32(self.std)  # or `parse` names them
        if alone and not (in_float32(1 / (255 * self.std)) and in_float32(self.mean / self.std)):
            raise ValueError(
                f"mean={self.mean:g} and std={self.std:g}: 1 / (255 std) and mean / std must be "
                "numbers that float32 holds"
            )
        return self


class Optim(Component):
    """An optimizer and the schedule of its learning rate; ``warmup`` is a share of the steps."""

    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    schedule: Literal["constant", "linear", "cosine"]
    warmup: Share


class Train(Strict):
    """How long, and in what batches."""

    epochs: Annotated[int, Field(gt=0, le=10**6)]
    batch_size: Annotated[int, Field(gt=0, lt=2**31)]


class Teacher(Strict):
    """A teacher that is trained, or read from ``path``; without a ``model`` there is none.

    Of several ``members`` each is a teacher of its own seed, and together they are an ensemble.
    """

    name: str
    path: Place | None
    cache: Place | None
    members: Annotated[int, Field(gt=0, le=1000)] = 1
    jitter: Jitter | None = None
    seed: Seed | None = None
    model: Component | None = None
    optim: Optim | None = None
    train: Train | None = None

    @model_validator(mode="before")
    @classmethod
    def _trained(cls, values: Any) -> Any:
        """What an experiment says of the training of one that is not trained falls away."""
        if isinstance(values, dict) and "optim" not in values:
            return {key: value for key, value in values.items() if key != "train"}
        return values

    @model_validator(mode="after")
    def _whole(self) -> Self:
        recipe = (self.jitter, self.seed, self.optim, self.train)
        if self.model is not None and self.path is None and None in recipe:
            raise ValueError("without a path, model needs jitter, seed, optim and train")
        if self.members > 1 and (self.model is None or self.path is not None):
            raise ValueError(f"members={self.members}: an ensemble needs a model and no path")
        if self.members * ((self.seed or 0) + 1) > 2**63:
            raise ValueError(f"seed={self.seed}: too large for {self.members} members")
        return self

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the teacher: how it is trained, or the model whose weights are read."""
        places = {"name", "cache", "path"}
        read = {"jitter", "seed", "optim", "train"} if self.path is not None else set()
        alone = {"members"} if self.members == 1 else set()
        return self.model_dump(by_alias=True, exclude=places | read | alone)

    def apart(self) -> "list[Teacher]":
        """Each member as a teacher of its own; ensembles of other seeds have none of them."""
        first = self.members * (self.seed or 0)
        seeds = range(first, first + self.members)
        return [self.model_copy(update={"members": 1, "seed": seed}) for seed in seeds]


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


class Run(Strict):
    """All of one run."""

    data: Data
    model: Component
    teacher: Teacher
    loss: Component
    optim: Optim
    transfer: Component
    train: Train
    seed: Seed
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "fp32", "bf16"]
    test: bool = True
    halving: Halving = Halving()
    resume: bool = True
    checkpoint: Checkpoint = Checkpoint()

    @model_validator(mode="after")
    def _validated(self) -> Self:
        held_out = self.data.validation > 0
        rungs, epochs = self.halving.at(self.train.epochs), self.train.epochs
        if not self.test and not held_out:
            raise ValueError("test=false: it needs a validation split, data.validation above 0")
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
        return {"resume": True, "checkpoint": True, "halving": True}

    @property
    def distils(self) -> bool:
        """Whether the loss learns from a teacher."""
        return "alpha" in self.loss.parameters

    def digest(self, content: Mapping[str, str]) -> str:
        """The SHA-256 of all that decides the student, given the digests of the data and files.

        Where things lie (data.root, teacher.cache, teacher.path), the device, halving, resume and
        checkpoint do not count, nor does the teacher of a loss that does not use one.
        """
        elsewhere = self.aside | {"device": True, "teacher": True, "data": {"root"}}
        config = self.model_dump(by_alias=True, exclude=elsewhere)
        teacher = self.teacher.recipe if self.distils else None
        return store.digest({"config": config, "teacher": teacher, "content": dict(content)})

    @property
    def shared(self) -> str:
        """A digest of all that runs must have in common to be trained as one stack.

        They may differ in the numbers of the loss, the learning rate and the weight decay.
        """
        varies: Any = {
            **{key: True for key in self.aside if key != "halving"},
            "loss": set(self.loss.options),
            "optim": {"lr", "weight_decay"},
        }
        if not self.distils:
            varies["teacher"] = True
        return store.digest(self.model_dump(by_alias=True, exclude=varies))


GROUPS = {
    "data": ("distill.data", Data),
    "model": ("distill.models", Component),
    "loss": ("distill.losses", Component),
    "optim": ("distill.optim", Optim),
    "transfer": ("distill.transfer", Component),
}

C = TypeVar("C", bound=Component)


@cache
def targets(group: str) -> dict[str, Callable[..., Any]]:
    """What a ``_target_`` of ``group`` may name."""
    module = importlib.import_module(GROUPS[group][0])
    return {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}


@cache
def _schema(group: str, base: type[C], target: str) -> type[C]:
    """The section of ``target``: the keys of ``base`` and its keyword-only parameters."""
    function = targets(group)[target]
    keywords = {
        p.name: (p.annotation, ... if p.default is p.empty else p.default)
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }
    new: dict[str, Any] = {n: k for n, k in keywords.items() if n not in base.model_fields}
    schema = create_model(function.__name__, __base__=base, **new)
    schema.function = staticmethod(function)
    schema.parameters = frozenset(keywords)
    return schema


def _typed(config: Mapping[str, Any], base: type[Strict], path: str = "") -> type[Strict]:
    """``base`` with the schema of each component in place of `Component`.

    Raises:
        ConfigError: a ``_target_`` is missing or not among those allowed.
    """
    fields: dict[str, type[Strict]] = {}
    for key, section in config.items():
        if key == "teacher" and isinstance(section, Mapping):
            fields[key] = _typed(section, Teacher, "teacher.")
        elif key in GROUPS and key in base.model_fields and section is not None:
            target = section.get("_target_") if isinstance(section, Mapping) else None
            if not isinstance(target, str) or target not in targets(key):
                allowed = ", ".join(targets(key))
                raise ConfigError(f"{path}{key}._target_={target}: allowed are {allowed}")
            fields[key] = _schema(key, GROUPS[key][1], target)
    return _section(base, tuple(fields.items()))


@cache
def _section(base: type[Strict], fields: tuple[tuple[str, type[Strict]], ...]) -> type[Strict]:
    """``base`` with the fields of these types."""
    typed: dict[str, Any] = {key: (schema, ...) for key, schema in fields}
    return create_model(base.__name__, __base__=base, **typed)


def parse(config: DictConfig) -> Run:
    """The checked run that a composed config, without Hydra's part of it, describes.

    Raises:
        ConfigError: keys are missing or unknown, or values have a wrong type or range.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        missing = isinstance(error, MissingMandatoryValue)
        reason = "it needs a value" if missing else str(error).splitlines()[0]
        raise ConfigError(f"{error.full_key}: {reason}") from error
    assert isinstance(plain, dict)
    values = {str(key): value for key, value in plain.items()}
    schema = _typed(values, Run)
    try:
        run = schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_lines(error, schema))) from error
    assert isinstance(run, Run)
    beyond = [(k, v) for k, v in _floats(run.model_dump(by_alias=True)) if not in_float32(v)]
    if beyond:
        allowed = f"allowed are 0 and sizes from {SMALLEST:.3g} to {LARGEST:.3g}, as in float32"
        raise ConfigError("\n".join(f"{key}={value}: {allowed}" for key, value in beyond))
    if run.distils and run.teacher.model is None:
        raise ConfigError(
            f"teacher={run.teacher.name}: loss={run.loss.name} needs a teacher; "
            "without one the loss must be hard"
        )
    return run


def _floats(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """The floats of a checked config, with their dotted keys."""
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, dict | list | tuple):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _floats(part, f"{key}.{name}".lstrip("."))


def _lines(error: ValidationError, schema: type[BaseModel]) -> Iterator[str]:
    """One line for each problem."""
    for problem in error.errors():
        parents = problem["loc"][:-1]
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            section = schema
            for parent in parents:
                section = section.model_fields[str(parent)].annotation  # type: ignore[assignment]
            known = [f.alias or name for name, f in section.model_fields.items()]
            given = f"{key}={_shown(problem['input'])}"
            line = unknown(key, given, [".".join(map(str, [*parents, k])) for k in known])
            # It may be another option's, from a yaml that was written for that.
            way = f"; '~{given}' leaves it out" if parents and "did you mean" not in line else ""
            yield line + way
        elif problem["type"] == "missing":
            yield f"{key}: this key is missing"
        elif problem["type"] == "value_error":
            text = problem["msg"].removeprefix("Value error, ")
            yield f"{key}: {text}" if key else text
        else:
            yield f"{key}={_shown(problem['input'])}: {problem['msg']}"


def _shown(value: Any) -> str:
    """A value as a yaml has it: null, true."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def unknown(key: str, given: str, known: list[str]) -> str:
    """The message for a ``key`` that does not exist, which stood in the override ``given``."""
    if "._" not in key:  # else it may be meant
        known = [name for name in known if not name.endswith("._target_")]
    if not known:
        return f"{given}: there is no such key; {key.rpartition('.')[0]} has none"
    close = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{given}: there is no such key; {hint}allowed are {', '.join(sorted(known))}"
