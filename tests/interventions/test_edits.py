"""Interventions in a user's hands: what they refuse, what they leave as it was, and what is measured inside a block."""

import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from pytest_induction import assert_has_induction_head, assert_no_induction_head, load_model, measure_ablations, measure_heads
from pytest_induction.errors import ArgumentError, ModelError, UnsupportedModel
from pytest_induction.forward.calling import condition
from pytest_induction.interventions import (
    ablate,
    freeze_patterns,
    intervene,
    knock_out,
    leave_in,
    run_with,
    scale,
    smear,
    substitute_pattern,
)
from pytest_induction.interventions.passes import blocks_of
from pytest_induction.model.circuits import circuits_of
from pytest_induction.planted import induction_head
from tests.attention.test_torch_modules import KINDS
from tests.forward.test_as_found import everything, same
from tests.model.plain import Plain, by_hand

ROWS = torch.randint(1, 40, (3, 12), generator=torch.Generator().manual_seed(0))
EVERY = ["L0H0", "L0H1", "L1H0", "L1H1"]


def gpt2(implementation="sdpa", **options):
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 64, "vocab_size": 48, "bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(**sizes, initializer_range=0.3, attn_implementation=implementation, **options)
    return GPT2LMHeadModel(config).eval()


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=16, intermediate_size=16, vocab_size=48,
        initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def matching(model):
    """Prefix matching of the planted induction head."""
    return measure_heads(model, n_sequences=1).prefix_matching[1, 0]


# What is refused

WRONG = {
    "a head that is a number": (lambda: ablate(3), "heads are written 'L1H3', (1, 3), or several of these in a list, got 3"),
    "no heads at all": (lambda: ablate(None), "heads are written 'L1H3', (1, 3), or several of these in a list, got None"),
    "a list in a list": (lambda: ablate([["L0H0"]]), "a head is written 'L1H3' or (1, 3), got ['L0H0']"),
    "a head too many": (lambda: scale([(0, 1), (0, 2)], 2), "has no head L0H2: it has 2 layers of 2 heads"),
    "a layer too many": (lambda: leave_in("L2H0"), "has no head L2H0"),
    "a layer too few": (lambda: knock_out((-1, 0), [(1, 0)]), "has no head L-1H0"),
    "another replacement": (lambda: leave_in("L0H0", how="median"), "`how` must be one of zero, mean, resample, got 'median'"),
    "no factor": (lambda: scale("L0H0", "two"), "`by` must be a finite number, got 'two'"),
    "a factor that is none": (lambda: scale("L0H0", float("nan")), "`by` must be a finite number, got nan"),
    "no share": (lambda: smear("half"), "`share` must lie from 0 to 1, got 'half'"),
    "a share that is none": (lambda: smear(float("nan")), "`share` must lie from 0 to 1, got nan"),
    "text for a source": (
        lambda: ablate("L0H0", "mean", source="text"),
        "`source` must be token ids (rows, positions), got `str`",
    ),
    "numbers for a source": (
        lambda: freeze_patterns(ROWS / 2),
        "`source` must be token ids (rows, positions), got torch.float32",
    ),
    "one row without its axis": (lambda: freeze_patterns(ROWS[0]), "`source` must be token ids (rows, positions)"),
    "ids that there are not": (lambda: ablate("L0H0", "mean", source=ROWS + 40), "token ids must lie from 0 to 47, got 4"),
    "patterns of fewer rows": (lambda: freeze_patterns(ROWS[:2]), "shape of the tokens that the model is given, (3, 12) or one"),
    "patterns of fewer positions": (lambda: freeze_patterns(ROWS[:, :5]), "(3, 12) or one row, got (3, 5)"),
    "values of more rows": (lambda: ablate("L0H0", "resample", source=ROWS[[0, 1, 2, 0]]), "or one row, got (4, 12)"),
    "entries of three": (lambda: knock_out("L0H0", [(1, 0, 0)]), "`entries` must be pairs (query, key) or a boolean mask, got"),
    "entries between": (lambda: knock_out("L0H0", [(1, 0.5)]), "`entries` must be pairs (query, key) or a boolean mask, got"),
    "entries before all": (lambda: knock_out("L0H0", [(1, -1)]), "`entries` names positions outside the 12 of the tokens"),
    "entries in words": (lambda: knock_out("L0H0", "all"), "`entries` must be pairs (query, key) or a boolean mask, got `str`"),
    "entries of other rows": (lambda: knock_out("L0H0", torch.ones(2, 12, 12).bool()), "or (3, 12, 12) for the tokens of this"),
    "a pattern in words": (lambda: substitute_pattern("L0H0", [["a"]]), "`pattern` must be a name, or numbers"),
    "a pattern that is none": (
        lambda: substitute_pattern("L0H0", torch.full((12, 12), torch.nan)),
        "must be finite numbers, got NaN",
    ),
    "a pattern of fewer positions": (
        lambda: substitute_pattern("L0H0", torch.eye(5)),
        "`pattern` must be (12, 12) or (3, 12, 12)",
    ),
    "the function itself": (lambda: ablate, "takes interventions, such as `ablate('L1H3')`, got `function`"),
}


@pytest.fixture(scope="module")
def subject():
    return load_model(gpt2())


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_told_in_one_line(subject, wrong):
    """Which argument, what it must be, what it was; and the model is free again."""
    make, said = WRONG[wrong]
    with pytest.raises(ArgumentError) as caught:
        run_with(subject, ROWS, make())
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert subject.intervening is None and "forward" not in vars(subject.module)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (ROWS[0], "`tokens` must be token ids (rows, positions), got torch.int64 (12,)"),
        (ROWS.float(), "`tokens` must be token ids (rows, positions), got torch.float32"),
        (ROWS > 3, "`tokens` must be token ids (rows, positions), got torch.bool"),
        (ROWS[:0], "`tokens` must be token ids (rows, positions), got torch.int64 (0, 12)"),
        ("text", "`tokens` must be token ids (rows, positions), got `str`"),
        (ROWS + 40, "token ids must lie from 0 to 47, got 4"),
    ],
)
def test_tokens_that_are_none_are_told(subject, tokens, said):
    """Before the model is run: on some devices an id that it does not have ends the process."""
    with pytest.raises(ArgumentError) as caught:
        run_with(subject, tokens, ablate("L0H0"))
    assert said in str(caught.value)


def test_one_row_cannot_be_resampled_from_itself(subject):
    """The message says what can be done."""
    with pytest.raises(ArgumentError, match="needs two of them, or a `source` of other tokens"):
        run_with(subject, ROWS[:1], ablate("L0H0", "resample"))
    assert not torch.equal(run_with(subject, ROWS[:1], ablate("L0H0", "resample", source=ROWS[1:2])), subject.logits(ROWS[:1]))


def test_two_blocks_at_once_are_refused_whatever_the_model_is_called():
    """The module, what was loaded of it before, and what is compiled of it are the same model."""
    module = gpt2()
    before = load_model(module)
    with intervene(module, ablate("L0H0")) as changed:
        for same_one in (module, before, changed, torch.compile(module, backend="eager")):
            with pytest.raises(ModelError, match="already active"), intervene(same_one, smear(0.5)):
                pytest.fail("the block was entered")
        assert before.intervening is changed.intervening is not None
    assert before.intervening is None and changed.intervening is None
    with intervene(before, smear(0.5)):
        pass


def test_what_is_no_sequence_of_ids_is_refused():
    """Embeddings, one row without its axis, and tokens whose keys were cached."""
    module = gpt2()
    with torch.no_grad(), intervene(module, ablate("L0H0")):
        for given in ({"inputs_embeds": torch.randn(1, 5, 16)}, {"input_ids": ROWS[0]}):
            with pytest.raises(ModelError, match=r"needs token ids \(rows, positions\) as the input of GPT2LMHeadModel"):
                module(**given)
        with pytest.raises(ModelError, match="needs whole sequences: call GPT2LMHeadModel with use_cache=False"):
            module.generate(ROWS[:1], max_new_tokens=2, do_sample=False, pad_token_id=0)
        cache = module.transformer(ROWS[:, :6]).past_key_values
        with pytest.raises(ModelError, match="needs whole sequences"):
            module(ROWS[:, 6:], past_key_values=cache)


class OtherwiseWhereLong(nn.Module):
    """Attention by the function in a verification, and by hand in a longer pass."""

    def __init__(self, longest):
        super().__init__()
        self.inner = Plain(lambda *parts: by_hand(*parts) if parts[0].shape[2] > longest else self.fused(*parts))

    @staticmethod
    def fused(*parts):
        return F.scaled_dot_product_attention(*parts, is_causal=True)

    def forward(self, tokens):
        return self.inner(tokens)


def test_a_layer_that_is_not_seen_is_not_silently_left_as_it_was():
    """Heads would seem to matter for nothing."""
    subject, long = load_model(OtherwiseWhereLong(60)), ROWS.repeat(1, 6)
    assert subject.reading.name == "sdpa"
    assert not torch.equal(run_with(subject, ROWS, ablate("L0H0")), subject.logits(ROWS))
    for change in (ablate("L0H0"), ablate("L0H0", "mean"), freeze_patterns()):
        with pytest.raises(UnsupportedModel, match="2 attention layers were expected in this forward pass, 0 were seen by sdpa"):
            run_with(subject, long, change)


def without_a_mask(module, query, key, value, attention_mask, scaling=None, **options):
    """Attention that a user registered: causal by itself, and asked for no mask."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    future = torch.ones(scores.shape[-2:]).triu(1).bool()
    return (scores.masked_fill(future, -torch.inf).softmax(-1) @ value).transpose(1, 2).contiguous(), None


def test_a_function_that_is_given_no_mask_is_given_none_of_ours():
    """It may take True for 1: what it can be made to do is done, and the rest is refused by name."""
    if not hasattr(AttentionInterface, "get_interface"):
        pytest.skip("this transformers looks its attention functions up in another way")
    AttentionInterface.register("induction_test", without_a_mask)
    subject, plain = load_model(gpt2("induction_test")), load_model(gpt2())
    assert subject.reading.name == "transformers attention interface"
    for change in (ablate("L0H1", "mean"), smear(0.4), freeze_patterns(ROWS.flip(1))):
        torch.testing.assert_close(run_with(subject, ROWS, change), run_with(plain, ROWS, change), atol=1e-4, rtol=1e-4)
    with pytest.raises(UnsupportedModel, match="that is given no mask cannot be made to leave entries out"):
        run_with(subject, ROWS, knock_out("L0H1", [(5, 2)]))


# The model as it was


class Failing(Plain):
    """Fails after its first layer, when it is told to."""

    fails = False

    def forward(self, tokens):
        if self.fails:
            x = self.embed(tokens)
            self.attend(*(part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.layers[0](x).chunk(3, -1)))
            raise ZeroDivisionError
        return super().forward(tokens)


def state(module):
    attention = F.scaled_dot_product_attention, F.multi_head_attention_forward, torch.backends.mha.get_fastpath_enabled()
    return condition(module), attention, [*vars(module)], torch.get_rng_state().tolist()


CHANGES = [ablate("L0H0"), ablate("L0H0", "mean"), knock_out("L0H1", [(5, 2)]), freeze_patterns(), smear(0.2)]


@pytest.mark.parametrize("change", CHANGES)
def test_the_model_is_as_it_was_when_its_own_pass_breaks_off(change):
    """Hooks, forwards, attention functions, modes and random state, inside the block already."""
    model = Failing().train()
    model.fails = False
    subject = load_model(model)
    clean, before, kept = subject.logits(ROWS), state(model), everything(model)
    with intervene(subject, change):
        inside = state(model)
        model.fails = True
        with pytest.raises(ZeroDivisionError):
            model(ROWS)
        with pytest.raises(ModelError, match="ZeroDivisionError"):
            subject.logits(ROWS)
        model.fails = False
        assert state(model) == inside
        assert not torch.equal(subject.logits(ROWS), clean) or isinstance(change, type(freeze_patterns()))
    assert state(model) == before and same(everything(model), kept)
    assert torch.equal(subject.logits(ROWS), clean)


def broken(subject, change):
    with intervene(subject, change) as changed:
        changed.logits(ROWS)
        raise KeyboardInterrupt


def test_a_forward_and_hooks_of_ones_own_are_kept_and_called():
    """Also where the block is left by force."""
    model, calls = Plain().eval(), []
    own = model.forward

    def counting(tokens):
        calls.append("forward")
        return own(tokens)

    model.forward = counting
    handle = model.register_forward_hook(lambda *_: calls.append("hook"))
    subject = load_model(model)
    with pytest.raises(KeyboardInterrupt):
        broken(subject, ablate("L0H0"))
    assert vars(model)["forward"] is counting
    assert [*model._forward_hooks] == [handle.id] and not model._forward_pre_hooks
    with intervene(model, ablate("L0H0", "mean")):
        calls.clear()
        model(ROWS)
    assert calls == ["forward", "forward", "hook"]  # the clean pass is no call of the user's


@pytest.mark.parametrize(
    "kind", ["weights asked for", "encoder layers", "decoder layers", "gpt2", "gpt2 eager", "llama", "patterns by hand"]
)
def test_nothing_changes_nothing_bit_by_bit(kind):
    """Also where a model runs through one fast call for a whole layer, or is asked for its weights."""
    others = {"gpt2": gpt2, "gpt2 eager": lambda: gpt2("eager"), "llama": llama, "patterns by hand": lambda: Plain(by_hand)}
    model = (KINDS | others)[kind]().eval()
    subject = load_model(model)
    clean = subject.logits(ROWS)
    for nothing in ((), (ablate([]),), (leave_in("L0H0", among=["L0H0"]),), (ablate([], "mean"), scale([], 0))):
        assert torch.equal(run_with(subject, ROWS, *nothing), clean)
    torch.testing.assert_close(run_with(subject, ROWS, scale("L1H0", 1)), clean, atol=1e-4, rtol=1e-4)
    every = [(layer, head) for layer, count in enumerate(subject.reading.heads) for head in range(count)]
    assert float((run_with(subject, ROWS, ablate(every)) - clean).abs().max()) > 1e-2
    assert torch.equal(subject.logits(ROWS), clean)


@pytest.mark.parametrize("kind", ["weights asked for", "weights of each head asked for"])
def test_layers_without_a_change_are_run_as_the_model_runs_them(kind, monkeypatch):
    """What torch's module gives in a layer before the change is the same bit by bit, its weights too, and is measured once."""
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)  # what it gives by one fast call rounds otherwise
    torch.manual_seed(0)
    model, gave = KINDS[kind]().eval(), []
    subject, tokens = load_model(model), ROWS.repeat(1, 2)
    clean = measure_heads(subject, tokens=tokens).prefix_matching
    handle = model.body[0].register_forward_hook(lambda part, inputs, output: gave.extend(output))
    subject.logits(ROWS)
    with intervene(subject, ablate("L1H0")):
        subject.logits(ROWS)
    assert len(gave) == 4 and torch.equal(gave[0], gave[2]) and torch.equal(gave[1], gave[3])
    handle.remove()
    torch.manual_seed(0)
    twin = load_model(KINDS["weights not asked for"]().eval())
    found = []
    for each in (subject, twin):
        with intervene(each, ablate("L0H0")) as changed:
            found.append(measure_heads(changed, tokens=tokens).prefix_matching)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose(found[0][0], clean[0], atol=1e-5)
    assert np.abs(found[0][1] - clean[1]).max() > 1e-3


# What is measured inside


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_what_is_measured_is_of_its_time(how):
    """Before, inside and after, whatever the model is called: a clean pass is never taken for the one that it is made for."""
    module = induction_head()
    before = load_model(module)
    assert matching(before) > 0.99
    with intervene(module, ablate("L0H0", how)) as changed:
        for which in (changed, module, before) if how == "mean" else (changed,):
            assert matching(which) < 0.05
    assert matching(before) > 0.99
    with intervene(module, ablate("L0H0", how), freeze_patterns()) as changed:
        assert matching(changed) > 0.99


@pytest.mark.exhaustive
def test_a_verdict_is_of_its_time():
    """What was found out before is not remembered inside, nor what was found out in another block."""
    subject = load_model(induction_head())
    assert_has_induction_head(subject)
    with intervene(subject, ablate("L0H0", "mean")) as changed:
        assert_no_induction_head(changed)
    with intervene(subject, ablate("L0H1", "mean")) as changed:
        assert_has_induction_head(changed)


def test_patterns_by_hand_are_measured_as_they_are_changed():
    """Where steps are taken on patterns, around the measurement."""
    subject = load_model(Plain(by_hand))
    assert subject.reading.name == "softmax"
    tokens = ROWS.repeat(1, 2)
    for change in (substitute_pattern("L1H0", "induction"), freeze_patterns(tokens.flip(1)), ablate("L0H0", "mean")):
        clean = measure_heads(subject, tokens=tokens).prefix_matching
        with intervene(subject, change) as changed:
            assert np.abs(measure_heads(changed, tokens=tokens).prefix_matching - clean).max() > 1e-3
        np.testing.assert_array_equal(measure_heads(subject, tokens=tokens).prefix_matching, clean)
    with intervene(subject, substitute_pattern("L1H0", "induction")) as changed:
        assert measure_heads(changed, tokens=tokens).prefix_matching[1, 0] == pytest.approx(1, abs=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_both_ways_of_transformers_measure_what_is_changed(implementation):
    """A substituted pattern has no queries and keys of its own, and what it moves shows in the layer after."""
    subject, tokens = load_model(gpt2(implementation)), ROWS.repeat(1, 2)
    for change in (ablate("L0H0", "mean"), ablate("L0H1", "resample"), substitute_pattern("L0H0", "previous token")):
        clean = measure_heads(subject, tokens=tokens).prefix_matching
        with intervene(subject, change) as changed:
            moved = np.abs(measure_heads(changed, tokens=tokens).prefix_matching - clean)
        assert moved[1].max() > 1e-3
    with intervene(subject, ablate("L0H0", "mean"), freeze_patterns()) as changed:
        np.testing.assert_allclose(measure_heads(changed, tokens=tokens).prefix_matching, clean, atol=1e-5)


def test_ablations_can_be_measured_inside():
    """Of a model whose patterns are frozen they are the pattern-preserving ones; of one without the head, nothing."""
    module = induction_head()
    expected = measure_ablations(module, heads=["L0H0", "L1H0"], pattern_preserving=True, n_sequences=1).effect
    assert blocks_of(load_model(module)).any
    with intervene(module, freeze_patterns()) as frozen:
        assert not blocks_of(frozen).any  # layers are counted from the first
        inside = measure_ablations(frozen, heads=["L0H0", "L1H0"], n_sequences=1)
    np.testing.assert_allclose(inside.effect, expected, atol=1e-3)
    assert expected[0, 0] == pytest.approx(0, abs=1e-3) and expected[1, 0] > 4
    with intervene(module, ablate("L0H0", "mean")) as changed:
        assert np.abs(measure_ablations(changed, heads="L1H0", n_sequences=1).effect[1, 0]) < 1e-3


def test_weights_are_read_as_they_are():
    """No intervention changes them, and what is checked of them is checked on the model as it is."""
    module = gpt2()
    before = circuits_of(load_model(module))
    with intervene(module, ablate("L0H0"), smear(0.3)) as changed:
        inside = circuits_of(changed)
        assert not torch.equal(changed.logits(ROWS), load_model(gpt2()).logits(ROWS))
    assert len(inside.layers) == len(before.layers) == 2
    torch.testing.assert_close(inside.layers[1].values, before.layers[1].values, atol=0, rtol=0)


# How the model is called


def test_ids_are_told_from_what_only_looks_like_them():
    """By name and in any order: a pattern that depends on the tokens is that of the tokens."""
    module = gpt2()
    rows = ROWS.repeat(1, 2)
    change, mask = substitute_pattern("L0H1", "induction"), torch.ones_like(rows)
    expected = run_with(module, rows, change)
    assert float((run_with(module, mask, change) - expected).abs().max()) > 0.1
    places = torch.arange(24).expand(3, -1)
    calls = [
        {"input_ids": rows},
        {"attention_mask": mask, "input_ids": rows},
        {"labels": rows.flip(1), "position_ids": places, "input_ids": rows},
    ]
    with torch.no_grad(), intervene(module, change):
        for options in calls:
            torch.testing.assert_close(module(**options).logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(module(rows, attention_mask=mask).logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(module.lm_head(module.transformer(rows)[0]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_stays_padding(implementation):
    """Rows of several lengths under an attention mask give what each gives alone, under every change that does not mix rows."""
    module, mask = gpt2(implementation), torch.ones_like(ROWS)
    subject = load_model(module)
    mask[1, 8:] = mask[2, 5:] = 0
    closed = torch.zeros(12, 12, dtype=torch.bool)
    closed[4] = closed[3, 1] = True
    for change in (ablate("L0H1"), scale("L1H0", -1), smear(0.5), knock_out(["L0H0", "L1H1"], closed), freeze_patterns()):
        with torch.no_grad(), intervene(subject, ablate("L0H0"), change):
            padded = module(ROWS, attention_mask=mask).logits
        assert torch.isfinite(padded).all()
        for row, length in enumerate((12, 8, 5)):
            alone = change if not hasattr(change, "entries") else knock_out(["L0H0", "L1H1"], closed[:length, :length])
            expected = run_with(subject, ROWS[row : row + 1, :length], ablate("L0H0"), alone)[0]
            torch.testing.assert_close(padded[row, :length], expected, atol=1e-4, rtol=1e-4)


def test_text_is_generated_under_the_intervention():
    """Without a cache every step is a whole pass."""
    module, ids, change = gpt2(), ROWS[:1, :4], ablate(EVERY)
    options = {"max_new_tokens": 4, "do_sample": False, "use_cache": False, "pad_token_id": 0}
    clean = module.generate(ids, **options)
    with intervene(module, change):
        found = module.generate(ids, **options)
    expected = ids
    for _ in range(4):
        expected = torch.cat([expected, run_with(module, expected, change)[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, expected) and not torch.equal(found, clean)
    assert torch.equal(module.generate(ids, **options), clean)


def test_every_thread_is_intervened_on():
    """A pass in one thread while another is in the middle of one, with a clean pass before each."""
    module = gpt2()
    expected, clean, found = run_with(module, ROWS, ablate("L0H0", "mean")), load_model(module).logits(ROWS), []
    assert not torch.equal(expected, clean)
    inside = threading.Event()

    def held(part, inputs):
        if threading.current_thread().name == "first":
            inside.set()
            time.sleep(0.05)

    handle = module.transformer.h[1].register_forward_pre_hook(held)

    def call():
        with torch.no_grad():
            found.append(module(ROWS).logits)

    with intervene(module, ablate("L0H0", "mean")):
        threads = [threading.Thread(target=call, name=name) for name in ("first", "second", "third")]
        threads[0].start()
        assert inside.wait(5)
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join()
    handle.remove()
    assert len(found) == 3
    for logits in found:
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_what_is_changed():
    """By differences of the loss under the same intervention; what stands in place of a head sends none back."""
    torch.manual_seed(0)
    model = Plain().double()

    def loss():
        return F.cross_entropy(model(ROWS[:, :-1]).flatten(0, 1), ROWS[:, 1:].flatten())

    with intervene(model, scale("L0H1", 0.5), knock_out("L1H0", [(5, 2), (7, 3)]), ablate("L1H1"), smear(0.7)):
        loss().backward()
        for layer, place in ((0, (40, 3)), (1, (35, 5)), (0, (2, 2)), (1, (17, 4))):
            weight, losses = model.layers[layer].weight, []
            for step in (1e-4, -2e-4, 1e-4):
                with torch.no_grad():
                    weight[place] += step
                    losses.append(loss().item())
            slope = (losses[0] - losses[1]) / 2e-4
            assert abs(slope) > 1e-6
            assert weight.grad[place].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)
    assert float(model.layers[1].weight.grad[40:48].abs().max()) == 0  # the values of the ablated head
    model.zero_grad()
    with intervene(model, ablate("L1H1", "mean")):
        loss().backward()
    assert float(model.layers[1].weight.grad[40:48].abs().max()) == 0


def test_a_compiled_model_is_intervened_on_and_runs_compiled_again():
    """The compiled module and the one in it, however the block names it."""
    model = Plain().eval()
    expected, clean = run_with(model, ROWS, ablate("L0H0")), load_model(model).logits(ROWS)
    runs = []

    def backend(graph, inputs):
        def run(*given):
            runs.append(1)
            return graph.forward(*given)

        return run

    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        assert torch.equal(compiled(ROWS), clean) and runs
        for named in (model, compiled):
            runs.clear()
            with intervene(named, ablate("L0H0")):
                assert torch.equal(compiled(ROWS), expected) and torch.equal(model(ROWS), expected)
            assert not runs
            assert torch.equal(compiled(ROWS), clean) and runs
    torch._dynamo.reset()


def test_a_model_that_is_trained_draws_what_it_would_have_drawn():
    """The clean pass has the same dropout as the changed one, and leaves the random state alone; modes stay."""
    model = gpt2(resid_pdrop=0.2, embd_pdrop=0.3, attn_pdrop=0.0).train()
    torch.manual_seed(5)
    clean, after = model(ROWS).logits, torch.get_rng_state()
    for nothing in (freeze_patterns(), ablate([], "mean")):
        with intervene(model, nothing):
            assert model.training
            torch.manual_seed(5)
            torch.testing.assert_close(model(ROWS).logits, clean, atol=1e-5, rtol=1e-5)
        assert torch.equal(torch.get_rng_state(), after)
    with intervene(model, ablate("L0H0", "mean")):
        torch.manual_seed(5)
        assert float((model(ROWS).logits - clean).detach().abs().max()) > 1e-2
        assert torch.equal(torch.get_rng_state(), after)
    assert all(part.training for part in model.modules())
