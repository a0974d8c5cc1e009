"""From a module to a model under test: try it out on a few tokens, and learn what a probe needs to know of it.

Checked before anything watches it: weights that are numbers, logits at every position, finite, deterministic and causal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pytest_induction.errors import ArgumentError, InductionError, ModelError
from pytest_induction.models.calling import (
    Caller,
    Memory,
    OtherRandom,
    as_found,
    device_of,
    first_line,
    is_compiled,
    is_out_of_memory,
    logits_of,
    writes,
)
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.models.shown import Attach
from pytest_induction.models.trial import Trial, close_to, difference, find_way, is_offloaded
from pytest_induction.models.weights import broken_weights
from pytest_induction.records import TokenSpace

TRIALS = ((11, 37), (37, 53), (64, 128), (5, 7))  # positions of two trials: what is as long as the sequence in both is made of it
TRIAL_ROWS = 3
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


def adapt(
    module: nn.Module,
    *,
    name: str | None = None,
    tokenizer: Any = None,
    seed: int = 0,
    memory: int | None = None,
    attach: Sequence[Attach] = (),
    without_pattern: Sequence[str] = (),
) -> ModelUnderTest:
    """Make a model under test of a module that maps token ids to logits. Raises `ModelError` if it cannot be one."""
    name = name or type(module).__name__
    _check_declared(module, without_pattern)
    tokenizer = tokenizer if tokenizer is not None else getattr(module, "tokenizer", None)
    caller, others, found = Caller(module), OtherRandom(), Memory(module)
    try:
        with as_found(module) as hooked:
            trial = _try_out(caller, tokenizer, name)._replace(declared=tuple(without_pattern))
            expected = _declared(module, LAYER_NAMES)
            way, tried = find_way(caller, trial, attach, expected=expected, hooked=hooked)
    finally:
        draws = others.restore()
        writes[caller.module] = found.restore()
    notes, space = trial.notes, trial.space
    if space.bos_id is None:
        notes += ("sequences begin with no token of their own: the model names no usable one",)
    notes += ("compiled, and measured as it was written",) if is_compiled(module) else ()
    notes += way.notes if way else ()
    settings = (tokenizer, seed, memory, draws, not trial.steady)
    return ModelUnderTest(module, name, space, way, tried, notes, *settings)


def _check_declared(module: nn.Module, names: Sequence[str]) -> None:
    there = {name for path, part in module.named_modules() for name in (path, type(part).__name__)}
    missing = [name for name in names if name not in there]
    if missing:
        raise ArgumentError(f"`without_pattern` must name modules by path or class, and {missing[0]!r} is none in this model")


def _try_out(caller: Caller, tokenizer: Any, name: str) -> Trial:
    n_ctx = _declared(caller.module, CONTEXT_NAMES)
    _check_weights(caller.module, name)
    lengths, d_vocab = _first_logits(caller, n_ctx, name)
    device = device_of(caller.module)
    space = _token_space(caller.module, tokenizer, d_vocab, n_ctx)
    if n_ctx is None:
        space = TokenSpace(space.d_vocab, _context_by_trial(caller, device, lengths[0]), space.bos_id, space.excluded)
    longest = min(lengths[1], space.n_ctx or lengths[1])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, space.d_vocab, (TRIAL_ROWS, longest), generator=generator).to(device)
    tokens = ids[:, : min(lengths[0], longest - 1)], ids
    short, long = (_logits(caller, each, name)[..., : space.d_vocab] for each in tokens)
    if not all(bool(torch.isfinite(logits).all()) for logits in (short, long)):
        raise ModelError(f"the logits of {name} are not finite (NaN or infinity)")
    notes = _check_causal(caller, tokens[0], short, space.d_vocab, name)
    alone = torch.cat([_logits(caller, row[None], name) for row in tokens[0]])[..., : space.d_vocab]
    steady = not notes and difference(alone, short) <= close_to(short)
    return Trial(tokens, (short, long), space, notes, steady)


def _first_logits(caller: Caller, n_ctx: int | None, name: str) -> tuple[tuple[int, int], int]:
    """The lengths of two trials that the model takes, and how many logits it gives for each position."""
    failure: ModelError | None = None
    for lengths in TRIALS:
        positions = min(lengths[0], max(1, (n_ctx or lengths[1]) - 1))
        tokens = torch.zeros(TRIAL_ROWS, positions, dtype=torch.long, device=device_of(caller.module))
        try:
            return lengths, _logits(caller, tokens, name).shape[-1]
        except ModelError as error:  # a model may be made for longer sequences, or for shorter ones
            failure = failure or error
    raise failure or ModelError(f"{name} was not tried out")


def _logits(caller: Caller, tokens: Tensor, name: str) -> Tensor:
    try:
        return logits_of(caller(tokens), tokens)
    except InductionError as error:
        raise ModelError(f"{error}{_advice(caller.module, tokens, error)}") from None
    except Exception as error:  # whatever a user's model may raise
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{name} must map token ids (batch, positions) to logits; given {tuple(tokens.shape)} it raised "
            f"{type(error).__name__}: {first_line(error)}{_advice(caller.module, tokens, error)}"
        ) from error


def _advice(module: nn.Module, tokens: Tensor, error: Exception) -> str:
    """What may be the matter with a model that gives no logits, where that can be told."""
    if isinstance(error, IndexError):
        return f"; token id {int(tokens.max())} may be none: give it the attribute `vocab_size`"
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        return "; it is an encoder and a decoder, and no causal language model"
    head = getattr(module, "get_output_embeddings", None)
    if callable(head) and head() is None:
        return "; it has no language-model head: load it with AutoModelForCausalLM"
    return ""


def _check_weights(module: nn.Module, name: str) -> None:
    """A kernel may turn a broken weight into an innocent number, so the weights themselves are looked at."""
    if any(weight.is_meta for weight in module.parameters()) and not is_offloaded(module):
        raise ModelError(f"{name} lies on the meta device and has no weights: load or initialise them")
    broken = broken_weights(module)
    if broken:
        others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ModelError(f"the weight `{broken[0]}` of {name}{others} holds NaN or infinity")


def _check_causal(caller: Caller, ids: Tensor, logits: Tensor, d_vocab: int, name: str) -> tuple[str, ...]:
    """Another last token must leave the logits before it as they were, and the same tokens must give the same logits.

    Where the rows beside a row change its logits as well, as they do under dynamic quantisation, whose scale is that of the
    whole batch, the last token may do no more than they do. A note says so.
    """

    def predicted(tokens: Tensor) -> Tensor:
        return _logits(caller, tokens, name)[..., :d_vocab]

    def change_by_last(tokens: Tensor, found: Tensor) -> float:
        """How much another last token changes the logits before it."""
        other = tokens.clone()
        other[:, -1] = (tokens[:, -1] + 1) % d_vocab
        return difference(predicted(other)[:, :-1], found[:, :-1])

    change = change_by_last(ids, logits)
    if change <= close_to(logits):
        return ()
    if difference(predicted(ids), logits) > 0:
        raise ModelError(f"{name} gives different logits for the same tokens: it must be deterministic in evaluation mode")
    trials = [(ids + step) % d_vocab for step in range(BATCH_TRIALS)]
    passes = [(tokens, predicted(tokens)) for tokens in trials]
    ahead = sum(change_by_last(*each) for each in passes) / BATCH_TRIALS
    beside = sum(difference(predicted(tokens[:1]), found[:1]) for tokens, found in passes) / BATCH_TRIALS
    if ahead > BATCH_SHARE * beside:
        raise ModelError(
            f"{name} is not causal: another last token changes earlier logits by {change:.2g}; induction needs a causal model"
        )
    return (f"the logits of a row change with the rows beside it, by {beside:.2g} of their size, as dynamic quantisation does",)


def _context_by_trial(caller: Caller, device: torch.device, runs_at: int) -> int | None:
    """The longest context that runs, up to the longest probe; None where that runs."""

    def runs(positions: int) -> bool:
        try:
            caller(torch.zeros(1, positions, dtype=torch.long, device=device))
        except Exception as error:  # whatever a user's model may raise
            if is_out_of_memory(error):
                raise
            return False
        return True

    if runs(LONGEST_TRIAL):
        return None
    low, high = runs_at, LONGEST_TRIAL
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return low


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
    bos = first_of(module, ("bos_token_id", "bos_id"))
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


def first_of(module: nn.Module, names: tuple[str, ...]) -> Any:
    """The first of these names that the module, its config or its `cfg` has a value for."""
    for source in (module, *_settings(module)):
        for name in names:
            value = _entry(source, name)
            if value is not None:
                return value
    return None


def _declared(module: nn.Module, names: tuple[str, ...]) -> int | None:
    value = first_of(module, names)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _entry(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
