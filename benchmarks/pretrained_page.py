"""The tables of docs/pretrained.md, from the records of `make study-pretrained`; nothing is measured here."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from pages import filled
from pretrained_fetch import SOURCES

BEGIN, END = "<!-- begin: written by `make study-pretrained` -->", "<!-- end -->"
SCHEMA = 3
CLEAR = 0.4  # prefix matching over all sequences of all seeds, from which a head must be in every list
MIN_JACCARD = 0.9  # of any two lists
MOST_PASSES = {"verdict": 4.0, "list": 12.0}  # bare passes with logits, of the model as anyone calls it; not more in every turn
HELD = "smollm2"  # the model whose cost is held to that
NOT_MEASURED = "n/a"
VERDICTS = {  # of a table: the part of a record, how the names of its rows begin, and which estimates are columns
    "Repeated tokens": ("evidence", "copies_repeats", ("repeat_accuracy", "advantage")),
    "In-context learning on three texts": ("evidence", "learns_in_context", ("icl_score",)),
    "Argument 3: without the induction heads": (
        "evidence",
        "ablation_removes_icl",
        ("icl_score", "share zero", "share mean", "share resample"),
    ),
    "Argument 4: generality": ("evidence", "heads_generalize", ()),
    "Argument 5: mechanism": ("evidence", "induction_circuit", ()),
    "Changed copies, compared with the original": ("held", "", ("repeat_accuracy", "repeat_loss")),
}
Json = Mapping[str, Any]
Table = tuple[Sequence[str], list[Sequence[str]]]


def read(place: Path) -> dict[str, Json]:
    """The records that are there, by the name of the model, in the order of the sources."""
    there = {name: place / f"{name}.json" for name in SOURCES}
    found = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in there.items() if file.is_file()}
    strange = [name for name, record in found.items() if record.get("schema") != SCHEMA]
    if strange:
        raise SystemExit(f"{there[strange[0]]} must have schema {SCHEMA}: measure it again with `make study-pretrained`")
    return found


def content(records: Mapping[str, Json]) -> str:
    """What stands between the markers."""
    if not records:
        return "Nothing has been measured yet.\n\n"
    sections = (
        ("What was measured", models_table(records)),
        ("Against eager attention", check_table(records)),
        *((f"Heads of {SOURCES[name].title}", heads_table(record)) for name, record in records.items()),
        ("Lists over seeds", seeds_table(records)),
        ("Cost in bare passes", cost_table(records)),
        *(
            (title, verdict_table(records, *of))
            for title, of in VERDICTS.items()
            if any(of[0] in record for record in records.values())
        ),
    )
    lines = ["\n".join(machines(records)), ""]
    for title, (headings, rows) in sections:
        lines += [f"### {title}", "", f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
        lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join(lines) + "\n"


def machines(records: Mapping[str, Json]) -> Iterator[str]:
    """What it ran on: one line where that is the same for all."""
    told = {name: _machine(record["about"]) for name, record in records.items()}
    if len(set(told.values())) == 1:
        yield next(iter(told.values()))
    else:
        yield " ".join(f"{SOURCES[name].title}: {each}" for name, each in told.items())


def _machine(about: Json) -> str:
    threads = f"{about['threads']} thread{'s' if about['threads'] != 1 else ''}"
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"{threads} of {about['processor']}, {versions}."


def models_table(records: Mapping[str, Json]) -> Table:
    rows = []
    for name, record in records.items():
        source, about = SOURCES[name], record["about"]
        shape = (f"{about['layers']} x {about['heads']}", f"{about['vocabulary']:,}", f"{about['context']:,}")
        rows.append((source.title, *shape, f"{about['parameters'] / 1e6:.0f} M", source.quantisation, about["backend"]))
    return ("model", "layers x heads", "tokens", "context", "parameters", "made from", "read by"), rows


def check_table(records: Mapping[str, Json]) -> Table:
    rows = []
    for name, record in records.items():
        check, apart = record["check"], dict(record["check"]["apart"])
        differences = [apart.pop("prefix_matching"), apart.pop("match_lengths"), max(apart.values())]
        rows.append(
            (
                SOURCES[name].title,
                str(check["rows"]),
                *(f"{each:.1g}" for each in differences),
                f"{check['correlation']:.4f}",
                f"{check['top_shared']} of {check['top']}",
            )
        )
    headings = ("model", "rows", "prefix matching differs by", "match lengths by", "other scores by")
    return (*headings, "correlation on other rows", "strongest heads shared"), rows


def heads_table(record: Json) -> Table:
    rows = []
    for head in record["heads"]:
        value, low, high = head["prefix_matching"]
        rows.append(
            (
                head["head"],
                f"{value:.3f}",
                f"{low:.3f}..{high:.3f}",
                f"{head['chance']:.3f}",
                *map(_share, head["match_lengths"] or (None,) * 3),
                f"{head['copy_effect'][0]:+.2f}" if head["copy_effect"] else NOT_MEASURED,
            )
        )
    matches = ("one token matches", "two", "three or more")
    return ("head", "prefix matching", "interval", "own chance", *matches, "copy effect, nats"), rows


def _share(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"


def seeds_table(records: Mapping[str, Json]) -> Table:
    rows = []
    for name, record in records.items():
        seeds = record["seeds"]
        lists = [set(each["heads"]) for each in seeds]
        shared, gone = jaccards(lists), missing(record)
        rows.append(
            (
                SOURCES[name].title,
                str(len(seeds)),
                between([len(each) for each in lists]),
                f"{len(set.intersection(*lists))} of {len(set.union(*lists))}",
                f"{min(shared):.2f}" if shared else NOT_MEASURED,
                f"{mean(shared):.3f}" if shared else NOT_MEASURED,
                str(len(clear_heads(record))),
                ", ".join(f"{head} ({count})" for head, count in gone.items()) or "none",
                between([len(each["near"]) for each in seeds]),
                between([len(each["undecided"]) for each in seeds]),
                ", ".join(sorted({f"{head} {kind}" for each in seeds for head, kind in each["ruled_out"].items()})) or "none",
                between([each["sequences"] for each in seeds]),
            )
        )
    headings = ("model", "seeds", "heads in a list", "in every list, of all in any", "lowest Jaccard index", "mean Jaccard index")
    return (*headings, f"heads of {CLEAR} or more", "missing in some list", "near", "undecided", "ruled out", "sequences"), rows


def between(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)}..{max(values)}"


def jaccards(lists: Sequence[set[str]]) -> list[float]:
    """Of every pair of lists: how many heads both have, of those that either has. Two empty lists are alike."""
    return [len(one & other) / len(one | other) if one | other else 1.0 for one, other in combinations(lists, 2)]


def clear_heads(record: Json) -> list[str]:
    """Heads with prefix matching of `CLEAR` or more over all sequences of all seeds, in order of layers."""
    drawn = sum(each["sequences"] for each in record["seeds"])
    total: dict[str, float] = {}
    for each in record["seeds"]:
        for layer, scores in enumerate(each["scores"]):
            for head, score in enumerate(scores):
                name = f"L{layer}H{head}"
                total[name] = total.get(name, 0.0) + (score or 0.0) * each["sequences"]
    return [name for name, summed in total.items() if summed / drawn >= CLEAR]


def missing(record: Json) -> dict[str, int]:
    """Clear heads that are not in every list, nor ruled out in it, and in how many they are missing."""
    seeds = record["seeds"]
    counts = {name: sum(name not in (*each["heads"], *each["ruled_out"]) for each in seeds) for name in clear_heads(record)}
    return {name: count for name, count in counts.items() if count}


def cost_table(records: Mapping[str, Json]) -> Table:
    rows = []
    for name, record in records.items():
        taken, shape = record["cost"]["seconds"], " x ".join(map(str, record["cost"]["rows"]))
        seconds = [f"{np.median(taken[side]):.2f} s" for side in ("bare", "bare_with_logits", "verdict", "list")]
        amounts = [
            interval(passes(record, side, bare), 1) for side in ("verdict", "list") for bare in ("bare", "bare_with_logits")
        ]
        rows.append((SOURCES[name].title, shape, str(len(taken["bare"])), *seconds, *amounts))
        session = record.get("session")
        rows[-1] = (*rows[-1], NOT_MEASURED if session is None else f"{session['passes']:g}")
    headings = ("model", "rows of a bare pass", "turns", "without logits", "with logits", "verdict", "list of heads")
    counted = (f"{side}, in passes {kind} logits" for side in ("verdict", "list") for kind in ("without", "with"))
    return (*headings, *counted, "session with a text and all charts"), rows


def verdict_table(records: Mapping[str, Json], part: str, begin: str, columns: Sequence[str]) -> Table:
    """The verdicts of one kind on all models."""
    rows = []
    for name, record in records.items():
        for what, row in record.get(part, {}).items():
            if not what.startswith(begin):
                continue
            numbers = (interval(row["estimates"].get(column)) for column in columns)
            summary = row["summary"].replace("|", "\\|").replace("\n", " ")
            rest = (*numbers, str(row["sequences"]), f"{row['passes']:g}", summary)
            rows.append((SOURCES[name].title, what.removeprefix(begin).strip() or "all", row["verdict"], *rest))
    return ("model", "on", "verdict", *columns, "rows", "bare passes", "what was found"), rows


def interval(estimate: Sequence[float] | None, digits: int = 3) -> str:
    """A value with both its ends."""
    return NOT_MEASURED if estimate is None else "{:.{d}f} ({:.{d}f}..{:.{d}f})".format(*estimate, d=digits)


def passes(record: Json, side: str, bare: str = "bare_with_logits") -> tuple[float, float, float]:
    """What a side costs in the bare passes of its turn: the median, the lowest and the highest turn."""
    seconds = record["cost"]["seconds"]
    ratios = np.divide(seconds[side], seconds[bare])
    return float(np.median(ratios)), float(ratios.min()), float(ratios.max())  # NaN stays


def missed(records: Mapping[str, Json]) -> list[str]:
    """What does not hold that should: a line for each."""
    found = []
    for name, record in records.items():
        title, least = SOURCES[name].title, min(jaccards([set(each["heads"]) for each in record["seeds"]]), default=1.0)
        if not least >= MIN_JACCARD:
            found.append(f"{title}: two lists have a Jaccard index of {least:.2f}, it must be {MIN_JACCARD} or more")
        found += [f"{title}: {head} is clear, and missing in {count} lists" for head, count in missing(record).items()]
        for side, most in MOST_PASSES.items():
            taken = passes(record, side)
            if name == HELD and not taken[1] <= most:  # in no turn
                found.append(f"{title}: the {side} costs {interval(taken, 1)} bare passes, at most {most:g} are allowed")
    return found


def rendered(page: str, records: Mapping[str, Json]) -> str:
    """The page with the tables between its markers."""
    return filled(page, BEGIN, END, content(records))
