"""Words of several tokens after random ones that repeat: is their meaning copied, or only their tokens? No data set is needed.

    clean     BOS  filler  r  word  newline  r  w1 -> w2
    corrupt   BOS  other random ids newline  r  w1 -> w2

r are random ids, w1 and w2 the first two tokens of the word. In a clean row the word stood after r before, in a corrupt row it
did not. A meaningless string is the first token of one word and the rest of another. Rows are put together of token ids, and
never tokenised again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytest_induction.errors import ArgumentError, ProbeError, TextError, whole_number
from pytest_induction.probes.semantic import begun
from pytest_induction.probes.sequences import Ids, Rows, usable_ids
from pytest_induction.records import TokenSpace

Encode = Callable[[str], list[int]]
FEWEST_PIECES, MOST_PIECES = 2, 5  # tokens of a word
FEWEST_WORDS = 8
LENGTH = 30  # positions of random ids and the word
SEPARATOR = "\n"
WORDS = (
    "rhododendron chrysanthemum kaleidoscope hippopotamus rhinoceros xylophone encyclopaedia marionette amphitheatre barometer "
    "salamander porcupine tambourine stethoscope tarantula orangutan pterodactyl ambidextrous quadrilateral onomatopoeia "
    "sarcophagus boomerang meringue gargoyle chandelier mayonnaise wheelbarrow zucchini armadillo accordion parallelogram "
    "harpsichord marshmallow periscope gondolier nightingale grasshopper woodpecker cantaloupe hummingbird dragonfly "
    "rollercoaster saxophone gladiator handkerchief corduroy rattlesnake sledgehammer periwinkle tumbleweed"
)


@dataclass(frozen=True)
class Words:
    """Words as token ids, two to five each, what stands between two lines, and the ids that random ones are drawn from."""

    words: tuple[tuple[int, ...], ...]
    separator: tuple[int, ...]
    others: tuple[int, ...]

    def mixed(self, number: int, rng: np.random.Generator) -> tuple[int, ...]:
        """The first token of that word and the rest of another one, drawn from those with another beginning."""
        first, second, *_ = self.words[number]
        rests = [word[1:] for word in self.words if word[0] != first and word[1] != second]
        return first, *rests[int(rng.integers(len(rests)))]


@dataclass(frozen=True, eq=False)
class WordRows(Rows):
    """Rows of which all four kinds end with the same random ids, the first token of a word, and the token that comes next.

    `tokens` and `mixed` (n_sequences, n_positions) are clean rows of words and of meaningless strings, `corrupt` and `other` have
    neither: two draws of random ids, both with the second token of the word at the end. `mixed` ends with that of the string.
    """

    tokens: Ids
    mixed: Ids
    corrupt: Ids
    other: Ids

    @property
    def corrupt_of_mixed(self) -> Ids:
        """The corrupt rows, with the second token of the meaningless string at the end."""
        return np.concatenate([self.corrupt[:, :-1], self.mixed[:, -1:]], axis=1)

    def __repr__(self) -> str:
        return f"WordRows({self.n_sequences} sequences, {self.n_positions} positions)"


def word_rows(words: Words, space: TokenSpace, n_sequences: int, rng: np.random.Generator) -> WordRows:
    """So many rows, each of other random ids and of a word that is drawn anew, so that rows are alike and independent."""
    found: dict[str, list[tuple[int, ...]]] = {name: [] for name in ("tokens", "mixed", "corrupt", "other")}
    repeated = LENGTH - MOST_PIECES
    for number in rng.integers(len(words.words), size=n_sequences).tolist():
        word, mixed = words.words[number], words.mixed(number, rng)
        again, filler = np.split(_drawn(words.others, LENGTH, rng), [repeated])
        lines = {
            "tokens": (*filler[: MOST_PIECES - len(word)], *again, *word),
            "mixed": (*filler[: MOST_PIECES - len(mixed)], *again, *mixed),
            "corrupt": _drawn(words.others, LENGTH, rng),
            "other": _drawn(words.others, LENGTH, rng),
        }
        for name, line in lines.items():
            end = mixed[:2] if name == "mixed" else word[:2]
            found[name].append(begun(space, np.array([*line, *words.separator, *again, *end])))
    return WordRows(**{name: np.array(rows, dtype=np.int64) for name, rows in found.items()})


def _drawn(ids: Sequence[int], count: int, rng: np.random.Generator) -> Ids:
    """So many ids in random order, none twice where there are enough."""
    drawn: Ids = rng.choice(ids, count, replace=len(ids) < count)
    return drawn


def positions_of(words: Words, space: TokenSpace) -> int:
    """Positions of a row, the token that comes next among them."""
    return (space.bos_id is not None) + LENGTH + len(words.separator) + LENGTH - MOST_PIECES + 2


def words_of(space: TokenSpace, encode: Encode | None, words: Any = None) -> Words:
    """The words of this module that have two to five tokens, or some of one's own, each a text or token ids.

    Raises `TextError` where texts are asked for and there is no tokenizer, `ArgumentError` for what are no words, `ProbeError`
    where too few have so many tokens, or the context is too short.
    """
    given: list[Any] = WORDS.split() if words is None else _listed(words)
    are_texts = isinstance(given[0], str)
    if are_texts and encode is None:
        raise TextError("the words are texts, and there is no tokenizer: give it `tokenizer=`, or `words=` as token ids")
    usable = set(usable_ids(space).tolist())
    separator: tuple[int, ...] = ()
    if are_texts and encode is not None:
        pieces, separator = [tuple(encode(f" {word}")) for word in given], tuple(encode(SEPARATOR))
    else:
        pieces = [_ids(word, usable) for word in given]
    fitting = [each for each in dict.fromkeys(pieces) if FEWEST_PIECES <= len(each) <= MOST_PIECES and usable >= set(each)]
    if len(fitting) < FEWEST_WORDS:
        wanted = f"{FEWEST_WORDS} words of {FEWEST_PIECES} to {MOST_PIECES} tokens each are needed"
        raise ProbeError(f"{wanted}, found {len(fitting)} of {len(given)}: give others with `words=`")
    if any(all(one[0] == other[0] or one[1] == other[1] for other in fitting) for one in fitting):
        raise ProbeError("each word needs another one with other first and second tokens, to mix with it")
    taken = {token for word in fitting for token in word}
    found = Words(tuple(fitting), separator, tuple(sorted(usable - taken)))
    if not found.others:
        raise ProbeError("no token id is left for the random ids around words")
    if space.n_ctx is not None and positions_of(found, space) > space.n_ctx:
        raise ProbeError(f"rows with words need {positions_of(found, space)} positions, the context has {space.n_ctx}")
    return found


def _listed(words: Any) -> list[Any]:
    wanted = "`words` must be texts, or token ids of each word"
    if isinstance(words, str) or not isinstance(words, Iterable):
        raise ArgumentError(f"{wanted}, got {words!r}")
    given = list(words)
    texts = [isinstance(word, str) for word in given]
    if not given or any(texts) != all(texts) or not all(isinstance(word, Iterable) for word in given):
        raise ArgumentError(f"{wanted}, got {given!r}")
    return given


def _ids(word: Sequence[Any], usable: set[int]) -> tuple[int, ...]:
    found = tuple(whole_number("words", token, least=0) for token in word)
    if strange := [token for token in found if token not in usable]:
        raise ArgumentError(f"`words` must be of ids that a probe may use, not special and in the vocabulary, got {strange[0]}")
    return found
