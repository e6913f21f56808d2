"""Two models under every layout of a node's GPUs, with the engines `torch` and vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import engines_words as words
from both_engines import (
    APART,
    ENGINES,
    THEIRS,
    WORDS,
    Nodes,
    every_layout,
    gpus_of,
    loads_of,
    num_starts,
    over,
    speed,
    vllm_version,
)
from figures_elsewhere import foretold, peers
from published import (
    Published,
    bullets,
    device,
    kind,
    lengths,
    listed,
    model_of,
    paragraph,
    reached,
    table,
)

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.report.text import EN_DASH, aligned


def section(found: Sequence[Published]) -> Iterator[str]:
    """The paragraphs on throughput. found: a result of each model, under both engines."""
    yield f"## Both models on {WORDS[gpus_of(found[0])]} {kind(found).upper()}, under two engines"
    yield paragraph(*_conditions(found))
    yield _starts(found)
    yield paragraph(*_columns(found))
    for each in found:
        yield f"**{model_of(each)}**"
        yield _speeds(each)
    yield bullets(
        *words.lead(found),
        words.same_order(found),
        words.ratios(found),
        *words.sums(found),
        words.in_flight(found),
        words.verdicts(found),
        *words.beside_peers(found),
        words.misses(found),
        words.first_token(found),
        *words.absent(found),
    )


def _conditions(found: Sequence[Published]) -> Iterator[str]:
    for each in found:
        asked = each.results.asked
        assert (asked["num_prompts"], asked["num_runs"], asked["load_format"]) == (None, 2, "dummy")
    (loads,) = {tuple(each.concurrencies) for each in found}
    count = WORDS[gpus_of(found[0])].capitalize()
    yield (
        f"{count} {device(found)} of one node at a time, joined by NVLink; BF16, dummy weights, "
        f"{lengths(found)}, greedy, closed batches of {listed(loads)} requests, two runs of each "
        "in a start."
    )
    settings = list(_vllm_settings(found))
    assert any("fuse_allreduce_rms=True" in one["pass_config"] for one in settings)
    (passes,) = {one["max_num_batched_tokens"] for one in settings}
    yield (
        f"Both engines take the same prompts. vLLM {vllm_version(found)} has its own defaults: "
        f"CUDA graphs, asynchronous scheduling, passes of up to {passes} tokens, and under tp its "
        "all-reduce fused with the norm behind it by FlashInfer. Only NVLink multicast is off."
    )
    yield f"{words.repetition(found)} A letter is a start on that node:"


def _vllm_settings(found: Sequence[Published]) -> Iterator[dict[str, str]]:
    for each in found:
        for deployment, settings in each.results.manifest["engine_settings"].items():
            if f".{THEIRS}." in deployment:
                yield {name.rpartition(".")[2]: value for name, value in settings.items()}


def _starts(found: Sequence[Published]) -> str:
    nodes = Nodes(found)
    rows = [
        [name, *(nodes.of(each, name, engine) for each in found for engine in ENGINES)]
        for name in every_layout(found[0])
    ]
    titles = [f"{model_of(each)}, {engine}" for each in found for engine in ENGINES]
    return table(["starts", *titles], rows)


def _columns(found: Sequence[Published]) -> Iterator[str]:
    every = [one for each in found for at in loads_of(each) if (one := over(each, *at))]
    intervals = (
        "± half of its 95% interval where there are two or more"
        if max(num_starts(found)) > 1
        else "without intervals, which take two"
    )
    yield (
        "Generated tokens per second, prompts included: the mean over starts, their number in "
        f"brackets, {intervals}."
    )
    if any(one.rounds for one in every):
        yield (
            "*torch / vllm* is of the rounds in which both were started, with its 95% interval and "
            "what it shows where there are two."
        )
    if any(not one.rounds for one in every):
        yield (
            f"{APART}: fewer than two rounds have both, and there are other starts, so it is of "
            "all starts of each, on their nodes."
        )
    yield f"*plan* is what `orchestrator plan` predicts of an engine{words.as_run(found)}."
    if any(map(peers, found)):
        yield (
            "*other node* is an engine over [figures of vLLM 0.24.0](results/peers-4xh200.csv) "
            "under the same layout on another node: the best of three runs there, without the "
            "fusion of its all-reduce."
        )


def _speeds(found: Published) -> str:
    titles = ["concurrent", "layout", *ENGINES, "torch / vllm", *(f"{x}, plan" for x in ENGINES)]
    titles += [f"{engine}, other node" for engine in ENGINES] if peers(found) else []
    return table(titles, [_row(found, *at) for at in loads_of(found)])


def _row(found: Published, layout: str, n: int) -> list[str]:
    cells = [found.at(layout, n, engine) for engine in ENGINES]
    ratio = over(found, layout, n)
    row = [str(n), layout, *map(_mean, cells), str(ratio or EN_DASH)]
    row += [aligned(foretold(found)[layout, n, engine]) for engine in ENGINES]
    if peers(found):
        row += [_beside(one, peers(found).get((layout, n))) for one in cells]
    return row


def _mean(one: Comparison | None) -> str:
    return EN_DASH if one is None else f"{speed(one)} ({one.num_starts})"


def _beside(one: Comparison | None, peer: float | None) -> str:
    return f"{reached(one) / peer:.2f}x" if one and peer else EN_DASH
