"""The engine `deepspeed`: AutoTP (`tpN`), replicas (`dpN`) and ZeRO-3 inference (`dpNzero3`) of a
Transformers model.

AutoTP makes its own cuts: those of a layer are the layout's, the embedding is replicated and the
head is cut by its inputs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from workers.intervals import Span
from workers.messages import Built, EnginePlan, RankReport, Work
from workers.records import COLLECTIVES, PREFILL, Call, CollectiveRow
from workers.versions import versions

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from workers.engines.batch import Batcher
    from workers.rank import RankContext

# Method of DeepSpeed's backend -> the operation, and its argument whose bytes are the message as
# nccl-tests counts it.
COUNTED = {
    "all_reduce": ("all_reduce", "tensor"),
    "inference_all_reduce": ("all_reduce", "tensor"),
    "all_gather": ("all_gather", "tensor_list"),
    "all_gather_into_tensor": ("all_gather", "output_tensor"),
    "all_gather_coalesced": ("all_gather", "output_tensors"),
    "broadcast": ("broadcast", "tensor"),
}
# The projections that AutoTP cuts by their outputs, and by their inputs.
COLUMNS = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
ROWS = {"o_proj", "down_proj"}


class DeepSpeedEngine:
    """One process a rank. Requests are served in waves by the `generate` of the model that
    DeepSpeed has changed."""

    processes: Literal["per_rank", "single"] = "per_rank"

    def __init__(self) -> None:
        self._context: RankContext | None = None
        self._batcher: Batcher | None = None
        self._backend: Any = None
        self._undo: list[Callable[[], None]] = []

    def supports(self, plan: EnginePlan) -> str | None:
        if importlib.util.find_spec("deepspeed") is None:
            return "it is not installed: pip install 'shard-orchestrator[deepspeed]'"
        axes = {axis for axis, degree in plan.placement.mesh if degree > 1}
        if "pp" in axes:
            return "it does not run pipeline stages (pp) in inference"
        if axes - {"tp", "dp"}:
            return f"it does not know the axis {min(axes - {'tp', 'dp'})}"
        if axes == {"tp", "dp"}:
            return "it does not combine tensor parallelism with replicas (tp with dp)"
        unknown = {key for key, _ in plan.placement.options} - {"engine", "zero_stage"}
        if unknown:
            return f"it has no option {min(unknown)}"
        stage = plan.placement.option("zero_stage")
        if stage is not None and (stage != "3" or axes != {"dp"}):
            return (
                f"it runs zero3 over dp and nothing else, not zero{stage} over "
                f"{'+'.join(axes) or 'one rank'}"
            )
        return _uneven(plan) or (_cut_otherwise(plan) if stage is None else None)

    def build(self, context: RankContext, plan: EnginePlan) -> Built:
        """Build the model empty and fill this rank's part; under tp and zero3 the whole model is at
        no time in one place."""
        from workers.device import device_name
        from workers.engines.batch import Batcher
        from workers.engines.transformers import reset_rotary

        start = time.perf_counter()
        self._context = context
        self._undo.append(_set_environment(context))
        with _quiet():
            if _axis(plan) is not None:
                self._backend = _connect()
                self._undo.append(_disconnect)
            model = self._zero(context, plan) if _axis(plan) == "dp" else _auto_tp(context, plan)
        reset_rotary(model, context.device)
        self._batcher = Batcher(
            model, plan, context.device, progress=context.progress, reports=context.at("tp") == 0
        )
        if _axis(plan) == "dp":
            self._batcher.agree = lambda done: _all_done(done, context.device)
        size = sum(
            getattr(p, "ds_tensor", p).numel() * p.element_size() for p in model.parameters()
        )
        return Built(
            context.rank,
            time.perf_counter() - start,
            None,
            size,
            None,
            device_name(context.device),
            versions(),
        )

    def run(self, work: Work) -> RankReport:
        """Serve this replica's share in waves. Under ZeRO-3 every rank takes part in every rank's
        steps.

        Collectives are timed on CPU alone, where a call blocks; on a GPU an observed run of several
        ranks has no spans.
        """
        from workers.device import peak_memory, reset_peak
        from workers.engines.batch import Ledger, waves

        assert self._context is not None, "build first"
        assert self._batcher is not None
        context, axis = self._context, _axis(self._batcher.plan)
        replicas = context.placement.degree("dp")
        shares = [work.share(i, replicas) for i in range(replicas)]
        rounds = max(len(waves(share)) for share in shares) if axis == "dp" else 0
        ledger = Ledger(context.rank, context.at("dp"))
        observed = work.observe and (axis is None or context.device.type == "cpu")
        meter = Meter(axis or "", timed=observed)
        self._batcher.on_phase = meter.set_phase
        reset_peak([context.device])
        _align(context)
        with meter.attached(self._backend):
            self._batcher.serve(shares[ledger.replica], ledger, rounds)
        return RankReport(
            context.rank,
            ledger.requests() if context.at("tp") == 0 else None,
            ledger.steps(),
            meter.table(context.rank),
            peak_memory([context.device]),
            ledger.spans(meter.timed_calls, meter.blocked) if observed else None,
            began_s=ledger.origin,
        )

    def close(self) -> None:
        from workers.engines.transformers import release

        self._batcher = self._backend = None
        while self._undo:
            self._undo.pop()()
        if self._context is not None:
            release([self._context.device])
        self._context = None

    def _zero(self, context: RankContext, plan: EnginePlan) -> Any:
        """A ZeRO-3 model: one block at a time is made whole on every rank and cut at once, so no
        more than a block is whole."""
        import deepspeed

        from workers.engines.transformers import empty_model, fill, reset_rotary
        from workers.weights import open_source

        config = _zero_config(plan)
        model, source = empty_model(plan), open_source(plan.checkpoint)
        made: dict[Any, Any] = {}
        layers = [f"model.layers.{i}" for i in range(plan.model.num_layers)]
        for name in ("model.embed_tokens", *layers, "model.norm", "lm_head"):
            block = model.get_submodule(name)
            fill(block, name, source, lambda _: context.device, made)
            deepspeed.zero.Init(module=block, config_dict_or_path=config)
        reset_rotary(model, context.device)
        engine, *_ = deepspeed.initialize(model=model, config=config)
        self._undo.append(engine.destroy)
        return engine.module.eval()


@dataclass(slots=True)
class Meter:
    """Counts the collectives of DeepSpeed's backend by phase, and times them where a call blocks.

    timed_calls: start to completion of each; blocked: when the caller was held up, starting a
    collective or waiting for one.
    """

    axis: str
    timed: bool
    phase: str = PREFILL
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    sizes: Counter[tuple[str, str]] = field(default_factory=Counter)
    timed_calls: list[Call] = field(default_factory=list)
    blocked: list[Span] = field(default_factory=list)

    def set_phase(self, phase: str) -> None:
        self.phase = phase

    @contextlib.contextmanager
    def attached(self, backend: Any) -> Iterator[None]:
        """Watch `backend` (None: there is nothing to watch). Everything in `deepspeed.comm` ends in
        a method of it."""
        methods = [method for method in COUNTED if hasattr(backend, method)]
        for method in methods:
            setattr(backend, method, self._counted(getattr(backend, method), *COUNTED[method]))
        try:
            yield
        finally:
            for method in methods:
                delattr(backend, method)

    def table(self, rank: int) -> pa.Table:
        return COLLECTIVES.make(
            CollectiveRow(
                rank=rank,
                phase=phase,
                op=op,
                axis=self.axis,
                calls=calls,
                bytes=self.sizes[phase, op],
            )
            for (phase, op), calls in sorted(self.calls.items())
        )

    def _counted(self, method: Callable[..., Any], op: str, argument: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start, size, phase = (
                time.perf_counter(),
                _nbytes(args[0] if args else kwargs[argument]),
                self.phase,
            )
            self.calls[self.phase, op] += 1
            self.sizes[self.phase, op] += size
            work = method(*args, **kwargs)
            end = time.perf_counter()
            self.blocked.append((start, end))
            if self.timed and hasattr(work, "get_future"):
                work.get_future().add_done_callback(
                    lambda _: self._completed(op, size, phase, start)
                )
                return Watched(work, self)
            self.timed_calls.append(Call(op, self.axis, size, phase, start, end))
            return work

        return call

    def _completed(self, op: str, size: int, phase: str, start: float) -> None:
        self.timed_calls.append(Call(op, self.axis, size, phase, start, time.perf_counter()))


@dataclass(slots=True)
class Watched:
    """A collective under way, whose `wait` is timed."""

    work: Any
    meter: Meter

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = self.work.wait(*args, **kwargs)
        self.meter.blocked.append((start, time.perf_counter()))
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.work, name)


@dataclass(frozen=True, slots=True)
class TensorRanks:
    """What DeepSpeed asks of a `mpu`: with it, it makes no process group of its own."""

    group: Any

    def get_model_parallel_group(self) -> Any:
        return self.group


def _axis(plan: EnginePlan) -> str | None:
    """The mesh axis that DeepSpeed communicates over, None where it does not."""
    if plan.placement.degree("tp") > 1:
        return "tp"
    return "dp" if plan.placement.option("zero_stage") else None


def _uneven(plan: EnginePlan) -> str | None:
    model, degree = plan.model, plan.placement.degree("tp")
    if model.num_kv_heads % degree:
        return (
            f"its AutoTP cannot share a KV head between ranks: {model.num_kv_heads} KV heads over "
            f"tp={degree}"
        )
    if model.hidden_size % degree:
        return (
            f"its AutoTP cuts the head by its {model.hidden_size} inputs, which do not divide "
            f"over tp={degree}"
        )
    return None


def _cut_otherwise(plan: EnginePlan) -> str | None:
    """Why not, where the layout cuts a layer in another way than AutoTP will; embedding and head
    are not asked about."""
    degree = plan.placement.degree("tp")
    for name, shape in plan.model.parameters():
        if not name.startswith("model.layers."):
            continue
        module, kind = name.split(".")[-2:]
        dim = 0 if module in COLUMNS else 1 if module in ROWS and kind == "weight" else None
        part = tuple(size // degree if i == dim else size for i, size in enumerate(shape))
        if any(
            plan.placement.shard(name, shape, rank) != _box(shape, part, rank)
            for rank in range(degree)
        ):
            return f"it makes its own cuts, and this layout cuts {name} otherwise"
    return None


def _auto_tp(context: RankContext, plan: EnginePlan) -> Any:
    """A replica, cut by AutoTP over the tp axis while it is still empty and only then filled, each
    rank its own slices."""
    import deepspeed
    import torch

    from workers.engines.transformers import empty_model
    from workers.weights import open_source

    group = context.groups.get("tp")
    cut = {"tp_group": group, "mpu": TensorRanks(group)} if group is not None else {}
    # A grain above 1 would cut narrow layers unevenly.
    tensor_parallel = {"tp_size": plan.placement.degree("tp"), "tp_grain_size": 1, **cut}
    engine = deepspeed.init_inference(
        empty_model(plan),
        tensor_parallel=tensor_parallel,
        dtype=getattr(torch, plan.dtype),
        replace_with_kernel_inject=False,
    )
    shapes, source = dict(plan.model.parameters()), open_source(plan.checkpoint)
    for name, part in engine.module.named_parameters():
        # AutoTP unties the head from the embedding.
        name = name if name in shapes else "model.embed_tokens.weight"
        source.read(
            name, shapes[name], _box(shapes[name], tuple(part.shape), context.at("tp")), part.data
        )
    return engine.module.eval()


def _box(whole: tuple[int, ...], part: tuple[int, ...], index: int) -> tuple[slice, ...]:
    """Where part `index` of an even cut lies in the whole."""
    return tuple(
        slice(0, w) if w == p else slice(index * p, (index + 1) * p)
        for w, p in zip(whole, part, strict=True)
    )


def _zero_config(plan: EnginePlan) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": plan.dtype == "bfloat16"},
        "fp16": {"enabled": plan.dtype == "float16"},
        "zero_optimization": {
            "stage": 3,
            # Vectors stay whole on every rank, matrices are gathered for each use whatever their
            # size.
            "stage3_param_persistence_threshold": plan.model.hidden_size,
            # Its linear function saves memory in training alone, and replaces torch's for the whole
            # process.
            "memory_efficient_linear": False,
        },
    }


def _set_environment(context: RankContext) -> Callable[[], None]:
    """Set what DeepSpeed reads instead of asking; returns what undoes it. The ranks have met: no
    one goes to the address."""
    before = dict(os.environ)
    wanted = {
        "DS_ACCELERATOR": context.device.type,
        "RANK": str(context.rank),
        "WORLD_SIZE": str(context.placement.num_ranks),
        "LOCAL_RANK": str(
            context.device.index if context.device.index is not None else context.rank
        ),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    os.environ.update(wanted)

    def undo() -> None:
        for name in wanted:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)

    return undo


def _connect() -> Any:
    """DeepSpeed's backend, over the process group that there is."""
    import deepspeed

    # Its shared-memory all-reduce for CPUs is compiled at first use (a compiler, a minute, a lock
    # that outlives a killed process) and leaves files in /dev/shm; without it the calls go to
    # torch.distributed.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    deepspeed.init_distributed(auto_mpi_discovery=False)
    return deepspeed.comm.comm.cdb


def _disconnect() -> None:
    """Leave the process groups, and have DeepSpeed forget them."""
    import deepspeed
    import torch.distributed as dist

    if dist.is_initialized():
        deepspeed.comm.destroy_process_group()


def _align(context: RankContext) -> None:
    """Start the clocks of all ranks together."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier(device_ids=[context.device.index] if context.device.type == "cuda" else None)


def _all_done(done: bool, device: torch.device) -> bool:
    """Whether every rank is done: what `synced_gpus` asks in each step, but through DeepSpeed,
    where it is counted."""
    import deepspeed
    import torch

    waiting = torch.tensor([0 if done else 1], device=device)
    deepspeed.comm.all_reduce(waiting)
    return not waiting.item()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the user's terminal what DeepSpeed prints as it builds, and torch's word on the old
    names it uses."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _nbytes(message: Any) -> int:
    return (
        sum(map(_nbytes, message))
        if isinstance(message, (list, tuple))
        else message.numel() * message.element_size()
    )
