"""The store: built once, complete or absent, never wrong."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from distill.system import store


def build(scratch: Path) -> dict[str, Any]:
    (scratch / "part").write_bytes(b"content")
    with (scratch.parent / "builds").open("a") as log:
        log.write("x")
    return {"answer": 42}


def slow_build(scratch: Path) -> dict[str, Any]:
    time.sleep(0.3)
    return build(scratch)


def get_slowly(folder: Path) -> None:
    assert store.get(folder, slow_build) == {"answer": 42}


def builds(home: Path) -> int:
    return len((home / "builds").read_text())


def test_is_built_once(home: Path) -> None:
    for _ in range(3):
        assert store.get(home / "a", build) == {"answer": 42}
    assert (home / "a" / "part").read_bytes() == b"content"
    assert builds(home) == 1


def test_is_built_once_by_processes_that_start_together(home: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=get_slowly, args=(home / "a",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 4
    assert builds(home) == 1


@pytest.mark.parametrize("name", ["part", store.MANIFEST])
@pytest.mark.parametrize("damage", [None, b"", b"cont", b"\xff\xfe\x00noise", b"{}", b"[1]"])
def test_damage_is_noticed_and_mended(
    name: str, damage: bytes | None, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.get(home / "a", build)
    path = home / "a" / name
    path.unlink() if damage is None else path.write_bytes(damage)
    assert store.get(home / "a", build) == {"answer": 42}
    assert (home / "a" / "part").read_bytes() == b"content"
    assert builds(home) == 2
    assert str(home / "a") in caplog.text


def test_a_build_that_fails_leaves_nothing(home: Path) -> None:
    def fail(scratch: Path) -> dict[str, Any]:
        (scratch / "part").write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        store.get(home / "cache" / "a", fail)
    assert not [*(home / "cache").iterdir()]


def test_write_text_replaces_whole_files(home: Path) -> None:
    store.write_text(home / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        store.write_text(home / "file", "\ud800")
    assert (home / "file").read_text() == "old"
    assert [p.name for p in home.iterdir()] == ["file"]


def test_what_is_no_file_is_written_into(home: Path) -> None:
    os.mkfifo(home / "pipe")
    reader = os.open(home / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        store.write_text(home / "pipe", "lines")
        assert os.read(reader, 9) == b"lines"
    finally:
        os.close(reader)
    assert (home / "pipe").is_fifo()
    # Asked alone: a fault in writing would replace the machine's own.
    assert store._written_into(Path(os.devnull)) and store._written_into(Path("/dev/stdout"))
    assert not store._written_into(home) and not store._written_into(Path("/dev/shm") / "none")


def test_digest_is_of_the_content() -> None:
    assert store.digest({"a": 1, "b": [2.5]}) == store.digest(json.loads('{"b": [2.5], "a": 1}'))
    assert store.digest({"a": 1}) != store.digest({"a": 2})
