"""What modules computed in one pass: which of them read and write for the heads of a layer, and what heads found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pytest_induction.attention.capture import Observer
from pytest_induction.attention.pattern import Reader
from pytest_induction.forward.calling import Caller, as_found, full_precision, offloaded
from pytest_induction.forward.changing import add_hooks
from pytest_induction.model.head_weights import Affine, Circuits, Norm, upcast
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.undoing import Changes, puts_back

CLOSE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the largest number, that two results may differ by
CLOSE_HALF = 3e-2
LEAST_EPSILON = 1e-8
EPSILONS = ("eps", "variance_epsilon", "epsilon", "norm_eps", "layer_norm_eps")
GAINS = ("weight", "w", "scale", "gamma")
SHIFTS = ("bias", "b", "beta")


class Call(NamedTuple):
    """What a module was given and what it gave, the first tensor of each: copies, for either may be written to."""

    part: nn.Module
    given: Tensor
    gave: Tensor


class Values(NamedTuple):
    """The values of a layer's heads: the call that gives them, as which map, and which of its outputs are whose.

    `columns` is (n_heads, d_head).
    """

    call: Call
    affine: Affine
    columns: Tensor


@contextmanager
def recording(module: nn.Module, also: Sequence[nn.Module]) -> Iterator[list[Call]]:
    """The calls of linear maps, norms, embeddings and the modules in `also` of passes inside the block, as they end."""
    found: list[Call] = []

    def record(part: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        given, gave = first_tensor((options.get("value_input"), *inputs, *options.values())), first_tensor((output,))
        if given is not None and gave is not None:
            found.append(Call(part, given.detach().clone(), gave.detach().clone()))

    wanted = [part for part in module.modules() if part in also or _is_known(part) or is_norm(part) or may_be_norm(part)]
    with Changes() as changes:
        add_hooks(changes, wanted, record, with_kwargs=True)
        yield found


def first_tensor(values: Sequence[Any]) -> Tensor | None:
    """The first tensor among the values, or the first of a tuple that is the first of them."""
    for value in values:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, (tuple, list)):
            return first_tensor(value)
    return None


def affine_of(part: nn.Module) -> Affine | None:
    """The linear map that a module seems to be: torch's, transformers' `Conv1D`, or the unembedding of TransformerLens.

    Of one that keeps its weights packed, it is read from what the module makes of unit vectors.
    """
    names, linear = _names_of_weights(part), isinstance(part, nn.Linear)
    held, added = map(_plain, _weights_of(part))
    if held is None or held.ndim != 2 or not held.is_floating_point():
        return _by_products(part)

    def fetched() -> Tensor:
        found = brought(part, names[0], held)
        return found.mT if linear else found

    added = None if added is None else brought(part, names[1], added)
    return Affine(held.mT if linear else held, added, fetched if held.is_meta else None)


def brought(part: nn.Module, name: str, held: Tensor) -> Tensor:
    """What a module holds under a name, and where that is a placeholder, the weight that accelerate keeps elsewhere for it."""
    return offloaded(part, name, held).detach().to(held.dtype) if held.is_meta else held


def is_linear(part: nn.Module) -> bool:
    """Whether a module seems to be a linear map, without unpacking or fetching anything."""
    weight = _weights_of(part)[0]
    is_dense = isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point()
    return is_dense or _packed_width(part) > 0


def _names_of_weights(part: nn.Module) -> tuple[str, str]:
    return ("weight", "bias") if isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D" else ("W_U", "b_U")


def _weights_of(part: nn.Module) -> tuple[object, object]:
    weight, bias = _names_of_weights(part)
    if weight == "weight":
        return getattr(part, weight, None), getattr(part, bias, None)
    own = vars(part).get("_parameters", {})
    return own.get(weight), own.get(bias)


def _packed_width(part: nn.Module) -> int:
    """How many numbers a linear map takes that says its sizes as torch's does, and is no wrapper around another; else 0."""
    sizes = [getattr(part, name, None) for name in ("in_features", "out_features")]
    is_whole = not any(hasattr(inner, "in_features") for inner in part.children())
    return sizes[0] if is_whole and isinstance(sizes[0], int) and isinstance(sizes[1], int) else 0


@torch.no_grad()
def _by_products(part: nn.Module) -> Affine | None:
    """The linear map, by what it makes of zeros and of unit vectors; None where it makes something else of them.

    These are given in the type of what it holds. Some kernels hold scales in another type than they take: then in the others.
    """
    width = _packed_width(part)
    tensors = [*part.parameters(), *part.buffers()]
    if not width or any(each.is_meta for each in tensors):
        return None
    own = [each.dtype for each in tensors if each.is_floating_point() and each.element_size() > 1]
    device = next((each.device for each in tensors), None)
    for dtype in dict.fromkeys((*own[:1], torch.float32, torch.bfloat16, torch.float16)):
        units = torch.eye(width, dtype=dtype, device=device)
        try:
            bias, made = (upcast(part.forward(each)) for each in (torch.zeros_like(units[:1]), units))
        except (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError, AttributeError):  # it takes something else
            continue
        weight = made - bias
        return Affine(weight, bias[0] if bool(bias.any()) else None) if weight.ndim == 2 else None
    return None


def _plain(weight: object) -> Tensor | None:
    """A weight as a tensor that can be computed with, or the placeholder of one; None where there is none."""
    if not isinstance(weight, Tensor):
        return None
    weight = weight.detach()
    if type(weight) is Tensor:
        return weight
    try:  # torchao's and others' own kinds of tensors know few functions beside the product
        found = weight.dequantize()
    except (RuntimeError, TypeError):
        return None
    return found if type(found) is Tensor else None


def table_of(part: nn.Module) -> Tensor | None:
    """The table (entries, width) that a module seems to look ids up in."""
    table = _held_table(part)
    return None if table is None else brought(part, "weight" if isinstance(part, nn.Embedding) else "W_E", table)


def _held_table(part: nn.Module) -> Tensor | None:
    """The same, or the placeholder of one."""
    weight = part.weight if isinstance(part, nn.Embedding) else vars(part).get("_parameters", {}).get("W_E")
    table = _plain(weight)
    return table if table is not None and table.ndim == 2 else None


def _is_known(part: nn.Module) -> bool:
    """Whether a module seems to be a linear map or an embedding."""
    return is_linear(part) or _held_table(part) is not None


def is_norm(part: nn.Module) -> bool:
    """Whether a module's class is called a norm, and nothing in it is a linear map."""
    return "norm" in type(part).__name__.lower() and not any(map(_is_known, part.modules()))


def may_be_norm(part: nn.Module) -> bool:
    """Whether a module under another name holds what a norm does: vectors and nothing else."""
    own = list(part.parameters(recurse=False))
    return bool(own) and all(weight.ndim == 1 for weight in own) and not any(True for _ in part.children())


def norms_among(calls: Sequence[Call]) -> frozenset[nn.Module]:
    """The norms among the modules that were called: those that are called so, and those that compute one."""
    return frozenset(call.part for call in calls if is_norm(call.part) or (may_be_norm(call.part) and norm_of(call) is not None))


@torch.no_grad()
def norm_of(call: Call) -> Norm | None:
    """The norm that a call computed, or None where it is neither a LayerNorm nor an RMSNorm.

    The module is also given what lies far from centred: half precision may not tell by a residual stream alone what centres it.
    And what is as small as its epsilon, which tells that.
    """
    part, given = call.part, call.given
    if given.shape != call.gave.shape or not given.is_floating_point():
        return None
    size = upcast(given).square().mean(-1, keepdim=True).sqrt()
    epsilons = _epsilons(part, given.dtype)
    far, unit = given + size.to(given), given / size.clamp_min(torch.finfo(torch.float32).tiny)
    small = (unit * max(epsilons[0], LEAST_EPSILON) ** 0.5).to(given)
    try:
        made = [part(each) for each in (far, small)]
    except (TypeError, ValueError, RuntimeError, IndexError):  # it takes more than what it is to norm
        return None
    if not all(isinstance(each, Tensor) and each.shape == given.shape for each in made):
        return None
    telling = [(given, call.gave), (far, made[0])]
    vectors = _vectors(part, given.shape[-1:])
    forms = [
        Norm(centred=centred, divides=True, eps=epsilons[0], gain=gain, shift=shift)
        for centred in (False, True)
        for gain in (None, *(gain for each in vectors for gain in (each, 1 + upcast(each))))
        for shift in (None, *vectors)
    ]
    form = min(forms, key=lambda norm: sum(_error(norm(one), other) for one, other in telling))
    best = min((replace(form, eps=eps) for eps in epsilons), key=lambda norm: _error(norm(small), made[1]))
    return best if all(agrees(best(one), other) for one, other in telling) else None


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found - upcast(wanted)).abs().max())


def _epsilons(part: nn.Module, dtype: torch.dtype) -> list[float]:
    """What may be a norm's epsilon, the one that it names first: torch's RMSNorm has that of the dtype where it names none."""
    named = [value for name in EPSILONS if isinstance(value := getattr(part, name, None), float) and value >= 0]
    return list(dict.fromkeys([*named, 1e-5, 1e-6, 1e-8, torch.finfo(dtype).eps]))


def _vectors(part: nn.Module, shape: torch.Size) -> list[Tensor]:
    """What a norm may multiply with or add."""
    names = dict.fromkeys((*GAINS, *SHIFTS, *(name for name, _ in part.named_parameters(recurse=False))))
    found = ((name, getattr(part, name, None)) for name in names)
    return [brought(part, name, each.detach()) for name, each in found if isinstance(each, Tensor) and each.shape == shape]


def find_values(calls: Sequence[Call], pattern: Tensor) -> tuple[Values, Call] | None:
    """The call that gives the values of a layer's heads, and the one that reads what `pattern` mixes of them.

    `pattern` is (batch, n_heads, positions, positions). None where no two linear maps among the calls are these.
    """
    n_heads = pattern.shape[1]
    for number, out in reversed(list(enumerate(calls))):
        if not is_linear(out.part) or out.given.shape[:2] != pattern[:, 0].shape[:2] or out.given.shape[-1] % n_heads:
            continue
        mixed = out.given.unflatten(-1, (n_heads, -1))
        for call in calls[:number]:
            if not is_linear(call.part) or call.gave.shape[:2] != mixed.shape[:2]:
                continue
            for columns in _layouts(call.gave.shape[-1], n_heads, mixed.shape[-1]):
                if agrees(mix(pattern, call.gave[..., columns.to(call.gave.device)]), mixed):
                    affine = affine_of(call.part)
                    if affine is not None and agrees(affine(call.given), call.gave):
                        return Values(call, affine, columns), out
    return None


def mix(pattern: Tensor, values: Tensor) -> Tensor:
    """What each head's pattern (batch, n_heads, queries, keys) mixes of values (batch, keys, n_heads, d_head), as those."""
    return torch.einsum("bhqk,bkhd->bqhd", pattern, values.to(pattern.dtype))


def _layouts(width: int, n_heads: int, d_head: int) -> Iterator[Tensor]:
    """Which of `width` outputs may be the values of which head, (n_heads, d_head): alone, or beside keys and queries.

    Heads may share the values of a group. Where queries, keys and values lie in one, they lie one after the other (GPT-2, Phi),
    or so in each group (GPT-NeoX, Falcon).
    """
    slots, rest = divmod(width, d_head)
    if rest:
        return
    places = torch.arange(width).view(slots, d_head)

    def of_groups(values: Tensor) -> Tensor:
        return values.repeat_interleave(n_heads // len(values), 0)

    if n_heads % slots == 0:
        yield of_groups(places)
    for queries in (n_heads, 0):
        groups, rest = divmod(slots - queries, 2)
        if groups > 0 and rest == 0 and n_heads % groups == 0:
            yield of_groups(places[queries + groups :])
            yield of_groups(places.view(groups, -1, d_head)[:, -1])


def replayed(
    caller: Caller,
    tokens: Tensor,
    calls: Sequence[Call],
    norms: Collection[nn.Module],
    moved: Mapping[nn.Module, Tensor],
    read: Sequence[nn.Module],
) -> dict[nn.Module, Tensor]:
    """What the modules in `read` are given where those in `moved` give that much more and no norm lets any of it through.

    Each of the `norms` gives what it gave in `calls`, so that all that reads the residual stream through one computes what it
    did, and only what is added to the stream is seen.
    """
    clean: dict[nn.Module, list[Tensor]] = {}
    seen: dict[nn.Module, Tensor] = {}
    for call in calls:
        if call.part in norms or call.part in moved:
            clean.setdefault(call.part, []).append(call.gave)

    def given(part: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        tensor = first_tensor((options.get("value_input"), *inputs, *options.values()))
        if tensor is not None:
            seen[part] = tensor.detach().clone()

    def instead(part: nn.Module, inputs: Any, output: Any) -> Any:
        made = clean[part].pop(0)
        made = made + moved[part].to(made) if part in moved else made
        return (made, *output[1:]) if isinstance(output, tuple) else made

    with as_found(caller.module), Changes() as changes:
        add_hooks(changes, clean, instead)
        add_hooks(changes, read, given, before=True, with_kwargs=True)
        caller(tokens)
    return seen


def latest(calls: Sequence[Call], wanted: Callable[[Call], bool]) -> Call | None:
    """The last of the calls that is wanted."""
    return next(filter(wanted, reversed(calls)), None)


def agrees(found: Tensor, wanted: Tensor) -> bool:
    """Whether two results are equal but for the rounding of what the model, which gave `wanted`, computes in."""
    if found.shape != wanted.shape:
        return False
    close = CLOSE.get(wanted.dtype, CLOSE_HALF)
    found, wanted = upcast(found), upcast(wanted).to(found.device)
    return bool((found - wanted).abs().max() <= close * wanted.abs().max())


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, in the dtype of the second."""
    return one.shape == other.shape and torch.equal(one.to(other), other)


Take = Callable[[int, Tensor, Tensor | None], None]
"""Is handed a layer's number, what its heads found (batch, positions, n_heads, d_head), and the pattern if it is asked for.

What heads found is over the scale of the norm behind attention, where one is: times `LayerCircuits.outs` it is what they write.
"""


class Watch(Protocol):
    """Is told of each layer in a pass, before `Take` is handed what its heads found."""

    def enter(self, layer: int, stream: Tensor) -> None:
        """The residual stream before the layer, (batch, positions, d_model)."""

    def read(self, layer: int, given: Tensor) -> None:
        """What its values are made of, (batch, positions, d_model)."""

    def behind(self, layer: int, scale: Tensor) -> None:
        """What the norm behind its attention divides by, (batch, positions); not told where none is."""


class ReadByLayers:
    """What a `Watch` notes of some layers: their values, and what the norm behind their attention divides by."""

    def __init__(self, circuits: Circuits, layers: Collection[int]) -> None:
        self._circuits, self._layers = circuits, frozenset(layers)
        self._values: dict[int, Tensor] = {}
        self._scales: dict[int, Tensor] = {}

    def read(self, layer: int, given: Tensor) -> None:
        """Note the values of a layer's heads."""
        if layer in self._layers:
            self._values[layer] = self._circuits.layers[layer].values_of(given)

    def behind(self, layer: int, scale: Tensor) -> None:
        """Note by what the norm behind a layer's attention divides."""
        self._scales[layer] = scale


class HeadOutputCapture:
    """Captures what heads found in passes of a model whose circuits are known: it is what their output projection is given."""

    def __init__(self, subject: ModelUnderTest, circuits: Circuits) -> None:
        self._subject = subject
        self._circuits = circuits
        base = subject.caller.base
        self._with_logits = base is not None and circuits.ends not in set(base.modules())

    def __call__(
        self, tokens: Tensor, take: Take, *, patterns: bool = False, observer: Observer | None = None, watch: Watch | None = None
    ) -> Tensor:
        """One pass over `tokens` (batch, positions): gives the scale of the final norm at each, and `take` each layer in order.

        With `patterns`, `take` also gets what the heads attend to, (batch, n_heads, positions, positions). `observer` is shown
        each layer's attention in the same pass, and `watch` what comes before.
        """
        return self._pass(tokens, take, patterns=patterns, logits=self._with_logits, observer=observer, watch=watch)[0]

    def with_logits(self, tokens: Tensor, take: Take) -> tuple[Tensor, Tensor]:
        """The same, and the logits (batch, positions, d_vocab) of the pass."""
        return self._pass(tokens, take, patterns=False, logits=True)

    @puts_back
    def _pass(
        self,
        tokens: Tensor,
        take: Take,
        *,
        patterns: bool,
        logits: bool,
        observer: Observer | None = None,
        watch: Watch | None = None,
    ) -> tuple[Tensor, Any]:
        one = _Pass(self._circuits, tokens, take, patterns=patterns, watch=watch)

        def shown(number: int, attention: Reader) -> None:
            if observer is not None:
                observer(number, attention)
            one.shown(number, attention)

        with Changes() as changes:
            for part, hook in one.listeners():
                add_hooks(changes, [part], hook, before=True, with_kwargs=True)
            predicted = self._subject.observe(tokens, shown, logits=logits, early_stop=False)
        scale = one.scale if one.scale is not None else torch.ones(tokens.shape, device=self._subject.device)
        return scale, predicted

    @puts_back
    def scales_behind(self, tokens: Tensor) -> list[Tensor]:
        """What the norm behind each layer's attention divides by in one pass, (batch, positions) each; 1 where none is."""
        found = [torch.ones(tokens.shape)] * len(self._circuits.layers)

        def record_scale(number: int, given: Tensor) -> None:
            found[number] = self._circuits.layers[number].behind.scale(given)

        layers = [(number, layer.normed) for number, layer in enumerate(self._circuits.layers) if layer.normed is not None]
        with Changes() as changes:
            for number, part in layers:
                add_hooks(changes, [part], listening(partial(record_scale, number)), before=True, with_kwargs=True)
            self._subject.observe(tokens, lambda number, attention: None, early_stop=False)
        return found


class _Pass:
    """What is seen in one pass, as it comes.

    A backend may show the pattern before what the heads found, or after; the norm behind attention runs after both.
    """

    def __init__(self, circuits: Circuits, tokens: Tensor, take: Take, *, patterns: bool, watch: Watch | None) -> None:
        self.scale: Tensor | None = None
        self._circuits = circuits
        self._positions = range(tokens.shape[1])
        self._take = take
        self._patterns = patterns
        self._watch = watch
        self._given: dict[int, Tensor] = {}  # of each layer that lacks the rest; so the other two
        self._pattern: dict[int, Tensor] = {}
        self._behind: dict[int, Tensor] = {}  # scales of the norms behind attention

    def listeners(self) -> list[tuple[nn.Module, Callable[..., None]]]:
        """The modules to listen to before they run, and what listens."""
        found: list[tuple[nn.Module, Callable[..., None]]] = []
        for number, layer in enumerate(self._circuits.layers):
            if self._watch is not None:
                found.append((layer.enters, listening(partial(self._watch.enter, number))))
                found.append((layer.reads, listening(partial(self._watch.read, number))))
            found.append((layer.writes or layer.reads, listening(partial(self._found, number))))
            if layer.normed is not None:
                found.append((layer.normed, listening(partial(self._normed, number))))
        return found if self._circuits.ends is None else [*found, (self._circuits.ends, listening(self._ended))]

    def shown(self, number: int, attention: Reader) -> None:
        """Take the pattern of a layer, where it is of use."""
        if self._needs_pattern(number):
            self._pattern[number] = attention.pattern_of(self._positions)
            self._hand_on(number)

    def _found(self, number: int, given: Tensor) -> None:
        self._given[number] = given
        self._hand_on(number)

    def _normed(self, number: int, given: Tensor) -> None:
        self._behind[number] = self._circuits.layers[number].behind.scale(given)
        if self._watch is not None:
            self._watch.behind(number, self._behind[number])
        self._hand_on(number)

    def _needs_pattern(self, number: int) -> bool:
        return self._patterns or self._circuits.layers[number].writes is None

    def _hand_on(self, number: int) -> None:
        """What is there of a layer, once all of it is."""
        layer = self._circuits.layers[number]
        lacking = (
            number not in self._given,
            self._needs_pattern(number) and number not in self._pattern,
            layer.normed is not None and number not in self._behind,
        )
        if any(lacking):
            return
        given, pattern = self._given.pop(number), self._pattern.pop(number, None)
        if layer.writes is not None:
            found = given.unflatten(-1, (layer.n_heads, -1))
        elif pattern is None:
            raise TypeError("what the heads of a layer found is not known without their pattern")
        else:
            found = mix(pattern, layer.values_of(given))
        if layer.normed is not None:
            found = found / self._behind.pop(number)[..., None, None]
        self._take(number, found, pattern if self._patterns else None)

    def _ended(self, residual: Tensor) -> None:
        self.scale = self._circuits.final_norm.scale(residual)


def listening(take: Callable[[Tensor], None]) -> Callable[..., None]:
    """A hook that hands on the first tensor that a module is given."""

    def before(part: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = first_tensor((options.get("value_input"), *inputs, *options.values()))
        if given is not None:
            with full_precision(given.device.type):
                take(given)

    return before
