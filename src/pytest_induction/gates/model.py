"""The gates of `--induction-model`: the claims about a model."""

from __future__ import annotations

from pytest_induction.gates.items import Gates

NEEDS_TEXT = ("learns_in_context",)


def model_gates(*, with_text: bool, more: Gates | None = None) -> Gates:
    """Each claim, checked on the session's `Induction`, and after them those of `more`."""
    gates: Gates = {
        "has_induction_head": lambda induction: induction.assert_has_induction_head(),
        "copies_repeats": lambda induction: induction.assert_copies_repeats(),
        "learns_in_context": lambda induction: induction.assert_learns_in_context(),
    }
    return {**{name: check for name, check in gates.items() if with_text or name not in NEEDS_TEXT}, **(more or {})}
