"""Attention that a model, or code that knows the model, shows by itself.

`expose_attention` is the one function: called where attention is computed, it does nothing unless a measurement runs. Code that
knows a kind of model may call it from hooks that it attaches, through the entry points of the group `pytest_induction.backends`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any

from torch import Tensor, nn

from pytest_induction.attention.backend import Attach, InterceptingBackend, VerificationInputs
from pytest_induction.attention.capture import Capture
from pytest_induction.attention.errors import BackendNotApplicable
from pytest_induction.attention.pattern import LogSumExpReader, PatternReader, Reader, row_log_sum_exp
from pytest_induction.attention.tracking import ModuleTracker
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.forward.calling import Caller
from pytest_induction.forward.changing import remove_hooks
from pytest_induction.undoing import Changes

GROUP = "pytest_induction.backends"
UNUSED = "the model does not call it, and nothing installed attaches to it"


class Noticing:
    """Whether `expose_attention` is called in a pass, which is all that this pass tells of it."""

    called = False


_show: ContextVar[Callable[[Reader], None] | Noticing | None] = ContextVar("induction_show", default=None)


def expose_attention(
    pattern: Tensor | None = None,
    *,
    query: Tensor | None = None,
    key: Tensor | None = None,
    scale: float | None = None,
    mask: Tensor | None = None,
    causal: bool = True,
) -> None:
    """Show one layer's attention to a measurement that is running; do nothing, at the cost of a look-up, if none is.

    Call it once per layer and forward pass, in the order of the layers, from the model's own code or from a hook on it: with
    `pattern` (batch, heads, positions, positions), the weights of the values as they are used; or, where these are a softmax of
    scores and nothing else, with `query` (batch, heads, positions, d_head) and `key` (batch, key heads, positions, d_head), as
    they are multiplied (after rotary embeddings and norms). Then no pattern is made: the scores are query . key * `scale`
    (default 1 / sqrt(d_head)), plus `mask` (broadcast to batch, heads, positions, positions; a boolean one is True where
    attention is allowed), with the future left out if `causal`. What is shown is taken at its word: that it is all of the
    model's attention, and what weighs the values, cannot be checked.

    Raises `ArgumentError`, while a measurement runs, for tensors of other shapes.

    >>> expose_attention(query=q, key=k)                               # doctest: +SKIP
    """
    capture = _show.get()
    if isinstance(capture, Noticing):
        capture.called = True
    elif capture is not None:
        capture(_reader(pattern, query, key, scale, mask, causal))


def _reader(
    pattern: Tensor | None, query: Tensor | None, key: Tensor | None, scale: float | None, mask: Tensor | None, causal: bool
) -> Reader:
    if pattern is not None:
        if query is not None or key is not None or pattern.ndim != 4 or pattern.shape[-1] != pattern.shape[-2]:
            raise ArgumentError(
                "`expose_attention` takes a pattern (batch, heads, positions, positions), or query and key instead, "
                f"got a pattern {tuple(pattern.shape)}{'' if query is None else ' and a query'}"
            )
        return PatternReader(pattern)
    if query is None or key is None:
        raise ArgumentError("`expose_attention` takes a pattern, or both query and key")
    if query.ndim != 4 or key.ndim != 4 or query.shape[1] % key.shape[1] or query.shape[::2] != key.shape[::2]:
        raise ArgumentError(
            "`expose_attention` takes a query (batch, heads, positions, d_head) and a key (batch, key heads, positions, d_head), "
            f"got {tuple(query.shape)} and {tuple(key.shape)}"
        )
    number = query.shape[-1] ** -0.5 if scale is None else scale
    return LogSumExpReader(query, key, row_log_sum_exp(query, key, number, mask, causal), number, mask, causal)


class ExposedBackend(InterceptingBackend):
    """Reads what is shown to `expose_attention`, called by the model itself or by what knows it and attaches to it."""

    name = "expose_attention"
    reads = "what the model, or a hook on it, shows by itself"
    models = "models that no other backend can read"
    makes_patterns = True
    can_isolate = False  # what only shows its attention cannot be made to attend otherwise
    edits_outside = True
    stops = True
    learns_chunks = False
    can_edit = False

    def __init__(self, caller: Caller, inputs: VerificationInputs) -> None:
        self.caller = caller
        self._attach = next((known for known in (*inputs.attach, *_installed()) if self._knows(known)), None)
        if self._attach is None and caller.exposes is False:
            raise BackendNotApplicable(UNUSED)
        captures = []
        for tokens in inputs.tokens:
            running = ModuleTracker(caller.module)
            captures.append(Capture(running=running))
            with self.intercepting(tokens, captures[-1]), running.following():  # the hooks that show run before those that leave
                caller(tokens)
            if not captures[0].events:
                raise BackendNotApplicable(UNUSED)
        self.resolve_layers(captures, inputs.expected)
        self.notes += ("what is shown is taken at its word: nothing tells whether it is all, and what weighs the values",)

    def _knows(self, attach: Attach) -> bool:
        with Changes() as changes:
            return _attach_for(changes, attach, self.caller.module)

    @contextmanager
    def intercepting(self, tokens: Tensor, capture: Capture) -> Iterator[None]:
        with Changes() as changes:
            if self._attach is not None:
                _attach_for(changes, self._attach, self.caller.module)
            changes.undone_by(partial(_show.set, _show.get()))
            _show.set(lambda reader: _one(reader, tokens, capture))
            yield


@contextmanager
def noticing(caller: Caller) -> Iterator[None]:
    """Note of a pass inside the block whether the model calls `expose_attention`."""
    seen = Noticing()
    with Changes() as changes:
        changes.undone_by(partial(_show.set, _show.get()))
        _show.set(seen)
        yield
    caller.exposes = seen.called


def _one(reader: Reader, tokens: Tensor, capture: Capture) -> None:
    sizes = reader.log_sum_exp if isinstance(reader, LogSumExpReader) else reader.diagonals([0])
    fits = (sizes.shape[0], sizes.shape[-1]) == tuple(tokens.shape)
    if capture.record_call(sizes.shape[-1], sizes.shape[-1], fits=fits):
        capture(reader)


def _attach_for(changes: Changes, attach: Attach, module: nn.Module) -> bool:
    """Have it attached to the model; whether it is no stranger. Detached it leaves no hook, also where it was interrupted."""
    parts = list(module.modules())
    known = {part: {*vars(part).get("_forward_hooks", ()), *vars(part).get("_forward_pre_hooks", ())} for part in parts}
    given: list[Callable[[], Any] | None] = []

    def undo() -> None:
        if not given:
            remove_hooks(parts, lambda part, number, hook: number not in known[part])
        elif given[0] is not None:
            _detached(attach, given[0])

    changes.undone_by(undo)
    given.append(_attached(attach, module))
    return given[0] is not None


def _attached(attach: Attach, module: nn.Module) -> Callable[[], Any] | None:
    """What `attach` made of the model. Raises `ModelError` where its code fails or gives back something else."""
    name = _name(attach)
    try:
        detach = attach(module)
    except Exception as error:
        raise ModelError(f"{name} failed to attach to `{type(module).__name__}`: {type(error).__name__}: {error}") from error
    if detach is not None and not callable(detach):
        raise ModelError(f"{name} must return a function that detaches it, or None, it returned `{type(detach).__name__}`")
    return detach


def _detached(attach: Any, detach: Callable[[], Any]) -> None:
    try:
        detach()
    except Exception as error:
        raise ModelError(f"{_name(attach)} failed to detach: {type(error).__name__}: {error}") from error


def _name(attach: Any) -> str:
    return str(getattr(attach, "__qualname__", repr(attach)))


@cache
def _installed() -> tuple[Attach, ...]:
    """What installed distributions bring; one that cannot be imported is an error, not an absence."""
    found = []
    for entry in entry_points(group=GROUP):
        try:
            found.append(entry.load())
        except Exception as error:
            raise ModelError(f"the entry point {entry.value} of {GROUP} cannot be loaded: {error}") from error
    return tuple(found)
