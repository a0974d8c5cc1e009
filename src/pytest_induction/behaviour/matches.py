"""Which tokens of a text a match in the same row foretells, as an induction head would, and what these cost and all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.behaviour.text import row_length, row_losses, rows_of
from pytest_induction.display import Plotted, View, about, rows_table, titled
from pytest_induction.errors import ArgumentError, user_facing, whole_number
from pytest_induction.measuring.observing import Array, ModelLike, provenance
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.records import SCHEMA_VERSION, Provenance
from pytest_induction.spending import Price, priced

LONGEST_MATCH = 4  # tokens before the target that are compared
CLASSES = ("right_1", "right_2", "right_3", "wrong_1", "wrong_2", "unmatched_seen", "unmatched_new")
RIGHT_1, RIGHT_2, RIGHT_3, WRONG_1, WRONG_2, UNMATCHED_SEEN, UNMATCHED_NEW = range(len(CLASSES))
FORETOLD = (RIGHT_2, RIGHT_3)
GROUPS = (*CLASSES, "repeated_bigram", "other")
MAX_ROWS = 64
Ids = NDArray[np.int64]
Classes = NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """Of every token but the first of rows (rows, positions): arrays (rows, positions - 1).

    `length` is the number of tokens before the target, at most 4, whose last earlier occurrence in the row was found: the longest
    suffix of what precedes the target that occurs earlier. `right` says whether the latest such occurrence is followed by the
    target, `seen` whether the target occurs earlier in the row, `bigram` whether it does after the same token as here.
    """

    length: NDArray[np.int64]
    right: NDArray[np.bool_]
    seen: NDArray[np.bool_]
    bigram: NDArray[np.bool_]

    @property
    def classes(self) -> Classes:
        """The number of each target's class in `CLASSES`."""
        right = RIGHT_1 + np.clip(self.length, 1, 3) - 1
        wrong = WRONG_1 + np.clip(self.length, 1, 2) - 1
        unmatched = np.where(self.seen, UNMATCHED_SEEN, UNMATCHED_NEW)
        return np.where(self.length == 0, unmatched, np.where(self.right, right, wrong))

    @property
    def foretold(self) -> NDArray[np.bool_]:
        """Which targets a match of two tokens or more foretells rightly."""
        return self.right & (self.length > 1)


def matches_of(rows: Ids) -> Matches:
    """The matches of token ids (rows, positions), by the tokens alone; time grows as positions x log(positions) x 4.

    >>> matches_of(np.array([[1, 2, 3, 1, 2, 3, 1, 9]])).length
    array([[0, 0, 0, 1, 2, 3, 4]])
    >>> matches_of(np.array([[1, 2, 3, 1, 2, 3, 1, 9]])).right
    array([[False, False, False,  True,  True,  True, False]])
    """
    if rows.ndim != 2 or rows.shape[1] < 2:
        raise ArgumentError(f"matches are those of rows of two tokens or more, got {rows.shape}")
    ends = _ranks(np.broadcast_to(np.arange(len(rows))[:, None], rows.shape), rows)  # runs of one token, of each row its own
    previous = [_previous(ends)]
    while len(previous) < LONGEST_MATCH:
        ends = _longer(ends, rows)
        previous.append(_previous(ends))
    shape = (len(rows), rows.shape[1] - 1)
    length, latest = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for count, found in enumerate(previous, start=1):
        there = found[:, :-1] >= 0
        length[there], latest[there] = count, found[:, :-1][there]
    follows = np.take_along_axis(rows, latest + 1, axis=1)
    targets = rows[:, 1:]
    return Matches(length, (length > 0) & (follows == targets), previous[0][:, 1:] >= 0, previous[1][:, 1:] >= 0)


def _longer(ends: Ids, rows: Ids) -> Ids:
    """The number of each run that is one token longer than those that `ends` numbers by their last position; -1 for no run."""
    found = np.full(rows.shape, -1)
    there = ends[:, :-1] >= 0
    found[:, 1:][there] = _ranks(ends[:, :-1][there], rows[:, 1:][there])
    return found


def _ranks(first: Ids, second: Ids) -> Ids:
    """The number of each different pair."""
    pairs = first.astype(np.int64) * (int(second.max(initial=0)) + 1) + second
    return np.unique(pairs, return_inverse=True)[1].reshape(first.shape)


def _previous(ends: Ids) -> Ids:
    """The position of the latest earlier run of the same number in the row, -1 where there is none."""
    order = np.argsort(ends, axis=1, kind="stable")
    ordered = np.take_along_axis(ends, order, axis=1)
    same = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    found = np.full(ends.shape, -1)
    rows, places = np.nonzero(same)
    found[rows, order[rows, places + 1]] = order[rows, places]
    return found


def mean_of_tokens(sums: Array, counts: Array) -> Array:
    """Numbers of rows (rows,) whose mean is the mean over all tokens, and whose spread over rows is that of this mean.

    `sums` (rows,) are over the `counts` (rows,) tokens of each row: the usual linearisation of a ratio of two means.

    >>> mean_of_tokens(np.array([3.0, 3.0]), np.array([2, 1])).mean()
    np.float64(2.0)
    """
    mean = sums.sum() / counts.sum()
    return np.asarray(mean + (sums - mean * counts) / counts.mean(), dtype=np.float64)


@dataclass(frozen=True, repr=False)
class LossByMatch(Plotted):
    """What tokens of a text cost, by what a match in the same row says of them.

    `share` is how many of all tokens a class has, in [0, 1], and `loss` their mean loss in nats, by class; NaN where a class has
    no token. The classes of `CLASSES` have every token once: "right_1", "right_2" and "right_3", where the longest match is of
    one token, of two, and of three or more, and its latest occurrence is followed by the token; "wrong_1" and "wrong_2", where it
    is followed by another, "wrong_2" standing for longer ones too; "unmatched_seen" and "unmatched_new", where nothing matches,
    and the token stands earlier in the row or does not. Beside them "repeated_bigram" has the tokens that follow the same token
    as earlier in the row, and "other" all the rest.

    `losses` and `classes` are of every token of every row but the first, (rows, tokens); `classes` are places in `CLASSES`.
    """

    share: Mapping[str, float]
    loss: Mapping[str, float]
    losses: Array
    classes: Classes
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        rows = [{"class": name, "share": self.share[name], "loss": self.loss[name]} for name in self.share]
        drawn = [
            {"name": name.replace("_", " "), "value": loss, "low": np.nan, "high": np.nan, "unit": "nats", "thresholds": []}
            for name, loss in self.loss.items()
        ]
        return View(
            titled(self),
            about(self),
            (rows_table("classes", rows),),
            lambda: [("estimates", {"title": "loss by match", "rows": drawn})],
        )

    @property
    def gap(self) -> float:
        """By how many nats tokens that a match of two or more foretells cost less than unmatched ones that were seen, or NaN."""
        foretold = self.losses[np.isin(self.classes, FORETOLD)]
        return self.loss["unmatched_seen"] - float(foretold.mean()) if foretold.size else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, None where there is no number, with the version of this layout under `schema`."""
        loss = {name: None if np.isnan(value) else value for name, value in self.loss.items()}
        return {"schema": SCHEMA_VERSION, "share": dict(self.share), "loss": loss, "provenance": self.provenance.to_dict()}


def price_of_rows(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of one pass over the rows of a text: two at least, and as many as the call takes at most."""
    return Price(2 * row_length(subject), given["max_rows"] * row_length(subject))


@user_facing
@priced(price_of_rows)
def measure_loss_by_match(model: ModelLike, text: Any, *, max_rows: int = MAX_ROWS) -> LossByMatch:
    """Measure the loss of a text's tokens, apart for those that an earlier match in the same row foretells, and all others.

    A match is the longest run of tokens just before the target, of four at most, that occurs earlier in the row; its latest
    occurrence is followed by the target ("right") or not ("wrong"). It is told by the tokens alone, so that any model that
    returns logits is measured. `text` is as for `assert_learns_in_context`, and of a long one `max_rows` rows are taken, spread
    over all of it. Shares are the text's and the tokenizer's, not the model's.

    | a model that | right | wrong | unmatched |
    |---|---|---|---|
    | knows nothing, of V tokens | ln V | ln V | ln V |
    | copies what followed the latest match, and knows nothing else | 0 | very large | ln V |

    The loss after a right match is low in part because what repeats is common: what induction heads do of it says
    `assert_icl_is_induction`. Raises `TextError` for a text that makes fewer than two rows, `ModelError` where losses are not
    finite. Sources: Arora et al. 2023 (repeated bigrams), Sahin et al. 2025.

    >>> measure_loss_by_match(model, "manual.txt").loss["right_2"]               # doctest: +SKIP
    0.72
    """
    whole_number("max_rows", max_rows, least=2)
    subject = load_model(model)
    rows = rows_of(subject, text, max_rows)
    matches, losses = matches_of(rows), row_losses(subject, rows)
    found = dict(zip(GROUPS, in_groups(matches), strict=True))
    described = f"rows of {rows.shape[1]} tokens of text"
    return LossByMatch(
        {name: float(taken.mean()) for name, taken in found.items()},
        {name: float(losses[taken].mean()) if taken.any() else float("nan") for name, taken in found.items()},
        losses,
        matches.classes,
        provenance(subject, n_sequences=len(rows), probe=described),
    )


def in_groups(matches: Matches) -> NDArray[np.bool_]:
    """Which tokens are of each of `GROUPS`, boolean (groups, rows, tokens)."""
    each = matches.classes == np.arange(len(CLASSES))[:, None, None]
    return np.concatenate([each, [matches.bigram, ~matches.bigram]])
