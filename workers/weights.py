"""A rank's own slices of the weights: from a safetensors checkpoint, or dummy ones that every
layout agrees on."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from strategies.fp8 import Fp8Format
from workers.checkpoint_files import INPUT_SCALES, WEIGHT_SCALES, locate, scale_of

# Uniform on [-a, a) with the standard deviation 0.02 that such models are initialised with.
_AMPLITUDE = 0.02 * math.sqrt(3.0)
_CHUNK = 1 << 22

Box = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class StoredFp8:
    """A part of a matrix in FP8. values: [rows, columns] e4m3. scales: float32, [rows, 1], or one
    for each block of `Fp8Format`. input_scale: None where inputs have scales of their own."""

    values: Tensor
    scales: Tensor
    input_scale: float | None

    def to(self, device: torch.device) -> StoredFp8:
        """The same on a device."""
        return StoredFp8(self.values.to(device), self.scales.to(device), self.input_scale)


class Source(Protocol):
    """Where weights come from. A box is the slices of a parameter, one for each of its dims."""

    def read(self, name: str, shape: tuple[int, ...], box: Box, out: Tensor) -> None:
        """Fill `out`, of `box`'s shape, with that part of the parameter `name` of `shape`: with
        real values, also where they are stored in FP8."""
        ...

    def stored_fp8(self, name: str, box: Box) -> StoredFp8 | None:
        """That part of a matrix as it is stored in FP8; None where it is not."""
        ...


class DummyWeights:
    """Seeded weights with no file behind them."""

    def read(self, name: str, shape: tuple[int, ...], box: Box, out: Tensor) -> None:
        """See `dummy_tensor`."""
        out.copy_(dummy_tensor(name, shape, box, out.dtype, out.device))

    def stored_fp8(self, name: str, box: Box) -> None:
        """None is."""


class Checkpoint:
    """A folder of safetensors; see `checkpoint_files` for which files count. Only the slices that
    are asked for are read. fp8: the form of the matrices that are in FP8."""

    def __init__(self, folder: Path, fp8: Fp8Format | None = None) -> None:
        self._stored, self._fp8 = locate(folder), fp8
        self._files: dict[Path, safe_open] = {}

    def read(self, name: str, shape: tuple[int, ...], box: Box, out: Tensor) -> None:
        """Raises KeyError where there is no such parameter."""
        stored = self.stored_fp8(name, box)
        if stored is None:
            out.copy_(self._slice(name, box))
            return
        stored = stored.to(out.device)  # a GPU converts faster
        (rows, columns), scales = box, stored.scales
        if self._fp8 is not None and self._fp8.block is not None:
            height, width = self._fp8.block
            tall = scales.repeat_interleave(height, 0)[rows.start % height :][: out.shape[0]]
            wide = tall.repeat_interleave(width, 1)[:, columns.start % width :]
            scales = wide[:, : out.shape[1]]
        out.copy_(stored.values.to(torch.float32) * scales)

    def stored_fp8(self, name: str, box: Box) -> StoredFp8 | None:
        """A part that is multiplied in FP8 begins where a block does. Of one that is not the scales
        begin with those of the block that it begins in."""
        if self._stored[name].dtype != "F8_E4M3" or self._fp8 is None:
            return None
        scales = self._scales(name, box, self._fp8)
        found = scale_of(name, INPUT_SCALES, self._stored)
        inputs = float(self._whole(found).max()) if found and self._fp8.static else None
        return StoredFp8(self._slice(name, box), scales, inputs)

    def _scales(self, name: str, box: Box, form: Fp8Format) -> Tensor:
        stored = self._whole(scale_of(name, WEIGHT_SCALES, self._stored)).float()
        rows, columns = box
        if form.block is not None:
            height, width = form.block
            part = stored[rows.start // height : -(-rows.stop // height)]
            return part[:, columns.start // width : -(-columns.stop // width)].contiguous()
        of_rows = stored.reshape(-1, 1)
        return of_rows[rows] if form.scales == "channel" else of_rows.repeat(_length(rows), 1)

    def _whole(self, name: str | None) -> Tensor:
        assert name is not None, "a checkpoint is checked before it is read"
        return self._file(name).get_tensor(name)  # type: ignore[no-any-return]

    def _slice(self, name: str, box: Box) -> Tensor:
        return self._file(name).get_slice(name)[box]  # type: ignore[no-any-return]

    def _file(self, name: str) -> Any:
        file = self._stored[name].file
        if file not in self._files:
            self._files[file] = safe_open(file, framework="pt")
        return self._files[file]


def _length(part: slice) -> int:
    length: int = part.stop - part.start
    return length


def open_source(checkpoint: str | None, fp8: Fp8Format | None = None) -> Source:
    """The weights in the folder `checkpoint`, its matrices in the form `fp8`; None: dummy ones."""
    return DummyWeights() if checkpoint is None else Checkpoint(Path(checkpoint), fp8)


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
    of_column = _spread(column, 0)
    for part, row in _in_chunks(rows, box[0].start):
        values = _mixed(_spread(row * width, seed)[:, None] + of_column[None, :])
        torch.mul(values.mul_(2.0).sub_(1.0), _AMPLITUDE, out=part)
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
    return _mixed(_spread(index, seed))


def _spread(index: Tensor, seed: int | Tensor) -> Tensor:
    """What `_mixed` mixes: of i + j with a seed it is that of i with it plus that of j with 0."""
    return (index * 0x9E3779B1 + seed).to(torch.int32)


def _mixed(x: Tensor) -> Tensor:
    """Float32 in [0, 1). x: int32, overwritten."""
    x ^= (x >> 16) & 0xFFFF
    x *= -2048144789  # 0x85EBCA6B as a signed 32-bit number
    x ^= (x >> 13) & 0x7FFFF
    x *= -1028477387  # 0xC2B2AE35
    x ^= (x >> 16) & 0xFFFF
    return ((x >> 8) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24)
