"""One finding of the doctor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PASS, WARN, FAIL = "pass", "warn", "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """status: pass, warn or fail. found: what is true here. advice: what to do, empty where nothing
    is to be done."""

    name: str
    status: str
    found: str
    advice: str = ""


def passed_if(good: bool, name: str, found: str, advice: str) -> Check:
    """A pass, or a warning with what to do."""
    return Check(name, PASS, found) if good else Check(name, WARN, found, advice)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in a line; of many, the first `most`."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def joined(names: Iterable[object]) -> str:
    """Names in a line, all of them."""
    return ", ".join(map(str, names))
