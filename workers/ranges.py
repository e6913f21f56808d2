"""Names for stretches of the host's time, for Nsight Systems to show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol


class Ranges(Protocol):
    """Marks what a rank is doing by named ranges, which nest."""

    def span(self, name: str, *values: object) -> AbstractContextManager[None]:
        """A range around the block, called `name`: a pattern for `str.format`, filled in with
        `values` only where Nsight Systems watches."""
        ...


class NoRanges:
    """For a run that Nsight Systems does not watch: does nothing."""

    def __init__(self) -> None:
        self._nothing = nullcontext()

    def span(self, name: str, *values: object) -> AbstractContextManager[None]:
        """No range."""
        return self._nothing


class PushedRanges:
    """Opens a range by one function and closes it by another."""

    def __init__(self, push: Callable[[str], object], pop: Callable[[], object]) -> None:
        self._push, self._pop = push, pop

    @contextmanager
    def span(self, name: str, *values: object) -> Iterator[None]:
        """A range, closed also where the block raises."""
        self._push(name.format(*values))
        try:
            yield
        finally:
            self._pop()


def ranges_for(watched: bool) -> Ranges:
    """NVTX ranges where Nsight Systems watches; none otherwise, and none where torch was built
    without CUDA and NVTX."""
    import torch

    if not (watched and torch.backends.cuda.is_built()):  # type: ignore[no-untyped-call]
        return NoRanges()
    return PushedRanges(torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop)
