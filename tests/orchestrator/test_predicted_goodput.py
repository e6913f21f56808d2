"""What failures and slow GPUs leave of a throughput: against arithmetic, and against chance."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from test_predictions import predicted

from orchestrator import cli
from orchestrator.predict.goodput import Reliability, goodput

NEVER = Reliability(failures=0.0, spread=0.0)
ONE = predicted("tp4dp2", 32)


def left(**given: float) -> float:
    """Share of the throughput."""
    found = goodput(ONE, 128, replace(NEVER, **given))
    return found.output_throughput / ONE.output_throughput.value


def test_gpus_that_neither_fail_nor_differ_lose_nothing() -> None:
    assert left() == 1.0


def test_the_default_rate_is_that_of_the_llama_3_paper() -> None:
    assert Reliability().failures == pytest.approx(1.97e-5, rel=2e-3)
    # its 16,384 GPUs: every three hours
    assert 1 / (Reliability().failures * 16384) == pytest.approx(3.09, rel=0.01)


def test_a_replica_is_down_for_its_recovery_and_half_a_request() -> None:
    request_s = 32 * 128 / ONE.output_throughput.value
    for rate, recovery in ((1e-3, 600.0), (0.02, 3600.0)):
        between_s = 3600 / (rate * 4)  # four GPUs a replica
        expected = between_s / (between_s + recovery + request_s / 2)
        assert left(failures=rate, recovery_s=recovery) == pytest.approx(expected)


def test_failures_that_are_drawn_leave_as_much() -> None:
    random, rate, recovery = np.random.default_rng(5), 0.5, 900.0
    up = random.exponential(3600 / (rate * 4), 20_000)
    request_s = 32 * 128 / ONE.output_throughput.value
    share = (up.sum() - request_s / 2 * len(up)) / (up.sum() + recovery * len(up))
    assert left(failures=rate, recovery_s=recovery) == pytest.approx(float(share), rel=0.02)


@pytest.mark.parametrize("spread", [0.01, 0.05])
def test_a_group_goes_at_the_pace_of_its_slowest(spread: float) -> None:
    drawn = 1 + spread * np.random.default_rng(7).standard_normal((200_000, 4))
    pace = drawn.max(axis=1).mean() / drawn[:, :2].max(axis=1).mean()
    assert left(spread=spread) == pytest.approx(1 / float(pace), rel=2e-3)


def test_smaller_groups_lose_less_to_either() -> None:
    few, many = predicted("tp4dp4", 32), predicted("tp4pp4", 32)
    given = Reliability(failures=1e-3, spread=0.02)
    small, large = (goodput(one, 128, given) for one in (few, many))
    assert small.available > large.available
    assert small.pace < large.pace
    assert small.failures_per_day == large.failures_per_day == pytest.approx(1e-3 * 16 * 24)


def plan(*asked: str) -> tuple[str, dict]:
    base = ("plan", "--model", "llama-70b", "--gpu", "h100", "--strategy", "tp4dp4,tp8dp2")
    shown = CliRunner().invoke(cli.main, [*base, *asked])
    assert shown.exit_code == 0, shown.output
    found = json.loads(CliRunner().invoke(cli.main, [*base, *asked, "--json"]).stdout)
    return " ".join(shown.stdout.split()), found["plans"][0]["rankings"][0]["layouts"][0]


def test_a_plan_of_several_nodes_has_its_goodput_and_says_of_what() -> None:
    shown, first = plan("--gpus", "16", "--network", "50")
    assert first["goodput"]["output_throughput"] < first["output_throughput"]["value"]
    assert "1.97e-05 failures a GPU-hour (Llama 3, 419 in 54 days of 16,384 GPUs)" in shown
    assert "600 s to recover (assumed); 1% between GPUs (assumed)" in shown


def test_what_is_asked_of_failures_is_said_to_be() -> None:
    asked = ("--failure-rate", "0.01", "--recovery", "60", "--straggler", "0")
    shown, first = plan("--gpus", "16", "--network", "50", *asked)
    assert first["goodput"]["pace"] == 1
    assert "0.01 failures a GPU-hour (as asked); 60 s to recover (as asked)" in shown


def test_one_node_has_no_goodput() -> None:
    shown, first = plan("--gpus", "16", "--gpus-per-node", "16")
    assert first["goodput"] is None
    assert "oodput" not in shown


@pytest.mark.parametrize("asked", ["--failure-rate", "--recovery", "--straggler"])
def test_what_is_asked_of_failures_within_one_node_is_refused(asked: str) -> None:
    base = ("plan", "--model", "llama-70b", "--gpu", "h100", "--gpus", "8", asked, "0.5")
    done = CliRunner().invoke(cli.main, base)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert f"{asked}: goodput is worked out of more than one node, and 8 GPUs are within" in line


def test_slower_gpus_lower_the_goodput_of_an_open_loop_only_above_saturation() -> None:
    asked = ("--gpus", "16", "--network", "50", "--num-prompts", "40", "--straggler", "0.2")
    for rate, is_saturated in (("1", False), ("10000", True)):
        _, first = plan(*asked, "--request-rate", rate, "--max-concurrency", "4")
        kept = first["goodput"]["output_throughput"] / first["output_throughput"]["value"]
        assert first["goodput"]["pace"] > 1.05
        assert (kept < 0.99) == is_saturated
        assert is_saturated or kept == 1
