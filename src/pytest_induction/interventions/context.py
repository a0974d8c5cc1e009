"""Interventions in force: for a block of a user's code, or for one call."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from pytest_induction.errors import ArgumentError, user_facing
from pytest_induction.interventions.arguments import token_ids
from pytest_induction.interventions.edits import Clean, Intervention, joined
from pytest_induction.models.intervening import Intervening
from pytest_induction.models.load import load_model
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.observing import ModelLike, check_range


def intervene(model: ModelLike, *interventions: Intervention) -> AbstractContextManager[ModelUnderTest]:
    """Every pass of the model inside the block is changed by these interventions, whoever calls it; afterwards it is as it was.

    Gives the model under test, on which all that can be measured is then measured under the interventions. The module itself is
    called as ever, with token ids (rows, positions) and without a cache. Gradients flow through what is changed.

    Raises `ArgumentError` for heads that the model does not have, `UnsupportedModel` where it cannot be made to act like that:
    both at the first pass.

    >>> with intervene(model, ablate("L1H3")) as ablated:                    # doctest: +SKIP
    ...     logits = model(tokens)
    ...     scores = measure_heads(ablated)
    """
    wrong = [each for each in interventions if not isinstance(each, Intervention)]
    if wrong:
        raise ArgumentError(f"`intervene` takes interventions, such as `ablate('L1H3')`, got `{type(wrong[0]).__name__}`")
    subject = load_model(model)

    def steps_for(tokens: Tensor, run: Any) -> Any:
        return joined(interventions, Clean(subject, tokens, run))

    return Intervening(subject, steps_for).installed()


@user_facing
def run_with(model: ModelLike, tokens: Any, *interventions: Intervention) -> Tensor:
    """Logits (rows, positions, d_vocab) of token ids (rows, positions) under interventions; see `intervene`.

    >>> run_with(model, tokens, ablate("L1H3"), freeze_patterns()).shape     # doctest: +SKIP
    torch.Size([1, 101, 64])
    """
    ids = token_ids("tokens", tokens)
    with intervene(model, *interventions) as subject:
        check_range(subject, int(ids.min()), int(ids.max()))
        return subject.logits(ids)
