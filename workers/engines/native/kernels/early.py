"""Programmatic dependent launch: the GPU places a kernel while the one before it still runs, so
that starting it takes no time of its own. Every kernel in Triton here can be launched so, in and
outside of graphs.

A kernel that is placed early waits, before it reads what the one before has written and before it
writes anything, until that one has ended; it has waited in turn. Then it lets the next one be
placed, which happens once all of its programs run: so a kernel that waits for another takes no room
from it. Only then may it let the next one be placed, so that all but the one before have ended when
a kernel is placed: weights, and contexts, which nothing in a layer writes, are read before the wait
(FlashInfer's kernels do so too). Kernels that a product is behind let it be placed at once, and
wait then: of a layer a product reads nothing before its wait but how many sums there have been, and
that is written a kernel further back. So may the product of queries, where attention has pages
ahead: contexts are written before the first layer. What torch and cuBLAS launch begins when
everything before has ended, as ever.

It is for steps of few rows: with many a kernel takes so long that starting it does not count.
"""
# Triton's decorator has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

FEW_ROWS = 64
LATE = {"early": False}  # Triton's interpreter does not know the option `launch_pdl`
EARLY = {"early": True, "launch_pdl": True}
_few = LATE


def settle(early: bool) -> None:
    """Whether kernels of this process are launched early from now on. early: needs compute
    capability 9.0. A graph keeps what it was captured with."""
    global _few
    _few = EARLY if early else LATE


def launched(rows: int) -> dict[str, bool]:
    """What the launch of a kernel for so many tokens is told: its argument `early`, and an option
    of Triton's."""
    return _few if rows <= FEW_ROWS else LATE


@triton.jit
def in_turn(early: tl.constexpr):
    """The first line of a kernel, or the first behind what it reads of weights and contexts."""
    wait(early)
    let_on(early)


@triton.jit
def at_once(early: tl.constexpr):
    """The same of a kernel behind which the next one may be placed at once."""
    let_on(early)
    wait(early)


@triton.jit
def wait(early: tl.constexpr):
    """Until the kernel before has ended."""
    if early:
        gdc_wait()


@triton.jit
def let_on(early: tl.constexpr):
    """Let the next kernel be placed."""
    if early:
        gdc_launch_dependents()
