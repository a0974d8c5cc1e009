"""By which circuit does an induction head find its place: through its keys (K-composition), or through its queries?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_induction.observing import Array
from pytest_induction.records import Estimate, HeadId, Verdict
from pytest_induction.statistics import mean_interval
from pytest_induction.verdicts.judgement import Judgement, more_needed

SHARE_LOST = "share of prefix matching"
KEYS, OTHERS, ALL_KEYS, ALL_QUERIES = (
    "lost_through_keys",
    "lost_through_keys_of_others",
    "lost_with_all_keys",
    "lost_with_all_queries",
)


@dataclass(frozen=True)
class Lost:
    """What share of its prefix matching an induction head loses, each (rows,); the means are 1 where all of it is lost.

    `keys` when its previous-token heads are kept out of its keys, `others` when as many other earlier heads are (None where there
    are none), `all_keys` and `all_queries` when all earlier heads are kept out of its keys, or of its queries.
    """

    keys: Array
    others: Array | None
    all_keys: Array
    all_queries: Array

    @classmethod
    def join(cls, parts: Sequence[Lost]) -> Lost:
        """The same on more rows."""
        others = [part.others for part in parts if part.others is not None]
        whole = (np.concatenate([getattr(part, name) for part in parts]) for name in ("keys", "all_keys", "all_queries"))
        keys, all_keys, all_queries = whole
        return cls(keys, np.concatenate(others) if others else None, all_keys, all_queries)

    def estimates(self, error_rate: float) -> dict[str, Estimate]:
        """All means with intervals, which miss any of them at most at that rate."""
        named = {KEYS: self.keys, ALL_KEYS: self.all_keys, ALL_QUERIES: self.all_queries}
        named |= {} if self.others is None else {OTHERS: self.others}
        found = mean_interval(np.stack([*named.values()], axis=1), error_rate, SHARE_LOST)
        return dict(zip(named, found, strict=True))


@dataclass(frozen=True)
class Circuit:
    """The heads in question, and what the weights say: eigenvalue scores, from -1 to 1, of QK with earlier heads and of OV."""

    head: HeadId
    previous: tuple[HeadId, ...]
    qk_eigenvalue: float
    ov_eigenvalue: float

    @property
    def named(self) -> str:
        return ", ".join(map(str, self.previous))


def judge_circuit(lost: Lost, circuit: Circuit, *, min_share: float, error_rate: float) -> Judgement:
    """Is prefix matching lost without the previous-token heads in the keys, more than without others; or by way of the queries?

    K-composition is FORMED where the share lost through the keys is above `min_share`, and above what is lost without as many
    other heads; and the weights agree: the token that was moved is matched (QK eigenvalue above 0), and what is found is copied
    (OV). The other way (pointer arithmetic) is FORMED where the previous-token heads carry less than that, and so do all earlier
    heads by the keys, while without all of them in the queries more than that is lost.
    """
    found = lost.estimates(error_rate)
    keys, others = found[KEYS], found.get(OTHERS)
    count = len(lost.keys)
    if circuit.previous and keys.is_above(min_share):
        if others is not None and not others.is_below(keys.low):
            return _unclear(
                found, f"without as many other heads {circuit.head} loses {others.value:.2f} too", (others, keys.value), count
            )
        return _by_weights(found, circuit)
    if circuit.previous and not keys.is_below(min_share):
        return _unclear(
            found, f"{circuit.head} loses {keys.value:.2f} without {circuit.named} in its keys", (keys, min_share), count
        )
    return _other_way(found, circuit, min_share, count)


def _by_weights(found: Mapping[str, Estimate], circuit: Circuit) -> Judgement:
    """K-composition is shown; whether the weights agree."""
    seen = (
        f"{circuit.head} loses {found[KEYS].value:.2f} of its prefix matching without {circuit.named} in its keys; "
        f"eigenvalue scores QK {circuit.qk_eigenvalue:+.2f}, OV {circuit.ov_eigenvalue:+.2f}"
    )
    if circuit.qk_eigenvalue > 0 and circuit.ov_eigenvalue > 0:
        return Judgement(Verdict.FORMED, "key_composition", seen, estimates=found)
    return Judgement(
        Verdict.UNDETERMINED, "weights_disagree", f"{seen}: not the weights of matching and copying", estimates=found
    )


def _other_way(found: Mapping[str, Estimate], circuit: Circuit, min_share: float, count: int) -> Judgement:
    all_keys, all_queries = found[ALL_KEYS], found[ALL_QUERIES]
    if all_keys.is_below(min_share) and all_queries.is_above(min_share):
        seen = (
            f"{circuit.head} loses {all_queries.value:.2f} of its prefix matching without earlier heads in its queries, "
            f"{all_keys.value:.2f} without them in its keys: pointer arithmetic"
        )
        return Judgement(Verdict.FORMED, "query_composition", seen, estimates=found)
    none = "no earlier head attends to the previous token"
    seen = f"{circuit.head} loses {found[KEYS].value:.2f} without {circuit.named} in its keys" if circuit.previous else none
    for estimate in (all_keys, all_queries):
        if not (estimate.is_above(min_share) or estimate.is_below(min_share)):
            return _unclear(found, seen, (estimate, min_share), count)
    if all_keys.is_above(min_share):
        seen = f"{seen}, {all_keys.value:.2f} without all earlier heads there"
    reason = "not_through_keys" if circuit.previous else "no_previous_token_head"
    return Judgement(Verdict.NOT_FORMED, reason, seen, estimates=found)


def _unclear(found: Mapping[str, Estimate], seen: str, near: tuple[Estimate, float], count: int) -> Judgement:
    more = more_needed(*near, count)
    return Judgement(Verdict.UNDETERMINED, "path_unclear", f"{seen}: too close to tell", estimates=found, more_sequences=more)
