"""llama-70b and qwen2.5-32b under every layout of four H200, one start of each."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import cache
from statistics import median

from published import (
    COST,
    RESULTS,
    Published,
    between,
    bullets,
    costs,
    decode_comm,
    known,
    listed,
    model_of,
    paragraph,
    table,
    users,
)

from orchestrator.commands.predicting import predicted
from orchestrator.experiment import Experiment
from orchestrator.predict.plan import Machines
from orchestrator.report.text import EN_DASH, three_digits

PEERS = RESULTS / "peers-4xh200.csv"
LAYOUTS = {"llama-70b": ("tp4", "tp2pp2", "pp4"), "qwen2.5-32b": ("tp4", "tp2pp2", "dp4", "pp4")}
SHOWN = 32  # concurrent, of the table of costs


def section(found: Sequence[Published]) -> Iterator[str]:
    """The paragraphs of the section. found: a result of each model."""
    yield "## Both models on four H200"
    yield paragraph(*_conditions(found))
    for each in found:
        yield f"**{model_of(each)}**"
        yield _throughputs(each)
    yield bullets(
        *map(_order, found), *_against_vllm(found), " ".join(_predicted(found)), _first_token(found)
    )
    yield paragraph(
        f"What a token costs at {SHOWN} concurrent, in milliseconds of GPU time: the time of all "
        "four GPUs for each token that the run made, prompts included.",
        "The parts of a row sum to its total.",
        "[measurement.md](measurement.md#what-a-token-costs) defines them, and the "
        "reports have those of the other loads:",
    )
    for each in found:
        yield f"**{model_of(each)}**"
        yield costs(each, LAYOUTS[model_of(each)], [SHOWN])
    yield bullets(
        _pipeline_loses(found),
        _one_user(found),
        " ".join(_tensor_loses(found)),
        *(_untaken_prefill(each) for each in found if _untaken(each)),
    )


def _conditions(found: Sequence[Published]) -> Iterator[str]:
    rows = [row for each in found for row in each.findings.comparison]
    ((name, lengths),) = {
        (one.conditions.device_name, (one.conditions.input_len, one.conditions.output_len))
        for one in rows
    }
    for each in found:
        asked = each.results.asked
        assert (asked["num_prompts"], asked["num_runs"], asked["load_format"]) == (None, 2, "dummy")
        assert (len(each.results.manifest["blocks"]), each.concurrencies) == (1, [1, 32, 100])
    assert {(one.num_starts, one.cell.engine) for one in rows} == {(1, "torch")}
    yield (
        f"Four {name} of one node for each model; BF16, dummy weights, {lengths[0]} tokens in and "
        f"{lengths[1]} out, greedy, engine `torch`, closed batches of 1, 32 and 100 requests, two "
        "runs of each."
    )
    yield (
        "**Each layout was started once, so there are no intervals and no verdicts here**; the "
        "next section has both, on two GPUs."
    )
    yield (
        "Generated tokens per second, prompts included, and in brackets the ratio to "
        "[vLLM 0.24.0](results/peers-4xh200.csv) under the same layout on another node of "
        "four H200 (the best of three runs there, without the fusion of its all-reduce):"
    )


def reached(found: Published, layout: str, concurrency: int) -> float:
    """Generated tokens per second."""
    return known(found.cell(layout, concurrency).throughput.output_throughput)


def _throughputs(found: Published) -> str:
    def shown(layout: str, concurrency: int) -> str:
        ratio = _ratio(found, layout, concurrency)
        beside = EN_DASH if ratio is None else f"{ratio:.2f}x"
        return f"{three_digits(reached(found, layout, concurrency))} ({beside})"

    layouts = LAYOUTS[model_of(found)]
    rows = [[str(n), *(shown(layout, n) for layout in layouts)] for n in found.concurrencies]
    return table(["concurrent", *layouts], rows)


@cache
def _peers() -> dict[tuple[str, str, int], float]:
    """(model, layout, concurrency) -> tokens per second of vLLM in BF16."""
    with PEERS.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["engine"] == "vllm"]
    return {
        (row["model"], row["strategy"], int(row["max_concurrency"])): float(
            row["output_throughput"]
        )
        for row in rows
        if (row["quantization"], row["scenario"], row["version"]) == ("none", "short", "0.24.0")
    }


def _ratio(found: Published, layout: str, concurrency: int) -> float | None:
    peer = _peers().get((model_of(found), layout, concurrency))
    return None if peer is None else reached(found, layout, concurrency) / peer


def _order(found: Published) -> str:
    first, second, *_ = layouts = LAYOUTS[model_of(found)]
    for n in found.concurrencies:
        speeds = [reached(found, layout, n) for layout in layouts]
        assert speeds == sorted(speeds, reverse=True)
    over = [
        reached(found, first, n) / max(reached(found, each, n) for each in layouts[1:])
        for n in found.concurrencies
    ]
    assert over == sorted(over, reverse=True)
    assert over[-1] > 1.1
    return (
        f"{model_of(found)}: {first} delivers most under every load, {over[0]:.2f}x the next "
        f"layout for {users(found.concurrencies[0])}, and {over[-1]:.2f}x at "
        f"{found.concurrencies[-1]}. {second} is second, and {layouts[-1]} the last."
    )


def _against_vllm(found: Sequence[Published]) -> Iterator[str]:
    ratios = {
        layout: [
            ratio
            for each in found
            if layout in LAYOUTS[model_of(each)]
            for n in each.concurrencies
            if (ratio := _ratio(each, layout, n)) is not None
        ]
        for layout in ("tp4", "dp4", "tp2pp2", "pp4")
    }
    said = [f"{between(values, '.2f', 'x')} under {name}" for name, values in ratios.items()]
    assert min(ratios["pp4"]) > 1
    yield (
        f"Beside vLLM on the other node: {listed(said)}. Nodes differ by up to 5%, so what is near "
        "1 is level. Its pipelines have all requests in one batch, which is in one stage at a time."
    )


def _predicted(found: Sequence[Published]) -> Iterator[str]:
    misses = []
    for each in found:
        cells = Experiment(model=model_of(each), max_concurrency=each.concurrencies)
        machines = Machines("h200", 4)
        (plan,) = predicted(cells, machines, LAYOUTS[model_of(each)]).planned
        assert plan.provenance.endswith("benchmarks/fit_predictions.py")
        for ranking in plan.rankings:
            n = ranking.max_concurrency
            assert ranking.predictions[0].layout == "tp4"
            misses += [
                100 * (one.output_throughput.value / reached(each, one.layout, n) - 1)
                for one in ranking.predictions
            ]
    assert len(misses) == sum(len(each.findings.comparison) for each in found)
    sizes = [abs(miss) for miss in misses]
    yield (
        f"`orchestrator plan --gpu h200 --gpus 4` puts tp4 first in all of them. Its throughput is "
        f"off by {median(sizes):.1f}% in the median and {max(sizes):.1f}% at most."
    )
    yield (
        "It was fitted on two layouts on two H100 and a calibration of four H200: "
        "[predictions.md](predictions.md)."
    )


def _first_token(found: Sequence[Published]) -> str:
    one = found[0].concurrencies[0]
    firsts = [
        [known(each.cell(name, one).latency.ttft.median) for name in LAYOUTS[model_of(each)]]
        for each in found
    ]
    assert all(min(values) == values[0] for values in firsts)
    said = [
        f"{between(values, '.0f', ' ms')} for {model_of(each)}"
        for each, values in zip(found, firsts, strict=True)
    ]
    starts = [value for each in found for value in each.values(lambda row: row.startup.startup_s)]
    return (
        f"The first token of {users(one)} takes {listed(said)}, least under tp4. From the start of "
        f"the actors to a first token it is {between(starts, '.0f', ' s')}."
    )


def _pipeline_loses(found: Sequence[Published]) -> str:
    more, weights, bubbles = [], [], []
    for each in found:
        one, other = each.cell("tp4", SHOWN), each.cell("pp4", SHOWN)
        more.append(known(COST["total"](other)) - known(COST["total"](one)))
        weights.append(known(COST["weights"](other)) - known(COST["weights"](one)))
        bubbles.append(known(COST["bubble"](other)))
        assert weights[-1] > 0.9 * more[-1] > 5 * bubbles[-1]
    models = listed(map(model_of, found))
    return (
        f"What a pipeline loses is weights rather than bubbles. At {SHOWN} concurrent a token "
        f"costs {_fixed(more)} GPU-ms more under pp4 than under tp4, with {models}. Each of the "
        f"four micro-batches streams the weights of a stage by itself: {_fixed(weights)} of these. "
        f"The bubble is {_fixed(bubbles)}."
    )


def _fixed(values: Sequence[float]) -> str:
    return listed([f"{value:.2f}" for value in values])


def _one_user(found: Sequence[Published]) -> str:
    one = found[0].concurrencies[0]
    idle = {
        name: [known(each.cell(name, one).step.decode.bubble.pct) for each in found]
        for name in ("tp2pp2", "pp4")
    }
    said = [f"{between(values, '.0f', '%')} under {name}" for name, values in idle.items()]
    (dense,) = (each for each in found if "dp4" in LAYOUTS[model_of(each)])
    alone = dense.cell("dp4", one)
    share = 100 * known(COST["ramp, idle"](alone)) / known(COST["total"](alone))
    return (
        f"For {users(one)} there is one micro-batch: of a step a GPU waits {listed(said)}. Under "
        f"dp4 three replicas have nothing to do: {share:.0f}% of the GPU time."
    )


def _tensor_loses(found: Sequence[Published]) -> Iterator[str]:
    yield "What tensor parallelism loses is communication."
    for each in found:
        shares = {
            name: listed([f"{share:.1f}%" for share in decode_comm(each, name)])
            for name in ("tp4", "tp2pp2")
        }
        yield (
            f"With {model_of(each)} it is {shares['tp4']} of a decode step of tp4 at "
            f"{listed(each.concurrencies)} concurrent, and {shares['tp2pp2']} of tp2pp2."
        )
    most = max(share for each in found for share in decode_comm(each, "pp4"))
    yield f"Under pp4 it is at most {most:.1f}%."


def _untaken(found: Published) -> list[str]:
    return [
        f"{one.cell.strategy} at {one.cell.max_concurrency}"
        for one in found.findings.comparison
        if one.cost.prefill_cost_reason
    ]


def _untaken_prefill(found: Published) -> str:
    return (
        f"The parts of {model_of(found)} under {listed(_untaken(found))} are not known "
        f"({EN_DASH}): the profile slowed its prefill too much."
    )
