"""A planted model that retrieves facts by a head that is known, beside an induction head. Options as of all planted models.

A fact is a name, what stands between (the same id in all facts), and a value; a question is a name and what stands between. An
induction head matches what stands between alone, and so attends to all values evenly. The retrieval head matches the name before.
"""

from __future__ import annotations

from typing import Unpack

import torch

from pytest_induction.errors import ArgumentError, user_facing
from pytest_induction.planted.blueprint import SHARP, Attends, Blueprint, Match, Sizes, after, amount, back
from pytest_induction.planted.model import PlantedModel

N_NAMES = 8
FEWEST_IDS = 32
STRENGTH = 16.0


@user_facing
def retrieval_head(
    *,
    layer: int = 1,
    head: int = 1,
    distractors: bool = False,
    sharpness: float = SHARP,
    strength: float = STRENGTH,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """A retrieval head that finds the value of the fact that is asked for, beside an induction head that copies repeated tokens.

    The model has the facts as `facts`: ids of "names" and "values", and what is "between". The head attends to the value whose
    name is that of the question and raises it by `strength`; with `distractors` to all other values instead, evenly. It knows
    names alone, and so matches little in random tokens. Without it (`strength=0`) each value of the row is as likely as any
    other, and repeated tokens are copied as before. Heads 0 and 1 of the first layer tell which tokens stand one and two before.
    """
    plan = Blueprint(sizes, earlier="token")
    if plan.d_vocab < FEWEST_IDS:
        raise ArgumentError(f"`d_vocab` must be at least {FEWEST_IDS}, got {plan.d_vocab}")
    names, values = (tuple(range(1 + part * N_NAMES, 1 + (part + 1) * N_NAMES)) for part in (0, 1))
    of_names = torch.zeros(plan.d_vocab, plan.d_vocab)
    of_names[names, names] = 1
    place = plan.place(layer, head)
    induction = plan.place(layer, 0)
    previous, second = (plan.place(0, number, names=("layer", "head"), before=layer) for number in (0, 1))
    plan.plant(previous, "previous_token", Attends(back(1)), {"found": 1.0})
    plan.plant(second, "count_back", Attends(back(2)), {"earlier": 1.0}, through=of_names)
    plan.plant(induction, "induction", Attends(after("found")), {"output": STRENGTH})
    own = Match("found", "earlier", weight=-1.0 if distractors else 1.0)
    matches = (own, *after("found")) if distractors else (own,)
    writes = {"output": amount("strength", strength)}
    plan.plant(place, "retrieval", Attends(matches, sharpness=sharpness), writes)
    model = plan.build()
    model.facts = {"names": names, "values": values, "between": (2 * N_NAMES + 1,)}
    return model
