"""Whether heads generalise: planted heads that match by meaning or literally only, trained ones, and the arithmetic of it."""

import numpy as np
import pytest

import pytest_induction as induction
from pytest_induction import ExpectationFailed, Verdict, planted
from pytest_induction.errors import ArgumentError, ModelError, ProbeError
from pytest_induction.heads import semantic as assertions
from pytest_induction.heads.generalizing import MIN_EXCESS, assert_heads_generalize, judge_generality
from pytest_induction.heads.semantic import measure_generality
from pytest_induction.probes.words import LANGUAGES, PAIRS_ENOUGH, Words
from pytest_induction.records import Evidence, HeadId
from tests.heads.test_copying import tiny
from tests.probes.test_semantic import Tokenizer, foreign

SIZES = {"n_heads": 3, "d_vocab": 40, "n_ctx": 64}
ONE, OTHER = HeadId(1, 0), HeadId(1, 1)


def evidence(*arguments, **options):
    """The evidence, whichever way it goes."""
    try:
        return assert_heads_generalize(*arguments, **options)
    except ExpectationFailed as failure:
        return failure.evidence


@pytest.mark.parametrize("seed", range(2))
def test_a_literal_head_is_shown_not_to_generalise(seed):
    """It copies repeats perfectly, and none of the families has it."""
    model = planted.induction_head(**SIZES)
    found = evidence(model, "L1H0", seed=seed)
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "does_not_generalize")
    assert found.summary.startswith("none of the heads matches by meaning on classes (L1H0 has excess ")
    assert "translation (L1H0" in found.summary and "and patterns (L1H0" in found.summary
    assert found.estimates["literal L1H0"].value == pytest.approx(1, abs=1e-5)
    assert found.provenance.n_sequences == 12 and not found.next_step


SHOWN = {
    "classes": (planted.class_induction_head, ("literal", 16), ("semantic", 0)),
    "translation": (planted.translation_head, ("literal", 0), ("semantic", 16)),
    "patterns": (planted.pattern_head, ("literal", 16)),
}


@pytest.mark.parametrize("family", SHOWN)
def test_a_head_that_matches_by_meaning_is_found_on_its_family_and_not_on_others(family):
    """Class, translation and pattern head, each on what it is made for; asked for everything they fail, and it says where."""
    make, *copies = SHOWN[family]
    model = induction.load_model(make(**SIZES))
    found = assert_heads_generalize(model, ["L1H0", (0, 0)], family)
    assert found.reason == "formed" and found.summary.startswith(f"heads match by meaning on {family} (L1H0 has excess ")
    assert found.estimates[f"{family} L1H0"].low > 0.9
    for kind, nats in copies:
        assert found.estimates[f"{family} L1H0 {kind} copy"].value == pytest.approx(nats, abs=1e-3)
    whole = evidence(model, ["L1H0", (0, 0)])
    assert (
        whole.verdict is Verdict.REFUTED
        and f"they do on {'classes and patterns' if family == 'patterns' else family}" in whole.summary
    )
    assert whole.estimates[f"{family} L1H0"].value == found.estimates[f"{family} L1H0"].value  # whatever else is asked for
    assert whole.estimates[f"{family} L1H0"].low < found.estimates[f"{family} L1H0"].low
    assert Evidence.from_dict(whole.to_dict()) == whole


def test_heads_are_judged_as_a_set():
    """One of them is enough, the best is named, and without it the others do not do it."""
    model = induction.load_model(planted.class_induction_head(**SIZES))
    assert assert_heads_generalize(model, ["L0H0", "L1H1", "L1H0"], "classes").summary.count("L1H0") == 1
    assert evidence(model, ["L0H0", "L1H1"], "classes").verdict is Verdict.REFUTED


def test_mass_alone_is_not_enough():
    """Even attention, and labels whatever they are, have more mass on lines of the right kind than the threshold, and no excess."""
    for make in (planted.uniform_head, planted.induction_head):
        model = induction.load_model(make(layer=1, **SIZES))
        scores = measure_generality(model, "L1H0", "patterns", n_sequences=8).families["patterns"]
        assert scores.matching[1, 0] > MIN_EXCESS and scores.excess[1, 0] < 0.01
        assert evidence(model, "L1H0", "patterns").verdict is Verdict.REFUTED


@pytest.mark.parametrize(("sharpness", "verdict"), [(0.3, Verdict.REFUTED), (3.5, Verdict.SHOWN)])
def test_a_weak_head_is_weighed_against_the_threshold(sharpness, verdict):
    """The same head a little attentive and more so."""
    assert evidence(planted.class_induction_head(sharpness=sharpness, **SIZES), "L1H0", "classes").verdict is verdict


@pytest.mark.parametrize("name", ["one-layer", "two-layers", "llama"])
def test_trained_heads_match_literally_only(name, shipped):
    """Their classes are of arbitrary ids; every head of the models, asked for together, has no excess, and a note says whose ids."""
    model = induction.load_model(shipped[name])
    heads = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    found = evidence(model, heads)
    excesses = [each.value for each in excesses_of(found)]
    assert found.verdict is Verdict.REFUTED and len(excesses) == 9 and max(excesses) < 0.05
    assert len([note for note in found.provenance.notes if "need not mean anything" in note]) == 2


def test_a_tokenizer_of_few_words_is_refused_and_ids_can_be_given(shipped):
    """The model of 512 tokens has no months; with classes and pairs of ids it is measured, and has none of it."""
    model = induction.load_model(shipped["three-layers-text"])
    with pytest.raises(ProbeError, match=r"the tokenizer of .* \(\w+\) has 0 of 12 months, 0 of 11 colours, 0 of 12 animals"):
        assert_heads_generalize(model, "L2H0")
    with pytest.raises(ProbeError, match="needs at least 5 classes of two words or more of one token each, the tokenizer of "):
        assert_heads_generalize(model, "L2H0", "classes")
    given = {"classes": [range(k, k + 6) for k in range(100, 160, 6)], "pairs": [(k, k + 100) for k in range(200, 231)]}
    found = evidence(model, ["L2H0", "L2H3"], **given)
    assert found.verdict is Verdict.REFUTED and "of the ids given" in found.provenance.probe
    assert found.estimates["literal L2H0"].value > 0.5


def test_words_of_a_tokenizer_are_the_classes_where_there_is_one():
    """A head planted on the classes of the words is found by them, and one on as large classes of other words is not."""
    tokenizer = Tokenizer(split=" ".join(LANGUAGES.values()).replace(",", "").split())  # classes only: a small model
    classes = tuple(Words(tokenizer).classes().values())
    sizes = {"d_vocab": tokenizer.space.d_vocab, "n_ctx": 64, "n_heads": 1}
    flat = [token for members in classes for token in members]
    mixed = [flat[start :: len(classes)] for start in range(len(classes))]
    for given, verdict in ((classes, Verdict.SHOWN), (mixed, Verdict.REFUTED)):
        model = planted.class_induction_head(classes=given, **sizes)
        model.tokenizer = type("Words", (), {"encode": lambda self, text, **_: tokenizer(text)})()
        found = evidence(model, "L1H0", "classes")
        assert found.verdict is verdict and found.provenance.probe == "classes: 13 classes of single-token words"


def judged(columns, heads=(ONE,), spread=0.05, count=24, error_rate=1e-3):
    """The verdict on families whose heads have these mean excesses, one value in each column."""
    wave = np.resize([-1.0, 1.0], count)[:, None] * spread
    return judge_generality(
        {name: wave + np.array([values]) for name, values in columns.items()}, heads, min_excess=0.15, error_rate=error_rate
    )


@pytest.mark.parametrize(
    ("columns", "verdict", "said"),
    [
        ({"classes": [0.5]}, Verdict.SHOWN, "classes (L1H0 has excess 0.500"),
        ({"classes": [0.0]}, Verdict.REFUTED, "none of the heads matches by meaning on classes (L1H0 has excess 0.000"),
        ({"classes": [0.16]}, Verdict.UNDETERMINED, "is too close to 0.150 to tell"),
        ({"classes": [0.5], "patterns": [0.0]}, Verdict.REFUTED, "on patterns (L1H0 has excess 0.000 "),
        ({"classes": [0.5], "patterns": [0.15]}, Verdict.UNDETERMINED, "on patterns (L1H0 has excess 0.150 "),
        ({"classes": [0.15], "patterns": [0.0]}, Verdict.REFUTED, "on patterns"),  # one that is clear decides
        ({"classes": [0.5], "patterns": [0.6]}, Verdict.SHOWN, "classes (L1H0 has excess 0.500"),
        ({"classes": [-0.5]}, Verdict.REFUTED, "excess -0.500"),
    ],
)
def test_every_family_must_be_clear(columns, verdict, said):
    found = judged(columns)
    assert found.verdict is verdict and said in found.summary
    assert (found.more_sequences > 0) is (verdict is Verdict.UNDETERMINED)


def test_of_several_heads_any_one_may_do_it_and_all_must_fail():
    """Also different ones for different families; a head that is not clear keeps the others' failure from deciding."""
    both = (ONE, OTHER)
    found = judged({"classes": [0.0, 0.5], "patterns": [0.4, 0.0]}, both)
    assert found.verdict is Verdict.SHOWN and "classes (L1H1" in found.summary and "patterns (L1H0" in found.summary
    assert list(found.estimates) == ["classes L1H1", "classes L1H0", "patterns L1H0", "patterns L1H1"]
    assert judged({"classes": [0.0, 0.15]}, both).verdict is Verdict.UNDETERMINED
    assert judged({"classes": [0.0, 0.05]}, both).verdict is Verdict.REFUTED


def test_many_heads_and_families_make_wider_intervals():
    """What is clear for one head alone is not for the best of a hundred: that one may be so by luck."""
    alone = judged({"classes": [0.19]}).estimates["classes L1H0"]
    heads = [HeadId(1, number) for number in range(100)]
    found = judged({name: [0.19, *[0.0] * 99] for name in ("classes", "patterns")}, heads)
    many = found.estimates["classes L1H0"]
    assert alone.low > 0.15 > many.low and many.value == pytest.approx(alone.value) and found.verdict is Verdict.UNDETERMINED


def test_nan_is_never_a_verdict():
    with pytest.raises(ArgumentError, match="finite"):
        judged({"classes": [np.nan]})


def test_undetermined_fails_and_says_what_would_settle_it():
    """A threshold where the head is: sequences are drawn to the end of the budget."""
    model = induction.load_model(planted.class_induction_head(sharpness=2.0, **SIZES))
    at = evidence(model, "L1H0", "classes").estimates["classes L1H0"].value
    with pytest.raises(
        ExpectationFailed, match="heads_generalize is UNDETERMINED, expected SHOWN: whether a head matches"
    ) as failure:
        assert_heads_generalize(model, "L1H0", "classes", min_excess=at, max_sequences=12)
    found = failure.value.evidence
    assert found.reason == "generality_unclear" and "more sequences: max_sequences=" in found.next_step
    assert found.next_step in str(failure.value)


def test_the_same_inputs_and_seed_give_the_same_evidence():
    """And another seed other sequences; the error rate is the one asked for, and a higher one has narrower intervals."""
    model = planted.class_induction_head(sharpness=3.5, **SIZES)
    one, again, other = (evidence(model, "L1H0", "classes", seed=seed) for seed in (3, 3, 4))
    assert one == again and one.estimates != other.estimates
    lower = evidence(model, "L1H0", "classes", seed=3, error_rate=0.1)
    assert lower.confidence == 0.9 and one.confidence == 0.999
    assert lower.estimates["classes L1H0"].low > one.estimates["classes L1H0"].low


def test_what_is_measured_is_not_lost_where_copies_fail(monkeypatch):
    """A note says that they are not known, and the verdict stands."""
    whole = assert_heads_generalize(planted.class_induction_head(**SIZES), "L1H0", "classes")

    def broken(*_):
        raise ModelError("no weights\nat all")

    monkeypatch.setattr(assertions._Copies, "__call__", broken)
    found = assert_heads_generalize(planted.class_induction_head(**SIZES), "L1H0", "classes")
    assert found.provenance.notes[-1] == "what heads copy is not known: no weights\\nat all"
    assert "classes L1H0 literal copy" not in found.estimates and "classes L1H0 literal copy" in whole.estimates
    assert found.estimates["classes L1H0"].value == pytest.approx(whole.estimates["classes L1H0"].value, abs=1e-6)


def test_heads_of_random_weights_do_not_generalise():
    """Every head of a random model at once, on classes and translations of ids and on lines: none is ever shown to do it."""
    for kind in ("GPT2", "Llama"):
        model = induction.load_model(tiny(kind))
        heads = [(layer, head) for layer in range(2) for head in range(4)]
        found = evidence(model, heads)
        assert found.verdict is Verdict.REFUTED and max(each.value for each in excesses_of(found)) < 0.02


def excesses_of(found):
    """Of all families."""
    return [each for each in found.estimates.values() if each.unit == "excess"]


def test_a_head_that_translates_is_found_by_the_words_of_a_tokenizer():
    """Planted on the pairs that the tokenizer has it is shown, and on as many pairs that do not belong together it is not."""
    listed = LANGUAGES["German"].split(", ")
    tokenizer = Tokenizer(split={word for name in LANGUAGES if name != "German" for word in foreign(name)} - foreign("German"))
    language, pairs, count = Words(tokenizer).pairs()
    assert (language, len(pairs), count) == ("German", PAIRS_ENOUGH, len(listed))
    used = sorted(token for pair in pairs for token in pair)
    small = {token: number for number, token in enumerate(used, start=1)}  # a small model has these words alone
    encode = lambda text: [small.get(token, 0) for token in tokenizer(text)]
    moved = [(one, pairs[number - 1][1]) for number, (one, _) in enumerate(pairs)]
    for given, verdict in ((pairs, Verdict.SHOWN), (moved, Verdict.REFUTED)):
        ids = [(small[one], small[other]) for one, other in given]
        model = planted.translation_head(pairs=ids, d_vocab=len(small) + 1, n_ctx=64, n_heads=1)
        model.tokenizer = type("Words", (), {"encode": lambda self, text, **_: encode(text)})()
        found = evidence(model, "L1H0", "translation")
        assert found.verdict is verdict
        assert found.provenance.probe == "translation: 48 pairs of single-token words, English and German"


def test_bad_input_is_refused_in_one_line():
    model = induction.load_model(planted.induction_head(**SIZES))
    for arguments, options, said in (
        (("L1H0",), {"min_excess": 0}, "`min_excess` must lie between 0 and 1, got 0"),
        (("L1H0",), {"error_rate": 1.0}, "`error_rate` must lie between 0 and 1, got 1.0"),
        (("L1H0",), {"max_sequences": 3}, "`max_sequences` must be at least 12, got 3"),
        (("L1H9",), {}, "has no head L1H9"),
        (([],), {}, "`heads` must be at least one head, got none"),
        (("L1H0", "months"), {}, "`probes` must be of classes, translation, patterns, got 'months'"),
        (("L1H0",), {"seed": 1.5}, "`seed` must be a whole number from 0 up, got 1.5"),
    ):
        with pytest.raises(ArgumentError, match=said) as caught:
            assert_heads_generalize(model, *arguments, **options)
        assert "\n" not in str(caught.value)
