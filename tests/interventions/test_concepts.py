"""Concept copying: against loops over whole passes with hooks, on random models, and on planted heads whose scores are known."""

import json

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from pytest_induction import load_model, measure_concept_copying
from pytest_induction.errors import ArgumentError, ModelError, TextError
from pytest_induction.interventions import concepts, few_shot
from pytest_induction.interventions.concepts import KINDS, WordTask, task_of
from pytest_induction.interventions.few_shot import Patches
from pytest_induction.planted import concept_head, first_token_head, induction_head, uniform_head
from pytest_induction.probes.concepts import words_of
from pytest_induction.records import HeadId

SIZES = {"n_heads": 3, "d_vocab": 48, "n_ctx": 64}
WORDS = concept_head().words
GIVEN = [(n, 10 + n) for n in range(1, 7)] + [(7, 17, 19), (8, 18, 19, 9)]
ALL = np.log(48)  # what a word gains that is certain where it stood before, and else as likely as any token


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=48, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4))


def llama():
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 0}  # else 1 and 2, which words have
    sizes = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 64}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **special, initializer_range=0.4))


MODELS = {
    "gpt2": (gpt2, lambda model, layer: model.transformer.h[layer].attn.c_proj),
    "llama": (llama, lambda model, layer: model.model.layers[layer].self_attn.o_proj),
}


@pytest.fixture(params=MODELS, scope="module")
def both(request):
    """A task of a random model, and the output projections of its layers."""
    make, projection = MODELS[request.param]
    subject = load_model(make().double().eval())
    return WordTask(subject, words_of(subject.space, None, GIVEN), 0), [projection(subject.module, layer) for layer in range(2)]


def plain(projections, model, row):
    """What each output projection is given where the word is about to come, in a plain pass without the last token."""
    kept = []
    hooks = [part.register_forward_pre_hook(lambda part, args: kept.append(args[0][0, -2].clone())) for part in projections]
    with torch.no_grad():
        model(row[None, :-1])
    for hook in hooks:
        hook.remove()
    return kept


def read(projections, model, row, heads=(), given=None):
    """Log probabilities of the last two tokens, with some heads patched in a whole pass of the module."""
    n_heads, hooks = model.config.num_attention_heads, []
    for layer, part in enumerate(projections):

        def patch(module, args, layer=layer):
            changed = args[0].clone()
            width = changed.shape[-1] // n_heads
            for head in heads:
                if head.layer == layer:
                    columns = slice(head.head * width, (head.head + 1) * width)
                    changed[0, -2, columns] = given[layer][columns]
            return (changed,)

        hooks.append(part.register_forward_pre_hook(patch))
    with torch.no_grad():
        logits = model(row[None, :-1]).logits[0, -2:].log_softmax(-1)
    for hook in hooks:
        hook.remove()
    return logits[0, row[-2]].item(), logits[1, row[-1]].item()


@pytest.mark.parametrize("by_prefix", [True, False])
def test_scores_are_those_of_loops_over_rows_and_sets_of_heads(both, by_prefix, monkeypatch):
    """Single heads, and two of different layers at once: the later one still sees at the next position what the first did."""
    task, projections = both
    monkeypatch.setattr(concepts, "Patches", lambda subject: Patches(subject, by_prefix=by_prefix))
    model, rows = task.subject.module, task.rows(3, 0)
    heads = few_shot.all_heads(task.subject)
    sets = [*([head] for head in heads), [HeadId(0, 0), HeadId(1, 1)], heads]
    found = task.restored(rows, sets)
    lines = [torch.from_numpy(each) for each in (rows.tokens, rows.mixed, rows.other, rows.corrupt, rows.corrupt_of_mixed)]
    for number, (clean, mixed, other, corrupt, corrupt_of_mixed) in enumerate(zip(*lines, strict=True)):
        before, before_mixed = (read(projections, model, row) for row in (corrupt, corrupt_of_mixed))
        assert found.gain[number] == pytest.approx(read(projections, model, clean)[1] - before[1], abs=1e-9)
        assert found.gain_meaningless[number] == pytest.approx(read(projections, model, mixed)[1] - before_mixed[1], abs=1e-9)
        assert found.log_p[number] == pytest.approx(read(projections, model, clean)[1], abs=1e-9)
        of_clean, of_mixed, of_other = (plain(projections, model, row) for row in (clean, mixed, other))
        for place, chosen in enumerate(sets):
            concept = read(projections, model, corrupt, chosen, of_clean)[1] - before[1]
            null = read(projections, model, corrupt, chosen, of_other)[1] - before[1]
            meaningless = read(projections, model, corrupt_of_mixed, chosen, of_mixed)
            wanted = (concept, meaningless[1] - before_mixed[1], null, meaningless[0] - before_mixed[0])
            for kind, value in zip(KINDS, wanted, strict=True):
                assert found.scores[kind][number, place] == pytest.approx(value, abs=1e-9), (kind, chosen)
    assert all(np.ptp(found.scores[kind]) > 0.01 for kind in KINDS)


@pytest.mark.parametrize(
    ("model", "head", "wanted"),
    [
        (concept_head(**SIZES), (1, 1), (ALL, 0, 0, 0)),
        (concept_head(head=2, strength=2.0, **SIZES), (1, 2), (np.log(48 / (47 + np.e**2)) + 2, 0, 0, 0)),
        (concept_head(strength=0.0, **SIZES), (1, 1), (0, 0, 0, 0)),
        (concept_head(**SIZES), (2, 0), (0, 0, 0, 0)),  # what carries it on does so at the next position
        (induction_head(**SIZES), (1, 0), (0, 0, 0, None)),
        (uniform_head(strength=16.0, **SIZES), (1, 0), (0, 0, 0, None)),
        (first_token_head(strength=16.0, **SIZES), (1, 0), (0, 0, 0, 0)),
    ],
)
def test_calibration(model, head, wanted):
    """A head that alone carries the meaning has all that a word gains; the others nothing, also where they copy tokens."""
    scores = measure_concept_copying(model, words=WORDS, n_sequences=2)
    for kind, value in zip(KINDS, wanted, strict=True):
        if value is not None:
            assert getattr(scores, kind)[head] == pytest.approx(value, abs=1e-4), kind
    if head == (1, 1) and wanted[0]:
        assert str(scores.heads[0]) == "L1H1" == str(*scores.together) and scores.estimates["gain"].value == pytest.approx(
            ALL, abs=1e-3
        )
        assert scores.estimates["concept"].value == scores.estimates["concept_all"].value == pytest.approx(ALL, abs=1e-4)
        assert scores.token[1, 0] > ALL  # the induction head beside it copies tokens


def test_a_head_that_carries_tokens_restores_meaningless_strings_as_well():
    scores = measure_concept_copying(concept_head(of_tokens=True, **SIZES), words=WORDS, n_sequences=2)
    assert scores.concept[1, 1] > ALL and scores.concept[1, 1] == pytest.approx(scores.meaningless[1, 1], rel=0.2)
    assert abs(scores.excess[1, 1]) < 0.2 * scores.concept[1, 1]


def test_the_record_says_all_in_plain_numbers_and_a_seed_gives_the_same_again():
    model = concept_head(**SIZES)
    one, again = (measure_concept_copying(model, words=WORDS, n_sequences=2, seed=0) for _ in range(2))
    assert one.to_dict() == again.to_dict()
    plainly = json.loads(json.dumps(one.to_dict()))
    assert plainly["concept"][1][1] == pytest.approx(ALL, abs=1e-3) and plainly["together"] == ["L1H1"]
    assert len(one.per_sequence["null"]) == 2 and "L1H1" in repr(one) and "L1H1" in one._repr_html_()
    assert one.layers == one.provenance.layers and one.provenance.n_sequences == 4


def test_more_heads_can_be_patched_together():
    scores = measure_concept_copying(concept_head(**SIZES), words=WORDS, n_sequences=2, top_share=0.5)
    assert len(scores.together) == 5


def test_numbers_that_are_none_are_refused():
    task = task_of(concept_head(**SIZES), WORDS, None, 0)
    with torch.no_grad():
        task.subject.module.W_U[-1] = torch.nan
    with pytest.raises(ModelError, match=r"not finite .* where words are asked for"):
        task.restored(task.rows(2, 0), [])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({}, TextError, "there is no tokenizer"),
        ({"words": WORDS, "n_sequences": 1}, ArgumentError, "`n_sequences` must be"),
        ({"words": WORDS, "top_share": 0}, ArgumentError, "`top_share` must"),
        ({"words": WORDS, "error_rate": 2}, ArgumentError, "`error_rate` must"),
    ],
)
def test_what_cannot_be_asked_is_one_line(options, error, said):
    with pytest.raises(error, match=said) as caught:
        measure_concept_copying(concept_head(**SIZES), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"), [({"d_vocab": 31}, "`d_vocab` must be at least 32"), ({"n_heads": 2}, "at least 3")]
)
def test_a_planted_model_that_cannot_be_is_refused(options, said):
    with pytest.raises(ArgumentError, match=said):
        concept_head(**options)
