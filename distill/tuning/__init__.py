"""Optuna's studies; and the files of a sweep's folder that tell of one."""

from pathlib import Path

STUDY = "study.db"  # a study that is kept in its sweep's folder
MARK = ".holder"  # names a sweep's folder wherever it lies, for the studies that it takes part in
REPORT = "optimization_results.yaml"  # as Hydra writes it
EXPERIMENT = "experiment"  # the folder of the best trials


def searched(folder: Path) -> bool:
    """Whether a folder has what only studies leave."""
    if any((folder / name).exists() for name in (STUDY, MARK)):
        return True
    try:
        return "\nstudy: " in (folder / REPORT).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
