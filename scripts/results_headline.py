"""The headline of README.md: both models under every layout of four GPUs, in few lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import engines_words as words
from both_engines import (
    APART,
    ENGINES,
    OURS,
    THEIRS,
    layouts_of,
    num_starts,
    over,
    speed,
    vllm_version,
)
from figures_elsewhere import foretold
from published import (
    Published,
    between,
    bullets,
    decode_comm,
    device,
    known,
    lengths,
    model_of,
    paragraph,
    table,
    users,
)
from results_costs import COST, SHOWN, cost

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.report.text import EN_DASH, aligned

WIDTH = 100


def section(
    found: Sequence[Published], others: Sequence[Sequence[Published]], newer: Sequence[Published]
) -> Iterator[str]:
    """Conditions, a table of each model, and some sentences. found: a result of each model, under
    both engines. others: such results on other GPUs. newer: starts since the last of these."""
    yield paragraph(*_conditions(found), width=WIDTH)
    for each in found:
        yield f"**{model_of(each)}**"
        yield _table(each)
    yield bullets(
        _lead(found),
        _lost(found),
        words.ratios(found),
        *words.sums(found),
        *map(words.ratios_elsewhere, others),
        words.ratios_since(newer),
        words.verdicts(found),
        words.misses(found, "docs/"),
        *words.unrun_cells(found),
        width=WIDTH,
    )


def _conditions(found: Sequence[Published]) -> Iterator[str]:
    yield (
        f"Four {device(found)} of one node at a time, BF16, dummy weights, {lengths(found)}: "
        f"generated tokens per second of the engine `{OURS}`, and in brackets the ratio to vLLM "
        f"{vllm_version(found)} under the same layout."
    )
    every = [over(each, name, n) for each in found for name in layouts_of(each)
             for n in each.concurrencies]  # fmt: skip
    if any(one and not one.rounds for one in every):
        yield f"{APART}: of all starts of each, on different nodes or in different turns."
    yield words.repetition(found)
    if max(num_starts(found)) > 1:
        yield "Figures are means over starts, ± half of a 95% interval where there are two or more."
    yield (
        f"*plan* is what `orchestrator plan` predicts at {SHOWN}{words.as_run(found)}, *GPU-ms* "
        f"what a token costs there, of `{OURS}` / vLLM."
    )


def _table(found: Published) -> str:
    loads = [f"{n} concurrent" for n in found.concurrencies]
    rows = [_row(found, name) for name in layouts_of(found)]
    return table(["layout", *loads, "plan", "GPU-ms"], rows)


def _row(found: Published, layout: str) -> list[str]:
    spent = [_spent(found.at(layout, SHOWN, engine)) for engine in ENGINES]
    planned = aligned(foretold(found)[layout, SHOWN, OURS])
    shown = [_shown(found, layout, n) for n in found.concurrencies]
    return [layout, *shown, planned, " / ".join(spent)]


def _spent(one: Comparison | None) -> str:
    return cost(COST["total"](one)) if one else EN_DASH


def _shown(found: Published, layout: str, concurrency: int) -> str:
    one, ratio = found.at(layout, concurrency), over(found, layout, concurrency)
    beside = ratio.short if ratio else EN_DASH
    return f"{speed(one)} ({beside})"


def _lead(found: Sequence[Published]) -> str:
    ahead = [words.leads(each) for each in found]
    assert all(ahead)
    first, last = ([one[at] for one in ahead] for at in (0, -1))
    return (
        f"tp4 delivers most under every load: {between(first, '.2f', 'x')} the next layout for "
        f"{users(1)}, {between(last, '.2f', 'x')} at {found[0].concurrencies[-1]}. "
        f"{words.same_order(found)}"
    )


def _lost(found: Sequence[Published]) -> str:
    shares = {
        layout: [share for each in found for share in decode_comm(each, layout)]
        for layout in ("tp4", "pp4")
    }
    idle = [known(each.cell("pp4", 1).step.decode.bubble.pct) for each in found]
    assert max(shares["pp4"]) < 0.5
    theirs = {model_of(each): each.at("pp4", SHOWN, THEIRS) for each in found}
    waits = {name: one.step.decode.bubble.pct for name, one in theirs.items() if one}
    also = "".join(
        f", of {name} under vLLM for {pct:.0f}% also at {SHOWN}"
        for name, pct in waits.items()
        if pct is not None
    )
    return (
        f"`{OURS}` spends {between(shares['tp4'], '.0f', '%')} of a decode step of tp4 on "
        f"communication, and of pp4 at most {max(shares['pp4']):.1f}%. A pipeline loses more "
        f"elsewhere: a GPU waits for {between(idle, '.0f', '%')} of a step with {users(1)}{also}; "
        "the micro-batches of `torch` stream the weights anew."
    )
