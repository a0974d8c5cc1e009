"""The weights of heads as tensors, wherever a model keeps them, with the norms around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Norm:
    """A norm of (..., d_model): centred or not, divided by its scale, times `gain` plus `shift`; `divides` says if at all."""

    centred: bool = False
    divides: bool = False
    eps: float = 0.0
    gain: Tensor | None = None
    shift: Tensor | None = None

    @property
    def kind(self) -> str:
        """`none`, `RMSNorm` or `LayerNorm`."""
        return ("LayerNorm" if self.centred else "RMSNorm") if self.divides else "none"

    def scale(self, residual: Tensor) -> Tensor:
        """What each position is divided by: (...,) of (..., d_model), at least float32."""
        residual = upcast(residual)
        if not self.divides:
            return residual.new_ones(residual.shape[:-1])
        if self.centred:
            return (residual.var(-1, correction=0) + self.eps).sqrt()
        return (torch.linalg.vecdot(residual, residual) / residual.shape[-1] + self.eps).sqrt()

    def __call__(self, residual: Tensor) -> Tensor:
        """The norm itself, at least float32."""
        residual = upcast(residual)
        made = (residual - residual.mean(-1, keepdim=True) if self.centred else residual) / self.scale(residual)[..., None]
        made = made if self.gain is None else made * _beside(self.gain, made)
        return made if self.shift is None else made + _beside(self.shift, made)

    def folded(self, reads: Tensor) -> Tensor:
        """Weights (..., d_model, n) that read what the norm gives, as ones that read its input divided by its scale.

        The gain is multiplied in, and the centring too, so that the mean over d_model is 0. The shift is left out: it adds to
        what is read the same for any input.
        """
        reads = upcast(reads)
        reads = reads if self.gain is None else reads * _beside(self.gain, reads)[:, None]
        return reads - reads.mean(-2, keepdim=True) if self.centred else reads

    def written(self, writes: Tensor) -> Tensor:
        """Weights (..., d_model) that write what the norm is given, as ones that write what it gives times its scale.

        The centring and then the gain are multiplied in; the shift is left out. Without either they are as they were.
        """
        if self.centred:
            writes = upcast(writes)
            writes = writes - writes.mean(-1, keepdim=True)
        return writes if self.gain is None else upcast(writes) * _beside(self.gain, writes)


@dataclass(frozen=True)
class Affine:
    """A linear map of (..., n_in) to (..., n_out): `weight` (n_in, n_out), `bias` (n_out,) or None.

    Where accelerate keeps the weight elsewhere, `held` is the placeholder that stands for it, and `fetch` gives it, each time
    that it is asked for: no more than one is in memory then.
    """

    held: Tensor
    bias: Tensor | None
    fetch: Callable[[], Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        return self.held if self.fetch is None else self.fetch()

    @property
    def n_in(self) -> int:
        return len(self.held)

    def __call__(self, given: Tensor) -> Tensor:
        made = upcast(given) @ _beside(self.weight, given)
        return made if self.bias is None else made + _beside(self.bias, made)


@dataclass(frozen=True)
class LayerCircuits:
    """One attention layer: where its weights lie. `d_head` is that of the values.

    A norm `behind` the output projection is folded into what is written. What heads write is then that over the norm's scale,
    which is the same for all heads at a position.
    """

    path: str
    norm: Norm  # before attention
    enters: nn.Module  # given the residual stream before the layer: the norm, or what reads where none is
    reads: nn.Module  # given what the values are made of
    writes: nn.Module | None  # given what the heads found, heads side by side; None where no module is
    factor: float  # on what the layer adds to the residual stream
    _values: Affine
    _columns: Tensor
    _out: Affine
    behind: Norm = Norm()
    normed: nn.Module | None = None  # the norm behind, given what the output projection gives; None where none is

    @property
    def n_heads(self) -> int:
        return len(self._columns)

    @property
    def values(self) -> Tensor:
        """W_V, (n_heads, d_model, d_head), in the model's dtype; heads of a group have equal ones. Made anew each time."""
        weight = self._values.weight
        return weight[:, self._columns.to(weight.device)].movedim(1, 0)

    @property
    def value_bias(self) -> Tensor | None:
        """(n_heads, d_head)."""
        return None if self._values.bias is None else self._values.bias[self._columns.to(self._values.bias.device)]

    @property
    def outs(self) -> Tensor:
        """W_O, (n_heads, d_head, d_model), with the layer's factor and the norm behind folded in."""
        weight = self.behind.written(self._out.weight.unflatten(0, (self.n_heads, -1)))
        return weight if self.factor == 1 else weight * self.factor

    @property
    def out_bias(self) -> Tensor | None:
        """(d_model,), with the layer's factor and the norm behind folded in: of no head in particular."""
        return None if self._out.bias is None else self.behind.written(self._out.bias) * self.factor

    @property
    def shift(self) -> Tensor | None:
        """(d_model,), with the layer's factor: what the norm behind adds whatever it is given."""
        return None if self.behind.shift is None else self.behind.shift * self.factor

    def values_of(self, given: Tensor) -> Tensor:
        """Values (batch, positions, n_heads, d_head) of what the norm gives, (batch, positions, d_model)."""
        return self._values(given)[..., self._columns.to(given.device)]


@dataclass(frozen=True)
class Circuits:
    """The weights of every measured layer, the embedding (d_vocab, d_model) and the unembedding (d_model, d_vocab).

    The embedding counts `embedding_factor` times where it enters the residual stream, the unembedding `logit_factor` times. The
    bias of the unembedding, (d_vocab,) or None, is of no head. `notes` say what else the model does to its logits.
    """

    layers: tuple[LayerCircuits, ...]
    embedding: Tensor
    unembedding: Tensor
    unembedding_bias: Tensor | None
    final_norm: Norm
    embedding_factor: float
    logit_factor: float
    notes: tuple[str, ...]
    ends: nn.Module | None  # given the last of the residual stream; None where no module is

    @cached_property
    def mean_unembedding(self) -> Tensor:
        """The mean over the vocabulary, (d_model,), at least float32."""
        return self.unembedding.mean(1, dtype=torch.promote_types(self.unembedding.dtype, torch.float32))

    def written(self, tokens: Tensor) -> Tensor:
        """Directions (..., d_model) along which the logit of each token lies above the mean over the vocabulary.

        For what is added to the residual stream, final norm folded; the logit itself is that divided by the norm's scale.
        """
        chosen = upcast(self.unembedding.mT[tokens.to(self.unembedding.device)]) - self.mean_unembedding
        return self.final_norm.folded(chosen.flatten(0, -2).mT).mT.reshape(chosen.shape) * self.logit_factor


def _beside(values: Tensor, other: Tensor) -> Tensor:
    """At least float32, on the device of the other: the parts of a model may lie on several."""
    return upcast(values).to(other.device)


def upcast(values: Tensor) -> Tensor:
    """At least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
