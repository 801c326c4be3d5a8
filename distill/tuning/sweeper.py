"""The sweeper that tunes: Hydra's part of it, which Hydra imports at every start."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig


@dataclass
class TuneConf:
    """``hydra/sweeper=tune``."""

    _target_: str = "distill.tuning.sweeper.TuneSweeper"
    defaults: list[Any] = field(default_factory=lambda: [{"sampler": "tpe"}])
    sampler: Any = MISSING  # of Optuna: hydra/sweeper/sampler=tpe, random, cmaes, ...
    objectives: list[str] = field(default_factory=lambda: ["val_errors"])  # all to be minimised
    n_trials: int = 64  # in total, however often the command is started
    n_jobs: int = 16  # trials in a batch, which train together
    storage: str | None = None  # a URL of Optuna's, or a journal file; null: study.db in the sweep
    study_name: str | None = None  # null: it follows from all that decides a trial's value
    take: bool = False  # take up the trials that others hold, too
    grace: float = 60.0  # seconds without a sign of life after which a holder is at an end
    params: dict[str, Any] = field(default_factory=dict)  # what is searched


@dataclass
class CompareConf(TuneConf):
    """``hydra/sweeper=compare``."""

    # What is compared, by names: a loss, and of its keys those that are searched or set; and, in
    # `overrides`, keys of the config besides. One with nothing to search is trained as it is.
    candidates: dict[str, dict[str, Any]] = field(default_factory=dict)
    only: list[str] | None = None  # the names of those to compare; null: all
    references: list[str] = field(default_factory=lambda: ["kd", "labels"])  # to compare with
    seeds: list[int] = field(default_factory=lambda: list(range(1, 11)))  # of the final runs


for _name, _conf in (("tune", TuneConf), ("compare", CompareConf)):
    ConfigStore.instance().store(_name, _conf, group="hydra/sweeper", provider="distill")


class TuneSweeper(Sweeper):
    """Searches with Optuna, in batches that train together; see `distill.tuning.study`.

    Of several candidates it searches each, and compares what it found: `distill.tuning.compare`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Make the launcher, and keep what `sweep` needs."""
        from hydra.core.plugins import Plugins

        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )
        self.hydra_context = hydra_context

    def sweep(self, arguments: list[str]) -> None:
        """Run what is missing of the trials, and of the runs on all data that follow."""
        from distill.tuning.compare import Comparison
        from distill.tuning.study import Tuner

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        kind = Comparison if "candidates" in self.options else Tuner
        loader = self.hydra_context.config_loader
        kind(self.config, self.options, loader, self.launcher).run(arguments)
