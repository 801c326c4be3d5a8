"""Tuning: an Optuna study whose trials train in batches, as stacks, and the best on all data.

The study says what was tried, and the files of the runs what came of it. What is asked of the
sampler follows from its seed, the number of the trial and the trials before it: a study that was
stopped goes on as if it had not been, and one that was lost is made again from the runs.
"""

import logging
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, Trial, TrialState

from distill import results, search, store
from distill.compose import command, task_config
from distill.config import ConfigError, parse
from distill.fit import RunError
from distill.job import Job
from distill.search import Space

log = logging.getLogger(__name__)

OBJECTIVES = ("val_errors", "val_loss", "parameters", "multiply_adds")
STUDY, REPORT, EXPERIMENT = "study.db", "optimization_results.yaml", "experiment"

# How the best are trained: on all data, and then tested.
WHOLE = {"data.validation": "0.0", "test": "true", "halving.rungs": "0"}


class Tuner:
    """One command's part of a study.

    Raises:
        ConfigError: an option or the search space is wrong, or the storage cannot be used; nothing
            was started.
    """

    def __init__(
        self, config: DictConfig, options: dict[str, Any], loader: ConfigLoader, launcher: Launcher
    ) -> None:
        self.config, self.loader, self.launcher = config, loader, launcher
        self.folder = Path(config.hydra.sweep.dir)
        self.here = f"{platform.node()}:{self.folder.absolute()}"
        self.objectives = [str(name) for name in options["objectives"]]
        self.trials, self.batch = int(options["n_trials"]), int(options["n_jobs"])
        self.sampler, self.params = options["sampler"], options["params"]
        self.storage, self.name = options["storage"], options["study_name"]
        for key in ("n_trials", "n_jobs"):
            if options[key] < 1:
                raise ConfigError(f"hydra.sweeper.{key}={options[key]}: it must be at least 1")
        if not self.objectives or set(self.objectives) - set(OBJECTIVES):
            given, allowed = ",".join(self.objectives), ", ".join(OBJECTIVES)
            raise ConfigError(f"hydra.sweeper.objectives=[{given}]: allowed are {allowed}")
        if "_partial_" in self.sampler:
            raise ConfigError(
                "hydra/sweeper/sampler=grid: a grid is a plain sweep; give its values with -m"
            )

    def run(self, arguments: Sequence[str]) -> None:
        """Run the trials that are missing, then the best configurations on all data.

        Raises:
            RunError: trials failed, other than by diverging.
        """
        space, fixed = search.parse(self.params, arguments, self.loader)
        search.sampler(self.sampler, 0)  # which a wrong option stops here
        identity = self._checked(space, fixed)
        self.folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings(), store.locked(self.folder):
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study, lost = self._study(identity)
            failed = self._mended(lost, space, fixed)
            while trials := self._batch(study, space):
                with self._failing(study, trials):
                    overrides = [search.overrides(trial.params, space, fixed) for trial in trials]
                    returns = self.launcher.launch(overrides, trials[0].number)
                for trial, returned in zip(trials, returns, strict=True):
                    failed += self._tell(study, trial, returned)
                log.info(self._state(study))
            self._finish(study, space, fixed)
        if failed:
            raise RunError(f"{len(failed)} trials failed; the first: {failed[0]}")

    def _job(self, overrides: Sequence[str]) -> Job:
        config = self.loader.load_sweep_config(self.config, list(overrides))
        return Job(parse(task_config(config)))

    def _checked(self, space: Space, fixed: list[str]) -> str:
        """Check the jobs at the ends of the space; returns a digest of all that decides a trial."""
        lowest = {key: search.ends(distribution)[0] for key, distribution in space.items()}
        first = self._job(search.overrides(lowest, space, fixed))
        for key, distribution in space.items():
            for value in search.ends(distribution):
                self._job(search.overrides({**lowest, key: value}, space, fixed))
        if not first.run.data.validation:
            raise ConfigError(
                "data.validation=0.0: tuning chooses on a validation split; set it above 0"
            )
        self._job(search.overrides(lowest, space, fixed, WHOLE))
        ranges = {key: distribution_to_json(d) for key, d in space.items()}
        halving = first.run.halving.model_dump()
        return store.digest([first.digest, ranges, self.objectives, halving])

    def _study(self, identity: str) -> tuple[optuna.Study, list[FrozenTrial]]:
        """The study, made or found, and those of its trials whose results were lost.

        All others agree with the files of the runs.

        Raises:
            ConfigError: the storage cannot be used, or the study is another.
        """
        own = self.folder / STUDY
        url = self.storage or f"sqlite:///{own}"
        remedy = f"; delete {own}, and the runs make it again" if self.storage is None else ""
        name = self.name or f"{self.folder.name}-{identity[:8]}"
        try:
            study = optuna.create_study(
                study_name=name,
                storage=search.storage(url),
                directions=["minimize"] * len(self.objectives),
                load_if_exists=True,
            )
            lost = [t for t in study.get_trials(deepcopy=False) if not self._agrees(t)]
        except Exception as error:  # of any of the databases that Optuna can use
            key = f"hydra.sweeper.storage={self.storage or url}"
            raise ConfigError(f"{key}: it cannot be used ({search.line(error)}){remedy}") from error
        known = study.user_attrs.get("identity", identity)
        if known != identity or len(study.directions) != len(self.objectives):
            raise ConfigError(
                f"hydra.sweeper.study_name={name}: that study searches something else; choose "
                "another name, or null"
            )
        study.set_user_attr("identity", identity)
        study.set_metric_names(self.objectives)
        log.info("study %s in %s", name, url)
        log.info(self._state(study))
        return study, lost

    def _agrees(self, trial: FrozenTrial) -> bool:
        """Whether a trial has its result, where its run lies here; a lost one is named.

        Raises:
            ValueError: the trial's values are not those of the result.
        """
        directory = trial.user_attrs.get("directory")
        if directory is None or trial.user_attrs.get("sweep") != self.here:
            return True
        try:
            result = results.read(Path(directory) / results.RESULT)
        except (OSError, ValueError) as error:
            log.warning("trial %d: %s", trial.number, error)
            return not trial.state.is_finished()
        both = (trial.state, result["status"]) == (TrialState.COMPLETE, "complete")
        if both and trial.values != self._values(result):
            raise ValueError(f"trial {trial.number} is not what {result['run']} came to")
        return True

    def _mended(self, lost: list[FrozenTrial], space: Space, fixed: list[str]) -> list[str]:
        """Train the complete ones of the ``lost`` trials again; returns what is said of others."""
        again = [trial for trial in lost if trial.state == TrialState.COMPLETE]
        rest = [trial for trial in lost if trial.state != TrialState.COMPLETE]
        if again:
            # Those who were not stopped, so that none must be now.
            alone = {"halving.rungs": "0"}
            self.launcher.launch(
                [search.overrides(trial.params, space, fixed, alone) for trial in again],
                again[0].number,
            )
        return [f"trial {t.number} lost its result; its value is kept in the study" for t in rest]

    def _values(self, result: dict[str, Any]) -> list[float]:
        return [float(result[name]) for name in self.objectives]

    def _state(self, study: optuna.Study) -> str:
        """How many trials ended, and how."""
        trials = study.get_trials(deepcopy=False)
        counts = {s: sum(t.state == s for t in trials) for s in TrialState}
        texts = [f"{n} {s.name.lower()}" for s, n in counts.items() if n]
        return f"{len(trials)} of {self.trials} trials: {', '.join(texts) or 'none yet'}"

    def _batch(self, study: optuna.Study, space: Space) -> list[Trial]:
        """The trials to run next: those that an earlier try left, then new ones."""
        trials = study.get_trials(deepcopy=False)
        mine = self.here if self.storage is None else None  # one without a mark
        left = [
            t
            for t in trials
            if t.state == TrialState.RUNNING and t.user_attrs.get("sweep", mine) == self.here
        ]
        batch = [Trial(study, trial._trial_id) for trial in left]
        for trial in batch:
            self._suggest(study, trial, space)
        for _ in range(min(self.batch - len(batch), self.trials - len(trials))):
            study.sampler = search.sampler(self.sampler, len(study.get_trials(deepcopy=False)))
            batch.append(study.ask())
            self._suggest(study, batch[-1], space)
        return batch

    def _suggest(self, study: optuna.Study, trial: Trial, space: Space) -> None:
        trial.set_user_attr("sweep", self.here)
        study.sampler = search.sampler(self.sampler, trial.number)
        for key, distribution in space.items():
            trial._suggest(key, distribution)

    @contextmanager
    def _failing(self, study: optuna.Study, trials: Sequence[Trial]) -> Iterator[None]:
        """Trials whose configs turn out wrong are failed ones, not to be tried again."""
        try:
            yield
        except ConfigError:
            for trial in trials:
                study.tell(trial, state=TrialState.FAIL)
            raise

    def _tell(self, study: optuna.Study, trial: Trial, returned: JobReturn) -> list[str]:
        """Tell the study how a trial ended; returns the reason of one that failed."""
        assert returned.hydra_cfg is not None
        directory = Path(returned.hydra_cfg.hydra.runtime.output_dir)
        try:
            result = results.read(directory / results.RESULT)
        except (OSError, ValueError) as error:
            result = {"run": directory.name, "status": "failed", "reason": str(error)}
        trial.set_user_attr("run", result["run"])
        trial.set_user_attr("directory", str(directory.absolute()))
        status = result["status"]
        if len(self.objectives) == 1 and status in ("complete", "stopped"):
            known = study.get_trials(deepcopy=False)[trial.number].intermediate_values
            for epoch, value in results.rungs(directory, self.objectives[0], result):
                if epoch not in known:
                    trial.report(value, epoch)
        if status == "complete":
            trial.set_user_attr("val_loss", result["val_loss"])
            study.tell(trial, self._values(result))
            return []
        trial.set_user_attr("reason", f"{status}: {result['reason']}")
        study.tell(trial, state=TrialState.PRUNED if status == "stopped" else TrialState.FAIL)
        return [result["reason"]] if status == "failed" else []

    def _finish(self, study: optuna.Study, space: Space, fixed: list[str]) -> None:
        """Train the best configurations on all data, and write each as an experiment."""
        best = self._best(study)
        log.info("the best of the study, now trained on all data:")
        overrides = [search.overrides(trial.params, space, fixed, WHOLE) for trial in best]
        returns = self.launcher.launch(overrides, len(study.get_trials(deepcopy=False)))
        lines = []
        for number, (trial, returned) in enumerate(zip(best, returns, strict=True), 1):
            _ = returned.return_value  # raises what ended it
            name = "best" if len(best) == 1 else f"best-{number}"
            assert returned.hydra_cfg is not None
            result = results.read(
                Path(returned.hydra_cfg.hydra.runtime.output_dir) / results.RESULT
            )
            values = ", ".join(
                f"{value:g} {objective}"
                for value, objective in zip(trial.values, self.objectives, strict=True)
            )
            about = (
                f"trial {trial.number} of {study.study_name}: {values}; "
                f"trained on all data {result['test_errors']} test errors"
            )
            line = command("--config-dir", str(self.folder), f"experiment={name}")
            text = _experiment(returned.hydra_cfg, returned.cfg, line, about)
            (self.folder / EXPERIMENT).mkdir(exist_ok=True)
            store.write_text(self.folder / EXPERIMENT / f"{name}.yaml", text)
            lines.append(f"{about}\n  {line}")
        report: dict[str, Any] = {"name": "optuna", "study": study.study_name}
        if len(self.objectives) == 1:
            report |= {"best_params": best[0].params, "best_value": best[0].value}
        else:
            report["solutions"] = [{"params": t.params, "values": t.values} for t in best]
        store.write_text(self.folder / REPORT, OmegaConf.to_yaml(OmegaConf.create(report)))
        log.info("\n".join(lines))

    def _best(self, study: optuna.Study) -> list[FrozenTrial]:
        """The best trial, or those of the Pareto front from small to large.

        Raises:
            RunError: no trial completed.
        """
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not complete:
            reasons = [str(t.user_attrs.get("reason")) for t in study.get_trials(deepcopy=False)]
            raise RunError(f"none of {len(reasons)} trials completed; the first {reasons[0]}")
        if len(self.objectives) == 1:
            return [min(complete, key=lambda t: (t.values, t.user_attrs["val_loss"], t.number))]
        front = {str(t.params): t for t in reversed(study.best_trials)}
        return sorted(front.values(), key=lambda t: (t.values[::-1], t.number))


def _experiment(hydra: DictConfig, config: DictConfig | None, command: str, about: str) -> str:
    """The yaml of an experiment that composes ``config``."""
    assert config is not None
    groups = {
        group: option
        for group, option in sorted(hydra.hydra.runtime.choices.items())
        if option is not None and group != EXPERIMENT and not str(group).startswith("hydra/")
    }
    defaults = "".join(f"  - override /{group}: {option}\n" for group, option in groups.items())
    body = OmegaConf.to_yaml(config)
    return f"# @package _global_\n# {command}\n# {about}\ndefaults:\n{defaults}\n{body}"
