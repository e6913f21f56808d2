"""Whether the tensors of a safetensors file are all that is in it."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from orchestrator.errors import UserError


def check_bytes(file: Path, spans: Iterable[tuple[str, int, int]]) -> None:
    """Raise UserError where bytes of `file` belong to no tensor or to two: the format, and the
    library that reads it, allow neither.

    spans: the name of each tensor and where its bytes begin and end, counted from the end of the
    header. The header is one that can be read; that the file is not cut short is not asked here.
    """
    before, end = "the header", 0
    for name, start, stop in sorted(spans, key=lambda span: span[1:]):
        if start != end:
            wrong = "lie between" if start > end else "are shared by"
            raise UserError(
                f"{file}: {abs(start - end)} bytes {wrong} {before} and the tensor {name}; the "
                "file is damaged, get it again"
            )
        before, end = f"the tensor {name}", stop
    with file.open("rb") as stream:
        header = 8 + struct.unpack("<Q", stream.read(8))[0]
    trailing = file.stat().st_size - header - end
    if trailing > 0:
        raise UserError(
            f"{file}: {trailing} bytes follow {before}, which is the last thing in it; the file is "
            "damaged, get it again"
        )
