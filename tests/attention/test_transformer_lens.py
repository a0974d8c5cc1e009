"""Models of TransformerLens: the bridge of version 4, built from Hugging Face models or its own, and HookedTransformer before.

Versions 2 and 3 run in the tox environments `lens2` and `lens3`; what a version does not have is skipped.
"""

import importlib.util
import shutil

import pytest
import torch

from pytest_induction import measure_ablations, measure_heads
from pytest_induction.errors import ModelError
from pytest_induction.forward.calling import condition
from pytest_induction.model.adapt import adapt
from tests.attention.patterns import TOLERANCE, repeated, softmax_by_loop, worst_difference

lens = pytest.importorskip("transformer_lens")
pytestmark = pytest.mark.filterwarnings("ignore")

BRIDGE = importlib.util.find_spec("transformer_lens.model_bridge") is not None
NATIVE = BRIDGE and importlib.util.find_spec("transformer_lens.model_bridge.sources.native") is not None
HOOKED = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None
needs_native = pytest.mark.skipif(not NATIVE, reason="this TransformerLens has no bridges to models of its own")
needs_bridge = pytest.mark.skipif(not NATIVE, reason="this TransformerLens has no bridge of version 4")
needs_hooked = pytest.mark.skipif(not HOOKED, reason="this TransformerLens has no HookedTransformer")

SIZES = {"n_layers": 2, "d_model": 32, "n_ctx": 64, "d_head": 8, "n_heads": 4, "d_vocab": 61, "d_mlp": 48, "act_fn": "gelu"}
VARIANTS = {
    "plain": {"normalization_type": "LN"},
    "attention only": {"attn_only": True, "d_mlp": None, "act_fn": None, "normalization_type": None},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 8},
    "grouped queries": {"n_key_value_heads": 2},
    "soft cap": {"attn_scores_soft_cap": 2.0},
    "parallel": {"parallel_attn_mlp": True},
}
OLDER = {
    "shortformer": {"positional_embedding_type": "shortformer"},
    "alibi": {"positional_embedding_type": "alibi"},
    "ungrouped": {"n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    "local": {"use_local_attn": True, "window_size": 5, "attn_types": ["global", "local"]},
    "split inputs": {"use_attn_result": True, "use_split_qkv_input": True},
}
KINDS = ["gpt2", "llama", "gpt-neox", "mistral", "qwen3", "gemma2", "gemma3", "bloom", "gpt-oss", "mixtral"]


def scrambled(model):
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    return model.eval()


def hooked(**options):
    return scrambled(lens.HookedTransformer(lens.HookedTransformerConfig(**{**SIZES, "seed": 1, **options})))


def native(**options):
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    return scrambled(TransformerBridge.boot_native(TransformerBridgeConfig(**{**SIZES, "seed": 1, **options})))


def hugging_face(kind, implementation=None):
    if kind != "mixtral":
        from tests.model.zoo import build

        return build(kind, implementation)
    import transformers as hf

    from tests.model.zoo import GROUPED

    torch.manual_seed(7)
    config = hf.MixtralConfig(**GROUPED, num_local_experts=4)
    if implementation is not None:
        config._attn_implementation = implementation
    return hf.MixtralForCausalLM(config).eval()


def bridge(kind):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model = hugging_face(kind)
    return build_bridge_from_module(model, architecture=type(model).__name__, hf_config=model.config, tokenizer=None)


def cached(model, tokens, name, **options):
    """What the library's own cache holds under a hook name, layer by layer."""
    with torch.no_grad():
        cache = model.run_with_cache(tokens, **options)[1]
    return [cache[f"blocks.{layer}.attn.{name}"] for layer in range(model.cfg.n_layers)]


def eager_patterns(kind, tokens):
    with torch.no_grad():
        return hugging_face(kind, "eager")(tokens, output_attentions=True, use_cache=False).attentions


@needs_bridge
@pytest.mark.parametrize("kind", KINDS)
def test_a_bridge_scores_as_the_eager_model_it_was_built_from(kind):
    """Its hook points carry the patterns of every architecture that the bridge knows, soft caps and sinks included."""
    tokens, subject = repeated(), adapt(bridge(kind))
    assert subject.reading.name == "TransformerLens hook_pattern"
    assert worst_difference(subject, tokens, eager_patterns(kind, tokens)) < TOLERANCE


@needs_bridge
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_bridge_in_compatibility_mode_has_the_same_patterns(kind):
    """Folding norms into weights and centring them change no pattern."""
    tokens, model = repeated(), bridge(kind)
    model.enable_compatibility_mode(disable_warnings=True)
    assert worst_difference(model, tokens, eager_patterns(kind, tokens)) < TOLERANCE


@needs_bridge
def test_a_bridge_loaded_from_a_directory_is_measured(shipped, tmp_path):
    """boot_transformers gives a bridge like any other."""
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{token}": token for token in range(128)}, unk_token="w1"))
    place = shutil.copytree(shipped["llama"], tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", pad_token="w1", eos_token="w2").save_pretrained(place)
    model = TransformerBridge.boot_transformers(str(place), device="cpu")
    tokens = repeated()
    wanted = measure_heads(shipped["llama"], tokens=tokens).prefix_matching
    assert abs(measure_heads(model, tokens=tokens).prefix_matching - wanted).max() < TOLERANCE


@needs_native
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_native_bridge_is_measured(variant):
    """The library's own models, in each kind of attention that they have."""
    tokens, model = repeated(), native(**VARIANTS[variant])
    assert worst_difference(model, tokens, cached(model, tokens, "hook_pattern")) < TOLERANCE


@needs_hooked
@pytest.mark.parametrize("variant", VARIANTS | OLDER)
def test_a_hooked_transformer_is_measured(variant):
    """The older models, in each kind of attention that they have."""
    tokens, model = repeated(), hooked(**(VARIANTS | OLDER)[variant])
    subject = adapt(model)
    assert subject.reading.name == "TransformerLens hook_pattern"
    assert worst_difference(subject, tokens, cached(model, tokens, "hook_pattern")) < TOLERANCE


MAKERS = [
    pytest.param(lambda **options: native(**options), marks=needs_native, id="native"),
    pytest.param(lambda **options: hooked(**options), marks=needs_hooked, id="hooked"),
]


@pytest.mark.parametrize("make", MAKERS)
def test_patterns_are_the_softmax_of_queries_and_keys(make):
    """What the hook point carries is what a loop over queries and keys gives."""
    tokens, model = repeated(), make(normalization_type="LN")
    heads = [[part.transpose(1, 2) for part in cached(model, tokens, name)] for name in ("hook_q", "hook_k")]
    patterns = [softmax_by_loop(query, key, 8**-0.5) for query, key in zip(*heads, strict=True)]
    assert worst_difference(model, tokens, patterns) < TOLERANCE


@pytest.mark.parametrize("make", MAKERS)
def test_what_the_user_hooked_is_what_is_measured(make):
    """A pattern that a hook replaces counts as the hook left it, and measuring again after the hook is gone sees the model."""
    tokens, model = repeated(), make(normalization_type="LN")
    subject = adapt(model)
    before, unhooked = measure_heads(subject, tokens=tokens), condition(model)
    model.add_hook("blocks.0.attn.hook_pattern", lambda pattern, hook: torch.eye(pattern.shape[-1]).expand_as(pattern).clone())
    assert condition(model) != unhooked
    edited = measure_heads(subject, tokens=tokens)
    assert edited.previous_token[0].max() == 0 and before.previous_token[0].min() > 0
    if type(model).__name__ == "HookedTransformer" or not HOOKED:  # in version 3 no edit of a bridge's own pattern has an effect
        assert abs(edited.previous_token[1] - before.previous_token[1]).max() > 0
    model.reset_hooks()
    assert (measure_heads(subject, tokens=tokens).previous_token == before.previous_token).all()


@pytest.mark.parametrize("make", MAKERS)
def test_scores_edited_by_the_user_are_measured_as_edited(make):
    """Also what is hooked before the softmax."""
    tokens, model = repeated(), make(normalization_type="LN")
    model.add_hook("blocks.1.attn.hook_q", lambda query, hook: query * 0)
    uniform = torch.ones(24, 24, dtype=torch.float64).tril()
    uniform = (uniform / uniform.sum(1, keepdim=True)).expand(2, 4, 24, 24)
    first = cached(model, tokens, "hook_pattern")[0]
    assert worst_difference(model, tokens, [first, uniform]) < TOLERANCE


@pytest.mark.parametrize("make", MAKERS)
def test_a_pass_that_ends_early_leaves_nothing_behind(make):
    """The library's own cache is the same after it, and no hook of ours is left."""
    tokens, model = repeated(), make(normalization_type="LN")
    subject = adapt(model)
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    hooks = [list(part._forward_hooks) for part in model.modules()]
    assert subject.reading.can_stop
    subject.observe(tokens, lambda layer, reader: None)
    assert [list(part._forward_hooks) for part in model.modules()] == hooks
    with torch.no_grad():
        again, other = model.run_with_cache(tokens)
    assert torch.equal(again, logits) and all(torch.equal(other[name], cache[name]) for name in cache)


@needs_bridge
@pytest.mark.parametrize("fails", [False, True])
def test_a_bridge_in_training_mode_is_as_it_was(fails):
    """So are the modules of the model beneath, which the bridge does not all register, also after an exception."""
    model = bridge("gpt2").train()
    model.original_model.transformer.drop.eval()
    parts = [*model.modules(), *model.original_model.modules()]
    before = [part.training for part in parts]
    subject = adapt(model)

    def observer(layer, reader):
        if fails:
            raise KeyError("on purpose")

    if fails:
        with pytest.raises(ModelError, match="on purpose"):
            subject.observe(repeated(), observer)
    else:
        subject.observe(repeated(), observer)
    assert [part.training for part in parts] == before


@needs_bridge
def test_a_hook_on_the_model_beneath_a_bridge_is_a_change():
    """What is remembered of a bridge is forgotten when a module changes that the bridge does not register."""
    model = bridge("gpt2")
    before = condition(model)
    model.original_model.transformer.register_forward_hook(lambda *_: None)
    assert condition(model) != before


@needs_bridge
def test_left_padding_is_measured_as_the_bridge_runs_it():
    """The bridge counts positions from the first real token, and is read as it does."""
    tokens, model = repeated(), bridge("gpt2")
    real = torch.ones_like(tokens)
    real[1, :5] = 0
    patterns = cached(model, tokens, "hook_pattern", attention_mask=real)
    assert worst_difference(model, tokens, patterns, attention_mask=real) < TOLERANCE


@needs_hooked
def test_a_bidirectional_hooked_transformer_is_refused():
    """It has no in-context loss to speak of."""
    with pytest.raises(ModelError, match="HookedTransformer is not causal"):
        adapt(hooked(attention_dir="bidirectional"))


@needs_native
def test_a_bridge_is_left_as_it_was_by_ablations():
    """What is changed for the passes of an ablation is handed on to what a bridge wraps, and must be undone there."""
    bridge = native()
    before = measure_heads(bridge, n_sequences=2)
    measure_ablations(bridge, n_sequences=2)
    after = measure_heads(bridge, n_sequences=2)
    assert (after.prefix_matching == before.prefix_matching).all()
