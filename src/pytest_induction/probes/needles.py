"""Needles: facts of one form between other sentences, and a question that names one of them. No data set is needed.

    BOS  filler .  Anna lives in Rome.  filler .  Paul lives in Oslo.  filler .  Anna lives in -> Rome

The other facts are distractors: they have the same form, and stand at each place as often. With a single fact, whatever copies a
city would be right, so there are two at least. Rows are put together of token ids, and never tokenised again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from pytest_induction.errors import ArgumentError, ProbeError, TextError, whole_number
from pytest_induction.probes.sequences import Ids, Rows, usable_ids
from pytest_induction.records import TokenSpace

Encode = Callable[[str], list[int]]
Wording = Literal["literal", "reworded"]
WORDINGS = get_args(Wording)
N_FACTS = 4
LENGTH = 128  # positions of a row
NAMES = (
    "John Mary James Anna Peter Sarah David Laura Tom Emma Paul Alice Mark Julia George Helen Robert Susan Michael Karen Daniel "
    "Maria Thomas Linda Simon Jane Kate Henry Lucy Jack"
)
CITIES = (
    "London Paris Berlin Rome Tokyo Moscow Madrid Vienna Chicago Boston Dublin Athens Cairo Sydney Toronto Lisbon Oslo Prague "
    "Seattle Dallas Denver Houston Miami Delhi"
)
BETWEEN, AFTER = " lives in", "."
REWORDED = (" The home of", " is the city of")
FILLER = (
    " The weather was mild for the whole week.",
    " Most of the shops close early on Sunday.",
    " A small river runs behind the old mill.",
    " The train was late again this morning.",
    " Nobody had seen the keys since lunch.",
    " The museum opens at nine and closes at five.",
    " Fresh bread is sold on the corner.",
    " The meeting was moved to the second floor.",
    " It is hard to grow tomatoes in the shade.",
    " The new bridge will be finished next year.",
    " Two of the windows need a coat of paint.",
    " The library has a quiet room upstairs.",
    " Coffee tastes better from a warm cup.",
    " The road to the coast is narrow and steep.",
    " Many birds leave before the first snow.",
    " The band played until it was dark.",
    " A long table stood in the middle of the hall.",
    " The price of wood has gone up since spring.",
    " Some of the letters were never opened.",
    " The garden is full of roses in June.",
    " The lift has been out of order for days.",
    " A blue car was parked in front of the gate.",
    " Rain is expected in the afternoon.",
    " The children learn to swim in the lake.",
    " Old maps show a different path.",
    " The soup needs a little more salt.",
    " It took an hour to find the right page.",
    " The clock on the tower is five minutes slow.",
)


@dataclass(frozen=True)
class Form:
    """Facts as token ids: names and values of one id each, what stands around them, and what is asked.

    A fact is a name, `between`, a value and `after`; a question is `before`, a name and `behind`. `filler` are sentences; without
    any what lies between facts are random ids of `others`.
    """

    names: tuple[int, ...]
    values: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    before: tuple[int, ...]
    behind: tuple[int, ...]
    filler: tuple[tuple[int, ...], ...] = ()
    others: tuple[int, ...] = ()

    @property
    def fact(self) -> int:
        """Positions of a fact."""
        return 2 + len(self.between) + len(self.after)

    def least(self, n_facts: int) -> int:
        """Positions of so many facts and a question."""
        return n_facts * self.fact + len(self.before) + 1 + len(self.behind)


@dataclass(frozen=True, eq=False)
class NeedleRows(Rows):
    """`tokens` (n_sequences, n_positions) end with the question: the value that was asked for comes next.

    `values` and `keys` (n_sequences, n_facts) are the values of all facts and their positions, first those of the fact that is
    asked for. `places` (n_sequences,) say which of the places for facts that one has, from 0 for the first.
    """

    tokens: Ids
    values: Ids
    keys: Ids
    places: Ids

    @property
    def n_facts(self) -> int:
        return int(self.values.shape[1])

    @property
    def with_values(self) -> Ids:
        """The rows with all values behind them, the right one first: what follows the question changes nothing before it."""
        return np.concatenate([self.tokens, self.values], axis=1)

    def __repr__(self) -> str:
        return f"NeedleRows({self.n_sequences} sequences, {self.n_facts} facts, {self.n_positions} positions)"


def needle_rows(
    form: Form,
    space: TokenSpace,
    length: int,
    n_facts: int,
    *,
    rng: np.random.Generator,
    places: Sequence[int] | None = None,
    n_sequences: int = 1,
) -> NeedleRows:
    """Rows of exactly `length` positions, each of other facts. The places of facts lie evenly in the row.

    `places` says where the fact stands that is asked for, row by row; else it is drawn. What comes first may be the end of a
    sentence, as where a text is cut.
    """
    first = [] if space.bos_id is None else [space.bos_id]
    room = length - len(first) - form.least(n_facts)
    tokens, values, keys, taken = [], [], [], []
    for number in range(n_sequences):
        names = [form.names[each] for each in rng.choice(len(form.names), n_facts, replace=False)]
        stated = [form.values[each] for each in rng.choice(len(form.values), n_facts, replace=False)]
        asked = int(rng.integers(n_facts)) if places is None else int(places[number])
        row, at = list(first), []
        parts = _filler(form, room, rng)
        borders = [round((place + 0.5) / n_facts * len(parts)) for place in range(n_facts)]
        for border in range(len(parts) + 1):
            for place in range(n_facts):
                if borders[place] == border:
                    row += [names[place], *form.between]
                    at.append(len(row))
                    row += [stated[place], *form.after]
            row += parts[border] if border < len(parts) else ()
        tokens.append([*row, *form.before, names[asked], *form.behind])
        order = [asked, *(place for place in range(n_facts) if place != asked)]
        values.append([stated[place] for place in order])
        keys.append([at[place] for place in order])
        taken.append(asked)
    return NeedleRows(*(np.array(each, dtype=np.int64) for each in (tokens, values, keys, taken)))


def _filler(form: Form, room: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Sentences in random order that have so many ids together, the first of them cut at its beginning."""
    if not form.filler:
        return [(int(token),) for token in rng.choice(form.others, room)]
    found: list[tuple[int, ...]] = []
    while room > 0:
        for number in rng.permutation(len(form.filler)):
            if room > 0:
                found.append(form.filler[number][-room:])
                room -= len(found[-1])
    return found[::-1]


def lengths_of(form: Form, space: TokenSpace, lengths: Any, n_facts: int) -> tuple[int, ...]:
    """The lengths that are asked for, in positions, the first token counted; by default 128, less where the context is short.

    Raises `ArgumentError` for what is no length, `ProbeError` where facts do not fit a length, or a length the context.
    """
    count = whole_number("n_facts", n_facts, least=1)
    if count == 1:
        raise ArgumentError("`n_facts` must be at least 2, got 1: with a single fact whatever copies a value is right")
    if (most := min(len(form.names), len(form.values))) < count:
        raise ProbeError(f"{count} facts need as many names and values of one token each, found {most}")
    least = form.least(count) + (space.bos_id is not None)
    longest = None if space.n_ctx is None else space.n_ctx - count  # all values stand behind the question in some passes
    if lengths is None:
        lengths = LENGTH if longest is None else min(LENGTH, longest)
    asked = list(lengths) if isinstance(lengths, Iterable) and not isinstance(lengths, str) else [lengths]
    if not asked:
        raise ArgumentError("`lengths` must be a number of positions or several, got none")
    for length in asked:
        if whole_number("lengths", length, least=1) < least:
            raise ProbeError(f"{count} facts and a question need {least} positions, got {length}")
        if longest is not None and length > longest:
            raise ProbeError(
                f"rows of {length} positions and {count} values need {length + count}, the context has {space.n_ctx}"
            )
    return tuple(asked)


def form_of(space: TokenSpace, encode: Encode | None, facts: Mapping[str, Any] | None = None, wording: str = "literal") -> Form:
    """The facts of this module, or some of one's own: "names" and "values", of words or of ids, and what is "between" them.

    Raises `TextError` where words are asked for and there is no tokenizer, `ArgumentError` for what are no facts.
    """
    if wording not in WORDINGS:
        raise ArgumentError(f"`wording` must be literal or reworded, got {wording!r}")
    if facts is None:
        return _of_words(space, encode, NAMES.split(), CITIES.split(), BETWEEN, wording)
    if wording != "literal":
        raise ArgumentError("`wording` 'reworded' is of the facts of the package: leave out `facts`, or ask literally")
    names, values, between = _checked(facts)
    if all(isinstance(token, str) for token in (*names, *values)) and isinstance(between, str):
        return _of_words(space, encode, names, values, between, wording)
    return _of_ids(space, names, values, between)


def _checked(facts: Any) -> tuple[list[Any], list[Any], Any]:
    wanted = "`facts` must have `names` and `values`, both of words or of token ids, and what is `between` them"
    known = {"names", "values", "between"}
    if not isinstance(facts, Mapping) or not {"names", "values"} <= facts.keys() <= known:
        raise ArgumentError(f"{wanted}, got {list(facts) if isinstance(facts, Mapping) else facts!r}")
    sides = [facts["names"], facts["values"]]
    if any(isinstance(side, str) or not isinstance(side, Iterable) for side in sides):
        raise ArgumentError(f"{wanted}, got {sides[0]!r} and {sides[1]!r}")
    names, values = map(list, sides)
    words = [isinstance(each, str) for each in (*names, *values)]
    is_of_words = bool(words) and all(words)
    between = facts.get("between", BETWEEN if is_of_words else ())
    if any(words) != is_of_words or isinstance(between, str) != is_of_words:
        raise ArgumentError(f"{wanted}, got words beside ids")
    return names, values, between


def _of_ids(space: TokenSpace, names: Sequence[Any], values: Sequence[Any], between: Any) -> Form:
    usable = usable_ids(space).tolist()
    sides = []
    for name, ids in (("names", names), ("values", values), ("between", between)):
        found = tuple(whole_number(f"facts[{name!r}]", token, least=0) for token in ids)
        if strange := [token for token in found if token not in usable]:
            wanted = f"ids that a probe may use, below {space.d_vocab} and not special"
            raise ArgumentError(f"`facts[{name!r}]` must be of {wanted}, got {strange[0]}")
        if len(set(found)) < len(found):
            raise ArgumentError(f"`facts[{name!r}]` must have each id once")
        sides.append(found)
    if len({*sides[0], *sides[1], *sides[2]}) < sum(map(len, sides)):
        raise ArgumentError("`facts` must have no id twice: a name is no value, nor what is between them")
    others = tuple(token for token in usable if token not in {*sides[0], *sides[1], *sides[2]})
    if not others:
        raise ProbeError("no token id is left for what stands between facts")
    return Form(sides[0], sides[1], sides[2], (), (), sides[2], others=others)


def _of_words(
    space: TokenSpace, encode: Encode | None, names: Sequence[str], values: Sequence[str], between: str, wording: str
) -> Form:
    """Those names and values that are one token each, with a space before them."""
    if encode is None:
        raise TextError("facts are of words, and there is no tokenizer: give it `tokenizer=`, or `facts=` of token ids")
    usable = set(usable_ids(space).tolist())

    def singles(words: Sequence[str]) -> tuple[int, ...]:
        ids = [encode(f" {word}") for word in dict.fromkeys(words)]
        return tuple(dict.fromkeys(each[0] for each in ids if len(each) == 1 and each[0] in usable))

    found = singles(names)
    usable_values = tuple(token for token in singles(values) if token not in found)
    before, behind = REWORDED if wording == "reworded" else ("", between)
    filler = tuple(tuple(encode(sentence)) for sentence in FILLER)

    def piece(text: str) -> tuple[int, ...]:
        return tuple(encode(text)) if text else ()

    return Form(found, usable_values, piece(between), piece(AFTER), piece(before), piece(behind), filler)
