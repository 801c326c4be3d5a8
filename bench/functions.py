"""`python -m bench.functions DIR [--out DIR]`: students at high temperatures, logit matching (C11).

For each seed and temperature the distance of two functions on the test images: the root mean
square, over images and classes, of the difference of their logits, each of mean 0 over the classes.
Beside it that of two students of the same teacher which match its logits, of different seeds.
"""

import pandas as pd
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
    others = _others(found, pd.DataFrame([*matching.values()]))
    logits: dict[int, Tensor] = {}
    for seed, run in matching.items():
        own = student(found, run)
        images = read(check(own.config).data).test_inputs
        logits[seed] = own.logits(images)
    for t, runs in pairs[pairs["loss"] == "kd"].groupby("temperature"):
        for seed, run in by_seed(found, runs, f"students at T = {t:g}").items():
            same = matching.get(seed)
            if same is None or same["teacher_digest"] != run["teacher_digest"]:
                lacks = f"it has no student of seed {seed} that matches its teacher's logits"
                raise ReportError(f"DIR={found.folder}: {lacks}")
            yield {
                "run": f"T{t:g}-seed{seed}",
                "temperature": t,
                "examples": len(images),
                "distance": distance(student(found, run).logits(images), logits[seed]),
                "between": distance(logits[seed], logits[others[seed]]),
                **said(found, run),
            }


def _others(found: Sweep, matching: pd.DataFrame) -> dict[int, int]:
    """The seed of the other student of the same teacher, by the seed of each that match logits.

    Raises:
        ReportError: a teacher has one of them, or more than two.
    """
    others: dict[int, int] = {}
    for _, seeds in matching.groupby("teacher_digest")["seed"]:
        if len(seeds) != 2:
            raise ReportError(
                f"DIR={found.folder}: the teacher of seed {seeds.iloc[0]} has {len(seeds)} of the "
                "students that match logits; two are wanted, as of experiment=logit_matching_again"
            )
        one, other = map(int, seeds)
        others |= {one: other, other: one}
    return others


@command
def main() -> None:
    """Write the summary."""
    write("functions", "Write the distances of the students in DIR, of logit_limit.", measure)


if __name__ == "__main__":
    main()
