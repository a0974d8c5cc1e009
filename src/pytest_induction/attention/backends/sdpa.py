"""Calls of `torch.nn.functional.scaled_dot_product_attention`, in any PyTorch model, with no adapter code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from pytest_induction.attention.backend import CallsBackend, VerificationInputs
from pytest_induction.attention.capture import Capture
from pytest_induction.attention.errors import BackendNotApplicable, BackendUnavailable
from pytest_induction.attention.interceptor import InterceptingMode, Interceptor, intercepted, patched, verification_passes
from pytest_induction.forward.calling import Caller


class SdpaBackend(CallsBackend):
    """Sees every causal self-attention call; refuses a model that computes attention anywhere else too."""

    name = "sdpa"
    reads = (
        "calls of `torch.nn.functional.scaled_dot_product_attention`, under whatever name it was imported, and "
        "`nn.MultiheadAttention`"
    )
    models = "most Hugging Face models, and plain torch modules"
    makes_patterns = False
    can_isolate = True
    edits_outside = False
    stops = True
    learns_chunks = True

    def __init__(self, caller: Caller, inputs: VerificationInputs) -> None:
        self.caller = caller
        captures, modes = verification_passes(caller, inputs.tokens, InterceptingMode)
        caller.calls_flex = any(mode.interceptor.flex.calls for mode in modes)
        if caller.calls_flex:
            raise BackendNotApplicable("flex_attention is called, which is read another way")
        if not captures[0].events:
            raise BackendUnavailable(f"0 calls of scaled_dot_product_attention seen{modes[0].sealed()}")
        self.resolve_layers(captures, inputs.expected)
        self._by_patch = not any(mode.aliased for mode in modes)

    def learn_base(self, tokens: Tensor, seen: Sequence[Tensor]) -> None:
        """Whether the base model alone attends as the whole model does.

        Believed of transformers' own models only: what a user's `forward` or hooks do around the base may not show here.
        """
        if self.caller.base is None or not self.caller.is_unchanged_transformers:
            return
        base: list[Tensor] = []
        capture = self.capture(tokens, lambda _, reader: base.append(reader.diagonals([0, 1])))
        with self.intercepting(tokens, capture), suppress(Exception):  # a base may need what only the whole gives it
            self.caller(tokens, logits=False)
        self.base_serves = len(seen) == len(base) and all(map(torch.equal, seen, base))

    @contextmanager
    def intercepting(self, tokens: Tensor, capture: Capture) -> Iterator[None]:
        interceptor = Interceptor(tokens, capture)
        with patched(interceptor) if self._by_patch else intercepted(interceptor, InterceptingMode):
            yield
