"""Which options of a config group have a key that a composition lacks."""

from collections.abc import Iterable, Mapping
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Override
from omegaconf import OmegaConf


def lacking(key: str, given: str, composing: Mapping[str, Any]) -> str | None:
    """What to say of ``key``, which options of its group have, and those chosen have not.

    Args:
        key: the whole of it, such as optim.momentum.
        given: the override that it stood in.
        composing: what Hydra's `_load_configuration_impl` had at hand.

    Returns:
        A line; None where no option has it.
    """
    group, _, rest = key.partition(".")
    repository, cfg = composing["caching_repo"], composing["cfg"]

    def has(option: str, rest: str) -> bool:
        loaded = repository.load_config(f"{group}/{option}")
        missing = object()
        found = OmegaConf.select(loaded.config, rest, default=missing) if loaded else missing
        return found is not missing

    having = [option for option in repository.get_group_options(group) if has(option, rest)]
    if not having:
        return None
    default = composing["defaults_list"].overrides.known_choices.get(group)
    chosen = _chosen(group, composing["parsed_overrides"]) or _flat([default])
    without = [option for option in chosen if option not in having]
    if not without:  # Hydra composes a sweep's default before its jobs
        return f"{given}: {group}={default}, the default, has no such key; write ++{given}"
    params = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
    swept = [
        str(name)
        for name in params
        if str(name).startswith(f"{group}.")
        and not all(has(option, str(name).partition(".")[2]) for option in without)
    ]
    ways = " ".join(f"'~hydra.sweeper.params.{name.replace('.', chr(92) + '.')}'" for name in swept)
    line = f"{given}: {_named(group, without)} has no such key; {_named(group, having)} has"
    return f"{line}; not to sweep it, add {ways}" if key in swept else line


def _named(group: str, options: list[str]) -> str:
    return f"{group}={','.join(options)}"


def _chosen(group: str, overrides: list[Override]) -> list[str]:
    """The options of ``group`` that the last of its overrides names."""
    values = [override.value() for override in overrides if override.key_or_group == group]
    if not values:
        return []
    several = values[-1].list if isinstance(values[-1], ChoiceSweep) else [values[-1]]
    return _flat(several)


def _flat(options: Iterable[Any]) -> list[str]:
    """Options, of which lists of them are several at once."""
    return [str(o) for given in options for o in (given if isinstance(given, list) else [given])]
