"""Apply edits where only patterns are seen: to the softmax that is a pattern, and to the product in which it weighs the values.

A pattern is followed from its softmax to the product through views, casts and changes without effect. Beside it goes a tensor of
its shape that holds no numbers: the strides of that tell which axis of a view is which of the pattern's, and so which axes of the
product are rows, heads and positions. Whether every pattern can be followed like that is verified once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytest_induction.attention.axes import PRODUCTS, Axes, AxisLayout, Operand
from pytest_induction.attention.capture import is_measuring
from pytest_induction.attention.edits import Edit, EditingCapture, Edits, LayerPart, Record
from pytest_induction.attention.errors import BackendUnavailable
from pytest_induction.attention.interceptor import InterceptingMode, Interceptor, intercepted
from pytest_induction.attention.joining import tensors_in
from pytest_induction.attention.softmaxes import is_softmax
from pytest_induction.forward.calling import Caller, first_line, is_out_of_memory, quoted

RESHAPING = frozenset({"view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "_unsafe_view"})
MOVING = frozenset(
    {"transpose", "permute", "unsqueeze", "squeeze", "expand", "swapaxes", "swapdims", "movedim", "moveaxis", "expand_as"}
    | {"chunk", "split", "unbind", "narrow", "select", "__getitem__", "__get__", "t", "adjoint", "matrix_transpose"}
)
LIKE_ANOTHER = ("where", "type_as", "to")  # which take tensors that they do not compute with, or not where it matters
CLOSE = 1e-2  # what a cast to half precision may change


class SoftmaxEditor:
    """Applies edits in passes of a model of which some softmaxes are the patterns: the `calls`, by their numbers.

    What a verification pass over `tokens` shows to be impossible is refused when it is asked for.
    """

    def __init__(
        self,
        caller: Caller,
        tokens: Tensor,
        layers: Sequence[str],
        *,
        calls: Collection[int],
        groups: Sequence[int] | None,
        axes: Mapping[int, Axes] | None = None,
    ) -> None:
        self._layers, self._calls, self._groups, self._axes = layers, calls, groups, axes
        records: Edits = {layer: [Record(outputs=True)] for layer in range(len(layers))}
        capture = EditingCapture(records, layers=calls, groups=groups)
        self._refusal = ""
        try:
            with intercepted(Interceptor(tokens, capture), VerifyingMode) as mode:
                mode.axes = axes
                caller(tokens)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._refusal = f"the pass that verifies it failed: {first_line(error)}"
        if not self._refusal and len(capture.heads) != len(layers):
            self._refusal = f"{len(capture.heads)} of {len(layers)} layers were seen to compute patterns"
        self._seen, self._unseen = mode.seen, mode.unseen()
        self._others = capture.n_events != len(calls)

    @classmethod
    def of_each(cls, caller: Caller, tokens: Tensor, layers: Sequence[str], of_patterns: Mapping[int, int]) -> SoftmaxEditor:
        """The same where softmaxes, by their numbers, are known to be some layers' patterns: each layer's one, in order."""
        made = cls(caller, tokens, layers, calls=frozenset(of_patterns), groups=None)
        if [of_patterns[number] for number in sorted(of_patterns)] != list(range(len(layers))):
            made._refusal = f"its patterns are not what {len(layers)} softmaxes give, one after the other"
        return made

    @contextmanager
    def apply_edits(self, tokens: Tensor, edits: Edits, *, first: int = 0) -> Iterator[None]:
        """Layers of a pass over `tokens` inside the block are edited like this, see `AttentionBackend.apply_edits`."""
        self._check(edits, first)
        capture = EditingCapture(edits, layers=self._calls, groups=self._groups, first=first)
        with intercepted(Interceptor(tokens, capture), EditingMode) as mode:
            mode.axes = self._axes
            yield
        if edits and len(capture.heads) != len(self._layers):
            raise BackendUnavailable(
                f"{len(capture.heads)} of {len(self._layers)} layers were seen to compute patterns in this pass"
            )
        mode.check(self._layers, self._seen)

    def _check(self, edits: Edits, first: int) -> None:
        """Raise `BackendUnavailable` where an edit cannot be applied in its layer."""
        if self._refusal:
            raise BackendUnavailable(self._refusal)
        if first and self._others:
            raise BackendUnavailable("a pass cannot begin at a later layer where calls that are no layer's look like attention")
        for layer, wanted in edits.items():
            if layer in self._seen:
                refuse_calls(wanted, self._layers[layer])
            if layer in self._unseen and any(edit.needs_output for edit in wanted):
                raise BackendUnavailable(f"what heads find in {quoted(self._layers[layer])} is not seen: {self._unseen[layer]}")


def refuse_calls(edits: Sequence[Edit], path: str) -> None:
    """Raise `BackendUnavailable` where one of the edits needs queries and keys, and only patterns are seen."""
    for edit in edits:
        if edit.needs_call:
            raise BackendUnavailable(
                f"`{type(edit).__name__}` edits queries and keys, and only patterns are seen in {quoted(path)}; "
                "those of another pass can be given there with `GivePattern`"
            )


class EditedPattern(NamedTuple):
    """A pattern of one call: its layer, what is done to what it finds, its axes, and its shape with the keys last."""

    layer: int
    edits: Sequence[Edit]
    part: LayerPart
    axes: Axes
    shape: torch.Size


class PatternView(NamedTuple):
    """A pattern as it is on its way: a tensor, the call it is of, and where its entries lie in the pattern."""

    tensor: Tensor
    number: int
    places: Tensor


class EditingMode(InterceptingMode):
    """Edits the patterns of layers, and what heads find by them."""

    def __init__(self, interceptor: Interceptor) -> None:
        super().__init__(interceptor)
        if not isinstance(interceptor.capture, EditingCapture):
            raise TypeError("heads are edited through an `EditingCapture`")
        self._capture = interceptor.capture
        self.axes: Mapping[int, Axes] | None = (
            None  # of the patterns, by the numbers of their calls; None where they are as usual
        )
        self._views: dict[int, PatternView] = {}
        self._patterns: dict[int, EditedPattern] = {}  # of each call of which what heads find is to be seen, and was not yet
        self._lost: dict[int, str] = {}  # of each call the first function through which its pattern could not be followed

    def before(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        scores = args[0] if args else kwargs.get("input")
        if is_measuring() or not is_softmax(func, scores):
            return args, kwargs
        axes = self._axes_of(self._capture.n_events, scores)
        if axes is None:
            return args, kwargs
        apart = axes.apart(scores, *self._size)
        edits, part = self._capture.comes(apart.shape[1], apart.shape[1])
        edited = apart
        for edit in edits:
            edited = edit.on_scores(edited, part)
        if edited is apart:
            return args, kwargs
        given = _like(axes.together(edited, scores.shape, *self._size), scores)
        return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "input": given})

    def after(self, func: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if is_measuring():
            return output
        if is_softmax(func, output):
            axes = self._axes_of(self._capture.n_events, output)
            if self._capture.record_call(*output.shape[-2:], fits=axes is not None) and axes is not None:
                return self._edited(axes, output)
        if not self._views:
            return output
        inputs = list(tensors_in([*args, *kwargs.values()]))
        found = [view for each in inputs if (view := self._views.get(id(each))) is not None and view.tensor is each]
        if not found:
            return output
        name = getattr(func, "__name__", "")
        if name in PRODUCTS and len(found) == 1 and isinstance(output, Tensor):
            return self._weighed(name, found[0], args, output)
        followed = [] if len(found) > 1 else self._followed(func, found[0], (inputs, args, kwargs), output)
        for tensor, places in followed:
            self._views[id(tensor)] = PatternView(tensor, found[0].number, places)
        if not followed and any(each.is_floating_point() for each in tensors_in([output])):
            for view in found:
                self._lost.setdefault(view.number, name)
        return output

    @property
    def _size(self) -> tuple[int, int]:
        return self.interceptor.batch, self.interceptor.positions

    def _axes_of(self, number: int, pattern: Tensor) -> Axes | None:
        """The axes of a softmax, by the number of its call; None for what is no pattern. Sinks may come after the positions."""
        batch, positions = self._size
        if self.axes is not None and number in self.axes:
            return self.axes[number] if self.axes[number].fits(pattern.shape, batch, positions) else None
        if pattern.ndim not in (3, 4, 5) or pattern.shape[-2] != positions or pattern.shape[-1] < positions:
            return None
        fits = pattern.shape[0] % batch == 0 if pattern.ndim == 3 else pattern.shape[0] == batch
        return Axes.usual(pattern.ndim) if fits else None

    def _edited(self, axes: Axes, output: Tensor) -> Tensor:
        """What is given back for a softmax: the pattern after the edits of its layer."""
        number, layer, pattern = self._capture.n_events - 1, len(self._capture.heads), axes.apart(output, *self._size)
        edits, part = self._capture.next(pattern.shape[1], pattern.shape[1])
        refuse_calls(edits, f"layer {layer}")
        edited = pattern
        for edit in edits:
            edited = edit.on_pattern(edited, part)
        given = output if edited is pattern else _like(axes.together(edited, output.shape, *self._size), output)
        if any(edit.needs_output for edit in edits):
            shape = output.movedim(axes.key, -1).shape
            self._patterns[number] = EditedPattern(layer, edits, part, axes, shape)
            places = torch.empty(shape, device="meta").movedim(-1, axes.key)
            self._views[id(given)] = PatternView(given, number, places)
        return given

    def _followed(
        self, func: Any, view: PatternView, given: tuple[list[Tensor], Any, Any], output: Any
    ) -> list[tuple[Tensor, Tensor]]:
        """The views of a pattern in what a function made of one, and where their entries lie; none where that is not known."""
        (inputs, args, kwargs), name = given, getattr(func, "__name__", "")
        if name in RESHAPING:
            return _reshaped(view.places, output)
        if name in MOVING:
            return _moved(func, view, args, kwargs, output)
        others = [each for each in inputs if each is not view.tensor and each.is_floating_point() and each.ndim > 0]
        if not isinstance(output, Tensor) or output.shape != view.tensor.shape or (others and name not in LIKE_ANOTHER):
            return []
        kept = output.is_floating_point() and self._is_same(view.tensor, output)
        return [(output, view.places)] if kept else []

    def _is_same(self, before: Tensor, after: Tensor) -> bool:
        """Whether a function left a pattern what it was: compared where it is verified."""
        return True

    def _weighed(self, name: str, view: PatternView, args: Any, output: Tensor) -> Tensor:
        """What is given back for a product of a pattern and values: what the heads found, after the edits of their layer."""
        pattern = self._patterns[view.number]
        layout = AxisLayout.of(name, Operand(view.tensor, view.places, pattern.shape), args, output)
        found = pattern.axes.found_apart(layout.apart(output), *self._size)
        for edit in pattern.edits:
            found = edit.on_output(found, None, pattern.part)
        self._seen_whole(view.number)
        return _like(layout.together(pattern.axes.found_together(found, pattern.shape, *self._size)), output)

    def _seen_whole(self, number: int) -> None:
        """What heads find by this pattern was seen."""
        del self._patterns[number]
        self._views = {key: view for key, view in self._views.items() if view.number != number}

    def check(self, layers: Sequence[str], verified: Collection[int]) -> None:
        """Raise `BackendUnavailable` unless all edits were applied; a pass may end at the last pattern, if that is `verified`."""
        for number, pattern in self._patterns.items():
            if pattern.layer != len(layers) - 1 or pattern.layer not in verified:
                lost = self._lost.get(number)
                behind = "" if lost is None else f": its pattern is lost in `{lost}`"
                raise BackendUnavailable(f"what heads find in {quoted(layers[pattern.layer])} was not seen in this pass{behind}")


class VerifyingMode(EditingMode):
    """Changes nothing, and finds out which layers' patterns can be followed."""

    def __init__(self, interceptor: Interceptor) -> None:
        super().__init__(interceptor)
        self.seen: set[int] = set()  # the layers whose patterns are
        self._weighs: dict[int, int] = {}  # of each call, how often its pattern weighs something
        self._why: dict[int, str] = {}

    def _edited(self, axes: Axes, output: Tensor) -> Tensor:
        self.seen.add(len(self._capture.heads))
        return super()._edited(axes, output)

    def _is_same(self, before: Tensor, after: Tensor) -> bool:
        return torch.allclose(before.float(), after.float(), atol=CLOSE, rtol=CLOSE)

    def _weighed(self, name: str, view: PatternView, args: Any, output: Tensor) -> Tensor:
        try:
            return super()._weighed(name, view, args, output)
        except BackendUnavailable as refused:
            self._why.setdefault(self._patterns[view.number].layer, str(refused))
            return output

    def _seen_whole(self, number: int) -> None:
        self._weighs[number] = self._weighs.get(number, 0) + 1

    def unseen(self) -> dict[int, str]:
        """Of each layer in which what heads find is not seen, why."""
        why = dict(self._why)
        for number, pattern in self._patterns.items():
            times, lost = self._weighs.get(number, 0), self._lost.get(number)
            if times > 1:
                why.setdefault(pattern.layer, f"its pattern weighs values in {times} products")
            elif times == 0:
                by = "no product in which its pattern weighs values" if lost is None else f"its pattern is lost in `{lost}`"
                why.setdefault(pattern.layer, by)
        return why


def _like(edited: Tensor, output: Tensor) -> Tensor:
    """What was edited, as the model expects it: in the layout in memory of what it is given in place of."""
    if edited.stride() == output.stride():
        return edited
    return torch.empty_strided(output.shape, output.stride(), dtype=output.dtype, device=output.device).copy_(edited)


def _reshaped(places: Tensor, output: Any) -> list[tuple[Tensor, Tensor]]:
    try:
        return [(output, places.view(output.shape))]
    except RuntimeError:  # the entries lie in another order than any strides say
        return []


def _moved(func: Any, view: PatternView, args: Any, kwargs: Any, output: Any) -> list[tuple[Tensor, Tensor]]:
    if getattr(func, "__name__", "") == "__getitem__" and any(isinstance(each, (Tensor, list)) for each in _indices(args[1])):
        return []  # a copy

    def instead(value: Any) -> Any:
        return view.places if value is view.tensor else value

    try:
        moved = func(*map(instead, args), **{key: instead(value) for key, value in kwargs.items()})
    except Exception:  # noqa: BLE001 - what cannot be done without numbers cannot be followed
        return []
    return list(zip(tensors_in([output]), tensors_in([moved]), strict=False))


def _indices(index: Any) -> Sequence[Any]:
    return index if isinstance(index, tuple) else (index,)
