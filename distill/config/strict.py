"""What the sections of a config are made of: values, checked keys, and which of them decide."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from distill.system import store

Share = Annotated[float, Field(ge=0, lt=1)]
Inner = Annotated[float, Field(gt=0, lt=1)]
Jitter = Annotated[int, Field(ge=0, le=4)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Place = Annotated[str, AfterValidator(store.home)]
TEACHERS = "teachers"  # the folder beside the data in which they are kept by default


def _places(value: object) -> object:
    """A path, or a list of paths, each as a `Place` is."""
    places = value if isinstance(value, list) else [value]
    homes = [store.home(place) for place in places if isinstance(place, str)]
    if not places or len(homes) < len(places):
        raise PydanticCustomError("places", "Input should be a valid string, or a list of some")
    return homes if len(homes) > 1 else homes[0]


Places = Annotated[str | list[str], BeforeValidator(_places)]


SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # of normal numbers in float32


def in_float32(value: float) -> bool:
    """Whether float32, in which all is trained, holds ``value`` to all its digits."""
    return value == 0 or SMALLEST <= abs(value) <= LARGEST


class Strict(BaseModel):
    """A section: unknown keys and conversions (other than int to float) are errors."""

    __slots__ = ("_hashed",)  # which no copy takes along
    if TYPE_CHECKING:
        _hashed: int
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    # What its files were when it was checked: so that a process that reads it once, and again for a
    # section equal to it, does not take files for those that they were. It decides no name.
    _files: tuple[Any, ...] = PrivateAttr(())

    def model_post_init(self, _: Any) -> None:
        """Look at its files."""
        with suppress(OSError, ValueError):  # which reading them tells of
            self._files = tuple(store.state(Path(place), TEACHERS) for place in self.files)

    @property
    def files(self) -> list[str]:
        """The files and folders that it is read from."""
        return []

    def __hash__(self) -> int:
        try:
            return self._hashed
        except AttributeError:
            known = hash(self.model_dump_json())  # its values may be lists
            object.__setattr__(self, "_hashed", known)
            return known


class Component(Strict):
    """A section with a ``_target_``; the subclass of each target adds its keys.

    ``takes`` are the parameters that whoever calls the ``function`` gives; ``source`` is the digest
    of the files that define it, or None if it is one of this package. A loss may have parameters
    of its own, in a module of the class ``learned``, whose constructor has ``asked`` for these.
    """

    target: str = Field(alias="_target_")
    function: ClassVar[Callable[..., Any]]
    parameters: ClassVar[frozenset[str]]
    takes: ClassVar[frozenset[str]]
    source: ClassVar[str | None]
    learned: ClassVar[Callable[..., Any] | None] = None
    asked: ClassVar[frozenset[str]] = frozenset()

    @property
    def numbers(self) -> list[str]:
        """Which of the options are numbers, in which runs of one stack may differ.

        One that a loss's own parameters are made with is not: it may decide their shapes.
        """
        options = {n: v for n, v in self.options.items() if n not in self.asked}.items()
        return [n for n, v in options if isinstance(v, int | float) and not isinstance(v, bool)]

    @property
    def varying(self) -> Any:
        """These numbers, as pydantic excludes them."""
        return set(self.numbers)

    @property
    def parts(self) -> "list[Component]":
        """The components that it is made of."""
        return [self]

    def __call__(self, **given: Any) -> Any:
        """Call the component with its own options, and what it takes of the ``given``."""
        taken = {name: value for name, value in given.items() if name in self.takes}
        return self.function(**taken, **self.options)

    @property
    def name(self) -> str:
        """What it says that it is called by its options, or its short name in lower case."""
        known_as = vars(self.function).get("known_as")
        return str(known_as(**self.options)) if known_as else self.target.rpartition(".")[2].lower()

    @property
    def options(self) -> dict[str, Any]:
        """The values of the keys that are the target's own."""
        fields = {field.alias or name: name for name, field in type(self).model_fields.items()}
        return {key: getattr(self, fields[key]) for key in sorted(self.parameters)}

    @property
    def files(self) -> list[str]:
        """The files that its keys name."""
        fields = [(_place(field), name) for name, field in type(self).model_fields.items()]
        values = [(place, getattr(self, name)) for place, name in fields]
        return [value for place, value in values if place is not None and place.has(value)]

    @property
    def bare(self) -> Self:
        """The same without the files that it reads, which what was trained does not need."""
        return self.model_copy(update=dict.fromkeys(self.begun_from))

    @property
    def begun_from(self) -> set[str]:
        """The keys of files that it begins from."""
        fields = type(self).model_fields.items()
        return {name for name, f in fields if isinstance(_place(f), store.Content)}


class Sum(Component):
    """A sum of losses, each a section in ``terms`` with a key ``weight`` besides its own.

    Its options are theirs, by their dotted keys.
    """

    terms: Strict

    @property
    def parts(self) -> list[Component]:
        """Its losses."""
        return [getattr(self.terms, name) for name in type(self.terms).model_fields]

    @property
    def options(self) -> dict[str, Any]:
        """The values of their keys, as ``terms.NAME.KEY``."""
        return {
            f"terms.{name}.{key}": value
            for name, part in zip(type(self.terms).model_fields, self.parts, strict=True)
            for key, value in (*part.options.items(), *part.model_dump(include={"weight"}).items())
        }

    @property
    def varying(self) -> Any:
        """Their numbers, as pydantic excludes them."""
        names = type(self.terms).model_fields
        own = zip(names, self.parts, strict=True)
        return {"terms": {name: {*part.numbers, "weight"} for name, part in own}}


# Keys that have counted in every digest, though they have defaults. Of all others one that has its
# default value does not count, so that a new key changes no name.
COUNTED = {
    "Run": {"test"},
    "Teacher": {"jitter", "seed", "model", "optim", "train"},
    "Data": {"root", "jitter", "validation"},
    "distill.models.MLP": {"depth", "dropout", "input_dropout", "max_norm"},
    "distill.models.CNN": {"hidden", "dropout"},
    "distill.optim.AdamW": {"beta1", "beta2", "eps"},
    "distill.optim.SGD": {"momentum", "nesterov"},
}


def _place(field: FieldInfo) -> store.Place | None:
    """The mark of a key whose value may be a path."""
    return next((mark for mark in field.metadata if isinstance(mark, store.Place)), None)


def places(section: Strict, prefix: str = "") -> dict[str, str | None]:
    """What stands for paths in tables: the first digits of the digest of each one's file.

    By the dotted keys of a section, and of those in it, that are marked and whose value is a path.

    The sections' own keys are not marked; their places are in `distill.runs.columns.SHOWN`.
    """
    found: dict[str, str | None] = {}
    for name, field in type(section).model_fields.items():
        key, value = f"{prefix}{field.alias or name}", getattr(section, name)
        if isinstance(value, Strict):
            found |= places(value, f"{key}.")
        elif (place := _place(field)) is not None and place.has(value):
            file = Path(value)
            found[key] = store.file_digest(file)[:8] if file.is_file() else None
    return found


def said(section: Strict, exclude: Any = None) -> dict[str, Any]:
    """What a section says that decides something: all but the keys that have their defaults."""
    dumped = section.model_dump(by_alias=True, exclude=exclude)
    return _said(section, dumped)


def deciding(section: Strict) -> dict[str, Any]:
    """The values of a section that decide something, by the names of its keys in a yaml."""
    kinds = [kind.__name__ for kind in type(section).__mro__]
    if isinstance(section, Component):
        kinds.append(section.target)
    always = set().union(*(COUNTED.get(kind, set()) for kind in kinds))
    return {
        field.alias or name: value
        for name, field in type(section).model_fields.items()
        for value in (getattr(section, name),)
        if name in always or field.is_required() or value != field.get_default()
    }


def _said(section: Strict, dumped: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field.alias or name: field for name, field in type(section).model_fields.items()}
    kept: dict[str, Any] = {}
    for key, value in deciding(section).items():
        if key not in dumped:
            continue
        place = _place(fields[key])
        if isinstance(place, store.Content):
            kept[key] = place.of(value)
        elif place is None or not place.has(value):
            kept[key] = _said(value, dumped[key]) if isinstance(value, Strict) else dumped[key]
    return kept


def sources(components: Sequence[Component]) -> dict[str, str]:
    """The digests of the code of those ``components`` that are not of this package."""
    parts = [part for component in components for part in component.parts]
    return {c.target: c.source for c in parts if c.source is not None}


def changed_code(component: Component, before: Mapping[str, str]) -> list[str]:
    """What of a component is code of one's own that is another than it was ``before``.

    It is by the digests that a result has of its `sources`; what it says nothing of is the same.
    """
    return [name for name, now in sources([component]).items() if before.get(name, now) != now]
