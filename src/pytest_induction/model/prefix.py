"""Rows whose beginning was run once: passes over what comes after it, as many as one likes, take the tokens of that alone.

For models of transformers, which take the keys and values of earlier positions back (`past_key_values`).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from pytest_induction.errors import InductionError
from pytest_induction.forward.calling import as_found, is_out_of_memory
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.spending import charge
from pytest_induction.undoing import puts_back

CACHE = "past_key_values"  # what transformers calls it
ROUNDING = 64  # units in the last place of the largest logit, by which other kernels may differ


class Prefix:
    """The beginning of some rows, token ids (rows, positions), run once. `continues` says for which models."""

    def __init__(self, subject: ModelUnderTest, tokens: Tensor) -> None:
        self.subject = subject
        tokens = tokens.to(subject.device)
        self._cache: Any = self._run(tokens).past_key_values

    def logits(self, rows: Tensor, tokens: Tensor, *, first: int = 0) -> Tensor:
        """Logits (n, positions, d_vocab) of `tokens` (n, positions) that come after the rows of these numbers (n,).

        The first `first` layers are not run in it.
        """
        cache = deepcopy(self._cache)  # a pass adds to it
        for layer in cache.layers[first:]:
            layer.batch_select_indices(rows.to(self.subject.device))
        tokens = tokens.to(self.subject.device)
        return self.subject.caller.logits_of(self._run(tokens, **{CACHE: cache}), tokens)

    @puts_back
    def _run(self, tokens: Tensor, **cache: Any) -> Any:
        charge(self.subject, tokens.numel())
        with as_found(self.subject.module, draws=self.subject.draws):
            return self.subject.module(input_ids=tokens, use_cache=True, **cache)


def continues(subject: ModelUnderTest) -> bool:
    """Whether passes of a model may begin after a prefix; tried out once, on a few tokens."""
    if subject.intervening is not None or subject.mixes_rows or subject.draws:
        return False
    return subject.remember(("continues",), lambda: _tried(subject))


def _tried(subject: ModelUnderTest) -> bool:
    caller = subject.caller
    takes = all(caller.knows(name) for name in (CACHE, "use_cache", "input_ids"))
    if not (takes and caller.is_unchanged_transformers and caller.convention.inputs.is_plain):
        return False
    tokens = subject.random_ids(2, TRIED_POSITIONS)
    try:
        whole = subject.logits(tokens)[:, -1].flip(0)
        found = Prefix(subject, tokens[:, :-1]).logits(torch.tensor([1, 0]), tokens[:, -1:].flip(0))[:, 0]
    except (InductionError, AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return False
    most = ROUNDING * torch.finfo(whole.dtype).eps * float(whole.abs().max())
    return bool((found - whole).abs().max() <= most)


TRIED_POSITIONS = 9
TRIED = 2 * 2 * TRIED_POSITIONS
"""Tokens at most on which it is tried out."""
