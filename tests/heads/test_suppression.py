"""Copy suppression on a text: effects against loops over eager patterns, planted heads with known answers, and verdicts."""

import json

import numpy as np
import pytest
import torch

import pytest_induction as induction
from pytest_induction import ExpectationFailed, Verdict, assert_copy_suppression, measure_copy_suppression, planted
from pytest_induction.charts.heads import heads_data
from pytest_induction.charts.making import plain
from pytest_induction.errors import ArgumentError, TextError
from pytest_induction.heads.suppression import (
    LISTS,
    MIN_PREDICTIONS,
    asked,
    effects_to_draw,
    judge_suppression,
    queries_of,
    sums_of,
    suppressing,
)
from pytest_induction.planted.blueprint import Attends, Blueprint, after, back
from pytest_induction.records import Evidence, HeadId
from pytest_induction.report.charts.head_map import NOTES, head_map
from tests.behaviour.test_matches import repeating_rows
from tests.heads.test_copying import tiny
from tests.heads.test_semantic import patterns_of

SIZES = {"n_heads": 3, "d_vocab": 40, "n_ctx": 64}
ROWS = repeating_rows(60)
HEAD = HeadId(2, 0)


def evidence(*arguments, **options):
    """The evidence, whichever way it goes."""
    try:
        return assert_copy_suppression(*arguments, **options)
    except ExpectationFailed as failure:
        return failure.evidence


def untied(kind):
    """A tiny model whose unembedding is not its embedding: else it predicts the query's own token."""
    model = tiny(kind)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(3)))
    return model.eval()


def parts_of(model, layer):
    """Of a tiny model of transformers: norm and values of a layer, its output weights (n_in, n_out), the norm behind, the end."""
    if hasattr(model, "transformer"):
        block, width = model.transformer.h[layer], model.config.n_embd
        return (
            block.ln_1,
            lambda given: block.attn.c_attn(given)[..., 2 * width :],
            block.attn.c_proj.weight,
            None,
            model.transformer.ln_f,
        )
    block = model.model.layers[layer]
    behind = block.post_attention_layernorm if "Gemma" in type(model).__name__ else None
    return block.input_layernorm, block.self_attn.v_proj, block.self_attn.o_proj.weight.T, behind, model.model.norm


def frozen(norm, reference, given):
    """What a norm makes of `given` if it divides by what it divides `reference` by."""
    shift = getattr(norm, "bias", None)
    if shift is not None:  # LayerNorm
        scale = (reference.var(-1, correction=0) + norm.eps).sqrt()
        return norm.weight * (given - given.mean(-1, keepdim=True)) / scale
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0))
    gain = norm.weight if "Gemma" not in type(norm).__name__ else 1 + norm.weight
    return gain * given / (reference.square().mean(-1) + eps).sqrt()


@torch.no_grad()
def slow_effects(model, tokens, others):
    """(layer, query) -> predicted token, and of every head (masses, effects, all of it) by loops over keys, with whole logits.

    `tokens` is one row, `others` (layers, queries) the tokens that are compared with.
    """
    model, row, seen = model.double(), torch.tensor([tokens]), {}
    patterns = patterns_of(model, row.numpy())[:, 0]
    end = parts_of(model, 0)[-1]
    hook = end.register_forward_pre_hook(lambda part, given: seen.update(last=given[0][0]))
    hidden = [each[0] for each in model(row, output_hidden_states=True, use_cache=False).hidden_states]
    hook.remove()
    last, found = seen["last"], {}
    for layer, pattern in enumerate(patterns):
        norm, values_of, out, behind, _ = parts_of(model, layer)
        values = values_of(norm(hidden[layer]))
        d_head = out.shape[0] // len(pattern)
        shared = len(pattern) * d_head // values.shape[-1]
        for place, query in enumerate(queries_of(len(tokens)).tolist()):
            logits = model.lm_head(end(hidden[layer][query]))
            likeliest = int(logits.argmax())
            if likeliest == tokens[query] or likeliest not in tokens[1:query]:
                continue
            written = torch.zeros(len(pattern), len(tokens), out.shape[1], dtype=torch.double)
            for head in range(len(pattern)):
                group = head // shared
                for key in range(query + 1):
                    value = values[key, group * d_head : (group + 1) * d_head]
                    written[head, key] = pattern[head, query, key] * (value @ out[head * d_head : (head + 1) * d_head])
            if behind is not None:
                written = frozen(behind, written.sum((0, 1)), written)
            effects = model.lm_head(frozen(end, last[query], written))  # heads, keys, ids
            effects = effects - effects.mean(-1, keepdim=True)
            of_tokens = []
            for token in (likeliest, int(others[layer][place])):
                keys = [key for key in range(1, query) if tokens[key] == token]
                of_tokens += [pattern[:, query, keys].sum(-1), effects[:, keys, token].sum(-1)]
            found[layer, place] = likeliest, [*of_tokens, effects[..., likeliest].sum(-1)]
    return found


@pytest.mark.parametrize("kind", [*(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ("GPT2", "Llama")), "Gemma3"])
def test_effects_are_those_of_loops_over_eager_patterns(kind):
    """Of every head, layer and row of a random model; with a norm behind attention too, and keys that heads share."""
    model = untied(kind)
    subject = induction.load_model(model)
    rows = np.random.default_rng(5).integers(3, 61, (3, 40))
    rows[:, 0] = 0
    found = sums_of(subject, rows, 7, range(subject.n_layers))
    names = ("mass", "effect", "other_mass", "other_effect", "direct_effect")
    counted = 0
    for number, row in enumerate(rows.tolist()):
        likeliest = [likeliest_of(model, row, layer) for layer in range(subject.n_layers)]
        others = []
        for layer, each in enumerate(likeliest):
            rng = np.random.default_rng([7, 26, number, layer])
            others.append(asked(each[None], rows[[number]], queries_of(40), lambda _, rng=rng: rng).others[0])
        slow = slow_effects(untied(kind), row, others)
        for layer in range(subject.n_layers):
            values = np.array([[each.numpy() for each in of] for (at, _), (_, of) in slow.items() if at == layer])
            assert found["predictions"][number, layer] == len(values)
            counted += len(values)
            for name, wanted in zip(names, values.sum(0) if len(values) else np.zeros((5, subject.n_heads)), strict=True):
                assert found[name][number, layer] == pytest.approx(wanted, abs=1e-4), (name, layer)
            if len(values):
                assert found["product"][number, layer] == pytest.approx((values[:, 0] * values[:, 4]).sum(0), abs=1e-4)
                high = values[:, 0] >= 0.1
                assert found["attended"][number, layer] == pytest.approx(high.sum(0))
                assert found["attended_effect"][number, layer] == pytest.approx((values[:, 1] * high).sum(0), abs=1e-4)
    assert counted > 10


@torch.no_grad()
def likeliest_of(model, tokens, layer):
    """The likeliest token at each query by the stream before a layer."""
    hidden = model(torch.tensor([tokens]), output_hidden_states=True, use_cache=False).hidden_states[layer][0]
    return model.lm_head(parts_of(model, 0)[-1](hidden[queries_of(len(tokens))])).argmax(-1).numpy()


def test_what_counts_as_a_prediction():
    """It stands behind the first position and before the query, and is not the query's token; another stands there as often."""
    row = np.array([[9, 1, 2, 1, 3, 3, 4, 2, 5]])
    queries = np.array([6, 6, 6, 6, 7, 8, 8])
    likeliest = np.array([[1, 4, 9, -1, 2, 2, 7]])
    found = asked(likeliest, row, queries, np.random.default_rng)
    assert found.predicted.tolist() == [[1, -1, -1, -1, -1, 2, -1]]
    assert found.others[0, 0] == 3 and found.others[0, 5] in (1, 3)
    assert (found.others >= 0).tolist() == found.counts.tolist()


def test_where_nothing_else_stands_before_nothing_counts():
    found = asked(np.array([[1]]), np.array([[9, 1, 1, 4]]), np.array([3]), np.random.default_rng)
    assert not found.counts.any()


def beside(attends, strength, **sizes):
    """An induction head that predicts, and behind it a head that attends so and writes what it finds with that strength."""
    plan = Blueprint({"n_layers": 3, **SIZES, **sizes})
    plan.plant(plan.place(0, 0), "previous_token", Attends(back(1)), {"found": 1.0})
    plan.plant(plan.place(1, 0), "induction", Attends(after("found"), latest_only=True), {"output": 16.0})
    plan.plant(plan.place(2, 0), "copying", attends, {"output": strength})
    return plan.build()


KNOWN = {  # a model; of its head L2H0 effect, mass and whether other tokens have as much; verdict on all heads
    "suppresses": (planted.prediction_suppression_head(**SIZES), 8 / 40 - 8, 1.0, False, ("SHOWN", "suppresses")),
    "a little": (planted.prediction_suppression_head(strength=0.01, **SIZES), 0.01 / 40 - 0.01, 1.0, False, ("REFUTED", "no_head_suppresses")),
    "silent": (planted.prediction_suppression_head(strength=0, **SIZES), 0.0, 1.0, False, ("REFUTED", "no_head_suppresses")),
    "copies": (beside(Attends(after("found"), latest_only=True), 8.0), 8 - 8 / 40, 1.0, False, ("REFUTED", "no_head_suppresses")),
    "matches and lowers": (beside(Attends(after("found"), latest_only=True), -8.0), 8 / 40 - 8, 1.0, False, ("SHOWN", "suppresses")),
    "lowers everything": (beside(Attends(resting=0.0), -10.0), None, None, True, ("REFUTED", "no_head_suppresses")),
    "lowers what is near": (beside(Attends(back(2)), -2.0), None, None, True, None),
    "rests": (beside(Attends(resting=1.0), -8.0), 0.0, 0.0, False, ("REFUTED", "no_head_suppresses")),
}  # fmt: skip


REPEATING = ("a little", "silent", "rests", "matches and lowers", "lowers what is near")  # what others are about too


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in REPEATING)) for name in KNOWN])
def test_planted_heads_have_their_effect_and_verdict(name):
    """By the formula of their construction. A head that lowers everything lowers what is predicted too: the null tells it."""
    model, effect, mass, alike, verdict = KNOWN[name]
    subject = induction.load_model(model)
    scores = measure_copy_suppression(subject, ROWS, max_rows=24)
    assert scores.predictions.tolist()[:2] == [0, 0] and scores.predictions[2] > 100
    assert np.isnan(scores.effect[:2]).all() and (scores.effect[2, 1:] == 0).all()
    if alike:
        assert scores.effect[2, 0] < -0.1
        assert scores.other_effect[2, 0] == pytest.approx(scores.effect[2, 0], rel=0.5)
    else:
        assert scores.effect[2, 0] == pytest.approx(effect, abs=1e-3)
        assert scores.direct_effect[2, 0] == pytest.approx(effect, abs=1e-3)
        assert (scores.mass[2, 0], scores.attended_share[2, 0]) == pytest.approx((mass, mass), abs=1e-4)
        assert (scores.other_mass[2, 0], scores.other_effect[2, 0]) == pytest.approx((0, 0), abs=1e-4)
    if verdict is not None:
        found = evidence(subject, ROWS)
        assert (found.verdict.name, found.reason) == verdict
        assert Evidence.from_dict(found.to_dict()) == found
    if name in ("lowers everything", "lowers what is near"):
        assert evidence(subject, ROWS, heads="L2H0").verdict is not Verdict.SHOWN


def test_what_lowers_everything_is_told_by_the_null():
    found = evidence(KNOWN["lowers everything"][0], ROWS, heads="L2H0")
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "does_not_suppress")
    assert found.estimates["effect L2H0"].value < -0.1 < found.estimates["beyond others L2H0"].low
    assert "to other tokens that stand there as often" in found.summary


def test_the_first_position_is_no_occurrence():
    """A head that rests there would seem to attend to whatever token begins the row."""
    rows = ROWS.copy()
    rows[:, 0] = rows[:, 40]
    scores = measure_copy_suppression(beside(Attends(resting=1.0), -8.0), rows, max_rows=40)
    assert scores.mass[2, 0] == pytest.approx(0, abs=1e-6) and scores.effect[2, 0] == pytest.approx(0, abs=1e-6)


def test_each_of_the_named_heads_must_suppress():
    model = induction.load_model(KNOWN["suppresses"][0])
    assert evidence(model, ROWS, heads="L2H0").verdict is Verdict.SHOWN
    both = evidence(model, ROWS, heads=["L2H0", "L2H1"])
    assert (both.verdict, both.reason) == (Verdict.REFUTED, "does_not_suppress") and "L2H1" in both.summary
    early = evidence(model, ROWS, heads=["L2H0", "L1H0"])
    assert (early.verdict, early.reason) == (Verdict.UNDETERMINED, "few_predictions")
    assert "before layer 1 at 0 of" in early.summary and not early.next_step


@pytest.mark.parametrize(
    "make", [planted.copy_suppression_head, pytest.param(planted.uniform_head, marks=pytest.mark.exhaustive)]
)
def test_where_nothing_is_predicted_before_any_layer_nothing_is_said(make):
    """Also of a head that lowers what it matches, in a last layer: no layer before it predicts anything."""
    found = evidence(make(**SIZES), ROWS)
    assert (found.verdict, found.reason, found.next_step) == (Verdict.UNDETERMINED, "few_predictions", "")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in (1, 2))])
def test_random_weights_are_never_shown(seed):
    torch.manual_seed(seed)
    model = induction.load_model(tiny("Llama"))
    rows = repeating_rows(60)
    assert evidence(model, rows).verdict is not Verdict.SHOWN


def made(effect, other, predictions, n_rows=48, spread=0.1, n_heads=2, mass=0.4):
    """Sums of rows in which heads have these means, by layer."""
    rng = np.random.default_rng(0)
    counts = np.tile(np.array(predictions, dtype=float), (n_rows, 1))
    sums = {}
    for name, means in (("effect", effect), ("other_effect", other)):
        values = np.array(means)[None, :, None] + spread * rng.normal(size=(n_rows, len(means), n_heads))
        sums[name] = values * counts[..., None]
    shares = {name: np.full(values.shape, share) * counts[..., None] for name, share in (("mass", mass), ("other_mass", 0.1))}
    return sums | shares | {"predictions": counts}


def judged(found, heads=None, **options):
    n_heads = found["effect"].shape[2]
    every = [HeadId(layer, head) for layer in range(found["effect"].shape[1]) for head in range(n_heads)]
    return judge_suppression(
        found, heads or every, 32, **{"is_named": heads is not None, "least": 0.1, "error_rate": 1e-3, **options}
    )


def test_layers_that_predict_hardly_anything_are_left_out_of_all_and_waited_for_where_they_may_tell():
    """One prediction of 32 queries is too rare; three are not, of which 24 rows have enough and 12 do not."""
    seldom = judged(made([0.0, 0.0], [0.0, 0.0], [1, 20], n_rows=48, spread=0.01))
    assert (seldom.verdict, seldom.reason) == (Verdict.REFUTED, "no_head_suppresses") and "before layer 0" in seldom.summary
    few = judged(made([0.0, 0.0], [0.0, 0.0], [3, 20], n_rows=12, spread=0.01), error_rate=0.2)
    assert (few.verdict, few.reason) == (Verdict.UNDETERMINED, "few_predictions")
    assert few.more_sequences == -(-MIN_PREDICTIONS // 3) - 12
    assert judged(made([0.0, 0.0], [0.0, 0.0], [3, 20], n_rows=48, spread=0.01)).verdict is Verdict.REFUTED


def test_a_head_that_lowers_what_is_predicted_must_look_for_it():
    """By chance a head may lower just those tokens that are mostly predicted, and attend to all tokens alike."""
    assert judged(made([-1.0], [0.0], [20])).verdict is Verdict.SHOWN
    found = judged(made([-1.0], [0.0], [20], mass=0.1))
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "no_head_suppresses") and "does not look for it" in found.summary


def test_other_tokens_may_be_lowered_by_half_as_much():
    assert judged(made([-0.38], [-0.02], [20], n_rows=96)).verdict is Verdict.SHOWN
    found = judged(made([-0.35], [-0.25], [20], n_rows=96))
    assert found.verdict is Verdict.REFUTED and "to other tokens that stand there as often" in found.summary


def test_a_mean_near_the_threshold_is_not_clear_and_says_how_many_rows_would_tell():
    found = judged(made([-0.1], [0.0], [20]))
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "suppression_unclear") and found.more_sequences > 0


def test_each_row_counts_once_and_for_four_times_the_threshold_at_most():
    """Two rows, of one and of three predictions; and one without any, which does not count."""
    found = {
        "effect": np.array([[[-0.2]], [[-9.0]], [[0.0]]]),
        **dict.fromkeys(("other_effect", "mass", "other_mass"), np.zeros((3, 1, 1))),
        "predictions": np.array([[1.0], [3.0], [0.0]]),
    }
    one = suppressing(found, [HeadId(0, 0)], 0.1, (0.5, 0.5))[0]
    assert one.effect.value == pytest.approx((-0.2 - 0.4) / 2) == one.beyond.value


def test_a_report_draws_every_head_once_it_was_measured():
    """Of a layer before which something is predicted; a verdict about one head has not seen them all."""

    def drawn(subject):
        return [score for score in heads_data(subject)["scores"] if score["name"] == "suppression"]

    subject = induction.load_model(KNOWN["suppresses"][0])
    evidence(subject, ROWS, heads="L2H0")
    assert not drawn(subject)
    evidence(subject, ROWS)
    (score,) = drawn(subject)
    assert np.isnan(score["value"][:2]).all() and score["unit"] == "nats"
    assert score["value"][2].tolist() == pytest.approx([8 / 40 - 8, 0, 0], abs=1e-3)
    assert score["low"][2, 0] <= score["value"][2, 0] <= score["high"][2, 0] < -7
    (chart,) = head_map({"scores": [plain(score)]})
    assert "the lowest is L2H0" in chart.label and chart.note == NOTES["suppression"]


def test_what_is_drawn_is_the_mean_of_each_row():
    """Of 48 rows: one prediction in each is too few in all for a layer, and a row without any has no mean."""
    found = made([-0.5, -0.3], [0.0, 0.0], [1, 20], spread=0)
    found["predictions"][0, 1] = 0
    means = effects_to_draw(found)
    assert np.isnan(means[:, 0]).all() and np.isnan(means[0, 1]).all()
    assert means[1:, 1] == pytest.approx(-0.3)


def test_scores_are_plain_data():
    scores = measure_copy_suppression(KNOWN["suppresses"][0], ROWS, max_rows=4)
    data = json.loads(json.dumps(scores.to_dict()))
    assert data["effect"][0][0] is None and data["effect"][2][0] == pytest.approx(-7.8, abs=1e-3)
    assert set(LISTS) < set(data) and scores.predicted_share[2] == scores.predictions[2] / (4 * 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_suppression": 0}, "`min_suppression` must be above 0 nats, got 0"),
        ({"max_sequences": 3}, "`max_sequences` must be a whole number from 12"),
        ({"heads": []}, "`heads` must be at least one head"),
    ],
)
def test_what_it_cannot_take_is_one_line(options, message):
    with pytest.raises(ArgumentError, match=message):
        assert_copy_suppression(KNOWN["suppresses"][0], ROWS, **options)


def test_a_short_text_is_one_line():
    with pytest.raises(TextError, match="at least 16 are needed"):
        assert_copy_suppression(KNOWN["suppresses"][0], ROWS[:5])
