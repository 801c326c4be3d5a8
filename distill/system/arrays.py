"""Arrays in files of many kinds, by their names.

Letters: R rows, D columns.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distill.system import store, tensors

if TYPE_CHECKING:
    import pandas as pd

Wanted = Callable[[str], bool]


def load(path: Path, wanted: Wanted = lambda _: True) -> dict[str, Any]:
    """What a file holds, by the names of its arrays; that of a file which holds one has none, "".

    Args:
        path: of a kind in `KINDS`, by its suffix.
        wanted: whether the array of a name is. Of another one None is given, whatever it is.

    Returns:
        NumPy's arrays, dense tensors, tables of pandas; or whatever torch.save was given.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or of another kind; in one line.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"what kind of file this is, its suffix must say: {', '.join(KINDS)}")
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with store.naming(path):
            found = KINDS[kind](path, wanted)
    except (OSError, MemoryError):
        raise
    except ImportError as error:
        raise ValueError("Parquet needs pyarrow: pip install 'distill-sweep[parquet]'") from error
    except Exception as error:  # each kind of damage has its own
        reason = " ".join(str(error).split())
        raise ValueError(f"not a readable {kind} file ({reason})") from error
    whole = {str(name): value if wanted(str(name)) else None for name, value in found.items()}
    for name, value in whole.items():
        if isinstance(value, Tensor) and (
            value.layout != torch.strided or value.is_quantized or value.is_meta
        ):
            raise ValueError(f"{_what(name)} is not a dense tensor")
    return whole


def read(path: Path, columns: Sequence[str] = ()) -> dict[str, Tensor]:
    """The arrays in a file, float32, by their names; that of a file which holds one has none, "".

    Args:
        path: of a kind in `KINDS`, by its suffix; in CSV and Parquet each row is one example.
        columns: in which order those of a table are wanted, if they have these names.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or of another kind, or holds something else than numbers.
    """
    found = load(path)
    if path.suffix.lower() in TABLES:
        found = {"": _table(found[""], columns)}
    return {name: _numbers(name, value) for name, value in found.items()}


def _what(name: str) -> str:
    return f"its array {name}" if name else "its content"


def _numbers(name: str, value: Any) -> Tensor:
    """A tensor or array in float32, in which what is too large is infinite."""
    if isinstance(value, Tensor):
        if value.is_complex():
            raise ValueError(f"{_what(name)} is of type {value.dtype}; wanted are real numbers")
        return value.detach().float()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(f"{_what(name)} is of type {kind}; wanted are numbers")
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.require(value, np.float32, ["C", "W"]))


def _table(frame: "pd.DataFrame", columns: Sequence[str]) -> Any:
    """The numbers (R, D) of a table, in the order of its ``columns`` if it has these names."""
    names = [str(name) for name in frame.columns]
    frame.columns = names
    text = [name for name in names if frame[name].dtype.kind not in "fiub"]
    if text:
        raise ValueError(f"its column {text[0]} holds {frame[text[0]].dtype}, not numbers")
    numbers = [str(number) for number in range(len(names))]
    if set(columns) == set(names) and len(columns) == len(names):
        frame = frame[[*columns]]
    elif columns and sorted(columns) != sorted(numbers) and sorted(names) != sorted(numbers):
        raise ValueError(
            f"its columns are called {', '.join(names[:4])}...; wanted are, in any order, "
            f"{', '.join(columns[:4])}..., or no header"
        )
    return frame.to_numpy(dtype=np.float64)


def _tensors(path: Path, _: Wanted) -> Mapping[Any, Any]:
    content = tensors.load(path)
    return content if isinstance(content, Mapping) else {"": content}


def _numpy(path: Path, wanted: Wanted) -> Mapping[str, Any]:
    with path.open("rb") as file:  # which NumPy leaves open where it is damaged
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"": found}
        return {name: found[name] if wanted(name) else None for name in found.files}


def _csv(path: Path, _: Wanted) -> Mapping[str, Any]:
    import pandas as pd

    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline().strip().split(",")
    numbered = sorted(first) == sorted(map(str, range(len(first))))
    titled = numbered or not all(map(_is_number, first))
    return {"": pd.read_csv(path, header=0 if titled else None)}


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip().strip('"'))
    except ValueError:
        return False
    return True


def _parquet(path: Path, _: Wanted) -> Mapping[str, Any]:
    import pandas as pd

    return {"": pd.read_parquet(path)}


TABLES = (".csv", ".parquet", ".pq")
# How a file of each kind is read: its arrays by their names, and those that are wanted.
KINDS: dict[str, Callable[[Path, Wanted], Mapping[Any, Any]]] = {
    ".npy": _numpy,
    ".npz": _numpy,
    ".safetensors": _tensors,
    ".pt": _tensors,
    ".pth": _tensors,
    ".csv": _csv,
    ".parquet": _parquet,
    ".pq": _parquet,
}
