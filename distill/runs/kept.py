"""Results that are there already: which of them count for a job, and what is said of these."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from distill import __version__
from distill.config import ConfigError
from distill.runs import results
from distill.runs.job import Job
from distill.system import store
from distill.training import checkpoint

log = logging.getLogger(__name__)

# What to do where another run's files lie.
ELSEWHERE = (
    "choose another hydra.run.dir (for sweeps hydra.sweep.dir, hydra.sweep.subdir), or resume=false"
)


def kept(job: Job, directory: Path) -> dict[str, Any] | None:
    """The result of the job, if ``directory`` holds it and the job may resume.

    One that was stopped is that only of a job which the same halving would stop.

    Raises:
        ConfigError: ``directory`` holds what another run came to, or its checkpoint.
        OSError: what it holds cannot be read, and may be whole.
    """
    if not job.run.resume:
        return None
    try:
        result = results.ended(directory)
        begun = checkpoint.members(directory)
    except OSError as error:
        text = f"{error.strerror}; it may be whole, so nothing was changed: make it readable"
        raise OSError(error.errno, text, error.filename) from error
    if result is not None and result["run"] != job.name:
        what = f"holds the result of another run, {result['run']} ({result['status']})"
        raise ConfigError(f"{directory} {what}: {ELSEWHERE}, which puts it aside")
    if begun and job.name not in begun:
        what = f"holds the checkpoint of another run, {begun[0]}"
        raise ConfigError(f"{directory} {what}: {ELSEWHERE}, which removes it")
    if result is None or result.get("halving", own := job.run.halving.model_dump()) != own:
        return None
    names = list(job.data.names) or None
    if result.get("class_names", names) != names:  # by which no run is named
        _renamed(tuple(result["class_names"] or ()), job.data.names)
        return None
    # One here holds the last result of its stack (see `execute`), and was about to be removed.
    (directory / checkpoint.FILE).unlink(missing_ok=True)
    store.tidy(directory)  # what was killed after its result, as it copied its log
    return result


@cache
def _renamed(before: tuple[str, ...], now: tuple[str, ...]) -> None:
    """Say, once for all runs, that finished ones of other names of the classes do not count."""
    texts = [", ".join(names) or "none" for names in (before, now)]
    log.warning("names of the classes were %s, and are %s: runs are trained again", *texts)


def unlike(kept: Sequence[tuple[Job, dict[str, Any]]]) -> Iterator[str]:
    """Lines on the kept results that this machine, or this version, would not have made."""
    kinds = [(job.setting.kind, result) for job, result in kept]
    pairs = [({key: result.get(key) for key in own}, own) for own, result in kinds]
    others = Counter(
        (" on ".join(map(str, theirs.values())), " on ".join(own.values()))
        for theirs, own in pairs
        if theirs != own
    )
    if others:
        texts = [f"{n} of {len(kept)} in {them}, not {own}" for (them, own), n in others.items()]
        same = " ".join(f"{key}={value}" for key, value in kinds[0][0].items())
        yield (
            f"kept of another kind than this machine trains: {'; '.join(texts)}; to have one kind, "
            f"train all with {same} in another directory, or here again with resume=false"
        )
    versions = Counter(str(result.get("version")) for _, result in kept)
    if versions.keys() - {__version__}:
        counts = ", ".join(f"{n} of {version}" for version, n in versions.items())
        yield f"kept of another version than this one, {__version__}: {counts}; see the changelog"
