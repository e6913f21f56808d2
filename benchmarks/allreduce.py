"""What an all-reduce takes inside a CUDA graph: NCCL's, one-shot, two-shot and flagged, alone and
with the add and norm behind it.

    python benchmarks/allreduce.py
    python benchmarks/allreduce.py --gpus 2 --hidden 5120 --out allreduce.arrow

Starts a process for each GPU, without Ray. A message is the activations of so many tokens. Of each
kind a graph of CALLS calls is captured, each of which has what the one before made, and replayed
REPLAYS times in ROUNDS rounds, in which the kinds take turns. A figure is the median over rounds of
the time of one call, and of the ranks the slowest one's. "torch one" and "torch two" are torch's
own one-shot and two-shot with the copy into shared memory that they need; + norm is with the add
and norm in another kernel; "fused" is with them in its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.cluster.environment import WORKER_ENVIRONMENT
from orchestrator.store.arrow_files import write_part
from workers.backends import GroupSum
from workers.rendezvous import ON_LOOPBACK, join, open_store
from workers.rows import Table, column, row

CALLS, REPLAYS, ROUNDS = 20, 10, 7
TOKENS = "1,2,4,8,16,24,32,48,64,100,128,256,512,1024,2048"
# More than the engine lets them have, to see from where they are slower.
MOST_BYTES, MOST_FLAGGED = 4 << 20, 40 << 20
EPS = 1e-5


@row
class AllReduceRow:
    """One kind of one message."""

    gpu: str = column("name of the GPUs")
    ranks: int = column("GPUs that sum", "1")
    dtype: str = column("of the message")
    hidden: int = column("elements of a token", "1")
    tokens: int = column("tokens of the message", "1")
    bytes: int = column("of the message", "B")
    kind: str = column("what sums, and whether add and norm are with it")
    us: float = column("time of a call inside a graph", "us")


ALL_REDUCE = Table("allreduce", AllReduceRow)


class HasTime(Protocol):
    """A row of a rank. us: time of what it is of."""

    @property
    def us(self) -> float: ...


Timed = TypeVar("Timed", bound=HasTime)


class Asked(NamedTuple):
    """What is measured."""

    hidden: int
    dtype: str
    tokens: tuple[int, ...]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, default=min(torch.cuda.device_count(), 8))
    parser.add_argument("--hidden", type=int, default=8192)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--tokens", default=TOKENS, help=f"of each message [{TOKENS}]")
    parser.add_argument("--out", type=Path, help="an Arrow file")
    asked = parser.parse_args()
    if not 2 <= asked.gpus <= min(torch.cuda.device_count(), 8):
        parser.error(f"2 to 8 GPUs sum, and this machine has {torch.cuda.device_count()}")
    what = Asked(asked.hidden, asked.dtype, tuple(map(int, asked.tokens.split(","))))
    rows = slowest(on_each_gpu(asked.gpus, measured, what))
    print(told(rows))
    if asked.out is not None:
        write_part(asked.out, ALL_REDUCE.make(rows))


def slowest(by_rank: Sequence[Sequence[Timed]]) -> list[Timed]:
    """Of each thing that was measured the row of the rank that took longest."""
    return [max(of_ranks, key=lambda one: one.us) for of_ranks in zip(*by_rank, strict=True)]


def told(rows: Sequence[AllReduceRow]) -> str:
    """A line a message, a column a kind."""
    first, kinds = rows[0], list(dict.fromkeys(one.kind for one in rows))
    lines = [f"{first.ranks} x {first.gpu}, {first.dtype}, hidden {first.hidden}; us per call"]
    lines.append("tokens      KiB " + " ".join(f"{kind:>15}" for kind in kinds))
    for tokens in dict.fromkeys(one.tokens for one in rows):
        found = {one.kind: one for one in rows if one.tokens == tokens}
        size = next(iter(found.values())).bytes / 1024
        cells = (f"{found[kind].us:15.1f}" if kind in found else " " * 15 for kind in kinds)
        lines.append(f"{tokens:6} {size:8.0f} " + " ".join(cells))
    return "\n".join(lines)


# -- on one GPU


def measured(rank: int, device: torch.device, asked: Asked) -> list[AllReduceRow]:
    """The rows of one rank."""
    kinds, rows = kinds_of(device, asked), list[AllReduceRow]()
    for tokens in asked.tokens:
        # Of zeros, which stay zeros however often they are summed.
        shape, dtype = (tokens, asked.hidden), getattr(torch, asked.dtype)
        x, residual = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        calls = {name: call for name, (takes, call) in kinds.items() if takes(x)}
        times = in_turn({name: captured(call, x, residual) for name, call in calls.items()})
        rows += [
            AllReduceRow(
                gpu=torch.cuda.get_device_name(device),
                ranks=dist.get_world_size(),
                dtype=asked.dtype,
                hidden=asked.hidden,
                tokens=tokens,
                bytes=x.nbytes,
                kind=kind,
                us=us,
            )
            for kind, us in times.items()
        ]
    return rows


Takes = Callable[[Tensor], bool]
Sum = Callable[[Tensor], object]
Call = Callable[[Tensor, Tensor], object]  # of a message and a residual


def kinds_of(device: torch.device, asked: Asked) -> Mapping[str, tuple[Takes, Call]]:
    """Name -> whether it takes a message, and how it is called."""
    from torch.distributed import _symmetric_memory as memory

    from workers.engines.native.kernels import fused
    from workers.engines.native.kernels.flagged import Flagged
    from workers.engines.native.kernels.fp8 import Norm
    from workers.engines.native.kernels.symmetric import OneShot, TwoShot

    group, dtype = dist.group.WORLD, getattr(torch, asked.dtype)
    assert group is not None
    one = OneShot(group, device, dtype, asked.hidden, MOST_BYTES)
    two = TwoShot(group, device, dtype, MOST_BYTES)
    flagged = Flagged(group, device, dtype, asked.hidden, MOST_FLAGGED)
    weight = torch.ones(asked.hidden, dtype=dtype, device=device)
    norm = Norm(weight, EPS)
    shared = memory.empty(MOST_BYTES // dtype.itemsize, dtype=dtype, device=device)
    memory.rendezvous(shared, group)

    def library(operator: Callable[..., object]) -> tuple[Takes, Sum]:
        def call(x: Tensor) -> None:
            part = shared[: x.numel()].view(x.shape).copy_(x)
            operator(part, "sum", group.group_name, x)

        return lambda x: dtype != torch.float16 and one.takes(x), call

    def normed(all_reduce: Sum) -> Call:
        def call(x: Tensor, residual: Tensor) -> None:
            all_reduce(x)
            fused.add_rms_norm(x, residual, weight, EPS)

        return call

    def alone(all_reduce: Sum) -> Call:
        return lambda x, residual: all_reduce(x)

    def together(sums: GroupSum) -> tuple[Takes, Call]:
        return sums.fuses, lambda x, residual: sums.all_reduce_norm(x, residual, norm)

    sums: dict[str, tuple[Takes, Sum]] = {
        "nccl": (lambda x: True, dist.all_reduce),
        "one-shot": (one.takes, one.all_reduce),
        "two-shot": (two.takes, two.all_reduce),
        "flagged": (flagged.takes, flagged.all_reduce),
    }
    torchs = {"torch one": library(torch.ops.symm_mem.one_shot_all_reduce_out)}
    if group.size() in (2, 4, 8):
        torchs["torch two"] = library(torch.ops.symm_mem.two_shot_all_reduce_out)
    return {
        **{name: (takes, alone(call)) for name, (takes, call) in (sums | torchs).items()},
        **{f"{name} + norm": (takes, normed(call)) for name, (takes, call) in sums.items()},
        "fused one": together(one),
        "fused flagged": together(flagged),
    }


def captured(call: Call, x: Tensor, residual: Tensor) -> torch.cuda.CUDAGraph:
    """CALLS calls in a graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(x, residual)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(CALLS):
            call(x, residual)
    return graph


def in_turn(graphs: Mapping[str, torch.cuda.CUDAGraph]) -> dict[str, float]:
    """Microseconds of one call of each, the median over rounds."""
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(ROUNDS + 1):  # the first warms up
        for name, graph in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            graph.replay()  # after it all ranks are here
            begin.record()
            for _ in range(REPLAYS):
                graph.replay()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) * 1e3 / (REPLAYS * CALLS))
    return {name: median(found[1:]) for name, found in times.items()}


# -- a process for each GPU


def on_each_gpu(
    ranks: int, call: Callable[..., Any], *args: Any, timeout_s: float = 120.0
) -> list[Any]:
    """What `call(rank, device, *args)` returns on each of `ranks` GPUs, whose processes are the
    default group. Raises RuntimeError where one of them raises or ends, and TimeoutError where they
    are not done in time; then they are killed."""
    context = multiprocessing.get_context("spawn")
    store, port = open_store("127.0.0.1")
    answers = context.Queue()
    processes = [
        context.Process(target=_serve, args=(rank, ranks, port, answers, call, args), daemon=True)
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(_answer(answers, processes, time.monotonic() + timeout_s) for _ in processes)
        for process in processes:
            process.join(10)
        return [found[rank] for rank in range(ranks)]
    finally:
        for process in processes:
            process.kill()
        del store  # which serves them until here


def _answer(answers: Any, processes: Sequence[Any], limit: float) -> tuple[int, Any]:
    """The next rank that is done, and what it returns."""
    while True:
        has_ended = [rank for rank, one in enumerate(processes) if one.exitcode]
        try:
            rank, error, value = answers.get(timeout=1)
        except queue.Empty:
            if has_ended:
                raise RuntimeError(f"ranks {has_ended} have ended") from None
            if time.monotonic() > limit:
                raise TimeoutError("the ranks were not done in time") from None
        else:
            if error is not None:
                raise RuntimeError(f"rank {rank}: {error}")
            return rank, value


def _serve(
    rank: int, ranks: int, port: int, answers: Any, call: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ |= {**WORKER_ENVIRONMENT, **ON_LOOPBACK}  # before anything communicates
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    store = join(("127.0.0.1", port))
    dist.init_process_group("nccl", store=store, rank=rank, world_size=ranks, device_id=device)
    try:
        answers.put((rank, None, call(rank, device, *args)))
    except Exception:
        answers.put((rank, traceback.format_exc(), None))
        answers.close()
        answers.join_thread()
        os._exit(1)  # a peer that waits on a GPU keeps this one from leaving its groups
    torch.cuda.synchronize()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
