"""Blocks with left context, and contiguous streams."""

from fairseq_fixedpoint.data.contiguous_streams import ContiguousStreamsDataset
from fairseq_fixedpoint.data.left_context import LeftContextDataset

__all__ = ["ContiguousStreamsDataset", "LeftContextDataset"]
