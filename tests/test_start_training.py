"""What a training with a start does: the gradient of the text, however it is cut."""

from __future__ import annotations

import pytest
import torch

from tests.commands import train


@pytest.mark.parametrize(
    "start", [("--start", "stream"), ("--start", "sentence", "--reset-at-eos")]
)
def test_updates_over_the_whole_text_are_the_same_however_it_is_cut(data, tmp_path, start):
    """Into blocks and batches, whose gradients an update adds up."""
    weights = {}
    for size, blocks in ((20, 4), (20, 8), (33, 5)):
        folder = tmp_path / f"{size}-{blocks}"
        train(
            data, folder, "--iterations", 3, "--cell", "gru", "--dropout", 0, *start,
            "--start-tokens", 9, "--optimizer", "sgd", "--lr", 1, "--update-freq", 1000,
            "--max-epoch", 3, "--tokens-per-sample", size, "--batch-size", blocks,
            "--disable-validation",
        )  # fmt: skip
        state = torch.load(folder / "checkpoint_last.pt", weights_only=False)
        assert state["optimizer_history"][-1]["num_updates"] == 3
        weights[size, blocks] = state["model"]
    expected = weights.pop((20, 4))
    assert expected["decoder.rnn.start_weight"].any()
    # float32 adds the gradients of some hundred tokens up in another order.
    for actual in weights.values():
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-6)
