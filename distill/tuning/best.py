"""What a study ends in: its best trials, each as an experiment, and a report as Hydra writes it."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState

from distill.config.sections import GIVEN
from distill.runs import results
from distill.sweeps.compose import in_folder
from distill.system import store
from distill.tuning import EXPERIMENT, REPORT

log = logging.getLogger(__name__)

# How the best are trained: on all data, and then tested.
WHOLE = {
    **{"data.validation": "0.0", "test": "true", "halving.rungs": "0"},
    "train.keep_best": "false",  # which chooses on the validation split
}


def of(study: optuna.Study, trials: Sequence[FrozenTrial] | None = None) -> list[FrozenTrial]:
    """The best trial, of all or of some ``trials``, or those of the Pareto front, by size.

    Raises:
        RunError: no trial completed.
    """
    some = study.get_trials(deepcopy=False) if trials is None else trials
    complete = [trial for trial in some if trial.state == TrialState.COMPLETE]
    if not complete:
        # With torch, which whoever reads a study does without.
        from distill.training.fit import RunError

        reasons = [str(trial.user_attrs.get("reason")) for trial in some]
        raise RunError(f"none of {len(reasons)} trials completed; the first {reasons[0]}")
    if len(study.directions) == 1:
        return [min(complete, key=_rank)]
    front = {str(t.params): t for t in reversed(study.best_trials)}
    return sorted(front.values(), key=lambda t: (t.values[::-1], t.number))


def _rank(trial: FrozenTrial) -> tuple[list[float], float, int]:
    """Which of two is better; one without a loss, which another program told, comes last."""
    loss = trial.user_attrs.get("val_loss")
    return trial.values, math.inf if loss is None else loss, trial.number


def write(
    folder: Path,
    study: optuna.Study,
    identity: str,
    objectives: Sequence[str],
    best: Sequence[FrozenTrial],
    returns: Sequence[JobReturn],
) -> str:
    """Write the ``best`` trials, as they were trained on all data, into the sweep's ``folder``.

    The first study of a folder has the plain names, and what is another study's is left alone.

    Returns:
        What to say of them.
    """
    stem, report = _names(folder, study.study_name, identity)
    lines, written = [], set()
    for number, (trial, returned) in enumerate(zip(best, returns, strict=True), 1):
        _ = returned.return_value  # raises what ended it
        name = stem if len(best) == 1 else f"{stem}-{number}"
        assert returned.hydra_cfg is not None
        result = results.read(Path(returned.hydra_cfg.hydra.runtime.output_dir) / results.RESULT)
        values = ", ".join(
            f"{value:g} {objective}"
            for value, objective in zip(trial.values, objectives, strict=True)
        )
        about = (
            f"trial {trial.number}{_mark(study.study_name)}{values}; "
            f"trained on {trained_on(result)} {result['test_errors']} test errors"
        )
        path, line = write_experiment(folder, name, returned, about)
        written.add(path)
        lines.append(f"{about}\n  {line}")
    for path in set((folder / EXPERIMENT).glob(f"{stem}*.yaml")) - written:
        if _holds(path, _mark(study.study_name)):
            path.unlink()  # what was the best before
    body: dict[str, Any] = {"name": "optuna", "study": study.study_name}
    if len(objectives) == 1:
        body |= {"best_params": best[0].params, "best_value": best[0].value}
    else:
        body["solutions"] = [{"params": t.params, "values": t.values} for t in best]
    store.write_text(report, OmegaConf.to_yaml(OmegaConf.create(body)))
    return "\n".join(lines)


def _names(folder: Path, study: str, identity: str) -> tuple[str, Path]:
    """The stem of the experiments of a study, and its report."""
    report = folder / REPORT
    experiments = [folder / EXPERIMENT / name for name in ("best.yaml", "best-1.yaml")]
    others = [path for path in experiments if path.exists() and not _holds(path, _mark(study))]
    if report.exists() and not _holds(report, f"study: {study}\n"):
        others.append(report)
    if not others:
        return "best", report
    stem = f"best-{identity[:8]}"
    log.info("%s is of another study; the best of this one is %s", others[0], stem)
    return stem, report.with_stem(f"{report.stem}-{identity[:8]}")


def _mark(study: str) -> str:
    """What tells in an experiment whose it is."""
    return f" of {study}: "


def _holds(path: Path, mark: str) -> bool:
    return mark in path.read_text(encoding="utf-8", errors="replace")


def trained_on(result: dict[str, Any]) -> str:
    """What a run of the best was trained on, in words."""
    own = result["config"]["data"]["validation"] == GIVEN  # which is never trained on
    return "all data but its own validation split" if own else "all data"


def write_experiment(folder: Path, name: str, returned: JobReturn, about: str) -> tuple[Path, str]:
    """Write what composes the config of a job as an experiment of a sweep's ``folder``.

    Returns:
        Where it is, and the command that trains it.
    """
    path = folder / EXPERIMENT / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    line = in_folder(folder, f"experiment={name}")
    store.write_text(path, _experiment(returned, line, about))
    return path, line


def _experiment(returned: JobReturn, command: str, about: str) -> str:
    """The yaml of an experiment that composes the config of a job, and what it says of itself."""
    hydra, config = returned.hydra_cfg, returned.cfg
    assert hydra is not None
    assert config is not None
    groups = {
        group: option
        for group, option in sorted(hydra.hydra.runtime.choices.items())
        if option is not None and group != EXPERIMENT and not str(group).startswith("hydra/")
    }
    defaults = "".join(f"  - override /{group}: {option}\n" for group, option in groups.items())
    body = OmegaConf.to_yaml(config)
    return f"# @package _global_\n# {command}\n# {about}\ndefaults:\n{defaults}\n{body}"
