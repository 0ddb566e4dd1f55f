"""`fixedpoint-convert`: the converted model is the same one, whatever it is evaluated with."""

from __future__ import annotations

import json
import math
import resource
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from fairseq.models.lstm_lm import LSTMLanguageModel

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.plugin.checkpoints import load_language_model
from fairseq_fixedpoint.plugin.conversion import BUFFERS, convert, from_lstm_lm
from fairseq_fixedpoint.plugin.evaluation import OrderReport
from fairseq_fixedpoint.plugin.models.fixedpoint_lm import FixedPointLanguageModel
from tests.commands import PLUGIN, evaluate, train, without_dataclass
from tests.rescoring import (
    OF_FAIRSEQ,
    fixedpoint_convert,
    fixedpoint_score,
    log_probabilities,
    refused,
)
from tests.test_model import dictionary, log_probs

WORDS = 40
SIZES = {"decoder_embed_dim": 8, "decoder_hidden_size": 8, "decoder_out_embed_dim": 8}
ADAPTIVE = {
    "criterion": "adaptive_loss",
    "adaptive_softmax_cutoff": "8,20",
    "decoder_hidden_size": 16,  # narrower, the second cluster would have no unit
}
KINDS = {
    "full softmax": SIZES,
    "two layers": {**SIZES, "decoder_layers": 2},
    "wider layers, narrower output": {**SIZES, "decoder_hidden_size": 12, "decoder_layers": 2},
    "shared embeddings": {
        **SIZES,
        "decoder_hidden_size": 12,
        "share_decoder_input_output_embed": True,
    },
    "adaptive softmax": {**SIZES, **ADAPTIVE, "decoder_out_embed_dim": 16},
    "adaptive softmax beside an output width that it has no use for": {
        **SIZES,
        **ADAPTIVE,
        "decoder_layers": 2,
    },
    "adaptive softmax with the vocabulary's size as last cutoff": {
        **SIZES,
        **ADAPTIVE,
        "adaptive_softmax_cutoff": f"8,20,{WORDS + 4}",
    },
    "sizes left at their defaults": {},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str
)
def test_probabilities_are_those_of_the_lstm_lm(kind, dtype, tolerance):
    torch.manual_seed(0)
    words = dictionary(WORDS)
    task = SimpleNamespace(dictionary=words, source_dictionary=words, target_dictionary=words)
    args = Namespace(**{"criterion": "cross_entropy", **KINDS[kind]})
    given = LSTMLanguageModel.build_model(Namespace(**vars(args)), task).to(dtype).eval()
    tokens = torch.randint(4, len(words), (3, 15))  # (B, T)
    expected = log_probs(given, tokens)
    for iterations in (0, 15, 99):
        options, weights = from_lstm_lm(args, given.state_dict(), iterations)
        model = FixedPointLanguageModel.build_model(options, task).to(dtype).eval()
        model.load_state_dict({**{name: model.state_dict()[name] for name in BUFFERS}, **weights})
        torch.testing.assert_close(log_probs(model, tokens), expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def adaptive(data, tmp_path_factory):
    """An `lstm_lm` of two layers with an adaptive softmax, trained for a few updates.

    By an optimizer whose options fairseq keeps in no dataclass.
    """
    folder = tmp_path_factory.mktemp("adaptive")
    train(
        data, folder, *OF_FAIRSEQ, "--arch", "lstm_lm", "--criterion", "adaptive_loss",
        "--ddp-backend", "legacy_ddp", "--adaptive-softmax-cutoff", "8,20", "--decoder-layers", 2,
        "--decoder-hidden-size", 16, "--max-update", 40, "--disable-validation",
        "--optimizer", "sgd", "--lr", 0.5,
    )  # fmt: skip
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module", params=["lstm", "adaptive"])
def given(request, models):
    """Checkpoints of fairseq's `lstm_lm`."""
    return models["lstm"] if request.param == "lstm" else request.getfixturevalue("adaptive")


def command(checkpoint, tmp_path, *arguments):
    """The converted checkpoint."""
    output = tmp_path / "converted.pt"
    assert fixedpoint_convert(checkpoint, "--output", output, *arguments) == 0
    return output


@pytest.mark.parametrize("iterations", [0, 20], ids=["exact", "K beyond the text"])
def test_lines_are_scored_as_by_the_given_model(given, tmp_path, capsys, iterations):
    lines = ["w1 w2 w3", "", "w4 w0 w5 w5 w6 w7 w8 w9", "nowhere w1"]
    (tmp_path / "text").write_text("".join(f"{line}\n" for line in lines))
    path = command(given, tmp_path, "--iterations", iterations)
    capsys.readouterr()
    assert (
        fixedpoint_score(tmp_path / "text", "--model", path, "--per-token", "--format", "json") == 0
    )
    for row, line in zip(capsys.readouterr().out.splitlines(), lines, strict=True):
        actual = [value for _, value in json.loads(row)["token_log_probabilities"]]
        assert actual == pytest.approx(log_probabilities(given, line), abs=1e-5)


def test_the_report_is_what_evaluation_finds_at_each_order(given, data, tmp_path, capsys):
    """Also over several blocks: their size must change nothing."""
    path = command(given, tmp_path, "--report", "test", "--orders", "6,1,3",
                   "--report-json", tmp_path / "report.json")  # fmt: skip
    table = capsys.readouterr().out.splitlines()
    report = json.loads((tmp_path / "report.json").read_text())
    actual = {row["iterations"]: row["perplexity"] for row in [*report["orders"], report["exact"]]}
    assert list(actual) == [1, 3, 6, 0]
    overrides = ("--model-overrides", "{'iterations': 3}")
    assert actual[3] == pytest.approx(evaluate(data, path, *overrides), rel=1e-5)
    plain_task = ("--user-dir", PLUGIN, "--task", "language_modeling", "--cpu")
    # All in one block, as nothing of fairseq's carries the exact state.
    of_fairseq = ("--model-overrides", "{'tokens_per_sample': 5000}", "--tokens-per-sample", 5000)
    assert actual[0] == pytest.approx(evaluate(data, given, *of_fairseq, task=plain_task), rel=1e-5)

    assert [line.split()[0] for line in table] == ["K", "1", "3", "6", "exact"]
    assert [float(line.split()[1]) for line in table[1:]] == [
        round(value, 2) for value in actual.values()
    ]
    converted = convert(given)
    for size in (7, 400):
        task = converted.task(tokens_per_sample=size)
        task.load_dataset("test")
        again = OrderReport.of(converted.model.decoder, task.dataset("test"), [1, 3, 6])
        assert again.tokens == report["tokens"]
        assert [*again.perplexities.values(), again.exact] == pytest.approx(
            list(actual.values()), rel=1e-5
        )


def test_training_goes_on_from_it(adaptive, data, tmp_path, capfd):
    """With the options that the command prints, at a K of one's own."""
    path = command(adaptive, tmp_path)
    said = capfd.readouterr().err
    options = said.split(f"--finetune-from-model {path} ")[1].split()[:-2]
    assert "--cell" in options
    before = evaluate(data, path, "--model-overrides", "{'iterations': 2}")
    options += ["--iterations", 2, "--max-update", 20, "--lr", 0.005, "--disable-validation",
                "--ddp-backend", "legacy_ddp"]  # fmt: skip
    for number, start in enumerate(("--finetune-from-model", "--restore-file")):
        train(data, tmp_path / f"{number}", *options, start, path)
        after = tmp_path / f"{number}" / "checkpoint_last.pt"
        assert load_checkpoint_to_cpu(str(after))["optimizer_history"][-1]["num_updates"] == 20
    assert evaluate(data, after) < before


def test_the_checkpoint_is_one_of_ours(models, tmp_path):
    path = command(models["lstm"], tmp_path, "--iterations", 4)
    state = load_checkpoint_to_cpu(str(path))
    parts = [state["cfg"][part]["_name"] for part in ("model", "task", "criterion")]
    assert parts == ["fixedpoint_lm", "fixedpoint_language_modeling", "fixedpoint_cross_entropy"]
    assert state["last_optimizer_state"] is None
    assert state["model"]["decoder.resets_at_eos"] == 0
    model, task, _ = load_language_model(path)
    given = load_language_model(models["lstm"]).task
    assert model.decoder.iterations == 4
    assert task.target_dictionary == given.target_dictionary
    other = tmp_path / "other"
    other.mkdir()
    (other / "dict.txt").write_text(
        "".join(f"v{number} 1\n" for number in range(len(task.target_dictionary) - 4))
    )
    with pytest.raises(InputError, match="trained with another dictionary"):
        load_language_model(path, other)


def test_parts_of_ones_own_are_converted_or_named(models, tmp_path, capfd):
    own = without_dataclass(models["lstm"], "criterion", tmp_path / "criterion.pt", _name="own")
    given = load_language_model(models["lstm"]).model.state_dict()
    converted = load_language_model(command(own, tmp_path)).model.state_dict()
    assert torch.equal(
        converted["decoder.embed_tokens.weight"], given["decoder.embed_tokens.weight"]
    )
    own = without_dataclass(models["lstm"], "task", tmp_path / "task.pt", _name="own", task="own")
    said = refused(capfd, fixedpoint_convert, own, "--output", tmp_path / "out")
    assert "the model was trained with --task own: only models of" in said


def test_a_model_of_single_sentences_starts_anew_at_each(data, tmp_path, capfd):
    train(data, tmp_path / "given", *OF_FAIRSEQ, "--arch", "lstm_lm", "--decoder-hidden-size", 16,
          "--decoder-out-embed-dim", 16, "--sample-break-mode", "eos", "--max-update", 20,
          "--disable-validation")  # fmt: skip
    given = tmp_path / "given" / "checkpoint_last.pt"
    path = command(given, tmp_path, "--report", "valid", "--report-json", tmp_path / "report")
    assert "--sample-break-mode eos --reset-at-eos" in capfd.readouterr().err
    assert load_checkpoint_to_cpu(str(path))["model"]["decoder.resets_at_eos"] == 1
    sentences = ("--sample-break-mode", "eos", "--gen-subset", "valid", "--tokens-per-sample", 99)
    plain_task = ("--user-dir", PLUGIN, "--task", "language_modeling", "--cpu")
    expected = evaluate(data, given, *sentences, task=plain_task)
    assert evaluate(data, path, *sentences, "--reset-at-eos") == pytest.approx(expected, rel=1e-5)
    report = json.loads((tmp_path / "report").read_text())
    assert report["exact"]["perplexity"] == pytest.approx(expected, rel=1e-5)


def changed(checkpoint, path, model=(), task=(), weights=()):
    """A copy with other options or weights."""
    state = load_checkpoint_to_cpu(str(checkpoint))
    for name, value in dict(model).items():
        setattr(state["cfg"].model, name, value)
    state["cfg"].task.update(dict(task))
    state["model"].update(weights)
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("changes", "trouble"),
    [
        ({"model": {"residuals": True}}, "trained with --residuals"),
        ({"model": {"decoder_layers": 2}}, 'Missing key(s) in state_dict: "decoder.rnn.layers.1'),
        ({"model": {"decoder_embed_dim": 8}}, "size mismatch for decoder.embed_tokens.weight"),
        ({"model": {"_name": "lstm"}}, "holds a model of architecture lstm"),
        ({"weights": {"decoder.attention.input_proj.weight": torch.ones(1)}}, "has attention"),
        ({"weights": {"decoder.more": torch.ones(1)}}, "Unexpected key(s)"),
        ({"task": {"_name": "translation"}}, "trained with --task translation"),
        ({"task": {"output_dictionary_size": 9}}, "--output-dictionary-size"),
        ({"task": {"add_bos_token": True}}, "--add-bos-token does not fit"),
        ({"task": {"data": "moved"}}, "moved/dict.txt (where "),
    ],
    ids=str,
)
def test_what_cannot_be_converted(models, tmp_path, capfd, changes, trouble):
    path = changed(models["lstm"], tmp_path / "given.pt", **changes)
    said = refused(capfd, fixedpoint_convert, path, "--output", tmp_path / "out.pt")
    assert trouble in said and str(path) in said
    assert [item.name for item in tmp_path.iterdir()] == ["given.pt"]


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_only_an_lstm_lm_is_converted(models, tmp_path, capfd, name):
    arguments = (models[name], "--output", tmp_path / "out.pt")
    said = refused(capfd, fixedpoint_convert, *arguments)
    assert f"{models[name]} holds a model of architecture" in said


def test_another_dictionary(models, tmp_path, capfd):
    arguments = (models["lstm"], "--output", tmp_path / "out.pt", "--data", tmp_path)
    for content, trouble in {
        b"w1 5\n": "size mismatch",
        b"w1 5\nw1 5\n": "Duplicate word",
        b"\xff 5\n": "Incorrect encoding",
    }.items():
        (tmp_path / "dict.txt").write_bytes(content)
        said = refused(capfd, fixedpoint_convert, *arguments)
        assert trouble in said and f"{tmp_path}/dict.txt" in said


@pytest.mark.parametrize(
    ("options", "trouble"),
    [
        (("nowhere.pt",), "nowhere.pt is no file"),
        (("dict.txt",), "The file dict.txt is not a checkpoint"),
        (("given.pt", "--output", "given.pt"), "is what is read, and it is kept"),
        (("given.pt", "--output", "link.pt"), "is what is read, and it is kept"),
        (("given.pt", "--output", "nowhere/out.pt"), "its folder is not there"),
        (("given.pt", "--iterations", -1), "--iterations must be 0 (exact) or more"),
        (("given.pt", "--report-json", "out.json"), "--report-json needs --report"),
        (
            ("given.pt", "--report", "test", "--report-json", "out.pt"),
            "--output and --report-json name one file",
        ),
        (("given.pt", "--report", "nowhere"), "--report nowhere: Dataset not found"),
        (("given.pt", "--data", "."), "cannot be converted with the dictionary ./dict.txt"),
    ],
    ids=str,
)
def test_options_that_cannot_be_honoured(models, tmp_path, capfd, monkeypatch, options, trouble):
    monkeypatch.chdir(tmp_path)
    content = models["lstm"].read_bytes()
    (tmp_path / "given.pt").write_bytes(content)
    (tmp_path / "link.pt").symlink_to("given.pt")
    (tmp_path / "dict.txt").write_text("w1 1\n")
    assert trouble in refused(capfd, fixedpoint_convert, "--output", "out.pt", *options)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["dict.txt", "given.pt", "link.pt"]
    assert (tmp_path / "given.pt").read_bytes() == content


@pytest.mark.parametrize("orders", ["0", "1,-2", "one", ""])
def test_orders_that_are_none(capsys, orders):
    with pytest.raises(SystemExit):
        fixedpoint_convert("given.pt", "--output", "out.pt", "--orders", orders)
    assert "comma-separated integers of at least 1" in capsys.readouterr().err


def test_a_model_that_gives_no_number(models, tmp_path, capfd):
    size = load_checkpoint_to_cpu(str(models["lstm"]))["model"]["decoder.fc_out.bias"].shape
    weights = {"decoder.fc_out.bias": torch.full(size, math.nan)}
    path = changed(models["lstm"], tmp_path / "given.pt", weights=weights)
    arguments = (path, "--output", tmp_path / "out.pt", "--report", "valid")
    assert "it is broken" in refused(capfd, fixedpoint_convert, *arguments)
    assert not (tmp_path / "out.pt").exists()


def test_a_full_disk_leaves_what_was_there(models, tmp_path, capfd):
    """A limit on the size of files, which writing meets as it does the end of a disk."""
    (tmp_path / "out.pt").write_text("before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        arguments = (models["lstm"], "--output", tmp_path / "out.pt")
        assert "File too large" in refused(capfd, fixedpoint_convert, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "out.pt").read_text() == "before"
    assert [item.name for item in tmp_path.iterdir()] == ["out.pt"]


def test_an_older_checkpoint_in_half_precision(models, tmp_path):
    """Its options stand in one namespace, as before fairseq had a configuration."""
    state = load_checkpoint_to_cpu(str(models["lstm"]))
    args = Namespace(**vars(state["cfg"].model))
    del args._name
    half = {name: weight.half() for name, weight in state["model"].items()}
    torch.save(state | {"args": args, "cfg": None, "model": half}, tmp_path / "given.pt")
    older = load_checkpoint_to_cpu(str(command(tmp_path / "given.pt", tmp_path)))["model"]
    newer = convert(models["lstm"]).model.state_dict()
    assert newer.keys() == older.keys()
    for name, weight in newer.items():
        torch.testing.assert_close(older[name], weight, rtol=1e-3, atol=1e-7)
