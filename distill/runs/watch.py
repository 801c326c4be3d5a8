"""Runs as they train: their histories on disk, epoch by epoch, and their loggers.

Letters: K jobs, which train as one stack.
"""

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distill.config import Component
from distill.loggers import Logger, RunInfo
from distill.runs import results
from distill.runs.job import Job
from distill.runs.loggers import make_logger
from distill.system import store
from distill.training.loop import History

log = logging.getLogger(__name__)

FIRST, EVERY = 1.0, 5.0  # seconds, at least, until histories are written, and then to the next
SHARE = 0.01  # of the time, at most, that goes into it
LAPS = 10  # epochs, the last, whose mean time says how long another takes


class Watch:
    """Tells of K runs while they train. What fails in that is one warning, and ends no run.

    ``heads`` are what is known of each run before it trains, as its result will say it; whoever
    lets it begin knows them.
    """

    heads: Sequence[Mapping[str, Any]]

    def __init__(self, jobs: Sequence[Job], directories: Sequence[Path]) -> None:
        self.jobs, self.directories = jobs, directories
        self.loggers: list[dict[str, Logger]] = [{} for _ in jobs]
        self.failed: set[str] = set()  # names of loggers, of which a warning told
        self.texts = [""] * len(jobs)  # of the histories, as far as they were written
        self.written = [0] * len(jobs)  # rows
        self.due = 0.0
        # After each of the last epochs, the seconds until then; first, those before this process.
        self.laps: deque[float] = deque(maxlen=LAPS + 1)

    def begin(self, history: History | None) -> None:
        """Start the loggers; ``history`` is that of a checkpoint from which training goes on."""
        self.laps.append(history.seconds if history is not None else 0.0)
        self._save(history, FIRST)
        for k, job in enumerate(self.jobs):
            for name, component in job.run.logger.each.items():
                self._tell(k, name, "start", partial(self._start, k, name, component, history))

    def epoch(self, history: History) -> None:
        """Tell of the last epoch of ``history``, which was trained just now."""
        self.laps.append(history.seconds)
        if time.monotonic() >= self.due:
            self._save(history, EVERY)
        for k, loggers in enumerate(self.loggers):
            if loggers and history.rows[k][-1]["epoch"] == history.epoch:
                for name, logger in [*loggers.items()]:
                    row = dict(history.rows[k][-1])
                    self._tell(k, name, "epoch", partial(logger.epoch, row))

    def end(self, k: int, result: Mapping[str, Any]) -> None:
        """End the loggers of the job ``k``, whose ``result`` was written."""
        for name, logger in [*self.loggers[k].items()]:
            self._tell(k, name, "end", partial(logger.end, copy.deepcopy(dict(result))))
        self.loggers[k] = {}

    def _start(self, k: int, name: str, component: Component, history: History | None) -> None:
        run = RunInfo(
            name=self.jobs[k].name,
            directory=self.directories[k].absolute(),
            config=copy.deepcopy(self.heads[k]["config"]),
            seed=self.jobs[k].run.seed,
            resume=self.jobs[k].run.resume,
            rows=tuple(map(dict, history.rows[k])) if history is not None else (),
        )
        logger = make_logger(component)
        logger.start(run)
        self.loggers[k][name] = logger

    def _tell(self, k: int, name: str, what: str, call: Callable[[], object]) -> None:
        """Call a method of a logger, which is dropped if it fails."""
        try:
            call()
        except (Exception, SystemExit) as error:
            self.loggers[k].pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            level = logging.INFO if name in self.failed else logging.WARNING
            self.failed.add(name)
            text = "logger.%s is not told any more of %s, since its %s failed (%s)"
            log.log(level, text, name, self.jobs[k].name, what, reason)

    def _save(self, history: History | None, wait: float) -> None:
        """Write the histories as far as they are; before the first, what the runs are.

        The next are due in ``wait`` seconds, or when what this took is a small share of the time.
        """
        start = time.monotonic()
        rows = history.rows if history is not None else [[] for _ in self.jobs]
        try:
            for k, directory in enumerate(self.directories):
                if not self.texts[k]:
                    results.write_running(directory, self.heads[k], self.directories[0])
                if new := rows[k][self.written[k] :]:
                    self.texts[k] += results.history(new, header=not self.texts[k])
                    self.written[k] += len(new)
                    store.write_text(directory / results.HISTORY, self.texts[k], sync=False)
            if history is not None:  # the first job's speaks for the stack, in one file
                head = {**self.heads[0], results.PROGRESS: self._progress(history)}
                results.write_running(self.directories[0], head, self.directories[0])
        except OSError as error:
            log.warning("no history could be written yet: %s", store.told(error) or error)
            self.due = float("inf")
            return
        end = time.monotonic()
        self.due = end + max(wait, (end - start) / SHARE)

    def _progress(self, history: History) -> dict[str, Any]:
        """How far the stack is, and the fewest and the most errors of the members left."""
        halving, epochs = self.jobs[0].run.halving, self.jobs[0].run.train.epochs
        last = [history.rows[k][-1] for k in history.members]
        part = next((p for p in ("val", "test") if last and f"{p}_errors" in last[0]), None)
        errors = [row[f"{part}_errors"] for row in last if part is not None]
        new = len(self.laps) - 1
        return {
            "epoch": history.epoch,
            "of": len(self.jobs),
            "left": len(history.members),
            "errors": [min(errors), max(errors)] if errors else [],
            "part": part,
            "seconds": history.seconds,
            "an_epoch": (self.laps[-1] - self.laps[0]) / new if new else None,
            "halvings": sum(epoch > history.epoch for epoch in halving.at(epochs)),
        }
