"""Checkpoints of a small model in every layout: by the library that has it where that runs on a CPU, else shaped by hand.

By hand, after what their sources write: Composer, litgpt, OLMo, Megatron, and DeepSpeed where it is not installed.
"""

import collections
import contextlib
import datetime as dt
import json
import random
import warnings

import numpy as np
import torch
from safetensors.torch import save_file

from pytest_induction.runs.checkpoints.reading import layout_of
from pytest_induction.runs.places import Place

from .small_models import state

STEP = 100


def read_weights(path):
    """The weights in a file or in a directory, as a sweep reads them."""
    return layout_of(Place(path)).read(path)


def safetensors(place, weights):
    save_file(weights, place / f"model-{STEP}.safetensors", metadata={"step": str(STEP)})


def torch_file(place, weights):
    """nanoGPT's, which has one file and counts its steps in it."""
    torch.save({"model": weights, "optimizer": {"state": {}}, "iter_num": STEP, "config": {"lr": 1e-3}}, place / "ckpt.pt")


def composer(place, weights):
    """With what it keeps of random numbers and of times beside the weights."""
    rng = [{"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}]
    stamp = {"epoch": 0, "batch": STEP, "token": STEP * 64, "total_wct": dt.timedelta(seconds=3)}
    whole = {"state": {"model": {f"model.{name}": each for name, each in weights.items()}, "timestamp": stamp}, "rng": rng}
    torch.save(whole, place / f"ep0-ba{STEP}-rank0.pt")


def lightning(place, weights):
    """By its own Trainer."""
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Module()
            for name, value in weights.items():
                _put(self.net, name, value)
            self.save_hyperparameters({"rate": 0.0})

        def training_step(self, batch):
            return sum((weight**2).sum() for weight in self.net.parameters())

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.0)

    saver = pl.callbacks.ModelCheckpoint(place, filename="{epoch}", save_last=False)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=1, limit_train_batches=STEP, callbacks=[saver], default_root_dir=place, **quiet)
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.zeros(STEP, 1)))
    assert [each.name for each in place.iterdir()] == ["epoch=0.ckpt"]


def accelerate(place, weights):
    """By its own `save_state`."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    module = torch.nn.Module()
    for name, value in weights.items():
        _put(module, name, value)
    accelerator = Accelerator(cpu=True)
    module, _ = accelerator.prepare(module, torch.optim.AdamW(module.parameters()))
    accelerator.save_state(place / f"step_{STEP}")
    accelerator.free_memory()
    AcceleratorState._reset_state(reset_partial_state=True)  # which would else be that of every test after this one


def directory(place, weights):
    made = _made(place / f"step-{STEP}")
    torch.save(weights, made / "weights.pt")
    torch.save({}, made / "optimizer.pt")


def distributed(place, weights):
    """As torchtitan has it: the weights by their own names, beside the states of the optimiser and the trainer."""
    moments = {f"optimizer.state.{name}.exp_avg": torch.ones_like(each) for name, each in weights.items()}
    trainer = {"train_state": {"step": torch.tensor(STEP), "ntokens_seen": 1}, "lr_scheduler": {"last_epoch": 3}}
    save_distributed({**weights, **moments, **trainer}, place / f"step-{STEP}")


def olmo(place, weights):
    made = _made(place / f"step{STEP}-unsharded")
    torch.save({f"transformer.{name}": each for name, each in weights.items()}, made / "model.pt")
    torch.save({"state": {}}, made / "optim.pt")
    torch.save({"global_step": STEP, "epoch": 0, "rng": {"numpy": np.random.get_state()}}, made / "train.pt")
    (made / "config.yaml").write_text("model:\n  d_model: 16\n")


def litgpt(place, weights):
    made = _made(place / f"step-{STEP:08d}")
    torch.save({"model": weights, "optimizer": {}, "iter_num": 4 * STEP, "step_count": STEP}, made / "lit_model.pth")
    (made / "model_config.yaml").write_text("name: small\n")


def deepspeed(place, weights):
    """Stage 2, of one process: the model is whole beside the parts of the optimiser."""
    made = _made(place / f"global_step{STEP}")
    shapes = [collections.OrderedDict((name, each.shape) for name, each in weights.items())]
    whole = {"module": collections.OrderedDict(weights), "param_shapes": shapes, "global_steps": STEP, "ds_config": {"zero": 2}}
    torch.save(whole, made / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {}}, made / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (place / "latest").write_text(f"global_step{STEP}")
    (place / "zero_to_fp32.py").write_text("")


def megatron(place, weights):
    made = _made(place / f"iter_{STEP:07d}" / "mp_rank_00")
    torch.save({"model": {"language_model": weights}, "iteration": STEP}, made / "model_optim_rng.pt")
    (place / "latest_checkpointed_iteration.txt").write_text(str(STEP))


def llama(directory, seed=0, **options):
    """A small model of transformers with a tokenizer of none, as `save_pretrained` writes it, or in bytes as it is."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {"vocab_size": 48, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**settings, max_position_embeddings=64, bos_token_id=0, eos_token_id=1))
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "embed" not in name:
            torch.nn.init.normal_(weight, std=0.2)
    if directory is not None:
        model.save_pretrained(directory, **options)
    return model


def transformers(place, weights):
    del weights
    llama(place / f"checkpoint-{STEP}")
    (place / f"checkpoint-{STEP}" / "trainer_state.json").write_text(json.dumps({"global_step": STEP}))


def adapter(place, weights):
    """By peft, on a base that lies beside the training."""
    import peft

    del weights
    base = llama(place.parent / "base")
    base.config._name_or_path = str(place.parent / "base")
    base.name_or_path = str(place.parent / "base")
    torch.manual_seed(1)
    settings = peft.LoraConfig(
        r=2, target_modules=["q_proj"], init_lora_weights=False, base_model_name_or_path=str(place.parent / "base")
    )
    peft.get_peft_model(base, settings).save_pretrained(place / f"checkpoint-{STEP}")


def gguf(place, weights):
    """By llama.cpp's own writer."""
    del weights
    model = llama(None)
    write_gguf(place / f"small-{STEP}-f32.gguf", model)


def write_gguf(path, model, kind="F32", *, architecture="llama", parts=1, more=()):
    """A model of the Llama kind, with a vocabulary of as many words as it has ids; `kind` is the type of its matrices.

    `more` are names of tensors besides, `parts` of how many files it says to be one.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from gguf.quants import quantize

    config, stored = model.config, GGMLQuantizationType[kind]
    writer = GGUFWriter(path, architecture)

    def add(name, array):
        array = np.ascontiguousarray(array)
        if array.ndim < 2:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, quantize(array, stored), raw_dtype=stored)

    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(LlamaFileType[f"{'ALL' if kind == 'F32' else 'MOSTLY'}_{kind}"])
    if parts > 1:
        writer.add_uint16("split.count", parts)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["w", "1", *(f"w{index}" for index in range(config.vocab_size - 2))])
    writer.add_token_merges(["w 1"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, value in model.state_dict().items():
        array = value.detach().numpy().copy()
        if name.startswith("model.layers."):
            _, _, layer, *rest, which = name.split(".")
            part = names[".".join(rest)]
            if part in ("attn_q", "attn_k"):  # llama.cpp rotates neighbours
                array = array.reshape(config.num_attention_heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            add(f"blk.{layer}.{part}.{which}", array)
        else:
            other = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
            add(other.get(name, "output.weight"), array)
    for name in more:
        add(name, np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


WRITERS = {  # by the class of the layout, and for what trainers write in one that others have too
    "Safetensors": safetensors,
    "TorchFile": torch_file,
    "TorchFile, Composer": composer,
    "TorchFile, Lightning": lightning,
    "Directory": directory,
    "Accelerate": accelerate,
    "Distributed": distributed,
    "Olmo": olmo,
    "LitGPT": litgpt,
    "DeepSpeed": deepspeed,
    "Megatron": megatron,
    "Transformers": transformers,
    "Adapter": adapter,
    "Gguf": gguf,
}
NEEDS = {
    "TorchFile, Lightning": "lightning",
    "Accelerate": "accelerate",
    "Transformers": "transformers",
    "Adapter": "peft",
    "Gguf": "gguf",
}


def write(kind, place, seed=3):
    """One checkpoint of step 100 in a directory -> the weights that it has."""
    place.mkdir(parents=True, exist_ok=True)
    weights = state(seed)
    with quiet():
        WRITERS[kind](place, weights)
    return weights


def save_distributed(whole, place):
    """By torch.distributed.checkpoint, from one process."""
    import torch.distributed.checkpoint as dcp

    with quiet():
        dcp.save(whole, checkpoint_id=place, no_dist=True)


@contextlib.contextmanager
def quiet():
    """What the libraries warn of is their own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _made(directory):
    directory.mkdir(parents=True)
    return directory


def _put(module, name, value):
    first, _, rest = name.partition(".")
    if not rest:
        module.register_parameter(first, torch.nn.Parameter(value.clone()))
        return
    if not hasattr(module, first):
        module.add_module(first, torch.nn.Module())
    _put(getattr(module, first), rest, value)
