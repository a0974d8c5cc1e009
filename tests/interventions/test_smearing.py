"""Models whose keys are smeared in learnable shares: what they compute, against models that do it themselves, and how they train."""

import copy
import itertools
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import load_model, measure_ablations, measure_heads
from pytest_induction.attention.edits import EditingCapture
from pytest_induction.attention.errors import BackendUnavailable
from pytest_induction.errors import ArgumentError, ModelError, UnsupportedModel
from pytest_induction.interventions import ablate, intervene, run_with, smear
from pytest_induction.interventions.smearing import smear_keys
from pytest_induction.model.factories import function_named
from pytest_induction.planted import duplicate_token_head, induction_head
from tests.model import zoo
from tests.model.plain import Plain, by_hand, unreadable

FIXTURES = Path(__file__).parents[2] / "fixtures"
AttentionOnly, Config = (function_named(f"{FIXTURES / 'attention_only.py'}:{name}") for name in ("AttentionOnly", "Config"))


def tokens_of(rows=3, positions=40, d_vocab=60, seed=5):
    return torch.randint(4, d_vocab, (rows, positions), generator=torch.Generator().manual_seed(seed))


def pair(original):
    """The fixtures' model that smears its own keys, and the same weights without, wrapped."""
    plain = AttentionOnly(replace(original.config, smeared=False))
    plain.load_state_dict({name: weight for name, weight in original.state_dict().items() if not name.endswith("smear")})
    wrapped = smear_keys(plain.to(original.embed.weight.dtype).eval())
    with torch.no_grad():
        for alpha, layer in zip(wrapped.alphas, original.layers, strict=True):
            alpha.copy_(layer.smear)
    return original, wrapped


def made(n_layers=2, dtype=torch.float64):
    torch.manual_seed(3)
    original = AttentionOnly(Config(n_layers=n_layers, d_vocab=60, n_ctx=64, smeared=True)).to(dtype).eval()
    with torch.no_grad():
        for layer in original.layers:
            layer.smear.copy_(torch.linspace(-2, 2, 4))
    return pair(original)


@pytest.fixture(scope="module")
def shipped():
    return pair(function_named(f"{FIXTURES / 'attention_only.py'}:one_layer_smeared")())


class Head(nn.Module):
    """One head, which may smear its own keys."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(16, 24)
        self.share = 1.0

    def forward(self, x):
        query, key, value = self.project(x)[:, None].chunk(3, -1)
        key = torch.cat([key[:, :, :1], self.share * key[:, :, 1:] + (1 - self.share) * key[:, :, :-1]], dim=2)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)[:, 0]


class OneByOne(nn.Module):
    """One layer whose heads are modules of a list."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(60, 16)
        self.heads = nn.ModuleList(Head() for _ in range(2))
        self.out = nn.Linear(16, 60)

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.out(x + torch.cat([head(x) for head in self.heads], dim=-1))


ATTEND = F.scaled_dot_product_attention  # a name of the model's own
MEMORY = torch.randn(2, 2, 1, 3, 8, generator=torch.Generator().manual_seed(0))


def alias(query, key, value):
    return ATTEND(query, key, value, is_causal=True)


def beside_another(query, key, value, attend=None):
    """Attention to the positions, after attention to what is always there."""
    attend = F.scaled_dot_product_attention if attend is None else attend
    query = query + attend(query, *(part.transpose(0, 1).expand(len(query), -1, -1, -1) for part in MEMORY))
    return attend(query, key, value, is_causal=True)


def alias_beside_another(query, key, value):
    return beside_another(query, key, value, ATTEND)


def scores_of(model):
    """Scores of heads, by what was done: nothing, smeared keys as a part of the model, under an intervention, and both."""
    found = {"nothing": measure_heads(model, n_sequences=2)}
    with intervene(model, smear(0.5)) as changed:
        found["intervene"] = measure_heads(changed, n_sequences=2)
    wrapped = smear_keys(model, share=0.2)
    found["smear_keys"] = measure_heads(wrapped, n_sequences=2)
    with intervene(wrapped, ablate("L0H1")) as changed:
        found["both"] = measure_heads(changed, n_sequences=2)
    return {name: each.previous_token for name, each in found.items()}


class DoesNothing:
    """A backend by which no step is ever taken."""

    @contextmanager
    def apply_edits(self, tokens, steps, *, first=0):
        yield EditingCapture(steps, layers=(), groups=None, first=first)


class TestComputes:
    @pytest.mark.parametrize(("share", "successor", "same"), [(0.0, 1.0, 0.0), (0.25, 1.0, 0.0), (1.0, 0.0, 1.0)])
    def test_a_head_that_finds_its_token_finds_the_one_after_it(self, share, successor, same):
        """A planted duplicate-token head of a single layer, whose keys tell which token was before, is an induction head."""
        planted = duplicate_token_head(n_layers=1, strength=16.0)
        found = measure_heads(smear_keys(planted, share=share, learnable=False), n_sequences=4)
        assert found.prefix_matching[0, 0] == pytest.approx(successor, abs=1e-3)
        assert found.duplicate_token[0, 0] == pytest.approx(same, abs=1e-3)

    def test_a_trained_model_without_its_own_smear_is_what_it_was(self, shipped):
        """The induction heads of the shipped one-layer model, and nothing of them without the smear."""
        original, wrapped = shipped
        tokens = tokens_of(d_vocab=128)
        assert torch.equal(wrapped(tokens), original(tokens))
        scores, expected, without = (measure_heads(each, n_sequences=6) for each in (wrapped, original, wrapped.module))
        assert (scores.prefix_matching == expected.prefix_matching).all()
        assert scores.prefix_matching.max() > 0.7
        assert without.prefix_matching.max() < 0.1

    def test_every_layer_and_head_has_a_share_of_its_own(self):
        original, wrapped = made()
        assert [share.tolist() for share in wrapped.shares] == [pytest.approx([0.1192, 0.3392, 0.6608, 0.8808], abs=1e-4)] * 2
        torch.testing.assert_close(wrapped(tokens_of()), original(tokens_of()), rtol=0, atol=1e-12)
        with torch.no_grad():
            wrapped.alphas[1][3] += 0.1
        assert not torch.allclose(wrapped(tokens_of()), original(tokens_of()), atol=1e-6)

    def test_all_of_each_key_leaves_the_model_as_it_is(self):
        planted = induction_head()
        tokens = tokens_of()
        torch.testing.assert_close(smear_keys(planted, share=1, learnable=False)(tokens), planted(tokens))
        assert not torch.allclose(smear_keys(planted, share=0.9, learnable=False)(tokens), planted(tokens), atol=0.1)

    def test_heads_that_share_a_key_share_its_alpha_however_it_is_handed_on(self):
        """Under a mask, transformers repeats keys for their heads before they are multiplied."""
        model = zoo.build("llama")
        wrapped = smear_keys(model, share=0.3)
        assert [len(alpha) for alpha in wrapped.alphas] == [2, 2, 2]
        with torch.no_grad():
            wrapped.alphas[0].copy_(torch.tensor([-1.0, 2.0]))
        tokens = tokens_of(2, 20)
        mask = torch.ones_like(tokens)
        mask[0, -4:] = 0
        plain, masked = wrapped(tokens).logits, wrapped(input_ids=tokens, attention_mask=mask).logits
        assert torch.allclose(plain[0, :-4], masked[0, :-4], atol=1e-5) and torch.allclose(plain[1], masked[1], atol=1e-5)

    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    def test_keys_are_mixed_after_their_rotation(self, implementation, monkeypatch):
        """The same by hand: what transformers rotates is smeared right after."""
        from transformers.models.llama import modeling_llama

        model, tokens = zoo.build("llama", implementation), tokens_of(2, 20)
        found = smear_keys(model, share=0.3)(tokens).logits
        rotate = modeling_llama.apply_rotary_pos_emb

        def smearing(*args, **options):
            query, key = rotate(*args, **options)
            return query, torch.cat([key[:, :, :1], 0.3 * key[:, :, 1:] + 0.7 * key[:, :, :-1]], dim=2)

        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", smearing)
        torch.testing.assert_close(found, model(tokens).logits, rtol=1e-4, atol=1e-5)

    def test_heads_that_attend_one_by_one_have_their_own(self):
        torch.manual_seed(0)
        model = OneByOne().eval()
        wrapped = smear_keys(model)
        assert [len(alpha) for alpha in wrapped.alphas] == [2]
        with torch.no_grad():
            wrapped.alphas[0].copy_(torch.tensor([-1.0, 1.0]))
        found = wrapped(tokens_of())
        for head, share in zip(model.heads, torch.sigmoid(torch.tensor([-1.0, 1.0])), strict=True):
            head.share = share
        torch.testing.assert_close(found, model(tokens_of()))

    def test_dropout_is_as_the_module_has_it(self):
        def attend(query, key, value):
            return F.scaled_dot_product_attention(
                query, key, value, dropout_p=0.4 if torch.is_grad_enabled() else 0.0, is_causal=True
            )

        def smearing(query, key, value):
            return attend(query, torch.cat([key[:, :, :1], 0.3 * key[:, :, 1:] + 0.7 * key[:, :, :-1]], dim=2), value)

        torch.manual_seed(0)
        model = Plain(attend)
        by_itself = Plain(smearing)
        by_itself.load_state_dict(model.state_dict())
        wrapped, logits = smear_keys(model, share=0.3), []
        for each in (wrapped, by_itself):
            torch.manual_seed(1)
            logits.append(each(tokens_of(d_vocab=40)))
        torch.testing.assert_close(*logits)
        assert not torch.allclose(logits[0], wrapped(tokens_of(d_vocab=40)))

    def test_under_autocast_it_is_what_the_model_itself_would_be(self):
        original, wrapped = made(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = wrapped(tokens_of()), original(tokens_of())
        assert found.dtype == expected.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


class TestTrains:
    def test_gradients_are_those_of_a_model_that_smears_its_keys(self):
        original, wrapped = made()
        tokens = tokens_of()
        for model in (original, wrapped):
            F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        for alpha, layer in zip(wrapped.alphas, original.layers, strict=True):
            torch.testing.assert_close(alpha.grad, layer.smear.grad)
            assert alpha.grad.abs().min() > 0
        for name, weight in wrapped.module.named_parameters():
            torch.testing.assert_close(weight.grad, original.get_parameter(name).grad)

    def test_gradients_are_finite_differences(self):
        _, wrapped = made(n_layers=1)
        tokens, step = tokens_of(), 1e-5

        def loss():
            return F.cross_entropy(wrapped(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

        loss().backward()
        alpha = wrapped.alphas[0]
        for head in range(4):
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    alpha[head] += sign * step
                    losses.append(float(loss()))
                    alpha[head] -= sign * step
            assert float(alpha.grad[head]) == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-4)

    @pytest.mark.exhaustive
    def test_one_layer_learns_induction(self):
        """The fixtures' recipe for 130 steps: the same training without smeared keys never gets above 0.1."""
        batches = function_named(f"{FIXTURES / 'corpora.py'}:Repetitive")().batches(32, 0)
        torch.manual_seed(0)
        model = smear_keys(AttentionOnly(Config(n_layers=1, d_vocab=128, n_ctx=64)))
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        for step, rows in enumerate(itertools.islice(batches, 130)):
            loss = F.cross_entropy(model(rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
            optimiser.param_groups[0]["lr"] = 1e-2 * min(1.0, (step + 1) / 100)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
        assert measure_heads(model, n_sequences=6).prefix_matching.max() > 0.4
        assert measure_heads(model.module, n_sequences=6).prefix_matching.max() < 0.1
        assert (model.shares[0] < 0.5).any()

    def test_the_module_is_shared_and_runs_as_ever_by_itself(self):
        planted = induction_head()
        before = planted(tokens_of())
        wrapped = smear_keys(planted)
        assert wrapped.module is planted
        assert {id(weight) for weight in planted.parameters()} < {id(weight) for weight in wrapped.parameters()}
        assert len(list(wrapped.parameters())) == len(list(planted.parameters())) + 2
        wrapped(tokens_of())
        assert torch.equal(planted(tokens_of()), before)

    def test_a_share_that_is_not_learnable_is_no_parameter(self):
        wrapped = smear_keys(induction_head(), share=0.2, learnable=False)
        assert len(wrapped.alphas) == 0 and "share" in wrapped.state_dict()
        assert [share.tolist() for share in wrapped.shares] == [[pytest.approx(0.2)] * 4] * 2

    def test_the_share_is_what_it_starts_with(self):
        assert torch.cat(smear_keys(induction_head(), share=0.2).shares).tolist() == pytest.approx([0.2] * 8)


class TestIsAModule:
    def test_its_state_goes_out_and_in(self):
        _, wrapped = made()
        other = smear_keys(AttentionOnly(Config(n_layers=2, d_vocab=60, n_ctx=64)).double())
        assert not torch.allclose(other(tokens_of()), wrapped(tokens_of()))
        other.load_state_dict(wrapped.state_dict())
        assert torch.equal(other(tokens_of()), wrapped(tokens_of()))

    def test_a_deep_copy_is_another_model(self):
        _, wrapped = made()
        twin, before = copy.deepcopy(wrapped), wrapped(tokens_of())
        assert torch.equal(twin(tokens_of()), before)
        with torch.no_grad():
            twin.alphas[0].zero_()
            twin.module.embed.weight.mul_(2)
        assert torch.equal(wrapped(tokens_of()), before)
        assert not torch.allclose(twin(tokens_of()), before)

    def test_it_moves_to_another_dtype(self):
        _, wrapped = made(dtype=torch.float32)
        before = wrapped(tokens_of())
        assert wrapped.double()(tokens_of()).dtype == wrapped.alphas[0].dtype == torch.float64
        torch.testing.assert_close(wrapped(tokens_of()).float(), before, rtol=0, atol=1e-4)

    def test_it_is_measured_as_what_it_is(self):
        original, wrapped = made(dtype=torch.float32)
        one, other = load_model(wrapped), load_model(original)
        assert one.space == other.space and one.space.bos_id == 0 and one.space.n_ctx == 64
        assert (one.n_layers, one.n_heads, one.notes) == (other.n_layers, other.n_heads, other.notes)
        torch.testing.assert_close(run_with(one, tokens_of(), ablate("L0H3")), run_with(other, tokens_of(), ablate("L0H3")))
        effects = [measure_ablations(each, n_sequences=2).effect for each in (one, other)]
        assert effects[0] == pytest.approx(effects[1], abs=1e-5)

    def test_what_watches_it_is_told_by_itself_that_it_cannot(self):
        """Another way to watch may serve then."""

        def observer(layer, reader):
            raise BackendUnavailable("not like this")

        subject = load_model(smear_keys(Plain().eval()))
        with pytest.raises(BackendUnavailable, match=r"^not like this$"):
            subject.backend.run(tokens_of(d_vocab=40), None, observer, logits=True)

    @pytest.mark.parametrize("attend", [alias, alias_beside_another], ids=["alone", "beside another"])
    def test_under_another_name_of_the_attention_function_all_is_the_same(self, attend):
        """`from torch.nn.functional import scaled_dot_product_attention`: smeared as a part of the model, and under `intervene`."""
        by_name = {alias: Plain(), alias_beside_another: Plain(beside_another)}[attend]
        by_alias = Plain(attend)
        by_alias.load_state_dict(by_name.state_dict())
        found = [scores_of(model.eval()) for model in (by_name, by_alias)]
        for name, expected in found[0].items():
            np.testing.assert_allclose(found[1][name], expected, atol=1e-6, err_msg=name)
        plain, *smeared = found[0].values()
        assert all(np.abs(each - plain).max() > 1e-3 for each in smeared)

    def test_a_pass_that_ends_early_is_none_where_a_layer_was_not_smeared(self, monkeypatch):
        """It ends at the last layer that is measured, whether or not that was smeared."""
        wrapped = smear_keys(Plain().eval(), share=0.3)
        subject = load_model(wrapped)
        assert subject.backend.can_stop
        monkeypatch.setattr(wrapped, "_way", DoesNothing())
        with pytest.raises(ModelError, match="those of 0 of 2 layers were"):
            measure_heads(subject, n_sequences=2)

    def test_a_pass_that_ends_early_is_none_where_a_layer_took_no_step(self, monkeypatch):
        subject = load_model(Plain().eval())
        assert subject.backend.can_stop
        with intervene(subject, smear(0.3)) as changed:
            monkeypatch.setattr(subject.backend, "apply_edits", DoesNothing().apply_edits)
            with pytest.raises(ModelError, match="2 attention layers were expected in this forward pass, 0 were seen"):
                measure_heads(changed, n_sequences=2)

    def test_what_it_does_not_have_it_does_not_tell(self):
        wrapped = smear_keys(Plain().eval())
        with pytest.raises(AttributeError, match="config"):
            _ = wrapped.config
        with pytest.raises(AttributeError, match="layers"):
            _ = wrapped.layers  # of the module, and none that a measurement asks for
        assert smear_keys(zoo.build("gpt2")).config.n_layer == 3


def masked(lowest=-torch.inf, windowed=None):
    """Attention by hand, whose mask is this number; in a window of so many positions."""

    def attend(query, key, value):
        scores = query @ key.transpose(-1, -2) / 8**0.5
        allowed = torch.ones(scores.shape[-2:]).tril().bool()
        if windowed is not None:
            allowed &= torch.ones(scores.shape[-2:]).triu(1 - windowed).bool()
        return scores.masked_fill(~allowed, lowest).softmax(-1) @ value

    return attend


class TestWherePatternsAreMade:
    """Of models that compute patterns themselves the scores are mixed: the same as keys."""

    @pytest.mark.parametrize("lowest", [-torch.inf, torch.finfo(torch.float32).min, -1e9, -1e4])
    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_scores_are_mixed_as_keys_are(self, lowest, share):
        """Whatever number masks what is to come, which stays masked."""
        torch.manual_seed(1)
        seen, hidden = Plain().eval(), Plain(masked(lowest)).eval()
        hidden.load_state_dict(seen.state_dict())
        assert load_model(hidden).reading.name == "softmax"
        one, other = (run_with(each, tokens_of(d_vocab=40), smear(share)) for each in (seen, hidden))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        assert (other - hidden(tokens_of(d_vocab=40))).abs().max() > 0.05 or share == 1

    def test_it_trains_and_is_measured(self):
        """Logits, gradients of every parameter and measured scores are those of a model whose keys are smeared."""
        torch.manual_seed(1)
        seen, hidden = Plain().eval(), Plain(by_hand).eval()
        hidden.load_state_dict(seen.state_dict())
        one, other = (smear_keys(each, share=0.4) for each in (seen, hidden))
        for each in (one, other):
            each(tokens_of(d_vocab=40)).square().mean().backward()
        for (name, left), right in zip(one.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(left.grad, right.grad, atol=1e-5, rtol=1e-4, msg=name)
        assert min(each.grad.abs().max() for each in other.alphas) > 1e-5
        scores = [measure_heads(each, n_sequences=2).previous_token for each in (one, other, hidden)]
        assert np.allclose(scores[0], scores[1], atol=1e-5) and not np.allclose(scores[1], scores[2], atol=1e-3)

    def test_each_head_has_a_share_of_its_own(self):
        """Also where heads share keys, which patterns do not show."""
        assert [len(alpha) for alpha in smear_keys(Plain(by_hand).eval()).alphas] == [2, 2]


class TestRefuses:
    @pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
    def test_a_share_that_cannot_be_learned(self, share):
        with pytest.raises(ArgumentError, match="`share` must lie between 0 and 1 where it is learnable, got"):
            smear_keys(induction_head(), share=share)

    @pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
    def test_a_share_that_is_none(self, share):
        with pytest.raises(ArgumentError, match="`share` must lie from 0 to 1, got"):
            smear_keys(induction_head(), share=share, learnable=False)

    def test_a_model_whose_attention_is_not_seen(self):
        with pytest.raises(UnsupportedModel):
            smear_keys(Plain(unreadable).eval())

    def test_a_window_whose_first_key_would_be_mixed_with_one_outside(self):
        model, why = Plain(masked(windowed=5)).eval(), "may attend to a key and not to the one before it"
        for change in (lambda: run_with(model, tokens_of(d_vocab=40), smear(0.5)), lambda: smear_keys(model)):
            with pytest.raises(UnsupportedModel, match=why):
                change()
        assert run_with(model, tokens_of(positions=5, d_vocab=40), smear(0.5)).isfinite().all()

    @pytest.mark.parametrize("options", [{"use_cache": True}, {"past_key_values": ()}])
    def test_a_cache_of_keys(self, options):
        wrapped = smear_keys(zoo.build("llama"))
        assert wrapped(tokens_of(), use_cache=False).past_key_values is None
        with pytest.raises(ModelError, match="smeared keys of LlamaForCausalLM cannot be cached: call it with use_cache=False"):
            wrapped(tokens_of(), **options)

    def test_layers_that_run_again_without_it(self):
        model = zoo.build("llama")
        wrapped = smear_keys(model)
        model.model.layers[0].gradient_checkpointing = True
        assert wrapped(tokens_of()).logits is not None
        with pytest.raises(ModelError, match="disable gradient checkpointing"):
            wrapped.train()(tokens_of())

    def test_attention_that_no_longer_shows_its_keys(self):
        """Never unsmeared without a word."""
        model = zoo.build("llama")
        wrapped = smear_keys(model)
        model.config._attn_implementation = "eager"
        with pytest.raises(ModelError, match="keys of LlamaForCausalLM cannot be smeared: those of 0 of 3 layers were"):
            wrapped(tokens_of())

    def test_what_has_no_positions(self):
        with pytest.raises(ModelError, match="smeared keys need token ids"):
            smear_keys(Plain().eval())(torch.zeros(3, dtype=torch.long))
