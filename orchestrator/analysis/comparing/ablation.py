"""What something does, by runs without it: a step without its collectives or without peer-to-peer
links, an independent check of the profile; and cells without a technique."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from orchestrator.analysis.comparing.confidence import paired_ratio, spread
from orchestrator.analysis.comparing.metrics import THROUGHPUT, TPOT, TTFT, Figure
from orchestrator.analysis.comparing.rounds import (
    R,
    Repeat,
    Round,
    by_round,
    completed,
    means,
    observed_once,
    with_valid_power,
)
from orchestrator.analysis.summary import Summary
from orchestrator.experiment import TECHNIQUES, Technique
from orchestrator.store.schema import CellKey
from workers.rows import Table, column, group, grouped, row


@row
class Effect:
    """An ablated cell beside the whole one."""

    cell: CellKey = group()
    decode_ms_per_step: float = column("decode step of the whole layout, mean over starts", "ms")
    decode_ms_per_step_without: float = column("the same without what is left out", "ms")
    saved_pct: float = column(
        "what the step is shorter by, over the rounds that both have, or all where there are none",
        "%",
        formula="100 x (1 - without / whole)",
    )
    saved_ci_low: float | None = column(
        "lower end of its 95% interval, from two rounds on", "%", source="Fieller 1954, of pairs"
    )
    saved_ci_high: float | None = column("upper end of it", "%", source="Fieller 1954, of pairs")
    comm_exposed_pct: float | None = column(
        "exposed communication by the profile of the whole layout", "%"
    )
    expected_pct: float | None = column(
        "what that lets the step be shorter by: a bubble shrinks as the stages do",
        "%",
        formula="100 x comm_exposed_pct / (100 - bubble_pct)",
    )
    fused_pct: float | None = column(
        "kernels that communicate and compute, by the profile of the whole layout", "%"
    )
    fused_comm_pct: float | None = column(
        "the part of these that is communication, which no profile can see; null where none runs, "
        "and where anything but collectives is left out",
        "%",
        formula="saved_pct - expected_pct, from 0 to fused_pct",
    )


@row
class Sides:
    """A figure with a technique and without it; of each start the mean over its runs. Intervals are
    at 95%, from two starts on."""

    with_it: float | None = column("{about} with it, mean over starts")
    with_ci_low: float | None = column("lower end of its interval", source="Student")
    with_ci_high: float | None = column("upper end of it", source="Student")
    without: float | None = column("{about} without it, mean over starts")
    without_ci_low: float | None = column("lower end of its interval", source="Student")
    without_ci_high: float | None = column("upper end of it", source="Student")
    ratio: float | None = column("with over without, over the rounds that both have", "1")
    ratio_ci_low: float | None = column(
        "lower end of its interval", "1", source="Fieller 1954, of pairs"
    )
    ratio_ci_high: float | None = column("upper end of it", "1", source="Fieller 1954, of pairs")


@row
class TechniqueEffect:
    """A cell with a technique beside the same without it. The key is that of the cell without."""

    cell: CellKey = group()
    with_setting: str | None = column("how the technique was set")
    without_setting: str | None = column("how it was set without")
    num_starts: int = column("rounds that both have", "1")
    same_output: bool | None = column("whether all runs of both made the same tokens")
    output_throughput: Sides = group("output_throughput_{}", "output_throughput", unit="tokens/s")
    ttft: Sides = group("median_ttft_ms_{}", "median_ttft_ms", unit="ms")
    tpot: Sides = group("median_tpot_ms_{}", "median_tpot_ms", unit="ms")
    attention: Sides = group("attention_ms_{}", "attention_ms, of decoding,", unit="ms")
    attention_rate: Sides = group(
        "attention_tflops_{}", "attention_tflops, of decoding,", unit="TFLOP/s"
    )
    prefill_attention: Sides = group("prefill_attention_ms_{}", "prefill_attention_ms", unit="ms")
    prefill_attention_rate: Sides = group(
        "prefill_attention_tflops_{}", "prefill_attention_tflops", unit="TFLOP/s"
    )
    peak_memory: Sides = group("peak_memory_bytes_{}", "peak_memory_bytes", unit="B")
    memory_swing: Sides = group("memory_swing_bytes_{}", "memory_swing_bytes", unit="B")
    gpu_utilization: Sides = group(
        "mean_gpu_utilization_pct_{}", "mean_gpu_utilization_pct", unit="%"
    )
    energy: Sides = group("joules_per_output_token_{}", "joules_per_output_token", unit="J")


def _observed(column: str, unit: str, of: Callable[[Summary], float | None]) -> Figure:
    return Figure(column, unit, of, counted=observed_once)


LEFT_OUT = ("comm", "p2p")
UNKNOWN = (None, None, None)
# The fields of Sides: a figure and its interval, with, without, and of the ratio.
SIDES = (
    ("with_it", "with_ci_low", "with_ci_high"),
    ("without", "without_ci_low", "without_ci_high"),
    ("ratio", "ratio_ci_low", "ratio_ci_high"),
)
# The fields of TechniqueEffect that are figures, and which.
TECHNIQUE_FIGURES: Mapping[str, Figure] = {
    "output_throughput": THROUGHPUT,
    "ttft": TTFT,
    "tpot": TPOT,
    "attention": _observed("attention_ms", "ms", lambda run: run.step.decode.attention_ms),
    "attention_rate": _observed(
        "attention_tflops", "TFLOP/s", lambda run: run.step.decode.attention_tflops
    ),
    "prefill_attention": _observed(
        "prefill_attention_ms", "ms", lambda run: run.step.prefill.attention_ms
    ),
    "prefill_attention_rate": _observed(
        "prefill_attention_tflops", "TFLOP/s", lambda run: run.step.prefill.attention_tflops
    ),
    "peak_memory": Figure("peak_memory_bytes", "B", lambda run: run.memory.peak_memory_bytes),
    "memory_swing": Figure("memory_swing_bytes", "B", lambda run: run.memory.memory_swing_bytes),
    "gpu_utilization": Figure(
        "mean_gpu_utilization_pct", "%", lambda run: run.energy.mean_gpu_utilization_pct
    ),
    "energy": Figure(
        "joules_per_output_token",
        "J",
        lambda run: run.energy.joules_per_output_token,
        counted=with_valid_power,
    ),
}
EFFECTS = Table("ablations", Effect)
TECHNIQUE_EFFECTS = Table("ablation", TechniqueEffect)


def effects(runs: Iterable[Summary]) -> list[Effect]:
    """A row per ablated cell whose whole counterpart was run too.

    Outputs of one token have no decode step, and no row.
    """
    known = [run for run in completed(runs) if run.throughput.decode_ms_per_step]
    return [_effect(*pair) for pair in pairs_of(known) if pair[1][0].cell.ablation in LEFT_OUT]


def technique_effects(runs: Iterable[Summary]) -> list[TechniqueEffect]:
    """A row per cell and technique that it was run without, where both have a result: technique by
    technique, layout by layout, from few users to many."""
    pairs = pairs_of(completed(runs))
    found = [_technique_effect(*pair) for pair in pairs if pair[1][0].cell.ablation in TECHNIQUES]
    techniques, layouts = [*TECHNIQUES], [_without_load(one.cell) for one in found]

    def place(one: TechniqueEffect) -> tuple[int, int, int]:
        layout = layouts.index(_without_load(one.cell))
        return techniques.index(one.cell.ablation), layout, one.cell.max_concurrency

    return sorted(found, key=place)


def _without_load(cell: CellKey) -> CellKey:
    return replace(cell, ablation="none", max_concurrency=0)


def pairs_of(runs: Iterable[R]) -> Iterator[tuple[list[R], list[R]]]:
    """The whole runs of each cell, with those of each ablation of it."""
    for mine in grouped(runs, lambda run: replace(run.cell, ablation="none")).values():
        by_ablation = grouped(mine, lambda run: run.cell.ablation)
        whole = by_ablation.pop("none", [])
        yield from ((whole, ablated) for ablated in by_ablation.values() if whole)


def _effect(whole: Sequence[Summary], ablated: Sequence[Summary]) -> Effect:
    before, after = means(whole, _step_ms), means(ablated, _step_ms)
    shared = [at for at in before if at in after]
    sides = [after[at] for at in shared], [before[at] for at in shared]
    found = paired_ratio(*sides)
    exposed = _mean(whole, lambda run: run.step.decode.comm_exposed.pct)
    fused = _mean(whole, lambda run: run.step.decode.fused.pct)
    expected = _mean(whole, _expected_pct)
    without = found.value if found else fmean(after.values()) / fmean(before.values())
    in_fused = _in_fused(_saved(without), expected, fused)
    return Effect(
        cell=ablated[0].cell,
        decode_ms_per_step=fmean(before.values()),
        decode_ms_per_step_without=fmean(after.values()),
        saved_pct=_saved(without),
        saved_ci_low=_saved(found.high) if found and found.high is not None else None,
        saved_ci_high=_saved(found.low) if found and found.low is not None else None,
        comm_exposed_pct=exposed,
        expected_pct=expected,
        fused_pct=fused,
        fused_comm_pct=in_fused if ablated[0].cell.ablation == "comm" else None,
    )


def _technique_effect(whole: Sequence[Summary], without: Sequence[Summary]) -> TechniqueEffect:
    settings = _settings(TECHNIQUES[without[0].cell.ablation], whole[0], without[0])
    digests = {run.output_digest for run in (*whole, *without)}
    return TechniqueEffect(
        cell=without[0].cell,
        with_setting=settings[0],
        without_setting=settings[1],
        num_starts=len(by_round(whole).keys() & by_round(without).keys()),
        same_output=None if None in digests else len(digests) == 1,
        **{name: sides_of(one, whole, without) for name, one in TECHNIQUE_FIGURES.items()},
    )


def _settings(
    technique: Technique, whole: Summary, without: Summary
) -> tuple[str | None, str | None]:
    """How a technique was set, with it and without. What names the cell is the same in the keys of
    both, and was off in the second."""
    if technique.field in ("quantization", "kv_cache_dtype"):  # one name, as "fp8+kv-fp8"
        of_kv, parts = technique.field == "kv_cache_dtype", whole.cell.quantization.split("+")
        mine = (part for part in parts if part.startswith("kv-") == of_kv)
        return next(mine, technique.off).removeprefix("kv-"), technique.off
    if hasattr(whole.cell, technique.field):
        return getattr(whole.cell, technique.field), technique.off
    before, after = (
        getattr(run.conditions.settings, technique.field, None) for run in (whole, without)
    )
    return before, after


def sides_of(figure: Figure, whole: Sequence[Repeat], without: Sequence[Repeat]) -> Sides:
    """A figure of the runs of a cell with a technique, and of those without it."""
    starts = figure.starts(whole), figure.starts(without)
    shared = [at for at in starts[0] if at in starts[1]]
    found = paired_ratio(*([side[at] for at in shared] for side in starts))
    ratio = (found.value, found.low, found.high) if found else UNKNOWN
    sides = zip(SIDES, (*map(_mean_of, starts), ratio), strict=True)
    return Sides(**{name: value for side in sides for name, value in zip(*side, strict=True)})


def _mean_of(starts: Mapping[Round, float]) -> tuple[float | None, float | None, float | None]:
    """The mean of a figure's starts, and its interval."""
    found = spread(list(starts.values()))
    return (found.mean, found.ci_low, found.ci_high) if found else UNKNOWN


def _expected_pct(run: Summary) -> float | None:
    """The share of communication in the time that is no bubble, in percent."""
    decode = run.step.decode
    exposed, bubble = decode.comm_exposed.pct, decode.bubble.pct or 0.0
    return None if exposed is None or bubble >= 100.0 else 100.0 * exposed / (100.0 - bubble)


def _in_fused(saved: float, expected: float | None, fused: float | None) -> float | None:
    """What is saved beyond the communication that the profile sees was in the fused kernels."""
    if not fused or expected is None:
        return None
    return min(fused, max(0.0, saved - expected))


def _mean(runs: Iterable[Summary], value: Callable[[Summary], float | None]) -> float | None:
    """Over starts."""
    found = means(runs, value).values()
    return fmean(found) if found else None


def _saved(without: float) -> float:
    return 100.0 * (1.0 - without)


def _step_ms(run: Summary) -> float | None:
    return run.throughput.decode_ms_per_step


def sentence(effect: Effect) -> str:
    """One line on an effect."""
    cell = effect.cell
    name = f"{cell.strategy} {cell.scenario} at {cell.max_concurrency} concurrent"
    before, after = effect.decode_ms_per_step, effect.decode_ms_per_step_without
    change = f"{name}: {before:.2f} -> {after:.2f} ms a step"
    if cell.ablation != "comm":
        return f"Without peer-to-peer links: {change}, x {after / before:.2f}."
    expected = effect.expected_pct
    profile = "" if expected is None else f"; the profile says {expected:.1f}%"
    if effect.fused_pct and effect.fused_comm_pct is not None:
        profile += (
            f"; of the {effect.fused_pct:.1f}% in fused kernels {effect.fused_comm_pct:.1f}% is "
            "communication"
        )
    low, high = effect.saved_ci_low, effect.saved_ci_high
    between = "" if low is None or high is None else f" [{low:.1f}, {high:.1f}]"
    return f"Without collectives: {change}, {effect.saved_pct:.1f}%{between} less{profile}."
