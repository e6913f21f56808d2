"""The table of `orchestrator plan`: layouts of GPUs that need not be here, the fastest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.predict.interval import Estimate
from orchestrator.predict.layouts import Ranking
from orchestrator.predict.parts import NAMES
from orchestrator.predict.plan import Plan, Planned, refused
from orchestrator.predict.prediction import Prediction
from workers.units import format_bytes

MOST_ROWS = 16  # of a ranking, and of what is refused
FRONT = "*"


def render(plan: Plan, console: Console) -> None:
    """Print a ranking for each load, what was refused, and where the figures come from."""
    machines, hardware = plan.machines, plan.hardware
    memory = format_bytes(hardware.memory_bytes) if hardware.memory_bytes else "unknown memory"
    count = f"{machines.gpus} x {hardware.name} ({memory}, {hardware.gpus_per_node} a node)"
    title = Text.assemble((plan.model, "bold"), f" in {plan.precision} on {count}: predicted")
    console.print(title)
    for one in plan.planned:
        for ranking in one.rankings:
            _print_ranking(one, ranking, console)
        _print_refused(one, console)
        console.print(
            f"{FRONT} no other layout has both more tokens/s a GPU and a shorter TPOT. "
            "±: the upper end of a 90% interval; the lower one is as far in ratio."
        )
        console.print(f"Factors of {one.engine}: {one.provenance}.", highlight=False)
        _print_outside(one, console)
    sources = ", ".join(f"{what}: {source}" for what, source in hardware.sources.items())
    console.print(f"{hardware.name}: {sources}.", highlight=False)
    if plan.runs is not None:
        cells, each = _counted(plan.cells, "cell"), _counted(plan.runs.of_a_cell, "run")
        console.print(
            f"To be run: {cells}, {each} of each, at least {plan.duration_s / 60:.3g} minutes "
            "beside starts of workers, warm-ups and what is observed.",
            highlight=False,
        )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _print_ranking(plan: Planned, ranking: Ranking, console: Console) -> None:
    if ranking.predictions:
        console.print(_table(plan, ranking))
        console.print(_parts(ranking))
    else:
        console.print(f"{ranking.max_concurrency} concurrent, {plan.engine}: nothing is predicted.")


def _table(plan: Planned, ranking: Ranking) -> Table:
    load = f"{plan.scenario} ({plan.input_len} in, {plan.output_len} out)"
    title = f"{load}, {ranking.max_concurrency} concurrent, {plan.engine}"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("", "layout"):
        table.add_column(name)
    shown = ranking.predictions[:MOST_ROWS]
    columns = [name for name, text in _COLUMNS.items() if {*map(text, shown)} - {"", "-"}]
    if len({one.num_gpus for one in shown}) == 1:
        columns.remove("of GPUs")
    for name in columns:
        table.add_column(name, justify="right")
    for one in shown:
        mark = FRONT if one.layout in ranking.front else ""
        table.add_row(mark, one.layout, *(_COLUMNS[name](one) for name in columns))
    if len(ranking.predictions) > MOST_ROWS:
        table.caption = f"and {len(ranking.predictions) - MOST_ROWS} slower ones"
    return table


def _in_flight(one: Prediction) -> str:
    return str(one.in_flight) if one.in_flight < one.max_concurrency else ""


_COLUMNS: dict[str, Callable[[Prediction], str]] = {
    "of GPUs": lambda one: str(one.num_gpus),
    "at once": _in_flight,
    "tokens/s": lambda one: estimated(one.output_throughput),
    "bound": lambda one: f"{one.bound_output_throughput:.4g}",
    "TTFT ms": lambda one: estimated(one.ttft_ms),
    "TPOT ms": lambda one: estimated(one.tpot_ms),
    "weights": lambda one: format_bytes(one.memory.weights),
    "KV": lambda one: format_bytes(one.memory.kv),
    "memory": lambda one: format_bytes(one.memory.total),
    "J/token": lambda one: estimated(one.joules_per_output_token),
    "cost/M tokens": lambda one: estimated(one.cost_per_million_tokens),
}


def estimated(one: Estimate | None) -> str:
    """A value and how far the upper end of its interval is from it."""
    return "-" if one is None else f"{one.value:.4g} ±{100 * (one.high / one.value - 1):.0f}%"


def _parts(ranking: Ranking) -> Table:
    table = Table(box=SIMPLE_HEAD, title="GPU-ms for each token", title_justify="left")
    table.add_column("layout")
    for name in ("total", *NAMES, "outside"):
        table.add_column(name, justify="right")
    for one in ranking.predictions[:MOST_ROWS]:
        figures = (one.device_ms_per_token, *astuple(one.parts), one.outside_ms_per_token)
        table.add_row(one.layout, *(f"{figure:.3g}" for figure in figures))
    return table


def _print_refused(plan: Planned, console: Console) -> None:
    found = refused(plan)
    for one in found[:MOST_ROWS]:
        console.print(f"{one.layout}: {one.kind}: {one.reason}", highlight=False)
    if len(found) > MOST_ROWS:
        console.print(f"and {len(found) - MOST_ROWS} more that are refused; --json has all.")


def _print_outside(plan: Planned, console: Console) -> None:
    """In what the first of each ranking lies outside; --json has it of all."""
    firsts = [ranking.predictions[0] for ranking in plan.rankings if ranking.predictions]
    for one in firsts:
        if one.outside:
            why = "; ".join(one.outside)
            text = f"{one.layout} at {one.max_concurrency}: outside of what was fitted, so wider: "
            console.print(f"{text}{why}.", highlight=False)
