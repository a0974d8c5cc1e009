"""How often the verdict on induction heads is wrong: `make study-verdicts` runs it and prints a table.

| row | models | right answer |
|---|---|---|
| random weights | 300 of varied kind, shape, vocabulary and scale | NOT_FORMED |
| one layer, shipped | one model, 50 probe seeds | NOT_FORMED |
| one layer, trained again | 50 training seeds | NOT_FORMED |
| two layers, shipped | one model, 50 probe seeds | FORMED |
| two layers, trained again | 50 training seeds, those that have a head by the reference | FORMED |
| copies without a head | GPT-2 shapes trained on the synthetic corpus, 2 seeds | not FORMED |

The reference for the two-layer models trained again is a separate measurement on 40 sequences of another seed, made by eager
attention and the slow loops of the tests: a head counts if its prefix matching there is above 0.5. FORMED is wrong where there
is no head; anything else is wrong where there is one. Exits with 1 if any verdict is wrong. `--quick` runs a tenth of each row.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "fixtures")]

from tests.reference import slow  # noqa: E402
from tests.verdicts.random_models import random_models  # noqa: E402

import make as fixtures  # noqa: E402
from attention_only import AttentionOnly  # noqa: E402
from pytest_induction import Evidence, ExpectationFailed, Verdict, assert_has_induction_head  # noqa: E402

REFERENCE_BAR = 0.5
TRAINING_STEPS = 600


def evidence_of(model: object, seed: int = 0) -> Evidence:
    try:
        return assert_has_induction_head(model, seed=seed)
    except ExpectationFailed as failure:
        return failure.evidence


def trained_again(name: str, seeds: range) -> Iterator[nn.Module]:
    for seed in seeds:
        recipe = replace(fixtures.RECIPES[name], seed=seed, steps=TRAINING_STEPS)
        yield fixtures.train(recipe, ROOT, quiet=True)[0]


def copiers(seeds: range) -> Iterator[nn.Module]:
    """Two-layer GPT-2 shapes with MLPs: they learn to copy through a pair of heads, no single one of which matches."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def build() -> nn.Module:
        sizes = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 64, "vocab_size": 128}
        no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, bos_token_id=0, eos_token_id=0))

    for seed in seeds:
        recipe = replace(fixtures.RECIPES["llama-2l"], build=build, steps=900, learning_rate=5e-3, seed=seed)
        yield fixtures.train(recipe, ROOT, quiet=True)[0]


def best_by_reference(model: AttentionOnly, n_sequences: int = 40) -> float:
    """The highest prefix matching of any head by eager patterns and slow loops, on probes of seeds that no verdict uses."""
    rng = np.random.default_rng([2026, 11])
    rows = [np.concatenate([[0], np.tile(1 + rng.permutation(127)[: int(rng.integers(8, 16))], 4)]) for _ in range(n_sequences)]
    found: list[np.ndarray] = []
    for row in rows:
        patterns = eager_patterns(model, torch.from_numpy(row)[None])
        found.append(
            np.array([[slow.head_scores(head, row.tolist())["prefix_matching"] for head in layer] for layer in patterns])
        )
    return float(np.mean(found, axis=0).max())


def eager_patterns(model: AttentionOnly, tokens: Tensor) -> list[np.ndarray]:
    """Softmax of the masked scores of every layer, from its own projections: (heads, positions, positions) each."""
    patterns, original = [], torch.nn.functional.scaled_dot_product_attention

    def watched(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> Tensor:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        ahead = torch.ones(scores.shape[-2:]).triu(1).bool()
        patterns.append(scores.masked_fill(ahead, -torch.inf).softmax(-1)[0].double().numpy())
        return original(query, key, value, is_causal=is_causal)

    torch.nn.functional.scaled_dot_product_attention = watched
    try:
        with torch.no_grad():
            model(tokens)
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
    return patterns


class Table:
    """Rows as they are finished, and whether any verdict was wrong."""

    def __init__(self) -> None:
        self.wrong = 0
        print(
            f"{'row':<32} {'n':>4}  {'FORMED':>6} {'NOT_FORMED':>10} {'UNDETERMINED':>12}  {'wrong':>5} {'seconds':>8}  reasons"
        )

    def row(self, name: str, verdicts: Iterator[Evidence], is_right: Callable[[Evidence], bool]) -> None:
        started = time.perf_counter()
        found = list(verdicts)
        counts, reasons = Counter(e.verdict for e in found), Counter(e.reason for e in found)
        wrong = sum(not is_right(e) for e in found)
        self.wrong += wrong
        cells = f"{counts[Verdict.FORMED]:>6} {counts[Verdict.NOT_FORMED]:>10} {counts[Verdict.UNDETERMINED]:>12}"
        told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        print(f"{name:<32} {len(found):>4}  {cells}  {wrong:>5} {time.perf_counter() - started:>8.0f}  {told}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of each row")
    share = 10 if parser.parse_args().quick else 1
    torch.set_num_threads(1)
    many, fifty, two = 300 // share, 50 // share, max(1, 2 // share)
    table = Table()

    def is_absent(evidence: Evidence) -> bool:
        return evidence.verdict is not Verdict.FORMED  # UNDETERMINED is no false alarm, and has a column of its own

    def is_there(evidence: Evidence) -> bool:
        return evidence.verdict is Verdict.FORMED

    table.row("random weights", (evidence_of(model) for model in random_models(many, seed=1)), is_absent)
    one, two_layers = (f"{ROOT}/fixtures/attention_only.py:{name}" for name in ("one_layer", "two_layers"))
    table.row("one layer, shipped", (evidence_of(one, seed) for seed in range(fifty)), is_absent)
    table.row("two layers, shipped", (evidence_of(two_layers, seed) for seed in range(fifty)), is_there)
    table.row("one layer, trained again", (evidence_of(m) for m in trained_again("attn-only-1l", range(1, fifty + 1))), is_absent)
    models = list(trained_again("attn-only-2l", range(1, fifty + 1)))
    formed = [model for model in models if best_by_reference(model) > REFERENCE_BAR]
    table.row("two layers, trained again", (evidence_of(model) for model in formed), is_there)
    rest = [model for model in models if not any(model is other for other in formed)]
    table.row("  of these without head", (evidence_of(model) for model in rest), lambda e: True)
    table.row("copies without a head", (evidence_of(model) for model in copiers(range(two))), lambda e: not is_there(e))
    return int(table.wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
