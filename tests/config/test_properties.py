"""Properties that hold for any input: stacks, digests, names, and the summary of any results."""

import copy
import json
import math
import os
import random
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pytest
from conftest import SMALL, composed
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, read_write

from distill.config import parse
from distill.config.strict import in_float32
from distill.runs import results, summaries
from distill.runs.columns import COLUMNS, SHOWN
from distill.runs.job import Job
from distill.sweeps import names, plan
from distill.sweeps.plan import Stack
from distill.system import store
from distill.system.conf import CONF

many = settings(
    max_examples=75,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)

Values = tuple[tuple[str, Any], ...]  # of dotted keys


@cache
def base(root: str, *overrides: str) -> dict[str, Any]:
    """The config of a small run in the data root of the test that asks."""
    config = OmegaConf.to_container(composed(*SMALL, *overrides), resolve=True)
    assert isinstance(config, dict) and config["data"]["root"] == root
    return {str(key): value for key, value in config.items()}


def config_of(values: Values = (), loss: str = "kd") -> dict[str, Any]:
    """The config of a small run with other values."""
    config = copy.deepcopy(base(os.environ["DISTILL_DATA"], f"loss={loss}"))
    for dotted, value in values:
        *parents, key = dotted.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        section[key] = value
    return config


def job_of(config: Mapping[str, Any]) -> Job:
    return Job(parse(OmegaConf.create(dict(config))))


@cache
def job_with(root: str, loss: str, values: Values) -> Job:
    """A job that is made once for all cases."""
    assert root == os.environ["DISTILL_DATA"]
    return job_of(config_of(values, loss))


def shuffled(value: Any, order: random.Random) -> Any:
    """The same value, the keys of all of its objects in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(item, order)) for key, item in value.items()]
        order.shuffle(items)
        return dict(items)
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


MEMORY = Path("/dev/shm")


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of one case; in memory where there is such a place, since a disk takes its time."""
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else Path.cwd()) as folder:
        yield Path(folder)


# Stacks

orders = st.randoms(use_true_random=False)
shared = {"model.width": (8, 9), "train.epochs": (1, 2), "seed": (0, 1)}
own = {"optim.lr": (1e-3, 1e-2), "optim.weight_decay": (0.0, 0.1)}
soft = {"loss.temperature": (1.0, 2.0, 10.0), "loss.alpha": (0.5, 1.0)}


def specs(loss: str, kinds: int) -> st.SearchStrategy[tuple[str, Values]]:
    alike = {key: pool[:kinds] for key, pool in shared.items()}
    pools = {**alike, **own, **(soft if loss == "kd" else {})}
    values = st.tuples(*(st.tuples(st.just(k), st.sampled_from(p)) for k, p in pools.items()))
    return st.tuples(st.just(loss), values)


@st.composite
def sweeps(draw: st.DrawFn) -> tuple[list[Job], dict[str, Hashable], list[list[Job]]]:
    """Distinct jobs, what keeps them apart by their names, and stacks that have begun."""
    several = st.lists(specs("kd", 2) | specs("hard", 2), unique=True, max_size=12)
    large = st.lists(specs("kd", 1), unique=True, min_size=6, max_size=14)
    few = draw(several | large)
    jobs = [job_with(os.environ["DISTILL_DATA"], *spec) for spec in few]
    apart: dict[str, Hashable] = {
        job.name: draw(st.sampled_from([None, None, "a", ()])) for job in jobs
    }
    places = [draw(st.sampled_from([None, None, None, 0, 1])) for _ in jobs]
    begun = [[j for j, p in zip(jobs, places, strict=True) if p == n] for n in (0, 1)]
    return jobs, apart, [own for own in begun if own]


@pytest.mark.slow
@many
@given(sweeps(), st.integers(1, 8), st.integers(1, 6), orders)
def test_stacks_are_a_partition_that_is_as_coarse_as_it_may_be(
    sweep: tuple[list[Job], dict[str, Hashable], list[list[Job]]],
    most: int,
    workers: int,
    order: random.Random,
) -> None:
    jobs, apart, started = sweep

    def made(jobs: list[Job], workers: int) -> tuple[list[Stack], list[Stack]]:
        begun = [Stack(tuple(jobs.index(job) for job in own)) for own in started]
        names = [apart[job.name] for job in jobs]
        found = plan.stacks(jobs, most, workers, names.__getitem__, begun)
        assert found[: len(begun)] == begun
        return found, found[len(begun) :]

    everything, new = made(jobs, workers)
    assert sorted(n for stack in everything for n in stack.jobs) == list(range(len(jobs)))
    for stack in new:
        members = [jobs[n] for n in stack.jobs]
        assert 1 <= len(members) <= most
        assert len({(job.run.shared, apart[job.name]) for job in members}) == 1
        rates = [(job.run.optim.lr, job.run.optim.weight_decay) for job in members]
        assert rates == sorted(rates)
    assert len(everything) >= min(workers, len(started) + sum(len(s.jobs) for s in new))

    free = [job for job in jobs if not any(job in own for own in started)]
    groups = Counter((job.run.shared, apart[job.name]) for job in free)
    assert len(made(jobs, 1)[1]) == sum(ceil(n / most) for n in groups.values())

    def named(jobs: list[Job]) -> set[frozenset[str]]:
        return {frozenset(jobs[n].name for n in stack.jobs) for stack in made(jobs, workers)[0]}

    assert named(order.sample(jobs, len(jobs))) == named(jobs)


# Digests

shares = st.sampled_from([0.0, 0.25, 0.5]) | st.floats(0, 0.9).map(abs).filter(in_float32)
positive = st.sampled_from([1.0, 4.0]) | st.floats(1e-6, 1e30)
small = st.integers(1, 20)
DECIDES: dict[str, st.SearchStrategy[Any]] = {
    "data.jitter": st.integers(0, 4),
    "data.validation": shares,
    "data.mean": st.sampled_from([0.0, -0.5]) | st.floats(1e-3, 9),
    "data.std": st.floats(1e-3, 1e3),
    "data.examples": st.integers(64, 80),
    "data.size": st.integers(8, 12),
    "model.width": small,
    "model.depth": small,
    "model.dropout": shares,
    "model.input_dropout": shares,
    "model.max_norm": st.none() | positive,
    "optim.lr": positive,
    "optim.weight_decay": shares,
    "optim.schedule": st.sampled_from(["constant", "linear", "cosine"]),
    "optim.warmup": shares,
    "optim.beta1": shares,
    "optim.beta2": shares,
    "optim.eps": positive,
    "train.epochs": small,
    "train.batch_size": small,
    "train.normalise": st.booleans(),
    "train.clip_norm": st.none() | positive,
    "train.ema": st.none() | st.floats(0.1, 0.9),
    "seed": st.integers(0, 2**63 - 1),
    "precision": st.sampled_from(["auto", "fp32", "bf16"]),
}
DECIDES_KD = {
    "loss.temperature": positive,
    "loss.alpha": shares,
    "loss.smoothing": st.none() | st.floats(0.1, 0.9),
    "teacher.jitter": st.integers(0, 4),
    "teacher.seed": st.integers(0, 2**63 - 1),
    "teacher.model.width": small,
    "teacher.model.dropout": shares,
    "teacher.optim.lr": positive,
    "teacher.optim.schedule": st.sampled_from(["constant", "linear", "cosine"]),
    "teacher.train.epochs": small,
    "teacher.train.batch_size": small,
}
ASIDE = {
    "data.root": st.sampled_from(["elsewhere", "a/b"]),
    "device": st.sampled_from(["auto", "cpu"]),
    "resume": st.booleans(),
    "checkpoint.every": positive,
    "teacher.cache": st.sampled_from([None, "cache"]),
    "teacher.name": st.text(max_size=5),
}


def some(
    keys: Mapping[str, st.SearchStrategy[Any]], least: int = 0, most: int = 4
) -> st.SearchStrategy[Values]:
    """Values for a few of the keys."""
    one = st.sampled_from(sorted(keys)).flatmap(lambda key: st.tuples(st.just(key), keys[key]))
    return st.lists(one, min_size=least, max_size=most, unique_by=lambda kv: kv[0]).map(tuple)


def integers(value: Any) -> Any:
    """The same value with integers for whole floats, as a yaml may have them."""
    if isinstance(value, dict):
        return {key: integers(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


@pytest.mark.slow
@many
@given(some(DECIDES | DECIDES_KD), orders)
def test_equal_configs_have_equal_digests(values: Values, order: random.Random) -> None:
    config = config_of(values)
    first, second = job_of(config), job_of(shuffled(integers(config), order))
    assert first.run.model_dump() == second.run.model_dump()
    assert (first.digest, first.name) == (second.digest, second.name)
    assert first.run.digest({"a": "1", "b": "2"}) == second.run.digest({"b": "2", "a": "1"})


@pytest.mark.slow
@many
@given(some(DECIDES | DECIDES_KD), some(DECIDES | DECIDES_KD, 1, 1))
def test_a_change_of_what_decides_a_student_changes_its_digest_and_name(
    values: Values, change: Values
) -> None:
    config, other = config_of(values), config_of(values + change)
    assume(config != other)
    first, second = job_of(config), job_of(other)
    assert first.digest != second.digest
    assert first.name != second.name
    assert first.run.digest({}) != second.run.digest({})
    assert first.run.digest({}) != first.run.digest({"teacher": "1"})


@pytest.mark.slow
@many
@given(some(DECIDES), some(ASIDE, 1), some(DECIDES_KD), st.booleans())
def test_what_says_nothing_of_a_student_changes_neither_digest_nor_name(
    values: Values, aside: Values, teacher: Values, none: bool
) -> None:
    assert job_of(config_of(values)).digest == job_of(config_of(values + aside)).digest
    teacher = tuple((key, value) for key, value in teacher if key.startswith("teacher."))
    config = config_of(values + aside + teacher, "hard")
    if none:
        config["teacher"] = {"name": "none", "path": None, "cache": None}
    hard, plain = job_of(config), job_of(config_of(values, "hard"))
    assert (hard.digest, hard.name) == (plain.digest, plain.name)


def exact(value: Any) -> Hashable:
    """What tells a JSON value from all others."""
    match value:
        case dict():
            return frozenset((key, exact(item)) for key, item in value.items())
        case list():
            return tuple(map(exact, value))
    return type(value), repr(value)


alike = [1, 1.0, True, "1", "1.0", "true", 0, 0.0, False, None, "null", "", 10, 1e1, "a", '"a"']
scalars = st.sampled_from(alike) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
documents = st.recursive(
    scalars | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["a", "b", "1", ""]) | st.text(max_size=2), inner)
    ),
    max_leaves=6,
)


@many
@given(documents, documents, st.sampled_from(alike), st.sampled_from(alike), orders)
def test_json_values_have_equal_digests_exactly_when_they_are_equal(
    first: Any, second: Any, one: Any, other: Any, order: random.Random
) -> None:
    assert store.digest(shuffled(first, order)) == store.digest(first)
    assert store.digest(json.loads(json.dumps(first))) == store.digest(first)
    for a, b in ((first, second), (one, other), ({"a": [one]}, {"a": [other]}), (first, [first])):
        assert (store.digest(a) == store.digest(b)) == (exact(a) == exact(b))


# Names

SAFE = re.compile(r"[A-Za-z0-9._+-]+")
near = st.sampled_from([1.0, 1 + 1e-9, math.nextafter(1, 2), 1e6, 1e-5, 1e30])
wide = {
    "loss.temperature": near | positive,
    "loss.alpha": st.sampled_from([0.0, 2.0**-126, 0.1, 0.1 + 1e-9, 1.0]) | shares,
    "model.width": st.integers(1, 10**3),
    "seed": st.sampled_from([0, 2**63 - 1]) | st.integers(0, 9),
}


@pytest.mark.slow
@many
@given(some(wide), some(wide | {"optim.lr": positive}))
def test_names_of_runs_are_safe_and_equal_exactly_when_their_digests_are(
    first: Values, change: Values
) -> None:
    one, other = job_of(config_of(first)), job_of(config_of(first + change))
    assert SAFE.fullmatch(one.name) and len(one.name.encode()) <= 255
    assert one.name == job_of(config_of(first)).name
    assert (one.name == other.name) == (one.digest == other.digest)
    assert (one.name == other.name) == (one.run == other.run)


@pytest.fixture
def sweep_config(monkeypatch: pytest.MonkeyPatch) -> DictConfig:
    """Hydra's config of a sweep, whose overrides a case may set."""
    with initialize_config_dir(str(CONF)):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", [], RunMode.MULTIRUN)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", config)
    return config


swept_keys = st.sampled_from(
    [
        "seed",
        "model",
        "loss.temperature",
        "+new.key",
        "++optim.lr",
        "model@teacher.model",
        "resumed",
    ]
) | st.from_regex(r"(\+|\+\+|~)?[a-z_][a-z0-9_$-]{0,9}([/.@:][a-z$]{1,9}){0,3}", fullmatch=True)
swept_values = st.sampled_from(
    [
        "1",
        "1,2",
        "2,1",
        "interval(0,1)",
        "tag(log,interval(1,40))",
        "[3,4]",
        "a/b",
        "'é,ß'",
        "1," * 300,
    ]
) | st.text(max_size=30).filter(lambda text: "${" not in text)
overrides = st.lists(
    st.tuples(swept_keys | st.just("a" * 300), swept_values).map("=".join), max_size=7
).filter(lambda all_: not any(re.match(r"[+~]*(resume|checkpoint)\b", o) for o in all_))
run_differently = st.lists(
    st.sampled_from(
        [
            "resume=false",
            "resume=true",
            "++resume=false",
            "checkpoint.every=1",
            "checkpoint={every: 2}",
        ]
    )
)


@pytest.mark.slow
@settings(many, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(overrides, overrides, run_differently, orders)
def test_names_of_sweeps_are_safe_and_equal_exactly_when_what_is_swept_is(
    sweep_config: DictConfig,
    first: list[str],
    second: list[str],
    aside: list[str],
    order: random.Random,
) -> None:
    def name(task: list[str]) -> str:
        with read_write(sweep_config.hydra.overrides):
            sweep_config.hydra.overrides.task = task
        return names.sweep_name()

    own = name(first)
    assert SAFE.fullmatch(own) and len(own.encode()) <= 255
    again = [*first, *aside]
    order.shuffle(again)
    assert name(again) == own
    assert (name(second) == own) == (Counter(second) == Counter(first))
    for place in range(len(first)):
        assert name([*first[:place], first[place] + "0", *first[place + 1 :]]) != own
        assert name(first[:place] + first[place + 1 :]) != own


# The summary

TEXT = {"reason", "data", "model", "teacher", "teacher_digest", "loss", "transfer", "optimizer"}
TEXT |= {"transfer_classes", "precision", "device", "version"}
NUMBERS = set(COLUMNS) - TEXT - {"run", "status", "directory", "seed"}
# Without NUL and carriage returns, which the reasons of runs never hold.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=20)
reasons = texts | st.sampled_from(['a "b", c\nd', "NA", "null", " [/x] :x:", "7,", "x" * 9000])
numbers = st.none() | st.integers(-(2**53), 2**53) | st.floats()
parts = st.sampled_from(["a", "a-b", "b", "A", ".h", "c,d", '"', "é", "0"]) | texts.filter(
    lambda text: (
        text not in ("", ".", "..", results.EARLIER) and "/" not in text and "." not in text[1:]
    )
)
keys = st.sampled_from(["model", "loss", "width", "depth", "_target_", "seed", "é,"]) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r."), min_size=1, max_size=4
)
leaf = numbers | st.booleans() | reasons | st.lists(st.integers(), max_size=3)
sections = st.recursive(
    st.dictionaries(keys, leaf, max_size=3), lambda inner: st.dictionaries(keys, inner, max_size=2)
)
facts = st.fixed_dictionaries(
    {
        "run": texts,
        "status": st.sampled_from(["complete", "failed", "diverged", "stopped", "interrupted"]),
        "config": st.dictionaries(keys, sections, max_size=3),
    },
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "test_errors_by_class": st.lists(st.integers()),
        **{key: st.none() | reasons for key in sorted(TEXT)},
        **dict.fromkeys(sorted(NUMBERS), numbers),
    },
)
trees = st.dictionaries(st.lists(parts, min_size=1, max_size=3).map(tuple), facts, max_size=3)


def finite(value: Any) -> Any:
    """A value as JSON can have it."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flat(config: Mapping[str, Any], *path: str) -> dict[str, Any]:
    """The leaves of a config by their dotted keys, those that the summary shows."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, *path, key)
        elif key != "_target_" and ".".join([*path, key]) not in SHOWN:
            found[".".join([*path, key])] = value
    return found


def reads(cell: str, value: Any, exactly: bool) -> bool:
    """Whether a cell of the file says a value of the result."""
    match value:
        case None:
            return cell == ""
        case str() | bool():
            return cell == str(value)
        case list():
            return cell == " ".join(map(str, value))
        case int() if exactly:
            return cell == str(value)
    return bool(float(cell) == value)


def put(folder: Path, tree: Mapping[tuple[str, ...], dict[str, Any]]) -> None:
    for place, result in tree.items():
        directory = folder.joinpath(*place)
        directory.mkdir(parents=True, exist_ok=True)
        if result.get("width") is None:  # a run that was trained before
            (directory / results.RESULT).write_text('{"run": "earlier", "config": {}}')
            results.put_aside(directory)
        (directory / results.WEIGHTS).write_bytes(b"weights")
        results.write(directory, result, [{"epoch": 1, "train_loss": 0.5}])


@pytest.mark.slow
@many
@given(trees)
def test_any_results_make_a_summary_that_reads_back(
    tree: dict[tuple[str, ...], dict[str, Any]],
) -> None:
    with scratch() as folder:
        put(folder, tree)
        frame = summaries.write_summary(folder)
        text = (folder / results.SUMMARY).read_bytes()
        summaries.write_summary(folder)
        assert (folder / results.SUMMARY).read_bytes() == text
        read = pd.read_csv(folder / results.SUMMARY, dtype=str, keep_default_na=False)
        for place, result in tree.items():
            found = results.finished(folder.joinpath(*place), result["run"])
            assert (found is not None) == (result["status"] in results.ENDED)
            if found is not None:
                assert {key: found[key] for key in result} == finite(result)
            assert results.finished(folder.joinpath(*place), result["run"] + "x") is None
    rows = {place: flat(result["config"]) | result for place, result in tree.items()}
    others = sorted({key for result in tree.values() for key in flat(result["config"])})
    some = {key for result in tree.values() for key in result if finite(result[key]) is not None}
    known = [name for name, column in COLUMNS.items() if column.always or name in some]
    assert list(frame.columns) == list(read.columns) == [*known, *others]
    places = sorted(tree, key=lambda place: (*place, results.RESULT))
    assert read["directory"].tolist() == ["/".join(place) for place in places]
    assert frame["directory"].tolist() == read["directory"].tolist()
    for place, (_, cells) in zip(places, read.iterrows(), strict=True):
        for key in set(read.columns) - {"directory", "pareto"}:  # which others decide
            value = finite(rows[place].get(key))
            assert reads(str(cells[key]), value, key == "seed"), (key, value, cells[key])


WHOLE = {"run": "a", "status": "complete", "seed": 2**60 + 1, "test_errors": 7, "config": {"a": 1}}
damages = (
    st.binary()
    | documents.map(lambda value: json.dumps(value).encode())
    | st.floats(0, 1, exclude_max=True)
    | st.sampled_from([b"[" * 10**5, b'{"config":' * 10**5, b"\xef\xbb\xbf{}", b"9" * 5000])
)


@pytest.mark.slow
@many
@given(damages)
def test_no_damage_of_a_result_stops_a_summary_or_gives_a_number(damage: bytes | float) -> None:
    with scratch() as folder:
        put(folder, {("a",): {**WHOLE, "width": 1}, ("b",): {**WHOLE, "width": 1, "run": "b"}})
        path = folder / "a" / results.RESULT
        content = path.read_bytes().rstrip()
        # A share stands for the beginning of the file, as a full disk leaves it.
        cut = damage if isinstance(damage, bytes) else content[: int(damage * len(content))]
        path.write_bytes(cut)
        frame = summaries.write_summary(folder)
        read = pd.read_csv(folder / results.SUMMARY, dtype=str)
        assert results.finished(folder / "a", "a") is None
        assert results.finished(folder / "b", "b") is not None
    said = {"run": "a", "status": "failed", "reason": "result.json is damaged", "directory": "a"}
    assert frame.iloc[0].dropna().to_dict() == read.iloc[0].dropna().to_dict() == said
    assert read["seed"][1] == str(2**60 + 1)
