"""From a composed config to checked, typed objects: the only such path.

A section with a ``_target_`` names a component (see `distill.config.components`), and its other
keys are that function's parameters, checked against their annotations. So what a yaml may say
stands once, in a signature, and a config cannot reach code that nobody trusted.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ValidationError, create_model

from distill.config.components import GROUPS, SUM, find, schema, summed, targets, term
from distill.config.errors import ConfigError, shown, unknown
from distill.config.run import Run, without_features
from distill.config.sections import (
    Data,
    Halving,
    Loggers,
    Model,
    Optim,
    Teacher,
    Train,
    Views,
)
from distill.config.strict import LARGEST, SMALLEST, Component, Strict, in_float32
from distill.system.memo import Memo

__all__ = [
    "GROUPS",
    "Checker",
    "Component",
    "ConfigError",
    "Data",
    "Halving",
    "Loggers",
    "Model",
    "Optim",
    "Run",
    "Teacher",
    "Train",
    "Views",
    "check",
    "check_section",
    "parse",
    "plain",
    "targets",
    "unknown",
]


def _typed(config: Mapping[str, Any], base: type[Strict], path: str = "") -> type[Strict]:
    """``base`` with the schema of each component in place of `Component`.

    Raises:
        ConfigError: a ``_target_`` is missing or not among those allowed.
    """
    found = ((key, _schema(key, section, base, path)) for key, section in config.items())
    return _section(base, tuple((key, own) for key, own in found if own is not None))


def _schema(key: str, section: Any, base: type[Strict], path: str = "") -> type[Strict] | None:
    """The schema of the section ``key`` of ``base``; None if it is that which ``base`` says.

    Raises:
        ConfigError: as `_typed`.
    """
    if key == "teacher" and isinstance(section, Mapping):
        return _typed(section, Teacher, "teacher.")
    if key == "logger" and isinstance(section, Mapping):
        return _loggers(section)
    if key not in GROUPS or key not in base.model_fields or section is None:
        return None
    name = f"{path}{key}._target_"
    target = _target(key, section, name)
    if target == SUM:
        return _sum(section.get("terms"), f"{path}{key}.terms")
    return schema(key, find(key, target, name), target)


def _loggers(config: Mapping[str, Any]) -> type[Strict]:
    """`Loggers` with the schema of each logger below its name.

    Raises:
        ConfigError: as `_typed`; or a name is none that a key can have.
    """
    fields: dict[str, type[Strict]] = {}
    for name, section in config.items():
        if not isinstance(section, Mapping):
            given = f"logger.{name}={shown(section)}"
            raise ConfigError(
                f"{given}: a logger's keys stand below its name; write logger.NAME.{name} and, in "
                "a yaml, NAME: in a line above them"
            )
        if not name.isidentifier() or name.startswith("_") or hasattr(Strict, name):
            raise ConfigError(f"logger.{name}: no logger can have this name; choose another")
        key = f"logger.{name}._target_"
        target = _target("logger", section, key)
        fields[name] = schema("logger", find("logger", target, key), target)
    return _section(Loggers, tuple(fields.items()))


def _sum(terms: Any, key: str) -> type[Component]:
    """A sum of losses with the schema of each below its name.

    Raises:
        ConfigError: as `_typed`; there is none, or one that cannot be a part of a sum.
    """
    if not isinstance(terms, Mapping) or not terms:
        how = f"name at least one loss, as by +loss@{key}.soft=kd"
        raise ConfigError(f"{key}={shown(terms)}: {how}")
    fields: dict[str, type[Component]] = {}
    for name, section in terms.items():
        place = f"{key}.{name}"
        if not str(name).isidentifier() or name[0] == "_" or hasattr(Strict, name):
            raise ConfigError(f"{place}: no loss can have this name; choose another")
        target = _target("loss", section, f"{place}._target_")
        if target == SUM:
            raise ConfigError(f"{place}: a sum within a sum; write its terms beside this one")
        found = find("loss", target, f"{place}._target_")
        fields[name] = term(schema("loss", found, target), place)
    return summed(tuple(fields.items()))


def _target(group: str, section: Any, name: str) -> str:
    """The ``_target_`` of a section, whose key is ``name``.

    Raises:
        ConfigError: it is missing.
    """
    target = section.get("_target_") if isinstance(section, Mapping) else None
    if not isinstance(target, str):
        raise ConfigError(f"{name}={target}: allowed are {', '.join(targets(group))}")
    return target


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
    return check(plain(config))


def plain(config: DictConfig) -> dict[str, Any]:
    """A composed config as plain values, nothing of which is still to be looked up.

    Raises:
        ConfigError: a key is missing, or what it says cannot be looked up.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        missing = isinstance(error, MissingMandatoryValue)
        reason = "it needs a value" if missing else str(error).splitlines()[0]
        raise ConfigError(f"{error.full_key}: {reason}") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def check(values: Mapping[str, Any]) -> Run:
    """The checked run that plain values describe.

    Raises:
        ConfigError: as `parse`.
    """
    run = _validated(values, _typed(values, Run))
    assert isinstance(run, Run)
    _agree(run)
    return run.effective


def check_section(key: str, values: Mapping[str, Any]) -> Any:
    """The checked section ``key`` of a run, as its model, whatever the others are.

    Raises:
        ConfigError: as `parse`.
    """
    given = {key: values}
    kind = _schema(key, values, Run)
    assert kind is not None
    return getattr(_validated(given, _section(Strict, ((key, kind),))), key)


def _validated(values: Mapping[str, Any], section: type[Strict]) -> Strict:
    """The ``section`` that plain values describe.

    Raises:
        ConfigError: as `parse`.
    """
    try:
        found = section.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("\n".join(_lines(error, section))) from error
    beyond = _beyond(found.model_dump(by_alias=True, exclude={"logger"}))
    if beyond:
        allowed = f"allowed are 0 and sizes from {SMALLEST:.3g} to {LARGEST:.3g}, as in float32"
        raise ConfigError("\n".join(f"{key}={value}: {allowed}" for key, value in beyond))
    return found


class Checker:
    """`check` for many configs that share their sections, each of which is checked once.

    Two configs share a section if it is the same object in both.
    """

    def __init__(self) -> None:
        self._memo = Memo()

    def __call__(self, values: Mapping[str, Any]) -> Run:
        """The checked run that plain values describe.

        Raises:
            ConfigError: as `parse`.
        """
        given, kinds = dict(values), []
        for key, section in values.items():
            if isinstance(section, dict):
                own = self._memo(_part, key, section)
                if own is None:
                    return check(values)  # which says of each key what is wrong
                given[key] = own
                kinds.append((key, type(own)))
        try:
            run = _section(Run, tuple(kinds)).model_validate(given)
        except ValidationError:
            return check(values)
        assert isinstance(run, Run)
        _agree(run)
        changes = {key: self._memo(without_features, getattr(run, key)) for key in run.unheard}
        return run.model_copy(update=changes) if changes else run


def _part(key: str, values: dict[str, Any]) -> Strict | None:
    """The checked section ``key`` of a run; None if something is wrong with it."""
    try:
        kind = _schema(key, values, Run) or Run.__annotations__.get(key)
        if not (isinstance(kind, type) and issubclass(kind, Strict)):
            return None
        section = kind.model_validate(values)
    except (ConfigError, ValidationError):
        return None
    within = key == "logger" or not _beyond(section.model_dump(by_alias=True))
    return section if within else None


def _agree(run: Run) -> None:
    """See that a loss has the teacher that it needs.

    Raises:
        ConfigError: it has not.
    """
    if run.distils and run.teacher.model is None and run.teacher.kind == "weights":
        raise ConfigError(
            f"teacher={run.teacher.name}: loss={run.loss.name} needs a teacher; "
            "without one the loss must be one that takes no teacher_logits, such as hard"
        )
    if "teacher_features" in run.loss.takes:
        _check_heard(run)


def _check_heard(run: Run) -> None:
    """See that there is a teacher that has features.

    Raises:
        ConfigError: there are but soft targets, or several teachers at once.
    """
    teacher, needs = run.teacher, f"loss={run.loss.name} needs the features of a teacher"
    if teacher.model is None:
        raise ConfigError(
            f"teacher={teacher.name}: {needs}, and a file of soft targets has none; choose a "
            "model, by teacher=trained or teacher=checkpoint"
        )
    if teacher.count > 1:
        raise ConfigError(
            f"teacher={teacher.name}: {needs}, and an ensemble of {teacher.count} has none that "
            "are its own; choose one teacher"
        )


def _beyond(values: Any) -> list[tuple[str, float]]:
    """Those of the floats of a checked config, with their dotted keys, that float32 cannot hold."""
    return [(key, value) for key, value in _floats(values) if not in_float32(value)]


def _floats(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """The floats of a checked config, with their dotted keys."""
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, dict | list | tuple):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _floats(part, f"{key}.{name}".lstrip("."))


def _lines(error: ValidationError, schema: type[BaseModel]) -> Iterator[str]:
    """One line for each problem; one for all that a value might have been instead."""
    found: dict[str, list[Any]] = {}
    for problem in error.errors():
        found.setdefault(_key(problem["loc"], schema), []).append(problem)
    for key, problems in found.items():
        if any(other.startswith(f"{key}.") for other in found):  # which says where in it
            continue
        problem, *others = problems
        parents = problem["loc"][:-1]
        if problem["type"] == "extra_forbidden":
            section = schema
            for parent in parents:
                section = section.model_fields[str(parent)].annotation  # type: ignore[assignment]
            known = [f.alias or name for name, f in section.model_fields.items()]
            given = f"{key}={shown(problem['input'])}"
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
            texts = [problem["msg"], *(o["msg"].removeprefix("Input should be ") for o in others)]
            value, quoted = problem["input"], ""
            if problem["type"] == "string_type" and isinstance(value, int | float):
                quoted = f"; in quotes of its own it is one, '\"{shown(value)}\"' in a shell"
            yield f"{key}={shown(value)}: {' or '.join(dict.fromkeys(texts))}{quoted}"


def _key(place: tuple[int | str, ...], schema: type[BaseModel]) -> str:
    """The dotted key of a problem, without the alternatives that pydantic names in its place."""
    section: Any = schema
    parts: list[str] = []
    for part in place:
        if isinstance(section, type) and issubclass(section, BaseModel):
            parts.append(str(part))
            field = section.model_fields.get(str(part))
            section = field.annotation if field is not None else None
        elif isinstance(part, int):
            parts.append(str(part))
    return ".".join(parts)
