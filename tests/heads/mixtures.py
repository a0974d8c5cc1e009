"""Planted models in which several heads match the same prefixes and write different things."""

from pytest_induction.planted import PlantedModel
from pytest_induction.planted.blueprint import Attends, Blueprint, after, back
from pytest_induction.records import HeadId

SIZES = {"d_vocab": 40, "n_ctx": 102, "n_heads": 3}


def matching_heads(*strengths: float, **sizes: int) -> PlantedModel:
    """Heads of layer 1 that match the same prefixes, and add so many nats each to the logit of what they match."""
    plan = Blueprint({**SIZES, **sizes})
    plan.plant(HeadId(0, 0), "previous_token", Attends(back(1)), {"found": 1.0})
    for number, strength in enumerate(strengths):
        kind = "induction" if strength > 0 else "copy_suppression"
        plan.plant(HeadId(1, number), kind, Attends(after("found")), {"output": strength})
    return plan.build()


def pair_beside(strength: float) -> PlantedModel:
    """A virtual induction head, L1H0 after L0H0, and L1H1 that matches by itself and adds so many nats."""
    plan = Blueprint(SIZES, carried="token", previous="token")
    plan.plant(HeadId(0, 0), "previous_token", Attends(back(1)), {"carried": 1.0, "previous": 1.0})
    plan.plant(HeadId(0, 1), "count_back", Attends(back(2)), {"found": 1.0})
    plan.plant(HeadId(1, 0), "virtual_induction", Attends(after("found")), {"output": 16.0}, reads="carried")
    plan.plant(HeadId(1, 1), "copy_suppression", Attends(after("previous")), {"output": strength})
    return plan.build()
