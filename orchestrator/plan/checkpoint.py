"""Is a checkpoint whole, and is all of it read? Asked of the headers of its files, before anything
is reserved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from orchestrator.errors import UserError
from strategies.fp8 import Fp8Format
from strategies.placement import EMBEDDING, HEAD
from strategies.shapes import ModelShape
from workers.checkpoint_files import (
    INPUT_SCALES,
    ITEM_BYTES,
    WEIGHT_SCALES,
    Stored,
    locate,
    scale_of,
)

ADAPTER = "adapter_config.json"
# Stored by old versions of Transformers, and computed anew by every version.
HARMLESS = re.compile(
    r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)"
)
CHUNK = 1 << 24  # bytes
FP8 = "F8_E4M3"  # as safetensors calls it


def check(folder: Path, shape: ModelShape) -> ModelShape:
    """Raise Refused unless the weights in `folder` are those of `shape`: every tensor is there, in
    its shape and to its last byte, and none that would not be read.

    Returns the shape as the weights have it: Transformers does not tie a head to the embedding
    where both are stored and differ, whatever the config says.
    """
    if (folder / ADAPTER).is_file():
        raise UserError(
            f"{folder}: {ADAPTER} asks for an adapter, which is not run here; merge it into the "
            "weights (merge_and_unload), or remove it"
        )
    stored = locate(folder)
    shape = replace(shape, tie_embeddings=shape.tie_embeddings and not _own_head(stored))
    read: set[str] = set()
    for name, size in shape.parameters():
        if name not in stored:
            raise UserError(f"{folder}: the tensor {name} is missing (expected shape {list(size)})")
        form = shape.fp8_of(name) if shape.fp8 else None
        if form is None:
            _check_tensor(name, stored[name], size)
        else:
            read |= _check_fp8(name, stored, size, form)
        read.add(name)
    unread = {name for name in stored.keys() - read if not HARMLESS.fullmatch(name)}
    for name in sorted(unread - {HEAD} if shape.tie_embeddings else unread):
        raise UserError(
            f"{stored[name].file}: the tensor {name} is stored, and no part of a {shape.family} of "
            f"{shape.num_layers} layers, as config.json has it, reads it; use the config.json and "
            "the weights of one model"
        )
    return shape


def _check_tensor(name: str, tensor: Stored, expected: tuple[int, ...]) -> None:
    if tensor.shape != expected:
        raise UserError(
            f"{tensor.file}: the tensor {name} has shape {list(tensor.shape)}, config.json asks "
            f"for {list(expected)}"
        )
    if tensor.dtype not in ITEM_BYTES:
        raise UserError(
            f"{tensor.file}: the tensor {name} is stored as {tensor.dtype}; what runs here is "
            f"{', '.join(ITEM_BYTES)}"
        )


def _check_fp8(
    name: str, stored: Mapping[str, Stored], size: tuple[int, ...], form: Fp8Format
) -> set[str]:
    """Raise UserError unless a matrix is stored as `form` says. Returns the names of its scales."""
    tensor, (rows, columns) = stored[name], size
    if tensor.dtype != FP8:
        raise UserError(
            f"{tensor.file}: the tensor {name} is stored as {tensor.dtype}, quantization_config "
            f"says {FP8}; add its module to the modules that are left out there, or quantize it"
        )
    if tensor.shape != size or tensor.stop - tensor.start != rows * columns:
        raise UserError(
            f"{tensor.file}: the tensor {name} has shape {list(tensor.shape)} and "
            f"{tensor.stop - tensor.start} bytes, config.json asks for {list(size)}, a byte each"
        )
    scales = {WEIGHT_SCALES: form.stored_scales(rows, columns)}
    if form.static:
        scales[INPUT_SCALES] = ((), (1,))
    return {_check_scale(name, stored, names, shapes) for names, shapes in scales.items()}


def _check_scale(
    name: str,
    stored: Mapping[str, Stored],
    spellings: tuple[str, ...],
    shapes: tuple[tuple[int, ...], ...],
) -> str:
    """Raise UserError unless the matrix `name` has a scale of one of `shapes`. Returns its name."""
    found, known = scale_of(name, spellings, stored), " or ".join(str(list(one)) for one in shapes)
    if found is None:
        raise UserError(
            f"{stored[name].file}: the tensor {name} is {FP8}, and its scale "
            f"({' or '.join(spellings)}, of shape {known}) is missing"
        )
    if stored[found].shape not in shapes:
        raise UserError(
            f"{stored[found].file}: the tensor {found} has shape {list(stored[found].shape)}, "
            f"quantization_config asks for {known}"
        )
    _check_tensor(found, stored[found], stored[found].shape)
    return found


def _own_head(stored: dict[str, Stored]) -> bool:
    """Whether a head is stored that is not the embedding."""
    if HEAD not in stored or EMBEDDING not in stored:
        return False
    head, table = stored[HEAD], stored[EMBEDDING]
    return (head.dtype, head.shape) != (table.dtype, table.shape) or not _same(head, table)


def _same(one: Stored, other: Stored) -> bool:
    """Whether two tensors of one size have the same bytes."""
    with one.file.open("rb") as left, other.file.open("rb") as right:
        left.seek(one.start)
        right.seek(other.start)
        for done in range(0, one.stop - one.start, CHUNK):
            size = min(CHUNK, one.stop - one.start - done)
            if left.read(size) != right.read(size):
                return False
    return True
