"""How attention is written down as weights: a residual stream of one-hot spaces, and heads that read and write them.

The stream is cut into spaces that do not overlap: the token, the position, what it means, some for what heads find, and the
output, which alone the unembedding reads. A head's scores are a sum of terms, each of them `sharpness` times what the key side
says:

    score(q, k) = sharpness * (sum of weight * [query space of q equals key space of k] + resting + recency)

The first token (BOS, id 0) is the zero vector of the token space: it matches nothing, and copying it writes nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TypedDict

import torch
from torch import Tensor

from pytest_induction.errors import ArgumentError, whole_number
from pytest_induction.planted.model import Kind, PlantedModel
from pytest_induction.records import HeadId

SHARP = 64.0  # leaves exp(-32) of the mass to the resting place, which rounds to a perfect pattern
RESTING = 0.5  # of the sharpness, for the first position: below a match, above everything else
FEWEST_TOKENS, FEWEST_POSITIONS = 6, 11  # of the smallest probe: two periods, twice over, and BOS
MOST_TOKENS = 3  # that a head compares
LARGEST = 1000.0  # sharpness and strength; beyond it the sums of latest_only round in float32


class Sizes(TypedDict, total=False):
    """The sizes of a planted model: 2 layers of 4 heads, 64 token ids and 128 positions, unless given."""

    n_layers: int
    n_heads: int
    d_vocab: int
    n_ctx: int


def amount(name: str, value: object) -> float:
    """The argument as a number from 0 to a thousand. Raises `ArgumentError` for anything else, NaN too."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= LARGEST:
        raise ArgumentError(f"`{name}` must be a number from 0 to {LARGEST:.0f}, got {value!r}")
    return float(value)


@dataclass(frozen=True)
class Match:
    """A term of the scores: `weight` where what the query reads in one space is what the key reads in another, plus `shift`."""

    query: str
    key: str
    shift: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class Attends:
    """What a head attends to: `matches`, or the first position with `resting`; of several the last only with `latest_only`."""

    matches: tuple[Match, ...] = ()
    resting: float = RESTING
    sharpness: float = SHARP
    latest_only: bool = False

    def __post_init__(self) -> None:
        amount("sharpness", self.sharpness)


REST = Attends(resting=1.0)
POINTED_AT = (Match("pointer", "position"),)
SAME_TOKEN = (Match("token", "token"), Match("position", "position", weight=-1.0))  # itself is no match


def after(space: str) -> tuple[Match, ...]:
    """Keys that were told, in `space`, of a token that is the query's own."""
    return (Match("token", space),)


def back(distance: int) -> tuple[Match, ...]:
    """The key `distance` positions before the query."""
    return (Match("position", "position", shift=distance),)


class Blueprint:
    """The weights of a model in the making. A head that nothing is planted at rests on the first position and writes nothing."""

    def __init__(self, sizes: Sizes, *, meanings: Sequence[Sequence[int]] = (), **scratch: str) -> None:
        """`scratch` names the spaces that heads write for others, each as large as the space it is given.

        With `meanings` the stream also has the space "meaning", in which the tokens of each of these classes are the same.
        """
        self.n_layers = whole_number("n_layers", sizes.get("n_layers", 2), least=1)
        self.n_heads = whole_number("n_heads", sizes.get("n_heads", 4), least=1)
        d_vocab = whole_number("d_vocab", sizes.get("d_vocab", 64), least=FEWEST_TOKENS)
        self.n_ctx = whole_number("n_ctx", sizes.get("n_ctx", 128), least=FEWEST_POSITIONS)
        for name in sizes.keys() - Sizes.__annotations__.keys():
            raise ArgumentError(f"`{name}` is no option of this model; its sizes are {', '.join(Sizes.__annotations__)}")
        self._meanings = meanings
        widths = {"token": d_vocab, "position": self.n_ctx, "found": d_vocab, "meaning": len(meanings)}
        widths |= {name: widths[like] for name, like in scratch.items()} | {"output": d_vocab}
        ends = list(itertools.accumulate(widths.values()))
        self._spaces = {name: slice(end - widths[name], end) for name, end in zip(widths, ends, strict=True)}
        self._d_model = ends[-1]
        heads = self.n_layers, self.n_heads
        most = _square(max(2 * d_vocab + self.n_ctx, MOST_TOKENS * d_vocab))  # what is not needed is left out in the end
        self._query, self._key, self._value = (torch.zeros(*heads, self._d_model, most) for _ in range(3))
        self._out = torch.zeros(*heads, most, self._d_model)
        self.answers: dict[HeadId, Kind] = {}

    def place(self, layer: int, head: int, *, names: tuple[str, str] = ("layer", "head"), before: int | None = None) -> HeadId:
        """The head at that layer and number, where no other is planted; in a layer below `before` if given."""
        for name, value, count in zip(names, (layer, head), (self.n_layers, self.n_heads), strict=True):
            if whole_number(name, value, least=0) >= count:
                raise ArgumentError(f"`{name}` must be a whole number from 0 to {count - 1}, got {value!r}")
        if before is not None and layer >= before:
            raise ArgumentError(f"`{names[0]}` must be a layer before `layer` {before}, got {layer!r}")
        place = HeadId(int(layer), int(head))
        if place in self.answers:
            raise ArgumentError(f"`{names[1]}` must be a head of its own, got {place}, where another one is")
        return place

    def distance(self, distance: int, *, most: int) -> int:
        """How far back to count: a whole number that the context has room for."""
        if whole_number("distance", distance, least=1) > most:
            raise ArgumentError(f"`distance` must be at most {most} in a context of {self.n_ctx}, got {distance!r}")
        return distance

    def plant(
        self,
        place: HeadId,
        kind: Kind,
        attends: Attends,
        writes: Mapping[str, float],
        *,
        reads: str = "token",
        shift: int = 0,
        through: Tensor | None = None,
    ) -> None:
        """Set a head: where it attends, and what it `reads` there and `writes` into which spaces, how strongly, `shift` on.

        What it reads goes `through` a matrix instead where one is given.
        """
        self.answers[place] = kind
        self._attend(place, attends)
        source = self._spaces[reads]
        size = source.stop - source.start
        value, out = self._value[place.layer, place.head], self._out[place.layer, place.head]
        value[source, :size] = torch.eye(size)
        if reads == "position":
            value[source.start] = 0  # where a head rests it has found nothing, and points nowhere
        for target, strength in writes.items():
            out[:size, self._spaces[target]] = strength * (_shifted(size, shift) if through is None else through)

    def tell_before(self, layer: int, before: int, spaces: Sequence[str], *, reads: str = "token") -> None:
        """Heads 0, 1, ... of a layer below `before` tell each position what stands one, two, ... before it, in these spaces."""
        for distance, space in enumerate(spaces, start=1):
            earlier = self.place(layer, distance - 1, names=("earlier_layer", "n_heads"), before=before)
            kind: Kind = "previous_token" if distance == 1 else "count_back"
            self.plant(earlier, kind, Attends(back(distance)), {space: 1.0}, reads=reads)

    def _attend(self, place: HeadId, attends: Attends) -> None:
        """Write the scores as products of queries and keys; the sharpness goes into the queries."""
        query, key = self._query[place.layer, place.head], self._key[place.layer, place.head]
        # With latest_only every position counts one sharpness, so a match must count more than all positions together,
        # and more than the resting place, which must count as much as all positions.
        unit = 2.0 * self.n_ctx if attends.latest_only else 1.0
        start = 0
        for match in attends.matches:
            query_space, key_space = self._spaces[match.query], self._spaces[match.key]
            size = query_space.stop - query_space.start
            query[query_space, start : start + size] = torch.eye(size)
            key[key_space, start : start + size] = unit * match.weight * _shifted(size, match.shift)
            start += size
        positions = self._spaces["position"]
        query[positions, start] = 1
        if attends.latest_only:
            key[positions, start] = torch.arange(self.n_ctx, dtype=key.dtype)
        key[positions.start, start] = unit * attends.resting
        query *= attends.sharpness

    def build(self) -> PlantedModel:
        """The model, in evaluation mode."""
        for layer, head in itertools.product(range(self.n_layers), range(self.n_heads)):
            if HeadId(layer, head) not in self.answers:
                self._attend(HeadId(layer, head), REST)
        embed, unembed = torch.zeros(self.d_vocab, self._d_model), torch.zeros(self._d_model, self.d_vocab)
        embed[:, self._spaces["token"]] = torch.eye(self.d_vocab)
        for number, members in enumerate(self._meanings, start=self._spaces["meaning"].start):
            embed[list(members), number] = 1
        embed[0] = 0
        unembed[self._spaces["output"]] = torch.eye(self.d_vocab)
        places = torch.zeros(self.n_ctx, self._d_model)
        places[:, self._spaces["position"]] = torch.eye(self.n_ctx)
        d_head = self._d_head()
        query = self._query[..., :d_head] * math.sqrt(d_head)  # which attention divides by
        key, value, out = self._key[..., :d_head], self._value[..., :d_head], self._out[..., :d_head, :]
        layers = zip(*(each.contiguous() for each in (query, key, value, out)), strict=True)
        return PlantedModel(embed, places, tuple(layers), unembed, self.answers).eval()

    def _d_head(self) -> int:
        """As small as heads allow, and a square: so the root that attention divides by is whole, and scores exact in bfloat16."""
        used = (self._query != 0) | (self._key != 0) | (self._value != 0)
        last = int(used.any(dim=(0, 1, 2)).nonzero().max())
        return _square(last)

    @property
    def d_vocab(self) -> int:
        return self._spaces["token"].stop


def _square(last: int) -> int:
    """The smallest square that is above it."""
    return (math.isqrt(last) + 1) ** 2


def _shifted(size: int, shift: int) -> Tensor:
    """Row i is the one-hot of i + shift; rows that this leads out of the space are zero."""
    return torch.diag(torch.ones(size - shift), shift)
