"""Removing collectives: what is said of it, and that such runs are never ranked."""

from __future__ import annotations

from typing import Literal

import pytest
from summaries import summary

from orchestrator.analysis.comparing import ablation
from orchestrator.analysis.comparing.compare import compare
from orchestrator.analysis.summary import Summary
from orchestrator.plan.planning import ablates
from strategies import Load, ModelShape, Placement, Topology, plan_layout
from workers.messages import EnginePlan

MODEL = ModelShape("m", "llama", 64, 4, 4, 4, 16, 96, 128, 256, 1e-5, 1e4)


def placed(layout: str) -> Placement:
    return plan_layout(layout, MODEL, Load(8, 8, 4), Topology.uniform(4)).placement


def runs() -> list[Summary]:
    """tp2 at 10 ms a step, of which the profile says 12% is communication; 9 ms without
    collectives, 15 without NVLink."""
    return [
        summary(
            ablation=what,
            decode_ms_per_step=step,
            output_throughput=throughput,
            comm_exposed_pct=12.0,
        )
        for what, step, throughput in (
            ("none", 10.0, 100.0),
            ("comm", 9.0, 111.0),
            ("p2p", 15.0, 66.0),
        )
    ]


def test_the_saving_is_held_against_the_profile() -> None:
    comm, p2p = map(ablation.sentence, ablation.effects(runs()))
    assert comm == (
        "Without collectives: tp2 short at 8 concurrent: 10.00 -> 9.00 ms a step, 10.0% less; the "
        "profile says 12.0%."
    )
    assert (
        p2p == "Without peer-to-peer links: tp2 short at 8 concurrent: 10.00 -> 15.00 ms a step, "
        "x 1.50."
    )


def test_a_bubble_shrinks_with_the_stages_that_communicate_less() -> None:
    """Two stages take turns, 5 ms each, of which 0.5 ms are communication: 5% of the time of each
    GPU, and 10% of the step."""
    whole = summary(decode_ms_per_step=10.0, comm_exposed_pct=5.0, bubble_pct=50.0)
    (effect,) = ablation.effects([whole, summary(ablation="comm", decode_ms_per_step=9.0)])
    assert (effect.comm_exposed_pct, effect.expected_pct) == (5.0, pytest.approx(10.0))
    assert ablation.sentence(effect).endswith("10.0% less; the profile says 10.0%.")


@pytest.mark.parametrize(
    ("exposed", "in_fused"), [(4.0, 6.0), (9.0, 1.0), (12.0, 0.0), (1.0, 8.0), (None, None)]
)
def test_what_is_saved_beyond_what_the_profile_sees_was_in_the_fused_kernels(
    exposed: float | None, in_fused: float | None
) -> None:
    """10% is saved, and 8% of a step is in kernels that communicate and compute."""
    whole = summary(decode_ms_per_step=10.0, comm_exposed_pct=exposed, fused_pct=8.0)
    comm, p2p = (summary(ablation=what, decode_ms_per_step=9.0) for what in ("comm", "p2p"))
    of_comm, of_p2p = ablation.effects([whole, comm, p2p])
    assert of_comm.fused_comm_pct == (in_fused and pytest.approx(in_fused))
    assert of_p2p.fused_comm_pct is None
    said = f"of the 8.0% in fused kernels {in_fused or 0:.1f}% is communication"
    assert (said in ablation.sentence(of_comm)) == (in_fused is not None)


def test_without_fused_kernels_nothing_is_said_of_them() -> None:
    whole = summary(decode_ms_per_step=10.0, comm_exposed_pct=4.0, fused_pct=0.0)
    (effect,) = ablation.effects([whole, summary(ablation="comm", decode_ms_per_step=9.0)])
    assert effect.fused_comm_pct is None
    assert "fused" not in ablation.sentence(effect)


def test_a_failed_run_an_output_of_one_token_and_a_lone_ablation_have_no_effect() -> None:
    whole, comm, _ = runs()
    failed = summary(ablation="p2p", status="failed", decode_ms_per_step=1.0)
    no_step = summary(ablation="p2p", decode_ms_per_step=None)
    found = ablation.effects([whole, comm, failed, no_step])
    assert [effect.cell.ablation for effect in found] == ["comm"]
    assert ablation.effects([comm]) == []


def started(what: str, *steps: float, **fields: object) -> list[Summary]:
    """A run of a start for each step, in ms."""
    return [
        summary(ablation=what, start=i, decode_ms_per_step=ms, **fields)
        for i, ms in enumerate(steps)
    ]


def test_the_saving_is_of_starts_of_the_same_round_with_an_interval() -> None:
    whole = started("none", 10.0, 12.0, 11.0, comm_exposed_pct=9.0)
    (effect,) = ablation.effects([*whole, *started("comm", 9.0, 10.9, 9.9)])
    assert effect.decode_ms_per_step == 11.0
    assert effect.saved_pct == pytest.approx(100 * (1 - 29.8 / 33))
    assert effect.saved_ci_low is not None
    assert effect.saved_ci_high is not None
    assert 8.5 < effect.saved_ci_low < effect.saved_pct < effect.saved_ci_high < 11.5
    low, high = effect.saved_ci_low, effect.saved_ci_high
    assert f"{effect.saved_pct:.1f}% [{low:.1f}, {high:.1f}] less" in ablation.sentence(effect)


def test_a_saving_of_starts_without_a_round_in_common_has_no_interval() -> None:
    apart = started("comm", 9.0, 9.0, block=1)
    (effect,) = ablation.effects([*started("none", 10.0, 10.0), *apart])
    assert (effect.saved_pct, effect.saved_ci_low) == (pytest.approx(10.0), None)


def test_the_share_by_the_profile_is_the_mean_of_the_starts() -> None:
    whole = [*started("none", 10.0, 10.0, comm_exposed_pct=9.0)]
    whole.append(summary(start=2, decode_ms_per_step=10.0, comm_exposed_pct=12.0))
    (effect,) = ablation.effects([*whole, *started("comm", 9.0)])
    assert effect.comm_exposed_pct == pytest.approx(10.0)


def test_ablated_runs_are_not_compared_with_layouts() -> None:
    assert [one.throughput.output_throughput for one in compare(runs())] == [100.0]


@pytest.mark.parametrize(
    ("what", "engine", "layout", "device", "applies"),
    [
        ("comm", "torch", "tp2", "cpu", True),
        ("comm", "torch", "pp2", "cpu", False),
        ("comm", "torch", "tp2pp2", "cpu", True),
        ("comm", "vllm", "tp2", "cuda", True),
        ("comm", "vllm", "pp2", "cuda", False),
        ("comm", "deepspeed", "tp2", "cuda", False),
        ("p2p", "torch", "tp2", "cpu", False),
        ("p2p", "torch", "tp2", "cuda", True),
        ("p2p", "torch", "pp2", "cuda", True),
        ("p2p", "torch", "dp4", "cuda", False),
    ],
)
def test_only_what_a_layout_has_and_its_engine_can_do_without_is_left_out(
    what: str, engine: str, layout: str, device: Literal["cuda", "cpu"], applies: bool
) -> None:
    engine_plan = EnginePlan(MODEL, layout, placed(layout), None, "float32", device, 4, 32, 64)
    assert ablates(what, engine, engine_plan) is applies
