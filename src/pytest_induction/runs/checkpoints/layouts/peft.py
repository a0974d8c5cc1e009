"""PEFT: an adapter, which names the model that it is put on."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_induction.model.specs import ADAPTER_CONFIG
from pytest_induction.runs.checkpoints.layouts.directory import WeightsDirectory
from pytest_induction.runs.places import Place


class Adapter(WeightsDirectory):
    """An adapter of PEFT, which names its base."""

    name = "PEFT adapters"
    looks_like = f"a directory with {ADAPTER_CONFIG} and adapter_model.safetensors"
    maker = "transformers"
    weights = ("adapter_model.safetensors", "adapter_model.bin")

    def fits(self, place: Place, names: Sequence[str]) -> bool:
        del place
        return ADAPTER_CONFIG in names
