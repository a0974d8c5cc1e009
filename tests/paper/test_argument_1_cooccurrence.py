"""Argument 1: induction heads form, in-context learning improves, the loss has a bump and its path turns, in one window.

In every model of two layers or more, and in none of one layer (unless its keys are smeared: argument 2).
"""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pytest_induction import Verdict, assert_cooccurrence, assert_no_phase_change
from tests.paper.zoo import (
    ATTENTION_ONLY,
    CONTROLS,
    FIXTURES,
    PLAIN,
    SEEDS,
    SMEARED,
    WITH_MLPS,
    changes,
    kinds_of_heads,
    names,
    run,
    score,
)
from tests.runs.claims import evidence_of

sys.path.insert(0, str(FIXTURES))
from attention_only import AttentionOnly, Config

CHANGED = names(*PLAIN, *SMEARED)
PAIRS = {f"{kind}-s{seed}": f"{control}-s{seed}" for seed in SEEDS for kind, control in (("2l", "1l"), ("2l-mlp", "1l-mlp"))}


@pytest.mark.parametrize("name", names(*ATTENTION_ONLY))
def test_all_of_it_changes_in_one_window(name):
    assert assert_cooccurrence(run(name), turn=True).verdict is Verdict.SHOWN


@pytest.mark.parametrize("name", names(*WITH_MLPS))
def test_with_mlps_too_and_never_without_a_turn(name):
    """How far the path turns is not clear in every one of them; in none is it shown not to."""
    assert assert_cooccurrence(run(name)).verdict is Verdict.SHOWN
    assert changes(name)["turn"].verdict is not Verdict.REFUTED


@pytest.mark.parametrize("name", CHANGED)
def test_the_loss_has_its_bump_there(name):
    window, bump = changes(name)["prefix_matching"], changes(name)["loss"]
    assert bump.verdict is Verdict.SHOWN
    assert abs(np.log10(bump.midpoint.step.value / window.midpoint.step.value)) < 0.15


@pytest.mark.parametrize("name", names(*CONTROLS))
def test_nothing_of_it_in_one_layer(name):
    """The control: no head, no bump, no turn; in-context learning improves by what counting tokens in the context is worth."""
    assert assert_no_phase_change(run(name)).verdict is Verdict.SHOWN
    assert evidence_of(assert_cooccurrence, run(name), turn=True).reason == "no_change"
    for series in ("loss", "turn", "advantage"):
        assert changes(name)[series].verdict is not Verdict.SHOWN, series
    assert run(name).best_of_heads("prefix_matching")[0].max() < 0.15


@pytest.mark.parametrize("name", CHANGED)
def test_in_context_learning_forms_fastest_in_the_window_and_stays(name):
    """Nats for each factor of ten in tokens: at least three times as many in the window as after it, and nothing is lost again."""
    change, last = changes(name)["prefix_matching"], int(run(name).steps[-1])
    places = [change.onset.step.value, change.end.step.value, last]
    before, after, final = (score(name, place) for place in places)
    assert final < after < before
    inside, later = (
        (one - two) / np.log10(until / since)
        for one, two, since, until in ((before, after, *places[:2]), (after, final, *places[1:]))
    )
    assert inside > 3 * later


@pytest.mark.parametrize("name", PAIRS)
def test_the_loss_leaves_that_of_one_layer_in_the_window(name):
    """Before it, more layers are worth nothing; after it they are."""
    change = changes(name)["prefix_matching"]
    steps, own = run(name).steps, run(name).column("loss")
    gap = own - run(PAIRS[name]).column("loss")
    before = gap[(steps >= 100) & (steps <= change.onset.step.value)].mean()
    after = gap[steps >= change.end.step.value].mean()
    assert abs(before) < 0.2
    assert after < -0.5


@pytest.mark.parametrize("name", names(*PLAIN))
def test_heads_that_match_are_in_the_second_layer(name):
    """The earliest that can read what another has written, also where there is a third (in the paper: in the last)."""
    layers = {int(layer) for layer in np.nonzero(kinds_of_heads(name)[0])[0]}
    assert layers == {1}


@pytest.mark.parametrize("seed", SEEDS)
def test_small_models_learn_faster_before_the_window_and_slower_after(seed):
    """Nats for each factor of ten in tokens, as in the paper's figure (one of its sentences says the opposite)."""
    early, late = ([_slope(f"{kind}-s{seed}", *span) for kind in ("1l", "2l", "3l")] for span in ((10, 200), (300, 500)))
    assert early == sorted(early)
    assert late == sorted(late, reverse=True)


def _slope(name, first, last):
    """Of the loss on held-out text by the logarithm of the tokens, between two steps."""
    index, _, losses = run(name).loss_by_index()
    steps = run(name).steps[index]
    inside = (steps >= first) & (steps <= last)
    return np.polyfit(np.log10(steps[inside]), losses[inside].mean(axis=1), 1)[0]


@pytest.fixture(scope="module")
def losses_after_repetitions():
    """Of the token after a repetition of 15, at each checkpoint: where it goes on and where it breaks off, nats."""
    rows, goes_on, breaks_off = _repetitions()
    found = {}
    for path in (FIXTURES / "runs" / "two-layers-checkpoints").glob("*.safetensors"):
        model = AttentionOnly(Config(n_layers=2, d_vocab=128, n_ctx=64))
        model.load_state_dict(load_file(path))
        with torch.no_grad():
            likely = model(rows)[:, -1].log_softmax(-1)
        losses = [-likely.gather(1, each[:, None]).mean().item() for each in (goes_on, breaks_off)]
        found[int(path.stem.removeprefix("step-"))] = losses
    return found


def test_repetitions_improve_and_broken_ones_get_worse(losses_after_repetitions):
    """The most specific print of induction, the paper's two tokens of a novel: what repeats gets likely, what breaks it unlikely."""
    (before, before_broken), (after, after_broken) = losses_after_repetitions[200], losses_after_repetitions[300]
    assert after < before - 3
    assert after_broken > before_broken + 1.5


def test_before_the_window_neither_happens(losses_after_repetitions):
    """Between steps 100 and 200 the model learns what follows what, and repetitions gain little."""
    (early, early_broken), (before, before_broken) = losses_after_repetitions[100], losses_after_repetitions[200]
    assert abs(before - early) < 1
    assert abs(before_broken - early_broken) < 0.5


def _repetitions(n_rows=256):
    """Text of the corpus without copies, its tokens 2 to 16 once more at the end; what went on there, and what else may follow."""
    rng, bigram = np.random.default_rng(5), np.random.default_rng(0).dirichlet(np.ones(127), size=128).cumsum(axis=1)

    def after(tokens):
        return 1 + (rng.random(len(tokens))[:, None] > bigram[tokens, :-1]).sum(axis=1)

    rows = np.zeros((n_rows, 26), dtype=np.int64)
    for place in range(1, 26):
        rows[:, place] = after(rows[:, place - 1])
    goes_on, breaks_off = rows[:, 17], after(rows[:, 16])
    breaks_off = np.where(breaks_off == goes_on, 1 + breaks_off % 127, breaks_off)
    return (torch.from_numpy(each) for each in (np.concatenate([rows, rows[:, 2:17]], axis=1), goes_on, breaks_off))
