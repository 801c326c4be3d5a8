"""A claim, and what becomes of it on sweeps."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

import pandas as pd

from distill.findings.decisions import Decision
from distill.findings.preconditions import Conditions, apart, check, lacking
from distill.report.contents import UNDECIDED, Finding, Sweep

RULES = "7c81582"  # the commit that wrote the tests down, before the first run that counts


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper or the post, and the test that decides it on a sweep's runs.

    ``test`` says in words what ``decide`` does. Its preconditions: only runs count that meet one of
    the ``parts``; they have all values of ``covers``, and differ in nothing but their seeds and
    what is ``compared``, of the settings that begin with one ``of`` these; all seeds are there that
    the parts name, and others do not count, so that nobody looks first and then runs more.
    ``evidence`` is the column of what counts once. ``sweep`` is the experiment's name: a sweep of
    that name is reported even where it cannot decide the claim. ``rule`` is the commit that wrote
    the test down, `RULES` if it is empty; without one no sweep decides. An identity, whose parts
    name no seeds, has nothing that could be drawn again until it is liked, and needs neither. With
    ``diverged`` runs that diverged count, too, with errors that are not a number.
    """

    id: str
    sweep: str
    claim: str
    source: str
    test: str
    decide: Callable[[pd.DataFrame], Decision]
    parts: tuple[Conditions, ...]
    compared: tuple[str, ...] = ()
    covers: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    of: tuple[str, ...] = ()
    evidence: str = "run"
    rule: str = ""
    diverged: bool = False

    @property
    def named(self) -> tuple[tuple[object, ...], ...]:
        """The seeds of each part that names them."""
        return tuple(w for p in self.parts if isinstance(w := p.get("seed"), tuple))

    @property
    def fewest(self) -> int:
        """The number of seeds that each figure is of, at least."""
        return min(map(len, self.named), default=1)

    def judge(self, sweep: Sweep) -> "Judged":
        """What becomes of the claim on ``sweep``."""
        runs = sweep.runs
        if self.diverged and sweep.diverged is not None and len(sweep.diverged):
            errors = [
                c for c in map(str, runs) if c.endswith("_errors") and not c.startswith("teacher")
            ]
            lost = sweep.diverged.assign(**dict.fromkeys(errors, math.nan))
            runs = pd.concat([runs, lost], ignore_index=True)
        checked = check(runs, self.parts, self.compared)
        counted, told = checked.counted, sweep.name == self.sweep
        alike = 2 * len(checked.near) > len(runs) and not lacking(checked.near, self.covers)
        reason = checked.missed if counted.empty else ""
        every = {"seed": tuple(chain(*self.named))}
        if not reason and (value := lacking(counted, {**self.covers, **every})):
            reason = f"the sweep lacks runs ({value})"
            if checked.missed:
                reason += f"; {checked.missed}"
        if not reason and (setting := apart(counted, self.compared, self.of)):
            reason = f"its runs are not of one setting: {setting}; report on one of them"
        if not reason and sweep.unfinished is not None:  # or it could end when its verdict is liked
            reason = f"the sweep is not finished: {sweep.unfinished}"
        own = [counted[key].nunique() for key in ("teacher_digest", "seed") if key in counted]
        if not reason and len(own) == 2 and own[0] < own[1]:
            reason = "its seeds share a teacher; let teacher.seed=${seed}"
        decision = Decision((), UNDECIDED, reason)
        if not reason:
            try:
                decision = self.decide(counted)
            except (KeyError, ValueError) as error:
                reason = f"the sweep lacks runs ({error})"
                decision = Decision((), UNDECIDED, reason)
        if (n := min((e.n for e in decision.estimates), default=self.fewest)) < self.fewest:
            reason = f"{decision.outcome}; n = {n}, at least {self.fewest} are wanted"
            decision = replace(decision, verdict=UNDECIDED, outcome=reason)
        if self.named and not reason and not (self.rule or RULES):
            outcome = f"{decision.outcome}; no commit is named yet that wrote the test down"
            decision = replace(decision, verdict=UNDECIDED, outcome=outcome)
        known = frozenset(map(str, counted.get(self.evidence, counted.index)))
        return Judged(self._finding(sweep, decision), sweep, not reason, told or alike, known)

    def _finding(self, sweep: Sweep, decision: Decision) -> Finding:
        return Finding(
            self.id,
            self.claim,
            self.source,
            (*decision.estimates, *decision.beside),
            decision.verdict,
            self.test,
            decision.outcome,
            sweep.name,
            "; ".join(sweep.commands),
            ", ".join(sorted({str(v) for v in sweep.runs.get("version", ())})),
            sweep.folder,
            self.rule or RULES,
            ", ".join(sweep.commits),
        )


@dataclass(frozen=True)
class Judged:
    """A finding on a sweep: whether the runs sufficed, or only suggest it; and which runs."""

    finding: Finding
    sweep: Sweep
    suffices: bool
    suggested: bool
    evidence: frozenset[str]


def findings(claims: Iterable[Claim], sweeps: Iterable[Sweep]) -> list[Finding]:
    """What became of each claim, in their order, on the sweeps whose runs can decide it.

    Several sweeps with runs of their own are a finding each; of those that hold the same runs the
    smallest is named. A sweep that seems to be made for a claim, but cannot decide it, says why.
    """
    found = list(sweeps)
    return [finding for claim in claims for finding in _found(claim, found)]


def _found(claim: Claim, sweeps: list[Sweep]) -> Iterator[Finding]:
    judged = [claim.judge(sweep) for sweep in sweeps]
    whole = [j for j in judged if j.suffices]
    whole.sort(key=lambda j: (-len(j.evidence), len(j.sweep.runs)))
    kept: list[Judged] = []
    for one in whole:
        if not any(one.evidence <= other.evidence for other in kept):
            kept.append(one)
    named = [one for one in judged if one.sweep.name == claim.sweep]
    for one in judged:
        seems = not one.suffices and one.suggested and (one in named or not (kept or named))
        if one in kept or seems:
            yield one.finding
