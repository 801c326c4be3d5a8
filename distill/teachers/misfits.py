"""Files of weights that do not fit, in words: what they are instead, and what to do about it."""

import json
import shlex
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# How a name begins when a state dict was taken from a wrapper of the model.
WRAPPERS = {"module.": "DataParallel", "_orig_mod.": "torch.compile"}
KIND = ".safetensors"
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
Shapes = Mapping[str, Sequence[int]]


def _rewrite(read: str, source: Path, target: Path) -> str:
    """A shell command that writes the tensors of ``source`` under their plain names."""
    before, after = (json.dumps(str(path), ensure_ascii=False) for path in (source, target))
    code = (
        "import torch; from safetensors.torch import load_file, save_file; "
        f"w = {read.replace('PATH', before)}; "
        'save_file({n.replace("_orig_mod.", "").removeprefix("module."): v.clone().contiguous() '
        f"for n, v in w.items()}}, {after})"
    )
    return shlex.join([sys.executable, "-c", code])


def pickled(path: Path) -> str | None:
    """What a file that is no safetensors file is, if it is one of torch.save, and its remedy."""
    if not path.is_file() or not (path.suffix in SUFFIXES or zipfile.is_zipfile(path)):
        return None
    read = (
        'torch.load(PATH, map_location="cpu", weights_only=True); '
        'w = next((w[n] for n in ("state_dict", "model_state_dict", "model") if n in w), w)'
    )
    return f"but one of torch.save; convert it: {_rewrite(read, path, path.with_suffix(KIND))}"


def wrapped(path: Path, names: Sequence[str]) -> str | None:
    """Why the ``names`` in a file are not a model's, if a wrapper's name is before each."""
    begin, rest = "", list(names)
    while rest and (
        found := next((w for w in WRAPPERS if all(n.startswith(w) for n in rest)), None)
    ):
        begin, rest = begin + found, [name.removeprefix(found) for name in rest]
    if not begin:
        return None
    who = " and ".join(maker for prefix, maker in WRAPPERS.items() if prefix in begin)
    line = _rewrite("load_file(PATH)", path, path.with_name(f"{path.stem}-plain{KIND}"))
    return f"all names in it begin with {begin} (of {who}); write it without: {line}"


def misfit(
    found: Shapes, wanted: Shapes, name: str, images: tuple[int, ...], classes: int
) -> str | None:
    """Why weights do not fit a model, if it is the data's classes or images alone.

    Args:
        found: the shape of each tensor there is.
        wanted: that of each parameter of the model for the data.
        name: the data set's.
        images: the shape of its images, channels first.
        classes: the number of its classes.
    """
    if found.keys() != wanted.keys():
        return None
    last = [*wanted][-1].rpartition(".")[0]
    first = next(iter(wanted))
    flat = next((n for n, shape in wanted.items() if len(shape) == 2), None)
    theirs: dict[str, str] = {}
    for parameter, shape in wanted.items():
        own = found[parameter]
        if len(own) != len(shape):
            return None
        for axis in (n for n, (a, b) in enumerate(zip(own, shape, strict=True)) if a != b):
            if axis == 0 and parameter.rpartition(".")[0] == last:
                theirs["classes"] = f"has {own[0]} classes"
            elif axis == 1 and parameter == first:
                what = "channels" if len(own) == 4 else "values"
                theirs["images"] = f"reads images of {own[1]} {what}"
            elif axis == 1 and parameter == flat:
                theirs.setdefault("images", "reads images of another size")
            else:
                return None
    if not theirs:
        return None
    size = " x ".join(map(str, images))
    ours = {"classes": f"{classes} classes", "images": f"images of {size}"}
    has = " and ".join(ours[kind] for kind in sorted(theirs))
    it = " and ".join(theirs[kind] for kind in sorted(theirs))
    return f"its model {it}, data={name} has {has}; choose the data that it was trained on"
