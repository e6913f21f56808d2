"""Write docs/the-article.md from the published tables: `python scripts/article_page.py`.

What an article says of TP, PP, TP x PP and DP on four GPUs, sentence by sentence, beside
what four H200 did. A test compares the page with what this makes.
"""

from __future__ import annotations

from collections.abc import Iterator

from published import RESULTS, Published, between, decode_comm, known, listed, paragraph, table
from results_four_gpus import LAYOUTS, reached

from orchestrator.report.text import EN_DASH, three_digits

PAGE = RESULTS.parent / "the-article.md"
LARGE, SMALL = "llama-70b", "qwen2.5-32b"


def page() -> str:
    """The whole page."""
    large, small = (Published(RESULTS / "4xh200" / name) for name in (LARGE, SMALL))
    return "\n\n".join([*_opening(), *_speeds(large, small), *_sentences(large, small)]) + "\n"


def _opening() -> Iterator[str]:
    yield "# An article's figures, held against measurements"
    yield paragraph(
        "This project began with an article that compares parallel layouts of a 70B and a 32B on "
        'four GPUs of 48 GB, "Ada" cards without NVLink, and recommends one for each. The page '
        "takes its statements one by one, in our words. The measurements are those of "
        "[the results](results.md): four H200 joined by NVLink, BF16, 256 tokens in and "
        "128 out, engine `torch`, one start of each layout, so without intervals.",
        "An H200 reads its memory at 4.8 TB/s and such a card at 0.86 to 0.96, and NVLink moves "
        "several times what PCIe does. So absolute figures are not comparable. What is comparable "
        "is the order of layouts and where the time goes.",
        "[audit.md](audit.md) says which of the absolute figures such cards can reach at all.",
    )


def _speeds(large: Published, small: Published) -> Iterator[str]:
    yield "## Its table"
    yield paragraph(
        "Generated tokens per second. The article does not say for how many users; below are one "
        "and 32."
    )
    rows = [
        ("70B, tp4", "68.2, 22% communication", *_cell(large, "tp4")),
        ("70B, pp4", "61.7, 18% communication", *_cell(large, "pp4")),
        ("70B, tp2pp2", "recommended", *_cell(large, "tp2pp2")),
        ("32B, tp4", "132.4, 22% communication", *_cell(small, "tp4")),
        ("32B, pp4", "125.8, 18% communication", *_cell(small, "pp4")),
        ("32B, tp2pp2", EN_DASH, *_cell(small, "tp2pp2")),
        ("32B, dp4", "recommended", *_cell(small, "dp4")),
    ]
    titles = ["layout", "the article", "one user", "communication", "32 users", "communication"]
    yield table(titles, rows)
    yield "Communication is its share of a decode step, waits for other ranks included."


def _cell(found: Published, layout: str) -> list[str]:
    shares = decode_comm(found, layout)
    return [
        text
        for n, share in zip(found.concurrencies[:2], shares, strict=False)
        for text in (three_digits(reached(found, layout, n)), f"{share:.1f}%")
    ]


def _sentences(large: Published, small: Published) -> Iterator[str]:
    yield "## Its sentences"
    for said, found in (
        ("Pipelining delivers nine tenths of tensor parallelism.", _pipelining(large, small)),
        ("Communication takes 22% under TP4 and 18% under PP4.", _communication(large, small)),
        ("TP2 x PP2 is the layout for the 70B.", _recommended(large, "tp2pp2")),
        ("DP4 is the layout for the 32B.", _recommended(small, "dp4")),
        (
            "At 100 concurrent a request of the 70B gets 9.9 tokens a second, of the 32B 18.1.",
            _per_user(large, small),
        ),
        ("32 concurrent is the best operating point.", _best_point(large, small)),
        ("One GPU makes 19.9 (70B) and 39.5 (32B) tokens a second.", _one_gpu(small)),
        ("Dynamic batching holds the GPUs above 75% utilisation.", _utilisation(large, small)),
    ):
        yield f'### "{said}"'
        yield paragraph(*found)
    yield "## Not measured here"
    yield paragraph(
        "Longer prompts (8.8 and 17.3 tokens a second a request at 100 concurrent), FP8 with FP16 "
        "(+15%), micro-batched long prompts (37% less swing of memory), FlashAttention-2 (2.3x "
        '"attention density") and activations kept on the CPU (35% less memory, in training). '
        "`orchestrator ablate` measures the techniques one by one: "
        "[docs/techniques.md](techniques.md)."
    )


def _pipelining(large: Published, small: Published) -> Iterator[str]:
    shares = {
        n: [100 * reached(each, "pp4", n) / reached(each, "tp4", n) for each in (large, small)]
        for n in large.concurrencies
    }
    assert max(max(values) for values in shares.values()) < 90
    at = [f"{between(values, '.0f', '%')} at {n}" for n, values in shares.items()]
    yield f"**Not here.** pp4 delivers {listed(at)} concurrent of what tp4 does."
    yield (
        "For one user the four stages take turns, and a token waits for the weights of the whole "
        "model to pass through one GPU's bandwidth after the other's. With more users there are "
        "four micro-batches, and each streams the weights anew."
    )


def _communication(large: Published, small: Published) -> Iterator[str]:
    tensor = [share for each in (large, small) for share in decode_comm(each, "tp4")]
    pipeline = [share for each in (large, small) for share in decode_comm(each, "pp4")]
    assert min(tensor) < 22 < max(tensor)
    assert max(pipeline) < 1
    yield (
        f"**TP4 is of that size, PP4 is not.** Under tp4 it is {between(tensor, '.1f', '%')} of a "
        f"decode step, by load and model. Under pp4 it is {between(pipeline, '.1f', '%')}: a "
        "hidden state a stage is little to move."
    )
    bubbles = [known(each.cell("pp4", 1).step.decode.bubble.pct) for each in (large, small)]
    yield (
        "A stage that waits for the stage before it is not communicating. These bubbles are "
        f"{between(bubbles, '.0f', '%')} for one user; an account that books them as communication "
        "sees much of it where there is none."
    )


def _recommended(found: Published, layout: str) -> Iterator[str]:
    (name,) = {one.cell.model for one in found.findings.comparison}
    over = [reached(found, "tp4", n) / reached(found, layout, n) for n in found.concurrencies]
    assert min(over) > 1.1
    ratios = [f"{ratio:.2f}x" for ratio in over]
    yield (
        f"**Not with NVLink, at these loads.** tp4 delivers {listed(ratios)} of {layout} at "
        f"{listed(found.concurrencies)} concurrent."
    )
    others = [
        other
        for other in LAYOUTS[name]
        if all(reached(found, other, n) > reached(found, layout, n) for n in found.concurrencies)
    ]
    if len(others) > 1:
        yield f"More than {layout} under every load: {listed(others)}."
    yield (
        "The lead shrinks with load, as weights cost less for each token and communication does "
        "not. Over PCIe it shrinks further: `--ablate p2p` shows how far."
    )


def _per_user(large: Published, small: Published) -> Iterator[str]:
    most = large.concurrencies[-1]
    for each, title in ((large, "70B"), (small, "32B")):
        (name,) = {one.cell.model for one in each.findings.comparison}
        said = [f"{_user_speed(each, layout, most):.0f} under {layout}" for layout in LAYOUTS[name]]
        lost = [
            100 * (1 - _user_speed(each, layout, most) / _user_speed(each, layout, 1))
            for layout in LAYOUTS[name]
        ]
        yield (
            f"A request of the {title} gets {listed(said)} at {most} concurrent, "
            f"{between(lost, '.0f', '%')} less than alone."
        )
    yield (
        "The article's fall, from 68.2 to 9.9, is 85%. A fall of that size is what requests that "
        "queue look like, or a decode step that arithmetic bounds; neither is so here."
    )


def _user_speed(found: Published, layout: str, concurrency: int) -> float:
    """Tokens per second of one request, its first token left out."""
    return 1000 / known(found.cell(layout, concurrency).latency.tpot.median)


def _best_point(large: Published, small: Published) -> Iterator[str]:
    gains = []
    for each in (large, small):
        (name,) = {one.cell.model for one in each.findings.comparison}
        some, most = each.concurrencies[1:]
        for layout in LAYOUTS[name]:
            ratio = reached(each, layout, most) / reached(each, layout, some)
            slower = _user_speed(each, layout, some) / _user_speed(each, layout, most)
            assert ratio > slower
            gains.append(ratio)
    yield (
        f"**Not here.** From 32 to 100 concurrent every layout still gains: "
        f"{between(gains, '.2f', 'x')} the throughput. Each gains more than a user loses in speed, "
        "so by the product of the two 100 is the better point. No knee lies between."
    )
    lines = [one for each in (large, small) for one in each.findings.curves]
    best = [known(one.fitted.best_point) for one in lines if one.strategy == "tp4"]
    rest = min(known(one.fitted.best_point) for one in lines if one.strategy != "tp4")
    yield (
        "The closed form of [predictions.md](predictions.md#against-concurrency) puts the best "
        f"point of tp4 at {between(best, '.0f', '')}, of every other layout at {rest:.0f} or more, "
        "and that of the article's own speeds at 16 (70B) and 15 (32B)."
    )


def _one_gpu(small: Published) -> Iterator[str]:
    alone = reached(small, "dp4", 1)
    yield (
        "The 70B in BF16 has 141 GB of weights, which neither a card of 48 GB nor one H200 holds "
        "beside its KV cache. "
        f"One H200 makes {three_digits(alone)} tokens a second of the 32B for one user (dp4, whose "
        "other replicas are idle then)."
    )


def _utilisation(large: Published, small: Published) -> Iterator[str]:
    values = [
        known(run.energy.mean_gpu_utilization_pct)
        for each in (large, small)
        for run in each.results.runs
        if run.cell.max_concurrency > 1
    ]
    bounds = [
        value
        for each in (large, small)
        for one in each.findings.comparison
        if one.cell.max_concurrency > 1 and (value := one.bounds.bound_pct) is not None
    ]
    yield (
        f"What NVML calls utilisation is {between(values, '.0f', '%')} at 32 and 100 concurrent. "
        "It says that some kernel ran, and no more: the same runs reach "
        f"{between(bounds, '.0f', '%')} of what memory and arithmetic would allow."
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
