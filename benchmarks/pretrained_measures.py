"""What `make study-pretrained` measures of a pretrained model: its heads, a check by eager attention, lists over seeds, cost."""

import gc
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.measuring import slow
from torch import Tensor, nn

from bare import verdict
from machine import processor
from pytest_induction import (
    Evidence,
    assert_has_induction_head,
    find_induction_heads,
    load_model,
    measure_heads,
)
from pytest_induction.attention.scores import SCORES
from pytest_induction.heads.match_lengths import POSITIONS
from pytest_induction.measuring.rounds import score_irregular
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.irregular import LISTS, irregular_sequences
from pytest_induction.probes.sequences import fitting_shape, repeated_sequences
from pytest_induction.records import HeadEvidence, installed

BARE_ROWS = 12  # of the bare pass, each as long as the longest row of a probe: 101 tokens, a first one and four copies of 25
TOP = 10
Json = dict[str, Any]


@dataclass(frozen=True)
class Listed:
    """The induction heads of a model at one seed: those listed, those near the threshold, those not decided, and those that match
    and do not count, with what they do instead.

    `match_lengths` has what each listed head attends to where exactly one, exactly two, and three or more tokens match. `scores`
    are of every head, a row for each layer.
    """

    heads: tuple[HeadEvidence, ...]
    near: tuple[str, ...]
    undecided: tuple[str, ...]
    ruled_out: dict[str, str]
    match_lengths: dict[str, list[float]]
    n_sequences: int
    scores: tuple[tuple[float | None, ...], ...]


def verdict_of(subject: ModelUnderTest, seed: int) -> Evidence:
    """The yes or no question, measured anew."""
    subject._known.clear()
    return verdict(lambda: assert_has_induction_head(subject, seed=seed))


def list_of(subject: ModelUnderTest, seed: int) -> Listed:
    """The list of heads, measured anew. What names heads in the package is asked here and nowhere else."""
    subject._known.clear()
    found = find_induction_heads(subject, seed=seed)
    lengths = {str(head): [round(each.value, 4) for each in head.match_lengths] for head in found.heads if head.match_lengths}
    near, undecided = (tuple(map(str, heads)) for heads in (found.near, found.undecided))
    ruled_out = {str(head): head.kind for head in found.ruled_out}
    return Listed(found.heads, near, undecided, ruled_out, lengths, found.provenance.n_sequences, found.head_map)


def about(subject: ModelUnderTest) -> Json:
    """What the model is and what it ran on."""
    module = subject.module
    return {
        "layers": subject.n_layers,
        "heads": subject.n_heads,
        "vocabulary": subject.space.d_vocab,
        "context": subject.space.n_ctx,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "backend": subject.reading.name,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **installed(("torch", "transformers"))},
    }


def described(head: HeadEvidence, lengths: Sequence[float] | None) -> Json:
    """What the table says of a listed head."""
    ends = {name: _interval(getattr(head, name)) for name in ("prefix_matching", "excess", "copy_effect")}
    place = {"head": str(head), "layer": head.layer, "index": head.head}
    return {**place, **ends, "chance": round(head.null, 4), "match_lengths": None if lengths is None else [*lengths]}


def _interval(estimate: Any) -> list[float] | None:
    return None if estimate is None else [round(value, 4) for value in (estimate.value, estimate.low, estimate.high)]


def of_seed(found: Listed, seed: int, seconds: float) -> Json:
    """What is kept of the list at one seed."""
    return {
        "seed": seed,
        "heads": [str(head) for head in found.heads],
        "near": [*found.near],
        "undecided": [*found.undecided],
        "ruled_out": found.ruled_out,
        "sequences": found.n_sequences,
        "seconds": round(seconds, 1),
        "scores": [[None if score is None else round(score, 3) for score in layer] for layer in found.scores],
    }


def check(subject: ModelUnderTest, directory: Path, rows: int, record: Json) -> Json:
    """Scores by the patterns that eager attention returns and slow loops: on the same rows, and against the rows of all seeds.

    The model is loaded once more for it.
    """
    from transformers import AutoModelForCausalLM

    twin = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=subject.dtype).eval()
    rng = np.random.default_rng([2026, 19])
    periodic = periodic_rows(subject, rows, rng)
    found = [measure_heads(subject, tokens=tokens).per_sequence for tokens in periodic]
    ours = np.array([[each[name][0] for name in SCORES] for each in found])
    theirs = np.array([slow_scores(twin, tokens, slow.head_scores, SCORES) for tokens in periodic])
    n_positions = POSITIONS + (subject.space.bos_id is not None)
    irregular = irregular_sequences(subject.space, n_positions=n_positions, rng=rng, n_sequences=rows)
    their_lengths = [slow_scores(twin, torch.from_numpy(row[None]), slow.match_lengths, LISTS) for row in irregular.tokens]
    del twin
    gc.collect()
    apart = dict(zip(SCORES, np.abs(ours - theirs).max(axis=(0, 2, 3)), strict=True))
    our_lengths = np.stack([*score_irregular(subject, irregular).values()], axis=1)
    apart["match_lengths"] = np.abs(our_lengths - np.array(their_lengths)).max()
    eager = theirs[:, 0].mean(axis=0)
    drawn = np.mean([np.array(each["scores"], dtype=np.float64) for each in record["seeds"]], axis=0)
    top = min(TOP, eager.size)
    best = [{int(at) for at in np.argsort(-scores.ravel(), kind="stable")[:top]} for scores in (eager, drawn)]
    return {
        "rows": rows,
        "apart": {name: float(f"{value:.2g}") for name, value in apart.items()},
        "correlation": round(float(np.corrcoef(eager.ravel(), drawn.ravel())[0, 1]), 5),
        "top": top,
        "top_shared": len(best[0] & best[1]),
    }


def periodic_rows(subject: ModelUnderTest, count: int, rng: np.random.Generator) -> list[Tensor]:
    """Rows (1, positions) of four copies of a random block, their periods spread over those that probes have."""
    periods, repeats = fitting_shape(subject.space)
    chosen = np.linspace(periods[0], periods[-1], count).round().astype(int)
    made = (repeated_sequences(subject.space, period=int(period), rng=rng, repeats=repeats) for period in chosen)
    return [torch.from_numpy(probe.tokens) for probe in made]


def patterns_of(twin: nn.Module, tokens: Tensor) -> list[np.ndarray]:
    """Of each layer (heads, queries, keys), as transformers returns them."""
    with torch.no_grad():
        returned = twin(tokens, use_cache=False, output_attentions=True).attentions
    return [pattern[0].double().numpy() for pattern in returned]


def slow_scores(twin: nn.Module, tokens: Tensor, loops: Callable[..., dict[str, float]], names: Sequence[str]) -> np.ndarray:
    """What loops find in the patterns of one row (1, positions): (names, layers, heads)."""
    row = tokens[0].tolist()
    found = [[loops(head, row) for head in layer] for layer in patterns_of(twin, tokens)]
    return np.array([[[head[name] for head in layer] for layer in found] for name in names])


def cost(subject: ModelUnderTest, turns: int, say: Callable[[str], None]) -> Json:
    """Seconds of the verdict, of the list and of bare passes in each turn, after a warm-up; each turn has another seed."""
    periods, copies = fitting_shape(subject.space)
    shape = {"period": periods[-1], "repeats": copies, "n_sequences": BARE_ROWS}
    probe = repeated_sequences(subject.space, rng=np.random.default_rng(0), **shape)
    rows, module = torch.from_numpy(probe.tokens), subject.module
    sides: dict[str, Callable[[int], object]] = {
        "bare": lambda _: _bare(module.base_model, rows),
        "bare_with_logits": lambda _: _bare(module, rows),
        "verdict": lambda seed: verdict_of(subject, seed),
        "list": lambda seed: list_of(subject, seed),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-1, turns):
        names = [*sides]
        for name in names if turn % 2 else reversed(names):
            started = time.perf_counter()
            sides[name](max(turn, 0))
            if turn >= 0:  # the first is the warm-up
                taken[name].append(time.perf_counter() - started)
        say(f"cost: turn {turn + 1} of {turns}")
    seconds = {name: [round(each, 4) for each in of_side] for name, of_side in taken.items()}
    return {"rows": list(rows.shape), "threads": torch.get_num_threads(), "seconds": seconds}


@torch.no_grad()
def _bare(module: nn.Module, rows: Tensor) -> None:
    module(rows, use_cache=False)


def loaded(directory: Path) -> ModelUnderTest:
    return load_model(directory)
