"""Abstract rules: lines ABA or ABB of tokens that are new in every line. What is right follows from places, and from no token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from pytest_induction.behaviour.choices import Choices, choices
from pytest_induction.behaviour.judging import advantage_interval
from pytest_induction.deciding import ERROR_RATE, MAX_SEQUENCES, Judgement, checked_sampling, priced_claim, until_clear
from pytest_induction.display import Picture, Plotted, View, view_of
from pytest_induction.errors import user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.measuring.observing import ModelLike, provenance
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.rules import LINE, RULES, check_lines, rule_rows
from pytest_induction.progress import progress
from pytest_induction.records import SCHEMA_VERSION, Estimate, Evidence, Provenance, Verdict
from pytest_induction.spending import Price, priced, spend_at_most
from pytest_induction.statistics import FIRST_LOOK, mean_of_shares, more_rows

SHOTS = 8
SCORED = 4  # lines behind so many examples that decide: several make a row say more
MIN_RULE_ACCURACY = 0.6
CURVE_ROWS = 48
LINES = SHOTS + SCORED
Given = Mapping[str, Any]


@dataclass(frozen=True)
class RulePoint:
    """How a model completes a line behind so many examples, each rule with its interval.

    Accuracy is the share of rows in which the right token is likelier than the other one of the line, in [0, 1]; a guess has 0.5.
    Margin is how much larger its logit is, in nats.
    """

    examples: int
    aba_accuracy: Estimate
    abb_accuracy: Estimate
    aba_margin: Estimate
    abb_margin: Estimate


@dataclass(frozen=True, repr=False)
class RuleCurve(Plotted):
    """How a model follows both rules, by the number of examples before. `str()` gives a table."""

    points: tuple[RulePoint, ...]
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        return view_of(self, pictures=self._pictures)

    def _pictures(self) -> list[Picture]:
        """The accuracy of each rule by the number of examples."""
        series = []
        for name in ("aba", "abb"):
            found = [getattr(point, f"{name}_accuracy") for point in self.points]
            ends = {"low": [each.low for each in found], "high": [each.high for each in found]}
            x = [point.examples for point in self.points]
            series.append({"name": name.upper(), "x": x, "y": [each.value for each in found], **ends})
        return [("curves", {"x": "examples", "y": "accuracy", "series": series})]

    def __str__(self) -> str:
        head = f"{'examples':>8} {'ABA':>6}  {'interval':^14} {'margin':>7} {'ABB':>6}  {'interval':^14} {'margin':>7}"
        return "\n".join([head, *map(_line, self.points)])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {"schema": SCHEMA_VERSION, **asdict(self), "provenance": self.provenance.to_dict()}


def _line(point: RulePoint) -> str:
    return f"{point.examples:>8} {_cell(point.aba_accuracy, point.aba_margin)} {_cell(point.abb_accuracy, point.abb_margin)}"


def _cell(accuracy: Estimate, margin: Estimate) -> str:
    interval = f"{accuracy.low:.3f}..{accuracy.high:.3f}"
    return f"{accuracy.value:>6.3f}  {interval:^14} {margin.value:>+7.2f}"


def price_of_rules(subject: ModelUnderTest, given: Given) -> Price:
    """Of the assertion: rows of both rules, from the first look to all."""
    length = 2 * _positions(subject, given["examples"] + SCORED)
    return Price(FIRST_LOOK * length, given["max_sequences"] * length)


def price_of_curve(subject: ModelUnderTest, given: Given) -> Price:
    """Of the curve: as many rows of both rules."""
    tokens = 2 * given["n_sequences"] * _positions(subject, given["examples"] + 1)
    return Price(tokens, tokens)


def _positions(subject: ModelUnderTest, n_lines: int) -> int:
    return n_lines * LINE + int(subject.space.bos_id is not None)


@user_facing
@priced(price_of_curve)
def measure_rules(
    model: ModelLike,
    *,
    examples: int = SHOTS,
    separators: Sequence[int] | None = None,
    n_sequences: int = CURVE_ROWS,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> RuleCurve:
    """Measure how the model completes lines that follow an abstract rule, after 0 to `examples` examples.

    A line is `x , y , x` (ABA) or `x , y , y` (ABB), and its tokens are random and new in every line, so that no earlier token
    tells which comes: only the rule does. `separators` are the three token ids behind the tokens of a line; by default comma,
    comma and line's end of the model's tokenizer, or three random ids in each row where they are not one token each. Logits alone
    are read: any architecture. Intervals are of each figure by itself, over `n_sequences` rows of each rule. Raises
    `ProbeError` where the lines do not fit the model. After Yang et al. 2025.
    """
    check_share("error_rate", error_rate)
    subject = load_model(model)
    count = whole_number("n_sequences", n_sequences, least=2)
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    lines = check_lines(subject.space, whole_number("examples", examples, least=0) + 1, _separators(subject, separators))
    with progress("rules", 2 * count):
        found = _measured(subject, separators, lines, seed, count, 0)
    points = tuple(_point(found, place, error_rate) for place in range(lines))
    return RuleCurve(points, provenance(subject, seed=seed, n_sequences=count, probe=_described(lines)))


def _point(found: Mapping[str, Choices], place: int, error_rate: float) -> RulePoint:
    accuracy = {rule: mean_of_shares(found[rule].is_best[:, place], error_rate) for rule in RULES}
    margin = {rule: advantage_interval(found[rule].margin[:, place], 0.0, error_rate) for rule in RULES}
    return RulePoint(place, *accuracy.values(), *margin.values())


def _described(lines: int) -> str:
    return f"{lines} lines ABA or ABB of random tokens"


def _separators(subject: ModelUnderTest, given: Sequence[int] | None) -> tuple[int, ...] | None:
    """Those that were given, else comma, comma and line's end where the tokenizer has them as one token each; else None."""
    if given is not None or subject.tokenizer is None:
        return None if given is None else tuple(given)
    comma = next((ids[0] for text in (" ,", ",") if len(ids := subject.encode(text)) == 1), None)
    end = subject.encode("\n")
    return None if comma is None or len(end) != 1 else (comma, comma, end[0])


def _measured(
    subject: ModelUnderTest, separators: Sequence[int] | None, lines: int, seed: int, count: int, number: int
) -> dict[str, Choices]:
    """What is chosen at every line, of rows of each rule; the same for the same seed and number."""
    between = _separators(subject, separators)

    def measure(rule: str) -> Choices:
        rng = np.random.default_rng([seed, 12, RULES.index(rule), number, lines])
        rows = rule_rows(subject.space, rule, n_lines=lines, rng=rng, n_sequences=count, separators=between)
        return choices(subject, rows.tokens, rows.queries, rows.choices[..., 0], rows.choices)

    return {rule: subject.remember(("rule", rule, between, lines, seed, count, number), partial(measure, rule)) for rule in RULES}


@user_facing
@priced_claim(price_of_rules)
def assert_follows_rule(
    model: ModelLike,
    *,
    examples: int = SHOTS,
    min_accuracy: float = MIN_RULE_ACCURACY,
    separators: Sequence[int] | None = None,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the model follows an abstract rule that `examples` earlier lines show: both ABA and ABB, of new tokens.

    The rows are those of `measure_rules`. Behind the examples stand four lines that decide: in each the right token must be
    likelier than the other one of the line, for a share above `min_accuracy`, under both rules. One rule alone tells
    nothing: a model that likes to repeat the last word has ABB perfectly, and one that likes the first has ABA. A head
    that copies what followed an equal token has neither: no token occurred earlier but the separators.

    Where one rule holds and the other is shown not to, the evidence says which. `budget` is as for `assert_has_induction_head`.
    Returns the evidence, with accuracy and margin in nats of both rules; raises as that does, and `ProbeError` where
    the lines do not fit the model. Source: Yang et al. 2025.
    """
    spend_at_most(budget)
    check_share("min_accuracy", min_accuracy)
    subject = load_model(model)
    count = whole_number("examples", examples, least=1)
    lines = check_lines(subject.space, count + SCORED, _separators(subject, separators))
    sampling = checked_sampling(subject, (max_sequences, error_rate, seed))

    def draw(size: int, number: int) -> dict[str, Choices]:
        with progress("follows_rule", 2 * size):
            return _measured(subject, separators, lines, sampling.seed, size, number)

    rounds, found, settle = until_clear(draw, partial(_judged, count, min_accuracy), sampling.max_sequences, error_rate)
    rows = sum(len(each[RULES[0]].is_best) for each in rounds)
    evidence = Evidence(
        claim="follows_rule",
        verdict=found.verdict,
        reason=found.reason,
        summary=found.summary,
        provenance=provenance(subject, seed=sampling.seed, n_sequences=rows, probe=_described(lines)),
        estimates=found.estimates or {},
        thresholds={"min_accuracy": min_accuracy},
        confidence=1 - error_rate,
        next_step=settle,
    )
    return expect(evidence)


def _judged(examples: int, threshold: float, rounds: Sequence[Mapping[str, Choices]], error_rate: float) -> Judgement:
    """Each rule has half of the rate."""
    part = error_rate / len(RULES)
    accuracy, margin = {}, {}
    for rule in RULES:
        best, gap = (
            np.concatenate([getattr(each[rule], name)[:, examples:].mean(1) for each in rounds]) for name in ("is_best", "margin")
        )
        accuracy[rule] = mean_of_shares(best, part)
        margin[rule] = advantage_interval(gap, 0.0, part)
    estimates = {
        **{f"{rule.lower()}_accuracy": found for rule, found in accuracy.items()},
        **{f"{rule.lower()}_margin": found for rule, found in margin.items()},
    }
    completed = " and ".join(f"{accuracy[rule].value:.3f} of lines {rule}" for rule in RULES)
    seen = f"{completed} are completed after {examples} examples"
    holds = [rule for rule in RULES if accuracy[rule].is_above(threshold)]
    fails = [rule for rule in RULES if accuracy[rule].is_below(threshold)]
    if len(holds) == len(RULES):
        return Judgement(Verdict.SHOWN, "follows_rule", seen, estimates=estimates)
    others = [rule for rule in RULES if rule not in fails and accuracy[rule].value > threshold]
    if fails and others:
        habit = "first" if others == ["ABA"] else "second"
        summary = f"{seen}: the {habit} token of a line is repeated whatever the rule"
        return Judgement(Verdict.REFUTED, "one_rule_only", summary, estimates=estimates)
    if fails:
        return Judgement(Verdict.REFUTED, "follows_no_rule", seen, estimates=estimates)
    count = sum(len(each[RULES[0]].is_best) for each in rounds)
    more = max(more_rows(accuracy[rule], threshold, count) for rule in RULES if rule not in holds)
    summary = f"{seen}, too close to {threshold:.3f}"
    return Judgement(Verdict.UNDETERMINED, "rule_unclear", summary, estimates=estimates, more_sequences=more)
