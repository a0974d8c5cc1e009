"""A bare pass, and processor time in such passes: 12 rows of 101 tokens with logits, as anyone calls the model."""

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pytest_induction import Evidence, ExpectationFailed
from pytest_induction.spending import POSITIONS, ROWS

FEWEST_ID, MOST_IDS = 5, 1000  # special ids come first in most vocabularies


def bare_pass(module: nn.Module) -> Callable[[], Any]:
    """One forward pass of a model of transformers, of fewer positions where its context is shorter."""
    most = min(MOST_IDS, module.get_input_embeddings().num_embeddings)
    positions = min(POSITIONS, module.config.max_position_embeddings)
    ids = torch.randint(FEWEST_ID, most, (ROWS, positions), generator=torch.Generator().manual_seed(0))

    def run() -> Any:
        with torch.no_grad():
            return module(ids, use_cache=False)

    return run


def processor_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """What a call takes of the processors, and what it gives."""
    gc.collect()
    started = time.process_time()
    found = call()
    return time.process_time() - started, found


def verdict(call: Callable[[], Evidence]) -> Evidence:
    """The evidence of an assertion, whatever the verdict."""
    try:
        return call()
    except ExpectationFailed as failure:
        return failure.evidence
