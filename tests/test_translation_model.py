"""The translation model: padding, attention and cached steps change no probability."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator
from fairseq_cli import generate, preprocess, train
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.formats import FORMATS, Rescored, detect
from fairseq_fixedpoint.plugin.models.fixedpoint import (
    EncoderAttention,
    FixedPointTranslationConfig,
    FixedPointTranslationModel,
)
from fairseq_fixedpoint.plugin.tasks.fixedpoint_translation import (
    FixedPointTranslationTask,
    FixedPointTranslationTaskConfig,
)
from fairseq_fixedpoint.recurrence.reference import window_by_window
from tests.commands import PLUGIN, run_fairseq
from tests.test_model import CELLS, EXACT, dictionary


def build(seed: int = 0, source=None, target=None, **options) -> FixedPointTranslationModel:
    """A small float64 model in evaluation mode; 30 source and 40 target words."""
    torch.manual_seed(seed)
    task = SimpleNamespace(
        source_dictionary=source or dictionary(30), target_dictionary=target or dictionary(40)
    )
    sizes = {"encoder_embed_dim": 6, "encoder_hidden_size": 4, "decoder_embed_dim": 8}
    sizes["decoder_attention_heads"] = 2
    cfg = FixedPointTranslationConfig(**{**sizes, "iterations": 3, **options})
    return FixedPointTranslationModel.build_model(cfg, task).double().eval()


def sentences(*lengths: int, words: int = 30) -> list[torch.Tensor]:
    """Random words, and `</s>` at the end."""
    eos = torch.tensor([Dictionary().eos()])
    return [torch.cat([torch.randint(4, 4 + words, (length,)), eos]) for length in lengths]


def batched(rows: list[torch.Tensor], left: bool) -> torch.Tensor:
    """Padded as fairseq's collater pads sources (left) or targets (right)."""
    pad, width = Dictionary().pad(), max(map(len, rows))
    missing = [width - len(row) for row in rows]
    sides = [(n, 0) if left else (0, n) for n in missing]
    return torch.stack(
        [torch.nn.functional.pad(r, s, value=pad) for r, s in zip(rows, sides, strict=True)]
    )


def shifted(target: torch.Tensor) -> torch.Tensor:
    """`prev_output_tokens`: `</s>` first, as fairseq's translation data has it."""
    return target.roll(1, dims=-1)


def log_probs(model, *arguments, **options) -> torch.Tensor:
    return model(*arguments, **options)[0].log_softmax(-1)


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    left=st.booleans(),
    cell=st.sampled_from(CELLS),
    layers=st.integers(1, 2),
    iterations=st.sampled_from([0, 1, 3, 9]),
)
def test_a_sentence_translates_the_same_alone_and_in_a_padded_batch(
    lengths, left, cell, layers, iterations
):
    model = build(
        cell=cell,
        encoder_layers=layers,
        decoder_layers=layers,
        iterations=iterations,
        learned_initial_state=True,
    )
    for rnn in (model.encoder.forward_rnn, model.encoder.backward_rnn, model.decoder.rnn):
        torch.nn.init.uniform_(rnn.initial_state)
    torch.nn.init.normal_(model.decoder.attention.distance_bias.weight)
    sources, targets = sentences(*lengths), sentences(*lengths[::-1], words=40)
    previous = [shifted(target) for target in targets]
    together, extra = model(batched(sources, left), None, batched(previous, left=False))
    for row, (source, prefix) in enumerate(zip(sources, previous, strict=True)):
        alone, alone_extra = model(source[None], None, prefix[None])
        torch.testing.assert_close(together[row, : len(prefix)], alone[0], **EXACT)
        weights = extra["attn"][0][row, : len(prefix)]  # (T, S)
        real = batched(sources, left)[row].ne(Dictionary().pad())
        torch.testing.assert_close(weights[:, real], alone_extra["attn"][0][0], **EXACT)
        assert weights[:, ~real].eq(0).all()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_the_encoder_reads_k_words_on_either_side(cell, layers, iterations):
    """Each direction is the ordinary RNN, window by window; one of them from the end."""
    model = build(cell=cell, encoder_layers=layers, encoder_iterations=iterations)
    encoder = model.encoder
    [source] = sentences(6)
    [output] = encoder(source[None])["encoder_out"]  # (S, 1, 2H)
    x = encoder.embed_tokens(source)[:, None]
    ahead, back = (
        window_by_window(rnn.effective_layers(), inputs, iterations)
        for rnn, inputs in ((encoder.forward_rnn, x), (encoder.backward_rnn, x.flip(0)))
    )
    torch.testing.assert_close(output, torch.cat([ahead, back.flip(0)], dim=-1), **EXACT)


def attended(layer: EncoderAttention, x: torch.Tensor, source: torch.Tensor, position: int):
    """:class:`EncoderAttention` for one target position, head by head: x ``(C,)``, ``(S, M)``."""
    limit = layer.MAX_DISTANCE
    distances = [max(-limit, min(limit, position - word)) for word in range(len(source))]
    d = source.size(1) // layer.heads
    query, contexts, weights = layer.query(x), [], []
    for head in range(layer.heads):
        part = slice(head * d, (head + 1) * d)
        scores = torch.stack([query[part] @ word[part] / d**0.5 for word in source])
        scores += torch.stack([layer.distance_bias.weight[limit + n, head] for n in distances])
        weights.append(scores.softmax(0))
        contexts.append(sum(w * word[part] for w, word in zip(weights[-1], source, strict=True)))
    return layer.norm(x + layer.combine(torch.cat(contexts))), torch.stack(weights).mean(0)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_equals_its_definition(heads):
    torch.manual_seed(0)
    layer = EncoderAttention(size=5, encoder_size=8, heads=heads, dropout=0.5).double().eval()
    torch.nn.init.normal_(layer.distance_bias.weight)
    x, source = torch.randn(3, 4, 5).double(), torch.randn(40, 3, 8).double()
    mask = torch.zeros(3, 40, dtype=torch.bool)
    mask[0, :2] = mask[1, 5:] = True
    distances = torch.arange(4)[None, :, None] - ((~mask).cumsum(1) - 1)[:, None]
    output, weights = layer(x, source, mask, distances)
    for row in range(3):
        for position in range(4):
            words = source[~mask[row], row]
            expected, expected_weights = attended(layer, x[row, position], words, position)
            torch.testing.assert_close(output[row, position], expected, **EXACT)
            actual = weights[row, position][~mask[row]]
            torch.testing.assert_close(actual, expected_weights, **EXACT)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_cached_steps_equal_the_block(cell, layers, iterations):
    """As fairseq's generator calls: the whole prefix each time, the order changed in between."""
    model = build(
        cell=cell,
        decoder_layers=layers,
        iterations=iterations,
        learned_initial_state=True,
    )
    torch.nn.init.uniform_(model.decoder.rnn.initial_state)
    torch.nn.init.normal_(model.decoder.attention.distance_bias.weight)
    source = batched(sentences(5, 2, 7), left=True)
    tokens = shifted(torch.stack(sentences(8, 8, 8, words=40)))
    tokens[1] = tokens[1].roll(3)
    tokens[1, :3] = Dictionary().pad()  # a shorter prefix, padded on the left
    for first in (1, 5):  # a prefix of one token, and of several
        state, order = {}, torch.tensor([2, 0, 0])
        prefixes, encoder_out = tokens, model.encoder(source)
        for length in range(first, tokens.size(1) + 1):
            prefix = prefixes[:, :length]
            step, step_extra = model.decoder(prefix, encoder_out, incremental_state=state)
            block, block_extra = model.decoder(prefix, encoder_out)
            real = prefix[:, -1].ne(Dictionary().pad())
            torch.testing.assert_close(step[real, -1], block[real, -1], **EXACT)
            torch.testing.assert_close(
                step_extra["attn"][0][real, -1], block_extra["attn"][0][real, -1], **EXACT
            )
            model.decoder.reorder_incremental_state_scripting(state, order)
            encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
            prefixes = prefixes[order]


@pytest.mark.parametrize("cell", CELLS)
def test_a_target_word_more_than_k_back_changes_no_probability(cell):
    model = build(cell=cell, decoder_layers=2, iterations=4)
    source, previous = torch.stack(sentences(5, 5)), shifted(torch.stack(sentences(9, 9, words=40)))
    changed = previous.clone()
    changed[:, 2] = 4 + (previous[:, 2] - 3) % 40
    before, after = (log_probs(model, source, None, tokens) for tokens in (previous, changed))
    torch.testing.assert_close(before[:, 6:], after[:, 6:], **EXACT)
    assert not torch.isclose(before[:, 2:6], after[:, 2:6]).all(-1).any()


@pytest.mark.parametrize("cell", CELLS)
def test_one_checkpoint_serves_the_iteration_and_the_exact_recurrence(cell):
    iterated, exact = build(cell=cell, iterations=9), build(cell=cell, iterations=0, seed=1)
    exact.load_state_dict(iterated.state_dict())
    batch = batched(sentences(5, 2), left=True), None, shifted(torch.stack(sentences(7, 7)))
    torch.testing.assert_close(log_probs(exact, *batch), log_probs(iterated, *batch), **EXACT)


def test_lower_orders_are_the_decoders_of_lower_orders():
    model = build(iterations=5)
    batch = batched(sentences(5, 2), left=True), None, shifted(torch.stack(sentences(7, 7)))
    _, extra = model(*batch, features_only=True, orders=[1, 3], residuals=True)
    for k, features in extra["iterates"].items():
        expected = build(iterations=k, encoder_iterations=5)(*batch)[0]
        torch.testing.assert_close(model.decoder.output_layer(features), expected, **EXACT)
    assert extra["squared_residuals"].shape == (5,)


@pytest.mark.parametrize("iterations", [0, 3])
@pytest.mark.parametrize("cutoff", [None, "20"])
def test_fairseqs_generator_scores_as_the_block(iterations, cutoff):
    """Beam search over a padded batch: positional scores, and the shape of the attention."""
    target = dictionary(40)
    model = build(iterations=iterations, cell="gru", target=target, adaptive_softmax_cutoff=cutoff)
    sources = sentences(6, 3, 1)
    generator = SequenceGenerator([model], target, beam_size=4, max_len_b=9)
    source = batched(sources, left=True)
    lengths = torch.tensor([len(row) for row in sources])
    actual = generator.generate(
        [model], {"net_input": {"src_tokens": source, "src_lengths": lengths}}
    )
    for row, hypotheses in zip(sources, actual, strict=True):
        assert len(hypotheses) == 4
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"]
            block = model(row[None], None, shifted(tokens)[None])
            expected = model.get_normalized_probs(block, log_probs=True)[0]  # (T, V)
            expected = expected.gather(1, tokens[:, None]).squeeze(1).double()
            # The generator itself sums in float32.
            torch.testing.assert_close(
                hypothesis["positional_scores"].double(), expected, rtol=0, atol=1e-5
            )
            assert hypothesis["attention"].shape == (source.size(1), len(tokens))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("iterations", [0, 2])
def test_every_parameter_receives_a_gradient(shared, iterations):
    """Processes in parallel wait for the gradients of all parameters."""
    both = dictionary(40)
    model = build(
        iterations=iterations,
        source=both,
        target=both,
        share_all_embeddings=shared,
        encoder_embed_dim=8,
        decoder_out_embed_dim=8 if shared else 5,
        encoder_layers=2,
        decoder_layers=2,
        learned_initial_state=True,
        dropout=0.2,
        weight_dropout=0.2,
        variational_dropout=True,
    ).train()
    output, _ = model(torch.stack(sentences(5, 5)), None, torch.stack(sentences(6, 6)))
    output.log_softmax(-1)[..., 5].sum().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert not without
    shares = model.encoder.embed_tokens is model.decoder.embed_tokens
    assert shares == shared
    assert (model.decoder.fc_out is None) == shared


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_close_as_its_products(dtype):
    """The model as fairseq casts it; held to what rounding its weights alone does."""
    model = build(cell="gru").float()
    batch = batched(sentences(5, 2), left=True), None, shifted(torch.stack(sentences(7, 7)))
    expected = log_probs(model, *batch)
    rounded = build(cell="gru").to(dtype).float()
    error = (log_probs(rounded, *batch) - expected).abs().max()
    actual = model.to(dtype)(*batch)[0]
    assert actual.dtype == dtype
    assert (actual.float().log_softmax(-1) - expected).abs().max() < 10 * error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": -1}, r"--iterations\)? must be 0"),
        ({"encoder_iterations": -1}, r"--encoder-iterations \(or --iterations\) must be 0"),
        ({"encoder_layers": 0}, "--encoder-layers must be at least 1"),
        ({"encoder_hidden_size": 0}, "--encoder-hidden-size must be at least 1"),
        ({"encoder_dropout_in": 1.0}, "--encoder-dropout-in"),
        ({"encoder_dropout_out": -0.1}, "--encoder-dropout-out"),
        ({"decoder_attention_heads": 0}, "--decoder-attention-heads must be at least 1"),
        ({"decoder_attention_heads": 3}, r"--decoder-attention-heads 3 must divide .*\(8\)"),
        ({"share_all_embeddings": True}, "--share-all-embeddings needs one dictionary"),
        (
            {"share_all_embeddings": True, "target": dictionary(30)},
            r"--encoder-embed-dim \(6\) to equal --decoder-embed-dim \(8\)",
        ),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(("side", "module"), [("source", "encoder"), ("target", "decoder")])
def test_another_dictionary_is_refused(side, module):
    trained = build()
    other = build(**{side: dictionary(42)})
    with pytest.raises(ValueError, match=rf"{module} was trained with another dictionary"):
        other.load_state_dict(trained.state_dict())


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({}, []),
        ({"iterations": 2}, []),
        ({"encoder_iterations": 2}, []),
        ({"iterations": 4}, ["decoder was trained with --iterations 3"]),
        ({"encoder_iterations": 6}, ["encoder was trained with --encoder-iterations 5"]),
        ({"encoder_iterations": 0}, ["encoder was trained with --encoder-iterations 5"]),
        (
            {"iterations": 0, "encoder_iterations": 9},
            ["decoder was trained", "encoder was trained"],
        ),
    ],
)
def test_another_order_is_told(caplog, now, told):
    trained = {"iterations": 3, "encoder_iterations": 5}
    state = build(**trained).state_dict()
    model = build(**{**trained, **now})
    model.load_state_dict(state)
    assert caplog.text.count("was trained with") == len(told)
    assert all(sentence in caplog.text for sentence in told)
    assert model.encoder.trained_iterations == 5 and model.decoder.trained_iterations == 3


def test_a_checkpoint_from_before_orders_were_kept_serves(caplog):
    trained, model = build(seed=1), build(iterations=9)
    state = trained.state_dict()
    del state["encoder.trained_iterations"], state["decoder.trained_iterations"]
    model.load_state_dict(state)
    assert not caplog.text
    for name, weight in trained.named_parameters():
        assert torch.equal(model.get_parameter(name), weight)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Folder written by fairseq-preprocess: words of one language named in another, in order."""
    folder = tmp_path_factory.mktemp("pairs")
    chooser = random.Random(0)
    for split, count in {"train": 200, "valid": 30, "test": 30}.items():
        sources = [chooser.sample(range(8), chooser.randint(2, 4)) for _ in range(count)]
        for language in ("xx", "en"):
            lines = [" ".join(f"{language}{word}" for word in words) for words in sources]
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n")
    run_fairseq(
        preprocess.cli_main, "-s", "xx", "-t", "en", "--workers", 1, "--destdir", folder / "bin",
        *(f"--{split}pref={folder / split}" for split in ("train", "valid", "test")),
    )  # fmt: skip
    return folder / "bin"


def test_padding_among_the_words_is_refused(pairs, tmp_path):
    for language, text in (("xx", "xx1 xx2\nxx3 <pad>\n"), ("en", "en1 en2\nen3 en4\n")):
        (tmp_path / f"test.{language}").write_text(text)
    for source, target in (("xx", "en"), ("en", "xx")):
        folder = tmp_path / source
        run_fairseq(
            preprocess.cli_main, "-s", source, "-t", target, "--workers", 1, "--destdir", folder,
            "--testpref", tmp_path / "test", "--srcdict", pairs / f"dict.{source}.txt",
            "--tgtdict", pairs / f"dict.{target}.txt",
        )  # fmt: skip
        cfg = FixedPointTranslationTaskConfig(
            data=str(folder), source_lang=source, target_lang=target, dataset_impl="mmap"
        )
        task = FixedPointTranslationTask.setup_task(cfg)
        with pytest.raises(ValueError, match=r"line 2 .* language xx, has the word <pad>"):
            task.load_dataset("test")


@pytest.mark.parametrize(
    ("iterations", "criterion"),
    [
        (3, ("label_smoothed_cross_entropy", "--label-smoothing", 0.1)),
        (3, ("fixedpoint_cross_entropy", "--loss-iterations", "1,3")),
        (0, ("cross_entropy",)),
    ],
)
def test_fairseq_trains_and_translates(pairs, tmp_path, capsys, iterations, criterion):
    """Words are drawn at random, so only attention to the right one can tell the next."""
    plugin = ("--user-dir", PLUGIN, "--cpu", "--no-progress-bar")
    run_fairseq(
        train.cli_main, pairs, *plugin, "--task", "translation", "--arch", "fixedpoint",
        "--cell", "gru",
        "--iterations", iterations, "--encoder-embed-dim", 16, "--decoder-embed-dim", 16,
        "--share-decoder-input-output-embed", "--dropout", 0, "--criterion", *criterion,
        "--optimizer", "adam", "--lr", 0.02, "--max-tokens", 100, "--max-epoch", 10,
        "--num-workers", 0, "--seed", 1, "--save-dir", tmp_path, "--no-epoch-checkpoints",
        "--disable-validation",
    )  # fmt: skip
    capsys.readouterr()
    run_fairseq(
        generate.cli_main, pairs, *plugin, "--path", tmp_path / "checkpoint_last.pt", "--beam", 3,
        "--max-tokens", 200, "--required-batch-size-multiple", 1, "--num-workers", 0,
    )  # fmt: skip
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    said = {fields[0]: fields[-1] for fields in lines}
    right = [said[f"H-{number}"] == said[f"T-{number}"] for number in range(30)]
    assert sum(right) >= 25


@pytest.mark.parametrize("task", ["fixedpoint_translation", "translation"])
@pytest.mark.parametrize("criterion", ["label_smoothed_cross_entropy", "cross_entropy"])
def test_criteria_that_cannot_train_an_adaptive_softmax_are_refused(
    pairs, tmp_path, task, criterion
):
    with pytest.raises(ValueError, match=r"--adaptive-softmax-cutoff.*fixedpoint_cross_entropy"):
        run_fairseq(
            train.cli_main, pairs, "--user-dir", PLUGIN, "--cpu", "--no-progress-bar", "--task",
            task,
            "--arch", "fixedpoint", "--encoder-embed-dim", 16, "--decoder-embed-dim", 16,
            "--adaptive-softmax-cutoff", 6, "--criterion", criterion, "--max-tokens", 100,
            "--optimizer", "adam", "--lr", 0.01, "--num-workers", 0, "--save-dir", tmp_path,
        )  # fmt: skip


def test_our_criterion_is_refused_for_models_of_fairseq(pairs, tmp_path):
    with pytest.raises(ValueError, match=r"fixedpoint_cross_entropy is for .* cross_entropy\."):
        run_fairseq(
            train.cli_main, pairs, "--user-dir", PLUGIN, "--cpu", "--task",
            "fixedpoint_translation",
            "--arch", "lstm", "--criterion", "fixedpoint_cross_entropy", "--max-tokens", 100,
            "--save-dir", tmp_path,
        )  # fmt: skip


def assert_is_a_list(printed: str, path: Path) -> None:
    """Whether two translations of each of 30 sentences are read and come back as the same lines."""
    path.write_text(printed)
    fairseq = detect(path)
    assert fairseq is FORMATS["fairseq"]
    lists = Counter(hypothesis.utterance for hypothesis in fairseq.read(path))
    assert lists == Counter(2 * [str(number) for number in range(30)])
    assert sorted(fairseq.references(path)) == sorted(lists)
    lengths = [
        len(line.split("\t")[1].split()) for line in printed.splitlines() if line.startswith("P-")
    ]
    for hypothesis, length in zip(fairseq.read(path), lengths, strict=True):
        score, model = hypothesis.scores["score"], hypothesis.scores["model"]
        assert score == pytest.approx(model / length, abs=1e-4)  # of four decimal digits each
    rescored = path.with_name("rescored")
    fairseq.write((Rescored(h, {}, h.scores["score"]) for h in fairseq.read(path)), path, rescored)
    for before, after in zip(
        printed.splitlines(),
        (line for line in rescored.read_text().splitlines() if not line.startswith("R-")),
        strict=True,
    ):
        numbers = [line.split("\t") for line in (before, after)]
        if before.startswith(("H-", "D-")):
            first, second = (float(fields.pop(1)) for fields in numbers)
            assert second == pytest.approx(first, rel=1e-9)
        assert numbers[0] == numbers[1]


def test_every_sentence_is_translated_and_counted(pairs, tmp_path, capsys):
    """fairseq leaves out the last ones if they are fewer than --required-batch-size-multiple."""
    plugin = ("--user-dir", PLUGIN, "--cpu", "--no-progress-bar", "--num-workers", 0)
    task = ("--task", "fixedpoint_translation", "--batch-size", 8)
    run_fairseq(
        train.cli_main, pairs, *plugin, *task, "--arch", "fixedpoint", "--encoder-embed-dim", 16,
        "--decoder-embed-dim", 16, "--criterion", "fixedpoint_cross_entropy", "--max-update", 1,
        "--save-dir", tmp_path, "--disable-validation", "--optimizer", "sgd", "--lr", 0.1,
    )  # fmt: skip
    path = ("--path", tmp_path / "checkpoint_last.pt")
    capsys.readouterr()
    run_fairseq(
        generate.cli_main, pairs, *plugin, *task, *path, "--beam", 2, "--nbest", 2, "--max-len-b", 5
    )
    printed = capsys.readouterr().out
    assert_is_a_list(printed, tmp_path / "printed")
    loaded = checkpoint_utils.load_model_ensemble_and_task([str(path[1])])[2]
    for epoch in (1, 2):
        loaded.load_dataset("valid", epoch=epoch)
        iterator = loaded.get_batch_iterator(
            dataset=loaded.dataset("valid"), max_sentences=8, required_batch_size_multiple=8
        )
        sizes = [batch["nsentences"] for batch in iterator.next_epoch_itr(shuffle=False)]
        assert sizes == [8, 8, 8, 6]
