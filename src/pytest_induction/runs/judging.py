"""What of a training run can be judged, by what is known of it, and what the rest would take."""

from __future__ import annotations

from pytest_induction.runs.record import TrainingRun
from pytest_induction.runs.series import REPEATS

HEADS_NEEDED = "scores of heads: record the training, or sweep its checkpoints"
TEXT_NEEDED = "in-context learning: record or sweep with a held-out text"
LOSS_NEEDED = "a loss of the training"


def wanting(run: TrainingRun) -> dict[str, str]:
    """The gates of a run -> what is missing for a verdict, "" for nothing; in their order."""
    heads = run.has("prefix_matching")
    induction = "" if heads or any(map(run.has, REPEATS)) else HEADS_NEEDED
    final = any("excess" in each.errors and each.advantage is not None and each.n_sequences > 1 for each in run.snapshots)
    return {
        "log_is_sane": "" if run.has("loss") else LOSS_NEEDED,
        "phase_change": induction,
        "cooccurrence": induction or ("" if run.has("icl_score") else TEXT_NEEDED),
        "heads_kept_to_the_end": "" if heads else HEADS_NEEDED,
        "final_has_induction_head": "" if heads and final else HEADS_NEEDED,
        "onset_not_later": induction,
    }


def what_else(run: TrainingRun) -> str:
    """One line on a log: which claims it cannot decide, and what these would take; "" where there are none."""
    missing: dict[str, list[str]] = {}
    for gate, need in wanting(run).items():
        if need and gate != "onset_not_later":
            missing.setdefault(need, []).append(gate)
    return "; ".join(f"{', '.join(gates)} need{'' if len(gates) > 1 else 's'} {need}" for need, gates in missing.items())
