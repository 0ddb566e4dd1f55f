"""The model inside the beam search of other packages, and as one step in ONNX."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from fairseq_fixedpoint import decoding
from fairseq_fixedpoint.decoding import History, OneStep, histories, load_one_step
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.scorer import Scorer
from fairseq_fixedpoint.rescoring.text import TextEncoder
from fairseq_fixedpoint.rescoring.window_scorer import WindowScorer
from tests.commands import train
from tests.rescoring import fixedpoint_convert, refused
from tests.test_model import build, dictionary, log_probs

LETTERS = "abc"
# Words of the letters: with the same beginnings, and one that the model does not know.
KNOWN = ["a", "b", "ab", "ba", "cab", "abc"]
UNKNOWN = "cc"
OPTIONS = [
    {"cell": "elman", "learned_initial_state": True},
    {"cell": "gru", "reset_at_eos": True, "decoder_layers": 2},
    {"cell": "lstm", "iterations": 0},
    {"cell": "lstm", "adaptive_softmax_cutoff": "3,6"},
    {"cell": "elman", "orthogonal": True},
    {"cell": "lstm", "start": "sentence", "reset_at_eos": True},
    {"cell": "gru", "start": "sentence", "reset_at_eos": True, "summary_input": True},
]
options = pytest.mark.parametrize("options", OPTIONS, ids=str)


@cache
def built(names: tuple):
    torch.manual_seed(1)
    model = build(**dict(names))
    torch.nn.init.uniform_(model.decoder.rnn.initial_state)
    if model.decoder.rnn.start_weight is not None:
        torch.nn.init.uniform_(model.decoder.rnn.start_weight)
    return model


def of(options: dict):
    return built(tuple(options.items()))


class Words:
    """A float64 model over :data:`KNOWN`, its step, and what it says of a text by itself."""

    def __init__(self, **options):
        self.dictionary = dictionary(0)
        for word in KNOWN:
            self.dictionary.add_symbol(word)
        model = build(len(KNOWN), **options)
        torch.nn.init.normal_(model.decoder.embed_tokens.weight, std=2.0)
        model.decoder.dictionary = model.decoder.output_dictionary = self.dictionary
        self.step = OneStep(model.decoder, self.dictionary)
        self._scorer = Scorer(WindowScorer(model.decoder), TextEncoder(self.dictionary))

    def score(self, text: str) -> float:
        (actual,) = self._scorer.score([text])
        return actual.log_probability


@options
def test_steps_give_what_a_block_does(options):
    model, step = of(options), OneStep(of(options).decoder, dictionary())
    tokens = torch.randint(4, 44, (3, 9))
    tokens[:, 0] = step.dictionary.eos()
    expected = log_probs(model, tokens)
    state = torch.full_like(step.initial_state(3), 9.0)
    for position in range(9):
        begins = torch.full((3,), position == 0)
        actual, state = step(tokens[:, position], state, begins)
        torch.testing.assert_close(actual, expected[:, position], rtol=0, atol=1e-10)
    actual, _ = step(tokens[:, 0], step.initial_state(3))
    torch.testing.assert_close(actual, expected[:, 0], rtol=0, atol=1e-10)


@options
@given(tokens=st.lists(st.integers(4, 7), min_size=1, max_size=9))
@settings(max_examples=20, deadline=None)
def test_histories_have_the_blocks_probabilities(options, tokens):
    model = of(options)
    step = OneStep(model.decoder, dictionary())
    eos = step.dictionary.eos()
    expected = log_probs(model, torch.tensor([[eos, *tokens]]))[0]
    history = History.start(step)
    for place, token in enumerate([*tokens, eos]):
        assert history.log_probability(token) == pytest.approx(
            expected[place, token].item(), abs=1e-10
        )
        history = history.then(token)


def test_a_long_history_may_be_asked_at_its_end_alone():
    """Each state is of the one before, and there may be more of them than Python calls."""
    model = of({"cell": "lstm", "iterations": 0})
    step = OneStep(model.decoder, dictionary())
    tokens = [4 + place % 7 for place in range(1200)]
    history = History.start(step)
    for token in tokens:
        history = history.then(token)
    expected = log_probs(model, torch.tensor([[step.dictionary.eos(), *tokens]]))[0]
    assert history.log_probability(5) == pytest.approx(expected[-1, 5].item(), abs=1e-10)


def test_histories_that_end_in_k_equal_tokens_are_one_and_computed_once():
    step, calls = OneStep(build(iterations=2).decoder, dictionary()), []
    step.register_forward_hook(lambda *_: calls.append(None))
    start = History.start(step)
    first = start.then(5).then(6).then(7)
    assert start.then(8).then(6).then(7) is first
    assert start.then(6).then(7) is first
    assert start.then(7) is not first
    assert not calls  # nothing was asked for
    first.log_probability(4)
    first.then(4).log_probability(4)
    first.log_probability(5)
    assert len(calls) == 5  # </s>, 5, 6, 7 and 4

    exact = History.start(OneStep(build(iterations=0).decoder, dictionary()))
    assert exact.then(5).then(6) is exact.then(5).then(6)
    assert exact.then(5).then(6) is not exact.then(6)


def test_a_long_search_keeps_the_distributions_of_few(monkeypatch):
    monkeypatch.setattr(histories, "MOST_DISTRIBUTIONS", 3)
    step = OneStep(build(iterations=2).decoder, dictionary())
    start = History.start(step)
    one_by_one = [start.then(4).then(token) for token in range(4, 14)]
    expected = [
        History.start(step).then(4).then(token).log_probability(5) for token in range(4, 14)
    ]
    for _ in range(2):
        assert [each.log_probability(5) for each in one_by_one] == expected
        kept = [each for each in one_by_one if each._log_probabilities is not None]
        assert len(kept) == 3


def test_a_model_whose_start_moves_is_refused():
    with pytest.raises(InputError, match="cannot be stepped"):
        OneStep(build(start="stream").decoder, dictionary())


def test_checkpoints_are_loaded(models):
    step = load_one_step(models["gru"], iterations=2)
    assert step.order == 2
    with pytest.raises(InputError, match="cached iterates are all that it needs"):
        load_one_step(models["lstm"])


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("FlashlightModel", "pip install flashlight-text"),
        ("PyctcdecodeModel", "pip install --no-deps pyctcdecode pygtrie"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, name, command):
    module = decoding.ADAPTERS[name][0]
    monkeypatch.setitem(sys.modules, f"fairseq_fixedpoint.decoding.{module}", None)
    with pytest.raises(InputError, match=f"needs the package .*: {command}"):
        getattr(decoding, name)


def emissions(seed: int, tokens: int, frames: int = 12) -> np.ndarray:
    """Log-probabilities ``(T, tokens)``, float32."""
    logits = np.random.default_rng(seed).normal(0, 1.5, (frames, tokens))
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_pyctcdecode_adds_the_models_score(iterations, seed):
    pyctcdecode = pytest.importorskip("pyctcdecode")
    words = Words(iterations=iterations)
    adapter = decoding.PyctcdecodeModel(words.step, alpha=0.7, beta=0.4, unknown_offset=-3.0)
    alphabet = pyctcdecode.Alphabet.build_alphabet(["", *LETTERS, " "])
    decoder = pyctcdecode.BeamSearchDecoderCTC(alphabet, adapter)
    beams = decoder.decode_beams(
        emissions(seed, 5), beam_width=50, beam_prune_logp=-100, token_min_logp=-100
    )
    assert len({beam[0] for beam in beams}) > 10
    for text, _, _, logit_score, score in beams:
        unknown = sum(word not in KNOWN for word in text.split())
        expected = 0.7 * (words.score(text) - 3.0 * unknown) + 0.4 * len(text.split())
        assert score - logit_score == pytest.approx(expected, abs=1e-6)
    decoder.reset_params(alpha=0.0, beta=0.0)
    (best, *_) = decoder.decode_beams(emissions(seed, 5))
    assert best[-1] == pytest.approx(best[-2], abs=1e-6)


def test_pyctcdecode_prunes_by_what_the_model_knows():
    pytest.importorskip("pyctcdecode")
    assert decoding.PyctcdecodeModel(Words(iterations=3).step).order == 4
    assert decoding.PyctcdecodeModel(Words(iterations=0).step).order > 10**9


def flashlight_decoder(model, words: list[str], lm_weight: float, beam: int):
    """As torchaudio's `ctc_decoder` makes one, which needs an extension of its own to be there."""
    decoder = pytest.importorskip("flashlight.lib.text.decoder")
    letters = {letter: number for number, letter in enumerate(["-", *LETTERS, "|"])}
    trie = decoder.Trie(len(letters), letters["|"])
    for number, word in enumerate(words):
        spelling = [letters[letter] for letter in (*word, "|")]
        trie.insert(spelling, number, 0.0)
    chosen = decoder.LexiconDecoderOptions(
        beam_size=beam, beam_size_token=len(letters), beam_threshold=1e4, lm_weight=lm_weight,
        word_score=0.0, unk_score=-np.inf, sil_score=0.0, log_add=False,
        criterion_type=decoder.CriterionType.CTC,
    )  # fmt: skip
    return decoder.LexiconDecoder(
        chosen, trie, model, letters["|"], letters["-"], len(words), [], False
    )


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_flashlight_adds_the_models_score(iterations, seed):
    pytest.importorskip("flashlight.lib.text.decoder")
    words = Words(iterations=iterations)
    lexicon = [*KNOWN, UNKNOWN]
    model = decoding.FlashlightModel(words.step, [*lexicon, "<unk>"])
    decoder = flashlight_decoder(model, lexicon, lm_weight=0.7, beam=200)
    frames = emissions(seed, 5)
    for _ in range(2):  # a second text begins anew
        actual = decoder.decode(frames.ctypes.data, *frames.shape)
        assert actual
        for each in actual:
            text = " ".join(lexicon[word] for word in each.words if word >= 0)
            expected = each.emittingModelScore + 0.7 * words.score(text)
            assert each.score == pytest.approx(expected, abs=1e-4)
            assert each.lmScore == pytest.approx(words.score(text), abs=1e-4)


def test_flashlight_merges_what_has_the_same_future():
    """So a beam of a few finds the best of all: histories of the same last word are one."""
    pytest.importorskip("flashlight.lib.text.decoder")
    words = Words(iterations=1)
    model = decoding.FlashlightModel(words.step, KNOWN)
    start = model.start(False)
    one, _ = model.score(model.score(start, 0)[0], 1)
    other, _ = model.score(model.score(start, 2)[0], 1)
    assert one.compare(other) == 0
    assert one.compare(start) != 0


def test_torchaudio_takes_the_model(tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder")
    try:
        from torchaudio.models.decoder import ctc_decoder
    except (ImportError, OSError) as error:  # a build for another PyTorch cannot be loaded
        pytest.skip(f"no torchaudio: {error}")
    words = Words(iterations=2)
    lexicon = [*KNOWN, "<unk>"]
    (tmp_path / "words").write_text("".join(f"{word}\n" for word in lexicon))
    spellings = [f"{word} {' '.join(word)} |\n" for word in KNOWN]
    (tmp_path / "lexicon").write_text("".join(spellings))
    decoder = ctc_decoder(
        lexicon=str(tmp_path / "lexicon"),
        tokens=["-", *LETTERS, "|"],
        lm=decoding.FlashlightModel(words.step, lexicon),
        lm_dict=str(tmp_path / "words"),
        nbest=20,
        beam_size=200,
        beam_threshold=1e4,
        lm_weight=0.7,
    )
    frames = emissions(0, 5)
    (hypotheses,) = decoder(torch.from_numpy(frames).unsqueeze(0))
    results = decoder.decoder.decode(frames.ctypes.data, *frames.shape)
    assert hypotheses
    for hypothesis, result in zip(hypotheses, results, strict=False):
        expected = words.score(" ".join(hypothesis.words))
        assert result.lmScore == pytest.approx(expected, abs=1e-4)
        assert hypothesis.score == pytest.approx(
            result.emittingModelScore + 0.7 * expected, abs=1e-4
        )


@pytest.fixture(scope="module")
def still(data, tmp_path_factory) -> Path:
    """A model whose summary is an input and stands still in a sentence."""
    folder = tmp_path_factory.mktemp("still")
    train(
        data, folder, "--start", "sentence", "--reset-at-eos", "--summary-input", "--max-update", 5
    )
    return folder / "checkpoint_last.pt"


@pytest.mark.parametrize("name", ["gru", "elman", "still"])
def test_onnx_runs_the_same_step(models, still, tmp_path, name, capfd):
    if Version(torch.__version__) < Version("2.13"):
        pytest.skip("this PyTorch cannot write the step as ONNX")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "step.onnx"
    checkpoint = {**models, "still": still}[name]
    assert fixedpoint_convert(checkpoint, "--to", "onnx", "--output", path) == 0
    assert len(capfd.readouterr().err.splitlines()) == 1  # its own sentence, no warnings
    session = runtime.InferenceSession(path.read_bytes())
    step = load_one_step(checkpoint)
    properties = session.get_modelmeta().custom_metadata_map
    assert properties == {"order": str(step.order), "eos": "2", "unk": "3"}
    tokens = torch.randint(4, len(step.dictionary), (6, 3))
    tokens[0] = step.dictionary.eos()
    state = torch.zeros_like(step.initial_state(3))
    kept = state.numpy()
    for position in range(6):
        begins = torch.full((3,), position == 0)
        expected, state = step(tokens[position], state, begins)
        actual, kept = session.run(
            None, {"token": tokens[position].numpy(), "state": kept, "begins": begins.numpy()}
        )
        np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(kept, state.detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (ModuleNotFoundError("No module named 'onnxscript'"), "install this package's extra onnx"),
        (torch.onnx.OnnxExporterError("Failed"), "as ONNX: take PyTorch 2.13"),
    ],
)
def test_onnx_that_cannot_be_made_is_refused(models, tmp_path, capfd, monkeypatch, error, trouble):
    def export(*arguments, **options):
        raise error

    monkeypatch.setattr(torch.onnx, "export", export)
    path = tmp_path / "step.onnx"
    said = refused(capfd, fixedpoint_convert, models["gru"], "--to", "onnx", "--output", path)
    assert trouble in said
    assert not path.exists()
