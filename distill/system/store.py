"""Content-addressed folders: atomic, locked, complete once their manifest lies in them."""

import glob
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout
from safetensors import SafetensorError

log = logging.getLogger(__name__)

MANIFEST, LOCK = "manifest.json", ".lock"
RESULT, WEIGHTS = "result.json", "student.safetensors"  # of a run


@dataclass(frozen=True)
class Place:
    """Marks a key of a config whose value, if it is text and none of ``words``, is a path.

    Where something lies decides nothing, and no table shows it.
    """

    words: tuple[str, ...] = ()

    def has(self, value: object) -> bool:
        """Whether a value of the key is a path."""
        return isinstance(value, str) and value not in self.words


class Content(Place):
    """Marks one whose path is that of a file, and what is in the file decides something."""

    def of(self, value: str | None) -> str | None:
        """What a value of the key decides: the digest of its file, or itself."""
        return file_digest(Path(str(value))) if self.has(value) else value


def text(content: Any) -> str:
    """A JSON value as text, the same for the same content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def joined(parts: Mapping[str, str]) -> str:
    """The `text` of an object whose values have these texts."""
    return f"{{{','.join(f'{text(key)}:{parts[key]}' for key in sorted(parts))}}}"


def digest(content: Any) -> str:
    """The SHA-256 (64 hex digits) of a JSON value, the same for the same content."""
    return text_digest(text(content))


def text_digest(content: str) -> str:
    """The SHA-256 (64 hex digits) of the `text` of a JSON value."""
    return hashlib.sha256(content.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 (64 hex digits) of a file's bytes."""
    with naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> tuple[str, int, int, int]:
    """What differs once a file was written again: its path, inode, size and time; none, zeros."""
    try:
        facts = path.stat()
    except OSError:
        return str(path), 0, 0, 0
    return str(path), facts.st_ino, facts.st_size, facts.st_mtime_ns


@lru_cache(maxsize=64)
def _known(_: Any, path: Path) -> str:
    return file_digest(path)


def known_digest(path: Path) -> str:
    """The `file_digest` of a file that many ask for: read again once it was written again."""
    return _known(stamp(path), path)


def home(path: str) -> str:
    """``path`` with the home directory for a ~ at its start.

    Raises:
        ValueError: it begins with ~ and a name that is no user's.
    """
    whole = os.path.expanduser(path)  # noqa: PTH111
    if whole.startswith("~"):
        raise ValueError(f"{path}: there is no such user; a folder of that name is ./{path}")
    return whole


def state(path: Path, without: str) -> tuple[tuple[str, int, int], ...]:
    """What changes when the file ``path`` does, or the folder: files and folders in it, and theirs.

    What is called ``without`` in it does not count. A file that is rewritten deeper in a folder
    than its own files is not seen.
    """
    places = [path]
    if path.is_dir():
        places = [place for place in path.iterdir() if place.name != without]
        for place in [place for place in places if place.is_dir()]:
            with suppress(OSError):
                places += [Path(entry) for entry in os.scandir(place) if entry.is_dir()]
    found = []
    for place in sorted(places):
        with suppress(OSError):
            stat = place.stat()
            found.append((str(place.absolute()), stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _scratch(path: Path) -> Path:
    """A new name beside ``path``, hidden."""
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}")


def tidy(folder: Path, name: str | None = None) -> None:
    """Remove the scratch that killed writers of files left in ``folder``, or of the one ``name``.

    Whoever calls it holds the lock under which those are written, so that no writer is at work.
    """
    stem = "*" if name is None else glob.escape(name)
    for path in folder.glob(f".{stem}.{'[0-9a-f]' * 8}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of the disk name ``path``: a write to a full one names none of itself.

    Raises:
        OSError: what the disk said, or safetensors of it.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if said := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(said[1])
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def told(error: BaseException) -> str | None:
    """The path and the reason that an error of the disk, or what caused it, names."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.filename is not None and cause.strerror:
            return f"{cause.filename}: {cause.strerror}"
        cause = cause.__cause__
    return None


def write(path: Path, make: Callable[[Path], object], *, sync: bool = True) -> None:
    """Let ``make`` write ``path`` so that a reader finds the old file or the new, never a part.

    It has the mode that the umask gives, whatever ``make`` gives it. Without ``sync``, which takes
    its time, the first does not hold for a machine that loses its power.
    """
    scratch = _scratch(path)
    with naming(path):
        try:
            scratch.touch()
            mode = scratch.stat().st_mode
            make(scratch)
            scratch.chmod(mode)  # safetensors makes files that their owner alone may read
            if sync:
                with scratch.open("rb") as file:
                    os.fsync(file.fileno())
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    make = partial(Path.write_text, data=text, encoding="utf-8", newline="")
    write(path, make, sync=sync)


def lock(folder: Path) -> FileLock:
    """Take the lock of ``folder``, which may be held already by whoever asks.

    Whoever else wants it waits, and says so.
    """
    taken = FileLock(folder.absolute() / LOCK, is_singleton=True)
    try:
        taken.acquire(timeout=0)
    except Timeout:
        log.warning("another process is at work in %s: waiting for it", folder)
        taken.acquire()
    return taken


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, on which one process at a time makes what others wait for.

    Raises:
        OSError: it cannot be made there.
    """
    taken = FileLock(path)
    try:
        taken.acquire(timeout=0)
    except Timeout:
        log.warning("another process is at work in %s: waiting for it", path.with_suffix(""))
        taken.acquire()
    try:
        yield
    except BaseException:  # nothing is left of what failed; who waits takes a lock of its own
        path.unlink(missing_ok=True)
        raise
    finally:
        taken.release()


def held(folder: Path) -> bool:
    """Whether a process holds the lock of ``folder``, or of one above it; it is not waited for."""
    return any(_taken(place / LOCK) for place in (folder.absolute(), *folder.absolute().parents))


def _taken(path: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows, where nobody can look without taking it
        return path.exists()
    try:
        with path.open("rb") as file:  # one may look who may not write
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except OSError:
        return False
    return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``."""
    taken = lock(folder)
    try:
        yield
    finally:
        taken.release()


def _read(folder: Path) -> dict[str, Any] | None:
    """The facts of a complete folder; None if there is none, or one that is damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        damaged = [n for n, sha in manifest["files"].items() if file_digest(folder / n) != sha]
        facts: dict[str, Any] = manifest["facts"]
    except FileNotFoundError as error:
        if folder.exists():
            log.warning("%s is incomplete (no %s) and is made anew", folder, error.filename)
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("%s has a damaged %s and is made anew", folder, MANIFEST)
        return None
    if damaged:
        log.warning("%s has damaged files (%s) and is made anew", folder, ", ".join(damaged))
        return None
    return facts


def get(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The facts of ``folder``, which ``build`` fills first if it is missing or damaged.

    However many threads or processes ask at once, one builds and the others wait for it. ``build``
    is given an empty folder to write files into and returns the facts, a JSON object; the folder
    takes its place in one step, its manifest (facts and the digest of each file) written last.

    Raises:
        OSError: the folder cannot be written, or what is in it cannot be read.
    """
    if (facts := _read(folder)) is not None:
        return facts
    with naming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        return _build(folder, build)


def _build(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    with FileLock(f"{folder}.lock"):
        if (facts := _read(folder)) is not None:
            return facts
        tidy(folder.parent, folder.name)
        scratch = _scratch(folder)
        scratch.mkdir()
        try:
            facts = build(scratch)
            files = {path.name: file_digest(path) for path in sorted(scratch.iterdir())}
            manifest = {"facts": facts, "files": files}
            write_text(scratch / MANIFEST, json.dumps(manifest, indent=1) + "\n")
            mode = (scratch / MANIFEST).stat().st_mode
            for name in files:  # as in `write`
                (scratch / name).chmod(mode)
            old = _scratch(folder)
            with suppress(FileNotFoundError):
                folder.rename(old)
            scratch.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return facts
