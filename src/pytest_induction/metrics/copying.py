"""Whether heads copy: from their weights alone, from what they raise of a row's tokens, and from what they do to the right one.

Weights come folded: W_V (n_heads, d_model, d_head) reads the residual stream and W_O (n_heads, d_head, d_model) writes to it,
with the gain and the centring of the norms multiplied in and the scale of each position left out. What heads found is over the
scale of the norm behind attention, where one is. A token's direction is its column of the unembedding, W_U (d_model, d_vocab),
less the mean column: what is written along it is the token's logit above the mean over the vocabulary, but for the scale of the
final norm.

| score | range | definition |
|---|---|---|
| OV eigenvalue | -1 to 1 | sum(Re l) / sum(abs l) over the eigenvalues l of W_O (W_U W_E) W_V |
| own logits | 0 to 1 | the shares of tokens whose own logit a head raises, and raises most |
| copying share p | 0 to 1 | of what a head raises of the tokens in its row, the share of those that it attends to |
| copying | -1 to 1 | 4 p / (1 + p) - 1 |
| direct effect | nats | what a head adds to the right token's logit, less the mean over the vocabulary |

All but own logits is exact up to rounding: of the vocabulary only the mean and the tokens of the rows are needed, and no tensor
of (heads, positions, d_vocab) or (heads, positions, d_model) is made. Own logits are of the tokens given, all or a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Share = TypeVar("Share", float, Tensor, NDArray[np.float64])
CHUNK = 8192  # tokens that are turned into single precision at a time
LEAST_RAISED = 1e-6  # nats; below it a ratio would be one of rounding
NO_SCORE = 1e-30  # a spectrum below it is that of a head that writes nothing


def product_of_embeddings(unembedding: Tensor, embedding: Tensor) -> Tensor:
    """W_U W_E, (d_model, d_model), of (d_model, d_vocab) and (d_vocab, d_model): the same for all heads, at least float32."""
    dtype = torch.promote_types(unembedding.dtype, torch.float32)
    if unembedding.dtype == dtype:
        return unembedding @ embedding
    parts = zip(unembedding.split(CHUNK, 1), embedding.split(CHUNK, 0), strict=True)
    return sum((one.to(dtype) @ other.to(dtype) for one, other in parts), unembedding.new_zeros((), dtype=dtype))


def ov_eigenvalue_scores(values: Tensor, product: Tensor, outs: Tensor) -> Tensor:
    """The OV eigenvalue copying score of a layer's heads, (n_heads,), in [-1, 1].

    `values` is W_V (n_heads, d_model, d_head), `product` W_U W_E (d_model, d_model) between the two norms, `outs` W_O (n_heads,
    d_head, d_model). The eigenvalues of the (d_head x d_head) matrix W_O W_U W_E W_V are the nonzero ones of the (d_vocab x
    d_vocab) matrix W_E W_V W_O W_U, which says how much a head that attends to one token raises every other.

    A head that raises each token's own logit, and no other, has 1, one that lowers it -1, a random one about 0; one that writes
    nothing, or nothing that the unembedding reads, has 0. It is not proof: eigenvectors need not be orthogonal, so that all
    eigenvalues may be positive and some token lower its own logit. Source: Elhage et al. 2021. There the norms are folded as
    here, the unembedding is not centred over the vocabulary, and neither is it here.
    """
    dtype = torch.promote_types(product.dtype, torch.float32)
    circuits = outs.to(dtype) @ (product.to(dtype) @ values.to(dtype))
    found = torch.linalg.eigvals(circuits.cpu())
    size = found.abs().sum(-1)
    return torch.where(size > NO_SCORE, found.real.sum(-1) / size.clamp_min(NO_SCORE), 0.0)


def own_logits(found: Tensor, own: Tensor) -> Tensor:
    """Whether heads raise the tokens that they attend to: (2, n_heads), shares of the tokens, in [0, 1].

    `found` (tokens, n_heads, d_head) is what a head finds in each token's embedding, `own` the same tokens' directions,
    `projected`. The first share is of those whose own logit the head raises above the mean over the vocabulary, the second of
    those whose own logit it raises more than that of any other of them. NaN for a head that writes nothing.

    What eigenvalues may hide: all of them can be positive while some token lowers its own logit. Source: Elhage et al. 2021.
    """
    raised = torch.einsum("thd,uhd->htu", found.to(own), own)  # by a head that attends to t, of u
    diagonal = raised.diagonal(dim1=1, dim2=2).clone()
    writes = (raised != 0).flatten(1).any(1)
    raised.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    shares = torch.stack([diagonal > 0, diagonal > raised.amax(-1)]).to(own.dtype).mean(-1)
    return torch.where(writes, shares, torch.nan)


def projected(directions: Tensor, outs: Tensor) -> Tensor:
    """Directions (batch, tokens, d_model) as each head's own, (batch, tokens, n_heads, d_head).

    The product with what a head found is what W_O makes of it along the direction.
    """
    flat = directions.to(outs.device) @ outs.to(directions.dtype).flatten(0, 1).mT
    return flat.unflatten(-1, outs.shape[:2])


def raised_in_row(found: Tensor, pattern: Tensor, own: Tensor) -> Tensor:
    """How much heads raise tokens of the row: those that they attend to, and all: (2, batch, n_heads, queries).

    `found` (batch, positions, n_heads, d_head) is what heads found, `pattern` (batch, n_heads, positions, positions) where, `own`
    the direction of each position's token, `projected`. Tokens must be distinct in a row.

    With l[t] what a head raises token t by at query q, above the mean over the vocabulary and 0 where it lowers it, and a the
    pattern, the first is the sum over k of a[q, k] l[t_k], the second that of l over all tokens of the row, also those to come.
    Neither is divided by the final norm's scale.
    """
    dtype = torch.promote_types(pattern.dtype, own.dtype)
    raised = torch.einsum("bqhd,bthd->bhqt", found.to(dtype), own.to(dtype)).relu_()
    return torch.stack([(raised * pattern.to(dtype)).sum(-1), raised.sum(-1)])


def copying_shares(raised: Tensor, scale: Tensor, *, first: int = 0) -> Tensor:
    """The share p of what heads raise of a row that is on what they attend to, (batch, n_heads), the mean over queries.

    Of what `raised_in_row` gives, with the final norm's `scale` (batch, positions); queries count from `first` on, and where a
    head raises the row's tokens by more than a millionth of a nat; NaN where it does nowhere.

    A head that gives all its attention to one token, and raises that one only, has 1, one that raises only others 0, one that
    raises all n tokens alike 1 / n. A head that attends to k tokens evenly and copies each has 1 / k: what it raises of one is
    weighed with the attention to that one.

    Source: Olsson et al. 2022, the copying evaluator. Chosen where it is open: the attended token is the attention-weighted
    mean; the mean taken off is that over the vocabulary; the ratio is of all tokens of the row, the first one too.
    """
    on_attended, on_all = raised[..., first:]
    counted = on_all > LEAST_RAISED * scale[:, None, first:].to(on_all)
    return torch.where(counted, on_attended / on_all, torch.nan).nanmean(-1)


def rescaled(share: Share) -> Share:
    """The paper's copying score 4 p / (1 + p) - 1 of a share p: p = 0 gives -1, p = 1/3 gives 0, p = 1 gives 1.

    The paper's ratio has what is on the attended token in both sums, p / (1 + p), which lies between 0 and 0.5, times 4 less 1.
    """
    return 4 * share / (1 + share) - 1


@dataclass(frozen=True)
class RepeatedBlock:
    """Rows in which a block of `period` tokens, beginning at `start`, stands `copies` times, up to the end.

    At each position of a later copy the right token is the next one of the block: an induction head has seen it follow. So there
    are period * (copies - 1) queries.
    """

    period: int
    copies: int
    start: int

    @property
    def queries(self) -> slice:
        """The positions of the later copies."""
        return slice(self.start + self.period, self.start + self.period * self.copies)

    def raised(self, found: Tensor, own: Tensor) -> Tensor:
        """What heads add to the right token's logit, (2, batch, queries, n_heads), not yet divided by the final norm's scale.

        `found` (batch, positions, n_heads, d_head) is what heads found, `own` (batch, period, n_heads, d_head) the directions of
        the block's tokens, `projected`. The first is above the mean over the vocabulary, the second above the mean over the
        block's other tokens: what a head adds to whatever it has seen cancels there.
        """
        later = found[:, self.queries].to(own.dtype).unflatten(1, (self.copies - 1, self.period))
        right = torch.linalg.vecdot(later, own.roll(-1, dims=1)[:, None])
        whole_block = torch.linalg.vecdot(later, own.sum(1)[:, None, None])
        others = (whole_block - right) / (self.period - 1)
        return torch.stack([right, right - others]).flatten(2, 3)

    def direct_effects(self, raised: Tensor, scale: Tensor) -> Tensor:
        """The mean over the queries in nats, (2, batch, n_heads), with the final norm's `scale` (batch, positions) held fixed.

        A head that attends to the right token and raises what it attends to by 16 has 16 - 16 / d_vocab and 16, one that
        suppresses it the negative of these, one that raises all tokens alike, or writes nothing, 0. A head that copies the whole
        block evenly has about 16 / period, and 0.

        Source: Olsson et al. 2022, direct logit attribution. The second is ours; both are of the path straight to the logits,
        and not of what later layers make of it.
        """
        return (raised / scale[:, self.queries, None].to(raised)).mean(2)
