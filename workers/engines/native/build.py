"""What one rank of our engine is made of: weights, cache, and the runner with its captured
graphs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from strategies.memory import RESERVE_BYTES, UTILIZATION, kv_bytes_per_token, workspace_bytes
from strategies.peer_sums import HANDED_ROWS, RANKS, each_way, ways
from strategies.precision import Precision
from strategies.shapes import DTYPE_BYTES
from strategies.traffic import FLAGGED, ONE_SHOT
from workers.backends import GroupSum, PeerBackend
from workers.communicator import Communicator
from workers.engines.native.cache import PagedCache
from workers.engines.native.graphs import decode_sizes, prompt_sizes
from workers.engines.native.kernels import fa3, kernels_of
from workers.engines.native.kernels.reference import FP8
from workers.engines.native.loading import Loader
from workers.engines.native.model import Decoder, NamedDecoder
from workers.engines.native.pages import PAGE, pages_for
from workers.engines.native.runner import Runner
from workers.engines.native.sampling import Sampler
from workers.engines.native.support import SHARING, WAITLESS, switches_of
from workers.messages import EnginePlan, dealt
from workers.process import boot_id
from workers.rank import RankContext
from workers.units import format_bytes
from workers.weights import open_source

T = TypeVar("T")
GRAPHS_BYTES = 1 << 30  # of the reserve, kept for CUDA graphs whatever else it went into


def make_communicator(context: RankContext, plan: EnginePlan) -> Communicator:
    """The rank's collectives. Raises RuntimeError where its ranks of tp are to share memory of
    their GPUs, and cannot."""
    communicator, switches = Communicator(context, plan.ablation == "comm"), switches_of(plan)
    kind, group = str(switches.allreduce), context.groups.get("tp")
    if kind in SHARING and group is not None and group.size() > 1:
        check_peers(context.device, group, kind)
        hidden, dtype = plan.model.hidden_size, getattr(torch, plan.dtype)
        tokens = max(plan.prefill_tokens, seats_of(plan), *prompt_sizes(plan.prefill_tokens, 0))
        width = hidden if switches.fusion == "on" else 0
        largest = tokens * hidden * dtype.itemsize
        sums = group_sums(kind, group, context.device, dtype, width, largest)
        communicator.backend = PeerBackend(context, kind, {"tp": sums})
    return communicator


def group_sums(
    kind: str,
    group: dist.ProcessGroup,
    device: torch.device,
    dtype: torch.dtype,
    width: int,
    largest: int,
) -> list[GroupSum]:
    """What sums over a group by a kind of `ways`. width: elements of a row that may be normed with
    its sum; 0: none is. largest: bytes of the largest message that there is."""
    # One program has a row. In one shot it sends it to each other rank, which is faster than two
    # kernels where that is one rank.
    normed, among = width if group.size() == 2 else 0, ways(kind, group.size())
    return [peer_sum(op, group, device, dtype, normed, min(most, largest)) for op, most in among]


def peer_sum(
    op: str,
    group: dist.ProcessGroup,
    device: torch.device,
    dtype: torch.dtype,
    width: int,
    most: int,
) -> GroupSum:
    """One of `ways`. width: elements of a row, where the norm behind a sum is in its kernel; else
    0."""
    from workers.engines.native.kernels.flagged import Flagged  # Triton takes long
    from workers.engines.native.kernels.symmetric import OneShot, TwoShot

    if op == FLAGGED:
        return Flagged(group, device, dtype, width, most)
    if op == ONE_SHOT:
        return OneShot(group, device, dtype, width, most, HANDED_ROWS)
    return TwoShot(group, device, dtype, most)


def check_peers(device: torch.device, group: dist.ProcessGroup, kind: str) -> None:
    """Raise RuntimeError unless this GPU reaches the memory of all others of the group."""
    places: list[tuple[str, int]] = [("", 0)] * group.size()
    dist.all_gather_object(places, (boot_id(), device.index), group=group)
    for boot, index in places:
        if boot != boot_id():
            why = "its ranks are on several nodes"
        elif index != device.index and not torch.cuda.can_device_access_peer(device.index, index):
            why = f"GPU {device.index} does not reach the memory of GPU {index}"
        else:
            continue
        raise RuntimeError(f"--allreduce {kind} cannot be: of a group of tp {why}; use nccl")


def peer_sums(device: torch.device, group: dist.ProcessGroup) -> list[tuple[str, GroupSum, int]]:
    """What sums messages in bfloat16 over a group, to be measured, by name, and the bytes of its
    largest one; nothing on each rank where one of them cannot have it."""
    if device.type != "cuda" or group.size() not in RANKS:
        return []

    def reaches() -> bool:
        check_peers(device, group, "one-shot")
        return True

    def made() -> list[tuple[str, GroupSum, int]]:
        among = each_way(group.size())
        return [(op, peer_sum(op, group, device, torch.bfloat16, 0, n), n) for op, n in among]

    if not _if_all_can(reaches, group):
        return []
    return _if_all_can(made, group) or []


def _if_all_can(make: Callable[[], T], group: dist.ProcessGroup) -> T | None:
    """What it makes; None on each rank where it raises RuntimeError on one, which that one warns
    of."""
    made, can = None, [False] * group.size()
    try:
        made = make()
    except RuntimeError as error:
        warnings.warn(str(error), stacklevel=2)
    dist.all_gather_object(can, made is not None, group=group)
    return made if all(can) else None


def load_decoder(context: RankContext, plan: EnginePlan, communicator: Communicator) -> Decoder:
    """The rank's decoder, with its weights."""
    switches = switches_of(plan)
    multiplies, early = switches.products == "triton", switches.pdl == "on"
    kernels = kernels_of(str(switches.attention), switches.fusion == "on", multiplies, early)
    load = Loader(open_source(plan.checkpoint, plan.model.fp8), plan, context, kernels)
    make = Decoder if plan.nsys_dir is None else NamedDecoder
    with torch.inference_mode():
        return make(load, communicator, kernels, plan.max_len)


def make_cache(context: RankContext, plan: EnginePlan, pages: int) -> PagedCache:
    """A KV cache in which requests can have `pages` pages."""
    device = context.device
    dtype = FP8 if plan.kv_cache_dtype == "fp8" else getattr(torch, plan.dtype)
    with torch.inference_mode():
        return PagedCache.allocate(plan.model, plan.placement, context.rank, pages, dtype, device)


def make_runner(
    plan: EnginePlan, communicator: Communicator, decoder: Decoder, cache: PagedCache
) -> Runner:
    """The runner of one rank. With CUDA graphs, one is captured for every batch size that a
    micro-batch can have, and for short prompts."""
    first, axis = decoder.first_logit, decoder.head_axis
    # Without collectives a layout computes something else, which need not be finite.
    checks = not communicator.ablated
    sampler = Sampler(communicator, first, axis, plan.temperature, plan.seed, checks, decoder.ends)
    seats = seats_of(plan)
    micro_batches = min(plan.placement.degree("pp"), seats)
    with torch.inference_mode():
        runner = Runner(decoder, cache, sampler, communicator, seats, plan.max_len)
        if switches_of(plan).cuda_graphs == "on":
            runner.capture(decode_sizes(-(-seats // micro_batches)), _prompt_sizes(plan, seats))
    return runner


def _prompt_sizes(plan: EnginePlan, seats: int) -> list[int]:
    """Prefill steps to capture. Attention over prompts in plain torch, as that of float32 is, waits
    for the device; that cannot be captured."""
    if plan.dtype == "float32" or switches_of(plan).attention not in WAITLESS:
        return []
    most = min(plan.prefill_tokens, seats * plan.max_len)
    return prompt_sizes(most, plan.model.layer_elements // plan.placement.degree("tp"))


def seats_of(plan: EnginePlan) -> int:
    """Requests that one replica serves at once, at most."""
    return dealt(0, plan.max_concurrency, 0, plan.placement.degree("dp")).seats


def room_for_pages(context: RankContext, plan: EnginePlan, most: int | None = None) -> int:
    """KV pages of this rank: what the memory left holds, but no more than the load can use, nor
    than `most`. The same on every rank.

    Raises torch.OutOfMemoryError where not even one request fits.
    """
    usable = seats_of(plan) * pages_for(plan.max_len)
    room = min(usable, _room(context, plan), usable if most is None else most)
    pages = context.smallest(int(room))
    if pages < pages_for(plan.max_len):
        left = max(pages, 0) * PAGE
        raise torch.OutOfMemoryError(
            f"room for {left} tokens of KV is left; one request needs {plan.max_len}"
            f"{_held(context.device)}"
        )
    return pages


def _room(context: RankContext, plan: EnginePlan) -> float:
    """KV pages that fit into what is left on this GPU after weights, the workspace of a forward
    pass and the reserve; on a CPU there is no limit."""
    if context.device.type != "cuda":
        return math.inf
    torch.cuda.empty_cache()  # memory that loading used is free, but not yet given back
    free, total = torch.cuda.mem_get_info(context.device)
    precision, placement, rank = plan.precision, plan.placement, context.rank
    workspace = workspace_bytes(placement, plan.model, rank, precision, plan.prefill_tokens)
    workspace += attention_bytes(plan, rank)
    left = bytes_for_pages(free, total, torch.cuda.memory_allocated(context.device)) - workspace
    return left // (PAGE * kv_bytes_per_token(placement, plan.model, rank, precision))


def bytes_for_pages(free: int, total: int, weights: int) -> int:
    """Bytes of a GPU of `total` bytes, of which `free` are free, beside `weights` and the reserve.
    CUDA's context, NCCL's buffers and pieces left by loading are in the reserve, and there by now;
    graphs come later. As `strategies.memory.budget` plans it, unless more than that is taken."""
    taken = total - free - weights
    return free - int(total * (1 - UTILIZATION)) - max(RESERVE_BYTES - taken, GRAPHS_BYTES)


def _held(device: torch.device) -> str:
    """What holds the memory of this GPU, as the rest of a message."""
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    used, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    return (
        f" (of {format_bytes(total)} this process uses {format_bytes(used)}, keeps "
        f"{format_bytes(reserved - used)} in pieces, and {format_bytes(total - free - reserved)} "
        "are CUDA's or another's)"
    )


def attention_bytes(plan: EnginePlan, rank: int) -> int:
    """Bytes that attention takes beside the cache, in one layer at a time. That in plain torch: the
    contexts of all seats out of their pages, twice as they are laid out anew, and of "eager" the
    scores of a pass over a prompt, with their softmax in float32. "fa3": what the parts of contexts
    come to, in float32."""
    kind, plain = switches_of(plan).attention, Precision(plan.dtype)
    if kind in ("triton", "fa3-prefill", "flashinfer"):
        return 0
    placement, model = plan.placement, plan.model
    heads = -(-model.num_heads // placement.degree("tp"))
    if kind == "fa3":
        return fa3.parts(plan.max_len) * seats_of(plan) * heads * (model.head_dim + 1) * 4
    layers = sum(len(stage.layers) for stage in placement.stages_of(rank))
    token = kv_bytes_per_token(placement, model, rank, plain) // layers
    contexts = 2 * seats_of(plan) * plan.max_len * token
    scores = heads * plan.prefill_tokens * plan.max_len * (2 * DTYPE_BYTES[plan.dtype] + 4)
    return contexts + (scores if kind == "eager" else 0)
