"""How the heads of a model are kept in a baseline, and a later model is held against them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_induction.baselines.checking import OfHeads
from pytest_induction.comparison.preserved import assert_heads_preserved, profile_of
from pytest_induction.comparison.profiles import HeadsProfile
from pytest_induction.records import Evidence

OF_PROFILES = ("n_sequences", "space")  # options of `profile_of` alone


def of_heads(text: Path | None) -> OfHeads:
    """Both, with this text where no other is given; what was kept without a text is compared without one."""

    def profile(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        known = inspect.signature(profile_of).parameters
        return profile_of(model, **{"text": text, **{name: each for name, each in options.items() if name in known}}).to_dict()

    def preserved(kept: Mapping[str, Any], where: str, model: Any, options: Mapping[str, Any]) -> Evidence:
        before = HeadsProfile.from_dict(kept, where)
        given = {name: each for name, each in options.items() if name not in OF_PROFILES}
        return assert_heads_preserved(before, model, **{"text": None if before.text is None else text, **given})

    return OfHeads(profile, preserved)
