"""The layouts of qwen2.5-32b under vLLM too, on two H100."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from published import (
    Published,
    between,
    bullets,
    check_sum,
    cost,
    known,
    listed,
    paragraph,
    table,
    users,
)

from orchestrator.analysis.observed.communication import PROFILE_LIMIT, PhaseParts
from orchestrator.report.text import three_digits

# Title of a column -> the part of a decode step, in ms of a GPU.
STEP: dict[str, Callable[[PhaseParts], float | None]] = {
    "step": lambda one: one.step_ms,
    "compute": lambda one: one.compute.ms,
    "transfer": lambda one: one.exposed_transfer.ms,
    "wait": lambda one: one.exposed_wait.ms,
    "fused": lambda one: one.fused.ms,
    "bubble": lambda one: one.bubble.ms,
    "launch gap": lambda one: one.launch_gap.ms,
}


def section(found: Published) -> Iterator[str]:
    """The paragraphs of the section."""
    layouts = ["tp2", "dp2", "pp2"]
    yield "### The same layouts under vLLM"
    yield paragraph(*_both_engines(found))
    yield _side_by_side(found, layouts)
    yield paragraph(
        "With so few starts there is no verdict between the engines; `--engine torch,vllm "
        "--chunked-prefill-size 2048 --num-starts 5` gives one. What a decode step consists of, in "
        "milliseconds of a GPU, from a profiled run of each engine; under pp2 a step of `torch` is "
        "that of one of its two micro-batches:"
    )
    yield _steps(found, layouts)
    yield bullets(
        _fused_sum(found), _one_batch(found), _first_token(found), _untaken_prefill(found)
    )


def _both_engines(found: Published) -> Iterator[str]:
    asked, manifest = found.results.asked, found.results.manifest
    settings = manifest["engine_settings"]["qwen2.5-32b.tp2.vllm.bfloat16"]
    assert "fuse_allreduce_rms=True" in settings["resolved.compilation_config.pass_config"]
    assert (asked["num_prompts"], asked["num_runs"], asked["load_format"]) == (None, 2, "dummy")
    once = [
        f"{one.cell.strategy} of {one.cell.engine}"
        for one in found.findings.comparison
        if (one.num_starts, one.cell.max_concurrency) == (1, 1)
    ]
    assert {one.num_starts for one in found.findings.comparison} == {1, 2}
    yield (
        f"vLLM {manifest['versions']['vllm']} and the engine `torch` in one command, in turns: two "
        "H100, BF16, dummy weights, 256 tokens in and 128 out, closed batches of 1, 32 and 100 "
        "requests, two runs of each in a start."
    )
    yield (
        "vLLM ran with its own defaults: CUDA graphs, asynchronous scheduling, and its all-reduce "
        "fused with the norm behind it by FlashInfer. Three things differ. NVLink multicast is "
        f"off, a pass has at most {settings['max_num_batched_tokens']} tokens, as under `torch`, "
        f"and tp2 and pp2 have seats for {settings['max_num_seqs']} requests and no more: of whole "
        "decode steps vLLM then has graphs up to 96, and at 100 concurrent it launches pieces. "
        "`submit` leaves it more seats, which these runs did not have."
    )
    yield (
        f"The figures are means of two starts; {listed(once)} had one. Generated tokens per "
        "second, and the median time to the first token in milliseconds:"
    )


def _side_by_side(found: Published, layouts: Sequence[str]) -> str:
    def shown(layout: str, concurrency: int, engine: str) -> str:
        one = found.cell(layout, concurrency, engine)
        reached, first = one.throughput.output_throughput, one.latency.ttft.median
        return f"{three_digits(known(reached))} · {known(first):.0f}"

    pairs = [(layout, engine) for layout in layouts for engine in ("torch", "vllm")]
    rows = [[str(n), *(shown(a, n, b) for a, b in pairs)] for n in found.concurrencies]
    return table(["concurrent", *(f"{a} {b}" for a, b in pairs)], rows)


def _steps(found: Published, layouts: Sequence[str]) -> str:
    rows = []
    for concurrency in found.concurrencies:
        for layout in layouts:
            for engine in ("torch", "vllm"):
                decode = found.cell(layout, concurrency, engine).step.decode
                parts = {title: of(decode) for title, of in STEP.items()}
                check_sum(parts)
                values = [cost(value) for value in parts.values()]
                rows.append([str(concurrency), layout, engine, *values])
    return table(["concurrent", "layout", "engine", *STEP], rows)


def _fused_sum(found: Published) -> str:
    ours = [known(found.cell("tp2", n).step.decode.comm_exposed.pct) for n in found.concurrencies]
    cells = [found.cell("tp2", n, "vllm").step.decode for n in found.concurrencies]
    fused = [known(one.fused.pct) for one in cells]
    exposed = [known(one.comm_exposed.pct) for one in cells]
    return (
        f"Under tp2 a fused kernel of vLLM sums and normalises: {between(fused, '.1f', '%')} of "
        f"its step, beside {between(exposed, '.1f', '%')} that only communicates. Nobody can see "
        f"where in it the transfer ends. NCCL's sums take {between(ours, '.1f', '%')} of a step of "
        "`torch`, and the norms are part of its compute."
    )


def _one_batch(found: Published) -> str:
    many = found.concurrencies[1:]
    idle = [known(found.cell("pp2", n, "vllm").step.decode.bubble.pct) for n in many]
    ours = [known(found.cell("pp2", n).step.decode.bubble.pct) for n in many]
    assert min(idle) > 45 > 10 > max(ours)
    over = [
        known(found.cell("pp2", n).throughput.output_throughput)
        / known(found.cell("pp2", n, "vllm").throughput.output_throughput)
        for n in many
    ]
    return (
        f"Under pp2 each GPU waits for {between(idle, '.0f', '%')} of vLLM's step also at "
        f"{listed(many)} concurrent: all requests are in one batch, which is in one stage at a "
        f"time. `torch` makes two micro-batches of them, waits for {between(ours, '.1f', '%')}, "
        f"and delivers {between(over, '.2f', 'x')}, though each micro-batch streams the weights "
        "anew."
    )


def _first_token(found: Published) -> str:
    one = found.concurrencies[0]
    ours, theirs = (
        [known(found.cell(name, one, engine).latency.ttft.median) for name in ("tp2", "pp2")]
        for engine in ("torch", "vllm")
    )
    assert max(ours) < min(theirs)
    return (
        f"The first token of one user takes {between(ours, '.0f', ' ms')} under tp2 and pp2 of "
        f"`torch`, which replays short prompts as graphs, and {between(theirs, '.0f', ' ms')} of "
        "vLLM."
    )


def _untaken_prefill(found: Published) -> str:
    at = found.concurrencies[0]
    untaken = [one for one in found.findings.comparison if one.cost.prefill_cost_reason]
    assert {(one.cell.engine, one.cell.max_concurrency) for one in untaken} == {("vllm", at)}
    return (
        f"vLLM's prefill for {users(at)} is not taken apart: under the profiler its host is "
        f"slower than the GPUs, and above {PROFILE_LIMIT:g} times the timed pass no share is shown."
    )
