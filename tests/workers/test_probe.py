"""Spans of a run whose calls are timed on the host: what is compute, and what communication."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from workers.engines.batch import Ledger, Wave
from workers.intervals import Span
from workers.messages import Request
from workers.probes.probe import Blind, TimedStep, host_spans, probe_for
from workers.records import COMPUTE, DECODE, PREFILL, SPANS, Call, SpanRow

MICRO = 1e6


def spans(
    steps: Iterable[TimedStep], calls: Iterable[Call] = (), blocked: Iterable[Span] = ()
) -> list[SpanRow]:
    return SPANS.rows(host_spans(2, steps, calls, blocked))


def times(rows: Iterable[SpanRow]) -> list[tuple[str, float, float]]:
    return [(row.kind, row.start_us / MICRO, row.end_us / MICRO) for row in rows]


def test_a_step_that_is_never_held_up_is_compute() -> None:
    (row,) = spans([TimedStep(DECODE, 4, 1.0, 2.0)])
    assert (row.rank, row.phase, row.step, row.kind) == (2, DECODE, 4, COMPUTE)
    assert (row.start_us, row.end_us) == (1e6, 2e6)
    assert (row.axis, row.call_phase, row.call_step, row.bytes) == (None, None, None, None)


def test_compute_is_what_a_blocking_call_leaves_of_a_step() -> None:
    call = Call("all_reduce", "tp", 64, DECODE, 1.25, 1.5)
    rows = spans([TimedStep(DECODE, 0, 1.0, 2.0)], [call], [(1.25, 1.5)])
    assert times(rows) == [(COMPUTE, 1.0, 1.25), (COMPUTE, 1.5, 2.0), ("all_reduce", 1.25, 1.5)]
    assert (rows[2].axis, rows[2].call_phase, rows[2].bytes) == ("tp", DECODE, 64)


def test_a_call_that_runs_on_beside_the_host_takes_no_compute_away() -> None:
    call = Call("all_gather", "dp", 64, DECODE, 1.25, 1.75)
    rows = spans([TimedStep(DECODE, 0, 1.0, 2.0)], [call], [(1.25, 1.5)])
    assert times(rows)[1] == (COMPUTE, 1.5, 2.0)
    assert times(rows)[2] == ("all_gather", 1.25, 1.75)


def test_a_call_belongs_to_the_step_in_which_it_began() -> None:
    steps = [TimedStep(PREFILL, 0, 1.0, 2.0), TimedStep(DECODE, 1, 2.0, 3.0)]
    calls = [
        Call("send", "pp", 8, DECODE, 2.0, 2.5),
        Call("recv", "pp", 8, PREFILL, 1.5, 2.25),
        Call("recv", "pp", 8, PREFILL, 5.0, 6.0),  # after the last step
    ]
    found = [(row.step, row.phase, row.kind) for row in spans(steps, calls) if row.axis]
    assert found == [(0, PREFILL, "recv"), (1, DECODE, "send")]


def test_the_phase_of_a_call_may_differ_from_that_of_its_step() -> None:
    calls = [Call("recv", "pp", 8, PREFILL, 1.5, 1.75)]
    row = spans([TimedStep(DECODE, 7, 1.0, 2.0)], calls)[-1]
    assert (row.phase, row.call_phase) == (DECODE, PREFILL)


def test_a_call_names_the_step_whose_tokens_it_carries_or_else_its_own() -> None:
    calls = [
        Call("broadcast", "pp", 8, PREFILL, 1.5, 1.75, step=4),
        Call("all_reduce", "tp", 8, DECODE, 1.8, 1.9),
    ]
    found = spans([TimedStep(DECODE, 7, 1.0, 2.0)], calls)
    assert [(row.step, row.call_step) for row in found if row.axis] == [(7, 4), (7, 7)]
    assert {row.fused for row in found if row.axis} == {False}


def test_a_timed_run_has_no_spans() -> None:
    probe = probe_for(False, torch.device("cpu"), None)  # type: ignore[arg-type]
    assert isinstance(probe, Blind)
    with probe.watching(), probe.step(DECODE, 0):
        pass
    assert probe.spans() is None


def test_a_ledger_enters_a_wave_as_rows_and_its_steps_as_spans() -> None:
    wave = Wave(
        requests=(Request(5, (1, 2, 3), 2), Request(6, (4,), 1)),
        outputs=[[7, 8], [9]],
        began_s=0.5,
        ends_s=[1.0, 1.25],
    )
    ledger = Ledger(rank=3, replica=1, origin=10.0)
    ledger.add(wave)
    first, second = ledger.request_rows
    assert (first.request_index, first.replica, first.input_len, first.output_len) == (5, 1, 3, 2)
    assert (first.arrival_s, first.token_times_s) == (0.5, [1.0, 1.25])
    assert (second.output_token_ids, second.token_times_s) == ([9], [1.0])
    assert [(r.phase, r.step, r.num_requests, r.num_tokens) for r in ledger.step_rows] == [
        (PREFILL, 0, 2, 4),
        (DECODE, 1, 1, 1),
    ]
    assert times(SPANS.rows(ledger.spans())) == [(COMPUTE, 10.5, 11.0), (COMPUTE, 11.0, 11.25)]
