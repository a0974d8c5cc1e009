"""One file that `torch.save` wrote, from any trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_induction.runs.checkpoints.layout import Layout, Weights, is_weights
from pytest_induction.runs.places import Place


class TorchFile(Layout):
    """Whatever `torch.save` wrote: a state dict, or one in the larger state of a trainer.

    The nestings are those of Lightning (`state_dict`), nanoGPT and litgpt (`model`), Composer (`state`, `model`), DeepSpeed
    (`module`), and of own loops.
    """

    name = "torch.save (Lightning, Composer, nanoGPT, own loops)"
    looks_like = "a .pt, .pth, .ckpt or .bin file"
    is_of_a_library = False

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
