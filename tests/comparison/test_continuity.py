"""Whether families look alike: planted models of several sizes, shipped ones, made and recorded runs, and the arithmetic of it."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

import pytest_induction as induction
from pytest_induction import ExpectationFailed, Verdict, planted
from pytest_induction.comparison.continuity import assert_continuity
from pytest_induction.comparison.family_models import common_spaces
from pytest_induction.comparison.margins import OF_MODELS, OF_RUNS, SEQUENCES, Measured, judge_continuity
from pytest_induction.errors import ArgumentError, TextError, UnsupportedModel
from pytest_induction.measuring.observing import probes_of
from pytest_induction.measuring.rounds import measure_heads
from pytest_induction.probes.sequences import usable_ids
from pytest_induction.records import Evidence, TokenSpace
from pytest_induction.runs.opening import load_run
from pytest_induction.statistics import Mean, look_sizes
from tests.conftest import FIXTURES, SHIPPED
from tests.known_heads import CopiesUnseen, uniform
from tests.runs.curves import formed_series, log_steps, run_of

RUNS = FIXTURES / "runs"
TEXT = FIXTURES / "models" / "attn-only-3l-text" / "held_out.txt"
SIZES = {"small": (2, 2, 40, 64), "middle": (3, 2, 48, 80), "large": (4, 3, 48, 101)}
IDS = np.tile(np.random.default_rng(0).integers(1, 40, (40, 16)), (1, 8)).ravel()  # each run of 16 ids eight times over


def sized(size, sharpness=64.0, **options):
    """An induction head in a model of that size."""
    n_layers, n_heads, d_vocab, n_ctx = SIZES[size]
    sizes = {"n_layers": n_layers, "n_heads": n_heads, "d_vocab": d_vocab, "n_ctx": n_ctx}
    return induction.load_model(planted.induction_head(sharpness=sharpness, **sizes, **options))


@pytest.fixture(scope="module")
def family():
    """Perfect heads at three sizes."""
    return {size: sized(size) for size in SIZES}


def evidence(*arguments, **options):
    """The evidence, whichever way it goes."""
    try:
        return assert_continuity(*arguments, **options)
    except ExpectationFailed as failure:
        return failure.evidence


def test_the_same_heads_at_three_sizes_are_alike(family):
    """Of other vocabularies, contexts, layers and heads; the first round is enough."""
    found = assert_continuity(family)
    assert (found.reason, found.provenance.n_sequences) == ("alike", 12)
    assert found.thresholds == {name: OF_MODELS[name].margin for name in found.thresholds} and len(found.thresholds) == 4
    half = stats.t.isf(1e-3 / 5, 5) * 0.01 / 6**0.5  # five looks; six sequences that are alike to the last digit
    assert found.estimates["prefix_matching"].high == pytest.approx(half, abs=1e-5)
    assert all(0 <= each.value < 1e-5 and each.high < found.thresholds[name] for name, each in found.estimates.items())
    assert found.summary.startswith("all 3 are alike: the largest difference is 0.000 in prefix matching of the best head (")
    assert found.provenance.model == "small, middle, large" and len(found.provenance.notes) == 3
    assert found.provenance.notes[2].startswith("large is PlantedModel: 4 layers x 3 heads by sdpa, float32 on cpu, weights ")
    assert Evidence.from_dict(found.to_dict()) == found
    assert found == assert_continuity(family)


def test_one_weaker_head_is_found_and_named(family):
    """Its prefix matching is that of the formula of its sharpness, and the others' is 1."""
    with pytest.raises(ExpectationFailed, match="continuity is REFUTED, expected SHOWN: they are not all alike: ") as caught:
        assert_continuity({**family, "weak": sized("middle", 2.5)})
    found = caught.value.evidence
    assert found.reason == "differs"
    assert "prefix matching of the best head is 0." in found.summary and "than in weak (0." in found.summary
    assert found.estimates["prefix_matching"].low > 0.1
    message = str(caught.value).splitlines()
    assert "prefix matching 0." in message[1] and "threshold 0.10" in message[1]
    assert message[2].startswith("  measured: small, middle, large, weak, float32 on cpu; 12 sequences, periods ")
    assert message[3].startswith("  next: ") and len(message) == 4


def test_what_is_compared_is_the_best_head_of_one_half_measured_on_the_other():
    """The same from `measure_heads` on the same tokens, sequence by sequence; with the number of sequences it took."""
    members = {name: induction.load_model(SHIPPED[name]) for name in ("two-layers", "one-layer")}
    found = evidence(members)
    spaces = common_spaces([each.space for each in members.values()])
    scores = []
    for subject, space in zip(members.values(), spaces, strict=True):
        alike = replace(subject, space=space, _known={})
        probes = list(probes_of(alike, 12, np.random.default_rng([0, 10, 0]), 4, None))
        rows = [measure_heads(subject, tokens=torch.from_numpy(probe.tokens)) for probe in probes]
        values = np.concatenate([each.per_sequence["prefix_matching"] for each in rows])
        best = np.unravel_index(values[::2].mean(axis=0).argmax(), values.shape[1:])
        scores.append(values[1::2, *best])
    assert found.provenance.n_sequences == 12
    assert found.estimates["prefix_matching"].value == pytest.approx((scores[0] - scores[1]).mean(), abs=1e-6)
    half = stats.t.isf(1e-3 / 5 / 2 / 4, 5) * (scores[0] - scores[1]).std(ddof=1) / 6**0.5  # five looks, two ends, four measures
    assert found.estimates["prefix_matching"].high - found.estimates["prefix_matching"].value == pytest.approx(half, abs=1e-5)


def test_a_difference_at_the_margin_is_undetermined_and_says_what_would_settle_it(family):
    """Every sequence of the budget is drawn, and none of them tells; the other measures are alike."""
    members = {"small": family["small"], "dull": sized("middle", 5.0)}
    gap = evidence(members, max_sequences=24, margins={"prefix_matching": 1e-6}).estimates["prefix_matching"].value
    with pytest.raises(ExpectationFailed, match="whether all are alike is not clear: prefix matching of the best") as caught:
        assert_continuity(members, max_sequences=24, margins={"prefix_matching": gap})
    found = caught.value.evidence
    assert (found.verdict, found.reason, found.provenance.n_sequences) == (Verdict.UNDETERMINED, "difference_unclear", 24)
    assert found.estimates["prefix_matching"].low < gap < found.estimates["prefix_matching"].high
    assert (
        found.next_step.startswith("about ")
        and "more sequences for prefix matching of the best head: max_sequences=" in found.next_step
    )
    assert f"next: {found.next_step}" in str(caught.value) and "accuracy" not in found.summary


def test_a_budget_ends_the_rounds_and_what_was_drawn_is_judged(family):
    """The note stands once, for all members; what would settle it is a larger budget."""
    members = {"small": family["small"], "dull": sized("middle", 5.0)}
    gap = evidence(members, max_sequences=24, margins={"prefix_matching": 1e-6}).estimates["prefix_matching"].value
    found = evidence(members, margins={"prefix_matching": gap}, budget="3 passes")
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "difference_unclear")
    assert found.next_step.startswith("budget spent: 3 bare passes; about ") and 'budget="' in found.next_step
    assert [note for note in found.provenance.notes if "budget" in note] == ["budget spent: 3 bare passes"]


def test_families_that_lack_the_same_are_alike_and_it_is_said():
    """Nothing to be found is alike too; anyone who reads SHOWN is told that there is nothing."""
    found = assert_continuity([planted.uniform_head(n_heads=2, d_vocab=40, n_ctx=64), planted.uniform_head(d_vocab=40, n_ctx=64)])
    assert found.summary.endswith("; none of them has a head with prefix matching of 0.300 or more, and 0.150 beyond chance")
    assert found.provenance.model == "PlantedModel (1), PlantedModel (2)"


def test_heads_that_match_and_do_not_copy_differ_in_their_weights(family):
    """A suppressor has the OV eigenvalue score -1; left out, and with what the model predicts, the two are alike."""
    sizes = {"n_heads": 2, "d_vocab": 40, "n_ctx": 64}
    members = {"copies": family["small"], "suppresses": induction.load_model(planted.copy_suppression_head(**sizes))}
    found = evidence(members)
    assert found.verdict is Verdict.REFUTED
    assert found.estimates["ov_eigenvalue"].value == pytest.approx(2, abs=1e-3)
    assert found.estimates["ov_eigenvalue"].low == found.estimates["ov_eigenvalue"].high  # weights are known exactly
    assert "the OV eigenvalue score of the best head is 2.000 higher in copies than in suppresses" in found.summary
    left_out = dict.fromkeys(("ov_eigenvalue", "repeat_accuracy", "repeat_loss"))
    assert list(assert_continuity(members, margins=left_out).estimates) == ["prefix_matching"]


def test_trained_models_of_two_kinds_are_alike_and_one_without_heads_is_not():
    """Two layers, and one with smeared keys; a layer without these does not copy."""
    members = {name: induction.load_model(SHIPPED[name]) for name in ("two-layers", "one-layer-smeared")}
    assert assert_continuity(members).reason == "alike"
    found = evidence({**members, "one-layer": induction.load_model(SHIPPED["one-layer"])})
    assert found.verdict is Verdict.REFUTED
    for words in ("prefix matching of the best head", "accuracy on repeated tokens", "loss on repeated tokens is 3."):
        assert words in found.summary
    assert found.summary.count(" than in one-layer (") == 2 and " in one-layer than in " in found.summary


def test_in_context_learning_is_compared_on_the_same_tokens_of_the_shortest_context():
    """Rows as long as the smallest context, the same ids for all; the late loss is reported beside, and not held to a margin."""
    only = dict.fromkeys(("prefix_matching", "repeat_accuracy", "repeat_loss", "ov_eigenvalue"))
    sizes = {"n_heads": 2, "d_vocab": 40}
    members = {f"context {n_ctx}": induction.load_model(planted.induction_head(n_ctx=n_ctx, **sizes)) for n_ctx in (64, 80, 101)}
    found = assert_continuity(members, text=IDS, margins=only, max_rows=24)
    assert list(found.estimates) == ["icl_score", "late_loss"] and list(found.thresholds) == ["icl_score"]
    assert found.provenance.probe.endswith("; 24 rows of 63 tokens of text, tokens 5-7 against 55-63")
    dull = induction.load_model(planted.uniform_head(n_heads=2, d_vocab=40, n_ctx=72))
    found = evidence({"long": members["context 101"], "uniform": dull}, text=IDS, margins=only, max_rows=24)
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "differs")
    rows = IDS[: len(IDS) // 71 * 71].reshape(-1, 71)
    rows = np.pad(rows[np.linspace(0, len(rows) - 1, 24).round().astype(int)], ((0, 0), (1, 0)))
    gaps = []
    for subject in (dull, members["context 101"]):
        logits = subject.logits(torch.from_numpy(rows)).double()
        losses = -logits[:, :-1].log_softmax(-1).gather(-1, torch.from_numpy(rows)[:, 1:, None])[..., 0].numpy()
        gaps.append((losses[:, 61:71].mean(axis=1) - losses[:, 5:8].mean(axis=1)).mean())  # tokens 62-71 and 6-8
    assert found.provenance.probe.endswith("tokens 6-8 against 62-71")
    assert found.estimates["icl_score"].value == pytest.approx(gaps[0] - gaps[1], abs=1e-5)


def test_a_text_is_the_same_tokens_for_all_or_refused():
    """Another tokenizer cuts it otherwise, and a score per token would compare other things."""
    model = induction.load_model(SHIPPED["three-layers-text"])

    class Reversed:
        def encode(self, text, **_):
            return model.encode(text)[::-1]

    other = replace(model, tokenizer=Reversed(), _known={})
    with pytest.raises(ArgumentError, match=r"`text` is not the same tokens for one and other: .* not comparable") as caught:
        assert_continuity({"one": model, "other": other}, text=TEXT)
    assert "\n" not in str(caught.value)
    with pytest.raises(TextError, match="has no tokenizer"):
        assert_continuity([model, SHIPPED["two-layers"]], text=TEXT)
    found = assert_continuity({"one": model, "twin": model}, text=TEXT, max_rows=16)
    assert "; 16 rows of 127 tokens of text" in found.provenance.probe
    few = evidence({"one": model, "twin": model}, text=TEXT, max_rows=15)
    assert (few.verdict, few.reason, few.next_step) == (Verdict.UNDETERMINED, "not_comparable", "give a text of 16 rows or more")


def test_weights_that_are_not_known_leave_their_measure_out_and_say_so():
    """The rest is compared; attention that cannot be read is refused by name, unless heads are left out."""
    sizes = {"d_vocab": 40, "n_ctx": 64}
    members = {"planted": planted.induction_head(strength=20.0, **sizes), "unseen": CopiesUnseen(uniform, **sizes)}
    found = evidence(members)
    assert "ov_eigenvalue" not in found.thresholds and found.verdict is Verdict.REFUTED  # its heads match nothing
    why = "the OV eigenvalue score of the best head is not compared: the weights of heads of unseen are not known: "
    assert why in found.summary and any(note.startswith(why) for note in found.provenance.notes)
    left_out = {"prefix_matching": None, "ov_eigenvalue": None}
    assert assert_continuity(members, margins=left_out).reason == "alike"

    class NoAttention(torch.nn.Module):
        n_ctx, bos_token_id = 64, None

        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, tokens):
            return torch.zeros(*tokens.shape, 40) + self.unused

    with pytest.raises(UnsupportedModel, match="cannot be read"):
        assert_continuity([NoAttention(), NoAttention()])
    assert assert_continuity([NoAttention(), NoAttention()], margins=left_out).reason == "alike"


def test_probes_are_the_same_for_all():
    """Ids that each may use, as many as the shortest context has room for, whatever begins the sequences."""
    spaces = [TokenSpace(50, 60, 0, frozenset({3})), TokenSpace(40, 101, None), TokenSpace(64, None, 7, frozenset({60}))]
    common = common_spaces(spaces)
    assert [space.n_ctx for space in common] == [60, 59, 60]
    ids = [usable_ids(space).tolist() for space in common]
    assert ids[0] == ids[1] == ids[2] == sorted(set(range(40)) - {0, 3, 7})
    assert [space.bos_id for space in common] == [0, None, 7]
    assert common_spaces([TokenSpace(50), TokenSpace(40)])[0].n_ctx is None


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ([RUNS / "two-layers"], {}, "`family` must have 2 members at least, to compare with each other, got 1"),
        ({}, {}, "`family` must have 2 members at least, to compare with each other, got 0"),
        (str(RUNS / "two-layers"), {}, "`family` must be models or training runs, got one `str`|two at least, got one `str`"),
        (planted.induction_head(), {}, "two at least, got one `PlantedModel`"),
        ([3, 4], {}, "`family` must have models or training runs, got `int`"),
        ([RUNS / "two-layers", SHIPPED["one-layer"]], {}, "got both: member 1 is a model, member 0 a run"),
        (["no/such/place", RUNS / "two-layers"], {}, "`family` has 'no/such/place', where there is neither a model nor a run"),
        ([RUNS / "two-layers"] * 2, {"text": TEXT}, "`text` is for models"),
        (
            [RUNS / "two-layers"] * 2,
            {"margins": {"width": 1}},
            "no measure 'width' of such a family: it has onset, end, icl_score",
        ),
        (
            [SHIPPED["one-layer"]] * 2,
            {"margins": {"onset": 1}},
            "it has prefix_matching, repeat_accuracy, repeat_loss, ov_eigenv",
        ),
        ([SHIPPED["one-layer"]] * 2, {"margins": {"repeat_loss": 0}}, "`margins` of repeat_loss must be a number above 0"),
        ([SHIPPED["one-layer"]] * 2, {"margins": {"repeat_loss": float("nan")}}, "must be a number above 0, or None"),
        ([SHIPPED["one-layer"]] * 2, {"margins": dict.fromkeys(OF_MODELS)}, "`margins` leaves out every measure"),
        ([SHIPPED["one-layer"]] * 2, {"margins": {"icl_score": None}, "text": TEXT}, "left out by its margin of None"),
        ([SHIPPED["one-layer"]] * 2, {"margins": {"icl_score": 0.1}}, "icl_score needs a `text`"),
        ([SHIPPED["one-layer"]] * 2, {"error_rate": 0.5}, "`error_rate` must lie between 0 and 0.5, got 0.5"),
        ([SHIPPED["one-layer"]] * 2, {"error_rate": float("nan")}, "`error_rate` must lie between 0 and 0.5, got nan"),
        ([SHIPPED["one-layer"]] * 2, {"max_sequences": 11}, "`max_sequences` must be at least 12, got 11"),
        ([SHIPPED["one-layer"]] * 2, {"seed": -1}, "`seed` must be a whole number from 0 up, got -1"),
    ],
)
def test_bad_input_is_one_line(family, options, message):
    """What must be given, and what was."""
    with pytest.raises(ArgumentError, match=message) as caught:
        assert_continuity(family, **options)
    assert "\n" not in str(caught.value)


STEPS = log_steps(100)
SCORES = {"onset": None, "end": None}  # what is left is what was measured at the end
ROWS_OF_TEXT = np.random.default_rng(4).normal(-1.6, 0.5, 128)


def made(name, place=2.4, *, top=0.0, score=0.0, **options):
    """A run in which induction forms at step 10^place, with what continuity needs on record at its end."""
    series = formed_series(STEPS, place, seed=len(name))
    series["prefix_matching"] = series["prefix_matching"] + top * (series["prefix_matching"] > 0.3)
    rows = np.repeat(ROWS_OF_TEXT[None] + score, len(STEPS), axis=0) + np.random.default_rng(len(name)).normal(0, 0.1, (1, 128))
    errors = {"prefix_matching": np.full((2, 2), 0.01), "icl_score": 0.05}
    run = run_of(STEPS, name=name, icl_rows=rows, errors=errors, **{**series, **options})
    snapshots = tuple(replace(each, n_sequences=12) for each in run.snapshots)
    return replace(run, snapshots=snapshots, icl_windows=((40, 60), (450, 512)))


def test_runs_whose_change_comes_at_the_same_tokens_are_alike():
    """Windows less than half a decade apart, scores and heads at the end within their margins."""
    found = assert_continuity([made("small"), made("middle", 2.5), made("large", 2.3)])
    assert found.reason == "alike" and found.provenance.is_run and found.confidence == 0.95
    assert found.thresholds == {name: measure.margin for name, measure in OF_RUNS.items()}
    assert found.estimates["onset"].value == pytest.approx(0.2, abs=0.03) and found.estimates["onset"].unit == "decades"
    assert "in the onset of the phase change (middle over large)" in found.summary
    assert [change.summary.partition(":")[0] for change in found.changes] == ["small", "middle", "large"]
    assert Evidence.from_dict(found.to_dict()) == found


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"place": 3.1},
            ["the onset of the phase change is 0.", " decades later in other than in ", "the end of the phase change"],
        ),
        ({"top": 0.2}, ["prefix matching of the best head at the end is 0.2", " higher in other than in "]),
        ({"score": 0.5}, ["the in-context learning score at the end is 0.5", " nats higher in other than in "]),
    ],
)
def test_one_run_that_is_otherwise_is_found_and_named(other, said):
    """Later, better or worse than the rest; what stays alike is not said to differ."""
    found = evidence([made("small"), made("middle"), made("other", **other)], margins={} if "place" in other else SCORES)
    assert found.verdict is Verdict.REFUTED and all(words in found.summary for words in said)
    assert found.summary.count("margin") == (2 if "place" in other else 1)


def test_a_run_without_a_change_differs_in_kind_and_runs_that_all_lack_one_do_not():
    """It is said once, with why; two that have none are compared in what is left, which is told."""
    flat = {"prefix_matching": np.full(len(STEPS), 0.06), "advantage": np.full(len(STEPS), 0.1)}
    found = evidence([made("small"), made("flat", **flat)])
    assert found.verdict is Verdict.REFUTED
    assert found.summary.count("small has a phase change, flat has none (prefix matching of the best head stays") == 1
    found = assert_continuity([made("one", **flat), made("other", **flat)])
    assert list(found.thresholds) == ["icl_score", "prefix_matching"]
    assert found.summary.endswith("the end of the phase change is not compared: none of the runs has a phase change")


@pytest.mark.parametrize(
    ("change", "said", "next_step"),
    [
        (
            {"icl_windows": ((5, 7), (55, 63))},
            "it compares tokens 40-60 with 450-512 in small, tokens 5-7 with 55-63 in",
            "one len",
        ),
        ({"icl_windows": None}, "the tokens it compares in other are not on record", "rows of one length, or leave it out"),
        ({"tokens_per_step": None}, "the number of tokens other trained on is not known", "give it its `tokens_per_step`"),
        ({"errors": {}}, "other has no record of it with a standard error", "record or sweep it again"),
        ({"icl_rows": None}, "other has no rows of it on record", "record or sweep it with a held-out text"),
    ],
)
def test_what_cannot_be_compared_is_undetermined_until_it_is_left_out(change, said, next_step):
    """Scores of other tokens are never compared; the message says which measure, which run, and what to do."""
    other = made("other")
    name = next(iter(change))
    if name in ("errors", "icl_rows"):
        other = replace(other, snapshots=tuple(replace(each, **change) for each in other.snapshots))
    else:
        other = replace(other, **change)
    window = {} if name == "tokens_per_step" else SCORES
    found = evidence([made("small"), other], margins=window)
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "not_comparable")
    assert (
        said in found.summary and next_step in found.next_step and found.next_step.endswith("or leave it out: a margin of None")
    )
    measures = {"tokens_per_step": ("onset", "end"), "errors": ("prefix_matching",)}.get(name, ("icl_score",))
    assert assert_continuity([made("small"), other], margins={**window, **dict.fromkeys(measures)}).reason == "alike"


def test_a_run_that_breaks_off_is_not_taken_at_its_last_good_snapshot():
    """What was measured before it diverged is not how it ended."""
    run = made("other")
    broken = replace(run.snapshots[-1], step=20_000, prefix_matching=None, icl_score=None, icl_rows=None, problem="not finite")
    found = evidence([made("small"), replace(run, snapshots=(*run.snapshots, broken))], margins=SCORES)
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "not_comparable")
    assert found.summary.count("cannot be compared: other ends with a problem at step 20000: not finite") == 2


def test_rows_of_another_text_are_compared_as_rows_of_their_own():
    """Fewer rows in one of the runs: the interval is Welch's, and wider."""
    one, other = made("small"), made("other")
    same = evidence([one, other], margins=SCORES).estimates["icl_score"]
    fewer = replace(other, snapshots=tuple(replace(each, icl_rows=each.icl_rows[:100]) for each in other.snapshots))
    found = evidence([one, fewer], margins=SCORES)
    assert list(found.thresholds) == ["icl_score", "prefix_matching"] and not found.changes
    assert found.estimates["icl_score"].high > same.high + 0.02
    first, second = (np.asarray(run.snapshots[-1].icl_rows) for run in (one, fewer))
    assert found.estimates["icl_score"].value == pytest.approx(abs(first.mean() - second.mean()))


def test_recorded_runs_are_compared():
    """Two layers form induction 0.6 decades later than one with smeared keys: more than half a decade, within one."""
    runs = {name: load_run(RUNS / name) for name in ("two-layers", "one-layer-smeared")}
    with pytest.raises(ExpectationFailed, match=r"continuity is REFUTED, .* later in two-layers than in one-layer-sm") as caught:
        assert_continuity(runs)
    assert "measured: two-layers, one-layer-smeared, 2 runs" in str(caught.value)
    assert assert_continuity(runs, margins={"onset": 1.0, "end": 1.0, "icl_score": 1.0}).reason == "alike"
    truncated = evidence([RUNS / "two-layers", RUNS / "truncated"], margins={"icl_score": None, "prefix_matching": None})
    assert (truncated.verdict, truncated.reason) == (Verdict.UNDETERMINED, "not_comparable")
    assert truncated.next_step == "train further, or record a few more snapshots at the end"


def judged(gaps, *, margins=(0.1, 0.1), spread=0.02, count=24, error_rate=1e-3):
    """The verdict on a family of members with these means, one list for each measure."""
    waves = np.random.default_rng(1).normal(0, spread, (len(gaps), len(gaps[0]), count))
    names = list(OF_MODELS)[: len(gaps)]
    found = {}
    for name, means, wave in zip(names, gaps, waves, strict=True):
        samples = wave - wave.mean(axis=1, keepdims=True) + np.array(means)[:, None]
        pairs = combinations(range(len(means)), 2)
        between = {(i, j): Mean.of(samples[i] - samples[j]).interval for i, j in pairs}
        found[name] = Measured(OF_MODELS[name], between, count, SEQUENCES)
    return judge_continuity(found, dict(zip(names, margins, strict=False)), ("a", "b", "c"), error_rate=error_rate)


@pytest.mark.parametrize(
    ("gaps", "verdict", "said"),
    [
        ([[0.5, 0.5, 0.51], [0.9, 0.9, 0.9]], Verdict.SHOWN, "0.010 in prefix matching of the best head (c over "),
        ([[0.5, 0.5, 0.9], [0.9, 0.9, 0.9]], Verdict.REFUTED, "prefix matching of the best head is 0.400 higher in c than in"),
        ([[0.5, 0.5, 0.6], [0.9, 0.9, 0.9]], Verdict.UNDETERMINED, "prefix matching of the best head is 0.100 higher in c than"),
        (
            [[0.5, 0.5, 0.6], [0.9, 0.4, 0.9]],
            Verdict.REFUTED,
            "accuracy on repeated tokens is 0.500 higher in ",
        ),  # one decides
        ([[0.5, 0.55, 0.6], [0.9, 0.9, 0.9]], Verdict.UNDETERMINED, "higher in c than in a"),  # neighbours alike, ends not
    ],
)
def test_every_measure_and_pair_must_be_alike(gaps, verdict, said):
    """And any that clearly differs decides; only those that are not clear are told, with how many sequences would do."""
    found = judged(gaps)
    assert found.verdict is verdict and said in found.summary
    assert (found.more_sequences > 0) is (verdict is Verdict.UNDETERMINED) is bool(found.next_step)


def test_more_measures_make_it_harder_to_differ_and_not_to_be_alike():
    """One of many differs by luck more easily; that all are alike by luck is no easier."""
    alone, together = judged([[0.5, 0.5, 0.9]]), judged([[0.5, 0.5, 0.9]] + [[0.9, 0.9, 0.9]] * 3, margins=[0.1] * 4)
    assert together.estimates["prefix_matching"].low < alone.estimates["prefix_matching"].low
    alone, together = judged([[0.5, 0.5, 0.5]]), judged([[0.5, 0.5, 0.5]] * 4, margins=[0.1] * 4)
    assert (together.verdict, alone.verdict) == (Verdict.SHOWN, Verdict.SHOWN)
    assert together.estimates["prefix_matching"].high == pytest.approx(alone.estimates["prefix_matching"].high, rel=0.5)


def test_nothing_to_compare_is_not_formed():
    """A family without a single measure passes nothing."""
    found = judge_continuity({}, {}, ("a", "b"), error_rate=0.01)
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "nothing_measured") and found.next_step


def looked(rng, gap, error_rate):
    """The verdict on two members whose true difference is known, in rounds as the assertion draws them."""
    looks = look_sizes(96)
    values = rng.normal(gap, 0.3, 96)
    for size in looks:
        found = {
            "repeat_accuracy": Measured(OF_MODELS["repeat_accuracy"], {(0, 1): Mean.of(values[:size]).interval}, size, SEQUENCES)
        }
        verdict = judge_continuity(found, {"repeat_accuracy": 0.1}, ("a", "b"), error_rate=error_rate / len(looks)).verdict
        if verdict is not Verdict.UNDETERMINED:
            break
    return verdict


def test_over_all_rounds_the_verdict_is_wrong_at_most_as_often_as_stated():
    """Members a margin apart are SHOWN, and members just within it REFUTED, in one of ten families at most."""
    rng = np.random.default_rng(5)
    verdicts = [looked(rng, 0.1, 0.1) for _ in range(1000)]
    most = 0.1 + 3 * np.sqrt(0.1 * 0.9 / 1000)
    assert 0 < verdicts.count(Verdict.SHOWN) / 1000 <= most
    assert 0 < verdicts.count(Verdict.REFUTED) / 1000 <= most
    assert [looked(rng, 0.0, 0.1) for _ in range(200)].count(Verdict.SHOWN) > 100
    assert [looked(rng, 0.35, 0.1) for _ in range(200)].count(Verdict.REFUTED) > 190
