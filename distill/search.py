"""What Optuna is asked with: the space that overrides span, samplers of one trial, storages."""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from omegaconf import DictConfig
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from distill import store
from distill.config import ConfigError
from distill.seeds import derive

SAMPLERS = ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*")

Space = dict[str, BaseDistribution]


def parse(
    params: Mapping[str, Any], arguments: Sequence[str], loader: ConfigLoader
) -> tuple[Space, list[str]]:
    """What is searched, and the overrides that are the same for every trial.

    The ``arguments`` of the command line replace the sweeper's own ``params``.

    Raises:
        ConfigError: there is nothing to search, or what is given is no search space.
    """
    parser = OverridesParser.create(config_loader=loader)
    own = [f"{key}={value}" for key, value in params.items()]
    space: Space = {}
    fixed: dict[str, str] = {}
    for override in parser.parse_overrides([*own, *arguments]):
        key, text = override.get_key_element(), str(override.input_line)
        space.pop(key, None)
        fixed.pop(key, None)
        if not override.is_sweep_override():
            fixed[key] = text
            continue
        try:
            found = create_optuna_distribution_from_override(override)
        except (ValueError, AssertionError, NotImplementedError) as error:  # by which Hydra refuses
            raise ConfigError(f"{text}: no search space ({line(error)})") from error
        assert isinstance(found, BaseDistribution)
        space[key] = found
    if not space:
        raise ConfigError(
            "hydra.sweeper.params: there is nothing to search; give a key several values, or "
            "an interval such as 'loss.temperature=tag(log,interval(1.0,32.0))'"
        )
    return space, list(fixed.values())


def ends(distribution: BaseDistribution) -> Sequence[Any]:
    """The values at the ends of a distribution; all of one without an order."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low, distribution.high


def overrides(
    params: dict[str, Any],
    space: Space,
    fixed: Sequence[str],
    changes: dict[str, str] | None = None,
) -> list[str]:
    """The overrides of a job: the fixed ones, a trial's values, and ``changes`` of either."""
    changes = changes or {}
    values = {key: params[key] for key in space if key not in changes}
    kept = [text for text in fixed if text.partition("=")[0] not in changes]
    return [*kept, *(f"{k}={v}" for k, v in {**values, **changes}.items())]


def sampler(config: DictConfig, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of a trial, with a seed of its own where the sampler has one."""
    changes: dict[str, Any] = {}
    if "seed" in config:
        seed = config.seed or 0
        # The points of a quasi-random sequence belong together.
        each = "qmc_type" not in config
        changes["seed"] = derive(seed, "sampler", *[number] * each) % 2**32
    if "constant_liar" in config:
        changes["constant_liar"] = True  # the trials of a batch keep away from each other
    made: optuna.samplers.BaseSampler = instantiate(
        config, _execution_whitelist_=SAMPLERS, **changes
    )
    return made


def storage(url: str) -> BaseStorage:
    """The storage of a URL, or of the path of a journal file.

    Raises:
        ValueError: the file is damaged.
    """
    place = url.rpartition(":///")[2]
    url = url.removesuffix(place) + store.home(place)
    if "://" not in url:
        return JournalStorage(JournalFileBackend(url))
    path = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:///") and path.exists():
        with closing(sqlite3.connect(path)) as connection:
            [[found]] = connection.execute("PRAGMA integrity_check(1)")
        if found != "ok":
            raise ValueError(f"{path} is damaged: {found}")
    return RDBStorage(url)


def line(error: BaseException) -> str:
    """The first line of an error, or its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
