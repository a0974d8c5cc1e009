"""One snapshot of a model in training, always on the same sequences; and that model, made and checked once."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pytest_induction.attention.backend import Attach
from pytest_induction.attention.scores import SCORES
from pytest_induction.behaviour.matches import matches_of, mean_of_tokens
from pytest_induction.behaviour.text import row_losses, rows_of, window_mean, windows_of
from pytest_induction.errors import ArgumentError, InductionError, ModelError, ProbeError
from pytest_induction.forward.calling import device_of, first_line, uncompiled
from pytest_induction.heads.criteria import excess
from pytest_induction.measuring.added import HeadScoreError
from pytest_induction.measuring.observing import PERIODS_AT_ONCE, Array, provenance
from pytest_induction.measuring.rounds import Drawn, Round, draw, measured_round
from pytest_induction.model.adapt import adapt
from pytest_induction.model.batching import SHARE_OF_FREE, free_memory
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.observers import attached
from pytest_induction.ranges import is_finite
from pytest_induction.records import Provenance, TokenSpace
from pytest_induction.runs.asked_for import NOTHING, Asked, AskedFor
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.together import is_spread, least_of, let_go, made_ready, why_not_together

SEQUENCES = 12  # of repeated tokens: two for each of six periods
FEWEST_SEQUENCES = 3  # of the lightest snapshot, and of a quick check
TRIED_ROWS = 2  # of the text, before a run begins
TEXT_ROWS = 256
TOKEN_LOSSES = 1024  # of the text, of which each loss is kept: 2.7 kB a snapshot
LARGEST_HALF = 65_504.0  # that half precision holds


@dataclass(frozen=True)
class Measuring:
    """What every snapshot of a run measures: heads and behaviour on repeated tokens; losses of a held-out text, if there is one.

    `text` is a string, a path or token ids, as for `assert_learns_in_context`. `token_losses` says of how many of its tokens each
    loss is kept, for the path of a training in the space of losses: about so many, fixed ones, as many from every row; True for
    one from each row, as in the paper, False or 0 for none. They are kept in half precision (three digits).

    `asked` is what is measured only if it is asked for.
    """

    n_sequences: int = SEQUENCES
    seed: int = 0
    text: Any = None
    max_rows: int = TEXT_ROWS
    token_losses: int = TOKEN_LOSSES
    most_periods: int = PERIODS_AT_ONCE
    asked: Asked = field(default=NOTHING, compare=False)
    _kept: dict[TokenSpace, NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)
    _drawn: dict[tuple[TokenSpace, int, int], tuple[Drawn, ...]] = field(default_factory=dict, repr=False, compare=False)
    _foretold: dict[TokenSpace, NDArray[np.bool_]] = field(default_factory=dict, repr=False, compare=False)
    _asked: dict[tuple[TokenSpace, int], AskedFor] = field(default_factory=dict, repr=False, compare=False)
    _seen: Round | None = field(default=None, repr=False, compare=False)
    _failed: list[str] = field(default_factory=list, repr=False, compare=False)

    def lighter(self) -> list[Measuring]:
        """The same and what costs less, the dearest first: half of the sequences, without text too, and three without text.

        Those without text are without what is measured only if it is asked for, too, and so are those of three sequences.
        Fewer sequences are of fewer periods, as each period takes a pass of its own. The lightest are of one.
        """
        count = self.n_sequences // 2
        half = replace(self, n_sequences=count, most_periods=max(1, self.most_periods // 2))
        plain = replace(self, text=None, asked=NOTHING)
        lightest = replace(plain, n_sequences=min(FEWEST_SEQUENCES, self.n_sequences), most_periods=1)
        without = replace(plain, n_sequences=half.n_sequences, most_periods=half.most_periods)
        halves = [half] if self.text is None else [half, without]
        return [self, *(halves if count > FEWEST_SEQUENCES else []), lightest]

    def check_text(self, subject: ModelUnderTest) -> None:
        """Raise what keeps the text from being measured: it cannot be encoded, or the model fails on its rows."""
        if self.text is not None:
            rows = self._rows(subject)
            windows_of(subject, rows)
            row_losses(subject, rows[:TRIED_ROWS])

    def check_asked_for(self, subject: ModelUnderTest) -> None:
        """Raise what keeps that from being measured which is measured only if it is asked for: the model is too small for it."""
        if self.asked:
            few = replace(self, n_sequences=min(FEWEST_SEQUENCES, self.n_sequences))
            few.asked_for(subject)

    def quick_check(self, subject: ModelUnderTest) -> Round:
        """One pass of a few sequences, for `signs_of`; `with_round` makes the lightest snapshot of it."""
        return self.lighter()[-1].round_of(subject)

    def with_round(self, seen: Round) -> Measuring:
        """The same, where the round was measured already: that of the model as it is now."""
        return replace(self, _seen=seen)

    def snapshot(self, subject: ModelUnderTest, step: int, tokens: int | None = None, loss: float | None = None) -> Snapshot:
        """Measure the model as it is now. What cannot be measured, as of a model that has diverged, is left out and said why."""
        began = time.perf_counter()
        problems: list[str] = []
        found: dict[str, Any] = {}
        errors: dict[str, Any] = {}
        rows: dict[str, Any] = {}
        if loss is not None and not is_finite(loss):
            problems.append(f"the loss is {loss}")
            loss = None
        for measure in (self._repeats, self._in_context, self.asked_for):
            try:
                values, spreads = measure(subject)
            except ModelError as error:
                problems.append(str(error).splitlines()[0])
            else:
                rows |= values.pop("rows", {})
                found |= values
                errors |= spreads
        problems += dict.fromkeys(self._failed)
        self._failed.clear()
        return Snapshot(
            step,
            tokens=tokens,
            loss=loss,
            errors=errors,
            rows=rows,
            n_sequences=self.n_sequences,
            fingerprint=subject.fingerprint(),
            seconds=time.perf_counter() - began,
            problem="; ".join(problems),
            **found,
        )

    def header(self, subject: ModelUnderTest) -> dict[str, Any]:
        """What `run.json` says of the measurements."""
        described: dict[str, Any] = {"about": self._about(subject).to_dict()}
        if self.text is not None:
            first_token, windows = windows_of(subject, self._rows(subject))
            described |= {"icl_windows": [list(windows.early), list(windows.late)], "first_token": first_token}
        return described

    def _about(self, subject: ModelUnderTest) -> Provenance:
        text = "" if self.text is None else f", {len(self._rows(subject))} rows of text"
        probe = f"repeated tokens{text}"
        return provenance(subject, seed=self.seed, n_sequences=self.n_sequences, probe=probe)

    def _rows(self, subject: ModelUnderTest) -> NDArray[np.int64]:
        """The rows of the text; to encode them takes longer than to measure a small model."""
        if subject.space not in self._kept:
            self._kept[subject.space] = rows_of(subject, self.text, self.max_rows)
        return self._kept[subject.space]

    def round_of(self, subject: ModelUnderTest) -> Round:
        """Heads and behaviour on repeated tokens, drawn once."""
        key = (subject.space, self.n_sequences, self.most_periods)
        if key not in self._drawn:
            rng = np.random.default_rng([self.seed, 1, 0])
            self._drawn[key] = draw(subject, self.n_sequences, rng, self.most_periods)
        try:
            return measured_round(subject, self._drawn[key])
        except HeadScoreError as error:  # of the user: what the package measures is not lost for it
            self._failed.append(first_line(error))
            return measured_round(subject, self._drawn[key], added=())

    def _repeats(self, subject: ModelUnderTest) -> tuple[dict[str, Any], dict[str, Any]]:
        seen = self._seen or self.round_of(subject)
        behaviour = {
            "first_loss": seen.behaviour["first_loss"],
            "repeat_loss": seen.behaviour["repeat_loss"],
            "repeat_accuracy": seen.behaviour["repeat_accuracy"],
            "advantage": seen.behaviour["advantage"],
        }
        found: dict[str, Any] = {name: float(values.mean()) for name, values in behaviour.items()}
        errors: dict[str, Any] = {name: float(_error(values)) for name, values in behaviour.items()}
        found["rows"] = {"advantage": behaviour["advantage"].astype(np.float32)}
        if subject.backend is not None:
            for name, values in _heads(seen).items():
                found[name] = values.mean(axis=0).astype(np.float32)
                if name in ("prefix_matching", "excess"):
                    errors[name] = _error(values).astype(np.float32)
            added = {name: values for name, values in seen.scores.items() if name in seen.added}
            found["added"] = {name: values.mean(axis=0).astype(np.float32) for name, values in added.items()}
        return found, errors

    def _in_context(self, subject: ModelUnderTest) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.text is None:
            return {}, {}
        rows = self._rows(subject)
        losses = row_losses(subject, rows)
        first_token, windows = windows_of(subject, rows)
        early, late = (window_mean(losses, span, first_token) for span in (windows.early, windows.late))
        found = {
            "icl_score": float((late - early).mean()),
            "early_loss": float(early.mean()),
            "late_loss": float(late.mean()),
            "icl_rows": (late - early).astype(np.float32),
            "index_losses": losses.mean(axis=0).astype(np.float32),
        }
        if self.token_losses:
            chosen = fixed_tokens(self.seed, losses, self.token_losses)
            found["token_losses"] = np.minimum(losses.flat[chosen], LARGEST_HALF).astype(np.float16).astype(np.float32)
        foretold, spread = self._by_match(subject, rows, losses)
        return found | foretold, {"icl_score": float(_error(late - early)), **spread}

    def _by_match(self, subject: ModelUnderTest, rows: NDArray[np.int64], losses: Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """What tokens cost that a match in their row foretells, and all others: of the same losses, at next to no cost."""
        if subject.space not in self._foretold:
            self._foretold[subject.space] = matches_of(rows).foretold
        foretold = self._foretold[subject.space]
        if not foretold.any() or foretold.all():
            return {}, {}
        one, other = (mean_of_tokens((losses * taken).sum(1), taken.sum(1)) for taken in (foretold, ~foretold))
        gaps = other - one
        found = {"foretold_loss": float(one.mean()), "other_loss": float(other.mean()), "foretold_gap": float(gaps.mean())}
        return found | {"rows": {"foretold_gap": gaps.astype(np.float32)}}, {"foretold_gap": float(_error(gaps))}

    def asked_for(self, subject: ModelUnderTest) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a snapshot has only where it was asked for."""
        if not self.asked:
            return {}, {}
        key = (subject.space, self.n_sequences)
        if key not in self._asked:
            self._asked[key] = AskedFor(subject.space, self.n_sequences, self.seed, self.asked)
        try:
            rows, heads = self._asked[key].measure(subject)
        except (ArgumentError, ProbeError) as error:
            raise ModelError(first_line(error)) from error
        found: dict[str, Any] = {name: float(values.mean()) for name, values in rows.items()}
        found |= {name: values.astype(np.float32) for name, values in heads.items()}
        found["rows"] = {name: values.astype(np.float32) for name, values in rows.items()}
        return found, {name: float(_error(values)) for name, values in rows.items()}


def fixed_tokens(seed: int, losses: Array, count: int) -> NDArray[np.int64]:
    """Which losses (rows, tokens) are kept, as places in the flat array, row after row: as many of each row.

    Of fewer than there are rows one of each of so many rows, evenly spread.
    """
    n_rows, n_tokens = losses.shape
    count = n_rows if count is True else count
    rows = np.arange(n_rows) if count >= n_rows else np.linspace(0, n_rows - 1, count).round().astype(np.int64)
    each = min(max(1, count // n_rows), n_tokens)
    drawn = np.random.default_rng([seed, 2]).random((n_rows, n_tokens)).argsort(axis=1)[:, :each]
    return (rows[:, None] * n_tokens + np.sort(drawn[rows], axis=1)).ravel()


def signs_of(seen: Round) -> dict[str, float]:
    """What tells whether something has changed: the advantage, and prefix matching of the best head where heads can be read."""
    signs = {"advantage": float(seen.behaviour["advantage"].mean())}
    if seen.scores:
        signs["prefix_matching"] = float(np.nanmax(seen.scores["prefix_matching"].mean(axis=0)))
    return signs


def _heads(seen: Round) -> dict[str, Array]:
    """Scores of each head on each sequence, (sequences, n_layers, n_heads)."""
    return {**{name: seen.scores[name] for name in SCORES}, "excess": excess(seen.scores)}


def _error(values: Array) -> Any:
    """The standard error of the mean over the first axis."""
    return values.std(axis=0, ddof=1) / math.sqrt(len(values))


class Subject:
    """Turns the module that a training calls its model into a model under test.

    One that failed is tried again, for weights may be finite later; but not at once, for each attempt takes time: after one more
    snapshot, then after two, four, eight.
    """

    def __init__(self, *, seed: int, attach: Attach | Sequence[Attach], tokenizer: Any, without_pattern: Sequence[str]) -> None:
        self._seed = seed
        self._without = without_pattern
        self._attach = (attach,) if callable(attach) else tuple(attach)
        self._tokenizer = tokenizer
        self._module: object = None
        self._made: ModelUnderTest | None = None
        self._failure = ""
        self._patience = self._wait = 0
        self._placed: object = None
        self._is_spread = False

    def is_spread(self, model: nn.Module | ModelUnderTest) -> bool:
        """Whether a pass of the model needs every process of the training; looked at once for each object."""
        if model is not self._placed:
            module = unwrapped(model) if isinstance(model, nn.Module) else model.module
            self._placed, self._is_spread = model, is_spread(module)
        return self._is_spread

    def known(self, model: nn.Module | ModelUnderTest) -> ModelUnderTest | None:
        """The model under test of this module, if it was made already."""
        return self._made if model is self._module else None

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Take this one, if no other was given."""
        if self._tokenizer is None:
            self._tokenizer = tokenizer

    def of(self, model: nn.Module | ModelUnderTest) -> ModelUnderTest:
        """The model under test of this module. Raises `ModelError` where it cannot be one, and whatever it raises itself."""
        if model is not self._module:
            self._module, self._made, self._failure = model, None, ""
            self._patience, self._wait = 1, 0
        if self._made is not None:
            return self._made
        if self._wait > 0:
            self._wait -= 1
            raise ModelError(self._failure)
        try:
            self._made = self._make(model)
        except Exception as error:
            self._failure = (
                first_line(error) if isinstance(error, InductionError) else f"{type(error).__name__}: {first_line(error)}"
            )
            self._patience, self._wait = 2 * self._patience, self._patience
            raise
        return self._made

    def forget(self) -> None:
        """Try the next model anew, though it be the one that failed."""
        self._module = self._made = None

    def _make(self, model: nn.Module | ModelUnderTest) -> ModelUnderTest:
        if not isinstance(model, nn.Module):
            return load_model(model, seed=self._seed, without_pattern=self._without)
        check_can_run(model)
        module = unwrapped(model)
        attach = (*self._attach, *attached())
        memory = None
        if is_spread(module):  # as many rows share a pass in every process
            made_ready(module)
            device = device_of(module)
            memory = least_of(int(SHARE_OF_FREE * free_memory(device)), device)
        settings: dict[str, Any] = {"attach": attach, "without_pattern": self._without, "memory": memory}
        return adapt(module, tokenizer=self._tokenizer, seed=self._seed, **settings)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that `DistributedDataParallel` has wrapped: a pass of the wrapper may wait for the other processes."""
    inner = uncompiled(module)
    return inner.module if isinstance(inner, DistributedDataParallel) else module


def check_can_run(model: nn.Module | ModelUnderTest) -> None:
    """Raise `ModelError` for a model of which no process has all heads. Every process can ask, and gets the same answer."""
    module = unwrapped(model) if isinstance(model, nn.Module) else model.module
    why = why_not_together(module) if is_spread(module) else ""
    if why:
        raise ModelError(f"`{type(module).__name__}` cannot be measured while it trains: {why}: measure its checkpoints instead")


def in_one_line(error: Exception) -> str:
    """What an error says in one line: ours speak for themselves, others with their kind."""
    words = first_line(error)
    return words if isinstance(error, InductionError) else f"{type(error).__name__}: {words}"


def let_go_of(model: nn.Module | ModelUnderTest) -> None:
    """Let a model that is spread keep no more than its shards, as between the steps of its training."""
    let_go(model if isinstance(model, nn.Module) else model.module)


def place_of(model: nn.Module | ModelUnderTest) -> torch.device:
    """The device that the model is on."""
    return model.device if isinstance(model, ModelUnderTest) else device_of(model)


def wait_for(model: nn.Module | ModelUnderTest) -> None:
    """Let the device finish the steps that it was given, which are the training's."""
    device = place_of(model)
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
