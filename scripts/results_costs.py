"""What a token costs under every layout of four GPUs and both engines, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple

from both_engines import ENGINES, NAMES, OURS, THEIRS, batches, layouts_of, loads_of, over, pairs
from published import (
    Published,
    between,
    bullets,
    decode_comm,
    kind,
    known,
    listed,
    model_of,
    paragraph,
    table,
    users,
)

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.report.text import EN_DASH, fixed
from workers.rows import grouped

SHOWN = 32  # concurrent, of the tables
WITHIN, POOLED = 0.01, 0.03  # that parts may miss their total by; where only some starts have parts
# Title of a column -> what a token costs of it, in GPU-ms; None where it was not taken apart.
COST: dict[str, Callable[[Comparison], float | None]] = {
    "total": lambda one: one.device_time.device_ms_per_token,
    "prompts": lambda one: _less(
        one.device_time.prefill.device_ms_per_token, one.device_time.prefill.ramp_ms_per_token
    ),
    "weights": lambda one: one.device_time.decode.roofline.weights,
    "KV": lambda one: one.device_time.decode.roofline.kv,
    "arithmetic": lambda one: one.device_time.decode.roofline.arithmetic,
    "rest of compute": lambda one: one.cost.decode.rest,
    "transfer": lambda one: one.cost.decode.transfer,
    "wait": lambda one: one.cost.decode.wait,
    "fused": lambda one: one.cost.decode.fused,
    "bubble": lambda one: one.cost.decode.bubble,
    "launch gap": lambda one: one.cost.decode.launch_gap,
    "ramp, idle": lambda one: (
        (one.device_time.ramp_ms_per_token or 0.0) + (one.device_time.outside_ms_per_token or 0.0)
    ),
}


def section(found: Sequence[Published]) -> Iterator[str]:
    """The paragraphs on where the time goes. found: a result of each model, under both engines."""
    yield f"## What a token costs on four {kind(found).upper()}"
    yield paragraph(
        f"At {SHOWN} concurrent, in milliseconds of GPU time: the time of all four GPUs for each "
        "token that the run made.",
        "*prompts* is that of reading them; the columns behind it are the decode steps.",
        "*fused* is what sums and normalises in one kernel, where nobody can see how long the "
        "transfer is.",
        "The parts of a row sum to its total. [measurement.md](measurement.md#what-a-token-costs) "
        "defines them, and the reports have those of the other loads:",
    )
    for each in found:
        yield f"**{model_of(each)}**"
        yield costs(each)
    yield bullets(
        pipeline_loses(found),
        *_one_batch(found),
        *_energy(found),
        _one_user(found),
        " ".join(_tensor_loses(found)),
        *_fused_sum(found),
        *_untaken(found),
    )


def costs(found: Published) -> str:
    """The table of what a token costs."""
    rows = []
    for layout in layouts_of(found):
        for engine in ENGINES:
            if one := found.at(layout, SHOWN, engine):
                parts = {title: of(one) for title, of in COST.items()}
                check_sum(parts, WITHIN if one.num_starts == 1 else POOLED)
                rows.append([layout, engine, *map(cost, parts.values())])
    return table(["layout", "engine", *COST], rows)


def check_sum(parts: dict[str, float | None], within: float = WITHIN) -> None:
    """Raise AssertionError where known parts miss their total by more than a share of it."""
    total, *rest = parts.values()
    known_ = [value for value in rest if value is not None]
    assert total is not None
    assert len(known_) < len(rest) or abs(sum(known_) - total) <= within * total, parts


def cost(value: float | None) -> str:
    """GPU-ms of a token."""
    return EN_DASH if value is None else fixed(value + 0.0, 2).replace("-0.00", "0.00")


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None else one - (other or 0.0)


# -- what is said of them


def pipeline_loses(found: Sequence[Published]) -> str:
    """pp4 against tp4, of `torch`."""
    more, weights, bubbles = [], [], []
    for each in found:
        one, other = each.cell("tp4", SHOWN), each.cell("pp4", SHOWN)
        more.append(known(COST["total"](other)) - known(COST["total"](one)))
        weights.append(known(COST["weights"](other)) - known(COST["weights"](one)))
        bubbles.append(known(COST["bubble"](other)))
        assert weights[-1] > 0.8 * more[-1] > 5 * bubbles[-1]
    return (
        f"What a pipeline of `torch` loses is weights rather than bubbles. At {SHOWN} concurrent a "
        f"token costs {_fixed(more)} GPU-ms more under pp4 than under tp4, with "
        f"{listed(map(model_of, found))}. Each of the four micro-batches streams the weights of a "
        f"stage by itself: {_fixed(weights)} of these. The bubble is {_fixed(bubbles)}."
    )


def _fixed(values: Sequence[float]) -> str:
    return listed(f"{value:.2f}" for value in values)


def _one_batch(found: Sequence[Published]) -> Iterator[str]:
    cells = [
        (each, pair)
        for each in found
        for pair in pairs([each], "pp4")
        if _is_one_batch(each, pair[1]) and all(_bubble(one) is not None for one in pair)
    ]
    if cells:
        mine, idle = ([known(_bubble(pair[side])) for _, pair in cells] for side in (0, 1))
        assert min(idle) > 70 > 10 > max(mine)
        loads = [over(each, "pp4", pair[0].cell.max_concurrency) for each, pair in cells]
        ratios = [one.ratio.value for one in loads if one]
        models = listed(dict.fromkeys(model_of(each) for each, _ in cells))
        yield (
            f"One batch is in one stage at a time: under pp4 of {models} a GPU of vLLM then waits "
            f"for {between(idle, '.0f', '%')} of a step also with several users. `torch` waits for "
            f"{between(mine, '.1f', '%')} there, and delivers {between(ratios, '.2f', 'x')}."
        )


def _is_one_batch(found: Published, one: Comparison) -> bool:
    n = one.cell.max_concurrency
    return n > 1 and (batches(found, one.cell.strategy, n, one.cell.engine) or 0.0) < 1.2


def _bubble(one: Comparison) -> float | None:
    return one.step.decode.bubble.pct


def _energy(found: Sequence[Published]) -> Iterator[str]:
    said = []
    for ours, theirs in pairs(found, "pp4"):
        joules = [one.energy.joules_per_output_token for one in (ours, theirs)]
        if ours.cell.max_concurrency == 100 and None not in joules:
            a, b = map(known, joules)
            said.append(f"{fixed(a, 2)} J and {fixed(b, 2)} J with {ours.cell.model}")
    if said:
        yield (
            "A GPU that waits takes less power than one that streams weights anew. At 100 "
            f"concurrent a token takes under pp4 of `torch` and of vLLM {listed(said)}."
        )


def _one_user(found: Sequence[Published]) -> str:
    idle = {
        name: [known(each.cell(name, 1).step.decode.bubble.pct) for each in found]
        for name in ("tp2pp2", "pp4")
    }
    said = [f"{between(values, '.0f', '%')} under {name}" for name, values in idle.items()]
    alone = [each.cell("dp4", 1) for each in found if "dp4" in layouts_of(each)]
    shares = [100 * known(COST["ramp, idle"](one)) / known(COST["total"](one)) for one in alone]
    return (
        f"For {users(1)} there is one micro-batch: of a step of `torch` a GPU waits {listed(said)}."
        f" Under dp4 three replicas have nothing to do: {between(shares, '.0f', '%')} of the time "
        "of the GPUs."
    )


def _tensor_loses(found: Sequence[Published]) -> Iterator[str]:
    yield "What tensor parallelism loses is communication."
    for each in found:
        shares = {
            name: listed(f"{share:.1f}%" for share in decode_comm(each, name))
            for name in ("tp4", "tp2pp2")
        }
        steps = [each.cell("tp2pp2", n).step.decode for n in each.concurrencies]
        fused = [one.fused.pct or 0.0 for one in steps]
        beside = f" beside {between(fused, '.1f', '%')} in which a sum and a norm are one kernel"
        yield (
            f"With {model_of(each)} it is {shares['tp4']} of a decode step of `torch` under tp4 at "
            f"{listed(each.concurrencies)} concurrent, and {shares['tp2pp2']} under tp2pp2"
            f"{beside if any(fused) else ''}."
        )
    yield f"Under pp4 it is at most {max(s for x in found for s in decode_comm(x, 'pp4')):.1f}%."


def _fused_sum(found: Sequence[Published]) -> Iterator[str]:
    steps = [one.step.decode for _, one in pairs(found, "tp4")]
    fused = [one.fused.pct for one in steps if one.fused.pct is not None]
    exposed = [one.comm_exposed.pct for one in steps if one.comm_exposed.pct is not None]
    if fused and exposed:
        yield (
            f"A step of vLLM under tp4 has {between(fused, '.1f', '%')} of such a kernel, beside "
            f"{between(exposed, '.1f', '%')} that only communicates. The norms of `torch` are part "
            "of its compute."
        )


def _untaken(found: Sequence[Published]) -> Iterator[str]:
    """Why cells have dashes: decode steps that were not taken apart."""
    cells = [
        (f"{one.cell.strategy} of {model_of(each)} under {NAMES[engine]}", reason)
        for each in found
        for layout, n in loads_of(each)
        for engine in (OURS, THEIRS)
        if n == SHOWN and (one := each.at(layout, n, engine))
        if (reason := one.cost.decode_cost_reason) and not any(astuple(one.cost.decode))
    ]
    for reason, mine in grouped(cells, lambda cell: cell[1]).items():
        yield f"Not taken apart ({EN_DASH}): {listed(name for name, _ in mine)}; {reason}."
