"""Pickles whose values are referred to so often that going through them would not end: each is refused in a line, at once."""

import io
import pickle
import time
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from pytest_induction.errors import ModelError, RunError
from pytest_induction.files import UnfitFileError
from pytest_induction.model import pickles
from pytest_induction.model.load import load_model
from pytest_induction.model.pickles import MOST_WORK, WORK_A_BYTE, check_pickle
from tests import unfit

from .written_layouts import NEEDS, WRITERS, read_weights, write

BEGIN = b"\x80\x02"
DEPTH = 40
DISTRIBUTED = "Distributed"


def tuples(wide=2, deep=DEPTH):
    """A tuple of the same tuple twice, and so on."""
    return b"(" * deep + b"K\x01\x85q\x00" + (b"h\x00" * (wide - 1) + b"tq\x00") * deep


def lists(deep=DEPTH):
    return b"](" * deep + b"]q\x00K\x01a" + b"h\x00eq\x00" * deep


def late_lists(deep=DEPTH):
    """The same, the outer ones filled while the inner ones are still empty."""
    made = b"".join(b"]q" + bytes([place]) for place in range(deep))
    return made + b"".join(b"(h" + bytes([place - 1]) + b"h" + bytes([place - 1]) + b"e0" for place in range(deep - 1, 0, -1))


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def instances(deep=DEPTH):
    """A frozen dataclass whose fields are such, twice the same."""
    made, state = b"h\x01)\x81", b"}(" + text("fqn")
    return (
        b"ctorch.distributed.checkpoint.metadata\nMetadataIndex\nq\x01)\x81"
        + state
        + (made + state) * deep
        + b"K\x01"
        + (text("offset") + b"K\x01" + text("index") + b"Nubq\x00")
        + (text("offset") + b"h\x00" + text("index") + b"Nubq\x00") * deep
    )


def fields(deep=DEPTH):
    """What numpy makes a type of, each field of the same fields twice."""
    inside = b"h\x00\x86eq\x00"
    return (b"](" + text("a")) * deep + b"]q\x00" + text("a") + text("f4") + b"\x86a" + (b"\x86" + text("b") + inside) * deep


HOSTILE = {
    "a key": b"}" + tuples() + b"K\x01s",
    "a key of few wide ones": b"}" + tuples(10, 15) + b"K\x01s",
    "a key among others": b"}(K\x01K\x02" + tuples() + b"K\x01u",
    "an element": b"\x8f(" + tuples() + b"\x90",
    "a frozen element": b"(" + tuples() + b"\x91",
    "what a set is made of": b"cbuiltins\nset\n]" + tuples() + b"a\x85R",
    "pairs": b"ccollections\nOrderedDict\n]" + tuples() + b"K\x01\x86a\x85R",
    "what is counted": b"ccollections\nCounter\n]" + tuples() + b"a\x85R",
    "a key by copies": b"}K\x01\x85" + b"2\x86" * DEPTH + b"K\x01s",
    "a text of lists": b"ctorch.torch_version\nTorchVersion\n" + lists() + b"\x85R",
    "a text of lists that were filled late": b"ctorch.torch_version\nTorchVersion\n" + late_lists() + b"h\x27\x85R",
    "a list that is called": lists() + b")R",
    "a class that is a list": lists() + b")\x81",
    "a state": b"ccollections\nOrderedDict\n)R" + lists() + b"b",
    "a storage": b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + lists() + b"X\x03\x00\x00\x00cpuK\x01tQ",
    "a list that was finished": b"]q\x00]h\x00ah\x00K\x01a",
    "fields of numpy": b"cnumpy\ndtype\n" + fields() + b"\x89\x88\x87R",
    "a key that is made of others": b"}" + instances() + b"K\x01s",
    "one wide key, often": b"(" + b"N" * 20_000 + b"tq\x00}(" + b"h\x00N" * 20_000 + b"u",
    "one large number as a key, often": b"\x8b\x00\x80\x00\x00" + b"\x01" * 2**15 + b"q\x00}(" + b"h\x00N" * 20_000 + b"u",
    "tuples without an end": b"})" + b"\x85" * 200_000 + b"K\x01s",
}
WHY = {
    "a text of lists that were filled late": "lie in themselves, or in each other",
    "a list that was finished": "adds to what it has finished",
    "tuples without an end": "more than 100 deep in each other",
}


def archive(path, content):
    with zipfile.ZipFile(path, "w") as made:
        for name, inside in (("data.pkl", content), ("version", "3\n"), ("byteorder", "little")):
            made.writestr(f"step_1/{name}", inside)
    return path


def of_old(path, state=None, keys=None):
    """The format before archives: five pickles, one after the other."""
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    first = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, about)]
    path.write_bytes(b"".join([*first, state or pickle.dumps({}, 2), keys or pickle.dumps([], 2)]))
    return path


def distributed(path, content):
    path.mkdir()
    (path / ".metadata").write_bytes(content)
    return path


FORMATS = {
    "archive": lambda place, content: archive(place / "step_1.pt", content),
    "of old": lambda place, content: of_old(place / "step_1.pt", content),
    "keys of storages": lambda place, content: of_old(place / "step_1.pt", keys=content),
    "distributed": lambda place, content: distributed(place / "step_1", content),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_be_gone_through_without_an_end_is_refused(tmp_path, kind, name):
    """Within a second, wherever a checkpoint has a pickle."""
    path = FORMATS[kind](tmp_path, BEGIN + HOSTILE[name] + b".")
    begun = time.process_time()
    said = unfit.refusal(lambda: read_weights(path), RunError)
    assert time.process_time() - begun < 1
    assert said.startswith(".metadata of step_1 cannot be read" if kind == "distributed" else "step_1.pt is no whole file")
    assert WHY.get(name, "so often that going through them would not end") in said


def test_a_model_with_such_weights_is_refused(tmp_path):
    """By what is asked before transformers reads it."""
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    archive(tmp_path / "pytorch_model.bin", BEGIN + HOSTILE["a key"] + b".")
    said = unfit.refusal(lambda: load_model(str(tmp_path)), ModelError)
    assert "pytorch_model.bin" in said and "so often" in said


def test_a_part_of_a_distributed_checkpoint_is_looked_at_too(tmp_path):
    write(DISTRIBUTED, tmp_path / "checkpoints")
    path = next(path for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    held = next(path.rglob("*.distcp"))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as made:
        made.writestr("archive/data.pkl", BEGIN + HOSTILE["a key"] + b".")
    held.write_bytes(content.getvalue().ljust(held.stat().st_size, b"\0"))
    unfit.refusal(lambda: read_weights(path), RunError)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_pass_in_every_protocol(protocol):
    """Also those that are nested, shared, or hold themselves; the end is that of the pickle."""
    shared, itself = ("a", (1.5, None)), ["itself"]
    shared_dict = OrderedDict(a=[shared])
    itself.append(itself)
    values = {
        "keys": {shared: 1, (shared, shared): 2, frozenset([shared, 7]): 3, "x" * 300: b"y" * 300, 2**70: -1, True: 1 + 2j},
        "lists": [[shared] * 5, {1, 2}, bytearray(b"z"), OrderedDict(a=shared), Counter("abca"), itself],
        "deep": nested(60),
        "same": {str(place): shared_dict for place in range(3000)},
        "many": list(range(3000)),
        "index": {MetadataIndex("a", torch.Size((0, 8)), 1): torch.float32},
    }
    content = pickle.dumps(values, protocol)
    assert check_pickle(b"--" + content + b"after", 2) == 2 + len(content)


def nested(depth, value="x"):
    for _ in range(depth):
        value = (value, 1)
    return value


def test_every_opcode_is_known():
    """Those that Python's pickle may write, and one that it may not is where reading ends."""
    import pickletools

    known = {*pickles._STEPS, *pickles._SKIPPED, *(getattr(pickle, name)[0] for name in FREQUENT.split())}
    assert known == {opcode.code.encode("latin1")[0] for opcode in pickletools.opcodes}
    assert check_pickle(b"\xff.") == check_pickle(b"") == check_pickle(b"(") == check_pickle(b"h\x07.") == -1


FREQUENT = "MEMOIZE BINGET LONG_BINGET BINPUT LONG_BINPUT MARK STOP"


@pytest.mark.parametrize("kind", sorted(set(WRITERS) - {"Megatron"}))
def test_what_trainers_write_is_far_from_the_bounds(tmp_path, monkeypatch, kind):
    """Of the work for each byte, and of the depth of tuples, a part."""
    monkeypatch.setattr(pickles, "MOST_WORK", 1000)
    monkeypatch.setattr(pickles, "WORK_A_BYTE", WORK_A_BYTE * 0.75)
    monkeypatch.setattr(pickles, "DEEPEST_TUPLE", 10)
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind])
    write(kind, tmp_path / "checkpoints")
    looked = 0
    for path in (tmp_path / "checkpoints").rglob("*"):
        for content in pickles_in(path):
            assert check_pickle(content) == len(content)
            looked += 1
    assert looked or kind != DISTRIBUTED


def pickles_in(path):
    if path.name == ".metadata":
        yield path.read_bytes()
    elif path.is_file() and zipfile.is_zipfile(path) and path.read_bytes()[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(path) as opened:
            yield from (opened.read(name) for name in opened.namelist() if name.endswith("data.pkl"))


def test_the_bounds_can_be_reached():
    """Work up to them passes, and the next is refused; so it is with the depth."""
    key = b"(" + b"N" * 1000 + b"tq\x00}("
    uses = b"h\x00N" * (MOST_WORK // 1001 + 1000)
    for count, passes in ((MOST_WORK // 1001, True), (MOST_WORK // 1001 + 1000, False)):
        content = key + uses[: 3 * count] + b"u."
        assert (MOST_WORK + WORK_A_BYTE * len(content) > 1001 * count) is passes
        if passes:
            assert check_pickle(content) == len(content)
        else:
            with pytest.raises(UnfitFileError, match="so often"):
                check_pickle(content)
    assert check_pickle(pickle.dumps(nested(pickles.DEEPEST_TUPLE))) > 0
    with pytest.raises(UnfitFileError, match="deep in each other"):
        check_pickle(pickle.dumps(nested(pickles.DEEPEST_TUPLE + 1)))


def test_a_pickle_without_an_end_is_refused(tmp_path, monkeypatch):
    """Of the format before archives, whose length is not known before."""
    from pytest_induction.model import tensor_files

    monkeypatch.setattr(tensor_files, "LONGEST_PICKLE", 200)
    of_old(tmp_path / "step_1.pt", BEGIN + b"](" + b"K\x01" * 300 + b"e.")
    assert "a pickle of 200 bytes and more" in unfit.refusal(lambda: read_weights(tmp_path / "step_1.pt"), RunError)
