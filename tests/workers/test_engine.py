"""Every layout makes the tokens of Transformers' own `generate`, and moves the bytes that its
placement says."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ranks import FAMILIES, Pool, engine_plan, generated, ragged_requests, read_shape, tokens

from orchestrator.analysis.observed.accounting import PARTS, account
from orchestrator.analysis.observed.booking import WAITS
from strategies.traffic import step as traffic_of_step
from workers.messages import EnginePlan, Switches, Work

LAYOUTS = ["tp1", "tp2", "tp4", "pp2", "pp4", "tp2pp2", "dp2", "tp2dp2"]


Expected = Callable[..., dict[int, list[int]]]


@pytest.fixture(scope="session")
def expected(checkpoint: Callable[[str], Path]) -> Expected:
    """(family, end-of-text token or None) -> tokens of `generate()`, one prompt at a time."""

    @functools.cache
    def generate(family: str, eos: int | None = None) -> dict[int, list[int]]:
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float32)
        model.generation_config.eos_token_id = eos
        return generated(model, ragged_requests(model.config.vocab_size))

    return generate


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_those_of_generate(
    family: str, layout: str, pool: Pool, checkpoint: Callable[[str], Path], expected: Expected
) -> None:
    """Ragged prompts, more requests than seats, prompts cut into chunks."""
    folder = checkpoint(family)
    shape = read_shape(folder)
    work = Work(ragged_requests(shape.vocab_size), max_concurrency=4)
    (reports,) = pool.serve(engine_plan(layout, shape, folder, work), work)
    assert tokens(reports) == expected(family)


@pytest.mark.parametrize("layout", ["tp1", "tp2pp2", "tp2dp2"])
@pytest.mark.parametrize(
    "switches",
    [
        Switches(chunked_prefill_size="off"),
        Switches(attention="eager"),
        Switches(batching="static"),
        Switches("eager", "off", "off", "static", "off", "gloo"),
    ],
    ids=lambda switches: "-".join(switches.asked),
)
def test_tokens_do_not_depend_on_any_switch(
    switches: Switches,
    layout: str,
    pool: Pool,
    checkpoint: Callable[[str], Path],
    expected: Expected,
) -> None:
    folder = checkpoint("Llama")
    shape = read_shape(folder)
    work = Work(ragged_requests(shape.vocab_size), max_concurrency=4)
    planned = engine_plan(layout, shape, folder, work, switches=switches)
    (reports,) = pool.serve(planned, work)
    assert tokens(reports) == expected("Llama")


def test_an_observed_run_says_what_its_attention_takes_by_itself(
    pool: Pool, checkpoint: Callable[[str], Path]
) -> None:
    """Ranks of tp share the heads, and with them the arithmetic."""
    folder = checkpoint("Llama")
    shape = read_shape(folder)
    work = Work(ragged_requests(shape.vocab_size), max_concurrency=4, observe=True)
    plans = [engine_plan(layout, shape, folder, work) for layout in ("tp1", "tp2")]
    (alone,), cut = (pool.serve(one, work)[0] for one in plans)
    assert [one.phase for one in alone.attention] == ["prefill", "decode"]
    for i, whole in enumerate(alone.attention):
        parts = [report.attention[i] for report in cut]
        assert sum(part.operations for part in parts) == whole.operations
        assert all(part.seconds > 0 for part in (whole, *parts))
    timed = replace(work, observe=False)
    assert pool.serve(plans[0], timed)[0][0].attention == ()


@pytest.mark.parametrize("layout", ["tp2", "pp4", "tp2pp2", "dp2"])
def test_an_end_of_text_ends_a_request(
    layout: str, pool: Pool, checkpoint: Callable[[str], Path], expected: Expected
) -> None:
    """Every stage learns of it, so that all of them go on with the same requests."""
    whole = expected("Llama")
    eos = max(whole.values(), key=len)[2]
    shape = replace(read_shape(checkpoint("Llama")), eos_token_ids=(eos,))
    work = Work(ragged_requests(shape.vocab_size), max_concurrency=3, ignore_eos=False)
    (reports,) = pool.serve(engine_plan(layout, shape, checkpoint("Llama"), work), work)
    assert tokens(reports) == expected("Llama", eos)
    assert sum(map(len, expected("Llama", eos).values())) < sum(map(len, whole.values()))


def test_a_small_cache_makes_requests_wait_but_not_differ(
    pool: Pool, checkpoint: Callable[[str], Path], expected: Expected
) -> None:
    shape = read_shape(checkpoint("Qwen2"))
    work = Work(ragged_requests(shape.vocab_size), max_concurrency=4)
    planned = engine_plan("tp2", shape, checkpoint("Qwen2"), work)
    try:
        assert [built.kv_tokens for built in pool.build(planned, "small")] == [128, 128]
        assert tokens(pool.call("run", [(work,)] * 2)) == expected("Qwen2")
    finally:
        pool.call("close", [()] * 2)


@pytest.mark.parametrize("layout", ["tp4", "pp2", "tp2pp2", "tp2dp2"])
def test_sampling_with_a_temperature_draws_the_same_tokens_under_every_layout(
    layout: str, pool: Pool, checkpoint: Callable[[str], Path]
) -> None:
    shape = read_shape(checkpoint("Qwen3"))
    work = Work(ragged_requests(shape.vocab_size), max_concurrency=4)
    (alone,) = pool.serve(
        engine_plan("tp1", shape, checkpoint("Qwen3"), work, temperature=0.8, seed=11), work
    )
    (cut,) = pool.serve(
        engine_plan(layout, shape, checkpoint("Qwen3"), work, temperature=0.8, seed=11), work
    )
    (other,) = pool.serve(
        engine_plan("tp1", shape, checkpoint("Qwen3"), work, temperature=0.8, seed=12), work
    )
    assert tokens(cut) == tokens(alone)
    assert tokens(other) != tokens(alone)


def test_temperature_sampling_follows_the_softmax() -> None:
    import torch
    from scipy.stats import chisquare

    from strategies import Placement
    from workers.communicator import Communicator
    from workers.engines.native.sampling import Sampler
    from workers.rank import RankContext

    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    draws = 20_000
    sampler = Sampler(
        Communicator(RankContext(0, Placement(), torch.device("cpu"))), 0, None, 0.7, seed=1
    )
    every = torch.arange(draws)
    drawn = sampler(logits.expand(draws, -1), every, torch.full((draws,), 9), every)
    share = torch.softmax(logits / 0.7, 0)
    assert (
        chisquare(
            torch.bincount(drawn, minlength=5).numpy(),
            (share * draws).double().numpy(),
            sum_check=False,
        ).pvalue
        > 0.001
    )


@pytest.mark.parametrize("layout", ["tp2", "tp4", "pp2", "pp4", "tp2pp2", "dp2", "tp2dp2"])
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_counted_bytes_are_those_of_the_placement(
    family: str, layout: str, pool: Pool, checkpoint: Callable[[str], Path]
) -> None:
    """Summed over the steps that a rank took, calls and bytes equal the analytic ones, operation by
    operation."""
    shape = read_shape(checkpoint(family))
    work = Work(ragged_requests(shape.vocab_size), max_concurrency=4)
    planned = engine_plan(layout, shape, checkpoint(family), work)
    (reports,) = pool.serve(planned, work)
    for report in reports:
        assert report.collectives is not None
        counted = {
            (r["phase"], r["op"], r["axis"]): (r["calls"], r["bytes"])
            for r in report.collectives.to_pylist()
        }
        assert counted == _analytic(
            planned, report.rank, report.steps.to_pylist(), sampled=_sampled(work, planned, report)
        )


def _sampled(work: Work, planned, report) -> dict[int, int]:  # type: ignore[no-untyped-def]
    """Step -> how many requests got a token, from the scheduler alone."""
    from workers.engines.native.scheduler import Limits, Scheduler

    share = work.share(
        planned.placement.coordinates(report.rank).get("dp", 0), planned.placement.degree("dp")
    )
    limits = Limits(planned.placement.degree("pp"), 99, planned.prefill_tokens)
    scheduler = Scheduler(share.requests, share.max_concurrency, limits)
    out = {}
    while (micro_batch := scheduler.next_micro_batch()) is not None:
        step = scheduler.next_step(micro_batch)
        assert step is not None
        out[step.index] = len(step.sampled)
    return out


def _analytic(
    planned: EnginePlan, rank: int, steps: list[dict[str, Any]], sampled: dict[int, int]
) -> dict[tuple[str, str, str], tuple[int, int]]:
    calls: Counter[tuple[str, str, str]] = Counter()
    size: Counter[tuple[str, str, str]] = Counter()
    for row in steps:
        for t in traffic_of_step(
            planned.placement, planned.model, rank, row["num_tokens"], sampled[row["step"]], 4
        ):
            calls[row["phase"], t.op, t.axis] += t.calls
            size[row["phase"], t.op, t.axis] += t.bytes
    return {key: (calls[key], size[key]) for key in calls}


def test_logits_equal_those_of_transformers(checkpoint: Callable[[str], Path]) -> None:
    import torch
    from logits import prompt_logits
    from transformers import AutoModelForCausalLM

    for family in FAMILIES:
        folder = checkpoint(family)
        request = max(ragged_requests(read_shape(folder).vocab_size), key=lambda r: len(r.prompt))
        with torch.inference_mode():
            reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(
                torch.tensor([request.prompt])
            ).logits[0]
            plan = engine_plan("tp1", read_shape(folder), folder, Work((request,), 1))
            ours = prompt_logits(plan, request.prompt)
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


def test_dummy_weights_are_the_same_model_under_every_layout(
    pool: Pool, checkpoint: Callable[[str], Path]
) -> None:
    shape = replace(read_shape(checkpoint("Qwen2")), name="dummy")
    work = Work(ragged_requests(shape.vocab_size, count=4), max_concurrency=2)
    made = [
        tokens(pool.serve(engine_plan(layout, shape, None, work), work)[0])
        for layout in ("tp1", "tp4", "tp2pp2")
    ]
    assert made[0] == made[1] == made[2]


def test_token_times_rise_and_arrivals_wait_for_a_free_seat(
    pool: Pool, checkpoint: Callable[[str], Path]
) -> None:
    shape = read_shape(checkpoint("Llama"))
    work = Work(ragged_requests(shape.vocab_size), max_concurrency=2)
    (reports,) = pool.serve(engine_plan("pp2", shape, checkpoint("Llama"), work), work)
    rows = [
        row
        for report in reports
        if report.requests is not None
        for row in report.requests.to_pylist()
    ]
    assert sorted(row["request_index"] for row in rows) == list(range(7))
    ends = sorted(row["token_times_s"][-1] for row in rows)
    arrivals = sorted(row["arrival_s"] for row in rows)
    assert arrivals == [0.0, 0.0, *ends[:5]]
    for row in rows:
        assert [row["arrival_s"], *row["token_times_s"]] == sorted(
            [row["arrival_s"], *row["token_times_s"]]
        )
        assert len(row["token_times_s"]) == row["output_len"]


def observed(layout: str, pool: Pool, folder: Path, **work: Any) -> list[dict[str, Any]]:
    """The decode rows of PARTS of an observed run."""
    shape = read_shape(folder)
    asked = Work(ragged_requests(shape.vocab_size), max_concurrency=4, observe=True, **work)
    planned = engine_plan(layout, shape, folder, asked)
    (reports,) = pool.serve(planned, asked)
    spans = pa.concat_tables([report.spans for report in reports if report.spans is not None])
    return [
        row
        for row in account(spans, planned.placement)["parts"].to_pylist()
        if row["phase"] == "decode"
    ]


@pytest.mark.parametrize("layout", ["tp1", "tp2", "pp2", "tp2pp2"])
def test_an_observed_run_takes_the_step_apart(
    layout: str, pool: Pool, checkpoint: Callable[[str], Path]
) -> None:
    for row in observed(layout, pool, checkpoint("Llama")):
        assert row["step_ms"] == pytest.approx(sum(row[f"{part}_ms"] for part in PARTS))
        assert all(row[f"{part}_ms"] >= 0 for part in PARTS)
        assert (row["comm_busy_ms"] > 0) == (layout != "tp1")
        assert (row["bubble_ms"] > 0) == ("pp2" in layout)
        assert row["exposed_wait_ms"] == pytest.approx(sum(row[f"{wait}_ms"] for wait in WAITS))
        assert row["steps_unmatched"] == 0, row["reason"]


def test_what_one_rank_is_late_the_others_wait(
    pool: Pool, checkpoint: Callable[[str], Path]
) -> None:
    """50 ms a step on rank 1 are compute there (the host is not in a collective) and wait, not
    transfer, on rank 0."""
    even = observed("tp2", pool, checkpoint("Llama"))
    late = observed("tp2", pool, checkpoint("Llama"), delay=(1, 0.05))
    assert late[0]["exposed_wait_ms"] - even[0]["exposed_wait_ms"] == pytest.approx(50, abs=10)
    assert late[1]["compute_ms"] - even[1]["compute_ms"] == pytest.approx(50, abs=10)
    assert late[0]["wait_compute_ms"] - even[0]["wait_compute_ms"] == pytest.approx(50, abs=10)
    assert late[0]["exposed_transfer_ms"] < even[0]["exposed_transfer_ms"] + 10
