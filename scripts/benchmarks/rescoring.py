"""Scoring n-best lists over shared windows, against fairseq's own way of scoring them.

Lists: sentences of a text go through a seeded confusion channel, in which some words have
alternatives of like frequency, each at a cost; the list is the exact n-best of that channel.

What is compared, in turn, round after round; a figure is the median over rounds:

  shared windows         the model by rescoring.Scorer, a group of utterances at a time
  ... in bfloat16        the same with --bf16
  SequenceScorer, 1      the same model and weights, a hypothesis at a time
  SequenceScorer, batch  the same model and weights, in batches of like length
  lstm_lm, batch         fairseq's lstm_lm of equal width and output layer, in such batches

fairseq's ways score a seeded part of the lists, as they would take long. Scores are compared on it.
Without --model the weights are random, which changes no time.
"""

from __future__ import annotations

import gzip
import heapq
import random
import statistics
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.models.lstm_lm import LSTMLanguageModel, base_architecture
from fairseq.sequence_scorer import SequenceScorer
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fairseq_fixedpoint.plugin.checkpoints import load_language_model
from fairseq_fixedpoint.plugin.models.fixedpoint_lm import (
    FixedPointLanguageModel,
    FixedPointLanguageModelConfig,
)
from fairseq_fixedpoint.rescoring.scorer import Scorer
from fairseq_fixedpoint.rescoring.text import TextEncoder
from fairseq_fixedpoint.rescoring.window_scorer import WindowScorer
from fairseq_fixedpoint.windows import distinct_windows
from scripts.benchmarks.machine import Machine
from scripts.benchmarks.markdown import percent, table, times
from scripts.benchmarks.measuring import milliseconds
from scripts.benchmarks.results import BenchmarkError

BATCH = 64
ALTERNATIVES = 3
CONFUSED = 0.4  # share of the words that have alternatives
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
OURS = "shared windows"


@dataclass(frozen=True)
class Settings:
    """What is scored, and by what.

    Attributes:
        text: a tokenised text, gzip allowed.
        data: folder with the dict.txt.
        model: checkpoint of fixedpoint_lm; None for random weights, and then
        cell, iterations, width, cutoffs: the model; `none` for a full softmax.
        utterances, hypotheses: lists, and the size of one at most.
        part: hypotheses for fairseq's ways.
    """

    text: str | None = None
    data: str | None = None
    model: str | None = None
    cell: str = "elman"
    iterations: int = 5
    width: int = 256
    cutoffs: str = "none"
    utterances: int = 80
    hypotheses: int = 100
    part: int = 800
    rounds: int = 3
    seed: int = 1


PRESETS = {
    "cpu": Settings(),
    "cuda": Settings(),
    "quick": Settings(width=16, utterances=6, hypotheses=10, part=16, rounds=1),
}


def sentences(path: Path, count: int) -> list[list[str]]:
    """The first sentences of 10 to 40 words, ended by a full stop, of a tokenised text."""
    opened = gzip.open if path.suffix == ".gz" else open
    sentences = []
    with opened(path, "rt", encoding="utf-8") as file:
        for line in file:
            for sentence in " ".join(line.split()).split(" . "):
                words = sentence.removesuffix(" .").split()
                if 10 <= len(words) <= 40:
                    sentences.append([*words, "."])
                if len(sentences) == count:
                    return sentences
    raise BenchmarkError(
        f"{path} has only {len(sentences)} sentences of 10 to 40 words, not {count}: ask for fewer "
        "--utterances."
    )


def confusions(
    words: list[str], by_rank: list[str], rank: dict[str, int], seed: int
) -> Iterator[dict[str, float]]:
    """What the channel makes of each word: words and what they cost, the word itself nothing."""
    chooser = random.Random(f"{seed} {' '.join(words)}")
    for word in words:
        options = {word: 0.0}
        if word in rank and chooser.random() < CONFUSED:
            near = rank[word] + np.array([chooser.randint(-20, 20) for _ in range(ALTERNATIVES)])
            for place in near.clip(0, len(by_rank) - 1):
                other, cost = by_rank[int(place)], chooser.expovariate(0.5)
                options[other] = min(cost, options.get(other, cost))
        yield options


def nbest_list(
    words: list[str], by_rank: list[str], rank: dict[str, int], size: int, seed: int
) -> list[str]:
    """The `size` cheapest outputs of the channel, at most, as text."""
    best: list[tuple[float, tuple[str, ...]]] = [(0.0, ())]
    for options in confusions(words, by_rank, rank, seed):
        # Sequences of other words at one place are other sequences, so none comes twice.
        best = heapq.nsmallest(
            size,
            (
                (cost + more, (*prefix, word))
                for cost, prefix in best
                for word, more in options.items()
            ),
        )
    return [" ".join(prefix) for _, prefix in best]


def model_of(
    settings: Settings, device: torch.device
) -> tuple[FixedPointLanguageModel, Dictionary]:
    """The checkpoint's model, or one with random weights."""
    if settings.model is not None:
        data = Path(settings.data) if settings.data else None
        model, task, _ = load_language_model(Path(settings.model), data, device=str(device))
        return model, task.target_dictionary
    dictionary = Dictionary.load(str(Path(settings.data) / "dict.txt"))
    cfg = FixedPointLanguageModelConfig(
        cell=settings.cell,
        iterations=settings.iterations,
        decoder_embed_dim=settings.width,
        adaptive_softmax_cutoff=None if settings.cutoffs == "none" else settings.cutoffs,
        adaptive_softmax_factor=2.0,
    )
    torch.manual_seed(1)
    model = FixedPointLanguageModel.build_model(cfg, both(dictionary))
    return model.eval().to(device), dictionary


def lstm_lm_like(model: FixedPointLanguageModel, dictionary: Dictionary) -> LSTMLanguageModel:
    """fairseq's lstm_lm, of the same width and output layer, with random weights."""
    decoder = model.decoder
    adaptive = decoder.adaptive_softmax
    options = Namespace(
        decoder_embed_dim=decoder.embed_tokens.embedding_dim,
        decoder_hidden_size=decoder.rnn.layers[0].hidden_size,
        decoder_layers=len(decoder.rnn.layers),
        decoder_out_embed_dim=decoder.rnn.layers[0].hidden_size,
        decoder_attention="0",
        adaptive_softmax_cutoff=",".join(map(str, adaptive.cutoff[:-1])) if adaptive else None,
        criterion="adaptive_loss" if adaptive else "cross_entropy",  # lstm_lm asks for it
        max_target_positions=10_000,
        tokens_per_sample=10_000,
    )
    base_architecture(options)
    torch.manual_seed(1)
    return LSTMLanguageModel.build_model(options, both(dictionary)).eval().to(model_device(model))


def both(dictionary: Dictionary) -> SimpleNamespace:
    """What a model wants of its task."""
    return SimpleNamespace(
        dictionary=dictionary, source_dictionary=dictionary, target_dictionary=dictionary
    )


def model_device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def by_sequence_scorer(
    model: torch.nn.Module, dictionary: Dictionary, sequences: Sequence[list[int]], batch: int
) -> list[float]:
    """Each sequence's log-probability by fairseq's SequenceScorer, in batches of like length."""
    scorer = SequenceScorer(dictionary)
    scores = [0.0] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    for begin in range(0, len(order), batch):
        numbers = order[begin : begin + batch]
        rows = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(sequences[number]) for number in numbers],
            batch_first=True,
            padding_value=dictionary.pad(),
        ).to(model_device(model))
        inputs, target = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        lengths = target.ne(dictionary.pad()).sum(1)
        sample = {
            "net_input": {"src_tokens": inputs, "src_lengths": lengths},
            "target": target,
        }
        for number, hypothesis in zip(numbers, scorer.generate([model], sample), strict=True):
            scores[number] = float(hypothesis[0]["positional_scores"].sum())
    return scores


def products(call: Callable[[], object]) -> tuple[int, float]:
    """Operations of a call's matrix products, and the seconds that they take on a CPU."""
    with FlopCounterMode(display=False) as counter:
        call()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    averages = profiled.key_averages()
    return counter.get_total_flops(), 1e-6 * sum(
        event.self_cpu_time_total for event in averages if event.key in PRODUCTS
    )


def sharing(scorer: Scorer, texts: Sequence[str], order: int) -> Iterator[dict]:
    """A record for each level: its distinct windows and positions."""
    eos = scorer.encoder.dictionary.eos()
    inputs = [[eos, *scorer.encoder.indices(text.split())] for text in texts]
    tokens = torch.tensor([token for sequence in inputs for token in sequence])
    lengths = [len(sequence) for sequence in inputs]
    shared = distinct_windows(tokens, lengths, order)
    inside = sum(max(0, length - order) for length in lengths)  # windows that all grow to K tokens
    for k, level in enumerate(shared.levels, start=1):
        positions = inside + sum(length >= k for length in lengths)
        yield {"level": k, "positions": positions, "distinct": len(level)}
    contexts = int(shared.context.max()) + 1
    yield {"level": "contexts", "positions": tokens.numel(), "distinct": contexts}


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each way of scoring (`way`), one for each level of windows (`level`), and one
    about the scores and products of shared windows.

    Raises:
        BenchmarkError: if the text or the dictionary is not named, or the text is too short.
    """
    if settings.text is None or (settings.data is None and settings.model is None):
        raise BenchmarkError("rescoring needs --text and, unless --model has it there, --data.")
    device = machine.device
    model, dictionary = model_of(settings, device)
    lstm_lm = lstm_lm_like(model, dictionary)
    encoder = TextEncoder(dictionary)
    scorer = Scorer(WindowScorer(model.decoder), encoder)
    in_bf16 = Scorer(WindowScorer(model.decoder, bf16=True), encoder)

    texts = lists(settings, dictionary)
    part = random.Random(settings.seed).sample(texts, min(settings.part, len(texts)))
    few = part[: max(1, settings.part // 8)]

    def sequences(lines: Sequence[str]) -> list[list[int]]:
        eos = dictionary.eos()
        return [[eos, *encoder.indices(line.split()), eos] for line in lines]

    of_part, of_few = sequences(part), sequences(few)
    ways: dict[str, tuple[Callable[[], object], int]] = {
        OURS: (lambda: scorer.score(texts), len(texts)),
        f"{OURS}, `--bf16`": (lambda: in_bf16.score(texts), len(texts)),
        "the same model by `SequenceScorer`, one at a time": (
            lambda: by_sequence_scorer(model, dictionary, of_few, 1),
            len(few),
        ),
        f"... in batches of {BATCH} of like length": (
            lambda: by_sequence_scorer(model, dictionary, of_part, BATCH),
            len(part),
        ),
        "`lstm_lm` of equal width, in such batches": (
            lambda: by_sequence_scorer(lstm_lm, dictionary, of_part, BATCH),
            len(part),
        ),
    }
    times_of: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(settings.rounds + 1):
        for name, (call, _) in ways.items():
            ms = milliseconds(call, device)
            if number:  # the first round warms up
                times_of[name].append(ms)
    for name, elapsed in times_of.items():
        yield {"way": name, "hypotheses": ways[name][1], "ms": statistics.median(elapsed)}
    yield from sharing(scorer, texts, model.decoder.iterations or max(map(len, of_part)))

    ours = [score.log_probability for score in scorer.score(part)]
    theirs = by_sequence_scorer(model, dictionary, of_part, BATCH)
    bf16 = [score.log_probability for score in in_bf16.score(part)]
    operations, in_products = products(lambda: scorer.score(texts))
    yield {
        "hypotheses": len(texts),
        "tokens": sum(len(text.split()) + 1 for text in texts),
        "vocabulary": len(dictionary),
        "iterations": model.decoder.iterations,
        "largest_difference": float(np.abs(np.subtract(ours, theirs)).max()),
        "bf16_error_per_hypothesis": float(np.abs(np.subtract(ours, bf16)).max()),
        "bf16_error_per_token": float(
            np.abs(np.subtract(ours, bf16)).sum() / sum(len(tokens) - 1 for tokens in of_part)
        ),
        "operations": operations,
        "seconds_in_products": in_products,
    }


def lists(settings: Settings, dictionary: Dictionary) -> list[str]:
    """All hypotheses of all lists."""
    counts = Counter({word: dictionary.count[i] for word, i in dictionary.indices.items()})
    by_rank = [word for word, _ in counts.most_common() if word not in ("<s>", "<pad>", "</s>")]
    rank = {word: place for place, word in enumerate(by_rank)}
    return [
        text
        for words in sentences(Path(settings.text), settings.utterances)
        for text in nbest_list(words, by_rank, rank, settings.hypotheses, settings.seed)
    ]


def tables(run: dict) -> dict[str, str]:
    """`rescoring`: hypotheses a second; `-sharing`: distinct windows; `-scores`: exactness."""
    ways = [record for record in run["records"] if "way" in record]
    levels = [record for record in run["records"] if "level" in record]
    rates = {record["way"]: 1000 * record["hypotheses"] / record["ms"] for record in ways}
    tables = {
        "rescoring": table(
            ("", "hypotheses/s", "shared windows are faster by"),
            [(name, f"{rate:,.0f}", times(rates[OURS] / rate)) for name, rate in rates.items()],
        ),
        "rescoring-sharing": table(
            ("level", "positions", "distinct", "share"),
            [
                (
                    level["level"],
                    f"{level['positions']:,}",
                    f"{level['distinct']:,}",
                    f"{level['distinct'] / level['positions']:.1%}",
                )
                for level in levels
            ],
        ),
    }
    for scores in (record for record in run["records"] if "operations" in record):
        ours = next(record["ms"] for record in ways if record["way"] == OURS) / 1000
        rate = scores["operations"] / scores["seconds_in_products"]
        tables["rescoring-scores"] = table(
            ("quantity", "value"),
            [
                ("hypotheses", f"{scores['hypotheses']:,}"),
                ("tokens", f"{scores['tokens']:,}"),
                ("words of the vocabulary", f"{scores['vocabulary']:,}"),
                ("a score's largest difference to `SequenceScorer`'s",
                 f"{scores['largest_difference']:.1e}"),
                ("a score's largest change by `--bf16`",
                 f"{scores['bf16_error_per_hypothesis']:.1e}"),
                ("its mean change a token", f"{scores['bf16_error_per_token']:.1e}"),
                ("products' share of the time", percent(scores["seconds_in_products"] / ours)),
                ("products' share of the machine's rate",
                 percent(rate / run["machine"]["matrix_rate"]["fp32"])),
            ],
        )  # fmt: skip
    return tables
