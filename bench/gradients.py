"""`python -m bench.gradients DIR [--out DIR]`: gradients of soft and hard targets (C9, C12).

Of students of 300 units that were trained at some temperature, with labels in the loss: the root
mean square norm of the gradient by all parameters, mean over a batch of the training images, of
T^2 KL and of cross-entropy with labels; and its noise scale B = tr(Sigma) / |G|^2 (McCandlish et
al. 2018, arXiv 1812.06162, appendix A). Both follow from the squared norms of the gradients of
single images and of that of all. A trained student at its own temperature; as they are
initialised, alike at all, one of each seed at each temperature. In evaluation mode and float32, on
images as they are.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from bench.students import Rows, alike, by_seed, said, student, write
from distill import ConfigError
from distill.config import check
from distill.findings.measured import TEMPERATURES
from distill.losses import kd
from distill.report.contents import Sweep
from distill.runs.job import Job
from distill.runs.students import students
from distill.system.terminal import command
from distill.teachers.find import centre_targets, find_teacher, made, teacher_cache
from distill.training.inputs import training_inputs

WIDTH = 300  # of the students
BATCH = 2000  # images in a product
Target = tuple[str, float]  # "soft" and its temperature, or "labels" and nan


class Norms(NamedTuple):
    """The squared norm of the mean gradient, and the mean of those of single images' gradients."""

    whole: float
    single: float


def slopes(
    student: Tensor, teacher: Tensor, labels: Tensor, temperatures: Sequence[float]
) -> dict[Target, Tensor]:
    """The gradients (B, C) of each image's loss by its logits, for each target.

    Args:
        student: logits (B, C).
        teacher: logits (B, C).
        labels: (B,).
        temperatures: of the soft targets.
    """
    own = student.detach().requires_grad_()

    def of(temperature: float, alpha: float) -> Tensor:
        loss = kd(own, teacher, labels, temperature=temperature, alpha=alpha)[0].sum()
        return torch.autograd.grad(loss, own)[0]

    soft = {("soft", float(t)): of(t, 1.0) for t in temperatures}
    return {("labels", math.nan): of(1.0, 0.0), **soft}


def norms(
    model: nn.Module,
    x: Tensor,
    v: Tensor,
    labels: Tensor,
    temperatures: Sequence[float] = TEMPERATURES,
) -> dict[Target, Norms]:
    """Squared norms of gradients: of that of the mean loss, and the mean of those of each image.

    A linear layer that is given a, and the gradient d of whose output is known, has the gradients
    d a' and d of an image, whose squared norms have the sum |d|^2 (1 + |a|^2) (Goodfellow 2015,
    arXiv 1510.01799).

    Args:
        model: from inputs to logits, whose parameters are those of linear layers on (B, D).
        x: inputs (N, ...).
        v: the teacher's logits (N, C).
        labels: (N,).
        temperatures: of the soft targets.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    hooks = [h.register_forward_hook(lambda _, a, out: seen.append((a[0], out))) for h in layers]
    sums: dict[Target, list[Tensor]] = {}
    singles: dict[Target, float] = {}
    for part in torch.split(torch.arange(len(x)), BATCH):
        seen.clear()
        z = model(x[part])
        outputs = [out for _, out in seen]
        given = [(a.detach(), 1 + _squares(a.detach())) for a, _ in seen]
        for target, slope in slopes(z, v[part], labels[part], temperatures).items():
            ds = torch.autograd.grad(z, outputs, slope, retain_graph=True)
            pairs = [*zip(ds, given, strict=True)]
            own = [g.double() for d, (a, _) in pairs for g in (d.T @ a, d.sum(0))]
            known = sums.get(target, [torch.zeros(())] * len(own))
            sums[target] = [one + other for one, other in zip(known, own, strict=True)]
            single = sum(float(_squares(d) @ squares) for d, (_, squares) in pairs)
            singles[target] = singles.get(target, 0.0) + single
    for hook in hooks:
        hook.remove()
    n = len(x)
    means = {
        target: sum(float((g / n).square().sum()) for g in own) for target, own in sums.items()
    }
    return {target: Norms(whole, singles[target] / n) for target, whole in means.items()}


def _squares(rows: Tensor) -> Tensor:
    """The squared norms (B,) of rows (B, D)."""
    return rows.double().square().sum(-1)


def noise_scale(norms: Norms, examples: int) -> float:
    """tr(Sigma) / |G|^2 by the squared norms at the batch sizes N and 1 (appendix A.1).

    Not a number where so few examples estimate |G|^2 as none.

    Example:
        >>> noise_scale(Norms(whole=2.0, single=11.0), examples=10)
        10.0
    """
    signal = (examples * norms.whole - norms.single) / (examples - 1)
    noise = (norms.single - norms.whole) / (1 - 1 / examples)
    return noise / signal if signal > 0 else math.nan


def of_a_batch(norms: Norms, examples: int, batch: int) -> float:
    """The root mean square norm of the gradient of a batch, drawn without replacement as epochs do.

    Its square is |G|^2 + tr(Sigma) / B, with Sigma of the N examples, times (N - B) / (N - 1)
    since none is drawn twice (Cochran 1977, Sampling Techniques, theorem 2.2).

    Example:
        >>> of_a_batch(Norms(whole=4.0, single=11.0), 8, 1) ** 2  # of single examples
        11.0
        >>> of_a_batch(Norms(whole=4.0, single=11.0), 8, 8)  # of all
        2.0
    """
    batch = min(batch, examples)
    left = (examples - batch) / (batch * max(1, examples - 1))
    return math.sqrt(norms.whole + (norms.single - norms.whole) * left)


def measure(found: Sweep) -> Rows:
    """A row a seed, state, temperature and target.

    Raises:
        ReportError, ConfigError: students or teachers are lacking, or students are not alike.
    """
    runs = found.runs
    kind = runs["loss"].eq("kd") & runs["model"].eq("mlp") & runs["width"].eq(WIDTH)
    own = runs[(kind & runs["temperature"].isin(TEMPERATURES)).fillna(value=False)]
    each = {
        t: by_seed(found, own[own["temperature"] == t], f"students (kd, mlp, {WIDTH} units), T={t}")
        for t in TEMPERATURES
    }
    alike(found, own, ("temperature",))
    for run in each[TEMPERATURES[0]].values():
        yield from _rows(found, run, "initial", TEMPERATURES)
    for t, students_at in each.items():
        for run in students_at.values():
            yield from _rows(found, run, "trained", (t,))


def _rows(found: Sweep, run: "pd.Series[Any]", state: str, temperatures: Sequence[float]) -> Rows:
    """The rows of one student in one ``state``: initial, or trained."""
    trained = student(found, run)
    # Which decide the teacher: as the run used them, not as this machine would choose.
    used = {key: str(run[key]) for key in ("precision", "device")}
    job = Job(check({**trained.config, **used}))
    soft = _teacher(job, str(run["teacher_digest"]), found.folder / str(run["directory"]))
    index = job.index.to(soft.device)
    x = training_inputs(job.setting, 0, False).batch(index, 0, torch.float32).cpu()
    v, labels = soft[index].float().cpu(), job.data.train_labels[job.index]
    if state == "initial":
        trained.model.load_state_dict(students([job], [soft[:, None]]).stack.state(0))
    for (target, t), of in norms(trained.model, x, v, labels, temperatures).items():
        at = "" if math.isnan(t) else f"-{t:g}"
        yield {
            "run": f"{state}-T{run['temperature']:g}-{target}{at}-seed{run['seed']}",
            "state": state,
            "target": target,
            "temperature": t,
            "examples": len(x),
            "norm": of_a_batch(of, len(x), job.run.train.batch_size),
            "noise_scale": noise_scale(of, len(x)),
            **said(found, run),
        }


def _teacher(job: Job, digest: str, directory: Path) -> Tensor:
    """The logits (N, C) for the training images of the teacher that a run learned from.

    Raises:
        ConfigError: it is not in the cache, or another one.
    """
    teacher, every = job.run.teacher, job.run.checkpoint.every
    assert job.way is not None
    itself = replace(job.way, online=True)  # whatever soft targets were kept of it
    if not made(job.setting, teacher, itself):
        cache = teacher_cache(job.setting.data, teacher)
        raise ConfigError(
            f"{directory}: its teacher is not in {cache}; the sweep's command with resume=false "
            "makes it again"
        )
    if find_teacher(job.setting, teacher, every).digest != digest:
        raise ConfigError(f"{directory}: its teacher is not the one that is found now")
    return centre_targets(job.setting, teacher, every)


@command
def main() -> None:
    """Write the summary."""
    write("gradients", "Write norms and noise scales of gradients of the students in DIR.", measure)


if __name__ == "__main__":
    main()
