"""`python -m bench slurm`: a sweep on SLURM, disturbed at random, against one that is not."""

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import psutil

from bench.ours import spread
from distill.runs import results
from distill.runs.summaries import FIGURES, read_summary

# 24 students in six stacks, each of some tens of seconds.
SWEEP = (
    *("data=synthetic", "data.validation=0.2", "teacher.train.epochs=3", "train.epochs=1500"),
    *("loss.temperature=1,2,4,20", "model.width=8,16", "seed=0,1,2", "optim.lr=0.001"),
    *("checkpoint.every=0.05", "hydra.launcher.max_members=4"),
)
PATIENCE = 3600.0  # seconds without an end, after which something is wrong


def _slurm(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    return done.stdout


def _elements(state: str) -> list[str]:
    """This user's elements of a sweep in a state."""
    ask = ["squeue", "--noheader", "--array", "--me", f"--states={state}", "--format=%i|%j"]
    lines = (line.split("|") for line in _slurm(*ask).splitlines())
    return [name for name, title in lines if title.startswith("distill-")]


def _line(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or [])


class Disturbed:
    """A sweep on SLURM in ``folder``, and all that can befall it."""

    def __init__(self, folder: Path, sweep: tuple[str, ...], seed: int) -> None:
        self.folder, self.chance = folder, random.Random(seed)
        line = ["-m", "distill", "-m", *sweep, f"hydra.sweep.dir={folder}"]
        line += ["hydra.launcher.cluster=slurm", "hydra.launcher.submit.cpus_per_task=1"]
        self.line = [sys.executable, *line, f"teacher.cache={folder.parent / 'teachers'}"]
        self.log = (folder.parent / "log.txt").open("a", encoding="utf-8")
        self.process = self._start()
        self.events: Counter[str] = Counter()
        self.seen: dict[Path, str] = {}  # what each finished run had come to
        self.again: list[Path] = []  # those that came to something else later

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(self.line, stdout=self.log, stderr=self.log)

    def run(self, events: int) -> None:
        """Let as many ``events`` befall it, then let it end.

        Raises:
            RuntimeError: it does not end.
        """
        kinds = ("kill", "time", "requeue", "preempt", "command", "stop", "cancel")
        end = time.monotonic() + PATIENCE
        while (code := self.process.poll()) != 0 or sum(self.events.values()) < events:
            if time.monotonic() > end:
                raise RuntimeError(f"it does not end; see {self.log.name}")
            self._look()
            if code is not None:
                if code == 0:
                    return
                self.process = self._start()
            self._release()
            time.sleep(self.chance.uniform(1, 12))
            if sum(self.events.values()) < events:
                kind = self.chance.choice(kinds)
                if getattr(self, f"_{kind}")():
                    self.events[kind] += 1
                    print(f"{sum(self.events.values())}: {kind}", flush=True)

    def _look(self) -> None:
        """Note each run that has finished, and whether one was trained again."""
        for path in self.folder.glob(f"*/{results.RESULT}"):
            try:
                text = path.read_text(encoding="utf-8")
            except OSError:
                continue
            if '"status": "complete"' in text and self.seen.setdefault(path, text) != text:
                self.again.append(path)

    def _release(self) -> None:
        """SLURM holds what was requeued for two minutes."""
        for name in _elements("PENDING"):
            _slurm("scontrol", "update", f"jobid={name}", "starttime=now")

    def _signal(self, name: str) -> bool:
        running = _elements("RUNNING")
        if running:
            _slurm("scancel", f"--signal={name}", self.chance.choice(running))
        return bool(running)

    def _kill(self) -> bool:
        """Kill a process of this machine that trains, as its kernel might."""
        found = [p for p in psutil.process_iter(["cmdline"]) if str(self.folder) in _line(p)]
        own = [p for p in found if "submitit.core._submit" in _line(p) and "srun" not in _line(p)]
        if own:
            self.chance.choice(own).kill()
        return bool(own)

    def _time(self) -> bool:
        """The warning before the time limit."""
        return self._signal("USR2")

    def _requeue(self) -> bool:
        running = _elements("RUNNING")
        if running:
            _slurm("scontrol", "requeue", self.chance.choice(running))
        return bool(running)

    def _preempt(self) -> bool:
        """A job of a partition of higher priority takes a node, where there is such a partition."""
        if not _elements("RUNNING") or "urgent" not in _slurm("sinfo", "--noheader"):
            return False
        more = ["--exclusive", "--output=/dev/null", "--wrap=sleep 2"]
        _slurm("sbatch", "--partition=urgent", *more)
        return True

    def _cancel(self) -> bool:
        own = _elements("RUNNING,PENDING")
        if own:
            _slurm("scancel", self.chance.choice(own))
        return bool(own)

    def _command(self) -> bool:
        return self._end(signal.SIGKILL)

    def _stop(self) -> bool:
        return self._end(signal.SIGINT)

    def _end(self, number: int) -> bool:
        if self.process.poll() is not None or not _elements("RUNNING,PENDING"):
            return False
        self.process.send_signal(number)
        self.process.wait(timeout=300)
        return True


def same(one: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """The names of figures in which two summaries differ."""
    a, b = (frame.set_index("run").sort_index() for frame in (one, other))
    if not a.index.equals(b.index):
        return ["run"]
    figures = [name for name in FIGURES if name in a.columns or name in b.columns]
    return [
        name for name in figures if name not in b or name not in a or not a[name].equals(b[name])
    ]


def beside_hydras(repeats: int) -> Iterator[tuple[str, ...]]:
    """A row: twelve runs as stacks, and a job each by Hydra's own launcher for SLURM."""
    few = ("data=synthetic", "model.width=8", "train.epochs=3", "teacher.train.epochs=1")
    each = ",".join(map(str, range(1, 13)))
    ways = {
        "ours": ("hydra.launcher.cluster=slurm", "hydra.launcher.submit.cpus_per_task=1"),
        "theirs": ("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1"),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(prefix="distill-slurm-", dir=Path.cwd()) as name:
        for number in range(repeats + 1):
            for way, launcher in ways.items():
                own = [f"hydra.sweep.dir={name}/{way}{number}", f"teacher.cache={name}/teachers"]
                line = ["-m", "distill", "-m", *few, f"loss.temperature={each}", *own, *launcher]
                start = time.monotonic()
                subprocess.run([sys.executable, *line], check=True, capture_output=True)
                if number:  # the first makes the teacher
                    taken[way].append(time.monotonic() - start)
    ratios = [b / a for a, b in zip(*taken.values(), strict=True)]
    yield (
        "12 runs on SLURM",
        f"{spread(taken['ours'])} s",
        f"Hydra's launcher for it, a job a run: {spread(taken['theirs'])} s",
        f"1/{spread(ratios)}",
        "at most 1/5",
    )


def on_slurm(repeats: int) -> Iterator[tuple[str, ...]]:
    """The rows of `python -m bench slurm`."""
    if find_spec("hydra_plugins.hydra_submitit_launcher") is not None:
        yield from beside_hydras(repeats)
    yield from disturbed(40)


def disturbed(events: int, seed: int = 0) -> Iterator[tuple[str, ...]]:
    """A row: what befell a sweep on SLURM, and whether its figures are those of another alone."""
    place = Path(tempfile.mkdtemp(prefix="distill-slurm-", dir=Path.cwd()))
    own = [f"hydra.sweep.dir={place / 'alone'}", f"teacher.cache={place / 'teachers'}"]
    alone = ["-m", "distill", "-m", *SWEEP, *own, "hydra.launcher.workers=1"]
    subprocess.run([sys.executable, *alone], check=True, capture_output=True)
    sweep = Disturbed(place / "sweep", SWEEP, seed)
    start = time.monotonic()
    sweep.run(events)
    frame = read_summary(place / "sweep")
    differs = same(read_summary(place / "alone"), frame)
    told = ", ".join(f"{n} {kind}" for kind, n in sweep.events.items())
    complete = int((frame["status"] == "complete").sum())
    yield (
        f"{len(frame)} runs on SLURM, disturbed {sum(sweep.events.values())} times ({told})",
        f"{complete} complete, {len(sweep.again)} trained twice, {time.monotonic() - start:.0f} s",
        "alone in one process",
        f"differs in {', '.join(differs)}" if differs else "the same figures, bit for bit",
        "the same",
    )
    if not differs and not sweep.again:
        shutil.rmtree(place)
