"""What the report shows of a study: its trials, its best, how much each key matters, the gain."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from distill.report.contents import CHOICES, LINEAR, LOG, Best, Gain, Importance, Study, Trial
from distill.report.trials import named
from distill.runs import results
from distill.runs.columns import Status
from distill.sweeps.compose import in_folder, override
from distill.tuning import EXPERIMENT, best, storage

NUMBER = "number"  # of a trial in the study that it was in, where it is in another now
FEWEST = 10  # trials by which anything can be said of how much keys matter
SEEDS = 5  # of the best, and of the defaults, for an interval
STATES = {
    TrialState.COMPLETE: str(Status.COMPLETE),
    TrialState.PRUNED: str(Status.STOPPED),
    TrialState.RUNNING: str(Status.RUNNING),
}
ABOUT = re.compile(r"# trial (\d+) of (.*?): .*; trained on all .*? (\d+|None) test errors")
# Keys that say where a run was made, or how: they are no part of what it is.
ASIDE = {"data.root", "device", "precision", "teacher.cache", "teacher.path", "teacher.test_path"}


@dataclass(frozen=True)
class Experiment:
    """What a study wrote of one of its best: of which trial, and what it is."""

    stem: str
    study: str
    number: int
    test_errors: int | None
    config: DictConfig


def told(folder: Path, study: optuna.Study, missing: Sequence[str] = ()) -> Study:
    """What there is to tell of a study whose best are written into the sweep's ``folder``."""
    objectives = tuple(study.metric_names or [f"objective {n}" for n in range(_many(study))])
    trials = [t for t in study.get_trials(deepcopy=False) if storage.SURPLUS not in t.user_attrs]
    space = _space(trials)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    chosen = best.of(study) if complete else []
    written = {e.number: e for e in experiments(folder) if e.study == study.study_name}
    return Study(
        study.study_name,
        objectives,
        {key: _scale(span) for key, span in space.items()},
        tuple(_trial(folder, trial, objectives) for trial in trials),
        tuple(_best(folder, _number(trial), written) for trial in chosen),
        tuple(_importances(trials, space, objectives)),
        _gain(folder, study, chosen, objectives, written),
        tuple(missing),
    )


def _many(study: optuna.Study) -> int:
    return len(study.directions)


def _space(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """What was searched, in the order in which it was asked for."""
    return {key: span for trial in reversed(trials) for key, span in trial.distributions.items()}


def _scale(span: BaseDistribution) -> str:
    if isinstance(span, CategoricalDistribution):
        return CHOICES
    return LOG if getattr(span, "log", False) else LINEAR


def _number(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get(NUMBER, trial.number))


def _trial(folder: Path, trial: FrozenTrial, objectives: Sequence[str]) -> Trial:
    reason = str(trial.user_attrs.get("reason", ""))
    status, found, rest = reason.partition(": ")
    known = bool(found) and status in set(Status)
    state = STATES.get(trial.state, trial.state.name.lower())
    if trial.state == TrialState.FAIL:
        state = status if known else str(Status.FAILED)
    values = tuple(trial.values or ()) if trial.state == TrialState.COMPLETE else ()
    if trial.state == TrialState.PRUNED:
        values = _stopped(folder, trial, objectives)
    return Trial(_number(trial), state, dict(trial.params), values, rest if known else reason)


def _stopped(folder: Path, trial: FrozenTrial, objectives: Sequence[str]) -> tuple[float, ...]:
    """What a trial had when it was stopped, as far as the study or its files know."""
    if len(objectives) == 1 and trial.intermediate_values:
        return (trial.intermediate_values[max(trial.intermediate_values)],)
    try:
        place = folder / str(trial.user_attrs["directory"]) / results.RESULT
        return tuple(float(results.read(place)[name]) for name in objectives)
    except (OSError, *results.DAMAGED):
        return ()


def _best(folder: Path, number: int, written: Mapping[int, Experiment]) -> Best:
    if number not in written:
        return Best(number)
    found = written[number]
    line = in_folder(folder, f"experiment={found.stem}")
    return Best(number, found.test_errors, line)


def experiments(folder: Path) -> Iterator[Experiment]:
    """The experiments of the best, in the order of their names."""
    for path in sorted((folder / EXPERIMENT).glob("best*.yaml")):
        try:
            about = ABOUT.search(path.read_text(encoding="utf-8"))
            config = OmegaConf.load(path)
        except (OSError, ValueError, OmegaConfBaseException, *results.DAMAGED):
            continue
        if about is None or not isinstance(config, DictConfig):
            continue
        config.pop("defaults", None)
        number, study, errors = about.groups()
        tested = None if errors == "None" else int(errors)
        yield Experiment(path.stem, study, int(number), tested, config)


# How much each key matters.


def _importances(
    trials: Sequence[FrozenTrial], space: Mapping[str, BaseDistribution], objectives: Sequence[str]
) -> Iterator[Importance]:
    """By the complete trials; and by all at the first rung, where few are left of those."""
    alike = [trial for trial in trials if trial.distributions == space]
    complete = [trial for trial in alike if trial.state == TrialState.COMPLETE]
    for n, name in enumerate(objectives):
        values = [trial.values[n] for trial in complete]
        of = f"{named(name)} of complete trials"
        yield _importance(of, complete, values, space)
    first = min((min(t.intermediate_values) for t in alike if t.intermediate_values), default=None)
    if first is not None and any(trial.state == TrialState.PRUNED for trial in alike):
        reached = [t for t in alike if math.isfinite(t.intermediate_values.get(first, math.nan))]
        values = [trial.intermediate_values[first] for trial in reached]
        of = f"{named(objectives[0])} after epoch {first}, before any trial was stopped"
        yield _importance(of, reached, values, space)


def _importance(
    of: str,
    trials: Sequence[FrozenTrial],
    values: Sequence[float],
    space: Mapping[str, BaseDistribution],
) -> Importance:
    """The share of each key in what varies, by Optuna's fANOVA (Hutter et al. 2014).

    A key that was searched on a log scale is judged on it, which the evaluator alone does not.
    """
    if len(space) < 2:
        return Importance(of, len(trials), {}, "there is one key, so that nothing is to be shared.")
    if len(trials) < FEWEST:
        few = f"too few to say; it takes {FEWEST}."
        return Importance(of, len(trials), {}, few)
    if min(values) == max(values):
        return Importance(of, len(trials), {}, "all are the same, whatever the keys.")
    # Late, with scikit-learn, which takes seconds.
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    copy = optuna.create_study()
    for trial, value in zip(trials, values, strict=True):
        params = {key: _even(span, trial.params[key]) for key, span in space.items()}
        spans = {key: _evened(span) for key, span in space.items()}
        copy.add_trial(create_trial(params=params, distributions=spans, value=value))
    try:
        shares = get_param_importances(copy, evaluator=FanovaImportanceEvaluator(seed=0))
    except ImportError:
        return Importance(of, len(trials), {}, "it takes the package scikit-learn.")
    return Importance(of, len(trials), dict(shares))


def _evened(span: BaseDistribution) -> BaseDistribution:
    """A distribution on the scale on which it was searched."""
    if _scale(span) != LOG:
        return span
    return FloatDistribution(_even(span, span.low), _even(span, span.high))  # type: ignore[attr-defined]


def _even(span: BaseDistribution, value: Any) -> Any:
    return math.log(value) if _scale(span) == LOG else value


# What the best gained over the defaults.


def _gain(
    folder: Path,
    study: optuna.Study,
    chosen: Sequence[FrozenTrial],
    objectives: Sequence[str],
    written: Mapping[int, Experiment],
) -> Gain:
    """Test errors of the best and of the defaults, seed by seed, of the runs in a folder."""
    tested = [trial for trial in chosen if _number(trial) in written]
    if not tested:
        return Gain({}, note="None of the best was trained on all data yet: nothing is to compare.")
    defaults = dict(study.user_attrs.get(storage.DEFAULTS, {}))
    first = written[_number(tested[0])]
    lost = [k for k in tested[0].params if k not in defaults or _is_group(first.config, k)]
    if lost:
        return Gain(defaults, note=_unknown(lost, study))
    runs = [*_tested(folder)]
    without = _by_seed(runs, first.config, defaults)
    trial = _compared(tested, objectives, without)
    found = written[_number(trial)]
    with_it = _by_seed(runs, found.config, {})
    pairs = [
        (float(with_it[key]["test_errors"]), float(without[key]["test_errors"]))
        for key in sorted(with_it.keys() & without.keys())
        if _apart(with_it[key], without[key]) <= defaults.keys()
    ]
    note = "" if pairs else (
        f"No run of the defaults ({_said(defaults)}) on all data lies in the folder. This trains "
        "one, and the report then compares:"
    )  # fmt: skip
    lines = tuple(_commands(folder, found, defaults, len(pairs)))
    return Gain(defaults, _number(trial), tuple(pairs), lines, note)


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _is_group(config: DictConfig, key: str) -> bool:
    return isinstance(OmegaConf.select(config, key), DictConfig)


def _unknown(lost: Sequence[str], study: optuna.Study) -> str:
    """Why there are no defaults to compare with."""
    if storage.DEFAULTS not in study.user_attrs:
        return (
            "What the defaults of the searched keys are is not known from here: an earlier version "
            "did not keep it in the study, or the study is lost. The study's command, given "
            "again, keeps it, and trains nothing that is there."
        )
    return f"There is no default to compare with of {', '.join(lost)}."


def _tested(folder: Path) -> Iterator[dict[str, Any]]:
    """The results of the complete runs in a folder that looked at the test set."""
    for path in results.paths(folder):
        try:
            result = results.read(path)
            if result["status"] == Status.COMPLETE and result.get("test_errors") is not None:
                yield result
        except (OSError, *results.DAMAGED):
            continue


def _by_seed(
    runs: Sequence[dict[str, Any]], config: DictConfig, values: Mapping[str, Any]
) -> dict[Any, dict[str, Any]]:
    """The runs of a config with other ``values`` in it, by their seeds and machines."""
    found = {}
    for run in runs:
        seed = run["config"]["seed"]
        if alike(run, _changed(config, {**values, "seed": seed})):
            found[(seed, str(run.get("precision")), str(run.get("device")))] = run
    return found


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    """The keys in which two runs differ, but for where they ran."""
    sides = [dict(results.leaves({**run["config"], "places": run.get("places") or {}}))
             for run in (one, other)]  # fmt: skip
    keys = sides[0].keys() | sides[1].keys()
    return {key for key in keys - ASIDE if sides[0].get(key) != sides[1].get(key)}


def _changed(config: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    changed = config.copy()
    for key, value in values.items():
        OmegaConf.update(changed, key, value)
    return changed


def alike(run: Mapping[str, Any], config: DictConfig, but: Iterable[str] = ()) -> bool:
    """Whether a run's result is one of a config, ``but`` for some keys, and for where it ran."""
    try:
        wanted: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException:  # by what only Hydra resolves
        return False
    own, aside = dict(results.leaves(run.get("config") or {})), {*ASIDE, *but}
    return bool(own) and all(
        own.get(k, v) == v for k, v in results.leaves(wanted) if k not in aside
    )


def _compared(
    tested: Sequence[FrozenTrial], objectives: Sequence[str], without: Mapping[Any, dict[str, Any]]
) -> FrozenTrial:
    """The best; of a front that with the fewest errors which costs no more than the defaults."""
    run = next(iter(without.values()), {})
    costs = [run.get(name) for name in objectives[1:]]
    within = [
        trial
        for trial in tested
        if all(c is None or v <= c for v, c in zip(trial.values[1:], costs, strict=True))
    ]
    return min(within or tested, key=lambda trial: (trial.values, trial.number))


def _commands(
    folder: Path, found: Experiment, defaults: Mapping[str, Any], pairs: int
) -> Iterator[str]:
    """What makes one run of the defaults, or some of both for an interval."""
    if pairs > 1:
        return
    start = [f"experiment={found.stem}"]
    back = [_given(key, value) for key, value in defaults.items()]
    if not pairs:
        yield in_folder(folder, *start, *back, _given("hydra.run.dir", str(folder / "defaults")))
        return
    first = int(found.config.get("seed", 0))
    seeds = f"seed={','.join(str(first + n) for n in range(SEEDS))}"
    where = _given("hydra.sweep.dir", str(folder / "seeds"))
    yield in_folder(folder, "-m", *start, seeds, where)
    yield in_folder(folder, "-m", *start, *back, seeds, where)


def _given(key: str, value: Any) -> str:
    """An override, quoted where its text needs it."""
    text = str(value)
    plain = not isinstance(value, str) or re.fullmatch(r"[A-Za-z_./][\w./-]*", text)
    return f"{key}={text}" if plain else override(key, text)
