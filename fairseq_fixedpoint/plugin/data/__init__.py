"""Blocks with left context, contiguous streams, and batches that leave nothing out."""

from fairseq_fixedpoint.plugin.data.contiguous_streams import ContiguousStreamsDataset
from fairseq_fixedpoint.plugin.data.left_context import LeftContextDataset
from fairseq_fixedpoint.plugin.data.padding import check_no_padding
from fairseq_fixedpoint.plugin.data.remainder import RemainderDataset

__all__ = ["ContiguousStreamsDataset", "LeftContextDataset", "RemainderDataset", "check_no_padding"]
