"""OLMo: unsharded checkpoints of its own trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_induction.runs.checkpoints.layouts.directory import WeightsDirectory
from pytest_induction.runs.places import Place


class Olmo(WeightsDirectory):
    """An unsharded checkpoint of OLMo: the model beside the states of its optimiser and its trainer."""

    name = "OLMo"
    looks_like = "a directory with model.pt (or model.safetensors) beside train.pt"
    weights = ("model.safetensors", "model.pt")
    beside = ("train.pt",)
    is_only_these = True

    def parts(self, place: Place, names: Sequence[str]) -> Iterator[str]:
        return (name for name in super().parts(place, names) if name != "train.pt")
