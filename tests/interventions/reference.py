"""A small transformer with every matrix written out, in which each edit is made by hand: rows, heads and queries in loops.

Float64 numpy, written from the definitions, without the package: nothing of how it intervenes is used here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
At = tuple[int, int]


def plain(x: Array) -> Array:
    return x


@dataclass(frozen=True)
class Layer:
    """Matrices of each head, (d_model, d_head), its output (d_head, d_model); key heads may be fewer than heads.

    `before` and `between` stand before attention and before `mlp`; `turn` is done to queries and keys (positions, d_head).
    """

    query: Sequence[Array]
    key: Sequence[Array]
    value: Sequence[Array]
    out: Sequence[Array]
    query_bias: Sequence[Array] | None = None
    key_bias: Sequence[Array] | None = None
    value_bias: Sequence[Array] | None = None
    out_bias: Array | float = 0.0
    before: Callable[[Array], Array] = plain
    between: Callable[[Array], Array] = plain
    mlp: Callable[[Array], Array] | None = None
    turn: Callable[[Array], Array] = plain


@dataclass(frozen=True)
class Slow:
    """The whole model: `embed` (d_vocab, d_model), layers, `last` before `unembed` (d_model, d_vocab)."""

    embed: Array
    layers: Sequence[Layer]
    unembed: Array
    positions: Array | None = None
    last: Callable[[Array], Array] = plain


@dataclass
class Edits:
    """What is done by hand, by (layer, head) but for `key` and `query`, by (layer, key head) and (layer, head), and `share`.

    `found` stands in place of what a head finds, (rows, positions, d_head) or what broadcasts to it; `factor` multiplies it;
    `closed` (queries, keys) or (rows, queries, keys) gets no attention; `pattern`, the same shapes, stands in place of its own;
    `query` and `key` (rows, positions, d_head) stand in place of its own; every key is `share` of its own and the rest of the
    key before.
    """

    found: Mapping[At, Array | float] = field(default_factory=dict)
    factor: Mapping[At, float] = field(default_factory=dict)
    closed: Mapping[At, NDArray[np.bool_]] = field(default_factory=dict)
    pattern: Mapping[At, Array] = field(default_factory=dict)
    query: Mapping[At, Array] = field(default_factory=dict)
    key: Mapping[At, Array] = field(default_factory=dict)
    share: float | None = None


@dataclass
class Seen:
    """Logits (rows, positions, d_vocab), and by (layer, head) queries, keys of key heads, patterns and what was found, row first."""

    logits: Array
    query: dict[At, Array]
    key: dict[At, Array]
    pattern: dict[At, Array]
    found: dict[At, Array]


def run(model: Slow, tokens: NDArray[np.int64], edits: Edits | None = None) -> Seen:
    """One forward pass over token ids (rows, positions), row by row."""
    rows = [_run_row(model, row, number, edits or Edits()) for number, row in enumerate(tokens)]
    kept = [{at: np.stack([row[which][at] for row in rows]) for at in rows[0][which]} for which in range(1, 5)]
    return Seen(np.stack([row[0] for row in rows]), *kept)


def _run_row(model: Slow, tokens: NDArray[np.int64], row: int, edits: Edits) -> tuple[Array, *tuple[dict[At, Array], ...]]:
    x = model.embed[tokens]
    if model.positions is not None:
        x = x + model.positions[: len(tokens)]
    queries: dict[At, Array] = {}
    keys: dict[At, Array] = {}
    patterns: dict[At, Array] = {}
    found: dict[At, Array] = {}
    for number, layer in enumerate(model.layers):
        given = layer.before(x)
        for each in range(len(layer.key)):
            key = layer.turn(_biased(given @ layer.key[each], layer.key_bias, each))
            keys[number, each] = _smeared(_of_row(edits.key.get((number, each), key), row), edits.share)
        written = np.zeros_like(x) + layer.out_bias
        for head in range(len(layer.query)):
            at, own = (number, head), head * len(layer.key) // len(layer.query)
            query = layer.turn(_biased(given @ layer.query[head], layer.query_bias, head))
            queries[at] = _of_row(edits.query.get(at, query), row)
            patterns[at] = _attended(queries[at], keys[number, own], at, row, edits)
            value = _biased(given @ layer.value[own], layer.value_bias, own)
            find = patterns[at] @ value * edits.factor.get(at, 1.0)
            found[at] = np.broadcast_to(_of_row(edits.found.get(at, find), row), find.shape)
            written = written + found[at] @ layer.out[head]
        x = x + written
        if layer.mlp is not None:
            x = x + layer.mlp(layer.between(x))
    return model.last(x) @ model.unembed, queries, keys, patterns, found


def _attended(query: Array, key: Array, at: At, row: int, edits: Edits) -> Array:
    """The pattern of one head on one row, a query at a time; zero where nothing is left for it."""
    if at in edits.pattern:
        return np.asarray(_of_row(edits.pattern[at], row))
    closed = edits.closed.get(at)
    closed = closed if closed is None or closed.ndim == 2 else closed[row]
    pattern = np.zeros((len(query), len(key)))
    for here in range(len(query)):
        open_keys = [there for there in range(here + 1) if closed is None or not closed[here, there]]
        if open_keys:
            scores = np.array([query[here] @ key[there] / query.shape[1] ** 0.5 for there in open_keys])
            weights = np.exp(scores - scores.max())
            pattern[here, open_keys] = weights / weights.sum()
    return pattern


def _biased(made: Array, bias: Sequence[Array] | None, number: int) -> Array:
    return made if bias is None else made + bias[number]


def _smeared(key: Array, share: float | None) -> Array:
    if share is None:
        return key
    return np.stack([key[0], *(share * key[here] + (1 - share) * key[here - 1] for here in range(1, len(key)))])


def _of_row(values: Array | float, row: int) -> Array:
    values = np.asarray(values)
    return values if values.ndim < 3 else values[row if len(values) > 1 else 0]


def path_terms(model: Slow, tokens: NDArray[np.int64], patterns: Mapping[At, Array]) -> Iterator[tuple[tuple[At, ...], Array]]:
    """Of a model of attention alone, without norms or biases: each path, of at most one head per layer, and its logits.

    A path's term is the embedding, moved by the pattern and the value and output matrices of each head in turn, unembedded.
    """
    choices = [[None, *range(len(layer.query))] for layer in model.layers]
    for chosen in product(*choices):
        path = tuple((number, head) for number, head in enumerate(chosen) if head is not None)
        terms = []
        for row, ids in enumerate(tokens):
            x = model.embed[ids]
            for number, head in path:
                layer = model.layers[number]
                own = head * len(layer.key) // len(layer.query)
                x = patterns[number, head][row] @ x @ layer.value[own] @ layer.out[head]
            terms.append(x @ model.unembed)
        yield path, np.stack(terms)


def layer_norm(gain: Array, bias: Array, epsilon: float) -> Callable[[Array], Array]:
    """By the mean and the variance of each position."""
    return lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * gain + bias


def rms_norm(gain: Array, epsilon: float) -> Callable[[Array], Array]:
    """By the mean square of each position."""
    return lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * gain


def rotary(base: float) -> Callable[[Array], Array]:
    """Each pair of columns, half a head apart, turned by an angle that grows with the position."""

    def turn(x: Array) -> Array:
        half = x.shape[1] // 2
        angle = np.arange(len(x))[:, None] / base ** (np.arange(half) / half)
        one, other = x[:, :half], x[:, half:]
        return np.concatenate([one * np.cos(angle) - other * np.sin(angle), other * np.cos(angle) + one * np.sin(angle)], 1)

    return turn


def gelu(x: Array) -> Array:
    """As GPT-2 has it, by a tanh."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))
