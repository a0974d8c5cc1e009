"""THE list of layouts, and what is asked of it. The first that fits is the one."""

from __future__ import annotations

from pytest_induction.runs.checkpoints.deepspeed import DeepSpeed
from pytest_induction.runs.checkpoints.directories import Accelerate, Adapter, Directory, LitGPT, Olmo, Transformers
from pytest_induction.runs.checkpoints.distributed import Distributed
from pytest_induction.runs.checkpoints.layout import Layout, entries
from pytest_induction.runs.checkpoints.megatron import Megatron
from pytest_induction.runs.checkpoints.single_files import Gguf, Safetensors, TorchFile
from pytest_induction.runs.places import Place

LAYOUTS: tuple[Layout, ...] = (
    Transformers(),
    Adapter(),
    Megatron(),
    Olmo(),
    LitGPT(),
    DeepSpeed(),
    Distributed(),
    Accelerate(),
    Gguf(),
    Directory(),
    Safetensors(),
    TorchFile(),
)


def layout_at(place: Place) -> Layout | None:
    """The layout of a checkpoint that lies at a place, or None where there is no checkpoint."""
    names = entries(place)
    return next((layout for layout in LAYOUTS if layout.fits(place, names)), None)


def expected() -> str:
    """What a directory of checkpoints may hold, for messages."""
    known = ", ".join(layout.name for layout in LAYOUTS if layout.name not in (Directory.name, Safetensors.name, TorchFile.name))
    return f"directories as checkpoint-500 or files as step_500.pt, with their step in the name or inside (of {known}, or alone)"
