"""The analyses that are timed, each against the bare forward pass of the same model over the same tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pytest_induction.attention.scores import scores_for
from pytest_induction.behaviour.claims import assert_learns_in_context
from pytest_induction.errors import ExpectationFailed, ProbeError
from pytest_induction.forward.calling import first_line
from pytest_induction.heads.induction import assert_has_induction_head
from pytest_induction.measuring.losses import repetition
from pytest_induction.measuring.observing import observe
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.observers import collecting
from pytest_induction.probes.sequences import COPIES, SHORTEST_PERIOD, usable_ids
from pytest_induction.records import TokenSpace

if TYPE_CHECKING:
    from pytest_induction.fixture import Induction

Measure = Callable[[ModelUnderTest], Any]
LENGTHS = (512, 2048)  # positions of one sequence, beside the default probe's


class TooLong(ProbeError):
    """A sequence of this length does not fit the model: there is nothing to time."""


@dataclass(frozen=True)
class Analysis:
    """Something to time: `prepare` makes it, for the session's model and text. Only what is `judged` is held to a bound."""

    name: str
    group: str
    prepare: Callable[[Induction], Measure]
    judged: bool = False


def analyses(*, with_text: bool) -> Iterator[Analysis]:
    """Everything that is timed, the cheapest first."""
    lengths = {"probe": None, **{str(positions): positions for positions in LENGTHS}}
    for label, positions in lengths.items():
        yield Analysis(f"forward[{label}]", "forward", partial(forward, positions=positions))
    for label, positions in lengths.items():
        yield Analysis(f"scores[{label}]", "scores", partial(scores, positions=positions), judged=True)
    yield Analysis("behaviour", "behaviour", behaviour)
    yield Analysis("has_induction_head", "verdicts", has_induction_head)
    if with_text:
        yield Analysis("learns_in_context", "verdicts", learns_in_context)


def forward(induction: Induction, positions: int | None) -> Measure:
    """The bare forward pass: no logits where the model has a base model without them, nothing observed."""
    tokens = rows(induction, positions)
    return lambda subject: bare(subject, tokens)


def scores(induction: Induction, positions: int | None) -> Measure:
    """The four scores of every head."""
    tokens = rows(induction, positions)
    scored = scores_for(tokens)
    return lambda subject: observe(subject, tokens, scored)


def behaviour(induction: Induction) -> Measure:
    """Logits, and from them loss, accuracy and advantage on repeated tokens."""
    probe = induction.probe()
    tokens = torch.from_numpy(probe.tokens).to(induction.model.device)
    return lambda subject: repetition(subject.logits(tokens), tokens, period=probe.period, start=probe.start)


def has_induction_head(induction: Induction) -> Measure:
    """A whole verdict: all rounds of probes that it takes, intervals, provenance."""

    def decide(subject: ModelUnderTest) -> None:
        with collecting(), suppress(ExpectationFailed):
            assert_has_induction_head(subject, seed=induction.seed)

    return decide


def learns_in_context(induction: Induction) -> Measure:
    """A whole verdict on the session's text."""

    def decide(subject: ModelUnderTest) -> None:
        with collecting(), suppress(ExpectationFailed):
            assert_learns_in_context(subject, induction.text, seed=induction.seed)

    return decide


def bare(subject: ModelUnderTest, tokens: Tensor) -> None:
    """The forward pass that an analysis is compared with."""
    if isinstance(subject, Recorder):
        subject.batches.append(tokens)
    with torch.no_grad():
        subject.caller(tokens, logits=False)


def rows(induction: Induction, positions: int | None) -> Tensor:
    """The default probe, or one row of repeated tokens of that length. Raises `TooLong` where it does not fit."""
    subject = induction.model
    ids = induction.probe().tokens if positions is None else _long_row(subject.space, positions, induction.seed)
    tokens = torch.from_numpy(ids).to(subject.device)
    if positions is not None and subject.space.n_ctx is None:
        _try(subject, tokens)
    return tokens


def _try(subject: ModelUnderTest, tokens: Tensor) -> None:
    """Find out whether a model that does not tell its context runs on so many positions."""
    unknown = f"{subject.name} does not tell its context, and {tokens.shape[1]} positions"
    if subject.device.type != "cpu":  # where an index out of range may cost the whole process its device
        raise TooLong(f"{unknown} are tried on the CPU only")
    try:
        bare(subject, tokens)
    except (RuntimeError, IndexError, ValueError) as error:
        raise TooLong(f"{unknown} do not run: {first_line(error)}") from error


def _long_row(space: TokenSpace, positions: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """As many different tokens as make four copies, or more copies where the vocabulary has not so many."""
    if space.n_ctx is not None and positions > space.n_ctx:
        raise TooLong(f"{positions} positions do not fit the context of {space.n_ctx}")
    begin = [] if space.bos_id is None else [space.bos_id]
    ids = usable_ids(space)
    period = min(len(ids), math.ceil((positions - len(begin)) / COPIES))
    if period < SHORTEST_PERIOD:
        raise ProbeError(f"a probe needs at least {SHORTEST_PERIOD} usable token ids, the model has {len(ids)}")
    block = np.random.default_rng([seed, 4]).choice(ids, period, replace=False)
    return np.concatenate([begin, np.resize(block, positions - len(begin))]).astype(np.int64)[None]


def fresh(subject: ModelUnderTest) -> ModelUnderTest:
    """The same model with nothing remembered, so that a second run measures again: what it remembers is in private fields."""
    remembered: dict[str, Any] = {each.name: {} for each in fields(subject) if each.name.startswith("_")}
    return replace(subject, **remembered)


class Recorder(ModelUnderTest):
    """The same model with nothing remembered, which notes what token ids it is run on."""

    def __init__(self, subject: ModelUnderTest) -> None:
        vars(self).update(vars(fresh(subject)))
        self.batches: list[Tensor] = []

    def logits(self, tokens: Tensor, *arguments: Any, **options: Any) -> Tensor:
        self.batches.append(tokens)
        return super().logits(tokens, *arguments, **options)

    def observe(self, tokens: Tensor, *arguments: Any, **options: Any) -> Tensor | None:
        self.batches.append(tokens)
        return super().observe(tokens, *arguments, **options)


def batches_of(measure: Measure, subject: ModelUnderTest) -> list[Tensor]:
    """The token ids that an analysis runs the model on, batch by batch, on the model's device."""
    recorder = Recorder(subject)
    measure(recorder)
    return [tokens.to(subject.device) for tokens in recorder.batches]
