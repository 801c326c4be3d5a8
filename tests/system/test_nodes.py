"""Two nodes that share a folder, on which no lock keeps them apart."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import shell

from distill.system import locks, pulse, store
from distill.teachers import targets

Node = Callable[..., "subprocess.Popen[str]"]
# Each process of a node has locks of its own, as where those of a file system are local to each.
LOCAL = "import fcntl; fcntl.flock = lambda *_: None\n"
BEGIN = """
import json, sys, time
from pathlib import Path
from distill.system import store
own, other = sys.argv[2:4]
home = Path(sys.argv[1])

def meet(place):
    '''Go on once the other is there, too.'''
    (home / f"{place}-{own}").touch()
    until = time.monotonic() + 120
    while not (home / f"{place}-{other}").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
"""
BUILD = """
def build(scratch):
    meet("begun")
    (scratch / "part").write_text(own)
    if own == "b":  # which is slower, and at work when the other is done
        until = time.monotonic() + 120
        while not (home / "a-is-done").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
    return {"by": own}

facts = store.get(home / "shared", build)
(home / f"{own}-is-done").touch()
assert (home / "shared" / "part").read_text() == facts["by"]
print(facts["by"])
"""
TARGETS = """
import torch
from distill.teachers import targets

def make(view):
    if view in (1, 3):
        meet(f"view{view}")
    return torch.full((50, 7), view + 1.0)

found = targets.made_once(home / "soft", (50, 5, 7), torch.float32, make)
torch.save(found, home / f"found-{own}")
"""


def mounted(home: Path) -> list[Path]:
    """Two mounts of one folder, of which each has locks of its own."""
    (home / "real").mkdir()
    nodes = [home / "node-a", home / "node-b"]
    for node in nodes:
        node.mkdir()
        subprocess.run(["bindfs", str(home / "real"), str(node)], check=True, capture_output=True)
    return nodes


@pytest.fixture(params=["simulated", pytest.param("mounted", marks=pytest.mark.slow)])
def nodes(request: pytest.FixtureRequest, home: Path) -> Iterator[tuple[Path, Node]]:
    """The shared folder, and what starts the same code on the nodes "a" and "b"."""
    places, patch = [home, home], LOCAL
    if request.param == "mounted":
        if shutil.which("bindfs") is None:
            pytest.skip("bindfs is not at hand")
        try:
            places, patch = mounted(home), ""
        except subprocess.CalledProcessError as error:
            pytest.skip(f"bindfs cannot mount here: {error.stderr}")

    def start(code: str, name: str, other: str) -> "subprocess.Popen[str]":
        place = str(places["ab".index(name)])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen(
            [sys.executable, "-c", f"{patch}{BEGIN}{code}", place, name, other],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    yield places[0], start
    if request.param == "mounted":
        for node in places:
            subprocess.run(["fusermount", "-u", str(node)], check=True)


def both(start: Node, code: str) -> list[str]:
    """What the code prints on each of two nodes, at once."""
    processes = [start(code, *names) for names in ("ab", "ba")]
    ends = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    return [out.strip() for out, _ in ends]


@pytest.mark.parametrize("before", ["nothing", "damaged", "a file"])
def test_of_two_that_build_the_same_the_first_is_that_of_both(
    before: str, nodes: tuple[Path, Node]
) -> None:
    folder, start = nodes
    if before == "damaged":
        store.get(folder / "shared", lambda scratch: {"n": (scratch / "part").write_text("old")})
        (folder / "shared" / "part").write_text("odd")
    elif before == "a file":
        (folder / "shared").write_text("old")
    assert both(start, BUILD) == ["a", "a"]
    assert store.get(folder / "shared", lambda _: {"by": "nobody"}) == {"by": "a"}
    assert not [p for p in folder.glob(".*") if p.name.startswith(".shared")]


def test_two_that_make_the_same_soft_targets_leave_no_gaps(nodes: tuple[Path, Node]) -> None:
    folder, start = nodes
    both(start, TARGETS)
    whole = torch.arange(1.0, 6.0)[None, :, None].expand(50, 5, 7)
    for name in "ab":
        assert torch.equal(torch.load(folder / f"found-{name}"), whole)
    assert sorted(p.name for p in folder.iterdir() if "soft" in p.name) == ["soft", "soft.lock"]


KILLED = """
import os
import torch
from distill.teachers import targets

def make(view):
    if view == 3:
        (home / "begun-a").touch()
        time.sleep(60)
    return torch.full((50, 7), float(view))

targets.made_once(home / "soft", (50, 5, 7), torch.float32, make)
"""


def test_views_that_a_process_had_made_which_was_killed_are_kept(home: Path) -> None:
    code = [sys.executable, "-c", f"{BEGIN}{KILLED}", str(home), "a", "b"]
    with subprocess.Popen(code, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as one:
        until = time.monotonic() + 120
        while not (home / "begun-a").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        [scratch] = home.glob(".soft.*")
        assert not store.abandoned(home / "soft")  # it lives
        one.kill()
    assert store.abandoned(home / "soft") == [scratch]
    made: list[int] = []

    def make(view: int) -> torch.Tensor:
        made.append(view)
        return torch.full((50, 7), float(view))

    found = targets.made_once(home / "soft", (50, 5, 7), torch.float32, make)
    assert made == [3, 4]
    assert found[0, :, 0].tolist() == [0, 1, 2, 3, 4]


def test_only_scratch_that_is_a_day_old_is_removed(home: Path) -> None:
    """By the clock of the file system, and for a folder by the newest of what is in it."""
    young, old = home / ".a.00000000", home / ".a.00000001"
    busy, left = home / ".b.00000000", home / ".b.00000001"
    names = [young, old, busy / "x", left / "x"]
    for path in names:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (home / ".c.0000000g").touch()
    then = time.time() - store.DAY - 60
    for path in (old, busy, left / "x", left, home / ".c.0000000g"):
        os.utime(path, (then, then))
    store.tidy(home, "a")
    assert not old.exists() and left.exists()
    store.tidy(home)
    assert sorted(home.iterdir()) == [young, busy, home / ".c.0000000g"]


def test_what_is_whole_is_not_replaced_by_who_saw_it_damaged(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a look at a damaged folder and its exchange another puts a whole one there."""
    store.get(home / "a", lambda scratch: {"n": (scratch / "part").write_text("old")})
    part = home / "a" / "part"
    part.write_text("odd")
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        if self == home / "a":
            part.write_text("old")  # the other's is there
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert store.get(home / "a", lambda _: {"n": 0}) == {"n": 3}
    assert json.loads((home / "a" / store.MANIFEST).read_text())["facts"] == {"n": 3}
    assert sorted(p.name for p in home.iterdir()) == ["a", "a.lock"]


LOCKED = """
import logging
logging.basicConfig(stream=sys.stdout, format="%(message)s")
if own == "b":
    meet("held")
with store.locked(home), store.locked(home):
    with (home / "log").open("a") as log:
        log.write(f"{own} ")
        log.flush()
        if own == "a":
            meet("held")
            time.sleep(1)
        log.write(f"{own} ")
"""


def test_two_that_lock_a_folder_take_turns(nodes: tuple[Path, Node]) -> None:
    folder, start = nodes
    _, waited = both(start, LOCKED)
    assert (folder / "log").read_text() == "a a b b "
    assert waited.startswith("another process is at work in ")
    assert not (folder / locks.MARK).exists()


def test_the_lock_of_one_that_was_killed_is_free(home: Path) -> None:
    code = "import os, sys; from pathlib import Path; from distill.system import store\n"
    code += "held = store.lock(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    assert shell(sys.executable, "-c", code, str(home)).code == -9
    assert (home / locks.MARK).exists()
    with store.locked(home):
        assert pulse.mine(home / locks.MARK)
    assert not (home / locks.MARK).exists()
