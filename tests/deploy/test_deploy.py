"""Students in use: loaded for raw images, asked for the classes of files, exported."""

import csv
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import SMALL, Finished, forget, make_job
from PIL import Image
from torch import Tensor, nn

import distill
from distill.cli import commands
from distill.config import check_section
from distill.deploy import export, pictures
from distill.deploy.student import Student
from distill.deploy.student import trained as described
from distill.runs import results
from distill.runs.execute import execute
from distill.teachers.weights import finite_weights
from distill.training.build import fresh
from distill.training.evaluate import logits
from distill.training.inputs import normalised, read

HARD = ("loss=hard", "data.jitter=1", "model.dropout=0.3", "train.epochs=4")
CNN = ("model=cnn", "model.width=4")
Tool = Callable[..., Finished]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Tool:
    """A command with some arguments, in this process."""

    def call(name: str, *arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", [f"distill-{name}", *map(str, arguments)])
        capfd.readouterr()
        code, said = 0, ""
        try:
            getattr(commands, name)()
        except SystemExit as end:
            code, said = (end.code, "") if isinstance(end.code, int) else (1, str(end.code))
        captured = capfd.readouterr()
        return Finished(code, captured.out, captured.err + said)

    return call


def trained(directory: Path, *overrides: str) -> Path:
    """A small run in ``directory``."""
    directory.mkdir()
    execute([make_job(*HARD, *overrides)], [directory])
    return directory


@pytest.fixture
def run(home: Path) -> Path:
    """The directory of a small run."""
    return trained(home / "run")


def own_logits(directory: Path, images: Tensor) -> Tensor:
    """Logits (B, C) as the evaluation of this package makes them."""
    result, model = described(directory)
    data = check_section("data", result["config"]["data"])
    stack = fresh(model, read(data), "model", 1, 0, torch.device("cpu"))
    stack.load([finite_weights(directory / results.WEIGHTS)])
    reading = normalised(data, images, jitter=1)
    return logits(stack, reading, reading.centre, torch.float32)[0]


@pytest.mark.parametrize("model", [(), CNN])
def test_logits_are_those_of_the_evaluation(model: tuple[str, ...]) -> None:
    result = distill.run(*SMALL, *HARD, *model)
    student = distill.load(result.directory)
    data = read(make_job(*HARD).run.data)
    expected = own_logits(result.directory, data.test_inputs)
    found = student.logits(data.test_inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.std() > 0.1
    assert int((student.predict(data.test_inputs) != data.test_labels).sum()) == result.test_errors
    assert (student.shape, student.classes) == ((1, 12, 12), 4)
    assert student.config["data"]["mean"] == 0.3 and student.name == result["run"]
    assert not student.training


def test_each_form_of_an_image_is_the_same_image(run: Path) -> None:
    student = distill.load(str(run)).train()
    images = read(make_job(*HARD).run.data).test_inputs[:9]
    expected = student.logits(images)
    array = images.numpy()
    array.setflags(write=False)
    forms: list[Any] = [images[:, 0], images.float(), images.double(), array, array[:, 0].tolist()]
    forms[-1] = np.array(forms[-1], np.uint8)
    for form in forms:
        assert torch.equal(student.logits(form, batch_size=9), expected)
    torch.testing.assert_close(student.logits(images, batch_size=2), expected)
    assert student.training  # as it was
    assert not student.predict(images).requires_grad
    assert student(images).requires_grad
    torch.testing.assert_close(student.probabilities(images).sum(-1), torch.ones(9))


def test_pixels_from_0_to_1_are_told_of(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    student = distill.load(str(run))
    student.predict(torch.full((2, 12, 12), 255.0))
    student.predict(torch.zeros(2, 12, 12, dtype=torch.uint8))
    assert student.predict(torch.zeros(0, 12, 12)).shape == (0,)
    assert not caplog.messages
    student.predict(torch.full((2, 12, 12), 0.5))
    assert caplog.messages == ["pixels are at most 0.5, where 0 to 255 are wanted"]


@pytest.mark.parametrize("shape", [(3, 1, 11, 12), (3, 3, 12, 12), (12, 12), (3, 10, 12)])
def test_other_shapes_are_refused(shape: tuple[int, ...], run: Path) -> None:
    with pytest.raises(ValueError, match=r"images are \(.*; wanted is \(B, 1, 12, 12\) or"):
        distill.load(run)(torch.zeros(shape))
    with pytest.raises(ValueError, match="images are int64; wanted"):
        distill.load(run).predict(np.zeros((2, 12, 12), np.int64))


def test_a_student_needs_no_data(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: object) -> None:
        raise OSError("there is no data here")

    monkeypatch.setattr("distill.deploy.student.read", absent)
    assert distill.load(run).classes == 4


def test_results_of_earlier_versions_are_loaded(run: Path) -> None:
    before = results.read(run / "result.json")
    body = {k: v for k, v in before.items() if k not in ("shape", "classes")}
    (run / "history.csv").unlink()
    results.write(run, body, [])
    assert distill.load(run).shape == (1, 12, 12)


@pytest.mark.slow
def test_the_best_of_a_sweep_is_that_with_the_fewest_validation_errors() -> None:
    swept = ("data.validation=0.3", "optim.lr=0.0001,0.01,0.03", "loss=hard", "train.epochs=8")
    frame = distill.sweep(*SMALL, *swept)
    folder = frame.attrs["directory"]
    assert frame.val_errors.nunique() > 1
    fewest = frame.sort_values(["val_errors", "val_loss"]).run.iloc[0]
    assert distill.load(folder).name == fewest
    assert distill.load(folder, "val_accuracy").name in set(
        frame.run[frame.val_errors == frame.val_errors.min()]
    )
    assert distill.load(folder, best="test_loss").name == frame.sort_values("test_loss").run.iloc[0]
    for column in ("lr", "loss", "teacher_test_errors"):
        with pytest.raises(distill.ConfigError, match=f"best={column}; allowed are .*val_errors"):
            distill.load(folder, best=column)


def test_the_test_set_chooses_nothing_by_default(home: Path, run: Path) -> None:
    assert distill.load(home).name == distill.load(run).name  # the only one
    trained(home / "other", "seed=1")
    with pytest.raises(distill.ConfigError, match="best: 2 runs have no val_errors") as error:
        distill.load(home)
    assert "the test set should choose nothing" in str(error.value)
    assert distill.load(home, best="test_errors").classes == 4


def test_what_is_no_run_is_told_in_a_line(home: Path, run: Path) -> None:
    (home / "empty").mkdir()
    with pytest.raises(distill.ConfigError, match="empty: no complete run lies there"):
        distill.load(home / "empty")
    with pytest.raises(distill.ConfigError, match="none: there is no such folder"):
        distill.load(home / "none")
    weights = (run / results.WEIGHTS).read_bytes()
    (run / results.WEIGHTS).write_bytes(weights[:-4] + b"abcd")
    with pytest.raises(distill.ConfigError, match=r"student.safetensors is damaged"):
        distill.load(run)
    (run / results.WEIGHTS).unlink()
    with pytest.raises(distill.ConfigError, match=r"student.safetensors: No such file"):
        distill.load(run)
    body = {**results.read(run / "result.json"), "status": "diverged", "reason": "it did"}
    results.write(run, body, [])
    with pytest.raises(distill.ConfigError, match="it has no student, since it is diverged"):
        distill.load(run)
    (run / "result.json").write_text("{}")
    with pytest.raises(distill.ConfigError, match=r"result.json is damaged"):
        distill.load(run)


def test_files_of_each_kind_are_asked_for_their_class(run: Path, home: Path, tool: Tool) -> None:
    data = read(make_job(*HARD).run.data)
    array = data.test_inputs[:6].numpy()
    Image.fromarray(array[0, 0]).save(home / "grey.png")
    Image.fromarray(array[1, 0]).convert("RGB").save(home / "colour.bmp")
    clear = np.dstack([np.full((12, 12, 3), 255, np.uint8), array[2, 0]])
    Image.fromarray(clear).save(home / "clear.png")
    np.save(home / "some.npy", array[3:])
    np.savez(home / "more.npz", a=array[0, 0], b=array[1:3, 0].astype(np.float64))
    np.save(home / "last.npy", array[3:4].transpose(0, 2, 3, 1))
    given = ("grey.png", "colour.bmp", "clear.png", "some.npy", "more.npz", "last.npy")
    files = [home / n for n in given]
    done = tool("predict", run, *files, "--csv", home / "out.csv")
    assert done.code == 0, done.err
    rows = [line.split("\t") for line in done.out.splitlines()]
    names = [row[0].removeprefix(f"{home}/") for row in rows]
    ends = [f"some.npy[{n}]" for n in range(3)] + [
        "more.npz:a[0]",
        "more.npz:b[0]",
        "more.npz:b[1]",
        "last.npy[0]",
    ]
    assert names == ["grey.png", "colour.bmp", "clear.png", *ends]
    likely = distill.load(run).probabilities(array).max(-1)
    for row, n in zip(rows, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3], strict=True):
        assert row[1] == str(int(likely.indices[n]))
        assert float(row[2]) == pytest.approx(float(likely.values[n]), abs=1e-3)
    with (home / "out.csv").open() as file:
        assert [*csv.reader(file)] == [["file", "class", "probability"], *rows]


def damaged(home: Path) -> dict[str, str]:
    """Files that hold no image for a student of 12 x 12 grey pixels, and what is said of them."""
    Image.new("L", (10, 12)).save(home / "size.png")
    Image.fromarray(np.zeros((12, 12), np.uint16)).save(home / "deep.png")
    pages = [Image.new("L", (12, 12), n) for n in (0, 99)]
    pages[0].save(home / "pages.gif", save_all=True, append_images=pages[1:])
    (home / "text.png").write_text("no picture")
    np.save(home / "shape.npy", np.zeros((2, 3, 12, 12), np.uint8))
    np.save(home / "range.npy", np.full((12, 12), 256.0))
    np.save(home / "whole.npy", np.zeros((12, 12), np.int32))
    np.save(home / "objects.npy", np.array([{}]), allow_pickle=True)
    (home / "zip.npz").write_bytes(b"PK\x03\x04 and no more")
    np.save(home / "empty.npy", np.zeros((0, 12, 12), np.uint8))
    return {
        "size.png": "it is 10 x 12 pixels; wanted is 12 x 12",
        "deep.png": "its pixels have more than 8 bits",
        "pages.gif": "it holds 2 pictures",
        "text.png": "it is no picture that Pillow reads",
        "shape.npy": "it is (2, 3, 12, 12); wanted is (N, 1, 12, 12)",
        "range.npy": "it holds numbers that are not from 0 to 255",
        "whole.npy": "it is of int32; wanted is uint8",
        "objects.npy": "not a readable .npy file (Object arrays cannot be loaded",
        "zip.npz": "not a readable .npz file (",
        "empty.npy": "empty.npy: there is no image in it",
        "absent.png": "No such file or directory",
    }


def test_what_is_no_image_is_one_line(run: Path, home: Path, tool: Tool) -> None:
    np.save(home / "good.npy", np.zeros((12, 12), np.uint8))
    for name, line in damaged(home).items():
        good = [] if name.startswith("empty") else [home / "good.npy"]
        done = tool("predict", run, *good, home / name)
        assert (done.code, done.out) == (1, ""), name
        assert line in done.err and len(done.err.splitlines()) == 1, done.err
        assert name in done.err or not good
    done = tool("predict", home / "none", home / "good.npy")
    assert done.code == 1 and "none: there is no such folder" in done.err


def test_colours_are_read_as_the_channels_want_them(home: Path) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    Image.fromarray(pixels).save(home / "p.png")
    [(name, image)] = pictures.images(home / "p.png", (3, 4, 5))
    assert name == str(home / "p.png")
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))
    [(_, image)] = pictures.images(home / "p.png", (4, 4, 5))
    assert (image[3] == 255).all()
    with pytest.raises(ValueError, match=r"a picture has no 2 channels; give .npy"):
        next(pictures.images(home / "p.png", (2, 4, 5)))


@pytest.mark.slow
@pytest.mark.parametrize("model", [(), CNN])
def test_an_onnx_file_gives_the_same_logits(model: tuple[str, ...], home: Path, tool: Tool) -> None:
    trained(home / "run", *model)
    done = tool("export", "run", "--format", "onnx", "--out", home / "student.onnx")
    assert done.code == 0, done.err
    session = onnxruntime.InferenceSession(home / "student.onnx")
    student = distill.load("run")
    images = read(make_job(*HARD).run.data).test_inputs
    for count in (1, 2, 77):
        [found] = session.run(["logits"], {"images": images[:count].numpy()})
        expected = student.logits(images[:count])
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    assert [session.get_inputs()[0].shape, session.get_outputs()[0].shape] == [
        ["batch", 1, 12, 12],
        ["batch", 4],
    ]
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["input"] == "images: uint8 (batch, 1, 12, 12)"
    assert facts["classes"] == "4" and facts["run"] == student.name
    assert "0 to 255" in facts["range"]
    assert all(f"{key}: {value}" in done.out for key, value in facts.items())
    [opset] = [o.version for o in onnx.load(home / "student.onnx").opset_import if not o.domain]
    assert opset == export.OPSET
    assert sorted(path.name for path in home.glob("*student*")) == ["student.onnx"]


def test_a_torch_file_gives_the_same_logits(run: Path, home: Path, tool: Tool) -> None:
    done = tool("export", run, "--format", "torch")
    assert done.code == 0, done.err
    student = distill.load(run)
    extra = {export.FACTS: ""}
    program = torch.export.load(home / f"{student.name}.pt2", extra_files=extra).module()
    images = read(make_job(*HARD).run.data).test_inputs
    for count in (1, 50):
        torch.testing.assert_close(program(images[:count]), student(images[:count]))
    assert json.loads(extra[export.FACTS]) == export.facts(student)


class Curious(nn.Module):
    """A model whose way hangs on its images, which no exporter can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2] if x.sum() > 0 else -x.flatten(1)[:, :2]


class Forgetful(nn.Linear):
    """A model that exports as something else than it computes."""

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x.flatten(1))
        return z + 1 if torch.compiler.is_exporting() else z


def test_what_cannot_be_exported_leaves_no_file(home: Path) -> None:
    given: Any = {"shape": (1, 2, 2), "classes": 2, "mean": 0.0, "std": 1.0}
    path = home / "student.pt2"
    path.write_text("before")
    with pytest.raises(distill.ConfigError, match="torch cannot export its model") as error:
        export.write(Student(Curious(), **given), "torch", path)
    assert "\n" not in str(error.value)
    with pytest.raises(distill.ConfigError, match="its logits as exported differ"):
        export.write(Student(Forgetful(4, 2), **given), "torch", path)
    assert path.read_text() == "before" and [*home.iterdir()] == [path]


def test_a_missing_package_is_named(run: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "onnx" in name else found(name)
    )
    done = tool("export", run, "--format", "onnx")
    assert done.code == 1 and done.out == ""
    assert done.err.endswith("pip install 'distill-sweep[export]'")
    assert "onnx, onnxruntime, onnxscript" in done.err


@pytest.mark.slow
def test_a_model_of_ones_own_with_statistics_is_loaded_and_exported(
    home: Path,
    tool: Tool,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (home / "normed_of_mine.py").write_text(
        "from math import prod\n"
        "from torch import nn\n"
        "class Normed(nn.Sequential):\n"
        "    def __init__(self, inputs, classes, *, width: int):\n"
        "        first, last = nn.Linear(prod(inputs), width), nn.Linear(width, classes)\n"
        "        super().__init__(nn.Flatten(), first, nn.BatchNorm1d(width), nn.ReLU(), last)\n"
    )
    (home / "mine" / "model").mkdir(parents=True)
    (home / "mine" / "model" / "normed.yaml").write_text(
        "_target_: normed_of_mine.Normed\nwidth: 8\n"
    )
    given = ("data=synthetic", "loss=hard", "train.epochs=4", "train.batch_size=64")
    own = ["normed_of_mine"]
    result = distill.run(*given, "model=normed", config_dir=home / "mine", modules=own)
    student = result.load(modules=own)
    data = read(make_job().run.data)
    wrong = student.predict(data.test_inputs) != data.test_labels
    assert int(wrong.sum()) == result.test_errors
    assert dict(student.named_buffers())["model.2.num_batches_tracked"] > 0
    export_to = ("--format", "onnx", "--out", home / "own.onnx")
    assert "normed_of_mine" in tool("export", result.directory, *export_to).err
    done = tool("export", result.directory, *export_to, "--module", "normed_of_mine")
    assert done.code == 0, done.err
    [found] = onnxruntime.InferenceSession(home / "own.onnx").run(
        ["logits"], {"images": data.test_inputs.numpy()}
    )
    expected = student.logits(data.test_inputs)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    assert not [m for m in caplog.messages if "code of your own" in m]
    code = (home / "normed_of_mine.py").read_text()
    (home / "normed_of_mine.py").write_text(code.replace("nn.ReLU", "nn.Sigmoid"))
    forget()
    sys.modules.pop("normed_of_mine")
    other = result.load(modules=own)
    assert not torch.allclose(other.logits(data.test_inputs), expected, atol=0.01)
    assert [m for m in caplog.messages if "code of your own (normed_of_mine.Normed) is not" in m]
    capfd.readouterr()
    teacher = ("teacher=checkpoint", "model@teacher.model=normed", "model.width=4")
    path = f"teacher.path={result.directory}"
    distill.run(*SMALL[:1], *teacher, path, config_dir=home / "mine", modules=own)
    told = capfd.readouterr().err
    assert told.count(f"{path}: code of your own (normed_of_mine.Normed) is not that which") == 1
