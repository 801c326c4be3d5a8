"""Teachers: found by the digest of all that decides them, or trained once; and their soft targets.

Letters: N examples, V views of each, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from distill.data.views import Inputs
from distill.system import store
from distill.teachers.ensembles import average
from distill.training.evaluate import logits
from distill.training.stack import Stack

# Part of every digest: raise it when the same configuration would make another teacher.
SCHEMA = 2
WEIGHTS = "teacher.safetensors"
SHORT = 16  # digits of the digest that name a teacher's folder


@dataclass(frozen=True)
class Teacher:
    """A trained teacher, its test errors, and its folder in the cache.

    It is a stack of one, or of the members of an ensemble, whose `average` is taken with these
    ``weights``.
    """

    stack: Stack
    digest: str
    test_errors: int
    folder: Path
    weights: Sequence[float] | None = None
    of: str = "logits"

    def logits(self, images: Inputs, view: int, dtype: torch.dtype) -> Tensor:
        """Its logits (N, C) for a view of ``images``; ``dtype`` is that of the products."""
        return average(logits(self.stack, images, view, dtype), self.weights, self.of)

    def soft_targets(self, images: Inputs, dtype: torch.dtype) -> Tensor:
        """Its logits (N, V, C), float32, for every view of ``images``, made once and then cached.

        ``images`` are those that the teacher's digest speaks of; ``dtype`` is that of the products.
        """
        folder = self.folder.with_name(f"{self.folder.name}-views{images.views}")

        def build(scratch: Path) -> dict[str, Any]:
            views = [self.logits(images, view, dtype) for view in range(images.views)]
            save_file({"logits": torch.stack(views, 1)}, scratch / "logits.safetensors")
            return {"views": images.views}

        store.get(folder, build)
        return _load(folder / "logits.safetensors")["logits"].to(images.raw.device)


def get(
    cache: Path, identity: dict[str, Any], stack: Stack, fit: Callable[[Stack], dict[str, Any]]
) -> Teacher:
    """The teacher that ``identity`` describes: from ``cache``, or made by ``fit`` and put there.

    ``identity`` is a JSON object of everything that decides the teacher; ``stack`` is a fresh stack
    of one in its architecture, which ``fit`` trains or loads in place and then describes: a JSON
    object with ``test_errors``.

    Raises:
        OSError: the cache cannot be written.
    """
    own = digest(identity)
    folder = cache / own[:SHORT]

    def build(scratch: Path) -> dict[str, Any]:
        facts = fit(stack)
        save_file(stack.state(0), scratch / WEIGHTS)
        return {"identity": identity, **facts}

    facts = store.get(folder, build)
    stack.load([_load(folder / WEIGHTS)])
    return Teacher(stack, own, facts["test_errors"], folder)


def ensemble(
    members: Sequence[Teacher],
    images: Inputs,
    labels: Tensor,
    weights: Sequence[float] | None = None,
    of: str = "logits",
) -> Teacher:
    """The ensemble of ``members``, each a stack of one, evaluated on test images and labels.

    Their `average` is taken with ``weights``, ``of`` logits or of probabilities.

    Raises:
        OSError: the cache cannot be written.
    """
    identity: dict[str, Any] = {"members": [member.digest for member in members]}
    if weights is not None or of != "logits":
        identity |= {"weights": weights, "average": of}
    own, stack = digest(identity), members[0].stack.joined(m.stack for m in members[1:])
    folder = members[0].folder.with_name(own[:SHORT])
    made = Teacher(stack, own, 0, folder, weights, of)

    def build(_: Path) -> dict[str, Any]:
        found = made.logits(images, images.centre, torch.float32).argmax(-1)
        return {"identity": identity, "test_errors": int((found != labels).sum())}

    return replace(made, test_errors=store.get(folder, build)["test_errors"])


def digest(identity: dict[str, Any]) -> str:
    """The SHA-256 of all that decides a teacher."""
    return store.digest({"schema": SCHEMA, **identity})


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file: read, not mapped, so that nothing that befalls it later matters."""
    return load(path.read_bytes())
