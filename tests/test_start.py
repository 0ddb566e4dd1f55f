"""A start that remembers: one function in training, evaluation and generation."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.data import MonolingualDataset, TokenBlockDataset
from fairseq_cli.eval_lm import eval_lm

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.language_model import StreamState
from fairseq_fixedpoint.plugin.evaluation import OrderReport
from fairseq_fixedpoint.recurrence import FixedOrder
from fairseq_fixedpoint.recurrence.iteration import fixed_point
from fairseq_fixedpoint.recurrence.solvers import Jacobi, solve
from fairseq_fixedpoint.rescoring import Scorer
from fairseq_fixedpoint.rescoring.window_scorer import WindowScorer
from tests.commands import evaluate, train
from tests.rescoring import fixedpoint_score, nbest
from tests.test_criterion import criterion as our_criterion
from tests.test_lattice_command import lattice
from tests.test_model import build

START = (
    "--start-tokens", 7, "--start-width", 3, "--start-decays", "0.5,0.9", "--max-update", 30,
    "--no-save-optimizer-state", "--save-interval", 10,
)  # fmt: skip
KINDS = {
    "stream": ("--start", "stream", "--iterations", 3, "--cell", "gru"),
    "sentence": ("--start", "sentence", "--reset-at-eos", "--iterations", 4, "--cell", "lstm"),
    "input": ("--summary-input", "--iterations", 0, "--cell", "elman"),
    "still": ("--start", "sentence", "--reset-at-eos", "--summary-input", "--iterations", 2),
    "both": ("--start", "stream", "--summary-input", "--iterations", 2, "--cell", "lstm"),
    "strided": ("--start", "stream", "--iterations", 2, "--stride", 3, "--decoder-layers", 2),
}


@pytest.fixture(scope="module")
def started(data, tmp_path_factory):
    """Checkpoints of both kinds of start, of a summary as an input, and of a stride."""
    folder = tmp_path_factory.mktemp("started")
    for name, options in KINDS.items():
        train(data, folder / name, *options, *START)
    return {name: folder / name / "checkpoint_last.pt" for name in KINDS}


def load(checkpoint, **overrides):
    """The model, ready to evaluate in float64, and its task."""
    models, _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], arg_overrides=overrides
    )
    return models[0].double().eval(), task


@pytest.mark.parametrize("kind", ["stream", "sentence", "still", "both", "strided"])
def test_perplexity_is_independent_of_the_block_size(data, started, kind):
    options = ("--reset-at-eos",) if kind in {"sentence", "still"} else ()
    actual = [
        evaluate(
            data, started[kind], "--tokens-per-sample", size, "--gen-subset", "valid", *options
        )
        for size in (1000, 13, 5, 1)
    ]  # fmt: skip
    for each in actual[1:]:
        assert math.isclose(each, actual[0], rel_tol=1e-5)


@pytest.mark.parametrize("kind", ["stream", "sentence", "still", "both"])
def test_blocks_are_the_whole_text_exactly(started, kind):
    """Also where a sentence is longer than what window and summary see of it."""
    model, task = load(started[kind])
    eos, pad = task.source_dictionary.eos(), task.source_dictionary.pad()
    torch.manual_seed(2)
    lengths = [3, 60, 1, 25, 2]
    sentences = [
        torch.cat([torch.randint(4, len(task.source_dictionary), (size - 1,)), torch.tensor([eos])])
        for size in lengths
    ]
    stream = torch.cat([torch.tensor([eos]), *sentences])
    with torch.no_grad():
        expected = model(stream[:-1].unsqueeze(0))[0][0]
    for size in (1, 4, 33):
        blocks = TokenBlockDataset(
            sentences, lengths, size, pad=pad, eos=eos, break_mode="none", include_targets=True
        )
        blocks = MonolingualDataset(
            blocks, blocks.sizes, task.source_dictionary, targets=["future"]
        )
        task.datasets["test"] = blocks
        batches = task.eval_lm_dataloader(blocks, batch_size=5, num_workers=0)
        actual = {}
        for batch in batches:
            with torch.no_grad():
                logits = model(**batch["net_input"])[0]
            assert logits.shape[:2] == batch["target"].shape
            rows = (batch["id"].tolist(), logits, batch["target"], batch["start_indices"])
            for number, row, target, start in zip(*rows, strict=True):
                actual[number] = row[start:][target[start:].ne(pad)]
        actual = torch.cat([actual[number] for number in range(len(blocks))])
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["stream", "sentence", "adaptive"])
def test_fairseqs_criterions_agree_and_leave_the_lead_out(data, started, tmp_path, kind):
    """No output layer runs over what a summary alone sees."""
    if kind == "adaptive":
        # fairseq leaves the second word of a rare cluster out, so that cluster has no words here.
        cutoff = ("--adaptive-softmax-cutoff", 36, "--max-update", 1)
        train(data, tmp_path, *KINDS["stream"], *START, *cutoff)
        model, task = load(tmp_path / "checkpoint_last.pt", tokens_per_sample=13)
    else:
        model, task = load(started[kind], tokens_per_sample=13)
    task.load_dataset("valid")
    batches = task.get_batch_iterator(task.dataset("valid"), max_sentences=8)
    batch = list(batches.next_epoch_itr(shuffle=False))[-1]
    criterion = AdaptiveLoss if kind == "adaptive" else CrossEntropyCriterion
    actual, *size = criterion(task, False)(model, batch)[:2]
    expected, *expected_size = our_criterion()(model, batch)[:2]
    torch.testing.assert_close(actual.squeeze(), expected, rtol=1e-10, atol=0)
    assert size == expected_size
    window = model.decoder.iterations - 1
    assert model(**batch["net_input"])[0].size(1) == window + 13


def test_an_ensemble_is_independent_of_the_block_size(data, started, tmp_path):
    """Starts of several M and a constant one of the largest K share the blocks and their lead."""
    train(data, tmp_path, "--iterations", 6, *START)
    longer = tmp_path / "longer"
    train(data, longer, *KINDS["strided"], *START, "--start-tokens", 12)
    paths = (tmp_path, longer, started["stream"].parent)
    actual = []
    for size in (1000, 13, 3):
        models, _, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(folder / "checkpoint_last.pt") for folder in paths],
            arg_overrides={"tokens_per_sample": size},
        )
        task.load_dataset("valid")
        batches = task.eval_lm_dataloader(task.dataset("valid"), batch_size=4, num_workers=0)
        actual.append(eval_lm(models, task.source_dictionary, batches)["perplexity"])
    for each in actual[1:]:
        assert math.isclose(each, actual[0], rel_tol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("iterations", [None, 0, 1])
def test_one_token_at_a_time_equals_the_block(started, kind, iterations):
    """Also after a beam has reordered its hypotheses, and from a prefix of any length."""
    model, task = load(started[kind])
    decoder = model.decoder
    torch.manual_seed(3)
    eos, words = task.source_dictionary.eos(), len(task.source_dictionary)
    tokens = torch.randint(4, words, (3, 14))
    tokens[:, 0] = eos
    tokens[0, 5] = tokens[1, 8] = tokens[2, 9] = eos
    decoder = decoder if iterations is None else decoder.at_order(iterations)
    with torch.no_grad():
        expected = decoder(tokens)[0]
        for prefix in (1, 4, 10):
            state: dict = {}
            order = torch.arange(3)
            for length in range(prefix, 15):
                actual = decoder(tokens[order][:, :length], incremental_state=state)[0][:, -1]
                torch.testing.assert_close(actual, expected[order, length - 1], rtol=0, atol=1e-10)
                change = torch.tensor([2, 0, 1]) if length % 2 else torch.arange(3)
                decoder.reorder_incremental_state(state, change)
                order = order[change]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "length"), [(2, 0), (0, 3), (0, 0)])
def test_nothing_gives_nothing(started, kind, batch, length):
    decoder = load(started[kind])[0].decoder
    with torch.no_grad():
        features = decoder(torch.zeros(batch, length, dtype=torch.long), features_only=True)[0]
    assert features.shape[:2] == (batch, length)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_stream_in_blocks_is_one(started, kind):
    """Also where a sentence is longer than what the start knows, and rows become fewer."""
    model, task = load(started[kind])
    decoder = model.decoder
    torch.manual_seed(7)
    tokens = torch.randint(4, len(task.source_dictionary), (3, 40))
    tokens[:, 0] = tokens[0, 3] = tokens[0, 29] = tokens[1, 4] = task.source_dictionary.eos()
    carried = StreamState()
    decoder = decoder.at_order(0)
    with torch.no_grad():
        expected = decoder(tokens)[0]
        for begin in range(0, 40, 5):
            rows, block = slice(3 if begin < 20 else 2), slice(begin, begin + 5)
            actual = decoder(tokens[rows, block], carried_state=carried)[0]
            torch.testing.assert_close(actual, expected[rows, block], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["stream", "sentence"])
def test_all_depends_on_the_last_tokens_alone(started, kind):
    """Contract 3 of a start: K + M tokens, and inside a sentence what came before it."""
    model, task = load(started[kind])
    decoder = model.decoder
    torch.manual_seed(5)
    tokens = torch.randint(4, len(task.source_dictionary), (1, 30))
    changed = tokens.clone()
    changed[0, 9] = 4 if tokens[0, 9] != 4 else 5
    if kind == "sentence":
        tokens[0, 12] = changed[0, 12] = task.source_dictionary.eos()
    with torch.no_grad():
        before, after = decoder(tokens)[0][0], decoder(changed)[0][0]
    differs = (before - after).abs().amax(1).gt(1e-12).nonzero().squeeze(1).tolist()
    if kind == "stream":
        assert differs == list(range(9, 9 + decoder.iterations + decoder.summary.tokens))
        assert decoder.order == decoder.iterations + decoder.summary.tokens
    else:  # the sentence that it is in, in its last K tokens; and all of the next one
        assert differs == [9, 10, 11, *range(12, 30)]
        assert decoder.order == decoder.iterations


def test_a_start_from_no_tokens_is_the_exact_recurrence_for_large_orders(started):
    """Contract 2 of a start."""
    model, task = load(started["stream"])
    tokens = torch.randint(4, len(task.source_dictionary), (2, 9))
    with torch.no_grad():
        large = model.decoder.at_order(9)(tokens)[0]
        exact = model.decoder.at_order(0)(tokens)[0]
    torch.testing.assert_close(large, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--start", "stream", "--start-tokens", 0), "--start-tokens must be at least 1, not 0"),
        (("--start", "stream", "--start-width", 0), "--start-width must be at least 1, not 0"),
        (("--start", "stream", "--start-width", 10**12), "--start-width 1000000000000 asks for"),
        (("--start", "stream", "--start-width", 10**19), "--start-width 10000000000000000000 asks"),
        (("--start", "stream", "--start-tokens", 10**12), "--start-tokens 1000000000000 asks for"),
        (("--start", "stream", "--start-decays", "0.9,1"), "--start-decays takes"),
        (("--start", "stream", "--start-decays", "a"), "--start-decays takes"),
        (("--start", "stream", "--start-decays", "0,0.9"), "--start-decays takes"),
        (("--summary-input", "--start-decays", "nan"), "--start-decays takes"),
        (("--start", "stream", "--max-tokens", 150), "--max-tokens 150 is less than one block of"),
        (("--start", "sentence"), "add --reset-at-eos"),
        (("--stride", 0), "--stride must be at least 1, not 0"),
        (("--stride", 4, "--iterations", 0), "--iterations 0 is the exact recurrence"),
    ],
)  # fmt: skip
def test_bad_options_are_sentences_and_nothing_is_written(data, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(data, tmp_path / "model", *options)
    assert not list((tmp_path / "model").glob("*.pt"))


@pytest.mark.parametrize(
    ("other", "trained", "configured"),
    [
        (
            {"start": "constant"},
            "--start stream --start-tokens 7 --start-decays 0.5,0.9 --start-width 3",
            "--start constant",
        ),
        ({"start_tokens": 8}, "--start-tokens 7", "--start-tokens 8"),
        ({"start_decays": "0.5,0.8"}, "--start-decays 0.5,0.9", "--start-decays 0.5,0.8"),
        ({"start_width": 4}, "--start-width 3", "--start-width 4"),
        ({"summary_input": True}, "no --summary-input", "--summary-input"),
        ({"start": "sentence"}, "--start stream", "--start sentence"),
    ],
)
def test_a_checkpoint_with_another_start_is_refused(data, started, other, trained, configured):
    message = f"was trained with {trained}, and the options say {configured}: these are"
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate(
            data, started["stream"], "--tokens-per-sample", 20, "--reset-at-eos",
            "--model-overrides", repr(other),
        )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        ("--start", "constant"),
        ("--start-tokens", 8),
        ("--start-decays", "0.5"),
        ("--start-width", 4),
        ("--summary-input",),
    ],
)
def test_training_does_not_go_on_with_another_start(data, started, tmp_path, options):
    """The checkpoint that was to be resumed stays as it is."""
    checkpoint = shutil.copy(started["stream"], tmp_path)
    before = Path(checkpoint).read_bytes()
    with pytest.raises(Exception, match="architectures match") as error:
        train(data, tmp_path, *KINDS["stream"], *START, "--max-update", 40, *options)
    assert "these are different models" in str(error.value.__context__)
    assert Path(checkpoint).read_bytes() == before


def test_a_stride_changes_nothing_in_evaluation(data, started):
    """Which is at one order, the exact recurrence among them."""
    options = (data, started["strided"], "--tokens-per-sample", 50, "--gen-subset", "valid")
    perplexities = {
        stride: evaluate(*options, "--model-overrides", f"{{'stride': {stride}}}")
        for stride in (1, 3, 7)
    }
    assert len(set(perplexities.values())) == 1
    exact = evaluate(*options, "--model-overrides", "{'iterations': 0}")
    assert exact != perplexities[1]
    with pytest.raises(ValueError, match="--stride must be at least 1, not 0"):
        evaluate(*options, "--model-overrides", "{'stride': 0}")


@pytest.mark.parametrize("kind", ["stream", "sentence", "input"])
def test_a_report_of_orders_is_not_made_of_it(data, started, kind):
    model, task = load(started[kind])
    task.load_dataset("valid")
    with pytest.raises(InputError, match="order by order"):
        OrderReport.of(model.decoder, task.dataset("valid"), [1, 2])


def test_the_stride_trains_and_its_phase_comes_from_the_seed(data, tmp_path):
    """Two runs of one seed are one; the phase moves from update to update."""
    weights = []
    for name in ("a", "b"):
        train(data, tmp_path / name, *KINDS["strided"], *START, "--max-update", 5)
        state = torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=False)["model"]
        weights.append(state)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def of_stream(decoder, dictionary, texts):
    """What the decoder gives each token of the last text, in a stream of all of them."""
    eos = dictionary.eos()
    tokens = [index for text in texts for index in (eos, *map(dictionary.index, text.split()))]
    inputs, targets = torch.tensor([tokens]), torch.tensor([[*tokens[1:], eos]])
    with torch.no_grad():
        logits = decoder(inputs)[0][0].log_softmax(-1)
    size = len(texts[-1].split()) + 1
    return logits.gather(1, targets[0].unsqueeze(1))[-size:, 0].tolist()


TEXTS = ["w3 w4 w5", "", "w1 w2 w3 w9 w7 w8", "w20", "w1 w2 w3 w4 w5 w6 w7 w8 w9"]


@pytest.mark.parametrize("kind", ["stream", "sentence", "both", "still"])
@pytest.mark.parametrize("iterations", [None, 1, 0])
def test_lines_are_scored_as_in_their_stream(started, kind, iterations):
    """Shared windows, or the model itself where its start moves; with what was said before."""
    scorer = Scorer.from_checkpoint(
        started[kind], iterations=iterations, previous_context=None if iterations else 30
    )
    scorer.tokens = type(scorer.tokens)(*parts(scorer))
    decoder = parts(scorer)[0]
    previous = [tuple(TEXTS[:number]) for number in range(len(TEXTS))]
    for texts in (previous, [()] * len(TEXTS)):
        actual = scorer.score([*TEXTS, *TEXTS], [*texts, *texts])
        for line, text, before in zip(actual, [*TEXTS, *TEXTS], [*texts, *texts], strict=True):
            expected = of_stream(decoder, scorer.encoder.dictionary, [*before, text])
            assert line.log_probabilities.tolist() == pytest.approx(expected, abs=1e-10)


def parts(scorer):
    """What its token scorer was made of, in float64."""
    tokens = scorer.tokens
    if isinstance(tokens, WindowScorer):
        return (tokens.model.double(),)
    return tokens.model.double(), tokens.dictionary


@pytest.mark.parametrize("kind", ["sentence", "still"])
def test_lists_and_lattices_know_what_was_said_before(started, tmp_path, kind):
    """Every path of a lattice has the score of its text in the stream of first passes."""
    lists, lattices = tmp_path / "list", tmp_path / "lattices"
    lists.write_text("".join(f"u{n}\t-1\t{text}\n" for n, text in enumerate(TEXTS)))
    lattices.write_text("".join(kaldi(f"u{n}", text.split()) for n, text in enumerate(TEXTS)))
    symbols = tmp_path / "text"
    symbols.write_text("".join(f"{text}\n" for text in TEXTS))
    model = ("--model", f"A={started[kind]}", "--previous-context")
    assert nbest(lists, *model, "--output", tmp_path / "rescored") == 0
    assert lattice(
        lattices, *model, "--prune-beam", "none", "--nbest", tmp_path / "nbest", "--acoustic-scale",
        0, "--weight", "graph=0", "--output", tmp_path / "out",
    ) == 0  # fmt: skip
    assert fixedpoint_score(symbols, *model, "--output", tmp_path / "scores") == 0
    model, task = load(started[kind])
    expected = [
        sum(of_stream(model.decoder, task.source_dictionary, TEXTS[: number + 1]))
        for number in range(len(TEXTS))
    ]
    in_list = [row.split("\t")[3] for row in (tmp_path / "rescored").read_text().splitlines()[1:]]
    in_lattices = [row.split("\t")[1] for row in (tmp_path / "nbest").read_text().splitlines()[1:]]
    of_lines = [row.split("\t")[0] for row in (tmp_path / "scores").read_text().splitlines()[1:]]
    for actual in (in_list, in_lattices, of_lines):
        assert list(map(float, actual)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["sentence", "still"])
def test_merged_histories_of_one_path_are_its_own(started, tmp_path, kind):
    (tmp_path / "lattices").write_text(
        "".join(kaldi(f"u{n}", t.split()) for n, t in enumerate(TEXTS))
    )
    numbers = []
    for histories in "expand", "merge":
        out = tmp_path / histories
        assert lattice(
            tmp_path / "lattices", "--model", started[kind], "--previous-context", "--prune-beam",
            "none", "--histories", histories, "--output", out,
        ) == 0  # fmt: skip
        costs = re.findall(r"(-?[0-9.e-]+),", out.read_text())
        numbers.append(list(map(float, costs)))
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-4) and any(numbers[0])


def test_previous_texts_take_the_place_of_the_utterances_before(started, tmp_path):
    """The order of the lists and lattices does not matter then."""
    lists, lattices, texts = (tmp_path / name for name in ("list", "lattices", "previous"))
    numbers = [3, 0, 4, 2, 1]
    lists.write_text("".join(f"u{n}\t-1\t{TEXTS[n]}\n" for n in numbers))
    lattices.write_text("".join(kaldi(f"u{n}", TEXTS[n].split()) for n in numbers))
    texts.write_text("".join(f"u{n}\t{text}\n" for n in numbers for text in TEXTS[:n]))
    options = ("--model", f"A={started['sentence']}", "--previous-context")
    options += ("--previous-texts", texts)
    assert nbest(lists, *options, "--output", tmp_path / "rescored") == 0
    assert lattice(
        lattices, *options, "--prune-beam", "none", "--nbest", tmp_path / "nbest",
        "--acoustic-scale", 0, "--weight", "graph=0", "--output", tmp_path / "out",
    ) == 0  # fmt: skip
    model, task = load(started["sentence"])
    expected = [
        sum(of_stream(model.decoder, task.source_dictionary, TEXTS[: n + 1])) for n in numbers
    ]
    in_list = [row.split("\t")[3] for row in (tmp_path / "rescored").read_text().splitlines()[1:]]
    in_lattices = [row.split("\t")[1] for row in (tmp_path / "nbest").read_text().splitlines()[1:]]
    for actual in (in_list, in_lattices):
        assert list(map(float, actual)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("command", [nbest, lattice])
@pytest.mark.parametrize(
    ("content", "context", "message"),
    [
        ("u\tw2\n", (), "--previous-texts needs --previous-context"),
        ("other\tw2\n", ("--previous-context",), "nothing before any utterance, such as u:"),
        ("u w2\n", ("--previous-context",), "line 1: must be the utterance's id, a tab"),
    ],
)
def test_previous_texts_that_say_nothing_are_refused(
    started, tmp_path, capfd, command, content, context, message
):
    text = "u\t-1\tw1\n" if command is nbest else kaldi("u", ["w1"])
    (tmp_path / "input").write_text(text)
    (tmp_path / "previous").write_text(content)
    options = ("--model", started["sentence"], "--output", tmp_path / "out", *context)
    options += ("--previous-texts", tmp_path / "previous")
    assert command(tmp_path / "input", *options) == 1
    assert message in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def kaldi(name, words):
    """A CompactLattice of one path, an empty arc for no words."""
    words = words or ["<eps>"]
    arcs = "".join(f"{n} {n + 1} {word} 0,0,\n" for n, word in enumerate(words))
    return f"{name}\n{arcs}{len(words)}\n\n"


@pytest.mark.parametrize("evaluating", [False, True])
def test_a_batch_with_no_room_for_what_comes_before_a_block_is_refused(
    data, started, tmp_path, evaluating
):
    """7 tokens of the start and 2 of the window, before a block of 20."""
    message = "one block of 20 tokens and the 9 before it .* make it at least 29"
    with pytest.raises(ValueError, match=message):
        if evaluating:
            evaluate(data, started["stream"], "--tokens-per-sample", 20, "--max-tokens", 28)
        else:
            options = ("--batch-size", 4, "--max-tokens", 28)
            train(data, tmp_path, *KINDS["stream"], *START, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--start-tokens", 8), "--start-tokens is of a summary"),
        (("--start-decays", "0.5"), "--start-decays is of a summary"),
        (("--start-width", 4), "--start-width is of a summary"),
        (("--start", "stream", "--iterations", 0), "--start stream has no effect on the exact"),
    ],
)
def test_options_without_effect_are_told_of(data, tmp_path, caplog, options, message):
    train(data, tmp_path, *options, "--max-update", 1, "--no-save", "--disable-validation")
    assert message in caplog.text


def test_options_of_a_summary_that_is_there_are_not(data, tmp_path, caplog):
    train(
        data, tmp_path, "--iterations", 0, "--summary-input", "--start-tokens", 8, "--max-update",
        1, "--no-save", "--disable-validation",
    )  # fmt: skip
    assert "no effect" not in caplog.text


@pytest.mark.parametrize(
    ("kind", "options"), [("stream", ()), ("both", ()), ("input", ("--iterations", 2))]
)
def test_lattices_refuse_a_summary_that_moves(started, tmp_path, capfd, kind, options):
    (tmp_path / "lattices").write_text(kaldi("u", ["w1"]))
    model = ("--model", started[kind], "--output", tmp_path / "out")
    assert lattice(tmp_path / "lattices", *model, *options) == 1
    assert "train a fixedpoint_lm with --start sentence --reset-at-eos" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_constant_starts_look_back_in_lists_alone(models, tmp_path, capfd):
    (tmp_path / "lattices").write_text(kaldi("u", ["w1"]))
    options = ("--model", models["gru"], "--output", tmp_path / "out", "--previous-context")
    assert lattice(tmp_path / "lattices", *options) == 1
    assert "trained with --start sentence" in capfd.readouterr().err


def test_orders_that_the_stride_trained_need_no_warning(data, started, caplog):
    """K to K + C - 1, which are 2 to 4."""
    options = (data, started["strided"], "--tokens-per-sample", 50, "--gen-subset", "valid")
    for iterations in (2, 4):
        evaluate(*options, "--model-overrides", f"{{'iterations': {iterations}}}")
    assert "now used with" not in caplog.text
    evaluate(*options, "--model-overrides", "{'iterations': 5}")
    assert "trained with --iterations 2 and is now used with --iterations 5" in caplog.text


@pytest.mark.parametrize("kind", ["stream", "sentence", "both"])
@pytest.mark.parametrize("mode", ["eos", "complete", "complete_doc"])
def test_blocks_that_stand_alone_are_told_of(started, caplog, kind, mode):
    """They have nothing before them, whichever way a start would look at it."""
    model, task = load(started[kind], sample_break_mode=mode)
    assert model.decoder.summary is not None  # the task knows models as long as there are any
    task.load_dataset("valid")
    for _ in range(2):
        task.get_batch_iterator(task.dataset("valid"), max_sentences=8)
    unit = "sentence" if kind == "sentence" else "token"
    assert caplog.text.count(f"knows no {unit} before its first one") == 1


def test_a_start_needs_its_summary(started):
    rnn = load(started["stream"])[0].decoder.rnn
    x, cache = torch.zeros(3, 1, 16, dtype=torch.float64), rnn.initial_cache(1, 3)
    for run in (lambda: rnn(x, 3), lambda: rnn.step(x[0], cache)):
        with pytest.raises(ValueError, match="which needs one"):
            run()
    with pytest.raises(ValueError, match="takes no summary"):
        FixedOrder(rnn, 3)
    layers = rnn.effective_layers()
    for run in (lambda: fixed_point(layers, x, 3), lambda: solve(layers, x, Jacobi())):
        with pytest.raises(ValueError, match="which needs one"):
            run()


@pytest.mark.parametrize("iterations", [0, 3])
def test_a_summary_has_a_row_for_each_position(started, iterations):
    rnn = load(started["stream"])[0].decoder.rnn
    x, summary = torch.zeros(3, 1, 16, dtype=torch.float64), torch.zeros(2, 1, 6).double()
    with pytest.raises(ValueError, match=r"summary must have the shape \([34], 1, 6\)"):
        rnn(x, iterations, summary=summary)
    with pytest.raises(ValueError, match=r"summary must have the shape \(1, 1, 6\)"):
        rnn.step(x[0], rnn.initial_cache(1, iterations), summary=summary[0, :, :5])


def test_a_stride_is_for_training(started):
    model, _ = load(started["strided"])
    with pytest.raises(ValueError, match="evaluate at one order, without it"):
        model.decoder.rnn(
            torch.zeros(3, 1, 16, dtype=torch.float64), 2, stride=2,
            summary=torch.zeros(4, 1, 6, dtype=torch.float64),
        )  # fmt: skip


@pytest.mark.parametrize("iterations", [0, 2])
@pytest.mark.parametrize("summary_input", [False, True])
def test_a_sentence_that_begins_anew_knows_as_many_tokens_before_it_as_its_reach(
    iterations, summary_input
):
    """`</s>` and the M before it; one less is another text."""
    decoder = build(
        iterations=iterations, cell="gru", reset_at_eos=True, start="stream", start_tokens=4,
        start_width=3, summary_input=summary_input,
    ).decoder  # fmt: skip
    torch.nn.init.normal_(decoder.rnn.start_weight)
    assert decoder.reach == 5
    tokens = torch.randint(4, 40, (1, 20))
    tokens[0, 14] = decoder.config.eos
    with torch.no_grad():
        whole, known, less = (decoder(tokens[:, begin:])[0][:, -6:] for begin in (0, 10, 11))
    torch.testing.assert_close(known, whole, rtol=0, atol=1e-12)
    assert not torch.allclose(less, whole)
