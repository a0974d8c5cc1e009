"""Measure what is kept of a model to hold a later one against, and a later one on the same probes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.behaviour.text import row_losses, rows_of, window_mean, windows_of
from pytest_induction.comparison.profiles import BEHAVIOUR, ROLES, HeadInRole, HeadsProfile, Probed, TextScores
from pytest_induction.errors import BaselineError, ModelError
from pytest_induction.forward.calling import with_kind
from pytest_induction.heads.copying import copy_effects
from pytest_induction.heads.criteria import excess, has_role, is_written, suppresses
from pytest_induction.heads.silence import Written, written_by
from pytest_induction.measuring.observing import Array, probes_of, provenance
from pytest_induction.measuring.rounds import Round, draw_round, probe_round
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import COPIES, Ids, fitting_shape, usable_ids, usual_length
from pytest_induction.progress import progress
from pytest_induction.records import HeadId, TokenSpace
from pytest_induction.statistics import FIRST_LOOK, look_sizes, mean_interval

SUPPRESSION_ERROR = 1e-4  # of all heads together
N_SEQUENCES, MAX_ROWS = 48, 256


@dataclass(frozen=True)
class Measured:
    """What was measured of a model on the same probes: every head, by score (n_sequences, n_layers, n_heads); None if unread.

    `ruled_out` (n_layers, n_heads) are heads that lower what they match, or match and write nothing. `notes` say what is not
    known of the model.
    """

    found: Round
    scores: Mapping[str, Array] | None
    ruled_out: NDArray[np.bool_]
    text: TextScores | None = None
    notes: tuple[str, ...] = ()


class Prober:
    """Measures one model in rounds of sequences drawn from a space, which need not be its own; the same for the same seed.

    `listed` says which heads are induction heads, of a model that later ones are held against, and `notes` what is not known of
    them; else those count that have what it takes in the mean.
    """

    def __init__(self, subject: ModelUnderTest, space: TokenSpace, seed: int) -> None:
        self.subject, self.space, self.seed = subject, space, seed
        self._check_fits()
        self.alike = subject if space == subject.space else replace(subject, space=space, _known={})
        self.listed: Collection[HeadId] | None = None
        self.notes: tuple[str, ...] = ()
        self._rounds: list[Round] = []

    def _check_fits(self) -> None:
        """Raise `ModelError` where the model lacks ids or positions that the probes have."""
        longest = usual_length(self.space)
        most, own = max(int(usable_ids(self.space)[-1]), self.space.bos_id or 0), self.subject.space
        if most >= own.d_vocab:
            raise ModelError(
                f"{self.subject.name} has token ids 0 to {own.d_vocab - 1}, the probes go up to {most}: compare models of one "
                "vocabulary, or profile the first in a `space` that both have"
            )
        if own.n_ctx is not None and own.n_ctx < longest:
            raise ModelError(
                f"{self.subject.name} has a context of {own.n_ctx}, the probes have up to {longest} positions: profile the first "
                "in a `space` that both have"
            )

    @property
    def n_sequences(self) -> int:
        return sum(len(part.periods) for part in self._rounds)

    def draw(self, size: int) -> None:
        """One round more, so that `size` sequences have been drawn in all."""
        more, number = size - self.n_sequences, len(self._rounds)
        with progress("preserved heads", more):
            if self.alike is self.subject:
                self._rounds.append(probe_round(self.subject, more, self.seed, number))
            else:
                rng = np.random.default_rng([self.seed, 1, number])
                key = ("round", self.space, more, self.seed, number)
                self._rounds.append(self.subject.remember(key, partial(draw_round, self.alike, more, rng)))

    def digest(self, n_sequences: int) -> str:
        """Of all token ids of as many sequences, drawn again."""
        hashed, drawn = hashlib.sha256(), 0
        for number, size in enumerate(look_sizes(n_sequences)):
            rng = np.random.default_rng([self.seed, 1, number])
            for probe in probes_of(self.alike, size - drawn, rng, COPIES, None):
                hashed.update(np.ascontiguousarray(probe.tokens, dtype="<i8").tobytes())
            drawn = size
        return hashed.hexdigest()[:16]

    def measured(self, text: TextScores | None = None) -> Measured:
        """What has been measured so far."""
        found = Round.join(self._rounds)
        if self.subject.backend is None:
            return Measured(found, None, np.zeros((0, 0), bool), text, ("its attention cannot be read",))
        scores = scores_of(found)
        if self.listed is not None:  # and what they write was told with it
            return Measured(found, scores, np.zeros(scores["excess"].shape[1:], bool), text, self.notes)
        ruled_out, notes = self._ruled_out(scores)
        return Measured(found, scores, ruled_out, text, notes)

    def profile(self, text: TextScores | None = None) -> HeadsProfile:
        """What is kept of what has been measured so far."""
        measured, count = self.measured(text), self.n_sequences
        scores, ruled_out = measured.scores, measured.ruled_out
        heads = None if scores is None else tuple(heads_in_roles(scores, ruled_out, self.listed))
        behaviour = {name: measured.found.behaviour[name] for name in BEHAVIOUR}
        about = provenance(self.subject, seed=self.seed, n_sequences=count, probe=measured.found.described)
        periods = tuple(int(period) for period in np.unique(measured.found.periods))
        probed = Probed(self.seed, count, self.space, periods, fitting_shape(self.space)[1])
        return HeadsProfile(heads, behaviour, text, probed, replace(about, notes=about.notes + measured.notes))

    def _ruled_out(self, scores: Mapping[str, Array]) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
        """Which heads are shown to lower what they match, or to write nothing; and a note where that is not known of one that
        matches.
        """
        gone = np.zeros(scores["excess"].shape[1:], bool)
        unclear, notes = in_role(scores, "induction"), []
        if not unclear.any():
            return gone, ()
        try:
            effects = copy_effects(self.subject, FIRST_LOOK, self.seed)
            exists = ~np.isnan(effects[0])
            found = mean_interval(effects[:, exists], SUPPRESSION_ERROR, "nats")
            gone[exists] = [suppresses(each) for each in found]
            unclear[exists] &= [not is_written(each) for each in found]
        except Exception as error:  # noqa: BLE001 - whatever it is: what has been measured is not lost, behaviour says that it copies
            notes.append(f"whether each head copies is not known: {with_kind(error)}")
        try:
            for each in self._written(unclear):
                gone[each.layer, each.head] |= each.is_silent
        except Exception as error:  # noqa: BLE001 - likewise
            notes.append(f"whether each head writes anything is not known: {with_kind(error)}")
        return gone, tuple(notes)

    def _written(self, asked: NDArray[np.bool_]) -> list[Written]:
        """What these heads write, by ablating each; measured once."""
        heads = tuple(HeadId(int(layer), int(head)) for layer, head in np.argwhere(asked))
        key = ("what heads write", heads, self.seed)
        return self.subject.remember(key, lambda: written_by(self.subject, heads, self.seed))

    def rows(self, text: Any, max_rows: int) -> Ids:
        """The rows of token ids that a text makes for this model."""
        return rows_of(self.alike, text, max_rows)

    def in_context(self, rows: Ids, max_rows: int) -> TextScores:
        """The in-context learning score of each row. Raises `ModelError` where the model lacks ids or positions of them."""
        own = self.subject.space
        if int(rows.max()) >= own.d_vocab or (own.n_ctx is not None and rows.shape[1] > own.n_ctx):
            raise ModelError(
                f"{self.subject.name} has {own.d_vocab} token ids and a context of {own.n_ctx}, the rows of text have ids up to "
                f"{rows.max()} and {rows.shape[1]} positions"
            )
        losses = self.subject.remember(("text", rows.tobytes(), rows.shape), partial(row_losses, self.subject, rows))
        first_token, windows = windows_of(self.alike, rows)
        early, late = (window_mean(losses, span, first_token) for span in (windows.early, windows.late))
        return TextScores(digest_of(rows), max_rows, rows.shape[1], late - early, late)


def digest_of(rows: Ids) -> str:
    """Of the token ids of rows."""
    return hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest()[:16]


def scores_of(found: Round) -> dict[str, Array]:
    """The scores that roles go by, of every head on every sequence: (n_sequences, n_layers, n_heads) each."""
    of_roles = {name: found.scores[name] for name in ("prefix_matching", "previous_token", "duplicate_token")}
    return {**of_roles, "excess": excess(found.scores)}


def chosen(values: Array) -> Array:
    """Of values by sequence every other one, on which heads are chosen; those between are left to measure them on."""
    return values[::2]


def held_out(values: Array) -> Array:
    """The sequences on which nothing was chosen."""
    return values[1::2]


def in_role(scores: Mapping[str, Array], role: str) -> NDArray[np.bool_]:
    """Which heads have all scores of a role, (n_layers, n_heads): in the mean over every other sequence."""
    found: NDArray[np.bool_] = has_role(role, {name: chosen(scores[name]).mean(axis=0) for name in ROLES[role]})
    return found


def heads_in_roles(
    scores: Mapping[str, Array], ruled_out: NDArray[np.bool_], listed: Collection[HeadId] | None = None
) -> Sequence[HeadInRole]:
    """The heads of each role, by layer and number; the induction heads are those `listed`, where that is known."""
    found = []
    for role, names in ROLES.items():
        has = in_role(scores, role) & ~ruled_out if role == "induction" else in_role(scores, role)
        if role == "induction" and listed is not None:
            has = np.zeros_like(has)
            has[tuple(np.array([(head.layer, head.head) for head in listed], dtype=int).reshape(-1, 2).T)] = True
        for layer, head in np.argwhere(has):
            found.append(HeadInRole(role, int(layer), int(head), {name: scores[name][:, layer, head] for name in names}))
    return found


def check_same(prober: Prober, profile: HeadsProfile, where: str) -> None:
    """Raise `BaselineError` unless the probes of a profile are drawn again as they were."""
    if profile.probed.digest and prober.digest(profile.probed.n_sequences) != profile.probed.digest:
        raise BaselineError(
            f"the probes of {where} cannot be drawn again (its token space was changed, or numpy draws otherwise): take it anew"
        )
