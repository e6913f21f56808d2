"""Compiling many kernels in Triton at once. Triton compiles a kernel when it is first launched, one
after the other: some 40 of them in 15 s on a fresh machine, where one core works and the others
wait.
"""
# Triton has no types.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import torch
import triton
from torch.overrides import TorchFunctionMode
from triton.runtime.jit import KernelInterface

_THREADS = 8  # of a rank; more of them would wait for Python's lock
_ZEROS: dict[Any, Callable[..., Any]] = {
    torch.empty: torch.zeros,
    torch.empty_like: torch.zeros_like,
}


class _Zeros(TorchFunctionMode):
    """What a kernel would fill is zero: as a token, a row or a page, one that there is."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _ZEROS.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def compiled_together() -> Iterator[None]:
    """Inside, kernels in Triton are not launched. What a launch would compile is compiled in
    threads when this ends, and loaded on the current device. What such a kernel fills is zero
    instead; all else that is launched runs. Raises what a compiler raises."""
    launching, device, is_known = KernelInterface.__getitem__, torch.cuda.current_device(), Event()

    def begin() -> None:
        is_known.wait()  # threads that compile would keep Python's lock from who finds more
        torch.cuda.set_device(device)

    with ThreadPoolExecutor(_THREADS, initializer=begin) as threads:
        mode = triton.AsyncCompileMode(threads)
        KernelInterface.__getitem__ = _compiled
        with mode:
            try:
                with _Zeros():
                    yield
            finally:
                KernelInterface.__getitem__ = launching
                is_known.set()
        # Loads it; Triton 3.6 compiles a launcher in C for it, too.
        list(threads.map(lambda made: made.result().run, mode.future_kernels.values()))


def _compiled(kernel: Any, grid: Any) -> Callable[..., Any]:
    """What `kernel[grid]` is inside `compiled_together`."""
    return lambda *args, **kwargs: kernel.run(*args, grid=grid, warmup=True, **kwargs)
