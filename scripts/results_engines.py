"""llama-70b and qwen2.5-32b under `torch` and under vLLM, on four H100."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import geometric_mean, median

from published import (
    Published,
    between,
    bullets,
    check_sum,
    cost,
    known,
    listed,
    model_of,
    paragraph,
    table,
    users,
)

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.analysis.observed.communication import PhaseParts
from orchestrator.report.text import EN_DASH, fixed, three_digits
from workers.records import PROFILE_LIMIT

ENGINES = ("torch", "vllm")
LAYOUTS = ("tp4", "tp2pp2", "dp4", "pp4")
# Title of a column -> the part of a decode step, in ms of a GPU.
STEP: dict[str, Callable[[PhaseParts], float | None]] = {
    "step": lambda one: one.step_ms,
    "compute": lambda one: one.compute.ms,
    "transfer": lambda one: one.exposed_transfer.ms,
    "wait": lambda one: one.exposed_wait.ms,
    "fused": lambda one: one.fused.ms,
    "launch gap": lambda one: one.launch_gap.ms,
}


def section(found: Sequence[Published]) -> Iterator[str]:
    """The paragraphs of the section. found: a result of each model."""
    dense = next(each for each in found if "dp4" in _layouts(each))
    yield "## Both engines on four H100"
    yield paragraph(*_conditions(found))
    for each in found:
        yield f"**{model_of(each)}**"
        yield _side_by_side(each)
    yield bullets(
        _ratios(found),
        _same_order(found),
        _first_token(found),
        _starts(found),
        " ".join(_predicted(found)),
    )
    yield paragraph(
        f"A decode step of {model_of(dense)} under tp4, in milliseconds of a GPU, from a profiled "
        "run of each engine:"
    )
    yield _steps(dense)
    yield bullets(_fused_sum(found), _one_batch(dense), _energy(dense), _untaken(found))


def _conditions(found: Sequence[Published]) -> Iterator[str]:
    for each in found:
        asked, manifest = each.results.asked, each.results.manifest
        assert (asked["num_prompts"], asked["num_runs"], asked["load_format"]) == (None, 2, "dummy")
        assert {one.num_starts for one in each.findings.comparison} == {1}
        (block,) = {tuple(block["gpu_uuids"]) for block in manifest["blocks"]}
        assert len(block) == 4
    settings = [_settings(each) for each in found]
    assert all("fuse_allreduce_rms=True" in one["pass_config"] for one in settings)
    (version,) = {each.results.manifest["versions"]["vllm"] for each in found}
    (passes,) = {one["max_num_batched_tokens"] for one in settings}
    yield (
        f"vLLM {version} and the engine `torch` in one command, in turns: four H100 of one node, "
        "BF16, dummy weights, 256 tokens in and 128 out, closed batches of 1, 32 and 100 requests, "
        "two runs of each."
    )
    yield (
        "vLLM ran with its own defaults: CUDA graphs, asynchronous scheduling, passes of up to "
        f"{passes} tokens, and its all-reduce fused with the norm behind it by FlashInfer. Only "
        "NVLink multicast is off."
    )
    yield (
        "**Each layout was started once under each engine, so there are no intervals and no "
        "verdicts here.** Generated tokens per second, and the median time to the first token in "
        "milliseconds:"
    )


def _settings(found: Published) -> dict[str, str]:
    settings = found.results.manifest["engine_settings"][f"{model_of(found)}.tp4.vllm.bfloat16"]
    return {name.rpartition(".")[2]: value for name, value in settings.items()}


def _layouts(found: Published) -> list[str]:
    there = {one.cell.strategy for one in found.findings.comparison}
    return [name for name in LAYOUTS if name in there]


def _side_by_side(found: Published) -> str:
    def shown(layout: str, concurrency: int, engine: str) -> str:
        one = _cell(found, layout, concurrency, engine)
        if one is None:
            return EN_DASH
        reached = three_digits(known(one.throughput.output_throughput))
        return f"{reached} · {known(one.latency.ttft.median):.0f}"

    columns = [(n, engine) for n in found.concurrencies for engine in ENGINES]
    rows = [[name, *(shown(name, n, engine) for n, engine in columns)] for name in _layouts(found)]
    return table(["layout", *(f"{engine}, {n}" for n, engine in columns)], rows)


def _cell(found: Published, layout: str, concurrency: int, engine: str) -> Comparison | None:
    there = {(one.cell.strategy, one.cell.engine) for one in found.findings.comparison}
    return found.cell(layout, concurrency, engine) if (layout, engine) in there else None


def _pairs(found: Sequence[Published], layout: str) -> Iterator[tuple[Comparison, Comparison]]:
    """The cells of a layout under both engines."""
    for each in found:
        for n in each.concurrencies:
            ours, theirs = (_cell(each, layout, n, engine) for engine in ENGINES)
            if ours and theirs:
                yield ours, theirs


def _ratio(pair: tuple[Comparison, Comparison]) -> float:
    ours, theirs = (known(one.throughput.output_throughput) for one in pair)
    return ours / theirs


def _ratios(found: Sequence[Published]) -> str:
    ratios = {name: list(map(_ratio, _pairs(found, name))) for name in LAYOUTS}
    said = [
        f"{geometric_mean(values):.2f}x under {name} ({between(values, '.2f', 'x')})"
        for name, values in ratios.items()
    ]
    return f"`torch` delivers of vLLM, as the geometric mean over loads and models: {listed(said)}."


def _same_order(found: Sequence[Published]) -> str:
    for each in found:
        for engine in ENGINES:
            for n in each.concurrencies:
                cells = [_cell(each, name, n, engine) for name in _layouts(each)]
                speeds = [known(one.throughput.output_throughput) for one in cells if one]
                assert speeds == sorted(speeds, reverse=True)
    return f"Both engines put the layouts in the same order under every load: {listed(LAYOUTS)}."


def _first_token(found: Sequence[Published]) -> str:
    pairs = [pair for name in LAYOUTS for pair in _pairs(found, name)]
    firsts = [[known(one.latency.ttft.median) for one in pair] for pair in pairs]
    assert all(ours < theirs for ours, theirs in firsts)
    over = [theirs / ours for ours, theirs in firsts]
    return (
        f"The first token of `torch` is earlier in every cell that both have, by "
        f"{between(over, '.2f', 'x')}."
    )


def _starts(found: Sequence[Published]) -> str:
    took = {
        engine: [
            known(one.startup.startup_s)
            for each in found
            for one in each.findings.comparison
            if one.cell.engine == engine
        ]
        for engine in ENGINES
    }
    said = [f"{between(took[engine], '.0f', ' s')} under {engine}" for engine in ENGINES]
    return (
        f"From the start of the actors to a first token it is {listed(said)}, which compiles "
        "each layout the first time."
    )


def _predicted(found: Sequence[Published]) -> Iterator[str]:
    yield "As predicted before each run, by a fit on other machines:"
    said = []
    for engine in ENGINES:
        rows = [
            one for each in found for one in each.findings.comparison if one.cell.engine == engine
        ]
        misses = [
            100 * abs(known(one.predicted.output_throughput) / known(reached) - 1)
            for one in rows
            if (reached := one.throughput.output_throughput)
        ]
        outside = [one for one in rows if one.predicted.missed]
        said.append(
            f"{engine} off by {median(misses):.1f}% in the median and {max(misses):.1f}% at most, "
            f"{len(outside)} of {len(rows)} cells with something outside of its 90% interval"
        )
    yield f"{'; '.join(said)} ([predictions.md](predictions.md))."


def _steps(found: Published) -> str:
    rows = []
    for concurrency in found.concurrencies:
        for engine in ENGINES:
            decode = found.cell("tp4", concurrency, engine).step.decode
            parts = {title: of(decode) for title, of in STEP.items()}
            check_sum(parts)
            rows.append([str(concurrency), engine, *map(cost, parts.values())])
    return table(["concurrent", "engine", *STEP], rows)


def _fused_sum(found: Sequence[Published]) -> str:
    cells = list(_pairs(found, "tp4"))
    ours = [known(one.step.decode.comm_exposed.pct) for one, _ in cells]
    fused = [known(one.step.decode.fused.pct) for _, one in cells]
    exposed = [known(one.step.decode.comm_exposed.pct) for _, one in cells]
    return (
        f"Under tp4 a fused kernel of vLLM sums and normalises: {between(fused, '.1f', '%')} of "
        f"its step, beside {between(exposed, '.1f', '%')} that only communicates. Nobody can see "
        f"where in it the transfer ends. NCCL's sums take {between(ours, '.1f', '%')} of a step of "
        "`torch`, and the norms are part of its compute."
    )


def _one_batch(found: Published) -> str:
    pairs = [
        pair
        for pair in _pairs([found], "pp4")
        if pair[0].cell.max_concurrency > 1 and pair[1].step.decode.bubble.pct is not None
    ]
    idle = [known(theirs.step.decode.bubble.pct) for _, theirs in pairs]
    mine = [known(ours.step.decode.bubble.pct) for ours, _ in pairs]
    ratios = list(map(_ratio, pairs))
    assert min(idle) > 70 > 10 > max(mine)
    return (
        f"Under pp4 a GPU waits for {between(idle, '.0f', '%')} of vLLM's step also at "
        f"{listed(found.concurrencies[1:])} concurrent: all requests are in one batch, which is in "
        f"one stage at a time. `torch` makes four micro-batches of them, waits for "
        f"{between(mine, '.1f', '%')}, and delivers {between(ratios, '.2f', 'x')}."
    )


def _energy(found: Published) -> str:
    (pair,) = (one for one in _pairs([found], "pp4") if one[0].cell.max_concurrency == 100)
    ours, theirs = (known(one.energy.joules_per_output_token) for one in pair)
    assert ours > 1.2 * theirs
    return (
        "That has its price: each micro-batch streams the weights anew. At 100 concurrent a token "
        f"takes {fixed(ours, 2)} J under pp4 of `torch`, and {fixed(theirs, 2)} J of vLLM."
    )


def _untaken(found: Sequence[Published]) -> str:
    unseen = [
        f"{one.cell.strategy} of {model_of(each)}"
        for each in found
        for one in each.findings.comparison
        if one.step.decode.step_ms is None and one.cell.max_concurrency == 1
    ]
    missing = [
        f"{name} of {model_of(each)}"
        for each in found
        for name in _layouts(each)
        if _cell(each, name, each.concurrencies[0], "vllm") is None
    ]
    assert unseen
    assert missing
    return (
        f"Time on the node ended before vLLM ran {listed(missing)} ({EN_DASH}), before a second "
        f"run of pp4 at 100, and before {listed(unseen)} was profiled. Where a profiled prefill "
        f"takes more than {PROFILE_LIMIT:g} times the timed one, it is not taken apart: that of "
        f"vLLM for {users(1)}, whose host is slower than the GPUs under the profiler."
    )
