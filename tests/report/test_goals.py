"""The goals of docs/performance.md, and what techniques gave in docs/techniques.md: what is said is
what the published tables say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from statistics import fmean, geometric_mean, median
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from orchestrator.analysis.least import least
from orchestrator.analysis.roofline import Closed, Rates, Stage, stages_of
from orchestrator.plan.models import resolve
from strategies import Load, Topology, plan_layout
from strategies.precision import Precision

DOCS = Path(__file__).resolve().parents[2] / "docs"
BOTH, EIGHT = "2xh200/engines-qwen2.5-32b", "2xh200/engines-llama-8b"
SINCE, AGAIN = "2xh200/streamed-qwen2.5-32b", "2xh200/engines-again-qwen2.5-32b"
EIGHT_AGAIN, SEVENTY_BOTH = "2xh200/engines-again-llama-8b", "2xh200/engines-llama-70b"
HANDED, SEVENTY_AGAIN = "2xh200/handed-qwen2.5-32b", "2xh200/engines-again-llama-70b"
NEIGHBOURS = "2xh200/neighbours-qwen2.5-32b"
PLACED = "2xh200/placed"
STREAMED, BY_PHASE = "2xh200/fp8-streamed-qwen2.5-32b", "1xh200/fp8-by-phase-qwen2.5-32b"
NOW, SEVENTY = "2xh200/tp2-qwen2.5-32b", "2xh200/tp2-llama-70b/short"
READS, MULTIPLIES = 4.2e12, 797e12  # of the page: bytes/s, operations/s
SHORT = (256, 128)


@cache
def goals() -> Mapping[str, str]:
    """Goal -> what is reached."""
    text = (DOCS / "performance.md").read_text(encoding="utf-8").partition("| goal |")[2]
    rows = (line.strip("|").split("|") for line in text.partition("\n\n")[0].splitlines()[2:])
    return {goal.strip(): reached.replace("*", "").strip() for goal, reached, _ in rows}


def reached(words: str) -> str:
    (found,) = (reached for goal, reached in goals().items() if words in goal)
    return found


@cache
def table(folder: str, name: str = "summary") -> pa.Table:
    with pa.memory_map(str(DOCS / "results" / folder / f"{name}.arrow")) as file:
        return pa.ipc.open_file(file).read_all()


def runs(folder: str, layout: str, users: int, engine: str = "torch") -> Iterator[dict[str, Any]]:
    wanted = {"strategy": layout, "max_concurrency": users, "engine": engine, "ablation": "none"}
    for row in table(folder).to_pylist():
        if all(row[name] == value for name, value in wanted.items()):
            yield row


def mean(column: str, folder: str, layout: str, users: int, engine: str = "torch") -> float:
    return fmean(row[column] for row in runs(folder, layout, users, engine))


@cache
def stages(layout: str, model: str = "qwen2.5-32b") -> tuple[Stage, ...]:
    shape = resolve(model, "dummy").shape
    placement = plan_layout(layout, shape, Load(*SHORT, 8), Topology.uniform(2)).placement
    return stages_of(placement, shape, Precision("bfloat16"))


def share(
    folder: str, layout: str, users: int, model: str = "qwen2.5-32b", rate: float = READS
) -> float:
    """Of a decode step that reads weights and KV, in percent. Replicas and micro-batches share the
    users."""
    requests = max(1.0, users / (1 if layout.startswith("tp") else 2))
    read = sum(one.decode_bytes(requests, 256 + 63) for one in stages(layout, model))
    return 1e5 * read / rate / mean("decode_ms_per_step", folder, layout, users)


@pytest.mark.parametrize(
    ("folder", "layout", "words"),
    [(BOTH, "dp2", "{:.0f}% and {:.0f}%, "), (BOTH, "pp2", ", {:.0f}% and {:.0f}%.")],
)
def test_steps_are_held_against_their_bound(folder: str, layout: str, words: str) -> None:
    said = reached("a decode step within 90% of its bound")
    assert words.format(*(share(folder, layout, users) for users in (1, 32))) in said


def test_steps_of_tp2_are_too() -> None:
    said = reached("a decode step within 90% of its bound")
    one, many = (
        f"{took:.2f} ms, {share(HANDED, 'tp2', users):.0f}%;"
        for users, took in zip((1, 32), steps(HANDED), strict=True)
    )
    assert f"tp2 for 1: {one}" in said
    assert f"Not tp2 for 32: {many}" in said
    assert "it was {:.2f} and {:.2f} ms".format(*steps(f"{NEIGHBOURS}/after")) in said
    took = "{:.2f} and {:.2f} ms".format(*steps(f"{PLACED}/qwen2.5-32b"))
    of = [share(f"{PLACED}/qwen2.5-32b", "tp2", users) for users in (1, 32)]
    assert took + ", {:.0f}% and {:.0f}%. Before".format(*of) in said


def test_what_has_been_gained_since_both_engines_ran_is_said() -> None:
    found = [
        100 * (mean("output_throughput", f"{SINCE}/with", "tp2", users) / before - 1)
        for users in (1, 32)
        for before in [mean("output_throughput", f"{SINCE}/without", "tp2", users)]
    ]
    assert "{:.1f}% and {:.1f}% more".format(*found) in reached("1.15x of vLLM")


def test_how_far_vllm_is_behind_with_the_kernels_of_now() -> None:
    every, said = [], reached("1.15x of vLLM")
    for folder, words in (
        (f"{PLACED}/qwen2.5-32b", "Of the 32B it is {} for 1, 32 and 100 users, {:.2f}x; "),
        (SEVENTY_AGAIN, " {}, {:.2f}x; of the 8B"),
        (f"{PLACED}/llama-8b", "of the 8B {}, {:.2f}x. "),
    ):
        ratios = over_vllm(folder)
        three = "{:.2f}x, {:.2f}x and {:.2f}x".format(*ratios)
        assert words.format(three, geometric_mean(ratios)) in said
        assert three in newest()
        every += ratios
    assert f"yes of the 32B, {geometric_mean(every[:3]):.2f}x, and" in said
    assert f"of three models together, {geometric_mean(every):.2f}x, beside" in said
    assert f"Not of the 32B and the 70B together: {geometric_mean(every[:-3]):.2f}x" in said


def over_vllm(folder: str, layout: str = "tp2") -> list[float]:
    """For 1, 32 and 100 users."""
    return [
        mean("output_throughput", folder, layout, users)
        / mean("output_throughput", folder, layout, users, "vllm")
        for users in (1, 32, 100)
    ]


def newest() -> str:
    """What docs/results.md says of the newest starts."""
    text = (DOCS / "results.md").read_text(encoding="utf-8").partition("**newest starts**")[2]
    return " ".join(text.split())


def test_vllm_is_behind_in_each_cell_of_that_start() -> None:
    ratios = {layout: over_vllm(AGAIN, layout) for layout in ("tp2", "dp2", "pp2")}
    every = list(chain(*ratios.values()))
    said = reached("ahead of vLLM in every cell")
    assert f"of the 32B: {min(every):.2f}x to {max(every):.2f}x." in said
    page = " ".join((DOCS / "results.md").read_text(encoding="utf-8").split())
    for layout, of_layout in ratios.items():
        words = "{:.2f}x, {:.2f}x and {:.2f}x".format(*of_layout)
        assert re.search(rf"{words} (of vLLM )?under {layout}\b", page)
    words = "{:.2f}x, {:.2f}x and {:.2f}x".format(*over_vllm(EIGHT_AGAIN))
    assert f"in which `torch` delivers {words}." in page


@pytest.mark.parametrize("model", ["qwen2.5-32b", "llama-8b"])
def test_vllm_stands_beside_the_newest_starts(model: str) -> None:
    folder = f"{PLACED}/{model}"
    theirs = [mean("output_throughput", folder, "tp2", users, "vllm") for users in (1, 32, 100)]
    lines = "| | tok/s of vLLM | {:.1f} | {:,.0f} | {:,.0f} |\n".format(*theirs)
    lines += "| | over vLLM | {:.2f}x | {:.2f}x | {:.2f}x |".format(*over_vllm(folder))
    assert lines in (DOCS / "performance.md").read_text(encoding="utf-8")


def steps(folder: str, layout: str = "tp2", loads: Sequence[int] = (1, 32)) -> list[float]:
    return [mean("decode_ms_per_step", folder, layout, users) for users in loads]


def test_steps_of_other_models_and_gpus_are_held_against_it_too() -> None:
    said = reached("the same of llama-70b under tp2")
    for users, took in zip((1, 32), steps(SEVENTY_AGAIN), strict=True):
        of = share(SEVENTY_AGAIN, "tp2", users, "llama-70b")
        assert f"{took:.1f} ms, {of:.0f}%, for {users}" in said
    rates = [row["algbw"] for row in table("2xh100", "fabric").to_pylist() if row["op"] == "read"]
    found = [
        share("2xh100/engines-qwen2.5-32b", "tp2", n, rate=fmean(rates) * 1e9) for n in (1, 32)
    ]
    said = reached("the same of two H100")
    assert "{:.0f}% and {:.0f}%".format(*found) in said
    assert f"{fmean(rates) / 1e3:.2f} TB/s" in said


def test_vllm_is_behind_in_every_cell() -> None:
    cells = [
        (folder, layout, n)
        for folder in (BOTH, EIGHT)
        for layout in ("tp2", "dp2", "pp2")
        for n in (1, 32, 100)
    ]
    ratios = {
        one: mean("output_throughput", *one) / mean("output_throughput", *one, "vllm")
        for one in cells
    }
    assert f"{min(ratios.values()):.2f}x to {max(ratios.values()):.2f}x" in reached("ahead of vLLM")
    tp = [ratio for (_, layout, _), ratio in ratios.items() if layout == "tp2"]
    assert f"{geometric_mean(tp):.2f}x of both models" in reached("1.15x of vLLM")


def test_first_tokens_and_prompts() -> None:
    assert f"{mean('median_ttft_ms', BOTH, 'tp2', 1):.1f} ms" in reached(
        "the first token of one user"
    )
    rate = fmean(
        row["bound"]
        for row in table("1xh200", "attention").to_pylist()
        if row["phase"] == "prefill"
    )
    assert f"{rate / 1e12:.0f} TFLOP/s" == f"{MULTIPLIES / 1e12:.0f} TFLOP/s"
    shares = [100 * passes_flops(layout) / MULTIPLIES for layout in ("dp2", "pp2", "tp2")]
    said = "dp2 and pp2: {:.0f}% and {:.0f}% in passes of 2,048 tokens. Not tp2: {:.0f}%"
    assert said.format(*shares) in reached("prompts at 75%")


def passes_flops(layout: str) -> float:
    """Operations a second of a GPU in the median pass of 2,048 tokens of 100 prompts."""
    found: list[float] = []
    before: dict[tuple[int, ...], float] = {}
    for row in table(BOTH, "steps").to_pylist():
        if (row["strategy"], row["engine"], row["max_concurrency"]) != (layout, "torch", 100):
            continue
        at = tuple(row[name] for name in ("start", "run", "rank"))
        if at in before and row["phase"] == "prefill" and row["num_tokens"] == 2048:
            found.append(row["end_s"] - before[at])
        before[at] = row["end_s"]
    one = stages(layout)[0]
    flops = 2048 * one.token_flops + 8 * one.attention_flops * 256 * 257 / 2
    return float(flops / median(found))


@pytest.mark.parametrize("model", ["llama-8b", "qwen2.5-32b"])
def test_a_long_prompt(model: str) -> None:
    (one,) = stages("tp1", model)
    flops = one.prefill_flops(Closed.equal(16_000, 16, 1, 1))
    for kind, said in (("fa3-prefill", "on one H200: {}"), ("triton", "Without, {}")):
        folder = f"1xh200/prompts-by-fa3/{model}/16000-{kind}"
        part = 100 * flops / (mean("median_ttft_ms", folder, "tp1", 1) / 1e3) / MULTIPLIES
        assert f"{part:.0f}%" in reached("16,000 tokens").partition(said.partition("{")[0])[2]


def test_a_long_prompt_over_tp() -> None:
    flops = stages("tp2")[0].prefill_flops(Closed.equal(16_000, 8, 1, 1))
    took = mean("median_ttft_ms", f"{NOW}/prompt-16000", "tp2", 1) / 1e3
    assert f"under tp2 {100 * flops / took / MULTIPLIES:.0f}%" in reached("16,000 tokens")


def test_many_users() -> None:
    shares, made = [], []
    for users in (256, 512):
        load = Closed.equal(*SHORT, users, users)
        bound = users * SHORT[1] / least(stages("tp2"), load, Rates(READS, MULTIPLIES, 0)).seconds
        made.append(mean("output_throughput", f"{NOW}/many", "tp2", users))
        shares.append(100 * made[-1] / bound)
    said = reached("for 256 and 512 users")
    assert "{:.0f}% and {:.0f}%, {:,.0f} and {:,.0f} tok/s".format(*shares, *made) in said


def test_fp8() -> None:
    rows = table("1xh200/fp8-qwen2.5-32b").to_pylist()
    steps = {(row["ablation"], row["max_concurrency"]): row["decode_ms_per_step"] for row in rows}
    faster = [steps["quantization", users] / steps["none", users] for users in (1, 32)]
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    assert "| BF16 over FP8 | a decode step | {:.2f} | {:.2f} |".format(*faster) in text
    made = [mean("output_throughput", "1xh200/fp8-llama-70b", "tp1", users) for users in (1, 32)]
    assert "{:.1f} and {:,.0f} tok/s".format(*made) in reached("llama-70b in FP8 on one GPU")


@pytest.mark.parametrize(
    ("bf16", "fp8", "layout", "words"),
    [
        # Where prompts alone are FP8, decode steps are those of BF16.
        (f"{BY_PHASE}/fp8-prefill", f"{BY_PHASE}/uniform", "tp1", "yes on one H200: "),
        (f"{SEVENTY_BOTH}/bf16", f"{SEVENTY_BOTH}/fp8", "tp2", "yes under tp2 of llama-70b: "),
        (
            f"{PLACED}/qwen2.5-32b",
            f"{PLACED}/qwen2.5-32b-fp8",
            "tp2",
            "Under tp2 of the 32B for 1, not for 32: ",
        ),
        (f"{STREAMED}/bf16", f"{STREAMED}/fp8", "tp2", "Before sums were handed over it was "),
    ],
)
def test_how_much_faster_a_step_in_fp8_is(bf16: str, fp8: str, layout: str, words: str) -> None:
    slow, fast = (steps(folder, layout, (1, 32, 100)) for folder in (bf16, fp8))
    faster = [f"{before / now:.2f}" for before, now in zip(slow, fast, strict=True)]
    assert words + " and ".join(faster[:2]) in reached("1.6 times as fast in FP8")
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    assert f"| BF16 over FP8 | a decode step | {' | '.join(faster)} |" in text


@pytest.mark.parametrize("policy", ["fp8-prefill", "fp8-decode", "uniform"])
def test_fp8_by_phase(policy: str) -> None:
    folder = f"{BY_PHASE}/{policy}"
    figures = [
        [mean(column, folder, "tp1", users) for users in (1, 32, 100)]
        for column in ("output_throughput", "decode_ms_per_step", "median_ttft_ms")
    ]
    memory = max(row["peak_memory_bytes"] for row in table(folder).to_pylist()) / 1e9
    words = (
        "{:.1f}, {:,.0f}, {:,.0f} | {:.2f}, {:.2f}, {:.2f} | {:.1f}, {:.0f}, {:,.0f} | {:.1f} GB"
    )
    row = words.format(*chain(*figures), memory)
    assert row in (DOCS / "performance.md").read_text(encoding="utf-8")


def test_the_table_of_tp2_is_of_its_runs() -> None:
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    for folder in (
        SEVENTY,
        f"{NOW}/short",
        f"{NOW}/long",
        f"{NOW}/fp8",
        "2xh200/tp2-llama-70b/fp8",
        f"{STREAMED}/bf16",
        f"{STREAMED}/fp8",
        f"{STREAMED}/fp8-kv",
        f"{SEVENTY_BOTH}/bf16",
        f"{SEVENTY_BOTH}/fp8",
        HANDED,
        SEVENTY_AGAIN,
        *(f"{PLACED}/{name}" for name in ("qwen2.5-32b", "qwen2.5-32b-fp8", "llama-8b")),
    ):
        made, took = (
            [mean(column, folder, "tp2", users) for users in (1, 32, 100)]
            for column in ("output_throughput", "decode_ms_per_step")
        )
        row = "| tok/s | {:.1f} | {:,.0f} | {:,.0f} |\n".format(*made)
        row += "| | a decode step, ms | {:.2f} | {:.2f} | {:.2f} |".format(*took)
        assert row in text


def test_what_fewer_kernels_gave() -> None:
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    for users, form in ((1, "{:.1f}"), (32, "{:,.0f}"), (100, "{:,.0f}")):
        before, after = (
            mean("output_throughput", f"{NEIGHBOURS}/{name}", "tp2", users)
            for name in ("before", "after")
        )
        took = [
            *(steps(f"{NEIGHBOURS}/{name}", "tp2", (users,))[0] for name in ("before", "after"))
        ]
        made = f"{form.format(before)} | {form.format(after)} | {after / before - 1:+.1%} | "
        assert f"| {users} | {made}" + "{:.2f} | {:.2f} |".format(*took) in text


def test_starts() -> None:
    def took(folder: str, column: str = "startup_s") -> list[float]:
        return list({row["start"]: row[column] for row in runs(folder, "tp2", 1)}.values())

    folders = ("llama-70b", "qwen2.5-32b", "qwen2.5-32b-fp8")
    every = [took(f"2xh200/starts/{name}") for name in folders]
    (before,), said = took(SEVENTY), reached("from `submit`")
    first, second = every[0]
    assert f"all kernels first: {first:.1f} s. Not the second: {second:.1f} s" in said
    others = "Of the 32B {:.1f} and {:.1f} s, in FP8 {:.1f} and {:.1f}."
    assert others.format(*every[1], *every[2]) in said
    assert f"it was {before:.1f} s" in said
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    for name, starts in zip(folders, every, strict=True):
        captured = took(f"2xh200/starts/{name}", "capture_s")
        assert "in all | {:.1f} | {:.1f} |".format(*starts) in text
        assert "warming up and capturing | {:.1f} | {:.1f} |".format(*captured) in text


def test_gaps_and_memory() -> None:
    gaps = [mean("launch_gap_pct", BOTH, layout, 100) for layout in ("tp2", "dp2", "pp2")]
    said = reached("idle for 1% between decode steps")
    assert "are {:.1f}%, {:.1f}% under dp2 and {:.1f}% under pp2".format(*gaps) in said
    assert f"{100 * between():.2f}% under tp2" in said
    text = " ".join((DOCS / "predictions.md").read_text(encoding="utf-8").split())
    assert "1.5% of 170, 6.0% at most" in text
    assert "off by 1.5%, by 6.0% at most, of [170 cells]" in reached("memory as `explain` says")


def between() -> float:
    """The share of the time from step to step in which a GPU runs nothing between them."""
    spans = table(BOTH, "spans")
    wanted = {"strategy": "tp2", "engine": "torch", "phase": "decode"}
    for name, value in wanted.items():
        spans = spans.filter(pc.equal(pc.cast(spans[name], pa.string()), value))
    spans = spans.filter(pc.equal(spans["max_concurrency"], 100))
    ends = spans.group_by(["start", "rank", "step"]).aggregate(
        [("start_us", "min"), ("end_us", "max")]
    )
    at = {
        (r["start"], r["rank"], r["step"]): (r["start_us_min"], r["end_us_max"])
        for r in ends.to_pylist()
    }
    pairs = [
        (at[*key, step - 1], one) for (*key, step), one in at.items() if (*key, step - 1) in at
    ]
    idle, whole = (sum(b[side] - a[1] for a, b in pairs) for side in (0, 1))
    return float(idle / whole)


def test_a_cpu() -> None:
    rows = [
        fmean(row["output_throughput"] for row in runs("cpu/engines-tiny", "tp2", 8, engine))
        for engine in ("torch", "vllm")
    ]
    assert f"{rows[0] / rows[1]:.2f}x" in reached("on two cores")


def test_what_techniques_gave() -> None:
    text = (DOCS / "techniques.md").read_text(encoding="utf-8")
    for name, folder in (
        ("products", "techniques"),
        ("pdl", "techniques"),
        ("quantization", "fp8"),
    ):
        rows = table(f"1xh200/{folder}-qwen2.5-32b", "ablation").to_pylist()
        ratios = {
            row["max_concurrency"]: row["output_throughput_ratio"]
            for row in rows
            if row["ablation"] == name
        }
        words = " | ".join(f"{ratios[users]:.2f}" for users in (1, 32, 100))
        assert f"| `{name}` | {words} |" in text


def figures(row: Mapping[str, Any], side: str, *names: str) -> Iterator[float]:
    """Of a row of `ablation`, with a technique or without it."""
    return (row[f"{name}_{side}"] for name in names)


def test_what_chunks_of_long_prompts_gave() -> None:
    text = (DOCS / "techniques.md").read_text(encoding="utf-8")
    (row,) = table("1xh200/long-prompts-in-chunks", "ablation").to_pylist()
    for value, side in (("2048", "with_it"), ("off", "without")):
        tokens, first, further, peak, swing, energy = figures(
            row,
            side,
            "output_throughput",
            "median_ttft_ms",
            "median_tpot_ms",
            "peak_memory_bytes",
            "memory_swing_bytes",
            "joules_per_output_token",
        )
        made = f"| `{value}` | {tokens:.1f} | {first:,.0f} | {further:.2f} | {peak / 1e9:.1f} GB "
        assert f"{made}| {swing / 1e9:.2f} GB | {energy:.2f} |" in text
    less = 100 * (1 - row["memory_swing_bytes_ratio"])
    slower = 100 * (1 - row["output_throughput_ratio"])
    assert f"Memory swings by {less:.0f}% less, and the run delivers {slower:.0f}% less" in text


def test_what_techniques_of_mixed_lengths_gave() -> None:
    text = (DOCS / "techniques.md").read_text(encoding="utf-8")
    for row in table("1xh200/techniques-llama-8b", "ablation").to_pylist():
        for name, side in ((f"`{row['ablation']}`", "without"), ("nothing", "with_it")):
            tokens, first, further, swing, used, energy = figures(
                row,
                side,
                "output_throughput",
                "median_ttft_ms",
                "median_tpot_ms",
                "memory_swing_bytes",
                "mean_gpu_utilization_pct",
                "joules_per_output_token",
            )
            made = f"| {name} | {tokens:,.0f} | {first:.1f} | {further:.2f} "
            assert f"{made}| {swing / 1e6:.0f} | {used:.0f}% | {energy:.3f} |" in text
