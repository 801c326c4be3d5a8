"""The callback by which each sweep ends with its summary, and what Hydra writes stays whole."""

import errno
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from distill import __version__
from distill.sweeps.compose import command, override, task_config
from distill.sweeps.names import check_halving, release, tell, typed
from distill.system import store
from distill.system.conf import commit
from distill.system.pulse import PULSE, pulse

# The sign of life of the sweep's command. No callback holds it: those are sent to other processes.
_at_work = ExitStack()
REFUSED = HydraException | OmegaConfBaseException | SystemExit  # before any job


class Summary(Callback):
    """Writes and prints the summary when a sweep ends, however it ends, under any launcher."""

    new: Sequence[Path] = ()
    recorded = False  # whether this command was, at its start
    before: bytes | None = None  # the record as it was then, if there was one

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
        with suppress(OSError):  # of what cannot be written, the launcher tells
            folder.mkdir(parents=True, exist_ok=True)
            self.before, self.recorded = _record(config, folder), True
            _at_work.enter_context(pulse(folder / PULSE))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Rebuild summary.csv from the files below the sweep's directory.

        If no job was started, the folders that the sweep made for itself go.
        """
        from rich.console import Console

        from distill.config import ConfigError
        from distill.runs import results, summaries
        from distill.sweeps import tables

        folder, ended = Path(config.hydra.sweep.dir), sys.exception()
        _name(ended, folder)
        _at_work.close()
        try:
            if self.recorded and isinstance(ended, REFUSED | ConfigError):
                _unrecord(folder, self.before)
            _forget(folder, self.new)
            if folder.is_dir() and results.paths(folder):
                frame = summaries.write_summary(folder)
                tell(folder)
                if not isinstance(ended, REFUSED | ConfigError):
                    _record(config, folder)
                # In a notebook rich would go around stdout, which may be silenced.
                tables.show(frame, folder, Console(force_jupyter=False))
        except OSError as error:
            # Hydra makes a warning of an Exception, and the sweep would seem to be done.
            text = store.told(error) or str(error)
            if ended is None:
                sys.exit(text)
            print(text, file=sys.stderr)

    def on_job_end(self, config: Any, job_return: JobReturn, **kwargs: Any) -> None:  # noqa: ARG002
        """Give the directory free that `free` locked."""
        release()

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Say of an error in writing Hydra's files where that was."""
        directory = OmegaConf.select(config, "hydra.runtime.output_dir")
        if directory is not None:  # a refused run has none
            _name(sys.exception(), Path(directory))


def _record(config: DictConfig, folder: Path) -> bytes | None:
    """Write the sweep's commands, each once, with what the last of them composed.

    At the start, too, so that a sweep that is killed tells what goes on with it. Returns what was
    written before.
    """
    from distill.runs.results import SWEEP

    path = folder / SWEEP
    line = command(*(typed.get() or sys.argv[1:]))
    text = path.read_bytes() if path.is_file() else None
    before: dict[str, list[str]] = {}
    try:
        known: Any = OmegaConf.to_container(OmegaConf.load(path))
        before = {key: list(known.get(key, ())) for key in ("commands", "commits")}
    except Exception as error:  # none, or damaged: each kind of damage has its own error
        if getattr(error, "errno", None) not in (None, errno.ENOENT):
            raise  # it cannot be read, and may be whole
    made = commit()
    commits = [*before.get("commits", ()), *([made] if made else ())]
    content = {
        "commands": [*(c for c in before.get("commands", ()) if c != line), line],
        "version": __version__,
        **({"commits": [*dict.fromkeys(commits)]} if commits else {}),
        "params": OmegaConf.select(config, "hydra.sweeper.params"),
        "config": task_config(config),
    }
    store.write_text(path, OmegaConf.to_yaml(OmegaConf.create(content)))
    return text


def _unrecord(folder: Path, before: bytes | None) -> None:
    """Let the record be as it was ``before`` a command that was refused."""
    from distill.runs.results import SWEEP

    if before is not None:
        store.write(folder / SWEEP, partial(Path.write_bytes, data=before))
    else:
        (folder / SWEEP).unlink(missing_ok=True)


def _end(line: str) -> NoReturn:
    """End the command from a callback, of whose other errors Hydra makes warnings.

    Raises:
        SystemExit: always, caused by a ConfigError of the ``line``.
    """
    from distill.config import ConfigError

    raise SystemExit(line) from ConfigError(line)


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
    from distill.runs.results import SWEEP

    files = list(folder.glob("*"))
    if folder in new and {path.name for path in files} <= {"multirun.yaml", SWEEP, store.LOCK}:
        for path in files:
            path.unlink()
        for path in new:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
