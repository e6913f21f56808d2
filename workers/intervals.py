"""Stretches of time: lists of (start, end), all in one unit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Span = tuple[float, float]


def union(spans: Iterable[Span]) -> list[Span]:
    """The same time without overlaps, in order."""
    out: list[Span] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        elif end > start:
            out.append((start, end))
    return out


def subtract(spans: Sequence[Span], holes: Sequence[Span]) -> list[Span]:
    """The parts of `spans` outside `holes`. Both are without overlaps and in order."""
    out: list[Span] = []
    first = 0
    for start, end in spans:
        while first < len(holes) and holes[first][1] <= start:
            first += 1
        at = first
        while at < len(holes) and holes[at][0] < end:
            if holes[at][0] > start:
                out.append((start, holes[at][0]))
            start = max(start, holes[at][1])
            at += 1
        if start < end:
            out.append((start, end))
    return out


def intersect(spans: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """The time that `spans` and `others` share. Both are without overlaps and in order."""
    return subtract(spans, subtract(spans, others))


def length(spans: Iterable[Span]) -> float:
    """Sum of the lengths of `spans`, which do not overlap."""
    return sum(end - start for start, end in spans)
