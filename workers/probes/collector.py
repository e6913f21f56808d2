"""Python's collector of unused objects, kept out of what is timed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, the collector leaves alone what there is: looking through the objects of torch holds
    a rank up for a fraction of a second, and the others wait for it."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
