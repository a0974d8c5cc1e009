"""Where steps are taken: in one pass, or in every pass of a model inside a block, whoever makes it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pytest_induction.errors import ModelError, UnsupportedModel
from pytest_induction.models.acting import Steps
from pytest_induction.models.calling import Caller, as_written
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.models.way_in import Refused

StepsFor = Callable[[Tensor, Callable[[Steps], None]], Steps]
"""Makes the steps of a pass over token ids (rows, positions); may run that pass with other steps before, as often as it likes."""


@contextmanager
def acting(subject: ModelUnderTest, tokens: Tensor, steps: Steps, *, first: int = 0) -> Iterator[None]:
    """In a pass over `tokens` (rows, positions) inside the block layers take these steps; `first` layers are not run in it.

    Raises `UnsupportedModel` where heads of this model cannot be made to act like that.
    """
    try:
        with subject.reading.acting(tokens, steps, first=first):
            yield
    except Refused as refused:
        raise UnsupportedModel(f"the heads of {subject.name} cannot be made to act otherwise: {refused}") from None


class Intervening:
    """Every pass of a model takes steps, as long as it is installed."""

    def __init__(self, subject: ModelUnderTest, steps_for: StepsFor) -> None:
        self._subject = subject
        self._steps_for = steps_for
        self._busy = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The block. Raises `ModelError` where the model is intervened on already."""
        subject = self._subject
        if subject.intervening is not None:
            raise ModelError(f"an intervention on {subject.name} is in force already: give one `intervene` all of them")
        caller = Caller(subject.module)
        with ExitStack() as stack:
            for part in (caller.module, *([] if caller.base is None else [caller.base])):
                stack.enter_context(self._around(part))
            stack.enter_context(as_written())
            subject.intervening = self
            try:
                yield
            finally:
                subject.intervening = None

    @contextmanager
    def outside(self, tokens: Tensor, run: Callable[[], Any]) -> Iterator[None]:
        """A measured pass over `tokens` inside the block takes the steps, where these must be taken around the measurement."""
        self._busy = True
        try:
            with self._taken(tokens, run):
                yield
        finally:
            self._busy = False

    @contextmanager
    def _around(self, part: nn.Module) -> Iterator[None]:
        own = vars(part).get("forward")
        forward = part.forward

        @functools.wraps(forward)
        def acted(*args: Any, **options: Any) -> Any:
            if self._busy:
                return forward(*args, **options)
            tokens = _tokens_in((*args, *options.values()))
            if tokens is None:
                raise ModelError(f"an intervention needs token ids (rows, positions) as the input of {self._subject.name}")
            self._busy = True
            try:
                with self._taken(tokens, lambda: forward(*args, **options)):
                    return forward(*args, **options)
            finally:
                self._busy = False

        part.forward = acted
        marker = part.register_forward_pre_hook(_nothing)  # or what was measured before is taken for what is measured now
        try:
            yield
        finally:
            marker.remove()
            if own is None:
                del part.forward
            else:
                part.forward = own

    @contextmanager
    def _taken(self, tokens: Tensor, run: Callable[[], Any]) -> Iterator[None]:
        def run_with(steps: Steps) -> None:
            with torch.no_grad(), acting(self._subject, tokens, steps):
                run()

        with acting(self._subject, tokens, self._steps_for(tokens, run_with)):
            yield


def _tokens_in(given: Sequence[Any]) -> Tensor | None:
    """The first token ids (rows, positions) among what a model was given."""
    return next((each for each in given if isinstance(each, Tensor) and each.ndim == 2 and not each.is_floating_point()), None)


def _nothing(part: nn.Module, inputs: Any) -> None:
    """A hook that changes nothing."""
