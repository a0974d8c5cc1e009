"""What a snapshot has only if it is asked for: what longer matches gain, and the advantage on common ids and on rare ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.heads.competing import gain_of, masses_and_log_probs, preference_of
from pytest_induction.measuring.losses import advantage
from pytest_induction.measuring.observing import Array, numbers
from pytest_induction.model.batching import in_batches
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.competing import LISTS, CompetingRows, competing_rows
from pytest_induction.probes.sequences import SHORTEST_PERIOD, Ids, Probe, fitting_shape, repeated_sequences, usable_ids
from pytest_induction.records import TokenSpace
from pytest_induction.runs.given_numbers import Counts

PART = 8  # of the usable ids, that count as common, and as rare; five at least


class ByFrequency(NamedTuple):
    """Usable ids, ascending: the eighth with the highest counts in the training data, and the eighth with the lowest.

    Five each where an eighth is fewer.
    """

    common: Ids
    rare: Ids


def ids_by_frequency(space: TokenSpace, counts: Counts) -> ByFrequency:
    """Which ids are common and which are rare, by how often each stands in the training data, `counts` (ids,).

    Ids without a count, as those that pad a vocabulary, are neither. Of equal counts the lower id is the rarer one. Raises
    `ArgumentError` for more counts than ids, or where a part has too few for a probe.
    """
    if len(counts) > space.d_vocab:
        raise ArgumentError(f"`token_counts` must have one number for each of {space.d_vocab} ids, got {len(counts)}")
    usable = usable_ids(space)
    usable = usable[usable < len(counts)]
    order = usable[np.argsort(counts[usable], kind="stable")]
    each = min(max(len(order) // PART, SHORTEST_PERIOD + 1), len(order) // 2)
    found = ByFrequency(np.sort(order[len(order) - each :]), np.sort(order[:each]))
    fitting_shape(_only(space, found.rare))
    return found


def _only(space: TokenSpace, ids: Ids) -> TokenSpace:
    """The same without any other id."""
    return replace(space, excluded=frozenset(range(space.d_vocab)) - frozenset(ids.tolist()))


@dataclass(frozen=True, eq=False)
class AskedFor:
    """The probes of one model, drawn once. `counts` (ids,) say how often each id stands in the training data, None for no rows of
    common and rare ids.
    """

    space: TokenSpace
    n_sequences: int
    seed: int
    longer_matches: bool = False
    counts: Counts | None = None

    @cached_property
    def competing(self) -> CompetingRows:
        """Rows in which matches of one, two and three tokens compete."""
        return competing_rows(self.space, rng=np.random.default_rng([self.seed, 21]), n_sequences=self.n_sequences)

    @cached_property
    def by_frequency(self) -> tuple[Probe, Probe]:
        """Repeated rows of common ids, and as many of rare ones: of one period, the shortest that is drawn for so many ids."""
        counts = np.zeros(0, dtype=np.int64) if self.counts is None else self.counts
        ids, rng = ids_by_frequency(self.space, counts), np.random.default_rng([self.seed, 23])
        periods, copies = fitting_shape(_only(self.space, ids.rare))
        shape: dict[str, Any] = {"period": periods[0], "repeats": copies, "n_sequences": self.n_sequences, "rng": rng}
        common, rare = (repeated_sequences(_only(self.space, each), **shape) for each in ids)
        return common, rare

    def measure(self, subject: ModelUnderTest) -> tuple[dict[str, Array], dict[str, Array]]:
        """Values of each row by name, (rows,), and scores of heads, (n_layers, n_heads).

        Raises `ProbeError` where the model is too small for the rows, `ModelError` for what is not finite.
        """
        rows: dict[str, Array] = {}
        heads: dict[str, Array] = {}
        if self.longer_matches:
            found = masses_and_log_probs(subject, self.competing)
            rows["match_gain"] = gain_of(found)
            if subject.backend is not None:
                heads["preference"] = preference_of({name: found[name].mean(axis=0) for name in LISTS})
        if self.counts is not None:
            rows |= _advantages(subject, *self.by_frequency)
        return rows, heads


def _advantages(subject: ModelUnderTest, common: Probe, rare: Probe) -> Mapping[str, Array]:
    """The advantage on each row, by logits alone, in one pass where both fit into it."""

    def measured(rows: Tensor, _: slice) -> Array:
        logits = subject.logits(rows)
        return numbers(advantage(logits, rows.to(logits.device), period=common.period, start=common.start))

    both = torch.from_numpy(np.concatenate([common.tokens, rare.tokens]))
    values = np.concatenate(in_batches(subject, both, measured, logits=True))
    if not np.isfinite(values).all():
        raise ModelError(f"the logits of {subject.name} are not finite (NaN or infinity) on repeated tokens")
    first, last = np.split(values, 2)
    return {"common_advantage": first, "rare_advantage": last}
