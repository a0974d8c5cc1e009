"""What a claim is, and how one is registered, found and loaded. Standard library only: a record loads nothing.

Claims name their functions by path, so that the list of all of them costs no torch. The list is `claims.py`: import from there.
"""

from __future__ import annotations

import ast
import functools
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from sys import modules
from typing import Any, Literal

from pytest_induction.errors import ArgumentError, meant
from pytest_induction.head_score import HeadScore

GROUP = "pytest_induction.claims"  # of entry points
PREFIX = "assert_"
NAME = re.compile(r"[a-z][a-z0-9_]*")
MODEL, RUN = "model", "run"
Subject = Literal["model", "pair of models", "run", "pair of runs", "family"]
SUBJECTS: Mapping[str, tuple[str, str]] = {
    "model": (MODEL, "model"),
    "pair of models": (MODEL, "after"),
    "run": (RUN, "run"),
    "pair of runs": (RUN, "treated"),
    "family": ("", "family"),
}
"""Subject -> what a gate must have for it, and as which parameter the assertion takes that."""
Need = Literal["text", "reference", "bound", "baseline", "asking"]
OF_SCORES = "pytest_induction.heads.own:assert_head_score"
"""The assertion of claims that have a score and no assertion of their own; it takes the claim as `claim=`."""
OF_HEADS = "heads."
"""What a claim is decided by, where that is a measure of its strongest head: "heads.prefix_matching"."""
ABOUT_SCORES = {
    "no_head_has_it": "see what every head has of it with `measure_heads(model)`; a lower threshold is `min_score=`",
    "score_unclear": "draw more sequences with `max_sequences=`; the threshold is `min_score=`",
}
"""What to do where a claim that has a score is not shown."""
BOTH_SIDES = "±"
"""Before a threshold that an estimate must not leave to either side."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim, and all that follows from it.

    `name` is its name everywhere: of its gate, its line in reports, its JUnit properties; its assertion is called `assert_NAME`.
    `asserts` says it in a sentence. `assertion` is the path of that function ("package.module:function") or the function itself;
    it takes the `subject` first, everything else by name, and returns `Evidence` through `expect`. A claim that some head has a
    score has the `score` instead, and what of the rest follows from it. `argument` is the parameter that takes what a gate is
    about, where it is not called like the subject. `denies` names a claim whose absence this one claims: same evidence, SHOWN
    where that is REFUTED.

    `decided_by` are beginnings of names of estimates, the first that is there decides; "heads.prefix_matching" is that of the
    strongest head. `estimates` is what a message calls all of them. `held_against` says by which argument an estimate is judged
    where the names do not ("±max_lag": to both sides); a key that ends in "*" is the beginning of a name. `next_steps` is what to
    do, by reason. `columns` are those that a report shows of heads, all that are known unless it names some; `chart` is the kind
    of chart that shows most of it.

    `needs` is what must be given before a gate is collected for a model or run that is named on the command line: "text",
    "reference", "bound", "baseline"; "asking" keeps it to tests and gate files. `reads` is what of a log must be there.
    `arguments` are what every gate gives the assertion, `collected_with` those that are collected so alone. `more` is a page of
    the documentation.
    """

    name: str
    asserts: str
    assertion: str | Callable[..., Any] = ""
    score: HeadScore | None = None
    subject: Subject = "model"
    argument: str = ""
    denies: str = ""
    decided_by: tuple[str, ...] = ()
    estimates: str = "behaviour"
    held_against: Mapping[str, str] = field(default_factory=dict)
    next_steps: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    chart: str = ""
    needs: tuple[Need, ...] = ()
    reads: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    collected_with: Mapping[str, Any] = field(default_factory=dict)
    more: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.score, HeadScore):
            given = {"decided_by": (self.score.name,), "chart": "heads"}
            for name in (each for each in given if not getattr(self, each)):
                object.__setattr__(self, name, given[name])  # the record is frozen
            object.__setattr__(self, "next_steps", ABOUT_SCORES | dict(self.next_steps))

    @property
    def method(self) -> str:
        """The name of its assertion, in the package and on the fixture `induction`."""
        return f"{PREFIX}{self.name}"

    @property
    def about(self) -> str:
        """What a gate must have for it: "model", "run", or "" where it is about several."""
        return SUBJECTS[self.subject][0]

    @property
    def parameter(self) -> str:
        """The parameter of the assertion that takes what a gate is about."""
        return self.argument or SUBJECTS[self.subject][1]

    @property
    def path(self) -> str:
        """Where the assertion is, as "module:function"."""
        if isinstance(self.assertion, str):
            return self.assertion or OF_SCORES
        return f"{self.assertion.__module__}:{getattr(self.assertion, '__qualname__', self.assertion)}"

    def function(self) -> Callable[..., Any]:
        """The assertion, loaded where it is not yet. Raises `ArgumentError`, one line, where it cannot be."""
        if not isinstance(self.assertion, str):
            return self.assertion
        module, _, name = self.path.partition(":")
        try:
            found: Callable[..., Any] = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ArgumentError(f"claim `{self.name}`: {self.path} cannot be loaded: {error}") from None
        return found if self.assertion else functools.partial(found, claim=self)


_CLAIMS: dict[str, Claim] = {}


def register_claim(claim: Claim) -> Claim:
    """Add a claim to those that tests, gates, reports and baselines know, after those that are there. Returns it.

    Called in a conftest.py, or by an entry point of the group `pytest_induction.claims`, which names a `Claim`, a list of them or
    a function that gives them. A file that is read twice puts its claim in the place of the one before. Raises `ArgumentError`,
    one line, for a name that is taken or cannot be one, and for an assertion that does not exist; nothing is loaded to see that.

    >>> register_claim(Claim(name="attends_to_dots", asserts="some head finds the last dot", assertion="dots:assert_it"))
    Traceback (most recent call last):
    pytest_induction.errors.ArgumentError: claim `attends_to_dots`: there is no module `dots`, which `assertion` names
    """
    _check(claim)
    _CLAIMS[claim.name] = claim
    return claim


def claims(about: str | None = None) -> tuple[Claim, ...]:
    """Every claim, in the order of reports; with `about` those about a "model" or a "run"."""
    return tuple(claim for claim in _CLAIMS.values() if about in (None, claim.about))


def claim_named(name: str) -> Claim | None:
    """The claim of that name; None where nobody has registered one, as of records that others made."""
    return _CLAIMS.get(name)


def place_of(name: str) -> int:
    """Where a claim stands in reports; after all others where it is not known."""
    return next((place for place, known in enumerate(_CLAIMS) if known == name), len(_CLAIMS))


def next_step_for(name: str, reason: str, about: str) -> str:
    """What to do about a reason: what the claim itself says, else one of the same subject, whose reasons it takes over; or ""."""
    own = _CLAIMS.get(name)
    others = (each for each in _CLAIMS.values() if each.about in (about, ""))
    return next((each.next_steps[reason] for each in (*([own] if own else []), *others) if reason in each.next_steps), "")


def head_scores() -> tuple[HeadScore, ...]:
    """The scores of registered claims, in the order in which they were registered."""
    return tuple(dict.fromkeys(claim.score for claim in _CLAIMS.values() if claim.score is not None))


def score_files() -> Mapping[str, str]:
    """The file that each score of a registered claim is written in, by its name; for processes that have to register it too."""
    return {score.name: score.measure.__code__.co_filename for score in head_scores() if hasattr(score.measure, "__code__")}


def snapshot() -> Mapping[str, Claim]:
    """All claims as they are now, for `restore`."""
    return dict(_CLAIMS)


def restore(known: Mapping[str, Claim]) -> None:
    """Forget what was registered since."""
    _CLAIMS.clear()
    _CLAIMS.update(known)


def register_installed() -> None:
    """Register what other distributions bring. Raises `ArgumentError`, one line that names the entry point that is broken."""
    for entry in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        try:
            for claim in _given_by(entry):
                if _CLAIMS.get(claim.name) != claim:  # loaded before, by this process
                    register_claim(claim)
        except Exception as error:  # noqa: BLE001 - whatever a package of somebody else's raises
            message = str(error).partition("\n")[0] or type(error).__name__
            kind = "" if isinstance(error, ArgumentError) else f"{type(error).__name__}: "
            raise ArgumentError(
                f"the entry point `{entry.name}` of {GROUP} ({entry.value}) brings no claim: {kind}{message}"
            ) from None


def _given_by(entry: EntryPoint) -> Iterable[Claim]:
    """The claims of an entry point: one, several, or what a function gives."""
    found = entry.load()
    if not isinstance(found, (Claim, list, tuple)) and callable(found):
        found = found()
    given = [found] if isinstance(found, Claim) else found
    if not isinstance(given, (list, tuple)) or not all(isinstance(each, Claim) for each in given):
        raise ArgumentError(f"expected a `Claim`, a list of them or a function that gives them, got {type(found).__name__}")
    return given


def _check(claim: Claim) -> None:
    """Raise `ArgumentError`, one line, for a claim that cannot be registered."""
    if not isinstance(claim, Claim):
        raise ArgumentError(f"`register_claim` takes a `Claim`, got `{type(claim).__name__}`")
    what = f"claim `{claim.name}`"
    if not NAME.fullmatch(claim.name):
        raise ArgumentError(
            f"{what}: `name` must be small letters, digits and `_`, beginning with a letter, such as attends_to_dots"
        )
    if claim.name in _CLAIMS and _origin(_CLAIMS[claim.name]) != _origin(claim):
        raise ArgumentError(f"{what}: the name is taken, by {_CLAIMS[claim.name].path}; choose another")
    if claim.subject not in SUBJECTS:
        raise ArgumentError(f"{what}: `subject` must be one of {', '.join(SUBJECTS)}, got {claim.subject!r}")
    if claim.denies and claim.denies not in _CLAIMS:
        raise ArgumentError(f"{what}: there is no claim `{claim.denies}` to deny{meant(claim.denies, _CLAIMS)}")
    if claim.score is not None:
        _check_score(what, claim)
    if not claim.assertion and claim.score is None:
        raise ArgumentError(f"{what}: it needs an `assertion`, such as 'package.module:{claim.method}', or a `score`")
    if isinstance(claim.assertion, str) and claim.assertion:
        _check_path(what, claim.assertion)
    elif claim.assertion and not callable(claim.assertion):
        raise ArgumentError(f"{what}: `assertion` must be a function or its path, got {claim.assertion!r}")


def _origin(claim: Claim) -> tuple[str, str]:
    """Where the functions of a claim are written: a file that is imported twice, under two names, has the same claims twice."""
    function = claim.score.measure if isinstance(claim.score, HeadScore) else claim.assertion
    code = getattr(function, "__code__", None)
    return getattr(code, "co_filename", ""), getattr(function, "__qualname__", str(function))


def _check_score(what: str, claim: Claim) -> None:
    score = claim.score
    if not isinstance(score, HeadScore):
        raise ArgumentError(f"{what}: `score` must be a `HeadScore`, got `{type(score).__name__}`")
    names = {each.score.name: each.name for each in _CLAIMS.values() if each.score is not None and each.score is not score}
    if names.get(score.name, claim.name) != claim.name:
        raise ArgumentError(f"{what}: claim `{names[score.name]}` has a score `{score.name}` already: choose another name")


def _check_path(what: str, path: str) -> None:
    module, colon, name = path.partition(":")
    if not colon or not name.isidentifier():
        raise ArgumentError(f"{what}: `assertion` is written 'package.module:function', got {path!r}")
    if module.startswith("pytest_induction."):  # ours; a test looks at each
        return
    if module in modules:
        names: Iterable[str] = vars(modules[module])
    else:
        source = source_of(module)
        if source is None:
            raise ArgumentError(f"{what}: there is no module `{module}`, which `assertion` names")
        names = _names_in(source)
    if name not in names:
        raise ArgumentError(f"{what}: there is no function `{name}` in {module}, which `assertion` names{meant(name, names)}")


def source_of(module: str) -> str | None:
    """The source of a module that is not loaded for it; None where there is no such module, or it has none."""
    try:
        spec = find_spec(module)
        if spec is None:
            return None
        if (get := getattr(spec.loader, "get_source", None)) is not None:
            source: str | None = get(module)
            return source
        if not spec.has_location or spec.origin is None:
            return None
        with tokenize.open(spec.origin) as file:  # pytest's own loader, of modules whose assertions it rewrites
            return file.read()
    except (ImportError, ValueError, AttributeError, OSError, SyntaxError):
        return None


def _names_in(source: str) -> list[str]:
    """What a module has at its top level, as far as its source tells."""
    return list(_bound_in(ast.parse(source).body))


def _bound_in(body: Iterable[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (each.asname or each.name for each in node.names)
        elif isinstance(node, ast.Assign):
            yield from (each.id for each in node.targets if isinstance(each, ast.Name))
