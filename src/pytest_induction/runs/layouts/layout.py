"""What a layout of checkpoints is. Imports no torch until something is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pytest_induction.runs.layouts.names import DESCRIBES, is_weights
from pytest_induction.runs.places import Place

if TYPE_CHECKING:
    from torch import Tensor

Maker = Literal["transformers", "factory"]


@dataclass(frozen=True)
class Weights:
    """Tensors by name, on the CPU, in memory of our own; and the step that the checkpoint states, in so many words."""

    tensors: Mapping[str, Tensor]
    step: int | None = None


def entries(place: Place) -> list[str]:
    """The names of what lies in a directory; none where it is no directory."""
    return place.names() if place.is_dir() else []


class Layout(ABC):
    """One way in which a training leaves its weights.

    A new one is a class, and a line in `listed.LAYOUTS`. A place is asked about with the names of its entries, none for a file,
    so that looking costs one listing. What reads is given a path on this machine, and raises `RunError` of one line.
    """

    name: ClassVar[str]
    """What messages call it."""
    looks_like: ClassVar[str]
    """By what it is known, for messages and the documentation."""
    maker: ClassVar[Maker] = "factory"
    """What makes the model that the weights are for."""
    refusal: ClassVar[str] = ""
    """Why it is not read, and how it is turned into what is; after the name of a checkpoint."""

    @abstractmethod
    def fits(self, place: Place, names: Sequence[str]) -> bool:
        """Whether a checkpoint at `place`, with entries of these names, is of this layout."""

    def parts(self, place: Place, names: Sequence[str]) -> Iterator[str]:
        """The files that make the model what it is, as paths below `place`: they are hashed, and copied from elsewhere."""
        del place
        return (name for name in names if is_weights(name) or name.endswith(".index.json") or DESCRIBES.fullmatch(name))

    @abstractmethod
    def read(self, path: Path) -> Weights:
        """The weights."""

    def step(self, path: Path) -> int | None:
        """The step that it states, at the cost of its header; raises `RunError` where that cannot be read."""
        return self.read(path).step

    def hinted_step(self, path: Path) -> int | None:
        """The step of one whose name tells none: also by a count that only some trainers take for that."""
        return self.step(path)


class NestedLayout(Layout):
    """One that other trainers put into a directory inside their own checkpoints."""

    @abstractmethod
    def inner(self, place: Place, names: Sequence[str]) -> str | None:
        """The directory in it that is of this layout, "" for itself; None where there is none."""

    @abstractmethod
    def held(self, names: Sequence[str]) -> list[str]:
        """Of what lies in that directory, the files that make the model what it is."""

    def fits(self, place: Place, names: Sequence[str]) -> bool:
        return self.inner(place, names) is not None

    def parts(self, place: Place, names: Sequence[str]) -> Iterator[str]:
        inner = self.inner(place, names)
        directory, prefix = (place / inner, f"{inner}/") if inner else (place, "")
        return (f"{prefix}{name}" for name in self.held(directory.names()))
