"""What the training loop takes for granted of a loss and a model, tried on a few random numbers.

Each function returns what is wrong, in words, or None. Letters: K members, B examples, C classes.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from distill.data.views import Change
from distill.seeds import seeded
from distill.training.mapping import mappable
from distill.training.objective import (
    EXAMPLES,
    PROGRESS,
    TAUGHT,
    UNSEEN,
    Objective,
    Seen,
    tried,
)
from distill.training.stack import Stack, called

CPU = torch.device("cpu")
FAILS = "it fails on images"  # how what is wrong with a model begins that raises
FIXED = ("labels", "class_counts", "index", "teacher_logits", "teacher_features")


def fault_of_views(changes: Sequence[Change], inputs: Tensor) -> str | None:
    """Whether each of a list of views keeps to `distill.views`, for a few ``inputs``."""
    for number, change in enumerate(changes):
        try:
            fault = _fault_of_view(change, inputs)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return f"its view {number} fails on inputs {tuple(inputs.shape)}: {reason}"
        if fault is not None:
            return f"its view {number} {fault}"
    return None


def _fault_of_view(change: Change, inputs: Tensor) -> str | None:
    found: list[Tensor] = []
    for seed, some in enumerate((inputs, inputs, inputs[:1], inputs[1:])):
        with seeded(seed, CPU):
            made: object = change(inputs=some.clone())
        if not isinstance(made, Tensor) or (made.dtype, made.shape) != (some.dtype, some.shape):
            what = type(made).__name__
            if isinstance(made, Tensor):
                what = f"{made.dtype} {tuple(made.shape)}"
            return f"is {what} for {some.dtype} {tuple(some.shape)}; it must keep that"
        if not made.isfinite().all():
            return "is not finite"
        found.append(made)
    whole, again, *parts = found
    if not torch.equal(whole, again):
        return "is random; of a finite list each view is always the same (augment=NAME may differ)"
    # Features may be rounded otherwise in a product of another size.
    close = 1e-4 if whole.is_floating_point() else 0.0
    alike = torch.allclose(whole.double(), torch.cat(parts).double(), rtol=close, atol=close)
    return None if alike else "of an example depends on the other examples of its batch"


def fault_of_loss(
    objective: Objective,
    classes: int,
    *,
    mixed: bool = False,
    seen: Seen = UNSEEN,
    examples: int = EXAMPLES,
) -> str | None:
    """Whether the loss of members, for data of C ``classes``, keeps to `distill.losses`.

    It is tried on features of the shapes that were ``seen``, and some of so many ``examples``.
    """
    members = max(map(len, objective.numbers.values()), default=1)
    logits, given = tried(members, classes, seen, examples)
    if mixed:
        given["labels"] = F.one_hot(given["labels"], classes).float().mul(0.5).add(0.5 / classes)
    names: set[frozenset[str]] = set()
    fixed = [v for name in FIXED for v in _listed(given[name])]
    before = [value.clone() for value in fixed]
    asked = not objective.takes.isdisjoint(TAUGHT)
    lacking = "" if asked else " (it asks for no teacher_logits)"
    if "student_logits" not in objective.takes:
        return "it has no parameter student_logits, by which it could be differentiated"
    if objective.learned is not None and (fault := fault_of_parts(objective.learned.module)):
        return f"its {type(objective.learned.module).__name__}: {fault}"
    what = "logits and features" if any(seen) else "logits"
    try:
        with seeded(0, CPU):
            for progress in PROGRESS:
                total, terms = objective(logits, {**given, "progress": progress})
                names.add(frozenset(terms))
                if kept := _kept(objective):
                    return f"its buffer {kept} keeps a gradient; change it in torch.no_grad()"
                _differentiate(total, [logits, *given["student_features"]], objective)
    except Exception as error:
        reason = " ".join(str(error).split())
        return f"it fails on random {what}{lacking}: {type(error).__name__}: {reason}"
    if len(names) > 1:
        return "its terms change with progress; it must return the same ones always"
    for name, values in {"": total, **terms}.items():
        if (fault := _fault_of_values(values, members)) is not None:
            return f"its term {name} is {fault}" if name else f"it returns {fault}"
    if not total.requires_grad:
        return f"it returns {total.dtype} without a gradient by student_logits; needed is one"
    if not all(map(torch.equal, fixed, before)):
        return "it changes its teacher_logits, features or labels in place; they must stay as given"
    if not total.isfinite().all():
        return f"it is not finite on random {what}"
    wrong = [name for name in terms if not name.isidentifier() or name == "loss"]
    if wrong:
        return f"its term {wrong[0]!r} makes no column train_NAME; name it by letters and digits"
    return None


def _listed(value: Tensor | list[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else value


def _differentiate(total: object, inputs: list[Tensor], objective: Objective) -> None:
    """Take the gradients that training will, where there are any."""
    if isinstance(total, Tensor) and total.requires_grad:
        own = [] if objective.learned is None else [*objective.learned.leaves.values()]
        torch.autograd.grad(total.sum(), [*inputs, *own], allow_unused=True)


def _kept(objective: Objective) -> str | None:
    """The name of a buffer of a loss that has become part of a graph of gradients, if one has."""
    buffers = {} if objective.learned is None else objective.learned.buffers
    return next((name for name, buffer in buffers.items() if buffer.requires_grad), None)


def _fault_of_values(values: object, members: int) -> str | None:
    """Whether what a loss returned for K members are values of one kind, (K, B) or (K,)."""
    if not isinstance(values, Tensor):
        return f"{type(values).__name__}; needed is a tensor, or one and a dictionary of terms"
    if values.shape not in ((members, EXAMPLES), (members,)):
        shape = tuple(values.shape[1:])
        return f"{shape} for {EXAMPLES} examples; needed is ({EXAMPLES},), one an example, or ()"
    return None if values.is_floating_point() else f"{values.dtype}; needed are floats"


def fault_of_parts(module: nn.Module) -> str | None:
    """Whether a model has float32 parameters that can be trained."""
    parameters = dict(module.named_parameters())
    kinds = {
        "parameters of unknown shape": [n for n, p in parameters.items() if _is_lazy(p)],
        "parameters that are not float32": [
            n for n, p in parameters.items() if p.dtype != torch.float32
        ],
    }
    for what, names in kinds.items():
        if names:
            more = ", ..." if len(names) > 4 else ""
            return f"it has {what}: {', '.join(names[:4])}{more}"
    trained = any(parameter.requires_grad for parameter in parameters.values())
    return None if trained else "it has no parameters that are trained"


def _is_lazy(parameter: Tensor) -> bool:
    return isinstance(parameter, UninitializedParameter)


def fault_of_forward(
    build: Callable[[], nn.Module], shape: tuple[int, ...], classes: int
) -> str | None:
    """Whether a model makes logits that follow from its images, and in training from torch's seed.

    It is built here, from torch's global generator.
    """
    with seeded(0, CPU), torch.no_grad():
        module = build()
        x = torch.rand(2, *shape)
        parameters = {n: v.detach().clone() for n, v in module.named_parameters()}
        buffers = {n: v.detach().clone() for n, v in module.named_buffers()}
        try:
            logits = [_logits(module.eval()(x)) for _ in range(2)]
            module.train()
            torch.default_generator.manual_seed(1)
            logits.append(_logits(module(x)))
            state = {n: v.clone() for n, v in module.named_buffers()}
            torch.default_generator.manual_seed(1)
            logits.append(called(module, parameters, buffers, x))
        except Exception as error:
            reason = " ".join(str(error).split())
            return f"{FAILS} {shape}: {type(error).__name__}: {reason}"
    found: list[Tensor] = []
    for z in logits:
        if not isinstance(z, Tensor) or z.shape != (2, classes):
            what = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            return f"it returns {what} for 2 images; needed is (2, {classes})"
        found.append(z.nan_to_num())
    if not torch.equal(found[0], found[1]):
        return "it is random in evaluation, too: two evaluations of the same weights differ"
    if not torch.equal(found[2], found[3]):
        return "its randomness does not come from torch's generators, so a seed does not decide it"
    lost = [n for n in state if not torch.equal(state[n], buffers[n])]
    if lost:
        return f"it changes its buffer {lost[0]} in a way that is lost where a stack calls it"
    return None


def fault_of_one_image(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> str | None:
    """Why a model fails on a batch of one image in training, if it does."""
    with seeded(0, CPU), torch.no_grad():
        try:
            build().train()(torch.rand(1, *shape))
        except Exception as error:
            return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def _logits(found: object) -> object:
    """The logits among what a model returns: the first of several."""
    return found[0] if isinstance(found, tuple) else found


def maps(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> bool:
    """Whether the members of a model are to be mapped: where torch can, and it is no slower.

    Mapped convolutions become grouped ones, which a CPU computes more slowly than one after
    another (bench/LOG.md has the times).
    """
    stack = Stack(build, 2, 0, CPU)
    if stack.fast:
        return True
    if any(isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) for part in stack.module.modules()):
        return False
    with seeded(0, CPU):
        stack.trainable(torch.float32)
        stack.train(torch.default_generator)
        return mappable(lambda: torch.autograd.backward(stack(torch.rand(2, *shape)).sum()))
