"""`python -m bench.evidence [NAME ...]`: all that the README's claims stand on, one after another.

Each experiment is a command of its own, which trains in as many processes of one thread as there
are cores; whatever ended it, the same command goes on. At its end what there is is copied into
multirun/reference. Each command's seconds are a row of multirun/evidence.csv.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from distill.findings.paper import choice
from distill.runs.columns import Status
from distill.runs.planned import PLANNED
from distill.runs.results import SUMMARY, SWEEP, paths
from distill.runs.summaries import read_summary, write_summary
from distill.runs.wrong import WRONG, write_wrong
from distill.system import machine

ROOT = Path(__file__).parents[1] / "multirun"
REFERENCE, SPENT = ROOT / "reference", ROOT / "evidence.csv"
# Sweeps with the experiments that land in them; the first make the teachers of the others.
SWEEPS = {
    "temperature_law": (
        "temperature_law",
        "temperature_law_narrow",
        "temperature_law_labels",
        # The students that it is compared with are there already.
        "standardised hydra.sweep.dir=multirun/temperature_law",
    ),
    "contributions": ("contributions",),
    "two_digits": ("two_digits",),
    "paper_networks": ("paper_networks", "paper_networks_beside"),
    "omitted_digit": ("omitted_digit",),
    "logit_limit": ("logit_limit", "logit_matching", "logit_matching_again"),
    "learning_rate": ("learning_rate", "learning_rate_hard"),
    "less_data": ("less_data",),
    "patience": ("patience", "patience_beside"),
    "high_temperatures": (
        "high_temperatures",
        "high_temperatures_wide",
        "high_temperatures_labels",
    ),
    "ensemble": ("ensemble_choice", "ensemble"),
    "post": ("post", "post_hard"),
}
CHOOSES = {"ensemble": "ensemble"}  # of an experiment, the sweep with runs that choose its settings
MEASURED = {  # of the runs of which sweep
    "identities": (),
    "functions": ("multirun/logit_limit",),
    "gradients": ("multirun/contributions",),
}
PRECISION = "precision=fp32"  # which every machine has: runs of several are no one setting
KEPT = (SUMMARY, SWEEP, WRONG, PLANNED)


def commands(names: Sequence[str], overrides: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The commands of some sweeps and measurements, in order, and what each is called.

    That of an experiment whose settings are not chosen yet is empty.
    """
    python = [sys.executable, "-m"]
    cores = f"hydra.launcher.workers={machine.cores()}"
    for name in names:
        for experiment in SWEEPS.get(name, ()):
            own, *more = experiment.split()
            if own in CHOOSES:
                try:
                    more += chosen(ROOT / CHOOSES[own])
                except (OSError, ValueError) as error:
                    print(f"{own} waits for what chooses its settings: {error}")
                    yield own, []
                    continue
            command = [*python, "distill", f"experiment={own}", *more, cores, PRECISION]
            yield own, [*command, *overrides]
        if name in MEASURED:
            yield name, [*python, f"bench.{name}", *MEASURED[name]]


def chosen(folder: Path) -> list[str]:
    """The temperature and alpha that the untested runs in a folder choose, as C10 has it.

    They are overrides; the errors of all are printed.

    Raises:
        ValueError: there are no such runs, or not all of them.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no {folder}")
    every = read_summary(folder)  # those that diverged, too, which have no errors
    ended = every[every["status"].isin([Status.COMPLETE, Status.DIVERGED])]
    untested = ended[~ended["test"].astype(bool)]
    diverged = untested["status"] == Status.DIVERGED
    found = choice(untested.assign(val_errors=untested["val_errors"].mask(diverged)))
    for temperature, alpha, mean in found:
        print(f"{folder.name}: T = {temperature:g}, alpha {alpha:g}: {mean:.1f} validation errors")
    temperature, alpha, _ = found[0]
    return [f"loss.temperature={temperature:g}", f"loss.alpha=0,{alpha:g}"]


def spent(what: str, seconds: float) -> None:
    """Add a row to the table of what was spent."""
    new = not SPENT.exists()
    with SPENT.open("a", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerows([("what", "seconds")] if new else [])
        rows.writerow((what, round(seconds)))


def main() -> None:
    """Run them all, or those that are named."""
    parser = argparse.ArgumentParser(prog="python -m bench.evidence", description=__doc__)
    known = [*SWEEPS, *MEASURED]
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"of {', '.join(known)}")
    parser.add_argument("--with", dest="overrides", nargs="*", default=[], metavar="OVERRIDE")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in known]:
        parser.error(f"NAME={unknown[0]}: it is one of {', '.join(known)}")
    names = given.names or known
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    failed: list[str] = []
    for what, command in commands(names, given.overrides):
        if not command:
            failed.append(what)
            continue
        print(f"{time.strftime('%H:%M:%S')} {' '.join(command[2:])}", flush=True)
        start = time.monotonic()
        try:
            done = subprocess.run(command, check=False, cwd=ROOT.parent, env=environment)
        finally:
            spent(what, time.monotonic() - start)
        if done.returncode < 0 or done.returncode > 127:  # it was stopped
            sys.exit(f"{what} was stopped; the same command goes on")
        failed += [what] * (done.returncode > 0)
    for name in names:
        keep(name)
    report = Path(sys.executable).with_name("distill-report")
    folders = sorted(path.parent for path in REFERENCE.glob(f"*/{SUMMARY}"))
    subprocess.run([report, *folders, "--out", REFERENCE], check=True)
    if failed:
        sys.exit(f"not all runs are complete in {', '.join(failed)}: their tables say why")


def keep(name: str) -> None:
    """Copy what is kept of a sweep into the reference."""
    folder, place = ROOT / name, REFERENCE / name
    if not (folder / SUMMARY).is_file():
        return
    if paths(folder):
        write_summary(folder)
        try:
            print(*write_wrong(folder), sep="\n")
        except ValueError as error:  # none is complete, or kept it
            print(error)
    place.mkdir(parents=True, exist_ok=True)
    for file in (file for file in KEPT if (folder / file).is_file()):
        shutil.copy(folder / file, place)


if __name__ == "__main__":
    main()
