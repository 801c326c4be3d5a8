"""What came of a study's trials: the files of their runs say it, and the study agrees with them."""

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra.core.utils import JobReturn
from optuna.trial import FrozenTrial, Trial, TrialState

from distill.runs import results
from distill.runs.columns import Status
from distill.tuning.storage import DamagedError

log = logging.getLogger(__name__)


class Outcomes:
    """The results of trials that a folder runs.

    Args:
        folder: the sweep's, below which the runs lie.
        objectives: the columns of a result that are the values of its trial.
    """

    def __init__(self, folder: Path, objectives: Sequence[str]) -> None:
        self.folder, self.objectives = folder, objectives

    def tell(self, study: optuna.Study, trial: Trial, returned: JobReturn) -> list[str]:
        """Tell the study how a trial ended; returns the reason of one that failed.

        Raises:
            OSError: its result cannot be read, and may be whole: the study is not told yet.
        """
        assert returned.hydra_cfg is not None
        directory = Path(returned.hydra_cfg.hydra.runtime.output_dir)
        try:
            result = results.read(directory / results.RESULT)
        except (FileNotFoundError, ValueError) as error:
            result = {"run": directory.name, "status": Status.FAILED, "reason": str(error)}
        try:
            return self._told(study, trial, directory, result)
        except optuna.exceptions.UpdateFinishedTrialError:
            log.warning("trial %d: another took it up, and was the first to end it", trial.number)
            return []

    def _told(
        self, study: optuna.Study, trial: Trial, directory: Path, result: dict[str, Any]
    ) -> list[str]:
        """Tell the study of a ``result``, and where its run lies; returns why it failed, if so."""
        trial.set_user_attr("run", result["run"])
        trial.set_user_attr("directory", os.path.relpath(directory, self.folder))
        status = result["status"]
        if len(self.objectives) == 1 and status in (Status.COMPLETE, Status.STOPPED):
            known = study.get_trials(deepcopy=False)[trial.number].intermediate_values
            for epoch, value in results.rungs(directory, self.objectives[0], result):
                if epoch not in known:
                    trial.report(value, epoch)
        if status == Status.COMPLETE and not all(map(math.isfinite, self._values(result))):
            names = ", ".join(self.objectives)
            status, result = Status.DIVERGED, {**result, "reason": f"no finite number in {names}"}
        if status == "complete":
            trial.set_user_attr("val_loss", result["val_loss"])
            study.tell(trial, self._values(result))
            return []
        trial.set_user_attr("reason", f"{status}: {result['reason']}")
        study.tell(trial, state=TrialState.PRUNED if status == Status.STOPPED else TrialState.FAIL)
        return [result["reason"]] if status == Status.FAILED else []

    def agrees(self, trial: FrozenTrial) -> bool:
        """Whether a trial that began here has its result still; a lost one is named.

        Raises:
            DamagedError: the trial's values are not those of the result.
            OSError: the result cannot be read, and may be whole.
        """
        if "directory" not in trial.user_attrs:
            return True
        # Earlier versions wrote it whole, below the folder where the sweep lay then.
        before = str(trial.user_attrs.get("sweep")).partition(":")[2]
        directory = Path(trial.user_attrs["directory"])
        if directory.is_relative_to(before):
            directory = directory.relative_to(before)
        try:
            result = results.read(self.folder / directory / results.RESULT)
        except (FileNotFoundError, ValueError) as error:
            log.warning("trial %d: %s", trial.number, error)
            return not trial.state.is_finished()
        both = (trial.state, result["status"]) == (TrialState.COMPLETE, Status.COMPLETE)
        if both and trial.values != self._values(result):
            raise DamagedError(f"trial {trial.number} is not what {result['run']} came to")
        return True

    def _values(self, result: dict[str, Any]) -> list[float]:
        given = [result[name] for name in self.objectives]
        return [math.nan if value is None else float(value) for value in given]
