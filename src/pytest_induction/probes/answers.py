"""One sequence of token ids, and what an ideal induction head does at every position of it.

The answer key follows from the tokens alone: a context that stood before foretells what came after it then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from pytest_induction.errors import ArgumentError, whole_number


class Answer(NamedTuple):
    """A position whose next token is foretold, and came.

    `order` is the least number of last tokens whose earlier occurrences were all followed by `token`; 1 is what an induction
    head needs. `rival` is what the last token alone foretells where that is something else, else None.
    """

    query: int
    token: int
    order: int
    rival: int | None


@dataclass(frozen=True)
class ProbeSequence:
    """Token ids of one sequence; a block of `period` of them stands `repeats` times, whole.

    `breaks` are the positions at which a new part begins, for reading only. `first` says that the first id is the model's
    first token. `lures` are pairs (query, key) that the places in the block suggest and the tokens do not: an ideal induction
    head does not follow them. `period` is 0 where nothing repeats.

    >>> ProbeSequence((0, 5, 6, 7, 5, 6, 7), period=3, repeats=2, breaks=(1, 4), first=True)
    BOS | 5 6 7 | 5 6 7
    """

    tokens: tuple[int, ...]
    period: int = 0
    repeats: int = 1
    breaks: tuple[int, ...] = ()
    first: bool = False
    lures: tuple[tuple[int, int], ...] = ()

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
        """Each query whose token stood before -> the positions after the earlier occurrences: where an induction head looks."""
        return {query: tuple([place + 1 for place in places]) for query, places in self._earlier.items()}

    @cached_property
    def _hash(self) -> int:
        return hash((self.tokens, self.period, self.breaks, self.lures))  # looked up often

    @cached_property
    def _earlier(self) -> dict[int, tuple[int, ...]]:
        """Each query whose token stood before -> where it did."""
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
        """Every position whose next token was foretold by the longest context that stood before, and is what comes."""
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
                found.append(Answer(query, following, order, _rival(tokens, places, following) if order > 1 else None))
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


def _rival(tokens: Sequence[int], places: Iterable[int], token: int) -> int | None:
    """The token other than the right one that most often followed an earlier occurrence, the latest of equals."""
    others = Counter(tokens[place + 1] for place in sorted(places, reverse=True) if tokens[place + 1] != token)
    return others.most_common(1)[0][0] if others else None


def line(example: object) -> str:
    """Python that makes the example again."""
    if isinstance(example, tuple):
        return f"({', '.join(map(line, example))})"
    return str(getattr(example, "line", repr(example)))
