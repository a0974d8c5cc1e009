"""Scores of retrieval: against loops over whole passes on random models, and of planted heads whose scores are known."""

import json

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from pytest_induction import load_model, measure_retrieval
from pytest_induction.errors import ArgumentError, ModelError, TextError
from pytest_induction.heads.retrieval import KINDS, behaviour_of, best_of, named_behaviour, scores_of
from pytest_induction.planted import copying_head, first_token_head, retrieval_head
from pytest_induction.probes.needles import form_of, needle_rows
from pytest_induction.records import TokenSpace

FACTS = retrieval_head().facts
SPACE = TokenSpace(d_vocab=40, n_ctx=48, bos_id=0)
S, V, K = 16.0, 64, 4


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=48, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    return GPT2LMHeadModel(config)


def llama():
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 0}  # else 1 and 2, which facts have
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 48}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **special, initializer_range=0.5))


def values_of_gpt2(model, layer, given):
    return model.transformer.h[layer].attn.c_attn(given)[:, 32:], model.transformer.h[layer].attn.c_proj.weight


def values_of_llama(model, layer, given):
    part = model.model.layers[layer].self_attn
    grouped = part.v_proj(given).unflatten(-1, (2, 4)).repeat_interleave(2, 1)
    return grouped.flatten(1), part.o_proj.weight.T


def ln(final, residual, written):
    """What the final LayerNorm makes of what is written, its scale held fixed."""
    return (written - written.mean()) / (residual.var(correction=0) + final.eps).sqrt() * final.weight


def rms(final, residual, written):
    return written / (residual.square().mean() + final.variance_epsilon).sqrt() * final.weight


MODELS = {
    "gpt2": (gpt2, lambda m, n: m.transformer.h[n].attn.c_attn, values_of_gpt2, lambda m: m.transformer.ln_f, ln, 2),
    "llama": (llama, lambda m, n: m.model.layers[n].self_attn.v_proj, values_of_llama, lambda m: m.model.norm, rms, 4),
}


def one_by_one(parts, model, row, values, keys):
    """The scores of each head in one row, written down as they are defined: (5, layers, heads)."""
    _, reads, values_of, final, normed, n_heads = parts
    given, end = {}, []
    hooks = [reads(model, n).register_forward_pre_hook(lambda _, args, n=n: given.update({n: args[0][0]})) for n in (0, 1)]
    hooks.append(final(model).register_forward_pre_hook(lambda _, args: end.append(args[0][0, -1])))
    attentions = model(row[None], output_attentions=True).attentions
    for hook in hooks:
        hook.remove()
    found = np.empty((5, 2, n_heads))
    unembedding = model.get_output_embeddings().weight
    for layer in (0, 1):
        all_values, outs = values_of(model, layer, given[layer])
        for head in range(n_heads):
            part = slice(head * 16 // n_heads, (head + 1) * 16 // n_heads)
            mass = attentions[layer][0, head, -1]
            raised = np.empty((len(values), len(keys)))
            for column, key in enumerate(keys):
                logits = normed(final(model), end[0], mass[key] * all_values[key, part] @ outs[part]) @ unembedding.T
                raised[:, column] = (logits - logits.mean())[values].numpy()
            contrasts = [raised[n, n] - np.delete(raised[n], n).mean() for n in range(len(keys))]
            at = mass[keys].tolist()
            first = int(mass.argmax())
            found[:, layer, head] = (
                contrasts[0],
                np.mean(contrasts[1:]),
                at[0] - np.mean(at[1:]),
                first == keys[0],
                np.mean([first == key for key in keys[1:]]),
            )
    return found


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_scores_are_those_of_loops_over_heads_and_keys(name):
    """With values shared by a group of heads, with both kinds of norms, and with gains that are not 1."""
    parts = MODELS[name]
    model = parts[0]().double().eval()
    model.set_attn_implementation("eager")
    parts[3](model).weight.copy_(torch.linspace(0.5, 2, 16, dtype=torch.float64))
    subject = load_model(model)
    rows = needle_rows(form_of(SPACE, None, FACTS), SPACE, 30, 4, rng=np.random.default_rng(0), n_sequences=3)
    found = scores_of(subject, rows)
    for number in range(3):
        wanted = one_by_one(parts, model, torch.from_numpy(rows.tokens[number]), rows.values[number], rows.keys[number].tolist())
        for kind, each in zip(KINDS, wanted, strict=True):
            np.testing.assert_allclose(found[kind][number], each, atol=1e-6, err_msg=kind)
    assert np.ptp(found["written"]) > 0.01
    behaviour = behaviour_of(subject, rows)
    logits = model(torch.from_numpy(rows.tokens)).logits[:, -1]
    for number in range(3):
        own, *others = logits[number, torch.from_numpy(rows.values[number])].exp().tolist()
        assert behaviour["log_odds"][number] == pytest.approx(np.log(own / sum(others)), abs=1e-6)
        assert behaviour["accuracy"][number] == (own > max(others))


@pytest.mark.parametrize(
    ("model", "head", "wanted"),
    [
        (retrieval_head(), (1, 1), (S - S / V, 0, 1, 1, 0)),
        (retrieval_head(strength=0.0), (1, 1), (0, 0, 1, 1, 0)),
        (retrieval_head(distractors=True), (1, 1), (0, S / (K - 1), -1 / (K - 1), 0, 1 / (K - 1))),
        (retrieval_head(), (1, 0), (S / K, S / K, 0, 1 / K, 1 / K)),
        (copying_head(), (0, 0), (S / 60, S / 60, 0, 1 / 60, 1 / 60)),
        (first_token_head(strength=S), (0, 0), (0, 0, 0, 0, 0)),
    ],
)  # fmt: skip
def test_calibration(model, head, wanted):
    """What retrieves perfectly has the top of every score; what copies all values alike has nothing beyond its null."""
    scores = measure_retrieval(model, facts=FACTS, lengths=60, n_sequences=8)
    for kind, value in zip(KINDS, wanted, strict=True):
        assert getattr(scores, kind)[head] == pytest.approx(value, abs=0.1 if "written" in kind else 1e-5), kind
    assert scores.excess[head] == pytest.approx(wanted[0] - wanted[1], abs=0.35)


def test_what_the_model_does_is_told_apart_from_what_a_head_does():
    """A head that attends as it should and writes nothing leaves the model guessing."""
    found, silent = (measure_retrieval(retrieval_head(strength=each), facts=FACTS, n_sequences=8) for each in (S, 0.0))
    assert found.estimates["accuracy"].value == 1 and found.estimates["log_odds"].value > 10
    assert silent.estimates["accuracy"].value == silent.chance == 0.25
    assert silent.estimates["log_odds"].value == pytest.approx(-np.log(3), abs=1e-4)
    assert str(found.heads[0]) == "L1H1" and found.heads[0].attention == 1


def test_each_length_and_depth_is_a_point():
    scores = measure_retrieval(retrieval_head(), facts=FACTS, lengths=[40, 80], n_sequences=8)
    assert [point.length for point in scores.points] == [40] * 4 + [80] * 4
    np.testing.assert_allclose([point.depth for point in scores.points[4:]], [1 / 8, 3 / 8, 5 / 8, 7 / 8], atol=0.1)
    assert all(point.accuracy.value == 1 and point.written[1, 1] > 15 for point in scores.points)
    assert scores.per_sequence["written"].shape == (16, 2, 4) and scores.provenance.n_sequences == 16
    kept = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert kept["points"][0]["length"] == 40 and kept["heads"][0]["written"]["unit"] == "nats"


def test_a_value_that_shares_the_first_place_counts_as_one_of_them():
    logits = torch.tensor([[2.0, 2.0, 1.0], [3.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    assert best_of(logits)[:, 0].tolist() == [0.5, 1, 0]
    assert best_of(logits)[1, 1].item() == pytest.approx(2 - np.log(2))


def test_the_same_seed_gives_the_same_and_another_does_not():
    """Of what a random model makes of the rows, one by one."""
    subject = load_model(llama().eval())
    found = [measure_retrieval(subject, facts=FACTS, n_sequences=8, seed=seed) for seed in (1, 1, 2)]
    one, again, other = (each.per_sequence["log_odds"] for each in found)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"facts": None}, TextError, "there is no tokenizer"),
        ({"n_sequences": 7}, ArgumentError, "`n_sequences` must be"),
        ({"n_facts": 1}, ArgumentError, "with a single fact whatever copies a value is right"),
        ({"error_rate": 2}, ArgumentError, "`error_rate` must"),
    ],
)
def test_what_cannot_be_asked_is_one_line(options, error, said):
    with pytest.raises(error, match=said) as caught:
        measure_retrieval(retrieval_head(), **{"facts": FACTS, **options})
    assert "\n" not in str(caught.value)


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(ModelError, match="not finite"):
        named_behaviour(load_model(retrieval_head()), np.array([[1.0, 2.0], [np.nan, 2.0]]))
