"""A planted model that copies the meaning of words by a head that is known, beside an induction head. Options as of all models.

A word is two ids that follow each other; the pairs are the model's `words`. Three layers: one head tells at a word's end which
word it is, the concept head brings that to where the word is about to come again, and a third carries it one position on, where
the word has begun.
"""

from __future__ import annotations

from typing import Unpack

import torch

from pytest_induction.errors import ArgumentError, user_facing
from pytest_induction.planted.blueprint import SHARP, Attends, Blueprint, Match, Sizes, after, amount, back
from pytest_induction.planted.model import PlantedModel

N_WORDS = 8
FEWEST_IDS = 32
STRENGTH = 16.0


@user_facing
def concept_head(
    *,
    head: int = 1,
    of_tokens: bool = False,
    sharpness: float = SHARP,
    strength: float = STRENGTH,
    **sizes: Unpack[Sizes],
) -> PlantedModel:
    """A concept head, beside an induction head that copies repeated tokens. Three layers unless more are given.

    The concept head, `head` of the second layer, attends to what stands two after earlier occurrences of the query's token, and
    brings along which word ends there; with `of_tokens` which token stands there, whatever it means. At the next position the
    first head of the third layer reads that, and raises the second token of this word, or that token, by `strength`. Without it
    (`strength=0`) words are copied by the induction head alone, token by token.
    """
    plan_sizes: Sizes = {**sizes, "n_layers": sizes.get("n_layers", 3)}
    words = [(first, first + N_WORDS) for first in range(1, 1 + N_WORDS)]
    if sizes.get("d_vocab", 64) < FEWEST_IDS:
        raise ArgumentError(f"`d_vocab` must be at least {FEWEST_IDS}, got {sizes['d_vocab']}")
    plan = Blueprint(plan_sizes, meanings=words, earlier="token", ended="meaning", upcoming="meaning", brought="token")
    if plan.n_layers < 3 or plan.n_heads < 3:
        raise ArgumentError(f"`n_layers` and `n_heads` must be at least 3, got {plan.n_layers} and {plan.n_heads}")
    seconds = torch.zeros(N_WORDS, plan.d_vocab)
    seconds[range(N_WORDS), [second for _, second in words]] = 1
    plan.plant(plan.place(0, 0), "previous_token", Attends(back(1)), {"found": 1.0})
    plan.plant(plan.place(0, 1), "count_back", Attends(back(2)), {"earlier": 1.0})
    is_word = (Match("meaning", "meaning", weight=0.5), Match("position", "position", shift=1, weight=0.5))
    plan.plant(plan.place(0, 2), "word_end", Attends(is_word, resting=0.75), {"ended": 1.0}, reads="meaning")
    plan.plant(plan.place(1, 0), "induction", Attends(after("found")), {"output": STRENGTH})
    ends = Attends((Match("token", "earlier"),), sharpness=sharpness)
    raised, carries = {"output": amount("strength", strength)}, Attends(back(1))
    if of_tokens:
        plan.plant(plan.place(1, head), "lookahead", ends, {"brought": 1.0})
        plan.plant(plan.place(2, 0), "carrying", carries, raised, reads="brought")
    else:
        plan.plant(plan.place(1, head), "concept", ends, {"upcoming": 1.0}, reads="ended")
        plan.plant(plan.place(2, 0), "carrying", carries, raised, reads="upcoming", through=seconds)
    model = plan.build()
    model.words = words
    return model
