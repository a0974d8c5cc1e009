"""What is known of heads that prefer longer matches, for `study_verdicts.py`: planted ones, and rows whose distribution is known.

A planted head has the preference of its formula, tanh of what each token gains. Rows without a model are of heads that take all
of one match at each query, or rest, by chance: the widest that rows of six queries can be, with a preference at the threshold.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from pytest_induction import Evidence, ExpectationFailed, Verdict, assert_prefers_longer_match, load_model, planted
from pytest_induction.deciding import ERROR_RATE, MAX_SEQUENCES, Judgement, until_clear
from pytest_induction.errors import ProbeError
from pytest_induction.heads.competing import MIN_PREFERENCE, judge_named, preferring
from pytest_induction.heads.criteria import min_excess
from pytest_induction.measuring.observing import Array, joined
from pytest_induction.probes.competing import GROUPS, LISTS
from pytest_induction.records import HeadId

Known = tuple[Evidence | Judgement, Verdict | None]
NEAR = 0.05  # of the threshold: a planted head so near to it has no known answer
HEAD = HeadId(1, 0)
SHAPES = {  # how often a head takes the match of one token, two, three; all have a preference of 0.4
    "all of one match or none, 3 : 7": (0.15, 0.2, 0.35),
    "the same, a quarter as often": (0.0375, 0.05, 0.0875),
    "the same, and often two": (0.15, 0.5, 0.35),
}


def evidence_of(model: object, seed: int, heads: str | None = None) -> Evidence:
    """Whichever way it goes."""
    try:
        return assert_prefers_longer_match(model, heads, seed=seed)
    except ExpectationFailed as failure:
        return failure.evidence


def planted_preferences(count: int, seed: int) -> Iterator[Known]:
    """Heads of varied preference, sharpness, place and size, each named; a third prefer nothing."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        sizes = {
            "n_layers": int(rng.integers(2, 4)),
            "n_heads": int(rng.integers(3, 6)),
            "n_ctx": int(rng.choice([48, 102, 128])),
        }
        options = {"layer": sizes["n_layers"] - 1, "d_vocab": int(rng.choice([24, 48, 64])), **sizes}
        sharpness = float(rng.choice([64.0, rng.uniform(4.0, 8.0)]))
        per_token = 0.0 if index % 3 == 0 else float(rng.uniform(0.0, 1.0))
        make = planted.longest_match_head if index % 2 else planted.induction_head
        own = {"per_token": per_token} if make is planted.longest_match_head else {}
        preference = float(np.tanh(own.get("per_token", 0.0)))
        wanted = Verdict.SHOWN if preference > MIN_PREFERENCE else Verdict.REFUTED
        near = abs(preference - MIN_PREFERENCE) < NEAR
        yield evidence_of(make(sharpness=sharpness, **own, **options), index, f"L{options['layer']}H0"), None if near else wanted


def random_preferences(models: Iterable[object]) -> Iterator[Known]:
    """Random models, none of which may be SHOWN; those that no row fits are left out."""
    for index, model in enumerate(models):
        subject = load_model(model)
        try:
            yield evidence_of(subject, index), Verdict.REFUTED
        except ProbeError:
            continue


def rows_at_the_threshold(shape: str, count: int) -> Iterator[Known]:
    """So many seeds of one shape: whatever is said of its preference, either way, is wrong."""
    for seed in range(count):
        rng = np.random.default_rng([seed, 7])
        yield (
            until_clear(lambda size, _, rng=rng: _rows(shape, size, rng), _judged, MAX_SEQUENCES, ERROR_RATE)[1],
            Verdict.UNDETERMINED,
        )


def _rows(shape: str, size: int, rng: np.random.Generator) -> Mapping[str, Array]:
    """Mean masses of rows of six queries, (rows, 1); nothing where nothing matches."""
    chances = SHAPES[shape]
    taken = rng.multinomial(GROUPS, [*chances, 1 - sum(chances)], size)[:, :-1] / GROUPS
    return {name: taken[:, [number]] if number < len(chances) else np.zeros((size, 1)) for number, name in enumerate(LISTS)}


def _judged(rounds: list[Mapping[str, Array]], rate: float) -> Judgement:
    found = joined(rounds)
    return judge_named(preferring(found, [HEAD], MIN_PREFERENCE, rate), len(found[LISTS[0]]))


assert all(abs((three - one) / (three + one) - MIN_PREFERENCE) < 1e-9 for one, _, three in SHAPES.values())
assert all(sum(chances) > min_excess() for chances in SHAPES.values())
