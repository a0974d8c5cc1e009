"""Hunts for counterexamples at the snapshots of a recorder, as far as its budget reaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pytest_induction.errors import ArgumentError, first_line
from pytest_induction.journal import naming_subjects
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.probes.strategies.searching import warm_up
from pytest_induction.progress import showing_on
from pytest_induction.properties.ready import PROBES
from pytest_induction.runs.hunting import Hunting, claims_of
from pytest_induction.runs.record import Hunted, Snapshot
from pytest_induction.runs.schedule import Budget

EXAMPLES = 64  # of each hunt: a test case of hypothesis's, and a pass or a few
PART = 4  # of the budget hunts may take one in so many: what is recorded of heads comes first
HUNT = "hunt"  # among the kinds of a budget


class HuntsOfRecorder:
    """The properties that are hunted, each with what failed at earlier snapshots, which is tried first at the next."""

    def __init__(self, hunt: Any, budget: Budget, seed: int) -> None:
        claims = claims_of(hunt)
        for claim in claims:
            if claim.name not in PROBES:
                raise ArgumentError(f"`hunt` must name ready properties: {', '.join(PROBES)}; got {claim.name!r}")
        self._hunting = [Hunting(claim, "", most=EXAMPLES, seed=seed, keep=False) for claim in claims]
        warm_up()  # before the training begins
        self._budget = budget
        self._seconds = 0.0

    def is_affordable(self, *, forced: bool) -> bool:
        """Whether the training has paid for them: always where there is no limit, or where the snapshot itself is forced."""
        cost = self._budget.cost
        if forced or cost.max_overhead is None:
            return True
        known = self._budget.expected(HUNT)
        expected = (self._budget.expected(0) or 0.0) if known is None else known
        allowed = cost.max_overhead * cost.training_seconds / PART
        return cost.snapshots > 0 and self._seconds + expected <= allowed and self._budget.paid() >= expected

    def added_to(self, snapshot: Snapshot, adapted: Callable[[], ModelUnderTest]) -> Snapshot:
        """The snapshot with what was found; what cannot be looked at has the reason. Never raises."""
        began = self._budget.now()
        with self._budget.set_up(), self._budget.kept(HUNT), showing_on(lambda: None), naming_subjects():
            hunts = {str(each.claim): _looked(each, adapted) for each in self._hunting}
        self._seconds += self._budget.now() - began
        return replace(snapshot, hunts=hunts)


def _looked(hunting: Hunting, adapted: Callable[[], ModelUnderTest]) -> Hunted:
    try:
        return hunting.look(adapted())
    except Exception as error:  # noqa: BLE001 - whatever a model may raise, the training goes on
        return Hunted(problem=first_line(error))
