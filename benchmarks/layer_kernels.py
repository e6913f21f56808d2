"""Which kernels a layer of a decode step of few requests has, and what each takes.

    python benchmarks/layer_kernels.py --models qwen2.5-32b --tp 2 --rows 1,32
    python benchmarks/layer_kernels.py --quantization fp8 --out layer_kernels.arrow
    python benchmarks/layer_kernels.py --sums

The layers are those of `few_rows.py`, with products in Triton and kernels that are launched early.
Such a kernel is placed while the one before it runs, so a profiler sees it begin long before it can
compute. What it takes is the time from the end of the one before to its own end; those of a layer
sum to what the layer takes. Figures are means over all layers but the first, in REPLAYS replays;
with --sums, of rank 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from few_rows import LAYERS, Shard, of_models, parser_of, step_of, sums_of, weights_of
from torch.profiler import ProfilerActivity, profile

from orchestrator.plan import models
from orchestrator.store.arrow_files import write_part
from workers.device import device_name
from workers.engines.native.kernels import kernels_of
from workers.engines.node_timing import captured, release
from workers.rows import Table, column, row

REPLAYS = 10


@row
class LayerKernelRow:
    """One kernel of a layer."""

    gpu: str = column("name of the GPU")
    model: str = column("whose layers these are")
    tp: int = column("ranks that share them", "1")
    requests: int = column("of a decode step, each with a context of 320 tokens", "1")
    quantization: str = column("of the matrices, as --quantization has it")
    sums: bool = column("whether the ranks sum, each a GPU; else one GPU stands for a rank")
    place: int = column("of the kernel in the layer, from 0", "1")
    kernel: str = column("its name")
    us: float = column("from the end of the kernel before to its end", "us")


LAYER_KERNELS = Table("layer_kernels", LayerKernelRow)


class Launch(NamedTuple):
    """A kernel that ran. end: in us, by the clock of the profiler."""

    name: str
    end: float


def main() -> None:
    """Measure, print, write."""
    parser = parser_of(__doc__)
    parser.set_defaults(tp=[2], rows=[1, 32])
    asked, rows = parser.parse_args(), list[LayerKernelRow]()
    for found in of_models(asked, of_model, lambda ranks: ranks[0]):
        print("\n".join(told(found)), flush=True)
        rows += found
    if asked.out is not None:
        write_part(asked.out, LAYER_KERNELS.make(rows))


def of_model(
    rank: int,
    device: torch.device,
    name: str,
    tp: int,
    requests: Sequence[int],
    quantization: str,
    sums: bool,
) -> list[LayerKernelRow]:
    """The rows of one rank."""
    shard = Shard.of(models.resolve(name, "dummy").shape, tp)
    rows = list[LayerKernelRow]()
    with torch.inference_mode():
        kernels = kernels_of("triton", True, multiplies=True, early=True)
        among = sums_of(device, shard, max(requests)) if sums else []
        weights = weights_of(shard, quantization, device)
        for count in requests:
            step = step_of(device, kernels, shard, count, weights, among)
            for place, (kernel, us) in enumerate(of_layer(launches(captured(device, step)))):
                rows.append(
                    LayerKernelRow(
                        gpu=device_name(device),
                        model=shard.model,
                        tp=tp,
                        requests=count,
                        quantization=quantization,
                        sums=sums,
                        place=place,
                        kernel=kernel,
                        us=us,
                    )
                )
    release(device)
    return rows


def launches(replay: Callable[[], object]) -> list[list[Launch]]:
    """The kernels of each of REPLAYS replays, in the order in which they were placed."""
    replay()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(REPLAYS):
            replay()
        torch.cuda.synchronize()
    ran = (one for one in seen.events() if one.device_type == torch.autograd.DeviceType.CUDA)
    found = [
        Launch(one.name, one.time_range.end)
        for one in sorted(ran, key=lambda one: one.time_range.start)
    ]
    size = len(found) // REPLAYS
    return [found[at : at + size] for at in range(0, len(found), size)]


def of_layer(replays: Sequence[Sequence[Launch]]) -> list[tuple[str, float]]:
    """Name and microseconds of each kernel of a layer. Raises ValueError where the kernels of a
    replay are not those of LAYERS layers alike."""
    names = [one.name for one in replays[0]]
    first, size = _layers(names)
    taken = [list[float]() for _ in range(size)]
    for replay in replays:
        for at in range(first + size, first + size * LAYERS):
            taken[(at - first) % size].append(replay[at].end - replay[at - 1].end)
    return [(names[first + at], fmean(taken[at])) for at in range(size)]


def _layers(names: Sequence[str]) -> tuple[int, int]:
    """Where the first layer begins, and how many kernels one has: as many as can be, of those that
    come LAYERS times in a row."""
    for size in range(len(names) // LAYERS, 0, -1):
        for first in range(len(names) - size * LAYERS + 1):
            layer = names[first : first + size]
            if names[first : first + size * LAYERS] == [*layer] * LAYERS:
                return first, size
    raise ValueError(f"a replay has no {LAYERS} layers that are alike: {', '.join(names[:40])}")


def told(rows: Sequence[LayerKernelRow]) -> list[str]:
    """A line for each number of requests."""
    lines = []
    for count in dict.fromkeys(one.requests for one in rows):
        mine = [one for one in rows if one.requests == count]
        parts = ", ".join(f"{one.kernel[:20]} {one.us:.1f}" for one in mine)
        of = f"{mine[0].model} tp{mine[0].tp} {mine[0].quantization}"
        total = sum(one.us for one in mine)
        lines.append(f"{of}, {count} requests: {parts}: {total:.1f} us a layer")
    return lines


if __name__ == "__main__":
    main()
