"""A property over the snapshots of a training: at which of them it holds, and the smallest sequence that fails at the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from pytest_induction.errors import ArgumentError, InductionError, ModelError, first_line
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.observers import tracking_subjects
from pytest_induction.probes.strategies.searching import Replays, Strategy, batches, warm_up
from pytest_induction.progress import advance, progress, showing_on
from pytest_induction.properties.claims import Example, PropertyClaim
from pytest_induction.properties.hunt import Hunt, listed, sequences_of, strategy_for
from pytest_induction.properties.ready import PROBES
from pytest_induction.runs.checkpoints.loading import FactoryError
from pytest_induction.runs.checkpoints.trainings import TrainingModels
from pytest_induction.runs.record import Hunted, Snapshot, TrainingRun
from pytest_induction.runs.schedule import Budget

KNOWN = 16  # sequences that failed elsewhere, the smallest, on which a snapshot is tried first;
WATCHED = 16  # and that held by the least: with those, all that one is tried on after the property began to hold,
CONFIRMED = 2  # but for so many snapshots right after that one
SHRINKS = 60  # sequences at most by which a failure is shrunk: the period and the copies come first, ids are worth no more
UNIT = "snapshot"


class Hunting:
    """One property, hunted at snapshot after snapshot. With `keep`, and no seed, failures are replayed in the next session."""

    def __init__(
        self,
        claim: PropertyClaim,
        name: str,
        *,
        probes: Any = None,
        most: int,
        seed: int | None = None,
        climb: bool = False,
        keep: bool,
    ) -> None:
        self.claim = claim
        self._probes, self._most, self._seed, self._climb = probes, most, seed, climb
        self._given = listed(probes)
        self._replays: Replays[Example] = Replays(claim.key(f"over {name}"), keep=keep and seed is None)
        self._failed: dict[Example, None] = {}
        self._near: list[Example] = []
        self._has_begun = False

    def look(self, subject: ModelUnderTest) -> Hunted:
        """Hunt among what failed before and newly generated sequences. Raises what is wrong with the model or the arguments."""
        return self._look(self._hunt(subject))

    def replay(self, subject: ModelUnderTest) -> Hunted:
        """Look at what failed before, and at what held by the least; hunt only where some of it fails."""
        if self._given is not None:
            return self.look(subject)
        hunt = self._hunt(subject)
        if hunt.look_at([*self._failed, *self._near]) is not None or not hunt.n_examples:
            return self._look(hunt)
        return Hunted(hunt.n_examples, margin=hunt.worst[0], is_replayed=True)

    def tidy(self) -> None:
        """Nothing is hunted any more."""
        self._replays.tidy()

    def _hunt(self, subject: ModelUnderTest) -> Hunt:
        return Hunt(subject, self.claim, most_shrinks=SHRINKS)

    def _look(self, hunt: Hunt) -> Hunted:
        if self._given is not None:
            hunt.look_at(self._given)
        else:
            self._search(hunt, strategy_for(self._probes, self.claim, hunt.subject))
        failing = sorted(hunt.failing, key=_size)
        if not failing:
            hunt.check_asked()
            self._near = hunt.nearest(WATCHED)
            return Hunted(hunt.n_examples, margin=hunt.worst[0])
        known = sorted({*self._failed, failing[0]}, key=_size)
        self._failed = dict.fromkeys(known[:KNOWN])
        repeated = [each for example in failing for each in sequences_of(example) if each.period]
        return Hunted(
            hunt.n_examples,
            counterexample=sequences_of(failing[0]),
            shortest_period=min((each.period for each in repeated), default=None),
            fewest_copies=min((each.repeats for each in repeated), default=None),
            failure=hunt.failure(failing[0]).splitlines()[0],
        )

    def _search(self, hunt: Hunt, examples: Strategy[Example]) -> None:
        """Try what failed before, all at once; shrink the smallest that fails here too, or else generate."""
        if not self._has_begun:
            self._failed |= dict.fromkeys(self._replays.earlier(batches(examples)))
            self._has_begun = True
        hunt.look_at(list(self._failed))
        self._replays.begin = min(hunt.failing, key=_size, default=None)
        hunt.search(examples, self._most, self._seed, climb=self._climb, replays=self._replays)


def hunted_over(run: TrainingRun, models: TrainingModels, hunting: Hunting, *, bisect: bool = True) -> TrainingRun:
    """The run with what the hunt found at each of its snapshots whose model is there.

    With `bisect` it is hunted at the last snapshot first. Where the property holds there, the snapshot from which on it does is
    searched for by halving, and confirmed at those after it: at the next two by a hunt of their own, at all others by what failed
    before and what held by the least. Those before it are hunted at from there back. Without, each has a hunt of its own.
    """
    search = _Search(models, hunting)
    with progress(f"{hunting.claim.name} over the training", len(models), UNIT), tracking_subjects():
        search.run(bisect=bisect)
    hunting.tidy()
    label = str(hunting.claim)
    found = {models.steps[place]: hunted for place, hunted in search.found.items()}
    snapshots = [
        replace(each, hunts={**each.hunts, label: found[each.step]}) if each.step in found else each for each in run.snapshots
    ]
    return replace(run, snapshots=tuple(snapshots))


class _Search:
    """In which order the snapshots are looked at; each is loaded once for a hunt, and at most once more before for a replay."""

    def __init__(self, models: TrainingModels, hunting: Hunting) -> None:
        self._models, self._hunting = models, hunting
        self.found: dict[int, Hunted] = {}

    def run(self, *, bisect: bool) -> None:
        places = list(range(len(self._models)))
        if bisect:
            while places and self._holds(places[-1]) is None:
                places.pop()
            if places and self._holds(places[-1]):
                self._settle(places)
        for place in reversed(range(len(self._models))):
            if place not in self.found:
                self._holds(place)

    def _settle(self, places: list[int]) -> None:
        """Find from which snapshot on the property holds, where it does at the last, and look at those after it."""
        low: int | None = -1
        while low is not None:
            onset = self._bisected(places, low)
            near = [place for place in places[onset + 1 : onset + 1 + CONFIRMED] if self._holds(place) is not None]
            after = [place for place in places[onset + 1 :] if place in near or self._holds(place, replay=True) is not None]
            failing = [place for place in after if not self.found[place].holds]
            low = places.index(failing[-1]) if failing else None

    def _bisected(self, places: list[int], low: int) -> int:
        """Where in `places` it holds while it fails at the one before. Those that cannot be looked at are taken out."""
        high = len(places) - 1
        while high - low > 1:
            middle = (low + high) // 2
            holds = self._holds(places[middle])
            if holds is None:
                del places[middle]
                high -= 1
            elif holds:
                high = middle
            else:
                low = middle
        return high

    def _holds(self, place: int, *, replay: bool = False) -> bool | None:
        """Whether it holds there, None where that is not known."""
        known = self.found.get(place)
        if known is None or (known.is_replayed and not replay):
            if known is None:
                advance(1, UNIT)
            known = self.found[place] = self._looked(place, replay=replay)
        return known.holds

    def _looked(self, place: int, *, replay: bool) -> Hunted:
        with showing_on(lambda: None):
            try:
                subject = self._models.load(place)
            except (ArgumentError, FactoryError):
                raise  # no other snapshot would do better
            except Exception as error:  # noqa: BLE001 - whatever a broken checkpoint or a user's module raises
                kind = "" if isinstance(error, InductionError) else f"{type(error).__name__}: "
                return Hunted(problem=f"{kind}{first_line(error)}")
            try:
                return self._hunting.replay(subject) if replay else self._hunting.look(subject)
            except ModelError as error:
                return Hunted(problem=first_line(error))


def _size(example: Example) -> tuple[int, Sequence[tuple[int, ...]]]:
    parts = sequences_of(example)
    return sum(map(len, parts)), [each.tokens for each in parts]


def claims_of(hunt: Iterable[Any] | Any) -> list[PropertyClaim]:
    """Properties to hunt, as a recorder is given them: names, ready ones, or a mapping from these to their options."""
    if isinstance(hunt, str) or callable(hunt):
        hunt = [hunt]
    options = dict(hunt) if isinstance(hunt, dict) else {each: {} for each in hunt}
    return [PropertyClaim.of(each, given) for each, given in options.items()]


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
        with self._budget.set_up(), self._budget.kept(HUNT), showing_on(lambda: None), tracking_subjects():
            hunts = {str(each.claim): _looked(each, adapted) for each in self._hunting}
        self._seconds += self._budget.now() - began
        return replace(snapshot, hunts=hunts)


def _looked(hunting: Hunting, adapted: Callable[[], ModelUnderTest]) -> Hunted:
    try:
        return hunting.look(adapted())
    except Exception as error:  # noqa: BLE001 - whatever a model may raise, the training goes on
        return Hunted(problem=first_line(error))
