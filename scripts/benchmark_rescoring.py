"""Speed of scoring n-best lists over shared windows, against fairseq's own way of scoring them.

Lists: sentences of a text go through a seeded confusion channel, in which some words have
alternatives of like frequency, each at a cost; the list is the exact n-best of that channel.

What is compared, in turn, round after round; a figure is the median over rounds:

  shared windows         the model by rescoring.Scorer, a group of utterances at a time
  ... in bfloat16        the same with --bf16
  SequenceScorer, 1      the same model and weights, a hypothesis at a time
  SequenceScorer, batch  the same model and weights, in batches of like length
  lstm_lm, batch         fairseq's lstm_lm of equal width and output layer, in such batches

fairseq's ways score a seeded part of the lists, as they would take long. Scores are compared on it.
Without --model the weights are random, which changes no time. OMP_NUM_THREADS sets the threads.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import json
import random
import statistics
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from benchmark import hardware, head, row, write_whole  # scripts/benchmark.py, beside this file
from fairseq.data import Dictionary
from fairseq.models.lstm_lm import LSTMLanguageModel, base_architecture
from fairseq.sequence_scorer import SequenceScorer
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works without an installation, too

from fairseq_fixedpoint.models.fixedpoint_lm import (  # noqa: E402
    FixedPointLanguageModel,
    FixedPointLanguageModelConfig,
)
from fairseq_fixedpoint.rescoring.checkpoints import load_language_model  # noqa: E402
from fairseq_fixedpoint.rescoring.scorer import Scorer  # noqa: E402
from fairseq_fixedpoint.rescoring.text import TextEncoder  # noqa: E402
from fairseq_fixedpoint.rescoring.token_scorers import WindowScorer  # noqa: E402
from fairseq_fixedpoint.windows import distinct_windows  # noqa: E402

BATCH = 64
ALTERNATIVES = 3
CONFUSED = 0.4  # share of the words that have alternatives
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")


def sentences(path: Path, count: int) -> list[list[str]]:
    """The first sentences of 10 to 40 words, ended by a full stop, of a tokenised text."""
    opened = gzip.open if path.suffix == ".gz" else open
    found = []
    with opened(path, "rt", encoding="utf-8") as file:
        for line in file:
            for sentence in " ".join(line.split()).split(" . "):
                words = sentence.removesuffix(" .").split()
                if 10 <= len(words) <= 40:
                    found.append([*words, "."])
                if len(found) == count:
                    return found
    raise SystemExit(f"{path} has only {len(found)} sentences of 10 to 40 words, not {count}.")


def nbest_list(words: list[str], by_rank: list[str], rank: dict[str, int], size: int, seed: int):
    """The `size` cheapest outputs of the channel, at most, as text."""
    chooser = random.Random(f"{seed} {' '.join(words)}")
    best: list[tuple[float, tuple[str, ...]]] = [(0.0, ())]
    for word in words:
        options = {word: 0.0}
        if word in rank and chooser.random() < CONFUSED:
            near = rank[word] + np.array([chooser.randint(-20, 20) for _ in range(ALTERNATIVES)])
            for place in near.clip(0, len(by_rank) - 1):
                other, cost = by_rank[int(place)], chooser.expovariate(0.5)
                options[other] = min(cost, options.get(other, cost))
        # Sequences of other words at one place are other sequences, so none comes twice.
        best = heapq.nsmallest(
            size,
            ((cost + more, (*said, word)) for cost, said in best for word, more in options.items()),
        )
    return [" ".join(said) for _, said in best]


def model_of(args: argparse.Namespace) -> tuple[FixedPointLanguageModel, Dictionary]:
    """The checkpoint's model, or one with random weights."""
    if args.model is not None:
        model, dictionary = load_language_model(args.model, args.data, device=args.device)
        return model, dictionary
    dictionary = Dictionary.load(str(args.data / "dict.txt"))
    cfg = FixedPointLanguageModelConfig(
        cell=args.cell,
        iterations=args.iterations,
        decoder_embed_dim=args.width,
        adaptive_softmax_cutoff=None if args.cutoffs == "none" else args.cutoffs,
        adaptive_softmax_factor=2.0,
    )
    torch.manual_seed(1)
    model = FixedPointLanguageModel.build_model(cfg, both(dictionary))
    return model.eval().to(args.device), dictionary


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
    found = [0.0] * len(sequences)
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
            found[number] = float(hypothesis[0]["positional_scores"].sum())
    return found


def seconds(call: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def peak(device: torch.device) -> float:
    """Operations a second of a large float32 matrix product."""
    size = 4096
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(5))


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


def sharing(scorer: Scorer, texts: Sequence[str], order: int) -> list[dict]:
    """Distinct windows and positions of each level."""
    eos = scorer.encoder.dictionary.eos()
    inputs = [[eos, *scorer.encoder.indices(text.split())] for text in texts]
    tokens = torch.tensor([token for sequence in inputs for token in sequence])
    shared = distinct_windows(tokens, [len(sequence) for sequence in inputs], order)
    levels = [
        {"level": k, "positions": positions, "distinct": len(level)}
        for k, (level, positions) in enumerate(zip(shared.levels, shared.positions, strict=True), 1)
    ]
    contexts = int(shared.context.max()) + 1
    return [*levels, {"level": "contexts", "positions": tokens.numel(), "distinct": contexts}]


def measure(args: argparse.Namespace) -> dict:
    """Everything, as JSON has it."""
    model, dictionary = model_of(args)
    device = model_device(model)
    lstm_lm = lstm_lm_like(model, dictionary)
    encoder = TextEncoder(dictionary)
    scorer = Scorer(WindowScorer(model.decoder), encoder)
    in_bf16 = Scorer(WindowScorer(model.decoder, bf16=True), encoder)

    counts = Counter({word: dictionary.count[i] for word, i in dictionary.indices.items()})
    by_rank = [word for word, _ in counts.most_common() if word not in ("<s>", "<pad>", "</s>")]
    rank = {word: place for place, word in enumerate(by_rank)}
    texts = [
        text
        for words in sentences(args.text, args.utterances)
        for text in nbest_list(words, by_rank, rank, args.hypotheses, args.seed)
    ]
    part = random.Random(args.seed).sample(texts, min(args.part, len(texts)))
    few = part[: max(1, args.part // 8)]

    def sequences(lines: Sequence[str]) -> list[list[int]]:
        eos = dictionary.eos()
        return [[eos, *encoder.indices(line.split()), eos] for line in lines]

    of_part, of_few = sequences(part), sequences(few)
    ways = {
        "shared windows": (lambda: scorer.score(texts), len(texts)),
        "shared windows, bfloat16": (lambda: in_bf16.score(texts), len(texts)),
        "SequenceScorer, one at a time": (
            lambda: by_sequence_scorer(model, dictionary, of_few, 1),
            len(few),
        ),
        f"SequenceScorer, batches of {BATCH}": (
            lambda: by_sequence_scorer(model, dictionary, of_part, BATCH),
            len(part),
        ),
        f"lstm_lm, SequenceScorer, batches of {BATCH}": (
            lambda: by_sequence_scorer(lstm_lm, dictionary, of_part, BATCH),
            len(part),
        ),
    }
    fastest = peak(device)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, (call, _) in ways.items():
            elapsed = seconds(call, device)
            if number:  # the first round warms up
                taken[name].append(elapsed)
    rates = {name: ways[name][1] / statistics.median(times) for name, times in taken.items()}

    ours = [score.log_probability for score in scorer.score(part)]
    theirs = by_sequence_scorer(model, dictionary, of_part, BATCH)
    bf16 = [score.log_probability for score in in_bf16.score(part)]
    tokens = sum(len(sequence) - 1 for sequence in of_part)
    operations, in_products = products(lambda: scorer.score(texts))
    fastest = max(fastest, peak(device))  # of two moments, should one meet a slow spell
    decoder = model.decoder
    return {
        "hardware": hardware(device.type),
        "model": {
            "cell": type(decoder.rnn.cell).__name__,
            "iterations": decoder.iterations,
            "width": decoder.rnn.layers[0].hidden_size,
            "vocabulary": len(dictionary),
            "adaptive": decoder.adaptive_softmax is not None,
            "trained": args.model is not None,
        },
        "lists": {
            "utterances": args.utterances,
            "hypotheses": len(texts),
            "tokens": sum(len(text.split()) + 1 for text in texts),
            "seed": args.seed,
        },
        "hypotheses_per_second": rates,
        "rounds": taken,
        "largest_difference": float(np.abs(np.subtract(ours, theirs)).max()),
        "bf16_error_per_hypothesis": float(np.abs(np.subtract(ours, bf16)).max()),
        "bf16_error_per_token": float(np.abs(np.subtract(ours, bf16)).sum() / tokens),
        "sharing": sharing(scorer, texts, decoder.iterations or max(map(len, of_part))),
        "operations": operations,
        "share_of_time_in_products": in_products / statistics.median(taken["shared windows"]),
        "products_share_of_peak": operations / in_products / fastest,
        "peak": fastest,
    }


def render(results: dict) -> str:
    """The results as Markdown."""
    model, lists, rates = (results[key] for key in ("model", "lists", "hypotheses_per_second"))
    ours = rates["shared windows"]
    weights = "trained" if model["trained"] else "random"
    lines = [
        f"{results['hardware']}. {model['cell']}, K = {model['iterations']}, width "
        f"{model['width']}, {model['vocabulary']:,} words, "
        f"{'adaptive' if model['adaptive'] else 'full'} softmax, {weights} weights. "
        f"{lists['hypotheses']:,} hypotheses of {lists['utterances']} utterances, "
        f"{lists['tokens']:,} tokens.",
        "",
        *head("", "hypotheses/s", "shared windows are faster by"),
    ]
    lines += [row(name, f"{rate:,.0f}", f"{ours / rate:.1f}x") for name, rate in rates.items()]
    lines += ["", *head("level", "positions", "distinct", "share")]
    lines += [
        row(
            level["level"],
            f"{level['positions']:,}",
            f"{level['distinct']:,}",
            f"{level['distinct'] / level['positions']:.1%}",
        )
        for level in results["sharing"]
    ]
    lines += [
        "",
        f"Largest difference to SequenceScorer's score of a hypothesis: "
        f"{results['largest_difference']:.1e}. bfloat16 changes a hypothesis's score by "
        f"{results['bf16_error_per_hypothesis']:.1e} at most and "
        f"{results['bf16_error_per_token']:.1e} a token on average.",
        "",
        f"{results['operations'] / 1e9:,.1f} GFLOP of matrix products, "
        f"{results['share_of_time_in_products']:.0%} of the time, at "
        f"{results['products_share_of_peak']:.0%} of the machine's peak "
        f"({results['peak'] / 1e9:,.0f} GFLOP/s, a 4096 x 4096 product).",
    ]
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--text", type=Path, required=True, help="tokenised text, gzip allowed")
    found.add_argument("--data", type=Path, required=True, help="folder with the dict.txt")
    found.add_argument("--model", type=Path, help="checkpoint of fixedpoint_lm (default: random)")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--utterances", type=int, default=80)
    found.add_argument("--hypotheses", type=int, default=100, help="of a list (default: 100)")
    found.add_argument("--part", type=int, default=800, help="hypotheses for fairseq's ways")
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--seed", type=int, default=1)
    random_model = found.add_argument_group("model with random weights")
    random_model.add_argument("--cell", default="elman")
    random_model.add_argument("--iterations", type=int, default=5)
    random_model.add_argument("--width", type=int, default=256)
    random_model.add_argument("--cutoffs", default="none", help="of an adaptive softmax, or none")
    found.add_argument("--json", type=Path, metavar="FILE")
    return found


def report(results: dict, text: str, path: Path | None) -> None:
    """Prints the results as `text`, and saves them as JSON if a path is given."""
    print(text, end="")
    if path is not None:
        write_whole(path, json.dumps(results, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    results = measure(args)
    report(results, render(results), args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
