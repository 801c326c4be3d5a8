"""Signs of life: who lives and who was killed, on this machine and on others."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import shell

from distill.system import disk, pulse

HOLD = "import sys, time; from pathlib import Path; from distill.system.pulse import pulse\n"
HOLD += "with pulse(Path(sys.argv[1])): print('holds', flush=True); sys.stdin.read()"


@contextmanager
def another(path: Path, code: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    """A process that gives signs of life until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        yield process
        if process.poll() is None:
            process.kill()


def aged(path: Path, seconds: float) -> None:
    """Let a file be as old as that."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def elsewhere(path: Path, seconds: float) -> None:
    """A sign that a process of another machine gave so many seconds ago."""
    with pulse.pulse(path):
        said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "kernel": "another"}))
    aged(path, seconds)


def test_one_of_this_machine_lives_until_it_ends_or_is_killed(home: Path) -> None:
    path = home / "p"
    for number in (signal.SIGKILL, None):
        with another(path) as process:
            aged(path, 1e6)  # its silence says nothing
            assert pulse.alive(path) and not pulse.dead(path)
            if number is None:
                process.communicate("")
                assert process.returncode == 0 and not path.exists()
                assert not pulse.alive(path) and not pulse.dead(path)
            else:
                process.send_signal(number)
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
                assert not pulse.alive(path) and pulse.dead(path)
                process.wait()
                assert not pulse.alive(path) and pulse.dead(path)


def test_a_process_that_got_the_number_of_one_that_was_killed_is_another(home: Path) -> None:
    path = home / "p"
    with pulse.pulse(path):
        said = json.loads(path.read_text())
        path.write_text(json.dumps({**said, "start": said["start"] - 1}))
        assert not pulse.alive(path)
    assert path.exists()  # it is not this process's to remove


def test_one_of_another_machine_lives_while_it_gives_signs(home: Path) -> None:
    path = home / "p"
    elsewhere(path, 60)
    assert pulse.alive(path) and not pulse.dead(path)
    elsewhere(path, 180)
    assert not pulse.alive(path) and not pulse.dead(path)
    assert [p.name for p in home.iterdir()] == ["p"]
    path.write_text("")  # not yet whole
    assert pulse.alive(path)


def test_the_clock_is_that_of_the_file_system(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / "p"
    real = time.time
    for hours in (-1, 1):  # of this machine, which is wrong
        monkeypatch.setattr(time, "time", lambda hours=hours: real() + 3600 * hours)
        path.unlink(missing_ok=True)
        for seconds, lives in ((60, True), (180, False)):
            elsewhere(path, seconds + 3600 * hours)  # by the true one
            assert pulse.alive(path) is lives
    monkeypatch.setattr(time, "time", real)
    monkeypatch.setattr(pulse, "clock", lambda _: None)  # where one may only read
    for seconds, lives in ((-150, True), (150, True), (200, False), (-200, False)):
        elsewhere(path, seconds)
        assert pulse.alive(path) is lives


def test_one_that_is_hidden_is_known_by_its_signs(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / "p"
    with another(path), monkeypatch.context() as patch:
        patch.setattr(pulse, "_start", lambda pid: None if pid != os.getpid() else 1.0)
        assert not pulse.alive(path)
        patch.setattr(os, "kill", forbidden)
        assert pulse.alive(path)
        aged(path, 180)
        assert not pulse.alive(path) and not pulse.dead(path)


def forbidden(*_: int) -> None:
    """What the kernel says of a signal to another user's process."""
    raise PermissionError


def test_signs_are_given_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "EVERY", 0.01)
    path = home / "p"
    with pulse.pulse(path):
        aged(path, 1e6)
        first = path.read_text()
        until = time.monotonic() + 30
        while path.stat().st_mtime < time.time() - 1e5:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert path.read_text() == first
    assert not path.exists()


FORKED = """
import os, sys
from pathlib import Path
from distill.system.pulse import alive, pulse
block, path = pulse(Path(sys.argv[1])), Path(sys.argv[1])
block.__enter__()
if child := os.fork():
    os.waitpid(child, 0)
    lives = alive(path)
    block.__exit__(None, None, None)
    sys.exit(0 if lives and not path.exists() else 1)
block.__exit__(None, None, None)
os._exit(0)
"""


def test_what_is_forked_takes_no_sign_away(home: Path) -> None:
    assert shell(sys.executable, "-W", "ignore", "-c", FORKED, str(home / "p")).code == 0


def test_where_none_can_be_written_the_work_goes_on(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pulse.pulse(home / "gone" / "p"):
        assert not pulse.alive(home / "gone" / "p")
    assert "gone/p: no sign of life can be written (No such file or directory)" in caplog.text


def test_the_clock_of_a_folder_leaves_nothing(home: Path) -> None:
    now = disk.clock(home)
    assert now is not None and abs(now - time.time()) < 5
    assert disk.clock(home / "gone") is None
    assert not [*home.iterdir()]
