"""Files as they should be, of every kind that is read: what mutations start from."""

import json
import math
import shutil
import struct
import zlib

import numpy as np

from pytest_induction.baselines.store import Field, Heads, Numbers, as_text
from pytest_induction.comparison.profiles import HeadInRole, HeadsProfile, Probed, TextScores
from pytest_induction.probes.sequences import ProbeSequence
from pytest_induction.records import ChartData, Provenance, TokenSpace
from pytest_induction.runs.picture import picture_of
from pytest_induction.runs.record import Hunted, Snapshot, TrainingRun
from pytest_induction.runs.store import RunWriter
from tests.conftest import FIXTURES
from tests.report.samples import nasty, provenance, session, small
from tests.runs.curves import log_steps, logistic

STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 300, 400, 500, 700, 1000]
LOSSES = [round(6 * step**-0.2, 4) for step in STEPS]


def run(count=24, seed=0):
    """A training that goes through its phase change, everything recorded."""
    rng, steps = np.random.default_rng(seed), log_steps(count)
    up = logistic(np.log10(steps), 2.5, 0.3)
    snapshots = []
    for index, step in enumerate(steps.tolist()):
        share, noise = up[index], rng.normal(size=40) * 0.01
        heads = {
            name: np.array([[0.05, 0.05 + 0.9 * share * (name != "first_token")], [0.02, np.nan]], dtype=np.float32)
            for name in ("prefix_matching", "excess", "previous_token", "duplicate_token", "first_token")
        }
        lines = {
            "loss": 6 - 2 * share - 0.1 * math.log10(step),
            "icl_score": -0.4 * share,
            "early_loss": 5.0,
            "late_loss": 5 - 0.4 * share,
            "first_loss": 6.0,
            "repeat_loss": 6 - 5 * share,
            "repeat_accuracy": 0.9 * share,
            "advantage": 5 * share,
        }
        arrays = {
            "icl_rows": (-0.4 * share + noise[:8]).astype(np.float32),
            "token_losses": (5 - share * np.arange(40) / 40 + noise).astype(np.float32),
            "index_losses": (5 - share * np.log(np.arange(2, 42)) / 4).astype(np.float32),
        }
        failing = () if share > 0.5 else (ProbeSequence((0, 5, 6, 5, 6), 2, 2, (1, 3), first=True),)
        hunts = {"completes_repeats(min_accuracy=0.5)": Hunted(20, failing, 2, 2, "it does not", 0.3)}
        errors = {"repeat_loss": 0.01, "icl_score": 0.02, "prefix_matching": np.full((2, 2), 0.01, dtype=np.float32)}
        snapshots.append(
            Snapshot(step, step * 2048, **lines, **heads, **arrays, errors=errors, hunts=hunts, n_sequences=8, seconds=0.5)
        )
    return snapshots


def training_run():
    return TrainingRun("made", tuple(run()), tokens_per_step=2048.0, icl_windows=((2, 6), (30, 40)))


def records(place):
    small_one, other = small(), nasty()
    drawn = picture_of(training_run())
    charts = (*small_one.charts, ChartData("run", "made", "5b7423e0dca2e18d", json.loads(json.dumps({**drawn, "about": "it"}))))
    put(place / "small" / "records.json", session(*small_one.tests, charts=charts).to_json())
    put(place / "nasty" / "records.json", other.to_json())


def run_directory(place):
    for name, source in (("recorder", "recorder"), ("sweep", "sweep")):
        about = {"model": "small", "backend": "sdpa", "n_layers": 2, "n_heads": 2, "dtype": "float32", "device": "cpu"}
        rest = {"seed": 0, "layers": ["a", "b"], "notes": ["a note"], "versions": {"torch": "2"}}
        header = {"tokens_per_step": 2048.0, "icl_windows": [[2, 6], [30, 40]], "first_token": 2, "cost": {"max_overhead": 0.05}}
        with RunWriter(place / name / "run", source=source, about={**about, **rest}, **header) as writer:
            for snapshot in run():
                writer.append(snapshot)
            writer.add_scheduled_change(100, "the learning rate")
        (place / name / "run" / "run.lock").unlink(missing_ok=True)


def profile():
    rng = np.random.default_rng(0)
    heads = tuple(
        HeadInRole(role, 0, place, {name: rng.uniform(0.3, 0.9, 12) for name in names})
        for place, (role, names) in enumerate(
            (("induction", ("prefix_matching", "excess")), ("previous_token", ("previous_token",)))
        )
    )
    behaviour = {"repeat_loss": rng.uniform(0, 1, 12), "repeat_accuracy": rng.uniform(0, 1, 12)}
    behaviour |= {"advantage": rng.normal(size=12), "first_loss": rng.uniform(4, 6, 12)}
    probed = Probed(0, 12, TokenSpace(64, 128, 0, frozenset({0, 1, 60, 61, 62})), (9, 10, 11), 4, "abc")
    return HeadsProfile(
        heads, behaviour, TextScores("abc", 64, 32, rng.normal(size=8), rng.uniform(1, 5, 8)), probed, provenance()
    )


def profiles(place):
    put(place / "own" / "profile.json", json.dumps(profile().to_dict()))
    put(place / "entry" / "profile.json", as_text(entries()))


def entries():
    return {
        "tests/test_a.py::test_b": Numbers({"loss": Field(1.5, 0.1), "L1H0.prefix_matching": Field(0.9)}, {"torch": "2"}),
        "heads": Heads(profile().to_dict(), {"torch": "2"}),
    }


def baselines(place):
    put(place / "one" / "baseline.json", as_text(entries()))


def logs(place):
    """Every format whose files need no package, and event files and W&B's where theirs is there."""
    rows = [
        {"step": step, "loss": loss, "learning_rate": 1e-3, "tokens": step * 512}
        for step, loss in zip(STEPS, LOSSES, strict=True)
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    put(place / "jsonl" / "log.jsonl", text)
    put(place / "csv" / "log.csv", "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n")
    put(place / "tsv" / "log.tsv", "\n".join(["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]) + "\n")
    put(place / "state" / "trainer_state.json", json.dumps({"global_step": 1000, "log_history": rows, "epoch": 1.0}))
    put(place / "lists" / "log.json", json.dumps({name: [row[name] for row in rows] for name in rows[0]}))
    put(place / "by-number" / "log.json", json.dumps({"loss": {str(row["step"]): row["loss"] for row in rows}}))
    put(place / "list" / "log.json", json.dumps(rows))
    put(place / "points" / "log.json", json.dumps([[1.0, row["step"], row["loss"]] for row in rows]))
    put(place / "columns" / "log.json", json.dumps({"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}))
    put(
        place / "ours" / "log.jsonl",
        "".join(
            f"{json.dumps({'step': row['step'], 'induction/prefix_matching': 0.4, 'icl_score': -0.2, **row})}\n" for row in rows
        ),
    )
    put(
        place / "plain" / "train.log",
        "".join(f"[10:00] step {row['step']}/1000: loss {row['loss']} | lr 1e-3, tokens 5k\n" for row in rows),
    )
    put(
        place / "thresholds" / "train.log",
        "".join(f" 10%|#   | {row['step']}/1000 [00:10<01:30, loss={row['loss']}]\r" for row in rows),
    )
    for metric in ("loss", "learning_rate"):
        lines = "".join(f"1700000000000 {row[metric]} {row['step']}\n" for row in rows)
        put(place / "mlflow" / "mlruns" / "0" / "abc" / "metrics" / metric, lines)
    put(place / "mlflow" / "mlruns" / "0" / "abc" / "tags" / "mlflow.runName", "mine")
    events(place / "events" / "events.out.tfevents.1", rows)
    wandb(place / "wandb" / "run-1.wandb", rows)


def events(path, rows):
    try:
        from tests.runs.event_files import begin, record, scalar
    except ImportError:
        return
    put(path, b"".join(map(record, [begin(1.0), *(scalar(row["step"], 2.0, loss=row["loss"]) for row in rows)])))


def wandb(path, rows):
    try:
        from wandb.proto import wandb_internal_pb2
    except ImportError:
        return
    content = b":W&B\xe1\xbe\x00"
    for row in rows:
        record = wandb_internal_pb2.Record()
        for name, value in row.items():
            record.history.item.add(key=name, value_json=json.dumps(value))
        data = record.SerializeToString()
        content += struct.pack("<IHB", zlib.crc32(data, zlib.crc32(b"\1")), len(data), 1) + data
    put(path, content)


def checkpoints(place):
    """Every layout whose writer is there."""
    from tests.runs import written_layouts

    for kind in set(written_layouts.WRITERS) - {"Megatron"}:  # which is refused whatever is in it
        try:
            written_layouts.write(kind, place / kind.replace(", ", "-") / "checkpoints")
        except ImportError:
            continue
    written_layouts.llama(place / "Sharded" / "checkpoints" / "checkpoint-100", max_shard_size="30KB")


def models(place):
    from tests.runs import written_layouts

    written_layouts.llama(place / "llama" / "model")
    shutil.copytree(FIXTURES / "models" / "gpt2-2l-virtual", place / "gpt2" / "model")


def gates(place):
    shutil.copyfile(FIXTURES / "demo.gates.toml", put(place / "demo" / "demo.gates.toml", ""))
    text = '[tool.pytest_induction.gates.small]\nmodel = "m"\nseed = 3\nmarks = ["slow"]\n'
    more = 'expect = { has_induction_head = { min_prefix_matching = 0.4 }, "no_induction_head" = {} }\n'
    put(place / "project" / "pyproject.toml", text + more)


def texts(place):
    put(place / "text" / "held_out.txt", "the cat sat on the mat. " * 60)


def nothing(place):
    put(place / "nothing" / "nothing", "")


def about():
    return Provenance("small", "abc", "sdpa", 2, 2, "float32", "cpu")


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path
