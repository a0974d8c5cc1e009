"""The tokenizer that lies beside weights: all of it, or which ids it knows and which of these are special."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from pytest_induction import alarms
from pytest_induction.files import is_directory, is_there
from pytest_induction.model import remote_code
from pytest_induction.model.declared import n_known

FILES = ("tokenizer.json", remote_code.TOKENIZER_CONFIG, "vocab.json", "tokenizer.model", "spiece.model")
FEWEST_TOKENS = 8  # ordinary ones: where files are missing, transformers may make a tokenizer that knows next to none


def tokenizer_at(transformers: Any, place: str, where: Mapping[str, Any], *, trust: bool = False, **more: Any) -> Any:
    """The tokenizer of a directory or a hub name, or None: probes are token ids and need none."""
    is_here = where.get("local_files_only") and is_directory(place) and "gguf_file" not in where
    if is_here and not any(is_there(Path(place) / name) for name in FILES):
        return None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **where, **more, trust_remote_code=trust)
    except Exception:  # noqa: BLE001 - a model without a usable tokenizer is measured all the same
        return None
    ordinary = len(tokenizer) - len(set(tokenizer.all_special_ids))
    return tokenizer if ordinary >= FEWEST_TOKENS else None


@dataclass(frozen=True)
class Ids:
    """What a tokenizer says of ids: which are special, and how many it knows."""

    all_special_ids: tuple[int, ...]
    n_ids: int

    def __len__(self) -> int:
        return self.n_ids


def ids_beside(module: nn.Module) -> Ids | None:
    """What the tokenizer says that lies where transformers loaded the module from, if that is a directory here.

    A module and its directory are so measured on the same probes. Texts are not encoded by it: a module that was changed since
    may have another one.
    """
    place = getattr(getattr(module, "config", None), "_name_or_path", None)
    if "transformers" not in sys.modules or not isinstance(place, str) or not place or not is_directory(place):
        return None
    return _ids_at(str(Path(place).resolve()))


@cache
def _ids_at(place: str) -> Ids | None:
    with alarms.kept(), remote_code.never_asking():
        tokenizer = tokenizer_at(sys.modules["transformers"], place, {"local_files_only": True})
    known = None if tokenizer is None else n_known(tokenizer)
    return None if known is None else Ids(tuple(sorted(set(tokenizer.all_special_ids))), known)
