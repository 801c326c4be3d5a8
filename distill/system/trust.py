"""Which modules of the user's own a config may name: said by the user alone, never by a config."""

import os
import re

TRUSTED = "DISTILL_MODULES"  # in the environment: those modules, separated by commas or blanks
FLAG = "--module"  # of each command: one more of them


def trusted() -> list[str]:
    """The modules that the user trusts."""
    return [name for name in re.split(r"[,\s]+", os.environ.get(TRUSTED, "")) if name]
