"""The launcher that trains the jobs of a sweep as stacks."""

import gc
import logging
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.utils import (
    JobReturn,
    JobStatus,
    configure_log,
    run_job,
    setup_globals,
)
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from distill.runs.columns import Status
from distill.runs.planned import write_planned
from distill.sweeps.compose import Composer
from distill.sweeps.members import Member, Reader, check, current, failed, numbered, resolved, short
from distill.sweeps.summary import Summary
from distill.system import machine, store
from distill.system.disk import present
from distill.system.interrupt import Interrupt

if TYPE_CHECKING:
    from distill.sweeps.cluster import Place
    from distill.sweeps.dispatch import Dispatch
    from distill.sweeps.plan import Schedule, Stack
    from distill.sweeps.tasks import Results, Task

log = logging.getLogger(__name__)


def stackable(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Mark a task of which `StackLauncher` may train many jobs together."""
    task.stackable = True  # type: ignore[attr-defined]
    return task


@dataclass
class StackConf:
    """``hydra/launcher=stack``."""

    _target_: str = "distill.sweeps.launcher.StackLauncher"
    max_members: int = 256  # students in a stack; fewer where memory is short
    # Processes, each training one stack at a time, on a GPU of its own if it can; null: as many as
    # cores, of one thread each, where that takes no longer than one of all threads.
    workers: int | None = None
    # slurm: each stack is an element of an array of SLURM's, `workers` at once, or all; local: a
    # process that outlives the command; null: stacks train in this command's processes.
    cluster: str | None = None
    # What an element gets, by submitit's names: timeout_min, gpus_per_node, cpus_per_task, mem_gb,
    # slurm_partition, ...
    submit: Any = field(default_factory=lambda: DictConfig({}, flags={"struct": False}))
    executor: str | None = None  # a trusted function that returns a concurrent.futures.Executor


ConfigStore.instance().store("stack", StackConf, group="hydra/launcher", provider="distill")


class StackLauncher(Launcher):
    """Trains the jobs of a sweep as the fewest stacks that they allow, once all were checked.

    Jobs of a task that is not `stackable` run one after another, as Hydra's basic launcher has it.
    """

    def __init__(
        self,
        max_members: int,
        workers: int | None,
        cluster: str | None,
        submit: Mapping[str, Any],
        executor: str | None,
    ) -> None:
        from distill.config import ConfigError

        for key, value in (("max_members", max_members), ("workers", workers)):
            if value is not None and value < 1:
                raise ConfigError(f"hydra.launcher.{key}={value}: it must be at least 1")
        self.max_members, self.workers = max_members, workers
        self.cluster, self.submit, self.executor = cluster, submit, executor
        self.place: Place | None = None
        self.dispatch: Dispatch | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what `launch` needs; from here on, sweeper and launcher compose quickly."""
        self.composer = Composer(hydra_context.config_loader)
        hydra_context.config_loader = cast(ConfigLoader, self.composer)
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config
        self.planned: dict[str, str] = {}  # the overrides of each job, by its directory

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run a batch of jobs; each is a list of overrides. A failing job stops no other.

        Raises:
            ConfigError: a job's config is wrong; none of the jobs was started.
        """
        from distill.config import ConfigError

        machine.settle()
        if not job_overrides:
            swept = [o for o in self.config.hydra.overrides.task if "(" in o]
            raise ConfigError(f"{' '.join(swept)}: there is no value, so there is no job to run")
        setup_globals()
        self._log_as_sweep()
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        numbered = enumerate(job_overrides, initial_job_idx)
        if not getattr(self.task_function, "stackable", False):
            return [self._run(self._compose(overrides, n)) for n, overrides in numbered]
        from distill.sweeps import cluster
        from distill.training.inputs import trained_on

        folder = Path(self.config.hydra.sweep.dir).absolute()
        if self.place is None:
            self.place = cluster.place(
                self.cluster, self.executor, self.submit, self.workers, folder / cluster.FOLDER
            )
        self.machine = None
        if self.place is not None:
            self.machine = cluster.machine_of(folder / cluster.FOLDER, self.place)
        with trained_on(self.machine):
            read = Reader()
            members = [read(self.composer.compose(self.config, own), n) for n, own in numbered]
            read.finish()
            check(members, self.config)
            if self.place is not None and not all(m.job.run.resume for m in members):
                raise ConfigError(
                    "resume=false: what comes back after a time limit, or dies, would begin anew "
                    f"each time in {self.place}; choose another hydra.sweep.dir"
                )
            with store.locked(Path(self.config.hydra.sweep.dir)):
                self._tell(members)
                return self._train(members)

    def _tell(self, members: Sequence[Member]) -> None:
        """Write which jobs there are to be, those of the command's earlier batches among them."""
        folder = Path(self.config.hydra.sweep.dir).absolute()
        for member in members:
            place = member.directory.relative_to(folder).as_posix()
            self.planned.setdefault(place, shlex.join(member.composed.overrides))
        write_planned(folder, self.planned)

    def _log_as_sweep(self) -> None:
        configure_log(
            self.config.hydra.hydra_logging,
            self.config.hydra.verbose,
            execution_whitelist=self.hydra_context.execution_whitelist,
        )

    def _compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        return numbered(self.composer.compose(self.config, overrides).config(), number)

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

    def _train(self, members: list[Member]) -> list[JobReturn]:
        from distill.runs.results import RESULT

        same: dict[Path, list[int]] = {}  # equal jobs are trained once
        for number, member in enumerate(members):
            same.setdefault(member.directory, []).append(number)
        results = self._kept([members[numbers[0]] for numbers in same.values()])
        distinct = [members[numbers[0]] for place, numbers in same.items() if place not in results]
        returns: dict[int, JobReturn] = {}
        for directory, result in results.items():
            returns |= {n: members[n].returned(result) for n in same[directory]}

        def ended(member: Member, result: dict[str, Any], error: Exception | None) -> None:
            for n in same[member.directory]:
                returns[n] = self._return(members[n], result, error)

        if distinct:
            self._train_stacks(distinct, ended)
        for n, member in enumerate(members):
            # What was removed while others trained is in no summary, and the sweep not whole.
            path = member.directory / RESULT
            if returns[n].status == JobStatus.COMPLETED and not present(path):
                gone = {
                    "run": member.job.name,
                    "status": Status.FAILED,
                    "reason": f"{path} is gone",
                }
                returns[n] = member.returned(gone)
        return [returns[n] for n in range(len(members))]

    def _kept(self, members: Sequence[Member]) -> dict[Path, dict[str, Any]]:
        """The results, by their directories, of those jobs that were finished before."""
        from distill.runs.kept import kept, unlike

        found = [(member, kept(member.job, member.directory)) for member in members]
        before = [(member, result) for member, result in found if result is not None]
        if before:
            log.info("%d of %d jobs were finished before and are kept", len(before), len(members))
        for line in unlike([(member.job, result) for member, result in before]):
            log.warning(line)
        return {member.directory: short(result) for member, result in before}

    def _schedule(self, members: Sequence[Member]) -> "Schedule":
        """The stacks that jobs become, told before anything is timed, and where they train."""
        from distill.sweeps import plan

        jobs = [member.job for member in members]
        environments = [tuple(sorted(member.environment.items())) for member in members]
        begun = plan.begun(jobs, [member.directory for member in members])
        stacks = plan.stacks(
            jobs, self.max_members, self.workers or 1, environments.__getitem__, begun
        )
        log.info(plan.described(stacks, jobs))
        schedule = plan.schedule(stacks, jobs, self.workers)
        log.info(str(schedule))
        return schedule

    def _train_stacks(
        self,
        members: Sequence[Member],
        ended: Callable[[Member, dict[str, Any], Exception | None], None],
    ) -> None:
        """Tell of each job as it ends: its result, and the error that ended its stack, if any."""
        from distill.runs.results import RESULT, counted
        from distill.system.progress import progress

        if self.place is None:
            outcomes = self._outcomes(members, self._schedule(members))
        else:
            outcomes = self._dispatched(members, self.place)
        finished: Results = []
        self._started: dict[Stack, list[Member]] = {}
        with progress() as bars:
            bar = bars.add_task("sweep", total=len(members))
            gc.freeze()  # or each collection looks through all jobs
            try:
                for stack, outcome in outcomes:
                    own = self._started.pop(stack, [members[n] for n in stack.jobs])
                    error = outcome if isinstance(outcome, Exception) else None
                    done = failed(own, outcome) if isinstance(outcome, Exception) else outcome
                    for member, result in zip(own, done, strict=True):
                        ended(member, result, error)
                    finished += map(short, done)
                    bars.update(bar, advance=len(own), description=f"sweep: {counted(finished)}")
                    log.info("%d of %d jobs: %s", len(finished), len(members), counted(finished))
            except BaseException as stop:
                if self.dispatch is not None and isinstance(stop, Interrupt):
                    self.dispatch.stopped(stop)
                for own in self._started.values():
                    failed([m for m in own if not (m.directory / RESULT).exists()], stop)
                raise
            finally:
                gc.unfreeze()
            bars.remove_task(bar)

    def _outcomes(
        self, members: Sequence[Member], schedule: "Schedule"
    ) -> Iterator[tuple["Stack", "Results | Exception"]]:
        from distill.sweeps.workers import in_turn, side_by_side, teach

        def begin(stack: "Stack") -> "Task":
            own = [members[n] for n in stack.jobs]
            self._started[stack] = own
            return self._start(own)

        def train(stack: "Stack") -> "Results":
            try:
                return begin(stack).run([members[n].job for n in stack.jobs])
            finally:
                self._log_as_sweep()

        if schedule.workers == 1:
            yield from in_turn(schedule.stacks, train)
        else:
            start: Callable[[Stack], Task] = begin
            try:
                start = teach(schedule.stacks, [member.job for member in members], start)
            finally:
                self._log_as_sweep()
            yield from side_by_side(schedule.stacks, start, schedule.workers)

    def _dispatched(
        self, members: Sequence[Member], place: "Place"
    ) -> Iterator[tuple["Stack", "Results | Exception"]]:
        """The same of stacks that train elsewhere, the longest first."""
        from distill.sweeps import plan
        from distill.sweeps.dispatch import Dispatch, lessons

        jobs = [member.job for member in members]
        places = [member.directory for member in members]
        folder = Path(self.config.hydra.sweep.dir).absolute()
        self.dispatch = dispatch = Dispatch(
            place, folder, places, [job.name for job in jobs], self.max_members, self.machine
        )
        taken = dispatch.taken()
        there = {n for stack in taken for n in stack.jobs}
        environments = [tuple(sorted(member.environment.items())) for member in members]
        begun = [stack for stack in plan.begun(jobs, places) if there.isdisjoint(stack.jobs)]
        stacks = plan.stacks(
            jobs,
            self.max_members,
            self.workers or 1,
            environments.__getitem__,
            [*taken, *begun],
            here=False,
        )[len(taken) :]
        stacks.sort(key=lambda stack: -plan.work([jobs[n] for n in stack.jobs]))
        if stacks:
            log.info(plan.dispatched(stacks, place))

        def start(stack: "Stack") -> "Task":
            return self._start([members[n] for n in stack.jobs])

        first = [(stack, start(stack)) for stack in lessons(stacks, jobs)]
        return dispatch.train(stacks, first, start)

    def _start(self, members: Sequence[Member]) -> "Task":
        """The stack of these jobs, of which its callbacks know that it is about to be trained."""
        from distill.sweeps.tasks import Task

        first = members[0].hydra_config()
        with current(first):
            logs = first.hydra.job_logging and resolved(first.hydra.job_logging)
        verbose = first.hydra.verbose
        task = Task(
            members=[member.planned() for member in members],
            log=logs,
            verbose=verbose if isinstance(verbose, bool | str) else list(verbose),
            whitelist=self.hydra_context.execution_whitelist,
            environment=members[0].environment,
            machine=self.machine,
        )
        if self._heard("on_job_start"):
            task.make()
            for member in members:
                with current(config := member.hydra_config()):
                    self.hydra_context.callbacks.on_job_start(
                        config=config, task_function=self.task_function
                    )
        return task

    def _heard(self, event: str) -> bool:
        """Whether a callback of the user's asks for this event of each job."""
        silent = {getattr(kind, event) for kind in (Callback, Summary)}
        return any(
            getattr(type(c), event) not in silent for c in self.hydra_context.callbacks.callbacks
        )

    def _return(self, member: Member, result: dict[str, Any], cause: Exception | None) -> JobReturn:
        """What Hydra wants to know of a job that ended; its callbacks get it, too."""
        done = member.returned(result, cause)
        if self._heard("on_job_end"):
            with current(config := member.hydra_config()):
                self.hydra_context.callbacks.on_job_end(config=config, job_return=done)
        return done
