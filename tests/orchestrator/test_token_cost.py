"""The parts of what a token costs: shares of observed steps with the time of the timed ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from stores import RUN
from summaries import write_run
from tables import make
from timed_runs import FAST, TimedRun, decodes, observed, parts, prefills

from orchestrator.analysis.comparing.compare import COMPARED, compare
from orchestrator.analysis.device_time import DeviceTime
from orchestrator.analysis.load import summaries
from orchestrator.analysis.observed.accounting import PARTS_OF_STEP, PartsRow
from orchestrator.analysis.observed.communication import PhaseParts, step_parts_of
from orchestrator.analysis.roofline import Ceilings
from orchestrator.analysis.token_cost import Parts, TokenCost, token_cost_of
from orchestrator.store.store import Store
from workers.records import DECODE, PREFILL
from workers.rows import flat, nothing, row, widened

CUT = ("weights", "kv", "arithmetic", "rest")
UNCUT = ("compute",)
OTHERS = ("transfer", "wait", "bubble", "launch_gap", "ramp", "outside")
# Prompts, then tokens, of eight requests; the devices of a slow node, so that a part of all is
# seen.
LENGTHS = [(64, 9)] * 8
SLOW = Ceilings(hbm=4e9, flops={"bfloat16": 1e12}, cache_bytes=0, source="datasheet")


def cost(
    run: TimedRun, rows: Sequence[PartsRow], is_open: bool = False
) -> tuple[DeviceTime, TokenCost]:
    time = run.device_time
    return time, token_cost_of(time, run.tokens, rows, step_parts_of(rows), is_open)


def summed(time: DeviceTime, found: TokenCost, compute: Sequence[str]) -> float:
    """The sum of the parts of a run, each by its column."""
    columns = {**flat(time), **flat(found)}
    return sum(columns[f"{part}_ms_per_token"] for part in (*compute, *OTHERS))


@dataclass(frozen=True)
class Layout:
    """A timed run with its observed steps."""

    run: TimedRun
    rows: Sequence[PartsRow]


def both_phases(rank: int, **shares: float) -> list[dict[str, object]]:
    return [parts(rank, DECODE, **shares), parts(rank, PREFILL, 30.0, **shares)]


TP2 = Layout(
    TimedRun(
        "tp2", 1.0, [prefills(0.05, 256, 2, 4) + decodes(0.1, 8, 8)] * 2, LENGTHS, "tiny", SLOW
    ),
    observed(
        both_phases(0, exposed_transfer=10.0, launch_gap=5.0)
        + both_phases(1, exposed_transfer=10.0, exposed_wait=20.0)
    ),
)
# Stages that are not alike: the second gets its first prompt late, and is busy all the time.
PP2 = Layout(
    TimedRun(
        "pp2",
        1.0,
        [
            prefills(0.05, 256, 2, 4) + decodes(0.05, 16, 4),
            [*prefills(0.1, 256, 1, 4), *prefills(0.08, 256, 1, 4), *decodes(0.051, 16, 4)],
        ],
        LENGTHS,
        "tiny",
        SLOW,
    ),
    observed(
        both_phases(0, bubble=40.0, exposed_transfer=2.0) + both_phases(1, exposed_transfer=1.0)
    ),
)
# Replicas that are not alike: the second is done early.
DP2 = Layout(
    TimedRun(
        "dp2",
        1.0,
        [
            prefills(0.1, 256, 1, 4) + decodes(0.11, 8, 4),
            prefills(0.1, 256, 1, 4) + decodes(0.08, 8, 4),
        ],
        LENGTHS,
        "tiny",
        SLOW,
    ),
    observed(both_phases(0, launch_gap=3.0) + both_phases(1, launch_gap=6.0)),
)
LAYOUTS = {"tp2": TP2, "pp2": PP2, "dp2": DP2}

SHOWN = step_parts_of(TP2.rows)


# -- parts and their sum


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("ceilings", "compute"), [(SLOW, CUT), (None, UNCUT)])
def test_the_parts_sum_to_the_measured_total(
    name: str, ceilings: Ceilings | None, compute: Sequence[str]
) -> None:
    layout = LAYOUTS[name]
    time, found = cost(replace(layout.run, ceilings=ceilings), layout.rows)
    assert time.device_ms_per_token == pytest.approx(1e3 * 2 * 1.0 / 72)
    assert summed(time, found, compute) == pytest.approx(time.device_ms_per_token, rel=0.01)
    if ceilings is None:
        assert found.parts.rest is None


def test_a_share_counts_with_its_own_ranks_time() -> None:
    """Of 0.8 s of decode on the first stage 40% are a bubble, of 0.816 s on the second none; a mean
    of the shares would not give that where ranks differ."""
    _, found = cost(PP2.run, PP2.rows)
    assert found.decode.bubble == pytest.approx(1e3 * 0.4 * 0.8 / 72)
    assert found.decode.transfer == pytest.approx(1e3 * (0.02 * 0.8 + 0.01 * 0.816) / 72)
    assert found.prefill.bubble == pytest.approx(1e3 * 0.4 * 0.1 / 72)
    assert found.parts.bubble == pytest.approx(found.decode.bubble + found.prefill.bubble)


def test_the_profiled_step_gives_shares_and_no_milliseconds() -> None:
    """A profiler that makes every part of a step twice as long changes nothing."""
    slowed = [
        parts(rank, phase, 20.0, bubble=10.0) for rank in (0, 1) for phase in (DECODE, PREFILL)
    ]
    plain = [
        parts(rank, phase, 10.0, bubble=10.0) for rank in (0, 1) for phase in (DECODE, PREFILL)
    ]
    assert cost(PP2.run, observed(slowed)) == cost(PP2.run, observed(plain))


def test_the_rest_is_compute_beyond_the_roofline() -> None:
    time, found = cost(TP2.run, TP2.rows)
    least = time.decode.roofline
    asked = least.weights + least.kv + least.arithmetic
    assert found.decode.compute == pytest.approx(1e3 * 0.8 * (0.85 + 0.70) / 72)
    assert found.decode.rest == pytest.approx(found.decode.compute - asked)


def test_a_device_faster_than_its_rates_has_a_rest_below_zero_and_the_sum_holds() -> None:
    crawling = replace(SLOW, hbm=2e7)
    time, found = cost(replace(TP2.run, ceilings=crawling), TP2.rows)
    assert found.parts.rest < 0
    assert found.decode.rest < 0
    assert summed(time, found, CUT) == pytest.approx(time.device_ms_per_token, rel=0.01)


def test_a_pipeline_pays_for_its_second_micro_batch_in_weights_and_not_in_bubbles() -> None:
    """70B at 32 concurrent: tp2 streams half the weights for 32 tokens in 20 ms. Under pp2 a stage
    streams its half for 16, so a token costs 1.68 times as much; the bubble is 2% of that."""
    lengths, step = [(1, 129)] * 32, 0.020
    tp2 = TimedRun("tp2", 128 * step, [decodes(step, 128, 32)] * 2, lengths, "llama-70b", FAST)
    slower = 1.68 * step / 2
    piped = [decodes(slower, 256, 16)] * 2
    pp2 = replace(tp2, layout="pp2", duration=256 * slower, ranks=piped)
    comm = [parts(rank, DECODE, exposed_transfer=9.0) for rank in (0, 1)]
    bubble = [parts(rank, DECODE, bubble=2.0) for rank in (0, 1)]
    (tp_time, tp), (pp_time, pp) = cost(tp2, observed(comm)), cost(pp2, observed(bubble))
    more = pp_time.device_ms_per_token - tp_time.device_ms_per_token
    streamed = pp_time.decode.roofline.weights - tp_time.decode.roofline.weights
    assert pp_time.decode.roofline.weights == pytest.approx(
        2 * tp_time.decode.roofline.weights, rel=0.02
    )
    assert pp.decode.bubble == pytest.approx(0.02 * pp_time.device_ms_per_token)
    assert streamed > more > 10 * pp.decode.bubble
    assert pp.decode.rest < tp.decode.rest


def test_the_communication_of_the_whole_run_counts_prefill_and_all_that_is_outside() -> None:
    rows = observed(
        [
            *(parts(rank, DECODE, exposed_transfer=10.0, exposed_wait=5.0) for rank in (0, 1)),
            *(parts(rank, PREFILL, exposed_transfer=30.0) for rank in (0, 1)),
        ]
    )
    _, found = cost(TP2.run, rows)
    assert found.run_comm_exposed_pct == pytest.approx(15.0 * 0.8 + 30.0 * 0.1)
    assert found.run_bubble_pct == 0.0


def test_the_bubble_of_the_whole_run_is_of_its_device_time() -> None:
    _, found = cost(PP2.run, PP2.rows)
    assert found.run_bubble_pct == pytest.approx(100 * 0.4 * (0.8 + 0.1) / 2.0)


@row
class FusedRow(PartsRow):
    """A step in which kernels that communicate and compute are told apart."""

    fused_ms: float | None


def test_fused_kernels_are_a_part_where_they_are_told_apart() -> None:
    rows = [
        widened(FusedRow, replace(one, compute_ms=one.compute_ms - 0.5), fused_ms=0.5)
        for one in TP2.rows
    ]
    time, found = cost(TP2.run, rows)
    shares = 0.8 * (0.5 / 10) + 0.1 * (0.5 / 30)
    assert found.parts.fused == pytest.approx(1e3 * 2 * shares / 72)
    total = summed(time, found, CUT) + found.parts.fused
    assert total == pytest.approx(time.device_ms_per_token, rel=0.01)
    assert cost(TP2.run, TP2.rows)[1].parts.fused is None


# -- what is not known


def test_a_phase_whose_shares_are_not_shown_is_null_and_the_total_stays() -> None:
    """The profiler slowed prefill down, so its shares say nothing; decode keeps its own."""
    time, shown = TP2.run.device_time, replace(SHOWN, prefill=nothing(PhaseParts))
    found = token_cost_of(time, TP2.run.tokens, TP2.rows, shown, False)
    assert found.prefill == found.parts == nothing(Parts)
    assert found.prefill_cost_reason == "the shares of its steps are not shown"
    assert found.run_comm_exposed_pct is found.run_bubble_pct is None
    assert found.decode == cost(TP2.run, TP2.rows)[1].decode
    assert found.decode_cost_reason is None
    assert time.device_ms_per_token == pytest.approx(1e3 * 2 / 72)


@row
class SlowedParts(PhaseParts):
    """The columns of a phase that say why they are null."""

    step_reason: str | None


def test_the_reason_of_a_phase_is_that_of_its_shares() -> None:
    why = "the profiled pass takes 1.31 of the timed one"
    slowed = widened(SlowedParts, nothing(PhaseParts), step_reason=why)
    shown = replace(SHOWN, prefill=slowed)
    for rows in (TP2.rows, ()):
        found = token_cost_of(TP2.run.device_time, TP2.run.tokens, rows, shown, False)
        assert found.prefill_cost_reason == why


def test_a_phase_is_null_unless_every_rank_that_had_a_step_was_observed() -> None:
    _, found = cost(TP2.run, [one for one in TP2.rows if (one.rank, one.phase) != (1, DECODE)])
    assert found.decode == nothing(Parts)
    assert found.decode_cost_reason == "the steps of 1 of 2 ranks were not taken apart"
    assert found.prefill_cost_reason is None


def test_a_replica_that_served_nothing_need_not_be_observed() -> None:
    run = TimedRun("dp2", 1.0, [prefills(0.4, 10) + decodes(0.2, 3), []], ceilings=None)
    time, found = cost(run, observed(both_phases(0, launch_gap=10.0)))
    assert found.decode_cost_reason is found.prefill_cost_reason is None
    assert found.parts.launch_gap == pytest.approx(1e3 * 0.1 * 1.0 / 4)
    assert summed(time, found, UNCUT) == pytest.approx(time.device_ms_per_token)


def test_an_open_loop_is_not_cut_by_steps_of_another_batch() -> None:
    _, found = cost(TP2.run, TP2.rows, is_open=True)
    assert found.parts == nothing(Parts)
    assert "open loop" in found.decode_cost_reason


def test_where_steps_were_not_reported_their_reason_is_that_of_both_phases() -> None:
    run = replace(TP2.run, ranks=TP2.run.ranks[:1])
    time, found = cost(run, TP2.rows)
    assert found.decode_cost_reason == found.prefill_cost_reason == time.device_time_reason
    assert found.parts == nothing(Parts)


def test_a_result_from_before_device_time_was_kept_has_no_cost() -> None:
    assert token_cost_of(nothing(DeviceTime), 72, TP2.rows, SHOWN, False) == nothing(TokenCost)


# -- when results are read


def test_runs_are_read_with_their_cost_and_so_is_the_comparison(tmp_path: Path) -> None:
    store, time = Store(tmp_path), TP2.run.device_time
    store.create()
    kept: dict[str, Any] = {**flat(time), "total_output_tokens": TP2.run.tokens}
    write_run(store, RUN, **kept)
    rows = [dict(flat(one)) for one in TP2.rows]
    store.write_observed(RUN.cell, 0, {"parts": make(PARTS_OF_STEP, rows)})
    (run,) = summaries(store)
    assert run.cost == token_cost_of(time, TP2.run.tokens, TP2.rows, SHOWN, False)
    (row_,) = COMPARED.data(compare([run]))
    assert row_["device_ms_per_token"] == pytest.approx(time.device_ms_per_token)
    assert row_["transfer_ms_per_token"] == pytest.approx(run.cost.parts.transfer)
    assert row_["decode_rest_ms_per_token"] == pytest.approx(run.cost.decode.rest)
