"""Fit what predictions need of an engine, and say how far they are off where nothing was fitted.

    python benchmarks/fit_predictions.py docs/results/2xh100/qwen2.5-32b \\
        --fabric docs/results/2xh100 --fabric docs/results/4xh200 \\
        --few docs/results/1xh200/techniques-qwen2.5-32b \\
        --few docs/results/2xh200/handed-qwen2.5-32b \\
        --vllm docs/results/2xh200/engines-qwen2.5-32b \\
        --slow-host docs/results/2xh100/engines-qwen2.5-32b \\
        --published benchmarks/published.csv \\
        --held-out "2 x H200 llama-70b=docs/results/2xh200/llama-70b@docs/results/2xh200" \\
        --held-out "4 x H200=docs/results/peers-4xh200.csv"

Writes orchestrator/predict/factors.json and the table of docs/predictions.md; with --check it fits
nothing, writes nothing, and prints how far off the factors that are kept are. A few numbers of
physical meaning are fitted, by least squares on relative errors and with a weak pull to where each
begins; cells above `factors.FITTED_MOST` requests, and layouts of other degrees, are left for the
check. What passes of few rows have of their own is fitted last, on cells that have it, with
everything else as it is: of each kind of kernels that there was, the newest last. A cell is
predicted by those that it had.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from orchestrator.analysis import load as results
from orchestrator.experiment import SCENARIOS
from orchestrator.node import datasheet, fabric
from orchestrator.plan import models
from orchestrator.predict import factors as kept
from orchestrator.predict.calibrated import calibration
from orchestrator.predict.factors import NEWEST, PEERS, EngineFactors, Few, Fitted
from orchestrator.predict.hardware import CUSTOM, Attainable, Calibration, Hardware, of_sheet
from orchestrator.predict.interval import seen_of
from orchestrator.predict.passes import DECODE, Placed, Setting, Work
from orchestrator.predict.prediction import Asked, Prediction, predict, with_sums
from orchestrator.predict.replica import Lengths, micro_batches
from strategies import Layout, Load, Topology, plan_layout
from strategies.precision import Precision
from workers.rows import grouped

# What an engine sums over tp with in results that do not say it.
UNSAID = {"vllm": CUSTOM}
# Most prompt tokens of a pass: where results do not say it; of vLLM as a class, not as a server.
UNSAID_TOKENS, CLASS_TOKENS = 2048, 16384
PAGE = Path(__file__).resolve().parents[1] / "docs" / "predictions.md"
PAGE_WIDTH = 118
START, END = "<!-- held out: begin -->", "<!-- held out: end -->"
# Relative errors that are as large as the model is wrong anyway: of a step, of reading prompts, of
# a part of a step.
WHOLE, PROMPTS, PART = 0.02, 0.05, 0.06
# One run of another engine: between two nodes such rows differ by so much (nodes A and B of
# peers-2xh200.csv), in which no start was repeated.
NODES = 0.04
PULL = 0.5  # of the logarithm of a factor from where it begins
# Where the fit begins: what the engine's own figures say by eye, and what is known of it.
BEGIN = {
    "torch": EngineFactors(
        engine="torch",
        stream=0.95,
        math=0.85,
        kv=0.6,
        overlap=3.0,
        layer_s=30e-6,
        gap_s=5e-6,
        eager_gap_s=25e-6,
        collective=1.0,
        skew_s=0.7e-6,
        turn_s=200e-6,
        start_s=0.0,
        lanes=True,
        separate=True,
        graph_tokens=1024,
        prefill_tokens=2048,
        idle_power=None,
        busy_power=None,
        half_width=dict.fromkeys(kept.METRICS, 0.0),
        fitted=Fitted((), (), {}),
        provenance="",
        sums=PEERS,
    )
}
# vLLM: one batch goes through all stages of a pipeline while prompts fit in one pass (the bubble
# that is observed of it says so), 8192 prompt tokens in a pass, as a server has them on an H100.
BEGIN["vllm"] = replace(
    BEGIN["torch"],
    engine="vllm",
    lanes=False,
    separate=False,
    prefill_tokens=8192,
    start_s=20e-3,
    sums=CUSTOM,
    norm_s=2e-6,
)
# rows: FEW_ROWS of workers/engines/native/kernels/early.py.
BEGIN_FEW = Few(rows=64, stream=0.97, layer_s=23e-6, gap_s=0.7e-6, gpus=(), provenance="")
# Shares of a rate of the hardware: no engine is faster, so none is above 1.
SHARES = frozenset({"stream", "math", "kv"})
# What is fitted. Of vLLM, what its steps tell apart; the others are those of torch.
FREE = {
    "torch": (
        "stream",
        "math",
        "kv",
        "overlap",
        "layer_s",
        "gap_s",
        "eager_gap_s",
        "collective",
        "skew_s",
        "turn_s",
    ),
    "vllm": ("stream", "math", "layer_s", "gap_s", "collective", "norm_s", "skew_s", "start_s"),
}
FREE_FEW = ("stream", "layer_s", "gap_s")
Begin = TypeVar("Begin", EngineFactors, Few)


@dataclass(frozen=True, slots=True)
class Cell:
    """What was measured of one layout and load: metric -> median. origin: where it is kept. early:
    whether kernels of few rows are launched early, and multiply in Triton. prefill_tokens: most
    prompt tokens of a pass; None: as the engine has it by itself. started: when its experiment
    was, which says which kernels it had: see `EngineFactors.at`."""

    origin: str
    engine: str
    gpu: str
    model: str
    layout: str
    precision: Precision
    scenario: str
    lengths: tuple[int, int]
    concurrency: int
    num_prompts: int
    measured: Mapping[str, float]
    allreduce: str = "nccl"
    early: bool = False
    prefill_tokens: int | None = None
    started: str = NEWEST

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.engine} {self.model} {self.layout} c{self.concurrency}"


def cells_of(folder: Path) -> Iterator[Cell]:
    """The cells below a folder of results, whole layouts without an ablation."""
    for found in results.load([folder]):
        runs = [one for one in found.runs if one.status == "completed"]
        for key, same in grouped(runs, lambda one: one.cell).items():
            if key.ablation == "none":
                started = found.manifest.get("started_at", NEWEST)
                yield replace(_cell(str(folder), key, same), started=started)


def _cell(origin: str, key, runs) -> Cell:
    at = runs[0].conditions
    gpu = datasheet.name_of(at.device_name)
    assert gpu is not None, f"no data sheet of {at.device_name} is known"
    values = {
        "output_throughput": lambda one: one.throughput.output_throughput,
        "decode_ms": lambda one: one.throughput.decode_ms_per_step,
        "ttft_ms": lambda one: one.latency.ttft.median,
        "tpot_ms": lambda one: one.latency.tpot.median,
        "compute_ms": lambda one: one.step.decode.compute.ms,
        "transfer_ms": lambda one: one.step.decode.exposed_transfer.ms,
        "wait_ms": lambda one: one.step.decode.exposed_wait.ms,
        "fused_ms": lambda one: one.step.decode.fused.ms,
        "gap_ms": lambda one: one.step.decode.launch_gap.ms,
        "joules": lambda one: one.energy.joules_per_output_token,
        "kv_tokens": lambda one: one.memory.kv_tokens,
        "weight_bytes": lambda one: one.memory.weight_bytes,
        "peak_bytes": lambda one: one.memory.peak_memory_bytes,
    }
    measured = {}
    for name, value in values.items():
        seen = [float(v) for v in map(value, runs) if v is not None]
        if seen:
            measured[name] = median(seen)
    return Cell(
        origin,
        key.engine,
        gpu,
        key.model,
        key.strategy,
        Precision(key.dtype, *_forms(key.quantization)),
        key.scenario,
        (at.input_len, at.output_len),
        key.max_concurrency,
        at.num_prompts,
        measured,
        at.settings.allreduce or UNSAID.get(key.engine, "nccl"),
        (at.settings.products, at.settings.pdl) == ("triton", "on"),
        _prefill_tokens(at.settings.chunked_prefill_size),
    )


def _prefill_tokens(said: str | None) -> int | None:
    """As the column `chunked_prefill_size` says it: a number, or "own"."""
    if said is None:
        return UNSAID_TOKENS
    return int(said) if said.isdigit() else None


def _forms(quantization: str) -> tuple[str, str]:
    parts = quantization.split("+")
    weights = next((one for one in parts if one not in ("none", "kv-fp8")), "none")
    return weights, "fp8" if "kv-fp8" in parts else "auto"


def peers_of(file: Path, gpu: str, engine: str = "vllm") -> Iterator[Cell]:
    """The rows of a table of another engine; a batch of one prompt each, closed."""
    with file.open(encoding="utf-8") as text:
        for row in csv.DictReader(text):
            if row["engine"] != engine or not row["decode_ms_per_step"]:
                continue
            count = int(row["max_concurrency"])
            measured = {
                "output_throughput": float(row["output_throughput"]),
                "decode_ms": float(row["decode_ms_per_step"]),
                "prefill_ms": 1e3 * float(row["prefill_s"]),
            }
            lengths = SCENARIOS[row["scenario"]]
            yield Cell(
                f"{file.name}{' ' + row['node'] if 'node' in row else ''}",
                engine,
                gpu,
                row["model"],
                row["strategy"],
                Precision("bfloat16", row["quantization"]),
                row["scenario"],
                lengths,
                count,
                count,
                measured,
                UNSAID.get(engine, "nccl"),
                prefill_tokens=CLASS_TOKENS,
            )


class Bench:
    """Predicts cells; layouts are planned once."""

    def __init__(self, attainable: Attainable, calibrations: Mapping[str, Calibration]) -> None:
        self.attainable, self._calibrations = attainable, calibrations
        self._planned: dict[tuple, tuple] = {}

    def with_calibrations(self, more: Mapping[str, Calibration]) -> Bench:
        """The same on a node that was calibrated."""
        return Bench(self.attainable, {**self._calibrations, **more})

    def hardware(self, gpu: str) -> Hardware:
        """As `plan` takes it."""
        return of_sheet(gpu, self.attainable, self._calibrations.get(gpu), 8)

    def setting(self, cell: Cell, factors: EngineFactors) -> tuple[Setting, Layout]:
        """What the cell was run as."""
        key = (cell.model, cell.layout, cell.gpu, cell.precision, cell.allreduce, cell.early)
        if key not in self._planned:
            shape = models.resolve(cell.model, "dummy").shape
            count = math.prod(int(n) for n in _numbers(cell.layout))
            hardware = self.hardware(cell.gpu)
            topology = Topology.uniform(count, hardware.memory_bytes or 0, cell.gpu)
            layout = plan_layout(
                cell.layout, shape, Load(*cell.lengths, cell.concurrency), topology
            )
            placed = Placed(layout.placement, shape, cell.precision, hardware, *key[-2:])
            self._planned[key] = (placed, layout)
        placed, layout = self._planned[key]
        return Setting(placed, factors.at(cell.started)), layout

    def asked(self, cell: Cell, factors: EngineFactors) -> Asked:
        """Its load."""
        lengths = Lengths(*cell.lengths, cell.prefill_tokens or factors.prefill_tokens)
        return Asked(lengths, cell.concurrency, cell.num_prompts)

    def prediction(self, cell: Cell, factors: EngineFactors) -> Prediction:
        """Raises ValueError where there is none."""
        setting, layout = self.setting(cell, factors)
        found = predict(setting, layout.name, self.asked(cell, factors))
        if not isinstance(found, Prediction):
            raise ValueError(f"{cell.name}: {found.reason}")
        return found

    def predicted(self, cell: Cell, factors: EngineFactors) -> dict[str, float]:
        """Metric -> value, under the names that `measured` has."""
        setting, _ = self.setting(cell, factors)
        found = self.prediction(cell, factors)
        seats = -(-cell.concurrency // setting.placed.placement.degree("dp"))
        batch = seats / micro_batches(setting, seats)
        context = self.asked(cell, factors).lengths.context
        work = Work(DECODE, batch, batch, read=batch * context)
        setting = with_sums(setting)
        passes = [setting.pass_of(index, work) for index in range(len(setting.stages))]

        def mean(part: Callable) -> float:
            return 1e3 * sum(map(part, passes)) / len(passes)

        return {
            "output_throughput": found.output_throughput.value,
            "decode_ms": found.decode_ms_per_step,
            "ttft_ms": found.ttft_ms.value if found.ttft_ms else math.nan,
            "tpot_ms": found.tpot_ms.value,
            "prefill_ms": 1e3 * found.prefill_s,
            "compute_ms": mean(lambda one: one.compute),
            "transfer_ms": mean(lambda one: one.transfer),
            "comm_ms": mean(lambda one: one.communication),
            "gap_ms": mean(lambda one: one.gaps),
        }


def _numbers(layout: str) -> list[str]:
    return "".join(c if c.isdigit() else " " for c in layout).split()


def observed(cell: Cell) -> dict[str, tuple[float, float]]:
    """What the fit looks at: metric -> (measured, its relative error)."""
    names = {"decode_ms": WHOLE, "ttft_ms": PROMPTS, "prefill_ms": PROMPTS, "compute_ms": PART / 2}
    out = {name: (cell.measured[name], e) for name, e in names.items() if name in cell.measured}
    if "tp" in cell.layout and cell.measured.get("transfer_ms"):
        waited = cell.measured.get("wait_ms", 0.0)
        out["transfer_ms"] = (communication_ms(cell) - waited, PART)
        out["comm_ms"] = (communication_ms(cell), PART)
    if "gap_ms" in cell.measured:
        out["gap_ms"] = (cell.measured["gap_ms"], 2 * PART)
    return out


def communication_ms(cell: Cell) -> float:
    """Of a decode step: transfer, wait, and kernels that also do something else, as an all-reduce
    with the norm behind it: `EngineFactors.norm_s`."""
    parts = ("transfer_ms", "wait_ms", "fused_ms")
    return sum(cell.measured.get(name, 0.0) for name in parts)


def fit(bench: Bench, cells: Sequence[Cell], begin: EngineFactors) -> EngineFactors:
    """The free factors of an engine."""
    return _fit(bench, cells, begin, FREE[begin.engine], lambda found: found)


def fit_few(
    bench: Bench, cells: Sequence[Cell], factors: EngineFactors, source: str
) -> EngineFactors:
    """The same factors with those of few rows; what was there before is of the kernels before."""
    begin, free, earlier = BEGIN_FEW, FREE_FEW, factors.earlier
    if any(cell.measured.get("fused_ms") for cell in cells):
        begin, free = replace(begin, sum_s=2e-6), (*free, "sum_s")
    found = _fit(bench, cells, begin, free, lambda few: replace(factors, few=few))
    since = ""
    if factors.few is not None:
        since, earlier = min(cell.started for cell in cells), (*earlier, factors.few)
    found = replace(
        found,
        gpus=tuple(sorted({cell.gpu for cell in cells})),
        provenance=f"{len(cells)} cells of {source}; benchmarks/fit_predictions.py",
        most_ranks=max(_ranks(bench, cell, factors) for cell in cells),
        since=since,
    )
    return replace(factors, few=found, earlier=earlier)


def _ranks(bench: Bench, cell: Cell, factors: EngineFactors) -> int:
    """Of a replica."""
    return bench.setting(cell, factors)[0].placed.placement.replica_ranks


def _fit(
    bench: Bench,
    cells: Sequence[Cell],
    begin: Begin,
    free: Sequence[str],
    whole: Callable[[Begin], EngineFactors],
) -> Begin:
    """Gauss-Newton with damping on the logarithms of the free fields. whole: the factors that have
    them."""
    x0 = np.log([getattr(begin, name) for name in free])

    def factors_at(x: np.ndarray) -> Begin:
        found = dict(zip(free, map(float, np.exp(x)), strict=True))
        return replace(begin, **{k: min(v, 1.0) if k in SHARES else v for k, v in found.items()})

    def residuals(x: np.ndarray) -> np.ndarray:
        factors = whole(factors_at(x))
        errors = []
        for cell in cells:
            predicted = bench.predicted(cell, factors)
            for name, (value, error) in observed(cell).items():
                errors.append(math.log(predicted[name] / value) / error)
        return np.array([*errors, *((x - x0) / PULL)])

    x, damping, at = x0.copy(), 1.0, residuals(x0)
    for _ in range(40):
        slopes = np.stack(
            [(residuals(x + step) - at) / 1e-4 for step in 1e-4 * np.eye(len(x))], axis=1
        )
        normal = slopes.T @ slopes
        move = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slopes.T @ at)
        tried = residuals(x + move)
        if tried @ tried < at @ at:
            better = 1 - (tried @ tried) / (at @ at)
            x, at, damping = x + move, tried, damping / 5
            if better < 1e-4:
                break
        else:
            damping *= 5
    return factors_at(x)


def power(bench: Bench, cells: Sequence[Cell], factors: EngineFactors) -> EngineFactors:
    """Shares of the power limit that explain the energy of tokens, by least squares; not below
    0."""
    rows, energy = [], []
    for cell in cells:
        if "joules" in cell.measured:
            found, limit = bench.prediction(cell, factors), bench.hardware(cell.gpu).power_w or 0.0
            value = cell.measured["joules"]
            spent = (found.device_ms_per_token, found.parts.compute)
            rows.append([limit * ms / 1e3 / value for ms in spent])
            energy.append(1.0)
    if len(rows) < 3:
        return factors
    idle, busy = np.linalg.lstsq(np.array(rows), np.array(energy), rcond=None)[0]
    return replace(factors, idle_power=max(float(idle), 0.0), busy_power=max(float(busy), 0.0))


def quantile(errors: Sequence[float], share: float = 0.9) -> float:
    """The error that the next case stays below with a probability of `share`: of n errors the
    ceil((n + 1) x share)-th (conformal prediction, Vovk 2005), the greatest one of few."""
    ordered = sorted(map(abs, errors))
    return ordered[min(math.ceil((len(ordered) + 1) * share), len(ordered)) - 1]


# No interval is narrower than what the fit takes the model to be wrong by.
LEAST = {
    "torch": {"output_throughput": WHOLE, "tpot_ms": WHOLE, "ttft_ms": PROMPTS},
    "vllm": {"output_throughput": NODES, "tpot_ms": NODES, "ttft_ms": PROMPTS},
}
# Metric of a prediction -> under what it is measured, the first that a cell has.
MEASURED_AS = {
    "output_throughput": ("output_throughput",),
    "ttft_ms": ("ttft_ms", "prefill_ms"),
    "tpot_ms": ("tpot_ms", "decode_ms"),
}


def errors_of(
    bench: Bench, cells: Iterable[Cell], factors: EngineFactors
) -> dict[str, list[float]]:
    """Metric -> log(predicted / measured) of each cell."""
    out: dict[str, list[float]] = {name: [] for name in MEASURED_AS}
    for cell in cells:
        predicted = bench.predicted(cell, factors)
        for metric, names in MEASURED_AS.items():
            name = next((one for one in names if one in cell.measured), None)
            if name is not None:
                out[metric].append(math.log(predicted[name] / cell.measured[name]))
    return out


def fitted(bench: Bench, cells: Sequence[Cell], begin: EngineFactors, source: str) -> EngineFactors:
    """Factors with the width of their intervals: from each layout predicted by the others."""
    out: dict[str, list[float]] = {name: [] for name in MEASURED_AS}
    for layout in sorted({cell.layout for cell in cells}):
        others = fit(bench, [one for one in cells if one.layout != layout], begin)
        left_out = [one for one in cells if one.layout == layout]
        for name, errors in errors_of(bench, left_out, others).items():
            out[name] += errors
    found = power(bench, cells, fit(bench, cells, begin))
    seen = [_seen(bench, cell, found) for cell in cells]
    ranges = {name: (min(map(_of(name), seen)), max(map(_of(name), seen))) for name in seen[0]}
    ranges["kv_share"] = (0.0, ranges["kv_share"][1])
    return replace(
        found,
        half_width={
            name: max(quantile(errors), LEAST[begin.engine][name]) for name, errors in out.items()
        },
        fitted=Fitted(
            tuple(sorted({cell.gpu for cell in cells})),
            tuple(sorted({cell.precision.name for cell in cells})),
            ranges,
        ),
        provenance=f"{len(cells)} cells of {source}; benchmarks/fit_predictions.py",
    )


def longest_start(bench: Bench, cells: Sequence[Cell], factors: EngineFactors) -> float:
    """The longest time from a single request to its first pass: what the TTFT leaves for it."""
    found = [cell.measured["ttft_ms"] - bench.predicted(cell, factors)["ttft_ms"] for cell in cells]
    return factors.start_s + max(found) / 1e3


def kinds_s(
    bench: Bench, cells: Sequence[Cell], few: Sequence[Cell], factors: EngineFactors
) -> float:
    """The most by which a layer of a decode step differs from what the factors of another kind of
    kernels say: those of few rows, and the others."""
    plain, own = replace(factors, few=None), factors.few
    assert own is not None, "both kinds were fitted"
    other = replace(plain, stream=own.stream, layer_s=own.layer_s, gap_s=own.gap_s)
    tried = [(cell, other) for cell in cells] + [(cell, plain) for cell in few]
    return max(_of_layer(bench, cell, by) for cell, by in tried)


def _of_layer(bench: Bench, cell: Cell, factors: EngineFactors) -> float:
    ms = abs(bench.predicted(cell, factors)["decode_ms"] - cell.measured["decode_ms"])
    return ms / 1e3 / models.resolve(cell.model, "dummy").shape.num_layers


def _of(name: str) -> Callable[[Mapping[str, float]], float]:
    return lambda one: one[name]


def _seen(bench: Bench, cell: Cell, factors: EngineFactors) -> dict[str, float]:
    setting, _ = bench.setting(cell, factors)
    seats = -(-cell.concurrency // setting.placed.placement.degree("dp"))
    return seen_of(setting, bench.asked(cell, factors).lengths, seats)


def attainable(calibrations: Mapping[str, Calibration]) -> Attainable:
    """The mean share of its data sheet that a calibrated GPU reaches."""
    shares: dict[str, list[float]] = {"memory": [], "flops": [], "link": [], "fp8_stream": []}
    for name, one in calibrations.items():
        stated, sheet = datasheet.ceilings(name), datasheet.SHEETS[name]
        assert stated is not None, "calibrated GPUs are known ones"
        assert sheet.nvlink, "with NVLink"
        shares["fp8_stream"] += [one.fp8_stream] if one.fp8_stream else []
        shares["memory"].append(one.ceilings.hbm / stated.hbm)
        shares["flops"].append(one.ceilings.flops["bfloat16"] / stated.flops["bfloat16"])
        for curve in one.curves:
            if (curve.op, curve.mode) == ("all_reduce", "graph"):
                size, seconds = curve.points[-1]
                rate = size * 2 * (curve.ranks - 1) / curve.ranks / seconds
                shares["link"].append(rate / (sheet.nvlink / 2 * 1e9))
    return Attainable(**{name: round(sum(of) / len(of), 3) for name, of in shares.items()})


def as_data(
    engines: Mapping[str, EngineFactors], shares: Attainable, of: Mapping[str, Calibration]
) -> dict[str, object]:
    """What factors.json holds."""
    return {
        "engines": {name: _rounded(asdict(one)) for name, one in engines.items()},
        "attainable": asdict(shares),
        "calibrations": {name: _calibration(one) for name, one in of.items()},
    }


def _calibration(one: Calibration) -> dict[str, object]:
    curves = [_rounded(asdict(curve)) for curve in one.curves]
    rates = _rounded(
        {
            "hbm": one.ceilings.hbm,
            "flops": dict(one.ceilings.flops),
            "cache_bytes": one.ceilings.cache_bytes,
            "fp8_stream": one.fp8_stream,
        }
    )
    return {"source": one.source, **rates, "curves": curves}


def _rounded(value):
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Cells that nothing was fitted on, with what they are predicted by."""

    label: str
    cells: Sequence[Cell]
    bench: Bench


@dataclass(frozen=True, slots=True)
class Error:
    """Of one cell and metric: logarithms of predicted / measured, of the roofline too. is_within:
    whether the measurement lies in the interval of 90%."""

    log: float
    roofline: float
    is_within: bool


# What an engine would be that reaches the roofline.
ROOFLINE = {
    "stream": 1.0,
    "math": 1.0,
    "kv": 1.0,
    "overlap": 64.0,
    "layer_s": 0.0,
    "gap_s": 0.0,
    "eager_gap_s": 0.0,
    "collective": 0.0,
    "norm_s": 0.0,
    "skew_s": 0.0,
    "turn_s": 0.0,
    "start_s": 0.0,
    "few": None,
}
TITLES = {"output_throughput": "throughput", "ttft_ms": "TTFT", "tpot_ms": "TPOT"}
BASELINE = math.log(0.8)


def held_out_errors(one: HeldOut, engines: Mapping[str, EngineFactors]) -> dict[str, list[Error]]:
    """Metric -> an error for each cell."""
    out: dict[str, list[Error]] = {name: [] for name in TITLES}
    for cell in one.cells:
        factors = engines[cell.engine]
        plain = one.bench.predicted(cell, replace(factors, **ROOFLINE))
        mine, found = one.bench.predicted(cell, factors), one.bench.prediction(cell, factors)
        for metric, names in MEASURED_AS.items():
            name = next((each for each in names if each in cell.measured), None)
            interval = getattr(found, metric)
            if name is not None and interval is not None:
                value = cell.measured[name]
                log = math.log(mine[name] / value)
                is_within = (
                    interval.low / interval.value
                    <= value / mine[name]
                    <= (interval.high / interval.value)
                )
                out[metric].append(Error(log, math.log(plain[name] / value), is_within))
    return out


def percent(log: float) -> float:
    """An error of a logarithm in percent."""
    return 100 * (math.exp(log) - 1)


def wilson(within: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927), in percent."""
    z, share = 1.96, within / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    half /= 1 + z * z / count
    return 100 * (middle - half), 100 * (middle + half)


def row(label: str, metric: str, errors: Sequence[Error]) -> str:
    """A row of the table; of cells of which nothing is said too."""
    if not errors:
        return f"| {label} | {TITLES[metric]} | 0 | not predicted | | | | | |"
    sign = 1 if metric == "output_throughput" else -1
    within, count = sum(one.is_within for one in errors), len(errors)
    low, high = wilson(within, count)
    found = sorted(abs(percent(one.log)) for one in errors)
    plain = [abs(percent(one.roofline)) for one in errors]
    eighty = [abs(percent(one.roofline + sign * BASELINE)) for one in errors]
    return (
        f"| {label} | {TITLES[metric]} | {count} | {median(found):.1f} | "
        f"{median(percent(one.log) for one in errors):+.1f} | "
        f"{found[math.ceil(0.9 * count) - 1]:.1f} | "
        f"{within} of {count} [{low:.0f}, {high:.0f}] | {median(plain):.0f} | "
        f"{median(eighty):.0f} |"
    )


def regrets(one: HeldOut, engines: Mapping[str, EngineFactors]) -> Iterator[str]:
    """How much slower the layout that is ranked first is than the one that was measured fastest."""
    groups = grouped(
        one.cells, lambda cell: (cell.engine, cell.model, cell.concurrency, cell.precision)
    )
    for (_, model, concurrency, _), cells in groups.items():
        if len(cells) > 1:
            first = max(
                cells, key=lambda c: one.bench.predicted(c, engines[c.engine])["output_throughput"]
            )
            best = max(cells, key=lambda c: c.measured["output_throughput"])
            behind = 1 - first.measured["output_throughput"] / best.measured["output_throughput"]
            yield (
                f"| {one.label} | {model} | {concurrency} | {len(cells)} | {first.layout} | "
                f"{best.layout} | {100 * behind:.1f} |"
            )


def other_errors(held: Sequence[HeldOut], engines: Mapping[str, EngineFactors]) -> str:
    """Memory and communication of a decode step, where they were measured."""
    weights: list[float] = []
    communication: dict[str, list[float]] = {}
    for one in held:
        for cell in one.cells:
            if "weight_bytes" in cell.measured:
                found = one.bench.prediction(cell, engines[cell.engine]).memory.weights
                weights.append(abs(100 * (found / cell.measured["weight_bytes"] - 1)))
            if "tp" in cell.layout and cell.measured.get("transfer_ms"):
                found = one.bench.predicted(cell, engines[cell.engine])["comm_ms"]
                error = abs(100 * (found / communication_ms(cell) - 1))
                communication.setdefault(cell.engine, []).append(error)
    if not weights:
        return "Neither memory nor communication were measured."
    peaks = [error for one in held for error in peak_errors(one, engines)]
    peak = (
        f"of the peak on it under torch, whose KV is made for the largest load of a start, "
        f"{median(peaks):.1f}% of {len(peaks)}, {max(peaks):.1f}% at most; "
        if peaks
        else ""
    )
    said = "; ".join(
        f"{engine} {median(found):.1f}% of {len(found)}, {max(found):.1f}% at most"
        for engine, found in communication.items()
    )
    text = (
        f"Median absolute error of weights on the fullest GPU: {median(weights):.1f}% of "
        f"{len(weights)} cells; {peak}of communication in a decode step (transfer, wait and "
        f"norms in the kernels of sums, layouts with tp): {said}."
    )
    return textwrap.fill(text, PAGE_WIDTH)


def peak_errors(one: HeldOut, engines: Mapping[str, EngineFactors]) -> Iterator[float]:
    """Absolute errors in percent of the peak of torch's own memory. An engine that fills a GPU
    whatever it serves is left out."""
    cells = [cell for cell in one.cells if cell.engine == "torch" and "peak_bytes" in cell.measured]
    for same in grouped(cells, lambda cell: (cell.model, cell.layout, cell.precision)).values():
        needed = [one.bench.prediction(cell, engines[cell.engine]).memory for cell in same]
        kv = max(use.kv for use in needed)
        for cell, use in zip(same, needed, strict=True):
            found = use.weights + kv + use.activations
            yield abs(100 * (found / cell.measured["peak_bytes"] - 1))


def by_kind(held: Sequence[HeldOut], engines: Mapping[str, EngineFactors]) -> Iterator[str]:
    """TPOT and throughput of pipelines beside the others."""
    kinds = {
        "tp alone": lambda x: "pp" not in x and "tp" in x and x != "tp1",
        "with pp": lambda x: "pp" in x,
    }
    for engine in engines:
        for title, is_kind in kinds.items():
            errors: dict[str, list[float]] = {"tpot_ms": [], "output_throughput": []}
            for one in held:
                cells = [c for c in one.cells if c.engine == engine and is_kind(c.layout)]
                for metric in errors:
                    found = held_out_errors(replace(one, cells=cells), engines)[metric]
                    errors[metric] += [abs(percent(each.log)) for each in found]
            if not errors["tpot_ms"]:
                continue
            yield (
                f"| {engine}, {title} | {len(errors['tpot_ms'])} | "
                f"{median(errors['tpot_ms']):.1f} | {median(errors['output_throughput']):.1f} |"
            )


def page(held: Sequence[HeldOut], engines: Mapping[str, EngineFactors]) -> str:
    """The part of docs/predictions.md that is written here."""
    lines = [
        "| held out | metric | cells | median error, % | bias, % | p90, % | "
        "in the 90% interval, of cells [95% of the share, %] | roofline, % | 0.8 of it, % |",
        "|---|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    every: dict[str, dict[str, list[Error]]] = {}
    for one in held:
        for metric, errors in held_out_errors(one, engines).items():
            lines.append(row(one.label, metric, errors))
            of_engine = every.setdefault(one.cells[0].engine, {})
            of_engine.setdefault(metric, []).extend(errors)
    for engine, found in every.items():
        lines += [row(f"**{engine}, all**", metric, errors) for metric, errors in found.items()]
    lines += ["", other_errors(held, engines), ""]
    lines += ["| | cells | TPOT, median error, % | throughput, % |", "|---|---:|---:|---:|"]
    lines += [*by_kind(held, engines), ""]
    lines += [
        "| held out | model | concurrent | layouts | ranked first | measured fastest | "
        "behind it, % |",
        "|---|---|---:|---:|---|---|---:|",
    ]
    lines += [line for one in held for line in regrets(one, engines)]
    return "\n".join(lines)


PRESETS = {"8B": "llama-8b", "8b": "llama-8b", "70B": "llama-70b", "70b": "llama-70b"}


def published(file: Path, bench: Bench, factors: EngineFactors) -> str:
    """Latencies and times of a token that others published, by the factors of vLLM whatever the
    engine."""
    lines = [
        "",
        "| published | GPUs | layout | concurrent | measured | predicted | error, % |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    with file.open(encoding="utf-8") as text:
        for row in csv.DictReader(text):
            if row["metric"] in ("latency_s", "tpot_ms"):
                lines.append(_published(row, bench, factors))
    return "\n".join(lines)


def _published(row: Mapping[str, str], bench: Bench, factors: EngineFactors) -> str:
    layout, count = row["layout"].partition(" ")[0], int(row["concurrency"])
    gpu = row["hardware"].partition(" ")[0]
    form = Precision("bfloat16", "fp8" if row["dtype"] == "fp8" else "none")
    lengths = (int(row["input_len"]), int(row["output_len"]))
    model = PRESETS[row["model"].rpartition("-")[2]]
    cell = Cell("", "vllm", gpu, model, layout, form, "", lengths, count, count, {}, CUSTOM)
    found, measured = bench.prediction(cell, factors), float(row["value"])
    is_latency = row["metric"] == "latency_s"
    value = found.duration_s if is_latency else found.tpot_ms.value
    unit, source = ("s", "ms")[not is_latency], row["source"].partition("@")[0].partition(" ")[0]
    engine = "TRT-LLM" if "TRT-LLM" in row["source"] else "vLLM"
    return (
        f"| {source}, {engine}, {row['model']} {row['dtype']} | {row['gpus']} x {gpu} | {layout} | "
        f"{count} | {measured:.4g} {unit} | {value:.4g} {unit} | "
        f"{100 * (value / measured - 1):+.0f} |"
    )


def write(text: str) -> None:
    """Put the tables into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Fit, write, check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", nargs="*", type=Path, help="results to fit torch on")
    parser.add_argument("--fabric", default=[], type=Path, action="append", dest="fabrics")
    parser.add_argument(
        "--few",
        action="append",
        default=[],
        metavar="PATH[,PATH...]",
        help="results of torch with --products and --pdl; the newest kernels last",
    )
    parser.add_argument("--vllm", type=Path, help="results of vLLM, to fit it on")
    parser.add_argument(
        "--slow-host", type=Path, help="results of vLLM on the host that it started latest on"
    )
    parser.add_argument(
        "--held-out",
        action="append",
        default=[],
        metavar="LABEL=PATH[@FABRIC]",
        help="results, or rows of vLLM on H200 (.csv), and a calibration of their node",
    )
    parser.add_argument("--published", type=Path, help="figures of others, as a further check")
    parser.add_argument("--check", action="store_true", help="keep the factors; print the table")
    asked = parser.parse_args()
    if asked.check:
        return check(asked.held_out)
    if not (asked.results and asked.fabrics):
        parser.error("a fit needs results and --fabric; --check needs neither")
    calibrations = dict(_calibrated(folder) for folder in asked.fabrics)
    shares = attainable(calibrations)
    bench = Bench(shares, calibrations)
    cells = [one for folder in asked.results for one in cells_of(folder)]
    mine = [one for one in cells if _is_fitted(one, "torch")]
    source = ", ".join(map(str, asked.results))
    engines = {"torch": fitted(bench, mine, BEGIN["torch"], source)}
    of_vllm = cells_of(asked.vllm) if asked.vllm else ()
    if theirs := [one for one in of_vllm if _is_fitted(one, "vllm")]:
        same = {name: getattr(engines["torch"], name) for name in FREE["torch"]}
        source = str(asked.vllm)
        engines["vllm"] = fitted(bench, theirs, replace(BEGIN["vllm"], **same), source)
        # Torch's fit has no sum with a norm in its kernel, and that norm does the same as vLLM's.
        engines["torch"] = replace(engines["torch"], norm_s=engines["vllm"].norm_s)
    slow = cells_of(asked.slow_host) if asked.slow_host and "vllm" in engines else ()
    if late := [one for one in slow if _is_fitted(one, "vllm") and one.concurrency == 1]:
        longest = longest_start(bench, late, engines["vllm"])
        engines["vllm"] = replace(engines["vllm"], longest_start_s=longest)
    few, seen = list[Cell](), list[Cell]()
    for paths in asked.few:
        folders = list(map(Path, paths.split(",")))
        few += (these := [one for of in map(cells_of, folders) for one in of if one.early])
        seen += (fits := [one for one in these if one.concurrency <= kept.FITTED_MOST])
        torch = fit_few(bench, fits, engines["torch"], ", ".join(map(str, folders)))
        engines["torch"] = torch
        if not torch.earlier:
            apart = kinds_s(bench, mine, fits, torch)
            engines = {name: replace(one, kinds_s=apart) for name, one in engines.items()}
    data = as_data(engines, shares, calibrations)
    kept.FILE.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    rest = [one for one in cells if one not in mine]
    held = [
        HeldOut(f"{engine}, of the results fitted on", same, bench)
        for engine, same in grouped(rest, lambda one: one.engine).items()
    ]
    if unseen := [one for one in few if one not in seen]:
        held.append(HeldOut("torch, of the results of `--few`", unseen, bench))
    used = [*theirs, *late]
    for text in asked.held_out:
        for one in _held_out(text, bench, engines):
            unseen = [cell for cell in one.cells if cell not in used]
            held.append(replace(one, cells=unseen))
    tables = [page(held, engines)]
    if asked.published:
        tables.append(published(asked.published, bench, engines["vllm"]))
    write("\n".join(tables))


def check(texts: Iterable[str]) -> None:
    """Print the errors of the factors that are kept: a line a cell after the table."""
    known = kept.load()
    bench = Bench(known.attainable, known.calibrations)
    found = [one for text in texts for one in _held_out(text, bench, known.engines)]
    print(page(found, known.engines))
    for one in found:
        for cell in one.cells:
            print(f"{one.label}: {cell.name}: {_errors(one.bench, cell, known.engines)}")


def _errors(bench: Bench, cell: Cell, engines: Mapping[str, EngineFactors]) -> str:
    """Each metric predicted and measured; marked where it lies outside of its interval."""
    factors = engines[cell.engine]
    errors = held_out_errors(HeldOut("", [cell], bench), engines)
    said, predicted = [], bench.predicted(cell, factors)
    for metric, names in MEASURED_AS.items():
        name = next((each for each in names if each in cell.measured), "")
        for one in errors[metric]:
            mark = "" if one.is_within else " outside"
            values = f"{predicted[name]:.4g} of {cell.measured[name]:.4g}"
            said.append(f"{TITLES[metric]} {values} ({percent(one.log):+.1f}%{mark})")
    return ", ".join(said)


def _is_fitted(cell: Cell, engine: str) -> bool:
    """On tp1, tp2 and pp2 of the 32B, with few requests."""
    return (
        cell.engine == engine
        and cell.concurrency <= kept.FITTED_MOST
        and cell.layout in kept.FITTED_LAYOUTS
        and cell.model == "qwen2.5-32b"
    )


def _held_out(text: str, bench: Bench, engines: Iterable[str]) -> Iterator[HeldOut]:
    """Of each engine for which factors were fitted."""
    label, _, where = text.partition("=")
    path, _, its = where.partition("@")
    if its:
        bench = bench.with_calibrations(dict([_calibrated(Path(its))]))
    found = peers_of(Path(path), "H200") if path.endswith(".csv") else cells_of(Path(path))
    for engine, same in grouped(found, lambda one: one.engine).items():
        if engine in engines:
            yield HeldOut(f"{engine}, {label}", same, bench)


def _calibrated(folder: Path) -> tuple[str, Calibration]:
    """Of the kind of GPU that a folder's calibration is of."""
    gpu, found = calibration(folder)
    return gpu, replace(found, source=f"measured: {folder / fabric.FILE}")


if __name__ == "__main__":
    main()
