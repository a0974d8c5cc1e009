"""TransformerLens hook points, of a `TransformerBridge` or an older hooked model. Nothing is imported for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from pytest_induction.attention.backend import InterceptingBackend, VerificationInputs
from pytest_induction.attention.capture import Capture
from pytest_induction.attention.edits import Edits
from pytest_induction.attention.errors import BackendNotApplicable, BackendUnavailable
from pytest_induction.attention.interceptor import Interceptor, intercepted
from pytest_induction.attention.pattern import PatternReader
from pytest_induction.attention.softmax_edits import SoftmaxEditor
from pytest_induction.attention.softmaxes import SquareSoftmaxes
from pytest_induction.forward.calling import Caller
from pytest_induction.forward.changing import add_hooks
from pytest_induction.undoing import Changes

PATTERN = re.compile(r"blocks\.(\d+)\.attn\.hook_pattern")


class HookPointBackend(InterceptingBackend):
    """Reads at `blocks.*.attn.hook_pattern`. TransformerLens computes whole patterns in any case."""

    name = "TransformerLens hook_pattern"
    reads = "the pattern at the hook points"
    models = "`TransformerBridge` and older hooked models"
    makes_patterns = True
    can_isolate = False  # an edit at a hook point does not reach the values in every version; the points tell the layers
    edits_outside = True
    stops = True
    learns_chunks = False
    groups = None

    def __init__(self, caller: Caller, inputs: VerificationInputs) -> None:
        self.caller = caller
        hook_points = getattr(caller.module, "hook_dict", None)
        if not isinstance(hook_points, dict):
            raise BackendNotApplicable("no TransformerLens hook points")
        found = sorted(int(match[1]) for name in hook_points if (match := PATTERN.fullmatch(name)))
        self.layers = tuple(f"blocks.{layer}.attn" for layer in found)
        patterns: list[Tensor] = []
        capture = Capture(lambda _, reader: patterns.append(reader.pattern_of(range(inputs.short.shape[1])).clone()))
        with (
            intercepted(Interceptor(inputs.short, Capture()), SquareSoftmaxes) as squares,
            self.intercepting(inputs.short, capture),
        ):
            caller(inputs.short)
        if (
            not capture.heads
            or len(capture.heads) != len(self.layers)
            or (inputs.expected is not None and len(capture.heads) != inputs.expected)
        ):
            raise BackendUnavailable(
                f"{len(capture.heads)} patterns seen at {len(self.layers)} hook points for {inputs.expected} layers"
            )
        self.heads = tuple(capture.heads)
        self.calls, self.n_calls = frozenset(range(len(capture.heads))), len(capture.heads)
        self._editor = SoftmaxEditor.of_each(caller, inputs.short, self.layers, squares.that_give(patterns))

    def apply_edits(self, tokens: Tensor, edits: Edits, *, first: int = 0) -> AbstractContextManager[object]:
        """Acts where the softmaxes are that give what the hook points carry."""
        return self._editor.apply_edits(tokens, edits, first=first)

    @contextmanager
    def intercepting(self, tokens: Tensor, capture: Capture) -> Iterator[None]:
        def intercept(module: nn.Module, inputs: Any, pattern: Any) -> None:
            if not isinstance(pattern, Tensor) or pattern.ndim != 4 or pattern.shape[-1] != tokens.shape[1]:
                raise BackendUnavailable("`hook_pattern` carries no pattern (batch, heads, positions, positions)")
            if capture.record_call(*pattern.shape[-2:], fits=True):
                capture(PatternReader(pattern))

        with Changes() as changes:
            points: Any = self.caller.module.hook_dict
            add_hooks(changes, [points[f"{layer}.hook_pattern"] for layer in self.layers], intercept)
            yield
