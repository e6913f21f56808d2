"""Is a checkpoint whole? Read from the headers of its safetensors files alone, before anything is
reserved.

The format: 8 bytes of little-endian header length, a JSON header (tensor name -> dtype, shape,
data_offsets), the data.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.plan.safetensors_bytes import check_bytes
from strategies.shapes import ModelShape

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
MAX_HEADER_BYTES = 100_000_000  # what the safetensors library itself accepts


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the header of `file` describes it; `stop` is where its bytes end, counted from
    the header's end."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def check(folder: Path, shape: ModelShape) -> None:
    """Raise UserError unless `folder` holds every tensor of `shape`, in its shape and to its last
    byte, and its files hold nothing but tensors."""
    where = locate(folder)
    headers = {file: read_header(file) for file in sorted(set(where.values()))}
    for name, expected in shape.parameters():
        if name not in where:
            raise UserError(
                f"{folder}: the tensor {name} is missing (expected shape {list(expected)})"
            )
        tensor = headers[where[name]].get(name)
        if tensor is None:
            raise UserError(
                f"{where[name]}: the tensor {name} is missing, though {INDEX} says it is here"
            )
        _check_tensor(name, tensor, expected)
    for file, tensors in headers.items():
        check_bytes(file, ((name, one.start, one.stop) for name, one in tensors.items()))


def locate(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it. Raises UserError where there are no weights or a shard
    is missing."""
    if (folder / SINGLE).is_file():
        return dict.fromkeys(read_header(folder / SINGLE), folder / SINGLE)
    index = folder / INDEX
    if not index.is_file():
        raise UserError(
            f"{folder}: there are no weights: neither {SINGLE} nor {INDEX} (use --load-format "
            "dummy to run without)"
        )
    files = _weight_map(index)
    for file in sorted(set(files.values())):
        if not (folder / file).is_file():
            raise UserError(f"{index} names {file}, which is not in the folder")
    return {name: folder / file for name, file in files.items()}


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> name of its file, from an index."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise UserError(f"{index}: there is no weight_map from tensors to files in it")
    return found


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one file by name. Raises UserError where the header is broken or the file ends
    before its data does."""
    size, text = file.stat().st_size, _header_text(file)
    tensors = _parse_header(file, text)
    name, last = max(tensors.items(), key=lambda item: item[1].stop, default=("", None))
    if last and 8 + len(text) + last.stop > size:
        raise UserError(
            f"{file} is cut short: the tensor {name} ends at byte {8 + len(text) + last.stop}, the "
            f"file has {size}"
        )
    return tensors


def _header_text(file: Path) -> bytes:
    """The JSON of the header, unparsed."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER_BYTES + 1
        if length > MAX_HEADER_BYTES:
            raise UserError(
                f"{file} is not a safetensors file: it has no valid header ({size} bytes in all)"
            )
        text = stream.read(length)
    if len(text) < length:
        raise UserError(
            f"{file} is cut short: its header takes {8 + length} bytes, the file has {size}"
        )
    return text


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file. Raises UserError with file and line where it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the JSON cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _parse_header(file: Path, text: bytes) -> dict[str, Tensor]:
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        return {name: _tensor(file, name, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file}: the safetensors header cannot be read ({type(error).__name__}: {error})"
        ) from error


def _tensor(file: Path, name: str, entry: Any) -> Tensor:
    """Raises ValueError where the bytes of the tensor do not lie behind the header."""
    start, stop = entry["data_offsets"]
    if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start <= stop):
        raise ValueError(f"the tensor {name} has the data_offsets {entry['data_offsets']}")
    return Tensor(file, str(entry["dtype"]), tuple(entry["shape"]), start, stop)


def _check_tensor(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
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
    nbytes = math.prod(expected) * ITEM_BYTES[tensor.dtype]
    if tensor.stop - tensor.start != nbytes:
        raise UserError(
            f"{tensor.file}: the tensor {name} has {tensor.stop - tensor.start} bytes, its shape "
            f"needs {nbytes}"
        )
