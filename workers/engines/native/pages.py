"""Pages of KV as numbers: how many a request needs, and which are free. Imports without torch."""

from __future__ import annotations

from collections import deque

# Tokens a page holds: one tile of the decode kernel.
PAGE = 64


class PagePool:
    """The free pages, as numbers. The same sequence of calls gives the same pages on every rank."""

    def __init__(self, pages: int) -> None:
        self._free = deque(range(1, pages + 1))

    def __len__(self) -> int:
        return len(self._free)

    def take(self, tokens: int) -> list[int] | None:
        """Pages for `tokens` tokens, or None where too few are free."""
        count = pages_for(tokens)
        return [self._free.popleft() for _ in range(count)] if count <= len(self._free) else None

    def give_back(self, pages: list[int]) -> None:
        """Make pages free again."""
        self._free.extend(pages)


def pages_for(tokens: int) -> int:
    """Pages that `tokens` tokens of one request take."""
    return -(-tokens // PAGE)
