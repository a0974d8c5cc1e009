"""What heads read of what earlier heads write: composition scores, and whether a token is matched with the one that was moved.

Weights come folded, in rows: W_Q, W_K and W_V (n_heads, d_model, n) read the residual stream, W_O (n_heads, n, d_model) writes to
it. A head moves x to x W_V W_O, and scores a query x against a key y by x W_Q W_K^T y^T. `other` is a head in an earlier layer.

| score | range | definition |
|---|---|---|
| query composition | 0 to 1 | norm(W_V' W_O' W_Q W_K^T) / (norm(W_V' W_O') norm(W_Q W_K^T)), where ' is of the other head |
| key composition | 0 to 1 | the same with W_K W_Q^T |
| value composition | 0 to 1 | the same with W_V W_O |
| QK trace | scores | tr(W_E W_Q W_K^T (sum of s' W_V' W_O')^T W_E^T), with weights s' of the other heads |
| QK eigenvalue | -1 to 1 | sum(Re l) / sum(abs l) over the eigenvalues l of that matrix |

Norms are Frobenius norms. The three ratios are those of heads whose weights are drawn at random in `random_mean`, about one over
the root of d_model, and what a spectrum alone gives in `rotation_null`. Each product comes down to thin ones: neither a (d_model
x d_model) matrix of a pair is made, nor one of the vocabulary.

Source: Elhage et al. 2021 (composition, the eigenvalues of the QK circuit), Olsson et al. 2022 (the QK trace).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_induction.metrics.copying import ov_eigenvalue_scores

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
    told, asked = _each_with_each(outs.to(dtype), keys.to(dtype)), _each_with_each(embedded.to(dtype), queries.to(dtype))
    return ov_eigenvalue_scores(asked, torch.eye(outs.shape[1], dtype=dtype, device=asked.device), told.mT)


def _each_with_each(one: Tensor, other: Tensor) -> Tensor:
    """The products (others, n, d_model) x (heads, d_model, m), (heads, others, n, m), as those of two large matrices."""
    found = one.flatten(0, 1) @ other.movedim(0, 1).flatten(1)
    return found.view(*one.shape[:2], other.shape[0], other.shape[2]).permute(2, 0, 1, 3)
