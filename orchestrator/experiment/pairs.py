"""Pairs of a key and a value, as people write them."""

from __future__ import annotations

from collections.abc import Iterable


def once(field: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The pairs of a field as a mapping. Raises ValueError where a key has two values: which of
    them is meant nobody knows."""
    found: dict[str, str] = {}
    for key, value in pairs:
        if found.setdefault(key, value) != value:
            raise ValueError(f"{field} {key} is both {found[key]} and {value}; give one")
    return found
