"""What of a training run can be judged, by what is known of it, and what the rest would take."""

from __future__ import annotations

from pytest_induction.runs.record import TrainingRun
from pytest_induction.runs.series import REPEATS

HEADS_NEEDED = "scores of heads: record the training, or sweep its checkpoints"
ERRORS_NEEDED = "scores of every head with their errors: record the training, or sweep its checkpoints"
TEXT_NEEDED = "in-context learning: record or sweep with a held-out text"
LOSS_NEEDED = "a loss of the training"
IF_ASKED = ("formed_by", "onset_not_later")  # gates that there are only where an option asks for them


def wanting(run: TrainingRun) -> dict[str, tuple[str, ...]]:
    """The gates of a run, in their order -> what is missing for a verdict."""
    heads = () if run.has("prefix_matching") else (HEADS_NEEDED,)
    induction = () if any(map(run.has, REPEATS)) else heads
    text = () if run.has("icl_score") else (TEXT_NEEDED,)
    ends = any("excess" in each.errors and each.advantage is not None and each.n_sequences > 1 for each in run.snapshots)
    return {
        "log_is_sane": () if run.has("loss") else (LOSS_NEEDED,),
        "phase_change": induction,
        "cooccurrence": (*induction, *text),
        "heads_kept_to_the_end": heads,
        "final_has_induction_head": heads or (() if ends else (ERRORS_NEEDED,)),
        **dict.fromkeys(IF_ASKED, induction),
    }


def what_else(run: TrainingRun) -> str:
    """One line on a log: which claims it cannot decide, and what these would take; "" where there are none."""
    missing: dict[str, list[str]] = {}
    for gate, needs in wanting(run).items():
        for need in needs if gate not in IF_ASKED else ():
            missing.setdefault(need, []).append(gate)
    return "; ".join(f"{', '.join(gates)} need{'' if len(gates) > 1 else 's'} {need}" for need, gates in missing.items())
