"""What calls take, in bare passes: `make prices` measures them on three models and writes the table of docs/performance.md.

The models are the two pretrained ones of `make study-pretrained`, and `22x32`: random weights in bfloat16, of so many layers and
heads. Another such pair is another model of that kind, and a directory or a GGUF file is a model too; what these take is printed
and not kept.

A bare pass is one forward pass of 12 rows of 101 tokens with logits. It is timed before and after every call, and what is divided
is processor time, so that other work on the machine tells less. A call is made once, on a model that was just taken in. `--only`
names some rows, by parts of their names; the rest is kept. `--draw` measures nothing, and `--check` writes nothing either, and
exits with 1 where the page is not what the record gives.
"""

import argparse
import json
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from bare import bare_pass, processor_seconds, verdict
from machine import processor
from pages import drawn, filled
from pretrained_causes import texts
from pretrained_fetch import SOURCES, FetchError, cache_directory, plain_directory
from pytest_induction import (
    InductionError,
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
from pytest_induction.spending import BARE_PASS, calling

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "fixtures" / "prices.json", ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- prices: begin -->", "<!-- prices: end -->"
SCHEMA = 1
SHAPE = re.compile(r"(\d+)x(\d+)")  # layers and heads of a random model
PER_HEAD, HEADS_PER_KEY, VOCABULARY, CONTEXT = 64, 8, 32_000, 2048
KEPT = {"smollm2": "SmolLM2-135M-Instruct", "gemma3": "Gemma 3 270M", "22x32": "22 layers of 32 heads, random, bfloat16"}
TURNS = 3  # bare passes before and after each call
ROW_OF_TEXT = 512  # bytes, of a model without a tokenizer
WIDTH = 165  # of a line of the page
Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A call, and the most that it may cost in bare passes; None where nothing is promised.

    `words` says that it asks for a tokenizer.
    """

    name: str
    bound: float | None
    call: Callable[[nn.Module, ModelUnderTest, Any], object]
    needs_taking: bool = True
    words: bool = False


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
    Row("measure_function_vectors", None, lambda _, subject, text: measure_function_vectors(subject), words=True),
    Row("assert_icl_heads", None, lambda _, subject, text: verdict(lambda: assert_icl_heads(subject)), words=True),
    Row("measure_concept_copying", None, lambda _, subject, text: measure_concept_copying(subject), words=True),
    Row("assert_concept_heads", None, lambda _, subject, text: verdict(lambda: assert_concept_heads(subject)), words=True),
    Row("measure_retrieval", 6, lambda _, subject, text: measure_retrieval(subject), words=True),
    Row("assert_retrieval_heads", None, lambda _, subject, text: verdict(lambda: assert_retrieval_heads(subject)), words=True),
    Row(
        "assert_heads_generalize",
        5,
        lambda _, subject, text: verdict(lambda: assert_heads_generalize(subject, strongest(subject))),
    ),
)


def strongest(subject: ModelUnderTest) -> str:
    """The head of the list that matches most, found before the call; any head where there is none."""
    heads = find_induction_heads(subject).heads
    return str(max(heads, key=lambda head: head.prefix_matching.value)) if heads else f"L{subject.n_layers // 2}H0"


def random_model(n_layers: int, n_heads: int) -> nn.Module:
    """Llama's layers with random weights in bfloat16, 64 numbers for each head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width = PER_HEAD * n_heads
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=max(1, n_heads // HEADS_PER_KEY),
        max_position_embeddings=CONTEXT,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def loaded(name: str) -> tuple[nn.Module, Any]:
    """A model by its name, with its tokenizer."""
    if shape := SHAPE.fullmatch(name):
        return random_model(int(shape[1]), int(shape[2])), None
    found = load_module(str(plain_directory(SOURCES[name], cache_directory())) if name in SOURCES else name)
    if not isinstance(found.module, nn.Module):
        raise SystemExit(f"{name} is a model under test: a directory or a GGUF file is expected")
    return found.module, found.tokenizer


def text_of(tokenizer: Any) -> Any:
    """The manual of Python, as ids in rows where there is no tokenizer: a byte is an id."""
    manual = texts()["manual"]
    if tokenizer is not None:
        return manual
    ids = np.frombuffer(manual.encode(), dtype=np.uint8).astype(np.int64)
    return ids[: len(ids) // ROW_OF_TEXT * ROW_OF_TEXT].reshape(-1, ROW_OF_TEXT)


def priced(module: nn.Module, tokenizer: Any, wanted: Sequence[str]) -> Iterator[tuple[str, Json]]:
    """What each call takes, as it comes."""
    bare, text = bare_pass(module), text_of(tokenizer)
    bare()
    for row in CALLS:
        if (wanted and not any(part in row.name for part in wanted)) or (row.words and tokenizer is None):
            continue
        yield row.name, price_of(row, module, tokenizer, text, bare)


def price_of(row: Row, module: nn.Module, tokenizer: Any, text: Any, bare: Callable[[], Any]) -> Json:
    """Bare passes by processor time and by tokens that were run, and seconds; with the verdict, where the call gives one."""
    subject: Any = None
    if row.needs_taking:
        subject = load_model(module)
        subject.tokenizer = subject.tokenizer or tokenizer
        if "generalize" in row.name:
            strongest(subject)  # which is known then: the list has a row of its own
        else:
            subject._known.clear()
    before = [processor_seconds(bare)[0] for _ in range(TURNS)]
    began = time.perf_counter()
    try:
        with calling(row.name, lambda _: None) as run:
            seconds, found = processor_seconds(lambda: row.call(module, subject, text))
    except InductionError as error:
        return {"error": str(error).partition("\n")[0]}
    took = time.perf_counter() - began
    passes = seconds / median([*before, *(processor_seconds(bare)[0] for _ in range(TURNS))])
    kept = {"passes": round(passes, 2), "run": round(run.tokens / BARE_PASS, 2), "seconds": round(took, 1)}
    said = getattr(found, "verdict", None)
    return kept if said is None else {**kept, "verdict": str(said), "summary": found.summary}


def line(name: str, found: Json) -> str:
    if "error" in found:
        return f"{name:<44} {found['error']}"
    bound = next(row.bound for row in CALLS if row.name == name)
    figures = f"{found['passes']:>8.2f} {'' if bound is None else f'{bound:g}':>7} {found['seconds']:>8.1f}"
    return f"{name:<44} {figures}  {found.get('verdict', '')}"


def missed(rows: Mapping[str, Json]) -> list[str]:
    """The calls that took more than is promised."""
    return [row.name for row in CALLS if row.bound is not None and rows.get(row.name, {}).get("passes", 0) > row.bound]


def kept() -> dict[str, Json]:
    """The record, by model; empty where there is none."""
    if not RECORD.is_file():
        return {}
    raw = json.loads(RECORD.read_text(encoding="utf-8"))
    if raw.get("schema") != SCHEMA:
        raise SystemExit(f"{RECORD.name} must have schema {SCHEMA}: measure again with `make prices`")
    return dict(raw["models"])


def keep(models: Mapping[str, Json]) -> None:
    """Write the record, a call a line."""
    parts = []
    for name in (name for name in KEPT if name in models):
        rows = ",\n".join(f"    {json.dumps(call)}: {json.dumps(found)}" for call, found in models[name]["rows"].items())
        parts.append(f'  "{name}": {{"about": {json.dumps(models[name]["about"])}, "rows": {{\n{rows}\n  }}}}')
    RECORD.write_text(f'{{"schema": {SCHEMA}, "models": {{\n' + ",\n".join(parts) + "\n}}\n", encoding="utf-8")


def about() -> Json:
    """Where it is measured."""
    import transformers

    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def cell(row: Row, found: Json | None) -> str:
    if found is None:
        return ""
    if "error" in found:
        return "n/a"
    passes = f"{found['passes']:.1f}"
    passes = f"**{passes}**" if row.bound is not None and found["passes"] > row.bound else passes
    told = f"{passes} ({found['run']:.1f})" if found.get("run") else passes
    return f"{told} {found['verdict']}" if "verdict" in found else told


def table(models: Mapping[str, Json]) -> str:
    """What stands between the markers of the page."""
    if not models:
        raise SystemExit(f"there is no {RECORD.name}: measure with `make prices`")
    names = [name for name in KEPT if name in models]
    rows = [["call", "at most", *(KEPT[name] for name in names)], ["---"] * (2 + len(names))]
    for row in CALLS:
        found = [models[name]["rows"].get(row.name) for name in names]
        if any(found):
            bound = "" if row.bound is None else f"{row.bound:g}"
            rows.append([row.name, bound, *(cell(row, each) for each in found)])
    where = {
        f"{each['about']['threads']} thread of {each['about']['processor']}, torch {each['about']['torch']}"
        for each in models.values()
    }
    return "\n".join(
        [*textwrap.wrap(f"{'; '.join(sorted(where))}.", WIDTH), "", *(f"| {' | '.join(cells)} |" for cells in rows), "", ""]
    )


def measure(name: str, only: Sequence[str]) -> list[str]:
    """Measure a model, print what comes, keep it where the model has a column; what took more than is promised."""
    module, tokenizer = loaded(name)
    print(f"{name:<44} {'passes':>8} {'at most':>7} {'seconds':>8}", flush=True)
    rows: Json = {}
    where = about()
    for call, found in priced(module, tokenizer, only):
        rows[call] = found
        print(line(call, found), flush=True)
        if name in KEPT:
            models = kept()
            known = {**models.get(name, {"rows": {}})["rows"], call: found}
            models[name] = {"about": where, "rows": {row.name: known[row.name] for row in CALLS if row.name in known}}
            keep(models)
    return [f"{name}: {call}" for call in missed(rows)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"which models to measure (default: {' '.join(KEPT)})")
    parser.add_argument("--only", default="", help="parts of names of rows, by commas")
    parser.add_argument("--draw", action="store_true", help="write the page from what is kept")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is out of date")
    given = parser.parse_args(arguments)
    only = [part.strip() for part in given.only.split(",") if part.strip()]
    over: list[str] = []
    if not given.draw and not given.check:
        torch.set_num_threads(1)
        try:
            over = [each for name in given.models or KEPT for each in measure(name, only)]
        except (FetchError, InductionError) as error:
            print(error, file=sys.stderr)
            return 1
        if over:
            print("more than is promised: " + "; ".join(over))
        if not KEPT.keys() & set(given.models or KEPT):
            return int(bool(over))
    page = filled(PAGE.read_text(encoding="utf-8"), BEGIN, END, table(kept()))
    source = f"{RECORD.name} gives; `make prices PRICES=--draw` writes it"
    return drawn(PAGE, page, check=given.check, source=source) or int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
