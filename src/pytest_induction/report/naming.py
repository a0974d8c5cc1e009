"""Runs of one name, told apart by where they lie: by as much of their paths as differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pytest_induction.records import Evidence, Exhibit

Subject = tuple[str, str, str]  # name, fingerprint, place


def told_apart(
    evidence: Iterable[Evidence], exhibits: Iterable[Exhibit] = ()
) -> tuple[tuple[Evidence, ...], tuple[Exhibit, ...]]:
    """The same verdicts and exhibits; of several runs of one name each is called by the end of its path."""
    verdicts, shown = tuple(evidence), tuple(exhibits)
    runs = {_of(each): None for each in verdicts if each.provenance.is_run}
    names = _names(list(runs))
    return (
        tuple(
            each if (name := names.get(_of(each))) is None else replace(each, provenance=replace(each.provenance, model=name))
            for each in verdicts
        ),
        tuple(replace(each, model=names.get((each.model, each.fingerprint, each.place), each.model)) for each in shown),
    )


def distinct(paths: Sequence[str]) -> list[str]:
    """The last part of each path, or more of it where two would be the same.

    >>> distinct(["runs/a/log.csv", "runs/b/log.csv"])
    ['a/log.csv', 'b/log.csv']
    """
    parts = [path.rstrip("/").split("/") for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        ends = ["/".join(part[-depth:]) for part in parts]
        if len(set(ends)) == len(ends):
            return ends
    return list(paths)


def _of(evidence: Evidence) -> Subject:
    about = evidence.provenance
    return about.model, about.fingerprint, about.place


def _names(runs: Sequence[Subject]) -> Mapping[Subject, str]:
    """What runs are called that share their name."""
    groups: dict[str, list[Subject]] = {}
    for run in runs:
        groups.setdefault(run[0], []).append(run)
    names: dict[Subject, str] = {}
    for name, group in groups.items():
        if len(group) > 1:
            ends = dict(zip(places := list(dict.fromkeys(place for _, _, place in group)), distinct(places), strict=True))
            for run in group:
                twice = sum(other[2] == run[2] for other in group) > 1  # changed in between, or nowhere
                names[run] = f"{ends[run[2]] or name} ({run[1][:8]})" if twice else ends[run[2]] or name
    return names
