"""Two machines that are namespaces of this one, joined by a link that tc limits, as docs/cluster.md
has it: `ray start` on each, and nothing else set up."""

from __future__ import annotations

import re
from pathlib import Path

import namespaces
import nodes
import pytest

MBIT = 1e6 / 8
TIMEOUT_S = 240
SUBMIT = ("orchestrator", "submit", "--address", "auto", "--device", "cpu")
LOAD = ("--input-len", "16", "--output-len", "8", "--max-concurrency", "2")

pytestmark = [pytest.mark.netns, pytest.mark.nodes]


@pytest.mark.ray
@pytest.mark.timeout(3 * TIMEOUT_S)
def test_two_machines_with_ray_start_alone_make_the_tokens_of_one_over_a_slow_link(
    tmp_path: Path,
) -> None:
    """Also that one which is cut off is a row with the reason."""
    with nodes.in_namespaces(tmp_path / "home", [2, 2]) as joined:
        for machine in joined.machines:
            machine.limit(100 * MBIT)
        asked = (*SUBMIT, *LOAD, "--strategy", "tp1,tp2pp2", "--result-dir", tmp_path / "same")
        done = joined.run(0, *asked, timeout_s=TIMEOUT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Output tokens: the same under tp1, tp2pp2" in done.stdout
        away = joined.machines[1]
        more = (*SUBMIT, *LOAD, "--strategy", "pp4", "--num-prompts", "60", "--num-runs", "2")
        running = joined.begin(0, *more, "--result-dir", tmp_path / "cut")
        assert running.stdout is not None
        assert any("run 1: " in line for line in running.stdout)  # the next one begins at once
        away.unplug()
        said, _ = running.communicate(timeout=2 * TIMEOUT_S)
        assert re.search(rf"failed: .*lost node {re.escape(away.address)} with rank 2, 3", said)
        assert running.returncode == 1


def test_a_link_has_the_rate_that_it_was_given() -> None:
    if reason := namespaces.why_not():
        pytest.skip(reason)
    with namespaces.machines(2) as (one, _):
        one.limit(10 * MBIT)
        shown = namespaces.called(one.command("tc", "qdisc", "show", "dev", namespaces.INTERFACE))
        assert "rate 10Mbit" in shown
        one.limit(None)
        shown = namespaces.called(one.command("tc", "qdisc", "show", "dev", namespaces.INTERFACE))
        assert "tbf" not in shown


def test_a_link_delays_packets_where_the_kernel_can() -> None:
    if reason := namespaces.why_not():
        pytest.skip(reason)
    with namespaces.machines(1) as (one,):
        try:
            one.limit(None, delay_s=0.01)
        except RuntimeError as error:
            pytest.skip(f"this kernel has no netem: {error}")
        shown = namespaces.called(one.command("tc", "qdisc", "show", "dev", namespaces.INTERFACE))
        assert "delay 10ms" in shown
