"""Elements that submitit runs: in SLURM's arrays, or in processes of this machine."""

import logging
import pickle
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from distill.config import ConfigError
from distill.sweeps.elements import Element
from distill.system import machine

log = logging.getLogger(__name__)

ASK = 10.0  # seconds after which SLURM is asked again, whose controller serves everybody
GONE = "gone"  # the state of an element that nobody knows any more
# Of SLURM's states, those of an element that does not go on by itself.
ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "TIMEOUT",
}
MINUTES = 60  # of an element, until it is warned, checkpoints, and is requeued
REQUEUES = 10_000  # of an element by its time limit: each goes on where the last one stopped
# Of submitit's parameters, those by which its executor is made.
CONSTRUCTED = ("slurm_max_num_timeout", "slurm_python", "local_python")
LARGEST = 1001  # elements of an array, where SLURM does not say it


class Submitit:
    """Elements that submitit runs, whose files lie in ``folder``."""

    cluster: str
    kills: bool
    minutes: int  # that an element has, where nothing else is asked

    def __init__(self, folder: Path, parameters: Mapping[str, Any]) -> None:
        self.folder, self.parameters = folder, dict(parameters)
        self.gpus = asks(parameters)
        # Refuses what is wrong before anything is written.
        self._executor("distill", Path(tempfile.gettempdir()))

    def _executor(self, name: str, folder: Path) -> Any:
        """submitit's own, for elements of a ``name``, with files in a ``folder``.

        Raises:
            ConfigError: a parameter is wrong, or submitit is not there.
        """
        try:
            from submitit import AutoExecutor, LocalExecutor, SlurmExecutor
        except ImportError as error:
            needs = "it needs submitit; install distill-sweep[slurm]"
            raise ConfigError(f"hydra.launcher.cluster={self.cluster}: {needs}") from error
        allowed = {*AutoExecutor._valid_parameters(), *CONSTRUCTED}
        for kind in (SlurmExecutor, LocalExecutor):
            allowed |= {f"{kind.name()}_{key}" for key in kind._valid_parameters()}
        for key, value in self.parameters.items():
            if key not in allowed:
                names = ", ".join(sorted(allowed))
                raise ConfigError(f"hydra.launcher.submit.{key}={value}: allowed are {names}")
        asked = dict(self.parameters)
        how = {key: asked.pop(key) for key in CONSTRUCTED if key in asked}
        one = {key: asked.get(key, 1) for key in ("nodes", "tasks_per_node")}
        for key, value in one.items():
            if value != 1:
                raise ConfigError(
                    f"hydra.launcher.submit.{key}={value}: an element is one process, which starts "
                    "one for each GPU that it finds; leave it out"
                )
        asked = {"timeout_min": self.minutes, **asked}
        asked["name"] = f"{asked.get('name', 'distill')}-{name}"
        try:
            executor = AutoExecutor(
                folder, cluster=self.cluster, **{"slurm_max_num_timeout": REQUEUES, **how}
            )
            executor.update_parameters(**asked, **self._more(asked))
        except (ValueError, AssertionError, RuntimeError) as error:
            raise self._refused(error) from error
        return executor

    def _refused(self, error: Exception) -> ConfigError:
        """What says that submitit, or SLURM, does not take the parameters."""
        given = " ".join(f"{key}={value}" for key, value in self.parameters.items())
        return ConfigError(f"hydra.launcher.submit {given}: {last_line(error)}")

    def _more(self, asked: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """What else submitit is to be told than what was ``asked``."""
        return {}

    def _submit(self, elements: Sequence[Element], name: str, **more: Any) -> list[Any]:
        """Let submitit start elements of a ``name``; returns its jobs."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError
        from submitit.helpers import clean_env

        try:
            # Else an array that an element of another submits inherits what that was given.
            with clean_env():
                executor = self._executor(name, self.folder)
                executor.update_parameters(**more)
                with executor.batch():
                    return [executor.submit(element) for element in elements]
        except (FailedJobError, FailedSubmissionError) as error:
            for path in self.folder.glob("?" * 32 + ".pkl"):  # what would have been submitted
                path.unlink(missing_ok=True)
            raise self._refused(error) from error

    def ended(self, names: Sequence[str]) -> Mapping[str, str | None]:
        there = {path.name for path in self.folder.glob("*_result.pkl")}
        return {n: self._reason(n) for n in names if f"{n}_0_result.pkl" in there}

    def _reason(self, name: str) -> str | None:
        status, value = pickle.loads((self.folder / f"{name}_0_result.pkl").read_bytes())
        return value if status == "success" else last_line(value)

    def told(self, name: str) -> str:
        return str(self.folder / f"{name}_0_log.err")

    def forget(self, name: str) -> None:
        for path in self.folder.glob(f"{name}_*"):
            path.unlink(missing_ok=True)

    def tidy(self) -> None:
        for pattern in ("*_submission.sh", ".submission_file_*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)


class Slurm(Submitit):
    """Arrays of SLURM's, of ``workers`` elements at once; None: of all."""

    cluster = "slurm"
    room: int | None = None
    threads: int | None = None
    kills = tells = True
    minutes = MINUTES

    def __init__(self, folder: Path, parameters: Mapping[str, Any], workers: int | None) -> None:
        self.workers = workers
        super().__init__(folder, parameters)
        self._asked = 0.0
        self._missed: set[str] = set()

    def __str__(self) -> str:
        asked = {**self.parameters, "timeout_min": self.parameters.get("timeout_min", MINUTES)}
        given = ", ".join(f"{key}={value}" for key, value in asked.items())
        return f"elements of SLURM{f', {self.workers} at once' if self.workers else ''} ({given})"

    def _more(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        more = {"slurm_array_parallelism": self.workers or LARGEST**2}
        own = {key: value for key, value in more.items() if key not in asked}
        if (cores := asked.get("cpus_per_task")) and "slurm_srun_args" not in asked:
            # What srun does not inherit of sbatch, since SLURM 22.05.
            return {**own, "slurm_srun_args": [f"--cpus-per-task={cores}"]}
        return own

    def submit(self, elements: Sequence[Element], token: str) -> list[str]:
        """One array, or as many as the size of one allows, each after the one before it."""
        largest = _largest()
        names: list[str] = []
        for start in range(0, len(elements), largest):
            part = elements[start : start + largest]
            after = {"slurm_dependency": f"afterany:{names[-1].partition('_')[0]}"} if names else {}
            names += [job.job_id for job in self._submit(part, f"{token}-{start}", **after)]
        return names

    def find(self, token: str, names: Sequence[str]) -> dict[int, str]:  # noqa: ARG002
        found = {}
        for name, (state, title) in self._heard().items():
            if (of := re.search(rf"-{token}-(\d+)$", title)) and state not in ENDED:
                found[int(of[1]) + int(name.partition("_")[2] or 0)] = name
        return found

    def lost(self, names: Sequence[str]) -> Mapping[str, str]:
        if not names or time.monotonic() - self._asked < ASK:
            return {}
        self._asked = time.monotonic()
        try:
            states = self._states()
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("SLURM does not answer (%s); elements go on without", last_line(error))
            return {}
        now = {name: states.get(name, (GONE, ""))[0] for name in names}
        gone = {name for name, state in now.items() if state in ENDED or state == GONE}
        # What an element has written may be seen late: it is lost if that is not there next time.
        lost = {name: now[name] for name in gone & self._missed}
        self._missed = gone
        return lost

    def _heard(self) -> dict[str, tuple[str, str]]:
        """The same as `_states`, asked again while SLURM does not answer."""
        while True:
            try:
                return self._states()
            except subprocess.SubprocessError as error:
                log.warning("SLURM does not answer (%s); it is asked again", last_line(error))
            time.sleep(ASK)

    def _states(self) -> dict[str, tuple[str, str]]:
        """The state and the title of each element of this user's that SLURM knows."""
        ask = ["squeue", "--noheader", "--array", "--states=all", "--me", "--format=%i|%T|%j"]
        text = subprocess.run(ask, check=True, capture_output=True, text=True, timeout=60).stdout
        rows = (line.split("|", 2) for line in text.splitlines() if line.count("|") >= 2)
        return {name.strip(): (state, title.strip()) for name, state, title in rows}

    def withdraw(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), 100):
            some = names[start : start + 100]
            ask = ["scancel", "--state=PENDING", *some]
            with suppress(subprocess.SubprocessError):  # they look whether they are to stop
                subprocess.run(ask, check=False, capture_output=True, timeout=60)


class Local(Submitit):
    """Processes of this machine that outlive the command, ``workers`` at once; None: one a core."""

    cluster = "local"
    kills = tells = False
    minutes = 5_000_000  # ten years: nobody waits for this machine

    def __init__(self, folder: Path, parameters: Mapping[str, Any], workers: int | None) -> None:
        super().__init__(folder, parameters)
        if self.gpus:
            raise ConfigError(
                "hydra.launcher.submit: processes of this machine share its GPUs, of which each "
                "would take the first; leave hydra.launcher.cluster=local out"
            )
        self.room: int | None = workers or machine.cores()
        self.threads: int | None = max(1, machine.cores() // self.room)
        self._missed: set[str] = set()
        self._jobs: dict[str, Any] = {}  # submitit's, of which each is asked whether it ended

    def __str__(self) -> str:
        return f"processes of this machine, {self.room} at once"

    def submit(self, elements: Sequence[Element], token: str) -> list[str]:
        """Start a process for each, which a signal of the terminal does not reach."""
        with _ignored():
            jobs = {job.job_id: job for job in self._submit(elements, token)}
        self._jobs |= jobs
        for name in jobs:  # numbers of processes come again: what is older is of another
            path = self.folder / f"{name}_0_result.pkl"
            with suppress(OSError, psutil.Error):
                if path.stat().st_mtime < psutil.Process(int(name)).create_time() - 1:
                    path.unlink()
        return [*jobs]

    def find(self, token: str, names: Sequence[str]) -> dict[int, str]:  # noqa: ARG002
        return {number: name for number, name in enumerate(names) if _lives(name)}

    def lost(self, names: Sequence[str]) -> Mapping[str, str]:
        gone = {name for name in names if not self._lives(name)}
        lost, self._missed = gone & self._missed, gone
        return dict.fromkeys(lost, GONE)

    def _lives(self, name: str) -> bool:
        return not self._jobs[name].done() if name in self._jobs else _lives(name)

    def forget(self, name: str) -> None:
        while self._lives(name):  # what it had to do is done
            time.sleep(0.05)
        self._jobs.pop(name, None)
        super().forget(name)

    def withdraw(self, names: Sequence[str]) -> None:
        """All have started."""


def asks(parameters: Mapping[str, Any]) -> bool:
    """Whether an element gets GPUs by these parameters of submitit's."""
    own = {key.removeprefix("slurm_"): value for key, value in parameters.items()}
    own |= own.get("additional_parameters") or {}
    counted = any(value for key, value in own.items() if key.startswith(("gpus", "num_gpus")))
    return counted or "gpu" in str(own.get("gres", ""))


def last_line(error: object) -> str:
    """The last line that an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _largest() -> int:
    """How many elements an array of this SLURM may have."""
    ask = ["scontrol", "show", "config"]
    text = subprocess.run(ask, check=False, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", text)
    return max(1, int(found[1]) if found else LARGEST)


def _lives(name: str) -> bool:
    """Whether the process of a number is one that submitit started."""
    try:
        process = psutil.Process(int(name))
        dead = process.status() == psutil.STATUS_ZOMBIE
        return not dead and any("submitit.local" in part for part in process.cmdline())
    except psutil.Error:
        return False


@contextmanager
def _ignored() -> Iterator[None]:
    """Let processes that are started within ignore what a terminal sends to all of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for name in ("SIGINT", "SIGHUP") if (n := getattr(signal, name, None)) is not None]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
