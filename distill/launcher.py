"""What Hydra calls around jobs: names of directories, the launcher, and the summary at the end."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import (
    JobReturn,
    JobRuntime,
    JobStatus,
    configure_log,
    run_job,
    setup_globals,
)
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from distill import store
from distill.compose import Composer, task_config

if TYPE_CHECKING:
    from distill.job import Job
    from distill.plan import Stack
    from distill.workers import Results, Task

log = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
# In a wheel the yamls lie in the package, in a checkout beside it.
CONF = next(p for p in (HERE / "conf", HERE.parent / "conf") if (p / "config.yaml").is_file())


_named: ContextVar["Job"] = ContextVar("named")


def run_name(*, _root_: DictConfig) -> str:
    """The name of the run that a composed config describes, for ``${distill.run:}``.

    It holds the digest of the checked config, and Hydra asks for it before it makes the run's
    directory: a wrong config leaves nothing behind.
    """
    from distill.config import parse
    from distill.job import Job

    job = _named.get(None) or Job(parse(task_config(_root_)))
    return job.name


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


def stackable(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Mark a task of which `StackLauncher` may train many jobs together."""
    task.stackable = True  # type: ignore[attr-defined]
    return task


@dataclass
class StackConf:
    """``hydra/launcher=stack``."""

    _target_: str = "distill.launcher.StackLauncher"
    max_members: int = 256  # students in a stack; fewer where memory is short
    workers: int = 1  # processes; each trains one stack at a time, on a GPU of its own if it can


ConfigStore.instance().store("stack", StackConf, group="hydra/launcher", provider="distill")


@dataclass
class _Member:
    """A job of a sweep: its config, whole and checked, and its directory."""

    config: DictConfig
    task: DictConfig
    job: "Job"
    directory: Path


class StackLauncher(Launcher):
    """Trains the jobs of a sweep as the fewest stacks that they allow, once all were checked.

    Jobs of a task that is not `stackable` run one after another, as Hydra's basic launcher has it.
    """

    def __init__(self, max_members: int, workers: int) -> None:
        for key, value in (("max_members", max_members), ("workers", workers)):
            if value < 1:
                raise ValueError(f"hydra.launcher.{key}={value}: it must be at least 1")
        self.max_members, self.workers = max_members, workers

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what `launch` needs; from here on, sweeper and launcher compose quickly."""
        self.composer = Composer(hydra_context.config_loader)
        hydra_context.config_loader = cast(ConfigLoader, self.composer)
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run a batch of jobs; each is a list of overrides. A failing job stops no other.

        Raises:
            ConfigError: a job's config is wrong; none of the jobs was started.
        """
        setup_globals()
        self._log_as_sweep()
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        numbered = enumerate(job_overrides, initial_job_idx)
        if not getattr(self.task_function, "stackable", False):
            return [self._run(self._compose(overrides, n)[0]) for n, overrides in numbered]
        try:
            members = [self._member(*self._compose(overrides, n)) for n, overrides in numbered]
        except Exception:
            _forget(Path(self.config.hydra.sweep.dir))
            raise
        return self._train(members)

    def _log_as_sweep(self) -> None:
        configure_log(
            self.config.hydra.hydra_logging,
            self.config.hydra.verbose,
            execution_whitelist=self.hydra_context.execution_whitelist,
        )

    def _compose(self, overrides: Sequence[str], number: int) -> tuple[DictConfig, DictConfig]:
        config, task = self.composer.compose(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        return config, task

    def _run(self, config: DictConfig) -> JobReturn:
        log.info("#%d : %s", config.hydra.job.num, " ".join(config.hydra.overrides.task))
        done = run_job(
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self.hydra_context,
        )
        # The job logged into its own file; what follows is the sweep's again.
        self._log_as_sweep()
        return done

    def _member(self, config: DictConfig, task: DictConfig) -> _Member:
        from distill.config import parse
        from distill.job import Job

        job = Job(parse(task))
        token = _named.set(job)
        try:
            subdir = str(OmegaConf.select(config, "hydra.sweep.subdir"))
        finally:
            _named.reset(token)
        directory = (Path(config.hydra.sweep.dir) / subdir).absolute()
        with open_dict(config):
            config.hydra.sweep.subdir = subdir
            config.hydra.runtime.output_dir = str(directory)
        return _Member(config, task, job, directory)

    def _train(self, members: list[_Member]) -> list[JobReturn]:
        from distill import plan
        from distill.progress import progress
        from distill.results import counted
        from distill.run import fail

        jobs = [member.job for member in members]
        stacks = plan.stacks(jobs, self.max_members, self.workers)
        log.info(plan.described(stacks, jobs))
        returns: dict[int, JobReturn] = {}
        finished: Results = []
        with progress() as bars:
            bar = bars.add_task("sweep", total=len(jobs))
            for stack, outcome in self._outcomes(members, stacks):
                own = [members[n] for n in stack.jobs]
                ended = outcome
                if isinstance(ended, Exception):
                    ended = fail([m.job for m in own], [m.directory for m in own], ended)
                for n, member, result in zip(stack.jobs, own, ended, strict=True):
                    returns[n] = self._return(member, result)
                finished += ended
                bars.update(bar, advance=len(own), description=f"sweep: {counted(finished)}")
                log.info("%d of %d jobs: %s", len(finished), len(jobs), counted(finished))
            bars.remove_task(bar)
        return [returns[n] for n in range(len(members))]

    def _outcomes(
        self, members: list[_Member], stacks: Sequence["Stack"]
    ) -> Iterator[tuple["Stack", "Results | Exception"]]:
        from distill.workers import side_by_side

        if self.workers > 1:
            tasks = {stack: self._start([members[n] for n in stack.jobs]) for stack in stacks}
            for stack, task in tasks.items():
                task.configs = [_plain(members[n].task) for n in stack.jobs]
            yield from side_by_side(tasks, self.workers)
            return
        for stack in stacks:
            own = [members[n] for n in stack.jobs]
            outcome: Results | Exception
            try:
                outcome = self._start(own).run([member.job for member in own])
            except Exception as error:
                outcome = error
            finally:
                self._log_as_sweep()
            yield stack, outcome

    def _start(self, members: Sequence[_Member]) -> "Task":
        """Make the directories of a stack's jobs, with the configs in them."""
        from distill.workers import Task

        for member in members:
            hydra = member.config.hydra
            member.directory.mkdir(parents=True, exist_ok=True)
            if hydra.output_subdir is not None:
                folder = member.directory / hydra.output_subdir
                folder.mkdir(exist_ok=True)
                parts = {"config": member.task, "hydra": hydra, "overrides": hydra.overrides.task}
                for name, part in parts.items():
                    (folder / f"{name}.yaml").write_text(OmegaConf.to_yaml(part), encoding="utf-8")
            self.hydra_context.callbacks.on_job_start(
                config=member.config, task_function=self.task_function
            )
        first = members[0].config.hydra
        with _current(members[0].config):
            logs = _plain(first.job_logging) if first.job_logging is not None else None
            environment = _plain(first.job.env_set)
        return Task([member.directory for member in members], logs, environment)

    def _return(self, member: _Member, result: dict[str, Any]) -> JobReturn:
        """What Hydra wants to know of a job that ended."""
        from distill.run import failure

        done = JobReturn()
        done.cfg, done.hydra_cfg = member.task, member.config
        done.overrides = list(member.config.hydra.overrides.task)
        done.working_dir = os.getcwd()  # noqa: PTH109
        done.task_name = JobRuntime.instance().get("name")
        error = failure(result)
        done.return_value = result.get("val_errors") if error is None else error
        done.status = JobStatus.COMPLETED if error is None else JobStatus.FAILED
        self.hydra_context.callbacks.on_job_end(config=member.config, job_return=done)
        return done


def _plain(config: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


@contextmanager
def _current(config: DictConfig) -> Iterator[None]:
    """Let ``${hydra:...}`` mean this config's."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().cfg = config  # type: ignore[assignment]
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


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
