"""What `make study-pretrained` measures of cause and of change: in-context learning on three texts, the paper's arguments 3 to 5,
and copies of the model that were quantised, pruned or trained further, held against the original. Each with its price.
"""

import argparse
import copy
import inspect
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pydoc_data import topics
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bare import bare_pass, processor_seconds, verdict
from pytest_induction import (
    Evidence,
    ModelUnderTest,
    assert_ablation_removes_icl,
    assert_copies_repeats,
    assert_heads_generalize,
    assert_heads_preserved,
    assert_induction_circuit,
    assert_learns_in_context,
    find_induction_heads,
    load_model,
)

ROOT = Path(__file__).parents[1]
TEXT_CHARACTERS = 400_000
BARE_TURNS = 5
GROUP = 64  # weights of a row that share a scale
BITS = (8, 6, 4, 3, 2)
SHARES = (0.2, 0.5, 0.7)
STEPS, STEP_ROWS, STEP_TOKENS, LEARNING_RATE = 30, 4, 128, 2e-5
SEEDS = 3  # of what is told of generality
Json = dict[str, Any]


def texts() -> dict[str, str]:
    """Three texts that are on every machine: the manual of Python, code of its library, and the pages of this project."""
    code = "\n".join(map(inspect.getsource, (argparse, copy, inspect)))
    pages = "\n".join(
        page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").rglob("*.md")) if page.stem != "pretrained"
    )
    found = {"manual": "\n".join(topics.topics.values()), "code": code, "documentation": pages}
    return {name: text[:TEXT_CHARACTERS] for name, text in found.items()}


class Price:
    """Processor time in bare passes of a model: 12 rows of 101 tokens, with logits."""

    def __init__(self, module: nn.Module) -> None:
        run = bare_pass(module)
        run()
        self.bare = median(processor_seconds(run)[0] for _ in range(BARE_TURNS))

    def of(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """What a call costs, and what it gives."""
        seconds, found = processor_seconds(call)
        return round(seconds / self.bare, 1), found


def evidence_row(price: Price, call: Callable[[], Evidence]) -> Json:
    """What is kept of one verdict."""
    passes, found = price.of(lambda: verdict(call))
    return {
        "verdict": str(found.verdict),
        "reason": found.reason,
        "summary": found.summary,
        "estimates": {name: _interval(each) for name, each in (found.estimates or {}).items()},
        "sequences": found.provenance.n_sequences,
        "heads": [str(head) for head in found.heads],
        "passes": passes,
    }


def _interval(estimate: Any) -> list[float]:
    return [round(value, 4) for value in (estimate.value, estimate.low, estimate.high)]


def evidence(subject: ModelUnderTest) -> Iterator[tuple[str, Callable[[Price], Json]]]:
    """Every verdict of the study on one model, by its name: measured anew when it is called."""

    def fresh(call: Callable[[], Evidence]) -> Callable[[Price], Json]:
        def measured(price: Price) -> Json:
            subject._known.clear()
            return evidence_row(price, call)

        return measured

    found = texts()
    yield "copies_repeats", fresh(lambda: assert_copies_repeats(subject))
    for name, text in found.items():
        yield f"learns_in_context {name}", fresh(lambda text=text: assert_learns_in_context(subject, text))
    yield "ablation_removes_icl repeats", fresh(lambda: assert_ablation_removes_icl(subject))
    for name, text in found.items():
        yield f"ablation_removes_icl {name}", fresh(lambda text=text: assert_ablation_removes_icl(subject, text))
    for seed in range(SEEDS):
        yield f"heads_generalize {seed}", fresh(lambda seed=seed: assert_heads_generalize(subject, _listed(subject), seed=seed))
    yield "induction_circuit", fresh(lambda: assert_induction_circuit(subject))


def _listed(subject: ModelUnderTest) -> list[str]:
    return [str(head) for head in find_induction_heads(subject).heads]


def session(directory: Path, place: Path, price: Price) -> Json:
    """Write the records of a pytest session on the model, with a text and all charts, and say what it cost."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "manual.txt"
        text.write_text(texts()["manual"], encoding="utf-8")
        options = ["--induction-model", str(directory), "--induction-text", str(text), "--induction-report", str(place)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, *options],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stdout=subprocess.DEVNULL,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if place.is_file():
            without_places(place, {str(directory): directory.name, str(place): place.name, f"{folder}/": "", folder: "."})
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"exit_status": ended.returncode, "passes": round(seconds / price.bare, 1)}


def without_places(record: Path, names: Mapping[str, str]) -> None:
    """Name files in a record as a reader would, and not by where they lay on one machine."""
    text = record.read_text(encoding="utf-8")
    for place, name in names.items():
        text = text.replace(place, name)
    record.write_text(text, encoding="utf-8")


def linear_weights(module: nn.Module) -> Iterator[Tensor]:
    """The weights (out, in) of every linear map but that of the vocabulary, as quantisation and pruning take them."""
    vocabulary = getattr(module.config, "vocab_size", None)
    for part in module.modules():
        if isinstance(part, nn.Linear) and vocabulary not in (part.out_features, part.in_features):
            yield part.weight


@torch.no_grad()
def quantise(module: nn.Module, bits: int) -> None:
    """Round weights to the nearest of 2^bits - 1 values, which lie evenly about 0 and end at the largest of each 64 in a row."""
    most = 2 ** (bits - 1) - 1
    for weight in linear_weights(module):
        padded = F.pad(weight, (0, -weight.shape[1] % GROUP))
        groups = padded.unflatten(1, (-1, GROUP))
        scale = groups.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / most
        weight.copy_(((groups / scale).round() * scale).flatten(1)[:, : weight.shape[1]])


@torch.no_grad()
def prune(module: nn.Module, share: float) -> None:
    """Set that share of each linear map's weights to 0, the smallest ones."""
    for weight in linear_weights(module):
        count = round(share * weight.numel())
        weight.view(-1)[weight.abs().view(-1).argsort()[:count]] = 0


def train_further(module: nn.Module, ids: Tensor) -> None:
    """30 steps of AdamW on rows (rows, 128) of a text, four rows a step."""
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE)
    for step in range(STEPS):
        rows = ids[torch.arange(step * STEP_ROWS, (step + 1) * STEP_ROWS) % len(ids)]
        optimizer.zero_grad(set_to_none=True)
        logits = module(rows, use_cache=False).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten()).backward()
        optimizer.step()
    module.eval()
    for weight in module.parameters():
        weight.grad = None


def changes(subject: ModelUnderTest) -> dict[str, Callable[[nn.Module], None]]:
    """What is done to a copy of the model, by its name in the table."""

    def trained(module: nn.Module) -> None:
        text = texts()["code"]
        ids = torch.tensor(subject.tokenizer(text)["input_ids"])
        train_further(module, ids[: len(ids) // STEP_TOKENS * STEP_TOKENS].view(-1, STEP_TOKENS))

    return {
        **{f"{bits} bits": lambda module, bits=bits: quantise(module, bits) for bits in BITS},
        **{f"{share:.0%} pruned": lambda module, share=share: prune(module, share) for share in SHARES},
        f"{STEPS} steps of fine-tuning": trained,
    }


def held(subject: ModelUnderTest, change: Callable[[nn.Module], None], price: Price) -> Json:
    """The verdict on a changed copy of the model, held against the original."""
    module = copy.deepcopy(subject.module)
    change(module)
    subject._known.clear()
    return evidence_row(price, lambda: assert_heads_preserved(subject, load_model(module)))
