"""Few-shot prompts: a task shown by examples, the same with labels dealt to other examples, and the answer that comes next.

A task is a list of pairs, a question and its answer, each of one token. A prompt has some of them and ends with a question whose
answer it does not have. With shuffled labels no example keeps its own: what is left is what the question alone tells.
Prompts are put together of token ids, and never tokenised again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytest_induction.errors import ArgumentError, ProbeError, TextError, meant, whole_number
from pytest_induction.probes.semantic import begun
from pytest_induction.probes.sequences import Ids, usable_ids
from pytest_induction.probes.words import CLASSES
from pytest_induction.records import TokenSpace

Encode = Callable[[str], list[int]]
N_SHOTS = 5  # examples of a prompt
FEWEST_SHOTS = 2  # one label cannot be dealt to another example
SET_ASIDE = 2  # pairs at most, whose question is the answer that is asked for, or whose answer the question
TASKS: Mapping[str, str] = {
    "antonym": (
        "hot cold, big small, good bad, up down, left right, old new, high low, fast slow, hard soft, early late, open closed, "
        "rich poor, strong weak, light dark, happy sad, long short, thick thin, true false, wet dry, full empty, first last, "
        "inside outside, above below, before after, black white, day night, love hate, win lose, buy sell, push pull, "
        "north south, east west, war peace, life death, young elderly, always never, more less, right wrong, begin end, "
        "remember forget, heavy lightweight, wide narrow, deep shallow, cheap expensive, near far, safe dangerous"
    ),
    "past tense": (
        "go went, see saw, take took, make made, come came, give gave, find found, think thought, tell told, feel felt, "
        "leave left, bring brought, begin began, write wrote, run ran, sit sat, stand stood, lose lost, pay paid, meet met, "
        "speak spoke, spend spent, grow grew, win won, teach taught, buy bought, send sent, build built, fall fell, "
        "sell sold, draw drew, break broke, drive drove, catch caught, sing sang, fly flew, forget forgot, choose chose, "
        "eat ate, wear wore, rise rose, sleep slept, hold held, keep kept, know knew"
    ),
    "plural": (
        "cat cats, dog dogs, book books, car cars, house houses, tree trees, hand hands, day days, week weeks, year years, "
        "door doors, game games, word words, king kings, boy boys, girl girls, street streets, river rivers, bird birds, "
        "man men, woman women, child children, foot feet, tooth teeth, mouse mice, city cities, country countries, "
        "family families, story stories, body bodies, box boxes, church churches, class classes, leaf leaves, life lives, "
        "wife wives, knife knives, student students, teacher teachers, computer computers"
    ),
    "next letter": (
        "A B, B C, C D, D E, E F, F G, G H, H I, I J, J K, K L, L M, M N, N O, O P, P Q, Q R, R S, S T, T U, U V, V W, W X, "
        "X Y, Y Z"
    ),
    "next number": (
        "one two, two three, three four, four five, five six, six seven, seven eight, eight nine, nine ten, ten eleven, "
        "eleven twelve, twelve thirteen"
    ),
    "country capital": (
        "France Paris, Germany Berlin, Italy Rome, Spain Madrid, England London, Russia Moscow, Japan Tokyo, China Beijing, "
        "Egypt Cairo, Greece Athens, Austria Vienna, Poland Warsaw, Ireland Dublin, Norway Oslo, Sweden Stockholm, "
        "Portugal Lisbon, Cuba Havana, Iran Tehran, Iraq Baghdad, Turkey Ankara, Canada Ottawa, Belgium Brussels, "
        "Ukraine Kiev, Peru Lima, Kenya Nairobi, Hungary Budapest, Korea Seoul, Denmark Copenhagen, Finland Helsinki"
    ),
}
"""Pairs of words of each task. What is capitalised are the words of classes that are written small."""
CAPITALISE = "capitalise"
NAMES = (CAPITALISE, *TASKS)
BEFORE, BETWEEN, AFTER = "Q:", "\nA:", "\n\n"


@dataclass(frozen=True)
class Task:
    """Pairs of ids (question, answer), no question and no answer in two of them, and what a prompt has around them."""

    name: str
    pairs: tuple[tuple[int, int], ...]
    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def positions(self, n_shots: int) -> int:
        """How many ids a prompt has, its answer counted, without a first token of the model's."""
        shot = len(self.before) + len(self.between) + 2
        return n_shots * (shot + len(self.after)) + shot

    def prompt(self, questions: Sequence[int], labels: Sequence[int]) -> list[int]:
        """Ids of a prompt: examples of these labels, and the last question with its label."""
        shots = [(*self.before, one, *self.between, other, *self.after) for one, other in zip(questions, labels, strict=True)]
        return [token for shot in shots for token in shot][: -len(self.after) or None]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Rows (n, positions) of one task that end with the answer: with its own labels, and with these shuffled."""

    clean: Ids
    shuffled: Ids


def prompts_of(task: Task, space: TokenSpace, n_shots: int, count: int, rng: np.random.Generator) -> Prompts:
    """So many prompts, each of other pairs: the answer is none of its labels."""
    clean, shuffled = [], []
    for _ in range(count):
        drawn = [task.pairs[number] for number in rng.permutation(len(task.pairs))]
        chosen = [drawn[0]]
        for one, other in drawn[1:]:  # the question is no label, and its answer no question, as letters would have it
            if one != chosen[0][1] and other != chosen[0][0] and len(chosen) <= n_shots:
                chosen.append((one, other))
        *shots, (question, answer) = reversed(chosen)
        labels = [other for _, other in shots]
        order = moved(len(shots), rng)
        questions = [*(one for one, _ in shots), question]
        clean.append(begun(space, np.array(task.prompt(questions, [*labels, answer]))))
        shuffled.append(begun(space, np.array(task.prompt(questions, [*(labels[place] for place in order), answer]))))
    return Prompts(np.array(clean, dtype=np.int64), np.array(shuffled, dtype=np.int64))


def moved(count: int, rng: np.random.Generator) -> list[int]:
    """The numbers below `count`, two or more, in an order in which none keeps its place, each such order equally likely."""
    while True:
        order: list[int] = rng.permutation(count).tolist()
        if all(number != place for place, number in enumerate(order)):
            return order


def tasks_of(space: TokenSpace, encode: Encode | None, tasks: Any = None, *, n_shots: int = N_SHOTS) -> tuple[Task, ...]:
    """The tasks that are asked for: all of this module, some by name, or pairs of one's own, of words or of ids.

    Raises `TextError` where words are asked for and there is no tokenizer, `ArgumentError` for what is no task, `ProbeError`
    where none has enough pairs of one token each, or the context is too short. Of several, those with too few are left out.
    """
    given = named_pairs(tasks)
    is_of_ids = all(isinstance(token, (int, np.integer)) for pairs in given.values() for pair in pairs for token in pair)
    if is_of_ids:
        found = [Task(name, _checked(name, pairs, space)) for name, pairs in given.items()]
    elif encode is None:
        raise TextError("few-shot tasks are of words, and there is no tokenizer: give it `tokenizer=`, or `tasks=` of token ids")
    else:
        found = _of_words(space, encode, given)
    fewest = n_shots + 1 + SET_ASIDE
    enough = tuple(task for task in found if len(task.pairs) >= fewest)
    if not enough:
        counted = ", ".join(f"{len(task.pairs)} of {len(given[task.name])} {task.name}" for task in found)
        raise ProbeError(f"few-shot prompts of {n_shots} examples need {fewest} pairs of one token each, found {counted}")
    longest = max(task.positions(n_shots) for task in enough) + (space.bos_id is not None)
    if space.n_ctx is not None and longest > space.n_ctx:
        raise ProbeError(f"few-shot prompts of {n_shots} examples need {longest} positions, the context has {space.n_ctx}")
    return enough


def named_pairs(tasks: Any = None) -> dict[str, list[tuple[Any, Any]]]:
    """The pairs of each task as they were given. Raises `ArgumentError` for what is none."""
    if tasks is None:
        tasks = NAMES
    if isinstance(tasks, Mapping):
        if not tasks:
            raise ArgumentError("`tasks` must be at least one task, got none")
        return {str(name): _pairs(str(name), pairs) for name, pairs in tasks.items()}
    names = (tasks,) if isinstance(tasks, str) else tasks
    if not isinstance(names, Iterable) or not (listed := list(names)):
        raise ArgumentError(f"`tasks` must be names of tasks, or pairs by name, got {tasks!r}")
    for name in listed:
        if name not in NAMES:
            raise ArgumentError(f"`tasks` must be of {', '.join(NAMES)}, or pairs by name, got {name!r}{meant(str(name), NAMES)}")
    return {name: own_pairs(name) for name in NAMES if name in listed}


def own_pairs(name: str) -> list[tuple[str, str]]:
    """The words of a task of this module."""
    if name != CAPITALISE:
        return [(one, other) for one, other in (pair.split() for pair in TASKS[name].split(", "))]
    words = [word for members in CLASSES.values() for word in members.split()]
    return [(word, word.capitalize()) for word in words if word.islower()]


def _pairs(name: str, pairs: Any) -> list[tuple[Any, Any]]:
    wanted = f"`tasks[{name!r}]` must be pairs of words, or of token ids"
    if isinstance(pairs, Mapping):
        pairs = pairs.items()
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise ArgumentError(f"{wanted}, got {pairs!r}")
    found = []
    for pair in pairs:
        both = () if isinstance(pair, str) or not isinstance(pair, Iterable) else tuple(pair)
        if len(both) != 2 or not (all(isinstance(each, str) for each in both) or not any(isinstance(each, str) for each in both)):
            raise ArgumentError(f"{wanted}, got {pair!r}")
        found.append(both)
    return found


def _checked(name: str, pairs: Sequence[tuple[Any, Any]], space: TokenSpace) -> tuple[tuple[int, int], ...]:
    """Pairs of ids as they were given; each question and each answer once."""
    usable = set(usable_ids(space).tolist())
    for pair in pairs:
        for token in pair:
            if whole_number(f"tasks[{name!r}]", token, least=0) not in usable:
                raise ArgumentError(f"`tasks[{name!r}]` must be of ids that a probe may use, below {space.d_vocab}, got {token}")
    for side in zip(*pairs, strict=True):
        if len(set(side)) < len(side):
            raise ArgumentError(f"`tasks[{name!r}]` must have each question and each answer once")
    return tuple((int(one), int(other)) for one, other in pairs)


def _of_words(space: TokenSpace, encode: Encode, given: Mapping[str, Sequence[tuple[str, str]]]) -> list[Task]:
    """Those pairs of which both words are one token, with a space before them where that makes more of them so."""
    usable = set(usable_ids(space).tolist())

    def single(word: str, lead: str) -> int | None:
        ids = encode(lead + word)
        return ids[0] if len(ids) == 1 and ids[0] in usable else None

    words = {word for pairs in given.values() for pair in pairs for word in pair}
    singles = {lead: {word: token for word in words if (token := single(word, lead)) is not None} for lead in (" ", "")}
    ids = max(singles.values(), key=len)
    around = {"before": tuple(encode(BEFORE)), "between": tuple(encode(BETWEEN)), "after": tuple(encode(AFTER))}
    return [Task(name, _single_pairs(ids, pairs), **around) for name, pairs in given.items()]


def _single_pairs(ids: Mapping[str, int], pairs: Iterable[tuple[str, str]]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for one, other in pairs:
        if one in ids and other in ids and ids[one] != ids[other]:
            pair = ids[one], ids[other]
            if all(pair[0] != known and pair[1] != label for known, label in found):
                found.append(pair)
    return tuple(found)
