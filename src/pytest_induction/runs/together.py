"""A training of several processes: which of them records, and what all must do alike where the model is spread over them.

A pass of a model whose weights are spread (FSDP, the third stage of DeepSpeed's ZeRO) needs every process. So all measure the
same sequences at the same steps, and the first decides, writes and judges. Nothing is asked of the others in between: they talk
only at steps for which the schedule has a snapshot.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from datetime import timedelta

import torch
from torch import Tensor, nn

from pytest_induction.errors import ModelError

PATIENCE = 120.0  # seconds that the first process waits for the others' first call
_meetings = itertools.count()  # of this process: each has a name of its own, the same one in all of them
FULLY_SHARDED = "FullyShardedDataParallel"
SHARDING = "FSDPModule"


def in_several_processes() -> bool:
    """Whether this training has more than one process."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_first_process() -> bool:
    """Whether this is the first process of the training, or the only one."""
    return not in_several_processes() or torch.distributed.get_rank() == 0


def is_spread(module: nn.Module) -> bool:
    """Whether a pass needs all processes of this training: FSDP, tensor parallelism, the third stage of DeepSpeed's ZeRO."""
    if not in_several_processes():
        return False
    if any(type(part).__name__ == FULLY_SHARDED for part in module.modules()):
        return True
    return any(hasattr(weight, "device_mesh") or hasattr(weight, "ds_id") for weight in module.parameters())


def why_not_together(module: nn.Module) -> str:
    """Why a model that is spread cannot be measured though all processes take part, or an empty text.

    FSDP and ZeRO-3 have whole weights in a pass. Tensor parallelism leaves each process with some of the heads.
    """
    whole = {
        id(weight)
        for part in module.modules()
        if any(kind.__name__ == SHARDING for kind in type(part).__mro__)
        for weight in part.parameters()
    }
    for name, weight in module.named_parameters():
        placements = getattr(weight, "placements", None)
        if placements is not None and (id(weight) not in whole or sum(map(_is_split, placements)) > 1):
            return f"`{name}` is split for tensor parallelism, and no process has all heads"
    return ""


def _is_split(placement: object) -> bool:
    return bool(getattr(placement, "is_shard", lambda: False)()) or "Shard" in type(placement).__name__


def meet(about: str) -> None:
    """Wait until every process asks; raise `ModelError` where one does not, rather than wait for ever in its first pass."""
    from torch.distributed.distributed_c10d import _get_default_store

    store, rank, size = _get_default_store(), torch.distributed.get_rank(), torch.distributed.get_world_size()
    name = f"pytest-induction/{next(_meetings)}"
    store.set(f"{name}/{rank}", "here")
    try:
        store.wait([f"{name}/{each}" for each in range(size)], timedelta(seconds=PATIENCE))
    except RuntimeError:
        raise ModelError(
            f"{about} is spread over {size} processes, and not all of them called the recorder within {PATIENCE:.0f} s: call it "
            "in every process, at the same steps, and not in the first alone"
        ) from None


def first_says(value: int, device: torch.device) -> int:
    """What the first process says, in every one of them, all of which must ask."""
    tensor = _number(value, device)
    torch.distributed.broadcast(tensor, src=0)
    return int(tensor)


def least_of(value: int, device: torch.device) -> int:
    """The least of what all processes say, all of which must ask."""
    tensor = _number(value, device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MIN)
    return int(tensor)


def any_process(value: bool, device: torch.device) -> bool:
    """Whether it is so in any of the processes, all of which must ask."""
    tensor = _number(int(value), device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return bool(tensor)


def _number(value: int, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.int64, device=device)


def made_ready(module: nn.Module) -> None:
    """Let the older FSDP set itself up, as it does in its first pass: what a verification sets would be taken back after it."""
    if type(module).__name__ == FULLY_SHARDED:
        with suppress(ImportError):  # it is nobody's business but torch's
            from torch.distributed.fsdp._runtime_utils import _lazy_init

            _lazy_init(module, module)


def let_go(module: nn.Module) -> None:
    """Give up the whole weights that FSDP2 gathered for a pass: they would be out of date after the next step."""
    for part in module.modules():
        if any(kind.__name__ == SHARDING for kind in type(part).__mro__):
            part.reshard()  # type: ignore[operator]
