"""Planted heads that match by meaning: by class, by translation, by the classes of two words. Options as of all planted models.

Which tokens mean alike is given, or else the same as that of the probes for a model without a tokenizer: classes of six ids next
to each other, and pairs of an id of the lower half with one of the upper.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Unpack

import torch

from pytest_induction.errors import ArgumentError, user_facing, whole_number
from pytest_induction.planted.blueprint import SHARP, Attends, Blueprint, Match, Sizes, amount, back
from pytest_induction.planted.model import PlantedModel

STRENGTH = 16.0
CLASS_SIZE, FEWEST_CLASSES = 6, 5
Groups = Sequence[tuple[int, ...]]


@user_facing
def class_induction_head(
    *,
    classes: Iterable[Iterable[int]] | None = None,
    writes: Literal["token", "class"] = "token",
    layer: int = 1,
    head: int = 0,
    previous_layer: int = 0,
    previous_head: int = 0,
    sharpness: float = SHARP,
    strength: float = STRENGTH,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """An induction head for which all tokens of a class are one: it attends to what followed earlier tokens of the query's class.

    It copies the token that stands there, or with `writes="class"` raises each token of its class by `strength`. A token of no
    class is a class of its own.
    """
    if writes not in ("token", "class"):
        raise ArgumentError(f"`writes` must be 'token' or 'class', got {writes!r}")
    d_vocab = _d_vocab(sizes)
    groups = _with_single(_groups("classes", consecutive(d_vocab) if classes is None else classes, d_vocab), d_vocab)
    plan = Blueprint(sizes, meanings=groups, before="meaning")
    place = plan.place(layer, head)
    earlier = plan.place(previous_layer, previous_head, names=("previous_layer", "previous_head"), before=layer)
    plan.plant(earlier, "previous_token", Attends(back(1)), {"before": 1.0}, reads="meaning")
    attends = Attends((Match("meaning", "before"),), sharpness=sharpness)
    raised = {"output": amount("strength", strength)}
    if writes == "class":
        members = torch.zeros(len(groups), d_vocab)
        for number, group in enumerate(groups):
            members[number, list(group)] = 1
        plan.plant(place, "class_induction", attends, raised, reads="meaning", through=members)
    else:
        plan.plant(place, "class_induction", attends, raised)
    return plan.build()


@user_facing
def translation_head(
    *,
    pairs: Iterable[Iterable[int]] | None = None,
    layer: int = 1,
    head: int = 0,
    previous_layer: int = 0,
    previous_head: int = 0,
    sharpness: float = SHARP,
    strength: float = STRENGTH,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """A head that attends to what followed the query's translation, or the query itself, and raises the translation of that.

    A token of no pair translates to itself.
    """
    d_vocab = _d_vocab(sizes)
    half = (d_vocab - 1) // 2
    given = zip(range(1, half + 1), range(half + 1, 2 * half + 1), strict=True) if pairs is None else pairs
    groups = _groups("pairs", given, d_vocab)
    translated = torch.eye(d_vocab)
    for group in groups:
        if len(group) != 2:
            raise ArgumentError(f"`pairs` must be pairs of token ids, got {group}")
        translated[list(group)] = translated[[group[1], group[0]]]
    plan = Blueprint(sizes, meanings=_with_single(groups, d_vocab), before="meaning")
    place = plan.place(layer, head)
    earlier = plan.place(previous_layer, previous_head, names=("previous_layer", "previous_head"), before=layer)
    plan.plant(earlier, "previous_token", Attends(back(1)), {"before": 1.0}, reads="meaning")
    attends = Attends((Match("meaning", "before"),), sharpness=sharpness)
    plan.plant(place, "translation", attends, {"output": amount("strength", strength)}, through=translated)
    return plan.build()


@user_facing
def pattern_head(
    *,
    classes: Iterable[Iterable[int]] | None = None,
    layer: int = 1,
    head: int = 0,
    earlier_layer: int = 0,
    sharpness: float = SHARP,
    strength: float = STRENGTH,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """A head that attends by the classes of two words: from what follows them to what came two on from earlier ones like them.

    In lines of two words, a colon and a label it attends from the colon to the labels of earlier lines of the same two classes,
    and copies them. Heads 0, 1 and 2 of `earlier_layer` tell each position the classes of the three tokens before it. One class
    that is the same is worth half of `sharpness`, the first position three quarters. Tokens of no class match nothing.
    """
    d_vocab = _d_vocab(sizes)
    groups = _groups("classes", consecutive(d_vocab) if classes is None else classes, d_vocab)
    plan = Blueprint(sizes, meanings=groups, one="meaning", two="meaning", three="meaning")
    place = plan.place(layer, head)
    plan.tell_before(earlier_layer, layer, ("one", "two", "three"), reads="meaning")
    both = (Match("one", "two", weight=0.5), Match("two", "three", weight=0.5))
    attends = Attends(both, resting=0.75, sharpness=sharpness)
    plan.plant(place, "pattern", attends, {"output": amount("strength", strength)})
    return plan.build()


def consecutive(d_vocab: int) -> Groups:
    """Ids from 1 up in classes of six, of fewer in a small vocabulary; the last few are in none."""
    size = min(CLASS_SIZE, (d_vocab - 1) // FEWEST_CLASSES)
    return [tuple(range(start, start + size)) for start in range(1, d_vocab - size + 1, size)] if size > 1 else []


def _d_vocab(sizes: Sizes) -> int:
    return whole_number("d_vocab", sizes.get("d_vocab", 64), least=6)


def _groups(name: str, given: Iterable[Iterable[int]], d_vocab: int) -> list[tuple[int, ...]]:
    """The classes or pairs as given: ids from 1 up, none in two of them."""
    groups = [tuple(whole_number(name, token, least=1) for token in group) for group in given]
    flat = [token for group in groups for token in group]
    if len(set(flat)) < len(flat) or max(flat, default=0) >= d_vocab:
        raise ArgumentError(f"`{name}` must be of ids from 1 to {d_vocab - 1}, each once, got {groups}")
    return groups


def _with_single(groups: Groups, d_vocab: int) -> list[tuple[int, ...]]:
    """The classes, and every other id as one of its own."""
    named = {token for group in groups for token in group}
    return [*groups, *((token,) for token in range(1, d_vocab) if token not in named)]
