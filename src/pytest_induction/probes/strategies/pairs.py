"""Strategies for pairs of sequences that differ in one respect, in which a model that matches tokens should not differ."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import strategies as st

from pytest_induction.probes.answers import ProbeSequence
from pytest_induction.probes.strategies.drawing import Draw, Material, Size, Sizes, Vocabulary
from pytest_induction.probes.strategies.kinds import PERIOD, REPEATS, SHORTEST, RepeatSizes

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
