"""qwen2.5-32b on two H100, over five starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from published import (
    THROUGHPUT,
    Published,
    between,
    bold,
    bullets,
    decode_comm,
    known,
    listed,
    paragraph,
    table,
    users,
)

from orchestrator.analysis.comparing.significance import DIFFERENT, EQUIVALENT
from orchestrator.analysis.comparing.verdicts import Verdict
from orchestrator.analysis.token_cost import Parts
from orchestrator.report.text import three_digits
from workers.rows import grouped


def section(found: Published) -> Iterator[str]:
    """The paragraphs of the section."""
    layouts = ["tp2", "dp2", "pp2"]
    yield "## With intervals: qwen2.5-32b on two H100"
    yield paragraph(*_conditions(found))
    yield _throughputs(found, layouts)
    yield bullets(*_three_layouts(found), " ".join(_tensor_loses(found)), _scatter(found))


def _three_layouts(found: Published) -> Iterator[str]:
    one, many = found.concurrencies[0], found.concurrencies[1:]
    over = [found.verdict("tp2", other, n) for n in found.concurrencies for other in ("pp2", "dp2")]
    yield _tp2_is_best(found, over)
    assert found.verdict("pp2", "dp2", one).verdict == EQUIVALENT
    rest = [found.verdict("dp2", "pp2", n) for n in many]
    assert all((each.verdict, each.better) == (DIFFERENT, "dp2") for each in rest)
    delta = 100 * rest[0].difference
    yield (
        f"pp2 and dp2 are equivalent within {delta:g}% for {users(one)}. At {listed(many)} dp2 "
        f"delivers {between(_ratios(rest), '.2f', 'x')} pp2."
    )


def _conditions(found: Published, *more: str) -> Iterator[str]:
    asked, manifest = found.results.asked, found.results.manifest
    (name,) = {one.conditions.device_name for one in found.findings.comparison}
    lengths = found.findings.comparison[0].conditions
    (starts,) = {one.num_starts for one in found.findings.comparison}
    nodes = {tuple(block["gpu_uuids"]) for block in manifest["blocks"]}
    assert (len(nodes), asked["load_format"]) == (1, "dummy")
    assert asked.get("chunked_prefill_size") is None
    shortest = min(one.throughput.duration or 0.0 for one in found.results.runs)
    assert shortest >= asked["min_duration"]
    counts = [str(manifest["num_prompts"][f"short.c{n}"]) for n in found.concurrencies]
    yield (
        f"Two {name} of one node, 18 NVLinks between them; BF16, dummy weights, "
        f"{lengths.input_len} tokens in and {lengths.output_len} out, greedy, engine `torch`, a "
        "closed loop."
    )
    yield f"Each layout was started {starts} times, and layouts took turns, start by start."
    yield (
        f"All served the same requests: {listed(counts)} at {listed(found.concurrencies)} "
        f"concurrent, so that no run is under {asked['min_duration']:g} s."
    )
    yield from more
    yield (
        "Generated tokens per second, prefill included, as the mean over starts, and half of its "
        "95% interval; the best layouts are bold:"
    )


def _throughputs(found: Published, layouts: Sequence[str]) -> str:
    def shown(layout: str, concurrency: int) -> str:
        one = found.cell(layout, concurrency)
        half = found.statistic(layout, concurrency, THROUGHPUT)
        reached = three_digits(known(one.throughput.output_throughput))
        width = 100 * (known(half.ci_high) / half.mean - 1)
        return f"{bold(reached, one.in_best_set)} ± {width:.1f}%"

    rows = [[str(n), *(shown(layout, n) for layout in layouts)] for n in found.concurrencies]
    return table(["concurrent", *layouts], rows)


def _tp2_is_best(found: Published, over: Sequence[Verdict]) -> str:
    assert all((each.verdict, each.better) == (DIFFERENT, "tp2") for each in over)
    at = grouped(over, lambda each: each.max_concurrency)
    ranges = [f"by {between(_ratios(at[n]), '.2f', 'x')} at {n}" for n in found.concurrencies]
    return f"tp2 is best throughout, {listed(ranges)} concurrent."


def _scatter(found: Published) -> str:
    among = [100 * value for value in found.values(lambda one: one.spread.cv_between)]
    within = [100 * value for value in found.values(lambda one: one.spread.cv_within)]
    return (
        f"Starts of a layout scatter by {between(among, '.2f', '%')} of its throughput, runs "
        f"inside a start by {between(within, '.2f', '%')} (coefficients of variation)."
    )


def _ratios(verdicts: Sequence[Verdict]) -> list[float]:
    return [known(one.ratio) for one in verdicts]


def _tensor_loses(found: Published) -> Iterator[str]:
    at = [n for n in found.concurrencies if found.cell("tp2", n).cost.parts.transfer is not None]
    cells = [found.cell("tp2", n).cost for n in at]
    moving = [_moving_pct(each.parts) for each in cells]
    steps = [found.statistic("tp2", n, "comm_exposed_pct") for n in found.concurrencies]
    said = [f"{each.mean:.1f}% [{each.ci_low:.1f}, {each.ci_high:.1f}]" for each in steps]
    runs = [f"{known(each.run_comm_exposed_pct):.1f}%" for each in cells]
    yield (
        "What tensor parallelism loses is communication: data on their way for "
        f"{between(moving, '.0f', '%')} of it, else waits for the other GPU. "
        f"tp2 spends {listed(said)} of a decode step on it at {listed(found.concurrencies)} "
        f"concurrent, and {listed(runs)} of the whole run at {listed(at)}."
    )
    yield f"Under pp2 it is {between(decode_comm(found, 'pp2'), '.2f', '%')} of a decode step."


def _moving_pct(parts: Parts) -> float:
    moving, waiting = known(parts.transfer), known(parts.wait)
    return 100 * moving / (moving + waiting)
