"""The models of `compare_libraries.py`, as directories that every library loads, and the rows that are measured on them.

Planted heads are put into a GPT-2 of transformers, so that all are given the very same model. GPT-2 has layer norms and planted
models have none: every feature stands in the stream beside its negative, so that means are zero, and beside a constant so large
that the norm divides by the same number everywhere, which its gain then multiplies by.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from pytest_induction import planted

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "fixtures" / "models" / "llama-2l"
ROWS, PERIOD = 12, 50  # rows of a first token and two copies: 101 positions, or what a shorter context has room for
SEVERAL_SPECIAL = 1000  # larger vocabularies begin with special tokens
CONSTANT = 1000.0


def _random() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(AutoConfig.from_pretrained(SHIPPED))


@torch.no_grad()
def _writing_nothing() -> nn.Module:
    """Its head matches, and writes zeros: what it wrote where nothing reads would change a norm."""
    model: Any = planted.matching_head()
    model.layers[-1].W_O.zero_()
    model.W_U[: model.vocab_size] += 4 * torch.eye(model.vocab_size)  # so that there are logits: of the token that stands there
    return as_gpt2(model)


MADE: dict[str, Callable[[], nn.Module]] = {
    "induction": lambda: as_gpt2(planted.induction_head()),
    "llama": lambda: AutoModelForCausalLM.from_pretrained(SHIPPED),
    "random": _random,
    "count_back": lambda: as_gpt2(planted.count_back_head(distance=PERIOD - 1)),  # to the successor, at that one period
    "matching": _writing_nothing,
    "suppression": lambda: as_gpt2(planted.copy_suppression_head()),
}


def written(name: str, place: Path) -> Path:
    """The model of that name in a directory of its own, with a tokenizer of one word for each id."""
    directory, model = place / name, cast("Any", MADE[name]())
    model.save_pretrained(directory)
    _tokenizer(model.config.vocab_size).save_pretrained(directory)
    return directory


def rows_of(directory: Path) -> Tensor:
    """`ROWS` rows of ids: the first token, and two copies of a block in which no id comes twice."""
    config = AutoConfig.from_pretrained(directory)
    period = min(PERIOD, (config.max_position_embeddings - 2) // 2)  # `detect_head` wants a position to spare
    special = 100 if config.vocab_size > SEVERAL_SPECIAL else 1
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randperm(config.vocab_size - special, generator=generator)[:period] for _ in range(ROWS))
    blocks = special + torch.stack(list(drawn))
    return torch.cat([torch.full((ROWS, 1), config.bos_token_id or 0), blocks, blocks], dim=1)


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"t{token}": token for token in range(size)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t0", eos_token="t0", pad_token="t0")


@torch.no_grad()
def as_gpt2(model: planted.PlantedModel) -> GPT2LMHeadModel:
    """The same heads in a GPT-2: the same patterns and logits up to rounding."""
    layers: Any = model.layers
    n_heads, d_planted, d_head = layers[0].W_Q.shape
    wide = max(d_head, -(-(2 * d_planted + 2) // n_heads))  # of a head, as GPT-2 has as many features as all heads together
    n_embd = n_heads * wide
    sizes = {"vocab_size": model.vocab_size, "n_positions": model.n_ctx, "n_embd": n_embd, "n_inner": 1}
    ids = {"bos_token_id": model.bos_token_id, "eos_token_id": model.bos_token_id}
    config = GPT2Config(**sizes, **ids, n_layer=len(layers), n_head=n_heads, tie_word_embeddings=False)
    made: Any = GPT2LMHeadModel(config).eval()
    for weight in made.parameters():
        weight.zero_()

    def both(features: Tensor) -> Tensor:
        """Beside their negatives, and nothing in what is left of the stream."""
        return nn.functional.pad(torch.cat([features, -features], dim=-1), (0, n_embd - 2 * d_planted))

    places, gain = made.transformer.wpe.weight, CONSTANT * (2 / n_embd) ** 0.5
    made.transformer.wte.weight.copy_(both(model.W_E))
    places.copy_(both(model.W_pos))
    places[:, 2 * d_planted : 2 * d_planted + 2] = torch.tensor([CONSTANT, -CONSTANT])
    for norm in (made.transformer.ln_f, *(block.ln_1 for block in made.transformer.h)):
        norm.weight.fill_(gain)
    for block, layer in zip(made.transformer.h, layers, strict=True):
        read = (layer.W_Q * (wide / d_head) ** 0.5, layer.W_K, layer.W_V)
        heads = [nn.functional.pad(weight, (0, wide - d_head)).transpose(0, 1).flatten(1) for weight in read]
        block.attn.c_attn.weight.copy_(both(torch.cat(heads, dim=1).T / 2).T)
        block.attn.c_proj.weight.copy_(nn.functional.pad(both(layer.W_O), (0, 0, 0, wide - d_head)).flatten(0, 1))
    made.lm_head.weight.copy_(both(model.W_U.T / 2))
    return made
