"""Tuning: an Optuna study whose trials train in batches, as stacks, and the best on all data.

The study says what was tried, and the files of the runs what came of it. What is asked of the
sampler follows from its seed, the number of the trial and the trials before it: a study that was
stopped goes on as if it had not been, and one that was lost is made again from the runs.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from optuna.distributions import distribution_to_json
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from distill.config import ConfigError, parse
from distill.config.sections import GIVEN
from distill.runs.job import Job
from distill.sweeps.compose import task_config
from distill.system import store
from distill.system.terminal import public
from distill.training.fit import RunError
from distill.tuning import STUDY, best, search, storage
from distill.tuning.holders import Holder
from distill.tuning.outcomes import Outcomes
from distill.tuning.search import Space
from distill.tuning.storage import DEFAULTS, SURPLUS

log = logging.getLogger(__name__)

OBJECTIVES = ("val_errors", "val_loss", "parameters", "multiply_adds")
POLL = 1.0  # seconds between looks at a study that waits for others


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
        self.objectives = [str(name) for name in options["objectives"]]
        self.outcomes = Outcomes(self.folder, self.objectives)
        self.trials, self.batch = int(options["n_trials"]), int(options["n_jobs"])
        self.sampler, self.params = options["sampler"], options["params"]
        self.storage, self.name = options["storage"], options["study_name"]
        try:
            self.url = storage.at_home(self.storage or f"sqlite:///{self.folder / STUDY}")
        except ValueError as error:
            raise ConfigError(f"hydra.sweeper.storage={error}") from error
        self.take, self.grace, self.whole = options["take"], options["grace"], {**best.WHOLE}
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
        if not self.grace > 0:
            raise ConfigError(f"hydra.sweeper.grace={self.grace}: it must be above 0")

    def run(self, arguments: Sequence[str]) -> None:
        """Run the trials that are missing, then the best configurations on all data.

        Raises:
            ConfigError: there is nothing to search, or it cannot be; nothing was started.
            RunError: trials failed, other than by diverging.
        """
        self.prepare(arguments)
        if not self.space:
            raise ConfigError(
                "hydra.sweeper.params: there is nothing to search; give a key several values, or "
                "an interval such as 'loss.temperature=tag(log,interval(1.0,32.0))'"
            )
        failed = self.run_trials(self._finish)
        if failed:
            raise RunError(f"{len(failed)} trials failed; the first: {failed[0]}")

    def prepare(self, arguments: Sequence[str]) -> None:
        """See that all can be searched that the ``arguments`` of the command ask for.

        Raises:
            ConfigError: it cannot; nothing was started.
        """
        space, self.fixed = search.parse(self.params, arguments, self.loader)
        with _silent(optuna.logging.ERROR):
            self.identity, self.space = self._checked(space, self.fixed)
            choice = self.config.hydra.runtime.choices["hydra/sweeper/sampler"]
            search.rehearse(self.sampler, choice, self.space, len(self.objectives))

    def run_trials(self, finish: Callable[[optuna.Study], None]) -> list[str]:
        """Run the trials that are missing, then ``finish``; returns why trials failed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = self.folder / STUDY if self.storage is None else None
        key = f"hydra.sweeper.storage={public(self.url)}"
        with (
            _silent(optuna.logging.WARNING),
            store.locked(self.folder),
            storage.explained(self.url, key, own, self.folder),
        ):
            return self._run(finish)

    def _run(self, finish: Callable[[optuna.Study], None]) -> list[str]:
        """The study from what is left of it to its end; returns why trials failed."""
        space, fixed = self.space, self.fixed
        study = self._study(self.identity)
        self.holder = Holder(
            self.folder, owner=self.storage is None, take=self.take, grace=self.grace
        )
        with self.holder.alive(study):
            study.set_user_attr(DEFAULTS, search.defaults(self.loader, self.config, fixed, space))
            failed = self._mended(self._lost(study), space, fixed)
            while (trials := self._batch(study, space)) or self._awaited(study):
                if not trials:
                    continue
                with self._failing(study, trials):
                    overrides = [search.overrides(trial.params, space, fixed) for trial in trials]
                    returns = self.launcher.launch(overrides, trials[0].number)
                for trial, returned in zip(trials, returns, strict=True):
                    failed += self.outcomes.tell(study, trial, returned)
                log.info(self._state(study))
            finish(study)
        return failed

    def tested(self, trial: FrozenTrial, changes: Mapping[str, str] | None = None) -> list[str]:
        """The overrides of a ``trial`` that is trained on all data, and tested; and ``changes``."""
        return search.overrides(
            trial.params, self.space, self.fixed, {**self.whole, **(changes or {})}
        )

    def _awaited(self, study: optuna.Study) -> bool:
        """Whether the study is to be looked at again, since others are at work on trials."""
        if not self.holder.waits(study, study.get_trials(deepcopy=False)):
            return False
        time.sleep(POLL)
        return True

    def _job(self, overrides: Sequence[str]) -> Job:
        config = self.loader.load_sweep_config(self.config, list(overrides))
        return Job(parse(task_config(config)))

    def _checked(self, space: Space, fixed: list[str]) -> tuple[str, Space]:
        """Check the jobs at the ends of the space.

        Returns:
            A digest of all that decides a trial, and the space, in whole numbers where keys are.
        """
        try:
            self._job(search.overrides(search.lowest(space), space, fixed))
        except ConfigError as error:
            space = search.whole(space, error)
        lowest = search.lowest(space)
        first = self._job(search.overrides(lowest, space, fixed))
        for key, distribution in space.items():
            for value in search.ends(distribution):
                self._job(search.overrides({**lowest, key: value}, space, fixed))
        if not first.run.data.validation:
            raise ConfigError(
                "data.validation=0.0: tuning chooses on a validation split; set it above 0"
            )
        if first.run.data.validation == GIVEN:  # which is of the data, and never trained on
            self.whole["data.validation"] = GIVEN
        self._job(search.overrides(lowest, space, fixed, self.whole))
        ranges = {key: distribution_to_json(d) for key, d in space.items()}
        halving = first.run.halving.model_dump()
        return store.digest([first.digest, ranges, self.objectives, halving]), space

    def _study(self, identity: str) -> optuna.Study:
        """The study, made or found.

        Raises:
            ConfigError: the storage cannot be used, or the study is another.
        """
        try:
            kept = storage.opened(self.url)
            name = self.name or self._found(kept, identity)
            study = optuna.create_study(
                study_name=name,
                storage=kept,
                directions=["minimize"] * len(self.objectives),
                load_if_exists=True,
            )
        except (storage.DamagedError, *storage.ERRORS):
            raise
        except Exception as error:  # of any of the databases that Optuna can use
            key = f"hydra.sweeper.storage={public(self.url)}"
            raise ConfigError(f"{key}: it cannot be used ({storage.line(error)})") from error
        known = study.user_attrs.get("identity", identity)
        if known != identity or len(study.directions) != len(self.objectives):
            raise ConfigError(
                f"hydra.sweeper.study_name={name}: that study searches something else; choose "
                "another name, or null"
            )
        study.set_user_attr("identity", identity)
        study.set_metric_names(self.objectives)
        log.info("study %s in %s", name, public(self.url))
        log.info(self._state(study))
        return study

    def _found(self, kept: BaseStorage, identity: str) -> str:
        """The name of the study of ``identity``, which had its folder's in earlier versions."""
        former = f"{self.folder.name}-{identity[:8]}"
        names = [
            study.study_name
            for study in kept.get_all_studies()
            if study.user_attrs.get("identity") == identity or study.study_name == former
        ]
        return former if former in names else next(iter(names), f"distill-{identity[:8]}")

    def _lost(self, study: optuna.Study) -> list[FrozenTrial]:
        """Those of this folder's trials whose results were lost; all others agree with the files.

        Raises:
            DamagedError: a trial's values are not those of its result.
        """
        trials = study.get_trials(deepcopy=False)
        return [t for t in trials if self.holder.holds(t) and not self.outcomes.agrees(t)]

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

    def _state(self, study: optuna.Study) -> str:
        """How many trials ended, and how."""
        trials = self.counted(study)
        counts = {s: sum(t.state == s for t in trials) for s in TrialState}
        texts = [f"{n} {s.name.lower()}" for s, n in counts.items() if n]
        return f"{len(trials)} of {self.trials} trials: {', '.join(texts) or 'none yet'}"

    def counted(self, study: optuna.Study) -> list[FrozenTrial]:
        """The trials but for those that were one too many."""
        return [t for t in study.get_trials(deepcopy=False) if SURPLUS not in t.user_attrs]

    def _batch(self, study: optuna.Study, space: Space) -> list[Trial]:
        """The trials to run next: those that an earlier try left, then new ones."""
        with storage.turn(self.url):
            left = self.holder.left(study, study.get_trials(deepcopy=False))[: self.batch]
            batch = [Trial(study, trial._trial_id) for trial in left]
            for trial in batch:
                self.holder.hold(trial)
        for trial in batch:
            self._suggest(study, trial, space)
        while len(batch) < self.batch and (asked := self._asked(study)) is not None:
            batch.append(asked)
            self._suggest(study, asked, space)
        return batch

    def _asked(self, study: optuna.Study) -> Trial | None:
        """A new trial; None if there are all that there are to be, whoever asked for them."""
        with storage.turn(self.url):
            known = self.counted(study)
            if len(known) >= self.trials:
                return None
            study.sampler = search.sampler(self.sampler, len(known))
            trial = study.ask()
            self.holder.hold(trial)
        # On a server, or for other programs, there are no turns.
        if sum(t.number < trial.number for t in self.counted(study)) < self.trials:
            return trial
        trial.set_user_attr(SURPLUS, f"one more than the {self.trials} trials; not run")
        study.tell(trial, state=TrialState.FAIL)
        return None

    def _suggest(self, study: optuna.Study, trial: Trial, space: Space) -> None:
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

    def _finish(self, study: optuna.Study) -> None:
        """Train the best configurations on all data, and write each as an experiment."""
        chosen = best.of(study)
        log.info("the best of the study, now trained to be tested:")
        overrides = [self.tested(trial) for trial in chosen]
        returns = self.launcher.launch(overrides, len(study.get_trials(deepcopy=False)))
        log.info(best.write(self.folder, study, self.identity, self.objectives, chosen, returns))


@contextmanager
def _silent(level: int) -> Iterator[None]:
    """Let Optuna say nothing below a ``level``, nor that parts of it are experimental."""
    optuna.logging.set_verbosity(level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
