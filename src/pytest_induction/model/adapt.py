"""From a module to a model under test: try it out on a few tokens, and learn what a probe needs to know of it.

Checked before anything watches it: weights that are numbers; next-token logits at every position; that these are finite,
deterministic and causal; rows that do not depend on each other. A wrapper that changes no logits is left aside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_induction.attention.backend import Attach
from pytest_induction.attention.backends.exposed import noticing
from pytest_induction.attention.tracking import following_calls
from pytest_induction.attention.verification import Reference, compared, find_backend, is_offloaded
from pytest_induction.errors import InductionError, ModelError, because_of
from pytest_induction.forward.calling import (
    CallConvention,
    Caller,
    OtherRandom,
    as_found,
    broken_weights,
    close_to,
    device_of,
    difference,
    first_line,
    in_one_thread,
    is_compiled,
    is_finite,
    is_out_of_memory,
    uncompiled,
    why_endless,
)
from pytest_induction.forward.changing import have_alone
from pytest_induction.forward.inputs import MASKS
from pytest_induction.forward.outputs import parts_of
from pytest_induction.forward.standing import writes
from pytest_induction.model.beside import ids_beside
from pytest_induction.model.conventions import GUIDE, WRAP, Found, find_conventions, holding_all, model_inside, of_round_lengths
from pytest_induction.model.declared import CONTEXT_NAMES, declared, declared_layers, paths_or_classes, token_space, tokenizer_of
from pytest_induction.model.protocol import ModelUnderTest, remember_inside
from pytest_induction.model.quantised import quantisation_of
from pytest_induction.model.unfinished import Beginning
from pytest_induction.records import TokenSpace
from pytest_induction.undoing import Changes, puts_back

BATCH_PASSES = 8  # token ids for which the influence of a later token is compared with that of the other rows,
BATCH_SHARE = 2  # and how much more it may be: dynamic int8 gives 0.4 to 1.3, and 3.8 or more where attention looks ahead
MIXED = "the logits of a row change with the rows beside it,"
FEW_TOKENS = (3, 37)  # rows and positions of the longest passes that most models are tried out with,
FEW_PASSES = 1_000_000_000  # and the multiply-adds of one, up to which all run in one thread: there are too few to save by more
LONGEST_TRIED = 128  # positions tried where a model does not tell its context


@puts_back
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
    name = name or type(uncompiled(module)).__name__
    why = why_endless(module)
    if why:
        raise ModelError(f"{name} {why}")
    with Changes() as changes:
        have_alone(changes, module)
        others, beginning = OtherRandom(), Beginning(module)
        changes.undone_by(beginning.restore)
        changes.undone_by(others.restore)
        with as_found(module) as hooked:
            _check_weights(module, name)
            in_one_thread(changes, module, *FEW_TOKENS, most=FEW_PASSES)
            beginning.weigh()
            tried = _tried_out(module, tokenizer, name, beginning)
            declares = paths_or_classes(module, tried.found.caller.module, without_pattern)
            known: dict[str, Any] = {"expected": declared_layers(tried.found.seen.sources), "hooked": hooked}
            backend, rejected = find_backend(tried.found.caller, tried.reference._replace(declared=declares), attach, **known)
            for round_one in of_round_lengths(tried.found) if backend is None else ():
                with suppress(ModelError):  # what was said of the way it is called stands
                    again = _checked(round_one, tried.tokenizer, name)
                    backend, _ = find_backend(round_one.caller, again.reference._replace(declared=declares), attach, **known)
                if backend is not None:
                    tried, rejected = again, ()
                    break
            beginning.check(tried.found, name, tried.reference.space.n_ctx or LONGEST_TRIED)
            written = beginning.written()  # now, as what was known to be written to is put back at the end of this block
        draws = others.restore()
        beginning.restore()
    writes[uncompiled(module)] = written
    caller, reference = tried.found.caller, tried.reference
    writes[caller.module] = written
    notes, space = reference.notes, reference.space
    if space.bos_id is None:
        notes += ("sequences have no first token of their own, because the model names no usable one",)
    notes += quantisation_of(module)
    notes += ("compiled; measured without compilation",) if is_compiled(module) else ()
    notes += backend.notes if backend else ()
    caller.d_vocab = space.d_vocab
    remember_inside(uncompiled(module), caller.module)
    settings = (tried.tokenizer, seed, memory, draws, not reference.steady or caller.convention.most_rows == 1)
    weights = holding_all(tried.found, caller.module)
    caller.let_go()  # so that neither it nor the backend keeps the module alive, but the model under test does
    if backend is not None:
        vars(backend).pop("check_names", None)  # which follows its modules
    return ModelUnderTest(caller, module, weights, name, space, backend, rejected, notes, *settings, _measured=caller.module)


class _Shifted(ModelError):
    """Logits that are one place late, however the model is called."""


class _Tried(NamedTuple):
    """What first passes showed of a module: how it is called, what it gave, and its tokenizer."""

    found: Found
    reference: Reference
    tokenizer: Any

    @property
    def strict(self) -> bool:
        """Whether it stood every check."""
        return self.reference.steady


def _tried_out(module: nn.Module, tokenizer: Any, name: str, beginning: Beginning) -> _Tried:
    """Try the ways to call a module until one stands all checks. Raises what the first one that runs failed for.

    One with which rows influence each other a little is taken where no other way has them apart.
    """
    failure: ModelError | None = None
    second: _Tried | None = None
    conventions = find_conventions(module, name)
    first = next(conventions)
    conventions = find_conventions(module, name) if beginning.check(first, name, is_last=False) else chain([first], conventions)
    for found in conventions:
        try:
            tried = _checked(found, tokenizer, name)
        except _Shifted:
            raise
        except ModelError as error:
            failure = failure or error
            continue
        if tried.strict:
            _check_only_one(tried, conventions, name)
            return tried
        if failure is None:
            second = second or tried
    if second is not None:
        return second
    raise failure or ModelError(f"{name} was not tried out")


def _check_only_one(tried: _Tried, others: Iterator[Found], name: str) -> None:
    """Raise `ModelError` where another value of an argument that is filled in would serve as well, and give something else."""
    masks = [each.name for each in tried.found.caller.convention.inputs.arguments if each.name in MASKS]
    if not masks:
        return
    for other in others:
        try:
            again = _checked(other, tried.tokenizer, name)
        except ModelError:
            continue
        if again.strict and difference(again.reference.logits[0], tried.reference.logits[0]) > close_to(
            tried.reference.logits[0]
        ):
            several = f"{name} may be given several masks as `{masks[0]}`, and each gives other logits"
            raise ModelError(f"{several}: wrap it with the right one, see {GUIDE}")


def _checked(found: Found, tokenizer: Any, name: str) -> _Tried:
    """Try out one way to call a module, or the model inside that gives the same. Raises `ModelError` where it is no good."""
    notes: tuple[str, ...] = ()
    sources = found.seen.sources
    inside = model_inside(found)
    if inside is not None:
        inner, same = inside
        notes = (f"measured is `{inner.name}` ({type(same.caller.module).__name__}), whose logits {_kind(found)} returns",)
        found = replace(same, seen=found.seen)
    tokenizer = tokenizer if tokenizer is not None else tokenizer_of(sources)
    return _Tried(found, _reference_of(found, tokenizer, name, notes), tokenizer)


def _kind(found: Found) -> str:
    return f"`{type(found.caller.module).__name__}`"


def _reference_of(found: Found, tokenizer: Any, name: str, notes: tuple[str, ...]) -> Reference:
    caller, sources = found.caller, found.seen.sources
    device = device_of(caller.module)
    n_ctx = declared(sources, CONTEXT_NAMES)
    seen, fits = found.seen, _usable(caller.convention, n_ctx)
    known = ids_beside(caller.module) if tokenizer is None else tokenizer
    space, space_notes = token_space(sources, known, found.vocabulary, found.width, fits, seen.padding, seen.special)
    if n_ctx is None:
        space = replace(space, n_ctx=_context_by_trial(caller, device, found.lengths))
    tokens = _trial_tokens(found, space, device)
    with noticing(caller):
        short = _finite_logits(caller, tokens[0], name, space.d_vocab)
    long = _finite_logits(caller, tokens[1], name, space.d_vocab)
    try:
        mixed = _check_causal(caller, tokens[0], short, space.d_vocab, name)
    except ModelError:
        if caller.convention.outputs is not None and caller.convention.outputs.short:
            raise ModelError(f"{name} gives logits for all positions but one, and the first one's are missing: {WRAP}") from None
        raise
    notes += (*caller.convention.notes, *space_notes, *mixed)
    steady = not any(note.startswith(MIXED) for note in notes) and _is_steady(caller, tokens[0], short, space.d_vocab, name)
    if caller.convention.multiple > 1:
        _check_filling(caller, tokens[0], short, space.d_vocab, name)
    return Reference(tokens, (short, long), space, notes, steady)


def _usable(convention: CallConvention, n_ctx: int | None) -> int | None:
    """How many positions fit into a context where rows are filled up."""
    if n_ctx is None or convention.length(n_ctx) <= n_ctx:
        return n_ctx
    return n_ctx // convention.multiple * convention.multiple - (convention.length(convention.multiple) - convention.multiple)


def _trial_tokens(found: Found, space: TokenSpace, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random ordinary ids of two lengths, the shorter ones the beginning of the longer ones."""
    multiple = found.caller.convention.multiple
    longest = min(found.lengths[1], found.caller.convention.length(space.n_ctx or found.lengths[1]))
    generator = torch.Generator().manual_seed(0)
    ordinary = torch.tensor(space.ordinary or [0])
    ids = ordinary[torch.randint(0, len(ordinary), (found.rows, longest), generator=generator)].to(device)
    shorter = min(found.lengths[0], longest - multiple)
    return (ids[:, :shorter], ids) if shorter > 0 else (ids, ids.flip(1))


def _logits(caller: Caller, tokens: Tensor, name: str) -> Tensor:
    try:
        return caller.logits(tokens)
    except InductionError as error:
        raise ModelError(f"{name}: {error}") from None
    except Exception as error:  # whatever a user's model may raise
        if is_out_of_memory(error):
            raise
        largest = int(tokens.max())
        advice = f"; token id {largest} may be beyond its vocabulary: give the module the attribute `vocab_size`"
        failed = ModelError(
            f"{name} must map token ids (batch, positions) to logits; given {tuple(tokens.shape)} it raised "
            f"{type(error).__name__}: {first_line(error)}{advice if isinstance(error, IndexError) else ''}"
        )
        raise because_of(failed, error, by_factory=False) from error


def _finite_logits(caller: Caller, tokens: Tensor, name: str, d_vocab: int) -> Tensor:
    """Those logits by which passes are compared, once all of them were seen to be finite."""
    logits = _logits(caller, tokens, name)
    if not is_finite(logits[..., :d_vocab]):
        raise ModelError(f"the logits of {name} are not finite (NaN or infinity): check its weights, or load it in float32")
    return compared(logits, d_vocab).clone()  # so that the others are not kept


def _compared_logits(caller: Caller, tokens: Tensor, name: str, d_vocab: int) -> Tensor:
    """Those logits by which passes are compared."""
    return compared(_logits(caller, tokens, name), d_vocab).clone()  # so that the others are not kept


def _check_weights(module: nn.Module, name: str) -> None:
    """A kernel may turn a broken weight into an innocent number, so the weights themselves are looked at."""
    if any(weight.is_meta for weight in module.parameters()) and not is_offloaded(module):
        raise ModelError(f"{name} lies on the meta device and has no weights: load or initialise them")
    lazy = next((path for path, weight in module.named_parameters() if is_lazy(weight)), "")
    if lazy:
        raise ModelError(f"the weight `{lazy}` of {name} has no values yet, because its module is lazy: run the model once first")
    broken = broken_weights(module)
    if broken:
        others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ModelError(f"the weight `{broken[0]}` of {name}{others} holds NaN or infinity")


def _is_steady(caller: Caller, tokens: Tensor, logits: Tensor, d_vocab: int, name: str) -> bool:
    """Whether rows by themselves have the logits that they have among others: two of them, as one may rule the others."""
    if len(tokens) == 1:
        return True
    alone = torch.cat([_compared_logits(caller, tokens[row, None], name, d_vocab) for row in (0, -1)])
    return difference(alone, logits[[0, -1]]) <= close_to(logits)


def _check_filling(caller: Caller, tokens: Tensor, logits: Tensor, d_vocab: int, name: str) -> None:
    """What a row is filled up with behind must change nothing before it."""
    multiple = caller.convention.multiple
    kept = max(1, tokens.shape[1] - max(2, multiple // 2))
    other = tokens.clone()
    other[:, kept:] = (tokens[:, kept:] + 1) % d_vocab
    change = difference(_compared_logits(caller, other, name, d_vocab)[:, :kept], logits[:, :kept])
    if not change <= close_to(logits):
        raise ModelError(
            f"{name} takes lengths that are multiples of {multiple} only, and what stands behind a row changes what "
            f"is before it by {change:.2g}: wrap it so that it takes any length"
        )


def _check_causal(caller: Caller, ids: Tensor, logits: Tensor, d_vocab: int, name: str) -> tuple[str, ...]:
    """Another last token must leave the logits before it as they were, and the same tokens must give the same logits.

    Where the rows beside a row change its logits as well, as they do under dynamic quantisation, whose scale is that of the
    whole batch, the last token may do no more than they do. A note says so.
    """

    def predicted(tokens: Tensor) -> Tensor:
        return _compared_logits(caller, tokens, name, d_vocab)

    def with_other_last(tokens: Tensor) -> Tensor:
        other = tokens.clone()
        other[:, -1] = (tokens[:, -1] + 1) % d_vocab
        return predicted(other)

    def change_by_last(tokens: Tensor, found: Tensor) -> float:
        """How much another last token changes the logits before it."""
        return difference(with_other_last(tokens)[:, : tokens.shape[1] - 1], found[:, : tokens.shape[1] - 1])

    changed = with_other_last(ids)
    last = ids.shape[1] - 1
    change = difference(changed[:, :last], logits[:, :last])
    if change <= close_to(logits):
        if logits.shape[1] > last and torch.equal(changed[:, last], logits[:, last]):
            _check_not_shifted(caller, ids, name)
        return ()
    if difference(predicted(ids), logits) > 0:
        raise ModelError(f"{name} gives different logits for the same tokens: it must be deterministic in evaluation mode")
    changed_ids = [(ids + step) % d_vocab for step in range(BATCH_PASSES)]
    passes = [(tokens, predicted(tokens)) for tokens in changed_ids]
    ahead = sum(change_by_last(*each) for each in passes) / BATCH_PASSES
    beside = sum(difference(predicted(tokens[:1]), found[:1]) for tokens, found in passes) / BATCH_PASSES
    if ahead > BATCH_SHARE * beside:
        raise ModelError(
            f"{name} is not causal: another last token changes earlier logits by {change:.2g}; induction needs a causal model"
        )
    return (f"{MIXED} by {beside:.2g} of their size, as dynamic quantisation does",)


def _check_not_shifted(caller: Caller, ids: Tensor, name: str) -> None:
    """Raise `ModelError` where nothing that is computed after the embedding ever sees a position's own token.

    Logits alone do not tell: a model may predict from the token before, and attend from its own.
    """

    def computed(tokens: Tensor) -> list[Tensor]:
        found: list[Tensor] = []

        def leaving(part: nn.Module, inputs: Any, output: Any) -> None:
            if part is not caller.module and not isinstance(part, nn.Embedding):
                found.extend(tensor for _, tensor in parts_of(output))

        with following_calls(caller.module, lambda *given: None, leaving):
            _logits(caller, tokens, name)
        return found

    other = ids.clone()
    other[:, -1] = ids[:, ids.shape[1] // 2]  # stands there twice then, which no head overlooks
    one, two = computed(ids), computed(other)
    if one and len(one) == len(two) and all(map(torch.equal, one, two)):
        raise _Shifted(
            f"the logits of {name} are shifted: at no position does anything depend on the token there, only on those before; "
            "give it the logits before the shift, which predict the next token"
        )


def _context_by_trial(caller: Caller, device: torch.device, lengths: tuple[int, int]) -> int | None:
    """The longest context that runs, up to the longest probe; None where that runs."""
    if lengths[0] == lengths[1]:
        return lengths[0] - (caller.convention.length(lengths[0]) - lengths[0])

    def runs(positions: int) -> bool:
        try:
            caller(torch.zeros(1, caller.convention.length(positions), dtype=torch.long, device=device))
        except Exception as error:  # whatever a user's model may raise
            if is_out_of_memory(error):
                raise
            return False
        return True

    if runs(LONGEST_TRIED):
        return None
    low, high = lengths[0], LONGEST_TRIED
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return low
