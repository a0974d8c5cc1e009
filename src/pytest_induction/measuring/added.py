"""Head scores of others, measured in the same pass as those of the package: from the same lines of a pattern, and a few more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pytest_induction.attention.scores import AttentionReader, PeriodicScores, Scores
from pytest_induction.claims import head_scores
from pytest_induction.errors import ArgumentError
from pytest_induction.head_score import OURS, HeadScore, Layout, Rows
from pytest_induction.ranges import ROUNDING

Array = NDArray[np.float64]


class HeadScoreError(ArgumentError):
    """An added score cannot be measured: its functions fail, or give what is no score."""


def with_added(scores: Scores, rows: Tensor, added: Sequence[HeadScore] | None = None) -> Scores:
    """Scores of rows, and those that were registered beside them; as they are where there are none, or rows have no period."""
    every = head_scores() if added is None else added
    return AddedScores(scores, tuple(every), rows) if every and isinstance(scores, PeriodicScores) else scores


@dataclass(frozen=True)
class AddedScores:
    """The usual scores of rows, to the digit what they are alone, then each added score and its own chance."""

    usual: PeriodicScores
    added: tuple[HeadScore, ...]
    tokens: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """Of the scores, in the order in which they are given."""
        return (*self.usual.names, *self.added_names)

    @cached_property
    def added_names(self) -> tuple[str, ...]:
        """Of those that were added."""
        return tuple(name for score in self.added for name in (score.name, score.chance_name))

    def __call__(self, attention: AttentionReader) -> Tensor:
        """One layer's scores: (scores, batch, heads), in the order of `names`."""
        return self.reduced(attention.diagonals(self.offsets, first=True)).movedim(-1, 0)

    @cached_property
    def _distances(self) -> list[dict[str, tuple[int, ...]]]:
        """Of each added score its own stripes."""
        usual = self.usual
        return [score.distances(Layout(usual.period, usual.start, usual.n_positions)) for score in self.added]

    @cached_property
    def line_of(self) -> dict[int, int]:
        """Each distance that is read for added scores, and on which line."""
        known = {offset: line for line, offset in reversed([*enumerate(self.usual.offsets)])}
        wanted = dict.fromkeys(each for named in self._distances for distances in named.values() for each in distances)
        more = [each for each in wanted if each not in known]
        return known | {each: len(self.usual.offsets) + line for line, each in enumerate(more)}

    @cached_property
    def offsets(self) -> list[int]:
        """The diagonals that are read, beside the first column: the usual ones, then those that are not among them."""
        n_usual = len(self.usual.offsets)
        return [*self.usual.offsets, *(each for each, line in self.line_of.items() if line >= n_usual)]

    def reduced(self, mass: Tensor) -> Tensor:
        """The scores (..., scores) of the lines that were read (..., lines, queries)."""
        n_usual = len(self.usual.offsets)
        own = mass if len(self.offsets) == n_usual else torch.cat([mass[..., :n_usual, :], mass[..., -1:, :]], -2)
        usual = self.usual.reduced(own)  # (..., batch, heads, scores)
        rows = Rows(self.usual.period, self.usual.start, self.usual.n_positions, tokens=self.tokens)
        layers = [self._added(layer, rows) for layer in mass.flatten(0, -5)] if mass.ndim > 4 else [self._added(mass, rows)]
        added = torch.stack(layers).unflatten(0, mass.shape[:-4]) if mass.ndim > 4 else layers[0]
        return torch.cat([usual, added.to(usual.dtype)], -1)

    def _added(self, mass: Tensor, rows: Rows) -> Tensor:
        """The added scores of one layer, (batch, heads, scores), from its lines (batch, heads, lines, queries)."""
        found = []
        for score, distances in zip(self.added, self._distances, strict=True):
            stripes = _Stripes(self, mass, distances)
            for name, function in ((score.name, score.measure), (score.chance_name, score.chance)):
                found.append(_checked(name, _given(name, function, stripes, rows), mass))
        return torch.stack(found, -1)


def _given(name: str, function: object, stripes: Mapping[str, Tensor], rows: Rows) -> object:
    """What a function of others gives. Raises `HeadScoreError` for whatever it raises."""
    try:
        return function(stripes, rows)  # type: ignore[operator]
    except Exception as error:
        message = (str(error).splitlines() or [""])[0]
        raise HeadScoreError(f"the head score {name!r} cannot be measured: {type(error).__name__}: {message}") from error


def check_added(found: Mapping[str, Array]) -> None:
    """Raise `HeadScoreError` for an added score, by its name, that is not between 0 and 1; NaN is a head that there is not."""
    for name, values in found.items():
        wrong = np.isinf(values) | (values < -ROUNDING) | (values > 1 + ROUNDING)
        if wrong.any():
            raise HeadScoreError(f"the head score {name!r} must lie between 0 and 1, got {values[wrong][0]:.3g}")


def _checked(name: str, found: object, mass: Tensor) -> Tensor:
    if not isinstance(found, Tensor) or found.shape != mass.shape[:2]:
        seen = f"{tuple(found.shape)}" if isinstance(found, Tensor) else f"`{type(found).__name__}`"
        wanted = tuple(mass.shape[:2])
        raise HeadScoreError(f"the head score {name!r} must give a tensor (batch, heads), here {wanted}, got {seen}")
    return found


class _Stripes(Mapping[str, Tensor]):
    """The stripes of one layer by name, each computed when it is asked for."""

    def __init__(self, scores: AddedScores, mass: Tensor, distances: Mapping[str, Sequence[int]]) -> None:
        self._scores, self._mass, self._distances = scores, mass, distances

    def __getitem__(self, name: str) -> Tensor:
        if name in self._distances:
            return self._mass[..., [self._scores.line_of[each] for each in self._distances[name]], :].sum(-2)
        if name == "first":
            return self._mass[..., -1, :]
        if name not in OURS:
            raise KeyError(f"there is no stripe {name!r}: it must be one of {', '.join(self)}")
        usual = self._scores.usual
        lines = self._mass[..., usual.lines[name], :]
        return lines[..., 0, :] if name == "previous" else (lines * self._of_repeats(lines)).sum(-2)

    def _of_repeats(self, lines: Tensor) -> Tensor:
        """1 where a query has an occurrence as far back as a line says, (copies, queries)."""
        usual = self._scores.usual
        begins = torch.tensor([usual.start + copy for copy in usual.copies], device=lines.device)[:, None]
        return (torch.arange(usual.n_positions, device=lines.device) >= begins).to(lines.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter((*OURS, *self._distances))

    def __len__(self) -> int:
        return len(OURS) + len(self._distances)
