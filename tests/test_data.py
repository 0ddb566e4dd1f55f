"""Blocks with left context and contiguous streams: every token once, with the right past."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fairseq.data import (
    ConcatDataset,
    Dictionary,
    MonolingualDataset,
    TokenBlockDataset,
    indexed_dataset,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.plugin.data import (
    ContiguousStreamsDataset,
    LeftContextDataset,
    padding,
)
from fairseq_fixedpoint.plugin.data.padding import first_with

DICTIONARY = Dictionary()
for number in range(50):
    DICTIONARY.add_symbol(f"w{number}")
EOS, PAD = DICTIONARY.eos(), DICTIONARY.pad()

sentence_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def blocks(lengths: list[int], block_size: int) -> tuple[MonolingualDataset, torch.Tensor]:
    """A dataset of blocks as fairseq's language_modeling makes it, and its stream of tokens."""
    torch.manual_seed(sum(lengths))
    sentences = [
        torch.cat([torch.randint(4, 54, (length - 1,)), torch.tensor([EOS])]) for length in lengths
    ]
    dataset = TokenBlockDataset(
        sentences, lengths, block_size, pad=PAD, eos=EOS, break_mode="none", include_targets=True
    )
    dataset = MonolingualDataset(dataset, dataset.sizes, DICTIONARY, targets=["future"])
    return dataset, torch.cat(sentences)


@given(sentence_lengths, st.integers(1, 8), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_every_target_is_counted_once_after_its_own_past(lengths, block_size, context):
    dataset, stream = blocks(lengths, block_size)
    dataset = LeftContextDataset(dataset, context, PAD)
    past = torch.cat([torch.tensor([EOS]), stream])
    position = 0
    for index in range(len(dataset)):
        item = dataset[index]
        assert len(item["source"]) == len(item["target"]) <= dataset.size(index)
        assert item["target"][: item["start"]].eq(PAD).all()
        for offset in range(item["start"], len(item["target"])):
            assert item["target"][offset] == stream[position]
            seen = item["source"][: offset + 1]
            assert torch.equal(seen, past[position + 1 - len(seen) : position + 1])
            assert len(seen) >= min(context, position) + 1
            position += 1
    assert position == len(stream)


@given(sentence_lengths, st.integers(1, 8), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_a_collated_batch_says_what_counts(lengths, block_size, context):
    dataset, stream = blocks(lengths, block_size)
    dataset = LeftContextDataset(dataset, context, PAD)
    batch = dataset.collater([dataset[index] for index in range(len(dataset))])
    assert batch["ntokens"] == len(stream) == batch["target"].ne(PAD).sum()
    counted = [
        row[start:][row[start:].ne(PAD)]
        for row, start in zip(batch["target"], batch["start_indices"], strict=True)
    ]
    assert torch.equal(torch.cat(counted), stream)
    assert dataset.collater([]) == {}


@given(
    sentence_lengths, st.integers(1, 8), st.integers(0, 5), st.integers(1, 9), st.booleans(),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_what_a_summary_sees_is_before_the_block_or_its_sentence(
    lengths, block_size, window, summarised, stands_still, tells_lead
):
    """All of the window is left to the recurrence; models that are told of no lead see no padding
    before a text."""
    plain, stream = blocks(lengths, block_size)
    dataset = LeftContextDataset(
        plain, window + summarised, PAD, summarised, EOS if stands_still else None, tells_lead
    )
    past = torch.cat([torch.tensor([EOS]), stream])
    batch = dataset.collater([dataset[index] for index in range(len(dataset))])
    sources, starts = batch["net_input"]["src_tokens"], batch["start_indices"]
    lead = batch["net_input"].get("lead", 0)
    assert batch["ntokens"] == len(stream) == batch["target"].ne(PAD).sum()
    if tells_lead:
        assert set(starts) == {lead + window}
    for index, (source, start) in enumerate(zip(sources, starts, strict=True)):
        position = index * block_size
        text = source[:start][source[:start].ne(PAD)]
        assert torch.equal(text, past[position - len(text) : position])
        begins = position
        while stands_still and past[begins] != EOS:
            begins -= 1
        assert len(text) >= min(position, max(window, position - begins) + summarised)
        assert tells_lead or source[0] != PAD


@given(
    sentence_lengths,
    st.integers(1, 8),
    st.integers(0, 5),
    st.one_of(st.none(), st.integers(1, 20)),
    st.one_of(st.none(), st.integers(15, 60)),
    st.sampled_from([1, 2, 8]),
)
@settings(max_examples=100, deadline=None)
def test_every_block_is_batched_within_the_limits(
    lengths, block_size, context, max_sentences, max_tokens, multiple
):
    """fairseq itself drops a last batch that is smaller than the multiple."""
    dataset, _ = blocks(lengths, block_size)
    dataset = LeftContextDataset(dataset, context, PAD)
    indices = np.arange(len(dataset))
    batches = dataset.batch_by_size(indices, max_tokens, max_sentences, multiple)
    assert np.concatenate(batches).tolist() == indices.tolist()
    for batch in batches:
        assert max_sentences is None or len(batch) <= max_sentences
        assert max_tokens is None or len(batch) * dataset.sizes[batch].max() <= max_tokens
    assert dataset.num_tokens_vec(indices).tolist() == [dataset.num_tokens(i) for i in indices]


@given(sentence_lengths, st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_streams_are_contiguous_and_complete(lengths, block_size, rows):
    dataset, stream = blocks(lengths, block_size)
    rows = min(rows, len(dataset))
    streams = ContiguousStreamsDataset(dataset, rows)
    texts = [[] for _ in range(rows)]
    previous = None
    for indices in streams.batches():
        batch = streams.collater([streams[index] for index in indices])
        assert batch["continues"] == (previous is not None)
        if previous is not None:  # row b goes on where row b stopped, and none is new
            assert indices == [index + 1 for index in previous[: len(indices)]]
        for row, target in enumerate(batch["target"]):
            texts[row].append(target[target.ne(PAD)])
        previous = indices
    assert torch.equal(torch.cat([piece for text in texts for piece in text]), stream)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_streams_row_by_row(processes):
    dataset, _ = blocks([7] * 9, 4)
    whole = ContiguousStreamsDataset(dataset, 2 * processes).batches()
    parts = [
        ContiguousStreamsDataset(dataset, 2 * processes, 2 * rank, 2 * rank + 2).batches()
        for rank in range(processes)
    ]
    assert all(part[0] for part in parts)  # fairseq's dummy batch is a process's first
    for position, batch in enumerate(whole):
        assert [index for part in parts for index in part[position]] == batch


@pytest.mark.parametrize("impl", ["mmap", "cached", "lazy"])
@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_padding_is_found_in_every_kind_of_file(tmp_path, monkeypatch, impl, at_once):
    monkeypatch.setattr(padding, "TOKENS_AT_ONCE", at_once)
    sentences = [[5, 6, EOS], [EOS], [7, PAD, EOS], [PAD, EOS]]

    def stored(name, kept):
        builder = indexed_dataset.make_builder(str(tmp_path / f"{name}.bin"), impl, vocab_size=9)
        for sentence in kept:
            builder.add_item(torch.IntTensor(sentence))
        builder.finalize(str(tmp_path / f"{name}.idx"))
        return indexed_dataset.make_dataset(str(tmp_path / name), impl, fix_lua_indexing=True)

    clean, dirty = stored("clean", sentences[:2]), stored("dirty", sentences)
    assert first_with(clean, PAD) is None
    assert first_with(dirty, PAD) == 2
    assert first_with(stored("last", [*sentences[:2], sentences[3]]), PAD) == 2
    assert first_with(ConcatDataset([clean, dirty]), PAD) == 4
    assert first_with(ConcatDataset([clean, clean]), PAD) is None
