"""The gates of `--induction-run`: the claims about a training run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_induction.gates.items import Gates


def run_gates(reference: Callable[[], Any] | None) -> Gates:
    """Each claim, checked on a `TrainingRun`; whether it is later than a reference only where one is given."""

    def not_later(run: Any) -> Any:
        from pytest_induction.assertions.runs import assert_onset_not_later

        return assert_onset_not_later(run, reference() if reference else run)

    gates: Gates = {
        "log_is_sane": _named("run_state", "assert_log_is_sane"),
        "phase_change": _named("runs", "assert_phase_change", co_occurring=False),
        "cooccurrence": _named("runs", "assert_cooccurrence"),
        "heads_kept_to_the_end": _named("run_state", "assert_heads_kept"),
        "final_has_induction_head": _named("run_state", "assert_final_has_induction_head"),
    }
    return gates if reference is None else {**gates, "onset_not_later": not_later}


def _named(module: str, assertion: str, **options: Any) -> Callable[[Any], Any]:
    """The assertion, imported when it is used."""

    def check(run: Any) -> Any:
        from importlib import import_module

        return getattr(import_module(f"pytest_induction.assertions.{module}"), assertion)(run, **options)

    return check
