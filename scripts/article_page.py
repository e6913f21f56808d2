"""Write docs/the-article.md from the published tables: `python scripts/article_page.py`.

What an article says of TP, PP, TP x PP and DP on four GPUs, sentence by sentence, beside
what four H200 did under two engines. A test compares the page with what this makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

import engines_words as words
import readme_results
from both_engines import (
    ENGINES,
    NAMES,
    OURS,
    THEIRS,
    all_batches,
    every_layout,
    layouts_of,
    vllm_version,
)
from published import (
    RESULTS,
    Published,
    between,
    completed_of,
    known,
    lengths,
    listed,
    model_of,
    paragraph,
    reached,
    table,
)

from orchestrator.analysis.comparing.ablation import Sides, TechniqueEffect, technique_effects
from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.analysis.comparing.rounds import completed
from orchestrator.analysis.load import load
from orchestrator.analysis.training.ablation import training_effects
from orchestrator.analysis.training.rows import TRAINED
from orchestrator.report.text import EN_DASH, aligned
from orchestrator.store.store import Store
from workers.rows import grouped

PAGE = RESULTS.parent / "the-article.md"
# (model, layout) -> what the article says of it.
SAID = {
    ("llama-70b", "tp4"): "68.2, 22% communication",
    ("llama-70b", "pp4"): "61.7, 18% communication",
    ("llama-70b", "tp2pp2"): "recommended",
    ("qwen2.5-32b", "tp4"): "132.4, 22% communication",
    ("qwen2.5-32b", "pp4"): "125.8, 18% communication",
    ("qwen2.5-32b", "tp2pp2"): EN_DASH,
    ("qwen2.5-32b", "dp4"): "recommended",
}
ALONE, SOME = 1, 32  # users, of its table


def page() -> str:
    """The whole page."""
    found = readme_results.both_engines(readme_results.FOUR)
    return "\n\n".join([*_opening(found), *_speeds(found), *_sentences(found)]) + "\n"


def _opening(found: Sequence[Published]) -> Iterator[str]:
    yield "# An article's figures, held against measurements"
    yield paragraph(
        "This project began with an article that compares parallel layouts of a 70B and a 32B on "
        'four GPUs of 48 GB, "Ada" cards without NVLink, and recommends one for each. The page '
        "takes its statements one by one, in our words. The measurements are those of "
        f"[the results](results.md): four H200 joined by NVLink, BF16, {lengths(found)}, under the "
        f"engine `torch` and under vLLM {vllm_version(found)}.",
        f"{words.repetition(found)} The figures are means over starts, and the results have their "
        "intervals where there are any.",
        "An H200 reads its memory at 4.8 TB/s and such a card at 0.86 to 0.96, and NVLink moves "
        "several times what PCIe does. So absolute figures are not comparable. What is comparable "
        "is the order of layouts and where the time goes.",
        "[audit.md](audit.md) says which of the absolute figures such cards can reach at all.",
    )


# -- its table


def _speeds(found: Sequence[Published]) -> Iterator[str]:
    yield "## Its table"
    yield paragraph(
        "Generated tokens per second, and in brackets communication as a share of a decode step, "
        "waits for other ranks included. The article does not say for how many users; below are "
        "one and 32. *at least*: vLLM's fused kernel, which also transfers, is left out."
    )
    titles = ["layout", "the article"]
    titles += [f"{x}, {n} user{'s' * (n > 1)}" for n in (ALONE, SOME) for x in ENGINES]
    rows = [
        [f"{model.rpartition('-')[2].upper()}, {layout}", said, *_cells(each, layout)]
        for (model, layout), said in SAID.items()
        for each in found
        if model_of(each) == model
    ]
    yield table(titles, rows)
    yield from map(paragraph, words.unrun_cells(found, (ALONE, SOME)))


def _cells(found: Published, layout: str) -> Iterator[str]:
    for n in (ALONE, SOME):
        yield from (_cell(found.at(layout, n, engine)) for engine in ENGINES)


def _cell(one: Comparison | None) -> str:
    if one is None:
        return EN_DASH
    decode = one.step.decode
    if decode.comm_exposed.pct is None:
        return aligned(reached(one))
    more = "at least " if (decode.fused.pct or 0.0) > 0.05 else ""
    return f"{aligned(reached(one))} ({more}{decode.comm_exposed.pct:.1f}%)"


# -- its sentences


def _sentences(found: Sequence[Published]) -> Iterator[str]:
    large, small = found
    yield "## Its sentences"
    for said, answer in (
        ("Pipelining delivers nine tenths of tensor parallelism.", _pipelining(found)),
        ("Communication takes 22% under TP4 and 18% under PP4.", _communication(found)),
        ("TP2 x PP2 is the layout for the 70B.", _recommended(large, "tp2pp2")),
        ("DP4 is the layout for the 32B.", _recommended(small, "dp4")),
        (
            "At 100 concurrent a request of the 70B gets 9.9 tokens a second, of the 32B 18.1.",
            _per_user(found),
        ),
        ("32 concurrent is the best operating point.", _best_point(found)),
        ("One GPU makes 19.9 (70B) and 39.5 (32B) tokens a second.", _one_gpu(small)),
        ("Dynamic batching holds the GPUs above 75% utilisation.", _utilisation(found)),
        ('FlashAttention-2 has 2.3x "attention density".', _attention()),
        ("FP8 with FP16 gains 15%.", _fp8()),
        ("Micro-batched long prompts swing memory by 37% less.", _chunked()),
        ("Activations on the CPU take 35% less memory, in training.", _offloaded()),
    ):
        yield f'### "{said}"'
        yield paragraph(*answer)
    yield "## Not measured here"
    yield paragraph(
        "Longer prompts (8.8 and 17.3 tokens a second a request at 100 concurrent). "
        "`orchestrator ablate` measures the techniques one by one: "
        "[docs/techniques.md](techniques.md)."
    )


def _pipelining(found: Sequence[Published]) -> Iterator[str]:
    said = {engine: list(_shares(found, engine)) for engine in ENGINES}
    assert said[OURS]
    yield "**Not here.**"
    for engine, at in said.items():
        if at:
            yield f"pp4 with {NAMES[engine]} delivers {listed(at)} concurrent of what tp4 does."
    theirs = [many for each in found for many in all_batches(each, "pp4", THEIRS)]
    yield (
        "For one user the four stages take turns, and a token waits for the weights of the whole "
        "model to pass through one GPU's bandwidth after the other's. With more users `torch` has "
        "four micro-batches, and each streams the weights anew."
    )
    if theirs:
        yield (
            f"vLLM has {between([round(many, 1) for many in theirs], 'g', '')} at 32 and 100 "
            "concurrent; of one, three stages wait for it."
        )


def _shares(found: Sequence[Published], engine: str) -> Iterator[str]:
    """pp4 of tp4 in percent, by load, where an engine has both."""
    for n in found[0].concurrencies:
        cells = [[each.at(name, n, engine) for name in ("pp4", "tp4")] for each in found]
        shares = [100 * reached(one) / reached(other) for one, other in cells if one and other]
        assert max(shares, default=0) < 90
        if shares:
            yield f"{between(shares, '.0f', '%')} at {n}"


def _comm(found: Sequence[Published], layout: str, engine: str) -> list[float]:
    """Shares of a decode step, fused kernels left out."""
    cells = [each.at(layout, n, engine) for each in found for n in each.concurrencies]
    shares = [one.step.decode.comm_exposed.pct for one in cells if one]
    return [share for share in shares if share is not None]


def _communication(found: Sequence[Published]) -> Iterator[str]:
    tensor, pipeline = (_comm(found, layout, OURS) for layout in ("tp4", "pp4"))
    by_nccl = readme_results.MODELS  # the names of results of `torch` in which NCCL sums
    rings = _comm([Published(readme_results.FOUR / name) for name in by_nccl], "tp4", OURS)
    assert max(tensor) < 22 < max(rings)
    assert max([*pipeline, *_comm(found, "pp4", THEIRS)]) < 1
    yield (
        f"**TP4 is of that size by NCCL, PP4 is not.** With `torch` it is "
        f"{between(rings, '.1f', '%')} of a decode step under tp4, by load and model, where NCCL "
        f"sums ({listed(f'[{name}](results/4xh200/{name})' for name in by_nccl)}), and "
        f"{between(tensor, '.1f', '%')} where the GPUs sum through each other's memory, as they do "
        f"by themselves now. It is {between(pipeline, '.1f', '%')} under pp4: a hidden state a "
        "stage is little to move."
    )
    if theirs := _comm(found, "tp4", THEIRS):
        cells = [each.at("tp4", n, THEIRS) for each in found for n in each.concurrencies]
        fused = [known(one.step.decode.fused.pct) for one in cells if one and _comm_known(one)]
        yield (
            f"vLLM fuses its sums with the norms behind them: {between(theirs, '.1f', '%')} of its "
            f"step only communicates, and {between(fused, '.1f', '%')} does both."
        )
    if theirs := _comm(found, "pp4", THEIRS):
        yield f"Under its pp4 it is {between(theirs, '.1f', '%')}."
    bubbles = [
        known(one.step.decode.bubble.pct)
        for each in found
        for engine in ENGINES
        if (one := each.at("pp4", 1, engine)) and _comm_known(one)
    ]
    yield (
        "A stage that waits for the stage before it is not communicating. These bubbles are "
        f"{between(bubbles, '.0f', '%')} for one user; an account that books them as communication "
        "sees much of it where there is none."
    )


def _comm_known(one: Comparison) -> bool:
    return one.step.decode.comm_exposed.pct is not None


def _recommended(found: Published, layout: str) -> Iterator[str]:
    said = []
    for engine in ENGINES:
        cells = [[found.at(x, n, engine) for x in ("tp4", layout)] for n in found.concurrencies]
        over = [reached(one) / reached(other) for one, other in cells if one and other]
        assert min(over, default=2.0) > 1.1
        if over:
            said.append(f"{listed(f'{ratio:.2f}x' for ratio in over)} with {NAMES[engine]}")
    yield (
        f"**Not with NVLink, at these loads.** tp4 delivers, of {layout} at "
        f"{listed(found.concurrencies)} concurrent, {', and '.join(said)}."
    )
    others = [name for name in layouts_of(found) if _always_more(found, name, layout)]
    if len(others) > 1:
        yield f"More than {layout} under every load, with `torch`: {listed(others)}."
    yield (
        "With `torch` the lead shrinks with load, as weights cost less for each token and "
        "communication does not. Over PCIe it shrinks further: `--ablate p2p` shows how far."
    )


def _always_more(found: Published, one: str, other: str) -> bool:
    return all(
        reached(found.cell(one, n)) > reached(found.cell(other, n)) for n in found.concurrencies
    )


def _per_user(found: Sequence[Published]) -> Iterator[str]:
    for each in found:
        most = each.concurrencies[-1]
        names = layouts_of(each)
        speeds = {name: _user_speed(each, name, most) for name in names}
        lost = [100 * (1 - speeds[name] / _user_speed(each, name, 1)) for name in names]
        said = listed(f"{value:.0f} under {name}" for name, value in speeds.items())
        yield (
            f"A request of the {model_of(each).rpartition('-')[2].upper()} gets with `torch` "
            f"{said} at {most} concurrent, {between(lost, '.0f', '%')} less than alone."
        )
        assert max(lost) < 85
    yield (
        "The article's fall, from 68.2 to 9.9, is 85%. A fall of that size is what requests that "
        "queue look like, or a decode step that arithmetic bounds; neither is so here."
    )


def _user_speed(found: Published, layout: str, concurrency: int) -> float:
    """Tokens per second of one request of `torch`, its first token left out."""
    return 1000 / known(found.cell(layout, concurrency).latency.tpot.median)


def _best_point(found: Sequence[Published]) -> Iterator[str]:
    gains = {engine: list(_gains(found, engine)) for engine in ENGINES}
    said = [
        f"{between([gain for gain, _ in mine], '.2f', 'x')} with {NAMES[engine]}"
        for engine, mine in gains.items()
        if mine
    ]
    every = [pair for mine in gains.values() for pair in mine]
    assert min(gain for gain, _ in every) > 1
    better = sum(gain > slower for gain, slower in every)
    assert better > len(every) / 2
    some = "Each" if better == len(every) else f"{better} of {len(every)} cells"
    yield (
        "**Not here.** From 32 to 100 concurrent every layout still gains throughput: "
        f"{listed(said)}. {some} gains more than a user loses in speed, so by the product of the "
        "two 100 is the better point."
    )
    lines = [
        one
        for each in found
        for one in each.findings.curves
        if one.engine == OURS and one.fitted.best_point is not None
    ]
    best = [known(one.fitted.best_point) for one in lines if one.strategy == "tp4"]
    rest = min(known(one.fitted.best_point) for one in lines if one.strategy != "tp4")
    yield (
        "The closed form of [predictions.md](predictions.md#against-concurrency) puts the best "
        f"point of tp4 with `torch` at {between(best, '.0f', '')}, of every other layout at "
        f"{rest:.0f} or more, and that of the article's own speeds at 16 (70B) and 15 (32B)."
    )


def _gains(found: Sequence[Published], engine: str) -> Iterator[tuple[float, float]]:
    """Of each layout throughput at 100 over that at 32, and how much longer a token takes."""
    for each in found:
        for layout in every_layout(each):
            some, most = (each.at(layout, n, engine) for n in each.concurrencies[1:])
            if some and most:
                slower = known(most.latency.tpot.median) / known(some.latency.tpot.median)
                yield reached(most) / reached(some), slower


def _one_gpu(small: Published) -> Iterator[str]:
    cells = {engine: small.at("dp4", 1, engine) for engine in ENGINES}
    said = [f"{aligned(reached(one))} with {NAMES[x]}" for x, one in cells.items() if one]
    yield (
        "The 70B in BF16 has 141 GB of weights, which neither a card of 48 GB nor one H200 holds "
        "beside its KV cache. "
        f"One H200 makes of the 32B, for one user, {listed(said)} tokens a second (dp4, whose "
        "other replicas are idle then)."
    )


def _utilisation(found: Sequence[Published]) -> Iterator[str]:
    values = [
        value
        for each in found
        for run in completed(each.results.runs)
        if run.cell.max_concurrency > 1
        and (value := run.energy.mean_gpu_utilization_pct) is not None
    ]
    bounds = [
        value
        for one in completed_of(found)
        if one.cell.max_concurrency > 1 and (value := one.bounds.bound_pct) is not None
    ]
    yield (
        f"What NVML calls utilisation is {between(values, '.0f', '%')} at 32 and 100 concurrent, "
        "of both engines. It says that some kernel ran, and no more: a stage that waits in a "
        f"receive counts as used, and the same runs reach {between(bounds, '.0f', '%')} of what "
        "memory and arithmetic would allow."
    )
    batching = _technique("batching")
    used = batching.gpu_utilization
    yield (
        "Of llama-8b on one H200, 32 at a time of mixed lengths, batching as requests come and go "
        f"delivers {_ratio(batching.output_throughput):.2f}x the tokens of whole batches, at "
        f"{used.with_it:.0f}% instead of {used.without:.0f}%."
    )


def _technique(name: str, folder: str = "techniques-llama-8b") -> TechniqueEffect:
    (results,) = load([RESULTS / "1xh200" / folder])
    found = technique_effects(results.runs)
    return next(one for one in found if one.cell.ablation == name)


def _ratio(sides: Sides) -> float:
    """With a technique over without it."""
    assert sides.with_it
    assert sides.without
    return sides.with_it / sides.without


def _attention() -> Iterator[str]:
    one = _technique("attention")
    decoding, prompts = (_ratio(of) for of in (one.attention_rate, one.prefill_attention_rate))
    assert min(decoding, prompts) > 2.3
    yield (
        "**More, here**, if that is FLOP/s. Of llama-8b on one H200, 32 at a time of mixed "
        "lengths, attention by kernels that keep no scores in memory has "
        f"{prompts:.0f}x the FLOP/s of plain operations over prompts, and {decoding:.0f}x in "
        f"decoding; the run delivers {_ratio(one.output_throughput):.1f}x the tokens a second "
        "([techniques.md](techniques.md#what-was-measured))."
    )


def _fp8() -> Iterator[str]:
    (results,) = load([RESULTS / "1xh200" / "fp8-qwen2.5-32b"])
    by_ablation = grouped(results.runs, lambda run: run.cell.ablation)
    with_it, without = (
        {run.cell.max_concurrency: run.throughput.output_throughput for run in by_ablation[kind]}
        for kind in ("none", "quantization")
    )
    gains = [f"{with_it[n] / without[n]:.2f}x at {n}" for n in sorted(with_it)]
    assert min(with_it[n] / without[n] for n in with_it) > 1.15
    yield (
        "**More, here.** With weights and activations of the layers in FP8 and the rest in BF16 "
        f"one H200 delivers of the 32B {listed(gains)} concurrent of what it does in BF16, in one "
        "start ([performance.md](performance.md#fp8)); with the kernels of now it is more. "
        f"{_by_phase()} What is lost is in [precision.md](precision.md#what-it-loses)."
    )


def _by_phase() -> str:
    """What FP8 in one phase alone delivers, of what it does in both."""
    by_policy = {}
    for policy in ("uniform", "fp8-prefill", "fp8-decode"):
        (results,) = load([RESULTS / "1xh200" / "fp8-by-phase-qwen2.5-32b" / policy])
        by_policy[policy] = {
            of: fmean(run.throughput.output_throughput for run in runs)
            for of, runs in grouped(results.runs, lambda run: run.cell.max_concurrency).items()
        }
    both = by_policy["uniform"]
    prompts, replies = (
        listed([f"{by_policy[policy][n] / both[n]:.0%} at {n}" for n in sorted(both)])
        for policy in ("fp8-prefill", "fp8-decode")
    )
    return (
        f"In prompts alone it delivers {prompts} concurrent of that in both phases, in decoding "
        f"alone {replies} ([FP8 by phase](performance.md#fp8-by-phase))."
    )


def _chunked() -> Iterator[str]:
    one = _technique("chunking", "long-prompts-in-chunks")
    less = _less(one.memory_swing)
    assert less > 37
    yield (
        "**More, here.** Of llama-8b on one H200, eight prompts of 16,000 tokens at once, memory "
        f"swings by {less:.0f}% less in chunks of 2,048 tokens than whole, its peak is "
        f"{_less(one.peak_memory):.0f}% lower, and the run delivers "
        f"{_less(one.output_throughput):.0f}% less "
        "([techniques.md](techniques.md#what-was-measured))."
    )


def _offloaded() -> Iterator[str]:
    table = Store(RESULTS / "2xh200" / "training-llama-8b" / "techniques").read(TRAINED.name)
    assert table is not None
    by_change = {one.cell.ablation: one for one in training_effects(TRAINED.rows(table))}
    kept, again = (by_change[f"checkpointing={kind}"] for kind in ("cpu-offload", "full"))
    less, longer = _less(kept.peak_memory), 100 * (_ratio(kept.step_time) - 1)
    assert less > 30
    yield (
        f"**Here {less:.0f}% less**: of llama-8b under fsdp2 on two H200, in one start, and a step "
        f"takes {longer:.0f}% longer. Nearly all of it is that layers are computed again: inputs "
        f"of layers that stay on the GPU take {_less(again.peak_memory):.0f}% less for "
        f"{100 * (_ratio(again.step_time) - 1):.0f}% "
        "([training.md](training.md#techniques-on-two-gpus))."
    )


def _less(sides: Sides) -> float:
    """In percent."""
    return 100 * (1 - _ratio(sides))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
