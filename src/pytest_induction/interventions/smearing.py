"""Smeared keys as a part of a model that is trained: every key is mixed with the one before it, in learnable shares.

A single layer can then form induction heads: what the key at a position tells of the token before it no longer needs an earlier
head (Olsson et al. 2022, argument 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_induction.attention.backend import checked
from pytest_induction.attention.edits import ALL, LayerPart, Record, Smear
from pytest_induction.attention.errors import BackendUnavailable
from pytest_induction.attention.interceptor import is_intercepted
from pytest_induction.attention.kernels import AttentionCall
from pytest_induction.errors import ArgumentError, ModelError, UnsupportedModel, user_facing
from pytest_induction.forward.calling import Caller, as_found, as_written
from pytest_induction.interventions.active import apply_edits
from pytest_induction.measuring.observing import ModelLike
from pytest_induction.model.declared import CONTEXT_NAMES, LAYER_NAMES, SPECIAL_NAMES, VOCABULARY_NAMES, first_of
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.undoing import puts_back

KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_key_value_heads")
OF_ITSELF = ("config", "cfg", "generation_config", "tokenizer")
FORWARDED = frozenset({*OF_ITSELF, *CONTEXT_NAMES, *LAYER_NAMES, *VOCABULARY_NAMES, *SPECIAL_NAMES})
"""What a measurement asks a module about, beside its logits: the wrapped one is asked."""
CACHES = ("past_key_values", "past_key_value", "cache_params")
LONGEST_VERIFIED = 11  # positions


@user_facing
def smear_keys(model: ModelLike, *, share: float = 0.5, learnable: bool = True) -> SmearedKeys:
    """The model with smeared keys, as a module to train, to measure and to store.

        k_j  <-  s k_j + (1 - s) k_(j-1)        for j > 0, s = sigmoid(alpha)

    with one alpha for each key head of each layer; heads that share a key share its alpha. `share` is s at the start, between 0
    and 1. If not `learnable` it stays what it is, and may be 0 or 1; with 1 the model is the one that it was made of.

    The module is wrapped and not copied: its parameters are those of the result, and called by itself it runs as it always did.
    Keys are mixed as they are multiplied with queries, after any rotary embedding, so that the previous key keeps its own
    rotation. Rows must begin with their first token: the key of padding on the left would be mixed in.

    Where a model computes patterns itself its scores before the softmax are mixed in place of keys, with one alpha for each
    head: the same, as scores are products of queries and keys; a bias by distance is mixed with them. A model that only shows
    its attention raises `UnsupportedModel`, and so does a window whose first key would be mixed with one outside. Raises
    `ArgumentError` for another `share`.

    >>> smeared = smear_keys(model)                                          # doctest: +SKIP
    >>> optimiser = torch.optim.AdamW(smeared.parameters())                  # doctest: +SKIP
    >>> measure_heads(smeared).prefix_matching.max()                         # doctest: +SKIP
    """
    if learnable and not 0 < share < 1:
        raise ArgumentError(f"`share` must lie between 0 and 1 where it is learnable, got {share}")
    if not 0 <= share <= 1:
        raise ArgumentError(f"`share` must lie from 0 to 1, got {share}")
    return SmearedKeys(load_model(model), share=share, learnable=learnable)


class SmearedKeys(nn.Module):
    """A causal transformer whose keys are smeared. Made by `smear_keys`, which says how; called as the module that it wraps.

    `module` is that module. `alphas` has a parameter (key heads,) for each layer, and none where the share is not learnable.
    """

    share: Tensor

    def __init__(self, subject: ModelUnderTest, *, share: float, learnable: bool) -> None:
        super().__init__()
        self.module = subject.given
        self._name, self._way = subject.name, subject.reading
        self._caller = subject.caller
        self._takes_cache = Caller(subject.given).knows("use_cache")
        self._seen, self._key_heads = _key_heads(subject)
        dtype = torch.promote_types(subject.dtype, torch.float32)
        self.alphas = nn.ParameterList()
        if learnable:
            start = math.log(share / (1 - share))
            self.alphas.extend(nn.Parameter(torch.full((n,), start, dtype=dtype, device=subject.device)) for n in self._key_heads)
        else:
            self.register_buffer("share", torch.tensor([share], dtype=dtype, device=subject.device))
        self.training = self.alphas.training = self.module.training
        with as_found(self):
            self(_trial(subject))

    @property
    def shares(self) -> tuple[Tensor, ...]:
        """What is kept of each key in each layer, (key heads,) from 0 to 1; gradients go to `alphas`."""
        if len(self.alphas):
            return tuple(torch.sigmoid(alpha) for alpha in self.alphas)
        return tuple(self.share.expand(n) for n in self._key_heads)

    @puts_back
    def forward(self, *args: Any, **options: Any) -> Any:
        """What the module gives for these arguments, with its keys smeared. No cache of keys can be used or made."""
        self._check(options)
        tokens = self._shape_of(args, options)
        if tokens is None:
            raise ModelError(f"smeared keys need token ids (rows, positions) as the input of {self._name}")
        if self._takes_cache:
            options["use_cache"] = False
        edits = {layer: [_Shared(*each)] for layer, each in enumerate(zip(self.shares, self._seen, strict=True))}
        with self._smeared(tokens, edits):
            return self.module(*args, **options)

    def _shape_of(self, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
        """Something of the shape (rows, positions) of the sequences that the model was given."""
        embedded = options.get("inputs_embeds")
        return embedded[..., 0] if isinstance(embedded, Tensor) else self._caller.tokens_in(args, options)

    @contextmanager
    def _smeared(self, tokens: Tensor, edits: Mapping[int, Sequence[_Shared]]) -> Iterator[None]:
        """The layers of a pass over `tokens` inside the block are edited like this, all of them."""
        try:
            with checked(lambda: _check_taken(edits)), as_written(), self._way.apply_edits(tokens, edits):
                yield
        except BackendUnavailable as refused:
            raise self._unsmeared(str(refused)) from None

    def _unsmeared(self, why: str) -> Exception:
        """What is raised where keys are not smeared: for the user, or for what verifies how the model can be read."""
        if is_intercepted():
            return BackendUnavailable(why)
        return UnsupportedModel(f"the keys of {self._name} cannot be smeared: {why}")

    def _check(self, options: Mapping[str, Any]) -> None:
        """Raise `ModelError` for what would run unsmeared or mix keys that are no neighbours."""
        if options.get("use_cache") or any(options.get(name) is not None for name in CACHES):
            raise ModelError(f"smeared keys of {self._name} cannot be cached: call it with use_cache=False, on whole sequences")
        if any(part.training and getattr(part, "gradient_checkpointing", False) for part in self.module.modules()):
            raise ModelError(f"{self._name} would run its layers again unsmeared, for gradients: disable gradient checkpointing")

    def __getattr__(self, name: str) -> Any:
        if name in FORWARDED:
            return getattr(super().__getattr__("module"), name)
        return super().__getattr__(name)


@dataclass
class _Shared(Smear):
    """Smears the keys of a layer by one share for each key head, whether a call has these or repeats them for its heads.

    `seen` are the keys that the calls of the layer had together when it was verified.
    """

    seen: int = 1
    taken: bool = False

    def on_call(self, call: AttentionCall, part: LayerPart) -> AttentionCall:
        return self._each(call.key.shape[1], part).on_call(call, part)

    def on_scores(self, scores: Tensor, part: LayerPart) -> Tensor:
        return self._each(scores.shape[1], part).on_scores(scores, part)

    def _each(self, keys: int, part: LayerPart) -> Smear:
        """The edit with a share for each of the `keys` of a call."""
        self.taken = True
        keys = keys if part.keys == ALL else self.seen
        if keys % len(self.share):
            raise BackendUnavailable(f"a layer has {keys} key heads, and {len(self.share)} shares to smear them by")
        return Smear(self.share.repeat_interleave(keys // len(self.share)))


def _check_taken(edits: Mapping[int, Sequence[_Shared]]) -> None:
    """Raise `BackendUnavailable` where a layer was not edited."""
    taken = sum(edit.taken for (edit,) in edits.values())
    if taken != len(edits):
        raise BackendUnavailable(f"those of {taken} of {len(edits)} layers were, so that it attends in another way now")


def _key_heads(subject: ModelUnderTest) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of each layer how many key heads its calls have, and how many of these are different: a model may repeat them.

    As many as heads, where only patterns are seen.
    """
    if not subject.reading.can_edit:
        raise UnsupportedModel(
            f"the keys of {subject.name} cannot be smeared: {subject.reading.name} only shows what they attend to"
        )
    tokens = _trial(subject)
    records = {layer: Record(inputs=True) for layer in range(subject.n_layers)}
    with apply_edits(subject, tokens, {layer: [record] for layer, record in records.items()}):
        subject.logits(tokens)
    shown = [(record.get("key"), record.get("pattern")) for record in records.values()]
    kept = [key if pattern is None else pattern for key, pattern in shown]
    seen = tuple(0 if each is None else each.shape[1] for each in kept)
    declared = first_of(subject.module, KEY_HEADS)
    different = (count if key is None else _different(key, declared) for count, (key, _) in zip(seen, shown, strict=True))
    return seen, tuple(different)


def _different(key: Tensor, declared: Any) -> int:
    """How many of the keys (rows, heads, positions, d_head) there are, where a model says so and the others repeat them."""
    heads = key.shape[1]
    if not isinstance(declared, int) or not 0 < declared < heads or heads % declared:
        return heads
    groups = key.unflatten(1, (declared, -1))
    return declared if torch.equal(groups, groups[:, :, :1].expand_as(groups)) else heads


def _trial(subject: ModelUnderTest) -> Tensor:
    """Token ids (1, positions) that the model takes."""
    positions = min(LONGEST_VERIFIED, subject.space.n_ctx or LONGEST_VERIFIED)
    return (torch.arange(positions, device=subject.device) % subject.space.d_vocab)[None]
