"""The Python face: `distill.run`, `distill.sweep` and `distill.load`, for scripts and notebooks."""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from distill.cli import modules as own
from distill.cli.untouched import untouched
from distill.config.errors import ConfigError
from distill.runs.columns import Status
from distill.system.trust import FLAG

if TYPE_CHECKING:
    import pandas as pd

    from distill.deploy.student import Student

Folder = str | os.PathLike[str]

_turn = threading.RLock()  # Hydra, logging and the streams are one a process


@dataclass(frozen=True, eq=False)
class Result(Mapping[str, Any]):
    """What a run came to: a mapping of all that its ``result.json`` holds.

    Example:
        >>> from pathlib import Path
        >>> result = Result(Path("multirun", "single", "one"), {"run": "one", "test_errors": 12})
        >>> result.test_errors, result["run"], result.val_errors
        (12, 'one', None)
    """

    directory: Path
    record: Mapping[str, Any] = field(repr=False)

    def __getitem__(self, key: str) -> Any:
        return self.record[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.record)

    def __len__(self) -> int:
        return len(self.record)

    @property
    def test_errors(self) -> int | None:
        """Errors on the test set; None with ``test=false``."""
        return self.record.get("test_errors")

    @property
    def val_errors(self) -> int | None:
        """Errors on the validation split; None where there is none."""
        return self.record.get("val_errors")

    @property
    def config(self) -> dict[str, Any]:
        """The run's config, in plain values."""
        return dict(self.record["config"])

    @property
    def history(self) -> "pd.DataFrame":
        """Losses, errors and the learning rate: one row for each epoch, which is the index."""
        import pandas as pd

        from distill.runs.results import HISTORY

        return pd.read_csv(self.directory / HISTORY, index_col="epoch")

    def load(
        self,
        *,
        weights: Literal["last", "best", "ema"] = "last",
        modules: Sequence[str] = (),
    ) -> "Student":
        """The trained student, as `load` gives it."""
        return load(self.directory, weights=weights, modules=modules)


def run(
    *overrides: str,
    modules: Sequence[str] = (),
    config_dir: Folder | None = None,
    show: bool = False,
) -> Result:
    """Do one run, as the command ``distill`` does with these overrides; a finished one is kept.

    Args:
        overrides: as on the command line, each a text of its own.
        modules: modules of your own whose functions and classes a config may name (`--module`).
        config_dir: a folder of yamls of your own (`--config-dir`).
        show: print what the command prints. Without it only warnings are printed, on stderr.

    Returns:
        What the run came to.

    Raises:
        ConfigError: the config is wrong, or is that of a sweep; nothing was started.
        RunError: the run diverged.
        OSError: a file cannot be read or written.
        Exception: what the training raised; the run's result has it, too.

    Example:
        >>> import distill
        >>> result = distill.run("data=synthetic", "loss=hard", "train.epochs=20")
        >>> result.directory.parent.name, result["status"], result.test_errors < 96
        ('single', 'complete', True)
    """
    from distill.runs import results

    [directory] = _call([], overrides, modules, config_dir, show)
    return Result(directory, results.read(directory / results.RESULT))


def sweep(
    *overrides: str,
    modules: Sequence[str] = (),
    config_dir: Folder | None = None,
    show: bool = False,
) -> "pd.DataFrame":
    """Do a sweep or search, as the command ``distill -m`` does with these overrides, or go on.

    Args:
        overrides: as on the command line, each a text of its own; ``experiment=NAME`` is one.
        modules: as for `run`.
        config_dir: as for `run`.
        show: print what the command prints: the plan, how far it is, and the tables.

    Returns:
        The summary of the sweep's folder, as `distill.summary` gives it: one row for each run. Its
        folder is ``frame.attrs["directory"]``. Runs that failed or diverged are rows, too: their
        ``status`` is not ``complete``, and a warning counts them.

    Raises:
        ConfigError: a config is wrong; no job was started.
        OSError: a file cannot be read or written.
        Exception: under launchers that train one job after another, what a job raised.

    Example:
        >>> import distill
        >>> frame = distill.sweep("data=synthetic", "loss=hard", "train.epochs=2", "seed=0,1")
        >>> frame[["seed", "status"]].values.tolist()
        [[0, 'complete'], [1, 'complete']]
    """
    from distill.runs.summaries import read_summary
    from distill.training.fit import RunError

    places: list[Path] = []
    try:
        _call(["-m"], overrides, modules, config_dir, show, places)
    except RunError:
        if not places:
            raise
    frame = read_summary(places[-1])
    frame.attrs["directory"] = str(places[-1])
    lost = frame.status[~frame.status.isin([Status.COMPLETE, Status.STOPPED])].value_counts()
    if len(lost):
        counts = ", ".join(f"{n} {status}" for status, n in lost.items())
        text = f"of {len(frame)} runs, {counts}: see the columns status and reason"
        warnings.warn(text, stacklevel=2)
    return frame


def load(
    path: Folder,
    best: str | None = None,
    *,
    weights: Literal["last", "best", "ema"] = "last",
    modules: Sequence[str] = (),
) -> "Student":
    """The trained student of a run, or of the best run of a sweep, for images of your own.

    Args:
        path: a run's directory, or a sweep's folder.
        best: of a sweep's complete runs, the one with the least in this column (of an accuracy, the
            most). None: ``val_errors``, since the test set is to choose nothing; or the only run.
        weights: those of the ``last`` epoch, of the ``best`` one (train.keep_best), or the moving
            average of all, ``ema`` (train.ema).
        modules: as for `run`, where the run's config names components of your own.

    Returns:
        A `distill.Student`, on the CPU, in evaluation mode.

    Raises:
        ConfigError: no complete run lies there, nothing chooses among several, the run kept no
            such weights, or files are damaged.

    Example:
        >>> import distill, torch
        >>> result = distill.run("data=synthetic", "loss=hard", "train.epochs=2")
        >>> student = distill.load(result.directory)
        >>> student.shape, student.classes
        ((1, 12, 12), 4)
        >>> student(torch.zeros(5, 12, 12, dtype=torch.uint8)).shape
        torch.Size([5, 4])
    """
    from distill.deploy import student

    with own.trusting(_names(modules)):
        return student.load(Path(path), best, weights)


def _names(modules: Sequence[str]) -> Sequence[str]:
    return [modules] if isinstance(modules, str) else modules


def _call(
    flags: Sequence[str],
    overrides: Sequence[str],
    modules: Sequence[str],
    config_dir: Folder | None,
    show: bool,
    places: list[Path] | None = None,
) -> list[Path]:
    """Do what the command does, and leave the process as it was; returns where results lie.

    Raises:
        ConfigError, RunError, OSError: as `run`.
    """
    for given in overrides:
        _check(given)
    places = [] if places is None else places
    arguments = [*flags, *overrides]
    arguments += [part for name in _names(modules) for part in (FLAG, name)]
    if config_dir is not None:
        arguments += ["--config-dir", os.fspath(config_dir)]
    with _turn, untouched(), _streams(show):
        from distill.cli.main import perform
        from distill.sweeps import names

        token = names.landed.set(places)
        sys.argv = ["distill", *arguments]
        try:
            perform(arguments, single=not flags)
        except SystemExit as end:  # by which a callback of Hydra's ends it
            if isinstance(end.__cause__, ConfigError):
                raise end.__cause__ from None
            raise OSError(str(end.code)) from end
        except Exception as error:
            if (told := _told(error)) is None:
                raise
            full = os.environ.get("HYDRA_FULL_ERROR") == "1"
            raise told from error if full else None
        finally:
            names.landed.reset(token)
    return places


def _check(given: str) -> None:
    """Refuse what is no override.

    Raises:
        ConfigError: it is a flag of the command, or chooses between a run and a sweep.
    """
    if not isinstance(given, str):
        raise ConfigError(f"{given!r}: an override is a text, such as 'loss.temperature=4'")
    if given.startswith("-"):
        allowed = "overrides such as loss.temperature=4, and the keywords modules, config_dir"
        raise ConfigError(f"{given}: it is a flag of the command; allowed are {allowed}")
    if given.lstrip("+").startswith("hydra.mode="):
        raise ConfigError(f"{given}: distill.run does one run, distill.sweep a sweep")


def _told(error: Exception) -> ConfigError | None:
    """The one line on a config that Hydra could not compose; None for all other errors."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from distill.cli.explain import NEEDS, explain

    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    return ConfigError(explain(error).replace(NEEDS, "which distill.sweep runs"))


class _Warnings(logging.StreamHandler[TextIO]):
    """Warnings for stderr, but for those that a job's logging writes there itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a record, which between jobs goes to stdout alone."""
        others = logging.getLogger().handlers
        return super().filter(record) and not any(
            getattr(other, "stream", None) is self.stream for other in others
        )


@contextmanager
def _streams(show: bool) -> Iterator[None]:
    """Print nothing on stdout, unless it is to be shown, and nothing of Hydra's on stderr.

    Where nothing is to be shown, warnings are, on stderr.
    """
    from distill.system import terminal

    logger = logging.getLogger("distill")
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        quiet = nullcontext() if show else redirect_stdout(nowhere)
        with quiet, terminal.outlets():
            warned = _Warnings(sys.stderr)
            warned.setLevel(logging.WARNING)
            if not show:
                logger.addHandler(warned)
            try:
                yield
            finally:
                logger.removeHandler(warned)
