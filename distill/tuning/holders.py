"""Who is at work on the trials of a study that several folders and machines may share."""

import logging
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna
from optuna.trial import FrozenTrial, TrialState

from distill.system import store
from distill.tuning import MARK

log = logging.getLogger(__name__)


class Holder:
    """This folder among those that are at work on a study.

    A trial is held by the folder that asked for it, or took it up. Its trials stay its own when it
    is moved, or its machine has another name; those of another are taken up once that has ended, or
    has given no sign of life for ``grace`` seconds.

    Args:
        folder: the sweep's, which this process has locked.
        owner: whether the study is kept in it, and so whatever is in the study that has no mark.
        take: whether to take what others hold now.
        grace: seconds, of which a sign of life is given every sixth part.
    """

    def __init__(self, folder: Path, *, owner: bool, take: bool, grace: float) -> None:
        self.here = f"{platform.node()}:{folder.absolute()}"
        self.owner, self.take, self.grace = owner, take, grace
        mark = folder / MARK
        if not mark.exists():
            store.write_text(mark, uuid4().hex)
        self.mark = mark.read_text(encoding="utf-8")
        self._signs: dict[str, tuple[Any, float]] = {}  # the last of each, and when it was new
        self._said = ""
        self._taken: set[int] | None = None

    def hold(self, trial: optuna.Trial) -> None:
        """Mark a trial as this folder's."""
        trial.set_user_attr("sweep", self.here)
        trial.set_user_attr("holder", self.mark)

    def holds(self, trial: FrozenTrial) -> bool:
        """Whether a trial is this folder's; earlier versions marked it by host and path alone."""
        marks = trial.user_attrs
        if "holder" in marks:
            return bool(marks["holder"] == self.mark)
        return self.owner or bool(marks.get("sweep") == self.here)

    @contextmanager
    def alive(self, study: optuna.Study) -> Iterator[None]:
        """Give signs of life while at work."""
        ended = threading.Event()

        def give(stamp: float | None) -> None:
            # One that is missed for an error is none the worse if the next is given.
            with suppress(Exception):
                study.set_user_attr(f"alive {self.mark}", [self.here, stamp])

        def beat() -> None:
            while not ended.wait(self.grace / 6):
                give(time.time())

        give(time.time())
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(1)
            give(None)

    def left(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Those that run, and that nobody else is at work on."""
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        if self._taken is None:
            self._taken = {trial.number for trial in running} if self.take else set()
        return [
            trial
            for trial in running
            if self.holds(trial) or trial.number in self._taken or self._ended(study, trial)
        ]

    def _ended(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the holder of a trial is at an end, as far as can be known."""
        mark = trial.user_attrs.get("holder")
        if mark is None:
            return False
        sign = study.user_attrs.get(f"alive {mark}")
        last, since = self._signs.get(mark, (object(), 0.0))
        if sign != last:  # by this clock, since others' may differ
            since = time.monotonic()
            self._signs[mark] = sign, since
        gone = sign is not None and sign[1] is None
        return gone or time.monotonic() - since > self.grace

    def waits(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> bool:
        """Whether others are at work on trials; who does, and how to free them, is said once."""
        mine = {trial.number for trial in self.left(study, trials)}
        others: dict[tuple[str, bool], list[int]] = {}
        for trial in trials:
            if trial.state == TrialState.RUNNING and trial.number not in mine:
                marks = trial.user_attrs
                who = (str(marks.get("sweep", "another program")), "holder" in marks)
                others.setdefault(who, []).append(trial.number)
        said = "\n".join(self._line(*who, numbers) for who, numbers in others.items())
        if said and said != self._said:
            log.warning(said)
        self._said = said
        return any(known for _, known in others)

    def _line(self, who: str, known: bool, numbers: list[int]) -> str:
        trials = f"trial{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
        if not known:
            return (
                f"{trials}: held by {who}, which gives no sign of life, and not waited for; "
                "hydra.sweeper.take=true takes them up here"
            )
        return (
            f"{trials}: held by {who}, which is at work; stop it there, and they are taken up here "
            f"({self.grace:g} s after its last sign of life, if it was killed); "
            "hydra.sweeper.take=true takes them up now"
        )
