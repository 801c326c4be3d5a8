"""What `distill-predict` and `distill-export` do, once their arguments are read."""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from distill.cli.explain import explain
from distill.config import ConfigError
from distill.deploy import pictures, student
from distill.deploy.export import FORMATS, facts, ready, write
from distill.system.store import write_text

COLUMNS = ("file", "class", "probability")
FOLDER = "distill.data.image_folder"


def predict(
    run: Path,
    best: str | None,
    files: Sequence[Path],
    out: Path | None,
    weights: str = "last",
) -> None:
    """Print the class of each image, and its probability; write them as a CSV, too.

    Raises:
        SystemExit: a run or a file is not what it should be; nothing was printed.
    """
    try:
        model = student.load(run, best, weights)
        data = model.config.get("data", {})
        # Pictures of other sizes, as those were on which it was trained.
        fit = data.get("_target_") == FOLDER and data.get("size") is not None
        named = [pair for path in files for pair in pictures.images(path, model.shape, fit)]
        if not named:
            raise ConfigError(f"{', '.join(map(str, files))}: there is no image in it")
        names, images = zip(*named, strict=True)
        mixed = len({image.dtype for image in images}) > 1
        whole = torch.stack([image.float() if mixed else image for image in images])
        likely = model.probabilities(whole).max(-1)
        found = zip(names, likely.indices.tolist(), likely.values.tolist(), strict=True)
        called = model.names or range(model.classes)
        rows = [(name, called[place], f"{share:.4f}") for name, place, share in found]
        if out is not None:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
            write_text(out, text.getvalue())
    except Exception as error:
        sys.exit(_line(error))
    for row in rows:
        print(*row, sep="\t")


def export(run: Path, best: str | None, kind: str, out: Path | None, weights: str = "last") -> None:
    """Write the student in another format, and print what the file wants.

    Raises:
        SystemExit: it cannot be exported; no file was written or changed.
    """
    try:
        ready(kind)
        model = student.load(run, best, weights)
        which = "" if weights == "last" else f"-{weights}"
        path = out or Path(f"{model.name}{which}{FORMATS[kind]}")
        write(model, kind, path)
    except Exception as error:
        sys.exit(_line(error))
    print(path)
    for key, value in facts(model).items():
        print(f"{key}: {value}")


def _line(error: Exception) -> str:
    """The one line for an error; that of a file's content is already one."""
    return str(error) if isinstance(error, ValueError) else explain(error)
