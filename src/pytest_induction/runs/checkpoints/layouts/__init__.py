"""The layouts of checkpoints, a module each. `LAYOUTS` is the one list; the first that fits is the one. Needs no torch."""

from __future__ import annotations

from pytest_induction.runs.checkpoints.layout import Layout, entries
from pytest_induction.runs.checkpoints.layouts.accelerate import Accelerate
from pytest_induction.runs.checkpoints.layouts.deepspeed import DeepSpeed
from pytest_induction.runs.checkpoints.layouts.directory import Directory
from pytest_induction.runs.checkpoints.layouts.distributed import Distributed
from pytest_induction.runs.checkpoints.layouts.gguf import Gguf
from pytest_induction.runs.checkpoints.layouts.litgpt import LitGPT
from pytest_induction.runs.checkpoints.layouts.megatron import Megatron
from pytest_induction.runs.checkpoints.layouts.olmo import Olmo
from pytest_induction.runs.checkpoints.layouts.peft import Adapter
from pytest_induction.runs.checkpoints.layouts.safetensors import Safetensors
from pytest_induction.runs.checkpoints.layouts.torch_file import TorchFile
from pytest_induction.runs.checkpoints.layouts.transformers import Transformers
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
    known = ", ".join(layout.name for layout in LAYOUTS if layout.is_of_a_library)
    return f"directories as checkpoint-500 or files as step_500.pt, with their step in the name or inside (of {known}, or alone)"
