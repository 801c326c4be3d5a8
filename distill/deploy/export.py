"""Students as files that run without this package: ONNX, and torch's own format.

Raw pixels go in, logits come out; the normalisation is inside, and the file says what it wants.
"""

import importlib.util
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill import __version__
from distill.config import ConfigError
from distill.deploy.student import Student
from distill.system import store

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}  # and the ends of their files' names
OPSET = 18  # of ONNX
NEEDS = ("onnx", "onnxruntime", "onnxscript")
INSTALL = "pip install 'distill-sweep[export]'"
INPUT, OUTPUT, FACTS = "images", "logits", "distill.json"
# How far logits may be from the student's own, as a share of the largest.
ROUNDING = 1e-4


def ready(kind: str) -> None:
    """See that the packages for a format are there.

    Raises:
        ConfigError: one is missing.
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if kind == "onnx" and missing:
        raise ConfigError(f"--format onnx needs {', '.join(missing)}, which is there by: {INSTALL}")


def facts(student: Student) -> dict[str, str]:
    """What a file says of itself, which is what a caller has to know."""
    size = ", ".join(map(str, student.shape))
    kind, numbers = ("float32", "as they come") if student.features else ("uint8", "0 to 255")
    return {
        "run": student.name,
        "input": f"{INPUT}: {kind} (batch, {size})",
        "range": f"{numbers}; normalisation is inside",
        "output": f"{OUTPUT}: float32 (batch, {student.classes})",
        "classes": str(student.classes),
        **({"names": json.dumps(student.names, ensure_ascii=False)} if student.names else {}),
        "version": __version__,
    }


def write(student: Student, kind: str, path: Path) -> None:
    """Write ``student`` to ``path``, whole or not at all, once its logits were compared.

    Args:
        student: on the CPU.
        kind: a key of `FORMATS`.
        path: replaced if it exists.

    Raises:
        ConfigError: a package is missing, or torch cannot export the model.
        OSError: the file cannot be written.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> student = Student(model, shape=(1, 2, 2), classes=3, mean=0.5, std=0.5)
        >>> write(student, "torch", Path("student.pt2"))
        >>> program = torch.export.load("student.pt2")
        >>> program.module()(torch.zeros(6, 1, 2, 2, dtype=torch.uint8)).shape
        torch.Size([6, 3])
    """
    ready(kind)
    student = student.eval()
    make = {"onnx": _onnx, "torch": _torch}[kind]
    try:
        # What torch's exporter warns of are its own parts.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content, call = make(student)
            _compare(student, call)
    except ConfigError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ConfigError(
            f"{student.name}: torch cannot export its model ({type(error).__name__}: {reason})"
        ) from error
    store.write(path, lambda scratch: scratch.write_bytes(content))


Call = Callable[[Tensor], Tensor]


def _example(student: Student, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    if student.features:
        rows = torch.randn(count, *student.shape, generator=generator, dtype=torch.float64)
        return (rows * student.std + student.mean).float()
    return torch.randint(
        256, (count, *student.shape), generator=generator, dtype=torch.uint8, device="cpu"
    )


def _program(student: Student) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(
        student, (_example(student, 3),), dynamic_shapes={"images": {0: batch}}
    )


def _torch(student: Student) -> tuple[bytes, Call]:
    program = _program(student)
    whole = io.BytesIO()
    torch.export.save(program, whole, extra_files={FACTS: json.dumps(facts(student))})
    whole.seek(0)
    call: Call = torch.export.load(whole).module()
    return whole.getvalue(), call


def _name_batch(graph: Any) -> None:
    """Call the one axis of any size by its name in `facts`, instead of torch's number of it."""
    own = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = axis.dim_param.replace(own, "batch")


def _onnx(student: Student) -> tuple[bytes, Call]:
    import onnx
    import onnxruntime

    made: Any = torch.onnx.export(
        _program(student),
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=OPSET,
        verbose=False,
    )
    model = made.model_proto
    _name_batch(model.graph)
    onnx.helper.set_model_props(model, facts(student))
    model.producer_name, model.producer_version = "distill", __version__
    model.doc_string = "; ".join(f"{key}: {value}" for key, value in facts(student).items())
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def call(images: Tensor) -> Tensor:
        [logits] = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(logits)

    return content, call


@torch.no_grad()
def _compare(student: Student, call: Call) -> None:
    """See that what was exported gives the student's logits, for batches of other sizes.

    Raises:
        ConfigError: it does not.
    """
    for count in (1, 5):
        images = _example(student, count)
        own, found = student(images), call(images)
        far = (own - found).abs().max() / own.abs().max().clamp(min=1e-30)
        if found.shape != own.shape or not far <= ROUNDING:
            raise ConfigError(
                f"{student.name}: its logits as exported differ by {float(far):.2g} of the "
                f"largest; allowed is {ROUNDING:g}"
            )
