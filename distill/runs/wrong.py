"""Which test images each run gets wrong: from the results, or a file that is kept without them.

Letters: R runs, N test images.
"""

import csv
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distill.runs.columns import Status
from distill.runs.planned import commands
from distill.runs.results import DAMAGED, RESULT, found, read
from distill.runs.summaries import SUMMARY_LOCK
from distill.system.bits import unpacked
from distill.system.store import alone, tidy, write_text

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

WRONG = "wrong.csv"
TRUTHS = ("test_wrong", "teacher_test_wrong")  # in a result


class Wrong(NamedTuple):
    """A run, and which test images it and its teacher get wrong, as `bits.packed`.

    Its fields are the columns of the file, where the text of a teacher stands in the first row that
    has its digest, and again only where it differs. Of a teacher of whom that is not known both are
    empty.
    """

    run: str
    test_wrong: str
    teacher_digest: str
    teacher_test_wrong: str


def wrong(path: str | Path, *, teacher: bool = False) -> "pd.DataFrame":
    """Which test images each run of a sweep gets wrong, after its last epoch.

    A warning tells of runs that are left out: those that are not complete, were not tested, or of
    which it was not kept.

    Args:
        path: a sweep's folder, whose results are read (or, where none lie there, its wrong.csv,
            which ``distill-summary DIR --wrong`` writes); or a wrong.csv.
        teacher: of each run those that its teacher gets wrong.

    Returns:
        Truths (R, N): a row a run, by its name, and a column for each test image, in the order of
        the data set. The sums of the rows are ``test_errors``, or ``teacher_test_errors``.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is damaged, is of no run, or the runs have test sets of several sizes.

    Example:
        >>> import distill
        >>> result = distill.run("data=synthetic", "loss=hard", "train.epochs=2")
        >>> int(distill.wrong(result.directory).sum(axis=1).iloc[0]) == result.test_errors
        True
    """
    import numpy as np
    import pandas as pd

    path = Path(path)
    rows, lines = _of_results(path) if path.is_dir() and found(path) else (read_wrong(path), [])
    cells = [(row.run, row.teacher_test_wrong if teacher else row.test_wrong) for row in rows]
    if less := sum(not text for _, text in cells):
        lines.append(f"left out: {less} without a teacher whose errors on the test set are known")
    truths = {n: (run, unpacked(text)) for n, (run, text) in enumerate(cells) if text}
    if not truths:
        raise ValueError("; ".join([f"{path}: no run says which test images are wrong", *lines]))
    if len(sizes := sorted({len(own) for _, own in truths.values()})) > 1:
        text = " and ".join(map(str, sizes))
        raise ValueError(f"{path}: its runs have {text} test images; give a folder of one test set")
    for line in lines:
        warnings.warn(line, stacklevel=2)
    names = pd.Index([run for run, _ in truths.values()], name="run")
    return pd.DataFrame(np.stack([own for _, own in truths.values()]), index=names)


def write_wrong(folder: Path) -> list[str]:
    """Write ``wrong.csv`` in ``folder`` from the results below it; returns what is to be told.

    Raises:
        OSError: it cannot be written.
        ValueError: no run says which test images it gets wrong; nothing was written.
    """
    with alone(folder / SUMMARY_LOCK, quiet=True):
        tidy(folder, WRONG)
        rows, lines = _of_results(folder)
        if not rows:
            raise ValueError("; ".join([f"{WRONG} was not written", *lines]))
        with io.StringIO(newline="") as text:
            csv.writer(text, lineterminator="\n").writerows([Wrong._fields, *_shared(rows)])
            write_text(folder / WRONG, text.getvalue())
    return [*lines, f"{folder / WRONG}: {len(rows)} run{'s' if len(rows) > 1 else ''}"]


def _of_results(folder: Path) -> tuple[list[Wrong], list[str]]:
    """The runs below ``folder`` of which it is known, and lines on all others."""
    rows: list[Wrong] = []
    others: list[str] = []
    old = 0
    for path in found(folder):
        result, reason = _result(path)
        if reason is not None:
            others.append(reason)
        elif "test_wrong" not in result:
            old += 1
        else:
            taught = result.get("teacher_test_wrong", "")
            teacher = result["teacher_digest"] if taught else ""
            rows.append(Wrong(result["run"], result["test_wrong"], teacher, taught))
    counts = ", ".join(f"{n} {reason}" for reason, n in Counter(others).items())
    lines = [f"left out: {counts}"] if others else []
    if old:
        given = commands(folder)
        again = f"{given[-1]} resume=false" if given else "their command with resume=false"
        lines.append(
            f"left out: {old} that did not keep which test images are wrong, as earlier versions "
            f"did not; to train them anew: {again}"
        )
    return rows, lines


def _shared(rows: Iterable[Wrong]) -> Iterator[Wrong]:
    """The rows with the text of each teacher once, as the file has them."""
    known: dict[str, str] = {}
    for row in rows:
        again = known.get(row.teacher_digest) == row.teacher_test_wrong
        known.setdefault(row.teacher_digest, row.teacher_test_wrong)
        yield row._replace(teacher_test_wrong="") if again else row


def _whole(rows: Iterable[Wrong]) -> Iterator[Wrong]:
    """The rows of a file, each with the text of its teacher.

    Raises:
        KeyError: none has it.
    """
    known = {"": ""}
    for row in rows:
        if row.teacher_test_wrong and row.teacher_digest:
            known.setdefault(row.teacher_digest, row.teacher_test_wrong)
        text = row.teacher_test_wrong or known[row.teacher_digest]
        yield row._replace(teacher_test_wrong=text)


def _result(path: Path) -> tuple[dict[str, Any], str | None]:
    """The result at ``path``, and why it says nothing of test images, but that it is older."""
    if path.name != RESULT:
        return {}, "not ended"
    try:
        result = read(path)
        if result["status"] != Status.COMPLETE:
            return {}, str(result["status"])
        if "test_errors" not in result:
            return {}, "not tested (test=false)"
        for name in [name for name in TRUTHS if name in result]:
            _check(name, result)
    except OSError:
        return {}, "unreadable"
    except DAMAGED:
        return {}, "damaged"
    return result, None


def _check(name: str, result: Mapping[str, Any]) -> None:
    """See that a result says of as many images that they are wrong as there are errors.

    Raises:
        ValueError: it does not, or what it says is damaged.
    """
    errors, own = result[name.replace("wrong", "errors")], int(unpacked(result[name]).sum())
    if own != errors:
        raise ValueError(f"{own} test images are wrong, of {errors} errors")


def sure(result: dict[str, Any]) -> dict[str, Any]:
    """A result that is to be written, less which test images are wrong where errors differ.

    Logits of another batch, thread or machine differ by rounding, and with it one error in millions
    may.
    """
    for name in [name for name in TRUTHS if name in result]:
        try:
            _check(name, result)
        except ValueError as error:
            log.warning("%s: its result has no %s (%s)", result["run"], name, error)
            result = {key: value for key, value in result.items() if key != name}
    return result


def read_wrong(path: Path) -> list[Wrong]:
    """The rows of a wrong.csv, or of that in a folder; its texts are whole.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    import pandas as pd

    path = path / WRONG if path.is_dir() else path
    try:
        cells = pd.read_csv(path, dtype=str, keep_default_na=False)
        if "teacher_digest" not in cells:  # as files had it that repeat each teacher's text
            cells["teacher_digest"] = ""
        rows = [*_whole(Wrong(*map(str, row)) for row in cells[list(Wrong._fields)].to_numpy())]
        for text in {getattr(row, name) for row in rows for name in TRUTHS} - {""}:
            unpacked(text)
    except (ValueError, KeyError) as error:
        again = "distill-summary DIR --wrong writes it anew from the runs"
        raise ValueError(f"{path} is damaged, or no {WRONG}; {again}") from error
    return rows
