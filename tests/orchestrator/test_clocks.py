"""The clocks of a run, against samples with known answers, and what is said of them."""

from __future__ import annotations

import pytest
from samples import report, without_gpu
from summaries import summary

from orchestrator.analysis.comparing.compare import compare
from orchestrator.analysis.samples import Clocks, clock_sentences, clocks_of, sampled
from workers.rows import nothing

POWER_CAP, HW_THERMAL, SYNC_BOOST, IDLE = 0x04, 0x40, 0x10, 0x01
BUSY = [500.0] * 100


def clocks(**fields: object) -> Clocks:
    """Of one GPU, over 100 samples."""
    return clocks_of(sampled([report(0, BUSY, **fields)], 10.0, 1))


def said(**shares: tuple[float, float]) -> list[str]:
    """What is said of layouts, by their shares of samples: under the power cap, under anything."""
    named = {
        name: Clocks(
            power_capped_pct=capped,
            clock_limited_pct=limited,
            mean_sm_clock_mhz=None,
            lowest_sm_clock_mhz=None,
            sm_clock_pct=None,
        )
        for name, (capped, limited) in shares.items()
    }
    return list(clock_sentences(named))


def test_a_power_cap_in_96_of_100_samples_is_96_percent() -> None:
    found = clocks(throttle_reasons=[POWER_CAP] * 96 + [0] * 4)
    assert (found.power_capped_pct, found.clock_limited_pct) == (96.0, 96.0)


def test_every_reason_but_idleness_limits_clocks() -> None:
    masks = [POWER_CAP] * 50 + [POWER_CAP | HW_THERMAL] * 10 + [SYNC_BOOST] * 20 + [IDLE] * 20
    found = clocks(throttle_reasons=masks)
    assert (found.power_capped_pct, found.clock_limited_pct) == (60.0, 80.0)


def test_shares_are_means_over_gpus_and_of_the_run_alone() -> None:
    """The run ends at 5 s: the second half of the samples is not part of it."""
    capped = report(0, BUSY, throttle_reasons=[POWER_CAP] * 51 + [0] * 49)
    free = report(1, BUSY, throttle_reasons=[0] * 51 + [POWER_CAP] * 49)
    found = clocks_of(sampled([capped, free], 5.0, 2))
    assert found.power_capped_pct == 50.0


def test_clocks_are_told_with_their_lowest_and_as_a_share_of_the_highest() -> None:
    rates = [1000] * 10 + [2000] * 90
    found = clocks(sm_clock_mhz=rates, max_sm_clock_mhz=[2000] + [None] * 99)
    assert found.mean_sm_clock_mhz == pytest.approx(1900.0)
    assert (found.lowest_sm_clock_mhz, found.sm_clock_pct) == (1000.0, pytest.approx(95.0))
    assert clocks(sm_clock_mhz=rates).sm_clock_pct is None


def test_what_a_gpu_does_not_tell_is_none_and_not_0() -> None:
    assert clocks() == nothing(Clocks)
    assert clocks_of(sampled([without_gpu()], 10.0, 1)) == nothing(Clocks)


def test_the_comparison_has_the_mean_of_all_runs_whether_or_not_their_power_is_valid() -> None:
    runs = [
        summary(run=0, power_capped_pct=90.0, power_valid=False),
        summary(run=1, power_capped_pct=100.0, power_valid=True),
    ]
    (cell,) = compare(runs)
    assert cell.clocks.power_capped_pct == 95.0


def test_a_line_has_the_share_of_every_layout_that_the_power_cap_held_down() -> None:
    assert said(tp2=(96.2, 96.2), pp2=(40.0, 40.0), dp2=(0.0, 0.0)) == [
        "Clocks held down by the power cap: tp2 in 96% of samples, pp2 in 40%."
    ]


def test_what_else_held_clocks_down_has_a_line_of_its_own() -> None:
    assert said(tp2=(50.0, 80.0), pp2=(40.0, 40.2)) == [
        "Clocks held down by the power cap: tp2 in 50% of samples, pp2 in 40%.",
        "Clocks held down by heat, hardware, settings or the power cap: tp2 in 80% of samples.",
    ]


def test_nothing_is_said_of_clocks_that_nothing_held_down() -> None:
    assert said(tp2=(0.0, 0.0), pp2=(0.3, 0.3)) == []
