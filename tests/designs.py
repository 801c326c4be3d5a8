"""Runs made up for claims: rows like those that their experiments would leave."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from conftest import reference
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from distill.config import parse
from distill.findings.claims import CLAIMS, RATES
from distill.report.contents import Finding, Sweep
from distill.runs.columns import SHOWN
from distill.runs.execute import composed
from distill.runs.results import leaves
from distill.sweeps.compose import task_config
from distill.system.conf import CONF

EXPERIMENTS = CONF / "experiment"
FIRST = 10  # the first seed that counts
Rows = list[dict[str, Any]]


@cache
def designed(experiment: str, width: int | None = None) -> pd.DataFrame:
    """Settings of an experiment's runs, as a summary has them.

    In the first row each swept key has its first value, but for the ``width``, if one is given, and
    then one after another all others.
    """
    with initialize_config_dir(str(CONF)):
        whole = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
    swept: dict[str, list[Any]] = {}
    for key, values in whole.hydra.sweeper.params.items():
        [parsed] = OverridesParser.create().parse_overrides([f"{key}={values}"])
        single = not parsed.is_sweep_override()
        swept[str(key)] = [parsed.value()] if single else [*parsed.sweep_iterator()]
    first = {key: values[0] for key, values in swept.items()}
    first |= {"model.width": width} if width else {}
    rows = []
    for chosen in (first, *({**first, k: v} for k, values in swept.items() for v in values[1:])):
        config = task_config(whole.copy())
        for key, value in chosen.items():
            known = yaml.safe_load(value) if isinstance(value, str) else value
            OmegaConf.update(config, key, known)
        run = parse(config)
        said = leaves(run.model_dump(by_alias=True, exclude=run.unsaid))
        row = {key: value for key, value in said if key not in SHOWN and "._target_" not in key}
        machine = {"precision": "fp32", "device": "cpu"}
        rows.append(
            row
            | composed(run)
            | machine
            | {"transfer_examples": 60_000 - round(60_000 * float(run.data.validation))}
        )
    return pd.DataFrame(rows)


def spread(mean: float, n: int, noise: float = 2.0, shift: int = 0) -> list[float]:
    """Whole errors around a mean, which differ from seed to seed."""
    return [round(mean + noise * math.sin(7 * k + shift)) for k in range(n)]


def rows(n: int, mean: float, noise: float = 2.0, **settings: Any) -> Rows:
    salt = sum(map(ord, repr(sorted(settings.items()))))
    return [
        {"seed": FIRST + k, "test_errors": e, **settings}
        for k, e in enumerate(spread(mean, n, noise, salt))
    ]


def networks(hard: float, soft: float, taught: float, n: int = 20) -> Rows:
    made = rows(n, hard, alpha=0.0) + rows(n, soft, alpha=0.6667)
    for row in made:
        row["teacher_digest"] = str(row["seed"])
        row["teacher_test_errors"] = spread(taught, n)[row["seed"] - FIRST]
    return made


def temperatures(
    errors: Callable[[float], float], width: int, noise: float = 2.0, n: int = 20, **other: Any
) -> Rows:
    grid = (10, 15, 20, 40, 100) if width > 30 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 20, 40)
    return [r for t in grid for r in rows(n, errors(t), noise, temperature=t, width=width, **other)]


def wide(
    errors: Callable[[float], float], noise: float = 2.0, n: int = 24, wider: int = 12
) -> Rows:
    """Runs of 300 units, and of 800 (of ``wider`` seeds) whose errors hang on no temperature."""
    made = temperatures(errors, 300, noise, n)
    return [*made, *temperatures(lambda _: 90, 800, 2.0, wider)]


def valley(t: float) -> float:
    """Errors that are fewest at T = 3."""
    return 230 + 40 * abs(math.log2(t / 3))


def shifted(
    before: float, after: float, threes: int, n: int = 10, of: int | None = None, **other: Any
) -> Rows:
    """Errors, and among them ``threes``, ``of`` so many, or nearly all, before the shift."""
    made = rows(n, before, alpha=0.6667, **other)
    for row, errors in zip(made, spread(after, n), strict=True):
        wrong = row["test_errors"] - 6 if of is None else of
        row["test_errors_by_class"] = f"1 2 3 {wrong} 0 0 0 0 0 0"
        for name, more in (("oracle", 0), ("bias", 5), ("mass", 40)):
            row[f"{name}_shift"] = 3.5 - more / 10
            row[f"{name}_shift_test_errors"] = errors + more
            wrong = (threes + row["seed"] % 2, 1, 1)[("oracle", "bias", "mass").index(name)]
            row[f"{name}_shift_test_errors_by_class"] = f"9 9 9 {wrong} 9 9 9 9 9 9"
    return made


def fractions(soft: float) -> Rows:
    """Errors at shares of the data: hard ones lose 500 at 3 %, soft ones ``soft``."""
    hard, taught = {0.03: 600, 1.0: 100}, {0.03: 100 + soft, 1.0: 90}
    made = [
        *(r for f, e in hard.items() for r in rows(5, e, alpha=0.0, transfer_fraction=f)),
        *(r for f, e in taught.items() for r in rows(5, e, alpha=1.0, transfer_fraction=f)),
    ]
    for row in made:
        share = row["transfer_fraction"]
        row |= {"epochs": round(60 / share), "transfer_examples": round(57_600 * share)}
        row["best_test_errors"] = row["test_errors"]
        row["test_errors"] += 100 * (row["alpha"] == 0)  # of labels, after the best epoch
    return made


def rates(hard: float, soft: float, hot: float) -> Rows:
    """Errors that explode above the longest step that each loss bears: ``hot`` soft at T = 20.

    The best steps are that one and half of it; shorter ones cost a quarter more.
    """
    most = {(0.0, 20.0): hard, (1.0, 20.0): hot, **{(1.0, t): soft for t in (1.0, 2.0, 4.0)}}
    return [
        {"seed": FIRST + k, "test_errors": errors + k, "lr": lr} | at
        for (alpha, temperature), end in most.items()
        for at in ({"alpha": alpha, "temperature": temperature},)
        for lr in RATES
        for errors in (300 if lr > end else 100 if lr >= end / 2 else 125,)
        for k in range(5)
    ]


def mixed(one: Rows, other: Rows, seeds: int) -> Rows:
    """The first seeds of ``one`` and the rest of ``other``."""
    end = FIRST + seeds
    return [r for r in one if r["seed"] < end] + [r for r in other if r["seed"] >= end]


def ensembles(single: float, together: float, distilled: float) -> Rows:
    made = rows(5, single, alpha=0.0) + rows(5, distilled, alpha=0.6667)
    for row in made:
        row["teacher_digest"] = str(row["seed"])
        row["teacher_test_errors"] = spread(together, 5)[row["seed"] - FIRST]
        row["test_loss"] = row["test_errors"] / 3000
    return [*made, *choices()]


def choices(best: tuple[float, float] = (2.0, 0.6667)) -> Rows:
    """Untested runs that choose a temperature and alpha."""
    return [
        {"seed": seed, "temperature": t, "alpha": a, "val_errors": 150 - 20 * ((t, a) == best) + t,
         "teacher_digest": f"choice{seed}", "test": False, "data.validation": 0.1667,
         "transfer_examples": 49_998, "test_errors": math.nan}
        for t in (2.0, 4.0, 8.0, 20.0) for a in (0.6667, 1.0) for seed in (0, 1, 2)
    ]  # fmt: skip


def identities(claim: str, deviation: float) -> Rows:
    grid = (1e8,) if claim == "C11" else (1.0, 4.0)
    return [{"claim": claim, "temperature": t, "examples": 9, "deviation": deviation} for t in grid]


def posts(teacher: float, hard: float, soft: float, n: int = 5) -> Rows:
    made = networks(hard, soft, teacher, n)
    for row in made:
        row |= {"alpha": 0.7, "epochs": 600} if row["alpha"] else {"epochs": 200}
        for name in ("test_errors", "teacher_test_errors"):
            row[name.replace("test_", "test_shifted_")] = row[name] + 0.25
            row[name] -= 20
    return made


def made_sweep(claim: str, made: Rows, name: str = "mine", **other: Any) -> Sweep:
    """A sweep of rows like those of the claim's experiment in all that they and ``other`` leave."""
    sweep = next(c.sweep for c in CLAIMS if c.id == claim)
    whole = (
        designed(sweep) if (EXPERIMENTS / f"{sweep}.yaml").is_file() else reference()[sweep].runs
    )
    base: dict[Any, Any] = {**whole.iloc[0].to_dict(), "version": "1.2", **other}
    frame = pd.DataFrame(
        [
            {**base, "teacher.seed": r.get("seed", 0), "seed": FIRST, "run": f"run{n}", **r}
            for n, r in enumerate(made)
        ]
    )
    return Sweep(name, Path(name), frame, ("distill experiment=x",))


def find(claim: str, made: Rows, name: str = "mine", **other: Any) -> Finding:
    sweep = made_sweep(claim, made, name, **other)
    return next(c for c in CLAIMS if c.id == claim).judge(sweep).finding
