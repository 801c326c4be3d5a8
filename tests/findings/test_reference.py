"""The reference sweeps: they are those of the experiments, and what is said of them follows."""

import re
from itertools import product
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import reference
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bench.evidence import SWEEPS
from distill.config import parse
from distill.findings.claims import CLAIMS, findings
from distill.report.page import markdown
from distill.runs.job import SCHEMA
from distill.runs.results import SUMMARY
from distill.sweeps.compose import task_config
from distill.system.conf import CONF

ROOT = CONF.parent
REFERENCE = ROOT / "multirun" / "reference"
MNIST = "a0cbb2360a04a8207dea224af10a61c580a8be404f12230fe62dc6e72a9e0462"  # of its images, labels


def digests(experiment: str, overrides: dict[str, str]) -> set[str]:
    """The digests that end the names of an experiment's runs, as its yaml stands."""
    with initialize_config_dir(str(CONF)):
        whole = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
    params = {**whole.hydra.sweeper.params, **overrides}
    found = set()
    for values in product(*(str(swept).split(",") for swept in params.values())):
        config = task_config(whole.copy())
        for key, value in zip(params, values, strict=True):
            OmegaConf.update(config, str(key), yaml.safe_load(value))
        found.add(parse(config).digest({"data": MNIST, "schema": str(SCHEMA)})[:8])
    return found


def fresh() -> list[str]:
    """The reference sweeps whose runs count, and those which no claim is decided on."""
    counts = [
        name
        for name, sweep in reference().items()
        if sweep.runs.get("seed", pd.Series()).max() > 9 and name.find("compare_") < 0
        if (CONF / "experiment" / f"{name}.yaml").is_file()
    ]
    return [*counts, "temperature_vs_size"]


def test_every_claim_has_its_sweep() -> None:
    measured = {c.sweep for c in CLAIMS} - {p.stem for p in (CONF / "experiment").glob("*.yaml")}
    assert measured == {"identities", "functions", "gradients"}


def test_what_the_readme_says_of_a_claim_is_decided_on_its_runs() -> None:
    said = (ROOT / "README.md").read_text(encoding="utf-8")
    table = [line for line in said.splitlines() if re.match(r"\| [CS]\d", line)]
    earlier = {line.split()[1] for line in table if line.endswith("¹ |")}
    lines = markdown(findings([reference()[name] for name in sorted(reference())])).splitlines()
    for line in lines[2:]:
        decided = not line.endswith("not decided |") or line.split()[1] not in earlier
        assert line in table or not decided, line
    assert {claim.id.split()[0] for claim in CLAIMS} <= {line.split()[1] for line in table}
    assert len(table) <= 23


@pytest.mark.slow
@pytest.mark.parametrize("name", fresh())
def test_its_runs_are_those_of_its_experiments(name: str) -> None:
    sweep = reference()[name]
    lands = SWEEPS.get(sweep.name, (sweep.name,))
    experiments = [experiment.split()[0] for experiment in lands]
    whole = pd.read_csv(sweep.folder / SUMMARY)
    assert set(whole["status"]) <= {"complete", "diverged"}
    runs = {run.rpartition("-")[2] for run in whole["run"]}
    commands = [dict(part.split("=", 1) for part in line.split()[1:]) for line in sweep.commands]
    for command in commands:  # where it ran is no matter
        for key in [key for key in command if key.startswith("hydra.")]:
            del command[key]
    named = [command.pop("experiment") for command in commands]
    assert sorted(named) == sorted(experiments)
    given = dict(zip(named, commands, strict=True))
    assert runs == set().union(*(digests(name, given[name]) for name in experiments))
    assert given == {name: chosen(name) for name in experiments}


def chosen(experiment: str) -> dict[str, str]:
    """What is chosen for an experiment by another sweep: that of C10, the fewest mean errors."""
    if experiment != "ensemble":
        return {}
    runs = reference()["ensemble"].runs
    runs = runs[~runs["test"].astype(bool)]
    means: dict[Any, float] = runs.groupby(["temperature", "alpha"])["val_errors"].mean().to_dict()
    temperature, alpha = min(means, key=lambda pair: (means[pair], *pair))
    return {"loss.temperature": f"{temperature:g}", "loss.alpha": f"0,{alpha:g}"}
