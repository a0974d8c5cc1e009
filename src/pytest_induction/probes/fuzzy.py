"""Sequences in which nothing repeats literally, and yet what comes next has been seen: by class, by translation, by pattern.

- classes: a block of tokens of different classes; each later copy has other members of the same classes. A head that matches by
  class looks after each earlier member of the query's class.
- translation: words of one language, then the same phrases in the other one, in another order. A head that matches by
  translation looks after the word that the query translates, within phrases.
- patterns: lines of two words, a colon and a label that depends on the classes of both words. A head that matches patterns
  looks, from the colon, at earlier lines of the same two classes.

No token but colons, labels and ends of lines stands twice in a sequence. Each sequence has a control: the same positions, the
same tokens, and the meaning shuffled, so that no query has one like it at the place that the sequence itself has it at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from pytest_induction.errors import ProbeError
from pytest_induction.probes.sequences import COPIES, LONGEST_PERIOD, SHORTEST_PERIOD, Ids
from pytest_induction.records import TokenSpace

FAMILIES = ("classes", "translation", "patterns")
SHAPES_AT_ONCE = 6  # different lengths in each round of probes, as of repeated tokens
FEWEST_PAIRS = 8  # of words: the shorter of two lengths has two phrases
SHORTEST_TEXT = 6  # words of each language
PHRASES = (2, 3, 4)  # words of one
Places = Mapping[int, tuple[int, ...]]
"""Keys of each query."""


class Contrast(NamedTuple):
    """What a head that copies raises at a query with one right place, each time with what it is compared with.

    `literal` are the tokens at the right place and at the wrong one, `semantic` what they mean without themselves: the rest of
    their classes, or their translations; empty where the tokens stand for nothing else.
    """

    query: int
    literal: tuple[tuple[int, ...], tuple[int, ...]]
    semantic: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


@dataclass(frozen=True, eq=False)
class FuzzyProbe:
    """Rows of one family and shape: `tokens` and `control` (n_sequences, n_positions), the answer key of each row.

    `right` has the keys of each query that mean what the query asks for, `wrong` as many other ones, drawn from where right ones
    may be; `contrasts` are as many in each row.
    """

    tokens: Ids
    control: Ids
    right: tuple[Places, ...]
    wrong: tuple[Places, ...]
    contrasts: tuple[tuple[Contrast, ...], ...]

    @property
    def n_sequences(self) -> int:
        return len(self.tokens)

    @property
    def chance(self) -> float:
        """The mass on right places of a head that attends to all positions evenly, the mean over queries and rows."""
        return float(np.mean([np.mean([len(keys) / (query + 1) for query, keys in row.items()]) for row in self.right]))


class Family(Protocol):
    """What sequences of one family are made of."""

    @property
    def described(self) -> str:
        """In a few words."""

    def probes(self, space: TokenSpace, n_sequences: int, rng: np.random.Generator) -> list[FuzzyProbe]:
        """So many rows, of varied shape. Raises `ProbeError` where not enough is there, or the context is too short."""


def followers(tokens: Sequence[int], meaning: Mapping[int, int]) -> tuple[dict[int, tuple[int, ...]], dict[int, tuple[int, ...]]]:
    """Where each query's token stood before, one position on, and where others of its meaning did: literal and fuzzy matches.

    `meaning` says which tokens mean alike; a token that is not in it means nothing. Queries without a match are left out.
    """
    places: dict[int, list[int]] = {}
    alike: dict[int, list[int]] = {}
    literal, fuzzy = {}, {}
    for query, token in enumerate(tokens):
        same = places.setdefault(token, [])
        if same:
            literal[query] = tuple(place + 1 for place in same)
        if token in meaning:
            others = tuple(place + 1 for place in alike.setdefault(meaning[token], []) if tokens[place] != token)
            if others:
                fuzzy[query] = others
            alike[meaning[token]].append(query)
        same.append(query)
    return literal, fuzzy


@dataclass(frozen=True)
class ByClass:
    """Classes of token ids, none in two of them; `source` says where they are from."""

    classes: tuple[tuple[int, ...], ...]
    source: str

    @property
    def described(self) -> str:
        return f"{len(self.classes)} classes of {self.source}"

    def probes(self, space: TokenSpace, n_sequences: int, rng: np.random.Generator) -> list[FuzzyProbe]:
        """Blocks of varied period, of which each copy has other members of the classes."""
        periods, copies = self._shape(space)
        large = [members for members in self.classes if len(members) >= copies]
        return [
            joined([self._row(space, large, period, copies, rng) for _ in range(share)])
            for period, share in _dealt(periods, n_sequences, rng)
        ]

    def _shape(self, space: TokenSpace) -> tuple[range, int]:
        """The periods that fit, and how many copies."""
        for copies in range(COPIES, 1, -1):
            count = sum(len(members) >= copies for members in self.classes)
            longest = min(LONGEST_PERIOD, count, room(space) // copies)
            if longest > SHORTEST_PERIOD:
                return range(max(SHORTEST_PERIOD, (longest + 1) // 2), longest + 1), copies
        count = sum(len(members) > 1 for members in self.classes)
        fewest = SHORTEST_PERIOD + 1
        if count < fewest:
            raise ProbeError(
                f"the probe by classes needs at least {fewest} classes of two tokens or more, found {count} of {self.source}: "
                f"give it `classes=`"
            )
        raise ProbeError(f"the probe by classes needs {2 * fewest} positions, the context has room for {room(space)}")

    def _row(
        self, space: TokenSpace, classes: Sequence[tuple[int, ...]], period: int, copies: int, rng: np.random.Generator
    ) -> Row:
        chosen = [classes[index] for index in rng.choice(len(classes), size=period, replace=False)]
        words = np.stack([rng.choice(members, size=copies, replace=False) for members in chosen])  # period, copies
        order = rng.permutation(period)
        moved = np.stack([words[order[(np.argsort(order) + copy) % period], copy] for copy in range(copies)])
        tokens, control = begun(space, words.T.ravel()), begun(space, moved.ravel())
        meaning = {token: number for number, members in enumerate(chosen) for token in members}
        right = followers(tokens, meaning)[1]
        start = len(tokens) - period * copies
        wrong = {
            query: _other_places(range(start, query - (query - start) % period), keys, tokens, meaning, rng)
            for query, keys in right.items()
        }
        contrasts = [
            _contrast(query, tokens[keys[0]], tokens[wrong[query][0]], lambda token: chosen[meaning[token]])
            for query, keys in right.items()
            if len(keys) == 1
        ]
        return Row(tokens, control, right, wrong, tuple(contrasts))


@dataclass(frozen=True)
class ByTranslation:
    """Pairs of token ids that mean the same, none in two of them: a word of one language, and of the other."""

    pairs: tuple[tuple[int, int], ...]
    source: str

    @property
    def described(self) -> str:
        return f"{len(self.pairs)} pairs of {self.source}"

    def probes(self, space: TokenSpace, n_sequences: int, rng: np.random.Generator) -> list[FuzzyProbe]:
        """Texts of varied length, cut into phrases of two to four words; either language comes first."""
        if len(self.pairs) < FEWEST_PAIRS:
            raise ProbeError(
                f"the probe by translation needs at least {FEWEST_PAIRS} pairs of tokens, found {len(self.pairs)} of "
                f"{self.source}: give it `pairs=`"
            )
        longest = min(LONGEST_PERIOD, len(self.pairs), room(space) // 2)
        if longest <= SHORTEST_TEXT:
            least = 2 * (SHORTEST_TEXT + 1)
            raise ProbeError(f"the probe by translation needs {least} positions, the context has room for {room(space)}")
        lengths = range(max(SHORTEST_TEXT, (longest + 1) // 2), longest + 1)
        found = []
        for length, share in _dealt(lengths, n_sequences, rng):
            phrases = _phrases(length, rng)
            found.append(joined([self._row(space, phrases, rng) for _ in range(share)]))
        return found

    def _row(self, space: TokenSpace, phrases: Sequence[range], rng: np.random.Generator) -> Row:
        length = phrases[-1].stop
        words = np.array(self.pairs)[rng.choice(len(self.pairs), size=length, replace=False)]
        words = words[:, ::-1] if rng.random() < 0.5 else words
        second = np.array([place for index in _moved(len(phrases), rng) for place in phrases[index]])
        cycle = rng.permutation(length)
        shuffled = np.empty_like(second)
        shuffled[cycle] = second[np.roll(cycle, 1)]  # no word stays where it was
        tokens, control = (begun(space, np.concatenate([words[:, 0], words[order, 1]])) for order in (second, shuffled))
        meaning = {int(token): number for number, pair in enumerate(words) for token in pair}
        start = len(tokens) - 2 * length
        ends = {phrase[-1] for phrase in phrases}
        inside = {start + length + place for place, word in enumerate(second) if int(word) not in ends}
        right = {query: keys for query, keys in followers(tokens, meaning)[1].items() if query in inside}
        wrong = {query: _other_places(range(start, start + length), keys, tokens, meaning, rng) for query, keys in right.items()}
        contrasts = [
            _contrast(query, tokens[keys[0]], tokens[wrong[query][0]], lambda token: words[meaning[token]].tolist())
            for query, keys in right.items()
        ]
        return Row(tokens, control, right, wrong, tuple(contrasts))


class Row(NamedTuple):
    """One sequence, its control, and its answer key."""

    tokens: tuple[int, ...]
    control: tuple[int, ...]
    right: Places
    wrong: Places
    contrasts: tuple[Contrast, ...]


def joined(rows: Sequence[Row]) -> FuzzyProbe:
    """Sequences of one shape as a probe."""
    tokens, control, right, wrong, contrasts = zip(*rows, strict=True)
    return FuzzyProbe(np.array(tokens, dtype=np.int64), np.array(control, dtype=np.int64), right, wrong, contrasts)


def begun(space: TokenSpace, words: Ids) -> tuple[int, ...]:
    """The ids of a sequence, after the first token of the model's."""
    first = () if space.bos_id is None else (space.bos_id,)
    return (*first, *(int(word) for word in words))


def room(space: TokenSpace) -> int:
    """Positions that words may take, behind the first token."""
    longest = LONGEST_PERIOD * (COPIES + 1)  # more than any family takes
    return longest if space.n_ctx is None else min(longest, space.n_ctx - (space.bos_id is not None))


def _dealt(shapes: range, n_sequences: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Some of the shapes, drawn, and how many sequences each has."""
    count = min(SHAPES_AT_ONCE, len(shapes), n_sequences)
    chosen = sorted(int(shape) for shape in rng.choice(np.asarray(shapes), size=count, replace=False))
    return [(shape, n_sequences // count + (index < n_sequences % count)) for index, shape in enumerate(chosen)]


def _phrases(length: int, rng: np.random.Generator) -> list[range]:
    """A text of so many words cut into phrases."""
    found: list[range] = []
    start = 0
    while start < length:
        fitting = [size for size in PHRASES if length - start - size in (0, *range(min(PHRASES), length))]
        size = int(rng.choice(fitting))
        found.append(range(start, start + size))
        start += size
    return found


def _moved(count: int, rng: np.random.Generator) -> list[int]:
    """The numbers below `count`, two or more, in any order but their own."""
    while True:
        order: list[int] = rng.permutation(count).tolist()
        if order != sorted(order):
            return order


def _other_places(
    places: Iterable[int], keys: Sequence[int], tokens: Sequence[int], meaning: Mapping[int, int], rng: np.random.Generator
) -> tuple[int, ...]:
    """As many of these places as there are keys, drawn from those that do not mean what the keys mean."""
    meant = {meaning.get(tokens[key]) for key in keys}
    others = [place for place in places if meaning.get(tokens[place]) not in meant]
    return tuple(sorted(int(place) for place in rng.choice(others, size=len(keys), replace=False)))


def _contrast(query: int, right: int, wrong: int, alike: Callable[[int], Sequence[int]]) -> Contrast:
    """Of the tokens at a right place and at a wrong one."""
    one, other = (tuple(token for token in alike(each) if token != each) for each in (right, wrong))
    return Contrast(query, ((right,), (wrong,)), (one, other))
