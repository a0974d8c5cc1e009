"""Both sides of every row as functions without arguments, on models of random weights: GPT-2-small shape, one sequence."""

import copy
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import hypothesis
import numpy as np
import torch
from hypothesis import HealthCheck
from torch import Tensor

from pytest_induction import load_model, measure_heads
from pytest_induction.attention.edits import Replace
from pytest_induction.attention.pattern import PatternReader
from pytest_induction.attention.scores import PeriodicScores, scores_for
from pytest_induction.behaviour import evaluate_probes
from pytest_induction.heads.copying import direct_effects, ov_eigenvalue_scores, product_of_embeddings
from pytest_induction.heads.virtual import Columns, _scores_of_rows
from pytest_induction.interventions.ablation import attributions, screened
from pytest_induction.interventions.arguments import all_heads
from pytest_induction.interventions.passes import Passes
from pytest_induction.measuring.losses import token_losses
from pytest_induction.measuring.observing import Array, observe
from pytest_induction.model.circuits import circuits_of
from pytest_induction.model.head_weights import Circuits
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes import ProbeSequence, strategies
from pytest_induction.probes.sequences import Probe
from pytest_induction.properties import completes_repeats
from pytest_induction.properties.claims import PropertyClaim
from pytest_induction.properties.hunt import Hunt
from rows import BARE, EAGER, FACTORED, GIVEN, LENS, LOADED, PER_HEAD, SAMPLED_HEADS, TOY, Row

D_VOCAB = 50_257
FIRST = D_VOCAB - 1  # GPT-2's token of its own for the beginning
CLOSE = 1e-4  # that the scores of both sides may differ by, in float32
EXACT = 1e-6  # and means of the same losses, by the order in which they are added up
EXAMPLES, SEED = 200, 3
ANY_LOSS = 1e6  # holds for every model, so that all examples are looked at
NO_LOSS = 0.0  # holds for none
FIXTURES = Path(__file__).parents[1] / "fixtures"
Side = Callable[[], object]


def sides(row: Row) -> tuple[Side, Side]:
    """Ours and the other side of a row, ready to run."""
    return ours(row), other(row)


def ours(row: Row) -> Side:
    if row.against == GIVEN:
        return partial(checked, subject_of(row), completes_repeats, max_loss=ANY_LOSS)
    if row.against in (FACTORED, LOADED):
        module = gpt2_small(row.layers, row.dtype)
        return partial(measure_heads, module, n_sequences=1) if row.against == LOADED else partial(ov_eigenvalues_of, module)
    if row.name.startswith("direct-effects"):
        subject, ids = load_model(gpt2_small(row.layers, row.dtype)), tokens(row.positions)
        scores = periodic(ids)
        return partial(direct_effects, subject, circuits_of(subject), Probe(ids.numpy(), scores.period, 4, scores.start))
    if row.name.startswith("virtual"):
        return partial(virtual_heads, load_model(gpt2_small(row.layers, row.dtype)), tokens(row.positions))
    if row.against == PER_HEAD:
        return partial(ablations, subject_of(row), tokens(row.positions), screen="screened" in row.name)
    if row.against == TOY:
        model, ids = toy(row.layers), toy_tokens(row.positions)
    else:
        model, ids = gpt2_small(row.layers, row.dtype), tokens(row.positions)
    return partial(scored, load_model(model), ids, periodic(ids), early_stop=row.early_stop)


def other(row: Row) -> Side:
    ids = tokens(row.positions) if row.positions else torch.empty(0)
    of_row = {
        LOADED: lambda: partial(measure_heads, load_model(gpt2_small(row.layers, row.dtype)), n_sequences=1),
        FACTORED: lambda: partial(factored_eigenvalues, gpt2_small(row.layers, row.dtype)),
        GIVEN: lambda: partial(plain, subject_of(row), completes_repeats, max_loss=ANY_LOSS),
        PER_HEAD: lambda: partial(ablations_one_by_one, subject_of(row), ids),
    }
    if row.against in of_row:
        return of_row[row.against]()
    if row.against == TOY:
        return partial(bare, toy(row.layers), toy_tokens(row.positions))
    model = gpt2_small(row.layers, row.dtype)
    if row.against == BARE:
        return partial(bare, model.base_model, ids, use_cache=False)
    if row.against == EAGER:
        return partial(eager_scores, _eager(model), ids, periodic(ids))
    if row.against == LENS:
        return partial(detect_heads, _bridge(model), " ".join(f"t{token}" for token in ids[0, 1:].tolist()))
    raise ValueError(row.against)


def scored(subject: ModelUnderTest, ids: Tensor, scores: PeriodicScores, *, early_stop: bool):
    """Four scores of every head by name: (sequences, n_layers, n_heads)."""
    return observe(subject, ids, scores, early_stop=early_stop)[0]


@cache
def _circuits(model: torch.nn.Module) -> Circuits:
    return circuits_of(load_model(model))


def ov_eigenvalues_of(model: torch.nn.Module) -> list[Tensor]:
    """Of all heads, layer by layer, the product of the embeddings included, which is kept for a model in use."""
    circuits = _circuits(model)
    between = circuits.final_norm.folded(product_of_embeddings(circuits.unembedding, circuits.embedding))
    return [ov_eigenvalue_scores(layer.norm.folded(layer.values), between, layer.outs) for layer in circuits.layers]


@torch.no_grad()
def factored_eigenvalues(model: torch.nn.Module) -> list[Tensor]:
    """The same through the vocabulary, folded as ours, of some heads of the first layer."""
    from transformer_lens import FactoredMatrix

    circuits = _circuits(model)
    layer = circuits.layers[0]
    values, outs, unembedding = layer.norm.folded(layer.values), layer.outs, circuits.final_norm.folded(circuits.unembedding)
    found = []
    for head in range(SAMPLED_HEADS):
        eigenvalues = (circuits.embedding @ FactoredMatrix(values[head], outs[head]) @ unembedding).eigenvalues
        found.append(eigenvalues.sum().real / eigenvalues.abs().sum())
    return found


def virtual_heads(subject: ModelUnderTest, ids: Tensor):
    """Both scores of every pair of heads, and the same at a wrong shift."""
    scores = periodic(ids)
    return _scores_of_rows(subject, ids, Columns(scores.period, scores.start, scores.n_positions, wrong_shift=3))


def ablations(subject: ModelUnderTest, ids: Tensor, *, screen: bool) -> Array:
    """The loss on the last copy with each head ablated, (heads,); screened, of those with the largest estimates."""
    passes = Passes(subject, ids, last_queries(ids))
    heads = all_heads(subject)
    if screen:
        strength = np.abs(attributions(passes)[0])
        heads = tuple(sorted(heads, key=lambda head: -strength[head.layer, head.head])[: screened(len(heads))])
    return passes.losses([[head] for head in heads]).ablated.mean((1, 2))


def ablations_one_by_one(subject: ModelUnderTest, ids: Tensor) -> Array:
    """The same by one whole forward pass and the loss of every token for each head, of one head in each layer."""
    queries, found = last_queries(ids), []
    for head in all_heads(subject)[:: subject.n_heads + 1]:
        flags = torch.arange(subject.n_heads)[None] == head.head
        with subject.reading.apply_edits(ids, {head.layer: [Replace(flags)]}):
            losses = token_losses(subject.logits(ids), ids)
        found.append(float(losses[:, queries].double().mean()))
    return np.array(found)


def last_queries(ids: Tensor) -> Tensor:
    """The queries whose next token is of the last copy, without its first."""
    period = (ids.shape[1] - 1) // 4
    return torch.arange(ids.shape[1] - period, ids.shape[1] - 1)


def checked(subject: ModelUnderTest, claim: Callable[..., object], **options: float) -> object:
    """The smallest sequence on which the property fails, or None, as the package searches."""
    hunt = Hunt(subject, PropertyClaim.of(claim, options))
    found = hunt.search(sequences(subject), EXAMPLES, SEED, climb=False)
    if found is None and hunt.n_examples < EXAMPLES:
        raise ValueError(f"{hunt.n_examples} of {EXAMPLES} examples were looked at")
    return found


def plain(subject: ModelUnderTest, claim: Callable[..., object], **options: float) -> object:
    """The same as a test under hypothesis's own `given`, one forward pass for each example."""
    failed: list[object] = []

    @hypothesis.seed(SEED)
    @hypothesis.settings(max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @hypothesis.given(sequences(subject))
    def test(probe: ProbeSequence) -> None:
        try:
            claim(evaluate_probes(subject, [probe])[0], **options)
        except AssertionError:
            failed[:] = [probe]
            raise

    with suppress(AssertionError):
        test()
    return failed[0] if failed else None


def sequences(subject: ModelUnderTest):
    """The default probes; of 19 to 28 positions for a model that computes and does not wait."""
    if subject.space.d_vocab == D_VOCAB:
        return strategies.repeated_sequences(subject, period=(6, 9), repeats=3)
    return strategies.repeated_sequences(subject)


@cache
def subject_of(row: Row) -> ModelUnderTest:
    return load_model(str(FIXTURES / row.model) if row.model else gpt2_small(row.layers, row.dtype))


@torch.no_grad()
def bare(module: torch.nn.Module, ids: Tensor, **options: bool) -> None:
    module(ids, **options)


@torch.no_grad()
def eager_scores(module: torch.nn.Module, ids: Tensor, scores: PeriodicScores) -> Tensor:
    """The same scores from the patterns of all layers, as Hugging Face returns them."""
    patterns = module(ids, use_cache=False, output_attentions=True).attentions
    return torch.stack([scores(PatternReader(pattern)) for pattern in patterns], dim=2).movedim(1, 0)


@torch.no_grad()
def detect_heads(bridge: torch.nn.Module, text: str) -> list[Tensor]:
    """One call for each head type that it names, as its documentation shows."""
    from transformer_lens.head_detector import HEAD_NAMES, detect_head

    return [detect_head(bridge, text, name) for name in HEAD_NAMES]


@cache
def gpt2_small(layers: int, dtype: str) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=layers, n_positions=8192)).to(getattr(torch, dtype)).eval()


@cache
def toy(layers: int) -> torch.nn.Module:
    sys.path.insert(0, str(FIXTURES))
    from attention_only import AttentionOnly, Config

    torch.manual_seed(0)
    return AttentionOnly(Config(n_layers=layers, d_vocab=1000, n_ctx=128, d_model=256)).eval()


def _eager(model: torch.nn.Module) -> torch.nn.Module:
    other_one = copy.deepcopy(model.base_model)
    other_one.set_attn_implementation("eager")
    return other_one


def _bridge(model: torch.nn.Module) -> torch.nn.Module:
    """TransformerLens around a copy of the model, for it changes what it wraps, with a tokenizer of one word per id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    first = "<|endoftext|>"
    words = Tokenizer(models.WordLevel({**{f"t{token}": token for token in range(FIRST)}, first: FIRST}, unk_token=first))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=words, bos_token=first, eos_token=first, pad_token=first)
    with tempfile.TemporaryDirectory() as place:  # TransformerLens wants a tokenizer that came from somewhere
        wrapped.save_pretrained(place)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        return build_bridge_from_module(copy.deepcopy(model), "GPT2LMHeadModel", hf_config=model.config, tokenizer=tokenizer)


def tokens(positions: int) -> Tensor:
    """The first token and four copies of one block, the last one cut where the positions end."""
    return _repeated(positions, D_VOCAB - 1, FIRST)


def toy_tokens(positions: int) -> Tensor:
    return 1 + _repeated(positions, 998, -1)


def _repeated(positions: int, usable: int, first: int) -> Tensor:
    block = torch.randperm(usable, generator=torch.Generator().manual_seed(0))[: -(-(positions - 1) // 4)]
    return torch.cat([torch.tensor([first]), block.repeat(4)])[None, :positions]


def periodic(ids: Tensor) -> PeriodicScores:
    scores = scores_for(ids)
    if not isinstance(scores, PeriodicScores):
        raise TypeError("the sequences of the benchmark must have a period")
    return scores


def check_agreement(row: Row) -> None:
    """Raise unless both sides find the same, where the other side gives the same scores at all."""
    if row.against == FACTORED:
        gap = max(abs(float(mine - its)) for mine, its in zip(ours(row)()[0], other(row)(), strict=False))
        if not gap <= CLOSE:
            raise ValueError(f"{row.name}: the scores of both sides differ by {gap:.2g}")
    if row.against == GIVEN:
        for threshold in (ANY_LOSS, NO_LOSS):
            found = [side(subject_of(row), completes_repeats, max_loss=threshold) for side in (checked, plain)]
            if found[0] != found[1]:
                raise ValueError(f"{row.name}: {found[0]} is the smallest that fails, and {found[1]} under plain `given`")
    if row.against == PER_HEAD and "screened" not in row.name:
        mine, its = ours(row)(), other(row)()
        gap = float(np.abs(mine[:: subject_of(row).n_heads + 1] - its).max())
        if not gap <= EXACT:
            raise ValueError(f"{row.name}: the losses of both sides differ by {gap:.2g}")
    if row.against == EAGER:
        mine = np.stack([*ours(row)().values()], axis=1)
        gap = float((torch.as_tensor(mine) - other(row)()).abs().max())
        if not gap <= CLOSE:
            raise ValueError(f"{row.name}: the scores of both sides differ by {gap:.2g}")
