"""Teachers in files that anybody wrote: weights of torch.save in any wrapping, soft targets."""

import json
import os
import pickle
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL, Cli, composed, forget, make_job
from safetensors.torch import save_file
from torch import Tensor

from distill.config import ConfigError, parse
from distill.config import Teacher as TeacherConfig
from distill.models import torchvision
from distill.runs.execute import execute
from distill.runs.job import Job
from distill.runs.summaries import read_summary
from distill.system.tensors import plain
from distill.teachers import find, weights
from distill.teachers.cache import Teacher
from distill.teachers.ensembles import average
from distill.teachers.given import FLOOR
from distill.teachers.targets import way
from distill.training.inputs import read

State = dict[str, Tensor]
READ = ("teacher=checkpoint", "teacher.model.width=16", "precision=fp32")


class Payload:
    """What touches the file HARM when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch HARM",)


def state_of(seed: int = 0, *overrides: str) -> State:
    """Weights of the small teacher."""
    job = make_job(*overrides)
    assert job.run.teacher.model is not None
    torch.manual_seed(seed)
    module = job.run.teacher.model(inputs=job.data.shape, classes=job.data.classes)
    return dict(module.state_dict())


def reading(path: object, *overrides: str) -> Job:
    config = composed(*SMALL[:2], *READ, f"teacher.path={path}", "train.epochs=1", *overrides)
    return Job(parse(config))


def run_in(home: Path) -> Path:
    (home / "run").mkdir(exist_ok=True)
    return home / "run"


def soft_of(job: Job) -> Tensor:
    forget()
    return soft_by(job, job.run.teacher)


def soft_by(job: Job, teacher: TeacherConfig) -> Tensor:
    own = way(job.setting, teacher, 9)
    return find.soft_targets(job.setting, teacher, 5.0, own)


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: value for name, value in state.items()}


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "best": torch.tensor(3.0)},
    "net": lambda state: {"net": state, "optimizer": {"state": {0: {"m": torch.ones(3)}}}},
    "nested": lambda state: {"state": {"model": state}, "config": {"lr": 0.1, "names": ["a"]}},
    "module": prefixed("module."),
    "compiled": prefixed("module._orig_mod."),
    "lightning": lambda state: {"state_dict": prefixed("model.backbone.")(state)},
    "averaged": lambda state: {"n_averaged": torch.tensor(4), **prefixed("module.")(state)},
    "half": lambda state: {name: value.bfloat16().float() for name, value in state.items()},
}


@pytest.mark.table
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_of_torch_are_read_in_any_wrapping(wrapping: str, home: Path) -> None:
    state = state_of()
    if wrapping == "half":
        state = {name: value.bfloat16() for name, value in state.items()}
    torch.save(WRAPPINGS[wrapping](state), home / "teacher.pth")
    job = reading("teacher.pth")
    found = find.find_teacher(job.setting, job.run.teacher, 5.0)
    assert isinstance(found, Teacher)
    for name, value in found.stack.state(0).items():
        assert torch.equal(value, state[name].float())


def test_old_archives_and_wrapped_safetensors_are_read(home: Path) -> None:
    state = state_of()
    torch.save({"model": state}, home / "old.pt", _use_new_zipfile_serialization=False)
    save_file(prefixed("_orig_mod.")(state), home / "t")
    assert torch.equal(soft_of(reading("old.pt")), soft_of(reading("t")))


def test_buffers_are_read_and_a_count_may_lack(offered: Callable[..., Job], home: Path) -> None:
    from torch import nn

    def normed(inputs: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs[0], 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(400, classes)
        )

    module = normed((1, 12, 12), 4)
    module(torch.rand(9, 1, 12, 12))
    state = {n: v for n, v in module.state_dict().items() if "num_batches" not in n}
    torch.save({"module." + n: v for n, v in state.items()}, home / "t.pth")
    job = offered("teacher.model", normed, "teacher.path=t.pth", "precision=fp32")
    found = find.find_teacher(job.setting, job.run.teacher, 5.0)
    assert isinstance(found, Teacher)
    own = found.stack.state(0)
    assert torch.equal(own["1.running_mean"], state["1.running_mean"])
    assert own["1.num_batches_tracked"] == 0
    # Of other classes and channels it is told by name.
    torch.save(normed((3, 12, 12), 7).state_dict(), home / "t.pth")
    said = "its model has 7 classes and reads images of 3 channels, data=synthetic has 4 classes"
    with pytest.raises(ConfigError, match=said):
        offered("teacher.model", normed, "teacher.path=t.pth")


def test_a_prefix_of_some_names_stays() -> None:
    mixed = {"model.a": torch.ones(1), "loss.b": torch.ones(1)}
    assert plain(mixed, {"a": 0}) == mixed


def test_the_directory_of_a_run_is_a_teacher(home: Path) -> None:
    [student] = execute([make_job("model.width=6")], [run_in(home)])
    job = reading("run", "teacher.model.width=6")
    found = find.find_teacher(job.setting, job.run.teacher, 5.0)
    assert found.test_errors == student["test_errors"]
    forget()
    assert job.digest == reading("run/student.safetensors", "teacher.model.width=6").digest
    line = "teacher.path=run: its run had another model; set teacher.model.width=6$"
    with pytest.raises(ConfigError, match=line):
        reading("run")
    line = "set model@teacher.model=mlp teacher.model.width=6$"
    with pytest.raises(ConfigError, match=line):
        Job(
            parse(
                composed(
                    "data=synthetic",
                    "teacher=checkpoint",
                    "teacher.path=run",
                    "model@teacher.model=cnn",
                    "teacher.model.width=6",
                )
            )
        )
    (home / "run" / "student.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="is damaged, or not what the run wrote"):
        reading("run", "teacher.model.width=6")


@pytest.mark.table
@pytest.mark.parametrize(
    "model",
    [
        ("model=resnet8", "model.width=0.25"),
        ("model=resnet8", "model.depth=14", "model.width=0.25"),
        ("model=torchvision", "model.name=shufflenet_v2_x0_5"),
    ],
    ids=["named", "of another depth", "torchvision"],
)
def test_the_remedy_for_another_model_mends_it(model: tuple[str, ...], home: Path) -> None:
    small = ("data=synthetic", "data.examples=32", "data.size=16", "precision=fp32")
    student = parse(composed(*small, *model, "train.epochs=1", "loss=hard"))
    execute([Job(student)], [run_in(home)])
    teacher = ("teacher=checkpoint", "teacher.path=run", "model.width=8")
    with pytest.raises(ConfigError, match="its run had another model; set ") as error:
        Job(parse(composed(*small, *teacher)))
    remedy = str(error.value).partition("; set ")[2].split()
    Job(parse(composed(*small, *teacher, *remedy)))


@pytest.mark.slow
def test_a_run_that_began_from_a_file_is_a_teacher(home: Path) -> None:
    small = ("data=synthetic", "data.examples=32", "data.size=16", "precision=fp32")
    name = "shufflenet_v2_x0_5"
    torch.save(torchvision((1, 16, 16), 4, name=name).state_dict(), home / "w.pth")
    model = ("model=torchvision", f"model.name={name}", "model.pretrained=w.pth")
    execute([Job(parse(composed(*small, *model, "train.epochs=1", "loss=hard")))], [run_in(home)])
    (home / "w.pth").unlink()
    own = ("model@teacher.model=torchvision", f"teacher.model.name={name}", "teacher.path=run")
    Job(parse(composed(*small, "teacher=checkpoint", *own, "model.width=8")))
    line = "set model@teacher.model=torchvision teacher.model.name=shufflenet_v2_x0_5$"
    with pytest.raises(ConfigError, match=line):
        Job(parse(composed(*small, "teacher=checkpoint", "teacher.path=run", "model.width=8")))


def test_a_run_that_read_inputs_otherwise_is_refused(home: Path) -> None:
    execute([make_job("model.width=6", "data.mean=0.5", "data.std=null")], [run_in(home)])
    six = "teacher.model.width=6"
    with pytest.raises(
        ConfigError, match=r"its run read inputs by other .*; set data.mean=0.5"
    ) as e:
        reading("run", six)
    remedy = shlex.split(str(e.value).partition("; set ")[2])
    reading("run", six, *remedy)
    reading("run", six, "data.mean=0.5", "data.std=null")
    path = home / "run" / "result.json"
    facts = json.loads(path.read_text()) | {"class_names": ["a", "b"]}
    path.write_text(json.dumps(facts))
    reading("run", six, *remedy)  # data without names say nothing of them


def test_numbers_of_each_channel_are_compared_with_one_for_all() -> None:
    assert weights._reading([[0.5, 2.0], [0.5, 2.0]], (0.5, 2.0)) == [
        "'data.mean=[0.5,2.0]'",
        "'data.std=[0.5,2.0]'",
    ]
    assert weights._reading([[0.5, 0.5], 2.0], (0.5, [2.0, 2.0])) == []
    assert weights._reading([0.5, [2.0, 3.0]], (0.5, [2.0, 3.0, 4.0])) == ["'data.std=[2.0,3.0]'"]


def test_a_file_that_changes_is_read_again_in_the_same_process(home: Path) -> None:
    logits = said_of(labels_of()[0])
    found = []
    for scale in (1, 2):
        np.save(home / "t.npy", scale * logits.numpy())
        job = taught("t.npy")
        own = way(job.setting, job.run.teacher, 9)
        teacher = find.find_teacher(job.setting, job.run.teacher, 5.0)
        soft = find.soft_targets(job.setting, job.run.teacher, 5.0, own)
        torch.testing.assert_close(soft[:, 0], scale * logits)
        found.append((job.digest, teacher.digest))
    assert len({*found[0], *found[1]}) == 4
    state = state_of()
    for n in (1, 2):
        torch.save({name: n * value for name, value in state.items()}, home / "t.pth")
        job = reading("t.pth")
        stack = find.find_teacher(job.setting, job.run.teacher, 5.0)
        assert isinstance(stack, Teacher)
        for name, value in stack.stack.state(0).items():
            assert torch.equal(value, n * state[name])


BAD_WEIGHTS: dict[str, tuple[Callable[[State], Any], str]] = {
    "code": (lambda s: {"state_dict": s, "x": Payload()}, "system, and reading it would run code"),
    "list": (lambda s: [*s.values()], "it holds no state dict; save one"),
    "tensor": (lambda _: torch.zeros(3), "it holds no state dict; save one"),
    "two": (lambda s: {"student": s, "teacher": s}, "several state dicts in it fit, student, tea"),
    "none": (lambda _: {"epoch": 3}, "it holds no state dict; save one"),
    "nan": (lambda s: {n: v * torch.nan for n, v in s.items()}, "not finite in float32"),
    "half-inf": (lambda s: {n: v.half() + torch.inf for n, v in s.items()}, "not finite in fl"),
    "sparse": (
        lambda s: {n: v.to_sparse() if v.ndim > 1 else v for n, v in s.items()},
        "is not a dense tensor",
    ),
    "more": (lambda s: s | {"more": torch.zeros(3)}, "more has shape [3], the model wants none"),
    "some-prefixed": (
        lambda s: {("module." if "0" in n else "") + n: v for n, v in s.items()},
        "has shape none, the model wants",
    ),
    "wide": (lambda _: state_of(0, "teacher.model.width=9"), "set teacher.model to its archi"),
}


def files(home: Path) -> list[Path]:
    return sorted(path for path in home.rglob("*") if path.is_file())


@pytest.fixture
def refused(cli: Cli, home: Path) -> Callable[..., str]:
    """The line with which `distill` refuses some arguments; nothing is left."""

    def call(*arguments: str) -> str:
        before = files(home)
        done = cli("data=synthetic", "model.width=8", *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done.err
        assert files(home) == before
        return str(done.err)

    return call


@pytest.mark.table
@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_a_line(case: str, refused: Callable[..., str], home: Path) -> None:
    change, said = BAD_WEIGHTS[case]
    torch.save(change(state_of()), home / "t.pth")
    error = refused(*READ, "teacher.path=t.pth")
    assert error.startswith("teacher.path=t.pth: ")
    assert said in error
    assert not (home / "HARM").exists()


def test_a_cut_or_pickled_file_is_a_line(refused: Callable[..., str], home: Path) -> None:
    torch.save(state_of(), home / "whole.pth")
    (home / "cut.pth").write_bytes((home / "whole.pth").read_bytes()[:-200])
    (home / "pickle.pth").write_bytes(pickle.dumps({"a": Payload()}, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), home / "script.pt")
    for name, said in (
        ("cut.pth", "not a readable file of torch.save"),
        ("pickle.pth", "torch.save"),
        ("script.pt", "not a readable file of torch.save"),
    ):
        assert said in refused(*READ, f"teacher.path={name}")
    assert not (home / "HARM").exists()


# Soft targets.


def labels_of(*overrides: str) -> tuple[Tensor, Tensor]:
    data = read(make_job(*overrides).run.data)
    return data.train_labels, data.test_labels


def said_of(labels: Tensor, seed: int = 0) -> Tensor:
    """Logits (N, 4) of somebody who is mostly right."""
    noise = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(seed))
    return noise + 3 * torch.nn.functional.one_hot(labels, 4)


def targets(path: str, *overrides: str) -> tuple[str, ...]:
    return ("teacher=targets", f"teacher.path={path}", *overrides)


def taught(path: str, *overrides: str) -> Job:
    config = composed(*SMALL[:2], "train.epochs=1", "precision=fp32", *targets(path, *overrides))
    return Job(parse(config))


WRITERS: dict[str, Callable[[Path, Tensor], object]] = {
    "t.npy": lambda path, z: np.save(path, z.numpy()),
    "double.npy": lambda path, z: np.save(path, z.double().numpy().astype(">f8")),
    "t.npz": lambda path, z: np.savez(path, logits=z.numpy()),
    "t.safetensors": lambda path, z: save_file({"train": z}, path),
    "t.pt": lambda path, z: torch.save(z, path),
    "dict.pth": lambda path, z: torch.save({"train": z}, path),
    "t.csv": lambda path, z: pd.DataFrame(z.numpy()).to_csv(path, index=False),
    "bare.csv": lambda path, z: pd.DataFrame(z.numpy()).to_csv(path, index=False, header=False),
    "words.csv": lambda path, z: pd.DataFrame(z.numpy(), columns=list("abcd")).to_csv(
        path, index=False
    ),
    "t.parquet": lambda path, z: pd.DataFrame(z.numpy()).rename(columns=str).to_parquet(path),
    "T.CSV": lambda path, z: pd.DataFrame(z.numpy())[[2, 0, 3, 1]].to_csv(path, index=False),
}


@pytest.mark.table
@pytest.mark.parametrize("name", WRITERS)
def test_soft_targets_are_read_from_any_kind_of_file(name: str, home: Path) -> None:
    logits = said_of(labels_of()[0])
    WRITERS[name](home / name, logits)
    found = soft_of(taught(name))
    assert found.shape == (256, 1, 4)
    torch.testing.assert_close(found[:, 0], logits)


def test_soft_targets_serve_each_view_or_have_their_own(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    labels, _ = labels_of()
    each = torch.stack([said_of(labels, view) for view in range(9)], 1)
    torch.save(each, home / "each.pt")
    torch.save(each[:, 0].clone(), home / "all.pt")
    assert torch.equal(soft_of(taught("each.pt", "data.jitter=1")), each)
    assert not caplog.records
    found = soft_of(taught("all.pt", "data.jitter=1"))
    assert found.shape == (256, 9, 4) and found.stride(1) == 0
    assert [r.message for r in caplog.records] == [
        "the same soft targets serve each of the 9 views of an example"
    ]
    with pytest.raises(ConfigError, match=r"it has soft targets of 9 views, and this data makes 1"):
        taught("each.pt")


def test_probabilities_become_logits_with_a_floor(home: Path) -> None:
    labels, _ = labels_of()
    probabilities = said_of(labels).softmax(-1)
    probabilities[0] = torch.tensor([1.0, 0, 0, 0])
    torch.save(probabilities, home / "p.pt")
    found = soft_of(taught("p.pt", "teacher.kind=probabilities"))[:, 0]
    torch.testing.assert_close(found.softmax(-1), probabilities)
    torch.testing.assert_close(found[0], torch.tensor([1, FLOOR, FLOOR, FLOOR]).log())


@pytest.mark.parametrize("way", ["beside", "apart", "named"])
def test_test_targets_give_the_teachers_errors(way: str, home: Path) -> None:
    train, test = labels_of()
    own = said_of(test)
    parts = {"train": said_of(train), "test": own}
    np.savez(home / "both.npz", train=parts["train"].numpy(), test=parts["test"].numpy())
    for name, value in parts.items():
        np.save(home / f"{name}.npy", value.numpy())
    np.savez(home / "test.npz", test=parts["test"].numpy())
    apart = "test.npy" if way == "apart" else "test.npz"
    more = () if way == "beside" else (f"teacher.test_path={apart}",)
    job = taught("both.npz" if way == "beside" else "train.npy", *more)
    [result] = execute([job], [run_in(home)])
    assert result["teacher_test_errors"] == (own.argmax(-1) != test).sum() > 0
    assert result["teacher"] == "targets"


def test_the_content_decides_and_not_the_place(home: Path) -> None:
    logits = said_of(labels_of()[0])
    for name, value in (("a.npy", logits), ("b.npy", logits), ("c.npy", 2 * logits)):
        np.save(home / name, value.numpy())
    base = taught("a.npy")
    assert base.digest == taught("b.npy", "teacher.name=other").digest
    assert base.digest != taught("c.npy").digest
    np.save(home / "test.npy", said_of(labels_of()[1]).numpy())
    assert base.digest != taught("a.npy", "teacher.test_path=test.npy").digest


def test_another_order_is_told(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    logits = said_of(labels_of()[0])
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    torch.save(logits, home / "right.pt")
    torch.save(logits[order], home / "wrong.pt")
    soft_of(taught("right.pt"))
    assert not caplog.records
    soft_of(taught("wrong.pt"))
    [record] = caplog.records
    assert record.message.startswith("teacher.path=wrong.pt: its largest values agree with ")
    assert "may be in another order" in record.message


BAD_TARGETS: dict[str, tuple[Callable[[Tensor], Any], tuple[str, ...], str]] = {
    "short": (lambda z: z[1:], (), "train has 255 rows, data=synthetic has 256 training examples"),
    "held": (
        lambda z: z[: 256 - 64],
        ("data.validation=0.25",),
        "in whose order they must be: the 64 that data.validation holds out need theirs, too",
    ),
    "columns": (lambda z: z[:, :3], (), "train has 3 columns, data=synthetic has 4 classes"),
    "flat": (lambda z: z[:, 0], (), "train is (256,); wanted is (256, 4), or (256, V, 4)"),
    "deep": (lambda z: z[:, None, None], (), "train is (256, 1, 1, 4); wanted is"),
    "number": (lambda _: torch.tensor(3.0), (), "train is (); wanted is"),
    "nan": (lambda z: z * torch.nan, (), "train holds nan in row 0, counted from 0"),
    "inf": (lambda z: z + torch.inf, (), "train holds inf in row 0, counted from 0"),
    "huge": (lambda z: z.double() * 1e300, (), "inf in row 0, counted from 0; wanted are numbers"),
    "negative": (lambda z: z, ("teacher.kind=probabilities",), "which is no probability"),
    "sums": (lambda z: z.sigmoid(), ("teacher.kind=probabilities",), "sums to "),
    "unsaid": (lambda z: z.softmax(-1), (), "it holds probabilities; set teacher.kind=probab"),
    "complex": (lambda z: z.to(torch.complex64), (), "of type torch.complex64; wanted are real"),
    "named": (lambda z: {"a": z, "b": z}, (), "it has arrays of a, b; wanted are train and, if"),
    "test-alone": (lambda z: {"test": z}, (), "it has an array test alone; wanted is train"),
    "test": (lambda z: {"train": z, "test": z}, (), "test has 256 rows, data=synthetic has 128"),
    "text": (lambda _: {"train": "text"}, (), "its array train is of type str; wanted are num"),
    "code": (lambda _: Payload(), (), "reading it would run code, so it is not read"),
    "views": (lambda z: z[:, None].repeat(1, 3, 1), ("data.jitter=1",), "3 views, and data.jitter"),
}


@pytest.mark.table
@pytest.mark.parametrize("case", BAD_TARGETS)
def test_bad_targets_are_a_line(case: str, refused: Callable[..., str], home: Path) -> None:
    change, overrides, said = BAD_TARGETS[case]
    content = change(said_of(labels_of()[0]))
    torch.save(content, home / "t.pt")
    error = refused(*targets("t.pt"), *overrides)
    assert error.startswith("teacher.path=t.pt: ")
    assert said in error


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "t.txt": (b"1,2", "what kind of file this is, its suffix must say: .npy, .npz, .safetensors"),
    "t.npy": (b"\x93NUMPY", "not a readable .npy file"),
    "empty.npy": (b"", "not a readable .npy file"),
    "p.npy": (pickle.dumps(Payload()), "not a readable .npy file"),
    "t.npz": (b"PK\x03\x04nonsense", "not a readable .npz file"),
    "t.csv": (b"", "not a readable .csv file (No columns"),
    "text.csv": (b"a,b,c,d\n" + b"1,2,x,4\n" * 256, "its column c holds "),
    "ragged.csv": (b"a,b\n1,2\n1,2,3,4\n", "not a readable .csv file"),
    "none.csv": (b"a,b,c,d\n" + b"1,2,,4\n" * 256, "train holds nan in row 0"),
    "t.safetensors": (bytes(range(256)), "not a readable safetensors file"),
    "t.pt": (bytes(range(256)), "not a readable safetensors file, nor of torch.save"),
}


@pytest.mark.table
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_of_targets_is_a_line(
    name: str, refused: Callable[..., str], home: Path
) -> None:
    content, said = BAD_FILES[name]
    (home / name).write_bytes(content)
    error = refused(*targets(name))
    assert error.startswith(f"teacher.path={name}: ")
    assert said in error
    assert not (home / "HARM").exists()


def test_parquet_without_pyarrow_is_a_line(
    refused: Callable[..., str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    (home / "t.parquet").write_bytes(b"PAR1")
    assert "pip install 'distill-sweep[parquet]'" in refused(*targets("t.parquet"))


BAD_SECTIONS = {
    "teacher=targets teacher.path=null": "teacher: path=null: kind=logits is read from one file",
    "teacher=targets teacher.path=[a,b]": "teacher: path=['a', 'b']: kind=logits is read from one",
    "teacher=targets teacher.path=3": "teacher.path=3: Input should be a valid string, or a list",
    "teacher=targets teacher.path=[a,3]": "teacher.path=['a', 3]: Input should be a valid string",
    "teacher=targets teacher.path=a teacher.kind=odds": "teacher.kind=odds: Input should be 'wei",
    "teacher=checkpoint teacher.path=a +teacher.kind=logits": "teacher: kind=logits: these have no",
    "teacher=checkpoint teacher.path=a +teacher.test_path=b": "teacher: test_path=b: only soft tar",
    "teacher=checkpoint teacher.path=[a,b] teacher.weights=[1]": (
        "teacher: weights=[1.0]: these are 1 numbers for 2 teachers; give one for each, or null"
    ),
    "teacher=ensemble teacher.weights=[1,0]": "teacher.weights.1=0: Input should be greater than 0",
    "teacher.average=median": "teacher.average=median: Input should be 'logits' or 'probabilities'",
    "teacher=targets teacher.path=nowhere.npy": "teacher.path=nowhere.npy: there is no file",
}


@pytest.mark.table
@pytest.mark.parametrize("overrides", BAD_SECTIONS)
def test_a_section_that_says_too_much_or_too_little(
    overrides: str, refused: Callable[..., str]
) -> None:
    assert refused(*overrides.split()).startswith(BAD_SECTIONS[overrides])


# Several teachers.


def test_an_average_is_what_it_says() -> None:
    z = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(average(z), z.mean(0))
    torch.testing.assert_close(average(z, [2, 2, 2]), z.mean(0))
    torch.testing.assert_close(average(z, [3, 1, 0.5]), (3 * z[0] + z[1] + 0.5 * z[2]) / 4.5)
    p = z.softmax(-1)
    torch.testing.assert_close(average(z, None, "probabilities").exp(), p.mean(0))
    weighted = (0.7 * p[0] + 0.2 * p[1] + 0.1 * p[2]).log()
    torch.testing.assert_close(average(z, [7, 2, 1], "probabilities"), weighted)


@pytest.mark.slow
def test_several_files_are_an_ensemble(home: Path) -> None:
    torch.save(state_of(0), home / "a.pth")
    save_file(state_of(1), home / "b.safetensors")
    alone = [soft_of(reading(name)) for name in ("a.pth", "b.safetensors")]
    names = "[a.pth,b.safetensors]"
    torch.testing.assert_close(soft_of(reading(names)), torch.stack(alone).mean(0))
    told = ("teacher.weights=[0.7,0.3]", "teacher.average=probabilities")
    found = soft_of(reading(names, *told))
    torch.testing.assert_close(
        found.softmax(-1), 0.7 * alone[0].softmax(-1) + 0.3 * alone[1].softmax(-1)
    )
    digests = {reading(names, *more).digest for more in ((), told[:1], told)}
    assert len({*digests, reading("a.pth").digest}) == 4
    assert reading("[a.pth]").digest == reading("a.pth").digest
    assert torch.equal(soft_of(reading("[a.pth]")), alone[0])
    [result] = execute([reading(names, *told)], [run_in(home)])
    assert result["teacher_test_errors"] > 0


def test_members_that_are_trained_have_weights_too(home: Path) -> None:
    base = ("teacher=ensemble", "teacher.members=2", "precision=fp32", "teacher.train.epochs=1")
    more = ("teacher.weights=[3,1]", "teacher.average=probabilities")
    forget()
    job = make_job(*base, *more)
    found = soft_by(job, job.run.teacher)
    members = job.run.teacher.apart()
    alone = [soft_by(job, member).softmax(-1) for member in members]
    torch.testing.assert_close(found.softmax(-1), (3 * alone[0] + alone[1]) / 4)
    assert len([*(home / "data" / "teachers").glob("*/teacher.safetensors")]) == 2


# Of the command line.


@pytest.mark.slow
def test_targets_teach_a_sweep_that_resumes_and_is_reported(cli: Cli, home: Path) -> None:
    train, test = labels_of()
    np.savez(home / "t.npz", train=said_of(train).numpy(), test=said_of(test).numpy())
    command = (
        *("-m", *SMALL[:2], "train.epochs=2", *targets("t.npz", "teacher.name=forest")),
        *("loss.temperature=2,4", "loss.alpha=0.5,1", "model.width=4,8", "hydra.sweep.dir=sweep"),
    )
    done = cli(*command, "hydra.launcher.workers=2")
    assert done.code == 0, done.err
    assert "in 2 stacks of 4" in done.out and "teacher forest on synthetic: " in done.out
    again = cli(*command, "loss.temperature=2,8")
    assert again.code == 0, again.err
    frame = read_summary("sweep")
    assert frame["status"].tolist() == ["complete"] * 12
    assert frame["teacher"].unique().tolist() == ["forest"]
    assert frame["teacher_digest"].nunique() == 1


FOREIGN = """
from pathlib import Path
import numpy as np, torch
def cancer():
    from sklearn.datasets import load_breast_cancer
    x, y = load_breast_cancer(return_X_y=True)
    x, y = torch.from_numpy(x), torch.from_numpy(y).long()
    return x[::2], y[::2], x[1::2], y[1::2]
"""


@pytest.mark.slow
def test_a_gradient_boosting_teaches_a_student(cli: Cli, home: Path) -> None:
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import GradientBoostingClassifier

    x, y = load_breast_cancer(return_X_y=True)
    boosting = GradientBoostingClassifier(n_estimators=20, random_state=0).fit(x[::2], y[::2])
    parts = {"train": boosting.predict_proba(x[::2]), "test": boosting.predict_proba(x[1::2])}
    np.savez(home / "boosting.npz", train=parts["train"], test=parts["test"])
    (home / "mine.py").write_text(FOREIGN)
    (home / "conf" / "data").mkdir(parents=True)
    (home / "conf" / "data" / "cancer.yaml").write_text(
        "_target_: mine.cancer\nroot: null\njitter: 0\nvalidation: 0.0\nmean: null\nstd: null\n"
    )
    done = cli(
        *("--module=mine", "data=cancer", "model.width=8", "train.epochs=30", "optim.lr=0.01"),
        *targets("boosting.npz", "teacher.kind=probabilities", "teacher.name=boosting"),
    )
    assert done.code == 0, done.err
    wrong = int((parts["test"].argmax(1) != y[1::2]).sum())
    assert f", teacher {wrong};" in done.out


def test_a_network_of_torchvision_is_read_from_its_file(home: Path) -> None:
    module = torchvision(inputs=(1, 32, 32), classes=4, name="squeezenet1_1")
    state = {f"module.{name}": value for name, value in module.state_dict().items()}
    torch.save({"net": state, "epoch": 3}, home / "t.pth")
    named = ("teacher=torchvision", "teacher.model.name=squeezenet1_1", "teacher.path=t.pth")
    job = Job(parse(composed("data=synthetic", "data.size=32", "data.examples=64", *named)))
    found = find.find_teacher(job.setting, job.run.teacher, 5.0)
    assert isinstance(found, Teacher)
    for name, value in found.stack.state(0).items():
        assert torch.equal(value, module.state_dict()[name])
    torch.save(torchvision((1, 32, 32), 9, name="squeezenet1_1").state_dict(), home / "t.pth")
    with pytest.raises(ConfigError, match="its model has 9 classes, data=synthetic has 4 classes"):
        Job(parse(composed("data=synthetic", "data.size=32", *named)))
