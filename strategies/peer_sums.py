"""All-reduces through memory that the GPUs of one node share: which kernel sums a message."""

from __future__ import annotations

from operator import itemgetter

from strategies.traffic import FLAGGED, ONE_SHOT, TWO_SHOT

RANKS = range(2, 9)  # that may share memory
# Bytes to all other ranks; beyond, NCCL with the norm behind it is as fast among more than two.
ONE_SHOT_SENT = 3 << 19
FIRST_SENT = 1 << 18  # the same; beyond, two-shot is
# Between two ranks: of a message whose words have the number of its call, and of one with flags.
# The first is where the two are level with the norm in them; alone they are at some 400 KiB.
WORDS_BYTES, FLAGGED_BYTES = 1 << 17, 1 << 25
HANDED_ROWS = 64  # of a message that products hand over: as many as they are launched early for
TWO_SHOT_BYTES = 5 << 19  # of a message; no larger one was measured


def kind_for(ranks: int) -> str:
    """What is fastest for so many. Between two ranks a message goes once over the link either way,
    and one-shot has the norm with it."""
    return "one-shot" if ranks == 2 else "two-shot"


def ways(kind: str, ranks: int) -> tuple[tuple[str, int], ...]:
    """The kernels of a kind of `--allreduce`, each with the bytes of its largest message: the first
    that takes a message sums it, and NCCL where none does. Measured on H100 and H200
    (benchmarks/allreduce.py)."""
    if ranks not in RANKS:
        return ()
    if kind == "one-shot":
        if ranks == 2:
            return ((ONE_SHOT, WORDS_BYTES), (FLAGGED, FLAGGED_BYTES))
        return ((ONE_SHOT, ONE_SHOT_SENT // (ranks - 1)),)
    if kind == "two-shot":
        sent = ONE_SHOT_SENT if ranks == 2 else FIRST_SENT
        return ((ONE_SHOT, sent // (ranks - 1)), (TWO_SHOT, TWO_SHOT_BYTES))
    return ()


def way_of(kind: str, ranks: int, size: float) -> str | None:
    """The kernel that sums a message of so many bytes; None: NCCL does."""
    return next((op for op, most in ways(kind, ranks) if size <= most), None)


def each_way(ranks: int) -> tuple[tuple[str, int], ...]:
    """Every kernel that so many ranks have, each with the bytes of the largest message that any
    kind gives it."""
    every = sorted((*ways("one-shot", ranks), *ways("two-shot", ranks)), key=itemgetter(1))
    largest = dict(every)  # the last of a kernel counts
    # Between two, two ways send as much as one.
    return tuple((op, most) for op, most in largest.items() if ranks > 2 or op != TWO_SHOT)
