"""What recording costs a run: the same work served in turn with all that is recorded, without the
sampler, and with nothing.

    python benchmarks/recording_cost.py --device cpu
    python benchmarks/recording_cost.py --device cuda --model llama-8b --load-format dummy
    --max-concurrency 100 \
        --input-len 256 --output-len 384

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from orchestrator.analysis.confidence import Spread, spread
from orchestrator.cluster import hardware
from orchestrator.experiment import Experiment
from orchestrator.plan import planning
from orchestrator.store.results import write_part
from strategies.shapes import DTYPE_BYTES
from strategies.traffic import decode_step
from workers.actor import Worker
from workers.clock import Clock
from workers.communicator import Communicator
from workers.communicator import Recording as Captured
from workers.device import synchronize
from workers.engines.native import loop as engine
from workers.engines.native.log import Log
from workers.engines.native.loop import Generator
from workers.engines.native.runner import Runner
from workers.engines.native.scheduler import Scheduler
from workers.messages import EnginePlan, Work
from workers.probes.gauges import Board
from workers.probes.telemetry import Recording, Sampler
from workers.progress import Progress
from workers.rows import Table, column, group, row

EVERYTHING, UNSAMPLED, NOTHING = VARIANTS = ("everything", "without sampler", "nothing")
TAGS = {"experiment": "recording_cost", "model": "", "strategy": "tp1", "engine": "torch"}
PROFILED_TOKENS = 32  # made for each request while the profiler looks on
MOST_COST = 0.01  # of the throughput, that recording may take

KEPT = (
    ("steps", "steps kept"),
    ("collectives", "collectives counted"),
    ("readings", "readings told to the gauges"),
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
class RunRow:
    """One run of a variant."""

    round: int = column("number of the round, from 0", "1")
    variant: str = column("one of VARIANTS")
    loop_s: float = column("how long the generate loop took", "s")
    output_throughput: float = column("tokens made over that time", "tokens/s")
    samples: int = column("samples taken", "1")
    sampler_cpu_s: float = column("processor time of the sampler's thread", "s")
    readings: int = column("readings told to the gauges", "1")
    steps: int = column("steps kept with their moments", "1")
    collectives: int = column("collectives counted", "1")
    pinned_blocks: int = column(
        "blocks of pinned memory that torch had CUDA make, for copies of tokens and inputs of "
        "steps",
        "1",
    )
    pinned_ms: float = column("what that took", "ms")


@row
class CostRow:
    """A run, and what it was a run of."""

    run: RunRow = group()
    rate_hz: float = column("samples that were asked for", "Hz")
    model: str = column("name of the model")
    device_name: str = column("name of the device")
    max_concurrency: int = column("most requests in flight", "requests")


COST = Table("recording_cost", CostRow)

Around = Callable[[], AbstractContextManager[None]]


def main() -> None:
    arguments = parse()
    fields = (
        "model",
        "device",
        "load_format",
        "max_concurrency",
        "num_prompts",
        "input_len",
        "output_len",
    )
    experiment = Experiment.model_validate({name: getattr(arguments, name) for name in fields})
    device, topology = planning.choose_device(experiment, hardware.local_topology(arguments.device))
    (deployment,) = planning.plan(experiment, device, topology)
    plan, work = deployment.plan, deployment.cells[0].work
    worker = Worker()
    try:
        built = worker.build("torch", plan, None)
        worker._sampler.period_s = 1.0 / arguments.rate
        same: dict[str, Any] = {"rate_hz": arguments.rate, "max_concurrency": work.max_concurrency}
        same |= {"model": plan.model.name, "device_name": built.device_name}
        with counting(collectives(arguments.counted_as, arguments.model, plan)):
            warm_up = serve(worker, work, EVERYTHING, 0)
            runs = list(measure(worker, work, arguments.rounds))
            write_part(arguments.out, COST.make(CostRow(run=run, **same) for run in runs))
            first = f"{plan.model.name} on {built.device_name}, {work.max_concurrency} concurrent"
            say(first, runs)
            say_what_was_pinned(warm_up, runs)
            print(f"Runs: {arguments.out}")
            if device == "cpu":
                print(
                    "synchronising calls in the timed loop: does not apply on a CPU, where the "
                    "host is never ahead of the device"
                )
            elif not says_that_nothing_waits(worker, work):
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


# -- one run


def measure(worker: Worker, work: Work, rounds: int) -> Iterator[RunRow]:
    """Every variant once a round."""
    for number in range(rounds):
        first = number % len(VARIANTS)
        for variant in VARIANTS[first:] + VARIANTS[:first]:
            yield serve(worker, work, variant, number)


def serve(
    worker: Worker, work: Work, variant: str, number: int, around: Around = nullcontext
) -> RunRow:
    """One run of a variant; `around`: what is set inside the timed loop alone."""
    seconds: list[float] = []
    readings: Counter[str] = Counter()
    gc.collect()  # what the run before has left behind is not this one's to clear
    blocks, spent_ms = pinned()
    with ExitStack() as stack:
        stack.enter_context(timed_loop(seconds, around))
        if variant != EVERYTHING:
            stack.enter_context(mock.patch.object(worker, "_sampler", NoSampler()))
        if variant == NOTHING:
            stack.enter_context(unrecorded())
        else:
            stack.enter_context(published(worker, readings))
        report = worker.run(work)
    recording = worker._recording
    worker.telemetry()
    assert recording is not None
    assert report.collectives is not None
    tokens, grown = sum(request.output_len for request in work.requests), pinned()
    return RunRow(
        round=number,
        variant=variant,
        loop_s=seconds[0],
        output_throughput=tokens / seconds[0],
        samples=len(recording.rows),
        sampler_cpu_s=recording.cpu_s,
        readings=readings.total(),
        steps=report.steps.num_rows,
        collectives=sum(report.collectives["calls"].to_pylist()),
        pinned_blocks=grown[0] - blocks,
        pinned_ms=grown[1] - spent_ms,
    )


@contextmanager
def timed_loop(seconds: list[float], around: Around) -> Iterator[None]:
    """Time the loop of every run inside: the device is idle before it, and is waited for after
    it."""
    loop = Generator._loop

    def timed(self: Generator, *args: Any) -> None:
        start = time.perf_counter()
        with around():
            loop(self, *args)
        synchronize(self._device)
        seconds.append(time.perf_counter() - start)

    with mock.patch.object(Generator, "_loop", timed):
        yield


def pinned() -> tuple[int, float]:
    """Blocks of pinned memory that CUDA has made for torch so far, and the milliseconds that took;
    0 on a CPU."""
    stats = torch.cuda.host_memory_stats() if torch.cuda.is_initialized() else {}
    return stats.get("num_host_alloc", 0), stats.get("host_alloc_time.total", 0) / 1e3


class NoSampler(Sampler):
    """Takes no samples, and has no thread."""

    def start(self) -> Recording:
        return Recording([], self.period_s)


class Unwritten(list[Any]):
    """A list that nothing is kept in."""

    def append(self, _: Any) -> None:
        pass


@contextmanager
def unrecorded() -> Iterator[None]:
    """Nothing of a step is kept: no moment, no copy of its tokens, no progress, no count."""
    stand_ins: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
        (engine, "Log", lambda: Log(Unwritten(), Unwritten(), Unwritten())),
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
    """The gauges' thread, as an actor has it. Ray's metrics take what they are told without a
    cluster too, to no avail."""
    put = Board.put

    def counted(self: Board, told: Iterable[Any]) -> None:
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
    graph would hold it."""
    placement, captured = planning.sketch(layout, model)[0].placement, Captured()
    for traffic in decode_step(
        placement, plan.model, 0, plan.max_concurrency, DTYPE_BYTES[plan.dtype]
    ):
        for _ in range(traffic.calls):
            captured.add(traffic.op, traffic.axis, traffic.bytes // traffic.calls)
    return captured


@contextmanager
def counting(captured: Captured) -> Iterator[None]:
    """Have `captured` counted at every step, as a replayed graph has its own."""
    run = Runner.run

    def counted(self: Runner, step: Any) -> Any:
        tokens = run(self, step)
        self._communicator.count(captured)
        return tokens

    with mock.patch.object(Runner, "run", counted):
        yield


# -- what came out


def say(about: str, rows: list[RunRow]) -> None:
    of = {variant: [run for run in rows if run.variant == variant] for variant in VARIANTS}
    print(f"{about}, loops of {mean(of[NOTHING], 'loop_s'):.2f} s, one warm-up")
    for variant, runs in of.items():
        seconds = sum(run.loop_s for run in runs)
        rate = sum(run.samples for run in runs) / seconds
        core = sum(run.sampler_cpu_s for run in runs) / seconds
        print(f"{variant}: {mean(runs, 'output_throughput'):.1f} tokens/s")
        print(f"  sampler: {rate:.1f} samples/s, its thread {core:.3%} of one core")
        kept = (f"{mean(runs, name):.0f} {what}" for name, what in KEPT)
        print(f"  a run: {', '.join(kept)}")
    for over, under in ((EVERYTHING, NOTHING), (UNSAMPLED, NOTHING), (EVERYTHING, UNSAMPLED)):
        ratio = against(of[over], of[under])
        print(f"throughput, {over} / {under}: {written(ratio)}")
    cost = verdict(against(of[EVERYTHING], of[NOTHING]))
    print(f"Does everything cost under {MOST_COST:.0%}? {cost}")


def say_what_was_pinned(warm_up: RunRow, rows: list[RunRow]) -> None:
    print(
        f"pinned memory made in the warm-up: {warm_up.pinned_blocks} blocks in "
        f"{warm_up.pinned_ms:.1f} ms; "
        f"in the runs after it: {sum(run.pinned_blocks for run in rows)}"
    )


def mean(runs: list[RunRow], name: str) -> float:
    return float(sum(getattr(run, name) for run in runs) / len(runs))


def against(over: list[RunRow], under: list[RunRow]) -> Spread:
    """The ratio of throughputs, round by round."""
    pairs = zip(over, under, strict=True)
    found = spread([a.output_throughput / b.output_throughput for a, b in pairs])
    assert found is not None
    return found


def written(ratio: Spread) -> str:
    interval = (
        ""
        if ratio.ci_low is None
        else f" [{ratio.ci_low:.4f}, {ratio.ci_high:.4f}], 95% interval of {ratio.n} rounds"
    )
    return f"{ratio.mean:.4f}{interval}"


def verdict(ratio: Spread) -> str:
    if ratio.ci_low is None or ratio.ci_high is None:
        return "one round cannot tell"
    if ratio.ci_low > 1 - MOST_COST:
        return "yes, by the whole interval"
    return (
        "no, by the whole interval" if ratio.ci_high < 1 - MOST_COST else "these rounds cannot tell"
    )


# -- does the loop wait for the device?


def says_that_nothing_waits(worker: Worker, work: Work) -> bool:
    """Print what two more runs with everything recorded say of waiting inside the loop. True where
    there is none."""
    nvml = TimedNvml(worker._sampler._nvml)
    with mock.patch.object(worker._sampler, "_nvml", nvml):
        silent = raises_nothing(worker, work)
    nvml.say()
    calls: Counter[str] = Counter()
    short = tuple(
        replace(request, output_len=min(request.output_len, PROFILED_TOKENS))
        for request in work.requests
    )
    serve(worker, replace(work, requests=short), EVERYTHING, 0, lambda: profiled(calls))
    waiting, allocating = (
        {name: n for name, n in calls.items() if is_it(name)}
        for is_it in (waits, ALLOCATING.__contains__)
    )
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


def raises_nothing(worker: Worker, work: Work) -> bool:
    try:
        serve(worker, work, EVERYTHING, 0, forbidden)
    except RuntimeError:
        traceback.print_exc()
        print("torch.cuda.set_sync_debug_mode('error') in the timed loop: raised")
        return False
    print("torch.cuda.set_sync_debug_mode('error') in the timed loop: nothing raised")
    return True


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
        print("NVML's calls in one run:")
        for name, seconds in self._seconds.items():
            print(f"  {name}: {len(seconds)} calls of {1e3 * sum(seconds) / len(seconds):.3f} ms")


if __name__ == "__main__":
    main()
