"""Where stacks train elsewhere: as elements of SLURM's arrays, or in a pool that the user gives."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, Protocol

import torch

from distill.config import ConfigError
from distill.config.components import own
from distill.sweeps.elements import Element
from distill.sweeps.submitted import Local, Slurm, last_line
from distill.system import machine
from distill.training.inputs import Machine

FOLDER = ".elements"  # in a sweep's directory
MACHINE = "machine.json"  # in it: what "auto" means for the sweep


class Place(Protocol):
    """Where elements go."""

    room: int | None  # how many may be there at once; None: it sees to that itself
    threads: int | None  # of each; None: as many as its machine has cores for it
    kills: bool  # whether what is preempted there is killed, and comes back
    gpus: bool  # whether elements get them
    tells: bool  # whether an element that memory was too short for is told from others that died

    def __str__(self) -> str:
        """What elements get there."""

    def submit(self, elements: Sequence[Element], token: str) -> list[str]:
        """Let elements start as soon as they can; returns their names."""

    def find(self, token: str, names: Sequence[str]) -> dict[int, str]:
        """The numbers and names of elements that are still there.

        They were submitted with this ``token``, and had these ``names``, if that was written down.
        """

    def ended(self, names: Sequence[str]) -> Mapping[str, str | None]:
        """Those that ended by themselves, and why one could not begin, if so."""

    def lost(self, names: Sequence[str]) -> Mapping[str, str]:
        """Those that ended otherwise, and their states."""

    def withdraw(self, names: Sequence[str]) -> None:
        """Take back those that have not started."""

    def told(self, name: str) -> str:
        """Where to read more of an element."""

    def forget(self, name: str) -> None:
        """Remove what is left of an element that ended well."""

    def tidy(self) -> None:
        """Remove what is left of all of them."""


class Pool:
    """The user's own `concurrent.futures.Executor`."""

    room: int | None = None
    threads: int | None = None
    kills = tells = False

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.gpus = torch.cuda.is_available()
        self.futures: dict[str, Future[str | None]] = {}

    def __str__(self) -> str:
        return f"tasks of {type(self.executor).__name__}"

    def submit(self, elements: Sequence[Element], token: str) -> list[str]:
        names = [f"{token}-{n}" for n in range(len(elements))]
        for name, element in zip(names, elements, strict=True):
            self.futures[name] = self.executor.submit(element)
        return names

    def find(self, token: str, names: Sequence[str]) -> dict[int, str]:  # noqa: ARG002
        return {}

    def ended(self, names: Sequence[str]) -> Mapping[str, str | None]:
        done = [name for name in names if self.futures[name].done() and self._error(name) is None]
        return {name: self.futures[name].result() for name in done}

    def lost(self, names: Sequence[str]) -> Mapping[str, str]:
        done = [name for name in names if self.futures[name].done()]
        return {name: error for name in done if (error := self._error(name)) is not None}

    def _error(self, name: str) -> str | None:
        future = self.futures[name]
        if future.cancelled():
            return "CANCELLED"
        error = future.exception()
        return None if error is None else f"{type(error).__name__}: {last_line(error)}"

    def withdraw(self, names: Sequence[str]) -> None:
        for name in names:
            self.futures[name].cancel()

    def told(self, name: str) -> str:  # noqa: ARG002
        return f"the log of {type(self.executor).__name__}"

    def forget(self, name: str) -> None:
        del self.futures[name]

    def tidy(self) -> None:
        """Nothing is left of futures."""


def place(
    cluster: str | None,
    executor: str | None,
    submit: Mapping[str, Any],
    workers: int | None,
    folder: Path,
) -> Place | None:
    """Where the stacks of a sweep go, by the keys of the launcher; None if they train here.

    Raises:
        ConfigError: the keys disagree, or ask for what is not there.
    """
    if executor is not None:
        if cluster is not None:
            raise ConfigError(
                f"hydra.launcher.executor={executor}: hydra.launcher.cluster={cluster} says "
                "otherwise; leave one of them out"
            )
        made = own(executor, "hydra.launcher.executor")()
        if not isinstance(made, Executor):
            kind = type(made).__name__
            wanted = "it must return a concurrent.futures.Executor"
            raise ConfigError(f"hydra.launcher.executor={executor}: it returned a {kind}; {wanted}")
        return Pool(made)
    if cluster is None:
        if submit:
            given = ", ".join(submit)
            raise ConfigError(
                f"hydra.launcher.submit ({given}): it says what an element of a cluster gets; "
                "set hydra.launcher.cluster=slurm too"
            )
        return None
    kinds: dict[str, Callable[..., Place]] = {"slurm": Slurm, "local": Local}
    if cluster not in kinds:
        allowed = ", ".join(kinds)
        raise ConfigError(f"hydra.launcher.cluster={cluster}: allowed are {allowed}, null")
    return kinds[cluster](folder, submit, workers)


def machine_of(folder: Path, place: Place) -> Machine:
    """What "auto" means for all runs of a sweep, whichever machines train it.

    A GPU is what elements ask for. The first command decides, and writes it into ``folder`` (see
    `Dispatch.train`); GPUs of other machines are taken to be fast at bf16.

    Raises:
        ConfigError: an earlier command decided otherwise.
    """
    device = "cuda" if place.gpus else "cpu"
    fast = place.gpus or bool({"avx512_bf16", "amx_bf16"} & machine.abilities())
    found, path = Machine(device, "bf16" if fast else "fp32"), folder / MACHINE
    try:
        kept = Machine(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return found
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: remove it") from error
    if kept.device != device:
        raise ConfigError(
            f"this sweep began on {kept.device} ({path}), and would go on on {device}: let its "
            f"elements have {kept.device}, or choose another hydra.sweep.dir"
        )
    return kept
