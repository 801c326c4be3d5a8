"""The loggers of a run, made from its config."""

from functools import lru_cache
from typing import cast

from distill.config import Component, ConfigError
from distill.loggers import Logger

METHODS = ("start", "epoch", "end")


@lru_cache(maxsize=64)
def check_logger(name: str, component: Component) -> None:
    """See, before anything trains, that a logger can be made, and has what a `Logger` has.

    Raises:
        ConfigError: its package is missing, it refuses its values, or it lacks a method.
    """
    try:
        logger = make_logger(component)
    except Exception as error:
        own = "" if isinstance(error, ImportError | ValueError) else f"{type(error).__name__}: "
        raise ConfigError(f"logger.{name}: {own}{' '.join(str(error).split())}") from error
    if lacking := [method for method in METHODS if not callable(getattr(logger, method, None))]:
        raise ConfigError(
            f"logger.{name}._target_={component.target}: it has no method {', '.join(lacking)}; "
            "derive it from distill.loggers.Logger"
        )


def make_logger(component: Component) -> Logger:
    """A new logger of one run."""
    return cast(Logger, component())
