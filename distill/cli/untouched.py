"""What a call leaves as it was in its process, since whoever called goes on."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase

from distill.system import interrupt


@contextmanager
def untouched() -> Iterator[None]:
    """Put back what runs and sweeps change: signals, arguments, logging, and what Hydra knows.

    Within, Hydra and logging are as in a new process.
    """
    with interrupt.installed(), _arguments(), _logging(), _hydra():
        yield


@contextmanager
def _arguments() -> Iterator[None]:
    before = sys.argv
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _hydra() -> Iterator[None]:
    hydra, config = GlobalHydra.instance(), HydraConfig.instance()
    runtime, base = JobRuntime.instance(), VersionBase.instance()
    before = hydra.hydra, config.cfg, runtime.get("name"), base.getbase()
    hydra.clear()
    config.cfg = None
    try:
        yield
    finally:
        hydra.hydra, config.cfg, name, version = before
        runtime.set("name", name)
        base.setbase(version)


@contextmanager
def _logging() -> Iterator[None]:
    """Let the loggers have their levels and handlers again at the end.

    Hydra configures logging anew for each job, and so closes all handlers that logging knows of: a
    file that is closed takes no line any more. So the caller's are hidden from it.
    """
    root = logging.getLogger()
    others = [one for one in root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    loggers = {one: (one.level, one.handlers, one.propagate, one.disabled) for one in others}
    loggers[root] = (root.level, root.handlers, root.propagate, root.disabled)
    known, named = [*logging._handlerList], dict(logging._handlers)  # type: ignore[attr-defined]
    _know([], {})
    for logger, (_, handlers, *_) in loggers.items():
        logger.handlers = [] if logger is root else [*handlers]
    try:
        yield
    finally:
        logging.shutdown()  # the files of runs
        _know(known, named)
        for logger, (level, handlers, propagate, disabled) in loggers.items():
            logger.handlers, logger.propagate, logger.disabled = handlers, propagate, disabled
            if logger.level != level:
                logger.setLevel(level)


def _know(handlers: list[object], named: dict[str, object]) -> None:
    """Let logging know of these handlers alone."""
    logging._handlerList[:] = handlers  # type: ignore[attr-defined]
    logging._handlers.clear()  # type: ignore[attr-defined]
    logging._handlers.update(named)  # type: ignore[attr-defined]
