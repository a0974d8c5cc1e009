"""What the heads of a model read of what earlier heads write, by their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pytest_induction.display import Displayed, View, view_of
from pytest_induction.errors import ModelError, user_facing, whole_number
from pytest_induction.heads.copying import ov_eigenvalue_scores, product_of_embeddings
from pytest_induction.measuring.observing import Array, ModelLike, numbers, plain, probes_of
from pytest_induction.measuring.rounds import measure_heads, price_of_scores
from pytest_induction.model.batching import in_batches
from pytest_induction.model.capture import HeadOutputCapture
from pytest_induction.model.circuits import TRIED, circuits_of
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.model.query_key import queries_keys_of
from pytest_induction.probes.sequences import COPIES
from pytest_induction.progress import advance, progress
from pytest_induction.records import SCHEMA_VERSION, HeadId, Provenance
from pytest_induction.spending import Price, priced

ROTATIONS = 128  # draws of the null
AT_ONCE = 16  # of them
RANDOM_HEADS = 32  # on either side: 1024 pairs
LEAST_SPREAD = 1e-5  # of the mean; below it a null is a point, but for rounding


class Side(NamedTuple):
    """What of a product of two thin matrices meets the residual stream, for every head, with Frobenius norm 1.

    `thin` (n_heads, n, d_model) has the singular values of the product and its singular vectors on that side, `spectrum`
    (n_heads, n) are the squares of these values: they sum to 1. All are NaN for a product that is zero.
    """

    thin: Tensor
    spectrum: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(d_model, n)."""
        return self.thin.shape[2], self.thin.shape[1]


def side(near: Tensor, far: Tensor) -> Side:
    """The side of near far^T on which `near` is; both are (n_heads, d_model, n), at least float32 from here on.

    Of what a head writes `side(W_O^T, W_V)`, of what it reads `side(W_Q, W_K)` for queries, `side(W_K, W_Q)` for keys and
    `side(W_V, W_O^T)` for values.
    """
    dtype = torch.promote_types(near.dtype, torch.float32)
    remains = torch.linalg.qr(far.to(dtype).cpu(), mode="r").R  # far = orthonormal columns times this; not every device has it
    thin = remains.to(near.device) @ near.to(dtype).mT
    size = thin.flatten(1).norm(dim=1)[:, None, None]
    thin = thin / torch.where(size > 0, size, torch.nan)
    squares = thin @ thin.mT
    known = torch.linalg.eigvalsh(squares.nan_to_num(0.0).cpu()).clamp_min(0).to(near.device)
    return Side(thin, torch.where(size[..., 0] > 0, known, torch.nan))


def composition_scores(read: Side, written: Side) -> Tensor:
    """How much of what one head writes another reads, (heads that read, heads that write), in [0, 1].

    1 where all that is written lies in the one direction that is read, 0 where none of it is read, about 1 / sqrt(d_model)
    between random heads; NaN for a head that reads or writes nothing. Source: Elhage et al. 2021, without their mean taken off.
    """
    products = read.thin.flatten(0, 1) @ written.thin.to(read.thin).flatten(0, 1).mT
    return products.view(*read.thin.shape[:2], *written.thin.shape[:2]).square_().sum((1, 3)).sqrt_()


@lru_cache(maxsize=64)
def random_mean(d_model: int, n_read: int, n_written: int) -> float:
    """The mean composition score between heads whose weights are normal random numbers; `n_` are their d_head.

    Of 1024 pairs, drawn the same each time: 0.125 for a d_model of 64 and a d_head of 16, 0.036 for 768 and 64.
    """
    generator = torch.Generator().manual_seed(0)
    sides = [side(*(torch.randn(RANDOM_HEADS, d_model, n, generator=generator) for _ in range(2))) for n in (n_read, n_written)]
    return float(composition_scores(*sides).mean())


class Null(NamedTuple):
    """Mean and standard deviation of scores, (heads that read, heads that write) each."""

    mean: Tensor
    deviation: Tensor

    def z(self, scores: Tensor) -> Tensor:
        """By how many standard deviations scores lie above the mean; NaN where the null does not spread."""
        spreads = self.deviation > LEAST_SPREAD * self.mean
        return torch.where(spreads, (scores - self.mean) / self.deviation, torch.nan)


def rotation_null(read: Side, written: Side) -> Null:
    """The scores of the same pairs where what is written is turned at random: both spectra are kept, the directions are not.

    Over 128 rotations R, uniform (Haar), the same each time. With singular values s' of what is written and s of what is read,
    the squared norm of the one, turned by R, times the other is the sum of (s'_i s_j w_ij)^2, where w is the (n', n) corner of a
    uniform rotation, whatever the singular vectors are: so one draw of w serves all pairs.
    """
    (d_model, n_read), (_, n_written) = read.shape, written.shape
    found = []
    for corners in _corners(d_model, n_written, n_read).split(AT_ONCE):
        half = torch.einsum("pw,dwr->dpr", written.spectrum.to(read.spectrum), corners.to(read.spectrum))
        found.append((read.spectrum @ half.mT).sqrt_())  # draws, heads that read, heads that write
    deviation, mean = torch.std_mean(torch.cat(found), dim=0)
    return Null(mean, deviation)


@lru_cache(maxsize=4)
def _corners(d_model: int, n_rows: int, n_columns: int) -> Tensor:
    """The squares of the first rows and columns of uniform random rotations, (draws, n_rows, n_columns)."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(ROTATIONS // AT_ONCE):
        drawn = torch.randn(AT_ONCE, d_model, n_columns, generator=generator)
        turned, _ = torch.linalg.qr(drawn)  # uniform but for the signs of columns, which squares do not have
        parts.append(turned[:, :n_rows].square())
    return torch.cat(parts)


def qk_traces(queries: Tensor, keys: Tensor, moved: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """The QK trace of a layer's heads and the same from -1 to 1, (n_heads,) each.

    `queries` and `keys` are W_Q and W_K, `moved` (d_model, d_model) is the sum of W_V' W_O' over earlier heads, each by the mass
    that it sends to the previous token; `embeddings` is W_E^T W_E (d_model, d_model). The trace sums, over the vocabulary, what a
    token as a query scores against a key that was told of the same token before it. It has the scale of the weights, and cannot
    be compared between models. The second is the sum of the eigenvalues over that of their absolute values: 1 for a head that
    matches each token with itself only, about 0 for a random one.

    A head that finds its key by its position (Q-composition, pointer arithmetic) has 0. Source: Olsson et al. 2022.
    """
    dtype = torch.promote_types(moved.dtype, torch.float32)
    queries, keys, product = queries.to(dtype), keys.to(dtype), moved.mT.to(dtype) @ embeddings.to(dtype)
    trace = torch.einsum("hdi,hdi->h", keys, product @ queries)
    return trace, ov_eigenvalue_scores(queries, product, keys.mT)


def pair_eigenvalues(queries: Tensor, keys: Tensor, outs: Tensor, embedded: Tensor) -> Tensor:
    """Whether a head matches tokens with what another has moved, by its weights: (heads, others), in [-1, 1].

    `queries` and `keys` are W_Q and W_K of the one, `outs` W_O' (others, n, d_model) and `embedded` W_V'^T W_E^T W_E (others, n,
    d_model) of those in an earlier layer. Which share of the eigenvalues of W_E W_Q W_K^T (W_V' W_O')^T W_E^T is positive, as in
    `ov_eigenvalue_scores`: 1 for an induction head with its previous-token head, -1 for one that avoids the token, about 0 for
    random ones, 0 for those that read nothing of each other. Source: Elhage et al. 2021.
    """
    dtype = torch.promote_types(embedded.dtype, torch.float32)
    written, asked = _each_with_each(outs.to(dtype), keys.to(dtype)), _each_with_each(embedded.to(dtype), queries.to(dtype))
    return ov_eigenvalue_scores(asked, torch.eye(outs.shape[1], dtype=dtype, device=asked.device), written.mT)


def _each_with_each(one: Tensor, other: Tensor) -> Tensor:
    """The products (others, n, d_model) x (heads, d_model, m), (heads, others, n, m), as those of two large matrices."""
    found = one.flatten(0, 1) @ other.movedim(0, 1).flatten(1)
    return found.view(*one.shape[:2], other.shape[0], other.shape[2]).permute(2, 0, 1, 3)


MEAN_SCALE = "earlier heads count in QK traces over the mean scale of the norm behind their attention"
KINDS = ("query", "key", "value")
LAYERS = "layer"


@dataclass(frozen=True, repr=False)
class CompositionScores(Displayed):
    """How much each head reads of what each head of an earlier layer writes, by the weights of both.

    Of pairs, (n_layers, n_heads, n_layers, n_heads): entry [l2, h2, l1, h1] is of head h2 in layer l2 after head h1 in layer l1.
    NaN where l1 >= l2, where a layer has no such head, and where one of the two reads or writes nothing (eigenvalues are 0 then).

    | score | an induction head with its previous-token head | a pointer head with its duplicate-token head | random heads |
    |---|---|---|---|
    | `query` composition above `random_mean` | below 0 | high | about 0 |
    | `key` composition above `random_mean` | high | below 0 | about 0 |
    | `value` composition above `random_mean` | below 0 | below 0 | about 0 |
    | `query_z`, `key_z`, `value_z` | as the score | as the score | about 0, deviation 1 |
    | `pair_eigenvalue`, from -1 to 1 | 1 | 0 | about 0 |

    `_z` are standard deviations above pairs of the same spectra turned at random. `pair_eigenvalue` is whether the token that the
    one moved is the one that the other matches. Value composition is high for two heads that copy in a row.

    Of heads, (n_layers, n_heads), with all earlier heads at once, each by its measured previous-token score; NaN in the first
    layer:

    | score | an induction head | a pointer head | random heads |
    |---|---|---|---|
    | `qk_trace`, scores before the softmax, summed over the vocabulary | high | 0 | about 0 |
    | `qk_eigenvalue`, the same over the sum of absolute eigenvalues, from -1 to 1 | 1 | 0 | about 0 |

    High scores are upper bounds on what may flow: but for the previous-token scores no data is looked at. `random_mean` is what
    random heads of these sizes have (the mean over all pairs where sizes differ); it has been taken off, so scores lie between
    its negative and 1 less it. metrics/composition.py defines all of them.
    """

    query: Array
    key: Array
    value: Array
    query_z: Array
    key_z: Array
    value_z: Array
    pair_eigenvalue: Array
    qk_trace: Array
    qk_eigenvalue: Array
    random_mean: float
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        return view_of(self, by="key", pictures=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, None where there is no number, with the version of this layout under `schema`."""
        scores = [each.name for each in fields(self) if each.name not in ("random_mean", "provenance")]
        return {
            "schema": SCHEMA_VERSION,
            **{name: plain(getattr(self, name)) for name in scores},
            "random_mean": self.random_mean,
            "provenance": self.provenance.to_dict(),
        }


def price_of_composition(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of `measure_heads`, and once more where a norm lies behind attention."""
    rows = price_of_scores(subject, given)
    return Price(rows.least, 2 * rows.most + TRIED)


@user_facing
@priced(price_of_composition)
def measure_composition(model: ModelLike, *, n_sequences: int = 24, seed: int | None = None) -> CompositionScores:
    """Measure query, key and value composition between all heads, and whether keys are matched by the token before them.

    All of it is of the weights, with the norms before and behind attention folded in, but for the previous-token scores that
    weigh earlier heads in `qk_trace` and `qk_eigenvalue`: those of `measure_heads` with `n_sequences` rows at that seed. Where a
    norm lies behind attention they count over its scale, the mean over these rows.

    Raises `UnsupportedModel` where the weights of the heads are not known or the model does something else with them (it is tried
    out: models/query_key.py says how), `ModelError` for a model with fewer than two attention layers, `ProbeError` where no probe
    fits it, `ArgumentError` for a number out of range.

    >>> from pytest_induction.planted import induction_head
    >>> scores = measure_composition(induction_head())
    >>> round(float(scores.key[1, 0, 0, 0]), 2), round(float(scores.pair_eigenvalue[1, 0, 0, 0]), 2)
    (0.05, 1.0)
    """
    whole_number("n_sequences", n_sequences, least=1)
    if seed is not None:
        whole_number("seed", seed, least=0)
    subject = load_model(model)
    if subject.n_layers < 2:
        raise ModelError(f"composition is between heads in two layers, {subject.name} has one attention layer")
    weights = Weights(subject)
    with progress("composition of heads", subject.n_layers, LAYERS):
        pairs = subject.remember(("composition",), lambda: _pairs(weights))
    heads = measure_heads(subject, n_sequences=n_sequences, seed=seed)
    about = heads.provenance
    trace, eigenvalue = qk_traces_of(weights, heads.previous_token / weights.scales_behind(n_sequences, about.seed)[:, None])
    return CompositionScores(
        **pairs.scores,
        qk_trace=trace,
        qk_eigenvalue=eigenvalue,
        random_mean=pairs.random_mean,
        provenance=replace(about, notes=about.notes + weights.notes),
    )


class Layer(NamedTuple):
    """The weights of a layer's heads, norms folded: (n_heads, d_model, n), `outs` (n_heads, n, d_model).

    The factor of the scores is in the queries.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    outs: Tensor


class Weights:
    """The weights of all layers of a model, at least float32, each made anew when it is asked for."""

    def __init__(self, subject: ModelUnderTest) -> None:
        self.subject = subject
        self._circuits = circuits_of(subject)
        self._queries_keys = queries_keys_of(subject)

    @property
    def notes(self) -> tuple[str, ...]:
        return self._queries_keys.notes + ((MEAN_SCALE,) if self._behind else ())

    @property
    def _behind(self) -> bool:
        """Whether a norm lies behind the attention of any layer."""
        return any(layer.normed is not None for layer in self._circuits.layers)

    def scales_behind(self, n_sequences: int, seed: int | None) -> Array:
        """What the norm behind each layer's attention divides by, (n_layers,); 1 where no norm is.

        The mean over the rows of `measure_heads` at that seed, but for their first position, which has none before it.
        """
        if not self._behind:
            return np.ones(self.subject.n_layers)
        capture = HeadOutputCapture(self.subject, self._circuits)

        def measured(rows: Tensor, part: slice) -> Array:
            return np.stack([numbers(scale[:, 1:].mean(1)) for scale in capture.scales_behind(rows)], axis=1)

        rng = np.random.default_rng([self.subject.seed if seed is None else seed, 0])
        probes = probes_of(self.subject, n_sequences, rng, COPIES, None)
        rows = [torch.from_numpy(probe.tokens) for probe in probes]
        found = [each for some in rows for each in in_batches(self.subject, some, measured, logits=False)]
        return np.concatenate(found).mean(axis=0)

    def layer(self, number: int) -> Layer:
        """Layers count from zero."""
        circuits, read = self._circuits.layers[number], self._queries_keys.layers[number]
        fold = circuits.norm.folded
        queries, keys, values = fold(read.queries), fold(read.keys), fold(circuits.values)
        return Layer(queries * read.factor, keys, values, circuits.outs.to(values))

    @cached_property
    def embeddings(self) -> Tensor:
        """W_E^T W_E, (d_model, d_model), with the factor by which the embedding counts."""
        table = self._circuits.embedding
        found = self.subject.remember(("product of embeddings with themselves",), lambda: product_of_embeddings(table.mT, table))
        if not bool(found.isfinite().all()):
            raise ModelError(f"the embedding of {self.subject.name} is not finite (NaN or infinity)")
        return found * self._circuits.embedding_factor**2


def qk_traces_of(weights: Weights, previous: Array) -> tuple[Array, Array]:
    """QK traces and eigenvalues of heads, each (n_layers, n_heads); NaN in the first layer.

    `previous` (n_layers, n_heads) is by what each head counts among earlier ones: its previous-token score.
    """
    found = np.full((2, *previous.shape), np.nan)
    moved: Tensor | None = None
    for number in range(len(previous)):
        layer = weights.layer(number)
        n_heads = len(layer.queries)
        if moved is not None:
            moved = moved.to(layer.queries)
            traces = qk_traces(layer.queries, layer.keys, moved, weights.embeddings.to(moved))
            found[:, number, :n_heads] = numbers(torch.stack([each.cpu() for each in traces]))
        share = torch.from_numpy(previous[number, :n_heads]).to(layer.values.dtype).to(layer.values.device)
        added = (layer.values * share[:, None, None]).movedim(0, 1).flatten(1) @ layer.outs.flatten(0, 1)
        moved = added if moved is None else moved + added
    return found[0], found[1]


class KeysRead(NamedTuple):
    """Key composition of one head with one in an earlier layer, above random heads, and in standard deviations."""

    score: float
    z: float


def keys_read(weights: Weights, head: HeadId, others: Sequence[HeadId]) -> dict[HeadId, KeysRead]:
    """What one head's keys read of each of some heads in earlier layers, as in `CompositionScores`, and of no other pair."""
    own = _of_heads(weights.layer(head.layer), [head.head])
    read, found = side(own.keys, own.queries), dict[HeadId, KeysRead]()
    for number in sorted({other.layer for other in others}):
        here = [other for other in others if other.layer == number]
        layer = _of_heads(weights.layer(number), [other.head for other in here])
        written = side(layer.outs.mT, layer.values)
        scores, null = composition_scores(read, written), rotation_null(read, written)
        above = scores - random_mean(*read.shape, written.shape[1])
        found |= dict(zip(here, map(KeysRead, above[0].tolist(), null.z(scores)[0].tolist()), strict=True))
    return found


def _of_heads(layer: Layer, heads: Sequence[int]) -> Layer:
    return Layer(*(each[list(heads)] for each in layer))


class _Pairs(NamedTuple):
    """What is known of all pairs of heads: arrays by their names in `CompositionScores`."""

    scores: Mapping[str, Array]
    random_mean: float


class _Written(NamedTuple):
    """What later layers need of one: what its heads write, and W_V^T W_E^T W_E (n_heads, n, d_model) of what they read."""

    side: Side
    outs: Tensor
    embedded: Tensor


def _pairs(weights: Weights) -> _Pairs:
    """Every head of every layer against every head of every earlier one."""
    subject = weights.subject
    shape = (subject.n_layers, subject.n_heads) * 2
    names = (*KINDS, *(f"{kind}_z" for kind in KINDS), "pair_eigenvalue")
    scores = {name: np.full(shape, np.nan) for name in names}
    earlier: list[_Written] = []
    means: list[float] = []
    for number in range(subject.n_layers):
        layer = weights.layer(number)
        outs = layer.outs.mT
        read = side(layer.queries, layer.keys), side(layer.keys, layer.queries), side(layer.values, outs)
        for before, written in enumerate(earlier):
            for kind, one in zip(KINDS, read, strict=True):
                found, null = composition_scores(one, written.side), rotation_null(one, written.side)
                means.append(random_mean(*one.shape, written.side.shape[1]))
                _put(scores[kind], number, before, found - means[-1])
                _put(scores[f"{kind}_z"], number, before, null.z(found))
            eigenvalues = pair_eigenvalues(layer.queries, layer.keys, *(each.to(layer.keys) for each in written[1:]))
            _put(scores["pair_eigenvalue"], number, before, eigenvalues)
        embedded = layer.values.mT @ weights.embeddings.to(layer.values)
        earlier.append(_Written(side(outs, layer.values), layer.outs, embedded))
        advance(1, LAYERS)
    return _Pairs(scores, float(np.mean(means)))


def composition_between(
    subject: ModelUnderTest, later: Sequence[HeadId], earlier: Sequence[HeadId]
) -> tuple[dict[tuple[HeadId, HeadId], dict[str, float]], float]:
    """What some heads read of some others in earlier layers, by (head that reads, head that writes), and the random mean.

    As `measure_composition` has it, under the names of `KINDS` and with `_z`; only the weights of these heads are looked at.
    """
    weights = Weights(subject)
    numbers_of = {
        layer: sorted({head.head for head in (*later, *earlier) if head.layer == layer})
        for layer in {h.layer for h in (*later, *earlier)}
    }
    layers = {number: Layer(*(part[numbers_of[number]] for part in weights.layer(number))) for number in sorted(numbers_of)}
    found: dict[tuple[HeadId, HeadId], dict[str, float]] = {}
    means = []
    for reads in sorted({head.layer for head in later}):
        layer, outs = layers[reads], layers[reads].outs.mT
        read = side(layer.queries, layer.keys), side(layer.keys, layer.queries), side(layer.values, outs)
        for writes in sorted({head.layer for head in earlier if head.layer < reads}):
            written = side(layers[writes].outs.mT, layers[writes].values)
            for kind, one in zip(KINDS, read, strict=True):
                scores = composition_scores(one, written)
                means.append(random_mean(*one.shape, written.shape[1]))
                known = {kind: scores - means[-1], f"{kind}_z": rotation_null(one, written).z(scores)}
                for head in (each for each in later if each.layer == reads):
                    for other in (each for each in earlier if each.layer == writes):
                        place = numbers_of[reads].index(head.head), numbers_of[writes].index(other.head)
                        found.setdefault((head, other), {}).update({name: float(values[place]) for name, values in known.items()})
    return found, float(np.mean(means)) if means else 0.0


def _put(scores: Array, layer: int, before: int, found: Tensor) -> None:
    """The scores of two layers, (heads, heads before), into those of all."""
    scores[layer, : found.shape[0], before, : found.shape[1]] = numbers(found)
