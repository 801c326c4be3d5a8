"""Errors for people: what went wrong in one line, the key, the value and what is allowed."""

import re
import sys
from collections.abc import Iterator

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from distill.config import ConfigError, unknown
from distill.store import told


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def explain(error: BaseException) -> str:
    """One line for each problem that ``error`` stands for."""
    causes = list(_chain(error))
    for cause in causes:
        if isinstance(cause, ConfigError):
            return str(cause)
    for cause in causes:
        if isinstance(cause, MissingConfigException) and cause.options is not None:
            group, _, option = str(cause.missing_cfg_file).rpartition("/")
            return (
                f"{group}={option}: there is no such option; allowed are {', '.join(cause.options)}"
            )
        if isinstance(cause, OverrideParseException):
            return f"{cause.override}: not of the form key=value ({_first(cause.message)})"
        if isinstance(cause, ConfigAttributeError | ConfigKeyError):
            return _no_key(error, cause)
        if isinstance(cause, OmegaConfBaseException):
            return f"{cause.full_key}: {_first(str(cause))}"
    text = str(error)
    if swept := re.search(r"Ambiguous value for argument '(.*)'", text):
        return f"{swept[1]}: several values are a sweep, which needs -m; a list is written [a,b]"
    if "Config group override must be a string" in text:
        given = next((a for a in sys.argv if a.endswith("=null")), "null")
        return f"{given}: a config group needs one of its options (teacher=none for no teacher)"
    if not type(error).__module__.startswith("distill") and (disk := told(error)):
        return disk
    name = "" if type(error).__module__.startswith(("hydra", "distill")) else type(error).__name__
    return f"{name}: {' '.join(text.split())}".removeprefix(": ")


def _first(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "empty"


def _no_key(error: BaseException, cause: OmegaConfBaseException) -> str:
    """A key that the composed config does not have, as Hydra reports it."""
    key = str(cause.full_key)
    prefix = key.rpartition(".")[0] + "." if "." in key else ""
    siblings = cause.parent_node if isinstance(cause.parent_node, DictConfig) else {}
    given = re.search(r"\+(\S+=.*)", str(error))
    known = [f"{prefix}{name!s}" for name in siblings if name != "hydra"]
    return unknown(key, given[1] if given else key, known)
