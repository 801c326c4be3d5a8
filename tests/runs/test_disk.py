"""Disks that are full, closed, or taken away while a command runs: real ones, of this test alone.

The commands run in a mount namespace of their own, forked from one process that has imported
everything, without the right of root to write where permission is denied.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import SMALL, Finished, make_job, same
from safetensors.torch import load
from torch import Tensor

from distill.cli.main import main
from distill.runs.results import HISTORY, RESULT, SUMMARY, WEIGHTS, paths, read
from distill.sweeps import plan, workers
from distill.system.store import file_digest
from distill.training.build import multiply_adds

ALONE = (*SMALL, "precision=fp32")
SWEEP = ("-m", *ALONE, "model.width=4,8", "loss.temperature=1,2")  # two stacks of two
KIB = 1024


def serve() -> None:
    """Start the commands that stdin tells of, and wait for those that it names."""
    assert plan and workers  # imported once for all commands, as is what torch imports late
    job = make_job()
    multiply_adds(job.run.model, job.run.data)
    for line in sys.stdin:
        match json.loads(line):
            case int(child):
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            case [out, err, *command]:
                if child := os.fork():
                    print(child, flush=True)
                    continue
                for number, path in enumerate((os.devnull, out, err)):
                    flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY if number else os.O_RDONLY
                    os.dup2(os.open(path, flags, 0o644), number)
                if command[0] != "distill":
                    os.execvp(command[0], command)
                sys.argv = command
                main()
                return


class Place:
    """A process in a namespace where ``name``, a folder, is a disk of 2 MiB; ``disk`` shows it."""

    def __init__(self, home: Path) -> None:
        self.home, self.name = home, home / "disk"
        self.name.mkdir()
        start = (
            'mount -t tmpfs -o size=2m none "$1" && cd "$1" && shift && '
            'exec setpriv --bounding-set=-dac_override,-dac_read_search "$@"'
        )
        rights = "-m" if os.geteuid() == 0 else "-Urm"
        program = ["sh", "-c", start, "sh", str(self.name), sys.executable, __file__]
        environment = {
            "DISTILL_DATA": str(home / "data"),
            "HYDRA_FULL_ERROR": "0",
            "PYTHONPATH": str(Path(__file__).parents[1]),  # where conftest lies
            "OMP_NUM_THREADS": "1",  # threads that wait for each other take long on a busy machine
        }
        self.process = subprocess.Popen(
            ["unshare", rights, *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.run("true")
        self.disk = Path(f"/proc/{self.process.pid}/root{self.name}")

    def ask(self, what: list[str] | int) -> int:
        """An answer of the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(what), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, *command: str) -> Callable[[], Finished]:
        """Start a command; what comes back waits for its end."""
        files = [self.home / f"{command[0]}.{name}" for name in ("out", "err")]
        child = self.ask([*map(str, files), *command])
        return lambda: Finished(self.ask(child), *(file.read_text() for file in files))

    def run(self, *command: str) -> Finished:
        """A command to its end."""
        return self.start(*command)()

    def fill(self, free: int = 0) -> None:
        """Let the disk have so many KiB left."""
        (self.disk / "ballast").unlink(missing_ok=True)
        left = os.statvfs(self.disk)
        (self.disk / "ballast").write_bytes(b"x" * (left.f_bavail * left.f_bsize - free * KIB))

    def close(self, how: str, folder: str) -> None:
        """Allow no writing in a folder of the disk."""
        if how == "forbidden":
            self.allow(self.disk / folder, 0o555)
        else:
            bind = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"'
            assert self.run("sh", "-c", bind, "sh", folder).code == 0

    def open(self, how: str, folder: str) -> None:
        """Allow it again."""
        if how == "forbidden":
            self.allow(self.disk / folder, 0o755)
        else:
            assert self.run("umount", folder).code == 0

    def allow(self, folder: Path, mode: int) -> None:
        """Give the folder and all below it a mode."""
        for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            path.chmod(mode)


Figures = dict[str, dict[str, Tensor]]


def whole(folder: Path) -> Figures:
    """The history and the weights of each complete run, whose files are those of its result."""
    found = {}
    for path in paths(folder):
        result = read(path)
        if result["status"] == "complete":
            names = (HISTORY, WEIGHTS)
            assert result["files"] == {name: file_digest(path.parent / name) for name in names}
            history = pd.read_csv(path.parent / HISTORY).to_numpy(float)
            weights = load((path.parent / WEIGHTS).read_bytes())
            found[result["run"]] = {HISTORY: torch.from_numpy(history), **weights}
    return found


def clean(folder: Path, *, closed: bool = False) -> None:
    """Nothing is half-written, and no file left that was to become another.

    In a folder that was ``closed`` while a log was copied into it, the copy could not be removed,
    nor the sign of life of who trained there; the copy stays until it is a day old.
    """
    usual = (".lock", ".summary.lock", ".hydra")
    hidden = [path for path in folder.rglob(".*") if path.name not in usual]
    left = (".distill.log.", ".pulse", ".lock.pulse") if closed else ()
    assert not [path for path in hidden if not path.name.startswith(left)]
    for path in folder.rglob(RESULT):
        assert read(path)["run"] == path.parent.name
    for path in folder.rglob(SUMMARY):
        frame = pd.read_csv(path)
        known = whole(path.parent)
        assert set(frame["run"][frame["status"] == "complete"]) <= set(known)


def told(done: Finished, reason: str, *folders: str) -> None:
    """The command failed, and said in which folder and why, in lines and not in tracebacks."""
    assert done.code == 1, done
    *before, last = done.err.splitlines()
    assert re.search(rf"({'|'.join(folders)})\b.*{reason}\)?$", last), done.err
    expected = ("WARNING: ", "Error executing job with overrides: ")
    assert all(line.startswith(expected) or line.endswith(reason) for line in before), done.err
    assert "Traceback" not in done.out + done.err


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One for all tests, since it takes seconds to start."""
    made = Place(tmp_path_factory.mktemp("place"))
    yield made
    assert made.process.stdin is not None and made.process.stdout is not None
    made.process.stdin.close()
    made.process.wait()
    made.process.stdout.close()


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> Figures:
    """The sweep's runs where nothing happens; the last of them also alone."""
    done = place.run("distill", *SWEEP, f"hydra.sweep.dir={place.home}/undisturbed")
    assert done.code == 0, done.err
    return whole(place.home / "undisturbed")


@pytest.fixture
def disk(place: Place) -> Iterator[Path]:
    """The disk, empty."""
    yield place.disk
    for path in place.disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.endurance
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sweep", pytest.param("single", marks=pytest.mark.endurance)])
def test_a_disk_with_more_and_more_room(
    kind: str, place: Place, disk: Path, undisturbed: Figures
) -> None:
    folder, expected = disk / kind, undisturbed
    command: tuple[str, ...] = (*SWEEP, "hydra.sweep.dir=sweep")
    if kind == "single":  # with its teacher on the same disk
        folder.mkdir()
        name = list(undisturbed)[-1]
        expected = {name: undisturbed[name]}
        temperature = "loss.temperature=2"
        command = (*ALONE, temperature, f"hydra.run.dir=single/{name}", "teacher.cache=cache")
    kept: dict[Path, int] = {}
    free = failures = 0
    while True:
        place.fill(free)
        done = place.run("distill", *command)
        (disk / "ballast").unlink()
        clean(disk)
        now = {path: path.stat().st_mtime_ns for path in paths(folder)}
        assert all(now[path] == changed for path, changed in kept.items())
        if done.code == 0:
            break
        told(done, "No space left on device", kind, "cache")
        names = whole(folder)
        assert same(names, {name: expected[name] for name in names}, rounded=True)
        kept = {path: changed for path, changed in now.items() if path.parent.name in names}
        failures, free = failures + 1, 32
    assert failures >= 2
    assert same(whole(folder), expected, rounded=True)
    if kind == "sweep":
        before = (folder / SUMMARY).read_bytes()
        place.fill()
        told(place.run("distill", *command), "No space left on device", f"sweep/{SUMMARY}")
        assert (folder / SUMMARY).read_bytes() == before
        clean(disk)


@pytest.mark.brothers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("forbidden", "sweep"),
        ("read-only", "single"),
        ("forbidden", "cache"),
    ],
)
def test_a_folder_that_is_closed_from_the_start(
    how: str, what: str, place: Place, disk: Path, undisturbed: Figures
) -> None:
    name = list(undisturbed)[-1]
    alone = (*ALONE, "loss.temperature=2")
    command = {
        "sweep": (*SWEEP, "hydra.sweep.dir=closed/sweep"),
        "single": (*alone, f"hydra.run.dir=closed/{name}"),
        "cache": (*alone, f"hydra.run.dir=runs/{name}", "teacher.cache=closed"),
    }[what]
    (disk / "closed").mkdir()
    place.close(how, "closed")
    done = place.run("distill", *command)
    reason = "Permission denied" if how == "forbidden" else "Read-only file system"
    told(done, reason, "closed")
    place.open(how, "closed")
    assert not list((disk / "closed").iterdir())
    assert not whole(disk)
    assert place.run("distill", *command).code == 0
    expected = undisturbed if what == "sweep" else {name: undisturbed[name]}
    assert same(whole(disk), expected, rounded=what != "sweep")
    clean(disk)


@pytest.mark.brothers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "workers", "reason"),
    [
        ("full", 1, "No space left on device"),
        ("forbidden", 2, "Permission denied"),
        ("read-only", 1, "Read-only file system"),
        ("sweep", 1, "is gone"),
        ("run", 1, "is gone"),
        ("teachers", 1, None),
    ],
)
def test_a_fault_in_the_middle_of_a_sweep(
    fault: str, workers: int, reason: str | None, place: Place, disk: Path, undisturbed: Figures
) -> None:
    first, second = list(undisturbed)[:2], list(undisturbed)[2:]
    command = (*SWEEP, "hydra.sweep.dir=sweep", f"hydra.launcher.workers={workers}")
    # The second stack waits for a reader of its log.
    gate = disk / "sweep" / second[0] / "distill.log"
    gate.parent.mkdir(parents=True)
    os.mkfifo(gate)
    held = os.open(gate, os.O_PATH)
    end = place.start("distill", *command)
    begun = [disk / "sweep" / name / RESULT for name in first]
    begun += [disk / "sweep" / name / ".hydra" / "overrides.yaml" for name in second]
    until = time.monotonic() + 60
    while not all(path.exists() for path in begun):
        assert time.monotonic() < until
        time.sleep(0.005)

    if fault == "full":
        place.fill()
    elif reason in ("Permission denied", "Read-only file system"):
        place.close(fault, "sweep")
    elif fault == "teachers":
        shutil.rmtree(place.home / "data" / "teachers")
    else:
        shutil.rmtree(disk / "sweep" / (first[0] if fault == "run" else "."))
    reader = os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_NONBLOCK)
    done = end()
    if fault in ("forbidden", "read-only"):
        place.open(fault, "sweep")
    for number in (reader, held):
        os.close(number)
    gate.unlink(missing_ok=True)
    (disk / "ballast").unlink(missing_ok=True)

    left = set(undisturbed)
    if reason is None:
        assert done.code == 0, done.err
    else:
        told(done, reason, "sweep")
        left = {"run": left - {first[0]}, "sweep": set()}.get(fault, set(first))
    clean(disk, closed=fault in ("forbidden", "read-only"))
    kept = whole(disk)
    assert same(kept, {name: undisturbed[name] for name in undisturbed if name in left})
    again = place.run("distill", *command)
    assert again.code == 0, again.err
    assert not left or f"{len(left)} of 4 jobs were finished before" in again.out
    now = whole(disk)
    assert same(now, undisturbed, rounded=True)
    assert same({name: now[name] for name in kept}, kept)
    clean(disk, closed=fault in ("forbidden", "read-only"))


if __name__ == "__main__":
    serve()
