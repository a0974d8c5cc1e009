"""Rows from Markov chains, a new chain for each row, and what is best said of their next state from the row so far.

For models that are trained on such rows. Edelman et al. 2024 (2402.11004) see them learn in steps: every state is as likely, then
each as often as it stood in the row, then as often as it followed the present one. Which of these a model does is told by how far
it is from each predictor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import ArgumentError, ProbeError, whole_number
from pytest_induction.probes.sequences import Ids, Rows, usable_ids
from pytest_induction.records import TokenSpace

POSITIONS = 96  # states of a row
FEWEST_POSITIONS = 8
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MarkovChains:
    """What chains the rows are of: their states, and the prior of what follows each state.

    `states` are token ids, two or more, or how many of the lowest usable ids. What follows a state is drawn from a symmetric
    Dirichlet distribution with parameter `alpha`, for each state of each row by itself; the first state of a row is any of them.
    A row has `n_positions` states behind the model's first token, fewer where its context is shorter.

    >>> MarkovChains(8, alpha=0.3)
    MarkovChains(states=8, alpha=0.3, n_positions=96)
    """

    states: int | tuple[int, ...]
    alpha: float = 1.0
    n_positions: int = POSITIONS

    def __post_init__(self) -> None:
        object.__setattr__(self, "states", _checked_states(self.states))
        alpha: Any = self.alpha
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float, np.number)) or not 0 < alpha < math.inf:
            raise ArgumentError(f"`alpha` must be a number above 0, got {alpha!r}")
        object.__setattr__(self, "alpha", float(alpha))
        object.__setattr__(self, "n_positions", whole_number("n_positions", self.n_positions, least=FEWEST_POSITIONS))

    def ids(self, space: TokenSpace) -> Ids:
        """The token ids of the states, (states,). Raises `ProbeError` where the model does not have them."""
        usable = usable_ids(space)
        if isinstance(self.states, int):
            if self.states > len(usable):
                raise ProbeError(f"chains of {self.states} states need as many usable token ids, the model has {len(usable)}")
            return usable[: self.states]
        ids = np.array(self.states, dtype=np.int64)
        if missing := sorted(set(self.states) - set(usable.tolist())):
            raise ProbeError(f"the states of chains must be usable token ids, the model has no {missing[0]} or it is special")
        return ids


@dataclass(frozen=True, eq=False)
class MarkovRows(Rows):
    """`tokens` (n_sequences, n_positions), whose chains begin at `start`; `states` (n_sequences, length) count from 0.

    `ids` (n_states,) are the tokens of the states, `alpha` is the parameter of the prior.
    """

    tokens: Ids
    start: int
    states: Ids
    ids: Ids
    alpha: float

    @property
    def queries(self) -> slice:
        """The second half of the states, as positions of `tokens`: by then most states were seen more than once."""
        return slice(self.start + self._first, self.tokens.shape[1])

    @property
    def _first(self) -> int:
        return self.states.shape[1] // 2

    def unigram(self) -> Floats:
        """How likely each state is next by how often it stood in the row so far, (n_sequences, queries, n_states).

        That is (c_b + alpha) / (t + k alpha), c_b of t states so far being b: the posterior mean of a chain without memory.
        """
        seen = np.eye(len(self.ids))[self.states].cumsum(axis=1)[:, self._first :]
        return _mean(seen, self.alpha)

    def bigram(self) -> Floats:
        """How likely each state is next by what followed the present one in the row, (n_sequences, queries, n_states).

        That is (c_ab + alpha) / (c_a + k alpha), b having followed c_ab of the c_a earlier occurrences of a: the posterior mean,
        which no predictor betters on such rows.
        """
        count, length = self.states.shape
        rows, seen = np.arange(count), np.zeros((count, len(self.ids), len(self.ids)))
        found = np.empty((count, length - self._first, len(self.ids)))
        for place in range(length):
            state = self.states[:, place]
            if place > 0:
                seen[rows, self.states[:, place - 1], state] += 1
            if place >= self._first:
                found[:, place - self._first] = seen[rows, state]
        return _mean(found, self.alpha)


def _mean(counts: Floats, alpha: float) -> Floats:
    """The posterior mean of shares, over the last axis."""
    return (counts + alpha) / (counts.sum(axis=-1, keepdims=True) + counts.shape[-1] * alpha)


def markov_rows(space: TokenSpace, chains: MarkovChains, *, rng: np.random.Generator, n_sequences: int = 1) -> MarkovRows:
    """Rows of chains, each its own. Raises `ProbeError` where the vocabulary or the context has too little room."""
    whole_number("n_sequences", n_sequences, least=1)
    ids, first = chains.ids(space), [] if space.bos_id is None else [space.bos_id]
    length = chains.n_positions if space.n_ctx is None else min(chains.n_positions, space.n_ctx - len(first))
    if length < FEWEST_POSITIONS:
        raise ProbeError(f"rows of chains need {FEWEST_POSITIONS + len(first)} positions, the model's context has {space.n_ctx}")
    states = np.stack([_chain(len(ids), chains.alpha, length, rng) for _ in range(n_sequences)])
    begun = np.tile(np.array(first, dtype=np.int64), (n_sequences, 1))
    return MarkovRows(np.concatenate([begun, ids[states]], axis=1), len(first), states, ids, chains.alpha)


def _chain(n_states: int, alpha: float, length: int, rng: np.random.Generator) -> Ids:
    """States of one new chain, (length,)."""
    bounds = rng.dirichlet(np.full(n_states, alpha), size=n_states).cumsum(axis=1)[:, :-1]
    drawn, states = rng.random(length), np.empty(length, dtype=np.int64)
    states[0] = rng.integers(n_states)
    for place in range(1, length):
        states[place] = np.searchsorted(bounds[states[place - 1]], drawn[place], side="right")
    return states


def _checked_states(states: object) -> int | tuple[int, ...]:
    """How many states, or their ids, plain. Raises `ArgumentError` for anything else."""
    if isinstance(states, Iterable) and not isinstance(states, str):
        ids = tuple(whole_number("states", each, least=0) for each in states)
        if len(ids) < 2 or len(set(ids)) < len(ids):
            raise ArgumentError(f"`states` must be two different token ids or more, got {ids}")
        return ids
    return whole_number("states", states, least=2)
