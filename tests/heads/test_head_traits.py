"""What failure messages say of a head that matches: how many tokens it needs, how far back it reaches, what it writes."""

import ast
from pathlib import Path

import pytest

from pytest_induction import assert_no_induction_head
from pytest_induction.claims import claim_named
from pytest_induction.errors import ExpectationFailed
from pytest_induction.expectations import MATCH_LENGTHS, failure_text, match_length, reach, traits
from pytest_induction.heads import absence, criteria, induction
from pytest_induction.planted import induction_head
from pytest_induction.records import Estimate, Evidence, HeadEvidence, Provenance, Verdict

SOURCE = Path(induction.__file__)
LOOKS = Path(absence.__file__)
NEXT = claim_named("has_induction_head").next_steps
NAMED = {  # what a reader can do about each new reason
    "weak_or_shared": ("measure_heads", "max_prefix_matching=", "min_prefix_matching="),
    "silent": ("measure_ablations",),
    "period_detector": ("measure_match_lengths",),
    "needs_longer_match": ("measure_match_lengths", "match_length="),
    "match_length_unclear": ("measure_match_lengths", "max_sequences=", "match_length="),
    "in_longer_rows": ("measure_distances", "max_prefix_matching="),
    "late_in_rows": ("measure_heads", "max_prefix_matching="),
    "at_short_distances": ("measure_distances", "max_prefix_matching="),
    "other_first_token": ("measure_heads", "bos_token_id"),
    "matches_without_copying": ("measure_copying", "measure_ablations"),
    "heads_unclear": ("find_induction_heads", "max_sequences="),
    "copying_unclear": ("max_sequences=", "min_advantage="),
}


def exactly(value, unit="share"):
    return Estimate(value, value - 0.05, value + 0.05, unit)


def head(kind="matches", lengths=(), **rest):
    masses = tuple(map(exactly, lengths))
    return HeadEvidence(1, 0, exactly(0.9), exactly(0.85), 0.01, 0.05, 0.0, 0.0, 0.0, 6, kind, match_lengths=masses, **rest)


def words(node):
    """Texts and constants of criteria.py, also where a condition chooses between them."""
    for each in (node.body, node.orelse) if isinstance(node, ast.IfExp) else (node,):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value
        elif isinstance(each, ast.Name) and each.id.isupper():
            yield getattr(criteria, each.id)


def given_as_reason(node):
    """The expression that a statement makes the reason: an argument, what `reason` is set to, the first that is returned."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "_judgement":
        return node.args[2]
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        return node.value.elts[0]
    if isinstance(node, ast.Assign):
        target, value = ast.unparse(node.targets[0]).strip("()"), node.value
        if target == "reason":
            return value
        if target.startswith("reason, ") and isinstance(value, ast.Tuple):
            return value.elts[0]
    return ast.Constant(None)


def reasons_in(source):
    return {word for node in ast.walk(ast.parse(source)) for word in words(given_as_reason(node))}


def test_every_reason_of_a_verdict_on_induction_heads_says_what_to_do():
    looks = {
        look.value for look in ast.walk(ast.parse(LOOKS.read_text())) if isinstance(look, ast.Constant) and look.value in NEXT
    }
    reasons = reasons_in(SOURCE.read_text()) | looks
    assert reasons >= {*NAMED, "formed", "dormant", "counts_back", "no_head_matches", "copies_without_a_head"}
    assert reasons <= NEXT.keys(), reasons - NEXT.keys()


def test_a_reason_that_is_not_told_is_seen():
    """The test above can fail: whichever way a reason is given."""
    ways = 'return "one", f"{x}"\nreason = "two" if x else SILENT\nreason, summary = "three", x\nreturn _judgement(t, v, "four", s, e)'
    assert reasons_in(ways) == {"one", "two", "silent", "three", "four"}


@pytest.mark.parametrize("reason", NAMED)
def test_what_to_do_names_the_function_or_argument(reason):
    for named in NAMED[reason]:
        assert f"`{named}" in NEXT[reason], named


@pytest.mark.parametrize(
    ("lengths", "short", "words"),
    [
        ((0.8, 0.9, 0.9), "1", "on 1 matching token"),
        ((0.1, 0.7, 0.9), "2", "needs 2 matching tokens"),
        ((0.1, 0.1, 0.4), "3+", "needs 3 matching tokens"),
        ((0.1, 0.1, 0.2), "more", "needs more than 3 matching tokens, or many copies"),
    ],
)
def test_the_match_length_is_told_by_the_threshold(lengths, short, words):
    assert match_length(head(lengths=lengths), 0.3) == short
    assert list(traits(head(lengths=lengths), 0.3)) == [words]
    assert set(MATCH_LENGTHS) == {"1", "2", "3+", "more"}


def test_a_higher_threshold_asks_for_longer_matches():
    assert [match_length(head(lengths=(0.4, 0.6, 0.9)), least) for least in (0.3, 0.5, 0.7, 0.95)] == ["1", "2", "3+", "more"]


def test_of_a_head_that_does_not_match_nothing_is_told():
    """Its masses say nothing about how many tokens it needs; nor is anything told where it was not measured."""
    for kind in ("previous", "duplicate", "dormant", "positional", ""):
        assert (match_length(head(kind, (0.4, 0.4, 0.4)), 0.3), reach(head(kind, (0.4, 0.4, 0.4)))) == ("", "")
        assert list(traits(head(kind, (0.4, 0.4, 0.4)), 0.3)) == []
    assert (match_length(head(), 0.3), reach(head())) == ("", "")
    assert list(traits(head(), 0.3)) == []


@pytest.mark.parametrize(
    ("kind", "known", "words"),
    [
        ("matches", {"reach": 17}, ["on 1 matching token", "up to 17 back"]),
        (
            "matches",
            {"ablation_effect": exactly(0.12, "nats")},
            ["on 1 matching token", "loss on later copies +0.12 nats without it"],
        ),
        ("matches", {"ablation_effect": exactly(float("nan"), "nats")}, ["on 1 matching token"]),
        ("silent", {"ablation_effect": exactly(0.0, "nats")}, ["on 1 matching token", "writes nothing"]),
        ("suppresses", {"copy_effect": exactly(-1.5, "nats")}, ["on 1 matching token", "lowers what it matches by 1.50 nats"]),
        ("suppresses", {}, ["on 1 matching token", "lowers what it matches"]),
        ("period_detector", {}, ["only follows the period"]),
    ],
)
def test_reach_and_what_a_head_writes_are_told(kind, known, words):
    assert list(traits(head(kind, (0.8, 0.9, 0.9), **known), 0.3)) == words


def test_a_head_reaches_all_that_was_tried_unless_it_is_known_how_far():
    assert reach(head(lengths=(0.8, 0.9, 0.9))) == "all"
    assert reach(head(lengths=(0.8, 0.9, 0.9), reach=17)) == "17"


def test_a_failure_says_it_after_the_score_of_each_head():
    about = Provenance("model", "", "sdpa", 2, 4, "float32", "cpu")
    found = Evidence(
        "has_induction_head",
        Verdict.REFUTED,
        "needs_longer_match",
        "L1H0 needs more",
        about,
        heads=(head(lengths=(0.1, 0.7, 0.9), reach=17),),
        nearest=(head("previous"),),
        thresholds={"min_prefix_matching": 0.3, "match_length": 1.0},
    )
    told = failure_text(found)
    first = "L1H0 0.900 (0.850..0.950) [needs 2 matching tokens, up to 17 back]"
    assert f"  heads: {first}, L1H0 0.900 (0.850..0.950) (threshold 0.300; chance gives L1H0 0.050)" in told
    assert told.endswith("set a longer `match_length=`, or leave it out")


def test_of_the_sums_of_many_layers_the_highest_are_told():
    """A model of thirty layers has as many, and the message keeps to what matters."""
    about = Provenance("model", "", "sdpa", 30, 4, "float32", "cpu")
    summed = {f"summed prefix matching of layer {layer}": exactly((layer * 7 % 30) / 100) for layer in range(30)}
    found = Evidence(
        "has_induction_head",
        Verdict.UNDETERMINED,
        "weak_or_shared",
        "",
        about,
        estimates={"advantage": exactly(1.0, "nats"), **summed},
    )
    told = next(line for line in failure_text(found).splitlines() if line.startswith("  behaviour: "))
    assert told.count("summed") == 3
    for layer in (17, 4, 21):  # 29, 28 and 27 hundredths
        assert f"summed prefix matching of layer {layer} " in told
    assert "advantage 1.00" in told


def test_a_planted_head_is_told_to_need_one_token():
    """From the measurement to the message."""
    with pytest.raises(ExpectationFailed, match=r"heads: L1H0 1\.000 \([^)]*\) \[on 1 matching token\]"):
        assert_no_induction_head(induction_head())
