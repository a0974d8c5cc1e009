"""The circuit of an induction head: the heads by which it finds its place, through its keys or its queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from pytest_induction.causal.prices import price_of_circuit
from pytest_induction.deciding import ERROR_RATE, Judgement, more_needed, priced_claim, until_clear
from pytest_induction.errors import user_facing
from pytest_induction.expectations import check_share, expect
from pytest_induction.heads.composition import Weights, keys_read, qk_traces_of
from pytest_induction.heads.copying import ov_eigenvalues
from pytest_induction.heads.criteria import MIN_ADVANTAGE, MIN_PREFIX_MATCHING, MIN_PREVIOUS_TOKEN, is_previous_token
from pytest_induction.heads.induction import checked_thresholds, search_for_one
from pytest_induction.interventions.arguments import all_heads
from pytest_induction.interventions.paths import losses_by_order, losses_with_pattern, path_effects
from pytest_induction.measuring.observing import Array, ModelLike, probes_of
from pytest_induction.measuring.rounds import MAX_SEQUENCES
from pytest_induction.model.circuits import circuits_of
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import COPIES, Probe
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, Evidence, HeadEvidence, HeadId, Verdict
from pytest_induction.spending import spend_at_most, within_budget
from pytest_induction.statistics import mean_interval

SHARE_LOST = "share of prefix matching"
MOST_NAMED = 3  # heads in a summary
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
    are none), `all_keys` and `all_queries` when all earlier heads are kept out of its keys, or of its queries. `alone`
    (senders, rows) when single ones of the previous-token heads are kept out of its keys; of the first rows only.
    """

    keys: Array
    others: Array | None
    all_keys: Array
    all_queries: Array
    alone: Array = field(default_factory=lambda: np.zeros((0, 0)))

    @classmethod
    def join(cls, parts: Sequence[Lost]) -> Lost:
        """The same on more rows."""
        others = [part.others for part in parts if part.others is not None]
        whole = (np.concatenate([getattr(part, name) for part in parts]) for name in ("keys", "all_keys", "all_queries"))
        keys, all_keys, all_queries = whole
        alone = np.concatenate([part.alone for part in parts if part.alone.size] or [parts[0].alone], axis=1)
        return cls(keys, np.concatenate(others) if others else None, all_keys, all_queries, alone)

    def estimates(self, error_rate: float) -> dict[str, Estimate]:
        """All means with intervals, which miss any of them at most at that rate."""
        named = {KEYS: self.keys, ALL_KEYS: self.all_keys, ALL_QUERIES: self.all_queries}
        named |= {} if self.others is None else {OTHERS: self.others}
        found = mean_interval(np.stack([*named.values()], axis=1), error_rate, SHARE_LOST)
        return dict(zip(named, found, strict=True))


@dataclass(frozen=True)
class Circuit:
    """The heads in question, and what the weights say: eigenvalue scores, from -1 to 1, of QK with earlier heads and of OV.

    `senders` are those of the previous-token heads that are looked at one by one.
    """

    head: HeadId
    previous: tuple[HeadId, ...]
    qk_eigenvalue: float
    ov_eigenvalue: float
    senders: tuple[HeadId, ...] = ()

    @property
    def named(self) -> str:
        if len(self.previous) <= MOST_NAMED:
            return ", ".join(map(str, self.previous))
        return f"{len(self.previous)} previous-token heads"

    def most_of(self, alone: Array) -> str:
        """The senders without which alone most is lost, in words; "" where none was looked at alone."""
        if not alone.size:
            return ""
        shares = alone.mean(axis=1)
        return f" (alone {', '.join(f'{self.senders[index]} {shares[index]:.2f}' for index in np.argsort(-shares)[:MOST_NAMED])})"


def judge_circuit(lost: Lost, circuit: Circuit, *, min_share: float, error_rate: float) -> Judgement:
    """Is prefix matching lost without the previous-token heads in the keys, more than without others; or by way of the queries?

    K-composition is SHOWN where the share lost through the keys is above `min_share`, and above what is lost without as many
    other heads; and the weights agree: the token that was moved is matched (QK eigenvalue above 0), and what is found is copied
    (OV). The other way (pointer arithmetic) is SHOWN where the previous-token heads carry less than that, and so do all earlier
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
        return _by_weights(found, circuit, circuit.most_of(lost.alone))
    if circuit.previous and not keys.is_below(min_share):
        return _unclear(
            found, f"{circuit.head} loses {keys.value:.2f} without {circuit.named} in its keys", (keys, min_share), count
        )
    return _other_way(found, circuit, min_share, count)


def _by_weights(found: Mapping[str, Estimate], circuit: Circuit, alone: str) -> Judgement:
    """K-composition is shown; whether the weights agree."""
    seen = (
        f"{circuit.head} loses {found[KEYS].value:.2f} of its prefix matching without {circuit.named} in its keys{alone}; "
        f"eigenvalue scores QK {circuit.qk_eigenvalue:+.2f}, OV {circuit.ov_eigenvalue:+.2f}"
    )
    if circuit.qk_eigenvalue > 0 and circuit.ov_eigenvalue > 0:
        return Judgement(Verdict.SHOWN, "key_composition", seen, estimates=found)
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
        return Judgement(Verdict.SHOWN, "query_composition", seen, estimates=found)
    none = "no earlier head attends to the previous token"
    seen = f"{circuit.head} loses {found[KEYS].value:.2f} without {circuit.named} in its keys" if circuit.previous else none
    for estimate in (all_keys, all_queries):
        if not (estimate.is_above(min_share) or estimate.is_below(min_share)):
            return _unclear(found, seen, (estimate, min_share), count)
    if all_keys.is_above(min_share):
        seen = f"{seen}, {all_keys.value:.2f} without all earlier heads there"
    reason = "not_through_keys" if circuit.previous else "no_previous_token_head"
    return Judgement(Verdict.REFUTED, reason, seen, estimates=found)


def _unclear(found: Mapping[str, Estimate], seen: str, near: tuple[Estimate, float], count: int) -> Judgement:
    more = more_needed(*near, count)
    return Judgement(Verdict.UNDETERMINED, "path_unclear", f"{seen}: too close to tell", estimates=found, more_sequences=more)


MIN_SHARE = 0.5  # of prefix matching, that must be lost
CLAIM = "induction_circuit"
LEAST_EFFECT = 0.05  # nats, below which no share of a head's effect is taken
SCALED = 12  # rows whose mean scale of norms behind attention counts
PERIODS = 3  # of the rows on which paths are looked at: few, so that several rows share a pass
ROWS_BESIDE = 4  # on which what decides nothing is measured
MOST_SENDERS = 8  # previous-token heads that are kept out one by one: those that the weights of the keys read most of


@user_facing
@priced_claim(price_of_circuit)
def assert_induction_circuit(
    model: ModelLike,
    *,
    min_share: float = MIN_SHARE,
    min_prefix_matching: float = MIN_PREFIX_MATCHING,
    min_previous_token: float = MIN_PREVIOUS_TOKEN,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that an induction head of the model finds its place by a circuit: through its keys, from previous-token heads.

    Cause, not correlation: one induction head, of those that `assert_has_induction_head` finds, must lose at least `min_share` of
    its prefix matching when the previous-token heads (`min_previous_token` or more of their mass on the position before) are kept
    out of its keys, by whatever way they reach them, its queries and all else being as they were; and more than without as many
    other heads. Its weights must agree: QK matches the token that those heads moved, OV copies. The other way, by its queries
    (pointer arithmetic), is recognised: the reason is then "query_composition" and not "key_composition".

    The head is the one that raises most what it matches (copy effect times prefix matching) of those above the first layer whose
    weights agree, or of all where no weights do. It is chosen on other sequences than those on which it is tested.

    `.estimates` has what is lost without each previous-token head alone (`lost_through_keys_of_L0H2`), eight at the most, of the
    first sequences; K-composition with its z above the same spectra turned at random; what the head's ideal pattern gives back of
    its effect (`pattern_recovery`); and in nats what paths through single heads, and through several in a row (virtual heads),
    give on the last copy. Sequences are drawn, and a `budget` is spent, as in `assert_has_induction_head`; half of `error_rate`
    is for finding the head.

    Cost: that of `assert_has_induction_head`, and of each 12 sequences a pass up to the head's layer for each set of heads. On
    SmolLM2-135M, with 270 heads, 9 forward passes of 12 rows of 101 tokens in all, for the first 12 sequences tell.

    Returns the evidence; raises `ExpectationFailed`, which carries it, or `UnsupportedModel`, by name, where the weights of the
    heads cannot be read or their queries and keys are not seen.

    >>> assert_induction_circuit("fixtures/attention_only.py:two_layers").reason     # doctest: +SKIP
    'key_composition'
    """
    spend_at_most(budget)
    for name, value in (("min_share", min_share), ("min_previous_token", min_previous_token), ("error_rate", error_rate)):
        check_share(name, value)
    subject = load_model(model)
    thresholds = checked_thresholds(min_prefix_matching, None, MIN_ADVANTAGE, None)
    sampling = (max_sequences, error_rate / 2, seed)
    search, evidence = search_for_one(subject, thresholds, sampling, allow_virtual=False)
    used = {**evidence.thresholds, "min_share": min_share}
    evidence = replace(evidence, claim=CLAIM, thresholds=used, confidence=1 - error_rate)
    if evidence.verdict is not Verdict.SHOWN:
        summary = f"there is no induction head to have a circuit: {evidence.summary}"
        return expect(replace(evidence, summary=summary))
    later = [head for head in evidence.heads if head.layer > 0]
    if not later:
        summary = f"{evidence.heads[0]} matches prefixes in the first layer, where no head comes before it"
        return expect(replace(evidence, verdict=Verdict.REFUTED, reason="first_layer", summary=summary))
    weighed = weighed_heads(subject, search.rounds[0].scores["previous_token"].mean(axis=0), evidence.provenance.seed)
    circuit, estimates = circuit_of(weighed, _judged_head(later, weighed), min_previous_token)
    return expect(_tested(subject, evidence, circuit, estimates, (max_sequences, error_rate / 2, min_share)))


@dataclass(frozen=True)
class WeighedHeads:
    """Of every head (n_layers, n_heads) its previous-token score and what its weights say: eigenvalue scores, from -1 to 1."""

    weights: Weights
    previous_token: Array
    qk_eigenvalue: Array
    ov_eigenvalue: Array

    def agree(self, layer: int, head: int) -> bool:
        """Whether the token that earlier heads have moved is matched, and what is found is copied."""
        return bool(self.qk_eigenvalue[layer, head] > 0 and self.ov_eigenvalue[layer, head] > 0)


def weighed_heads(subject: ModelUnderTest, previous_token: Array, seed: int | None) -> WeighedHeads:
    """What the weights say of all heads. Raises `UnsupportedModel` where they cannot be read."""
    weights = Weights(subject)
    _, qk_eigenvalue = qk_traces_of(weights, previous_token / weights.scales_behind(SCALED, seed)[:, None])
    return WeighedHeads(weights, previous_token, qk_eigenvalue, ov_eigenvalues(subject, circuits_of(subject)))


def _judged_head(heads: Sequence[HeadEvidence], weighed: WeighedHeads) -> HeadId:
    """The one that copies most of what it matches, of those whose weights agree if any do; the first where that is not known."""
    heads = [head for head in heads if weighed.agree(head.layer, head.head)] or heads
    known = [head for head in heads if head.copy_effect is not None] or heads[:1]
    best = max(known, key=lambda head: 0.0 if head.copy_effect is None else head.copy_effect.value * head.prefix_matching.value)
    return HeadId(best.layer, best.head)


def circuit_of(weighed: WeighedHeads, head: HeadId, min_previous_token: float) -> tuple[Circuit, dict[str, Estimate]]:
    """The head with its previous-token heads, and what the weights of both say."""
    found = is_previous_token(weighed.previous_token[: head.layer], min_previous_token)
    previous = tuple(HeadId(int(layer), int(number)) for layer, number in np.argwhere(found))
    place = (head.layer, head.head)
    composed = keys_read(weighed.weights, head, previous)
    ranked = sorted(previous, key=lambda each: np.nan_to_num(composed[each].z, nan=-np.inf), reverse=True)
    senders = ranked[:MOST_SENDERS] if len(ranked) > 1 else []
    qk, ov = float(weighed.qk_eigenvalue[place]), float(weighed.ov_eigenvalue[place])
    by_weights = {"qk_eigenvalue": qk, "ov_eigenvalue": ov}
    if ranked:
        by_weights |= {"key_composition": composed[ranked[0]].score, "key_composition_z": composed[ranked[0]].z}
    circuit = Circuit(head, previous, qk, ov, tuple(each for each in previous if each in senders))
    return circuit, {name: Estimate(value, value, value) for name, value in by_weights.items()}


def _tested(
    subject: ModelUnderTest,
    evidence: Evidence,
    circuit: Circuit,
    by_weights: dict[str, Estimate],
    budget: tuple[int, float, float],
) -> Evidence:
    """The verdict on the paths to the head, on sequences of their own."""
    max_sequences, error_rate, min_share = budget
    seed = evidence.provenance.seed or 0
    sets = _sets(subject, circuit, np.random.default_rng([seed, 6]))

    def draw(n_sequences: int, number: int) -> Lost:
        rng = np.random.default_rng([seed, 7, number])
        with progress("paths to the head", n_sequences):
            probes = probes_of(subject, n_sequences, rng, COPIES, None, PERIODS)
            return Lost.join([_lost(subject, probe, circuit, sets, alone=number == 0) for probe in probes])

    def judge(rounds: list[Lost], look_rate: float) -> Judgement:
        return judge_circuit(Lost.join(rounds), circuit, min_share=min_share, error_rate=look_rate)

    rounds, judgement, settle = until_clear(draw, judge, max_sequences, error_rate)
    probe = next(iter(probes_of(subject, ROWS_BESIDE, np.random.default_rng([seed, 8]), COPIES, None, 1)))
    return replace(
        evidence,
        verdict=judgement.verdict,
        reason=judgement.reason,
        summary=judgement.summary,
        estimates={
            **evidence.estimates,
            **(judgement.estimates or {}),
            **by_weights,
            **_alone(circuit, rounds),
            **within_budget(lambda: _contributions(subject, probe, circuit.head), {}),
        },
        provenance=replace(evidence.provenance, n_sequences=sum(len(each.keys) for each in rounds)),
        next_step=settle,
    )


def _sets(subject: ModelUnderTest, circuit: Circuit, rng: np.random.Generator) -> list[tuple[HeadId, ...]]:
    """The previous-token heads, all earlier heads, and where there are any as many others, of the same layers first."""
    earlier = tuple(each for each in all_heads(subject) if each.layer < circuit.head.layer)
    layers = {each.layer for each in circuit.previous}
    others = [earlier[index] for index in rng.permutation(len(earlier)) if earlier[index] not in circuit.previous]
    others.sort(key=lambda each: each.layer not in layers)
    chosen = tuple(others[: len(circuit.previous)])
    return [circuit.previous, earlier, *([chosen] if chosen else [])]


def _lost(subject: ModelUnderTest, probe: Probe, circuit: Circuit, sets: list[tuple[HeadId, ...]], *, alone: bool) -> Lost:
    """What is lost on the rows of a probe; also without single heads, if these are asked for."""
    single = [(sender,) for sender in circuit.senders] if alone else []
    effects = path_effects(subject, probe, circuit.head, [*sets, *single])
    whole, count = max(float(effects.clean.mean()), 1e-6), len(sets)
    by_keys, by_queries = ((effects.clean - each) / whole for each in (effects.keys, effects.queries))
    return Lost(by_keys[0], by_keys[2] if count > 2 else None, by_keys[1], by_queries[1], by_keys[count:])


def _alone(circuit: Circuit, rounds: Sequence[Lost]) -> dict[str, Estimate]:
    """What is lost without each sender alone; these decide nothing."""
    alone = Lost.join(rounds).alone
    if alone.size == 0:
        return {}
    found = mean_interval(alone.T, ERROR_RATE, SHARE_LOST)
    return {f"{KEYS}_of_{sender}": estimate for sender, estimate in zip(circuit.senders, found, strict=True)}


def _contributions(subject: ModelUnderTest, probe: Probe, head: HeadId) -> dict[str, Estimate]:
    """What the head's ideal pattern gives back of its effect, and what paths through one head, and through more, give in nats."""
    interval = partial(_interval, error_rate=ERROR_RATE)
    orders = losses_by_order(subject, probe, 1)
    found = {
        "gain_of_single_heads": interval(orders[:, 0] - orders[:, 1], unit="nats"),
        "gain_of_virtual_heads": interval(orders[:, 1] - orders[:, -1], unit="nats"),
    }
    as_it_is, ablated, ideal = losses_with_pattern(subject, probe, [head], "induction").T
    effect = float((ablated - as_it_is).mean())
    if effect > LEAST_EFFECT:
        found["pattern_recovery"] = interval((ablated - ideal) / effect, unit="share of the effect")
    return found


def _interval(values: Array, error_rate: float, unit: str) -> Estimate:
    if len(values) < 2:
        return Estimate(float(values.mean()), float("-inf"), float("inf"), unit)
    return mean_interval(values[:, None], error_rate, unit)[0]
