"""What a token costs under every layout and both engines, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple

from both_engines import (
    ENGINES,
    NAMES,
    OURS,
    THEIRS,
    WORDS,
    batches,
    every_layout,
    gpus_of,
    layouts_of,
    loads_of,
    over,
    pairs,
    pipeline,
    tensor,
)
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
    gpus = gpus_of(found[0])
    yield f"## What a token costs on {WORDS[gpus]} {kind(found).upper()}"
    every = "both" if gpus == 2 else f"all {WORDS[gpus]}"
    yield paragraph(
        f"At {SHOWN} concurrent, in milliseconds of GPU time: the time of {every} GPUs for each "
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
    """A pipeline against tensor parallelism, of `torch`."""
    tp, pp, gpus = tensor(found[0]), pipeline(found[0]), gpus_of(found[0])
    more, weights, bubbles = [], [], []
    for each in found:
        one, other = each.cell(tp, SHOWN), each.cell(pp, SHOWN)
        more.append(known(COST["total"](other)) - known(COST["total"](one)))
        weights.append(known(COST["weights"](other)) - known(COST["weights"](one)))
        bubbles.append(known(COST["bubble"](other)))
        assert weights[-1] > 0.8 * more[-1] > (gpus + 1) * bubbles[-1]
    return (
        f"What a pipeline of `torch` loses is weights rather than bubbles. At {SHOWN} concurrent a "
        f"token costs {_fixed(more)} GPU-ms more under {pp} than under {tp}, with "
        f"{listed(map(model_of, found))}. Each of the {WORDS[gpus]} micro-batches streams the "
        f"weights of a stage by itself: {_fixed(weights)} of these. The bubble is "
        f"{_fixed(bubbles)}."
    )


def _fixed(values: Sequence[float]) -> str:
    return listed(f"{value:.2f}" for value in values)


def _one_batch(found: Sequence[Published]) -> Iterator[str]:
    cells = [
        (each, pair)
        for each in found
        for pair in pairs([each], pipeline(each))
        if _is_one_batch(each, pair[1]) and all(_bubble(one) is not None for one in pair)
    ]
    if cells:
        mine, idle = ([known(_bubble(pair[side])) for _, pair in cells] for side in (0, 1))
        others = 1 - 1 / gpus_of(found[0])  # the share of the stages that have no batch
        assert min(idle) > 100 * others - 5 > 10 > max(mine)
        loads = [over(each, pipeline(each), pair[0].cell.max_concurrency) for each, pair in cells]
        ratios = [one.ratio.value for one in loads if one]
        models = listed(dict.fromkeys(model_of(each) for each, _ in cells))
        name = pipeline(found[0])
        yield (
            f"One batch is in one stage at a time: under {name} of {models} a GPU of vLLM then "
            f"waits for {between(idle, '.0f', '%')} of a step also with several users. `torch` "
            f"waits for {between(mine, '.1f', '%')} there, and delivers "
            f"{between(ratios, '.2f', 'x')}."
        )


def _is_one_batch(found: Published, one: Comparison) -> bool:
    n = one.cell.max_concurrency
    return n > 1 and (batches(found, one.cell.strategy, n, one.cell.engine) or 0.0) < 1.2


def _bubble(one: Comparison) -> float | None:
    return one.step.decode.bubble.pct


def _energy(found: Sequence[Published]) -> Iterator[str]:
    said = [
        f"{fixed(ours, 2)} J and {fixed(theirs, 2)} J at {n} with {model_of(each)}"
        for each in found
        for n, (ours, theirs) in _joules(each)
    ]
    if said:
        yield (
            "A GPU that waits takes less power than one that streams weights anew. A token then "
            f"takes under {pipeline(found[0])} of `torch` and of vLLM {listed(said)}."
        )


def _joules(found: Published) -> Iterator[tuple[int, tuple[float, float]]]:
    """Concurrency, and joules a token of both engines, where vLLM has one batch."""
    for pair in pairs([found], pipeline(found)):
        ours, theirs = (one.energy.joules_per_output_token for one in pair)
        if _is_one_batch(found, pair[1]) and ours is not None and theirs is not None:
            assert ours > theirs
            yield pair[0].cell.max_concurrency, (ours, theirs)


def _one_user(found: Sequence[Published]) -> str:
    idle = {
        name: [known(each.cell(name, 1).step.decode.bubble.pct) for each in found]
        for name in every_layout(found[0])
        if "pp" in name
    }
    said = [f"{between(values, '.0f', '%')} under {name}" for name, values in idle.items()]
    gpus = gpus_of(found[0])
    dp = f"dp{gpus}"
    alone = [each.cell(dp, 1) for each in found if dp in layouts_of(each)]
    shares = [100 * known(COST["ramp, idle"](one)) / known(COST["total"](one)) for one in alone]
    return (
        f"For {users(1)} there is one micro-batch: of a step of `torch` a GPU waits {listed(said)}."
        f" Under {dp} {_idle_replicas(gpus - 1)} nothing to do: {between(shares, '.0f', '%')} of "
        "the time of the GPUs."
    )


def _idle_replicas(count: int) -> str:
    return f"{WORDS[count]} {'replica has' if count == 1 else 'replicas have'}"


def _tensor_loses(found: Sequence[Published]) -> Iterator[str]:
    yield "What tensor parallelism loses is communication."
    for each in found:
        first, *more = (name for name in every_layout(each) if name.startswith("tp"))
        loads = f"at {listed(each.concurrencies)} concurrent"
        said = f"{_lost(each, first)} of a decode step of `torch` under {first} {loads}"
        parts = [f"{said}{_summed(each, first)}"]
        parts += [f"{_lost(each, name)} under {name}{_summed(each, name)}" for name in more]
        yield f"With {model_of(each)} it is {', and '.join(parts)}."
    name = pipeline(found[0])
    yield f"Under {name} it is at most {max(s for x in found for s in decode_comm(x, name)):.1f}%."


def _lost(found: Published, layout: str) -> str:
    return listed(f"{share:.1f}%" for share in decode_comm(found, layout))


def _summed(found: Published, layout: str) -> str:
    steps = [found.cell(layout, n).step.decode for n in found.concurrencies]
    fused = [one.fused.pct or 0.0 for one in steps]
    if not any(fused):
        return ""
    return f" beside {between(fused, '.1f', '%')} in which a sum and a norm are one kernel"


def _fused_sum(found: Sequence[Published]) -> Iterator[str]:
    name = tensor(found[0])
    steps = [one.step.decode for _, one in pairs(found, name)]
    fused = [one.fused.pct for one in steps if one.fused.pct is not None]
    exposed = [one.comm_exposed.pct for one in steps if one.comm_exposed.pct is not None]
    if fused and exposed:
        yield (
            f"A step of vLLM under {name} has {between(fused, '.1f', '%')} of such a kernel, "
            f"beside {between(exposed, '.1f', '%')} that only communicates. The norms of "
            "`torch` are part of its compute."
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
