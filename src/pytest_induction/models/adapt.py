"""From a module to a model under test: try it out on a few tokens, and find a way in that changes nothing.

Checked before anything is measured: logits at every position, finite, causal; every layer seen; the same logits while
watched; and attention rows that sum to one over the positions up to the query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pytest_induction.errors import ModelError
from pytest_induction.models.attention import LogSumExpReader, PatternReader, Reader
from pytest_induction.models.calling import Caller, as_found, device_of, first_line, is_compiled, logits_of
from pytest_induction.models.eager import EagerWay
from pytest_induction.models.protocol import ModelUnderTest, NotInUse, Refused, WayIn
from pytest_induction.models.registry import RegistryWay
from pytest_induction.models.sdpa import SdpaWay
from pytest_induction.models.shown import Attach, ShownWay
from pytest_induction.models.softmax import SoftmaxWay
from pytest_induction.models.transformer_lens import HookPointWay
from pytest_induction.models.weights import broken_weights
from pytest_induction.records import TokenSpace

WAYS: tuple[type[WayIn], ...] = (ShownWay, SdpaWay, RegistryWay, EagerWay, HookPointWay, SoftmaxWay)
TRIAL_POSITIONS = 11  # unlikely to be a number of heads, experts or channels as well
CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "block_size",
    "context_length",
    "max_seq_len",
    "seq_length",
)
LAYER_NAMES = ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layers", "n_layer")
VOCABULARY_NAMES = ("vocab_size", "d_vocab", "n_vocab")
SPECIAL_NAMES = ("bos_token_id", "bos_id", "eos_token_id", "eos_id", "pad_token_id", "pad_id")
BATCH_TRIALS = 8  # token ids for which the influence of a later token is compared with that of the other rows,
BATCH_SHARE = 2  # and how much more it may be: dynamic int8 gives 0.4 to 1.3, and 3.8 or more where attention looks ahead
LONGEST_TRIAL = 128  # positions tried where a model does not tell its context
CLOSE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
ROW_SUMS = {torch.float64: 1e-6, torch.float32: 1e-3}  # what the sum over a row may miss 1 by
ROW_SUMS_HALF = 2e-2


def adapt(
    module: nn.Module,
    *,
    name: str | None = None,
    tokenizer: Any = None,
    seed: int = 0,
    memory: int | None = None,
    attach: Sequence[Attach] = (),
) -> ModelUnderTest:
    """Make a model under test of a module that maps token ids to logits. Raises `ModelError` if it cannot be one."""
    name = name or type(module).__name__
    tokenizer = tokenizer if tokenizer is not None else getattr(module, "tokenizer", None)
    caller = Caller(module)
    with as_found(module):
        tokens, logits, space, notes = _try_out(caller, tokenizer, name)
        way, tried = _find_way(caller, tokens, logits, attach)
    if space.bos_id is None:
        notes += ("sequences begin with no token of their own: the model names no usable one",)
    notes += ("compiled, and measured as it was written",) if is_compiled(module) else ()
    return ModelUnderTest(module, name, space, way, tried, notes + (way.notes if way else ()), tokenizer, seed, memory)


def _try_out(caller: Caller, tokenizer: Any, name: str) -> tuple[Tensor, Tensor, TokenSpace, tuple[str, ...]]:
    """A few valid token ids, their logits, what a probe may be made of, and notes."""
    n_ctx = _declared(caller.module, CONTEXT_NAMES)
    _check_weights(caller.module, name)
    positions = min(TRIAL_POSITIONS, n_ctx or TRIAL_POSITIONS)
    device = device_of(caller.module)
    zeros = torch.zeros(2, positions, dtype=torch.long, device=device)
    d_vocab = _first_logits(caller, zeros, name).shape[-1]
    space = _token_space(caller.module, tokenizer, d_vocab, n_ctx)
    ids = torch.randint(0, space.d_vocab, zeros.shape, generator=torch.Generator().manual_seed(0)).to(device)
    logits = logits_of(caller(ids), ids)
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(f"the logits of {name} are not finite (NaN or infinity)")
    notes = _check_causal(caller, ids, logits, space.d_vocab, name)
    if n_ctx is None:
        space = TokenSpace(space.d_vocab, _context_by_trial(caller, device), space.bos_id, space.excluded)
    return ids, logits, space, notes


def _first_logits(caller: Caller, tokens: Tensor, name: str) -> Tensor:
    try:
        return logits_of(caller(tokens), tokens)
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError, KeyError, AssertionError) as error:
        raise ModelError(
            f"{name} must map token ids (batch, positions) to logits; given {tuple(tokens.shape)} it raised "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def _check_weights(module: nn.Module, name: str) -> None:
    """A kernel may turn a broken weight into an innocent number, so the weights themselves are looked at."""
    broken = broken_weights(module)
    if broken:
        raise ModelError(f"{len(broken)} weights of {name} hold NaN or infinity, the first is `{broken[0]}`")


def _check_causal(caller: Caller, ids: Tensor, logits: Tensor, d_vocab: int, name: str) -> tuple[str, ...]:
    """Another last token must leave the logits before it as they were, and the same tokens must give the same logits.

    Where the rows beside a row change its logits as well, as they do under dynamic quantisation, whose scale is that of the
    whole batch, the last token may do no more than they do. A note says so.
    """
    change = _change_by_last(caller, ids, logits, d_vocab)
    if change <= CLOSE.get(logits.dtype, 1e-2):
        return ()
    if _difference(logits_of(caller(ids), ids), logits) > 0:
        raise ModelError(f"{name} gives different logits for the same tokens: it must be deterministic in evaluation mode")
    trials = [(ids + step) % d_vocab for step in range(BATCH_TRIALS)]
    passes = [(tokens, logits_of(caller(tokens), tokens)) for tokens in trials]
    ahead = sum(_change_by_last(caller, *each, d_vocab) for each in passes) / BATCH_TRIALS
    beside = sum(_difference(logits_of(caller(tokens[:1]), tokens[:1]), found[:1]) for tokens, found in passes) / BATCH_TRIALS
    if ahead > BATCH_SHARE * beside:
        raise ModelError(
            f"{name} is not causal: another last token changes earlier logits by {change:.2g}; induction needs a causal model"
        )
    return (f"the logits of a row change with the rows beside it, by {beside:.2g} of their size, as dynamic quantisation does",)


def _change_by_last(caller: Caller, ids: Tensor, logits: Tensor, d_vocab: int) -> float:
    """How much another last token changes the logits before it."""
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 1) % d_vocab
    return _difference(logits_of(caller(other), other)[:, :-1], logits[:, :-1])


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the size of the logits."""
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-3)) if one.numel() else 0.0


def _context_by_trial(caller: Caller, device: torch.device) -> int | None:
    """The longest context that runs, up to the longest probe; None where that runs."""

    def runs(positions: int) -> bool:
        try:
            caller(torch.zeros(1, positions, dtype=torch.long, device=device))
        except (RuntimeError, IndexError, ValueError, AssertionError):
            return False
        return True

    if runs(LONGEST_TRIAL):
        return None
    low, high = TRIAL_POSITIONS, LONGEST_TRIAL
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return low


def _find_way(caller: Caller, tokens: Tensor, logits: Tensor, attach: Sequence[Attach]) -> tuple[WayIn | None, tuple[str, ...]]:
    """The first way in that sees every layer and changes nothing, and what the others before it said."""
    tried: list[tuple[str, bool]] = []
    expected = _declared(caller.module, LAYER_NAMES)
    for kind in WAYS:
        try:
            way = kind(caller, tokens, expected, attach) if kind is ShownWay else kind(caller, tokens, expected)
            _check_reading(way, tokens, logits)
            way.can_stop = _can_stop(way, caller, tokens, logits)
        except Refused as refusal:
            tried.append((f"{kind.name}: {refusal}", isinstance(refusal, NotInUse)))
        else:
            return way, tuple(said for said, strange in tried if not strange)
    return None, tuple(said for said, _ in tried)


def _check_reading(way: WayIn, tokens: Tensor, logits: Tensor) -> None:
    def rows_sum_to_one(layer: int, reader: Reader) -> None:
        sums = reader.diagonals(range(tokens.shape[1])).sum(2)
        wrong = (sums - 1).clamp_min(0)  # a sink may take some of the mass out of a pattern, but nothing adds to it
        if isinstance(reader, PatternReader) and float(ahead := reader.pattern.triu(1).abs().max()) > 0:
            raise Refused(f"attention of layer {layer} looks ahead, with up to {float(ahead):.3g}")
        rounding = torch.zeros(())
        tolerance = ROW_SUMS.get(reader.dtype, ROW_SUMS_HALF)
        if isinstance(reader, LogSumExpReader):
            wrong = (sums - 1).abs()
            rounding = 32 * torch.finfo(sums.dtype).eps * reader.log_sum_exp.abs().max()  # of scores that large
        if not float(wrong.max()) <= tolerance + float(rounding):
            seen = f"{float(sums.min()):.3g}..{float(sums.max()):.3g}"
            raise Refused(f"attention of layer {layer} sums to {seen} over the positions up to the query, expected 1")

    watched = way.run(tokens, None, rows_sum_to_one, logits=True)
    change = torch.inf if watched is None else _difference(watched, logits)
    if not change <= CLOSE.get(logits.dtype, 1e-2):
        raise Refused(f"the logits change by {change:.2g} while the model is watched")
    if way.folded:
        _check_folding(way, tokens)


def _check_folding(way: WayIn, tokens: Tensor) -> None:
    """Where heads and rows share an axis, a row alone must have the patterns that were taken to be its own."""
    together: list[Tensor] = []
    way.run(tokens, None, lambda layer, reader: together.append(reader.diagonals([0, 1])[:1].clone()), logits=False)

    def is_the_same(layer: int, reader: Reader) -> None:
        if _difference(reader.diagonals([0, 1]), together[layer]) > 1e-2:
            raise Refused(f"attention of layer {layer} has rows and heads on one axis, in another order than rows first")

    way.run(tokens[:1], None, is_the_same, logits=False)


def _can_stop(way: WayIn, caller: Caller, tokens: Tensor, logits: Tensor) -> bool:
    """Whether a pass may end after the last attention layer: it does end there, and the next pass is what it was."""
    if not way.stops or any(hasattr(part, "_hf_hook") for part in caller.module.modules()):
        return False  # accelerate moves weights before and after each module; it must not be cut off between
    way.run(tokens, None, lambda layer, reader: None, logits=False, early_stop=True)
    return _difference(logits_of(caller(tokens), tokens), logits) == 0


def _token_space(module: nn.Module, tokenizer: Any, logits_dim: int, n_ctx: int | None) -> TokenSpace:
    d_vocab = min(logits_dim, _declared(module, VOCABULARY_NAMES) or logits_dim)
    special: set[int] = set()
    for name in SPECIAL_NAMES:
        for source in (module, *_settings(module), getattr(module, "generation_config", None)):
            value = _entry(source, name)
            special |= {token for token in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(token, int)}
    special |= set(getattr(tokenizer, "all_special_ids", None) or ())
    known = _n_known(tokenizer)
    if known is not None:
        special |= set(range(known, d_vocab))
    bos = _first_of(module, ("bos_token_id", "bos_id"))
    bos = bos if isinstance(bos, int) and 0 <= bos < d_vocab else None
    return TokenSpace(d_vocab, n_ctx, bos, frozenset(token for token in special if 0 <= token < d_vocab))


def _n_known(tokenizer: Any) -> int | None:
    """How many ids the tokenizer knows; rows of the embedding beyond them were never trained."""
    if hasattr(tokenizer, "get_vocab_size"):
        return int(tokenizer.get_vocab_size())
    try:
        return len(tokenizer)
    except TypeError:
        return None


def _settings(module: nn.Module) -> list[Any]:
    """Where a module keeps its numbers: its text config if it has several, its config, its `cfg`."""
    config = getattr(module, "config", None)
    find_text = getattr(config, "get_text_config", None)
    text = find_text() if callable(find_text) else None
    return [text, config, getattr(module, "cfg", None)]


def _first_of(module: nn.Module, names: tuple[str, ...]) -> Any:
    for source in (module, *_settings(module)):
        for name in names:
            value = _entry(source, name)
            if value is not None:
                return value
    return None


def _declared(module: nn.Module, names: tuple[str, ...]) -> int | None:
    value = _first_of(module, names)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _entry(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
