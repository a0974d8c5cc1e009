"""Hugging Face transformers: a directory whose config says which model it is."""

from __future__ import annotations

from pytest_induction.model.specs import CONFIG
from pytest_induction.runs.checkpoints.layouts.directory import WeightsDirectory


class Transformers(WeightsDirectory):
    """As `save_pretrained` and the Trainer write it: its config says which model it is."""

    name = "Hugging Face transformers"
    looks_like = f"a directory with {CONFIG} and the weights, as save_pretrained and the Trainer write it"
    maker = "transformers"
    beside = (CONFIG,)
    is_only_these = True
