"""K has one home in a model: whichever way changes it, one check and one warning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils, tasks
from fairseq.sequence_scorer import SequenceScorer
from omegaconf import OmegaConf

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.recurrence.order import LARGEST_ORDER
from fairseq_fixedpoint.rescoring import Scorer
from fairseq_fixedpoint.rescoring.block_scorer import LanguageModelScorer
from fairseq_fixedpoint.rescoring.text import TextEncoder
from fairseq_fixedpoint.rescoring.window_scorer import GrowingHistories, WindowScorer
from tests.commands import evaluate, train
from tests.rescoring import fixedpoint_score, nbest, refused
from tests.test_lattice_command import lattice
from tests.test_model import build, dictionary, log_probs, random_tokens
from tests.test_translation_model import build as build_translation

SLF = """VERSION=1.0
N=3 L=2
I=0 t=0
I=1 t=0.1
I=2 t=0.2
J=0 S=0 E=1 W=w1 a=-1 l=-1
J=1 S=1 E=2 W=w2 a=-1 l=-1
"""


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> dict[int, Path]:
    """A checkpoint of each order."""
    folder = tmp_path_factory.mktemp("orders")
    for order in (0, 1, 2, 6):
        train(data, folder / str(order), "--cell", "gru", "--iterations", order, "--max-update", 10,
              "--disable-validation", "--no-save-optimizer-state")  # fmt: skip
    return {order: folder / str(order) / "checkpoint_last.pt" for order in (0, 1, 2, 6)}


@pytest.fixture
def ways(data, tmp_path) -> dict:
    """All that change the K of a checkpoint, by name: called with its path and K."""
    (tmp_path / "text").write_text("w1 w2\n")
    (tmp_path / "list").write_text("a\t-1\tw1 w2\n")
    (tmp_path / "lattice.slf").write_text(SLF)

    def command(called, given):
        def way(path, order):
            out = tmp_path / "out"
            options = ("--model", path, "--iterations", order, "--output", out)
            assert called(tmp_path / given, *options) == 0

        return way

    def by_override(path, order):
        overrides = ("--model-overrides", f"{{'iterations': {order}}}")
        evaluate(data, path, "--tokens-per-sample", 2000, *overrides)

    def by_hub(path, order):
        checkpoint_utils.load_model_ensemble_and_task(
            [str(path)], arg_overrides={"iterations": order}
        )

    actual = {
        "--model-overrides": by_override,
        "hub": by_hub,
        "Scorer": lambda path, order: Scorer.from_checkpoint(path, iterations=order),
        "score": command(fixedpoint_score, "text"),
        "nbest": command(nbest, "list"),
    }
    return actual | {"lattice": command(lattice, "lattice.slf")}


def told(caplog) -> list[str]:
    return [message for message in caplog.messages if "was trained with" in message]


@pytest.mark.parametrize(
    ("order", "now", "learned", "sees"),
    [
        (1, 8, "1 position", "8 positions"),
        (2, 0, "2 positions", "all positions"),
        (0, 8, "all positions", "8 positions"),
        (2, 1, None, None),
        (2, 2, None, None),
        (0, 0, None, None),
    ],
)
def test_every_way_to_another_order_tells_the_same(
    trained, ways, caplog, order, now, learned, sees
):
    for name, way in ways.items():
        if name == "lattice" and now == 0:
            continue  # which no lattice takes
        caplog.clear()
        way(trained[order], now)
        if learned is None:
            assert not told(caplog), name
            continue
        assert told(caplog) == [
            f"the decoder was trained with --iterations {order} and is now used with "
            f"--iterations {now}: a state that has learned from {learned} now sees {sees}, and the "
            "model's probabilities are other ones, better or worse."
        ], name


@pytest.mark.parametrize("order", [-1, LARGEST_ORDER + 1, 10**30])
def test_every_way_holds_to_one_range(trained, ways, capfd, tmp_path, order):
    message = rf"--iterations must be 0 \(exact\) or more, up to 1,000,000, not {order}\."
    for name in ("--model-overrides", "hub", "Scorer"):
        error = InputError if name == "Scorer" else ValueError
        with pytest.raises(error, match=message):
            ways[name](trained[1], order)
    for command, given in ((fixedpoint_score, "text"), (nbest, "list"), (lattice, "lattice.slf")):
        options = ("--model", trained[1], "--iterations", order, "--output", tmp_path / "out")
        said = refused(capfd, command, tmp_path / given, *options)
        assert f"--iterations must be 0 (exact) or more, up to 1,000,000, not {order}." in said
    decoder = build(iterations=2).decoder
    for change in (decoder.use_iterations, decoder.at_order):
        with pytest.raises(ValueError, match=message):
            change(order)
    assert decoder.iterations == 2


def test_an_encoder_s_order_is_told_as_a_decoder_s(caplog):
    model = build_translation(iterations=2, encoder_iterations=0)
    state = model.state_dict()
    model.encoder.use_iterations(5)
    by_method = told(caplog)
    caplog.clear()
    build_translation(iterations=2, encoder_iterations=5).load_state_dict(state)
    assert by_method == told(caplog)
    assert by_method[0].startswith(
        "the encoder was trained with --encoder-iterations 0 and is now used with "
        "--encoder-iterations 5: a state that has learned from all positions now sees 5 positions"
    )


def test_all_that_needs_k_reads_it_where_it_is():
    """The order of a scorer, of histories, of the context, of the gradient: after a change, too."""
    model = build(iterations=5, gradient_iterations=3, seed=3)
    scorer = Scorer(WindowScorer(model.decoder), TextEncoder(dictionary()), previous_context=None)
    model.decoder.use_iterations(2)
    expected = build(iterations=2, seed=3)
    again = Scorer(WindowScorer(expected.decoder), TextEncoder(dictionary()), previous_context=None)
    for actual, right in zip(
        scorer.score(["w1 w2 w3"], [("w4 w5",)]),
        again.score(["w1 w2 w3"], [("w4 w5",)]),
        strict=True,
    ):
        assert actual.log_probabilities.tolist() == right.log_probabilities.tolist()
    assert scorer.tokens.order == 2
    moving = LanguageModelScorer(build(iterations=5, start="stream").decoder, dictionary())
    moving.model.use_iterations(2)
    assert moving.window == 2 and moving.order == 2 + moving.model.summary.tokens
    assert GrowingHistories(scorer.tokens, torch.arange(4, 9).numpy()).order == 2
    assert model.decoder.gradient_options["gradient_iterations"] == 2
    tokens = random_tokens()
    torch.testing.assert_close(log_probs(model, tokens), log_probs(expected, tokens))
    view = model.decoder.at_order(4)
    assert WindowScorer(view).order == 4
    assert view.gradient_options["gradient_iterations"] == 3
    assert scorer.tokens.order == 2
    model.decoder.use_iterations(0)  # which can use all of the text before
    whole = Scorer(scorer.tokens, scorer.encoder, previous_context=50)
    actual, right = (each.score(["w1 w2"], [("w3 w4 w5 w6",)])[0] for each in (scorer, whole))
    assert actual.log_probabilities.tolist() == right.log_probabilities.tolist()


def test_a_checkpoint_says_what_it_was_trained_at(caplog):
    """However it is evaluated and saved; training at another K changes what it says."""
    state = build(iterations=2).state_dict()
    model = build(iterations=8)
    model.load_state_dict(state)
    model(random_tokens())  # evaluated
    model.train()
    with torch.no_grad():
        model(random_tokens())
    assert model.state_dict()["decoder.trained_iterations"] == 2
    caplog.clear()
    build(iterations=8).load_state_dict(model.state_dict())
    assert len(told(caplog)) == 1
    model(random_tokens())
    caplog.clear()
    build(iterations=8).load_state_dict(model.state_dict())
    assert not told(caplog)
    translation = build_translation(iterations=2, encoder_iterations=3).train()
    translation.encoder.use_iterations(4)
    translation.encoder(random_tokens().clamp(max=20))
    assert translation.encoder.trained_iterations == 4
    assert translation.decoder.trained_iterations == 2


def test_going_on_at_another_order_is_told_once(data, tmp_path, caplog):
    def go_on(order, updates):
        caplog.clear()
        train(data, tmp_path, "--iterations", order, "--max-update", updates,
              "--disable-validation")  # fmt: skip
        state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=False)
        return len(told(caplog)), int(state["model"]["decoder.trained_iterations"])

    assert go_on(1, 5) == (0, 1)
    assert go_on(4, 10) == (1, 4)
    assert go_on(4, 15) == (0, 4)


@pytest.fixture
def ensemble(data):
    """Log-probabilities of the test set's tokens by an ensemble, as fairseq-eval-lm finds them."""

    def run(paths, size: int, change=None, **loader) -> torch.Tensor:
        state = checkpoint_utils.load_checkpoint_to_cpu(str(paths[0]))
        cfg = OmegaConf.merge(state["cfg"].task, {"data": str(data), "tokens_per_sample": size})
        task = tasks.setup_task(cfg)
        models, _, _ = checkpoint_utils.load_model_ensemble_and_task(
            [str(path) for path in paths], task=task
        )
        if change is not None:
            models[0].decoder.use_iterations(change)
        task.load_dataset("test")
        batches = task.eval_lm_dataloader(task.dataset("test"), num_workers=0, **loader)
        scorer = SequenceScorer(task.target_dictionary)
        actual = {
            int(number): hypothesis["positional_scores"]
            for batch in batches
            for number, [hypothesis] in zip(
                batch["id"], scorer.generate(models, batch), strict=True
            )
        }
        return torch.cat([actual[number] for number in sorted(actual)])

    return run


def test_an_ensemble_does_not_depend_on_its_order(trained, ensemble):
    """Nor on the block size: the probabilities are the mean of the models' own."""
    alone = [ensemble([trained[order]], 2000) for order in (6, 1, 2)]
    mean = torch.stack(alone).logsumexp(0) - torch.tensor(3.0).log()
    for paths in ([6, 1, 2], [1, 2, 6], [2, 6, 1]):
        actual = ensemble([trained[order] for order in paths], 7)
        torch.testing.assert_close(actual, mean, rtol=0, atol=1e-5)


def test_left_context_follows_a_change_of_k(trained, ensemble):
    whole = ensemble([trained[1]], 2000, change=5)
    torch.testing.assert_close(ensemble([trained[1]], 6, change=5), whole, rtol=0, atol=1e-5)


def test_an_exact_recurrence_beside_others_is_refused_where_blocks_cut_it(trained, ensemble):
    alone = [ensemble([trained[order]], 2000) for order in (0, 6)]
    mean = torch.stack(alone).logsumexp(0) - torch.tensor(2.0).log()
    for paths in ([0, 6], [6, 0]):
        paths = [trained[order] for order in paths]
        actual = ensemble(paths, 2000)  # the whole text in one block
        torch.testing.assert_close(actual, mean, rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="as large as the text, give --context-window"):
            ensemble(paths, 50)
        # What the user lets the exact one see; the others are as they should be.
        assert torch.isfinite(ensemble(paths, 50, context_window=30)).all()


def test_models_that_want_streams_and_context_are_not_trained_together(trained, data):
    state = checkpoint_utils.load_checkpoint_to_cpu(str(trained[0]))
    task = tasks.setup_task(OmegaConf.merge(state["cfg"].task, {"data": str(data)}))
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(trained[0]), str(trained[2])], task=task
    )
    task.load_dataset("valid")
    with pytest.raises(ValueError, match="Take them apart, or give --sample-break-mode eos"):
        task.get_batch_iterator(task.dataset("valid"), max_sentences=4)
    del models[0]  # one that is gone wants nothing
    batch = next(task.get_batch_iterator(task.dataset("valid"), max_sentences=4).next_epoch_itr())
    assert max(batch["start_indices"]) == 1
