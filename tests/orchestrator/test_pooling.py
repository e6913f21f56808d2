"""Packed results of one experiment that were made apart, put together by `unpack`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from stores import CELL, observed_tables, run_tables
from summaries import write_run

from orchestrator.analysis.comparing.gaps import missing
from orchestrator.analysis.load import summaries
from orchestrator.cli import main
from orchestrator.experiment import Cell, Run
from orchestrator.store.store import Store

VERSIONS = {"torch": "2.11"}
DEVICE = {"node": "n", "index": 0}
HERE = {"started_at": "2026-01-01", "node": 0, "gpu_uuids": ["GPU-a"], "cpu_model": None}
THERE = {"started_at": "2026-01-02", "node": 0, "gpu_uuids": ["GPU-b"], "cpu_model": None}
AGAIN = {"started_at": "2026-01-03", "node": 0, "gpu_uuids": ["GPU-a"], "cpu_model": None}

Made = dict[int, int]  # start -> the block that made it


def packed(
    folder: Path,
    ran: list[dict[str, Any]],
    made: Made,
    cells: Sequence[Cell] = (CELL,),
    switches: Mapping[str, str] | None = None,
    **manifest: Any,
) -> Path:
    """Results with a run of each cell in each start, packed."""
    store = Store(folder / "tiny-1")
    store.create()
    asked = {cell.name: [[len(made), 1]] for cell in cells}
    told = {"blocks": ran, "versions": VERSIONS, "asked": asked, "experiment": {}}
    told |= {"cells": list(asked), **manifest}
    store.update_manifest(**told)
    for start, block in made.items():
        began = f"{ran[block]['started_at']}T00:00:0{start}"
        row = {"block": block, "node": ran[block]["node"], "started_at": began}
        for cell in cells:
            write_run(store, Run(cell, start, 0), run_tables(), **row, **(switches or {}))
            store.write_observed(cell, start, observed_tables())
    assert not CliRunner().invoke(main, ["pack", str(store.folder)]).exit_code
    return store.folder / "packed"


def unpacked(root: Path, *packs: Path | str) -> Store:
    done = CliRunner().invoke(main, ["unpack", *map(str, packs), "--result-dir", str(root)])
    assert not done.exit_code, done.output
    return Store(root / "tiny-1")


def places_of(store: Store) -> list[tuple[int, int, int | None]]:
    rows = store.read("summary")
    assert rows is not None
    return sorted((one["start"], one["block"], one["node"]) for one in rows.to_pylist())


@pytest.mark.parametrize(
    ("blocks", "made", "expected"),
    [
        ([THERE], {0: 0, 1: 0}, [(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 1, 1)]),
        ([AGAIN], {0: 0}, [(0, 0, 0), (1, 0, 0), (2, 1, 0)]),  # the same node, later
        ([{**AGAIN, "gpu_uuids": ["GPU-a", "GPU-c"]}], {0: 0}, [(0, 0, 0), (1, 0, 0), (2, 1, 0)]),
        ([THERE], {5: 0}, [(0, 0, 0), (1, 0, 0), (5, 1, 1)]),  # a number that is free is kept
        ([HERE], {0: 0, 1: 0}, [(0, 0, 0), (1, 0, 0)]),  # what is in both is taken once
        ([HERE], {0: 0, 2: 0}, [(0, 0, 0), (1, 0, 0), (2, 0, 0)]),
        ([HERE, {**THERE, "node": 1}], {0: 0, 1: 1}, [(0, 0, 0), (1, 0, 0), (2, 1, 1)]),
    ],
)
def test_starts_follow_those_that_are_there(
    blocks: list[dict[str, Any]], made: Made, expected: list[tuple[int, int, int]], tmp_path: Path
) -> None:
    first = packed(tmp_path / "one", [HERE], {0: 0, 1: 0})
    whole = unpacked(tmp_path / "both", first, packed(tmp_path / "other", blocks, made))
    assert places_of(whole) == expected
    requests = whole.read("requests")
    assert requests is not None
    assert set(Counter(requests.column("start").to_pylist())) == {one for one, *_ in expected}
    observed = [run.step.decode.comm_exposed.pct for run in summaries(whole)]
    assert None not in observed
    told = {(block["started_at"], block["node"]) for block in whole.manifest()["blocks"]}
    assert len(told) == 1 + max(block for _, block, _ in expected)
    assert {node for _, node in told} == {node for *_, node in expected}


def test_a_node_that_a_manifest_does_not_tell_of_is_another_one(tmp_path: Path) -> None:
    one = packed(tmp_path / "one", [HERE], {0: 0})
    lost = packed(tmp_path / "lost", [HERE], {0: 0}, blocks=[])
    assert places_of(unpacked(tmp_path / "both", one, lost)) == [(0, 0, 0), (1, 1, 1)]


def test_a_part_of_a_result_whose_numbers_another_took_is_not_lost(tmp_path: Path) -> None:
    """One command's runs were taken apart by strategy; another's are put between the parts."""
    tp, pp = CELL, replace(CELL, deployment=replace(CELL.deployment, strategy="pp2"))
    tps = packed(tmp_path / "tp", [HERE], {0: 0}, [tp])
    more = packed(tmp_path / "more", [THERE], {0: 0}, [pp])
    pps = packed(tmp_path / "pp", [HERE], {0: 0}, [pp])
    rows = unpacked(tmp_path / "all", tps, more, pps, pps).read("summary")
    assert rows is not None
    made = [(one["strategy"], one["start"], one["started_at"]) for one in rows.to_pylist()]
    first, second = "2026-01-01T00:00:00", "2026-01-02T00:00:00"
    assert sorted(made) == [
        ("pp2", 0, second),
        ("pp2", 1, first),
        (CELL.deployment.strategy, 0, first),
    ]


def test_runs_are_added_to_what_was_put_together(tmp_path: Path) -> None:
    packs = (
        packed(tmp_path / str(number), [block], {0: 0})
        for number, block in enumerate((HERE, THERE))
    )
    whole = unpacked(tmp_path / "both", *packs)
    with whole.opened():
        write_run(whole, Run(CELL, 2, 0), run_tables(), block=2)
    assert [one.start for one in whole.outcomes()] == [0, 1, 2]
    assert whole.manifest()["asked"] == {}


def test_a_cell_that_lacked_nothing_lacks_nothing_under_another_number(tmp_path: Path) -> None:
    """Its start has number 1, as another cell of the same command had to move."""
    other = replace(CELL, deployment=replace(CELL.deployment, strategy="pp2"))
    first = packed(tmp_path / "one", [HERE], {0: 0}, [other])
    whole = unpacked(
        tmp_path / "all", first, packed(tmp_path / "two", [THERE], {0: 0}, [CELL, other])
    )
    assert {one.start for one in whole.outcomes() if one.cell.name == CELL.name} == {1}
    assert not missing(whole.folder, whole.manifest(), whole.outcomes())


def test_a_cell_that_one_result_lacks_and_another_has_lacks_nothing(tmp_path: Path) -> None:
    other = replace(CELL, deployment=replace(CELL.deployment, strategy="pp2"))
    asked = {name.name: [[1, 1]] for name in (CELL, other)}
    first = packed(tmp_path / "one", [HERE], {0: 0}, [other], asked=asked)
    second = packed(tmp_path / "two", [THERE], {0: 0}, [CELL, other])
    whole = unpacked(tmp_path / "all", first, second)
    assert {one.start for one in whole.outcomes() if one.cell.name == CELL.name} == {1}
    assert not missing(whole.folder, whole.manifest(), whole.outcomes())


def test_runs_of_one_start_are_not_those_of_others(tmp_path: Path) -> None:
    """Four runs in two starts are fewer than four starts."""
    asked = {CELL.name: [[4, 1]]}
    first = packed(tmp_path / "one", [HERE], {0: 0}, asked=asked)
    second = unpacked(tmp_path / "two", packed(tmp_path / "made", [THERE], {0: 0}))
    with second.opened():
        for run in (1, 2):
            write_run(second, Run(CELL, 0, run), run_tables(), block=0)
    CliRunner().invoke(main, ["pack", str(second.folder)])
    whole = unpacked(tmp_path / "all", first, second.folder / "packed")
    assert len(list(whole.outcomes())) == 4
    assert whole.manifest()["asked"] == asked


def test_what_a_result_lacks_it_lacks_among_others(tmp_path: Path) -> None:
    asked = {CELL.name: [[4, 1]]}
    first = packed(tmp_path / "one", [HERE], {0: 0}, asked=asked)
    whole = unpacked(tmp_path / "all", first, packed(tmp_path / "two", [THERE], {0: 0}))
    (found,) = missing(whole.folder, whole.manifest(), whole.outcomes())
    assert (found.cell, found.runs, found.asked) == (CELL.name, 2, 4)


def test_results_of_other_software_are_not_put_together(tmp_path: Path) -> None:
    one = packed(tmp_path / "one", [HERE], {0: 0})
    other = packed(tmp_path / "other", [THERE], {0: 0}, topology=[{**DEVICE, "name": "H100"}])
    assert unpacked(tmp_path / "both", one, other).folder.is_dir()  # one does not say
    third = packed(tmp_path / "third", [THERE], {0: 0}, topology=[{**DEVICE, "name": "H200"}])
    done = CliRunner().invoke(main, ["unpack", str(other), str(third), "--result-dir", "x"])
    assert done.exit_code
    assert "have device ['H100'] and ['H200']; they cannot be put together" in done.output


def test_runs_with_another_switch_are_not_put_together(tmp_path: Path) -> None:
    one = packed(tmp_path / "one", [HERE], {0: 0}, switches={"allreduce": "nccl"})
    other = packed(tmp_path / "other", [THERE], {0: 0}, switches={"allreduce": "one-shot"})
    done = CliRunner().invoke(main, ["unpack", str(one), str(other), "--result-dir", "x"])
    assert done.exit_code
    said = "have allreduce nccl and one-shot in runs of tp4 by torch; they cannot be put together"
    assert said in done.output
    untold = packed(tmp_path / "untold", [THERE], {0: 0})
    assert len(places_of(unpacked(tmp_path / "both", one, untold))) == 2


def test_runs_from_before_there_was_a_switch_count_as_they_were_made(tmp_path: Path) -> None:
    then = packed(tmp_path / "then", [HERE], {0: 0}, switches={"allreduce": "nccl"})
    for values, fits in ({"products": "cublas", "pdl": "off"}, True), ({"pdl": "on"}, False):
        now = packed(tmp_path / values["pdl"], [THERE], {0: 0}, switches=values)
        result_dir = str(tmp_path / f"both-{values['pdl']}")
        done = CliRunner().invoke(main, ["unpack", str(then), str(now), "--result-dir", result_dir])
        assert (done.exit_code == 0) == fits
        assert fits or "have pdl off and on in runs of tp4 by torch" in done.output


def test_the_runs_of_one_engine_are_taken_alone(tmp_path: Path) -> None:
    peers = replace(CELL, deployment=replace(CELL.deployment, engine="vllm"))
    old = packed(tmp_path / "old", [HERE], {0: 0, 1: 0}, (CELL, peers))
    alone = unpacked(tmp_path / "alone", old, "--engine", "vllm")
    assert {one.cell.engine for one in alone.outcomes()} == {"vllm"}
    assert list(alone.manifest()["asked"]) == [peers.name]
    assert set((alone.read("requests") or pa.table({})).column("engine").to_pylist()) == {"vllm"}
    CliRunner().invoke(main, ["pack", str(alone.folder)])
    new = packed(tmp_path / "new", [THERE], {0: 0}, (CELL, peers))
    whole = unpacked(tmp_path / "whole", alone.folder / "packed", new)
    starts = Counter((one.cell.engine, one.start) for one in whole.outcomes())
    assert set(starts) == {("vllm", 0), ("vllm", 1), ("vllm", 2), ("torch", 2)}


def test_an_engine_that_made_nothing_is_named(tmp_path: Path) -> None:
    old = str(packed(tmp_path / "old", [HERE], {0: 0}))
    done = CliRunner().invoke(main, ["unpack", old, "--engine", "vllm", "--result-dir", "x"])
    assert done.exit_code
    assert "has no runs of engine vllm; it has torch" in done.output


def test_the_runs_of_one_strategy_are_taken_alone(tmp_path: Path) -> None:
    pipeline = replace(CELL, deployment=replace(CELL.deployment, strategy="pp4"))
    peers = replace(pipeline, deployment=replace(pipeline.deployment, engine="vllm"))
    old = packed(tmp_path / "old", [HERE], {0: 0}, (CELL, pipeline, peers))
    alone = unpacked(tmp_path / "alone", old, "--strategy", "pp4", "--engine", "torch")
    assert {one.cell.name for one in alone.outcomes()} == {pipeline.name}
    assert list(alone.manifest()["asked"]) == [pipeline.name]
    named = ["unpack", str(old), "--strategy", "tp4", "--engine", "vllm", "--result-dir", "x"]
    done = CliRunner().invoke(main, named)
    assert done.exit_code
    assert "has no runs of engine vllm; it has torch" in done.output
