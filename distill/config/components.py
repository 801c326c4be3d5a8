"""Who may be named by a ``_target_``, and the sections that their signatures make.

A component is a function or class. Of its parameters, some are given by name by whoever calls it
(`GROUPS`), as far as it has them; the others are the keys of its yaml, and their annotations check
the values. It may live in this package, or be foreign: then an installed entry point names it, or
its module is among those that the user trusts. A config alone can make nothing be imported.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import typing
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import (
    Field,
    NonNegativeFloat,
    PydanticSchemaGenerationError,
    PydanticUserError,
    create_model,
)

from distill.config.errors import ConfigError
from distill.config.sections import Data, Model, Optim, Views
from distill.config.strict import Component, Strict, Sum
from distill.system.trust import FLAG, TRUSTED, trusted


class Group(NamedTuple):
    """A kind of component: its module here, its section, and what is given to it by name."""

    module: str
    section: type[Component]
    given: tuple[str, ...]


GROUPS = {
    "data": Group("distill.data", Data, ()),
    "model": Group("distill.models", Model, ("inputs", "classes")),
    "loss": Group(
        "distill.losses",
        Component,
        (
            "student_logits",
            "teacher_logits",
            "labels",
            "class_counts",
            "progress",
            "index",
            "student_features",
            "teacher_features",
            "learned",
        ),
    ),
    "optim": Group("distill.optim", Optim, ("parameters", "leaves", "lr", "weight_decay")),
    "views": Group("distill.views", Views, ("inputs", "view", "count")),
    "augment": Group("distill.augment", Component, ("inputs", "labels", "classes", "generator")),
    "transfer": Group("distill.transfer", Component, ("labels", "generator")),
    "logger": Group("distill.loggers", Component, ()),
}
# What the module of a loss's own parameters (`learned`) is made of, beside the loss's keys.
LEARNS = ("student_features", "teacher_features", "classes", "examples", "labels")
SUM = "distill.losses.sum"  # whose keys are those of the losses in it


@cache
def targets(group: str) -> dict[str, Callable[..., Any]]:
    """What a ``_target_`` of ``group`` may name in this package."""
    module = importlib.import_module(GROUPS[group].module)
    return {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}


def find(group: str, target: str, key: str) -> Callable[..., Any]:
    """The component that the ``_target_`` at ``key`` names.

    Raises:
        ConfigError: there is none of that name, or nobody said that it is trusted.
    """
    ours = targets(group)
    if target in ours:
        return ours[target]
    if (foreign := _trusted(target, key)) is not None:
        return foreign
    offered = {e.value.replace(":", "."): e for e in entry_points(group=f"distill.{group}")}
    if target in offered:
        found: Callable[..., Any] = _loaded(offered[target].load, f"{key}={target}")
        return found
    allowed = ", ".join([*ours, *sorted(offered)])
    raise ConfigError(f"{key}={target}: allowed are {allowed}{_how(target)}")


def own(target: str, key: str) -> Callable[..., Any]:
    """The function or class of the user's own that the value ``target`` of ``key`` names.

    Raises:
        ConfigError: there is none, or nobody said that it is trusted.
    """
    if (foreign := _trusted(target, key)) is None:
        raise ConfigError(
            f"{key}={target}: allowed is a function of a trusted module{_how(target)}"
        )
    return foreign


def _trusted(target: str, key: str) -> Callable[..., Any] | None:
    module, _, name = target.rpartition(".")
    if any(module == one or module.startswith(f"{one}.") for one in trusted()):
        return _public(module, name, f"{key}={target}")
    return None


def _how(target: str) -> str:
    """How a module of the user's own comes to be trusted."""
    module = target.rpartition(".")[0]
    if module and module.partition(".")[0] not in sys.stdlib_module_names | {"distill"}:
        return f"; code of your own is trusted by {FLAG} {module}, or {TRUSTED}={module}"
    return ""


def _loaded(load: Callable[[], Any], what: str) -> Any:
    try:
        return load()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{what}: its module cannot be imported ({reason})") from error


def check_module(name: str) -> None:
    """See that there is a module or package of the ``name`` that the user gives.

    Raises:
        ConfigError: there is none, neither in this folder nor where Python looks.
    """
    if not name or not _there(name.partition(".")[0]):
        raise ConfigError(f"{FLAG} {name}: there is no such module, neither here nor installed")


def _there(top: str) -> bool:
    """Whether Python finds a module or package of this name, also in this folder."""
    here = os.getcwd()  # noqa: PTH109
    try:
        if here not in sys.path and importlib.util.find_spec(top) is None:
            sys.path.append(here)  # last, so that a file here takes no other module's place
            importlib.invalidate_caches()
        return importlib.util.find_spec(top) is not None
    except ValueError:  # it is imported, and says not from where
        return True


def _public(module: str, name: str, what: str) -> Callable[..., Any]:
    """The function or class ``name`` that a trusted ``module`` defines, or lists in `__all__`."""
    _there(module.partition(".")[0])
    found = _loaded(lambda: importlib.import_module(module), what)
    own = {
        n
        for n, value in vars(found).items()
        if callable(value) and getattr(value, "__module__", None) == module and n[0] != "_"
    }
    public = own | set(getattr(found, "__all__", ()))
    if name not in public or not callable(getattr(found, name, None)):
        allowed = ", ".join(f"{module}.{n}" for n in sorted(public)) or "nothing"
        raise ConfigError(f"{what}: {module} defines no such function or class; it has {allowed}")
    component: Callable[..., Any] = getattr(found, name)
    return component


@cache
def schema(group: str, function: Callable[..., Any], target: str) -> type[Component]:
    """The section of a component: the keys of its group, and its own.

    Raises:
        ConfigError: a parameter has no annotation, or one that says nothing of a value.
    """
    kind = GROUPS[group]
    try:
        hints = typing.get_type_hints(
            function.__init__ if inspect.isclass(function) else function,
            include_extras=True,
        )
    except (NameError, TypeError) as error:
        raise ConfigError(f"{target}: its annotations cannot be read ({error})") from error
    parameters = inspect.signature(function).parameters
    taken = {*dir(Component), *Component.__annotations__, *kind.section.model_fields} - {
        "root",
        "name",
    }
    own: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(f"{target}: it takes {parameter}; each of its keys must be named")
        if name in kind.given:
            continue
        if name in taken:
            raise ConfigError(f"{target}: its parameter {name} has a name that is taken; rename it")
        if name not in hints:
            raise ConfigError(
                f"{target}: its parameter {name} has no annotation, by which values are checked; "
                f"write {name}: float, or what it is"
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        own[name] = (hints[name], default)
    new: dict[str, Any] = {n: k for n, k in own.items() if n not in kind.section.model_fields}
    if "name" in new:  # which `Component` has as a property
        hint, default = new.pop("name")
        new["name_"] = (hint, Field(default, alias="name"))
    base: type[Component] = kind.section
    try:
        section: type[Component] = create_model(
            getattr(function, "__name__", "component"), __base__=base, **new
        )
    except (PydanticSchemaGenerationError, PydanticUserError, NameError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{target}: its annotations cannot check values ({reason}); what is given to it, and "
            f"no key, has one of the names {', '.join(kind.given) or '(none)'}"
        ) from error
    section.function = staticmethod(function)
    section.parameters = frozenset(own)
    section.takes = frozenset(parameters) & frozenset(kind.given)
    if group == "loss" and "learned" in parameters:
        section.learned = _learned(hints.get("learned"), target)
        section.asked = _asked(section.learned, frozenset(own), target)
    section.source = None if target in targets(group) else _source(target)
    return section


def _learned(annotation: Any, target: str) -> Callable[..., Any]:
    """The class of a loss's own parameters, which is the annotation of its parameter `learned`."""
    from torch import nn  # which the module of the loss has imported

    if not (inspect.isclass(annotation) and issubclass(annotation, nn.Module)):
        raise ConfigError(
            f"{target}: its parameter learned needs an annotation that is a subclass of "
            "torch.nn.Module, which holds the parameters of the loss"
        )
    return annotation


def _asked(learned: Callable[..., Any], own: frozenset[str], target: str) -> frozenset[str]:
    """The names of what the module of a loss's own parameters is made of."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(learned).parameters.values()
    named = [p for p in parameters if p.kind not in variable]
    known = {*LEARNS, *own}
    if both := sorted({p.name for p in named} & {*LEARNS} & own):
        raise ConfigError(
            f"{target}: its key {both[0]} has the name of what its {learned.__name__} is given; "
            "rename it"
        )
    for parameter in named:
        if parameter.name not in known and parameter.default is parameter.empty:
            raise ConfigError(
                f"{target}: its {learned.__name__} asks for {parameter.name}; it can be given "
                f"{', '.join([*LEARNS, *sorted(own)])}"
            )
    return frozenset(p.name for p in named) & known


@cache
def term(loss: type[Component], key: str) -> type[Component]:
    """The section of a loss at ``key``, a part of a sum: its keys, and a weight.

    Raises:
        ConfigError: it cannot be a part of one.
    """
    name = loss.function.__name__
    if "weight" in loss.parameters:
        raise ConfigError(f"{key}: {name} has a key weight, which is that of the sum; rename it")
    if "student_logits" not in loss.takes:
        raise ConfigError(f"{key}: {name} has no parameter student_logits, by which it could learn")
    return create_model(loss.__name__, __base__=loss, weight=(NonNegativeFloat, 1.0))


@cache
def summed(losses: tuple[tuple[str, type[Component]], ...]) -> type[Component]:
    """The section of a sum of ``losses`` by their names."""
    own: dict[str, Any] = {name: (loss, ...) for name, loss in losses}
    section = create_model(
        "sum", __base__=Sum, terms=(create_model("terms", __base__=Strict, **own), ...)
    )
    parts = {name: (loss.function, loss.takes) for name, loss in losses}
    section.function = staticmethod(partial(targets("loss")[SUM], parts))
    keys = [(name, key) for name, loss in losses for key in (*loss.parameters, "weight")]
    section.parameters = frozenset(f"terms.{name}.{key}" for name, key in keys)
    section.takes = frozenset().union(*(loss.takes for _, loss in losses))
    learns = {name: (loss.learned, loss.asked) for name, loss in losses if loss.learned is not None}
    if learns:
        section.learned = partial(
            importlib.import_module("distill.losses.combined").Learned, learns
        )
        section.asked = frozenset(
            key if key in LEARNS else f"terms.{name}.{key}"
            for name, (_, asked) in learns.items()
            for key in asked
        )
    section.source = None
    return section


def _source(target: str) -> str:
    """The SHA-256 of the file that defines a component, and of the files beside it that it imports.

    Beside it are those of its own package; for a module in no package, those of its folder.
    """
    name = target.rpartition(".")[0]
    module = sys.modules[name]
    path = Path(getattr(module, "__file__", None) or "")
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(f"{name}: it has no file of Python, whose content decides a run")
    if _edited(path, getattr(module, "__cached__", None)):
        raise ConfigError(f"{name}: {path} was changed after it was imported; start a new process")
    parents = len(name.split(".")) - (path.name != "__init__.py")
    base = path.resolve().parents[parents]
    top = name.partition(".")[0] if path.parent.resolve() != base else ""
    if not top and {"site-packages", "dist-packages"} & set(base.parts):
        top = name
    files: dict[Path, str] = {}
    _collect(path.resolve(), base, name, top, files)
    content = hashlib.sha256()
    for file in sorted(files):
        content.update(f"{file.relative_to(base).as_posix()} {files[file]}\n".encode())
    return content.hexdigest()


def _edited(path: Path, cached: str | None) -> bool:
    """Whether a file is not the one that was compiled when it was imported (PEP 552)."""
    if cached is None or not Path(cached).is_file():
        return False
    header = Path(cached).read_bytes()[:12]
    by_time = int.from_bytes(header[4:8], "little") == 0
    return by_time and int.from_bytes(header[8:12], "little") != int(path.stat().st_mtime)


def _collect(path: Path, base: Path, name: str, top: str, files: dict[Path, str]) -> None:
    """Add the digest of ``path``, and of what it imports below ``base`` (of package ``top``)."""
    if path in files:
        return
    text = path.read_bytes()
    files[path] = hashlib.sha256(text).hexdigest()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for imported in _imports(ast.parse(text), package):
        if top and imported.partition(".")[0] != top:
            continue
        place = base.joinpath(*imported.split("."))
        for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if file.is_file():
                _collect(file, base, imported, top, files)


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """The names of modules, and perhaps of what they hold, that a file of ``package`` imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            given = [node.module] if node.module is not None else []
            module = ".".join([*above, *given] if node.level else given)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
