"""What Optuna is asked with: the space that overrides span, and samplers of one trial."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import CmaEsSampler, GPSampler, QMCSampler, RandomSampler

from distill.config import ConfigError
from distill.seeds import derive
from distill.tuning.storage import line

log = logging.getLogger(__name__)

SAMPLERS = ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*")

Space = dict[str, BaseDistribution]


def parse(
    params: Mapping[str, Any], arguments: Sequence[str], loader: ConfigLoader
) -> tuple[Space, list[str]]:
    """What is searched, and the overrides that are the same for every trial.

    The ``arguments`` of the command line replace the sweeper's own ``params``.

    Raises:
        ConfigError: what is given is no search space.
    """
    parser = OverridesParser.create(config_loader=loader)
    own = [f"{key}={value}" for key, value in params.items()]
    space: Space = {}
    fixed: dict[str, str] = {}
    for override in parser.parse_overrides([*own, *arguments]):
        key, text = override.get_key_element(), str(override.input_line)
        space.pop(key, None)
        fixed.pop(key, None)
        if override.is_sweep_override():
            space[key] = _distribution(override, text)
        else:
            fixed[key] = text
    return space, list(fixed.values())


def _distribution(override: Override, text: str) -> BaseDistribution:
    """What an override spans, if that is what was meant.

    Raises:
        ConfigError: it is not.
    """
    key, value = override.get_key_element(), override.value()
    tags = sorted(getattr(value, "tags", None) or [])
    if set(tags) - {"log"} or (tags and not override.is_interval_sweep()):
        raise ConfigError(
            f"{text}: no search space (tag {', '.join(tags)}); the only tag is log, of an "
            f"interval: {key}=tag(log,interval(1.0,32.0))"
        )
    if isinstance(value, IntervalSweep):
        low, high = float(value.start or 0), float(value.end or 0)
        if low > high:
            swapped = f"interval({value.end},{value.start})"
            raise ConfigError(f"{text}: no search space ({low:g} is above {high:g}); {swapped} is")
        if tags and low <= 0:
            raise ConfigError(
                f"{text}: no search space (its logarithm has no end at {low:g}); let it begin "
                "above 0"
            )
    try:
        found = create_optuna_distribution_from_override(override)
    except (ValueError, AssertionError, NotImplementedError) as error:  # by which Hydra refuses
        raise ConfigError(f"{text}: no search space ({line(error)})") from error
    assert isinstance(found, BaseDistribution)
    if isinstance(found, CategoricalDistribution):
        twice = [v for n, v in enumerate(found.choices) if v in found.choices[:n]]
        if twice:
            raise ConfigError(f"{text}: no search space ({twice[0]} stands there twice)")
    elif found.single():
        only, stop = ends(found)[0], getattr(value, "stop", None)
        way = f"; {key}=interval({only},{stop}) is all between" if isinstance(stop, float) else ""
        raise ConfigError(
            f"{text}: no search space (it holds the one value {only}); {key}={only} is that{way}"
        )
    return found


def whole(space: Space, error: ConfigError) -> Space:
    """``space`` with whole numbers for the keys that take no others, as ``error`` says.

    Raises:
        ConfigError: it says something else, or an interval does not begin and end in whole numbers.
    """
    changed: Space = {}
    for key, found in space.items():
        refused = f"\n{key}=" in f"\n{error}" and "valid integer" in str(error)
        if not refused or not isinstance(found, FloatDistribution) or found.step is not None:
            continue
        low, high = math.ceil(found.low), math.floor(found.high)
        if (low, high) != (found.low, found.high):
            given = f"{key}=interval({found.low:g},{found.high:g})"
            raise ConfigError(f"{given}: it takes whole numbers; write interval({low},{high})")
        changed[key] = IntDistribution(low, high, log=found.log)
    if not changed:
        raise error
    return space | changed


def lowest(space: Space) -> dict[str, Any]:
    """A trial's values at the lower ends."""
    return {key: ends(distribution)[0] for key, distribution in space.items()}


def ends(distribution: BaseDistribution) -> Sequence[Any]:
    """The values at the ends of a distribution; all of one without an order."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low, distribution.high


def defaults(
    loader: ConfigLoader, config: DictConfig, fixed: Sequence[str], space: Space
) -> dict[str, Any]:
    """What the searched keys are without a search, as far as they are there then."""
    try:
        found = loader.load_sweep_config(config, list(fixed))
    except (HydraException, OmegaConfBaseException):  # nothing composes without them
        return {}
    names = {key: key.lstrip("+") for key in space}
    choices = found.hydra.runtime.choices
    values = {key: choices.get(n, OmegaConf.select(found, n)) for key, n in names.items()}
    return {k: v for k, v in values.items() if isinstance(v, str | int | float | bool)}


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


def sampler(config: DictConfig, number: int, *, eager: bool = False) -> optuna.samplers.BaseSampler:
    """The sampler of a trial, with a seed of its own where the sampler has one.

    An ``eager`` one does not begin with trials at random.
    """
    changes: dict[str, Any] = {}
    if eager and "n_startup_trials" in config:
        changes["n_startup_trials"] = 1
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


def rehearse(config: DictConfig, choice: str, space: Space, objectives: int) -> None:
    """Ask the sampler once, after trials that never were, so that what it lacks shows now.

    Args:
        config: the sampler's.
        choice: its name among Hydra's options.
        space: what it is to search.
        objectives: how many there are.

    Raises:
        ConfigError: it lacks a package, or cannot search this.
    """
    key = f"hydra/sweeper/sampler={choice}"
    directions: Any = ["minimize"] * objectives
    try:
        before = optuna.create_study(sampler=RandomSampler(seed=0), directions=directions)
        study = optuna.create_study(directions=directions)
        for number in range(3):
            trial = before.ask(space)
            before.tell(trial, [float(number)] * objectives)
        study.add_trials(before.trials)
        study.sampler = sampler(config, len(before.trials), eager=True)
        trial = study.ask()
        together = study.sampler.infer_relative_search_space(study, study.trials[-1])
        for name, distribution in space.items():
            trial._suggest(name, distribution)
    except ImportError as error:
        raise ConfigError(
            f"{key}: it needs the package {error.name}; `pip install {error.name}`, or choose "
            "another sampler"
        ) from error
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"{key}: {line(error)}") from error
    alone = sorted(set(space) - set(together))
    if isinstance(study.sampler, CmaEsSampler | GPSampler | QMCSampler) and alone:
        if len(alone) == len(space):
            raise ConfigError(
                f"{key}: it searches numbers, and {', '.join(alone)} has none; choose tpe, "
                "random or nsgaii"
            )
        log.warning("%s: it searches numbers; at random are tried %s", key, ", ".join(alone))
