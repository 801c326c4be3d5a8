"""Composing the configs of a sweep: Hydra composes one of a kind, the others are its copies.

And how what composes a config is written, for Hydra and for a shell.
"""

import pickle
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from distill.runs.planned import commands
from distill.system.trust import FLAG

LOOKED_UP = "${"  # begins what OmegaConf looks up, or after a backslash a text that begins so
# What is looked up and hangs on nothing that a job overrides.
FIXED = re.compile(r"\$\{(oc\.env|now|distill\.sweep):[^${}]*\}")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# An override by a number, as Hydra's grammar has them.
NUMBER = re.compile(
    rf"(?P<key>{DOTTED.pattern})="
    r"(?P<number>-?(?:(?P<whole>0|[1-9][0-9]*)|(?:0|[1-9][0-9]*)\.[0-9]+(?:e[+-]?[0-9]+)?))"
)
LIVE = 8  # kinds whose config is kept as Hydra's own, too, which takes about 200 kB

Values = dict[str, Any]


class Kind:
    """The jobs of a sweep that override the same keys with plain values, and nothing else.

    They have the config that Hydra composed for the first, but for these values, which can decide
    nothing else of a composition. As plain values, what they do not override is shared by them; and
    so are equal sections, by ``shared``, with the jobs of other kinds.
    """

    def __init__(self, first: DictConfig, shared: dict[str, Values]) -> None:
        self._pickled, self._shared = pickle.dumps(first), shared
        raw: Any = OmegaConf.to_container(first, resolve=False, enum_to_str=True)
        self.hydra: Values = raw.pop("hydra")
        self.raw = {key: self._one(value) for key, value in raw.items()}
        # The sections in which something is looked up anew for each job, perhaps of Hydra's part.
        self.anew = [key for key, value in raw.items() if hangs(value)]
        self._live: Live | None = None
        self._task: DictConfig | None = None

    def _one(self, value: Any) -> Any:
        """Of equal sections always the same."""
        return self._shared.setdefault(repr(value), value) if isinstance(value, dict) else value

    def live(self, values: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
        """The config of the job with these values as Hydra's own, which the next job changes."""
        if self._live is None:
            self._live = Live(self.fresh())
        return self._live.now(values, overrides)

    def rest(self) -> None:
        """Let go of what takes memory."""
        self._live = self._task = None

    def fresh(self) -> DictConfig:
        """The config as Hydra composed it for the first."""
        config: DictConfig = pickle.loads(self._pickled)
        return config

    @cached_property
    def _plain(self) -> Values:
        """The task's part of the first as plain values, with nothing to be looked up."""
        from distill.config import plain

        task = task_config(self.fresh())
        return {key: self._one(value) for key, value in plain(task).items()}

    def unresolved(self, values: Mapping[str, Any]) -> Values:
        """The task's part of the config of the job with these values, as it was composed."""
        return self._with(self.raw, values)

    def task(self, values: Mapping[str, Any]) -> Values:
        """The same with nothing to be looked up.

        Raises:
            ConfigError: a key is missing, or what it says cannot be looked up.
        """
        found = self._with(self._plain, values)
        if self.anew:
            self._task = self._task or task_config(self.fresh())
            put(self._task, values)
            anew = looked_up(self._task, self.anew)
            found |= {key: self._one(value) for key, value in anew.items()}
        return found

    def walks(self, keys: Iterable[str]) -> bool:
        """Whether each key lies in dicts alone, and not in what something else says."""
        return all(self._walks(key) for key in keys)

    def _walks(self, key: str) -> bool:
        *parents, last = key.split(".")
        place: Any = self.raw
        for name in parents:
            place = place.get(name)
            if not isinstance(place, dict):
                return False
        return last in place

    def _with(self, config: Values, values: Mapping[str, Any]) -> Values:
        """A config with these values, of which it shares all dicts but those that hold them."""
        changed = dict(config)
        sections: dict[str, Values] = {}
        for key, value in values.items():
            *parents, last = key.split(".")
            place = changed
            for depth, name in enumerate(parents):
                path = ".".join(parents[: depth + 1])
                if path not in sections:
                    sections[path] = place[name] = dict(place[name])
                place = sections[path]
            place[last] = value
        for key in {key.partition(".")[0] for key in values}:
            changed[key] = self._one(changed[key])
        return changed


class Live:
    """A config that becomes that of one job after another; only what differs is set."""

    def __init__(self, config: DictConfig) -> None:
        self._config = config
        self._values: Values = {}
        self._task = config.hydra.overrides.task
        self._overrides: Any = OmegaConf.to_container(self._task)

    def now(self, values: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
        """The config with these values, and the overrides of the task."""
        put(self._config, {k: v for k, v in values.items() if not self._is(k, v)})
        self._values = dict(values)
        if len(self._overrides) != len(overrides):
            with open_dict(self._config.hydra):
                self._config.hydra.overrides.task = list(overrides)
            self._task = self._config.hydra.overrides.task
        else:
            for number, (before, after) in enumerate(zip(self._overrides, overrides, strict=True)):
                if before != after:
                    self._task[number] = after
        self._overrides = overrides
        return self._config

    def _is(self, key: str, value: Any) -> bool:
        before = self._values.get(key, self)
        return type(before) is type(value) and before == value


class Composed(NamedTuple):
    """The config of a job: its kind, and the plain values that are its own."""

    kind: Kind
    values: Values
    overrides: list[str]  # of the task

    def live(self) -> DictConfig:
        """The config, which holds until the next of its kind is asked for."""
        return self.kind.live(self.values, self.overrides)

    def config(self) -> DictConfig:
        """The config."""
        return Live(self.kind.fresh()).now(self.values, self.overrides)


class Composer:
    """Hydra's config loader, with a `load_sweep_config` that takes 0.3 ms a job instead of 50."""

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._kinds: dict[tuple[Any, ...], Kind] = {}
        self._live: dict[int, Kind] = {}
        self._shared: dict[str, Values] = {}
        self._parse = cache(self._parse_one)
        self._simple = cache(self._simple_one)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def _read(self, override: str) -> tuple[str, Any, bool]:
        """The key of an override, its value, and whether that is a plain one of the task's."""
        if (number := NUMBER.fullmatch(override)) and self._simple(number["key"]):
            return number["key"], (int if number["whole"] else float)(number["number"]), True
        return self._parse(override)  # which takes 2 ms

    def _parse_one(self, override: str) -> tuple[str, Any, bool]:
        [parsed] = OverridesParser.create(config_loader=self._loader).parse_overrides([override])
        key, value = parsed.key_or_group, parsed.value()
        simple = (
            not (parsed.is_add() or parsed.is_force_add() or parsed.is_delete())
            and not parsed.is_sweep_override()
            and parsed.package is None
            and _plain(value)
            and self._simple(key)
        )
        return key, value, simple

    def _simple_one(self, key: str) -> bool:
        """Whether a key is one of the task's, and chooses no option of a config group."""
        known = DOTTED.fullmatch(key) is not None and not _for_hydra(key)
        return known and not self._loader.get_group_options(key)

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: Sequence[str]
    ) -> DictConfig:
        """The config of a job; its overrides come after those that configure Hydra.

        It holds until that of the next job which overrides the same keys is asked for.
        """
        return self.compose(master_config, sweep_overrides).live()

    def compose(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> Composed:
        """The config of a job."""
        parsed = [self._read(override) for override in sweep_overrides]
        values = {key: value for key, value, simple in parsed if simple}
        others = [o for o, (_, _, own) in zip(sweep_overrides, parsed, strict=True) if not own]
        kind = self._kind(master_config, sweep_overrides, others, values)
        if not kind.walks(values):
            kind, values = self._kind(master_config, sweep_overrides, sweep_overrides, {}), {}
        if self._live.pop(id(kind), None) is None and len(self._live) >= LIVE:
            self._live.pop(next(iter(self._live))).rest()
        self._live[id(kind)] = kind
        return Composed(kind, values, [o for o in sweep_overrides if not _for_hydra(o)])

    def _kind(
        self,
        master_config: DictConfig,
        overrides: Sequence[str],
        others: Sequence[str],
        values: Values,
    ) -> Kind:
        """The kind of a job with these overrides, of which the ``others`` are no plain values."""
        name = (id(master_config), tuple(others), tuple(values))
        if name not in self._kinds:
            first = self._loader.load_sweep_config(master_config, list(overrides))
            self._kinds[name] = Kind(first, self._shared)
        return self._kinds[name]


def _plain(value: Any) -> bool:
    """Whether a value is plain, or a list of such, with nothing to be looked up."""
    if isinstance(value, list):
        return all(_plain(item) for item in value)
    if isinstance(value, str):
        return LOOKED_UP not in value and value != "???"
    return isinstance(value, int | float | bool | None)


def looked_up(config: DictConfig, keys: Iterable[str]) -> Values:
    """Some keys of a config as plain values, with nothing to be looked up.

    Raises:
        ConfigError: as `distill.config.plain`.
    """
    from distill.config import plain

    try:
        found = {key: config[key] for key in keys}
        return {
            key: OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
            if OmegaConf.is_config(value)
            else value
            for key, value in found.items()
        }
    except OmegaConfBaseException:
        return plain(config)  # which says what is wrong


def put(config: DictConfig, values: Mapping[str, Any]) -> None:
    """Let the keys of a config have these values, as overrides do."""
    for key, value in values.items():
        OmegaConf.update(config, key, value, merge=True)


def texts(value: Any) -> Iterable[str]:
    """The texts in a plain value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def hangs(value: Any) -> bool:
    """Whether something in a value is looked up that a job may override."""
    return any(LOOKED_UP in FIXED.sub("", text) for text in texts(value))


def override(key: str, value: str) -> str:
    """The override that gives the text ``value`` to ``key``, whatever signs it has."""
    # Before a dollar and a brace, OmegaConf takes one of two backslashes.
    text = re.sub(r"(\\*)\$\{", lambda found: f"{2 * found[1]}\\${{", value)
    return f"{key}={QuotedString(text, Quote.double).with_quotes()}"


def command(*arguments: str) -> str:
    """A line to be pasted into a shell, which runs `distill` with ``arguments``."""
    return shlex.join(["distill", *arguments])


def in_folder(folder: Path, *arguments: str) -> str:
    """A line that knows the experiments of a sweep's ``folder``, and its command's modules."""
    given = shlex.split("".join(commands(folder)[-1:]))
    known = [f"{FLAG}={n}" for flag, n in pairwise(given) if flag == FLAG]
    known += [word for word in given if word.startswith(f"{FLAG}=")]
    return command(*known, "--config-dir", str(folder), *arguments)


def task_config(config: DictConfig) -> DictConfig:
    """A composed config without Hydra's part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _for_hydra(override: str) -> bool:
    return re.match(r"[+~]*hydra[./=@]", f"{override}=") is not None
