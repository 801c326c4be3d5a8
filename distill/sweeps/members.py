"""The jobs of a sweep that train as stacks: composed, checked, and given back to Hydra."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict

from distill.sweeps import names
from distill.sweeps.compose import LOOKED_UP, Composed, Kind, hangs, task_config, texts
from distill.system.memo import Memo

if TYPE_CHECKING:
    from distill.runs.job import Job
    from distill.sweeps.tasks import Planned, Results

NAME = "${distill.run:}"  # hydra.sweep.subdir by default
NOTHING = "${distill.free:}"  # which is asked for by a job that runs alone


@dataclass(slots=True)
class Member:
    """A job of a sweep: its config, whole and checked, its directory and environment."""

    composed: Composed
    number: int
    config: dict[str, Any]  # the task's, with nothing to be looked up
    job: "Job"
    subdir: str
    directory: Path
    environment: Mapping[str, str]

    def hydra_config(self) -> DictConfig:
        """The config as Hydra's own, with Hydra's part."""
        config = numbered(self.composed.config(), self.number)
        with open_dict(config):
            config.hydra.sweep.subdir = self.subdir
            config.hydra.runtime.output_dir = str(self.directory)
        return config

    def planned(self) -> "Planned":
        """The job as a member of a stack that is to be trained."""
        from distill.sweeps.tasks import Planned

        kind, values, overrides = self.composed
        return Planned(
            name=self.job.name,
            directory=self.directory,
            config=self.config,
            composed=kind.unresolved(values),
            overrides=overrides,
            hydra=kind.hydra,
            number=self.number,
            subdir=self.subdir,
        )

    def returned(self, result: dict[str, Any], cause: Exception | None = None) -> JobReturn:
        """What Hydra wants to know of the job, by its result and the error that ended it."""
        from distill.runs.execute import failure

        done = Returned()
        done.member = self
        done.overrides = self.composed.overrides
        done.working_dir = os.getcwd()  # noqa: PTH109
        done.task_name = JobRuntime.instance().get("name")
        error = failure(result)
        if error is not None:
            error.__cause__ = cause
        done.return_value = result.get("val_errors") if error is None else error
        done.status = JobStatus.COMPLETED if error is None else JobStatus.FAILED
        return done


class Returned(JobReturn):
    """What Hydra wants to know of a job, with configs that are made when somebody asks."""

    member: Member

    @property
    def hydra_cfg(self) -> DictConfig:
        """The whole config."""
        return self.member.hydra_config()

    @hydra_cfg.setter
    def hydra_cfg(self, _: object) -> None:
        """As a JobReturn begins, with none."""

    @property
    def cfg(self) -> DictConfig:
        """The task's part of it."""
        return task_config(self.member.composed.config())

    @cfg.setter
    def cfg(self, _: object) -> None:
        """As a JobReturn begins, with none."""


class Reader:
    """Makes the members of a sweep; what they have in common is checked once."""

    def __init__(self) -> None:
        from distill.config import Checker
        from distill.runs.job import Checked

        self._check, self._checked, self._memo = Checker(), Checked(), Memo()

    def __call__(self, composed: Composed, number: int) -> Member:
        """The job of this ``number``.

        Raises:
            ConfigError: the config is wrong, or its directory is not within the sweep's.
        """
        from distill.config import ConfigError
        from distill.runs.job import Job

        kind, alike = composed.kind, self._memo(_alike, composed.kind)
        if alike is not None and not kind.anew:
            config = kind.task(composed.values)
        else:
            with current(live := numbered(composed.live(), number)):
                names.check_names(live)
                config = kind.task(composed.values)
        job = Job(self._check(config), self._checked)
        if alike is not None and kind.hydra["sweep"]["subdir"] == NAME:
            subdir, (environment, sweep) = job.name, alike
        else:
            live = numbered(composed.live(), number)
            with current(live), names.naming(job):
                subdir = str(OmegaConf.select(live, "hydra.sweep.subdir"))
                environment, sweep = _place(live)
        directory = Path(os.path.normpath(Path(sweep, subdir)))
        if not directory.is_relative_to(sweep):
            raise ConfigError(f"hydra.sweep.subdir={subdir}: it must be a folder within {sweep}")
        return Member(composed, number, config, job, subdir, directory, environment)

    def finish(self) -> None:
        """Check what is checked of many jobs at once.

        Raises:
            ConfigError: something is wrong with one of them.
        """
        self._checked.finish()


def _alike(kind: Kind) -> tuple[dict[str, str], str] | None:
    """The environment and the sweep's folder of all jobs of a kind, whose names are checked.

    None if something in these may be another for each job.

    Raises:
        ConfigError: as `names.check_names`.
    """
    hydra = kind.hydra
    environment = {k: v for k, v in hydra["job"]["env_set"].items() if v != NOTHING}
    parts = (environment, hydra["job"]["name"], hydra["output_subdir"])
    if any(LOOKED_UP in text for part in parts for text in texts(part)) or hangs(
        hydra["sweep"]["dir"]
    ):
        return None
    live = kind.fresh()
    with current(live):
        names.check_names(live)
        return _place(live)


def _place(config: DictConfig) -> tuple[dict[str, str], str]:
    """The environment of a job, and the folder of its sweep."""
    return resolved(config.hydra.job.env_set), os.path.abspath(config.hydra.sweep.dir)  # noqa: PTH100


def numbered(config: DictConfig, number: int) -> DictConfig:
    """A job's config, which knows its ``number`` in the sweep."""
    with open_dict(config):
        config.hydra.job.id = str(number)
        config.hydra.job.num = number
    return config


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
                f"hydra.sweep.subdir={member.subdir}: "
                f"{other} and {name} would both be written there"
            )
        own = member.job.run.logger
        if loggers.setdefault(member.directory, own) != own:
            task = member.composed.overrides
            given = " ".join(o for o in task if o.lstrip("+~").startswith("logger"))
            raise ConfigError(
                f"{given}: {name} would be trained twice, with other loggers; several at once "
                "are a list, 'logger=[tensorboard,mlflow]'"
            )


def short(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a sweep remembers of a result: how it ended, and its errors."""
    keys = ("run", "status", "reason", "val_errors", "test_errors", "precision", "device")
    return {key: result[key] for key in keys if key in result}


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
