"""litgpt: `lit_model.pth` and a config of its own."""

from __future__ import annotations

from pytest_induction.runs.checkpoints.layouts.directory import WeightsDirectory


class LitGPT(WeightsDirectory):
    """As litgpt writes it: `lit_model.pth`, and what model it is in a file of its own."""

    name = "litgpt"
    looks_like = "a directory with lit_model.pth, as litgpt writes it beside model_config.yaml"
    weights = ("lit_model.pth",)
    is_only_these = True
