"""Copying against slow references: whole (vocabulary x vocabulary) spectra, the paper's evaluator by loops, heads taken away."""

import copy
import importlib.util
import json

import numpy as np
import pytest
import torch

from pytest_induction import load_model, planted
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.heads import copying
from pytest_induction.heads.copying import (
    EFFECTS,
    RepeatedBlock,
    block_shares,
    copying_shares,
    direct_effects,
    measure_copying,
    ov_eigenvalue_scores,
    ov_eigenvalues,
    own_logit_shares,
    own_logits,
    product_of_embeddings,
    raised_in_row,
    rescaled,
    unrepeated_blocks,
)
from pytest_induction.measuring.observing import probes_of
from pytest_induction.model.capture import HeadOutputCapture
from pytest_induction.model.circuits import circuits_of
from tests.known_heads import NormedBehind

TINY = {"vocab_size": 61, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 110,
    "initializer_range": 0.3,
}
GROUPED = {**LLAMA, "num_key_value_heads": 2, "head_dim": 8}
WINDOWED = {**GROUPED, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 9, "query_pre_attn_scalar": 8}
NORMED = {  # behind attention; OLMo 2 has no norm before it
    "Gemma2": {**WINDOWED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "Gemma3": WINDOWED,
    "Olmo2": {**LLAMA, "num_key_value_heads": 2},
    "Glm4": GROUPED,
}
KINDS = {
    "GPT2": {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 110, "initializer_range": 0.3},
    "Llama": {**LLAMA, "num_key_value_heads": 2},
    "GPTNeoX": LLAMA,
    "OPT": {
        "hidden_size": 32,
        "ffn_dim": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 110,
        "word_embed_proj_dim": 32,
        "init_std": 0.3,
    },
    **NORMED,
}
OUT = {"GPT2": "attn.c_proj", "GPTNeoX": "attention.dense", "OPT": "self_attn.out_proj"}
OUT |= dict.fromkeys(("Llama", *NORMED), "self_attn.o_proj")
BEHIND = {"Glm4": "post_self_attn_layernorm", **dict.fromkeys(("Gemma2", "Gemma3", "Olmo2"), "post_attention_layernorm")}
HEADS = 4


def tiny(kind):
    transformers = pytest.importorskip("transformers")
    model_class = getattr(transformers, f"{kind}LMHeadModel", None) or getattr(transformers, f"{kind}ForCausalLM")
    torch.manual_seed(1)
    config_class = getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")
    model = model_class(config_class(**TINY, **KINDS[kind])).eval()
    with torch.no_grad():  # gains and biases that begin at one and at zero hide mistakes
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight)) if "bias" not in name else weight.normal_(0, 0.2)
    return model


def of_layers(model, kind):
    """The blocks of a model, its final norm and the unembedding (d_vocab, d_model)."""
    if kind == "GPT2":
        return list(model.transformer.h), model.transformer.ln_f, model.lm_head.weight
    if kind == "GPTNeoX":
        return list(model.gpt_neox.layers), model.gpt_neox.final_layer_norm, model.get_output_embeddings().weight
    if kind == "OPT":
        return list(model.model.decoder.layers), model.model.decoder.final_layer_norm, model.lm_head.weight
    return list(model.model.layers), model.model.norm, model.lm_head.weight


def by_hand(model, kind, layer):
    """W_V (heads, d_model, d_head) and W_O (heads, d_head, d_model) of a layer, cut out of the model's own parameters."""
    block = of_layers(model, kind)[0][layer]
    if kind == "GPT2":
        value, out = block.attn.c_attn.weight[:, 64:], block.attn.c_proj.weight
        return value.reshape(32, 4, 8).permute(1, 0, 2), out.reshape(4, 8, 32)
    if kind == "GPTNeoX":
        value = block.attention.query_key_value.weight.reshape(4, 3, 8, 32)[:, 2]
        return value.permute(0, 2, 1), block.attention.dense.weight.T.reshape(4, 8, 32)
    if kind == "OPT":
        return block.self_attn.v_proj.weight.reshape(4, 8, 32).permute(0, 2, 1), block.self_attn.out_proj.weight.T.reshape(
            4, 8, 32
        )
    value = block.self_attn.v_proj.weight.reshape(2, 8, 32)[[0, 0, 1, 1]]
    out = block.self_attn.o_proj.weight.T.reshape(4, 8, 32)
    behind = gain_of(getattr(block, BEHIND[kind])) if kind in BEHIND else 1
    return value.permute(0, 2, 1), out * behind


def gain_of(norm):
    """By what a norm multiplies: Gemma counts from one."""
    return 1 + norm.weight if type(norm).__name__.startswith("Gemma") else norm.weight


def norm_by_hand(model, kind, layer):
    """The gain of the norm before a layer's attention as a matrix, with the centring before it; of the final norm for None."""
    blocks, final, _ = of_layers(model, kind)
    if kind == "Olmo2" and layer is not None:
        return torch.eye(32)
    name = {"GPT2": "ln_1", "OPT": "self_attn_layer_norm"}.get(kind, "input_layernorm")
    norm = final if layer is None else getattr(blocks[layer], name)
    centring = torch.full((32, 32), 1 / 32) if kind in ("GPT2", "GPTNeoX", "OPT") else torch.zeros(32, 32)
    return (torch.eye(32) - centring) @ torch.diag(gain_of(norm))


def full_matrix(model, kind, layer, head):
    """How much a head that attends to one token raises another, (d_vocab, d_vocab)."""
    value, out = by_hand(model, kind, layer)
    read = model.get_input_embeddings().weight @ norm_by_hand(model, kind, layer) @ value[head]
    return read @ out[head] @ norm_by_hand(model, kind, None) @ of_layers(model, kind)[2].T


def score_of(matrix):
    eigenvalues = np.linalg.eigvals(matrix.detach().double().numpy())
    return eigenvalues.sum().real / np.abs(eigenvalues).sum()


def caught(model, kind, tokens):
    """What each layer's heads found, (layers, batch, positions, 4, 8), and the last of the residual stream.

    The first is over the root mean square of what the output projection gave, where a norm is behind.
    """
    blocks, final, _ = of_layers(model, kind)
    found = []

    def keep(_, given, output):
        found.append(given[0] / output.pow(2).mean(-1, keepdim=True).sqrt() if kind in BEHIND else given[0])

    handles = [block.get_submodule(OUT[kind]).register_forward_hook(keep) for block in blocks]
    handles.append(final.register_forward_pre_hook(lambda _, given: found.append(given[0])))
    with torch.no_grad():
        model(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return [each.unflatten(-1, (HEADS, 8)) for each in found[:-1]], found[-1]


def epsilon_of(norm):
    """Of a norm of transformers."""
    return norm.eps if hasattr(norm, "eps") else norm.variance_epsilon


def frozen(norm, residual, moved, kind):
    """The final norm of `moved` with the scale that it has for `residual`."""
    if kind == "Llama" or kind in BEHIND:
        return moved / (residual.pow(2).mean(-1, keepdim=True) + epsilon_of(norm)).sqrt() * gain_of(norm)
    scale = (residual.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    return (moved - moved.mean(-1, keepdim=True)) / scale * norm.weight + norm.bias


@pytest.mark.parametrize("kind", KINDS)
def test_eigenvalue_scores_are_those_of_the_whole_matrix(kind):
    """Of the (vocabulary x vocabulary) matrix, folded by hand, grouped queries and interleaved projections included."""
    model = tiny(kind)
    subject = load_model(model)
    found = ov_eigenvalues(subject, circuits_of(subject))
    wanted = [[score_of(full_matrix(model, kind, layer, head)) for head in range(4)] for layer in range(2)]
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_the_small_matrix_has_the_spectrum_of_the_large_one():
    """Also where d_head exceeds the rank, and in bfloat16 weights, which are turned into single precision."""
    generator = torch.Generator().manual_seed(3)
    value, out, embedding, unembedding = (
        torch.randn(shape, generator=generator) for shape in ((3, 12, 5), (3, 5, 12), (40, 12), (12, 40))
    )
    product = product_of_embeddings(unembedding, embedding)
    found = ov_eigenvalue_scores(value, product, out)
    wanted = [score_of(embedding @ value[head] @ out[head] @ unembedding) for head in range(3)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    half = product_of_embeddings(unembedding.bfloat16(), embedding.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, unembedding.bfloat16().float() @ embedding.bfloat16().float())


@pytest.mark.parametrize("kind", KINDS)
def test_own_logits_are_those_of_the_whole_matrix(kind):
    """Token by token: whether its own logit is above the mean of its row, and above every other."""
    model = tiny(kind)
    subject = load_model(model)
    found = own_logit_shares(subject, circuits_of(subject))
    usable = [token for token in range(61) if token not in (0, 1, 2)]
    for layer, head in np.ndindex(2, 4):
        matrix = full_matrix(model, kind, layer, head).detach().double().numpy()
        raised = sum(bool(matrix[token, token] > matrix[token].mean()) for token in usable)
        first = sum(all(matrix[token, token] > matrix[token, other] for other in usable if other != token) for token in usable)
        assert found[:, layer, head] * len(usable) == pytest.approx([raised, first], abs=1e-3), (layer, head)


def test_positive_eigenvalues_may_hide_tokens_that_lower_themselves():
    """Trace and determinant of the first two tokens' part are positive, and the first one's own entry is not."""
    matrix = torch.tensor([[-1.0, 5.0, 0.0], [-1.0, 3.5, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert torch.linalg.eigvals(matrix).real.min() > 0 and matrix[0, 0] < 0
    eye = torch.eye(3, dtype=torch.float64)
    score = ov_eigenvalue_scores(matrix[None], eye, eye[None])
    shares = own_logits(matrix[:, None], eye[:, None])
    assert float(score) == pytest.approx(1) and shares[:, 0].tolist() == pytest.approx([2 / 3, 2 / 3])


def test_own_logits_of_a_large_vocabulary_are_those_of_a_sample_of_it(monkeypatch):
    """Of tokens from all over it; copier, suppressor and what writes nothing have the ends of the range and no value."""
    monkeypatch.setattr(copying, "MOST_TOKENS", 21)
    for make, wanted in ((planted.induction_head, [1, 1]), (planted.copy_suppression_head, [0, 0])):
        subject = load_model(make())
        found = own_logit_shares(subject, circuits_of(subject))
        assert found[:, 1, 0].tolist() == wanted
        assert np.isnan(np.delete(found.reshape(2, -1), 4, axis=1)).all()
    model = planted.induction_head()
    with torch.no_grad():
        model.W_U[:, 32:] = -model.W_U[:, 32:]  # the upper half suppresses itself
    subject = load_model(model)
    assert (own_logit_shares(subject, circuits_of(subject))[:, 1, 0] * 21).tolist() == pytest.approx([10, 10], abs=1)


def test_a_head_that_raises_other_tokens_only_has_none_of_its_own():
    """And one that raises all alike raises none above the others; with negative factors on both ends the signs cancel."""
    eye = torch.eye(5)
    shifted = eye.roll(1, dims=1)
    assert own_logits(shifted[:, None], eye[:, None])[:, 0].tolist() == [0, 0]
    alike = torch.ones(5, 1, 5)
    assert float(own_logits(alike, eye[:, None])[1, 0]) == 0
    assert own_logits(-eye[:, None], -eye[:, None])[:, 0].tolist() == [1, 1]
    assert bool(own_logits(0 * eye[:, None], eye[:, None]).isnan().all())
    half = own_logits(eye[:, None].bfloat16(), eye[:, None])
    assert half.dtype == torch.float32 and half[:, 0].tolist() == [1, 1]


def test_scores_as_plain_data_go_through_json():
    """With None where there is no number."""
    scores = measure_copying(planted.induction_head(), n_sequences=2)
    data = json.loads(json.dumps(scores.to_dict()))
    assert data["schema"] == 1 and data["ov_eigenvalue"][1][0] == pytest.approx(1) and data["own_logit_first"][0][0] is None
    assert np.array(data["per_sequence"]["copy_effect"]).shape == (2, 2, 4)
    assert data["provenance"]["model"] == scores.provenance.model and data["provenance"]["layers"] == ["layers.0", "layers.1"]


@pytest.mark.parametrize(("sign", "score"), [(1.0, 1.0), (-1.0, -1.0), (0.0, 0.0)])
def test_eigenvalue_scores_of_known_heads(sign, score):
    """A copier has 1, a suppressor -1, what writes nothing 0."""
    eye = torch.eye(6)[None]
    assert float(ov_eigenvalue_scores(eye, torch.eye(6), sign * eye)) == score


def test_eigenvalue_scores_of_random_heads_lie_about_zero():
    """And all of them within -1 and 1."""
    generator = torch.Generator().manual_seed(0)
    value, out = (torch.randn(200, *shape, generator=generator) for shape in ((32, 16), (16, 32)))
    found = ov_eigenvalue_scores(value, torch.eye(32), out)
    assert abs(float(found.mean())) < 0.02 and float(found.abs().max()) <= 1


@torch.no_grad()
def shares_by_loops(model, kind, tokens, first):
    """The copying evaluator by the words of the paper: (batch, layers, heads)."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = twin(tokens, output_attentions=True, use_cache=False).attentions
    found, residual = caught(model, kind, tokens)
    _, norm, unembedding = of_layers(model, kind)
    shares = np.zeros((len(tokens), 2, HEADS))
    for row, layer, head in np.ndindex(shares.shape):
        _, out = by_hand(model, kind, layer)
        ratios = []
        for query in range(first, tokens.shape[1]):
            written = found[layer][row, query, head] @ out[head]
            at = residual[row, query]
            logits = (frozen(norm, at, at, kind) - frozen(norm, at, at - written, kind)) @ unembedding.T
            raised = torch.relu(logits - logits.mean())
            attended = sum(
                float(patterns[layer][row, head, query, key] * raised[tokens[row, key]]) for key in range(tokens.shape[1])
            )
            ratios.append(attended / float(sum(raised[token] for token in tokens[row])))
        shares[row, layer, head] = np.mean(ratios)
    return shares


@pytest.mark.parametrize("kind", KINDS)
def test_copying_shares_are_those_of_the_loop(kind):
    """Over the whole vocabulary, token by token."""
    model = tiny(kind)
    subject = load_model(model)
    rows = unrepeated_blocks(subject, 2, np.random.default_rng(0))
    assert rows.shape == (2, 26) and (rows[:, 0] == 0).all() and all(len(set(row)) == 26 for row in rows.tolist())
    for part, first in ((rows, 1), (rows[:, 1:], 0)):
        found = block_shares(subject, circuits_of(subject), part, first=first)
        np.testing.assert_allclose(found, shares_by_loops(model, kind, torch.from_numpy(part), first), atol=1e-4)


@torch.no_grad()
def effects_by_subtraction(model, kind, probe):
    """By how much the right token's logit falls where a head's output is taken away and the norm's scale is not: both effects."""
    tokens = torch.from_numpy(probe.tokens)
    found, residual = caught(model, kind, tokens)
    _, norm, unembedding = of_layers(model, kind)
    wanted = np.zeros((2, len(tokens), 2, HEADS))
    for row, layer, head in np.ndindex(wanted.shape[1:]):
        _, out = by_hand(model, kind, layer)
        block = tokens[row, probe.start : probe.start + probe.period]
        queries = range(probe.start + probe.period, tokens.shape[1])
        each = []
        for query in queries:
            target = block[(query - probe.start + 1) % probe.period]
            at = residual[row, query]
            without = at - found[layer][row, query, head] @ out[head]
            change = (frozen(norm, at, at, kind) - frozen(norm, at, without, kind)) @ unembedding.T
            others = [float(change[token]) for token in block if token != target]
            each.append((float(change[target] - change.mean()), float(change[target]) - np.mean(others)))
        wanted[:, row, layer, head] = np.mean(each, axis=0)
    return wanted


@pytest.mark.parametrize("kind", NORMED)
def test_heads_write_what_a_layer_adds(kind):
    """All of them together, behind the norm, as the residual stream says it: it is read before and after."""
    model = tiny(kind)
    blocks, _, _ = of_layers(model, kind)
    tokens, streams = torch.arange(4, 34).reshape(2, 15), []
    for block in blocks:
        middle = block.mlp if kind == "Olmo2" else getattr(block, "pre_feedforward_layernorm", block.post_attention_layernorm)
        for part in (block, middle):
            part.register_forward_pre_hook(lambda _, given: streams.append(given[0]))
    subject = load_model(model)
    circuits = circuits_of(subject)
    written = []

    def take(layer, found, pattern):
        written.append(torch.einsum("bqhd,hdm->bqm", found, circuits.layers[layer].outs))

    streams.clear()
    with torch.no_grad():
        HeadOutputCapture(subject, circuits)(tokens, take)
    for before, after, wrote in zip(streams[::2], streams[1::2], written, strict=True):
        torch.testing.assert_close(wrote, after - before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_direct_effects_are_what_a_head_taken_away_takes_with_it(kind):
    """With the final norm's scale held fixed, query by query."""
    model = tiny(kind)
    subject = load_model(model)
    for probe in probes_of(subject, 4, np.random.default_rng(2), 3, None):
        found = direct_effects(subject, circuits_of(subject), probe)
        np.testing.assert_allclose([found[name] for name in EFFECTS], effects_by_subtraction(model, kind, probe), atol=2e-4)


KNOWN = {  # of a planted head of strength 16 among 64 tokens: eigenvalue, direct effect, copy effect
    "induction_head": (1, 15.75, 16),
    "copy_suppression_head": (-1, -15.75, -16),
    "matching_head": (0, 0, 0),
    "pointer_induction_head": (1, 15.75, 16),
    "virtual_induction_head": (0, 15.75, 16),
}


@pytest.mark.parametrize("name", KNOWN)
def test_planted_heads_have_the_scores_of_what_they_are(name):
    """Every head beside them has 0 and 0, and no share: it writes nothing."""
    scores = measure_copying(getattr(planted, name)(), n_sequences=6)
    found = [getattr(scores, each)[1, 0] for each in ("ov_eigenvalue", "direct_effect", "copy_effect")]
    np.testing.assert_allclose(found, KNOWN[name], atol=1e-4)
    for each in ("ov_eigenvalue", "direct_effect", "copy_effect"):
        others = np.delete(getattr(scores, each).ravel(), 4)
        assert (others == 0).all()
    assert np.isnan(scores.copying).all()  # on rows without repeats it rests on the first token


@pytest.mark.parametrize(("strength", "size"), [(16.0, 16.0), (16.0, 4.0), (0.5, 16.0)])
def test_planted_heads_behind_a_norm_have_what_its_gain_gives_them(strength, size):
    """However long what they write is before the norm, but for its epsilon."""
    model = NormedBehind(planted.induction_head(strength=strength), (1.0, size)).eval()
    scores = measure_copying(model, n_sequences=6)
    found = [getattr(scores, each)[1, 0] for each in ("ov_eigenvalue", "own_logit_first", "direct_effect", "copy_effect")]
    size *= (1 + model.norms[1].eps * len(model.W_U) / strength**2) ** -0.5
    np.testing.assert_allclose(found, [1, 1, size - size / 64, size], atol=1e-4)
    for each in ("ov_eigenvalue", "direct_effect", "copy_effect"):
        np.testing.assert_allclose(np.delete(getattr(scores, each).ravel(), 4), 0, atol=1e-6)


def test_redundant_heads_share_the_effect():
    """Three equal heads of a third each."""
    scores = measure_copying(planted.redundant_induction_heads(count=3), n_sequences=4)
    np.testing.assert_allclose(scores.copy_effect[1], [16 / 3, 16 / 3, 16 / 3, 0], atol=1e-4)
    np.testing.assert_allclose(scores.ov_eigenvalue[1], [1, 1, 1, 0], atol=1e-6)


def test_a_head_that_copies_one_token_has_the_top_of_the_range():
    """The previous-token head that raises what it finds: share 1, copying 1; one that lowers it raises only others: 0 and -1."""
    scores = measure_copying(planted.previous_token_head(strength=16.0), n_sequences=3)
    assert scores.per_sequence["copying_share_without_first_token"].shape == (3, 2, 4)
    assert scores.copying_share[0, 0] == pytest.approx(1, abs=1e-6) and scores.copying[0, 0] == pytest.approx(1, abs=1e-6)
    model = planted.previous_token_head(strength=16.0)
    with torch.no_grad():
        model.layers[0].W_O.neg_()
    scores = measure_copying(model, n_sequences=3)
    assert scores.copying_share[0, 0] == pytest.approx(0, abs=1e-6) and scores.copying[0, 0] == pytest.approx(-1, abs=1e-6)


def test_a_head_that_copies_evenly_has_one_share_among_many():
    """At the query after k tokens it has 1 / k of what it attends to them with; the first one, which copies as nothing, gets the rest."""
    scores = measure_copying(planted.copying_head(), n_sequences=3)
    queries = np.arange(1, 26)
    assert scores.copying_share[0, 0] == pytest.approx(np.mean(1 / (queries + 1)), abs=1e-5)
    assert scores.per_sequence["copying_share_without_first_token"][:, 0, 0].mean() == pytest.approx(
        np.mean(1 / queries), abs=1e-2
    )


@pytest.mark.parametrize(("share", "score"), [(0.0, -1.0), (1 / 3, 0.0), (1.0, 1.0), (1 / 25, 4 / 26 - 1)])
def test_the_paper_rescales_a_share_so(share, score):
    """0.5 at the most, times four, less one."""
    assert rescaled(share) == pytest.approx(score)
    assert float(rescaled(torch.tensor(share))) == pytest.approx(score)


def test_what_raises_nothing_has_no_share():
    """Queries of no raise do not count; where none counts there is no number."""
    found = torch.zeros(1, 3, 2, 4)
    found[0, 2, 1, 0] = 1.0
    pattern = torch.eye(3).expand(1, 2, 3, 3)
    own = torch.eye(4)[None, :3, None].expand(1, 3, 2, 4).roll(1, dims=1)
    shares = copying_shares(raised_in_row(found, pattern, own), torch.ones(1, 3))
    assert bool(torch.isnan(shares[0, 0])) and float(shares[0, 1]) == 0.0  # raises the token at 1, attends to that at 2


def test_effects_of_a_block_by_hand():
    """One head, one number for each token: the mean over later copies of the right one's, less the mean of the others."""
    block = RepeatedBlock(period=3, copies=3, start=1)
    generator = torch.Generator().manual_seed(0)
    found, own = torch.randn(2, 10, 1, 4, generator=generator), torch.randn(2, 3, 1, 4, generator=generator)
    scale = 1 + torch.rand(2, 10, generator=generator)
    wanted = np.zeros((2, 2))
    for row in range(2):
        for query in range(4, 10):
            raised = [float(found[row, query, 0] @ own[row, token, 0] / scale[row, query]) for token in range(3)]
            right = (query - 1 + 1) % 3
            others = [raised[token] for token in range(3) if token != right]
            wanted[:, row] += np.array([raised[right], raised[right] - np.mean(others)]) / 6
    np.testing.assert_allclose(block.direct_effects(block.raised(found, own), scale)[..., 0], wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["two-layers", "llama"])
def test_shipped_models_copy_with_their_induction_heads(shipped, name):
    """The heads of the last layer, all of them, and none before."""
    if name == "llama":
        pytest.importorskip("transformers")
    scores = measure_copying(shipped[name], n_sequences=6)
    assert scores.ov_eigenvalue[1].min() > 0.98 and scores.copy_effect[1].min() > 0.8
    assert abs(scores.copy_effect[0]).max() < 0.1


def test_the_same_seed_gives_the_same_scores_however_many_rows_share_a_pass(shipped):
    """Sequences are measured one by one, and another seed draws others."""
    whole = measure_copying(shipped["two-layers"], n_sequences=5, seed=3)
    alone = measure_copying(load_model(shipped["two-layers"], memory="1MB"), n_sequences=5, seed=3)
    other = measure_copying(shipped["two-layers"], n_sequences=5, seed=4)
    for name, values in whole.per_sequence.items():
        assert values.shape == (5, 2, 4)
        np.testing.assert_allclose(alone.per_sequence[name], values, atol=1e-5)
        assert not np.array_equal(other.per_sequence[name], values)
    assert whole.provenance.seed == 3 and whole.provenance.probe.endswith("26 unrepeated tokens")


def test_half_precision_scores_as_single_does(shipped):
    """Of the same rounded weights: the spectrum up to what single precision can tell apart, the rest up to what bfloat16 can."""
    half = measure_copying(load_model(shipped["two-layers"], dtype="bfloat16"), n_sequences=6)
    single = measure_copying(load_model(shipped["two-layers"], dtype="bfloat16").module.float(), n_sequences=6)
    np.testing.assert_allclose(half.ov_eigenvalue, single.ov_eigenvalue, atol=1e-4)
    np.testing.assert_allclose(half.copy_effect, single.copy_effect, atol=0.05)


@pytest.mark.parametrize("options", [{"n_sequences": 0}, {"n_sequences": 1.5}, {"seed": -1}])
def test_numbers_out_of_range_are_named(options):
    """In one line, before anything is measured."""
    with pytest.raises(ArgumentError, match=f"`{next(iter(options))}` must be a whole number"):
        measure_copying(planted.induction_head(), **options)


def test_what_is_not_finite_is_an_error():
    """No score is made of an infinity."""
    model = planted.induction_head()
    subject = load_model(model)
    circuits = circuits_of(subject)
    with torch.no_grad():
        model.layers[1].W_O.mul_(float("inf"))
    probe = next(iter(probes_of(subject, 1, np.random.default_rng(2), 3, None)))
    with pytest.raises(ModelError, match="not finite"):
        direct_effects(subject, circuits, probe)


NATIVE = importlib.util.find_spec("transformer_lens") and importlib.util.find_spec("transformer_lens.model_bridge.sources.native")
needs_bridge = pytest.mark.skipif(not NATIVE, reason="no TransformerLens with models of its own")


@needs_bridge
@pytest.mark.filterwarnings("ignore")
def test_eigenvalues_are_those_of_transformer_lens():
    """FactoredMatrix over embedding, head and unembedding, in its compatibility mode, which folds the norms itself."""
    from tests.attention.test_transformer_lens import bridge

    model = bridge("gpt2")
    subject = load_model(model)
    before = ov_eigenvalues(subject, circuits_of(subject))
    model.enable_compatibility_mode(disable_warnings=True, center_unembed=False)
    full = model.W_E @ model.OV @ model.W_U
    eigenvalues = full.eigenvalues
    wanted = (eigenvalues.sum(-1).real / eigenvalues.abs().sum(-1)).detach().numpy()
    np.testing.assert_allclose(before, wanted, atol=1e-4)


@needs_bridge
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", ["bridge", "planted"])
def test_direct_effects_are_those_of_stacked_head_results(make):
    """The library's own outputs of every head, times the unembedding of the right token, over the cached scale."""
    from tests.attention.test_transformer_lens import bridge

    model = bridge("gpt2") if make == "bridge" else planted.induction_head().to_transformer_lens()
    subject = load_model(model)
    probe = next(iter(probes_of(subject, 2, np.random.default_rng(2), 2, 6)))
    found = direct_effects(subject, circuits_of(subject), probe)["direct_effect"]
    tokens = torch.from_numpy(probe.tokens)
    if make == "bridge":
        model.cfg.use_attn_result = False
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
        results = cache.stack_head_results(layer=-1)  # layers * heads, batch, positions, d_model
        scale = cache["ln_final.hook_scale"] if make == "bridge" else torch.ones(*tokens.shape, 1)
        reads = model.W_U
        if make == "bridge":
            results = results - results.mean(-1, keepdim=True)
            reads = model.original_model.transformer.ln_f.weight[:, None] * reads
        logits = results / scale @ reads
        later = range(probe.start + probe.period, tokens.shape[1])
        targets = [probe.start + (query - probe.start + 1) % probe.period for query in later]
        raised = logits - logits.mean(-1, keepdim=True)
        for row in range(len(tokens)):
            wanted = raised[:, row, list(later), tokens[row, targets]].mean(-1)
            np.testing.assert_allclose(found[row].ravel(), wanted, atol=1e-4)
