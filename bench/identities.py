"""`python -m bench.identities [DIR]`: the identities of the losses (C11, C12), in float64.

A summary of relative deviations for distill-report: the largest difference of two gradients over
the largest component of the second. z are the student's logits and v the teacher's.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from torch import Tensor

from distill import __version__
from distill.losses import kd, logits
from distill.runs.results import SUMMARY, SWEEP
from distill.system.conf import commit
from distill.system.store import home, told, write_text
from distill.system.terminal import command

EXAMPLES, CLASSES = 1000, 10
TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 8.0, 20.0, 40.0, 100.0)
LIMIT = 1e8
FOLDER = Path(__file__).parents[1] / "multirun" / "identities"


def deviations() -> Iterator[tuple[str, float, float]]:
    """A claim, a temperature, and how far the gradients are from what the claim says."""
    generator = torch.Generator().manual_seed(0)
    z, v = (5 * torch.randn(EXAMPLES, CLASSES, generator=generator).double() for _ in range(2))
    labels = torch.zeros(EXAMPLES, dtype=torch.long)

    def soft(temperature: float) -> Tensor:
        """The gradient (EXAMPLES, CLASSES) of kd's soft term."""
        own = z.clone().requires_grad_()
        loss = kd(own, v, labels, temperature=temperature, alpha=1.0)[0].sum()
        return torch.autograd.grad(loss, own)[0]

    own = z.clone().requires_grad_()
    [limit] = torch.autograd.grad(logits(own, v, labels, alpha=1.0)[0].sum(), own)
    yield "C11", LIMIT, _relative(soft(LIMIT), limit)
    for t in TEMPERATURES:
        of_kl = ((z / t).softmax(-1) - (v / t).softmax(-1)) / t  # the paper, equation 2
        yield "C12", t, _relative(soft(t), t**2 * of_kl)


def record(commands: list[str]) -> dict[str, Any]:
    """What stands in ``sweep.yaml`` of something measured by ``commands``."""
    made = commit()
    known = {"commits": [made]} if made else {}
    return {"commands": commands, "version": __version__, **known}


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@command
def main() -> None:
    """Write the summary into DIR."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.identities", description="Write a summary of the identities into DIR."
    )
    parser.add_argument("directory", metavar="DIR", type=home, nargs="?", default=str(FOLDER))
    folder = Path(parser.parse_args().directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder)
    except OSError as error:
        sys.exit(told(error) or str(error))
    print(folder / SUMMARY)


def _write(folder: Path) -> None:
    rows = [
        {
            "run": f"{claim}-T{t:g}",
            "status": "complete",
            "claim": claim,
            "temperature": t,
            "examples": EXAMPLES,
            "deviation": deviation,
            "version": __version__,
        }
        for claim, t, deviation in deviations()
    ]
    write_text(folder / SUMMARY, pd.DataFrame(rows).to_csv(index=False))
    write_text(folder / SWEEP, yaml.safe_dump(record(["python -m bench.identities"])))


if __name__ == "__main__":
    main()
