"""Known-answer models: tiny transformers whose heads are set by construction, so that every right answer is known.

Each function returns a `PlantedModel` that a metric or a verdict can be tried on. Nothing is trained, nothing downloaded.

>>> from pytest_induction.planted import induction_head
>>> model = induction_head(sharpness=4.0)
>>> sorted((str(head), kind) for head, kind in model.answers.items())
[('L0H0', 'previous_token'), ('L1H0', 'induction')]

**Options**, keyword-only, the same everywhere. `layer` and `head` place the head that the function is named for, from zero;
`previous_layer`, `key_head` and the like place the heads that it reads from, in an earlier layer. `n_layers` (2), `n_heads` (4),
`d_vocab` (64) and `n_ctx` (128) are the sizes. A head that is not in `answers` rests on the first position and writes nothing.

`sharpness`, from 0 to 1000, is the gap in the scores before softmax between a matching key and any other. A query that matches
nothing rests on the first position, which has half of it. So a query at position q (from zero) with m matching keys, none of
them the first, gives each of them

    exp(sharpness) / (m exp(sharpness) + exp(sharpness / 2) + q - m)

and exp(sharpness / 2) / (exp(sharpness / 2) + q) to the first position where m = 0. At 0 a head is uniform, around 3 it gives
half of its mass to its matches, and at the default of 64 all but 1e-14. Heads that others read from are always that sharp.

With `latest_only` all but the last match count as no match: that one stands out by `sharpness` at least, for then every
position counts one `sharpness` more than the one before, the first position `n_ctx` times as much, and a match twice that.

`strength`, from 0 to 1000, is by how much a head that gives all its mass to one token raises that token's logit. All other logits
are 0. Where it is 0 by default the head writes what it finds into a space that the unembedding does not read.

**Sequences** begin with `bos_token_id` (0), as every probe of this package does. It is the zero vector among the tokens: nothing
matches it, and what rests on it copies nothing. Rows that begin with another token have that one found where there is nothing.

**Precision.** The formulas hold in float32 and float64, and in bfloat16 and float16 for the default, whose scores are exact
there; a sharpness of more than eight bits rounds in bfloat16, and a share of a mass always does. With `latest_only`, and in
`pointer_induction_head`, bfloat16 cannot tell neighbours beyond position 256 apart, nor float16 beyond 2048.
"""

from __future__ import annotations

from typing import Unpack

from pytest_induction.errors import ArgumentError, user_facing, whole_number
from pytest_induction.planted.blueprint import (
    POINTED_AT,
    SAME_TOKEN,
    SHARP,
    Attends,
    Blueprint,
    Match,
    Sizes,
    after,
    amount,
    back,
)
from pytest_induction.planted.concepts import concept_head
from pytest_induction.planted.few_shot import few_shot_head
from pytest_induction.planted.lengths import longest_match_head, ngram_head
from pytest_induction.planted.meaning import class_induction_head, pattern_head, translation_head
from pytest_induction.planted.model import Kind, PlantedLayer, PlantedModel
from pytest_induction.planted.needles import retrieval_head

__all__ = [
    "Kind",
    "PlantedLayer",
    "PlantedModel",
    "class_induction_head",
    "concept_head",
    "copy_suppression_head",
    "copying_head",
    "count_back_head",
    "duplicate_token_head",
    "few_shot_head",
    "first_token_head",
    "induction_head",
    "longest_match_head",
    "matching_head",
    "ngram_head",
    "pattern_head",
    "pointer_induction_head",
    "prediction_suppression_head",
    "previous_token_head",
    "redundant_induction_heads",
    "retrieval_head",
    "translation_head",
    "uniform_head",
    "virtual_induction_head",
]
STRENGTH = 16.0  # of 64 tokens the one that is copied then has all but 1e-5 of the probability


@user_facing
def induction_head(
    *,
    layer: int = 1,
    head: int = 0,
    previous_layer: int = 0,
    previous_head: int = 0,
    sharpness: float = SHARP,
    strength: float = STRENGTH,
    latest_only: bool = False,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """An induction head by K-composition: a previous-token head tells each position which token was before it.

    It attends to all positions after earlier occurrences of the query's token, evenly, or to the last with `latest_only`, and
    copies what stands there. Prefix matching is 1, and 0 for the previous-token head.
    """
    place, before = (layer, head), (previous_layer, previous_head)
    return _matching("induction", place, before, sharpness, {"output": amount("strength", strength)}, latest_only, sizes)


@user_facing
def redundant_induction_heads(
    *,
    count: int = 3,
    layer: int = 1,
    head: int = 0,
    previous_layer: int = 0,
    previous_head: int = 0,
    sharpness: float = SHARP,
    strength: float = STRENGTH,
    latest_only: bool = False,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """As `induction_head`, but `count` equal heads beginning at `head`, each with its share of `strength`.

    Without any one of them the model copies as before, less strongly.
    """
    writes = {"output": amount("strength", strength) / whole_number("count", count, least=1)}
    place, before = (layer, head), (previous_layer, previous_head)
    return _matching("induction", place, before, sharpness, writes, latest_only, sizes, count=count)


@user_facing
def copy_suppression_head(
    *,
    layer: int = 1,
    head: int = 0,
    previous_layer: int = 0,
    previous_head: int = 0,
    sharpness: float = SHARP,
    strength: float = STRENGTH,
    latest_only: bool = False,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """A head that attends as `induction_head` does, and lowers the logit of what stands there by `strength`."""
    place, before = (layer, head), (previous_layer, previous_head)
    writes = {"output": -amount("strength", strength)}
    return _matching("copy_suppression", place, before, sharpness, writes, latest_only, sizes)


@user_facing
def prediction_suppression_head(
    *,
    layer: int = 2,
    head: int = 0,
    induction_layer: int = 1,
    induction_head: int = 0,
    previous_layer: int = 0,
    previous_head: int = 0,
    sharpness: float = SHARP,
    strength: float = STRENGTH / 2,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """A copy suppressor: it attends to all earlier occurrences of what an induction head predicts, and lowers that by `strength`.

    The induction head takes its last match and raises it by 16; its layer, and the previous-token head's, come before. There are
    3 layers unless given. Where nothing is predicted this head rests on the first position.
    """
    plan = Blueprint({"n_layers": 3, **sizes})
    place = plan.place(layer, head)
    matching = plan.place(induction_layer, induction_head, names=("induction_layer", "induction_head"), before=layer)
    earlier = plan.place(previous_layer, previous_head, names=("previous_layer", "previous_head"), before=induction_layer)
    plan.plant(earlier, "previous_token", Attends(back(1)), {"found": 1.0})
    plan.plant(matching, "induction", Attends(after("found"), latest_only=True), {"output": STRENGTH})
    attends = Attends((Match("output", "token", weight=1 / STRENGTH),), sharpness=sharpness)
    plan.plant(place, "copy_suppression", attends, {"output": -amount("strength", strength)})
    return plan.build()


@user_facing
def matching_head(
    *,
    layer: int = 1,
    head: int = 0,
    previous_layer: int = 0,
    previous_head: int = 0,
    sharpness: float = SHARP,
    latest_only: bool = False,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """A head that attends as `induction_head` does, and copies nothing: what it finds goes where no logit depends on it."""
    place, before = (layer, head), (previous_layer, previous_head)
    return _matching("matching", place, before, sharpness, {"found": 1.0}, latest_only, sizes)


@user_facing
def pointer_induction_head(
    *,
    layer: int = 1,
    head: int = 0,
    duplicate_layer: int = 0,
    duplicate_head: int = 0,
    sharpness: float = SHARP,
    strength: float = STRENGTH,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """An induction head by Q-composition, or pointer arithmetic: no previous-token head, and its keys are positions.

    A duplicate-token head tells each position where its token last stood, plus one; this head attends there and copies. Of
    several occurrences only the last is found: an average of pointers would point at each of them too weakly.
    """
    plan = Blueprint(sizes, pointer="position")
    place = plan.place(layer, head)
    earlier = plan.place(duplicate_layer, duplicate_head, names=("duplicate_layer", "duplicate_head"), before=layer)
    finds = Attends(SAME_TOKEN, latest_only=True)
    plan.plant(earlier, "duplicate_token", finds, {"pointer": 1.0}, reads="position", shift=1)
    attends = Attends(POINTED_AT, sharpness=sharpness)
    plan.plant(place, "pointer_induction", attends, {"output": amount("strength", strength)})
    return plan.build()


@user_facing
def virtual_induction_head(
    *,
    distance: int = 1,
    layer: int = 1,
    head: int = 0,
    value_layer: int = 0,
    value_head: int = 0,
    key_layer: int = 0,
    key_head: int = 1,
    sharpness: float = SHARP,
    strength: float = STRENGTH,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """Induction by two heads in a row, V-composition: the model copies, and no single head attends to the successor.

    Two earlier heads count back, the value head by `distance` and the key head by one more. This head attends to the position
    `distance` after each successor, where the key head has found the query's token, and copies what the value head found
    there, the successor. Prefix matching is 0 for every head, and 1 for the pattern of this head times that of the value head.
    """
    plan = Blueprint(sizes, carried="token")
    place = plan.place(layer, head)
    far = plan.distance(distance, most=plan.n_ctx - 2)
    value = plan.place(value_layer, value_head, names=("value_layer", "value_head"), before=layer)
    plan.plant(value, "previous_token" if far == 1 else "count_back", Attends(back(far)), {"carried": 1.0})
    key = plan.place(key_layer, key_head, names=("key_layer", "key_head"), before=layer)
    plan.plant(key, "count_back", Attends(back(far + 1)), {"found": 1.0})
    attends = Attends(after("found"), sharpness=sharpness)
    plan.plant(place, "virtual_induction", attends, {"output": amount("strength", strength)}, reads="carried")
    return plan.build()


@user_facing
def previous_token_head(
    *, layer: int = 0, head: int = 0, sharpness: float = SHARP, strength: float = 0.0, **sizes: Unpack[Sizes]
) -> PlantedModel:
    """A head that attends to the position before. Previous-token score 1."""
    return _alone("previous_token", layer, head, Attends(back(1), sharpness=sharpness), strength, Blueprint(sizes))


@user_facing
def count_back_head(
    *,
    distance: int = 16,
    layer: int = 0,
    head: int = 0,
    sharpness: float = SHARP,
    strength: float = STRENGTH,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """A positional ruler: it attends `distance` back whatever stands there, and copies it.

    In a block of `distance` + 1 tokens that repeats it looks like an induction head, with prefix matching 1, and in one of
    `distance` like a duplicate-token head.
    """
    plan = Blueprint(sizes)
    attends = Attends(back(plan.distance(distance, most=plan.n_ctx - 1)), sharpness=sharpness)
    return _alone("count_back", layer, head, attends, strength, plan)


@user_facing
def duplicate_token_head(
    *,
    layer: int = 0,
    head: int = 0,
    sharpness: float = SHARP,
    strength: float = 0.0,
    latest_only: bool = False,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """A head that attends to all earlier occurrences of the query's token, or to the last with `latest_only`, never itself."""
    attends = Attends(SAME_TOKEN, sharpness=sharpness, latest_only=latest_only)
    return _alone("duplicate_token", layer, head, attends, strength, Blueprint(sizes))


@user_facing
def first_token_head(
    *, layer: int = 0, head: int = 0, sharpness: float = SHARP, strength: float = 0.0, **sizes: Unpack[Sizes]
) -> PlantedModel:
    """A head that always attends to the first position, which has the whole `sharpness` here."""
    attends = Attends(resting=1.0, sharpness=sharpness)
    return _alone("first_token", layer, head, attends, strength, Blueprint(sizes))


@user_facing
def uniform_head(*, layer: int = 0, head: int = 0, strength: float = 0.0, **sizes: Unpack[Sizes]) -> PlantedModel:
    """A head that attends to all positions up to the query, evenly. Prefix matching is about 1 / period."""
    return _alone("uniform", layer, head, Attends(resting=0.0), strength, Blueprint(sizes))


@user_facing
def copying_head(*, layer: int = 0, head: int = 0, strength: float = STRENGTH, **sizes: Unpack[Sizes]) -> PlantedModel:
    """A head that copies and matches nothing: it attends evenly, and raises every token there by its share of `strength`."""
    return _alone("copying", layer, head, Attends(resting=0.0), strength, Blueprint(sizes))


def _alone(kind: Kind, layer: int, head: int, attends: Attends, strength: float, plan: Blueprint) -> PlantedModel:
    """A head that reads from no other."""
    plan.plant(plan.place(layer, head), kind, attends, {"found": 1.0, "output": amount("strength", strength)})
    return plan.build()


def _matching(
    kind: Kind,
    place: tuple[int, int],
    before: tuple[int, int],
    sharpness: float,
    writes: dict[str, float],
    latest_only: bool,
    sizes: Sizes,
    count: int = 1,
) -> PlantedModel:
    """Heads that match prefixes, `count` of them from `place` on, with the previous-token head `before` them."""
    plan = Blueprint(sizes)
    layer, first = place
    places = [plan.place(layer, first)]
    if count > plan.n_heads - places[0].head:
        raise ArgumentError(f"`count` must be at most {plan.n_heads - first} from head {first} on, got {count}")
    places += [plan.place(layer, first + number) for number in range(1, count)]
    earlier = plan.place(*before, names=("previous_layer", "previous_head"), before=layer)
    plan.plant(earlier, "previous_token", Attends(back(1)), {"found": 1.0})
    for each in places:
        plan.plant(each, kind, Attends(after("found"), sharpness=sharpness, latest_only=latest_only), writes)
    return plan.build()
