"""What all strategies draw: sizes within what fits, and different random ids out of few choices.

The ids of a sequence are one draw of bytes and not one draw each: a tenth of the choices to generate, to shrink and to replay,
and still shrunk id by id.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from hypothesis import assume
from hypothesis import strategies as st
from torch import nn

from pytest_induction.errors import ArgumentError, ProbeError, whole_number
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import Answer, Ids, ProbeSequence, usable_ids
from pytest_induction.records import TokenSpace

Vocabulary = ModelUnderTest | nn.Module | TokenSpace | str | Path | int
Size = int | range | tuple[int, int] | st.SearchStrategy[int]
Draw = st.DrawFn
MOST_IDS = 2000  # that one sequence may have: hypothesis has room for 8 kB of choices
FEW_IDS = 64
APART: ContextVar[bool] = ContextVar("APART", default=False)
"""Whether each id is a draw of its own, as a search wants it that climbs: it moves numbers, and not bytes."""
ID_EXCESS = 64  # byte strings per id at least, so that no id is much likelier than another


@dataclass(frozen=True)
class Material:
    """What sequences for one model are made of: the ids, how many positions there are, and how a sequence begins."""

    space: TokenSpace

    @classmethod
    def of(cls, source: Vocabulary, bos: int | bool | None, exclude: Collection[int]) -> Material:
        """Of a model, a token space or a vocabulary size. Raises `ArgumentError` or `ModelError` for anything else."""
        space = _space(source)
        if bos is not None and bos is not True:
            token = None if bos is False else whole_number("bos", bos, least=0)
            if token is not None and token >= space.d_vocab:
                raise ArgumentError(f"`bos` must be below the vocabulary's {space.d_vocab}, got {token}")
            space = replace(space, bos_id=token)
        if not isinstance(exclude, Collection):
            raise ArgumentError(f"`exclude` must be a collection of token ids, got {exclude!r}")
        barred = frozenset(whole_number("exclude", token, least=0) for token in exclude)
        return cls(replace(space, excluded=space.excluded | barred))

    @cached_property
    def ids(self) -> Ids:
        return usable_ids(self.space)

    @property
    def n_ids(self) -> int:
        """How many different ids a sequence may have."""
        return min(len(self.ids), MOST_IDS)

    @property
    def start(self) -> int:
        """Where the first block may begin."""
        return 0 if self.space.bos_id is None else 1

    @property
    def room(self) -> int:
        """Positions after the first token; a large number where the model has no limit."""
        return 2**20 if self.space.n_ctx is None else self.space.n_ctx - self.start

    def check(self, what: str, *, positions: int, ids: int) -> None:
        """Raise `ProbeError` where even the smallest sequence does not fit."""
        if ids > MOST_IDS:
            raise ProbeError(f"{what} may have at most {MOST_IDS} different ids, these have at least {ids}")
        if len(self.ids) < ids:
            raise ProbeError(f"{what} need at least {ids} usable token ids, there are {len(self.ids)}")
        if self.room < positions:
            raise ProbeError(f"{what} need at least {positions + self.start} positions, the context has {self.space.n_ctx}")

    def different_ids(self, draw: Draw, count: int, *, most: int) -> list[int]:
        """So many different ids at random; the smallest, ascending, where it shrinks.

        `most` is the largest such count of the strategy: unless that is large, as much is drawn for few ids as for many, so that
        a sequence can become shorter and keep its ids.
        """
        size = len(self.ids)
        if APART.get():
            ranks = [draw(_numbers(0, size - 1 - number)) for number in range(count)]
        else:
            ranks = self._ranks(draw, count, most)
        taken: list[int] = []
        found = []
        for rank in ranks:
            for other in taken:  # ascending: the rank counts the ids that are left
                if other > rank:
                    break
                rank += 1  # noqa: PLW2901 - the rank among all ids
            insort(taken, rank)
            found.append(rank)
        return self.ids[found].tolist()

    def _ranks(self, draw: Draw, count: int, most: int) -> list[int]:
        """Of each id among those that are left, out of one draw."""
        size = len(self.ids)
        width = _bytes_per_id(size)
        raw = draw(_byte_strings(width * (max(count, min(most, self.n_ids)) if most <= FEW_IDS else count)))
        values = (int.from_bytes(raw[place : place + width]) for place in range(0, count * width, width))
        return [value * (size - number) >> 8 * width for number, value in enumerate(values)]

    def sequence(
        self,
        parts: list[list[int]],
        *,
        period: int,
        repeats: int,
        lures: tuple[tuple[int, int], ...] = (),
        asked: Iterable[Answer] | None = None,
    ) -> ProbeSequence:
        """The parts one after the other behind the first token; `lures` and what is `asked` are given in positions of these."""
        if self.space.bos_id is not None:
            parts = [[self.space.bos_id], *parts]
        tokens = [token for part in parts for token in part]
        ends = [sum(map(len, parts[:number])) for number in range(1, len(parts))]
        moved = tuple((query + self.start, key + self.start) for query, key in lures)
        answers = None if asked is None else tuple(answer._replace(query=answer.query + self.start) for answer in asked)
        is_first = self.space.bos_id is not None
        return ProbeSequence(tuple(tokens), period, repeats, tuple(dict.fromkeys(ends)), is_first, moved, answers)


@dataclass(frozen=True)
class Sizes:
    """A size that is drawn: a span from `least` to `most`, or a strategy of the user's within it."""

    name: str
    least: int
    most: int
    own: st.SearchStrategy[int] | None = None

    @classmethod
    def of(cls, name: str, given: Size, *, least: int) -> Sizes:
        if isinstance(given, st.SearchStrategy):
            return cls(name, least, 2**20, given)
        if isinstance(given, range):
            if given.step != 1 or not given:
                raise ArgumentError(f"`{name}` must be a range of step 1 that is not empty, got {given}")
            bounds = (given.start, given.stop - 1)
        elif isinstance(given, tuple):
            if len(given) != 2:
                raise ArgumentError(f"`{name}` must be a number, a range, a pair (least, most) or a strategy, got {given!r}")
            bounds = given
        else:
            bounds = (given, given)
        low, high = (whole_number(name, bound, least=least) for bound in bounds)
        if low > high:
            raise ArgumentError(f"`{name}` must be a pair (least, most), got {given!r}")
        return cls(name, low, high)

    def draw(self, draw: Draw, *, most: int) -> int:
        """One size, at most `most`."""
        if self.own is not None:
            size = whole_number(self.name, draw(self.own), least=0)
            assume(self.least <= size <= most)
            return size
        most = min(self.most, most)
        return self.least if most <= self.least else draw(_numbers(self.least, most))


def _space(source: Vocabulary) -> TokenSpace:
    if isinstance(source, TokenSpace):
        return source
    if isinstance(source, (ModelUnderTest, nn.Module, str, Path)):
        return load_model(source).space
    return TokenSpace(whole_number("model", source, least=1))


@cache
def _bytes_per_id(count: int) -> int:
    width = 1
    while 256**width < ID_EXCESS * count:
        width += 1
    return width


@cache
def _byte_strings(length: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=length, max_size=length)


@cache
def _numbers(least: int, most: int) -> st.SearchStrategy[int]:
    return st.integers(least, most)
