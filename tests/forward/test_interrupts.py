"""An interrupt at any line of a measurement leaves the model, torch and this process as they were; so does one more meanwhile."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pytest_induction import InductionRecorder, load_model, measure_ablations, measure_heads
from pytest_induction.forward.changing import add_hooks, take_over
from pytest_induction.interventions import ablate, freeze_patterns, intervene, run_with, smear_keys
from pytest_induction.model.adapt import adapt
from pytest_induction.undoing import Changes, Lasting, puts_back
from tests.attention.recorded import Positioned, probe
from tests.attention.test_exposed import shows_pattern
from tests.attention.test_hand_written import Attention, by_function, fused
from tests.forward.left_behind import MODELS as OURS
from tests.forward.left_behind import PACKAGE, Lines, changed, everything, interrupted, moments, noted
from tests.model.plain import Plain
from tests.model.zoo import build

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # of a generator that is thrown away meanwhile
]
MOST = 30  # moments of each run; the exhaustive test takes all lines
SHORT = probe(24, 12, rows=2)


def small(attend):
    torch.manual_seed(3)
    return Positioned(Attention(attend), Attention(attend)).train()


def lens():
    pytest.importorskip("transformer_lens")
    from tests.attention.test_transformer_lens import bridge

    return bridge("gpt2").train()


def flexing():
    from tests.attention.test_flex import masked

    return small(masked)


MODELS = {
    "sdpa": lambda: small(fused),
    "softmax": lambda: small(by_function),
    "transformers attention interface": lambda: build("gpt2", "eager").train(),
    "eager output_attentions": lambda: build("bloom").train(),
    "expose_attention": lambda: Plain(shows_pattern).train(),
    "flex_attention": flexing,
    "TransformerLens hook_pattern": lens,
}


def measured(name, model):
    subject = load_model(model)
    assert subject.backend.name == name
    return lambda: measure_heads(subject, tokens=SHORT)


def assert_nothing_left(run, model, most, *, again=None):
    """After an interrupt at many moments of a run, which gives afterwards what it gave before."""
    run()
    before = run()
    lines = noted(run)
    chosen = moments(lines, most)
    for at in chosen:
        found = interrupted(run, model, at=at, again=None if again is None else again(at))
        assert not found, f"an interrupt at {lines[at]} ({at} of {len(lines)}) leaves {found} changed"
    after = run()
    if hasattr(before, "prefix_matching"):
        np.testing.assert_array_equal(after.prefix_matching, before.prefix_matching)
    return len(chosen)


@pytest.mark.parametrize("name", MODELS)
def test_an_interrupted_measurement_leaves_nothing_behind(name):
    """At the first and the last time that a line runs, lines evenly chosen: each backend."""
    model = MODELS[name]()
    assert assert_nothing_left(measured(name, model), model, MOST) > MOST // 2


@pytest.mark.parametrize("name", MODELS)
def test_a_second_interrupt_does_not_stop_the_clean_up(name):
    """It comes some lines after the first, in what undoes the changes."""
    model = MODELS[name]()
    assert_nothing_left(measured(name, model), model, MOST // 2, again=lambda at: at % 23)


@pytest.mark.parametrize(("name", "most"), [("sdpa", MOST), ("softmax", MOST), ("transformers attention interface", 15)])
def test_an_interrupted_verification_leaves_nothing_behind(name, most):
    """Of a model that is seen for the first time, by backends that do not serve as well."""
    model = MODELS[name]()
    assert_nothing_left(lambda: adapt(model), model, most)


def causes(model):
    subject = load_model(model)
    return {
        "edits": lambda: run_with(subject, SHORT, ablate("L0H0", "mean"), freeze_patterns()),
        "ablations": lambda: measure_ablations(subject, n_sequences=2),
    }


@pytest.mark.parametrize("attend", [fused, by_function])
@pytest.mark.parametrize("what", ["edits", "ablations"])
def test_interrupted_interventions_leave_nothing_behind(what, attend):
    """Passes under interventions, and those that begin at a later layer."""
    model = small(attend)
    assert_nothing_left(causes(model)[what], model, MOST)


def test_an_interrupted_block_of_interventions_leaves_nothing_behind():
    """Also where its end is what is interrupted; within it, the model stays intervened on."""
    model = small(fused)
    subject = load_model(model)

    def run():
        with intervene(subject, ablate("L0H0")):
            with torch.no_grad():
                model(SHORT)
            return measure_heads(subject, tokens=SHORT)

    assert_nothing_left(run, model, 2 * MOST)


def test_an_interrupted_forward_of_smeared_keys_leaves_nothing_behind():
    """A module of ours that a user trains."""
    smeared = smear_keys(small(fused), share=0.7)
    assert_nothing_left(lambda: smeared(SHORT).sum().item(), smeared, MOST)


def test_an_interrupted_snapshot_leaves_nothing_behind(tmp_path):
    """What a training loop goes on with, if it does."""
    model = small(fused)
    steps = iter(range(1, 100_000))
    record = InductionRecorder(tmp_path / "run", schedule=1, max_overhead=None, n_sequences=2)

    def run():
        record(model, next(steps), loss=1.0)

    assert_nothing_left(run, model, MOST)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MODELS)
def test_an_interrupt_at_every_line_leaves_nothing_behind(name):
    """Every line each time that it runs, and one more interrupt at all lines that follow at some of these."""
    model = MODELS[name]()
    run = measured(name, model)
    run()
    count = len(noted(run))
    for at in range(count):
        assert interrupted(run, model, at=at) in ([], None), at
    for at in range(0, count, 97):
        again = 0
        while (found := interrupted(run, model, at=at, again=again)) is not None and again < 60:
            assert found == [], (at, again)
            again += 1


# What is looked for is found


def test_what_is_left_behind_is_told():
    """Each kind of it, by name."""
    model = small(fused)
    before = everything(model)
    handle = model.register_forward_hook(lambda *_: None)
    model.blocks[0].eval()
    state = torch.get_rng_state()
    torch.rand(1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("cpu"):
        now = everything(model)
        assert {"hooks", "training", "gradient mode", "autocast", "modes", "random"} <= {*changed(before, now)}
    handle.remove()
    model.train()
    torch.set_rng_state(state)
    assert changed(before, everything(model)) == []


def test_a_clean_up_that_can_be_skipped_is_seen_to_leave_something():
    """A `with` block of the usual kind, interrupted as it is left: the same interrupts find what it leaves."""
    model = small(fused)

    def run():
        with torch.no_grad():
            model(SHORT)

    found = [interrupted(run, model, at=at, also=__file__) for at in range(len(noted(run, __file__)))]
    assert any(each and "gradient mode" in each for each in found)


# What undoes


class Stop(BaseException):
    """As an interrupt."""


def test_every_undoing_runs_where_another_raises():
    """The last change first; what was raised is raised in the end, an interrupt before an error."""
    done = []

    def fails(error):
        done.append(error)
        raise error

    changes = Changes()
    changes.undone_by(lambda: done.append("first"))
    changes.undone_by(lambda: fails(KeyboardInterrupt()))
    changes.undone_by(lambda: fails(ValueError("on purpose")))
    changes.undone_by(lambda: done.append("last"))
    with pytest.raises(KeyboardInterrupt):
        changes()
    assert done[0] == "last" and done[-1] == "first"
    assert [type(each) for each in done[1:-1]] == [ValueError, *[KeyboardInterrupt] * 3]


def test_an_undoing_that_is_interrupted_is_run_again():
    """It may have been in the middle."""
    tries = []

    def once():
        tries.append(1)
        if len(tries) == 1:
            raise Stop

    with pytest.raises(Stop), Changes() as changes:
        changes.undone_by(once)
    assert len(tries) == 2


def test_an_error_of_an_undoing_does_not_hide_an_interrupt():
    """Who pressed the key is told that it worked."""

    def fails():
        raise ValueError("on purpose")

    @puts_back
    def run():
        with Changes() as changes:
            changes.undone_by(fails)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()


def test_a_block_that_was_never_left_is_undone_at_the_end_of_what_it_is_in():
    """And not once more when its generator is thrown away."""
    done = []

    @puts_back
    def run():
        block = Changes()
        block.__enter__()
        block.undone_by(lambda: done.append(1))
        return block

    block = run()
    assert done == [1]
    block.__exit__(None, None, None)
    assert done == [1]


def test_blocks_of_a_user_may_end_in_the_order_in_which_they_began():
    """Each undoes what is its own."""
    model = nn.Linear(1, 1)
    values = {"weight": 0, "bias": 0}

    def change(name):
        def make(changes):
            changes.undone_by(lambda: values.update({name: 0}))
            values[name] = 1

        return Lasting(model, make)

    first, second = change("weight"), change("bias")
    assert first.__enter__() is second.__enter__() is model
    first.__exit__(None, None, None)
    assert values == {"weight": 0, "bias": 1}
    second.__exit__(None, None, None)
    assert values == {"weight": 0, "bias": 0}


def test_hooks_that_were_only_half_put_on_are_removed(monkeypatch):
    """Some modules have them, with all that torch notes beside a hook."""
    model = small(fused)
    before = everything(model)
    register = nn.Module.register_forward_hook

    def interrupted_at_the_third(part, hook, **options):
        register(part, hook, **options)
        if part is list(model.modules())[2]:
            raise Stop

    changes = Changes()
    with monkeypatch.context() as patched:
        patched.setattr(nn.Module, "register_forward_hook", interrupted_at_the_third)
        with pytest.raises(Stop):
            add_hooks(changes, model.modules(), lambda *_: None, with_kwargs=True)
    assert changed(before, everything(model)) == ["hooks"]
    changes()
    assert changed(before, everything(model)) == []
    with changes:
        add_hooks(changes, model.modules(), lambda *_: None, before=True, with_kwargs=True)
        assert "hooks" in changed(before, everything(model))
    assert changed(before, everything(model)) == []


def test_a_function_of_the_users_that_came_on_top_stays():
    """What is put back is not put over it, and what it was put around still works."""
    home = SimpleNamespace(name=lambda: "original")
    with Changes() as changes:
        take_over(changes, (home, "name", lambda: "ours"))
        inner = home.name
        assert inner() == "ours"
        home.name = lambda: f"around {inner()}"
    assert home.name() == "around original"
    with Changes() as changes:
        take_over(changes, (home, "name", lambda: "ours again"))
        assert home.name() == "ours again"
    assert home.name() == "around original"


def test_a_second_interrupt_comes():
    """In the clean-up after the first one."""
    model = small(fused)
    run = measured("sdpa", model)
    run()
    lines = Lines(at=len(noted(run)) // 2, again=3)
    with pytest.raises(KeyboardInterrupt), lines:
        run()
    assert lines.times == 2


def test_only_the_lines_of_ours_are_interrupted():
    """Those of the standard library and of torch are not."""
    model = small(fused)
    seen = noted(measured("sdpa", model))
    assert all(name.startswith((PACKAGE, *OURS)) for name, _ in seen)
    assert len({name for name, _ in seen}) > 5
