"""Content-addressed folders: atomic, locked, complete once their manifest lies in them."""

import errno
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from distill.system.disk import clock, patient, settled
from distill.system.locks import LOCK as LOCK
from distill.system.locks import Held as Held
from distill.system.locks import alone as alone
from distill.system.locks import lock as lock
from distill.system.locks import locked as locked
from distill.system.pulse import PULSE, dead, pulse

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
RESULT, WEIGHTS = "result.json", "student.safetensors"  # of a run
DAY = 86400.0  # seconds after which nobody can still be at work on a file that does not grow
# What the kernel says of a name that is taken.
TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


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


@patient
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

    Only what is a day old, by the clock of its file system: what is younger may be a living
    writer's on another machine, which no lock held here keeps away.
    """
    stem = "*" if name is None else glob.escape(name)
    if not (left := [*folder.glob(f".{stem}.{'[0-9a-f]' * 8}")]):
        return
    now = clock(folder) or time.time()
    for path in left:
        with suppress(OSError):  # another was faster, or it is another user's
            if now - _changed(path) > DAY:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _changed(path: Path) -> float:
    """When a file, or a folder or a file in it, was last written to."""
    parts = [path, *path.iterdir()] if path.is_dir() else [path]
    return max(part.stat().st_mtime for part in parts)


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


def _written_into(path: Path) -> bool:
    """Whether ``path`` is a device or a pipe; /dev/stdout is none, but may lead to one."""
    if str(path.absolute().parent) in ("/dev", "/dev/fd"):
        return path.exists()
    return path.exists() and not path.is_file() and not path.is_dir()


@patient
def write(path: Path, make: Callable[[Path], object], *, sync: bool = True) -> None:
    """Let ``make`` write ``path`` so that a reader finds the old file or the new, never a part.

    It has the mode that the umask gives, whatever ``make`` gives it. Without ``sync``, which takes
    its time, the first does not hold for a machine that loses its power. Into what is no file, such
    as /dev/null or a pipe, it is written.
    """
    if _written_into(path):
        make(path)
        return
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


@patient
@settled
def _checked(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The facts of a folder, and which of its files are damaged.

    Raises:
        OSError: it cannot be read; FileNotFoundError: it is incomplete.
        ValueError, KeyError, TypeError, AttributeError, RecursionError: its manifest is damaged.
    """
    with naming(folder / MANIFEST):
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    damaged = [n for n, sha in manifest["files"].items() if file_digest(folder / n) != sha]
    facts: dict[str, Any] = manifest["facts"]
    return facts, damaged


def _read(folder: Path) -> dict[str, Any] | None:
    """The facts of a complete folder; None if there is none, or one that is damaged.

    Raises:
        OSError: it cannot be read, which says nothing of what it holds.
    """
    if not os.path.lexists(folder):
        return None
    try:
        facts, damaged = _checked(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        log.warning("%s is incomplete (no %s) and is made anew", folder, error.filename)
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
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

    Where locks do not hold between machines, each builds its own, and the first that is whole is
    that of all.

    Raises:
        OSError: the folder cannot be written, or what is in it cannot be read.
    """
    if (facts := _read(folder)) is not None:
        return facts
    with naming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(Path(f"{folder}.lock"), quiet=True):
            if (facts := _read(folder)) is not None:
                return facts
            return _build(folder, build)


def _build(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    tidy(folder.parent)
    scratch = _scratch(folder)
    scratch.mkdir()
    try:
        with pulse(scratch / PULSE):  # by which it stays young, too, however long it takes
            facts = build(scratch)
        files = {path.name: file_digest(path) for path in sorted(scratch.iterdir())}
        manifest = {"facts": facts, "files": files}
        write_text(scratch / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        mode = (scratch / MANIFEST).stat().st_mode
        for name in files:  # as in `write`
            (scratch / name).chmod(mode)
        return _placed(scratch, folder, facts)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _placed(scratch: Path, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Let ``scratch``, which holds these ``facts``, take the place of ``folder``.

    Unless another process was faster: what is whole there is never replaced, and its facts are
    returned. What is damaged is moved aside first; from there, what proves to be whole, since
    another put it there in this moment, goes back.
    """
    for last in (*[False] * 9, True):
        try:
            scratch.rename(folder)
        except OSError as error:
            if last or error.errno not in TAKEN:
                raise
        else:
            return facts
        if (others := _read(folder)) is not None:
            return others
        old = _scratch(folder)
        try:
            folder.rename(old)
        except FileNotFoundError:
            continue  # another process moved it aside
        if old.is_dir() and _whole(old):
            with suppress(OSError):
                old.rename(folder)
        shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
    raise AssertionError("the last try returns or raises")


def _whole(folder: Path) -> bool:
    """Whether a folder is complete and undamaged."""
    try:
        return not _checked(folder)[1]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def abandoned(folder: Path) -> list[Path]:
    """The scratch of ``folder`` whose writers are known to have been killed, on this machine."""
    found = []
    for path in sorted(folder.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * 8}")):
        with suppress(OSError):
            if dead(path / PULSE):
                found.append(path)
    return found
