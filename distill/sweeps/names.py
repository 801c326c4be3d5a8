"""How runs and sweeps are named, and how a run gets its directory to itself."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from operator import mul
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from distill.sweeps.compose import task_config
from distill.system import store
from distill.system.trust import FLAG, TRUSTED

if TYPE_CHECKING:
    from distill.runs.job import Job

ASIDE = {"resume", "checkpoint", "logger"}  # they change how a sweep is run, and not what it is
LONGEST = 200  # characters of the name of a sweep's directory; file systems take 255 bytes

named: ContextVar["Job | None"] = ContextVar("named", default=None)
typed: ContextVar[Sequence[str]] = ContextVar("typed", default=())  # the command's arguments
# Where results came to lie, for a caller who wants to read them.
landed: ContextVar["list[Path] | None"] = ContextVar("landed", default=None)


@contextmanager
def naming(job: "Job") -> Iterator[None]:
    """Let ``${distill.run:}`` mean this job's name."""
    token = named.set(job)
    try:
        yield
    finally:
        named.reset(token)


def run_name(*, _root_: DictConfig) -> str:
    """The name of the run that a composed config describes, for ``${distill.run:}``.

    It holds the digest of the checked config, and Hydra asks for it before it makes the run's
    directory: a wrong config leaves nothing behind.
    """
    from distill.config import parse
    from distill.runs.job import Job

    check_names(_root_)
    job = named.get()
    if job is None:
        job = Job(parse(task_config(_root_)))
        check_halving(_root_, job.run.halving.rungs)
    return job.name


def free(*, _root_: DictConfig) -> str:
    """Make room for a run in its directory, for ``${distill.free:}``; returns nothing of interest.

    It stands in ``hydra.job.env_set``, which Hydra resolves when it knows the directory and has
    written nothing there: its config is not to replace that of another run's result. The directory
    stays locked until the job ends. `StackLauncher` asks before, and sees to it itself.

    Raises:
        ConfigError: the directory holds what another run came to, or what cannot be read.
    """
    output = OmegaConf.select(_root_, "hydra.runtime.output_dir", throw_on_missing=False)
    if output is None:
        return ""
    from distill.config import ConfigError, parse
    from distill.runs.job import Job
    from distill.runs.kept import kept
    from distill.runs.results import clear

    job, directory = Job(parse(task_config(_root_))), Path(output)
    release()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return ""  # Hydra, which is about to make it, says so
    try:
        _held.append(store.lock(directory))
        if kept(job, directory) is None:
            config = OmegaConf.select(_root_, "hydra.output_subdir")
            clear(directory, keep=not job.run.resume, config=config)
    except OSError as error:
        raise ConfigError(store.told(error) or str(error)) from error
    return ""


def tell(folder: Path) -> None:
    """Tell whoever called, if he asked, in which folder results lie."""
    if (places := landed.get()) is not None:
        places.append(folder.absolute())


_held: list[store.Held] = []


def release() -> None:
    while _held:
        _held.pop().release()


def check_halving(config: DictConfig, rungs: int) -> None:
    """Refuse to halve jobs that each train alone.

    Raises:
        ConfigError: there are ``rungs``, and nothing that would halve.
    """
    from distill.config import ConfigError

    stacks = (
        OmegaConf.select(config, "hydra.launcher._target_")
        == "distill.sweeps.launcher.StackLauncher"
    )
    if rungs and not (stacks and config.hydra.mode == RunMode.MULTIRUN):
        raise ConfigError(
            f"halving.rungs={rungs}: only a sweep's jobs that train as one stack are halved; "
            "choose -m and hydra/launcher=stack, or halving.rungs=0"
        )


def check_names(config: DictConfig) -> None:
    """Refuse names by which Hydra would write a job's files elsewhere than in its directory.

    And an environment by which a config would trust modules: that is for the user alone.

    Raises:
        ConfigError: one of them is a path, or the environment of the jobs names modules.
    """
    from distill.config import ConfigError

    raw = OmegaConf.to_container(OmegaConf.select(config, "hydra.job.env_set"), resolve=False)
    if isinstance(raw, dict) and TRUSTED in raw:
        raise ConfigError(
            f"hydra.job.env_set.{TRUSTED}={raw[TRUSTED]}: no config can trust modules; "
            f"give {FLAG}, or set {TRUSTED} in the shell"
        )

    for key in ("hydra.job.name", "hydra.output_subdir"):
        name = OmegaConf.select(config, key)
        if name is not None and (Path(name).name != name or name == ".." or name[0] == "~"):
            raise ConfigError(f"{key}={name}: it must be a name, not a path")


def sweep_name() -> str:
    """The name of the sweep that Hydra is about to start, for ``${distill.sweep:}``.

    That of its experiment; else what is swept and a digest of the overrides, so that the same
    command finds its directory again.
    """
    config = HydraConfig.get()
    experiment = config.runtime.choices.get("experiment")
    if experiment is not None:
        return str(experiment).replace("/", "-")
    overrides = sorted(o for o in config.overrides.task if _key(o).partition(".")[0] not in ASIDE)
    swept = [_key(o).rpartition(".")[2] for o in overrides if "," in o or "(" in o]
    readable = re.sub(r"[^\w.-]", "-", "-".join(swept[:4]), flags=re.ASCII)[:LONGEST]
    short = store.digest(overrides)[:8]
    return f"{readable}-{short}" if readable else short


def over(number: Any, by: Any) -> int:  # of annotated ones OmegaConf wants just these types
    """A ``number`` divided ``by`` another, to the nearest whole number."""
    whole: int = round(number / by)
    return whole


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


OmegaConf.register_resolver("distill.run", run_name, replace=True)
OmegaConf.register_resolver("distill.free", free, replace=True)
OmegaConf.register_resolver("distill.times", mul, replace=True)
OmegaConf.register_resolver("distill.over", over, replace=True)
# Cached, since the jobs of a sweep, which have other overrides, inherit the value.
OmegaConf.register_resolver("distill.sweep", sweep_name, replace=True, use_cache=True)
