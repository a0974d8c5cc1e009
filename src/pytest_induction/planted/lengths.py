"""Planted heads that go by how many tokens match before the query: such as need several, and such as prefer the longest match.

Heads 0, 1 and 2 of an earlier layer tell each position the three tokens before it. So a key knows what came before it, the query
what stands before itself, and a head that reads both compares as many tokens as there are pairs of them.
"""

from __future__ import annotations

from typing import Unpack

from pytest_induction.errors import ArgumentError, user_facing, whole_number
from pytest_induction.planted.blueprint import RESTING, SHARP, Attends, Blueprint, Match, Sizes, amount
from pytest_induction.planted.model import Kind, PlantedModel

STRENGTH = 16.0
SPACES = ("one", "two", "three")  # the token so many positions before
LONGEST = len(SPACES)


@user_facing
def ngram_head(
    *,
    length: int = 2,
    layer: int = 1,
    head: int = 0,
    earlier_layer: int = 0,
    sharpness: float = SHARP,
    strength: float = STRENGTH,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """An induction head that needs the last `length` tokens to match, 1 to 3: it attends evenly to what followed them earlier.

    Each token that matches is worth `sharpness`, and the first position as much as half a token less than all of them. In a block
    of repeated tokens it is an induction head from the `length`-th token of a copy on.
    """
    if whole_number("length", length, least=1) > LONGEST:
        raise ArgumentError(f"`length` must be 1, 2 or {LONGEST}, got {length!r}")
    matches = tuple(Match(*pair) for pair in _pairs()[:length])
    attends = Attends(matches, resting=length - RESTING, sharpness=sharpness)
    return _planted("ngram", (layer, head), earlier_layer, attends, strength, sizes)


@user_facing
def longest_match_head(
    *,
    per_token: float = SHARP,
    layer: int = 1,
    head: int = 0,
    earlier_layer: int = 0,
    sharpness: float = SHARP,
    strength: float = STRENGTH,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """An induction head that one token is enough for, and that prefers longer matches: the longest of up to three tokens.

    A match gains `per_token` in the scores before softmax for each of the two tokens before that matches too. So a match of three
    tokens and one of a single token get shares whose difference over their sum is tanh(`per_token`): 0 of an induction head that
    spreads, 1 of one that takes the longest.
    """
    more = amount("per_token", per_token)
    token, *before = _pairs()
    matches = (Match(*token, weight=amount("sharpness", sharpness) + 2 * more), *(Match(*pair, weight=more) for pair in before))
    attends = Attends(matches, resting=RESTING * sharpness + 2 * more, sharpness=1.0)  # tokens before alone are no match
    return _planted("longest_match", (layer, head), earlier_layer, attends, strength, sizes)


def _pairs() -> list[tuple[str, str]]:
    """What the query reads and what must equal it on the key side: its own token, then those before."""
    return list(zip(("token", *SPACES), SPACES, strict=False))


def _planted(
    kind: Kind, at: tuple[int, int], earlier_layer: int, attends: Attends, strength: float, sizes: Sizes
) -> PlantedModel:
    """A head with the three that tell it the tokens before."""
    plan = Blueprint(sizes, one="token", two="token", three="token")
    place = plan.place(*at)
    plan.tell_before(earlier_layer, place.layer, SPACES)
    plan.plant(place, kind, attends, {"output": amount("strength", strength)})
    return plan.build()
