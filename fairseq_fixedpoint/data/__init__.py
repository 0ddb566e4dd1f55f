"""Blocks with left context, contiguous streams, and batches that leave nothing out."""

from fairseq_fixedpoint.data.contiguous_streams import ContiguousStreamsDataset
from fairseq_fixedpoint.data.left_context import LeftContextDataset
from fairseq_fixedpoint.data.padding import check_no_padding
from fairseq_fixedpoint.data.remainder import RemainderDataset

__all__ = ["ContiguousStreamsDataset", "LeftContextDataset", "RemainderDataset", "check_no_padding"]
