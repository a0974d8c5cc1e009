"""Wrappers change nothing: what is measured is the model inside, found by following what the forward runs."""

import types

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pytest_induction import assert_has_induction_head, assert_no_induction_head, load_model, measure_heads
from pytest_induction.errors import ModelError, UnsupportedModel
from pytest_induction.interventions import ablate, intervene
from tests.model.zoo import build

LLAMA = "fixtures/models/llama-2l"
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),  # by torch's own compiler
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # by peft
]


def inner():
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(LLAMA).eval()


class Around(nn.Module):
    """A wrapper with nothing of its own: no config, no vocabulary, no first token."""

    def __init__(self, net, call=lambda net, ids: net(input_ids=ids).logits):
        super().__init__()
        self.net, self.call = net, call

    def forward(self, ids):
        return self.call(self.net, ids)


@pytest.fixture
def process_group():
    """One process that is a group by itself, as wrappers for several want it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def lightning_module(net):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, ids):
            return self.net(input_ids=ids)

    return Module()


def prepared(net):
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # another test may have asked for half precision
    return accelerate.Accelerator(cpu=True, mixed_precision="no").prepare(net)


class Envoy:
    """As nnsight wraps a module: what is asked of it is the same of the module inside, wrapped again."""

    tokenizer = None

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        found = getattr(self._module, name)
        return Envoy(found) if isinstance(found, nn.Module) else found


def compiled_inside(net):
    outer = Around(net)
    outer.net = torch.compile(net)
    return outer


ALIKE = {
    "plain": Around,
    "data parallel": nn.DataParallel,
    "two deep": lambda net: nn.DataParallel(Around(net)),
    "time-first inside": lambda net: Around(net, lambda net, ids: net(input_ids=ids.T).logits.transpose(0, 1)),
    "filling up": lambda net: Around(
        net, lambda net, ids: net(input_ids=nn.functional.pad(ids, (0, -ids.shape[1] % 16))).logits[:, : ids.shape[1]]
    ),
    "with more": lambda net: Around(
        net, lambda net, ids: {"state": net.model(input_ids=ids), "scores": net(input_ids=ids).logits}
    ),
    "lightning": lightning_module,
    "accelerate": prepared,
    "compiled": lambda net: torch.compile(Around(net)),
    "compiled inside": compiled_inside,
    "held by an object": lambda net: types.SimpleNamespace(model=net, tokenizer=None),
    "traced": Envoy,
}


def told(subject):
    """What a wrapper may lose."""
    return subject.fingerprint(), subject.space, subject.backend.name, subject.backend.layers, type(subject.module)


def assert_alike(wrapped):
    one, other = load_model(wrapped), load_model(inner())
    assert told(one) == told(other)
    tokens = torch.randint(1, 128, (3, 40))
    found, expected = measure_heads(one, tokens=tokens), measure_heads(other, tokens=tokens)
    assert torch.equal(torch.tensor(found.prefix_matching), torch.tensor(expected.prefix_matching))
    evidence, plain = (assert_has_induction_head(model) for model in (wrapped, inner()))
    assert (evidence.summary, evidence.heads) == (plain.summary, plain.heads)
    with pytest.raises(AssertionError, match="is REFUTED, expected SHOWN"):
        assert_no_induction_head(wrapped)


@pytest.mark.parametrize("wrap", ALIKE.values(), ids=ALIKE)
def test_a_wrapper_has_the_numbers_of_the_model_inside(wrap):
    """The same weights, fingerprint, token space and verdict, whatever is around."""
    assert_alike(wrap(inner()))


def test_distributed_data_parallel_is_the_model_inside(process_group):
    """Also where it is compiled, and the other way round."""
    assert_alike(nn.parallel.DistributedDataParallel(inner()))
    assert told(load_model(torch.compile(nn.parallel.DistributedDataParallel(inner())))) == told(load_model(inner()))
    assert told(load_model(nn.parallel.DistributedDataParallel(torch.compile(inner())))) == told(load_model(inner()))


def test_a_fully_sharded_model_is_itself(process_group):
    """FSDP2 changes the class of a module in place, and keeps weights as shards: the fingerprint is that of the weights."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = inner(), init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    one, other = load_model(fully_shard(model, mesh=mesh)), load_model(inner())
    assert told(one)[:4] == told(other)[:4]
    tokens = torch.randint(1, 128, (3, 40))
    assert torch.equal(one.logits(tokens), other.logits(tokens))


@pytest.mark.parametrize("kind", ["LoraConfig", "IA3Config"])
def test_an_adapter_is_measured_with_the_model_that_it_is_on(kind):
    """A new adapter changes nothing; one that was trained is part of the weights."""
    peft = pytest.importorskip("peft")
    options = {"feedforward_modules": []} if kind == "IA3Config" else {}
    settings = getattr(peft, kind)(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **options)
    model = peft.get_peft_model(inner(), settings).eval()
    one, other = load_model(model), load_model(inner())
    assert one.space == other.space
    before = one.fingerprint()
    assert before != other.fingerprint()
    assert measure_heads(one).prefix_matching.max() == pytest.approx(measure_heads(other).prefix_matching.max(), abs=1e-5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "ia3_" in name:
                weight.add_(0.3)
    changed = load_model(model)
    assert changed.fingerprint() != before
    tokens = torch.randint(1, 128, (2, 30))
    assert torch.equal(changed.logits(tokens), model(input_ids=tokens).logits)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_what_adds_positions_is_refused_with_the_model_inside(kind):
    """Virtual tokens are none of the text's: the line names what to measure."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(inner(), getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=8))
    with pytest.raises(ModelError, match=r"measure the model inside, `get_base_model\(\)` \(LlamaForCausalLM\)"):
        measure_heads(model)
    assert measure_heads(model.get_base_model()).prefix_matching.max() > 0.9


def test_a_module_without_a_forward_names_the_model_inside():
    """As a LightningModule that only has a training step."""

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = build("gpt2")

    with pytest.raises(ModelError, match="measure the model inside, `net`"):
        load_model(Bare())


class Tempered(Around):
    """Has a weight of its own, which a wrapper that changes nothing has not."""

    def __init__(self, net):
        super().__init__(net)
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, ids):
        return super().forward(ids) / self.temperature


def test_what_has_weights_of_its_own_is_measured_itself():
    """It gives the same logits today, and other ones after a step of training; what is inside still tells the token space."""
    one, other = load_model(Tempered(inner())), load_model(inner())
    assert isinstance(one.module, Tempered)
    assert one.space == other.space
    before = one.fingerprint()
    assert before != other.fingerprint()
    assert measure_heads(one).prefix_matching.max() == measure_heads(other).prefix_matching.max()


def test_what_is_computed_from_the_logits_is_kept():
    """It may be another thing on other tokens than those of the verification: the wrapper is measured, its weights are those inside."""
    outer = Around(inner(), lambda net, ids: net(input_ids=ids).logits + 0.0)
    one, other = load_model(outer), load_model(inner())
    assert one.module is outer
    assert (one.fingerprint(), one.space) == (other.fingerprint(), other.space)
    assert measure_heads(one).prefix_matching.max() == measure_heads(other).prefix_matching.max()


class Rounded(Around):
    """Runs what is inside in another precision."""

    def forward(self, ids):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(ids)


def test_what_changes_the_logits_is_measured_itself():
    """Half precision around a model is how it runs."""
    subject, tokens = load_model(Rounded(inner())), torch.randint(1, 128, (2, 30))
    assert isinstance(subject.module, Rounded)
    assert torch.equal(subject.logits(tokens), subject.module(tokens))


class Switched(nn.Module):
    """Attends by another function where a wrapper says so."""

    def __init__(self):
        super().__init__()
        self.net = build("llama")

    def forward(self, ids, kernel="plain"):
        self.kernel = kernel
        return self.net(input_ids=ids).logits


def test_what_a_wrapper_sets_is_not_lost():
    """A kernel that is named in the call changes how a model runs, if not what it gives."""
    subject = load_model(Around(Switched(), lambda net, ids: net(ids, kernel="fused")))
    subject.logits(torch.randint(4, 61, (2, 9)))
    assert isinstance(subject.module, Around)


def test_an_intervention_on_a_wrapper_acts_on_the_model_inside():
    """Whichever of the two is named, and whichever is measured under it."""
    net = inner()
    outer = Around(net)
    heads = ["L1H0", "L1H1"]
    clean = outer(torch.arange(1, 41)[None])
    with intervene(outer, ablate(heads)):
        changed = outer(torch.arange(1, 41)[None])
        inside = measure_heads(outer).prefix_matching
    with intervene(net, ablate(heads)):
        assert torch.equal(outer(torch.arange(1, 41)[None]), changed)
        assert (measure_heads(outer).prefix_matching == inside).all()
    assert not torch.equal(changed, clean)
    assert torch.equal(outer(torch.arange(1, 41)[None]), clean)


def test_a_tokenizer_of_the_wrapper_counts():
    """A wrapper that carries the tokenizer has it for the model inside."""

    class Characters:
        all_special_ids = (5,)

        def __len__(self):
            return 100

    outer = Around(inner())
    outer.tokenizer = Characters()
    subject = load_model(outer)
    assert subject.tokenizer is outer.tokenizer
    assert {5, 100, 127} <= subject.space.excluded


def test_a_traced_model_without_weights_is_refused():
    """As nnsight has it until it is dispatched."""
    with pytest.raises(ModelError, match="lies on the meta device and has no weights"):
        load_model(Envoy(inner().to("meta")))


def test_a_refused_model_inside_is_refused_outside():
    """A wrapper hides no fault."""
    with pytest.raises(UnsupportedModel, match="cannot be read"):
        measure_heads(Around(Unreadable(), lambda net, ids: net(ids)))


class Unreadable(nn.Module):
    def __init__(self):
        from tests.model.plain import Plain, unreadable

        super().__init__()
        self.plain = Plain(unreadable)

    def forward(self, ids):
        return self.plain(ids)
