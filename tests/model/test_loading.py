"""Models by name: directories with their tokenizers, factories, and what may be drawn from their vocabularies."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import pytest_induction as induction
from pytest_induction.errors import ModelError, TextError
from pytest_induction.probes.sequences import usable_ids
from tests.conftest import SHIPPED

CHARACTERS = [chr(code) for code in range(32, 126)]  # ids 3 to 96; 97 to 127 have no token


@pytest.fixture
def with_tokenizer(tmp_path):
    """The shipped Llama with a tokenizer of single characters, which knows fewer ids than the embedding has rows."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    place = Path(shutil.copytree(SHIPPED["llama"], tmp_path / "model"))
    vocabulary = {token: index for index, token in enumerate(["<bos>", "<eos>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>").save_pretrained(
        place
    )
    return place


def test_a_tokenizer_beside_the_weights_reads_the_text(with_tokenizer):
    """Text becomes ids without special tokens; rows begin with the model's own first token."""
    model = induction.load_model(str(with_tokenizer))
    assert model.encode("abc") == [68, 69, 70]
    text = "the same words again and again, the same words again and again. " * 60
    try:
        found = induction.assert_learns_in_context(model, text)
    except induction.ExpectationFailed as failure:
        found = failure.evidence
    assert found.provenance.n_sequences == len(text) // 63 // 2  # every second row tells


def test_probes_use_no_special_id_and_no_row_beyond_the_tokenizer(with_tokenizer):
    """What the tokenizer does not know was never trained."""
    model = induction.load_model(str(with_tokenizer))
    assert usable_ids(model.space).tolist() == list(range(3, 97))
    assert induction.assert_has_induction_head(model).verdict is induction.Verdict.SHOWN


def test_a_broken_tokenizer_does_not_keep_a_model_from_being_measured(with_tokenizer):
    """Probes are ids; only text needs it, and says so."""
    (with_tokenizer / "tokenizer.json").write_text("{")
    model = induction.load_model(str(with_tokenizer))
    assert induction.measure_heads(model).prefix_matching.shape == (2, 4)
    with pytest.raises(TextError, match="has no tokenizer"):
        model.encode("abc")


def test_a_tokenizer_that_knows_next_to_nothing_is_none(with_tokenizer, monkeypatch):
    """One made up where its files are missing would bar nearly every id from the probes."""
    import transformers

    class MadeUp:
        all_special_ids = (0, 1, 2)

        def __len__(self):
            return 4

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: MadeUp())
    model = induction.load_model(str(with_tokenizer))
    assert model.tokenizer is None
    assert len(usable_ids(model.space)) == 127


def test_special_ids_of_the_configuration_are_left_out(tmp_path):
    """Lists of end tokens too."""
    place = Path(shutil.copytree(SHIPPED["llama"], tmp_path / "model"))
    settings = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**settings, "eos_token_id": [5, 6], "pad_token_id": 9, "bos_token_id": 4}))
    (place / "generation_config.json").unlink()
    space = induction.load_model(str(place)).space
    assert (space.bos_id, space.excluded) == (4, {4, 5, 6, 9})


def test_a_factory_may_be_named_by_module(tmp_path, monkeypatch):
    """Anything that can be imported."""
    (tmp_path / "mine_by_name.py").write_text(
        "from tests.known_heads import Planted, induction\ndef make():\n    return Planted(induction)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert induction.assert_has_induction_head("mine_by_name:make").provenance.model == "mine_by_name:make"
    with pytest.raises(ModelError, match=r"mine_by_name has no factory `other` to call"):
        induction.load_model("mine_by_name:other")
    with pytest.raises(ModelError, match=r"'nonesuch.module:make' cannot be made: ModuleNotFoundError"):
        induction.load_model("nonesuch.module:make")


def test_a_file_of_factories_finds_its_neighbours_and_leaves_the_path_alone(tmp_path):
    """As it would when run, and nothing stays on the path."""
    (tmp_path / "beside_it.py").write_text("from tests.known_heads import Planted, induction\n")
    (tmp_path / "factory_file.py").write_text("from beside_it import Planted, induction\ndef make(): return Planted(induction)\n")
    before = list(sys.path)
    induction.load_model(f"{tmp_path}/factory_file.py:make")
    assert sys.path == before


def test_the_loader_is_quiet_and_keeps_the_users_settings(capfd):
    """No progress bars, and what the user had set afterwards."""
    from transformers.utils import logging

    logging.enable_progress_bar()
    logging.set_verbosity_info()
    try:
        induction.load_model(SHIPPED["llama"])
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
        assert capfd.readouterr() == ("", "")
    finally:
        logging.set_verbosity_warning()


@pytest.mark.parametrize("thing", [None, 3, np.zeros(3), object()])
def test_what_is_no_model_at_all_is_one_line(thing):
    """What it may be, and what it was."""
    with pytest.raises(ModelError, match=r"a model must be a torch module or a string \(a local directory"):
        induction.load_model(thing)


def test_the_evidence_says_where_it_comes_from():
    """Model, weights, backend, precision, device, seed, probe and versions."""
    about = induction.measure_heads(SHIPPED["llama"], seed=3).provenance
    assert (about.model, about.backend, about.dtype, about.device, about.seed) == (SHIPPED["llama"], "sdpa", "float32", "cpu", 3)
    assert (about.n_layers, about.n_heads, about.n_sequences) == (2, 4, 24)
    assert about.probe.endswith("4 copies")
    assert len(about.fingerprint) == 16
    assert {"python", "torch", "numpy", "transformers", "pytest-induction"} <= about.versions.keys()
    plain = induction.measure_heads(SHIPPED["llama"]).to_dict()
    assert json.loads(json.dumps(plain)) == plain


def test_without_transformers_a_directory_is_one_line_and_a_factory_still_works(monkeypatch):
    """What is missing, and how to get it."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"needs transformers: pip install 'pytest-induction\[transformers\]'"):
        induction.load_model(SHIPPED["llama"])
    assert induction.load_model(SHIPPED["two-layers"]).n_layers == 2
