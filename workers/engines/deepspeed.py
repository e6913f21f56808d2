"""The engine `deepspeed`: AutoTP (`tpN`), replicas (`dpN`) and ZeRO-3 inference (`dpNzero3`) of a
Transformers model.

AutoTP makes its own cuts. Those of a layer must be the layout's; the embedding is replicated and
the head is cut by its inputs.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from workers.engines.deepspeed_layouts import communication_axis, refusal
from workers.engines.transformers import CHOICES
from workers.messages import Built, EnginePlan, RankReport, Work
from workers.versions import versions

if TYPE_CHECKING:
    from workers.engines.batch import Batcher, Ledger
    from workers.engines.deepspeed_meter import Meter
    from workers.rank import RankContext


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
        """None, or why DeepSpeed cannot run the plan."""
        if importlib.util.find_spec("deepspeed") is None:
            return "it is not installed: pip install 'shard-orchestrator[deepspeed]'"
        return refusal(plan)

    def choices(self, plan: EnginePlan) -> Mapping[str, Sequence[str]]:
        """Its switches, and the values of each: those of the model that it changes."""
        return {**CHOICES, "allreduce": ("nccl" if plan.device == "cuda" else "gloo",)}

    def build(self, context: RankContext, plan: EnginePlan) -> Built:
        """Build the model empty and fill this rank's part. Under tp and zero3 the whole model is at
        no time in one place."""
        from workers.device import device_name
        from workers.engines.deepspeed_private import stored

        start = time.perf_counter()
        self._context = context
        model = self._model(context, plan)
        self._batcher = _batcher(model, context, plan)
        size = sum(stored(p).numel() * p.element_size() for p in model.parameters())
        return Built(
            rank=context.rank,
            load_s=time.perf_counter() - start,
            capture_s=None,
            weight_bytes=size,
            kv_tokens=None,
            device_name=device_name(context.device),
            versions=versions(),
        )

    def run(self, work: Work) -> RankReport:
        """Serve this replica's share in waves. Under ZeRO-3 every rank takes part in every rank's
        steps.

        Collectives are timed only on a CPU, where a call blocks. On a GPU an observed run of
        several ranks has no spans.
        """
        from workers.device import memory_swing, peak_memory, reset_peak
        from workers.engines.batch import Ledger
        from workers.engines.deepspeed_meter import Meter

        assert self._context is not None, "build first"
        context, axis = self._context, self._axis()
        ledger = Ledger(context.rank, context.at("dp"))
        observed = work.observe and (axis is None or context.device.type == "cpu")
        meter = Meter(axis or "", timed=observed)
        before = reset_peak([context.device])
        self._serve(work, ledger, meter)
        return RankReport(
            rank=context.rank,
            requests=ledger.requests() if context.at("tp") == 0 else None,
            steps=ledger.steps(),
            collectives=meter.table(context.rank),
            peak_memory_bytes=peak_memory([context.device]),
            memory_swing_bytes=memory_swing([context.device], before),
            spans=ledger.spans(meter.timed_calls, meter.blocked) if observed else None,
            began_s=ledger.origin,
        )

    def close(self) -> None:
        """Free the model, leave the process groups and put the environment back."""
        from workers.engines.transformers import release

        self._batcher = self._backend = None
        while self._undo:
            self._undo.pop()()
        if self._context is not None:
            release([self._context.device])
        self._context = None

    def _axis(self) -> str | None:
        assert self._batcher is not None, "build first"
        return communication_axis(self._batcher.plan)

    def _model(self, context: RankContext, plan: EnginePlan) -> Any:
        from workers.engines import deepspeed_process
        from workers.engines.transformers import reset_rotary

        axis = communication_axis(plan)
        self._undo.append(deepspeed_process.set_environment(context))
        with deepspeed_process.quiet():
            if axis is not None:
                self._backend = deepspeed_process.connect(context.device)
                self._undo.append(deepspeed_process.disconnect)
            # It imports deepspeed, so not before the environment is set.
            from workers.engines.deepspeed_models import auto_tp_model

            model = self._spread(context, plan) if axis == "dp" else auto_tp_model(context, plan)
        reset_rotary(model, context.device)
        return model

    def _spread(self, context: RankContext, plan: EnginePlan) -> Any:
        from workers.engines.deepspeed_models import zero_model

        model, destroy = zero_model(context, plan)
        self._undo.append(destroy)
        return model

    def _serve(self, work: Work, ledger: Ledger, meter: Meter) -> None:
        from workers.engines.batch import waves

        assert self._context is not None
        assert self._batcher is not None
        replicas = self._context.placement.degree("dp")
        shares = [work.share(i, replicas) for i in range(replicas)]
        rounds = max(len(waves(share)) for share in shares) if self._axis() == "dp" else 0
        self._batcher.on_phase = meter.set_phase
        self._context.barrier()  # so that their clocks start together
        with meter.attached(self._backend):
            self._batcher.serve(shares[ledger.replica], ledger, rounds)


def _batcher(model: Any, context: RankContext, plan: EnginePlan) -> Batcher:
    """Under ZeRO-3 the ranks agree on the end of each wave, since every step takes all of them."""
    from workers.engines.batch import Batcher
    from workers.engines.deepspeed_process import all_done

    made = Batcher(
        model, plan, context.device, progress=context.progress, reports=context.at("tp") == 0
    )
    if communication_axis(plan) == "dp":
        made.agree = lambda done: all_done(done, context.device)
    return made
