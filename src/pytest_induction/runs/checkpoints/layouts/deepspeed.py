"""DeepSpeed: stages 0 to 2 of ZeRO keep the model whole in one file; stage 3 cuts it over the processes."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_induction.errors import RunError, first_line, reason
from pytest_induction.files import open_regular, tree_of
from pytest_induction.model.tensor_files import check_torch_file
from pytest_induction.runs.checkpoints.layout import NestedLayout, Weights, entries
from pytest_induction.runs.places import Place

if TYPE_CHECKING:
    from torch import Tensor

WHOLE = "mp_rank_00_model_states.pt"
_PART = re.compile(r"zero_pp_rank_\d+_mp_rank_00_model_states\.pt")
_OPTIMISER = re.compile(r"(bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_00_optim_states\.pt")
_OF_OTHER_RANK = re.compile(r"(.*_)?mp_rank_(?!00)\d\d_model_states\.pt|layer_\d+-model_.*\.pt")
_TAG = re.compile(r"global_step\d+|pytorch_model|checkpoint")  # the last is Lightning's
_ONLY_SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class DeepSpeed(NestedLayout):
    """What `engine.save_checkpoint` writes, also in a checkpoint of the Trainer or of accelerate."""

    name = "DeepSpeed"
    looks_like = f"a directory with {WHOLE} or zero_pp_rank_0_mp_rank_00_model_states.pt (ZeRO 0 to 3), or one with such in it"

    def inner(self, place: Place, names: Sequence[str]) -> str | None:
        return _inner(place, names)

    def held(self, names: Sequence[str]) -> list[str]:
        return [WHOLE] if WHOLE in names else [name for name in names if _PART.fullmatch(name) or _OPTIMISER.fullmatch(name)]

    def read(self, path: Path) -> Weights:
        from pytest_induction.runs.checkpoints.stored import read_pickle

        place = _directory(path)
        names = Place(place).names()
        strange = next((name for name in names if _OF_OTHER_RANK.fullmatch(name)), None)
        if strange is not None:
            cure = "convert it by tools/ckpts/convert_neox_to_hf.py of GPT-NeoX" if strange.startswith("layer_") else _how(path)
            raise RunError(f"{path.name} is cut over processes (it has {strange}): {cure}")
        _check_parts(path, place, self.held(names))
        if WHOLE in names:
            with _classes_of_deepspeed():
                return read_pickle(place / WHOLE)
        return Weights(_consolidated(place, path), self.step(path))

    def step(self, path: Path) -> int | None:
        from pytest_induction.runs.checkpoints.stored import steps_of_pickle

        place = _directory(path)
        names = Place(place).names()
        first = WHOLE if WHOLE in names else next(name for name in names if _PART.fullmatch(name))
        _check_parts(path, place, [first])
        with _classes_of_deepspeed():
            return steps_of_pickle(place / first)[0]


def _inner(place: Place, names: Sequence[str]) -> str | None:
    """The directory in it that DeepSpeed wrote, "" for itself; None where there is none."""
    if any(name == WHOLE or _PART.fullmatch(name) or _OF_OTHER_RANK.fullmatch(name) for name in names):
        return ""
    inside = (name for name in reversed(names) if _TAG.fullmatch(name))
    return next((name for name in inside if any(each.endswith("_model_states.pt") for each in entries(place / name))), None)


def _directory(path: Path) -> Path:
    inner = _inner(Place(path), Place(path).names())
    return path / (inner or "")


def _check_parts(path: Path, place: Path, names: Sequence[str]) -> None:
    """Raise `RunError` for files that lie elsewhere, are none, or promise more than they have: DeepSpeed does not ask."""
    for name in names:
        try:
            with open_regular(place / name, within=tree_of(path)) as stream:
                check_torch_file(stream, os.fstat(stream.fileno()).st_size)
        except OSError as error:
            raise RunError(f"{name} of {path.name} is no whole file of weights: {reason(error)}") from None


def _how(path: Path) -> str:
    """How a checkpoint is put together by hand."""
    return (
        f"put it together by the zero_to_fp32.py that lies beside it, `python zero_to_fp32.py . ../whole/{path.name} "
        f"--safe_serialization -t {path.name}`, and sweep ../whole"
    )


def _consolidated(place: Path, path: Path) -> dict[str, Tensor]:
    """The weights of ZeRO 3, put together by DeepSpeed's own code. Raises `RunError` with the way out where it is missing."""
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint as put_together
    except Exception:  # noqa: BLE001 - what it lacks of its own raises in many ways
        raise RunError(
            f"{path.name} is of DeepSpeed's ZeRO 3, cut over processes: pip install deepspeed, or {_how(path)}"
        ) from None
    silence = io.StringIO()
    try:
        with _safely(), redirect_stdout(silence), redirect_stderr(silence):
            found: dict[str, Tensor] = dict(put_together(str(place.parent), tag=place.name))
    except Exception as error:  # noqa: BLE001 - whatever a broken file makes it raise
        raise RunError(f"{path.name} cannot be put together by deepspeed: {first_line(error)}") from None
    return found


@contextmanager
def _safely() -> Iterator[None]:
    """Inside the block torch loads nothing but tensors, plain values and what is harmless, whatever it is asked for."""
    before = os.environ.get(_ONLY_SAFE)
    os.environ[_ONLY_SAFE] = "1"
    try:
        with _classes_of_deepspeed():
            yield
    finally:
        if before is None:
            del os.environ[_ONLY_SAFE]
        else:
            os.environ[_ONLY_SAFE] = before


@contextmanager
def _classes_of_deepspeed() -> Iterator[None]:
    """Inside the block torch takes the classes that DeepSpeed saves of its own, which hold values, where it is installed."""
    import torch

    from pytest_induction.runs.checkpoints.stored import HARMLESS

    with torch.serialization.safe_globals([*HARMLESS, *_its_classes()]):
        yield


def _its_classes() -> list[Any]:
    found: list[Any] = []
    for module, names in (
        ("deepspeed.runtime.zero.config", ("ZeroStageEnum",)),
        ("deepspeed.runtime.fp16.loss_scaler", ("LossScaler", "DynamicLossScaler")),
        ("deepspeed.utils.tensor_fragment", ("fragment_address",)),
    ):
        try:
            held = __import__(module, fromlist=list(names))
        except Exception:  # noqa: BLE001 - it is not there, or cannot be imported here
            held = None
        found += [getattr(held, name) for name in names if hasattr(held, name)]
    return found
