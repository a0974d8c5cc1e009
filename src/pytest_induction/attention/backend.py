"""What a backend is, and how one that intercepts calls learns which of them are a model's layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from pytest_induction.attention.capture import Capture, Observer, chunks_of
from pytest_induction.attention.edits import EditingCapture
from pytest_induction.attention.errors import BackendUnavailable, StopForward
from pytest_induction.attention.pattern import Reader
from pytest_induction.forward.calling import Caller, quoted
from pytest_induction.variants import Variant

if TYPE_CHECKING:
    from pytest_induction.attention.edits import Edits


Attach = Callable[[nn.Module], Callable[[], Any] | None]
"""Is given a model. Attaches what calls `expose_attention` for each layer and returns what detaches it; None for a stranger."""


class VerificationInputs(NamedTuple):
    """What a backend is verified on: token ids (batch, positions) of two lengths, and what is known of the model.

    `expected` is how many layers the model declares, `attach` what is to attach code that shows its attention.
    """

    short: Tensor
    long: Tensor
    expected: int | None = None
    attach: Sequence[Attach] = ()

    @property
    def tokens(self) -> tuple[Tensor, Tensor]:
        """The token ids of both lengths."""
        return self.short, self.long


class AttentionBackend(Variant, abstract=True):
    """A way to read a model's attention while it runs. Making one verifies that it can, or raises `BackendUnavailable`.

    A new one is a class in a module of its own, and a line in `backends.BACKENDS`.
    """

    name: ClassVar[str]
    """What messages, records and the documentation call it."""
    reads: ClassVar[str]
    """What it reads, for the documentation."""
    models: ClassVar[str]
    """Which models it is for, for the documentation."""
    makes_patterns: ClassVar[bool]
    """Whether whole patterns lie in memory while it reads."""
    can_isolate: ClassVar[bool]
    """Whether it can make layers attend otherwise, and not only read them."""
    edits_outside: ClassVar[bool]
    """Whether `apply_edits` is entered before a measurement that is to see what it does; inside it, else."""
    stops: ClassVar[bool]
    """Whether it knows how to end a pass early."""
    learns_chunks: ClassVar[bool]
    """Whether queries may come in chunks in sequences that are longer than those it was verified on, which it then learns."""

    caller: Caller
    layers: tuple[str, ...]  # module paths of the attention layers, in order
    heads: tuple[int, ...]  # of each layer
    notes: tuple[str, ...] = ()
    can_edit: bool = True  # whether what it reads can be edited there; only what heads found, at their output projection, else
    can_stop: bool = False  # whether a pass may end after the last attention layer, as verification found
    chunked: bool = False  # whether the queries of a layer come in calls of some of them each
    is_chunked_from: Callable[[int], bool] = staticmethod(
        lambda positions: False
    )  # learns whether it is, from so many positions on
    check_names: Callable[[], None] = staticmethod(
        lambda: None
    )  # what to look at where nothing better can be had than the names of modules

    @abstractmethod
    def __init__(self, caller: Caller, inputs: VerificationInputs) -> None: ...

    @property
    def n_heads(self) -> int:
        """Heads of the layer that has most."""
        return max(self.heads)

    @abstractmethod
    def run(
        self, tokens: Tensor, attention_mask: Tensor | None, observer: Observer, *, logits: bool, last: int | None = None
    ) -> Tensor | None:
        """One forward pass under observation: the logits if asked for. Raises `BackendUnavailable` if a layer was not seen.

        Without logits it may end once so many layers as `last` says were seen; None is all of it.
        """

    @abstractmethod
    def self_attention_only(self, tokens: Tensor) -> AbstractContextManager[object]:
        """In a pass inside the block every layer lets each position attend to itself only, if it `can_isolate`."""

    def apply_edits(self, tokens: Tensor, edits: Edits, *, first: int = 0) -> AbstractContextManager[object]:
        """In a pass over `tokens` inside the block layers are edited like this; `first` layers are not run in it.

        Raises `BackendUnavailable` where what it reads cannot be edited.
        """
        raise BackendUnavailable(f"what is read by {self.name} cannot be edited")

    def learn_base(self, tokens: Tensor, seen: Sequence[Tensor]) -> None:
        """Find out whether the model without its logits shows every layer too.

        `seen` is what the whole model attends to at a query's own position and the one before, of each layer.
        """

    def all_seen(self, seen: int, last: int | None = None) -> None:
        """Raise `BackendUnavailable` unless every layer, or the first `last`, was observed: one unseen would have no score."""
        wanted = len(self.layers) if last is None else last
        if seen != wanted:
            expected = f"{wanted} attention layers were expected in this forward pass"
            raise BackendUnavailable(f"{expected}, {seen} were seen by {self.name}")


@contextmanager
def checked(check: Callable[[], None]) -> Iterator[None]:
    """Have `check` look at a pass inside the block, also at one that ends early: the last layer was read by then."""
    try:
        yield
    except StopForward:
        check()
        raise
    check()


class InterceptingBackend(AttentionBackend, abstract=True):
    """A backend that intercepts calls while the model runs as it is called."""

    base_serves: bool = False  # whether the model without its logits shows every layer too
    calls: frozenset[int]  # which of the calls that are recorded in a pass are a layer's
    n_calls: int  # all that are recorded
    groups: tuple[int, ...] | None  # how many of these make a layer, where it is not one each
    orders: tuple[list[int] | None, ...] | None = None  # how the heads of such a layer lie, where not in the order of the calls

    @abstractmethod
    def intercepting(self, tokens: Tensor, capture: Capture) -> AbstractContextManager[object]:
        """Show each layer of a forward pass over `tokens` inside the block."""

    def run(
        self, tokens: Tensor, attention_mask: Tensor | None, observer: Observer, *, logits: bool, last: int | None = None
    ) -> Tensor | None:
        last = None if logits else last
        capture = self.capture(tokens, observer, last=last)
        try:
            return self._run_once(tokens, attention_mask, capture, logits=logits)
        except BackendUnavailable:
            if self.chunked or not self.is_chunked_from(tokens.shape[1]):
                raise
        seen = len(capture.heads)  # layers that were shown before the first chunk came

        def rest(layer: int, reader: Reader) -> None:
            if layer >= seen:
                observer(layer, reader)

        capture = self.capture(tokens, rest, last=last)
        return self._run_once(tokens, attention_mask, capture, logits=logits)

    def _run_once(self, tokens: Tensor, attention_mask: Tensor | None, capture: Capture, *, logits: bool) -> Tensor | None:
        stops, output = capture.last is not None, None
        with suppress(StopForward), self.intercepting(tokens, capture):
            output = self.caller(tokens, attention_mask, logits=logits or stops or not self.base_serves)
        self.all_seen(len(capture.heads), capture.last)
        if not stops and not self.chunked and capture.n_events != self.n_calls:
            raise BackendUnavailable(
                f"{self.n_calls} calls that may be attention were expected in a pass, {capture.n_events} were seen"
            )
        return self.caller.logits_of(output, tokens) if logits else None

    def self_attention_only(self, tokens: Tensor) -> AbstractContextManager[object]:
        return self.intercepting(tokens, self.capture(tokens, self_only=True))

    def capture(self, tokens: Tensor, observer: Observer | None = None, **options: Any) -> Capture:
        """What shows the layers of a pass over `tokens` to an observer."""
        known = {"layers": self.calls, "groups": self.groups, "orders": self.orders, "chunked": self.chunked}
        return Capture(observer, **known, positions=tokens.shape[1], **options)  # type: ignore[arg-type]

    def refuse_chunks(self) -> None:
        """Raise `BackendUnavailable` where heads cannot be edited, since they attend in parts."""
        if not self.can_edit:
            raise BackendUnavailable("its queries attend in chunks, or its heads lie in another order than their calls come in")

    def resolve_layers(self, captures: Sequence[Capture], expected: int | None) -> None:
        """Take the layers that verification passes of two lengths showed.

        Raises `BackendUnavailable` if none was, or one may be only a part of a layer. What has as many keys at either length is
        no self-attention, and left alone.
        """
        first, second = captures
        if (chunks := chunks_of((first.events, first.positions), (second.events, second.positions))) is not None:
            self._resolve_chunks(second, chunks, expected)
            return
        if len(first.events) != len(second.events):
            raise BackendUnavailable(
                f"{len(first.events)} calls that may be attention in a short pass, {len(second.events)} in a longer one"
            )
        pairs = list(zip(first.events, second.events, strict=True))
        self.calls = frozenset(number for number, (one, other) in enumerate(pairs) if one.fits and other.fits)
        self.n_calls = len(pairs)
        for number, (one, other) in enumerate(pairs):
            if number not in self.calls and one.keys != other.keys:
                what = f"from {one.queries} positions to {one.keys} keys, which follow the number of positions"
                raise BackendUnavailable(f"{quoted(one.where)} attends {what}, and not as (rows, heads, positions, positions)")
        excused = [one.where for number, (one, _) in enumerate(pairs) if number not in self.calls and one.where]
        kept = [[number] for number in sorted(self.calls)]
        groups = self._take(first, kept, expected, excused)
        for group, then in pairwise(groups):
            one, other = first.events[group[-1][0]], first.events[then[0][0]]
            if one.place is None or other.place is None or one.place[:2] != other.place[:2]:
                continue
            if one.where and one.memory is not None and one.memory == other.memory:
                raise BackendUnavailable(
                    f"{quoted(one.where)} attends to the same values twice, so neither pattern is that of the layer"
                )
            if first.outputs is not None and first.outputs.are_at_odds(group[-1][0], then[0][0]):
                why = first.outputs.apart([group[-1][0], then[0][0]])
                raise BackendUnavailable(
                    f"{quoted(one.where)} makes several attention calls in one pass that are neither one layer nor two{why}"
                )

    def _resolve_chunks(self, capture: Capture, parts: list[list[int]], expected: int | None) -> None:
        """The same where queries come in chunks: all calls of the longer pass, in parts that hold all queries of some heads."""
        self.chunked, self.can_edit = True, False
        self.calls, self.n_calls = frozenset(range(len(capture.events))), len(capture.events)
        for group in self._take(capture, parts, expected, []):
            calls = [call for part in group for call in part]
            if len(calls) > 1 and capture.outputs is not None and (why := capture.outputs.apart(calls)):
                where = quoted(capture.events[calls[0]].where)
                raise BackendUnavailable(
                    f"{where} makes {len(calls)} attention calls in one pass, so none of them is its pattern{why}"
                )
        self.check_names = _refuse_unchecked_chunks

    def _take(self, capture: Capture, parts: list[list[int]], expected: int | None, excused: list[str]) -> list[list[list[int]]]:
        """Take these calls of a pass, in parts that hold all queries of some heads, for layers; the parts of each layer."""
        running, outputs = capture.running, capture.outputs
        if running is None or outputs is None:
            raise TypeError("a verification pass must track the modules that run")
        heads = [capture.events[part[0]].heads for part in parts]
        places = [place for part in parts if (place := capture.events[part[0]].place) is not None]
        groups = running.joined(places, heads, lambda numbers: not outputs.apart([parts[number][-1] for number in numbers]))
        together = [[parts[number][-1] for number in group] for group in groups]
        self.groups = tuple(map(len, groups)) if len(groups) < len(parts) else None
        self.heads = tuple(sum(heads[number] for number in group) for group in groups)
        orders = tuple(outputs.order(group) if len(group) > 1 else None for group in together)
        self.orders = orders if any(orders) else None
        self.can_edit = self.can_edit and self.orders is None
        taken = [running.of_all([places[number] for number in group]) for group in groups]
        self.notes += running.check(
            taken, expected, lambda some: outputs.apart([call for each in some for call in together[each]])
        )
        self.check_names = partial(running.check_names, [*(place.path for place in taken), *excused])
        self.layers = tuple(place.path or f"call {index}" for index, place in enumerate(taken))
        return [[parts[number] for number in group] for group in groups]


class CallsBackend(InterceptingBackend, abstract=True):
    """A backend that intercepts calls of attention, and applies edits there."""

    @contextmanager
    def apply_edits(self, tokens: Tensor, edits: Edits, *, first: int = 0) -> Iterator[EditingCapture]:
        self.refuse_chunks()
        capture = EditingCapture(edits, layers=self.calls, groups=self.groups, first=first)
        with self.intercepting(tokens, capture):
            yield capture


def _refuse_unchecked_chunks() -> None:
    """What is looked at where rows beside a row change its logits, so that nothing else can be checked."""
    raise BackendUnavailable(
        "its queries attend in chunks, and which positions they are cannot be checked where rows change with others"
    )
