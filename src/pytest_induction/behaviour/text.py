"""Losses over a text: from a string, a path or token ids to rows, and from rows to the loss of every token."""

from __future__ import annotations

import codecs
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pytest_induction.errors import ModelError, TextError, reason
from pytest_induction.files import UnfitFileError, open_regular
from pytest_induction.measuring.losses import Windows, token_losses
from pytest_induction.measuring.observing import Array, check_range, numbers
from pytest_induction.model.batching import in_batches
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.progress import progress
from pytest_induction.spending import Price

FIRST_ROWS = 24  # that the first look at a text has at least, where there are
TEXT_TOKENS = 512  # per row of text, as in the paper
CHARACTERS_PER_TOKEN = 12  # more than a row of text may need
WHOLE = 2**26  # bytes of a file that is read whole; of a larger one
PIECES, PIECE = 1024, 2**15  # so many pieces of so many bytes are, evenly spread: more than there are rows


def strides_of(rows: NDArray[np.int64]) -> list[int]:
    """Which rows each look at a text has: every 16th, say, then every 8th, down to every one; 24 at least, where there are."""
    stride = 1
    while -(-len(rows) // (2 * stride)) >= FIRST_ROWS:
        stride *= 2
    return [stride >> look for look in range(stride.bit_length())]


def losses_at(subject: ModelUnderTest, rows: NDArray[np.int64], stride: int) -> Array:
    """Losses of every token of each `stride`-th row, (rows, tokens); what an earlier look has measured is remembered."""
    seen = rows[::stride]
    if stride not in strides_of(rows)[1:]:
        return _remembered(subject, seen)
    losses = np.empty((len(seen), rows.shape[1] - 1))
    losses[::2], losses[1::2] = losses_at(subject, rows, 2 * stride), _remembered(subject, seen[1::2])
    return losses


def _remembered(subject: ModelUnderTest, rows: NDArray[np.int64]) -> Array:
    return subject.remember(("text", rows.tobytes(), rows.shape), lambda: row_losses(subject, rows))


def rows_of(subject: ModelUnderTest, text: Any, max_rows: int) -> NDArray[np.int64]:
    """The rows of token ids that a text makes for this model, (rows, positions), at most so many, evenly spread.

    `text` is the text itself, a path to it, or token ids: one long row to be cut, or rows. Raises `TextError` where it makes
    fewer than two rows.
    """
    return _spread(_text_rows(subject, text, max_rows), max_rows)


def windows_of(subject: ModelUnderTest, rows: NDArray[np.int64]) -> tuple[int, Windows]:
    """The number of the first token that has a loss in such rows, and the windows that the in-context learning score compares."""
    first_token = 2 if subject.space.bos_id is None else 1
    return first_token, Windows.for_tokens(rows.shape[1] + first_token - 2)


def late_tokens_cut(subject: ModelUnderTest, rows: NDArray[np.int64], stride: int) -> Array:
    """The mean loss of the late tokens of each `stride`-th row with their context cut short, (rows,): each is in the early
    window.

    What stands before a late token is cut so that it has a number of the early window in its row; so the same tokens are early,
    as they are late in the whole row. In a text that was cut into rows anywhere that is what early tokens cost in the long run.
    """
    seen = rows[::stride]
    if stride not in strides_of(rows)[1:]:
        return _cut(subject, seen)
    found = np.empty(len(seen))
    found[::2], found[1::2] = late_tokens_cut(subject, rows, 2 * stride), _cut(subject, seen[1::2])
    return found


def _cut(subject: ModelUnderTest, rows: NDArray[np.int64]) -> Array:
    """The same of all of some rows."""
    first = int(subject.space.bos_id is not None)
    _, windows = windows_of(subject, rows)
    (begin, end), (start, last) = windows.early, windows.late
    width = min(end - begin, last - start) + 1
    ends = [*range(start + width - 1, last, width), last]  # of each piece, as the number of a token
    columns = np.array([np.arange(stop - begin - width + 1, stop) + first for stop in ends])
    pieces = rows[:, columns].reshape(len(rows) * len(ends), -1)
    pieces = np.concatenate([np.repeat(rows[:, :first], len(ends), 0), pieces], axis=1)
    losses = _remembered(subject, pieces)[:, -width:].reshape(len(rows), len(ends), width)
    anew = np.ones((len(ends), width), dtype=bool)
    anew[-1, : len(ends) * width - (last - start + 1)] = False  # which the piece before has too
    return np.asarray(losses[:, anew].mean(axis=1), dtype=np.float64)


def window_mean(losses: Array, span: tuple[int, int], first_token: int) -> Array:
    """The mean loss of tokens `span[0]` to `span[1]`, both included, of each row, (rows,)."""
    return losses[:, span[0] - first_token : span[1] + 1 - first_token].mean(axis=1)


def price_of_text(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of one pass over the rows of a text: two at least, and as many as the call takes at most; twice that if paired."""
    most: int = given["max_sequences"]
    each = 2 * row_length(subject) if given["paired"] else row_length(subject)
    return Price(2 * row_length(subject), most * each)


def row_length(subject: ModelUnderTest) -> int:
    """Positions of a row of text."""
    first = int(subject.space.bos_id is not None)
    return TEXT_TOKENS + first if subject.space.n_ctx is None else min(TEXT_TOKENS + first, subject.space.n_ctx)


def row_losses(subject: ModelUnderTest, rows: NDArray[np.int64]) -> Array:
    """Losses of every token but the first of each row, (rows, positions - 1). Raises `ModelError` where they are not finite."""
    with progress("losses of a text", len(rows)):
        losses = np.concatenate(in_batches(subject, torch.from_numpy(rows), lambda part, _: _losses(subject, part), logits=True))
    if not np.isfinite(losses).all():
        raise ModelError(f"the loss of {subject.name} is not finite on this text")
    return losses


def _losses(subject: ModelUnderTest, rows: Tensor) -> Array:
    logits = subject.logits(rows)
    return numbers(token_losses(logits, rows.to(logits.device)))


def _spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """All rows, or `count` of them from the first to the last."""
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]


def _text_rows(subject: ModelUnderTest, text: Any, max_rows: int) -> NDArray[np.int64]:
    bos = [] if subject.space.bos_id is None else [subject.space.bos_id]
    room = TEXT_TOKENS if subject.space.n_ctx is None else min(TEXT_TOKENS, subject.space.n_ctx - len(bos))
    ids = _text_ids(subject, text, max_rows, room)
    if ids.ndim == 2:
        if subject.space.n_ctx is not None and ids.shape[1] > subject.space.n_ctx:
            raise TextError(f"rows of {ids.shape[1]} token ids do not fit the context of {subject.space.n_ctx}")
        return ids
    n_rows = len(ids) // room
    if n_rows < 2:
        raise TextError(f"the text has {len(ids)} tokens: at least {2 * room} are needed, two rows of {room}")
    rows = ids[: n_rows * room].reshape(n_rows, room)
    return np.concatenate([np.full((n_rows, len(bos)), bos or 0, dtype=np.int64), rows], axis=1)


def _text_ids(subject: ModelUnderTest, text: Any, max_rows: int, room: int) -> NDArray[np.int64]:
    if isinstance(text, Path):
        text = read_text(text)
    if isinstance(text, str):
        if not text.strip():
            raise TextError("the text is empty")
        return np.asarray(_encoded(subject, text, max_rows, room), dtype=np.int64)
    ids = np.asarray(text)
    if ids.ndim not in (1, 2) or ids.dtype.kind not in "iu" or ids.size == 0:
        raise TextError(f"`text` must be a string, a path or integer token ids, got {ids.dtype} {ids.shape}")
    check_range(subject, int(ids.min()), int(ids.max()))
    return ids.astype(np.int64)


def _encoded(subject: ModelUnderTest, text: str, max_rows: int, room: int) -> list[int]:
    """Token ids of a text; of a long one those of pieces from all over it, a row from each, for encoding takes long too."""
    width = CHARACTERS_PER_TOKEN * room
    if len(text) <= max_rows * width:
        return subject.encode(text)
    ids: list[int] = []
    for start in np.linspace(0, len(text) - width, max_rows).astype(int):
        piece = subject.encode(text[start : start + width])
        ids += piece[:room] if len(piece) >= room else []
    return ids


def read_text(path: Path) -> str:
    """A text file's content, of a large one pieces from all over it. Raises `TextError` if it is missing, empty or not UTF-8."""
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            content = _whole(stream, path) if size <= WHOLE else _pieces(stream, size)
    except OSError as error:
        raise TextError(f"the text {str(path)!r} cannot be read: {reason(error)}") from None
    except UnicodeDecodeError as error:
        raise TextError(f"the text {str(path)!r} is not UTF-8: {error.reason} at byte {error.start}") from None
    if not content.strip():
        raise TextError(f"the text {str(path)!r} is empty")
    return content


def _whole(stream: BinaryIO, path: Path) -> str:
    content = stream.read(WHOLE + 1)
    if len(content) > WHOLE:  # it says that it has fewer
        raise UnfitFileError(f"it does not end after the {WHOLE} bytes that may be read of it", path)
    return _lines(content.decode("utf-8"))


def _pieces(stream: BinaryIO, size: int) -> str:
    """Pieces from all over the text, in its order, each without what it has of letters that are cut at its ends."""
    found = []
    for index in range(PIECES):
        stream.seek((size - PIECE) * index // (PIECES - 1))
        content = stream.read(PIECE)
        begin = next((place for place, byte in enumerate(content[:4]) if byte & 0xC0 != 0x80), 0)
        found.append(codecs.utf_8_decode(content[begin:], "strict", False)[0])  # noqa: FBT003 - a letter may be cut at its end
    return _lines("".join(found))


def _lines(text: str) -> str:
    """With the line ends that Python reads."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
