"""One snapshot of a model in training, always on the same sequences, so that curves are smooth."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import ModelError
from pytest_induction.measure import Drawn, Round, draw, measured_round
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.observing import PERIODS_AT_ONCE, Array, provenance
from pytest_induction.ranges import is_finite
from pytest_induction.records import Provenance, TokenSpace
from pytest_induction.runs.record import Snapshot
from pytest_induction.text import row_losses, rows_of, window_mean, windows_of

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
    """

    n_sequences: int = SEQUENCES
    seed: int = 0
    text: Any = None
    max_rows: int = TEXT_ROWS
    token_losses: int = TOKEN_LOSSES
    most_periods: int = PERIODS_AT_ONCE
    _kept: dict[TokenSpace, NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)
    _drawn: dict[tuple[TokenSpace, int, int], tuple[Drawn, ...]] = field(default_factory=dict, repr=False, compare=False)
    _seen: Round | None = field(default=None, repr=False, compare=False)

    def lighter(self) -> list[Measuring]:
        """The same and what costs less, the dearest first: half of the sequences, without text too, and three without text.

        Fewer sequences are of fewer periods, as each period takes a pass of its own. The lightest are of one.
        """
        count = self.n_sequences // 2
        half = replace(self, n_sequences=count, most_periods=max(1, self.most_periods // 2))
        lightest = replace(self, n_sequences=min(FEWEST_SEQUENCES, self.n_sequences), most_periods=1, text=None)
        halves = [half] if self.text is None else [half, replace(half, text=None)]
        return [self, *(halves if count > FEWEST_SEQUENCES else []), lightest]

    def check_text(self, subject: ModelUnderTest) -> None:
        """Raise what keeps the text from being measured: it cannot be encoded, or the model fails on its rows."""
        if self.text is not None:
            rows = self._rows(subject)
            windows_of(subject, rows)
            row_losses(subject, rows[:TRIED_ROWS])

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
        if loss is not None and not is_finite(loss):
            problems.append(f"the loss is {loss}")
            loss = None
        for measure in (self._repeats, self._in_context):
            try:
                values, spreads = measure(subject)
            except ModelError as error:
                problems.append(str(error).splitlines()[0])
            else:
                found |= values
                errors |= spreads
        return Snapshot(
            step,
            tokens=tokens,
            loss=loss,
            errors=errors,
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
        return measured_round(subject, self._drawn[key])

    def _repeats(self, subject: ModelUnderTest) -> tuple[dict[str, Any], dict[str, Any]]:
        seen = self._seen or self.round_of(subject)
        behaviour = {
            "first_loss": seen.behaviour["first_loss"],
            "repeat_loss": seen.behaviour["later_loss"],
            "repeat_accuracy": seen.behaviour["later_accuracy"],
            "advantage": seen.behaviour["advantage"],
        }
        found: dict[str, Any] = {name: float(values.mean()) for name, values in behaviour.items()}
        errors: dict[str, Any] = {name: float(_error(values)) for name, values in behaviour.items()}
        if subject.way is not None:
            for name, values in _heads(seen).items():
                found[name] = values.mean(axis=0).astype(np.float32)
                if name in ("prefix_matching", "excess"):
                    errors[name] = _error(values).astype(np.float32)
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
        return found, {"icl_score": float(_error(late - early))}


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
    if seen.heads.ndim > 2:
        signs["prefix_matching"] = float(np.nanmax(seen.heads[:, 0].mean(axis=0)))
    return signs


def _heads(seen: Round) -> dict[str, Array]:
    """Scores of each head on each sequence, (sequences, n_layers, n_heads)."""
    names = ("prefix_matching", "previous_token", "duplicate_token", "first_token")
    return {**{name: seen.heads[:, index] for index, name in enumerate(names)}, "excess": seen.excess}


def _error(values: Array) -> Any:
    """The standard error of the mean over the first axis."""
    return values.std(axis=0, ddof=1) / math.sqrt(len(values))
