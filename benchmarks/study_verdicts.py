"""How often the verdict on induction heads is wrong: `make study-verdicts` runs it and prints a table.

| row | models | wrong is |
|---|---|---|
| random weights | 200 of varied kind, shape, vocabulary and scale | SHOWN |
| planted | 400 of varied kind, place, size, vocabulary, sharpness, precision | SHOWN or REFUTED against what is known |
| shipped | six models, 100 probe seeds each | SHOWN or REFUTED against what is known |
| one layer, trained again | 10 training seeds | SHOWN |
| two layers, trained again | 10 training seeds, those that have a head by the reference | REFUTED |
| copies through pairs | GPT-2 shapes trained on the synthetic corpus, one seed | SHOWN |
| beside suppressors | 100 planted, one to three heads that match, some copying and some suppressing | against what is known |
| pairs allowed, random | 60 as in the first row, with `allow_virtual` | SHOWN |
| pairs allowed, planted | 100 of the planted kinds, half of them virtual heads, with `allow_virtual` | against what is known |
| pairs allowed, shipped | the model that copies through pairs, 60 probe seeds, with `allow_virtual` | REFUTED |
| recall, rules, random weights | 60 as in the first row each, with 4 pairs and behind 1 example | SHOWN |
| in a text, random | 40 as in the first row, on rows of tokens that repeat | SHOWN |
| in a text, planted | 60 induction heads, one of them or another named | SHOWN or REFUTED against what is known |
| specificity at its threshold | no model: skewed losses of tokens, 500 seeds; so the row after it | SHOWN or REFUTED |
| skewed rows | no model: rows whose distribution is known (`skewed.py`), 1000 or 4000 seeds of each | against what is known |
| few-shot heads, planted | 40: one kind of head is needed, the other, neither, or no task is done | against what is known |
| few-shot heads, rows | no model: rows of three distributions whose means lie at the threshold, 1000 seeds | SHOWN or REFUTED |
| retrieval heads, planted and random | 40: needed, silent, at distractors, random weights | against what is known |
| retrieval heads, rows | no model: rows whose mean lies at one of three thresholds, 1000 seeds | SHOWN or REFUTED |
| concept heads, planted and random | 40: of meaning, of tokens, none, random weights | against what is known |
| concept heads, rows | no model: rows whose mean lies at a threshold, of either verdict, 1000 seeds | SHOWN or REFUTED |
| real heads moved | rows of eight real heads, moved so that their mean is a threshold; 100 seeds of each | SHOWN or REFUTED |
| longer matches, random | 60 as in the first row, by `assert_prefers_longer_match` | SHOWN |
| longer matches, planted | 100 named heads of varied preference, sharpness and size | against what is known |
| longer matches, rows | no model: rows of a head with a preference at the threshold, 4000 seeds of each | SHOWN or REFUTED |
| copy suppression, random | 60 as in the first row, on rows of tokens that repeat | SHOWN |
| copy suppression, planted | 60 named heads of varied strength, sharpness and size | against what is known |
| copy suppression, rows | no model: rows of a head whose mean effect is the threshold, 1000 seeds of each | SHOWN or REFUTED |

What is known of a planted head that matches follows from its pattern: prefix matching by the formula of its sharpness, over the
periods that probes have, above the threshold or below. Where that lies within a tenth of the threshold nothing counts as wrong,
as the mean over the periods of one probe seed differs from that over all. The reference for the two-layer models trained again is
a separate measurement on 40 sequences of another seed, made by eager attention and the slow loops of the tests: a head counts if
its prefix matching there is above 0.5. What is known of skewed rows follows from their means, and everything after the drawing is
the verdict's own code. UNDETERMINED is never wrong, and has a column of its own; only the shape that works up to period 17 must
be SHOWN for every seed. Bounds are those of Clopper and Pearson, each at 95 %. Exits with 1 if more verdicts of all are wrong
than the 0.001 that a verdict states, and more than one, or if the lower bound of a single row lies above that. `--quick` runs a
twentieth of each row, `--most N` at most N models or probe seeds of each row of models, and `--rows` only rows that are named so.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "fixtures"), str(ROOT / "benchmarks")]

from scipy.stats import beta  # noqa: E402
from tests.heads.mixtures import matching_heads  # noqa: E402
from tests.heads.random_models import random_models  # noqa: E402
from tests.measuring import slow  # noqa: E402

import competing  # noqa: E402
import concepts  # noqa: E402
import make as fixtures  # noqa: E402
import skewed  # noqa: E402
import suppressing  # noqa: E402
from attention_only import AttentionOnly  # noqa: E402
from pytest_induction import (  # noqa: E402
    Evidence,
    ExpectationFailed,
    Verdict,
    assert_follows_rule,
    assert_has_induction_head,
    assert_icl_heads,
    assert_icl_is_induction,
    assert_recalls,
    assert_retrieval_heads,
    load_model,
    planted,
)
from pytest_induction.behaviour.matches import GROUPS  # noqa: E402
from pytest_induction.causal.few_shot import KINDS, N_CONTROLS, Effects  # noqa: E402
from pytest_induction.causal.icl_heads import MAX_SEQUENCES, MIN_DIFFERENCE, judge_kinds  # noqa: E402
from pytest_induction.causal.judging import CausalClaim  # noqa: E402
from pytest_induction.causal.needles import Effects as Retrieved  # noqa: E402
from pytest_induction.causal.retrieval import MAX_SEQUENCES as MAX_ROWS_OF_FACTS  # noqa: E402
from pytest_induction.causal.retrieval import MIN_LOST, MIN_WRITTEN, judge_retrieval  # noqa: E402
from pytest_induction.causal.specificity import MIN_SPECIFICITY, Rises, judge_specificity  # noqa: E402
from pytest_induction.deciding import Judgement, until_clear  # noqa: E402
from pytest_induction.errors import UnsupportedModel  # noqa: E402
from pytest_induction.heads.criteria import MIN_ADVANTAGE, MIN_PREFIX_MATCHING  # noqa: E402
from pytest_induction.probes.sequences import fitting_shape  # noqa: E402
from pytest_induction.records import HeadId  # noqa: E402
from pytest_induction.statistics import look_sizes  # noqa: E402

STATED = 1e-3  # the error rate of a verdict
REFERENCE_THRESHOLD = 0.5
NEAR = 0.1  # of the threshold: planted heads so near to it have no known answer
SHIPPED = {
    "attention_only.py:one_layer": Verdict.REFUTED,
    "attention_only.py:one_layer_smeared": Verdict.SHOWN,
    "attention_only.py:two_layers": Verdict.SHOWN,
    "attention_only.py:three_layers_text": Verdict.SHOWN,
    "models/llama-2l": Verdict.SHOWN,
    "models/gpt2-2l-virtual": Verdict.REFUTED,
}
VIRTUAL = "virtual_induction_head"
MATCHING = ("induction_head", "redundant_induction_heads", "pointer_induction_head")
OTHERS = (
    "copy_suppression_head",
    "matching_head",
    "copying_head",
    "count_back_head",
    "previous_token_head",
    "duplicate_token_head",
    "first_token_head",
    "uniform_head",
    VIRTUAL,
)
NET = 0.5  # nats around the threshold of the advantage where no answer is known
TRAINING_STEPS = 600
SHORTEST_ROWS = 32  # positions of rows of text
SKEWED_SEEDS, OF_ADVANTAGE, OF_REAL_HEADS = 1000, 4000, 800  # of each shape, of the one that is expected wrong, of eight together
OF_PREFERENCE = 4000  # of each shape


def evidence_of(model: object, seed: int = 0, *, pairs: bool = False) -> Evidence:
    return asserted_of(assert_has_induction_head, model, seed=seed, allow_virtual=pairs)


def asserted_of(assertion: Callable[..., Evidence], model: object, **options: object) -> Evidence:
    try:
        return assertion(model, **options)
    except ExpectationFailed as failure:
        return failure.evidence


Known = tuple[Evidence | Judgement, Verdict | None]  # what was said, and what is so; None where that is not known


def planted_models(count: int, seed: int, *, pairs: bool = False) -> Iterator[Known]:
    """Heads of every kind, half of them ones that match and copy; sharp or not, of several sizes and precisions.

    With `pairs` half of them are virtual heads, and these count.
    """
    rng = np.random.default_rng(seed)
    formed = (*MATCHING, VIRTUAL) if pairs else MATCHING
    for index in range(count):
        kinds = ((VIRTUAL,) if pairs else MATCHING) if index % 2 else (*MATCHING, *OTHERS) if pairs else OTHERS
        kind = str(rng.choice(kinds))
        sizes = {
            "n_layers": int(rng.integers(2, 4)),
            "n_heads": int(rng.integers(2, 6)),
            "d_vocab": int(rng.choice([12, 24, 48, 64])),
            "n_ctx": int(rng.choice([32, 48, 102])),
        }
        options: dict[str, object] = {"layer": sizes["n_layers"] - 1, "head": int(rng.integers(0, 2))}
        sharp = bool(rng.integers(2))
        if kind in formed and not sharp:
            options["sharpness"] = float(rng.uniform(0.5, 6.0))
        if kind == "count_back_head":
            options["distance"] = int(rng.integers(1, 25))
        if kind == "redundant_induction_heads":
            options |= {"count": 2, "head": 0}
        if kind == VIRTUAL and pairs:
            options["distance"] = int(rng.integers(1, 3))  # below every period
        model = getattr(planted, kind)(**options, **sizes)
        if sharp and kind != "pointer_induction_head":  # whose pointers round in bfloat16
            model = model.to([torch.float32, torch.float64, torch.bfloat16][int(rng.integers(3))])
        subject = load_model(model)
        wanted: Verdict | None = Verdict.REFUTED
        if kind in formed:
            latest = kind == "pointer_induction_head"
            score = 1.0 if sharp else score_by_formula(subject, float(str(options["sharpness"])), latest_only=latest)
            near = abs(score - MIN_PREFIX_MATCHING) < NEAR * MIN_PREFIX_MATCHING
            wanted = None if near else Verdict.SHOWN if score > MIN_PREFIX_MATCHING else Verdict.REFUTED
        yield evidence_of(subject, seed=index, pairs=pairs), wanted


def score_by_formula(subject: object, sharpness: float, *, latest_only: bool) -> float:
    """Prefix matching of a planted head over the periods that fit, each as likely as any other."""
    periods, repeats = fitting_shape(subject.space)  # type: ignore[attr-defined]
    match, rest = np.exp(sharpness), np.exp(sharpness / 2)
    means = []
    for period in periods:
        queries = np.arange(1 + period, 1 + period * repeats)
        matches = np.ones_like(queries) if latest_only else (queries - 1) // period
        means.append(np.mean(matches * match / (matches * match + rest + queries - matches)))
    return float(np.mean(means))


def mixed_models(count: int, seed: int) -> Iterator[Known]:
    """One to three heads that match the same prefixes; some copy, some suppress."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        count_of_heads = int(rng.integers(1, 4))
        strengths = rng.uniform(1, 16, size=count_of_heads) * rng.choice([-1, 1], size=count_of_heads)
        sizes = {"d_vocab": int(rng.choice([24, 40, 64])), "n_ctx": int(rng.choice([48, 102]))}
        near = abs(strengths.sum() - MIN_ADVANTAGE) < NET
        copies = strengths.max() > 0 and strengths.sum() > MIN_ADVANTAGE
        wanted = None if near else Verdict.SHOWN if copies else Verdict.REFUTED
        yield evidence_of(matching_heads(*strengths.tolist(), **sizes), seed=index), wanted


def shipped_again(place: str, wanted: Verdict, seeds: range, *, pairs: bool = False) -> Iterator[Known]:
    subject = load_model(f"{ROOT}/fixtures/{place}")
    for seed in seeds:
        yield evidence_of(subject, seed, pairs=pairs), wanted
        subject._known.clear()


def repeating_rows(n_rows: int, d_vocab: int, n_positions: int, seed: int) -> NDArray[np.int64]:
    """Rows of random ids, in which segments of six that stood before make up a third."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n_rows):
        row = [0]
        while len(row) < n_positions:
            start = int(rng.integers(1, max(2, len(row) - 6)))
            row += row[start : start + 6] if len(row) > 12 and rng.random() < 0.25 else rng.integers(1, d_vocab, 4).tolist()
        rows.append(row[:n_positions])
    return np.array(rows)


def of_text(model: object, rows: NDArray[np.int64], **options: object) -> Evidence:
    """The evidence on whether the heads carry what a match in these rows foretells."""
    try:
        return assert_icl_is_induction(model, rows, **options)
    except ExpectationFailed as failure:
        return failure.evidence


def in_text_random(models: Iterable[object]) -> Iterator[Known]:
    """Random weights, of which nothing is to be shown; those with too short a context for such rows do not count."""
    for seed, model in enumerate(models):
        subject = load_model(model)
        positions, d_vocab = min(64, subject.space.n_ctx or 64), subject.space.d_vocab
        if positions < SHORTEST_ROWS or subject.space.bos_id not in (0, None):
            continue
        yield of_text(subject, repeating_rows(60, min(40, d_vocab), positions, seed), seed=seed), Verdict.REFUTED


def in_text_planted(count: int) -> Iterator[Known]:
    """Planted induction heads of varied sharpness and strength: named, they carry what is foretold; another head does not."""
    rng = np.random.default_rng(6)
    for seed in range(count):
        options = {
            "sharpness": float(rng.uniform(4, 16)),
            "strength": float(rng.uniform(3, 16)),
            "latest_only": bool(rng.integers(2)),
        }
        model = planted.induction_head(n_heads=int(rng.integers(3, 6)), d_vocab=40, n_ctx=64, **options)
        rows = repeating_rows(60, 40, 64, seed)
        heads, wanted = ("L1H0", Verdict.SHOWN) if seed % 2 else ("L1H1", Verdict.REFUTED)
        yield of_text(model, rows, heads=heads, seed=seed), wanted


def at_specificity(seeds: range, heads: tuple[float, float]) -> Iterator[Known]:
    """Judgements on rows in which heads are at a threshold in the long run: what foretold tokens lose, and all others.

    Rows have a gamma-distributed number of foretold tokens, about 45. A fifth of all tokens has the whole effect, each a multiple
    of its own of it, and rows differ by a lognormal factor.
    """
    claim = CausalClaim(("L1H0",), "", n_controls=72)
    most, halves = 48, [1, 5]
    for seed in seeds:
        rng = np.random.default_rng(seed)
        counts, lost, clean = (np.zeros((most, len(GROUPS))) for _ in range(3))
        counts[:, 1], counts[:, 5] = rng.poisson(rng.gamma(2, 22.5, most)) + 1, 400
        factor = np.exp(rng.normal(-0.125, 0.5, (most, 2)))
        hit = rng.gamma(np.maximum(rng.binomial(counts[:, halves].astype(int), 0.2), 1e-9))
        lost[:, halves] = 5 * np.array(heads) * hit * factor + rng.normal(0, 0.5, (most, 2)) * counts[:, halves] ** 0.5
        clean[:, halves] = np.array([0.6, 1.9]) * counts[:, halves]
        controls = np.full((72, most, 2), np.nan)
        for row in range(most):
            fresh = [(6 * row + place) % 72 for place in range(6)]
            controls[fresh, row] = rng.normal(0, 0.1, (6, 2)) * counts[row, halves] ** 0.5
        every = Rises(counts, clean, lost, controls, np.nanmean(controls, axis=0))
        looks = look_sizes(most)
        for size in looks:
            part = Rises(counts[:size], clean[:size], lost[:size], controls[:, :size], every.usual[:size])
            found = judge_specificity(part, claim, min_specificity=MIN_SPECIFICITY, error_rate=STATED * 0.8 / len(looks))
            if found.verdict is not Verdict.UNDETERMINED:
                break
        yield found, Verdict.UNDETERMINED


def skewed_rows(shapes: Sequence[skewed.Shape], count: int) -> Iterator[Known]:
    """`count` seeds in all, the same of each shape."""
    for index, shape in enumerate(shapes):
        for judgement in skewed.judged(shape, range(index * count, index * count + max(1, count // len(shapes)))):
            yield judgement, shape.wanted


def trained_again(name: str, seeds: range) -> Iterator[nn.Module]:
    for seed in seeds:
        recipe = replace(fixtures.RECIPES[name], seed=seed, steps=TRAINING_STEPS)
        yield fixtures.train(recipe, ROOT, quiet=True)[0]


def copiers(seeds: range) -> Iterator[nn.Module]:
    """Two-layer GPT-2 shapes with MLPs: they learn to copy through a pair of heads, no single one of which matches."""
    for seed in seeds:
        yield fixtures.train(replace(fixtures.RECIPES["gpt2-2l-virtual"], seed=seed), ROOT, quiet=True)[0]


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


FEW_SHOT = (
    ({}, Verdict.SHOWN),
    ({"count": 3, "through_induction": True}, Verdict.REFUTED),
    ({"count": 3}, Verdict.UNDETERMINED),  # any of three is enough
    ({"strength": 0.0}, Verdict.UNDETERMINED),  # no task is done
)


def few_shot_models(count: int, seed: int) -> Iterator[Known]:
    """Function-vector heads that are needed, induction heads that are, neither, and models that do no task."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        options, wanted = FEW_SHOT[index % len(FEW_SHOT)]
        sizes = {"n_heads": int(rng.integers(10, 13)), "d_vocab": int(rng.integers(33, 65)), "n_ctx": 48}
        model = planted.few_shot_head(**options, **sizes)
        try:
            found = assert_icl_heads(model, tasks=model.tasks, n_shots=int(rng.integers(2, 6)), max_sequences=12, seed=index)
        except ExpectationFailed as failure:
            found = failure.evidence
        yield found, wanted


def few_shot_rows(count: int, seed: int) -> Iterator[Known]:
    """Both kinds of heads lose as much as the threshold more or less: no answer is right, at any look."""
    rng = np.random.default_rng(seed)
    shapes = (
        lambda size: rng.normal(MIN_DIFFERENCE, 0.5, size),
        lambda size: np.where(rng.random(size) < 0.1, 10 * MIN_DIFFERENCE, 0.0),
        lambda size: np.where(rng.random(size) < 0.95, 2 * MIN_DIFFERENCE, -18 * MIN_DIFFERENCE),
    )
    for index in range(count):
        lead, ahead = KINDS[index % 2], shapes[index % len(shapes)]

        def draw(size: int, number: int, lead: str = lead, ahead: Callable[[int], np.ndarray] = ahead) -> Effects:
            other = rng.normal(1.0, 0.5, size)
            lost = {kind: other + ahead(size) if kind == lead else other for kind in KINDS}
            dealt = np.full((N_CONTROLS, size), np.nan)
            dealt[:, 0] = -9.0
            gain = rng.normal(3.0, 0.5, size)
            return Effects(-gain, -2 * gain, lost, dealt, np.full(size, -9.0), dict.fromkeys(("", *KINDS), np.ones(size)), 1)

        def judge(rounds: Sequence[Effects], _: float, lead: str = lead) -> Judgement:
            sets = dict.fromkeys(KINDS, (HeadId(0, 0),))
            return judge_kinds(Effects.join(rounds), sets, lead, min_difference=MIN_DIFFERENCE, error_rate=STATED)

        yield until_clear(draw, judge, MAX_SEQUENCES, STATED)[1], Verdict.UNDETERMINED


RETRIEVAL = (  # options of a planted model, and what is known of it; where the model guesses nothing follows
    ({}, Verdict.SHOWN),
    ({"strength": 0.0}, Verdict.UNDETERMINED),
    ({"distractors": True}, Verdict.UNDETERMINED),
)


def retrieval_models(count: int, seed: int) -> Iterator[Known]:
    """Retrieval heads that are needed, that write nothing, or attend to distractors; and models of random weights."""
    rng = np.random.default_rng(seed)
    facts = planted.retrieval_head().facts
    for index in range(count):
        sizes = {"n_heads": int(rng.integers(10, 13)), "d_vocab": int(rng.integers(32, 65)), "n_ctx": 64}
        if index % 4 == 3:
            torch.manual_seed(index)
            model = planted.uniform_head(**{**sizes, "n_heads": 4})
            for weight in model.parameters():
                weight.data = 0.3 * torch.randn_like(weight)
            wanted = Verdict.UNDETERMINED
        else:
            options, wanted = RETRIEVAL[index % 4]
            model = planted.retrieval_head(**options, **sizes)
        try:
            n_facts = int(rng.integers(2, 5))
            found = assert_retrieval_heads(model, facts=facts, n_facts=n_facts, length=48, max_sequences=24, seed=index)
        except ExpectationFailed as failure:
            found = failure.evidence
        yield found, wanted


def retrieval_rows(count: int, seed: int) -> Iterator[Known]:
    """Rows whose means lie at one of the thresholds, so that nothing can be shown, at any look; also of skewed rows."""
    rng = np.random.default_rng(seed)
    thresholds = {"min_written": MIN_WRITTEN, "min_lost": MIN_LOST, "min_accuracy": 0.25}
    for index in range(count):
        at = index % 3

        def draw(size: int, number: int, at: int = at) -> Retrieved:
            right = (rng.random(size) < (0.25 if at == 0 else 0.9)).astype(float)
            rare = np.where(rng.random(size) < 0.1, 1.0, 0.0)
            written = (rare * 10 * MIN_WRITTEN if at == 1 else rng.normal(0.6, 0.3, size))[:, None, None]
            lost = rare * 10 * MIN_LOST if at == 2 else rng.normal(1.0, 0.5, size)
            zero = np.zeros_like(written)
            scores = {"written": written, "written_null": zero, "attention": zero, "argmax": zero, "argmax_null": zero}
            dealt = np.full((N_CONTROLS, size), np.nan)
            dealt[:, 0] = -9.0
            behaviour, without = ({"accuracy": right, "log_odds": each} for each in (np.zeros(size), -lost))
            return Retrieved(scores, behaviour, without, dealt, np.full(size, -9.0))

        def judge(rounds: Sequence[Retrieved], _: float) -> Judgement:
            return judge_retrieval(Retrieved.join(rounds), [HeadId(0, 0)], thresholds, error_rate=STATED)

        yield until_clear(draw, judge, MAX_ROWS_OF_FACTS, STATED)[1], Verdict.UNDETERMINED


TRAINED = ("one layer, trained again", "two layers, trained again", "copies through pairs, trained")  # which takes minutes


class Table:
    """Rows as they are finished, and how many verdicts were wrong of how many; only rows with one of the parts in their names."""

    def __init__(self, parts: Sequence[str] = ()) -> None:
        self.wrong = self.seen = 0
        self.parts = tuple(parts)
        self.too_often: list[str] = []
        print("| models | n | SHOWN | REFUTED | UNDETERMINED | wrong | at most (95 %) | reasons |")
        print("|---" * 8 + "|")

    def wants(self, name: str) -> bool:
        """Whether a row is asked for."""
        return not self.parts or any(part in name for part in self.parts)

    def row(self, name: str, verdicts: Iterator[Known], *, always: bool = False) -> None:
        """One row; with `always` a verdict is wrong that is not the one that is so, UNDETERMINED too."""
        if not self.wants(name):
            return
        started = time.perf_counter()
        found = list(verdicts)
        counts, reasons = Counter(each.verdict for each, _ in found), Counter(each.reason for each, _ in found)
        wrong = sum(is_wrong(*each, always=always) for each in found)
        self.wrong, self.seen = self.wrong + wrong, self.seen + len(found)
        told = ", ".join(f"`{reason}` {count}" for reason, count in reasons.most_common())
        cells = " | ".join(str(counts[verdict]) for verdict in Verdict)
        print(f"| {name} | {len(found)} | {cells} | {wrong} | {at_most(wrong, len(found)):.4f} | {told} |", flush=True)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        if at_least(wrong, len(found)) > STATED:
            self.too_often.append(f"{name}: {wrong} of {len(found)} are wrong, more than {STATED:g} allows")

    def pooled(self) -> int:
        """Print all rows together; 1 where the stated rate does not hold, of all or of one row."""
        if not self.seen:
            print(f"no row has {' or '.join(self.parts)} in its name; --help lists the rows", file=sys.stderr)
            return 2
        bound = at_most(self.wrong, self.seen)
        print(f"| all | {self.seen} | | | | {self.wrong} | {bound:.4f} | |")
        print(*self.too_often, sep="\n", end="\n" if self.too_often else "", file=sys.stderr)
        return int(self.wrong > max(1.0, STATED * self.seen) or bool(self.too_often))  # one of few may be chance


def is_wrong(found: Evidence | Judgement, wanted: Verdict | None, *, always: bool = False) -> bool:
    """Whether the opposite of what is so was said; with `always`, whether anything else was."""
    return wanted is not None and found.verdict not in ((wanted,) if always else (wanted, Verdict.UNDETERMINED))


def at_most(wrong: int, seen: int) -> float:
    """The upper bound of the rate at 95 %, after Clopper and Pearson."""
    return 1.0 if wrong == seen else float(beta.ppf(0.95, wrong + 1, seen - wrong))


def at_least(wrong: int, seen: int) -> float:
    """The lower bound of the rate at 95 %, after Clopper and Pearson."""
    return 0.0 if wrong == 0 else float(beta.ppf(0.05, wrong, seen - wrong + 1))


def all_are(wanted: Verdict, models: Iterable[object], of: Callable[[object], Evidence] = evidence_of) -> Iterator[Known]:
    for model in models:
        try:
            yield of(model), wanted
        except UnsupportedModel as refusal:  # weights so large that rounding decides what is attended to
            print(f"refused: {str(refusal).splitlines()[0]}", file=sys.stderr)


def longer_matches(table: Table, n_random: int, n_planted: int, seeds: int) -> None:
    """The rows on which of several matches heads prefer."""
    table.row("longer matches, random", competing.random_preferences(random_models(n_random, seed=6)))
    table.row("longer matches, planted", competing.planted_preferences(n_planted, seed=7))
    for shape in competing.SHAPES:
        table.row(f"longer matches, rows: {shape}", competing.rows_at_the_threshold(shape, seeds))


def suppression(table: Table, n_random: int, n_planted: int, seeds: int) -> None:
    """The rows on heads that lower what is predicted."""
    table.row("copy suppression, random", suppressing.random_suppressors(repeating_rows, random_models(n_random, seed=8)))
    table.row("copy suppression, planted", suppressing.planted_suppressors(repeating_rows, n_planted, seed=9))
    for shape in suppressing.SHAPES:
        table.row(f"copy suppression, rows: {shape}", suppressing.rows_at_the_threshold(shape, seeds))


def trained(table: Table, seeds: range) -> None:
    """The rows on models that are trained for them."""
    one_layer, two_layers, pairs = TRAINED
    table.row(one_layer, all_are(Verdict.REFUTED, trained_again("attn-only-1l", seeds)))
    models = list(trained_again("attn-only-2l", seeds))
    have_one = [best_by_reference(model) > REFERENCE_THRESHOLD for model in models]
    table.row(two_layers, all_are(Verdict.SHOWN, (model for model, has in zip(models, have_one, strict=True) if has)))
    rest = [model for model, has in zip(models, have_one, strict=True) if not has]
    if rest:
        table.row("of these without head", ((evidence_of(model), None) for model in rest))
    table.row(pairs, all_are(Verdict.REFUTED, copiers(range(1))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of each row")
    parser.add_argument("--without-training", action="store_true", help="leave out the rows that train models")
    parser.add_argument("--most", type=int, default=1000, help="of each row of models at most so many")
    parser.add_argument(
        "--rows", action="append", default=[], metavar="PART", help="only rows whose names have it; may be repeated"
    )
    options = parser.parse_args()
    share = 20 if options.quick else 1
    torch.set_num_threads(1)
    table = Table(options.rows)
    formed, absent = Verdict.SHOWN, Verdict.REFUTED

    def some(count: int) -> int:
        return max(1, min(count // share, options.most))

    table.row("random weights", all_are(absent, random_models(some(200), seed=1)))
    table.row("planted heads", planted_models(some(400), seed=2))
    table.row("beside suppressors", mixed_models(some(100), seed=3))
    for place, wanted in SHIPPED.items():
        table.row(f"shipped {place.rpartition('/')[2].rpartition(':')[2]}", shipped_again(place, wanted, range(some(100))))
    table.row("pairs allowed, random", all_are(absent, random_models(some(60), seed=4), partial(evidence_of, pairs=True)))
    table.row("pairs allowed, planted", planted_models(some(100), seed=5, pairs=True))
    table.row("pairs allowed, shipped", shipped_again("models/gpt2-2l-virtual", formed, range(some(60)), pairs=True))
    table.row(
        "recall, random weights", all_are(absent, random_models(some(60), seed=6), partial(asserted_of, assert_recalls, pairs=4))
    )
    table.row(
        "rules, random weights",
        all_are(absent, random_models(some(60), seed=7), partial(asserted_of, assert_follows_rule, examples=1)),
    )
    longer_matches(table, some(60), some(100), OF_PREFERENCE // share)
    suppression(table, some(60), some(60), SKEWED_SEEDS // share)
    table.row("in a text, random", in_text_random(random_models(some(40), seed=7)))
    table.row("in a text, planted", in_text_planted(some(60)))
    table.row("specificity at its threshold", at_specificity(range(some(500)), (0.4, 0.4 - MIN_SPECIFICITY)))
    table.row("foretold tokens at the threshold", at_specificity(range(some(500)), (MIN_SPECIFICITY, 0.0)))
    table.row("few-shot heads, planted", few_shot_models(some(40), seed=6))
    table.row("few-shot heads, rows", few_shot_rows(1000 // share, seed=7))
    table.row("retrieval heads, planted and random", retrieval_models(some(40), seed=8))
    table.row("retrieval heads, rows", retrieval_rows(1000 // share, seed=9))
    table.row("concept heads, planted and random", concepts.planted_and_random(some(40), seed=10))
    table.row("concept heads, rows", concepts.rows_at_the_threshold(1000 // share, seed=11))
    for shape in skewed.SHAPES:
        count = OF_ADVANTAGE if shape.name.startswith("advantage") else SKEWED_SEEDS
        table.row(shape.name, skewed_rows([shape], count // share), always=shape.always)
    for shapes in skewed.at_the_edge():
        table.row(shapes[0].name, skewed_rows(shapes, OF_REAL_HEADS // share))
    if not options.without_training and any(map(table.wants, TRAINED)):
        trained(table, range(1, 1 + some(10)))
    return table.pooled()


if __name__ == "__main__":
    sys.exit(main())
