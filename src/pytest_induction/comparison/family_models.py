"""What is compared of the models of a family, on the same random tokens and the same rows of text for all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.behaviour.judging import MIN_ROWS
from pytest_induction.behaviour.text import row_losses, rows_of, window_mean, windows_of
from pytest_induction.comparison.families import paired
from pytest_induction.comparison.margins import HEADS, ICL, LATE, OF_MODELS, OV, ROWS, SEQUENCES, Measured
from pytest_induction.comparison.preservation import scores_of
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.forward.calling import first_line
from pytest_induction.heads.copying import ov_eigenvalues
from pytest_induction.heads.criteria import MIN_PREFIX_MATCHING, matches_by_means, min_excess
from pytest_induction.measuring.observing import Array
from pytest_induction.measuring.rounds import Round, draw_round
from pytest_induction.model.circuits import circuits_of
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.progress import progress
from pytest_induction.records import TokenSpace
from pytest_induction.statistics import Mean

REPEATS = ("repeat_accuracy", "repeat_loss")


class Models:
    """What is compared of models, on the same random tokens and the same rows of text for all of them."""

    def __init__(self, subjects: Sequence[ModelUnderTest], names: Sequence[str], seed: int) -> None:
        self._subjects, self._names, self._seed = subjects, names, seed
        self._alike = [
            replace(subject, space=space, _known={})
            for subject, space in zip(subjects, common_spaces([subject.space for subject in subjects]), strict=True)
        ]
        self._rounds: list[list[Round]] = [[] for _ in subjects]
        self._drawn: list[Round] = []
        self.n_sequences = 0
        self.of_text = ""

    @property
    def described(self) -> str:
        """What was probed with."""
        return self._drawn[0].described

    def draw(self, size: int) -> None:
        """One round more, so that `size` sequences have been drawn in all; the same for the same seed."""
        more, number = size - self.n_sequences, len(self._rounds[0])
        with progress("continuity", more * len(self._subjects)):
            for subject, alike, rounds in zip(self._subjects, self._alike, self._rounds, strict=True):
                key = ("continuity", alike.space, more, self._seed, number)
                rng = np.random.default_rng([self._seed, 10, number])
                rounds.append(subject.remember(key, partial(draw_round, alike, more, rng)))
        self.n_sequences = size
        self._drawn = [Round.join(rounds) for rounds in self._rounds]

    def repeats(self, wanted: Mapping[str, float]) -> dict[str, Measured]:
        """The measures on repeated tokens that are wanted."""
        samples = {name: [found.behaviour[name] for found in self._drawn] for name in REPEATS if name in wanted}
        if HEADS in wanted:
            heads = [best_head(found) for found in self._drawn]
            scores = [found.heads[1::2, 0, *head] for found, head in zip(self._drawn, heads, strict=True)]
            samples = {HEADS: scores, **samples}
        return {
            name: Measured(OF_MODELS[name], paired(values, OF_MODELS[name].unit), self.n_sequences, SEQUENCES)
            for name, values in samples.items()
        }

    def eigenvalues(self) -> tuple[list[Array] | None, tuple[str, ...]]:
        """The OV eigenvalue scores of the heads of every model, or None and why, where weights of some are not known."""
        scores = []
        for subject, name in zip(self._subjects, self._names, strict=True):
            try:
                scores.append(subject.remember(("ov eigenvalues",), partial(_eigenvalues, subject)))
            except Exception as error:  # noqa: BLE001 - whatever it is: what can be measured is
                seen = "" if isinstance(error, ModelError) else f"{type(error).__name__}: "
                why = f"the weights of heads of {name} are not known: {seen}{first_line(error)}"
                return None, (f"{OF_MODELS[OV].words} is not compared: {why}",)
        return scores, ()

    def copying(self, eigenvalues: Sequence[Array] | None) -> dict[str, Measured]:
        """The OV eigenvalue score of the best heads. Weights have no sampling error: the difference is exact."""
        if eigenvalues is None:
            return {}
        measure = OF_MODELS[OV]
        best = [float(scores[best_head(found)]) for scores, found in zip(eigenvalues, self._drawn, strict=True)]
        pairs = itertools.combinations(range(len(best)), 2)
        between = {(i, j): Mean(best[i] - best[j], 0.0, math.inf, measure.unit).interval for i, j in pairs}
        return {OV: Measured(measure, between)}

    def in_context(self, text: Any, max_rows: int) -> dict[str, Measured]:
        """The in-context learning score, and the late loss, on rows of the same tokens for all."""
        rows = [rows_of(alike, text, max_rows) for alike in self._alike]
        firsts = [windows_of(alike, each) for alike, each in zip(self._alike, rows, strict=True)]
        self._check_same(rows)
        windows, count = firsts[0][1], len(rows[0])
        tokens = rows[0].shape[1] + firsts[0][0] - 2
        spans = f"tokens {windows.early[0]}-{windows.early[1]} against {windows.late[0]}-{windows.late[1]}"
        self.of_text = f"; {count} rows of {tokens} tokens of text, {spans}"
        measure = OF_MODELS[ICL]
        if count < MIN_ROWS:
            return {
                ICL: Measured(
                    measure, problem=f"{count} rows of text are too few", next_step=f"give a text of {MIN_ROWS} rows or more"
                )
            }
        early, late = [], []
        for subject, each, (first, _) in zip(self._subjects, rows, firsts, strict=True):
            losses = subject.remember(("text", each.tobytes(), each.shape), partial(row_losses, subject, each))
            early.append(window_mean(losses, windows.early, first))
            late.append(window_mean(losses, windows.late, first))
        scores = [after - before for before, after in zip(early, late, strict=True)]
        found = {ICL: scores, LATE: late}
        return {name: Measured(measure, paired(values, measure.unit), count, ROWS) for name, values in found.items()}

    def _check_same(self, rows: Sequence[NDArray[np.int64]]) -> None:
        """Raise `ArgumentError` where the text is not the same tokens for all, whatever begins their sequences."""
        own = [each[:, int(alike.space.bos_id is not None) :] for alike, each in zip(self._alike, rows, strict=True)]
        for name, each in zip(self._names, own, strict=True):
            if not np.array_equal(each, own[0]):
                raise ArgumentError(
                    f"`text` is not the same tokens for {self._names[0]} and {name}: in-context learning scores per token are "
                    "then not comparable; compare models of one tokenizer, or leave the text out"
                )

    def lacking(self, wanted: Mapping[str, float]) -> tuple[str, ...]:
        """What none of the models has, where that makes the comparison of its measures idle."""
        if HEADS not in wanted or any(_has_matching_head(found) for found in self._drawn):
            return ()
        more = f"of {MIN_PREFIX_MATCHING:.3f} or more, and {min_excess():.3f} beyond chance"
        return (f"none of them has a head with prefix matching {more}",)


def _has_matching_head(found: Round) -> bool:
    return bool(matches_by_means({name: values.mean(axis=0) for name, values in scores_of(found).items()}).any())


def _eigenvalues(subject: ModelUnderTest) -> Array:
    return ov_eigenvalues(subject, circuits_of(subject))


def best_head(found: Round) -> tuple[int, int]:
    """The head with the highest prefix matching on every other sequence; those between are left to measure it on."""
    scores = found.heads[::2, 0].mean(axis=0)
    layer, head = np.unravel_index(int(np.nanargmax(scores)), scores.shape)
    return int(layer), int(head)


def common_spaces(spaces: Sequence[TokenSpace]) -> list[TokenSpace]:
    """For each model the same space to draw probes from: ids that every model has, and as many as fit the shortest context."""
    starts = [int(space.bos_id is not None) for space in spaces]
    rooms = [space.n_ctx - start for space, start in zip(spaces, starts, strict=True) if space.n_ctx is not None]
    barred = frozenset[int]().union(*(space.excluded for space in spaces))
    barred |= {space.bos_id for space in spaces if space.bos_id is not None}
    d_vocab = min(space.d_vocab for space in spaces)
    return [
        TokenSpace(d_vocab, min(rooms) + start if rooms else None, space.bos_id, barred)
        for space, start in zip(spaces, starts, strict=True)
    ]
