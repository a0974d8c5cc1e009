"""What is read is what its type says: the schema, and the ranges of numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, NotRequired, TypedDict

import pytest

from pytest_induction.errors import ModelError
from pytest_induction.model.specs import check_spec
from pytest_induction.ranges import COUNT, LOSS, MASS, NATS, SCORES, SHARE, Mass, Range, kept
from pytest_induction.runs.record import ARRAYS, NUMBERS
from pytest_induction.schema import DEEPEST, Unfit, parsed, read


class Colour(StrEnum):
    RED = "red"


class Named(TypedDict):
    name: str
    more: NotRequired[list[int]]


@dataclass(frozen=True)
class Inner:
    share: Mass
    pair: tuple[int, str] = (0, "")


@dataclass(frozen=True)
class Outer:
    SCHEMA: ClassVar[int] = 3
    kind: Literal["a", "b"]
    inner: tuple[Inner, ...] = ()
    by_name: Mapping[str, float] = field(default_factory=dict)
    colour: Colour | None = None
    named: Named | None = None
    flag: bool = False
    ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.kind == "b" and not self.flag:
            raise ValueError("`b` needs the flag")


def outer(**fields):
    return {"schema": 3, "kind": "a", **fields}


def test_data_becomes_what_its_types_say():
    """Records in records, enumerations, pairs and sets; null is not a number where a number was to be."""
    inner = {"share": 1, "pair": [2, "x"]}
    found = read(Outer, outer(inner=[inner, {"share": None}], colour="red", named={"name": "n", "more": [1]}, ids=[1, 1]))
    assert found.inner[0] == Inner(1.0, (2, "x")) and type(found.inner[0].share) is float
    assert math.isnan(found.inner[1].share)
    assert found.colour is Colour.RED and found.named == {"name": "n", "more": [1]} and found.ids == {1}


@pytest.mark.parametrize(
    ("fields", "said"),
    {
        "a number for a text": ({"kind": 5}, "`kind` must be 'a' or 'b', got 5"),
        "deep inside": ({"inner": [{"share": 0.5}, {"share": 7.3}]}, "`inner[1].share` must be within 0 and 1, got 7.3"),
        "a text for a number": ({"inner": [{"share": "0.5"}]}, "`inner[0].share` must be a number, got '0.5'"),
        "a truth value for a number": ({"inner": [{"share": True}]}, "`inner[0].share` must be a number, got True"),
        "a number for a truth value": ({"flag": 1}, "`flag` must be true or false, got 1"),
        "too few in a pair": ({"inner": [{"share": 0.1, "pair": [1]}]}, "`inner[0].pair` must be a list of 2, got a list of 1"),
        "an object for a list": ({"inner": {}}, "`inner` must be a list, got an object of 0"),
        "a list for an object": ({"by_name": []}, "`by_name` must be an object, got a list of 0"),
        "by name": ({"by_name": {"x": "y"}}, "`by_name.x` must be a number, got 'y'"),
        "not one of them": ({"colour": "blue"}, "`colour` must be 'red', got 'blue'"),
        "missing": ({"named": {}}, "`named.name` is missing"),
        "not known": ({"named": {"name": "", "nme": 1}}, "`named.nme` is not known"),
        "not known either": ({"knd": 1}, "`knd` is not known"),
        "another layout": ({"schema": 4}, "it must have schema 3, got 4"),
        "what the class asks for": ({"kind": "b"}, "it is wrong: `b` needs the flag"),
        "half of a pair": ({"named": {"name": "\ud800"}}, "`named.name` must be a text, and has half of a surrogate pair"),
        "too large for any number": ({"by_name": {"x": 10**400}}, "which is too large for any"),
        "an index beyond": ({"ids": [2**63]}, "`ids[0]` must be a whole number of at most 2**63"),
        "a fraction for an index": ({"ids": [1.0]}, "`ids[0]` must be a whole number, got 1.0"),
        "a name that is odd": ({"by_name": {"two\nlines": []}}, "`by_name.two\\nlines` must be a number, got a list of 0"),
    }.values(),
)
def test_what_is_wrong_is_said_with_its_place(fields, said):
    """One line: where, what it must be, what it is."""
    with pytest.raises(Unfit) as failed:
        read(Outer, outer(**fields))
    assert said in str(failed.value) and "\n" not in str(failed.value)


def test_what_a_later_version_writes_can_be_passed_over():
    """Of a run, where a line may have more than is known."""
    assert read(Inner, {"share": 0.5, "later": {}}, more=True) == Inner(0.5)
    with pytest.raises(Unfit, match="`share` must be within"):
        read(Inner, {"share": 5, "later": {}}, more=True)


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "NaN": ('{"a": NaN}', "NaN is no number"),
        "Infinity": ("[-Infinity]", "-Infinity is no number"),
        "twice": ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
        "deep": ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "too deep in each other"),
        "very deep": ('{"a":' * 10**5, "too deep in each other"),
        "half of a pair": ('["\\uD800"]', "half of a surrogate pair"),
        "empty": ("", "Expecting value"),
        "a mark before it": ("\ufeff{}", "BOM"),
        "not UTF-8": (b'["\xff"]', "it is not UTF-8: invalid start byte at byte 2"),
        "torn": ('{"a": ', "Expecting value"),
    }.values(),
)
def test_json_is_what_others_call_json(text, said):
    """And no deeper than any of ours."""
    with pytest.raises(ValueError) as failed:
        parsed(text)
    assert said in str(failed.value) and "\n" not in str(failed.value)


def test_many_keys_are_looked_through_once():
    """Of a hundred thousand, the last of which is there twice."""
    pairs = ",".join(f'"{index}":0' for index in range(100_000))
    with pytest.raises(ValueError, match="'99999' is there twice"):
        parsed(f'{{{pairs},"99999":1}}')


def test_a_number_with_too_many_digits_is_infinite():
    """As 1e999 is, and out of every range."""
    assert parsed(f"[{'9' * 5000}, -{'9' * 5000}, 1e999]") == [math.inf, -math.inf, math.inf]
    with pytest.raises(Unfit, match="must be within 0 and 1, got"):
        read(Mass, math.inf)


def test_a_spec_of_two_lines_is_one_line_of_a_message():
    """No hub has such a name."""
    with pytest.raises(ModelError) as failed:
        check_spec("two\nlines")
    assert "\n" not in str(failed.value) and "hf:" not in str(failed.value).partition("expected")[0]


class TestRanges:
    def test_every_number_of_a_snapshot_has_one(self):
        """There is one table, and it is whole."""
        assert {*NUMBERS, *ARRAYS, "seconds", "step", "tokens"} <= SCORES.keys()

    @pytest.mark.parametrize(
        ("known", "good", "bad"),
        [
            (SHARE, (0, 1, 0.5, math.nan, 1 + 1e-7), (40, -0.1, 1.01, math.inf)),
            (MASS, (0, 1, 1.1), (7.3, -0.2)),
            (LOSS, (0, 5, 1e30), (-1, 1e39, math.inf)),
            (NATS, (-5, 3.4e38), (1e308, -math.inf)),
            (COUNT, (0, 2**63 - 1), (-1, 2**63, 10**400)),
        ],
    )
    def test_what_it_holds(self, known, good, bad):
        """What is not known is in every range, what is infinite in none."""
        assert all(known.holds(value) and known(value) == "" for value in good)
        assert all(not known.holds(value) and known(value).startswith(f"must be {known}, got ") for value in bad)

    def test_a_baseline_has_bounds_for_shares_alone(self):
        """A loss there may be the difference of two, and users name what they like."""
        assert kept("L1H0.prefix_matching") is kept("prefix_matching.L1H0") is kept("prefix_matching") is MASS
        assert kept("repeat_accuracy").holds(-0.5) and not kept("repeat_accuracy").holds(40)
        assert kept("late_loss").holds(-3) and kept("mine").holds(-1e9) and not kept("mine").holds(1e308)

    def test_a_check_is_whatever_says_what_is_wrong(self):
        """A range is one, and so is any function."""
        even = Annotated[int, Range(0, 10), lambda value: "" if value % 2 == 0 else f"must be even, got {value}"]
        assert read(even, 4) == 4
        for value, said in ((12, "must be within 0 and 10, got 12"), (3, "must be even, got 3")):
            with pytest.raises(Unfit, match=said):
                read(even, value)
