"""Errors for people: what went wrong in one line, the key, the value and what is allowed."""

import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from distill.cli.options import lacking
from distill.config import ConfigError, unknown
from distill.sweeps.compose import override
from distill.system.store import told

OURS = "distill."  # begins what a yaml of this package names
NEEDS = "which needs -m"  # said of several values in one run
# Hydra's flags that show something of one composed config instead of running it.
LOOKS = re.compile(r"(-h|-i|-c(job|hydra|all)?|--(help|cfg|info|hydra-help)(=.*)?)$")


def _quoted(given: str) -> str:
    """How to quote a text, such as a path, that was ``given`` bare; nothing if it is no text."""
    key, _, value = given.partition("=")
    foreign = any(not c.isascii() and not c.isdigit() for c in value)
    if not value or value[0] in "[{'\"=" or not (foreign or re.search(r"[/~\\\s=]", value)):
        return ""
    try:
        OverridesParser.create().parse_override(override(key, value))
    except HydraException:  # the key is wrong, too
        return ""
    return f"; a text with such signs is quoted: {shlex.quote(override(key, value))}"


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
        if isinstance(cause, MissingConfigException):
            name, allowed = str(cause.missing_cfg_file), cause.options
            group, _, option = name.rpartition("/")
            if "//" in name:  # the option itself begins with a slash
                group, option = name.split("//")[0], name[name.index("//") + 1 :]
            if allowed is None and option in _giving(group):  # one of several
                allowed = _local(error, "repo", "config_not_found_error").get_group_options(group)
            if allowed:
                known = ", ".join(allowed)
                return f"{group}={option}: there is no such option; allowed are {known}"
        if isinstance(cause, OverrideParseException):
            given = cause.override
            return f"{given}: not of the form key=value ({_unparsed(cause)}){_quoted(given)}"
        if isinstance(cause, ConfigAttributeError | ConfigKeyError):
            return _no_key(error, cause)
        if isinstance(cause, OmegaConfBaseException):
            # A ConfigError from another process comes as text alone.
            _, ours, text = str(cause).partition(
                "ConfigError raised while resolving interpolation: "
            )
            if "incompatible container types" in str(cause):
                return _other_kind(error, cause)
            return _first(text) if ours else f"{cause.full_key}: {_first(str(cause))}"
    return _other(error, " ".join(str(error).split()))


def _unparsed(error: OverrideParseException) -> str:
    """Why an override cannot be read; Hydra's first line repeats all of them."""
    _, reason, more, *_ = error.message.splitlines()
    if reason.startswith("Error parsing"):
        return more
    prefix, _, rest = reason.partition(": ")
    # The line below points at the first character that is wrong.
    if prefix == "LexerNoViableAltException":
        return f"not understood from {rest[len(more) - len(prefix) - 3 :]!r} on"
    return reason


def _other_kind(error: BaseException, cause: OmegaConfBaseException) -> str:
    """The line for a list where keys are wanted, or keys where a list is."""
    key = str(cause.full_key)
    if not key:  # OmegaConf does not know it where yamls are merged
        own = _local(error, "default", "_compose_config_from_defaults_list")
        return f"{own.config_path}: a key has a list where others have keys of its own, or these"
    if isinstance(cause.parent_node, ListConfig):
        return f"{_giving(key)}: it is a list, written {key}=[A,B]"
    return f"{_giving(key)}: it has keys of its own; {key}.KEY=VALUE sets one of them"


def _other(error: BaseException, text: str) -> str:
    """The line for an error that Hydra tells of by its ``text`` alone."""
    if swept := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)' ?", text):
        looks = next((a for a in sys.argv[1:] if LOOKS.match(a)), None)
        needs = f"and {looks} shows one run" if looks else NEEDS
        text = _quoted(swept[1]) or "; a list is written [a,b]"
        return f"{swept[1]}: several values are a sweep, {needs}{text}"
    bad = None
    if "Config group override must be a string" in text:
        bad = _local(error, "override", "__init__").input_line
    elif isinstance(error, TypeError) and (group := _local(error, "default", "_validate_paths")):
        bad = _giving(group.group)
    if bad is not None:
        return f"{bad}: a config group needs one of its options (teacher=none for no teacher)"
    if swept := _local(error, "override", "split_arguments"):
        return f"{swept.input_line}: {text}"
    if option := re.search(r"Parent traversal .* \('(.*?)'\)", text):
        return f"{_argument(option[1])}: the name of a config cannot contain .."
    if plugin := re.search(r"Unknown plugin class : '(.*)'", text):
        return f"{_argument(plugin[1])}: there is no such launcher or sweeper"
    if target := re.search(r"[Tt]arget '(.*?)' .*full_key: (\S+)", text):
        return f"{target[2]}: {target[1]} is not among what a config may call"
    if isinstance(error, RecursionError):
        return "the config is nested too deeply, or its defaults lead back to themselves"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{_argument(str(error.filename))}: {error.strerror}"
    if not type(error).__module__.startswith("distill") and (disk := told(error)):
        return disk
    said = [type(error).__module__]
    if isinstance(error, ValueError):
        said.append(_raiser(error))
    ours = any(module.startswith(("hydra.", "distill.")) for module in said)
    name = "" if ours else type(error).__name__
    where = _local(error, "config_path", "load_config")
    return ": ".join(part for part in (where, name, text) if part)


def _raiser(error: BaseException) -> str:
    """The module that raised ``error``."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


def _local(error: BaseException, name: str, function: str) -> Any:
    """What the variable ``name`` of the ``function`` that ``error`` came through was, or None.

    Hydra's own text leaves out which override or yaml it was at.
    """
    return (_frame(error, function) or {}).get(name)


def _frame(error: BaseException, function: str) -> dict[str, Any] | None:
    """The variables of the ``function`` that ``error`` came through."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((f.f_locals for f in reversed(frames) if f.f_code.co_name == function), None)


def _argument(value: str) -> str:
    """The argument of the command that gave ``value``, if one did; else the value."""
    return next((a for a in sys.argv if a.endswith(f"={value}")), value)


def _giving(key: str) -> str:
    """The argument of the command that gave a value to ``key``; else the key."""
    return next((a for a in sys.argv if a.lstrip("+").startswith(f"{key}=")), key)


def _first(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "empty"


def _no_key(error: BaseException, cause: OmegaConfBaseException) -> str:
    """A key that the composed config does not have, as Hydra reports it."""
    key = str(cause.full_key)
    siblings = cause.parent_node if isinstance(cause.parent_node, DictConfig) else {}
    # Names of the sweeper's params have dots of their own.
    above = key.rpartition(".")[0] if siblings == {} else str(cause.parent_node._get_full_key(""))
    prefix = f"{above}." if above else ""
    given = re.search(r"\+(\S+=.*)", str(error))
    composing = _frame(error, "_load_configuration_impl")
    if given and composing and (line := lacking(key, given[1], composing)):
        return line
    known = [f"{prefix}{name!s}" for name in siblings if name != "hydra"]
    line = unknown(key, given[1] if given else key, known)
    if given and not str(siblings.get("_target_", OURS)).startswith(OURS):
        return f"{line}; a parameter that its yaml leaves out is given by +{given[1]}"
    return line
