"""Evaluate checkpoints with fairseq-eval-lm at several numbers of iterations: a table and a plot.

Writes perplexity.tsv and perplexity.png.
"""

import argparse
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window is needed

import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator, ScalarFormatter

PLUGIN = Path(__file__).resolve().parents[2] / "fairseq_fixedpoint"
ITERATIONS = (1, 2, 3, 4, 8, 12)
EXACT = 0  # what --iterations means by it
# The exact recurrence starts each block anew, so it needs tokens before the ones that count; for
# K iterations the task itself puts the K-1 tokens there.
EXACT_CONTEXT = 128


READING = """\
"parallel" has learned at K = 1, 2, 4 and 8 at once; 3 and 12 are what else it gives. Learning at
several K keeps a model from learning a small text by heart, so that "exact", which has only ever
seen the whole context, may be behind here; on larger texts it is ahead (docs/results.md)."""


def evaluation_command(data: Path, checkpoint: Path, iterations: int) -> list[str]:
    """The command that measures the test perplexity of `checkpoint` at `iterations`."""
    command = ["fairseq-eval-lm", str(data), "--user-dir", str(PLUGIN)]
    command += ["--task", "fixedpoint_language_modeling", "--path", str(checkpoint)]
    command += ["--model-overrides", f'{{"iterations": {iterations}}}']
    command += ["--gen-subset", "test", "--tokens-per-sample", "512", "--cpu"]
    if iterations == EXACT:
        command += ["--context-window", str(EXACT_CONTEXT)]
    return command


def perplexity(data: Path, checkpoint: Path, iterations: int) -> float:
    """The test perplexity that fairseq-eval-lm reports.

    Raises:
        RuntimeError: with the end of its output, if it reports none.
    """
    command = evaluation_command(data, checkpoint, iterations)
    run = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    reported = re.search(r"Perplexity: ([\d.]+)", run.stdout)
    if run.returncode != 0 or reported is None:
        raise RuntimeError(f"{' '.join(command)} reported no perplexity:\n{run.stdout[-2000:]}")
    return float(reported[1])


def label(iterations: int) -> str:
    return "exact" if iterations == EXACT else str(iterations)


def plot(parallel: dict[int, float], exact: float, path: Path) -> None:
    """Draw the perplexities of the parallel model against K, and the exact recurrence's."""
    orders = [iterations for iterations in parallel if iterations != EXACT]
    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    axes.plot(
        orders,
        [parallel[order] for order in orders],
        marker="o",
        label="trained at K = 1, 2, 4, 8 together, run for K iterations",
    )
    axes.axhline(
        parallel[EXACT],
        color="tab:blue",
        linestyle=":",
        label="the same model run as the exact recurrence",
    )
    axes.axhline(
        exact, color="tab:orange", linestyle="--", label="trained and run as the exact recurrence"
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(orders)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("iterations K (the model sees the last K tokens)")
    axes.set_ylabel("test perplexity")
    axes.set_title("Perplexity against the number of fixed-point iterations")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder that fairseq-preprocess made")
    parser.add_argument(
        "--parallel", type=Path, required=True, help="checkpoint trained through iterations"
    )
    parser.add_argument(
        "--exact", type=Path, required=True, help="checkpoint trained as the exact recurrence"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and plot")
    arguments = parser.parse_args()

    first = evaluation_command(arguments.data, arguments.parallel, ITERATIONS[0])
    print(f"$ {shlex.join(first)}\n... and so on for the other rows of this table:")
    runs = [(arguments.parallel, iterations) for iterations in (*ITERATIONS, EXACT)]
    runs.append((arguments.exact, EXACT))
    try:
        # Most of an evaluation is starting Python, so two at a time suit two cores.
        with ThreadPoolExecutor(max_workers=2) as pool:
            perplexities = list(pool.map(lambda run: perplexity(arguments.data, *run), runs))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1

    parallel = dict(zip((*ITERATIONS, EXACT), perplexities, strict=False))
    rows = [("parallel", label(iterations), value) for iterations, value in parallel.items()]
    rows.append(("exact", label(EXACT), perplexities[-1]))
    print(f"\n{'trained':<10}{'iterations K':>14}{'test perplexity':>18}")
    for trained, order, value in rows:
        print(f"{trained:<10}{order:>14}{value:>18.2f}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = arguments.out / "perplexity.tsv"
    lines = ["trained\titerations\tperplexity", *("\t".join(map(str, row)) for row in rows)]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    image = table.with_suffix(".png")
    plot(parallel, perplexities[-1], image)
    print(f"\n{READING}\n\ntable: {table}\nplot:  {image}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
