"""Where the yamls lie, how runs and sweeps are named, and the summary that ends a sweep."""

import re
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from distill import __version__, store
from distill.compose import command, override, task_config

if TYPE_CHECKING:
    from distill.job import Job

HERE = Path(__file__).resolve().parent
# In a wheel the yamls lie in the package, in a checkout beside it.
CONF = next(p for p in (HERE / "conf", HERE.parent / "conf") if (p / "config.yaml").is_file())


ASIDE = {"resume", "checkpoint"}  # they change how a sweep is run, and not what it is
LONGEST = 200  # characters of the name of a sweep's directory; file systems take 255 bytes

REFUSED = HydraException | OmegaConfBaseException | SystemExit  # before any job

named: ContextVar["Job | None"] = ContextVar("named", default=None)
typed: ContextVar[Sequence[str]] = ContextVar("typed", default=())  # the command's arguments


def run_name(*, _root_: DictConfig) -> str:
    """The name of the run that a composed config describes, for ``${distill.run:}``.

    It holds the digest of the checked config, and Hydra asks for it before it makes the run's
    directory: a wrong config leaves nothing behind.
    """
    from distill.config import parse
    from distill.job import Job

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
    from distill.job import Job
    from distill.results import clear
    from distill.run import kept

    job, directory = Job(parse(task_config(_root_))), Path(output)
    _release()
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


_held: list[FileLock] = []


def _release() -> None:
    while _held:
        _held.pop().release()


def check_halving(config: DictConfig, rungs: int) -> None:
    """Refuse to halve jobs that each train alone.

    Raises:
        ConfigError: there are ``rungs``, and nothing that would halve.
    """
    from distill.config import ConfigError

    stacks = OmegaConf.select(config, "hydra.launcher._target_") == "distill.launcher.StackLauncher"
    if rungs and not (stacks and config.hydra.mode == RunMode.MULTIRUN):
        raise ConfigError(
            f"halving.rungs={rungs}: only a sweep's jobs that train as one stack are halved; "
            "choose -m and hydra/launcher=stack, or halving.rungs=0"
        )


def check_names(config: DictConfig) -> None:
    """Refuse names by which Hydra would write a job's files elsewhere than in its directory.

    Raises:
        ConfigError: one of them is a path.
    """
    from distill.config import ConfigError

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
    return "-".join([*[readable] * bool(readable), store.digest(overrides)[:8]])


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


OmegaConf.register_resolver("distill.run", run_name, replace=True)
OmegaConf.register_resolver("distill.free", free, replace=True)
# Cached, since the jobs of a sweep, which have other overrides, inherit the value.
OmegaConf.register_resolver("distill.sweep", sweep_name, replace=True, use_cache=True)


class Summary(Callback):
    """Writes and prints the summary when a sweep ends, however it ends, under any launcher."""

    new: Sequence[Path] = ()

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Let a ~ in the run's directory mean the home directory."""
        _at_home(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Refuse what cannot be swept, and keep which folders are not there yet."""
        from distill.config import ConfigError

        _at_home(config, "sweep")
        raw: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
        if str(raw["subdir"]).startswith("~"):
            allowed = "it must be a folder within hydra.sweep.dir"
            _end(f"hydra.sweep.subdir={raw['subdir']}: {allowed}")
        try:
            check_halving(config, OmegaConf.select(config, "halving.rungs", default=0))
        except ConfigError as error:
            _end(str(error))
        folder = Path(config.hydra.sweep.dir)
        self.new = [path for path in (folder, *folder.parents) if not path.exists()]

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Rebuild summary.csv from the files below the sweep's directory.

        If no job was started, the folders that the sweep made for itself go.
        """
        from rich.console import Console

        from distill import results, tables
        from distill.config import ConfigError

        folder, ended = Path(config.hydra.sweep.dir), sys.exception()
        _name(ended, folder)
        try:
            _forget(folder, self.new)
            if folder.is_dir() and results.paths(folder):
                frame = results.write_summary(folder)
                if not isinstance(ended, REFUSED | ConfigError):
                    _record(config, folder)
                tables.show(frame, folder, Console())
        except OSError as error:
            # Hydra makes a warning of an Exception, and the sweep would seem to be done.
            text = store.told(error) or str(error)
            if ended is None:
                sys.exit(text)
            print(text, file=sys.stderr)

    def on_job_end(self, config: Any, job_return: JobReturn, **kwargs: Any) -> None:  # noqa: ARG002
        """Give the directory free that `free` locked."""
        _release()

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Say of an error in writing Hydra's files where that was."""
        directory = OmegaConf.select(config, "hydra.runtime.output_dir")
        if directory is not None:  # a refused run has none
            _name(sys.exception(), Path(directory))


def _record(config: DictConfig, folder: Path) -> None:
    """Write the sweep's commands, each once, with what the last of them composed."""
    from distill.results import SWEEP

    path = folder / SWEEP
    line = command(*(typed.get() or sys.argv[1:]))
    try:
        before = list(OmegaConf.select(OmegaConf.load(path), "commands", default=[]))
    except Exception:  # none, or damaged: each kind of damage has its own error
        before = []
    text = OmegaConf.to_yaml(
        OmegaConf.create(
            {
                "commands": [*(c for c in before if c != line), line],
                "version": __version__,
                "params": OmegaConf.select(config, "hydra.sweeper.params"),
                "config": task_config(config),
            }
        )
    )
    store.write_text(path, text)


def _end(line: str) -> NoReturn:
    """End the command from a callback, of whose other errors Hydra makes warnings."""
    print(line, file=sys.stderr)
    sys.exit(1)


def _at_home(config: DictConfig, section: str) -> None:
    """Put the home directory in place of a ~ in ``hydra.section.dir``, for its jobs too."""
    hydra = config.hydra
    raw: Any = OmegaConf.to_container(hydra[section], resolve=False)
    given = str(raw["dir"])
    if not given.startswith("~"):
        return
    key = f"hydra.{section}.dir"
    try:
        place = store.home(given)
    except ValueError as error:
        _end(f"{key}={error}")
    with read_write(hydra), open_dict(hydra):
        hydra[section].dir = place
        hydra.overrides.hydra.append(override(key, place))


def _name(error: BaseException | None, folder: Path) -> None:
    """Let the error of a full disk, which names no file, name the folder that was written."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(folder)


def _forget(folder: Path, new: Sequence[Path]) -> None:
    """Remove the folders that a sweep made for itself, if nothing of a job was written."""
    files = list(folder.glob("*"))
    if folder in new and {path.name for path in files} <= {"multirun.yaml", store.LOCK}:
        for path in files:
            path.unlink()
        for path in new:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
