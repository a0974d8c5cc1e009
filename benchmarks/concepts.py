"""What `study_verdicts.py` asks of concept heads: planted and random models, and rows whose mean lies at a threshold."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pytest_induction import Evidence, ExpectationFailed, Verdict, assert_concept_heads, planted
from pytest_induction.causal.concept_heads import MAX_SEQUENCES, MIN_GAIN, MIN_RESTORED, judge_concepts
from pytest_induction.deciding import Judgement, until_clear
from pytest_induction.interventions.concepts import Restored
from pytest_induction.records import HeadId

STATED = 1e-3  # the error rate of a verdict
PLANTED = (  # options of a planted model, and what is known of it
    ({}, Verdict.SHOWN),
    ({"of_tokens": True}, Verdict.REFUTED),
    ({"strength": 0.0}, Verdict.REFUTED),
)
COUNTS = ("gain", "restored", "meaningless", "null", "the other way")


def planted_and_random(count: int, seed: int) -> Iterator[tuple[Evidence, Verdict]]:
    """Concept heads, heads that carry tokens, induction heads alone; and models of random weights, of which nothing follows."""
    rng = np.random.default_rng(seed)
    words = planted.concept_head().words
    for index in range(count):
        sizes = {"n_heads": int(rng.integers(3, 6)), "d_vocab": int(rng.integers(32, 65)), "n_ctx": 64}
        if index % 4 == 3:
            torch.manual_seed(index)
            model, wanted = planted.uniform_head(**sizes), Verdict.UNDETERMINED
            for weight in model.parameters():
                weight.data = 0.3 * torch.randn_like(weight)
        else:
            options, wanted = PLANTED[index % 4]
            model = planted.concept_head(**options, **sizes)
        try:
            found = assert_concept_heads(model, words=words, seed=index)
        except ExpectationFailed as failure:
            found = failure.evidence
        yield found, wanted


def rows_at_the_threshold(count: int, seed: int) -> Iterator[tuple[Judgement, Verdict]]:
    """Skewed rows of which one mean lies at its threshold, so that nothing can be shown, at any look.

    The last kind has all heads at the threshold by every count, so that nothing can be refuted either.
    """
    rng = np.random.default_rng(seed)
    for index in range(count):
        at = COUNTS[index % len(COUNTS)]

        def draw(size: int, number: int, at: str = at) -> Restored:
            rare = np.where(rng.random((size, 1)) < 0.1, 1.0, 0.0)
            well = np.broadcast_to(rng.normal(0.6, 0.2, (size, 1)), (size, 2))
            threshold = np.broadcast_to(10 * MIN_RESTORED * rare, (size, 2))
            nothing, scores = np.zeros((size, 2)), {}
            scores["concept"] = threshold if at in ("restored", "the other way") else well
            for kind in ("meaningless", "null"):
                scores[kind] = well - threshold if at == kind else nothing
            if at == "the other way":  # the heads restore nothing, all of them so much
                scores["concept"] = threshold * (0.0, 1.0)
            scores["token"] = nothing
            gain = np.where(rng.random(size) < 0.25, 4 * MIN_GAIN, 0.0) if at == "gain" else rng.normal(3.0, 0.5, size)
            return Restored(scores, gain, gain, -gain)

        def judge(rounds: Sequence[Restored], _: float) -> Judgement:
            return judge_concepts(Restored.join(rounds), [HeadId(0, 0)], MIN_RESTORED, error_rate=STATED)

        yield until_clear(draw, judge, MAX_SEQUENCES, STATED)[1], Verdict.UNDETERMINED
