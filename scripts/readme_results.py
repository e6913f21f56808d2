"""Write the results in README.md anew from the packed tables: `python scripts/readme_results.py`.

Every figure between the two marks is worked out here, and so is every sentence: a statement that
the tables do not bear out raises AssertionError instead of being written. A test compares the page
with what this makes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from orchestrator.analysis.comparing.ablation import Effect
from orchestrator.analysis.comparing.changes import changes
from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.analysis.comparing.findings import Findings, of_results
from orchestrator.analysis.comparing.significance import DIFFERENT, EQUIVALENT
from orchestrator.analysis.comparing.spreads import Statistic
from orchestrator.analysis.comparing.two_results import two_results
from orchestrator.analysis.comparing.verdicts import Verdict
from orchestrator.analysis.load import Results, load
from orchestrator.analysis.observed.communication import PROFILE_LIMIT, PhaseParts
from orchestrator.analysis.token_cost import Parts
from orchestrator.report.text import EN_DASH, fixed, three_digits
from workers.rows import grouped

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
QWEN = ROOT / "docs" / "results" / "2xh100" / "qwen2.5-32b"
LLAMA = ROOT / "docs" / "results" / "2xh200" / "llama-70b"
WITHOUT = ROOT / "docs" / "results" / "2xh200" / "ablation-comm-qwen2.5-32b"
ENGINES = ROOT / "docs" / "results" / "2xh100" / "engines-qwen2.5-32b"
SWAP = ROOT / "docs" / "results" / "2xh100" / "swap-qwen2.5-32b"
BEGIN, END = "<!-- begin: scripts/readme_results.py -->", "<!-- end: scripts/readme_results.py -->"
WIDTH = 118
AGREE = 1.0  # percent of a step by which an ablation and the profile may differ
SWAP_MATTERS = 0.01  # of throughput; more would be said otherwise
THROUGHPUT = "output_throughput"
# Title of a column -> what a token costs of it, in GPU-ms; None where it was not taken apart.
COST: dict[str, Callable[[Comparison], float | None]] = {
    "total": lambda one: one.device_time.device_ms_per_token,
    "weights": lambda one: one.device_time.roofline.weights,
    "KV": lambda one: one.device_time.roofline.kv,
    "arithmetic": lambda one: one.device_time.roofline.arithmetic,
    "rest of compute": lambda one: one.cost.parts.rest,
    "transfer": lambda one: one.cost.parts.transfer,
    "wait": lambda one: one.cost.parts.wait,
    "bubble": lambda one: one.cost.parts.bubble,
    "launch gap": lambda one: one.cost.parts.launch_gap,
    "ramp, idle": lambda one: (
        (one.device_time.ramp_ms_per_token or 0.0) + (one.device_time.outside_ms_per_token or 0.0)
    ),
}


@dataclass(frozen=True)
class Published:
    """One published result: a folder of packed tables, and what it says."""

    folder: Path

    @cached_property
    def results(self) -> Results:
        """The runs and the manifest."""
        (found,) = load([self.folder])
        return found

    @cached_property
    def findings(self) -> Findings:
        """Comparison, verdicts and statistics."""
        return of_results([self.results])

    @property
    def concurrencies(self) -> list[int]:
        """In order."""
        return sorted({one.cell.max_concurrency for one in self.findings.comparison})

    def cell(self, strategy: str, concurrency: int, engine: str = "torch") -> Comparison:
        """The row of the comparison of a layout."""
        wanted = (strategy, concurrency, engine)
        (found,) = (
            one
            for one in self.findings.comparison
            if (one.cell.strategy, one.cell.max_concurrency, one.cell.engine) == wanted
        )
        return found

    def verdict(self, one: str, other: str, concurrency: int) -> Verdict:
        """The verdict on the throughput of two layouts."""
        (found,) = (
            verdict
            for verdict in self.findings.verdicts
            if verdict.metric == THROUGHPUT
            and verdict.max_concurrency == concurrency
            and {verdict.better, verdict.other} == {one, other}
        )
        return found

    def statistic(self, strategy: str, concurrency: int, metric: str) -> Statistic:
        """A figure of a cell over its starts."""
        (found,) = (
            one
            for one in self.findings.statistics
            if (one.cell.strategy, one.cell.max_concurrency) == (strategy, concurrency)
            and one.metric == metric
        )
        return found

    def values(self, of: Callable[[Comparison], float | None]) -> list[float]:
        """A figure of every cell that knows it."""
        found = map(of, self.findings.comparison)
        return [one for one in found if one is not None]


def section() -> str:
    """What is between the marks."""
    return "\n\n".join(
        [
            *_qwen(Published(QWEN)),
            *_engines(Published(ENGINES)),
            *_llama(Published(LLAMA)),
            *_without(Published(WITHOUT)),
            *_swapped(SWAP / "inorder", SWAP / "swapped"),
        ]
    )


def page(text: str) -> str:
    """A README with the results written anew."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{section()}\n{END}{tail}"


# -- qwen2.5-32b on two H100


def _qwen(found: Published) -> Iterator[str]:
    layouts = ["tp2", "dp2", "pp2"]
    yield "### qwen2.5-32b on two H100"
    yield _paragraph(*_conditions(found))
    yield _throughputs(found, layouts)
    yield _bullets(*_three_layouts(found), _scatter(found))
    yield _paragraph(
        "What a token costs, in milliseconds of GPU time: the time of both GPUs for each token "
        "that the run made, prompts included.",
        "The parts of a row sum to its total.",
        "[docs/measurement.md](docs/measurement.md#what-a-token-costs) defines them:",
    )
    yield _costs(found, layouts)
    yield _bullets(
        _pipeline_loses(found),
        f"{_one_micro_batch(found)} {_idle_replica(found)}",
        " ".join(_tensor_loses(found)),
        _unknown_parts(found),
        _capped(found, layouts),
        _startups(found),
    )


def _three_layouts(found: Published) -> Iterator[str]:
    one, many = found.concurrencies[0], found.concurrencies[1:]
    over = [found.verdict("tp2", other, n) for n in found.concurrencies for other in ("pp2", "dp2")]
    yield _tp2_is_best(found, over)
    assert found.verdict("pp2", "dp2", one).verdict == EQUIVALENT
    rest = [found.verdict("dp2", "pp2", n) for n in many]
    assert all((each.verdict, each.better) == (DIFFERENT, "dp2") for each in rest)
    delta = 100 * rest[0].difference
    yield (
        f"pp2 and dp2 are equivalent within {delta:g}% for {_users(one)}. At {_listed(many)} dp2 "
        f"delivers {_range(_ratios(rest), '.2f', 'x')} pp2."
    )


def _idle_replica(found: Published) -> str:
    idle = found.cell("dp2", found.concurrencies[0])
    share = 100 * _known(COST["ramp, idle"](idle)) / _known(COST["total"](idle))
    return f"Under dp2 the second replica has nothing to do: {share:.0f}%."


def _unknown_parts(found: Published) -> str:
    one = found.concurrencies[0]
    unknown = [each for each in found.findings.comparison if each.cost.parts.transfer is None]
    assert [(each.cell.strategy, each.cell.max_concurrency) for each in unknown] == [("tp2", one)]
    return (
        f"The parts of tp2 for {_users(one)} are not known ({EN_DASH}): in prefill "
        f"{unknown[0].cost.prefill_cost_reason}, and above {PROFILE_LIMIT:g} no share is shown."
    )


# -- qwen2.5-32b on two H100, under vLLM too


# Title of a column -> the part of a decode step, in ms of a GPU.
STEP: dict[str, Callable[[PhaseParts], float | None]] = {
    "step": lambda one: one.step_ms,
    "compute": lambda one: one.compute.ms,
    "transfer": lambda one: one.exposed_transfer.ms,
    "wait": lambda one: one.exposed_wait.ms,
    "fused": lambda one: one.fused.ms,
    "bubble": lambda one: one.bubble.ms,
    "launch gap": lambda one: one.launch_gap.ms,
}


def _engines(found: Published) -> Iterator[str]:
    layouts = ["tp2", "dp2", "pp2"]
    yield "### The same layouts under vLLM"
    yield _paragraph(*_both_engines(found))
    yield _side_by_side(found, layouts)
    yield _paragraph(
        "With so few starts there is no verdict between the engines; `--engine torch,vllm "
        "--chunked-prefill-size 2048 --num-starts 5` gives one. What a decode step consists of, in "
        "milliseconds of a GPU, from a profiled run of each engine; under pp2 a step of `torch` is "
        "that of one of its two micro-batches:"
    )
    yield _steps(found, layouts)
    yield _bullets(
        _fused_sum(found), _one_batch(found), _first_token(found), _untaken_prefill(found)
    )


def _both_engines(found: Published) -> Iterator[str]:
    asked, manifest = found.results.asked, found.results.manifest
    settings = manifest["engine_settings"]["qwen2.5-32b.tp2.vllm.bfloat16"]
    assert "fuse_allreduce_rms=True" in settings["resolved.compilation_config.pass_config"]
    assert (asked["num_prompts"], asked["num_runs"], asked["load_format"]) == (None, 2, "dummy")
    once = [
        f"{one.cell.strategy} of {one.cell.engine}"
        for one in found.findings.comparison
        if (one.num_starts, one.cell.max_concurrency) == (1, 1)
    ]
    assert {one.num_starts for one in found.findings.comparison} == {1, 2}
    yield (
        f"vLLM {manifest['versions']['vllm']} and the engine `torch` in one command, in turns: two "
        "H100, BF16, dummy weights, 256 tokens in and 128 out, closed batches of 1, 32 and 100 "
        "requests, two runs of each in a start."
    )
    yield (
        "vLLM ran with its own defaults: CUDA graphs, asynchronous scheduling, and its all-reduce "
        "fused with the norm behind it by FlashInfer. Two things differ. NVLink multicast is off, "
        f"and a pass has at most {settings['max_num_batched_tokens']} tokens, as under `torch`."
    )
    yield (
        f"The figures are means of two starts; {_listed(once)} had one. Generated tokens per "
        "second, and the median time to the first token in milliseconds:"
    )


def _side_by_side(found: Published, layouts: Sequence[str]) -> str:
    def shown(layout: str, concurrency: int, engine: str) -> str:
        one = found.cell(layout, concurrency, engine)
        reached, first = one.throughput.output_throughput, one.latency.ttft.median
        return f"{three_digits(_known(reached))} · {_known(first):.0f}"

    pairs = [(layout, engine) for layout in layouts for engine in ("torch", "vllm")]
    rows = [[str(n), *(shown(a, n, b) for a, b in pairs)] for n in found.concurrencies]
    return _table(["concurrent", *(f"{a} {b}" for a, b in pairs)], rows)


def _steps(found: Published, layouts: Sequence[str]) -> str:
    rows = []
    for concurrency in found.concurrencies:
        for layout in layouts:
            for engine in ("torch", "vllm"):
                decode = found.cell(layout, concurrency, engine).step.decode
                parts = {title: of(decode) for title, of in STEP.items()}
                _check_sum(parts)
                values = [_cost(value) for value in parts.values()]
                rows.append([str(concurrency), layout, engine, *values])
    return _table(["concurrent", "layout", "engine", *STEP], rows)


def _fused_sum(found: Published) -> str:
    ours = [_known(found.cell("tp2", n).step.decode.comm_exposed.pct) for n in found.concurrencies]
    cells = [found.cell("tp2", n, "vllm").step.decode for n in found.concurrencies]
    fused = [_known(one.fused.pct) for one in cells]
    exposed = [_known(one.comm_exposed.pct) for one in cells]
    return (
        f"Under tp2 a fused kernel of vLLM sums and normalises: {_range(fused, '.1f', '%')} of its "
        f"step, beside {_range(exposed, '.1f', '%')} that only communicates. Nobody can see where "
        f"in it the transfer ends. NCCL's sums take {_range(ours, '.1f', '%')} of a step of "
        "`torch`, and the norms are part of its compute."
    )


def _one_batch(found: Published) -> str:
    many = found.concurrencies[1:]
    idle = [_known(found.cell("pp2", n, "vllm").step.decode.bubble.pct) for n in many]
    ours = [_known(found.cell("pp2", n).step.decode.bubble.pct) for n in many]
    assert min(idle) > 45 > 10 > max(ours)
    over = [
        _known(found.cell("pp2", n).throughput.output_throughput)
        / _known(found.cell("pp2", n, "vllm").throughput.output_throughput)
        for n in many
    ]
    return (
        f"Under pp2 each GPU waits for {_range(idle, '.0f', '%')} of vLLM's step also at "
        f"{_listed(many)} concurrent: all requests are in one batch, which is in one stage at a "
        f"time. `torch` makes two micro-batches of them, waits for {_range(ours, '.1f', '%')}, and "
        f"delivers {_range(over, '.2f', 'x')}, though each micro-batch streams the weights anew."
    )


def _first_token(found: Published) -> str:
    one = found.concurrencies[0]
    ours, theirs = (
        [_known(found.cell(name, one, engine).latency.ttft.median) for name in ("tp2", "pp2")]
        for engine in ("torch", "vllm")
    )
    assert max(ours) < min(theirs)
    return (
        f"The first token of one user takes {_range(ours, '.0f', ' ms')} under tp2 and pp2 of "
        f"`torch`, which replays short prompts as graphs, and {_range(theirs, '.0f', ' ms')} of "
        "vLLM."
    )


def _untaken_prefill(found: Published) -> str:
    at = found.concurrencies[0]
    untaken = [one for one in found.findings.comparison if one.cost.prefill_cost_reason]
    assert {(one.cell.engine, one.cell.max_concurrency) for one in untaken} == {("vllm", at)}
    return (
        f"vLLM's prefill for {_users(at)} is not taken apart: under the profiler its host is "
        f"slower than the GPUs, and above {PROFILE_LIMIT:g} times the timed pass no share is shown."
    )


# -- llama-70b on two H200


def _llama(found: Published) -> Iterator[str]:
    layouts = ["tp2", "pp2"]
    yield "### llama-70b on two H200"
    yield _paragraph(*_conditions(found, "dp2 does not fit."))
    yield _throughputs(found, layouts)
    over = [found.verdict("tp2", "pp2", n) for n in found.concurrencies]
    yield _bullets(_tp2_is_best(found, over), _scatter(found))
    yield "What a token costs, in milliseconds of GPU time:"
    yield _costs(found, layouts)
    yield _bullets(
        _less_observed(found, "pp2"),
        _pipeline_loses(found),
        _one_micro_batch(found),
        " ".join(_tensor_loses(found)),
        _capped(found, layouts),
        _startups(found),
    )


def _less_observed(found: Published, layout: str) -> str:
    starts = found.cell(layout, found.concurrencies[0]).num_starts
    seen = {n: found.statistic(layout, n, "comm_exposed_pct").n for n in found.concurrencies}
    fewer = [n for n, count in seen.items() if count < starts]
    (count,) = {seen[n] for n in fewer}
    return (
        f"{starts - count} of the {starts} starts of {layout} was not taken apart at "
        f"{_listed(fewer)} concurrent: its parts there are of {count} starts."
    )


# -- qwen2.5-32b on two H200, without its collectives


def _without(found: Published) -> Iterator[str]:
    effects = found.findings.ablations
    (starts,) = {one.num_starts for one in found.findings.comparison}
    assert {one.cell.ablation for one in effects} == {"comm"}
    assert all(abs(one.saved_pct - _known(one.comm_exposed_pct)) < AGREE for one in effects)
    saved = [_saved(one) for one in effects]
    profile = [f"{_known(one.comm_exposed_pct):.1f}%" for one in effects]
    yield "### What communication costs, measured twice"
    yield _paragraph(
        f"`--ablate comm` on qwen2.5-32b under tp2, two H200, {starts} starts: without its "
        f"collectives a decode step is shorter by {_listed(saved)} at "
        f"{_listed([one.cell.max_concurrency for one in effects])} concurrent.",
        f"The profile of the whole layout books {_listed(profile)} for them.",
    )


def _saved(one: Effect) -> str:
    low, high = _known(one.saved_ci_low), _known(one.saved_ci_high)
    return f"{one.saved_pct:.1f}% [{low:.1f}, {high:.1f}]"


# -- qwen2.5-32b on two H100, with the GPUs the other way round


def _swapped(base: Path, new: Path) -> Iterator[str]:
    orders = [Published(one).results.manifest["environment"] for one in (base, new)]
    assert [one.get("CUDA_VISIBLE_DEVICES") for one in orders] == [None, "1,0"]
    found = [one for one in changes(two_results(base, new)) if one.metric == THROUGHPUT]
    ((starts, other),) = {(one.base_starts, one.new_starts) for one in found}
    assert starts == other
    assert all(abs(_known(one.ratio) - 1) < SWAP_MATTERS for one in found)
    ratios = [
        f"{_known(one.ratio):.3f}x [{_known(one.ci_low):.3f}, {_known(one.ci_high):.3f}] under "
        f"{one.joined.strategy}"
        for one in found
    ]
    yield "### The GPUs the other way round"
    yield _paragraph(
        f"With `CUDA_VISIBLE_DEVICES=1,0` the ranks trade places. On two H100, at 100 concurrent, "
        f"{starts} starts each way, throughput is then {_listed(ratios)}.",
        f"So the order of the GPUs moves these means by less than {100 * SWAP_MATTERS:.0f}%.",
    )


# -- what is said of every result


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
        f"All served the same requests: {_listed(counts)} at {_listed(found.concurrencies)} "
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
        reached = three_digits(_known(one.throughput.output_throughput))
        width = 100 * (_known(half.ci_high) / half.mean - 1)
        return f"{_bold(reached, one.in_best_set)} ± {width:.1f}%"

    rows = [[str(n), *(shown(layout, n) for layout in layouts)] for n in found.concurrencies]
    return _table(["concurrent", *layouts], rows)


def _tp2_is_best(found: Published, over: Sequence[Verdict]) -> str:
    assert all((each.verdict, each.better) == (DIFFERENT, "tp2") for each in over)
    at = grouped(over, lambda each: each.max_concurrency)
    ranges = [f"by {_range(_ratios(at[n]), '.2f', 'x')} at {n}" for n in found.concurrencies]
    return f"tp2 is best throughout, {_listed(ranges)} concurrent."


def _scatter(found: Published) -> str:
    between = [100 * value for value in found.values(lambda one: one.spread.cv_between)]
    within = [100 * value for value in found.values(lambda one: one.spread.cv_within)]
    return (
        f"Starts of a layout scatter by {_range(between, '.2f', '%')} of its throughput, runs "
        f"inside a start by {_range(within, '.2f', '%')} (coefficients of variation)."
    )


def _ratios(verdicts: Sequence[Verdict]) -> list[float]:
    return [_known(one.ratio) for one in verdicts]


def _costs(found: Published, layouts: Sequence[str]) -> str:
    rows = []
    for concurrency in found.concurrencies:
        for layout in layouts:
            one = found.cell(layout, concurrency)
            parts = {title: of(one) for title, of in COST.items()}
            _check_sum(parts)
            values = [_cost(parts[title]) for title in COST]
            rows.append([str(concurrency), layout, *values])
    return _table(["concurrent", "layout", *COST], rows)


def _check_sum(parts: dict[str, float | None]) -> None:
    total, *rest = parts.values()
    known = [value for value in rest if value is not None]
    assert total is not None
    assert len(known) < len(rest) or abs(sum(known) - total) <= 0.01 * total, parts


def _pipeline_loses(found: Published) -> str:
    some = found.concurrencies[1]
    tp2, pp2 = found.cell("tp2", some), found.cell("pp2", some)
    total, weights, bubble = (
        _known(COST[title](pp2)) - _known(COST[title](tp2))
        for title in ("total", "weights", "bubble")
    )
    assert weights > 0.9 * total > 10 * bubble
    return (
        f"What a pipeline loses is weights rather than bubbles. At {some} concurrent a token costs "
        f"{total:.2f} GPU-ms more under pp2 than under tp2. Each of its two micro-batches streams "
        f"the weights of a stage by itself: {weights:.2f} of these. The bubble is {bubble:.2f}."
    )


def _one_micro_batch(found: Published) -> str:
    one = found.concurrencies[0]
    share = _known(found.cell("pp2", one).cost.run_bubble_pct)
    return (
        f"For {_users(one)} there is one micro-batch: {share:.0f}% of the GPU time under pp2 is "
        "bubble."
    )


def _tensor_loses(found: Published) -> Iterator[str]:
    at = [n for n in found.concurrencies if found.cell("tp2", n).cost.parts.transfer is not None]
    cells = [found.cell("tp2", n).cost for n in at]
    moving = [_moving_pct(each.parts) for each in cells]
    steps = [found.statistic("tp2", n, "comm_exposed_pct") for n in found.concurrencies]
    said = [f"{each.mean:.1f}% [{each.ci_low:.1f}, {each.ci_high:.1f}]" for each in steps]
    runs = [f"{_known(each.run_comm_exposed_pct):.1f}%" for each in cells]
    yield (
        "What tensor parallelism loses is communication: data on their way for "
        f"{_range(moving, '.0f', '%')} of it, else waits for the other GPU. "
        f"tp2 spends {_listed(said)} of a decode step on it at {_listed(found.concurrencies)} "
        f"concurrent, and {_listed(runs)} of the whole run at {_listed(at)}."
    )
    yield f"Under pp2 it is {_range(_decode_comm(found, 'pp2'), '.2f', '%')} of a decode step."


def _moving_pct(parts: Parts) -> float:
    moving, waiting = _known(parts.transfer), _known(parts.wait)
    return 100 * moving / (moving + waiting)


def _decode_comm(found: Published, layout: str) -> list[float]:
    return [_known(found.cell(layout, n).step.decode.comm_exposed.pct) for n in found.concurrencies]


def _capped(found: Published, layouts: Sequence[str]) -> str:
    most = found.concurrencies[-1]
    held = {name: found.cell(name, most).clocks.power_capped_pct for name in layouts}
    said = [f"{_known(share):.0f}% of the samples of {name}" for name, share in held.items()]
    return f"At {most} concurrent the power cap held the clocks down, in {_listed(said)}."


def _startups(found: Published) -> str:
    startups = found.values(lambda each: each.startup.startup_s)
    return (
        "From the start of the actors to the first token takes "
        f"{min(startups):.0f} to {max(startups):.0f} s."
    )


# -- words and tables


def _known(value: float | None) -> float:
    assert value is not None
    return value


def _users(concurrency: int) -> str:
    assert concurrency == 1
    return "one user"


def _range(values: Sequence[float], form: str, unit: str) -> str:
    low, high = (f"{value:{form}}" for value in (min(values), max(values)))
    return f"{low}{unit}" if low == high else f"{low}{unit} to {high}{unit}"


def _listed(items: Sequence[object]) -> str:
    *head, last = map(str, items)
    return f"{', '.join(head)} and {last}" if head else last


def _cost(value: float | None) -> str:
    return EN_DASH if value is None else fixed(value + 0.0, 2).replace("-0.00", "0.00")


def _bold(text: str, yes: object) -> str:
    return f"**{text}**" if yes else text


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (titles, *rows)]
    return "\n".join([lines[0], "|---:" * len(titles) + "|", *lines[1:]])


def _paragraph(*sentences: str) -> str:
    return textwrap.fill(" ".join(sentences), WIDTH, break_long_words=False, break_on_hyphens=False)


def _bullets(*texts: str) -> str:
    return "\n".join(map(_bullet, texts))


def _bullet(text: str) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent="* ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    README.write_text(page(README.read_text(encoding="utf-8")), encoding="utf-8")
