"""Which heads are ablated, chosen on other sequences than they are tested on."""

from __future__ import annotations

from dataclasses import replace

from pytest_induction.errors import ArgumentError
from pytest_induction.heads.criteria import MIN_PREFIX_MATCHING
from pytest_induction.heads.induction import judged_induction_head, list_of_heads
from pytest_induction.heads.table import Thresholds
from pytest_induction.interventions.arguments import HeadsLike, heads_of
from pytest_induction.measuring.observing import provenance
from pytest_induction.measuring.rounds import MAX_SEQUENCES
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.records import Evidence, HeadId, HeadList, Verdict

INDUCTION = "induction"


def chosen_heads(
    claim: str, subject: ModelUnderTest, heads: HeadsLike, sampling: tuple[float, int]
) -> tuple[tuple[HeadId, ...], Evidence]:
    """The heads to ablate, and what chose them; none where there is no induction head, or that is not clear.

    `sampling` is the error rate for choosing them, and the seed.
    """
    budget = (MAX_SEQUENCES, *sampling)
    if not (isinstance(heads, str) and heads == INDUCTION):
        named = heads_of(subject, heads)
        if not named:
            raise ArgumentError("`heads` must be at least one head, got none")
        about = provenance(subject, seed=sampling[1])
        return named, Evidence(claim, Verdict.UNDETERMINED, "", "", about)
    listed = list_of_heads(subject, Thresholds(), budget)
    about = replace(listed.provenance, notes=(*listed.provenance.notes, *_left_open(listed)))
    thresholds = {"min_prefix_matching": MIN_PREFIX_MATCHING}
    if listed.heads:
        found = Evidence(
            claim, Verdict.UNDETERMINED, "", "", about, heads=listed.heads, thresholds=thresholds, head_map=listed.head_map
        )
        return heads_of(subject, listed.heads), found
    found = judged_induction_head(subject, Thresholds(), budget, allow_virtual=False)
    if found.verdict is Verdict.SHOWN:  # a head near the threshold, of which more sequences have told
        return heads_of(subject, found.heads), replace(found, claim=claim, verdict=Verdict.UNDETERMINED, reason="", summary="")
    if found.verdict is Verdict.REFUTED:
        summary = f"there is no induction head to ablate: {found.summary}"
        return (), replace(found, claim=claim, reason="no_induction_head", summary=summary)
    summary = f"which heads to ablate is not clear: {found.summary}"
    return (), replace(found, claim=claim, verdict=Verdict.UNDETERMINED, summary=summary)


def _left_open(listed: HeadList) -> tuple[str, ...]:
    """What to say of heads that were not ablated, though they may be induction heads."""
    left_open = {
        f"within {listed.band:g} of the threshold, and not ablated": listed.near,
        f"not clear, and not ablated (about {listed.more_sequences} more sequences would tell)": listed.undecided,
    }
    return tuple(f"{', '.join(map(str, heads))}: {what}" for what, heads in left_open.items() if heads)
