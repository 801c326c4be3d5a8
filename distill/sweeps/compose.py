"""Composing the configs of a sweep: Hydra composes one of a kind, the others are its copies.

And how what composes a config is written, for Hydra and for a shell.
"""

import pickle
import re
import shlex
from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from omegaconf import DictConfig, OmegaConf, open_dict


class Composer:
    """Hydra's config loader, with a `load_sweep_config` that takes 2 ms a job instead of 50.

    Jobs are of one kind if they choose the same options of config groups and override the same
    keys with plain values. What Hydra composed for the first of a kind is copied for the others,
    with their values, which can decide nothing else of a composition.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._kinds: dict[tuple[Any, ...], tuple[bytes, bytes]] = {}
        self._parse = cache(self._parse_one)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def _parse_one(self, override: str) -> tuple[Override, bool]:
        """An override, and whether it gives a plain value to a key of the task's config."""
        [parsed] = OverridesParser.create(config_loader=self._loader).parse_overrides([override])
        key = parsed.key_or_group
        plain = (
            not (parsed.is_add() or parsed.is_force_add() or parsed.is_delete())
            and not parsed.is_sweep_override()
            and not _for_hydra(key)
            and isinstance(parsed.value(), str | int | float | bool | None)
            and not self._loader.get_group_options(key)
        )
        return parsed, plain

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: Sequence[str]
    ) -> DictConfig:
        """The config of a job; its overrides come after those that configure Hydra."""
        return self.compose(master_config, sweep_overrides)[0]

    def compose(
        self, master_config: DictConfig, sweep_overrides: Sequence[str]
    ) -> tuple[DictConfig, DictConfig]:
        """The config of a job, and the same without Hydra's part of it."""
        parsed = [self._parse(override) for override in sweep_overrides]
        values = {p.key_or_group: p.value() for p, plain in parsed if plain}
        others = [o for o, (_, plain) in zip(sweep_overrides, parsed, strict=True) if not plain]
        kind = (id(master_config), tuple(others), tuple(values))
        if kind not in self._kinds:
            first = self._loader.load_sweep_config(master_config, list(sweep_overrides))
            self._kinds[kind] = pickle.dumps(first), pickle.dumps(task_config(first))
        whole, task = (pickle.loads(config) for config in self._kinds[kind])
        for config in (whole, task):
            for key, value in values.items():
                OmegaConf.update(config, key, value, merge=True)
        with open_dict(whole.hydra):
            whole.hydra.overrides.task = [o for o in sweep_overrides if not _for_hydra(o)]
        return whole, task


def override(key: str, value: str) -> str:
    """The override that gives the text ``value`` to ``key``, whatever signs it has."""
    # Before a dollar and a brace, OmegaConf takes one of two backslashes.
    text = re.sub(r"(\\*)\$\{", lambda found: f"{2 * found[1]}\\${{", value)
    return f"{key}={QuotedString(text, Quote.double).with_quotes()}"


def command(*arguments: str) -> str:
    """A line to be pasted into a shell, which runs `distill` with ``arguments``."""
    return shlex.join(["distill", *arguments])


def task_config(config: DictConfig) -> DictConfig:
    """A composed config without Hydra's part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _for_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))
