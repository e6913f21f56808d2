"""All-reduce through memory that GPUs share, on 2 and on 4 GPUs, where there are so many.

The ranks of a group go through every check in one set of processes. A check takes no turn by what
it finds, so that no rank waits for another; it says what is wrong, and goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from allreduce import on_each_gpu
from ranks import BASE, FAMILIES, engine_plan, ragged_requests, tokens
from torch import Tensor

from strategies import ModelShape
from strategies.peer_sums import ways
from workers.engines.native.build import peer_sum
from workers.engines.native.kernels.fp8 import Fp8Weight, Norm
from workers.engines.native.support import SHARING
from workers.messages import RankReport, Switches, Work

if TYPE_CHECKING:
    from workers.engines.native.kernels.symmetric import PeerSum

IS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
LAUNCHES = (False, True) if IS_HOPPER else (False,)
RANKS = [count for count in (2, 4) if count <= torch.cuda.device_count()]
pytestmark = pytest.mark.skipif(not RANKS, reason="needs two GPUs or more")

EPS, INPUTS = 1e-5, 512
REPLAYS = 1000
SHAPE = ModelShape.from_config(
    {**BASE, **FAMILIES["Llama"], "hidden_size": 256, "architectures": ["LlamaForCausalLM"]},
    "llama",
)
WORK = Work(ragged_requests(SHAPE.vocab_size, count=9), max_concurrency=4, observe=True)


class Here(NamedTuple):
    """One rank of a group."""

    rank: int
    ranks: int
    device: torch.device
    group: dist.ProcessGroup

    def drawn(self, *shape: int, dtype: torch.dtype, seed: int | None = None) -> Tensor:
        """Random values, of this rank; with a seed the same on each."""
        generator = torch.Generator(self.device).manual_seed(self.rank if seed is None else seed)
        return torch.randn(*shape, generator=generator, device=self.device).to(dtype)

    def gathered(self, x: Tensor) -> Tensor:
        """`x` of each rank [ranks, *shape], by NCCL."""
        parts = x.new_empty((self.ranks, *x.shape))
        dist.all_gather_into_tensor(parts.view(-1), x.view(-1), group=self.group)
        return parts

    def differ(self, x: Tensor) -> bool:
        """Whether the ranks have not the same bits."""
        parts = self.gathered(x.contiguous().view(torch.uint8))
        return not bool((parts == parts[0]).all())


def every_way(ranks: int) -> tuple[tuple[str, int], ...]:
    """Every kernel, whether or not so many ranks have it by themselves."""
    return ways("one-shot", ranks) + ways("two-shot", ranks)[1:]


def sums_alone(here: Here) -> Iterator[str]:
    """Of one element, of some that fill no piece, and of as many as it takes."""
    limits = dict(every_way(here.ranks))
    for kind, dtype in product(limits, (torch.bfloat16, torch.float16, torch.float32)):
        sums = peer_sum(kind, here.group, here.device, dtype, 0, limits[kind])
        most = limits[kind] // dtype.itemsize
        for count in (1, 7, 1023, 1024, 1025, 5120, 3 * 8192 + 1, most - 1, most):
            x = here.drawn(count, dtype=dtype)
            exact = here.gathered(x).double().sum(0)
            if not sums.takes(x) or sums.fuses(x.view(1, -1)):
                yield f"{kind}, {dtype}, {count}: it is not taken, or fused"
            out = sums.all_reduce(x)
            rounding = torch.finfo(dtype).eps / 2 * 1.01
            if not torch.allclose(out.double(), exact, rtol=rounding, atol=4e-6):
                yield f"{kind}, {dtype}, {count}: off by {float((out - exact).abs().max())}"
            if here.differ(out):
                yield f"{kind}, {dtype}, {count}: the ranks differ"
        others = (here.drawn(most + 1, dtype=dtype), here.drawn(8, dtype=torch.float64))
        if any(sums.takes(other) for other in others):
            yield f"{kind}, {dtype}: it takes what is too large, or another dtype"


def sums_with_a_norm(here: Here) -> Iterator[str]:
    """The same bits as an all-reduce, and an add behind it; the norm of that, also in FP8."""
    from workers.engines.native.kernels import fused
    from workers.engines.native.kernels.flagged import Flagged
    from workers.engines.native.kernels.symmetric import OneShot

    shapes = (
        (torch.bfloat16, 1, 8192),
        (torch.bfloat16, 32, 8192),
        (torch.bfloat16, 3, 5120),
        (torch.bfloat16, 5, 333),
        (torch.float16, 7, 200),
        (torch.float32, 16, 8192),
        (torch.bfloat16, 3276, 5120),  # more programs than fit at once
    )
    limits = {OneShot: 1 << 19, Flagged: 1 << 25}
    for kind, (dtype, rows, width) in product(limits, shapes):
        if rows * width * dtype.itemsize > limits[kind]:
            continue
        one = kind(here.group, here.device, dtype, width, limits[kind])
        for seed in range(5):  # the sets of slots take turns
            x = here.drawn(rows, width, dtype=dtype, seed=10 * seed + here.rank)
            weight = here.drawn(width, dtype=dtype, seed=50 + seed)
            residual = here.drawn(rows, width, dtype=dtype, seed=90 + seed)
            ours, theirs = residual.clone(), residual.clone()
            if not one.fuses(x):
                yield f"{dtype}, {rows} x {width}: it is not fused"
            out = one.all_reduce_norm(x, ours, Norm(weight, EPS))
            if rows < 100 and dtype == torch.bfloat16:
                for share in ((1, width), (128, 128)):
                    if not quantised(one, x, residual.clone(), weight, share, out):
                        yield f"{kind.__name__}, {rows} x {width}, {share}: FP8 is another"
            wanted = fused.add_rms_norm(one.all_reduce(x), theirs, weight, EPS)
            near = torch.allclose(out, wanted, rtol=4 * torch.finfo(dtype).eps, atol=1e-4)
            if not near or not torch.equal(ours, theirs):
                yield f"{dtype}, {rows} x {width}: the norm, or the residual, is another"
            if here.differ(out) or here.differ(ours):
                yield f"{dtype}, {rows} x {width}: the ranks differ"


def quantised(
    one: Any, x: Tensor, residual: Tensor, weight: Tensor, share: tuple[int, int], plain: Tensor
) -> bool:
    """Whether the norm in FP8, for a matrix of which a scale is of `share`, is that of `plain`."""
    from workers.engines.native.kernels import fused_fp8

    reads = Fp8Weight(plain, plain, share)  # of which only the share is looked at
    made, wanted = (
        one.all_reduce_norm(x, residual, Norm(weight, EPS, reads)),
        fused_fp8.quantize(plain, reads),
    )
    differ = (made.values.float() != wanted.values.float()).float().mean()
    return bool(torch.allclose(made.scales, wanted.scales, rtol=1e-2) and differ < 0.01)


class Replayed:
    """Calls on values that change from step to step: integers, so that sums are exact. step, bad:
    [1], steps and wrong elements so far, on the device."""

    def __init__(self, here: Here) -> None:
        self.here, width, dtype = here, 5120, torch.bfloat16
        self.sums = [
            peer_sum(op, here.group, here.device, dtype, width, most)
            for op, most in every_way(here.ranks)
        ]
        self.weight = here.drawn(width, dtype=dtype, seed=3)
        self.matrix = torch.zeros(width, INPUTS, dtype=dtype, device=here.device)
        at = torch.arange(width, device=here.device)
        self.matrix[at, at % INPUTS] = (1 + at // INPUTS % 3).to(dtype)
        self.step, self.bad = (
            torch.zeros(1, dtype=torch.int64, device=here.device) for _ in range(2)
        )

    def values(self, rank: int, salt: int, rows: int, width: int | None = None) -> Tensor:
        """[rows, width], of a rank in this step."""
        at = torch.arange(rows * (width or len(self.weight)), device=self.here.device)
        values = (at + self.step * 5 + 3 * rank + salt) % 7
        return values.view(rows, -1).to(self.weight.dtype)

    def check(self, out: Tensor, expected: Tensor) -> None:
        self.bad += (out != expected).sum()

    def alone(self, sum_of: Callable[[Tensor], Tensor], salt: int, rows: int) -> None:
        ranks = range(self.here.ranks)
        expected = sum(self.values(rank, salt, rows) for rank in ranks)
        self.check(sum_of(self.values(self.here.rank, salt, rows)), expected)

    def normed(self, one: PeerSum, salt: int, rows: int) -> None:
        from workers.engines.native.kernels import fused

        residual, ranks = self.values(99, salt, rows), range(self.here.ranks)
        expected = sum(self.values(rank, salt, rows) for rank in ranks) + residual
        mine = self.values(self.here.rank, salt, rows)
        out = one.all_reduce_norm(mine, residual, Norm(self.weight, EPS))
        self.check(residual, expected)
        self.check(out, fused.rms_norm(expected, self.weight, EPS))

    def handed(self, one: PeerSum, salt: int, rows: int) -> None:
        """A product that hands itself over, in BF16 and in FP8."""
        from workers.engines.native.kernels import fp8, fused, fused_fp8, products

        parts = [self.values(rank, salt, rows, INPUTS) for rank in range(self.here.ranks)]
        total, mine = sum(parts) @ self.matrix.T, parts[self.here.rank]
        to = one.outbox(rows)
        assert to is not None
        ones = torch.ones(rows, 1, device=self.here.device)
        quantised = fp8.Fp8(mine.to(torch.float8_e4m3fn), ones)
        scales = torch.ones(len(self.matrix), 1, device=self.here.device)
        matrix = Fp8Weight(self.matrix.to(torch.float8_e4m3fn), scales, (1, INPUTS))
        for is_fp8 in (False, True, False):
            residual = self.values(99, salt, rows)
            expected = residual + total
            if is_fp8:
                went = fused_fp8.handed(quantised, matrix, mine.dtype, to)
            else:
                went = products.handed(mine, self.matrix, to)
            assert went
            out = one.all_reduce_norm(to, residual, Norm(self.weight, EPS))
            self.check(residual, expected)
            self.check(out, fused.rms_norm(expected, self.weight, EPS))

    def run(self, sizes: tuple[int, ...]) -> None:
        """A step: of each kind an odd number of calls, so that a step begins with the set of slots
        that the one before ended with."""
        for salt, rows in enumerate(sizes):
            for one in filter(lambda one: IS_HOPPER and one.outbox(rows), self.sums):
                self.handed(one, salt, rows)
                if not one.takes(self.values(0, salt, rows)):
                    continue
                self.normed(one, salt + 1, rows)  # these have the same slots
                self.normed(one, salt + 2, rows)
            for one in filter(lambda one: one.takes(self.values(0, salt, rows)), self.sums):
                self.alone(one.all_reduce, salt, rows)
                if one.fuses(self.values(0, salt, rows)):
                    self.normed(one, salt, rows)
                else:
                    self.alone(one.all_reduce, salt + 1, rows)
        self.step += 1

    def captured(self, sizes: tuple[int, ...]) -> torch.cuda.CUDAGraph:
        self.run(sizes)  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.run(sizes)
        return graph


def replays(here: Here) -> Iterator[str]:
    """A graph of three sizes, over and over, while now one rank is late and now another."""
    calls = Replayed(here)
    graph = calls.captured((1, 32, 3))
    for number in range(REPLAYS):
        if number % (7 * here.ranks) == 7 * here.rank:
            torch.cuda._sleep(200_000)
        graph.replay()
    torch.cuda.synchronize()
    if bad := int(calls.bad):
        yield f"{bad} elements are wrong"
    if int(calls.step) != REPLAYS + 1:
        yield f"{int(calls.step)} steps"


def graphs_in_turn(here: Here) -> Iterator[str]:
    """Two graphs, and calls without one, in changing order."""
    calls = Replayed(here)
    large, small = calls.captured((32, 2, 17)), calls.captured((1,))
    for number in range(200):
        if number % (3 * here.ranks) == 3 * here.rank:
            torch.cuda._sleep(200_000)
        if number % 5 == 4:
            calls.run((5,))
        (large if number % 3 else small).replay()
    torch.cuda.synchronize()
    if bad := int(calls.bad):
        yield f"{bad} elements are wrong"


def groups_beside_each_other(here: Here) -> Iterator[str]:
    """As those of two stages: each pair of ranks sums by itself."""
    pairs = [(first, first + 1) for first in range(0, here.ranks, 2)]
    groups = [dist.new_group(list(pair)) for pair in pairs]
    own = groups[here.rank // 2]
    calls = Replayed(Here(here.rank % 2, 2, here.device, own))
    graph = calls.captured((1, 8, 3))
    for _ in range(100 * (1 + here.rank // 2)):
        graph.replay()
    torch.cuda.synchronize()
    if bad := int(calls.bad):
        yield f"{bad} elements are wrong"


CHECKS = (sums_alone, sums_with_a_norm, replays, graphs_in_turn, groups_beside_each_other)


def every_check(rank: int, device: torch.device) -> dict[str, list[str]]:
    """What each check says is wrong."""
    from workers.engines.native.kernels import early

    group = dist.group.WORLD
    assert group is not None
    here, found = Here(rank, group.size(), device, group), dict[str, list[str]]()
    for soon, check in product(LAUNCHES, CHECKS):
        early.settle(soon)
        name = named(check, soon)
        if rank == 0:
            print(f"{group.size()} ranks: {name}", file=sys.stderr, flush=True)
        found[name] = list(check(here))
    early.settle(False)
    return found


def named(check: Callable[..., object], soon: bool) -> str:
    """A check of kernels that are launched so."""
    return f"{check.__name__}{', launched early' if soon else ''}"


@pytest.fixture(scope="module", params=RANKS)
def found(request: pytest.FixtureRequest) -> list[dict[str, list[str]]]:
    return on_each_gpu(request.param, every_check, timeout_s=120)


@pytest.mark.parametrize("check", [named(of, soon) for soon, of in product(LAUNCHES, CHECKS)])
def test_an_all_reduce_is_right(check: str, found: list[dict[str, list[str]]]) -> None:
    assert [of_rank[check] for of_rank in found] == [[]] * len(found)


Way = tuple[str, bool]  # a kind of `--allreduce`, and whether kernels are launched early


def served(rank: int, device: torch.device, layout: str) -> dict[Way, tuple[str, RankReport]]:
    """What carried the tensors, and the report, of each way."""
    from workers.actor import Worker

    asked = [*product(("nccl", *SHARING), LAUNCHES)]
    workers = [Worker(rank, rank) for _ in asked]
    addresses = [worker.open_store("127.0.0.1") if rank == 0 else ("", 0) for worker in workers]
    dist.broadcast_object_list(addresses, 0)
    dist.destroy_process_group()
    return {
        way: _served(*each, way, layout)
        for way, *each in zip(asked, workers, addresses, strict=True)
    }


def _served(worker: Any, address: tuple[str, int], way: Way, layout: str) -> Any:
    from workers.engines.native import build

    kind, soon = way
    if kind == "two-shot":  # messages of this model are small: they are to be summed in two shots
        build.ways = lambda kind, ranks: ways(kind, ranks)[1:]
    switches = Switches(allreduce=kind, pdl="on" if soon else "off")
    plan = engine_plan(layout, SHAPE, None, WORK, device="cuda", switches=switches)
    try:
        built = worker.build("torch", plan, address)
        return str(built.settings["collectives"]), worker.run(WORK)
    finally:
        worker.close()


def test_the_engine_makes_the_same_tokens_and_its_sums_are_seen() -> None:
    """Every call that was made was seen, fused or not; and they are as many, and as large."""
    by_rank = on_each_gpu(RANKS[-1], served, f"tp{RANKS[-1]}", timeout_s=80)
    made, counted, fused = {}, {}, {}
    for way in by_rank[0]:
        reports = [of_rank[way][1] for of_rank in by_rank]
        made[way] = tokens(reports)
        counted[way] = [one.collectives.to_pylist() for one in reports]
        spans = [row for one in reports for row in one.spans.to_pylist()]
        calls = [row for row in spans if row["kind"] == "all_reduce"]
        assert calls
        assert all(row["axis"] == "tp" and row["end_us"] is not None for row in calls)
        fused[way] = sum(bool(row["fused"]) for row in calls) / len(calls)
    assert all(one == made["nccl", False] for one in made.values())
    assert all(one == counted["nccl", False] for one in counted.values())
    # Two a layer, but for the last; and the embedding. The norm is with the sum in one shot between
    # two ranks alone.
    share = 1 - 2 / (2 * SHAPE.num_layers + 1)
    for (kind, _), found in fused.items():
        expected = share if kind == "one-shot" and RANKS[-1] == 2 else 0
        assert found == pytest.approx(expected), kind
    assert by_rank[0]["one-shot", False][0] == "one-shot and nccl"
