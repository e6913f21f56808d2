"""Names for stretches of the host's time, for Nsight Systems to show: the pair of what names them
and what does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol


class Ranges(Protocol):
    """Told what a rank is at. Ranges nest."""

    def span(self, name: str, *values: object) -> AbstractContextManager[None]:
        """Around what is called `name`, a pattern for `str.format` that is filled in only where
        somebody watches."""
        ...


class Silent:
    """For every run that nobody watches: names nothing."""

    def __init__(self) -> None:
        self._nothing = nullcontext()

    def span(self, name: str, *values: object) -> AbstractContextManager[None]:
        return self._nothing


class Spoken:
    """Opens and closes a range by two calls."""

    def __init__(self, push: Callable[[str], Any], pop: Callable[[], Any]) -> None:
        self._push, self._pop = push, pop

    @contextmanager
    def span(self, name: str, *values: object) -> Iterator[None]:
        self._push(name.format(*values))
        try:
            yield
        finally:
            self._pop()


def ranges_for(watched: bool) -> Ranges:
    """NVTX ranges where Nsight Systems watches; none otherwise, and none where torch was built
    without CUDA and NVTX."""
    import torch

    if not (watched and torch.backends.cuda.is_built()):
        return Silent()
    return Spoken(torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop)
