"""What the report is made of: sweeps as read from their directories, and what became of claims.

Letters: C classes, H and W an image's size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from distill.report.statistics import Interval

REPRODUCED, NOT, UNDECIDED = "reproduced", "not reproduced", "not decided"
# The scales on which a key is searched; its choices have none.
LINEAR, LOG, CHOICES = "linear", "log", "choices"


@dataclass(frozen=True)
class Digit:
    """A training example and the teacher's logits (C,) for it; ``pixels`` (H, W) uint8."""

    label: int
    pixels: "np.ndarray[Any, Any]"
    logits: "np.ndarray[Any, Any]"


@dataclass(frozen=True)
class Trial:
    """A trial of a study.

    ``values`` are those of the objectives: of a stopped one when it was stopped, and of one that
    diverged or failed there are none.
    """

    number: int
    state: str
    params: Mapping[str, Any]
    values: tuple[float, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Best:
    """One of the best trials: its errors once trained on all data, and what trains it again."""

    number: int
    test_errors: int | None = None
    command: str = ""


@dataclass(frozen=True)
class Importance:
    """How much each key matters ``of`` something, by ``n`` trials; or, by ``note``, why not."""

    of: str
    n: int
    shares: Mapping[str, float]
    note: str = ""


@dataclass(frozen=True)
class Gain:
    """What the best gained over the defaults of what was searched.

    ``pairs`` are the test errors of both for each seed, the best's first; ``number`` is the trial
    that they are of; the ``commands`` make more of them; ``note`` says what is lacking.
    """

    defaults: Mapping[str, Any]
    number: int | None = None
    pairs: tuple[tuple[float, float], ...] = ()
    commands: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Study:
    """A study: its trials by their numbers, and what follows from them.

    ``keys`` are those searched, and on which scale; ``best`` is the best trial, or those of
    the Pareto front; ``missing`` says what could not be read. What the best of one that is
    ``compared`` with others came to, the comparison says.
    """

    name: str
    objectives: tuple[str, ...]
    keys: Mapping[str, str]
    trials: tuple[Trial, ...]
    best: tuple[Best, ...] = ()
    importances: tuple[Importance, ...] = ()
    gain: Gain | None = None
    missing: tuple[str, ...] = ()
    compared: bool = False


@dataclass(frozen=True)
class Difference:
    """Errors of a candidate less those of a reference, within seeds; ``p`` adjusted by Holm."""

    found: Interval
    p: float
    verdict: str


@dataclass(frozen=True)
class Candidate:
    """One that was tuned, and then trained with fresh seeds.

    ``errors`` are its test errors after the last epoch, by seed, and ``teachers`` those of its
    teachers, if it had any; ``best_epoch`` is the mean of the fewest after any epoch, which are
    chosen on the test set. ``trials`` says how many ended how;
    ``chosen`` are the values of trial ``trial`` of the ``study``, which had ``val_errors``, and
    which the ``command`` trains. Where no trial completed, there is a ``reason`` instead.
    """

    name: str
    study: str
    errors: "pd.Series[float]"
    teachers: "pd.Series[float]"
    best_epoch: float | None
    trials: Mapping[str, int]
    chosen: Mapping[str, Any] = field(default_factory=dict)
    trial: int | None = None
    val_errors: int | None = None
    command: str = ""
    reason: str = ""
    differences: Mapping[str, Difference] = field(default_factory=dict)


@dataclass(frozen=True)
class Compared:
    """A whole comparison; the best candidates come first.

    ``seeds`` are those of the final runs, ``seed`` that of the trials, of which each candidate had
    as many as ``trials`` says; ``kinds`` are the precisions and devices of the final runs.
    """

    candidates: tuple[Candidate, ...]
    references: tuple[str, ...]
    trials: int
    seed: int
    seeds: tuple[int, ...]
    kinds: tuple[str, ...] = ()

    @property
    def lacking(self) -> dict[str, int]:
        """How many final runs each candidate lacks, which failed or diverged."""
        counts = {c.name: len(self.seeds) - len(c.errors) for c in self.candidates}
        return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True)
class Unfinished:
    """What a sweep that is not finished lacks.

    ``done`` of the ``jobs`` that were planned ended; where those are not known, they are 0.
    ``counts`` says how the others stand, ``settings`` which they are, as far as there is room, and
    ``more`` how many runs of others; ``training`` says how far those are that train now. The sweep
    is ``active`` while its command, or a stack, is at work.
    """

    done: int
    jobs: int
    counts: tuple[str, ...]
    settings: tuple[str, ...]
    more: int = 0
    training: tuple[str, ...] = ()
    active: bool = False

    def __str__(self) -> str:
        """How many runs there are, and how the others stand, in a sentence."""
        of = f"{self.done} of {self.jobs} planned runs ended" if self.jobs else "not all runs ended"
        return f"{of}; {', '.join(self.counts)}"


@dataclass(frozen=True)
class Sweep:
    """A sweep's directory.

    ``runs`` are the complete rows of its summary, ``diverged`` those that diverged; ``curves`` the
    rows of every run's history, with a column ``run``, where there are any; ``commits`` those of
    the code that made them.
    """

    name: str
    folder: Path
    runs: pd.DataFrame
    commands: tuple[str, ...] = ()
    curves: pd.DataFrame | None = None
    digits: tuple[Digit, ...] = ()
    studies: tuple[Study, ...] = ()
    comparisons: tuple[Compared, ...] = ()
    unfinished: Unfinished | None = None
    commits: tuple[str, ...] = ()
    diverged: pd.DataFrame | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean of ``n`` seeds with its 95 % interval."""

    label: str
    n: int
    mean: float
    low: float
    high: float
    unit: str = "test errors"


@dataclass(frozen=True)
class Finding:
    """A claim, the test that was written down for it beforehand, and what it gave on a sweep.

    ``rule`` is the commit that wrote the test down, ``commit`` that of the code that made the runs.
    """

    id: str
    claim: str
    source: str
    estimates: tuple[Estimate, ...]
    verdict: str
    test: str
    outcome: str
    sweep: str
    command: str
    version: str
    folder: Path = Path()
    rule: str = ""
    commit: str = ""
