"""Records as sessions leave them, made up: the same on every machine. None of the numbers is a measurement."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pytest_induction.records import ChartData, Estimate, Evidence, HeadEvidence, Provenance, Verdict
from pytest_induction.report.session_records import SessionRecords, TestRecord

KINDS = ("heads", "attention", "repeats", "text", "ablations", "composition")
NASTY = "models/<script>alert(1)</script> & \"quotes\" 'single' </title><!-- %{x} {{ 7 * 7 }} \u2028 \u202e"


def provenance(model: str = "models/small", n_layers: int = 2, n_heads: int = 4, **rest: Any) -> Provenance:
    layers = tuple(f"layers.{layer}.attention" for layer in range(n_layers))
    about = Provenance(
        model, "5b7423e0dca2e18d", "sdpa", n_layers, n_heads, "float32", "cpu", 0, 12, "periods 9 to 14, 4 copies", layers
    )
    return replace(about, versions={"torch": "2.13.0", "pytest-induction": "0.1.0"}, **rest)


def head(layer: int, number: int, score: float, kind: str = "") -> HeadEvidence:
    around = Estimate(score, max(0.0, score - 0.03), min(1.0, score + 0.03), "share")
    return HeadEvidence(layer, number, around, around, 0.02, 0.03, 0.05, 0.04, 0.1, 6, kind, Estimate(2.31, 2.0, 2.6, "nats"))


def matches(n_layers: int, n_heads: int) -> list[list[float]]:
    """Prefix matching: much in a few heads of the later half, little elsewhere."""
    rng = random.Random(0)
    rows = [[rng.random() ** 6 * 0.2 for _ in range(n_heads)] for _ in range(n_layers)]
    for place in range(max(2, n_layers * n_heads // 40)):
        rows[n_layers // 2 + place % (n_layers - n_layers // 2)][place * 7 % n_heads] = 0.93 - 0.012 * place
    return [[round(value, 4) for value in row] for row in rows]


def evidence(
    claim: str = "has_induction_head", verdict: Verdict = Verdict.SHOWN, about: Provenance | None = None, **rest: Any
) -> Evidence:
    about = about or provenance()
    top = about.n_layers - 1
    given: dict[str, Any] = {
        "reason": "formed",
        "summary": f"2 heads with prefix matching above 0.300; the strongest, L{top}H0 has prefix matching 0.929",
        "heads": (head(top, 0, 0.929, "matches"), head(top, 1, 0.91, "matches")),
        "nearest": (head(0, 2, 0.12, "previous"),),
        "estimates": {"advantage": Estimate(7.326, 6.6, 8.06, "nats"), "repeat_accuracy": Estimate(1.0, 0.98, 1.0, "share")},
        "thresholds": {"min_prefix_matching": 0.3, "min_advantage": 0.5},
        "head_map": tuple(map(tuple, matches(about.n_layers, about.n_heads))),
    }
    return Evidence(claim, verdict, provenance=about, **{**given, **rest})


def copies(about: Provenance | None = None) -> Evidence:
    estimates = {"repeat_accuracy": Estimate(0.431, 0.39, 0.47, "share"), "first_accuracy": Estimate(0.0, 0.0, 0.02, "share")}
    summary = "repeated tokens are not completed: top-1 accuracy 0.431 on later copies"
    rest = {
        "estimates": estimates,
        "thresholds": {"min_accuracy": 0.5},
        "heads": (),
        "nearest": (),
        "head_map": (),
        "reason": "does_not_copy",
    }
    return evidence("copies_repeats", Verdict.REFUTED, about, summary=summary, **rest)


def absent(about: Provenance | None = None, verdict: Verdict = Verdict.SHOWN) -> Evidence:
    """As of `assert_no_induction_head`; REFUTED where there is one."""
    if verdict is Verdict.REFUTED:
        return evidence("no_induction_head", verdict, about, is_asserted=True)
    rest = {"heads": (), "nearest": (head(0, 2, 0.12, "previous"),), "reason": "no_head_matches"}
    summary = "no head matches prefixes: the best, L0H2 has prefix matching 0.120, below 0.300"
    return evidence("no_induction_head", verdict, about, summary=summary, is_asserted=True, **rest)


def learns(about: Provenance | None = None) -> Evidence:
    estimates = {
        "icl_score": Estimate(-0.08, -0.21, 0.05, "nats"),
        "early_loss": Estimate(math.nan, math.nan, math.nan, "nats"),
    }
    rest = {
        "estimates": estimates,
        "thresholds": {"max_score": -0.1},
        "heads": (),
        "nearest": (),
        "head_map": (),
        "next_step": "give 40 more rows of text",
    }
    summary = "the score is -0.08 nats: too close to tell"
    return evidence("learns_in_context", Verdict.UNDETERMINED, about, summary=summary, reason="score_unclear", **rest)


def _around(values: Iterable[float], width: float) -> dict[str, list[float]]:
    values = list(values)
    return {"low": [round(value - width, 4) for value in values], "high": [round(value + width, 4) for value in values]}


def _heads(n_layers: int, n_heads: int) -> dict[str, Any]:
    rng = random.Random(1)
    matching = matches(n_layers, n_heads)

    def score(name: str, unit: str, rows: list[list[float]]) -> dict[str, Any]:
        sides = {
            side: [[round(value + step, 4) for value in row] for row in rows] for side, step in (("low", -0.02), ("high", 0.02))
        }
        return {"name": name, "words": name.replace("_", " "), "unit": unit, "value": rows, **sides}

    def some(power: int) -> list[list[float]]:
        return [[round(rng.random() ** power, 4) for _ in range(n_heads)] for _ in range(n_layers)]

    scores = [
        score("prefix_matching", "share", matching),
        score("excess", "share", [[round(value - 0.03, 4) for value in row] for row in matching]),
        *(
            score(name, "share", some(power))
            for name, power in (("previous_token", 5), ("duplicate_token", 9), ("first_token", 2))
        ),
        score("copy_effect", "nats", [[round(3 * value - 0.4 * rng.random(), 4) for value in row] for row in matching]),
    ]
    kinds = [["matches" if value > 0.3 else "previous" if value > 0.1 else "" for value in row] for row in matching]
    layers = [f"layers.{layer}.attention" for layer in range(n_layers)]
    about = "12 sequences, periods 9 to 14, 4 copies, seed 0"
    return {"layers": layers, "scores": scores, "threshold": 0.3, "kinds": kinds, "confidence": 0.999, "about": about}


def _attention(heads: Sequence[str], period: int = 12, copies: int = 4) -> dict[str, Any]:
    rng = random.Random(2)
    once = [rng.randrange(900) for _ in range(period)]
    tokens, starts = [0, *once * copies], [1 + period * copy for copy in range(copies)]

    def pattern(strength: float) -> list[list[float]]:
        rows = []
        for query in range(len(tokens)):
            keys = [key for key in range(query - period + 1, 0, -period) if query > period]
            row = [0.0] * (query + 1)
            for key in keys:
                row[key] = round(strength / len(keys), 4)
            row[0] = round(1 - sum(row), 4)
            rows.append(row)
        return rows

    drawn = [
        {
            "name": name,
            "role": "induction" if place % 2 == 0 else "previous token",
            "score": 0.93,
            "pattern": pattern(0.9 - place / 20),
        }
        for place, name in enumerate(heads)
    ]
    return {
        "tokens": tokens,
        "starts": starts,
        "period": period,
        "bos": True,
        "heads": drawn,
        "about": "row 0 of the probe, seed 0",
    }


def _repeats() -> dict[str, Any]:
    place = list(range(1, 13))
    copies = []
    for copy in range(1, 5):
        loss: list[Any] = [5.0 - 0.02 * at if copy == 1 else 0.15 + 2.4 / (at * copy) for at in place]
        copies.append({"name": f"copy {copy}", "place": place, "loss": loss, **_around(loss, 0.2)})
    copies[0]["loss"] = [None, *copies[0]["loss"][1:]]
    copies[0]["low"][0] = copies[0]["high"][0] = None
    return {"period": 12, "unit": "nats", "copies": copies, "uniform": math.log(150), "about": "12 sequences, seed 0"}


def _text() -> dict[str, Any]:
    tokens = list(range(1, 513))
    loss = [3.1 + 2.2 * token**-0.4 + 0.05 * math.sin(token) for token in tokens]
    score = {"value": -0.31, "low": -0.36, "high": -0.26}
    windows = {"early": [40, 60], "late": [450, 512]}
    return {
        "tokens": tokens,
        "loss": loss,
        **_around(loss, 0.08),
        "unit": "nats",
        "windows": windows,
        "score": score,
        "about": "64 rows",
    }


def _ablations(heads: Sequence[str]) -> dict[str, Any]:
    alone = [
        {"name": name, "value": 0.4 / (place + 1), "low": 0.3 / (place + 1), "high": 0.5 / (place + 1)}
        for place, name in enumerate(heads)
    ]
    together = {"names": list(heads), "value": 2.6, "low": 2.3, "high": 2.9}
    controls = [round(0.05 * place - 0.1, 3) for place in range(12)]
    return {
        "unit": "nats",
        "how": "zero",
        "loss": 0.61,
        "of_all": 3.4,
        "heads": alone,
        "together": together,
        "controls": controls,
        "relaxed": False,
        "about": "12 sequences",
    }


def _composition(n_layers: int, n_heads: int) -> dict[str, Any]:
    early, late = (
        [f"L0H{number}" for number in range(min(n_heads, 4))],
        [f"L{n_layers - 1}H{number}" for number in range(min(n_heads, 4))],
    )
    heads = [
        {"name": name, "layer": layer, "head": place, "role": role, "score": 0.8}
        for names, layer, role in ((early, 0, "previous token"), (late, n_layers - 1, "induction"))
        for place, name in enumerate(names)
    ]
    edges = [
        {
            "from": one,
            "to": two,
            "key": 0.4 / (1 + a + b),
            "key_z": 12.5 - a,
            "query": 0.1,
            "query_z": 0.4,
            "value": 0.08,
            "value_z": None,
        }
        for a, one in enumerate(early)
        for b, two in enumerate(late)
    ]
    return {
        "random_mean": {"query": 0.09, "key": 0.09, "value": 0.09},
        "heads": heads,
        "edges": edges,
        "about": "weights of L0 and later",
    }


def charts(about: Provenance, kinds: Sequence[str] = KINDS) -> tuple[ChartData, ...]:
    """All charts of a model of that size."""
    top = [f"L{about.n_layers - 1}H{number}" for number in range(min(4, about.n_heads))]
    data = {
        "heads": lambda: _heads(about.n_layers, about.n_heads),
        "attention": lambda: _attention(top[:2]),
        "repeats": _repeats,
        "text": _text,
        "ablations": lambda: _ablations(top),
        "composition": lambda: _composition(about.n_layers, about.n_heads),
    }
    return tuple(ChartData(kind, about.model, about.fingerprint, data[kind]()) for kind in kinds)


def session(*tests: TestRecord, charts: Sequence[ChartData] = (), **rest: Any) -> SessionRecords:
    about = {"command": "pytest --induction-model models/small", "started": "2025-11-27T10:00:00+00:00", "seconds": 12.3}
    return SessionRecords(tests, tuple(charts), **{**about, "environment": {"python": "3.12.1", "cpus": "8"}, **rest})


def small() -> SessionRecords:
    """A model of two layers and four heads, everything measured; a verdict of each kind."""
    about = provenance()
    return session(
        TestRecord(
            "models/small::has_induction_head",
            "passed",
            1.2,
            again="pytest --induction-model models/small -k has",
            evidence=(evidence(),),
        ),
        TestRecord(
            "models/small::copies_repeats",
            "failed",
            0.4,
            "copies_repeats is REFUTED, expected SHOWN",
            "pytest -k copies",
            (copies(),),
        ),
        TestRecord("tests/test_text.py::test_learns[a-b]", "failed", 2.0, "too close", "pytest -k learns", (learns(),)),
        TestRecord("tests/test_text.py::test_skipped", "skipped"),
        charts=charts(about),
        exit_status=1,
    )


def large() -> SessionRecords:
    """A model of 32 layers and 32 heads, everything measured."""
    about = provenance("models/large", 32, 32)
    drawn = [*charts(about, [kind for kind in KINDS if kind != "attention"])]
    patterns = _attention([f"L{20 + place}H{place}" for place in range(8)], period=50)
    return session(
        TestRecord("models/large::has_induction_head", "passed", 12.0, evidence=(evidence(about=about),)),
        charts=[*drawn, ChartData("attention", about.model, about.fingerprint, patterns)],
    )


def missing() -> SessionRecords:
    """No chart could be made, and the session was stopped."""
    about = provenance()
    why = {kind: f"why {kind} is missing" for kind in KINDS}
    return session(
        TestRecord(
            "models/small::has_induction_head", "error", message="interrupted", evidence=(replace(evidence(), head_map=()),)
        ),
        charts=[ChartData(kind, about.model, about.fingerprint, missing=words) for kind, words in why.items()],
        exit_status=2,
        stopped="interrupted",
    )


def nasty(kinds: Sequence[str] = KINDS) -> SessionRecords:
    """Names as nobody should give them, wherever a user may."""
    about = provenance(NASTY, notes=(NASTY,))
    drawn = {each.kind: each for each in charts(about, kinds)}
    for kind, each in drawn.items():
        data = {**each.data, "about": NASTY}
        if kind == "ablations":
            data["heads"] = [{**head, "name": NASTY + head["name"]} for head in data["heads"]]
        drawn[kind] = replace(each, data=data)
    return session(
        TestRecord(f"{NASTY}::{NASTY}", "failed", 1.0, NASTY, NASTY, (evidence(about=about, summary=NASTY, next_step=NASTY),)),
        charts=tuple(drawn.values()),
        command=NASTY,
        environment={NASTY: NASTY},
    )
