"""Where a model's heads keep the weights of their queries and keys, each checked as those of values and outputs are.

On a few tokens, for every layer: what linear maps make of the norm's output is, up to one factor, the queries and keys that went
into the attention, or gives, where only patterns are seen, the pattern. What is added to the norm's output before these maps must
be the same for every row: a function of the position and of nothing else.

A norm on queries or on keys, of each head or of all together, is folded into the maps: its gain and centring go into the weights,
the scale of each position is left out.

Rotary embeddings turn queries and keys by their position. They are known by what they leave as it is: everything at the first
position, and at any other the products of queries (and keys) of different rows there. Weights are those before the turning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from pytest_induction.attention.pattern import LogSumExpReader, PatternReader, Reader
from pytest_induction.errors import UnsupportedModel
from pytest_induction.forward.calling import quoted
from pytest_induction.model.capture import affine_of, agrees, brought, is_norm, may_be_norm, norm_of, recording, same
from pytest_induction.model.circuits import circuits_of
from pytest_induction.model.head_weights import Affine, LayerCircuits, Norm, upcast
from pytest_induction.model.protocol import ModelUnderTest

ROWS, POSITIONS = 4, 9  # of the tokens on which everything is checked
NO_FACTOR = 1e-6  # below it nothing of what a map makes is left


class NormOfHeads(NamedTuple):
    """A norm of queries or keys (..., n_heads, d_head): of each head, or of all `jointly`."""

    centred: bool
    gain: Tensor | None  # (d_head,), or (n_heads, d_head) of all jointly
    jointly: bool

    def written(self, made: Tensor) -> Tensor:
        """What makes the norm's input, (..., n_heads, d_head), as what makes its output times its scale, but for the shift."""
        made = upcast(made)
        if self.centred:
            made = made - made.mean((-2, -1) if self.jointly else -1, keepdim=True)
        return made if self.gain is None else made * upcast(self.gain)


class Projection(NamedTuple):
    """Which of a map's outputs are the queries or keys of which head, (n_heads, d_head), and the norm behind it."""

    affine: Affine
    columns: Tensor
    norm: NormOfHeads | None

    @property
    def weight(self) -> Tensor:
        """(n_heads, d_model, d_head)."""
        return self._of(self.affine.weight).movedim(1, 0)

    @property
    def bias(self) -> Tensor | None:
        """(n_heads, d_head)."""
        return None if self.affine.bias is None else self._of(self.affine.bias)

    def _of(self, values: Tensor) -> Tensor:
        found = _cut(values, self.columns)
        return found if self.norm is None else self.norm.written(found)


@dataclass(frozen=True)
class LayerQueryKey:
    """One attention layer: what its heads read as queries and as keys.

    `factor` is that from the product of a query and a key to their score before the softmax: one over the root of d_head, unless
    the model has another. With `rotary` the score is that at a distance of zero; at others queries and keys are turned first.
    `cap` is that of a soft cap on the score, if there is one.
    """

    path: str
    factor: float
    rotary: bool
    cap: float | None
    _query: Projection
    _key: Projection

    @property
    def n_heads(self) -> int:
        return len(self._query.columns)

    @property
    def normed(self) -> bool:
        """Whether queries or keys are normed: what the weights give is then over a scale of each position, and of each head."""
        return self._query.norm is not None or self._key.norm is not None

    @property
    def queries(self) -> Tensor:
        """W_Q, (n_heads, d_model, d_head), in the model's dtype, or float32 where normed. Made anew each time."""
        return self._query.weight

    @property
    def keys(self) -> Tensor:
        """W_K, (n_heads, d_model, d_head), as of queries; heads of a group have equal ones. Made anew each time."""
        return self._key.weight

    @property
    def query_bias(self) -> Tensor | None:
        """(n_heads, d_head), over the same scale."""
        return self._query.bias

    @property
    def key_bias(self) -> Tensor | None:
        """(n_heads, d_head), over the same scale."""
        return self._key.bias


@dataclass(frozen=True)
class QueryKeys:
    """The weights of queries and keys of every measured layer."""

    layers: tuple[LayerQueryKey, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a measurement of these weights leaves out."""
        turned, normed, capped = ([getattr(layer, name) for layer in self.layers] for name in ("rotary", "normed", "cap"))
        found = [
            (capped, "scores of queries and keys are capped{} before the softmax; weights are those before"),
            (turned, "queries and keys are turned by rotary embeddings{}; their weights are those before"),
            (normed, "queries and keys are normed{}; their weights are up to the scale of each position"),
        ]
        return tuple(note.format(_in_some(which)) for which, note in found if any(which))


def queries_keys_of(subject: ModelUnderTest) -> QueryKeys:
    """The weights of a model's queries and keys, read once and checked.

    Raises `UnsupportedModel` where they are not known, or those of values and outputs are not (`circuits_of`); the message says
    where. Among these are mixtures of keys, norms behind rotary embeddings that have gains, and, where only patterns are seen and
    not what went into the attention, soft caps, biases by distance and rotary embeddings.
    """
    with subject.as_it_is():
        return subject.remember(("queries and keys",), lambda: _Reading(subject).queries_keys())


class _Map(NamedTuple):
    """A linear map that may make queries or keys: what it was given and gave."""

    given: Tensor
    gave: Tensor
    affine: Affine


class _Part(NamedTuple):
    """Columns (n_heads, d_head) of what a map gives, and by how much that is multiplied on the way into the attention.

    `made` is what they give, (batch, positions, n_heads, d_head), normed where there is a norm behind.
    """

    source: _Map
    columns: Tensor
    made: Tensor
    norm: NormOfHeads | None = None
    factor: float = 1.0
    turned: bool = False

    @property
    def projection(self) -> Projection:
        return Projection(self.source.affine, self.columns, self.norm)


class _Normed(NamedTuple):
    """A call of a norm, and what it computes."""

    given: Tensor
    gave: Tensor
    norm: Norm


class _Candidates(NamedTuple):
    """What may make the queries and keys of a layer."""

    maps: Sequence[_Map]
    norms: Sequence[_Normed]

    def parts(self, sizes: Sequence[int], rows: Sequence[int], *, of_keys: bool) -> Iterator[_Part]:
        """Those of the last map first, all as they are before what norms make of them.

        `sizes` is (n_heads, d_head), `rows` (batch, positions).
        """
        plain = [
            _Part(one, columns, _cut(one.gave, columns))
            for one in reversed(self.maps)
            if tuple(one.gave.shape[:2]) == tuple(rows)
            for columns in _layouts(one.gave.shape[-1], *sizes, of_keys=of_keys)
        ]
        yield from plain
        for part in plain:
            for call in self.norms:
                found = _behind(part, call)
                if found is not None:
                    yield found
            yield from _without_gain(part)


class _Seen(NamedTuple):
    """What went into the attention, (batch, positions, n_heads, d_head), the factor of its scores, and their soft cap."""

    query: Tensor
    key: Tensor
    scale: float
    cap: float | None

    def make(self, pattern: Tensor) -> bool:
        """Whether a pattern is the softmax of these scores, but for what is masked and what all keys of a query share."""
        scores = torch.einsum("bqhd,bkhd->bhqk", upcast(self.query), upcast(self.key)) * self.scale
        scores = scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)
        one, other = _compared(scores, pattern, self.query.dtype)
        return agrees(one, other.to(self.query.dtype))


class _Reading:
    """One reading of one model."""

    def __init__(self, subject: ModelUnderTest) -> None:
        self._subject = subject
        self._circuits = circuits_of(subject)
        self._root = subject.module
        self._parts = [self._root.get_submodule(layer.path) for layer in self._circuits.layers]
        tokens = subject.fitting(subject.random_ids(ROWS, POSITIONS, seed=1))
        found: list[_Seen | Tensor] = []

        def kept(layer: int, attention: Reader) -> None:
            seen = _seen(attention)
            found.append(attention.pattern_of(range(tokens.shape[1])) if seen is None else seen)

        with recording(self._root, [*self._parts, *(layer.reads for layer in self._circuits.layers)]) as self._calls:
            subject.observe(tokens, kept, early_stop=False)
        self._found = found

    def queries_keys(self) -> QueryKeys:
        return QueryKeys(tuple(map(self._layer, self._circuits.layers, self._parts, self._found)))

    def _layer(self, layer: LayerCircuits, part: nn.Module, found: _Seen | Tensor) -> LayerQueryKey:
        where = quoted(layer.path)
        pair: tuple[_Part, _Part, float] | None = None
        for those in self._candidates(layer, part):
            pair = _by_pattern(those, found, layer) if isinstance(found, Tensor) else _by_number(those, found)
            if pair is not None:
                break
        if pair is None:
            only = isinstance(found, Tensor)
            what = "the pattern, all that is seen of it" if only else "the queries and keys that went into its attention"
            kinds = (
                "rotary embeddings, biases by distance, a norm or a cap"
                if only
                else "a norm of another kind, something else that is mixed in"
            )
            return self._refuse(f"no two linear maps in {where} give {what}, as with {kinds}, or an order of columns not known")
        query, key, scale = pair
        given = next(call.given for call in self._calls if call.part is layer.reads)
        for name, one in (("queries", query), ("keys", key)):
            if not _added_by_position(one.source.given, given):
                self._refuse(f"the {name} of {where} are not made of what its values are made of")
        factor = query.factor * key.factor * scale
        turned, cap = query.turned or key.turned, None if isinstance(found, Tensor) else found.cap
        return LayerQueryKey(layer.path, factor, turned, cap, query.projection, key.projection)

    def _candidates(self, layer: LayerCircuits, part: nn.Module) -> Iterator[_Candidates]:
        """What may make the queries and keys: maps that the layer holds itself, those in it, those beside it."""
        given = next((call.given for call in self._calls if call.part is part), None)
        own = [_own(part, *names) for names in (("W_Q", "b_Q"), ("W_K", "b_K"))]
        maps = [_Map(given, each(given), each) for each in own if each is not None and given is not None and _fits(each, given)]
        yield _Candidates(maps, self._norms(part))
        for scope in (part, self._root.get_submodule(layer.path.rpartition(".")[0])):
            inside = set(scope.modules())
            maps = [
                _Map(call.given, call.gave, affine)
                for call in self._calls
                if call.part in inside and call.gave.ndim == 3 and (affine := affine_of(call.part)) is not None
            ]
            yield _Candidates(maps, self._norms(scope))

    def _norms(self, scope: nn.Module) -> list[_Normed]:
        """What norms in a module made."""
        inside = set(scope.modules())
        calls = [call for call in self._calls if call.part in inside and (is_norm(call.part) or may_be_norm(call.part))]
        return [_Normed(call.given, call.gave, norm) for call in calls if (norm := norm_of(call)) is not None]

    def _refuse(self, why: str) -> NoReturn:
        raise UnsupportedModel(
            f"the weights of the queries and keys of {self._subject.name} cannot be read: {why}. "
            "What its heads attend to and what they write can be measured all the same"
        )


def _seen(attention: Reader) -> _Seen | None:
    """Queries and keys that went into a layer's attention, copied; None where only its pattern tells what its scores are."""
    cap = None
    if isinstance(attention, PatternReader) and attention.scored is not None:
        query, key, scale, cap = attention.scored
    elif isinstance(attention, LogSumExpReader) and attention.keeps_products:
        query, key, scale = attention.query, attention.key, attention.scale
    else:
        return None
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    seen = _Seen(query.transpose(1, 2).clone(), key.transpose(1, 2).clone(), scale, cap)
    return seen if isinstance(attention, LogSumExpReader) or seen.make(attention.pattern) else None


def _own(part: nn.Module, weight: str, bias: str) -> Affine | None:
    """Weights (n_heads, d_model, d_head) that a module holds itself, as one map to the heads side by side."""
    found, added = (getattr(part, name, None) for name in (weight, bias))
    if not isinstance(found, Tensor) or found.ndim != 3:
        return None
    found = brought(part, weight, found)
    bias_of_heads = brought(part, bias, added).detach().flatten() if isinstance(added, Tensor) and added.ndim == 2 else None
    return Affine(found.detach().movedim(0, 1).flatten(1), bias_of_heads)


def _fits(affine: Affine, given: Tensor) -> bool:
    return given.is_floating_point() and given.ndim == 3 and given.shape[-1] == affine.n_in


def _by_number(those: _Candidates, seen: _Seen) -> tuple[_Part, _Part, float] | None:
    """The maps that give the queries and keys that were seen, the last of several."""
    found: list[_Part] = []
    for of_keys, wanted in ((False, seen.query), (True, seen.key)):
        rows, sizes = wanted.shape[:2], wanted.shape[2:]
        parts = (_matched(part, wanted) for part in those.parts(sizes, rows, of_keys=of_keys))
        part = next((each for each in parts if each is not None), None)
        if part is None:
            return None
        found.append(part)
    query, key = found
    return query, key, seen.scale


def _behind(part: _Part, call: _Normed) -> _Part | None:
    """What a norm makes of the columns of a map; None where it was given something else.

    It may be given heads apart, before or after the positions, or side by side; and those of a group once.
    """
    n_heads, d_head = part.columns.shape
    given, gave, gain = call.given, call.gave, call.norm.gain
    jointly = given.ndim == 3
    if jointly and given.shape[-1] % d_head == 0:
        given, gave = (each.unflatten(-1, (-1, d_head)) for each in (given, gave))
        gain = None if gain is None else gain.unflatten(-1, (-1, d_head))
    if given.ndim != 4 or given.shape[-1] != d_head:
        return None
    for axis in (2,) if jointly else (2, 1):
        times, rest = divmod(n_heads, given.shape[axis])
        one, other = (each.transpose(axis, 2).repeat_interleave(max(1, times), 2) for each in (given, gave))
        if rest == 0 and same(one, part.made):
            gain = gain.repeat_interleave(times, 0) if jointly and gain is not None else gain
            return part._replace(made=other, norm=NormOfHeads(call.norm.centred, gain, jointly))
    return None


def _without_gain(part: _Part) -> Iterator[_Part]:
    """What an RMSNorm of each head makes of the columns of a map where it is no module and has no gain."""
    made = upcast(part.made)
    size = made.square().mean(-1, keepdim=True).sqrt()
    if bool((size > 0).all()):
        norm = NormOfHeads(centred=False, gain=None, jointly=False)
        yield part._replace(made=(made / size).to(part.made), norm=norm)


def _matched(part: _Part, wanted: Tensor) -> _Part | None:
    """The part with its factor, where it gives what is wanted, turned by the position or not; None where it does not."""
    made = upcast(part.made)
    one, other = made[:, 0].flatten().double().cpu(), wanted[:, 0].flatten().double().cpu()
    size = float(one @ one)
    factor = float(one @ other) / size if size else 1.0
    if abs(factor) < NO_FACTOR or not agrees(made[:, 0] * factor, wanted[:, 0]):  # most are ruled out by the first position
        return None
    if agrees(made * factor, wanted):
        return part._replace(factor=factor)
    return part._replace(factor=factor, turned=True) if _is_turned(made * factor, wanted) else None


def _is_turned(made: Tensor, wanted: Tensor) -> bool:
    """Whether at each position the rows of one are those of the other after the same rotation: lengths and angles are equal."""
    size = upcast(wanted).abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    ours, theirs = (torch.einsum("aphd,bphd->phab", each, each) for each in (made / size, upcast(wanted) / size))
    return agrees(ours, theirs.to(wanted.dtype))


def _by_pattern(those: _Candidates, pattern: Tensor, layer: LayerCircuits) -> tuple[_Part, _Part, float] | None:
    """The maps whose products, by some factor, are the scores of which the softmax is the pattern."""
    rows, sizes = (pattern.shape[0], pattern.shape[-1]), (pattern.shape[1], layer.outs.shape[1])
    queries, keys = (list(those.parts(sizes, rows, of_keys=of_keys)) for of_keys in (False, True))
    for query in queries:
        for key in keys:
            scale = _scale(query.made, key.made, pattern)
            if scale is not None:
                return query, key, scale
    return None


def _scale(query: Tensor, key: Tensor, pattern: Tensor) -> float | None:
    """The factor with which products of queries and keys are the scores of a pattern; None where there is none.

    Logarithms are compared, each row's above their mean: of nearly even patterns any small scores are nearly the softmax. What
    all keys of a query share, as with a sink, does not count, nor what is masked.
    """
    products = torch.einsum("bqhd,bkhd->bhqk", upcast(query), upcast(key))
    one, other = _compared(products, pattern, query.dtype)
    size = float(one.double().square().sum())
    factor = float((one.double() * other.double()).sum()) / size if size else 1.0
    return factor if abs(factor) > NO_FACTOR and agrees(one * factor, other.to(query.dtype)) else None


def _compared(scores: Tensor, pattern: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scores and the logarithms of a pattern, of each row what lies above the mean of those that are not masked."""
    pattern = upcast(pattern)
    counted, least = pattern > torch.finfo(dtype).tiny, torch.finfo(pattern.dtype).tiny
    return _centred(scores.to(pattern.dtype), counted), _centred(pattern.clamp_min(least).log(), counted)


def _centred(values: Tensor, counted: Tensor) -> Tensor:
    """Of those that are counted in a row what lies above their mean, of others 0."""
    mean = (values * counted).sum(-1, keepdim=True) / counted.sum(-1, keepdim=True).clamp_min(1)
    return (values - mean) * counted


def _added_by_position(given: Tensor, values_given: Tensor) -> bool:
    """Whether a map was given what the values' map was, plus what is the same in every row."""
    if given.shape != values_given.shape:
        return False
    added = upcast(given) - upcast(values_given)
    return agrees(upcast(values_given) + added[:1], given)


def _in_some(which: Sequence[object]) -> str:
    """Of how many layers something is said, unless it is of all."""
    return "" if all(which) else f" in {sum(map(bool, which))} of {len(which)} layers"


def _cut(values: Tensor, columns: Tensor) -> Tensor:
    return values[..., columns.to(values.device)]


def _layouts(width: int, n_heads: int, d_head: int, *, of_keys: bool) -> Iterator[Tensor]:
    """Which of `width` outputs may be the queries or keys of which head, (n_heads, d_head): alone, or beside others.

    Where queries, keys and values lie in one, or two of them, they lie one after the other, or so in each group; as of values in
    `anatomy`.
    """
    slots, rest = divmod(width, d_head)
    if rest:
        return
    places = torch.arange(width).view(slots, d_head)
    if (n_heads % slots == 0) if of_keys else (slots == n_heads):
        yield places.repeat_interleave(n_heads // slots, 0)
    for queries, values in ((n_heads, True), (n_heads, False), (0, True)):
        groups, rest = divmod(slots - queries, 1 + values)
        if groups <= 0 or rest or n_heads % groups or not (queries or of_keys):
            continue
        by_group = places.view(groups, -1, d_head)
        if of_keys:
            one_by_one = places[queries : queries + groups], by_group[:, -1 - values]
            yield from (keys.repeat_interleave(n_heads // groups, 0) for keys in one_by_one)
        else:
            yield from (places[:n_heads], by_group[:, : n_heads // groups].flatten(0, 1))
