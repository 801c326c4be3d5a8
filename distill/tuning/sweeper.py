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


ConfigStore.instance().store("tune", TuneConf, group="hydra/sweeper", provider="distill")


class TuneSweeper(Sweeper):
    """Searches with Optuna, in batches that train together; see `distill.tuning.study`."""

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
        """Run the trials that are missing, then the best configurations on all data."""
        from distill.tuning.study import Tuner

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        loader = self.hydra_context.config_loader
        Tuner(self.config, self.options, loader, self.launcher).run(arguments)
