"""Sets of heads that ablated heads are compared with: as many of each layer, drawn at random from all others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb, prod

import numpy as np

from pytest_induction.records import HeadId

Heads = tuple[HeadId, ...]


@dataclass(frozen=True)
class Controls:
    """Different sets of heads, each as large as the set that they are controls of, and with none of its heads.

    `relaxed` are the layers with too few other heads: for these some come from the layers nearest to them. `complete` says that
    there are no further such sets.
    """

    sets: tuple[Heads, ...]
    relaxed: tuple[int, ...] = ()
    complete: bool = False


def matched_controls(heads: Sequence[HeadId], counts: Sequence[int], n_sets: int, rng: np.random.Generator) -> Controls:
    """At most `n_sets` different sets with as many heads of each layer as `heads` has, and none of these; all of them, of fewer.

    `counts` is how many heads each layer of the model has. A layer with too few other heads shares those of the layers nearest to
    it, on both sides, of the fewest that have enough; no sets where the whole model has too few.
    """
    chosen = set(heads)
    others = [
        [each for number in range(count) if (each := HeadId(layer, number)) not in chosen] for layer, count in enumerate(counts)
    ]
    needed = {layer: sum(head.layer == layer for head in chosen) for layer in {head.layer for head in chosen}}
    relaxed = tuple(sorted(layer for layer, need in needed.items() if len(others[layer]) < need))
    if sum(map(len, others)) < len(chosen):
        return Controls((), relaxed, complete=True)
    pools = [
        ([head for layer in group for head in others[layer]], sum(needed.get(layer, 0) for layer in group))
        for group in _groups(needed, others)
    ]
    total = prod(comb(len(pool), need) for pool, need in pools)
    if total <= n_sets:
        every = product(*(combinations(pool, need) for pool, need in pools))
        return Controls(tuple(_one(parts) for parts in every), relaxed, complete=True)
    drawn: dict[Heads, None] = {}
    while len(drawn) < n_sets:
        drawn[_one([[pool[place] for place in rng.permutation(len(pool))[:need]] for pool, need in pools])] = None
    return Controls(tuple(drawn), relaxed)


def _one(parts: Sequence[Sequence[HeadId]]) -> Heads:
    return tuple(sorted((head for part in parts for head in part), key=lambda head: (head.layer, head.head)))


def _groups(needed: dict[int, int], others: Sequence[Sequence[HeadId]]) -> Iterator[tuple[int, ...]]:
    """Layers that share their heads, each in one group: by itself where it has enough, else with those nearest to it."""
    groups = [{layer} for layer in sorted(needed)]
    while short := [group for group in groups if _lacks(group, needed, others)]:
        wider = {layer + step for layer in short[0] for step in (-1, 0, 1)} & set(range(len(others)))
        touched = [group for group in groups if group & wider]
        groups = [group for group in groups if group not in touched] + [wider.union(*touched)]
    return iter(sorted(tuple(sorted(group)) for group in groups))


def _lacks(group: set[int], needed: dict[int, int], others: Sequence[Sequence[HeadId]]) -> bool:
    return sum(len(others[layer]) for layer in group) < sum(needed.get(layer, 0) for layer in group)
