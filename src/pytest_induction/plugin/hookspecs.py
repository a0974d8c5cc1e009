"""The hooks that we offer to conftest.py files and plugins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn


@pytest.hookspec(firstresult=True)
def pytest_induction_attach(model: nn.Module) -> Callable[[], Any] | None:
    """Make a model show its attention that nothing else can read; return what undoes it, or None for a model you do not know.

    Called around every measurement. Hooks on the model's modules call `expose_attention` once for each layer, in order:

    >>> def pytest_induction_attach(model):
    ...     if not isinstance(model, MyModel):
    ...         return None
    ...     def show(module, inputs, output):
    ...         expose_attention(query=module.last_query, key=module.last_key)
    ...     handles = [block.attention.register_forward_hook(show) for block in model.blocks]
    ...     return lambda: [handle.remove() for handle in handles]
    """
