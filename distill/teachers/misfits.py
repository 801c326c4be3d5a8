"""Weights that do not fit a model, in words: what they are instead, and what to do about it."""

from collections.abc import Mapping, Sequence

Shapes = Mapping[str, Sequence[int]]


def misfit(
    found: Shapes, wanted: Shapes, name: str, images: tuple[int, ...], classes: int
) -> str | None:
    """Why weights do not fit a model, if it is the data's classes or images alone.

    Args:
        found: the shape of each tensor there is.
        wanted: that of each parameter of the model for the data.
        name: the data set's.
        images: the shape of its images, channels first, or of a row of features.
        classes: the number of its classes.
    """
    if found.keys() != wanted.keys():
        return None
    last = [*wanted][-1].rpartition(".")[0]
    first = next(iter(wanted))
    flat = next((n for n, shape in wanted.items() if len(shape) == 2), None)
    features = len(images) == 1
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
                read = f"{own[1]} features" if features else f"images of {own[1]} {what}"
                theirs["images"] = f"reads {read}"
            elif axis == 1 and parameter == flat:
                theirs.setdefault("images", "reads images of another size")
            else:
                return None
    if not theirs:
        return None
    size = " x ".join(map(str, images))
    ours = {
        "classes": f"{classes} classes",
        "images": f"rows of {size} features" if features else f"images of {size}",
    }
    has = " and ".join(ours[kind] for kind in sorted(theirs))
    it = " and ".join(theirs[kind] for kind in sorted(theirs))
    return f"its model {it}, data={name} has {has}; choose the data that it was trained on"
