"""What a snapshot has only if it is asked for.

What longer matches gain; the advantage on common ids and on rare ones; how far a model is from the best predictors of Markov
chains; and whether it believes the row or its weights where these disagree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.heads.competing import gain_of, masses_and_log_probs, preference_of
from pytest_induction.measuring.losses import advantage, at_least_float32
from pytest_induction.measuring.observing import Array, numbers
from pytest_induction.model.batching import in_batches
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.competing import LISTS, CompetingRows, competing_rows
from pytest_induction.probes.conflicts import BigramCounts, ConflictRows, Conflicts, conflict_rows
from pytest_induction.probes.markov import Floats, MarkovChains, MarkovRows, markov_rows
from pytest_induction.probes.sequences import SHORTEST_PERIOD, Ids, Probe, fitting_shape, repeated_sequences, usable_ids
from pytest_induction.records import TokenSpace
from pytest_induction.runs.given_numbers import Counts, checked_counts

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
class Asked:
    """What is asked for, as a recorder and a sweep take it. None and False are for what is not.

    `token_counts` (ids,) say how often each id stands in the training data, `bigram_counts` how often each follows another.
    """

    longer_matches: bool = False
    token_counts: Counts | None = None
    markov: MarkovChains | None = None
    bigram_counts: BigramCounts | None = None

    @classmethod
    def of(cls, *, longer_matches: bool, token_counts: Any, markov: Any, bigram_counts: Any) -> Asked:
        """The same from what a user gives. Raises `ArgumentError` for what cannot be used."""
        if markov is not None and not isinstance(markov, MarkovChains):
            raise ArgumentError(f"`markov` must be `MarkovChains` of pytest_induction.probes.markov, got {markov!r}")
        bigrams = None if bigram_counts is None else BigramCounts.of(bigram_counts)
        return cls(longer_matches, checked_counts(token_counts), markov, bigrams)

    def __bool__(self) -> bool:
        return any(self._given.values())

    @property
    def named(self) -> str:
        """The arguments by which it was asked for, for a message."""
        return " and ".join(f"`{name}`" for name, given in self._given.items() if given)

    @property
    def settings(self) -> dict[str, Any]:
        """What a file says of it: which of two such is meant; None for what is not asked for."""
        return {name: _digest(getattr(self, name)) if given else None for name, given in self._given.items()}

    @property
    def _given(self) -> dict[str, bool]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value is not None and value is not False for name, value in values.items()}


NOTHING = Asked()


def _digest(value: Any) -> Any:
    """True, a text, or a short name of numbers."""
    if isinstance(value, (bool, MarkovChains)):
        return value if isinstance(value, bool) else str(value)
    arrays = [value] if isinstance(value, np.ndarray) else [getattr(value, each.name) for each in fields(value)]
    content = b"".join(f"{each.shape}".encode() + each.astype("<i8").tobytes() for each in arrays)
    return hashlib.blake2b(content, digest_size=8).hexdigest()


@dataclass(frozen=True, eq=False)
class AskedFor:
    """The probes of one model, drawn once, and what it scores on them."""

    space: TokenSpace
    n_sequences: int
    seed: int
    asked: Asked = NOTHING

    @cached_property
    def competing(self) -> CompetingRows:
        """Rows in which matches of one, two and three tokens compete."""
        return competing_rows(self.space, rng=np.random.default_rng([self.seed, 21]), n_sequences=self.n_sequences)

    @cached_property
    def by_frequency(self) -> tuple[Probe, Probe]:
        """Repeated rows of common ids, and as many of rare ones: of one period, the shortest that is drawn for so many ids."""
        given = self.asked.token_counts
        counts = np.zeros(0, dtype=np.int64) if given is None else given
        ids, rng = ids_by_frequency(self.space, counts), np.random.default_rng([self.seed, 23])
        periods, copies = fitting_shape(_only(self.space, ids.rare))
        shape: dict[str, Any] = {"period": periods[0], "repeats": copies, "n_sequences": self.n_sequences, "rng": rng}
        common, rare = (repeated_sequences(_only(self.space, each), **shape) for each in ids)
        return common, rare

    @cached_property
    def markov(self) -> tuple[MarkovRows, Floats, Floats] | None:
        """Rows of the chains, if they are asked for, and what the in-context unigram and bigram predict in them."""
        if self.asked.markov is None:
            return None
        rng = np.random.default_rng([self.seed, 24])
        rows = markov_rows(self.space, self.asked.markov, rng=rng, n_sequences=self.n_sequences)
        return rows, rows.unigram(), rows.bigram()

    @cached_property
    def conflicts(self) -> ConflictRows | None:
        """Rows that disagree with the training data, if they are asked for."""
        if self.asked.bigram_counts is None:
            return None
        rng, found = np.random.default_rng([self.seed, 25]), Conflicts(self.space, self.asked.bigram_counts)
        return conflict_rows(found, rng=rng, n_sequences=self.n_sequences)

    def measure(self, subject: ModelUnderTest) -> tuple[dict[str, Array], dict[str, Array]]:
        """Values of each row by name, (rows,), and scores of heads, (n_layers, n_heads).

        Raises `ProbeError` where the model is too small for the rows, `ModelError` for what is not finite.
        """
        rows: dict[str, Array] = {}
        heads: dict[str, Array] = {}
        if self.asked.longer_matches:
            found = masses_and_log_probs(subject, self.competing)
            rows["match_gain"] = gain_of(found)
            if subject.backend is not None:
                heads["preference"] = preference_of({name: found[name].mean(axis=0) for name in LISTS})
        if self.asked.token_counts is not None:
            rows |= _advantages(subject, *self.by_frequency)
        if self.markov is not None:
            rows |= distances_from_predictors(subject, *self.markov)
        if self.conflicts is not None:
            rows["in_context_preference"] = in_context_preference(subject, self.conflicts)
        return rows, heads


def _advantages(subject: ModelUnderTest, common: Probe, rare: Probe) -> Mapping[str, Array]:
    """The advantage on each row, by logits alone, in one pass where both fit into it."""
    rows = np.concatenate([common.tokens, rare.tokens])

    def measured(logits: Tensor, part: slice) -> Tensor:
        tokens = torch.from_numpy(rows[part]).to(logits.device)
        return advantage(logits, tokens, period=common.period, start=common.start)

    first, last = np.split(_by_logits(subject, rows, measured, "on repeated tokens"), 2)
    return {"common_advantage": first, "rare_advantage": last}


def distances_from_predictors(subject: ModelUnderTest, rows: MarkovRows, unigram: Floats, bigram: Floats) -> Mapping[str, Array]:
    """KL(unigram || model) and KL(bigram || model) of each row, in nats, means over the second half of its states.

    `unigram` and `bigram` (n_sequences, queries, n_states) are as `MarkovRows` has them. The model's probabilities are those of
    the states among each other: that it knows which ids are states is no part of it. 0 for a model that is the predictor.
    """

    def measured(logits: Tensor, part: slice) -> Tensor:
        of_states = at_least_float32(logits[:, rows.queries][..., torch.from_numpy(rows.ids).to(logits.device)])
        log_q = of_states.log_softmax(-1).double()
        predicted = torch.from_numpy(np.stack([unigram[part], bigram[part]], axis=1)).to(logits.device)
        return (predicted * (predicted.log() - log_q[:, None])).sum(-1).mean(-1)  # rows, predictors

    found = _by_logits(subject, rows.tokens, measured, "on rows of Markov chains")
    return {"markov_unigram_kl": found[:, 0], "markov_bigram_kl": found[:, 1]}


def in_context_preference(subject: ModelUnderTest, rows: ConflictRows) -> Array:
    """By how much what followed a token in the row is likelier than what follows it in the training data, (rows,), in nats.

    Means of log p(in-row successor) - log p(in-weights successor) over the groups of a row: above 0 the row wins, below 0 the
    weights. A model that knows only which ids stood in the row has 0.
    """

    def measured(logits: Tensor, part: slice) -> Tensor:
        places = (torch.from_numpy(each[part]).to(logits.device) for each in (rows.queries, rows.in_row, rows.in_weights))
        queries, in_row, in_weights = places
        row = torch.arange(len(queries), device=logits.device)[:, None]
        apart = at_least_float32(logits[row, queries, in_row]) - at_least_float32(logits[row, queries, in_weights])
        return apart.mean(1)  # the normaliser of the log-softmax cancels

    return _by_logits(subject, rows.tokens, measured, "on rows in conflict with the training data")


def _by_logits(subject: ModelUnderTest, rows: Ids, measure: Callable[[Tensor, slice], Tensor], where: str) -> Array:
    """What `measure` says of the logits of rows (rows, positions), the rows first. Raises `ModelError` for what is not finite."""

    def measured(batch: Tensor, part: slice) -> Array:
        return numbers(measure(subject.logits(batch), part))

    values = np.concatenate(in_batches(subject, torch.from_numpy(rows), measured, logits=True))
    if not np.isfinite(values).all():
        raise ModelError(f"the logits of {subject.name} are not finite (NaN or infinity) {where}")
    return values
