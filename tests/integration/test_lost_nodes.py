"""Layouts over several nodes: where ranks go, that they make the same tokens, and what becomes of a
sweep whose node dies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nodes
import pyarrow as pa
import pytest

from orchestrator.store.store import Store

BIN = Path(sys.executable).parent
TIMEOUT_S = 200
LOAD = ("--device", "cpu", "--input-len", "16", "--max-concurrency", "2")


def command(address: str, result_dir: Path, *flags: str) -> list[str]:
    asked = ("--address", address, "--result-dir", str(result_dir), *LOAD, *flags)
    return [str(BIN / "orchestrator"), "submit", *asked]


def rows(result_dir: Path) -> list[dict[str, Any]]:
    (folder,) = (one for one in result_dir.iterdir() if (one / "manifest.json").exists())
    table = Store(folder).read("summary")
    assert isinstance(table, pa.Table)
    return table.to_pylist()


@pytest.mark.ray
@pytest.mark.nodes
@pytest.mark.timeout(3 * TIMEOUT_S)
def test_ranks_of_two_nodes_make_the_tokens_of_one_and_a_node_that_dies_costs_its_run_alone(
    tmp_path: Path,
) -> None:
    with nodes.in_one_machine([2, 2, 2]) as (address, there, _):
        head = next(iter(there))
        makes_the_same_tokens(address, tmp_path / "same", sorted(there)[:2])
        first = lose(address, tmp_path / "again", there, head, "retry")
        a_run_was_made_again(first, sorted(there))
        second = lose(address, tmp_path / "left", there, head, "skip")
        a_run_was_left_out(second)


def makes_the_same_tokens(address: str, results: Path, planned: list[str]) -> None:
    """Ranks of a tp group share a node, and are where the plan says."""
    asked = command(address, results, "--strategy", "tp1,tp2pp2", "--output-len", "8")
    plan = subprocess.run(
        [*asked, "--dry-run", "--json"], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert plan.returncode == 0, plan.stderr
    one, four = json.loads(plan.stdout)["deployments"]
    assert one["placement"]["nodes"] == planned[:1]
    assert four["placement"]["nodes"] == [planned[0]] * 2 + [planned[1]] * 2
    done = subprocess.run(asked, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Output tokens: the same under tp1, tp2pp2" in done.stdout
    found = {row["strategy"]: row for row in rows(results)}
    assert [found[name]["nodes"] for name in ("tp1", "tp2pp2")] == [
        one["placement"]["nodes"],
        four["placement"]["nodes"],
    ]
    assert found["tp1"]["sent_across_nodes_bytes"] == 0
    assert found["tp2pp2"]["sent_inside_nodes_bytes"] > found["tp2pp2"]["sent_across_nodes_bytes"]


@dataclass(frozen=True)
class Lost:
    """What became of runs whose node was killed. node: its address. said: what was printed."""

    node: str
    status: int
    said: str
    rows: list[dict[str, Any]]

    def of(self, strategy: str, status: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if (row["strategy"], row["status"]) == (strategy, status)]


def lose(address: str, results: Path, there: dict[str, Any], head: str, on_node_loss: str) -> Lost:
    """Runs of tp2pp2 and tp2. After the first one of tp2pp2 one of its nodes dies."""
    flags = ("--strategy", "tp2pp2,tp2", "--output-len", "64", "--num-runs", "3")
    asked = command(address, results, *flags, "--on-node-loss", on_node_loss)
    with subprocess.Popen(
        asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        said = list(until(running.stdout, "run 1: "))
        node = max(one for one in sorted(there)[:2] if one != head)
        there.pop(node).kill_raylet()
        said += running.stdout
    return Lost(node, running.returncode, "".join(said), rows(results))


def until(lines: Iterable[str], sign: str) -> Iterator[str]:
    for line in lines:
        yield line
        if sign in line:
            return


def a_run_was_made_again(lost: Lost, remaining: list[str]) -> None:
    assert f"lost node {lost.node} with rank" in lost.said
    assert "the run is made again" in lost.said
    assert lost.status == 0, lost.said
    assert {row["status"] for row in lost.rows} == {"completed"}
    last = max(lost.of("tp2pp2", "completed"), key=lambda row: row["run"])
    left = [node for node in remaining if node != lost.node]
    assert last["nodes"] == [left[0]] * 2 + [left[1]] * 2


def a_run_was_left_out(lost: Lost) -> None:
    """It is a row with the reason, nothing finished is lost, and the rest goes on."""
    assert lost.status == 1, lost.said  # some runs have no result
    assert len(lost.of("tp2pp2", "completed")) >= 1
    assert len(lost.of("tp2", "completed")) == 3
    (why,) = {row["reason"] for row in lost.of("tp2pp2", "failed")}
    assert f"lost node {lost.node} with rank" in why


@pytest.mark.ray
@pytest.mark.nodes
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_a_run_is_made_again_when_its_node_comes_back(tmp_path: Path) -> None:
    """No other node has room for it meanwhile."""
    with nodes.in_one_machine([2, 2]) as (address, there, bring_back):
        head, node = there
        flags = ("--strategy", "tp2pp2", "--output-len", "64", "--num-runs", "2")
        asked = command(address, tmp_path, *flags, "--on-node-loss", "retry")
        with subprocess.Popen(
            asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as running:
            assert running.stdout is not None
            said = list(until(running.stdout, "run 1: "))
            there[node].kill_raylet()
            said += until(running.stdout, "waiting since 10 s, 60 s at most: ")
            gone = f"its nodes have 2; gone since it was joined: {node}"
            assert gone in said[-1], "".join(said)
            bring_back(2, node)
            said += running.stdout
        assert running.returncode == 0, "".join(said)
        last = max(rows(tmp_path), key=lambda row: row["run"])
        assert (last["status"], last["nodes"]) == ("completed", sorted([head, node] * 2))
