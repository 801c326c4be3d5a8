"""What the report shows of a study, as plain values: its trials, its best, its keys and its front.

Errors, losses and sizes are all to be small.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.report.contents import CHOICES, LOG, Gain, Importance, Study, Trial
from distill.report.numbers import Plot, amount, share, span, text
from distill.report.statistics import Interval, interval
from distill.runs.columns import Status

OBJECTIVES = {
    "val_errors": "validation errors",
    "val_loss": "validation loss",
    "multiply_adds": "multiply-adds",
}
BEST, UNTOLD = "best", "unknown"  # of a complete trial; of one whose values are not known
STATES = (Status.COMPLETE, Status.STOPPED, Status.DIVERGED, Status.FAILED)
SHOWN = 10  # of the best trials, in the table


@dataclass(frozen=True)
class Mark:
    """A trial in a figure; without a ``y`` it has no value, and lies above all others."""

    x: float
    y: float | None
    state: str
    words: str


@dataclass(frozen=True)
class Points(Plot):
    """Trials over ``x``, on log scales where ``log`` says so (x, y).

    ``path`` are the corners of a line, called ``line``; ``ticks`` are the names of 0, 1, ... on x.
    """

    x: str
    log: tuple[bool, bool]
    marks: tuple[Mark, ...]
    path: tuple[tuple[float, float], ...] = ()
    line: str = ""
    ticks: tuple[str, ...] = ()


def named(objective: str) -> str:
    """An objective in words."""
    return OBJECTIVES.get(objective, objective)


def value(given: float) -> str:
    """The value of an objective as people read it, whole numbers whole."""
    return str(int(given)) if float(given).is_integer() else amount(given)


def valued(study: Study, values: Sequence[float]) -> str:
    """Values of the objectives in words: "12 validation errors, 2410 parameters"."""
    pairs = zip(values, study.objectives, strict=True)
    return ", ".join(f"{value(v)} {named(name)}" for v, name in pairs)


def chosen(params: Mapping[str, Any]) -> str:
    """The values of keys: "loss.alpha 0.5, optim.lr 0.01"."""
    return ", ".join(f"{key} {short(v)}" for key, v in params.items())


def short(given: object) -> str:
    """The value of a key, to four digits; which ones exactly stands in the runs' files."""
    return f"{given:.4g}" if isinstance(given, float) else text(given)


def counted(study: Study) -> str:
    """How many trials there are, and how they ended."""
    states = Counter(trial.state for trial in study.trials)
    parts = [f"{states.pop(s)} {s}" for s in (*STATES, *sorted(states)) if s in states]
    many = len(study.trials)
    return f"{many} trial{'' if many == 1 else 's'}" + f": {', '.join(parts)}" * bool(parts)


def complete(study: Study) -> list[Trial]:
    """The trials that completed, from few to many of the first objective, then of the others."""
    done = [t for t in study.trials if t.state == Status.COMPLETE]
    first = [best.number for best in study.best]
    return sorted(done, key=lambda t: (t.values, t.number not in first, t.number))


def so_far(study: Study) -> list[tuple[int, float]]:
    """The trials that were better than all before them, and their value of the first objective."""
    found: list[tuple[int, float]] = []
    for trial in study.trials:
        if trial.state == Status.COMPLETE and (not found or trial.values[0] < found[-1][1]):
            found.append((trial.number, trial.values[0]))
    return found


def front(study: Study) -> list[Trial]:
    """The trials of the Pareto front, as they are among the best."""
    trials = {trial.number: trial for trial in study.trials}
    return [trials[best.number] for best in study.best]


def _mark(study: Study, trial: Trial, x: float) -> Mark:
    best = trial.number in [best.number for best in study.best]
    lines = [f"trial {trial.number}, {BEST if best else trial.state}"]
    if trial.values:
        lines.append(valued(study, trial.values))
    if trial.state != Status.COMPLETE and trial.reason:
        lines.append(trial.reason)
    lines += [f"{key} {short(v)}" for key, v in trial.params.items()]
    y = trial.values[0] if trial.values and math.isfinite(trial.values[0]) else None
    return Mark(x, y, BEST if best else trial.state, "\n".join(lines))


def _ended(study: Study) -> list[Trial]:
    return [trial for trial in study.trials if trial.state in STATES]


def _far(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) > 3


def _log(marks: Sequence[Mark]) -> bool:
    """Whether the first objective needs a log scale."""
    return _far([mark.y for mark in marks if mark.y is not None])


def history(study: Study) -> Points:
    """The first objective by the number of the trial, and the best so far."""
    marks = tuple(_mark(study, trial, trial.number) for trial in _ended(study))
    steps = so_far(study)
    name = named(study.objectives[0])
    path: list[tuple[float, float]] = []
    for number, least in steps:
        path += [(number, path[-1][1] if path else least), (number, least)]
    if path:
        path.append((study.trials[-1].number, path[-1][1]))
    caption = "No trial completed."
    if steps:
        last, least = steps[-1]
        better = f"{len(steps)} of the {len(complete(study))} complete trials"
        caption = (
            f"Trial {last} was the first with {value(least)} {name}, the least of all; {better} "
            "brought a new least."
        )
    title = f"{name} by trial"
    return Points(
        "history", title, "", name, f"{caption}{_aside(marks)}", "trial", (False, _log(marks)),
        marks, tuple(path), "best so far",
    )  # fmt: skip


def _aside(marks: Sequence[Mark]) -> str:
    """What those that did not complete stand for."""
    states = {mark.state for mark in marks}
    stopped = " A stopped trial has what it had after fewer epochs." * (Status.STOPPED in states)
    return stopped + " Those without a value lie above the line." * (
        any(mark.y is None for mark in marks)
    )


def by_key(study: Study, key: str) -> Points:
    """The first objective by the value of a key."""
    trials = [trial for trial in _ended(study) if key in trial.params]
    values = [trial.params[key] for trial in trials]
    ticks: tuple[str, ...] = ()
    if study.keys[key] == CHOICES:
        ordered = _sorted(set(values))
        ticks, values = tuple(map(short, ordered)), [ordered.index(v) for v in values]
    marks = tuple(_mark(study, t, float(x)) for t, x in zip(trials, values, strict=True))
    name = named(study.objectives[0])
    found = [t.params[key] for t in front(study) if key in t.params]
    have = "has" if len(study.best) == 1 else "have"
    caption = f"The best {have} {key} {_spread(found, between=not ticks)}."
    return Points(
        f"by-{key}", f"{name} by {key}", "", name, caption if found else "No trial completed.", key,
        (study.keys[key] == LOG, _log(marks)), marks, (), "", ticks,
    )  # fmt: skip


def _sorted(values: Iterable[Any]) -> list[Any]:
    """Numbers by their size, then all else by its text."""
    return sorted(values, key=lambda v: (0, v, "") if _is_number(v) else (1, 0, text(v)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _spread(found: Sequence[Any], *, between: bool) -> str:
    """Values of a key in words: few one by one, of many on a scale the ends."""
    each = list(dict.fromkeys(map(short, _sorted(found))))
    return f"from {each[0]} to {each[-1]}" if between and len(each) > 3 else ", ".join(each)


def pareto(study: Study) -> Points:
    """The first objective by the second, and the front of both."""
    trials = [t for t in _ended(study) if len(t.values) > 1 and all(map(math.isfinite, t.values))]
    marks = tuple(_mark(study, trial, trial.values[1]) for trial in trials)
    first, second = map(named, study.objectives[:2])
    path: list[tuple[float, float]] = []
    for trial in front(study) if len(study.objectives) == 2 else ():
        path += [(trial.values[1], path[-1][1])] if path else []
        path.append((trial.values[1], trial.values[0]))
    ends = [valued(study, t.values) for t in (front(study)[:1] + front(study)[1:][-1:])]
    caption = f"{len(study.best)} of {len(complete(study))} complete trials are on the front, "
    caption += f"from {' to '.join(ends)}." if len(ends) > 1 else f"{''.join(ends)}."
    log = _far([mark.x for mark in marks]), _log(marks)
    return Points(
        "front", f"{first} by {second}", "", first, caption, second, log, marks, tuple(path),
        "front" * bool(path),
    )  # fmt: skip


def every(study: Study) -> Iterator[Points]:
    """All figures of a study."""
    if not _ended(study):
        return
    if len(study.objectives) > 1 and complete(study):
        yield pareto(study)
    yield history(study)
    for key in study.keys:
        yield by_key(study, key)


def table(study: Study) -> tuple[str, list[str], list[list[object]]]:
    """What the table is of, its header and its rows: the best trials, or those of the front."""
    several = len(study.objectives) > 1
    trials = front(study) if several else complete(study)[:SHOWN]
    tested = {best.number: best.test_errors for best in study.best}
    own = [] if study.compared else ["test errors"]
    header = ["trial", *map(named, study.objectives), *own, *study.keys]
    rows: list[list[object]] = [
        [
            t.number,
            *map(_whole, t.values),
            *(tested.get(t.number) for _ in own),
            *(t.params.get(key) for key in study.keys),
        ]
        for t in trials
    ]
    what = "the Pareto front" if several else f"the best {len(rows)} of {counted(study)}"
    about = "" if study.compared else " Test errors are of the same settings trained on all data."
    return f"{what[:1].upper()}{what[1:]}.{about}", header, rows


def _whole(given: float) -> float:
    return int(given) if float(given).is_integer() else given


def led(study: Study) -> list[str]:
    """What there is to say first: the trials, what was searched, and the best."""
    keys = ", ".join(f"{k} (log)" if scale == LOG else k for k, scale in study.keys.items())
    lines = [f"{counted(study)}. Searched: {keys or 'nothing'}."]
    ended = Counter(
        (t.state, t.reason)
        for t in study.trials
        if t.state in (Status.DIVERGED, Status.FAILED) and t.reason
    )
    lines += [
        f"{n} trial{'' if n == 1 else 's'} {state}: {reason}."
        for (state, reason), n in ended.most_common(3)
    ]
    if len(study.best) == 1:
        [trial] = front(study)
        lines.append(f"The best is trial {trial.number}: {valued(study, trial.values)}, with "
                     f"{chosen(trial.params)}. {_tested(study)}")  # fmt: skip
    elif study.best:
        lines.append(f"{len(study.best)} trials are on the Pareto front. {_tested(study)}")
    return lines


def _tested(study: Study) -> str:
    if study.compared:
        return "What it came to stands in the comparison."
    found = [best.test_errors for best in study.best]
    known = [errors for errors in found if errors is not None]
    if not known:
        return "None of the best was trained on all data and tested yet."
    if len(found) == 1:
        return f"Trained on all data it has {known[0]} test errors."
    return f"Of those trained on all data, {len(known)}, test errors stand in the table."


def weighed(importance: Importance) -> str:
    """What an importance is of, and by how many trials."""
    return f"Of {importance.of}, n\u00a0=\u00a0{importance.n}"


def weights(importance: Importance) -> list[tuple[str, str, float]]:
    """Keys, their shares in words, and in percent."""
    return [(key, share(part), 100 * part) for key, part in importance.shares.items()]


def gained(gain: Gain) -> tuple[Interval, Interval, Interval] | None:
    """Test errors of the best, of the defaults, and how many fewer the best has, over seeds."""
    if not gain.pairs:
        return None
    best, defaults = zip(*gain.pairs, strict=True)
    return (
        interval(best), interval(defaults), interval([d - b for b, d in gain.pairs])
    )  # fmt: skip


def won(gain: Gain) -> str:
    """What the best gained, in a sentence."""
    found = gained(gain)
    if found is None:
        return gain.note
    best, defaults, fewer = found
    seeds = f"n\u00a0=\u00a0{fewer.n} seed{'' if fewer.n == 1 else 's'}"
    certain = "" if fewer.n > 1 else " Of one seed there is no interval: it may be chance."
    return (
        f"Trial {gain.number}, trained on all data, has {span(best)} test errors, and the defaults "
        f"({chosen(gain.defaults)}) {span(defaults)}: a gain of {span(fewer)}, {seeds}.{certain}"
    )
