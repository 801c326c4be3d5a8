"""`python -m bench.functions DIR [--out DIR]`: students at high temperatures, logit matching (C11).

For each seed and temperature the distance of two functions on the test images: the root mean
square, over images and classes, of the difference of their logits, each of mean 0 over the classes.
"""

from torch import Tensor

from bench.students import Rows, alike, by_seed, said, student, write
from distill.config import check
from distill.report.contents import Sweep
from distill.report.reading import ReportError
from distill.system.terminal import command
from distill.training.inputs import read


def distance(one: Tensor, other: Tensor) -> float:
    """The rms difference of zero-meaned logits (N, C).

    Example:
        >>> distance(torch.tensor([[1.0, 3.0]]), torch.tensor([[7.0, 7.0]]))
        1.0
    """
    apart = one.double() - other.double()
    return float((apart - apart.mean(-1, keepdim=True)).square().mean().sqrt())


def measure(found: Sweep) -> Rows:
    """A row a seed and temperature.

    Raises:
        ReportError, ConfigError: students are lacking, or differ in more than loss and temperature.
    """
    pairs = found.runs[found.runs["loss"].isin(["kd", "logits"])]
    alike(found, pairs, ("loss", "temperature"))
    matching = by_seed(found, pairs[pairs["loss"] == "logits"], "students that match logits")
    logits: dict[int, Tensor] = {}
    for seed, run in matching.items():
        own = student(found, run)
        images = read(check(own.config).data).test_inputs
        logits[seed] = own.logits(images)
    seeds = [*logits]
    if len(seeds) == 1:
        raise ReportError(f"DIR={found.folder}: it has one seed; the distance of two is wanted")
    following = dict(zip(seeds, [*seeds[1:], seeds[0]], strict=True))
    between = {s: distance(logits[s], logits[following[s]]) for s in seeds}
    for t, runs in pairs[pairs["loss"] == "kd"].groupby("temperature"):
        for seed, run in by_seed(found, runs, f"students at T = {t:g}").items():
            if seed not in logits:
                lacks = f"it has no student of seed {seed} that matches logits"
                raise ReportError(f"DIR={found.folder}: {lacks}")
            yield {
                "run": f"T{t:g}-seed{seed}",
                "temperature": t,
                "examples": len(images),
                "distance": distance(student(found, run).logits(images), logits[seed]),
                "between": between[seed],
                **said(found, run),
            }


@command
def main() -> None:
    """Write the summary."""
    write("functions", "Write the distances of the students in DIR, of logit_limit.", measure)


if __name__ == "__main__":
    main()
