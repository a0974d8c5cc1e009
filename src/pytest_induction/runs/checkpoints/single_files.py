"""Single files of weights: safetensors, what `torch.save` wrote (of whichever trainer), and GGUF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_induction.errors import RunError
from pytest_induction.runs.checkpoints.layout import Layout, Weights, is_weights
from pytest_induction.runs.places import Place


class Safetensors(Layout):
    """`model-100.safetensors`; a step may stand in its metadata."""

    name = "safetensors"
    looks_like = "a .safetensors file"

    def fits(self, place: Place, names: Sequence[str]) -> bool:
        return not names and place.name.endswith(".safetensors")

    def read(self, path: Path) -> Weights:
        from pytest_induction.runs.checkpoints.stored import read_safetensors

        return read_safetensors(path)

    def step(self, path: Path) -> int | None:
        from pytest_induction.runs.checkpoints.stored import step_of_safetensors

        return step_of_safetensors(path)


class TorchFile(Layout):
    """Whatever `torch.save` wrote: a state dict, or one in the larger state of a trainer.

    The nestings are those of Lightning (`state_dict`), nanoGPT and litgpt (`model`), Composer (`state`, `model`), DeepSpeed
    (`module`), and of own loops.
    """

    name = "torch.save (Lightning, Composer, nanoGPT, own loops)"
    looks_like = "a .pt, .pth, .ckpt or .bin file"

    def fits(self, place: Place, names: Sequence[str]) -> bool:
        return not names and is_weights(place.name)

    def read(self, path: Path) -> Weights:
        from pytest_induction.runs.checkpoints.stored import read_pickle

        return read_pickle(path)

    def step(self, path: Path) -> int | None:
        from pytest_induction.runs.checkpoints.stored import steps_of_pickle

        return steps_of_pickle(path)[0]

    def hinted_step(self, path: Path) -> int | None:
        from pytest_induction.runs.checkpoints.stored import steps_of_pickle

        stated, hinted = steps_of_pickle(path)
        return hinted if stated is None else stated


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
