"""The models of `check_gpu.py`: one for each way of attention, with what its heads attend to by another account."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

D_VOCAB, D_MODEL, N_HEADS, N_LAYERS, N_CTX = 97, 128, 4, 2, 512
ROWS, COPIES = 3, 3
SPREAD = 0.12  # of all weights, with which patterns are far from uniform
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Patterns = Sequence[np.ndarray]  # of each layer, (rows, heads, queries, keys)


class Missing(Exception):
    """Something is not installed, or not made for this device, so a check is left out."""


class Sample(NamedTuple):
    """A model, the backend that is to read it, and what its heads attend to."""

    model: nn.Module
    backend: str
    patterns: Callable[[nn.Module, Tensor], Patterns]


class Layer(nn.Module):
    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        self.made, self.out = nn.Linear(D_MODEL, 3 * D_MODEL), nn.Linear(D_MODEL, D_MODEL)
        self.norm = nn.LayerNorm(D_MODEL)

    def heads(self, residual: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.unflatten(-1, (N_HEADS, -1)).transpose(1, 2) for part in self.made(self.norm(residual)).chunk(3, -1))

    def forward(self, residual: Tensor) -> Tensor:
        return residual + self.out(self.attend(*self.heads(residual)).transpose(1, 2).flatten(2))


class Small(nn.Module):
    """Two layers of attention by any function of queries, keys and values (rows, heads, positions, width)."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.vocab_size, self.n_ctx = D_VOCAB, N_CTX
        self.embed, self.places = nn.Embedding(D_VOCAB, D_MODEL), nn.Embedding(N_CTX, D_MODEL)
        self.layers = nn.ModuleList(Layer(attend) for _ in range(N_LAYERS))
        self.unembed = nn.Linear(D_MODEL, D_VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        residual = self.embed(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            residual = layer(residual)
        return self.unembed(residual)


@torch.no_grad()
def by_softmax(model: nn.Module, tokens: Tensor) -> Patterns:
    """Of a `Small`: from the queries and keys that its own maps make in a plain pass, in double precision on the CPU."""
    given: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda layer, inputs: given.append(inputs[0])) for layer in model.layers]
    model(tokens)
    for hook in hooks:
        hook.remove()
    found = []
    for layer, residual in zip(model.layers, given, strict=True):
        query, key, _ = (part.cpu().double() for part in layer.heads(residual))
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        found.append(scores.masked_fill(ahead, -torch.inf).softmax(-1).numpy())
    return found


@torch.no_grad()
def returned(model: nn.Module, tokens: Tensor) -> Patterns:
    """As a model of transformers with eager attention returns them."""
    return [each.cpu().double().numpy() for each in model(tokens, output_attentions=True, use_cache=False).attentions]


@torch.no_grad()
def hooked(model: nn.Module, tokens: Tensor) -> Patterns:
    """As TransformerLens keeps them."""
    _, cache = model.run_with_cache(tokens)
    return [cache[f"blocks.{layer}.attn.hook_pattern"].cpu().double().numpy() for layer in range(model.cfg.n_layers)]


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def masked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same with a mask of its own, which kernels take another way."""
    mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def by_hand(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(ahead, -torch.inf).softmax(-1) @ value


def flex(*, compiles: bool) -> Callable[[], Sample]:
    """By `flex_attention`, compiled when the model is made and not before: what compiles takes long to import."""

    def made() -> Sample:
        function = torch.compile(flex_attention) if compiles else flex_attention

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            size, place = query.shape[2], str(query.device)
            mask = create_block_mask(lambda row, head, at, of: at >= of, None, None, size, size, device=place)
            return function(query, key, value, block_mask=mask)

        return small(attend, "flex_attention")()

    return made


def _scrambled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, SPREAD)
    return model.eval()


def small(attend: Attend, backend: str) -> Callable[[], Sample]:
    def made() -> Sample:
        torch.manual_seed(2)
        return Sample(_scrambled(Small(attend)), backend, by_softmax)

    return made


def of_transformers(kind: str, implementation: str, backend: str) -> Callable[[], Sample]:
    def made() -> Sample:
        transformers = _imported("transformers")
        sizes = {"vocab_size": D_VOCAB, "hidden_size": D_MODEL, "num_attention_heads": N_HEADS, "num_hidden_layers": N_LAYERS}
        more = {"Llama": {"intermediate_size": 256, "num_key_value_heads": 2, "max_position_embeddings": N_CTX}, "Bloom": {}}
        config = getattr(transformers, f"{kind}Config")(**sizes, **more[kind], bos_token_id=0, eos_token_id=1, pad_token_id=2)
        torch.manual_seed(2)
        model = getattr(transformers, f"{kind}ForCausalLM")._from_config(config, attn_implementation=implementation)
        return Sample(_scrambled(model), backend, returned)

    return made


def of_transformer_lens() -> Sample:
    _imported("transformer_lens")
    from pytest_induction.planted import induction_head

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = induction_head(sharpness=6.0, d_vocab=D_VOCAB, n_ctx=N_CTX).to_transformer_lens()
    return Sample(model.eval(), "TransformerLens hook_pattern", hooked)


def _imported(name: str):
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise Missing(f"{name} is not installed") from None


SAMPLES: dict[str, Callable[[], Sample]] = {
    "sdpa, as torch chooses": small(fused, "sdpa"),
    "flex_attention": flex(compiles=False),
    "flex_attention, compiled": flex(compiles=True),
    "softmax by hand": small(by_hand, "softmax"),
    "registry of transformers (Llama)": of_transformers("Llama", "eager", "transformers attention interface"),
    "eager output_attentions (Bloom)": of_transformers("Bloom", "eager", "eager output_attentions"),
    "TransformerLens": of_transformer_lens,
}


def repeated(rows: int, period: int, copies: int = COPIES) -> Tensor:
    """Rows of ordinary ids: a first token, and then copies of one block."""
    generator = torch.Generator().manual_seed(0)
    blocks = [3 + torch.randperm(D_VOCAB - 3, generator=generator)[:period] for _ in range(rows)]
    return torch.stack([torch.cat([torch.zeros(1, dtype=torch.long), block.repeat(copies)]) for block in blocks])
