"""Which tokens mean alike: what the user gives, else words of the tokenizer, else ids next to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from pytest_induction.errors import ArgumentError, ProbeError, whole_number
from pytest_induction.probes.fuzzy import FAMILIES, ByClass, ByTranslation, Family
from pytest_induction.probes.lines import CATEGORIES, FEWEST_WORDS, ByPattern
from pytest_induction.probes.sequences import SHORTEST_PERIOD, usable_ids
from pytest_induction.probes.words import PATTERN_CLASSES, Encode, Words, counted
from pytest_induction.records import TokenSpace

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
    """What the families are made of for one model. `encode` is its tokenizer's, None where it has none."""

    def __init__(self, space: TokenSpace, encode: Encode | None, classes: Any = None, pairs: Any = None) -> None:
        self._space = space
        self._encode = encode
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
        if self._words is not None:
            return ByClass(tuple(self._usable(members) for members in self._words.classes().values()), "single-token words")
        return ByClass(self._consecutive(), IDS)

    def _by_translation(self) -> ByTranslation:
        if self._pairs is not None:
            return ByTranslation(tuple((one, other) for one, other in self._pairs), GIVEN)
        if self._words is not None:
            language, pairs = self._words.pairs()
            whole = tuple(pair for pair in pairs if len(self._usable(pair)) == 2)
            return ByTranslation(whole, f"single-token words, English and {language}")
        half = len(self._ids) // 2
        return ByTranslation(tuple(zip(self._ids[:half], self._ids[half : 2 * half], strict=True)), IDS)

    def _by_pattern(self) -> ByPattern:
        if self._classes is None and self._words is not None:
            return self._of_words(self._words)
        classes = self._consecutive() if self._classes is None else self._classes
        large = tuple(members for members in classes if len(members) >= FEWEST_WORDS)[:CATEGORIES]
        named, used = ({token for members in each for token in members} for each in (classes, large))
        spare = tuple(token for token in self._ids if token not in named)
        if len(spare) <= CATEGORIES:
            spare = tuple(token for token in self._ids if token not in used)
        return ByPattern(large, IDS if self._classes is None else GIVEN, spare)

    def _of_words(self, words: Words) -> ByPattern:
        classes, (colon, labels, ends) = words.classes(), words.marks()
        groups = tuple(self._usable(classes[name]) for name in PATTERN_CLASSES)
        if min(map(len, groups)) < FEWEST_WORDS or colon is None or len(labels) < CATEGORIES:
            raise ProbeError(
                f"the probe by patterns needs at least {FEWEST_WORDS} words of one token each of {', '.join(PATTERN_CLASSES)}, a "
                f"colon and the digits 0 to 3, the tokenizer has {counted(classes, PATTERN_CLASSES)}, "
                f"{'no colon' if colon is None else 'a colon'} and {len(labels)} digits: give it `classes=`"
            )
        return ByPattern(groups, "single-token words", (), colon, labels, ends)

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
