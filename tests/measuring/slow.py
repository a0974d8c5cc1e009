"""The paper's definitions as loops over single entries, written without looking at the package."""

from collections.abc import Sequence

import numpy as np


def head_scores(pattern: np.ndarray, tokens: Sequence[int], real: Sequence[int] | None = None) -> dict[str, float]:
    """Scores of one head from its pattern (queries, keys) over one row of tokens; `real` marks padding with 0."""
    kept = [i for i in range(len(tokens)) if real is None or real[i]]
    prefix, duplicate = [], []
    for query in kept:
        earlier = [key for key in kept if key < query and tokens[key] == tokens[query]]
        if earlier:
            prefix.append(sum(pattern[query, key + 1] for key in earlier))
            duplicate.append(sum(pattern[query, key] for key in earlier))
    late = kept[2:]
    return {
        "prefix_matching": float(np.mean(prefix)),
        "duplicate_token": float(np.mean(duplicate)),
        "previous_token": float(np.mean([pattern[query, query - 1] for query in late])),
        "first_token": float(np.mean([pattern[query, kept[0]] for query in late])),
    }


def repetition(log_probabilities: np.ndarray, tokens: Sequence[int], period: int, start: int) -> dict[str, float]:
    """Losses, accuracies and advantage of one row from its log-probabilities (positions, d_vocab)."""
    first, later, first_hit, later_hit, advantage = [], [], [], [], []
    for position in range(start + 1, len(tokens)):
        place = position - start
        if place % period == 0:
            continue
        row = log_probabilities[position - 1]
        loss, hit = -row[tokens[position]], row.argmax() == tokens[position]
        if place < period:
            first.append(loss)
            first_hit.append(hit)
            continue
        later.append(loss)
        later_hit.append(hit)
        others = [tokens[start + (place + step) % period] for step in (1, 2)]
        advantage.append(row[tokens[position]] - np.mean([row[other] for other in others]))
    names = ("first_loss", "repeat_loss", "first_accuracy", "repeat_accuracy", "advantage")
    return {
        name: float(np.mean(values)) for name, values in zip(names, (first, later, first_hit, later_hit, advantage), strict=True)
    }


def mass_at_period(pattern: np.ndarray, period: int, start: int, first_query: int = 0) -> float:
    """Mass of one head where successors would stand if a row repeated with this period from `start` on, whatever it holds."""
    masses = []
    for query in range(max(first_query, start + period), len(pattern)):
        mass, occurrence = 0.0, query - period
        while occurrence >= start:
            mass += pattern[query, occurrence + 1]
            occurrence -= period
        masses.append(mass)
    return float(np.mean(masses))


def mass_at_shift(pattern: np.ndarray, period: int, start: int, shift: int, first_query: int = 0) -> float:
    """Mass of one head that many positions after the successors of a row of this period."""
    masses = []
    for query in range(max(first_query, start + period), len(pattern)):
        places = [place + 1 + shift for place in range(query - period, start - 1, -period)]
        masses.append(sum(pattern[query, place] for place in places if place <= query))
    return float(np.mean(masses))


def mass_at_other_periods(pattern: np.ndarray, period: int, start: int, others: Sequence[int]) -> list[float]:
    """Mass of one head where successors would stand if a row of this period had one of the others; no place counts twice."""
    masses = []
    for query in range(start + max(others), len(pattern)):
        used = {copy + 1 for copy in range(query - period, start - 1, -period)}
        masses.append([])
        for other in others:
            places = {copy + 1 for copy in range(query - other, start - 1, -other)} - used
            masses[-1].append(sum(pattern[query, place] for place in places))
            used |= places
    return np.mean(masses, axis=0).tolist()


def match_lengths(pattern: np.ndarray, tokens: Sequence[int]) -> dict[str, float]:
    """Of one head and row: the mean mass where one, two, three or more tokens match, and where a match has just ended."""
    masses = {name: [] for name in ("exactly_one", "exactly_two", "three_or_more", "after_breaks")}
    names = list(masses)
    for query in range(1, len(tokens)):
        for key in range(1, query + 1):
            matched = 0
            while key - 1 - matched >= 0 and key - 1 < query and tokens[key - 1 - matched] == tokens[query - matched]:
                matched += 1
            if matched:
                masses[names[min(matched, 3) - 1]].append(pattern[query, key])
            elif key >= 2 and tokens[key - 2] == tokens[query - 1] and key - 2 < query - 1:
                masses["after_breaks"].append(pattern[query, key])
    return {name: float(np.mean(found)) for name, found in masses.items()}


def competing_matches(pattern: np.ndarray, log_probs: np.ndarray, tokens: Sequence[int]) -> dict[str, float]:
    """Of one head and row in which matches of one, two and three tokens compete: the mean mass on what followed each, and on all of
    them where the last token of a query is new; and of the row the mean log-probabilities of those tokens there.

    A query is a place with three earlier occurrences of its token; behind the same two tokens stands one that is new.
    """
    row, found = list(tokens), {name: [] for name in ("exactly_one", "exactly_two", "exactly_three", "unmatched")}
    found |= {f"log_prob_{name}": [] for name in ("exactly_one", "exactly_two", "exactly_three", "matched", "unmatched")}
    for query in range(len(row)):
        earlier = [place for place in range(query) if row[place] == row[query]]
        if len(earlier) != 3:
            continue
        lengths = {}
        for place in earlier:
            count = 0
            while row[place - count] == row[query - count]:
                count += 1
            lengths[count] = place + 1
        if sorted(lengths) != [1, 2, 3]:
            continue
        others = [at for at in range(2, len(row)) if at != query and row[at - 2 : at] == row[query - 2 : query]]
        new = next(at for at in others if row.count(row[at]) == 1 and at > max(lengths.values()))
        for name, count in (("exactly_one", 1), ("exactly_two", 2), ("exactly_three", 3)):
            found[name].append(pattern[query, lengths[count]])
            found[f"log_prob_{name}"].append(log_probs[query, row[lengths[count]]])
        found["unmatched"].append(sum(pattern[new, key] for key in lengths.values()))
        for name, at in (("matched", query), ("unmatched", new)):
            found[f"log_prob_{name}"].append(np.log(sum(np.exp(log_probs[at, row[key]]) for key in lengths.values())))
    return {name: float(np.mean(values)) for name, values in found.items()}
