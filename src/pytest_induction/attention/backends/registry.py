"""The attention functions of Hugging Face transformers, as each layer looks them up.

The look-up itself is intercepted, and whatever function it gives is run unchanged: no setting of the model is touched, so its
masks stay its own. A function that returns the pattern (eager attention, with its soft caps, sinks and biases) is read from
that; one that does not is read from its queries and keys, unless it was given something that changes the scores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor

from pytest_induction.attention.backend import CallsBackend, VerificationInputs
from pytest_induction.attention.capture import Capture
from pytest_induction.attention.edits import EditingCapture
from pytest_induction.attention.errors import BackendNotApplicable, BackendUnavailable
from pytest_induction.attention.kernels import AttentionCall, exact, is_softmax_attention, is_weighted_sum
from pytest_induction.attention.pattern import LogSumExpReader, PatternReader, Reader, Scored
from pytest_induction.attention.tracking import ModuleTracker
from pytest_induction.forward.calling import Caller
from pytest_induction.forward.changing import beneath, take_over
from pytest_induction.undoing import Changes

LOOK_UP = "get_interface"
OPEN_WHERE_TRUE = ("sdpa_attention_forward",)  # functions that are known to take a boolean mask in place of none
CHANGES_THE_SCORES = ("softcap", "s_aux", "sinks", "position_bias", "sliding_window")


class RegistryBackend(CallsBackend):
    """Reads what passes through transformers' attention interface."""

    name = "transformers attention interface"
    reads = "what each layer looks up there: the pattern if the function returns it, otherwise queries and keys"
    models = "Hugging Face models that run eagerly, with soft caps or sinks"
    makes_patterns = True
    can_isolate = True
    edits_outside = False
    stops = True
    learns_chunks = False

    def __init__(self, caller: Caller, inputs: VerificationInputs) -> None:
        self.caller = caller
        if "transformers.modeling_utils" not in sys.modules:
            raise BackendNotApplicable("transformers is not in use")
        if not hasattr(sys.modules["transformers.modeling_utils"].AttentionInterface, "get_interface"):
            raise BackendUnavailable("this transformers looks its attention functions up in another way than newer ones do")
        captures = []
        for tokens in inputs.tokens:
            running = ModuleTracker(caller.module)
            captures.append(Capture(running=running))
            with running.following(), self.intercepting(tokens, captures[-1]):
                caller(tokens)
        if not captures[0].events:
            raise BackendUnavailable("0 calls of a registered attention function seen")
        self.resolve_layers(captures, inputs.expected)

    @contextmanager
    def intercepting(self, tokens: Tensor, capture: Capture) -> Iterator[None]:
        """Wrap every attention function that is looked up inside the block."""
        interface = sys.modules["transformers.modeling_utils"].AttentionInterface
        look_up, thread, is_active = beneath(interface, LOOK_UP), get_ident(), [True]

        def look_up_intercepted(table: Any, implementation: Any, default: Any) -> Callable[..., Any]:
            function = look_up(table, implementation, default)

            def intercepted(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
                if not is_active or get_ident() != thread:  # some keep the function that they looked up
                    return function(module, query, key, value, *rest, **options)
                fits = query.shape[0] == tokens.shape[0] and query.shape[2] == key.shape[2] == tokens.shape[1]
                record_call = capture.record_call(query.shape[2], key.shape[2], fits=fits)
                if record_call and isinstance(capture, EditingCapture):
                    return _edited_call(capture, function, module, (query, key, value, *rest), options)
                found = function(module, query, key, value, *rest, **options)
                if not record_call:
                    return found
                output, weights, *more = found
                if capture.self_only:
                    output = value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2).contiguous()
                else:
                    mask = rest[0] if rest else options.get("attention_mask")
                    capture(_reader(module, AttentionCall(query, key, value, mask), output, weights, options))
                return output, weights, *more

            return intercepted

        with Changes() as changes:
            changes.undone_by(is_active.clear)
            take_over(changes, (interface, LOOK_UP, look_up_intercepted))
            yield


def _edited_call(
    capture: EditingCapture, function: Callable[..., Any], module: Any, given: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """What an attention function gives for a layer that is edited."""
    query, key, value, *rest = given
    mask = rest[0] if rest else options.get("attention_mask")
    if mask is not None and not isinstance(mask, Tensor):
        raise BackendUnavailable(f"attention with a mask of type `{type(mask).__name__}` cannot be edited")
    causal = mask is None and bool(getattr(module, "is_causal", True))
    call = AttentionCall(query, key, value, mask, causal=causal, given_scale=options.get("scaling"))
    more: list[Any] = []

    def run(edited: AttentionCall | None) -> Tensor:
        if edited is None:
            output, *others = function(module, *given, **options)
        else:
            if mask is None and edited.mask is not None and function.__name__ not in OPEN_WHERE_TRUE:
                raise BackendUnavailable("an attention function that is given no mask cannot be made to leave entries out")
            settings = {**options, **({} if rest else {"attention_mask": edited.mask})}
            masks = (edited.mask, *rest[1:]) if rest else ()
            output, *others = function(module, edited.query, edited.key, edited.value, *masks, **settings)
        more.extend(others)
        found: Tensor = output.transpose(1, 2)
        return found

    output = capture.apply(call, run)
    return output.transpose(1, 2).contiguous(), *more


def _reader(module: Any, call: AttentionCall, output: Any, weights: Any, options: dict[str, Any]) -> Reader:
    positions, mask = call.query.shape[2], call.mask
    if isinstance(weights, Tensor) and weights.ndim == 4 and tuple(weights.shape[-2:]) == (positions, positions):
        if not is_weighted_sum(weights, call.value, output.transpose(1, 2)):
            raise BackendUnavailable(
                "patterns that are not what weighs the values: what is done to them after the softmax shows nowhere"
            )
        scale = call._replace(given_scale=options.get("scaling")).scale
        return PatternReader(weights, Scored(call.query, call.key, scale, options.get("softcap")))
    changing = [name for name in CHANGES_THE_SCORES if options.get(name) is not None]
    if changing:
        raise BackendUnavailable(
            f"attention without patterns that takes `{changing[0]}`: load it with attn_implementation='eager'"
        )
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 4):
        raise BackendUnavailable(
            f"attention with a mask of type `{type(mask).__name__}`, which is not (batch, heads, positions, positions)"
        )
    causal = mask is None and bool(getattr(module, "is_causal", True))
    call = call._replace(causal=causal, given_scale=options.get("scaling"))
    if not is_softmax_attention(call, output.transpose(1, 2)):
        raise BackendUnavailable(
            "attention without patterns whose output is not that of softmax attention: something else changes the scores"
        )
    return LogSumExpReader(call.query, call.key, exact(call), call.scale, mask, causal)
