"""Every claim that comes with the package, one record each, in the order of reports. Standard library only.

Gates, the methods of the fixture, reports, baselines, JUnit properties and the tables of docs/reference.md follow from these
records. A claim of your own is registered in the same way: see docs/how-to/own-claim.md.
"""

from __future__ import annotations

from pytest_induction.registry import (
    BOTH_SIDES,
    GROUP,
    MODEL,
    OF_HEADS,
    PREFIX,
    RUN,
    Claim,
    Need,
    Subject,
    claim_named,
    claims,
    head_scores,
    next_step_for,
    place_of,
    register_claim,
    register_installed,
    restore,
    score_files,
    snapshot,
    source_of,
)

__all__ = [
    "BOTH_SIDES",
    "BUILT_IN",
    "GROUP",
    "MODEL",
    "OF_HEADS",
    "PREFIX",
    "RUN",
    "Claim",
    "Need",
    "Subject",
    "claim_named",
    "claims",
    "head_scores",
    "next_step_for",
    "place_of",
    "register_claim",
    "register_installed",
    "restore",
    "score_files",
    "snapshot",
    "source_of",
]

ABOUT_HEADS = {
    "no_head_matches": "if heads are expected: train further, or see every head with `measure_heads(model)`",
    "copies_without_a_head": "see every head with `measure_heads(model)`, pairs with `measure_virtual_heads(model)`",
    "copies_through_pairs": "with `allow_virtual=True` two heads in a row are enough; see `measure_virtual_heads(model)`",
    "formed": "the heads are named above; `measure_heads(model)` shows every one",
    "formed_virtual": "with `allow_virtual=False` only single heads count",
    "suppresses_what_it_matches": "a head that lowers what it finds suppresses copies; ablate it to see",
    "dormant": "heads may wake on other data: measure on your own with `measure_heads(model, tokens=...)`",
    "matches_without_copying": "see what heads write with `measure_copying(model)`, or see `measure_ablations(model)`",
    "copying_unclear": "draw more sequences with `max_sequences=`; the threshold is `min_advantage=`",
    "heads_unclear": "draw more sequences with `max_sequences=`; `find_induction_heads(model)` lists what is not clear",
    "weak_or_shared": "see every head with `measure_heads(model)`; less than `max_prefix_matching=` counts as none, "
    "`min_prefix_matching=` as an induction head",
    "silent": "see what the loss rises by without each head: `measure_ablations(model)`",
    "period_detector": "see irregular distances with `measure_match_lengths(model)`; train on repeats of varied distance",
    "needs_longer_match": "see `measure_match_lengths(model)`; allow longer matches with `match_length=`, or leave it out",
    "match_length_unclear": "see `measure_match_lengths(model)`; allow more with `max_sequences=`, or leave `match_length=` out",
    "in_longer_rows": "see how far heads reach with `measure_distances(model)`; less than `max_prefix_matching=` counts as none",
    "late_in_rows": "see which positions match with `measure_heads(model, tokens=...)`; less than `max_prefix_matching=` counts "
    "as none",
    "at_short_distances": "see how far heads reach with `measure_distances(model)`; less than `max_prefix_matching=` counts as "
    "none",
    "other_first_token": "if the model is used so, declare it (`bos_token_id` of its config); see such rows with "
    "`measure_heads(model, tokens=...)`; less than `max_prefix_matching=` counts as none",
    "budget_spent": "give it a larger `budget=`",
    "counts_back": "a head trained on one period only counts back: train on repeats of varied distance",
}
ABOUT_CHANGES = {
    "no_change": "if a change is expected: train further; what counts as one is `min_change=`",
    "gradual": "what counts as abrupt is `max_width=`, in decades",
    "formed": "when and how fast it was stands above",
    "matches_without_copying": "the head may suppress what it finds: `measure_copying` on a checkpoint tells",
    "too_late": "what is allowed is `before_tokens=`, or the bound in steps",
    "two_steps": "see both with `python -m pytest_induction draw RUN`; whether it is there in the end tells `assert_formed`",
    "behaviour_apart": "what the head matches may be used only later: see both with `python -m pytest_induction draw RUN`",
}
ABOUT_LAGS = {
    "apart": "what counts as together is `max_lag=`, in decades",
    "no_turn": "the path of token losses does not turn: see docs/runs.md#the-turn, or ask without (turn=False)",
    "turn_apart": "the path turns elsewhere: see docs/runs.md#the-turn, or ask without (turn=False)",
}
THE_BEST_HEAD = (f"{OF_HEADS}prefix_matching",)
LAGS = {"lag": f"{BOTH_SIDES}max_lag", "turn_lag": f"{BOTH_SIDES}max_lag"}
BY_THEN = {
    "end_tokens": "before_tokens",
    "end_steps": "before_step",
    "holds_from_tokens": "before_tokens",
    "holds_from_steps": "before_step",
}

MODELS = (
    Claim(
        name="has_induction_head",
        asserts="some head is an induction head",
        assertion="pytest_induction.heads.induction:assert_has_induction_head",
        decided_by=THE_BEST_HEAD,
        next_steps=ABOUT_HEADS,
        chart="heads",
        more="verdicts.md",
    ),
    Claim(
        name="no_induction_head",
        asserts="it is shown that no head is an induction head",
        assertion="pytest_induction.heads.induction:assert_no_induction_head",
        denies="has_induction_head",
        decided_by=THE_BEST_HEAD,
        next_steps=ABOUT_HEADS,
        chart="heads",
        needs=("asking",),
        more="verdicts.md#what-none-means",
    ),
    Claim(
        name="copies_repeats",
        asserts="repeated random tokens are completed",
        assertion="pytest_induction.behaviour.claims:assert_copies_repeats",
        decided_by=("repeat_accuracy",),
        held_against={"repeat_accuracy": "min_accuracy"},
        next_steps={"does_not_copy": "see `measure_heads(model)` for its heads; a lower threshold is `min_accuracy=`"},
        chart="repeats",
    ),
    Claim(
        name="learns_in_context",
        asserts="later tokens of a text are predicted better than early ones",
        assertion="pytest_induction.behaviour.claims:assert_learns_in_context",
        decided_by=("icl_score",),
        held_against={"icl_score": "max_score"},
        next_steps={
            "does_not_learn": "compare with a model trained further on the same text; the threshold is `max_score=`",
        },
        chart="text",
        needs=("text",),
    ),
    Claim(
        name="ablation_removes_icl",
        asserts="without its induction heads the model no longer learns in context, beyond layer-matched controls",
        assertion="pytest_induction.causal.in_context:assert_ablation_removes_icl",
        decided_by=("share ", "icl_score"),
        held_against={"share *": "min_share"},
        next_steps={
            "no_induction_head": "see every head with `measure_heads(model)`, or name some with `heads=`",
            "removes_too_little": "see every head with `measure_ablations(model)`; the threshold is `min_share=`",
            "no_more_than_controls": 'what others do is "control" above; see every head with `measure_ablations(model)`',
            "nothing_to_remove": "train further, or measure on a text from which the model learns in context",
            "kinds_disagree": "see each kind alone with `how=`; zero is far from what many heads give",
            "no_controls": "name fewer heads with `heads=`, so that others of their layers are left to compare with",
            "nothing_moves": "see what is read of the model: `python -m pytest_induction doctor`",
        },
        chart="ablations",
        needs=("asking",),
        more="causes.md",
    ),
    Claim(
        name="induction_circuit",
        asserts="the induction head finds its place through its keys, from previous-token heads, or by pointer arithmetic",
        assertion="pytest_induction.causal.circuit:assert_induction_circuit",
        held_against={"lost_through_keys": "min_share"},
        next_steps={
            "first_layer": "a first layer can only do it where keys see the token before, as smeared ones do",
            "weights_disagree": "see the weights of all heads with `measure_composition(model)` and `measure_copying(model)`",
            "not_through_keys": "what the head finds its place by is not known: `intervene(model, ...)` tries other paths",
            "no_previous_token_head": "a lower threshold is `min_previous_token=`; `measure_heads(model)` shows every head",
        },
        chart="composition",
        needs=("asking",),
        more="interventions.md#by-which-circuit",
    ),
    Claim(
        name="heads_generalize",
        asserts="named heads match by meaning too: by class, translation, pattern",
        assertion="pytest_induction.heads.semantic:assert_heads_generalize",
        next_steps={
            "does_not_generalize": "see every head with `measure_generality(model)`; what means alike is `classes=` and `pairs=`",
        },
        chart="heads",
        needs=("asking",),
        more="metrics.md#generality",
    ),
    Claim(
        name="property_holds",
        asserts="a property holds on every sequence that hypothesis generates",
        assertion="pytest_induction.runs.properties:assert_property_holds",
        next_steps={
            "fails": "look at the sequence alone with `check_property(model, ..., probes=[...])`",
            "holds": "more sequences are `max_examples=`",
        },
        chart="repeats",
        needs=("asking",),
        more="properties.md",
    ),
    Claim(
        name="heads_preserved",
        asserts="a later model kept the behaviour and the heads of the one before, whatever their numbers",
        assertion="pytest_induction.comparison.preserved:assert_heads_preserved",
        subject="pair of models",
        estimates="losses",
        next_steps={
            "behaviour_lost": "heads are told apart from behaviour above; what may be lost is `margins=`",
            "mechanism_lost": "see both models with `measure_heads(model)`; how many heads may go is `max_lost=`, how much "
            "`margins=`",
            "both_lost": "see both models with `measure_heads(model)`; what may be lost is `margins=`",
            "nothing_to_preserve": "compare with a model that has heads: `measure_heads(model)` shows what the one before has",
        },
        chart="heads",
        needs=("baseline",),
        more="baselines.md#does-my-new-model-still-have-its-heads",
    ),
    Claim(
        name="continuity",
        asserts="the models, or the training runs, of a family look alike in every measure, within stated margins",
        assertion="pytest_induction.comparison.continuity:assert_continuity",
        subject="family",
        estimates="largest differences",
        next_steps={
            "differs": "see each member with `measure_heads(model)`; what counts as alike is `margins=`, and None leaves one out",
        },
        needs=("asking",),
        more="runs.md#continuity",
    ),
)
RUNS = (
    Claim(
        name="log_is_sane",
        asserts="enough snapshots, every loss a number, none that diverged",
        assertion="pytest_induction.runs.heads_over_training:assert_log_is_sane",
        subject="run",
        next_steps={
            "not_sane": "see the loss: `python -m pytest_induction draw RUN`; a lower learning rate may keep it from diverging",
            "few_snapshots": "record the training more often",
        },
        chart="run",
        reads=("loss",),
    ),
    Claim(
        name="phase_change",
        asserts="induction formed abruptly, by when, and in-context learning with it",
        assertion="pytest_induction.runs.phase_change.claims:assert_phase_change",
        subject="run",
        decided_by=("width",),
        held_against={**LAGS, **BY_THEN},
        next_steps={**ABOUT_CHANGES, **ABOUT_LAGS},
        chart="run",
        reads=("induction",),
        collected_with={"co_occurring": False},  # which is a claim of its own
    ),
    Claim(
        name="no_phase_change",
        asserts="it is shown that induction did not form abruptly",
        assertion="pytest_induction.runs.phase_change.claims:assert_no_phase_change",
        subject="run",
        denies="phase_change",
        decided_by=("width",),
        held_against=LAGS,
        next_steps=ABOUT_CHANGES,
        chart="run",
        needs=("asking",),
        reads=("induction",),
    ),
    Claim(
        name="cooccurrence",
        asserts="in-context learning and induction change together, and the path of token losses turns there where it was "
        "recorded, in one run or over several",
        assertion="pytest_induction.runs.phase_change.claims:assert_cooccurrence",
        subject="run",
        decided_by=("lag",),
        held_against=LAGS,
        next_steps={**ABOUT_CHANGES, **ABOUT_LAGS},
        chart="run",
        reads=("induction", "icl_score"),
    ),
    Claim(
        name="coperturbation",
        asserts="what makes induction form earlier, or at all, moves in-context learning with it: two trainings, or seeds "
        "of each",
        assertion="pytest_induction.runs.perturbation:assert_coperturbation",
        subject="pair of runs",
        held_against={
            "lag": f"{BOTH_SIDES}max_lag",
            "shift_difference": f"{BOTH_SIDES}max_lag",
            "induction_shift": "min_shift",
            "icl_shift": "min_shift",
        },
        next_steps={
            "nothing_moves": "how far it must move is `min_shift=`, in decades",
            "induction_stays": "how far it must move is `min_shift=`, in decades",
            "icl_stays": "how far it must move is `min_shift=`, in decades",
            "changes_apart": "what counts as together is `max_lag=`, in decades",
            "moves_apart": "what counts as together is `max_lag=`, in decades",
        },
        chart="run",
        needs=("asking",),
        more="interventions.md#co-perturbation",
    ),
    Claim(
        name="previous_token_first",
        asserts="a report: previous-token heads form before induction heads",
        assertion="pytest_induction.runs.phase_change.claims:assert_previous_token_first",
        subject="run",
        decided_by=("lag",),
        next_steps={
            "previous_later": "trainings differ in the order: leave `gate=` out to have it reported only",
            "order_unclear": "record more snapshots around the changes, or leave `gate=` out",
            "no_two_changes": "train further, or record heads too; what counts as a change is `min_change=`",
        },
        chart="run",
        needs=("asking",),
        arguments={"gate": True},
    ),
    Claim(
        name="heads_kept",
        asserts="the best head at the end is about as good as the best there was",
        assertion="pytest_induction.runs.heads_over_training:assert_heads_kept",
        subject="run",
        decided_by=("final",),
        held_against={"final": "min_prefix_matching"},
        next_steps={
            "lost": "see `run.best_of_heads('prefix_matching')` for when it was lost",
            "never_there": "train further, or lower `min_prefix_matching=`",
        },
        chart="run",
        reads=("heads",),
    ),
    Claim(
        name="final_has_induction_head",
        asserts="the last snapshot has an induction head",
        assertion="pytest_induction.runs.heads_over_training:assert_final_has_induction_head",
        subject="run",
        decided_by=THE_BEST_HEAD,
        next_steps={
            "no_head_matches": "train further; a lower threshold is `min_prefix_matching=`",
            "matches_without_copying": ABOUT_CHANGES["matches_without_copying"],
        },
        chart="run",
        reads=("heads", "errors of heads"),
    ),
    Claim(
        name="formed",
        asserts="a head is there by so many tokens or steps, and at the end, however fast it came",
        assertion="pytest_induction.runs.heads_over_training:assert_formed",
        subject="run",
        decided_by=("formed",),
        next_steps={
            "not_there": "train further; thresholds are `min_prefix_matching=` and `min_advantage=`",
            "lost": "see `run.best_of_heads('prefix_matching')` for when it was lost",
        },
        chart="run",
        needs=("bound",),
        reads=("induction",),
        more="runs.md#formed-by-then",
    ),
    Claim(
        name="onset_not_later",
        asserts="induction begins to form no later than in a reference run",
        assertion="pytest_induction.runs.phase_change.claims:assert_onset_not_later",
        subject="run",
        decided_by=("onset_lag",),
        held_against={"onset_lag": "max_lag"},
        next_steps={
            **ABOUT_CHANGES,
            "later": "what is allowed is `max_lag=`, in decades; onsets vary with the seed of a training",
            "onset_unclear": "record more snapshots around the onset, in both runs",
        },
        chart="run",
        needs=("reference",),
        reads=("induction",),
    ),
    Claim(
        name="property_holds_from",
        asserts="from some snapshot on, by when, a property holds on generated sequences",
        assertion="pytest_induction.runs.properties:assert_property_holds_from",
        subject="run",
        decided_by=("holds_from_tokens", "holds_from_steps"),
        held_against=BY_THEN,
        next_steps={
            "holds": "which sequences were looked at is in `run.snapshots[...].hunts`; more are `max_examples=`",
            "fails_at_the_end": "train further, or ask less of the property, as `min_accuracy` does",
            "fails_later": "see all of them with `check_property(...)` without `holds_from=`, or ask less of the property",
            "too_late": ABOUT_CHANGES["too_late"],
        },
        chart="run",
        needs=("asking",),
        more="properties.md#over-a-training",
    ),
)

for _claim in (*MODELS, *RUNS):
    register_claim(_claim)

BUILT_IN = snapshot()
"""Those that come with the package, by name."""
