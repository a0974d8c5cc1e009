"""Way in 4: TransformerLens hook points, of a `TransformerBridge` or an older hooked model. Nothing is imported for it."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from pytest_induction.models.attention import PatternReader
from pytest_induction.models.calling import Caller, logits_of
from pytest_induction.models.protocol import NotInUse, Observer, Refused, Show, WayIn, all_seen

PATTERN = re.compile(r"blocks\.(\d+)\.attn\.hook_pattern")


class HookPointWay(WayIn):
    """Listens at `blocks.*.attn.hook_pattern`. TransformerLens computes whole patterns in any case."""

    name = "TransformerLens hook_pattern"

    def __init__(self, caller: Caller, tokens: Tensor, expected: int | None) -> None:
        self._caller = caller
        hook_points = getattr(caller.module, "hook_dict", None)
        if not isinstance(hook_points, dict):
            raise NotInUse("no TransformerLens hook points")
        found = {int(match[1]): point for name, point in hook_points.items() if (match := PATTERN.fullmatch(name))}
        self._points: list[nn.Module] = [found[layer] for layer in sorted(found)]
        self.layers = tuple(f"blocks.{layer}.attn" for layer in sorted(found))
        show = Show()
        self._listen(tokens, None, show)
        if not show.heads or len(show.heads) != len(self.layers) or (expected is not None and len(show.heads) != expected):
            raise Refused(f"{len(show.heads)} patterns seen at {len(self.layers)} hook points for {expected} layers")
        self.heads = tuple(show.heads)

    def run(
        self, tokens: Tensor, attention_mask: Tensor | None, observer: Observer, *, logits: bool, early_stop: bool = False
    ) -> Tensor | None:
        show = Show(observer, last=len(self.layers) if early_stop and not logits else None)
        output = None
        with show.until_last():
            output = self._listen(tokens, attention_mask, show)
        all_seen(self, len(show.heads))
        return logits_of(output, tokens) if logits else None

    def _listen(self, tokens: Tensor, attention_mask: Tensor | None, show: Show) -> Any:
        def heard(module: nn.Module, inputs: Any, pattern: Any) -> None:
            if not isinstance(pattern, Tensor) or pattern.ndim != 4 or pattern.shape[-1] != tokens.shape[1]:
                raise Refused("`hook_pattern` carries no pattern (batch, heads, positions, positions)")
            show(PatternReader(pattern))

        handles = [point.register_forward_hook(heard) for point in self._points]
        try:
            return self._caller(tokens, attention_mask)
        finally:
            for handle in handles:
                handle.remove()
