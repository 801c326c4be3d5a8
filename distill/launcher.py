"""What Hydra calls around jobs: names of directories, a launcher, and the summary at the end."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from distill import store

log = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
# In a wheel the yamls lie in the package, in a checkout beside it.
CONF = next(p for p in (HERE / "conf", HERE.parent / "conf") if (p / "config.yaml").is_file())


def run_name(*, _root_: DictConfig) -> str:
    """The name of the run that a composed config describes, for ``${distill.run:}``.

    It holds the digest of the checked config, and Hydra asks for it before it makes the run's
    directory: a wrong config leaves nothing behind.
    """
    from distill.config import parse
    from distill.job import Job

    keys = [str(key) for key in _root_ if key != "hydra"]
    return Job(parse(OmegaConf.masked_copy(_root_, keys))).name


def sweep_name() -> str:
    """The name of the sweep that Hydra is about to start, for ``${distill.sweep:}``.

    That of its experiment; else what is swept and a digest of the overrides, so that the same
    command finds its directory again.
    """
    config = HydraConfig.get()
    experiment = config.runtime.choices.get("experiment")
    if experiment is not None:
        return str(experiment).replace("/", "-")
    overrides = sorted(config.overrides.task)
    swept = [o.partition("=")[0].rpartition(".")[2] for o in overrides if "," in o or "(" in o]
    return "-".join([*swept[:4], store.digest(overrides)[:8]])


OmegaConf.register_resolver("distill.run", run_name, replace=True)
# Cached, since the jobs of a sweep, which have other overrides, inherit the value.
OmegaConf.register_resolver("distill.sweep", sweep_name, replace=True, use_cache=True)


class CheckedLauncher(Launcher):
    """Runs jobs one after another in this process, once every one of them was found to be sound."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what `launch` needs."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run a batch of jobs; each is a list of overrides. A failing job does not stop the next.

        Raises:
            ConfigError: a job's config is wrong; none of the jobs was started.
        """
        from distill.progress import progress

        setup_globals()
        jobs = [self._compose(o, initial_job_idx + i) for i, o in enumerate(job_overrides)]
        try:
            for job in jobs:
                # The name of a run's directory holds the digest of its checked config and data.
                OmegaConf.select(job, "hydra.sweep.subdir")
        except OmegaConfBaseException:
            _forget(Path(self.config.hydra.sweep.dir))
            raise
        log.info("%d jobs", len(jobs))
        returns: list[JobReturn] = []
        with progress() as bars:
            task = bars.add_task("sweep", total=len(jobs))
            for job in jobs:
                returns.append(self._run(job))
                failed = sum(r.status == JobStatus.FAILED for r in returns)
                note = f"sweep, {failed} failed" if failed else "sweep"
                bars.update(task, advance=1, description=note)
            bars.remove_task(task)
        return returns

    def _compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        return config

    def _run(self, job: DictConfig) -> JobReturn:
        done = run_job(
            task_function=self.task_function,
            config=job,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self.hydra_context,
        )
        # The job logged into its own file; what follows is the sweep's again.
        configure_log(
            self.config.hydra.hydra_logging,
            self.config.hydra.verbose,
            execution_whitelist=self.hydra_context.execution_whitelist,
        )
        return done


def _forget(folder: Path) -> None:
    """Remove the directory of a sweep of which nothing but the sweeper's own file was written."""
    if [path.name for path in folder.iterdir()] == ["multirun.yaml"]:
        (folder / "multirun.yaml").unlink()
        folder.rmdir()


class Summary(Callback):
    """Writes and prints the summary when a sweep ends, however it ends, under any launcher."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Rebuild summary.csv from the files below the sweep's directory."""
        from rich.console import Console

        from distill import results

        folder = Path(config.hydra.sweep.dir)
        if folder.is_dir() and any(folder.rglob(results.RESULT)):
            results.show(results.write_summary(folder), folder, Console())
