"""Studies as they are found: in their storage, or else made again, in memory, from the runs' files.

Nothing is written, neither into a folder nor into a storage.
"""

import errno
import os
import shlex
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from distill.report import contents
from distill.runs import results
from distill.runs.columns import Status
from distill.system.store import told
from distill.system.terminal import public
from distill.tuning import MARK, STUDY, best, searched, storage, telling

WAITED = 10.0  # seconds for a file that another process has locked
HYDRA = Path(".hydra") / "hydra.yaml"  # what Hydra keeps of a job
SWEEPER = "distill.tuning.sweeper.TuneSweeper"
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where it is there


@dataclass(frozen=True)
class Job:
    """A trial as its files tell of it: its result, what Hydra was told, and its number."""

    result: dict[str, Any]
    directory: str
    sweeper: Mapping[str, Any]
    objectives: tuple[str, ...]
    overrides: tuple[str, ...]
    number: int
    cwd: str


def studies(folder: Path, url: str | None = None) -> tuple[contents.Study, ...]:
    """The studies of a sweep's folder; none if it is of no study.

    Args:
        folder: the sweep's.
        url: of the storage, or a journal file; by default that which lies in the folder, or the
            file that its runs name. A server is not asked unless it is given here.
    """
    if url is None and not searched(folder):
        return ()
    with _quiet():
        jobs = [] if url is None and (folder / STUDY).is_file() else [*_jobs(folder)]
        own = f"sqlite:///{folder / STUDY}"
        place = url or _place(folder, jobs) or own
        lost = ""
        try:
            found = [
                s for s in _kept(place, asked=url is not None) if place == own or _has(s, folder)
            ]
        except Exception as error:  # of any of the databases that Optuna can use
            found, lost = [], f" cannot be read ({told(error) or storage.line(error)})."
        if found:
            return tuple(telling.told(folder, study) for study in found)
        if not lost and not searched(folder):
            return ()
        missing = [
            f"{public(place)}{lost or ' holds no study of this folder.'}",
            "What is shown is from the files of the runs in this folder: trials without any are "
            "not counted. `distill-report --storage URL` reads a storage that lies elsewhere.",
        ]
        made = [telling.told(folder, s, missing) for s in _remade(folder, jobs or _jobs(folder))]
        none = contents.Study(folder.resolve().name, (), {}, (), missing=tuple(missing))
        return tuple(made) or (none,)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from telling of each study that is made."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _place(folder: Path, jobs: Sequence[Job]) -> str | None:
    """The storage that the runs of a folder name, as seen from here, or from where they began."""
    there = next((job for job in jobs if job.sweeper.get("storage")), None)
    if (folder / STUDY).exists() or there is None:
        return None
    named = str(there.sweeper["storage"])
    path = storage.file(named)
    if path is None or path.exists():
        return named
    place = named.rpartition(":///")[2]
    moved = named.removesuffix(place) + os.path.join(there.cwd, place)  # noqa: PTH118
    found = storage.file(moved)
    return moved if found is not None and found.exists() else named


def _kept(url: str, *, asked: bool) -> Iterator[optuna.Study]:
    """The studies in a storage, which is opened to be read alone, as they are at this moment.

    A server is not opened unless it was ``asked`` for.

    Raises:
        OSError: there is no such file.
        ValueError: it is of another kind.
        Exception: of any of the databases that Optuna can use.
    """
    if not asked and storage.file(url) is None:
        raise ValueError("a server, which is asked only if --storage names it")
    kept = _opened(storage.at_home(url))
    for name in [study.study_name for study in kept.get_all_studies()]:
        copy = InMemoryStorage()
        optuna.copy_study(from_study_name=name, from_storage=kept, to_storage=copy)
        yield optuna.load_study(study_name=name, storage=copy)


def _opened(url: str) -> BaseStorage:
    path = storage.file(url)
    if path is None:
        return RDBStorage(url, skip_table_creation=True)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if "://" not in url:
        with path.open("rb") as file:
            if file.read(len(storage.JOURNAL)) != storage.JOURNAL:
                raise ValueError(f"{path} is no journal of a study")
        return JournalStorage(JournalFileBackend(str(path)))
    reading = f"{path.as_uri()}?mode=ro"
    connect = partial(
        sqlite3.connect, reading, uri=True, timeout=WAITED, check_same_thread=False
    )  # fmt: skip
    return RDBStorage("sqlite://", {"creator": connect}, skip_table_creation=True)


def _has(study: optuna.Study, folder: Path) -> bool:
    """Whether a trial of a study ran in a folder."""
    try:
        mark = (folder / MARK).read_text(encoding="utf-8")
    except OSError:
        mark = ""
    runs = {path.parent.name for path in results.paths(folder)}
    return any(
        trial.user_attrs.get("run") in runs or (mark and trial.user_attrs.get("holder") == mark)
        for trial in study.get_trials(deepcopy=False)
    )


def _jobs(folder: Path) -> Iterator[Job]:
    """The trials in a folder, but not what was trained again on all data."""
    whole = {f"{key}={value}" for key, value in best.WHOLE.items() if key != "data.validation"}
    for path in results.paths(folder):
        try:
            result = results.read(path)
            hydra = yaml.load((path.parent / HYDRA).read_text(encoding="utf-8"), Loader)["hydra"]
            overrides = tuple(map(str, hydra["overrides"]["task"]))
            if hydra["sweeper"]["_target_"] != SWEEPER or whole <= {*overrides}:
                continue
            if hydra["sweeper"].get("candidates"):  # of several studies, which nothing tells apart
                continue
            number, cwd = int(hydra["job"]["num"]), str(hydra["runtime"]["cwd"])
            objectives = tuple(map(str, hydra["sweeper"]["objectives"]))
        except (OSError, *results.DAMAGED, yaml.YAMLError):
            continue
        place = path.parent.relative_to(folder).as_posix()
        yield Job(result, place, hydra["sweeper"], objectives, overrides, number, cwd)


def _remade(folder: Path, jobs: Iterable[Job]) -> Iterator[optuna.Study]:
    """Studies in memory, each of the jobs with the same objectives and fixed overrides."""
    commands = [*_commands(folder)]
    fixed = [
        frozenset(o.input_line or "" for o in c if not o.is_sweep_override()) for c in commands
    ]
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        # The command that says most of what the job is; without any, what is not alike is searched.
        own = max((f for f in fixed if f <= {*job.overrides}), key=len, default=frozenset())
        groups.setdefault((job.objectives, own), []).append(job)
    written = [*telling.experiments(folder)]
    for number, ((objectives, own), group) in enumerate(groups.items(), 1):
        spans = {o.get_key_element(): o for c in commands for o in c if o.is_sweep_override()}
        spans = {**_spans(group[0].sweeper), **spans}
        alike = own or frozenset.intersection(*(frozenset(job.overrides) for job in group))
        keys = [text.partition("=")[0] for text in group[0].overrides if text not in alike]
        name = _name(written, group) or f"{folder.resolve().name}, {number}"
        directions: Any = ["minimize"] * len(objectives)
        study = optuna.create_study(study_name=name, directions=directions)
        study.set_metric_names([*objectives])
        params = [{key: _value(job, key) for key in keys} for job in group]
        space = {k: _distribution([p[k] for p in params], spans.get(k)) for k in keys}
        ordered = sorted(zip(group, params, strict=True), key=lambda pair: pair[0].number)
        study.add_trials([_trial(folder, *pair, space, objectives) for pair in ordered])
        yield study


def _name(written: Iterable[telling.Experiment], group: Sequence[Job]) -> str | None:
    """The name of the study of which jobs are, by that of its best which one of them is."""
    for found in written:
        for job in group:
            if job.number == found.number and telling.alike(job.result, found.config, best.WHOLE):
                return found.study
    return None


def _commands(folder: Path) -> Iterator[list[Override]]:
    """What each command of a sweep overrode, but for Hydra's own keys."""
    parser = OverridesParser.create()
    try:
        said = yaml.safe_load((folder / results.SWEEP).read_text(encoding="utf-8"))["commands"]
        lines = [shlex.split(str(line)) for line in said]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return
    for line in lines:
        given = [word for word in line[1:] if "=" in word and not word.startswith("-")]
        try:
            found = parser.parse_overrides(given)
        except HydraException:
            continue
        yield [o for o in found if not o.get_key_element().startswith(("hydra.", "hydra/"))]


def _spans(sweeper: Mapping[str, Any]) -> dict[str, Override]:
    """What the sweeper's own params span."""
    try:
        params = (sweeper.get("params") or {}).items()
        found = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in params])
    except HydraException:
        return {}
    return {o.get_key_element(): o for o in found if o.is_sweep_override()}


def _value(job: Job, key: str) -> Any:
    """The value of a key in a job: that of its config, or of a group the option's name."""
    known = dict(results.leaves(job.result.get("config") or {}))
    if (plain := key.lstrip("+")) in known:
        return known[plain]
    text = next((o for o in job.overrides if o.partition("=")[0] == key), None)
    return OverridesParser.create().parse_override(text).value() if text is not None else None


def _distribution(values: Sequence[Any], span: Override | None) -> BaseDistribution:
    """What was searched, as far as it was tried."""
    found = span.value() if span is not None else None
    if isinstance(found, IntervalSweep) and all(isinstance(v, int | float) for v in values):
        low, high, log = float(found.start or 0), float(found.end or 0), "log" in found.tags
        if all(low <= v <= high for v in values):  # else another span took its place
            whole = all(isinstance(v, int) for v in values)
            kind: Any = IntDistribution if whole else FloatDistribution
            made: BaseDistribution = kind(low, high, log=log)
            return made
    return CategoricalDistribution(list(dict.fromkeys(values)))


def _trial(
    folder: Path, job: Job, params: Any, space: Any, objectives: Sequence[str]
) -> FrozenTrial:
    """A trial as a study would hold it, with its number."""
    result, status = job.result, job.result["status"]
    told = {"run": result["run"], "directory": job.directory, telling.NUMBER: job.number}
    kind = {"params": params, "distributions": space}
    seen: dict[int, float] = {}
    if len(objectives) == 1 and status in (Status.COMPLETE, Status.STOPPED):
        with suppress(OSError, ValueError):  # a history that is lost or damaged tells nothing
            seen = dict(results.rungs(folder / job.directory, objectives[0], result))
    if status == Status.COMPLETE and all(result.get(name) is not None for name in objectives):
        values = [float(result[name]) for name in objectives]
        told["val_loss"] = result.get("val_loss")
        return create_trial(values=values, user_attrs=told, intermediate_values=seen, **kind)
    status = Status.DIVERGED if status == Status.COMPLETE else status
    told["reason"] = f"{status}: {result.get('reason')}"
    state = TrialState.PRUNED if status == Status.STOPPED else TrialState.FAIL
    return create_trial(state=state, user_attrs=told, intermediate_values=seen, **kind)
