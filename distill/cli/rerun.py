"""What runs a member of a stack again, whose record of Hydra's lies with the first of the stack."""

import json
from collections.abc import Sequence
from pathlib import Path

from distill.system.store import RESULT

FLAG = "--experimental-rerun"


def rerun(arguments: Sequence[str]) -> list[str]:
    """The ``arguments``, where Hydra cannot rerun the run that they name, as those that do it.

    Hydra reads `.hydra/hydra.yaml`, of which a stack has one; the other members have no keys of
    their own in it but where they lie.
    """
    given = list(arguments)
    place = next((n for n, text in enumerate(given) if text.partition("=")[0] == FLAG), None)
    if place is None:
        return given
    name, sign, value = given[place].partition("=")
    end = place + (1 if sign else 2)
    directory = Path(value if sign else "".join(given[place + 1 : end]))
    found = _stack(directory)
    if name != FLAG or found is None:
        return given
    from omegaconf import OmegaConf

    from distill.sweeps.compose import override

    told = OmegaConf.load(found / ".hydra" / "hydra.yaml")
    ours = OmegaConf.load(directory / ".hydra" / "overrides.yaml")
    where = override("hydra.run.dir", str(directory.resolve()))
    again = [*told.hydra.overrides.hydra, *ours, "hydra.mode=RUN", where]
    return [*given[:place], *map(str, again), *given[end:]]


def _stack(directory: Path) -> Path | None:
    """The directory of the first run of its stack, if Hydra's record lies there instead."""
    if (directory / ".hydra" / "hydra.yaml").exists():
        return None
    try:
        stack = json.loads((directory / RESULT).read_text(encoding="utf-8")).get("stack")
    except (OSError, ValueError, AttributeError):
        return None
    return directory / stack if isinstance(stack, str) else None
