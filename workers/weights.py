"""A rank's own slices of the weights: from a safetensors checkpoint, or dummy ones that every
layout agrees on."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from workers.checkpoint_files import locate

# Uniform on [-a, a) with the standard deviation 0.02 that such models are initialised with.
_AMPLITUDE = 0.02 * math.sqrt(3.0)
_CHUNK = 1 << 24

Box = tuple[slice, ...]


class Source(Protocol):
    """Where weights come from. A box is the slices of a parameter, one for each of its dims."""

    def read(self, name: str, shape: tuple[int, ...], box: Box, out: Tensor) -> None:
        """Fill `out`, of `box`'s shape, with that part of the parameter `name` of `shape`."""
        ...


class DummyWeights:
    """Seeded weights with no file behind them."""

    def read(self, name: str, shape: tuple[int, ...], box: Box, out: Tensor) -> None:
        """See `dummy_tensor`."""
        out.copy_(dummy_tensor(name, shape, box, out.dtype, out.device))


class Checkpoint:
    """A folder of safetensors; see `checkpoint_files` for which files count. Only the slices that
    are asked for are read."""

    def __init__(self, folder: Path) -> None:
        self._stored = locate(folder)
        self._files: dict[Path, safe_open] = {}

    def read(self, name: str, shape: tuple[int, ...], box: Box, out: Tensor) -> None:
        """Raises KeyError where there is no such parameter."""
        file = self._stored[name].file
        if file not in self._files:
            self._files[file] = safe_open(file, framework="pt")
        out.copy_(self._files[file].get_slice(name)[box])  # type: ignore[no-untyped-call]


def open_source(checkpoint: str | None) -> Source:
    """The weights in the folder `checkpoint`; None: dummy ones."""
    return DummyWeights() if checkpoint is None else Checkpoint(Path(checkpoint))


def dummy_tensor(
    name: str, shape: tuple[int, ...], box: Box, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """The part `box` of a dummy parameter, [stop - start, ...]. A value depends on name and global
    index alone.

    Norm weights are 1, everything else is uniform with standard deviation 0.02.
    """
    size = tuple(s.stop - s.start for s in box)
    if name.endswith("norm.weight"):
        return torch.ones(size, dtype=dtype, device=device)
    out = torch.empty(size, dtype=dtype, device=device)
    seed, rows = zlib.crc32(name.encode()), out.view(size[0], -1)
    columns = box[1] if len(box) > 1 else slice(0, 1)
    width = shape[1] if len(shape) > 1 else 1
    column = torch.arange(columns.start, columns.stop, device=device, dtype=torch.int64)
    for part, row in _in_chunks(rows, box[0].start):
        values = uniform(row[:, None] * width + column[None, :], seed)
        part.copy_(values.mul_(2.0).sub_(1.0).mul_(_AMPLITUDE))
    return out


def _in_chunks(rows: Tensor, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows at a time, as a view, and their numbers, of which the first is `first`."""
    step = max(1, _CHUNK // rows.shape[1])
    numbers = torch.arange(first, first + rows.shape[0], device=rows.device, dtype=torch.int64)
    return zip(torch.split(rows, step), torch.split(numbers, step), strict=True)


def uniform(index: Tensor, seed: int | Tensor) -> Tensor:
    """Float32 in [0, 1), a hash of (index, seed), the same on every device. index: int64, any
    shape; only its low 32 bits count.

    The finalizer is MurmurHash3's (Appleby, public domain); 24 bits fill a float32's mantissa.
    """
    x = (index * 0x9E3779B1 + seed).to(torch.int32)
    x ^= (x >> 16) & 0xFFFF
    x *= -2048144789  # 0x85EBCA6B as a signed 32-bit number
    x ^= (x >> 13) & 0x7FFFF
    x *= -1028477387  # 0xC2B2AE35
    x ^= (x >> 16) & 0xFFFF
    return ((x >> 8) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24)
