"""The claims since the paper, measured on the shipped models and the zoo: `make field` writes the table of docs/field.md.

What was measured is kept in `fixtures/field.json`. The zoo keeps no weights, so its synthetic models are trained again, each for
the seeds that it has, and the loss at the end is held against that of the run. Names measure these only and keep the rest;
`--draw` measures nothing; `--check` writes nothing either, and exits with 1 where the page is not what the record gives.
"""

import argparse
import json
import math
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pages import drawn, filled
from paper_runs import ROOT
from paper_table import NONE, amount, between
from pytest_induction.heads.criteria import MIN_PREFIX_MATCHING, excess

FIXTURES = ROOT / "fixtures"
RECORD, PAGE = FIXTURES / "field.json", ROOT / "docs" / "field.md"
BEGIN, END = "<!-- zoo: begin -->", "<!-- zoo: end -->"
SCHEMA = 1
PROBE_SEEDS = (0, 1, 2)  # of shipped models; those of the zoo are of one seed each, 0, as three were trained
PAIRS = 8
DIGITS = 5
WIDTH = 165  # of a line of the page
Runs = list[dict[str, Any]]
FACTORIES = {"attn-only-1l": "one_layer", "attn-only-1l-smeared": "one_layer_smeared", "attn-only-2l": "two_layers"}
FACTORIES |= {"attn-only-3l-text": "three_layers_text"}
HELD_OUT_SEED = 10_000
RECALLABLE = {"mamba2-2l", "bamba-2l"}  # learned on `Recallable` rows, the others on `Repetitive` ones or on text
HELD_OUT_ROWS = 128

HEADINGS = (
    "model",
    "seeds",
    "heads that match one token, two, three",
    "gain of the longer match, nats",
    "preference of the head that matches most",
    "foretold tokens cost less by, nats",
    f"recall of {PAIRS} pairs",
    "ABA",
    "ABB",
)
ABOUT = (
    "Means over the seeds (lowest..highest): of the probes for shipped models, of the training for the zoo, whose probes have "
    "seed 0. Heads: how many have 0.3 or more beyond chance where so many tokens match. Preference: n/a where heads match too "
    "little to tell, or there is no attention. Foretold tokens, by a match of two or more, are held against all others of "
    f"held-out rows of the kind that the model learned. A guess recalls {1 / PAIRS:g}. ABA and ABB: the share of lines completed "
    "by the rule behind {examples} examples, where a guess has 0.5."
)


def measured(model: Any, text: Any, seed: int) -> dict[str, Any]:
    """All figures of one model: counts, nats, and shares. `text` is what foretold tokens are told on; None where it cannot be."""
    from pytest_induction import (
        load_model,
        measure_competing_matches,
        measure_loss_by_match,
        measure_match_lengths,
        measure_recall,
        measure_rules,
    )
    from pytest_induction.behaviour.matches import FORETOLD
    from pytest_induction.heads.match_lengths import LENGTHS

    subject = load_model(model)
    found: dict[str, Any] = {"seed": seed, "heads": None}
    if subject.backend is not None:
        lengths = measure_match_lengths(subject, seed=seed)
        found["heads"] = [heads_that_match(getattr(lengths, name), lengths.after_breaks) for name in LENGTHS]
    competing = measure_competing_matches(subject, seed=seed)
    found["gain"] = competing.estimates["gain"].value
    found["preference"] = strongest_preference(competing)
    by_match = measure_loss_by_match(subject, text)
    foretold = np.isin(by_match.classes, FORETOLD)
    found["foretold"] = float(by_match.losses[~foretold].mean() - by_match.losses[foretold].mean())
    found["recall"] = measure_recall(subject, pairs=PAIRS, seed=seed).points[0].recall_accuracy.value
    lines = measure_rules(subject, seed=seed).points[-1]
    found |= {"examples": lines.examples, "aba": lines.aba_accuracy.value, "abb": lines.abb_accuracy.value}
    return {name: round(value, DIGITS) if isinstance(value, float) else value for name, value in found.items()}


def heads_that_match(mass: np.ndarray, chance: np.ndarray) -> int:
    """How many heads of (n_layers, n_heads) match, beyond chance, as `find_induction_heads` asks it of one."""
    return int((excess({"prefix_matching": mass, "chance": chance}) >= MIN_PREFIX_MATCHING).sum())


def strongest_preference(competing: Any) -> float | None:
    """That of the head with the most beyond its null on the three competing matches; None where it is too little to tell."""
    if not competing.excess.size:
        return None
    value = float(competing.preference.ravel()[int(np.nanargmax(competing.excess))])
    return None if math.isnan(value) else value


def shipped(name: str) -> Iterator[dict[str, Any]]:
    """A model of `fixtures/models`, by three seeds of the probes."""
    import attention_only
    from corpora import Recallable, Repetitive
    from pytest_induction import load_model

    place = FIXTURES / "models" / name
    model = load_model(getattr(attention_only, FACTORIES[name])() if name in FACTORIES else str(place))
    text = place / "held_out.txt"
    rows = (Recallable() if name in RECALLABLE else Repetitive()).batches(HELD_OUT_ROWS, HELD_OUT_SEED)
    for seed in PROBE_SEEDS:
        yield measured(model, text if text.is_file() else next(rows).numpy(), seed)


def of_the_zoo(kind: str, seed: int) -> Iterator[dict[str, Any]]:
    """A model of the zoo, trained again, with the loss of its run at the end beside that of this training."""
    from pytest_induction import load_run
    from trainings import held_out_of, train
    from zoo import ZOO, training_of

    training, losses = training_of(kind), list[float]()
    model = train(training, seed, on_step=lambda _, step, loss: losses.append(loss)).eval()
    found = measured(model, held_out_of(training), PROBE_SEEDS[0])
    of_the_run = float(load_run(ZOO / f"{kind}-s{seed}").column("loss")[-1])
    yield {**found, "seed": seed, "loss": round(losses[-1], DIGITS), "loss_of_the_run": round(of_the_run, DIGITS)}


def measurements() -> dict[str, Any]:
    """What measures each model, by its name: `llama-2l`, `zoo 2l-s0`."""
    sys.path.insert(0, str(FIXTURES))
    from zoo import MODELS_OF_THE_ZOO, SEEDS, ZOO

    every = {
        each: partial(shipped, each) for each in sorted(card.parent.name for card in (FIXTURES / "models").glob("*/card.json"))
    }
    of_text = [place.parent.name.rpartition("-s")[::2] for place in sorted(ZOO.glob("text-*/causes.json"))]  # which take minutes
    runs = [*((kind, seed) for seed in SEEDS for kind in MODELS_OF_THE_ZOO), *((kind, int(seed)) for kind, seed in of_text)]
    return every | {f"zoo {kind}-s{seed}": partial(of_the_zoo, kind, seed) for kind, seed in runs}


def kept() -> dict[str, Runs]:
    """The record, by model; empty where there is none."""
    if not RECORD.is_file():
        return {}
    try:
        raw = json.loads(RECORD.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"{RECORD.name} is not JSON ({error}): measure again with `make field`") from None
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise SystemExit(f"{RECORD.name} must have schema {SCHEMA}: measure again with `make field`")
    return dict(raw["models"])


def keep(models: Mapping[str, Any]) -> None:
    lines = (f'  "{name}": [\n    ' + ",\n    ".join(map(json.dumps, runs)) + "\n  ]" for name, runs in models.items())
    RECORD.write_text(f'{{"schema": {SCHEMA}, "models": {{\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


def grouped(models: Mapping[str, Runs]) -> dict[str, Runs]:
    """The same, the seeds of one kind of the zoo together."""
    kinds: dict[str, Runs] = {}
    for name, runs in models.items():
        kinds.setdefault(name.rpartition("-s")[0] if name.startswith("zoo ") else name, []).extend(runs)
    return kinds


def line(name: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cells of one model."""
    heads = [run["heads"] for run in runs]
    counts = NONE if None in heads else ", ".join(map(between, zip(*heads, strict=True)))
    figures = (amount([run[key] for run in runs]) for key in ("gain", "preference", "foretold", "recall", "aba", "abb"))
    return [name, str(len(runs)), counts, *figures]


def not_measured(models: Mapping[str, Runs]) -> list[str]:
    """Which runs of the zoo the record lacks, as `2l-s1`; those on natural text, which train for a quarter of an hour, too."""
    runs = sorted(place.parent.name for place in (FIXTURES / "zoo").glob("*/causes.json"))
    return [name for name in runs if f"zoo {name}" not in models]


def table(models: Mapping[str, Runs]) -> str:
    """What stands between the markers of the page."""
    if not models:
        raise SystemExit(f"there is no {RECORD.name}: measure with `make field`")
    examples = {run["examples"] for runs in models.values() for run in runs}
    rows = (HEADINGS, ["---"] * len(HEADINGS), *(line(name, runs) for name, runs in grouped(models).items()))
    again = [abs(run["loss"] - run["loss_of_the_run"]) for runs in models.values() for run in runs if "loss" in run]
    about = [ABOUT.format(examples=" or ".join(map(str, sorted(examples))))]
    if again:
        about.append(f"The {len(again)} models of the zoo end with the loss of their runs, to {max(again):.3f} nats.")
    if missing := not_measured(models):
        about.append(f"Not measured of the zoo: {', '.join(missing)}.")
    return "\n".join([*textwrap.wrap(" ".join(about), WIDTH), "", *(f"| {' | '.join(cells)} |" for cells in rows), "", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which models to measure (default: all)")
    parser.add_argument("--draw", action="store_true", help="write the page from what is kept")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is out of date")
    given = parser.parse_args(arguments)
    models = kept()
    if not given.draw and not given.check:
        every = measurements()
        if unknown := [name for name in given.names if name not in every]:
            parser.error(f"there is no {unknown[0]!r} here; there are: {', '.join(every)}")
        for name in given.names or every:
            models[name] = list(every[name]())
            print(" | ".join(line(name, models[name])), flush=True)
            models = {each: models[each] for each in every if each in models}
            keep(models)
    page = filled(PAGE.read_text(encoding="utf-8"), BEGIN, END, table(models))
    return drawn(PAGE, page, check=given.check, source=f"{RECORD.name} gives; `make field FIELD=--draw` writes it")


if __name__ == "__main__":
    sys.exit(main())
