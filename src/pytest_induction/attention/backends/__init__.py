"""The attention backends, a module each. `BACKENDS` is the one list; the first that reads a model is the one."""

from __future__ import annotations

from pytest_induction.attention.backend import AttentionBackend
from pytest_induction.attention.backends.eager import EagerBackend
from pytest_induction.attention.backends.exposed import ExposedBackend
from pytest_induction.attention.backends.flex import FlexBackend
from pytest_induction.attention.backends.registry import RegistryBackend
from pytest_induction.attention.backends.sdpa import SdpaBackend
from pytest_induction.attention.backends.softmax import SoftmaxBackend
from pytest_induction.attention.backends.transformer_lens import HookPointBackend

BACKENDS: tuple[type[AttentionBackend], ...] = (
    ExposedBackend,
    SdpaBackend,
    FlexBackend,
    RegistryBackend,
    EagerBackend,
    HookPointBackend,
    SoftmaxBackend,
)
"""In the order in which they are verified."""
