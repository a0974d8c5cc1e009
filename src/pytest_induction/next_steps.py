"""What to do next, by the reason of a verdict, where several claims give the same reasons. Standard library only."""

ABOUT_HEADS = {
    "no_head_matches": "if you expect heads, train further, or see every head with `measure_heads(model)`",
    "copies_without_a_head": "see every head with `measure_heads(model)`, and pairs of heads with `measure_virtual_heads(model)`",
    "copies_through_pairs": "with `allow_virtual=True` two heads in a row are enough; see `measure_virtual_heads(model)`",
    "formed": "the heads are named above; `measure_heads(model)` shows all heads",
    "formed_virtual": "with `allow_virtual=False` only single heads count",
    "suppresses_what_it_matches": "a head that makes the token it finds less likely suppresses copies; ablate it to check",
    "dormant": "heads may be active on other data: measure on your own tokens with `measure_heads(model, tokens=...)`",
    "matches_without_copying": "see what heads write with `measure_copying(model)`, or see `measure_ablations(model)`",
    "copying_unclear": "draw more sequences with `max_sequences=`; the threshold is `min_advantage=`",
    "heads_unclear": "draw more sequences with `max_sequences=`; `find_induction_heads(model)` lists the unclear heads",
    "weak_or_shared": "see every head with `measure_heads(model)`; a head below `max_prefix_matching=` counts as none, "
    "one above `min_prefix_matching=` as an induction head",
    "silent": "see how much the loss rises without each head: `measure_ablations(model)`",
    "period_detector": "see heads at irregular distances with `measure_match_lengths(model)`; train on varied distances",
    "needs_longer_match": "see `measure_match_lengths(model)`; set a longer `match_length=`, or leave it out",
    "match_length_unclear": "see `measure_match_lengths(model)`; raise `max_sequences=`, or leave `match_length=` out",
    "in_longer_rows": "see the reach of heads with `measure_distances(model)`; below `max_prefix_matching=` it counts as none",
    "late_in_rows": "see which positions match with `measure_heads(model, tokens=...)`; below `max_prefix_matching=` "
    "a head counts as none",
    "at_short_distances": "see the reach of heads with `measure_distances(model)`; below "
    "`max_prefix_matching=` a head counts as none",
    "other_first_token": "if the model is used with that first token, declare it (`bos_token_id` of its config); see such "
    "rows with `measure_heads(model, tokens=...)`; below `max_prefix_matching=` a head counts as none",
    "budget_spent": "give a larger `budget=`",
    "counts_back": "a head trained on a single period just counts back: train on repeats of varied distance",
}
ABOUT_CHANGES = {
    "no_change": "if you expect a change, train further; `min_change=` says how large it must be",
    "gradual": "`max_width=`, in decades, says what counts as abrupt",
    "formed": "the time and the width of the change are shown above",
    "matches_without_copying": "the head may suppress what it finds: check with `measure_copying` on a checkpoint",
    "too_late": "the limit is `before_tokens=`, or the one in steps",
    "two_steps": "see both with `python -m pytest_induction draw RUN`; `assert_formed` tests for induction at the end",
    "behaviour_apart": "the model may use the matches only later: see both curves with `python -m pytest_induction draw RUN`",
}
ABOUT_LAGS = {
    "apart": "`max_lag=`, in decades, says what counts as together",
    "no_turn": "the path of token losses does not turn: see docs/runs.md#the-turn, or leave it out with `turn=False`",
    "turn_apart": "the path turns elsewhere: see docs/runs.md#the-turn, or leave it out with `turn=False`",
}
ABOUT_DROPS = {
    "kept": "`max_drop=`, in the unit of the series, says how much may be lost",
    "lost_again": "see when with `python -m pytest_induction draw RUN`; keep the checkpoint of the peak, or try weight decay",
    "drop_unclear": "record with more sequences (`n_sequences=`), and more snapshots at the peak and at the end",
    "never_formed": "train further, or name another `series=`",
    "few_snapshots": "record the training more often",
}
