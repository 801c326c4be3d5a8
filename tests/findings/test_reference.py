"""The reference sweeps: they are those of the experiments, and what is said of them follows."""

from itertools import product

import pandas as pd
import pytest
import yaml
from conftest import reference
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

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
EXPERIMENTS = {  # which experiments land in which sweep
    "post": ("post", "post_hard"),
    "learning_rate": ("learning_rate", "learning_rate_hard"),
    "logit_limit": ("logit_limit", "logit_matching"),
}
BENCH = {"identities", "functions", "gradients"}  # which are of no experiment
# Sweeps whose test is written down, and which are still to be run; and what one of them is made of.
TO_RUN, MEASURED = {"functions", "gradients"}, {"logit_limit"}


def digests(experiment: str) -> set[str]:
    """The digests that end the names of an experiment's runs, as its yaml stands."""
    with initialize_config_dir(str(CONF)):
        whole = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
    params = whole.hydra.sweeper.params
    found = set()
    for values in product(*(str(swept).split(",") for swept in params.values())):
        config = task_config(whole.copy())
        for key, value in zip(params, values, strict=True):
            OmegaConf.update(config, str(key), yaml.safe_load(value))
        found.add(parse(config).digest({"data": MNIST, "schema": str(SCHEMA)})[:8])
    return found


def test_every_claim_has_its_sweep() -> None:
    assert reference().keys() - MEASURED == {claim.sweep for claim in CLAIMS} - TO_RUN


@pytest.mark.slow
def test_verdicts_in_the_report_and_the_readme_are_those_of_the_summaries() -> None:
    table = markdown(findings([reference()[name] for name in sorted(reference())]))
    assert table == (REFERENCE / "report.md").read_text(encoding="utf-8")
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({claim.sweep for claim in CLAIMS} - BENCH | MEASURED))
def test_its_runs_are_those_of_its_experiments(name: str) -> None:
    sweep = reference()[name]
    experiments = EXPERIMENTS.get(sweep.name, (sweep.name,))
    whole = pd.read_csv(sweep.folder / SUMMARY)
    assert set(whole["status"]) <= {"complete", "diverged"}
    runs = {run.rpartition("-")[2] for run in whole["run"]}
    assert runs == set().union(*map(digests, experiments))
    assert set(sweep.commands) == {f"distill experiment={name}" for name in experiments}
