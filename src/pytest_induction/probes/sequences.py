"""Repeated random tokens, unrepeated ones beside them, and what an ideal induction head does at each position."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import ArgumentError, ProbeError, whole_number
from pytest_induction.records import TokenSpace


class Answer(NamedTuple):
    """A position whose next token is foretold, and came.

    `order` is the least number of last tokens whose earlier occurrences were all followed by `token`; 1 is what an induction
    head needs. `distractor` is what the last token alone foretells where that is something else, else None.
    """

    query: int
    token: int
    order: int
    distractor: int | None


@dataclass(frozen=True)
class ProbeSequence:
    """Token ids of one sequence; a block of `period` of them stands `repeats` times, whole.

    `breaks` are the positions at which a new part begins, for reading only. `first` says that the first id is the model's
    first token. `lures` are pairs (query, key) that the places in the block suggest and the tokens do not: an ideal induction
    head does not follow them. `period` is 0 where nothing repeats. `asked` are the entries of
    its answers, ascending, where they do not follow from earlier tokens: a rule's, or those of keys without their values.

    >>> ProbeSequence((0, 5, 6, 7, 5, 6, 7), period=3, repeats=2, breaks=(1, 4), first=True)
    BOS | 5 6 7 | 5 6 7
    """

    tokens: tuple[int, ...]
    period: int = 0
    repeats: int = 1
    breaks: tuple[int, ...] = ()
    first: bool = False
    lures: tuple[tuple[int, int], ...] = ()
    asked: tuple[tuple[int, int, int, int | None], ...] | None = None

    def __post_init__(self) -> None:
        plain = {
            "tokens": _whole_numbers("tokens", self.tokens),
            "period": whole_number("period", self.period, least=0),
            "repeats": whole_number("repeats", self.repeats, least=1),
            "breaks": _whole_numbers("breaks", self.breaks),
            "lures": tuple(_pair(lure) for lure in self.lures),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)  # whatever whole numbers and sequences they came as
        length = len(self.tokens)
        if length < 2:
            raise ArgumentError(f"`tokens` must be at least two, got {length}")
        if any(one >= other for one, other in pairwise((-1, *self.breaks, length))):
            raise ArgumentError(f"`breaks` must be ascending positions below {length}, got {self.breaks}")
        for query, key in self.lures:
            if not key <= query < length:
                raise ArgumentError(f"`lures` must be pairs (query, key) of positions with key <= query, got {(query, key)}")
        if self.asked is not None:
            object.__setattr__(self, "asked", _asked(self.asked, length))

    def __hash__(self) -> int:
        return self._hash

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        parts = []
        cuts = [0, *self.breaks, len(self.tokens)]
        for start, end in pairwise(cuts):
            words = ["BOS" if self.first and place == 0 else str(self.tokens[place]) for place in range(start, end)]
            parts.append(" ".join(words))
        return " | ".join(part for part in parts if part)

    @property
    def line(self) -> str:
        """Python that makes this sequence again."""
        given = [f"{self.tokens}"]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                given.append(f"{field.name}={value!r}")
        return f"ProbeSequence({', '.join(given)})"

    @cached_property
    def successors(self) -> dict[int, tuple[int, ...]]:
        """Each query whose token occurred earlier -> the positions after these: where an induction head looks."""
        return {query: tuple([place + 1 for place in places]) for query, places in self._earlier.items()}

    @cached_property
    def _hash(self) -> int:
        return hash((self.tokens, self.period, self.breaks, self.lures, self.asked))  # looked up often

    @cached_property
    def _earlier(self) -> dict[int, tuple[int, ...]]:
        """Each query whose token occurred earlier -> where it did."""
        seen: dict[int, tuple[int, ...]] = {}
        found = {}
        for query, token in enumerate(self.tokens):
            places = seen.get(token, ())
            if places:
                found[query] = places
            seen[token] = (*places, query)
        return found

    @cached_property
    def answers(self) -> tuple[Answer, ...]:
        """What is asked; else every position whose next token was foretold by the longest context before, and is what comes."""
        if self.asked is not None:
            return tuple(itertools.starmap(Answer, self.asked))
        tokens, found = self.tokens, []
        before: dict[int, int] = {}  # of the query before: earlier place -> tokens up to there that are the same up to the query
        for query, following in enumerate(tokens[1:]):
            places = self._earlier.get(query)
            if places is None:
                before = {}
                continue
            before = matched = {place: before.get(place - 1, 0) + 1 for place in places}
            foretold, order = (tokens[places[0] + 1], 1) if len(places) == 1 else _foretold(tokens, matched)
            if foretold == following:
                found.append(Answer(query, following, order, _distractor(tokens, places, following) if order > 1 else None))
        return tuple(found)

    @property
    def targets(self) -> tuple[int | None, ...]:
        """For every position the next token where it is foretold, else None."""
        known = {answer.query: answer.token for answer in self.answers}
        return tuple(known.get(position) for position in range(len(self.tokens)))


def _whole_numbers(name: str, values: Iterable[object]) -> tuple[int, ...]:
    if isinstance(values, tuple) and set(map(type, values)) == {int} and min(values) >= 0:
        return values  # most are, and strategies make many
    return tuple([whole_number(name, value, least=0) for value in values])


def _asked(answers: Iterable[object], length: int) -> tuple[Answer, ...]:
    """Answers at ascending positions of a sequence."""
    found = []
    for entry in answers:
        if not isinstance(entry, Sequence) or len(entry) != len(Answer._fields):
            raise ArgumentError(f"`asked` must be of entries (query, token, order, distractor or None), got {entry!r}")
        *known, distractor = entry
        query, token, order = (whole_number("asked", value, least=0) for value in known)
        found.append(Answer(query, token, order, None if distractor is None else whole_number("asked", distractor, least=0)))
    places = [answer.query for answer in found]
    if any(one >= other for one, other in pairwise([-1, *places, length])):
        raise ArgumentError(f"`asked` must be at ascending positions below {length}, got {places}")
    return tuple(found)


def _pair(lure: object) -> tuple[int, int]:
    if not isinstance(lure, Sequence) or len(lure) != 2:
        raise ArgumentError(f"`lures` must be pairs (query, key) of positions, got {lure!r}")
    return whole_number("lures", lure[0], least=0), whole_number("lures", lure[1], least=0)


def _foretold(tokens: Sequence[int], matched: dict[int, int]) -> tuple[int | None, int]:
    """What the longest matches were followed by, if all by one token, and the least context that foretells it alone."""
    longest = max(matched.values())
    following = {tokens[place + 1] for place, length in matched.items() if length == longest}
    if len(following) > 1:
        return None, 0
    token = following.pop()
    misleading = [length for place, length in matched.items() if tokens[place + 1] != token]
    return token, 1 + max(misleading, default=0)


def _distractor(tokens: Sequence[int], places: Iterable[int], token: int) -> int | None:
    """The token other than the right one that most often followed an earlier occurrence, the latest of equals."""
    others = Counter(tokens[place + 1] for place in sorted(places, reverse=True) if tokens[place + 1] != token)
    return others.most_common(1)[0][0] if others else None


def line(example: object) -> str:
    """Python that makes the example again."""
    if isinstance(example, tuple):
        return f"({', '.join(map(line, example))})"
    return str(getattr(example, "line", repr(example)))


LONGEST_PERIOD = 25  # the paper's block of 25 tokens
SHORTEST_PERIOD = 4  # successor, occurrence and two wrong places must be different places of the block
COPIES = 4  # the paper's four copies
Ids = NDArray[np.int64]


class Rows:
    """What is the same of all rows of token ids, `tokens` (n_sequences, n_positions)."""

    tokens: Ids

    @property
    def n_sequences(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def n_positions(self) -> int:
        return int(self.tokens.shape[1])


@dataclass(frozen=True)
class Probe(Rows):
    """`tokens` (n_sequences, n_positions); a block of `period` ids stands `repeats` times, the first time at `start`.

    With `repeated=False` no token stands again at any place where the repeated probe has its copies: the control.
    """

    tokens: Ids
    period: int
    repeats: int
    start: int
    repeated: bool = True

    def __repr__(self) -> str:
        kind = f"{self.repeats} copies" if self.repeated else "unrepeated"
        return f"Probe({self.n_sequences} sequences, period {self.period}, {kind})"


def usable_ids(space: TokenSpace) -> Ids:
    """Every id that a probe may use, ascending: not excluded, not the first token."""
    barred = space.excluded | ({space.bos_id} if space.bos_id is not None else set())
    inside = [token for token in barred if 0 <= token < space.d_vocab]
    return np.delete(np.arange(space.d_vocab, dtype=np.int64), inside)


def fitting_shape(space: TokenSpace, repeats: int = COPIES) -> tuple[range, int]:
    """The periods that fit, and how many copies: fewer than asked where the context is short.

    Raises `ProbeError` where not even two periods fit twice over: a single period cannot tell matching from counting.
    """
    n_usable = len(usable_ids(space))
    if n_usable < SHORTEST_PERIOD + 1:
        raise ProbeError(
            f"a probe needs at least {SHORTEST_PERIOD + 1} usable token ids, the model has {n_usable}: "
            f"{space.d_vocab} in its vocabulary, of which {space.d_vocab - n_usable} are special"
        )
    room = None if space.n_ctx is None else space.n_ctx - _start(space)
    for copies in range(repeats, 1, -1):
        longest = min(LONGEST_PERIOD, n_usable, LONGEST_PERIOD if room is None else room // copies)
        if longest > SHORTEST_PERIOD:
            return range(max(SHORTEST_PERIOD, (longest + 1) // 2), longest + 1), copies
    least = _start(space) + 2 * (SHORTEST_PERIOD + 1)
    raise ProbeError(f"the smallest probe has {least} positions, the model's context has {space.n_ctx}")


def usual_length(space: TokenSpace) -> int:
    """Positions of the longest probe that is drawn where none is asked for."""
    periods, copies = fitting_shape(space)
    return periods[-1] * copies + _start(space)


def even_periods(fitting: range, most: int) -> list[int]:
    """At most so many of the periods that fit, evenly spread, always the same: the shortest, the longest, and between them."""
    return np.linspace(fitting[0], fitting[-1], max(1, min(most, len(fitting)))).round().astype(int).tolist()


def repeated_sequences(
    space: TokenSpace, *, period: int, rng: np.random.Generator, n_sequences: int = 1, repeats: int = COPIES
) -> Probe:
    """Blocks of `period` different random ids, each row its own block, `repeats` times over."""
    ids = _checked(space, period, repeats)
    blocks = np.stack([rng.choice(ids, size=period, replace=False) for _ in range(n_sequences)])
    return Probe(_begin(space, np.tile(blocks, (1, repeats))), period, repeats, _start(space))


def filling_sequences(
    space: TokenSpace, *, period: int, n_positions: int, rng: np.random.Generator, n_sequences: int = 1
) -> Probe:
    """Rows of exactly `n_positions`: a block of `period` different random ids, each row its own, over and over up to the end.

    It stands `repeats` times in full, at least twice, and the last time in part where that is what fits.
    """
    room = n_positions - _start(space)
    repeats = room // max(1, period)
    ids = _checked(space, period, repeats)
    blocks = np.stack([rng.choice(ids, size=period, replace=False) for _ in range(n_sequences)])
    return Probe(_begin(space, np.tile(blocks, (1, repeats + 1))[:, :room]), period, repeats, _start(space))


def unrepeated_sequences(
    space: TokenSpace, *, period: int, rng: np.random.Generator, n_sequences: int = 1, repeats: int = COPIES
) -> Probe:
    """The control of `repeated_sequences`: as long, and no token equals one that is a multiple of `period` back.

    Where the vocabulary allows, no token occurs twice in a row at all.
    """
    ids = _checked(space, period, repeats)
    length = period * repeats
    if len(ids) >= length:
        rows = np.stack([rng.choice(ids, size=length, replace=False) for _ in range(n_sequences)])
    else:
        rows = np.stack([_without_copies(ids, period, length, rng) for _ in range(n_sequences)])
    return Probe(_begin(space, rows), period, repeats, _start(space), repeated=False)


def _without_copies(ids: Ids, period: int, length: int, rng: np.random.Generator) -> Ids:
    """Random ids of a small vocabulary, none the same as one that stands a multiple of the period before it."""
    ids, row = np.unique(ids), np.empty(length, dtype=np.int64)
    for position in range(length):
        is_left = np.ones(len(ids), bool)
        is_left[np.searchsorted(ids, row[position % period : position : period])] = False
        row[position] = rng.choice(ids[is_left])
    return row


def _checked(space: TokenSpace, period: int, repeats: int) -> Ids:
    ids = usable_ids(space)
    if not SHORTEST_PERIOD <= period <= len(ids):
        raise ArgumentError(f"`period` must be from {SHORTEST_PERIOD} to {len(ids)} (the usable ids), got {period}")
    if repeats < 2:
        raise ArgumentError(f"`repeats` must be at least 2, got {repeats}")
    length = _start(space) + period * repeats
    if space.n_ctx is not None and length > space.n_ctx:
        raise ProbeError(f"{repeats} copies of {period} tokens need {length} positions, the context has {space.n_ctx}")
    return ids


def _start(space: TokenSpace) -> int:
    return 0 if space.bos_id is None else 1


def _begin(space: TokenSpace, rows: Ids) -> Ids:
    if space.bos_id is None:
        return rows
    return np.concatenate([np.full((len(rows), 1), space.bos_id, dtype=np.int64), rows], axis=1)
