"""Checkpoints: a stack in training, on disk whole or not at all."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from distill import store
from distill.train import History, Training

log = logging.getLogger(__name__)

FILE = "checkpoint.safetensors"  # in the directory of a stack's first run


def _facts(path: Path) -> dict[str, Any] | None:
    """What a checkpoint says of itself; None if there is none, or it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["facts"])
            facts["history"] = History(**facts["history"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged and not used (%s)", path, error)
        return None
    return facts


def members(directory: Path) -> list[str]:
    """The names of the runs whose checkpoint lies in ``directory``, if one does."""
    facts = _facts(directory / FILE)
    return [] if facts is None else list(facts["runs"])


@dataclass
class Checkpoint:
    """That of the stack of ``runs`` (their names), written every so many seconds."""

    path: Path
    runs: Sequence[str]
    every: float
    written: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> bool:
        """Whether it is time to write it."""
        return time.monotonic() - self.written >= self.every

    def write(self, training: Training, history: History) -> None:
        """Write it; where that fails, training goes on with a warning."""
        rows = asdict(history) | {"diverged": list(history.diverged.items())}
        facts = {"runs": list(self.runs), "history": rows}
        state = {name: value.cpu().contiguous() for name, value in training.state().items()}
        metadata = {"facts": json.dumps(facts)}
        try:
            store.write(self.path, partial(save_file, state, metadata=metadata))
        except (OSError, SafetensorError) as error:
            log.warning("%s: no checkpoint could be written: %s", self.path, error)
        self.written = time.monotonic()

    def restore(self, training: Training) -> History | None:
        """Bring a new ``training`` to where the checkpoint is; None if there is none to use."""
        facts = _facts(self.path)
        if facts is None or facts["runs"] != list(self.runs):
            return None
        history: History = facts["history"]
        history.diverged = dict(history.diverged)
        training.restore(history, load_file(self.path))
        log.info("going on from the checkpoint after epoch %d", history.epoch)
        return history

    def remove(self) -> None:
        """Delete it, once it is of no more use."""
        self.path.unlink(missing_ok=True)
