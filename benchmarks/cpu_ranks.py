"""Ranks on the CPUs of one host: shared memory and gloo in turn, over fresh starts.

    python benchmarks/cpu_ranks.py
    python benchmarks/cpu_ranks.py --layouts tp2,tp4,tp2pp2 --starts 5

Serves the preset `tiny` in float32: 8 requests at once, 32 tokens in and 64 out, without Ray. Every
start is two fresh groups of processes, one of each backend. They take turns run by run, so that
what else the machine does falls on both: 8 requests once to warm up, RUNS times to measure, and
once to take the steps apart. For each layout: tokens a second of the best run of a start, which was
disturbed least, as mean over starts; the ratio of the two with its 95% interval over starts; and
the share of communication in a decode step (transfer, wait and bubble), mean over ranks and starts.
docs/performance.md has how to see it beside vLLM.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa

from orchestrator.analysis.comparing.confidence import paired_ratio
from orchestrator.analysis.observed.accounting import account
from orchestrator.plan import models
from strategies import Load, Topology, plan_layout
from workers.messages import EnginePlan, RankReport, Request, Switches, Work

BACKENDS = ("shm", "gloo")
AT_ONCE, INPUT_LEN, OUTPUT_LEN, RUNS = 8, 32, 64, 9


class Measured(NamedTuple):
    """What one start of a backend gave: tokens a second, and percent of a decode step in
    communication."""

    throughput: float
    communication_pct: float


Start = Mapping[str, Measured]  # by backend


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layouts", default="tp2,tp4,tp2pp2")
    parser.add_argument("--starts", type=int, default=3, help="of each layout and backend")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(f"{os.cpu_count()} cores; starts: {asked.starts}")
    for layout in asked.layouts.split(","):
        starts = [start(layout, asked.seed + number) for number in range(asked.starts)]
        print(told(layout, starts), flush=True)


def told(layout: str, starts: Sequence[Start]) -> str:
    """One line."""
    shm, gloo = ([one[backend].throughput for one in starts] for backend in BACKENDS)
    ratio = paired_ratio(shm, gloo)
    shares = (mean(one[backend].communication_pct for one in starts) for backend in BACKENDS)
    in_words = "; ".join(
        f"{backend} {mean(values):5.0f} tok/s, {share:.0f}% communication"
        for backend, values, share in zip(BACKENDS, (shm, gloo), shares, strict=True)
    )
    within = "" if ratio is None or ratio.low is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{layout:7} {in_words}; ratio {mean(shm) / mean(gloo):.2f}{within}"


def plan_for(layout: str, backend: str) -> EnginePlan:
    """A plan that serves the load under `layout`."""
    model, longest = models.resolve("tiny"), INPUT_LEN + OUTPUT_LEN
    load, topology = Load(INPUT_LEN, OUTPUT_LEN, AT_ONCE), Topology.uniform(64)
    return EnginePlan(
        model=model.shape,
        layout=layout,
        placement=plan_layout(layout, model.shape, load, topology).placement,
        checkpoint=str(model.checkpoint),
        dtype="float32",
        device="cpu",
        max_concurrency=AT_ONCE,
        max_len=longest,
        prefill_tokens=2048,
        timeout_s=120.0,
        switches=Switches(allreduce=backend),
    )


def start(layout: str, seed: int) -> Start:
    """Fresh processes of both backends, which serve in turn and end."""
    plans = {backend: plan_for(layout, backend) for backend in BACKENDS}
    rng, done = np.random.default_rng(seed), {backend: list[Any]() for backend in BACKENDS}
    with ExitStack() as ends:
        groups = {name: ends.enter_context(built(plan)) for name, plan in plans.items()}
        for number in range(RUNS + 2):
            asked = work(plans[BACKENDS[0]], rng, observe=number > RUNS)
            for backend in BACKENDS if (number + seed) % 2 else reversed(BACKENDS):
                reports = ask(groups[backend], "run", [(asked,)] * len(groups[backend]))
                done[backend].append(reports)
    return {
        backend: Measured(
            max(map(throughput, runs[1:-1])), communication_pct(plans[backend], runs[-1])
        )
        for backend, runs in done.items()
    }


def work(plan: EnginePlan, rng: np.random.Generator, observe: bool) -> Work:
    """Random prompts."""
    prompts = rng.integers(8, plan.model.vocab_size, (AT_ONCE, INPUT_LEN)).tolist()
    requests = (Request(i, tuple(prompt), OUTPUT_LEN) for i, prompt in enumerate(prompts))
    return Work(tuple(requests), AT_ONCE, observe=observe)


def throughput(reports: Sequence[RankReport]) -> float:
    """Output tokens a second, from the start to the last token."""
    tables = [one.requests for one in reports if one.requests is not None]
    times = [time for table in tables for one in table["token_times_s"].to_pylist() for time in one]
    return len(times) / max(times)


def communication_pct(plan: EnginePlan, reports: Sequence[RankReport]) -> float:
    """Transfer, wait and bubble in percent of a decode step, mean over ranks."""
    spans = pa.concat_tables([one.spans for one in reports if one.spans is not None])
    rows = account(spans, plan.placement)["parts"].to_pylist()
    parts = ("exposed_transfer_ms", "exposed_wait_ms", "bubble_ms")
    return mean(
        100 * sum(row[part] for part in parts) / row["step_ms"]
        for row in rows
        if row["phase"] == "decode"
    )


# -- processes


@contextmanager
def built(plan: EnginePlan) -> Iterator[list[Connection]]:
    """Fresh processes that have built `plan`, with a `Worker` each, as Ray's actors are."""
    spawning, ranks = multiprocessing.get_context("spawn"), plan.placement.num_ranks
    pipes = [spawning.Pipe() for _ in range(ranks)]
    started = [spawning.Process(target=serve, args=(theirs,), daemon=True) for _, theirs in pipes]
    for process in started:
        process.start()
    try:
        workers = [ours for ours, _ in pipes]
        ask(workers, "assign", [(rank,) for rank in range(ranks)])
        (address,) = ask(workers[:1], "open_store", [("127.0.0.1",)])
        ask(workers, "build", [("torch", plan, address)] * ranks)
        yield workers
    finally:
        for process in started:
            process.kill()
            process.join()


def serve(connection: Connection) -> None:
    """Call the methods of a `Worker` that are asked for, for ever."""
    os.environ["OMP_NUM_THREADS"] = "1"
    answer(connection)


def answer(connection: Connection) -> None:
    """The same with the threads that this process has, until EOFError says that nobody asks."""
    from workers.actor import Worker

    worker = Worker()
    while True:
        method, arguments = connection.recv()
        try:
            connection.send(getattr(worker, method)(*arguments))
        except Exception as error:
            connection.send(error)


def ask(workers: Sequence[Connection], method: str, arguments: Sequence[tuple[Any, ...]]) -> Any:
    """The answers of all; ends this process where one has failed."""
    for worker, own in zip(workers, arguments, strict=True):
        worker.send((method, own))
    answers = [worker.recv() for worker in workers]
    for error in (one for one in answers if isinstance(one, Exception)):
        raise SystemExit(f"{type(error).__name__}: {error}")
    return answers


if __name__ == "__main__":
    main()
