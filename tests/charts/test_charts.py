"""What the report draws, against whole patterns, loops and planted models; and that what fails is said, and nothing else lost."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pytest_induction import (
    assert_has_induction_head,
    assert_learns_in_context,
    find_induction_heads,
    load_model,
    load_run,
    measure_ablations,
    planted,
)
from pytest_induction.charts import causes, run
from pytest_induction.charts import losses as loss
from pytest_induction.charts.data import KINDS, kinds_named
from pytest_induction.charts.making import plain
from pytest_induction.charts.model import charts_of_model
from pytest_induction.charts.run import chart_of_run
from pytest_induction.deciding import ERROR_RATE
from pytest_induction.errors import ArgumentError, ExpectationFailed, RunError
from pytest_induction.forward.calling import condition
from pytest_induction.heads import copying
from pytest_induction.heads.composition import measure_composition
from pytest_induction.heads.induction import search_for_all
from pytest_induction.heads.table import Thresholds
from pytest_induction.interventions import ablate, run_with
from pytest_induction.interventions.ablation import matched_controls
from pytest_induction.measuring import rounds as measuring
from pytest_induction.measuring.observing import probes_of, provenance
from pytest_induction.measuring.rounds import MAX_SEQUENCES, draw
from pytest_induction.probes.sequences import repeated_sequences
from pytest_induction.records import HeadId
from pytest_induction.report.charts.attention import attention, visible
from pytest_induction.runs.picture import picture_of
from tests.attention.eager import Batch, returned_patterns
from tests.conftest import FIXTURES
from tests.heads.test_composition import Uneven
from tests.measuring import slow
from tests.model.plain import Plain, unreadable

OF_A_MODEL = KINDS[:-1]
TEXT = np.random.default_rng(0).integers(1, 60, 20 * 63)


def gpt2(attention="sdpa", bos=0, **sizes):
    """Random heads, strong enough to differ from each other; the same for any backend."""
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 64, "vocab_size": 64, **sizes}
    config = GPT2Config(bos_token_id=bos, eos_token_id=bos, initializer_range=0.4, attn_implementation=attention, **sizes)
    return GPT2LMHeadModel(config).eval()


def small(build, **options):
    """A planted model, as small as does."""
    return build(**{"n_ctx": 48, "d_vocab": 32, **options})


def measured(model, *kinds, text=None):
    """The data of these charts, all of which there must be; as a file holds them."""
    subject = load_model(model)
    found = charts_of_model(subject, provenance(subject), kinds=kinds, text=text)
    assert [chart.kind for chart in found] == [kind for kind in KINDS if kind in kinds]
    assert not any(chart.missing for chart in found), found
    return tuple(json.loads(json.dumps(chart.data, allow_nan=False)) for chart in found)


def score(data, name, which="value"):
    return np.array(next(each for each in data["scores"] if each["name"] == name)[which], dtype=float)


def test_scores_are_those_of_whole_patterns():
    """Every score of every head, from the patterns that eager attention returns, by the loops of the definitions."""
    (data,) = measured(gpt2(), "heads")
    subject = load_model(gpt2())
    rows = []
    sizes = [len(each.periods) for each in search_for_all(subject, Thresholds(), (MAX_SEQUENCES, ERROR_RATE, None)).rounds]
    for number, size in enumerate(sizes):
        for drawn in draw(subject, size, np.random.default_rng([0, 1, number])):
            tokens = torch.from_numpy(drawn.probe.tokens)
            patterns, _ = returned_patterns(gpt2("eager"), Batch(tokens))
            rows += [([layer[row].numpy() for layer in patterns], tokens[row].tolist()) for row in range(len(tokens))]
    for layer, head in np.ndindex(2, 4):
        each = [slow.head_scores(patterns[layer][head], tokens) for patterns, tokens in rows]
        for name in ("prefix_matching", "previous_token", "duplicate_token", "first_token"):
            expected = np.mean([one[name] for one in each])
            assert score(data, name)[layer, head] == pytest.approx(expected, abs=1e-5), (name, layer, head)
    assert (score(data, "prefix_matching", "low") <= score(data, "prefix_matching")).all()
    assert data["about"].startswith(f"{sum(sizes)} sequences, periods ") and data["about"].endswith(", 4 copies, seed 0")


def test_what_planted_heads_are_is_said():
    """Scores, kinds and what they copy, each of the heads that were planted and of no other."""
    (data,) = measured(small(planted.induction_head), "heads")
    lengths = ["exactly_one", "exactly_two", "three_or_more"]
    names = ["prefix_matching", "excess", "previous_token", "duplicate_token", "first_token", *lengths, "copy_effect"]
    assert [each["name"] for each in data["scores"]] == names
    assert data["kinds"] == [["previous", "dormant", "dormant", "dormant"], ["matches", "dormant", "dormant", "dormant"]]
    one = np.zeros((2, 4))
    one[1, 0] = 1
    np.testing.assert_allclose(score(data, "prefix_matching"), one, atol=1e-5)
    np.testing.assert_allclose(score(data, "excess"), one, atol=1e-5)
    np.testing.assert_allclose(score(data, "copy_effect"), 16 * one, atol=1e-3)
    assert score(data, "excess", "low")[0, 1] < 0 <= score(data, "prefix_matching", "low")[0, 1]
    (data,) = measured(small(planted.copy_suppression_head), "heads")
    assert data["kinds"][1][0] == "suppresses" and score(data, "copy_effect", "high")[1, 0] < 0


def test_a_head_that_a_layer_does_not_have_is_none():
    """In every matrix, and no chart fails for it."""
    data, *_ = measured(Uneven().eval(), *OF_A_MODEL, text=TEXT % 40)
    for matrix in (data["kinds"], *(each[end] for each in data["scores"] for end in ("value", "low", "high"))):
        assert [[entry is None for entry in row] for row in matrix] == [[False, False], [False, True], [False, False]]


def test_where_copying_is_not_known_the_rest_is_drawn(monkeypatch):
    """Without the weights of heads there is no copy effect, and a word on why."""

    def unknown(subject):
        raise NotImplementedError("no transpose of packed weights")

    monkeypatch.setattr(copying, "circuits_of", unknown)
    (data,) = measured(small(planted.induction_head), "heads")
    assert data["scores"][-1]["name"] == "three_or_more" and data["kinds"][1][0] == "matches"
    assert data["about"].endswith("what heads copy is not known: NotImplementedError: no transpose of packed weights")


def patterns_of(head):
    """Square again, 0 for what comes after."""
    square = np.zeros((len(head["pattern"]),) * 2)
    for query, row in enumerate(head["pattern"]):
        assert len(row) == query + 1
        square[query, : query + 1] = row
    return square


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_patterns_are_those_that_eager_attention_returns(backend):
    """Of each chosen head, to four digits, by whatever way the model is read."""
    (data,) = measured(gpt2(backend), "attention")
    tokens = torch.tensor([data["tokens"]])
    expected, _ = returned_patterns(gpt2("eager"), Batch(tokens))
    assert len(data["heads"]) >= 3 and {head["role"] for head in data["heads"]} <= {"strongest", "previous token"}
    for head in data["heads"]:
        layer, number = int(head["name"][1]), int(head["name"][3])
        pattern = patterns_of(head)
        np.testing.assert_allclose(pattern, expected[layer][0, number].numpy(), atol=6e-5)
        np.testing.assert_allclose(pattern.sum(1), 1, atol=4e-3)
    assert np.ptp([patterns_of(head)[-1].max() for head in data["heads"]]) > 0.01  # they differ from each other


def test_the_probe_that_is_shown_repeats_where_it_says():
    """At most 64 positions of at most 16 different tokens; the token that begins rows is none of them."""
    for bos, period in ((0, 15), (None, 16)):
        (data,) = measured(gpt2(bos=bos, n_positions=128), "attention")
        begun = int(bos is not None)
        tokens, starts = data["tokens"], data["starts"]
        assert (data["bos"], data["period"], len(tokens)) == (bool(begun), period, begun + 4 * period)
        assert starts == [begun + copy * period for copy in range(4)]
        assert len({tuple(tokens[start : start + period]) for start in starts}) == 1
        assert not begun or (tokens[0] == 0 and 0 not in tokens[1:])


def test_roles_are_those_of_planted_heads():
    """The head that matches, and the one that looks back; a suppressor matches and is no induction head."""
    (data,) = measured(small(planted.induction_head), "attention")
    roles = {head["name"]: (head["role"], round(head["score"], 3)) for head in data["heads"]}
    assert roles.pop("L1H0") == ("induction", 1) and roles.pop("L0H0") == ("previous token", 1)
    assert len(roles) == 2 and {role for role, _ in roles.values()} == {"strongest"}
    (data,) = measured(small(planted.copy_suppression_head), "attention")
    assert data["heads"][0]["name"] == "L1H0" and data["heads"][0]["role"] == "strongest"


@pytest.mark.parametrize("bos", [0, None])
def test_losses_on_repeats_are_those_of_single_rows(bos):
    """Each place of each copy, from the log-softmax of one row after the other; no loss where nothing stands before."""
    model = gpt2(bos=bos)
    (data,) = measured(model, "repeats")
    space, period = load_model(model).space, data["period"]
    assert period == (63 if bos == 0 else 64) // 4
    probe = repeated_sequences(space, period=period, rng=np.random.default_rng([0, 13]), n_sequences=24, repeats=4)
    expected = np.zeros(4 * period)
    for row in torch.from_numpy(probe.tokens):
        with torch.no_grad():
            logits = model(row[None]).logits[0].double().log_softmax(-1)
        for place in range(4 * period):
            at = probe.start + place
            expected[place] += -float(logits[at - 1, row[at]]) / 24 if at else math.nan
    found = np.array([value for copy in data["copies"] for value in copy["loss"]], dtype=float)
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert (data["copies"][0]["loss"][0] is None) == (bos is None)
    assert data["copies"][3]["place"] == list(range(1, period + 1))
    assert data["uniform"] == pytest.approx(math.log(64 - (bos == 0)), abs=1e-4)


def test_an_induction_head_knows_later_copies_but_for_their_first_token():
    """A loss of a uniform guess on the first copy, none on later ones, and at the borders as the mean over sequences lies."""
    (data,) = measured(small(planted.induction_head), "repeats")
    first, *later = data["copies"]
    assert [copy["name"] for copy in data["copies"]] == ["copy 1", "copy 2", "copy 3", "copy 4"]
    np.testing.assert_allclose(first["loss"], math.log(32), atol=1e-4)
    for copy in later:
        np.testing.assert_allclose(copy["loss"][1:], 0, atol=1e-3)
        assert all(low <= value <= high for low, value, high in zip(copy["low"], copy["loss"], copy["high"], strict=True))
    assert later[0]["loss"][0] > 1 > later[1]["loss"][0]


def test_losses_along_a_text_are_those_of_the_assertion():
    """The same rows give the same score with the same interval, and each token's mean is that of single rows."""
    model = gpt2()
    (data,) = measured(model, "text", text=TEXT)
    with pytest.raises(ExpectationFailed) as caught:
        assert_learns_in_context(model, TEXT)
    expected = caught.value.evidence.estimates["icl_score"]
    assert [data["score"][end] for end in ("value", "low", "high")] == pytest.approx(
        [expected.value, expected.low, expected.high], rel=1e-4
    )
    rows = torch.cat([torch.zeros(20, 1, dtype=torch.long), torch.from_numpy(TEXT).view(20, 63)], 1)
    with torch.no_grad():
        logits = torch.stack([model(row[None]).logits[0] for row in rows]).double().log_softmax(-1)
    losses = -logits[:, :-1].gather(-1, rows[:, 1:, None])[..., 0].mean(0)
    np.testing.assert_allclose(data["loss"], losses.numpy(), rtol=2e-5)
    assert data["tokens"] == list(range(1, 64))
    early, late = (slice(first - 1, last) for first, last in data["windows"].values())
    assert data["score"]["value"] == pytest.approx(float(losses[late].mean() - losses[early].mean()), abs=1e-4)
    assert data["about"].startswith("20 rows of 63 tokens of text")


def test_ablations_are_those_of_one_pass_for_each_set():
    """Alone, together and by random sets, each by an ablation of its own; alone as `measure_ablations` has it."""
    model = gpt2(n_head=6, n_embd=24)
    (data,) = measured(model, "ablations")
    subject = load_model(model)
    names = data["together"]["names"]
    assert [head["name"] for head in data["heads"]] == names and len(names) == 2
    scores = measure_ablations(model, n_sequences=12)
    chosen = [HeadId(int(name[1]), int(name[3])) for name in names]
    expected = [scores.effect[head.layer, head.head] for head in chosen]
    assert [head["value"] for head in data["heads"]] == pytest.approx(expected, abs=1e-4)
    assert (data["loss"], data["of_all"]) == pytest.approx((scores.loss, scores.of_all), abs=1e-4)
    controls = matched_controls(chosen, (6, 6), 20, np.random.default_rng([0, 10])).sets
    probes = list(probes_of(subject, 12, np.random.default_rng([0, 0]), 4, None))
    clean = np.mean([loss for probe in probes for loss in last_loss(subject, probe)])
    for sets, found in (([chosen], [data["together"]["value"]]), (controls, data["controls"])):
        assert len(found) == len(sets)
        for one, rise in zip(sets, found, strict=True):
            without = np.mean([loss for probe in probes for loss in last_loss(subject, probe, ablate(one))])
            assert rise == pytest.approx(without - clean, abs=1e-4)
    assert clean == pytest.approx(data["loss"], abs=1e-4)
    assert len(data["controls"]) == len(controls) > 0 and not data["relaxed"]


def last_loss(subject, probe, *edits):
    """Of the last copy without its first token, of each row of a probe."""
    logits = run_with(subject, probe.tokens, *edits).double().log_softmax(-1)
    places = range(probe.n_positions - probe.period + 1, probe.n_positions)
    rows = range(probe.n_sequences)
    return [np.mean([-float(logits[row, place - 1, probe.tokens[row, place]]) for place in places]) for row in rows]


def test_without_its_induction_heads_a_planted_model_guesses():
    """Of three equal heads none is missed alone; together they are all that repetition gains, and no random set is any of it."""
    (data,) = measured(small(planted.redundant_induction_heads, count=2, n_heads=6, strength=24.0), "ablations")
    assert data["together"]["names"] == ["L1H0", "L1H1"] and data["loss"] < 0.01
    assert data["loss"] + data["together"]["value"] == pytest.approx(math.log(32), abs=1e-3)
    assert data["of_all"] == pytest.approx(data["together"]["value"], abs=1e-3)
    assert max(head["value"] for head in data["heads"]) < 0.1
    assert len(data["controls"]) == 6 and np.abs(data["controls"]).max() < 1e-4


def test_the_edge_of_the_planted_pair_is_found():
    """One edge, from the head that looks back to the one that matches, with the scores of `measure_composition`."""
    model = small(planted.induction_head, previous_head=2, head=1)
    (data,) = measured(model, "composition")
    assert [(head["name"], head["role"]) for head in data["heads"]] == [("L0H2", "previous token"), ("L1H1", "induction")]
    (edge,) = data["edges"]
    scores = measure_composition(model)
    assert (edge["from"], edge["to"]) == ("L0H2", "L1H1")
    for name in ("key", "query", "value", "key_z", "query_z", "value_z"):
        expected = float(getattr(scores, name)[1, 1, 0, 2])
        assert edge[name] is None if math.isnan(expected) else edge[name] == pytest.approx(expected, rel=1e-4), name
    assert data["random_mean"] == pytest.approx(scores.random_mean, rel=1e-4) and edge["key_z"] > 1


def test_without_such_heads_the_nearest_are_shown_as_others():
    """Strongest key composition first, and at most as many as there are heads on either side."""
    (data,) = measured(gpt2(), "composition")
    assert {head["role"] for head in data["heads"]} == {"other"} and len(data["heads"]) == 3
    keys = [edge["key"] for edge in data["edges"]]
    assert len(keys) == 2 and keys == sorted(keys, reverse=True)
    assert {edge["from"][:2] for edge in data["edges"]} == {"L0"} and {edge["to"][:2] for edge in data["edges"]} == {"L1"}


def told(model, text=None, kinds=KINDS):
    """What is missing, by kind."""
    subject = load_model(model)
    return {each.kind: each.missing for each in charts_of_model(subject, provenance(subject), kinds=kinds, text=text)}


def test_a_model_that_cannot_be_read_shows_its_losses():
    """They need logits only; all else says that attention cannot be read."""
    found = told(Plain(unreadable, n_ctx=64), TEXT % 40)
    assert list(found) == list(OF_A_MODEL)
    assert found["repeats"] == found["text"] == ""
    rest = {found[kind] for kind in ("heads", "attention", "ablations", "composition")}
    assert rest == {"the attention of Plain cannot be read"}
    assert "text" not in told(Plain(unreadable, n_ctx=64), kinds=("repeats", "text"))


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of memory\nmore"), MemoryError(), UserWarning("odd"), ZeroDivisionError()]
)
def test_what_fails_is_missing_and_loses_no_other(error, monkeypatch):
    """Foreseen or not, in a line, with its name."""

    def fail(*args):
        raise error

    monkeypatch.setattr(causes, "rises", fail)
    monkeypatch.setattr(loss, "curve", fail)
    found = told(small(planted.induction_head), kinds=("heads", "repeats", "ablations", "composition"))
    assert found.pop("heads") == found.pop("composition") == ""
    assert all(reason.startswith(type(error).__name__) and "\n" not in reason for reason in found.values()), found


def test_one_layer_has_no_composition(shipped):
    """And says so; the rest is there."""
    found = told(shipped["one-layer-smeared"])
    assert "one attention layer" in found.pop("composition") and not any(found.values())


def test_a_text_that_cannot_be_used_is_missing():
    """With what is wrong with it."""
    assert told(gpt2(), np.arange(1, 50), ("text",)) == {
        "text": "the text has 49 tokens: at least 126 are needed, two rows of 63"
    }


def test_a_model_that_is_another_by_now_has_no_charts():
    """They would stand beside the verdicts of the one that it was."""
    subject = load_model(small(planted.induction_head))
    about = provenance(subject)
    with torch.no_grad():
        subject.module.W_U.mul_(2)
    reasons = {each.missing for each in charts_of_model(subject, about, kinds=("heads", "repeats"))}
    assert reasons == {"PlantedModel has changed since its verdicts"}


def test_an_interruption_is_one(monkeypatch):
    """Whoever stops a session does not want the next chart."""

    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(loss, "in_batches", stop)
    with pytest.raises(KeyboardInterrupt):
        told(small(planted.induction_head), kinds=("repeats",))


def test_nothing_depends_on_what_was_measured_before():
    """All at once or one by one in another order, before verdicts or after them: the same to the last digit."""
    fresh = load_model(gpt2())
    about = provenance(fresh)
    every = charts_of_model(fresh, about, kinds=OF_A_MODEL, text=TEXT)
    used = load_model(gpt2())
    with pytest.raises(ExpectationFailed):
        assert_has_induction_head(used)
    measure_ablations(used)
    single = [charts_of_model(used, about, kinds=(kind,), text=TEXT)[0] for kind in reversed(OF_A_MODEL)]
    assert json.dumps([each.to_dict() for each in every]) == json.dumps([each.to_dict() for each in reversed(single)])
    other = load_model(gpt2())
    other.seed = 1
    assert charts_of_model(other, about, kinds=("heads",))[0].data != every[0].data


def test_what_verdicts_have_drawn_is_not_drawn_again(monkeypatch):
    """The rounds of a list of heads are what is drawn."""
    subject = load_model(small(planted.induction_head))
    find_induction_heads(subject)
    drawn = []
    original = measuring.measured_round
    monkeypatch.setattr(measuring, "measured_round", lambda *args, **options: drawn.append(args) or original(*args, **options))
    charts_of_model(subject, provenance(subject), kinds=("heads", "attention", "ablations"))
    assert not drawn
    told(small(planted.induction_head), kinds=("heads",))
    assert drawn


def test_the_model_is_left_as_found():
    """Weights, modes, hooks and the random numbers that come next; also where a chart fails midway."""
    module = gpt2()
    module.transformer.h[1].train()
    subject = load_model(module)
    before, numbers = condition(module), torch.get_rng_state()
    charts_of_model(subject, provenance(subject), kinds=OF_A_MODEL, text=TEXT)
    assert condition(module) == before and bool((torch.get_rng_state() == numbers).all())
    assert not any(each.requires_grad and each.grad is not None for each in module.parameters())


def test_records_of_a_large_model_stay_small():
    """32 layers of 32 heads come to less than 600 kB: sixteen times what two layers of them have, and what does not grow."""
    model = gpt2(n_head=32, n_embd=64, n_positions=256, vocab_size=256)
    data, *rest = measured(model, *OF_A_MODEL, text=np.random.default_rng(0).integers(1, 256, 8 * 255))
    sizes = [len(json.dumps(each)) for each in (data, *rest)]
    assert len(data["kinds"][0]) == 32 and 16 * sizes[0] + sum(sizes[1:]) < 400_000


def test_a_run_is_drawn_from_its_picture():
    """To five digits, with the line of its provenance."""
    recorded = load_run(FIXTURES / "runs" / "two-layers")
    about = replace(provenance(load_model(small(planted.induction_head))), probe="many snapshots", seed=0)
    found = chart_of_run(recorded, about)
    data = json.loads(json.dumps(found.data, allow_nan=False))
    assert data.pop("about") == "many snapshots; seed 0" and not found.missing
    assert data == json.loads(json.dumps(plain(picture_of(recorded)), allow_nan=False))
    assert data["heads"] and len(json.dumps(data)) < 300_000


def test_a_run_that_cannot_be_drawn_says_why(monkeypatch):
    """Too short, or anything else."""
    monkeypatch.setattr(run, "picture_of", lambda run: (_ for _ in ()).throw(RunError("one snapshot is no run\n...")))
    found = chart_of_run(None, provenance(load_model(small(planted.induction_head))))
    assert (found.kind, found.data, found.missing) == ("run", {}, "one snapshot is no run\\n...")


def test_numbers_are_plain():
    """Of Python, to five digits, None where there is no number."""
    found = plain({"a": np.float32(1 / 3), "b": [math.nan, np.inf, 12345.678], "c": (np.int64(7), True, None), "d": np.eye(2)})
    assert found == {"a": 0.33333, "b": [None, None, 12346.0], "c": [7, True, None], "d": [[1, 0], [0, 1]]}
    assert type(found["a"]) is float and type(found["c"][0]) is int


def test_kinds_are_named_in_an_option():
    """All, none, or some by name in whatever order; a name that is none gets the nearest one."""
    assert kinds_named("all") == KINDS and kinds_named(" none ") == ()
    assert kinds_named("run, heads,heads") == ("heads", "run")
    for text, said in (
        ("ablation", "did you mean `ablations`?"),
        ("heads,all", "all stands alone"),
        ("", "got ''; known are heads, attention, repeats, text, ablations, composition, run, all, none"),
        ("x,run", "got 'x,run'; known are heads, attention, repeats, text, ablations, composition, run, all, none"),
    ):
        with pytest.raises(ArgumentError, match=r"^charts must be all, none, or kinds with commas between") as caught:
            kinds_named(text)
        assert str(caught.value).endswith(said)


def test_names_of_kinds_cost_no_start_up():
    """Options are checked without torch or numpy; the charts themselves need both."""
    code = "import sys, pytest_induction.charts.{}; print('torch' in sys.modules or 'numpy' in sys.modules)"
    said = [
        subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("data", "making")
    ]
    assert said == ["False", "True"]


def test_tokens_are_named_as_the_tokenizer_decodes_them():
    """Beside their ids; none where there is no tokenizer, or it does not know them."""
    subject = load_model(gpt2())

    class Words:
        def decode(self, ids):
            return f" w{ids[0]}\n"

    (chart,) = charts_of_model(subject, provenance(subject), kinds=["attention"])
    assert "texts" not in chart.data
    subject.tokenizer = Words()
    (chart,) = charts_of_model(subject, provenance(subject), kinds=["attention"])
    assert chart.data["texts"] == [f" w{token}\n" for token in chart.data["tokens"]]
    drawn = attention(chart.data)[0].svg
    last = chart.data["tokens"][-1]
    assert f"\u2423w{last}\u21b5" in drawn and f"(token {last})" in drawn and "\n" not in drawn
    Words.decode = None
    (chart,) = charts_of_model(subject, provenance(subject), kinds=["attention"])
    assert "texts" not in chart.data and not chart.missing
    assert visible("a long token's text", 9) == "a\u2423long\u2423t\u2026"
