"""How much of a head's effect copy suppression explains: against loops and whole passes, and planted heads with known answers."""

import json

import numpy as np
import pytest
import torch

import pytest_induction as induction
from pytest_induction import measure_copy_suppression, planted
from pytest_induction.errors import ArgumentError
from pytest_induction.heads.explained import ChangedPasses, ExplainedHead, explained, kl, n_kept, of_head, read_by_heads
from pytest_induction.heads.suppression import queries_of
from pytest_induction.interventions.edits import ablate, intervene
from pytest_induction.model.circuits import circuits_of
from pytest_induction.planted.blueprint import Attends, Blueprint, Match, after, back
from pytest_induction.records import HeadId
from tests.behaviour.test_matches import repeating_rows
from tests.heads.test_copying import tiny
from tests.heads.test_semantic import patterns_of
from tests.heads.test_suppression import beside, frozen, parts_of, untied

SIZES = {"n_heads": 3, "d_vocab": 40, "n_ctx": 64}
HALVES = [np.random.default_rng(seed).permutation(np.arange(1, 40))[:31] for seed in range(24)]
TWICE = np.array([[0, *half, *half, 1] for half in HALVES])  # every token once in each half
KINDS = [*(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ("GPT2", "Llama")), "Gemma3"]


def drawn_rows(n_rows, length=40):
    """Rows of random ids, some of which stand several times."""
    rows = np.random.default_rng(5).integers(3, 61, (n_rows, length))
    rows[:, 0] = 0
    return rows


class Slow:
    """One head of a tiny model of transformers, by loops over queries and keys, and whole passes with a hook."""

    def __init__(self, model, rows, head, others, *, lowers=True):
        self.model, self.rows, self.head = model, torch.from_numpy(rows), head
        self.norm, self.values, self.out, self.behind, self.end = parts_of(model, head.layer)
        self.lowers = lowers
        read = [self.of_row(row, of_row) for row, of_row in zip(self.rows, others, strict=True)]
        self.written, *self.kept = (torch.stack(each) for each in zip(*read, strict=True))

    def of_row(self, row, others):
        """What the head writes at each position of a row, and of that the parts that are kept."""
        pattern = patterns_of(self.model, row[None].numpy())[self.head.layer, 0]
        stream = self.model(row[None], output_hidden_states=True, use_cache=False).hidden_states[self.head.layer][0]
        values, n_heads = self.values(self.norm(stream)), len(pattern)
        d_head = len(self.out) // n_heads
        shared = n_heads * d_head // values.shape[1]
        directions = self.model.lm_head(
            frozen(self.end, torch.ones(len(self.out[0])).double(), torch.eye(len(self.out[0])).double())
        )
        directions = directions - directions.mean(1, keepdim=True)  # d_model, ids: up to a scale
        written, kept, other = (torch.zeros(len(row), len(self.out[0])).double() for _ in range(3))
        for query in range(len(row)):
            by_head = torch.zeros(n_heads, query + 1, len(self.out[0])).double()
            for head in range(n_heads):
                out, group = self.out[head * d_head : (head + 1) * d_head], head // shared
                for key in range(query + 1):
                    by_head[head, key] = pattern[head, query, key] * (values[key, group * d_head : (group + 1) * d_head] @ out)
            if self.behind is not None:
                by_head = frozen(self.behind, by_head.sum((0, 1)), by_head)
            own = by_head[self.head.head]
            written[query] = own.sum(0)
            logits = self.model.lm_head(self.end(stream[query]))
            likely = logits.tolist()
            tokens = sorted(set(row[1:query].tolist()), key=likely.__getitem__, reverse=True)
            most = [key for key in range(1, query) if row[key] in tokens[: -(-len(tokens) // 20)]]
            for keys, into in ((most, kept), (others[query], other)):
                for key in keys:
                    along = directions[:, row[key]]
                    amount = (own[key] @ along) / (along @ along)
                    if (amount < 0) == self.lowers:
                        into[query] += amount * along
        return written, kept, other

    def divergences(self):
        """Sums over the queries of all rows: mean-ablated, with what is kept, and with other keys."""
        found, clean = [], self.logits(torch.zeros_like(self.written))
        for kept in (torch.zeros_like(self.written), *self.kept):
            mean = (self.written - kept)[:, 1:].mean((0, 1))
            change = kept + mean - self.written
            change[:, 0] = 0
            sums = 0.0
            for of_clean, of_changed in zip(clean, self.logits(change), strict=True):
                for query in queries_of(self.rows.shape[1]).tolist():
                    p, q = of_clean[query].softmax(-1), of_changed[query].softmax(-1)
                    sums += float((p * (p.log() - q.log())).sum())
            found.append(sums)
        return found

    def logits(self, change):
        blocks = self.model.transformer.h if hasattr(self.model, "transformer") else self.model.model.layers
        block = blocks[self.head.layer]
        gives = self.behind or (block.attn.c_proj if hasattr(block, "attn") else block.self_attn.o_proj)
        hook = gives.register_forward_hook(lambda part, given, output: output + change)
        found = self.model(self.rows, use_cache=False).logits
        hook.remove()
        return found


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_recovered_is_that_of_loops_and_whole_passes(kind):
    """Of heads of both layers, with shared keys and a norm behind attention; what raises in place of what lowers gives others."""
    model = untied(kind).double()
    subject, rows = induction.load_model(model), drawn_rows(2)
    heads = [HeadId(0, 1), HeadId(1, 3)]
    close = 1e-9 if kind == "GPT2" else 1e-6  # norms of the others compute in float32, whatever they are given
    read = read_by_heads(subject, circuits_of(subject), torch.from_numpy(rows), heads, 7)
    for found in explained(subject, rows, queries_of(40), heads, 7):
        head = HeadId(found.layer, found.head)
        others = drawn(read[head], rows)
        mean, kept, other = Slow(model, rows, head, others).divergences()
        assert found.ablated_kl == pytest.approx(mean / (2 * len(queries_of(40))), rel=close)
        assert (found.recovered, found.others) == pytest.approx((1 - kept / mean, 1 - other / mean), abs=close)
        raised = Slow(model, rows, head, others, lowers=False).divergences()[1]
        assert abs(found.recovered - (1 - raised / mean)) > 100 * close


def drawn(read, rows):
    """The other keys of each query, after a look that they are earlier ones, and as many as are kept and none of these."""
    found = []
    for number, row in enumerate(rows):
        of_row = []
        for query in range(len(row)):
            kept, others = (set(of_kind.nonzero()[:, 0].tolist()) for of_kind in read.kept[:, number, query])
            assert all(0 < key < query for key in kept | others) and bool(kept) == (query > 1)
            assert not kept & others and len(others) == min(len(kept), max(0, query - 1 - len(kept)))
            of_row.append(sorted(others))
        found.append(of_row)
    return found


def test_how_many_tokens_are_kept():
    assert [n_kept(count) for count in (0, 1, 20, 21, 40, 511)] == [0, 1, 1, 2, 2, 26]


@pytest.mark.parametrize("kind", [pytest.param("GPT2", marks=pytest.mark.exhaustive), "Llama", "GPTNeoX", "OPT"])
@torch.no_grad()
def test_a_head_that_writes_nothing_more_is_ablated(kind):
    """A change by all that it writes is what `ablate` does, where no norm is behind attention."""
    subject, rows = induction.load_model(tiny(kind).double()), torch.from_numpy(drawn_rows(2))
    circuits, queries = circuits_of(subject), torch.arange(40)
    for head in (HeadId(0, 2), HeadId(1, 1)):
        read = read_by_heads(subject, circuits, rows, [head], 0)[head]
        written = read.found @ circuits.layers[head.layer].outs[head.head]
        passes = ChangedPasses(subject, circuits, queries)
        with passes.blocks.kept() as gave:
            clean = subject.logits(rows)
        found = passes.logits(rows, head.layer, -written, gave)
        with intervene(subject, ablate(head)):
            assert torch.allclose(found, subject.logits(rows), atol=1e-9)
        assert (found - clean).abs().max() > 1e-3


def elsewhere():
    """A head that looks for what is predicted, as a suppressor does, and lowers the token with the next id."""
    plan = Blueprint({"n_layers": 3, **SIZES})
    plan.plant(plan.place(0, 0), "previous_token", Attends(back(1)), {"found": 1.0})
    plan.plant(plan.place(1, 0), "induction", Attends(after("found"), latest_only=True), {"output": 16.0})
    looks = Attends((Match("output", "token", weight=1 / 16),))
    plan.plant(plan.place(2, 0), "copying", looks, {"output": -8.0}, shift=1)
    return plan.build()


KNOWN = {  # a model, its head, and from where to where what is recovered lies
    "suppresses": (lambda: planted.prediction_suppression_head(**SIZES), "L2H0", (1 - 1e-5, 1 + 1e-5)),
    "copies what it looks for": (lambda: beside(Attends(after("found"), latest_only=True), 8.0), "L2H0", (-1e-6, 1e-6)),
    "lowers another token": (elsewhere, "L2H0", (-0.1, 0.1)),
    "lowers everything": (lambda: beside(Attends(resting=0.0), -10.0), "L2H0", (-0.1, 0.15)),
    "lowers what is near": (lambda: beside(Attends(back(2)), -2.0), "L2H0", (-0.1, 0.15)),
    "lowers what it matches, unpredicted": (lambda: planted.copy_suppression_head(**SIZES), "L1H0", (-0.1, 0.15)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_planted_heads_recover_what_they_must(name):
    """All of it where suppression is what a head does; of what does it by other means, no more than by keys drawn at random."""
    make, head, (low, high) = KNOWN[name]
    (found,) = measure_copy_suppression(make(), TWICE, explain=head, max_rows=12).explained
    assert str(found) == head and found.ablated_kl > 5e-5
    assert low <= found.recovered <= high
    assert abs(found.others) < 0.15 and (name == "suppresses" or abs(found.recovered - found.others) < 0.1)


def test_a_head_that_changes_nothing_has_nothing_to_explain():
    model = beside(Attends(resting=1.0), -8.0)
    (found,) = measure_copy_suppression(model, TWICE, explain="L2H0", max_rows=4).explained
    assert np.isnan([found.recovered, found.recovered_error, found.others, found.others_error]).all()
    assert found.ablated_kl < 1e-6 and found.to_dict()["recovered"] is None


def test_all_occurrences_of_a_token_are_kept():
    """The head attends to all of them. Only where its query's token is the predicted one is a key of it left out: itself."""
    rows = repeating_rows(12)
    (found,) = measure_copy_suppression(planted.prediction_suppression_head(**SIZES), rows, explain="L2H0").explained
    assert found.recovered > 0.99


def test_errors_are_those_of_a_ratio_by_leaving_rows_out():
    """Within a tenth of the jackknife's."""
    rng = np.random.default_rng(0)
    ablated = rng.gamma(4.0, size=40)
    kept = ablated * (0.5 + 0.2 * rng.normal(size=40))
    found = of_head(HeadId(0, 0), np.stack([ablated, kept, ablated]), 1)
    left_out = [1 - (kept.sum() - kept[row]) / (ablated.sum() - ablated[row]) for row in range(40)]
    assert found.recovered == pytest.approx(1 - kept.sum() / ablated.sum()) and (found.others, found.others_error) == (0, 0)
    assert found.recovered_error == pytest.approx(np.sqrt(39 / 40 * np.square(left_out - np.mean(left_out)).sum()), rel=0.1)


def test_divergence_by_hand():
    wanted, found = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, np.log(3.0)]]])
    assert float(kl(wanted, found)) == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75), abs=1e-6)


def test_it_is_only_measured_where_asked_for_and_is_plain_data():
    model = planted.prediction_suppression_head(**SIZES)
    assert measure_copy_suppression(model, TWICE, max_rows=2).explained == ()
    scores = measure_copy_suppression(model, TWICE, explain=["L2H0", (2, 1)], max_rows=2)
    data = json.loads(json.dumps(scores.to_dict()))["explained"]
    assert [(each["layer"], each["head"]) for each in data] == [(2, 0), (2, 1)] and data[1]["recovered"] is None
    assert ExplainedHead(**data[0]) == scores.explained[0]
    assert "recovered" in repr(scores)


def test_what_is_no_head_is_one_line():
    with pytest.raises(ArgumentError, match="L9H0"):
        measure_copy_suppression(planted.prediction_suppression_head(**SIZES), TWICE, explain="L9H0")
