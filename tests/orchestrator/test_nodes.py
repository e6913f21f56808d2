"""Several nodes: which ranks share one, what goes between them, and for whom the others wait."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import fake_engine
import fake_group
import pytest
from click.testing import CliRunner
from driver_inputs import deployment, plan, run
from rich.console import Console
from summaries import comparison

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.analysis.observed.accounting import PartsRow
from orchestrator.analysis.observed.communication import slowest_of
from orchestrator.analysis.observed.operations import links_of
from orchestrator.cli import main
from orchestrator.cluster.failures import RunFailed
from orchestrator.cluster.ranks import nodes_of_ranks, together
from orchestrator.cluster.room import bundles_for
from orchestrator.node import fabric
from orchestrator.node.calibrate import Calibration
from orchestrator.node.partial import with_nodes
from orchestrator.report import fabric_tables
from orchestrator.report.charts import across_nodes
from orchestrator.report.text import three_digits
from orchestrator.run.serving import RETRIES
from orchestrator.store.store import Store
from strategies.placement import Placement
from workers.messages import EnginePlan, RankReport, Work
from workers.records import COLLECTIVES, FABRIC, STEPS, CollectiveRow, FabricRow
from workers.rows import nothing


def mesh(**degrees: int) -> Placement:
    """Axes, the outermost first."""
    placement = Placement(devices=(0,))
    for axis, degree in degrees.items():
        placement = placement.with_axis(axis, degree)
    return placement


def planned(**degrees: int) -> EnginePlan:
    return replace(plan(1), placement=mesh(**degrees))


@pytest.mark.parametrize(
    ("degrees", "counts", "size"),
    [
        ({"pp": 2, "tp": 2}, (3, 3), 2),  # tp inside a node, pp across
        ({"dp": 2, "pp": 2, "tp": 2}, (4, 4), 4),  # a replica inside a node, dp across
        ({"dp": 2, "pp": 2, "tp": 2}, (3, 3, 3, 3), 2),
        ({"tp": 4}, (2, 2), 1),  # no node has room for a group of tp
        ({"pp": 2, "tp": 4}, (4, 3, 1), 1),  # nor has a second one
    ],
)
def test_tp_stays_inside_a_node_and_so_does_a_replica_where_there_is_room(
    degrees: dict[str, int], counts: tuple[int, ...], size: int
) -> None:
    assert together(mesh(**degrees).mesh, counts) == size


def test_ranks_that_share_a_node_are_reserved_in_one_bundle_and_others_alone() -> None:
    four = planned(pp=2, tp=2)
    assert bundles_for(four, "torch", [3, 3]) == [{"CPU": 2}] * 2
    assert bundles_for(four, "torch", [4, 3]) == [{"CPU": 1}] * 4  # STRICT_PACK on the first
    assert bundles_for(four, "torch") == [{"CPU": 1}] * 4


def test_a_plan_names_the_node_of_each_rank_sorted_by_node() -> None:
    four = planned(pp=2, tp=2)
    assert nodes_of_ranks(four, "torch", {"b": 2, "a": 3, "c": 1}) == ("a", "a", "b", "b")
    assert nodes_of_ranks(four, "torch", {"a": 2, "b": 4}) == ("b",) * 4
    assert nodes_of_ranks(four, "torch", {"a": 1, "b": 2}) == ()


def test_a_placement_that_orders_devices_otherwise_orders_its_nodes_so() -> None:
    turned = replace(planned(pp=2), placement=replace(mesh(pp=2), devices=(1, 0)))
    assert nodes_of_ranks(turned, "torch", {"a": 1, "b": 1}) == ("b", "a")


def counted(rank: int, *calls: tuple[str, str, int]) -> RankReport:
    rows = [
        CollectiveRow(rank=rank, phase="decode", op=op, axis=axis, calls=1, bytes=size)
        for op, axis, size in calls
    ]
    return RankReport(rank, None, STEPS.make([]), COLLECTIVES.make(rows), 0)


def test_bytes_are_counted_inside_nodes_and_across_them() -> None:
    """An all-reduce of two ranks sends its message once from each; a stage sends to the next."""
    reports = [
        counted(0, ("all_reduce", "tp", 100), ("send", "pp", 40)),
        counted(1, ("all_reduce", "tp", 100), ("send", "pp", 40)),
        counted(2, ("all_reduce", "tp", 100), ("recv", "pp", 40), ("broadcast", "pp", 8)),
        counted(3, ("all_reduce", "tp", 100), ("recv", "pp", 40), ("broadcast", "pp", 8)),
    ]
    by_stage = links_of(reports, mesh(pp=2, tp=2), ("a", "a", "b", "b"))
    assert by_stage.sent_inside_nodes_bytes == 400
    assert by_stage.sent_across_nodes_bytes == 2 * 40 + 2 * 4  # a broadcast: half from each of two
    assert by_stage.sent_on_busiest_link_bytes == by_stage.sent_across_nodes_bytes
    across_tp = links_of(reports, mesh(pp=2, tp=2), ("a", "b", "a", "b"))
    assert across_tp.sent_across_nodes_bytes == 400
    one = links_of(reports, mesh(pp=2, tp=2), ("a",) * 4)
    assert (one.nodes, one.sent_across_nodes_bytes) == (("a",) * 4, 0)
    assert one.sent_on_busiest_link_bytes == 0


def test_of_several_links_the_busiest_is_told() -> None:
    """A ring over a, b and c: the ranks 0 to 1 stay, 1 to 2, 2 to 3 and 3 to 0 go between nodes."""
    reports = [counted(rank, ("all_reduce", "tp", 100)) for rank in range(4)]
    found = links_of(reports, mesh(tp=4), ("a", "a", "b", "c"))
    assert (found.sent_inside_nodes_bytes, found.sent_across_nodes_bytes) == (150, 450)
    assert found.sent_on_busiest_link_bytes == 150


def test_a_ring_over_two_nodes_crosses_between_them_twice() -> None:
    reports = [counted(rank, ("all_reduce", "tp", 100)) for rank in range(4)]
    found = links_of(reports, mesh(tp=4), ("a", "a", "b", "b"))
    assert found.sent_inside_nodes_bytes == found.sent_across_nodes_bytes == 300  # 4 x 150 in all


def test_what_is_not_counted_is_null_and_its_nodes_are_known() -> None:
    report = RankReport(0, None, STEPS.make([]), None, 0)
    found = links_of([report], mesh(pp=2), ("a", "b"))
    assert (found.nodes, found.sent_across_nodes_bytes) == (("a", "b"), None)
    assert links_of([report], mesh(pp=2), ()).nodes is None


def parts(rank: int, wait_ms: float, bubble_ms: float = 0.0) -> PartsRow:
    known = {"rank": rank, "phase": "decode", "steps": 9, "step_ms": 10.0}
    return replace(nothing(PartsRow), **known, exposed_wait_ms=wait_ms, bubble_ms=bubble_ms)


def test_a_throttled_rank_is_named_with_its_node_by_the_wait_of_the_others() -> None:
    rows = [
        parts(0, 4.0),
        parts(1, 0.2),
        parts(2, 0.0, bubble_ms=5.0),
        parts(3, 1.0, bubble_ms=3.0),
    ]
    assert slowest_of(rows, ("a", "b", "a", "c")).awaited == (
        "the others wait for rank 1 on node b: they spend 40% of a decode step waiting, it 2%"
    )


def test_nobody_is_named_where_all_wait_alike() -> None:
    assert slowest_of([parts(0, 4.0), parts(1, 3.5)], ("a", "b")).awaited is None
    assert slowest_of([parts(0, 4.0)], ("a",)).awaited is None
    assert slowest_of([parts(0, 4.0), parts(1, 0.2)], ("a", "a")).awaited is None


def test_a_report_says_what_goes_between_nodes_and_for_whom_others_wait() -> None:
    waits = "the others wait for rank 1 on node b: they spend 40% of a decode step waiting, it 2%"
    asked = {"num_prompts": 10, "mean_output_len": 5.0}

    def sent(across: int, busiest: int, **more: object) -> Comparison:
        links = {"sent_across_nodes_bytes": across, "sent_on_busiest_link_bytes": busiest}
        return comparison(**asked, **links, **more)

    shown = {
        "tp2": sent(100_000, 100_000, awaited=waits),
        "tp4": sent(150_000, 50_000),
        "tp1": sent(0, 0),
    }
    assert list(across_nodes.sentences(shown)) == [
        "Sent between nodes for each token asked for: tp2 2.0 kB, tp4 3.0 kB (1.0 kB on the "
        "busiest link).",
        f"In tp2 {waits}.",
    ]
    assert list(across_nodes.sentences({"tp1": shown["tp1"]})) == []


# -- a node that dies


def losing(monkeypatch: pytest.MonkeyPatch, times: int) -> fake_group.Groups:
    """Groups of which the first `times` that serve a run, after the warm-up, lose a node."""
    made, serve, left = fake_group.installed(monkeypatch), fake_group.FakeGroup.run, [times]

    def run(group: fake_group.FakeGroup, work: Work, timeout_s: float) -> list[RankReport]:
        if len(work.requests) > 1 and left[0]:
            left[0] -= 1
            raise RunFailed("lost node b with rank 1: gone", lost_nodes=("b",))
        return serve(group, work, timeout_s)

    monkeypatch.setattr(fake_group.FakeGroup, "run", run)
    return made


def outcomes(store: Store) -> list[tuple[str, int, str]]:
    rows = store.read("summary").to_pylist()
    return sorted((row["strategy"], row["run"], row["status"]) for row in rows)


@pytest.mark.parametrize("times", [1, RETRIES])
def test_a_run_that_loses_a_node_is_made_again_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, times: int
) -> None:
    losing(monkeypatch, times)
    store, told = run([deployment("tp2")], tmp_path, on_node_loss="retry", num_runs=2)
    assert outcomes(store) == [("tp2", 0, "completed"), ("tp2", 1, "completed")]
    assert sum("the run is made again" in note for note in told.notes) == times
    assert told.runs() == [("tp2", 0, 0), ("tp2", 0, 1)]  # each has ended once


def test_it_is_not_made_again_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    losing(monkeypatch, RETRIES + 1)
    store, _ = run([deployment("tp2")], tmp_path, on_node_loss="retry")
    assert outcomes(store) == [("tp2", 0, "failed")]


def test_a_run_that_loses_a_node_is_a_row_with_the_reason_and_the_others_are_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    losing(monkeypatch, 1)
    store, _ = run([deployment("tp2"), deployment("tp1")], tmp_path)
    assert outcomes(store) == [("tp1", 0, "completed"), ("tp2", 0, "failed")]
    (row,) = [one for one in store.read("summary").to_pylist() if one["status"] == "failed"]
    assert row["reason"] == "lost node b with rank 1: gone"


def test_a_run_that_fails_for_another_reason_is_not_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_group.installed(monkeypatch)
    failing = deployment("tp2", orders=((fake_engine.RAISE, 0),))
    store, _ = run([failing], tmp_path, on_node_loss="retry")
    assert outcomes(store) == [("tp2", 0, "failed")]


# -- what a calibration says of the network


def sent(pair: tuple[int, int], busbw: float) -> FabricRow:
    known = {"host": "a", "device_name": "cpu", "kind": "collective", "op": "send_recv"}
    sizes = {"rank": pair[0], "group": pair, "group_size": 2, "bytes": 4096}
    return replace(nothing(FabricRow), **known, **sizes, time_us=10.0, algbw=busbw, busbw=busbw)


def test_a_calibration_of_two_nodes_tells_pairs_inside_one_from_pairs_across() -> None:
    rows = [sent((0, 1), 9.0), sent((2, 3), 8.0), sent((0, 2), 0.5), sent((1, 3), 0.4)]
    table = with_nodes(FABRIC.make(rows), ("a", "a", "b", "b"))
    console = Console(width=200, file=io.StringIO())
    fabric_tables.render(Calibration(Path("fabric.arrow"), table, []), console)
    said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    inside = f"2-3 with {three_digits(8.0)} GB/s each way, fastest 0-1 with {three_digits(9.0)}"
    across = f"1-3 with {three_digits(0.4)} GB/s each way, fastest 0-2 with {three_digits(0.5)}"
    assert f"Pairs inside a node: slowest {inside}" in said
    assert f"Pairs across nodes: slowest {across}" in said
    assert "x cpu on 2 nodes " in said


def test_the_only_pair_of_ranks_is_told_where_its_nodes_are_two() -> None:
    def said(nodes: tuple[str, str]) -> str:
        table = with_nodes(FABRIC.make([sent((0, 1), 0.5)]), nodes)
        console = Console(width=200, file=io.StringIO())
        fabric_tables.render(Calibration(Path("fabric.arrow"), table, []), console)
        return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]

    assert f"Pair across nodes: 0-1 with {three_digits(0.5)} GB/s each way" in said(("a", "b"))
    assert "Pair" not in said(("a", "a"))
    assert "nodes" not in said(("a", "a")).splitlines()[0]


def test_what_was_measured_over_the_network_is_no_curve_of_a_node() -> None:
    table = FABRIC.make([sent((0, 1), 9.0)])
    assert fabric.times(with_nodes(table, ("a", "a")))
    assert fabric.times(with_nodes(table, ("a", "b"))) == {}


# -- a layout that is only looked at


@pytest.mark.parametrize(
    ("layout", "size", "shown"),
    [
        ("tp2pp2", 2, ["0", "0", "1", "1"]),
        ("tp2pp2", 3, ["0", "0", "1", "1"]),  # a third rank would be torn from its group
        ("tp2pp4", 4, ["0"] * 4 + ["1"] * 4),
        ("tp4", 2, ["0", "0", "1", "1"]),
        ("tp4", 4, []),
    ],
)
def test_explain_shows_the_node_of_each_rank(layout: str, size: int, shown: list[str]) -> None:
    words = ["explain", layout, "--model", "tiny", "--gpus-per-node", str(size), "--json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)[0]["nodes"] == shown
