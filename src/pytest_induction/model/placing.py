"""Models that are larger than a device: accelerate places their weights on GPUs, in main memory and on disk."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_induction.errors import ModelError
from pytest_induction.model.batching import free_memory
from pytest_induction.model.specs import AUTO

SHARE_FOR_WEIGHTS = 0.75  # of the memory that is free on a device; passes need some as well


@dataclass(frozen=True)
class Placing:
    """Where accelerate may put weights: how many bytes of each device, and a directory for those that fit nowhere.

    Layers that lie elsewhere are brought to the first device one at a time, in each pass. Weights in safetensors files stay
    there. The directory takes what is stored otherwise, and is removed with the model.
    """

    room: dict[int | str, int]
    folder: Path

    @property
    def options(self) -> dict[str, Any]:
        """For `from_pretrained` of transformers."""
        return {"device_map": AUTO, "max_memory": dict(self.room), "offload_folder": str(self.folder)}

    def ends_with(self, module: nn.Module) -> None:
        """Remove the directory when the module goes, at the latest when the process ends."""
        weakref.finalize(module, self.remove)

    def remove(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.folder, ignore_errors=True)


def placing(spec: str, memory: int | None) -> Placing:
    """Room for weights on every device that is here: `memory` bytes on each, or a share of what is free.

    Raises `ModelError` where accelerate is missing.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise ModelError(f"loading {spec!r} on the device {AUTO!r} needs accelerate: pip install 'pytest-induction[large]'")
    devices: dict[int | str, torch.device] = {each: torch.device("cuda", each) for each in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        devices["mps"] = torch.device("mps")
    devices["cpu"] = torch.device("cpu")
    room = {name: memory or int(SHARE_FOR_WEIGHTS * free_memory(device)) for name, device in devices.items()}
    return Placing(room, Path(tempfile.mkdtemp(prefix="pytest-induction-")))


def placed_on(module: nn.Module) -> tuple[str, ...]:
    """A note on where the weights of a placed module lie; none where all lie on one device."""
    places = sorted({str(place) for place in getattr(module, "hf_device_map", {}).values()})
    named = [f"GPU {place}" if place.isdigit() else place for place in places]
    return (f"weights lie on {', '.join(named)}, where accelerate placed them",) if len(named) > 1 else ()


def refuse(spec: str, what: str, cure: str) -> ModelError:
    """What to raise for a model that accelerate cannot place while it is loaded."""
    return ModelError(f"{spec!r} cannot be loaded on the device {AUTO!r}: {what}; {cure}")
