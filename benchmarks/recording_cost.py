"""What recording costs a run: the same work served in turn with all that is recorded, without the
sampler, and with nothing.

    python benchmarks/recording_cost.py --device cpu
    python benchmarks/recording_cost.py --device cuda --model llama-8b --load-format dummy \
        --max-concurrency 100 --input-len 256 --output-len 384

One worker in this process, one rank, engine `torch`, a closed loop. "everything" is an ordinary
run: the sampler, the gauges' thread, a moment and the tokens of every step, the progress, and the
collectives counted. One rank has no collectives, so those that a rank of --counted-as would have in
a decode step are counted at every step. "nothing" leaves all of that out by stand-ins that are
patched in here. It knows no times, so the generate loop itself is timed, for every variant alike:
from where the device is idle before the first step to where it is idle after the last.

A round serves every variant once, in an order that rotates from round to round, so that a drift of
the machine favours none. On a GPU two more runs show that the loop does not wait for the device:
one in which torch raises at a call that would, and a short one in which the profiler counts what
was called.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from orchestrator.analysis.comparing.confidence import Spread, spread
from orchestrator.cluster import hardware
from orchestrator.experiment import Experiment
from orchestrator.plan import planning
from orchestrator.store.arrow_files import write_part
from strategies.shapes import DTYPE_BYTES
from strategies.traffic import decode_step
from workers.actor import Worker
from workers.clock import Clock
from workers.communicator import Communicator
from workers.communicator import Recording as Captured
from workers.device import synchronize
from workers.engines.native import generator
from workers.engines.native.generator import Generator, Run
from workers.engines.native.log import Log
from workers.engines.native.runner import Runner
from workers.engines.native.scheduler import Scheduler, Step
from workers.messages import EnginePlan, Work
from workers.probes.gauges import Board, Reading
from workers.probes.telemetry import Recording, Sampler
from workers.progress import Progress
from workers.records import COLLECTIVES
from workers.rows import Table, column, group, row

EVERYTHING, UNSAMPLED, NOTHING = VARIANTS = ("everything", "without sampler", "nothing")
COMPARED = ((EVERYTHING, NOTHING), (UNSAMPLED, NOTHING), (EVERYTHING, UNSAMPLED))
TAGS = {"experiment": "recording_cost", "model": "", "strategy": "tp1", "engine": "torch"}
PROFILED_TOKENS = 32  # made for each request while the profiler looks on
MOST_COST = 0.01  # of the throughput, that recording may take

ASKED = (
    "model",
    "device",
    "load_format",
    "max_concurrency",
    "num_prompts",
    "input_len",
    "output_len",
)
LOOP = "timed loop"
ALLOCATING = {
    "cudaMalloc",
    "cudaFree",
    "cudaHostAlloc",
    "cudaMallocHost",
    "cudaFreeHost",
    "cudaHostRegister",
}


@row
class Served:
    """One run of a variant."""

    variant: str = column("what was recorded: everything, without sampler, or nothing")
    loop_s: float = column("what the generate loop took", "s")
    output_throughput: float = column(
        "generated tokens per second of the loop", "tokens/s", formula="tokens / loop_s"
    )
    samples: int = column("samples taken", "1")
    sampler_cpu_s: float = column("processor time of the sampler's thread", "s")
    readings: int = column("readings told to the gauges", "1")
    steps: int = column("steps kept with their moments", "1")
    collectives: int = column("calls of collectives counted", "1")
    pinned_blocks: int = column(
        "blocks of pinned memory that torch had CUDA make, for copies of tokens and inputs of "
        "steps",
        "1",
    )
    pinned_ms: float = column("what making them took", "ms")


@row
class Setup:
    """What is the same for all runs."""

    rate_hz: float = column("samples a second that the sampler was asked for", "Hz")
    model: str = column("name of the model")
    device_name: str = column("name of the device")
    max_concurrency: int = column("requests in flight at most", "requests")


@row
class CostRow:
    """One run of a variant, in a round in which every variant is run once."""

    round: int = column("number of the round, from 0", "1")
    served: Served = group()
    setup: Setup = group()


COST = Table("recording_cost", CostRow)

Around = Callable[[], AbstractContextManager[None]]


def main() -> None:
    arguments = parse()
    plan, work = planned(arguments)
    worker = Worker()
    try:
        setup = build(worker, plan, work, arguments.rate)
        with counting(collectives(arguments.counted_as, arguments.model, plan)):
            warm_up = serve(worker, work, EVERYTHING)
            rows = list(measure(worker, work, setup, arguments.rounds))
            write_part(arguments.out, COST.make(rows))
            say(rows)
            say_what_was_pinned(warm_up, rows)
            print(f"Runs: {arguments.out}")
            if not says_that_nothing_waits(worker, work, plan.device):
                raise SystemExit(1)
    finally:
        worker.close()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--load-format", choices=("auto", "dummy"), default="auto")
    parser.add_argument("--max-concurrency", type=int, default=8)
    parser.add_argument("--num-prompts", type=int, help="default: as many as --max-concurrency")
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument(
        "--rounds",
        type=int,
        default=6,
        help="a multiple of 3 gives every variant every place in the order",
    )
    parser.add_argument("--rate", type=float, default=10.0, help="samples a second")
    parser.add_argument(
        "--counted-as", default="tp2", help="the layout whose collectives are counted at every step"
    )
    parser.add_argument("--out", type=Path, default=Path("recording_cost.arrow"))
    return parser.parse_args()


def planned(arguments: argparse.Namespace) -> tuple[EnginePlan, Work]:
    """The plan and the work of what is asked for."""
    experiment = Experiment.model_validate({name: getattr(arguments, name) for name in ASKED})
    device, topology = planning.choose_device(experiment, hardware.local_topology(arguments.device))
    (deployment,) = planning.plan_experiment(experiment, device, topology)
    return deployment.plan, deployment.cells[0].work


def build(worker: Worker, plan: EnginePlan, work: Work, rate_hz: float) -> Setup:
    """Build `plan`, to be sampled `rate_hz` times a second."""
    built = worker.build("torch", plan, None)
    worker._sampler.period_s = 1.0 / rate_hz
    return Setup(
        rate_hz=rate_hz,
        model=plan.model.name,
        device_name=built.device_name,
        max_concurrency=work.max_concurrency,
    )


# -- one run


def measure(worker: Worker, work: Work, setup: Setup, rounds: int) -> Iterator[CostRow]:
    """Every variant once a round."""
    for number in range(rounds):
        first = number % len(VARIANTS)
        for variant in VARIANTS[first:] + VARIANTS[:first]:
            yield CostRow(round=number, served=serve(worker, work, variant), setup=setup)


def serve(worker: Worker, work: Work, variant: str, around: Around = nullcontext) -> Served:
    """One run of a variant; `around`: what is set inside the timed loop alone."""
    seconds: list[float] = []
    readings: Counter[str] = Counter()
    gc.collect()  # so that this run does not clear what the one before has left
    blocks, spent_ms = pinned()
    with timed_loop(seconds, around), recorded_as(variant, worker, readings):
        report = worker.run(work)
    recording = worker._recording
    worker.telemetry()
    assert recording is not None
    assert report.collectives is not None
    tokens, grown = sum(request.output_len for request in work.requests), pinned()
    return Served(
        variant=variant,
        loop_s=seconds[0],
        output_throughput=tokens / seconds[0],
        samples=len(recording.samples),
        sampler_cpu_s=recording.cpu_s,
        readings=readings.total(),
        steps=report.steps.num_rows,
        collectives=sum(one.calls for one in COLLECTIVES.rows(report.collectives)),
        pinned_blocks=grown[0] - blocks,
        pinned_ms=grown[1] - spent_ms,
    )


@contextmanager
def timed_loop(seconds: list[float], around: Around) -> Iterator[None]:
    """Time the loop of every run inside: the device is idle before it, and is waited for after
    it."""
    loop = Generator._loop

    def timed(self: Generator, run: Run) -> None:
        start = time.perf_counter()
        with around():
            loop(self, run)
        synchronize(self._device)
        seconds.append(time.perf_counter() - start)

    with mock.patch.object(Generator, "_loop", timed):
        yield


def pinned() -> tuple[int, float]:
    """Blocks of pinned memory that CUDA has made for torch so far, and the milliseconds that took;
    0 on a CPU."""
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    stats = torch.cuda.host_memory_stats() if initialized else {}
    return stats.get("num_host_alloc", 0), stats.get("host_alloc_time.total", 0) / 1e3


# -- what a variant records


@contextmanager
def recorded_as(variant: str, worker: Worker, readings: Counter[str]) -> Iterator[None]:
    """Record what the variant says. readings: counts those that the gauges are told, by metric."""
    with ExitStack() as stack:
        if variant != EVERYTHING:
            stack.enter_context(mock.patch.object(worker, "_sampler", NoSampler()))
        recording = unrecorded() if variant == NOTHING else published(worker, readings)
        stack.enter_context(recording)
        yield


class NoSampler(Sampler):
    """Takes no samples, and has no thread."""

    def start(self) -> Recording:
        """A recording that stays empty."""
        return Recording([], self.period_s)


class Unwritten(list[Any]):
    """A list that nothing is kept in."""

    def append(self, _: object) -> None:
        """Keep nothing."""


@contextmanager
def unrecorded() -> Iterator[None]:
    """Nothing of a step is kept: no moment, no copy of its tokens, no progress, no count."""
    stand_ins: tuple[tuple[object, str, Callable[..., object]], ...] = (
        (generator, "Log", lambda: Log(Unwritten(), Unwritten(), Unwritten())),
        (Clock, "mark", lambda self: 0.0),
        (Generator, "_copy", lambda self, tokens: None),
        (Scheduler, "held", lambda self: (0, 0, 0)),
        (Progress, "step", lambda self, *step: None),
        (Communicator, "_count", lambda self, op, axis, size, began: None),
        (Communicator, "count", lambda self, captured: None),
    )
    with ExitStack() as stack:
        for owner, name, stand_in in stand_ins:
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        yield


@contextmanager
def published(worker: Worker, readings: Counter[str]) -> Iterator[None]:
    """The gauges' thread, as an actor has it. Without a cluster Ray's metrics take what they are
    told too, and nobody sees it."""
    put = Board.put

    def counted(self: Board, told: Iterable[Reading]) -> None:
        told = list(told)
        readings.update(metric.name for metric, _, _ in told)
        put(self, told)

    with mock.patch.object(Board, "put", counted):
        worker.publish(TAGS)
        publisher = worker._publisher
        assert publisher is not None
        try:
            yield
        finally:
            publisher.stop()
            worker._publisher = None


def collectives(layout: str, model: str, plan: EnginePlan) -> Captured:
    """What the first rank of `layout` communicates in a decode step with every request in it, as a
    graph records it."""
    placement, captured = planning.sketch(layout, model)[0].placement, Captured()
    size = DTYPE_BYTES[plan.dtype]
    for traffic in decode_step(placement, plan.model, 0, plan.max_concurrency, size):
        for _ in range(traffic.calls):
            captured.add(traffic.op, traffic.axis, traffic.bytes // traffic.calls)
    return captured


@contextmanager
def counting(captured: Captured) -> Iterator[None]:
    """Have `captured` counted at every step, as a replayed graph has its own."""
    run = Runner.run

    def counted(self: Runner, step: Step) -> Tensor | None:
        tokens = run(self, step)
        self._communicator.count(captured)
        return tokens

    with mock.patch.object(Runner, "run", counted):
        yield


# -- what came out


def say(rows: Sequence[CostRow]) -> None:
    """Print what every variant did, and what recording costs."""
    of = {name: [one.served for one in rows if one.served.variant == name] for name in VARIANTS}
    setup, loop_s = rows[0].setup, mean(one.loop_s for one in of[NOTHING])
    print(
        f"{setup.model} on {setup.device_name}, {setup.max_concurrency} concurrent, loops of "
        f"{loop_s:.2f} s, one warm-up"
    )
    for variant, runs in of.items():
        say_variant(variant, runs)
    for over, under in COMPARED:
        print(f"throughput, {over} / {under}: {written(against(of[over], of[under]))}")
    cost = against(of[EVERYTHING], of[NOTHING])
    print(f"Does everything cost under {MOST_COST:.0%}? {verdict(cost)}")


def say_variant(variant: str, runs: Sequence[Served]) -> None:
    seconds = sum(one.loop_s for one in runs)
    rate = sum(one.samples for one in runs) / seconds
    core = sum(one.sampler_cpu_s for one in runs) / seconds
    print(f"{variant}: {mean(one.output_throughput for one in runs):.1f} tokens/s")
    print(f"  sampler: {rate:.1f} samples/s, its thread {core:.3%} of one core")
    print(
        f"  a run: {mean(one.steps for one in runs):.0f} steps kept, "
        f"{mean(one.collectives for one in runs):.0f} collectives counted, "
        f"{mean(one.readings for one in runs):.0f} readings told to the gauges"
    )


def say_what_was_pinned(warm_up: Served, rows: Iterable[CostRow]) -> None:
    print(
        f"pinned memory made in the warm-up: {warm_up.pinned_blocks} blocks in "
        f"{warm_up.pinned_ms:.1f} ms; "
        f"in the runs after it: {sum(one.served.pinned_blocks for one in rows)}"
    )


def against(over: Sequence[Served], under: Sequence[Served]) -> Spread:
    """The ratio of throughputs, round by round."""
    pairs = zip(over, under, strict=True)
    found = spread([a.output_throughput / b.output_throughput for a, b in pairs])
    assert found is not None
    return found


def written(ratio: Spread) -> str:
    """The ratio, with its interval where there is one."""
    if ratio.ci_low is None:
        return f"{ratio.mean:.4f}"
    interval = f"[{ratio.ci_low:.4f}, {ratio.ci_high:.4f}]"
    return f"{ratio.mean:.4f} {interval}, 95% interval of {ratio.n} rounds"


def verdict(ratio: Spread) -> str:
    """Whether recording costs less than MOST_COST, as far as the rounds can tell."""
    if ratio.ci_low is None or ratio.ci_high is None:
        return "one round cannot tell"
    if ratio.ci_low > 1 - MOST_COST:
        return "yes, by the whole interval"
    if ratio.ci_high < 1 - MOST_COST:
        return "no, by the whole interval"
    return "these rounds cannot tell"


# -- does the loop wait for the device?


def says_that_nothing_waits(worker: Worker, work: Work, device: str) -> bool:
    """Print what two more runs with everything recorded say of waiting inside the loop. True where
    there is none."""
    if device == "cpu":
        print(
            "synchronising calls in the timed loop: does not apply on a CPU, where the host is "
            "never ahead of the device"
        )
        return True
    silent = raises_nothing(worker, work)
    calls = called(worker, work)
    waiting = {name: count for name, count in calls.items() if waits(name)}
    allocating = {name: count for name, count in calls.items() if name in ALLOCATING}
    print(
        f"profiled, {PROFILED_TOKENS} tokens a request: {calls.total()} calls of CUDA in the "
        "timed loop"
    )
    print(f"synchronising calls in the timed loop: {told(waiting) if calls else 'not known'}")
    print(
        "allocating calls in the timed loop, which CUDA may order against other work: "
        f"{told(allocating)}"
    )
    return silent and bool(calls) and not waiting


def called(worker: Worker, work: Work) -> Counter[str]:
    """Calls of CUDA in the loop of a short run, by name."""
    calls: Counter[str] = Counter()
    short = tuple(
        replace(request, output_len=min(request.output_len, PROFILED_TOKENS))
        for request in work.requests
    )
    serve(worker, replace(work, requests=short), EVERYTHING, lambda: profiled(calls))
    return calls


def raises_nothing(worker: Worker, work: Work) -> bool:
    """Whether torch sees no call that waits; prints that, and what NVML's calls took."""
    nvml, silent = TimedNvml(worker._sampler._nvml), True
    try:
        with mock.patch.object(worker._sampler, "_nvml", nvml):
            serve(worker, work, EVERYTHING, forbidden)
    except RuntimeError:
        traceback.print_exc()
        silent = False
    said = "nothing raised" if silent else "raised"
    print(f"torch.cuda.set_sync_debug_mode('error') in the timed loop: {said}")
    nvml.say()
    return silent


@contextmanager
def forbidden() -> Iterator[None]:
    """torch raises at a call that waits for the device; not all are known to it
    (`torch.cuda.set_sync_debug_mode`)."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def profiled(calls: Counter[str]) -> Iterator[None]:
    """Count what is called of CUDA inside."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with (
        torch.profiler.profile(activities=activities, acc_events=True) as profiler,
        torch.profiler.record_function(LOOP),
    ):
        yield
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        calls.update(calls_inside(json.loads(path.read_text())))


def calls_inside(trace: Mapping[str, Any]) -> Counter[str]:
    """Calls of the runtime and the driver that were made inside the annotation LOOP of a Chrome
    trace, by name, from whatever thread; copies from or to pageable memory, for which the driver
    waits too, wherever they are in it."""
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    (loop,) = (
        event for event in events if event["name"] == LOOP and event.get("cat") == "user_annotation"
    )
    inside = (e for e in events if loop["ts"] <= e["ts"] <= loop["ts"] + loop["dur"])
    calls = Counter(e["name"] for e in inside if e.get("cat") in ("cuda_runtime", "cuda_driver"))
    calls.update(
        e["name"] for e in events if e.get("cat") == "gpu_memcpy" and "Pageable" in e["name"]
    )
    return calls


def waits(name: str) -> bool:
    """Whether a call makes the host wait for the device."""
    return "Synchronize" in name or "Pageable" in name or name == "cudaMemcpy"


def told(counts: Mapping[str, int]) -> str:
    """The sum of all, and each by name."""
    names = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return f"{sum(counts.values())} ({names})" if names else "0"


class TimedNvml:
    """NVML, with the time that each call took; of nvmlDeviceGetFieldValues also each field's, as
    NVML tells it."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._seconds: dict[str, list[float]] = defaultdict(list)

    def __getattr__(self, name: str) -> Any:
        known = getattr(self._nvml, name)
        return self._timed(name, known) if name.startswith("nvmlDeviceGet") else known

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                out = call(*args)
            finally:
                self._seconds[name].append(time.perf_counter() - start)
            for value in out if name == "nvmlDeviceGetFieldValues" else ():
                self._seconds[f"  field {value.fieldId}"].append(value.latencyUsec / 1e6)
            return out

        return timed

    def say(self) -> None:
        """Print the mean of each."""
        print("NVML's calls in one run:")
        for name, seconds in self._seconds.items():
            print(f"  {name}: {len(seconds)} calls of {1e3 * sum(seconds) / len(seconds):.3f} ms")


if __name__ == "__main__":
    main()
