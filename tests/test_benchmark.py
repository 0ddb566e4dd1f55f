"""The benchmark suite: records, floors, tables and documents. No time is asserted."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq import options
from fairseq.modules import AdaptiveSoftmax
from torch.utils.flop_counter import FlopCounterMode

from scripts.benchmarks import __main__ as command
from scripts.benchmarks import (
    aims,
    end_to_end,
    generation,
    growth,
    layer,
    measuring,
    memory,
    optimizers,
    perplexity,
    rendering,
    results,
    stride,
)
from scripts.benchmarks.floors import Work, floor_ms, layer_work, output_work, share
from scripts.benchmarks.machine import Machine
from scripts.benchmarks.parts import ON_REQUEST, SUITE, part
from scripts.benchmarks.results import BenchmarkError
from scripts.benchmarks.training import UPDATES, logged

QUICK = (
    "layer",
    "stride",
    "growth",
    "memory",
)  # the others start processes, or are tested elsewhere
CPU = torch.device("cpu")
MACHINE = {"matrix_rate": {"fp32": 1e11, "bf16": 2e11}, "bandwidth": 1e10}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The JSON of a quick run of the parts that are quick, measured in two calls."""
    path = tmp_path_factory.mktemp("benchmark") / "results.json"
    for names in (QUICK[:1], QUICK[1:]):
        assert command.main([*names, "--quick", "--device", "cpu", "--json", str(path)]) == 0
    return path


# --- what is measured ---


@pytest.mark.parametrize("name", [*SUITE, *ON_REQUEST])
def test_a_part_has_what_the_suite_wants_of_it(name):
    module = part(name)
    assert module.__doc__ and is_dataclass(module.Settings)
    assert {"cpu", "quick"} <= module.PRESETS.keys() <= {"cpu", "cuda", "quick"}
    assert all(isinstance(preset, module.Settings) for preset in module.PRESETS.values())
    assert callable(module.measure) and callable(module.tables)
    for field in fields(module.Settings):  # each becomes an option, so an option must say it
        kind = command.kind_of(field.default)
        for preset in module.PRESETS.values():
            value = getattr(preset, field.name)
            assert value is None or kind(command.shown(value)) == value


def test_results_hold_every_combination_and_what_it_was_measured_on(saved):
    actual = json.loads(saved.read_text())
    assert actual["device"] == "cpu" and actual["hardware"]
    assert set(actual["parts"]) == set(QUICK)
    for run in actual["parts"].values():
        assert run["complete"] and run["threads"] >= 1 and run["torch"] == torch.__version__
        assert run["machine"]["bandwidth"] > 0
        assert set(run["machine"]["matrix_rate"]) == {"fp32", "bf16"}
    settings = actual["parts"]["layer"]["settings"]
    expected = itertools.product(
        settings["cells"], settings["widths"], settings["batches"], settings["lengths"],
        settings["precisions"], settings["modes"], (0, *settings["iterations"]),
    )  # fmt: skip
    records = actual["parts"]["layer"]["records"]
    keys = (*layer.SHAPE, "iterations")
    assert sorted(tuple(record[key] for key in keys) for record in records) == sorted(expected)
    assert all(record["ms"] > 0 for record in records)


def test_a_cell_that_would_be_too_long_is_told_and_not_measured():
    settings = layer.Settings(cells=("elman",), widths=(16,), batches=(1,), lengths=(8,),
                              modes=("forward",), precisions=("fp32",), longest=0.0)  # fmt: skip
    machine = Machine(device=CPU, name="", preset="quick", **MACHINE)
    records = list(layer.measure(settings, machine))
    assert [record["reason"] for record in records] == ["too long"] * 4
    run = {"records": records, "machine": MACHINE, "settings": vars(settings)}
    assert layer.tables(run)["layer-forward-fp32"].count("too long") == 4


def test_the_same_weights_are_on_both_sides_of_a_comparison():
    for cell in layer.THEIRS:
        ours, theirs = layer.layers(cell, 8, CPU)
        x, _ = layer.block(6, 2, 8, CPU)
        torch.testing.assert_close(ours(x, 6).output, theirs(x)[0])


def test_small_blocks_are_measured_in_a_cuda_graph_too():
    records = [
        {"iterations": iterations, "width": width, "batch": batch, "length": length}
        for iterations in (0, 2, 5)
        for width, batch, length in (
            (256, 1, 128), (256, 32, 512), (257, 1, 128), (256, 33, 512), (256, 32, 513)
        )
    ]  # fmt: skip
    actual = layer.graphed(records, torch.device("cuda"))
    assert all(record.pop("graph") for record in actual)
    assert actual == [
        {"iterations": iterations, "width": 256, "batch": batch, "length": length}
        for iterations in (2, 5)
        for batch, length in ((1, 128), (32, 512))
    ]
    assert not layer.graphed(records, CPU)


@pytest.mark.parametrize("mode", ["training", "forward"])
def test_a_graph_is_captured_once_for_the_step_that_is_measured_without_one(monkeypatch, mode):
    """Here the module itself stands for its graph; on a GPU tests/test_cuda.py has the graph."""
    captured = []

    def capture(module, sample):
        captured.append((*sample, torch.is_grad_enabled(), torch.is_autocast_cache_enabled()))
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    module, _ = layer.layers("gru", 8, CPU)
    x, grad = layer.block(6, 2, 8, CPU)
    gradients = []
    for step in layer.step, layer.graphed_step:
        call = step(module, x, grad, 3, mode, "fp32")
        assert not captured
        call()
        call()
        gradients.append([x.grad, *(parameter.grad for parameter in module.parameters())])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert (x.grad is not None) == (mode == "training")
    ((sample, with_gradient, with_cache),) = captured
    assert torch.equal(sample, x) and sample.data_ptr() != x.data_ptr()
    assert sample.requires_grad and not with_cache
    assert with_gradient == (mode == "training")


@pytest.mark.parametrize("seconds", [0, 0.001])
def test_calls_run_in_turn_and_the_first_of_each_does_not_count(seconds):
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    milliseconds, rounds = measuring.interleaved(calls, seconds, CPU)
    assert rounds >= measuring.LEAST_ROUNDS
    assert "".join(order) == "abc" * (rounds + 1)
    assert set(milliseconds) == set("abc")


def test_peak_is_what_a_call_holds_at_one_time_beyond_what_was_there():
    there = torch.ones(2**14)  # 64 KiB

    def call():
        for _ in range(3):
            a = there + 1  # gives its bytes back before the next comes
            del a
        b, c = there + 1, there + 2
        return b, c

    peak = measuring.peak_bytes(call, CPU)
    assert 2 * 2**16 <= peak < 2 * 2**16 + 100  # the numbers 1 and 2 are tensors, too


# --- floors ---


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_a_step_has_the_products_of_a_position_in_a_long_block(cell, iterations):
    settings = generation.Settings(cell=cell, iterations=iterations, width=16, words=100)
    length, rows = 100_000, 3
    block = layer_work(cell, iterations, length, rows, 16, False, 4)
    output = output_work(rows, 16, 100, False, 4)
    step = generation.step_work(settings, rows)
    assert step.operations - output.operations == pytest.approx(block.operations / length, 1e-4)


def operations(call) -> int:
    def product(total, left, right, **_) -> int:  # shapes
        return 2 * left[0] * left[1] * right[1]

    in_place = {torch.ops.aten.addmm_: product}  # which the counter does not know of
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("every", [1, 3, 8, 32])
@pytest.mark.parametrize("start", stride.STARTS)
def test_no_stride_takes_fewer_operations_than_its_floor(start, every):
    settings = stride.Settings(batch=2, summary=8)
    calls = stride.Calls("elman", 16, 64, settings, CPU)
    record = {"iterations": 4, "start": start, "stride": every, "precision": "fp32"}
    counted = operations(calls(record))
    summary = settings.summary * (start == "summary")
    work = layer_work("elman", 4, 64, 2, 16, True, 4, every, summary)
    assert work.operations <= counted <= 1.1 * work.operations


@pytest.mark.parametrize("mode", layer.PRESETS["cpu"].modes)
@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("cell", layer.THEIRS)
def test_no_evaluation_takes_fewer_operations_than_its_floor(cell, iterations, mode):
    if cell != "elman" and not iterations:
        pytest.skip("oneDNN's LSTM is one operation to the counter, and GRU's are another kind")
    length, batch, width = 64, 2, 16
    modules = layer.layers(cell, width, CPU)
    module = modules[0] if iterations else modules[1]
    x, grad = layer.block(length, batch, width, CPU)
    counted = operations(layer.step(module, x, grad, iterations, mode, "fp32"))
    work = layer_work(cell, iterations, length, batch, width, mode == "training", 4)
    assert counted >= work.operations
    if cell == "elman":
        assert counted <= 1.1 * work.operations


def test_adaptive_softmax_is_counted_as_fairseq_computes_it():
    counts, cutoffs, width = [3] * 10 + [2] * 20 + [1] * 10, (10, 30), 32
    target = torch.arange(40).repeat_interleave(torch.tensor(counts))
    features = torch.randn(len(target), width)
    softmax = AdaptiveSoftmax(40, width, list(cutoffs), dropout=0, factor=end_to_end.FACTOR)
    forward = operations(lambda: softmax(features.unsqueeze(0), target))
    work = end_to_end.adaptive_work(len(target), width, cutoffs, counts, 4)
    assert work.operations == 3 * forward


def test_the_floor_is_the_higher_of_the_two():
    by_operations = {"operations": 2e11, "bytes": 1e9, "ms": 4000}
    by_bytes = {"operations": 1e8, "bytes": 1e9, "ms": None}
    assert floor_ms(by_operations, MACHINE, "fp32") == 2000
    assert floor_ms(by_operations, MACHINE, "bf16") == 1000
    assert share(by_operations, MACHINE, "fp32") == 0.5
    assert floor_ms(by_bytes, MACHINE, "fp32") == 100
    assert share(by_bytes, MACHINE, "fp32") is None
    assert (Work(1, 2) + Work(3, 4)) * 2 == Work(8, 12)


# --- fairseq-train ---


def test_training_log_is_read_and_tokens_must_agree():
    log = logged(
        [
            '2026-01-01 00:00:00 | INFO | train_inner | {"num_updates": "20", "wps": "700", '
            '"wpb": "100"}',
            '2026-01-01 00:00:00 | INFO | valid | {"epoch": 1, "valid_ppl": "9"}',
            "2026-01-01 00:00:00 | INFO | fairseq_cli.train | done training",
        ]
    )
    assert log == {
        "train_inner": [{"num_updates": "20", "wps": "700", "wpb": "100"}],
        "valid": [{"epoch": 1, "valid_ppl": "9"}],
        "train": [],
    }
    actual = end_to_end.speed(log[UPDATES], 10, "elman-5", 100)
    assert actual == {"tokens_per_second": 700.0}
    with pytest.raises(BenchmarkError, match="elman-5 counts 100 tokens an update"):
        end_to_end.speed(log[UPDATES], 10, "elman-5", 80)
    with pytest.raises(BenchmarkError, match="elman-5 logged no speed"):
        end_to_end.speed(log[UPDATES], 20, "elman-5", 100)


def test_time_of_training_adds_up_over_epochs():
    def epoch(number, updates, speed):
        train = {"epoch": number, "train_num_updates": str(updates), "train_wpb": "50",
                 "train_wps": str(speed)}  # fmt: skip
        return train, {"epoch": number, "valid_ppl": "9.5"}

    of_one_update = epoch(3, 21, 0)  # whose speed fairseq logs as 0
    train, valid = zip(epoch(1, 10, 100), epoch(2, 20, 250), of_one_update, strict=True)
    actual = list(perplexity.epochs({"train": train, "valid": valid, "train_inner": []}))
    assert [record["seconds"] for record in actual] == [5.0, 7.0, 7.0]
    assert {record["perplexity"] for record in actual} == {9.5}


@pytest.mark.parametrize("softmax", end_to_end.Settings.softmaxes)
@pytest.mark.parametrize("model", end_to_end.Settings.models)
def test_fairseq_takes_the_options_of_every_model(model, softmax):
    given = map(str, end_to_end.options(end_to_end.Settings(), model, softmax))
    parsed = options.parse_args_and_arch(options.get_training_parser(), ["data", *given])
    if model in end_to_end.THEIRS:  # which has cutoffs always, and uses them with this criterion
        assert (parsed.criterion == "adaptive_loss") == (softmax == "adaptive")
    if softmax == "adaptive":
        assert parsed.adaptive_softmax_cutoff == "2000,8000"
    assert parsed.tokens_per_sample == end_to_end.Settings.length


def test_a_model_is_read_from_its_name():
    strided = end_to_end.Ours("gru", iterations=8, stride=16, stream=True, bf16=True)
    assert end_to_end.Ours.named("gru-8x16+stream+bf16") == strided
    assert strided.options()[-5:] == ["--stride", 16, "--start", "stream", "--bf16-products"]
    assert strided.label == "gru, K = 8, C = 16, `--start stream`, `--bf16-products`"
    exact = end_to_end.Ours.named("elman-0")
    assert exact == end_to_end.Ours("elman", iterations=0, stride=1, stream=False, bf16=False)
    assert exact.label == "elman, exact" and exact.options()[-2:] == ["--iterations", 0]
    assert end_to_end.Ours.named("lstm_lm+memory") is None
    for name in ("elman", "rnn-5", "elman-5+fp16", "lstm-5x0"):
        with pytest.raises(BenchmarkError, match=rf"--models {re.escape(name)}: write lstm_lm"):
            end_to_end.Ours.named(name)


def test_tokens_a_second_are_held_against_lstm_lm_and_the_exact_recurrence_of_the_cell():
    speeds = {"lstm_lm": 50.0, "elman-8x16+stream": 300.0, "elman-0": 100.0, "gru-5": 80.0}
    records = [
        {
            "softmax": "full",
            "model": name,
            "tokens_per_second": speed,
            "operations": 1e8,
            "bytes": 0,
        }
        for name, speed in speeds.items()
    ]
    run = {"records": records, "machine": MACHINE}
    assert end_to_end.tables(run)["end_to_end"].splitlines()[2:] == [
        "| full | fairseq's `lstm_lm` | 50 | 1.0x |  | 5% |",
        "| full | elman, K = 8, C = 16, `--start stream` | 300 | 6.0x | 3.0x | 30% |",
        "| full | elman, exact | 100 | 2.0x | 1.0x | 10% |",
        "| full | gru, K = 5 | 80 | 1.6x | not measured | 8% |",
    ]


@pytest.mark.parametrize("model", optimizers.Settings.models)
def test_an_optimizer_trains_the_model_of_its_name(model):
    settings = optimizers.as_end_to_end(optimizers.Settings(), batch=10)
    given = optimizers.options(settings, model, "fused_adam")
    parsed = options.parse_args_and_arch(options.get_training_parser(), ["data", *map(str, given)])
    assert parsed.optimizer == "fused_adam" and parsed.lr == [0.001]
    assert (parsed.batch_size, parsed.adaptive_softmax_cutoff) == (10, "4000,12000")


def test_tokens_a_second_of_optimizers_are_held_against_adam():
    updates = [
        {"optimizer": "adam", "moments": "normal", "ms": 50.0},
        {"optimizer": "fused_adam", "moments": "subnormal", "ms": 400.0},
    ]
    records = [
        {"model": "elman-0", "batch": 10, "optimizer": "adam", "tokens_per_second": 2000.0},
        {"model": "elman-0", "batch": 10, "optimizer": "fused_adam", "tokens_per_second": 3000.0},
        {"model": "gru-5", "batch": 32, "optimizer": "adam", "tokens_per_second": 4000.0},
    ]
    tables = optimizers.tables({"records": [*updates, *records]})
    assert tables["optimizers"].splitlines()[2:] == [
        "| elman, exact | 10 | 2,000 | 3,000 | 1.5x |",
        "| gru, K = 5 | 32 | 4,000 | not measured | not measured |",
    ]
    assert tables["optimizers-update"].splitlines()[2:] == [
        "| normal | 50 | not measured |",
        "| subnormal | not measured | 400 |",
        "| zero | not measured | not measured |",
    ]


def test_perplexity_is_read_from_a_real_training(data, monkeypatch):
    monkeypatch.setattr(perplexity, "corpus", lambda folder, threshold: data)
    settings = perplexity.Settings(iterations=(2,), bf16_iterations=(), width=8, epochs=2)
    records = list(perplexity.measure(settings, SimpleNamespace(device=CPU)))
    assert [(record["iterations"], record["epoch"]) for record in records] == [(2, 1), (2, 2)]
    assert 0 < records[0]["seconds"] < records[1]["seconds"]
    assert records[1]["perplexity"] < records[0]["perplexity"]
    run = {"records": records, "settings": vars(settings)}
    assert f"{records[1]['perplexity']:.1f}" in perplexity.tables(run)["perplexity"]
    assert set(perplexity.plots(run)) == {"perplexity"}


# --- runs that end early ---


@dataclass(frozen=True)
class Settings:
    stops: str = "never"


def fake_part(stops: BaseException):
    """A part that measures one case, and is stopped in the second."""

    def measure(settings, machine):
        yield {"ms": 1.0}
        raise stops

    return SimpleNamespace(
        __doc__="A part.",
        Settings=Settings,
        PRESETS={"cpu": Settings(), "quick": Settings()},
        measure=measure,
        tables=lambda run: {"fake": f"{len(run['records'])} case\n"},
    )


@pytest.mark.parametrize(
    ("stops", "status"),
    [(KeyboardInterrupt(), 130), (BenchmarkError("no more"), 1), (ZeroDivisionError(), 1)],
)
def test_what_was_measured_before_a_stop_is_kept(stops, status, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "part", lambda name: fake_part(stops))
    monkeypatch.setattr(rendering, "part", lambda name: fake_part(stops))
    path = tmp_path / "results.json"
    arguments = ["layer", "memory", "--quick", "--device", "cpu", "--json", str(path)]
    assert command.main(arguments) == status
    parts = json.loads(path.read_text())["parts"]
    assert parts["layer"]["records"] == [{"ms": 1.0}] and not parts["layer"]["complete"]
    # The next part is another matter, unless a person has ended it all.
    assert ("memory" in parts) == (status == 1)
    assert "interrupted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["end_to_end", "--updates", "5", "--warm-up", "5"], "--updates 5 leaves nothing"),
        (["optimizers", "--updates", "5", "--warm-up", "5"], "--updates 5 leaves nothing"),
        (["optimizers", "--models", "elman"], "--models elman: write lstm_lm"),
        (["rescoring"], "rescoring needs --text"),
        (["lattices"], "lattices needs --lattices"),
        (["layer", "--json", "{folder}/other.json"], "has the results of a Cray-1"),
        (["layer", "--json", "{folder}/none/new.json"], "none/new.json cannot take the results"),
        (["layer", "--json", "{folder}/broken.json"], "name a file that scripts/benchmark wrote"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(arguments, message, tmp_path, capsys):
    results.save({"hardware": "a Cray-1", "device": "cpu", "parts": {}}, tmp_path / "other.json")
    (tmp_path / "broken.json").write_text('{"layer": 1}')
    given = [argument.format(folder=tmp_path) for argument in arguments]
    assert command.main([*given, "--quick", "--device", "cpu"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_quick_parts_run_on_a_gpu(tmp_path):
    path = tmp_path / "results.json"
    assert command.main([*QUICK, "--quick", "--device", "cuda", "--json", str(path)]) == 0
    parts = json.loads(path.read_text())["parts"]
    assert all(run["complete"] for run in parts.values())
    assert all(record["peak"] > 0 for record in parts["memory"]["records"])


@pytest.mark.parametrize(
    ("message", "passed_by"),
    [("CUDA out of memory. Tried", True), ("CUBLAS_STATUS_ALLOC_FAILED", True), ("shape", False)],
)
def test_want_of_memory_is_passed_by_and_no_other_error(message, passed_by, monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def call():
        raise RuntimeError(message)

    calls = {"large": call, "small": lambda: None}
    if passed_by:
        milliseconds, _ = measuring.interleaved(calls, 0, CPU)
        assert milliseconds["large"] is None and milliseconds["small"] is not None
    else:
        with pytest.raises(RuntimeError, match=message):
            measuring.interleaved(calls, 0, CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(capsys):
    assert command.main(["layer", "--quick", "--device", "cuda"]) == 1
    assert "--device cuda needs a GPU" in capsys.readouterr().err


# --- tables and documents ---


def test_tables_and_plots_come_from_the_json_alone(saved, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", saved.parent)
    document = saved.parent / "README.md"
    markers = ["layer-training-fp32 cpu", "growth cpu", "growth.png cpu", "memory.png cpu",
               "memory cuda", "aims"]  # fmt: skip
    before = "".join(f"<!-- benchmark: {name} -->\nold\n<!-- end -->\n\n" for name in markers)
    runs = results.newest(saved.parent)
    text = rendering.rendered(before, document, runs)
    assert "old" not in text
    assert rendering.rendered(text, document, runs) == text
    assert part("growth").tables(runs["cpu"]["growth"])["growth"] in text
    for link in ("growth", "memory"):
        name = f"{results.slug(runs['cpu'][link]['hardware'])}-{link}.png"
        assert f"![{link}]({name})" in text
        assert (saved.parent / name).read_bytes().startswith(b"\x89PNG")
    assert text.count("Not measured on a GPU.") == 1
    for aim in aims.AIMS:
        assert aim.what in text


@pytest.mark.parametrize("name", QUICK)
def test_a_run_that_was_killed_can_be_rendered_too(saved, name):
    run = json.loads(saved.read_text())["parts"][name]
    for count in range(1, 6):
        begun = {**run, "records": run["records"][:count]}
        tables = part(name).tables(begun)
        tables.pop("layer-graphs", None)  # of a GPU alone
        tables.pop("stride-bf16", None)  # comes after fp32
        tables.pop("memory-model", None)  # comes after the layers
        assert all(tables.values())
        if hasattr(part(name), "plots"):
            part(name).plots(begun)


def test_a_later_run_takes_the_place_of_an_earlier_one(tmp_path):
    for number, hardware in enumerate(("one", "two")):
        run = {"date": f"2026-01-0{number + 1}", "records": [{"a": number}, {"b": None}]}
        actual = {"hardware": hardware, "device": "cpu", "parts": {"layer": run, "growth": run}}
        results.save(actual, tmp_path / f"{hardware}.json")
        assert json.loads((tmp_path / f"{hardware}.json").read_text()) == actual
    runs = results.newest(tmp_path)
    assert runs["cpu"]["layer"]["hardware"] == "two" and not runs["cuda"]


@pytest.mark.parametrize(
    ("marker", "message"),
    [("layer-nothing cpu", "the marker layer-nothing cpu names nothing"),
     ("layer-summary", "the marker of layer-summary names no device")],
)  # fmt: skip
def test_a_marker_that_nothing_is_known_of_is_named_with_its_document(saved, marker, message):
    runs = results.newest(saved.parent)
    text = f"<!-- benchmark: {marker} -->\n<!-- end -->\n"
    with pytest.raises(BenchmarkError, match=rf"README\.md: {message}"):
        rendering.rendered(text, Path("README.md"), runs)


@pytest.mark.parametrize("document", rendering.DOCUMENTS, ids=lambda path: path.parent.name)
def test_documents_hold_what_the_saved_results_render(document):
    if not document.exists():
        pytest.skip("there is no such page")
    text = document.read_text(encoding="utf-8")
    assert rendering.rendered(text, document, results.newest()) == text, (
        "run scripts/benchmark --render"
    )


def test_recomputation_is_held_against_the_exact_recurrence_at_the_longest_length(saved):
    runs = {"memory": json.loads(saved.read_text())["parts"]["memory"]}
    peaks = {
        record["way"]: record["peak"]
        for record in runs["memory"]["records"]
        if "way" in record and (record["length"], record["iterations"]) == (32, 4)
    }
    actual = memory.recomputed_over_exact(runs, "elman", 4)
    assert actual == peaks["recomputed"] / peaks["exact"]
    assert memory.recomputed_over_exact(runs, "lstm", 4) is None
    assert memory.recomputed_over_exact({}, "elman", 4) is None


def test_a_models_peak_and_time_are_held_against_those_of_keeping_all(saved):
    run = json.loads(saved.read_text())["parts"]["memory"]
    of_model = [record for record in run["records"] if "share" in record]
    cases = [(record["length"], record["iterations"], record["share"]) for record in of_model]
    assert cases == [(32, 2, 0), (32, 2, 0.5), (32, 4, 0), (32, 4, 0.5)]
    assert all(record["peak"] > 0 and record["ms"] > 0 for record in of_model)
    of_model[2].update(peak=2**22, ms=8.0)
    of_model[3].update(peak=2**20, ms=10.0)
    assert memory.tables({"records": of_model})["memory-model"].splitlines()[-2:] == [
        "| 32 | 4 | 0 | 4 MiB | 1 | 1 |",
        "| 32 | 4 | 0.5 | 1 MiB | 0.25 | 1.25 |",
    ]


def test_aims_are_held_against_the_cells_that_they_name():
    def record(iterations: int, ms: float | None, **shape) -> dict:
        common = {"cell": "elman", "width": 650, "batch": 1, "length": 1024, "precision": "fp32",
                  "mode": "training", "operations": 1e11, "bytes": 0}  # fmt: skip
        return {**common, **shape, "iterations": iterations, "ms": ms}

    runs = {
        "layer": {
            "machine": MACHINE,
            "records": [
                record(0, 8000), record(5, 2000), record(0, 9, batch=20), record(5, None, batch=20),
                record(0, 1, length=35), record(5, 100, length=35),
            ],
        }
    }  # fmt: skip
    assert aims.speed(650, 1, 1024, 5)(runs) == 4
    assert aims.floor_share(650, 1, 1024, 5, "fp32")(runs) == 0.5
    assert aims.speed(650, 20, 1024, 5)(runs) is None  # what was left out reached nothing
    assert aims.slowest(256)(runs) == 4
    assert aims.slowest(2048)(runs) is None
    assert "| at least 3.0x | 4.0x |" in aims.summary({"cpu": runs})
    assert aims.summary({}).count("not measured") == len(aims.AIMS)


def test_aims_of_a_stride_are_held_against_the_slowest_shape():
    def record(cell: str, width: int, iterations: int, every: int, ms: float | None) -> dict:
        shape = {"cell": cell, "width": width, "length": 256, "precision": "fp32"}
        return {**shape, "start": "constant", "iterations": iterations, "stride": every, "ms": ms}

    records = [
        record("elman", 256, 0, 1, 30), record("elman", 256, 8, 1, 80),
        record("elman", 256, 8, 8, 20),
        record("elman", 650, 0, 1, 40), record("elman", 650, 8, 1, None),  # left out
        record("elman", 650, 8, 8, 40),
        record("gru", 650, 0, 1, 1), record("gru", 650, 8, 8, 10),
    ]  # fmt: skip
    runs = {"stride": {"records": records}}
    assert aims.windows(("elman",), 8, 1)(runs) == 4
    assert aims.windows(("elman",), 8, 0)(runs) == 1
    assert aims.windows(("elman", "gru"), 8, 0)(runs) == 0.1
    assert aims.windows(("lstm",), 8, 0)(runs) is None


def test_what_ran_in_a_graph_has_a_table_of_its_own(saved):
    run = json.loads(saved.read_text())["parts"]["layer"]
    assert layer.tables(run)["layer-graphs"] is None
    shape = layer.by_shape(run["records"])["gru", 16, 1, 8, "bf16", "training"]
    shape[0]["ms"], shape[2]["ms"] = 6.0, 3.0
    without = layer.tables(run)
    assert without.pop("layer-graphs") is None
    graphs = [
        {**shape[2], "graph": True, "ms": 0.5},
        {**shape[3], "graph": True, "ms": None, "reason": "out of memory"},
    ]
    actual = layer.tables({**run, "records": [*run["records"], *graphs]})
    assert actual.pop("layer-graphs").splitlines()[2:] == [
        "| gru | 16 | 1 | 8 | bf16 | training | 0.5 ms, 12.0x torch.nn, 6.0x eager "
        "| out of memory |"
    ]
    assert actual == without


def test_a_table_that_a_run_has_nothing_for_is_not_measured(saved):
    marker = "<!-- benchmark: layer-graphs cpu -->\n<!-- end -->"
    text = rendering.rendered(marker, Path("README.md"), results.newest(saved.parent))
    assert text == marker.replace("<!-- end", "Not measured on a CPU.\n<!-- end")


def test_a_stride_is_held_against_pytorch_and_the_stride_of_one(saved):
    run = json.loads(saved.read_text())["parts"]["stride"]
    ways = stride.by_shape(run["records"])["lstm", 16, 12, "fp32"]
    assert set(ways) == {("constant", 0), *itertools.product(stride.STARTS, (1, 4))}
    assert all(record["peak"] > 0 for record in ways.values())
    for way, ms, operations, peak in (
        (("constant", 0), 6.0, 2e8, 2**20),
        (("summary", 1), 12.0, 6e8, 2**22),
        (("summary", 4), 4.0, 3e8, 2**21),
    ):
        ways[way].update(ms=ms, operations=operations, bytes=0, peak=peak)
    ways["constant", 4].update(ms=None, reason="too long", peak=None)
    actual = stride.tables({**run, "machine": MACHINE})
    head, _, *rows = actual["stride-fp32"].splitlines()
    assert head == "| cell | width | length | start | torch.nn | C = 1 (3) | C = 4 (1.5) |"
    constant, summary = (row for row in rows if row.startswith("| lstm"))
    assert constant.endswith(" too long |")
    assert summary == (
        "| lstm | 16 | 12 | summary | 6 ms, 33% | 12 ms, 0.5x torch.nn, 50% "
        "| 4 ms, 1.5x torch.nn, 3.0x C = 1, 75% |"
    )
    constant, summary = (
        row for row in actual["stride-memory"].splitlines() if row.startswith("| lstm")
    )
    assert constant.endswith(" not measured |")
    assert summary == (
        "| lstm | 16 | 12 | summary | 1 MiB | 4 MiB, 4.0x torch.nn "
        "| 2 MiB, 2.0x torch.nn, 0.5x C = 1 |"
    )
    nothing = stride.tables({**run, "records": []})
    assert set(nothing) == set(actual) and not any(nothing.values())


def test_growth_has_each_axis_through_the_centre(saved):
    run = json.loads(saved.read_text())["parts"]["growth"]
    for axis in growth.AXES:
        at = [point for point, _, _ in growth.points(run, axis)]
        assert at == run["settings"][f"several_{axis}"]
