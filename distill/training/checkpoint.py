"""Checkpoints: a stack in training, on disk whole or not at all."""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from distill.system import store
from distill.system.disk import patient
from distill.training.loop import History, Training

log = logging.getLogger(__name__)

FILE = "checkpoint.safetensors"  # in the directory of a stack's first run


@patient
def _facts(path: Path, *, quiet: bool = False) -> dict[str, Any] | None:
    """What a checkpoint says of itself; None if there is none, or it is damaged.

    Raises:
        OSError: it cannot be read, which says nothing of what it holds.
    """
    try:
        with store.naming(path), path.open("rb") as probe:
            probe.read(1)
    except FileNotFoundError:
        return None
    try:
        with store.naming(path), safe_open(path, "pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["facts"])
            history = {**facts["history"]}
            for left in ("diverged", "stopped"):  # JSON has no numbers as keys
                history[left] = dict(history[left])
            facts["history"] = History(**history)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        if not quiet:
            log.warning("%s is damaged and not used (%s)", path, error)
        return None
    return facts


@patient
def _content(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What a checkpoint says of itself, as text, and its tensors."""
    with store.naming(path):
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata()
        return metadata, load(path.read_bytes())


def _digest(facts: str, state: dict[str, Tensor]) -> str:
    """The SHA-256 of a checkpoint's content."""
    content = hashlib.sha256(facts.encode())
    for name in sorted(state):
        content.update(name.encode())
        content.update(state[name].numpy().data)
    return content.hexdigest()


def _halving(training: Training) -> list[int]:
    """The rungs and the factor by which members were stopped."""
    return [*training.plan.rungs, training.plan.factor]


def _kind(training: Training) -> list[str]:
    """What the machine decided: the type of the products, and the device."""
    return [str(training.plan.dtype), training.transfer.index.device.type]


def members(directory: Path) -> list[str]:
    """The names of the runs whose checkpoint lies in ``directory``, if one does.

    Raises:
        OSError: it cannot be read.
    """
    facts = _facts(directory / FILE, quiet=True)  # who would use it says so
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
        left = {name: list(getattr(history, name).items()) for name in ("diverged", "stopped")}
        facts = json.dumps(
            {
                "runs": list(self.runs),
                "halving": _halving(training),
                "kind": _kind(training),
                "history": asdict(history) | left,
            }
        )
        state = {name: value.cpu().contiguous() for name, value in training.state().items()}
        metadata = {"facts": facts, "digest": _digest(facts, state)}
        try:
            store.write(self.path, partial(save_file, state, metadata=metadata))
        except (OSError, SafetensorError) as error:
            log.warning("no checkpoint could be written: %s", store.told(error) or error)
        self.written = time.monotonic()

    def restore(self, training: Training) -> History | None:
        """Bring a new ``training`` to where the checkpoint is; None if there is none to use.

        The checkpoint may hold more members than ``training``, whose results were written before.

        Raises:
            OSError: it cannot be read.
        """
        facts = _facts(self.path)
        if facts is None:
            return None
        # One of an earlier version does not say what made it.
        kind = _kind(training)
        if (other := facts.get("kind", kind)) != kind:
            log.warning(
                "%s is of a training in %s on %s and not used: this one is in %s on %s",
                *(self.path, *other, *kind),
            )
            return None
        metadata, state = _content(self.path)
        if metadata.get("digest") != _digest(metadata["facts"], state):
            log.warning("%s is damaged and not used (its digest differs)", self.path)
            return None
        whole: History = facts["history"]
        numbers = {run: k for k, run in enumerate(facts["runs"])}
        if not numbers.keys() >= set(self.runs) or facts["halving"] != _halving(training):
            return None
        own = {numbers[run]: n for n, run in enumerate(self.runs)}
        rows = [whole.rows[k] for k in own]
        history = replace(
            whole,
            rows=rows,
            seconds=whole.seconds * sum(map(len, rows)) / max(1, sum(map(len, whole.rows))),
            members=[own[k] for k in whole.members if k in own],
            diverged={own[k]: reason for k, reason in whole.diverged.items() if k in own},
            stopped={own[k]: reason for k, reason in whole.stopped.items() if k in own},
        )
        places = [place for place, k in enumerate(whole.members) if k in own]
        training.restore(history, {name: value[places] for name, value in state.items()})
        log.info("going on from the checkpoint after epoch %d", history.epoch)
        return history

    def remove(self) -> None:
        """Delete it, once it is of no more use."""
        self.path.unlink(missing_ok=True)
