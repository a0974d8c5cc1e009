"""Sequences that repeat by meaning only: held against what they are said to be, by loops over their tokens."""

import numpy as np
import pytest

from pytest_induction.errors import ArgumentError, ProbeError
from pytest_induction.planted.meaning import consecutive
from pytest_induction.probes.semantic import FAMILIES, MOST_ROUNDS, Meanings, chosen_families, followers
from pytest_induction.probes.words import CLASSES, LANGUAGES, PAIRS_ENOUGH, PATTERN_CLASSES, Words
from pytest_induction.records import TokenSpace

SPACE = TokenSpace(d_vocab=64, n_ctx=64, bos_id=0, excluded=frozenset({0}))
CLASS_OF = {token: (token - 1) // 6 for token in range(1, 61)}
WORD_OF = {token: (token - 1) % 31 for token in range(1, 63)}  # ids 1 to 31 are one language, 32 to 62 the other


def drawn(family, seed=0, n_sequences=13, space=SPACE, **given):
    return Meanings(space, None, **given).families([family])[family].probes(space, n_sequences, np.random.default_rng(seed))


def rows_of(probes):
    """Every row with its control, answers and shape."""
    for probe in probes:
        assert len(probe.tokens) == len(probe.control) == len(probe.right) == len(probe.wrong) == len(probe.contrasts)
        yield from zip(probe.tokens.tolist(), probe.control.tolist(), probe.right, probe.wrong, probe.contrasts, strict=True)


def lines_of(tokens):
    """The lines of a row of patterns: where each begins, its category and its label; a word's class is its id's sixth."""
    assert len(tokens) % 16 == 1
    return [
        (start, (CLASS_OF[tokens[start]], CLASS_OF[tokens[start + 1]]), tokens[start + 3]) for start in range(1, len(tokens), 4)
    ]


def by_loops(family, tokens):
    """Where a head that matches by meaning looks from each query, from the definition: {query: keys}."""
    found = {}
    if family == "patterns":
        lines = lines_of(tokens)
        for number, (start, category, _) in enumerate(lines):
            keys = [at + step for at, other, _ in lines[:number] if other == category for step in range(4)]
            if keys:
                found[start + 2] = tuple(keys)
        return found
    meaning = CLASS_OF if family == "classes" else WORD_OF
    for query in range(len(tokens)):
        keys = [
            place + 1
            for place in range(query)
            if tokens[query] and tokens[place] and meaning[tokens[place]] == meaning[tokens[query]]
        ]
        if keys:
            found[query] = tuple(keys)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_key_is_that_of_the_definition(family, seed):
    """For every query; of translations only where the next word of the phrase was foretold, as a loop over both texts says."""
    for tokens, _, right, wrong, _ in rows_of(drawn(family, seed)):
        wanted = by_loops(family, tokens)
        if family == "translation":
            foretold = {
                query: keys
                for query, keys in wanted.items()
                if query + 1 < len(tokens) and WORD_OF[tokens[query + 1]] == WORD_OF[tokens[keys[0]]]
            }
            assert set(right) <= set(foretold) and right == {query: wanted[query] for query in right}
            assert len(right) >= len(wanted) // 2
        else:
            assert right == wanted
        for query, keys in right.items():
            assert len(wrong[query]) == len(set(wrong[query])) == len(keys)
            assert not set(wrong[query]) & set(keys) and max(wrong[query]) < query


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_repeats_literally_and_the_control_has_no_meaning_at_the_same_places(family, seed):
    """The control has the same tokens at other places, and a head that matches by meaning finds none of the right places."""
    for tokens, control, right, _, _ in rows_of(drawn(family, seed)):
        words = (
            tokens[1:]
            if family != "patterns"
            else [token for place in range(1, len(tokens), 4) for token in tokens[place : place + 2]]
        )
        assert len(set(words)) == len(words) and 0 not in tokens[1:] and tokens[0] == 0
        assert sorted(control) == sorted(tokens) and control != tokens
        moved = by_loops(family, control)
        for query, keys in right.items():
            assert not set(moved.get(query, ())) & set(keys)


def test_a_control_that_keeps_the_meaning_would_be_seen():
    """The guard above fails on the sequence itself."""
    tokens, _, right, _, _ = next(rows_of(drawn("classes")))
    moved = by_loops("classes", tokens)
    assert all(set(moved[query]) & set(keys) for query, keys in right.items())


def test_shapes_and_distances_vary():
    """Periods and lengths over a round, distances from query to key within each translated text; labels and classes of lines."""
    assert len({probe.tokens.shape[1] for probe in drawn("classes")}) >= 4
    assert len({probe.tokens.shape[1] for probe in drawn("translation")}) >= 4
    for _, _, right, _, _ in rows_of(drawn("translation")):
        assert len({query - keys[0] for query, keys in right.items()}) > 1
    firsts = {tokens[1] > 31 for tokens, *_ in rows_of(drawn("translation"))}
    assert firsts == {False, True}  # either language comes first
    colons = {tokens[3] for tokens, *_ in rows_of(drawn("patterns"))}
    assert len(colons) > 3
    classes = {frozenset(each for _, pair, _ in lines_of(tokens) for each in pair) for tokens, *_ in rows_of(drawn("patterns"))}
    assert len(classes) > 3 and {len(each) for each in classes} == {4}  # other classes in each sequence


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_draws_the_same_and_another_does_not(family):
    first, again, other = ([probe.tokens.tolist() for probe in drawn(family, seed)] for seed in (5, 5, 6))
    assert first == again != other
    assert sum(len(rows) for rows in first) == 13


def test_labels_follow_from_the_classes_of_both_words():
    """Four categories, as often each in every round, and a label of its own for each; in the control labels stay and words move."""
    for tokens, control, *_ in rows_of(drawn("patterns")):
        lines, moved = lines_of(tokens), lines_of(control)
        label_of = {category: label for _, category, label in lines}
        assert len(label_of) == len(set(label_of.values())) == 4
        assert all(label_of[category] == label for _, category, label in lines)
        for start in range(0, len(lines), 4):
            assert len({category for _, category, _ in lines[start : start + 4]}) == 4
        assert [label for *_, label in moved] == [label for *_, label in lines]
        for label in label_of.values():
            categories = [category for _, category, other in moved if other == label]
            assert len(set(categories)) == len(categories) == 3


def test_contrasts_are_of_queries_with_one_right_place():
    """The token there against one at a wrong place, and what each means without itself; as many in each row."""
    for family in ("classes", "translation"):
        meaning = CLASS_OF if family == "classes" else WORD_OF
        for tokens, _, right, wrong, contrasts in rows_of(drawn(family)):
            assert [each.query for each in contrasts] == [query for query, keys in right.items() if len(keys) == 1]
            for each in contrasts:
                places = right[each.query][0], wrong[each.query][0]
                for place, literal, semantic in zip(places, each.literal, each.semantic, strict=True):
                    assert literal == (tokens[place],)
                    assert set(semantic) == {t for t in meaning if meaning[t] == meaning[tokens[place]]} - {tokens[place]}
    for tokens, _, right, _, contrasts in rows_of(drawn("patterns")):
        lines = lines_of(tokens)
        assert len(contrasts) == 3 and not any(each.semantic != ((), ()) for each in contrasts)
        for each in contrasts:
            assert len(right[each.query]) == 4
            asked, others = each.literal
            seen = [label for start, _, label in lines if start + 3 < each.query]
            assert asked == (tokens[each.query + 1],) and all(seen.count(label) == 1 for label in (*asked, *others))


def test_followers_tell_literal_matches_from_those_of_the_class():
    """On random tokens with repeats, tokens of no class among them."""
    rng = np.random.default_rng(0)
    meaning = {token: token // 3 for token in range(9)}
    for tokens in rng.integers(0, 12, (20, 25)).tolist():
        literal, semantic = followers(tokens, meaning)
        for query, token in enumerate(tokens):
            earlier = range(query)
            same = tuple(place + 1 for place in earlier if tokens[place] == token)
            alike = tuple(
                p + 1 for p in earlier if token < 9 and tokens[p] < 9 and tokens[p] != token and tokens[p] // 3 == token // 3
            )
            assert literal.get(query, ()) == same and semantic.get(query, ()) == alike


def test_chance_is_that_of_attending_evenly():
    """The mean over queries of the share of positions that are right."""
    (probe,) = drawn("patterns", n_sequences=2)
    assert probe.tokens.shape == (2, 49)
    rows = [np.mean([len(keys) / (query + 1) for query, keys in row.items()]) for row in probe.right]
    assert probe.chance == pytest.approx(np.mean(rows)) and 0.1 < probe.chance < 0.25


def test_short_contexts_and_small_vocabularies_get_smaller_probes():
    """Fewer copies, shorter texts, two rounds; no first token where there is none."""
    space = TokenSpace(d_vocab=40, n_ctx=33, bos_id=None)
    for family in FAMILIES:
        for probe in drawn(family, space=space):
            assert probe.tokens.shape[1] <= 33 and probe.right[0]
            assert probe.tokens.min() >= 0 and probe.tokens.max() < 40
    large = TokenSpace(d_vocab=4000)
    assert 72 < max(probe.tokens.shape[1] for probe in drawn("classes", space=large)) <= 100  # four copies of up to 25
    assert max(probe.tokens.shape[1] for probe in drawn("patterns", space=large)) == 48


def test_a_model_without_a_tokenizer_gets_the_split_that_planted_heads_have():
    """Ids next to each other, with a note that they may mean nothing; none where meanings are given."""
    for d_vocab in (12, 40, 64, 500):
        meanings = Meanings(TokenSpace(d_vocab, bos_id=0), None)
        assert list(meanings.families(["classes"])["classes"].classes) == list(consecutive(d_vocab))
        assert len(meanings.notes) == 1 and "`classes=`" in meanings.notes[0]
    both = Meanings(SPACE, None)
    both.families(FAMILIES)
    assert len(both.notes) == 2
    given = Meanings(SPACE, None, classes=[[1, 2], [3, 4]], pairs={5: 6})
    assert given.families(["translation"])["translation"].pairs == ((5, 6),) and not given.notes
    assert Meanings(SPACE, None, classes={"one": [1, 2]}).families(["classes"])["classes"].classes == ((1, 2),)


class Tokenizer:
    """Every listed word is one token, with a space before it where `lead` says so; what is in `split` is two."""

    def __init__(self, lead=" ", split=()):
        listed = " ".join(CLASSES.values()).split() + " ".join(LANGUAGES.values()).replace(",", "").split()
        words = [lead + word for word in dict.fromkeys(listed) if word not in split]
        self.ids = {text: number for number, text in enumerate([*words, ":", "\n", "0", "1", "2", "3"], start=1)}

    def __call__(self, text):
        return [self.ids[text]] if text in self.ids else [0, 0]

    @property
    def space(self):
        return TokenSpace(d_vocab=len(self.ids) + 1, bos_id=0)


@pytest.mark.parametrize("lead", [" ", ""])
def test_words_of_one_token_are_found_with_or_without_a_space(lead):
    """Classes and pairs have no id twice, and lines end where the tokenizer has an end of line."""
    tokenizer = Tokenizer(lead)
    words = Words(tokenizer)
    classes = words.classes()
    assert {name: len(ids) for name, ids in classes.items()} == {name: len(text.split()) for name, text in CLASSES.items()}
    assert classes["animals"][0] == tokenizer.ids[f"{lead}dog"]
    flat = [token for ids in classes.values() for token in ids]
    assert len(set(flat)) == len(flat)
    language, pairs, listed = words.pairs()
    assert language in LANGUAGES and listed == len(LANGUAGES[language].split(", "))
    assert len(pairs) == PAIRS_ENOUGH and len({token for pair in pairs for token in pair}) == 2 * len(pairs)
    families = Meanings(tokenizer.space, tokenizer).families(FAMILIES)
    (probe,) = families["patterns"].probes(tokenizer.space, 2, np.random.default_rng(0))
    row = probe.tokens[0].tolist()
    assert [tokenizer.ids[text] for text in (":", "\n")] == [row[3], row[5]] and row[4] in [
        tokenizer.ids[str(n)] for n in range(4)
    ]
    class_of = {token: name for name in PATTERN_CLASSES for token in classes[name]}
    of_lines = {(class_of[row[start]], class_of[row[start + 1]]) for start in range(1, len(row), 5)}
    assert len(of_lines) == 4 and [len(set(column)) for column in zip(*of_lines, strict=True)] == [2, 2]
    assert all(len(keys) % 5 == 0 for keys in probe.right[0].values())
    assert not Meanings(tokenizer.space, tokenizer).notes


def english(language):
    """The English words of a list."""
    return [pair.split()[0] for pair in LANGUAGES[language].split(", ")]


def foreign(language):
    """The other words of a list."""
    return {pair.split()[1] for pair in LANGUAGES[language].split(", ")}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_language_with_more_words_is_taken(language):
    """Where no word of the others is one token, nor one that both have."""
    others = {word for name in LANGUAGES if name != language for word in foreign(name)}
    assert Words(Tokenizer(split=others)).pairs().language == language


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_list_of_two_languages_has_each_word_once_and_none_of_the_other_language(language):
    """Whatever the case; words for things come first, and there are more than enough of them."""
    listed = LANGUAGES[language].split(", ")
    assert all(len(pair.split()) == 2 for pair in listed) and len(listed) > 3 * PAIRS_ENOUGH
    ours, theirs = ([word.casefold() for word in words] for words in zip(*map(str.split, listed), strict=True))
    assert len(set(ours)) == len(ours) and len(set(theirs)) == len(theirs)
    known = {word.casefold() for name in LANGUAGES for word in english(name)}
    known |= {word.casefold() for words in CLASSES.values() for word in words.split()}
    assert not set(theirs) & known
    assert not {"and", "the", "of", "not", "is"} & set(ours[: 2 * PAIRS_ENOUGH])


def test_no_word_is_in_two_classes():
    """Nor twice in one; and the classes of lines are among them, each with words for all rounds."""
    words = [word.casefold() for listed in CLASSES.values() for word in listed.split()]
    assert len(set(words)) == len(words)
    assert set(PATTERN_CLASSES) <= set(CLASSES) and min(len(CLASSES[name].split()) for name in PATTERN_CLASSES) >= 2 * MOST_ROUNDS


def built(words, lead=False):
    """The `encode` of a tokenizer of the library of that name that knows these words and no other."""
    tokenizers = pytest.importorskip("tokenizers")
    ids = {text: number for number, text in enumerate(["<unk>", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    pieces = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = pieces.Metaspace() if lead else pieces.Whitespace()
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def test_the_id_of_unknown_words_is_no_word():
    """A tokenizer of words gives one token for each word that it does not know; it has the others, with the mark of a space or none."""
    few = ["dog", "cat", "horse", "day", "Tag", "house", "Haus", "year", "tree", "Baum"]
    for encode in (built(few), built(["\u2581" + word for word in few], lead=True)):
        words = Words(encode)
        assert {name: len(ids) for name, ids in words.classes().items() if ids} == {"animals": 3}
        language, pairs, _ = words.pairs()
        assert language == "German" and sorted(pairs) == sorted(
            tuple(encode(word)[0] for word in pair) for pair in (("day", "Tag"), ("house", "Haus"), ("tree", "Baum"))
        )
    assert Words(built([])).pairs().ids == () and not any(Words(built([])).classes().values())


@pytest.mark.parametrize("known", [[], ["dog", "cat", "horse", "day", "Tag", "house", "Haus"]])
def test_too_few_words_are_refused_in_one_line(known):
    """Which tokenizer, how many of how many it has, how many are needed, and what to hand over."""
    encode, animals, pairs = built(known), 3 if known else 0, 2 if known else 0
    space = TokenSpace(d_vocab=len(known) + 1)
    for family, said in (
        (
            "classes",
            f"at least 5 classes of two words or more of one token each, mine has 0 of 12 months, .* {animals} of 12 animals",
        ),
        (
            "translation",
            f"at least 8 pairs of words of one token each, mine has {pairs} of {{german}}, English and German, no more of",
        ),
        ("patterns", f"4 classes of at least 4 words of one token each, .* mine has 0 of 12 months, .* {animals} of 12 animals"),
    ):
        with pytest.raises(ProbeError, match=said.format(german=len(LANGUAGES["German"].split(", ")))) as caught:
            Meanings(space, encode, tokenizer="mine").families([family])
        text = str(caught.value)
        assert "\n" not in text and ("give it `pairs=`" if family == "translation" else "give it `classes=`") in text
    given = Meanings(TokenSpace(64), encode, pairs=[(k, k + 30) for k in range(1, 10)])
    assert len(given.families(["translation"])["translation"].pairs) == 9


@pytest.mark.parametrize(
    ("family", "space", "given", "said"),
    [
        (
            "classes",
            SPACE,
            {"classes": [[1, 2], [3, 4]]},
            "needs at least 5 classes of two tokens or more, found 2 of the ids given",
        ),
        ("classes", TokenSpace(64, 10, 0), {}, "needs 10 positions, the context has room for 9"),
        ("classes", TokenSpace(9, None, 0), {}, "found 0 of consecutive ids"),
        ("translation", SPACE, {"pairs": [[1, 2]]}, "needs at least 8 pairs of tokens, found 1 of the ids given"),
        ("translation", TokenSpace(64, 13, None), {}, "needs 14 positions, the context has room for 13"),
        (
            "patterns",
            SPACE,
            {"classes": [[1, 2], [3, 4]]},
            "needs 4 classes of at least 4 tokens, a colon and 4 labels, found 0 such",
        ),
        ("patterns", TokenSpace(64, 32, 0), {}, "needs 32 positions, the context has room for 31"),
        ("patterns", TokenSpace(28, None, 0), {"classes": [range(k, k + 6) for k in (1, 7, 13, 19)]}, "and 3 other tokens"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(family, space, given, said):
    """For each family: too few classes, pairs or other tokens, and too short a context."""
    with pytest.raises(ProbeError, match=said) as caught:
        drawn(family, space=space, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"classes": 3}, "`classes` must be lists of two token ids or more, got 3"),
        ({"classes": "ab"}, "`classes` must be lists"),
        ({"classes": [[1]]}, "`classes` must be lists of two token ids or more, got \\[1\\]"),
        ({"classes": [[1, 2], [2, 3]]}, "`classes` must have each id once, got 2 twice"),
        ({"classes": [[0, 2]]}, "`classes` must be of ids that a probe may use, below 64, got 0"),
        ({"classes": [[1, 64]]}, "below 64, got 64"),
        ({"classes": [[1, 1.5]]}, "`classes` must be a whole number from 0 up, got 1.5"),
        ({"pairs": [[1, 2, 3]]}, "`pairs` must be pairs of token ids, got \\[1, 2, 3\\]"),
        ({"pairs": [[1, 1]]}, "`pairs` must have each id once, got 1 twice"),
        ({"pairs": [5]}, "`pairs` must be pairs of token ids, got 5"),
    ],
)
def test_meanings_that_cannot_be_used_are_named(given, said):
    with pytest.raises(ArgumentError, match=said):
        Meanings(SPACE, None, **given)


def test_families_are_chosen_by_name():
    """In one order, each once; anything else is an error that lists them."""
    assert chosen_families("patterns") == ("patterns",) and chosen_families(["patterns", "classes"]) == ("classes", "patterns")
    for wrong in ("months", ["classes", "x"], [], 3, None):
        with pytest.raises(ArgumentError, match="classes, translation, patterns"):
            chosen_families(wrong)
