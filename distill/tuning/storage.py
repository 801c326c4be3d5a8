"""Storages of studies: opened and used patiently, whoever else is at them.

What a study holds cannot always be made again: nothing here removes a file, or says to, unless it
is damaged.
"""

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from distill.config import ConfigError
from distill.system import store

log = logging.getLogger(__name__)

PATIENCE = 600.0  # seconds for which a file is waited for that another process has locked
STEP = 1.0  # of them in SQLite, where no signal is heard
TRIES = 20  # to make the tables of a database, which others may be making too
JOURNAL = b'{"op_code":'  # how one begins, as does each of its lines
SURPLUS = "surplus"  # marks a trial that was one too many
DEFAULTS = "defaults"  # of what a study searches, among its own attributes

ERRORS = (sqlite3.Error, SQLAlchemyError, StorageInternalError)

T = TypeVar("T")


class DamagedError(ValueError):
    """A storage whose content is not what was written."""


class Connection(sqlite3.Connection):
    """One that waits for locked files in Python, where Ctrl-C is heard, and says so."""

    patience = PATIENCE

    def cursor(self, factory: Any = None) -> Any:
        """A cursor that waits as well."""
        return super().cursor(factory or Cursor)

    def commit(self) -> None:
        """Commit, once whoever reads has finished."""
        self.patiently(super().commit)

    def patiently(self, act: Callable[[], T]) -> T:
        """What ``act`` returns, tried again for as long as another process has locked the file."""
        end, said = time.monotonic() + self.patience, False
        while True:
            try:
                return act()
            except sqlite3.OperationalError as error:
                if not _locked(error) or time.monotonic() > end:
                    raise
            if not said:
                log.warning("the study's storage is locked by another process: waiting for it")
            said = True
            time.sleep(0.05)


class Cursor(sqlite3.Cursor):
    """A cursor of `Connection`."""

    connection: Connection

    def execute(self, *arguments: Any) -> "Cursor":
        """Execute a statement."""
        return self.connection.patiently(partial(super().execute, *arguments))

    def executemany(self, *arguments: Any) -> "Cursor":
        """Execute a statement for each of several rows."""
        return self.connection.patiently(partial(super().executemany, *arguments))


def _locked(error: sqlite3.Error) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _code(error: sqlite3.Error) -> int:
    """The primary result code; 0 for an error of Python's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def at_home(url: str) -> str:
    """``url``, with the home directory for a ~ at the start of its path.

    Raises:
        ValueError: the path begins with ~ and a name that is no user's.
    """
    place = url.rpartition(":///")[2]
    return url.removesuffix(place) + store.home(place)


def file(url: str) -> Path | None:
    """The file of a storage; None for a database on a server."""
    if "://" not in url:
        return Path(url).absolute()
    try:
        parsed = make_url(url)
    except ArgumentError:
        return None
    plain = parsed.database and parsed.database != ":memory:" and "uri" not in parsed.query
    local = parsed.get_backend_name() == "sqlite" and plain
    return Path(str(parsed.database)).absolute() if local else None


def opened(url: str) -> BaseStorage:
    """The storage of a URL, or of the path of a journal file.

    A file that another process has locked is waited for, for `PATIENCE` or the URL's ``timeout``
    in seconds. A journal's last line, if a kill cut it, is put aside.

    Raises:
        DamagedError: the file is damaged.
        Exception: of any of the databases that Optuna can use.
    """
    path = file(url)
    if path is not None and path.is_dir():
        raise DamagedError(f"{path} is a folder")
    if "://" not in url:
        assert path is not None
        return JournalStorage(_journal(path))
    if path is None:
        return _made(url, {})
    patience = make_url(url).query.get("timeout", PATIENCE)
    kind = type("Patient", (Connection,), {"patience": float(str(patience))})
    arguments: dict[str, Any] = {"timeout": STEP, "factory": kind}
    if path.exists():
        with closing(sqlite3.connect(path, **arguments)) as connection:
            [[found]] = connection.cursor().execute("PRAGMA integrity_check(1)")
        if found != "ok":
            raise DamagedError(f"{path} is damaged: {found}")
    return _made(url, {"connect_args": arguments})


def _made(url: str, options: dict[str, Any]) -> RDBStorage:
    """A database with its tables, which others who start at the same moment make too."""
    for _ in range(TRIES):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except (SQLAlchemyError, StorageInternalError) as error:
            if not isinstance(error, IntegrityError) and "already exists" not in str(error):
                raise
        time.sleep(0.1)
    return RDBStorage(url, engine_kwargs=options)


def _journal(path: Path) -> JournalFileBackend:
    """The backend of a journal that is whole.

    Raises:
        DamagedError: lines of it cannot be read.
        ValueError: it is something else.
    """
    # Absolute, since the lock is a link to the path beside it.
    backend = JournalFileBackend(str(path))
    content = path.read_bytes()
    if not content.startswith(JOURNAL[: len(content)]):
        raise ValueError(f"{path} is no journal of a study")
    if content and not content.endswith(b"\n"):
        with _writing(backend):
            _mend(path)
    with path.open("rb") as lines:
        for number, text in enumerate(lines, 1):
            try:
                json.loads(text)
            except ValueError as error:
                if text.endswith(b"\n"):  # else another is writing it
                    raise DamagedError(f"line {number} of {path} is damaged") from error
    return backend


@contextmanager
def _writing(backend: JournalFileBackend) -> Iterator[None]:
    backend._lock.acquire()
    try:
        yield
    finally:
        backend._lock.release()


def _mend(path: Path) -> None:
    """Put the last line of a journal aside if it was cut; what it told has not happened."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    cut = content[whole:]
    if not cut:
        return  # it was being written, or another mended it
    try:
        json.loads(cut)
    except ValueError:
        aside = path.with_name(f"{path.name}.cut")
        with aside.open("ab") as other:
            other.write(cut + b"\n")
        with path.open("r+b") as journal:
            journal.truncate(whole)
        log.warning("the last line of %s was cut, and is put aside in %s", path, aside)
        return
    with path.open("ab") as journal:
        journal.write(b"\n")


def turn(url: str) -> Any:
    """A lock for who asks for trials; none for a database on a server, to which nobody is near."""
    path = file(url)
    if path is None:
        return nullcontext()
    return store.alone(path.with_name(f".{path.name}.lock"), quiet=True)


@contextmanager
def explained(url: str, key: str, own: Path | None, folder: Path) -> Iterator[None]:
    """Say of a storage's errors what can be done that loses nothing.

    Args:
        url: of the storage.
        key: what the user gave, or would.
        own: the storage, if it is the sweep's own.
        folder: the sweep's.

    Raises:
        ConfigError: the storage cannot be used.
    """
    try:
        yield
    except (DamagedError, *ERRORS) as error:
        raise ConfigError(f"{key}: {_said(error, own, folder)}") from error
    except RuntimeError as error:
        if "table schema" not in str(error):
            raise
        way = f"`optuna storage upgrade --storage '{url}'` keeps all that it holds"
        if "pip install" in str(error):
            way = "`pip install -U optuna` reads it"
        raise ConfigError(f"{key}: it was made by another version of Optuna; {way}") from error


def _said(error: BaseException, own: Path | None, folder: Path) -> str:
    causes = list(_chain(error))
    found = next((cause for cause in causes if isinstance(cause, sqlite3.Error)), None)
    told = error if isinstance(error, DamagedError) else found or causes[-1]
    reason = f"it cannot be used ({line(told)})"
    if found is not None and _locked(found):
        return (
            f"{reason}; another process has locked it, and nothing is lost: once that has ended, "
            "the same command goes on"
        )
    damaged = isinstance(error, DamagedError) or (
        found is not None and _code(found) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    )
    if damaged and own is not None:
        return f"{reason}; move aside or delete {own}, and the runs make it again"
    if isinstance(error, DamagedError):
        return f"{reason}; move it aside, and the runs in {folder} make their trials again"
    return reason


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "orig", None) or error.__cause__ or error.__context__


def line(error: BaseException) -> str:
    """The first line of an error, or its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
