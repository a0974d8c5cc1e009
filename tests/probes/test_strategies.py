"""Strategies give what they say, within what fits, and shrink to what a person would write down."""

import importlib
from contextlib import nullcontext
from itertools import count, pairwise

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from pytest_induction.errors import ArgumentError, ProbeError
from pytest_induction.probes import ProbeSequence, strategies
from pytest_induction.probes.strategies import searching
from pytest_induction.probes.strategies.drawing import MOST_IDS, Material
from pytest_induction.probes.strategies.searching import Judged, search
from pytest_induction.records import TokenSpace

KINDS = {name: getattr(strategies, name) for name in strategies.__all__}
SIZES = {"period", "repeats", "gap", "prefix", "inner", "outer", "misleading", "changes", "change"}


def members(example):
    return example if isinstance(example, tuple) else (example,)


def smallest(strategy, fails, *, seed=0, most=400):
    return search(strategy, lambda batch: Judged(next(filter(fails, batch), None), None), max_examples=most, seed=seed)


@st.composite
def spaces(draw):
    d_vocab = draw(st.integers(12, 400))
    bos = draw(st.one_of(st.none(), st.integers(0, d_vocab - 1)))
    excluded = draw(st.frozensets(st.integers(0, d_vocab), max_size=3))
    return TokenSpace(d_vocab, draw(st.one_of(st.none(), st.integers(12, 60))), bos, excluded)


@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(data=st.data(), space=spaces())
def test_every_sequence_fits_the_model_or_the_kind_is_refused(kind, data, space):
    """Usable ids, the first token in front and nowhere else, no longer than the context; refused only where it is small."""
    try:
        strategy = KINDS[kind](space)
    except ProbeError:
        assert space.n_ctx is not None or len(Material(space).ids) < 16
        return
    for probe in members(data.draw(strategy)):
        assert space.n_ctx is None or len(probe) <= space.n_ctx
        body = probe.tokens[1:] if space.bos_id is not None else probe.tokens
        assert probe.first == (space.bos_id is not None) and (not probe.first or probe.tokens[0] == space.bos_id)
        assert not set(body) & (space.excluded | {space.bos_id}) and max(body) < space.d_vocab


@given(st.data(), st.sampled_from([(2, 6), range(3, 9), 5, st.integers(2, 4)]), st.sampled_from([2, (2, 4)]))
def test_a_repeated_sequence_is_a_block_several_times(data, period, repeats):
    """Copies of different ids, with gaps and a prefix of ids that occur nowhere else, all of the sizes asked for."""
    probe = data.draw(strategies.repeated_sequences(60, period=period, repeats=repeats, gap=(0, 3), prefix=(0, 2)))
    cuts = [0, *probe.breaks, len(probe)]
    parts = [probe.tokens[start:end] for start, end in pairwise(cuts)]
    block = max(parts, key=parts.count)
    assert parts.count(block) == probe.repeats and len(block) == probe.period == len(set(block))
    others = [token for part in parts if part != block for token in part]
    assert len(others) == len(set(others)) and not set(others) & set(block)
    assert {len(part) for part in parts if part != block} <= {1, 2, 3}
    bounds = {(2, 6): range(2, 7), 5: range(5, 6)}.get(period, period if isinstance(period, range) else range(2, 5))
    assert probe.period in bounds and probe.repeats in ((2,) if repeats == 2 else (2, 3, 4))


@given(st.data())
def test_the_kinds_are_what_their_names_say(data):
    """Each in the tokens themselves."""
    partial = data.draw(strategies.partial_repeats(60))
    block, piece = partial.tokens[: partial.period], partial.tokens[partial.period :]
    assert 2 <= len(piece) < partial.period
    assert any(block[begin : begin + len(piece)] == piece for begin in range(partial.period))
    nested = data.draw(strategies.nested_repeats(60))
    assert nested.tokens == nested.tokens[: nested.period] * nested.repeats
    assert any(answer.order > 1 for answer in nested.answers)
    ngrams = data.draw(strategies.conflicting_ngrams(60, gap=(0, 2)))
    last = ngrams.answers[-1]
    assert last.query == len(ngrams) - 2 and last.order == 2 and last.distractor is not None and last.token == ngrams.tokens[2]
    control = data.draw(strategies.unrepeated_sequences(60))
    assert len(set(control.tokens)) == len(control) and not control.answers and not control.successors and control.lures
    miss = data.draw(strategies.near_misses(60, changes=(1, 2)))
    for query, key in miss.lures:
        assert miss.tokens.count(miss.tokens[query]) == 1 and key == query - miss.period + 1
        assert query not in miss.successors and query + 1 < len(miss)
    one, other = data.draw(strategies.period_pairs(60))
    assert other.period > one.period and other.tokens[: one.period] == one.tokens[: one.period]
    plain, disturbed = data.draw(strategies.distractor_pairs(60))
    assert [token for token in disturbed.tokens if token in plain.tokens] == list(plain.tokens) != list(disturbed.tokens)
    one, other = data.draw(strategies.relabelled_pairs(60))
    names = dict(zip(one.tokens, other.tokens, strict=True))
    assert tuple(names[token] for token in one.tokens) == other.tokens and len(set(names.values())) == len(names)


def test_a_failure_beyond_a_period_shrinks_to_the_next_period():
    """Two copies, no gaps, nothing in front, the smallest ids: what a person would write."""
    strategy = strategies.repeated_sequences(TokenSpace(500, bos_id=0), period=(2, 20), repeats=(2, 5), gap=(0, 4), prefix=(0, 3))
    for seed in range(2):
        found = smallest(strategy, lambda probe: probe.period > 7, seed=seed)
        assert found == ProbeSequence((0, *range(1, 9), *range(1, 9)), 8, 2, (1, 9), True)
        assert repr(found) == "BOS | 1 2 3 4 5 6 7 8 | 1 2 3 4 5 6 7 8"


def test_a_failure_shrinks_in_every_respect_that_does_not_matter():
    """A gap of two or more, a third copy, an id above 40: each alone remains, as small as it can be."""
    strategy = strategies.repeated_sequences(100, period=(2, 9), repeats=(2, 4), gap=(0, 5))
    gapped = smallest(strategy, lambda probe: len(probe) - probe.period * probe.repeats >= 2)
    assert (gapped.period, gapped.repeats, len(gapped)) == (2, 2, 6)
    assert repr(smallest(strategy, lambda probe: probe.repeats > 2)) == "0 1 | 0 1 | 0 1"
    *others, largest = sorted(set(smallest(strategy, lambda probe: max(probe.tokens) > 40).tokens))
    assert largest == 41 and others == list(range(len(others)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_shrinks_to_its_simplest_sequence(kind):
    """Which has the smallest ids, and is the same whatever was found first."""
    found = {smallest(KINDS[kind](50), lambda example: True, seed=seed) for seed in range(3)}
    assert len(found) == 1
    for probe in members(found.pop()):
        assert set(probe.tokens) == set(range(len(set(probe.tokens))))


def test_ids_are_about_equally_likely():
    """Of 600 sequences over 12 ids each id stands in the block about as often as any other."""
    counts = dict.fromkeys(range(12), 0)

    @settings(max_examples=600, database=None, phases=[Phase.generate], derandomize=True)
    @given(strategies.repeated_sequences(12, period=4, repeats=2))
    def count(probe):
        for token in probe.tokens[:4]:
            counts[token] += 1

    count()
    assert min(counts.values()) > 100  # 200 each, but for what hypothesis makes simple on purpose


@given(st.integers(0, 20), st.data())
def test_an_id_can_be_left_out_and_a_first_token_be_given(token, data):
    """`exclude`, and `bos`: an id of its own, or none at all."""
    assume(token != 7)
    made = strategies.repeated_sequences(TokenSpace(40, bos_id=3), exclude={token}, bos=7)
    probe = data.draw(made)
    assert probe.tokens[0] == 7 and token not in probe.tokens
    assert not data.draw(strategies.repeated_sequences(TokenSpace(40, bos_id=3), bos=False)).first


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: strategies.repeated_sequences(2.5), ArgumentError, "`model` must be a whole number"),
        (lambda: strategies.repeated_sequences(50, period=1), ArgumentError, "`period` must be a whole number from 2 up, got 1"),
        (
            lambda: strategies.repeated_sequences(50, repeats=1),
            ArgumentError,
            "`repeats` must be a whole number from 2 up, got 1",
        ),
        (lambda: strategies.repeated_sequences(50, period=(5, 3)), ArgumentError, "(least, most), got (5, 3)"),
        (lambda: strategies.repeated_sequences(50, period=(5,)), ArgumentError, "a pair (least, most) or a strategy, got (5,)"),
        (lambda: strategies.repeated_sequences(50, period="4"), ArgumentError, "`period` must be a whole number"),
        (lambda: strategies.repeated_sequences(50, period=range(4, 4)), ArgumentError, "not empty"),
        (lambda: strategies.repeated_sequences(50, bos=50), ArgumentError, "`bos` must be below the vocabulary's 50, got 50"),
        (lambda: strategies.repeated_sequences(3), ProbeError, "at least 4 usable token ids, there are 3"),
        (lambda: strategies.repeated_sequences(TokenSpace(50, 7, 0)), ProbeError, "at least 9 positions, the context has 7"),
        (lambda: strategies.repeated_sequences(9999, period=MOST_IDS + 1), ProbeError, f"at most {MOST_IDS} different ids"),
        (lambda: strategies.near_misses(50, changes=0), ArgumentError, "`changes` must be a whole number from 1 up, got 0"),
        (lambda: strategies.period_pairs(50, change=0), ArgumentError, "`change` must be a whole number from 1 up, got 0"),
    ],
)
def test_what_cannot_be_is_refused_when_the_strategy_is_made(make, error, said):
    """In one line, before anything is drawn."""
    with pytest.raises(error) as caught:
        make()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_long_sequences_are_drawn_too():
    """A thousand tokens each: fewer share a batch, as hypothesis has room for so many choices, and none is lost."""
    seen = []
    strategy = strategies.repeated_sequences(50_257, period=(400, 500), repeats=2)
    search(strategy, lambda batch: Judged(seen.extend(batch), None), max_examples=20, seed=0)
    assert len(seen) >= 18 and all(len(probe) >= 800 for probe in seen)


THOUSANDS = count(1)


def drawn_before_and_after(tmp_path, monkeypatch):
    """What a search with a seed draws, before and after a local module with many numbers in it is loaded."""
    name = f"numbers_of_{tmp_path.name}"
    first = 1000 * next(THOUSANDS)  # what a process has loaded once, it knows
    (tmp_path / f"{name}.py").write_text(f"NUMBERS = {[*range(first, first + 60)]}\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def drawn():
        found = []
        eight = st.tuples(*[st.integers(0, 100_000)] * 8)
        search(eight, lambda batch: found.extend(batch) or Judged(None, None), max_examples=200, seed=0)
        return found

    before = drawn()
    assert drawn() == before
    importlib.import_module(name)
    return before, drawn()


def test_a_search_with_a_seed_draws_the_same_whatever_is_loaded(tmp_path, monkeypatch):
    before, after = drawn_before_and_after(tmp_path, monkeypatch)
    assert len(before) >= 200
    assert after == before


def test_hypothesis_by_itself_draws_what_stands_in_loaded_code(tmp_path, monkeypatch):
    """So the guard is needed; once this fails, it is not."""
    monkeypatch.setattr(searching, "drawing_from_no_code", nullcontext)
    before, after = drawn_before_and_after(tmp_path, monkeypatch)
    assert after != before
