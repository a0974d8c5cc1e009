"""Calls of `torch.nn.attention.flex_attention.flex_attention`, compiled or not, and calls of sdpa beside them.

Models know the function by many names: their own import, a class attribute, one that is compiled already. All of them end in one
higher-order op, which torch lets a mode see; what is compiled runs as it is written while a model is measured. The op tells the
log-sum-exp of every query, and the functions that change and mask its scores are evaluated where entries are read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from pytest_induction.attention.backend import CallsBackend, VerificationInputs
from pytest_induction.attention.capture import Capture
from pytest_induction.attention.errors import BackendNotApplicable
from pytest_induction.attention.interceptor import (
    InterceptingMode,
    Interceptor,
    check_output_is_all,
    intercepted,
    verification_passes,
)
from pytest_induction.forward.calling import FLEX, Caller, as_written


class FlexBackend(CallsBackend):
    """Reads every layer that attends by `flex_attention`, and those beside them that attend by sdpa."""

    name = "flex_attention"
    reads = "calls of `torch.nn.attention.flex_attention.flex_attention`, compiled or not, and `sdpa` calls beside them"
    models = 'current training code, Hugging Face models loaded with `attn_implementation="flex_attention"`'
    makes_patterns = True
    can_isolate = True
    edits_outside = False
    stops = True
    learns_chunks = False

    def __init__(self, caller: Caller, inputs: VerificationInputs) -> None:
        self.caller = caller
        if FLEX not in sys.modules or caller.calls_flex is False:
            raise BackendNotApplicable("flex_attention is not in use")
        captures, modes = verification_passes(caller, inputs.tokens, InterceptingMode)
        if not any(mode.interceptor.flex.calls for mode in modes):
            raise BackendNotApplicable("0 calls of flex_attention seen")
        self.resolve_layers(captures, inputs.expected)
        check_output_is_all(self, inputs.short, modes)
        self.notes += ("flex_attention is measured as it is written, not as it is compiled",)

    @contextmanager
    def intercepting(self, tokens: Tensor, capture: Capture) -> Iterator[None]:
        with as_written(), intercepted(Interceptor(tokens, capture), InterceptingMode):
            yield
