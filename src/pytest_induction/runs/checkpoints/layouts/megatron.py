"""Megatron: refused with the way to a layout that is read. Its weights are fused, cut over ranks, and named otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_induction.errors import RunError
from pytest_induction.runs.checkpoints.layout import Layout, Weights, entries
from pytest_induction.runs.places import Place

_RANK = re.compile(r"mp_rank_\d\d(_\d\d\d)*")
_FILES = ("model_optim_rng.pt", "model_rng.pt")


class Megatron(Layout):
    """`iter_0000100` with a directory for each rank, or with the distributed format of Megatron core."""

    name = "Megatron"
    looks_like = "a directory with mp_rank_00/model_optim_rng.pt, or with common.pt beside .metadata"
    refusal = (
        "is of Megatron, whose weights are fused and cut over ranks: convert it to Hugging Face's layout first, with Megatron "
        "Bridge as AutoBridge.from_hf_pretrained(NAME).export_ckpt(MEGATRON_PATH, HF_PATH), and sweep what that writes"
    )

    def fits(self, place: Place, names: Sequence[str]) -> bool:
        if "common.pt" in names and any(name in names for name in (".metadata", "metadata.json", "modelopt_state")):
            return True
        rank = next((name for name in names if _RANK.fullmatch(name)), None)
        return rank is not None and any(name in _FILES for name in entries(place / rank))

    def parts(self, place: Place, names: Sequence[str]) -> Iterator[str]:
        del place, names
        return iter(())  # there is nothing to be measured

    def read(self, path: Path) -> Weights:
        raise RunError(f"{path.name} {self.refusal}")

    def step(self, path: Path) -> int | None:
        del path
        return None
