"""What is fitted of an engine, and how far a prediction may be off: kept in factors.json, which
`benchmarks/fit_predictions.py` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.analysis.roofline import CALIBRATED, Ceilings
from orchestrator.errors import UserError
from orchestrator.predict.hardware import Attainable, Calibration, Curve

# What an engine sums over tp with beside NCCL and `hardware.CUSTOM`: `strategies.peer_sums`.
PEERS = "peers"
NEWEST = "9999"  # later than any run was started, in ISO 8601
FILE = Path(__file__).with_name("factors.json")
# The cells of a model that factors are fitted on: these layouts, with few requests.
FITTED_LAYOUTS, FITTED_MOST = ("tp1", "tp2", "pp2"), 32
# What a prediction has an interval of.
METRICS = ("output_throughput", "ttft_ms", "tpot_ms")


@dataclass(frozen=True, slots=True)
class Fitted:
    """Where factors were fitted: ranges [least, most], or the values that were seen.

    rows: requests in a decode pass. stage_bytes: weights that a GPU reads in a pass. tp, pp: their
    degrees. input_len: tokens of a prompt. kv_share: bytes of KV over those of weights in a decode
    pass, from 0 on.
    """

    gpus: tuple[str, ...]
    quantizations: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Few:
    """Factors of a pass of at most `rows` tokens whose products are Triton's and whose kernels are
    launched early, in place of those of the same names. gpus: where they were fitted, on replicas
    of at most `most_ranks`. sum_s: of a sum with a norm that products hand over, whatever its size;
    None: they hand none over. since: when the first run was started that has these kernels, in ISO
    8601.
    """

    rows: int
    stream: float
    layer_s: float
    gap_s: float
    gpus: tuple[str, ...]
    provenance: str
    sum_s: float | None = None
    most_ranks: int = 1
    since: str = ""


@dataclass(frozen=True, slots=True)
class EngineFactors:
    """What distinguishes an engine from the hardware's limits.

    stream, kv: share of the memory's rate at which it streams weights, and keys and values. math:
    share of the arithmetic rate of its matrix products. overlap: exponent of the norm that joins
    streaming and computing; infinite where the shorter one is hidden. layer_s: of the small kernels
    of a layer. gap_s, eager_gap_s: between kernels, for each layer, in a graph and launched one by
    one. collective: time of its collectives over NCCL's. skew_s: wait for the last rank, for each
    collective. turn_s: from a stage's pass to the next one's start, while several micro-batches are
    in flight. start_s: from when requests come to the first pass;
    longest_start_s: the longest that was seen on another host, or 0.
    lanes: whether a pipeline has a micro-batch for each stage in flight; else one in all. separate:
    prompts and decoded tokens never share a pass. graph_tokens: most tokens of a pass with prompts
    that runs in a graph. prefill_tokens: most prompt tokens of a pass, unless it is said.
    idle_power, busy_power: shares of a GPU's power limit, the second one while it computes; None:
    not fitted. half_width: metric -> log-ratio, see `interval.estimate`. sums: what it sums over tp
    with where NVLink joins the GPUs. norm_s: of a norm that is in the kernel of the sum before it,
    which counts as communication, and else is one of the small kernels. kinds_s: of a layer, by
    which kernels of one kind differ from what the factors of another kind say. few: None: it has no
    other kernels for few tokens. earlier: those of the kernels before, in the order of their runs.
    """

    engine: str
    stream: float
    math: float
    kv: float
    overlap: float
    layer_s: float
    gap_s: float
    eager_gap_s: float
    collective: float
    skew_s: float
    turn_s: float
    start_s: float
    lanes: bool
    separate: bool
    graph_tokens: int
    prefill_tokens: int
    idle_power: float | None
    busy_power: float | None
    half_width: Mapping[str, float]
    fitted: Fitted
    provenance: str
    sums: str = "nccl"
    norm_s: float = 0.0
    kinds_s: float = 0.0
    longest_start_s: float = 0.0
    few: Few | None = None
    earlier: tuple[Few, ...] = ()

    def at(self, started: str) -> EngineFactors:
        """With the kernels for few tokens that a run had that was started then, in ISO 8601."""
        if self.few is None:
            return self
        every = (*self.earlier, self.few)
        of_then = [few for few in every if few.since <= started] or every[:1]
        return replace(self, few=of_then[-1])


@dataclass(frozen=True, slots=True)
class Factors:
    """Of every engine, and what calibrations say of GPUs."""

    engines: Mapping[str, EngineFactors]
    attainable: Attainable
    calibrations: Mapping[str, Calibration]

    def of(self, engine: str) -> EngineFactors:
        """Raises UserError where none were fitted of this engine."""
        if engine not in self.engines:
            raise UserError(
                f"no factors were fitted for the engine {engine}; predicted are "
                f"{', '.join(self.engines)}"
            )
        return self.engines[engine]


@cache
def load(file: Path = FILE) -> Factors:
    """Read a file of factors."""
    data = json.loads(file.read_text(encoding="utf-8"))
    return Factors(
        engines={name: _engine(name, one) for name, one in data["engines"].items()},
        attainable=Attainable(**data["attainable"]),
        calibrations={name: _calibration(one) for name, one in data["calibrations"].items()},
    )


def _engine(name: str, data: Mapping[str, Any]) -> EngineFactors:
    fitted = dict(data["fitted"])
    ranges = {key: (low, high) for key, (low, high) in fitted["ranges"].items()}
    where = Fitted(tuple(fitted["gpus"]), tuple(fitted["quantizations"]), ranges)
    few = data["few"] and _few(data["few"])
    earlier = tuple(map(_few, data["earlier"]))
    return EngineFactors(
        **{**data, "engine": name, "fitted": where, "few": few, "earlier": earlier}
    )


def _few(data: Mapping[str, Any]) -> Few:
    return Few(**{**data, "gpus": tuple(data["gpus"])})


def _calibration(data: Mapping[str, Any]) -> Calibration:
    curves = tuple(
        Curve(one["op"], one["ranks"], one["mode"], tuple((b, s) for b, s in one["points"]))
        for one in data["curves"]
    )
    stated = Ceilings(data["hbm"], data["flops"], data["cache_bytes"], CALIBRATED)
    return Calibration(stated, curves, data["source"], data["fp8_stream"])
