"""Teachers: found by the digest of all that decides them, or trained once; and their soft targets.

Letters: N examples, V views of each, C classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from distill.data.views import Inputs
from distill.system import store
from distill.system.bits import packed
from distill.system.disk import patient, settled
from distill.teachers.ensembles import average
from distill.teachers.targets import Way, made_once
from distill.training.evaluate import EXAMPLES, logits
from distill.training.stack import Stack

# Part of every digest: raise it when the same configuration would make another teacher.
SCHEMA = 2
WEIGHTS = "teacher.safetensors"
SHORT = 16  # digits of the digest that name a teacher's folder


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained teacher, its test errors, and its folder in the cache.

    ``test_wrong`` says which test images these are, as `bits.packed`; None of one that an earlier
    version made. ``val_errors`` are those on the validation split, if there is one. It is a stack
    of one, or of the members of an ensemble, whose `average` is taken with these ``weights``.
    """

    stack: Stack
    digest: str
    test_errors: int
    folder: Path
    weights: Sequence[float] | None = None
    of: str = "logits"
    test_wrong: str | None = None
    val_errors: int | None = None

    def logits(self, inputs: Inputs, view: int, dtype: torch.dtype) -> Tensor:
        """Its logits (N, C) for a view of ``inputs``; ``dtype`` is that of the products."""
        return average(logits(self.stack, inputs, view, dtype), self.weights, self.of)

    def soft_targets(self, inputs: Inputs, classes: int, dtype: torch.dtype, kept: Way) -> Tensor:
        """Its logits (N, V, C) for every view of ``inputs``, made once and then cached.

        Where features are ``kept``, their numbers follow the logits in the last axis.

        Args:
            inputs: those that the teacher's digest speaks of.
            classes: C.
            dtype: of the products.
            kept: the type in which they are returned.

        Raises:
            TooLargeError: float16 does not hold them.
            OSError: the cache cannot be written.
        """
        folder = soft_folder(self.folder.parent, self.digest, kept)
        columns = classes + sum(map(math.prod, kept.features))
        shape = (len(inputs), inputs.views, columns)

        def made(view: int) -> Tensor:
            if not kept.features:
                return self.logits(inputs, view, dtype)
            index = torch.arange(len(inputs), device=inputs.raw.device)
            said = [
                self.observed(inputs.batch(i, view, dtype), kept.names)
                for i in torch.split(index, EXAMPLES)
            ]
            return torch.cat([torch.cat([p.flatten(1) for p in parts], 1) for parts in said])

        return made_once(folder, shape, kept.dtype, made).to(inputs.raw.device)

    @torch.no_grad()
    def online(self, x: Tensor) -> Tensor:
        """Its logits (B, C), float32, for a batch of inputs (B, ...), normalised."""
        self.stack.eval()
        return average(self.stack(x).float(), self.weights, self.of)

    @torch.no_grad()
    def observed(self, x: Tensor, names: Sequence[str] | None) -> tuple[Tensor, ...]:
        """The same, and its features (B, ...), float32, of the modules of these names.

        It is no ensemble: whose features would these be?
        """
        self.stack.eval()
        logits, features = self.stack.observed(x, names)
        said = average(logits.float(), self.weights, self.of)
        return said, *(feature[0].float() for feature in features)


def get(
    cache: Path, identity: dict[str, Any], stack: Stack, fit: Callable[[Stack], dict[str, Any]]
) -> Teacher:
    """The teacher that ``identity`` describes: from ``cache``, or made by ``fit`` and put there.

    ``identity`` is a JSON object of everything that decides the teacher; ``stack`` is a fresh stack
    of one in its architecture, which ``fit`` trains or loads in place and then describes: a JSON
    object with ``test_errors`` and ``test_wrong``.

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
    return Teacher(stack, own, folder=folder, **_tested(facts))


def ensemble(
    members: Sequence[Teacher],
    parts: Mapping[str, tuple[Inputs, Tensor]],
    weights: Sequence[float] | None = None,
    of: str = "logits",
) -> Teacher:
    """The ensemble of ``members``, each a stack of one, evaluated on images and labels.

    These are the ``parts`` "test" and, if there is one, "val".

    Their `average` is taken with ``weights``, ``of`` logits or of probabilities.

    Raises:
        OSError: the cache cannot be written.
    """
    identity = joint([member.digest for member in members], weights, of)
    own, stack = digest(identity), members[0].stack.joined(m.stack for m in members[1:])
    folder = members[0].folder.with_name(own[:SHORT])
    made = Teacher(stack, own, 0, folder, weights, of)

    def build(_: Path) -> dict[str, Any]:
        wrong = {
            part: made.logits(images, images.centre, torch.float32).argmax(-1) != labels
            for part, (images, labels) in parts.items()
        }
        errors = {f"{part}_errors": int(own.sum()) for part, own in wrong.items()}
        return {"identity": identity, **errors, "test_wrong": packed(wrong["test"].cpu().numpy())}

    return replace(made, **_tested(store.get(folder, build)))


def _tested(facts: dict[str, Any]) -> dict[str, Any]:
    """What the facts of a teacher say of its test, by the fields of one."""
    kept = {name: facts.get(name) for name in ("test_wrong", "val_errors")}
    return {"test_errors": facts["test_errors"], **kept}


def joint(members: Sequence[str], weights: Sequence[float] | None, of: str) -> dict[str, Any]:
    """All that decides an ensemble of members of these digests."""
    plain = weights is None and of == "logits"
    return {"members": list(members)} | ({} if plain else {"weights": weights, "average": of})


def soft_folder(cache: Path, digest: str, kept: Way) -> Path:
    """Where the soft targets of the teacher of a ``digest`` lie in the ``cache``."""
    listed = f"-{kept.listed[:SHORT]}" if kept.listed else ""
    half = "-fp16" * (kept.dtype == torch.float16)
    own = f"-{store.digest(list(kept.names or ()))[:8]}" if kept.features else ""
    return cache / f"{digest[:SHORT]}-soft{kept.views}{listed}{half}{own}"


def digest(identity: dict[str, Any]) -> str:
    """The SHA-256 of all that decides a teacher."""
    return store.digest({"schema": SCHEMA, **identity})


@patient
@settled
def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file: read, not mapped, so that nothing that befalls it later matters."""
    with store.naming(path):
        return load(path.read_bytes())
