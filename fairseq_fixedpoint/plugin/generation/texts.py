"""Text to go on from: what a language model reads before it writes."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from fairseq.data import (
    Dictionary,
    IdDataset,
    ListDataset,
    NestedDictionaryDataset,
    NumelDataset,
    PadDataset,
)
from torch import Tensor

from fairseq_fixedpoint.softmax import as_predicted

logger = logging.getLogger(__name__)

UNKNOWN_LINES_TOLD = 5


def texts_dataset(
    texts: Sequence[Tensor],
    dictionary: Dictionary,
    output_dictionary: Dictionary,
    constraints: Tensor | None = None,
) -> NestedDictionaryDataset:
    """Texts as fairseq's batches for generating and scoring: `</s>` comes before each.

    Args:
        texts: token numbers, ``(T,)`` each; one `</s>` at the end, which a dictionary's encoding
            appends, is not part of the text, nor is any at its start.
        dictionary: of the input.
        output_dictionary: of the output; in the targets, a word beyond it is `<unk>`.
        constraints: packed as fairseq does, a row a text.
    """
    eos, pad = dictionary.eos(), dictionary.pad()
    texts = [_without_ends(torch.as_tensor(text).long(), eos) for text in texts]
    _tell_unknown(texts, dictionary)
    sources = [torch.cat([text.new_tensor([eos]), text]) for text in texts]
    targets = [torch.cat([text, text.new_tensor([pad])]) for text in texts]
    predicted, unknown = len(output_dictionary), output_dictionary.unk()
    targets = [as_predicted(target, predicted, unknown) for target in targets]
    lengths = np.array([len(source) for source in sources])
    columns = {
        "id": IdDataset(),
        "net_input": {
            "src_tokens": _padded(sources, lengths, pad),
            "src_lengths": NumelDataset(ListDataset(sources, lengths)),
        },
        "target": _padded(targets, lengths, pad),
    }
    if constraints is not None:
        columns["constraints"] = _padded(list(constraints), lengths, 0)
    return NestedDictionaryDataset(columns, sizes=[lengths])


def prefixes_of(sample: dict, prefix_tokens: Tensor | None, dictionary: Dictionary) -> Tensor:
    """What the hypotheses of a batch begin with, ``(B, P)``, padded at the end.

    Args:
        sample: a batch of :func:`texts_dataset`, or of blocks of a stream.
        prefix_tokens: the beginning of the targets (`--prefix-size`), ``(B, P)``; None for the
            whole texts.
        dictionary: of the model.
    """
    eos, pad = dictionary.eos(), dictionary.pad()
    rows = sample["net_input"]["src_tokens"] if prefix_tokens is None else prefix_tokens
    if "start_indices" in sample:  # tokens of the blocks before
        # They are counted in the targets, which lack the tokens that only a summary reads.
        lead = sample["net_input"].get("lead", 0) if prefix_tokens is None else 0
        starts = [lead + start for start in sample["start_indices"]]
        columns = rows.size(1)
        rows = rows if prefix_tokens is None else sample["target"]
        rows = [row[start : start + columns] for row, start in zip(rows, starts, strict=True)]
    prefixes = [row[row.ne(pad)] for row in rows]
    if prefix_tokens is None:  # every text comes after a sentence end, given or not
        prefixes = [text[1:] if len(text) and text[0] == eos else text for text in prefixes]
    return torch.nn.utils.rnn.pad_sequence(prefixes, batch_first=True, padding_value=pad)


def _without_ends(text: Tensor, eos: int) -> Tensor:
    if len(text) and text[-1] == eos:
        text = text[:-1]
    begins = text.ne(eos).long().cumsum(0).gt(0)
    return text[begins]


def _tell_unknown(texts: Sequence[Tensor], dictionary: Dictionary) -> None:
    """Warns of the texts that have words which the model does not know."""
    unknown = {
        number: (int(text.eq(dictionary.unk()).sum()), len(text))
        for number, text in enumerate(texts, start=1)
    }
    unknown = {number: counts for number, counts in unknown.items() if counts[0]}
    if not unknown:
        return
    examples = [
        f"{count} of {words} in text {number}"
        for number, (count, words) in list(unknown.items())[:UNKNOWN_LINES_TOLD]
    ]
    more = len(unknown) - len(examples)
    examples += [f"and some in {more} more"] if more else []
    logger.warning(
        f"words that the model does not know are read as {dictionary.unk_word}: "
        f"{', '.join(examples)} (of {len(texts)} texts read together)."
    )


def _padded(rows: list[Tensor], sizes: np.ndarray, pad: int) -> PadDataset:
    return PadDataset(ListDataset(rows, sizes), pad_idx=pad, left_pad=False)
