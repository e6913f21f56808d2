"""What the telemetry sampler costs a run: the same work, served in turn with it and without it.

    python benchmarks/recording_cost.py --device cpu
    python benchmarks/recording_cost.py --device cuda --model llama-8b --load-format dummy --max-concurrency 100

One process and one rank under the engine `torch`. Runs come in pairs, one with the sampler and one without, and the
order turns round from pair to pair, so that a drift of the machine favours neither. Printed: the mean ratio of
throughputs (with / without) over the pairs, its 95% interval, and the processor time that the sampler's own thread took.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator import hardware, metrics, planning
from orchestrator.confidence import spread
from orchestrator.experiment import Experiment
from orchestrator.results import write_part
from workers import engines
from workers.plan import EnginePlan, Work
from workers.probes.telemetry import Sampler, sampler_for
from workers.records import column, table_schema, to_table

COST = table_schema("recording_cost", [
    column("pair", pa.int32(), "1"),
    column("sampled", pa.bool_()),
    column("rate_hz", pa.float64(), "Hz"),
    column("duration", pa.float64(), "s"),
    column("output_throughput", pa.float64(), "tokens/s"),
    column("samples", pa.int32(), "1"),
    column("sampler_cpu_s", pa.float64(), "s"),
    column("model", pa.string()),
    column("device_name", pa.string()),
    column("max_concurrency", pa.int32(), "requests"),
])


def main() -> None:
    arguments = parse()
    fields = ("model", "device", "load_format", "max_concurrency", "num_prompts", "input_len", "output_len")
    experiment = Experiment.model_validate({name: getattr(arguments, name) for name in fields})
    device, topology = planning.choose_device(experiment, hardware.local_topology(arguments.device))
    (deployment,) = planning.plan(experiment, device, topology)
    rows = list(measure(deployment.plan, deployment.cells[0].work, arguments.pairs, arguments.rate))
    write_part(arguments.out, to_table(rows, COST))
    say(rows)
    print(f"Runs: {arguments.out}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--load-format", choices=("auto", "dummy"), default="auto")
    parser.add_argument("--max-concurrency", type=int, default=8)
    parser.add_argument("--num-prompts", type=int, help="default: as many as --max-concurrency")
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--rate", type=float, default=10.0, help="samples a second")
    parser.add_argument("--out", type=Path, default=Path("recording_cost.arrow"))
    return parser.parse_args()


def measure(plan: EnginePlan, work: Work, pairs: int, rate_hz: float) -> Iterator[dict[str, Any]]:
    """Rows of COST: two runs a pair, after one that warms up."""
    import torch

    from workers.rank import connect

    device = torch.device(plan.device, 0) if plan.device == "cuda" else torch.device("cpu")
    torch.set_num_threads(1) if plan.device == "cpu" else torch.cuda.set_device(device)
    sampler = sampler_for(plan.device, 0)
    sampler.period_s = 1.0 / rate_hz
    engine = engines.create("torch")
    context = connect(0, plan.placement, device, None, plan.timeout_s)
    try:
        built = engine.build(context, plan)
        engine.run(work)
        for pair in range(pairs):
            for sampled in (True, False) if pair % 2 == 0 else (False, True):
                run = serve(engine, work, sampler if sampled else None)
                run |= {"pair": pair, "sampled": sampled, "rate_hz": rate_hz, "max_concurrency": work.max_concurrency}
                yield {**run, "model": plan.model.name, "device_name": built.device_name}
    finally:
        engine.close()
        context.close()


def serve(engine: engines.Engine, work: Work, sampler: Sampler | None) -> dict[str, Any]:
    """One run, sampled if there is a sampler."""
    recording = sampler.start() if sampler else None
    report = engine.run(work)
    if recording:
        recording.stop()
    assert report.requests is not None
    row = metrics.of_requests(report.requests, work.max_concurrency, len(work.requests), 1)
    samples, cpu_s = (len(recording.rows), recording.cpu_s) if recording else (0, 0.0)
    return {"samples": samples, "sampler_cpu_s": cpu_s, **{name: row[name] for name in ("duration", "output_throughput")}}


def say(rows: list[dict[str, Any]]) -> None:
    on, off = ([row for row in rows if row["sampled"] is sampled] for sampled in (True, False))
    ratios = [a["output_throughput"] / b["output_throughput"] for a, b in zip(on, off, strict=True)]
    found = spread(ratios)
    assert found is not None
    interval = "" if found.ci_low is None else f" [{found.ci_low:.4f}, {found.ci_high:.4f}], 95% interval of {found.n} pairs"
    seconds = sum(row["duration"] for row in on)
    print(f"{on[0]['model']} on {on[0]['device_name']}, {on[0]['max_concurrency']} concurrent, runs of {seconds / len(on):.2f} s")
    print(f"throughput with the sampler / without: {found.mean:.4f}{interval}")
    print(f"samples: {sum(row['samples'] for row in on) / seconds:.1f} a second")
    print(f"processor time of the sampler: {100 * sum(row['sampler_cpu_s'] for row in on) / seconds:.3f}% of one core")


if __name__ == "__main__":
    main()
