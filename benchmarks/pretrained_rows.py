"""Rows of heads of pretrained models: measured by `study_pretrained.py --rows-of-heads`, and what other studies draw from.

They are kept in `fixtures/pretrained/rows.json`: the prefix matching of each head on every row, and the period of each row.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrained_fetch import SOURCES
from pytest_induction.measuring.observing import Array, ModelLike
from pytest_induction.measuring.rounds import Round, probe_round
from pytest_induction.model.load import load_model

PLACE = Path(__file__).parents[1] / "fixtures" / "pretrained" / "rows.json"
HEADS = {  # layer and head: eight of both models, whose means are spread from 0.2 to 0.9
    "smollm2": ((18, 6), (17, 3), (23, 2), (24, 4), (23, 0), (21, 8)),
    "gemma3": ((11, 2), (17, 2)),
}
ROUND, ROUNDS = 21, 11  # as a verdict draws them: three rows of each of seven periods, up to its budget of 231
SCHEMA, SEED = 1, 0
MADE_BY = f"study_pretrained.py --rows-of-heads: probe_round, {ROUNDS} rounds of {ROUND} rows, seed {SEED}"
Json = dict[str, Any]


@dataclass(frozen=True)
class HeadRows:
    """Prefix matching of one head on rows (n,), and the period of each row."""

    name: str
    values: Array
    periods: Array

    @property
    def mean(self) -> float:
        """Over periods that count alike."""
        return float(np.mean([self.values[self.periods == period].mean() for period in np.unique(self.periods)]))


def rows_of(model: ModelLike) -> Round:
    """Of one model, the very rows that a verdict with this seed draws."""
    subject = load_model(model)
    only_heads = {"n_irregular": 0, "depth": subject.n_layers}
    return Round.join([probe_round(subject, ROUND, SEED, number, **only_heads) for number in range(ROUNDS)])


def record(found: Mapping[str, Round]) -> Json:
    """What is kept of the rows of each model."""
    heads = [
        {
            "model": name,
            "head": f"L{layer}H{head}",
            "prefix_matching": rows.scores["prefix_matching"][:, layer, head].round(4).tolist(),
        }
        for name, rows in found.items()
        for layer, head in HEADS[name]
    ]
    return {
        "schema": SCHEMA,
        "made_by": MADE_BY,
        "periods": {name: rows.periods.tolist() for name, rows in found.items()},
        "heads": heads,
    }


def stored(place: Path = PLACE) -> list[HeadRows]:
    """The heads that are kept, highest mean first."""
    kept = json.loads(place.read_text(encoding="utf-8"))
    if kept.get("schema") != SCHEMA:
        raise SystemExit(f"{place} must have schema {SCHEMA}: measure it again with `study_pretrained.py --rows-of-heads`")
    periods = {name: np.array(of_rows) for name, of_rows in kept["periods"].items()}
    found = [
        HeadRows(f"{SOURCES[each['model']].title} {each['head']}", np.array(each["prefix_matching"]), periods[each["model"]])
        for each in kept["heads"]
    ]
    return sorted(found, key=lambda head: -head.mean)
