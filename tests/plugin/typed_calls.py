"""What a type checker knows of the fixture `induction`: each method takes what its assertion takes, and nothing else.

`make lint` checks this file; a call that is wrong says which error it must be, and where it is none, mypy reports a comment that is
not needed.
"""

from pytest_induction import Evidence, Induction
from pytest_induction.heads import CopyingScores, HeadScores


def right(induction: Induction) -> None:
    found: Evidence = induction.assert_copies_repeats(min_accuracy=0.9)
    found = induction.assert_has_induction_head(match_length=1, allow_virtual=True)
    found = induction.assert_learns_in_context(max_score=-0.2)
    found = induction.assert_learns_in_context("text.txt", max_score=-0.2)
    found = induction.assert_ablation_removes_icl(heads="L1H0")
    found = induction.assert_heads_preserved("before", max_lost=1)
    found = induction.assert_heads_generalize("L1H0", min_excess=0.1)
    scores: HeadScores = induction.measure_heads(n_sequences=4)
    copying: CopyingScores = induction.measure_copying()
    del found, scores, copying


def wrong(induction: Induction) -> None:
    induction.assert_copies_repeats(min_acuracy=0.9)  # type: ignore[call-arg]
    induction.assert_copies_repeats(min_accuracy="high")  # type: ignore[arg-type]
    induction.assert_learns_in_context(max_scores=1)  # type: ignore[call-arg]
    induction.assert_heads_preserved(max_lost=1)  # type: ignore[call-arg]
    induction.measure_heads(24)  # type: ignore[call-arg]
    induction.assert_copies_repeat()  # type: ignore[attr-defined]
    scores: int = induction.measure_heads()  # type: ignore[assignment]
    del scores
