"""One file of safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_induction.runs.checkpoints.layout import Layout, Weights
from pytest_induction.runs.places import Place


class Safetensors(Layout):
    """`model-100.safetensors`; a step may stand in its metadata."""

    name = "safetensors"
    looks_like = "a .safetensors file"
    is_of_a_library = False

    def fits(self, place: Place, names: Sequence[str]) -> bool:
        return not names and place.name.endswith(".safetensors")

    def read(self, path: Path) -> Weights:
        from pytest_induction.runs.checkpoints.stored import read_safetensors

        return read_safetensors(path)

    def step(self, path: Path) -> int | None:
        from pytest_induction.runs.checkpoints.stored import step_of_safetensors

        return step_of_safetensors(path)
