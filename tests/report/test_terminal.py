"""What the terminal is told of a session's verdicts: claims, head map, heads, near misses; more with -v, one line with -q."""

import json
import math
from dataclasses import replace

import pytest

from pytest_induction.records import Change, Estimate, Evidence, HeadEvidence, PairEvidence, Provenance, Verdict
from pytest_induction.report.terminal import BLOCKS, MOST_ROWS, Style, head_map_lines, one_line, section, style_for
from pytest_induction.report.view import views

SHOWN, REFUTED, UNDETERMINED = Verdict.SHOWN, Verdict.REFUTED, Verdict.UNDETERMINED
HERE = Provenance(
    "model", "5b74", "sdpa", 2, 4, "float32", "cpu", seed=7, n_sequences=12, probe="periods 9 to 14", versions={"torch": "2.9"}
)


def share(value, half=0.05, unit="share"):
    return Estimate(value, value - half, value + half, unit)


def head(number, value, *, layer=1, half=0.05, kind="matches"):
    copies = share(1.5, unit="nats") if kind == "matches" else None
    return HeadEvidence(layer, number, share(value, half), share(value, half), 0.04, 0.05, 0.1, 0.2, 0.3, 6, kind, copies)


def found(**changed):
    given = {
        "claim": "has_induction_head",
        "verdict": SHOWN,
        "reason": "formed",
        "summary": "2 heads",
        "provenance": HERE,
        "heads": (head(0, 0.9), head(2, 0.8)),
        "nearest": (head(3, 0.1, kind=""),),
        "estimates": {"advantage": share(7.0, unit="nats"), "repeat_loss": share(0.4, unit="nats")},
        "thresholds": {"min_prefix_matching": 0.3, "min_advantage": 0.5},
        "head_map": ((0.01, 0.02, 0.03, 0.04), (0.9, 0.02, 0.8, 0.1)),
    }
    return Evidence(**(given | changed))


def lines(*evidence, **style):
    return [text for text, _ in section(evidence, Style(**style))]


def near(*evidence):
    return [line.removeprefix("  near          ") for line in lines(*evidence) if line.startswith("  near ")]


def test_the_section_has_claims_head_map_heads_and_the_nearest():
    """In this order, and nothing that only -v shows."""
    assert lines(found()) == [
        "model: 2 layers x 4 heads by sdpa, float32 on cpu, weights 5b74",
        "  SHOWN         has_induction_head  2 heads",
        "",
        f"    prefix matching, 0 {BLOCKS} 1: a row for each layer, a mark for each head",
        "    L0  ▁▁▁▁",
        "    L1  █▁▇▁",
        "",
        "    head  prefix matching      interval  copy (nats)     kind",
        "  * L1H0            0.900  0.850..0.950        +1.50  matches",
        "  * L1H2            0.800  0.750..0.850        +1.50  matches",
        "  * induction head",
        "  near          L1H3 0.100 (0.050..0.150) is the nearest below the threshold of 0.300",
    ]


def test_verbose_shows_every_score_estimate_and_origin():
    """With the threshold of each estimate that has one."""
    shown = lines(found(), verbose=True)
    assert (
        "    head  prefix matching      interval  other periods  previous  duplicate  first token  copy (nats)     kind" in shown
    )
    assert "    L1H3            0.100  0.050..0.150          0.040     0.100      0.200        0.300" in shown
    assert "    claim               estimate          value      interval  threshold" in shown
    assert "    has_induction_head  advantage    7.000 nats  6.950..7.050      0.500" in shown
    assert "    has_induction_head  repeat loss  0.400 nats  0.350..0.450" in shown
    where = "model, 2 layers x 4 heads by sdpa, float32 on cpu; 12 sequences, periods 9 to 14; --induction-seed=7"
    assert shown[-2] == f"  measured      has_induction_head: {where}; confidence 0.999"
    assert shown[-1] == "  measured      versions: torch 2.9"


def test_heads_beyond_eight_are_counted_and_shown_where_all_is():
    many = found(heads=tuple(head(number, 0.9) for number in range(20)))
    starred = [
        sum("L1H" in line for line in lines(many, verbose=verbose) if line.startswith("  * ")) for verbose in (False, True)
    ]
    assert starred == [8, 20]
    assert "    and 12 more induction heads" in lines(many)


def test_where_there_is_no_induction_head_the_strongest_others_have_the_rows():
    """Columns with nothing in them are left out."""
    shown = lines(found(verdict=REFUTED, heads=(), nearest=(head(3, 0.1, kind=""), head(1, 0.05, kind=""))))
    assert shown[-3:] == [
        "    head  prefix matching      interval",
        "    L1H3            0.100  0.050..0.150",
        "    L1H1            0.050  0.000..0.100",
    ]


def test_a_head_that_is_not_clear_of_its_threshold_is_a_near_miss():
    """And so is one above it that does not count; then nothing further away is named."""
    unclear = found(verdict=UNDETERMINED, heads=(), nearest=(head(3, 0.28), head(1, 0.1)))
    assert near(unclear) == ["L1H3 0.280 (0.230..0.330) is not clear of the threshold of 0.300"]
    not_counted = found(nearest=(head(3, 0.6, kind="suppresses"), head(1, 0.1)))
    assert near(not_counted) == ["L1H3 0.600 (0.550..0.650) is above the threshold of 0.300 and does not count: suppresses"]


def test_a_claim_whose_interval_is_close_to_its_threshold_is_a_near_miss():
    """Closer than half the width of the interval; where no head matches, what the model does has decided nothing."""
    copies = found(claim="copies_repeats", heads=(), nearest=(), head_map=(), thresholds={"min_accuracy": 0.5})
    measured = {name: {"repeat_accuracy": share(value)} for name, value in {"at": 0.52, "close": 0.58, "far": 0.62}.items()}
    said = {name: near(found(**{**vars(copies), "estimates": estimates})) for name, estimates in measured.items()}
    assert said == {
        "at": ["copies_repeats: repeat accuracy 0.520 (0.470..0.570) is not clear of its threshold of 0.5"],
        "close": ["copies_repeats: repeat accuracy 0.580 (0.530..0.630) is close to its threshold of 0.5"],
        "far": [],
    }
    assert near(found(verdict=REFUTED, heads=(), nearest=(), estimates={"advantage": share(0.5)})) == []


def test_pairs_that_match_in_two_steps_are_named():
    pair = PairEvidence(1, 0, 0, 3, share(0.56), share(0.5), 0.1, 6)
    assert "  pair          L1H0 after L0H3 0.560 (0.510..0.610)" in lines(found(pairs=(pair,)))


def test_a_run_has_a_row_for_each_series_in_the_colour_of_its_verdict():
    change = Change("icl_score", REFUTED, "no_change", "flat", shape="flat")
    run = found(provenance=Provenance("run", "1", "none", 0, 0, "", "", probe="88 snapshots", is_run=True), changes=(change,))
    marks = dict(section([run], Style()))
    assert marks["run: 88 snapshots"] == {"bold": True}
    assert marks["    icl score  REFUTED   flat"] == {"red": True}
    assert marks["  SHOWN         has_induction_head  2 heads"] == {"green": True}


def test_one_line_counts_verdicts_and_names_what_was_not_shown():
    """At most three of a kind."""
    assert one_line([]) == "induction: 0 SHOWN, 0 REFUTED, 0 UNDETERMINED"
    run = Provenance("two-layers", "1", "none", 0, 0, "", "", is_run=True)
    told = [found(), found(), found(claim="learns_in_context", verdict=REFUTED, provenance=run)]
    assert one_line(told) == "induction: 2 SHOWN, 1 REFUTED (learns_in_context of two-layers), 0 UNDETERMINED"
    many = [found(claim=f"claim_{number}", verdict=UNDETERMINED) for number in range(5)]
    assert one_line(many).endswith("5 UNDETERMINED (claim_0 of model, claim_1 of model, claim_2 of model and 2 more)")
    long = found(verdict=REFUTED, provenance=replace(HERE, model="/".join("abcdefghij" * 20)))
    assert "(has_induction_head of ..." in one_line([long]) and len(one_line([long])) < 140


@pytest.mark.parametrize(
    ("verdict", "is_asserted", "words", "colour"),
    [
        (SHOWN, True, "SHOWN, passed", "green"),
        (REFUTED, True, "REFUTED, failed", "red"),
        (UNDETERMINED, True, "UNDETERMINED, failed", "yellow"),
        (SHOWN, False, "SHOWN", "green"),
        (REFUTED, False, "REFUTED", "red"),
        (UNDETERMINED, False, "UNDETERMINED", "yellow"),
    ],
)
def test_a_verdict_says_whether_it_passed(verdict, is_asserted, words, colour):
    """Where a test rests on it; what is only reported neither passes nor fails."""
    told = list(section([found(verdict=verdict, is_asserted=is_asserted)], Style()))
    assert told[1] == (f"  {words:<12}  has_induction_head  2 heads", {colour: True})


def test_a_claim_and_its_absence_have_a_line_each():
    """A model of which a test asserts heads, and another test none."""
    none = found(claim="no_induction_head", verdict=REFUTED, is_asserted=True)
    told = [text for text, _ in section([none, found(is_asserted=True)], Style())]
    assert told[1:3] == [
        "  SHOWN, passed    has_induction_head  2 heads",
        "  REFUTED, failed  no_induction_head   2 heads",
    ]


@pytest.mark.parametrize(("claim", "colour"), [("phase_change", "red"), ("no_phase_change", "green")])
def test_series_that_do_what_is_claimed_are_shown_so(claim, colour):
    """A series that stays is as it should be in a run that is to have no phase change."""
    change = Change("icl_score", REFUTED, "no_change", "flat", shape="flat")
    run = Provenance("run", "1", "none", 0, 0, "", "", probe="88 snapshots", is_run=True)
    verdict = SHOWN if claim == "no_phase_change" else REFUTED
    told = {"claim": claim, "provenance": run, "verdict": verdict, "changes": (change,), "heads": (), "nearest": ()}
    marks = dict(section([found(**told)], Style()))
    assert marks["    icl score  REFUTED   flat"] == {colour: True}


def test_one_line_names_what_is_not_shown():
    """A control that passes is shown, as whatever passes is."""
    control = found(claim="no_induction_head")
    assert one_line([found(), control]) == "induction: 2 SHOWN, 0 REFUTED, 0 UNDETERMINED"
    failed = [control, found(claim="copies_repeats", verdict=REFUTED), found(claim="no_induction_head", verdict=REFUTED)]
    assert one_line(failed) == (
        "induction: 1 SHOWN, 2 REFUTED (copies_repeats of model, no_induction_head of model), 0 UNDETERMINED"
    )


def test_the_nearest_head_is_told_where_there_are_to_be_none():
    """How far a control is from failing; where heads are claimed the table has it."""
    given = {"heads": (), "nearest": (head(3, 0.1, kind=""),)}
    told = near(found(**given, claim="no_induction_head", verdict=SHOWN))
    assert told == ["L1H3 0.100 (0.050..0.150) is the nearest below the threshold of 0.300"]
    assert near(found(**given, verdict=REFUTED)) == []


def test_what_is_no_number_is_a_question_mark():
    """As after a record was read again: JSON has no word for it."""
    unknown = Estimate(math.nan, math.nan, math.nan, "share")
    evidence = found(
        heads=(HeadEvidence(1, 0, unknown, unknown, math.nan, 0.0, 0.0, 0.0, 0.0),),
        estimates={"advantage": unknown},
        head_map=((math.nan, None), (0.5, 0.1)),
    )
    shown = "\n".join(lines(evidence, verbose=True))
    assert "nan" not in shown
    assert "    L0  ?\n    L1  ▅▁" in shown
    assert "L1H0                ?" in shown


def test_views_survive_json():
    """What a worker sends, and what a report is rendered from again."""
    again = Evidence.from_dict(json.loads(json.dumps(found().to_dict())))
    assert views([again]) == views([found()])


class TestHeadMap:
    def test_each_mark_stands_for_an_eighth(self):
        scores = [(2 * mark + 1) / 16 for mark in range(8)]
        *_, row = head_map_lines([scores], width=80)
        assert row == f"L0  {BLOCKS}"
        assert head_map_lines([[0.0, 1.0, -0.1, 1.1]], width=80)[-1] == "L0  ▁█▁█"

    def test_ascii_has_digits(self):
        *_, row = head_map_lines([[0.0, 0.09, 0.31, 0.95, 1.0]], width=80, ascii=True)
        assert row == "L0  ..399"

    def test_32_by_32_heads_fit_80_columns_with_a_mark_each(self):
        drawn = head_map_lines([[(layer + 4) / 36] * 32 for layer in range(32)], width=76)
        assert len(drawn) == 1 + 1 + 32
        assert max(map(len, drawn)) <= 76
        assert drawn[1] == "     H0      H8      H16     H24"
        assert all(len(row) == 5 + 32 for row in drawn[2:])
        assert drawn[-1] == f"L31  {BLOCKS[7] * 32}"

    @pytest.mark.parametrize("width", [60, 20, 5, 1])
    def test_heads_that_do_not_fit_share_marks_and_none_is_lost(self, width):
        """The highest of them is drawn."""
        scores = [0.0] * 96
        scores[95] = 1.0
        drawn = head_map_lines([scores], width=width)
        assert drawn[-1].endswith("█") and drawn[-1].count("█") == 1
        assert len(drawn[-1]) <= max(width, 5)
        assert " heads, the highest" in " ".join(drawn)

    def test_so_do_layers_beyond_sixty_four(self):
        scores = [[0.0, 0.0] for _ in range(130)]
        scores[128][1] = 1.0
        drawn = head_map_lines(scores, width=80)
        assert drawn[1] == "a row for each 3 layers, a mark for each head, the highest"
        assert drawn[2:] == ["L0-L125  ▁▁", "L126     ▁█", "L129     ▁▁"]
        each_differs = head_map_lines([[layer % 2, 0.0] for layer in range(0, 390, 3) for _ in range(3)], width=80)
        assert len(each_differs) - 2 == 390 // 7 + 1 <= MOST_ROWS

    def test_layers_without_any_head_of_note_are_one_row(self):
        """From three on, where nothing stands above the lowest mark; at the end they are named to the last."""
        scores = [[0.0, 0.1], [0.5, 0.0], [0.0, 0.0], [0.1, 0.0], [1.0, 0.0], *[[0.0, 0.0]] * 3]
        assert head_map_lines(scores, width=80)[1:] == [
            "L0     ▁▁",
            "L1     ▅▁",
            "L2     ▁▁",
            "L3     ▁▁",
            "L4     █▁",
            "L5-L7  ▁▁",
        ]

    def test_rows_stay_apart_where_no_room_is_left_for_their_names(self):
        assert head_map_lines([[0.0] * 8] * 4, width=12)[-4:] == [f"L{layer}  {'▁' * 8}" for layer in range(4)]

    def test_layers_with_fewer_heads_have_blanks(self):
        assert head_map_lines([[0.0, None, 0.0], [1.0]], width=80)[1:] == ["L0  ▁ ▁", "L1  █"]

    def test_nothing_is_drawn_of_nothing(self):
        assert head_map_lines([], width=80) == head_map_lines([[], []], width=80) == []


@pytest.mark.parametrize(
    ("encoding", "ascii_only"),
    [("utf-8", False), ("UTF8", False), ("ascii", True), ("cp437", True), ("latin-1", True), (None, True), ("nonsense", True)],
)
def test_a_terminal_that_cannot_show_blocks_gets_digits(encoding, ascii_only):
    assert style_for(0, 80, encoding) == Style(ascii=ascii_only)
    assert style_for(1, 120, encoding).verbose


def test_a_section_for_such_a_terminal_has_nothing_but_ascii():
    assert "".join(lines(found(), ascii=True, verbose=True)).isascii()
    assert not "".join(lines(found())).isascii()
