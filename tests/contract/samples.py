"""A sample for every backend, checkpoint layout and log format: what the contract tests run each of them on.

A new entry of one of the lists needs a sample here, or its contract test fails. Samples of layouts are written by
`tests/runs/written_layouts.py`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pytest_induction import expose_attention
from pytest_induction.runs.places import Place
from tests.attention.recorded import true_patterns
from tests.model.plain import Plain, by_hand, unreadable
from tests.runs.written_layouts import NEEDS, WRITERS, write

# Backends


class BackendSample(NamedTuple):
    """A model that a backend reads, with what its heads attend to by another account."""

    make: Callable[[], nn.Module]
    patterns: Callable[[nn.Module, Tensor], Any]  # (layers) of (rows, heads, queries, keys)
    projections: str = ""  # how the modules are called that are given what heads found; of a `Plain` there are none


def exposing(query, key, value):
    expose_attention(query=query, key=key)
    return unreadable(query, key, value)


def by_flex():
    """A model that has imported `flex_attention`, as models do before they run."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def attend(query, key, value):
        mask = create_block_mask(lambda row, head, at, of: at >= of, None, None, query.shape[2], query.shape[2], device="cpu")
        return flex_attention(query, key, value, block_mask=mask)

    return plain(attend)


def plain(attend=None):
    """A plain module with weights that are large enough for patterns far from uniform."""
    torch.manual_seed(2)
    model = Plain(attend)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    return model


def of_transformers(kind, implementation=None):
    pytest.importorskip("transformers")
    from tests.model.zoo import build

    return build(kind, implementation)


def bridge():
    pytest.importorskip("transformer_lens.model_bridge.sources._bridge_builder")
    from tests.attention.test_transformer_lens import bridge

    return bridge("gpt2")


def eager_twin(kind):
    """What a twin of the same weights returns."""

    def patterns(model, tokens):
        with torch.no_grad():
            return of_transformers(kind, "eager")(tokens, output_attentions=True, use_cache=False).attentions

    return patterns


BACKENDS = {
    "expose_attention": BackendSample(lambda: plain(exposing), true_patterns),
    "sdpa": BackendSample(plain, true_patterns),
    "flex_attention": BackendSample(by_flex, true_patterns),
    "transformers attention interface": BackendSample(
        lambda: of_transformers("llama", "eager"), eager_twin("llama"), "self_attn.o_proj"
    ),
    "eager output_attentions": BackendSample(lambda: of_transformers("bloom"), eager_twin("bloom"), "self_attention.dense"),
    "TransformerLens hook_pattern": BackendSample(bridge, eager_twin("gpt2"), "attn.o"),
    "softmax": BackendSample(lambda: plain(by_hand), true_patterns),
}


@contextmanager
def without_what_heads_found(model, sample):
    """Passes inside the block in which heads give nothing, done without any backend."""
    if not sample.projections:
        attend, model.attend = model.attend, lambda query, key, value: torch.zeros_like(value)
        yield
        model.attend = attend
        return
    found = [part for name, part in model.named_modules() if name.endswith(sample.projections)]
    assert found, f"no module is called {sample.projections}"
    hooks = [part.register_forward_pre_hook(lambda part, inputs: (torch.zeros_like(inputs[0]), *inputs[1:])) for part in found]
    yield
    for hook in hooks:
        hook.remove()


# Layouts: by the class of the layout, and for what trainers write in one that others have too

LAYOUTS = tuple(WRITERS)


def write_layout(kind, place):
    """One checkpoint of step 100 in a directory -> the weights that it has."""
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind])
    return write(kind, place)


def class_of(kind):
    """The name of the class of a sample's layout."""
    return kind.partition(",")[0]


# Logs: each with a row for every step

STEPS = list(range(0, 200, 10))
LOSSES = [round(6 - step / 50, 3) for step in STEPS]


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Place(path)


def lines(form, **more):
    """A line for every step, as `form` has it."""
    return "".join(form.format(step=step, loss=loss, **more) + "\n" for step, loss in zip(STEPS, LOSSES, strict=True))


def wandb_file(rows, *, big=0):
    """A `.wandb` file, by hand: its beginning, and records in pieces that fill blocks of 32 KiB."""
    wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content = bytearray(struct.pack("<4sHB", b":W&B", 0xBEE1, 0))
    for row in rows:
        record = wandb_internal_pb2.Record()
        for name, value in row.items():
            item = record.history.item.add()
            item.nested_key.extend(name.split("/"))
            item.value_json = json.dumps(value)
        if big:
            item = record.history.item.add()
            item.key, item.value_json = "picture", json.dumps("x" * big)
        put(content, record.SerializeToString())
    put(content, wandb_internal_pb2.Record(num=7, exit=wandb_internal_pb2.RunExitRecord()).SerializeToString())
    return bytes(content)


def put(content, data):
    first = True
    while True:
        left = 2**15 - len(content) % 2**15
        if left < 7:
            content.extend(bytes(left))
            continue
        piece, data = data[: left - 7], data[left - 7 :]
        which = {(True, False): 1, (True, True): 2, (False, True): 3, (False, False): 4}[first, bool(data)]
        content.extend(struct.pack("<IHB", zlib.crc32(piece, zlib.crc32(bytes([which]))), len(piece), which) + piece)
        first = False
        if not data:
            return


def event_files(tmp_path):
    pytest.importorskip("tensorboard")
    from tests.runs.event_files import begin, scalar, write

    path = tmp_path / "events.out.tfevents.1"
    write(path, begin(1), *(scalar(step, loss=loss) for step, loss in zip(STEPS, LOSSES, strict=True)))
    return Place(path)


def mlflow_store(root, run="0/abc", metric="loss", losses=LOSSES, name=None):
    values = "".join(f"17000000{step} {loss} {step}\n" for step, loss in zip(STEPS, losses, strict=True))
    written(root / run / "metrics" / metric, values)
    if name is not None:
        written(root / run / "tags" / "mlflow.runName", name)
    return Place(root)


LOGS = {
    "JSON document": lambda path: written(
        path / "a.json", json.dumps([{"step": step, "loss": loss} for step, loss in zip(STEPS, LOSSES, strict=True)])
    ),
    "event files": event_files,
    "W&B files": lambda path: written(
        path / "run-1.wandb", wandb_file({"_step": step, "loss": loss} for step, loss in zip(STEPS, LOSSES, strict=True))
    ),
    "MLflow store": lambda path: mlflow_store(path / "mlruns"),
    "JSON lines": lambda path: written(path / "a.jsonl", lines('{{"step": {step}, "loss": {loss}}}')),
    "table": lambda path: written(path / "a.csv", "step,loss\n" + lines("{step},{loss}")),
    "plain text": lambda path: written(path / "a.log", lines("step {step}: loss {loss}")),
}
