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
    occurrences,
)
from fairseq_fixedpoint.plugin.data.occurrences import sentence_starts
from fairseq_fixedpoint.plugin.data.padding import first_with
from fairseq_fixedpoint.plugin.generation.texts import prefixes_of

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
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.integers(1, 8),
    st.integers(0, 5),
    st.integers(0, 9),
    st.integers(0, 9),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_a_context_has_what_summaries_see_and_little_more(
    lengths, block_size, window, summarised, standing, tells_lead
):
    """The window and its summaries; for a summary that stands still in a sentence what precedes
    each sentence of window and block. Models that are told of no lead read no padding before a
    text, and a text without gaps."""
    plain, stream = blocks(lengths, block_size)
    dataset = LeftContextDataset(
        plain, window, PAD, summarised, standing,
        sentence_starts(plain.dataset.dataset, EOS) if standing else None, tells_lead,
    )  # fmt: skip
    past = torch.cat([torch.tensor([EOS]), stream])
    batch = dataset.collater([dataset[index] for index in range(len(dataset))])
    lead = batch["net_input"].get("lead", 0)
    sources = batch["net_input"]["src_tokens"]
    starts = [lead + start for start in batch["start_indices"]]
    assert batch["target"].shape == sources[:, lead:].shape
    assert batch["ntokens"] == len(stream) == batch["target"].ne(PAD).sum()
    tells_lead = tells_lead and summarised + standing > 0
    if tells_lead:
        assert set(starts) == {lead + window}
    for index, (source, start) in enumerate(zip(sources, starts, strict=True)):
        begin, end = index * block_size, min((index + 1) * block_size, len(stream))
        first = max(0, begin - window)  # that the recurrence runs over
        context = source[:start][source[:start].ne(PAD)]
        assert torch.equal(source[start:][source[start:].ne(PAD)], past[begin:end])
        assert torch.equal(context[len(context) - (begin - first) :], past[first:begin])
        seen = torch.cat([context, past[begin:end]])
        assert_ends_with(seen[: len(context) - (begin - first)], past[:first], summarised)
        if not tells_lead:
            assert PAD not in source[:start].tolist()
            assert torch.equal(context, past[begin - len(context) : begin])
        if not standing:
            continue
        # Sentences of the window and the block are the last ones of what is there.
        theirs = [place for place in range(end) if past[place] == EOS]
        theirs = theirs[next(i for i in reversed(range(len(theirs))) if theirs[i] <= first) :]
        ours = seen.eq(EOS).nonzero().squeeze(1).tolist()[-len(theirs) :]
        for place, original in zip(ours, theirs, strict=True):
            assert_ends_with(seen[:place], past[:original], standing)
        if tells_lead:
            assert len(context) <= window + standing + 1 + max(standing, summarised)


def assert_ends_with(actual, expected, tokens):
    """Both have the same last tokens, as far as there are so many."""
    wanted = expected[max(0, len(expected) - tokens) :]
    assert torch.equal(actual[len(actual) - len(wanted) :], wanted)


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=8),
    st.integers(1, 8),
    st.integers(0, 5),
    st.integers(0, 6),
    st.integers(0, 6),
    st.one_of(st.none(), st.integers(1, 20)),
    st.one_of(st.none(), st.integers(32, 90)),
    st.sampled_from([1, 2, 8]),
)
@settings(max_examples=60, deadline=None)
def test_every_block_is_batched_within_the_limits(
    lengths, block_size, window, summarised, standing, max_sentences, max_tokens, multiple
):
    """fairseq itself drops a last batch that is smaller than the multiple."""
    plain, _ = blocks(lengths, block_size)
    dataset = LeftContextDataset(
        plain, window, PAD, summarised, standing, sentence_starts(plain.dataset.dataset, EOS)
    )
    indices = np.arange(len(dataset))
    batches = dataset.batch_by_size(indices, max_tokens, max_sentences, multiple)
    assert np.concatenate(batches).tolist() == indices.tolist()
    for batch in batches:
        assert max_sentences is None or len(batch) <= max_sentences
        collated = dataset.collater([dataset[index] for index in batch])
        tokens = collated["net_input"]["src_tokens"].numel()
        assert tokens <= len(batch) * dataset.sizes[batch].max()
        assert max_tokens is None or tokens <= max_tokens
    assert dataset.num_tokens_vec(indices).tolist() == [dataset.num_tokens(i) for i in indices]


@given(sentence_lengths, st.integers(1, 6), st.integers(0, 5), st.integers(0, 6), st.data())
@settings(max_examples=60, deadline=None)
def test_generation_goes_on_from_the_block_alone(lengths, block_size, window, summarised, data):
    """Nothing of what a model sees before a block becomes a part of the text."""
    plain, _ = blocks(lengths, block_size)
    dataset = LeftContextDataset(plain, window, PAD, summarised)
    chosen = data.draw(st.lists(st.integers(0, len(dataset) - 1), min_size=1, max_size=4))
    batch = dataset.collater([dataset[index] for index in chosen])
    texts = [plain[index]["source"].tolist() for index in chosen]
    texts = [text[1:] if text[0] == EOS else text for text in texts]
    targets = [plain[index]["target"][:2].tolist() for index in chosen]
    for prefix_tokens, expected in ((None, texts), (batch["target"][:, :2], targets)):
        prefixes = prefixes_of(batch, prefix_tokens, DICTIONARY)
        assert [row[row.ne(PAD)].tolist() for row in prefixes] == expected


@given(sentence_lengths, st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_streams_are_contiguous_and_complete(lengths, block_size, rows):
    dataset, stream = blocks(lengths, block_size)
    rows = min(rows, len(dataset))
    streams = ContiguousStreamsDataset(dataset, rows)
    texts = [[] for _ in range(rows)]
    previous = None
    for position, indices in enumerate(streams.batches()):
        batch = streams.collater([streams[index] for index in indices])
        assert batch["position"] == position
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


def test_what_a_long_sentence_brings_does_not_grow():
    """A text without `</s>`: each block has the start of it, and its own window."""
    plain, _ = blocks([5, 4000, 3], 10)
    starts = sentence_starts(plain.dataset.dataset, EOS)
    dataset = LeftContextDataset(plain, 4, PAD, standing=7, sentence_starts=starts)
    assert dataset.sizes[0] == 10 + 4
    assert set(dataset.sizes[1:]) == {10 + 4 + 6}  # five tokens precede the sentence's </s>
    assert len(dataset[200]["source"]) == dataset.sizes[200]


@pytest.mark.parametrize("impl", ["mmap", "cached", "lazy"])
@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_padding_is_found_in_every_kind_of_file(tmp_path, monkeypatch, impl, at_once):
    monkeypatch.setattr(occurrences, "TOKENS_AT_ONCE", at_once)
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
    starts = sentence_starts(ConcatDataset([dirty, clean]), EOS)
    stream = torch.cat([torch.tensor(sentence) for sentence in (*sentences, *sentences[:2])])
    assert starts.tolist() == [0, *(stream.eq(EOS).nonzero().squeeze(1) + 1).tolist()]
