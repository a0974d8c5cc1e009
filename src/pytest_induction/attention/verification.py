"""Which backend reads a model: the first that sees every layer on a few tokens, and changes nothing.

Verified before anything is measured, for sequences of two lengths: the same logits while it reads; attention rows that sum to one
over the positions up to the query; patterns that are each row's own; and nothing that moves information between positions but
the layers seen, and what is known to have no pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pytest_induction.attention.backend import Attach, AttentionBackend, VerificationInputs
from pytest_induction.attention.backends import BACKENDS
from pytest_induction.attention.errors import BackendNotApplicable, BackendUnavailable
from pytest_induction.attention.leaks import mixes_by_fixed_shares, mixing_modules
from pytest_induction.attention.pattern import ChunkedReader, JoinedReader, LogSumExpReader, PatternReader, Reader
from pytest_induction.errors import InductionError
from pytest_induction.forward.calling import Caller, close_to, difference, first_line, is_out_of_memory, quoted
from pytest_induction.forward.standing import Standing
from pytest_induction.records import TokenSpace

OTHER_ROWS = 1e-2  # what a pattern may change by with the rows beside it
ROW_SUMS = {torch.float64: 1e-6, torch.float32: 1e-3}  # what the sum over a row may miss 1 by
ROW_SUMS_HALF = 2e-2
ROWS_COMPARED = 2  # of which one is exchanged up to its first token, and one up to its middle, to see what that reaches
COMPARED = 4096  # ids of a larger vocabulary, about, whose logits are compared


class Reference(NamedTuple):
    """What the model gave for a few valid token ids of two lengths before anything read it; its logits are those `compared`."""

    tokens: tuple[Tensor, Tensor]
    logits: tuple[Tensor, Tensor]
    space: TokenSpace
    notes: tuple[str, ...]
    steady: bool  # whether what a row gets does not depend on the rows beside it
    declared: tuple[str, ...] = ()  # modules that are said to have no pattern, by path or class

    @property
    def usable(self) -> list[int]:
        """Ids that are ordinary tokens."""
        return self.space.ordinary


def compared(logits: Tensor, d_vocab: int) -> Tensor:
    """The logits (rows, positions, d_vocab) by which passes are compared: those of ids spread over a large vocabulary.

    There are a few times more of them than numbers in most residual streams, of which all logits are made.
    """
    return logits[..., : d_vocab : max(1, d_vocab // COMPARED)]


def find_backend(
    caller: Caller, reference: Reference, attach: Sequence[Attach], *, expected: int | None, hooked: bool
) -> tuple[AttentionBackend | None, tuple[str, ...]]:
    """The first backend that sees every layer and changes nothing, and why those before it do not serve."""
    refusals: list[tuple[str, bool]] = []
    inputs = VerificationInputs(*reference.tokens, expected, attach)
    for kind in BACKENDS:
        try:
            backend = kind(caller, inputs)
            verify(backend, caller, reference)
            if backend.learns_chunks:
                backend.is_chunked_from = partial(_learn_chunks, backend, inputs, reference)
            backend.can_stop = not hooked and _can_stop(backend, caller, reference)
        except InductionError:
            raise
        except Exception as error:  # a model may mind being read in any way
            if is_out_of_memory(error):
                raise
            why = str(error) if isinstance(error, BackendUnavailable) else f"{type(error).__name__}: {first_line(error)}"
            refusals.append((f"{kind.name}: {why}", isinstance(error, BackendNotApplicable)))
        else:
            return backend, tuple(refusal for refusal, is_stranger in refusals if not is_stranger)
    return None, tuple(refusal for refusal, _ in refusals)


def _learn_chunks(backend: AttentionBackend, inputs: VerificationInputs, reference: Reference, positions: int) -> bool:
    """Whether the queries of sequences as long as this come in chunks, which no shorter ones showed; the backend knows it then.

    It is verified on as many positions.
    """
    usable, caller = torch.tensor(reference.usable), backend.caller
    chosen = torch.randint(0, len(usable), (len(inputs.long), positions), generator=torch.Generator().manual_seed(0))
    tokens = usable[chosen].to(inputs.long.device)
    try:
        other = type(backend)(caller, inputs._replace(long=tokens))
    except BackendUnavailable:
        return False
    if not other.chunked or not reference.steady or (other.layers, other.heads) != (backend.layers, backend.heads):
        return False
    logits = reference.logits[0], compared(caller.logits(tokens), reference.space.d_vocab)
    verify(other, caller, reference._replace(tokens=(inputs.short, tokens), logits=logits))
    vars(backend).update({**vars(other), "can_stop": backend.can_stop, "notes": backend.notes})
    return True


def verify(backend: AttentionBackend, caller: Caller, reference: Reference) -> None:
    """Raise `BackendUnavailable` unless what the backend reads is attention, each row's own, and all that there is."""
    seen = [
        _check_reading(backend, tokens, logits, reference.space.d_vocab)
        for tokens, logits in zip(reference.tokens, reference.logits, strict=True)
    ]
    backend.learn_base(reference.tokens[0], seen[0])
    if len(reference.tokens[0]) > 1:
        _check_rows(backend, reference.tokens[0], seen[0])
    if reference.steady and backend.can_isolate:
        tokens = reference.tokens[1][:ROWS_COMPARED]
        mixing = mixing_modules(
            caller,
            tokens,
            reference.usable,
            backend.layers,
            lambda: backend.self_attention_only(tokens),
            fixed=mixes_by_fixed_shares,
            declared=reference.declared,
        )
        if mixing.known and not any(note.startswith("layers without") for note in backend.notes):
            named = ", ".join(quoted(path) for path in mixing.known)
            backend.notes += (f"positions are also mixed, without a pattern, by what runs in {named}",)
        if mixing.declared:
            named = ", ".join(quoted(path) for path in mixing.declared)
            backend.notes += (f"declared to mix positions without a pattern, which nothing checked: what runs in {named}",)
    else:
        backend.check_names()


def _check_reading(backend: AttentionBackend, tokens: Tensor, logits: Tensor, d_vocab: int) -> list[Tensor]:
    """Of each layer, what its heads attend to at a query's own position and the one before: (rows, heads, 2, positions)."""
    found: list[Tensor] = []

    def look(layer: int, reader: Reader) -> None:
        found.append(reader.diagonals([0, 1]))
        rows_sum_to_one(layer, reader)

    def rows_sum_to_one(layer: int, reader: Reader) -> None:
        if isinstance(reader, JoinedReader):
            for part in reader.parts:
                rows_sum_to_one(layer, part)
            return
        sums = reader.diagonals(range(tokens.shape[1])).sum(2)
        wrong = (sums - 1).clamp_min(0)  # a sink may take some of the mass out of a pattern, but nothing adds to it
        if isinstance(reader, PatternReader) and float(ahead := reader.pattern.triu(1).abs().max()) > 0:
            raise BackendUnavailable(f"attention of layer {layer} looks ahead, with up to {float(ahead):.3g}")
        rounding = torch.zeros(())
        tolerance = ROW_SUMS.get(reader.dtype, ROW_SUMS_HALF)
        if isinstance(reader, (LogSumExpReader, ChunkedReader)):
            wrong = (sums - 1).abs()
        if isinstance(reader, LogSumExpReader):
            rounding = 32 * torch.finfo(sums.dtype).eps * reader.log_sum_exp.abs().max()  # of scores that large
        if not float(wrong.max()) <= tolerance + float(rounding):
            seen = f"{float(sums.min()):.3g}..{float(sums.max()):.3g}"
            raise BackendUnavailable(f"attention of layer {layer} sums to {seen} over the positions up to the query, expected 1")

    logits_then = backend.run(tokens, None, look, logits=True)
    change = torch.inf if logits_then is None else difference(compared(logits_then, d_vocab), logits)
    if not change <= close_to(logits):
        raise BackendUnavailable(f"the logits change by {change:.2g} while the model is read")
    return found


def _check_rows(backend: AttentionBackend, tokens: Tensor, together: list[Tensor]) -> None:
    """Each row's patterns must be its own whatever rows are beside it; where they are not, rows and heads were mistaken.

    Looked at are the first row and the last, which differ from those of any other order and any other axis. `together` is what
    was read of all rows in one pass.
    """

    def read(row: int) -> list[Tensor]:
        found: list[Tensor] = []
        backend.run(tokens[[row]], None, lambda _, reader: found.append(reader.diagonals([0, 1])), logits=False)
        return found

    for row in (0, len(tokens) - 1):
        for layer, (one, all_rows) in enumerate(zip(read(row), together, strict=True)):
            if one.shape[1:] != all_rows.shape[1:] or not _is_nearest(one[0], all_rows, row):
                raise BackendUnavailable(
                    f"attention of layer {layer} has rows and heads in another order than rows first, or other rows"
                )


def _is_nearest(pattern: Tensor, all_rows: Tensor, row: int) -> bool:
    """Whether a row's pattern is the one that was read for it among others, and not as far from it as from those.

    With large scores rounding alone changes a pattern a little with the rows beside it, though not into another's.
    """
    distances = (all_rows - pattern).flatten(1).norm(dim=1)
    others = distances[[other for other in range(len(distances)) if other != row]]
    return bool(distances[row] <= max(OTHER_ROWS * float(pattern.norm()), float(others.min())))


def _can_stop(backend: AttentionBackend, caller: Caller, reference: Reference) -> bool:
    """Whether a pass may end after the last attention layer: it does end there, and the next one gives the logits as before."""
    if not backend.stops or is_offloaded(caller.module):
        return False  # accelerate moves weights before and after each module; it must not be cut off between
    tokens, before = reference.tokens[0], Standing(caller.module)
    backend.run(tokens, None, lambda layer, reader: None, logits=False, last=len(backend.layers))
    changed = before.restore()
    return not changed and bool(torch.equal(compared(caller.logits(tokens), reference.space.d_vocab), reference.logits[0]))


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate keeps weights elsewhere and fetches them for each pass."""
    return any(hasattr(part, "_hf_hook") for part in module.modules())
