"""JSON documents. NaN and infinities become null, as JSON does not have them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping


def text(data: object) -> str:
    """One document for `--json`, that every parser reads. `data`: see `plain`."""
    return json.dumps(plain(data), indent=2, allow_nan=False)


def compact(data: object) -> str:
    """The same without white space, for files."""
    return json.dumps(plain(data), separators=(",", ":"), allow_nan=False)


def inline(data: object) -> str:
    """The same for a script element of a page: "<" is escaped, so that no text ends the element."""
    return compact(data).replace("<", "\\u003c")


def plain(data: object) -> object:
    """`data`, made of dataclasses, mappings, sequences and scalars, in a form that `json.dumps`
    takes."""
    if isinstance(data, Mapping):
        return {name: plain(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    if dataclasses.is_dataclass(data):
        fields = dataclasses.fields(data)
        return {field.name: plain(getattr(data, field.name)) for field in fields}
    return None if isinstance(data, float) and not math.isfinite(data) else data
