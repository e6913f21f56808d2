"""Which files hold the weights of a checkpoint, and what is in them: one answer for the driver that
checks and for the ranks that load. It imports without torch.

A safetensors file is 8 bytes of little-endian header length, a JSON header (tensor name -> dtype,
shape, data_offsets), and the data, tensor behind tensor without a gap.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strategies.errors import Refused

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# What is stored beside an FP8 matrix NAME.weight, each under one of these names. A value is e4m3 x
# scale, whatever "inv" stands for.
WEIGHT_SCALES = ("weight_scale", "weight_scale_inv")
INPUT_SCALES = ("input_scale", "activation_scale")
UNFINISHED = ".unfinished"  # what is being written, so that a checkpoint that is there stays whole
MAX_HEADER_BYTES = 100_000_000  # what the safetensors library itself accepts


def missing(folder: Path) -> list[Path]:
    """Of a folder and those that it is in, the ones that are not there, the innermost first."""
    return [one for one in (folder, *folder.parents) if not os.path.exists(one)]


def discard(unfinished: Path, made: Sequence[Path]) -> None:
    """Remove what is being written, if it is there, and the folders that were made for it, as far
    as they are empty."""
    shutil.rmtree(unfinished, ignore_errors=True)
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as the header of `file` describes it; its bytes are those from `start` to `stop`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def locate(folder: Path) -> dict[str, Stored]:
    """Every tensor that is stored in the weights of `folder`, by name.

    As Transformers does, this goes by what the files hold, and asks an index only which files
    there are. Raises Refused where there are no weights, where a file is broken, or where the
    index, its files and each other's contents do not agree.
    """
    files, promised = _weight_files(folder)
    found: dict[str, Stored] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name in found:
                raise Refused(
                    f"{folder}: the tensor {name} is stored twice, in {found[name].file.name} and "
                    f"in {file.name}; keep one of them"
                )
            found[name] = tensor
    for name, file in promised.items():
        if name not in found or found[name].file != file:
            raise Refused(f"{file}: the tensor {name} is missing, though {INDEX} says it is here")
    return found


def scale_of(name: str, spellings: Iterable[str], stored: Collection[str]) -> str | None:
    """The scale of the matrix `name` among the tensors that are stored; None where none is."""
    module = name.removesuffix(".weight")
    found = (f"{module}.{spelling}" for spelling in spellings)
    return next((one for one in found if one in stored), None)


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """The files that hold the weights, in the order that Transformers looks for them:
    model.safetensors, else those of the index; and tensor name -> file, as the index has it."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], {}
    index = folder / INDEX
    if not index.is_file():
        raise Refused(_no_weights(folder))
    promised = {name: folder / file for name, file in _weight_map(index).items()}
    files = sorted(set(promised.values()))
    for file in files:
        if not file.is_file():
            raise Refused(f"{index} names {file.name}, which is not in the folder")
    return files, promised


def _no_weights(folder: Path) -> str:
    for name in PICKLED:
        if (folder / name).is_file():
            return (
                f"{folder}: the weights are in {name}, a format that can run code when it is read, "
                f"and is not read here; save them as {SINGLE} (save_pretrained does)"
            )
    return (
        f"{folder}: there are no weights: neither {SINGLE} nor {INDEX} (use --load-format dummy to "
        "run without)"
    )


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> name of its file, from an index."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise Refused(f"{index}: there is no weight_map from tensors to files in it")
    outside = next((file for file in found.values() if Path(file).name != file), None)
    if outside is not None:
        raise Refused(f"{index} names {outside!r}, which is no file of this folder")
    return found


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of one file by name. Raises Refused where the header is broken, or where the
    tensors do not fill what is behind it to the last byte."""
    text = _header_text(file)
    tensors = _parse_header(file, text)
    _check_extent(file, 8 + len(text), tensors)
    return tensors


def _check_extent(file: Path, start: int, tensors: dict[str, Stored]) -> None:
    """Raise Refused unless the tensors lie one behind the other from byte `start` to the end of
    the file."""
    size, at = file.stat().st_size, start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != at:
            raise Refused(
                f"{file}: the tensor {name} begins at byte {tensor.start}, where the one before it "
                f"ends at byte {at}: the file is damaged"
            )
        if tensor.stop > size:
            raise Refused(
                f"{file} is cut short: the tensor {name} ends at byte {tensor.stop}, the file has "
                f"{size}"
            )
        at = tensor.stop
    if at != size:
        raise Refused(
            f"{file} has {size - at} bytes behind its last tensor: it is damaged; get it again"
        )


def _header_text(file: Path) -> bytes:
    """The JSON of the header, unparsed."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER_BYTES + 1
            text = stream.read(length) if length <= MAX_HEADER_BYTES else b""
    except OSError as error:
        raise Refused(f"{file} cannot be read: {error.strerror}") from error
    if length > MAX_HEADER_BYTES:
        raise Refused(
            f"{file} is not a safetensors file: it has no valid header ({size} bytes in all)"
        )
    if len(text) < length:
        raise Refused(
            f"{file} is cut short: its header takes {8 + length} bytes, the file has {size}"
        )
    return text


def _parse_header(file: Path, text: bytes) -> dict[str, Stored]:
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        found = {name: _tensor(file, len(text), name, one) for name, one in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(
            f"{file}: the safetensors header cannot be read ({type(error).__name__}: {error})"
        ) from error
    for name, tensor in found.items():
        _check_bytes(name, tensor)
    return found


def _tensor(file: Path, header_bytes: int, name: str, entry: Any) -> Stored:
    """Raises ValueError where the bytes of the tensor do not lie behind the header."""
    start, stop = entry["data_offsets"]
    if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start <= stop):
        raise ValueError(f"the tensor {name} has the data_offsets {entry['data_offsets']}")
    shape = tuple(entry["shape"])
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"the tensor {name} has the shape {entry['shape']}")
    data = 8 + header_bytes
    return Stored(file, str(entry["dtype"]), shape, data + start, data + stop)


def _check_bytes(name: str, tensor: Stored) -> None:
    """Raise Refused where a tensor has not the bytes that its shape needs."""
    stored = tensor.stop - tensor.start
    needed = math.prod(tensor.shape) * ITEM_BYTES.get(tensor.dtype, 0)
    if tensor.dtype in ITEM_BYTES and stored != needed:
        raise Refused(
            f"{tensor.file}: the tensor {name} has {stored} bytes, its shape needs {needed}"
        )


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file. Raises Refused with file and line where it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not a text file") from error
    except json.JSONDecodeError as error:
        raise Refused(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path}: the JSON cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise Refused(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def folder_name(folder: str) -> str:
    """What a checkpoint is called: as its folder is. In a Hugging Face cache a folder is called as
    its commit, and the checkpoint as its repository, without the owner."""
    path = Path(os.path.abspath(os.path.expanduser(folder)))
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return path.name
