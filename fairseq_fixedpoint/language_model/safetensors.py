"""Tensors in a file that holds nothing else: the safetensors format.

A file is the length of its header (8 bytes, little-endian), the header, a JSON object with type,
shape and place of each tensor, and the tensors, one after another, little-endian and contiguous.
Reading one runs no code of the file. The package `safetensors` reads and writes the same; a model
is to be had without it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from fairseq_fixedpoint.errors import InputError

LENGTH = struct.Struct("<Q")
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in TYPES.items()}


def write(file: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors by their names."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    file.write(LENGTH.pack(len(text)))
    file.write(text)
    for tensor in tensors.values():
        file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their names.

    Raises:
        InputError: if it is none, or was cut off.
    """
    content = bytearray(path.read_bytes())
    try:
        (length,) = LENGTH.unpack_from(content)
        data = memoryview(content)[LENGTH.size + length :]
        header = json.loads(bytes(content[LENGTH.size : LENGTH.size + length]))
        header.pop("__metadata__", None)
        return {name: _tensor(data, **entry) for name, entry in header.items()}
    except (
        struct.error,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,  # PyTorch's of a shape, and a RecursionError of a header
    ) as error:
        raise InputError(
            f"{path} is no whole file of tensors ({error}): convert the model again, or copy the "
            "file again."
        ) from error


def _tensor(data: memoryview, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    begin, end = data_offsets
    kind = TYPES[dtype]
    if min(shape, default=0) < 0:
        raise ValueError(f"no tensor has the shape {shape}")
    size = math.prod(shape) * kind.itemsize
    if not 0 <= begin <= end <= len(data) or end - begin != size:
        raise ValueError(f"bytes {begin} to {end} of {len(data)} do not hold a tensor of {size}")
    if not size:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(data[begin:end], dtype=kind).reshape(shape).clone()
