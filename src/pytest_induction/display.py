"""What a record shows of itself in a notebook or a terminal, and gives to pandas: its tables and pictures. Standard library only.

A record derives from `Displayed` and says in `view` what there is; `view_of` reads it off the fields of most records. How that is
written or drawn is the business of `report.display`, which is loaded when something is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from typing import Any

Columns = dict[str, list[Any]]
Picture = tuple[str, Mapping[str, Any]]  # its kind, as `report.display.DRAWN` has it, and what it shows
ENDS = ("low", "high")  # of an interval
SHOW = "pytest_induction.report.display"
NOT_DATA = ("provenance", "per_sequence", "per_row", "thresholds", "before", "head_map")  # fields that tables leave out


@dataclass(frozen=True)
class Table:
    """One table of a record: `columns(order)` has the rows of these numbers, or all, `top(n)` says which n to show first.

    Columns are plain lists of numbers, strings, booleans and None. Those of an interval are called "NAME", "NAME_low" and
    "NAME_high". `shown` are those that are shown, without the ends of intervals; empty for all.
    """

    name: str
    n_rows: int
    columns: Callable[[Sequence[int] | None], Columns]
    top: Callable[[int], list[int]]
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """What a record shows: a title, facts of a line each, tables, and pictures, which are made only where they are drawn."""

    title: str
    facts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: Callable[[], Sequence[Picture]] = tuple


class Displayed:
    """Base of records that are shown: a short `repr`, HTML in notebooks, and columns for pandas and Arrow."""

    __slots__ = ()

    def view(self) -> View:
        """What there is to show."""
        return view_of(self)

    def __repr__(self) -> str:
        """The same as text, in at most 40 lines."""
        text: str = import_module(SHOW).as_text(self.view())
        return text

    def _repr_html_(self) -> str:
        """The same as HTML that needs nothing else: no network, no script."""
        html: str = import_module(SHOW).as_html(self.view())
        return html

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the tables that `to_columns` and `to_dataframe` give; those without rows come last."""
        return tuple(table.name for table in _ordered(self.view()))

    def to_columns(self, table: str | None = None) -> Columns:
        """A table as plain lists: name of the column -> a value for each row, None where there is none.

        `table` is one of `tables`, by default the first of them. `pyarrow.table(record.to_columns())` takes it as it is. Raises
        `ArgumentError` for a table that there is not.
        """
        return _named(self, table).columns(None)

    def to_dataframe(self, table: str | None = None) -> Any:
        """A table as a `pandas.DataFrame`, a row for each of its rows; `table` as `to_columns` takes it.

        Raises `ArgumentError` for a table that there is not, and where pandas is not installed.
        """
        found = self.to_columns(table)
        if find_spec("pandas") is None:
            raise _refused("`to_dataframe` needs pandas, which is not installed: pip install pandas, or take `to_columns`")
        import pandas as pd

        return pd.DataFrame(found)


class Plotted(Displayed):
    """A record of which a picture says more."""

    __slots__ = ()

    def plot(self) -> Any:
        """All pictures of it, which notebooks show and `save(path)` writes, as .svg or .html.

        Raises `ArgumentError` where this one has nothing to draw.
        """
        drawn = import_module(SHOW).drawing_of(self.view())
        if drawn is None:
            raise _refused(f"this `{type(self).__name__}` has nothing to draw: `to_columns` has its numbers")
        return drawn


def _named(record: Displayed, name: str | None) -> Table:
    tables = _ordered(record.view())
    if not tables:
        raise _refused(f"this `{type(record).__name__}` has no table")
    if name is None:
        return tables[0]
    found = next((table for table in tables if table.name == name), None)
    if found is None:
        raise _refused(f"`table` must be one of {', '.join(table.name for table in tables)}, got {name!r}")
    return found


def _ordered(view: View) -> list[Table]:
    return sorted(view.tables, key=lambda table: not table.n_rows)


def _refused(message: str) -> Exception:
    error: Exception = import_module("pytest_induction.errors").ArgumentError(message)  # which stands above this
    return error


def rows_table(name: str, rows: Iterable[Any], *, shown: tuple[str, ...] = ()) -> Table:
    """A table of records or mappings, a row each, in their order."""
    flat = [cells(row) for row in rows]
    names = list(dict.fromkeys(column for row in flat for column in row))

    def columns(order: Sequence[int] | None) -> Columns:
        taken = flat if order is None else [flat[place] for place in order]
        return {column: [row.get(column) for row in taken] for column in names}

    return Table(name, len(flat), columns, lambda count: list(range(min(count, len(flat)))), shown)


def estimates_table(estimates: Mapping[str, Any], name: str = "estimates") -> Table:
    """A table of estimates by name."""
    return rows_table(name, [{"estimate": each, **cells(found)} for each, found in estimates.items()])


def arrays_table(
    name: str,
    arrays: Mapping[str, Any],
    *,
    axes: Sequence[str] = ("layer", "head"),
    by: str = "",
    labels: Mapping[str, Sequence[Any]] | None = None,
    shown: tuple[str, ...] = (),
) -> Table:
    """A table of arrays of one shape, a row for each entry that is a number in any of them.

    The columns named by `axes` say where it stands, `labels` what the places of an axis are called. Rows come in the order of the
    axes; the first to show are those with the highest `by`, by default the first array.
    """
    there = None
    for values in arrays.values():
        known = values == values  # noqa: PLR0124 - NaN
        there = known if there is None else there | known
    places = there.nonzero() if there is not None else ()
    called = labels or {}

    def columns(order: Sequence[int] | None) -> Columns:
        found: Columns = {}
        for axis, place in zip(axes, places, strict=True):
            at = (place if order is None else place[list(order)]).tolist()
            found[axis] = [called[axis][each] for each in at] if axis in called else at
        for each, values in arrays.items():
            kept = values[places] if order is None else values[places][list(order)]
            found[each] = [_plain(value) for value in kept.tolist()]
        return found

    def top(count: int) -> list[int]:
        order: list[int] = (-arrays[by or next(iter(arrays))][places]).argsort(kind="stable")[:count].tolist()  # NaN comes last
        return order

    return Table(name, len(places[0]) if places else 0, columns, top, shown)


def spread_table(name: str, rows: Sequence[Any]) -> Table:
    """A table of records whose first rows to show are spread over all of them, the last among them."""
    table = rows_table(name, rows)

    def top(count: int) -> list[int]:
        most = max(1, min(count, len(rows)) - 1)
        return sorted({round(place * (len(rows) - 1) / most) for place in range(most + 1)}) if rows else []

    return replace(table, top=top)


def cells(row: Any) -> dict[str, Any]:
    """The columns of a record and their values."""
    return dict(_cells(row))


def _cells(row: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The columns of a record and their values: of one inside it with the name of its field before it."""
    pairs = row.items() if isinstance(row, Mapping) else ((each.name, getattr(row, each.name)) for each in fields(row))
    for name, value in pairs:
        if prefix and name == "unit":
            continue  # its name says it
        column = f"{prefix}_{name}" if prefix and name != "value" else prefix or name
        if value is None or isinstance(value, (bool, int, float, str)):
            yield column, str(value) if isinstance(value, Enum) else _plain(value)
        elif is_dataclass(value) and [each.name for each in fields(value)] == ["layer", "head"]:
            yield column, str(value)  # a `HeadId`
        elif is_dataclass(value):
            yield from _cells(value, column)
        elif isinstance(value, (tuple, list)) and all(isinstance(each, str) for each in value):
            yield column, ", ".join(value)
        elif isinstance(value, Mapping) and all(map(is_estimate, value.values())):
            for key, found in value.items():
                yield from _cells(found, key)


def _plain(value: Any) -> Any:
    return None if value != value else value  # noqa: PLR0124 - NaN


def is_estimate(value: Any) -> bool:
    """Whether it is a number with its interval; it is told by its ends, as records stand above this."""
    return is_dataclass(value) and all(hasattr(value, name) for name in ("value", *ENDS))


def about(record: Any) -> tuple[str, ...]:
    """Facts of where a measurement comes from."""
    origin = getattr(record, "provenance", None)
    if origin is None:
        return ()
    seed = "" if origin.seed is None else f"seed {origin.seed}"
    count = f"{origin.n_sequences} sequences" if origin.n_sequences else ""
    where = "" if origin.is_run else origin.how
    return tuple(filter(None, (where, ", ".join(filter(None, (count, origin.probe, seed))), *origin.notes)))


def titled(record: Any) -> str:
    """The name of the class, and the model or run."""
    origin = getattr(record, "provenance", None)
    return type(record).__name__ + (f" of {origin.model}" if origin is not None else "")


def head_maps(arrays: Mapping[str, Any], units: Mapping[str, str] | None = None) -> list[Picture]:
    """The picture of arrays (n_layers, n_heads): a map each. Their `units` are shares of attention where it is not said."""
    scores = [
        {
            "name": name,
            "words": name.replace("_", " "),
            "unit": (units or {}).get(name, "share"),
            "value": [[_plain(value) for value in row] for row in values.tolist()],
        }
        for name, values in arrays.items()
        if values.size
    ]
    return [("heads", {"scores": scores})] if scores else []


def view_of(
    record: Any,
    *,
    by: str = "",
    shown: tuple[str, ...] = (),
    units: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
    tables: Sequence[Table] = (),
    pictures: Callable[[], Sequence[Picture]] | None = None,
) -> View:
    """What the fields of a record say of it.

    Arrays (n_layers, n_heads), and those in `more`, are one table "heads", the highest `by` first, and a head map each, in
    `units`. Arrays (n_layers, n_heads, n_layers, n_heads) are one table "pairs" of a head and an earlier one. Mappings of
    estimates, and tuples of records, are tables by the name of the field; single numbers are facts. `tables` come last.
    """
    heads, pairs, rest, facts = dict[str, Any](), dict[str, Any](), list[Table](), list[str]()
    for each in fields(record):
        name, value = each.name, getattr(record, each.name)
        size = getattr(value, "ndim", None)
        if name in NOT_DATA or value is None:
            continue
        if size == 2:
            heads[name] = value
        elif size == 4:
            pairs[name] = value
        elif isinstance(value, Mapping) and value and all(map(is_estimate, value.values())):
            rest.append(estimates_table(value, name))
        elif isinstance(value, tuple) and value and all(map(is_dataclass, value)):
            rest.append(rows_table(name, value, shown=shown if name == "heads" else ()))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            facts.append(f"{name.replace('_', ' ')} {value:.4g}")
    heads |= more or {}
    heads = {each: heads[each] for each in sorted(heads, key=lambda each: each != by)}  # and the first picture is that of `by`
    found = []
    if pairs:
        axes = ("layer", "head", "earlier_layer", "earlier_head")
        found.append(arrays_table("pairs", pairs, axes=axes, by=by if by in pairs else ""))
    if heads:
        found.append(arrays_table("heads", heads, by=by if by in heads else "", shown=shown))
    drawn = pictures if pictures is not None else lambda: head_maps(heads, units)
    return View(titled(record), (*about(record), *([", ".join(facts)] if facts else [])), (*found, *rest, *tables), drawn)
