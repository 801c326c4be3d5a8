"""What the training loop takes for granted of a loss and a model, tried on a few random numbers.

Each function returns what is wrong, in words, or None. Letters: B examples, C classes, K alphas.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.parameter import UninitializedParameter

from distill.seeds import seeded

B, ALPHAS = 6, (0.0, 1.0, 0.25, 0.5, 0.9)
CPU = torch.device("cpu")


def fault_of_loss(
    loss: Callable[..., Tensor], options: Mapping[str, Any], classes: int
) -> str | None:
    """Whether a loss with these hyperparameters keeps to what `distill.losses` says."""
    generator = Generator().manual_seed(0)
    z, v = (3 * torch.randn(B, classes, generator=generator).double() for _ in range(2))
    labels = torch.randint(classes, (B,), generator=generator)
    distils = "alpha" in options
    alphas = torch.tensor(ALPHAS).double().requires_grad_()
    mapped = {name: torch.tensor([value] * len(ALPHAS)) for name, value in options.items()}
    mapped = {n: x.double() if x.is_floating_point() else x for n, x in mapped.items()}
    mapped |= {"alpha": alphas} if distils else {}
    own = z.expand(len(ALPHAS), B, classes).clone().requires_grad_()
    given = (v.clone() if distils else None, labels.clone())

    def member(logits: Tensor, hyperparameters: Mapping[str, Tensor]) -> Tensor:
        return loss(logits, *given, **hyperparameters)

    without = "" if distils else " (without an alpha it is given no teacher logits)"
    try:
        values = torch.vmap(member)(own * 1, mapped)
    except Exception as error:
        reason = " ".join(str(error).split())
        return f"it fails on random logits{without}: {type(error).__name__}: {reason}"
    if not isinstance(values, Tensor) or values.shape[1:] != (B,):
        shape = tuple(values.shape[1:]) if isinstance(values, Tensor) else type(values).__name__
        return f"it returns {shape} for {B} examples; needed is ({B},), one value an example"
    if not values.is_floating_point() or not values.requires_grad:
        return f"it returns {values.dtype} without a gradient by student_logits; needed is one"
    if (given[0] is not None and not torch.equal(given[0], v)) or not torch.equal(given[1], labels):
        return "it changes its teacher_logits or labels in place; they must stay as they are"
    if not values.isfinite().all():
        return "it is not finite on random logits"
    return _fault_of_alpha(values, alphas) if distils else None


def _fault_of_alpha(values: Tensor, alphas: Tensor) -> str | None:
    """Whether values (K, B) at some alphas, the first two 0 and 1, are a mixture of two terms."""
    hard, soft = values.detach()[:2]
    weight = alphas.detach()[:, None]
    slopes = torch.zeros(len(alphas))
    [found] = torch.autograd.grad(values.sum(), alphas, allow_unused=True)
    slopes = slopes if found is None else found
    scale = max(soft.abs().max().item(), hard.abs().max().item())
    gap = (values.detach() - weight * soft - (1 - weight) * hard).abs().max().item()
    slope = (slopes - (soft - hard).sum()).abs().max().item() / B
    if max(gap, slope) <= 1e-6 * scale:
        return None
    return (
        f"it is not linear in alpha: off by {max(gap, slope) / scale:.2g} of its largest value; "
        "needed is alpha * soft + (1 - alpha) * hard for each alpha from 0 to 1, since train_soft "
        "and train_hard are taken from that"
    )


def fault_of_parts(module: nn.Module) -> str | None:
    """Whether a model consists of float32 parameters alone, all of which are trained."""
    parameters = dict(module.named_parameters())
    kinds = {
        "buffers, which are not carried from batch to batch": [
            n for n, _ in module.named_buffers()
        ],
        "parameters of unknown shape": [n for n, p in parameters.items() if _is_lazy(p)],
        "parameters without requires_grad, which would be trained all the same": [
            n for n, p in parameters.items() if not p.requires_grad
        ],
        "parameters that are not float32": [
            n for n, p in parameters.items() if p.dtype != torch.float32
        ],
    }
    for what, names in kinds.items():
        if names:
            more = ", ..." if len(names) > 4 else ""
            return f"it has {what}: {', '.join(names[:4])}{more}"
    return None if parameters else "it has no parameters"


def _is_lazy(parameter: Tensor) -> bool:
    return isinstance(parameter, UninitializedParameter)


def fault_of_forward(
    build: Callable[[], nn.Module], shape: tuple[int, int, int], classes: int
) -> str | None:
    """Whether a model makes logits that follow from its images, and in training from torch's seed.

    It is built here, from torch's global generator.
    """
    with seeded(0, CPU), torch.no_grad():
        module = build()
        x = torch.rand(2, *shape)
        try:
            logits = [module.eval()(x) for _ in range(2)]
            module.train()
            for _ in range(2):
                torch.default_generator.manual_seed(1)
                logits.append(module(x))
        except Exception as error:
            reason = " ".join(str(error).split())
            return f"it fails on images {shape}: {type(error).__name__}: {reason}"
    if logits[0].shape != (2, classes):
        return f"it returns {tuple(logits[0].shape)} for 2 images; needed is (2, {classes})"
    if not torch.equal(*(z.nan_to_num() for z in logits[:2])):
        return "it is random in evaluation, too: two evaluations of the same weights differ"
    if not torch.equal(*(z.nan_to_num() for z in logits[2:])):
        return "its randomness does not come from torch's generators, so a seed does not decide it"
    return None
