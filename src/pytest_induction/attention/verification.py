"""Which way in reads a model: the first that sees every layer on a few tokens, and changes nothing.

Checked before anything is measured, for sequences of two lengths: the same logits while watched; attention rows that sum to one
over the positions up to the query; patterns that are each row's own; and nothing that moves information between positions but
the layers seen, and what is known to have no pattern.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pytest_induction.attention.backend import ListeningWay, Trials, WayIn
from pytest_induction.attention.backends.eager import EagerWay
from pytest_induction.attention.backends.exposed import Attach, ShownWay
from pytest_induction.attention.backends.flex import FlexWay
from pytest_induction.attention.backends.registry import RegistryWay
from pytest_induction.attention.backends.sdpa import SdpaWay
from pytest_induction.attention.backends.softmax import SoftmaxWay
from pytest_induction.attention.backends.transformer_lens import HookPointWay
from pytest_induction.attention.errors import NotInUse, Refused
from pytest_induction.attention.leaks import mixers, mixes_by_fixed_shares
from pytest_induction.attention.pattern import ChunkedReader, JoinedReader, LogSumExpReader, PatternReader, Reader
from pytest_induction.errors import InductionError
from pytest_induction.forward.calling import Caller, close_to, difference, first_line, is_out_of_memory, quoted
from pytest_induction.forward.standing import Standing
from pytest_induction.records import TokenSpace

WAYS: tuple[type[WayIn], ...] = (ShownWay, SdpaWay, FlexWay, RegistryWay, EagerWay, HookPointWay, SoftmaxWay)
OTHER_ROWS = 1e-2  # what a pattern may change by with the rows beside it
ROW_SUMS = {torch.float64: 1e-6, torch.float32: 1e-3}  # what the sum over a row may miss 1 by
ROW_SUMS_HALF = 2e-2


class Trial(NamedTuple):
    """What the model gave for a few valid token ids of two lengths, before anything watched it."""

    tokens: Trials
    logits: tuple[Tensor, Tensor]
    space: TokenSpace
    notes: tuple[str, ...]
    steady: bool  # whether what a row gets does not depend on the rows beside it
    declared: tuple[str, ...] = ()  # modules that are said to have no pattern, by path or class

    @property
    def usable(self) -> list[int]:
        """Ids that are ordinary tokens."""
        return self.space.ordinary


def find_way(
    caller: Caller, trial: Trial, attach: Sequence[Attach], *, expected: int | None, hooked: bool
) -> tuple[WayIn | None, tuple[str, ...]]:
    """The first way in that sees every layer and changes nothing, and what the others before it said."""
    tried: list[tuple[str, bool]] = []
    for kind in WAYS:
        try:
            way = kind(caller, trial.tokens, expected, attach) if kind is ShownWay else kind(caller, trial.tokens, expected)
            _check(way, caller, trial)
            if isinstance(way, (SdpaWay, SoftmaxWay)):
                way.is_chunked_from = partial(_learn_chunks, way, caller, trial, expected)
            way.can_stop = not hooked and _can_stop(way, caller, trial.tokens[0])
        except InductionError:
            raise
        except Exception as error:  # a model may mind being watched in any way
            if is_out_of_memory(error):
                raise
            said = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {first_line(error)}"
            tried.append((f"{kind.name}: {said}", isinstance(error, NotInUse)))
        else:
            return way, tuple(said for said, strange in tried if not strange)
    return None, tuple(said for said, _ in tried)


def _learn_chunks(way: ListeningWay, caller: Caller, trial: Trial, expected: int | None, positions: int) -> bool:
    """Whether the queries of sequences as long as this come in chunks, which the trial was too short for; the way knows it then.

    It is tried out and checked on as many positions, as in the trial.
    """
    chosen = torch.randint(0, len(trial.usable), (len(trial.tokens[1]), positions), generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor(trial.usable)[chosen].to(trial.tokens[1].device)
    try:
        other = type(way)(caller, (trial.tokens[0], tokens), expected)
    except Refused:
        return False
    if not other.chunked or not trial.steady or (other.layers, other.heads) != (way.layers, way.heads):
        return False
    longer = trial._replace(tokens=(trial.tokens[0], tokens), logits=(trial.logits[0], caller.logits(tokens)))
    _check(other, caller, longer)
    vars(way).update({**vars(other), "can_stop": way.can_stop, "notes": way.notes})
    return True


def _check(way: WayIn, caller: Caller, trial: Trial) -> None:
    """Raise `Refused` unless what the way in reads is attention, each row's own, and all that there is."""
    for tokens, logits in zip(trial.tokens, trial.logits, strict=True):
        _check_reading(way, tokens, logits)
    if len(trial.tokens[0]) > 1:
        _check_rows(way, trial.tokens[0])
    if trial.steady and way.can_isolate:
        tokens = trial.tokens[1]
        told: Mapping[str, Any] = {"fixed": mixes_by_fixed_shares, "declared": trial.declared}
        mixing = mixers(caller, tokens, trial.usable, way.layers, lambda: way.alone(tokens), **told)
        if mixing.known and not any(note.startswith("layers without") for note in way.notes):
            named = ", ".join(quoted(path) for path in mixing.known)
            way.notes += (f"positions are also mixed, without a pattern, by what runs in {named}",)
        if mixing.declared:
            named = ", ".join(quoted(path) for path in mixing.declared)
            way.notes += (f"declared to mix positions without a pattern, which nothing checked: what runs in {named}",)
    elif isinstance(way, ListeningWay):
        way.check_names()


def _check_reading(way: WayIn, tokens: Tensor, logits: Tensor) -> None:
    def rows_sum_to_one(layer: int, reader: Reader) -> None:
        if isinstance(reader, JoinedReader):
            for part in reader.parts:
                rows_sum_to_one(layer, part)
            return
        sums = reader.diagonals(range(tokens.shape[1])).sum(2)
        wrong = (sums - 1).clamp_min(0)  # a sink may take some of the mass out of a pattern, but nothing adds to it
        if isinstance(reader, PatternReader) and float(ahead := reader.pattern.triu(1).abs().max()) > 0:
            raise Refused(f"attention of layer {layer} looks ahead, with up to {float(ahead):.3g}")
        rounding = torch.zeros(())
        tolerance = ROW_SUMS.get(reader.dtype, ROW_SUMS_HALF)
        if isinstance(reader, (LogSumExpReader, ChunkedReader)):
            wrong = (sums - 1).abs()
        if isinstance(reader, LogSumExpReader):
            rounding = 32 * torch.finfo(sums.dtype).eps * reader.log_sum_exp.abs().max()  # of scores that large
        if not float(wrong.max()) <= tolerance + float(rounding):
            seen = f"{float(sums.min()):.3g}..{float(sums.max()):.3g}"
            raise Refused(f"attention of layer {layer} sums to {seen} over the positions up to the query, expected 1")

    watched = way.run(tokens, None, rows_sum_to_one, logits=True)
    change = torch.inf if watched is None else difference(watched[..., : logits.shape[-1]], logits)
    if not change <= close_to(logits):
        raise Refused(f"the logits change by {change:.2g} while the model is watched")


def _check_rows(way: WayIn, tokens: Tensor) -> None:
    """Each row's patterns must be its own whatever rows are beside it; where they are not, rows and heads were mistaken."""

    def read(rows: list[int]) -> list[Tensor]:
        found: list[Tensor] = []
        way.run(tokens[rows], None, lambda _, reader: found.append(reader.diagonals([0, 1])), logits=False)
        return found

    together = read([*range(len(tokens))])
    for row in range(len(tokens)):
        for layer, (one, all_rows) in enumerate(zip(read([row]), together, strict=True)):
            if one.shape[1:] != all_rows.shape[1:] or not _is_nearest(one[0], all_rows, row):
                raise Refused(f"attention of layer {layer} has rows and heads in another order than rows first, or other rows")


def _is_nearest(pattern: Tensor, all_rows: Tensor, row: int) -> bool:
    """Whether a row's pattern is the one that was read for it among others, and not as far from it as from those.

    With large scores rounding alone changes a pattern a little with the rows beside it, though not into another's.
    """
    distances = (all_rows - pattern).flatten(1).norm(dim=1)
    others = distances[[other for other in range(len(distances)) if other != row]]
    return bool(distances[row] <= max(OTHER_ROWS * float(pattern.norm()), float(others.min())))


def _can_stop(way: WayIn, caller: Caller, tokens: Tensor) -> bool:
    """Whether a pass may end after the last attention layer: it does end there, and leaves nothing half done."""
    if not way.stops or is_offloaded(caller.module):
        return False  # accelerate moves weights before and after each module; it must not be cut off between
    logits, before = caller.logits(tokens), Standing(caller.module)
    way.run(tokens, None, lambda layer, reader: None, logits=False, last=len(way.layers))
    changed = before.restore()
    return not changed and bool(torch.equal(caller.logits(tokens), logits))


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate keeps weights elsewhere and fetches them for each pass."""
    return any(hasattr(part, "_hf_hook") for part in module.modules())
