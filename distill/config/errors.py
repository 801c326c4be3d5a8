"""Errors of a config, for people: each line names a key, its value and what is allowed."""

import difflib
import json
from typing import Any


class ConfigError(Exception):
    """A config that cannot be run; a line for each key, with its value and what is allowed."""


def shown(value: Any) -> str:
    """A value as a yaml has it: null, true."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def unknown(key: str, given: str, known: list[str]) -> str:
    """The message for a ``key`` that does not exist, which stood in the override ``given``."""
    if "._" not in key:  # else it may be meant
        known = [name for name in known if not name.endswith("._target_")]
    if not known:
        return f"{given}: there is no such key; {key.rpartition('.')[0]} has none"
    close = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{given}: there is no such key; {hint}allowed are {', '.join(sorted(known))}"
