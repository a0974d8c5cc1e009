"""One forward pass in which what each head found is seen before it is written to the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pytest_induction.models.anatomy import first_tensor, mix
from pytest_induction.models.attention import Reader
from pytest_induction.models.calling import full_precision
from pytest_induction.models.changing import add_hooks
from pytest_induction.models.head_weights import Circuits
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.undoing import Changes, puts_back

Take = Callable[[int, Tensor, Tensor | None], None]
"""Is handed a layer's number, what its heads found (batch, positions, n_heads, d_head), and the pattern if it is asked for.

What heads found is over the scale of the norm behind attention, where one is: times `LayerCircuits.outs` it is what they write.
"""


class Watch:
    """Watches passes of a model whose circuits are known. The output projection is given what its heads found, side by side."""

    def __init__(self, subject: ModelUnderTest, circuits: Circuits) -> None:
        self._subject = subject
        self._circuits = circuits
        base = subject.caller.base
        self._with_logits = base is not None and circuits.ends not in set(base.modules())

    def __call__(self, tokens: Tensor, take: Take, *, patterns: bool = False) -> Tensor:
        """One pass over `tokens` (batch, positions): gives the scale of the final norm at each, and `take` each layer in order.

        With `patterns`, `take` also gets what the heads attend to, (batch, n_heads, positions, positions).
        """
        return self._pass(tokens, take, patterns=patterns, logits=self._with_logits)[0]

    def with_logits(self, tokens: Tensor, take: Take) -> tuple[Tensor, Tensor]:
        """The same, and the logits (batch, positions, d_vocab) of the pass."""
        return self._pass(tokens, take, patterns=False, logits=True)

    @puts_back
    def _pass(self, tokens: Tensor, take: Take, *, patterns: bool, logits: bool) -> tuple[Tensor, Any]:
        one = _Pass(self._circuits, tokens, take, patterns=patterns)
        with Changes() as changes:
            for part, heard in one.listeners():
                add_hooks(changes, [part], heard, before=True, with_kwargs=True)
            predicted = self._subject.observe(tokens, one.shown, logits=logits, early_stop=False)
        scale = one.scale if one.scale is not None else torch.ones(tokens.shape, device=self._subject.device)
        return scale, predicted

    @puts_back
    def scales_behind(self, tokens: Tensor) -> list[Tensor]:
        """What the norm behind each layer's attention divides by in one pass, (batch, positions) each; 1 where none is."""
        found = [torch.ones(tokens.shape)] * len(self._circuits.layers)

        def heard(number: int, given: Tensor) -> None:
            found[number] = self._circuits.layers[number].behind.scale(given)

        layers = [(number, layer.normed) for number, layer in enumerate(self._circuits.layers) if layer.normed is not None]
        with Changes() as changes:
            for number, part in layers:
                add_hooks(changes, [part], _listening(partial(heard, number)), before=True, with_kwargs=True)
            self._subject.observe(tokens, lambda number, attention: None, early_stop=False)
        return found


class _Pass:
    """What is seen in one pass, as it comes.

    A way in may show the pattern before what the heads found, or after; the norm behind attention runs after both.
    """

    def __init__(self, circuits: Circuits, tokens: Tensor, take: Take, *, patterns: bool) -> None:
        self.scale: Tensor | None = None
        self._circuits = circuits
        self._positions = range(tokens.shape[1])
        self._take = take
        self._patterns = patterns
        self._given: dict[int, Tensor] = {}  # of each layer that lacks the rest; so the other two
        self._pattern: dict[int, Tensor] = {}
        self._behind: dict[int, Tensor] = {}  # scales of the norms behind attention

    def listeners(self) -> list[tuple[nn.Module, Callable[..., None]]]:
        """The modules to listen to before they run, and what listens."""
        found: list[tuple[nn.Module, Callable[..., None]]] = []
        for number, layer in enumerate(self._circuits.layers):
            found.append((layer.writes or layer.reads, _listening(partial(self._found, number))))
            if layer.normed is not None:
                found.append((layer.normed, _listening(partial(self._normed, number))))
        return found if self._circuits.ends is None else [*found, (self._circuits.ends, _listening(self._ended))]

    def shown(self, number: int, attention: Reader) -> None:
        """Take the pattern of a layer, where it is of use."""
        if self._needs_pattern(number):
            self._pattern[number] = attention.pattern_of(self._positions)
            self._hand_on(number)

    def _found(self, number: int, given: Tensor) -> None:
        self._given[number] = given
        self._hand_on(number)

    def _normed(self, number: int, given: Tensor) -> None:
        self._behind[number] = self._circuits.layers[number].behind.scale(given)
        self._hand_on(number)

    def _needs_pattern(self, number: int) -> bool:
        return self._patterns or self._circuits.layers[number].writes is None

    def _hand_on(self, number: int) -> None:
        """What is there of a layer, once all of it is."""
        layer = self._circuits.layers[number]
        lacking = (
            number not in self._given,
            self._needs_pattern(number) and number not in self._pattern,
            layer.normed is not None and number not in self._behind,
        )
        if any(lacking):
            return
        given, pattern = self._given.pop(number), self._pattern.pop(number, None)
        if layer.writes is not None:
            found = given.unflatten(-1, (layer.n_heads, -1))
        elif pattern is None:
            raise TypeError("what the heads of a layer found is not known without their pattern")
        else:
            found = mix(pattern, layer.values_of(given))
        if layer.normed is not None:
            found = found / self._behind.pop(number)[..., None, None]
        self._take(number, found, pattern if self._patterns else None)

    def _ended(self, residual: Tensor) -> None:
        self.scale = self._circuits.final_norm.scale(residual)


def _listening(heard: Callable[[Tensor], None]) -> Callable[..., None]:
    """A hook that hands on the first tensor that a module is given."""

    def before(part: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = first_tensor((options.get("value_input"), *inputs, *options.values()))
        if given is not None:
            with full_precision(given.device.type):
                heard(given)

    return before
