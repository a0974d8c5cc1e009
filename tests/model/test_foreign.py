"""Models as they come, unmodified: of other libraries, in the styles people write, and compiled programs."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import assert_copies_repeats, load_model, measure_heads
from pytest_induction.errors import ModelError, UnsupportedModel
from tests.attention.patterns import TOLERANCE, repeated, softmax_by_loop, worst_difference
from tests.forward.test_as_found import everything, same
from tests.model import foreign


def patterns_by_loop(model, tokens):
    """The patterns of a model in our own styles, by a loop over what its projections give."""
    shown = []

    def heads(part):
        return part.view(*part.shape[:2], foreign.HEADS, -1).transpose(1, 2)

    def taken(module, inputs):
        one = hasattr(module, "query")
        query, key = (module.query(*inputs), module.key(*inputs)) if one else module.c_attn(*inputs).chunk(3, -1)[:2]
        shown.append(softmax_by_loop(heads(query), heads(key), 8**-0.5))

    handles = [block.attn.register_forward_pre_hook(taken) for block in model.h]
    training = model.training
    with torch.no_grad():
        model.eval()(tokens)
    model.train(training)
    for handle in handles:
        handle.remove()
    return shown


# Styles


STYLES = {
    "nanoGPT, fused": (lambda: foreign.CausalSelfAttention(flash=True), "sdpa"),
    "nanoGPT, by hand": (lambda: foreign.CausalSelfAttention(flash=False), "softmax"),
    "minGPT": (foreign.Minimal, "softmax"),
}


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_a_model_in_training_is_measured_and_left_in_training(style, checkpointed):
    """With dropout, with gradient checkpointing: the patterns are those of evaluation, and the model is as it was."""
    attention, backend = STYLES[style]
    model = foreign.Language(attention, checkpointed=checkpointed).train()
    tokens = repeated()
    model(tokens, tokens)[1].backward()
    wanted, before = patterns_by_loop(model, tokens), everything(model)
    subject = load_model(model)
    assert subject.reading.name == backend
    assert worst_difference(subject, tokens, wanted) < TOLERANCE
    assert same(everything(model), before)


def causal_encoder():
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    torch.manual_seed(0)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(61, 32), nn.Linear(32, 61)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, tokens):
            mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
            return self.out(self.layers(self.embed(tokens), mask=mask, is_causal=True))

    return Encoder().eval()


def test_an_encoder_with_a_causal_mask_is_measured():
    """torch's own layers, whose attention is one call of a fused function."""
    model, tokens, wanted = causal_encoder(), repeated(), []

    def taken(module, inputs):
        weight, bias = module.self_attn.in_proj_weight, module.self_attn.in_proj_bias
        query, key, _ = F.linear(inputs[0], weight, bias).chunk(3, -1)
        wanted.append(softmax_by_loop(*(part.unflatten(-1, (4, 8)).transpose(1, 2) for part in (query, key)), 8**-0.5))

    handles = [layer.register_forward_pre_hook(taken) for layer in model.layers.layers]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    assert worst_difference(model, tokens, wanted) < TOLERANCE


# Patterns that are not what weighs the values


def in_place(pattern, mixing):
    pattern *= torch.linspace(1, 2, pattern.shape[-1])
    return pattern


def through_a_view(pattern, mixing):
    pattern.view(-1).mul_(0.5)
    return pattern


def halved(pattern):
    return pattern * 0.5


def by_a_script(pattern, mixing):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(halved)(pattern)


CHANGES = {
    "by a product": (lambda pattern, mixing: torch.einsum("bhqk,hg->bgqk", pattern, mixing), "changed by `einsum`"),
    "by a convolution": (lambda pattern, mixing: F.conv2d(pattern, mixing[:, :, None, None]), "changed by `conv2d`"),
    "in place": (in_place, "changed by"),
    "through a view": (through_a_view, "changed by"),
    "twice": (lambda pattern, mixing: pattern @ pattern, "changed by `matmul`|changed by `__matmul__`"),
    "by a gate": (lambda pattern, mixing: pattern * torch.sigmoid(6 * mixing.diagonal()[:, None, None]), "changed by `mul`"),
    "by sharpening": (lambda pattern, mixing: F.normalize(pattern.square(), p=1, dim=-1), "changed by `square`"),
    "by a script": (by_a_script, "used nowhere"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_pattern_that_is_changed_after_the_softmax_is_refused(change):
    """Also by weights that change nothing yet, and where the change leaves the very tensor of the softmax."""
    mix, said = CHANGES[change]
    with pytest.raises(UnsupportedModel, match=f"softmax: 2 softmax calls .* 2 are (?:{said})"):
        measure_heads(foreign.Language(lambda: foreign.Mixed(mix)))


def test_one_layer_with_memory_among_others_is_refused():
    """Keys beyond the positions in some layers do not leave a model with fewer layers."""

    class Remembering(foreign.Minimal):
        def forward(self, x):
            memory = self.c_proj(x[:, :2].detach() * 0 + 1)
            return super().forward(x) + ((x @ torch.cat([memory, x], 1).mT).triu(3) * 0).softmax(-1).mean(-1, keepdim=True)

    kinds = iter([foreign.Minimal, Remembering])
    with pytest.raises(UnsupportedModel, match="from 11 positions to 13 keys, which follow the number of positions"):
        measure_heads(foreign.Language(lambda: next(kinds)()))


# x-transformers


MEASURED = {
    "default": {},
    "rotary": {"rotary_pos_emb": True},
    "fused": {"attn_flash": True},
    "fused, rotary": {"attn_flash": True, "rotary_pos_emb": True},
    "alibi": {"alibi_pos_bias": True},
    "fused, alibi": {"alibi_pos_bias": True, "attn_flash": True},
    "grouped keys": {"attn_kv_heads": 2},
    "fused, grouped keys": {"attn_kv_heads": 2, "attn_flash": True},
    "one key head": {"attn_one_kv_head": True},
    "relative bias": {"rel_pos_bias": True},
    "heads mixed before": {"attn_pre_talking_heads": True},
    "qk norm": {"attn_qk_norm": True},
    "fused, qk norm": {"attn_qk_norm": True, "attn_flash": True},
    "sandwich": {"sandwich_coef": 1},
    "macaron": {"macaron": True},
    "attention first": {"custom_layers": ("a", "a", "f", "f")},
    "attention on attention": {"attn_on_attn": True},
    "gated values": {"attn_gate_values": True},
    "top k": {"attn_sparse_topk": 3},
    "selective": {"attn_selective": True},
    "distances": {"attn_l2_distance": True},
    "fused, distances": {"attn_l2_distance": True, "attn_flash": True},
    "soft clamp": {"attn_softclamp_logits": True, "attn_logit_softclamp_value": 2.0},
    "contextual positions": {"attn_use_cope": True},
    "residual scores": {"residual_attn": True},
    "exponentiated values": {"attn_laser": True},
    "window": {"attn_max_attend_past": 5},
    "latent keys": {"attn_use_latent_kv": True, "attn_dim_latent_kv": 16},
    "fused, narrow values": {"attn_value_dim_head": 5, "attn_flash": True},
    "shared layers": {"weight_tie_layers": True},
    "shifted tokens": {"shift_tokens": 1},
}
LIKE = {  # read as others of them are: queries, keys or values are changed before the call, or layers are ordered
    *("rotary", "alibi", "fused, rotary", "fused, qk norm", "grouped keys", "one key head", "sandwich", "macaron"),
    *("attention on attention", "gated values", "shifted tokens", "soft clamp", "window", "exponentiated values"),
}
REFUSED = {
    "memory keys": ({"attn_num_mem_kv": 3}, "from 11 positions to 14 keys"),
    "fused, memory keys": ({"attn_num_mem_kv": 3, "attn_flash": True}, "from 11 positions to 14 keys"),
    "memory tokens": ({"num_memory_tokens": 3}, "from 14 positions to 14 keys"),
    "fused, memory tokens": ({"num_memory_tokens": 3, "attn_flash": True}, "from 14 positions to 14 keys"),
    "zero key": ({"attn_add_zero_kv": True}, "from 11 positions to 12 keys"),
    "learned sink": ({"attn_head_learned_sink": True}, "from 11 positions to 12 keys"),
    "heads mixed after": ({"attn_post_talking_heads": True}, "2 are changed by `conv2d`"),
    "heads scaled after": ({"attn_pre_scale_post_talking_heads": True}, "2 are changed by `mul`"),
    "sigmoid": ({"attn_sigmoid": True}, "softmax: no softmax seen"),
    "squared relu": ({"attn_custom_attn_fn": lambda scores: scores.relu() ** 2}, "softmax: no softmax seen"),
    "hard": ({"attn_hard": True}, "2 are changed by `add`"),
    "signed": ({"attn_cog_signed": True}, "2 are changed by `mul`"),
    "straight through": ({"attn_sparse_topk": 3, "attn_sparse_topk_straight_through": True}, "makes 2 attention calls"),
}


def x_transformer(num_memory_tokens=None, **options):
    library = pytest.importorskip("x_transformers")
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = library.Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, **options)
        model = library.TransformerWrapper(num_tokens=61, max_seq_len=64, attn_layers=layers, num_memory_tokens=num_memory_tokens)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "talking" not in name:
                weight.mul_(2)
    return model.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.exhaustive) if case in LIKE else case for case in MEASURED]
)
def test_x_transformers_are_measured(case):
    """The scores are those of the patterns that the library itself returns, of an unfused twin where it is fused."""
    options = MEASURED[case]
    model, tokens = x_transformer(**options), repeated()
    twin = x_transformer(**{name: value for name, value in options.items() if name != "attn_flash"})
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        returned = twin(tokens, return_intermediates=True)[1].attn_intermediates
    subject = load_model(model)
    assert subject.reading.name == ("sdpa" if "attn_flash" in options else "softmax")
    assert worst_difference(subject, tokens, [each.post_softmax_attn for each in returned]) < TOLERANCE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSED)
def test_x_transformers_that_have_no_pattern_are_refused_by_name(case):
    """More keys than positions, no softmax, or a pattern that is changed before it weighs anything."""
    options, said = REFUSED[case]
    with pytest.raises(UnsupportedModel, match=said):
        measure_heads(x_transformer(**options))


# Programs


class Short(nn.Module):
    """Three blocks, each of which a test may compile."""

    def __init__(self, compiled=()):
        super().__init__()
        self.embed, self.out = nn.Embedding(61, 16), nn.Linear(16, 61)
        blocks = [ShortBlock() for _ in range(3)]
        self.layers = nn.ModuleList(torch.jit.script(block) if at in compiled else block for at, block in enumerate(blocks))

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


class ShortBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(-1, [3, 2, 8]).permute(2, 0, 3, 1, 4).unbind(0)
        return x + F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(-2)


def exported(model):
    sizes = {"tokens": {0: torch.export.Dim("rows", min=1, max=256), 1: torch.export.Dim("positions", min=2, max=200)}}
    return torch.export.export(model.eval(), (torch.zeros(2, 11, dtype=torch.long),), dynamic_shapes=sizes).module()


PROGRAMS = {
    "script": lambda: torch.jit.script(Short()),
    "trace": lambda: torch.jit.trace(Short(), torch.zeros(2, 7, dtype=torch.long)),
    "export": lambda: exported(Short()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", PROGRAMS)
def test_programs_are_refused_and_their_behaviour_measured(kind):
    """Nothing can be watched in a compiled program; what it completes can be seen all the same."""
    program = PROGRAMS[kind]()
    with pytest.raises(UnsupportedModel, match="the model itself is a compiled program, which nothing can read"):
        measure_heads(program)
    with pytest.raises(AssertionError, match="copies_repeats is REFUTED"):
        assert_copies_repeats(program)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("compiled", "said"),
    [
        ({1}, r"in the model itself \(\w+\) too, where no attention is seen; `layers\.1` is a compiled program"),
        ({0, 1, 2}, r"`layers\.0` is a compiled program"),
    ],
)
def test_a_compiled_block_among_others_is_refused(compiled, said):
    """A layer that cannot be watched does not leave a model with fewer layers."""
    with pytest.raises(UnsupportedModel, match=said):
        measure_heads(Short(compiled))


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_part_without_attention_hides_nothing():
    """A script of a projection is no reason to refuse."""
    model = Short()
    wanted = measure_heads(model).prefix_matching
    for layer in model.layers:
        layer.qkv = torch.jit.script(layer.qkv)
    np.testing.assert_allclose(measure_heads(model).prefix_matching, wanted, atol=1e-6)


def test_what_is_no_module_is_refused_in_one_line():
    """An exported program, or a session that runs another format, is no module."""

    class Session:
        def run(self, names, feed):
            return []

    with pytest.raises(ModelError, match=r"a model must be a torch module or a string .* got `Session`"):
        load_model(Session())


def test_a_model_that_asserts_on_its_arguments_is_named():
    """Some libraries check theirs with `assert`."""

    class Asserting(Short):
        def forward(self, tokens):
            raise AssertionError("`steps` must be given")

    with pytest.raises(ModelError, match=r"Asserting must map token ids .* it raised AssertionError: `steps` must be given"):
        load_model(Asserting())
