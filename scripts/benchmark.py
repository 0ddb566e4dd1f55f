"""Speed of the fixed point against the exact recurrences that people use, on this machine.

Two parts, each against code that nobody here wrote:

layer        FixedPointRNN at several K against torch.nn.RNN, LSTM and GRU of the same sizes: a
             training step (forward, and backward to the input and the weights) and the forward
             pass alone.
end-to-end   tokens a second of fairseq-train with fixedpoint_lm against fairseq's lstm_lm: the
             same width, output layer, optimizer and data, no dropout. Without --data the text is
             made up: words drawn independently, frequent ones by Zipf's law.

What is compared runs in turn, round after round, so that a slow spell of the machine meets all
sides alike; a figure is the median over rounds. OMP_NUM_THREADS sets the number of threads. All of
it takes about 6 minutes on 2 cores.

The tables go to the standard output, and with --json and --markdown to files.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works without an installation, too

from fairseq_fixedpoint.recurrence import CELLS, FixedPointRNN  # noqa: E402

PLUGIN = ROOT / "fairseq_fixedpoint"
PARTS = ("layer", "end-to-end")
PRECISIONS = ("fp32", "bf16")
OPTIMIZERS = {"sgd": ["--lr", "0.1"], "adam": ["--lr", "0.001"]}
SYNTHETIC_WORDS = 10_000
FULL_SOFTMAX = "none"


class BenchmarkError(Exception):
    """Something cannot be measured or read; the message is a sentence for the user."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and for how long.

    Attributes:
        parts: which of :data:`PARTS`.
        device: `cpu` or `cuda`.
        width: D = H, of the layer and of the language model.
        cells: of the layer part.
        batches, lengths, iterations: of the layer part, all combinations.
        precisions: of the layer part; bf16 is autocast on both sides. With it the end-to-end part
            measures `--bf16-products` as well, which lstm_lm has no equal of.
        seconds: for the rounds of one combination of the layer part.
        models: names of the end-to-end part, from :data:`MODELS`.
        blocks: batch and tokens per sample of the end-to-end part.
        rounds: how often each model is trained.
        updates: of one training run.
        warm_up: updates at its start that do not count.
        optimizer: one of :data:`OPTIMIZERS`. Adam's dense update of the embeddings is the same
            work on both sides and can hide the rest.
        cutoffs: of the adaptive softmax on both sides, or `none` for a full softmax.
        data: folder from fairseq-preprocess, or None for a synthetic corpus.
        corpus_tokens: length of the synthetic corpus.
    """

    parts: tuple[str, ...] = PARTS
    device: str = "cpu"
    width: int = 256
    cells: tuple[str, ...] = CELLS
    batches: tuple[int, ...] = (1, 20)
    lengths: tuple[int, ...] = (35, 256, 1024)
    iterations: tuple[int, ...] = (2, 5, 8)
    precisions: tuple[str, ...] = ("fp32",)
    seconds: float = 1.0
    models: tuple[str, ...] = ("lstm_lm", "lstm K=5", "elman K=5", "lstm exact")
    blocks: tuple[tuple[int, int], ...] = ((20, 35), (32, 70))
    rounds: int = 3
    updates: int = 40
    warm_up: int = 10
    optimizer: str = "sgd"
    cutoffs: str = "2000,8000"
    data: str | None = None
    corpus_tokens: int = 400_000


CPU = Settings()
CUDA = Settings(
    device="cuda", width=1024, batches=(1, 20, 128), blocks=((20, 35), (128, 128)), updates=200
)
QUICK = Settings(
    width=32,
    batches=(1, 2),
    lengths=(8, 16),
    iterations=(2, 3),
    seconds=0.02,
    models=("lstm_lm", "lstm K=5"),
    blocks=((4, 10),),
    rounds=1,
    updates=20,
    warm_up=10,
    corpus_tokens=100_000,
)

# Name: architecture, and the options that only this model has.
MODELS = {
    "lstm_lm": ("lstm_lm", ()),
    "lstm K=5": ("fixedpoint_lm", ("--cell", "lstm", "--iterations", "5")),
    "gru K=5": ("fixedpoint_lm", ("--cell", "gru", "--iterations", "5")),
    "elman K=5": ("fixedpoint_lm", ("--cell", "elman", "--iterations", "5")),
    "lstm exact": ("fixedpoint_lm", ("--cell", "lstm", "--iterations", "0")),
    "elman exact": ("fixedpoint_lm", ("--cell", "elman", "--iterations", "0")),
}
BASELINE = "lstm_lm"
BF16_PRODUCTS = " bf16-products"


# --- the layer alone ---


def measure_layers(settings: Settings) -> Iterator[dict]:
    """One record for each precision, mode, cell, batch and length."""
    device = torch.device(settings.device)
    for precision, cell, batch, length in itertools.product(
        settings.precisions, settings.cells, settings.batches, settings.lengths
    ):
        x = torch.randn(length, batch, settings.width, device=device, requires_grad=True)
        grad = torch.randn(length, batch, settings.width, device=device)
        for mode in ("training", "forward"):
            calls = layer_calls(cell, x, grad, settings.iterations, mode, precision)
            milliseconds, rounds = interleaved(calls, settings.seconds, device)
            yield {
                "precision": precision,
                "mode": mode,
                "cell": cell,
                "batch": batch,
                "length": length,
                "rounds": rounds,
                "exact_ms": milliseconds["exact"],
                "iterations": {
                    name: {"ms": ms, "times_as_fast": milliseconds["exact"] / ms}
                    for name, ms in milliseconds.items()
                    if name != "exact"
                },
            }


def layer_calls(
    cell: str, x: Tensor, grad: Tensor, iterations: Sequence[int], mode: str, precision: str
) -> dict[str, Callable[[], object]]:
    """What is timed: `exact`, which is PyTorch's own module, and ours under its K.

    Args:
        x: input, ``(T, B, D)``.
        grad: gradient of the output, ``(T, B, D)``.
    """
    ours = FixedPointRNN(x.size(-1), x.size(-1), cell=cell).to(x.device)
    theirs = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell](x.size(-1), x.size(-1))
    theirs = theirs.to(x.device)
    theirs.load_state_dict(ours.layers[0].state_dict())

    def call(module: nn.Module, run: Callable[[], Tensor]) -> Callable[[], object]:
        def timed():
            bf16 = torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16")
            if mode == "forward":
                with torch.no_grad(), bf16:
                    return run()
            x.grad = None
            module.zero_grad()
            with bf16:
                output = run()
            output.backward(grad.to(output.dtype))

        return timed

    calls = {"exact": call(theirs, lambda: theirs(x)[0])}
    for k in iterations:
        calls[str(k)] = call(ours, lambda k=k: ours(x, k).output)
    return calls


def interleaved(
    calls: dict[str, Callable[[], object]], seconds: float, device: torch.device
) -> tuple[dict[str, float], int]:
    """Median milliseconds of each call, run in turn for about `seconds`, and the rounds done."""
    timer = cuda_milliseconds if device.type == "cuda" else cpu_milliseconds
    for call in calls.values():  # warm-up: memory, kernels' choices
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    rounds, end = 0, time.perf_counter() + seconds
    while rounds < 3 or (rounds < 1000 and time.perf_counter() < end):
        for name, call in calls.items():
            taken[name].append(timer(call))
        rounds += 1
    return {name: statistics.median(times) for name, times in taken.items()}, rounds


def cpu_milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def cuda_milliseconds(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


# --- end to end ---


def measure_training(settings: Settings, folder: Path) -> Iterator[dict]:
    """One record for each block size and model.

    Args:
        folder: for what fairseq writes; the synthetic corpus among it.
    """
    data = Path(settings.data) if settings.data else synthetic_data(settings, folder)
    models = list(settings.models)
    if "bf16" in settings.precisions:
        models += [name + BF16_PRODUCTS for name in models if name != BASELINE]
    for batch, tokens in settings.blocks:
        runs: dict[str, list[dict]] = {name: [] for name in models}
        for number, name in itertools.product(range(settings.rounds), models):
            log(f"{name}, batch {batch} x {tokens} tokens, round {number + 1}")
            command = training_command(settings, name, data, batch, tokens, folder)
            runs[name].append(training_speed(command, settings.warm_up))
        counts = {name: runs[name][0]["tokens_per_update"] for name in models}
        check_counts(counts, batch * tokens)
        speeds = {
            name: statistics.median(run["tokens_per_second"] for run in runs[name])
            for name in models
        }
        for name in models:
            yield {
                "batch": batch,
                "tokens_per_sample": tokens,
                "model": name,
                "tokens_per_update": counts[name],
                "tokens_per_second": speeds[name],
                "tokens_per_second_of_rounds": [run["tokens_per_second"] for run in runs[name]],
                "times_as_fast": speeds[name] / speeds[BASELINE],
            }


def training_command(
    settings: Settings, name: str, data: Path, batch: int, tokens: int, folder: Path
) -> list[str]:
    """The fairseq-train call of one model."""
    model = name.removesuffix(BF16_PRODUCTS)
    architecture, own = MODELS[model]
    width = str(settings.width)
    command = [sys.executable, "-m", "fairseq_cli.train", str(data), "--arch", architecture, *own]
    command += ["--decoder-embed-dim", width, "--decoder-hidden-size", width]
    command += ["--decoder-out-embed-dim", width, "--decoder-layers", "1", "--dropout", "0"]
    full = settings.cutoffs == FULL_SOFTMAX
    if not full:
        command += ["--adaptive-softmax-cutoff", settings.cutoffs]
    if architecture == "lstm_lm":
        command += ["--task", "language_modeling"]
        command += ["--criterion", "cross_entropy" if full else "adaptive_loss"]
    else:
        command += ["--user-dir", str(PLUGIN), "--task", "fixedpoint_language_modeling"]
        command += ["--criterion", "fixedpoint_cross_entropy"]
        if not full:
            command += ["--adaptive-softmax-factor", "4"]  # the one that lstm_lm has
    if name.endswith(BF16_PRODUCTS):
        command += ["--bf16-products"]
    command += ["--batch-size", str(batch), "--required-batch-size-multiple", "1"]
    command += ["--tokens-per-sample", str(tokens), "--num-workers", "0", "--seed", "1"]
    command += ["--optimizer", settings.optimizer, *OPTIMIZERS[settings.optimizer]]
    command += ["--max-update", str(settings.updates), "--log-interval", str(interval(settings))]
    command += ["--ddp-backend", "legacy_ddp"]  # fairseq's adaptive_loss insists on it
    command += ["--disable-validation", "--no-save", "--save-dir", str(folder / "none")]
    command += ["--no-progress-bar", "--log-format", "json"]
    return command + (["--cpu"] if settings.device == "cpu" else [])


def interval(settings: Settings) -> int:
    """Updates between two lines of the log; the warm-up is a whole number of them."""
    return max(1, settings.warm_up // 2)


def training_speed(command: list[str], warm_up: int) -> dict:
    """Runs fairseq-train: tokens an update, and the median tokens a second after the warm-up.

    Raises:
        BenchmarkError: with the end of its output, if it fails or logs no speed.
    """
    run = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    measured = [
        line for line in logged(run.stdout.splitlines()) if int(line["num_updates"]) > warm_up
    ]
    if run.returncode != 0 or not measured:
        raise BenchmarkError(f"{' '.join(command)} measured no speed:\n{run.stdout[-3000:]}")
    return {
        # Targets, as the criterion counts them: left context is not among them.
        "tokens_per_update": statistics.median(float(line["wpb"]) for line in measured),
        "tokens_per_second": statistics.median(float(line["wps"]) for line in measured),
    }


def logged(lines: Sequence[str]) -> Iterator[dict]:
    """The statistics that fairseq logged in training, each over the updates since the last."""
    for line in lines:
        _, found, text = line.partition("| train_inner | ")
        if found:
            yield json.loads(text)


def check_counts(tokens_per_update: dict[str, float], expected: int) -> None:
    """Raises BenchmarkError unless every model counts the same tokens in an update."""
    for name, count in tokens_per_update.items():
        if abs(count - expected) > 0.01 * expected:
            raise BenchmarkError(
                f"{name} counts {count:g} tokens an update where a batch has {expected}, so its "
                "tokens a second cannot be compared: give more text, or smaller batches."
            )


def synthetic_data(settings: Settings, folder: Path) -> Path:
    """Words drawn by Zipf's law, always the same ones, binarised by fairseq-preprocess."""
    chooser = random.Random(1)
    words = [f"w{number}" for number in range(SYNTHETIC_WORDS)]
    cumulative = list(itertools.accumulate(1 / (rank + 1) for rank in range(SYNTHETIC_WORDS)))
    text = folder / "train.txt"
    with text.open("w", encoding="utf-8") as lines:
        for _ in range(settings.corpus_tokens // 21):  # 20 words and </s>
            lines.write(" ".join(chooser.choices(words, cum_weights=cumulative, k=20)) + "\n")
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--only-source"]
    command += ["--trainpref", str(text), "--destdir", str(folder / "data-bin")]
    log("making a synthetic corpus")
    run = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if run.returncode != 0:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{run.stdout[-3000:]}")
    return folder / "data-bin"


# --- results ---


def measure(settings: Settings) -> dict:
    """Everything that the settings ask for, and what it was measured on."""
    results = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(settings.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "settings": asdict(settings),
    }
    if "layer" in settings.parts:
        log(f"the layer alone, {torch.get_num_threads()} threads")
        results["layer"] = list(measure_layers(settings))
    if "end-to-end" in settings.parts:
        with tempfile.TemporaryDirectory() as folder:
            results["end_to_end"] = list(measure_training(settings, Path(folder)))
    return results


def hardware(device: str) -> str:
    """Name of the GPU, or of the processor and the number of cores this process may use."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    return f"{name}, {cores} cores"


def render(results: dict) -> str:
    """The results as Markdown."""
    settings = results["settings"]
    lines = [
        f"{results['hardware']}; {results['threads']} threads, torch {results['torch']}, "
        f"{results['date']}.",
        "",
    ]
    records = results.get("layer", [])
    for precision, mode in dict.fromkeys((r["precision"], r["mode"]) for r in records):
        doing = "Training step (forward and backward)" if mode == "training" else "Forward pass"
        lines += [
            f"{doing} of one layer, width {settings['width']}, {precision}: milliseconds, and "
            "how many times as fast as the exact recurrence of torch.nn.",
            "",
            *layer_table(
                [r for r in records if (r["precision"], r["mode"]) == (precision, mode)],
                settings["iterations"],
            ),
            "",
        ]
    if "end_to_end" in results:
        softmax = (
            "full softmax"
            if settings["cutoffs"] == FULL_SOFTMAX
            else f"adaptive softmax ({settings['cutoffs']})"
        )
        lines += [
            f"fairseq-train, width {settings['width']}, one layer, {softmax}, "
            f"{settings['optimizer']}, {'a given' if settings['data'] else 'a synthetic'} text: "
            "tokens a second, and how many times as fast as fairseq's lstm_lm.",
            "",
            *training_table(results["end_to_end"]),
            "",
        ]
    return "\n".join(lines)


def layer_table(records: Sequence[dict], iterations: Sequence[int]) -> Iterator[str]:
    yield from head("cell", "batch", "length", "torch.nn", *(f"K={k}" for k in iterations))
    for r in records:
        ours = [r["iterations"][str(k)] for k in iterations]
        yield row(
            r["cell"],
            r["batch"],
            r["length"],
            duration(r["exact_ms"]),
            *(f"{duration(item['ms'])} ({item['times_as_fast']:.1f}x)" for item in ours),
        )


def training_table(records: Sequence[dict]) -> Iterator[str]:
    yield from head("batch", "tokens per sample", "model", "tokens/s", "times lstm_lm")
    for r in records:
        yield row(
            r["batch"],
            r["tokens_per_sample"],
            r["model"] if r["model"] == BASELINE else f"fixedpoint_lm, {r['model']}",
            f"{r['tokens_per_second']:,.0f}",
            f"{r['times_as_fast']:.2f}x",
        )


def duration(milliseconds: float) -> str:
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def head(*names: str) -> tuple[str, str]:
    return row(*names), "|---" * len(names) + "|"


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def write_whole(path: Path, text: str) -> None:
    """Writes a file, or leaves what was there."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp's files are for their owner alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def log(message: str) -> None:
    print(f"benchmark: {message}", file=sys.stderr, flush=True)


# --- the command line ---


def parser() -> argparse.ArgumentParser:
    def several(kind: Callable[[str], object]) -> Callable[[str], tuple]:
        def parse(text: str) -> tuple:
            return tuple(kind(item) for item in text.split(","))

        parse.__name__ = "comma-separated list"  # argparse's errors name it
        return parse

    def positive(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text} must be at least 1.")
        return int(text)

    result = argparse.ArgumentParser(
        prog="scripts/benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--quick", action="store_true", help="tiny sizes: a check that everything runs")
    add("--only", choices=PARTS, help="one part")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--width", type=positive, help="units (default: 256; 1024 on a GPU)")
    add("--batches", type=several(positive), help="of the layer part (default: 1,20)")
    add("--lengths", type=several(positive), help="of the layer part (default: 35,256,1024)")
    add("--iterations", type=several(positive), help="K of the layer part (default: 2,5,8)")
    add("--bf16", action="store_true", help="bf16 products as well (autocast)")
    add("--seconds", type=float, help="for one line of the layer part (default: 1)")
    add("--rounds", type=positive, help="training runs of each model (default: 3)")
    add("--updates", type=positive, help="of a training run (default: 40; 200 on a GPU)")
    add("--warm-up", type=positive, help="updates that do not count (default: 10)")
    add("--optimizer", choices=sorted(OPTIMIZERS), help="of both sides (default: sgd)")
    add("--cutoffs", help="of both adaptive softmaxes, or 'none' for a full softmax")
    add("--data", metavar="FOLDER", help="from fairseq-preprocess (default: synthetic text)")
    add("--json", type=Path, metavar="FILE", help="write all numbers there")
    add("--markdown", type=Path, metavar="FILE", help="write the tables there")
    add("--render", type=Path, metavar="FILE", help="measure nothing: the tables of a --json file")
    return result


def settings_of(args: argparse.Namespace) -> Settings:
    """The preset of the device, or the quick one, with the options that were given.

    Raises:
        BenchmarkError: naming the option that cannot be honoured.
    """
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("--device cuda needs a GPU that torch can use: none was found.")
    preset = replace(QUICK, device=device) if args.quick else CUDA if device == "cuda" else CPU
    given = {
        name: value
        for name, value in vars(args).items()
        if value is not None and name in Settings.__dataclass_fields__
    }
    if args.only:
        given["parts"] = (args.only,)
    if args.bf16:
        given["precisions"] = PRECISIONS
    settings = replace(preset, **given)
    if settings.updates <= settings.warm_up:
        raise BenchmarkError(
            f"--updates {settings.updates} leaves nothing after --warm-up {settings.warm_up}: "
            "make it larger."
        )
    if settings.data and not Path(settings.data, "dict.txt").exists():
        raise BenchmarkError(
            f"--data {settings.data} has no dict.txt: give the folder that fairseq-preprocess "
            "wrote."
        )
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        for path in (args.json, args.markdown):
            if path is not None and not path.absolute().parent.is_dir():
                raise BenchmarkError(f"{path} cannot be written: its folder does not exist.")
        results = measure(settings_of(args)) if args.render is None else read(args.render)
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    text = render(results)
    if args.json is not None:
        write_whole(args.json, json.dumps(results, indent=1) + "\n")
    if args.markdown is not None:
        write_whole(args.markdown, text)
    print(text, end="")
    return 0


def read(path: Path) -> dict:
    """The results in a file that --json wrote.

    Raises:
        BenchmarkError: if there is no such file, or it is another one.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        render(results)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f"{path} cannot be rendered ({error}): give a file that --json wrote."
        ) from error
    return results


if __name__ == "__main__":
    sys.exit(main())
