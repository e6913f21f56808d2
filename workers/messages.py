"""The messages between the driver and a worker: plain data, sent from process to process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from strategies.placement import Placement
from strategies.precision import Precision
from strategies.shapes import ModelShape, TrainingLoad
from workers.records import AttentionTime
from workers.training_records import TrainingReport

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

# The reason of a failure that is foreseen; the driver records it instead of a traceback.
OUT_OF_MEMORY = "out_of_memory"
BROKEN = -1  # in place of a sampled token: its logits were not finite


class NotFinite(ArithmeticError):
    """Logits that are NaN or infinite: a run that makes them counts for nothing. The message says
    the step, the request, and where to look."""


@dataclass(frozen=True, slots=True)
class Switches:
    """How an engine does what can be done in several ways; None: in the way it has by itself.

    attention: "eager", all scores as a matrix; "sdpa", torch's `scaled_dot_product_attention`;
    "triton", over pages; "fa3", "fa3-prefill", "flashinfer", by a library; in training "cudnn" or
    "flash", torch's. "on" or "off": cuda_graphs, steps are captured; fusion, small operations share
    a kernel; overlap, one half of a large pass computes while sums of the other go on; pdl, kernels
    are launched early. batching: "continuous", or "static", each batch after the one before.
    chunked_prefill_size: prompt tokens to which prompts are cut, or "off". allreduce: what sums
    over tp: "shm", memory of a host, for every group; "one-shot", "two-shot", that of GPUs, for
    small messages. products: of few rows, by "triton" or "cublas".
    """

    attention: str | None = None
    cuda_graphs: str | None = None
    fusion: str | None = None
    batching: str | None = None
    chunked_prefill_size: str | None = None
    allreduce: str | None = None
    overlap: str | None = None
    products: str | None = None
    pdl: str | None = None

    @property
    def asked(self) -> dict[str, str]:
        """Those that are not left to the engine."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def settled(self, choices: Mapping[str, Sequence[str]]) -> Switches:
        """The same, those left to the engine by the first of its `choices`."""
        return Switches(**{name: values[0] for name, values in choices.items()} | self.asked)


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """Everything that an engine builds a deployment from.

    layout: its name, as "tp2pp2". checkpoint: a folder of safetensors, None for dummy weights.
    dtype: "float32", "bfloat16" or "float16". max_concurrency: requests in flight in the whole
    layout. max_len: tokens of the longest request, prompt and output. prefill_tokens: most prompt
    tokens in one forward pass. switches: how the engine does what can be done in several ways.
    temperature: 0 is greedy. timeout_s: seconds, of a collective and of a run. ablation: "none";
    "comm", in which collectives are left out and outputs are wrong; "p2p", in which NCCL goes
    without NVLink and PCIe peers. ablations: what is left out in other runs, compared with these.
    engine_args: settings of the engine's own, as given. nsys_dir: where Nsight Systems puts its
    reports on a rank's node, None where it does not watch. ncu_file: that of Nsight Compute.
    spans_nodes: no node has room for a whole replica, so the engine's process takes its devices by
    itself from the placement group. linked: NVLink joins the GPUs. capability: CUDA's, if of one
    generation, as (9, 0). quantization, kv_cache_dtype: see `Precision`. training: of a step.
    """

    model: ModelShape
    layout: str
    placement: Placement
    checkpoint: str | None
    dtype: str
    device: Literal["cuda", "cpu"]
    max_concurrency: int
    max_len: int
    prefill_tokens: int
    switches: Switches = Switches()
    temperature: float = 0.0
    seed: int = 0
    timeout_s: float = 600.0
    ablation: str = "none"
    ablations: tuple[str, ...] = ()
    engine_args: tuple[tuple[str, str], ...] = ()
    nsys_dir: str | None = None
    ncu_file: str | None = None
    spans_nodes: bool = False
    quantization: str = "none"
    kv_cache_dtype: str = "auto"
    training: TrainingLoad | None = None
    linked: bool = False
    capability: tuple[int, int] | None = None

    @property
    def precision(self) -> Precision:
        """In what weights, activations and KV are kept."""
        return Precision(self.dtype, self.quantization, self.kv_cache_dtype)

    @property
    def fastest_dtype(self) -> str:
        """The dtype of its fastest products. A CPU computes FP8 as the dtype beside it."""
        is_fp8 = self.quantization != "none" or (self.training is not None and self.training.is_fp8)
        return "float8_e4m3fn" if is_fp8 and self.device == "cuda" else self.dtype

    @property
    def chunked_prefill(self) -> bool:
        """Whether a prompt may be cut to fill a forward pass."""
        return self.switches.chunked_prefill_size != "off"


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, as token ids, and the number of tokens to make for it.

    arrival_s: when it arrives in an open loop, in seconds since the start of the run. after: the
    index of an earlier request, with whose end it arrives instead: the turn of a conversation
    before it, which no other one is after. Its prompt is known all the same, as what was said there
    is given.
    """

    index: int
    prompt: tuple[int, ...]
    output_len: int
    arrival_s: float = 0.0
    after: int | None = None


class Dealt(NamedTuple):
    """What is dealt to one replica: conversations, by their places in the work, and seats. A
    request alone is a conversation of one."""

    conversations: list[int]
    seats: int


def dealt(conversations: int, seats: int, replica: int, replicas: int) -> Dealt:
    """The share of one data-parallel replica of conversations and of seats, which are the places of
    the closed loop: `max_concurrency` of them in the whole layout.

    Conversation i belongs to seat i mod `seats`, and seat s to replica s mod `replicas`. So as many
    are in flight as were asked for, and no replica has more of either than replica 0.
    """
    mine = [i for i in range(conversations) if i % seats % replicas == replica]
    return Dealt(mine, len(range(replica, seats, replicas)))


@dataclass(frozen=True, slots=True)
class Work:
    """One run: a closed loop that keeps `max_concurrency` requests in flight until all are served.

    Where requests have times of arrival the loop is open: none is let in before its time, or beyond
    `max_concurrency`. One that is after another is let in when that one has ended; until then it
    takes none of the `max_concurrency` places. `workers.line.Line` has the order.

    ignore_eos: go on past an end-of-text token, up to the asked length. reuse: where a request may
    find the beginning of its prompt in an engine's prefix cache: in none (None), in the turns
    before it ("conversation"), or in any request of the run ("all"). observe: take the steps apart,
    with a profiler on a GPU and with timers on a CPU; the summary uses no timing of such a run.
    delay: (rank, seconds), one rank is held up by so much in every step, to see where waiting for
    it is booked. count: at the end take the fullest decode step once more, for Nsight Compute.
    """

    requests: tuple[Request, ...]
    max_concurrency: int
    ignore_eos: bool = True
    reuse: Literal["conversation", "all"] | None = None
    observe: bool = False
    delay: tuple[int, float] | None = None
    count: bool = False

    @property
    def title(self) -> str:
        """What it is, in words."""
        return f"run of {len(self.requests)} requests, {self.max_concurrency} at once"

    @property
    def is_open(self) -> bool:
        """Whether requests arrive by the clock."""
        return any(request.arrival_s for request in self.requests)

    @property
    def num_conversations(self) -> int:
        """Requests that are after no other one."""
        return sum(request.after is None for request in self.requests)

    @property
    def arriving(self) -> str:
        """What arrives, in words: conversations where requests are turns of them."""
        return "conversations" if self.awaited() else "requests"

    @property
    def request_rate(self) -> float | None:
        """Conversations that arrive a second until the last one, mean; None in a closed loop."""
        last = max((request.arrival_s for request in self.requests), default=0.0)
        return self.num_conversations / last if last else None

    def awaited(self) -> dict[int, int]:
        """Request -> the one that it is after, of those that are after one, by their indices."""
        return {one.index: one.after for one in self.requests if one.after is not None}

    def first_turns(self) -> dict[int, int]:
        """Request -> the first one of its conversation, by their indices."""
        first: dict[int, int] = {}
        for one in self.requests:
            first[one.index] = one.index if one.after is None else first[one.after]
        return first

    def cache_of(self) -> dict[int, int]:
        """Request -> a number in common with those in whose prompts it may find its beginning."""
        if self.reuse == "conversation":
            return self.first_turns()
        return {one.index: 0 if self.reuse == "all" else one.index for one in self.requests}

    def share(self, replica: int, replicas: int) -> Work:
        """The part of one data-parallel replica, by `dealt`: all turns of its conversations."""
        first = self.first_turns()
        places = list(dict.fromkeys(first.values()))
        mine = dealt(len(places), self.max_concurrency, replica, replicas)
        chosen = {places[i] for i in mine.conversations}
        requests = tuple(one for one in self.requests if first[one.index] in chosen)
        return replace(self, requests=requests, max_concurrency=mine.seats)


@dataclass(frozen=True, slots=True)
class TrainingWork:
    """One run: `steps` optimizer steps, from the first weights on. tokens: int32 [sequences,
    seq_len + 1], what it trains on (`packed.Packed`); None: random ones. save: the folder for what
    is trained. like: that of the model, whose config and tokenizer come with it. state: where all
    that a stopped run goes on from is kept, every `interval` steps and at the end. resume: such a
    state, to begin with. No runs: observe, take steps apart; write, fill `save` after a run."""

    steps: int
    tokens: NDArray[np.int32] | None = field(default=None, compare=False, repr=False)
    save: str | None = None
    write: bool = False
    like: str | None = None
    state: str | None = None
    interval: int = 0
    resume: str | None = None
    observe: bool = False

    @property
    def title(self) -> str:
        """What it is, in words."""
        return f"run of {self.steps} optimizer steps"


@dataclass(frozen=True, slots=True)
class Process:
    """Where Ray put the process of a worker: Ray's id of the node, its GPU there as torch counts (0
    on CPU), its process id, and the descriptor that tells where it stands (-1: nowhere)."""

    node_id: str
    device_index: int
    pid: int
    progress_fd: int = -1


@dataclass(frozen=True, slots=True)
class Built:
    """What one rank has built.

    load_s: seconds until the weights were loaded. capture_s: seconds that capturing graphs took,
    None where an engine captures none. weight_bytes: of this rank. kv_tokens: tokens that the KV
    cache of the replica holds, None without a paged cache. versions: of packages, by name.
    settings: of an engine with settings of its own, those that are not its defaults and what it
    made of them; of our own, what its collectives go through. remark: what a user is to know."""

    rank: int
    load_s: float
    capture_s: float | None
    weight_bytes: int
    kv_tokens: int | None
    device_name: str
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    remark: str | None = None


@dataclass(frozen=True, slots=True)
class RankReport:
    """What one rank reports of one run. Its tables are those of `workers.records`.

    requests: from the one rank of a replica that has its sampled tokens, None from the others.
    collectives: None where an engine cannot count them. spans: None unless the run was observed,
    or where an engine cannot observe one. unobserved: why an observed run has no spans, where that
    is no reason to let it fail. began_s: when the times of the tables are zero, in seconds of that
    process' `time.perf_counter`; None where an engine does not say. memory_swing_bytes: by how much
    allocated memory rose above what it was before; None where the device does not count it.
    attention: of the fullest step of each phase of an observed run, where an engine runs it alone.
    telemetry: no engine fills it, it is added where the reports meet. fabric: only from the engine
    `calibration`. training: of a run that trains, where `steps` is empty.
    """

    rank: int
    requests: pa.Table | None
    steps: pa.Table
    collectives: pa.Table | None
    peak_memory_bytes: int
    spans: pa.Table | None = None
    unobserved: str | None = None
    began_s: float | None = None
    memory_swing_bytes: int | None = None
    attention: tuple[AttentionTime, ...] = ()
    telemetry: pa.Table | None = None
    fabric: pa.Table | None = None
    training: TrainingReport | None = None
