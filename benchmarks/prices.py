"""What calls cost on a model, in bare passes: `python benchmarks/prices.py MODEL`, where MODEL is a directory or a GGUF file.

A bare pass is one forward pass of 12 rows of 101 tokens with logits. It is timed before and after every call, and what is divided
is processor time, so that other work on the machine tells less. A call is made once, on a model that was just taken in. `--only`
names some rows, by parts of their names; `--text` is the text that in-context learning is measured on.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from torch import nn

from bare import bare_pass, processor_seconds, verdict
from pytest_induction import (
    ModelUnderTest,
    assert_ablation_removes_icl,
    assert_concept_heads,
    assert_copy_suppression,
    assert_follows_rule,
    assert_has_induction_head,
    assert_heads_generalize,
    assert_icl_heads,
    assert_icl_is_induction,
    assert_induction_circuit,
    assert_learns_in_context,
    assert_match_length,
    assert_prefers_longer_match,
    assert_recall_carried_by,
    assert_recalls,
    assert_retrieval_heads,
    find_induction_heads,
    load_model,
    measure_ablations,
    measure_competing_matches,
    measure_concept_copying,
    measure_copy_suppression,
    measure_function_vectors,
    measure_generality,
    measure_heads,
    measure_loss_by_match,
    measure_recall_paths,
    measure_retrieval,
)
from pytest_induction.charts.data import OF_A_MODEL
from pytest_induction.charts.model import charts_of_model
from pytest_induction.measuring.observing import provenance
from pytest_induction.model.load import load_module

TEXT = Path(__file__).parents[1] / "README.md"


@dataclass(frozen=True)
class Row:
    """A call, and the most that it may cost in bare passes; None where nothing is promised."""

    name: str
    bound: float | None
    call: Callable[[nn.Module, ModelUnderTest, Path], object]
    needs_taking: bool = True


CALLS = (
    Row("take a model in", 2, lambda module, _, text: load_model(module), needs_taking=False),
    Row("assert_has_induction_head", 4, lambda _, subject, text: verdict(lambda: assert_has_induction_head(subject))),
    Row("find_induction_heads", 12, lambda _, subject, text: find_induction_heads(subject)),
    Row("measure_heads, one row", None, lambda _, subject, text: measure_heads(subject, n_sequences=1)),
    Row("measure_ablations, screened", 40, lambda _, subject, text: measure_ablations(subject, screen=True)),
    Row(
        "assert_ablation_removes_icl, repeats",
        60,
        lambda _, subject, text: verdict(lambda: assert_ablation_removes_icl(subject)),
    ),
    Row(
        "assert_ablation_removes_icl, text",
        60,
        lambda _, subject, text: verdict(lambda: assert_ablation_removes_icl(subject, text)),
    ),
    Row("assert_icl_is_induction", None, lambda _, subject, text: verdict(lambda: assert_icl_is_induction(subject, text))),
    Row("measure_loss_by_match", None, lambda _, subject, text: measure_loss_by_match(subject, text)),
    Row("assert_learns_in_context", None, lambda _, subject, text: verdict(lambda: assert_learns_in_context(subject, text))),
    Row(
        "all charts of a report, with a text",
        60,
        lambda _, subject, text: charts_of_model(subject, provenance(subject), kinds=OF_A_MODEL, text=text),
    ),
    Row("assert_induction_circuit", 15, lambda _, subject, text: verdict(lambda: assert_induction_circuit(subject))),
    Row("assert_recalls", None, lambda _, subject, text: verdict(lambda: assert_recalls(subject))),
    Row(
        "assert_recall_carried_by",
        None,
        lambda _, subject, text: verdict(lambda: assert_recall_carried_by(subject, "attention")),
    ),
    Row("measure_recall_paths", None, lambda _, subject, text: measure_recall_paths(subject)),
    Row("assert_follows_rule", None, lambda _, subject, text: verdict(lambda: assert_follows_rule(subject))),
    Row("measure_generality", 5, lambda _, subject, text: measure_generality(subject)),
    Row("measure_competing_matches", 4, lambda _, subject, text: measure_competing_matches(subject)),
    Row("assert_match_length", 4, lambda _, subject, text: verdict(lambda: assert_match_length(subject))),
    Row("assert_prefers_longer_match", 5, lambda _, subject, text: verdict(lambda: assert_prefers_longer_match(subject))),
    Row("measure_copy_suppression", None, lambda _, subject, text: measure_copy_suppression(subject, text)),
    Row(
        "measure_copy_suppression, a head explained",
        None,
        lambda _, subject, text: measure_copy_suppression(subject, text, explain=(subject.n_layers - 1, 0)),
    ),
    Row("assert_copy_suppression", None, lambda _, subject, text: verdict(lambda: assert_copy_suppression(subject, text))),
    Row("measure_function_vectors", None, lambda _, subject, text: measure_function_vectors(subject)),
    Row("assert_icl_heads", None, lambda _, subject, text: verdict(lambda: assert_icl_heads(subject))),
    Row("measure_concept_copying", None, lambda _, subject, text: measure_concept_copying(subject)),
    Row("assert_concept_heads", None, lambda _, subject, text: verdict(lambda: assert_concept_heads(subject))),
    Row("measure_retrieval", 3, lambda _, subject, text: measure_retrieval(subject)),
    Row("assert_retrieval_heads", None, lambda _, subject, text: verdict(lambda: assert_retrieval_heads(subject))),
    Row("assert_heads_generalize", 5, lambda _, subject, text: verdict(lambda: assert_heads_generalize(subject, "L17H5"))),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--only", default="", help="parts of names of rows, by commas")
    parser.add_argument("--text", type=Path, default=TEXT, help="a text file (this project's README)")
    given = parser.parse_args()
    wanted = [part.strip() for part in given.only.split(",") if part.strip()]
    loaded = load_module(given.model)
    if not isinstance(loaded.module, nn.Module):
        parser.error("a model under test was given: a directory or a GGUF file is expected")
    module, bare = loaded.module, bare_pass(loaded.module)
    bare()
    missed = []
    print(f"{'call':<40} {'bare passes':>12} {'at most':>8} {'seconds':>8} {'more memory':>12}")
    for row in CALLS:
        if wanted and not any(part in row.name for part in wanted):
            continue
        before = [processor_seconds(bare)[0] for _ in range(3)]
        subject = load_model(module) if row.needs_taking else None
        if subject is not None:
            subject.tokenizer = subject.tokenizer or loaded.tokenizer
            subject._known.clear()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        seconds, found = processor_seconds(lambda row=row, subject=subject: row.call(module, subject, given.text))
        took = time.perf_counter() - began
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
        passes = seconds / median([*before, *(processor_seconds(bare)[0] for _ in range(3))])
        bound = "" if row.bound is None else f"{row.bound:g}"
        print(f"{row.name:<40} {passes:>12.2f} {bound:>8} {took:>8.1f} {more:>9.0f} MB", flush=True)
        summary = getattr(found, "verdict", None)
        if summary is not None:
            print(f"    {summary}: {getattr(found, 'summary', '')[:200]}", flush=True)
        if row.bound is not None and passes > row.bound:
            missed.append(row.name)
    if missed:
        print("missed: " + ", ".join(missed))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
