"""Which part of what a model returns are its logits, and how their axes lie.

Next-token logits have one number for each id of the vocabulary, at each position of each row. Hidden states, values, labels and
losses are none. Where more than one reading is possible, none is taken.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytest_induction.errors import ModelError

DEEPEST = 3  # containers within containers
MOST_PARTS = 64
LOGITS = "logits"
SUM_CLOSE = 1e-3  # of a probability distribution, to one
Path = tuple[str | int, ...]


class NoLogits(ModelError):
    """Nothing of what a model returned is next-token logits; `may_be_asked_for` says that it may give them when asked to."""

    def __init__(self, message: str, *, may_be_asked_for: bool = False) -> None:
        super().__init__(message)
        self.may_be_asked_for = may_be_asked_for


class Vocabulary(NamedTuple):
    """How many ids there are: rows of the table that token ids look up and their width, and what the model declares."""

    rows: int | None = None
    width: int | None = None
    declared: int | None = None

    @property
    def size(self) -> int | None:
        """How many ids there are, as far as it is known."""
        known = [each for each in (self.rows, self.declared) if each is not None]
        return min(known) if known else None

    def may_be_logits(self, width: int) -> bool:
        """Whether logits of this vocabulary may be so wide; some models pad the table, the logits, or both."""
        if width < 2:
            return False
        known = {each for each in (self.rows, self.declared) if each is not None}
        if not known or width in known:
            return True
        if width == self.width:  # as wide as what the table gives
            return False
        if self.declared is not None and self.is_wider(width):
            return True
        return any(_is_padded(width, each) for each in known) or (
            self.rows is not None and (self.declared is None or self.declared == width) and _is_padded(self.rows, width)
        )

    def is_wider(self, width: int) -> bool:
        """Whether so many numbers may be logits with room for more ids, made round."""
        return self.size is not None and width != self.width and self.size < width <= 4 * self.size and width % 8 == 0

    def __str__(self) -> str:
        if self.rows is not None:
            return f"its token embedding has {self.rows} rows"
        return "" if self.declared is None else f"it declares a vocabulary of {self.declared}"


def _is_padded(more: int, fewer: int) -> bool:
    """Whether one size is the other one made rounder, or with room for a few special ids."""
    if not fewer < more <= fewer + fewer // 4 + 8:
        return False
    return more - fewer <= 8 or any(more == -(-fewer // step) * step for step in (8, 16, 32, 64, 128, 256, 512))


@dataclass(frozen=True)
class Outputs:
    """Where logits lie in what a model returns: at which path, and how their axes lie.

    `axes` are those of rows, positions and ids; with two axes only, rows and positions are one, `flat` "rows" or "positions"
    first, or rows are missing (`flat` is "one row"). The last `short` positions have no logits. `probabilities` are logged.
    """

    path: Path
    axes: tuple[int, ...] = (0, 1, 2)
    flat: str = ""
    short: int = 0
    squeezed: int | None = None
    probabilities: bool = False

    def logits(self, output: Any, tokens: Tensor) -> Tensor:
        """The logits (rows, positions, ids) of an output for token ids (rows, positions). Raises `ModelError` for others."""
        found = part_at(output, self.path)
        rows, positions = tokens.shape[0], tokens.shape[1] - self.short
        if not isinstance(found, Tensor) or not found.is_floating_point():
            place = f"output{named(self.path)}"
            raise ModelError(
                f"the model must return logits at {place}, as it did when it was tried out; it returned {described(output)}"
            )
        found = self._laid_out(found, rows, positions)
        if found is None or tuple(found.shape[:2]) != (rows, positions):
            raise ModelError(
                f"the model must return logits for each of the token ids {tuple(tokens.shape)}, it returned {described(output)}"
            )
        return found.clamp_min(torch.finfo(found.dtype).tiny).log() if self.probabilities else found

    def _laid_out(self, found: Tensor, rows: int, positions: int) -> Tensor | None:
        if self.squeezed is not None and found.ndim == 4:
            found = found.squeeze(self.squeezed)
        if not self.flat:
            return found.permute(self.axes) if found.ndim == 3 else None
        if found.ndim != 2:
            return None
        found = found.permute(self.axes)
        if self.flat == "one row":
            return found[None]
        if len(found) != rows * positions:
            return None
        sizes = (rows, positions) if self.flat == "rows" else (positions, rows)
        return found.unflatten(0, sizes) if self.flat == "rows" else found.unflatten(0, sizes).transpose(0, 1)

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to know of the reading."""
        found = []
        if self.path not in ((), (0,), (LOGITS,)):
            found.append(f"its logits are found at output{named(self.path)}")
        if self.flat == "positions" or (not self.flat and self.axes != (0, 1, 2)):
            found.append("its logits are read in another order of axes than (rows, positions, ids)")
        found += ["its outputs are probabilities, of which the logarithm is taken"] if self.probabilities else []
        return tuple(found)


def readings(
    output: Any,
    tokens: Tensor,
    vocabulary: Vocabulary,
    name: str = "the model",
    is_hidden: Callable[[Tensor], bool] = lambda part: False,
) -> list[Outputs]:
    """Every way to find logits for token ids (rows, positions) in an output, of one part of it.

    `is_hidden` tells a part that is a hidden state, where that is as wide as logits. Raises `NoLogits` where several parts may
    be them.
    """
    found: dict[Path, list[Outputs]] = {}
    for path, part in parts_of(output):
        ways = [each for each in _ways(path, part, *tokens.shape) if vocabulary.may_be_logits(_width(part, each))]
        whole = [each for each in ways if not each.short]
        if ways and not (_width(part, ways[0]) == vocabulary.width and is_hidden(part)):
            found[path] = whole or ways
    exact = {path: ways for path, ways in found.items() if _width(part_at(output, path), ways[0]) == vocabulary.size}
    return _of_one_part(exact or found, output, name)


def _width(part: Tensor, outputs: Outputs) -> int:
    axis = outputs.axes[-1]
    return part.shape[axis if outputs.squeezed is None or axis < outputs.squeezed else axis + 1]


def _of_one_part(found: Mapping[Path, list[Outputs]], output: Any, name: str) -> list[Outputs]:
    """The readings of the one part that is logits: the only one, the one of that name, or the first of equal ones."""
    if len(found) <= 1:
        return next(iter(found.values()), [])
    telling = [path for path in found if path[-1:] == (LOGITS,)]
    if len(telling) == 1:
        return found[telling[0]]
    first, *others = found
    one = part_at(output, first)
    if all(torch.equal(one, part_at(output, other)) for other in others):
        return found[first]
    places = " and ".join(f"output{named(path)}" for path in found)
    raise NoLogits(
        f"{name} returned {described(output)}: {places} may both be its logits; wrap it so that it returns one of them"
    )


def _ways(path: Path, part: Tensor, rows: int, positions: int) -> Iterator[Outputs]:
    """The ways to see a tensor as (rows, positions, ids)."""
    squeezed, shape = None, tuple(part.shape)
    if len(shape) == 4 and shape.count(1) == 1 and rows > 1:
        squeezed = shape.index(1)
        shape = shape[:squeezed] + shape[squeezed + 1 :]
    probabilities = _sums_to_one(part)
    for short in (0, 1):
        wanted = (rows, positions - short)
        if len(shape) == 3:
            for axes in itertools.permutations(range(3)):
                if (shape[axes[0]], shape[axes[1]]) == wanted and not (short and shape[axes[2]] in wanted):
                    yield Outputs(path, axes, "", short, squeezed, probabilities is not None and probabilities == axes[2])
        elif len(shape) == 2:
            yield from _flat_ways(path, shape, wanted, short, probabilities)


def _flat_ways(
    path: Path, shape: Sequence[int], wanted: tuple[int, int], short: int, probabilities: int | None
) -> Iterator[Outputs]:
    rows, positions = wanted
    for axes in ((0, 1), (1, 0)):
        if shape[axes[0]] != rows * positions:
            continue
        logged = probabilities is not None and probabilities == axes[1]
        if rows == 1:
            yield Outputs(path, axes, "one row", short, None, logged)
        elif axes == (0, 1):
            yield Outputs(path, axes, "rows", short, None, logged)
            yield Outputs(path, axes, "positions", short, None, logged)


def _sums_to_one(part: Tensor) -> int | None:
    """The axis over which a tensor holds probabilities, or None."""
    if part.ndim < 2 or not part.numel() or not bool((part >= 0).all()):
        return None
    found = [axis for axis in range(part.ndim) if bool(((part.float().sum(axis) - 1).abs() < SUM_CLOSE).all())]
    return found[0] if len(found) == 1 else None


def of_last_only(output: Any, tokens: Tensor, vocabulary: Vocabulary) -> bool:
    """Whether an output has logits of one position of each row, and of no other."""
    rows = len(tokens)
    for _, part in parts_of(output):
        width = part.shape[-1] if part.ndim else 0
        if vocabulary.size is not None and vocabulary.may_be_logits(width) and tuple(part.shape[:-1]) in ((rows,), (rows, 1)):
            return True
    return False


def of_more_positions(output: Any, tokens: Tensor, vocabulary: Vocabulary) -> int:
    """How many positions more than there are ids an output has logits for; 0 where it has not."""
    for _, part in parts_of(output):
        if part.ndim == 3 and part.shape[0] == len(tokens) and vocabulary.size is not None:
            more = part.shape[1] - tokens.shape[1]
            if more > 0 and vocabulary.may_be_logits(part.shape[2]):
                return int(more)
    return 0


def parts_of(output: Any) -> list[tuple[Path, Tensor]]:
    """The floating-point tensors in what a model returned, and where they lie."""
    return list(itertools.islice(_parts(output, ()), MOST_PARTS))


def _parts(output: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield path, output
    elif len(path) < DEEPEST:
        if _are_chunks(output):
            yield path, torch.cat(list(output), dim=1)
        for key, value in _entries(output):
            yield from _parts(value, (*path, key))


def _entries(output: Any) -> Iterator[tuple[str | int, Any]]:
    """What a container holds, by name or number."""
    if isinstance(output, Mapping):
        yield from ((str(key), value) for key, value in output.items())
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        yield from zip(output._fields, output, strict=True)
    elif isinstance(output, (list, tuple)):
        yield from enumerate(output)
    elif dataclasses.is_dataclass(output):
        yield from ((each.name, getattr(output, each.name)) for each in dataclasses.fields(output))
    elif isinstance(vars_of := getattr(output, "__dict__", None), dict):
        yield from ((name, value) for name, value in vars_of.items() if not name.startswith("_"))


def _are_chunks(output: Any) -> bool:
    """Whether these are tensors (rows, positions, ids) of some positions each."""
    if not isinstance(output, (list, tuple)) or len(output) < 2:
        return False
    tensors = [each for each in output if isinstance(each, Tensor) and each.ndim == 3 and each.is_floating_point()]
    return len(tensors) == len(output) and len({(each.shape[0], each.shape[2]) for each in tensors}) == 1


def part_at(output: Any, path: Path) -> Any:
    """What lies at a path in what a model returned; None where nothing does."""
    for key in path:
        output = dict(_entries(output)).get(key)
    return torch.cat(list(output), dim=1) if _are_chunks(output) else output


def named(path: Path) -> str:
    """A path as it would be written behind the output."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)


def described(output: Any) -> str:
    """What a model returned, in a few words."""
    if isinstance(output, Tensor):
        return f"{str(output.dtype).removeprefix('torch.')} {tuple(output.shape)}"
    entries = list(_entries(output)) if not isinstance(output, (str, bytes)) else []
    if not entries:
        return f"`{type(output).__name__}`"
    parts = [
        f"{key if isinstance(key, str) else ''}{' ' if isinstance(key, str) else ''}{_short(value)}" for key, value in entries[:5]
    ]
    return f"`{type(output).__name__}` of {', '.join(parts)}{' and more' if len(entries) > 5 else ''}"


def _short(value: Any) -> str:
    return described(value) if isinstance(value, Tensor) else ("None" if value is None else f"`{type(value).__name__}`")
