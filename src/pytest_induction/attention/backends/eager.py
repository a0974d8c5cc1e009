"""Eager attention with `output_attentions`, for Hugging Face models whose calls nothing else shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pytest_induction.attention.backend import AttentionBackend, VerificationInputs
from pytest_induction.attention.capture import Capture, Observer
from pytest_induction.attention.edits import Edits
from pytest_induction.attention.errors import BackendNotApplicable, BackendUnavailable
from pytest_induction.attention.interceptor import Interceptor, intercepted
from pytest_induction.attention.pattern import PatternReader
from pytest_induction.attention.softmax_edits import SoftmaxEditor
from pytest_induction.attention.softmaxes import SquareSoftmaxes
from pytest_induction.attention.tracking import ModuleTracker
from pytest_induction.forward.calling import Caller
from pytest_induction.forward.changing import have_alone, remove_hooks
from pytest_induction.undoing import Changes

SETTING = "_attn_implementation_internal"
INSTALLED = "_output_capturing_hooks_installed"  # what transformers says of its own hooks


class EagerBackend(AttentionBackend):
    """Asks the model for its patterns. Costs (positions x positions) per head and layer, and says so."""

    name = "eager output_attentions"
    reads = "the patterns that the model returns"
    models = "Hugging Face models with their own attention code"
    makes_patterns = True
    can_isolate = True
    edits_outside = True
    stops = False
    learns_chunks = False

    def __init__(self, caller: Caller, inputs: VerificationInputs) -> None:
        self.caller = caller
        if not hasattr(getattr(caller.module, "config", None), SETTING):
            raise BackendNotApplicable("not a Hugging Face model")
        before = {str(getattr(config, SETTING)) for config in _configs(caller.module)} - {"None", "eager"}
        running = ModuleTracker(caller.module)
        interceptor = Interceptor(inputs.short, Capture(running=running))
        with running.following(), intercepted(interceptor, SquareSoftmaxes) as squares:
            patterns = self._patterns(inputs.short, None)[1]
        shapes = {tuple(pattern.shape) for pattern in patterns}
        positions = inputs.short.shape[1]
        if any(len(shape) != 4 or shape[-2:] != (positions, positions) for shape in shapes):
            raise BackendUnavailable(f"attention patterns of shapes {sorted(shapes)} returned for {positions} positions")
        self.layers = running.attention_layers(len(patterns), inputs.expected)
        self.heads = tuple(pattern.shape[1] for pattern in patterns)
        self.notes = tuple(f"measured with eager attention, the model itself runs {name}" for name in sorted(before))
        of_patterns = squares.that_give(patterns)
        every = set(of_patterns.values()) == set(range(len(patterns)))
        self._softmaxes = frozenset(of_patterns if every else squares.found)
        with _eager(caller.module):
            self._editor = SoftmaxEditor.of_each(caller, inputs.short, self.layers, of_patterns)

    @contextmanager
    def apply_edits(self, tokens: Tensor, edits: Edits, *, first: int = 0) -> Iterator[None]:
        """The model runs eager attention, as it does where it is measured."""
        with _eager(self.caller.module), self._editor.apply_edits(tokens, edits, first=first):
            yield

    @contextmanager
    def self_attention_only(self, tokens: Tensor) -> Iterator[None]:
        """The softmaxes that gave the patterns give each position itself."""
        interceptor = Interceptor(tokens, Capture(layers=self._softmaxes, self_only=True))
        with intercepted(interceptor, SquareSoftmaxes), _eager(self.caller.module):
            yield

    def run(
        self, tokens: Tensor, attention_mask: Tensor | None, observer: Observer, *, logits: bool, last: int | None = None
    ) -> Tensor | None:
        output, patterns = self._patterns(tokens, attention_mask)
        self.all_seen(len(patterns))
        capture = Capture(observer)
        for pattern in patterns:
            capture(PatternReader(pattern))
        return self.caller.logits_of(output, tokens) if logits else None

    def _patterns(self, tokens: Tensor, attention_mask: Tensor | None) -> tuple[Any, tuple[Tensor, ...]]:
        with _eager(self.caller.module), _hooks_put_back(self.caller.module):
            output = self.caller(tokens, attention_mask, output_attentions=True)
        found = getattr(output, "attentions", None) or ()
        if not found or not all(isinstance(pattern, Tensor) for pattern in found):
            raise BackendUnavailable("no attention patterns returned under output_attentions=True")
        return output, tuple(found)


@contextmanager
def _eager(module: nn.Module) -> Iterator[None]:
    """Eager attention in every part of the model, and the former setting of each part afterwards."""
    with Changes() as changes:
        have_alone(changes, module)
        for config in _configs(module):
            changes.set(config, SETTING, "eager")
        yield


@contextmanager
def _hooks_put_back(module: nn.Module) -> Iterator[None]:
    """Hooks that transformers registers inside the block, to collect what is asked for, are removed after it."""
    parts = list(module.modules())
    before = {part: set(part._forward_hooks) for part in parts}  # noqa: SLF001 - nothing else tells
    marked = {part for part in parts if INSTALLED in vars(part)}

    def is_new(part: nn.Module, number: int, hook: Any) -> bool:
        return number not in before[part] and str(getattr(hook, "__module__", "")).startswith("transformers.")

    def remove() -> None:
        remove_hooks(parts, is_new)
        for part in parts:
            if part not in marked:
                vars(part).pop(INSTALLED, None)

    with Changes() as changes:
        changes.undone_by(remove)
        yield


def _configs(module: nn.Module) -> list[Any]:
    found = {id(config): config for part in module.modules() if hasattr(config := getattr(part, "config", None), SETTING)}
    return list(found.values())
