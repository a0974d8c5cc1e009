"""The original model, and the model to release with 8-bit weights. Set the environment variable MODEL to use yours."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHIPPED = Path(__file__).parents[2] / "fixtures" / "models" / "llama-2l"
BITS = 8


@pytest.fixture(scope="session")
def original() -> Any:
    """The model before it is quantised."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(os.environ.get("MODEL", SHIPPED), trust_remote_code=False)


@pytest.fixture(scope="session")
def quantised(original: Any) -> Callable[[int], Any]:
    """A function that returns the model with weights of so many bits. Put your own quantisation here, or load its result."""

    def made(bits: int) -> Any:
        import torch

        model = copy.deepcopy(original)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.copy_(rounded(parameter, bits))
        return model

    return made


def rounded(weight: Any, bits: int) -> Any:
    """The weight rounded row by row: whole numbers of that many bits, times one scale per row."""
    most = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / most
    return (weight / scale).round() * scale


@pytest.fixture(scope="session")
def induction_model(quantised: Callable[[int], Any]) -> Any:
    """The model to release, which the fixture `induction` tests."""
    return quantised(BITS)
