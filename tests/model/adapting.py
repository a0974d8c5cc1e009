"""Adapters on the shipped Llama, as PEFT writes them."""

import warnings

import torch

from tests.conftest import SHIPPED


def shipped():
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(SHIPPED["llama"]).eval()


def lora(**settings):
    """Settings of an adapter of random weights on queries and values."""
    import peft

    settings = {"r": 4, "lora_alpha": 10, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **settings}
    return peft.LoraConfig(task_type="CAUSAL_LM", **settings)


def adapted(config=None, seed=0):
    """The shipped Llama with an adapter on it, of which no weight is 0."""
    import peft

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(shipped(), config or lora())
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.02 * torch.randn_like(weight)
    return model.eval()


def write(place, config=None, seed=0, base=SHIPPED["llama"]):
    """Save such an adapter at `place`, made for the base of that name. Returns the model that it was saved from."""
    model = adapted(config, seed)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(place, save_embedding_layers=False)
    return model


def merged(model):
    """The shipped Llama with the low-rank products of a LoRA model added to its weights, by hand."""
    plain, weights = shipped(), dict(model.named_parameters())
    settings = model.peft_config["default"]
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            inside = f"base_model.model.{name.removesuffix('.weight')}"
            down, up = (weights.get(f"{inside}.lora_{each}.default.weight") for each in "AB")
            if down is not None:
                weight.add_(settings.lora_alpha / settings.r * up @ down)
    return plain
