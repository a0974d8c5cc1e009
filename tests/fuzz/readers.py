"""Everything that is read, each with its files, and what is then done with what was read: judged, drawn, written again."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pytest_induction.errors import ExpectationFailed, InductionError

from . import seeds
from .mutating import words


@dataclass(frozen=True)
class Reader:
    """`write` makes files as they should be, a directory of each kind below a place; `read` takes one such directory."""

    write: Callable[[Path], None]
    read: Callable[[Path, random.Random], None]
    weight: int = 1
    is_mutated: bool = True


def records(place, rng):
    from pytest_induction.report.session_records import read_records
    from pytest_induction.report.writing import render

    path = place / "records.json"
    found = read_records(path)
    text = found.to_json()
    path.write_text(text)
    assert read_records(path).to_json() == text, "what was read and written is not what was read"
    render(path, place / "page.md")
    if rng.random() < 0.2:
        render(path, place / "page.html")


def run(place, rng):
    from pytest_induction.runs.opening import load_run

    judged(checked(load_run(place / "run")), rng)


def judged(found, rng):
    """All that is said and drawn of a run."""
    from pytest_induction.report.charts.run import run as charts
    from pytest_induction.report.charts.run_picture import svg
    from pytest_induction.runs.heads_over_training import assert_final_has_induction_head, assert_heads_kept, assert_log_is_sane
    from pytest_induction.runs.phase_change.claims import assert_cooccurrence, assert_phase_change
    from pytest_induction.runs.phase_change.order import assert_formation_order
    from pytest_induction.runs.picture import picture_of
    from pytest_induction.runs.transience import assert_no_transience

    others = [assert_cooccurrence, assert_heads_kept, assert_final_has_induction_head]
    others += [assert_formation_order, assert_no_transience]
    for judge in (assert_log_is_sane, assert_phase_change, rng.choice(others)):
        try:
            evidence = judge(found)
        except ExpectationFailed as failed:
            evidence = failed.evidence
            str(failed)
        except InductionError as error:
            one_line(error)
            continue
        type(evidence).from_dict(evidence.to_dict())
    try:
        picture = picture_of(found)
    except InductionError as error:
        one_line(error)
        return
    svg(picture)
    charts(picture)


def checked(found):
    """The same run, which is what one that was read must be, whatever it was read from."""
    assert (np.diff(found.steps) > 0).all(), "its steps do not rise"
    counted = [each.tokens for each in found.snapshots if each.tokens is not None]
    assert counted == sorted(counted), "its tokens fall"
    for each in found.snapshots:
        share = each.repeat_accuracy
        assert share is None or not np.isfinite(share) or -1e-3 <= share <= 1.001, "an accuracy is none"
        scores = each.prefix_matching
        assert scores is None or not ((scores < -0.2) | (scores > 1.2)).any(), "a share is none"
    return found


def one_line(error):
    assert "\n" not in str(error), f"a message of several lines: {str(error)[:300]!r}"


def logs(place, rng):
    from pytest_induction.runs.opening import load_run

    columns = {"loss": "value"} if place.name == "points" else None
    judged(checked(load_run(next(place.iterdir()), columns=columns)), rng)


def profiles(place, rng):
    from pytest_induction.comparison.profiles import HeadsProfile, read_profile

    found = read_profile(place / "profile.json")
    again = HeadsProfile.from_dict(found.to_dict())
    assert again.probed == found.probed
    found.first(12)


def baselines(place, rng):
    from pytest_induction.baselines.compare import compare
    from pytest_induction.baselines.store import Numbers, as_text, merge_into, read_baseline

    path = place / "baseline.json"
    found = read_baseline(path)
    text = as_text(found)
    merge_into(path, {"another": next(iter(seeds.entries().values())).to_dict()})
    assert len(as_text(read_baseline(path))) > len(text)
    for entry in found.values():
        if isinstance(entry, Numbers):
            str(compare(entry.fields, dict.fromkeys(entry.fields, 1.0)))


def checkpoints(place, rng):
    from pytest_induction.runs.checkpoints.finding import look_for
    from pytest_induction.runs.checkpoints.layouts import layout_at
    from pytest_induction.runs.places import Place

    for each in look_for(place / "checkpoints").checkpoints:
        each.digest()
        layout = layout_at(Place(each.place))
        if layout is None or layout.maker == "transformers":
            loaded(each.place)
        else:
            layout.read(Path(each.place))
            layout.step(Path(each.place))


def models(place, rng):
    loaded(str(place / "model"))


def loaded(spec):
    import torch

    from pytest_induction.model.load import load_model

    subject = load_model(spec, device="cpu", memory="100MB")
    subject.logits(torch.zeros(1, 8, dtype=torch.long))


def gates(place, rng):
    from pytest_induction.plugin.gates.table import holds_gates, read_gates

    [path] = place.iterdir()
    holds_gates(path.read_bytes())
    for gate in read_gates(path):
        assert all(each.problem or each.signature for each in gate.expectations)


def texts(place, rng):
    from pytest_induction.behaviour.text import read_text
    from pytest_induction.model.specs import check_text

    check_text(place / "held_out.txt")
    read_text(place / "held_out.txt")


def options(place, rng):
    """Values of options and names of models, each by what checks it."""
    from pytest_induction.charts.data import kinds_named
    from pytest_induction.model import specs
    from pytest_induction.runs.checkpoints.finding import parse_steps
    from pytest_induction.runs.logs import columns as choice

    checks = (
        *(specs.check_spec, specs.memory_size, specs.check_dtype, specs.check_device, specs.check_seed, specs.check_bound),
        *(specs.module_names, kinds_named, parse_steps, lambda text: specs.check_text(Path(text))),
        *(
            lambda text: choice.checked(choice.pairs("--column", [text])),
            lambda text: choice.checked(None, choice.pairs("--where", [text])),
        ),
    )
    for check_value in checks:
        try:
            check_value(words(rng, "hgbktmi:,=-"))
        except InductionError as error:
            one_line(error)


def hand_made(place, rng):
    """Runs that were read nowhere, with numbers as large, small and strange as there are."""
    from pytest_induction.runs.record import NUMBERS, TrainingRun

    sizes = (0.0, 1e-300, 1e-12, 1.0, 5.0, 1e6, 1e30, 3e38, -3e38, 1e308, np.nan, np.inf, -np.inf)
    snapshots = list(seeds.run(count=rng.choice((2, 3, 8, 12, 24, 60)), seed=rng.randrange(100)))
    for name in rng.sample(NUMBERS, rng.randrange(1, 5)):
        shape = rng.randrange(5)
        one, other = rng.choice(sizes), rng.choice(sizes)
        for index, snapshot in enumerate(snapshots):
            value = {0: one, 1: one if index % 2 else other, 2: one * index, 3: one if index < 5 else other, 4: None}[shape]
            snapshots[index] = replace(snapshot, **{name: value})
    if rng.random() < 0.3:
        scale = np.float32(rng.choice((0.0, 1e-30, 1e10, 1e30)))
        snapshots = [
            replace(each, token_losses=each.token_losses * scale, index_losses=each.index_losses * scale) for each in snapshots
        ]
    if rng.random() < 0.2:
        steps = rng.choice(([0, 1], [0, 2**62], [2**62, 2**62 + 1], [2**53 - 1, 2**53]))
        snapshots = [replace(each, step=step, tokens=None) for each, step in zip(snapshots, steps, strict=False)]
    judged(TrainingRun("made by hand", tuple(snapshots), tokens_per_step=rng.choice((None, 1.0, 1e-12, 1e30))), rng)


READERS = {
    "records": Reader(seeds.records, records, 6),
    "run": Reader(seeds.run_directory, run, 5),
    "logs": Reader(seeds.logs, logs, 6),
    "profiles": Reader(seeds.profiles, profiles, 2),
    "baselines": Reader(seeds.baselines, baselines, 2),
    "checkpoints": Reader(seeds.checkpoints, checkpoints, 5),
    "models": Reader(seeds.models, models, 1),
    "gates": Reader(seeds.gates, gates, 2),
    "texts": Reader(seeds.texts, texts, 1),
    "options": Reader(seeds.nothing, options, 2, is_mutated=False),
    "hand-made runs": Reader(seeds.nothing, hand_made, 2, is_mutated=False),
}
