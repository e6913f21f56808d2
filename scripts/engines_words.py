"""What is said of both engines under the same layouts, worked out of the tables: for any
number of starts of a cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import geometric_mean, median

from both_engines import (
    ENGINES,
    NAMES,
    OURS,
    THEIRS,
    WORDS,
    Nodes,
    all_batches,
    every_layout,
    gpus_of,
    layouts_of,
    loads_of,
    num_starts,
    over,
    pairs,
    tensor,
    unrun,
)
from figures_elsewhere import WITHOUT, few_rows, foretold, is_fitted_on, peers
from published import (
    THROUGHPUT,
    Published,
    between,
    completed_of,
    device,
    known,
    listed,
    model_of,
    reached,
    users,
)

from orchestrator.analysis.comparing.significance import DIFFERENT, EQUIVALENT, NOT_SHOWN
from orchestrator.report.text import EN_DASH
from strategies import parse
from strategies.peer_sums import kind_for

COUNTS = {1: "once", 2: "twice"}
VERDICTS = (DIFFERENT, EQUIVALENT, NOT_SHOWN)


def repetition(found: Sequence[Published]) -> str:
    """How often layouts were started, and on how many nodes."""
    counts, nodes = num_starts(found), len(Nodes(found))
    times = COUNTS.get(counts[-1], f"{counts[-1]} times")
    if len(counts) > 1:
        times = "once or twice" if counts == [1, 2] else f"{counts[0]} to {counts[-1]} times"
    places = "on one node" if nodes == 1 else f"on {nodes} nodes"
    pooled = "; the starts of a cell pool over nodes" if nodes > 1 else ""
    return f"A layout was started {times} under an engine, {places}{pooled}."


def lead(found: Sequence[Published]) -> Iterator[str]:
    """How much more tensor parallelism delivers than the next layout, of each model."""
    for each in found:
        said = [
            f"{listed(f'{one:.2f}x' for one in ahead)} with {NAMES[engine]}"
            for engine in ENGINES
            if (ahead := leads(each, engine))
        ]
        yield (
            f"{model_of(each)}: {tensor(each)} delivers most under every load, of the next layout "
            f"{', and '.join(said)}, at {listed(each.concurrencies)} concurrent."
        )


def leads(found: Published, engine: str = OURS) -> list[float]:
    """Tensor parallelism over the best other layout, by concurrency; empty where it has not
    every load. AssertionError where another one delivers more."""
    ahead = []
    for n in found.concurrencies:
        first, *others = (found.at(name, n, engine) for name in every_layout(found))
        rest = [reached(one) for one in others if one]
        if first and rest:
            ahead.append(reached(first) / max(rest))
    assert min(ahead, default=2.0) > 1
    return ahead if len(ahead) == len(found.concurrencies) else []


def same_order(found: Sequence[Published]) -> str:
    """The layouts by their means, and where the order is another one."""
    others, order = [], every_layout(found[0])
    for each in found:
        for engine in ENGINES:
            for n in each.concurrencies:
                cells = {name: one for name in order if (one := each.at(name, n, engine))}
                here = sorted(cells, key=lambda name: -reached(cells[name]))
                if here != list(cells):
                    at = f"at {n} with {model_of(each)} under {NAMES[engine]}"
                    others.append(f"{', '.join(here)} {at}")
    but = f", but {' and '.join(others)}" if others else " with both engines under every load"
    return f"By their means the order is {', '.join(order)}{but}."


def ratios(found: Sequence[Published]) -> str:
    """`torch` over vLLM, of each layout."""
    means = "as the geometric mean over loads and models"
    return f"`torch` delivers of vLLM, {means}: {_ratios(found)}."


def ratios_elsewhere(found: Sequence[Published]) -> str:
    """The same on other GPUs, where `torch` took what it takes by itself now."""
    assert not list(sums(found))
    where = f"{WORDS[gpus_of(found[0])]} {device(found)}, {listed(map(model_of, found))}"
    return f"On {where}, it now delivers of vLLM {_ratios(found)}."


def ratios_since(found: Sequence[Published]) -> str:
    """The same of newer starts, under some of the layouts."""
    each = listed(map(model_of, found))
    return f"Since then it delivers of vLLM, in one start of {each} each, {_ratios(found)}."


def _ratios(found: Sequence[Published]) -> str:
    return listed(
        f"{geometric_mean(values):.2f}x under {name} ({between(values, '.2f', 'x')})"
        for name in every_layout(found[0])
        if (values := _over(found, name))
    )


def _over(found: Sequence[Published], layout: str) -> list[float]:
    every = [over(each, layout, n) for each in found for n in each.concurrencies]
    return [one.ratio.value for one in every if one]


def in_flight(found: Sequence[Published]) -> str:
    """Into how many batches both engines share several requests."""
    said: dict[str, list[str]] = {engine: [] for engine in ENGINES}
    for engine in ENGINES:
        for each in found:
            for layout in (name for name in every_layout(each) if "pp" in name):
                if values := all_batches(each, layout, engine):
                    many = between([round(one, 1) for one in values], "g", "")
                    said[engine].append(f"{many} under {layout} of {model_of(each)}")
    return (
        "A pipeline works on as many batches at a time as several requests are shared into, and "
        f"each streams the weights anew. `torch` has {listed(said[OURS])}. vLLM puts into a batch "
        f"what has arrived when a pass begins, and had {listed(said[THEIRS])}."
    )


def verdicts(found: Sequence[Published]) -> str:
    """How many pairs show what."""
    every = [
        one
        for each in found
        for one in each.findings.verdicts
        if one.metric == THROUGHPUT and _is_asked(one.better, one.other)
    ]
    tested = Counter(one.verdict for one in every if one.p_different is not None)
    pairs_ = f"{len(every)} pairs (two layouts under one engine, both engines under one layout)"
    if not tested:
        return (
            f"There are no verdicts: none of {pairs_} has two rounds of starts in common, so no "
            "difference is shown, and none is excluded."
        )
    said = listed(f"{tested[verdict]} {verdict}" for verdict in VERDICTS if tested[verdict])
    fewer = len(every) - tested.total()
    rest = f"; {fewer} have fewer than two rounds in common" if fewer else ""
    return f"Verdicts of {pairs_}, corrected for their number: {said}{rest}.{_shown_lead(found)}"


def _shown_lead(found: Sequence[Published]) -> str:
    """Where tensor parallelism is shown to deliver more than every other layout of its engine."""
    said = [
        f"{_at(loads, each)} with {model_of(each)} and {NAMES[engine]}"
        for each in found
        for engine in ENGINES
        if (loads := [n for n in each.concurrencies if _is_shown_first(each, n, engine)])
    ]
    if not said:
        return ""
    name = tensor(found[0])
    return f" {name} is shown to deliver more than each other layout {'; '.join(said)}."


def _at(loads: Sequence[int], found: Published) -> str:
    every = list(loads) == found.concurrencies
    return "under every load" if every else f"at {listed(loads)} concurrent"


def _is_shown_first(found: Published, concurrency: int, engine: str) -> bool:
    first, *others = (name for name in every_layout(found) if found.at(name, concurrency, engine))
    every = [found.verdict(f"{first} {engine}", f"{name} {engine}", concurrency) for name in others]
    best = f"{tensor(found)} {engine}"
    return f"{first} {engine}" == best and all(
        (one.verdict, one.better) == (DIFFERENT, best) for one in every
    )


def _is_asked(one: str, other: str) -> bool:
    """Of the names of two cells."""
    return any(mine == theirs for mine, theirs in zip(one.split(), other.split(), strict=True))


def beside_peers(found: Sequence[Published]) -> Iterator[str]:
    """Both engines over vLLM's figures of another node, where there are such."""
    values: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for each in found:
        for (layout, n), peer in peers(each).items():
            for engine in ENGINES:
                if one := each.at(layout, n, engine):
                    values[engine].append(reached(one) / peer)
    said = [
        f"{geometric_mean(mine):.2f}x ({between(mine, '.2f', 'x')}) with {NAMES[engine]}"
        for engine, mine in values.items()
        if mine
    ]
    if said:
        yield f"Over vLLM's best of three on another node it is, in the same mean, {listed(said)}."


def as_run(found: Sequence[Published]) -> str:
    """Where `torch` had not what it has by itself now, so that *plan* is predicted without."""
    without = {
        model_of(each): [name for name in layouts_of(each) if few_rows(each, name) == WITHOUT]
        for each in found
    }
    every = {model_of(each): layouts_of(each) for each in found}
    if not any(without.values()):
        return ""
    switches = " without `--products triton` and `--pdl on`"
    if without == every:
        return f"{switches}, as these runs were"
    said = [
        f"{'' if names == every[model] else f'{listed(names)} of '}{model}"
        for model, names in without.items()
        if names
    ]
    return f",{switches} for {listed(said)}, as those runs were"


def misses(found: Sequence[Published], docs: str = "") -> str:
    """How far off `plan` is on cells that it was not fitted on, by engine. docs: the way to the
    pages."""
    said = []
    for engine in ENGINES:
        off = [
            100 * abs(foretold(each)[layout, n, engine] / reached(one) - 1)
            for each in found
            for layout, n in loads_of(each)
            if (one := each.at(layout, n, engine)) and not is_fitted_on(each, layout, n, engine)
        ]
        assert all(map(_puts_tensor_first, found))
        said.append(
            f"{median(off):.1f}% in the median and {max(off):.1f}% at most with {NAMES[engine]}"
        )
    first, errors = tensor(found[0]), ", and by ".join(said)
    return (
        f"*plan*, fitted on two GPUs, puts {first} first under every load. Where nothing was "
        f"fitted it is off by {errors}: [predictions.md]({docs}predictions.md)."
    )


def _puts_tensor_first(found: Published) -> bool:
    return all(
        foretold(found)[tensor(found), n, engine] >= foretold(found)[layout, n, engine]
        for layout, n in loads_of(found)
        for engine in ENGINES
    )


def first_token(found: Sequence[Published]) -> str:
    """When it comes, and how long a start takes."""
    both = [pair for name in every_layout(found[0]) for pair in pairs(found, name)]
    later = [known(b.latency.ttft.median) / known(a.latency.ttft.median) for a, b in both]
    took = {
        engine: [
            known(one.startup.startup_s) for one in completed_of(found) if one.cell.engine == engine
        ]
        for engine in ENGINES
    }
    return (
        f"`torch` has its first token sooner in {sum(one > 1 for one in later)} of {len(later)} "
        f"cells that both have: vLLM takes {between(later, '.2f', 'x')} of its time. For "
        f"{users(1)} {_first_tokens(found)}. From the start of the actors to a first token it is "
        f"{between(took[OURS], '.0f', ' s')} with `torch` and {between(took[THEIRS], '.0f', ' s')} "
        "with vLLM, which compiled its layout in most of these starts."
    )


def _first_tokens(found: Sequence[Published]) -> str:
    said = []
    for each in found:
        firsts = [known(each.cell(name, 1).latency.ttft.median) for name in layouts_of(each)]
        assert min(firsts) == firsts[0]
        said.append(f"{between(firsts, '.0f', ' ms')} of {model_of(each)}")
    return f"it is {listed(said)} with `torch`, least under {tensor(found[0])}"


def sums(found: Sequence[Published]) -> Iterator[str]:
    """What `torch` summed over tp with, where that is not what it takes by itself now."""
    other: dict[str, list[str]] = {}
    for each in found:
        for layout in layouts_of(each):
            by = each.cell(layout, each.concurrencies[0]).conditions.settings.allreduce
            tp = dict(parse(layout)).get("tp", 1)
            if by is not None and tp > 1 and by != kind_for(tp):
                other.setdefault(by, []).append(f"{layout} of {model_of(each)}")
    for by, places in other.items():
        yield (
            f"`torch` summed over tp by `--allreduce {by}` under {listed(places)}. By itself it "
            "now takes `two-shot` between four GPUs, `one-shot` between two, and so does *plan*."
        )


def unrun_cells(found: Sequence[Published], loads: Sequence[int] | None = None) -> Iterator[str]:
    """What fits and has no figures of some loads, or of any, and why."""
    if missing := unrun(found, loads or found[0].concurrencies):
        yield f"Not run before the time on the nodes ended ({EN_DASH}): {'; '.join(missing)}."


def absent(found: Sequence[Published]) -> Iterator[str]:
    """What has no figures, and why."""
    yield from unrun_cells(found)
    name = f"dp{gpus_of(found[0])}"
    whole = [model_of(each) for each in found if name not in layouts_of(each)]
    if whole:
        yield f"One GPU does not hold {listed(whole)}, so it has no {name}."
