"""Generation: tokens a second, and peak memory against the length of what is generated.

"ours" is a model of order K under `FixedPointSequenceGenerator`, "bf16" the same with
`--bf16-output`, and "lstm_lm" is fairseq's, of equal width and with the same output layer, under
fairseq's `SequenceGenerator`; "theirs" is our model under fairseq's generator, which tells what the
generator does from what the model does. Weights are random, hypotheses begin at the sentence start,
and all are of the given length. A token is one that is returned: a beam counts once. Beams are
recombined, which is the default.

Fusion is `--lm-path`: a translation model and a language model beside it, of the sizes of
examples/translation, against the translation model alone, under either generator.

The floor has the matrix products of one step at a time, since a token cannot be known before the
last one: the weights are read again for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator
from matplotlib.figure import Figure

from fairseq_fixedpoint.plugin.generation import FixedPointSequenceGenerator
from fairseq_fixedpoint.plugin.models.fixedpoint import (
    FixedPointTranslationConfig,
    FixedPointTranslationModel,
)
from fairseq_fixedpoint.plugin.models.fixedpoint_lm import (
    FixedPointLanguageModel,
    FixedPointLanguageModelConfig,
)
from scripts.benchmarks.figures import COLOURS, logarithmic, new_figure
from scripts.benchmarks.floors import GATES, PARTS, Work, output_work, share
from scripts.benchmarks.machine import Machine
from scripts.benchmarks.markdown import mebibytes, number, percent, ratio, table, times
from scripts.benchmarks.measuring import interleaved, peak_bytes
from scripts.benchmarks.rescoring import both, lstm_lm_like

WAYS = {
    "ours": "K iterates, our generator",
    "bf16": "the same, `--bf16-output`",
    "theirs": "K iterates, fairseq's generator",
    "lstm_lm": "lstm_lm, fairseq's generator",
}
GENERATORS = {"ours": "our generator", "theirs": "fairseq's generator"}
ITEMSIZE = 4


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        cell: ours.
        iterations: K.
        width: of embeddings and layer.
        words: of the vocabulary, under a full softmax.
        batches: sentences generated at once.
        beams: hypotheses a sentence.
        lengths: tokens a hypothesis.
        memory_lengths: tokens a hypothesis where the peak of memory is measured, with the last of
            `beams` and one sentence.
        fusion_words, fusion_batch, fusion_length: vocabulary, sentences and tokens of a source
            and its translations, with the last of `beams`, where a language model is beside.
        seconds: for the rounds of one batch, beam and length.
    """

    cell: str = "elman"
    iterations: int = 5
    width: int = 256
    words: int = 10_000
    batches: tuple[int, ...] = (1, 32)
    beams: tuple[int, ...] = (1, 5)
    lengths: tuple[int, ...] = (64, 1024)
    memory_lengths: tuple[int, ...] = (64, 256, 1024)
    fusion_words: int = 2_000
    fusion_batch: int = 50
    fusion_length: int = 12
    seconds: float = 3.0


PRESETS = {
    "cpu": Settings(),
    "cuda": Settings(width=1024, words=33_000, memory_lengths=(64, 256, 1024, 4096)),
    "quick": Settings(
        width=8, words=30, batches=(1, 2), beams=(1, 2), lengths=(4, 8), memory_lengths=(4, 8),
        fusion_words=30, fusion_batch=2, fusion_length=4, seconds=0.01,
    ),
}  # fmt: skip


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each way, batch, beam and length; then for each way and length the memory, and
    for each generator the time of translations without and with a language model."""
    generators = _generators(settings, machine.device)
    for length in settings.lengths:
        for batch in settings.batches:
            for beam in settings.beams:
                calls = {way: generate(batch, beam, length) for way, generate in generators.items()}
                milliseconds, _ = interleaved(calls, settings.seconds, machine.device)
                work = step_work(settings, batch * beam) * length
                for way in WAYS:
                    yield {
                        "task": "speed",
                        "way": way,
                        "batch": batch,
                        "beam": beam,
                        "length": length,
                        "ms": milliseconds[way],
                        "operations": work.operations,
                        "bytes": work.bytes,
                    }
    for length in settings.memory_lengths:
        for way, generate in generators.items():
            peak = peak_bytes(generate(1, settings.beams[-1], length), machine.device)
            yield {
                "task": "memory",
                "way": way,
                "batch": 1,
                "beam": settings.beams[-1],
                "length": length,
                "peak": peak,
            }
    milliseconds, _ = interleaved(
        _translations(settings, machine.device), settings.seconds, machine.device
    )
    for way in GENERATORS:
        alone, fused = (milliseconds[f"{way} {kind}"] for kind in ("alone", "fused"))
        yield {"task": "fusion", "way": way, "ms_alone": alone, "ms": fused}


def step_work(settings: Settings, rows: int) -> Work:
    """One token of each of so many hypotheses: the product of the input once, and those of the K
    states in the cache, of which that of iteration 0 is one for all."""
    width, gates = settings.width, GATES[settings.cell]
    product = 2 * rows * gates * width * width
    states = rows * settings.iterations * PARTS[settings.cell] * width
    layer = Work(
        operations=settings.iterations * product,
        bytes=ITEMSIZE * (2 * gates * width * width + rows * width + 2 * states),
    )
    return layer + output_work(rows, width, settings.words, False, ITEMSIZE)


def _generators(
    settings: Settings, device: torch.device
) -> dict[str, Callable[[int, int, int], Callable[[], object]]]:
    """For each way what makes a call from batch, beam and length."""
    dictionary = _dictionary(settings.words)
    torch.manual_seed(1)
    cfg = FixedPointLanguageModelConfig(
        cell=settings.cell, iterations=settings.iterations, decoder_embed_dim=settings.width
    )
    model = FixedPointLanguageModel.build_model(cfg, both(dictionary)).eval().to(device)
    ways = {
        "ours": (FixedPointSequenceGenerator, model),
        "bf16": (partial(FixedPointSequenceGenerator, bf16_output=True), model),
        "theirs": (SequenceGenerator, model),
        "lstm_lm": (SequenceGenerator, lstm_lm_like(model, dictionary)),
    }

    def maker(generator_class, language_model):
        def make(batch: int, beam: int, length: int):
            generator = generator_class(
                [language_model], dictionary, beam_size=beam, min_len=length, max_len_b=length
            )
            starts = torch.full((batch, 1), dictionary.eos(), device=device)
            sample = {"id": torch.arange(batch), "net_input": {"src_tokens": starts}}
            return lambda: generator.generate([language_model], sample)

        return make

    return {way: maker(*parts) for way, parts in ways.items()}


def _translations(settings: Settings, device: torch.device) -> dict[str, Callable[[], object]]:
    """Calls that translate a batch under either generator, "alone" or "fused" with a language
    model."""
    dictionary = _dictionary(settings.fusion_words)
    torch.manual_seed(1)
    sizes = dict.fromkeys(("encoder_embed_dim", "decoder_embed_dim"), 128)
    sizes |= dict.fromkeys(("encoder_hidden_size", "decoder_hidden_size"), 144)
    cfg = FixedPointTranslationConfig(
        cell="lstm", iterations=3, share_decoder_input_output_embed=True, **sizes
    )
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model = FixedPointTranslationModel.build_model(cfg, task).eval().to(device)
    lm_cfg = FixedPointLanguageModelConfig(
        cell="elman", iterations=5, decoder_embed_dim=256, share_decoder_input_output_embed=True
    )
    lm = FixedPointLanguageModel.build_model(lm_cfg, both(dictionary)).eval().to(device)
    batch, length = settings.fusion_batch, settings.fusion_length
    sources = torch.randint(4, len(dictionary), (batch, length + 1), device=device)
    sources[:, -1] = dictionary.eos()
    lengths = torch.full((batch,), length + 1, device=device)
    net_input = {"src_tokens": sources, "src_lengths": lengths}
    sample = {"id": torch.arange(batch), "net_input": net_input}
    options = {"beam_size": settings.beams[-1], "min_len": length, "max_len_b": length}
    beside = {"alone": {}, "fused": {"lm_model": lm, "lm_weight": 0.5}}
    calls = {}
    classes = {"ours": FixedPointSequenceGenerator, "theirs": SequenceGenerator}
    for way, generator_class in classes.items():
        for kind, given in beside.items():
            generator = generator_class([model], dictionary, **options, **given)
            calls[f"{way} {kind}"] = partial(generator.generate, [model], sample)
    return calls


def _dictionary(words: int) -> Dictionary:
    dictionary = Dictionary()
    while len(dictionary) < words:
        dictionary.add_symbol(f"w{len(dictionary)}")
    return dictionary


def tables(run: dict) -> dict[str, str]:
    """`generation`: tokens a second; `generation-memory`: the peak against the length;
    `generation-fusion`: what a language model beside a translation model costs."""
    names = _names(run["records"])
    speed = _by_case(run["records"], "speed")
    rows = []
    for (length, batch, beam), ways in speed.items():
        rates = {way: _tokens_a_second(ways[way]) for way in names}
        rows.append(
            (
                batch,
                beam,
                length,
                *(number(rates[way]) for way in names),
                times(ratio(rates["ours"], rates["theirs"])),
                times(ratio(rates["ours"], rates["lstm_lm"])),
                percent(share(ways["ours"], run["machine"], "fp32")),
            )
        )
    head = (
        "batch", "beam", "length", *names.values(), "first over fairseq's generator",
        "first over lstm_lm", "first's share of floor",
    )  # fmt: skip
    memory = _by_case(run["records"], "memory")
    peaks = [
        (length, *(mebibytes(ways[way]["peak"]) for way in names))
        for (length, _, _), ways in memory.items()
    ]
    fusion = [
        (
            GENERATORS[record["way"]],
            number(record["ms_alone"]),
            number(record["ms"]),
            times(ratio(record["ms"], record["ms_alone"])),
        )
        for record in run["records"]
        if record["task"] == "fusion"
    ]
    fusion_head = ("generator", "ms, alone", "ms, with a language model", "with over alone")
    return {
        "generation": table(head, rows),
        "generation-memory": table(("length", *names.values()), peaks),
        "generation-fusion": table(fusion_head, fusion) if fusion else "",
    }


def plots(run: dict) -> dict[str, Figure]:
    """`generation`: peak memory against the length."""
    figure, [axes] = new_figure()
    memory = [record for record in run["records"] if record["task"] == "memory"]
    for (way, name), colour in zip(_names(memory).items(), COLOURS, strict=False):
        points = [(r["length"], r["peak"] / 2**20) for r in memory if r["way"] == way]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    logarithmic(axes, [record["length"] for record in memory])
    axes.set_xlabel("tokens generated")
    axes.set_ylabel("peak memory (MiB)")
    axes.legend()
    return {"generation": figure}


def _names(records: list[dict]) -> dict[str, str]:
    """The ways that were measured: a run may be from before one of them."""
    measured = {record["way"] for record in records}
    return {way: name for way, name in WAYS.items() if way in measured}


def _by_case(records: list[dict], task: str) -> dict[tuple[int, int, int], dict[str, dict]]:
    """Records of a task by length, batch and beam, and then by way."""
    by_case: dict[tuple[int, int, int], dict[str, dict]] = {}
    for record in records:
        if record["task"] == task:
            case = (record["length"], record["batch"], record["beam"])
            by_case.setdefault(case, {})[record["way"]] = record
    return by_case


def _tokens_a_second(record: dict) -> float | None:
    if record["ms"] is None:
        return None
    return 1000 * record["batch"] * record["length"] / record["ms"]
