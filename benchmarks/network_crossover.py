"""At which bandwidth between two nodes pp2 overtakes tp2: measured, and as the cost model says.

    python benchmarks/network_crossover.py measure --out docs/results/cpu/network-crossover
    python benchmarks/network_crossover.py draw docs/results/cpu/network-crossover

`measure` needs root. The nodes are two network namespaces (`namespaces.py`), one CPU rank each,
joined by a link that `tc tbf` limits; ranks exchange by gloo. The load is what tells the two apart
most: one request at a time, of which the prompt is read. tp2 computes on both nodes at once and
sends much; pp2 computes on one after the other and sends little.

Each layout is started once, and all take turns: every round goes through the rates in another order
and serves one request a rate and layout. What counts of them is the least time to a first token of
all rounds, which nothing disturbed.

The prediction is of `orchestrator.predict`, told three things that are measured beside: the rate at
which one rank alone reads a prompt, the bandwidth of its memory, and the latency of a small
all-reduce over the link. It is told of no run of tp2 or pp2.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from cpu_ranks import answer
from namespaces import INTERFACE, Machine, machines, why_not
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.roofline import CALIBRATED, Ceilings, Closed, stages_of
from orchestrator.node.calibrate import calibration_plan
from orchestrator.predict import factors
from orchestrator.predict.crossover import Crossover, between_nodes, crossover, networked
from orchestrator.predict.hardware import CALL_S, Fabric, Hardware, Link
from orchestrator.predict.layouts import Case, candidates
from orchestrator.predict.load import Asked
from orchestrator.predict.prediction import Prediction, predict
from orchestrator.predict.replica import Lengths
from orchestrator.report.output import console_of, export_svg
from strategies import Load, ModelShape, Topology, plan_layout
from strategies.precision import Precision
from workers.messages import EnginePlan, RankReport, Request, Work
from workers.records import FABRIC
from workers.rows import grouped

ROOT = Path(__file__).resolve().parents[1]
PAIR, ALONE = ("tp2", "pp2"), "tp1"
RATES = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # Mbit/s
INPUT_LEN, OUTPUT_LEN = 128, 1
MODEL = ModelShape(
    name="llama-25m",
    family="llama",
    hidden_size=1024,
    num_layers=2,
    num_heads=16,
    num_kv_heads=16,
    head_dim=64,
    intermediate_size=2816,
    vocab_size=2048,
    max_positions=2048,
    norm_eps=1e-5,
    rope_theta=1e4,
    tie_embeddings=True,
)
MBIT = 1e6 / 8
MEMORY = 16e9  # bytes; more than the model takes
RUNS, FACTS, PICTURE = "runs.csv", "facts.json", "network-crossover.svg"
BAR = 18  # characters


@dataclass(frozen=True)
class Run:
    """One request. mbit: rate of the link, 0 for one rank alone. ttft_ms: until its first token."""

    round: int
    mbit: int
    layout: str
    ttft_ms: float


@dataclass(frozen=True)
class Facts:
    """What the prediction is told, and where it was measured. memory: bytes/s; flops: operations/s
    at which one rank alone reads a prompt; step_s: latency of one of the two steps of an all-reduce
    of 4 KiB."""

    memory: float
    flops: float
    step_s: float
    cpu: str
    rounds: int
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    torch: str = field(default_factory=lambda: version("torch"))
    load_average: float = field(default_factory=lambda: os.getloadavg()[2])


def main() -> None:
    """Measure, or draw what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, dest="command")
    measuring = commands.add_parser("measure")
    measuring.add_argument("--out", type=Path, required=True)
    measuring.add_argument("--rounds", type=int, default=60)
    drawing = commands.add_parser("draw")
    drawing.add_argument("folder", type=Path)
    drawing.add_argument("--svg", type=Path, default=ROOT / "docs" / PICTURE)
    commands.add_parser("rank").add_argument("socket")
    asked = parser.parse_args()
    if asked.command == "rank":
        serve(asked.socket)
    elif asked.command == "measure":
        measure(asked.out, asked.rounds)
    else:
        runs, facts = read(asked.folder)
        export_svg(lambda console: draw(runs, facts, console), asked.svg, "tp2 and pp2 over a link")
        draw(runs, facts, console_of())


# -- measuring


def measure(out: Path, rounds: int) -> None:
    """Write every run, and the facts."""
    if reason := why_not():
        raise SystemExit(f"error: {reason}")
    with machines(2) as there, tempfile.TemporaryDirectory() as folder:
        memory, step_s = calibrated(there, Path(folder))
        runs = list(all_runs(there, Path(folder), rounds))
    facts = Facts(memory, flops_of(runs), step_s, cpu_name(), rounds=rounds)
    out.mkdir(parents=True, exist_ok=True)
    with (out / RUNS).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(runs[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: shown(value) for key, value in asdict(one).items()} for one in runs)
    (out / FACTS).write_text(json.dumps(asdict(facts), indent=1) + "\n")


def shown(value: object) -> object:
    """Four digits of a measured number are more than it is known to."""
    return f"{value:.4g}" if isinstance(value, float) else value


def all_runs(there: Sequence[Machine], folder: Path, rounds: int) -> Iterator[Run]:
    """Of every round, rate and layout. The first round warms up and is left out."""
    with contextlib.ExitStack() as stack:
        groups = {
            name: stack.enter_context(built(there, plan_for(name), "torch", folder))
            for name in (ALONE, *PAIR)
        }
        order = random.Random(0)
        for number in range(rounds + 1):
            alone = timed(number, 0, ALONE, ask(groups[ALONE], "run", work(number)))
            yield from (alone,) if number else ()
            for mbit in order.sample(RATES, len(RATES)):
                for machine in there:
                    machine.limit(mbit * MBIT)
                for name in order.sample(PAIR, len(PAIR)):
                    run = timed(number, mbit, name, ask(groups[name], "run", work(number)))
                    yield from (run,) if number else ()
            print(f"round {number} of {rounds}", flush=True)


def calibrated(there: Sequence[Machine], folder: Path) -> tuple[float, float]:
    """Bytes/s of a node's memory, and seconds of a step over the link: the best of some runs."""
    plan = replace(calibration_plan("cpu", 2, quick=True), timeout_s=120.0)
    with built(there, plan, "calibration", folder) as pair:
        reports = [one for _ in range(8) for one in ask(pair, "run", Work((), 1))]
    rows = [row for one in reports for row in FABRIC.rows(one.fabric)]
    rates = [row.algbw for row in rows if row.kind == "hbm" and row.algbw]
    small = [row.time_us for row in rows if (row.op, row.bytes) == ("all_reduce", 4096)]
    return max(rates) * 1e9, (min(us for us in small if us) * 1e-6 - CALL_S) / 2


def flops_of(runs: Sequence[Run]) -> float:
    """Operations/s at which one rank alone reads a prompt, in its best run."""
    (stage,) = stages_of(plan_for(ALONE).placement, MODEL, Precision("float32"))
    load = Closed.equal(INPUT_LEN, OUTPUT_LEN, 1, 1)
    least_ms = min(one.ttft_ms for one in runs if one.layout == ALONE)
    return stage.prefill_flops(load) / least_ms * 1e3


def cpu_name() -> str:
    """As Linux calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.machine())


def plan_for(layout: str) -> EnginePlan:
    """A plan that serves one request at a time under `layout`."""
    load, topology = Load(INPUT_LEN, OUTPUT_LEN, 1), Topology.uniform(2)
    return EnginePlan(
        model=MODEL,
        layout=layout,
        placement=plan_layout(layout, MODEL, load, topology).placement,
        checkpoint=None,
        dtype="float32",
        device="cpu",
        max_concurrency=1,
        max_len=INPUT_LEN + OUTPUT_LEN,
        prefill_tokens=2048,
        timeout_s=120.0,
    )


def work(seed: int) -> Work:
    """One request of random tokens."""
    prompt = np.random.default_rng(seed).integers(8, MODEL.vocab_size, INPUT_LEN).tolist()
    return Work((Request(0, tuple(prompt), OUTPUT_LEN),), 1)


def timed(number: int, mbit: int, layout: str, reports: Sequence[RankReport]) -> Run:
    """What a run took."""
    (table,) = [one.requests for one in reports if one.requests is not None]
    (times,) = table["token_times_s"].to_pylist()
    return Run(number, mbit, layout, times[0] * 1e3)


# -- ranks, one a machine


@contextlib.contextmanager
def built(
    there: Sequence[Machine], plan: EnginePlan, engine: str, folder: Path
) -> Iterator[list[Connection]]:
    """Fresh processes that have built `plan`, the ranks on the machines in turn."""
    ranks = plan.placement.num_ranks
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(rank_on(there[r], folder)) for r in range(ranks)]
        for rank, worker in enumerate(workers):
            ask([worker], "assign", rank)
        (address,) = ask(workers[:1], "open_store", there[0].address)
        ask(workers, "build", engine, plan, address)
        yield workers


@contextlib.contextmanager
def rank_on(machine: Machine, folder: Path) -> Iterator[Connection]:
    """A process that serves a `Worker` on a machine, which shares this one's files."""
    variables = {"GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1"}
    with Listener(str(folder / "socket"), "AF_UNIX") as listener:
        command = machine.command(sys.executable, __file__, "rank", folder / "socket")
        process = subprocess.Popen(command, env={**os.environ, **variables})
        connection = listener.accept()
    try:
        yield connection
    finally:
        connection.close()  # which ends it
        process.wait()


def serve(socket: str) -> None:
    """Call the methods of a `Worker` that are asked for, until nobody asks."""
    with Client(socket, "AF_UNIX") as connection, contextlib.suppress(EOFError):
        answer(connection)


def ask(workers: Sequence[Connection], method: str, *arguments: object) -> Any:
    """The answers of all; ends this process where one has failed."""
    for worker in workers:
        worker.send((method, arguments))
    answers = [worker.recv() for worker in workers]
    for error in (one for one in answers if isinstance(one, Exception)):
        raise SystemExit(f"{type(error).__name__}: {error}")
    return answers


# -- what is said of it


def read(folder: Path) -> tuple[list[Run], Facts]:
    """What `measure` wrote."""
    with (folder / RUNS).open(newline="") as file:
        kinds: Mapping[str, Any] = {"round": int, "mbit": int, "layout": str}
        runs = [
            Run(**{key: kinds.get(key, float)(value) for key, value in row.items()})
            for row in csv.DictReader(file)
        ]
    return runs, Facts(**json.loads((folder / FACTS).read_text()))


def undisturbed(runs: Sequence[Run]) -> dict[tuple[int, str], float]:
    """(Mbit/s, layout) -> prompts a second that are read in the least time of all rounds."""
    pairs = [one for one in runs if one.layout in PAIR]
    groups = grouped(pairs, lambda one: (one.mbit, one.layout))
    return {key: 1e3 / min(one.ttft_ms for one in same) for key, same in groups.items()}


def crossing(speeds: Mapping[tuple[int, str], float]) -> tuple[int, int] | None:
    """The neighbouring rates, in Mbit/s, between which the first layout of PAIR overtakes the other
    one for good; None where one of them is ahead at all of them."""
    rates = sorted({mbit for mbit, _ in speeds})
    leads = [speeds[mbit, PAIR[0]] > speeds[mbit, PAIR[1]] for mbit in rates]
    behind = max((place for place, ahead in enumerate(leads) if not ahead), default=-1)
    return (rates[behind], rates[behind + 1]) if -1 < behind < len(rates) - 1 else None


def case(facts: Facts) -> Case:
    """Two nodes of one such CPU rank each, and an engine without overheads of its own."""
    none = dict.fromkeys(("layer_s", "gap_s", "eager_gap_s", "skew_s", "turn_s", "start_s"), 0.0)
    shares = dict.fromkeys(("stream", "math", "kv", "collective"), 1.0)
    engine = replace(factors.load().of("torch"), overlap=8.0, **none, **shares)
    ceilings = Ceilings(facts.memory, {"float32": facts.flops}, 0, CALIBRATED)
    network = Link(RATES[-1] * MBIT, facts.step_s, CALIBRATED)
    fabric = Fabric(Link(network.bandwidth, 0.0, CALIBRATED), network)
    hardware = Hardware("cpu", ceilings, int(MEMORY), None, fabric, gpus_per_node=1)
    asked = Asked(Lengths(INPUT_LEN, OUTPUT_LEN, 2048), 1)
    return Case(MODEL, Precision("float32"), hardware, engine, asked)


def predicted(facts: Facts) -> tuple[dict[tuple[int, str], float], Crossover]:
    """(Mbit/s, layout) -> prompts/s that the cost model says, and where it says they cross."""
    asked, found = case(facts), {}
    for mbit in RATES:
        hardware = networked(asked.hardware, mbit * MBIT)
        for layout, setting in candidates(replace(asked, hardware=hardware), PAIR, 2, 1).settings:
            one = predict(setting, layout.name, asked.asked)
            assert isinstance(one, Prediction), one
            found[mbit, layout.name] = one.output_throughput.value
    link = between_nodes(RATES[0] * MBIT, RATES[-1] * MBIT)
    return found, crossover(asked, PAIR, varied=link)


def draw(runs: Sequence[Run], facts: Facts, console: Console) -> None:
    """A line a rate: what each layout delivers, and what was predicted."""
    measured, (foretold, at) = undisturbed(runs), predicted(facts)
    most = max(measured.values())
    table = Table(
        box=SIMPLE_HEAD,
        title=f"prompts of {INPUT_LEN} tokens read a second, one at a time",
        title_justify="left",
    )
    table.add_column("Mbit/s", justify="right")
    for name in PAIR:
        table.add_column(name, justify="right")
        table.add_column("measured", no_wrap=True)
        table.add_column("model", justify="right")
    table.add_column("ahead")
    for mbit in sorted({mbit for mbit, _ in measured}):
        cells: list[str | Text] = []
        for name, color in zip(PAIR, ("yellow", "cyan"), strict=True):
            bar = "█" * max(round(BAR * measured[mbit, name] / most), 1)
            cells += [f"{measured[mbit, name]:.1f}", Text(bar, style=color)]
            cells += [f"{foretold[mbit, name]:.1f}"]
        table.add_row(str(mbit), *cells, max(PAIR, key=lambda name: measured[mbit, name]))
    console.print(table)
    console.print(said(crossing(measured), at), highlight=False)


def said(measured: tuple[int, int] | None, foretold: Crossover) -> str:
    """Where they cross, in words."""
    first, second = PAIR
    where = "at none of these rates, or at all of them"
    if measured is not None:
        where = f"from between {measured[0]} and {measured[1]} Mbit/s on"
    model = f"{foretold.best} is ahead at all of them"
    if foretold.bandwidth is not None:
        model = f"from {foretold.bandwidth / MBIT:.0f} Mbit/s on"
    return f"{first} is ahead of {second} {where}; the cost model says: {model}."


if __name__ == "__main__":
    main()
