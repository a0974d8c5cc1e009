"""Backend 4: TransformerLens hook points, of a `TransformerBridge` or an older hooked model. Nothing is imported for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from pytest_induction.attention.backend import InterceptingBackend, Trials
from pytest_induction.attention.backends.eager import Squares
from pytest_induction.attention.backends.sdpa import Interceptor, watching
from pytest_induction.attention.capture import Capture
from pytest_induction.attention.edits import Steps
from pytest_induction.attention.errors import BackendNotApplicable, BackendUnavailable
from pytest_induction.attention.pattern import PatternReader
from pytest_induction.attention.softmax_edits import Editing
from pytest_induction.forward.calling import Caller
from pytest_induction.forward.changing import add_hooks
from pytest_induction.undoing import Changes

PATTERN = re.compile(r"blocks\.(\d+)\.attn\.hook_pattern")


class HookPointBackend(InterceptingBackend):
    """Listens at `blocks.*.attn.hook_pattern`. TransformerLens computes whole patterns in any case."""

    name = "TransformerLens hook_pattern"

    acts_outside = True
    can_isolate = False  # an edit at a hook point does not reach the values in every version; the points tell the layers
    groups = None

    def __init__(self, caller: Caller, trials: Trials, expected: int | None) -> None:
        self.caller = caller
        hook_points = getattr(caller.module, "hook_dict", None)
        if not isinstance(hook_points, dict):
            raise BackendNotApplicable("no TransformerLens hook points")
        found = {int(match[1]): point for name, point in hook_points.items() if (match := PATTERN.fullmatch(name))}
        self._points: list[nn.Module] = [found[layer] for layer in sorted(found)]
        self.layers = tuple(f"blocks.{layer}.attn" for layer in sorted(found))
        patterns: list[Tensor] = []
        capture = Capture(lambda _, reader: patterns.append(reader.pattern_of(range(trials[0].shape[1])).clone()))
        with watching(Interceptor(trials[0], Capture()), Squares) as squares, self.intercepting(trials[0], capture):
            caller(trials[0])
        if (
            not capture.heads
            or len(capture.heads) != len(self.layers)
            or (expected is not None and len(capture.heads) != expected)
        ):
            raise BackendUnavailable(
                f"{len(capture.heads)} patterns seen at {len(self.layers)} hook points for {expected} layers"
            )
        self.heads = tuple(capture.heads)
        self.check_names = lambda: None
        self.calls, self.n_calls = frozenset(range(len(capture.heads))), len(capture.heads)
        self._editing = Editing.of_each(caller, trials[0], self.layers, squares.that_give(patterns))

    def acting(self, tokens: Tensor, steps: Steps, *, first: int = 0) -> AbstractContextManager[object]:
        """Acts where the softmaxes are that give what the hook points carry."""
        return self._editing.acting(tokens, steps, first=first)

    @contextmanager
    def intercepting(self, tokens: Tensor, capture: Capture) -> Iterator[None]:
        def heard(module: nn.Module, inputs: Any, pattern: Any) -> None:
            if not isinstance(pattern, Tensor) or pattern.ndim != 4 or pattern.shape[-1] != tokens.shape[1]:
                raise BackendUnavailable("`hook_pattern` carries no pattern (batch, heads, positions, positions)")
            if capture.record_call(*pattern.shape[-2:], fits=True):
                capture(PatternReader(pattern))

        with Changes() as changes:
            add_hooks(changes, self._points, heard)
            yield
