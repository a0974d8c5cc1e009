"""Ready properties of a model on one probe sequence: each fails with an assertion, and gives by how much it holds.

A property takes an `Outcome`, or a pair of them, and its options by name. It can be called in a test, given to
`check_property` and `find_counterexample`, or to these by its name. `inf` is returned where a sequence asks nothing of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from pytest_induction.errors import ArgumentError, PropertyFailed
from pytest_induction.formatting import fitted
from pytest_induction.heads.criteria import MIN_PREFIX_MATCHING
from pytest_induction.records import HeadId

if TYPE_CHECKING:
    from pytest_induction.behaviour.outcomes import Outcome

    Pair = tuple[Outcome, Outcome]

Heads = Iterable[str | HeadId | tuple[int, int]]
F = TypeVar("F", bound=Callable[..., Any])
MIN_MASS = MIN_PREFIX_MATCHING  # on successors, and the most on lures
MAX_CHANGE = 0.25  # of a score in [0, 1] between two sequences that should not differ: half of what is clearly there or not
PROPERTIES: dict[str, Callable[..., Any]] = {}
PROBES: dict[str, str] = {}


def _ready(probes: str) -> Callable[[F], F]:
    """List a property under its name, with the strategy whose probes it asks about: sequences, or pairs of them."""

    def listed(function: F) -> F:
        name, pairs = function.__name__, probes.endswith("_pairs")

        @functools.wraps(function)
        def checked(outcome: Any, **options: Any) -> Any:
            __tracebackhide__ = True
            from pytest_induction.behaviour.outcomes import Outcome  # with torch, which is loaded where there is one

            found = len(outcome) if isinstance(outcome, tuple) else 1
            if found != 1 + pairs or not (isinstance(outcome, (tuple, Outcome))):
                wanted = "a pair of outcomes" if pairs else "one outcome"
                raise ArgumentError(f"`{name}` takes {wanted}, got `{type(outcome).__name__}`; its `probes` are like `{probes}`")
            return function(outcome, **options)

        PROPERTIES[name], PROBES[name] = checked, probes
        return cast("F", checked)

    return listed


@_ready("repeated_sequences")
def completes_repeats(outcome: Outcome, *, min_accuracy: float = 1.0, max_loss: float | None = None, max_order: int = 1) -> float:
    """Every token that is foretold is predicted: it is the likeliest one.

    Foretold by the last `max_order` tokens: 1 is what an induction head does, more is asked by `nested_repeats` and
    `conflicting_ngrams`. With `min_accuracy` below 1 that share of the positions of each sequence is enough; with `max_loss`
    (nats) the loss of each of these tokens must not be above it, even if another token is likelier. Returns the margin: in nats
    to the likeliest other token, or to `max_loss`, at the worst position, or of the accuracy.
    """
    __tracebackhide__ = True
    for name, value in (("min_accuracy", min_accuracy), ("max_loss", max_loss)):
        if value is not None and not isinstance(value, (int, float)):
            raise ArgumentError(f"`{name}` must be a number, got {value!r}")
    places = outcome.foretold(max_order).nonzero()[0]
    if not places.size:
        return math.inf
    leads, log_probs = outcome.behaviour.lead[places], outcome.behaviour.log_prob[places]
    if max_loss is None and min_accuracy < 1:
        accuracy = float((leads > 0).mean())
        return _hold(accuracy - min_accuracy, outcome, f"accuracy {accuracy:.2f}, at least {min_accuracy:g} expected")
    margins, wanted = (leads, "the likeliest") if max_loss is None else (max_loss + log_probs, f"at most {max_loss:g}")
    worst = int(margins.argmin())
    margin, strict = float(margins[worst]), max_loss is None
    if margin > 0:
        return margin
    answer, predicted = outcome.probe.answers[places[worst]], outcome.behaviour.predicted[places[worst]]
    seen = f"loss {-log_probs[worst]:.2f} nats, the likeliest is {predicted}"
    text = f"after position {answer.query} comes {answer.token}, expected {wanted}: {seen}"
    return _hold(margin, outcome, text, strict=strict)


@_ready("repeated_sequences")
def attends_to_successor(outcome: Outcome, *, heads: Heads, min_mass: float = MIN_MASS, max_lured: float = MIN_MASS) -> float:
    """Each of the heads looks to what followed the earlier occurrences of a token, and is not lured by mere places.

    Mean mass over the queries whose token occurred earlier is at least `min_mass`, and that on the lures of the sequence, if it
    has any (`near_misses`, `unrepeated_sequences`), at most `max_lured`. Heads are named "L5H1", `HeadId(5, 1)` or (5, 1).
    Returns the least margin.
    """
    __tracebackhide__ = True
    margins: list[tuple[float, str]] = []
    for head in _named(heads):
        _check_head(head, outcome)
        if outcome.probe.successors:
            mass = float(outcome.prefix_matching[head.layer, head.head])
            margins.append((mass - min_mass, f"{head} has mass {mass:.3f} on the successors, at least {min_mass:g} expected"))
        if outcome.probe.lures:
            mass = float(outcome.lured[head.layer, head.head])
            margins.append((max_lured - mass, f"{head} has mass {mass:.3f} on the lures, at most {max_lured:g} expected"))
    if not margins:
        return math.inf
    margin, text = min(margins)
    return _hold(margin, outcome, text)


@_ready("period_pairs")
def is_period_invariant(pair: Pair, *, heads: Heads | None = None, max_change: float = MAX_CHANGE) -> float:
    """Another period makes no difference: the score changes by at most `max_change`.

    The score is the mean probability of the foretold tokens, or with `heads` the prefix matching of each of them. Returns the
    margin.
    """
    __tracebackhide__ = True
    change, text = max(((abs(after - before), text) for before, after, text in _scores(pair, heads)), default=(-math.inf, ""))
    return _hold(max_change - change, pair, f"{text}, a change of at most {max_change:g} expected")


@_ready("distractor_pairs")
def survives_distractors(pair: Pair, *, heads: Heads | None = None, max_drop: float = MAX_CHANGE) -> float:
    """Ids that stand between the copies and occur nowhere else make the score no lower than by `max_drop`.

    The first of the pair is without, the second with them. The score as in `is_period_invariant`. Returns the margin.
    """
    __tracebackhide__ = True
    drop, text = max(((before - after, text) for before, after, text in _scores(pair, heads)), default=(-math.inf, ""))
    return _hold(max_drop - drop, pair, f"{text}, a drop of at most {max_drop:g} expected")


@_ready("relabelled_pairs")
def is_relabelling_invariant(pair: Pair, *, max_change: float = MAX_CHANGE) -> float:
    """A permutation of the token ids leaves the distribution of scores as it is.

    The scores are the probabilities of the foretold tokens. Compared are their distributions over the positions of the two
    sequences, by the mean distance of their quantiles (Wasserstein), in [0, 1]; at most `max_change`. Returns the margin.
    """
    __tracebackhide__ = True
    one, other = (np.sort(np.exp(-outcome.losses)) for outcome in pair)
    if len(one) != len(other):
        raise ArgumentError("the two sequences of a relabelled pair must be foretold at as many positions")
    if not len(one):
        return math.inf
    distance = float(np.abs(one - other).mean())
    text = f"mean probability {one.mean():.3f} and {other.mean():.3f}, distributions {distance:.3f} apart"
    return _hold(max_change - distance, pair, f"{text}, at most {max_change:g} expected")


@_ready("conflicting_ngrams")
def prefers_longer_match(outcome: Outcome) -> float:
    """Where two or more last tokens foretell one thing and the last alone another, the longer match wins.

    Returns the margin: log-probability of the former minus that of the latter, in nats, at the worst position.
    """
    __tracebackhide__ = True
    asked = ~np.isnan(outcome.behaviour.distractor)
    if not asked.any():
        return math.inf
    margins = np.where(asked, outcome.behaviour.log_prob - outcome.behaviour.distractor, np.inf)
    worst = int(margins.argmin())
    answer = outcome.probe.answers[worst]
    text = (
        f"after position {answer.query} the last {answer.order} tokens foretell {answer.token}, the last one {answer.distractor}"
    )
    return _hold(float(margins[worst]), outcome, f"{text}, which is likelier by {-margins[worst]:.2f} nats", strict=True)


def _hold(margin: float, outcome: Outcome | Pair, text: str, *, strict: bool = False) -> float:
    """The margin, or `PropertyFailed` where it is negative, or 0 and `strict`, or no number."""
    __tracebackhide__ = True
    if margin > 0 or (margin == 0 and not strict):
        return margin
    probe = tuple(each.probe for each in outcome) if isinstance(outcome, tuple) else outcome.probe
    raise PropertyFailed(fitted(f"{text}; on {probe!r}", ()), probe)


def _scores(pair: Pair, heads: Heads | None) -> list[tuple[float, float, str]]:
    """Before, after, and both in words: of the probability of what is foretold, or of every head's prefix matching."""
    if heads is None:
        before, after = (outcome.probability for outcome in pair)
        found = [(before, after, f"mean probability of the foretold tokens {before:.3f} and {after:.3f}")]
    else:
        found = []
        for head in _named(heads):
            _check_head(head, pair[0])
            before, after = (float(outcome.prefix_matching[head.layer, head.head]) for outcome in pair)
            found.append((before, after, f"{head} has prefix matching {before:.3f} and {after:.3f}"))
    return [entry for entry in found if not math.isnan(entry[0] + entry[1])]


def _named(heads: Heads) -> list[HeadId]:
    """The heads, one at least; a name alone is one of them."""
    if isinstance(heads, (str, HeadId)):
        return [_head_id(heads)]
    found = [_head_id(head) for head in heads] if isinstance(heads, Iterable) else []
    if not found:
        raise ArgumentError(f"`heads` must name at least one head, like 'L5H1', HeadId(5, 1) or (5, 1), got {heads!r}")
    return found


def _head_id(head: object) -> HeadId:
    if isinstance(head, HeadId):
        return head
    numbers: tuple[object, ...] = ()
    if isinstance(head, str) and head.startswith("L"):
        numbers = tuple(int(part) for part in head[1:].split("H") if part.isdecimal())
    elif isinstance(head, tuple):
        numbers = head
    if len(numbers) != 2 or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ArgumentError(f"`heads` must be named like 'L5H1', HeadId(5, 1) or (5, 1), got {head!r}")
    return HeadId(*(int(str(number)) for number in numbers))


def _check_head(head: HeadId, outcome: Outcome) -> None:
    heads = outcome.subject.reading.heads
    if not (head.layer < len(heads) and head.head < heads[head.layer]):
        raise ArgumentError(f"the model has no head {head}: it has {len(heads)} layers of {max(heads)} heads")
