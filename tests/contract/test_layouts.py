"""What every layout of `layouts.LAYOUTS` promises, on a sample of each; and that each promise can be broken."""

import json
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch

from pytest_induction.__main__ import main
from pytest_induction.errors import RunError
from pytest_induction.runs.checkpoints import layouts
from pytest_induction.runs.checkpoints.finding import find_checkpoints
from pytest_induction.runs.checkpoints.layout import Layout, Weights, is_weights, named
from pytest_induction.runs.checkpoints.layouts import LAYOUTS, expected, layout_at
from pytest_induction.runs.checkpoints.reading import fit, on_this_machine, stated_step
from pytest_induction.runs.opening import holds_checkpoints
from pytest_induction.runs.places import Place
from tests.contract import samples
from tests.contract.samples import class_of, write_layout
from tests.contract.stating import check_list, check_one_line
from tests.runs.small_models import make
from tests.runs.written_layouts import STEP, read_weights
from tests.unfit import in_memory, in_time

OF_TRANSFORMERS = ("Transformers", "Adapter", "Gguf")  # what makes the model is not a factory of the user's
READ = [kind for kind in samples.LAYOUTS if kind not in ("Megatron", *OF_TRANSFORMERS)]
DOCS = Path(__file__).parents[2] / "docs" / "runs.md"
IN_ITS_OWN = """
import json, sys
from pytest_induction.runs.checkpoints.finding import find_checkpoints
from pytest_induction.runs.checkpoints.layouts import layout_at
from pytest_induction.runs.places import Place

known = {}
for place in sys.argv[1:]:
    (found,) = find_checkpoints(place)
    known[place] = [type(layout_at(Place(found.place))).__name__, found.step, len(found.digest())]
heavy = [name for name in ("torch", "numpy", "transformers", "safetensors") if name in sys.modules]
print(json.dumps([known, heavy]))
"""


def refusal(call):
    """What a call is refused by: one line, in time, in little memory."""
    with pytest.raises(RunError) as caught, in_time(), in_memory(700):
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def weights_in(layout, path):
    """The files that a layout reads weights from, and what says where their pieces lie."""
    files = [path] if path.is_file() else [path / name for name in layout.parts(Place(path), Place(path).names())]
    return [each for each in files if is_weights(each.name) or each.suffix == ".distcp" or each.name == ".metadata"]


def check_damaged(layout, path):
    """Raise `AssertionError` unless each file of weights that is cut off, or is none, is refused in one line that names it."""
    for file in weights_in(layout, path):
        whole = file.read_bytes()
        for content in (b"", whole[: len(whole) // 2], b"no weights at all " * 99):
            file.write_bytes(content)
            for call in (layout.read, layout.step):
                try:
                    call(path)
                except RunError as error:
                    check_one_line(error, file.name if file.name in str(error) else path.name)
                except Exception as error:
                    raise AssertionError(f"{type(error).__name__} of a file that is damaged: {error}") from error
                else:
                    assert call != layout.read or layout.maker == "transformers", f"{file.name} is read though it is damaged"
        file.write_bytes(whole)


def check_foreign(layout, tmp_path):
    """Raise `AssertionError` where something that is no checkpoint is taken for one."""
    place = tmp_path / "holiday-2024"
    place.mkdir()
    for names in ([], ["photo-1.jpg", "notes.txt"], ["data.json", "data.csv", "archive.zip"], ["train.py", "README.md"]):
        for name in names:
            (place / name).write_bytes(b"x")
        assert not layout.fits(Place(place), Place(place).names()), f"{layout.name} takes a directory with {names}"
    for name in ("photo-1.jpg", "notes.txt", "archive.zip", "train.py"):
        assert not layout.fits(Place(place / name), []), f"{layout.name} takes {name}"


def check_found(kind, place):
    """Raise `AssertionError` unless the sample in a place is known by its own layout, with its step."""
    (checkpoint,) = find_checkpoints(place)
    assert checkpoint.step == STEP
    assert type(layout_at(Place(checkpoint.place))).__name__ == class_of(kind)
    assert holds_checkpoints(Place(place))
    assert stated_step(Place(checkpoint.place).local) in (None, STEP)


def check_listing(places):
    """Raise `AssertionError` where torch is loaded to list checkpoints, in a process of its own; what was found."""
    made = subprocess.run([sys.executable, "-c", IN_ITS_OWN, *map(str, places)], check=True, capture_output=True, text=True)
    known, heavy = json.loads(made.stdout)
    assert not heavy, f"listing checkpoints loads {', '.join(heavy)}"
    return known


def in_list(kind):
    return next(layout for layout in LAYOUTS if type(layout).__name__ == class_of(kind))


def test_every_layout_states_what_it_is_and_has_a_sample():
    kinds = [type(layout) for layout in LAYOUTS]
    written = {class_of(kind) for kind in samples.LAYOUTS}
    check_list(kinds, {kind.name for kind in kinds if kind.__name__ in written})
    assert written == {kind.__name__ for kind in kinds}
    for layout in LAYOUTS:
        assert layout.maker in ("factory", "transformers") and (layout.name in expected()) == layout.is_of_a_library


def test_the_help_of_the_command_and_the_documentation_name_every_layout(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    said, page = " ".join(capsys.readouterr().out.split()), DOCS.read_text()
    for layout in LAYOUTS:
        assert " ".join(layout.looks_like.split()) in said
        assert (f"{layout.name} (must be converted first" in said) is bool(layout.refusal)
        assert layout.name.removeprefix("Hugging Face ").removesuffix(" adapters").partition(" (")[0] in page


@pytest.mark.parametrize("kind", samples.LAYOUTS)
def test_a_checkpoint_is_found_with_its_step_and_known_by_its_layout(tmp_path, kind):
    write_layout(kind, tmp_path / "t")
    check_found(kind, tmp_path / "t")


@pytest.mark.parametrize("kind", READ)
def test_what_is_read_is_what_was_written(tmp_path, kind):
    weights = write_layout(kind, tmp_path / "t")
    (checkpoint,) = find_checkpoints(tmp_path / "t")
    read = read_weights(Place(checkpoint.place).local)
    fitted = fit(make(), read.tensors, "a")
    assert fitted.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(fitted[name], value) and fitted[name].dtype == value.dtype
    assert read.step in (None, STEP)


@pytest.mark.parametrize("kind", [kind for kind in samples.LAYOUTS if kind != "Megatron"])
def test_what_lies_elsewhere_is_read_as_what_lies_here(tmp_path, kind):
    write_layout(kind, tmp_path / "t")
    (here,) = find_checkpoints(tmp_path / "t")
    system = fsspec.filesystem("memory")
    system.store.clear()
    try:
        system.put(f"{tmp_path}/t/", f"/{tmp_path.name}/", recursive=True)
        if named(here.name) is None:
            assert "holds no checkpoints" in refusal(lambda: find_checkpoints(f"memory://{tmp_path.name}"))
            return
        (there,) = find_checkpoints(f"memory://{tmp_path.name}")
        assert there.step == (STEP if named(here.name).unit == "step" else 0) and there.digest() == here.digest()
        with on_this_machine(there) as path:
            if kind in READ:
                assert read_weights(path).tensors.keys() == read_weights(Place(here.place).local).tensors.keys()
    finally:
        system.store.clear()


@pytest.mark.parametrize("kind", samples.LAYOUTS)
def test_damaged_weights_are_refused_in_one_line(tmp_path, kind):
    write_layout(kind, tmp_path / "t")
    (checkpoint,) = find_checkpoints(tmp_path / "t")
    check_damaged(in_list(kind), Path(checkpoint.place))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: type(layout).__name__)
def test_what_is_no_checkpoint_is_none(tmp_path, layout):
    check_foreign(layout, tmp_path)


def test_listing_loads_no_torch(tmp_path):
    """Whatever lies there, as long as its name tells its step."""
    places = {}
    for kind in samples.LAYOUTS:
        try:
            write_layout(kind, tmp_path / kind)
        except pytest.skip.Exception:
            continue
        (checkpoint,) = find_checkpoints(tmp_path / kind)
        path = Path(checkpoint.place)
        places[str(tmp_path / kind)] = kind
        if (known := named(path.name)) is None or known.unit != "step":
            path.rename(path.with_name(f"step-{STEP}{path.suffix if path.is_file() else ''}"))
    known = check_listing(places)
    assert {place: found[:2] for place, found in known.items()} == {
        place: [class_of(kind), STEP] for place, kind in places.items()
    }


# That these can fail


class Careless(Layout):
    """Reads whatever stands there."""

    name = "careless"
    looks_like = "a file of numbers"
    is_of_a_library = False

    def fits(self, place, names):
        return not names and place.name.endswith(".pt")

    def read(self, path):
        return Weights({"a": torch.zeros(1)}, STEP)

    def step(self, path):
        return STEP


class Raises(Careless):
    """Fails with whatever torch says."""

    def read(self, path):
        return Weights(torch.load(path, weights_only=True))


class TakesAll(Careless):
    """Takes everything."""

    def fits(self, place, names):
        return True


def test_a_layout_that_reads_what_is_damaged_or_fails_otherwise_is_noticed(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "step-100.pt")
    with pytest.raises(AssertionError, match=r"step-100\.pt is read though it is damaged"):
        check_damaged(Careless(), tmp_path / "step-100.pt")
    torch.save({"a": torch.ones(3)}, tmp_path / "step-100.pt")
    with pytest.raises(AssertionError, match="Error of a file that is damaged"):
        check_damaged(Raises(), tmp_path / "step-100.pt")


def test_a_layout_that_takes_what_is_none_or_anothers_is_noticed(tmp_path, monkeypatch):
    with pytest.raises(AssertionError, match="careless takes a directory with"):
        check_foreign(TakesAll(), tmp_path)
    write_layout("Directory", tmp_path / "t")
    check_found("Directory", tmp_path / "t")
    monkeypatch.setattr(layouts, "LAYOUTS", (TakesAll(), *LAYOUTS))
    with pytest.raises(AssertionError):
        check_found("Directory", tmp_path / "t")


def test_a_listing_that_must_read_is_noticed(tmp_path):
    """Of a file whose name tells no step it does, to find that in it."""
    write_layout("TorchFile", tmp_path / "t")
    with pytest.raises(AssertionError, match="listing checkpoints loads torch"):
        check_listing([tmp_path / "t"])


def test_a_layout_without_a_sample_or_statement_is_noticed():
    kinds = [type(layout) for layout in LAYOUTS]
    with pytest.raises(AssertionError, match="careless"):
        check_list([*kinds, Careless], {kind.name for kind in kinds})
    with pytest.raises(TypeError, match="the class `Silent` must state `looks_like` and `name`"):
        type("Silent", (Layout,), {"fits": Careless.fits, "read": Careless.read})
