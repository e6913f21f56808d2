"""The comparison of runs that train, in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.analysis.comparing import gaps
from orchestrator.analysis.comparing.rounds import Load, load_of, names_of
from orchestrator.analysis.training.ablation import TrainingEffect
from orchestrator.analysis.training.comparison import TrainingComparison, TrainingFindings
from orchestrator.report.charts.views import natural
from orchestrator.report.text import fixed, full, legend, percent
from orchestrator.store.schema import COMPLETED
from workers.rows import grouped
from workers.units import format_bytes, is_cpu

CPU_NOTE = (
    "On CPU, the ranks of a layout share a few cores: this shows that the layouts work and learn "
    "the same. It is no ranking of them."
)
OF_GPU = "/GPU"  # a column of GPUs alone
# Title -> (what it means, how it is written). One that no layout has a value for is left out.
COLUMNS: dict[str, tuple[str, Callable[[TrainingComparison], str]]] = {
    "tok/s": (
        "tokens trained on per second of all replicas; mean of the starts",
        lambda one: fixed(one.rate.tokens_per_second),
    ),
    "±": ("half of that mean's 95% interval, in percent of it", lambda one: _half(one)),
    OF_GPU: ("tok/s per GPU", lambda one: fixed(one.rate.tokens_per_second_per_gpu)),
    "step ms": ("time of an optimizer step", lambda one: fixed(one.rate.step_time_ms)),
    "MFU": (
        "arithmetic of the model over what the data sheet allows",
        lambda one: percent(one.rate.model_flops_utilization, of=1.0),
    ),
    "loss": ("mean loss of a token in the last step", lambda one: fixed(one.result.loss, 4)),
    "grad norm": ("of the whole model in it", lambda one: fixed(one.result.grad_norm, 3)),
    "weights": ("of the fullest rank", lambda one: _bytes(one.memory.weight_bytes)),
    "gradients": ("of the fullest rank", lambda one: _bytes(one.memory.gradient_bytes)),
    "optimizer": (
        "moments and float32 weights of the fullest rank",
        lambda one: _bytes(one.memory.optimizer_bytes),
    ),
    "activations": ("the rest of the peak memory", lambda one: _bytes(one.memory.activation_bytes)),
    "sent": (
        "message sizes of a step's collectives, of the rank with most",
        lambda one: _bytes(one.traffic.communication_bytes),
    ),
    "forward": ("ms of a step, mean over ranks", lambda one: fixed(one.times.forward_ms)),
    "backward": ("the same", lambda one: fixed(one.times.backward_ms)),
    "update": ("the same, of the optimizer", lambda one: fixed(one.times.optimizer_ms)),
    "exposed": (
        "ms of a step in which collectives are under way and nothing computes, mean over ranks",
        lambda one: fixed(one.times.communication_exposed_ms),
    ),
    "hidden": (
        "the same while something computes",
        lambda one: fixed(one.times.communication_hidden_ms),
    ),
    "bubble": (
        "share of a step that a rank of the pipeline waits, as observed",
        lambda one: percent(one.times.bubble_measured, of=1.0),
    ),
    "by schedule": (
        "the same by the schedule alone, where all stages take equally long",
        lambda one: percent(one.rate.bubble_share, of=1.0),
    ),
}


def render(found: TrainingFindings, console: Console) -> None:
    """Print a table for each load, its layouts `in_order`; failed ones with their reason below."""
    shown: dict[str, str] = {}
    titles = titles_of(found.comparison)
    for load, cells in loads_of(in_order(found)):
        _, rows = describe(cells)
        table = Table(box=SIMPLE_HEAD, title=titles[load.experiment], title_justify="left")
        for name in rows[0] if rows else ():
            table.add_column(name, justify="left" if name == "layout" else "right")
        for row in rows:
            table.add_row(*row.values())
        console.print(table)
        shown |= {name: COLUMNS[name][0] for name in (rows[0] if rows else ()) if name in COLUMNS}
        for line in (*reasons(cells), *sentences(found, load)):
            console.print(full(line), highlight=False)
    if found.effects:
        table = Table(
            box=SIMPLE_HEAD,
            title="with one thing changed: each figure, of that as asked",
            title_justify="left",
        )
        changed = [effect_shown(one) for one in found.effects]
        for name in changed[0]:
            table.add_column(name, justify="left" if name == "layout" else "right")
        for texts in changed:
            table.add_row(*texts.values())
        console.print(table)
    for line in (*found.lost, *gaps.sentences(found.missing)):
        console.print(full(line), highlight=False)
    console.print(legend(shown))
    if on_cpu(found):
        console.print(CPU_NOTE, style="yellow")


def in_order(found: TrainingFindings) -> Sequence[TrainingComparison]:
    """The best of a load first; by their names on CPU devices."""
    if not on_cpu(found):
        return found.comparison
    return sorted(found.comparison, key=lambda one: natural(one.cell.layout))


def sentences(found: TrainingFindings, load: Load) -> list[str]:
    """What is shown of each pair of layouts of a load: nothing on CPU devices."""
    return [] if on_cpu(found) else found.sentences(load)


def on_cpu(found: TrainingFindings) -> bool:
    """Whether any cell was trained on CPU devices, whose figures are no ranking."""
    return any(is_cpu(one.conditions.device_name) for one in found.comparison)


def titles_of(cells: Sequence[TrainingComparison]) -> dict[str, str]:
    """Experiment -> its load in words, with its name where another one has the same."""
    said = {load.experiment: describe(mine)[0] for load, mine in loads_of(cells)}
    counts = Counter(said.values())
    return {
        name: title if counts[title] == 1 else f"{title} ({name})" for name, title in said.items()
    }


def loads_of(
    cells: Sequence[TrainingComparison],
) -> Iterable[tuple[Load, list[TrainingComparison]]]:
    """Each load with its cells."""
    return grouped(cells, lambda one: load_of(one.cell)).items()


def describe(cells: Sequence[TrainingComparison]) -> tuple[str, list[dict[str, str]]]:
    """The title of a load and a row for each of its layouts that was trained: column -> text.
    Ranks on CPUs share cores, so nothing is told of each."""
    first, names = cells[0], names_of([one.cell for one in cells])
    asked = first.conditions
    title = (
        f"{first.cell.model}, {asked.global_batch_size} x {asked.seq_len} tokens a step, "
        f"{asked.steps} steps, {asked.precision}"
    )
    done = [(name, one) for name, one in zip(names, cells, strict=True) if one.status == COMPLETED]
    left_out = OF_GPU if any(is_cpu(one.conditions.device_name) for one in cells) else None
    written = {key: [write(one) for _, one in done] for key, (_, write) in COLUMNS.items()}
    known = {key: texts for key, texts in written.items() if set(texts) - {"-"} and key != left_out}
    rows = [
        {"layout": name, **{key: texts[place] for key, texts in known.items()}}
        for place, (name, _) in enumerate(done)
    ]
    return title, rows


def effect_shown(one: TrainingEffect) -> dict[str, str]:
    """A changed cell beside the same as asked: heading -> text."""
    step, difference = one.step_time, one.loss_difference
    low, high = step.ratio_ci_low, step.ratio_ci_high
    within = f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else ""
    return {
        "layout": one.cell.layout,
        "step ms": f"{fixed(step.with_it)} of {fixed(step.without)}",
        "x": fixed(step.ratio, 2) + within,
        "peak memory": f"{_of(one.peak_memory.with_it)} of {_of(one.peak_memory.without)}",
        "activations": f"{_of(one.activation.with_it)} of {_of(one.activation.without)}",
        "calls": f"{one.communication_calls} of {one.communication_calls_asked}",
        "sent": f"{_bytes(one.communication_bytes)} of {_bytes(one.communication_bytes_asked)}",
        "loss": "-" if difference is None else f"{difference:+.1e}",
        "saved": percent(one.saved_pct),
        "at one clock": percent(one.saved_at_one_clock_pct),
        "exposed by profile": percent(one.exposed_pct),
    }


def _of(value: float | None) -> str:
    return _bytes(None if value is None else round(value))


def reasons(cells: Sequence[TrainingComparison]) -> list[str]:
    """Why layouts have no result."""
    bad = (one for one in cells if one.status != COMPLETED)
    return [f"{one.cell.strategy} {one.status}: {one.reason}" for one in bad]


def _half(one: TrainingComparison) -> str:
    low, high = one.tokens_per_second_ci_low, one.tokens_per_second_ci_high
    mean = one.rate.tokens_per_second
    return percent((high - low) / 2, of=mean) if low and high and mean else "-"


def _bytes(value: int | None) -> str:
    return "-" if value is None else format_bytes(value)
