"""Fit what predictions need of an engine, and say how far they are off where nothing was fitted.

    python benchmarks/fit_predictions.py docs/results/2xh100/qwen2.5-32b \\
        --fabric docs/results/2xh100 --calibration docs/results/2xh200 \\
        --peers vllm:H200:/path/peers-2xh200.csv \\
        --held-out docs/results/2xh200/llama-70b --held-out-peers H200:docs/results/peers-4xh200.csv

Writes orchestrator/predict/factors.json and the table of docs/predictions.md. A few numbers of
physical meaning are fitted, by least squares on relative errors and with a weak pull to where each
begins; cells above MOST requests, and layouts of other degrees, are left for the check.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from orchestrator.analysis import load as results
from orchestrator.experiment import SCENARIOS
from orchestrator.node import datasheet, fabric
from orchestrator.plan import models
from orchestrator.predict import factors as kept
from orchestrator.predict.calibrated import calibration
from orchestrator.predict.factors import EngineFactors, Fitted
from orchestrator.predict.hardware import Attainable, Calibration, Hardware, of_sheet
from orchestrator.predict.interval import seen_of
from orchestrator.predict.passes import DECODE, Placed, Setting, Work
from orchestrator.predict.prediction import Asked, Prediction, predict
from orchestrator.predict.replica import Lengths, micro_batches
from strategies import Layout, Load, Topology, plan_layout
from strategies.precision import Precision
from workers.rows import grouped

MOST = 32  # concurrency of the cells that are fitted on
PAGE = Path(__file__).resolve().parents[1] / "docs" / "predictions.md"
START, END = "<!-- held out: begin -->", "<!-- held out: end -->"
# Relative errors that are as large as the model is wrong anyway: of a step, of reading prompts, of
# a part of a step.
WHOLE, PROMPTS, PART = 0.02, 0.05, 0.06
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
    )
}
# vLLM: one batch goes through all stages of a pipeline while prompts fit in one pass (the bubble
# that is observed of it says so), 16384 prompt tokens in a pass.
BEGIN["vllm"] = replace(
    BEGIN["torch"], engine="vllm", lanes=False, separate=False, prefill_tokens=16384, start_s=20e-3
)
# What is fitted. Nothing was observed of the parts of vLLM's steps here, so it has those of torch
# but for the ones that times of whole steps tell apart.
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
    "vllm": ("stream", "math", "layer_s", "collective", "start_s"),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """What was measured of one layout and load: metric -> median. origin: where it is kept."""

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
                yield _cell(str(folder), key, same)


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
        "gap_ms": lambda one: one.step.decode.launch_gap.ms,
        "joules": lambda one: one.energy.joules_per_output_token,
        "kv_tokens": lambda one: one.memory.kv_tokens,
        "weight_bytes": lambda one: one.memory.weight_bytes,
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
    )


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
            )


class Bench:
    """Predicts cells; layouts are planned once."""

    def __init__(self, attainable: Attainable, calibrations: Mapping[str, Calibration]) -> None:
        self._attainable, self._calibrations = attainable, calibrations
        self._planned: dict[tuple, tuple] = {}

    def hardware(self, gpu: str) -> Hardware:
        """As `plan` takes it."""
        return of_sheet(gpu, self._attainable, self._calibrations.get(gpu), 8)

    def setting(self, cell: Cell, factors: EngineFactors) -> tuple[Setting, Layout]:
        """What the cell was run as."""
        key = (cell.model, cell.layout, cell.gpu, cell.precision)
        if key not in self._planned:
            shape = models.resolve(cell.model, "dummy").shape
            count = math.prod(int(n) for n in _numbers(cell.layout))
            hardware = self.hardware(cell.gpu)
            topology = Topology.uniform(count, hardware.memory_bytes or 0, cell.gpu)
            layout = plan_layout(
                cell.layout, shape, Load(*cell.lengths, cell.concurrency), topology
            )
            placed = Placed(layout.placement, shape, cell.precision, hardware)
            self._planned[key] = (placed, layout)
        placed, layout = self._planned[key]
        return Setting(placed, factors), layout

    def asked(self, cell: Cell, factors: EngineFactors) -> Asked:
        """Its load."""
        lengths = Lengths(*cell.lengths, factors.prefill_tokens)
        return Asked(lengths, cell.concurrency, cell.num_prompts)

    def prediction(self, cell: Cell, factors: EngineFactors) -> Prediction:
        """Raises ValueError where there is none."""
        setting, layout = self.setting(cell, factors)
        found = predict(setting, layout, self.asked(cell, factors))
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
        passes = [setting.pass_of(index, work) for index in range(len(setting.stages))]

        def mean(part: Callable) -> float:
            return 1e3 * sum(map(part, passes)) / len(passes)

        return {
            "output_throughput": found.output_throughput.value,
            "decode_ms": found.decode_ms_per_step,
            "ttft_ms": found.ttft_ms.value,
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
    if "tp" in cell.layout and "transfer_ms" in cell.measured:
        out["transfer_ms"] = (cell.measured["transfer_ms"], PART)
        both = cell.measured["transfer_ms"] + cell.measured["wait_ms"]
        out["comm_ms"] = (both, PART)
    if "gap_ms" in cell.measured:
        out["gap_ms"] = (cell.measured["gap_ms"], 2 * PART)
    return out


def fit(bench: Bench, cells: Sequence[Cell], begin: EngineFactors) -> EngineFactors:
    """Gauss-Newton with damping on the logarithms of the free factors."""
    free = FREE[begin.engine]
    x0 = np.log([getattr(begin, name) for name in free])

    def factors_at(x: np.ndarray) -> EngineFactors:
        return replace(begin, **dict(zip(free, map(float, np.exp(x)), strict=True)))

    def residuals(x: np.ndarray) -> np.ndarray:
        factors = factors_at(x)
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
LEAST = {"output_throughput": WHOLE, "tpot_ms": WHOLE, "ttft_ms": PROMPTS}
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
        half_width={name: max(quantile(errors), LEAST[name]) for name, errors in out.items()},
        fitted=Fitted(
            tuple(sorted({cell.gpu for cell in cells})),
            tuple(sorted({cell.precision.name for cell in cells})),
            ranges,
        ),
        provenance=f"{len(cells)} cells of {source}; benchmarks/fit_predictions.py",
    )


def _of(name: str) -> Callable[[Mapping[str, float]], float]:
    return lambda one: one[name]


def _seen(bench: Bench, cell: Cell, factors: EngineFactors) -> dict[str, float]:
    setting, _ = bench.setting(cell, factors)
    seats = -(-cell.concurrency // setting.placed.placement.degree("dp"))
    return seen_of(setting, bench.asked(cell, factors).lengths, seats)


def attainable(calibrations: Mapping[str, Calibration]) -> Attainable:
    """The mean share of its data sheet that a calibrated GPU reaches."""
    shares: dict[str, list[float]] = {"memory": [], "flops": [], "link": []}
    for name, one in calibrations.items():
        stated, sheet = datasheet.ceilings(name), datasheet.SHEETS[name]
        assert stated is not None, "calibrated GPUs are known ones"
        assert sheet.nvlink, "with NVLink"
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
    ceilings = _rounded(
        {
            "hbm": one.ceilings.hbm,
            "flops": dict(one.ceilings.flops),
            "cache_bytes": one.ceilings.cache_bytes,
        }
    )
    return {"source": one.source, **ceilings, "curves": curves}


def _rounded(value):
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, (list, tuple)) else value


def main() -> None:
    """Fit, write, check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--fabric", required=True, type=Path, action="append", dest="fabrics")
    parser.add_argument("--peers", type=Path, help="rows of vLLM on two H200, to fit on")
    asked = parser.parse_args()
    calibrations = dict(_calibrated(folder) for folder in asked.fabrics)
    shares = attainable(calibrations)
    bench = Bench(shares, calibrations)
    cells = [one for folder in asked.results for one in cells_of(folder)]
    engines = {}
    mine = [one for one in cells if one.concurrency <= MOST and one.engine == "torch"]
    engines["torch"] = fitted(bench, mine, BEGIN["torch"], ", ".join(map(str, asked.results)))
    if asked.peers:
        theirs = [
            one
            for one in peers_of(asked.peers, "H200")
            if one.concurrency <= MOST and one.model == mine[0].model
        ]
        same = {name: getattr(engines["torch"], name) for name in FREE["torch"]}
        begin = replace(BEGIN["vllm"], **same)
        engines["vllm"] = fitted(bench, theirs, begin, asked.peers.name)
    data = as_data(engines, shares, calibrations)
    kept.FILE.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _calibrated(folder: Path) -> tuple[str, Calibration]:
    """Of the kind of GPU that a folder's calibration is of."""
    gpu, found = calibration(folder)
    return gpu, replace(found, source=f"measured: {folder / fabric.FILE}")


if __name__ == "__main__":
    main()
