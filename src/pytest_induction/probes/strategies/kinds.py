"""Strategies for sequences, and for pairs that differ in one respect, by which a model that matches tokens is not moved."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import strategies as st

from pytest_induction.errors import ArgumentError
from pytest_induction.probes.rules import LINE, PLACES, SEPARATORS
from pytest_induction.probes.sequences import Answer, ProbeSequence
from pytest_induction.probes.strategies.drawing import Draw, Material, Size, Sizes, Vocabulary

Sequences = st.SearchStrategy[ProbeSequence]
PERIOD, REPEATS = (4, 10), (2, 3)  # short: a batch of long ones costs as much as one by one, about 20 positions half as much
SHORTEST = 2  # a block of one token is a run of it


def repeated_sequences(
    model: Vocabulary,
    *,
    period: Size = PERIOD,
    repeats: Size = REPEATS,
    gap: Size = 0,
    prefix: Size = 0,
    bos: int | bool | None = None,
    exclude: Collection[int] = (),
) -> Sequences:
    """A block of `period` different random ids that stands `repeats` times: `BOS | 5 6 7 8 | 5 6 7 8`.

    Between two copies stand `gap` ids that occur nowhere else, each gap drawn by itself, and `prefix` such ids before the first.
    `bos` is the first token's id; the model's own by default, False for none. Ids in `exclude` are not used. Sizes are cut
    to what the model's context and vocabulary hold.

    Raises `ProbeError` where not even the smallest fits, `ArgumentError` for a period below 2 or fewer than 2 repeats.
    """
    material = Material.of(model, bos, exclude)
    sizes = RepeatSizes.of(period, repeats, gap, prefix)
    sizes.check(material)

    @st.composite
    def sequences(draw: Draw) -> ProbeSequence:
        return sizes.draw(draw, material)

    return sequences()


class RepeatSizes:
    """The sizes of a repeated sequence, drawn so that the whole fits."""

    def __init__(self, period: Sizes, repeats: Sizes, gap: Sizes, prefix: Sizes) -> None:
        self.period, self.repeats, self.gap, self.prefix = period, repeats, gap, prefix

    @classmethod
    def of(cls, period: Size, repeats: Size, gap: Size, prefix: Size) -> RepeatSizes:
        return cls(
            Sizes.of("period", period, least=SHORTEST),
            Sizes.of("repeats", repeats, least=2),
            Sizes.of("gap", gap, least=0),
            Sizes.of("prefix", prefix, least=0),
        )

    def check(self, material: Material) -> None:
        """Raise `ProbeError` where the smallest of these does not fit."""
        period, repeats = self.period.least, self.repeats.least
        others = (repeats - 1) * self.gap.least + self.prefix.least
        material.check("repeated sequences", positions=period * repeats + others, ids=period + others)

    @property
    def most_ids(self) -> int:
        """Different ids of the longest sequence."""
        return self.period.most + self.prefix.most + (self.repeats.most - 1) * self.gap.most

    def draw(self, draw: Draw, material: Material) -> ProbeSequence:
        gap, prefix = self.gap.least, self.prefix.least
        fewest = self.repeats.least
        least = (fewest - 1) * gap + prefix  # positions that no block may take
        longest = min((material.room - least) // fewest, material.n_ids - least)
        period = self.period.draw(draw, most=longest)
        most = 1 + min((material.room - prefix - period) // (period + gap), (material.n_ids - prefix - period) // max(1, gap))
        repeats = self.repeats.draw(draw, most=most)
        spare = min(material.room - period * repeats, material.n_ids - period) - (repeats - 1) * gap - prefix
        before = self.prefix.draw(draw, most=prefix + spare)
        spare -= before - prefix
        gaps = []
        for _ in range(repeats - 1):
            gaps.append(self.gap.draw(draw, most=gap + spare))
            spare -= gaps[-1] - gap
        ids = iter(material.different_ids(draw, period + before + sum(gaps), most=self.most_ids))
        block = [next(ids) for _ in range(period)]
        parts = [[next(ids) for _ in range(before)], block]
        for size in gaps:
            parts += [[next(ids) for _ in range(size)], block]
        return material.sequence([part for part in parts if part], period=period, repeats=repeats)


def partial_repeats(
    model: Vocabulary, *, period: Size = PERIOD, bos: int | bool | None = None, exclude: Collection[int] = ()
) -> Sequences:
    """A block of different random ids, then a piece of it, at least two ids from anywhere in it: `BOS | 5 6 7 8 | 6 7`."""
    material, sizes = Material.of(model, bos, exclude), Sizes.of("period", period, least=3)
    material.check("partial repeats", positions=sizes.least + 2, ids=sizes.least)

    @st.composite
    def sequences(draw: Draw) -> ProbeSequence:
        longest = min(material.n_ids, material.room - 2)
        size = sizes.draw(draw, most=longest)
        length = Sizes("length", 2, size - 1).draw(draw, most=material.room - size)
        begin = Sizes("begin", 0, size - length).draw(draw, most=size - length)
        block = material.different_ids(draw, size, most=sizes.most)
        return material.sequence([block, block[begin : begin + length]], period=size, repeats=1)

    return sequences()


def nested_repeats(
    model: Vocabulary,
    *,
    inner: Size = (2, 4),
    outer: Size = (1, 4),
    repeats: Size = 2,
    bos: int | bool | None = None,
    exclude: Collection[int] = (),
) -> Sequences:
    """A block that repeats and itself holds a repeat, `inner` ids twice and `outer` others: `BOS | 5 6 5 6 7 | 5 6 5 6 7`.

    Where the inner copies end, the last token alone does not tell what comes: only a longer context does.
    """
    material = Material.of(model, bos, exclude)
    inside, outside = Sizes.of("inner", inner, least=2), Sizes.of("outer", outer, least=1)
    copies = Sizes.of("repeats", repeats, least=2)
    material.check(
        "nested repeats", positions=copies.least * (2 * inside.least + outside.least), ids=inside.least + outside.least
    )

    @st.composite
    def sequences(draw: Draw) -> ProbeSequence:
        room = material.room // copies.least
        length = inside.draw(draw, most=min((room - outside.least) // 2, material.n_ids - outside.least))
        rest = outside.draw(draw, most=min(room - 2 * length, material.n_ids - length))
        count = copies.draw(draw, most=material.room // (2 * length + rest))
        ids = material.different_ids(draw, length + rest, most=inside.most + outside.most)
        block = ids[:length] * 2 + ids[length:]
        return material.sequence([block] * count, period=len(block), repeats=count)

    return sequences()


def conflicting_ngrams(
    model: Vocabulary,
    *,
    misleading: Size = (1, 3),
    gap: Size = 0,
    bos: int | bool | None = None,
    exclude: Collection[int] = (),
) -> Sequences:
    """Two tokens foretell one thing and the last of them alone another: `BOS | 1 2 3 | 4 2 5 | 1 2 3`.

    After the second `1 2` the longer context says 3; 2 alone was last, and where `misleading` is above 1 more often, followed
    by 5. `gap` ids that occur nowhere else stand before each part but the first.
    """
    material = Material.of(model, bos, exclude)
    times, between = Sizes.of("misleading", misleading, least=1), Sizes.of("gap", gap, least=0)
    least = 6 + 3 * times.least + (1 + times.least) * between.least
    material.check("conflicting n-grams", positions=least, ids=5 + (1 + times.least) * between.least)

    @st.composite
    def sequences(draw: Draw) -> ProbeSequence:
        gap = between.least
        count = times.draw(draw, most=_most_misleading(material, gap))
        spare = min(material.room - 6 - 3 * count, material.n_ids - 5) - (1 + count) * gap
        gaps = []
        for _ in range(count + 1):
            gaps.append(between.draw(draw, most=gap + spare))
            spare -= gaps[-1] - gap
        ids = iter(material.different_ids(draw, 5 + sum(gaps), most=5 + (1 + times.most) * between.most))
        one, two, right, other, wrong = (next(ids) for _ in range(5))
        parts = [[one, two, right]]
        for part, size in zip([*[[other, two, wrong]] * count, [one, two, right]], gaps, strict=True):
            parts += [[next(ids) for _ in range(size)], part]
        parts = [part for part in parts if part]
        return material.sequence(parts, period=sum(map(len, parts[:-1])), repeats=2)

    return sequences()


def _most_misleading(material: Material, gap: int) -> int:
    return min((material.room - 6 - gap) // (3 + gap), (material.n_ids - 5 - gap) // max(1, gap))


def unrepeated_sequences(
    model: Vocabulary,
    *,
    period: Size = PERIOD,
    repeats: Size = REPEATS,
    bos: int | bool | None = None,
    exclude: Collection[int] = (),
) -> Sequences:
    """The control of `repeated_sequences`: as long and as divided, but no id stands twice: `BOS | 5 6 7 | 8 9 10`.

    Its lures are the places where the successors would be if it did repeat.
    """
    material = Material.of(model, bos, exclude)
    sizes, copies = Sizes.of("period", period, least=SHORTEST), Sizes.of("repeats", repeats, least=2)
    least = sizes.least * copies.least
    material.check("unrepeated sequences", positions=least, ids=least)

    @st.composite
    def sequences(draw: Draw) -> ProbeSequence:
        room = min(material.room, material.n_ids)
        size = sizes.draw(draw, most=room // copies.least)
        count = copies.draw(draw, most=room // size)
        ids = material.different_ids(draw, size * count, most=sizes.most * copies.most)
        parts = [ids[begin : begin + size] for begin in range(0, len(ids), size)]
        lures = tuple((query, query - copy * size + 1) for query in range(size, len(ids)) for copy in range(1, query // size + 1))
        return material.sequence(parts, period=0, repeats=1, lures=lures)

    return sequences()


def key_value_pairs(
    model: Vocabulary,
    *,
    pairs: Size = (2, 6),
    gap: Size = 0,
    bos: int | bool | None = None,
    exclude: Collection[int] = (),
) -> Sequences:
    """Pairs of a key and a value, then `gap` ids, then each key again in any order: `BOS | 5 6 | 7 8 | 7 9 | 5 10`.

    What is asked is the value of each key where it stands again. Behind it stands an id that occurs nowhere else, so that
    no value is given away.
    """
    material = Material.of(model, bos, exclude)
    sizes, between = Sizes.of("pairs", pairs, least=2), Sizes.of("gap", gap, least=0)
    material.check("key-value pairs", positions=4 * sizes.least + between.least, ids=3 * sizes.least + between.least)

    @st.composite
    def sequences(draw: Draw) -> ProbeSequence:
        least = between.least
        count = sizes.draw(draw, most=min((material.room - least) // 4, (material.n_ids - least) // 3))
        size = between.draw(draw, most=min(material.room - 4 * count, material.n_ids - 3 * count))
        order = draw(st.permutations(range(count)))
        ids = material.different_ids(draw, 3 * count + size, most=3 * sizes.most + between.most)
        known, behind, filler = [ids[:count], ids[count : 2 * count]], ids[2 * count : 3 * count], ids[3 * count :]
        stored = [[key, value] for key, value in zip(*known, strict=True)]
        asked = [[ids[place], other] for place, other in zip(order, behind, strict=True)]
        begin = 2 * count + size
        answers = [Answer(begin + 2 * number, known[1][place], 1, None) for number, place in enumerate(order)]
        return material.sequence([part for part in [*stored, filler, *asked] if part], period=0, repeats=1, asked=answers)

    return sequences()


def rule_lines(
    model: Vocabulary,
    *,
    rule: str = "ABA",
    lines: Size = (2, 6),
    bos: int | bool | None = None,
    exclude: Collection[int] = (),
) -> Sequences:
    """Lines of one rule, ABA or ABB, with two new ids in each and the same three separators: `BOS | 5 2 6 3 5 4 | 7 2 8 3 7 4`.

    What is asked is the third token of every line but the first; its distractor is the other one of the line. Raises
    `ArgumentError` for another rule.
    """
    if rule not in PLACES:
        raise ArgumentError(f"`rule` must be {' or '.join(PLACES)}, got {rule!r}")
    material, sizes = Material.of(model, bos, exclude), Sizes.of("lines", lines, least=2)
    material.check("lines of a rule", positions=LINE * sizes.least, ids=2 * sizes.least + SEPARATORS)

    @st.composite
    def sequences(draw: Draw) -> ProbeSequence:
        count = sizes.draw(draw, most=min(material.room // LINE, (material.n_ids - SEPARATORS) // 2))
        ids = material.different_ids(draw, 2 * count + SEPARATORS, most=2 * sizes.most + SEPARATORS)
        one, two, end, *words = ids
        right, other = PLACES[rule]
        parts, answers = [], []
        for number, pair in enumerate(zip(words[::2], words[1::2], strict=True)):
            parts.append([pair[0], one, pair[1], two, pair[right], end])
            answers.append(Answer(LINE * number + 3, pair[right], 1, pair[other]))
        return material.sequence(parts, period=0, repeats=1, asked=answers[1:])

    return sequences()


def near_misses(
    model: Vocabulary,
    *,
    period: Size = PERIOD,
    changes: Size = 1,
    bos: int | bool | None = None,
    exclude: Collection[int] = (),
) -> Sequences:
    """A block and its copy with `changes` ids replaced by new ones, not at its end: `BOS | 5 6 7 8 | 5 9 7 8`.

    A replaced id has not occurred earlier, so nothing is to be matched there. Its lure is where the copied one would have looked:
    who follows it goes by the place in the block, and not by the token.
    """
    material = Material.of(model, bos, exclude)
    sizes, replaced = Sizes.of("period", period, least=SHORTEST), Sizes.of("changes", changes, least=1)
    least = max(sizes.least, replaced.least + 1)
    material.check("near misses", positions=2 * least, ids=least + replaced.least)

    @st.composite
    def sequences(draw: Draw) -> ProbeSequence:
        longest = min(material.room // 2, material.n_ids - replaced.least)
        size = max(sizes.draw(draw, most=longest), replaced.least + 1)
        count = replaced.draw(draw, most=min(size - 1, material.n_ids - size))
        places = sorted(draw(_sets(size - 1, count)))
        ids = material.different_ids(draw, size + count, most=sizes.most + replaced.most)
        copy = ids[:size]
        for place, new in zip(places, ids[size:], strict=True):
            copy[place] = new
        lures = tuple((size + place, place + 1) for place in places)
        return material.sequence([ids[:size], copy], period=size, repeats=1, lures=lures)

    return sequences()


def _sets(below: int, count: int) -> st.SearchStrategy[set[int]]:
    return st.sets(st.integers(0, below - 1), min_size=count, max_size=count)


Pair = tuple[ProbeSequence, ProbeSequence]
Pairs = st.SearchStrategy[Pair]


def period_pairs(
    model: Vocabulary,
    *,
    period: Size = PERIOD,
    change: Size = (1, 6),
    repeats: Size = 2,
    bos: int | bool | None = None,
    exclude: Collection[int] = (),
) -> Pairs:
    """A repeated sequence, and one whose block goes on for `change` ids more: `5 6 7 | 5 6 7` and `5 6 7 8 | 5 6 7 8`."""
    material = Material.of(model, bos, exclude)
    sizes, more = Sizes.of("period", period, least=SHORTEST), Sizes.of("change", change, least=1)
    copies = Sizes.of("repeats", repeats, least=2)
    longest = sizes.least + more.least
    material.check("period pairs", positions=copies.least * longest, ids=longest)

    @st.composite
    def pairs(draw: Draw) -> Pair:
        room = min(material.room // copies.least, material.n_ids)
        size = sizes.draw(draw, most=room - more.least)
        extra = more.draw(draw, most=room - size)
        count = copies.draw(draw, most=material.room // (size + extra))
        ids = material.different_ids(draw, size + extra, most=sizes.most + more.most)
        one, other = (material.sequence([ids[:end]] * count, period=end, repeats=count) for end in (size, size + extra))
        return one, other

    return pairs()


def distractor_pairs(
    model: Vocabulary,
    *,
    period: Size = PERIOD,
    repeats: Size = REPEATS,
    gap: Size = (1, 4),
    bos: int | bool | None = None,
    exclude: Collection[int] = (),
) -> Pairs:
    """A repeated sequence, and the same with `gap` ids between copies that occur nowhere else: `5 6 | 5 6`, `5 6 | 7 | 5 6`."""
    material = Material.of(model, bos, exclude)
    sizes = RepeatSizes.of(period, repeats, gap, 0)
    sizes.check(material)

    @st.composite
    def pairs(draw: Draw) -> Pair:
        disturbed = sizes.draw(draw, material)
        block = list(disturbed.tokens[material.start : material.start + disturbed.period])
        plain = [block] * disturbed.repeats
        return material.sequence(plain, period=disturbed.period, repeats=disturbed.repeats), disturbed

    return pairs()


def relabelled_pairs(
    model: Vocabulary,
    *,
    period: Size = PERIOD,
    repeats: Size = REPEATS,
    bos: int | bool | None = None,
    exclude: Collection[int] = (),
) -> Pairs:
    """A repeated sequence, and the same under a random permutation of the ids: `5 6 7 | 5 6 7` and `9 2 4 | 9 2 4`."""
    material = Material.of(model, bos, exclude)
    sizes = RepeatSizes.of(period, repeats, 0, 0)
    sizes.check(material)

    @st.composite
    def pairs(draw: Draw) -> Pair:
        one = sizes.draw(draw, material)
        block = material.different_ids(draw, one.period, most=sizes.most_ids)
        return one, material.sequence([block] * one.repeats, period=one.period, repeats=one.repeats)

    return pairs()
