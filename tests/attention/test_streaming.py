"""The scores of a pass taken layer by layer are those of each layer taken alone, however layers differ."""

import itertools

import pytest
import torch

from pytest_induction.attention import scores as streaming
from pytest_induction.attention.pattern import LogSumExpReader, PatternReader, _blocks, masses, row_log_sum_exp
from pytest_induction.attention.scores import PairScores, PeriodicScores, Streamed

T = 25
SCORES = PeriodicScores(6, 1, T, (2,))


def layer(seed, heads=3, key_heads=3, scale=None, masked=False, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(2, n, T, 8, generator=generator, dtype=torch.float64).to(dtype) for n in (heads, key_heads))
    scale = scale or 8**-0.5
    mask = torch.ones(T, T).tril().bool() & torch.ones(T, T).triu(-9).bool() if masked else None
    return LogSumExpReader(query, key, row_log_sum_exp(query, key, scale, mask, not masked), scale, mask, not masked)


def pattern(seed):
    return PatternReader(torch.rand(2, 3, T, T, generator=torch.Generator().manual_seed(seed)).tril())


def layers_of(stream):
    return [layer for chunk in stream.chunks() for layer in chunk]


MODELS = {
    "alike": lambda: [layer(seed) for seed in range(5)],
    "heads differ": lambda: [layer(0), layer(1, heads=6, key_heads=2), layer(2, heads=6, key_heads=6), layer(3)],
    "scales differ": lambda: [layer(seed, scale=0.1 * (seed + 1)) for seed in range(4)],
    "windows in some": lambda: [layer(seed, masked=seed % 2 == 1) for seed in range(4)],
    "precisions differ": lambda: [layer(0), layer(1, dtype=torch.bfloat16), layer(2, dtype=torch.float64)],
    "patterns between": lambda: [layer(0), pattern(1), pattern(2), layer(3)],
}


WAYS = {"all products": (10**9, 0), "lines of arrays": (0, 10**9), "lines of tensors": (0, 0)}


def go(monkeypatch, way):
    """Make products in this way."""
    products, threads = WAYS[way]
    for name in ("SMALL_ENTRIES", "HELD_PRODUCTS"):
        monkeypatch.setattr(f"pytest_induction.attention.pattern.{name}", products)
    monkeypatch.setattr("pytest_induction.attention.pattern.FEW_THREADS", threads)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("held", [1, 3000, 10**9])
@pytest.mark.parametrize("kind", MODELS)
def test_together_is_the_same_as_alone(monkeypatch, kind, held, way):
    """Whatever waits for how long, and whichever way the products are made."""
    monkeypatch.setattr(streaming, "HELD_ENTRIES", held)
    go(monkeypatch, way)
    layers = MODELS[kind]()
    stream = Streamed(SCORES, len(layers))
    for index, reader in enumerate(layers):
        stream.add(index, reader)
    found = layers_of(stream)
    assert len(found) == len(layers)
    for one, reader in zip(found, layers, strict=True):
        torch.testing.assert_close(one, SCORES(reader), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (3, 3), (4, 1)])
def test_the_ways_of_making_products_agree(monkeypatch, heads, key_heads):
    """All at once for short sequences, line by line for long ones, and in blocks those that no cache holds."""
    found = []
    for way, cache in itertools.product(WAYS, (10**9, 0)):
        go(monkeypatch, way)
        monkeypatch.setattr("pytest_induction.attention.pattern.IN_CACHE", cache)
        reader = layer(0, heads=heads, key_heads=key_heads, masked=True)
        found.append(reader.diagonals([0, 1, 5, 24, 40], first=True))
        assert len(list(_blocks(reader.query))) == (2 * T if cache == 0 else 1)
        torch.testing.assert_close(found[-1], found[0], atol=1e-6, rtol=0)
    assert not found[0][:, :, 4].any() and found[0][:, :, -1].any()


def test_more_layers_than_were_announced_are_taken_too():
    """The number only sets how much room is made."""
    stream = Streamed(SCORES, 1)
    for index in range(3):
        stream.add(index, layer(index))
    assert len(layers_of(stream)) == 3


def test_scattered_scores_are_taken_at_once():
    """They need no lines."""
    tokens = torch.randint(0, 5, (2, T), generator=torch.Generator().manual_seed(0))
    scores = PairScores.of(tokens)
    stream = Streamed(scores, 2)
    for index in range(2):
        stream.add(index, layer(index))
    torch.testing.assert_close(layers_of(stream)[1], scores(layer(1)))


def test_autocast_rounds_nothing():
    """Wherever the user has it on."""
    wanted = Streamed(SCORES, 1)
    wanted.add(0, layer(0))
    found = Streamed(SCORES, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found.add(0, layer(0))
        rounded = layers_of(found)[0]
    torch.testing.assert_close(rounded, layers_of(wanted)[0], atol=1e-3, rtol=0)
    assert rounded.dtype is torch.float32


def test_scores_that_are_asked_for_under_autocast_are_the_same_to_the_bit():
    """Each layer is handed over where it is off; what waits may be turned into scores where the user has it on."""
    wanted, found = Streamed(SCORES, 1), Streamed(SCORES, 1)
    for stream in (wanted, found):
        stream.add(0, layer(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = layers_of(found)[0]
    assert torch.equal(under_autocast, layers_of(wanted)[0]) and under_autocast.dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_sum_exps_are_those_of_torch_also_of_rows_in_which_all_is_masked(dtype):
    generator = torch.Generator().manual_seed(0)
    query, key = (20 * torch.randn(2, 3, T, 8, generator=generator, dtype=dtype) for _ in range(2))
    mask = torch.ones(T, T, dtype=torch.bool).tril()
    mask[4] = False
    found = row_log_sum_exp(query, key, 0.5, mask, causal=False)
    wanted = (query @ key.mT * 0.5).masked_fill(~mask, -torch.inf).logsumexp(-1)
    assert (found[:, :, 4] == -torch.inf).all() and found[:, :, 5:].isfinite().all()
    torch.testing.assert_close(found, wanted)


def test_masses_are_exponentials_and_exactly_nothing_where_masked():
    scores = torch.linspace(-200, 0, 401, dtype=torch.float32).masked_fill(torch.arange(401) % 3 == 0, -torch.inf)
    wanted = (scores.double() - 0.5).exp()
    found = masses(scores.clone(), torch.full((401,), 0.5))
    assert (found[scores == -torch.inf] == 0).all()
    torch.testing.assert_close(found.double(), wanted, atol=1e-37, rtol=2e-5)
    assert float((found - wanted).abs().max()) < 2e-7


def test_masses_of_scores_in_the_thousands_are_as_near_as_the_scores():
    """Nothing is made of either before the difference, so that their size is no matter."""
    scores = torch.tensor([7.0, 912.0, 7598.0, 50021.0])
    assert torch.equal(masses(scores.clone(), scores), torch.ones(4))
    assert torch.equal(masses(scores.clone(), scores + 1), masses(torch.zeros(4), torch.ones(4)))
