"""The headline of README.md: both models under every layout of four GPUs, in few lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import geometric_mean

from published import (
    THROUGHPUT,
    Published,
    between,
    bullets,
    decode_comm,
    known,
    listed,
    model_of,
    paragraph,
    table,
    users,
)

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.report.text import EN_DASH, three_digits

WIDTH = 100
LAYOUTS = ("tp4", "tp2pp2", "dp4", "pp4")  # as they come out; see `_order`
OURS, THEIRS = "torch", "vllm"


def section(found: Sequence[Published]) -> Iterator[str]:
    """Conditions, a table of each model, and three sentences. found: a result of each model, under
    both engines."""
    yield paragraph(*_conditions(found), width=WIDTH)
    for each in found:
        yield f"**{model_of(each)}**"
        yield _table(each)
    yield bullets(_order(found), _lost(found), _beside_vllm(found), width=WIDTH)


def _conditions(found: Sequence[Published]) -> Iterator[str]:
    rows = [row for each in found for row in each.findings.comparison]
    ((name, inputs, outputs),) = {
        (one.conditions.device_name, one.conditions.input_len, one.conditions.output_len)
        for one in rows
    }
    (version,) = {each.results.manifest["versions"]["vllm"] for each in found}
    yield (
        f"Four {name} of one node, BF16, dummy weights, {inputs} tokens in and {outputs} out: "
        f"generated tokens per second of the engine `{OURS}`, and in brackets the ratio to vLLM "
        f"{version} in the same command, in turns."
    )
    yield _repetition({one.num_starts for one in rows})


def _repetition(starts: set[int]) -> str:
    if max(starts) == 1:
        return "Each layout was started once under each engine, so there are no intervals here."
    return (
        f"Means over {listed(sorted(starts))} starts, and ± half of a 95% interval where there "
        "are two or more."
    )


def _table(found: Published) -> str:
    layouts = [name for name in LAYOUTS if _cell(found, name, found.concurrencies[0], OURS)]
    rows = [[str(n), *(_shown(found, name, n) for name in layouts)] for n in found.concurrencies]
    return table(["concurrent", *layouts], rows)


def _shown(found: Published, layout: str, concurrency: int) -> str:
    one, other = (_cell(found, layout, concurrency, engine) for engine in (OURS, THEIRS))
    if one is None:
        return EN_DASH
    beside = EN_DASH if other is None else f"{_speed(one) / _speed(other):.2f}x"
    return f"{three_digits(_speed(one))}{_interval(found, one)} ({beside})"


def _cell(found: Published, layout: str, concurrency: int, engine: str) -> Comparison | None:
    there = {
        (one.cell.strategy, one.cell.max_concurrency, one.cell.engine)
        for one in found.findings.comparison
    }
    wanted = (layout, concurrency, engine)
    return found.cell(layout, concurrency, engine) if wanted in there else None


def _speed(one: Comparison) -> float:
    return known(one.throughput.output_throughput)


def _interval(found: Published, one: Comparison) -> str:
    (half,) = (
        each
        for each in found.findings.statistics
        if each.cell == one.cell and each.metric == THROUGHPUT
    )
    return "" if half.ci_high is None else f" ± {100 * (half.ci_high / half.mean - 1):.1f}%"


def _order(found: Sequence[Published]) -> str:
    over: dict[int, list[float]] = {}
    for each in found:
        for n in each.concurrencies:
            cells = [_cell(each, layout, n, OURS) for layout in LAYOUTS]
            speeds = [_speed(one) for one in cells if one]
            assert speeds == sorted(speeds, reverse=True)
            over.setdefault(n, []).append(speeds[0] / speeds[1])
    first, *_, last = sorted(over)
    assert min(over[first]) > max(over[last]) > 1.1
    return (
        f"{LAYOUTS[0]} delivers most under every load: {between(over[first], '.2f', 'x')} the "
        f"next layout for {users(first)}, {between(over[last], '.2f', 'x')} at {last} concurrent. "
        f"Then come {listed(LAYOUTS[1:])}."
    )


def _lost(found: Sequence[Published]) -> str:
    shares = {
        layout: [share for each in found for share in decode_comm(each, layout)]
        for layout in ("tp4", "pp4")
    }
    idle = [
        known(each.cell("pp4", n).step.decode.bubble.pct)
        for each in found
        for n in each.concurrencies[:1]
    ]
    assert max(shares["pp4"]) < 0.5
    return (
        f"tp4 spends {between(shares['tp4'], '.0f', '%')} of a decode step on communication and "
        f"pp4 at most {max(shares['pp4']):.1f}%. A pipeline loses more elsewhere: a GPU waits for "
        f"{between(idle, '.0f', '%')} of a step with {users(1)}, and with more each micro-batch "
        "streams the weights anew."
    )


def _beside_vllm(found: Sequence[Published]) -> str:
    said = []
    for layout in LAYOUTS:
        pairs = [
            [_cell(each, layout, n, engine) for engine in (OURS, THEIRS)]
            for each in found
            for n in each.concurrencies
        ]
        ratios = [_speed(one) / _speed(other) for one, other in pairs if one and other]
        said.append(f"{geometric_mean(ratios):.2f}x under {layout}")
    return (
        f"Beside vLLM, as the geometric mean over loads and models: {listed(said)}. vLLM has all "
        "requests of a pipeline in one batch, which is in one stage at a time."
    )
