"""Sequences in which nothing repeats literally, and yet what comes next has been seen: by class, by translation, by pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from pytest_induction.errors import ArgumentError, ProbeError, whole_number
from pytest_induction.probes.sequences import COPIES, LONGEST_PERIOD, SHORTEST_PERIOD, Ids, usable_ids
from pytest_induction.probes.words import PATTERN_CLASSES, Encode, Words, counted
from pytest_induction.records import TokenSpace

FAMILIES = ("classes", "translation", "patterns")
SHAPES_AT_ONCE = 4  # different lengths in each round of probes; more would make passes of very few rows
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
class AbstractProbe:
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

    def probes(self, space: TokenSpace, n_sequences: int, rng: np.random.Generator) -> list[AbstractProbe]:
        """So many rows, of varied shape. Raises `ProbeError` where not enough is there, or the context is too short."""


def followers(tokens: Sequence[int], meaning: Mapping[int, int]) -> tuple[dict[int, tuple[int, ...]], dict[int, tuple[int, ...]]]:
    """Where each query's token occurred earlier, one position on, and where others of its meaning did.

    `meaning` says which tokens mean alike; a token that is not in it means nothing. Queries without a match are left out.
    """
    places: dict[int, list[int]] = {}
    alike: dict[int, list[int]] = {}
    literal, semantic = {}, {}
    for query, token in enumerate(tokens):
        same = places.setdefault(token, [])
        if same:
            literal[query] = tuple(place + 1 for place in same)
        if token in meaning:
            others = tuple(place + 1 for place in alike.setdefault(meaning[token], []) if tokens[place] != token)
            if others:
                semantic[query] = others
            alike[meaning[token]].append(query)
        same.append(query)
    return literal, semantic


@dataclass(frozen=True)
class ByClass:
    """Classes of token ids, none in two of them; `source` says where they are from."""

    classes: tuple[tuple[int, ...], ...]
    source: str

    @property
    def described(self) -> str:
        return f"{len(self.classes)} classes of {self.source}"

    def probes(self, space: TokenSpace, n_sequences: int, rng: np.random.Generator) -> list[AbstractProbe]:
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

    def probes(self, space: TokenSpace, n_sequences: int, rng: np.random.Generator) -> list[AbstractProbe]:
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


def joined(rows: Sequence[Row]) -> AbstractProbe:
    """Sequences of one shape as a probe."""
    tokens, control, right, wrong, contrasts = zip(*rows, strict=True)
    return AbstractProbe(np.array(tokens, dtype=np.int64), np.array(control, dtype=np.int64), right, wrong, contrasts)


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


CATEGORIES = 4  # of lines: two classes of first words times two of second words
FEWEST_WORDS = 4  # of each class in lines: two lines of a category, and each class is in two categories
MOST_ROUNDS = 3  # of lines: six words of a class
LINE = 4  # tokens of a line without its end: two words, the colon, the label


@dataclass(frozen=True)
class ByPattern:
    """Classes of words. Each row takes its first words from two of them, and its second words from two others.

    The colon and four labels are drawn from `spare` where they are not given, or where that is too little from the classes that a
    row does not have. `ends` comes after each label.
    """

    classes: tuple[tuple[int, ...], ...]
    source: str
    spare: tuple[int, ...] = ()
    colon: int | None = None
    labels: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()

    @property
    def described(self) -> str:
        return f"{len(self.classes)} classes of {self.source}"

    def probes(self, space: TokenSpace, n_sequences: int, rng: np.random.Generator) -> list[AbstractProbe]:
        """Lines in rounds, each round a line of every category in an order of its own."""
        sizes = sorted((len(members) for members in self.classes), reverse=True)
        marks = len({self.colon, *self.labels} - {None}) + len(self.spare) + sum(sizes[CATEGORIES:])
        if len(sizes) < CATEGORIES or sizes[-1] < FEWEST_WORDS or marks <= CATEGORIES:
            raise ProbeError(
                f"the probe by patterns needs {CATEGORIES} classes of at least {FEWEST_WORDS} tokens, a colon and {CATEGORIES} "
                f"labels, found {len(sizes)} such classes of {self.source} and {marks} other tokens: give it `classes=`"
            )
        line = LINE + len(self.ends)
        rounds = min(MOST_ROUNDS, sizes[-1] // 2, room(space) // (CATEGORIES * line))
        if rounds < 2:
            raise ProbeError(
                f"the probe by patterns needs {2 * CATEGORIES * line} positions, the context has room for {room(space)}"
            )
        return [joined([self._row(space, rounds, rng) for _ in range(n_sequences)])]

    def _row(self, space: TokenSpace, rounds: int, rng: np.random.Generator) -> Row:
        drawn = rng.permutation(len(self.classes)).tolist()
        colon, labels = self._marks(drawn[CATEGORIES:], rng)
        words = [rng.choice(self.classes[number], size=2 * rounds, replace=False) for number in drawn[:CATEGORIES]]
        order = rng.permutation(CATEGORIES).tolist()  # of categories, along which the control moves each round by one more
        lines = [int(category) for _ in range(rounds) for category in rng.permutation(CATEGORIES)]
        moved = [order[(order.index(category) + index // CATEGORIES) % CATEGORIES] for index, category in enumerate(lines)]
        endings = [(colon, labels[category], *self.ends) for category in lines]
        tokens, control = (
            begun(space, np.concatenate([(*pair, *end) for pair, end in zip(_worded(chosen, words), endings, strict=True)]))
            for chosen in (lines, moved)
        )
        width = LINE + len(self.ends)
        start = len(tokens) - width * len(lines)
        right, wrong, contrasts = {}, {}, []
        for index, category in enumerate(lines):
            same = [place for place in range(index) if lines[place] == category]
            if not same:
                continue
            query = start + width * index + LINE - 2
            others = rng.choice([place for place in range(index) if lines[place] != category], size=len(same), replace=False)
            right[query], wrong[query] = (
                tuple(start + width * int(line) + step for line in sorted(chosen) for step in range(width))
                for chosen in (same, others)
            )
            to_come = tuple(labels[later] for later in lines[index + 1 : CATEGORIES * 2])
            if to_come:  # in the second round: as yet each of these labels stood once, as the right one did
                contrasts.append(Contrast(query, ((labels[category],), to_come)))
        return Row(tokens, control, right, wrong, tuple(contrasts))

    def _marks(self, others: Sequence[int], rng: np.random.Generator) -> tuple[int, tuple[int, ...]]:
        """The colon and the labels of one row, which has none of the `others` among the classes."""
        spare = self.spare
        if len(spare) <= CATEGORIES:
            spare += tuple(token for number in others for token in self.classes[number])
        found = rng.permutation(spare).tolist()
        colon = found.pop() if self.colon is None else self.colon
        return colon, self.labels or tuple(found[:CATEGORIES])


def _worded(categories: Sequence[int], words: Sequence[Ids]) -> list[tuple[int, int]]:
    """Two words for each line: the next ones of its two classes."""
    left = [iter(members.tolist()) for members in words]
    return [(next(left[category // 2]), next(left[2 + category % 2])) for category in categories]


GIVEN, IDS = "the ids given", "consecutive ids"
CLASS_SIZE = 6  # of consecutive ids: three rounds of lines
ARBITRARY = "the {0} are of consecutive ids, which need not mean anything to this model: it has no tokenizer; give it `{1}=`"


def chosen_families(probes: Any) -> tuple[str, ...]:
    """The families that are asked for, in their order. Raises `ArgumentError` for any other name, and for none."""
    names = (probes,) if isinstance(probes, str) else tuple(probes) if isinstance(probes, Iterable) else (probes,)
    for name in names:
        if name not in FAMILIES:
            raise ArgumentError(f"`probes` must be of {', '.join(FAMILIES)}, got {name!r}")
    if not names:
        raise ArgumentError(f"`probes` must be at least one of {', '.join(FAMILIES)}, got none")
    return tuple(family for family in FAMILIES if family in names)


class Meanings:
    """What the families are made of for one model. `encode` is its tokenizer's, None where it has none, `tokenizer` names it."""

    def __init__(
        self,
        space: TokenSpace,
        encode: Encode | None,
        classes: Any = None,
        pairs: Any = None,
        *,
        tokenizer: str = "the tokenizer",
    ) -> None:
        self._space = space
        self._encode = encode
        self._tokenizer = tokenizer
        self._ids = [int(token) for token in usable_ids(space)]
        self._classes = None if classes is None else self._checked("classes", classes)
        self._pairs = None if pairs is None else self._checked("pairs", pairs)
        self.notes: tuple[str, ...] = ()

    def families(self, names: Sequence[str]) -> dict[str, Family]:
        """The families of these names; `notes` then says what is to be known of them. Raises `ProbeError` for too few words."""
        make: dict[str, Callable[[], Family]] = {
            "classes": self._by_class,
            "translation": self._by_translation,
            "patterns": self._by_pattern,
        }
        found = {name: make[name]() for name in names}
        arbitrary = {"classes": False, "pairs": False}
        for name, family in found.items():
            if family.described.endswith(IDS):
                arbitrary["pairs" if name == "translation" else "classes"] = True
        self.notes = tuple(ARBITRARY.format(what, what) for what, is_so in arbitrary.items() if is_so)
        return found

    @cached_property
    def _words(self) -> Words | None:
        return None if self._encode is None else Words(self._encode)

    def _by_class(self) -> ByClass:
        if self._classes is not None:
            return ByClass(self._classes, GIVEN)
        if self._words is None:
            return ByClass(self._consecutive(), IDS)
        classes, fewest = self._word_classes(self._words), SHORTEST_PERIOD + 1
        if sum(len(members) > 1 for members in classes.values()) < fewest:
            raise ProbeError(
                f"the probe by classes needs at least {fewest} classes of two words or more of one token each, "
                f"{self._tokenizer} has {counted(classes, classes)}: give it `classes=`, lists of token ids"
            )
        return ByClass(tuple(classes.values()), "single-token words")

    def _by_translation(self) -> ByTranslation:
        if self._pairs is not None:
            return ByTranslation(tuple((one, other) for one, other in self._pairs), GIVEN)
        if self._words is None:
            half = len(self._ids) // 2
            return ByTranslation(tuple(zip(self._ids[:half], self._ids[half : 2 * half], strict=True)), IDS)
        language, pairs, listed = self._words.pairs()
        whole = tuple(pair for pair in pairs if len(self._usable(pair)) == 2)
        if len(whole) < FEWEST_PAIRS:
            raise ProbeError(
                f"the probe by translation needs at least {FEWEST_PAIRS} pairs of words of one token each, {self._tokenizer} has "
                f"{len(whole)} of {listed}, English and {language}, no more of other languages: give it `pairs=` of token ids"
            )
        return ByTranslation(whole, f"single-token words, English and {language}")

    def _by_pattern(self) -> ByPattern:
        if self._classes is None and self._words is not None:
            return self._of_words(self._words)
        classes = self._consecutive() if self._classes is None else self._classes
        named = {token for members in classes for token in members}
        large = tuple(members for members in classes if len(members) >= FEWEST_WORDS)
        spare = tuple(token for token in self._ids if token not in named)
        return ByPattern(large, IDS if self._classes is None else GIVEN, spare)

    def _of_words(self, words: Words) -> ByPattern:
        classes, (colon, labels, ends) = self._word_classes(words), words.marks()
        groups = tuple(classes[name] for name in PATTERN_CLASSES if len(classes[name]) >= 2 * MOST_ROUNDS)
        if len(groups) < CATEGORIES:
            groups = tuple(classes[name] for name in PATTERN_CLASSES if len(classes[name]) >= FEWEST_WORDS)
        if len(groups) < CATEGORIES or colon is None or len(labels) < CATEGORIES:
            raise ProbeError(
                f"the probe by patterns needs {CATEGORIES} classes of at least {FEWEST_WORDS} words of one token each, a colon "
                f"and the digits 0 to 3, {self._tokenizer} has {counted(classes, PATTERN_CLASSES)}, "
                f"{'no colon' if colon is None else 'a colon'} and {len(labels)} digits: give it `classes=`, lists of token ids"
            )
        return ByPattern(groups, "single-token words", (), colon, labels, ends)

    def _word_classes(self, words: Words) -> dict[str, tuple[int, ...]]:
        return {name: self._usable(members) for name, members in words.classes().items()}

    def _usable(self, tokens: Sequence[int]) -> tuple[int, ...]:
        return tuple(token for token in tokens if token in self._usable_set)

    @cached_property
    def _usable_set(self) -> frozenset[int]:
        return frozenset(self._ids)

    def _consecutive(self) -> tuple[tuple[int, ...], ...]:
        """All usable ids in classes of six, of fewer where there would not be enough classes; the last few are in none."""
        size = min(CLASS_SIZE, len(self._ids) // (SHORTEST_PERIOD + 1))
        if size < 2:
            return ()
        return tuple(tuple(self._ids[start : start + size]) for start in range(0, len(self._ids) - size + 1, size))

    def _checked(self, name: str, groups: Any) -> tuple[tuple[int, ...], ...]:
        """Classes or pairs as the user gave them: token ids that a probe may use, none in two of them."""
        wanted = "pairs of token ids" if name == "pairs" else "lists of two token ids or more"
        seen: set[int] = set()
        found = []
        if isinstance(groups, Mapping):
            groups = groups.items() if name == "pairs" else groups.values()
        for group in _listed(name, wanted, groups):
            members = tuple(whole_number(name, token, least=0) for token in _listed(name, wanted, group))
            if len(members) < 2 or (name == "pairs" and len(members) != 2):
                raise ArgumentError(f"`{name}` must be {wanted}, got {group!r}")
            for token in members:
                if token not in self._usable_set:
                    raise ArgumentError(f"`{name}` must be of ids that a probe may use, below {self._space.d_vocab}, got {token}")
                if token in seen:
                    raise ArgumentError(f"`{name}` must have each id once, got {token} twice")
                seen.add(token)
            found.append(members)
        return tuple(found)


def _listed(name: str, wanted: str, values: Any) -> list[Any]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ArgumentError(f"`{name}` must be {wanted}, got {values!r}")
    return list(values)
