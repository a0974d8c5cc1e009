"""Whether a later model kept its heads: planted and shipped models, damaged in known ways, and the arithmetic on made-up scores."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import pytest_induction as induction
from pytest_induction import ExpectationFailed, Verdict, find_induction_heads, load_model, planted
from pytest_induction.comparison import matching
from pytest_induction.comparison.matching import MEASURES
from pytest_induction.comparison.preservation import Measured
from pytest_induction.comparison.preserved import assert_heads_preserved, judge_preserved, profile_of
from pytest_induction.comparison.profiles import OF_BASELINES, ROLES, HeadInRole, HeadsProfile, Probed
from pytest_induction.errors import ArgumentError, BaselineError, ModelError, TextError
from pytest_induction.measuring.rounds import Round
from pytest_induction.records import Evidence, Provenance, TokenSpace
from tests.conftest import FIXTURES, SHIPPED
from tests.known_heads import CopiesUnseen, Planted, first, follows_period, share, uniform
from tests.known_heads import induction as matching_head

SIZES = {"n_heads": 3, "d_vocab": 24, "n_ctx": 41}
D_HEAD = 16  # of the shipped attention-only models
TEXT = FIXTURES / "models" / "attn-only-3l-text" / "held_out.txt"
NO_HEADS = dict.fromkeys(("prefix_matching", "previous_token", "duplicate_token"))
NO_BEHAVIOUR = dict.fromkeys(("repeat_accuracy", "repeat_loss"))


@pytest.fixture(scope="module")
def two_layers():
    """Four induction heads in layer 1, three previous-token heads in layer 0: 0.81, 0.76, and L0H0 with 0.35."""
    return induction.load_model(SHIPPED["two-layers"])


@pytest.fixture(scope="module")
def perfect():
    """An induction head L1H0 and a previous-token head L0H0."""
    return induction.load_model(planted.induction_head(**SIZES))


@pytest.fixture(scope="module")
def several():
    """Three induction heads in layer 1, each with a third of the strength."""
    return induction.load_model(planted.redundant_induction_heads(**SIZES))


@pytest.fixture(scope="module")
def kept(two_layers):
    """What is kept of two layers, as it comes out of a file."""
    return json.loads(json.dumps(profile_of(two_layers).to_dict()))


def edited(subject, edit):
    """A copy of the module, changed in place by `edit`."""
    module = copy.deepcopy(subject.module)
    with torch.no_grad():
        edit(module)
    return module


def matching_nothing(*numbers):
    """Heads of layer 1 that attend evenly: their queries are 0."""

    def edit(module):
        for number in numbers:
            module.layers[1].query.weight[number * D_HEAD : (number + 1) * D_HEAD] = 0

    return edit


def evidence(*arguments, **options):
    """The evidence, whichever way it goes."""
    try:
        return assert_heads_preserved(*arguments, **options)
    except ExpectationFailed as failure:
        return failure.evidence


def test_a_model_preserves_itself_at_the_first_round(two_layers):
    """Every loss is 0, and the heads that are kept are named with their scores."""
    found = assert_heads_preserved(two_layers, two_layers)
    assert (found.claim, found.reason, found.provenance.n_sequences) == ("heads_preserved", "preserved", 12)
    assert found.summary.startswith("all 7 heads kept in place; behaviour is kept: accuracy on repeated tokens 0.000 worse (")
    assert {estimate.value for estimate in found.estimates.values()} == {0.0}
    assert len(found.estimates) == 2 + 4 * 2 + 3
    assert {str(head) for head in found.heads} == {"L1H0", "L1H1", "L1H2", "L1H3"}
    assert found.thresholds == {
        **{name: measure.margin for name, measure in MEASURES.items() if name != "icl_score"},
        "min_prefix_matching": 0.3,
    }
    assert found.provenance.notes[0].startswith("before is ") and found.provenance.fingerprint in found.provenance.notes[0]
    assert Evidence.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found == assert_heads_preserved(two_layers, two_layers)


def test_heads_that_change_places_are_moved_and_nothing_is_lost(perfect, two_layers):
    """By role and not by number: in other heads of the same layers, with other heads beside them, and all heads of a layer shifted."""
    found = assert_heads_preserved(perfect, planted.induction_head(head=2, previous_head=1, n_layers=3, **SIZES))
    said, behaviour = found.summary.split("; behaviour is kept: ")
    assert said == "L1H0 -> L1H2 moved; previous-token head L0H0 -> L0H1 moved" and behaviour
    assert [str(head) for head in found.heads] == ["L1H2"]

    def shift(module):
        for layer in module.layers:
            for part in (layer.query, layer.key, layer.value):
                part.weight.copy_(part.weight.roll(D_HEAD, 0))
            layer.out.weight.copy_(layer.out.weight.roll(D_HEAD, 1))

    found = assert_heads_preserved(two_layers, edited(two_layers, shift), margins={"prefix_matching": 0.15})
    assert found.reason == "preserved" and "previous-token head L0H2 -> L0H0 moved" in found.summary


def test_quantised_models_keep_their_heads(two_layers):
    """Weights of a Llama in bfloat16, and of two layers rounded to 8 bits by channel; rounded to 2 bits everything is lost."""
    before = induction.load_model(SHIPPED["llama"])
    found = assert_heads_preserved(before, copy.deepcopy(before.module).to(torch.bfloat16))
    assert found.summary.startswith("all 6 heads kept in place") and abs(found.estimates["repeat_loss"].value) < 0.01

    def rounded(bits):
        def edit(module):
            for weight in module.parameters():
                if weight.ndim == 2:
                    step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                    weight.copy_((weight / step).round() * step)

        return edited(two_layers, edit)

    found = assert_heads_preserved(two_layers, rounded(8))
    assert found.summary.startswith("all 7 heads kept in place") and abs(found.estimates["repeat_loss"].value) < 0.01
    assert evidence(two_layers, rounded(2)).reason == "both_lost"


@pytest.mark.filterwarnings("ignore")  # of torch, for its own quantisation
def test_a_dynamically_quantised_model_is_compared_though_its_weights_cannot_be_read(two_layers):
    """Whether its heads copy is then not known, and said."""
    after = torch.ao.quantization.quantize_dynamic(copy.deepcopy(two_layers.module), {torch.nn.Linear}, dtype=torch.qint8)
    found = assert_heads_preserved(two_layers, after)
    assert found.reason == "preserved" and any("whether each head copies is not known" in note for note in found.provenance.notes)


def test_a_head_lost_among_several_is_named_and_so_are_those_that_do_it_now(several):
    """The behaviour is the same, so that it is the mechanism that is lost; one head is allowed to be with `max_lost`."""
    after = induction.load_model(edited(several, lambda module: module.layers[1].W_Q[2].zero_()))
    with pytest.raises(ExpectationFailed, match=r"heads_preserved is REFUTED, expected SHOWN: L1H2 lost \(prefix") as caught:
        assert_heads_preserved(several, after)
    found = caught.value.evidence
    assert found.reason == "mechanism_lost" and found.provenance.n_sequences == 12
    assert "; 3 of 4 heads kept in place; behaviour is kept, by L1H0 (1.00), L1H1 (1.00): " in found.summary
    assert found.estimates["prefix_matching L1H2"].low > 0.1 and found.estimates["prefix_matching L1H0"].high < 0.1
    assert [str(head) for head in found.heads] == ["L1H0", "L1H1"]
    message = str(caught.value).splitlines()
    assert len(message) <= 12 and "`max_lost=`" in message[-1]
    allowed = assert_heads_preserved(several, after, max_lost=1)
    assert allowed.reason == "preserved" and allowed.summary.startswith("L1H2 lost (")
    two_gone = edited(several, lambda module: module.layers[1].W_Q[1:].zero_())
    assert evidence(several, two_gone, max_lost=1).reason == "mechanism_lost"


def test_all_induction_heads_gone_are_both_lost_and_the_way_back_is_no_loss(two_layers):
    """What improves passes, whatever it is."""
    after = induction.load_model(edited(two_layers, matching_nothing(0, 1, 2, 3)))
    found = evidence(two_layers, after)
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "both_lost")
    assert [word in found.summary for word in ("L1H0 lost (", "L1H1 lost (", "L1H2 lost (", "and 1 more")] == [True] * 4
    assert "accuracy on repeated tokens 0.9" in found.summary and not found.heads
    back = assert_heads_preserved(after, two_layers)
    assert back.summary.startswith("all 3 heads kept in place") and back.estimates["repeat_accuracy"].high < -0.8


def test_behaviour_lost_with_all_heads_in_place_is_told_apart(two_layers):
    """The unembedding gives every token the logit of another one."""
    after = edited(two_layers, lambda module: module.unembed.weight.copy_(module.unembed.weight.roll(1, 0)))
    found = evidence(two_layers, after)
    assert (found.reason, found.verdict) == ("behaviour_lost", Verdict.REFUTED)
    assert found.summary.startswith("all 7 heads kept in place; accuracy on repeated tokens ")
    assert assert_heads_preserved(two_layers, after, margins=NO_BEHAVIOUR).summary == "all 7 heads kept in place"


def test_a_head_that_attends_less_sharply_is_weakened(perfect):
    """It is still one; behaviour does not show it. The other way round nothing is lost."""
    after = induction.load_model(planted.induction_head(sharpness=4.0, **SIZES))
    found = evidence(perfect, after)
    assert found.reason == "mechanism_lost" and found.summary.startswith("L1H0 weakened (prefix matching ")
    assert "behaviour is kept, by L1H0 (0.80)" in found.summary
    assert found.estimates["prefix_matching L1H0"].value == pytest.approx(0.2, abs=0.03)
    sharper = assert_heads_preserved(after, perfect)
    assert sharper.summary.startswith("all 2 heads kept in place") and sharper.estimates["prefix_matching L1H0"].high < 0


def test_a_head_that_suppresses_takes_no_ones_place(perfect):
    """It attends as an induction head does; and a model that copies in two steps has lost its head, and says so."""
    found = evidence(perfect, planted.copy_suppression_head(**SIZES))
    assert found.reason == "both_lost" and found.summary.startswith("L1H0 lost (prefix matching 1.000 worse)")
    found = evidence(perfect, planted.virtual_induction_head(**SIZES))
    assert found.reason == "mechanism_lost" and "behaviour is kept, though no head matches prefixes: " in found.summary


def test_a_difference_at_the_margin_is_undetermined_and_says_what_would_settle_it(perfect, tmp_path):
    """More sequences: of both models, or of a profile that is taken anew."""
    after = induction.load_model(planted.induction_head(sharpness=4.0, **SIZES))
    loss = evidence(perfect, after, max_sequences=24).estimates["excess L1H0"].value
    found = evidence(perfect, after, margins={"prefix_matching": loss}, max_sequences=24)
    assert (found.verdict, found.reason, found.provenance.n_sequences) == (Verdict.UNDETERMINED, "difference_unclear", 24)
    assert found.summary.startswith("whether everything is kept is not clear: L1H0, prefix matching beyond chance 0.2")
    assert found.next_step.startswith("about ") and " more sequences: max_sequences=" in found.next_step
    profile = profile_of(perfect, n_sequences=12)
    found = evidence(profile, after, margins={"prefix_matching": loss})
    assert found.provenance.n_sequences == 12
    assert "more sequences: profile the model before again with n_sequences=" in found.next_step


def test_a_model_with_nothing_to_lose_makes_no_gate():
    """A comparison that cannot fail shows nothing; the same where what there is is left out."""
    found = evidence(SHIPPED["one-layer"], SHIPPED["two-layers"])
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "nothing_to_preserve")
    found = evidence(SHIPPED["virtual"], SHIPPED["virtual"], margins=NO_BEHAVIOUR)
    assert found.reason == "nothing_to_preserve"
    assert (
        "no head of the earlier model is in a role; behaviour is kept"
        in assert_heads_preserved(SHIPPED["virtual"], SHIPPED["virtual"]).summary
    )


class NoAttention(torch.nn.Module):
    """Predicts what followed the last earlier occurrence, or one token whatever comes; without attention."""

    n_ctx, bos_token_id = 41, 0

    def __init__(self, *, copies=True):
        super().__init__()
        self.copies, self.unused = copies, torch.nn.Parameter(torch.zeros(1))

    def forward(self, tokens):
        same = (tokens[:, :, None] == tokens[:, None, :]).float().tril(-1)
        after = torch.nn.functional.pad(same, (1, 0))[..., :-1] @ torch.nn.functional.one_hot(tokens, 24).float()
        return after * 20 * self.copies + self.unused


def test_models_that_cannot_be_read_are_compared_by_behaviour_alone(perfect):
    """Heads are then not comparable, which is no pass, unless they are left out; a loss of behaviour is one all the same."""
    copies, dull = (induction.load_model(NoAttention(copies=each)) for each in (True, False))
    found = evidence(perfect, copies)
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "not_comparable")
    assert (
        found.next_step
        == 'compare behaviour alone: margins={"prefix_matching": None, "previous_token": None, "duplicate_token": None}'
    )
    assert evidence(perfect, dull).reason == "behaviour_lost"
    assert evidence(copies, dull).reason == "behaviour_lost"
    assert evidence(dull, copies).reason == "nothing_to_preserve"
    found = assert_heads_preserved(copies, copies, margins=NO_HEADS)
    assert found.summary.startswith("heads are not compared; behaviour is kept")
    profile = HeadsProfile.from_dict(json.loads(json.dumps(profile_of(copies).to_dict())))
    assert profile.heads is None and assert_heads_preserved(profile, copies, margins=NO_HEADS).reason == "preserved"
    unseen = CopiesUnseen(uniform, d_vocab=24, n_ctx=41)  # attention that is read and does nothing
    assert evidence(perfect, unseen).reason == "mechanism_lost"


def test_what_is_not_finite_is_an_error_and_no_verdict(perfect):
    """Of the later model on these very tokens."""

    class Overflows(torch.nn.Module):
        n_ctx, bos_token_id = 41, 0

        def __init__(self):
            super().__init__()
            self.inner = planted.induction_head(**SIZES)

        def forward(self, tokens):
            repeats = (tokens[:, 1:] == tokens[:, 1:2]).sum() > len(tokens) if tokens.shape[1] > 20 else False
            return self.inner(tokens) + (torch.nan if repeats else 0.0)

    with pytest.raises(ModelError, match="not finite"):
        assert_heads_preserved(perfect, Overflows())


def test_the_probes_are_those_of_the_model_before_or_refused(perfect):
    """Fewer ids or positions cannot take them; more can; a space that both have serves both."""
    fewer = planted.induction_head(n_heads=3, d_vocab=20, n_ctx=41)
    shorter = planted.induction_head(n_heads=3, d_vocab=24, n_ctx=30)
    more = planted.induction_head(n_heads=4, d_vocab=26, n_ctx=48)
    with pytest.raises(ModelError, match="has token ids 0 to 19, the probes go up to 23: ") as caught:
        assert_heads_preserved(perfect, fewer)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="has a context of 30, the probes have up to 41 positions: "):
        assert_heads_preserved(perfect, shorter)
    found = assert_heads_preserved(perfect, more)
    assert found.reason == "preserved"
    profile = profile_of(perfect, space=TokenSpace(20, 30, 0), n_sequences=12)
    for after in (fewer, shorter, more, perfect):
        assert assert_heads_preserved(profile, after).reason == "preserved"
    with pytest.raises(ArgumentError, match="`space` must be a `TokenSpace`, got `dict`"):
        profile_of(perfect, space={})


def test_a_file_serves_as_well_as_the_model(two_layers, kept, tmp_path):
    """A profile of its own, or an entry of a baseline; with the same verdict, and told apart from models."""
    alone, single, double = (tmp_path / name for name in ("profile.json", "one.baseline", "two.json"))
    alone.write_text(json.dumps(kept))
    entry = {"kind": "heads", "profile": kept}
    whole = {"schema": 1, "what": OF_BASELINES}
    single.write_text(json.dumps({**whole, "entries": {"model": entry, "speed": {"kind": "number", "value": 3}}}))
    double.write_text(json.dumps({**whole, "entries": {"model": entry, "other": entry}}))
    after = induction.load_model(edited(two_layers, matching_nothing(2)))
    wanted = evidence(two_layers, after)
    for before, options in ((str(alone), {}), (alone, {}), (single, {}), (double, {"entry": "other"})):
        found = evidence(before, after, **options)
        assert (found.reason, found.summary.split(" (")[0]) == (wanted.reason, "L1H2 lost")
        assert found.estimates["prefix_matching L1H2"].value == pytest.approx(
            wanted.estimates["prefix_matching L1H2"].value, abs=1e-5
        )
        assert assert_heads_preserved(before, two_layers, **options).provenance.n_sequences == 12
    with pytest.raises(BaselineError, match=r"two.json' has 2 entries of heads \('model', 'other'\): name one with `entry=`"):
        assert_heads_preserved(double, after)
    with pytest.raises(BaselineError, match=r"one.baseline' has 1 entries of heads \('model'\): got `entry='speed'`"):
        assert_heads_preserved(single, after, entry="speed")
    with pytest.raises(BaselineError, match="is no baseline file, which alone has entries: leave `entry` out"):
        assert_heads_preserved(alone, after, entry="model")
    with pytest.raises(ArgumentError, match="`entry` names an entry of a baseline file, and `before` is none"):
        assert_heads_preserved(two_layers, after, entry="model")
    with pytest.raises(ArgumentError, match=r"`seed` is 1, .*profile.json' was drawn with seed 0: leave it out"):
        assert_heads_preserved(alone, after, seed=1)


def test_a_profile_of_another_seed_has_other_sequences_and_the_same_heads(two_layers, kept):
    """The later model is measured on those of the profile."""
    other = profile_of(two_layers, seed=7, n_sequences=12)
    assert other.probed.seed == 7 and other.probed.digest != kept["probed"]["digest"]
    assert [(head.role, head.layer, head.head) for head in other.heads] == [
        (head["role"], head["layer"], head["head"]) for head in kept["heads"]
    ]
    found = assert_heads_preserved(other, two_layers)
    assert (found.provenance.seed, {each.value for each in found.estimates.values()}) == (7, {0.0})


def without(*path):
    """An edit that takes one thing out of a profile."""

    def edit(data):
        for name in path[:-1]:
            data = data[name]
        del data[path[-1]]

    return edit


def with_other(value, *path):
    """An edit that replaces one thing of a profile."""

    def edit(data):
        for name in path[:-1]:
            data = data[name]
        data[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (with_other(2, "schema"), "is a profile of schema 2: expected schema 1"),
        (with_other("a run", "what"), "is no profile of heads: expected schema 1"),
        (without("behaviour"), "is damaged: `behaviour` is missing; take it anew"),
        (without("provenance", "model"), "is damaged: "),
        (with_other(float("nan"), "behaviour", "repeat_loss", 3), "is no JSON: NaN is no number"),
        (with_other("0.9", "heads", 0, "excess", 0), "is damaged: `heads[0].excess[0]` must be a number, got '0.9'"),
        (with_other([0.5], "heads", 0, "prefix_matching"), "is damaged: `heads[0].prefix_matching` must be 48 finite numbers"),
        (with_other("copying", "heads", 0, "role"), "is damaged: `heads[0].role` must be 'induction' or"),
        (with_other(1, "heads", 0, "head"), "is damaged: `heads` has a head twice in one role"),
        (with_other(3, "probed", "n_sequences"), "is damaged: `probed.n_sequences` must be within 12 and 16777216, got 3"),
        (
            with_other(10**12, "probed", "space", "d_vocab"),
            "is damaged: `probed.space.d_vocab` must be within 1 and 4194304, got 1000000000000",
        ),
        (with_other([[5, 6]], "probed", "space", "excluded"), "cannot be drawn again"),
        (with_other(3, "probed", "seed"), "cannot be drawn again"),
        (with_other(None, "heads", 0), "is damaged: "),
    ],
)
def test_a_damaged_or_changed_file_is_refused_in_one_line(two_layers, kept, tmp_path, edit, message):
    """It says which file and what is wrong; nothing is compared with it."""
    data = copy.deepcopy(kept)
    edit(data)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(data))
    with pytest.raises(BaselineError, match=r"profile.json'") as caught:
        assert_heads_preserved(path, two_layers)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_file_of_ours_is_refused_in_one_line(two_layers, tmp_path):
    """Missing, no JSON, no profile, a baseline of another schema."""
    for name, text, message in (
        ("gone.json", None, "gone.json' cannot be read: No such file"),
        ("torn.json", '{"schema": 1', "torn.json' is no JSON: "),
        ("deep.json", "[" * 100_000, "deep.json' is no JSON: "),
        ("list.json", "[]", "list.json' is no profile of heads: "),
        (
            "new.json",
            json.dumps({"what": OF_BASELINES, "schema": 2, "entries": {}}),
            "is a baseline file of schema 2, expected 1",
        ),
        ("none.json", json.dumps({"what": OF_BASELINES, "schema": 1, "entries": {}}), "has 0 entries of heads (none): "),
    ):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        with pytest.raises(BaselineError) as caught:
            assert_heads_preserved(path, two_layers)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_in_context_learning_is_compared_on_the_same_rows_of_text(tmp_path):
    """Of models and of a profile; less of it is behaviour that is lost, and the late loss is reported beside."""
    before = induction.load_model(SHIPPED["three-layers-text"])
    only = {**NO_HEADS, **NO_BEHAVIOUR}

    def forgetful(module):
        module.layers[2].out.weight.zero_()

    # Without a tokenizer of its own it takes the token ids of the one before.
    after = replace(induction.load_model(edited(before, forgetful)), tokenizer=None)
    found = evidence(before, after, text=TEXT, margins=only, max_rows=64)
    assert found.reason == "behaviour_lost" and "in-context learning 0." in found.summary
    assert list(found.estimates) == ["icl_score", "late_loss"]
    assert found.provenance.probe.endswith("; 64 rows of 128 positions of text")
    few = evidence(before, before, text=TEXT, margins=only, max_rows=15)
    assert (few.verdict, few.reason, few.next_step) == (Verdict.UNDETERMINED, "not_comparable", "give a text of 16 rows or more")
    profile = HeadsProfile.from_dict(json.loads(json.dumps(profile_of(before, text=TEXT, n_sequences=12, max_rows=64).to_dict())))
    assert assert_heads_preserved(profile, before, text=TEXT, margins=only).reason == "preserved"
    found = assert_heads_preserved(profile, before)
    assert (
        "icl_score" not in found.thresholds
        and "in-context learning is not compared: no `text` was given" in found.provenance.notes
    )
    with pytest.raises(BaselineError, match="`text` makes other rows of token ids than that of the profile of "):
        assert_heads_preserved(profile, before, text=TEXT.read_text(encoding="utf-8")[500:])
    with pytest.raises(TextError, match="has no tokenizer"):
        assert_heads_preserved(profile, after, text=TEXT)
    with pytest.raises(BaselineError, match="has no text to compare with: take it anew with `text=`"):
        assert_heads_preserved(replace(profile, text=None), before, text=TEXT)

    class Reversed:
        def encode(self, text, **_):
            return before.encode(text)[::-1]

    with pytest.raises(ArgumentError, match="`text` is not the same tokens for "):
        assert_heads_preserved(before, replace(before, tokenizer=Reversed(), _known={}), text=TEXT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margins": {"width": 1}}, "`margins` has no measure 'width': it has prefix_matching, previous_token, "),
        (
            {"margins": {"prefix_matching": 0.3}},
            "`margins` of prefix_matching must be a number above 0 and below 0.300, what a head",
        ),
        (
            {"margins": {"previous_token": 0.6}},
            "must be a number above 0 and below 0.300, what a head must have to count, or None",
        ),
        ({"margins": {"repeat_loss": 0}}, "`margins` of repeat_loss must be a number above 0 or None to leave it out, got 0"),
        ({"margins": {"repeat_loss": float("nan")}}, "must be a number above 0 or None"),
        ({"margins": {"repeat_loss": True}}, "must be a number above 0 or None"),
        ({"margins": {"icl_score": 0.1}}, "icl_score needs a `text`"),
        ({"margins": {"icl_score": None}, "text": [[1, 2]]}, "which is left out by its margin of None"),
        ({"margins": {**NO_HEADS, **NO_BEHAVIOUR}}, "`margins` leaves out every measure"),
        ({"max_lost": -1}, "`max_lost` must be a whole number from 0 up, got -1"),
        ({"error_rate": 0.5}, "`error_rate` must lie between 0 and 0.5, got 0.5"),
        ({"max_sequences": 8}, "`max_sequences` must be at least 12, got 8"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_in_one_line(perfect, options, message):
    """Before anything is measured; a margin that no head could exceed would make a gate that cannot fail."""
    with pytest.raises(ArgumentError) as caught:
        assert_heads_preserved(perfect, perfect, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def made_up(rng, losses, spread=0.05, count=12, extra=0):
    """Induction heads of strength 0.9 and what each has lost, by sequence; `extra` heads after are as those that lost most."""
    n = len(losses)
    strength = 0.9 + rng.normal(0, spread, (count, n))
    all_losses = np.concatenate([losses, np.full(extra, max(losses))])
    source = np.concatenate([strength, np.repeat(strength[:, :1], extra, axis=1)], axis=1)
    later = (source - all_losses - rng.normal(0, spread, (count, n + extra)))[:, None]
    behaviour = dict.fromkeys(("repeat_loss", "repeat_accuracy", "advantage", "first_loss"), np.ones(count))
    kept = [HeadInRole("induction", 0, i, dict.fromkeys(ROLES["induction"], strength[:, i])) for i in range(n)]
    nowhere = Provenance("made up", "", "", 1, n, "", "")
    before = HeadsProfile(tuple(kept), behaviour, None, Probed(0, count, TokenSpace(8), (8,), 4), nowhere)
    scores = dict.fromkeys(("prefix_matching", "excess"), later) | dict.fromkeys(("previous_token", "duplicate_token"), later * 0)
    found = Round(np.full(count, 8), {}, {}, behaviour, "")
    return before, Measured(found, scores, np.zeros((1, n + extra), bool))


def shares(losses, error_rate=0.05, max_lost=0, times=200, **options):
    """How often each verdict is reached, of models whose heads truly lost so much."""
    rng = np.random.default_rng(5)
    margins = {"prefix_matching": 0.1, "repeat_loss": 0.25}
    verdicts = [
        judge_preserved(*made_up(rng, losses, **options), margins, max_lost=max_lost, error_rate=error_rate).verdict
        for _ in range(times)
    ]
    return {verdict: verdicts.count(verdict) / times for verdict in Verdict}


@pytest.mark.parametrize(
    ("losses", "options"), [([0.1], {}), ([0.1, 0.1], {"max_lost": 1}), ([0.1, 0.0, 0.0], {}), ([0.1], {"extra": 8})]
)
def test_at_the_margin_either_answer_is_as_rare_as_the_error_rate_says(losses, options):
    """Of one head, of two of which one may be lost, of one among others, and of one that has nine heads to choose from."""
    found = shares(losses, **options)
    assert found[Verdict.SHOWN] <= 0.1 and found[Verdict.REFUTED] <= 0.1  # 0.05 and three standard errors of 200


def test_choosing_and_measuring_on_the_same_sequences_would_pass_too_often(monkeypatch):
    """That is what every other sequence is kept for."""
    honest = shares([0.1], extra=8)
    monkeypatch.setattr(matching, "held_out", matching.chosen)
    assert shares([0.1], extra=8)[Verdict.SHOWN] > max(1.5 * honest[Verdict.SHOWN], 0.1)


def test_within_and_beyond_the_margin_the_answer_is_found():
    """With few sequences, and heads that change places by chance are not counted as lost."""
    assert shares([0.02, 0.02], times=100, count=24)[Verdict.SHOWN] > 0.9
    assert shares([0.3, 0.0], times=100)[Verdict.REFUTED] > 0.9
    assert shares([0.3, 0.0], times=100, max_lost=1)[Verdict.SHOWN] > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_induction_heads_of_a_profile_are_those_of_the_list(seed):
    """Few sequences would not tell them: one above the threshold is kept, one near it and one that follows a period are not."""
    heads = (share(matching_head, 0.42), share(matching_head, 0.29), follows_period(2), first)
    subject = load_model(Planted(*heads, copy=60.0, d_vocab=128))
    found = profile_of(subject, n_sequences=12, seed=seed)
    assert [(head.layer, head.head) for head in found.heads if head.role == "induction"] == [(0, 0)]
    listed = find_induction_heads(subject, seed=seed)
    assert [str(head) for head in listed.heads] == ["L0H0"] and [str(head) for head in listed.near] == ["L0H1"]
