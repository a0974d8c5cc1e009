"""Backend 3: eager attention with `output_attentions`, for Hugging Face models that the first two cannot see into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pytest_induction.attention.backend import AttentionBackend, Trials
from pytest_induction.attention.backends.sdpa import Interceptor, Watch, each_itself, is_softmax, watching
from pytest_induction.attention.capture import Capture, Observer
from pytest_induction.attention.edits import Steps
from pytest_induction.attention.errors import BackendNotApplicable, BackendUnavailable
from pytest_induction.attention.pattern import PatternReader
from pytest_induction.attention.softmax_edits import Editing
from pytest_induction.attention.tracking import ModuleTracker
from pytest_induction.forward.calling import Caller
from pytest_induction.forward.changing import have_alone, remove_hooks
from pytest_induction.undoing import Changes

SETTING = "_attn_implementation_internal"
INSTALLED = "_output_capturing_hooks_installed"  # what transformers says of its own hooks


class EagerBackend(AttentionBackend):
    """Asks the model for its patterns. Costs (positions x positions) per head and layer, and says so."""

    name = "eager output_attentions"
    acts_outside = True
    stops = False

    def __init__(self, caller: Caller, trials: Trials, expected: int | None) -> None:
        self.caller = caller
        if not hasattr(getattr(caller.module, "config", None), SETTING):
            raise BackendNotApplicable("not a Hugging Face model")
        before = {str(getattr(config, SETTING)) for config in _configs(caller.module)} - {"None", "eager"}
        running = ModuleTracker(caller.module)
        interceptor = Interceptor(trials[0], Capture(running=running))
        with running.following(), watching(interceptor, Squares) as squares:
            patterns = self._patterns(trials[0], None)[1]
        shapes = {tuple(pattern.shape) for pattern in patterns}
        positions = trials[0].shape[1]
        if any(len(shape) != 4 or shape[-2:] != (positions, positions) for shape in shapes):
            raise BackendUnavailable(f"attention patterns of shapes {sorted(shapes)} returned for {positions} positions")
        self.layers = running.attention_layers(len(patterns), expected)
        self.heads = tuple(pattern.shape[1] for pattern in patterns)
        self.notes = tuple(f"measured with eager attention, the model itself runs {name}" for name in sorted(before))
        of_patterns = squares.that_give(patterns)
        every = set(of_patterns.values()) == set(range(len(patterns)))
        self._softmaxes = frozenset(of_patterns if every else squares.found)
        with _eager(caller.module):
            self._editing = Editing.of_each(caller, trials[0], self.layers, of_patterns)

    @contextmanager
    def acting(self, tokens: Tensor, steps: Steps, *, first: int = 0) -> Iterator[None]:
        """The model runs eager attention, as it does where it is measured."""
        with _eager(self.caller.module), self._editing.acting(tokens, steps, first=first):
            yield

    @contextmanager
    def alone(self, tokens: Tensor) -> Iterator[None]:
        """The softmaxes that gave the patterns give each position itself."""
        with watching(Interceptor(tokens, Capture(layers=self._softmaxes, alone=True)), Squares), _eager(self.caller.module):
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


class Squares(Watch):
    """Keeps the softmaxes over the positions of a trial, to tell which of them are the patterns that are returned."""

    def __init__(self, interceptor: Interceptor) -> None:
        super().__init__(interceptor)
        self.found: dict[int, Tensor] = {}

    def after(self, func: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if not is_softmax(func, output):
            return output
        number, capture, positions = self.interceptor.capture.n_events, self.interceptor.capture, self.interceptor.positions
        fits = output.shape[-2] == positions <= output.shape[-1]  # a sink may come after the positions
        if capture.record_call(*output.shape[-2:], fits=fits):
            if capture.alone:
                return each_itself(output)
            self.found[number] = output[..., :positions].detach().clone()
        return output

    def that_give(self, patterns: Sequence[Tensor]) -> dict[int, int]:
        """Of the softmaxes whose results are among the patterns, in any layout, by their numbers, which patterns these are."""
        numbers = {}
        for index, pattern in enumerate(patterns):
            values = pattern.float().flatten().sort().values
            for number, found in self.found.items():
                if found.numel() == len(values) and torch.allclose(found.float().flatten().sort().values, values, atol=1e-5):
                    numbers[number] = index
        return numbers


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
