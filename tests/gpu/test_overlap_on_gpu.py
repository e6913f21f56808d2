"""`--overlap on` between GPUs: the same tokens and bytes, and one half of a large pass computes
while sums of the other go on."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.distributed as dist
from allreduce import on_each_gpu
from ranks import BASE, FAMILIES, engine_plan, tokens

from strategies import ModelShape
from workers.messages import RankReport, Request, Switches, Work

RANKS = 4 if torch.cuda.device_count() >= 4 else 2
pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs or more")
SHAPE = ModelShape.from_config(
    {
        **BASE,
        **FAMILIES["Llama"],
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "architectures": ["LlamaForCausalLM"],
    },
    "llama",
)
KINDS = ("off", "on")


def work() -> Work:
    of = random.Random(5)
    lengths = [1500, 100, 2300, 2048, 2048, 2048]
    prompts = [tuple(of.randrange(8, SHAPE.vocab_size) for _ in range(size)) for size in lengths]
    requests = tuple(Request(index, prompt, 5) for index, prompt in enumerate(prompts))
    return Work(requests, max_concurrency=6, observe=True)


def served(rank: int, device: torch.device) -> dict[str, RankReport]:
    from workers.actor import Worker

    workers = [Worker(rank, rank) for _ in KINDS]
    addresses = [worker.open_store("127.0.0.1") if rank == 0 else ("", 0) for worker in workers]
    dist.broadcast_object_list(addresses, 0)
    dist.destroy_process_group()
    each = zip(KINDS, workers, addresses, strict=True)
    return {kind: _served(worker, address, kind) for kind, worker, address in each}


def _served(worker: Any, address: tuple[str, int], overlap: str) -> RankReport:
    asked = Switches(overlap=overlap)
    sizes = {"prefill_tokens": 2048, "device": "cuda"}
    plan = engine_plan(f"tp{RANKS}", SHAPE, None, work(), switches=asked, **sizes)
    try:
        worker.build("torch", plan, address)
        report: RankReport = worker.run(work())
        return report
    finally:
        worker.close()


@pytest.fixture(scope="module")
def by_rank() -> list[dict[str, RankReport]]:
    return on_each_gpu(RANKS, served, timeout_s=120)


def test_the_tokens_and_the_bytes_are_the_same(by_rank: list[dict[str, RankReport]]) -> None:
    apart, together = ([of_rank[kind] for of_rank in by_rank] for kind in KINDS)
    assert tokens(apart) == tokens(together)
    counted = [one[0].collectives.to_pylist() for one in (apart, together)]
    size, same = (sum(row["bytes"] for row in rows) for rows in counted)
    calls, halves = (sum(row["calls"] for row in rows) for rows in counted)
    assert same == size
    assert calls < halves


def test_sums_go_on_while_the_other_half_computes(by_rank: list[dict[str, RankReport]]) -> None:
    """Of each sum of a pass the part in which a kernel computes."""
    hidden = {kind: _hidden(by_rank[0][kind].spans.to_pylist()) for kind in KINDS}
    assert hidden["off"] == pytest.approx(0, abs=0.02)
    assert hidden["on"] > 0.3


def _hidden(spans: list[dict[str, Any]]) -> float:
    """Of the time of all-reduces of more than 4 MiB the share in which something computes."""
    sums = [row for row in spans if row["kind"] == "all_reduce" and (row["bytes"] or 0) > 4 << 20]
    busy = [row for row in spans if row["kind"] == "compute"]
    assert sums
    assert busy
    total = sum(one["end_us"] - one["start_us"] for one in sums)
    shared = sum(
        max(0.0, min(one["end_us"], other["end_us"]) - max(one["start_us"], other["start_us"]))
        for one in sums
        for other in busy
    )
    return float(shared / total)
