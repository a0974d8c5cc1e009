"""The charts of a model, each measured on its own, and what each one's `data` holds; `charts.data` has that as types.

A matrix is a list of layers, each a list of heads, None where a layer has no such head. Numbers have five digits, entries of
patterns four; one that is not finite is None. Losses are in nats. `about` says in a line what was measured: sequences, probe,
seed. Intervals are at a confidence of 0.999 for all of a chart's places, heads or bars together, but for the score of a text,
which has its own. Nothing else depends on what was measured before: heads are chosen by the first two rounds of every
verdict, whose numbers a verdict that took more may refine.

- **heads** `layers` (module paths), `scores`, `threshold` (0.3), `kinds` (matrix of words: "matches", "previous",
  "duplicate", "dormant", "positional", "suppresses", "silent", "period_detector", ""), `confidence`, `about`. Of each score
  `name`, `words`, `unit` ("share" or "nats"), and matrices `value`, `low`, `high`. In this order: prefix_matching, excess
  (without its own chance, from -1 to 1), previous_token, duplicate_token, first_token; exactly_one, exactly_two and
  three_or_more (prefix matching at irregular distances, by how many tokens match) where such rows fit the model; retrieval
  (nats, any sign) where a verdict on it was reached before; suppression (nats, below 0 where a head suppresses) where copy
  suppression was measured on all heads before, None before layers of fewer than 50 predictions; and copy_effect (nats, any
  sign) where the weights of heads are known.
- **attention** `tokens` (ids of one row), `texts` (each as the model's tokenizer decodes it; only where it has one), `starts`
  (positions where copies begin), `period`, `bos` (whether the row begins with a token of its own), `heads`, `about`. Of each head
  `name`, `role` ("induction", "previous token", "strongest"), `score` (for which it was chosen), `pattern` (a row for each query,
  with as many numbers as it has positions to attend to).
- **repeats** `period`, `unit`, `copies`, `uniform` (log of the number of usable ids), `about`. Of each copy `name`, `place` (1 to
  the period), `loss` of the token at that place, `low`, `high`; None at place 1 of copy 1 where nothing stands before it.
- **text** `tokens` (token numbers), `loss`, `low`, `high`, `unit`, `windows` (`early` and `late`, first and last token number),
  `score` (`value`, `low`, `high`: as `assert_learns_in_context` has it on these rows), `about`. Only where there is a text.
- **ablations** `unit`, `how` ("zero"), `loss` (on the last copy, as the model is), `of_all` (its rise with every head ablated),
  `heads` (`name`, `value`, `low`, `high`: its rise without each one alone), `together` (`names`, `value`, `low`, `high`),
  `controls` (its rise without each random set of as many heads of the same layers), `relaxed` (whether some come from other
  layers, for want of heads), `about`.
- **composition** `random_mean` (of random heads of these sizes, which is taken off), `heads` (`name`, `layer`, `head`, `role`:
  "previous token", "induction" or "other", for one that only comes nearest to it; `score`, for which it was chosen), `edges`
  (`from`, `to`, `key`, `key_z`, `query`, `query_z`, `value`, `value_z`), strongest key composition first, `about`.
- **run** (of a run, not of a model) what `runs.picture.picture_of` gives, and `about`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache, partial
from typing import Any

from pytest_induction.charts.causes import ablations_data, composition_data
from pytest_induction.charts.data import OF_A_MODEL
from pytest_induction.charts.heads import attention_data, heads_data
from pytest_induction.charts.losses import repeats_data, text_data
from pytest_induction.charts.making import chart_with
from pytest_induction.errors import ModelError
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.records import ChartData, Provenance

Measure = Callable[[ModelUnderTest], dict[str, Any]]


def charts_of_model(subject: ModelUnderTest, about: Provenance, *, kinds: Collection[str], text: Any = None) -> list[ChartData]:
    """The charts of these `kinds` of a model that a verdict named `about`, in their order.

    One that cannot be measured says why, under `missing`, and so do all of a model that is not the one any more that `about` was
    measured of. `text` is a string, a path or token ids; without one there is no chart of it.
    """
    measures: dict[str, Measure] = {
        "heads": heads_data,
        "attention": attention_data,
        "repeats": repeats_data,
        "text": partial(text_data, text=text),
        "ablations": ablations_data,
        "composition": composition_data,
    }
    wanted = [kind for kind in OF_A_MODEL if kind in kinds and (kind != "text" or text is not None)]
    if not wanted:
        return []
    with subject.as_it_is():
        same = cache(lambda: subject.fingerprint() == about.fingerprint)  # reads all weights
        return [chart_with(kind, about, partial(_measured, subject, measures[kind], same)) for kind in wanted]


def _measured(subject: ModelUnderTest, measure: Measure, same: Callable[[], bool]) -> dict[str, Any]:
    if not same():
        raise ModelError(f"{subject.name} has changed since its verdicts")
    return measure(subject)
