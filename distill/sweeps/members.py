"""The jobs of a sweep that train as stacks: checked, prepared, and given back to Hydra."""

import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict

from distill.sweeps import names
from distill.system import store

if TYPE_CHECKING:
    from distill.runs.job import Job
    from distill.sweeps.workers import Results


@dataclass
class Member:
    """A job of a sweep: its config, whole and checked, its directory and environment."""

    config: DictConfig
    task: DictConfig
    job: "Job"
    directory: Path
    environment: dict[str, str]

    @classmethod
    def of(cls, config: DictConfig, task: DictConfig) -> Self:
        """The job of a composed ``config``, of which the ``task`` is all but Hydra's part.

        Raises:
            ConfigError: the config is wrong, or its directory is not within the sweep's.
        """
        from distill.config import ConfigError, parse
        from distill.runs.job import Job

        with current(config):
            names.check_names(config)
            job = Job(parse(task))
            token = names.named.set(job)
            try:
                subdir = str(OmegaConf.select(config, "hydra.sweep.subdir"))
            finally:
                names.named.reset(token)
            environment = resolved(config.hydra.job.env_set)
        sweep = Path(os.path.abspath(config.hydra.sweep.dir))  # noqa: PTH100
        directory = Path(os.path.normpath(sweep / subdir))
        if not directory.is_relative_to(sweep):
            raise ConfigError(f"hydra.sweep.subdir={subdir}: it must be a folder within {sweep}")
        with open_dict(config):
            config.hydra.sweep.subdir = subdir
            config.hydra.runtime.output_dir = str(directory)
        return cls(config, task, job, directory, environment)

    def prepare(self) -> None:
        """Make the directory, without what an earlier try left there, and write the config."""
        from distill.runs.results import clear

        hydra = self.config.hydra
        self.directory.mkdir(parents=True, exist_ok=True)
        clear(self.directory, keep=not self.job.run.resume, config=hydra.output_subdir)
        if hydra.output_subdir is None:
            return
        folder = self.directory / hydra.output_subdir
        with current(self.config):
            folder.mkdir(exist_ok=True)
            texts = {
                "config": OmegaConf.to_yaml(self.task),
                "hydra": "hydra:\n" + textwrap.indent(OmegaConf.to_yaml(hydra), "  "),
                "overrides": OmegaConf.to_yaml(hydra.overrides.task),
            }
            for name, text in texts.items():
                store.write_text(folder / f"{name}.yaml", text, sync=False)

    def returned(self, result: dict[str, Any], cause: Exception | None = None) -> JobReturn:
        """What Hydra wants to know of the job, by its result and the error that ended it."""
        from distill.runs.execute import failure

        done = JobReturn()
        done.cfg, done.hydra_cfg = self.task, self.config
        done.overrides = list(self.config.hydra.overrides.task)
        done.working_dir = os.getcwd()  # noqa: PTH109
        done.task_name = JobRuntime.instance().get("name")
        error = failure(result)
        if error is not None:
            error.__cause__ = cause
        done.return_value = result.get("val_errors") if error is None else error
        done.status = JobStatus.COMPLETED if error is None else JobStatus.FAILED
        return done


def check(members: Sequence[Member], sweep: DictConfig) -> None:
    """Refuse what cannot be had for jobs of a ``sweep`` (its config) that train together.

    Raises:
        ConfigError: jobs that differ have the same directory, or want one to work in; equal
            ones differ in their loggers; or a sweeper would choose on the test set.
    """
    from distill.config import ConfigError

    if sweep.hydra.job.chdir:
        raise ConfigError(
            "hydra.job.chdir=true: jobs that train together have one working directory; "
            "choose hydra/launcher=basic"
        )
    runs: dict[Path, str] = {}
    loggers: dict[Path, object] = {}
    chooses = "optuna" in str(sweep.hydra.sweeper._target_)
    for member in members:
        if chooses and not member.job.run.data.validation:
            raise ConfigError(
                "data.validation=0.0: Optuna chooses on a validation split; set it above 0"
            )
        name = member.job.name
        if (other := runs.setdefault(member.directory, name)) != name:
            raise ConfigError(
                f"hydra.sweep.subdir={member.config.hydra.sweep.subdir}: "
                f"{other} and {name} would both be written there"
            )
        own = member.job.run.logger
        if loggers.setdefault(member.directory, own) != own:
            task = member.config.hydra.overrides.task
            given = " ".join(o for o in task if o.lstrip("+~").startswith("logger"))
            raise ConfigError(
                f"{given}: {name} would be trained twice, with other loggers; several at once "
                "are a list, 'logger=[tensorboard,mlflow]'"
            )


def failed(members: Sequence[Member], error: BaseException) -> "Results":
    """The results, written, of jobs that an error ended."""
    from distill.runs.execute import fail

    return fail([member.job for member in members], [m.directory for m in members], error)


def resolved(config: DictConfig) -> dict[str, Any]:
    """A config as plain values, nothing of which is still to be looked up."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


@contextmanager
def current(config: DictConfig) -> Iterator[None]:
    """Let ``${hydra:...}`` mean this config's."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().cfg = config  # type: ignore[assignment]
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before
