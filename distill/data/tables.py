"""Tables, in CSV or Parquet: numbers as they are, categories as a column each, a column of labels.

Letters: N rows, D features.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from distill import transfer
from distill.data.dataset import Dataset, joined
from distill.data.labels import encoded
from distill.seeds import generator
from distill.system import store
from distill.system.arrays import load

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

PARQUET = (".parquet", ".pq")
SHARE = 0.2  # of each class, which is held out as the test set where no table is
CATEGORIES = 1000  # at most, of one column
TRUTHS = {"true": "True", "TRUE": "True", "false": "False", "FALSE": "False"}


def _text(value: object) -> object:
    return str(value) if type(value) is int else value  # as a column may be called


def _tested(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, str):
        return store.home(value)
    if value is None or (number and 0 < value < 1):  # type: ignore[operator]
        return value
    raise ValueError(f"it is {value}; allowed are a share of the rows, such as 0.2, or a path")


Column = Annotated[str, BeforeValidator(_text)]
Test = Annotated[Any, AfterValidator(_tested), store.Place()]
Separator = Annotated[str, Field(min_length=1, max_length=1)]


def table(
    *,
    root: str,
    label: Column,
    test: Test = None,
    drop: list[Column] = [],  # noqa: B006
    separator: Separator = ",",
) -> Dataset:
    """The rows of a table: features and, in the column ``label``, classes.

    A column of numbers is a feature; one of text or truths is a feature of 0 or 1 for each category
    that a training row has.

    Args:
        root: a table with a header, or a folder of train.csv (or .tsv, .parquet) and perhaps
            test.csv and val.csv, of which val is the validation split.
        label: the column of labels, of any kind.
        test: another table, or the share of each class that is the test set, always the same rows.
            None: test.csv in the folder, or 0.2.
        drop: columns that are left out.
        separator: between the columns of a CSV.

    Raises:
        OSError: a table cannot be read.
        ValueError: columns are missing, or hold what is no feature.
    """
    paths = _paths(Path(root), test)
    left = [label, *drop]
    frames = {"training": _read(paths["training"], separator, left)}
    text = _categories(frames["training"].drop(columns=left))
    for name in text:
        _tell_of_numbers(name, frames["training"][name].astype(str))
    kind = _kind(frames["training"][label])
    named = kind in ("string", "boolean")
    for part in paths.keys() - {"training"}:
        frames[part] = _read(paths[part], separator, left, text | ({label: "str"} if named else {}))
        _same_columns(frames["training"], frames[part], part)
    marks = {part: frame[label] for part, frame in frames.items()}
    if named:
        marks = {part: _words(column, kind) for part, column in marks.items()}
    labels, names = encoded({part: column.to_numpy() for part, column in marks.items()})
    frames = {part: frame.drop(columns=left) for part, frame in frames.items()}
    if "test" not in frames:
        out = _held_out(labels["training"], SHARE if test is None else float(test))
        whole, all_labels = frames["training"], labels["training"]
        frames |= {"training": whole[~out.numpy()], "test": whole[out.numpy()]}
        labels |= {"training": all_labels[~out], "test": all_labels[out]}
    return joined(_features(frames), labels, names)


def _paths(root: Path, test: Any) -> dict[str, Path]:
    """The table of each part; without "test" where a share of the rows is that.

    Raises:
        ValueError: a folder holds no table to train on, or two.
    """
    found = {"training": root}
    if root.is_dir():
        found = {}
        for part, stem in (("training", "train"), ("test", "test"), ("validation", "val")):
            tables = sorted(path for path in root.glob(f"{stem}.*") if path.is_file())
            if len(tables) > 1:
                raise ValueError(f"it holds {tables[0].name} and {tables[1].name}; one is wanted")
            if tables:
                found[part] = tables[0]
        if "training" not in found:
            raise ValueError("it is a folder without train.csv (or .tsv, .parquet); give a table")
    if test is not None:
        found.pop("test", None)
    return found | ({"test": Path(test)} if isinstance(test, str) else {})


def _read(
    path: Path, separator: str, needed: list[str], text: dict[str, str] | None = None
) -> "pd.DataFrame":
    """A table, of which the columns in ``text`` are read as such.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no table, lacks a needed column, or a cell is empty.
    """
    import pandas as pd

    frame: pd.DataFrame
    if path.suffix.lower() in PARQUET:
        try:
            frame = load(path)[""]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    else:
        tabs = ".tsv" in path.suffixes
        keys: Any = {"sep": "\t" if tabs else separator, "low_memory": False, "dtype": text}
        try:
            frame = pd.read_csv(path, **keys)
        except OSError:
            raise
        except Exception as error:  # pandas has many
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}: it is no table that can be read ({reason})") from error
    frame.columns = frame.columns.map(str)
    _check(path, frame, needed)
    return frame


def _check(path: Path, frame: "pd.DataFrame", needed: list[str]) -> None:
    """Raises ValueError: columns or cells are missing."""
    names = [*frame.columns]
    for column in needed:
        if column not in names:
            some = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            one = "; set data.separator, if it is not a comma" if len(names) == 1 else ""
            raise ValueError(f"{path}: it has no column {column}; it has {some}{one}")
    for column in names:
        if column.startswith("Unnamed: ") and column not in needed:
            raise ValueError(
                f"{path}: a column has no name, as that of row numbers in many files; leave it out "
                f"by 'data.drop=[\"{column}\"]', or name it"
            )
    if not len(frame):
        raise ValueError(f"{path}: it has no rows")
    used = [name for name in names if name not in needed[1:]]
    empty = frame[used].isna().to_numpy()
    if empty.any():
        row, place = np.argwhere(empty)[0].tolist()
        raise ValueError(
            f"{path}: column {used[place]} has no value in row {row}, counted from 0 (of "
            f"{int(empty.any(1).sum())} rows with a blank, or a word for it such as NA or None); "
            "fill or remove them, or leave the column out by data.drop"
        )
    if len(used) < 2:
        raise ValueError(f"{path}: it has no column of features beside {needed[0]}")


def _same_columns(training: "pd.DataFrame", other: "pd.DataFrame", part: str) -> None:
    """Raises ValueError: the columns of another table are not those of the training table."""
    for one, two, what in ((training, other, part), (other, training, "training")):
        if missing := [name for name in one.columns if name not in two.columns]:
            raise ValueError(f"the {what} table has no column {missing[0]}, which the other has")


def _kind(column: "pd.Series[Any]") -> str:
    """What a column holds, as pandas calls it; "" if that is numbers."""
    from pandas.api import types

    if types.is_numeric_dtype(column) and not types.is_bool_dtype(column):
        return ""
    return types.infer_dtype(column)


def _words(column: "pd.Series[Any]", kind: str) -> "pd.Series[Any]":
    """A column as text; truths, by the ``kind`` of the column to train on, in one word for each.

    Of a training table pandas makes truths of such words; of others they are read as text.
    """
    return column.astype(str).replace(TRUTHS if kind == "boolean" else {})


def _categories(frame: "pd.DataFrame") -> dict[str, str]:
    """The types, for pandas, of the columns of text or truths.

    Raises:
        ValueError: a column holds neither numbers nor such.
    """
    from pandas.api import types

    found = {}
    for name, column in frame.items():
        if not (kind := _kind(column)):
            if types.is_complex_dtype(column):
                raise ValueError(f"column {name} holds complex numbers; leave it out by data.drop")
            continue
        if kind not in ("string", "boolean", "categorical"):
            raise ValueError(
                f"column {name} holds {kind} ({column.iloc[0]}), no numbers, text or truths; leave "
                "it out by data.drop, or make numbers of it"
            )
        found[str(name)] = "str"
    return found


def _held_out(labels: Tensor, share: float) -> Tensor:
    """A mask (N,) of a ``share`` of each class, but of no class that has one row."""
    out = transfer.fraction(labels, generator(0, "test"), fraction=share)
    out &= labels.bincount()[labels] > 1
    if not out.any():
        raise ValueError(f"each of its {len(labels)} rows has a label of its own: none is to test")
    return out


def _features(frames: "dict[str, pd.DataFrame]") -> dict[str, Tensor]:
    """The features (N, D) of each part, with the categories of the training rows."""
    columns: dict[str, list[Any]] = {part: [] for part in frames}
    text = _categories(frames["training"])
    for name in frames["training"]:
        if name in text:
            kind = _kind(frames["training"][name])
            words = {part: _words(frame[name], kind) for part, frame in frames.items()}
            made = _encoded(str(name), words)
        else:
            made = {part: _numbers(part, frame[name]) for part, frame in frames.items()}
        for part, values in made.items():
            columns[part].append(values)
    return {part: torch.from_numpy(np.column_stack(both)) for part, both in columns.items()}


def _numbers(part: str, column: "pd.Series[Any]") -> Any:
    try:
        numbers = column.to_numpy(np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"column {column.name} holds numbers in the training table and others in the {part} "
            f"table ({error})"
        ) from error
    if not (finite := np.isfinite(numbers)).all():
        value = numbers[~finite][0]
        raise ValueError(f"column {column.name} holds {value} in a {part} row; wanted are numbers")
    return numbers


def _encoded(name: str, parts: "dict[str, pd.Series[Any]]") -> dict[str, Any]:
    """A column (N,) of 0 and 1 for each category of the training rows.

    Raises:
        ValueError: there are too many.
    """
    known = np.unique(parts["training"].to_numpy(object))
    if len(known) > CATEGORIES:
        raise ValueError(
            f"column {name} has {len(known)} categories; at most {CATEGORIES} become features: "
            f"leave it out by data.drop=[{name}]"
        )
    for part, column in parts.items():
        others = column[~column.isin(known)]
        if len(others):
            log.warning(
                "column %s: %d of the %d %s rows have categories that no training row has, such as "
                "%s; all of its features are 0 there",
                name,
                len(others),
                len(column),
                part,
                others.iloc[0],
            )
    return {
        part: (column.to_numpy(object)[:, None] == known).astype(np.float64)
        for part, column in parts.items()
    }


def _tell_of_numbers(name: str, column: "pd.Series[Any]") -> None:
    """Warn of a column of text in which most cells are numbers, if a comma in them is none."""
    import pandas as pd

    plain = pd.to_numeric(column, errors="coerce").notna()
    numbers = pd.to_numeric(column.str.replace(",", ""), errors="coerce").notna()
    if not plain.all() and 2 * numbers.sum() > len(column):
        log.warning(
            "column %s: most of its cells are numbers, but some are text, such as %s, so that each "
            "of its values is a category; mend them, or leave the column out by data.drop",
            name,
            column[~plain].iloc[0],
        )
