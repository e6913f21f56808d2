"""The time of all devices for a token, and what the roofline asks of it, against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from timed_runs import FAST, Step, TimedRun, decodes, prefills

from orchestrator.analysis.device_time import DeviceTime, PhaseTime, Roofline
from orchestrator.analysis.roofline import Ceilings, stages_of
from workers.records import PREFILL
from workers.rows import nothing

# One request of 10 tokens in and 4 out: a prompt and three further tokens on each of two ranks.
TP2 = TimedRun("tp2", 1.0, [prefills(0.4, 10) + decodes(0.2, 3)] * 2)


def stages(run: TimedRun):
    return stages_of(run.plan.placement, run.plan.model, run.plan.precision)


# -- the total, and the phases


@pytest.mark.parametrize("layout", ["tp2", "pp2", "dp2"])
def test_the_total_is_the_time_of_all_devices_whatever_the_layout(layout: str) -> None:
    steps = prefills(0.4, 10) + decodes(0.1, 3)
    run = TimedRun(layout, 1.0, [steps, steps], lengths=[(10, 4), (10, 4)])
    assert run.device_time.device_ms_per_token == pytest.approx(1e3 * 2 * 1.0 / 8)


def test_a_step_is_from_the_end_of_the_one_before_it() -> None:
    time = TP2.device_time
    assert time.prefill.steps_s_per_rank == pytest.approx([0.4, 0.4])
    assert time.decode.steps_s_per_rank == pytest.approx([0.6, 0.6])
    assert time.prefill.device_ms_per_token == pytest.approx(1e3 * 0.8 / 4)
    assert time.decode.device_ms_per_token == pytest.approx(1e3 * 1.2 / 4)
    assert time.outside_ms_per_token == pytest.approx(0.0)


def test_a_rank_that_is_done_before_the_others_is_outside_of_its_steps() -> None:
    ranks = [prefills(0.4, 10) + decodes(0.1, 3), prefills(0.4, 10) + decodes(0.2, 3)]
    time = replace(TP2, layout="pp2", ranks=ranks).device_time
    assert time.outside_ms_per_token == pytest.approx(1e3 * 0.3 / 4)


def test_a_replica_without_a_request_is_outside_for_the_whole_run() -> None:
    time = replace(TP2, layout="dp2", ranks=[TP2.ranks[0], []]).device_time
    assert time.outside_ms_per_token == pytest.approx(1e3 * 1.0 / 4)
    assert time.decode.steps_s_per_rank == pytest.approx([0.6, 0.0])
    assert time.device_time_reason is None


def test_in_an_open_loop_the_time_until_the_next_arrival_is_outside() -> None:
    """The second request is let in at 2 s and served in half a second; so its step takes that, and
    not the 1.7 s since the step before."""
    ranks = [[Step(PREFILL, 0.5, tokens=10), Step(PREFILL, 2.0, tokens=10)]]
    run = TimedRun("tp1", 2.5, ranks, [(10, 1), (10, 1)], times=[(0.0, 0.8), (2.0, 2.5)])
    time = run.device_time
    assert time.prefill.device_ms_per_token == pytest.approx(1e3 * (0.8 + 0.5) / 2)
    assert time.outside_ms_per_token == pytest.approx(1e3 * 1.2 / 2)


# -- the first steps of a phase


def test_what_the_first_step_of_a_rank_waits_for_the_stage_before_it_is_the_ramp() -> None:
    """The second stage gets its first prompt after 0.3 s, and takes 0.1 s for every one."""
    first = prefills(0.3, 10, count=3)
    second = [*prefills(0.4, 10), *prefills(0.1, 10, count=2)]
    run = TimedRun("pp2", 0.9, [first, second], lengths=[(10, 1)] * 3)
    time = run.device_time
    assert time.prefill.ramp_ms_per_token == pytest.approx(1e3 * 0.3 / 3)
    assert time.prefill.steps_s_per_rank == pytest.approx([0.9, 0.3])
    assert time.prefill.device_ms_per_token == pytest.approx(1e3 * 1.5 / 3)
    assert time.ramp_ms_per_token == time.prefill.ramp_ms_per_token


def test_the_change_to_decode_is_the_ramp_of_as_many_steps_as_there_are_stages() -> None:
    steps = prefills(0.1, 10) + decodes(0.5, 2) + decodes(0.2, 4)
    time = TimedRun("pp2", 2.0, [steps, steps], lengths=[(10, 7)]).device_time
    assert time.decode.ramp_ms_per_token == pytest.approx(1e3 * 2 * (2 * 0.3) / 7)
    assert time.decode.steps_s_per_rank == pytest.approx([1.2, 1.2])


def test_a_first_pass_over_more_tokens_than_the_others_is_no_ramp() -> None:
    steps = prefills(0.8, 80) + prefills(0.1, 10, count=2)
    time = TimedRun("tp1", 1.0, [steps], lengths=[(50, 1)] * 2).device_time
    assert time.ramp_ms_per_token == pytest.approx(0.0)


# -- the roofline


def test_weights_are_streamed_once_a_step_by_each_rank() -> None:
    time, weights = TP2.device_time, stages(TP2)[0].weight_bytes
    assert time.prefill.roofline.weights == pytest.approx(1e3 * 2 * weights / 4e12 / 4)
    assert time.decode.roofline.weights == pytest.approx(1e3 * 2 * 3 * weights / 4e12 / 4)
    assert time.roofline.weights == pytest.approx(1e3 * 2 * 4 * weights / 4e12 / 4)
    assert time.roofline_source == "calibrated"


def test_a_second_micro_batch_of_the_70b_streams_its_weights_again() -> None:
    """Under tp2 a pass makes 32 tokens, under pp2 one of two micro-batches 16: for each token twice
    the weights are read, and that is no bubble."""
    lengths = [(256, 128)] * 32
    tp2 = TimedRun("tp2", 4.0, [decodes(0.03, 127, 32)] * 2, lengths, "llama-70b")
    pp2 = replace(tp2, layout="pp2", ranks=[decodes(0.02, 2 * 127, 16)] * 2)
    once = tp2.device_time.decode.roofline
    twice = pp2.device_time.decode.roofline
    assert once.weights == pytest.approx(1e3 * 127 * 139.0e9 / 4e12 / (32 * 128), rel=1e-3)
    assert twice.weights == pytest.approx(2 * once.weights, rel=1e-3)
    assert twice.kv == pytest.approx(once.kv, rel=1e-9)
    assert once.arithmetic == twice.arithmetic == 0.0


def test_every_further_token_reads_the_keys_and_values_before_it() -> None:
    """Tokens 2, 3 and 4 of a prompt of 10 read 10, 11 and 12 tokens, of one of 20 20, 21, 22."""
    run = replace(TP2, lengths=[(10, 4), (20, 4)], ranks=[decodes(0.2, 3, 2)] * 2)
    read = 10 + 11 + 12 + 20 + 21 + 22
    expected = 1e3 * 2 * read * stages(run)[0].kv_bytes / 4e12 / 8
    assert run.device_time.decode.roofline.kv == pytest.approx(expected)


def test_prompts_that_are_read_whole_read_no_keys_and_values_again() -> None:
    assert TP2.device_time.prefill.roofline.kv == 0.0


def test_a_prompt_in_chunks_reads_those_before_again() -> None:
    """Two prompts of 10 in passes of 8, 8 and 4: the second pass reads 8 tokens of the first
    prompt, the third one 6 of the second."""
    cut = [Step(PREFILL, 0.1, 1, 8), Step(PREFILL, 0.1, 2, 8), Step(PREFILL, 0.1, 1, 4)]
    run = TimedRun("tp1", 0.3, [cut], lengths=[(10, 1)] * 2)
    expected = 1e3 * (8 + 6) * stages(run)[0].kv_bytes / 4e12 / 2
    assert run.device_time.prefill.roofline.kv == pytest.approx(expected)


def test_micro_batches_have_prompts_of_their_own() -> None:
    """Each of two micro-batches has one prompt of 10, read in two passes of 5."""
    cut = [Step(PREFILL, 0.1, 1, 5, micro_batch=i % 2) for i in range(4)]
    run = TimedRun("pp2", 0.4, [cut, cut], lengths=[(10, 1)] * 2)
    bytes_ = sum(stage.kv_bytes for stage in stages(run))
    assert run.device_time.prefill.roofline.kv == pytest.approx(1e3 * 2 * 5 * bytes_ / 4e12 / 2)


def test_prompts_of_different_lengths_are_cut_in_their_order() -> None:
    """Of 8 and 12 tokens in passes of 12 and 8: the second pass reads 4 tokens of the second
    prompt again."""
    cut = [Step(PREFILL, 0.1, 2, 12), Step(PREFILL, 0.1, 1, 8)]
    run = TimedRun("tp1", 0.2, [cut], lengths=[(8, 1), (12, 1)])
    expected = 1e3 * 4 * stages(run)[0].kv_bytes / 4e12 / 2
    assert run.device_time.prefill.roofline.kv == pytest.approx(expected)


def test_which_tokens_micro_batches_read_again_is_unknown_of_prompts_of_different_lengths() -> None:
    cut = [Step(PREFILL, 0.1, 1, 5, micro_batch=i % 2) for i in range(4)]
    found = TimedRun("pp2", 0.4, [cut, cut], lengths=[(8, 1), (12, 1)]).device_time.prefill.roofline
    assert found.weights is not None
    assert found.kv is found.arithmetic is None


def test_arithmetic_is_what_operations_take_beyond_reading() -> None:
    slow = replace(FAST, flops={"bfloat16": 1e9})
    run = replace(TP2, ceilings=slow)
    found, stage = run.device_time.prefill.roofline, stages(run)[0]
    operations = 10 * stage.token_flops + stage.head_flops + stage.attention_flops * 10 * 11 / 2
    assert found.weights + found.kv + found.arithmetic == pytest.approx(
        1e3 * 2 * operations / 1e9 / 4
    )
    fast = TP2.device_time.prefill.roofline
    assert fast.arithmetic == 0.0


# -- what is not known


@pytest.mark.parametrize(
    "ceilings", [None, Ceilings(4e12, {"float32": 1e14}, 0, "datasheet")], ids=["none", "dtype"]
)
def test_without_rates_there_is_no_roofline_and_the_phases_stay(ceilings: Ceilings | None) -> None:
    time = replace(TP2, ceilings=ceilings).device_time
    assert time.roofline == time.decode.roofline == time.prefill.roofline == nothing(Roofline)
    assert time.roofline_source is None
    assert time.decode.device_ms_per_token == pytest.approx(1e3 * 1.2 / 4)


@pytest.mark.parametrize(
    ("ranks", "reason"),
    [([TP2.ranks[0]], "1 of 2 ranks report their steps"), ([[], []], "no rank reports any step")],
)
def test_where_steps_are_missing_the_total_stays_and_says_why_it_is_not_cut(
    ranks: list[list[Step]], reason: str
) -> None:
    time = replace(TP2, ranks=ranks).device_time
    assert time.device_ms_per_token == pytest.approx(1e3 * 2.0 / 4)
    assert time.device_time_reason == reason
    assert time.outside_ms_per_token is None
    assert time.decode == time.prefill == nothing(PhaseTime)


def test_a_run_that_made_no_token_has_no_cost_of_one() -> None:
    assert TimedRun("tp1", 0.0, [[]], lengths=[]).device_time == nothing(DeviceTime)


def test_phases_are_known_by_their_steps_alone() -> None:
    """A run of prompts alone has no decode, and that takes nothing."""
    time = TimedRun("tp1", 0.4, [prefills(0.4, 10)], lengths=[(10, 1)]).device_time
    assert time.decode.device_ms_per_token == 0.0
    assert time.decode.roofline == Roofline(weights=0.0, kv=0.0, arithmetic=0.0)
    assert time.prefill.device_ms_per_token == pytest.approx(400.0)
