"""The tagging network: what a tag depends on, and that all ways of computing it agree."""

from __future__ import annotations

import binascii

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairseq_fixedpoint.recurrence import CELLS, FixedPointRNN, both_directions
from fairseq_fixedpoint.tagging import Spellings, Tagger, TaggingNetwork
from fairseq_fixedpoint.tagging import tagger as tagger_module
from fairseq_fixedpoint.tagging.sentences import PADDING, UNKNOWN, SentenceEncoder, known_words
from fairseq_fixedpoint.tagging.spelling import FEATURES, features, shape

WORDS, TAGS = 12, 5
INDICES = {f"w{number}": number for number in range(4, WORDS)}


def network(
    cell: str = "elman", layers: int = 1, iterations: int = 3, left_to_right: bool = False
) -> TaggingNetwork:
    """A random network in float64, whose tags depend on much of what they can."""
    torch.manual_seed(0)
    forward_rnn, backward_rnn = (FixedPointRNN(7, 6, layers, cell=cell) for _ in range(2))
    made = TaggingNetwork(
        WORDS,
        TAGS,
        forward_rnn,
        None if left_to_right else backward_rnn,
        iterations,
        hidden_size=6,
        embed_dim=4,
        spelling_dim=3,
        spelling_buckets=50,
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.double().eval()


def scores(model: TaggingNetwork, *sentences: list[str]) -> list[Tensor]:
    """The scores of each sentence, ``(T, TAGS)``, of one batch."""
    encoder = SentenceEncoder(known_words(INDICES))
    with torch.no_grad():
        output = model(**encoder.batch([encoder.encode(sentence) for sentence in sentences]))
    return [row[: len(sentence)] for row, sentence in zip(output, sentences, strict=True)]


def sentence(*numbers: int) -> list[str]:
    return [f"w{number}" for number in numbers]


sentences = st.lists(st.integers(4, 20).map("w{}".format), min_size=1, max_size=9)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_each_direction_sees_k_words(cell, iterations):
    """Against the definition: an exact recurrence over each position's window."""
    torch.manual_seed(0)
    rnns = [FixedPointRNN(3, 5, 2, cell=cell).double().eval() for _ in range(2)]
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        output = both_directions(*rnns, x, iterations)
        for t in range(6):
            before = x[max(t + 1 - iterations, 0) : t + 1]
            after = x[t : t + iterations].flip(0)
            windows = (rnns[0](before, 0).output[-1], rnns[1](after, 0).output[-1])
            torch.testing.assert_close(output[t], torch.cat(windows, -1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("left_to_right", [False, True])
def test_k_of_the_sentences_length_is_the_exact_recurrence(cell, layers, left_to_right):
    model = network(cell, layers, left_to_right=left_to_right)
    batch = sentence(4, 7, 5, 11, 30), sentence(6), sentence(9, 9, 8)
    for at_5, exact in zip(
        scores(model.at_order(5), *batch), scores(model.at_order(0), *batch), strict=True
    ):
        torch.testing.assert_close(at_5, exact, rtol=0, atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(sentences, min_size=1, max_size=4), st.sampled_from([0, 1, 3]), st.sampled_from(CELLS)
)
def test_a_sentence_does_not_depend_on_its_batch(batch, iterations, cell):
    model = network(cell, iterations=iterations)
    for together, alone in zip(
        scores(model, *batch), (scores(model, each)[0] for each in batch), strict=True
    ):
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("iterations", [0, 2])
def test_padding_may_be_on_either_side(iterations):
    model = network(iterations=iterations)
    encoder = SentenceEncoder(known_words(INDICES))
    batch = encoder.batch([encoder.encode(sentence(4, 5, 6))])
    with torch.no_grad():
        left, right = (
            model(
                torch.nn.functional.pad(batch["words"], padding, value=PADDING),
                torch.nn.functional.pad(batch["spelling"], (0, 0, *padding)),
            )
            for padding in ((2, 0), (0, 2))
        )
    torch.testing.assert_close(left[:, 2:], right[:, :3], rtol=0, atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(
    sentences,
    sentences,
    st.integers(1, 4),
    st.booleans(),
    st.data(),
)
def test_words_k_or_more_away_do_not_matter(first, second, iterations, left_to_right, data):
    """Two sentences with the same K - 1 words around a word have the same scores there."""
    model = network(iterations=iterations, left_to_right=left_to_right)
    shared = data.draw(st.lists(st.integers(4, 20).map("w{}".format), min_size=1, max_size=5))
    middle = len(shared) // 2
    before, after = middle, len(shared) - 1 - middle
    contexts = [[*words, *shared, *words[::-1]] for words in (first, second)]
    left, right = (
        scores(model, each)[0][len(words) + middle]
        for each, words in zip(contexts, (first, second), strict=True)
    )
    if iterations - 1 <= before and (left_to_right or iterations - 1 <= after):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10)


def test_the_words_within_k_matter():
    model = network(iterations=3)
    base = sentence(4, 5, 6, 7, 8)
    for position in range(5):
        changed = [*base[:position], "w11", *base[position + 1 :]]
        difference = (scores(model, base)[0] - scores(model, changed)[0]).abs().amax(-1)
        assert (difference[max(position - 2, 0) : position + 3] > 1e-6).all()


def test_left_to_right_knows_no_word_after():
    model = network(iterations=0, left_to_right=True)
    torch.testing.assert_close(
        scores(model, sentence(4, 5, 6))[0][:2], scores(model, sentence(4, 5, 9, 8))[0][:2]
    )


def test_word_dropout_makes_words_unknown_and_leaves_padding():
    model = network()
    model.word_dropout, model.dropout = 0.5, 0.0
    model.embed_tokens.weight.data = torch.arange(WORDS * 4.0).view(WORDS, 4).double()
    words = torch.full((200, 10), 7)
    words[:, 5:] = PADDING
    seen = model.train()._embedded(words)[..., 0] / 4
    assert set(seen[:, :5].flatten().tolist()) == {7, UNKNOWN}
    assert set(seen[:, 5:].flatten().tolist()) == {PADDING}
    assert model.eval()._embedded(words)[:, :5].eq(7 * 4).any(-1).all()


def test_the_gradient_is_that_of_the_exact_recurrence_at_k_of_the_length():
    grads = []
    for iterations in (4, 0):
        model = network("gru", iterations=iterations)
        encoder = SentenceEncoder(known_words(INDICES))
        batch = encoder.batch([encoder.encode(sentence(4, 5, 30, 6)), encoder.encode(["w7"])])
        output = model(**batch)
        (output[0].logsumexp(-1).sum() + output[1, 0].logsumexp(-1)).backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for at_4, exact in zip(*grads, strict=True):
        torch.testing.assert_close(at_4, exact, rtol=0, atol=1e-10)


# --- spelling ---


def ambiguous_sentences(sentences: int, length: int) -> tuple[Tensor, Tensor]:
    """Words and tags ``(sentences, length)`` of a hidden Markov source with ambiguous words."""
    chooser = torch.Generator().manual_seed(1)
    transitions = (3 * torch.randn(10, 10, generator=chooser)).softmax(1)
    emissions = (2 * torch.randn(10, 100, generator=chooser)).softmax(1)
    tags = [torch.randint(10, (sentences,), generator=chooser)]
    for _ in range(length - 1):
        tags.append(torch.multinomial(transitions[tags[-1]], 1, generator=chooser).squeeze(1))
    every = torch.stack(tags, 1)
    words = torch.multinomial(emissions[every.flatten()], 1, generator=chooser)
    return words.view(every.shape) + UNKNOWN + 1, every


def test_five_words_on_either_side_tag_as_well_as_the_whole_sentence():
    words, tags = ambiguous_sentences(2400, length=16)
    spelling = torch.zeros(*words.shape, FEATURES, dtype=torch.long)

    def accuracy(iterations: int) -> float:
        """Of the last 400 sentences, after some updates on the others."""
        torch.manual_seed(2)
        rnns = [FixedPointRNN(16, 24) for _ in range(2)]
        model = TaggingNetwork(
            UNKNOWN + 101, 10, *rnns, iterations, hidden_size=24, embed_dim=12, spelling_dim=4,
            spelling_buckets=1,
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(80):
            chosen = torch.randint(2000, (32,))
            scores_of_tags = model(words[chosen], spelling[chosen])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(
                scores_of_tags.flatten(0, 1), tags[chosen].flatten()
            ).backward()
            optimizer.step()
        with torch.no_grad():
            chosen_tags = model.eval()(words[2000:], spelling[2000:]).argmax(2)
        return float(chosen_tags.eq(tags[2000:]).float().mean())

    exact = accuracy(0)
    assert accuracy(5) == pytest.approx(exact, abs=0.01)
    assert accuracy(1) < exact - 0.1  # so the words around are what both have learned from


@pytest.mark.parametrize(
    ("word", "expected"),
    [("McDonald's", "XxXx'x"), ("1,000", "0,0"), ("USA", "X"), ("...", "."), ("größer", "x")],
)
def test_shapes(word, expected):
    assert shape(word) == expected


@given(st.text(min_size=1, max_size=12))
def test_every_word_has_as_many_features(word):
    assert len(features(word)) == len(set(features(word))) == FEATURES


def test_a_word_is_hashed_once_by_the_names_of_its_features():
    spellings = Spellings()
    assert spellings.numbers(["running", "ran", "running"]) == [1, 2, 1]
    hashes = spellings.hashes().tolist()
    assert hashes[1] == [binascii.crc32(name.encode()) for name in features("running")]
    assert len(hashes) == 3 and spellings.numbers(["ran"]) == [2]


def test_a_word_that_looks_like_a_symbol_is_unknown():
    encoder = SentenceEncoder(known_words({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4}))
    assert encoder.encode(["<pad>", "a", "</s>", "b"])[0].tolist() == [3, 4, 3, 3]
    tagger = Tagger(network(), INDICES, ["T"] * TAGS)
    assert tagger.knows("w4") and not tagger.knows("</s>") and not tagger.knows("unheard")


# --- the tagger ---


@settings(deadline=None, max_examples=20)
@given(st.lists(sentences, max_size=8), st.integers(1, 30))
def test_tags_come_in_order_whatever_the_batches(batch, batch_tokens):
    model = network()
    tags = [f"T{number}" for number in range(TAGS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tagger_module, "BATCH_TOKENS", batch_tokens)
        tagged = Tagger(model, INDICES, tags).tag(batch)
    for words, each in zip(batch, tagged, strict=True):
        probabilities, places = scores(model, words)[0].softmax(-1).max(-1)
        assert each.tags == [tags[place] for place in places]
        assert each.probabilities == pytest.approx(probabilities.tolist(), abs=1e-6)


def test_a_sentence_without_words_is_refused():
    with pytest.raises(ValueError, match="has no words"):
        Tagger(network(), INDICES, ["T"] * TAGS).tag([["w4"], []])
