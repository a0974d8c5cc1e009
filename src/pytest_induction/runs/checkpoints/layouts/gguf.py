"""GGUF: a file of llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_induction.errors import RunError
from pytest_induction.runs.checkpoints.layout import Layout, Weights, is_weights
from pytest_induction.runs.places import Place


class Gguf(Layout):
    """A file of llama.cpp, which transformers turns into a model of its own; quantised weights are widened as they are read."""

    name = "GGUF"
    looks_like = "a .gguf file, or a directory with one"
    maker = "transformers"

    def fits(self, place: Place, names: Sequence[str]) -> bool:
        return sum(name.endswith(".gguf") for name in names or [place.name]) == 1 and not any(
            is_weights(name) and not name.endswith(".gguf") for name in names
        )

    def read(self, path: Path) -> Weights:
        raise RunError(f"{path.name} is a GGUF file, which transformers makes the model of: leave the factory out")

    def step(self, path: Path) -> int | None:
        del path
        return None
