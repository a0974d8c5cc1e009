"""Words that mean alike, for models with a tokenizer: classes of them, and the same word in two languages.

Only words that the tokenizer has as one token each are of use. Spellings are kept apart: a pair of languages has few cognates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

Encode = Callable[[str], list[int]]
CLASSES = {
    "months": "January February March April May June July August September October November December",
    "colours": "red blue green yellow black white brown pink purple grey violet",
    "animals": "dog cat horse cow pig lion tiger bear wolf rabbit mouse sheep",
    "fruits": "apple banana lemon cherry grape peach pear plum strawberry mango coconut",
    "days": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "numbers": "one two three four five six seven eight nine ten eleven twelve",
    "countries": "France Germany Italy Spain China Japan India Russia Brazil Canada Mexico Egypt",
    "body": "hand foot head arm leg nose mouth ear eye knee finger neck",
    "family": "mother father sister brother son daughter uncle aunt cousin wife husband",
    "vehicles": "car bus train truck boat ship plane bicycle",
    "clothes": "shirt hat coat shoes dress pants jacket socks",
}
PATTERN_CLASSES = ("months", "colours", "animals", "fruits")  # the paper's: first or second word of a line
LANGUAGES = {
    "German": (
        "and und, with mit, from von, but aber, where wo, he er, day Tag, time Zeit, child Kind, country Land, car Auto, "
        "good gut, until bis, all alle, here hier, book Buch, game Spiel, not nicht, for für, also auch, or oder, if wenn, "
        "who wer, how wie, only nur, very sehr, there dort, now jetzt, always immer, never nie, we wir, they sie, "
        "year Jahr, world Welt, life Leben, woman Frau, city Stadt, "
        "people Menschen, work Arbeit, money Geld, small klein, between zwischen, "
        "without ohne, because weil, many viele, more mehr, first ersten, part Teil, history Geschichte, question Frage"
    ),
    "French": (
        "and et, is est, not pas, for pour, from de, on sur, if si, who qui, he il, I je, day jour, country pays, hand main, "
        "good bon, through par, without sans, have ont, make faire, say dire, more plus, end fin, one un, her sa, with avec, "
        "also aussi, but mais, how comment, where où, very très, now maintenant, always toujours, never jamais, we nous, "
        "she elle, they ils, house maison, year année, time temps, world monde, life vie, woman femme, city ville, people gens, "
        "friend ami, car voiture, money argent, small petit, between entre, after après, before avant"
    ),
}


class Words:
    """The listed words of which each is one token, with a space before it where that makes more of them so."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        listed = [word for words in CLASSES.values() for word in words.split()]
        self._lead = max((" ", ""), key=lambda lead: sum(self._one(lead + word) is not None for word in listed))

    def classes(self) -> dict[str, tuple[int, ...]]:
        """The ids of each class, no id in two of them."""
        found: dict[str, tuple[int, ...]] = {}
        taken: set[int] = set()
        for name, words in CLASSES.items():
            ids = [token for word in words.split() if (token := self._one(self._lead + word)) is not None]
            found[name] = tuple(token for token in dict.fromkeys(ids) if token not in taken)
            taken |= set(ids)
        return found

    def pairs(self) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The language that has more words of one token each, and the ids of English words and theirs, no id in two pairs."""
        found = {language: self._pairs(words.split(", ")) for language, words in LANGUAGES.items()}
        return max(found.items(), key=lambda item: len(item[1]))

    def marks(self) -> tuple[int | None, tuple[int, ...], tuple[int, ...]]:
        """What a line has beside its words: the colon, the digits 0 to 3 as far as they are one token each, the line's end."""
        digits = [self._first(f" {digit}", f"{digit}") for digit in range(4)]
        end = self._one("\n")
        return self._one(":"), tuple(digit for digit in digits if digit is not None), () if end is None else (end,)

    def _pairs(self, pairs: Iterable[str]) -> tuple[tuple[int, int], ...]:
        taken: set[int] = set()
        found = []
        for one, other in (pair.split() for pair in pairs):
            ids = self._one(self._lead + one), self._one(self._lead + other)
            if ids[0] is not None and ids[1] is not None and ids[0] != ids[1] and not taken & set(ids):
                found.append((ids[0], ids[1]))
                taken |= {ids[0], ids[1]}
        return tuple(found)

    def _first(self, *spellings: str) -> int | None:
        return next((token for text in spellings if (token := self._one(text)) is not None), None)

    def _one(self, text: str) -> int | None:
        """The id of a text that is one token."""
        ids = self._encode(text)
        return ids[0] if len(ids) == 1 else None


def counted(classes: Mapping[str, tuple[int, ...]], names: Iterable[str]) -> str:
    """How many words there are of each class."""
    return ", ".join(f"{len(classes[name])} {name}" for name in names)
