"""What the driver tells a worker and what a worker answers: pure data that crosses the process
boundary."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from strategies.placement import Placement
from strategies.shapes import ModelShape

if TYPE_CHECKING:
    import pyarrow as pa

# How a failure that a worker foresaw is told from a crash: the driver records the reason, not a
# traceback.
OUT_OF_MEMORY = "out_of_memory"


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """Everything an engine builds a deployment from. Lengths in tokens, `max_concurrency` in
    requests (whole layout)."""

    model: ModelShape
    layout: str
    placement: Placement
    checkpoint: str | None  # folder of safetensors; None = dummy weights
    dtype: str  # "float32", "bfloat16", "float16"
    device: Literal["cuda", "cpu"]
    max_concurrency: int
    max_len: int
    prefill_tokens: int  # most prompt tokens in one forward pass
    chunked_prefill: bool = True  # a prompt may be cut to fill the budget; else whole prompts only
    temperature: float = 0.0  # 0 = greedy
    seed: int = 0
    kv_tokens: int | None = None  # tokens of KV per replica; None = what the memory left holds
    timeout_s: float = 600.0  # of a collective, and of a run
    # "comm": collectives are left out, outputs are wrong; "p2p": NCCL without NVLink or PCIe peers
    ablation: str = "none"
    nsys_dir: str | None = (
        None  # where Nsight Systems, on each rank's node, puts what it saw; None: it does not watch
    )


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and the number of tokens to make for it. arrival_s: when it arrives in an open
    loop, since the run's start."""

    index: int
    prompt: tuple[int, ...]
    output_len: int
    arrival_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """One run: a closed loop that keeps `max_concurrency` requests in flight until all are served.

    Where requests have times of arrival the loop is open: none is let in before its time, or beyond
    `max_concurrency`.

    observe: take the step apart (profiler on GPU, timers on CPU); its timings are not for the
    summary.
    delay: (rank, seconds) by which one rank is held up in every step, to see where waiting for it
    is booked.
    """

    requests: tuple[Request, ...]
    max_concurrency: int
    ignore_eos: bool = True
    observe: bool = False
    delay: tuple[int, float] | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests arrive by the clock."""
        return any(request.arrival_s for request in self.requests)

    def share(self, replica: int, replicas: int) -> Work:
        """The part of one data-parallel replica: its slots of the closed loop, and the requests
        dealt to them.

        Request i belongs to slot i mod max_concurrency, slot s to replica s mod replicas, so a
        replica beyond the concurrency serves nothing and the sum in flight is what was asked.
        """
        slots = len(range(replica, self.max_concurrency, replicas))
        mine = tuple(
            r
            for i, r in enumerate(self.requests)
            if (i % self.max_concurrency) % replicas == replica
        )
        return replace(self, requests=mine, max_concurrency=slots)


@dataclass(frozen=True, slots=True)
class Built:
    """What building cost on one rank: seconds and bytes.

    capture_s: None where an engine captures no graphs. kv_tokens: per replica, None where it has no
    paged cache.
    """

    rank: int
    load_s: float
    capture_s: float | None
    weight_bytes: int
    kv_tokens: int | None
    device_name: str
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RankReport:
    """What one rank has to say of one run. Tables are in the schemas of `workers.records`.

    requests: only from the rank that sees the sampled tokens of its replica, else None.
    collectives: None where an engine cannot count them. spans: None unless observed, or where an
    engine cannot be.
    began_s: when the times in the tables were zero, by `time.perf_counter` of that process; None
    where an engine does not tell. telemetry: what was sampled beside the run; not an engine's
    business, it is added where the ranks' reports meet.
    fabric: only from the engine `calibration`.
    """

    rank: int
    requests: pa.Table | None
    steps: pa.Table
    collectives: pa.Table | None
    peak_memory_bytes: int
    spans: pa.Table | None = None
    began_s: float | None = None
    telemetry: pa.Table | None = None
    fabric: pa.Table | None = None
