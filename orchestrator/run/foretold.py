"""What the cost model says of a run, before it is made."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from orchestrator.analysis.predicted import Interval, Predicted
from orchestrator.experiment import Cell, Experiment, is_changed
from orchestrator.node import datasheet
from orchestrator.predict import factors
from orchestrator.predict.calibrated import of_table
from orchestrator.predict.factors import PEERS, EngineFactors
from orchestrator.predict.hardware import of_sheet
from orchestrator.predict.interval import Estimate
from orchestrator.predict.load import Arrival, Asked
from orchestrator.predict.passes import Placed, Setting
from orchestrator.predict.prediction import NOT_MEASURED, NoPrediction, predict
from orchestrator.predict.replica import Lengths
from workers.messages import EnginePlan, Work
from workers.rows import nothing


def foretold(
    cell: Cell,
    experiment: Experiment,
    plan: EnginePlan,
    work: Work,
    device_name: str | None,
    calibration: pa.Table | None,
) -> Predicted:
    """The prediction of a run of `work`, or the reason why there is none. calibration: table
    FABRIC."""
    gpu, engine = datasheet.name_of(device_name), cell.deployment.engine
    if gpu is None or datasheet.ceilings(gpu) is None:
        return _none(f"no rates of {device_name or 'the device'} are known")
    known = factors.load()
    if engine not in known.engines:
        return _none(f"no factors were fitted for the engine {engine}")
    if other := _other(cell, experiment, plan, work):
        return _none(other)
    measured = of_table(calibration, gpu) if calibration is not None else None
    node = measured or known.calibrations.get(gpu)
    hardware = of_sheet(gpu, known.attainable, node, plan.placement.num_ranks)
    mine = known.engines[engine]
    sums = plan.switches.allreduce or ("nccl" if mine.sums == PEERS else mine.sums)
    early = (plan.switches.products, plan.switches.pdl) == ("triton", "on")
    placed = Placed(plan.placement, plan.model, plan.precision, hardware, sums, early)
    found = predict(Setting(placed, mine), plan.layout, _asked(experiment, plan, work, mine))
    if isinstance(found, NoPrediction):
        return _none(found.reason)
    return Predicted(
        output_throughput=found.output_throughput.value,
        output_throughput_ends=_ends(found.output_throughput),
        median_ttft_ms=found.ttft_ms.value if found.ttft_ms else None,
        median_ttft_ms_ends=_ends(found.ttft_ms),
        median_tpot_ms=found.tpot_ms.value,
        median_tpot_ms_ends=_ends(found.tpot_ms),
        device_ms_per_token=found.device_ms_per_token,
        error_pct=None,
        missed=None,
        reason=NOT_MEASURED if NOT_MEASURED in found.outside else None,
    )


def _other(cell: Cell, experiment: Experiment, plan: EnginePlan, work: Work) -> str | None:
    """What makes a run another one than those that are predicted; None where nothing does."""
    lengths = {(len(one.prompt), one.output_len) for one in work.requests}
    reasons = {
        f"without {cell.deployment.ablation}": cell.deployment.ablation != "none",
        "its layout spans nodes": plan.spans_nodes,
        "an engine that is not as it is by itself": is_changed(experiment),
        "requests of several lengths": len(lengths) != 1 and not work.is_open,
        "conversations": any(one.after is not None for one in work.requests),
        "outputs may end early": not work.ignore_eos,
    }
    return next((why for why, is_so in reasons.items() if is_so), None)


def _asked(experiment: Experiment, plan: EnginePlan, work: Work, mine: EngineFactors) -> Asked:
    one = work.requests[0]
    is_own = not mine.separate and experiment.chunked_prefill_size is None
    most = mine.prefill_tokens if is_own else plan.prefill_tokens
    if work.is_open:
        requests = ((one.arrival_s, len(one.prompt), one.output_len) for one in work.requests)
        arrivals = tuple(Arrival(*request) for request in requests)
        return Asked.opened(arrivals, work.max_concurrency, most)
    lengths = Lengths(len(one.prompt), one.output_len, most)
    return Asked(lengths, work.max_concurrency, len(work.requests))


def _ends(found: Estimate | None) -> Interval:
    return Interval(low=found.low, high=found.high) if found else nothing(Interval)


def _none(reason: str) -> Predicted:
    return replace(nothing(Predicted), reason=reason)
