"""Model directories that bring code along: when it runs, it leaves a file `ran` beside itself."""

import json
import shutil
from pathlib import Path

from tests.conftest import SHIPPED

CODE = """
import pathlib
pathlib.Path({ran!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "mine"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokens(PreTrainedTokenizerFast):
    pass
"""
AUTO_MAP = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
IN_CONFIG = {"config": {"model_type": "mine", "auto_map": AUTO_MAP}}
IN_TOKENIZER = {"tokenizer": {"auto_map": {"AutoTokenizer": ["mine.Tokens", None]}}}


def with_code(place, *, config=None, tokenizer=None):
    """The shipped Llama at `place`, with other settings and the code that they name."""
    place = Path(shutil.copytree(SHIPPED["llama"], place))
    (place / "mine.py").write_text(CODE.format(ran=str(place / "ran")))
    settings = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**settings, **(config or {})}))
    if tokenizer is not None:
        (place / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return place


def has_run(place):
    return (place / "ran").exists()
