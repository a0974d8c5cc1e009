"""A process of its own that tells how far memory rises while a model is loaded and measured: `python capped.py DIRECTORY`.

Prints JSON, in MB: the weights on disk, the peak with most of them on disk, and the peak with all in memory.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, logging

from pytest_induction import load_model, measure_heads
from pytest_induction.forward.calling import broken_weights
from pytest_induction.model.load import load_module
from pytest_induction.plugin.benchmarks.timing import peak_megabytes

MEMORY = "20MB"  # of weights that may stay in memory, and of each pass
PERIOD = 4


def made(place: Path, *, width: int, layers: int) -> Path:
    sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": layers, "num_attention_heads": 8}
    more = {"vocab_size": 128, "max_position_embeddings": 4 * PERIOD + 2, "bos_token_id": 0, "eos_token_id": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, **more)).save_pretrained(place, max_shard_size="20MB")
    return place


def measured(place: Path, **options: str) -> None:
    subject = load_model(place, **options)
    measure_heads(subject, n_sequences=1, period=PERIOD)


def main(place: Path) -> None:
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    measured(made(place / "small", width=64, layers=2), device="auto", memory="200KB")  # everything that is loaded once
    large = made(place / "large", width=1024, layers=3)
    weights = sum(file.stat().st_size for file in large.glob("*.safetensors")) / 2**20
    placed = peak_megabytes(lambda: measured(large, device="auto", memory=MEMORY), cpu)
    whole = peak_megabytes(lambda: broken_weights(load_module(str(large)).module), cpu)  # which reads each
    sys.stdout.write(json.dumps({"weights": weights, "placed": placed, "whole": whole}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
