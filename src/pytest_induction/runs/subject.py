"""The model under test of a training: made once, as that takes long, and kept as long as the module is the same object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pytest_induction.batching import SHARE_OF_FREE, free_memory
from pytest_induction.errors import InductionError, ModelError
from pytest_induction.journal import attached
from pytest_induction.models.adapt import adapt
from pytest_induction.models.calling import device_of, first_line, uncompiled
from pytest_induction.models.load import load_model
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.models.shown import Attach
from pytest_induction.runs.together import is_spread, least_of, let_go, made_ready, why_not_together


class Subject:
    """Turns the module that a training calls its model into a model under test.

    One that failed is tried again, for weights may be finite later; but not at once, for each trial takes time: after one more
    snapshot, then after two, four, eight.
    """

    def __init__(self, *, seed: int, attach: Attach | Sequence[Attach], tokenizer: Any, without_pattern: Sequence[str]) -> None:
        self._seed = seed
        self._without = without_pattern
        self._attach = (attach,) if callable(attach) else tuple(attach)
        self._tokenizer = tokenizer
        self._module: object = None
        self._made: ModelUnderTest | None = None
        self._failure = ""
        self._patience = self._wait = 0
        self._placed: object = None
        self._is_spread = False

    def is_spread(self, model: nn.Module | ModelUnderTest) -> bool:
        """Whether a pass of the model needs every process of the training; looked at once for each object."""
        if model is not self._placed:
            module = unwrapped(model) if isinstance(model, nn.Module) else model.module
            self._placed, self._is_spread = model, is_spread(module)
        return self._is_spread

    def known(self, model: nn.Module | ModelUnderTest) -> ModelUnderTest | None:
        """The model under test of this module, if it was made already."""
        return self._made if model is self._module else None

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Take this one, if no other was given."""
        if self._tokenizer is None:
            self._tokenizer = tokenizer

    def of(self, model: nn.Module | ModelUnderTest) -> ModelUnderTest:
        """The model under test of this module. Raises `ModelError` where it cannot be one, and whatever it raises itself."""
        if model is not self._module:
            self._module, self._made, self._failure = model, None, ""
            self._patience, self._wait = 1, 0
        if self._made is not None:
            return self._made
        if self._wait > 0:
            self._wait -= 1
            raise ModelError(self._failure)
        try:
            self._made = self._make(model)
        except Exception as error:
            self._failure = (
                first_line(error) if isinstance(error, InductionError) else f"{type(error).__name__}: {first_line(error)}"
            )
            self._patience, self._wait = 2 * self._patience, self._patience
            raise
        return self._made

    def forget(self) -> None:
        """Try the next model anew, though it be the one that failed."""
        self._module = self._made = None

    def _make(self, model: nn.Module | ModelUnderTest) -> ModelUnderTest:
        if not isinstance(model, nn.Module):
            return load_model(model, seed=self._seed, without_pattern=self._without)
        check_can_run(model)
        module = unwrapped(model)
        attach = (*self._attach, *attached())
        memory = None
        if is_spread(module):  # as many rows share a pass in every process
            made_ready(module)
            device = device_of(module)
            memory = least_of(int(SHARE_OF_FREE * free_memory(device)), device)
        settings: dict[str, Any] = {"attach": attach, "without_pattern": self._without, "memory": memory}
        return adapt(module, tokenizer=self._tokenizer, seed=self._seed, **settings)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that `DistributedDataParallel` has wrapped: a pass of the wrapper may wait for the other processes."""
    inner = uncompiled(module)
    return inner.module if isinstance(inner, DistributedDataParallel) else module


def check_can_run(model: nn.Module | ModelUnderTest) -> None:
    """Raise `ModelError` for a model of which no process has all heads. Every process can ask, and gets the same answer."""
    module = unwrapped(model) if isinstance(model, nn.Module) else model.module
    why = why_not_together(module) if is_spread(module) else ""
    if why:
        raise ModelError(f"`{type(module).__name__}` cannot be measured while it trains: {why}: measure its checkpoints instead")


def said(error: Exception) -> str:
    """What an error says in one line: ours speak for themselves, others with their kind."""
    words = first_line(error)
    return words if isinstance(error, InductionError) else f"{type(error).__name__}: {words}"


def let_go_of(model: nn.Module | ModelUnderTest) -> None:
    """Let a model that is spread keep no more than its shards, as between the steps of its training."""
    let_go(model if isinstance(model, nn.Module) else model.module)


def place_of(model: nn.Module | ModelUnderTest) -> torch.device:
    """The device that the model is on."""
    return model.device if isinstance(model, ModelUnderTest) else device_of(model)


def wait_for(model: nn.Module | ModelUnderTest) -> None:
    """Let the device finish the steps that it was given, which are the training's."""
    device = place_of(model)
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
