"""What a claim is: a sentence, its preconditions, and the test that decides it on a sweep."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from distill.findings.decisions import Decision
from distill.findings.preconditions import Conditions, apart, check, lacking
from distill.report.contents import UNDECIDED, Finding, Sweep


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper or the post, and the test that decides it on a sweep's runs.

    ``test`` says in words what ``decide`` does. Its preconditions: only runs count that meet one of
    the ``parts``; they have all values of ``covers``, and differ in nothing but their seeds and
    what is ``compared``, of the settings that begin with one ``of`` these; fewer than ``seeds``
    decide nothing. ``evidence`` is the column of what counts once. ``sweep`` is the experiment's
    name: a sweep of that name is reported even where it cannot decide the claim.
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
    seeds: int = 5
    of: tuple[str, ...] = ()
    evidence: str = "run"

    def judge(self, sweep: Sweep) -> "Judged":
        """What becomes of the claim on ``sweep``."""
        checked = check(sweep.runs, self.parts, self.compared)
        counted, told = checked.counted, sweep.name == self.sweep
        alike = 2 * len(checked.near) > len(sweep.runs) and not lacking(checked.near, self.covers)
        reason = checked.missed if counted.empty else ""
        if not reason and (value := lacking(counted, self.covers)):
            reason = f"the sweep lacks runs ({value})"
            if checked.missed:
                reason += f"; {checked.missed}"
        if not reason and (setting := apart(counted, self.compared, self.of)):
            reason = f"its runs are not of one setting: {setting}; report on one of them"
        decision = Decision((), UNDECIDED, reason)
        if not reason:
            try:
                decision = self.decide(counted)
            except (KeyError, ValueError) as error:
                reason = f"the sweep lacks runs ({error})"
                decision = Decision((), UNDECIDED, reason)
        if (n := min((e.n for e in decision.estimates), default=self.seeds)) < self.seeds:
            reason = f"{decision.outcome}; n = {n}, at least {self.seeds} are wanted"
            decision = Decision(decision.estimates, UNDECIDED, reason)
        known = frozenset(map(str, counted.get(self.evidence, counted.index)))
        return Judged(self._finding(sweep, decision), sweep, not reason, told or alike, known)

    def _finding(self, sweep: Sweep, decision: Decision) -> Finding:
        return Finding(
            self.id,
            self.claim,
            self.source,
            decision.estimates,
            decision.verdict,
            self.test,
            decision.outcome,
            sweep.name,
            "; ".join(sweep.commands),
            ", ".join(sorted({str(v) for v in sweep.runs.get("version", ())})),
            sweep.folder,
        )


@dataclass(frozen=True)
class Judged:
    """A finding on a sweep: whether the runs sufficed, or only suggest it; and which runs."""

    finding: Finding
    sweep: Sweep
    suffices: bool
    suggested: bool
    evidence: frozenset[str]
