"""Each file of a teacher cache, a sweep and a study, truncated, emptied or filled with noise."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import TUNE, Cli, forget, same
from test_resume import SWEEP, signals, weights

from distill.runs import results

COMMAND = (*SWEEP, "model.width=4,8", "loss.temperature=1,2")
FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "noise": lambda content: bytes(b ^ 0x55 for b in content),
    "changed": lambda content: content[:-9] + bytes(b ^ 1 for b in content[-9:]),
}
# The others take as long, and differ in nothing that is read.
OTHERS = ("truncated", "empty", "noise")
KINDS = ["changed", *(pytest.param(kind, marks=pytest.mark.endurance) for kind in OTHERS)]
FILES = [
    *("data/teachers/*/manifest.json", "data/teachers/*/*.safetensors", "data/teachers/*.lock"),
    *("sweep/multirun.yaml", "sweep/summary.csv", "sweep/.lock"),
    *("sweep/*/result.json", "sweep/*/history.csv", "sweep/*/student.safetensors"),
    *("sweep/*/distill.log", "sweep/*/.hydra/*.yaml", "sweep/*/checkpoint.safetensors"),
]
UNREAD = (".lock", ".log", "multirun.yaml", "hydra.yaml", "overrides.yaml", "config.yaml")


def undamaged() -> pd.DataFrame:
    return pd.read_csv(Path("sweep") / results.SUMMARY).drop(columns="seconds")


def damage(path: Path, fault: str) -> None:
    path.write_bytes(FAULTS[fault](path.read_bytes()))


@pytest.mark.endurance
@pytest.mark.slow
@pytest.mark.parametrize("fault", KINDS)
def test_a_damaged_file_is_named_or_made_again_and_no_figure_is_wrong(
    fault: str, cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signals(patch, 6 * 4 + 10, 15)  # in the second stack
        cli(*COMMAND)
    for folder in ("sweep", "data"):
        shutil.copytree(folder, home / "before" / folder)
    cli(*COMMAND)
    whole, students = undamaged(), weights()
    tried = set()
    for pattern in FILES:
        for path in sorted((home / "before").glob(pattern)):
            kind = path.name if "teachers" not in path.parts else f"{path.parent.name}/{path.name}"
            if kind in tried and path.name not in (results.RESULT, results.HISTORY):
                continue  # one of a kind; of results, those of complete and of interrupted runs
            tried.add(kind)
            own = path.relative_to(home / "before")
            for folder in ("sweep", "data"):
                shutil.rmtree(folder)
                shutil.copytree(home / "before" / folder, folder)
            damage(own, fault)
            forget()
            done = cli(*COMMAND)
            assert done.code == 0, (own, done.err)
            pd.testing.assert_frame_equal(undamaged(), whole)
            assert same(weights(), students, rounded=True), own
            said = own.name in done.out + done.err
            again = own.exists() and own.read_bytes() != FAULTS[fault](path.read_bytes())
            assert said or again or not own.exists() or own.name.endswith(UNREAD), own
    assert len(tried) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("fault", KINDS)
def test_a_study_with_damaged_files_ends_in_the_same_figures(fault: str, cli: Cli) -> None:
    cli(*TUNE)
    before = pd.read_csv("tune/summary.csv").drop(columns="seconds")
    shutil.copytree("tune", "before")
    status = before.set_index("run")["status"]
    chosen = before["run"][before["val_errors"].notna() & (before["status"] == "complete")].iloc[0]
    stopped = status.index[status == "stopped"][0]
    for name in (
        *("optimization_results.yaml", "experiment/best.yaml", "summary.csv"),
        *(f"{chosen}/result.json", f"{chosen}/history.csv", f"{chosen}/student.safetensors"),
        f"{stopped}/result.json",
    ):
        shutil.rmtree("tune")
        shutil.copytree("before", "tune")
        damage(Path("tune") / name, fault)
        forget()
        done = cli(*TUNE)
        if name.startswith(stopped):  # alone it would not be stopped
            assert done.code == 1
            assert f"{stopped} failed: result.json is damaged" in done.out
            assert "lost its result" in done.err
            continue
        assert done.code == 0, (name, done.err)
        after = pd.read_csv("tune/summary.csv").drop(columns="seconds")
        pd.testing.assert_frame_equal(after, before)
