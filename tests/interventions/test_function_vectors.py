"""Function-vector scores: by a loop over whole passes with a hook, on random models, and on a planted one whose answer is known."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from pytest_induction import load_model, measure_function_vectors
from pytest_induction.errors import ArgumentError, ModelError, ProbeError, TextError
from pytest_induction.interventions import few_shot
from pytest_induction.interventions.few_shot import Patches, shown
from pytest_induction.model.prefix import Prefix, continues
from pytest_induction.planted import few_shot_head, induction_head, uniform_head
from pytest_induction.probes.few_shot import N_SHOTS, Task, own_pairs, prompts_of, tasks_of
from pytest_induction.records import TokenSpace

SIZES = {"d_vocab": 33, "n_ctx": 48, "n_heads": 2}
TASKS = few_shot_head(**SIZES).tasks
SPACE = TokenSpace(d_vocab=33, bos_id=0)
TASK = Task("a", tuple(TASKS["task 1"]))


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=33, n_positions=48, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    return GPT2LMHeadModel(config).double().eval()


def llama():
    torch.manual_seed(0)
    sizes = {"vocab_size": 33, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 48}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.3)).double().eval()


MODELS = {"gpt2": (gpt2, lambda model, layer: model.transformer.h[layer].attn.c_proj)}
MODELS["llama"] = (llama, lambda model, layer: model.model.layers[layer].self_attn.o_proj)


@pytest.fixture(params=MODELS)
def both(request):
    """A random model under test, and the output projections of its layers."""
    make, projection = MODELS[request.param]
    subject = load_model(make())
    return subject, [projection(subject.module, layer) for layer in range(2)]


@pytest.fixture(scope="module")
def planted():
    return load_model(few_shot_head(**SIZES))


def given_to(projections, model, row):
    """What the output projection of each layer is given in a plain pass over a prompt, (positions, width), and its logits."""
    kept = []
    hooks = [part.register_forward_pre_hook(lambda part, args: kept.append(args[0][0])) for part in projections]
    with torch.no_grad():
        logits = model(row[None, :-1]).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return kept, logits


def one_by_one(subject, projections, seen, prompts):
    """The log probability of each answer with each head patched, by one whole pass of the module for each."""
    model, n_heads = subject.module, subject.n_heads
    means = [torch.stack([given_to(projections, model, row)[0][layer][-1] for row in prompts]).mean(0) for layer in range(2)]
    found = np.empty((len(seen.rows), 2, n_heads))
    for number, row in enumerate(seen.rows):
        for layer in range(2):
            for head in range(n_heads):
                width = means[layer].shape[0] // n_heads
                part = slice(head * width, (head + 1) * width)

                def patch(module, args, layer=layer, part=part):
                    changed = args[0].clone()
                    changed[0, -1, part] = means[layer][part]
                    return (changed,)

                hook = projections[layer].register_forward_pre_hook(patch)
                with torch.no_grad():
                    logits = model(row[None, :-1]).logits[0, -1]
                hook.remove()
                found[number, layer, head] = logits.log_softmax(-1)[row[-1]]
    return found


def seen_by(subject):
    own, other = (prompts_of(TASK, subject.space, 3, 2, np.random.default_rng(seed)) for seed in (0, 1))
    return own, shown(subject, TASK, own, other)


def test_patches_are_those_of_whole_passes_both_ways(both):
    """By one token after a prefix, and by passes that begin at the head's layer; with own labels and with shuffled ones."""
    subject, projections = both
    own, seen = seen_by(subject)
    assert continues(subject) and Patches(subject).by_prefix
    wanted = [one_by_one(subject, projections, seen, rows) for rows in (torch.from_numpy(own.clean), seen.rows)]
    for by_prefix in (True, False):
        found = Patches(subject, by_prefix=by_prefix).log_p(seen.rows, [seen.found, seen.null])
        np.testing.assert_allclose(found.reshape(2, 2, 2, -1), wanted, atol=1e-9)
    assert np.ptp(wanted) > 0.1


def test_what_is_seen_of_a_task_is_what_plain_passes_give(both):
    """Answers, and the mean of what heads find over the prompts' own positions, without that of the answer."""
    subject, projections = both
    own, seen = seen_by(subject)
    plain = [given_to(projections, subject.module, torch.from_numpy(row)) for row in own.clean]
    right = [logits.log_softmax(-1)[row[-1]] for (_, logits), row in zip(plain, own.clean, strict=True)]
    np.testing.assert_allclose(seen.own.log_p, right, atol=1e-9)
    for layer in range(2):
        mean = torch.stack([given[layer].mean(0) for given, _ in plain]).mean(0)
        assert torch.allclose(seen.mean[layer].flatten(), mean, atol=1e-9)


def test_a_model_that_takes_no_prefix_is_patched_in_whole_passes(planted):
    assert not continues(planted) and not Patches(planted).by_prefix
    assert continues(load_model(gpt2()))


def test_a_prefix_that_gives_something_else_is_not_taken(monkeypatch):
    """Whatever a cache does: logits are held against those of a whole pass."""
    real = Prefix.logits
    monkeypatch.setattr(Prefix, "logits", lambda self, rows, tokens, first=0: real(self, rows, tokens) + 0.1)
    assert not continues(load_model(gpt2()))


def test_the_planted_head_alone_carries_the_tasks(planted):
    """It has all that labels give, every other head nothing, and the mean of shuffled prompts is worth nothing."""
    scores = measure_function_vectors(planted, tasks=TASKS, n_sequences=4)
    best, other = scores.heads[:2]
    gain = np.mean([task.probability - task.shuffled_probability for task in scores.tasks.values()])
    assert str(best) == "L2H0" and best.score.value == pytest.approx(gain, abs=1e-6) and gain > 0.9
    assert best.log_score == pytest.approx(np.log(0.9953 / 0.0174), abs=0.05)
    assert other.score.value < 0.05 and scores.null_max < 0.05
    assert all(task.is_done and task.accuracy == 1 and task.shuffled_accuracy == 0 for task in scores.tasks.values())
    assert scores.per_sequence["score"].shape == (12, 3, 2)
    assert scores.to_dict()["tasks"]["task 1"]["score"][2][0] == pytest.approx(best.score.value, abs=0.05)


@pytest.mark.parametrize("make", [uniform_head, induction_head])
def test_heads_of_a_model_that_does_no_task_have_no_score(make):
    """And every task is named, with what the model makes of it."""
    scores = measure_function_vectors(make(d_vocab=33, n_ctx=48, n_heads=2), tasks={"one": TASKS["task 1"]})
    assert np.isnan(scores.score).all() and scores.heads == () and scores.tasks["one"].score is None
    assert any(note.startswith("not done by this model, and left out: one (accuracy 0.") for note in scores.provenance.notes)
    assert scores.to_dict()["score"][0][0] is None and scores.null_max == 0


def test_answers_that_are_no_numbers_are_refused():
    model = gpt2()
    subject = load_model(model)
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(ModelError, match=r"not finite \(NaN or infinity\) on few-shot prompts"):
        seen_by(subject)
    assert few_shot.MIN_ACCURACY == few_shot.MOST_LEFT == 0.5


def test_prompts_end_with_the_answer_and_shuffled_ones_have_no_label_of_their_own():
    task = Task("t", TASK.pairs, (30,), (31,), (32,))
    found, known = prompts_of(task, SPACE, 3, 20, np.random.default_rng(0)), dict(TASK.pairs)
    assert found.clean.shape == found.shuffled.shape == (20, 1 + task.positions(3))
    for clean, shuffled in zip(found.clean, found.shuffled, strict=True):
        assert clean[0] == 0 and clean[1] == 30 and clean[3] == 31 and clean[5] == 32
        questions, labels, dealt = clean[2::5], clean[4::5], shuffled[4::5]
        assert [known[question] for question in questions] == labels.tolist() and len(set(questions)) == 4
        assert (clean[2::5] == shuffled[2::5]).all() and dealt[-1] == labels[-1] and (dealt[:-1] != labels[:-1]).all()
        assert sorted(dealt) == sorted(labels)


def test_a_question_is_no_label_of_its_prompt():
    """As in tasks whose answers are questions too, such as the next letter."""
    task = Task("next", tuple((token, token + 1) for token in range(1, 12)))
    for row in prompts_of(task, SPACE, 5, 50, np.random.default_rng(0)).clean:
        shots, question, answer = row[1:-2], row[-2], row[-1]
        assert question not in shots[1::2] and answer not in shots[::2]


class Words:
    """A tokenizer that has some words, with a space before them, as one token each, and single characters else."""

    def __init__(self, words):
        self.ids = {word: number for number, word in enumerate(words, start=10)}

    def encode(self, text):
        return [self.ids[text]] if text in self.ids else [1 + ord(letter) % 8 for letter in text]


def encode(*names):
    pairs = [pair for name in names for pair in own_pairs(name)]
    return Words(sorted({f" {word}" for pair in pairs for word in pair})).encode


def test_words_that_are_one_token_make_the_tasks():
    """Of all that are listed here those that this tokenizer has; every one has enough pairs, and none twice."""
    space = TokenSpace(d_vocab=1000)
    found = tasks_of(space, encode("antonym", "next number"))
    assert [task.name for task in found] == ["antonym", "next number"]
    assert len(found[1].pairs) == 12 and found[1].pairs[0][1] == found[1].pairs[1][0]
    assert found[0].before == tuple(1 + ord(letter) % 8 for letter in "Q:")
    for name in ("antonym", "past tense", "plural", "next letter", "country capital", "capitalise"):
        pairs = own_pairs(name)
        assert len(pairs) >= 25 and len({one for one, _ in pairs}) == len({other for _, other in pairs}) == len(pairs), name


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ("antonyms", "`tasks` must be of capitalise, antonym, .*got 'antonyms'; did you mean `antonym`"),
        ([], "`tasks` must be names of tasks, or pairs by name"),
        ({}, "`tasks` must be at least one task, got none"),
        ({"a": "hot cold"}, r"`tasks\['a'\]` must be pairs of words, or of token ids, got 'hot cold'"),
        ({"a": [("hot", 3)]}, r"`tasks\['a'\]` must be pairs of words, or of token ids, got \('hot', 3\)"),
        ({"a": [(1, 2, 3)]}, r"`tasks\['a'\]` must be pairs of words, or of token ids"),
        ({"a": [(1, 99)]}, r"`tasks\['a'\]` must be of ids that a probe may use, below 33, got 99"),
        ({"a": [(0, 3)]}, r"`tasks\['a'\]` must be of ids that a probe may use"),
        ({"a": [(1, 2), (1, 3)]}, r"`tasks\['a'\]` must have each question and each answer once"),
    ],
)
def test_what_is_no_task_is_one_line(tasks, said):
    with pytest.raises(ArgumentError, match=said) as caught:
        tasks_of(SPACE, None, tasks)
    assert "\n" not in str(caught.value)


def test_too_few_pairs_or_positions_are_one_line():
    with pytest.raises(ProbeError, match="of 5 examples need 8 pairs of one token each, found 2 of 2 a"):
        tasks_of(SPACE, None, {"a": [(1, 2), (3, 4)]})
    with pytest.raises(ProbeError, match="of 5 examples need 13 positions, the context has 12"):
        tasks_of(TokenSpace(33, n_ctx=12, bos_id=0), None, TASKS)
    with pytest.raises(TextError, match="few-shot tasks are of words, and there is no tokenizer"):
        tasks_of(SPACE, None, n_shots=N_SHOTS)
