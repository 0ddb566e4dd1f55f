"""Speed of rescoring lattices exactly, against rescoring their n-best lists with fairseq.

  expansion    seconds a lattice and states after expansion, for each K and beam; in how many
               lattices a beam's best words are those of twice the beam
  lstm_lm      seconds a lattice for scoring its 1,000 best word sequences with fairseq's lstm_lm of
               equal width and output layer (random weights, which change no time), through
               SequenceScorer in batches of like length

Lattices are read beforehand: what is timed is rescoring and the search for the best path.
OMP_NUM_THREADS sets the number of threads.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmark import hardware, head, log, row  # the script beside this one
from benchmark_rescoring import by_sequence_scorer, lstm_lm_like, model_device, report

from fairseq_fixedpoint.formats import Lattice, lattice_format, read_lattices
from fairseq_fixedpoint.rescoring.checkpoints import load_language_model
from fairseq_fixedpoint.rescoring.lattice_search import best_path, nbest
from fairseq_fixedpoint.rescoring.lattices import LatticeRescorer
from fairseq_fixedpoint.rescoring.scorer import Scorer
from fairseq_fixedpoint.rescoring.text import TextEncoder
from fairseq_fixedpoint.rescoring.token_scorers import WindowScorer

BATCH = 64
LARGE = 7_500  # links; up to 9,000 and a little more is what the aim speaks of


def expansion(args: argparse.Namespace, lattices: Sequence[Lattice], scorer: Scorer) -> list[dict]:
    """One record for each order and beam."""
    records = []
    decoder = scorer.tokens.decoder
    for order in args.iterations:
        decoder.iterations = order
        at_order = Scorer(WindowScorer(decoder), scorer.encoder, scorer.unknown_penalty)
        best: dict[float, list[tuple[str, ...]]] = {}
        for beam in args.beams:
            rescorer = LatticeRescorer(
                model=at_order,
                name="FixedPoint0",
                ngrams={},
                weights={"acoustic": args.acoustic_scale, "FixedPoint0": args.lm_scale},
                beam=beam,
                limit=args.max_states,
            )
            rescorer(lattices[0])  # warms up
            taken, states, shortened, best[beam] = [], [], 0, []
            for lattice in lattices:
                begin = time.perf_counter()
                rescored = rescorer(lattice)
                words = best_path(rescored.graph).words
                taken.append(time.perf_counter() - begin)
                states.append(rescored.states)
                shortened += rescored.shortened > 0
                best[beam].append(words)
            large = [
                s for s, lattice in zip(taken, lattices, strict=True) if len(lattice.words) >= LARGE
            ]
            records.append(
                {
                    "iterations": order,
                    "beam": beam,
                    "seconds": {
                        "median": statistics.median(taken),
                        "mean": statistics.fmean(taken),
                        "largest": max(taken),
                        "median_of_large": statistics.median(large) if large else None,
                    },
                    "states": statistics.median(states),
                    "most_states": max(states),
                    "shortened": shortened,
                }
            )
            log(f"K = {order}, beam {beam:g}: {sum(taken):.1f} s for {len(taken)} lattices")
        for record in records[-len(args.beams) :]:
            twice = best.get(2 * record["beam"])
            record["as_twice_the_beam"] = (
                sum(map(tuple.__eq__, best[record["beam"]], twice)) if twice else None
            )
    return records


def by_lists(
    args: argparse.Namespace, lattices: Sequence[Lattice], scorer: Scorer, lstm_lm: torch.nn.Module
) -> dict:
    """Scoring the 1,000 best of the first pass with lstm_lm, for some of the lattices."""
    rescorer = LatticeRescorer(scorer, "FixedPoint0", {}, {"acoustic": args.acoustic_scale})
    dictionary = scorer.encoder.dictionary
    taken, sizes = [], []
    for lattice in lattices[:: max(1, len(lattices) // args.lists)][: args.lists]:
        paths = nbest(rescorer.first_pass(lattice), 1000)
        sequences = [
            [dictionary.eos(), *scorer.encoder.indices(list(path.words)), dictionary.eos()]
            for path in paths
        ]
        begin = time.perf_counter()
        by_sequence_scorer(lstm_lm, dictionary, sequences, BATCH)
        taken.append(time.perf_counter() - begin)
        sizes.append(len(paths))
    return {
        "lattices": len(taken),
        "hypotheses": statistics.fmean(sizes),
        "seconds": {"median": statistics.median(taken), "mean": statistics.fmean(taken)},
    }


def measure(args: argparse.Namespace) -> dict:
    """Everything, as JSON has it."""
    form = lattice_format(args.lattices)
    lattices = [lattice for lattice in read_lattices(args.lattices, form)][: args.most]
    model, dictionary = load_language_model(args.model, args.data, device=args.device)
    scorer = Scorer(WindowScorer(model.decoder), TextEncoder(dictionary), args.unknown_penalty)
    links = sorted(len(lattice.words) for lattice in lattices)
    return {
        "hardware": hardware(model_device(model).type),
        "links": {"median": statistics.median(links), "most": links[-1], "lattices": len(links)},
        "large": {"links": LARGE, "lattices": sum(size >= LARGE for size in links)},
        "lstm_lm": by_lists(args, lattices, scorer, lstm_lm_like(model, dictionary)),
        "expansion": expansion(args, lattices, scorer),
    }


def render(results: dict) -> str:
    """The results as Markdown."""
    links, large, lists = results["links"], results["large"], results["lstm_lm"]
    lines = [
        f"{results['hardware']}. {links['lattices']} lattices, median {links['median']:,.0f} "
        f"links, at most {links['most']:,}; {large['lattices']} have {large['links']:,} or more "
        "(large).",
        "",
        *head(
            "K", "beam", "seconds, median", "mean", "large, median", "longest", "states, median",
            "most", "as twice the beam", "past the limit",
        ),
    ]  # fmt: skip
    for record in results["expansion"]:
        seconds = record["seconds"]
        same = record["as_twice_the_beam"]
        of_large = seconds["median_of_large"]
        lines.append(
            row(
                record["iterations"],
                f"{record['beam']:g}",
                f"{seconds['median']:.2f}",
                f"{seconds['mean']:.2f}",
                "" if of_large is None else f"{of_large:.2f}",
                f"{seconds['largest']:.2f}",
                f"{record['states']:,.0f}",
                f"{record['most_states']:,}",
                "" if same is None else f"{same} of {links['lattices']}",
                record["shortened"],
            )
        )
    lines += [
        "",
        f"fairseq's lstm_lm on lists of {lists['hypotheses']:.0f} hypotheses on average, of "
        f"{lists['lattices']} of the lattices: {lists['seconds']['median']:.2f} seconds a lattice "
        f"(median; mean {lists['seconds']['mean']:.2f}).",
    ]
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("lattices", type=Path, help="a folder of lattices, or a list of files")
    found.add_argument("--model", type=Path, required=True, help="checkpoint of fixedpoint_lm")
    found.add_argument("--data", type=Path, help="folder with its dict.txt")
    found.add_argument("--acoustic-scale", type=float, default=0.05)
    found.add_argument("--lm-scale", type=float, default=1.0)
    found.add_argument("--unknown-penalty", type=float, default=0.0)
    found.add_argument("--iterations", type=int, nargs="+", default=[1, 2, 3, 4, 5, 8])
    found.add_argument("--beams", type=float, nargs="+", default=[5, 10, 20])
    found.add_argument("--max-states", type=int, default=200_000)
    found.add_argument("--most", type=int, default=100, help="lattices (default: 100)")
    found.add_argument("--lists", type=int, default=5, help="lattices for lstm_lm (default: 5)")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--json", type=Path, metavar="FILE")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    results = measure(args)
    report(results, render(results), args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
