"""Where edits are applied: in one pass, or in every pass of a model inside a block, whatever code makes it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pytest_induction.attention.backend import checked
from pytest_induction.attention.edits import Edit, EditingCapture, Edits, LayerPart
from pytest_induction.attention.errors import BackendUnavailable
from pytest_induction.errors import ModelError, UnsupportedModel
from pytest_induction.forward.calling import Caller, quoted, run_as_written
from pytest_induction.forward.changing import add_hooks, replace_forward
from pytest_induction.model.circuits import circuits_of
from pytest_induction.model.head_weights import Circuits, LayerCircuits
from pytest_induction.model.protocol import ModelUnderTest, active_edits
from pytest_induction.undoing import Changes, Lasting, puts_back


@contextmanager
def apply_edits_to_outputs(subject: ModelUnderTest, circuits: Circuits, tokens: Tensor, edits: Edits) -> Iterator[None]:
    """In a pass over `tokens` (rows, positions) inside the block, what heads of layers found is edited.

    `circuits` are those of the model, see `circuits_of`. May be entered before a measurement or in it; what is measured is what
    the changed model does. Raises `BackendUnavailable` for edits of anything but what heads found, and for a layer whose
    output projection is no module; while the pass runs, for one that is given something else than it was.
    """
    layers = {layer: circuits.layers[layer] for layer, wanted in edits.items() if wanted}
    for layer, found in layers.items():
        _check(edits[layer], found, subject)
    with Changes() as changes:
        for layer, found in layers.items():
            if found.writes is not None:
                add_hooks(changes, [found.writes], _editing_hook(edits[layer], found, tokens), before=True, with_kwargs=True)
        yield


def _check(edits: Sequence[Edit], layer: LayerCircuits, subject: ModelUnderTest) -> None:
    wrong = next((edit for edit in edits if not edit.needs_output_only), None)
    if wrong is not None:
        raise BackendUnavailable(
            f"`{type(wrong).__name__}` edits more than what heads found, and nothing else of {quoted(layer.path)} can be "
            f"changed in a model that is read by {subject.reading.name}"
        )
    if layer.writes is None:
        raise BackendUnavailable(f"no module is given what the heads of {quoted(layer.path)} found")


def _editing_hook(edits: Sequence[Edit], layer: LayerCircuits, tokens: Tensor) -> Callable[..., tuple[Any, Any]]:
    """A hook that has the first tensor that a module is given changed by edits."""

    def before(part: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
        places = [*enumerate(inputs), *options.items()]
        place, given = next(((place, each) for place, each in places if isinstance(each, Tensor)), (None, None))
        if given is None or given.ndim != 3 or given.shape[:2] != tokens.shape or given.shape[-1] % layer.n_heads:
            seen = None if given is None else tuple(given.shape)
            raise BackendUnavailable(
                f"the output projection of {quoted(layer.path)} is given {seen} where "
                f"{(*tokens.shape, layer.n_heads)} x d_head was expected"
            )
        found = given.unflatten(-1, (layer.n_heads, -1)).transpose(1, 2)
        for edit in edits:
            found = edit.on_output(found, None, LayerPart())
        changed = found.transpose(1, 2).flatten(-2)
        if isinstance(place, int):
            return (*inputs[:place], changed, *inputs[place + 1 :]), options
        return inputs, {**options, place: changed}

    return before


EditsFor = Callable[[Tensor, Callable[[Edits], None]], Edits]
"""Makes the edits of a pass over token ids (rows, positions); may run that pass with other edits before, as often as it likes."""


@contextmanager
def apply_edits(subject: ModelUnderTest, tokens: Tensor, edits: Edits, *, first: int = 0) -> Iterator[None]:
    """In a pass over `tokens` (rows, positions) inside the block layers are edited like this; `first` layers are not run in it.

    Raises `UnsupportedModel` where heads of this model cannot be edited like that, or the pass did not show all its layers.
    """
    changed = subject.intervening
    around = nullcontext() if changed is None else changed.ahead(tokens, lambda: subject.logits(tokens))
    try:
        with around, _where_it_can(subject, tokens, edits, first) as taken, checked(lambda: _check_all(subject, edits, taken)):
            yield
    except BackendUnavailable as refused:
        raise UnsupportedModel(f"the heads of {subject.name} cannot be edited: {refused}") from None


def _where_it_can(subject: ModelUnderTest, tokens: Tensor, edits: Edits, first: int) -> AbstractContextManager[object]:
    """Where attention is seen, or where what heads found is projected."""
    convention, positions = subject.caller.convention, tokens.shape[1]
    if convention.length(positions) != positions and convention.multiple > 1:
        raise BackendUnavailable(f"it takes multiples of {convention.multiple} positions only, and {positions} are given")
    if subject.reading.can_edit:
        return subject.reading.apply_edits(tokens, edits, first=first)
    if first:
        raise BackendUnavailable(f"a pass cannot begin at a later layer in a model that is read by {subject.reading.name}")
    return apply_edits_to_outputs(subject, circuits_of(subject), tokens, edits)


def _check_all(subject: ModelUnderTest, edits: Edits, taken: object) -> None:
    """Raise `BackendUnavailable` where a pass did not show all its layers."""
    if edits and isinstance(taken, EditingCapture):
        subject.reading.all_seen(len(taken.heads))


class Planned(NamedTuple):
    """The edits of a pass over some token ids, made before it."""

    tokens: Tensor
    edits: Edits


class _Here(threading.local):
    """What is so in one thread: whether the model's own pass runs, and the edits that were made ahead of it."""

    busy = False
    planned: Planned | None = None


class ActiveEdits:
    """Every pass of a model is edited, as long as it is installed.

    What the edits need of other passes is found out before anything looks at the pass that they are for, or changes it too:
    it would take those passes for this one. `change` changes the model itself for as long.
    """

    def __init__(self, subject: ModelUnderTest, edits_for: EditsFor, change: Callable[[Changes], None] | None = None) -> None:
        self.subject = subject
        self._steps_for = edits_for
        self._change = change
        self._here = _Here()

    def installed(self) -> AbstractContextManager[ModelUnderTest]:
        """The block. Entering it raises `ModelError` where the model is intervened on already."""
        return Lasting(self.subject, self._install)

    def _install(self, changes: Changes) -> None:
        subject, caller = self.subject, self.subject.caller
        if subject.intervening is not None:
            raise ModelError(f"an intervention on {subject.name} is already active: give all of them to one `intervene`")
        for part in (caller.module, *([] if caller.base is None else [caller.base])):
            self._put_around(changes, part, caller)
        run_as_written(changes)
        if self._change is not None:
            self._change(changes)
        changes.undone_by(lambda: active_edits.pop(caller.module, None))
        active_edits[caller.module] = self

    @contextmanager
    def outside(self, tokens: Tensor, run: Callable[[], Any]) -> Iterator[None]:
        """Around a measured pass over `tokens`. The edits are applied here where that is where this backend applies them."""
        with self.ahead(tokens, run):
            planned = self._here.planned
            if planned is None or self._here.busy or not self.subject.reading.edits_outside:
                yield
            else:
                with self.set_aside(), self._applied(planned.edits, tokens):
                    yield

    @contextmanager
    def ahead(self, tokens: Tensor, run: Callable[[], Any]) -> Iterator[None]:
        """Around a pass over `tokens` that something else changes too: its edits are made here."""
        if self._here.busy or self._here.planned is not None:
            yield
            return
        tokens = tokens.to(self.subject.device)
        with self.set_aside():
            edits = self._edits(tokens, run)
        with Changes() as changes:
            changes.set(self._here, "planned", Planned(tokens, edits))
            yield

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Passes inside the block are the model's own."""
        with Changes() as changes:
            changes.set(self._here, "busy", True)  # noqa: FBT003 - a value like any other
            yield

    def _put_around(self, changes: Changes, part: nn.Module, caller: Caller) -> None:
        forward = part.forward

        @functools.wraps(forward)
        @puts_back
        def acted(*args: Any, **options: Any) -> Any:
            if self._here.busy:
                return forward(*args, **options)
            tokens = caller.tokens_in(args, options)
            if tokens is None:
                raise ModelError(f"an intervention needs token ids (rows, positions) as the input of {self.subject.name}")
            if options.get("past_key_values") is not None:
                raise ModelError(f"an intervention needs whole sequences: call {self.subject.name} with use_cache=False")
            with self.set_aside():
                planned = self._here.planned
                fits = planned is not None and torch.equal(planned.tokens, tokens.to(planned.tokens.device))
                edits = planned.edits if planned is not None and fits else self._edits(tokens, lambda: forward(*args, **options))
                with self._applied(edits, tokens):
                    return forward(*args, **options)

        replace_forward(changes, part, acted, everywhere=True)
        # or what was measured before is taken for what is measured now
        add_hooks(changes, [part], lambda part, inputs: None, before=True)

    def _edits(self, tokens: Tensor, run: Callable[[], Any]) -> Edits:
        """The edits of a pass over `tokens`, whose unchanged passes draw what it will draw, and leave that to be drawn."""
        cuda = [tokens.device] if tokens.device.type == "cuda" else []

        def run_with(edits: Edits) -> None:
            with Changes() as changes:
                for device in cuda:
                    changes.undone_by(partial(torch.cuda.set_rng_state, torch.cuda.get_rng_state(device), device))
                changes.undone_by(partial(torch.set_rng_state, torch.get_rng_state()))
                with torch.no_grad(), apply_edits(self.subject, tokens, edits):
                    run()

        return self._steps_for(tokens, run_with)

    def _applied(self, edits: Edits, tokens: Tensor) -> AbstractContextManager[None]:
        """Where there are none the model is left alone."""
        return apply_edits(self.subject, tokens, edits) if edits else nullcontext()
