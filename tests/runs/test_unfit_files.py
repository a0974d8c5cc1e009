"""Runs, logs and checkpoints that hold what no training writes: each is one line, within seconds and without much memory."""

import json
import pickle
import shutil
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pytest_induction import files
from pytest_induction.errors import RunError
from pytest_induction.model import pickles, tensor_files
from pytest_induction.runs import store
from pytest_induction.runs.checkpoints.finding import find_checkpoints
from pytest_induction.runs.checkpoints.reading import stated_step
from pytest_induction.runs.logs import read_log
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.store import RunWriter, read_run
from tests import unfit
from tests.unfit import UNFIT, in_memory, in_time, open_files, put

from .small_models import state
from .written_layouts import read_weights, write

GIGABYTES = 3 * 2**30
LINKED = [kind for kind in UNFIT if kind != "directory"]


def refusal(call):
    return unfit.refusal(call, RunError)


def snapshot(step):
    return Snapshot(step, loss=9.0 - step / 10, prefix_matching=np.full((2, 4), step / 100, dtype=np.float32))


@pytest.fixture
def run(tmp_path):
    with RunWriter(tmp_path / "run", source="recorder") as writer:
        for step in (0, 10, 20):
            writer.append(snapshot(step))
    return tmp_path / "run"


# Runs


@pytest.mark.parametrize(
    ("name", "kind"),
    [("snapshots.jsonl", "directory"), *((name, kind) for name in ("run.json", "snapshots.jsonl") for kind in LINKED)],
)
def test_a_part_of_a_run_that_is_no_file_is_refused_by_name(run, name, kind):
    (run / name).unlink()
    put(run / name, kind)
    for call in (lambda: load_run(run), lambda: RunWriter(run, source="recorder")):
        said = refusal(call)
        assert name in said and (f"is a {kind}" in said or "leads out of" in said)


@pytest.mark.parametrize("kind", UNFIT)
def test_a_lock_that_is_no_file_is_refused_by_name(run, kind):
    (run / "run.lock").unlink()
    put(run / "run.lock", kind)
    assert "no run can be written to" in refusal(lambda: RunWriter(run, source="recorder"))


@pytest.mark.parametrize("name", ["run.json", "snapshots.jsonl", "arrays"])
def test_a_link_that_leads_out_of_a_run_is_refused_by_name(run, tmp_path, monkeypatch, name):
    """To read it, to write it, and to write beside it; what it leads to stays as it is."""
    monkeypatch.setattr("pytest_induction.runs.lines.MOST_INLINE", 1)
    with RunWriter(run, source="recorder") as writer:
        writer.append(snapshot(30))
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to("../elsewhere")

    def contents():
        place = tmp_path / "elsewhere"
        return [each.read_bytes() for each in ([*place.iterdir()] if place.is_dir() else [place])]

    before = contents()
    if name == "arrays":
        assert "leads out of" in load_run(run).notes[0]
    else:
        assert "leads out of" in refusal(lambda: load_run(run))

    def go_on():
        with RunWriter(run, source="recorder") as writer:
            writer.append(snapshot(40))

    assert "leads out of" in refusal(go_on)
    assert contents() == before


def test_a_run_that_the_user_names_by_a_link_is_followed(run, tmp_path):
    (tmp_path / "link").symlink_to("run")
    assert len(load_run(tmp_path / "link")) == 3
    with RunWriter(tmp_path / "link", source="recorder") as writer:
        writer.append(snapshot(30))
    assert len(load_run(run)) == 4


@pytest.mark.parametrize("name", ["run.json.part", "run.lock"])
def test_a_planted_link_is_not_written_through(run, tmp_path, name):
    (tmp_path / "victim").write_text("mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to("../victim")
    with suppress(RunError), RunWriter(run, source="recorder") as writer:
        writer.describe(cost={"seconds": 1.0})
    assert (tmp_path / "victim").read_text() == "mine"


def test_many_lines_that_name_one_file_of_arrays_do_not_multiply_it(run, monkeypatch):
    monkeypatch.setattr("pytest_induction.runs.lines.MOST_INLINE", 1)
    with RunWriter(run, source="recorder") as writer:
        writer.append(snapshot(30))
    (arrays,) = (run / "arrays").iterdir()
    monkeypatch.setattr(store, "LARGEST_FILE", 3 * arrays.stat().st_size)
    last = (run / "snapshots.jsonl").read_text().splitlines()[-1]
    with (run / "snapshots.jsonl").open("a") as stream:
        stream.writelines(last.replace('"step":30', f'"step":{step}') + "\n" for step in range(40, 60))
    found = read_run(Place(run))
    assert [each.step for each in found.snapshots] == [0, 10, 20, 30, 40, 41, 42]
    assert "is named by many lines" in found.notes[0]


# Logs


@pytest.mark.parametrize("kind", LINKED)
@pytest.mark.parametrize(
    "name", ["log.jsonl", "log.csv", "log.log", "trainer_state.json", "events.out.tfevents.1", "run-1.wandb"]
)
def test_a_log_that_is_no_file_is_refused_by_name(tmp_path, name, kind):
    """Named itself, or found in the directory that is named."""
    pytest.importorskip("tensorboard")
    if name.endswith(".wandb"):
        pytest.importorskip("wandb")
    place = put(tmp_path / name, kind)
    for named in (place, tmp_path):
        said = refusal(lambda named=named: read_log(Place(named)))
        assert name in said and (f"is a {kind}" in said or "leads out of" in said)


@pytest.mark.parametrize("kind", ["FIFO", "socket", "character device"])
def test_a_metric_of_mlflow_that_is_no_file_is_refused_by_name(tmp_path, kind):
    metrics = tmp_path / "0" / "abc" / "metrics"
    metrics.mkdir(parents=True)
    (metrics / "accuracy").write_text("1 0.5 1\n")
    put(metrics / "loss", kind)
    said = refusal(lambda: read_log(Place(tmp_path)))
    assert "metrics/loss" in said and (f"it is a {kind}" in said or "leads out of" in said)


def test_a_tree_of_mlflow_is_gone_through_so_far(tmp_path, monkeypatch):
    """Links that lead back, or out, and directories without end."""
    metrics = tmp_path / "0" / "abc" / "metrics"
    metrics.mkdir(parents=True)
    (metrics / "loss").write_text("".join(f"1 {9 - step / 10} {step}\n" for step in range(20)))
    (metrics / "round").symlink_to("../metrics")
    (tmp_path / "0" / "again").symlink_to("..")
    (tmp_path / "0" / "usr").symlink_to("/usr")
    with in_time():
        found = read_log(Place(tmp_path), where={"run": "abc"}, columns={"loss": "loss"})
    assert len(found) == 20 and any("links that lead out of the directory" in note for note in found.notes)


def test_a_wide_table_is_refused_and_one_of_few_columns_read(tmp_path):
    (tmp_path / "wide.csv").write_text(
        "step," + ",".join(f"c{index}" for index in range(400_000)) + "\n1" + ",2" * 400_000 + "\n"
    )
    assert "400001 columns, expected at most 10000" in refusal(lambda: read_log(Place(tmp_path / "wide.csv")))
    row = json.dumps({"step": 1, **{f"c{index}": 1 for index in range(200_000)}})
    (tmp_path / "wide.jsonl").write_text(f"{row}\n" * 3)
    assert "more than 10000 columns" in refusal(lambda: read_log(Place(tmp_path / "wide.jsonl")))


def test_rows_full_of_lists_are_not_held(tmp_path):
    """A thousand rows of a log are looked at before it is clear what they are."""
    row = '{"step": %d, "loss": 1.5, "extra": [' + "[]," * 30_000 + "1]}\n"
    (tmp_path / "log.jsonl").write_text("".join(row % step for step in range(50)))
    with in_time(), in_memory(80):
        assert len(read_log(Place(tmp_path / "log.jsonl"))) == 50


def test_a_document_of_very_many_parts_is_refused(tmp_path):
    (tmp_path / "log.json").write_text('{"a": [' + "[]," * files.MOST_PARTS + "1]}")
    assert "it is JSON without a `log_history`" in refusal(lambda: read_log(Place(tmp_path / "log.json")))


def test_a_line_of_a_gigabyte_is_passed_over(tmp_path):
    place = tmp_path / "log.jsonl"
    with place.open("wb") as stream:
        stream.write(b'{"step": 1, "loss": 2.0}\n{"a": "')
        stream.seek(2**30)
        stream.write(b'"}\n{"step": 2, "loss": 1.5}\n')
    with in_time(), in_memory(300):
        found = read_log(Place(place))
    assert len(found) == 2 and "lines longer than" in found.notes[0]


def test_pieces_without_a_byte_cost_no_more_than_others(tmp_path):
    """Of records of W&B: each was counted again for every one that followed."""
    pytest.importorskip("wandb")
    content = bytearray(struct.pack("<4sHB", b":W&B", 0xBEE1, 0))
    pieces = [struct.pack("<IHB", zlib.crc32(b"", zlib.crc32(bytes([which]))), 0, which) for which in (2, 3)]
    content += pieces[0]
    for _ in range(60):
        while 2**15 - len(content) % 2**15 >= 7:
            content += pieces[1]
        content += bytes(2**15 - len(content) % 2**15)
    (tmp_path / "run-1.wandb").write_bytes(content)
    with in_time():
        assert "run-1.wandb" in refusal(lambda: read_log(Place(tmp_path / "run-1.wandb")))


# Checkpoints


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("name", ["step_1.pt", "step_1.safetensors"])
def test_a_checkpoint_that_is_no_file_is_refused_by_name(tmp_path, name, kind):
    place = put(tmp_path / name, kind)
    if kind != "directory":  # which may be one of its own
        said = refusal(lambda: read_weights(find_checkpoints(tmp_path)[0].place and place))
        assert name in said and (f"it is a {kind}" in said or "leads out of" in said)
        for call in (read_weights, stated_step):
            assert f"is a {kind}" in refusal(lambda call=call: call(place))


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "trainer_state.json", "model.safetensors.index.json"])
def test_a_part_of_a_checkpoint_that_is_no_file_is_refused_by_name(tmp_path, name, kind):
    place = tmp_path / "checkpoint-1"
    place.mkdir()
    if name == "trainer_state.json":
        save_file(state(1), place / "model.safetensors")
    put(place / name, kind)
    said = refusal(lambda: read_weights(place))
    assert name in said and (f"is a {kind}" in said or "leads out of" in said)


@pytest.mark.parametrize("kind", ["Distributed", "DeepSpeed"])
def test_a_part_of_a_nested_checkpoint_that_is_no_file_is_refused_by_name(tmp_path, kind):
    write(kind, tmp_path / "t")
    (checkpoint,) = find_checkpoints(tmp_path / "t")
    parts = [each for each in Path(checkpoint.place).rglob("*") if each.suffix in (".distcp", ".pt") or each.name == ".metadata"]
    assert parts
    for part in parts:
        part.unlink()
        put(part, "FIFO")
    assert "is a FIFO, expected a regular file" in refusal(lambda: read_weights(Path(checkpoint.place)))


def test_a_link_that_leads_out_of_the_checkpoints_is_refused_by_name(tmp_path):
    """Whether it is a file, a directory or a file in one; one that stays inside is followed, and one that is named."""
    place, outside = tmp_path / "checkpoints", tmp_path / "outside"
    for each in (place, outside / "checkpoint-3", place / "checkpoint-4"):
        each.mkdir(parents=True)
    torch.save(state(1), outside / "step_1.pt")
    save_file(state(3), outside / "checkpoint-3" / "model.safetensors")
    (place / "checkpoint-4" / "model.safetensors").symlink_to(outside / "checkpoint-3" / "model.safetensors")
    assert "model.safetensors cannot be read: it is a link that leads out of" in refusal(
        lambda: read_weights(place / "checkpoint-4")
    )
    for name in ("step_1.pt", "checkpoint-3"):
        (place / name).symlink_to(outside / name)
        assert f"{name} cannot be read: it is a link that leads out of" in refusal(lambda: find_checkpoints(place))
        (place / name).unlink()
    shutil.rmtree(place / "checkpoint-4")
    torch.save(state(2), place / "step_2.pt")
    (place / "data").symlink_to("/usr")
    (place / "last.ckpt").symlink_to("step_2.pt")
    assert [each.step for each in find_checkpoints(place)] == [2]
    (tmp_path / "link").symlink_to("checkpoints")
    assert [each.step for each in find_checkpoints(tmp_path / "link")] == [2]
    (tmp_path / "named.pt").symlink_to("checkpoints/step_2.pt")
    assert read_weights(tmp_path / "named.pt").tensors.keys() == state(2).keys()


def archive(path, pickled, *, data=b"", packed=False, many=0):
    """A file as torch writes it, by hand, with so many parts more."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as file:
        for name, content in (("data.pkl", pickled), ("byteorder", b"little"), ("data/0", data), ("version", b"3\n")):
            file.writestr(f"archive/{name}", content)
        for index in range(many):
            file.writestr(f"archive/data/{index + 1}", b"")


class Storage:
    """What a pickle of torch refers to as a storage."""

    def __init__(self, numel):
        self.id = ("storage", torch.FloatStorage, "0", "cpu", numel)


class Pickler(pickle._Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Storage) else None


class Call:
    """Pickles as a call of something."""

    def __init__(self, function, *given):
        self.call = (function, given)

    def __reduce__(self):
        return self.call


def pickled(value):
    import io

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(value)
    return stream.getvalue()


def tensor(numel, shape, stride, function=torch._utils._rebuild_tensor_v2):
    from collections import OrderedDict

    return Call(function, Storage(numel), 0, shape, stride, False, OrderedDict())


def test_a_small_file_that_asks_for_gigabytes_is_refused(tmp_path):
    """By the size of a storage, of a tensor of it, of plain bytes; in both formats of torch."""
    place, data = tmp_path / "step_1.pt", bytes(200_000)
    numel = GIGABYTES // 4
    for value, expected in (
        ({"a": tensor(numel, (numel,), (1,))}, f"a tensor would take {GIGABYTES} bytes, and the file has 200000 of it"),
        ({"a": tensor(50_000, (numel,), (0,))}, "numbers more than are stored"),
        ({"a": tensor(50_000, (2**60,) * 100_000, (1,))}, "a tensor of it has a shape that is none"),
        ({"a": tensor(10**5000, (1,), (1,))}, "has no size that is a number"),
        ({"a": tensor(50_000, (1,), (1,)), "b": Call(bytearray, GIGABYTES)}, f"it asks for {GIGABYTES} bytes"),
    ):
        archive(place, pickled(value), data=data)
        for call in (read_weights, stated_step):
            said = refusal(lambda call=call: call(place))
            assert said.startswith("step_1.pt is no whole file of weights: ") and expected in said
    torch.save({"a": torch.zeros(50_000)}, place, _use_new_zipfile_serialization=False)
    content = place.read_bytes().replace(b"M\x50\xc3", b"J\xff\xff\xff\x2f")
    place.write_bytes(content)
    assert f"its tensors would take {0x2FFFFFFF * 4} bytes" in refusal(lambda: read_weights(place))


def test_what_is_packed_into_an_archive_is_refused(tmp_path):
    """A bomb of zeros; and what torch would take for the numbers themselves."""
    place = tmp_path / "step_1.pt"
    archive(place, pickled({"a": tensor(2**26, (2**26,), (1,))}), data=bytes(2**28), packed=True)
    assert place.stat().st_size < 300_000
    assert "is compressed, which torch.save never does" in refusal(lambda: read_weights(place))


def test_an_archive_of_very_many_files_is_refused(tmp_path, monkeypatch):
    place = tmp_path / "step_1.pt"
    torch.save({f"w{index}": torch.zeros(1) for index in range(50)}, place)
    monkeypatch.setattr(tensor_files, "MOST_RECORDS", 40)
    assert "it is an archive of 5" in refusal(lambda: read_weights(place))
    monkeypatch.undo()
    monkeypatch.setattr(tensor_files, "LONGEST_LIST", 40)
    assert "whose list has" in refusal(lambda: read_weights(place))


def test_a_pickle_that_makes_very_many_lists_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_CONTAINERS", 10_000)
    place = tmp_path / "step_1.pt"
    archive(place, b"\x80\x02" + b"]" * (pickles.MOST_CONTAINERS + 1) + b".")
    assert "lists and tables" in refusal(lambda: read_weights(place))
    place.write_bytes(b"\x80\x02" + b"]" * (pickles.MOST_CONTAINERS + 1) + b".")
    assert "lists and tables" in refusal(lambda: read_weights(place))


def test_a_tensor_without_numbers_is_refused_by_name(tmp_path):
    place = tmp_path / "step_1.pt"
    torch.save({"a": torch.zeros(2), "far": torch.empty(10**12, device="meta")}, place)
    assert "`far` in step_1.pt has a shape and no numbers" in refusal(lambda: read_weights(place))
    thin = torch.sparse_coo_tensor([[0]], [1.0], (10**12,), check_invariants=True)
    torch.save({"a": torch.zeros(2), "thin": thin}, place)
    assert "`thin` in step_1.pt is of the layout torch.sparse_coo" in refusal(lambda: read_weights(place))


def test_a_file_of_very_many_tensors_is_refused_before_they_are_made(tmp_path, monkeypatch):
    """Each would take a while, and no model has as many in one file."""
    place = tmp_path / "step_1.safetensors"
    said = {
        f"layer.{index}.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4 * index, 4 * index + 4]}
        for index in range(100_000)
    }
    header = json.dumps(said).encode()
    place.write_bytes(struct.pack("<Q", len(header)) + header + bytes(400_000))
    assert "it has 100000 tensors, expected at most 50000" in refusal(lambda: read_weights(place))
    for is_new in (True, False):
        torch.save(
            {f"w{index}": torch.zeros(1) for index in range(30)}, tmp_path / "step_1.pt", _use_new_zipfile_serialization=is_new
        )
        with monkeypatch.context() as patched:
            patched.setattr(tensor_files, "MOST_TENSORS", 20)
            assert "it has 30 tensors, expected at most 20" in refusal(lambda: read_weights(tmp_path / "step_1.pt"))
        assert len(read_weights(tmp_path / "step_1.pt").tensors) == 30
    archive(tmp_path / "step_1.pt", b"", many=100_000)
    assert "it is an archive of 100004 files, expected at most" in refusal(lambda: read_weights(tmp_path / "step_1.pt"))


HEADERS = {
    "longer than the file": (struct.pack("<Q", 2**60), "its header would have"),
    "of gigabytes": (struct.pack("<Q", GIGABYTES), "expected at most"),
    "overlapping": ({"a": [0, 8], "b": [4, 12]}, "the bytes of `b` begin at 4, expected 8"),
    "beyond the end": ({"a": [0, 8], "b": [8, 2**40]}, "has 1099511627768 bytes"),
    "backwards": ({"a": [8, 0]}, "must have a `dtype`, a `shape` and two `data_offsets`"),
    "of another size": ({"a": [0, 12]}, "`a` of shape [2] and type F32 has 12 bytes"),
    "no object": (b"[1]", "its header must be an object"),
    "of very many axes": (
        json.dumps({"a": {"dtype": "F32", "shape": [2**62] * 10**5, "data_offsets": [0, 8]}}).encode(),
        "must have a `dtype`, a `shape` and two `data_offsets`",
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_of_safetensors_that_cannot_be_is_refused(tmp_path, case):
    said, expected = HEADERS[case]
    if isinstance(said, dict):
        said = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": span} for name, span in said.items()}).encode()
    content = said if len(said) == 8 else struct.pack("<Q", len(said)) + said + bytes(12)
    place = tmp_path / "step_1.safetensors"
    with place.open("wb") as stream:
        stream.write(content)
        if case == "of gigabytes":
            stream.truncate(2 * GIGABYTES)  # of which the disk has a few bytes
    for call in (read_weights, stated_step):
        assert expected in refusal(lambda call=call: call(place))


def test_what_a_distributed_checkpoint_says_of_its_pieces_is_held_against_them(tmp_path):
    """A shape that its pieces do not fill, and pieces that many tensors share, are refused before there is memory for them."""
    write("Distributed", tmp_path / "t")
    (checkpoint,) = find_checkpoints(tmp_path / "t")
    metadata = next(Path(checkpoint.place).rglob(".metadata"))
    original = metadata.read_bytes()
    about = pickle.loads(original)
    name = next(
        name for name, each in about.state_dict_metadata.items() if hasattr(each, "chunks") and not name.startswith("opt")
    )
    about.state_dict_metadata[name].size = torch.Size([2**32, 2**10])
    metadata.write_bytes(pickle.dumps(about))
    assert f"`{name}` in {Path(checkpoint.place).name} is not whole: it would take" in refusal(
        lambda: read_weights(Path(checkpoint.place))
    )
    about = pickle.loads(original)
    for index, info in list(about.storage_data.items()):
        about.storage_data[index].length = info.length * 10**6
    metadata.write_bytes(pickle.dumps(about))
    assert "more than there are" in refusal(lambda: read_weights(Path(checkpoint.place)))


def test_a_long_history_beside_weights_is_not_read_for_the_step(tmp_path):
    place = tmp_path / "checkpoint-7"
    place.mkdir()
    save_file(state(1), place / "model.safetensors")
    with (place / "trainer_state.json").open("w") as stream:
        stream.write('{"epoch": 1.0, "global_step": 7, "log_history": [')
        stream.write('{"loss": 1.5, "step": 1},' * (files.DOCUMENT // 24) + "{}]}")
    with in_time(), in_memory(300):
        assert stated_step(place) == 7 and read_weights(place).step == 7


def test_a_directory_of_very_many_names_is_refused(tmp_path, monkeypatch):
    for index in range(12):
        (tmp_path / f"step_{index}.pt").touch()
    monkeypatch.setattr("pytest_induction.runs.places.names_in", lambda path: files.names_in(path, 10))
    for call in (find_checkpoints, load_run):
        assert "holds more than 10 names" in refusal(lambda call=call: call(tmp_path))


def test_nothing_stays_open_after_a_refusal(tmp_path):
    place = tmp_path / "step_1.pt"
    archive(place, pickled({"a": tensor(2**40, (2**40,), (1,))}), data=bytes(100))
    refusal(lambda: read_weights(place))
    before = open_files()
    for _ in range(5):
        refusal(lambda: read_weights(place))
    assert open_files() == before
