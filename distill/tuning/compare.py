"""Comparing losses fairly: each tuned with as many trials, then trained anew with fresh seeds.

Trials choose on the validation split, with one seed. What they chose is trained on all data with
other seeds, each with its own teacher (``teacher.seed=${seed}``), and tested after the last epoch:
so nothing is chosen on the test set, and no loss is given more care than another.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from distill.config import ConfigError
from distill.report import comparison
from distill.runs import results, summaries
from distill.runs.columns import Status
from distill.system import store
from distill.system.conf import CONF
from distill.training.fit import RunError
from distill.tuning import EXPERIMENT, best
from distill.tuning.study import Tuner

log = logging.getLogger(__name__)


class Comparison:
    """One command's part of a comparison.

    Raises:
        ConfigError: an option is wrong; nothing was started.
    """

    def __init__(
        self, config: DictConfig, options: dict[str, Any], loader: ConfigLoader, launcher: Launcher
    ) -> None:
        self.config, self.launcher = config, launcher
        self.folder = Path(config.hydra.sweep.dir)
        candidates = {str(name): _plain(own) for name, own in (options["candidates"] or {}).items()}
        if not candidates:
            raise ConfigError(
                "hydra.sweeper.candidates={}: name at least two, as {kd: {loss: kd}}; "
                "experiment=compare_losses has some"
            )
        names = options["only"] if options["only"] is not None else list(candidates)
        if not names or set(names) - set(candidates):
            given, allowed = ",".join(map(str, names)), ", ".join(candidates)
            raise ConfigError(f"hydra.sweeper.only=[{given}]: allowed are {allowed}")
        self.candidates = {name: candidates[name] for name in dict.fromkeys(names)}
        self.references = [str(n) for n in options["references"] if n in self.candidates]
        unknown = [str(n) for n in options["references"] if n not in candidates]
        if unknown or not self.references:
            given = ",".join(map(str, options["references"]))
            raise ConfigError(
                f"hydra.sweeper.references=[{given}]: allowed are those that are compared, "
                f"{', '.join(self.candidates)}"
            )
        self.seeds = [int(seed) for seed in options["seeds"]]
        self._check(options)
        for name in self.candidates:
            _check_name(name)
        self.trials = int(options["n_trials"])
        self.tuners = {
            name: Tuner(config, {**options, "objectives": ["val_errors"]}, loader, launcher)
            for name in self.candidates
        }
        self.chosen: dict[str, FrozenTrial] = {}
        self.told: dict[str, dict[str, Any]] = {}

    def _check(self, options: Mapping[str, Any]) -> None:
        given = ",".join(map(str, self.seeds))
        if not self.seeds or len({*self.seeds}) < len(self.seeds):
            raise ConfigError(f"hydra.sweeper.seeds=[{given}]: give at least one, each once")
        if self.config.seed in self.seeds:
            raise ConfigError(
                f"hydra.sweeper.seeds=[{given}]: seed={self.config.seed} chooses, and is no fresh "
                "one; leave it out"
            )
        if options["study_name"] is not None:
            raise ConfigError(
                f"hydra.sweeper.study_name={options['study_name']}: each candidate has a study of "
                "its own; set it to null"
            )
        if list(options["objectives"]) != ["val_errors"]:
            raise ConfigError(
                f"hydra.sweeper.objectives=[{','.join(options['objectives'])}]: a comparison "
                "chooses by val_errors alone"
            )

    def run(self, arguments: Sequence[str]) -> None:
        """Run the trials of each candidate, then all of their final runs together.

        Raises:
            ConfigError: a candidate cannot be trained so; nothing was started.
            RunError: trials or final runs failed, other than by diverging.
        """
        for argument in arguments:
            key = argument.lstrip("+~").partition("=")[0]
            if key == "loss":
                raise ConfigError(
                    f"{argument}: each candidate has its own loss; name the candidates to compare "
                    f"with hydra.sweeper.only=[...], of {', '.join(self.candidates)}"
                )
            if key.startswith("loss."):
                given = argument.lstrip("+~").removeprefix("loss.")
                raise ConfigError(
                    f"{argument}: each candidate has its own loss; set it for one of them, as "
                    f"hydra.sweeper.candidates.NAME.{given}"
                )
        for name, tuner in self.tuners.items():
            try:
                own = _overrides(self.candidates[name])
                tuner.prepare([*arguments, *own])
            except ConfigError as error:
                raise ConfigError(f"hydra.sweeper.candidates.{name}: {error}") from error
            if "seed" in {*tuner.space, *(text.partition("=")[0] for text in own)}:
                raise ConfigError(
                    f"hydra.sweeper.candidates.{name}: its trials have several seeds, or one of "
                    "their own; all trials have that of the command, and seeds are those of the "
                    "final runs"
                )
            if not tuner.space:
                tuner.trials = 1  # which says what the given settings are worth
        if len(self.seeds) < comparison.FEWEST:
            log.warning(
                "hydra.sweeper.seeds: %d are too few to decide anything, which takes %d",
                len(self.seeds),
                comparison.FEWEST,
            )
        studies = {name: tuner.identity for name, tuner in self.tuners.items()}
        self.identity = store.digest([studies, self.trials, self.seeds, self.references])
        failed: list[str] = []
        for name, tuner in self.tuners.items():
            log.info("candidate %s", name)
            failed += tuner.run_trials(partial(self._choose, name))
        failed += self._finish()
        if failed:
            raise RunError(f"{len(failed)} runs failed; the first: {failed[0]}")

    def _choose(self, name: str, study: optuna.Study) -> None:
        """Keep the best trial of a candidate; of one whose trials all diverged there is none."""
        counted = self.tuners[name].counted(study)[: self.trials]  # of more, the same as the others
        counts = Counter(map(_ended, counted))
        self.told[name] = {"study": study.study_name, "trials": dict(counts)}
        try:
            [trial] = best.of(study, counted)
        except RunError as error:
            log.warning("%s: %s", name, error)
            self.told[name]["reason"] = str(error)
            return
        self.chosen[name] = trial
        errors = int(trial.values[0])
        self.told[name] |= {"trial": trial.number, "chosen": trial.params, "val_errors": errors}

    def _finish(self) -> list[str]:
        """Train what was chosen with each of the seeds; returns why runs failed.

        Raises:
            RunError: there is nothing to train.
        """
        if not self.chosen:
            raise RunError("no trial of any candidate completed, so there is nothing to compare")
        jobs = [
            (name, self.tuners[name].tested(trial, {"seed": str(seed)}))
            for name, trial in self.chosen.items()
            for seed in self.seeds
        ]
        self._weigh_teachers()
        log.info("what was chosen, now trained on all data with %d fresh seeds:", len(self.seeds))
        with store.locked(self.folder):
            returns = self.launcher.launch([overrides for _, overrides in jobs], 0)
            return self._write([name for name, _ in jobs], returns)

    def _weigh_teachers(self) -> None:
        """Warn of teachers that err more, on the validation split, than students without one."""
        taught: list[int] = []
        alone: dict[str, int] = {}
        for name, trial in self.chosen.items():
            try:
                place = self.folder / str(trial.user_attrs["directory"]) / results.RESULT
                result = results.read(place)
            except (OSError, ValueError, KeyError):  # the study alone knows of it
                continue
            if result.get("teacher_digest") is None:
                alone[name] = int(result["val_errors"])
            elif (errors := result.get("teacher_val_errors")) is not None:
                taught.append(int(errors))
        if not taught:
            return
        errors = sum(taught) / len(taught)
        if better := [f"{name} {own}" for name, own in alone.items() if own < errors]:
            log.warning(
                "teachers make %g validation errors, more than students that have none (%s): "
                "losses are compared by what they make of bad teachers; teacher.jitter, "
                "teacher.train.epochs or model@teacher.model may give better ones",
                errors,
                ", ".join(better),
            )

    def _write(self, names: Sequence[str], returns: Sequence[JobReturn]) -> list[str]:
        """Write which runs are compared, and each candidate as an experiment.

        Returns:
            The reasons of those that failed.
        """
        failed = []
        path, end = self._place()
        for name, returned in zip(names, returns, strict=True):
            assert returned.hydra_cfg is not None
            directory = Path(returned.hydra_cfg.hydra.runtime.output_dir)
            try:
                result = results.read(directory / results.RESULT)
            except (OSError, ValueError) as error:
                failed.append(str(error))
                continue
            if result["status"] == Status.FAILED:
                failed.append(str(result["reason"]))
            runs = self.told[name].setdefault("runs", [])
            if not runs:
                told = self.told[name]
                about = (
                    f"{name}: trial {told['trial']} of {told['study']}, {told['val_errors']} "
                    f"validation errors; trained on {best.trained_on(result)}"
                )
                _, told["command"] = best.write_experiment(
                    self.folder, f"{name}{end}", returned, about
                )
            runs.append(result["run"])
        body = {
            "identity": self.identity,
            "trials": self.trials,
            "seed": self.config.seed,
            "seeds": self.seeds,
            "references": self.references,
            "candidates": self.told,
        }
        store.write_text(path, json.dumps(body, indent=1) + "\n")
        [found] = comparison.read(self.folder, summaries.read_summary(self.folder), path.name)
        Console(force_jupyter=False).print(comparison.shown(found))
        for line in comparison.remarks(found):
            log.warning(line)
        return failed

    def _place(self) -> tuple[Path, str]:
        """Where this comparison is written, and what sets the names of its experiments apart.

        The first of a folder has the plain names, and what is another's is left alone.
        """
        path = self.folder / comparison.FILE
        try:
            own = json.loads(path.read_text(encoding="utf-8"))["identity"] == self.identity
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            own = True  # none, or a damaged one
        end = f"-{self.identity[:8]}"
        other = path.with_stem(f"{path.stem}{end}")
        return (path, "") if own and not other.exists() else (other, end)


def _check_name(name: str) -> None:
    """See that an experiment can have the name of a candidate.

    Raises:
        ConfigError: it is no plain word, or another experiment's.
    """
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ConfigError(
            f"hydra.sweeper.candidates.{name}: it names an experiment, too; use letters, digits, "
            "_, - and ."
        )
    if name.startswith("best") or (CONF / EXPERIMENT / f"{name}.yaml").exists():
        raise ConfigError(
            f"hydra.sweeper.candidates.{name}: it names an experiment, too, and there is another "
            "of that name; choose another"
        )


def _ended(trial: FrozenTrial) -> str:
    """How a trial ended, in the words of results."""
    if trial.state == TrialState.FAIL:
        return str(trial.user_attrs.get("reason", Status.FAILED)).partition(":")[0]
    words = {TrialState.COMPLETE: Status.COMPLETE, TrialState.PRUNED: Status.STOPPED}
    return str(words.get(trial.state, Status.RUNNING))


def _text(value: object) -> str:
    """A value as an override gives it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(candidate: Any) -> dict[str, Any]:
    if not OmegaConf.is_config(candidate):
        return dict(candidate)
    return dict(cast(dict[str, Any], OmegaConf.to_container(candidate, resolve=True)))


def _overrides(candidate: Mapping[str, Any]) -> list[str]:
    """The overrides of a candidate: its loss, the keys of that, and whatever else it sets.

    Raises:
        ConfigError: it names no loss.
    """
    own = dict(candidate)
    if "loss" not in own:
        raise ConfigError("it names no loss; give it one, as in {loss: kd, temperature: 4}")
    loss, others = own.pop("loss"), own.pop("overrides", None) or {}
    keys = {f"loss.{name}": value for name, value in own.items()}
    return [f"loss={loss}", *(f"{k}={_text(value)}" for k, value in {**keys, **others}.items())]
