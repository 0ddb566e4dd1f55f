"""Small models of every kind, and the probability of each word by their formula in float64.

Nothing here goes through the scorers of the project: a fixed-point model is PyTorch's own recurrent
module over the last K words, run anew for each word; fairseq's models run in float64; of an n-gram
model kenlm is asked sentence by sentence.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import kenlm
import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary

from tests.commands import preprocess, train
from tests.fuzzing.words import KNOWN, LOOKALIKES

OF_FAIRSEQ = ("--task", "language_modeling", "--criterion", "cross_entropy")
TRAINED = {  # by name: the text, and the options of the training
    "gru": ("plain", ("--cell", "gru", "--iterations", 4, "--decoder-layers", 2)),
    "elman": (
        "lookalikes",
        ("--cell", "elman", "--iterations", 2, "--adaptive-softmax-cutoff", "6,12"),
    ),
    "lstm": ("lookalikes", ("--cell", "lstm", "--iterations", 3, "--learned-initial-state")),
    "one": ("plain", ("--cell", "gru", "--iterations", 1, "--share-decoder-input-output-embed")),
    "exact": ("plain", ("--cell", "elman", "--iterations", 0)),
    "reset": ("lookalikes", ("--cell", "gru", "--iterations", 3, "--reset-at-eos")),
    "letters": ("letters", ("--cell", "gru", "--iterations", 3)),
    "small-output": ("plain", ("--cell", "gru", "--output-dictionary-size", 12)),
    "bos": (
        "lookalikes",
        ("--task", "language_modeling", "--add-bos-token", "--cell", "gru", "--iterations", 3),
    ),
    "lstm_lm": (
        "plain",
        (*OF_FAIRSEQ, "--arch", "lstm_lm", "--decoder-hidden-size", 16,
         "--decoder-out-embed-dim", 16),
    ),
    "transformer_lm": (
        "lookalikes",
        (*OF_FAIRSEQ, "--arch", "transformer_lm", "--decoder-ffn-embed-dim", 16,
         "--decoder-layers", 1, "--decoder-attention-heads", 2),
    ),
}  # fmt: skip
LN10 = math.log(10)
BETWEEN_WORDS = "\u2581"  # of fairseq's `characters`


@dataclass(frozen=True)
class Reading:
    """How the options of a run let models read a text.

    Attributes:
        iterations: K in place of the model's own, or None.
        previous_context: tokens of the text before that are seen; None for as many as the model
            can use.
        letters: whether models see letters, with a mark between words, by fairseq's `characters`.
    """

    lowercase: bool = False
    unknown_penalty: float = 0.0
    iterations: int | None = None
    normalized: bool = True
    previous_context: int | None = 0
    letters: bool = False


@dataclass(frozen=True)
class Scored:
    """Natural-log probability of each word and of the sentence's end, and how many are unknown.

    Attributes:
        rounding: how far the same model in float32 is from them, all words together.
    """

    log_probabilities: tuple[float, ...]
    unknown: int
    rounding: float = 0.0

    @property
    def total(self) -> float:
        return math.fsum(self.log_probabilities)


@dataclass(frozen=True, eq=False)
class Neural:
    """A checkpoint, and the dictionary that it was trained with.

    Attributes:
        adds_bos_token: whether a text comes after `<s> </s>` instead of `</s>`.
    """

    name: str
    checkpoint: Path
    dictionary: Dictionary
    adds_bos_token: bool

    def holds(self, token: str) -> bool:
        index = self.dictionary.indices.get(token, self.dictionary.unk())
        return index >= self.dictionary.nspecial

    def score(
        self, words: Sequence[str], reading: Reading, previous: Sequence[Sequence[str]] = ()
    ) -> Scored:
        """Args: previous: the words of each text before."""
        eos, unk = self.dictionary.eos(), self.dictionary.unk()
        ids = self._ids(words, reading)
        bos = [self.dictionary.bos()] * self.adds_bos_token
        seen = self._seen(len(bos) + len(ids), reading)
        context = [*bos, eos]
        if previous and seen >= 2:
            before = [index for text in previous for index in (eos, *self._ids(text, reading))]
            context = [*bos, *[*before, eos][-seen:]]
        actual, unknown, rounding = [], 0, 0.0
        for index in (*ids, eos):
            distribution, rounded = self._after(tuple(context), reading)
            target = index if index < len(distribution) else unk
            is_unknown = target == unk
            actual.append(float(distribution[target]) - reading.unknown_penalty * is_unknown)
            unknown += is_unknown
            rounding += abs(float(rounded[target] - distribution[target]))
            context.append(index)
        return Scored(tuple(actual), unknown, rounding)

    def order(self, reading: Reading) -> int | None:
        """How many tokens the model looks back; None for all."""
        raise NotImplementedError

    def _ids(self, words: Sequence[str], reading: Reading) -> list[int]:
        folded = [word.lower() if reading.lowercase else word for word in words]
        tokens = BETWEEN_WORDS.join(folded) if reading.letters else folded
        return [
            self.dictionary.index(token) if self.holds(token) else self.dictionary.unk()
            for token in tokens
        ]

    def _seen(self, tokens: int, reading: Reading) -> int:
        """How many tokens of context a sentence of so many tokens has room for."""
        return self.order(reading) if reading.previous_context is None else reading.previous_context

    def _after(self, context: tuple[int, ...], reading: Reading) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of each token after a context, ``(V,)``, and what float32 makes of it."""
        raise NotImplementedError


class FixedPoint(Neural):
    """A `fixedpoint_lm`: the exact recurrence over the last K tokens."""

    def order(self, reading: Reading) -> int | None:
        iterations = self._trained_order if reading.iterations is None else reading.iterations
        return iterations or None

    @property
    def can_be_unnormalized(self) -> bool:
        return "adaptive_softmax.head.weight" not in self._weights

    def _after(self, context: tuple[int, ...], reading: Reading) -> tuple[np.ndarray, np.ndarray]:
        order = self.order(reading)
        window = context if order is None else context[-order:]
        known = self._known.get((window, reading.normalized))
        if known is None:
            known = self._known[window, reading.normalized] = self._evaluated(window, reading)
        return known, known  # what float32 makes of it is within the tolerance

    @torch.no_grad()
    def _evaluated(self, window: tuple[int, ...], reading: Reading) -> np.ndarray:
        weights = self._weights
        x = weights["embed_tokens.weight"][list(window)].unsqueeze(1)  # (T, 1, D)
        for number, layer in enumerate(self._layers):
            x, _ = layer(x, self._initial(number, layer))
        h = x[-1, 0]
        if not self.can_be_unnormalized:
            return self._adaptive(h).numpy()
        output = weights.get("fc_out.weight", weights["embed_tokens.weight"])
        logits = output @ h + weights.get("fc_out.bias", 0.0)
        return (logits.log_softmax(0) if reading.normalized else logits).numpy()

    def _initial(self, number: int, layer: torch.nn.RNNBase):
        if "rnn.initial_state" not in self._weights:
            return None
        state = self._weights["rnn.initial_state"][number]
        parts = state.view(-1, 1, 1, layer.hidden_size)
        return tuple(parts) if isinstance(layer, torch.nn.LSTM) else parts[0]

    def _adaptive(self, h: torch.Tensor) -> torch.Tensor:
        """The words of the head, and those of each tail behind its entry in the head."""
        weights = self._weights
        head = (weights["adaptive_softmax.head.weight"] @ h).log_softmax(0)
        tails = sum(f".tail.{number}.0." in name for number in range(9) for name in weights)
        words = [head[: len(head) - tails]]
        for number in range(tails):
            narrow, wide = (weights[f"adaptive_softmax.tail.{number}.{n}.weight"] for n in (0, 2))
            words.append(head[len(head) - tails + number] + (wide @ (narrow @ h)).log_softmax(0))
        return torch.cat(words)

    @cached_property
    def _known(self) -> dict:
        return {}

    @cached_property
    def _stored(self) -> dict:
        return torch.load(self.checkpoint, weights_only=False)

    @cached_property
    def _trained_order(self) -> int:
        return self._stored["cfg"]["model"]["iterations"]

    @cached_property
    def _weights(self) -> dict[str, torch.Tensor]:
        return {
            name.removeprefix("decoder."): value.double()
            for name, value in self._stored["model"].items()
        }

    @cached_property
    def _layers(self) -> list[torch.nn.RNNBase]:
        cell = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
        layers = []
        for number in itertools.count():
            prefix = f"rnn.layers.{number}."
            weights = {
                name.removeprefix(prefix): value
                for name, value in self._weights.items()
                if name.startswith(prefix)
            }
            if not weights:
                return layers
            _, size = weights["weight_hh_l0"].shape
            layer = cell[self._stored["cfg"]["model"]["cell"]](size, size).double()
            layer.load_state_dict(weights)
            layers.append(layer)


class OfFairseq(Neural):
    """Any other language model: one forward pass in float64 a context."""

    def order(self, reading: Reading) -> None:
        return None

    @property
    def longest(self) -> int:
        """How many tokens the model takes."""
        return self._model.max_positions()

    def _seen(self, tokens: int, reading: Reading) -> int:
        return min(super()._seen(tokens, reading), self.longest - tokens)

    @torch.no_grad()
    def _after(self, context: tuple[int, ...], reading: Reading) -> tuple[np.ndarray, np.ndarray]:
        if context not in self._known:
            tokens, lengths = torch.tensor([context]), torch.tensor([len(context)])
            self._known[context] = tuple(
                model(tokens, src_lengths=lengths)[0][0, -1].double().log_softmax(0).numpy()
                for model in (self._model, self._rounded)
            )
        return self._known[context]

    @cached_property
    def _known(self) -> dict:
        return {}

    @cached_property
    def _model(self):
        return self._loaded().double()

    @cached_property
    def _rounded(self):
        return self._loaded()

    def _loaded(self):
        (model,), _ = checkpoint_utils.load_model_ensemble([str(self.checkpoint)])
        return model.eval()


@dataclass(frozen=True, eq=False)
class Ngram:
    """An ARPA file, by kenlm."""

    name: str
    path: Path
    order: int
    vocabulary: frozenset[str]
    has_unknown: bool

    def holds(self, token: str) -> bool:
        return token in self.vocabulary

    def score(self, words: Sequence[str], reading: Reading) -> Scored:
        folded = [word.lower() if reading.lowercase else word for word in words]
        actual = list(self._model.full_scores(" ".join(folded)))
        penalty = reading.unknown_penalty
        return Scored(
            tuple(log10_p * LN10 - penalty * unknown for log10_p, _, unknown in actual),
            sum(unknown for _, _, unknown in actual),
        )

    @cached_property
    def _model(self) -> kenlm.Model:
        config = kenlm.Config()
        config.show_progress = False
        config.arpa_complain = kenlm.ARPALoadComplain.NONE
        return kenlm.Model(str(self.path), config)


def interpolated(neural: Scored, ngram: Scored, weight: float) -> Scored:
    """Word by word; what the neural model does not know counts."""
    with np.errstate(divide="ignore"):
        first, second = np.log([weight, 1 - weight])
    both = zip(neural.log_probabilities, ngram.log_probabilities, strict=True)
    mixed = tuple(float(np.logaddexp(first + p, second + q)) for p, q in both)
    return replace(neural, log_probabilities=mixed)


@dataclass(frozen=True)
class Models:
    """All models of a run; those of letters apart from those of words."""

    fixedpoint: tuple[FixedPoint, ...]
    of_letters: tuple[FixedPoint, ...]
    of_fairseq: tuple[OfFairseq, ...]
    ngrams: tuple[Ngram, ...]


def make_models(folder: Path) -> Models:
    """Trains models for a few updates; the same ones each time."""
    folder.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    texts = {"plain": KNOWN, "lookalikes": (*KNOWN, *LOOKALIKES)}
    for name, words in texts.items():
        _write_text(folder / f"{name}.txt", words)
    lines = (folder / "plain.txt").read_text().splitlines()
    spelled = (" ".join(line.replace(" ", BETWEEN_WORDS)) for line in lines)
    (folder / "letters.txt").write_text("\n".join([*spelled, ""]))
    for name in (*texts, "letters"):
        preprocess("--trainpref", folder / f"{name}.txt", "--destdir", folder / name)
    fixedpoint, of_fairseq = [], []
    for name, (text, options) in TRAINED.items():
        train(folder / text, folder / "checkpoints" / name, *options, "--max-update", 20,
              "--lr", 0.05, "--disable-validation", "--no-save-optimizer-state")  # fmt: skip
        kind, actual = (OfFairseq, of_fairseq) if "--arch" in options else (FixedPoint, fixedpoint)
        checkpoint = folder / "checkpoints" / name / "checkpoint_last.pt"
        dictionary = Dictionary.load(str(folder / text / "dict.txt"))
        actual.append(kind(name, checkpoint, dictionary, "--add-bos-token" in options))
    ngrams = (
        _ngram(folder / "bigrams.arpa", 2, KNOWN[:8], has_unknown=True),
        _ngram(folder / "trigrams.arpa", 3, (*KNOWN[2:9], "w3(2)", "-pau-"), has_unknown=True),
        _ngram(folder / "closed.arpa", 2, KNOWN, has_unknown=False),
    )
    of_letters = [model for model in fixedpoint if model.name == "letters"]
    of_words = [model for model in fixedpoint if model.name != "letters"]
    return Models(tuple(of_words), tuple(of_letters), tuple(of_fairseq), ngrams)


def _write_text(path: Path, words: Sequence[str], sentences: int = 120) -> None:
    chooser = random.Random(path.name)
    lines = [" ".join(chooser.choices(words, k=chooser.randint(1, 9))) for _ in range(sentences)]
    path.write_text("\n".join(lines) + "\n")


def _ngram(path: Path, order: int, words: Sequence[str], has_unknown: bool) -> Ngram:
    """A random ARPA; where an n-gram is listed, so are its beginning and its end."""
    chooser = random.Random(path.name)
    levels = [[(word,) for word in ("<s>", *words, "</s>")]]
    while len(levels) < order:
        shorter = levels[-1]
        longer = (
            (*first, last[-1])
            for first, last in itertools.product(shorter, shorter)
            if first[1:] == last[:-1] and last[-1] != "<s>" and "</s>" not in first
        )
        levels.append([ngram for ngram in longer if chooser.random() < 0.4])
    levels[0] += [("<unk>",)] * has_unknown
    lines = ["\\data\\", *(f"ngram {n}={len(level)}" for n, level in enumerate(levels, 1))]
    for n, level in enumerate(levels, 1):
        lines += ["", f"\\{n}-grams:"]
        for ngram in level:
            weight = -99 if ngram == ("<s>",) else round(chooser.uniform(-3, -0.2), 4)
            is_context = n < order and ngram[-1] not in ("</s>", "<unk>")
            backoff = f"\t{round(chooser.uniform(-1, 0), 4)}" if is_context else ""
            lines.append(f"{weight}\t{' '.join(ngram)}{backoff}")
    path.write_text("\n".join([*lines, "", "\\end\\", ""]))
    return Ngram(path.stem, path, order, frozenset(words), has_unknown)
