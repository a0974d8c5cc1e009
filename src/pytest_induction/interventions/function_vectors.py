"""Function-vector heads: those that carry a task from its examples to where the answer is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pytest_induction.deciding import ERROR_RATE
from pytest_induction.display import Displayed, Plotted, View, about, arrays_table, cells, head_maps, rows_table, titled
from pytest_induction.errors import InductionError, user_facing, whole_number
from pytest_induction.expectations import check_share
from pytest_induction.interventions.few_shot import Patches, Shown, shown
from pytest_induction.interventions.passes import tried_out
from pytest_induction.measuring.observing import Array, ModelLike, plain, provenance
from pytest_induction.model import prefix
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.few_shot import FEWEST_SHOTS, N_SHOTS, Encode, Task, prompts_of, tasks_of
from pytest_induction.progress import progress
from pytest_induction.records import SCHEMA_VERSION, Estimate, HeadId, Provenance
from pytest_induction.spending import Price, priced
from pytest_induction.statistics import mean_interval

N_SEQUENCES = 8  # prompts of each task with their own labels, and as many with shuffled ones
NAMED = 5  # heads that are named one by one
USUAL_SHOT = 9  # ids of an example: "Q: x\nA: y\n\n", where it is not known how a tokenizer cuts that
Given = Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class TaskScores(Displayed):
    """How a model does one task, and the `score` of its heads there.

    `accuracy` is how often the answer is the likeliest token, `probability` its mean probability, in [0, 1]; both again with
    shuffled labels. `is_done` says whether the accuracy is 0.5 or more and at most half of the probability is left with shuffled
    labels. `score` (n_layers, n_heads) is None for a task that is not done.
    """

    accuracy: float
    probability: float
    shuffled_accuracy: float
    shuffled_probability: float
    is_done: bool
    score: Array | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, None where there is no number."""
        return {**vars(self), "score": None if self.score is None else plain(self.score)}


@dataclass(frozen=True)
class FunctionVectorHead:
    """One head: its `score` with an interval that holds for all heads together, its `log_score` in nats, and its `null`."""

    layer: int
    head: int
    score: Estimate
    log_score: float
    null: float

    def __str__(self) -> str:
        return str(HeadId(self.layer, self.head))


@dataclass(frozen=True, repr=False)
class FunctionVectorScores(Plotted):
    """What each head's mean output, from examples with their own labels, is worth in prompts with shuffled ones.

    Arrays (n_layers, n_heads), means over prompts of all tasks that are done; NaN for a head there is not, and of all heads where
    no task is done. `score` is the difference in the probability of the answer, in [-1, 1], `log_score` that in its logarithm, in
    nats. `null` is the score with the mean of prompts with shuffled labels in place of the other. `heads` are those with the
    highest scores, and `tasks` says of each task how the model does it.

    | a head | score |
    |---|---|
    | that alone carries the task | the probability with own labels less that with shuffled ones |
    | that attends evenly, or to the first token; that only copies what followed the same token | about 0 |
    | that carries the wrong answer | below 0 |

    `per_sequence` has `score`, `log_score` and `null` of each prompt, (n_prompts, n_layers, n_heads), those of a task together.
    """

    score: Array
    log_score: Array
    null: Array
    tasks: Mapping[str, TaskScores]
    heads: tuple[FunctionVectorHead, ...]
    per_sequence: Mapping[str, Array]
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        tasks = [{"task": name, **cells(task)} for name, task in self.tasks.items()]
        every = {"score": self.score, "log_score": self.log_score, "null": self.null}
        units = {"score": "probability", "log_score": "nats", "null": "probability"}
        tables = (rows_table("heads", self.heads), arrays_table("all_heads", every), rows_table("tasks", tasks))
        return View(titled(self), about(self), tables, lambda: head_maps(every, units))

    @property
    def null_max(self) -> float:
        """The highest null of any head: a score below it may be chance."""
        return float(np.nanmax(self.null, initial=0.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, None where there is no number, with the version of this layout under `schema`."""
        return {
            "schema": SCHEMA_VERSION,
            **{name: plain(getattr(self, name)) for name in KINDS},
            "tasks": {name: task.to_dict() for name, task in self.tasks.items()},
            "heads": [{**vars(head), "score": vars(head.score)} for head in self.heads],
            "per_sequence": {name: plain(values) for name, values in self.per_sequence.items()},
            "provenance": self.provenance.to_dict(),
        }


KINDS = ("score", "log_score", "null")


def price_of_function_vectors(subject: ModelUnderTest, given: Given) -> Price:
    """Of `measure_function_vectors`: each task with its own labels and with shuffled ones, and every head patched twice."""
    return price_of_scores(subject, given, given["n_sequences"])


def price_of_scores(subject: ModelUnderTest, given: Given, count: int) -> Price:
    """Of the scores of every head in so many prompts of each task."""
    n_tasks, prompt = asked(subject, given)
    patched = 2 * sum(subject.reading.heads) + 1
    once = tried_out(subject) + prefix.TRIED
    return Price(2 * count * n_tasks * prompt, count * n_tasks * (2 + patched) * prompt + once)


def asked(subject: ModelUnderTest, given: Given) -> tuple[int, int]:
    """How many tasks are asked for, and the ids of a prompt of them with its answer; what is usual where the call is refused."""
    n_shots, room = given["n_shots"], subject.space.n_ctx
    try:
        tasks = tasks_of(subject.space, encoder(subject, given["tokenizer"]), given["tasks"], n_shots=n_shots)
    except InductionError:
        longest = USUAL_SHOT * (n_shots + 1)
        return 1, longest if room is None else min(longest, room)
    return len(tasks), max(task.positions(n_shots) for task in tasks) + (subject.space.bos_id is not None)


def encoder(subject: ModelUnderTest, tokenizer: Any) -> Encode | None:
    """How words become ids, by the tokenizer that is given or else the model's own; None where there is none."""
    tokenizer = subject.tokenizer if tokenizer is None else tokenizer
    return None if tokenizer is None else replace(subject, tokenizer=tokenizer).encode


@user_facing
@priced(price_of_function_vectors)
def measure_function_vectors(
    model: ModelLike,
    *,
    tasks: str | Iterable[str] | Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    n_shots: int = N_SHOTS,
    n_sequences: int = N_SEQUENCES,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> FunctionVectorScores:
    """Measure function-vector heads: those that carry a task from its examples to the place of the answer.

    A prompt has `n_shots` examples, a question and its answer each, and a question. What a head finds at its last position is
    averaged over `n_sequences` prompts of a task, and given by that head alone at the last position of as many other prompts, in
    which no example has its own label. The score is by how much the probability of the answer rises; nothing before that
    position changes.

    `tasks` are "capitalise", "antonym", "past tense", "plural", "next letter", "next number" and "country capital" (all unless
    some are named), of words that the tokenizer has as one token each; or pairs of words by name, or pairs of token ids, which
    need no tokenizer and stand one after the other with nothing between them. `tokenizer` is for models that have none.

    Only tasks that the model does are scored: `tasks` of the result says which. All heads of a prompt share passes over one
    token each where the model takes a prefix back, as those of transformers do; else each takes a pass begun at its layer.

    Raises `TextError` where there is no tokenizer, `ProbeError` where no task has enough pairs of one token each or the context
    is too short, `ArgumentError` for what is no task, `UnsupportedModel` where what heads find cannot be edited. Source: Todd et
    al. 2024 (arXiv 2310.15213); Yin & Steinhardt 2025 (2502.14010), of which this differs by the signed score, the tasks, and
    prompts whose ids are put together and never tokenised again.

    >>> scores = measure_function_vectors(model)                             # doctest: +SKIP
    >>> str(scores.heads[0]), scores.tasks["antonym"].is_done                # doctest: +SKIP
    ('L20H5', True)
    """
    whole_number("n_shots", n_shots, least=FEWEST_SHOTS)
    whole_number("n_sequences", n_sequences, least=2)
    check_share("error_rate", error_rate)
    subject = load_model(model)
    _ = subject.reading  # refuse by name here, before anything is measured
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    chosen = tasks_of(subject.space, encoder(subject, tokenizer), tasks, n_shots=n_shots)
    with progress("function vectors", 2 * len(chosen) * n_sequences):
        seen = seen_tasks(subject, chosen, n_shots, n_sequences, seed)
        scored = [scores_of(subject, each) for each in seen if each.is_done]
    about = provenance(subject, seed=seed, n_sequences=n_sequences * len(scored), probe=described(chosen, n_shots))
    about = replace(about, notes=(*about.notes, *notes_on(seen)))
    return _joined(seen, scored, error_rate, about)


def seen_tasks(subject: ModelUnderTest, tasks: Sequence[Task], n_shots: int, count: int, seed: int) -> list[Shown]:
    """How the model does each task, on so many prompts."""
    found = []
    for number, task in enumerate(tasks):
        own, other = (
            prompts_of(task, subject.space, n_shots, count, np.random.default_rng([seed, 14, number, part])) for part in (0, 1)
        )
        found.append(shown(subject, task, own, other))
    return found


def scores_of(subject: ModelUnderTest, seen: Shown) -> dict[str, Array]:
    """Each of `KINDS` of every head in every prompt of a task, (prompts, n_layers, n_heads); NaN for a head there is not."""
    patches = Patches(subject)
    own, null = patches.log_p(seen.rows, [seen.found, seen.null])
    before = seen.shuffled.log_p[:, None]
    flat = {"score": np.exp(own) - np.exp(before), "log_score": own - before, "null": np.exp(null) - np.exp(before)}
    found = {}
    for name, values in flat.items():
        found[name] = np.full((len(values), subject.n_layers, subject.n_heads), np.nan)
        found[name][:, [head.layer for head in patches.heads], [head.head for head in patches.heads]] = values
    return found


def described(tasks: Iterable[Task], n_shots: int) -> str:
    """What prompts are made of, in a few words."""
    return f"{n_shots} examples of {', '.join(task.name for task in tasks)}"


def notes_on(seen: Sequence[Shown]) -> tuple[str, ...]:
    """Which tasks are left out, and why."""
    left_out = [each.why_not for each in seen if not each.is_done]
    return (f"not done by this model, and left out: {', '.join(left_out)}",) if left_out else ()


def _joined(
    seen: Sequence[Shown], scored: Sequence[Mapping[str, Array]], error_rate: float, about: Provenance
) -> FunctionVectorScores:
    shape = (0, about.n_layers, about.n_heads)
    values = {name: np.concatenate([np.empty(shape), *(each[name] for each in scored)]) for name in KINDS}
    means = {name: each.mean(0) if len(each) else np.full(shape[1:], np.nan) for name, each in values.items()}
    own = iter(scored)
    tasks = {
        each.task.name: TaskScores(
            accuracy=each.own.accuracy,
            probability=each.own.probability,
            shuffled_accuracy=each.shuffled.accuracy,
            shuffled_probability=each.shuffled.probability,
            is_done=each.is_done,
            score=next(own)["score"].mean(0) if each.is_done else None,
        )
        for each in seen
    }
    heads = tuple(
        FunctionVectorHead(head.layer, head.head, score, float(means["log_score"][place]), float(means["null"][place]))
        for head, score in strongest(values["score"], error_rate)
        for place in [(head.layer, head.head)]
    )
    return FunctionVectorScores(means["score"], means["log_score"], means["null"], tasks, heads, values, about)


def strongest(values: Array, error_rate: float) -> list[tuple[HeadId, Estimate]]:
    """The heads with the highest means over prompts (prompts, n_layers, n_heads), with intervals that hold for all heads."""
    if not len(values):
        return []
    places = ranked(values.mean(0))
    columns = values[:, [head.layer for head in places], [head.head for head in places]]
    return list(zip(places, mean_interval(columns, error_rate, "probability"), strict=True))[:NAMED]


def ranked(score: Array) -> list[HeadId]:
    """Every head there is by its score (n_layers, n_heads), highest first; of equal ones the first."""
    order = np.argsort(-score.ravel(), kind="stable")
    places = [divmod(int(place), score.shape[1]) for place in order if not np.isnan(score.ravel()[place])]
    return [HeadId(layer, head) for layer, head in places]
