"""Calls of `torch.nn.attention.flex_attention.flex_attention`, compiled or not, and calls of sdpa beside them.

Models know the function by many names: their own import, a class attribute, one that is compiled already. All of them end in one
higher-order op, which torch lets a mode see; what is compiled runs as it is written while a model is measured. The op tells the
log-sum-exp of every query, and the functions that change and mask its scores are evaluated where entries are read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from pytest_induction.attention.backend import InterceptingBackend, Trials
from pytest_induction.attention.backends.sdpa import CallsBackend, Interceptor, Watch, try_out, watching
from pytest_induction.attention.capture import Capture
from pytest_induction.attention.errors import BackendNotApplicable, BackendUnavailable
from pytest_induction.forward.calling import FLEX, Caller, as_written

UNMOVED = 1e-6  # what logits may change by, relative to the largest, where nothing that they are made of does


class FlexBackend(CallsBackend):
    """Reads every layer that attends by `flex_attention`, and those beside them that attend by sdpa."""

    name = "flex_attention"

    def __init__(self, caller: Caller, trials: Trials, expected: int | None) -> None:
        self.caller = caller
        if FLEX not in sys.modules or caller.calls_flex is False:
            raise BackendNotApplicable("flex_attention is not in use")
        captures, watches = try_out(caller, trials, Watch)
        if not any(watch.interceptor.flex.calls for watch in watches):
            raise BackendNotApplicable("0 calls of flex_attention seen")
        self.resolve_layers(captures, expected)
        check_output_is_all(self, trials[0], watches)
        self.notes += ("flex_attention is measured as it is written, not as it is compiled",)

    @contextmanager
    def intercepting(self, tokens: Tensor, capture: Capture) -> Iterator[None]:
        with as_written(), watching(Interceptor(tokens, capture), Watch):
            yield


def check_output_is_all(backend: InterceptingBackend, tokens: Tensor, watches: Sequence[Watch]) -> None:
    """Raise `BackendUnavailable` where the log-sum-exp weighs what heads found, as sinks do, or joins several calls."""
    if not any(watch.interceptor.flex.asked for watch in watches):
        return
    interceptor = Interceptor(tokens, Capture(layers=backend.calls, groups=backend.groups))
    interceptor.flex.disturbs = True
    with watching(interceptor, Watch):
        disturbed = backend.caller.logits(tokens)
    logits = backend.caller.logits(tokens)
    if not float((disturbed - logits).abs().max()) <= UNMOVED * float(logits.abs().max()):
        raise BackendUnavailable(
            "the log-sum-exp of flex_attention is used after the call (for a sink, or to join calls), so that its pattern "
            "is not what weighs the values: load the model with eager attention, or call `expose_attention` with the pattern"
        )
