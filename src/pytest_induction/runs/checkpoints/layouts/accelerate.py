"""accelerate: what `Accelerator.save_state` leaves."""

from __future__ import annotations

from pytest_induction.runs.checkpoints.layouts.directory import WeightsDirectory


class Accelerate(WeightsDirectory):
    """As `Accelerator.save_state` writes it: weights, and random states of every process."""

    name = "accelerate"
    looks_like = "a directory with model.safetensors or pytorch_model.bin beside random_states_0.pkl"
    beside = ("random_states_0.pkl",)
    is_only_these = True
