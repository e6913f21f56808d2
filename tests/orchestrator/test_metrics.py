"""The figures of a run, against numbers worked out by hand."""

import pytest

from orchestrator.analysis import metrics
from workers.messages import RankReport
from workers.records import COLLECTIVES, REQUESTS, STEPS, to_table


def requests(*rows):
    """Rows of (index, replica, arrival, times of the tokens); every prompt has 10 tokens."""
    return to_table(
        [
            {
                "request_index": i,
                "replica": r,
                "input_len": 10,
                "output_len": len(t),
                "arrival_s": a,
                "token_times_s": t,
            }
            for i, r, a, t in rows
        ],
        REQUESTS,
    )


def report(rank, **fields):
    tables = (fields.get("requests"), to_table([], STEPS), fields.get("collectives"))
    return RankReport(rank, *tables, fields.get("peak", 0))


TWO = requests((0, 0, 0.0, [1.0, 1.1, 1.3]), (1, 0, 0.5, [2.0, 2.2, 2.4, 4.0]))


def test_throughput_counts_generated_tokens_over_the_time_of_the_last_one():
    row = metrics.of_requests(TWO, max_concurrency=2, num_prompts=2, num_gpus=4)
    assert row["duration"] == 4.0
    assert row["output_throughput"] == pytest.approx(7 / 4)
    assert row["total_token_throughput"] == pytest.approx(27 / 4)
    assert row["request_throughput"] == pytest.approx(0.5)
    assert row["output_throughput_per_gpu"] == pytest.approx(7 / 16)


def test_latencies_follow_vllm():
    row = metrics.of_requests(TWO, 2, 2, 1)
    assert row["mean_ttft_ms"] == pytest.approx((1000 + 1500) / 2)
    assert row["mean_e2el_ms"] == pytest.approx((1300 + 3500) / 2)
    assert row["mean_tpot_ms"] == pytest.approx(
        (300 / 2 + 2000 / 3) / 2
    )  # the first token is no part of it
    assert row["median_itl_ms"] == pytest.approx(200)  # of 100, 200, 200, 200, 1600, pooled
    assert row["std_ttft_ms"] == pytest.approx(250)
    assert row["p99_ttft_ms"] == pytest.approx(1000 + 0.99 * 500)


def test_a_request_without_tokens_has_failed():
    row = metrics.of_requests(requests((0, 0, 0.0, [1.0, 2.0]), (1, 0, 0.0, [])), 2, 3, 1)
    assert (row["completed"], row["failed"]) == (1, 2)


def test_nothing_served_gives_no_figures():
    row = metrics.of_requests(requests((0, 0, 0.0, [])), 1, 1, 1)
    assert row["completed"] == 0
    assert row["output_throughput"] is row["mean_ttft_ms"] is row["decode_ms_per_step"] is None


def test_single_tokens_have_no_tpot():
    row = metrics.of_requests(requests((0, 0, 0.0, [1.0])), 1, 1, 1)
    assert row["mean_tpot_ms"] is None
    assert row["mean_ttft_ms"] == 1000


def test_a_decode_step_is_a_gap_that_nobody_was_prefilled_in():
    crowded = requests(
        (0, 0, 0.0, [1.0, 1.1, 3.1, 3.2]), (1, 0, 0.0, [3.1, 3.2])
    )  # 1.1 -> 3.1 holds the other's prefill
    assert metrics.of_requests(crowded, 2, 2, 1)["decode_ms_per_step"] == pytest.approx(100)


def test_a_prefill_on_another_replica_is_in_nobodys_way():
    apart = requests((0, 0, 0.0, [1.0, 1.1, 1.4]), (1, 1, 0.0, [1.2, 1.4]))
    assert metrics.of_requests(apart, 2, 2, 1)["decode_ms_per_step"] == pytest.approx(
        200
    )  # of 100, 300, 200


def test_prefill_ends_when_the_first_wave_has_its_tokens():
    waves = requests((0, 0, 0.0, [1.0]), (1, 0, 0.0, [2.0]), (2, 0, 2.0, [5.0]))
    assert metrics.of_requests(waves, 2, 3, 1)["prefill_s"] == 2.0


def test_collectives_are_summed_over_ranks_and_unknown_if_one_rank_cannot_count():
    sent = to_table(
        [{"rank": 0, "phase": "decode", "op": "all_reduce", "axis": "tp", "calls": 3, "bytes": 96}]
        * 2,
        COLLECTIVES,
    )
    counted = [report(0, collectives=sent), report(1, collectives=sent)]
    assert metrics.of_collectives(counted) == {"comm_calls": 12, "comm_bytes": 384}
    assert metrics.of_collectives([*counted, report(2)]) == {"comm_calls": None, "comm_bytes": None}


def test_memory_is_the_fullest_rank_with_each_beside_it():
    assert metrics.of_memory([report(1, peak=7), report(0, peak=5)]) == {
        "peak_memory_bytes": 7,
        "peak_memory_bytes_per_rank": [5, 7],
    }


def test_every_numeric_field_has_a_unit():
    for field in metrics.SUMMARY:
        assert str(field.type) in ("string", "bool") or b"unit" in (field.metadata or {}), (
            field.name
        )
