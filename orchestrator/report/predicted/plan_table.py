"""The table of `orchestrator plan`: layouts of GPUs that need not be here, the fastest first."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.predict.interval import Estimate
from orchestrator.predict.layouts import Ranking
from orchestrator.predict.parts import NAMES
from orchestrator.predict.plan import Plan, Planned, front_of, refused, used_sources
from orchestrator.predict.prediction import Prediction
from workers.rows import grouped
from workers.units import duration, format_bytes, significant

MOST_ROWS = 16  # of a ranking, and of what is refused
MOST_NAMES = 2  # of layouts that are refused alike
MOST_APART = 100  # ends of an interval in ratio, beyond which it says nothing
TINY = 1e-9  # share of a sum that is rounding
FRONT = "*"
Show = Callable[[Prediction], str]


def render(plan: Plan, console: Console) -> None:
    """Print a ranking for each load, what was refused, and where the figures come from."""
    machines, hardware = plan.machines, plan.hardware
    memory = format_bytes(hardware.memory_bytes) if hardware.memory_bytes else "unknown memory"
    count = f"{machines.gpus} x {hardware.name} ({memory}, {hardware.gpus_per_node} a node)"
    what = "predicted" if any(plan.predictions) else "nothing is predicted"
    title = Text.assemble((plan.model, "bold"), f" in {plan.precision} on {count}: {what}")
    console.print(title)
    for one in plan.planned:
        for ranking in one.rankings:
            _print_ranking(one, ranking, console)
        _print_sweeps(one, console)
        _print_refused(one, console)
        if any(one.predictions):
            if between := _between_nodes(one):
                console.print(f"Between nodes: {between}.", highlight=False)
            console.print(_legend(one))
            _print_reliability(one, console)
            console.print(f"Factors of {one.engine}: {one.provenance}.", highlight=False)
            _print_outside(one, console)
    if any(plan.predictions):
        _print_sources(plan, console)


def _legend(plan: Planned) -> str:
    best = "has more tokens/s a GPU"
    if plan.has_tpot:
        best = "has both more tokens/s a GPU and a shorter TPOT"
    shown = [one for ranking in plan.rankings for one in ranking.predictions[:MOST_ROWS]]
    said = {
        " at once: the most requests that are served together.": map(_in_flight, shown),
        " late: requests that wait when the last one arrives.": (one.late for one in shown),
        " outside: a replica has nothing to do.": (one.outside_ms_per_token for one in shown),
    }
    columns = "".join(text for text, values in said.items() if any(values))
    return (
        f"{FRONT} no other layout {best}.{columns} ±: the farther end of a 90% interval, in "
        "ratio; the other one is no farther. Where that is above 100%, both stand instead, to one "
        "digit."
    )


def _between_nodes(plan: Planned) -> str:
    """Which axes of the layouts that are shown have groups on several nodes; empty where none."""
    shown = (one for ranking in plan.rankings for one in ranking.predictions[:MOST_ROWS])
    layouts = {one.layout: one.between_nodes for one in shown if one.between_nodes}
    alike = grouped(layouts.items(), lambda item: item[1])
    return "; ".join(
        f"{' and '.join(axes)} of {', '.join(name for name, _ in same)}"
        for axes, same in alike.items()
    )


def _print_sources(plan: Plan, console: Console) -> None:
    sources = ", ".join(f"{what}: {source}" for what, source in used_sources(plan).items())
    console.print(f"{plan.hardware.name}: {sources}.", highlight=False)
    if plan.hardware.memory_bytes is None:
        unknown = f"How much memory {plan.hardware.name} has is not known"
        console.print(f"{unknown}: whether a layout fits was not looked at.", highlight=False)
    if plan.runs is not None:
        cells, each = counted(plan.cells, "cell"), counted(plan.runs.of_a_cell, "run")
        console.print(
            f"To be run: {cells}, {each} of each, at least {duration(plan.duration_s)} "
            "beside starts of workers, warm-ups and what is observed.",
            highlight=False,
        )


def counted(count: int, noun: str) -> str:
    """1 cell, 2 cells."""
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _print_ranking(plan: Planned, ranking: Ranking, console: Console) -> None:
    load = f"{plan.scenario} ({plan.input_len} in, {plan.output_len} out)"
    most = f"at most {ranking.max_concurrency}" if plan.arrivals else ranking.max_concurrency
    title = ", ".join(filter(None, (load, plan.arrivals, f"{most} concurrent", plan.engine)))
    if not ranking.predictions:
        if any(plan.predictions):
            console.print(f"{title}: nothing is predicted.", highlight=False)
        return
    shown = ranking.predictions[:MOST_ROWS]
    front = front_of(plan, ranking)
    names = [FRONT if one.layout in front else "" for one in shown]
    console.print(f"\n{title}", style="italic", highlight=False)
    console.print(_table(shown, names, _columns(plan, shown)))
    if len(ranking.predictions) > MOST_ROWS:
        console.print(f"and {len(ranking.predictions) - MOST_ROWS} slower ones.")
    console.print("GPU-ms for each token", style="italic")
    console.print(_table(shown, [""] * len(shown), _parts()))


def _print_reliability(plan: Planned, console: Console) -> None:
    """What goodput is, and what it is worked out of."""
    first = next(plan.predictions)
    left = plan.goodput(first)
    if left is None or plan.reliability is None:
        return
    console.print(
        f"Goodput: less what a failure takes from its replica, and the slowest GPU from the others "
        f"of it. {'; '.join(plan.reliability.sources())}. {first.layout}: "
        f"{left.failures_per_day:.3g} failures a day, {100 * left.available:.4g}% available, "
        f"{100 * (left.pace - 1):.2g}% slower.",
        highlight=False,
    )


def _print_sweeps(plan: Planned, console: Console) -> None:
    """A closed form a layout."""
    said = {one.layout: text for one in plan.sweeps if (text := one.sentence)}
    if said:
        console.print("Against concurrency, of c requests in flight", style="italic")
    for layout, text in said.items():
        console.print(f"{layout}: {text}.", highlight=False)


def _columns(plan: Planned, shown: Sequence[Prediction]) -> Mapping[str, Show]:
    """Title -> what it shows; those that say nothing of any layout are left out."""
    columns = dict(_COLUMNS)
    if plan.reliability is not None:
        columns = _after(columns, "tokens/s", "goodput", lambda one: _left(plan, one))
    found = {name: show for name, show in columns.items() if {*map(show, shown)} - {"", "-"}}
    if len({one.num_gpus for one in shown}) == 1:
        found.pop("of GPUs")
    return found if plan.has_tpot else {**found, "TPOT ms": lambda one: "-"}


def _after(columns: Mapping[str, Show], before: str, name: str, show: Show) -> dict[str, Show]:
    """The columns with another one behind `before`."""
    found: dict[str, Show] = {}
    for title, each in columns.items():
        found |= {title: each, **({name: show} if title == before else {})}
    return found


def _left(plan: Planned, one: Prediction) -> str:
    left = plan.goodput(one)
    return significant(left.output_throughput, 4) if left else ""


def _parts() -> Mapping[str, Show]:
    parts = {name: _of_part(name) for name in NAMES}
    return {
        "total": lambda one: significant(one.device_ms_per_token, 3),
        **parts,
        "outside": lambda one: significant(one.outside_ms_per_token, 3),
    }


def _of_part(name: str) -> Show:
    def show(one: Prediction) -> str:
        value: float = getattr(one.parts, name)
        is_rounding = abs(value) < TINY * one.device_ms_per_token
        return significant(0.0 if is_rounding else value, 3)

    return show


def _table(shown: Sequence[Prediction], marks: Sequence[str], columns: Mapping[str, Show]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    marked = any(marks)
    for name in ("", "layout") if marked else ("layout",):
        table.add_column(name, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for mark, one in zip(marks, shown, strict=True):
        first = (mark, one.layout) if marked else (one.layout,)
        table.add_row(*first, *(show(one) for show in columns.values()))
    return table


def _in_flight(one: Prediction) -> str:
    return str(one.in_flight) if one.in_flight < one.max_concurrency else ""


_COLUMNS: dict[str, Show] = {
    "of GPUs": lambda one: str(one.num_gpus),
    "at once": _in_flight,
    "late": lambda one: str(one.late or ""),
    "tokens/s": lambda one: estimated(one.output_throughput),
    "bound": lambda one: significant(one.bound_output_throughput, 4),
    "TTFT ms": lambda one: estimated(one.ttft_ms),
    "TPOT ms": lambda one: estimated(one.tpot_ms),
    "weights": lambda one: format_bytes(one.memory.weights),
    "KV": lambda one: format_bytes(one.memory.kv),
    "memory": lambda one: format_bytes(one.memory.total),
    "J/token": lambda one: estimated(one.joules_per_output_token),
    "cost/M tokens": lambda one: estimated(one.cost_per_million_tokens),
}


def estimated(one: Estimate | None) -> str:
    """A value and how far the farther end of its interval is from it, in ratio; both ends to a
    digit where that is more than twice; "unknown" where they are a factor of 100 apart."""
    if one is None:
        return "-"
    if one.high > MOST_APART * one.low:
        return "unknown"
    apart = max(one.high / one.value, one.value / one.low)
    if apart > 2:
        return f"{_one_digit(one.low)} to {_one_digit(one.high)}"
    return f"{significant(one.value, 4)} ±{100 * (apart - 1):.0f}%"


def _one_digit(value: float) -> str:
    return significant(float(f"{value:.1g}"), 6)


def _print_refused(plan: Planned, console: Console) -> None:
    """A line a reason, those that differ in a degree alone together."""
    found = grouped(refused(plan), lambda one: (one.kind, re.sub(r"=\d+", "=", one.reason)))
    for alike in list(found.values())[:MOST_ROWS]:
        names = ", ".join(one.layout for one in alike[:MOST_NAMES])
        if len(alike) > MOST_NAMES:
            names += f" and {len(alike) - MOST_NAMES} more"
        console.print(f"{names}: {alike[0].kind}: {alike[0].reason}.", highlight=False)
    if len(found) > MOST_ROWS:
        console.print(f"and {len(found) - MOST_ROWS} more reasons; --json has all.")


def _print_outside(plan: Planned, console: Console) -> None:
    """In what the first of each ranking lies outside; --json has it of all."""
    firsts = [ranking.predictions[0] for ranking in plan.rankings if ranking.predictions]
    for one in firsts:
        if one.outside:
            why = "; ".join(one.outside)
            text = f"{one.layout} at {one.max_concurrency}: outside of what was fitted, so wider: "
            console.print(f"{text}{why}.", highlight=False)
