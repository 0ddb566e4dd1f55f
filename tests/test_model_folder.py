"""A model as a folder: the same scores, without fairseq, and a sentence for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary

from fairseq_fixedpoint.decoding import History, load_one_step
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.language_model import safetensors
from fairseq_fixedpoint.language_model.dictionary import WordList
from fairseq_fixedpoint.language_model.folder import read_folder, write_folder
from fairseq_fixedpoint.rescoring import Scorer
from tests.commands import train
from tests.rescoring import fixedpoint_convert, fixedpoint_score, refused
from tests.test_model import build, dictionary

OTHERS = {"fairseq", "omegaconf", "hydra", "kenlm", "rapidfuzz", "sacrebleu", "tqdm", "safetensors"}
LINES = ["w1 w2 w3 w1", "", "w7 unheard w2", "w1 w2 w3 w4 w5 w6 w7 w8 w9"]
KINDS = {
    "elman": {"decoder_layers": 2, "learned_initial_state": True},
    "exact": {"cell": "gru", "iterations": 0},
    "lstm": {"cell": "lstm", "adaptive_softmax_cutoff": "10,20"},
    "orthogonal": {"orthogonal": True, "share_decoder_input_output_embed": True},
    "bounded": {"spectral_bound": 0.5, "decoder_out_embed_dim": 6},
    "stream": {"cell": "gru", "start": "stream", "start_tokens": 4, "start_decays": "0.5,0.9"},
    "sentence": {"start": "sentence", "reset_at_eos": True},
    "input": {"summary_input": True, "cell": "lstm", "adaptive_softmax_cutoff": "10"},
}


def written(folder: Path, **options) -> Path:
    model = build(**options)
    torch.nn.init.normal_(model.decoder.embed_tokens.weight)
    folder.mkdir()
    write_folder(folder, model.decoder, dictionary().symbols)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_the_model_bit_for_bit(kind, tmp_path):
    model = build(**KINDS[kind])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    (tmp_path / "model").mkdir()
    write_folder(tmp_path / "model", model.decoder, dictionary().symbols, add_bos_token=True)
    held = read_folder(tmp_path / "model")
    assert held.add_bos_token and not held.trained_with_penalty
    assert held.words.symbols == dictionary().symbols
    assert held.model.config == model.decoder.config
    own = held.model.state_dict()
    assert {name: model.decoder.state_dict()[name].tolist() for name in own} == {
        name: tensor.tolist() for name, tensor in own.items()
    }
    tokens = torch.randint(4, 44, (3, 12))
    tokens[1, 5] = 2
    with torch.no_grad():
        actual, expected = (each.evaluate(tokens).features for each in (held.model, model.decoder))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["elman", "gru"])
def test_commands_score_with_a_folder_as_with_its_checkpoint(name, models, tmp_path, capfd):
    text = tmp_path / "text"
    text.write_text("\n".join(LINES) + "\n")
    folder = tmp_path / "folder"
    fixedpoint_convert(models[name], "--to", "folder", "--output", folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "dict.txt",
        "model.safetensors",
    ]
    outputs = []
    for number, model in enumerate((models[name], folder)):
        outputs.append(tmp_path / f"scores{number}")
        fixedpoint_score(text, "--model", model, "--output", outputs[-1])
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    again = tmp_path / "again"  # of a folder another folder, at another order
    fixedpoint_convert(folder, "--to", "folder", "--iterations", 2, "--output", again)
    for one, other in zip(
        Scorer.from_checkpoint(again).score(LINES),
        Scorer.from_checkpoint(models[name], iterations=2).score(LINES),
        strict=True,
    ):
        assert one.log_probabilities.tolist() == other.log_probabilities.tolist()
    capfd.readouterr()


def test_commands_need_no_fairseq_for_a_folder(tmp_path):
    """Nor any other package but torch and numpy."""
    folder = written(tmp_path / "model", cell="gru")
    text, scored, alone = (tmp_path / name for name in ("text", "scored", "alone"))
    text.write_text("\n".join(LINES) + "\n")
    fixedpoint_score(text, "--model", folder, "--per-word", "--output", scored)
    program = f"""
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OTHERS!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Without())
from fairseq_fixedpoint.cli.score import main
sys.exit(main({["--model", str(folder), "--per-word", "--output", str(alone), str(text)]!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert scored.read_bytes() == alone.read_bytes()


def test_a_dictionary_keeps_what_overwrites_and_what_is_read_alone(tmp_path):
    symbols = [*dictionary().symbols, "w3", "<unk>", "a b", "w3"]
    WordList(symbols).write(tmp_path / "dict.txt")
    actual, theirs = WordList.read(tmp_path / "dict.txt", predicted=20), Dictionary()
    theirs.add_from_file(str(tmp_path / "dict.txt"))
    assert actual.symbols == theirs.symbols == symbols
    assert actual.indices == theirs.indices
    assert len(actual) == 20 and actual[30] == "<unk>"


def test_a_model_of_fewer_predicted_words_scores_as_its_checkpoint(data, tmp_path):
    """What it reads and does not predict is `<unk>`, in a folder and as n-grams, too."""
    train(data, tmp_path, "--cell", "gru", "--output-dictionary-size", 12, "--max-update", 2,
          "--disable-validation")  # fmt: skip
    checkpoint, folder = tmp_path / "checkpoint_last.pt", tmp_path / "folder"
    fixedpoint_convert(checkpoint, "--to", "folder", "--output", folder)
    lines = ["w1 w2 w3", " ".join(f"w{number}" for number in range(30))]
    scores = [Scorer.from_checkpoint(path).score(lines) for path in (checkpoint, folder)]
    for one, other in zip(*scores, strict=True):
        assert one.unknown == other.unknown
        assert one.log_probabilities.tolist() == other.log_probabilities.tolist()
    assert scores[0][1].unknown > 10
    (tmp_path / "text").write_text("\n".join(lines) + "\n")
    fixedpoint_convert(folder, "--to", "arpa", "--text", tmp_path / "text", "--order", 2,
                       "--output", tmp_path / "arpa")  # fmt: skip
    words = len(WordList.read(folder / "dict.txt", 12))
    assert f"ngram 1={words - 4 + 3}\n" in (tmp_path / "arpa").read_text()  # <s>, </s>, <unk>
    step = load_one_step(folder)
    history = History.start(step)
    beyond = step.dictionary.indices[step.dictionary.symbols[-1]]
    assert history.log_probability(beyond) == history.log_probability(step.dictionary.unk())


def test_safetensors_is_the_package_s_format(tmp_path):
    package = pytest.importorskip("safetensors.torch")
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.randn(2, dtype=torch.float64).to(torch.bfloat16),
        "none": torch.empty(0, 3),
        "number": torch.tensor(7),
        "flags": torch.tensor([True, False]),
    }
    with (tmp_path / "ours").open("wb") as file:
        safetensors.write(file, tensors)
    package.save_file(tensors, tmp_path / "theirs")
    for path in (tmp_path / "ours", tmp_path / "theirs"):
        for actual in (safetensors.read(path), package.load_file(path)):
            assert actual.keys() == tensors.keys()
            assert all(torch.equal(actual[name], tensors[name]) for name in tensors)


def store_header(path: Path, header: bytes, tensors: bytes = b"") -> None:
    path.write_bytes(safetensors.LENGTH.pack(len(header)) + header + tensors)


@pytest.mark.parametrize(
    ("shape", "size"), [("[-1,0]", 0), ("[-2,-3]", 24), ("[0,4611686018427387904,4]", 0)]
)
def test_shapes_of_no_tensor_are_refused(shape, size, tmp_path):
    path = tmp_path / "model.safetensors"
    header = f'{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{size}]}}}}'
    store_header(path, header.encode(), bytes(size))
    with pytest.raises(InputError, match=r"model\.safetensors is no whole file of tensors"):
        safetensors.read(path)


def change(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def reconfigure(folder: Path, **values) -> None:
    path = folder / "config.json"
    change(folder, model=json.loads(path.read_text())["model"] | values)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "dict.txt"])
@pytest.mark.parametrize("as_data", [False, True])
def test_a_file_of_a_folder_that_is_read_is_not_written_over(tmp_path, capfd, name, as_data):
    folder = written(tmp_path / "model")
    (tmp_path / "text").write_text("w1 w2\n")
    before = (folder / name).read_bytes()
    if as_data:
        model = ("--model", tmp_path / "checkpoint.pt", "--data", folder)
    else:
        model = ("--model", f"A={folder}")
    arguments = (tmp_path / "text", *model, "--output", folder / name)
    said = refused(capfd, fixedpoint_score, *arguments)
    assert f"--output {folder / name} is there already, in a folder that is read" in said
    assert (folder / name).read_bytes() == before


def test_a_folder_makes_no_checkpoint(tmp_path, capfd):
    folder = written(tmp_path / "model")
    said = refused(capfd, fixedpoint_convert, folder, "--output", tmp_path / "out.pt")
    assert "is a folder, of which no checkpoint can be made: add --to folder, arpa or onnx" in said


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "dict.txt").unlink(), "dict.txt is not there"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda f: (f / "config.json").write_text("[" * 10**5), "config.json is no JSON"),
        (lambda f: change(f, format="another"), "does not describe a model of this project"),
        (lambda f: change(f, version=2), "is of version 2, and this program reads version 1"),
        (lambda f: change(f, model={"colour": 1}), "has a wrong entry, colour"),
        (lambda f: change(f, model=None), "has a wrong entry, model"),
        (lambda f: reconfigure(f, iterations=2.5), "has a wrong value of iterations, 2.5"),
        (lambda f: reconfigure(f, embed_dim="8"), 'has a wrong value of embed_dim, "8"'),
        (lambda f: reconfigure(f, reset_at_eos=1), "has a wrong value of reset_at_eos, 1"),
        (lambda f: reconfigure(f, start_decays=[0.5, "a"]), "has a wrong value of start_decays"),
        (lambda f: reconfigure(f, cell="foo"), "config.json: unknown cell 'foo'"),
        (lambda f: reconfigure(f, eos=5000), "config.json: eos must be the place of one of 44"),
        (lambda f: reconfigure(f, output_vocabulary_size=50), "output_vocabulary_size must be at"),
        (
            lambda f: (f / "dict.txt").write_text("w0 1\nw1 1\n"),
            "is not the dictionary that the model was written with",
        ),
        (lambda f: (f / "dict.txt").write_bytes(b"w\xff 1\n"), "dict.txt is not UTF-8"),
        (
            lambda f: (f / "dict.txt").write_text("w0\n"),
            "dict.txt, line 1: a dict.txt has a token",
        ),
        (
            lambda f: (f / "dict.txt").write_text("w0 1\nw0 1\n"),
            "dict.txt, line 2: the token 'w0' stands here again",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:-9]
            ),
            "model.safetensors is no whole file of tensors",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04 pickle"),
            "model.safetensors is no whole file of tensors",
        ),
        (
            lambda f: store_header(f / "model.safetensors", b'{"a":' * 10**5),
            "model.safetensors is no whole file of tensors",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(damage, message, tmp_path):
    folder = written(tmp_path / "model")
    damage(folder)
    with pytest.raises(InputError, match=message):
        read_folder(folder)


@pytest.mark.parametrize("share", [True, False, 0.5])
def test_the_share_to_recompute_is_a_number_or_what_it_was_before(share, tmp_path):
    folder = written(tmp_path / "model")
    reconfigure(folder, checkpoint_iterations=share)
    options = read_folder(folder).model.gradient_options
    assert options["checkpoint_iterations"] == share


def test_a_folder_of_other_weights_is_refused(tmp_path):
    folder, other = written(tmp_path / "model"), written(tmp_path / "other", cell="gru")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="does not hold the parameters"):
        read_folder(folder)


def test_an_orthogonal_model_in_lower_precision_is_refused(tmp_path):
    folder = written(tmp_path / "model", orthogonal=True)
    weights = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in safetensors.read(folder / "model.safetensors").items()
    }
    with (folder / "model.safetensors").open("wb") as file:
        safetensors.write(file, weights)
    with pytest.raises(InputError, match=r"model\.safetensors .*needs float32 parameters"):
        read_folder(folder)


def test_convert_writes_no_folder_of_another_model(models, capfd, tmp_path):
    said = refused(
        capfd, fixedpoint_convert, models["transformer"], "--to", "folder",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert "holds no fixedpoint_lm" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to", "folder", "--report", "valid"), "--report is of an lstm_lm that is converted"),
        (("--to", "folder", "--order", 3), "--order is for --to arpa"),
        (("--text", "text"), "--text is for --to arpa"),
        (("--to", "onnx", "--kenlm", "arpa"), "--kenlm is for --to arpa"),
        (("--to", "folder", "--orders", "1,2"), "--orders are those of --report"),
    ],
)
def test_options_of_another_conversion_are_refused(models, capfd, tmp_path, options, message):
    out = tmp_path / "out"
    said = refused(capfd, fixedpoint_convert, models["gru"], *options, "--output", out)
    assert message in said
    assert not out.exists()
